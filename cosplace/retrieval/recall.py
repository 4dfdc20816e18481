"""Recall@N: how often the right place is among the first N predictions.

Protocol: Berton et al., CVPR 2022 (25 m, inclusive).  Pure: arrays in, arrays out.
Legend: Q queries, R database images, K predictions per query, P positives of all queries.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from cosplace.errors import ConfigError, DatasetError

RECALL_VALUES = (1, 5, 10, 20)
RADIUS_M = 25.0
MOST_CELLS = 1 << 30  # along one side of a grid
DENSE_CELLS = 1 << 20  # so many cells may have a table of their own
# So many at once that what is computed of them stays in the processor's cache.
QUERY_CHUNK, PREDICTION_CHUNK = 1 << 11, 1 << 13


class Positives:
    """For each query, the database images within a radius of it (CSR: no list per query).

    indices: (P,) int64, database images, query after query, ascending within a query; starts: (Q + 1,) int64.
    places: what many images at one position share; then `indices` and `starts` list places, and the lists of images
    are written out only when they are asked for; recalls do without.
    """

    def __init__(self, *, indices: np.ndarray, starts: np.ndarray, places: "Places | None" = None) -> None:
        self.listed, self.listed_starts, self.places = indices, starts, places

    def __len__(self) -> int:
        return len(self.listed_starts) - 1

    @cached_property
    def indices(self) -> np.ndarray:
        """Database images, query after query, ascending within a query, (P,) int64."""
        if self.places is None:
            return self.listed
        images, num_images = self.places.images(self.listed), self.places.num_images
        # One number a pair sorts fastest; queries are in order already.
        return np.sort(np.repeat(np.arange(len(self)) * num_images, self.counts) + images) % max(1, num_images)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where the images of each query begin in `indices`, (Q + 1,) int64."""
        if self.places is None:
            return self.listed_starts
        return np.append(0, np.cumsum(self.places.sizes[self.listed]))[self.listed_starts]

    @property
    def counts(self) -> np.ndarray:
        """How many positives each query has, (Q,) int64."""
        return np.diff(self.starts)

    @property
    def num_needed(self) -> int:
        """How many images the database has at least."""
        return int(self.listed.max(initial=-1)) + 1 if self.places is None else self.places.num_images

    def of(self, query: int) -> np.ndarray:
        """Return the positives of one query, (n,) int64, ascending."""
        listed = self.listed[self.listed_starts[query] : self.listed_starts[query + 1]]
        return listed if self.places is None else np.sort(self.places.images(listed))


class Places:
    """Images that stand side by side in a list, at one position, are a place; U places of R images."""

    def __init__(self, firsts: np.ndarray, ends: np.ndarray) -> None:
        self.firsts, self.ends = firsts, ends  # (U,) and (U,) int64: place p holds images firsts[p] ... ends[p] - 1
        self.num_images = int(ends.max(initial=0))

    @property
    def sizes(self) -> np.ndarray:
        """How many images each place holds, (U,) int64."""
        return self.ends - self.firsts

    def images(self, places: np.ndarray) -> np.ndarray:
        """The images of some places, one place after the other, (n,) int64."""
        return _ranges(self.firsts[places], self.ends[places])

    def of(self, images: np.ndarray) -> np.ndarray:
        """The places of images, (n,) int64; -1 for what is no image of the list."""
        there = (images >= 0) & (images < self.num_images)
        return np.where(there, self._of_each.take(images, mode="clip"), -1) if self.num_images else images * 0 - 1

    @cached_property
    def _of_each(self) -> np.ndarray:
        order = np.argsort(self.firsts)
        smallest = np.int32 if len(order) < 2**31 else np.int64  # half the memory to read at random
        return np.repeat(order.astype(smallest), self.sizes[order])


