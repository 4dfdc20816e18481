"""The approximate search index of many photos: Lance's IVF_RQ, built and tuned by its measured recall.

IVF (Sivic and Zisserman, "Video Google", ICCV 2003) assigns each descriptor to the nearest of L partitions; a search
looks into the partitions nearest to the query.  RaBitQ (Gao and Long, SIGMOD 2024) stores a few bits per dimension; the
best candidates are compared again by their full descriptors.  The index is part of the Lance table, so it works on
object storage too.  docs/decisions/0010-approximate-search.md compares the engines.

Legend: I photos, Q queries, K neighbors, D dimension, L partitions.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cosplace.index.file_checksums import damaged
from cosplace.index.search_index import build_vector_index, find_nearest, has_vector_index
from cosplace.index.store import Store
from cosplace.progress import Progress, no_progress

RECORD = "search"  # the key of the record that describes the index
TASK = "building the search index"
ROWS_PER_PARTITION = 4096
MIN_PARTITIONS, MAX_PARTITIONS = 16, 16_384
TARGET_RECALLS = (0.99, 0.95)  # of the nearest neighbor, and of the 20 nearest
PROBED_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # shares of the partitions to try, until the recall is reached
MIN_MEASURED, MAX_MEASURED = 150, 300  # photos whose neighbors are searched to measure the recall, 1 % of all
MEASURED_K = 20


BuildSearch = Callable[[Store, int], None]
"""Builds the search index of a store with a number of partitions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproximateIndex:
    """An approximate index: what it covers, how it is searched, and its measured recall."""

    count: int  # photos when it was built
    last_id: int  # photos with larger ids were added later
    num_partitions: int
    num_probed: int  # partitions that a search looks into
    recall_at_1: float  # share of photos whose exact nearest neighbor is found
    recall_at_20: float  # share of their 20 exact nearest neighbors that are found
    num_measured: int


def build_approximate_index(
    store: Store, progress: Progress = no_progress, build: BuildSearch = build_vector_index
) -> ApproximateIndex:
    """Build the index over all photos, choose how many partitions a search looks into, and record both.

    The recall is measured on photos of the index: the neighbors of a photo other than itself.
    """
    ids = store.columns().ids
    num_partitions = int(np.clip(len(ids) // ROWS_PER_PARTITION, MIN_PARTITIONS, MAX_PARTITIONS))
    progress(TASK, 0, len(PROBED_SHARES) + 2)
    build(store, num_partitions)
    progress(TASK, 1, len(PROBED_SHARES) + 2)

    num_measured = int(np.clip(len(ids) // 100, MIN_MEASURED, MAX_MEASURED))
    measured = ids[np.unique(np.linspace(0, len(ids) - 1, num_measured).astype(np.int64))]
    queries = store.descriptors_of(measured).astype(np.float32)
    exact = _without_itself(search_exactly(store, queries, MEASURED_K + 1)[0], measured)
    progress(TASK, 2, len(PROBED_SHARES) + 2)
    num_probed, recalls = num_partitions, (1.0, 1.0)
    for step, share in enumerate(PROBED_SHARES, 3):
        num_probed = max(1, round(share * num_partitions))
        found = [find_nearest(store, query, MEASURED_K + 1, num_probed=num_probed)[0] for query in queries]
        recalls = _recalls([_without_itself([row], [own])[0] for row, own in zip(found, measured, strict=True)], exact)
        progress(TASK, step, len(PROBED_SHARES) + 2)
        if all(recall >= target for recall, target in zip(recalls, TARGET_RECALLS, strict=True)):
            break
    progress(TASK, len(PROBED_SHARES) + 2, len(PROBED_SHARES) + 2)
    index = ApproximateIndex(
        count=len(ids),
        last_id=int(ids.max(initial=-1)),
        num_partitions=num_partitions,
        num_probed=num_probed,
        recall_at_1=recalls[0],
        recall_at_20=recalls[1],
        num_measured=len(measured),
    )
    store.write_record(RECORD, asdict(index))
    return index


def read_approximate_index(store: Store) -> ApproximateIndex | None:
    """The approximate index of a store; None if there is none."""
    record: dict[str, Any] | None = store.read_record(RECORD)
    try:
        return ApproximateIndex(**record) if record is not None and has_vector_index(store) else None
    except TypeError as error:
        raise damaged(store.address, f"the record '{RECORD}' cannot be read") from error


def search_exactly(
    store: Store, queries: np.ndarray, k: int, searchable_ids: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (Q, K), descriptors (Q, K, D) and squared distances of the nearest photos; reads every descriptor once.

    The result is that of an evaluation: exact L2 distance, ties go to the lower id.  searchable_ids: ascending ids of
    the photos that may be found.  Rows of queries with fewer than k photos end with id -1.
    """
    from cosplace.retrieval.search import nearest

    num_queries, dimension = queries.shape
    best_ids = np.full((num_queries, k), -1, np.int64)
    best_squared = np.full((num_queries, k), np.inf)
    best = np.zeros((num_queries, k, dimension), np.float32)
    for block_ids, block in store.descriptors():
        order = np.argsort(block_ids)
        if searchable_ids is not None:
            order = order[np.isin(block_ids[order], searchable_ids, assume_unique=True)]
        if not len(order):
            continue
        ids, descriptors = block_ids[order], block[order]
        rows, _ = nearest(queries, descriptors, min(k, len(ids)))
        found = descriptors[rows].astype(np.float32)  # (Q, k, D)
        squared = ((found.astype(np.float64) - queries[:, None].astype(np.float64)) ** 2).sum(2)
        all_ids, all_squared = np.hstack([best_ids, ids[rows]]), np.hstack([best_squared, squared])
        chosen = np.lexsort((all_ids, all_squared))[:, :k]  # by distance, then by id
        best_ids = np.take_along_axis(all_ids, chosen, 1)
        best_squared = np.take_along_axis(all_squared, chosen, 1)
        best = np.take_along_axis(np.concatenate([best, found], 1), chosen[:, :, None], 1)
    return best_ids, best, best_squared


def _without_itself(found: Any, own: Any) -> list[np.ndarray]:
    """Remove each query's own id from its neighbors."""
    return [row[row != one][:MEASURED_K] for row, one in zip(found, own, strict=True)]


def _recalls(found: list[np.ndarray], exact: list[np.ndarray]) -> tuple[float, float]:
    """Shares of exact nearest neighbors that are found: of the first one, and of all."""
    first = np.mean([truth[0] in row for row, truth in zip(found, exact, strict=True)])
    every = np.mean([np.isin(truth, row).mean() for row, truth in zip(found, exact, strict=True)])
    return float(first), float(every)
