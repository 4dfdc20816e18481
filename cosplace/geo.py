"""Positions on Earth: UTM, latitude and longitude, points in space, distances in meters, boxes.

Everything is WGS 84.  Latitudes and longitudes are degrees, nan where unknown; nan stays nan.  pyproj computes
(docs/decisions/0011-geodesy.md); its `Geod` and `Transformer` may be used from several threads.  Pure: arrays in,
arrays out.
"""

import math
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache

import numpy as np
from pyproj import Geod, Proj, Transformer

Degrees = np.ndarray | float

LATLON, LATLON_HEIGHT, ECEF = 4326, 4979, 4978  # EPSG codes
SOUTHERN_BANDS = "CDEFGHJKLM"  # letters of the UTM latitude bands south of the equator
EARTH = Geod(ellps="WGS84")
EARTH_RADIUS_M = 6_371_008.8  # mean radius
WMM_YEARS = (2010.0, 2029.9)  # of the magnetic models


@lru_cache(maxsize=64)
def _transformer(source: int, target: int) -> Transformer:
    return Transformer.from_crs(source, target)


def compute(function: Callable[..., tuple], *values: Degrees) -> list[np.ndarray]:
    """Results of a function of pyproj as float64 arrays; arguments are broadcast, and the results have their shape.

    A single position is passed as plain numbers: with NumPy before 2.4, pyproj drops the shape of an array with one
    element, with a warning.
    """
    arrays = np.broadcast_arrays(*values)
    arguments = [array.item() for array in arrays] if arrays[0].size == 1 else arrays
    return [np.reshape(result, arrays[0].shape) for result in function(*arguments)]


# --- UTM -------------------------------------------------------------------------------------------------------------


def utm_to_latlon(east: np.ndarray, north: np.ndarray, zone: int, letter: str) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of UTM positions in meters, all in one zone."""
    utm = (32700 if letter.upper() in SOUTHERN_BANDS else 32600) + zone
    latitudes, longitudes = compute(_transformer(utm, LATLON).transform, east, north)
    return latitudes, longitudes


def utm_from_latlon(latitudes: Degrees, longitudes: Degrees, zone: int, *, south: bool) -> np.ndarray:
    """UTM east and north (..., 2) in meters, in one zone, also of positions outside it."""
    utm = (32700 if south else 32600) + zone
    return np.stack(compute(_transformer(LATLON, utm).transform, latitudes, longitudes), -1)


def utm_zones(latitudes: np.ndarray, longitudes: np.ndarray) -> np.ndarray:
    """UTM zone of each position, int8: 1 to 60 north of the equator, -1 to -60 south of it, 0 where unknown.

    Zones are 6 degrees wide everywhere, also where maps of Norway and Svalbard make exceptions.
    """
    known = np.isfinite(latitudes) & np.isfinite(longitudes)
    zones = np.floor((np.where(known, longitudes, 0) + 180) / 6) % 60 + 1
    return np.where(known, np.where(latitudes < 0, -zones, zones), 0).astype(np.int8)


def distances_m(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances in meters between UTM positions (..., 2), all in one zone, or between earth-centered points (..., 3).

    Those between points are along a circle of the mean radius: within 0.6% of geodesics, and exact for short ones.
    """
    if a.shape[-1] == 2:
        return np.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1])
    chords_m = np.linalg.norm(a - b, axis=-1)
    return 2 * EARTH_RADIUS_M * np.arcsin(np.minimum(chords_m / (2 * EARTH_RADIUS_M), 1))


# --- local maps ------------------------------------------------------------------------------------------------------

MapCenter = tuple[float, float]
"""Latitude and longitude of the center of a local map."""

LOCAL_MAP_RADIUS_M = 300_000.0  # scales are 0.11% too large there
LOCAL_MAP_ORIGIN_M = 500_000.0  # east and north of the center, so that no position of the map is negative or 0, 0


def local_map_center(latitudes: np.ndarray, longitudes: np.ndarray) -> MapCenter | None:
    """Center of a local map of all positions; None if they are too far apart for one.  Unknown positions are nan.

    The center is the median position, rounded to 0.1 degrees: it stays the same when a few positions are added.
    """
    points = ecef_from_lla(latitudes, longitudes)
    points = points[np.isfinite(points[:, 0])]
    if not len(points):
        return None
    latitude, longitude = (round(float(degrees), 1) for degrees in lla_from_ecef(np.median(points, axis=0)))
    chords_m = np.linalg.norm(points - ecef_from_lla(latitude, longitude), axis=1)
    return (latitude, longitude) if chords_m.max() <= LOCAL_MAP_RADIUS_M else None


