"""What EXIF blocks and XMP packets say about position, heading and time.  The only place that interprets them.

Pillow reads the tags (docs/decisions/0016-exif.md).  In practice, the types of tags are often wrong, so values are
read by their content.  A value that is missing, impossible or ambiguous is unknown (nan): a latitude without N or S is
not assumed to be north.
"""

import math
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from PIL import Image

from cosplace.geo import wrap_heading
from cosplace.photos.blocks import find_blocks
from cosplace.photos.xmp import DJI_NAMESPACE, EXIF_NAMESPACE, PHOTOSHOP_NAMESPACE, XMP_NAMESPACE, contains, read_xmp

UNKNOWN = math.nan
EXIF_DIRECTORY, GPS_DIRECTORY, XMP_IN_TIFF = 0x8769, 0x8825, 700  # tags of the first directory
LATITUDE_REF, LATITUDE, LONGITUDE_REF, LONGITUDE, GPS_TIME = 1, 2, 3, 4, 7
POSITION_TAGS = (LATITUDE_REF, LATITUDE, LONGITUDE_REF, LONGITUDE)
DIRECTORY_ENTRY = 12  # bytes: tag, type, count, and the value or its place
HEADING_REF, HEADING, GPS_DATE, POSITION_ERROR = 16, 17, 29, 31
DATE_TAGS = ((0x9003, 0x9011, 0x9291), (0x9004, 0x9012, 0x9292), (0x0132, 0x9010, 0x9290))
"""Tags of a date, its offset from UTC and its fraction of a second: when taken, digitized, changed."""
OFFSET_TAGS = (0x9011, 0x9012)
CHANGED = 0x0132
DATE_PATTERN = re.compile(
    r"(\d{4})[:/.-](\d\d?)[:/.-](\d\d?)[T ]+(\d\d?):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?\s*(Z|UTC|[+-]\d\d?(?::?\d\d)?)?",
    re.IGNORECASE,
)
OFFSET_PATTERN = re.compile(r"([+-])(\d\d?)(?::?(\d\d)(?::00)?)?")
NUMBER_PATTERN = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
XMP_DATES = (f"{{{EXIF_NAMESPACE}}}DateTimeOriginal", f"{{{EXIF_NAMESPACE}}}DateTimeDigitized",
             f"{{{PHOTOSHOP_NAMESPACE}}}DateCreated", f"{{{XMP_NAMESPACE}}}CreateDate")  # fmt: skip
MAX_OFFSET_HOURS = 15
FIRST_YEAR, LAST_YEAR = 1826, 2199  # of photos; clocks that were never set write others
GPS_EPOCH = (1980, 1, 6)  # the date of a receiver that does not know the time yet
NEVER_SET = ((1904, 1, 1), (1970, 1, 1), (1980, 1, 1), GPS_EPOCH)  # where clocks of cameras and phones begin
MAX_ACCURACY_M = 20_000_000.0  # half the way around the Earth: larger numbers mean unknown
SAME_POSITION_DEGREES = 1e-4  # blocks of one file may give the same position with different precision

_reading = threading.Lock()  # `catch_warnings` changes the whole process


@dataclass(frozen=True, slots=True, kw_only=True)
class ExifFacts:
    """Position, heading and time; nan where unknown."""

    latitude: float = UNKNOWN  # degrees
    longitude: float = UNKNOWN  # degrees
    accuracy_m: float = UNKNOWN  # error of the position in meters, as the camera estimates it
    heading: float = UNKNOWN  # degrees clockwise from north, in [0, 360)
    is_magnetic: bool = False  # whether the heading is from magnetic north
    time: float = UNKNOWN  # seconds since 1970 (UTC)
    is_local_time: bool = False  # whether `time` is that of a clock without a time zone, which was taken as UTC
    heading_is_in_xmp: bool = False


Directory = Mapping[int, Any]


