"""Checksums of the photos of an index: changed bytes are detected when they are read.

Each photo has four 32-bit checksums, stored with it in one commit:

    numbers_check      id, position, heading, time, position error, root    checked whenever the photos are loaded
    path_check         path                                                 checked when a path is used
    descriptor_check   descriptor                                           checked whenever descriptors are read
    rest_check         source, key, size and time of the file, thumbnail    checked when a thumbnail is read

They detect accidental changes, not tampering: any change within 8 bytes of numbers or descriptors, and any other with
a probability of 1 - 2^-32.  Pure functions.  Legend: n photos, W words of 8 bytes, D dimension.
"""

import zlib
from collections.abc import Sequence

import numpy as np

PARTS = {  # what each checksum covers, for error messages
    "numbers_check": "position, heading or time",
    "path_check": "path",
    "descriptor_check": "descriptor",
    "rest_check": "thumbnail, source or key",
}
CHECKS = tuple(PARTS)
NUMBER_COLUMNS = {  # of numbers_check, with the types they are stored in
    "latitude": np.float64,
    "longitude": np.float64,
    "heading": np.float32,
    "time": np.float64,
    "accuracy_m": np.float32,
    "root": np.int32,
}
REST_COLUMNS = ("source", "key", "num_bytes", "modified_ns", "thumbnail")


def numbers_checks(ids: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Checksums (n,) uint32 of ids (n,) and the NUMBER_COLUMNS (n,) each."""
    words = np.empty((len(ids), len(NUMBER_COLUMNS)), np.uint64)
    for place, (name, dtype) in enumerate(NUMBER_COLUMNS.items()):
        values = np.ascontiguousarray(columns[name], dtype)
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), dtype(np.nan), values)  # nan has many bit patterns
        words[:, place] = values.view(f"u{values.itemsize}")
    return _checks_of_words(ids, words)


def descriptor_checks(ids: np.ndarray, descriptors: np.ndarray) -> np.ndarray:
    """Checksums (n,) uint32 of descriptors (n, D) as stored."""
    raw = np.ascontiguousarray(descriptors).view(np.uint8)
    if raw.shape[1] % 8:
        raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 8)))
    return _checks_of_words(ids, raw.view(np.uint64))


def path_check(photo_id: int, path: str) -> int:
    """Checksum of one path as stored."""
    return zlib.crc32(path.encode(), photo_id & 0xFFFFFFFF)


def path_checks(ids: np.ndarray, paths: Sequence[str]) -> np.ndarray:
    """Checksums (n,) uint32 of paths as stored."""
    return np.array([path_check(*pair) for pair in zip(ids.tolist(), paths, strict=True)], np.uint32)


def rest_checks(ids: np.ndarray, columns: dict[str, Sequence]) -> np.ndarray:
    """Checksums (n,) uint32 of the REST_COLUMNS."""
    rows = zip(ids.tolist(), *(columns[name] for name in REST_COLUMNS), strict=True)
    return np.array([_rest_check(row) for row in rows], np.uint32)


def _rest_check(row: tuple) -> int:
    *values, thumbnail = row
    return zlib.crc32(thumbnail or b"", zlib.crc32("\0".join(map(str, values)).encode()))


def _checks_of_words(ids: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Multilinear hash (Carter and Wegman, 1979): the upper half of a sum of products modulo 2^64.

    words: (n, W) uint64.  The factors are odd, so that a change of one word always changes the sum.
    """
    factors = _factors(words.shape[1] + 2)
    # A matrix product runs at the speed of memory; a loop over rows of 2 KB takes six times as long.
    sums = words @ factors[1:-1] + ids.astype(np.uint64) * factors[0] + factors[-1]
    return (sums >> np.uint64(32)).astype(np.uint32)


def _factors(count: int) -> np.ndarray:
    """Odd factors (count,) uint64: the splitmix64 sequence (Steele et al., OOPSLA 2014), the same everywhere."""
    value = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (value ^ (value >> np.uint64(31))) | np.uint64(1)
