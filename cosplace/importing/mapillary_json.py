"""Image descriptions of mapillary_tools: `mapillary_image_description.json`, read and written.

A JSON list of images, of videos with their tracks, and of errors.  Times are UTC.  Side effects: reads and writes
files.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError, one_line
from cosplace.geo import wrap_heading
from cosplace.importing.photo_references import (
    NOT_FOUND,
    find_reference,
    json_head,
    number,
    read_json,
    source_folders,
    text,
)
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.importing.tracks import UNKNOWN, TrackPoint, build_track
from cosplace.importing.video_tracks import VideoTrack
from cosplace.importing.videos import read_video
from cosplace.photos.exif import checked_position
from cosplace.photos.paths import path_text
from cosplace.photos.tables import PhotoRecord, has_time_of_day
from cosplace.storage import write_atomically

TIME_PATTERN = re.compile(r"(\d{4})_(\d\d)_(\d\d)_(\d\d)_(\d\d)_(\d\d)_(\d+)")
NAME = "mapillary_image_description.json"
MARKS = re.compile(rb'"MAPLatitude"|"MAPGPSTrack"|"MAPCaptureTime"|"error"\s*:\s*\{\s*"(?:type|message)"')
HEADING_SOURCE = "table"
DEGREE_DIGITS = 9  # 0.1 mm
Row = dict[str, Any]


def detects(path: Path) -> bool:
    """Whether a file is a description of mapillary_tools."""
    head = json_head(path)
    return head[:1] == b"[" and (path.name == NAME or MARKS.search(head) is not None)


def read(path: Path, settings: ImportSettings) -> Iterator[Entry]:
    """The photos that a description names, and frames of its videos."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DatasetError(f"{path} is not a list of image descriptions. Create it with `mapillary_tools process`.")
    folders = source_folders(path, settings)
    images = [row for row in rows if isinstance(row, dict) and "MAPLatitude" in row]
    headings = {_heading(row) for row in images}
    use_headings = len(images) < 2 or headings != {0.0}  # 0 on every photo is a placeholder
    seen: set[Path] = set()
    for number_of_row, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not text(row.get("filename")):
            yield Problem(name=f"{path}: row {number_of_row}", reason="has no file name")
            continue
        name = text(row["filename"])
        if "error" in row:
            yield Problem(name=name, reason=f"mapillary_tools could not process it ({_error_text(row['error'])})")
            continue
        file, relative = find_reference(name, folders)
        if file is None:
            yield Problem(name=name, reason=NOT_FOUND)
        elif file in seen:
            yield Problem(name=name, reason="is named twice; only the first row is used")
        elif "MAPGPSTrack" in row:
            seen.add(file)
            yield from _frames(row, file, relative, settings)
        else:
            seen.add(file)
            yield from _photo(row, file, relative, use_headings)
    if not use_headings:
        yield Problem(name=str(path), reason="every heading is 0, so headings count as unknown", is_left_out=False)


def _photo(row: Row, file: Path, relative: str, use_headings: bool) -> Iterator[Entry]:
    latitude, longitude = checked_position(number(row.get("MAPLatitude")), number(row.get("MAPLongitude")))
    heading = _heading(row) if use_headings else UNKNOWN
    if math.isnan(latitude):
        yield Problem(name=str(file), reason="has no valid position in the description", is_left_out=False)
    time = text(row.get("MAPCaptureTime"))
    if time and math.isnan(_parse_time(time)):
        reason = f"'{one_line(time)[:60]}' is not a capture time, so its time is unknown"
        yield Problem(name=str(file), reason=reason, is_left_out=False)
    accuracy_m = number(row.get("MAPGPSAccuracyMeters"))
    record = PhotoRecord(
        path=f"photos/{relative}",
        latitude=latitude,
        longitude=longitude,
        altitude_m=number(row.get("MAPAltitude")),
        accuracy_m=accuracy_m if accuracy_m > 0 else UNKNOWN,
        heading=heading,
        heading_source="" if math.isnan(heading) else HEADING_SOURCE,
        time=_parse_time(time),
        sequence=text(row.get("MAPSequenceUUID")),
        camera=_camera(row),
    )
    yield FoundPhoto(file=file, record=record)


