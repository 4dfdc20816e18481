"""Where the photos of a calibration are: photos of one area share a fold, and count as one in intervals.

Legend: N queries or examples.  Pure functions.
"""

from dataclasses import dataclass

import numpy as np

from cosplace.geo import ecef_from_lla
from cosplace.localization.confidence import NUM_FOLDS

AREA_M = 100.0  # sides of the squares whose photos share a fold


def areas_of(latitudes: np.ndarray, longitudes: np.ndarray) -> np.ndarray:
    """The square on the ground (N,) that each query is in; queries without a place have one each."""
    has_place = np.isfinite(latitudes)
    points = np.where(has_place[:, None], ecef_from_lla(latitudes, longitudes), 0.0)
    squares = np.floor(points / AREA_M).astype(np.int64)
    squares[~has_place] = np.arange(3 * int((~has_place).sum())).reshape(-1, 3) - 10**9  # a square each
    return np.unique(squares, axis=0, return_inverse=True)[1].ravel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the photos of examples are, see `Examples`."""

    areas: np.ndarray  # (N,) int64
    folds: np.ndarray  # (N,) int64
    measured: np.ndarray  # (N,) bool

    def take(self, rows: np.ndarray) -> "Placement":
        """Select photos by number."""
        return Placement(areas=self.areas[rows], folds=self.folds[rows], measured=self.measured[rows])


def folds_of(areas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A fold (N,) for each query; the queries of one area share a fold."""
    order = rng.permutation(areas.max() + 1)
    # The largest areas first, each into the smallest fold, so that folds have similar sizes.
    counts, fold_of, sizes = np.bincount(areas), np.zeros(len(order), np.int64), np.zeros(NUM_FOLDS, np.int64)
    for area in order[np.argsort(-counts[order], kind="stable")]:
        fold_of[area] = sizes.argmin()
        sizes[fold_of[area]] += counts[area]
    return fold_of[areas]
