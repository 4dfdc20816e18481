"""Split a dataset into train, val and test: by areas, time or sequences, with a buffer between them.

The result is the column `split` of the dataset's table: train, val/database, val/queries, test/database, test/queries.
It is empty for photos without a position, and for those that are nearer than the buffer to another split.
Legend: I photos.
"""

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cosplace.config.defaults import RADIUS_M
from cosplace.config.splitting import SplitConfig
from cosplace.errors import DatasetError
from cosplace.geo import EARTH_RADIUS_M, distances_m, ecef_from_lla, lla_from_ecef
from cosplace.importing.dataset_table import locked_dataset
from cosplace.photos.parquet_files import open_parquet
from cosplace.photos.tables import GEOMETRY, TABLE_NAME, from_table, read_table, to_table, write_table
from cosplace.retrieval.query_choice import (
    QUERY,
    UNUSED,
    QueryChoice,
    choose_queries,
    later_queries,
    num_near,
    visits_of,
)
from cosplace.storage import problem_with_kind

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "val/database", "val/queries", "test/database", "test/queries")
NONE, TRAIN, VAL, TEST = -1, 0, 1, 2  # areas of a photo
AREAS = ("train", "val", "test")
BLOCK_SIZES_M = (1000.0, 500.0, 250.0, 120.0, 60.0)
ENOUGH_BLOCKS = 30
NUM_ATTEMPTS = 8
MAX_LOST = 0.3  # share of the photos in the buffers of scattered blocks; above it, val and test are at opposite ends
CUT_QUANTILES = (0.5, 0.9)  # between which the longest break separates training photos from queries, by time


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where and when the photos of a table were taken."""

    points: np.ndarray  # (I, 3) float64, earth-centered, in meters; nan where unknown
    seconds: np.ndarray  # (I,) float64, nan where unknown
    sequences: np.ndarray  # (I,) int64, -1 where unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitResult:
    """The splits of a dataset."""

    splits: np.ndarray  # (I,) str: one of SPLITS, or empty
    method: str  # how areas were chosen, for the user
    rules: dict[str, str]  # val, test -> how their queries were chosen
    unused: dict[str, int]  # reason -> number of photos that are in no split
    without_positives: dict[str, int]  # val, test -> number of queries without a positive
    distances_m: dict[str, float] = field(default_factory=dict)  # "train, test" -> smallest distance

    @property
    def counts(self) -> dict[str, int]:
        """Number of photos of each split."""
        counts = Counter(self.splits.tolist())
        return {split: counts[split] for split in SPLITS}


def read_places(table: "pa.Table") -> Places:
    """Positions, times and sequences of a table; 0, 0 and impossible positions are unknown."""
    import pyarrow as pa

    latitudes, longitudes = (np.array(table[name].to_numpy(), np.float64) for name in ("latitude", "longitude"))
    valid = (np.abs(latitudes) <= 90) & (np.abs(longitudes) <= 180) & ((latitudes != 0) | (longitudes != 0))
    points = ecef_from_lla(np.where(valid, latitudes, np.nan), np.where(valid, longitudes, np.nan))
    micros = np.array(table["time"].cast(pa.int64()).cast(pa.float64(), safe=False).to_numpy(), np.float64)
    texts = np.array([text or "" for text in table["sequence"].to_pylist()], str)
    _, sequences = np.unique(texts, return_inverse=True)
    return Places(points=points, seconds=micros / 1e6, sequences=np.where(texts == "", -1, sequences.reshape(-1)))


def split_dataset(config: SplitConfig) -> tuple[SplitResult, dict[str, int]]:
    """Split a dataset and, unless it is a dry run, write its table; also returns the counts of the former splits.

    The distances of the result are measured in the table as it was written.
    Raises DatasetError if there is no table, or if a split would be empty; StorageError during an import.
    """
    path = table_path(config.dataset)
    with nullcontext() if config.dry_run else locked_dataset(path.parent):  # an import writes the table, too
        table = read_table(path)
        former = Counter(text for text in table["split"].to_pylist() if text)
        result = plan_splits(read_places(table), config)
        if not config.dry_run:
            _write_splits(path, table, result.splits)
            table = read_table(path)
    splits = result.splits if config.dry_run else np.array([text or "" for text in table["split"].to_pylist()], str)
    result.distances_m.update(smallest_distances_m(read_places(table).points, splits))
    return result, dict(former)


def table_path(dataset: str | Path) -> Path:
    """The table of a dataset.  Raises DatasetError if there is none."""
    path = Path(dataset)
    path = path if path.suffix == ".parquet" else path / TABLE_NAME
    if path.parent.exists() and not path.parent.is_dir():
        raise DatasetError(f"{path.parent} {problem_with_kind(path.parent, 'folder')}. Use the folder of a dataset.")
    if not path.is_file():
        raise DatasetError(
            f"{path.parent} has no table {TABLE_NAME}. Create one first: `cosplace import {path.parent} --to DATASET`."
        )
    return path


def _write_splits(path: Path, table: "pa.Table", splits: np.ndarray) -> None:
    """Write the table with other splits; columns of other programs stay.  table: its known columns."""
    import pyarrow as pa

    with open_parquet(path) as file:
        whole = file.read()
    if GEOMETRY not in whole.column_names:
        whole = whole.append_column(GEOMETRY, to_table(from_table(table))[GEOMETRY])
    column = pa.array([text or None for text in splits.tolist()], pa.string())
    place = whole.schema.get_field_index("split")
    whole = whole.append_column("split", column) if place < 0 else whole.set_column(place, "split", column)
    write_table(path, whole, own_splits=True)


# --- areas -----------------------------------------------------------------------------------------------------------


def plan_splits(places: Places, config: SplitConfig) -> SplitResult:
    """Choose the split of each photo.

    If a split is empty, such as the queries of a set whose photos are far apart, other areas are tried.
    Raises DatasetError if the photos do not suffice for all splits.
    """
    generator = np.random.Generator(np.random.Philox(key=config.seed))
    for _ in range(NUM_ATTEMPTS):
        result = _plan(places, config, generator)
        if not (empty := _empty_splits(result, config)):
            return result
    raise _too_few_photos(empty, config)


def _plan(places: Places, config: SplitConfig, generator: np.random.Generator) -> SplitResult:
    """One choice of areas and queries; splits may be empty."""
    unused: dict[str, int] = {}
    usable = ~np.isnan(places.points[:, 0])
    _count(unused, "without a position", ~usable)
    if config.by != "blocks":
        known = ~np.isnan(places.seconds) if config.by == "time" else places.sequences >= 0
        _count(unused, f"without a {config.by}", usable & ~known)
        usable &= known
    if not usable.any():
        advice = "Use --by blocks." if (~np.isnan(places.points[:, 0])).any() else "Import their positions first."
        raise DatasetError(f"{config.dataset}: all photos are {' or '.join(unused)}. {advice}")
    rows = np.flatnonzero(usable)
    areas, method = _choose_areas(places, rows, config, generator)
    lost = areas[rows] == NONE
    _count(unused, f"within {config.buffer_m:g} m of another split", lost)
    splits = np.full(len(usable), "", f"U{max(map(len, SPLITS))}")
    first_query_s = _longest_break(places.seconds[rows]) if config.by == "time" else np.nan
    in_train = areas == TRAIN
    if config.by == "time":
        _count(
            unused,
            "from training areas, taken as late as the queries",
            late := in_train & (places.seconds >= first_query_s),
        )
        in_train &= ~late
    splits[in_train] = "train"
    rules, without_positives = {}, {}
    for area, name in ((VAL, "val"), (TEST, "test")):
        members = np.flatnonzero(areas == area)
        if not len(members):
            continue
        choice = _choose_roles(places, members, first_query_s, config, generator)
        is_query = choice.roles == QUERY
        splits[members] = np.where(is_query, f"{name}/queries", f"{name}/database")
        splits[members[choice.roles == UNUSED]] = ""
        _count(unused, f"of {name}, near queries of the same visit or without an earlier photo", choice.roles == UNUSED)
        rules[name] = choice.rule
        in_database = splits[members] == f"{name}/database"
        near = num_near(places.points[members], in_database, np.flatnonzero(is_query))
        without_positives[name] = int((near == 0).sum())
    return SplitResult(splits=splits, method=method, rules=rules, unused=unused, without_positives=without_positives)


def _count(unused: dict[str, int], reason: str, which: np.ndarray) -> None:
    if which.any():
        unused[reason] = int(which.sum())


def _empty_splits(result: SplitResult, config: SplitConfig) -> list[str]:
    """The splits that the settings ask for and that have no photos."""
    shares = {"val": config.val, "test": config.test}
    return [split for split in SPLITS if shares.get(split.partition("/")[0], 1) > 0 and not result.counts[split]]


def _too_few_photos(empty: list[str], config: SplitConfig) -> DatasetError:
    if all(split.endswith("queries") for split in empty):
        seen = "an earlier photo" if config.by == "time" else "another photo"
        return DatasetError(
            f"{config.dataset}: there would be no {' and no '.join(empty)}: no photo has {seen} of its set within "
            f"{RADIUS_M:g} m. Use `cosplace split` with another --by, or larger --val and --test."
        )
    shorter = " or --block_m" if config.by == "blocks" else ""
    return DatasetError(
        f"{config.dataset}: no photo would be in {', '.join(empty)}: the photos cover too small an area for --val "
        f"{config.val:g}, --test {config.test:g} and --buffer_m {config.buffer_m:g}. Use `cosplace split` with "
        f"another --by, a smaller --buffer_m{shorter}, or --val 0."
    )


def _choose_areas(
    places: Places, rows: np.ndarray, config: SplitConfig, generator: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Area of each photo (I,) int8, NONE in buffers and for photos not in `rows`; and how they were chosen."""
    points = places.points[rows]
    areas = np.full(len(places.points), NONE, np.int8)
    if config.by == "sequence":
        units, method = places.sequences[rows], "whole sequences"
    else:
        block_m = config.block_m or _block_side(points, config.buffer_m)
        units, method = block_numbers(points, block_m), f"blocks of {block_m:g} m"
    _, units = np.unique(units, return_inverse=True)
    chosen = _with_buffer(points, _scattered(units.reshape(-1), config, generator), config.buffer_m)
    missing = (config.test > 0 and not (chosen == TEST).any()) or (config.val > 0 and not (chosen == VAL).any())
    if config.by != "sequence" and (missing or (chosen == NONE).mean() > MAX_LOST):
        at_ends = _with_buffer(points, _at_ends(points, config), config.buffer_m)
        if missing or (at_ends == NONE).mean() < (chosen == NONE).mean():
            chosen, method = at_ends, "test and val are at opposite ends of the area"
    areas[rows] = chosen
    return areas, method


