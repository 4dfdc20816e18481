"""Geodesy: UTM, latitude and longitude, points in space, distances and boxes, compared with the ellipsoid."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosplace.geo import (
    EARTH,
    bounding_box,
    box_around,
    destination,
    distances_m,
    ecef_from_lla,
    geodesic_azimuths,
    geodesic_distances_m,
    great_circle_distances_m,
    in_box,
    lla_from_ecef,
    magnetic_declination,
    positions_between,
    utm_to_latlon,
    wrap_heading,
)

LATITUDES, LONGITUDES = st.floats(-90, 90), st.floats(-180, 180)
AZIMUTHS, LENGTHS_M = st.floats(0, 360), st.floats(0.5, 5000)


# --- UTM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("east", "north", "zone", "letter", "latitude", "longitude"),
    [  # image names of public datasets have both coordinates
        (543037.38, 4180974.80, 10, "S", 37.77510, -122.51130),
        (584334.39, 4476910.88, 17, "T", 40.43857, -80.00562),
        (241821.78, 9862147.68, 37, "M", -1.24616, 36.67991),
        (381904.46, 3946329.36, 54, "S", 35.65375, 139.69540),
    ],
)
def test_utm_to_latlon(east, north, zone, letter, latitude, longitude) -> None:
    found = utm_to_latlon(np.array([east]), np.array([north]), zone, letter)
    assert found[0][0] == pytest.approx(latitude, abs=1.5e-5)
    assert found[1][0] == pytest.approx(longitude, abs=1.5e-5)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2,), (0,)])
def test_results_have_the_shape_of_the_positions(shape: tuple[int, ...]) -> None:
    ones = np.ones(shape)
    for results in (
        utm_to_latlon(5e5 * ones, 4e6 * ones, 10, "S"),
        (geodesic_distances_m(ones, ones, 2.0, 3.0),),
        destination(ones, ones, 10 * ones, 20 * ones),
        lla_from_ecef(ecef_from_lla(ones, ones)),
    ):
        assert [result.shape for result in results] == [shape] * len(results)


def test_utm_distances() -> None:
    assert distances_m(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([3.0, 4.0])).tolist() == [5.0, np.hypot(2, 3)]


# --- latitude and longitude ------------------------------------------------------------------------------------------


@given(LATITUDES, LONGITUDES, AZIMUTHS, LENGTHS_M)
def test_geodesic_distances(lat: float, lon: float, azimuth: float, length_m: float) -> None:
    other_lon, other_lat, _ = EARTH.fwd(lon, lat, azimuth, length_m)
    assert geodesic_distances_m(lat, lon, other_lat, other_lon) == pytest.approx(length_m, abs=1e-6)


def test_geodesic_distances_broadcast_and_keep_nan() -> None:
    found = geodesic_distances_m(
        np.array([[0.0], [np.nan]]), 0.0, np.array([0.0, 0.0, 0.0]), np.array([0.0, 1.0, 180.0])
    )
    assert found.shape == (2, 3) and np.isnan(found[1]).all()
    assert found[0] == pytest.approx([0, 111_319.491, 20_003_931.459], abs=1e-3)


@given(LATITUDES, LONGITUDES, LATITUDES, LONGITUDES)
def test_great_circles_agree_with_the_ellipsoid(a: float, b: float, c: float, d: float) -> None:
    exact = EARTH.inv(b, a, d, c)[2]
    assert great_circle_distances_m(np.array([a]), np.array([b]), c, d)[0] == pytest.approx(exact, rel=0.006, abs=1e-3)


@given(st.floats(-89.9, 89.9), LONGITUDES, AZIMUTHS, LENGTHS_M)
def test_destination(lat: float, lon: float, azimuth: float, length_m: float) -> None:
    east_m, north_m = length_m * np.sin(np.radians(azimuth)), length_m * np.cos(np.radians(azimuth))
    to_lat, to_lon = destination(lat, lon, east_m, north_m)
    found_azimuth, _, found_m = EARTH.inv(lon, lat, float(to_lon), float(to_lat))
    assert found_m == pytest.approx(length_m, abs=1e-6)
    assert (found_azimuth - azimuth + 180) % 360 - 180 == pytest.approx(0, abs=np.degrees(1e-6 / length_m) + 1e-6)


@given(st.floats(-89, 89), LONGITUDES, st.floats(0, 359.9), LENGTHS_M, st.floats(0, 1))
def test_azimuths_and_positions_between(latitude, longitude, azimuth, length_m, fraction) -> None:
    other_longitude, other_latitude, _ = EARTH.fwd(longitude, latitude, azimuth, length_m)
    found = geodesic_azimuths(latitude, longitude, other_latitude, other_longitude)
    assert 0 <= found < 360
    assert (found - azimuth + 180) % 360 - 180 == pytest.approx(0, abs=1e-4 / np.cos(np.radians(latitude)))
    between = positions_between(latitude, longitude, other_latitude, other_longitude, fraction)
    assert geodesic_distances_m(latitude, longitude, *between) == pytest.approx(fraction * length_m, abs=1e-6)
    rest_m = geodesic_distances_m(*between, other_latitude, other_longitude)
    assert rest_m == pytest.approx((1 - fraction) * length_m, abs=1e-6)


# --- points in space -------------------------------------------------------------------------------------------------


@given(LATITUDES, LONGITUDES)
def test_positions_to_space_and_back(lat: float, lon: float) -> None:
    back_lat, back_lon = lla_from_ecef(ecef_from_lla(lat, lon))
    assert back_lat == pytest.approx(lat, abs=1e-9)
    assert EARTH.inv(lon, lat, float(back_lon), float(back_lat))[2] < 1e-3  # at a pole, any longitude is correct


def test_points_in_space() -> None:
    points = ecef_from_lla(np.array([0.0, 0.0, 90.0, np.nan, 91.0]), np.array([0.0, 90.0, 0.0, 7.0, 7.0]))
    equator_m, pole_m = 6_378_137.0, 6_356_752.3142
    assert points[:3] == pytest.approx(np.array([[equator_m, 0, 0], [0, equator_m, 0], [0, 0, pole_m]]), abs=1e-4)
    assert np.isnan(points[3:]).all()


def test_threads_get_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-90, 90, 2000), rng.uniform(-180, 180, 2000)

    def compute(_: int) -> list[np.ndarray]:
        points = ecef_from_lla(lat, lon)
        return [points, *lla_from_ecef(points), geodesic_distances_m(lat, lon, lon / 2, lat)]

    expected = compute(0)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(compute, range(32)):
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


# --- headings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "expected"), [(0, 0), (359.5, 359.5), (360, 0), (720, 0), (-30, 330), (-360, 0), (-1e-20, 0)]
)
def test_wrap_heading(degrees: float, expected: float) -> None:
    assert wrap_heading(degrees) == expected
    assert np.isnan(wrap_heading(np.nan))


@pytest.mark.parametrize(
    ("year", "latitude", "longitude", "degrees"),
    [  # test values that are published with the World Magnetic Models of 2020 and 2025, at sea level
        (2020.0, 80, 0, -1.28),
        (2020.0, 0, 120, 0.16),
        (2020.0, -80, 240, 69.36),
        (2025.0, 80, 0, 1.28),
        (2025.0, 0, 120, -0.16),
        (2025.0, -80, 240, 68.78),
    ],
)
def test_magnetic_declination(year: float, latitude: float, longitude: float, degrees: float) -> None:
    assert magnetic_declination(latitude, longitude, year) == pytest.approx(degrees, abs=0.01)


def test_magnetic_declination_of_other_years_and_places() -> None:
    assert magnetic_declination(5, 5, 1990) == magnetic_declination(5, 5, 2010)
    assert magnetic_declination(5, 5, 2060) == pytest.approx(magnetic_declination(5, 5, 2029.9))
    assert np.isnan(magnetic_declination(86.5, 164, 2020))  # the magnetic pole
    assert np.isnan(magnetic_declination(np.nan, np.nan, 2020))


# --- boxes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("longitudes", "west", "east"),
    [
        ([5.0], 5, 5),
        ([-122.5, -122.4], -122.5, -122.4),
        ([179.5, -179.0], 179.5, -179),  # the Fiji islands
        ([178.0, 179.5, -179.0, -178.5], 178, -178.5),
        ([180.0, -180.0], 180, -180),
        ([-120.0, 0.0, 120.0], -120, 120),  # no gap is larger than the one at 180 degrees
        ([-170.0, -10.0, 60.0, 170.0], -10, -170),
        ([-75.0, 2.0, 139.0], -75, 139),
        ([-122.0, 2.0, 139.0], 139, 2),
    ],
)
def test_the_bounding_box_leaves_out_the_largest_gap(longitudes: list[float], west: float, east: float) -> None:
    latitudes = np.linspace(-1, 1, len(longitudes)) if len(longitudes) > 1 else np.zeros(1)
    assert bounding_box(latitudes, np.array(longitudes)) == (west, latitudes.min(), east, latitudes.max())


def test_no_positions_have_no_bounding_box() -> None:
    assert bounding_box(np.empty(0), np.empty(0)) is None


@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=20))
def test_the_bounding_box_contains_all_positions(positions: list[tuple[float, float]]) -> None:
    latitudes, longitudes = np.array(positions).T
    box = bounding_box(latitudes, longitudes)
    assert box is not None and in_box(latitudes, longitudes, box).all()
    assert (box[2] - box[0]) % 360 <= 360 * (1 - 1 / len(positions)) + 1e-9


@given(LATITUDES, LONGITUDES, st.floats(0, 1e6), AZIMUTHS)
def test_a_circle_is_in_the_box_around_it(lat: float, lon: float, radius_m: float, azimuth: float) -> None:
    other_lon, other_lat, _ = EARTH.fwd(lon, lat, azimuth, 0.99 * radius_m)  # 1%: the box is of a circle on a sphere
    assert in_box(np.array([other_lat]), np.array([other_lon]), box_around(lat, lon, radius_m))[0]


@given(LONGITUDES, st.floats(0, 359), LONGITUDES)
def test_boxes_cross_the_antimeridian(west: float, width: float, longitude: float) -> None:
    east = west + width if west + width <= 180 else west + width - 360
    away = (longitude - west) % 360
    found = bool(in_box(np.array([0.0]), np.array([longitude]), (west, -1, east, 1))[0])
    if min(abs(away - width), away, 360 - away) > 1e-6:  # not on the border
        assert found == (away < width)


def test_unknown_positions_are_in_no_box() -> None:
    nothing = np.array([np.nan])
    assert not in_box(nothing, nothing, (-180, -90, 180, 90))[0]
