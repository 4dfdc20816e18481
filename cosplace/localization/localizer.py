"""Photos in, locations out: encode, search, fuse the matches, compute the confidence.

>>> localizer = Localizer("indexes/city")
>>> location = localizer.locate("photo.jpg")
>>> location.latitude, location.longitude, location.radius_m, location.confidence
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.defaults import MAX_SPEED_MPS, MIN_CONFIDENCE, NUM_MATCHES
from cosplace.engines.cached import open_cached_engine
from cosplace.engines.encoder import Encoder, encoder_of
from cosplace.errors import CheckpointError, ConfigError, ImageError
from cosplace.geo import geodesic_distances_m
from cosplace.index.filters import SearchFilter
from cosplace.index.photo_index import PhotoIndex, open_index
from cosplace.index.records import Matches
from cosplace.localization.answers import Answer, Guess, Location, Match, Unreadable
from cosplace.localization.certainty import Certainty
from cosplace.localization.confidence import RADIUS_SHARE, Calibration
from cosplace.localization.fusion import Fusion, radius_with_accuracy
from cosplace.localization.sequences import estimate_track
from cosplace.localization.stored_calibration import (
    answers_uncalibrated,
    how_to_calibrate,
    needs_recalibration,
    read_calibration,
    should_calibrate_again,
)
from cosplace.localization.verdicts import GUESS_CONFIDENCE, percent_text
from cosplace.photos.opening import open_pixels
from cosplace.photos.paths import path_text
from cosplace.retrieval.recall import RADIUS_M

__all__ = [
    "Localizer",
    "distance_to_m",
    "encode_photos",
    "needs_recalibration",
    "open_index_encoder",
    "read_calibration",
    "should_calibrate_again",
]  # fmt: skip

NUM_FUSED = 50  # matches per query; a calibration holds for this number
BATCH_SIZE = 8
INTERPOLATED = "not recognized; interpolated between the frames before and after"

log = logging.getLogger(__name__)


class Localizer:
    """Finds where photos were taken, with an index of photos that have positions.

    index: the address of an index, or an open one.  device: of the model, as in `load_model`.
    min_confidence: answers below are unknown; 0.5 by default.  precision: instead of min_confidence: this share of the
    answers is correct, and this share of out-of-index photos is unknown.
    k: number of matches to report.  uncalibrated: accept an index without calibration; the confidence is then only the
    share of votes that agree.  An index that is too small to calibrate is always accepted.
    exact: compare with all photos, also in a large index.
    model, roots: where the model and the photos of the index are now, if they have moved (see `open_index`).
    engine: the program that runs the model, as in `load_model`; None for torch, or the int8 engine of the index.
    encoder: the model, if the caller has loaded it.  trust_remote_code: allow the code of a model from torch.hub.

    Raises ConfigError for an index without calibration and for a precision out of reach, PhotoIndexError for a model
    that is not the one of the index.
    `locate_descriptors` may be called from several threads.  When the index is read again (`index.refresh()`), so is
    its calibration.  If a new one is damaged or does not reach `precision`, the previous one stays in use.
    """

    def __init__(
        self,
        index: str | Path | PhotoIndex,
        *,
        device: str = "auto",
        min_confidence: float | None = None,
        precision: float | None = None,
        k: int = NUM_MATCHES,
        uncalibrated: bool = False,
        exact: bool = False,
        encoder: "Encoder | None" = None,
        trust_remote_code: bool = False,
        model: str | None = None,
        roots: Sequence[str] = (),
        engine: str | None = None,
    ) -> None:
        if min_confidence is not None and precision is not None:
            raise ConfigError("--min_confidence and --precision contradict each other. Use only one of them.")
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise ConfigError(f"--min_confidence must be from 0 to 1, got {min_confidence:.12g}. Use for example 0.5.")
        if k < 1:
            raise ConfigError(f"k must be 1 or more, got {k}.")
        self.index = index if isinstance(index, PhotoIndex) else open_index(str(index), roots=roots)
        self.device, self.k, self.exact, self.model = device, k, exact, model
        self.trust_remote_code, self.engine = trust_remote_code, engine
        self.precision, self.uncalibrated = precision, uncalibrated
        self.least_confidence = MIN_CONFIDENCE if min_confidence is None else min_confidence  # without precision
        self._certainty = self._read_certainty()
        if encoder is not None:
            self.index.check_encoder(encoder)
        self._encoder = encoder

    @property
    def encoder(self) -> Encoder:
        """The model of the index, loaded on first use."""
        if self._encoder is None:
            self._encoder = open_index_encoder(
                self.index,
                self.device,
                trust_remote_code=self.trust_remote_code,
                model=self.model,
                engine=self.engine,
            )
        return self._encoder

    # --- calibration -------------------------------------------------------------------------------------------------

    def certainty(self) -> Certainty:
        """The calibration and the threshold for the photos that the index has now."""
        version = self.index.records_version
        if version != self._certainty.version:
            try:
                self._certainty = self._read_certainty()
            except ConfigError as error:
                log.warning("The new calibration of the index cannot be used; the previous one stays in use: %s", error)
                self._certainty = replace(self._certainty, version=version, is_former=True)
        return self._certainty

    @property
    def calibration(self) -> Calibration | None:
        """The calibration in use; None for an index without one."""
        return self.certainty().calibration

    @property
    def min_confidence(self) -> float:
        """Answers below are unknown."""
        return self.certainty().min_confidence

    def _read_certainty(self) -> Certainty:
        version = self.index.records_version  # first: a change while it is read is found by the next call
        calibration = read_calibration(self.index)
        if calibration is None and not self.uncalibrated and not answers_uncalibrated(self.index):
            raise ConfigError(
                f"The index {self.index.address} has not been calibrated. Run `cosplace index calibrate "
                f"{self.index.address}`, or use --uncalibrated."
            )
        if calibration is None and self.precision is not None:
            raise ConfigError(f"--precision needs a calibrated index. {how_to_calibrate(self.index)}")
        threshold = self.least_confidence
        if calibration is not None and self.precision is not None:
            threshold = calibration.confidence_threshold(self.precision)
        return Certainty(calibration=calibration, min_confidence=threshold, version=version)

    # --- photos ------------------------------------------------------------------------------------------------------

    def locate(self, photo: Any, *, where: SearchFilter | None = None, name: str | None = None) -> Location:
        """Find where a photo was taken: a path, a PIL image, an array (H, W, 3) uint8 or a tensor (3, H, W).

        where: search only the photos of the index that match.  Raises ImageError for a photo that cannot be read.
        """
        return self.locate_descriptors(
            self.encoder.encode(photo), [_photo_name(photo) if name is None else name], where=where
        )[0]

    def locate_many(self, photos: Iterable[Any], *, where: SearchFilter | None = None) -> list[Location]:
        """Find where each photo was taken.  Raises ImageError for the first that cannot be read."""
        locations = []
        for answer in self.answers(photos, where=where):
            if isinstance(answer, Unreadable):
                raise ImageError(answer.error)
            locations.append(answer)
        return locations

    def answers(self, photos: Iterable[Any], *, where: SearchFilter | None = None) -> Iterator[Answer]:
        """Like `locate_many`, but lazily; the answer for a photo that cannot be read is Unreadable."""
        iterator = iter(photos)
        while batch := list(islice(iterator, BATCH_SIZE)):
            names = [_photo_name(photo) for photo in batch]
            descriptors, errors = encode_photos(self.encoder, batch)
            readable = [name for place, name in enumerate(names) if place not in errors]
            locations = iter(self.locate_descriptors(descriptors, readable, where=where))
            for place, name in enumerate(names):
                yield Unreadable(photo=name, error=errors[place]) if place in errors else next(locations)

    # --- descriptors -------------------------------------------------------------------------------------------------

    def locate_descriptors(
        self, descriptors: np.ndarray, names: Sequence[str] | None = None, *, where: SearchFilter | None = None
    ) -> list[Location]:
        """Find where photos were taken: descriptors (Q, D), or (Q, 5, D) of crops; names: `photo` of each answer."""
        descriptors = np.atleast_2d(np.asarray(descriptors, np.float32))
        names = [str(number) for number in range(len(descriptors))] if names is None else names
        if not len(descriptors):
            return []
        matches = self.search(descriptors, where=where)
        certainty = self.certainty()
        fusion = certainty.fuse(matches)
        return self._locations(matches, fusion, certainty.confidences(matches, fusion), names, certainty)

    def locate_sequence(
        self,
        descriptors: np.ndarray,
        names: Sequence[str],
        times_s: Sequence[float] | np.ndarray,
        *,
        max_speed_mps: float = MAX_SPEED_MPS,
        where: SearchFilter | None = None,
    ) -> list[Location]:
        """Find where the frames of one camera were taken: descriptors (T, D), times (T,) in seconds, ascending.

        descriptors: also (T, 5, D), of crops.  The positions follow a track on which the camera moves at most at
        max_speed_mps.  Raises ConfigError.
        """
        descriptors = np.atleast_2d(np.asarray(descriptors, np.float32))
        if not len(descriptors) == len(names) == len(times_s):
            raise ConfigError(
                f"Each frame needs a descriptor, a name and a time, got {len(descriptors)} descriptors, {len(names)} "
                f"names and {len(times_s)} times."
            )
        if not len(descriptors):
            return []
        matches = self.search(descriptors, where=where)
        certainty = self.certainty()
        fusion = certainty.fuse(matches)
        track = estimate_track(
            fusion,
            matches.latitudes,
            matches.longitudes,
            certainty.confidences(matches, fusion),
            np.asarray(times_s, np.float64),
            max_speed_mps=max_speed_mps,
        )
        lost = np.isnan(track.latitudes)
        distances_m = geodesic_distances_m(
            matches.latitudes, matches.longitudes, track.latitudes[:, None], track.longitudes[:, None]
        )
        on_track = replace(
            fusion,
            latitudes=np.where(lost, fusion.latitudes, track.latitudes),
            longitudes=np.where(lost, fusion.longitudes, track.longitudes),
            distances_m=np.where(lost[:, None], fusion.distances_m, distances_m),
        )
        locations = self._locations(matches, on_track, track.confidences, names, certainty)
        return [
            replace(location, reason=INTERPOLATED) if is_interpolated and not location.unknown else location
            for location, is_interpolated in zip(locations, track.interpolated, strict=True)
        ]

    def search(self, descriptors: np.ndarray, *, where: SearchFilter | None = None) -> Matches:
        """Find the matches that answers are computed from; more than are reported."""
        return self.index.search(descriptors, max(self.k, NUM_FUSED), where=where, exact=self.exact)

    def fuse(self, matches: Matches) -> Fusion:
        """Compute the positions of queries from their matches."""
        return self.certainty().fuse(matches)

    def confidences(self, matches: Matches, fusion: Fusion) -> np.ndarray:
        """Compute the confidences (Q,) of fused positions."""
        return self.certainty().confidences(matches, fusion)

    def _locations(
        self,
        matches: Matches,
        fusion: Fusion,
        confidences: np.ndarray,
        names: Sequence[str],
        certainty: Certainty,
    ) -> list[Location]:
        calibration = certainty.calibration
        radii_m = np.full(len(names), np.nan) if calibration is None else calibration.radius_m(confidences)
        radii_m = radius_with_accuracy(radii_m, fusion.accuracies_m, RADIUS_SHARE)
        unknown = np.isnan(fusion.latitudes) | (confidences < certainty.min_confidence)
        guesses = [
            _guess(fusion, row, float(confidences[row]), radii_m, certainty) if unknown[row] else None
            for row in range(len(names))
        ]
        return [
            Location(
                photo=name,
                latitude=None if unknown[row] else float(fusion.latitudes[row]),
                longitude=None if unknown[row] else float(fusion.longitudes[row]),
                radius_m=None if unknown[row] else _none_if_nan(radii_m[row]),
                confidence=float(confidences[row]),
                unknown=bool(unknown[row]),
                reason=self._reason(matches, fusion, row, float(confidences[row]), certainty),
                neighbours=_reported_matches(
                    matches, fusion, row, self.k, has_place=not unknown[row] or guesses[row] is not None
                ),
                calibrated=calibration is not None,
                guess=guesses[row],
            )
            for row, name in enumerate(names)
        ]

    def _reason(self, matches: Matches, fusion: Fusion, row: int, confidence: float, certainty: Certainty) -> str:
        num_matches = int((matches.ids[row] >= 0).sum())
        if num_matches == 0:
            return "no photo of the index matches the filter" if len(self.index) else "the index is empty"
        if np.isnan(fusion.latitudes[row]):
            return f"none of the {num_matches} most similar photos has a position"
        if confidence < certainty.min_confidence:
            accuracy_m = fusion.accuracies_m[row]
            why = f"; the positions of its matches have an error of {accuracy_m:.0f} m" if accuracy_m > RADIUS_M else ""
            mark = " (uncalibrated)" if certainty.calibration is None else ""
            threshold = f"{100 * certainty.min_confidence:.4g}%"
            return f"confidence {percent_text(confidence)}{mark}, the threshold is {threshold}{why}"
        return f"uncalibrated: {percent_text(confidence)} of the votes agree" if certainty.calibration is None else ""


def _guess(fusion: Fusion, row: int, confidence: float, radii_m: np.ndarray, certainty: Certainty) -> Guess | None:
    if np.isnan(fusion.latitudes[row]) or (certainty.calibration is not None and confidence < GUESS_CONFIDENCE):
        return None
    return Guess(
        latitude=float(fusion.latitudes[row]),
        longitude=float(fusion.longitudes[row]),
        radius_m=_none_if_nan(radii_m[row]),
    )


def _photo_name(photo: Any) -> str:
    path = photo if isinstance(photo, str | Path) else getattr(photo, "filename", "")
    return path_text(path) if path else "photo"


def _reported_matches(matches: Matches, fusion: Fusion, row: int, k: int, *, has_place: bool) -> tuple[Match, ...]:
    """The first k matches of one query; with distances if there is an answer or a guess to measure them from."""
    return tuple(
        Match(
            id=int(matches.ids[row, rank]),
            path=matches.paths[row][rank],
            name=matches.names[row][rank],
            latitude=_none_if_nan(matches.latitudes[row, rank]),
            longitude=_none_if_nan(matches.longitudes[row, rank]),
            heading=_none_if_nan(matches.headings[row, rank]),
            similarity=float(matches.similarities[row, rank]),
            distance_m=_none_if_nan(fusion.distances_m[row, rank]) if has_place else None,
            accuracy_m=_none_if_nan(matches.accuracies_m[row, rank]),
        )
        for rank in range(min(k, matches.ids.shape[1]))
        if matches.ids[row, rank] >= 0
    )


def _none_if_nan(value: np.floating) -> float | None:
    return None if math.isnan(value) else float(value)


def encode_photos(encoder: Encoder, photos: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
    """What `encoder` gives for the photos that can be read, in order, and the errors of the others by their place."""
    opened: list[Any] = []
    errors: dict[int, str] = {}
    for place, photo in enumerate(photos):
        try:
            opened.append(open_pixels(photo) if isinstance(photo, str | Path) else photo)
        except ImageError as error:
            errors[place] = str(error)
    try:
        return encoder.encode(opened), errors
    except ImageError:  # an object in memory that is not a photo: find out which
        rows, errors = [encoder.encode([])], {}
        for place, photo in enumerate(photos):
            try:
                rows.append(encoder.encode(photo))
            except ImageError as error:
                errors[place] = str(error)
        return np.concatenate(rows), errors


def open_index_encoder(
    index: PhotoIndex,
    device: str = "auto",
    *,
    trust_remote_code: bool = False,
    model: str | None = None,
    engine: str | None = None,
) -> Encoder:
    """Open the model of an index.  model: its name or path now, if it has moved; an open writer records it.

    engine: the program that runs it, as in `load_model`; None for torch, or the int8 engine of the index.  An exported
    file that is in the cache is opened without the model, and without torch.
    Raises the errors of `open_model` and `open_engine`, and PhotoIndexError if the model has changed, or for an engine
    whose descriptors do not agree with those of the index.
    """
    spec, source = index.spec, index.spec.model if model is None else model
    name = spec.choose_engine(engine, index.address)
    if model is None:
        cached = open_cached_engine(
            name,
            spec.checksum,
            image_size=spec.image_size,
            scales=spec.views.scales,
            flip=spec.views.flip,
            file_sha256=spec.engine_file,
            device=device,
        )
        if cached is not None:
            return Encoder(cached, name=source, image_size=spec.image_size, views=spec.views)
    if model is None and Path(source).is_absolute() and not Path(source).exists():
        raise CheckpointError(
            f"The model of {index.address} no longer exists at {source}.", "use --model with its new path"
        )
    from cosplace.models.opening import open_model
    from cosplace.models.reduction import first_dimensions

    network = open_model(source, trust_remote_code=trust_remote_code)
    if getattr(network, "fc_output_dim", 0) > spec.dimension:  # the index has only its first dimensions
        with suppress(ConfigError):  # its dimensions have no order: it is another model, which check_encoder reports
            network = first_dimensions(network, spec.dimension)
    encoder = encoder_of(
        network,
        source,
        image_size=spec.image_size,
        device=device,
        views=spec.views,
        engine=name,
        file_sha256=spec.engine_file,
    )
    index.check_encoder(encoder)
    if model is not None and index.can_write:
        index.set_model(encoder.name)
    return encoder


def distance_to_m(location: Location, latitude: float, longitude: float) -> float | None:
    """Meters from an answer to a position, such as the one in EXIF; None for an unknown location."""
    if location.latitude is None or location.longitude is None:
        return None
    return float(geodesic_distances_m(location.latitude, location.longitude, latitude, longitude))
