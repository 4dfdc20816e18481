"""Frames of a sequence with their times, frames of a video, GPX tracks."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from cosplace.errors import ConfigError, DatasetError, ImageError
from cosplace.localization.answers import Answer, Location
from cosplace.photos.metadata import metadata_from_exif
from cosplace.photos.opening import read_file

SECONDS_PER_DAY = 86_400
ROUNDING_S = 0.001  # of times in videos
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


# --- frames ----------------------------------------------------------------------------------------------------------


def frame_times(paths: Sequence[Path], fps: float | None) -> tuple[list[Path], list[float]]:
    """Sort frames by time; return them with their times in seconds.

    With `fps`, frames are sorted by name (2 before 10), one every 1 / fps seconds.  Without, by their EXIF times if all
    have one, else by the times of their files.  Raises ConfigError for an invalid fps and if all times are equal.
    """
    if fps is not None:
        if not 0 < fps < float("inf"):
            raise ConfigError(f"--fps must be above 0, got {fps:g}. Use for example 30.")
        ordered = sorted(paths, key=_natural_key)
        return ordered, [number / fps for number in range(len(ordered))]
    exif_times = [_exif_time(path) for path in paths]
    times = [path.stat().st_mtime for path in paths] if any(map(math.isnan, exif_times)) else exif_times
    if len(paths) > 1 and len(set(times)) == 1:
        raise ConfigError(f"All {len(paths)} frames have the same time. Set --fps to the frames per second.")
    order = sorted(range(len(paths)), key=lambda frame: (times[frame], _natural_key(paths[frame])))
    return [paths[frame] for frame in order], _spread_equal_times([times[frame] for frame in order])


def _exif_time(path: Path) -> float:
    """EXIF time of a photo in seconds since 1970; nan without one, or if the file cannot be read."""
    try:
        return metadata_from_exif(read_file(path)).time
    except ImageError:
        return math.nan


def _spread_equal_times(times: list[float]) -> list[float]:
    """Ascending times; equal ones, such as those of several frames in one second, are spread over that second.

    They stay before the next different time, which may be a fraction of a second later.
    """
    spread: list[float] = []
    counts = Counter(times)
    distinct = sorted(counts)
    for time, following in zip(distinct, [*distinct[1:], math.inf], strict=True):
        step = min(1.0, following - time) / counts[time]
        spread += [time + number * step for number in range(counts[time])]
    return spread


def _natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that compares numbers in names by value."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path)) if part]


# --- videos ----------------------------------------------------------------------------------------------------------


def is_video(path: Path) -> bool:
    """Whether the name of a file is that of a video."""
    return path.suffix.lower() in VIDEOS


def video_frames(path: Path, fps: float) -> Iterator[tuple[str, float, np.ndarray]]:
    """Yield about `fps` frames per second of a video: name, time in seconds from its start, (H, W, 3) uint8 RGB.

    Raises ConfigError without OpenCV, DatasetError for a file that is not a video, ImageError for a damaged frame.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "Reading videos needs OpenCV. Run `pip install 'cosplace[rerank]'`, or use a folder of frames."
        ) from error
    if not 0 < fps < float("inf"):
        raise ConfigError(f"--fps must be above 0, got {fps:g}. Use for example 2.")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # -8 is quiet: FFmpeg prints nothing
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise DatasetError(f"{path} cannot be read as a video. Check the file, or use a folder of its frames.")
        frame_s = 1 / (video.get(cv2.CAP_PROP_FPS) or 30.0)
        time_s, next_s, start_s = -frame_s, 0.0, math.nan
        while video.grab():
            container_s = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            start_s = container_s if math.isnan(start_s) else start_s
            # The rate may vary.  Where the container has no times, or wrong ones, its mean rate is used.
            time_s = container_s - start_s if container_s - start_s > time_s else time_s + frame_s
            if time_s + ROUNDING_S < next_s:
                continue
            next_s = (math.floor((time_s + ROUNDING_S) * fps) + 1) / fps
            is_decoded, pixels = video.retrieve()
            if not is_decoded:
                raise ImageError(f"{path} is damaged after {time_s:.1f} seconds. Cut the video there.")
            yield f"{path}#t={time_s:.2f}", time_s, pixels[..., ::-1].copy()
    finally:
        video.release()


# --- GPX -------------------------------------------------------------------------------------------------------------


def gpx_text(answers: Sequence[Answer], times_s: Sequence[float] | None = None) -> str:
    """A GPX 1.1 track; at unknown frames one segment ends and the next begins.

    times_s: seconds since 1970 of each answer.  Times within the first day of 1970 count from the start of a video and
    are left out.
    """
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<gpx version="1.1" creator="cosplace" xmlns="http://www.topografix.com/GPX/1/1">',
        "  <trk><name>cosplace</name>",
    ]
    in_segment = False
    for number, answer in enumerate(answers):
        if not isinstance(answer, Location) or answer.latitude is None or answer.longitude is None:
            lines += ["  </trkseg>"] if in_segment else []
            in_segment = False
            continue
        lines += [] if in_segment else ["  <trkseg>"]
        in_segment = True
        time_s = 0.0 if times_s is None else times_s[number]
        time = f"<time>{_iso_time(time_s)}</time>" if time_s >= SECONDS_PER_DAY else ""
        name = escape(_xml_characters(answer.photo))
        lines.append(
            f'    <trkpt lat="{answer.latitude:.7f}" lon="{answer.longitude:.7f}">{time}<name>{name}</name>'
            f"<cmt>{escape(answer.headline)}</cmt></trkpt>"
        )
    lines += ["  </trkseg>"] if in_segment else []
    return "\n".join([*lines, "  </trk>", "</gpx>", ""])


def _iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _xml_characters(text: str) -> str:
    """Replace the characters that XML 1.0 does not allow: control characters, surrogates, U+FFFE, U+FFFF."""
    return "".join(c if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else "?" for c in text)
