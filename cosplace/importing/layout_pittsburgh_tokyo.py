"""Pittsburgh (Pitts30k, Pitts250k) and Tokyo 24/7 as they are downloaded: folders of photos and dbStruct files.

Pittsburgh: 000/, 001/, ... have the database, queries_real/ the queries, datasets/pitts30k_test.mat and so on the UTM
positions, in zone 17.  Tokyo 24/7: 03814/, ... have the database, 247query_subset_v2/ or 247query_v3/ the queries, each
with a CSV file of its position; tokyo247.mat has the UTM positions, in zone 54.  The dbStruct lists the 315 queries of
the protocol: `queries`.  Others of 247query_v3/ are `queries_other`, and both together `queries_all`.
Torii et al., 2015.  Side effects: reads files.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError, one_line
from cosplace.geo import utm_to_latlon
from cosplace.importing.layout_parts import DATABASE, QUERIES, Layout, LayoutPart, photo_names, raw_folders
from cosplace.importing.matlab_structs import read_struct
from cosplace.importing.records import Problem

PITTSBURGH_QUERIES = "queries_real"
STRUCT_FOLDERS = ("datasets", "", "netvlad_v100_datasets", "../datasets", "..")
SPLITS = ("train", "val", "test")
LARGE_FOLDERS = ("007", "010")  # Pitts30k uses 000 to 006
TOKYO_FOLDER = re.compile(r"038[12]\d")
TOKYO_DATABASES = ("", "tokyo247", "database_gsv_vga", "tokyo247/database_gsv_vga")
TOKYO_QUERIES = ("247query_subset_v2", "247query_v3")
QUERY_PREFIXES = ("", "tokyo247", "queries", "query", "tokyo247/query")
OTHER_QUERIES, ALL_QUERIES = "queries_other", "queries_all"
MAX_LINE = 10_000  # characters of the CSV file of a query
MAX_DEG_AWAY = 1.0  # latitude and longitude of the median position of a file from those of the city


@dataclass(frozen=True, slots=True, kw_only=True)
class _City:
    """Where a dataset is."""

    name: str
    latitude: float  # degrees
    longitude: float  # degrees
    zone: tuple[int, str]  # UTM


PITTSBURGH = _City(name="Pittsburgh", latitude=40.44, longitude=-80.00, zone=(17, "T"))
TOKYO = _City(name="Tokyo", latitude=35.68, longitude=139.76, zone=(54, "S"))


def find_pittsburgh(folder: Path) -> Layout | None:
    """Pitts30k or Pitts250k in a folder; None if there is neither.

    If there are tables of both, the name of the folder decides, else whether all folders of Pitts250k are there.
    """
    for root in raw_folders(folder):
        if not ((root / PITTSBURGH_QUERIES).is_dir() and (root / "000").is_dir()):
            continue
        names = [name for name in ("pitts30k", "pitts250k") if _struct_paths(root, f"{name}_")]
        name = next((name for name in names if name in f"{folder.resolve()}".lower()), "")
        if not name:
            is_large = any((root / part).is_dir() for part in LARGE_FOLDERS)
            usual = "pitts250k" if is_large else "pitts30k"
            name = usual if usual in names or not names else names[0]
        found = _struct_paths(root, f"{name}_")
        splits = tuple(split for split in ("test", "val", "train") if split in found) or ("test",)
        title = name.replace("pitts", "Pitts")
        return Layout(name=title, folder=root, splits=splits, read_parts=partial(_pittsburgh_parts, name))
    return None


def _struct_paths(root: Path, prefix: str) -> dict[str, Path]:
    """The dbStruct file of each split."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        for between in STRUCT_FOLDERS:
            path = root / between / f"{prefix}{split}.mat"
            if split not in found and path.is_file():
                found[split] = path
    return found


def _pittsburgh_parts(name: str, folder: Path, split: str) -> Iterator[LayoutPart]:
    found = _struct_paths(folder, f"{name}_")
    wanted = [split] if split else [one for one in SPLITS if one in found]
    if not wanted or any(one not in found for one in wanted):
        missing = f"{name}_{next((one for one in wanted if one not in found), 'test')}.mat"
        raise DatasetError(
            f"{folder} has the photos of Pittsburgh, but not {missing}. Unpack netvlad_v100_datasets.tar.gz there: the "
            f"file belongs into {folder / 'datasets'}."
        )
    for one in wanted:
        content = read_struct(found[one])
        is_train = one == "train" and not split
        database, queries = ("train", "train") if is_train else (f"{one}/{DATABASE}", f"{one}/{QUERIES}")
        part = _utm_part(database, content.database, content.database_utm, PITTSBURGH, found[one])
        yield replace(part, problems=part.problems + content.problems)
        paths = [f"{PITTSBURGH_QUERIES}/{path}" for path in content.queries]
        yield _utm_part(queries, paths, content.query_utm, PITTSBURGH, found[one])


def _utm_part(split: str, paths: Sequence[str], utm: np.ndarray, city: _City, table: Path) -> LayoutPart:
    latitudes, longitudes = _utm_positions(utm, city, table)
    panoramas = [path.rpartition("/")[2].partition("_pitch")[0] for path in paths]
    return LayoutPart(split=split, paths=paths, latitudes=latitudes, longitudes=longitudes, sequences=panoramas)


