"""What a photo's file says of where and when it was taken: its '@' name, else its EXIF block.  Reads one file.

Names: the fields of `cosplace.photos.names`; UTM with zone (3) and letter (4), else latitude and longitude (5, 6).
EXIF: GPS position, GPSImgDirection, GPS time (UTC), else DateTimeOriginal with its offset; a time without an offset
counts as UTC.  What is missing or makes no sense is unknown (nan): such a photo is kept, as evidence only.
"""

import hashlib
import io
import re
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cosplace.geo import utm_to_latlon
from cosplace.photos.opening import MAX_PIXELS

UNKNOWN = float("nan")
ZONE, LETTER, LATITUDE, LONGITUDE, HEADING, TIMESTAMP = 3, 4, 5, 6, 9, 13  # fields of an '@' name
BANDS = "CDEFGHJKLMNPQRSTUVWX"
EXIF_BLOCK, GPS_BLOCK = 0x8769, 0x8825
DATE_TAKEN, OFFSET_TAKEN, DATE_CHANGED = 0x9003, 0x9011, 0x0132
JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoMetadata:
    """Where and when a photo was taken, as far as its file says."""

    latitude: float = UNKNOWN  # degrees
    longitude: float = UNKNOWN  # degrees
    heading: float = UNKNOWN  # degrees clockwise from north, 0 … 360
    time: float = UNKNOWN  # seconds since 1970 (UTC)

    @property
    def has_position(self) -> bool:
        """Whether it is known where the photo was taken."""
        return not (np.isnan(self.latitude) or np.isnan(self.longitude))


def read_metadata(path: Path, raw: bytes) -> PhotoMetadata:
    """PhotoMetadata of a photo by its name and, for what the name does not say, by the EXIF block of its bytes."""
    named = metadata_from_name(path.name)
    if named.has_position and not np.isnan(named.time):
        return named
    seen = metadata_from_exif(raw)
    if not named.has_position:
        named = replace(named, latitude=seen.latitude, longitude=seen.longitude)
    heading = seen.heading if np.isnan(named.heading) else named.heading
    return replace(named, heading=heading, time=seen.time if np.isnan(named.time) else named.time)


# --- names -----------------------------------------------------------------------------------------------------------


def metadata_from_name(name: str) -> PhotoMetadata:
    """PhotoMetadata of an '@' name; all unknown for other names."""
    fields = name.split("@")
    if len(fields) < 3:
        return PhotoMetadata()
    fields += [""] * (TIMESTAMP + 1 - len(fields))
    latitude, longitude = _utm_position(fields)
    if np.isnan(latitude):
        latitude, longitude = _checked_position(_number(fields[LATITUDE]), _number(fields[LONGITUDE]))
    return PhotoMetadata(
        latitude=latitude,
        longitude=longitude,
        heading=_number(fields[HEADING]) % 360,
        time=_time_of_stamp(fields[TIMESTAMP]),
    )


def _utm_position(fields: list[str]) -> tuple[float, float]:
    east, north, zone = (_number(field) for field in (fields[1], fields[2], fields[ZONE]))
    letter = fields[LETTER].strip().upper()
    plausible = 1 <= zone <= 60 and zone == int(zone) and 0 < east < 1e6 and 0 <= north <= 1e7
    if not (plausible and len(letter) == 1 and letter in BANDS):
        return UNKNOWN, UNKNOWN
    latitude, longitude = utm_to_latlon(np.array(east), np.array(north), int(zone), letter)
    return _checked_position(float(latitude), float(longitude))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return UNKNOWN
    return value if np.isfinite(value) else UNKNOWN


def _checked_position(latitude: float, longitude: float) -> tuple[float, float]:
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        return UNKNOWN, UNKNOWN
    return latitude, longitude


def _time_of_stamp(text: str) -> float:
    """YYYY, YYYYMM, YYYYMMDD or YYYYMMDDhhmmss, signs between them left out, as seconds since 1970."""
    digits = re.sub(r"[^0-9]", "", text)
    form = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if form is None:
        return UNKNOWN
    try:
        return datetime.strptime(digits, form).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return UNKNOWN


