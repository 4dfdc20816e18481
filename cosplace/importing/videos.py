"""Frames of videos as photos: every N meters along a track, or every N seconds.  Side effects: reads files.

PyAV decodes a video from its start to its end, once.  The track is the one inside the video, else a GPX file or NMEA
log that is imported with it.  Names of frames are their times, so that the same settings give the same names.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from cosplace.config.importing import ImportSettings
from cosplace.errors import ConfigError, one_line
from cosplace.geo import ecef_from_lla
from cosplace.importing.clock import estimate_clock_offset
from cosplace.importing.packages import optional_module
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.importing.track_positions import (
    CONFLICT_M,
    TRACK_HEADING,
    clock_notes,
    distances_apart_m,
    given_tracks,
    position_values,
    track_heading,
)
from cosplace.importing.tracks import Track, merge_tracks, positions_at
from cosplace.importing.video_tracks import VideoTrack, read_video_track
from cosplace.photos.formats import VIDEO_SUFFIXES, suffix_of
from cosplace.photos.opening import MAX_PIXELS
from cosplace.photos.tables import PhotoRecord

SUFFIXES = VIDEO_SUFFIXES | {b".360"}
PREVIEWS = frozenset((b".lrv",))  # small copies that GoPro cameras write
DEMUXERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,asf,flv"  # none that opens other files or addresses
DEFAULT_EVERY_M, DEFAULT_EVERY_S = 5.0, 1.0
PATH_STEP_S = 0.05  # frames are chosen along the track with this resolution
JPEG_QUALITY = 95
SAME_TIME_S = 1e-3
MAX_DURATION_S = 48 * 3600.0  # headers may claim anything
MISSING_END_S = 1.0  # a video that ends earlier than its header says is damaged
FIRST_TIME = 631_152_000.0  # 1990: clocks that were never set write earlier times


def detects(path: Path) -> bool:
    """Whether a path is a video, or a folder of videos without any photo."""
    if path.is_dir():
        return bool(_videos_only(path))
    return suffix_of(os.fsencode(path.name)) in SUFFIXES and path.is_file()


def read(path: Path, settings: ImportSettings) -> Iterator[Entry]:
    """Frames of a video, or of all videos of a folder, in order of their times."""
    if not path.is_dir():
        yield from read_video(path, path.stem, settings)
        return
    for video in _videos_only(path):
        yield from read_video(video, video.relative_to(path).with_suffix("").as_posix(), settings)


def _videos_only(folder: Path) -> list[Path]:
    """The videos directly in a folder; none if it has anything else that could be a photo."""
    videos = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = suffix_of(os.fsencode(entry.name))
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() or (suffix not in SUFFIXES and suffix != b".thm"):
                    return []
                if suffix in SUFFIXES - PREVIEWS:
                    videos.append(entry.name)
    except OSError:
        return []
    return [folder / name for name in sorted(videos)]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which frames of a video are taken, and what is known of all of them."""

    targets: np.ndarray  # (T,) increasing times in the video; the first frame at or after each is taken
    track: Track | None  # with times from the start of the video
    start: float  # of the video, seconds since 1970 (UTC); nan where unknown
    camera: str
    notes: tuple[Problem, ...] = ()


