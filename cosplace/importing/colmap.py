"""Poses of COLMAP: a model in binary or text files, and pose priors of a database.

pycolmap reads models.  Databases are read by SQLite, because pycolmap changes those of other versions when it opens
them.  Formats: https://colmap.github.io/format.html, https://colmap.github.io/database.html.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError, one_line
from cosplace.geo import lla_height_from_ecef
from cosplace.importing.packages import optional_module
from cosplace.importing.pose_positions import PosePositions, PositionPriors
from cosplace.importing.poses import CameraPoses, given_georeference
from cosplace.importing.records import Problem
from cosplace.photos.paths import printable

MODEL_FILES = ("cameras", "images", "points3D")
MODEL_PLACES = ("", "sparse", "sparse/0")  # of a model below the folder of a project
DATABASE_START = b"SQLite format 3\0"
WGS84, CARTESIAN = 0, 1  # coordinate_system of a pose prior
CAMERA_SENSOR = 0
MIN_AGREEMENT = 0.9  # length of the mean of the directions that cameras measure as up


def detects(path: Path) -> bool:
    """Whether a path is a folder with a model, a folder of a project with one, or a database."""
    return _model_folder(path) is not None if path.is_dir() else _is_database(path)


def read(paths: Sequence[Path], settings: ImportSettings) -> PosePositions:
    """Models and pose priors.  The database next to a model, in the folder of the project, is read, too.

    Raises DatasetError for a model that cannot be read, and for a database without pose priors.
    """
    models, databases = [], []
    for path in paths:
        folder = _model_folder(path) if path.is_dir() else None
        if folder is None:
            databases.append(path)
            continue
        models.append(read_model(folder))
        if _is_database(path / "database.db") and path / "database.db" not in paths:
            databases.append(path / "database.db")
    gravities = {name: gravity for path in databases for name, gravity in _read_rows(path, _gravity_rows)}
    models = [replace(model, up=_up_of(model, gravities)) for model in models]
    priors = []
    for path in databases:
        found = read_priors(path, settings)
        if found is not None:
            priors.append(found)
        elif not models:
            raise DatasetError(f"{path} has no pose priors with positions. Import the model that was built from it.")
    return PosePositions(models, settings, priors)


# --- models ----------------------------------------------------------------------------------------------------------


def read_model(folder: Path) -> CameraPoses:
    """The cameras of a model.  Raises DatasetError for a damaged model, and without pycolmap."""
    pycolmap = optional_module("pycolmap", "Reading a COLMAP model", "colmap")
    if not _suffix_of(folder, MODEL_FILES):
        raise DatasetError(f"{folder} has no points3D file. Copy all files of the model: {', '.join(MODEL_FILES)}.")
    try:
        model = pycolmap.Reconstruction(folder)
    except (ValueError, IndexError, KeyError, RuntimeError, OSError, MemoryError) as error:
        raise DatasetError(
            one_line(f"{folder} cannot be read as a COLMAP model ({_reason(error)}). Export it again.")
        ) from error
    views = {number: _view(camera) for number, camera in model.cameras.items()}
    names, centers, rotations, cameras, problems = [], [], [], [], []
    for number in sorted(model.reg_image_ids()):
        image = model.images[number]
        try:
            name = image.name
        except UnicodeDecodeError:
            problems.append(Problem(name=f"{folder}: image {number}", reason="its name is not UTF-8"))
            continue
        matrix = image.cam_from_world().matrix()  # (3, 4)
        if not np.isfinite(matrix).all():
            problems.append(Problem(name=f"{folder}: {name}", reason="its pose contains values that are not finite"))
            continue
        names.append(name)
        centers.append(-matrix[:, :3].T @ matrix[:, 3])
        rotations.append(matrix[:, :3].T)
        cameras.append(views[image.camera_id])
    if not names:
        raise DatasetError(f"{folder} has no images with a pose. Run `colmap mapper` first, or check its files.")
    if len(set(names)) < len(names):  # text files end a name at its first space
        raise DatasetError(
            f"{folder} has several images named '{max(names, key=names.count)}'. If names have spaces, convert the "
            f"model to binary files with `colmap model_converter`."
        )
    return CameraPoses(
        source=folder,
        names=tuple(names),
        folders=_image_folders(folder),
        centers=np.array(centers, np.float64).reshape(-1, 3),
        rotations=np.array(rotations, np.float64).reshape(-1, 3, 3),
        fields_of_view=np.array([fov for fov, _ in cameras], np.float64),
        projections=tuple(projection for _, projection in cameras),
        times=np.full(len(names), np.nan),
        problems=tuple(problems),
    )


def _view(camera: Any) -> tuple[float, str]:
    """Horizontal field of view and projection of a camera: the angle between the rays at the left and right border."""
    name = camera.model_name
    if name == "EQUIRECTANGULAR":
        return 360.0, "equirectangular"
    projection = "fisheye" if "FISHEYE" in name or name in ("FOV", "EUCM") else "perspective"
    middle = camera.height / 2
    rays = [camera.cam_ray_from_img(np.array([x, middle])) for x in (0.0, float(camera.width))]
    if any(ray is None or not np.isfinite(ray).all() for ray in rays):
        return np.nan, projection
    left, right = (float(np.degrees(np.arctan2(ray[0], ray[2]))) for ray in rays)
    return (right - left if right > left else np.nan), projection


def _model_folder(path: Path) -> Path | None:
    """The folder of the model in a path; None without one."""
    return next((path / place for place in MODEL_PLACES if _suffix_of(path / place, MODEL_FILES[:2])), None)


def _suffix_of(folder: Path, names: Sequence[str]) -> str:
    """The suffix with which a folder has all of some files; empty if there is none."""
    for suffix in (".bin", ".txt"):
        if all((folder / (name + suffix)).is_file() for name in names):
            return suffix
    return ""


def _image_folders(model: Path) -> tuple[Path, ...]:
    """Where the photos of a model may be: in images/ of the folder of the project, or next to the model."""
    absolute = model.absolute()
    above = [absolute, *absolute.parents[:2]]
    found = [folder / "images" for folder in above if (folder / "images").is_dir()]
    return (*found, model)


def _reason(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__


# --- pose priors -----------------------------------------------------------------------------------------------------


def read_priors(path: Path, settings: ImportSettings) -> PositionPriors | None:
    """The positions of the pose priors of a database; None without any.

    Cartesian positions need --origin or --crs; without them, they are left out.
    Raises DatasetError for a file that is not a database of COLMAP.
    """
    rows = _read_rows(path, _prior_rows)
    georeference = given_georeference(settings.poses, settings.tables.crs)
    names, positions, accuracies_m, num_cartesian = [], [], [], 0
    for name, position, covariance, system in rows:
        place = _numbers(position, 3)
        if place is None:
            continue
        if system == CARTESIAN:
            num_cartesian += 1
            if georeference is None:
                continue
            place = np.array(lla_height_from_ecef(georeference(place)))
        elif system != WGS84:
            continue
        if not (abs(place[0]) <= 90 and abs(place[1]) <= 180) or not place[:2].any():
            continue
        matrix = _numbers(covariance, 9)
        variance = np.nan if matrix is None else matrix.reshape(3, 3)[[0, 1], [0, 1]].max()
        names.append(str(name))
        positions.append(place)
        accuracies_m.append(float(np.sqrt(variance)) if variance > 0 else np.nan)
    if not names and num_cartesian:
        raise DatasetError(
            f"{printable(path)} has cartesian pose priors. Say where their coordinates are: --origin LAT,LON,ALT or "
            f"--crs EPSG:CODE."
        )
    if not names:
        return None
    return PositionPriors(
        source=path,
        names=tuple(names),
        folders=_image_folders(path.parent),
        positions=np.array(positions),
        accuracies_m=np.array(accuracies_m),
    )


def _up_of(model: CameraPoses, gravities: dict[str, bytes]) -> np.ndarray | None:
    """The direction that points up in a model, by the gravity in its cameras (3,); None without any."""
    found = []
    for name, rotation in zip(model.names, model.rotations, strict=True):
        gravity = _numbers(gravities.get(name), 3)
        if gravity is not None and (length := float(np.linalg.norm(gravity))) > 0:
            found.append(-rotation @ gravity / length)
    up = np.mean(found, axis=0) if found else np.zeros(3)
    return up if np.linalg.norm(up) > MIN_AGREEMENT else None


def _read_rows(path: Path, select: Callable[[sqlite3.Connection, set[str]], Iterator[Any]]) -> list[Any]:
    """Rows of the pose priors of a database, which is not changed; none before COLMAP 3.11, which had no priors."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            columns = {row[1] for row in database.execute("PRAGMA table_info(pose_priors)")}
            return list(select(database, columns)) if {"position", "coordinate_system"} <= columns else []
    except sqlite3.Error as error:
        raise DatasetError(f"{printable(path)} cannot be read as a COLMAP database ({error}).") from error


