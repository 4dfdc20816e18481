"""One table of positions: its columns as values of records, and what is wrong with them.

Positions may be in any EPSG code.  Latitude and longitude in swapped columns are refused where that can be seen.  Side
effects: reads files.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import ConfigError, DatasetError, one_line
from cosplace.geo import wrap_heading
from cosplace.importing.columns import (
    MISSING_TEXTS,
    REFERENCES,
    TEXT_FIELDS,
    altitude,
    angle,
    find_columns,
    numbers,
    signed,
    texts,
    time_of,
    without_hemisphere,
)
from cosplace.importing.coordinate_systems import from_zones, refuse_other_zones, short_name, to_degrees
from cosplace.importing.reading import utc_time
from cosplace.importing.records import Problem
from cosplace.importing.table_files import RawTable, read_raw_table
from cosplace.photos.headings import are_all_zero
from cosplace.photos.paths import printable
from cosplace.photos.tables import UNKNOWN, ZONE_ASSUMED, ZONE_STATED

VALUES = {  # column of a record -> field of a table
    "altitude_m": "altitude", "accuracy_m": "accuracy", "heading": "heading", "pitch": "pitch", "roll": "roll",
    "field_of_view": "field_of_view", "sequence": "sequence", "camera": "camera", "projection": "projection",
    "split": "split", "place": "place",
}  # fmt: skip
SPLITS = ("train", "val", "val/database", "val/queries", "test", "test/database", "test/queries")
HEADING_LIMITS = (-360.0, 720.0)  # others are no directions
MOSTLY = 0.5  # share of rows that shows that a whole column is wrong
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
    repeated: frozenset[int]  # rows that are not used, whose name is "": they equal an earlier one, or are too long


def read_position_table(path: Path, named: dict[str, str], crs: str = "", timezone: str = "") -> PositionTable:
    """Read one table.  named: columns by field; crs: of its positions, or "" for that of the file; timezone: of times
    without one, or "" for UTC.

    Raises DatasetError for a table without file names or positions, or with swapped columns; ConfigError for a code
    that is not a coordinate system.
    """
    table = read_raw_table(path)
    _refuse_too_long(table)
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
        values["time"], values["time_zone"], found = _times(path, columns["time"], raw, timezone)
        problems += found
    for name, field in VALUES.items():
        if field in raw:
            parse = altitude if field == "altitude" else None
            values[name] = texts(raw[field]) if field in TEXT_FIELDS else numbers(raw[field], parse)
            if field not in TEXT_FIELDS:
                problems += _unread(path, field, raw[field], values[name], "Write plain numbers")
            if field in REFERENCES and REFERENCES[field] in raw:
                values[name] = signed(values[name], raw[REFERENCES[field]])
    if "accuracy_m" in values:
        values["accuracy_m"] = np.where(values["accuracy_m"] > 0, values["accuracy_m"], UNKNOWN)
    if "heading" in values:
        headings, found = _headings(path, columns["heading"], values.pop("heading"))
        values |= {} if headings is None else {"heading": headings}
        problems += found
    if "split" in values:
        problems += _refuse_splits(path, values["split"])
    is_magnetic = _are_magnetic(raw.get("heading_ref") or [None] * table.num_rows)
    names, repeated = _without_repeated(texts(raw["filename"]), table)
    if repeated:
        reason = f"rows that equal earlier ones, which are used: {len(repeated):,}"
        problems.append(Problem(name=str(path), reason=reason, is_left_out=False))
    problems += _without_too_long(names, table)
    repeated |= frozenset(table.too_long)
    return PositionTable(path, names, latitudes, longitudes, values, columns, tuple(problems), is_magnetic, repeated)


def _refuse_too_long(table: RawTable) -> None:
    """Raise DatasetError if most rows have more values than the header."""
    if len(table.too_long) > MOSTLY * table.num_rows:
        raise DatasetError(
            f"{table.path}: {len(table.too_long):,} of {table.num_rows:,} rows have more values than the "
            f"{len(table.columns)} columns of the header, such as row {table.too_long[0] + 1}. With decimal commas, "
            f"separate columns by semicolons, or put numbers in quotes."
        )


def _without_too_long(names: list[str], table: RawTable) -> list[Problem]:
    """Problems with single rows that have more values than the header, whose names are cleared in place."""
    problems = []
    for row in table.too_long:
        if names[row]:
            reason = f"the row of {names[row]} has more values than the header. Put decimal commas in quotes."
            problems.append(Problem(name=f"{table.path} row {row + 1}", reason=reason, is_left_out=False))
            names[row] = ""
    return problems


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
                raise DatasetError(SWAPPED.format(path=table.path, why=why, **column_names(columns)))
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
                why = f"column '{columns['latitude']}' has values beyond 90 degrees, such as {y[beyond][0]:.12g}"
                raise DatasetError(SWAPPED.format(path=table.path, why=why, **column_names(columns)))
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


def column_names(columns: dict[str, str]) -> dict[str, str]:
    """The names of the columns of latitude and longitude."""
    return {field: columns[field] for field in ("latitude", "longitude")}


def _headings(path: Path, column: str, values: np.ndarray) -> tuple[np.ndarray | None, list[Problem]]:
    """Headings in [0, 360), nan for what is not a direction, or None if all are 0; and problems."""
    is_direction = (values >= HEADING_LIMITS[0]) & (values <= HEADING_LIMITS[1])
    headings = np.array([wrap_heading(one) for one in np.where(is_direction, values, UNKNOWN).tolist()], np.float64)
    problems = []
    others = np.flatnonzero(~is_direction & ~np.isnan(values)).tolist()
    if others:
        reason = f"headings such as {values[others[0]]:g} are not directions, and are unknown: {len(others):,}"
        problems.append(Problem(name=f"{path} row {others[0] + 1}", reason=reason, is_left_out=False))
    if are_all_zero(headings):
        reason = f"column '{column}' is 0 in each row, which means unknown, and was not used"
        return None, [*problems, Problem(name=str(path), reason=reason, is_left_out=False)]
    return headings, problems


def _are_magnetic(references: Sequence[Any]) -> np.ndarray:
    """Whether headings are from magnetic north, (rows,) bool: M or "Magnetic North"."""
    return np.array([str(one or "").strip()[:1].upper() == "M" for one in references], bool)


def _times(
    path: Path, column: str, raw: dict[str, list[Any]], timezone: str
) -> tuple[np.ndarray, list[str], list[Problem]]:
    """Seconds since 1970 (UTC), (rows,) float64; whether their zones are stated; and problems.

    timezone: of times without one, or "" for UTC.
    """
    clock = _with_days(raw["time"], raw.get("day"))
    found = [time_of(*pair) for pair in zip(clock, raw.get("time_offset") or [None] * len(clock), strict=True)]
    if any(word in column.lower() for word in ("utc", "gps")):
        found = [(time, False) for time, _ in found]
    num_local = sum(is_local for _, is_local in found)
    problems = []
    if num_local and not timezone:
        problems.append(Problem(name=str(path), reason=LOCAL_TIMES.format(num_local), is_left_out=False))
    times = np.array([utc_time(time, timezone) if is_local and timezone else time for time, is_local in found])
    zones = [
        "" if math.isnan(time) else ZONE_ASSUMED if is_local and not timezone else ZONE_STATED
        for time, is_local in found
    ]
    return times, zones, problems + _unread(path, "time", clock, times, "Write times as 2026-05-01T12:00:00")


def _refuse_splits(path: Path, splits: list[str]) -> list[Problem]:
    """Problems with splits of other names, which are cleared in place."""
    problems = []
    for row, split in enumerate(splits):
        if split and split not in SPLITS:
            reason = f"its split '{split}' is unknown and was not used. Use one of {', '.join(SPLITS)}."
            problems.append(Problem(name=f"{path} row {row + 1}", reason=reason, is_left_out=False))
            splits[row] = ""
    return problems