def read_video(path: Path, name: str, settings: ImportSettings, inside: VideoTrack | None = None) -> Iterator[Entry]:
    """Frames of a video.  name: of the sequence, and of the folder of the frames below photos/.

    inside: the track of the video, instead of the one in its file or among the sources.
    A damaged video gives the frames before the damage, and a Problem.
    """
    av = optional_module("av", "Reading videos")
    try:
        container = av.open(str(path.resolve()), options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"},
                            metadata_errors="replace")  # fmt: skip
    except (av.FFmpegError, OSError, ValueError) as error:
        yield Problem(name=str(path), reason=f"cannot be opened as a video ({_words(error)}). Copy it again.")
        return
    with closing(container):
        if not container.streams.video:
            yield Problem(name=str(path), reason="has no video stream")
            return
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # threads by frame can block for ever when a damaged video is closed
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            yield Problem(name=str(path), reason=f"has frames of more than {MAX_PIXELS // 1_000_000} megapixels")
            return
        duration_s = _duration_s(container, stream)
        plan = _plan(path, container, duration_s, settings, inside)
        yield from plan.notes
        if not len(plan.targets):
            yield Problem(name=str(path), reason="the track has no position during the video; check its start time, or "
                          "take frames by time with --every_s")  # fmt: skip
            return
        last_s, damage = 0.0, ""
        for frame, time_s in _frames(av, container, stream):
            if isinstance(frame, str):
                damage = frame
                break
            last_s = time_s
            if time_s >= plan.targets[0] - SAME_TIME_S:
                record = _record(plan, name, time_s, settings)
                yield FoundPhoto(file=path, record=record, content=_jpeg(frame), use_exif=False)
                remaining = plan.targets[np.searchsorted(plan.targets, time_s + SAME_TIME_S, "right") :]
                if not len(remaining):
                    return
                plan = replace(plan, targets=remaining)
        if not damage and last_s < duration_s - MISSING_END_S:
            damage = f"it ends early; its header states {duration_s:.1f} s"
        if damage:
            reason = f"is damaged after {last_s:.1f} s ({damage}); the frames before that are used"
            yield Problem(name=str(path), reason=reason, is_left_out=False)


def _record(plan: _Plan, name: str, time_s: float, settings: ImportSettings) -> PhotoRecord:
    record = PhotoRecord(
        path=f"photos/{name}/{round(1000 * time_s):08d}.jpg",
        time=plan.start + time_s,
        video_time=time_s,
        sequence=name,
        camera=plan.camera,
    )
    if plan.track is None:
        return record
    found = positions_at(plan.track, np.array([time_s]))
    heading = track_heading(found.headings[0], settings.tracks.mount_angle)
    source = "" if np.isnan(heading) else TRACK_HEADING
    return replace(record, heading=heading, heading_source=source, **position_values(found, 0))


# --- which frames ----------------------------------------------------------------------------------------------------


def _plan(path: Path, container: Any, duration_s: float, settings: ImportSettings, inside: VideoTrack | None) -> _Plan:
    options = settings.tracks
    created = _created(container)
    inside = inside or read_video_track(path, options.max_gap_s, created)
    start = _start(settings, inside.start if inside else np.nan, created)
    camera = inside.camera if inside else _camera(container)
    notes: list[Problem] = []
    track = inside.track if inside else None
    if track is None and (sources := given_tracks(settings)):
        if np.isnan(start):
            reason = "its start time is unknown, so the track is not used; pass --video_start"
            notes.append(Problem(name=str(path), reason=reason, is_left_out=False))
        else:
            track = merge_tracks([one for _, one in sources])
            offset_s = options.clock_offset
            if offset_s is None:
                times = start + np.arange(0, max(duration_s, 1), 1.0)
                unknown = np.full(len(times), np.nan)
                offset = estimate_clock_offset(track, times, unknown, unknown)
                offset_s = offset.seconds
                notes += clock_notes(str(path), offset)
            start += offset_s
            apart_m = distances_apart_m(sources, start + np.arange(0, max(duration_s, 1), 1.0)).max()
            if apart_m > CONFLICT_M:
                reason = f"is on two tracks at once, {apart_m:,.0f} m apart, so neither was used"
                notes.append(Problem(name=str(path), reason=reason, is_left_out=False))
            track = track.shifted(-start) if apart_m <= CONFLICT_M else None
    every_m = options.every_m
    if every_m is None and options.every_s is None and track is not None:
        every_m = DEFAULT_EVERY_M
    if every_m is not None and track is None:
        reason = "has no track, so frames are taken by time; also pass a GPX file, or use --every_s"
        notes.append(Problem(name=str(path), reason=reason, is_left_out=False))
    if every_m is not None and track is not None:
        targets = times_by_distance(track, every_m, duration_s)
    else:
        targets = np.arange(0, (duration_s or MAX_DURATION_S) + 1e-9, options.every_s or DEFAULT_EVERY_S)
    return _Plan(targets, track, start, camera, tuple(notes))


