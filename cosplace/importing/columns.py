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
from cosplace.photos.exif import time_of_date

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
    "latitude_ref": ("gpslatituderef", "latituderef", "latitudedirection", "latdir", "latref", "ns"),
    "longitude_ref": ("gpslongituderef", "longituderef", "longitudedirection", "londir", "lonref", "ew"),
    "zone": ("zone", "utmzone", "zonenumber", "utmzonenumber"),
    "zone_letter": ("zoneletter", "utmletter", "utmzoneletter", "utmband", "band", "letter"),
    "heading": ("heading", "headingdeg", "yaw", "yawdeg", "bearing", "azimuth", "viewazimuth", "compass",
                "compassangle", "compassheading", "compassbearing", "northdeg", "gpsimgdirection", "direction"),
    "heading_ref": ("gpsimgdirectionref", "headingref"),
    "altitude": ("altitude", "altitudem", "alt", "elevation", "ele", "gpsaltitude", "z"),
    "altitude_ref": ("gpsaltituderef",),
    "accuracy": ("accuracy", "accuracym", "gpsaccuracy", "horizontalaccuracy", "hacc", "gpshpositioningerror",
                 "positionerror"),
    "time": ("time", "timeutc", "timestamp", "datetime", "datetimeutc", "gpsdatetime", "subsecdatetimeoriginal",
             "datetimeoriginal", "capturetime", "capturedat", "createdate", "date"),
    "day": ("date", "gpsdatestamp", "day"),
    "time_offset": ("offsettimeoriginal", "offsettime", "offsettimedigitized"),
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
REFERENCES = {"latitude": "latitude_ref", "longitude": "longitude_ref", "altitude": "altitude_ref"}
TEXT_FIELDS = ("filename", "sequence", "camera", "projection", "split", "place")
MINUS_SIGNS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-"))
UNITS = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres", "above"), 1.0),
    **dict.fromkeys(("°", "deg", "degree", "degrees", "true", "magnetic", "t"), 1.0),
    **dict.fromkeys(("ft", "feet", "foot"), 0.3048), "km": 1000.0,
}  # fmt: skip
_BETWEEN = r"[\s°º˚'’‘′\"”“″:]"  # degrees, minutes and seconds
ANGLE = re.compile(
    rf"([A-Z]*){_BETWEEN}*([+-]?)\s*(\d+(?:\.\d+)?(?:{_BETWEEN}+\d+(?:\.\d+)?){{0,2}}){_BETWEEN}*([A-Z]*)"
)
PLAIN_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+\.\d+")
MISSING_TEXTS = frozenset(("", "-", "--", "na", "n/a", "nan", "nil", "none", "null", "undef", "unknown"))
EARLIEST_S, LATEST_S = -62_135_596_800.0, 253_402_300_799.0  # the years 1 to 9999
TIME_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))  # numbers above the first are so many parts of a second


def find_columns(table: RawTable, named: Mapping[str, str]) -> dict[str, str]:
    """The column of each field that a table has.  named: columns that the user has named, by field."""
    columns = {}
    for field, name in named.items():
        if name not in table.columns:
            similar = similar_names(name, list(table.columns), count=1)
            hint = f"Did you mean '{similar[0]}'?" if similar else f"It has {', '.join(table.columns)}."
            raise DatasetError(f"{table.path} has no column '{name}', but --column uses it. {hint}")
        columns[field] = name
    by_name: dict[str, str] = {}
    for name in sorted(table.columns, key=lambda name: not name.startswith("Composite")):  # signed, by exiftool
        by_name.setdefault(re.sub(r"[^a-z0-9]", "", name.rpartition(":")[2].lower()), name)
    for field, names in FIELDS.items():
        column = next((by_name[name] for name in names if name in by_name), None)
        if field not in columns and column is not None:
            columns[field] = column
    geometry = {"latitude": GEOMETRY_Y, "longitude": GEOMETRY_X, "altitude": GEOMETRY_Z}
    if not {"latitude", "longitude"} & set(named) and GEOMETRY_X in table.columns:
        columns |= {field: name for field, name in geometry.items() if name in table.columns}
    return columns


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
    unit = (text[match.end() :].split() or [""])[0].lower()
    found = float(match[0]) * (UNITS.get(unit, UNKNOWN) if unit else 1.0)
    return found if math.isfinite(found) else UNKNOWN


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
    if is_negative and direction in ("N", "E"):
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
        return not re.search(r"[-+NSEW]", str(value).upper().replace("DEG", " ").translate(MINUS_SIGNS))

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

    A number of 6, 8 or 14 digits can also be a date: YYYYMM, YYYYMMDD, YYYYMMDDhhmmss.  nan for anything else, and
    outside the years 1 to 9999.  offset: from UTC, as "+02:00", for a text without one.
    """
    seconds, is_local = _time_of(value, offset)
    return (seconds, is_local) if EARLIEST_S <= seconds <= LATEST_S else (UNKNOWN, False)


def _time_of(value: Any, offset: Any) -> tuple[float, bool]:
    if isinstance(value, np.datetime64):
        return (UNKNOWN if np.isnat(value) else value.astype("datetime64[us]").astype(np.int64) / 1e6), False
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp(), False
    if isinstance(value, date) or value is None:
        return UNKNOWN, False
    digits = _text(value)
    if re.fullmatch(r"(19|20)\d\d(\d\d|\d{4}|\d{10})", digits):
        parts = [digits[:4], digits[4:6], digits[6:8] or "01", *(digits[at : at + 2] or "00" for at in (8, 10, 12))]
        found = time_of_date(f"{'-'.join(parts[:3])} {':'.join(parts[3:])}")
        if not math.isnan(found[0]):
            return found
    if isinstance(value, str):
        text = value.strip()
        if german := re.fullmatch(r"(\d\d?)\.(\d\d?)\.(\d{4})(.*)", text):
            text = f"{german[3]}-{german[2]:>02}-{german[1]:>02}{german[4]}"
        if not PLAIN_NUMBER.fullmatch(text):
            if offset and isinstance(offset, str) and re.search(r"\d\d:\d\d(:\d\d(\.\d+)?)?$", text):
                text += offset.strip()
            return time_of_date(text)
    seconds = number(value)
    for limit, parts in TIME_UNITS:
        if abs(seconds) > limit:
            return seconds / parts, False
    return seconds, False