def _frames(row: Row, file: Path, relative: str, settings: ImportSettings) -> Iterator[Entry]:
    """Frames of a video along its track, with rows of milliseconds, longitude, latitude, altitude, angle, Unix time."""
    points, starts = [], []
    for point in row["MAPGPSTrack"] if isinstance(row["MAPGPSTrack"], list) else ():
        if not isinstance(point, list) or len(point) < 3:
            continue
        milliseconds, longitude, latitude, altitude_m, _, epoch = [*map(number, point), *[UNKNOWN] * 3][:6]
        points.append(TrackPoint(milliseconds / 1000, latitude, longitude, altitude_m))
        if not math.isnan(epoch):
            starts.append(epoch - milliseconds / 1000)
    track = build_track([points], settings.tracks.max_gap_s)
    if track is None:
        yield Problem(name=str(file), reason="its track has no valid position")
        return
    start = float(np.median(starts)) if starts else UNKNOWN
    name = Path(relative).with_suffix("").as_posix()
    yield from read_video(file, name, settings, VideoTrack(track, start, _camera(row), "Mapillary"))


def _heading(row: Row) -> float:
    """The true heading; the magnetic one is a copy of it in these files."""
    heading = row.get("MAPCompassHeading")
    degrees = number(heading.get("TrueHeading")) if isinstance(heading, dict) else UNKNOWN
    return wrap_heading(degrees)


def _camera(row: Row) -> str:
    return f"{text(row.get('MAPDeviceMake'))} {text(row.get('MAPDeviceModel'))}".strip()


def _error_text(error: Any) -> str:
    kind, message = (text(error.get(name)) for name in ("type", "message")) if isinstance(error, dict) else ("", "")
    return f"{kind}: {message}".strip(": ") or "unknown error"


def _parse_time(value: str) -> float:
    """Seconds since 1970 of 2026_05_01_12_00_00_250; nan for anything else."""
    match = TIME_PATTERN.fullmatch(value)
    if match is None:
        return UNKNOWN
    try:
        whole = datetime(*map(int, match.groups()[:6]), tzinfo=UTC).timestamp()
    except ValueError:
        return UNKNOWN
    return whole + float(f"0.{match[7]}")


# --- writing ---------------------------------------------------------------------------------------------------------


def write_mapillary_json(records: Sequence[PhotoRecord], folder: Path, to: Path) -> tuple[int, int]:
    """Write photos of a dataset as descriptions that mapillary_tools uploads.

    folder: that of the dataset.  Returns the numbers of photos and of errors: a photo without a position or a time is
    written as an error, as mapillary_tools writes it.  So is one of whose time only the date is known: 00:00:00 UTC.
    """
    rows = [_description(record, folder) for record in records]
    content = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False).encode()
    write_atomically(to, lambda file: file.write(content))
    num_errors = _num_errors(rows)
    return len(rows) - num_errors, num_errors


def _num_errors(rows: Iterable[Row]) -> int:
    return sum("error" in row for row in rows)


def _description(record: PhotoRecord, folder: Path) -> Row:
    row: Row = {"filename": path_text(folder.resolve() / record.path), "filetype": "image"}
    lacking = [word for word, value in (("position", record.latitude), ("time", record.time)) if math.isnan(value)]
    if not math.isnan(record.time) and not has_time_of_day(record.time):
        lacking.append("time of day")
    if lacking:
        return row | {"error": {"type": "MapillaryGeoTaggingError", "message": f"no {' and no '.join(lacking)}"}}
    row |= {
        "MAPLatitude": round(record.latitude, DEGREE_DIGITS),
        "MAPLongitude": round(record.longitude, DEGREE_DIGITS),
        "MAPCaptureTime": _format_time(record.time),
    }
    if not math.isnan(record.altitude_m):
        row["MAPAltitude"] = round(record.altitude_m, 3)
    if not math.isnan(record.accuracy_m):
        row["MAPGPSAccuracyMeters"] = round(record.accuracy_m, 3)
    if not math.isnan(record.heading):
        heading = round(record.heading, 3)
        row["MAPCompassHeading"] = {"TrueHeading": heading, "MagneticHeading": heading}
    if record.sequence:
        row["MAPSequenceUUID"] = re.sub(r"[^A-Za-z0-9_-]+", "_", record.sequence)
    if record.camera:
        row["MAPDeviceModel"] = record.camera
    return row


def _format_time(time: float) -> str:
    milliseconds = round(time * 1000)
    whole = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{whole.year:04d}_{whole:%m_%d_%H_%M_%S}_{milliseconds % 1000:03d}"
