"""Tables of positions: CSV, JSON, Parquet, GeoJSON or GeoPackage with one row for each photo.

A row is joined to its photo by path or file name.  Its values replace those in the photo's EXIF.  Positions may be in
any EPSG code.  Latitude and longitude in swapped columns are refused where that can be seen.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.importing import ImportSettings
from cosplace.errors import ConfigError, DatasetError, one_line
from cosplace.geo import geodesic_distances_m, magnetic_declination, wrap_heading
from cosplace.importing.columns import (
    MISSING_TEXTS,
    REFERENCES,
    TEXT_FIELDS,
    angle,
    find_columns,
    numbers,
    parse_named_columns,
    signed,
    texts,
    time_of,
    without_hemisphere,
)
from cosplace.importing.coordinate_systems import from_zones, refuse_other_zones, short_name, to_degrees
from cosplace.importing.exif_photos import PHOTOS_FOLDER
from cosplace.importing.photo_references import spellings
from cosplace.importing.positions import PhotoStream, has_position
from cosplace.importing.reading import utc_time
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.importing.row_names import RowNames
from cosplace.importing.table_files import (
    GEOPACKAGE_SUFFIXES,
    JSON_SUFFIXES,
    PARQUET_SUFFIXES,
    TEXT_SUFFIXES,
    RawTable,
    read_raw_table,
)
from cosplace.photos.metadata import year_of
from cosplace.photos.paths import printable
from cosplace.photos.tables import UNKNOWN, PhotoRecord

VALUES = {  # column of a record -> field of a table
    "altitude_m": "altitude", "accuracy_m": "accuracy", "heading": "heading", "pitch": "pitch", "roll": "roll",
    "field_of_view": "field_of_view", "sequence": "sequence", "camera": "camera", "projection": "projection",
    "split": "split", "place": "place",
}  # fmt: skip
SPLITS = ("train", "val", "val/database", "val/queries", "test", "test/database", "test/queries")
HEADING_LIMITS = (-360.0, 720.0)  # others are no directions
MOSTLY = 0.5  # share of rows that shows that a whole column is wrong
NUM_COMPARED = 50  # photos whose own positions are compared with those of the table before any is used
SWAPPED_M, FAR_M = 1_000.0, 10_000.0  # own position from that of the swapped columns, and of the columns as they are
LOCAL_TIMES = "{:,} times have no time zone, so UTC was assumed. To use another time zone, pass --timezone."
SWAPPED = (
    "{path}: the columns of latitude and longitude are swapped: {why}. "
    "Name them: --column latitude={longitude} longitude={latitude}."
)


@dataclass(frozen=True, slots=True)
class PositionTable:
    """A table with its columns as values of records; (rows,) each."""

    path: Path
    names: list[str]
    latitudes: np.ndarray  # float64, nan where unknown
    longitudes: np.ndarray
    values: dict[str, Any]  # of the columns of a record that the table has, by name
    columns: dict[str, str]  # name of the column of each field
    problems: tuple[Problem, ...]
    is_magnetic: np.ndarray  # bool, of headings: from magnetic north
    repeated: frozenset[int]  # rows that equal an earlier one, whose name is ""


def detects(path: Path) -> bool:
    """Whether a path is a file with the suffix of a table."""
    suffixes = (*TEXT_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES, *GEOPACKAGE_SUFFIXES)
    return path.is_file() and path.suffix.lower() in suffixes


def read(paths: Sequence[Path], settings: ImportSettings) -> "TablePositions":
    """Read tables.  Raises DatasetError for a table without file names or positions, or with swapped columns."""
    named = parse_named_columns(settings.tables.column)
    return TablePositions([read_position_table(path, named, settings.tables.crs, settings.timezone) for path in paths])


class TablePositions:
    """Positions from tables, as `Annotations`."""

    def __init__(self, tables: Sequence[PositionTable]) -> None:
        self.tables = tables
        self.rows = [RowNames(table.names, table.path.parent) for table in tables]

    @property
    def needs_positions(self) -> bool:
        """Always false, see `Annotations`."""
        return False

    def photos(self) -> Iterator[Entry]:
        """The photos that rows name, relative to the folder of their table; never outside of it."""
        seen = set()
        for table in self.tables:
            folder = table.path.parent
            for name in chain.from_iterable(map(spellings, table.names)):
                path = Path(name.replace("\\", "/"))
                if path.is_absolute() and path.is_relative_to(folder.absolute()):
                    path = path.relative_to(folder.absolute())
                if not name or path.is_absolute() or ".." in path.parts or folder / path in seen:
                    continue
                if (folder / path).is_file() and (folder / path).resolve().is_relative_to(folder.resolve()):
                    seen.add(folder / path)
                    yield FoundPhoto(file=folder / path, record=PhotoRecord(path=f"{PHOTOS_FOLDER}/{path.as_posix()}"))

    def annotate(self, photos: PhotoStream) -> Iterator[Entry]:
        """Every photo with the values of its rows; then the rows without photo."""
        for rows in self.rows:
            rows.compare(photos.list_files())
        stream = iter(photos)
        first = [photo for _, photo in zip(range(NUM_COMPARED), stream, strict=False)]
        self._refuse_swapped(first)
        for photo in chain(first, stream):
            yield from self._annotate(photo)
        for table, rows in zip(self.tables, self.rows, strict=True):
            yield from table.problems
            for row in rows.unused():
                if row in table.repeated:
                    continue
                name = table.names[row]
                reason = f"no photo is named {name}" if name else "has no photo name"
                if row in rows.unclear:
                    reason = f"{name} is in several rows, or is the name of several photos"
                if name and os.path.lexists(table.path.parent / name):
                    reason = f"{name} was not imported: it is listed with the reason, or it is not among the sources"
                yield Problem(name=f"{table.path} row {row + 1}", reason=reason)

    def _annotate(self, photo: FoundPhoto) -> Iterator[Entry]:
        reasons, is_named, is_magnetic = [], False, False
        for table, rows in zip(self.tables, self.rows, strict=True):
            row, reason = rows.find(photo.named_file)
            if row is not None:
                photo, is_named = replace(photo, record=_with_row(photo.record, table, row)), True
                if "heading" in table.values and not math.isnan(table.values["heading"][row]):
                    is_magnetic = bool(table.is_magnetic[row])
            elif reason:
                reasons.append(f"{reason} (in {table.path})")
        if not is_named:
            reason = "; ".join(reasons) or "no row names this photo"
            yield Problem(name=str(photo.named_file), reason=reason, is_left_out=False)
        if is_magnetic:  # last, because tables may give the position or the time after the heading
            photo = replace(photo, record=_with_true_heading(photo.record))
            if math.isnan(photo.record.heading):
                reason = "its magnetic heading cannot be converted without a position, or near a magnetic pole"
                yield Problem(name=str(photo.named_file), reason=reason, is_left_out=False)
        yield photo

    def _refuse_swapped(self, photos: Sequence[FoundPhoto]) -> None:
        """Raise DatasetError if photos that know their position show that the columns of a table are swapped."""
        for table, rows in zip(self.tables, self.rows, strict=True):
            found = [(photo, rows.find(photo.named_file)[0]) for photo in photos if has_position(photo)]
            found = [(photo, row) for photo, row in found if row is not None and not math.isnan(table.latitudes[row])]
            num_swapped = 0
            for photo, row in found:
                own = photo.record.latitude, photo.record.longitude
                there = table.latitudes[row], table.longitudes[row]
                if abs(there[1]) <= 90 and geodesic_distances_m(*own, *there) > FAR_M:
                    num_swapped += bool(geodesic_distances_m(*own, there[1], there[0]) < SWAPPED_M)
            if num_swapped > MOSTLY * len(found):
                why = "the positions in the photos say so"
                raise DatasetError(SWAPPED.format(path=table.path, why=why, **_column_names(table.columns)))


def _with_row(record: PhotoRecord, table: PositionTable, row: int) -> PhotoRecord:
    """A record with the known values of a row."""
    values: dict[str, Any] = {}
    if not math.isnan(table.latitudes[row]):
        values = {"latitude": float(table.latitudes[row]), "longitude": float(table.longitudes[row])}
        values["accuracy_m"] = UNKNOWN  # that of another position
    for name, column in table.values.items():
        value = column[row]
        if isinstance(value, str):
            if value:
                values[name] = value
        elif not math.isnan(value):
            values[name] = float(value)
            if name == "heading":
                values["heading_source"] = "table"
    return replace(record, **values)


def _with_true_heading(record: PhotoRecord) -> PhotoRecord:
    """A record whose heading is from magnetic north, with that from true north at its position and time."""
    declination = magnetic_declination(record.latitude, record.longitude, year_of(record.time))
    heading = wrap_heading(record.heading + declination)
    return replace(record, heading=heading, heading_source="" if math.isnan(heading) else record.heading_source)


# --- a table ---------------------------------------------------------------------------------------------------------


def read_position_table(path: Path, named: dict[str, str], crs: str = "", timezone: str = "") -> PositionTable:
    """Read one table.  named: columns by field; crs: of its positions, or "" for that of the file; timezone: of times
    without one, or "" for UTC.

    Raises DatasetError for a table without file names or positions, or with swapped columns; ConfigError for a code
    that is not a coordinate system.
    """
    table = read_raw_table(path)
    columns = find_columns(table, named)
    if "filename" not in columns:
        raise DatasetError(
            f"{path} has no column of file names; it has {', '.join(table.columns)}. "
            + (
                "Name it: --column filename=NAME, and for unusual names also latitude=NAME longitude=NAME."
                if len(table.columns) > 1
                else "Separate its columns by commas, semicolons, tabs or bars."
            )
        )
    if set(columns) == {"filename"} or len({"latitude", "longitude"} & set(columns)) == 1:
        raise DatasetError(
            f"{path} has no columns of latitude and longitude; it has {', '.join(table.columns)}. "
            f"Name them: --column latitude=NAME longitude=NAME."
        )
    raw = {field: table.columns[name] for field, name in columns.items()}
    latitudes, longitudes, problems = _positions(table, columns, raw, crs)
    values: dict[str, Any] = {}
    if "time" in raw:
        values["time"], found = _times(path, columns["time"], raw, timezone)
        problems += found
    for name, field in VALUES.items():
        if field in raw:
            values[name] = texts(raw[field]) if field in TEXT_FIELDS else numbers(raw[field])
            if field not in TEXT_FIELDS:
                problems += _unread(path, field, raw[field], values[name], "Write plain numbers")
            if field in REFERENCES and REFERENCES[field] in raw:
                values[name] = signed(values[name], raw[REFERENCES[field]])
    if "accuracy_m" in values:
        values["accuracy_m"] = np.where(values["accuracy_m"] > 0, values["accuracy_m"], UNKNOWN)
    if "heading" in values:
        values["heading"] = _headings(values["heading"])
        if np.count_nonzero(values["heading"] == 0) == np.count_nonzero(~np.isnan(values["heading"])) > 1:
            reason = f"column '{columns['heading']}' is 0 in each row, which means unknown, and was not used"
            problems.append(Problem(name=str(path), reason=reason, is_left_out=False))
            del values["heading"]
    if "split" in values:
        problems += _refuse_splits(path, values["split"])
    is_magnetic = _are_magnetic(raw.get("heading_ref") or [None] * table.num_rows)
    names, repeated = _without_repeated(texts(raw["filename"]), table)
    if repeated:
        reason = f"rows that equal earlier ones, which are used: {len(repeated):,}"
        problems.append(Problem(name=str(path), reason=reason, is_left_out=False))
    return PositionTable(path, names, latitudes, longitudes, values, columns, tuple(problems), is_magnetic, repeated)


def _without_repeated(names: list[str], table: RawTable) -> tuple[list[str], frozenset[int]]:
    """The names, "" for rows that equal an earlier one in all columns; and these rows."""
    seen: set[str] = set()
    repeated = set()
    for row, values in enumerate(zip(*table.columns.values(), strict=True)):
        key = repr(values)
        if key in seen and names[row]:
            repeated.add(row)
        seen.add(key)
    return ["" if row in repeated else name for row, name in enumerate(names)], frozenset(repeated)


def _positions(
    table: RawTable, columns: dict[str, str], raw: dict[str, list[Any]], crs: str
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Latitudes and longitudes, (rows,) each, nan where unknown; and rows that have impossible ones."""
    if "latitude" not in raw:
        return np.full(table.num_rows, UNKNOWN), np.full(table.num_rows, UNKNOWN), []
    y, x, unread = _coordinates(table, columns, raw)
    has_numbers = ~(np.isnan(x) | np.isnan(y))
    system = crs or (table.crs if columns["latitude"].startswith("geometry") else "")
    has_zones = "zone" in raw and bool(np.nanmedian(np.abs(y)) > 90)
    if not crs and system:
        _refuse_unknown_system(table)
    if has_zones and system:
        refuse_other_zones(table.path, raw["zone"], system)
    if has_zones and not system:
        latitudes, longitudes, unclear_zones = from_zones(table.path, x, y, raw)
        unread += unclear_zones
    elif system:
        latitudes, longitudes, is_inside = to_degrees(x, y, system)
        if has_numbers.any() and np.mean(is_inside[has_numbers]) < MOSTLY:
            if np.mean(to_degrees(y, x, system)[2][has_numbers]) > MOSTLY:
                why = f"they are in the area of {short_name(system)} only the other way around"
                raise DatasetError(SWAPPED.format(path=table.path, why=why, **_column_names(columns)))
            own = "--crs" if crs else "the coordinate system of the file"
            raise DatasetError(
                f"{table.path}: most positions, such as {x[has_numbers][0]:g}, {y[has_numbers][0]:g}, are outside the "
                f"area of {short_name(system)}. Check {own}, and the columns: --column latitude=NAME longitude=NAME."
            )
    else:
        latitudes, longitudes = y, x
        beyond = has_numbers & (np.abs(y) > 90)
        if np.sum(beyond) > MOSTLY * np.sum(has_numbers):
            if np.all(np.abs(y[beyond]) <= 180) and np.all(np.abs(x[beyond]) <= 90):
                why = f"column '{columns['latitude']}' has values beyond 90 degrees, such as {y[beyond][0]:g}"
                raise DatasetError(SWAPPED.format(path=table.path, why=why, **_column_names(columns)))
            raise DatasetError(
                f"{table.path}: positions such as {x[beyond][0]:g}, {y[beyond][0]:g} are not degrees. "
                f"Name their coordinate system, as in --crs EPSG:25832."
            )
    is_possible = (np.abs(latitudes) <= 90) & (np.abs(longitudes) <= 180)
    at_null = (latitudes == 0) & (longitudes == 0)
    problems = [
        Problem(name=f"{table.path} row {row + 1}", reason=f"its position {x[row]:g}, {y[row]:g} is impossible")
        for row in np.flatnonzero(has_numbers & ~is_possible)
    ]
    is_known = is_possible & ~at_null
    return np.where(is_known, latitudes, UNKNOWN), np.where(is_known, longitudes, UNKNOWN), unread + problems


