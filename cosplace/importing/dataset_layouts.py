"""The field's datasets as they are downloaded, and as VPR-datasets-downloader prepares them.

`read` imports all splits of a dataset.  `retrieval_lists` opens a database and its queries where they are, with labels,
so that evaluation needs no import.  Positions come from the tables of the dataset; a photo is not opened.
Side effects: reads folders and tables.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError, one_line
from cosplace.geo import MapCenter
from cosplace.importing import (
    layout_gsv_cities,
    layout_msls,
    layout_numbered,
    layout_pittsburgh_tokyo,
    layout_prepared,
    layout_st_lucia,
)
from cosplace.importing.layout_parts import DATABASE, QUERIES, Layout, LayoutPart, line_label
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.photos.image_list import ImageList, evenly_spaced, list_from_lines
from cosplace.photos.labels import PhotoFields, choose_map, with_labels
from cosplace.photos.tables import TABLE_NAME, UNKNOWN, PhotoRecord

FILES_CHECKED = 100
SPLITS = ("test", "val", "train")  # in the order in which evaluation prefers them

RAW_LAYOUTS: tuple[Callable[[Path], Layout | None], ...] = (
    layout_gsv_cities.find,
    layout_msls.find,
    layout_pittsburgh_tokyo.find_pittsburgh,
    layout_pittsburgh_tokyo.find_tokyo,
    layout_numbered.find_nordland,
    layout_numbered.find_amstertime,
    layout_st_lucia.find,
)


def detect_layout(folder: Path) -> Layout | None:
    """The dataset in a folder, as it is downloaded or prepared; None if there is none."""
    return detect_raw_layout(folder) or layout_prepared.find(folder)


def detect_raw_layout(folder: Path) -> Layout | None:
    """The dataset in a folder, as it is downloaded; None if there is none.

    Raises DatasetError if an essential part of it is missing.
    """
    return next((layout for find in RAW_LAYOUTS if (layout := find(folder)) is not None), None)


def refuse_download(path: Path) -> None:
    """Raise DatasetError if a path is a dataset as it is downloaded, or its train set: it has to be imported first."""
    for place in (path, path.parent) if path.name == "train" and not path.exists() else (path,):
        if not place.is_dir() or (place / TABLE_NAME).is_file():
            continue
        if (layout := detect_raw_layout(place)) is not None:
            raise DatasetError(
                f"{place} is {layout.name} as it is downloaded. Import it with `cosplace import {place} --to DATASET`, "
                f"then use DATASET."
            )


# --- import ----------------------------------------------------------------------------------------------------------


def detects(path: Path) -> bool:
    """Whether a folder has one of these datasets, and is not an imported one."""
    if not path.is_dir() or (path / TABLE_NAME).is_file():
        return False
    layout = detect_layout(path)
    return layout is not None and not layout.is_videos


def read(path: Path, settings: ImportSettings) -> Iterator[Entry]:
    """All photos of a dataset, with their splits.

    Raises DatasetError if its folder lacks a table.
    """
    layout = detect_layout(path)
    if layout is None:
        raise DatasetError(f"{path} does not contain a known dataset. Import it without --format.")
    if layout.note:
        yield Problem(name=str(layout.folder), reason=layout.note, is_left_out=False)
    for part in layout.read_parts(layout.folder, ""):
        yield from part.problems
        yield from _found_photos(layout, part)


def _found_photos(layout: Layout, part: LayoutPart) -> Iterator[FoundPhoto]:
    unknown = np.broadcast_to(UNKNOWN, len(part.paths))
    fields = (part.latitudes, part.longitudes, part.headings, part.times)
    rows = zip(*((unknown if values is None else values).tolist() for values in fields), strict=True)
    source = "" if part.headings is None else "table"
    for row, (latitude, longitude, heading, time) in enumerate(rows):
        path = part.paths[row]
        record = PhotoRecord(
            path=path if part.line_m is None else _line_path(part, row),
            latitude=latitude,
            longitude=longitude,
            heading=heading,
            heading_source="" if math.isnan(heading) else source,
            time=time,
            sequence=part.sequences[row] if part.sequences else "",
            place=part.places[row] if part.places else "",
            split=part.split,
            projection=part.projection,
        )
        yield FoundPhoto(file=layout.folder / path, record=record, use_exif=part.has_names)


def _line_path(part: LayoutPart, row: int) -> str:
    """The path in a dataset of a photo whose place has a number only: its '@' name has the position on the line."""
    return f"{part.split}/{_line_label(part, row)}{PurePosixPath(part.paths[row]).suffix}"


def _line_label(part: LayoutPart, row: int) -> str:
    assert part.line_m is not None
    return line_label(float(part.line_m[row]), part.places[row], PurePosixPath(part.paths[row]).parts[0])


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPlaces:
    """Training photos of a dataset that names places."""

    name: str  # of the dataset
    images: ImageList  # with labels
    places: list[str]  # the place of each photo
    problems: list[Problem]


def named_places(folder: Path, *, follow_outside: bool = False) -> NamedPlaces | None:
    """The photos of GSV-Cities as it is downloaded, in a folder or in the one above DATASET/train; None without it.

    Raises DatasetError if photos are missing.
    """
    for place in (folder, folder.parent) if folder.name == "train" and not folder.exists() else (folder,):
        if not place.is_dir() or (place / TABLE_NAME).is_file():
            continue
        layout = layout_gsv_cities.find(place)
        if layout is None:
            continue
        parts = list(layout.read_parts(layout.folder, ""))
        inside = () if follow_outside else _inside(layout.folder, parts)
        images = _image_list(layout, parts, _common_map(parts), inside)
        of_path = {path: one for part in parts for path, one in zip(part.paths, part.places, strict=True)}
        return NamedPlaces(
            name=layout.name,
            images=images,
            places=[of_path[images.name(row)] for row in range(len(images))],
            problems=[problem for part in parts for problem in part.problems],
        )
    return None


# --- evaluation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalLists:
    """A database and queries of a dataset, with labels."""

    name: str
    folder: Path
    database: ImageList
    queries: ImageList
    note: str = ""  # what distances mean, if they are not meters on the ground
    problems: tuple[Problem, ...] = ()  # of all sets of the split


def retrieval_lists(
    folder: Path, queries_name: str | None = None, *, split: str = "test", follow_outside: bool = False
) -> RetrievalLists | None:
    """The database and queries of a dataset as it is downloaded: the set that is wanted; for test, else val or train.

    folder: that of the dataset, or a split below it, such as pitts30k/val, which need not exist.
    queries_name: a set of queries, such as queries_night.  None: queries.
    Returns None if there is no such dataset.
    Raises DatasetError if a table or photos are missing, or if there are no such queries.
    """
    layout, split = _raw_dataset(folder, split)
    if layout is None:
        return None
    if layout.is_videos:
        raise DatasetError(
            f"{folder} has videos of {layout.name}. Extract their frames with `cosplace import {folder} --to "
            f"DATASET`, then evaluate on DATASET."
        )
    parts: dict[str, list[LayoutPart]] = {}
    problems: list[Problem] = []
    for part in layout.read_parts(layout.folder, split):
        problems += part.problems
        if len(part.paths):
            parts.setdefault(part.split.removeprefix(f"{split}/"), []).append(part)
    name = queries_name or QUERIES
    members = next((names for union, names in layout.unions if union == name), (name,))
    queries = [part for one in members for part in parts.get(one, [])]
    database = parts.get(DATABASE, [])
    if not database or not queries or DATABASE in members:
        unions = [union for union, _ in layout.unions if len(parts) > 2]
        sets = sorted({*parts, *unions} - {DATABASE})
        hint = [f"Choose one of its sets with --queries_folder: {', '.join(sets)}."] if sets and database else []
        raise DatasetError(
            f"{layout.name} in {layout.folder} has no photos in {name if database else DATABASE}.", *hint
        )
    center = _common_map([*database, *queries])
    inside = () if follow_outside else _inside(layout.folder, [*database, *queries])
    return RetrievalLists(
        name=f"{layout.name} {split}/{name}",
        folder=layout.folder,
        database=_image_list(layout, database, center, inside),
        queries=_image_list(layout, queries, center, inside),
        note=layout.note,
        problems=tuple(problems),
    )


def _raw_dataset(folder: Path, wanted: str) -> tuple[Layout | None, str]:
    """The dataset in a folder, and its best split; or the one in the folder above, if the name is that of a split.

    Raises DatasetError for a split that the dataset does not have.  Instead of a test set, which MSLS has without
    positions, val or train is used: there is nothing else to evaluate on.
    """
    places = [(folder, wanted)] + ([(folder.parent, folder.name)] if folder.name in SPLITS else [])
    for place, split in places:
        layout = detect_raw_layout(place) if place.is_dir() and not (place / TABLE_NAME).is_file() else None
        if layout is None:
            continue
        if split not in layout.splits and split != "test":
            raise DatasetError(f"{layout.name} in {place} has no {split} set, only {', '.join(layout.splits)}.")
        return layout, split if split in layout.splits else next(one for one in SPLITS if one in layout.splits)
    return None, ""


def _common_map(parts: Sequence[LayoutPart]) -> MapCenter | None:
    if any(part.line_m is not None for part in parts):
        return None
    return choose_map(_fields(parts))


def _fields(parts: Sequence[LayoutPart]) -> PhotoFields:
    def column(name: str) -> np.ndarray:
        values = [getattr(part, name) for part in parts]
        return np.concatenate(
            [np.full(len(part.paths), UNKNOWN) if one is None else one for part, one in zip(parts, values, strict=True)]
        )

    unknown = np.full(sum(len(part.paths) for part in parts), UNKNOWN)
    return PhotoFields(
        latitudes=column("latitudes"), longitudes=column("longitudes"), headings=column("headings"),
        times=column("times"), accuracies_m=unknown, pitches=unknown, rolls=unknown, altitudes_m=unknown,
    )  # fmt: skip


def _image_list(
    layout: Layout, parts: Sequence[LayoutPart], center: MapCenter | None, inside: tuple[str, ...]
) -> ImageList:
    """The photos of parts, sorted by path, with labels.  Raises DatasetError for wrong paths and missing files."""
    paths = [os.fsencode(path) for part in parts for path in part.paths]
    for path in paths:
        if path.startswith(b"/") or b"\n" in path or (b".." in path and b".." in path.split(b"/")):
            raise DatasetError(one_line(f"{layout.folder}: '{os.fsdecode(path)}' is not a path inside the dataset."))
    order = sorted(range(len(paths)), key=paths.__getitem__)
    images = replace(list_from_lines(layout.folder, b"".join(paths[row] + b"\n" for row in order)), inside=inside)
    if any(part.line_m is not None for part in parts):
        labels = [_line_label(part, row) for part in parts for row in range(len(part.paths))]
        lines = b"".join(os.fsencode(labels[row]) + b"\n" for row in order)
        images = replace(images, labels=list_from_lines(layout.folder, lines))
    else:
        images = with_labels(images, _fields(parts).at(np.array(order, np.int64)), center)
    for row in evenly_spaced(images, FILES_CHECKED):
        if not (layout.folder / images.name(row)).is_file():
            raise DatasetError(
                one_line(
                    f"{layout.folder} lacks '{images.name(row)}', which is in the lists of {layout.name}. Unpack all "
                    f"archives."
                )
            )
    return images


def _inside(folder: Path, parts: Sequence[LayoutPart]) -> tuple[str, ...]:
    """Real folders that photos may be in: the dataset, and its top folders, which may be links to other disks."""
    tops = {path.partition("/")[0] for part in parts for path in part.paths if "/" in path} - {"..", "."}
    return tuple(dict.fromkeys(os.path.realpath(folder / top) for top in ("", *sorted(tops))))
