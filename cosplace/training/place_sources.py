"""Places to train on with `--method multi_similarity`: from a table, from GSV-Cities, or cells as places.

    table        the photos with the same value in the column `place`, as `cosplace import` writes it
    GSV-Cities   the place ids in the file names of the dataset as it is downloaded
    cells        CosPlace classes: the photos of a cell of M meters that look in one direction

All places are one group: the places of a batch are kept apart by their locations, not by groups.
Side effects: `open_places` reads photos and tables, and keeps groups in the cache.
Legend: I photos, C places.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cosplace.config.methods import MULTI_SIMILARITY
from cosplace.config.sections import Extensions, Grouping, TrainConfig, TrainingSettings
from cosplace.errors import ConfigError, DatasetError
from cosplace.importing.dataset_layouts import named_places
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import different_zones, earth_positions, optional_fields, utm_fields, without_rows
from cosplace.photos.paths import path_from_text
from cosplace.photos.table_lists import find_part
from cosplace.photos.tables import read_table
from cosplace.progress import Progress, format_count, no_progress
from cosplace.training.group_cache import cached_groups, cached_partition
from cosplace.training.groups import Groups, training_part, training_photos
from cosplace.training.place_batches import PlaceLocations

OF_COSFACE = (
    ("margin", TrainingSettings), ("scale", TrainingSettings), ("classifiers_lr", TrainingSettings),
    ("margin_ramp", Extensions),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSet:
    """The places of a folder, as one group whose classes are the places."""

    groups: Groups
    images: ImageList  # all photos, also those that are left out
    source: str  # one sentence: where the places come from, and how many photos and places are left out
    cure: str  # what to do if the photos of a place are far apart


def check_settings(config: TrainConfig) -> None:
    """Raise ConfigError for settings that do not apply, and for batches that do not consist of whole places."""
    check_grouping(config.grouping)
    values = (config.training.margin, config.training.scale, config.training.classifiers_lr)
    for (name, kind), value in zip(OF_COSFACE, (*values, config.extensions.margin_ramp), strict=True):
        if value != getattr(kind(), name):
            raise ConfigError(
                f"--{name} is for the CosFace loss, which --method {MULTI_SIMILARITY} does not use. Omit it."
            )
    size, photos = config.training.batch_size, config.method.photos_per_place
    if size % photos or size < 2 * photos:
        raise ConfigError(
            f"--batch_size {size} must be a multiple of --photos_per_place {photos}, and at least two places. Use for "
            f"example --batch_size {max(2, round(size / photos)) * photos}."
        )


def check_grouping(grouping: Grouping) -> None:
    """Raise ConfigError for groups, which these places do not have."""
    if (grouping.N, grouping.L, grouping.groups_num) != (1, 1, 1):
        raise ConfigError(
            f"--N, --L and --groups_num do not apply to --method {MULTI_SIMILARITY}, which trains on all places at "
            f"once. Omit them."
        )


def open_places(
    folder: str | Path,
    grouping: Grouping,
    *,
    dataset: str | Path | None = None,
    follow_outside: bool = False,
    progress: Progress = no_progress,
) -> PlaceSet:
    """The places of a folder, a table or GSV-Cities; those with fewer than `min_images_per_class` photos are left out.

    Raises DatasetError for a folder without photos, or for cells of photos without positions and headings.
    """
    if (named := named_places(Path(folder), follow_outside=follow_outside)) is not None:
        return _of_ids(named.images, named.places, grouping, f"the names of {named.name}", len(named.problems))
    without_headings = replace(grouping, alpha=360)
    folder = training_part(Path(folder))
    part = find_part(folder)
    if part is not None and (place_of := _place_column(part.table)):
        images = training_photos(
            folder, without_headings, dataset=dataset, follow_outside=follow_outside, progress=progress
        )
        places = [place_of.get(images.name(row), "") for row in range(len(images))]
        if any(places):
            return _of_ids(images, places, grouping, f"column place of {part.table}")
    images = training_photos(folder, grouping, dataset=dataset, follow_outside=follow_outside, progress=progress)
    groups = cached_partition(images, grouping)
    heading = "" if grouping.alpha == 360 else f" and ranges of {grouping.alpha} degrees"
    return PlaceSet(
        groups=groups, images=images, source=_sentence(groups, grouping, f"cells of {grouping.M} m{heading}"),
        cure="use a smaller --M",
    )  # fmt: skip


def _place_column(table: Path) -> dict[str, str]:
    """The place of each photo of a table that has one, by path."""
    columns = read_table(table, ("path", "place"))
    rows = zip(columns["path"].to_pylist(), columns["place"].to_pylist(), strict=True)
    return {str(path_from_text(path)) if "\\x" in path else path: place for path, place in rows if path and place}


def _of_ids(
    images: ImageList, places: Sequence[str], grouping: Grouping, source: str, num_problems: int = 0
) -> PlaceSet:
    """Places by the ids of the photos, "" for a photo without one."""
    digest = hashlib.sha256("\n".join(places).encode(errors="surrogateescape")).hexdigest()
    least = grouping.min_images_per_class
    groups = cached_groups(images, ["places", digest, least], lambda: groups_of_ids(images, places, least))
    notes = ""
    if num_problems:
        notes = f"; {num_problems:,} problems, such as photos that are missing, see `cosplace import`"
    if without := sum(not place for place in places):
        notes += f"; {without:,} photos without a place are left out"
    sentence = _sentence(groups, grouping, source) + notes
    return PlaceSet(groups=groups, images=images, source=sentence, cure=f"check {source} and the positions")


def _sentence(groups: Groups, grouping: Grouping, source: str) -> str:
    num_left = groups.num_scanned - len(groups.image_starts)
    return (
        f"places from {source}: {len(groups.cells):,} places with {len(groups.image_starts):,} photos; of "
        f"{groups.num_scanned:,} photos, {num_left:,} are left out, which includes those of places with fewer than "
        f"{grouping.min_images_per_class} photos"
    )


def groups_of_ids(images: ImageList, places: Sequence[str], least: int) -> Groups:
    """The places with at least `least` photos as one group, sorted by id; photos whose id is "" are in none."""
    ids = sorted(set(places))
    number_of = {place: number for number, place in enumerate(ids)}
    number = np.array([number_of[place] for place in places], np.int64)
    sizes = np.bincount(number, minlength=len(ids))
    kept = np.flatnonzero((sizes >= least) & (np.array(ids, object) != ""))
    rank = np.full(len(ids), -1)
    rank[kept] = np.arange(len(kept))
    rows = np.flatnonzero(rank[number] >= 0)
    rows = rows[np.argsort(rank[number[rows]], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64)
    east_north = np.nan_to_num(optional_fields(images, ("utm_east", "utm_north"))[:, rows[starts[:-1]]])
    return Groups(
        folder=images.folder,
        cells=np.stack([*np.floor(east_north).astype(np.int64), np.zeros(len(kept), np.int64)], -1),
        group_starts=np.array([0, len(kept)]),
        class_starts=starts,
        image_starts=images.starts[rows],
        names=images.names,
        num_scanned=len(images),
        inside=images.inside,
        label_starts=None if images.labels is None else images.labels.starts[rows],
        labels=None if images.labels is None else images.labels.names,
        map_center=images.map_center,
    )


def locate(places: PlaceSet, radius_m: float) -> PlaceLocations:
    """Where the places are: the mean position of the photos of each, and the distance to its farthest photo."""
    centers, reaches = _extents(places)
    return PlaceLocations(centers=centers, reaches_m=np.minimum(reaches, radius_m), radius_m=radius_m)


def wide_places(places: PlaceSet, radius_m: float) -> str:
    """Warn of places with photos more than `radius_m` from their center, which hardly show the same; "" without any."""
    _, reaches = _extents(places)
    num_wide = int((reaches > radius_m).sum())
    if not num_wide:
        return ""
    return (
        f"{places.groups.folder}: {num_wide:,} of {format_count(len(reaches), 'place')} "
        f"{'has' if num_wide == 1 else 'have'} photos more than {radius_m:g} m from the center of the place, up to "
        f"{reaches.max():,.0f} m. They are trained on as photos of one place: {places.cure}."
    )


def _extents(places: PlaceSet) -> tuple[np.ndarray, np.ndarray]:
    """Center of each place, (C, 2) or (C, 3), nan without positions; meters from it to the farthest photo, (C,)."""
    groups, images = places.groups, places.images
    points = _points(images)[np.searchsorted(images.starts, groups.image_starts)]
    place = np.repeat(np.arange(len(groups.cells)), np.diff(groups.class_starts))
    is_known = ~np.isnan(points).any(axis=1)
    place, points = place[is_known], points[is_known]
    count = np.bincount(place, minlength=len(groups.cells))
    with np.errstate(invalid="ignore"):  # nan for a place without positions: it is near no other
        centers = np.stack([np.bincount(place, axis, minlength=len(count)) / count for axis in points.T], -1)
    reaches = np.zeros(len(count))
    np.maximum.at(reaches, place, np.linalg.norm(points - centers[place], axis=1))
    return centers, reaches


def _points(images: ImageList) -> np.ndarray:
    """Positions as in `PlaceLocations.centers`, of I photos; nan where unknown."""
    utm = utm_fields(images)
    if len(different_zones(utm.zones)) <= 1:
        return np.where(utm.known[:, None], utm.east_north, np.nan)
    known = without_rows(images, np.flatnonzero(~utm.known))
    points = np.full((len(images), 3), np.nan)
    points[utm.known] = earth_positions(known, utm_fields(known))
    return points


def check_places(groups: Groups, grouping: Grouping, places_per_batch: int, photos_per_place: int) -> None:
    """Raise DatasetError if there are fewer places than a batch has."""
    count = len(groups.cells)
    if count >= places_per_batch:
        return
    problem = (
        f"{groups.folder} has {count} place{'' if count == 1 else 's'} with at least {grouping.min_images_per_class} "
        f"photos, fewer than the {places_per_batch} places of a batch."
    )
    if count < 2:
        raise DatasetError(f"{problem} Add photos, or use a smaller --min_images_per_class.")
    raise DatasetError(
        f"{problem} Use --batch_size {count * photos_per_place} or less, or a smaller --min_images_per_class."
    )
