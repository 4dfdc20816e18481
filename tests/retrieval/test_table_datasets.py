"""Databases and queries from tables and from EXIF give the results of the same photos with '@' names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cosplace.errors import DatasetError
from cosplace.geo import distances_m
from cosplace.photos.names import format_image_name
from cosplace.photos.opening import open_pixels
from cosplace.photos.tables import TABLE_NAME, PhotoRecord
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import evaluate
from cosplace.retrieval.recall import find_positives
from cosplace.retrieval.validation import validate
from tests.table_samples import (
    GEOD,
    around,
    record_of_name,
    table_of_names,
    write_exif_photo,
    write_named_dataset,
    write_records,
)


class Colors(nn.Module):
    """A network that takes milliseconds."""

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(nn.functional.adaptive_avg_pool2d(photos, (2, 4)).flatten(1))


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_named_dataset(tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="module")
def table(named: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table_of_names(named, tmp_path_factory.mktemp("made") / "table")


def recalls(dataset: RetrievalDataset) -> tuple[dict[int, float], list[list[int]]]:
    found = evaluate(Colors(), dataset, recall_values=(1, 5), device="cpu")
    return found.recalls, found.predictions.tolist()


@pytest.mark.parametrize("place", ["", "test", f"{TABLE_NAME}/test", "images/test"])
def test_a_table_evaluates_like_names(named: Path, table: Path, place: str) -> None:
    by_name, by_table = open_retrieval_dataset(named / "test"), open_retrieval_dataset(table / place)
    assert by_table.zones == by_name.zones == (10,)
    assert by_table.database_positions == pytest.approx(by_name.database_positions, abs=0.001)
    assert recalls(by_table) == recalls(by_name)


def test_exif_evaluates_like_names(named: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    by_name = open_retrieval_dataset(named / "test")
    for part, images in (("database", by_name.database), ("queries", by_name.queries)):
        for row in range(len(images)):
            record = record_of_name(images.name(row))
            write_exif_photo(tmp_path / part / f"{row:05d}.jpg", record, open_pixels(images.path(row)))
    write_exif_photo(tmp_path / "queries" / "unplaced.jpg", PhotoRecord(path=""), np.zeros((8, 8, 3), np.uint8))
    by_exif = open_retrieval_dataset(tmp_path)
    assert by_exif.database_positions == pytest.approx(by_name.database_positions, abs=0.01)
    positives = [find_positives(one.database_positions, one.query_positions, 25) for one in (by_name, by_exif)]
    assert positives[0].counts.tolist() == positives[1].counts.tolist()
    assert "1 of 13 photos are left out, for example unplaced.jpg" in caplog.text


BORDERS = [(45.0, 12.0), (0.0, 9.0), (-17.0, 180.0), (89.999, 0.0)]


@pytest.mark.parametrize(("latitude", "longitude"), BORDERS)
def test_positives_across_borders(tmp_path: Path, latitude: float, longitude: float) -> None:
    records = around(latitude, longitude, 120, 150)
    records = [replace(one, split="test/queries" if row < 20 else "test/database") for row, one in enumerate(records)]
    dataset = open_retrieval_dataset(write_records(tmp_path, records) / "test")
    assert dataset.zones == () and dataset.database_positions.shape == (100, 2)
    counts = find_positives(dataset.database_positions, dataset.query_positions, 25).counts
    for query, count in zip(records[:20], counts.tolist(), strict=True):
        distances_m = [
            GEOD.inv(query.longitude, query.latitude, one.longitude, one.latitude)[2] for one in records[20:]
        ]
        low, high = (sum(distance <= limit for distance in distances_m) for limit in (24.998, 25.002))
        assert low <= count <= high


def test_lists_on_different_maps_are_compared_on_earth(tmp_path: Path) -> None:
    records = around(45.0, 12.0, 40, 30)
    write_records(tmp_path / "database", records)
    for number, record in enumerate(records):
        utm = format_image_name(
            utm_east=1, utm_north=1, zone=0, letter="", latitude=record.latitude, longitude=record.longitude
        )
        name = utm.replace("@0000001.00@0000001.00@00@", f"@{number + 1}@1@@")
        write_exif_photo(tmp_path / "queries" / name, record, np.zeros((8, 8, 3), np.uint8))
    dataset = open_retrieval_dataset(tmp_path)
    assert dataset.database_positions.shape == (40, 3)
    order = [int(dataset.queries.name(row).split("@")[1]) - 1 for row in range(40)]
    meters = np.linalg.norm(dataset.database_positions[order] - dataset.query_positions, axis=1)
    assert meters.max() < 2  # names have five decimals of a degree


@pytest.mark.parametrize(("latitude", "longitude"), [(45.06, 12.0), (45.0, 12.01)], ids=["other map", "one zone"])
def test_a_database_on_a_map_is_compared_with_queries_that_are_not_on_it(
    tmp_path: Path, latitude: float, longitude: float
) -> None:
    """pyproj: the distances on Earth, which points in space give up to 0.6%."""
    database, queries = around(45.0, 12.0, 20, 100), around(latitude, longitude, 20, 100)
    write_records(tmp_path / "database", database)
    write_records(tmp_path / "queries", queries)
    dataset = open_retrieval_dataset(tmp_path)
    assert dataset.database.map_center == (45.0, 12.0) != dataset.queries.map_center
    expected = [
        GEOD.inv(query.longitude, query.latitude, one.longitude, one.latitude)[2]
        for query, one in zip(queries, database, strict=True)
    ]
    assert distances_m(dataset.database_positions, dataset.query_positions) == pytest.approx(expected, rel=0.006)


def test_unknown_positions_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [replace(one, split="test/queries" if row < 2 else "test/database")
               for row, one in enumerate(around(45.0, 7.0, 6, 50))]  # fmt: skip
    records[3] = replace(records[3], latitude=float("nan"))
    dataset = open_retrieval_dataset(write_records(tmp_path / "a", records) / "test")
    assert len(dataset.database) == 3 == len(dataset.database_positions)
    assert "photos/0003.jpg: their position is unknown" in caplog.text
    nowhere = [replace(one, latitude=float("nan")) for one in records]
    with pytest.raises(DatasetError, match="all positions are unknown"):
        open_retrieval_dataset(write_records(tmp_path / "b", nowhere) / "test")


def test_other_parts_are_proposed(tmp_path: Path) -> None:
    records = [replace(one, split=split) for one, split in
               zip(around(45.0, 7.0, 2, 9), ("test/database", "test/photos_of_night"), strict=True)]  # fmt: skip
    folder = write_records(tmp_path, records)
    with pytest.raises(DatasetError, match="--queries_folder: photos_of_night"):
        open_retrieval_dataset(folder / "test")
    assert len(open_retrieval_dataset(folder / "test", "photos_of_night").queries) == 1


def test_folders_left_from_before_a_split_are_not_used(tmp_path: Path) -> None:
    """The splits of a table decide, unless a folder of queries is named."""
    names = ["test/database"] * 4 + ["test/queries"] * 2 + ["train"] * 4
    records = [replace(one, split=split) for one, split in zip(around(45.0, 7.0, 10, 9), names, strict=True)]
    folder = write_records(tmp_path, records)
    for left in ("test/queries_v1", "database", "queries", "val/database", "val/queries", "images/test/gallery"):
        write_exif_photo(folder / left / "left.jpg", records[0], np.zeros((8, 8, 3), np.uint8))
    for place in (folder, folder / "test", folder / "photos.parquet"):
        dataset = open_retrieval_dataset(place)
        assert (len(dataset.database), len(dataset.queries)) == (4, 2)
    assert len(open_retrieval_dataset(folder / "test", "queries_v1").queries) == 1
    assert [part.name for part in validate(folder, quick=True).parts] == ["train", "test/database", "test/queries"]
    with pytest.raises(DatasetError, match="has no subfolder database"):
        open_retrieval_dataset(folder, split="val")