def _refuse_unknown_system(table: RawTable) -> None:
    """Raise DatasetError if the coordinate system that a file states is none."""
    try:
        to_degrees(np.zeros(1), np.zeros(1), table.crs)
    except ConfigError as error:
        raise DatasetError(
            one_line(
                f"{table.path}: its coordinate system ({short_name(table.crs)}) is not known, or has no positions on "
                f"the ground. Name it, as in --crs EPSG:25832."
            )
        ) from error


def _coordinates(
    table: RawTable, columns: dict[str, str], raw: dict[str, list[Any]]
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Columns of latitudes or northings, and of longitudes or eastings, as numbers; and rows that are unclear."""
    y, x = numbers(raw["latitude"], angle), numbers(raw["longitude"], angle)
    for name, values in (("latitude", y), ("longitude", x)):
        if np.isnan(values).all():
            raise DatasetError(f"{table.path}: column '{columns[name]}' has no numbers. Name another column: "
                               f"--column {name}=NAME.")  # fmt: skip
    unread = [
        problem
        for field, values in (("latitude", y), ("longitude", x))
        for problem in _unread(table.path, field, raw[field], values, "Write decimal degrees")
    ]
    for field, values in (("latitude", y), ("longitude", x)):
        if REFERENCES[field] in raw:
            values[:] = signed(values, raw[REFERENCES[field]])
            unclear = without_hemisphere(raw[field], raw[REFERENCES[field]]) & ~np.isnan(values)
            values[unclear] = UNKNOWN
            unread += [
                Problem(name=f"{table.path} row {row + 1}", reason=f"its {field} has no hemisphere", is_left_out=False)
                for row in np.flatnonzero(unclear).tolist()
            ]
    return y, x, unread


def _unread(path: Path, field: str, raw: Sequence[Any], values: np.ndarray, remedy: str) -> list[Problem]:
    """One problem for the texts of a column that were not understood."""
    unknown = np.flatnonzero(np.isnan(values)).tolist()
    is_lost = [row for row in unknown if _text_of(raw[row]).lower() not in MISSING_TEXTS]
    if not is_lost:
        return []
    example = printable(str(raw[is_lost[0]]))[:40]
    reason = f"{len(is_lost):,} values of {field}, such as '{example}', were not understood and are unknown. {remedy}."
    return [Problem(name=f"{path} row {is_lost[0] + 1}", reason=reason, is_left_out=False)]


def _text_of(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _with_days(values: Sequence[Any], days: Sequence[Any] | None) -> Sequence[Any]:
    """Times with the days of another column, where they are only a time of day."""
    if days is None or days is values:
        return values
    return [
        f"{_day(day)} {value}" if isinstance(value, str) and re.match(r"\s*\d\d?:\d\d", value) and day else value
        for value, day in zip(values, days, strict=True)
    ]


def _day(value: Any) -> str:
    return value.isoformat()[:10] if isinstance(value, date) else str(value).strip()


def _column_names(columns: dict[str, str]) -> dict[str, str]:
    return {field: columns[field] for field in ("latitude", "longitude")}


def _headings(values: np.ndarray) -> np.ndarray:
    """Headings in [0, 360); nan for what is not a direction."""
    headings = np.where((values >= HEADING_LIMITS[0]) & (values <= HEADING_LIMITS[1]), values, UNKNOWN)
    return np.array([wrap_heading(heading) for heading in headings.tolist()], np.float64)


def _are_magnetic(references: Sequence[Any]) -> np.ndarray:
    """Whether headings are from magnetic north, (rows,) bool: M or "Magnetic North"."""
    return np.array([str(one or "").strip()[:1].upper() == "M" for one in references], bool)


def _times(path: Path, column: str, raw: dict[str, list[Any]], timezone: str) -> tuple[np.ndarray, list[Problem]]:
    """Seconds since 1970 (UTC), (rows,) float64; and problems.  timezone: of times without one, or "" for UTC."""
    clock = _with_days(raw["time"], raw.get("day"))
    found = [time_of(*pair) for pair in zip(clock, raw.get("time_offset") or [None] * len(clock), strict=True)]
    if any(word in column.lower() for word in ("utc", "gps")):
        found = [(time, False) for time, _ in found]
    num_local = sum(is_local for _, is_local in found)
    problems = []
    if num_local and not timezone:
        problems.append(Problem(name=str(path), reason=LOCAL_TIMES.format(num_local), is_left_out=False))
    times = np.array([utc_time(time, timezone) if is_local and timezone else time for time, is_local in found])
    return times, problems + _unread(path, "time", clock, times, "Write times as 2026-05-01T12:00:00")


def _refuse_splits(path: Path, splits: list[str]) -> list[Problem]:
    """Problems with splits of other names, which are cleared in place."""
    problems = []
    for row, split in enumerate(splits):
        if split and split not in SPLITS:
            reason = f"its split '{split}' is unknown and was not used. Use one of {', '.join(SPLITS)}."
            problems.append(Problem(name=f"{path} row {row + 1}", reason=reason, is_left_out=False))
            splits[row] = ""
    return problems
