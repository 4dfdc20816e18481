"""Cameras at known positions and headings are read from each kind of reconstruction, within 1 cm and 0.1 degree."""

import hashlib
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod, Transformer
from scipy.spatial.transform import Rotation

from cosplace.config.importing import ImportConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError, DatasetError
from cosplace.geo import ecef_from_lla, enu_rotation, lla_height_from_ecef
from cosplace.importing import colmap, nerfstudio, opensfm
from cosplace.importing.import_run import run_import
from cosplace.importing.poses import (
    coordinate_system,
    field_of_view,
    heading_pitch_roll,
    local_frame,
    parse_origin,
    place,
    to_local_frame,
)
from cosplace.importing.similarity import align, rotation_to_up
from cosplace.importing.sources import find_source
from cosplace.photos.tables import PhotoRecord, from_table, read_table
from tests.importing.pose_samples import (
    FOV,
    Camera,
    gps_exif,
    opensfm_part,
    ring,
    to_crs,
    to_enu,
    write_colmap,
    write_nerfstudio,
    write_photos,
)

LATITUDES = st.floats(-89, 89)
LONGITUDES = st.floats(-180, 180)
SYDNEY = (-33.86, 151.21, 30.0)
TURIN = (45.07, 7.69, 240.0)


def import_config(*sources: Path, **values) -> ImportConfig:
    return from_values(ImportConfig, {"sources": tuple(map(str, sources)), **values})


def imported(folder: Path, *sources: Path, **values) -> dict[str, PhotoRecord]:
    """Import sources into a new dataset; records by file name."""
    run_import(sources, folder, import_config(*sources, **values))
    return {Path(one.path).name: one for one in from_table(read_table(folder / "photos.parquet"))}


def assert_as_made(records: dict[str, PhotoRecord], cameras: list[Camera], meters=0.01, degrees=0.1) -> None:
    assert set(records) == {one.name for one in cameras}
    for one in cameras:
        found = records[one.name]
        away = Geod(ellps="WGS84").inv(one.longitude, one.latitude, found.longitude, found.latitude)[2]
        assert away < meters
        assert abs(found.altitude_m - one.altitude_m) < max(meters, 0.01)
        assert abs((found.heading - one.heading + 180) % 360 - 180) < degrees
        assert abs(found.pitch - one.pitch) < degrees
        assert abs(found.roll - one.roll) < degrees
        assert found.heading_source == "pose"


# --- pure functions, anywhere on Earth -------------------------------------------------------------------------------


@given(LATITUDES, LONGITUDES, st.floats(-400, 9000))
@settings(max_examples=60)
def test_east_north_up_are_those_of_small_steps(latitude: float, longitude: float, height: float) -> None:
    axes = enu_rotation(latitude, longitude)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    here = ecef_from_lla(latitude, longitude, height)
    for azimuth, axis in ((90, 0), (0, 1)):
        lon, lat, _ = Geod(ellps="WGS84").fwd(longitude, latitude, azimuth, 1.0)
        step = axes @ (ecef_from_lla(lat, lon, height) - here)
        np.testing.assert_allclose(step / np.linalg.norm(step), np.eye(3)[axis], atol=1e-4)
    np.testing.assert_allclose(axes @ (ecef_from_lla(latitude, longitude, height + 1) - here), [0, 0, 1], atol=1e-6)


@given(LATITUDES, LONGITUDES, st.floats(-100, 5000))
@settings(max_examples=40)
def test_height_round_trip(latitude: float, longitude: float, height: float) -> None:
    back = lla_height_from_ecef(ecef_from_lla(latitude, longitude, height))
    assert back[0] == pytest.approx(latitude, abs=1e-9)
    assert back[2] == pytest.approx(height, abs=1e-5)


