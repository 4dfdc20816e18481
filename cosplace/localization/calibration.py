"""Calibrate the confidence of an index.

Photos of the index are located as if they were new.  The photo itself is hidden, and so is all that was captured at the
same place and time.  Some of the photos are also encoded again in other light and another crop, because photos of users
are less similar to the index than photos of one drive are to each other.  Out-of-index photos are the same photos with
all photos within 100 m hidden, and images that show no place.

`chosen_photos` decides which photos are located, and whether validation queries of the model are used as well: a photo
that the model was trained on is recognized more easily than a new one, and photos of one capture are more similar to
each other than to new ones.  `seen_photos` corrects for both, and `resemblance` adjusts the correction for training
photos to new photos without positions.  Photos that are not in the index can be used instead.
Legend: I photos of the index, N queries or examples, K matches.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cosplace.engines.encoder import Encoder
from cosplace.errors import ConfigError
from cosplace.geo import geodesic_distances_m
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.records import Columns
from cosplace.localization.areas import Placement, areas_of, folds_of
from cosplace.localization.chosen_photos import Choice, capture_span, check_adjustable, choose_photos
from cosplace.localization.confidence import (
    Calibration,
    Examples,
    as_record,
    check_examples,
    fit_calibration,
)
from cosplace.localization.fusion import AGREE_M, TEMPERATURE, fuse
from cosplace.localization.leave_one_out import BLOCK_ROWS, find_matches
from cosplace.localization.localizer import NUM_FUSED, open_index_encoder
from cosplace.localization.queries import (
    Queries,
    altered_queries,
    described_queries,
    photos_of_folder,
    queries_of_folder,
    queries_of_index,
    queries_without_place,
)
from cosplace.localization.resemblance import mix_examples, share_like_training
from cosplace.localization.seen_photos import QueryMatches, num_corrected_queries, unseen_matches
from cosplace.localization.signals import compute_signals
from cosplace.localization.stored_calibration import (
    CALIBRATION_RECORD,
    FAILED_RECORD,
    MIN_PHOTOS,
    exact_rows,
    read_calibration,
)
from cosplace.localization.stored_views import StoredViews
from cosplace.models.training_card import ValidationMatches
from cosplace.photos.paths import path_text
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.recall import RADIUS_M

NUM_QUERIES = 2000  # photos of the index
NUM_ALTERED = 500  # of them, to encode again in other light and another crop
NUM_ALTERED_HELD_OUT = 100  # if photos that were held out of the training are located, as these are few
ENOUGH_WRONG = 20  # wrong answers to held-out photos; from then on, none is altered, as confidence was too low
NUM_CROPPED = 1000  # photos of the index if all are encoded again, because a query has several crops
NUM_CHECKED = 400  # photos of the index that mostly show that there are enough examples
TEMPERATURES = (0.02, 0.03, 0.04, 0.06)
MAX_COMPARED_ERROR_M = 50.0  # larger errors count as this when temperatures are compared

log = logging.getLogger(__name__)


def calibrate(
    index: PhotoIndex,
    *,
    encoder: Encoder | None = None,
    queries: str | Path | None = None,
    unlabeled: str | Path | None = None,
    num_queries: int = NUM_QUERIES,
    num_altered: int = NUM_ALTERED,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = no_progress,
) -> Calibration:
    """Calibrate an index that is open for writing, and store the result with it.

    encoder: the model of the index, opened if not given.
    queries: folder of photos with positions, neither in the index nor in the training set of the model, to use instead
    of the photos of the index.
    unlabeled: folder of new photos of the area, without positions, to adjust the correction for training photos to.
    num_altered: photos to encode again in other light and another crop; with 0, no model is needed, but the confidence
    of photos of users is less reliable; at most NUM_ALTERED_HELD_OUT if photos that were held out of the training are
    located, or none if ENOUGH_WRONG of these are located wrongly.  With the query policies nearest_crop and
    maj_voting, all photos that are located, at most NUM_CROPPED of the index, are encoded again.
    What is encoded is stored every half minute until the calibration ends; one that was stopped continues with it.
    Raises ConfigError for an index with too few photos or places.
    """
    started, stored = time.perf_counter(), StoredViews(index)
    try:
        calibration = compute_calibration(
            index,
            encoder=encoder,
            queries=queries,
            unlabeled=unlabeled,
            num_queries=num_queries,
            num_altered=num_altered,
            device=device,
            seed=seed,
            progress=progress,
            stored=stored,
        )
    except ConfigError as error:
        if queries is None and unlabeled is None and read_calibration(index) is None:
            # The index still answers, marked as uncalibrated: advice to calibrate it would not help.
            index.write_record(FAILED_RECORD, {"num_photos": len(index), "reason": str(error)})
            stored.remove()
        raise
    record = as_record(calibration)
    record["about"] |= {"seconds": round(time.perf_counter() - started, 1)}
    index.write_record(CALIBRATION_RECORD, record)
    stored.remove()
    return calibration


def compute_calibration(
    index: PhotoIndex,
    *,
    encoder: Encoder | None = None,
    queries: str | Path | None = None,
    unlabeled: str | Path | None = None,
    num_queries: int = NUM_QUERIES,
    num_altered: int = NUM_ALTERED,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = no_progress,
    stored: StoredViews | None = None,
) -> Calibration:
    """Like `calibrate`, but store nothing, except in `stored`."""
    _check_arguments(queries, unlabeled, num_queries, num_altered, seed)
    rng = np.random.default_rng([seed, 25])
    columns = index.columns()
    located = _located_rows(columns)
    log.info("calibrating the confidence: photos of %s are located as if they were new", queries or "the index")
    # These keys are stored with the index.
    counts = dict.fromkeys(("num_queries", "num_described_anew", "num_non_places"), 0)
    about: dict[str, Any] = {"num_photos": len(columns), **capture_span(columns.times[located]), **counts}
    choice, new = Choice(rows=located), None
    with_images_without_place = queries is not None or num_altered > 0
    if queries is not None:
        encoder = open_index_encoder(index, device) if encoder is None else encoder
        parts, num_altered = [queries_of_folder(index, Path(queries), encoder, num_queries, rng, progress)], 0
        about |= {"queries": path_text(queries)}
    else:
        choice = _chosen(index, encoder, columns, located, seed)
        about |= choice.facts
        if unlabeled is not None:  # before the index is searched: they may be too few
            check_adjustable(choice)
            encoder = open_index_encoder(index, device) if encoder is None else encoder
            new = _new_photos(index, Path(unlabeled), encoder, seed, progress)
        elif choice.matches is not None and choice.like_index == 0:
            num_queries = min(num_queries, num_corrected_queries(choice.matches))
            num_altered = 0  # the similarities are already those of new photos
        elif "num_held_out" in choice.facts:
            num_altered = min(num_altered, NUM_ALTERED_HELD_OUT)
        if has_crops := index.spec.views.num_descriptors > 1:
            encoder = open_index_encoder(index, device) if encoder is None else encoder
        rows = np.sort(rng.permutation(choice.rows)[: min(num_queries, NUM_CROPPED) if has_crops else num_queries])
        check_seed = seed if num_altered and not choice.is_training else None
        parts = [_photos_of_index(index, encoder, columns, rows, check_seed, progress, stored)]
    about["num_queries"] = len(parts[0].rows)
    num_altered = min(num_altered, len(parts[0].rows))
    if num_altered and "num_held_out" in choice.facts and _num_wrong(index, columns, parts[0]) >= ENOUGH_WRONG:
        num_altered = 0
    if num_altered:
        encoder = open_index_encoder(index, device) if encoder is None else encoder
        altered_rows = np.sort(rng.permutation(parts[0].rows)[:num_altered])
        parts.append(altered_queries(index, encoder, columns, altered_rows, rng, progress, stored))
        about["num_described_anew"] = len(parts[-1].rows)
    if with_images_without_place:
        parts.append(queries_without_place(encoder or open_index_encoder(index, device), rng))
        about["num_non_places"] = len(parts[-1].rows)
    examples, temperature, share = _examples_of(index, columns, parts, choice, new, num_altered, rng, progress)
    if new is not None:
        about |= {"unlabeled": path_text(unlabeled or ""), "num_unlabeled": len(new.rows), "share_like_training": share}
    elif choice.matches is not None and not choice.is_training:
        about |= {"share_like_index": share}
    about |= {
        "num_examples": len(examples.correct),
        "num_right": int(examples.correct.sum()),
        "num_elsewhere": int(examples.out_of_index.sum()),
        "seed": seed,
    }
    measured = _measured_on_new_photos(examples, about)
    return fit_calibration(measured, temperature=temperature, agree_m=AGREE_M, about=about)


def _located_rows(columns: Columns) -> np.ndarray:
    """Rows (I,) of the photos with an exact position.  Raises ConfigError if they are too few."""
    located = exact_rows(columns)
    if len(located) < MIN_PHOTOS:
        num_inexact = int(np.isfinite(columns.latitudes).sum()) - len(located)
        inexact = f", and {num_inexact:,} whose position has an error above {RADIUS_M:g} m" if num_inexact else ""
        raise ConfigError(
            f"Calibration needs {MIN_PHOTOS} photos with a position, the index has {len(located)}{inexact}. Add at "
            f"least {MIN_PHOTOS - len(located)} more{' with a smaller error' if num_inexact else ''}."
        )
    return located


def _photos_of_index(  # noqa: PLR0917
    index: PhotoIndex,
    encoder: Encoder | None,
    columns: Columns,
    rows: np.ndarray,
    seed: int | None,
    progress: Progress,
    stored: StoredViews | None,
) -> Queries:
    """Some photos of the index, encoded again if a query has several crops.  seed: to check that there are enough."""
    if index.spec.views.num_descriptors == 1:
        queries = queries_of_index(columns, rows, index.descriptors(columns.ids[rows]).astype(np.float32))
    else:
        assert encoder is not None
        queries = described_queries(
            index, encoder, columns, rows, lambda _, pixels: pixels, progress, name="as they are", stored=stored
        )
    if seed is not None and len(columns) <= BLOCK_ROWS:
        _check_queries(index, columns, queries, seed)
    return queries


def _chosen(index: PhotoIndex, encoder: Encoder | None, columns: Columns, located: np.ndarray, seed: int) -> Choice:
    """The photos to locate: training photos and validation queries if the others cannot calibrate a small index."""
    choice = choose_photos(index, encoder, columns, located)
    rows = choice.rows
    if choice.otherwise is None or len(columns) > BLOCK_ROWS or len(rows) > NUM_QUERIES:
        return choice
    queries = queries_of_index(columns, rows, index.descriptors(columns.ids[rows]).astype(np.float32))
    try:
        _check_queries(index, columns, queries, seed)
    except ConfigError:
        return choice.otherwise
    return choice


def _check_queries(index: PhotoIndex, columns: Columns, queries: Queries, seed: int) -> None:
    """Raise ConfigError if the examples of these photos of the index are too few, before photos are encoded again.

    A few hundred of them mostly show that they are not.
    """
    for step in sorted({1, max(1, len(queries.rows) // NUM_CHECKED)}, reverse=True):
        some = _rows(queries, np.arange(0, len(queries.rows), step))
        found = find_matches(index, columns, some, no_progress, 0, None)
        try:
            check_examples(all_examples(found, some, None, np.random.default_rng(seed))[0])
            return
        except ConfigError:
            if step == 1:
                raise


def _num_wrong(index: PhotoIndex, columns: Columns, queries: Queries) -> int:
    """How many of some photos of the index, about NUM_CHECKED at most, are located wrongly as if they were new."""
    some = _rows(queries, np.arange(0, len(queries.rows), max(1, len(queries.rows) // NUM_CHECKED)))
    found, _ = find_matches(index, columns, some, no_progress, 0, None)
    _, errors_m = _answers(found, some.latitudes, some.longitudes, TEMPERATURE)
    return int((found.in_index & ~(errors_m <= RADIUS_M)).sum())


def _measured_on_new_photos(examples: Examples, about: Mapping[str, Any]) -> Examples:
    """The examples; none is measured if there are no new photos with known positions, or not of the kind expected."""
    if about.get("correction") == "none" or "unlabeled" in about:
        return replace(examples, measured=np.zeros_like(examples.measured))
    return examples


def _new_photos(index: PhotoIndex, folder: Path, encoder: Encoder, seed: int, progress: Progress) -> Queries:
    return photos_of_folder(index, folder, encoder, NUM_QUERIES, np.random.default_rng([seed, 26]), progress)


def _check_arguments(
    queries: str | Path | None, unlabeled: str | Path | None, num_queries: int, num_altered: int, seed: int
) -> None:
    if min(num_queries, num_altered + 1, seed + 1) < 1:
        raise ConfigError(
            f"num_queries must be 1 or more, num_altered and seed 0 or more, got {num_queries}, {num_altered}, {seed}."
        )
    if queries is not None and unlabeled is not None:
        raise ConfigError("Photos with positions need no others. Use --queries or --unlabeled, not both.")


T = TypeVar("T", Queries, QueryMatches, Examples)


def _concatenate(parts: Sequence[T]) -> T:
    columns = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(parts[0])}
    return type(parts[0])(**columns)


def _rows(table: T, rows: np.ndarray) -> T:
    return type(table)(**{field.name: getattr(table, field.name)[rows] for field in fields(table)})


# --- examples --------------------------------------------------------------------------------------------------------


def all_examples(
    found: tuple[QueryMatches, QueryMatches],
    queries: Queries,
    correction: ValidationMatches | None,
    rng: np.random.Generator,
) -> tuple[Examples, float, Placement]:
    """The examples to learn from, the temperature of their votes, and the placement of the queries."""
    as_new, out_of_index = found
    latitudes, longitudes = queries.latitudes, queries.longitudes
    if correction is not None:
        unseen, unseen_latitudes, unseen_longitudes = unseen_matches(correction, NUM_FUSED)
        temperature = _best_temperature(unseen, unseen_latitudes, unseen_longitudes, unseen.in_index)
        nowhere = np.full_like(unseen.similarities, -np.inf)  # they have no out-of-index matches
        width = as_new.similarities.shape[1]
        as_new = _concatenate([as_new, unseen.take(slice(width))])
        out_of_index = _concatenate([out_of_index, unseen.take(slice(width), similarities=nowhere)])
        latitudes = np.concatenate([latitudes, unseen_latitudes])
        longitudes = np.concatenate([longitudes, unseen_longitudes])
    else:
        temperature = _best_temperature(as_new, latitudes, longitudes, np.isfinite(latitudes) & as_new.in_index)
    shows_place, areas = np.isfinite(latitudes), areas_of(latitudes, longitudes)
    is_measured = np.arange(len(areas)) >= (0 if correction is None else len(queries.rows))
    placement = Placement(areas=areas, folds=folds_of(areas, rng), measured=is_measured)
    everywhere = np.ones_like(shows_place)
    examples = _concatenate(
        [
            _examples(as_new, latitudes, longitudes, placement, temperature, shows_place),
            _examples(out_of_index, latitudes, longitudes, placement, temperature, everywhere),
        ]
    )
    return examples, temperature, placement.take(np.arange(len(queries.rows)))


def _examples_of(  # noqa: PLR0917
    index: PhotoIndex,
    columns: Columns,
    parts: Sequence[Queries],
    choice: Choice,
    new: Queries | None,
    num_altered: int,
    rng: np.random.Generator,
    progress: Progress,
) -> tuple[Examples, float, float]:
    """The examples, the temperature of their votes, and the share of new photos expected to be like those of the index.

    parts: photos of the index or of a folder first, then altered ones and images without a place.  new: photos without
    positions, if there are any; the share is estimated from them.
    """
    queries, located, share = _concatenate(parts), parts[0], choice.like_index
    correction = choice.matches if new is None and share == 0 else None
    found = find_matches(index, columns, queries, progress, num_altered, correction)
    examples, temperature, placement = all_examples(found, queries, correction, rng)
    if choice.matches is None or correction is not None:
        return examples, temperature, share
    # Without training photos, the photos of the index must suffice by themselves: validation queries only add to them.
    examples = examples.answered() if choice.is_training else check_examples(examples)
    of_places = examples.take(~examples.out_of_index)
    rows = np.sort(rng.permutation(len(located.rows))[: num_corrected_queries(choice.matches)])
    some, where = _rows(located, rows), placement.take(rows)
    corrected, _ = find_matches(index, columns, some, no_progress, 0, choice.matches)
    where = replace(where, measured=np.zeros_like(where.measured))
    like_validation = _examples(corrected, some.latitudes, some.longitudes, where, temperature, some.shows_place)
    like_validation = like_validation.take(~like_validation.out_of_index).answered()
    if not len(of_places.correct):
        share = 0.0
    elif new is not None:
        of_index = _rows(found[0], np.arange(len(located.rows)))
        of_new, _ = find_matches(index, columns, new, no_progress, 0, None)
        signals = [_signals(matches, temperature) for matches in (of_index, corrected, of_new)]
        share = share_like_training(*signals) if all(map(len, signals)) else 0.0
    elif len(like_validation.correct) and like_validation.correct.mean() > of_places.correct.mean():
        share = 0.0  # new photos are easier than these, because their nearest matches are not hidden
    unseen, *at = unseen_matches(choice.matches, NUM_FUSED)
    areas, everywhere = areas_of(*at), np.ones(len(at[0]), bool)
    elsewhere = Placement(areas=areas + placement.areas.max() + 1, folds=folds_of(areas, rng), measured=everywhere)
    unseen = unseen.take(slice(corrected.similarities.shape[1]))
    like_validation = _concatenate([like_validation, _examples(unseen, *at, elsewhere, temperature, everywhere)])
    return mix_examples(like_validation, examples, 1 - share, rng), temperature, round(share, 3)


def _signals(matches: QueryMatches, temperature: float) -> np.ndarray:
    """The signals (N', F) of the queries that have an answer."""
    signals, _ = _answers(matches, *np.zeros((2, len(matches.similarities))), temperature)
    return signals[np.isfinite(signals).all(axis=1)]


def _answers(
    matches: QueryMatches, latitudes: np.ndarray, longitudes: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Signals (N, F) and errors (N,) in meters of the answers."""
    fusion = fuse(
        matches.similarities,
        matches.latitudes,
        matches.longitudes,
        accuracies_m=matches.accuracies_m,
        temperature=temperature,
        agree_m=AGREE_M,
    )
    errors_m = geodesic_distances_m(fusion.latitudes, fusion.longitudes, latitudes, longitudes)
    return compute_signals(matches.similarities, fusion), errors_m


def _best_temperature(matches: QueryMatches, latitudes: np.ndarray, longitudes: np.ndarray, which: np.ndarray) -> float:
    """The lowest temperature whose mean error exceeds that of the best one by no more than a standard error."""
    if not which.any():
        return TEMPERATURE
    errors_m = np.stack(
        [_answers(matches, latitudes, longitudes, temperature)[1][which] for temperature in TEMPERATURES]
    )
    costs = np.minimum(np.nan_to_num(errors_m, nan=MAX_COMPARED_ERROR_M), MAX_COMPARED_ERROR_M)
    excess = costs - costs[costs.mean(axis=1).argmin()]
    is_worse = excess.mean(axis=1) > excess.std(axis=1) / np.sqrt(which.sum())
    return TEMPERATURES[int(np.argmin(is_worse))]


def _examples(  # noqa: PLR0917
    matches: QueryMatches,
    latitudes: np.ndarray,
    longitudes: np.ndarray,
    placement: Placement,
    temperature: float,
    which: np.ndarray,
) -> Examples:
    signals, errors_m = _answers(matches, latitudes, longitudes, temperature)
    errors_m = np.nan_to_num(errors_m, nan=np.inf)
    examples = Examples(
        signals=signals,
        errors_m=errors_m,
        correct=errors_m <= RADIUS_M,
        out_of_index=~matches.in_index,
        areas=placement.areas,
        folds=placement.folds,
        measured=placement.measured,
    )
    return examples.take(which & np.isfinite(matches.similarities[:, 0]))
