"""The synthetic city: equal pixels for equal seeds, views that agree in 3D, file names that are true."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("numba", reason="the renderer needs numba")

from cosplace.errors import ConfigError, DatasetError
from synthcity import capture
from synthcity.capture import CitySummary, build_city
from synthcity.layout import interior_size
from synthcity.poses import CityPlan, Shots, plan_city
from synthcity.render import district_shade, render, trace
from synthcity.scene import LOT, OBJECT, VIEW_LIMIT_M
from synthcity.settings import CitySettings
from synthcity.shadows import LOWEST_M, STEP_M, cast_shadows
from synthcity.view import WALL

SMALL = CitySettings(
    images=96, database_images=24, num_queries=6, years=2, image_size=32, samples_per_pixel=1, num_threads=1
)
FOLDERS = ("train", "val/database", "val/queries", "test/database", "test/queries_v1")


@pytest.fixture(scope="module")
def small_plan() -> CityPlan:
    return plan_city(SMALL)


@pytest.fixture(scope="module")
def small_city(tmp_path_factory: pytest.TempPathFactory) -> CitySummary:
    """A city on disk; building it compiles the renderer, once for all tests."""
    return build_city(tmp_path_factory.mktemp("city") / "out", SMALL)


def with_settings(**changes: object) -> CitySettings:
    values = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    return CitySettings(**(values | changes))


def image_paths(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*.jpg"))


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in image_paths(folder)}


# --- the same seed gives the same pixels -----------------------------------------------------------------------------


@pytest.mark.slow
def test_other_batches_and_threads_give_the_same_bytes(
    small_city: CitySummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "MOST_PER_TASK", 7)
    build_city(tmp_path / "again", with_settings(num_threads=2))
    assert digests(tmp_path / "again") == digests(small_city.folder)


@pytest.mark.slow
def test_another_process_gives_the_same_pixels(small_plan: CityPlan) -> None:
    script = (
        "import hashlib\n"
        "from synthcity import CitySettings, plan_city\n"
        "from synthcity.render import district_shade, render\n"
        f"shots = plan_city({SMALL!r}).shots[0]\n"
        "shade = district_shade(shots.district)\n"
        "images, _ = render(shots.district.scene, shade, shots.lights, shots.poses[:9], 32, 4)\n"
        "print(hashlib.sha256(images.tobytes()).hexdigest())\n"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    shots = small_plan.shots[0]
    images, _ = render(shots.district.scene, district_shade(shots.district), shots.lights, shots.poses[:9], 32, 4)
    assert other.stdout.strip() == hashlib.sha256(images.tobytes()).hexdigest()


@pytest.mark.slow
def test_another_seed_is_another_city(small_plan: CityPlan) -> None:
    other = plan_city(with_settings(seed=1))
    for mine, theirs in zip(small_plan.shots, other.shots, strict=True):
        assert not np.array_equal(mine.poses["x"], theirs.poses["x"])
        assert len(mine.district.scene.lots) != len(theirs.district.scene.lots) or not np.array_equal(
            mine.district.scene.lots["seed"], theirs.district.scene.lots["seed"]
        )


@pytest.mark.slow
def test_images_differ_and_are_well_exposed(small_city: CitySummary) -> None:
    paths = image_paths(small_city.folder)
    assert len(set(digests(small_city.folder).values())) == len(paths)
    brightness = [np.asarray(Image.open(small_city.folder / path)).mean() for path in paths]
    assert min(brightness) > 40
    assert max(brightness) < 215


# --- layout and names ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_counts_are_known_before_rendering(small_plan: CityPlan, small_city: CitySummary) -> None:
    assert tuple(small_plan.counts()) == FOLDERS
    assert small_plan.counts() == {"train": 96, **dict(zip(FOLDERS[1:], (24, 6, 24, 6), strict=True))}
    assert small_city.counts == small_plan.counts()
    for folder, count in small_city.counts.items():
        assert len(image_paths(small_city.folder / folder)) == count
    assert small_city.num_written == len(small_plan) == 156


@pytest.mark.parametrize(("images", "years"), [(1, 4), (1000, 3), (23_000, 4), (50_000, 1)])
def test_the_number_of_training_images_is_rounded_up_to_whole_sites(images: int, years: int) -> None:
    count = plan_city(with_settings(images=images, years=years)).counts()["train"]
    assert images <= count < images + 12 * years


@pytest.mark.slow
def test_names_contain_position_and_heading(small_plan: CityPlan, small_city: CitySummary) -> None:
    for shots in small_plan.shots:
        rows = np.arange(len(shots))
        names = capture.image_names(shots, rows)
        assert sorted(names) == [
            str(Path(shots.folder) / path) for path in image_paths(small_city.folder / shots.folder)
        ]
        fields = [Path(name).name.split("@") for name in names]
        assert all(len(parts) == 16 and parts[0] == "" and parts[3:5] == ["10", "S"] for parts in fields)
        east, north = shots.district.to_utm(shots.poses["x"], shots.poses["y"])
        np.testing.assert_allclose([float(parts[1]) for parts in fields], east, atol=0.0051)
        np.testing.assert_allclose([float(parts[2]) for parts in fields], north, atol=0.0051)
        heading = np.array([int(parts[9]) for parts in fields])
        assert [parts[9] for parts in fields] == [str(value) for value in heading]  # unpadded
        true = shots.poses["view_deg"] + shots.district.rotation_deg
        assert np.abs((true - heading + 180) % 360 - 180).max() <= SMALL.heading_jitter_deg + 0.01
        if "queries" not in shots.folder:
            assert set(heading) == set(range(0, 360, 30))
        if shots.folder == "train":
            assert all(name.split("/")[1] == parts[5][1:6] for name, parts in zip(names, fields, strict=True))


def test_splits_share_no_building(small_plan: CityPlan) -> None:
    walls = {}
    for shots in small_plan.shots:
        corners = shots.district.scene.lots["corners"].reshape(-1, 2).astype(np.float64)
        walls[shots.district.name] = np.stack(shots.district.to_utm(corners[:, 0], corners[:, 1]), axis=1)
    assert len(walls) == 3
    for first, second in itertools.combinations(walls.values(), 2):
        gap = np.maximum(first.min(axis=0) - second.max(axis=0), second.min(axis=0) - first.max(axis=0)).max()
        assert gap > VIEW_LIMIT_M + 300


def test_every_query_has_a_database_image_within_25_meters() -> None:
    plan = plan_city(CitySettings(images=500, database_images=1200, num_queries=300, query_sideways=1.0))
    for database, queries in (plan.shots[1:3], plan.shots[3:5]):
        near = np.hypot(
            database.poses["x"][:, None] - queries.poses["x"], database.poses["y"][:, None] - queries.poses["y"]
        ).min(axis=0)
        assert near.max() <= 25.0


def test_cameras_keep_away_from_the_edge_of_the_city() -> None:
    """From streets at the border, open country is visible: every site has buildings around it."""
    shots = plan_city(with_settings(images=5000)).shots[0]
    corners = shots.district.scene.lots["corners"].reshape(-1, 2)
    for axis, name in enumerate("xy"):
        assert shots.poses[name].min() > corners[:, axis].min() + 60
        assert shots.poses[name].max() < corners[:, axis].max() - 60


# --- views agree in 3D -----------------------------------------------------------------------------------------------


def plain_light(shots: Shots) -> np.ndarray:
    light = shots.lights[:1].copy()
    light["haze_m"], light["lamps"], light["wet"] = 1e9, 0.0, 0.0
    return light


def unproject(pose: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """World points (side, side, 3) on the rays of a pinhole camera whose pitch is a shift of its horizon."""
    side = len(depth)
    pixel = np.arange(side) + 0.5
    focal = 0.5 * side / np.tan(np.radians(pose["fov_deg"]) / 2)
    right = (pixel[None, :] - 0.5 * side) / focal * depth
    up = (side * (0.5 + pose["horizon"]) - pixel[:, None]) / focal * depth
    angle = np.radians(pose["view_deg"])
    x = pose["x"] + np.sin(angle) * depth + np.cos(angle) * right
    y = pose["y"] + np.cos(angle) * depth - np.sin(angle) * right
    return np.stack([x, y, pose["height_m"] + up], axis=-1)


def project(pose: np.ndarray, points: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, rows and depths of world points (P, 3) in a pinhole camera."""
    angle = np.radians(pose["view_deg"])
    dx, dy = points[:, 0] - pose["x"], points[:, 1] - pose["y"]
    depth = dx * np.sin(angle) + dy * np.cos(angle)
    focal = 0.5 * side / np.tan(np.radians(pose["fov_deg"]) / 2)
    column = 0.5 * side + focal * (dx * np.cos(angle) - dy * np.sin(angle)) / depth
    row = side * (0.5 + pose["horizon"]) - focal * (points[:, 2] - pose["height_m"]) / depth
    return column, row, depth