@dataclass(frozen=True, slots=True)
class ExifTags:
    """Tags of one EXIF block by directory: numbers, text, bytes, or tuples of numbers."""

    image: Directory
    taken: Directory
    gps: Directory


@dataclass(frozen=True, slots=True)
class PhotoTags:
    """All that EXIF and XMP of a photo's file contain, not interpreted."""

    exif: tuple[ExifTags, ...]  # of each block
    packets: tuple[bytes, ...]  # XMP


def read_exif(raw: bytes) -> ExifFacts:
    """Facts in the EXIF blocks and the XMP packet of a photo's file.  Never raises.

    EXIF takes precedence, and XMP provides what it lacks.  If EXIF blocks have different positions, it is unknown.
    """
    return exif_facts(read_tags(raw))


def read_tags(raw: bytes) -> PhotoTags:
    """The tags of all EXIF blocks, and the XMP packets, of a photo's file.  Never raises."""
    blocks = find_blocks(raw)
    tags = tuple(_read_tags(block) for block in blocks.exif)
    return PhotoTags(tags, blocks.xmp or tuple(_packet_in_tag(one.image.get(XMP_IN_TIFF)) for one in tags))


def exif_facts(photo: PhotoTags) -> ExifFacts:
    """Position, heading and time in tags; see `read_exif`."""
    tags, packets = photo.exif, photo.packets
    positions = [position for one in tags if not math.isnan((position := _gps_position(one.gps))[0])]
    latitude, longitude = _agreed_position(positions)
    heading, is_magnetic = _first([_heading(one.gps.get(HEADING), one.gps.get(HEADING_REF)) for one in tags])
    accuracy_m = _first([(_accuracy_m(one.gps.get(POSITION_ERROR)), False) for one in tags])[0]
    time, is_local_time = _first([_time(one) for one in tags])
    heading_is_in_xmp = False

    missing = {
        "GPSLatitude": latitude,
        "GPSImgDirection": heading,
        "GPSHPositioningError": accuracy_m,
        "GPSTimeStamp": time,
        "Date": time,
    }
    words = [word for word, value in missing.items() if math.isnan(value)]
    words += ["GpsLatitude"] if math.isnan(latitude) else []
    for packet in packets:
        if not any(contains(packet, word) for word in words):
            continue
        properties = read_xmp(packet)
        if not positions and math.isnan(latitude):
            latitude, longitude = _xmp_position(properties)
        if math.isnan(heading):
            heading, is_magnetic = _heading(_exif_property(properties, "GPSImgDirection"),
                                            _exif_property(properties, "GPSImgDirectionRef"))  # fmt: skip
            heading_is_in_xmp = not math.isnan(heading)
        if math.isnan(accuracy_m):
            accuracy_m = _accuracy_m(_exif_property(properties, "GPSHPositioningError"))
        if math.isnan(time):
            time, is_local_time = _xmp_time(properties)
    return ExifFacts(
        latitude=latitude,
        longitude=longitude,
        accuracy_m=accuracy_m,
        heading=heading,
        is_magnetic=is_magnetic,
        time=time,
        is_local_time=is_local_time,
        heading_is_in_xmp=heading_is_in_xmp,
    )


def _read_tags(block: bytes) -> ExifTags:
    """The tags of a block; of a damaged block, those before the damage."""
    exif = Image.Exif()

    def read(directory: Callable[[], Directory]) -> Directory:
        try:
            return directory()
        except Exception:  # Pillow raises nearly anything on damaged blocks
            return {}

    with _reading, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exif.load(block)
        except Exception:
            return ExifTags({}, {}, {})
        image = read(lambda: dict(exif))
        gps = {} if _contradicts_itself(block, image.get(GPS_DIRECTORY)) else read(lambda: exif.get_ifd(GPS_DIRECTORY))
        return ExifTags(image, read(lambda: exif.get_ifd(EXIF_DIRECTORY)), gps)


