"""Poses of cameras in a reconstruction, and where on Earth they are.

Axes of a camera: x to the right, y down, z forward, along the optical axis.  A georeference computes earth-centered
points from the coordinates of a reconstruction.  Directions are differences of such points, so the convergence of the
grid of a map projection, its units and its scale need no formulas of their own.  Pure.  Legend: N cameras.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.importing import PoseSettings
from cosplace.errors import ConfigError, DatasetError
from cosplace.geo import ecef_from_lla, enu_rotation, lla_from_ecef, lla_height_from_ecef
from cosplace.importing.coordinate_systems import is_inside, parse_crs
from cosplace.importing.photo_references import number, read_json
from cosplace.importing.records import Problem
from cosplace.importing.similarity import Similarity

Georeference = Callable[[np.ndarray], np.ndarray]
"""From points (..., 3) of a reconstruction to earth-centered points (..., 3) in meters; nan where undefined."""

RIGHT, DOWN, FORWARD = range(3)  # columns of a rotation from a camera
ALONG_VERTICAL = 0.02  # a camera within 1.1 degrees of the vertical has no heading
MAX_HEIGHT_M = 100_000.0
Position = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraPoses:
    """Cameras of one reconstruction, in its coordinates."""

    source: Path
    names: tuple[str, ...]  # of the photos, as paths below one of `folders`
    folders: tuple[Path, ...]  # that may contain the photos
    centers: np.ndarray  # (N, 3) float64
    rotations: np.ndarray  # (N, 3, 3), from the camera to the world
    fields_of_view: np.ndarray  # (N,) horizontal, degrees; nan where unknown
    projections: tuple[str, ...]  # perspective, fisheye, equirectangular or ""
    times: np.ndarray  # (N,) seconds since 1970 (UTC); nan where unknown
    up: np.ndarray | None = None  # (3,) direction that points up, if the source knows it
    georeference: Georeference | None = None  # if the source has one
    problems: tuple[Problem, ...] = field(default=())  # cameras that were left out

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedCameras:
    """Where cameras are, and where they look; (N,) float64 each, nan where unknown."""

    latitudes: np.ndarray
    longitudes: np.ndarray
    altitudes_m: np.ndarray  # in the height system of the georeference
    headings: np.ndarray  # degrees clockwise from true north
    pitches: np.ndarray  # degrees, up is positive
    rolls: np.ndarray  # degrees, clockwise is positive


def place(poses: CameraPoses, georeference: Georeference) -> PlacedCameras:
    """Positions and directions of the cameras of a reconstruction."""
    centers = georeference(poses.centers)  # (N, 3)
    axes = [georeference(poses.centers + poses.rotations[:, :, axis]) - centers for axis in (RIGHT, DOWN, FORWARD)]
    latitudes, longitudes, heights_m = lla_height_from_ecef(centers)
    to_enu = enu_rotation(latitudes, longitudes)
    headings, pitches, rolls = heading_pitch_roll(to_enu @ np.stack(axes, -1))
    wrong = ~np.isfinite(latitudes + longitudes) | ~(np.abs(heights_m) <= MAX_HEIGHT_M)
    columns = (latitudes, longitudes, heights_m, headings, pitches, rolls)
    return PlacedCameras(
        **dict(zip(PlacedCameras.__slots__, (np.where(wrong, np.nan, one) for one in columns), strict=True))
    )


def heading_pitch_roll(enu_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heading, pitch and roll in degrees, (...) each, of cameras with rotations (..., 3, 3) to east, north and up.

    Heading: of the optical axis, clockwise from north, in [0, 360); nan for a camera that looks straight up or down.
    Pitch: of the optical axis, up is positive.  Roll: of the camera about its axis, clockwise as its user sees it.
    The columns need not have length 1.
    """
    columns = enu_from_camera / np.linalg.norm(enu_from_camera, axis=-2, keepdims=True)
    east, north, up = np.moveaxis(columns[..., FORWARD], -1, 0)
    headings = np.mod(np.mod(np.degrees(np.arctan2(east, north)), 360), 360)  # a tiny negative number becomes 360
    pitches = np.degrees(np.arctan2(up, np.hypot(east, north)))
    rolls = np.degrees(np.arctan2(-columns[..., 2, RIGHT], -columns[..., 2, DOWN]))
    is_vertical = np.hypot(east, north) < ALONG_VERTICAL
    return np.where(is_vertical, np.nan, headings), pitches, np.where(is_vertical, np.nan, rolls)


def field_of_view(focal_length: float, width: float, *, projection: str = "perspective") -> float:
    """Horizontal field of view in degrees.  focal_length, width: in one unit; nan where unknown."""
    if projection == "equirectangular":
        return 360.0
    if not (focal_length > 0 and width > 0):
        return np.nan
    if projection == "fisheye":  # equidistant: distances from the center are proportional to angles
        return min(float(np.degrees(width / focal_length)), 360.0)
    return float(np.degrees(2 * np.arctan(width / (2 * focal_length))))


# --- georeferences ---------------------------------------------------------------------------------------------------


def local_frame(latitude: float, longitude: float, altitude_m: float) -> Georeference:
    """Coordinates east, north and up in meters, in the plane that touches Earth at an origin."""
    origin, axes = ecef_from_lla(latitude, longitude, altitude_m), enu_rotation(latitude, longitude)
    return lambda points: points @ axes + origin