@given(LATITUDES, LONGITUDES, st.floats(0, 360, exclude_max=True), st.floats(-80, 80), st.floats(-170, 170))
@settings(max_examples=80)
def test_heading_pitch_and_roll_round_trip(latitude, longitude, heading, pitch, roll) -> None:
    camera = Camera("", latitude, longitude, 50, heading, pitch, roll)
    found = heading_pitch_roll(enu_rotation(latitude, longitude) @ camera.ecef_axes)
    assert abs((float(found[0]) - heading + 180) % 360 - 180) < 0.01
    assert float(found[1]) == pytest.approx(pitch, abs=0.01)
    assert abs((float(found[2]) - roll + 180) % 360 - 180) < 0.01


def test_a_point_in_the_north_is_in_the_center_of_the_image_of_a_camera_with_heading_0() -> None:
    camera = Camera("", *TURIN, 0.0, 0.0)
    centers, rotations = to_enu([camera], *TURIN)
    tower = np.array([0.0, 100.0, 0.0])  # 100 m to the north
    to_the_right, above = np.array([10.0, 100, 0]), np.array([0.0, 100, 10])
    for point, expected in ((tower, (320, 240)), (to_the_right, (370, 240)), (above, (320, 190))):
        x, y, z = rotations[0].T @ (point - centers[0])  # as COLMAP projects
        assert (500 * x / z + 320, 500 * y / z + 240) == pytest.approx(expected, abs=0.01)
    assert float(heading_pitch_roll(rotations)[0][0]) == pytest.approx(0, abs=1e-6)


def test_the_right_side_of_a_camera_turned_clockwise_is_lower() -> None:
    camera = Camera("", *TURIN, 30.0, 0.0, roll=15.0)
    _, rotations = to_enu([camera], *TURIN)
    assert rotations[0][2, 0] < 0
    assert float(heading_pitch_roll(rotations)[2][0]) == pytest.approx(15, abs=1e-3)


def test_a_camera_that_looks_down_has_no_heading() -> None:
    heading, pitch, _ = heading_pitch_roll(np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]))
    assert np.isnan(heading)
    assert pitch == -90


@given(LATITUDES, LONGITUDES)
@settings(max_examples=30)
def test_local_frame_agrees_with_proj(latitude: float, longitude: float) -> None:
    cameras = ring(latitude, longitude)
    centers, _ = to_enu(cameras, latitude, longitude, 100.0)
    points = np.stack([one.ecef for one in cameras])
    np.testing.assert_allclose(local_frame(latitude, longitude, 100.0)(centers), points, atol=1e-5)
    np.testing.assert_allclose(to_local_frame(points, latitude, longitude, 100.0), centers, atol=1e-5)


@pytest.mark.parametrize(("kind", "expected"), [("perspective", FOV), ("fisheye", np.degrees(1.28)),
                                                ("equirectangular", 360.0)])  # fmt: skip
def test_field_of_view(kind: str, expected: float) -> None:
    assert field_of_view(500.0, 640, projection=kind) == pytest.approx(expected)
    assert np.isnan(field_of_view(np.nan, 640)) and np.isnan(field_of_view(500.0, 0))


@pytest.mark.parametrize("text", ["", "45", "45,7,1,2", "91,0", "45,181", "nan,7", "45,x", "45,7,1e9"])
def test_wrong_origins(text: str) -> None:
    with pytest.raises(ConfigError, match="--origin"):
        parse_origin(text)


# --- alignment -------------------------------------------------------------------------------------------------------


def similar_scene(seed: int, count: int = 30):
    """Targets in meters, and the same in other coordinates; and the rotation from these to east, north, up."""
    rng = np.random.default_rng(seed)
    targets = rng.uniform(-80, 80, (count, 3)) * [1, 1, 0.1]
    rotation = Rotation.random(random_state=seed).as_matrix()
    return targets, (targets - [5, 6, 7]) @ rotation / 12.5, rotation


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_alignment_finds_the_similarity_in_spite_of_wrong_positions(seed: int) -> None:
    targets, sources, rotation = similar_scene(seed)
    wrong = targets.copy()
    wrong[:8] += np.random.default_rng(seed).uniform(100, 500, (8, 3))
    found = align(sources, wrong, 10.0)
    np.testing.assert_allclose(found.similarity.rotation, rotation, atol=1e-6)
    assert found.similarity.scale == pytest.approx(12.5, rel=1e-6)
    np.testing.assert_allclose(found.similarity(sources), targets, atol=1e-4)
    assert found.agree.tolist() == [False] * 8 + [True] * 22