def _contradicts_itself(block: bytes, start: Any) -> bool:
    """Whether the directory of GPS tags at `start` has a tag of the position twice, with different values.

    Readers disagree which one counts: Pillow takes the first, exiftool the last.
    """
    if not isinstance(start, int) or not 0 <= start <= len(block) - 2:
        return False
    order: Literal["little", "big"] = "little" if block[:1] == b"I" else "big"
    size = int.from_bytes(block[start : start + 2], order)
    places = range(start + 2, min(start + 2 + DIRECTORY_ENTRY * size, len(block)), DIRECTORY_ENTRY)
    entries = {block[place : place + DIRECTORY_ENTRY] for place in places}
    tags = [int.from_bytes(entry[:2], order) for entry in entries]
    return any(tags.count(tag) > 1 for tag in POSITION_TAGS)


def _first(values: Sequence[tuple[float, bool]]) -> tuple[float, bool]:
    """The first pair with a known number."""
    return next((pair for pair in values if not math.isnan(pair[0])), (UNKNOWN, False))


# --- values ----------------------------------------------------------------------------------------------------------


def text_of(value: Any) -> str:
    """Text of a value of any type: characters, or character codes."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif isinstance(value, int) and 0 < value < 128:
        value = chr(value)
    elif isinstance(value, tuple) and all(isinstance(one, int) and 0 <= one < 128 for one in value):
        value = "".join(map(chr, value))
    return value.lstrip("\0 ").partition("\0")[0].strip() if isinstance(value, str) else ""


def _numbers(value: Any) -> list[float]:
    """Numbers of a value of any type; nan for 0/0 and the like."""
    if isinstance(value, str):
        return [float(text) for text in NUMBER_PATTERN.findall(value)]
    return [number_of(one) for one in (value if isinstance(value, tuple | list) else (value,))]


def number_of(value: Any) -> float:
    """A finite number, also of text such as "2705/10"; nan for anything else, also for bytes: digits, or numbers?"""
    if isinstance(value, bytes):  # float() takes them for digits
        return UNKNOWN
    try:
        if isinstance(value, str):
            numerator, _, denominator = value.partition("/")
            number = float(numerator) / float(denominator or 1)
        else:
            number = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return UNKNOWN
    return number if math.isfinite(number) else UNKNOWN


def _accuracy_m(value: Any) -> float:
    number = number_of(value)
    return number if 0 < number <= MAX_ACCURACY_M else UNKNOWN


# --- position --------------------------------------------------------------------------------------------------------


def _gps_position(gps: Directory) -> tuple[float, float]:
    return checked_position(
        _angle(_numbers(gps.get(LATITUDE)), text_of(gps.get(LATITUDE_REF)), "NS"),
        _angle(_numbers(gps.get(LONGITUDE)), text_of(gps.get(LONGITUDE_REF)), "EW"),
    )


def _angle(parts: Sequence[float], reference: str, letters: str) -> float:
    """Degrees of an angle in degrees, or degrees and minutes, or degrees, minutes and seconds.

    letters: those of the positive and the negative direction.  The angle is unknown without a reference, and if a sign
    contradicts it: -33° north may be north or south.
    """
    letter = reference[:1].upper()
    if not letter or letter not in letters or not parts or not all(map(math.isfinite, parts)):
        return UNKNOWN
    parts = parts[:3]
    if any(part < 0 for part in parts) and (letter == letters[0] or any(part > 0 for part in parts)):
        return UNKNOWN
    degrees = sum(abs(part) / 60**power for power, part in enumerate(parts))
    return degrees if letter == letters[0] else -degrees


def checked_position(latitude: float, longitude: float) -> tuple[float, float]:
    """A position in degrees; unknown if it is impossible, and at 0, 0, which cameras write without a fix."""
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or latitude == longitude == 0:
        return UNKNOWN, UNKNOWN
    return latitude, longitude


def _agreed_position(positions: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The first position, if the others agree."""
    for position in positions[1:]:
        if any(abs(a - b) > SAME_POSITION_DEGREES for a, b in zip(positions[0], position, strict=True)):
            return UNKNOWN, UNKNOWN
    return positions[0] if positions else (UNKNOWN, UNKNOWN)


