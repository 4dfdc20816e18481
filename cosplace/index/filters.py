"""Restrict a search to photos near a point, in a box, in a span of time, or to given photos, before the search."""

import math
from dataclasses import dataclass

import numpy as np

from cosplace.errors import ConfigError
from cosplace.geo import EARTH_RADIUS_M, Box, box_around, great_circle_distances_m, in_box
from cosplace.index.records import Columns

NEAR_FORMAT = "LATITUDE,LONGITUDE,RADIUS_M"
BBOX_FORMAT = "WEST,SOUTH,EAST,NORTH"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFilter:
    """Photos that meet all given conditions; a photo without a position or time never meets a condition on it."""

    near: tuple[float, float, float] | None = None  # latitude, longitude in degrees, radius in meters, inclusive
    bbox: Box | None = None  # west, south, east, north; west > east crosses 180 degrees
    after: float | None = None  # seconds since 1970 (UTC), inclusive
    before: float | None = None  # seconds since 1970 (UTC), inclusive
    ids: tuple[int, ...] | None = None  # only these photos

    def __post_init__(self) -> None:
        given = [*(self.near or ()), *(self.bbox or ()), self.after or 0.0, self.before or 0.0]
        if not all(map(math.isfinite, given)):
            raise ConfigError(f"A filter needs finite numbers, got {self}.")
        if self.near is not None and not (abs(self.near[0]) <= 90 and abs(self.near[1]) <= 360 and self.near[2] >= 0):
            raise ConfigError(f"near must be latitude (-90 to 90), longitude and a radius in meters, got {self.near}.")
        if self.bbox is not None and not -90 <= self.bbox[1] <= self.bbox[3] <= 90:
            raise ConfigError(f"bbox must be west, south, east, north in degrees, south below north, got {self.bbox}.")
        if self.after is not None and self.before is not None and self.after > self.before:
            raise ConfigError(f"after ({self.after}) must not be later than before ({self.before}).")

    @property
    def is_everywhere(self) -> bool:
        """Whether there is no condition."""
        conditions = (self.near, self.bbox, self.after, self.before, self.ids)
        return all(condition is None for condition in conditions)

    @property
    def is_sql(self) -> bool:
        """Whether `sql` is the whole filter."""
        return self.near is None and self.ids is None

    def mask(self, columns: Columns) -> np.ndarray:
        """Which photos pass, (I,) bool."""
        passes = np.ones(len(columns), bool)
        if self.bbox is not None:
            passes &= in_box(columns.latitudes, columns.longitudes, self.bbox)
        if self.near is not None:
            passes &= self._is_near(columns)
        if self.after is not None:
            passes &= columns.times >= self.after
        if self.before is not None:
            passes &= columns.times <= self.before
        if self.ids is not None:
            passes &= np.isin(columns.ids, np.array(self.ids, np.int64))
        return passes

    def sql(self) -> str:
        """The filter as an SQL condition, which all photos that pass meet.

        For `near` it is the box around the circle, for `ids` the range from the first to the last.
        """
        conditions = []
        if self.bbox is not None:
            conditions.append(_box_sql(self.bbox))
        if self.near is not None:
            conditions.append(_box_sql(box_around(*self.near)))
        if self.after is not None:
            conditions.append(f"time >= {self.after!r}")
        if self.before is not None:
            conditions.append(f"time <= {self.before!r}")
        if self.ids:
            conditions.append(f"id BETWEEN {min(self.ids)} AND {max(self.ids)}")
        return " AND ".join(conditions) or "true"

    def _is_near(self, columns: Columns) -> np.ndarray:
        assert self.near is not None
        latitude, longitude, radius_m = self.near
        # First select a band of latitudes: then few distances are computed.
        found = np.flatnonzero(np.abs(columns.latitudes - latitude) <= np.degrees(radius_m / EARTH_RADIUS_M) + 1e-9)
        away_m = great_circle_distances_m(columns.latitudes[found], columns.longitudes[found], latitude, longitude)
        passes = np.zeros(len(columns), bool)
        passes[found[away_m <= radius_m]] = True
        return passes


def parse_near(text: str) -> tuple[float, float, float]:
    """Parse LATITUDE,LONGITUDE,RADIUS_M: degrees, and a radius in meters above 0.  Raises ConfigError."""
    latitude, longitude, radius_m = _parse_numbers("near", text, NEAR_FORMAT, "37.77,-122.42,500")
    if not -90 <= latitude <= 90:
        raise ConfigError(f"near: the latitude must be between -90 and 90, got {latitude:.12g}.")
    if not -180 <= longitude <= 180:
        raise ConfigError(f"near: the longitude must be between -180 and 180, got {longitude:.12g}.")
    if radius_m <= 0:
        raise ConfigError(f"near: the radius must be above 0 m, got {radius_m:.12g}.")
    return latitude, longitude, radius_m


def parse_bbox(text: str) -> Box:
    """Parse WEST,SOUTH,EAST,NORTH in degrees.  Raises ConfigError.

    Longitudes beyond 180 degrees are wrapped and latitudes are limited to 90 degrees, as a map that repeats the world
    sends such boxes.
    """
    west, south, east, north = _parse_numbers("bbox", text, BBOX_FORMAT, "-122.52,37.70,-122.35,37.83")
    if south > north:
        raise ConfigError(f"bbox: south must not be above north, got south {south:.12g} and north {north:.12g}.")
    if east - west >= 360:
        west, east = -180.0, 180.0
    return _wrap(west), _limit_latitude(south), _wrap(east), _limit_latitude(north)


def _parse_numbers(name: str, text: str, expected: str, example: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(expected.split(",")) or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{name} must be {expected}, got '{text[:80]}'. Use for example {example}.")
    return numbers


def _wrap(longitude: float) -> float:
    """Return the same longitude between -180 and 180; 180 stays 180, as it is the eastern side of a box."""
    return longitude if -180 <= longitude <= 180 else (longitude + 180) % 360 - 180


def _limit_latitude(latitude: float) -> float:
    return min(max(latitude, -90.0), 90.0)


def _box_sql(box: Box) -> str:
    west, south, east, north = box
    latitudes = f"latitude BETWEEN {south!r} AND {north!r}"
    if east - west >= 360:
        return f"{latitudes} AND longitude IS NOT NULL"
    low = (west + 180) % 360 - 180 - 1e-9
    high = low + (east - west) % 360 + 2e-9
    longitudes = f"longitude BETWEEN {low!r} AND {high!r}"
    if high >= 180:  # the box reaches across the antimeridian
        longitudes = f"({longitudes} OR longitude <= {high - 360!r})"
    if low < -180:  # 180 degrees is -180 degrees
        longitudes = f"({longitudes} OR longitude >= {low + 360!r})"
    return f"{latitudes} AND {longitudes}"