# --- EXIF ------------------------------------------------------------------------------------------------------------


def metadata_from_exif(raw: bytes) -> PhotoMetadata:
    """PhotoMetadata of a photo's EXIF block; all unknown for a photo without one, or with a broken one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw)) as picture:
                exif = picture.getexif()
                return _metadata_from_exif_block(
                    exif.get_ifd(GPS_BLOCK), exif.get_ifd(EXIF_BLOCK), exif.get(DATE_CHANGED)
                )
    except Exception:  # Pillow raises nearly anything on broken blocks, and they say nothing
        return PhotoMetadata()


def _metadata_from_exif_block(gps: dict[int, Any], taken: dict[int, Any], changed: Any) -> PhotoMetadata:
    latitude, longitude = _checked_position(_angle(gps, 1, 2, "S"), _angle(gps, 3, 4, "W"))
    if latitude == 0 and longitude == 0:  # what cameras write that have no fix
        latitude = longitude = UNKNOWN
    heading = _ratio(gps.get(17))
    when = _gps_time(gps)
    if np.isnan(when):
        when = _camera_time(taken.get(DATE_TAKEN) or changed, taken.get(OFFSET_TAKEN))
    return PhotoMetadata(latitude=latitude, longitude=longitude, heading=heading % 360, time=when)


def _angle(gps: dict[int, Any], reference: int, number: int, negative: str) -> float:
    parts = gps.get(number)
    if not isinstance(parts, tuple | list) or not parts:
        return UNKNOWN
    degrees = sum(_ratio(part) / 60**place for place, part in enumerate(parts[:3]))
    sign = str(gps.get(reference, "")).strip("\0 ").upper()
    return -degrees if sign.startswith(negative) else degrees


def _ratio(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return UNKNOWN
    return number if np.isfinite(number) else UNKNOWN


def _gps_time(gps: dict[int, Any]) -> float:
    date, clock = str(gps.get(29, "")).strip("\0 "), gps.get(7)
    if not date or not isinstance(clock, tuple | list) or len(clock) != 3:
        return UNKNOWN
    seconds = sum(_ratio(part) * 60 ** (2 - place) for place, part in enumerate(clock))
    try:
        return datetime.strptime(date, "%Y:%m:%d").replace(tzinfo=UTC).timestamp() + seconds
    except ValueError:
        return UNKNOWN


def _camera_time(date: Any, offset: Any) -> float:
    shift = re.fullmatch(r"([+-])(\d\d):(\d\d)", str(offset or "").strip("\0 "))
    ahead = timedelta()
    if shift is not None:
        ahead = timedelta(hours=int(shift[2]), minutes=int(shift[3])) * (-1 if shift[1] == "-" else 1)
    try:
        taken = datetime.strptime(str(date).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return UNKNOWN
    return (taken - ahead).replace(tzinfo=UTC).timestamp()


# --- what else is kept of a photo ------------------------------------------------------------------------------------


def photo_key(raw: bytes, facts: PhotoMetadata) -> str:
    """Equal for photos of equal bytes taken at the same place: SHA-256 of both, in hexadecimal."""
    digest = hashlib.sha256(raw)
    digest.update(repr((facts.latitude, facts.longitude, facts.heading)).encode())
    return digest.hexdigest()


def make_thumbnail(raw: bytes, size: int) -> bytes:
    """A small upright JPEG, `size` pixels along the longer side; empty for size 0 or what Pillow cannot open."""
    if size == 0:
        return b""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    return b""
                picture.draft("RGB", (size, size))  # JPEG files are then decoded at a fraction of their size
                small = ImageOps.exif_transpose(picture).convert("RGB")
                small.thumbnail((size, size))
                buffer = io.BytesIO()
                small.save(buffer, "JPEG", quality=JPEG_QUALITY)
                return buffer.getvalue()
    except Exception:  # Pillow raises nearly anything; the photo itself was judged when it was described
        return b""
