"""EigenPlaces: classes, points and views against the formulas of the paper, written plainly here with numpy's SVD."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cosplace.cli.commands import main
from cosplace.config.groups import GroupsConfig
from cosplace.config.methods import MethodSettings
from cosplace.config.sections import Grouping, TrainConfig
from cosplace.config.values import from_values, to_values
from cosplace.errors import ConfigError, DatasetError
from cosplace.photos.image_list import image_list
from cosplace.photos.panoramas import cut_view
from cosplace.training.augmentation import Augmentation
from cosplace.training.batches import GroupImages
from cosplace.training.eigenplaces import check_views, focal_points, partition_views, view_errors
from cosplace.training.group_cache import cached_views
from cosplace.training.groups import Groups

M, N = 15, 3
Photo = tuple[float, float, float, str]  # east, north, heading, panorama id


def grouping(**changes) -> Grouping:
    return Grouping(**({"M": M, "alpha": 360, "N": N, "L": 1, "groups_num": 1, "min_images_per_class": 2} | changes))


def method(**changes) -> MethodSettings:
    return MethodSettings(method="eigenplaces", **changes)


def name(photo: Photo) -> str:
    east, north, heading, panorama = photo
    return f"@{east:.2f}@{north:.2f}@10@S@37.70000@-122.40000@{panorama}@@{heading:.2f}@@@@202001@@.jpg"


# --- the formulas, plainly -------------------------------------------------------------------------------------------


def plain_points(positions: list[tuple[float, float]], distance: float) -> dict[str, np.ndarray]:
    x = np.array(positions)
    mean = x.mean(0)
    u, spread, _ = np.linalg.svd((x - mean).T)  # (2, 2): directions in its columns
    v1 = u[:, 1]
    if v1[1] < -1e-9 or (abs(v1[1]) < 1e-9 and v1[0] < 0):  # the northern side; the eastern one if neither is north
        v1 = -v1
    if len(x) < 2 or spread[0] ** 2 - spread[1] ** 2 < 1e-6:  # no direction
        v1 = np.array([0.0, 1.0])
    turned = np.array([[0, -1], [1, 0]]) @ v1  # 90 degrees counterclockwise
    return {"lateral": mean + distance * v1, "frontal": mean + distance * turned}


def plain_bearing(point: np.ndarray, position: tuple[float, float]) -> float:
    return math.degrees(math.atan2(point[0] - position[0], point[1] - position[1])) % 360


def plain_error(a: float, b: float) -> float:
    return abs((a - b + 180) % 360 - 180)


def plain_classes(names: list[str], knobs: Grouping, how: MethodSettings) -> dict[tuple, dict[str, float]]:
    """(group, view, cell) -> {name: bearing of its point}; group = remainders of the cell."""
    cells: dict[tuple[int, int], dict[tuple, list[tuple[str, float]]]] = {}
    for one in sorted(names):
        fields = one.split("@")
        east, north, heading = float(fields[1]), float(fields[2]), float(fields[9])
        cell = (math.floor(east / knobs.M), math.floor(north / knobs.M))
        position = (east, north, one if how.panoramas else fields[7])
        cells.setdefault(cell, {}).setdefault(position, []).append((one, heading + how.heading_offset))
    classes = {}
    for cell, positions in cells.items():
        if len(positions) < knobs.min_images_per_class:
            continue
        points = plain_points([position[:2] for position in positions], how.focal_distance)
        for view, point in points.items():
            found = {}
            for position, photos in positions.items():
                bearing = plain_bearing(point, position[:2])
                nearest, heading = min(photos, key=lambda photo: plain_error(photo[1], bearing))
                if how.panoramas or plain_error(heading, bearing) <= how.max_view_error:
                    found[nearest] = bearing
            if len(found) >= knobs.min_images_per_class:
                classes[cell[0] % knobs.N, cell[1] % knobs.N, view, cell] = found
    return classes


def as_classes(groups: Groups) -> dict[tuple, dict[str, float]]:
    """The same of `Groups`; checks that each group has the cells of one pair of remainders."""
    classes = {}
    for number in range(len(groups)):
        group, remainders = groups[number], set()
        assert group.offsets is not None
        for index, (east, north, nothing) in enumerate(group.cells.tolist()):
            assert nothing == 0
            cell = east // M, north // M
            remainders.add((cell[0] % N, cell[1] % N))
            images = range(group.class_starts[index], group.class_starts[index + 1])
            classes[cell[0] % N, cell[1] % N, groups.views[number % 2], cell] = {
                group.image_name(image): float(group.offsets[image]) for image in images
            }
        assert len(remainders) <= 1
    return classes


numbers = st.integers(0, 4_000).map(lambda n: n / 100)
photo_lists = st.lists(
    st.tuples(numbers, numbers, st.floats(0, 359).map(lambda x: round(x, 2)), st.sampled_from(["", "a", "b"])),
    min_size=20, max_size=80, unique_by=name,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(photo_lists, st.booleans(), st.sampled_from([0.0, 27.7]), st.sampled_from([10.0, 20.0]))
def test_classes_are_those_of_the_formulas(photos: list[Photo], panoramas: bool, offset: float, distance: float):
    """Several photos at one place, close places, cells with few of them."""
    photos = [(550_000 + x // 4 * 4, 4_180_000 + y // 4 * 4 + x % 1, h, p) for x, y, h, p in photos]
    names = sorted({name(photo) for photo in photos})
    how = method(panoramas=panoramas, heading_offset=offset, focal_distance=distance)
    groups = partition_views(image_list(Path("photos"), names), grouping(), how)
    found, wanted = as_classes(groups), plain_classes(names, grouping(), how)
    assert {key: set(photos) for key, photos in found.items()} == {key: set(photos) for key, photos in wanted.items()}
    for key, images in wanted.items():
        for one, bearing in images.items():
            heading = float(one.split("@")[9]) + offset
            assert plain_error(heading + found[key][one], bearing) < 1e-3
    errors = [abs(offset) for images in found.values() for offset in images.values()] if not panoramas else []
    assert max(errors, default=0.0) <= how.max_view_error
    summary = view_errors(groups)
    assert sum(view["num_images"] for view in summary.values()) == sum(map(len, wanted.values()))
    assert max(view["max_error_deg"] for view in summary.values()) == pytest.approx(max(errors, default=0), abs=0.01)


def test_groups_are_pairs_in_the_order_of_their_first_photo() -> None:
    """Cell 2 comes first in the list, then cell 0; cells 0 and 3 share a group."""
    photos = [(x + step, 5.0 + step / 10, 0.0, f"{x}") for x in (30, 0, 45) for step in (1.0, 3.0, 5.0)]
    names = [f"{'a' if east > 29 and east < 40 else 'b'}/{name((east, *rest))}" for east, *rest in photos]
    groups = partition_views(image_list(Path("photos"), names), grouping(), method(panoramas=True))
    assert [groups.title(number) for number in range(len(groups))] == [
        "group 0 lateral", "group 0 frontal", "group 1 lateral", "group 1 frontal",
    ]  # fmt: skip
    assert [groups[number].cells[:, 0].tolist() for number in range(4)] == [[30], [30], [0, 45], [0, 45]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), min_size=1, unique=True))
def test_cells_of_a_group_are_30_m_apart(cells: list[tuple[int, int]]) -> None:
    photos = [(M * (33_334 + x) + step, M * (266_667 + y) + step, 0.0, "") for x, y in cells for step in (1.0, 9.0)]
    groups = partition_views(image_list(Path("p"), list(map(name, photos))), grouping(), method(panoramas=True))
    assert sum(len(groups[number].cells) for number in range(0, len(groups), 2)) == len(cells)
    for number in range(len(groups)):
        corners = groups[number].cells[:, :2]
        gaps = np.abs(corners[:, None] - corners).max(-1) - M  # between the borders of two cells
        assert (gaps[~np.eye(len(corners), dtype=bool)] >= 30).all()


# --- points ----------------------------------------------------------------------------------------------------------

positions = st.lists(st.tuples(st.floats(0, 15), st.floats(0, 15)), min_size=3, max_size=30).filter(
    lambda x: np.ptp(np.linalg.svd(np.array(x) - np.mean(x, 0))[1]) > 0.1  # one direction varies more
)


def points_of(x: np.ndarray, distance: float = 10.0) -> np.ndarray:
    return focal_points(*x.T, np.zeros(len(x), np.int64), distance)[:, 0]


@settings(deadline=None)
@given(positions, st.floats(0, 360), st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), st.floats(0, 50))
def test_points_turn_and_move_with_the_world(x, angle: float, shift, distance: float) -> None:
    x, c, s = np.array(x), math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[c, -s], [s, c]])
    np.testing.assert_allclose(points_of(x + np.array(shift), distance), points_of(x, distance) + shift, atol=1e-4)
    before, after, mean = points_of(x, distance) - x.mean(0), points_of(x @ turn.T, distance), x.mean(0) @ turn.T
    wanted = before @ turn.T
    sign = 1 if np.allclose(after - mean, wanted, atol=1e-4) else -1  # a turned road has another northern side
    np.testing.assert_allclose(after - mean, sign * wanted, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(after - mean, axis=1), distance, atol=1e-9)


@pytest.mark.parametrize(
    ("road", "lateral", "frontal"),
    [
        ([(0, 0), (10, 0)], (0, 1), (-1, 0)),  # to the east: north of it, and westwards
        ([(0, 0), (0, 10)], (1, 0), (0, 1)),  # to the north: neither side is north, so the east
        ([(0, 0), (10, 10)], (-(0.5**0.5), 0.5**0.5), (-(0.5**0.5), -(0.5**0.5))),
        ([(3, 3), (3, 3)], (0, 1), (-1, 0)),  # no direction
    ],
)
def test_the_northern_side_is_taught(road, lateral, frontal) -> None:
    x = np.array(road, dtype=float)
    np.testing.assert_allclose(points_of(x) - x.mean(0), 10 * np.array([lateral, frontal]), atol=1e-9)


# --- views of panoramas ----------------------------------------------------------------------------------------------


def strip(width: int = 416, height: int = 64) -> np.ndarray:
    """A strip of 360 degrees; its pixels tell their column and row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([columns // 256, columns % 256, rows], -1).astype(np.uint8)


@pytest.mark.parametrize("yaw", [0.0, 90.0, 359.0])
@pytest.mark.parametrize("bearing", [0.0, 45.0, 180.0, 271.5])
def test_a_view_is_cut_around_the_column_of_its_bearing(yaw: float, bearing: float) -> None:
    view = cut_view(strip(), bearing - yaw)
    assert view.shape == (64, 64, 3)
    columns = view[0, :, 0].astype(int) * 256 + view[0, :, 1]
    center = int(416 * ((bearing - yaw + 180) % 360) / 360)
    assert columns.tolist() == [(center - 32 + step) % 416 for step in range(64)]
    assert view[:, 0, 2].tolist() == list(range(64))


def test_a_sphere_is_cut_like_the_strips_of_sf_xl() -> None:
    """Rows 512 to 1023 of 1664, and 512 of 3328 columns."""
    view = cut_view(strip(832, 416), 0.0)
    assert view.shape == (128, 128, 3)
    assert view[:, 0, 2].tolist() == [row % 256 for row in range(128, 256)]
    assert cut_view(strip(3328, 512), 0.0).shape == (512, 512, 3)
    assert cut_view(strip(900, 60), 0.0).shape == (60, 60, 3)
    with pytest.raises(ValueError, match="64 x 64 pixels"):
        cut_view(strip(64, 64), 0.0)


def write_panoramas(folder: Path, *, width: int = 416) -> Path:
    """Two cells of three panoramas on a road to the east, facing in several directions."""
    folder.mkdir()
    for number, east in enumerate((1.0, 6.0, 11.0, 46.0, 51.0, 56.0)):
        file = folder / name((550_005 + east, 4_180_005.0, 40.0 * number, f"p{number}")).replace(".jpg", ".png")
        Image.fromarray(strip(width)).save(file)
    return folder


def test_batches_show_the_point_from_each_panorama(tmp_path: Path) -> None:
    folder = write_panoramas(tmp_path / "train")
    names = [path.name for path in folder.iterdir()]
    groups = partition_views(image_list(folder, names), grouping(N=1), method(panoramas=True))
    check_views(groups, grouping(N=1), method(panoramas=True))
    classes = plain_classes(names, grouping(N=1), method(panoramas=True))
    assert len(groups) == 2
    for number, view in enumerate(("lateral", "frontal")):
        group = pickle.loads(pickle.dumps(groups[number]))
        for image in range(group.num_images):
            one = group.image_name(image)
            cell = tuple(int(float(value)) // M for value in one.split("@")[1:3])
            bearing = classes[0, 0, view, cell][one]
            wanted = 416 * ((bearing - float(one.split("@")[9]) + 180) % 360) / 360
            pixels = cut_view(np.asarray(Image.open(group.image_path(image))), group.view_offset(image))
            found = int(pixels[0, 32, 0]) * 256 + int(pixels[0, 32, 1])
            assert abs((found - wanted + 208) % 416 - 208) <= 1
        batch = GroupImages(group, seed=0, epoch=0, settings=Augmentation(image_size=64)).batch(range(8))
        assert batch.stacks[0].shape == (8, 3, 64, 64)


def test_photos_are_no_panoramas(tmp_path: Path) -> None:
    folder = write_panoramas(tmp_path / "train", width=64)
    groups = partition_views(
        image_list(folder, [path.name for path in folder.iterdir()]), grouping(N=1), method(panoramas=True)
    )
    with pytest.raises(DatasetError, match=r"is not a panorama of 360 degrees.*Omit --panoramas"):
        check_views(groups, grouping(N=1), method(panoramas=True))


# --- settings and commands -------------------------------------------------------------------------------------------


def test_the_method_brings_its_own_defaults() -> None:
    values = to_values(from_values(TrainConfig, {"method": "eigenplaces", "M": 20}))
    wanted = {
        "M": 20, "N": 3, "L": 1, "alpha": 360, "groups_num": 9, "min_images_per_class": 5, "scale": 100.0,
        "margin": 0.4, "epochs_num": 40, "iterations_per_epoch": 5000, "batch_size": 32, "lr": 1e-5,
        "classifiers_lr": 0.01, "focal_distance": 10.0,
    }  # fmt: skip
    assert {key: values[key] for key in wanted} == wanted
    assert to_values(from_values(TrainConfig, {"method": "cosplace"})) == to_values(TrainConfig())
    assert from_values(GroupsConfig, {"folder": "x", "method": "eigenplaces"}).grouping.M == 15


@pytest.mark.parametrize("setting", [{"focal_distance": 20.0}, {"panoramas": True}, {"heading_offset": 27.7}])
def test_settings_of_the_other_method_are_refused(setting: dict) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(setting))} needs --method eigenplaces"):
        from_values(TrainConfig, setting)


def test_headings_are_no_part_of_these_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--alpha and --L do not apply"):
        partition_views(image_list(Path("photos"), []), grouping(alpha=30), method())
    images = image_list(tmp_path / "photos", [name((550_001.0, 4_180_003.0, 0.0, ""))])
    cached_views(images, grouping(), method(), tmp_path / "cache")
    with pytest.raises(ConfigError, match="--alpha and --L do not apply"):
        cached_views(images, grouping(L=2), method(), tmp_path / "cache")


def test_groups_prints_counts_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Four photos at each of three positions of a cell, at right angles; two cells; one class is looked at exactly."""
    photos = [
        (550_005 + east, 4_180_005.0, heading, "")
        for east in (1.0, 6.0, 11.0, 46.0, 51.0, 56.0)
        for heading in (0.0, 90.0, 180.0, 270.0)
    ]
    for photo in photos:
        Image.new("RGB", (8, 8)).save(tmp_path / name(photo))
    flags = [str(tmp_path), "--method=eigenplaces", "--N=1", "--groups_num=1", "--min_images_per_class=3"]
    assert main(["groups", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["groups"] == [{"view": view, "num_classes": 2, "num_images": 6} for view in ("lateral", "frontal")]
    # The outer photos are 5 m from the mean: at 10 m, the point is atan(5 / 10) off their axis.
    error = math.degrees(math.atan(0.5))
    assert found["views"]["lateral"]["max_error_deg"] == pytest.approx(error, abs=0.01)
    assert found["views"]["lateral"]["mean_error_deg"] == pytest.approx(2 / 3 * error, abs=0.01)
    assert main(["groups", *flags, "--no_cache"]) == 0
    out = capsys.readouterr().out
    assert "lateral views: 6 photos" in out and "at most 26.6" in out
    assert out.splitlines()[-1].split() == ["0", "2", "6", "2", "6"]
    assert main(["groups", *flags, "--max_view_error=10"]) == 2
    assert "group 0 lateral has 0 classes" in capsys.readouterr().err
    assert main(["groups", *flags, "--gsv_csv=places"]) == 2
    assert main(["groups", *flags, "--groups_num=9"]) == 2
    assert "has 1 group, fewer than --groups_num 9" in capsys.readouterr().err


def test_cached_groups_are_the_same(tmp_path: Path) -> None:
    photos = [(550_001.0 + x, 4_180_003.0 + x % 4, 30.0 * (x % 12), "") for x in range(100)]
    images = image_list(tmp_path / "photos", list(map(name, photos)))
    direct = partition_views(images, grouping(), method())
    for _ in range(2):
        cached = cached_views(images, grouping(), method(), tmp_path / "cache")
        assert as_classes(cached) == as_classes(direct)
        assert (cached.views, cached.panoramas) == (direct.views, False)
    other = cached_views(images, grouping(), method(focal_distance=20.0), tmp_path / "cache")
    assert as_classes(other) != as_classes(direct)
    assert cached_views(images, grouping(), method(panoramas=True), tmp_path / "cache").panoramas
