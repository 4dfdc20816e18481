"""Which photos may be found: near a point, in a box, in a span of time.  Exact: a filter goes before the search."""

from dataclasses import dataclass

import numpy as np

from cosplace.errors import ConfigError
from cosplace.index.records import Columns

EARTH_RADIUS_M = 6_371_008.8  # mean radius of WGS 84; great circles on it are right to 0.6 %


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFilter:
    """Photos that meet all that is given; one whose position or time is asked for and unknown is left out."""

    near: tuple[float, float, float] | None = None  # latitude, longitude in degrees, radius in meters, inclusive
    bbox: tuple[float, float, float, float] | None = None  # west, south, east, north; west > east crosses 180 degrees
    after: float | None = None  # seconds since 1970 (UTC), inclusive
    before: float | None = None  # seconds since 1970 (UTC), inclusive

    def __post_init__(self) -> None:
        given = [*(self.near or ()), *(self.bbox or ()), self.after or 0.0, self.before or 0.0]
        if not np.isfinite(given).all():
            raise ConfigError(f"A filter holds a number that is not finite: {self}.")
        if self.near is not None and not (abs(self.near[0]) <= 90 and abs(self.near[1]) <= 360 and self.near[2] >= 0):
            raise ConfigError(f"near is {self.near}: give latitude (-90 … 90), longitude and a radius in meters.")
        if self.bbox is not None and not -90 <= self.bbox[1] <= self.bbox[3] <= 90:
            raise ConfigError(f"bbox is {self.bbox}: give west, south, east, north in degrees, south below north.")
        if self.after is not None and self.before is not None and self.after > self.before:
            raise ConfigError(f"after ({self.after}) is later than before ({self.before}): no photo can be both.")

    @property
    def is_everywhere(self) -> bool:
        """Whether nothing is asked for."""
        return self.near is None and self.bbox is None and self.after is None and self.before is None

    def mask(self, columns: Columns) -> np.ndarray:
        """(I,) bool: which photos pass."""
        passes = np.ones(len(columns), bool)
        if self.bbox is not None:
            passes &= in_box(columns.latitudes, columns.longitudes, self.bbox)
        if self.near is not None:
            passes &= self._is_near(columns)
        if self.after is not None:
            passes &= columns.times >= self.after
        if self.before is not None:
            passes &= columns.times <= self.before
        return passes

    def _is_near(self, columns: Columns) -> np.ndarray:
        assert self.near is not None
        latitude, longitude, radius_m = self.near
        # A band of latitudes first: the great circle is then measured for few.
        found = np.flatnonzero(np.abs(columns.latitudes - latitude) <= np.degrees(radius_m / EARTH_RADIUS_M) + 1e-9)
        away_m = great_circle_m(columns.latitudes[found], columns.longitudes[found], latitude, longitude)
        passes = np.zeros(len(columns), bool)
        passes[found[away_m <= radius_m]] = True
        return passes


def in_box(latitudes: np.ndarray, longitudes: np.ndarray, bbox: tuple[float, float, float, float]) -> np.ndarray:
    """Which positions (degrees) lie in west, south, east, north, borders included; none whose position is nan."""
    west, south, east, north = bbox
    inside = (latitudes >= south) & (latitudes <= north)
    if east - west >= 360:
        return inside & ~np.isnan(longitudes)
    width = (east - west) % 360
    # Counted from the western border eastwards; the slack is for the borders, which the modulo blurs.
    eastwards = np.mod(longitudes - west, 360)
    return inside & ((eastwards <= width + 1e-9) | (eastwards >= 360 - 1e-9))


def great_circle_m(latitudes: np.ndarray, longitudes: np.ndarray, latitude: float, longitude: float) -> np.ndarray:
    """Distances in meters from positions to one point, all in degrees, on a sphere (haversine)."""
    phi, phi_0 = np.radians(latitudes), np.radians(latitude)
    half_phi, half_lambda = (phi - phi_0) / 2, np.radians(longitudes - longitude) / 2
    share = np.sin(half_phi) ** 2 + np.cos(phi) * np.cos(phi_0) * np.sin(half_lambda) ** 2
    return 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(share, 0, 1)))
