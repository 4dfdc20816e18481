"""Recall@N: how often a correct image is among the first N predictions.

Protocol: Berton et al., CVPR 2022 (25 m, inclusive).  Pure: arrays in, arrays out.
Legend: Q queries, R database images, K predictions per query, U positions, P pairs of a query and a position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cosplace.config.defaults import RADIUS_M, RECALL_VALUES
from cosplace.errors import ConfigError, DatasetError

MAX_COORDINATE_M = 2.0**53  # float64 has no whole meters beyond it
QUERY_CHUNK = 1 << 13  # queries whose pairs are in memory at once, 24 bytes per pair


@dataclass(frozen=True, kw_only=True)
class Positives:
    """For each query, the database images within a radius of it.

    Consecutive images at the same position, such as the crops of a panorama, are stored once, as one position.
    """

    positions: np.ndarray  # (P,) int64, numbers of the positions near each query, query after query, each ascending
    starts: np.ndarray  # (Q + 1,) int64, where each query starts in `positions`
    image_starts: np.ndarray  # (U + 1,) int64: position p has the images image_starts[p] ... image_starts[p + 1] - 1

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def num_database(self) -> int:
        """R, the number of database images."""
        return int(self.image_starts[-1])

    @cached_property
    def counts(self) -> np.ndarray:
        """The number of positives of each query, (Q,) int64."""
        num_images = np.diff(self.image_starts)[self.positions]  # (P,)
        return np.diff(np.append(0, np.cumsum(num_images))[self.starts])

    @property
    def indices(self) -> np.ndarray:
        """Database images, query after query, ascending within a query, (sum of counts,) int64."""
        return self._images(self.positions)

    def of(self, query: int) -> np.ndarray:
        """Return the positives of one query, (n,) int64, ascending."""
        return self._images(self.positions[self.starts[query] : self.starts[query + 1]])

    def _images(self, positions: np.ndarray) -> np.ndarray:
        num_images = np.diff(self.image_starts)[positions]
        # Row i of the result is image i + offset; the offset is the same for all images of a position.
        offsets = self.image_starts[positions] - (np.cumsum(num_images) - num_images)
        return np.arange(num_images.sum()) + np.repeat(offsets, num_images)


def find_positives(
    database_positions: np.ndarray, query_positions: np.ndarray, radius_m: float = RADIUS_M
) -> Positives:
    """Find all database images within `radius_m` (inclusive) of each query, in a straight line.

    database_positions, query_positions: (R, 2) and (Q, 2), UTM east and north in meters, all in one zone; or (R, 3) and
    (Q, 3), earth-centered points in meters.
    Raises DatasetError for invalid positions, ConfigError for a negative radius.
    """
    from scipy.spatial import KDTree  # takes longer to import than the rest of this module

    check_radius(radius_m)
    database = _checked_positions(database_positions, "database")
    queries = _checked_positions(query_positions, "queries")
    if database.shape[1] != queries.shape[1]:
        raise DatasetError(
            f"Positions of the database have {database.shape[1]} coordinates, those of the queries "
            f"{queries.shape[1]}. Pass both as UTM positions, or both as earth-centered points."
        )
    changes = np.flatnonzero((database[1:] != database[:-1]).any(axis=1)) + 1
    image_starts = np.unique(np.concatenate([[0], changes, [len(database)]]))
    database = database[image_starts[:-1]]  # (U, 2 or 3)
    tree = KDTree(database)
    positions, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(queries), QUERY_CHUNK):
        chunk = queries[first : first + QUERY_CHUNK]
        # The tree compares rounded squares of distances: search slightly farther, then compare exact distances.
        pairs = KDTree(chunk).sparse_distance_matrix(tree, radius_m * (1 + 1e-9), output_type="ndarray")
        rows, columns = np.divmod(np.sort(pairs["i"] * len(database) + pairs["j"]), max(1, len(database)))
        offsets = (chunk[rows] - database[columns]).T  # (2 or 3, pairs)
        is_near = np.sqrt(sum(offset * offset for offset in offsets)) <= radius_m
        positions.append(columns[is_near])
        counts.append(np.bincount(rows[is_near], minlength=len(chunk)))
    starts = np.append(0, np.cumsum(np.concatenate(counts)))
    return Positives(positions=np.concatenate(positions), starts=starts, image_starts=image_starts)


def _checked_positions(positions: np.ndarray, split: str) -> np.ndarray:
    positions = np.asarray(positions, np.float64)
    if positions.ndim != 2 or positions.shape[1] not in (2, 3):
        raise DatasetError(
            f"Positions of the {split} must have shape (n, 2), east and north, or (n, 3), earth-centered points, got "
            f"{positions.shape}."
        )
    if not (valid := np.abs(positions) <= MAX_COORDINATE_M).all():  # false for NaN
        bad = np.flatnonzero(~valid.all(axis=1))[0]
        raise DatasetError(
            f"Position {bad} of the {split} is {tuple(positions[bad].tolist())}. Correct it, or remove that image."
        )
    return positions


def is_positive(predictions: np.ndarray, positives: Positives) -> np.ndarray:
    """Find which predictions are positives of their query, (Q, K) bool.

    predictions: (Q, K) int64, database images; -1, for no prediction, is not a positive.
    """
    if len(predictions) != len(positives):
        raise DatasetError(
            f"There are predictions for {len(predictions)} queries but positives for {len(positives)}. Pass both for "
            f"the same queries."
        )
    if not len(positives.positions):
        return np.zeros(predictions.shape, bool)
    num_database, num_positions = positives.num_database, len(positives.image_starts) - 1
    # Position U stands for predictions outside the database: it is near no query.
    num_images = np.diff(positives.image_starts, append=num_database + 1)  # (U + 1,)
    position_of = np.repeat(np.arange(num_positions + 1, dtype=np.int32), num_images)  # (R + 1,)
    exists = (predictions >= 0) & (predictions < num_database)
    # One number per pair (query, position), so that a single sorted array holds the pairs of all queries.
    first_pairs = np.arange(len(positives)) * (num_positions + 1)  # (Q,)
    pairs = np.repeat(first_pairs, np.diff(positives.starts)) + positives.positions  # (P,), ascending
    predicted = first_pairs[:, None] + position_of[np.where(exists, predictions, num_database)]  # (Q, K)
    return pairs.take(np.searchsorted(pairs, predicted), mode="clip") == predicted


def recall_at(predictions: np.ndarray, positives: Positives, ks: Sequence[int] = RECALL_VALUES) -> dict[int, float]:
    """Percentage of queries with a positive among their first k predictions.

    predictions: (Q, K) int64, database images, best first.  A query without positives counts as a miss.
    Raises DatasetError when K is smaller than the largest k, or when there are no queries.
    """
    check_recall_values(ks)
    num_queries, num_predictions = predictions.shape
    if num_predictions < max(ks):
        raise DatasetError(
            f"Recall@{max(ks)} needs {max(ks)} predictions per query, got {num_predictions}. Use values up to "
            f"{num_predictions}, or search with k={max(ks)}."
        )
    if not num_queries:
        raise DatasetError("There are no queries, so there are no recalls. Add queries.")
    hits = is_positive(predictions[:, : max(ks)], positives)
    return {k: 100 * (int(hits[:, :k].any(axis=1).sum()) / num_queries) for k in ks}


def chance_recalls(positives: Positives, num_database: int, ks: Sequence[int] = RECALL_VALUES) -> dict[int, float]:
    """Expected recalls, in percent, of predictions drawn at random without repetition.

    Of R images P are positives; all of the first k miss with probability C(R - P, k) / C(R, k) (hypergeometric).
    """
    check_recall_values(ks)
    if num_database < max(1, positives.num_database):
        raise DatasetError(
            f"The positives are from a database of {positives.num_database} images, got num_database={num_database}."
        )
    counts, num_queries = np.unique(positives.counts, return_counts=True)  # queries have few different counts
    recalls = {}
    for k in ks:
        num_left = num_database - np.arange(min(k, num_database))  # images to draw the next one from
        share = np.minimum(counts[:, None] / num_left[None, :], 1.0)
        with np.errstate(divide="ignore"):  # log(0): only positives are left, a certain hit
            hit = -np.expm1(np.log1p(-share).sum(axis=1))
        recalls[k] = 100 * float((hit * num_queries).sum() / max(1, len(positives)))
    return recalls


def check_recall_values(ks: Sequence[int]) -> None:
    """Raise ConfigError unless `ks` has at least one value and all are at least 1."""
    if not len(ks) or min(ks) < 1:
        raise ConfigError(f"Recall values must be one or more numbers >= 1, got {tuple(ks)}.")


def check_radius(radius_m: float) -> None:
    """Raise ConfigError unless the radius is a finite number of meters >= 0."""
    if not 0 <= radius_m < np.inf:
        raise ConfigError(f"The radius must be a number of meters >= 0, got {radius_m}.")
