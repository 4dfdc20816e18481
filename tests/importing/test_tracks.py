"""Positions and headings on tracks, against formulas and pyproj."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyproj import Geod

from cosplace.geo import destination, geodesic_distances_m
from cosplace.importing.tracks import (
    MAX_DRIFT_M,
    Track,
    TrackPoint,
    TrackPositions,
    build_track,
    merge_tracks,
    positions_at,
)
from tests.importing.track_samples import START, figure_eight, points

EARTH = Geod(ellps="WGS84")


def track_of(*segments: list[TrackPoint], max_gap_s: float = 30) -> Track:
    track = build_track(segments, max_gap_s)
    assert track is not None
    return track


def at(track: Track, *times: float) -> TrackPositions:
    return positions_at(track, np.array(times))


def turn(headings: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Differences of directions in degrees, 0 to 180."""
    return np.abs((headings - others + 180) % 360 - 180)


def line(seconds: range, speed_m_s: float, north: bool = True, start: float = 0) -> list[TrackPoint]:
    return [
        TrackPoint(second, *map(float, destination(10, 20, 0 if north else d, d if north else 0)))
        for second in seconds
        for d in [start + speed_m_s * second]
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-89, 89),
    st.floats(-180, 180),
    st.floats(0, 360),
    st.floats(0.1, 3000),
    st.floats(0, 1),
    st.floats(20, 30),
)
def test_interpolation_divides_the_geodesic(
    latitude: float, longitude: float, azimuth: float, length_m: float, fraction: float, duration_s: float
) -> None:
    assume((latitude, longitude) != (0, 0))
    other_longitude, other_latitude, _ = EARTH.fwd(longitude, latitude, azimuth, length_m)
    ends = [TrackPoint(0, latitude, longitude, 100, 2), TrackPoint(duration_s, other_latitude, other_longitude, 200, 4)]
    found = at(track_of(ends), fraction * duration_s)
    _, _, before_m = EARTH.inv(longitude, latitude, found.longitudes[0], found.latitudes[0])
    _, _, after_m = EARTH.inv(found.longitudes[0], found.latitudes[0], other_longitude, other_latitude)
    assert before_m == pytest.approx(fraction * length_m, abs=1e-3)
    assert after_m == pytest.approx((1 - fraction) * length_m, abs=1e-3)
    assert found.altitudes_m[0] == pytest.approx(100 + 100 * fraction)
    assert found.accuracies_m[0] == pytest.approx(2 + 2 * fraction)
    if length_m > 20 and length_m / duration_s > 0.6:
        assert turn(found.headings[0], np.array(azimuth)) < 0.1 / np.cos(np.radians(abs(latitude)))


def test_points_themselves_are_exact_in_any_order() -> None:
    times = np.arange(0, 300.0)
    latitudes, longitudes, _ = figure_eight(times)
    track = track_of(points(times, latitudes, longitudes))
    order = np.random.default_rng(0).permutation(len(times))
    found = positions_at(track, START + times[order])
    np.testing.assert_allclose(found.latitudes, latitudes[order], atol=1e-9)
    np.testing.assert_allclose(found.longitudes, longitudes[order], atol=1e-9)
    assert np.isnan(found.altitudes_m).all()


def test_headings_are_the_tangent_of_a_figure_eight() -> None:
    times = np.arange(0, 600.0)
    track = track_of(points(times, *figure_eight(times)[:2]))
    wanted = np.random.default_rng(1).uniform(0, 599, 500)
    latitudes, longitudes, headings = figure_eight(wanted)
    found = positions_at(track, START + wanted)
    assert geodesic_distances_m(latitudes, longitudes, found.latitudes, found.longitudes).max() < 0.05
    assert turn(found.headings, headings).max() < 0.5


def test_headings_with_the_noise_of_a_receiver() -> None:
    times = np.arange(0, 600.0)
    latitudes, longitudes, headings = figure_eight(times)
    noise = np.random.default_rng(2).normal(0, 1, (2, 600))
    track = track_of(points(times, *destination(latitudes, longitudes, *noise)))
    found = positions_at(track, START + times[10:-10])
    error = turn(found.headings, headings[10:-10])
    assert not np.isnan(error).any()
    assert np.sqrt((error**2).mean()) < 20