def block_numbers(points: np.ndarray, side_m: float) -> np.ndarray:
    """Number of the square block of each point (I, 3), (I,) int64: rows of latitude, divided into whole columns.

    The antimeridian and the poles are borders of blocks like any other.
    """
    latitudes, longitudes = lla_from_ecef(points)
    row = np.floor(np.radians(latitudes + 90) * EARTH_RADIUS_M / side_m).astype(np.int64)
    middle = np.radians(np.clip(np.degrees((row + 0.5) * side_m / EARTH_RADIUS_M) - 90, -90, 90))
    num_columns = np.maximum(1, np.floor(2 * np.pi * EARTH_RADIUS_M * np.cos(middle) / side_m)).astype(np.int64)
    column = np.floor(np.mod(longitudes + 180, 360) / 360 * num_columns).astype(np.int64)
    return row * (1 << 31) + np.minimum(column, num_columns - 1)


def _block_side(points: np.ndarray, buffer_m: float) -> float:
    """Side of blocks: the largest one that gives enough of them, but not below twice the buffer."""
    sides = [side for side in BLOCK_SIZES_M if side >= 2 * buffer_m] or [2 * buffer_m]
    return next((side for side in sides if len(np.unique(block_numbers(points, side))) >= ENOUGH_BLOCKS), sides[-1])