def _xmp_position(properties: Mapping[str, str]) -> tuple[float, float]:
    """Position as "33,51.408S" or "33.8568S"; as "-33.8568" only if at least one of the two numbers has a sign.

    Drones by DJI write signed degrees into properties of their own, one of them misspelled.
    """
    texts = [_exif_property(properties, name) for name in ("GPSLatitude", "GPSLongitude")]
    if not any(texts):
        latitude, *longitudes = (
            properties.get(f"{{{DJI_NAMESPACE}}}{name}", "")
            for name in ("GpsLatitude", "GpsLongitude", "GpsLongtitude")
        )
        return checked_position(number_of(latitude), number_of(longitudes[0] or longitudes[1]))
    is_signed = any(text[:1] in ("-", "+") for text in texts)
    angles = []
    for text, name, letters in zip(texts, ("GPSLatitudeRef", "GPSLongitudeRef"), ("NS", "EW"), strict=True):
        reference = text[-1:] if text[-1:].isalpha() else _exif_property(properties, name)
        parts = _numbers(text)
        if not reference and is_signed and len(parts) == 1:
            angles.append(parts[0])
        else:
            angles.append(_angle(parts, reference, letters))
    return checked_position(*angles)


def _exif_property(properties: Mapping[str, str], name: str) -> str:
    return properties.get(f"{{{EXIF_NAMESPACE}}}{name}", "")


# --- heading ---------------------------------------------------------------------------------------------------------


def _heading(value: Any, reference: Any) -> tuple[float, bool]:
    """Degrees in [0, 360), and whether they are from magnetic north.

    Negative headings are counterclockwise, down to -180.  Other values are invalid, such as 65535 for unknown.
    """
    heading = number_of(text_of(value) if isinstance(value, str) else value)
    if not -180 <= heading <= 360:
        return UNKNOWN, False
    return wrap_heading(heading), text_of(reference)[:1].upper() == "M"


# --- time ------------------------------------------------------------------------------------------------------------


def _time(tags: ExifTags) -> tuple[float, bool]:
    """GPS time, else the first valid date of the camera; and whether that has no offset, and counts as UTC."""
    gps_time, (camera_time, is_local) = _gps_time(tags.gps), _camera_time(tags.taken, tags.image)
    if math.isnan(gps_time):
        return camera_time, is_local
    # GPS times are often whole seconds.  If the camera's clock agrees, in some time zone, its fraction of a second is
    # used: it orders the photos of one second.
    local = camera_time - round((camera_time - gps_time) / 900) * 900 if not math.isnan(camera_time) else UNKNOWN
    has_fraction = gps_time % 1 == 0 and camera_time % 1 > 0 and abs(local - gps_time) <= 2
    return local if has_fraction else gps_time, False


def _gps_time(gps: Directory) -> float:
    match = re.match(r"(\d{4})[:/.-](\d\d?)[:/.-](\d\d?)", text_of(gps.get(GPS_DATE)))
    clock = _numbers(gps.get(GPS_TIME))
    if match is None or len(clock) != 3:
        return UNKNOWN
    hours, minutes, seconds = clock
    date = tuple(map(int, match.groups()))
    if date <= GPS_EPOCH or not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds <= 60):
        return UNKNOWN
    return _seconds_since_1970(*date, seconds=hours * 3600 + minutes * 60 + seconds)


