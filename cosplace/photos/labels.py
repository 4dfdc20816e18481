"""Labels: '@' texts with position, heading and time of photos whose names do not have them.

The values come from a table, or from EXIF and XMP.  A label has the fields of an '@' name (see `cosplace.photos.names`)
with more decimals: millimeters, and 8 decimals of a degree.  Photos in one UTM zone get UTM positions.  Photos on both
sides of the border of a zone, of the equator or of the antimeridian get positions on one local map, so that their
distances are meters there, too.  Legend: I photos.  Side effects: `with_positions` reads photos.
"""

import logging
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosplace.errors import DatasetError, ImageError, NoPositionsError
from cosplace.geo import (
    MapCenter,
    local_map_center,
    local_map_error,
    local_map_positions,
    utm_from_latlon,
    utm_zones,
)
from cosplace.photos.headers import has_all_metadata
from cosplace.photos.headings import MAX_TURNS_DEG
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.metadata import ACCURACY_NOTE, LOCAL_TIME_NOTE, UTM_LETTERS, PhotoMetadata, read_metadata
from cosplace.photos.names import is_at_name, optional_fields, without_rows
from cosplace.photos.opening import read_file
from cosplace.photos.parquet_files import arrow_compute
from cosplace.photos.paths import printable
from cosplace.photos.tables import TABLE_NAME
from cosplace.progress import Progress, no_progress

if TYPE_CHECKING:
    import pyarrow as pa

UTM_DECIMALS, DEGREE_DECIMALS, OTHER_DECIMALS = 3, 8, 4  # 1 mm; 1 mm; headings, angles and altitudes
LAST_TIME_S = 253_402_300_800.0  # the year 10000, which a timestamp cannot have
NUM_SAMPLED = 100  # names that decide whether a list has '@' names
START_BYTES = 1 << 18  # of a JPEG: they contain its metadata, unless that is very large
PHOTOS_PER_STEP = 1024
TASK = "reading positions"
TABLES = (".csv", ".tsv", ".txt", ".json", ".parquet")  # which may have positions, or anything else
POSITIONS = (".mat", ".geojson", ".gpkg", ".gpx", ".nmea")
NOT_TABLES = re.compile(r"_images_paths\.txt$|readme|license|requirements|^(?:config|results|metrics)\.", re.IGNORECASE)
SAYS_POSITIONS = re.compile(
    rb"(?<![a-z])(?:latitude|longitude|easting|northing|utm\w*|gps\w*|wgs84|coordinates|geometry|"
    rb"lat(?![a-z])[^\n]{0,200}(?<![a-z])(?:lon|lng|long)|(?:lon|lng|long)(?![a-z])[^\n]{0,200}(?<![a-z])lat)(?![a-z])|"
    rb"-?\d{1,3}\.\d{4,}[\s,;|]+-?\d{1,3}\.\d{4,}",
    re.IGNORECASE,
)  # names of columns, or two numbers like degrees
HEAD_BYTES = 1 << 16
MAX_TABLES, MAX_ENTRIES = 3, 200

