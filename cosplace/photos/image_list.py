"""ImageList: the photos below a folder, sorted by relative path."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BLOCK_BYTES = 1 << 16  # bytes of a list read at once: they stay in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageList:
    """The photos below a folder, sorted by relative path."""

    folder: Path
    names: np.ndarray  # (bytes,) uint8: the relative paths, each ended by a newline
    starts: np.ndarray  # (I + 1,) int64: where each path starts in `names`
    list_file: Path | None = None  # set if `names` is this file, mapped into memory

    def __len__(self) -> int:
        return len(self.starts) - 1

    def text(self, first: int, last: int) -> np.ndarray:
        """Bytes first … last - 1 of `names`; read from the file, as pages of a mapped file would stay in memory."""
        if self.list_file is None:
            return self.names[first:last]
        return np.fromfile(self.list_file, np.uint8, count=last - first, offset=first)

    def name(self, index: int) -> str:
        """Path of one photo relative to the folder."""
        return os.fsdecode(self.text(int(self.starts[index]), int(self.starts[index + 1]) - 1).tobytes())

    def path(self, index: int) -> Path:
        """Path of one photo."""
        return self.folder / self.name(index)

    def subset(self, rows: Sequence[int]) -> "ImageList":
        """The photos in some rows, which must be ascending."""
        parts = [self.text(int(self.starts[row]), int(self.starts[row + 1])) for row in rows]
        starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        names = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        return ImageList(folder=self.folder, names=names, starts=starts)


def evenly_spaced(images: ImageList, count: int) -> list[int]:
    """Rows of up to `count` photos, evenly spaced over a list, ascending."""
    count = min(count, len(images))
    return np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64)).tolist()


def image_list(folder: Path, names: Sequence[str]) -> ImageList:
    """An ImageList of relative paths in any order."""
    return sorted_list(folder, [os.fsencode(name) for name in names])


def sorted_list(folder: Path, lines: list[bytes]) -> ImageList:
    """An ImageList of relative paths in any order, as bytes; sorts `lines` in place."""
    lines.sort()
    return list_from_lines(folder, b"".join(line + b"\n" for line in lines))


def list_from_lines(folder: Path, text: bytes | bytearray) -> ImageList:
    """An ImageList of sorted relative paths, each ended by a newline."""
    names = np.frombuffer(bytes(text), np.uint8)
    blocks = range(0, len(names), BLOCK_BYTES)
    ends = [np.flatnonzero(names[first : first + BLOCK_BYTES] == ord("\n")) + (first + 1) for first in blocks]
    return ImageList(folder=folder, names=names, starts=np.concatenate([np.zeros(1, np.int64), *ends]))
