"""Poses of Nerfstudio: transforms.json, with camera-to-world matrices.

Its cameras have x to the right, y up, and look along -z.  `applied_transform` (and `applied_scale`) are undone, so that
coordinates are those of the reconstruction that the file was made from.  The file does not say where on Earth they are.
Format: https://docs.nerf.studio/quickstart/data_conventions.html.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError
from cosplace.importing.photo_references import is_path, json_head, number, read_json, text
from cosplace.importing.pose_positions import PosePositions
from cosplace.importing.poses import CameraPoses, field_of_view, number_array
from cosplace.importing.records import Problem

FILE_NAME = "transforms.json"
FROM_OPENGL = np.diag([1.0, -1.0, -1.0])  # between y up, looking along -z, and y down, looking along z
SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG")  # that names in the file may lack


def detects(path: Path) -> bool:
    """Whether a path is a transforms.json, or a folder with one."""
    file = _file_of(path)
    head = json_head(file)
    return head[:1] == b"{" and (b'"transform_matrix"' in head or file.name == FILE_NAME)


def read(paths: Sequence[Path], settings: ImportSettings) -> PosePositions:
    """The poses of the files.  Raises DatasetError for a file without poses."""
    return PosePositions([read_transforms(_file_of(path)) for path in paths], settings)


def read_transforms(path: Path) -> CameraPoses:
    """The poses of a file.  Raises DatasetError for a file without poses."""
    content = read_json(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise DatasetError(f'{path} has no list "frames". Create it with `ns-process-data`.')
    linear, shift = _applied_transform(content, path)
    undo = np.linalg.inv(linear)
    names, centers, rotations, views, problems = [], [], [], [], []
    for index, content_of_frame in enumerate(frames):
        frame = content_of_frame if isinstance(content_of_frame, dict) else {}
        name, matrix = text(frame.get("file_path")), number_array(frame.get("transform_matrix"), (4, 4))
        if not name or matrix is None or np.linalg.det(matrix[:3, :3]) <= 0:
            reason = "has no file_path, or no transform_matrix with a rotation"
            problems.append(Problem(name=f"{path}: frame {index + 1}", reason=reason))
            continue
        rotation = undo @ matrix[:3, :3] @ FROM_OPENGL
        names.append(_with_suffix(name, path.parent))
        centers.append(undo @ (matrix[:3, 3] - shift))
        rotations.append(rotation / np.linalg.norm(rotation, axis=0))
        views.append(_view(content | frame))
    return CameraPoses(
        source=path,
        names=tuple(names),
        folders=(path.parent,),
        centers=np.array(centers, np.float64).reshape(-1, 3),
        rotations=np.array(rotations, np.float64).reshape(-1, 3, 3),
        fields_of_view=np.array([fov for fov, _ in views], np.float64),
        projections=tuple(projection for _, projection in views),
        times=np.full(len(names), np.nan),
        problems=tuple(problems),
    )


def _applied_transform(content: dict[str, Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The linear part (3, 3) and the shift (3,) that were applied to the coordinates of the reconstruction."""
    if "applied_transform" not in content:
        matrix: np.ndarray | None = np.eye(4)
    else:
        matrix = number_array(content["applied_transform"], (3, 4))
        if matrix is None:
            matrix = number_array(content["applied_transform"], (4, 4))
    scale = number(content["applied_scale"]) if "applied_scale" in content else 1.0
    if matrix is None or not scale > 0 or not np.linalg.det(matrix[:3, :3]) > 1e-12:
        raise DatasetError(
            f'{path}: "applied_transform" must be a rotation with a shift, 3 x 4 numbers, and "applied_scale" a '
            f"positive number. Create the file again with `ns-process-data`."
        )
    return scale * matrix[:3, :3], scale * matrix[:3, 3]


def _view(values: dict[str, Any]) -> tuple[float, str]:
    """Horizontal field of view and projection of a frame.  values: those of the file, replaced by its own."""
    kind = text(values.get("camera_model")).upper()
    projection = "equirectangular" if kind == "EQUIRECTANGULAR" else "fisheye" if "FISHEYE" in kind else "perspective"
    fov = field_of_view(number(values.get("fl_x")), number(values.get("w")), projection=projection)
    angle_x = number(values.get("camera_angle_x"))
    return (float(np.degrees(angle_x)) if np.isnan(fov) and 0 < angle_x < np.pi else fov), projection


def _with_suffix(name: str, folder: Path) -> str:
    """The name of a photo with its suffix, if the file exists under that name."""
    if Path(name).suffix or not is_path(name + SUFFIXES[0]):
        return name
    return next((name + suffix for suffix in SUFFIXES if (folder / (name + suffix)).is_file()), name)


def _file_of(path: Path) -> Path:
    return path / FILE_NAME if path.is_dir() else path
