"""What photos say of themselves (EXIF position and time), the frames of a sequence with their times, GPX tracks."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from cosplace.errors import ConfigError, DatasetError, ImageError
from cosplace.localization.answers import Answer, Location
from cosplace.photos.metadata import PhotoMetadata, metadata_from_exif

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


def read_exif(path: str | Path) -> PhotoMetadata:
    """Position and time in a photo's EXIF block; all unknown for a file without one, or that is no photo."""
    try:
        return metadata_from_exif(Path(path).read_bytes())
    except OSError:
        return PhotoMetadata()


# --- frames ----------------------------------------------------------------------------------------------------------


def frame_times(paths: Sequence[Path], fps: float | None) -> tuple[list[Path], list[float]]:
    """Frames in time order, and their times in seconds.

    With `fps` they follow each other by name (2 before 10), so many a second.  Else by their EXIF times when all have
    one, or by the times of their files.  Raises ConfigError where those cannot be times of frames.
    """
    if fps is not None:
        if not 0 < fps < float("inf"):
            raise ConfigError(f"--fps {fps:g} cannot be: use frames per second above 0, for example 30.")
        ordered = sorted(paths, key=_by_number)
        return ordered, [number / fps for number in range(len(ordered))]
    taken = [read_exif(path).time for path in paths]
    times = [path.stat().st_mtime for path in paths] if any(map(math.isnan, taken)) else taken
    if len(paths) > 1 and len(set(times)) == 1:
        raise ConfigError(f"All {len(paths)} frames have the same time: tell how many there are a second, with --fps.")
    order = sorted(range(len(paths)), key=lambda place: (times[place], _by_number(paths[place])))
    return [paths[place] for place in order], _spread([times[place] for place in order])


def _spread(times: list[float]) -> list[float]:
    """Ascending times; equal ones, as of several frames within a whole second, evenly on the way to the next second."""
    counts = Counter(times)
    seen: Counter[float] = Counter()
    spread = []
    for at in times:
        spread.append(at + seen[at] / counts[at])
        seen[at] += 1
    return list(accumulate(spread, max))


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path)) if part]


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEOS


def video_frames(path: Path, fps: float) -> Iterator[tuple[str, float, Any]]:
    """Of a video about `fps` frames a second: name, time in seconds from its start, (H, W, 3) uint8 RGB.

    Raises ConfigError without OpenCV, DatasetError for a file that is no video.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError("Videos are read by OpenCV: pip install 'cosplace[rerank]', or give frames.") from error
    if not 0 < fps < float("inf"):
        raise ConfigError(f"--fps {fps:g} cannot be: use frames per second above 0, for example 2.")
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise DatasetError(f"{path} cannot be read as a video: check the file, or give its frames in a folder.")
        own_fps = video.get(cv2.CAP_PROP_FPS) or 30.0
        number, wanted_s = 0, 0.0
        while video.grab():
            at_s = number / own_fps
            number += 1
            if at_s + 1e-9 < wanted_s:
                continue
            wanted_s += 1 / fps
            fine, pixels = video.retrieve()
            if not fine:
                raise ImageError(f"{path} is damaged after {at_s:.1f} seconds: give the part before that.")
            yield f"{path}#t={at_s:.2f}", at_s, pixels[..., ::-1].copy()
    finally:
        video.release()


# --- GPX -------------------------------------------------------------------------------------------------------------


def gpx_text(answers: Sequence[Answer], times_s: Sequence[float] | None = None) -> str:
    """A GPX 1.1 track; where a frame is unknown one segment ends and the next begins.

    times_s: seconds since 1970 of each answer; times within the first day of 1970 are only counted from the start of a
    video and are left out.
    """
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<gpx version="1.1" creator="cosplace" xmlns="http://www.topografix.com/GPX/1/1">',
        "  <trk><name>cosplace</name>",
    ]
    opened = False
    for number, answer in enumerate(answers):
        if not isinstance(answer, Location) or answer.latitude is None or answer.longitude is None:
            lines += ["  </trkseg>"] if opened else []
            opened = False
            continue
        lines += [] if opened else ["  <trkseg>"]
        opened = True
        at = "" if times_s is None or times_s[number] < 86_400 else f"<time>{_clock(times_s[number])}</time>"
        name = escape(_printable(answer.photo))
        lines.append(
            f'    <trkpt lat="{answer.latitude:.7f}" lon="{answer.longitude:.7f}">{at}<name>{name}</name>'
            f"<cmt>confidence {answer.confidence:.3f}</cmt></trkpt>"
        )
    lines += ["  </trkseg>"] if opened else []
    return "\n".join([*lines, "  </trk>", "</gpx>", ""])


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(text: str) -> str:
    """Without what XML 1.0 cannot hold: control characters, halves of surrogate pairs."""
    return "".join(c if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else "?" for c in text)
