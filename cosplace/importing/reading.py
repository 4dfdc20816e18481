"""Reads one photo of a source: checksum, size, and what its '@' name, EXIF and XMP say.

The time zone of a camera clock is that in EXIF, else the one that the user names; a clock without either counts as UTC,
which is reported.  Side effects: reads files; writes converted photos and video frames into a temporary folder.
"""

import hashlib
import math
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cosplace.errors import ConfigError, DatasetError, ImageError
from cosplace.importing.heic import jpeg_of_heic
from cosplace.importing.positions import is_known
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.photos.camera import camera_facts
from cosplace.photos.exif import ExifFacts, exif_facts, read_tags
from cosplace.photos.formats import detect_format, other_format, refused_format
from cosplace.photos.headers import jpeg_header
from cosplace.photos.metadata import PhotoMetadata, complete, metadata_from_name
from cosplace.photos.opening import MAX_PIXELS, decode_pixels, open_with_pillow, read_file
from cosplace.photos.orientation import read_orientation
from cosplace.photos.paths import path_text, printable
from cosplace.photos.tables import ZONE_ASSUMED, ZONE_STATED, PhotoRecord
from cosplace.storage import storage_errors

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of complete files
TURNED = (5, 6, 7, 8)  # orientations that swap width and height
HEIC = "HEIC"
HEIC_LEFT_OUT = "is a HEIC image. Only --mode copy imports it, and converts it to JPEG."
LOCAL_TIME = "its time has no time zone, so UTC was assumed. To use another time zone, pass --timezone."
CONTRADICTION = "the UTM position in its name is {:,.0f} m from its latitude and longitude; the latter were used."


_file_numbers = count()


