"""A dataset for other programs: photos with '@' names, GeoJSON, or a description for mapillary_tools.

Side effects: writes files.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import DatasetError, StorageError
from cosplace.importing.mapillary_json import write_mapillary_json
from cosplace.photos.formats import SUFFIXES
from cosplace.photos.image_list import ImageList
from cosplace.photos.labels import PhotoFields, with_labels
from cosplace.photos.names import FIELDS
from cosplace.photos.paths import path_from_text, path_text
from cosplace.photos.scanning import scan_images
from cosplace.photos.table_lists import find_part
from cosplace.photos.tables import (
    INTEGERS,
    TEXTS,
    ZONE_ASSUMED,
    PhotoRecord,
    from_table,
    has_time_of_day,
    known_time,
    read_table,
)
from cosplace.progress import Progress, no_progress
from cosplace.storage import storage_errors, write_atomically

SPLIT = re.compile(r"(train|val|test)(/(database|queries\w{0,20}))?")
MAX_ID_CHARACTERS = 40
NUMBERS = {
    "latitudes": "latitude", "longitudes": "longitude", "headings": "heading", "times": "time",
    "accuracies_m": "accuracy_m", "pitches": "pitch", "rolls": "roll", "altitudes_m": "altitude_m",
}  # fmt: skip
NO_POSITION = "their position is unknown"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export has written."""

    num_written: int
    num_left_out: int = 0
    why: str = ""


def export_dataset(
    dataset: Path,
    to: Path,
    format: str,
    *,
    link: bool = False,
    follow_outside: bool = False,
    progress: Progress = no_progress,
) -> ExportResult:
    """Export the photos of a dataset with a table, or of a part of it.

    format: names (`to` is a new folder), geojson or mapillary (`to` is a file).  link: link photos instead of copying.
    Raises DatasetError for a dataset without a table, StorageError if `to` exists already or cannot be written.
    """
    part = find_part(dataset)
    if part is None:
        raise DatasetError(f"{dataset} has no table. Create one first: `cosplace import {dataset} --to DATASET`.")
    images = scan_images(dataset, follow_outside=follow_outside)
    by_path = {os.fspath(path_from_text(one.path)): one for one in from_table(read_table(part.table))}
    records = [by_path[images.name(row)] for row in range(len(images))]
    if format == "names":
        return _export_names(images, records, to, link=link, progress=progress)
    if format == "geojson":
        return _export_geojson(records, to)
    num_written, num_errors = write_mapillary_json(records, images.folder, to)
    return ExportResult(num_written, num_errors, "their position or time, or their time of day, is unknown")


# --- '@' names -------------------------------------------------------------------------------------------------------


def _export_names(
    images: ImageList, records: Sequence[PhotoRecord], to: Path, *, link: bool, progress: Progress
) -> ExportResult:
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StorageError(f"{to} is not an empty folder. Choose a new folder for the photos.")
    num_written = 0
    for row, name in enumerate(at_names(images.folder, records)):
        if name:
            target = to / name
            with storage_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                if link:
                    target.symlink_to(os.path.realpath(images.path(row)))
                else:
                    shutil.copyfile(images.path(row), target)
            num_written += 1
        progress("exporting", row + 1, len(records))
    return ExportResult(num_written, len(records) - num_written, NO_POSITION)


def at_names(folder: Path, records: Sequence[PhotoRecord]) -> list[str]:
    """The '@' name of each photo, in the folder of its split; empty for one without a position.

    Each photo has the UTM zone of its own position.  The id in a name is made of the former file name and the number of
    the photo, so that names differ.
    """
    columns = {
        name: np.array([getattr(one, column) for one in records], np.float64) for name, column in NUMBERS.items()
    }
    are_local = np.array([one.time_zone == ZONE_ASSUMED for one in records], bool)
    fields = PhotoFields(**columns, are_local_times=are_local)
    labels = with_labels(_no_images(folder), fields, None).labels
    assert labels is not None
    names = []
    for row, (record, is_known) in enumerate(zip(records, fields.has_position.tolist(), strict=True)):
        if not is_known:
            names.append("")
            continue
        texts = labels.name(row).split("@")
        texts[FIELDS["pano_id"]] = _id_of(record.path, row)
        if not has_time_of_day(record.time) and (timestamp := texts[FIELDS["timestamp"]]):
            texts[FIELDS["timestamp"]] = timestamp[:6] if timestamp[6:8] == "01" else timestamp[:8]  # what is known
        split = record.split if SPLIT.fullmatch(record.split) else ""
        names.append(os.path.join(split, "@".join(texts) + _suffix_of(record.path)))  # noqa: PTH118
    return names


def _id_of(path: str, row: int) -> str:
    stem = re.sub(r"[^A-Za-z0-9-]+", "-", path.rpartition("/")[2].rpartition(".")[0])[:MAX_ID_CHARACTERS].strip("-")
    return f"{stem}-{row}" if stem else str(row)


def _suffix_of(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return suffix if os.fsencode(suffix) in SUFFIXES else ".jpg"  # the content decides how a photo is decoded


def _no_images(folder: Path) -> ImageList:
    return ImageList(folder=folder, names=np.empty(0, np.uint8), starts=np.zeros(1, np.int64))


# --- GeoJSON ---------------------------------------------------------------------------------------------------------


def _export_geojson(records: Sequence[PhotoRecord], to: Path) -> ExportResult:
    lines = ",\n".join(json.dumps(feature_of(record), ensure_ascii=True, allow_nan=False) for record in records)
    content = f'{{"type": "FeatureCollection", "features": [\n{lines}\n]}}\n'.encode()
    write_atomically(to, lambda file: file.write(content))
    return ExportResult(len(records))


def feature_of(record: PhotoRecord) -> dict[str, Any]:
    """A photo as a GeoJSON feature (RFC 7946): a point, or null without a position; known values are its properties."""
    properties: dict[str, Any] = {}
    for name in PhotoRecord.__slots__:
        value = getattr(record, name)
        if name in ("latitude", "longitude", "altitude_m"):
            continue
        if name == "time":
            value = "" if math.isnan(known_time(value)) else _time_text(value)
            value = value.removesuffix("Z") if record.time_zone == ZONE_ASSUMED else value  # which means UTC
        elif name == "path":
            value = path_text(value)
        elif name not in TEXTS and name not in INTEGERS and math.isnan(value):
            continue
        if value not in ("", 0) or name not in (*TEXTS, *INTEGERS, "time"):
            properties[name] = value
    return {"type": "Feature", "geometry": _geometry_of(record), "properties": properties}


def _time_text(time: float) -> str:
    """A time as 2026-05-01T12:00:00Z; only the part that is known, as 2026-05-02 or 2026-05."""
    moment = datetime.fromtimestamp(time, UTC)
    if has_time_of_day(time):
        return moment.isoformat().replace("+00:00", "Z")
    return moment.date().isoformat() if moment.day > 1 else moment.date().isoformat()[:7]


def _geometry_of(record: PhotoRecord) -> dict[str, Any] | None:
    if math.isnan(record.latitude) or math.isnan(record.longitude):
        return None
    height = [] if math.isnan(record.altitude_m) else [record.altitude_m]
    return {"type": "Point", "coordinates": [record.longitude, record.latitude, *height]}
