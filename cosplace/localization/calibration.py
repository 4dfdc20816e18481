"""An index learns how far its answers can be trusted, from its own photos.

Photos of the index are asked where they were taken.  A *pseudo-query* may not find itself, nor what was captured at
its spot at the same time; half of them are described anew, in other light and another crop, for a stranger's photo is
never as like as a neighbour of the same drive.  The same photos with everything within 100 m hidden, and frames that
show no place at all, stand for photos from elsewhere.  Legend: I photos of the index, N examples, K neighbours.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosplace.errors import ConfigError
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.photo_pixels import photo_pixels
from cosplace.localization.confidence import NUM_FOLDS, Calibration, Examples, as_record, fit_calibration
from cosplace.localization.fusion import AGREE_M, TEMPERATURE, fuse
from cosplace.localization.localizer import NUM_SEARCHED, RECORD, open_index_encoder
from cosplace.localization.photo_changes import changed, non_places
from cosplace.localization.plane import ground_distances_m, in_space
from cosplace.localization.signals import features_of
from cosplace.models.encoder import Encoder
from cosplace.retrieval.recall import RADIUS_M

NUM_QUERIES = 2000  # photos of the index that are asked
NUM_CHANGED = 500  # of them that are described anew
NUM_NON_PLACES = 60
SAME_SPOT_M = 1.0
ELSEWHERE_M = 100.0
AREA_M = 100.0  # sides of the squares whose photos share a fold
TEMPERATURES = (0.02, 0.03, 0.04, 0.06)
LARGEST_ERROR_M = 50.0  # when temperatures are compared, any worse answer is as bad
BLOCK_ROWS = 16_384

Progress = Callable[[int, int], None]  # (done, total) photos described anew and photos compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Queries with their truth."""

    descriptors: np.ndarray  # (N, D) float32
    rows: np.ndarray  # (N,) int64: the photo of the index each is of, -1 for none
    latitudes: np.ndarray  # (N,) float64, nan for none
    longitudes: np.ndarray  # (N,) float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Matches of each query; -inf and nan where there is none or no position."""

    similarities: np.ndarray  # (N, K)
    latitudes: np.ndarray  # (N, K)
    longitudes: np.ndarray  # (N, K)
    covered: np.ndarray  # (N,) bool: a photo within 25 m could be found