def _utm_positions(utm: np.ndarray, city: _City, table: Path) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes (I,); nan for both where east and north (I, 2) are 0, which means unknown.

    Raises DatasetError if they are not in the city, as of a table with swapped columns.
    """
    latitudes, longitudes = utm_to_latlon(*np.where(utm.any(axis=1, keepdims=True), utm, np.nan).T, *city.zone)
    known = np.isfinite(latitudes) & np.isfinite(longitudes)
    if known.any():
        latitude, longitude = float(np.median(latitudes[known])), float(np.median(longitudes[known]))
        if max(abs(latitude - city.latitude), abs(longitude - city.longitude)) > MAX_DEG_AWAY:
            raise DatasetError(
                one_line(
                    f"{table}: the median of its positions is latitude {latitude:.2f}, longitude {longitude:.2f}, but "
                    f"{city.name} is at {city.latitude:.2f}, {city.longitude:.2f}. Write east, then north, in meters "
                    f"of UTM zone {city.zone[0]}, or use the file of the dataset."
                )
            )
    return latitudes, longitudes


# --- Tokyo 24/7 ------------------------------------------------------------------------------------------------------


def find_tokyo(folder: Path) -> Layout | None:
    """Tokyo 24/7 in a folder; None if there is none."""
    for root in raw_folders(folder):
        if _tokyo_database(root) is not None and (_query_folders(root) or _tokyo_struct(root)):
            unions = ((ALL_QUERIES, (QUERIES, OTHER_QUERIES)),)
            return Layout(name="Tokyo 24/7", folder=root, splits=("test",), read_parts=_tokyo_parts, unions=unions)
    return None


def _tokyo_database(root: Path) -> str | None:
    """The folder of the database, relative to the root."""
    for between in TOKYO_DATABASES:
        place = root / between
        if place.is_dir() and any(TOKYO_FOLDER.fullmatch(entry.name) for entry in islice(place.iterdir(), 1000)):
            return between
    return None


def _tokyo_struct(root: Path) -> Path | None:
    return next((path for one in STRUCT_FOLDERS if (path := root / one / "tokyo247.mat").is_file()), None)


def _query_folders(root: Path) -> list[str]:
    """Folders of queries, relative to the root."""
    return [
        os.path.join(between, name)  # noqa: PTH118 - a relative path as text
        for name in TOKYO_QUERIES
        for between in QUERY_PREFIXES
        if (root / between / name).is_dir()
    ]


def _tokyo_parts(folder: Path, split: str) -> Iterator[LayoutPart]:
    path = _tokyo_struct(folder)
    if path is None:
        raise DatasetError(
            f"{folder} has the photos of Tokyo 24/7, but not tokyo247.mat. Unpack netvlad_v100_datasets.tar.gz there: "
            f"the file must be in {folder / 'datasets'}."
        )
    folders = _query_folders(folder)
    if not folders:
        raise DatasetError(f"{folder} has no queries. Unpack {TOKYO_QUERIES[0]}.zip there.")
    content, between = read_struct(path), _tokyo_database(folder) or ""
    prefix = f"{between}/" if between else ""
    database = [f"{prefix}{name.removesuffix('.jpg')}.png" for name in content.database]
    if database and not (folder / database[0]).is_file():
        as_listed = [prefix + name for name in content.database]
        database = as_listed if (folder / as_listed[0]).is_file() else database
    part = _utm_part(f"test/{DATABASE}", database, content.database_utm, TOKYO, path)
    yield replace(part, sequences=(), problems=part.problems + content.problems)
    listed = {name.rpartition("/")[2]: row for row, name in enumerate(content.queries)}
    latitudes, longitudes = _utm_positions(content.query_utm, TOKYO, path)
    used: set[str] = set()
    for name in folders:
        is_subset = name.endswith(TOKYO_QUERIES[0])
        photos = [photo for photo in photo_names(folder / name) if photo not in used]
        official = [photo for photo in photos if is_subset or photo in listed]
        used.update(official)
        known = {photo: (latitudes[row], longitudes[row]) for photo, row in listed.items()}
        for query_split, chosen in ((QUERIES, official), (OTHER_QUERIES, sorted(set(photos) - set(official)))):
            if chosen:
                yield _query_part(folder, name, f"test/{query_split}", chosen, known)


def _query_part(
    folder: Path, name: str, split: str, photos: Sequence[str], known: dict[str, tuple[float, float]]
) -> LayoutPart:
    """Queries with the positions of their CSV files, or where one is missing, of the dbStruct."""
    positions, problems, paths = [], [], []
    for photo in photos:
        position = _read_position((folder / name / photo).with_suffix(".csv")) or known.get(photo)
        if position is None:
            problems.append(Problem(name=str(folder / name / photo), reason="has no CSV file with its position"))
            continue
        positions.append(position)
        paths.append(f"{name}/{photo}")
    latitudes, longitudes = np.array(positions, np.float64).reshape(-1, 2).T
    return LayoutPart(split=split, paths=paths, latitudes=latitudes, longitudes=longitudes, problems=tuple(problems))


def _read_position(path: Path) -> tuple[float, float] | None:
    """Latitude and longitude in the first line of the CSV file of a query: name, latitude, longitude, ..."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            cells = next(csv.reader([file.readline(MAX_LINE)]), [])
        latitude, longitude = float(cells[1]), float(cells[2])
    except (OSError, ValueError, IndexError, csv.Error):
        return None
    return (latitude, longitude) if abs(latitude) <= 90 and abs(longitude) <= 180 else None
