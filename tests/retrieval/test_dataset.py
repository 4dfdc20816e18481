"""A database with its queries, opened from a folder."""

from pathlib import Path

import numpy as np
import pytest
from pyproj import Geod, Proj

from cosplace.config.sections import DatasetFolders
from cosplace.config.values import set_folder
from cosplace.errors import DatasetError
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import evaluate_descriptors
from cosplace.retrieval.recall import find_positives
from tests.synthetic_dataset import write_dataset, write_place

geod = Geod(ellps="WGS84")


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def test_databases_with_queries(dataset_folder: Path, tmp_path: Path) -> None:
    test = open_retrieval_dataset(dataset_folder / "test")
    assert (test.name, len(test.database), len(test.queries)) == ("test/queries_v1", 24, 12)
    assert open_retrieval_dataset(dataset_folder / "val").name == "val/queries"
    assert np.allclose(test.query_positions[:, 0].min(), 550_000 + 20_000 + 2)
    with pytest.raises(DatasetError, match=r"queries_night.*with --queries_folder: queries_v1"):
        open_retrieval_dataset(dataset_folder / "test", "queries_night")
    with pytest.raises(DatasetError, match="no subfolder database"):
        open_retrieval_dataset(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        open_retrieval_dataset(tmp_path / "x")
    (tmp_path / "database").mkdir()
    (tmp_path / "queries").mkdir()
    write_place(tmp_path / "database", 0, 0)
    with pytest.raises(DatasetError, match="queries has no photos"):
        open_retrieval_dataset(tmp_path)


def test_an_at_sign_in_a_folder_does_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "me@home" / "@set@1"
    write_place(folder / "database", 1, 0)
    write_place(folder / "queries", 1, 1)
    test = open_retrieval_dataset(folder)
    assert test.database_positions.tolist() == [[550012, 4180000]]


# --- zones and unknown positions -------------------------------------------------------------------------------------


def write_names(folder: Path, database: list[str], queries: list[str]) -> Path:
    for split, names in (("database", database), ("queries", queries)):
        (folder / split).mkdir(parents=True)
        for name in names:
            (folder / split / name).write_bytes(b"not opened")
    return folder


def positives_of(dataset: RetrievalDataset) -> list[list[int]]:
    positives = find_positives(dataset.database_positions, dataset.query_positions)
    return [positives.of(query).tolist() for query in range(len(positives))]


@pytest.mark.parametrize("with_zone", [True, False])
def test_positives_across_the_border_of_two_zones(tmp_path: Path, with_zone: bool) -> None:
    """A street along 39 N across 120 W, a photo each 20 m, compared with geodesics between latitudes and longitudes."""
    longitudes = -120 + (np.arange(-10, 10) + 0.5) * 20 / geod.inv(-120, 39, -119, 39)[2]
    names = []
    for number, longitude in enumerate(longitudes):
        zone = 10 if longitude < -120 else 11
        east, north = Proj(proj="utm", zone=zone, ellps="WGS84")(longitude, 39.0)
        both = f"39.00000@{longitude:.5f}" if number % 3 or not with_zone else "@"
        zone_and_letter = f"{zone}@S" if with_zone else "@"
        names.append(f"{number:02}@{east:.2f}@{north:.2f}@{zone_and_letter}@{both}@p{number}@@90@.jpg")
    dataset = open_retrieval_dataset(write_names(tmp_path, names, names))
    assert dataset.zones == (10, 11)
    near = [[other for other in range(20) if abs(other - number) <= 1] for number in range(20)]
    assert positives_of(dataset) == near
    found = evaluate_descriptors(np.eye(20, dtype=np.float32), np.eye(20, dtype=np.float32), dataset)
    assert found.recalls[1] == 100
    away = [abs(number - 9) * 20 for number in range(20)]
    assert found.distances_m[9][np.argsort(found.predictions[9])] == pytest.approx(away, abs=1)


def test_equal_numbers_in_different_zones_are_different_places(tmp_path: Path) -> None:
    names = {
        zone: [f"@{500_000 + 100 * i}.00@4317000.00@{zone}@S@@@p{i}@@90@.jpg" for i in range(3)] for zone in (10, 11)
    }
    dataset = open_retrieval_dataset(write_names(tmp_path, names[11], names[10]))
    assert positives_of(dataset) == [[], [], []]
    rows = np.eye(3, dtype=np.float32)
    distances = evaluate_descriptors(rows, rows, dataset, recall_values=(1,)).distances_m[:, 0]
    lonlat = [Proj(proj="utm", zone=zone, ellps="WGS84")(500_000, 4_317_000, inverse=True) for zone in (10, 11)]
    assert distances == pytest.approx(geod.inv(*lonlat[0], *lonlat[1])[2], rel=0.006)


def test_the_two_sides_of_the_equator_and_of_the_antimeridian(tmp_path: Path) -> None:
    # 10 m apart each: north and south of the equator in zone 36, west and east of 180 degrees at 17 S.
    south_of_equator = "@500000.00@9999995.00@36@M@@@s@.jpg"
    north_of_equator = "@500000.00@0000005.00@36@N@@@n@.jpg"
    sides = []
    for longitude, zone in ((179.99995, 60), (-179.99995, 1)):
        east, north = Proj(proj="utm", zone=zone, south=True, ellps="WGS84")(longitude, -17.0)
        sides.append(f"@{east:.2f}@{north:.2f}@{zone}@K@-17.00000@{longitude:.5f}@a@.jpg")
    dataset = open_retrieval_dataset(write_names(tmp_path, [south_of_equator, sides[0]], [north_of_equator, sides[1]]))
    assert sorted(map(len, positives_of(dataset))) == [1, 1]


@pytest.mark.parametrize("zones", [("10@S", "10@T"), ("@", "@"), ("10@S", "@"), ("@", "56@H")])
def test_one_zone_or_none_is_compared_by_east_and_north(tmp_path: Path, zones: tuple[str, str]) -> None:
    names = [[f"@{i}00.00@{15 + 20 * i}.50@{zone}@@@p@.jpg" for i in range(3)] for zone in zones]
    dataset = open_retrieval_dataset(write_names(tmp_path, *names))
    assert dataset.database_positions.tolist() == [[0, 15.5], [100, 35.5], [200, 55.5]]
    assert positives_of(dataset) == [[0], [1], [2]]


def test_photos_at_0_0_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known, unknown = "@10.00@20.00@@@@@p@.jpg", "@0@0@@@000.00000@0000.00000@id{}@.jpg"
    folder = write_names(tmp_path / "a", [unknown.format(1), known, unknown.format(2)], [unknown.format(3), known])
    dataset = open_retrieval_dataset(folder)
    assert [dataset.database.name(0), dataset.queries.name(0)] == [known, known]
    assert (len(dataset.database), dataset.database_positions.tolist()) == (1, [[10, 20]])
    assert "2 of 3 photos are left out" in caplog.text and "1 of 2 photos are left out" in caplog.text
    with pytest.raises(DatasetError, match="all positions are 0, 0, which means unknown"):
        open_retrieval_dataset(write_names(tmp_path / "b", [known], [unknown.format(3)]))


def test_one_warning_about_names_that_contradict_themselves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = "@0543037.38@4180974.80@10@S@038.77510@-122.51130@wrong{}@.jpg"  # a degree north
    right = "@0543037.38@4180974.80@10@S@037.77510@-122.51130@right{}@.jpg"
    folder = write_names(tmp_path, [text.format(i) for text in (wrong, right) for i in range(3)], [right.format(9)])
    open_retrieval_dataset(folder)
    (warning,) = caplog.messages
    assert "in 3 of 6 file names" in warning and "wrong0" in warning and "cosplace validate" in warning


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "between"), [("pitts30k", "images"), ("sfxl", "processed"), ("mine", "")])
def test_splits_in_a_usual_subfolder_are_found(tmp_path: Path, dataset: str, between: str) -> None:
    test = write_names(tmp_path / dataset / between / "test", ["@1@2@.jpg"], ["@1@2@.jpg"])
    given = DatasetFolders(dataset_folder=str(tmp_path / dataset))
    assert set_folder(given, "test") == test
    assert set_folder(given, "train") == tmp_path / dataset / "train"  # missing: the usual place, for the error
    assert open_retrieval_dataset(tmp_path / dataset).folder == test
    with pytest.raises(DatasetError, match="no subfolder database/"):
        open_retrieval_dataset(tmp_path / dataset, split="val")
    with pytest.raises(DatasetError, match=f"does not exist. Did you mean {test}?"):
        open_retrieval_dataset(test / "test")
