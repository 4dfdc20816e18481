"""Panoramas of a folder or a dataset: which images are panoramas, where their center looks, how crops are named.

The heading of a panorama is the azimuth of its center column:

    '@' names         field 9, as in SF-XL
    GPano             PoseHeadingDegrees, that of the whole panorama, corrected for images that show a part of it
    EXIF              GPSImgDirection
    photos.parquet    column `heading`

Side effects: reads files.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError, ImageError
from cosplace.importing import exif_photos
from cosplace.importing.reading import read_photo
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.photos.exif import read_tags
from cosplace.photos.image_list import photo_path
from cosplace.photos.names import FIELDS
from cosplace.photos.opening import read_file
from cosplace.photos.panoramas import Coverage, coverage_of, gpano_heading, gpano_tilt
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, from_table, read_blocks
from cosplace.photos.xmp import read_xmp

EQUIRECTANGULAR = "equirectangular"
ROWS_PER_STEP = 4096
MAX_TILT_DEGREES = 5.0
MAX_STEM_BYTES = 200  # file systems allow names of 255
MEASURED = ("exif", "xmp", "table", "")  # sources of headings that GPano corrects


@dataclass(frozen=True, slots=True, kw_only=True)
class Panorama:
    """An image that shows a known part of the sphere."""

    file: Path
    record: (
        PhotoRecord  # its heading is that of the image's center; its path is the one that the crops' paths start from
    )
    coverage: Coverage


# --- listing ---------------------------------------------------------------------------------------------------------


def list_images(source: Path, *, follow_outside: bool = False) -> Iterator[Entry]:
    """The images of a folder, or of a table or a folder with one; not read yet.

    Raises DatasetError if there is no such folder or table.
    """
    table = source / TABLE_NAME if source.is_dir() else source
    if table.is_file() and table.suffix.lower() == ".parquet":
        yield from _listed_in_table(table, follow_outside=follow_outside)
    elif source.exists():
        yield from exif_photos.read(source, ImportSettings())
    else:
        raise DatasetError(f"{source} does not exist. Check the path.")


def _listed_in_table(table: Path, *, follow_outside: bool) -> Iterator[Entry]:
    inside = () if follow_outside else (os.path.realpath(table.parent),)
    for block in read_blocks(table, ROWS_PER_STEP):
        for record in from_table(block):
            if record.projection not in ("", EQUIRECTANGULAR):
                yield Problem(name=record.path, reason=f"it is not a panorama: its projection is {record.projection}")
                continue
            try:
                file = photo_path(table.parent, record.path, inside)
            except ImageError as error:
                yield Problem(name=record.path, reason=str(error))
            else:
                path = record.path.removeprefix(f"{exif_photos.PHOTOS_FOLDER}/")
                named = replace(record, path=f"{exif_photos.PHOTOS_FOLDER}/{path}", source="", checksum="")
                yield FoundPhoto(file=file, record=named, use_exif=False)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_panorama(
    photo: FoundPhoto, horizon_row: float | None = None, timezone: str = ""
) -> tuple[Panorama | Problem, list[Problem]]:
    """A panorama with all that is known of it, or why it is left out; and doubts.  Its pixels are not decoded.

    horizon_row: see `coverage_of`.
    """
    *doubts, found = read_photo(photo, None, "table", timezone)
    known = [doubt for doubt in doubts if isinstance(doubt, Problem)]
    if isinstance(found, Problem):
        return found, known
    try:
        packets = read_tags(read_file(found.file)).packets
    except ImageError as error:
        return Problem(name=str(photo.file), reason=str(error)), known
    properties: dict[str, str] = {}
    for packet in packets:
        properties = read_xmp(packet) | properties
    record, name = found.record, str(found.file)
    coverage = coverage_of(record.width, record.height, properties, horizon_row)
    if coverage is None:
        return Problem(name=name, reason=_not_a_panorama(record, is_in_table=not photo.use_exif)), known
    heading = gpano_heading(properties, coverage)
    if not math.isnan(heading) and (photo.use_exif or math.isnan(record.heading)) and record.heading_source in MEASURED:
        record = replace(record, heading=heading)
    if (tilt := gpano_tilt(properties)) > MAX_TILT_DEGREES:
        reason = f"its camera was tilted by {tilt:.0f} degrees, so its crops are tilted, too"
        known.append(Problem(name=name, reason=reason, is_left_out=False))
    if math.isnan(record.heading):
        known.append(
            Problem(
                name=name,
                reason="its heading is unknown, so the headings of its crops are unknown, too",
                is_left_out=False,
            )
        )
    return Panorama(file=found.file, record=record, coverage=coverage), known


def _not_a_panorama(record: PhotoRecord, *, is_in_table: bool) -> str:
    size = f"{record.width} x {record.height} pixels, without GPano properties of an equirectangular panorama"
    if record.width >= 2 * record.height or (is_in_table and record.projection == EQUIRECTANGULAR):
        return f"it is unknown which part of the sphere it shows: {size}. If it shows 360 degrees, pass --horizon_row."
    return f"it is not a panorama: {size}"


# --- names -----------------------------------------------------------------------------------------------------------


def crop_path(panorama: Panorama, yaw: float, heading: float, pitch: float) -> str:
    """Path of a crop in a dataset.

    The '@' name of a panorama becomes one of the crop: its heading, pitch, and as tile its yaw.  Other names get the
    yaw at their end.
    """
    folder, slash, name = panorama.record.path.rpartition("/")
    stem = name[: -len(".jpg")] if name.lower().endswith(".jpg") else name
    if _starts_with_utm(stem):
        before, *fields = stem.split("@")
        fields += [""] * (len(FIELDS) - len(fields))
        for field, text in (("tile", _angle(yaw, 3)), ("heading", _angle(heading)), ("pitch", f"{pitch:g}")):
            fields[FIELDS[field] - 1] = text
        ending = "" if fields[-1] == "" and len(fields) > len(FIELDS) else "@"
        return f"{folder}{slash}{before}@{'@'.join(fields)}{ending}.jpg"
    raw = os.fsencode(stem)
    if len(raw) > MAX_STEM_BYTES:
        stem = raw[:MAX_STEM_BYTES].decode("utf-8", "ignore")
    return f"{folder}{slash}{stem}_{_angle(yaw, 3)}.jpg"


def faces_north(path: str, heading: float) -> bool:
    """Whether a crop with this path and heading is of a panorama whose own heading is 0: both say the same yaw."""
    stem = path.rpartition("/")[2].removesuffix(".jpg")
    yaw = stem.split("@")[FIELDS["tile"] :][:1] if _starts_with_utm(stem) else [stem.rpartition("_")[2]]
    return yaw == [_angle(heading, 3)]


def _starts_with_utm(stem: str) -> bool:
    """Whether a name has UTM east and north as its first fields."""
    try:
        return all(math.isfinite(float(text)) for text in stem.split("@")[1:3]) and stem.count("@") >= 2
    except ValueError:
        return False


def _angle(degrees: float, digits: int = 1) -> str:
    """Degrees in [0, 360) with up to two decimals: 30, 51.43; 030, 051.43 with 3 digits; empty if unknown."""
    if math.isnan(degrees):
        return ""
    whole, _, decimals = f"{round(degrees % 360, 2) % 360:.2f}".partition(".")
    decimals = decimals.rstrip("0")
    return whole.zfill(digits) + (f".{decimals}" if decimals else "")
