"""Tracks give positions to photos by time: GPX files and NMEA logs.  Side effects: reads files.

Photos with a position of their own keep it, those with a heading keep that.  The clock of each camera has an offset of
its own, given or estimated.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cosplace.config.importing import ImportSettings, TrackSettings
from cosplace.geo import geodesic_distances_m, wrap_heading
from cosplace.importing.clock import NEAR_M, ClockOffset, estimate_clock_offset, format_offset
from cosplace.importing.positions import PhotoStream, annotated
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.importing.track_files import is_track_file, read_track_file
from cosplace.importing.tracks import Track, TrackPositions, merge_tracks, positions_at
from cosplace.photos.paths import printable
from cosplace.photos.tables import ZONE_STATED

log = logging.getLogger("cosplace")

TRACK_HEADING = "track"  # heading_source of headings from the direction of travel
CONFLICT_M = 100.0  # between two tracks at one time: one of them is of another vehicle, or its clock is wrong


def detects(path: Path) -> bool:
    """Whether a path is a GPX file or an NMEA log."""
    return is_track_file(path)


def read(paths: Sequence[Path], settings: ImportSettings) -> "TrackAnnotations":
    """The tracks of all files; one without positions is refused."""
    found = [(path, *read_track_file(path, settings.tracks.max_gap_s)) for path in paths]
    return TrackAnnotations(
        tracks=tuple((path, track) for path, track, _ in found),
        problems=tuple(problem for *_, problems in found for problem in problems),
        settings=settings.tracks,
    )


def given_tracks(settings: ImportSettings) -> list[tuple[Path, Track]]:
    """The tracks among the sources of an import."""
    paths = [Path(source) for source in getattr(settings, "sources", ())]
    max_gap_s = settings.tracks.max_gap_s
    return [(path, _read_once(path, path.stat().st_mtime_ns, max_gap_s)) for path in paths if is_track_file(path)]


@lru_cache(maxsize=16)
def _read_once(path: Path, _: int, max_gap_s: float) -> Track:
    """A track that all videos of an import need; its time of change is part of the key."""
    return read_track_file(path, max_gap_s)[0]


@dataclass(frozen=True, slots=True)
class TrackAnnotations:
    """Positions and headings from tracks; see `positions.Annotations`."""

    tracks: tuple[tuple[Path, Track], ...]  # and the files that they are from
    problems: tuple[Problem, ...]
    settings: TrackSettings

    @property
    def needs_positions(self) -> bool:
        """Always false, see `Annotations`."""
        return False

    def photos(self) -> Iterator[Entry]:
        """None: a track names no photos."""
        yield from ()

    def annotate(self, photos: PhotoStream) -> Iterator[Entry]:
        """Photos in their order; frames of videos, whose clock is that of the video, first."""
        yield from self.problems
        cameras: dict[str, list[FoundPhoto]] = {}
        for photo in photos:
            if not np.isnan(photo.record.video_time):  # a frame: its time is right, and most have a position already
                yield from self._placed([photo], ClockOffset(seconds=0.0))
            else:
                cameras.setdefault(photo.record.camera, []).append(photo)
        for camera, own in cameras.items():
            offset = self.offset_of(own)
            yield from clock_notes(camera or "photos", offset)
            yield from self._placed(own, offset)

    def offset_of(self, photos: Sequence[FoundPhoto]) -> ClockOffset:
        """The offset of the clock of one camera."""
        if self.settings.clock_offset is not None:
            return ClockOffset(seconds=self.settings.clock_offset)
        columns = [[getattr(photo.record, name) for photo in photos] for name in ("time", "latitude", "longitude")]
        return estimate_clock_offset(merge_tracks([track for _, track in self.tracks]), *np.array(columns, np.float64))

    def _placed(self, photos: Sequence[FoundPhoto], offset: ClockOffset) -> Iterator[Entry]:
        times = np.array([photo.record.time for photo in photos], np.float64) + offset.seconds
        path_of, found = positions_on(self.tracks, times)
        apart_m = distances_apart_m(self.tracks, times)
        for row, photo in enumerate(photos):
            if apart_m[row] > CONFLICT_M:
                yield photo
                reason = f"is on two tracks at once, {apart_m[row]:,.0f} m apart, so neither was used"
                yield Problem(name=photo.record.path, reason=reason, is_left_out=False)
            elif np.isnan(found.latitudes[row]):
                yield photo
                if np.isnan(photo.record.latitude):
                    yield Problem(name=photo.record.path, reason=self._why_unknown(times[row]), is_left_out=False)
            else:
                yield self._annotated(photo, found, row, path_of[row], times[row])

    def _annotated(
        self, photo: FoundPhoto, found: TrackPositions, row: int, path: Path | None, time: float
    ) -> FoundPhoto:
        record = photo.record
        values = {
            "time": time,
            "time_zone": ZONE_STATED,
            "sequence": record.sequence or (path.stem if path is not None else ""),
        }
        heading = track_heading(found.headings[row], self.settings.mount_angle)
        if np.isnan(record.latitude):
            values |= position_values(found, row)
        else:
            away_m = geodesic_distances_m(
                record.latitude, record.longitude, found.latitudes[row], found.longitudes[row]
            )
            if away_m > NEAR_M:  # the track is that of another camera
                return photo
        if np.isnan(record.heading) and not np.isnan(heading):
            values |= {"heading": heading, "heading_source": TRACK_HEADING}
        return annotated(photo, **values)

    def _why_unknown(self, time: float) -> str:
        if np.isnan(time):
            return "has no time, so it cannot be placed on the track"
        away_s = min(seconds_from(track, time) for _, track in self.tracks)
        if away_s == 0:
            return "was taken between two parts of the track"
        away = format_offset(round(away_s, 1)).removeprefix("+")
        return (
            f"was not taken during the track: the nearest point is {away} away; the limit is --max_gap_s "
            f"{self.settings.max_gap_s:g}, or less if the camera was moving fast"
        )


def clock_notes(name: str, offset: ClockOffset) -> Iterator[Problem]:
    """Print the offset of a clock; one that is not 0 for certain is also reported as a doubt."""
    if offset.reason:
        log.info("%s: %s", printable(name), offset.reason)
        if offset.seconds or not offset.is_known:
            yield Problem(name=name, reason=offset.reason, is_left_out=False)


def positions_on(tracks: Sequence[tuple[Path, Track]], times: np.ndarray) -> tuple[list[Path | None], TrackPositions]:
    """Positions at times (T,) on the first track that has them, and the file of that track."""
    path_of: list[Path | None] = [None] * len(times)
    found = TrackPositions(*np.full((5, len(times)), np.nan))
    for path, track in tracks:
        own = positions_at(track, times)
        rows = np.flatnonzero(np.isnan(found.latitudes) & ~np.isnan(own.latitudes))
        for values, known in zip(found, own, strict=True):
            values[rows] = known[rows]
        for row in rows.tolist():
            path_of[row] = path
    return path_of, found


def distances_apart_m(tracks: Sequence[tuple[Path, Track]], times: np.ndarray) -> np.ndarray:
    """How far apart the tracks, and parts of them, are at times (T,); 0 where at most one has a position."""
    first, apart_m = TrackPositions(*np.full((5, len(times)), np.nan)), np.zeros(len(times))
    for segment in (segment for _, track in tracks for segment in track.segments):
        inside = np.flatnonzero((times >= segment.times[0]) & (times <= segment.times[-1]))
        own = positions_at(Track((segment,), 0.0), times[inside])
        known = ~np.isnan(first.latitudes[inside])
        there = inside[known]
        distances = geodesic_distances_m(
            first.latitudes[there], first.longitudes[there], own.latitudes[known], own.longitudes[known]
        )
        apart_m[there] = np.maximum(apart_m[there], distances)
        new = inside[~known]
        first.latitudes[new], first.longitudes[new] = own.latitudes[~known], own.longitudes[~known]
    return apart_m


def position_values(found: TrackPositions, row: int) -> dict[str, float]:
    """Columns of a record for one of several positions."""
    return {
        "latitude": float(found.latitudes[row]),
        "longitude": float(found.longitudes[row]),
        "altitude_m": float(found.altitudes_m[row]),
        "accuracy_m": float(found.accuracies_m[row]),
    }


def track_heading(travel: float, mount_angle: float) -> float:
    """Heading of a camera mounted at an angle clockwise from the direction of travel; nan stays nan."""
    return float(wrap_heading(travel + mount_angle))


def seconds_from(track: Track, time: float) -> float:
    """Time to the nearest segment of a track; 0 within one."""
    return min(max(one.times[0] - time, time - one.times[-1], 0.0) for one in track.segments)
