"""Which photos of an index are located for its calibration, and which share of new photos is expected to be like them.

The confidence must hold for new photos.  The photos of an index say little about these in two cases:

* **The model was trained on them.**  Such a photo is recognized more easily than a new one.  If the index has enough
  other photos, only those are used, unless their answers are too few or all in one area.
* **They show each place once.**  Photos of one capture have the same light and camera; new photos mostly do not.  If
  the sites are far apart, a photo is located without the others of its own site, which is harder than locating a new
  photo.  A model that was trained on other photos of this capture has also learned its light and camera.

The model's card has the matches of its validation queries, which are new photos of other places: `seen_photos` uses
them as examples, and changes the similarities of photos of the index to theirs.  All new photos are
expected to be like validation queries if the index contains training photos only, or photos of one capture next to
training photos.  For an index of a capture that was not trained on, half of the new photos are expected to be like
validation queries, and half like the photos of the index as they are (docs/lab.md compares both with new photos).
Legend: I photos of the index, N some of them.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cosplace.engines.encoder import Encoder
from cosplace.errors import ConfigError, CosPlaceError, one_line
from cosplace.geo import ecef_from_lla
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.records import Columns
from cosplace.localization.leave_one_out import BLOCK_ROWS, squared_distances
from cosplace.models.training_card import MIN_UNSEEN, USUAL_SIZE, TrainingCard, ValidationMatches, read_training_card
from cosplace.models.views import NATIVE, SHORT_SIDE, how_described
from cosplace.photos.opening import NUM_MEASURED, typical_side
from cosplace.photos.paths import path_from_text, printable
from cosplace.photos.viewpoints import SEEN, UNDECIDED, UNSEEN, Viewpoints
from cosplace.retrieval.recall import RADIUS_M

SECONDS_PER_YEAR = 365 * 86_400
MAX_REVISITED = 500  # photos for which other photos within 25 m are searched for
MIN_VALIDATION = 50  # validation queries with positives
MIN_KNOWN_TIMES = 0.5  # share of photos that must have a capture time
LIKE_ONE_CAPTURE = 0.5  # share of new photos that are expected to be like those of an index of one capture
MAX_SIZE_RATIO = 1.25  # between the usual sizes of photos that keep theirs, to be compared with each other
ENOUGH_REVISITED = 0.9  # share of photos; with more, new photos are like those of the index

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Photos of an index to locate, and how to correct for their differences from new photos."""

    rows: np.ndarray  # (N,) int64, rows in the index
    is_training: bool = False  # they are training photos of the model
    matches: ValidationMatches | None = None  # of the model, if they are needed and known
    like_index: float = 1.0  # share of new photos, 0 to 1, that are expected to be like these photos; 1 without matches
    facts: Mapping[str, Any] = field(default_factory=dict)  # to store with the calibration
    otherwise: "Choice | None" = None  # what to locate if these photos cannot calibrate the index


def choose_photos(index: PhotoIndex, encoder: Encoder | None, columns: Columns, located: np.ndarray) -> Choice:
    """Choose among the photos that have a position, located (I,); warn if the confidence will be too high."""
    try:
        card = _training_card(index, encoder)
    except CosPlaceError as error:
        log.warning(
            "%s If the model was trained on photos of this index, its confidence is too high for new photos.", error
        )
        return Choice(rows=located, facts={"training_photos": "unknown"})
    if card is None:
        model = path_from_text(index.spec.model if encoder is None else encoder.name)
        if model.suffix.lower() not in (".pth", ".safetensors"):  # a model of the zoo: its training set is published
            return Choice(rows=located)
        log.warning(
            "%s has no list of the photos that it was trained on. If some are in the index, its confidence is too high "
            "for new photos. If you trained it, use the .safetensors of the run, or keep it next to this file.",
            printable(model),
        )  # fmt: skip
        return Choice(rows=located, facts={"training_photos": "unknown"})
    points = Viewpoints(
        latitudes=columns.latitudes[located],
        longitudes=columns.longitudes[located],
        headings=columns.headings[located],
        times=columns.times[located],
    )
    status = card.photos.status(points)
    seen, unseen, decided = located[status == SEEN], located[status == UNSEEN], located[status != UNDECIDED]
    share = len(seen) / max(1, len(decided))
    facts: dict[str, Any] = {"num_training_photos": round(share * len(located))}
    is_held_out = np.zeros(len(unseen), bool)
    if card.held_out is not None and len(seen):
        is_held_out = card.held_out.status(points)[status == UNSEEN] == SEEN
    if (num_held_out := int(is_held_out.sum())) >= MIN_UNSEEN:
        unseen, facts["num_held_out"] = _like_the_index(unseen, is_held_out, len(seen)), num_held_out
    matches = card.matches if card.matches is not None and len(card.matches) >= MIN_VALIDATION else None
    if not len(seen):
        return _of_other_photos(index, columns, located, seen, matches, facts)
    if len(unseen) >= MIN_UNSEEN:
        choice = _of_other_photos(index, columns, unseen, seen, matches, facts | {"correction": "left out"})
        if matches is None or _difference(index, matches):
            return choice
        return replace(choice, otherwise=_of_training_photos(columns, seen, matches, facts))
    if matches is not None:
        _warn_of_difference(index, matches)
        return _of_training_photos(columns, seen, matches, facts)
    log.warning(
        "%s of %s photos of the index were used to train its model, so its confidence is too high for new photos. Use "
        "`cosplace index calibrate %s --queries FOLDER` with other photos.",
        f"{facts['num_training_photos']:,}", f"{len(located):,}", index.address,
    )  # fmt: skip
    return Choice(rows=located, facts=facts | {"correction": "none"})