@lru_cache(maxsize=8)
def find_timezone(name: str) -> ZoneInfo:
    """The time zone of an IANA name.  Raises ConfigError for an unknown one."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"--timezone '{name}' is unknown. Use a name such as Europe/Rome.") from error


def read_photo(photo: FoundPhoto, temporary: Path | None, mode: str = "copy", timezone: str = "") -> list[Entry]:
    """A photo with its record completed, and doubts about it; or a problem if it is not an image that can be opened.

    temporary: where to write a photo that is not a file yet: a converted one, or a frame of a video.  None: such photos
    are not written, as in a dry run.
    """
    name = str(photo.file)
    try:
        raw = photo.content if photo.content is not None else read_file(photo.file)
        source = photo.record.source or path_text(photo.file)
        if detect_format(raw) is None:
            if other_format(raw) != HEIC or mode != "copy":
                return [Problem(name=name, reason=HEIC_LEFT_OUT if other_format(raw) == HEIC else refused_format(raw))]
            raw = jpeg_of_heic(raw, str(photo.file))
            path = str(Path(photo.record.path).with_suffix(".jpg"))
            photo = replace(photo, content=raw, converted_from=photo.file, record=replace(photo.record, path=path))
        width, height = _size(raw, photo.file)
        if not raw.rstrip(b"\0").endswith(ENDS.get(detect_format(raw) or "", b"\0")):
            decode_pixels(raw, photo.file)  # truncated, or with other data at its end: whether it opens decides
    except (ImageError, DatasetError) as error:
        return [Problem(name=name, reason=str(error).removeprefix(printable(name)).strip())]
    checksum = hashlib.sha256(raw).hexdigest()
    record = replace(photo.record, source=source, width=width, height=height, checksum=checksum)
    entries: list[Entry] = []
    if photo.use_exif:
        record, doubts = _with_metadata(record, _name_of(photo), raw, timezone)
        entries = [Problem(name=name, reason=doubt, is_left_out=False) for doubt in doubts]
    if photo.content is not None:
        file = photo.file
        if temporary is not None:
            file = temporary / f"{next(_file_numbers)}.photo"  # not the checksum: frames may be equal
            with storage_errors(file):
                file.write_bytes(raw)
        photo = replace(photo, file=file, content=None)
    return [*entries, replace(photo, record=record)]


def _name_of(photo: FoundPhoto) -> str:
    """The name that may have '@' fields; a frame of a video has none."""
    is_frame = photo.content is not None and photo.converted_from is None
    return "" if is_frame else photo.named_file.name


def _size(raw: bytes, file: Path) -> tuple[int, int]:
    """Width and height of the upright photo.  Raises ImageError."""
    header = jpeg_header(raw) if detect_format(raw) == "JPEG" else None
    if header is not None:
        width, height, orientation = header.width, header.height, read_orientation(header.exif, header.xmp)
    else:
        with open_with_pillow(raw, file) as (image, orientation):
            width, height = image.size
    if width * height > MAX_PIXELS or not width * height:
        raise ImageError(f"{file} has {width} x {height} pixels. Resize it.")
    return (height, width) if orientation in TURNED else (width, height)


# --- metadata --------------------------------------------------------------------------------------------------------


def _with_metadata(record: PhotoRecord, name: str, raw: bytes, timezone: str) -> tuple[PhotoRecord, list[str]]:
    """A record with the values that it lacks from the name, EXIF and XMP of its photo; and doubts about them."""
    named, tags, doubts = metadata_from_name(name), read_tags(raw), []
    exif = exif_facts(tags)
    zone = _zone(named, exif, timezone) if math.isnan(record.time) else ""
    if named.is_local_time and timezone:
        named = replace(named, time=utc_time(named.time, timezone))
    if math.isnan(record.time) and math.isnan(named.time) and exif.is_local_time:
        if timezone:
            exif = replace(exif, time=utc_time(exif.time, timezone))
        else:
            doubts.append(LOCAL_TIME)
    if named.contradicts_itself:
        doubts.append(CONTRADICTION.format(named.contradiction_m))
    camera = camera_facts(tags, record.width, record.height)
    if camera.states_heading:
        exif = replace(exif, heading=camera.heading, is_magnetic=False, heading_is_in_xmp=True)
    known = complete(_of_record(record, named), exif)
    heading = known.heading if not math.isnan(known.heading) else camera.heading
    has_own_position = not math.isnan(record.latitude)
    return _filled(
        record,
        latitude=known.latitude,
        longitude=known.longitude,
        accuracy_m=math.nan if has_own_position else known.accuracy_m,
        altitude_m=camera.altitude_m,
        heading=heading,
        heading_source="" if math.isnan(heading) else _heading_source(record, named, exif),
        pitch=camera.pitch,
        roll=camera.roll,
        field_of_view=camera.field_of_view,
        time=known.time,
        time_zone=zone,
        camera=camera.camera,
        projection=camera.projection,
    ), doubts


def _zone(named: PhotoMetadata, exif: ExifFacts, timezone: str) -> str:
    """Whether the time zone of a name or of EXIF is stated; "" where there is no time, or a name does not say."""
    if not math.isnan(named.time):
        return "" if not named.is_local_time else ZONE_STATED if timezone else ZONE_ASSUMED
    return "" if math.isnan(exif.time) else ZONE_ASSUMED if exif.is_local_time and not timezone else ZONE_STATED


def _of_record(record: PhotoRecord, named: PhotoMetadata) -> PhotoMetadata:
    """The position, heading and time of a record, and those of the name where it has none."""
    known = replace(named, contradiction_m=math.nan)
    if not math.isnan(record.latitude):
        known = replace(known, latitude=record.latitude, longitude=record.longitude)
    if not math.isnan(record.heading):
        known = replace(known, heading=record.heading)
    return known if math.isnan(record.time) else replace(known, time=record.time)


def _heading_source(record: PhotoRecord, named: PhotoMetadata, exif: ExifFacts) -> str:
    if not math.isnan(record.heading):
        return ""  # the record names it
    if not math.isnan(named.heading):
        return "name"
    return "exif" if not math.isnan(exif.heading) and not exif.heading_is_in_xmp else "xmp"


def _filled(record: PhotoRecord, **values: Any) -> PhotoRecord:
    """A record with values where it has none."""
    lacking = {}
    for name, value in values.items():
        if is_known(value) and not is_known(getattr(record, name)):
            lacking[name] = value
    return replace(record, **lacking) if lacking else record


def utc_time(time: float, timezone: str) -> float:
    """Seconds since 1970 (UTC) of a clock that shows `time` as if it were UTC."""
    shown = datetime.fromtimestamp(math.floor(time), UTC).replace(tzinfo=find_timezone(timezone))
    return shown.timestamp() + time % 1
