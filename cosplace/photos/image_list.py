"""ImageList: the photos below a folder, sorted by relative path."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BLOCK_BYTES = 1 << 16  # bytes of a list looked at once: they stay in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageList:
    """The photos below a folder, sorted by relative path."""

    folder: Path
    names: np.ndarray  # (bytes,) uint8: the relative paths, each ended by a newline
    starts: np.ndarray  # (I + 1,) int64: where each path starts in `names`
    list_file: Path | None = None  # set when `names` is that very file, mapped into memory

    def __len__(self) -> int:
        return len(self.starts) - 1

    def text(self, first: int, last: int) -> np.ndarray:
        """Bytes first … last - 1 of `names`, read and not mapped: a pass over all names leaves no pages behind."""
        if self.list_file is None:
            return self.names[first:last]
        return np.fromfile(self.list_file, np.uint8, count=last - first, offset=first)

    def name(self, index: int) -> str:
        """Path of one photo relative to the folder."""
        return os.fsdecode(self.text(int(self.starts[index]), int(self.starts[index + 1]) - 1).tobytes())

    def path(self, index: int) -> Path:
        """Path of one photo."""
        return self.folder / self.name(index)


def image_list(folder: Path, names: Sequence[str]) -> ImageList:
    """A list of photos from their relative paths, which it sorts."""
    return sorted_list(folder, [os.fsencode(name) for name in names])


def sorted_list(folder: Path, lines: list[bytes]) -> ImageList:
    """Sort relative paths into an ImageList."""
    lines.sort()
    return list_from_lines(folder, b"".join(line + b"\n" for line in lines))


def list_from_lines(folder: Path, text: bytes | bytearray) -> ImageList:
    """ImageList of sorted relative paths, each ended by a newline."""
    names = np.frombuffer(bytes(text), np.uint8)
    blocks = range(0, len(names), BLOCK_BYTES)
    ends = [np.flatnonzero(names[at : at + BLOCK_BYTES] == ord("\n")) + (at + 1) for at in blocks]
    return ImageList(folder=folder, names=names, starts=np.concatenate([np.zeros(1, np.int64), *ends]))