def agreement(shots: Shots, first: np.ndarray, second: np.ndarray, shift_m: float) -> tuple[float, int]:
    """Share of wall points of one view, shifted up by `shift_m`, with the same color in a second view; their number."""
    side, light, shade = 512, plain_light(shots), district_shade(shots.district)
    a = trace(shots.district.scene, shade, light, first, side)
    b = trace(shots.district.scene, shade, light, second, side)
    seen = (a.shows == WALL) & (a.depth < 40)
    points, colors = unproject(first[0], a.depth.astype(np.float64))[seen], a.color[seen]
    column, row, depth = project(second[0], points + np.array([0.0, 0.0, shift_m]), side)
    inside = (depth > 1) & (column >= 0) & (row >= 0) & (column < side) & (row < side)
    i, j = row[inside].astype(int), column[inside].astype(int)
    near = (b.shows[i, j] == WALL) & (np.abs(b.depth[i, j] - depth[inside]) < 0.02 * depth[inside])
    error = np.abs(colors[inside][near] - b.color[i, j][near]).max(axis=1)
    return float((error < 0.03).mean()), int(near.sum())


@pytest.mark.slow
@pytest.mark.parametrize("pair", [0, 5])
def test_a_facade_has_the_same_color_from_two_positions(small_plan: CityPlan, pair: int) -> None:
    shots = small_plan.shots[0]
    first = shots.poses[12 * pair : 12 * pair + 1].copy()
    first["light"] = 0
    first["view_deg"] += 60
    second = first.copy()
    second["x"] += 2.0
    second["y"] -= 1.5
    second["height_m"] += 0.4
    second["fov_deg"] += 6
    second["view_deg"] -= 8
    share, count = agreement(shots, first, second, 0.0)
    wrong, _ = agreement(shots, first, second, 0.3)
    assert count > 50_000
    assert share > 0.78  # the others are at the edges of windows
    assert wrong < share - 0.2  # 30 centimeters too high, colors differ