def test_noise_is_the_residual() -> None:
    targets, sources, rotation = similar_scene(3, 200)
    noisy = targets + np.random.default_rng(0).normal(0, 2, targets.shape)
    found = align(sources, noisy, 10.0)
    assert found.residual_m == pytest.approx(2 * np.sqrt(2), rel=0.15)
    turn = Rotation.from_matrix(found.similarity.rotation @ rotation.T).magnitude()
    assert np.degrees(turn) < 4 * found.angle_error
    assert found.angle_error < 1


def test_a_line_needs_to_know_what_is_up() -> None:
    targets = np.stack([np.linspace(0, 300, 20), np.linspace(0, 100, 20), np.zeros(20)], 1)
    rotation = Rotation.from_euler("zx", [40, 70], degrees=True).as_matrix()
    sources = targets @ rotation
    with pytest.raises(DatasetError, match="on a line"):
        align(sources, targets, 10.0)
    up = rotation.T @ [0, 0, 1]
    np.testing.assert_allclose(align(sources, targets, 10.0, up).similarity.rotation, rotation, atol=1e-9)
    np.testing.assert_allclose(rotation_to_up(up) @ up, [0, 0, 1], atol=1e-12)


def test_refused_alignments() -> None:
    targets, sources, _ = similar_scene(1)
    with pytest.raises(DatasetError, match="3 photos"):
        align(sources[:3], targets[:3], 10.0)
    unrelated = np.random.default_rng(5).uniform(-800, 800, targets.shape)
    with pytest.raises(DatasetError, match="agree within 10 m"):
        align(sources, unrelated, 10.0)
    tiny = targets / 100 + np.random.default_rng(5).normal(0, 3, targets.shape)
    with pytest.raises(DatasetError, match="too close"):
        align(sources, tiny, 10.0)
    with pytest.raises(DatasetError):
        align(np.zeros((9, 3)), targets[:9], 1000.0)


# --- COLMAP ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, list[Camera]]:
    """A project with photos, and its cameras."""
    cameras = ring(*TURIN[:2])
    write_photos(tmp_path / "project" / "images", cameras)
    return tmp_path / "project", cameras


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_with_an_origin(scene: tuple[Path, list[Camera]], tmp_path: Path, binary: bool) -> None:
    pytest.importorskip("pycolmap")
    project, cameras = scene
    names = [one.name for one in cameras]
    write_colmap(project / "sparse" / "0", names, *to_enu(cameras, *TURIN), binary=binary)
    assert find_source(project).name == "colmap"
    assert find_source(project / "sparse" / "0").name == "colmap"
    records = imported(tmp_path / "data", project, origin="45.07,7.69,240")
    assert_as_made(records, cameras)
    assert records["photo1.jpg"].field_of_view == pytest.approx(FOV)
    assert records["photo1.jpg"].projection == "perspective"


@pytest.mark.parametrize("code", ["EPSG:32632", "EPSG:4978", "EPSG:3003"])
def test_colmap_in_a_coordinate_system(scene: tuple[Path, list[Camera]], code: str) -> None:
    """Far from its central meridian, the north of a grid differs from the true one by more than a degree."""
    pytest.importorskip("pycolmap")
    project, _ = scene
    cameras = ring(*TURIN[:2])
    centers, rotations = to_crs(cameras, code)
    write_colmap(project / "sparse", [one.name for one in cameras], centers, rotations, binary=True)
    placed = place(colmap.read_model(project / "sparse"), coordinate_system(code))
    for row, one in enumerate(cameras):
        assert (
            Geod(ellps="WGS84").inv(one.longitude, one.latitude, placed.longitudes[row], placed.latitudes[row])[2]
            < 0.01
        )
        assert abs((placed.headings[row] - one.heading + 180) % 360 - 180) < 0.1
        assert placed.pitches[row] == pytest.approx(one.pitch, abs=0.1)


