"""Photos in, locations out: described, searched, fused, judged.

>>> localizer = Localizer("indexes/city")
>>> location = localizer.locate("photo.jpg")
>>> location.latitude, location.longitude, location.radius_m, location.confidence
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import ConfigError, ImageError
from cosplace.index.filters import SearchFilter
from cosplace.index.photo_index import PhotoIndex, open_index
from cosplace.index.records import Matches
from cosplace.localization.answers import Answer, Location, Match, Unreadable
from cosplace.localization.confidence import Calibration, from_record
from cosplace.localization.fusion import Fusion, fuse
from cosplace.localization.plane import ground_distances_m
from cosplace.localization.sequences import follow
from cosplace.localization.signals import features_of
from cosplace.models.encoder import Encoder, load_model
from cosplace.photos.opening import open_image

RECORD = "calibration"
NUM_NEIGHBOURS = 20  # told as evidence
NUM_SEARCHED = 50  # looked at; calibration looks at as many
LEAST_CONFIDENCE = 0.5  # an answer that is wrong more often than right is no answer
PHOTOS_AT_ONCE = 8
BRIDGED = "not recognised itself: on the way between frames that are"
OUTGROWN = 1.5  # times its size when it was calibrated
MAX_SPEED_MPS = 20.0  # 72 km/h


class Localizer:
    """Finds where photos were taken, by an index of photos with positions.

    index: the address of an index, or one that is open.  device: for the model, as `load_model` takes it.
    min_confidence, precision: answers below are unknown; at most one of them, by default a confidence of 0.5.
    precision: of the answers given this share is right, of photos from elsewhere this share is unknown.
    k: how many neighbours are told.  uncalibrated: an index without calibration is used all the same; then confidence
    is only the share of votes that agree.  exact: search all photos, also where the index is large.
    encoder: the model, where the caller has it loaded.  trust_remote_code: let a model of torch.hub run its code.

    Raises ConfigError for an index without calibration and for a precision out of reach, PhotoIndexError for a model
    that is not the index's.
    `locate_descriptors` may be called from several threads.
    """

    def __init__(
        self,
        index: str | Path | PhotoIndex,
        *,
        device: str = "auto",
        min_confidence: float | None = None,
        precision: float | None = None,
        k: int = NUM_NEIGHBOURS,
        uncalibrated: bool = False,
        exact: bool = False,
        encoder: Encoder | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if min_confidence is not None and precision is not None:
            raise ConfigError("--min_confidence and --precision contradict each other: give one of them.")
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise ConfigError(f"--min_confidence {min_confidence:g} cannot be: use a number from 0 to 1.")
        if k < 1:
            raise ConfigError(f"k is {k}: at least one neighbour is needed.")
        self.index = index if isinstance(index, PhotoIndex) else open_index(str(index))
        self.device, self.k, self.exact = device, k, exact
        self.trust_remote_code = trust_remote_code
        self.calibration = read_calibration(self.index)
        if self.calibration is None and not uncalibrated:
            raise ConfigError(
                f"The index {self.index.address} has no calibration, so no confidence can be told: run `cosplace index "
                f"calibrate {self.index.address}`, or go on with --uncalibrated."
            )
        if self.calibration is None and precision is not None:
            raise ConfigError("--precision needs a calibrated index: run `cosplace index calibrate`.")
        self.min_confidence = LEAST_CONFIDENCE if min_confidence is None else min_confidence
        if self.calibration is not None and precision is not None:
            self.min_confidence = self.calibration.least_confidence(precision)
        self._encoder = None if encoder is None else check_encoder(self.index, encoder)

    @property
    def encoder(self) -> Encoder:
        """The index's model, loaded when it is first asked for."""
        if self._encoder is None:
            self._encoder = open_index_encoder(self.index, self.device, trust_remote_code=self.trust_remote_code)
        return self._encoder

    def locate(self, photo: Any, *, where: SearchFilter | None = None, name: str | None = None) -> Location:
        """Where one photo was taken: a path, a PIL picture, an array (H, W, 3) uint8 or a tensor (3, H, W).

        where: only photos of the index that pass are searched.  Raises ImageError for a photo that cannot be opened.
        """
        return self.locate_descriptors(self.encoder.encode(photo), [_name_of(photo, name)], where=where)[0]

    def locate_many(self, photos: Iterable[Any], *, where: SearchFilter | None = None) -> list[Location]:
        """Where each of many photos was taken.  Raises ImageError for the first that cannot be opened."""
        found = []
        for answer in self.answers(photos, where=where):
            if isinstance(answer, Unreadable):
                raise ImageError(answer.error)
            found.append(answer)
        return found

    def answers(self, photos: Iterable[Any], *, where: SearchFilter | None = None) -> Iterator[Answer]:
        """As `locate_many`, batch by batch; a photo that cannot be opened is Unreadable in its place."""
        batch: list[Any] = []
        for photo in photos:
            batch.append(photo)
            if len(batch) == PHOTOS_AT_ONCE:
                yield from self._answer_batch(batch, where)
                batch = []
        yield from self._answer_batch(batch, where)

    def _answer_batch(self, photos: list[Any], where: SearchFilter | None) -> list[Answer]:
        names = [_name_of(photo, None) for photo in photos]
        rows, failures = encode_readable(self.encoder, photos)
        answers: list[Answer | None] = [None] * len(photos)
        for place, error in failures:
            answers[place] = Unreadable(photo=names[place], error=error)
        readable = [place for place, answer in enumerate(answers) if answer is None]
        if readable:
            located = self.locate_descriptors(rows, [names[place] for place in readable], where=where)
            for place, location in zip(readable, located, strict=True):
                answers[place] = location
        return [answer for answer in answers if answer is not None]

    def locate_sequence(
        self,
        descriptors: np.ndarray,
        names: Sequence[str],
        times_s: Sequence[float] | np.ndarray,
        *,
        max_speed_mps: float = MAX_SPEED_MPS,
        where: SearchFilter | None = None,
    ) -> list[Location]:
        """Where the frames of one camera were taken: descriptors (T, D) and times (T,) in seconds, ascending.

        Each is judged by what a way through all frames allows, at most so many meters per second.  Raises ConfigError.
        """
        descriptors = np.atleast_2d(np.asarray(descriptors, np.float32))
        if not len(descriptors) == len(names) == len(times_s):
            raise ConfigError(f"{len(descriptors)} frames come with {len(names)} names and {len(times_s)} times.")
        if not len(descriptors):
            return []
        neighbours = self.search(descriptors, where=where)
        fusion = self.fuse(neighbours)
        way = follow(
            fusion,
            neighbours.latitudes,
            neighbours.longitudes,
            self.confidences(neighbours, fusion),
            np.asarray(times_s, np.float64),
            max_speed_mps=max_speed_mps,
        )
        lost = np.isnan(way.latitudes)
        apart_m = ground_distances_m(
            neighbours.latitudes, neighbours.longitudes, way.latitudes[:, None], way.longitudes[:, None]
        )
        moved = replace(
            fusion,
            latitudes=np.where(lost, fusion.latitudes, way.latitudes),
            longitudes=np.where(lost, fusion.longitudes, way.longitudes),
            distances_m=np.where(lost[:, None], fusion.distances_m, apart_m),
        )
        located = self._told(neighbours, moved, way.confidences, names)
        return [
            replace(location, reason=BRIDGED) if between and not location.unknown else location
            for location, between in zip(located, way.bridged, strict=True)
        ]

    def search(self, descriptors: np.ndarray, *, where: SearchFilter | None = None) -> Matches:
        """The neighbours that answers rest on, more than are told."""
        return self.index.search(descriptors, max(self.k, NUM_SEARCHED), where=where, exact=self.exact)

    def locate_descriptors(
        self, descriptors: np.ndarray, names: Sequence[str] | None = None, *, where: SearchFilter | None = None
    ) -> list[Location]:
        """Where the photos of some descriptors (Q, D) were taken; names: what each is called in its answer."""
        descriptors = np.atleast_2d(np.asarray(descriptors, np.float32))
        names = [str(number) for number in range(len(descriptors))] if names is None else names
        if not len(descriptors):
            return []
        return self.answer_neighbours(self.search(descriptors, where=where), names)

    def answer_neighbours(self, neighbours: Matches, names: Sequence[str]) -> list[Location]:
        """Answers from lists of neighbours, as `search` finds them."""
        fusion = self.fuse(neighbours)
        return self._told(neighbours, fusion, self.confidences(neighbours, fusion), names)

    def _told(
        self, neighbours: Matches, fusion: Fusion, confidences: np.ndarray, names: Sequence[str]
    ) -> list[Location]:
        radii = np.full(len(names), np.nan) if self.calibration is None else self.calibration.radius_m(confidences)
        return [
            self._location(
                neighbours, fusion, row, name=name, confidence=float(confidences[row]), radius_m=float(radii[row])
            )
            for row, name in enumerate(names)
        ]

    def fuse(self, neighbours: Matches) -> Fusion:
        """Positions of queries from their neighbours."""
        known = {} if self.calibration is None else {
            "temperature": self.calibration.temperature, "agree_m": self.calibration.agree_m,
        }  # fmt: skip
        return fuse(neighbours.similarities, neighbours.latitudes, neighbours.longitudes, **known)

    def confidences(self, neighbours: Matches, fusion: Fusion) -> np.ndarray:
        """Confidences (Q,) of fused positions."""
        if self.calibration is None:
            return (fusion.votes * fusion.agreeing).sum(axis=1)
        return self.calibration.confidences(features_of(neighbours.similarities, fusion))

    def _location(
        self, neighbours: Matches, fusion: Fusion, row: int, *, name: str, confidence: float, radius_m: float
    ) -> Location:
        reason = self._reason(neighbours, fusion, row, confidence)
        unknown = bool(np.isnan(fusion.latitudes[row])) or confidence < self.min_confidence
        return Location(
            photo=name,
            latitude=None if unknown else float(fusion.latitudes[row]),
            longitude=None if unknown else float(fusion.longitudes[row]),
            radius_m=None if unknown or np.isnan(radius_m) else radius_m,
            confidence=confidence,
            unknown=unknown,
            reason=reason,
            neighbours=matches_of(neighbours, fusion, row, self.k),
        )

    def _reason(self, neighbours: Matches, fusion: Fusion, row: int, confidence: float) -> str:
        num_found = int((neighbours.ids[row] >= 0).sum())
        if num_found == 0:
            return "no photo of the index passes the filter" if len(self.index) else "the index is empty"
        if np.isnan(fusion.latitudes[row]):
            return f"none of the {num_found} most similar photos has a position"
        if confidence < self.min_confidence:
            return f"not sure enough (confidence {confidence:.2f}, needs {self.min_confidence:.2f})"
        return "uncalibrated: confidence is the share of votes that agree" if self.calibration is None else ""


