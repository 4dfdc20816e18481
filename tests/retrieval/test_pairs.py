"""Image pairs: compared with plain loops over all photos."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.cli.commands import main
from cosplace.errors import DatasetError
from cosplace.photos.image_list import image_list
from cosplace.photos.names import format_image_name
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import PhotoRecord, to_table, write_table
from cosplace.retrieval.pairs import (
    join_pairs,
    pairs_by_descriptor,
    pairs_by_order,
    pairs_by_position,
    sequences_of,
    times_of,
    viewpoints_of,
    write_pairs,
)
from tests.synthetic_dataset import place_image
from tests.unusual_input.samples import utm_name


def photo(east: float, north: float, heading: int | str = 0, name: str = "", timestamp: str = "") -> str:
    return format_image_name(utm_east=east, utm_north=north, zone=10, letter="S", latitude=37.7, longitude=-122.4,
                             pano_id=name, heading=heading, timestamp=timestamp)  # fmt: skip


def scene(seed: int, count: int = 60):
    """A list, and the numbers in its names: east, north, heading (nan where unknown), in the order of the list."""
    rng = np.random.default_rng(seed)
    east, north = rng.uniform(0, 100, (2, count))
    rows = [
        (550_000 + east[row], 4_180_000 + north[row], int(rng.integers(0, 360)) if row % 7 else "")
        for row in range(count)
    ]
    images = image_list(Path("photos"), [photo(*row, name=str(number)) for number, row in enumerate(rows)])
    parts = [images.name(row).split("@") for row in range(count)]
    return images, np.array([[float(one[1]), float(one[2]), float(one[9] or "nan")] for one in parts])


def turn(a: float, b: float) -> float:
    return abs((a - b + 180) % 360 - 180)


def test_pairs_within_a_radius_are_those_of_a_loop() -> None:
    images, numbers = scene(0)
    found = join_pairs([pairs_by_position(None, *viewpoints_of(images), 20.0, 45.0, 1000)], within=True)
    expected = []
    for a, b in itertools.combinations(range(len(images)), 2):
        near = np.hypot(*(numbers[a, :2] - numbers[b, :2])) <= 20
        if near and not turn(numbers[a, 2], numbers[b, 2]) > 45:
            expected.append([a, b])
    assert len(expected) > 20
    assert found.tolist() == expected


def test_queries_are_paired_with_the_database_nearest_first() -> None:
    database, numbers = scene(1)
    queries, own = scene(2, 10)
    found = pairs_by_position(*viewpoints_of(queries, database), 1000.0, 180.0, 3)
    for row in range(10):
        distances = np.hypot(*(numbers[:, :2] - own[row, :2]).T)
        assert found[found[:, 0] == row, 1].tolist() == np.argsort(distances)[:3].tolist()


def test_pairs_across_the_border_of_two_zones() -> None:
    """pyproj: 8.8 m across the border of zones 10 and 11, and 529 km between equal coordinates of these zones."""
    west, east = utm_name(37.7, -120.00005, zone=10), utm_name(37.7, -119.99995, zone=11)
    alike = utm_name(37.7, -123.0, zone=10), utm_name(37.7, -117.0, zone=11)
    assert alike[0].split("@")[1:3] == alike[1].split("@")[1:3]
    images = image_list(Path("photos"), [west, east, *alike])
    found = pairs_by_position(None, *viewpoints_of(images), 25.0, 180.0, 10)
    assert [{images.name(row) for row in pair} for pair in join_pairs([found], within=True).tolist()] == [{west, east}]
    queries, database = image_list(Path("queries"), [west, alike[0]]), image_list(Path("database"), [east, alike[1]])
    found = pairs_by_position(*viewpoints_of(queries, database), 25.0, 180.0, 10).tolist()
    assert [(queries.name(query), database.name(match)) for query, match in found] == [(west, east)]


def test_pairs_of_a_list_on_a_map_and_one_in_a_zone(tmp_path: Path) -> None:
    """pyproj: 100.02 m between the nearest photos; the database is on both sides of a zone's border, the query not."""
    for part, places in (
        ("database", [(45.0, 11.9999), (45.0, 12.0001), (45.0, 12.1)]),
        ("queries", [(45.0009, 12.1)]),
    ):
        (tmp_path / part).mkdir()
        records = [PhotoRecord(path=f"{n}.jpg", latitude=y, longitude=x) for n, (y, x) in enumerate(places)]
        for record in records:
            (tmp_path / part / record.path).touch()
        write_table(tmp_path / part / "photos.parquet", to_table(records))
    queries, database = scan_images(tmp_path / "queries"), scan_images(tmp_path / "database")
    assert (queries.map_center, database.map_center) == (None, (45.0, 12.0))
    found = [pairs_by_position(*viewpoints_of(queries, database), radius_m, 180.0, 5) for radius_m in (99, 101)]
    assert [one.tolist() for one in found] == [[], [[0, 2]]]


def test_photos_without_position_have_no_pairs() -> None:
    images = image_list(Path("photos"), ["@0@0@@@@@a@@@@@@@@.jpg", "@0@0@@@@@b@@@@@@@@.jpg"])
    assert len(pairs_by_position(None, *viewpoints_of(images), 1e9, 180.0, 5)) == 0


def test_next_photos_by_time_within_a_folder_and_without_gaps() -> None:
    stamps = ["20200101000010", "20200101000000", "20200101000020", "20200101120000", "20200101120001"]
    names = ["a/" + photo(550_000, 4_180_000, 0, str(row), stamp) for row, stamp in enumerate(stamps)]
    names += [f"b/{row}.jpg" for row in range(3)]
    images = image_list(Path("photos"), names)
    order = sequences_of(images, times_of(images), 600.0)
    assert order == [[1, 0, 2], [3, 4], [5, 6, 7]]
    assert join_pairs([pairs_by_order(order, 1)], within=True).tolist() == [[0, 1], [0, 2], [3, 4], [5, 6], [6, 7]]
    assert pairs_by_order(order[2:], 2).tolist() == [[5, 6], [5, 7], [6, 7]]
    assert len(pairs_by_order([], 3)) == 0