def _prior_rows(database: sqlite3.Connection, columns: set[str]) -> Iterator[Any]:
    """Name, position, covariance and coordinate system of each prior, sorted by image."""
    covariance = "prior.position_covariance" if "position_covariance" in columns else "NULL"
    return database.execute(
        f"SELECT image.name, prior.position, {covariance}, prior.coordinate_system {_joined(columns)}"
    )


def _gravity_rows(database: sqlite3.Connection, columns: set[str]) -> Iterator[Any]:
    """Name and gravity, in the axes of the camera, of each prior that may have one (since COLMAP 4.0)."""
    return database.execute(
        f"SELECT image.name, prior.gravity {_joined(columns)}" if "gravity" in columns else "SELECT 1 LIMIT 0"
    )


def _joined(columns: set[str]) -> str:
    """Pose priors with their images."""
    key, only = "image_id", ""
    if "corr_data_id" in columns:  # since COLMAP 4.0
        key, only = "corr_data_id", f"WHERE prior.corr_sensor_type = {CAMERA_SENSOR}"
    return (
        f"FROM pose_priors AS prior JOIN images AS image ON image.image_id = prior.{key} {only} ORDER BY image.image_id"
    )


def _numbers(content: Any, count: int) -> np.ndarray | None:
    """Numbers of a blob, float64; None for one that is missing, of another size or not finite."""
    if not isinstance(content, bytes) or len(content) != 8 * count:
        return None
    found = np.frombuffer(content, "<f8")
    return found if np.isfinite(found).all() else None


def _is_database(path: Path) -> bool:
    """Whether a path is a database of SQLite that is not a GeoPackage."""
    try:
        if not path.is_file() or path.suffix.lower() == ".gpkg":
            return False
        with path.open("rb") as file:
            return file.read(len(DATABASE_START)) == DATABASE_START
    except OSError:
        return False
