"""Position, heading and time of a photo, from its '@' name, else from its EXIF blocks and XMP packet.

Names: latitude and longitude, or without them, UTM with zone and letter (see `cosplace.photos.names`).
Headings are from true north: magnetic headings are corrected by the declination at the position.
A value that is missing, invalid or ambiguous is unknown (nan), and 0, 0 is not a position.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.geo import geodesic_distances_m, magnetic_declination, utm_to_latlon, wrap_heading
from cosplace.photos.exif import UNKNOWN, ExifFacts, checked_position, read_exif
from cosplace.photos.headings import MAX_TURNS_DEG
from cosplace.photos.names import BAND_S, MAX_CONTRADICTION_M, split_name

OFFSET_AFTER_TIME = re.compile(r"(\d{12}|\d{14}(?:\.\d+)?)([+-])(\d\d)(?::?(\d\d))?", re.ASCII)
UTM_LETTERS = "CDEFGHJKLMNPQRSTUVWX"
ROUNDING_M = 2.0  # names have five decimals of a degree, about 1 m
NEAR_EQUATOR_DEGREES = 0.01
ACCURACY_NOTE = "accuracy_m="  # in the note of a label that has the error of its position, in meters
LOCAL_TIME_NOTE = "local_time"  # in the note of a label whose clock had no time zone, and was taken as UTC
SAME_POSITION_M, SAME_HEADING_DEG = 0.01, 0.01  # labels have millimeters, and an index has headings as float32
DEFAULT_YEAR = 2020.0  # of the magnetic declination, for photos without a time


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoMetadata:
    """Where and when a photo was taken; nan for unknown values."""

    latitude: float = UNKNOWN  # degrees
    longitude: float = UNKNOWN  # degrees
    accuracy_m: float = UNKNOWN  # error of the position, as the camera estimates it
    heading: float = UNKNOWN  # degrees clockwise from true north, in [0, 360)
    time: float = UNKNOWN  # seconds since 1970 (UTC), with fraction
    is_local_time: bool = False  # whether the clock had no time zone, and was taken as UTC
    contradiction_m: float = UNKNOWN  # between the UTM position and the latitude and longitude of the name

    @property
    def has_position(self) -> bool:
        """Whether latitude and longitude are known."""
        return not (np.isnan(self.latitude) or np.isnan(self.longitude))

    @property
    def contradicts_itself(self) -> bool:
        """Whether the two positions of the name are more than MAX_CONTRADICTION_M apart."""
        return self.contradiction_m > MAX_CONTRADICTION_M


def read_metadata(path: Path, raw: bytes, label: str | None = None) -> PhotoMetadata:
    """Metadata of a photo from its name; values that the name lacks come from EXIF and XMP in its bytes.

    label: the '@' text of a photo that has one, in place of its name (see `ImageList.label`).  A heading of exactly 0
    in EXIF is then unknown: a table that has none left it out.
    """
    name = metadata_from_name(path.name if label is None else label)
    if name.has_position and not np.isnan(name.time) and not np.isnan(name.heading):
        return name
    exif = read_exif(raw)
    return complete(name, exif if label is None or exif.heading != 0 else replace(exif, heading=UNKNOWN))


def metadata_from_exif(raw: bytes) -> PhotoMetadata:
    """Metadata in EXIF and XMP of a photo's bytes; all unknown for a photo without them, or with damaged ones."""
    return complete(PhotoMetadata(), read_exif(raw))


def complete(known: PhotoMetadata, exif: ExifFacts) -> PhotoMetadata:
    """Known values, and those of EXIF where nothing is known."""
    found = known
    if not known.has_position:
        found = replace(found, latitude=exif.latitude, longitude=exif.longitude, accuracy_m=exif.accuracy_m)
    if np.isnan(known.time):
        found = replace(found, time=exif.time, is_local_time=exif.is_local_time)
    if np.isnan(known.heading):
        heading = exif.heading
        if exif.is_magnetic:  # unknown without a position
            heading = wrap_heading(heading + magnetic_declination(found.latitude, found.longitude, year_of(found.time)))
        found = replace(found, heading=heading)
    return found


def year_of(time: float) -> float:
    """Year with fraction; a day is exact enough for the magnetic field."""
    return DEFAULT_YEAR if np.isnan(time) else 1970 + time / (365.2425 * 86_400)


# --- names -----------------------------------------------------------------------------------------------------------


def metadata_from_name(name: str) -> PhotoMetadata:
    """Metadata in an '@' name; all unknown for other names."""
    fields = split_name(name)
    latitude, longitude = checked_position(_number(fields.get("latitude")), _number(fields.get("longitude")))
    contradiction_m = UNKNOWN
    if np.isnan(latitude):
        latitude, longitude = _band_position(fields)
    else:
        utm_latitude, utm_longitude, contradiction_m = _nearest_utm_position(fields, latitude, longitude)
        if contradiction_m <= ROUNDING_M:  # the same position with more digits
            latitude, longitude = utm_latitude, utm_longitude
    return PhotoMetadata(
        latitude=latitude,
        longitude=longitude,
        heading=_heading(fields.get("heading")),
        time=time_of_timestamp(fields.get("timestamp", "")),
        is_local_time=LOCAL_TIME_NOTE in fields.get("note", "").split(),
        accuracy_m=_accuracy_of_note(fields.get("note", "")),
        contradiction_m=contradiction_m,
    )