def test_headings_are_from_true_north_not_from_that_of_the_grid() -> None:
    to_utm = Transformer.from_crs(4326, 32632, always_xy=True)
    place_in_utm = np.array([*to_utm.transform(5.5, 60.0), 0.0])  # 3.5 degrees west of the central meridian
    north = coordinate_system("EPSG:32632")(place_in_utm + np.array([[0, 1, 0]])) - coordinate_system("EPSG:32632")(
        place_in_utm
    )
    east, up_north, _ = enu_rotation(60.0, 5.5) @ north.ravel()
    grid_north = np.degrees(np.arctan2(east, up_north))
    assert grid_north == pytest.approx(-3.5 * np.sin(np.radians(60)), abs=0.01) or grid_north == pytest.approx(
        3.5 * np.sin(np.radians(60)), abs=0.01
    )
    lon, lat = Transformer.from_crs(32632, 4326, always_xy=True).transform(place_in_utm[0], place_in_utm[1] + 1000)
    assert grid_north == pytest.approx(Geod(ellps="WGS84").inv(5.5, 60.0, lon, lat)[0], abs=0.01)


def test_colmap_is_aligned_with_exif(scene: tuple[Path, list[Camera]], tmp_path: Path, caplog) -> None:
    pytest.importorskip("pycolmap")
    project, cameras = scene
    write_photos(project / "images", cameras, lambda one: gps_exif(one.latitude, one.longitude, one.altitude_m))
    centers, rotations = to_enu(cameras, *TURIN)
    turn = Rotation.from_euler("xyz", [130, 20, 70], degrees=True).as_matrix()
    write_colmap(
        project / "sparse", [one.name for one in cameras], (centers - 3) @ turn / 7, turn.T @ rotations, binary=True
    )
    with caplog.at_level("INFO"):
        records = imported(tmp_path / "data", project)
    assert_as_made(records, cameras)
    assert "aligned with 8 of 8 known positions; residual 0.00 m" in caplog.text


