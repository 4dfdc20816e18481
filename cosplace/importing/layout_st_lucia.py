"""St Lucia as it is downloaded: one folder per drive, with webcam_video.avi and fGPS.txt, a position for each frame.

Latitudes in fGPS.txt lack their minus sign.  The first drive by name is the database, the last one the queries; the
others are further sets, such as queries_180809_1545.  Photos are at least 5 m apart along each drive.  Frames that were
extracted into the folder of the drive, or a subfolder, are used as they are; from videos, `cosplace import` takes them.
Milford and Wyeth, 2008.  Side effects: reads files.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError, one_line
from cosplace.geo import ecef_from_lla
from cosplace.importing.layout_parts import (
    DATABASE,
    QUERIES,
    Layout,
    LayoutPart,
    folder_names,
    photo_names,
    possible_positions,
    raw_folders,
)
from cosplace.importing.packages import optional_module
from cosplace.importing.records import Entry, FoundPhoto
from cosplace.importing.tracks import UNKNOWN, TrackPoint, build_track
from cosplace.importing.video_tracks import VideoTrack
from cosplace.importing.videos import read_video

POSITIONS, VIDEO = "fGPS.txt", "webcam_video.avi"
SPACING_M = 5.0
MAX_BYTES = 1 << 26
NUMBER = re.compile(r"(\d+)\.\w+$")


def find(folder: Path) -> Layout | None:
    """The drives in a folder; None without fGPS.txt in a subfolder."""
    for root in raw_folders(folder):
        drives = _drives(root)
        if drives:
            has_frames = any(_frames(root, drive)[1] for drive in drives)
            has_videos = any((root / drive / VIDEO).is_file() for drive in drives)
            return Layout(
                name="St Lucia",
                folder=root,
                splits=("test",),
                read_parts=partial(_read_parts, drives),
                is_videos=has_videos and not has_frames,
            )
    return None


def _drives(root: Path) -> list[str]:
    return [name for name in folder_names(root) if (root / name / POSITIONS).is_file()]


def _part_name(drives: list[str], drive: str) -> str:
    return DATABASE if drive == drives[0] else QUERIES if drive == drives[-1] else f"{QUERIES}_{drive}"


def read_positions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of the frames of a drive.  Raises DatasetError."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(MAX_BYTES).split()
        values = np.array([line.split(",")[:2] for line in lines], np.float64)
    except (OSError, ValueError) as error:
        raise DatasetError(one_line(f"{path} is not a list of latitudes and longitudes ({error}).")) from error
    if values.ndim != 2 or values.shape[1] != 2:
        raise DatasetError(f"{path} has no positions. Unpack it again.")
    return -np.abs(values[:, 0]), values[:, 1]


def _frames(root: Path, drive: str) -> tuple[str, list[str]]:
    """The folder with the extracted frames of a drive, relative to the root, and their names."""
    for name in ("", *folder_names(root / drive)):
        photos = [photo for photo in photo_names(root / drive / name) if NUMBER.search(photo)]
        if photos:
            return f"{drive}/{name}".rstrip("/"), photos
    return drive, []


def _read_parts(drives: list[str], folder: Path, split: str) -> Iterator[LayoutPart]:
    for drive in drives:
        place, photos = _frames(folder, drive)
        if not photos:
            raise DatasetError(
                f"{folder / drive} has a video instead of frames. Extract the frames with `cosplace import {folder} "
                f"--to DATASET`, then evaluate on DATASET."
            )
        latitudes, longitudes = read_positions(folder / drive / POSITIONS)
        photos.sort(key=_number)
        if len(photos) == len(latitudes):
            rows = np.arange(len(photos))
        else:
            rows = np.array([_number(photo) for photo in photos])
            if rows.max() >= len(latitudes):
                raise DatasetError(
                    f"{folder / drive / POSITIONS} has {len(latitudes):,} positions, but there is {photos[-1]}. "
                    f"Extract all frames, or number them as in the video, from 0."
                )
        possible = possible_positions(latitudes[rows], longitudes[rows])
        kept = sorted({*spaced(*possible), *np.flatnonzero(np.isnan(possible[0])).tolist()})
        yield LayoutPart(
            split=f"test/{_part_name(drives, drive)}",
            paths=[f"{place}/{photos[row]}" for row in kept],
            latitudes=latitudes[rows][kept],
            longitudes=longitudes[rows][kept],
            sequences=[drive] * len(kept),
        )


def _number(name: str) -> int:
    found = NUMBER.search(name)
    return int(found[1]) if found else 0


def spaced(latitudes: np.ndarray, longitudes: np.ndarray) -> list[int]:
    """Rows of the known positions that are 5 m away from the one chosen before."""
    points, chosen = ecef_from_lla(latitudes, longitudes), list[int]()
    for row in np.flatnonzero(np.isfinite(points[:, 0])).tolist():
        if not chosen or np.linalg.norm(points[row] - points[chosen[-1]]) >= SPACING_M:
            chosen.append(row)
    return chosen


# --- videos ----------------------------------------------------------------------------------------------------------


def detects(path: Path) -> bool:
    """Whether a folder has the videos of drives, and no frames of them."""
    layout = find(path) if path.is_dir() else None
    return layout is not None and layout.is_videos


def read(path: Path, settings: ImportSettings) -> Iterator[Entry]:
    """The frames of all drives, taken from their videos.  Raises DatasetError if a video is missing."""
    layout = find(path)
    if layout is None:
        raise DatasetError(f"{path} has no folders with {POSITIONS}. Use the folder that contains the drives.")
    folder = layout.folder
    drives = _drives(folder)
    for drive in drives:
        video = folder / drive / VIDEO
        if not video.is_file():
            raise DatasetError(f"{video} is missing. Unpack the archive of the drive again.")
        latitudes, longitudes = read_positions(folder / drive / POSITIONS)
        rate = _frame_rate(video)
        points = [
            TrackPoint(row / rate, latitude, longitude, UNKNOWN, UNKNOWN)
            for row, (latitude, longitude) in enumerate(zip(latitudes, longitudes, strict=True))
        ]
        track = build_track([points], settings.tracks.max_gap_s)
        inside = VideoTrack(track, UNKNOWN, "", "fGPS") if track is not None else None
        for entry in read_video(video, drive, settings, inside):
            if isinstance(entry, FoundPhoto):
                split = f"test/{_part_name(drives, drive)}"
                yield replace(entry, record=replace(entry.record, split=split))
            else:
                yield entry


def _frame_rate(video: Path) -> float:
    av = optional_module("av", "Reading videos")
    try:
        with av.open(str(video.resolve()), options={"protocol_whitelist": "file"}, metadata_errors="replace") as opened:
            rate = float(opened.streams.video[0].average_rate or 0)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise DatasetError(one_line(f"{video} cannot be opened as a video ({error}). Unpack it again.")) from error
    if rate <= 0:
        raise DatasetError(f"{video} does not state its frame rate. Unpack it again.")
    return rate
