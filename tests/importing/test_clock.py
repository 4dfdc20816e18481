"""Estimates of the offset between the clock of a camera and a track."""

import numpy as np
import pytest

from cosplace.geo import destination
from cosplace.importing.clock import estimate_clock_offset, format_offset, offset_from_span
from cosplace.importing.tracks import Track, build_track
from tests.importing.track_samples import START, figure_eight, points, spiral

UNKNOWN = float("nan")


def spiral_track(seconds: int = 1800, noise_m: float = 1) -> Track:
    times = np.arange(0, float(seconds))
    track = build_track([points(times, *spiral(times, noise_m, seed=1))])
    assert track is not None
    return track


@pytest.mark.parametrize("offset_s", [2 * 3600 + 13, -7200 + 0.4, 0, 3.5, -86_400 * 400.0])
@pytest.mark.parametrize("num_photos", [4, 40])
def test_offset_from_photos_with_positions(offset_s: float, num_photos: int) -> None:
    taken = np.sort(np.random.default_rng(2).uniform(100, 1700, num_photos))
    found = estimate_clock_offset(spiral_track(), START + taken - offset_s, *spiral(taken, noise_m=3))
    assert found.is_known
    assert abs(found.seconds - offset_s) < 4 * found.uncertainty_s + 0.1
    # 3 m of noise along the track, at 1.7 m/s on average
    assert found.uncertainty_s < 4 * 3 / 1.7 / np.sqrt(num_photos)
    assert "±" in found.reason
    assert "\n" not in found.reason


@pytest.mark.slow
def test_uncertainty_is_the_spread_of_estimates() -> None:
    track = spiral_track(noise_m=0)
    errors, claimed = [], []
    for seed in range(30):
        taken = np.sort(np.random.default_rng(seed).uniform(100, 1700, 25))
        found = estimate_clock_offset(track, START + taken - 50, *spiral(taken, noise_m=3, seed=seed))
        errors.append(found.seconds - 50)
        claimed.append(found.uncertainty_s)
    assert np.std(errors) == pytest.approx(np.mean(claimed), rel=0.5)


def test_wrong_positions_have_little_weight() -> None:
    taken = np.linspace(100, 1700, 30)
    latitudes, longitudes = spiral(taken, noise_m=3)
    latitudes[:9] += 0.02
    found = estimate_clock_offset(spiral_track(), START + taken - 600, latitudes, longitudes)
    assert found.seconds == pytest.approx(600, abs=2)


def test_a_repeated_path_is_ambiguous() -> None:
    times = np.arange(0, 1200.0)  # four rounds
    track = build_track([points(times, *figure_eight(times)[:2])])
    assert track is not None
    taken = np.linspace(310, 590, 20)
    found = estimate_clock_offset(track, START + taken - 5000, *figure_eight(taken)[:2])
    assert not found.is_known
    assert found.seconds == 0
    assert "--clock_offset" in found.reason


def test_photos_of_another_place_give_no_offset() -> None:
    taken = np.linspace(100, 1700, 30)
    latitudes, longitudes = destination(*spiral(taken), 3000.0, 500.0)
    found = estimate_clock_offset(spiral_track(), START + taken, latitudes, longitudes)
    assert (found.seconds, found.uncertainty_s != found.uncertainty_s) == (0, True)


def test_overlapping_and_interrupted_tracks() -> None:
    times = np.arange(0, 1800.0)
    known = points(times, *spiral(times))
    track = build_track([known[:600], known[500:900], known[1000:]])
    assert track is not None
    taken = np.linspace(50, 1750, 60)
    found = estimate_clock_offset(track, START + taken + 777, *spiral(taken, noise_m=2))
    assert found.seconds == pytest.approx(-777, abs=1)


@pytest.mark.parametrize(("hours", "longitude"), [(2, 7.6), (1, 7.6), (5.5, 77.2), (-7, -122.0), (0, 7.6)])
def test_offset_from_the_time_zone(hours: float, longitude: float) -> None:
    times = np.arange(0, 3 * 3600, 10.0)
    latitudes, longitudes = destination(45.0, longitude, 1.0 * times, 0 * times)
    track = build_track([points(times, latitudes, longitudes)])
    assert track is not None
    taken = np.linspace(60, 3 * 3600 - 60, 50)
    found = offset_from_span(track, START + taken + 3600 * hours)
    assert found.is_known
    assert found.seconds == -3600 * hours


def test_several_time_zones_fit_a_short_visit() -> None:
    track = spiral_track(4 * 3600)
    found = offset_from_span(track, START + 7200 + np.linspace(2 * 3600 + 600, 2 * 3600 + 900, 20))
    assert not found.is_known
    assert found.seconds == 0
    for choice in ("-3600", "-7200"):
        assert choice in found.reason


def test_photos_in_a_gap_of_the_track() -> None:
    times = np.array([0.0, 1, 2, 1000, 1001, 1002])
    track = build_track([points(times, *spiral(times))])
    assert track is not None
    found = offset_from_span(track, START + np.array([500.0]))
    assert not found.is_known and "has gaps at all times of the photos, from 2026-05-01 10:08:20" in found.reason


def test_photos_of_another_day() -> None:
    found = offset_from_span(spiral_track(), START + 5 * 86_400 + np.arange(9.0))
    assert (found.seconds, found.is_known) == (0, False)
    assert "not taken during the track, but from 2" in found.reason and found.reason.endswith("pass --clock_offset")
    assert not offset_from_span(spiral_track(), np.array([])).is_known


def test_format() -> None:
    assert [format_offset(one) for one in (0, -7213, 62.25, 5)] == ["0 s", "-2 h 00 min 13 s", "+1 min 2.2 s", "+5 s"]
