"""Tables as files: CSV and TSV of any delimiter and encoding, JSON, JSON lines, Parquet, GeoJSON and GeoPackage.

A table becomes columns of raw values; `columns` interprets them.  A geometry of points becomes the columns GEOMETRY_X,
GEOMETRY_Y and GEOMETRY_Z.  Nothing in a file is executed.  Side effects: reads files.
"""

import csv
import io
import json
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import DatasetError
from cosplace.importing.packages import optional_module
from cosplace.photos.parquet_files import open_parquet

GEOMETRY_X, GEOMETRY_Y, GEOMETRY_Z = "geometry x", "geometry y", "geometry z"
MAX_TEXT_BYTES = 2_000_000_000
DELIMITERS = (",", ";", "\t", "|")
SNIFFED_LINES = 20
TEXT_SUFFIXES = (".csv", ".tsv", ".tab")
JSON_SUFFIXES = (".json", ".geojson", ".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".geoparquet")
GEOPACKAGE_SUFFIXES = (".gpkg",)
POINT, POINT_Z = 1, 1001  # geometry types of WKB
EWKB_Z, EWKB_SRID = 0x80000000, 0x20000000
WGS84_NAMES = ("urn:ogc:def:crs:OGC:1.3:CRS84", "urn:ogc:def:crs:OGC::CRS84", "OGC:CRS84")


@dataclass(frozen=True, slots=True)
class RawTable:
    """A table whose values are not interpreted: texts, numbers, dates or None."""

    path: Path
    columns: dict[str, list[Any]]
    num_rows: int
    crs: Any = None  # of its geometry, as pyproj accepts it; None: longitude and latitude
    repeated: frozenset[str] = frozenset()  # names of several columns, of which the second is "NAME 2"
    too_long: tuple[int, ...] = ()  # rows with more values than there are columns


def read_raw_table(path: Path) -> RawTable:
    """Read a table; its kind is that of its suffix, else CSV.  Raises DatasetError."""
    suffix = path.suffix.lower()
    try:
        if suffix in PARQUET_SUFFIXES:
            table = _read_parquet(path)
        elif suffix in GEOPACKAGE_SUFFIXES:
            table = _read_geopackage(path)
        elif suffix in JSON_SUFFIXES:
            table = _read_json(path)
        else:
            table = _read_csv(path)
    except OSError as error:
        raise DatasetError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not table.num_rows:
        raise DatasetError(f"{path} has no rows. Use a table with one row for each photo.")
    return table


def read_text(path: Path) -> str:
    """The text of a file: UTF-8 or UTF-16, with or without byte order mark, else Windows-1252.  Raises DatasetError."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise DatasetError(f"{path} is larger than {MAX_TEXT_BYTES // 10**9} GB. Convert it to Parquet.")
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    if b"\0" in raw[:2]:  # the first character is of ASCII
        return raw.decode("utf-16-be" if raw[0] == 0 else "utf-16-le", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


# --- CSV -------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> RawTable:
    text = read_text(path)
    lines = io.StringIO(text, newline="")
    first = lines.readline()
    if first.strip().lower().startswith("sep="):  # by Excel
        delimiter = first.strip()[4:5] or ","
    else:
        lines.seek(0)
        delimiter = _delimiter(text)
    try:
        rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        header = [name.strip() for name in next(rows, [])]
        header[:1] = [name.lstrip("# ") for name in header[:1]]
        names = _unique(header)
        columns: dict[str, list[Any]] = {name: [] for name in names}
        values = list(columns.values())
        num_rows, too_long = 0, []
        for row in rows:
            if not any(row):  # an empty line
                continue
            if any(row[len(names) :]):
                too_long.append(num_rows)
            num_rows += 1
            for column, value in zip(values, chain(row, [""] * (len(names) - len(row))), strict=False):
                column.append(value)
    except csv.Error as error:
        raise DatasetError(f"{path} is not a valid CSV table ({error}). Export it again.") from error
    repeated = frozenset(name.removesuffix(" 2") for name in set(names) - set(header))
    return RawTable(path, columns, num_rows, repeated=repeated, too_long=tuple(too_long))


def _delimiter(text: str) -> str:
    """The delimiter that splits the first lines into the most columns, the same number in each line."""
    lines = list(islice(io.StringIO(text, newline=""), SNIFFED_LINES))

    def quality(delimiter: str) -> tuple[bool, int]:
        try:
            counts = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            return False, 0
        return len(set(counts)) == 1 and counts[0] > 1, counts[0] if counts else 0

    return max(DELIMITERS, key=quality)


def _unique(names: Sequence[str]) -> list[str]:
    """Names of columns; a repeated one gets a number."""
    found: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name} {number}"
        found.append(unique)
    return found


# --- JSON ------------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> RawTable:
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path} is not valid JSON ({error}). Export it again.") from error
    if isinstance(content, Mapping) and content.get("type") in ("FeatureCollection", "Feature"):
        return _geojson(path, content)
    rows = _json_rows(content)
    if rows is None:
        raise DatasetError(f"{path} has no list of photos. Use JSON with one object for each photo.")
    return _from_rows(path, [_flat(row) for row in rows])


def _json_rows(content: Any) -> list[Mapping[str, Any]] | None:
    """The objects of a list, or of the only list in an object, or of an object with one for each file name, or one."""
    if isinstance(content, list):
        return [row for row in content if isinstance(row, Mapping)]
    if not isinstance(content, Mapping):
        return None
    lists = [value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    if len(lists) == 1:
        return _json_rows(lists[0])
    if content and all(isinstance(value, Mapping) for value in content.values()):
        return [{"filename": name, **row} for name, row in content.items()]
    return None if lists else [content]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the values of objects in it, as {"EXIF": {"Model": …}} -> {"EXIF:Model": …}."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{name}:{inner}": one for inner, one in value.items()}
        else:
            found[str(name)] = value
    return found


def _from_rows(path: Path, rows: Sequence[Mapping[str, Any]], crs: Any = None) -> RawTable:
    columns: dict[str, list[Any]] = {name: [] for row in rows for name in row}
    for row in rows:
        for name, column in columns.items():
            column.append(row.get(name))
    return RawTable(path, columns, len(rows), crs)


def _geojson(path: Path, content: Mapping[str, Any]) -> RawTable:
    features = content.get("features", [content])
    rows = []
    for feature in features if isinstance(features, list) else ():
        if not isinstance(feature, Mapping):
            continue
        properties = feature.get("properties")
        row = _flat(properties) if isinstance(properties, Mapping) else {}
        if "id" in feature:
            row.setdefault("id", feature["id"])
        geometry = feature.get("geometry")
        if isinstance(geometry, Mapping):
            if geometry.get("type") != "Point":
                raise _not_points(path, str(geometry.get("type")))
            coordinates = geometry.get("coordinates")
            if isinstance(coordinates, list):
                row |= dict(zip((GEOMETRY_X, GEOMETRY_Y, GEOMETRY_Z), coordinates, strict=False))
        rows.append(row)
    crs = content.get("crs")  # only files older than RFC 7946 have it
    properties = crs.get("properties") if isinstance(crs, Mapping) else None
    name = properties.get("name") if isinstance(properties, Mapping) else None
    return _from_rows(path, rows, name if isinstance(name, str) and name not in WGS84_NAMES else None)


def _not_points(path: Path, kind: str) -> DatasetError:
    return DatasetError(f"{path} has geometries of type {kind}. Use a table of points, one for each photo.")


# --- Parquet and GeoPackage ------------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> RawTable:
    import pyarrow as pa

    try:
        with open_parquet(path) as file:
            table = file.read()
            metadata = file.schema_arrow.metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path} cannot be read as Parquet ({error}). Export it again.") from error
    lists = (_values(column) for column in table.columns)
    columns = dict(zip(_unique(table.column_names), lists, strict=True))
    try:
        geo = json.loads(metadata.get(b"geo", b"{}"))
        primary = geo.get("primary_column", "")
        crs = geo.get("columns", {}).get(primary, {}).get("crs")
    except (ValueError, AttributeError, TypeError):
        primary, crs = "", None
    if isinstance(primary, str) and primary in columns:
        columns |= _points(path, columns.pop(primary))
    return RawTable(path, columns, table.num_rows, crs)


def _values(column: Any) -> list[Any]:
    """The values of a column (pyarrow).  Times of a zone are in UTC; others stay those of a clock without a zone."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        unit = column.type.unit
        times = [None if one is None else np.datetime64(one, unit) for one in column.cast(pa.int64()).to_pylist()]
        return times if column.type.tz else [_clock_time(time) for time in times]
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, ArithmeticError):  # such as a date in the year 20000
        return [None] * len(column) if pa.types.is_nested(column.type) else column.cast(pa.string()).to_pylist()


