"""Positions on the ground: UTM, latitude and longitude, headings, distances in meters.  Pure: arrays in, arrays out.

Positions of images are UTM coordinates in meters (WGS 84); headings are degrees clockwise from north.
"""

from functools import lru_cache

import numpy as np
from pyproj import Transformer

SOUTHERN_BANDS = "CDEFGHJKLM"  # letters of the latitude bands below the equator


@lru_cache(maxsize=16)
def _transformer(zone: int, southern: bool) -> Transformer:
    return Transformer.from_crs((32700 if southern else 32600) + zone, 4326)


def utm_to_latlon(east: np.ndarray, north: np.ndarray, zone: int, letter: str) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude in degrees of UTM positions in meters that share one zone."""
    latitude, longitude = _transformer(zone, letter.upper() in SOUTHERN_BANDS).transform(east, north)
    return np.asarray(latitude), np.asarray(longitude)


def distances_m(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances in meters between UTM positions (..., 2) of one zone."""
    return np.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1])