def _camera_time(taken: Directory, image: Directory) -> tuple[float, bool]:
    tags = {**image, **taken}
    # A camera has one clock, so an offset given for another of its dates applies, too; but not that of a later change,
    # which may have been made on a computer in another time zone.
    offsets = [_offset_s(text_of(tags.get(tag))) for tag in OFFSET_TAGS]
    changed = text_of(tags.get(CHANGED))
    if not changed or changed in [text_of(tags.get(tag)) for tag, *_ in DATE_TAGS if tag != CHANGED]:
        offsets.append(_offset_s(text_of(tags.get(0x9010))))
    for date_tag, offset_tag, fraction_tag in DATE_TAGS:
        offset_s = next((one for one in (_offset_s(text_of(tags.get(offset_tag))), *offsets) if one is not None), None)
        time, is_local = time_of_date(text_of(tags.get(date_tag)), offset_s, _fraction_of(tags.get(fraction_tag)))
        if not math.isnan(time):
            return time, is_local
    return UNKNOWN, False


def _fraction_of(value: Any) -> str:
    """The digits of a fraction of a second: a text, or a number that is written with these digits, as for exiftool."""
    if isinstance(value, bytes) and len(value) == 1:
        return ""  # 50 may be the number or the character 2
    if isinstance(value, str | bytes | tuple):
        return text_of(value)
    number = number_of(value)
    return str(int(number)) if number >= 0 and number % 1 == 0 else ""


def _xmp_time(properties: Mapping[str, str]) -> tuple[float, bool]:
    for name in (f"{{{EXIF_NAMESPACE}}}GPSTimeStamp", *XMP_DATES):
        time, is_local = time_of_date(properties.get(name, ""))
        if not math.isnan(time):
            return time, is_local and not name.endswith("GPSTimeStamp")
    return UNKNOWN, False


def time_of_date(text: str, offset_s: float | None = None, fraction: str = "") -> tuple[float, bool]:
    """Seconds since 1970 of "2020:06:01 12:00:00" and its variants, and whether it has no offset, and counts as UTC.

    nan for anything else, such as zeros, and for the first day of a clock that was never set.
    offset_s, fraction: used where the text itself has no offset and no fraction of a second.
    """
    match = DATE_PATTERN.fullmatch(text)
    if match is None:
        return UNKNOWN, False
    year, month, day, hours, minutes = (int(part) for part in match.groups()[:5])
    seconds, own_fraction, own_offset = int(match[6] or 0), match[7], match[8]
    if hours > 23 or minutes > 59 or seconds > 60 or (year, month, day) in NEVER_SET:
        return UNKNOWN, False
    digits = own_fraction or (fraction if fraction.isascii() and fraction.isdigit() else "")
    if (own_offset_s := _offset_s(own_offset or "")) is not None:  # an impossible one is none
        offset_s = own_offset_s
    is_local, offset_s = offset_s is None, offset_s or 0.0
    clock_s = hours * 3600 + minutes * 60 + seconds + (float(f"0.{digits}") if digits else 0.0)
    return _seconds_since_1970(year, month, day, seconds=clock_s - offset_s), is_local


def _seconds_since_1970(year: int, month: int, day: int, *, seconds: float) -> float:
    if not FIRST_YEAR <= year <= LAST_YEAR:
        return UNKNOWN
    try:
        return datetime(year, month, day, tzinfo=UTC).timestamp() + seconds
    except ValueError:  # no such day
        return UNKNOWN


def _offset_s(text: str) -> float | None:
    """Seconds from UTC of "+02:00", "+02:00:00", "+0200", "+2" or "Z"; None for anything else."""
    if text.upper() in ("Z", "UTC"):
        return 0.0
    match = OFFSET_PATTERN.fullmatch(text)
    if match is None or int(match[2]) > MAX_OFFSET_HOURS or int(match[3] or 0) > 59:
        return None
    seconds = timedelta(hours=int(match[2]), minutes=int(match[3] or 0)).total_seconds()
    return -seconds if match[1] == "-" else seconds


# --- tags that hold a packet -----------------------------------------------------------------------------------------


def _packet_in_tag(value: Any) -> bytes:
    if isinstance(value, tuple) and all(isinstance(one, int) and 0 <= one < 256 for one in value):
        return bytes(value)
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace") if isinstance(value, str) else b""