@pytest.mark.slow
def test_the_walls_in_an_image_are_where_its_name_puts_them() -> None:
    """Points computed from east, north and heading of the name are on the walls of the city in UTM."""
    shots = plan_city(with_settings(heading_jitter_deg=0.0)).shots[0]
    district, side = shots.district, 64
    faces = district.scene.faces
    ends = [np.stack(district.to_utm(faces[f"x{k}"].astype(float), faces[f"y{k}"].astype(float)), axis=1) for k in "01"]
    for row, name in enumerate(capture.image_names(shots, np.arange(4))):
        parts = Path(name).name.split("@")
        canvas = trace(district.scene, district_shade(district), plain_light(shots)[[0]], moved(shots, row), side)
        named = shots.poses[row].copy()
        named["x"], named["y"], named["view_deg"] = float(parts[1]), float(parts[2]), int(parts[9])
        points = unproject(named, canvas.depth.astype(np.float64))[canvas.shows == WALL][::17, :2]
        step = ends[1] - ends[0]
        offset = points[:, None] - ends[0]
        along = np.clip((offset * step).sum(axis=2) / (step**2).sum(axis=1), 0, 1)
        distance = np.linalg.norm(offset - along[..., None] * step, axis=2).min(axis=1)
        assert len(points) > 20
        assert distance.max() < 0.12  # rounding to centimeters


def moved(shots: Shots, row: int) -> np.ndarray:
    pose = shots.poses[row : row + 1].copy()
    pose["light"] = 0
    return pose


