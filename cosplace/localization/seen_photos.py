"""Correct a calibration whose queries are photos that the model was trained on, or photos of a single capture.

Such a photo is mostly more similar to the other photos of its place than a new photo would be, and then an answer for
it is correct more often.  The model's card has the matches of validation queries, which are not training photos.  They
are used twice:

* Two thirds of the examples are validation queries with their matches.  Their rivals (matches of other places) are from
  the validation database.
* One third are photos of this index with their own rivals.  The similarities of their positives are changed to those of
  the validation, quantile by quantile.  They are only a third, because the rivals of new photos are more similar.

docs/lab.md compares this with other corrections.  Legend: N queries, K matches, V validation queries.  Pure.
"""

from dataclasses import dataclass

import numpy as np

from cosplace.geo import destination
from cosplace.models.training_card import ValidationMatches
from cosplace.retrieval.recall import RADIUS_M

REPEATS = 3  # each validation query counts this often
MIN_CORRECTED = 200  # photos of the index with changed similarities
NUM_QUANTILES = 101
NUM_BLOCKS = 25  # of consecutive validation queries, which stay together when examples are split into folds
BLOCK_DEGREES = 0.01  # between the places of these blocks, about 1.1 km


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryMatches:
    """The matches of each query, best first; -inf if there are fewer than K, nan without a position."""

    similarities: np.ndarray  # (N, K)
    latitudes: np.ndarray  # (N, K)
    longitudes: np.ndarray  # (N, K)
    accuracies_m: np.ndarray  # (N, K) error of the position, nan where unknown
    in_index: np.ndarray  # (N,) bool: a photo within 25 m was not hidden

    def take(self, columns: slice, similarities: np.ndarray | None = None) -> "QueryMatches":
        """Select matches by rank; similarities (N, K): instead of their own."""
        return QueryMatches(
            similarities=(self.similarities if similarities is None else similarities)[:, columns],
            latitudes=self.latitudes[:, columns],
            longitudes=self.longitudes[:, columns],
            accuracies_m=self.accuracies_m[:, columns],
            in_index=self.in_index if similarities is None else np.zeros_like(self.in_index),
        )


def num_corrected_queries(matches: ValidationMatches) -> int:
    """How many photos of the index to use in addition to the validation queries: half as many examples."""
    return max(MIN_CORRECTED, REPEATS * len(matches) // 2)


def match_similarities(positives: np.ndarray, matches: ValidationMatches) -> np.ndarray:
    """Similarities of the positives (N, K), best first and -inf for none, with the distribution of the validation.

    Each best positive gets the similarity at its quantile in the validation; the others keep their difference from it.
    For training photos, similarities mostly decrease.  For photos of sites that are far apart, they may increase:
    without the other photos of its own site, a photo is farther from its nearest match than a new photo would be.
    """
    if not positives.shape[1]:
        return positives
    best = positives[:, 0].astype(np.float64)
    has_positive = np.isfinite(best)
    if not has_positive.any():
        return positives
    quantiles = np.linspace(0, 1, NUM_QUANTILES)
    seen = np.quantile(best[has_positive], quantiles) + 1e-9 * np.arange(NUM_QUANTILES)
    unseen = np.quantile(_best_positives(matches), quantiles)
    change = np.where(has_positive, np.interp(best, seen, unseen) - best, 0.0)
    return positives + change[:, None]


def _best_positives(matches: ValidationMatches) -> np.ndarray:
    """Similarity of the best positive of each validation query (V,); that of the last match if none is found."""
    is_positive = np.hypot(matches.east_m, matches.north_m) <= RADIUS_M
    best = np.where(is_positive, matches.similarities, -np.inf).max(axis=1)
    return np.where(is_positive.any(axis=1), best, matches.similarities[:, -1])


def unseen_matches(matches: ValidationMatches, num_matches: int) -> tuple[QueryMatches, np.ndarray, np.ndarray]:
    """The validation matches, padded to `num_matches`, with the latitudes and longitudes of their queries.

    Only positions relative to the query are known, so the queries are put on the equator, block by block.
    """
    num_queries, count = matches.similarities.shape
    blocks = np.arange(num_queries) * NUM_BLOCKS // num_queries
    latitudes, longitudes = np.zeros(num_queries), blocks * BLOCK_DEGREES
    match_latitudes, match_longitudes = destination(
        latitudes[:, None], longitudes[:, None], matches.east_m.astype(float), matches.north_m.astype(float)
    )
    missing = ((0, 0), (0, num_matches - count))
    found = QueryMatches(
        similarities=np.pad(matches.similarities, missing, constant_values=-np.inf),
        latitudes=np.pad(match_latitudes, missing, constant_values=np.nan),
        longitudes=np.pad(match_longitudes, missing, constant_values=np.nan),
        accuracies_m=np.full((num_queries, num_matches), np.nan),
        in_index=np.ones(num_queries, bool),
    )
    repeated = np.repeat(np.arange(num_queries), REPEATS)
    return (
        QueryMatches(**{name: getattr(found, name)[repeated] for name in QueryMatches.__slots__}),
        latitudes[repeated],
        longitudes[repeated],
    )
