r"""A dataset as one GeoParquet table: where each photo was taken, and when; written by `cosplace import`.

The table of a folder is its file `photos.parquet`.  Paths in it are relative to that folder.  GIS programs open it as
points; every column but `path` may be empty.  A byte of a path that is not UTF-8 is written as \x and two digits.  Side
effects: reads and writes files.
"""

import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cosplace.errors import DatasetError, one_line
from cosplace.photos.parquet_files import arrow_compute, open_parquet
from cosplace.photos.paths import path_from_text, path_text
from cosplace.storage import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TABLE_NAME = "photos.parquet"
GEOMETRY = "geometry"
OWN_SPLITS = b"cosplace_split"  # key of the metadata of a table whose splits `cosplace split` made
UNKNOWN = float("nan")
TIME_LIMITS_S = (-62_135_596_800.0, 253_402_300_799.0)  # of the years 1 to 9999, which dates can have


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoRecord:
    """One photo of a table: its columns.  Numbers are nan, and texts empty, where a value is unknown."""

    path: str  # relative to the folder of the table, "/" between folders
    latitude: float = UNKNOWN  # degrees
    longitude: float = UNKNOWN  # degrees
    altitude_m: float = UNKNOWN
    accuracy_m: float = UNKNOWN  # error of the position, as its source estimates it
    heading: float = UNKNOWN  # degrees clockwise from true north of the optical axis, in [0, 360)
    heading_source: str = ""  # exif, xmp, name, table, track, pose, panorama
    pitch: float = UNKNOWN  # degrees, up is positive
    roll: float = UNKNOWN  # degrees, clockwise is positive
    field_of_view: float = UNKNOWN  # horizontal, degrees
    # Seconds since 1970 (UTC), with fraction.  00:00:00 is that of a photo of which only the date is known, and on the
    # first day of a month, only the month.
    time: float = UNKNOWN
    time_zone: str = ""  # assumed: the clock had none, and was taken as UTC; stated; or "" where that is not recorded
    sequence: str = ""  # photos taken one after another: a drive, a video, a track
    camera: str = ""
    projection: str = ""  # "" or perspective, equirectangular, fisheye
    split: str = ""  # train, val/database, val/queries, test/database or test/queries
    place: str = ""  # the place that the photo shows, where a dataset names places instead of measuring them
    source: str = ""  # the file that the photo, or its position, was imported from
    video_time: float = UNKNOWN  # seconds from the start of the video `source`
    width: int = 0  # pixels
    height: int = 0
    checksum: str = ""  # SHA-256 of the file, in hexadecimal


COLUMNS = tuple(field.name for field in fields(PhotoRecord))
ZONE_ASSUMED, ZONE_STATED = "assumed", "stated"
TEXTS = (
    "path",
    "heading_source",
    "time_zone",
    "sequence",
    "camera",
    "projection",
    "split",
    "place",
    "source",
    "checksum",
)
INTEGERS = ("width", "height")


def schema() -> "pa.Schema":
    """The Arrow schema of a table, without its metadata."""
    import pyarrow as pa

    def kind(name: str) -> "pa.DataType":
        if name == "time":
            return pa.timestamp("us", tz="UTC")
        return pa.string() if name in TEXTS else pa.int32() if name in INTEGERS else pa.float64()

    return pa.schema([pa.field(name, kind(name)) for name in COLUMNS] + [pa.field(GEOMETRY, pa.binary())])


def known_time(seconds: float) -> float:
    """Seconds since 1970, or nan if they are not in the years 1 to 9999."""
    return seconds if TIME_LIMITS_S[0] <= seconds <= TIME_LIMITS_S[1] else UNKNOWN


def has_time_of_day(seconds: float) -> bool:
    """Whether a known time is more than a date: 00:00:00 UTC is that of a photo whose time of day is unknown."""
    return seconds % 86_400 != 0


def to_table(records: Iterable[PhotoRecord]) -> "pa.Table":
    """Records as an Arrow table; unknown values become null."""
    records = list(records)
    values = {name: [getattr(record, name) for record in records] for name in COLUMNS}
    return table_of_columns(values | {"path": [path_text(record.path) for record in records]})


def table_of_columns(values: Mapping[str, Sequence[Any]]) -> "pa.Table":
    """The Arrow table of the values of each column, paths as text; unknown values become null."""
    import pyarrow as pa

    types = schema()
    columns = {}
    for name in COLUMNS:
        if name == "path":
            columns[name] = pa.array(values[name], pa.string())
        elif name == "time":
            seconds = np.array(values[name], np.float64)
            known = (seconds >= TIME_LIMITS_S[0]) & (seconds <= TIME_LIMITS_S[1])  # false for nan
            micros = np.where(known, np.round(np.where(known, seconds, 0) * 1e6), 0).astype(np.int64)
            columns[name] = pa.array(micros, pa.int64(), mask=~known).cast(types.field(name).type)
        elif name in TEXTS:
            columns[name] = pa.array([value or None for value in values[name]], pa.string())
        elif name in INTEGERS:
            columns[name] = pa.array([value or None for value in values[name]], pa.int32())
        else:
            columns[name] = pa.array(np.array(values[name], np.float64), pa.float64(), from_pandas=True)
    positions = np.array([values["longitude"], values["latitude"]], "<f8").T
    columns[GEOMETRY] = pa.array(_points(positions), pa.binary())
    return pa.table(columns, schema=types)


