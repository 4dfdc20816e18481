"""Parts of the field's datasets: photos of one split, with what the dataset's own tables say of them.

Legend: I photos.  Side effects: reads folders and CSV files.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError, one_line
from cosplace.importing.records import Problem
from cosplace.photos.formats import SUFFIXES, suffix_of

DATABASE, QUERIES = "database", "queries"
RAW_FOLDERS = ("", "raw_data", "raw")  # between the folder of a dataset and its files as they were downloaded
ORIGIN_M = 1000.0  # east and north of the first place on a line, so that no position is 0, 0, which means unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPart:
    """Photos of one split.  Arrays are (I,), and None where nothing is known."""

    split: str  # as in the column `split` of a table
    paths: Sequence[str]  # relative to the folder of the layout
    latitudes: np.ndarray | None = None  # degrees
    longitudes: np.ndarray | None = None  # degrees
    headings: np.ndarray | None = None  # degrees clockwise from north
    times: np.ndarray | None = None  # seconds since 1970 (UTC)
    sequences: Sequence[str] = ()
    places: Sequence[str] = ()
    # Positions on a line in meters, where places have numbers instead of positions on Earth
    line_m: np.ndarray | None = None
    projection: str = ""
    has_names: bool = False  # positions are in '@' names
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        if self.latitudes is not None and self.longitudes is not None:
            latitudes, longitudes = possible_positions(self.latitudes, self.longitudes)
            problems = list(self.problems)
            is_given = ~np.isnan(self.latitudes) & ~np.isnan(self.longitudes)
            for row in np.flatnonzero(np.isnan(latitudes) & is_given).tolist():
                position = f"({self.latitudes[row]:g}, {self.longitudes[row]:g})"
                reason = f"position {position} is not on Earth; it is unknown"
                problems.append(Problem(name=self.paths[row], reason=reason, is_left_out=False))
            object.__setattr__(self, "problems", tuple(problems))
            object.__setattr__(self, "latitudes", latitudes)
            object.__setattr__(self, "longitudes", longitudes)


def possible_positions(latitudes: np.ndarray, longitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes (I,); nan for both where they are not a position on Earth."""
    possible = (np.abs(latitudes) <= 90) & (np.abs(longitudes) <= 180)
    return np.where(possible, latitudes, np.nan), np.where(possible, longitudes, np.nan)


def first_rows(
    table: Path, names: Sequence[str], positions: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """Which rows of a table are the first one of their photo, (I,) bool, and a problem for each other row.

    positions: two coordinates (I,).  Raises DatasetError if a photo has two positions.
    """
    is_first, first, problems = np.ones(len(names), bool), dict[str, int](), []
    a, b = positions
    for row, name in enumerate(names):
        earlier = first.setdefault(name, row)
        if earlier == row:
            continue
        if not np.array_equal((a[earlier], b[earlier]), (a[row], b[row]), equal_nan=True):
            raise DatasetError(
                one_line(
                    f"{table} lists '{name}' at two positions: {a[earlier]:.10g}, {b[earlier]:.10g} and {a[row]:.10g}, "
                    f"{b[row]:.10g}. Remove the wrong row."
                )
            )
        is_first[row] = False
        reason = "listed twice at the same position; only the first row is used"
        problems.append(Problem(name=f"{table}: {name}", reason=reason))
    return is_first, tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A dataset of the field in a folder."""

    name: str
    folder: Path
    splits: tuple[str, ...]  # of train, val and test
    # The parts of a split; for "", all parts as they are imported
    read_parts: Callable[[Path, str], Iterator[LayoutPart]]
    note: str = ""  # what distances between photos mean, if they are not meters on the ground
    unions: tuple[tuple[str, tuple[str, ...]], ...] = ()  # query sets that consist of others
    is_videos: bool = False  # photos have to be taken from videos first, so that only an import can use it


def line_label(position_m: float, place: str, note: str) -> str:
    """The '@' name of a place that has a position on a line only: no zone, latitude or longitude.

    note: tells the photos of a place apart.
    """
    place, note = (text.replace("@", "_").replace("/", "_") for text in (place, note))
    return f"@{ORIGIN_M:.2f}@{ORIGIN_M + position_m:.3f}@@@@@{place}@@@@@@@{note}@"


def raw_folders(folder: Path) -> Iterator[Path]:
    """Folders in which the files of a dataset may be."""
    for between in RAW_FOLDERS:
        if (folder / between).is_dir():
            yield folder / between


def photo_names(folder: Path) -> list[str]:
    """Names of the photos directly in a folder, sorted; files are not opened.  Raises DatasetError."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise DatasetError(one_line(f"{folder} cannot be read ({error.strerror}).")) from error
    return sorted(name for name in names if suffix_of(os.fsencode(name)) in SUFFIXES and name[0] != ".")


def folder_names(folder: Path) -> list[str]:
    """Names of the folders directly in a folder that can be read, sorted; none if it cannot be read itself."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
            return sorted(name for name in names if os.access(folder / name, os.R_OK | os.X_OK))
    except OSError:
        return []


def read_csv(path: Path, texts: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[str]]:
    """Columns of a CSV file, as texts.  optional: columns that may be missing.

    Raises DatasetError that names the file, and the column, that is missing.
    """
    import pyarrow as pa
    from pyarrow import csv

    wanted = [*texts, *optional]
    try:
        options = csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()), include_columns=list(texts))
        if optional:
            with csv.open_csv(path) as reader:
                options.include_columns = [name for name in wanted if name in reader.schema.names or name in texts]
        table = csv.read_csv(path, convert_options=options)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing. Unpack all files of the dataset.") from error
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DatasetError(one_line(f"{path} cannot be read ({error}). Unpack it again.")) from error
    return {name: table[name].to_pylist() for name in table.column_names}


def numbers(texts: Sequence[str | None]) -> np.ndarray:
    """Numbers (I,) of texts; nan for others."""
    values = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        try:
            values[row] = float(text or "nan")
        except ValueError:
            continue
    return values


def day_times(texts: Sequence[str | None]) -> np.ndarray:
    """Seconds since 1970 (I,) of dates such as 2018-05-27: midnight UTC of that day; nan for others."""
    values = np.full(len(texts), np.nan)
    known: dict[str, float] = {}
    for row, text in enumerate(texts):
        if not text:
            continue
        if text not in known:
            try:
                known[text] = float(np.datetime64(text[:10], "s").astype(np.int64))
            except ValueError:
                known[text] = np.nan
        values[row] = known[text]
    return values


def month_times(years: np.ndarray, months: np.ndarray) -> np.ndarray:
    """Seconds since 1970 (I,) of the first day of months (UTC), as for an '@' name with a year and a month."""
    months_since_1970 = (years - 1970) * 12 + months - 1
    return months_since_1970.astype("M8[M]").astype("M8[s]").astype(np.int64).astype(np.float64)
