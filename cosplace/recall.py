"""Recall@N: how often the right place is among the first N predictions.

Protocol: Berton et al., CVPR 2022 (25 m, inclusive).  Pure: arrays in, arrays out.
Legend: Q queries, R database images, K predictions per query, P positives of all queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from cosplace.errors import ConfigError, DatasetError

RECALL_VALUES = (1, 5, 10, 20)
RADIUS_M = 25.0
CHUNK = 1 << 13  # queries or predictions at once: what is computed of them stays in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Positives:
    """For each query, the database images within `radius_m` of it (CSR: no list per query)."""

    indices: np.ndarray  # (P,) int64, database images, query after query, ascending within a query
    starts: np.ndarray  # (Q + 1,) int64

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """How many positives each query has, (Q,) int64."""
        return np.diff(self.starts)

    def of(self, query: int) -> np.ndarray:
        """Return the positives of one query, (n,) int64, ascending."""
        return self.indices[self.starts[query] : self.starts[query + 1]]


def find_positives(
    database_positions: np.ndarray, query_positions: np.ndarray, radius_m: float = RADIUS_M
) -> Positives:
    """All database images within `radius_m` (inclusive) of each query.

    database_positions, query_positions: (R, 2) and (Q, 2), UTM east and north in meters.
    Raises DatasetError for positions that are not finite, ConfigError for a negative radius.
    """
    if not radius_m >= 0 or not np.isfinite(radius_m):
        raise ConfigError(f"A radius of {radius_m} m cannot be: give a number of meters from 0 on.")
    database, queries = (
        _checked_positions(positions, whose)
        for positions, whose in ((database_positions, "database"), (query_positions, "queries"))
    )
    # The crops of a panorama stand side by side in a sorted list: their one position is judged once.
    moves = (database[1:, 0] != database[:-1, 0]) | (database[1:, 1] != database[:-1, 1])
    run_starts = np.concatenate([[0], np.flatnonzero(moves) + 1, [len(database)]])  # (U + 1,)
    places = database[run_starts[:-1]]  # (U, 2)
    # The trees compare squared distances, which round differently: search a little wider, then judge each pair.
    wider_m = radius_m * (1 + 1e-9) + 1e-6
    tree = KDTree(places, balanced_tree=False, compact_nodes=False)
    found, counts = [], []
    for first in range(0, len(queries), CHUNK):
        some = queries[first : first + CHUNK]
        pairs = KDTree(some, balanced_tree=False, compact_nodes=False).sparse_distance_matrix(
            tree, wider_m, output_type="ndarray"
        )
        rows, columns = pairs["i"], pairs["j"]
        east, north = (some[:, axis].take(rows) - places[:, axis].take(columns) for axis in (0, 1))
        near = np.sqrt(east * east + north * north) <= radius_m
        ordered = csr_array((near[near], (rows[near], columns[near])), (len(some), len(places)))
        ordered.sort_indices()
        indices, starts = _expanded(ordered.indices, ordered.indptr, run_starts)
        found.append(indices)
        counts.append(np.diff(starts))
    empty = np.zeros(0, np.int64)
    return Positives(
        indices=found[0] if len(found) == 1 else np.concatenate([empty, *found]),
        starts=np.concatenate([[0], np.cumsum(np.concatenate([empty, *counts]))]),
    )


def _expanded(places: np.ndarray, starts: np.ndarray, run_starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From lists of places (CSR) to lists of their images: place p holds images run_starts[p] … run_starts[p + 1] - 1.

    Counts on by one, but for a jump where the next place begins.
    """
    firsts, sizes = run_starts[places], np.diff(run_starts)[places]
    ends = np.append(0, np.cumsum(sizes))
    indices = np.ones(ends[-1], np.int64)
    indices[ends[:-1]] = np.diff(firsts + sizes, prepend=1) - sizes + 1
    return np.cumsum(indices, out=indices), ends[starts]


