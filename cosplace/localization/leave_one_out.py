"""Locate photos of an index as if they were new: the photo itself, and what was captured with it, is hidden.

One pass over the descriptors of the index.  Legend: N queries, V crops, K matches.  Side effects: reads the index.
"""

from collections.abc import Sequence

import numpy as np

from cosplace.geo import ecef_from_lla
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.records import Columns
from cosplace.localization.localizer import NUM_FUSED
from cosplace.localization.queries import TASK, Queries
from cosplace.localization.seen_photos import QueryMatches, match_similarities
from cosplace.models.training_card import ValidationMatches
from cosplace.progress import Progress
from cosplace.retrieval.crop_ranking import rank_crops
from cosplace.retrieval.recall import RADIUS_M

SAME_PLACE_M = 1.0
OUT_OF_INDEX_M = 100.0  # photos within this distance are hidden from out-of-index queries
BLOCK_ROWS = 16_384


def find_matches(  # noqa: PLR0917
    index: PhotoIndex,
    columns: Columns,
    queries: Queries,
    progress: Progress,
    num_altered: int,
    correction: ValidationMatches | None,
) -> tuple[QueryMatches, QueryMatches]:
    """Matches (N, K) as if each photo were new, and as if its place were not in the index.

    num_altered: photos that progress has counted before.  correction: changes the similarities of the positives.
    """
    points = ecef_from_lla(columns.latitudes, columns.longitudes)
    center = np.nanmean(points, axis=0)  # relative to it, numbers are small, so products are exact to millimeters
    points = points - center
    own_points = ecef_from_lla(queries.latitudes, queries.longitudes) - center
    all_times, own_times = (np.where(np.isnan(times), np.inf, times) for times in (columns.times, queries.times))
    num_queries = len(queries.rows)
    # With several crops, each has its own lists, as in a search of the index.
    crops = [queries.descriptors] if queries.descriptors.ndim == 2 else list(queries.descriptors.transpose(1, 0, 2))
    new_lists, other_lists, positive_lists = ([_BestMatches(num_queries) for _ in crops] for _ in range(3))
    in_index = np.zeros(num_queries, bool)
    for start in range(0, len(columns), BLOCK_ROWS):
        block = np.arange(start, min(start + BLOCK_ROWS, len(columns)))
        descriptors = index.descriptors(columns.ids[block]).astype(np.float32)
        squared_m = squared_distances(own_points, points[block])  # nan where a position is unknown
        squared_m[~queries.shows_place] = np.inf
        same_time = own_times[:, None] == all_times[block][None]  # unknown times count as the same
        hidden = (queries.rows[:, None] == block[None]) | ((squared_m <= SAME_PLACE_M**2) & same_time)
        is_positive = (squared_m <= RADIUS_M**2) & ~hidden
        in_index |= is_positive.any(axis=1)
        if correction is not None:
            hidden |= is_positive
        is_near = hidden | (squared_m <= OUT_OF_INDEX_M**2)
        for crop, as_new, out_of_index, positives in zip(crops, new_lists, other_lists, positive_lists, strict=True):
            similarities = crop @ descriptors.T
            if correction is not None:
                positives.add(np.where(is_positive, similarities, -np.inf), start)
            as_new.add(np.where(hidden, -np.inf, similarities), start)
            out_of_index.add(np.where(is_near, -np.inf, similarities), start)
        progress(TASK, num_altered + int(block[-1]) + 1, num_altered + len(columns))
    policy = None if len(crops) == 1 else index.spec.views.query_policy
    as_new, out_of_index, positives = (
        _BestMatches.of_crops(lists, policy) for lists in (new_lists, other_lists, positive_lists)
    )
    if correction is not None:
        similarities = match_similarities(positives.similarities, correction)
        as_new = _BestMatches.merged(as_new, positives, similarities)
    return as_new.matches(columns, in_index), out_of_index.matches(columns, np.zeros_like(in_index))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) between points (n, 3) and (m, 3)."""
    # |a|² + |b|² - 2ab as one product of matrices, which needs no other arrays of this size.
    left = np.column_stack([-2 * a, (a**2).sum(1), np.ones(len(a))])
    right = np.column_stack([b, np.ones(len(b)), (b**2).sum(1)])
    squares = left @ right.T
    return np.maximum(squares, 0.0, out=squares)


class _BestMatches:
    """The NUM_FUSED best matches of each query in the blocks so far."""

    def __init__(self, num_queries: int) -> None:
        self.similarities = np.empty((num_queries, 0), np.float32)
        self.rows = np.empty((num_queries, 0), np.int64)

    def add(self, similarities: np.ndarray, start: int) -> None:
        """Add the similarities (N, n) of rows from `start` on; -inf for hidden rows."""
        is_full = self.rows.shape[1] == NUM_FUSED
        similarities, columns = _above(similarities, self.similarities[:, -1:] if is_full else -np.inf)
        similarities = np.concatenate([self.similarities, similarities], axis=1)
        num_before = self.rows.shape[1]
        best = _largest(similarities, NUM_FUSED)
        is_new, before = best >= num_before, np.pad(self.rows, ((0, 0), (0, 1)))
        kept = np.take_along_axis(before, np.minimum(best, num_before), 1)
        added = best - num_before
        if columns is not None:
            added = np.take_along_axis(np.pad(columns, ((0, 0), (0, 1))), np.maximum(added, 0), 1)
        self.rows = np.where(is_new, added + start, kept)
        self.similarities = np.take_along_axis(similarities, best, 1).astype(np.float32)

    @classmethod
    def of_crops(cls, crops: Sequence["_BestMatches"], policy: str | None) -> "_BestMatches":
        """The best matches of queries from those of each crop; similarities are those after any votes."""
        if len(crops) == 1:
            return crops[0]
        similarities = np.stack([crop.similarities for crop in crops], axis=1)
        rows = np.where(np.isfinite(similarities), np.stack([crop.rows for crop in crops], axis=1), -1)
        best = cls(len(rows))
        found, _, ranked_by = rank_crops(rows, 2 - 2 * similarities, rows.shape[2], policy=policy)
        best.rows, best.similarities = np.maximum(found, 0), 1 - ranked_by / 2
        return best

    @classmethod
    def merged(cls, others: "_BestMatches", positives: "_BestMatches", similarities: np.ndarray) -> "_BestMatches":
        """The best of two disjoint sets of matches; similarities (N, K): those to use for the positives."""
        both = cls(len(similarities))
        all_similarities = np.concatenate([others.similarities, similarities], axis=1)
        best = _largest(all_similarities, others.rows.shape[1])
        both.rows = np.take_along_axis(np.concatenate([others.rows, positives.rows], axis=1), best, 1)
        both.similarities = np.take_along_axis(all_similarities, best, 1).astype(np.float32)
        return both

    def matches(self, columns: Columns, in_index: np.ndarray) -> QueryMatches:
        """The matches with their positions."""
        is_match = np.isfinite(self.similarities)
        return QueryMatches(
            similarities=self.similarities,
            latitudes=np.where(is_match, columns.latitudes[self.rows], np.nan),
            longitudes=np.where(is_match, columns.longitudes[self.rows], np.nan),
            accuracies_m=np.where(is_match, columns.accuracies_m[self.rows], np.nan),
            in_index=in_index,
        )


def _above(values: np.ndarray, bound: np.ndarray | float) -> tuple[np.ndarray, np.ndarray | None]:
    """The values (N, n) above a bound, in order, and their columns; None for all columns.

    At least NUM_FUSED per row, if there are as many columns; -inf where fewer are above the bound.  After the first
    block, few similarities are above the last match so far, so there is little to sort.
    """
    is_above = values > bound
    counts = is_above.sum(axis=1)
    if 8 * int(counts.sum()) > values.size:
        return values, None
    rows, columns = np.nonzero(is_above)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = max(int(counts.max(initial=0)), min(NUM_FUSED, values.shape[1]))
    found = np.full((len(values), width), -np.inf, values.dtype)
    found_columns = np.zeros(found.shape, np.int64)
    found[rows, places], found_columns[rows, places] = values[rows, columns], columns
    return found, found_columns


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` largest values of each row, largest first; lower columns first among equals."""
    if values.shape[1] <= 4 * count:
        return np.argsort(-values, axis=1, kind="stable")[:, :count]
    some = np.sort(np.argpartition(-values, count, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(values, some, 1), axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)