def _ranges(firsts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The numbers firsts[i] ... ends[i] - 1 for each i in turn, (n,) int64: counts on, but for a jump to each first."""
    firsts, ends = firsts[firsts < ends], ends[firsts < ends]
    sizes = ends - firsts
    steps = np.ones(sizes.sum(), np.int64)
    steps[np.append(0, np.cumsum(sizes)[:-1])[: len(sizes)]] = np.diff(ends, prepend=1) - sizes + 1
    return np.cumsum(steps, out=steps)


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
    grid = _Grid(database, radius_m)
    found, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(queries), QUERY_CHUNK):
        some = queries[first : first + QUERY_CHUNK]
        owners, near = grid.within(some, radius_m)
        found.append(near)
        counts.append(np.bincount(owners, minlength=len(some)))
    starts = np.append(0, np.cumsum(np.concatenate(counts)))
    return Positives(indices=np.concatenate(found), starts=starts, places=grid.places)


class _Grid:
    """Places in the order of cells as wide as the radius: all that lies within it is in nine cells, three in a row."""

    def __init__(self, images: np.ndarray, radius_m: float) -> None:
        # The crops of a panorama stand side by side in a sorted list: their one position is judged once.
        moves = (images[1:, 0] != images[:-1, 0]) | (images[1:, 1] != images[:-1, 1])
        firsts = np.append(np.zeros(min(1, len(images)), np.int64), np.flatnonzero(moves) + 1)  # (U,)
        positions = images[firsts]  # (U, 2) meters
        self.corner = positions.min(axis=0) if len(positions) else np.zeros(2)
        extent = np.ptp(positions, axis=0) if len(positions) else np.zeros(2)
        # Slightly wider than the radius, as cells are found with rounding; and no more than fit an integer.
        self.side = max(radius_m * (1 + 1e-6) + 1e-6, float(extent.max()) / MOST_CELLS)
        self.width, self.height = (extent / self.side).astype(np.int64) + 5  # with two cells of margin on all sides
        cells = self._cells(positions)
        order = np.argsort(cells, kind="stable")
        self.cells, self.positions = cells[order], positions[order]
        self.places = Places(firsts[order], np.append(firsts[1:], len(images))[order])
        dense = self.width * self.height <= 4 * len(positions) + DENSE_CELLS
        self.table = np.searchsorted(self.cells, np.arange(self.width * self.height + 1)) if dense else None

    def _cells(self, positions: np.ndarray) -> np.ndarray:
        """Number of the cell of each position, (n,) int64; in the margin for those outside."""
        column, row = np.floor((positions - self.corner) / self.side).T + 2
        column, row = (
            np.clip(cells, 1, most - 2).astype(np.int64) for cells, most in ((column, self.width), (row, self.height))
        )
        return row * self.width + column

    def _num_before(self, cells: np.ndarray) -> np.ndarray:
        """How many places lie in cells before the given ones, (n,) int64."""
        return np.searchsorted(self.cells, cells) if self.table is None else self.table[cells]

    def within(self, queries: np.ndarray, radius_m: float) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (query, place) of queries (Q, 2) no farther than the radius, ordered: (P,) and (P,) int64."""
        cells = self._cells(queries)[:, None] + self.width * np.arange(-1, 2)  # (Q, 3)
        firsts, ends = self._num_before(cells - 1), self._num_before(cells + 2)
        owners = np.repeat(np.arange(len(queries)), (ends - firsts).sum(axis=1))  # (n,)
        places = _ranges(firsts.ravel(), ends.ravel())  # (n,)
        east, north = (queries[:, axis].take(owners) - self.positions[:, axis].take(places) for axis in (0, 1))
        with np.errstate(over="ignore"):  # infinitely far is not near
            near = np.sqrt(east * east + north * north) <= radius_m
        return owners[near], places[near]


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
    listed, starts = positives.listed, positives.listed_starts
    num_halvings = int(np.diff(starts).max(initial=0)).bit_length()
    for first in range(0, len(images) if num_halvings else 0, PREDICTION_CHUNK):
        some = slice(first, first + PREDICTION_CHUNK)
        wanted = images[some] if positives.places is None else positives.places.of(images[some])
        low, end = starts[queries[some]], starts[queries[some] + 1]
        high = end
        for _ in range(num_halvings):
            middle = (low + high) // 2
            below = listed.take(middle, mode="clip") < wanted
            below &= low < high
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        found[some] = (low < end) & (listed.take(low, mode="clip") == wanted)
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
    if num_database < max(1, positives.num_needed):
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
