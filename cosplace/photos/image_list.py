"""ImageList: the photos below a folder, sorted by relative path."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from cosplace.errors import ImageError, one_line

BLOCK_BYTES = 1 << 16  # bytes of a list read at once: they stay in the processor's cache
MISSING = -1  # bytes of a file that is not there
NUM_EXAMPLES = 3  # names of skipped files that are kept for each kind
FOLLOW_OUTSIDE = "Use --follow_outside to include such files."
OTHER_FILES = "other files"  # neither photos nor videos: counted, not reported


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedFiles:
    """Files and folders that a scan left out, by kind, such as "HEIC images" or "videos"."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)  # the first names of each kind, relative, printable

    def add(self, kind: str, name: str) -> None:
        """Count one more file."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        names = self.examples.setdefault(kind, [])
        if len(names) < NUM_EXAMPLES:
            names.append(one_line(name))

    def summary(self) -> str:
        """What was skipped, in one sentence; "" if there is nothing to report."""
        parts = []
        for kind, count in sorted(self.counts.items()):
            if kind != OTHER_FILES:
                names = ", ".join(self.examples[kind]) + (", ..." if count > NUM_EXAMPLES else "")
                parts.append(f"{kind}: {count:,} ({names})")
        return f"Skipped: {'; '.join(parts)}." if parts else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageList:
    """The photos below a folder, sorted by relative path."""

    folder: Path
    names: np.ndarray  # (bytes,) uint8: the relative paths, each ended by a newline
    starts: np.ndarray  # (I + 1,) int64: where each path starts in `names`
    list_file: Path | None = None  # set if `names` is this file, mapped into memory
    skipped: SkippedFiles = field(default_factory=SkippedFiles)  # what the scan left out
    inside: tuple[str, ...] = ()  # real folders that may hold the photos; () where a scan has checked that already
    # Fields of each photo as an '@' text, in the same order, if a table or EXIF gives them; None: the names have them.
    labels: "ImageList | None" = None
    # East and north in `labels` are those of a local map with this center (latitude, longitude), not of UTM zones.
    map_center: tuple[float, float] | None = None

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

    def label(self, index: int) -> str:
        """The '@' text with the fields of one photo: its label, or without labels its name."""
        return self.name(index) if self.labels is None else self.labels.name(index)

    def path(self, index: int) -> Path:
        """Path of one photo.

        Raises ImageError for a photo of a list file that is outside the folder, for example through a link; a scan does
        not look for such photos among millions of listed ones.
        """
        return photo_path(self.folder, self.name(index), self.inside)

    def subset(self, rows: Sequence[int]) -> "ImageList":
        """The photos in some rows, which must be ascending."""
        parts = [self.text(int(self.starts[row]), int(self.starts[row + 1])) for row in rows]
        starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        names = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        return ImageList(
            folder=self.folder,
            names=names,
            starts=starts,
            inside=self.inside,
            labels=None if self.labels is None else self.labels.subset(rows),
            map_center=self.map_center,
        )


def file_sizes_digest(*lists: ImageList) -> str:
    """Checksum of the sizes of all files of some lists, in bytes.

    It is another one for nearly all photos whose contents have changed, and the same for a copy of the photos.
    """
    digest = hashlib.sha256()
    for images in lists:
        sizes = np.full(len(images), -1, np.int64)  # of a photo that is gone: it is reported when it is opened
        for row in range(len(images)):
            with suppress(OSError):
                sizes[row] = os.stat(images.folder / images.name(row)).st_size  # noqa: PTH116 - much faster than pathlib
        digest.update(sizes.tobytes())
    return digest.hexdigest()


def photo_path(folder: Path, name: str, inside: Sequence[str]) -> Path:
    """Path of a photo of a list.  inside: real folders that may hold it; () for any.

    Raises ImageError for a photo outside these folders.
    """
    path = folder / name
    if inside and not is_inside(path, inside):
        raise ImageError(f"{path} is outside {folder}.", FOLLOW_OUTSIDE)
    return path


def is_inside(path: str | Path, folders: Sequence[str]) -> bool:
    """Whether a file, with all links resolved, is below one of some real folders (absolute, without links)."""
    if os.path.islink(path):  # noqa: PTH114 - much faster than pathlib
        return is_below(os.path.realpath(path), folders)
    return is_below(_real_folder(os.path.dirname(path), os.getcwd()), folders)  # noqa: PTH109, PTH120


def is_below(real: str, folders: Sequence[str]) -> bool:
    """Whether a real path is one of some real folders, or below one of them."""
    return any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in folders)


@lru_cache(maxsize=1024)
def _real_folder(folder: str, working_folder: str) -> str:  # a relative folder depends on both
    return os.path.realpath(folder)


def rows_also_in(images: ImageList, others: ImageList) -> list[int]:
    """Rows of the photos that are also in another list: with the same file name and size."""
    row_of = {others.name(row).rpartition("/")[2]: row for row in range(len(others))}
    shared = []
    for row in range(len(images)):
        other = row_of.get(images.name(row).rpartition("/")[2])
        if other is not None and _num_bytes(images, row) == _num_bytes(others, other) != MISSING:
            shared.append(row)
    return shared


def _num_bytes(images: ImageList, row: int) -> int:
    try:
        return (images.folder / images.name(row)).stat().st_size
    except OSError:  # reported when the photo is opened
        return MISSING


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