def _checked_positions(positions: np.ndarray, whose: str) -> np.ndarray:
    positions = np.asarray(positions, np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise DatasetError(f"Positions of the {whose} have the shape {positions.shape}: give (n, 2), east and north.")
    if not (finite := np.isfinite(positions)).all():
        bad = np.flatnonzero(~finite.all(axis=1))
        raise DatasetError(
            f"Position {bad[0]} of the {whose} is {tuple(positions[bad[0]].tolist())}: correct it, or leave that "
            f"image out."
        )
    return positions


def is_positive(predictions: np.ndarray, positives: Positives) -> np.ndarray:
    """Tell which predictions are positives of their query, (Q, K) bool.

    predictions: (Q, K) int64, database images; -1, where there is no prediction, is no positive.
    """
    _check_same_queries(predictions, positives)
    queries = np.repeat(np.arange(len(positives)), predictions.shape[1])
    return _are_positive(predictions.ravel(), queries, positives).reshape(predictions.shape)


def _check_same_queries(predictions: np.ndarray, positives: Positives) -> None:
    if len(predictions) != len(positives):
        raise DatasetError(
            f"There are predictions for {len(predictions)} queries but positives for {len(positives)}: pass both of "
            f"the same queries."
        )


def _are_positive(images: np.ndarray, queries: np.ndarray, positives: Positives) -> np.ndarray:
    """Whether each image is a positive of its query, (n,) bool: a binary search in all lists at once."""
    found = np.zeros(len(images), bool)
    num_halvings = int(positives.counts.max(initial=0)).bit_length()
    for first in range(0, len(images) if num_halvings else 0, CHUNK):
        some = slice(first, first + CHUNK)
        wanted, low, end = images[some], positives.starts[queries[some]], positives.starts[queries[some] + 1]
        high = end
        for _ in range(num_halvings):
            middle = (low + high) // 2
            below = positives.indices.take(middle, mode="clip") < wanted
            below &= low < high
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        found[some] = (low < end) & (positives.indices.take(low, mode="clip") == wanted)
    return found


def recall_at(predictions: np.ndarray, positives: Positives, ks: Sequence[int] = RECALL_VALUES) -> dict[int, float]:
    """Percentage of queries with a positive among their first k predictions.

    predictions: (Q, K) int64, database images, best first.  A query without positives counts as a miss.
    Raises DatasetError when K is smaller than the largest k, or when there are no queries.
    """
    check_recall_values(ks)
    num_queries, num_predictions = predictions.shape
    if num_predictions < max(ks):
        raise DatasetError(
            f"Recall@{max(ks)} needs {max(ks)} predictions per query but there are {num_predictions}: pass ks up to "
            f"{num_predictions} or search with k={max(ks)}."
        )
    if not num_queries:
        raise DatasetError("There are no queries to judge: recalls are percentages of queries.")
    _check_same_queries(predictions, positives)
    # A hit at rank j is a hit for every k > j: a query that was found once is not looked at again.
    num_found, first, missing, recalls = 0, 0, np.arange(num_queries), {}
    for k in sorted(set(ks)):
        looked_at = predictions[missing, first:k]
        hits = _are_positive(looked_at.ravel(), np.repeat(missing, k - first), positives)
        found = hits.reshape(looked_at.shape).any(axis=1)
        num_found, first, missing = num_found + int(found.sum()), k, missing[~found]
        recalls[k] = 100 * (num_found / num_queries)
    return {k: recalls[k] for k in ks}


def chance_recalls(positives: Positives, num_database: int, ks: Sequence[int] = RECALL_VALUES) -> dict[int, float]:
    """Return what guessing reaches: expected recalls in percent of predictions drawn at random without repetition.

    Of R images P are positives; all of the first k miss with probability C(R - P, k) / C(R, k) (hypergeometric).
    """
    check_recall_values(ks)
    if num_database < max(1, int(positives.indices.max(initial=-1)) + 1):
        raise DatasetError(f"A database of {num_database} images is too small for these positives: pass its true size.")
    counts, num_each = np.unique(positives.counts, return_counts=True)  # few different ones among many queries
    recalls = {}
    for k in ks:
        left = num_database - np.arange(min(k, num_database))  # images to draw the next one from
        share = np.minimum(counts[:, None] / left[None, :], 1.0)
        with np.errstate(divide="ignore"):  # log of 0: none but positives are left, a sure hit
            hit = -np.expm1(np.log1p(-share).sum(axis=1))
        recalls[k] = 100 * float((hit * num_each).sum() / max(1, len(positives)))
    return recalls


def check_recall_values(ks: Sequence[int]) -> None:
    """Raise ConfigError unless `ks` holds numbers from 1 on."""
    if not len(ks) or min(ks) < 1:
        raise ConfigError(f"Recall values {tuple(ks)} cannot be: give one or more numbers from 1 on.")