def times_by_distance(track: Track, every_m: float, duration_s: float) -> np.ndarray:
    """Times (T,) in a video, each when the camera is every_m away from where it was at the one before.

    While it stands still, no frame is taken, however much the positions of the receiver vary within every_m.
    """
    end_s = min(duration_s or MAX_DURATION_S, track.end + track.max_gap_s)
    times = np.arange(0, max(end_s, 0) + 1e-9, PATH_STEP_S)
    found = positions_at(track, times)
    known = ~np.isnan(found.latitudes)
    points = ecef_from_lla(found.latitudes[known], found.longitudes[known])
    chosen: list[int] = []
    row = 0
    while row < len(points):
        chosen.append(row)
        row = _next_far(points, row, every_m)
    return times[known][chosen]


def _next_far(points: np.ndarray, row: int, every_m: float, block: int = 1024) -> int:
    """The first row after one that is every_m away from it; len(points) without one."""
    for first in range(row + 1, len(points), block):
        distances_m = np.linalg.norm(points[first : first + block] - points[row], axis=1)
        far = np.flatnonzero(distances_m >= every_m - 1e-3)  # less than the resolution of a receiver
        if len(far):
            return first + int(far[0])
    return len(points)


def _start(settings: ImportSettings, of_track: float, created: float) -> float:
    """Time at which the video starts: as given, of the track in the video, or the creation time of the file."""
    text = settings.tracks.video_start
    if not text:
        return created if np.isnan(of_track) else of_track
    try:
        given = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--video_start must be a time such as 2026-05-01T12:00:00Z, got '{text}'.") from error
    if given.tzinfo is None:
        given = given.replace(tzinfo=ZoneInfo(settings.timezone) if settings.timezone else UTC)
    return given.timestamp()


def _created(container: Any) -> float:
    """Creation time in the metadata of a video; nan without one, and for a clock that was never set."""
    texts = [container.metadata.get("creation_time")]
    texts += [stream.metadata.get("creation_time") for stream in container.streams.video]
    for text in texts:
        try:
            created = datetime.fromisoformat(text or "")
        except ValueError:
            continue
        time = (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp()
        if time >= FIRST_TIME:
            return time
    return float("nan")


def _camera(container: Any) -> str:
    """Maker and model in the metadata of a video, as phones write them."""
    words = [container.metadata.get(f"com.apple.quicktime.{name}", "") for name in ("make", "model")]
    return one_line(" ".join(words)).strip()[:100]


def _duration_s(container: Any, stream: Any) -> float:
    """Duration as the header says; 0 where it does not."""
    if stream.duration and stream.time_base:
        return min(max(float(stream.duration * stream.time_base), 0.0), MAX_DURATION_S)
    return min(max(container.duration / 1e6, 0.0), MAX_DURATION_S) if container.duration else 0.0


# --- decoding --------------------------------------------------------------------------------------------------------


def _frames(av: Any, container: Any, stream: Any) -> Iterator[tuple[Any, float]]:
    """Frames with their times from the start, in order; at a damage, its reason as the last item."""
    first = float((stream.start_time or 0) * stream.time_base)
    step_s = 1 / float(stream.average_rate) if stream.average_rate else 0.0
    time_s = -step_s
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                yield "a frame is incomplete", time_s
                return
            time_s = time_s + step_s if frame.time is None else float(frame.time) - first
            yield frame, time_s
    except av.FFmpegError as error:
        yield _words(error), time_s


def _jpeg(frame: Any) -> bytes:
    """The frame upright, as JPEG."""
    from simplejpeg import encode_jpeg

    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    return encode_jpeg(np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")


def _words(error: Exception) -> str:
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)
