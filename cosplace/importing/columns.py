"""Which column of a table is what, and its values as numbers, times and positions.

Columns are found by the names that programs of the field use, exiftool's among them, or are named by the user.  Texts
may have a decimal comma, a unit, or degrees, minutes and seconds.  Pure functions.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from cosplace.config.names import similar_names
from cosplace.errors import ConfigError, DatasetError
from cosplace.importing.table_files import GEOMETRY_X, GEOMETRY_Y, GEOMETRY_Z, RawTable
from cosplace.photos.exif import MAX_OFFSET_HOURS, time_of_date
from cosplace.photos.tables import known_time

UNKNOWN = math.nan
FIELDS: dict[str, tuple[str, ...]] = {
    "filename": (
        "sourcefile", "path", "filepath", "imagepath", "photopath", "filename", "file", "image", "imagename",
        "imagefile", "photo", "photoname", "img", "name",
    ),
    "latitude": ("latitude", "lat", "gpslatitude", "latitudedeg", "latdeg", "decimallatitude", "northing", "utmnorth",
                 "north", "y", "ycoord"),
    "longitude": ("longitude", "lon", "lng", "long", "gpslongitude", "longitudedeg", "londeg", "decimallongitude",
                  "easting", "utmeast", "east", "x", "xcoord"),
    "latitude_ref": ("gpslatituderef", "latituderef", "latitudedirection", "latdirection", "latdir", "latref",
                     "latitudehemisphere", "lathemisphere", "northsouth", "ns"),
    "longitude_ref": ("gpslongituderef", "longituderef", "longitudedirection", "londirection", "londir", "lonref",
                      "longitudehemisphere", "lonhemisphere", "eastwest", "ew"),
    "zone": ("zone", "utmzone", "zonenumber", "utmzonenumber"),
    "zone_letter": ("zoneletter", "utmletter", "utmzoneletter", "utmband", "band", "letter"),
    "heading": ("heading", "headingdeg", "yaw", "yawdeg", "bearing", "azimuth", "viewazimuth", "compass",
                "compassangle", "compassheading", "compassbearing", "northdeg", "gpsimgdirection", "direction"),
    "heading_ref": ("gpsimgdirectionref", "headingref"),
    "altitude": ("altitude", "altitudem", "alt", "elevation", "ele", "gpsaltitude", "z"),
    "altitude_ref": ("gpsaltituderef", "altituderef", "altref"),
    "accuracy": ("accuracy", "accuracym", "gpsaccuracy", "horizontalaccuracy", "hacc", "gpshpositioningerror",
                 "positionerror"),
    "time": ("time", "timeutc", "timestamp", "datetime", "datetimeutc", "gpsdatetime", "subsecdatetimeoriginal",
             "datetimeoriginal", "capturetime", "capturedat", "createdate", "date"),
    "day": ("date", "gpsdatestamp", "day"),
    "time_offset": ("offsettimeoriginal", "offsettime", "offsettimedigitized", "utcoffset", "timezoneoffset",
                    "tzoffset", "offset", "timezone", "tz"),
    "pitch": ("pitch", "pitchdeg", "posepitchdegrees"),
    "roll": ("roll", "rolldeg", "poserolldegrees"),
    "field_of_view": ("fieldofview", "fov", "hfov"),
    "sequence": ("sequence", "sequenceid", "sequenceuuid", "seq", "trip", "drive"),
    "camera": ("camera", "cameramodel", "model"),
    "projection": ("projection", "projectiontype"),
    "split": ("split", "subset"),
    "place": ("place", "placeid"),
}  # fmt: skip
"""Fields of a table, and the names of their columns, in lower case and without other characters; the first is used."""
DEGREES = {
    "latitude": ("latitude", "lat", "gpslatitude", "latitudedeg", "latdeg", "decimallatitude"),
    "longitude": ("longitude", "lon", "lng", "long", "gpslongitude", "longitudedeg", "londeg", "decimallongitude"),
}
"""Names of columns that mean the same."""
SAME_DEGREES = 1e-4  # columns may have different precision
REFERENCES = {"latitude": "latitude_ref", "longitude": "longitude_ref", "altitude": "altitude_ref"}
TEXT_FIELDS = ("filename", "sequence", "camera", "projection", "split", "place")
MINUS_SIGNS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-"))
UNITS = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres", "above"), 1.0),
    **dict.fromkeys(("°", "deg", "degree", "degrees", "true", "t"), 1.0),
    **dict.fromkeys(("ft", "feet", "foot"), 0.3048), "km": 1000.0,
}  # fmt: skip
_BETWEEN = r"[\s°º˚'’‘′\"”“″:]"  # degrees, minutes and seconds
ANGLE = re.compile(
    rf"([A-Z]*){_BETWEEN}*([+-]?)\s*(\d+(?:\.\d+)?(?:{_BETWEEN}+\d+(?:\.\d+)?){{0,2}}){_BETWEEN}*([A-Z]*)"
)
PLAIN_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
SEA_LEVEL = re.compile(r"\s*\b(?:(above|below) (?:mean )?(?:sea level|ellipsoid(?:al surface)?)|a?m?sl)$")
REMARK = re.compile(r"\s*\(\d[^)]*\)$")  # of exiftool, as in 69.4 deg (0.5 m)
LETTER = re.compile(r"(?<![A-Z])(?:N(?:ORTH)?|S(?:OUTH)?|E(?:AST)?|W(?:EST)?)(?![A-Z])|[-+]")
OFFSET = re.compile(r"\s*([+-]\d\d(?::?\d\d)?|Z)\s*")
AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}(?![\d.,])")  # a decimal comma, or a separator of thousands
THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+\.\d+")
MISSING_TEXTS = frozenset(("", "-", "--", "na", "n/a", "#n/a", "nan", "nil", "none", "null", "undef", "unknown"))
MIN_SECONDS = 1e8  # since or before 1970, of a number: smaller ones are seconds of a video or of a day
LATEST_NUMBER_S = 7_258_118_400.0  # the year 2200: larger numbers are no seconds since 1970
TIME_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))  # numbers above the first are so many parts of a second


def find_columns(table: RawTable, named: Mapping[str, str]) -> dict[str, str]:
    """The column of each field that a table has.  named: columns that the user has named, by field.

    Raises DatasetError for a name that no column has, or several have.
    """
    columns = {}
    for field, name in named.items():
        if name not in table.columns:
            similar = similar_names(name, list(table.columns), count=1)
            hint = f"Did you mean '{similar[0]}'?" if similar else f"It has {', '.join(table.columns)}."
            raise DatasetError(f"{table.path} has no column '{name}', but --column uses it. {hint}")
        columns[field] = name
    by_name: dict[str, str] = {}
    for name in sorted(table.columns, key=lambda name: not name.startswith("Composite")):  # signed, by exiftool
        if name in named.values():
            continue
        by_name.setdefault(re.sub(r"[^a-z0-9]", "", name.rpartition(":")[2].lower()), name)
    for field, names in FIELDS.items():
        column = next((by_name[name] for name in names if name in by_name), None)
        if field not in columns and column is not None:
            columns[field] = column
    for field in ("latitude", "longitude"):
        if field not in named:
            _refuse_contradictions(table, field, [by_name[name] for name in DEGREES[field] if name in by_name])
    geometry = {"latitude": GEOMETRY_Y, "longitude": GEOMETRY_X, "altitude": GEOMETRY_Z}
    if not {"latitude", "longitude"} & set(named) and GEOMETRY_X in table.columns:
        columns |= {field: name for field, name in geometry.items() if name in table.columns}
    for field, name in columns.items():
        if name in table.repeated and field not in named and table.columns[name] != table.columns[f"{name} 2"]:
            raise DatasetError(
                f"{table.path} has several columns named '{name}', with different values. Name the one to use: "
                f"--column '{field}={name}' for the first, '{field}={name} 2' for the second."
            )
    return columns


def _refuse_contradictions(table: RawTable, field: str, names: Sequence[str]) -> None:
    """Raise DatasetError if columns of degrees contradict each other; their signs may be in another column."""
    first, *others = names or ("",)
    for other in others:
        here, there = (np.abs(numbers(table.columns[name], angle)) for name in (first, other))
        if np.any(np.abs(here - there) > SAME_DEGREES):
            raise DatasetError(
                f"{table.path} has the columns '{first}' and '{other}' of {field}, with different values. Name the one "
                f"to use: --column '{field}={first}' or '{field}={other}'."
            )


def parse_named_columns(words: Sequence[str]) -> dict[str, str]:
    """The fields and columns of `--column latitude=Breite`.  Raises ConfigError."""
    named = {}
    for word in words:
        field, equals, name = word.partition("=")
        if field in named:
            raise ConfigError(f"--column names {field} twice, as '{named[field]}' and '{name}'. Use one column.")
        if not equals or field not in FIELDS:
            similar = similar_names(field, list(FIELDS), count=1)
            fields = ", ".join(field for field in FIELDS if not field.endswith(("_ref", "_offset", "_letter")))
            hint = f"Did you mean {similar[0]}={name}?" if similar and equals else f"FIELD is one of {fields}."
            raise ConfigError(f"--column must be FIELD=NAME, got '{word}'. {hint}")
        named[field] = name
    if named.get("latitude", "") == named.get("longitude"):
        raise ConfigError(f"--column names '{named['latitude']}' for both latitude and longitude. Use two columns.")
    return named


# --- values ----------------------------------------------------------------------------------------------------------


def numbers(values: Sequence[Any], parse: Callable[[Any], float] | None = None) -> np.ndarray:
    """A column as numbers, (rows,) float64; nan for what is not a number."""
    return np.fromiter(map(parse or number, values), np.float64, len(values))


def number(value: Any) -> float:
    """A finite number, in meters or degrees: "5 m" is 5, "100 ft" is 30.48, "12,5" is 12.5.  nan for anything else."""
    if isinstance(value, bool) or value is None:
        return UNKNOWN
    if not isinstance(value, str):
        try:
            found = float(value)
        except (TypeError, ValueError, OverflowError):
            return UNKNOWN
        return found if math.isfinite(found) else UNKNOWN
    text = _with_point(value.translate(MINUS_SIGNS).strip())
    match = PLAIN_NUMBER.match(text)
    if match is None:
        return UNKNOWN
    rest = REMARK.sub("", text[match.end() :]).strip().lower()
    level = SEA_LEVEL.search(rest)
    unit = rest[: level.start()] if level else rest
    found = float(match[0]) * math.prod(UNITS.get(word, UNKNOWN) for word in unit.split())  # also "deg true"
    found = -abs(found) if level and level[1] == "below" else found
    return found if math.isfinite(found) else UNKNOWN


def altitude(value: Any) -> float:
    """Meters; nan also for "1,234", which may be 1234 or 1.234."""
    is_unclear = isinstance(value, str) and AMBIGUOUS.match(value.translate(MINUS_SIGNS).strip())
    return UNKNOWN if is_unclear else number(value)


def _with_point(text: str) -> str:
    """A number with a decimal point in place of a decimal comma, and without separators of thousands."""
    if "," not in text:
        return text
    return text.replace(",", "") if THOUSANDS.match(text) else text.replace(",", ".", 1)


def angle(value: Any) -> float:
    """Degrees of a latitude or longitude, south and west negative.

    A number with a sign, or a text with a letter for the direction: 33.8568 S, 33°51'24.5"S, 33 deg 51' 24.48" S.
    """
    if not isinstance(value, str):
        return number(value)
    text = value.translate(MINUS_SIGNS).strip().upper().replace("DEG", " ")
    if PLAIN_NUMBER.fullmatch(_with_point(text)):
        return number(value)
    text = text.replace(",", " ") if "," in text and "." in text else _with_point(text)  # 33,51.408S
    match = ANGLE.fullmatch(text)
    if match is None or (match[1] and match[4]):
        return UNKNOWN
    direction = match[1] or match[4]
    parts = [float(part) for part in re.findall(r"\d+(?:\.\d+)?", match[3])]
    is_possible = len(parts) == 1 or (parts[0] <= 180 and all(part < 60 for part in parts[1:]))
    if (direction and direction not in DIRECTIONS) or not is_possible:
        return UNKNOWN
    degrees = sum(part / 60**power for power, part in enumerate(parts))
    direction, is_negative = direction[:1], match[2] == "-"
    if (is_negative and direction in ("N", "E")) or (match[2] == "+" and direction in ("S", "W")):
        return UNKNOWN
    if any(part % 1 for part in parts[:-1]):  # 33.5 30: a fraction of a degree, and minutes
        return UNKNOWN
    return -degrees if is_negative or direction in ("S", "W") else degrees


DIRECTIONS = ("N", "S", "E", "W", "NORTH", "SOUTH", "EAST", "WEST")


def signed(values: np.ndarray, references: Sequence[Any]) -> np.ndarray:
    """Angles or altitudes with the sign of their references, S, W, 1 or "below" for negative; nan if they differ."""
    found = values.copy()
    for row, reference in enumerate(references):
        text = "" if reference is None else str(reference).strip().lower()
        if text[:1] in ("s", "w") or text in ("1", "1.0") or text.startswith("below"):
            found[row] = -abs(found[row])
        elif text[:1] in ("n", "e") and text not in MISSING_TEXTS and found[row] < 0:
            found[row] = UNKNOWN
    return found


def without_hemisphere(raw: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
    """Which angles have neither a sign nor a letter, (rows,) bool, although other rows have theirs in a column."""

    def has_none(value: Any, reference: Any) -> bool:
        if str(reference or "").strip().lower() not in MISSING_TEXTS:
            return False
        if not isinstance(value, str):
            return not number(value) <= 0
        return not LETTER.search(value.upper().replace("DEG", " ").translate(MINUS_SIGNS))

    return np.array([has_none(*pair) for pair in zip(raw, references, strict=True)], bool)


def texts(values: Sequence[Any]) -> list[str]:
    """A column as texts; "" for missing values.  Whole numbers have no decimal point."""
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def time_of(value: Any, offset: Any = None) -> tuple[float, bool]:
    """Seconds since 1970 of a date, or of a number of seconds, ms, µs or ns since 1970; whether it lacks a time zone.

    A number of 6, 8, 12 or 14 digits can also be a date: YYYYMM, YYYYMMDD, YYYYMMDDhhmm, YYYYMMDDhhmmss.  A date
    without a time of day is 00:00:00 UTC, in any time zone.  nan for anything else, and outside the years 1 to 9999.
    offset: from UTC, as "+02:00", for a text without one.
    """
    seconds, is_local = _time_of(value, offset)
    seconds = known_time(seconds)
    return seconds, is_local and not math.isnan(seconds)


def _time_of(value: Any, offset: Any) -> tuple[float, bool]:
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            return UNKNOWN, False
        return float((value - np.datetime64(0, "s")) / np.timedelta64(1, "s")), False
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp(), value.tzinfo is None
    if value is None:
        return UNKNOWN, False
    if isinstance(value, date):
        value = value.isoformat()
    digits = _text(value)
    if re.fullmatch(r"(19|20)\d\d(\d\d|\d{4}|\d{8}|\d{10})", digits):
        parts = [digits[:4], digits[4:6], digits[6:8] or "01", *(digits[at : at + 2] or "00" for at in (8, 10, 12))]
        seconds, is_local = time_of_date(f"{'-'.join(parts[:3])} {':'.join(parts[3:])}")
        return seconds, is_local and len(digits) > 8
    if isinstance(value, str):
        text = value.strip()
        if german := re.fullmatch(r"(\d\d?)\.(\d\d?)\.(\d{4})(.*)", text):
            text = f"{german[3]}-{german[2]:>02}-{german[1]:>02}{german[4]}"
        if day := re.fullmatch(r"(\d{4})-(\d\d?)(?:-(\d\d?))?", text):
            return time_of_date(f"{day[1]}-{day[2]}-{day[3] or '01'} 00:00:00Z")[0], False
        if (zone := re.search(r":\d\d(?:\.\d+)?\s*[+-](\d\d?)(?::?\d\d)?$", text)) and int(zone[1]) > MAX_OFFSET_HOURS:
            return UNKNOWN, False
        if not PLAIN_NUMBER.fullmatch(text):
            offset = OFFSET.fullmatch(str(offset or ""))  # others, such as the names of zones, are not used
            if offset and re.search(r"\d\d:\d\d(:\d\d(\.\d+)?)?$", text):
                text += offset[1]
            return time_of_date(text)
    seconds = number(value)
    seconds /= next((parts for limit, parts in TIME_UNITS if abs(seconds) > limit), 1.0)
    is_date = abs(seconds) >= MIN_SECONDS and seconds < LATEST_NUMBER_S
    return (seconds if is_date else UNKNOWN), False
