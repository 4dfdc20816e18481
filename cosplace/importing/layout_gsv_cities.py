"""GSV-Cities as it is downloaded: Images/<City>/, with place, month, heading and position in the file names.

A name is <city>_<place>_<year>_<month>_<heading>_<latitude>_<longitude>_<panorama>.JPG.  The city in it may differ from
the folder, and headings may exceed 360 degrees.  Dataframes/<City>.csv repeats the names: it only shows how many photos
are missing.  The dataset is for training; to evaluate on it, the latest photo of each place is a query, and the others
are the database.  Ali-bey et al., GSV-Cities (2022).  Side effects: reads folders.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.importing.layout_parts import (
    DATABASE,
    QUERIES,
    Layout,
    LayoutPart,
    folder_names,
    month_times,
    photo_names,
    raw_folders,
)
from cosplace.importing.records import Problem

NAME = re.compile(
    r"[^_]+_(?P<place>\d+)_(?P<year>\d{4})_(?P<month>\d{1,2})_(?P<heading>-?\d+(?:\.\d+)?)"
    r"_(?P<latitude>-?\d+(?:\.\d+)?(?:e-?\d+)?)_(?P<longitude>-?\d+(?:\.\d+)?(?:e-?\d+)?)_.+\.\w+"
)
IMAGES, TABLES = "Images", "Dataframes"
NAMES_TRIED = 5


def find(folder: Path) -> Layout | None:
    """The dataset in a folder; None if there is none.  Raises DatasetError if it has tables but no photos."""
    for root in raw_folders(folder):
        cities = folder_names(root / IMAGES)
        has_tables = any((root / TABLES).glob("*.csv"))
        if has_tables and not cities:
            raise DatasetError(f"{root} has {TABLES}/ of GSV-Cities, but no {IMAGES}/. Unpack the photos there.")
        if cities and (has_tables or _has_photos(root / IMAGES / cities[0])):
            return Layout(name="GSV-Cities", folder=root, splits=("train",), read_parts=read_parts)
    return None


def _has_photos(city: Path) -> bool:
    names = photo_names(city)[:NAMES_TRIED]
    return bool(names) and all(NAME.fullmatch(name) for name in names)


def read_parts(folder: Path, split: str) -> Iterator[LayoutPart]:
    """All photos, one city after the other; with a split, as a database and queries."""
    for city in folder_names(folder / IMAGES):
        part = _read_city(folder, city)
        if split:
            is_query = _latest_of_each_place(part)
            yield replace(_subset(part, f"{split}/{DATABASE}", ~is_query), problems=part.problems)
            yield _subset(part, f"{split}/{QUERIES}", is_query)
        else:
            yield part


def _read_city(folder: Path, city: str) -> LayoutPart:
    names, values, problems = [], [], []
    for name in photo_names(folder / IMAGES / city):
        found = NAME.fullmatch(name)
        if found and 1 <= int(found["month"]) <= 12:
            names.append(name)
            values.append(found.groups())
        else:
            problems.append(Problem(name=str(folder / IMAGES / city / name), reason="is not a name of GSV-Cities"))
    problems += _missing(folder / TABLES / f"{city}.csv", len(names))
    places = [f"{city} {place}" for place, *_ in values]
    years, months, headings, latitudes, longitudes = np.array([row[1:] for row in values], np.float64).reshape(-1, 5).T
    return LayoutPart(
        split="train",
        paths=[f"{IMAGES}/{city}/{name}" for name in names],
        latitudes=latitudes,
        longitudes=longitudes,
        headings=np.mod(headings, 360),
        times=month_times(years, months),
        places=places,
        problems=tuple(problems),
    )


def _missing(table: Path, num_photos: int) -> list[Problem]:
    """A problem if the table of a city has more rows than there are photos."""
    try:
        with table.open("rb") as file:
            num_rows = sum(1 for line in file if line.strip()) - 1
    except OSError:
        return []
    if num_rows <= num_photos:
        return []
    return [
        Problem(
            name=f"{table}: {num_rows - num_photos:,} of {num_rows:,} photos", reason="photos that it lists are missing"
        )
    ]


def _latest_of_each_place(part: LayoutPart) -> np.ndarray:
    """Which photos are the last one of their place, (I,) bool; none of a place with a single photo."""
    is_query = np.zeros(len(part.paths), bool)
    if not len(part.paths):
        return is_query
    assert part.times is not None
    _, places = np.unique(np.array(part.places), return_inverse=True)
    order = np.lexsort((np.array(part.paths), part.times, places))  # by place, then time, then name
    is_last = np.append(places[order][1:] != places[order][:-1], True)
    is_query[order[is_last]] = True
    return is_query & (np.bincount(places)[places] > 1)


def _subset(part: LayoutPart, split: str, rows: np.ndarray) -> LayoutPart:
    assert part.latitudes is not None and part.longitudes is not None
    assert part.headings is not None and part.times is not None
    return LayoutPart(
        split=split,
        paths=np.array(part.paths, object)[rows].tolist(),
        latitudes=part.latitudes[rows],
        longitudes=part.longitudes[rows],
        headings=part.headings[rows],
        times=part.times[rows],
    )