def _name_of(photo: Any, name: str | None) -> str:
    if name is not None:
        return name
    return str(photo) if isinstance(photo, str | Path) else str(getattr(photo, "filename", "") or "photo")


def encode_readable(encoder: Encoder, photos: Sequence[Any]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Descriptors (n, D) of the photos that can be opened, in order; places of the others with what is wrong."""
    opened, failures = [], []
    for place, photo in enumerate(photos):
        try:
            opened.append(open_image(photo) if isinstance(photo, str | Path) else photo)
        except ImageError as error:
            failures.append((place, str(error)))
    try:
        return encoder.encode(opened), failures
    except ImageError:  # something in memory that is no photo: find out which
        rows, failures = [], []
        for place, photo in enumerate(photos):
            try:
                rows.append(encoder.encode(photo))
            except ImageError as error:
                failures.append((place, str(error)))
        return np.concatenate(rows) if rows else np.empty((0, encoder.dimension), np.float32), failures


def matches_of(neighbours: Matches, fusion: Fusion, row: int, k: int) -> tuple[Match, ...]:
    """The first k neighbours of one query."""
    return tuple(
        Match(
            id=int(neighbours.ids[row, place]),
            path=neighbours.paths[row][place],
            latitude=_known(neighbours.latitudes[row, place]),
            longitude=_known(neighbours.longitudes[row, place]),
            heading=_known(neighbours.headings[row, place]),
            similarity=float(neighbours.similarities[row, place]),
            distance_m=_known(fusion.distances_m[row, place]),
        )
        for place in range(min(k, neighbours.ids.shape[1]))
        if neighbours.ids[row, place] >= 0
    )


def _known(value: np.floating) -> float | None:
    return None if np.isnan(value) else float(value)


def read_calibration(index: PhotoIndex) -> Calibration | None:
    """The calibration stored with an index; None when there is none."""
    record = index.read_record(RECORD)
    return None if record is None else from_record(record)


def is_outgrown(index: PhotoIndex) -> bool:
    """Whether an index has grown, or shrunk, to another size than it was calibrated at."""
    calibration = read_calibration(index)
    calibrated_at = 0 if calibration is None else int(calibration.about.get("num_photos", 0))
    return calibrated_at > 0 and not calibrated_at / OUTGROWN <= len(index) <= calibrated_at * OUTGROWN


def open_index_encoder(index: PhotoIndex, device: str = "auto", *, trust_remote_code: bool = False) -> Encoder:
    """The model an index was built with.  Raises what `load_model` does, PhotoIndexError when it changed."""
    spec = index.spec
    load = partial(
        load_model, spec.model, image_size=spec.image_size, device=device, trust_remote_code=trust_remote_code
    )
    encoder = load()
    if encoder.dimension > spec.dimension:  # a model of `cosplace reduce`, of which the first dimensions are used
        encoder = load(reduce_to=spec.dimension)
    return check_encoder(index, encoder)


def check_encoder(index: PhotoIndex, encoder: Encoder) -> Encoder:
    """The encoder, if its descriptors are those of the index.  Raises PhotoIndexError."""
    index.check_model(encoder.name or "the model", encoder.checksum, encoder.image_size)
    return encoder


def away_from_m(location: Location, latitude: float, longitude: float) -> float | None:
    """Meters between an answer and where a photo says itself that it was taken; None for an unknown place."""
    if location.latitude is None or location.longitude is None:
        return None
    return float(ground_distances_m(location.latitude, location.longitude, latitude, longitude))
