"""A batch of photos, each decoded where it stays, in memory that batches before it have used."""

import math
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cosplace.photos.opening import open_pixels

if TYPE_CHECKING:
    import torch

MOST_SPARE = 2  # blocks kept for the next batches


class SpareMemory:
    """Blocks of memory that come back by themselves when nothing refers to them any more, for threads to share.

    The system clears each page that it gives, which costs a tenth of decoding a photo into it.
    """

    def __init__(self) -> None:
        self.spare: deque[np.ndarray] = deque(maxlen=MOST_SPARE)

    def take(self, num_bytes: int) -> np.ndarray:
        """(num_bytes,) uint8 with anything in it; it is lent as long as any view of it, or tensor in it, lives."""
        try:
            block = self.spare.popleft()
        except IndexError:
            block = None
        if block is None or len(block) != num_bytes:
            block = np.empty(num_bytes, np.uint8)
        lent = np.frombuffer(block.data, np.uint8)  # all views of it keep it, and not the block, alive
        weakref.finalize(lent, self.spare.append, block).atexit = False
        return lent


class PhotoStacks:
    """Up to `most` photos of any sizes, each decoded where it stays: in a stack of the photos of its size."""

    def __init__(self, most: int, memory: SpareMemory | None = None) -> None:
        self.most, self.count = most, 0
        self.memory = memory or SpareMemory()
        self.buffers: dict[tuple[int, int], np.ndarray] = {}  # (most, H, W, 3) uint8
        self.places: dict[tuple[int, int], list[int]] = {}  # of their photos among all

    def open(self, path: str | Path) -> tuple[int, int]:
        """Open one photo and keep it: its height and width.  Raises ImageError as open_image, and keeps nothing."""
        return self._keep(open_pixels(path, self._room))

    def add(self, photo: "torch.Tensor") -> None:
        """Keep a copy of a photo (3, H, W) uint8."""
        self._keep(photo.permute(1, 2, 0).numpy())

    def _room(self, height: int, width: int) -> np.ndarray:
        """Memory for the next photo of that size, (H, W, 3) uint8."""
        size = height, width
        if size not in self.buffers:
            shape = self.most, height, width, 3
            self.buffers[size], self.places[size] = self.memory.take(math.prod(shape)).reshape(shape), []
        return self.buffers[size][len(self.places[size])]

    def _keep(self, pixels: np.ndarray) -> tuple[int, int]:
        height, width, _ = pixels.shape
        room = self._room(height, width)
        if pixels.base is not room.base:  # else it was decoded there
            room[:] = pixels
        self.places[height, width].append(self.count)
        self.count += 1
        return height, width

    def stacks(self) -> "list[tuple[list[int], torch.Tensor]]":
        """(places among all photos, (n, 3, H, W) uint8) of each size, in the order in which sizes appeared."""
        import torch

        found = []
        for size, places in self.places.items():
            if places:
                photos = self.buffers[size][: len(places)]
                whole = photos if len(places) == self.most else photos.copy()  # not with what stayed empty
                found.append((places, torch.from_numpy(whole).permute(0, 3, 1, 2)))
        return found
