"""Positions on the ground."""

import numpy as np
import pytest

from cosplace.geo import distances_m, utm_to_latlon


@pytest.mark.parametrize(
    ("east", "north", "zone", "letter", "latitude", "longitude"),
    [  # places whose both coordinates stand in names of public datasets
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


def test_distances() -> None:
    assert distances_m(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([3.0, 4.0])).tolist() == [5.0, np.hypot(2, 3)]