def _scattered(units: np.ndarray, config: SplitConfig, generator: np.random.Generator) -> np.ndarray:
    """Area of each photo (I,): random units go to test and val until these have their shares.  units: (I,), from 0."""
    sizes = np.bincount(units)
    area_of = np.full(len(sizes), TRAIN, np.int8)
    wanted = {area: share * len(units) for area, share in ((TEST, config.test), (VAL, config.val)) if share > 0}
    have = dict.fromkeys(wanted, 0)
    for unit in generator.permutation(len(sizes)).tolist():
        for area, count in wanted.items():
            # At most half a unit too many; but the first one may be twice as large as what is wanted.
            if have[area] + sizes[unit] / 2 <= count or (not have[area] and sizes[unit] <= 2 * count):
                area_of[unit] = area
                have[area] += sizes[unit]
                break
    return area_of[units]


def _at_ends(points: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Area of each photo (I,): test at one end of the longest extent, val at the other one."""
    centered = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(centered.T @ centered)
    along = centered @ axes[:, -1]
    along = along if along[np.abs(along).argmax()] > 0 else -along  # the sign of an eigenvector is arbitrary
    areas = np.full(len(points), TRAIN, np.int8)
    if config.val > 0:
        areas[along >= np.quantile(along, 1 - config.val)] = VAL
    if config.test > 0:
        areas[along <= np.quantile(along, config.test)] = TEST
    return areas


def _with_buffer(points: np.ndarray, areas: np.ndarray, buffer_m: float) -> np.ndarray:
    """Areas without the photos that are nearer than the buffer: of val to test, of train to both."""
    areas = areas.copy()
    for area, others in ((VAL, (TEST,)), (TRAIN, (VAL, TEST))):
        rows = np.flatnonzero(areas == area)
        near = _nearest_m(points[rows], points[np.isin(areas, others)]) < buffer_m + 1e-3
        areas[rows[near]] = NONE
    return areas


def _nearest_m(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance from each point to the nearest of some others, (n,) in meters; inf without any."""
    from scipy.spatial import KDTree

    if not len(points) or not len(others):
        return np.full(len(points), np.inf)
    _, nearest = KDTree(others).query(points)
    return distances_m(points, others[nearest])


def smallest_distances_m(points: np.ndarray, splits: np.ndarray) -> dict[str, float]:
    """Smallest distance between the photos of each two of train, val and test, by name, such as "train, test"."""
    areas = np.array([text.partition("/")[0] for text in splits.tolist()], str)
    found = {}
    for number, one in enumerate(AREAS):
        for other in AREAS[number + 1 :]:
            meters = _nearest_m(points[areas == other], points[areas == one])
            if len(meters) and np.isfinite(meters).all():
                found[f"{one}, {other}"] = float(meters.min())
    return found


# --- queries ---------------------------------------------------------------------------------------------------------


def _choose_roles(
    places: Places, members: np.ndarray, first_query_s: float, config: SplitConfig, generator: np.random.Generator
) -> QueryChoice:
    points, seconds = places.points[members], places.seconds[members]
    if config.by == "time":
        return later_queries(points, seconds, first_query_s)
    return choose_queries(points, visits_of(seconds, places.sequences[members]), config.query_share, generator)


def _longest_break(seconds: np.ndarray) -> float:
    """First time after the longest break between two of CUT_QUANTILES of the times."""
    ordered = np.sort(seconds)
    first, last = (min(len(ordered) - 1, int(share * len(ordered))) for share in CUT_QUANTILES)
    if last <= first:
        return float(ordered[-1])
    breaks = np.diff(ordered[first : last + 1])
    return float(ordered[first + 1 + int(breaks.argmax())])
