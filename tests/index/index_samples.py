"""Small indexes for tests."""

from pathlib import Path

import numpy as np

from cosplace.config.index import IndexSettings
from cosplace.index.file_checksums import newest_versions, record_checksums
from cosplace.index.photo_index import PhotoIndex, create_index
from cosplace.index.records import ModelSpec, NewPhoto

D = 16
SPEC = ModelSpec(model="made", checksum="c" * 64, dimension=D)


def unit_rows(count: int, seed: int) -> np.ndarray:
    """(count, D) float32 of unit length."""
    rows = np.random.default_rng(seed).standard_normal((count, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def some_photos(numbers: range, folder: str = "/photos") -> list[NewPhoto]:
    return [
        NewPhoto(
            path=f"{folder}/{number}.jpg", key=f"key-{number}", latitude=10 + 0.001 * number, longitude=20.0,
            heading=float(number % 360), time=1e9 + number, accuracy_m=float(number), source="made",
            thumbnail=b"jpeg-%d" % number * 20,
        )
        for number in numbers
    ]  # fmt: skip


def write_index(address: Path, *, count: int = 300, root: str = "", **settings) -> PhotoIndex:
    """An index of two commits, of which some photos are removed; open for writing."""
    index = create_index(address, SPEC, IndexSettings(**settings))
    if root:
        index.add_root(root)
    rows = unit_rows(count, 1)
    for numbers in (range(count // 2), range(count // 2, count)):
        index.add(some_photos(numbers, root or "/photos"), rows[numbers.start : numbers.stop])
    index.remove(range(10, 20))
    index.update_search()
    index.write_record("note", {"text": "hello"})
    return index


def record_again(address: Path) -> None:
    """Record checksums of the files of an index as they are now."""
    record_checksums(str(address), newest_versions(str(address)), None)
