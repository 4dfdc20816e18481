"""Position, heading and time of a photo, from its '@' name, else from its EXIF block.

Names: UTM with zone and letter, else latitude and longitude (see `cosplace.photos.names`).
EXIF: GPS position, GPSImgDirection, GPS time (UTC), else DateTimeOriginal with its offset; a time without an offset
counts as UTC.  A value that is missing or invalid is unknown (nan).
"""

import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cosplace.geo import utm_to_latlon
from cosplace.photos.names import split_name
from cosplace.photos.opening import MAX_PIXELS

UNKNOWN = float("nan")
UTM_LETTERS = "CDEFGHJKLMNPQRSTUVWX"
EXIF_BLOCK, GPS_BLOCK = 0x8769, 0x8825
DATE_TAKEN, OFFSET_TAKEN, DATE_CHANGED = 0x9003, 0x9011, 0x0132
GPS_LATITUDE_REF, GPS_LATITUDE, GPS_LONGITUDE_REF, GPS_LONGITUDE, GPS_TIME, GPS_HEADING, GPS_DATE = (
    1,
    2,
    3,
    4,
    7,
    17,
    29,
)
JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoMetadata:
    """Where and when a photo was taken; nan for unknown values."""

    latitude: float = UNKNOWN  # degrees
    longitude: float = UNKNOWN  # degrees
    heading: float = UNKNOWN  # degrees clockwise from north, in [0, 360)
    time: float = UNKNOWN  # seconds since 1970 (UTC)

    @property
    def has_position(self) -> bool:
        """Whether latitude and longitude are known."""
        return not (np.isnan(self.latitude) or np.isnan(self.longitude))


def read_metadata(path: Path, raw: bytes) -> PhotoMetadata:
    """Metadata of a photo from its name; values that the name lacks come from the EXIF block in its bytes."""
    name = metadata_from_name(path.name)
    if name.has_position and not np.isnan(name.time):
        return name
    exif = metadata_from_exif(raw)
    position = name if name.has_position else exif
    return PhotoMetadata(
        latitude=position.latitude,
        longitude=position.longitude,
        heading=exif.heading if np.isnan(name.heading) else name.heading,
        time=exif.time if np.isnan(name.time) else name.time,
    )


# --- names -----------------------------------------------------------------------------------------------------------


def metadata_from_name(name: str) -> PhotoMetadata:
    """Metadata in an '@' name; all unknown for other names."""
    fields = split_name(name)
    latitude, longitude = _utm_position(fields)
    if np.isnan(latitude):
        latitude, longitude = _checked_position(_number(fields.get("latitude")), _number(fields.get("longitude")))
    return PhotoMetadata(
        latitude=latitude,
        longitude=longitude,
        heading=_number(fields.get("heading")) % 360,
        time=_time_of_timestamp(fields.get("timestamp", "")),
    )


def _utm_position(fields: dict[str, str]) -> tuple[float, float]:
    east, north, zone = (_number(fields.get(field)) for field in ("utm_east", "utm_north", "zone"))
    letter = fields.get("letter", "").strip().upper()
    plausible = 1 <= zone <= 60 and zone == int(zone) and 0 < east < 1e6 and 0 <= north <= 1e7
    if not (plausible and len(letter) == 1 and letter in UTM_LETTERS):
        return UNKNOWN, UNKNOWN
    latitude, longitude = utm_to_latlon(np.array(east), np.array(north), int(zone), letter)
    return _checked_position(float(latitude), float(longitude))


def _number(value: Any) -> float:
    """A finite number; nan for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):  # Pillow's fractions may divide by zero
        return UNKNOWN
    return number if np.isfinite(number) else UNKNOWN


def _checked_position(latitude: float, longitude: float) -> tuple[float, float]:
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        return UNKNOWN, UNKNOWN
    return latitude, longitude


def _time_of_timestamp(text: str) -> float:
    """Seconds since 1970 of YYYY, YYYYMM, YYYYMMDD, YYYYMMDDhhmm or YYYYMMDDhhmmss; other characters are ignored."""
    digits = re.sub(r"[^0-9]", "", text)
    date_format = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if date_format is None:
        return UNKNOWN
    try:
        return datetime.strptime(digits, date_format).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return UNKNOWN


# --- EXIF ------------------------------------------------------------------------------------------------------------


def metadata_from_exif(raw: bytes) -> PhotoMetadata:
    """Metadata in the EXIF block of a photo's bytes; all unknown for a photo without one, or with a damaged one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw)) as image:
                exif = image.getexif()
                return _metadata_from_blocks(exif.get_ifd(GPS_BLOCK), exif.get_ifd(EXIF_BLOCK), exif.get(DATE_CHANGED))
    except Exception:  # Pillow raises nearly anything on damaged blocks
        return PhotoMetadata()