@pytest.mark.slow
def test_a_wall_casts_the_shadow_of_its_height() -> None:
    lots, objects = np.zeros(1, LOT), np.zeros(0, OBJECT)
    lots["corners"], lots["height"] = [(40, 40), (60, 40), (60, 60), (40, 60)], 12.0
    nodes = np.array([[[0.0, 0.0], [0.0, 100.0]], [[100.0, 0.0], [100.0, 100.0]]])
    rise = np.tan(np.radians(35.0))
    sun = np.array([[0.0, 1.0, rise]]) / np.hypot(1.0, rise)  # in the north, so shadows fall towards lower y
    maps, x0, y0 = cast_shadows(lots, objects, nodes, sun)
    for y in (38.5, 35.5, 30.5, 26.5):
        top = maps[0, int(50 - x0), int(y - y0)] * STEP_M + LOWEST_M
        assert top == pytest.approx(12.0 - (40 - y) * rise, abs=0.8)
    assert maps[0, int(50 - x0), int(70 - y0)] == 0  # nothing between this position and the sun
    assert maps[0, int(20 - x0), int(35 - y0)] == 0


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_work_for_an_image_does_not_grow_with_the_city() -> None:
    visits, faces = [], []
    for images in (20_000, 200_000):
        shots = plan_city(with_settings(images=images)).shots[0]
        poses = shots.poses[:: len(shots) // 60]
        shade = (np.zeros((6, 2, 2), np.uint8), 0.0, 0.0)
        visits.append(render(shots.district.scene, shade, shots.lights, poses, 16, 1)[1].mean(axis=0))
        faces.append(len(shots.district.scene.faces))
    assert faces[1] > 5 * faces[0]
    assert np.all(visits[1] < 1.2 * visits[0])
    assert np.all(visits[1] < 0.1 * faces[1])


def test_the_lattice_grows_with_the_length_of_streets() -> None:
    sizes = [interior_size(meters) for meters in (1.0, 1e3, 1e4, 1e5)]
    assert sizes[0] == (2, 2)
    assert all(a < b for a, b in itertools.pairwise(x * y for x, y in sizes))


# --- folders ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for KeyboardInterrupt."""


@pytest.mark.slow
def test_an_interrupted_build_continues_with_the_same_result(
    small_city: CitySummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "MOST_PER_TASK", 10)
    out = tmp_path / "city"

    def kill(task: str, done: int, total: int, note: str = "") -> None:
        if done >= total / 3:
            raise Killed

    with pytest.raises(Killed):
        build_city(out, SMALL, progress=kill)
    left = len(image_paths(out))
    assert 0 < left < 156
    assert not (out / "city.json").exists()
    seen: list[tuple[int, int]] = []
    summary = build_city(out, SMALL, progress=lambda task, done, total, note="": seen.append((done, total)))
    assert summary.num_found == left
    assert summary.num_written == 156 - left
    assert seen[-1] == (156, 156)
    assert digests(out) == digests(small_city.folder)
    assert sorted(path.name for path in out.iterdir()) == ["city.json", "test", "train", "val"]


@pytest.mark.slow
def test_a_complete_city_is_kept_and_a_deleted_image_is_rendered_again(tmp_path: Path) -> None:
    out = tmp_path / "city"
    build_city(out, SMALL)
    before = digests(out)
    deleted = out / image_paths(out)[3]
    deleted.unlink()
    summary = build_city(out, SMALL)
    assert (summary.num_written, summary.num_found) == (1, 155)
    assert digests(out) == before
    record = json.loads((out / "city.json").read_text())
    assert record["settings"]["image_size"] == 32
    assert record["counts"] == summary.counts


@pytest.mark.slow
def test_the_number_of_threads_may_change(small_city: CitySummary) -> None:
    assert build_city(small_city.folder, with_settings(num_threads=2)).num_written == 0


@pytest.mark.slow
def test_a_folder_with_a_different_city_is_refused(small_city: CitySummary) -> None:
    with pytest.raises(DatasetError, match=r"different city \(seed 0 instead of 7\)"):
        build_city(small_city.folder, with_settings(seed=7))
    with pytest.raises(DatasetError, match="different selection of training images"):
        build_city(small_city.folder, SMALL, keep=lambda east, north, heading: heading < 90)


@pytest.mark.parametrize("content", ["{", "[]", "[1]"])
def test_a_folder_with_a_broken_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "city.json").write_text(content)
    with pytest.raises(DatasetError, match="record of a city"):
        build_city(tmp_path, SMALL)


def test_other_files_are_kept_and_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match=r"thesis\.tex"):
        build_city(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(DatasetError, match="is a file"):
        build_city(tmp_path / "thesis.tex", SMALL)


@pytest.mark.slow
def test_selected_images_equal_those_of_the_complete_city(small_city: CitySummary, tmp_path: Path) -> None:
    calls = []

    def keep(east: np.ndarray, north: np.ndarray, heading: np.ndarray) -> np.ndarray:
        calls.append((east, north, heading))
        return heading % 60 == 0

    summary = build_city(tmp_path / "half", SMALL, keep=keep)
    assert summary.counts == small_city.counts | {"train": 48}
    whole, half = digests(small_city.folder), digests(tmp_path / "half")
    assert half.items() <= whole.items()
    names = [Path(name).name.split("@") for name in whole if name.startswith("train")]
    claimed = sorted((float(parts[1]), float(parts[2]), int(parts[9])) for parts in names)
    assert sorted(zip(*(values.tolist() for values in calls[0]), strict=True)) == claimed


def test_a_mask_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no training image"):
        build_city(tmp_path / "none", SMALL, keep=lambda east, north, heading: heading < 0)
    assert not (tmp_path / "none").exists()


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", 0),
        ("images", 1.5),
        ("seed", -1),
        ("image_size", 8),
        ("samples_per_pixel", 2),
        ("jpeg_quality", 101),
        ("years", True),
        ("traffic", 1.01),
        ("query_sideways", float("nan")),
        ("fov_deg", (80.0, 70.0)),
        ("query_horizon", (0.1,)),
    ],
)
def test_invalid_settings_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"The city's {name} must be "):
        with_settings(**{name: value})


def test_without_numba_the_error_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['numba'] = None\n"
        "from synthcity import CitySettings, build_city, plan_city\n"
        "from cosplace.errors import ConfigError\n"
        "settings = CitySettings(images=12, database_images=12, num_queries=1)\n"
        "assert len(plan_city(settings)) == 74, len(plan_city(settings))\n"
        "try:\n"
        "    build_city('out', settings)\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=dict(os.environ)
    )
    assert done.stdout.strip().endswith("run `pip install --upgrade numba`.")
    assert len(done.stdout.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