def test_poses_far_from_gps_positions_are_listed(scene: tuple[Path, list[Camera]], tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    project, cameras = scene
    write_photos(project / "images", cameras, lambda one: gps_exif(one.latitude, one.longitude, one.altitude_m))
    write_colmap(project / "sparse", [one.name for one in cameras], *to_enu(cameras, *TURIN), binary=True)
    imported(tmp_path / "right", project, origin="45.07,7.69,240")
    imported(tmp_path / "wrong", project, origin="45.17,7.69,240")
    assert "GPS position" not in (tmp_path / "right" / "import_report.csv").read_text()
    assert (tmp_path / "wrong" / "import_report.csv").read_text().count("m from its GPS position") == 8


def test_colmap_without_a_place_on_earth_is_refused(scene: tuple[Path, list[Camera]], tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    project, cameras = scene
    write_colmap(project / "sparse", [one.name for one in cameras], *to_enu(cameras, *TURIN), binary=True)
    with pytest.raises(DatasetError, match=r"cannot be aligned: none of its photos has a known position.*--origin"):
        imported(tmp_path / "data", project)
    with pytest.raises(DatasetError, match="none of the cameras is on Earth"):
        imported(tmp_path / "data2", project, crs="EPSG:4978")
    with pytest.raises(ConfigError, match="contradict"):
        imported(tmp_path / "data3", project, crs="EPSG:4978", origin="1,2,3")
    with pytest.raises(ConfigError, match="not in meters"):
        imported(tmp_path / "data3", project, crs="EPSG:4326")
    with pytest.raises(ConfigError, match="not a known coordinate system"):
        imported(tmp_path / "data3", project, crs="EPSG:1")


def write_database(
    path: Path, cameras: list[Camera], *, cartesian: np.ndarray | None = None, gravity: np.ndarray | None = None
) -> None:
    import pycolmap

    path.unlink(missing_ok=True)
    database = pycolmap.Database.open(path)
    system = pycolmap.PosePriorCoordinateSystem
    camera = database.write_camera(
        pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[500, 320, 240])
    )
    for row, one in enumerate(cameras):
        image = pycolmap.Image(name=one.name, camera_id=camera)
        image.image_id = database.write_image(image)
        position = (one.latitude, one.longitude, one.altitude_m) if cartesian is None else cartesian[row]
        prior = pycolmap.PosePrior(
            position=np.array(position), coordinate_system=system.WGS84 if cartesian is None else system.CARTESIAN,
            position_covariance=np.diag([4.0, 9.0, 25.0]), corr_data_id=image.data_id,
        )  # fmt: skip
        if gravity is not None:
            prior.gravity = gravity[row]
        database.write_pose_prior(prior)
    database.close()


def test_pose_priors_align_a_model(scene: tuple[Path, list[Camera]], tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    project, cameras = scene
    centers, rotations = to_enu(cameras, *SYDNEY)
    write_colmap(
        project / "sparse" / "0", [one.name for one in cameras[:6]], centers[:6] / 3, rotations[:6], binary=True
    )
    write_database(project / "database.db", cameras)
    records = imported(tmp_path / "data", project)
    assert_as_made({one.name: records[one.name] for one in cameras[:6]}, cameras[:6])
    assert records[cameras[7].name].latitude == pytest.approx(cameras[7].latitude)  # by its prior
    assert records[cameras[7].name].accuracy_m == 3
    assert np.isnan(records[cameras[7].name].heading)


def test_gravity_aligns_a_model_along_a_line(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    cameras = [Camera(f"{row}.jpg", 45.0, 7.0 + 2e-4 * row, 300.0, 40.0 * row, 5.0, 3.0) for row in range(8)]
    project = tmp_path / "project"
    write_photos(project / "images", cameras)
    centers, rotations = to_enu(cameras, 45.0, 7.0, 300.0)
    turn = Rotation.from_euler("xyz", [80, 10, 30], degrees=True).as_matrix()
    write_colmap(project / "sparse", [one.name for one in cameras], centers @ turn / 4, turn.T @ rotations, binary=True)
    write_database(project / "database.db", cameras)
    without = imported(tmp_path / "without", project)
    assert all(np.isnan(one.heading) and one.latitude == pytest.approx(45.0) for one in without.values())
    assert "nearly on a line" in (tmp_path / "without" / "import_report.csv").read_text()
    write_database(project / "database.db", cameras, gravity=-rotations[:, 2])
    assert_as_made(imported(tmp_path / "data", project), cameras)


def test_a_database_alone_gives_positions_and_is_not_changed(scene: tuple[Path, list[Camera]], tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    project, cameras = scene
    path = project / "database.db"
    write_database(path, cameras, cartesian=to_enu(cameras, *TURIN)[0])
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert find_source(path).name == "colmap"
    with pytest.raises(DatasetError, match=r"cartesian.*--origin"):
        imported(tmp_path / "data", path, project / "images")
    records = imported(tmp_path / "data", path, project / "images", origin="45.07,7.69,240")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    for one in cameras:
        assert records[one.name].latitude == pytest.approx(one.latitude, abs=1e-8)
        assert records[one.name].longitude == pytest.approx(one.longitude, abs=1e-8)


def test_pose_priors_of_an_older_database(tmp_path: Path) -> None:
    """COLMAP 3.11 named the image in the table itself."""
    path = tmp_path / "database.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE images (image_id INTEGER PRIMARY KEY, name TEXT, camera_id INTEGER)")
        database.execute(
            "CREATE TABLE pose_priors (image_id INTEGER PRIMARY KEY, position BLOB, coordinate_system INTEGER, "
            "position_covariance BLOB)"
        )
        rows = [(45.0, 7.0, 100.0), (0.0, 0.0, 0.0), (np.nan, 7.0, 1.0), (145.0, 7.0, 1.0)]
        for number, position in enumerate(rows):
            database.execute("INSERT INTO images VALUES (?, ?, 1)", (number, f"{number}.jpg"))
            database.execute("INSERT INTO pose_priors VALUES (?, ?, 0, NULL)", (number, np.array(position).tobytes()))
        database.execute("INSERT INTO images VALUES (9, 'x', 1)")
        database.execute("INSERT INTO pose_priors VALUES (9, x'00', 0, 'text')")
    priors = colmap.read_priors(path, import_config(path))
    assert priors is not None
    assert priors.names == ("0.jpg",)
    np.testing.assert_array_equal(priors.positions, [[45.0, 7.0, 100.0]])


@pytest.mark.parametrize("change", ["cut", "junk", "no points", "text"])
def test_damaged_models(scene: tuple[Path, list[Camera]], change: str) -> None:
    pytest.importorskip("pycolmap")
    project, cameras = scene
    folder = project / "sparse"
    write_colmap(folder, [one.name for one in cameras], *to_enu(cameras, *TURIN), binary=change != "text")
    file = folder / ("images.txt" if change == "text" else "images.bin")
    content = file.read_bytes()
    if change == "no points":
        (folder / "points3D.bin").unlink()
    else:
        file.write_bytes({"cut": content[: len(content) // 2], "junk": b"\xff" * 300, "text": b"1 2 x\n"}[change])
    with pytest.raises(DatasetError, match=r"cannot be read|points3D|no images"):
        colmap.read_model(folder)


def test_damaged_databases(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"SQLite format 3\0" + b"x" * 4000)
    with pytest.raises(DatasetError, match="cannot be read as a COLMAP database"):
        colmap.read([path], import_config(path))
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (x)")
    with pytest.raises(DatasetError, match="no pose priors"):
        colmap.read([path], import_config(path))


def test_names_of_a_model_do_not_lead_outside(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    cameras = ring(*TURIN[:2])
    write_photos(tmp_path / "private", cameras)
    write_photos(tmp_path / "project" / "images", cameras[:1])
    names = [cameras[0].name, *(f"../../private/{one.name}" for one in cameras[1:4]),
             *(f"{tmp_path}/private/{one.name}" for one in cameras[4:])]  # fmt: skip
    write_colmap(tmp_path / "project" / "sparse", names, *to_enu(cameras, *TURIN), binary=True)
    records = imported(tmp_path / "data", tmp_path / "project", origin="45.07,7.69,240")
    assert set(records) == {cameras[0].name}


# --- OpenSfM ---------------------------------------------------------------------------------------------------------


def write_opensfm(path: Path, parts: list[dict], reference: tuple[float, float, float] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(parts))
    if reference:
        latitude, longitude, altitude = reference
        content = {"latitude": latitude, "longitude": longitude, "altitude": altitude}
        path.with_name("reference_lla.json").write_text(json.dumps(content))


@pytest.mark.parametrize("inside", [True, False])
def test_opensfm(tmp_path: Path, inside: bool) -> None:
    cameras = ring(*SYDNEY[:2])
    write_photos(tmp_path / "sfm" / "images", cameras)
    centers, rotations = to_enu(cameras, *SYDNEY)
    parts = [opensfm_part([one.name for one in cameras[rows]], centers[rows], rotations[rows])
             for rows in (slice(0, 5), slice(5, 8))]  # fmt: skip
    if inside:
        for part in parts:
            part["reference_lla"] = dict(zip(("latitude", "longitude", "altitude"), SYDNEY, strict=True))
    path = tmp_path / "sfm" / "reconstruction.json"
    write_opensfm(path, parts, None if inside else SYDNEY)
    assert find_source(path).name == find_source(path.parent).name == "opensfm"
    records = imported(tmp_path / "data", path)
    assert_as_made(records, cameras)
    assert records[cameras[2].name].time == 1.7e9 + 2
    assert records[cameras[2].name].field_of_view == pytest.approx(FOV)


@pytest.mark.parametrize("reference", [None, (0.0, 0.0, 0.0)])
def test_opensfm_without_reference_along_a_line_is_aligned_by_its_vertical(
    tmp_path: Path, reference: tuple | None
) -> None:
    cameras = [Camera(f"{number}.jpg", 45.0 + 1e-4 * number, 7.0, 100.0, 30.0 * number, 0.0) for number in range(9)]
    write_photos(
        tmp_path / "sfm" / "images", cameras, lambda one: gps_exif(one.latitude, one.longitude, one.altitude_m)
    )
    centers, rotations = to_enu(cameras, 45.0, 7.0, 100.0)
    turn = Rotation.from_euler("z", 50, degrees=True).as_matrix()
    part = opensfm_part([one.name for one in cameras], centers @ turn / 2, turn.T @ rotations)
    write_opensfm(tmp_path / "sfm" / "reconstruction.json", [part], reference)
    assert_as_made(imported(tmp_path / "data", tmp_path / "sfm"), cameras)


def test_broken_opensfm_shots_are_listed(tmp_path: Path) -> None:
    cameras = ring(*TURIN[:2])
    write_photos(tmp_path / "images", cameras)
    part = opensfm_part([one.name for one in cameras], *to_enu(cameras, *TURIN))
    shots = list(part["shots"].values())
    shots[0]["rotation"], shots[1]["translation"], shots[2]["camera"] = [1, 2], [1, 2, None], ["list"]
    shots[3]["capture_time"] = "noon"
    part["shots"]["broken"] = 7
    write_opensfm(tmp_path / "reconstruction.json", [part, {"shots": {}}, 5], TURIN)
    (poses,) = opensfm.read_reconstructions(tmp_path / "reconstruction.json")
    assert len(poses) == 6
    assert len(poses.problems) == 3
    assert np.isnan(poses.fields_of_view[0]) and np.isnan(poses.times[1])
    write_opensfm(tmp_path / "reconstruction.json", [{"shots": {}, "cameras": {}}], TURIN)
    with pytest.raises(DatasetError, match="no shots"):
        opensfm.read([tmp_path / "reconstruction.json"], import_config(tmp_path))
    write_opensfm(tmp_path / "reconstruction.json", [part], (95.0, 0.0, 0.0))
    with pytest.raises(DatasetError, match="reference"):
        opensfm.read([tmp_path / "reconstruction.json"], import_config(tmp_path))


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_axis_angle_is_that_of_scipy(axis_angle: list[float]) -> None:
    np.testing.assert_allclose(
        opensfm.rotation_of(np.array(axis_angle)), Rotation.from_rotvec(axis_angle).as_matrix(), atol=1e-9
    )


# --- Nerfstudio ------------------------------------------------------------------------------------------------------


def test_a_reconstruction_is_aligned_with_a_table_in_any_order(tmp_path: Path) -> None:
    cameras = ring(*TURIN[:2])
    write_photos(tmp_path / "nerf" / "images", cameras)
    centers, rotations = to_enu(cameras, *TURIN)
    path, table = tmp_path / "nerf" / "transforms.json", tmp_path / "nerf" / "positions.csv"
    write_nerfstudio(path, [one.name for one in cameras], centers / 7 - 3, rotations)
    rows = [f"{one.name},{one.latitude},{one.longitude},{one.altitude_m}" for one in cameras]
    table.write_text("\n".join(["file,lat,lon,altitude", *rows]))
    for name, sources in (("first", (table, path)), ("last", (path, table))):
        assert_as_made(imported(tmp_path / name, tmp_path / "nerf" / "images", *sources), cameras)


@pytest.mark.parametrize("applied", [None, [[1.0, 0, 0, 2], [0, 0, 1, -1], [0, -1, 0, 5]]])
def test_nerfstudio_with_a_similarity(tmp_path: Path, applied: list | None) -> None:
    cameras = ring(*SYDNEY[:2])
    write_photos(tmp_path / "nerf" / "images", cameras)
    centers, rotations = to_enu(cameras, *SYDNEY)
    turn = Rotation.from_euler("xyz", [30, -20, 100], degrees=True).as_matrix()  # to the world
    extra = {} if applied is None else {"applied_transform": applied}
    path = tmp_path / "nerf" / "transforms.json"
    write_nerfstudio(path, [one.name for one in cameras], (centers - [4, 5, 6]) @ turn / 9, turn.T @ rotations, **extra)
    similarity = {"scale": 9, "rotation": turn.tolist(), "translation": [4, 5, 6], "origin": SYDNEY}
    (tmp_path / "similarity.json").write_text(json.dumps(similarity))
    assert find_source(path).name == "nerfstudio"
    records = imported(tmp_path / "data", path, similarity=tmp_path / "similarity.json")
    assert_as_made(records, cameras)
    assert records[cameras[0].name].field_of_view == pytest.approx(FOV)
    with pytest.raises(DatasetError, match=r"cannot be aligned.*--similarity FILE"):
        imported(tmp_path / "data2", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "positive"),
        ({"scale": -1, "rotation": np.eye(3).tolist(), "translation": [0, 0, 0]}, "positive"),
        ({"scale": 1, "rotation": (2 * np.eye(3)).tolist(), "translation": [0, 0, 0]}, "not a rotation"),
        ({"scale": 1, "rotation": np.diag([1, 1, -1]).tolist(), "translation": [0, 0, 0]}, "not a rotation"),
        ({"scale": 1, "rotation": np.eye(3).tolist(), "translation": [0, 0, 0], "origin": [99, 0, 0]}, "origin"),
        ({"scale": 1, "rotation": np.eye(3).tolist(), "translation": [0, 0, 0]}, "origin"),
        ({"scale": 1, "rotation": "x", "translation": [0, 0, 0]}, "rotation"),
    ],
)
def test_wrong_similarities(tmp_path: Path, content: dict, message: str) -> None:
    cameras = ring(*SYDNEY[:2])
    write_nerfstudio(tmp_path / "transforms.json", [one.name for one in cameras], *to_enu(cameras, *SYDNEY))
    (tmp_path / "similarity.json").write_text(json.dumps(content))
    config = import_config(tmp_path, similarity=tmp_path / "similarity.json")
    with pytest.raises((DatasetError, ConfigError), match=message):
        nerfstudio.read([tmp_path], config)


@pytest.mark.parametrize("name", ["\ud800", "a" * 300, "b/" * 3000, "..", "/", "x\0y", "..\\..\\c"])
def test_names_that_are_not_paths(tmp_path: Path, name: str) -> None:
    write_nerfstudio(tmp_path / "transforms.json", [name], np.zeros((1, 3)), np.eye(3)[None])
    assert list(nerfstudio.read([tmp_path], import_config(tmp_path)).photos()) == []


def test_broken_transforms(tmp_path: Path) -> None:
    path = tmp_path / "transforms.json"
    good = {"file_path": "a.jpg", "transform_matrix": np.eye(4).tolist()}
    frames = [good, {"file_path": "b.jpg"}, {"transform_matrix": []}, 3, {**good, "transform_matrix": [[1]]},
              {**good, "transform_matrix": np.zeros((4, 4)).tolist()}]  # fmt: skip
    path.write_text(json.dumps({"frames": frames, "camera_angle_x": 1.0}))
    poses = nerfstudio.read_transforms(path)
    assert poses.names == ("a.jpg",)
    assert len(poses.problems) == 5
    assert poses.fields_of_view[0] == pytest.approx(np.degrees(1.0))
    np.testing.assert_array_equal(poses.rotations[0][:, 2], [0, 0, -1])  # looks along -z
    for content in ({}, {"frames": []}, [1], {"frames": [good], "applied_transform": [1]}):
        path.write_text(json.dumps(content))
        with pytest.raises(DatasetError):
            nerfstudio.read_transforms(path)
