"""Have the files of photos changed since their descriptors were computed?

Sizes and modification times of all files are compared, which needs no reading.  A copy may have other times, and
workers on several machines may have a copy each: for them, the contents of some photos decide.  Side effects: reads
files.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from cosplace.errors import ImageError
from cosplace.photos.image_list import MISSING, ImageList
from cosplace.photos.opening import read_file

NUM_CONTENTS = 8  # photos of a shard whose contents are compared, evenly spaced
NUM_READERS = 16  # a network file system answers several requests at once
ROWS_AT_ONCE = 1024


class PhotoFiles(NamedTuple):
    """Checksums of the files of some photos."""

    sizes: str  # of all
    times: str  # modification times of all
    contents: str  # of up to NUM_CONTENTS of them


def photo_files(images: ImageList, rows: range) -> PhotoFiles:
    """Checksums of the files in some rows of a list."""
    found = np.full((len(rows), 2), MISSING, np.int64)  # of a file that is gone: it is reported when it is opened

    def read(first: int) -> None:
        for number in range(first, min(first + ROWS_AT_ONCE, len(rows))):
            try:
                status = os.stat(images.folder / images.name(rows[number]))  # noqa: PTH116 - faster than pathlib
            except OSError:
                continue
            found[number] = status.st_size, status.st_mtime_ns

    with ThreadPoolExecutor(NUM_READERS) as pool:
        for _ in pool.map(read, range(0, len(rows), ROWS_AT_ONCE)):
            pass
    contents = hashlib.sha256()
    for number in np.unique(np.linspace(0, len(rows) - 1, min(NUM_CONTENTS, len(rows))).astype(np.int64)).tolist():
        contents.update(_checksum(images, rows[number]))
    sizes, times = (hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()[:32] for column in found.T)
    return PhotoFiles(sizes, times, contents.hexdigest()[:32])


def have_changed(before: Mapping[str, str], now: PhotoFiles, *, may_be_copies: bool = False) -> bool:
    """Whether photos may have changed.  before: of a shard, see `ShardFile`; older ones have none and count as equal.

    may_be_copies: files of the same sizes at other times are equal if the contents of some of them are.
    """
    names = ("sizes", "contents") if may_be_copies else ("sizes", "times")
    return bool(before) and any(before.get(name) != getattr(now, name) for name in names)


def _checksum(images: ImageList, row: int) -> bytes:
    try:
        return hashlib.sha256(read_file(images.path(row))).digest()
    except ImageError:  # reported when it is opened
        return b"-"