def to_local_frame(points: np.ndarray, latitude: float, longitude: float, altitude_m: float) -> np.ndarray:
    """East, north and up (..., 3) of earth-centered points: the inverse of `local_frame`."""
    return (points - ecef_from_lla(latitude, longitude, altitude_m)) @ enu_rotation(latitude, longitude).T


def coordinate_system(code: str) -> Georeference:
    """Coordinates of an EPSG code: x to the east and y to the north of a map projection, or earth-centered.

    Raises ConfigError for other codes.
    """
    from pyproj import Transformer

    system, _ = parse_crs(code)
    transformer = Transformer.from_crs(system.to_3d(), 4978, always_xy=True)
    units = {axis.unit_name for axis in system.axis_info}
    if not (system.is_projected or system.is_geocentric) or not units <= {"metre", "meter"}:
        raise ConfigError(
            f"--crs: {code[:60]} ({system.name}) is not in meters. Use a map projection such as EPSG:25832, use "
            f"EPSG:4978, or set --origin."
        )

    def to_earth(points: np.ndarray) -> np.ndarray:
        x, y, z = points.reshape(-1, 3).T.tolist()
        found = np.stack(transformer.transform(x, y, z), -1)
        _refuse_outside(found, points, system, code)
        return np.where(np.isfinite(found), found, np.nan).reshape(points.shape)

    return to_earth


def _refuse_outside(found: np.ndarray, points: np.ndarray, system: Any, code: str) -> None:
    """Raise DatasetError if most points, earth-centered (N, 3), are outside the area of a coordinate system."""
    if system.is_geocentric or not len(found):
        return
    known = found[np.isfinite(found).all(axis=1)]
    if is_inside(system, *lla_from_ecef(known)).sum() < len(found) / 2:
        x, y = points.reshape(-1, 3)[0, :2]
        raise DatasetError(
            f"--crs {code[:60]}: most positions, such as {x:g}, {y:g}, are outside its area. If the reconstruction has "
            f"its own coordinates, omit --crs, or set --origin."
        )


def given_georeference(settings: PoseSettings, crs: str) -> Georeference | None:
    """The georeference that the user gives by flags; None without any.

    Raises ConfigError for flags that contradict each other or are invalid, DatasetError for a file that is.
    """
    if settings.origin and crs:
        raise ConfigError("--origin and --crs contradict each other. Use only one of them.")
    origin = parse_origin(settings.origin) if settings.origin else None
    if settings.similarity is not None:
        similarity, own_origin = read_similarity(settings.similarity)
        if crs:
            to_earth = coordinate_system(crs)
        elif (origin or own_origin) is None:
            raise ConfigError(
                f'{settings.similarity} has no "origin". Add it to the file, or use --origin LAT,LON,ALT.'
            )
        else:
            to_earth = local_frame(*(origin or own_origin or (0.0, 0.0, 0.0)))
        return lambda points: to_earth(similarity(points))
    if crs:
        return coordinate_system(crs)
    return local_frame(*origin) if origin else None


def parse_origin(text: str) -> Position:
    """Latitude, longitude and altitude (0 if missing) of --origin.  Raises ConfigError."""
    try:
        latitude, longitude, altitude_m = ([float(part) for part in text.split(",")] + [0.0])[:3]
    except ValueError:
        latitude = longitude = altitude_m = np.nan
    if text.count(",") > 2 or not _is_position(latitude, longitude, altitude_m):
        raise ConfigError(f"--origin must be LAT,LON or LAT,LON,ALT in degrees and meters, got '{text}'.")
    return latitude, longitude, altitude_m


def read_similarity(path: Path) -> tuple[Similarity, Position | None]:
    """A similarity to east, north and up in meters, and the origin of these if the file has it.

    The file is JSON: {"scale": s, "rotation": 3 x 3, "translation": [x, y, z], "origin": [lat, lon, alt]}.
    Raises DatasetError for a file that is not.
    """
    content = read_json(path)
    content = content if isinstance(content, dict) else {}
    scale = number(content.get("scale"))
    rotation, translation = (
        number_array(content.get("rotation"), (3, 3)),
        number_array(content.get("translation"), (3,)),
    )
    if rotation is None or translation is None or not scale > 0:
        raise DatasetError(
            f'{path} must have a positive "scale", a "rotation" of 3 x 3 numbers and a "translation" of 3 numbers.'
        )
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise DatasetError(f'{path}: "rotation" is not a rotation matrix. Divide it by its scale.')
    origin = number_array(content.get("origin"), (3,))
    if "origin" in content and (origin is None or not _is_position(*origin)):
        raise DatasetError(f'{path}: "origin" must be [latitude, longitude, altitude] in degrees and meters.')
    similarity = Similarity(scale=scale, rotation=rotation, translation=translation)
    return similarity, None if origin is None else (float(origin[0]), float(origin[1]), float(origin[2]))


def number_array(value: object, shape: tuple[int, ...]) -> np.ndarray | None:
    """An array of JSON, float64; None if it has another shape or values that are not finite."""
    try:
        found = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found.shape == shape and np.isfinite(found).all() else None


def _is_position(latitude: float, longitude: float, altitude_m: float) -> bool:
    return abs(latitude) <= 90 and abs(longitude) <= 180 and abs(altitude_m) <= MAX_HEIGHT_M
