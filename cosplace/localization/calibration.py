"""Calibrate the confidence of an index with its own photos.

Photos of the index are located as if they were new.  The photo itself is hidden, and so is all that was captured at the
same place and time.  Some of the photos are also encoded again in other light and another crop, because photos of users
are less similar to the index than photos of one drive are to each other.  Out-of-index photos are the same photos with
all photos within 100 m hidden, and images that show no place.  Legend: I photos of the index, N queries or examples,
K matches.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from cosplace.errors import ConfigError
from cosplace.geo import ecef_from_lla, geodesic_distances_m
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.photo_pixels import photo_pixels
from cosplace.index.records import Columns
from cosplace.localization.confidence import NUM_FOLDS, Calibration, Examples, as_record, fit_calibration
from cosplace.localization.fusion import AGREE_M, TEMPERATURE, fuse
from cosplace.localization.localizer import CALIBRATION_RECORD, NUM_FUSED, open_index_encoder
from cosplace.localization.photo_changes import alter_photo, images_without_place
from cosplace.localization.signals import compute_signals
from cosplace.models.encoder import Encoder
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.recall import RADIUS_M

NUM_QUERIES = 2000  # photos of the index
NUM_ALTERED = 500  # of them, to encode again in other light and another crop
NUM_WITHOUT_PLACE = 60  # images that show no place
SAME_PLACE_M = 1.0
OUT_OF_INDEX_M = 100.0  # photos within this distance are hidden from out-of-index queries
AREA_M = 100.0  # sides of the squares whose photos share a fold
TEMPERATURES = (0.02, 0.03, 0.04, 0.06)
MAX_COMPARED_ERROR_M = 50.0  # larger errors count as this when temperatures are compared
BLOCK_ROWS = 16_384
TASK = "calibrating"


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """Photos to locate, with their true positions."""

    descriptors: np.ndarray  # (N, D) float32
    rows: np.ndarray  # (N,) int64: row of the photo in the index, -1 for an image that shows no place
    latitudes: np.ndarray  # (N,) float64, nan without a place
    longitudes: np.ndarray  # (N,) float64


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryMatches:
    """The matches of each query; -inf if there are fewer than K, nan without a position."""

    similarities: np.ndarray  # (N, K)
    latitudes: np.ndarray  # (N, K)
    longitudes: np.ndarray  # (N, K)
    in_index: np.ndarray  # (N,) bool: a photo within 25 m was not hidden


def calibrate(
    index: PhotoIndex,
    *,
    encoder: Encoder | None = None,
    num_queries: int = NUM_QUERIES,
    num_altered: int = NUM_ALTERED,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = no_progress,
) -> Calibration:
    """Calibrate an index that is open for writing, and store the result with it.

    encoder: the model of the index, opened if not given.
    num_altered: photos to encode again in other light and another crop; with 0, no model is needed, but the confidence
    of photos of users is less reliable.
    Raises ConfigError for an index with too few photos or places.
    """
    started = time.perf_counter()
    calibration = compute_calibration(
        index,
        encoder=encoder,
        num_queries=num_queries,
        num_altered=num_altered,
        device=device,
        seed=seed,
        progress=progress,
    )
    record = as_record(calibration)
    record["about"] |= {"seconds": round(time.perf_counter() - started, 1)}
    index.write_record(CALIBRATION_RECORD, record)
    return calibration


def compute_calibration(
    index: PhotoIndex,
    *,
    encoder: Encoder | None = None,
    num_queries: int = NUM_QUERIES,
    num_altered: int = NUM_ALTERED,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = no_progress,
) -> Calibration:
    """Like `calibrate`, but store nothing."""
    if min(num_queries, num_altered + 1, seed + 1) < 1:
        raise ConfigError(
            f"num_queries must be 1 or more, num_altered and seed 0 or more, got {num_queries}, {num_altered}, {seed}."
        )
    rng = np.random.default_rng([seed, 25])
    columns = index.columns()
    located = np.flatnonzero(np.isfinite(columns.latitudes) & np.isfinite(columns.longitudes))
    if len(located) < 2 * NUM_FOLDS:
        raise ConfigError(
            f"Calibration needs {2 * NUM_FOLDS} photos with a position, the index has {len(located)}. Add at least "
            f"{2 * NUM_FOLDS - len(located)} more."
        )
    rows = np.sort(rng.permutation(located)[:num_queries])
    parts = [_queries(columns, rows, index.descriptors(columns.ids[rows]).astype(np.float32))]
    num_without_place = 0
    if num_altered:
        encoder = open_index_encoder(index, device) if encoder is None else encoder
        altered_rows = np.sort(rng.permutation(rows)[:num_altered])
        parts.append(_altered_queries(index, encoder, columns, altered_rows, rng, progress))
        parts.append(_queries_without_place(encoder, rng))
        num_without_place = len(parts[-1].rows)
    queries = _concatenate(parts)
    as_new, out_of_index = _find_matches(index, columns, queries, progress, min(num_altered, len(rows)))
    folds = _folds(queries, rng)
    shows_place = queries.rows >= 0
    temperature = _best_temperature(as_new, queries, shows_place & as_new.in_index)
    examples = _concatenate(
        [
            _examples(as_new, queries, folds, temperature, shows_place),
            _examples(out_of_index, queries, folds, temperature, np.ones_like(shows_place)),
        ]
    )
    about = {
        "num_photos": len(columns),
        "num_queries": len(rows),
        "num_described_anew": len(queries.rows) - len(rows) - num_without_place,
        "num_non_places": num_without_place,
        "num_examples": len(examples.correct),
        "num_right": int(examples.correct.sum()),
        "num_elsewhere": int(examples.out_of_index.sum()),
        "seed": seed,
    }  # these keys are stored with the index
    return fit_calibration(examples, temperature=temperature, agree_m=AGREE_M, about=about)


T = TypeVar("T", Queries, Examples)


def _concatenate(parts: Sequence[T]) -> T:
    columns = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(parts[0])}
    return type(parts[0])(**columns)


# --- queries ---------------------------------------------------------------------------------------------------------


def _queries(columns: Columns, rows: np.ndarray, descriptors: np.ndarray) -> Queries:
    return Queries(
        descriptors=descriptors, rows=rows, latitudes=columns.latitudes[rows], longitudes=columns.longitudes[rows]
    )


def _altered_queries(  # noqa: PLR0917
    index: PhotoIndex,
    encoder: Encoder,
    columns: Columns,
    rows: np.ndarray,
    rng: np.random.Generator,
    progress: Progress,
) -> Queries:
    """Photos in other light and another crop; photos without a file or a thumbnail are left out."""
    kept, descriptors = [], [np.empty((0, index.spec.dimension), np.float32)]
    for number, row in enumerate(rows.tolist()):
        pixels = photo_pixels(index, int(columns.ids[row]), columns.paths([row])[0])
        if pixels is not None:
            kept.append(row)
            descriptors.append(encoder.encode(alter_photo(pixels, rng)))
        progress(TASK, number + 1, len(rows) + len(columns))
    return _queries(columns, np.array(kept, np.int64), np.concatenate(descriptors))


def _queries_without_place(encoder: Encoder, rng: np.random.Generator) -> Queries:
    images = images_without_place(NUM_WITHOUT_PLACE, rng)
    unknown = np.full(len(images), np.nan)
    return Queries(
        descriptors=encoder.encode(images),
        rows=np.full(len(images), -1, np.int64),
        latitudes=unknown,
        longitudes=unknown,
    )


def _folds(queries: Queries, rng: np.random.Generator) -> np.ndarray:
    """A fold (N,) for each query; the queries in one square on the ground share a fold."""
    has_place = queries.rows >= 0
    points = np.where(has_place[:, None], ecef_from_lla(queries.latitudes, queries.longitudes), 0.0)
    squares = np.floor(points / AREA_M).astype(np.int64)
    squares[~has_place] = np.arange(3 * int((~has_place).sum())).reshape(-1, 3) - 10**9  # a square each
    _, areas = np.unique(squares, axis=0, return_inverse=True)
    areas = areas.ravel()
    order = rng.permutation(areas.max() + 1)
    # The largest areas first, each into the smallest fold, so that folds have similar sizes.
    counts, fold_of, sizes = np.bincount(areas), np.zeros(len(order), np.int64), np.zeros(NUM_FOLDS, np.int64)
    for area in order[np.argsort(-counts[order], kind="stable")]:
        fold_of[area] = sizes.argmin()
        sizes[fold_of[area]] += counts[area]
    return fold_of[areas]


# --- matches ---------------------------------------------------------------------------------------------------------


def _find_matches(
    index: PhotoIndex, columns: Columns, queries: Queries, progress: Progress, num_altered: int
) -> tuple[QueryMatches, QueryMatches]:
    """Matches as if each photo were new, and as if its place were not in the index; one pass over the index."""
    points = ecef_from_lla(columns.latitudes, columns.longitudes)
    points = points - np.nanmean(points, axis=0)  # small numbers: their products are exact to millimeters
    shows_place = queries.rows >= 0
    own = np.maximum(queries.rows, 0)
    as_new, out_of_index = _BestMatches(len(own)), _BestMatches(len(own))
    in_index = np.zeros(len(own), bool)
    for start in range(0, len(columns), BLOCK_ROWS):
        block = np.arange(start, min(start + BLOCK_ROWS, len(columns)))
        similarities = queries.descriptors @ index.descriptors(columns.ids[block]).astype(np.float32).T
        squared_m = _squared_distances(points[own], points[block])  # nan where a position is unknown
        squared_m[~shows_place] = np.inf
        times, own_times = columns.times[block][None], columns.times[own][:, None]
        same_time = (times == own_times) | (np.isnan(times) & np.isnan(own_times))
        hidden = (queries.rows[:, None] == block[None]) | ((squared_m <= SAME_PLACE_M**2) & same_time)
        in_index |= ((squared_m <= RADIUS_M**2) & ~hidden).any(axis=1)
        as_new.add(np.where(hidden, -np.inf, similarities), start)
        out_of_index.add(np.where(hidden | (squared_m <= OUT_OF_INDEX_M**2), -np.inf, similarities), start)
        progress(TASK, num_altered + int(block[-1]) + 1, num_altered + len(columns))
    return as_new.matches(columns, in_index), out_of_index.matches(columns, np.zeros_like(in_index))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) between points (n, 3) and (m, 3)."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0.0)


class _BestMatches:
    """The NUM_FUSED best matches of each query in the blocks so far."""

    def __init__(self, num_queries: int) -> None:
        self.similarities = np.empty((num_queries, 0), np.float32)
        self.rows = np.empty((num_queries, 0), np.int64)

    def add(self, similarities: np.ndarray, start: int) -> None:
        """Add the similarities (N, n) of rows from `start` on; -inf for hidden rows."""
        similarities = np.concatenate([self.similarities, similarities], axis=1)
        num_before = self.rows.shape[1]
        best = _largest(similarities, NUM_FUSED)
        before = np.concatenate([self.rows, np.zeros((len(similarities), 1), np.int64)], axis=1)
        kept = np.take_along_axis(before, np.minimum(best, num_before), 1)
        self.rows = np.where(best < num_before, kept, best - num_before + start)
        self.similarities = np.take_along_axis(similarities, best, 1).astype(np.float32)

    def matches(self, columns: Columns, in_index: np.ndarray) -> QueryMatches:
        """The matches with their positions."""
        is_match = np.isfinite(self.similarities)
        return QueryMatches(
            similarities=self.similarities,
            latitudes=np.where(is_match, columns.latitudes[self.rows], np.nan),
            longitudes=np.where(is_match, columns.longitudes[self.rows], np.nan),
            in_index=in_index,
        )


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` largest values of each row, largest first; lower columns first among equals."""
    if values.shape[1] <= 4 * count:
        return np.argsort(-values, axis=1, kind="stable")[:, :count]
    some = np.sort(np.argpartition(-values, count, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(values, some, 1), axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)


# --- examples --------------------------------------------------------------------------------------------------------


def _answers(matches: QueryMatches, queries: Queries, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Signals (N, F) and errors (N,) in meters of the answers."""
    fusion = fuse(matches.similarities, matches.latitudes, matches.longitudes, temperature=temperature, agree_m=AGREE_M)
    errors_m = geodesic_distances_m(fusion.latitudes, fusion.longitudes, queries.latitudes, queries.longitudes)
    return compute_signals(matches.similarities, fusion), errors_m


def _best_temperature(matches: QueryMatches, queries: Queries, which: np.ndarray) -> float:
    """The lowest temperature whose mean error exceeds that of the best one by no more than a standard error."""
    if not which.any():
        return TEMPERATURE
    errors_m = np.stack([_answers(matches, queries, temperature)[1][which] for temperature in TEMPERATURES])
    costs = np.minimum(np.nan_to_num(errors_m, nan=MAX_COMPARED_ERROR_M), MAX_COMPARED_ERROR_M)
    excess = costs - costs[costs.mean(axis=1).argmin()]
    is_worse = excess.mean(axis=1) > excess.std(axis=1) / np.sqrt(which.sum())
    return TEMPERATURES[int(np.argmin(is_worse))]


def _examples(
    matches: QueryMatches, queries: Queries, folds: np.ndarray, temperature: float, which: np.ndarray
) -> Examples:
    signals, errors_m = _answers(matches, queries, temperature)
    errors_m = np.nan_to_num(errors_m, nan=np.inf)
    examples = Examples(
        signals=signals,
        errors_m=errors_m,
        correct=errors_m <= RADIUS_M,
        out_of_index=~matches.in_index,
        folds=folds,
    )
    return examples.take(which & np.isfinite(matches.similarities[:, 0]))
