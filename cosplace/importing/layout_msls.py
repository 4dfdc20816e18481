"""Mapillary Street-level Sequences as it is downloaded: train_val/<city>/{database,query}/, with images/ and CSV files.

raw.csv has positions, headings and dates, postprocessed.csv the place, seq_info.csv the sequence.  Val is Copenhagen
and San Francisco; the test cities have no positions.  Panoramas are left out.  The official val queries are those of
the subtask `all` that have a database photo of their city within 25 m: `queries`.  The others are `queries_other`, and
both together `queries_all`, as VPR-datasets-downloader prepares them.  Warburg et al., CVPR 2020.
Side effects: reads files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.geo import ecef_from_lla
from cosplace.importing.layout_parts import (
    DATABASE,
    QUERIES,
    Layout,
    LayoutPart,
    day_times,
    first_rows,
    folder_names,
    numbers,
    possible_positions,
    raw_folders,
    read_csv,
)
from cosplace.importing.records import Problem

CITIES, TEST_CITIES, QUERY = "train_val", "test", "query"
VAL_CITIES = ("cph", "sf")
RADIUS_M = 25.0
OTHER_QUERIES, ALL_QUERIES = "queries_other", "queries_all"


def find(folder: Path) -> Layout | None:
    """The dataset in a folder; None if there is none."""
    for root in raw_folders(folder):
        if not (root / CITIES).is_dir():
            continue
        cities = [city for city in folder_names(root / CITIES) if (root / CITIES / city / QUERY).is_dir()]
        if cities:
            splits = (("val",) if set(cities) & set(VAL_CITIES) else ()) + (
                ("train",) if set(cities) - set(VAL_CITIES) else ()
            )
            unions = ((ALL_QUERIES, (QUERIES, OTHER_QUERIES)),)
            return Layout(name="MSLS", folder=root, splits=splits, read_parts=read_parts, unions=unions)
    return None


def read_parts(folder: Path, split: str) -> Iterator[LayoutPart]:
    """Photos of the cities of a split, of all cities for ""."""
    for city in folder_names(folder / CITIES):
        city_split = "val" if city in VAL_CITIES else "train"
        if split and city_split != split:
            continue
        if not (folder / CITIES / city / QUERY).is_dir():
            continue
        database, queries = (_read_folder(folder, city, name) for name in (DATABASE, QUERY))
        if not split and city_split == "train":
            yield _part(database, "train", database.kept, database.repeated + database.panoramas)
            yield _part(queries, "train", queries.kept, queries.repeated + queries.panoramas)
            continue
        problems = database.repeated + queries.repeated
        if not split:
            problems += database.panoramas + queries.panoramas
        official = queries.kept & queries.is_in_task & _has_positive(queries, database)
        yield _part(database, f"{city_split}/{DATABASE}", database.kept & database.is_in_task, problems)
        yield _part(queries, f"{city_split}/{QUERIES}", official)
        yield _part(queries, f"{city_split}/{OTHER_QUERIES}", queries.kept & ~official)
    if not split:
        for city in folder_names(folder / TEST_CITIES):
            if (folder / TEST_CITIES / city / QUERY).is_dir():
                problem = Problem(name=str(folder / TEST_CITIES / city), reason="is a test city, without positions")
                yield LayoutPart(split="", paths=(), problems=(problem,))


class _Folder:
    """The photos of a city in database/ or query/."""

    def __init__(self, folder: Path, city: str, name: str) -> None:
        self.folder, self.city, self.name = folder, city, name
        table = folder / CITIES / city / name
        raw = read_csv(table / "raw.csv", ("key", "lon", "lat"), ("ca", "captured_at", "pano"))
        keys = raw["key"]
        if not (table / "images").is_dir():
            raise DatasetError(f"{table / 'images'} is missing. Unpack all image archives of MSLS.")
        self.paths = np.array([f"{CITIES}/{city}/{name}/images/{key}.jpg" for key in keys], object)
        self.latitudes, self.longitudes = numbers(raw["lat"]), numbers(raw["lon"])
        is_first, self.repeated = first_rows(table / "raw.csv", keys, (self.latitudes, self.longitudes))
        self.headings = np.mod(numbers(raw["ca"]), 360) if "ca" in raw else np.full(len(keys), np.nan)
        self.times = day_times(raw["captured_at"]) if "captured_at" in raw else np.full(len(keys), np.nan)
        is_panorama = _are_true(raw.get("pano", [None] * len(keys)))
        self.num_panoramas = int((is_panorama & is_first).sum())
        self.kept = ~is_panorama & is_first
        sequences = _column(table / "seq_info.csv", keys, ("sequence_key", "sequence_id"))
        places = _column(table / "postprocessed.csv", keys, ("unique_cluster",))
        self.sequences = np.array(sequences, object)
        self.places = np.array([f"{city} {place}" if place else "" for place in places], object)
        in_task = _column(table / "subtask_index.csv", keys, ("all",))
        self.is_in_task = _are_true(in_task) if any(in_task) else np.ones(len(keys), bool)

    @property
    def panoramas(self) -> tuple[Problem, ...]:
        """A problem if there are panoramas."""
        if not self.num_panoramas:
            return ()
        name = str(self.folder / CITIES / self.city / self.name)
        return (Problem(name=f"{name}: {self.num_panoramas:,} photos", reason="panoramas are left out"),)


def _read_folder(folder: Path, city: str, name: str) -> _Folder:
    return _Folder(folder, city, name)


def _column(path: Path, keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """A column of an optional table, in the order of keys; empty texts where it has none."""
    if not path.is_file():
        return [""] * len(keys)
    table = read_csv(path, ("key",), names)
    values = next((table[name] for name in names if name in table), None)
    if values is None:
        return [""] * len(keys)
    if table["key"] == keys:
        return [value or "" for value in values]
    of_key = dict(zip(table["key"], values, strict=True))
    return [of_key.get(key) or "" for key in keys]


def _are_true(texts: Sequence[str | None]) -> np.ndarray:
    return np.array([text in ("True", "true", "1") for text in texts], bool)


def _has_positive(queries: _Folder, database: _Folder) -> np.ndarray:
    """Which queries have a database photo within 25 m, (Q,) bool."""
    from scipy.spatial import KDTree  # takes long to import

    latitudes, longitudes = possible_positions(database.latitudes, database.longitudes)
    usable = database.kept & database.is_in_task & np.isfinite(latitudes)
    points = ecef_from_lla(*possible_positions(queries.latitudes, queries.longitudes))
    known = np.isfinite(points[:, 0])
    found = np.zeros(len(points), bool)
    if usable.any() and known.any():
        tree = KDTree(ecef_from_lla(latitudes[usable], longitudes[usable]))
        found[known] = tree.query(points[known])[0] <= RADIUS_M
    return found


def _part(photos: _Folder, split: str, rows: np.ndarray, problems: tuple[Problem, ...] = ()) -> LayoutPart:
    return LayoutPart(
        split=split,
        paths=photos.paths[rows].tolist(),
        latitudes=photos.latitudes[rows],
        longitudes=photos.longitudes[rows],
        headings=photos.headings[rows],
        times=photos.times[rows],
        sequences=photos.sequences[rows].tolist(),
        places=photos.places[rows].tolist(),
        problems=problems,
    )