def time_and_accuracy(name: str) -> tuple[float, float]:
    """Capture time and position error in an '@' name, as in `metadata_from_name`; nan where unknown."""
    fields = split_name(name)
    return time_of_timestamp(fields.get("timestamp", "")), _accuracy_of_note(fields.get("note", ""))


def _accuracy_of_note(note: str) -> float:
    """Error of the position in a note such as accuracy_m=4.5; nan in other notes."""
    note = note.partition(" ")[0]
    return _number(note.removeprefix(ACCURACY_NOTE)) if note.startswith(ACCURACY_NOTE) else UNKNOWN


def _band_position(fields: dict[str, str]) -> tuple[float, float]:
    """Position by UTM alone.  The letter is a band of latitudes: C to M are south of the equator, N to X north.

    Some people write N or S for the hemisphere.  Band N is north, too.  Band S is also north, so S is accepted only for
    a position in that band; for others, the hemisphere is ambiguous and the position unknown.
    """
    utm = _utm(fields)
    letter = fields.get("letter", "").strip().upper()
    if utm is None or len(letter) != 1 or letter not in UTM_LETTERS:
        return UNKNOWN, UNKNOWN
    latitude, longitude = _utm_position(*utm, letter)
    if letter == "S" and not BAND_S[0] <= latitude <= BAND_S[1]:
        return UNKNOWN, UNKNOWN
    return checked_position(latitude, longitude)


def _nearest_utm_position(fields: dict[str, str], latitude: float, longitude: float) -> tuple[float, float, float]:
    """Position by UTM in the hemisphere of a latitude, and its distance in meters from latitude and longitude."""
    utm = _utm(fields)
    if utm is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    # A latitude that was rounded at the equator may have lost its sign.
    letters = "NM" if abs(latitude) < NEAR_EQUATOR_DEGREES else "N" if latitude > 0 else "M"
    found = []
    for letter in letters:
        utm_latitude, utm_longitude = _utm_position(*utm, letter)
        distance_m = float(geodesic_distances_m(latitude, longitude, utm_latitude, utm_longitude))
        found.append((distance_m, utm_latitude, utm_longitude))
    distance_m, utm_latitude, utm_longitude = min(found)
    return utm_latitude, utm_longitude, distance_m


def _utm(fields: dict[str, str]) -> tuple[float, float, int] | None:
    """Easting, northing and zone of a name; None without them."""
    east, north = (_number(fields.get(field)) for field in ("utm_east", "utm_north"))
    match = re.fullmatch(r"0*(\d{1,2})(?:\.0*)?[A-Za-z]?", fields.get("zone", "").strip())  # also 10.0 and 10S
    zone = int(match[1]) if match else 0
    return (east, north, zone) if 1 <= zone <= 60 and 0 < east < 1e6 and 0 <= north <= 1e7 else None


def _utm_position(east: float, north: float, zone: int, letter: str) -> tuple[float, float]:
    latitude, longitude = utm_to_latlon(np.array(east), np.array(north), zone, letter)
    return float(latitude), float(longitude)


def _number(text: Any) -> float:
    """A finite number; nan for anything else."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return UNKNOWN
    return number if np.isfinite(number) else UNKNOWN


def _heading(text: Any) -> float:
    """A heading in [0, 360); nan for anything else, also for numbers beyond two turns, such as 65535 for unknown."""
    heading = _number(text)
    return wrap_heading(heading) if abs(heading) <= MAX_TURNS_DEG else UNKNOWN


def time_of_timestamp(text: str) -> float:
    """Seconds since 1970 of YYYY, YYYYMM, YYYYMMDD, YYYYMMDDhhmm or YYYYMMDDhhmmss; other characters are ignored.

    Digits after YYYYMMDDhhmmss and a point are a fraction of a second.  After a time, +hh or +hh:mm is its offset from
    UTC.
    """
    if match := OFFSET_AFTER_TIME.fullmatch(text):
        offset_s = 3600 * int(match[3]) + 60 * int(match[4] or 0)
        return time_of_timestamp(match[1]) - (offset_s if match[2] == "+" else -offset_s)
    digits = re.sub(r"[^0-9]", "", text)
    if match := re.fullmatch(r"(\d{14})(\.\d+)", text, re.ASCII):
        return time_of_timestamp(match[1]) + float(match[2])
    date_format = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if date_format is None:
        return UNKNOWN
    try:
        return datetime.strptime(digits, date_format).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return UNKNOWN


# --- keys ------------------------------------------------------------------------------------------------------------


def photo_key(raw: bytes, metadata: PhotoMetadata) -> str:
    """SHA-256 of a photo's bytes in hexadecimal, and its latitude, longitude and heading, separated by commas.

    The same photo may have a slightly different position in a table, in EXIF and in its name: `cosplace.index.keys`
    compares keys.
    """
    place = (metadata.latitude, metadata.longitude, metadata.heading)
    return ",".join((hashlib.sha256(raw).hexdigest(), *(repr(float(value)) for value in place)))


def former_photo_key(raw: bytes, metadata: PhotoMetadata) -> str:
    """The key in indexes of earlier versions: one SHA-256 of bytes, position and heading."""
    digest = hashlib.sha256(raw)
    digest.update(repr((metadata.latitude, metadata.longitude, metadata.heading)).encode())
    return digest.hexdigest()