log = logging.getLogger("cosplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoFields:
    """What is known of I photos, (I,) float64 each; nan where unknown."""

    latitudes: np.ndarray  # degrees
    longitudes: np.ndarray  # degrees
    headings: np.ndarray  # degrees clockwise from true north
    times: np.ndarray  # seconds since 1970 (UTC), with fraction
    accuracies_m: np.ndarray  # error of the position
    pitches: np.ndarray  # degrees
    rolls: np.ndarray  # degrees
    altitudes_m: np.ndarray
    are_local_times: np.ndarray | None = None  # (I,) bool: of clocks without a time zone, which were taken as UTC

    @property
    def has_position(self) -> np.ndarray:
        """Which positions are on Earth, (I,) bool; 0, 0 is what devices write without a fix."""
        latitudes, longitudes = (np.round(values, DEGREE_DECIMALS) for values in (self.latitudes, self.longitudes))
        return (np.abs(latitudes) <= 90) & (np.abs(longitudes) <= 180) & ((latitudes != 0) | (longitudes != 0))

    def at(self, rows: np.ndarray) -> "PhotoFields":
        """The fields of some photos."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return PhotoFields(**{name: value[rows] for name, value in values.items() if value is not None})


def with_labels(images: ImageList, fields: PhotoFields, center: MapCenter | None) -> ImageList:
    """A list with labels.  center: of a local map (see `choose_map`); None for UTM positions."""
    return replace(images, labels=list_of_lines(images.folder, _label_lines(fields, center)), map_center=center)


def choose_map(fields: PhotoFields) -> MapCenter | None:
    """Center of the local map that all photos need because they are in several UTM zones or hemispheres.

    None if all are in one zone, or too far apart for one map.
    """
    known = fields.has_position
    latitudes, longitudes = fields.latitudes[known], fields.longitudes[known]
    zones = utm_zones(latitudes, longitudes)
    if not len(zones) or (zones == zones[0]).all():
        return None
    return local_map_center(latitudes, longitudes)


def describe_map(fields: PhotoFields, center: MapCenter) -> str:
    """Say in a sentence that photos are on a local map, and how large its error is."""
    known = fields.has_position
    latitudes, longitudes = fields.latitudes[known], fields.longitudes[known]
    zones = sorted({abs(int(zone)) for zone in np.unique(utm_zones(latitudes, longitudes))})
    where = f"UTM zones {', '.join(map(str, zones))}" if len(zones) > 1 else "both hemispheres"
    error = local_map_error(latitudes, longitudes, center)
    error_cm = max(25 * 100 * error, 0.01)
    return (
        f"The photos are in {where}: their positions are compared on one local map around {center[0]:.1f}, "
        f"{center[1]:.1f}, which is exact to {math.ceil(error * 1e6):,} ppm ({error_cm:.2g} cm in 25 m)."
    )


# --- the text of labels ----------------------------------------------------------------------------------------------


def list_of_lines(folder: Path, lines: "pa.Array") -> ImageList:
    """An ImageList of lines in their order, an Arrow array of large strings that end with a newline."""
    offsets, content = lines.buffers()[1:]
    starts = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    text = np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8)
    return ImageList(folder=folder, names=text[starts[0] : starts[-1]], starts=starts - starts[0])


def _label_lines(fields: PhotoFields, center: MapCenter | None) -> "pa.Array":
    """The labels, each ended by a newline, as an Arrow array of large strings."""
    import pyarrow as pa

    pc = arrow_compute()
    known = fields.has_position
    latitudes, longitudes = (np.where(known, values + 0.0, np.nan) for values in (fields.latitudes, fields.longitudes))
    zones = np.zeros(len(known), np.int8) if center else utm_zones(latitudes, longitudes)
    east_north = np.zeros((len(known), 2))  # 0, 0: unknown
    if center:
        east_north[known] = local_map_positions(latitudes[known], longitudes[known], center)
    for zone in np.unique(zones[known]).tolist() if not center else ():
        rows = np.flatnonzero(zones == zone)
        east_north[rows] = utm_from_latlon(latitudes[rows], longitudes[rows], abs(zone), south=zone < 0)
    bands = np.clip((np.nan_to_num(latitudes) + 80) // 8, 0, len(UTM_LETTERS) - 1).astype(np.int64)
    without_zone = pa.array(zones == 0)
    letters = pa.array(list(UTM_LETTERS), pa.large_string()).take(pa.array(bands, mask=zones == 0))
    zone_texts = pc.if_else(without_zone, None, pa.array(np.abs(zones.astype(np.int64)))).cast(pa.large_string())
    headings = np.mod(np.where(np.abs(fields.headings) <= MAX_TURNS_DEG, fields.headings, np.nan), 360)
    columns = [
        *(_numbers(values, UTM_DECIMALS) for values in east_north.T),
        zone_texts.fill_null(""),
        letters.fill_null(""),
        _numbers(latitudes, DEGREE_DECIMALS),
        _numbers(longitudes, DEGREE_DECIMALS),
        "",  # pano_id
        "",  # tile
        *(_numbers(values, OTHER_DECIMALS) for values in (headings, fields.pitches, fields.rolls, fields.altitudes_m)),
        _timestamps(fields.times),
        _notes(fields),
    ]
    arguments = [pa.scalar(one, pa.large_string()) if isinstance(one, str) else one for one in ("", *columns, "\n")]
    return _one_array(pc.binary_join_element_wise(*arguments, pa.scalar("@", pa.large_string())))


def _numbers(values: np.ndarray, decimals: int) -> "pa.Array":
    """Numbers as text with up to some decimals; empty where unknown."""
    import pyarrow as pa

    known = np.isfinite(values)
    return pa.array(np.round(np.where(known, values, 0), decimals), mask=~known).cast(pa.large_string()).fill_null("")


def _timestamps(times: np.ndarray) -> "pa.Array":
    """Times as YYYYMMDDhhmmss, with a fraction where they have one; empty where unknown."""
    import pyarrow as pa

    pc = arrow_compute()
    known = np.abs(times) < LAST_TIME_S / 2  # from the year 1 to 5985, and false for nan
    micros = np.round(np.where(known, times, 0) * 1e6).astype(np.int64)
    texts = pc.strftime(pa.array(micros, pa.timestamp("us"), mask=~known), format="%Y%m%d%H%M%S")
    return pc.utf8_rtrim(pc.utf8_rtrim(texts.cast(pa.large_string()), "0"), ".").fill_null("")


def _notes(fields: PhotoFields) -> "pa.Array":
    """The error of each position, and whether its time is that of a clock without a time zone."""
    import pyarrow as pa

    pc = arrow_compute()
    accuracies_m = fields.accuracies_m
    texts = _numbers(np.where(accuracies_m > 0, accuracies_m, np.nan), OTHER_DECIMALS)
    notes = pc.binary_join_element_wise(
        pa.scalar(ACCURACY_NOTE, pa.large_string()), texts, pa.scalar("", pa.large_string())
    )
    notes = pc.if_else(pc.equal(texts, ""), pa.scalar("", pa.large_string()), notes)
    if fields.are_local_times is None or not fields.are_local_times.any():
        return notes
    empty, local = (pa.scalar(text, pa.large_string()) for text in ("", LOCAL_TIME_NOTE))
    marks = pc.if_else(pa.array(fields.are_local_times), local, empty)
    return pc.utf8_trim(pc.binary_join_element_wise(notes, marks, pa.scalar(" ", pa.large_string())), " ")


def _one_array(values: Any) -> "pa.Array":
    return values.combine_chunks() if hasattr(values, "chunks") else values


# --- photos with EXIF or XMP -----------------------------------------------------------------------------------------


def with_positions(images: ImageList, progress: Progress = no_progress, num_workers: int | None = None) -> ImageList:
    """A list with labels from EXIF and XMP, unless it has labels or '@' names already (see `has_names`).

    The '@' names of a few photos among others count more than EXIF.  Only the first part of JPEG files is read.  Photos
    without a position are left out, with a warning.
    num_workers: threads; by default one per core, up to 8.
    Raises NoPositionsError if no photo has a position.
    """
    if images.labels is not None or has_names(images):
        return images
    photos: list[PhotoMetadata] = []
    with ThreadPoolExecutor(num_workers or min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(images), PHOTOS_PER_STEP):
            rows = range(first, min(first + PHOTOS_PER_STEP, len(images)))
            photos += pool.map(lambda row: _read_photo(images, row), rows)
            progress(TASK, len(photos), len(images))
    unknown = np.flatnonzero([not photo.has_position for photo in photos])
    if len(unknown) == len(images):
        raise NoPositionsError(
            f"{without_positions_text(images)}{tables_hint(images.folder, images)} {IMPORT_ADVICE}", NO_LABELS
        )
    if len(unknown):
        log.warning(
            "%s: %s of %s photos are left out, for example %s: EXIF has no position.",
            printable(images.folder), f"{len(unknown):,}", f"{len(images):,}", printable(images.name(int(unknown[0]))),
        )  # fmt: skip
        images = without_rows(images, unknown)
        photos = [photo for photo in photos if photo.has_position]
    fields = _fields_of(photos)
    center = choose_map(fields)
    if center:
        log.info("%s: %s", printable(images.folder), describe_map(fields, center))
    return with_labels(images, fields, center)


def has_names(images: ImageList) -> bool:
    """Whether at least half of the photos have '@' names, also wrong ones: those are reported when they are parsed."""
    sample = evenly_spaced(images, NUM_SAMPLED)
    return 2 * sum(is_at_name(images.name(row)) for row in sample) >= len(sample)


def _read_photo(images: ImageList, row: int) -> PhotoMetadata:
    """Metadata of one photo; all unknown if it cannot be read."""
    try:
        path = images.path(row)
        return read_metadata(path, read_start(path))
    except ImageError:  # reported when the photo is opened
        return PhotoMetadata()


def read_start(path: Path) -> bytes:
    """The first bytes of a photo, with all its metadata.  Raises ImageError if it cannot be read."""
    raw = read_file(path, START_BYTES)
    return read_file(path) if len(raw) == START_BYTES and not has_all_metadata(raw) else raw


def _fields_of(photos: list[PhotoMetadata]) -> PhotoFields:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(photo, name) for photo in photos], np.float64)

    unknown = np.full(len(photos), np.nan)
    return PhotoFields(
        latitudes=column("latitude"),
        longitudes=column("longitude"),
        headings=column("heading"),
        times=column("time"),
        accuracies_m=column("accuracy_m"),
        pitches=unknown,
        rolls=unknown,
        altitudes_m=unknown,
        are_local_times=np.array([photo.is_local_time for photo in photos], bool),
    )


def with_headings(images: ImageList, alternative: str = "--alpha 360") -> ImageList:
    """A list without the photos whose heading is unknown, with a warning; a list without labels stays as it is.

    alternative: flags to train without headings, for messages.
    Raises DatasetError if no heading is known, or if all are equal: cameras without a compass write 0.
    """
    if images.labels is None:
        return images
    headings = optional_fields(images, ("heading",))[0]
    unknown = np.flatnonzero(np.isnan(headings))
    known = headings[~np.isnan(headings)]
    advice = f"Use {alternative} to train without headings."
    if not len(known):
        raise DatasetError(f"{images.folder}: the heading of all {len(images):,} photos is unknown. {advice}")
    if len(known) > 1 and (known == known[0]).all():
        raise DatasetError(f"{images.folder}: all headings are {known[0]:g} degrees, which means unknown. {advice}")
    if not len(unknown):
        return images
    log.warning(
        "%s: %s of %s photos are left out, for example %s: their heading is unknown. With %s, all photos are used.",
        printable(images.folder), f"{len(unknown):,}", f"{len(images):,}", printable(images.name(int(unknown[0]))),
        alternative,
    )  # fmt: skip
    return without_rows(images, unknown)


# --- photos without positions ----------------------------------------------------------------------------------------

NO_LABELS = "Or use --no_labels to list the nearest neighbors only."
IMPORT_ADVICE = "Combine photos and positions with `cosplace import PHOTOS TABLE --to DATASET`."


def without_positions_text(images: ImageList) -> str:
    """Say in a sentence that no photo of a list has a position."""
    if len(images) == 1:
        return f"The only photo of {images.folder} has no position."
    return f"None of the {len(images):,} photos of {images.folder} has a position."


def tables_hint(dataset: Path, images: ImageList) -> str:
    """Name files that may have the positions, in a sentence that starts with a space; empty without any."""
    tables = [printable(path) for path in islice(_tables_beside(dataset, images), MAX_TABLES)]
    return f" Positions may be in {', '.join(tables)}." if tables else ""


def _tables_beside(dataset: Path, images: ImageList) -> Iterator[Path]:
    """Files that may contain positions: in and next to the dataset, in its folders, and on the way to its photos.

    Folders next to the dataset are other datasets, so their files are not listed, except those of GSV-Cities.
    """
    dataset = dataset.resolve()
    first = (images.folder.resolve() / images.name(0)).parent
    between = [folder for folder in (first, *first.parents) if folder.is_relative_to(dataset)]
    seen = set()
    of_gsv_cities = [folder / "Dataframes" for folder in (dataset.parent, dataset.parent.parent)]  # next to Images/
    for folder in [*between, *_folders_in(dataset), dataset.parent, *of_gsv_cities]:
        for path in _entries(folder):
            if path not in seen and path.is_file() and _may_have_positions(path):
                seen.add(path)
                yield path


def _may_have_positions(path: Path) -> bool:
    """Whether a file is of a kind that has positions, or is a table whose start or end says so."""
    suffix = path.suffix.lower()
    if suffix not in TABLES or path.name == TABLE_NAME or NOT_TABLES.search(path.name):  # the table of another dataset
        return suffix in POSITIONS
    try:
        with path.open("rb") as file:
            if suffix == ".parquet":  # the names of its columns are at its end
                file.seek(max(0, path.stat().st_size - HEAD_BYTES))
            return SAYS_POSITIONS.search(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in islice(entries, MAX_ENTRIES))
    except OSError:
        return []