def test_heading_does_not_point_to_the_next_photo() -> None:
    times = np.arange(0, 75.0)  # the first loop: it ends where it began
    track = track_of(points(times, *figure_eight(times, period_s=150)[:2]))
    found = at(track, START, START + 37.5)
    assert turn(found.headings, figure_eight(np.array([0, 37.5]), period_s=150)[2]).max() < 2


def test_heading_is_unknown_where_the_camera_stands() -> None:
    walk = [*line(range(10), 2), *(TrackPoint(t, *map(float, destination(10, 20, 0.2 * (t % 3), 18))) for t in
                                   range(10, 70)), *line(range(70, 90), 2, start=-120)]  # fmt: skip
    found = at(track_of(walk), 5, 20, 40, 60, 85)
    assert turn(found.headings[[0, 4]], np.array([0.0, 0.0])).max() < 1
    assert np.isnan(found.headings[1:4]).all()
    assert not np.isnan(found.latitudes).any()


def test_noise_of_a_standing_receiver_has_no_heading() -> None:
    noise = np.random.default_rng(3).normal(0, 1.5, (2, 300))
    latitudes, longitudes = destination(10, 20, *noise)
    found = positions_at(track_of(points(np.arange(300.0), latitudes, longitudes)), START + np.arange(300.0))
    assert np.isnan(found.headings).mean() > 0.95


def test_nothing_between_segments_or_across_gaps() -> None:
    first, second = line(range(20), 1), line(range(20, 40), 1)
    one_segment = at(track_of([*first, *second]), 19.5)
    assert one_segment.latitudes[0] == pytest.approx(float(destination(10, 20, 0, 19.5)[0]))
    two = at(track_of(first, line(range(60, 80), 1, start=500)), 40.0)
    assert np.isnan(two.latitudes[0])
    gap = at(track_of([*first, *line(range(120, 140), 1)]), 70.0)
    assert np.isnan(gap.latitudes[0])
    wide = at(track_of([*first, *line(range(120, 140), 1)], max_gap_s=200), 70.0)
    assert wide.latitudes[0] == pytest.approx(float(destination(10, 20, 0, 70)[0]))


def test_ends_of_segments_hold_only_while_the_camera_cannot_be_far() -> None:
    slow, fast = track_of(line(range(60), 1)), track_of(line(range(60), 20))
    found = at(slow, -5, 64, 75, 200)
    np.testing.assert_allclose(found.latitudes[:2], [slow.segments[0].latitudes[0], slow.segments[0].latitudes[-1]])
    np.testing.assert_allclose(found.accuracies_m[:2], 5, rtol=0.01)
    assert np.isnan(found.latitudes[2:]).all()
    assert np.isnan(at(fast, -1, 61).latitudes).all()
    assert MAX_DRIFT_M < 20


def test_impossible_points_are_dropped() -> None:
    good = line(range(30), 2)
    bad = [TrackPoint(-1, 48, 11), TrackPoint(12.5, 0, 0), TrackPoint(13.5, 95, 0), TrackPoint(float("nan"), 10, 20),
           TrackPoint(14.5, float("inf"), 3), TrackPoint(15.5, -10, 20), good[3]]  # fmt: skip
    track = track_of([*bad, *reversed(good)])
    assert track.num_points == 30
    assert build_track([[TrackPoint(1, 0, 0)], []]) is None


def test_antimeridian_and_poles() -> None:
    ends = [TrackPoint(0, 10, 179.9999), TrackPoint(10, 10, -179.9999)]
    found = at(track_of(ends), 5.0)
    assert abs(abs(found.longitudes[0]) - 180) < 1e-9
    assert found.headings[0] == pytest.approx(90, abs=0.01)
    pole = at(track_of([TrackPoint(0, 89.9999, 0), TrackPoint(10, 89.9999, 180)]), 5.0)
    assert pole.latitudes[0] > 89.99999


def test_overlapping_tracks_and_shift() -> None:
    a, b = track_of(line(range(50), 1)), track_of(line(range(40, 90), 1, start=1000))
    merged = merge_tracks([b, a])
    assert (merged.start, merged.end, merged.num_points) == (0, 89, 100)
    found = at(merged, 45.5, 70)
    assert found.latitudes[0] == pytest.approx(float(destination(10, 20, 0, 45.5)[0]))
    assert found.latitudes[1] == pytest.approx(float(destination(10, 20, 0, 1070)[0]))
    assert at(a.shifted(100), 145.5).latitudes[0] == pytest.approx(at(a, 45.5).latitudes[0])
    assert a.length_m == pytest.approx(49, abs=1e-3)