def calibrate(
    index: PhotoIndex,
    *,
    encoder: Encoder | None = None,
    num_queries: int = NUM_QUERIES,
    num_changed: int = NUM_CHANGED,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrate an index that is open for writing and keep the result with it.

    encoder: the index's model, loaded when not given.  num_changed: photos described anew; with 0 no model is needed
    and confidence is learned from stored descriptors alone, which is less honest about strangers' photos.
    progress: called with (done, total).  Raises ConfigError for an index with too few photos or places.
    """
    started = time.perf_counter()
    calibration = measure(
        index, encoder=encoder, num_queries=num_queries, num_changed=num_changed, device=device, seed=seed,
        progress=progress,
    )  # fmt: skip
    record = as_record(calibration)
    record["about"] |= {"seconds": round(time.perf_counter() - started, 1)}
    index.write_record(RECORD, record)
    return calibration


def measure(
    index: PhotoIndex,
    *,
    encoder: Encoder | None = None,
    num_queries: int = NUM_QUERIES,
    num_changed: int = NUM_CHANGED,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """As `calibrate`, and nothing is written."""
    if min(num_queries, num_changed + 1, seed + 1) < 1:
        raise ConfigError(f"num_queries {num_queries}, num_changed {num_changed}, seed {seed}: none may be negative.")
    rng = np.random.default_rng([seed, 25])
    columns = index.columns()
    known = np.flatnonzero(np.isfinite(columns.latitudes) & np.isfinite(columns.longitudes))
    if len(known) < 2 * NUM_FOLDS:
        raise ConfigError(
            f"The index has {len(known)} photos with a position, too few to calibrate it: add at least "
            f"{2 * NUM_FOLDS - len(known)} more."
        )
    rows = np.sort(rng.permutation(known)[:num_queries])
    queries = [_as_stored(index, columns, rows)]
    num_other = 0
    if num_changed:
        encoder = open_index_encoder(index, device) if encoder is None else encoder
        some = np.sort(rng.permutation(rows)[:num_changed])
        queries += [_described_anew(index, encoder, columns, some, rng, progress)]
        queries += [_of_no_place(encoder, rng)]
        num_other = len(queries[-1].rows)
    asked = _together(queries)
    here, elsewhere = _both_lists(index, columns, asked, progress, min(num_changed, len(rows)))
    folds = _folds(asked, rng)
    own = asked.rows >= 0
    temperature = _best_temperature(here, asked, own & here.covered)
    parts = (
        _examples(here, asked, folds, temperature, own),
        _examples(elsewhere, asked, folds, temperature, ~own | own),
    )
    examples = _concatenated(parts)
    about = {
        "num_photos": len(columns),
        "num_queries": len(rows),
        "num_described_anew": len(asked.rows) - len(rows) - num_other,
        "num_non_places": num_other,
        "num_examples": len(examples.right),
        "num_right": int(examples.right.sum()),
        "num_elsewhere": int(examples.elsewhere.sum()),
        "seed": seed,
    }
    return fit_calibration(examples, temperature=temperature, agree_m=AGREE_M, about=about)


# --- queries ---------------------------------------------------------------------------------------------------------


def _as_stored(index: PhotoIndex, columns: Any, rows: np.ndarray) -> Asked:
    descriptors = index.descriptors(columns.ids[rows]).astype(np.float32)
    return _asked(columns, rows, descriptors)


def _asked(columns: Any, rows: np.ndarray, descriptors: np.ndarray) -> Asked:
    return Asked(
        descriptors=descriptors, rows=rows, latitudes=columns.latitudes[rows], longitudes=columns.longitudes[rows]
    )


def _described_anew(  # noqa: PLR0917
    index: PhotoIndex, encoder: Encoder, columns: Any, rows: np.ndarray, rng: np.random.Generator,
    progress: Progress | None,
) -> Asked:  # fmt: skip
    """Photos in other light and another crop; those whose pixels are gone are left out."""
    kept, found = [], []
    for number, row in enumerate(rows.tolist()):
        pixels = photo_pixels(index, int(columns.ids[row]), columns.paths([row])[0])
        if pixels is not None:
            kept.append(row)
            found.append(encoder.encode(changed(pixels, rng))[0])
        if progress is not None:
            progress(number + 1, len(rows) + len(columns))
    dimension = index.spec.dimension
    descriptors = np.stack(found) if found else np.empty((0, dimension), np.float32)
    return _asked(columns, np.array(kept, np.int64), descriptors)


def _of_no_place(encoder: Encoder, rng: np.random.Generator) -> Asked:
    frames = non_places(NUM_NON_PLACES, rng)
    nowhere = np.full(len(frames), np.nan)
    return Asked(
        descriptors=encoder.encode(frames),
        rows=np.full(len(frames), -1, np.int64),
        latitudes=nowhere,
        longitudes=nowhere,
    )


def _together(parts: Sequence[Asked]) -> Asked:
    names = ("descriptors", "rows", "latitudes", "longitudes")
    return Asked(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _folds(asked: Asked, rng: np.random.Generator) -> np.ndarray:
    """A fold for each query; photos of one square of the ground share it, and so do photos of one row."""
    points = np.where(np.isfinite(asked.latitudes)[:, None], in_space(asked.latitudes, asked.longitudes), 0.0)
    squares = np.floor(points / AREA_M).astype(np.int64)
    squares[asked.rows < 0] = np.arange(3 * int((asked.rows < 0).sum())).reshape(-1, 3) - 10**9  # each its own
    _, areas = np.unique(squares, axis=0, return_inverse=True)
    areas = areas.ravel()
    order = rng.permutation(areas.max() + 1)
    # The largest areas first, each into the fold with the fewest queries: folds of like size.
    counts, fold_of, filled = np.bincount(areas), np.zeros(len(order), np.int64), np.zeros(NUM_FOLDS, np.int64)
    for area in order[np.argsort(-counts[order], kind="stable")]:
        fold_of[area] = filled.argmin()
        filled[fold_of[area]] += counts[area]
    return fold_of[areas]


# --- their neighbours ------------------------------------------------------------------------------------------------


def _both_lists(
    index: PhotoIndex, columns: Any, asked: Asked, progress: Progress | None, num_before: int
) -> tuple[Lists, Lists]:
    """Matches as if each photo were new, and as if its place were not in the index; one pass over the index."""
    points = in_space(columns.latitudes, columns.longitudes)
    centre = np.nanmean(points, axis=0)
    points = points - centre  # small numbers: products of them are right to millimeters
    own = np.maximum(asked.rows, 0)
    here, elsewhere = _Nearest(len(asked.rows)), _Nearest(len(asked.rows))
    covered = np.zeros(len(asked.rows), bool)
    for first in range(0, len(columns), BLOCK_ROWS):
        block = np.arange(first, min(first + BLOCK_ROWS, len(columns)))
        scores = asked.descriptors @ index.descriptors(columns.ids[block]).astype(np.float32).T
        apart_2 = _squares(points[own], points[block])  # nan where a position is unknown
        apart_2[asked.rows < 0] = np.inf
        times, own_times = columns.times[block][None], columns.times[own][:, None]
        together = (times == own_times) | (np.isnan(times) & np.isnan(own_times))
        hidden = (asked.rows[:, None] == block[None]) | ((apart_2 <= SAME_SPOT_M**2) & together)
        covered |= ((apart_2 <= RADIUS_M**2) & ~hidden).any(axis=1)
        here.add(np.where(hidden, -np.inf, scores), first)
        elsewhere.add(np.where(hidden | (apart_2 <= ELSEWHERE_M**2), -np.inf, scores), first)
        if progress is not None:
            progress(num_before + int(block[-1]) + 1, num_before + len(columns))
    return here.lists(columns, covered), elsewhere.lists(columns, np.zeros_like(covered))


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) between points (n, 3) and (m, 3)."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0.0)


class _Nearest:
    """The best NUM_SEARCHED of blocks that come one after another."""

    def __init__(self, num_queries: int) -> None:
        self.scores, self.rows = np.empty((num_queries, 0), np.float32), np.empty((num_queries, 0), np.int64)

    def add(self, scores: np.ndarray, first: int) -> None:
        """Take the scores (N, n) of rows from `first` on; -inf for rows that may not be found."""
        scores = np.concatenate([self.scores, scores], axis=1)
        num_kept = self.rows.shape[1]
        best = (
            np.argsort(-scores, axis=1, kind="stable")[:, :NUM_SEARCHED]
            if scores.shape[1] <= 4 * NUM_SEARCHED
            else (_largest(scores, NUM_SEARCHED))
        )
        before = np.concatenate([self.rows, np.zeros((len(scores), 1), np.int64)], axis=1)
        kept = np.take_along_axis(before, np.minimum(best, num_kept), 1)
        self.rows = np.where(best < num_kept, kept, best - num_kept + first)
        self.scores = np.take_along_axis(scores, best, 1).astype(np.float32)

    def lists(self, columns: Any, covered: np.ndarray) -> Lists:
        """What was found, with positions."""
        found = np.isfinite(self.scores)
        return Lists(
            similarities=self.scores,
            latitudes=np.where(found, columns.latitudes[self.rows], np.nan),
            longitudes=np.where(found, columns.longitudes[self.rows], np.nan),
            covered=covered,
        )


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the largest scores of each row, best first."""
    some = np.sort(np.argpartition(-scores, count, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)


# --- examples --------------------------------------------------------------------------------------------------------


def _answers(lists: Lists, asked: Asked, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, F) and errors in meters (N,)."""
    fusion = fuse(lists.similarities, lists.latitudes, lists.longitudes, temperature=temperature, agree_m=AGREE_M)
    errors_m = ground_distances_m(fusion.latitudes, fusion.longitudes, asked.latitudes, asked.longitudes)
    return features_of(lists.similarities, fusion), errors_m


def _best_temperature(lists: Lists, asked: Asked, rows: np.ndarray) -> float:
    """The lowest temperature whose errors are not clearly (by a standard error) above those of the best one."""
    if not rows.any():
        return TEMPERATURE
    errors_m = [_answers(lists, asked, temperature)[1][rows] for temperature in TEMPERATURES]
    costs = np.minimum(np.nan_to_num(np.stack(errors_m), nan=LARGEST_ERROR_M), LARGEST_ERROR_M)
    worse = costs - costs[costs.mean(axis=1).argmin()]
    clearly = worse.mean(axis=1) > worse.std(axis=1) / np.sqrt(rows.sum())
    return TEMPERATURES[int(np.argmin(clearly))]


def _examples(lists: Lists, asked: Asked, folds: np.ndarray, temperature: float, which: np.ndarray) -> Examples:
    features, errors_m = _answers(lists, asked, temperature)
    errors_m = np.nan_to_num(errors_m, nan=np.inf)
    found = Examples(
        features=features,
        errors_m=errors_m,
        right=errors_m <= RADIUS_M,
        elsewhere=~lists.covered,
        folds=folds,
    )
    return found.take(which & np.isfinite(lists.similarities[:, 0]))


def _concatenated(parts: Sequence[Examples]) -> Examples:
    names = ("features", "errors_m", "right", "elsewhere", "folds")
    return Examples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
