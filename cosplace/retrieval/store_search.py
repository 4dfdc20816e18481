"""Exact search of a store that is larger than memory, by one process or by several ranks.

Each rank reads its part of the rows in blocks and keeps the k nearest; the first rank merges those of all.  The result
is that of one process with all rows in memory, also where distances are equal: then the lower row comes first.  Codes
are searched as codes: their distances are those that `compression` computes without a shortlist.

Legend: Q queries, R rows of the store, D dimension, W values of a row, K neighbors, n rows of a block.
Side effects: reads the store.
"""

import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cosplace.errors import ConfigError, DatasetError
from cosplace.memory import resident_bytes
from cosplace.progress import Progress, no_progress
from cosplace.ranks import ALONE, Ranks
from cosplace.retrieval.compression import QUERY_ROWS as CODE_QUERY_ROWS
from cosplace.retrieval.descriptor_store import DescriptorStore
from cosplace.retrieval.exact_distances import EXACT_BYTES
from cosplace.retrieval.rank_group import RankGroup
from cosplace.retrieval.search import BLOCK_ROWS, EXTRA_CANDIDATES, QUERY_ROWS, nearest_in_float64
from cosplace.retrieval.stored_codes import codes_of, is_code

BLOCK_BYTES = 1 << 29  # of rows that are in memory without a limit
SMALLEST_BLOCK_BYTES = 1 << 24
TASK = "searching"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The nearest rows of each query."""

    rows: np.ndarray  # (Q, K) int64, best first
    squared_distances: np.ndarray  # (Q, K) float64


def search_store(
    queries: np.ndarray,
    store: DescriptorStore,
    k: int,
    *,
    searchable: np.ndarray,
    group: RankGroup | None = None,
    memory_bytes: int | None = None,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Nearest | None:
    """Find the k nearest rows of each query; None in ranks other than the first.

    queries: (Q, D) float32.  searchable: (R,) bool, rows that may be found.  memory_bytes: of this process, in total.
    device: where descriptors are compared; codes are compared on the CPU.
    Raises DatasetError for fewer than k searchable rows or another dimension; ConfigError if memory_bytes is too small.
    """
    group = group or RankGroup(ALONE)
    if k > (num_searchable := int(np.count_nonzero(searchable))):
        raise DatasetError(f"Cannot find {k} neighbors among {num_searchable} rows. Search with a smaller k.")
    if queries.shape[1] != store.meta.dimension:
        raise DatasetError(f"The queries have {queries.shape[1]} dimensions but the store has {store.meta.dimension}.")
    block_rows = rows_per_block(store, len(queries), k, memory_bytes)
    part = _part_of(len(store), group.ranks)
    best = _search_part(queries, store, part, k, searchable, block_rows, device, progress)
    parts = group.gather(best.rows), group.gather(best.squared_distances)
    if not group.ranks.is_first:
        return None
    return _merge([Nearest(rows=rows, squared_distances=squared) for rows, squared in zip(*parts, strict=True)], k)


def _part_of(num_rows: int, ranks: Ranks) -> range:
    first, last = (num_rows * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1))
    return range(first, last)


def _search_part(  # noqa: PLR0917 - called once
    queries: np.ndarray,
    store: DescriptorStore,
    part: range,
    k: int,
    searchable: np.ndarray,
    block_rows: int,
    device: str,
    progress: Progress,
) -> Nearest:
    """The k nearest of some rows, padded with row -1 at an infinite distance."""
    best = Nearest(rows=np.full((len(queries), k), -1, np.int64), squared_distances=np.full((len(queries), k), np.inf))
    for rows, block in _blocks(store, part, block_rows):
        inside = np.ascontiguousarray(searchable[rows.start : rows.stop])
        count = min(k, int(np.count_nonzero(inside)))
        if count:
            found, squared = _nearest_in_block(queries, block, inside, count, store, device)
            best = _merge([best, Nearest(rows=found + rows.start, squared_distances=squared)], k)
        progress(TASK, rows.stop - part.start, len(part))
    return best


def _blocks(store: DescriptorStore, part: range, block_rows: int) -> Generator[tuple[range, np.ndarray]]:
    """Blocks of rows and their content (n, W); the next one is read while one is searched."""
    blocks = [range(first, min(first + block_rows, part.stop)) for first in range(part.start, part.stop, block_rows)]
    shape = (min(block_rows, len(part)), store.shape[1])
    memory = [np.empty(shape, store.meta.array_type) for _ in range(min(2, len(blocks)))]
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(store.read, blocks[0], memory[0]) if blocks else None
        for number, rows in enumerate(blocks):
            assert coming is not None
            block = coming.result()
            if number + 1 < len(blocks):
                coming = pool.submit(store.read, blocks[number + 1], memory[(number + 1) % 2])
            yield rows, block


def _nearest_in_block(  # noqa: PLR0917 - called once
    queries: np.ndarray, block: np.ndarray, searchable: np.ndarray, count: int, store: DescriptorStore, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (Q, count) in a block, best first, and squared distances (Q, count) float64."""
    if not is_code(store.meta.extraction.dtype):
        mask = None if searchable.all() else searchable
        return nearest_in_float64(queries, block, count, device=device, searchable=mask)
    rows, squared = codes_of(block, searchable, store.meta).find(queries, count)
    order = np.argsort(squared, axis=1, kind="stable")
    return np.take_along_axis(rows, order, 1), np.take_along_axis(squared, order, 1)


