"""Tracks inside videos of GoPro (GPMF), of cameras that write CAMM, and of BlackVue.

mapillary_tools parses them.  Times of these tracks are seconds from the start of the video.  Side effects: reads files
and the clock.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cosplace.importing.packages import optional_module
from cosplace.importing.tracks import METERS_PER_DOP, UNKNOWN, Track, TrackPoint, build_track

PARSERS = ("GPMF", "CAMM", "BlackVue")
GPS_EPOCH_S = 315_964_800.0  # 1980-01-06 in seconds since 1970
LEAP_SECONDS = 18.0  # by which GPS time is ahead of UTC since 2017
MAX_DOP = 10.0  # with more, positions are useless
MAX_DOP_HUNDREDTHS = 100 * MAX_DOP
MAX_SAMPLES = 20_000_000  # ten hours of a gyroscope
MAX_HEADER_BYTES = 1_000_000_000
FIRST_TIME = 631_152_000.0  # 1990: receivers that do not know the time yet write 1980
SAME_CLOCK_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class VideoTrack:
    """The track inside a video."""

    track: Track  # times from the start of the video
    start: float  # of the video, seconds since 1970 (UTC); nan where unknown
    camera: str
    kind: str  # of PARSERS


def read_video_track(path: Path, max_gap_s: float, created: float = UNKNOWN) -> VideoTrack | None:
    """The track in a video; None without one, or if it has no valid position.

    created: creation time of the file, to tell GPS time from Unix time.
    """
    optional_module("mapillary_tools", "Reading tracks of videos")  # errors of readers are those of their files
    readers: tuple[Callable[[BinaryIO, float], _Points | None], ...] = (_read_gopro, _read_camm, _read_blackvue)
    with path.open("rb") as file:
        if _claimed_samples(file) > MAX_SAMPLES:
            return None
        for kind, reader in zip(PARSERS, readers, strict=True):
            file.seek(0)
            try:
                found = reader(file, created)
            except Exception:  # the parsers raise nearly anything on other or damaged files
                continue
            if found is None:
                continue
            track = build_track([found.points], max_gap_s)
            if track is not None:
                return VideoTrack(track, _start(found.clocks), found.camera, kind)
    return None


def _claimed_samples(file: BinaryIO) -> int:
    """Largest number of samples in a table of the header, which the parsers turn into lists of that length."""
    parser = optional_module("mapillary_tools.mp4.simple_mp4_parser", "Reading tracks of videos")
    try:
        header = parser.parse_box_data_firstx(file, [b"moov"], maxsize=MAX_HEADER_BYTES)
    except Exception:  # no MP4, or a damaged one
        return 0
    largest = 0
    for match in re.finditer(b"stts|ctts|stsz", header):
        first, second = (int.from_bytes(header[match.end() + at :][:4], "big") for at in (4, 8))
        if match[0] == b"stsz":
            largest = max(largest, second)
        else:  # `first` rows of a number of samples and their duration
            num_rows = max(0, min(first, (len(header) - match.end() - 8) // 8))
            rows = np.frombuffer(header, ">u4", 2 * num_rows, match.end() + 8)
            largest = max(largest, int(rows[::2].sum(dtype=np.int64)))
    return largest


@dataclass(frozen=True, slots=True)
class _Points:
    points: list[TrackPoint]
    clocks: list[tuple[float, float]]  # time in the video, seconds since 1970
    camera: str


def _start(clocks: list[tuple[float, float]]) -> float:
    """Time at which the video starts.  Several points may share a clock reading: the first of them counts."""
    first: dict[float, float] = {}
    for seconds, clock in clocks:
        if clock >= FIRST_TIME:
            first.setdefault(clock, seconds)
    return float(np.median([clock - seconds for clock, seconds in first.items()])) if first else UNKNOWN


def _read_gopro(file: BinaryIO, created: float) -> _Points | None:
    parser = optional_module("mapillary_tools.gpmf.gpmf_parser", "Reading tracks of videos")
    info = parser.extract_gopro_info(file)
    if info is None:
        return None
    good = [one for one in info.gps or () if _has_fix(one.fix) and (one.precision or 0) <= MAX_DOP_HUNDREDTHS]
    points = [_point(one, one.precision / 100 * METERS_PER_DOP if one.precision else UNKNOWN) for one in good]
    return _Points(points, [(one.time, one.epoch_time) for one in good if one.epoch_time], _camera(info))


def _has_fix(fix: Any) -> bool:
    return fix is None or fix.value in (2, 3)


def _read_camm(file: BinaryIO, created: float) -> _Points | None:
    parser = optional_module("mapillary_tools.camm.camm_parser", "Reading tracks of videos")
    info = parser.extract_camm_info(file)
    if info is None:
        return None
    # mapillary_tools 0.14 puts points of both kinds into one of the two lists.
    found = [*(info.gps or ()), *(info.mini_gps or ())]
    full = [one for one in found if hasattr(one, "gps_fix_type") and one.gps_fix_type in (2, 3)]
    points = [_point(one, one.horizontal_accuracy if one.horizontal_accuracy > 0 else UNKNOWN) for one in full]
    clocks = [(one.time, _unix_time(one.time_gps_epoch, created)) for one in full if one.time_gps_epoch > 0]
    if not points:
        points = [_point(one, UNKNOWN) for one in found if not hasattr(one, "gps_fix_type")]
    return _Points(points, clocks, _camera(info))


def _unix_time(gps_time: float, created: float) -> float:
    """Seconds since 1970 of a CAMM time: from 1980 by the specification, from 1970 as some programs write it.

    It is from 1970 if that is near the creation time of the file, or if a time from 1980 would be in the future.
    """
    from_1980 = gps_time + GPS_EPOCH_S - LEAP_SECONDS
    is_from_1970 = abs(gps_time - created) < SAME_CLOCK_S or gps_time <= time.time() < from_1980
    return gps_time if is_from_1970 else from_1980


def _read_blackvue(file: BinaryIO, created: float) -> _Points | None:
    parser = optional_module("mapillary_tools.blackvue_parser", "Reading tracks of videos")
    info = parser.extract_blackvue_info(file)
    if info is None or not info.gps:
        return None
    points = [_point(one, UNKNOWN) for one in info.gps]
    return _Points(points, [(one.time, one.epoch_time) for one in info.gps if one.epoch_time], _camera(info))


def _point(one: Any, accuracy_m: float) -> TrackPoint:
    return TrackPoint(one.time, one.lat, one.lon, UNKNOWN if one.alt is None else one.alt, accuracy_m)


def _camera(info: Any) -> str:
    return f"{info.make} {info.model}".strip()
