"""Tracks: positions by time, and the position, altitude, accuracy and heading of a moving camera at any time.

A track consists of segments.  Between two points of a segment, a position is on the geodesic between them; nothing is
interpolated between segments.  The heading is the direction of travel, from the displacement over some meters before
and after: it is unknown where the camera stood still.  Pure: arrays in, arrays out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cosplace.geo import geodesic_azimuths, geodesic_distances_m, positions_between

UNKNOWN = float("nan")
MAX_GAP_S = 30.0  # default: points further apart in time belong to different segments
MAX_SPEED_M_S = 150.0  # a faster step is an error of the receiver
MAX_DRIFT_M = 10.0  # how far a camera may have moved before the first or after the last point of a segment
END_S = 3.0  # the speed at an end of a segment is that over this time
REACH_M = 5.0  # a heading is from the displacement over this distance before and after, or over the next points
MIN_DISPLACEMENT_M = 2.0  # shorter ones are noise
MIN_SPEED_M_S = 0.5  # slower is standing still
MIN_STRAIGHTNESS = 0.5  # displacement by length of the path: less is the noise of a receiver that stands still
MIN_AGREEMENT = 0.5  # length of the mean of two unit vectors: the directions differ by 120 degrees at most
METERS_PER_DOP = 5.0  # typical error of a consumer receiver per unit of dilution of precision


class TrackPoint(NamedTuple):
    """A point of a track as a file has it.  Numbers are nan where unknown."""

    time: float  # seconds since 1970 (UTC), or from the start of a video
    latitude: float  # degrees
    longitude: float  # degrees
    altitude_m: float = UNKNOWN
    accuracy_m: float = UNKNOWN


@dataclass(frozen=True, slots=True)
class Segment:
    """Points recorded without interruption: arrays (N,) float64, N >= 1."""

    times: np.ndarray  # seconds, strictly increasing
    latitudes: np.ndarray  # degrees
    longitudes: np.ndarray  # degrees
    altitudes_m: np.ndarray  # nan where unknown
    accuracies_m: np.ndarray  # nan where unknown
    headings: np.ndarray  # directions of travel, see `point_headings`

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, slots=True)
class Track:
    """Segments in order of their start; they may overlap in time."""

    segments: tuple[Segment, ...]
    max_gap_s: float = MAX_GAP_S

    @property
    def start(self) -> float:
        """Time of the first point."""
        return float(min(segment.times[0] for segment in self.segments))

    @property
    def end(self) -> float:
        """Time of the last point."""
        return float(max(segment.times[-1] for segment in self.segments))

    @property
    def num_points(self) -> int:
        """Number of points of all segments."""
        return sum(map(len, self.segments))

    @property
    def length_m(self) -> float:
        """Length of all segments in meters."""
        return float(sum(_step_lengths_m(segment).sum() for segment in self.segments))

    def shifted(self, seconds: float) -> "Track":
        """The same track with other times."""
        moved = tuple(replace(segment, times=segment.times + seconds) for segment in self.segments)
        return Track(moved, self.max_gap_s)


class TrackPositions(NamedTuple):
    """Positions at several times: arrays (T,) float64, nan where unknown."""

    latitudes: np.ndarray
    longitudes: np.ndarray
    altitudes_m: np.ndarray
    accuracies_m: np.ndarray
    headings: np.ndarray  # of travel, degrees clockwise from true north, in [0, 360)


# --- from points to a track ------------------------------------------------------------------------------------------


def build_track(segments: Iterable[Sequence[TrackPoint]], max_gap_s: float = MAX_GAP_S) -> Track | None:
    """A track of points in segments as a file has them; None without a valid point.

    Points are sorted by time.  Those without a time, with an impossible position or at 0, 0 are dropped, also the
    second of two with the same time.  A segment is split where points are more than max_gap_s apart, and where a step
    is impossibly fast; a single point next to such a step is dropped, such as the first fix of many receivers.
    """
    found = [piece for points in segments if len(points) for piece in _split(np.array(points, np.float64), max_gap_s)]
    found.sort(key=lambda segment: segment.times[0])
    return Track(tuple(found), max_gap_s) if found else None


def merge_tracks(tracks: Sequence[Track]) -> Track:
    """One track of the segments of several, such as one file a day."""
    segments = sorted((one for track in tracks for one in track.segments), key=lambda segment: segment.times[0])
    return Track(tuple(segments), tracks[0].max_gap_s)


def _split(points: np.ndarray, max_gap_s: float) -> list[Segment]:
    """(N, 5) columns of TrackPoint -> segments."""
    times, latitudes, longitudes = points[:, :3].T
    valid = np.isfinite(times) & (np.abs(latitudes) <= 90) & (np.abs(longitudes) <= 180)
    points = points[valid & ((latitudes != 0) | (longitudes != 0))]
    points = points[np.unique(points[:, 0], return_index=True)[1]]  # sorted; the first of each time
    if len(points) < 2:
        return [_segment(points)] if len(points) else []
    gaps_s = np.diff(points[:, 0])
    steps_m = geodesic_distances_m(points[:-1, 1], points[:-1, 2], points[1:, 1], points[1:, 2])
    jumps = steps_m > MAX_SPEED_M_S * gaps_s + 2 * MAX_DRIFT_M
    borders = np.flatnonzero(jumps | (gaps_s > max_gap_s)) + 1
    pieces = np.split(points, borders)
    at_jump = np.zeros(len(pieces), bool)
    at_jump[1:] |= jumps[borders - 1]
    at_jump[:-1] |= jumps[borders - 1]
    return [_segment(piece) for piece, jumped in zip(pieces, at_jump, strict=True) if not (len(piece) == 1 and jumped)]


def _segment(points: np.ndarray) -> Segment:
    """(N, 5) columns of TrackPoint, sorted by time -> a segment."""
    segment = Segment(*points.T, headings=np.empty(0))
    return replace(segment, headings=point_headings(segment))


# --- positions by time -----------------------------------------------------------------------------------------------


def positions_at(track: Track, times: np.ndarray) -> TrackPositions:
    """Position, altitude, accuracy and direction of travel at times (T,), in any order.

    Before the first and after the last point of a segment, the position is that of this point, if it is at most
    max_gap_s away and a camera with the speed there has moved at most MAX_DRIFT_M; the accuracy includes this.
    """
    times = np.asarray(times, np.float64)
    order = np.argsort(times)
    ordered = times[order]
    found = TrackPositions(*np.full((5, len(times)), UNKNOWN))
    nearest_s = np.full(len(times), np.inf)  # to a point outside of whose segment a time is
    for segment in track.segments:
        first, last = segment.times[0], segment.times[-1]
        _fill(found, order[np.searchsorted(ordered, first) : np.searchsorted(ordered, last, "right")], segment, times)
    for segment in track.segments:
        first, last = segment.times[0], segment.times[-1]
        for end, low, high in ((0, first - track.max_gap_s, first), (-1, last, last + track.max_gap_s)):
            near = order[np.searchsorted(ordered, low) : np.searchsorted(ordered, high, "right")]
            _hold(found, near, nearest_s, (segment, end), times)
    return found


def _fill(found: TrackPositions, rows: np.ndarray, segment: Segment, times: np.ndarray) -> None:
    """Interpolate at those times that have no position yet; all rows are within the segment."""
    rows = rows[np.isnan(found.latitudes[rows])]
    if not len(rows):
        return
    index = np.clip(np.searchsorted(segment.times, times[rows], "right") - 1, 0, max(len(segment) - 2, 0))
    after = np.minimum(index + 1, len(segment) - 1)
    duration_s = segment.times[after] - segment.times[index]
    fraction = np.divide(times[rows] - segment.times[index], duration_s, out=np.zeros(len(rows)), where=duration_s > 0)
    found.latitudes[rows], found.longitudes[rows] = _between(segment, index, fraction)
    for values, own in ((found.altitudes_m, segment.altitudes_m), (found.accuracies_m, segment.accuracies_m)):
        values[rows] = _weighted(own[index], own[after], fraction)
    found.headings[rows] = _mean_heading(segment.headings[index], segment.headings[after], fraction)


def _hold(
    found: TrackPositions, rows: np.ndarray, nearest_s: np.ndarray, of: tuple[Segment, int], times: np.ndarray
) -> None:
    """Give the first (0) or last (-1) point of a segment to times shortly outside of all segments."""
    segment, end = of
    rows = rows[np.isnan(found.latitudes[rows]) | (nearest_s[rows] < np.inf)]
    away_s = np.abs(times[rows] - segment.times[end])
    drifts_m = away_s * _end_speed_m_s(segment, end)
    near = (drifts_m <= MAX_DRIFT_M) & (away_s < nearest_s[rows])
    rows, drifts_m = rows[near], drifts_m[near]
    if not len(rows):
        return
    nearest_s[rows] = away_s[near]
    found.latitudes[rows], found.longitudes[rows] = segment.latitudes[end], segment.longitudes[end]
    found.altitudes_m[rows] = segment.altitudes_m[end]
    found.accuracies_m[rows] = np.hypot(np.nan_to_num(segment.accuracies_m[end]), drifts_m)
    found.headings[rows] = segment.headings[end]


def _end_speed_m_s(segment: Segment, end: int) -> float:
    """Speed at the first (0) or last (-1) point; inf for a single point."""
    if len(segment) == 1:
        return np.inf
    far = np.abs(segment.times - segment.times[end]) >= END_S
    candidates = np.flatnonzero(far)
    other = (candidates[0] if end == 0 else candidates[-1]) if len(candidates) else (-1 if end == 0 else 0)
    step_m = geodesic_distances_m(segment.latitudes[end], segment.longitudes[end],
                                  segment.latitudes[other], segment.longitudes[other])  # fmt: skip
    return float(step_m / abs(segment.times[other] - segment.times[end]))


# --- headings --------------------------------------------------------------------------------------------------------


def point_headings(segment: Segment) -> np.ndarray:
    """Direction of travel at each point (N,), in degrees clockwise from true north; nan where the camera stood still.

    It is the direction from the position some meters before to that as many meters after along the path: for a curve,
    such a chord has the direction of the tangent.
    """
    steps_m = _step_lengths_m(segment)
    if len(steps_m) == 0 or steps_m.sum() == 0:
        return np.full(len(segment), UNKNOWN)
    along_m = np.concatenate([[0], np.cumsum(steps_m)])
    reach_m = np.full(len(segment), REACH_M)
    reach_m[1:-1] = np.maximum(REACH_M, np.minimum(steps_m[:-1], steps_m[1:]))
    before_m, after_m = np.maximum(along_m - reach_m, 0), np.minimum(along_m + reach_m, along_m[-1])

    places = []
    for target_m in (before_m, after_m):
        index = np.clip(np.searchsorted(along_m, target_m, "right") - 1, 0, len(steps_m) - 1)
        fraction = np.divide(target_m - along_m[index], steps_m[index], out=np.zeros(len(index)),
                             where=steps_m[index] > 0)  # fmt: skip
        times = segment.times[index] + fraction * (segment.times[index + 1] - segment.times[index])
        places.append((*_between(segment, index, fraction), times))
    (latitudes, longitudes, start), (other_latitudes, other_longitudes, end) = places
    chords = latitudes, longitudes, other_latitudes, other_longitudes
    displacements_m = geodesic_distances_m(*chords)
    durations_s = np.maximum(end, segment.times) - np.minimum(start, segment.times)  # with the time it stood there
    moves = (
        (displacements_m >= MIN_DISPLACEMENT_M)
        & (displacements_m >= MIN_SPEED_M_S * durations_s)
        & (displacements_m >= MIN_STRAIGHTNESS * (after_m - before_m))
    )
    return np.where(moves, geodesic_azimuths(*chords), UNKNOWN)


def _mean_heading(headings: np.ndarray, others: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Headings between two, along the shorter arc; nan for nearly opposite ones."""
    vectors = _weighted(np.exp(1j * np.radians(headings)), np.exp(1j * np.radians(others)), fractions)
    degrees = np.mod(np.mod(np.degrees(np.angle(vectors)), 360), 360)
    return np.where(np.abs(vectors) >= MIN_AGREEMENT, degrees, UNKNOWN)


# --- values between two points ---------------------------------------------------------------------------------------


def _step_lengths_m(segment: Segment) -> np.ndarray:
    """Distances between points (N - 1,)."""
    return geodesic_distances_m(
        segment.latitudes[:-1], segment.longitudes[:-1], segment.latitudes[1:], segment.longitudes[1:]
    )


def _between(segment: Segment, index: np.ndarray, fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes at a fraction of the geodesics from the points `index` to the next ones."""
    after = np.minimum(index + 1, len(segment) - 1)
    return positions_between(segment.latitudes[index], segment.longitudes[index], segment.latitudes[after],
                             segment.longitudes[after], fraction)  # fmt: skip


def _weighted(values: np.ndarray, others: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Linear interpolation; an unknown value does not matter where its weight is 0."""
    mixed = values + (others - values) * fractions
    return np.where(fractions == 0, values, np.where(fractions == 1, others, mixed))
