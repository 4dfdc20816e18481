"""Poses of an OpenSfM reconstruction: reconstruction.json, with reference_lla.json for where it is on Earth.

The file has a list of reconstructions.  Rotations are axis times angle, from the world to the camera; coordinates are
east, north and up of the reference.  Format: https://opensfm.org/docs/dataset.html.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError
from cosplace.importing.photo_references import json_head, number, read_json
from cosplace.importing.pose_positions import PosePositions
from cosplace.importing.poses import CameraPoses, Georeference, field_of_view, local_frame, number_array
from cosplace.importing.records import Problem

FILE_NAME, REFERENCE_NAME = "reconstruction.json", "reference_lla.json"
FISHEYE = ("fisheye", "fisheye_opencv", "fisheye62", "fisheye624", "dual")
SPHERICAL = ("spherical", "equirectangular")
UP = np.array([0.0, 0.0, 1.0])


def detects(path: Path) -> bool:
    """Whether a path is a reconstruction.json, or a folder with one."""
    head = json_head(_file_of(path))
    return head[:1] == b"[" and b'"cameras"' in head


def read(paths: Sequence[Path], settings: ImportSettings) -> PosePositions:
    """All reconstructions of the files.  Raises DatasetError for a file without shots."""
    return PosePositions([one for path in paths for one in read_reconstructions(_file_of(path))], settings)


def read_reconstructions(path: Path) -> list[CameraPoses]:
    """The reconstructions of a file.  Raises DatasetError for a file without shots."""
    content = read_json(path)
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    found = [_read_one(part, path) for part in parts if isinstance(part.get("shots"), dict) and part["shots"]]
    if not found:
        raise DatasetError(f"{path} has no shots. Run `opensfm reconstruct` first.")
    return found


def _read_one(part: dict[str, Any], path: Path) -> CameraPoses:
    cameras = part["cameras"] if isinstance(part.get("cameras"), dict) else {}
    names, centers, rotations, views, times, problems = [], [], [], [], [], []
    for name, content in part["shots"].items():
        shot = content if isinstance(content, dict) else {}
        axis_angle, translation = number_array(shot.get("rotation"), (3,)), number_array(shot.get("translation"), (3,))
        if axis_angle is None or translation is None:
            problems.append(Problem(name=f"{path}: {name}", reason="its shot has no rotation or translation"))
            continue
        rotation = rotation_of(axis_angle).T  # from the camera to the world
        names.append(name)
        centers.append(-rotation @ translation)
        rotations.append(rotation)
        views.append(_view(cameras.get(shot.get("camera") if isinstance(shot.get("camera"), str) else "")))
        time = number(shot.get("capture_time"))
        times.append(time if time > 0 else np.nan)  # 0: unknown
    return CameraPoses(
        source=path,
        names=tuple(names),
        folders=(path.parent / "images", path.parent),
        centers=np.array(centers, np.float64).reshape(-1, 3),
        rotations=np.array(rotations, np.float64).reshape(-1, 3, 3),
        fields_of_view=np.array([fov for fov, _ in views], np.float64),
        projections=tuple(projection for _, projection in views),
        times=np.array(times, np.float64),
        up=UP,
        georeference=_reference(part, path),
        problems=tuple(problems),
    )


def rotation_of(axis_angle: np.ndarray) -> np.ndarray:
    """The rotation matrix (3, 3) about an axis by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(axis_angle))
    x, y, z = axis_angle / angle if angle else axis_angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _reference(part: dict[str, Any], path: Path) -> Georeference | None:
    """The local frame of reference_lla, in the reconstruction or in the file next to it; None without, or at 0, 0."""
    own, file = part.get("reference_lla"), path.with_name(REFERENCE_NAME)
    reference = own if isinstance(own, dict) else read_json(file) if file.is_file() else None
    if not isinstance(reference, dict):
        return None
    latitude, longitude = number(reference.get("latitude")), number(reference.get("longitude"))
    if latitude == longitude == 0:  # no fix
        return None
    altitude_m = number(reference.get("altitude"))
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        raise DatasetError(f"{file}: the reference has no valid latitude and longitude. Fix it, or use --origin.")
    return local_frame(latitude, longitude, 0.0 if np.isnan(altitude_m) else altitude_m)


def _view(camera: Any) -> tuple[float, str]:
    """Horizontal field of view and projection of a camera.  Focal lengths are in units of the longer side."""
    if not isinstance(camera, dict):
        return np.nan, ""
    kind = str(camera.get("projection_type", ""))
    projection = "equirectangular" if kind in SPHERICAL else "fisheye" if kind in FISHEYE else "perspective"
    width, height = number(camera.get("width")), number(camera.get("height"))
    focal = number(camera.get("focal_x", camera.get("focal")))
    return field_of_view(focal * max(width, height), width, projection=projection), projection


def _file_of(path: Path) -> Path:
    return path / FILE_NAME if path.is_dir() else path