def local_map_positions(latitudes: Degrees, longitudes: Degrees, center: MapCenter) -> np.ndarray:
    """East and north (..., 2) in meters on a local map: a transverse Mercator projection with scale 1 at its center.

    The borders of UTM zones, the equator, the antimeridian and the poles are not special there.
    """
    return np.stack(compute(_local_map(center), longitudes, latitudes), -1)


def local_map_error(latitudes: np.ndarray, longitudes: np.ndarray, center: MapCenter) -> float:
    """Largest error of distances on a local map, as a share of the distance; such as 0.0001 for 1 cm in 100 m."""
    east = local_map_positions(latitudes, longitudes, center)[..., 0]
    farthest = int(np.nanargmax(np.abs(east - LOCAL_MAP_ORIGIN_M)))  # scales depend on the distance from the meridian
    factors = _local_map(center).get_factors(longitudes[farthest], latitudes[farthest])
    return abs(float(factors.meridional_scale) - 1)


def _local_map(center: MapCenter) -> Proj:
    """A new projection for each call: threads must not share one."""
    return Proj(
        proj="tmerc", lat_0=center[0], lon_0=center[1], k=1, x_0=LOCAL_MAP_ORIGIN_M, y_0=LOCAL_MAP_ORIGIN_M,
        ellps="WGS84",
    )  # fmt: skip


# --- latitude and longitude ------------------------------------------------------------------------------------------


def geodesic_distances_m(
    latitudes: Degrees, longitudes: Degrees, other_latitudes: Degrees, other_longitudes: Degrees
) -> np.ndarray:
    """Lengths of the shortest paths on the ellipsoid between positions; arrays broadcast."""
    return compute(EARTH.inv, longitudes, latitudes, other_longitudes, other_latitudes)[2]


def geodesic_azimuths(
    latitudes: Degrees, longitudes: Degrees, other_latitudes: Degrees, other_longitudes: Degrees
) -> np.ndarray:
    """Directions from positions to others, where the shortest paths start, in [0, 360); arrays broadcast."""
    azimuths = compute(EARTH.inv, longitudes, latitudes, other_longitudes, other_latitudes)[0]
    return np.mod(np.mod(azimuths, 360), 360)  # a tiny negative number modulo 360 is rounded to 360


def positions_between(
    latitudes: Degrees, longitudes: Degrees, other_latitudes: Degrees, other_longitudes: Degrees, fractions: Degrees
) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes at fractions of the shortest paths from positions to others; arrays broadcast."""
    azimuths, _, lengths_m = compute(EARTH.inv, longitudes, latitudes, other_longitudes, other_latitudes)
    longitudes, latitudes, _ = compute(EARTH.fwd, longitudes, latitudes, azimuths, lengths_m * fractions)
    return latitudes, longitudes


def great_circle_distances_m(
    latitudes: np.ndarray, longitudes: np.ndarray, latitude: Degrees, longitude: Degrees
) -> np.ndarray:
    """Distances from positions to one point, or to as many others, on a sphere (haversine).

    They differ from geodesics by up to 0.6%.
    """
    # A formula, because users wait for it: a search near a point in a city of a million photos takes a million
    # distances, 30 ms on one core.  pyproj.Geod takes 470 ms.
    phi, phi_0 = np.radians(latitudes), np.radians(latitude)
    half_phi, half_lambda = (phi - phi_0) / 2, np.radians(longitudes - longitude) / 2
    share = np.sin(half_phi) ** 2 + np.cos(phi) * np.cos(phi_0) * np.sin(half_lambda) ** 2
    return 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(share, 0, 1)))


def destination(
    latitude: Degrees, longitude: Degrees, east_m: Degrees, north_m: Degrees
) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of the points a distance east and north of positions; arrays broadcast."""
    azimuths, lengths_m = np.degrees(np.arctan2(east_m, north_m)), np.hypot(east_m, north_m)
    longitudes, latitudes, _ = compute(EARTH.fwd, longitude, latitude, azimuths, lengths_m)
    return latitudes, longitudes


# --- points in space -------------------------------------------------------------------------------------------------


def ecef_from_lla(latitudes: Degrees, longitudes: Degrees, heights_m: Degrees = 0.0) -> np.ndarray:
    """Earth-centered points (..., 3) float64 in meters of positions (...); nan for invalid positions.

    heights_m: above the ellipsoid.
    The antimeridian, the poles and the borders of UTM zones are not special there, so positions are averaged in space.
    """
    points = np.stack(compute(_transformer(LATLON_HEIGHT, ECEF).transform, latitudes, longitudes, heights_m), -1)
    return np.where(np.isfinite(points), points, np.nan)  # pyproj returns inf for latitudes beyond 90 degrees


