"""The offset between the clock of a camera and the time of a track.

Seconds to add to the times of photos so that they match the track.  It is estimated from photos that know their own
position, as of a phone, or where all photos lie outside of the track, from whole and half hours: a camera set to local
time.  Pure.
"""

from dataclasses import dataclass

import numpy as np

from cosplace.geo import ecef_from_lla, geodesic_distances_m, positions_between
from cosplace.importing.tracks import Track

MIN_PHOTOS = 3  # with a position of their own, for an estimate
MAX_PHOTOS = 300  # used for an estimate, evenly chosen
NEAR_M = 40.0  # photos may be this far from the track: the errors of two receivers
MAX_MEDIAN_M = 25.0  # at the best offset; otherwise it is not the same trip
MIN_SHARE = 0.6  # of the photos, near the track at the best offset
BIN_S = 2.0  # width of the bins in which offsets are counted
NUM_CANDIDATES = 30  # offsets that are refined
DENSE_M, DENSE_S = 10.0, 2.0  # distance of the positions along the track that photos are compared with
MAX_DENSE = 300_000
SAME_OFFSET_S = 30.0  # estimates closer together are one
AMBIGUOUS_RATIO = 1.5  # another offset whose errors are at most this much larger is as likely
ZONES_H = tuple(sorted([*range(-12, 15), -9.5, -3.5, -2.5, 3.5, 4.5, 5.5, 5.75, 6.5, 8.75, 9.5, 10.5, 12.75], key=abs))
"""Offsets of local times from UTC in use on Earth, in hours."""
MIN_AHEAD_H, MAX_AHEAD_H = -2.0, 3.75  # of local times, of the mean time of the sun; the largest is in western China


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOffset:
    """Seconds to add to the times of photos, and why."""

    seconds: float
    uncertainty_s: float = float("nan")  # standard error; nan where it cannot be computed
    is_known: bool = True  # False: 0 is used because nothing better could be found
    reason: str = ""  # one line for the user


