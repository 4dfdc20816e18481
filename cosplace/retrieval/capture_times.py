"""When the photos of a list were taken, and in which sequence; signs that a camera's clock was wrong."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosplace.photos.image_list import ImageList
from cosplace.photos.metadata import LOCAL_TIME_NOTE, time_of_timestamp
from cosplace.photos.names import split_name
from cosplace.photos.tables import TABLE_NAME, UNKNOWN, ZONE_ASSUMED, read_table

FIRST_TIME = 631_152_000.0  # seconds, 1990: there were hardly any digital cameras before
DAY_S = 86_400.0  # tolerance for photos in the future: clocks without a time zone
MANY = 10  # photos at different positions in the same second
EXACT_DIGITS = 12  # of a timestamp in a name, up to the minute; others are only a date, a month or a year
YEAR_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureTimes:
    """When the photos of a list were taken."""

    seconds: np.ndarray  # (I,) float64: since 1970 (UTC), nan where unknown
    is_exact: np.ndarray  # (I,) bool: with hours and minutes, not only a date
    sequences: np.ndarray  # (I,) int64: number of the sequence, -1 where unknown
    are_local: np.ndarray  # (I,) bool: of a clock without a time zone, which was taken as UTC
    has_month: np.ndarray  # (I,) bool: not only a year

    def of_all(self, rows: np.ndarray, count: int) -> "CaptureTimes":
        """The same for a longer list, of `count` photos, in which these photos have some rows."""
        seconds, is_exact, sequences = np.full(count, np.nan), np.zeros(count, bool), np.full(count, -1)
        seconds[rows], is_exact[rows], sequences[rows] = self.seconds, self.is_exact, self.sequences
        are_local, has_month = np.zeros(count, bool), np.zeros(count, bool)
        are_local[rows], has_month[rows] = self.are_local, self.has_month
        return CaptureTimes(
            seconds=seconds, is_exact=is_exact, sequences=sequences, are_local=are_local, has_month=has_month
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumns:
    """What a table knows in addition to the labels of a list, by path."""

    folder: Path
    row_of: dict[str, int]  # path relative to the folder -> row
    seconds: np.ndarray  # (rows,) float64
    sequences: np.ndarray  # (rows,) int64
    splits: np.ndarray  # (rows,) str objects, "" where empty
    checksums: list[str]
    are_local: np.ndarray  # (rows,) bool: times of clocks without a time zone


def read_columns(dataset: Path) -> TableColumns | None:
    """Columns of the table of a dataset, a folder or a Parquet file; None without a table."""
    path = dataset if dataset.suffix == ".parquet" else dataset / TABLE_NAME
    if not path.is_file():
        return None
    import pyarrow as pa

    table = read_table(path, ("path", "time", "time_zone", "sequence", "split", "checksum"))
    micros = table["time"].cast(pa.int64()).to_numpy()
    _, sequences = np.unique(np.array([text or "" for text in table["sequence"].to_pylist()]), return_inverse=True)
    is_known = np.array([bool(text) for text in table["sequence"].to_pylist()], bool)
    return TableColumns(
        folder=path.parent,
        row_of={name: row for row, name in enumerate(table["path"].to_pylist())},
        seconds=np.where(np.isnan(micros := micros.astype(np.float64)), UNKNOWN, micros / 1e6),
        sequences=np.where(is_known, sequences, -1),
        splits=np.array([text or "" for text in table["split"].to_pylist()], object),
        checksums=[text or "" for text in table["checksum"].to_pylist()],
        are_local=np.array([text == ZONE_ASSUMED for text in table["time_zone"].to_pylist()], bool),
    )


def table_rows(images: ImageList, columns: TableColumns) -> np.ndarray:
    """Row in the table of each photo of a list, (I,) int64; -1 for a photo that the table lacks."""
    below, above = images.folder.resolve(), columns.folder.resolve()
    if not below.is_relative_to(above):  # queries of another place
        return np.full(len(images), -1)
    prefix = below.relative_to(above).as_posix()
    prefix = "" if prefix == "." else f"{prefix}/"
    return np.array([columns.row_of.get(prefix + images.name(row), -1) for row in range(len(images))], np.int64)


def capture_times(images: ImageList, columns: TableColumns | None) -> CaptureTimes:
    """Times and sequences of the photos of a list, from a table, else from the timestamps of names and labels."""
    if columns is not None:
        rows = table_rows(images, columns)
        known = rows >= 0
        seconds = np.where(known, columns.seconds[rows], UNKNOWN)
        return CaptureTimes(
            seconds=seconds,
            is_exact=seconds % DAY_S != 0,  # midnight: the photo's name or table had only a date
            sequences=np.where(known, columns.sequences[rows], -1),
            are_local=known & columns.are_local[rows],
            has_month=~_begins_a_year(seconds),  # a table does not tell a year from its first second
        )
    found: dict[str, tuple[float, int]] = {}
    fields = [split_name(images.label(row)) for row in range(len(images))]
    texts = [one.get("timestamp", "") for one in fields]
    for text in set(texts):
        found[text] = time_of_timestamp(text), sum(character.isdecimal() for character in text)
    return CaptureTimes(
        seconds=np.array([found[text][0] for text in texts], np.float64),
        is_exact=np.array([found[text][1] >= EXACT_DIGITS for text in texts], bool),
        sequences=np.full(len(images), -1),
        are_local=np.array([LOCAL_TIME_NOTE in one.get("note", "").split() for one in fields], bool),
        has_month=np.array([found[text][1] > YEAR_DIGITS for text in texts], bool),
    )


def _begins_a_year(seconds: np.ndarray) -> np.ndarray:
    """Whether times are the first second of a year, (I,) bool; False for nan."""
    known = np.isfinite(seconds)
    times = np.floor(np.where(known, seconds, 0.0)).astype(np.int64).astype("datetime64[s]")
    return known & (times == times.astype("datetime64[Y]").astype("datetime64[s]"))


def clock_problems(images: ImageList, times: CaptureTimes, points: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Signs of a wrong clock: (kind, which photos (I,) bool), also those that no photo has.

    points: (I, 2 or 3) positions in meters, nan where unknown.
    """
    seconds = times.seconds
    is_zoned = times.is_exact & ~times.are_local & ~np.isnan(seconds)
    backwards = np.zeros(len(seconds), bool)
    rows = np.flatnonzero((times.sequences >= 0) & ~np.isnan(seconds))
    rows = np.array(
        sorted(rows.tolist(), key=lambda row: (times.sequences[row], _numbers_in_order(images.name(row)))), np.int64
    )
    same_sequence = times.sequences[rows[1:]] == times.sequences[rows[:-1]]
    backwards[rows[1:][same_sequence & (seconds[rows[1:]] < seconds[rows[:-1]])]] = True
    return [
        ("date before 1990: the clock of the camera was not set", seconds < FIRST_TIME),
        ("date in the future: the clock of the camera is wrong", seconds > time.time() + DAY_S),
        (f"same second as {MANY} or more photos at other positions", _crowded(times, points)),
        ("earlier than the photo before it in its sequence", backwards),
        (
            "time without a time zone, taken as UTC, but other photos have one: set it by `import --timezone`",
            times.are_local & ~np.isnan(seconds) & is_zoned.any(),
        ),
    ]


def _numbers_in_order(name: str) -> list[str]:
    """Sort key of a path by which frame_2 comes before frame_10."""
    return [part.zfill(20) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _crowded(times: CaptureTimes, points: np.ndarray) -> np.ndarray:
    """Photos that share their second with photos at many other positions, (I,) bool; unknown positions all differ."""
    crowded = np.zeros(len(points), bool)
    rows = np.flatnonzero(times.is_exact & ~np.isnan(times.seconds))
    _, second = np.unique(np.floor(times.seconds[rows]), return_inverse=True)
    whole = np.round(points[rows])  # meters: the cameras of one vehicle are close together
    _, place = np.unique(np.nan_to_num(whole, nan=-1.0), axis=0, return_inverse=True)
    place = np.where(np.isnan(whole).any(axis=1), place.max(initial=0) + 1 + np.arange(len(rows)), place.reshape(-1))
    pairs = np.unique(np.stack([second, place], 1), axis=0)  # different positions of each second
    num_places = np.bincount(pairs[:, 0], minlength=second.max(initial=-1) + 1)
    crowded[rows[num_places[second] > MANY]] = True
    return crowded