def _like_the_index(unseen: np.ndarray, is_held_out: np.ndarray, num_seen: int) -> np.ndarray:
    """Some of the photos that were not trained on, rows (U,), so that they are like all photos of the index.

    Those that were held out, is_held_out (U,), stand for the training photos.  The others mostly are in classes that
    were too small to train on, at the edges of the area, and harder to locate: as many of them are taken.
    """
    held_out, others = unseen[is_held_out], unseen[~is_held_out]
    count = round(len(others) * len(held_out) / (len(held_out) + num_seen))
    return np.sort(np.concatenate([held_out, others[np.linspace(0, len(others) - 1, count).astype(np.int64)]]))


def _of_training_photos(
    columns: Columns, seen: np.ndarray, matches: ValidationMatches, facts: Mapping[str, Any]
) -> Choice:
    """Training photos (S,), and validation queries."""
    facts = {**facts, "correction": "validation", "num_validation": len(matches)}
    if (revisited := share_revisited(columns, seen)) is not None:
        facts["share_revisited"] = round(revisited, 3)
    return Choice(rows=seen, is_training=True, matches=matches, like_index=0.0, facts=facts)


def _of_other_photos(  # noqa: PLR0917
    index: PhotoIndex,
    columns: Columns,
    rows: np.ndarray,
    seen: np.ndarray,
    matches: ValidationMatches | None,
    facts: Mapping[str, Any],
) -> Choice:
    """Photos (N,) that the model was not trained on; validation queries as well if few places are shown a year apart.

    seen: (S,) rows of the training photos in the index.  If they show the same places in the same capture, the model
    has learned the light and camera of this capture, and only validation queries are like new photos.
    """
    learned = share_near(columns, rows, seen)
    if not learned and (matches is None or _difference(index, matches)):
        return Choice(rows=rows, facts=facts)
    revisited = share_revisited(columns, rows)
    if revisited is not None:
        facts = {**facts, "share_revisited": round(revisited, 3)}
    elif not learned:
        return Choice(rows=rows, facts=facts)
    if (revisited or 0.0) > ENOUGH_REVISITED:
        return Choice(rows=rows, facts=facts)
    if matches is None:
        log.warning(
            "The model was trained on %s photos of the index, and others near them may be of the same capture, so the "
            "confidence may be too high for new photos. Use `cosplace index calibrate %s --queries FOLDER` with other "
            "photos.", f"{facts['num_training_photos']:,}", index.address,
        )  # fmt: skip
        return Choice(rows=rows, facts=facts)
    _warn_of_difference(index, matches)
    like_capture = LIKE_ONE_CAPTURE * (1 - learned)
    like_index = like_capture + (1 - like_capture) * (revisited or 0.0)
    return Choice(rows=rows, matches=matches, like_index=like_index, facts={**facts, "num_validation": len(matches)})


def capture_span(times: np.ndarray) -> dict[str, float]:
    """Days between the first and the last of some photos, if all times (N,) are known."""
    if not np.isfinite(times).all():
        return {}
    years = times.astype("datetime64[s]").astype("datetime64[Y]")
    if (times == years.astype("datetime64[s]").astype(np.float64)).all():  # file names may have only the year
        return {}
    return {"days": round(float(np.ptp(times)) / 86_400, 1)}


def share_revisited(columns: Columns, rows: np.ndarray) -> float | None:
    """Share of the photos (N,) with another photo within 25 m that was captured a year or more before or after.

    Photos without a capture time are left out, and at most `MAX_REVISITED` are checked.  None if fewer than half of the
    photos have a capture time.
    """
    known = rows[np.isfinite(columns.times[rows])]
    if not len(known) or len(known) < MIN_KNOWN_TIMES * len(rows):
        return None
    return share_near(columns, known, np.arange(len(columns)), min_apart_s=SECONDS_PER_YEAR)


