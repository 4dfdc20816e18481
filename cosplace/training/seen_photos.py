"""What the card of the best model records about a run: training photos and validation matches.

The names of the training photos are read once, in chunks.  Legend: Q queries, K matches.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import CosPlaceError, DatasetError
from cosplace.geo import lla_from_ecef
from cosplace.models.opening import weights_path
from cosplace.models.training_card import (
    MAX_MATCHES,
    MAX_QUERIES,
    USUAL_SIZE,
    TrainingCard,
    ValidationMatches,
    card_entries,
    read_training_card,
)
from cosplace.photos.image_list import ImageList, image_list
from cosplace.photos.names import optional_fields, zones_of
from cosplace.photos.opening import typical_side
from cosplace.photos.viewpoints import (
    UNSEEN,
    ViewpointDigest,
    Viewpoints,
    digest_of,
    merge_digests,
    viewpoints_of_names,
)
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.training.data import TrainingData

CHUNK = 1 << 16  # names parsed at once
NO_PHOTOS = digest_of([])  # of a network that was trained on none

log = logging.getLogger(__name__)


def digest_training_photos(data: TrainingData, start: str | Path | None = None) -> ViewpointDigest | None:
    """Digest of the photos of the groups that are trained on; None if their names have no zone and no latitude.

    Single photos without these are left out, with a warning.
    start: the model that training starts from; the photos that it was trained on are part of the digest.
    """
    left_out: list[int] = []
    try:
        photos = digest_of(_viewpoints(_labels(data), left_out))
    except DatasetError as error:
        log.warning("The model will have no list of its training photos, so an index of them will have a confidence "
                    "that is too high: %s", error)  # fmt: skip
        return None
    num_left_out = sum(left_out)
    if num_left_out and not photos.num_photos:
        log.debug("no digest of the training photos: no name has a zone, or latitude and longitude")
        return None
    if num_left_out:
        log.warning(
            "%s of the training photos have no zone, and no latitude and longitude: they are not in the model's list "
            "of training photos, so an index would take them for new ones", f"{num_left_out:,}",
        )  # fmt: skip
    if start:
        with suppress(CosPlaceError):  # the model may have been removed since the run began
            card = read_training_card(weights_path(start))
            return photos if card is None else merge_digests(photos, card.photos)
    return photos


def digest_held_out_photos(data: TrainingData) -> ViewpointDigest | None:
    """Digest of the photos that were held out; None if there are none that have a place on Earth."""
    try:
        photos = digest_of(_viewpoints(_labels_held_out(data), []))
    except DatasetError:  # reported by `digest_training_photos`
        return None
    return photos if photos.num_photos else None


def _viewpoints(parts: Iterable[ImageList], left_out: list[int]) -> Iterator[Viewpoints]:
    """Viewpoints of photos, in parts, without those whose place on Earth is unknown.

    parts: their labels.  left_out: the numbers of photos that are left out are appended to it.
    """
    for labels in parts:
        known = np.ones(len(labels), bool)
        if labels.map_center is None:
            known = (zones_of(labels) != 0) | np.isfinite(optional_fields(labels, ("latitude", "longitude"))).all(
                axis=0
            )
        rows = np.flatnonzero(known).tolist()
        left_out.append(len(labels) - len(rows))
        yield viewpoints_of_names(
            labels if known.all() else image_list(labels.folder, [labels.name(row) for row in rows])
        )


def _labels(data: TrainingData) -> Iterator[ImageList]:
    """Labels of the photos that are trained on, in parts."""
    for one, number in data.used:
        group = one.groups[number]
        images = np.arange(group.num_images)
        if number % len(one.groups.views):  # a photo may be in both kinds of classes
            images = images[~np.isin(group.image_starts, one.groups[number - 1].image_starts)]
        for first in range(0, len(images), CHUNK):
            rows = images[first : first + CHUNK].tolist()
            labels = image_list(group.folder, [group.image_label(row) for row in rows])
            yield replace(labels, map_center=one.groups.map_center)


def _labels_held_out(data: TrainingData) -> Iterator[ImageList]:
    """Labels of the photos that were held out, by group."""
    for one in data.sets:
        for number in range(0 if one.whole is None else one.num_used):
            assert one.whole is not None
            before = one.whole[number]
            images = np.flatnonzero(~np.isin(before.image_starts, one.groups[number].image_starts)).tolist()
            labels = image_list(before.folder, [before.image_label(image) for image in images])
            yield replace(labels, map_center=one.groups.map_center)


def training_card_entries(
    photos: ViewpointDigest | None,
    validation: Evaluation,
    dataset: RetrievalDataset,
    held_out: ViewpointDigest | None = None,
) -> dict[str, str]:
    """Entries of the model card; empty without a digest of the training photos."""
    if photos is None:
        return {}
    matches = validation_matches(photos, validation, dataset)
    return card_entries(TrainingCard(photos=photos, matches=matches, held_out=held_out))


def validation_matches(
    photos: ViewpointDigest, validation: Evaluation, dataset: RetrievalDataset
) -> ValidationMatches | None:
    """Matches of up to MAX_QUERIES queries that have a positive and were not trained on; None without any."""
    try:
        is_unseen = photos.status(viewpoints_of_names(dataset.queries)) == UNSEEN
    except DatasetError:  # names without a zone: they cannot be compared
        is_unseen = np.ones(len(dataset.queries), bool)
    usable = is_unseen & (validation.positives.counts > 0) & (validation.predictions >= 0).all(axis=1)
    rows = np.flatnonzero(usable)
    if not len(rows):
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(MAX_QUERIES, len(rows))).astype(np.int64))]
    predictions = validation.predictions[rows, :MAX_MATCHES]
    queries = dataset.query_positions[rows]
    east_m, north_m = _east_north(queries, dataset.database_positions[predictions] - queries[:, None])
    return ValidationMatches(
        # Descriptors have length 1, so |a - b|^2 = 2 - 2 a·b.
        similarities=1 - validation.squared_distances[rows, :MAX_MATCHES] / 2,
        east_m=east_m,
        north_m=north_m,
        described=_described(validation, dataset.queries, rows),
    )


def _described(validation: Evaluation, queries: ImageList, rows: np.ndarray) -> dict[str, Any] | None:
    """Size and views of the validation photos; of photos that keep their size, also the usual one."""
    if not validation.views:
        return None
    described = {"image_size": validation.image_size, **validation.views}
    if validation.image_size is None:
        described[USUAL_SIZE] = typical_side([queries.folder / queries.name(row) for row in rows.tolist()])
    return described


def _east_north(origins: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Meters east and north (Q, K) of offsets (Q, K, 2) between UTM positions, or (Q, K, 3) between points in space."""
    if offsets.shape[-1] == 2:
        return offsets[..., 0], offsets[..., 1]
    latitudes, longitudes = (np.radians(angles)[:, None] for angles in lla_from_ecef(origins))
    x, y, z = np.moveaxis(offsets, -1, 0)
    east_m = -np.sin(longitudes) * x + np.cos(longitudes) * y
    outward_m = np.cos(longitudes) * x + np.sin(longitudes) * y
    return east_m, np.cos(latitudes) * z - np.sin(latitudes) * outward_m