def _metadata_from_blocks(gps: dict[int, Any], exif: dict[int, Any], date_changed: Any) -> PhotoMetadata:
    latitude, longitude = _checked_position(
        _angle(gps.get(GPS_LATITUDE), gps.get(GPS_LATITUDE_REF, ""), "S"),
        _angle(gps.get(GPS_LONGITUDE), gps.get(GPS_LONGITUDE_REF, ""), "W"),
    )
    if latitude == 0 and longitude == 0:  # cameras without a GPS fix write zeros
        latitude = longitude = UNKNOWN
    time = _gps_time(gps)
    if np.isnan(time):
        time = _camera_time(exif.get(DATE_TAKEN) or date_changed, exif.get(OFFSET_TAKEN))
    heading = _number(gps.get(GPS_HEADING)) % 360
    return PhotoMetadata(latitude=latitude, longitude=longitude, heading=heading, time=time)


def _angle(parts: Any, reference: Any, negative_reference: str) -> float:
    """Degrees of a GPS angle in degrees, minutes and seconds."""
    if not isinstance(parts, tuple | list) or not parts:
        return UNKNOWN
    degrees = sum(_number(part) / 60**power for power, part in enumerate(parts[:3]))
    return -degrees if _text(reference).upper().startswith(negative_reference) else degrees


def _gps_time(gps: dict[int, Any]) -> float:
    date, clock = _text(gps.get(GPS_DATE, "")), gps.get(GPS_TIME)
    if not date or not isinstance(clock, tuple | list) or len(clock) != 3:
        return UNKNOWN
    seconds = sum(_number(part) * 60 ** (2 - index) for index, part in enumerate(clock))
    try:
        return datetime.strptime(date, "%Y:%m:%d").replace(tzinfo=UTC).timestamp() + seconds
    except ValueError:
        return UNKNOWN


def _camera_time(date: Any, offset: Any) -> float:
    match = re.fullmatch(r"([+-])(\d\d):(\d\d)", _text(offset or ""))
    utc_offset = timedelta()
    if match is not None:
        utc_offset = timedelta(hours=int(match[2]), minutes=int(match[3])) * (-1 if match[1] == "-" else 1)
    try:
        taken = datetime.strptime(_text(date), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return UNKNOWN
    return (taken - utc_offset).replace(tzinfo=UTC).timestamp()


def _text(value: Any) -> str:
    return str(value).strip("\0 ")


# --- keys and thumbnails ---------------------------------------------------------------------------------------------


def photo_key(raw: bytes, metadata: PhotoMetadata) -> str:
    """SHA-256 of a photo's bytes, position and heading, in hexadecimal: the same photo of one place has one key."""
    digest = hashlib.sha256(raw)
    digest.update(repr((metadata.latitude, metadata.longitude, metadata.heading)).encode())
    return digest.hexdigest()


def make_thumbnail(raw: bytes, size: int) -> bytes:
    """A small upright JPEG, `size` pixels along the longer side; empty for size 0 or a photo that cannot be opened."""
    if size == 0:
        return b""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw)) as image:
                if image.width * image.height > MAX_PIXELS:
                    return b""
                image.draft("RGB", (size, size))  # decodes JPEG files at a fraction of their size
                small = ImageOps.exif_transpose(image).convert("RGB")
                small.thumbnail((size, size))
                buffer = io.BytesIO()
                small.save(buffer, "JPEG", quality=JPEG_QUALITY)
                return buffer.getvalue()
    except Exception:  # Pillow raises nearly anything; errors are reported when the photo itself is opened
        return b""
