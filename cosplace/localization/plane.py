"""Meters on the ground, anywhere on Earth: distances, east and north, mean positions.  Pure: arrays in, arrays out.

Everything passes through points of the WGS 84 ellipsoid in space (earth-centred x, y, z in meters), where neither the
antimeridian nor a pole nor the border of a UTM zone is special.  A distance is the length of the chord, made an arc of
the sphere that fits best halfway: wrong by less than 1e-8 of itself up to 10 km and 0.2 % up to 10,000 km; between
antipodes by up to 8 %.  A mean is taken in space and brought back to the ground, exact to a millimeter for neighbours
that are tens of meters apart.
"""

import numpy as np

SEMI_MAJOR_M = 6_378_137.0
FLATTENING = 1 / 298.257223563
ECCENTRICITY_2 = FLATTENING * (2 - FLATTENING)

Degrees = np.ndarray | float


def in_space(latitudes: Degrees, longitudes: Degrees) -> np.ndarray:
    """Points (..., 3) float64 in meters of positions (...) in degrees on the ellipsoid; nan stays nan."""
    lat, lon = np.radians(np.asarray(latitudes, np.float64)), np.radians(np.asarray(longitudes, np.float64))
    normal = SEMI_MAJOR_M / np.sqrt(1 - ECCENTRICITY_2 * np.sin(lat) ** 2)
    across = normal * np.cos(lat)
    return np.stack([across * np.cos(lon), across * np.sin(lon), (1 - ECCENTRICITY_2) * normal * np.sin(lat)], -1)


def on_ground(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes (...) in degrees below points (..., 3); longitudes in [-180, 180].

    For points within some kilometers of the ellipsoid (Bowring 1976: less than a micrometer of error there).
    """
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    across = np.hypot(x, y)
    minor = SEMI_MAJOR_M * (1 - FLATTENING)
    parametric = np.arctan2(z * SEMI_MAJOR_M, across * minor)
    latitudes = np.arctan2(
        z + ECCENTRICITY_2 / (1 - ECCENTRICITY_2) * minor * np.sin(parametric) ** 3,
        across - ECCENTRICITY_2 * SEMI_MAJOR_M * np.cos(parametric) ** 3,
    )
    return np.degrees(latitudes), np.degrees(np.arctan2(y, x))


def mean_radius_m(latitudes: Degrees) -> np.ndarray:
    """Radius of the sphere that fits the ellipsoid best there: the geometric mean of its two radii of curvature."""
    sine_2 = np.sin(np.radians(np.asarray(latitudes, np.float64))) ** 2
    return SEMI_MAJOR_M * np.sqrt(1 - ECCENTRICITY_2) / (1 - ECCENTRICITY_2 * sine_2)


def arc_m(chord_m: np.ndarray, radius_m: np.ndarray | float) -> np.ndarray:
    """Way on the ground between points that are `chord_m` apart in space."""
    return 2 * radius_m * np.arcsin(np.minimum(chord_m / (2 * radius_m), 1.0))


def ground_distances_m(
    latitudes: Degrees, longitudes: Degrees, other_latitudes: Degrees, other_longitudes: Degrees
) -> np.ndarray:
    """Meters on the ground between positions in degrees; arrays broadcast, nan where one is unknown."""
    apart = in_space(latitudes, longitudes) - in_space(other_latitudes, other_longitudes)
    middle = (np.abs(np.asarray(latitudes)) + np.abs(np.asarray(other_latitudes))) / 2
    return arc_m(np.linalg.norm(apart, axis=-1), mean_radius_m(middle))


def east_north_m(
    latitudes: Degrees, longitudes: Degrees, origin_latitude: float, origin_longitude: float
) -> np.ndarray:
    """Positions (..., 2) in meters east and north of an origin, at their true distance and in their true direction."""
    lat, lon = np.radians(origin_latitude), np.radians(origin_longitude)
    apart = in_space(latitudes, longitudes) - in_space(origin_latitude, origin_longitude)
    east = np.array([-np.sin(lon), np.cos(lon), 0.0])
    north = np.array([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    flat = np.stack([apart @ east, apart @ north], -1)
    length = np.linalg.norm(flat, axis=-1, keepdims=True)
    arc = arc_m(np.linalg.norm(apart, axis=-1, keepdims=True), mean_radius_m(origin_latitude))
    return flat * np.divide(arc, length, out=np.ones_like(arc), where=length > 0)


def moved(
    latitude: float, longitude: float, east_m: np.ndarray | float, north_m: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions in degrees so many meters east and north of one; for ways up to some kilometers."""
    lat, lon = np.radians(latitude), np.radians(longitude)
    east_m, north_m = np.asarray(east_m, np.float64), np.asarray(north_m, np.float64)
    east = np.array([-np.sin(lon), np.cos(lon), 0.0])
    north = np.array([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    up = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    radius = mean_radius_m(latitude)
    way = np.hypot(east_m, north_m)
    shrink = np.divide(radius * np.sin(way / radius), way, out=np.ones_like(way), where=way > 0)
    below = radius * (1 - np.cos(way / radius))
    flat = (shrink * east_m)[..., None] * east + (shrink * north_m)[..., None] * north
    return on_ground(in_space(latitude, longitude) + flat - below[..., None] * up)