def _merge(parts: list[Nearest], k: int) -> Nearest:
    """The k nearest of several parts, whose rows ascend from part to part: a stable sort keeps lower rows first."""
    rows = np.concatenate([part.rows for part in parts], axis=1)
    squared = np.concatenate([part.squared_distances for part in parts], axis=1)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return Nearest(rows=np.take_along_axis(rows, order, 1), squared_distances=np.take_along_axis(squared, order, 1))


# --- memory ----------------------------------------------------------------------------------------------------------


def rows_per_block(store: DescriptorStore, num_queries: int, k: int, memory_bytes: int | None) -> int:
    """Rows that are read at once.  Raises ConfigError if so little memory is allowed that there is no space for any."""
    row_bytes = store.meta.row_bytes
    if memory_bytes is None:
        return max(BLOCK_BYTES // row_bytes, 1)
    other = resident_bytes() + working_bytes(store, num_queries, k)
    left = memory_bytes - other
    if left < 2 * SMALLEST_BLOCK_BYTES:
        least = (other + 2 * SMALLEST_BLOCK_BYTES) / 2**30
        raise ConfigError(
            f"--memory {memory_bytes / 2**30:g} is too small: this search needs {least:.2f} GB or more. Use for "
            f"example --memory {np.ceil(least * 2) / 2:g}."
        )
    extra = _bytes_per_row_of_codes(store)
    return max(left // (2 * row_bytes + extra), 1)  # two blocks: one is searched, one is read


def working_bytes(store: DescriptorStore, num_queries: int, k: int) -> int:
    """Bytes that the search of a block needs in addition to the block, about; measured in a test."""
    dimension, queries = store.meta.dimension, 8 * num_queries * (store.meta.dimension + 6 * (k + EXTRA_CANDIDATES))
    if is_code(store.meta.extraction.dtype):
        products = 4 * 8 * min(num_queries, CODE_QUERY_ROWS) * BLOCK_ROWS
        return queries + products + 8 * BLOCK_ROWS * dimension
    scores = 3 * 4 * min(num_queries, QUERY_ROWS) * BLOCK_ROWS
    converted = 4 * BLOCK_ROWS * dimension * (store.meta.extraction.dtype == "float16")
    in_float64 = 8 * (BLOCK_ROWS // 4) * dimension
    return queries + scores + 3 * EXACT_BYTES + converted + in_float64


def _bytes_per_row_of_codes(store: DescriptorStore) -> int:
    """Bytes per row that the search of binary codes needs: a distance for each thread."""
    return 4 * (os.cpu_count() or 1) if store.meta.extraction.dtype == "binary" else 0
