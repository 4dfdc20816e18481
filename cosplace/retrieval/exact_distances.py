"""Exact distances of candidates, and the k nearest descriptors of a few queries.

With numpy alone: torch takes a second to import.  Legend: Q queries, R database rows, D dimension, K neighbors.  Pure.
"""

import numpy as np

from cosplace.retrieval.shards import Descriptors

EXACT_BYTES = 2_000_000  # of differences at once: blocks that fit in a core's caches are twice as fast


def nearest_of_few(
    queries: np.ndarray, database: np.ndarray, k: int, searchable: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The same as `search.nearest_in_float64`, for a few queries and a database in memory.

    Distances whose difference is below the rounding error of products in float64 are told apart here, but not there.

    queries: (Q, D) float32, database: (R, D) float32 or float16, finite; k: at most the number of searchable rows.
    """
    rows = database.astype(np.float32, copy=False)
    norms = np.einsum("rd,rd->r", rows, rows)
    if searchable is not None:
        norms[~searchable] = np.inf
    scores = norms - 2 * (queries @ rows.T)  # (Q, R): squared distances without the norms of the queries
    largest_norm = float(norms.max(initial=0, where=np.isfinite(norms)))
    predictions, distances = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    for number, (query, row_scores) in enumerate(zip(queries, scores, strict=True)):
        error = rounding_error(float(query.astype(np.float64) @ query), largest_norm, len(query))
        # Rows above this score are farther than k others, whatever the rounding errors are.
        limit = float(np.partition(row_scores, k - 1)[k - 1]) + 2 * error
        candidates = np.flatnonzero(row_scores.astype(np.float64) <= limit)[None]
        found = nearest_candidates(query[None], database, candidates, k, searchable)
        predictions[number], distances[number] = found[0][0], found[1][0]
    return predictions, distances


def rounding_error(query_norm: float, largest_norm: float, dimension: int) -> float:
    """Bound the rounding error of a score in float32: that of sums of D products (Higham 2002, section 3.1).

    query_norm, largest_norm: squared, of the query and of the longest row.
    """
    gamma = (dimension + 8) * float(np.finfo(np.float32).eps) / 2
    return gamma * (largest_norm + 2 * (query_norm * largest_norm) ** 0.5 + query_norm)


def nearest_candidates(
    queries: Descriptors, database: Descriptors, candidates: np.ndarray, k: int, searchable: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest candidates of each query (Q, K) int64 and their squared distances (Q, K) float64.

    candidates: (Q, n) int64, n >= k, each row at most once per query.  Distances are exact; lower rows first on ties.
    """
    candidates = np.sort(candidates, axis=1)  # a stable sort by distance then keeps lower rows first on ties
    distances = np.empty(candidates.shape)
    step = max(1, EXACT_BYTES // (8 * candidates.shape[1] * queries.shape[1]))
    for first in range(0, len(candidates), step):
        chunk = slice(first, first + step)
        rows = database[candidates[chunk].ravel()].reshape(*candidates[chunk].shape, -1)
        differences = rows.astype(np.float64) - queries[chunk][:, None].astype(np.float64)
        distances[chunk] = np.einsum("qkd,qkd->qk", differences, differences)
    if searchable is not None:
        distances[~searchable[candidates]] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(distances, order, 1)