def from_table(table: "pa.Table") -> list[PhotoRecord]:
    """The records of an Arrow table as `read_table` returns it."""
    columns: dict[str, list[Any]] = {}
    for name in COLUMNS:
        column = table[name]
        if name == "time":
            import pyarrow as pa

            micros = column.cast(pa.int64()).to_pylist()
            values = [UNKNOWN if one is None else known_time(one / 1e6) for one in micros]
        else:
            empty: Any = "" if name in TEXTS else 0 if name in INTEGERS else UNKNOWN
            values = [empty if value is None else value for value in column.to_pylist()]
        if name == "path":
            values = [stored_path(value or "") for value in column.to_pylist()]
        columns[name] = values
    return [PhotoRecord(**dict(zip(COLUMNS, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def stored_path(text: str) -> str:
    """The path of a record that a table has as text."""
    return os.fspath(path_from_text(text)) if "\\x" in text else text


def write_table(path: Path, table: "pa.Table", *, own_splits: bool | None = None) -> None:
    """Write a table as GeoParquet, sorted by path, beside the final file first.

    own_splits: see `has_own_splits`; None: as in the file that is replaced.
    Raises DatasetError if a path occurs twice.
    """
    pc = arrow_compute()
    table = table.sort_by("path")
    paths = table["path"].combine_chunks()
    if len(paths) > 1 and (twice := pc.index(pc.equal(paths[1:], paths[:-1]), True).as_py()) >= 0:
        raise DatasetError(one_line(f"{path}: {paths[twice].as_py()} occurs twice. Give each photo its own path."))
    positions = table.select(["longitude", "latitude"]).drop_null()
    longitudes, latitudes = (positions[name].to_numpy() for name in ("longitude", "latitude"))
    bounds: tuple[float, ...] = ()
    if len(longitudes):
        bounds = (longitudes.min(), latitudes.min(), longitudes.max(), latitudes.max())
    write_sorted(path, table.schema, [table], bounds, own_splits=own_splits)


def write_sorted(
    path: Path,
    types: "pa.Schema",
    blocks: Iterable["pa.Table"],
    bounds: Sequence[float],
    *,
    own_splits: bool | None = None,
) -> None:
    """Write a table that is given in blocks, sorted by path, without a path that occurs twice.

    bounds: of its positions: west, south, east, north in degrees; empty without positions.  own_splits: as for
    `write_table`.
    """
    import pyarrow.parquet as pq

    geometry: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"]}
    if bounds:
        geometry["bbox"] = [float(value) for value in bounds]
    geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: geometry}}
    is_own = has_own_splits(path) if own_splits is None else own_splits
    types = types.with_metadata({"geo": json.dumps(geo)} | ({OWN_SPLITS: "1"} if is_own else {}))

    def write(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, types, compression="zstd") as writer:
            for block in blocks:
                writer.write_table(block)

    write_atomically(path, write)


def has_own_splits(path: Path) -> bool:
    """Whether `cosplace split` made the splits of a table; those of a published dataset come with the dataset.

    False for a file that is missing or not a table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:  # Arrow itself opens no path that is not UTF-8
            return OWN_SPLITS in (pq.read_schema(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def read_table(path: Path, columns: Sequence[str] = COLUMNS) -> "pa.Table":
    """Columns of a table; those that the file lacks are null.

    Raises DatasetError for a file that is not a table of photos, or has columns of other types.
    """
    with _opened(path) as file:
        names = set(file.schema_arrow.names)
        table = file.read([name for name in columns if name in names])
    return _typed(path, table, columns)


def read_blocks(path: Path, num_rows: int) -> Iterator["pa.Table"]:
    """The rows of a table, as `read_table` returns them, in blocks of `num_rows`."""
    import pyarrow as pa

    with _opened(path) as file:
        names = set(file.schema_arrow.names)
        for batch in file.iter_batches(num_rows, columns=[name for name in COLUMNS if name in names]):
            yield _typed(path, pa.Table.from_batches([batch]), COLUMNS)


@contextmanager
def _opened(path: Path) -> Generator["pq.ParquetFile"]:
    """A table of photos.  Raises DatasetError for other files, also within."""
    import pyarrow as pa

    try:
        with open_parquet(path) as file:
            if "path" not in file.schema_arrow.names:
                raise DatasetError(
                    f"{path} has no column `path`. Convert it with `cosplace import {path} --to DATASET`."
                )
            yield file
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist. Create it with `cosplace import`.") from error
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(one_line(f"{path} cannot be read as Parquet ({error}). Import the photos again.")) from error


def _typed(path: Path, table: "pa.Table", columns: Sequence[str]) -> "pa.Table":
    """Columns of a table with the types of `schema`; those that it lacks are null."""
    import pyarrow as pa

    types, found = schema(), {}
    for name in columns:
        kind = types.field(name).type
        if name not in table.column_names:
            found[name] = pa.nulls(len(table), kind)
            continue
        try:
            if pa.types.is_boolean(table[name].type):  # "true" would be a latitude of 1 degree
                raise pa.ArrowInvalid("boolean")
            found[name] = table[name].cast(kind)
        except pa.ArrowException as error:
            raise DatasetError(
                f"{path}: column `{name}` has type {table[name].type}, not {kind}. Convert it with `cosplace import`."
            ) from error
    return pa.table(found)


def _points(positions: np.ndarray) -> list[bytes | None]:
    """Longitudes and latitudes (n, 2) as WKB points (little endian, type 1); None where unknown."""
    points = (None if np.isnan(position).any() else position.tobytes() for position in positions)
    return [point and b"\x01\x01\x00\x00\x00" + point for point in points]