def lla_from_ecef(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes (...) of earth-centered points (..., 3); longitudes are in [-180, 180]."""
    latitudes, longitudes, _ = lla_height_from_ecef(points)
    return latitudes, longitudes


def lla_height_from_ecef(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitudes, longitudes and heights above the ellipsoid in meters (...) of earth-centered points (..., 3)."""
    x, y, z = np.moveaxis(points, -1, 0)
    latitudes, longitudes, heights_m = compute(_transformer(ECEF, LATLON_HEIGHT).transform, x, y, z)
    return latitudes, longitudes, heights_m


def enu_rotation(latitudes: Degrees, longitudes: Degrees) -> np.ndarray:
    """Directions east, north and up at positions: the rows of (..., 3, 3), earth-centered unit vectors.

    The product with an earth-centered direction gives its parts to the east, to the north and upward.
    """
    phi, lam = np.broadcast_arrays(np.radians(latitudes), np.radians(longitudes))
    zero = np.zeros(phi.shape)
    east = np.stack([-np.sin(lam), np.cos(lam), zero], -1)
    north = np.stack([-np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)], -1)
    up = np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], -1)
    return np.stack([east, north, up], -2)


# --- headings --------------------------------------------------------------------------------------------------------


def wrap_heading(degrees: float) -> float:
    """The same direction in [0, 360); nan stays nan."""
    return degrees % 360 % 360  # a tiny negative number modulo 360 is rounded to 360


def magnetic_declination(latitude: float, longitude: float, year: float) -> float:
    """Degrees that magnetic north lies east of true north, at sea level (World Magnetic Model).

    year: with fraction; before 2010 and after 2029, the nearest of these years is used, because the field changes by
    only about 0.1 degrees a year.  nan for an unknown position, and near the magnetic poles, where compasses fail.
    """
    if math.isnan(latitude) or math.isnan(longitude):
        return math.nan
    limited_year = min(max(year, WMM_YEARS[0]), WMM_YEARS[1])
    return _declination(round(latitude, 1), round(longitude, 1), round(limited_year, 1))


@lru_cache(maxsize=4096)
def _declination(latitude: float, longitude: float, year: float) -> float:
    from pygeomag import GeoMag

    # A new one for each call: an instance keeps the state of its last computation, which threads must not share.
    field = GeoMag(base_year=datetime(int(year), 1, 1)).calculate(latitude, longitude, 0, year)
    return math.nan if field.in_blackout_zone else float(field.d)


# --- boxes -----------------------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees; west is larger than east where the box crosses the antimeridian."""


def bounding_box(latitudes: np.ndarray, longitudes: np.ndarray) -> Box | None:
    """Smallest box that contains all positions (without nan); None without positions."""
    if not len(latitudes):
        return None
    west, east = float(longitudes.min()), float(longitudes.max())
    if east - west > 180:
        # The box is the circle of longitudes without its largest gap.  Below 180 degrees that is the gap at 180.
        ordered = np.sort(longitudes)
        gaps = np.diff(ordered)
        widest = int(gaps.argmax())
        if gaps[widest] > 360 - (east - west):
            west, east = float(ordered[widest + 1]), float(ordered[widest])
    return west, float(latitudes.min()), east, float(latitudes.max())


def box_around(latitude: float, longitude: float, radius_m: float) -> Box:
    """Box that contains the circle around a point."""
    height = math.degrees(radius_m / EARTH_RADIUS_M) + 1e-6
    south, north = max(-90.0, latitude - height), min(90.0, latitude + height)
    widest = math.cos(math.radians(max(abs(south), abs(north))))
    if widest * 180 <= height:  # the circle contains or touches a pole
        return -180.0, south, 180.0, north
    width = height / widest * 1.01
    return longitude - width, south, longitude + width, north


def in_box(latitudes: np.ndarray, longitudes: np.ndarray, bbox: Box) -> np.ndarray:
    """Which positions (degrees) are in west, south, east, north, borders included; nan is in no box."""
    west, south, east, north = bbox
    inside = (latitudes >= south) & (latitudes <= north)
    if east - west >= 360:
        return inside & ~np.isnan(longitudes)
    width = (east - west) % 360
    # Degrees east of the western border; the tolerance is for rounding by the modulo.
    eastwards = np.mod(longitudes - west, 360)
    return inside & ((eastwards <= width + 1e-9) | (eastwards >= 360 - 1e-9))