def format_offset(seconds: float) -> str:
    """An offset as +2 h 00 min 13 s, or 0 s."""
    sign, rest = ("-" if seconds < 0 else "+"), abs(seconds)
    hours, minutes, rest = int(rest // 3600), int(rest // 60 % 60), rest % 60
    text = f"{rest:.1f}".removesuffix(".0") + " s"
    if hours:
        text = f"{hours} h {minutes:02d} min {text}"
    elif minutes:
        text = f"{minutes} min {text}"
    return f"{sign}{text}" if seconds else "0 s"


def estimate_clock_offset(
    track: Track, times: np.ndarray, latitudes: np.ndarray, longitudes: np.ndarray
) -> ClockOffset:
    """The offset that brings photos to the track.

    times: (N,) of the photos, nan where unknown; latitudes, longitudes: (N,) positions of their own, nan without.
    """
    placed = ~(np.isnan(times) | np.isnan(latitudes) | np.isnan(longitudes))
    if placed.sum() >= MIN_PHOTOS:
        found = offset_from_positions(track, times[placed], latitudes[placed], longitudes[placed])
        if found is not None:
            return found
    return offset_from_span(track, times[~np.isnan(times)])


# --- from photos with positions --------------------------------------------------------------------------------------


def offset_from_positions(
    track: Track, times: np.ndarray, latitudes: np.ndarray, longitudes: np.ndarray
) -> ClockOffset | None:
    """The offset with the smallest distances between photos and the track at their times; None if none is small.

    For each photo, the times at which the track passes nearby give possible offsets.  Those that most photos share are
    refined.  Distances are capped, so single wrong positions have little weight.
    """
    rows = np.unique(np.linspace(0, len(times) - 1, min(len(times), MAX_PHOTOS)).astype(int))
    times, points = times[rows], ecef_from_lla(latitudes[rows], longitudes[rows])
    path = _dense_path(track)
    candidates = _shared_offsets(path, times, points)
    if not len(candidates):
        return None
    refined = [_refine(path, times, points, candidate) for candidate in candidates]
    error, seconds = min(refined)
    distances_m = _distances_m(path, times + seconds, points)
    near = distances_m <= NEAR_M
    if near.mean() < MIN_SHARE or np.median(distances_m) > MAX_MEDIAN_M:
        return None
    others = [other for cost, other in refined if abs(other - seconds) > SAME_OFFSET_S and
              cost <= AMBIGUOUS_RATIO * error]  # fmt: skip
    uncertainty_s = _uncertainty_s(path, times + seconds, points, near)
    if others:
        return ClockOffset(
            seconds=0.0, is_known=False,
            reason=f"clock offset: unknown, 0 s is used: {format_offset(seconds)} and {format_offset(others[0])} fit "
            f"the positions of {len(rows)} photos equally well. Set it with --clock_offset SECONDS",
        )  # fmt: skip
    return ClockOffset(
        seconds=seconds, uncertainty_s=uncertainty_s,
        reason=f"clock offset: {format_offset(seconds)} ± {uncertainty_s:.2g} s, estimated from the positions of "
        f"{near.sum()} photos; their median distance from the track is {np.median(distances_m[near]):.0f} m",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Path:
    """Closely spaced positions along the track, for interpolation along straight lines in space."""

    times: np.ndarray  # (P,) increasing
    points: np.ndarray  # (P, 3) earth-centered, meters
    starts: np.ndarray  # (S,) times of the segments
    ends: np.ndarray  # (S,)


def _dense_path(track: Track) -> _Path:
    """Positions at most DENSE_M and DENSE_S apart; overlapping segments are cut so that times increase."""
    times, latitudes, longitudes, starts, ends = [], [], [], [], []
    before = -np.inf
    for segment in track.segments:
        keep = segment.times > before
        if not keep.any():
            continue
        own, lat, lon = segment.times[keep], segment.latitudes[keep], segment.longitudes[keep]
        steps_m = geodesic_distances_m(lat[:-1], lon[:-1], lat[1:], lon[1:])
        parts = np.maximum(np.ceil(steps_m / DENSE_M), np.ceil(np.diff(own) / DENSE_S)).astype(int).clip(1, 1000)
        index = np.repeat(np.arange(len(parts)), parts)
        fraction = (np.arange(len(index)) - np.repeat(np.cumsum(parts) - parts, parts)) / parts[index]
        if len(index):
            inner = positions_between(lat[index], lon[index], lat[index + 1], lon[index + 1], fraction)
            latitudes.append(inner[0])
            longitudes.append(inner[1])
            times.append(own[index] + fraction * np.diff(own)[index])
        times.append(own[-1:])
        latitudes.append(lat[-1:])
        longitudes.append(lon[-1:])
        starts.append(own[0])
        ends.append(own[-1])
        before = own[-1]
    points = ecef_from_lla(np.concatenate(latitudes), np.concatenate(longitudes))
    return _Path(np.concatenate(times), points, np.array(starts), np.array(ends))


def _shared_offsets(path: _Path, times: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Offsets (K,) that bring most photos near the track, the best first."""
    from scipy.spatial import KDTree  # takes long to import

    thin = slice(None, None, 1 + len(path.times) // MAX_DENSE)
    near = KDTree(path.points[thin]).query_ball_point(points, NEAR_M)
    path_times = path.times[thin]
    bins: dict[int, int] = {}
    for time, rows in zip(times, near, strict=True):
        own = np.unique(np.round((path_times[rows] - time) / BIN_S).astype(np.int64))
        for number in np.unique(np.concatenate([own - 1, own, own + 1])).tolist():
            bins[number] = bins.get(number, 0) + 1
    # Of neighbouring bins with the same count, as where the camera stood still, a few suffice.
    ordered = sorted(bins, key=lambda number: (-bins[number], abs(number)))
    chosen: list[int] = []
    for number in ordered:
        if len(chosen) == NUM_CANDIDATES or bins[number] < 0.5 * bins[ordered[0]]:
            break
        if all(abs(number - other) > 2 for other in chosen):
            chosen.append(number)
    return np.array(chosen) * BIN_S


def _distances_m(path: _Path, times: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distances of photos from the track at times (..., N); inf where the track has no position."""
    on_path = np.stack([np.interp(times, path.times, path.points[:, axis]) for axis in range(3)], -1)
    segment = np.searchsorted(path.starts, times, "right") - 1
    inside = (segment >= 0) & (times <= path.ends[np.maximum(segment, 0)])
    return np.where(inside, np.linalg.norm(on_path - points, axis=-1), np.inf)


def _cost(path: _Path, times: np.ndarray, points: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Mean squared distances, capped, for offsets (K,)."""
    distances_m = _distances_m(path, times + offsets[:, None], points)
    return (np.minimum(distances_m, NEAR_M) ** 2).mean(1)


def _refine(path: _Path, times: np.ndarray, points: np.ndarray, offset: float) -> tuple[float, float]:
    """(cost, offset) of the best offset near one, to 0.01 s."""
    for reach_s, step_s in ((3 * BIN_S, 0.5), (0.6, 0.1), (0.12, 0.01)):
        offsets = offset + np.arange(-reach_s, reach_s + step_s / 2, step_s)
        costs = _cost(path, times, points, offsets)
        offset = float(offsets[costs.argmin()])
    return float(costs.min()), round(offset, 2)


def _uncertainty_s(path: _Path, times: np.ndarray, points: np.ndarray, near: np.ndarray) -> float:
    """Standard error: the spread of the distances along the track, by the speeds of the photos that are near it."""
    ahead, behind = (_at(path, times[near] + shift_s) for shift_s in (0.5, -0.5))
    velocities = ahead - behind  # (N, 3) meters per second
    along = ((points[near] - _at(path, times[near])) * velocities).sum(1)
    speeds_squared = (velocities**2).sum(1)
    total = speeds_squared.sum()
    if total == 0:
        return float("inf")
    seconds = along / np.maximum(speeds_squared, 1e-12)  # of each photo
    mean = (seconds * speeds_squared).sum() / total
    variance = ((seconds - mean) ** 2 * speeds_squared).sum() / total
    return float(np.sqrt(variance / max(near.sum() - 1, 1)))


def _at(path: _Path, times: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(times, path.times, path.points[:, axis]) for axis in range(3)], -1)


# --- from whole hours ------------------------------------------------------------------------------------------------


def offset_from_span(track: Track, times: np.ndarray) -> ClockOffset:
    """0 if the photos were taken during the track, else the only time zone of the region that brings them there."""
    if not len(times):
        return ClockOffset(seconds=0.0, is_known=False, reason="clock offset: unknown: the photos have no times")
    shares = {0.0: _share_during(track, times)}
    longitude = float(np.median(np.concatenate([segment.longitudes for segment in track.segments])))
    for zone_h in ZONES_H:
        if MIN_AHEAD_H <= (zone_h - longitude / 15 + 12) % 24 - 12 <= MAX_AHEAD_H:
            shares[-3600.0 * zone_h] = _share_during(track, times - 3600 * zone_h)
    best = max(shares.values())
    if shares[0.0] >= max(best - 0.1, 0.5) or best == 0:
        text = "0 s" if shares[0.0] else f"unknown, 0 s is used: {_both_spans(track, times)}"
        return ClockOffset(seconds=0.0, is_known=bool(shares[0.0]), reason=f"clock offset: {text}")
    fitting = [seconds for seconds, share in shares.items() if share >= best - 0.02]
    percent = f"{100 * best:.0f}% of the photos"
    if len(fitting) == 1 and best >= 0.5:
        return ClockOffset(
            seconds=fitting[0],
            reason=f"clock offset: {format_offset(fitting[0])}, a time zone: with it, {percent} were taken during the "
            f"track; without it, {100 * shares[0.0]:.0f}%",
        )
    choices = ", ".join(f"{seconds:g}" for seconds in sorted(fitting, key=abs))
    return ClockOffset(
        seconds=0.0, is_known=False,
        reason=f"clock offset: unknown, 0 s is used: {100 * shares[0.0]:.0f}% of the photos were taken during the "
        f"track. With each of these offsets, {percent} were: {choices}. Choose one with --clock_offset",
    )  # fmt: skip


def _both_spans(track: Track, times: np.ndarray) -> str:
    """When photos and track were recorded, for users who know how wrong the clock was."""
    track_times = np.concatenate([segment.times for segment in track.segments])
    photos, points = (
        " to ".join(str(np.datetime64(round(time), "s")).replace("T", " ") for time in (one.min(), one.max()))
        for one in (times, track_times)
    )
    if track_times.min() <= times.max() and times.min() <= track_times.max():
        return f"the track, from {points} (UTC), has gaps at all times of the photos, from {photos}"
    return (
        f"the photos were not taken during the track, but from {photos}; the track is from {points} (UTC). If the "
        "clock of the camera was wrong, pass --clock_offset"
    )


def _share_during(track: Track, times: np.ndarray) -> float:
    """Share of times within a segment."""
    inside = np.zeros(len(times), bool)
    for segment in track.segments:
        inside |= (times >= segment.times[0] - 1) & (times <= segment.times[-1] + 1)
    return float(inside.mean())