def _clock_time(time: np.datetime64 | None) -> Any:
    """A time as a datetime without a zone, to the microsecond, in the years that it can have."""
    if time is None or np.isnat(time):
        return None
    is_possible = np.datetime64("0001-01-01") <= time.astype("datetime64[s]") <= np.datetime64("9999-12-31T23:59:59")
    return time.astype("datetime64[us]").item() if is_possible else time


def _read_geopackage(path: Path) -> RawTable:
    pyogrio = optional_module("pyogrio", "Reading GeoPackage")
    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
        if len(layers) > 1:
            raise DatasetError(
                f"{path} has {len(layers)} layers ({', '.join(layers[:5])}). Export the one with the photos on its own."
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Non-conformant content")  # such as offsets, which are understood
            meta, _, geometry, fields = pyogrio.raw.read(path, datetime_as_string=True)  # else offsets are lost
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise DatasetError(f"{path} cannot be read as GeoPackage ({error}). Export it again.") from error
    columns = dict(zip(map(str, meta["fields"]), (list(values) for values in fields), strict=True))
    if geometry is not None:
        columns |= _points(path, geometry)
    num_rows = len(geometry) if geometry is not None else len(next(iter(columns.values()), []))
    return RawTable(path, columns, num_rows, meta["crs"])


def _points(path: Path, geometries: Iterable[Any]) -> dict[str, list[Any]]:
    """The coordinates of points in WKB, by column."""
    points = [_point(path, geometry) for geometry in geometries]
    return (
        dict(zip((GEOMETRY_X, GEOMETRY_Y, GEOMETRY_Z), map(list, zip(*points, strict=True)), strict=True))
        if points
        else {}
    )


def _point(path: Path, geometry: Any) -> tuple[float | None, float | None, float | None]:
    if isinstance(geometry, Mapping):  # GeoParquet's native encoding
        return geometry.get("x"), geometry.get("y"), geometry.get("z")
    if not isinstance(geometry, bytes) or len(geometry) < 21:
        return None, None, None
    order = "<" if geometry[0] == 1 else ">"
    (kind,) = struct.unpack_from(f"{order}I", geometry, 1)
    start = 9 if kind & EWKB_SRID else 5
    has_z, kind = bool(kind & EWKB_Z) or kind == POINT_Z, kind & 0xFFFF
    if kind not in (POINT, POINT_Z):
        raise _not_points(path, f"WKB {kind}")
    count = 3 if has_z and len(geometry) >= start + 24 else 2
    values = struct.unpack_from(f"{order}{count}d", geometry, start)
    return values[0], values[1], values[2] if count == 3 else None
