"""Synthetic cameras at known positions and headings, in the files of reconstructions."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pyproj import Geod, Transformer

WIDTH, HEIGHT, FOCAL = 640, 480, 500.0  # pixels
FOV = 2 * np.degrees(np.arctan(WIDTH / 2 / FOCAL))


@dataclass(frozen=True)
class Camera:
    name: str
    latitude: float
    longitude: float
    altitude_m: float
    heading: float
    pitch: float
    roll: float = 0.0

    @property
    def ecef(self) -> np.ndarray:
        transformer = Transformer.from_crs(4979, 4978)
        return np.array(transformer.transform(self.latitude, self.longitude, self.altitude_m))

    @property
    def ecef_axes(self) -> np.ndarray:
        """Columns: right, down, forward; from points along geodesics and the vertical, without rotation matrices."""
        geod, to_ecef = Geod(ellps="WGS84"), Transformer.from_crs(4979, 4978)

        def direction(heading: float, pitch: float) -> np.ndarray:
            flat = geod.fwd(self.longitude, self.latitude, heading, 1.0)
            level = np.array(to_ecef.transform(flat[1], flat[0], self.altitude_m)) - self.ecef
            above = np.array(to_ecef.transform(self.latitude, self.longitude, self.altitude_m + 1)) - self.ecef
            unit = level / np.linalg.norm(level)
            return np.cos(np.radians(pitch)) * unit + np.sin(np.radians(pitch)) * above / np.linalg.norm(above)

        forward = direction(self.heading, self.pitch)
        right = direction(self.heading + 90, 0)
        down = np.cross(forward, right)
        turn = np.radians(self.roll)
        return np.stack(
            [np.cos(turn) * right + np.sin(turn) * down, np.cos(turn) * down - np.sin(turn) * right, forward], 1
        )


def ring(latitude: float, longitude: float, radius_m: float = 40.0, altitude_m: float = 120.0) -> list[Camera]:
    """Cameras in eight directions, with pitches of 20, 0 and -20 degrees, around a point."""
    cameras = []
    for number in range(8):
        lon, lat, _ = Geod(ellps="WGS84").fwd(longitude, latitude, 45.0 * number + 10, radius_m + 5 * (number % 3))
        pitch = (20.0, 0.0, -20.0)[number % 3]
        cameras.append(Camera(f"photo{number}.jpg", lat, lon, altitude_m + number % 4, 45.0 * number, pitch))
    return cameras


def to_enu(cameras: Sequence[Camera], latitude: float, longitude: float, altitude_m: float):
    """Centers (N, 3) and rotations to the world (N, 3, 3) in the frame of an origin, by PROJ's own operation."""
    pipeline = Transformer.from_pipeline(
        f"+proj=topocentric +ellps=WGS84 +lat_0={latitude!r} +lon_0={longitude!r} +h_0={altitude_m!r}"
    )
    return _in_frame(cameras, lambda points: np.stack(pipeline.transform(*points.T.tolist()), -1))


def to_crs(cameras: Sequence[Camera], code: str):
    transformer = Transformer.from_crs("EPSG:4978", _with_height(code), always_xy=True)
    return _in_frame(cameras, lambda points: np.stack(transformer.transform(*points.T.tolist()), -1))


def _with_height(code: str):
    from pyproj import CRS

    return CRS.from_user_input(code).to_3d()


def _in_frame(cameras: Sequence[Camera], frame: Callable[[np.ndarray], np.ndarray]):
    centers = frame(np.stack([one.ecef for one in cameras]))
    rotations = []
    for one, center in zip(cameras, centers, strict=True):
        axes = frame(one.ecef + one.ecef_axes.T) - center  # (3 axes, 3)
        u, _, vt = np.linalg.svd(axes.T)
        rotations.append(u @ vt)  # the nearest rotation: a scale of the map distorts the axes a little
    return centers, np.array(rotations)


def write_photos(folder: Path, cameras: Sequence[Camera], exif: Callable | None = None) -> None:
    """Small photos; exif(camera) gives their EXIF block."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(cameras):
        image = Image.new("RGB", (WIDTH // 10, HEIGHT // 10), (10 * number, 100, 100))
        image.save(folder / one.name, exif=exif(one) if exif else Image.Exif())


def gps_exif(latitude: float, longitude: float, altitude_m: float) -> Image.Exif:
    def dms(value: float) -> tuple[float, float, float]:
        degrees, rest = divmod(abs(value) * 3600, 3600)
        minutes, seconds = divmod(rest, 60)
        return degrees, minutes, round(seconds, 5)

    exif = Image.Exif()
    exif[0x8825] = {
        1: "N" if latitude >= 0 else "S", 2: dms(latitude), 3: "E" if longitude >= 0 else "W", 4: dms(longitude),
        5: b"\0" if altitude_m >= 0 else b"\1", 6: round(abs(altitude_m), 3),
    }  # fmt: skip
    return exif


# --- files of reconstructions ----------------------------------------------------------------------------------------


def write_colmap(folder: Path, names: Sequence[str], centers: np.ndarray, rotations: np.ndarray, *, binary: bool):
    import pycolmap

    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=1, model="SIMPLE_PINHOLE", width=WIDTH, height=HEIGHT,
                             params=[FOCAL, WIDTH / 2, HEIGHT / 2])  # fmt: skip
    model.add_camera_with_trivial_rig(camera)
    for number, (name, center, rotation) in enumerate(zip(names, centers, rotations, strict=True), 1):
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation.T), -rotation.T @ center)
        model.add_image_with_trivial_frame(pycolmap.Image(name=name, camera_id=1, image_id=number), pose)
    folder.mkdir(parents=True)
    (model.write_binary if binary else model.write_text)(folder)


def opensfm_part(names: Sequence[str], centers: np.ndarray, rotations: np.ndarray) -> dict:
    from scipy.spatial.transform import Rotation

    shots = {
        name: {
            "rotation": Rotation.from_matrix(rotation.T).as_rotvec().tolist(),
            "translation": (-rotation.T @ center).tolist(),
            "camera": "v2 phone",
            "capture_time": 1.7e9 + number,
        }
        for number, (name, center, rotation) in enumerate(zip(names, centers, rotations, strict=True))
    }
    camera = {"projection_type": "perspective", "width": WIDTH, "height": HEIGHT, "focal": FOCAL / WIDTH, "k1": 0.0,
              "k2": 0.0}  # fmt: skip
    return {"cameras": {"v2 phone": camera}, "shots": shots, "points": {}}


def write_nerfstudio(path: Path, names: Sequence[str], centers: np.ndarray, rotations: np.ndarray, **extra) -> None:
    """rotations: as elsewhere; the file has OpenGL axes."""
    frames = []
    applied = np.array(extra.get("applied_transform", np.eye(4)[:3]))
    for name, center, rotation in zip(names, centers, rotations, strict=True):
        matrix = np.eye(4)
        matrix[:3, :3] = applied[:, :3] @ np.stack([rotation[:, 0], -rotation[:, 1], -rotation[:, 2]], 1)
        matrix[:3, 3] = applied[:, :3] @ center + applied[:, 3]
        frames.append({"file_path": f"images/{name}", "transform_matrix": matrix.tolist()})
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL, "fl_y": FOCAL, "frames": frames, **extra}
    path.write_text(json.dumps(content))