def share_near(columns: Columns, rows: np.ndarray, others: np.ndarray, *, min_apart_s: float = 0.0) -> float:
    """Share of the photos (N,) that have one of `others` within 25 m.  At most `MAX_REVISITED` photos are checked.

    min_apart_s: least number of seconds between their capture times; with 0, times are ignored and may be unknown.
    """
    rows = rows[:: -(-len(rows) // MAX_REVISITED)]
    points = ecef_from_lla(columns.latitudes, columns.longitudes)
    points = points - np.nanmean(points, axis=0)
    is_near = np.zeros(len(rows), bool)
    for start in range(0, len(others), BLOCK_ROWS):
        block = others[start : start + BLOCK_ROWS]
        near = squared_distances(points[rows], points[block]) <= RADIUS_M**2  # nan is not
        if min_apart_s:
            near &= np.abs(columns.times[rows][:, None] - columns.times[block][None]) >= min_apart_s
        is_near |= near.any(axis=1)
    return float(is_near.mean())


def check_adjustable(choice: Choice) -> None:
    """Raise ConfigError unless photos without positions can adjust the correction."""
    if choice.is_training:
        return
    if choice.facts.get("correction") == "none":
        raise ConfigError(
            "--unlabeled needs a model whose card has 50 validation queries with positives or more. Use --queries with "
            "photos that have positions."
        )
    if choice.facts.get("correction") == "left out":
        raise ConfigError(
            "The photos that the model was trained on are left out, so there is nothing to adjust. Omit --unlabeled."
        )
    if "num_training_photos" not in choice.facts:
        raise ConfigError(
            "--unlabeled needs to know the photos that the model was trained on, and this model has no card that lists "
            "them: keep the best_model.safetensors of the run next to best_model.pth. Or omit --unlabeled."
        )
    raise ConfigError(
        "--unlabeled is only for an index of photos that its model was trained on, and this index has none. Omit it."
    )


def _difference(index: PhotoIndex, matches: ValidationMatches) -> str:
    """How the photos of a model card were described, where the index does it in another way; "" for an unknown way."""
    here = how_described(index.spec.image_size, index.spec.views)
    there = here if matches.described is None else dict(matches.described)
    are_native = [one.get("image_size") is None for one in (here, there)]
    other = there.get("image_size") or there.get(USUAL_SIZE)  # pixels; the second, of photos that keep their size
    if other is not None and any(are_native):
        size = _native_side(index) if are_native[0] else here["image_size"]
        is_near = size is not None and other / MAX_SIZE_RATIO <= size <= other * MAX_SIZE_RATIO
        if is_near and not all(are_native):
            here, there = (_resized(one, other) for one in (here, there))
        elif size is not None and not is_near and all(are_native):
            here, there = {"photos of": f"{size} pixels"} | here, {"photos of": f"{other} pixels"} | there
    return one_line(
        "; ".join(
            f"{name} {_text(there.get(name))} instead of {_text(value)}"
            for name, value in here.items()
            if there.get(name) != value
        )
    )


def _native_side(index: PhotoIndex) -> int | None:
    """Usual shorter side of the photos of an index, in pixels."""
    columns = index.columns()
    some = np.unique(np.linspace(0, len(columns) - 1, NUM_MEASURED).astype(np.int64))
    return typical_side([path_from_text(path) for path in columns.paths(some)])


def _resized(described: Mapping[str, Any], size: int) -> dict[str, Any]:
    """How photos are described whose shorter side is about `size` pixels, whether they keep it or are resized."""
    queries = described.get("query_policy"), described.get("query_size")
    is_plain = queries in ((NATIVE, None), (SHORT_SIDE, described.get("image_size")))  # encoded like the photos
    plain = {"query_policy": SHORT_SIDE, "query_size": size} if is_plain else {}
    return {**described, "image_size": size, **plain}


def _warn_of_difference(index: PhotoIndex, matches: ValidationMatches) -> None:
    if difference := _difference(index, matches):
        log.warning(
            "The validation queries of the model were encoded differently from the photos of this index (%s), so its "
            "confidence may be too high or too low. Use `cosplace index calibrate %s --queries FOLDER` with other "
            "photos.", difference, index.address,
        )  # fmt: skip


def _text(value: Any) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _training_card(index: PhotoIndex, encoder: Encoder | None) -> TrainingCard | None:
    """What is known about the training of the model of an index; None if nothing is."""
    for model in (index.spec.model if encoder is None else encoder.name, index.spec.model):
        if (card := read_training_card(model)) is not None:
            return card
    return None
