"""Search by compressed descriptors: a short list of candidates by small codes, compared again by their descriptors.

binary  one bit per dimension, its sign after subtracting the mean of the database and rotating.  The distance of two
        codes is the number of different bits (Hamming).  Neither step changes L2 distances.  The mean is the vector
        that leaves the shortest ones, so that signs say the most; Gong and Lazebnik (Iterative Quantization, CVPR
        2011, section 2) assume it.  Without it, a dimension with only positive values would be a constant bit.  The
        rotation gives all dimensions about the same variance, as every bit counts the same; RaBitQ (Gao and Long,
        SIGMOD 2024) has one too.  After a PCA, most bits would be of dimensions that hardly matter.  It is a fast one:
        random signs, then a cosine transform (like the Hadamard transform of Ailon and Chazelle, 2009).
int8    one byte per dimension: round(127 x / s), with one scale s for all dimensions, the largest absolute value in
        the database; larger values of queries are cut.  With one scale, products of codes are integers, and their
        order is that of L2 distances.

The `shortlist` nearest codes are compared again by their descriptors, exactly as in search.py.  With 0 they are not:
distances are then those of the codes.  Legend: Q queries, R database rows, D dimension, K neighbors, n shortlist, W
words of 64 bits per binary code.  Codes are on the CPU.  Pure.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import fft

from cosplace.errors import ConfigError, DatasetError
from cosplace.retrieval.exact_distances import nearest_candidates
from cosplace.retrieval.shards import Descriptors

BINARY, INT8 = "binary", "int8"
METHODS = (BINARY, INT8)
SHORTLIST = 100
MAX_SHORTLIST = 10_000  # their descriptors are in memory at the same time
BLOCK_ROWS = 32_768
LARGEST = 127  # absolute value of a code of int8
EXACT_DIMENSIONS = 1024  # products of so many values of int8 have sums below 2**24, which float32 represents exactly
ROTATION_SEED = 0
QUERY_ROWS = 256  # of int8, whose distances to a block are in memory: 64 MB
MAX_DIMENSION = 30_000  # of int8: squared distances are below 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How descriptors are compressed, and how many candidates are compared again.  Raises ConfigError."""

    method: str  # one of METHODS
    shortlist: int = SHORTLIST  # 0: order by the codes alone

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"The compression must be one of {', '.join(METHODS)}, got '{self.method}'.")
        if not 0 <= self.shortlist <= MAX_SHORTLIST:
            raise ConfigError(f"The shortlist must have 0 to {MAX_SHORTLIST:,} candidates, got {self.shortlist}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryCodes:
    """One bit per dimension."""

    center: np.ndarray  # (D,) float32, the mean of the database
    codes: np.ndarray  # (R, W) uint64
    searchable: np.ndarray  # (R,) bool

    def encode(self, descriptors: np.ndarray) -> np.ndarray:
        """Codes (n, W) uint64 of descriptors (n, D)."""
        return binary_codes(centered_and_rotated(descriptors, self.center))

    def find(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest codes of each query (Q, D), ascending by row: rows and squared distances (Q, count).

        A squared distance is that of the codes as unit vectors of +-1 / sqrt(D): 4 / D for each different bit.
        """
        from cosplace.retrieval.compiled_codes import nearest_codes

        encoded = self.encode(queries)
        rows, distances = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.int64)

        def search(some: slice) -> None:
            memory = np.empty(len(self.codes), np.uint32), np.empty(64 * self.codes.shape[1] + 1, np.int64)
            nearest_codes(encoded[some], self.codes, self.searchable, *memory, rows[some], distances[some])

        num_threads = torch.get_num_threads()
        step = -(-len(queries) // num_threads)
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(search, [slice(first, first + step) for first in range(0, len(queries), step)]))
        return rows, distances * (4 / len(self.center))


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteCodes:
    """One byte per dimension."""

    scale: float  # the value of the code 127
    codes: np.ndarray  # (R, D) int8
    searchable: np.ndarray  # (R,) bool

    def encode(self, descriptors: np.ndarray) -> np.ndarray:
        """Codes (n, D) int8 of descriptors (n, D)."""
        return byte_codes(descriptors, self.scale)

    def find(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest codes of each query (Q, D), ascending by row: rows and squared distances (Q, count)."""
        parts = [
            _nearest_bytes(self.encode(queries[first : first + QUERY_ROWS]), self.codes, self.searchable, count)
            for first in range(0, len(queries), QUERY_ROWS)
        ]
        rows, squared = (np.concatenate(part) for part in zip(*parts, strict=True))
        return rows, squared * (self.scale / LARGEST) ** 2


Codes = BinaryCodes | ByteCodes


def bytes_per_code(method: str, dimension: int) -> int:
    """Bytes of a photo's code: for binary, whole words of 64 bits."""
    return 8 * -(-dimension // 64) if method == BINARY else dimension


def compress(database: Descriptors, method: str, *, searchable: np.ndarray | None = None) -> Codes:
    """Compress the descriptors (R, D) of a database, float32 or float16, block by block.

    searchable: (R,) bool, rows that may be found; None means all.  The other rows are not read.
    Raises DatasetError for values that are not finite, and without searchable rows; ConfigError for an unknown method.
    """
    Compression(method=method)  # checks the method
    searchable = np.ones(len(database), bool) if searchable is None else np.ascontiguousarray(searchable, bool)
    if database.ndim != 2 or not searchable.any() or searchable.shape != (len(database),):
        raise DatasetError(f"There are no descriptors to compress: got the shape {database.shape}.")
    dimension = database.shape[1]
    if method == BINARY:
        sums = sum((block.sum(axis=0, dtype=np.float64) for _, block in _blocks(database, searchable)), np.zeros(1))
        center = (sums / searchable.sum()).astype(np.float32)
        words = np.zeros((len(database), -(-dimension // 64)), np.uint64)
        _fill(words, database, searchable, lambda block: binary_codes(centered_and_rotated(block, center)))
        return BinaryCodes(center=center, codes=words, searchable=searchable)
    if dimension > MAX_DIMENSION:
        raise DatasetError(f"int8 is for at most {MAX_DIMENSION:,} dimensions, got {dimension:,}. Use binary.")
    scale = max(float(np.abs(block).max()) for _, block in _blocks(database, searchable))
    values = np.zeros((len(database), dimension), np.int8)
    _fill(values, database, searchable, lambda block: byte_codes(block, scale))
    return ByteCodes(scale=scale, codes=values, searchable=searchable)


def search_compressed(
    queries: Descriptors, database: Descriptors, codes: Codes, k: int, shortlist: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest database rows (Q, K) int64 of each query, best first, and squared distances (Q, K) float32.

    shortlist: number of candidates that are compared again by their descriptors, at least k; 0: none, so distances are
    those of the codes.  On ties, the lower row comes first.  With as many candidates as rows, the result is that of
    `nearest`.  Raises ConfigError for a shortlist smaller than k; DatasetError for fewer than k searchable rows, and
    queries that are not finite or have another dimension.
    """
    num_searchable = int(codes.searchable.sum())
    if k > num_searchable:
        raise DatasetError(f"Cannot find {k} neighbors among {num_searchable} rows. Search with a smaller k.")
    if shortlist and shortlist < k:
        raise ConfigError(f"A shortlist of {shortlist} is smaller than the {k} neighbors to find. Use {k} or more.")
    if queries.shape[1] != database.shape[1]:
        raise DatasetError(f"The queries have {queries.shape[1]} dimensions but the database has {database.shape[1]}.")
    queries = np.asarray(queries[:], np.float32)
    if not np.isfinite(queries).all():
        raise DatasetError("Descriptors of the queries have values that are not finite. Extract them again.")
    rows, squared = codes.find(queries, min(shortlist, num_searchable) if shortlist else k)
    if shortlist:
        predictions, distances = nearest_candidates(queries, database, rows, k, None)
        return predictions, distances.astype(np.float32)
    order = np.argsort(squared, axis=1, kind="stable")
    return np.take_along_axis(rows, order, 1), np.take_along_axis(squared, order, 1).astype(np.float32)


# --- codes -----------------------------------------------------------------------------------------------------------


def centered_and_rotated(descriptors: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Descriptors (n, D) relative to the center (D,), rotated, float32: DCT-II of the values times fixed signs."""
    signs = np.random.default_rng(ROTATION_SEED).choice(np.array([-1, 1], np.float32), len(center))
    return fft.dct((descriptors - center) * signs, axis=1, norm="ortho")


def binary_codes(values: np.ndarray) -> np.ndarray:
    """Bits (n, W) uint64 of values (n, D): 1 where they are above 0; the last, unused bits are 0."""
    bits = np.packbits(values > 0, axis=1, bitorder="little")
    padded = np.zeros((len(bits), 8 * -(-values.shape[1] // 64)), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return padded.view(np.uint64)


def byte_codes(descriptors: np.ndarray, scale: float) -> np.ndarray:
    """Codes (n, D) int8 from -127 to 127 of descriptors (n, D): `scale` becomes 127, larger values too."""
    if scale == 0:  # a database of zeros, in which all distances are equal
        return np.zeros(descriptors.shape, np.int8)
    values = descriptors.astype(np.float64) / scale * LARGEST
    return np.clip(np.rint(values), -LARGEST, LARGEST).astype(np.int8)


def _blocks(database: Descriptors, searchable: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Searchable rows, and their descriptors.  Raises DatasetError for values that are not finite."""
    for first in range(0, len(database), BLOCK_ROWS):
        inside = searchable[first : first + BLOCK_ROWS]
        if not inside.any():
            continue
        block = database[first : first + BLOCK_ROWS]
        block, rows = (block if inside.all() else block[inside]), first + np.flatnonzero(inside)
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            raise DatasetError(
                f"Descriptor {rows[bad][0]} of the database has values that are not finite. Extract the descriptors "
                f"again."
            )
        yield rows, block


def _fill(
    codes: np.ndarray, database: Descriptors, searchable: np.ndarray, encode: Callable[[np.ndarray], np.ndarray]
) -> None:
    for rows, block in _blocks(database, searchable):
        codes[rows] = encode(block)


def _nearest_bytes(
    queries: np.ndarray, database: np.ndarray, searchable: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest codes of each query (q, D) int8, ascending by row, and squared distances (q, count) int64.

    |a - b|^2 = |a|^2 + |b|^2 - 2 a.b, all of them integers.  Of equal distances, the lower rows are found.
    """
    num_rows = len(database)
    query_norms = np.einsum("qd,qd->q", queries, queries, dtype=np.int64)
    # distance * R + row: sorting such keys sorts equal distances by row.
    best = np.full((len(queries), count), np.iinfo(np.int64).max)
    for first in range(0, num_rows, BLOCK_ROWS):
        inside = first + np.flatnonzero(searchable[first : first + BLOCK_ROWS])
        block = database[inside]
        squared = integer_products(queries, block)
        squared *= -2
        squared += query_norms[:, None] + np.einsum("rd,rd->r", block, block, dtype=np.int64)
        limits = best.max(axis=1) // num_rows
        for number, (line, limit) in enumerate(zip(squared, limits, strict=True)):
            closer = np.flatnonzero(line < limit)  # a later row with an equal distance is not found
            if len(closer):
                keys = np.concatenate([best[number], line[closer] * num_rows + inside[closer]])
                best[number] = np.partition(keys, count - 1)[:count]
    squared, rows = np.divmod(best, num_rows)
    order = np.argsort(rows, axis=1)
    return np.take_along_axis(rows, order, 1), np.take_along_axis(squared, order, 1)


def integer_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products (n, m) int64 of int8 rows (n, D) and (m, D), exact.

    Matrix products of float32 are much faster than those of integers.  They are exact as long as sums stay below
    2**24, so dimensions are added up in parts.
    """
    products = np.zeros((len(a), len(b)), np.int64)
    for first in range(0, a.shape[1], EXACT_DIMENSIONS):
        part = slice(first, first + EXACT_DIMENSIONS)
        # numpy's products are always those of float32; torch's may be set to lower precision.
        products += (a[:, part].astype(np.float32) @ b[:, part].astype(np.float32).T).astype(np.int64)
    return products