@pytest.mark.parametrize("count", [2, 3, 30])
def test_similar_photos_are_those_of_a_loop(count: int) -> None:
    rows = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    rows[1] = rows[0]  # the same photo twice: itself need not be the first match
    found = pairs_by_descriptor(None, rows, 4)
    for row in range(count):
        distances = ((rows - rows[row]) ** 2).sum(1)
        others = [other for other in np.argsort(distances, kind="stable").tolist() if other != row]
        assert found[found[:, 0] == row, 1].tolist() == others[:4]
    queries = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    assert len(pairs_by_descriptor(queries, rows, 4)) == 5 * min(4, count)


def test_each_pair_once() -> None:
    both = [np.array([[0, 1], [1, 0], [2, 1]]), np.array([[0, 1]])]
    assert join_pairs(both, within=True).tolist() == [[0, 1], [1, 2]]
    assert join_pairs(both, within=False).tolist() == [[0, 1], [1, 0], [2, 1]]
    assert join_pairs([], within=True).shape == (0, 2)


def test_odd_names_do_not_break_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = image_list(
        tmp_path / "photos", ["a.jpg", "b c.jpg", "d\te.jpg", "x=1;\"'.jpg", "\u2003.jpg", "\udcff.jpg"]
    )
    pairs = np.array(list(itertools.combinations(range(6), 2)))
    assert write_pairs(tmp_path / "pairs.txt", pairs, images, images, tmp_path) == 1
    assert (tmp_path / "pairs.txt").read_text() == "photos/a.jpg photos/x=1;\"'.jpg\n"
    assert "4 photos are left out" in caplog.text
    with pytest.raises(DatasetError, match="names have spaces"):
        write_pairs(tmp_path / "pairs.txt", np.array([[1, 2]]), images, images, tmp_path)
    with pytest.raises(DatasetError, match="No pairs"):
        write_pairs(tmp_path / "pairs.txt", np.empty((0, 2), np.int64), images, images, tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------


def write_test_set(folder: Path) -> Path:
    for number in range(6):
        for part, shift in (("database", 0), ("queries_v1", 3)):
            path = folder / part / photo(550_000 + 100 * (number // 2) + shift, 4_180_000 + number % 2, 0, f"p{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(place_image(number // 2, number % 2)).save(path)
    return folder


def read(path: Path) -> list[list[str]]:
    return [line.split(" ") for line in path.read_text().splitlines()]


def test_pairs_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_test_set(tmp_path / "test")
    assert main(["pairs", str(dataset / "database"), "--to", str(tmp_path / "pairs.txt")]) == 0
    pairs = read(tmp_path / "pairs.txt")
    assert len(pairs) == 3
    assert all((dataset / "database" / name).is_file() for pair in pairs for name in pair)
    assert "3 pairs" in capsys.readouterr().out


def test_pairs_of_queries_by_a_model(tmp_path: Path) -> None:
    import torch

    from cosplace.models.network import new_network

    dataset = write_test_set(tmp_path / "test")
    model = new_network(
        backbone="ResNet18_Small", fc_output_dim=16, train_all_layers=True, imagenet_weights="none", seed=0
    )
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (dataset / "database" / photo(1, 1, 0, "broken")).write_bytes(b"\xff\xd8\xff" + b"x" * 100)
    words = ["pairs", str(dataset), "--to", str(tmp_path / "pairs.txt"), "--queries_folder", "queries_v1"]
    assert main([*words, "--model", str(tmp_path / "model.pth"), "--num_matches", "2", "--device", "cpu"]) == 0
    pairs = read(tmp_path / "pairs.txt")
    assert len(pairs) == 12
    assert all(one.startswith("queries_v1/") and two.startswith("database/") for one, two in pairs)
    assert all((dataset / name).is_file() and "broken" not in name for pair in pairs for name in pair)
    assert main([*words, "--next_photos", "2"]) == 2


def test_pairs_of_a_table(tmp_path: Path) -> None:
    records = []
    for number in range(4):
        path = f"photos/{number}.jpg"
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / path)
        split = "test/queries" if number == 3 else "test/database"
        records.append(
            PhotoRecord(path=path, latitude=45 + 1e-4 * number, longitude=7.0, time=1e9 - number, split=split)
        )
    write_table(tmp_path / "photos.parquet", to_table(records))
    words = ["pairs", str(tmp_path / "test"), "--to", str(tmp_path / "pairs.txt")]
    assert main([*words, "--queries_folder", "queries", "--radius_m", "15"]) == 0
    assert read(tmp_path / "pairs.txt") == [["photos/3.jpg", "photos/2.jpg"]]
    assert main([*words, "--next_photos", "1"]) == 0
    assert read(tmp_path / "pairs.txt") == [[f"photos/{n}.jpg", f"photos/{n + 1}.jpg"] for n in range(3)]


@pytest.mark.parametrize(("difference", "warned"), [("30", True), ("180", False)])
def test_headings_that_are_unknown_are_reported(
    tmp_path: Path, difference: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        Image.fromarray(place_image(number, 0, side=16)).save(
            tmp_path / photo(550_000 + number, 4_180_000, 90 if number else "", name=str(number))
        )
    words = ["pairs", str(tmp_path), "--to", str(tmp_path / "pairs.txt"), "--max_heading_difference", difference]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert ": 3 pairs;" in out
    assert ("1 of 3 photos without a heading: --max_heading_difference 30 does not" in err) == warned
