"""Photos of a batch, decoded directly into memory that earlier batches used."""

import math
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cosplace.errors import ImageError
from cosplace.photos.opening import open_pixels
from cosplace.photos.panoramas import cut_view

if TYPE_CHECKING:
    import torch

MAX_FREE_BLOCKS = 2  # kept for the next batches


class MemoryPool:
    """Blocks of memory for batches.  A block returns to the pool when nothing refers to it; safe with threads.

    The system clears new memory, which takes a tenth of the time to decode a photo into it.
    """

    def __init__(self) -> None:
        self.free_blocks: deque[np.ndarray] = deque(maxlen=MAX_FREE_BLOCKS)

    def take(self, num_bytes: int) -> np.ndarray:
        """(num_bytes,) uint8, not cleared; in use as long as any view of it, or tensor on it, exists."""
        try:
            block = self.free_blocks.popleft()
        except IndexError:
            block = None
        if block is None or len(block) != num_bytes:
            block = np.empty(num_bytes, np.uint8)
        view = np.frombuffer(block.data, np.uint8)  # all further views refer to this view, not to the block
        weakref.finalize(view, self.free_blocks.append, block).atexit = False
        return view


class PhotoStacks:
    """Up to `max_photos` photos of any sizes, decoded into one stack per size."""

    def __init__(self, max_photos: int, pool: MemoryPool | None = None) -> None:
        self.max_photos, self.num_photos = max_photos, 0
        self.pool = pool or MemoryPool()
        self.buffers: dict[tuple[int, int], np.ndarray] = {}  # by (H, W): (max_photos, H, W, 3) uint8
        self.indices: dict[tuple[int, int], list[int]] = {}  # by (H, W): number of each photo among all photos

    def open(self, path: str | Path) -> tuple[int, int]:
        """Open a photo and append it; returns its height and width.  Raises ImageError as open_image, appends none."""
        return self._append(open_pixels(path, self._next_slot))

    def open_view(self, path: str | Path, offset: float) -> tuple[int, int]:
        """Open a panorama and append the view in one direction, see `cut_view`; otherwise like `open`."""
        try:
            return self._append(cut_view(open_pixels(path), offset))
        except ValueError as error:
            raise ImageError(f"{path} {error}") from error

    def add(self, photo: "torch.Tensor") -> None:
        """Append a copy of a photo (3, H, W) uint8."""
        self._append(photo.permute(1, 2, 0).numpy())

    def _next_slot(self, height: int, width: int) -> np.ndarray:
        """Memory for the next photo of this size, (H, W, 3) uint8."""
        size = height, width
        if size not in self.buffers:
            shape = self.max_photos, height, width, 3
            self.buffers[size], self.indices[size] = self.pool.take(math.prod(shape)).reshape(shape), []
        return self.buffers[size][len(self.indices[size])]

    def _append(self, pixels: np.ndarray) -> tuple[int, int]:
        height, width, _ = pixels.shape
        slot = self._next_slot(height, width)
        if pixels.base is not slot.base:  # otherwise it was decoded into this slot
            slot[:] = pixels
        self.indices[height, width].append(self.num_photos)
        self.num_photos += 1
        return height, width

    def stacks(self) -> "list[tuple[list[int], torch.Tensor]]":
        """(indices among all photos, (n, 3, H, W) uint8) of each size, in the order in which the sizes appeared."""
        import torch

        result = []
        for size, indices in self.indices.items():
            if indices:
                photos = self.buffers[size][: len(indices)]
                if len(indices) < self.max_photos:
                    photos = photos.copy()  # do not keep or send the unused part of the buffer
                result.append((indices, torch.from_numpy(photos).permute(0, 3, 1, 2)))
        return result
