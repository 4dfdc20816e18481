"""Indexes of tables: positions, times and accuracies of the table; queries are left out; a new table is noticed."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cosplace.cli.locate import _find_photos
from cosplace.config.importing import ImportSettings
from cosplace.config.splitting import SplitConfig
from cosplace.engines.encoder import Encoder
from cosplace.errors import DatasetError
from cosplace.importing.import_run import run_import
from cosplace.index.building import add_photos, build_index
from cosplace.index.indexing import Indexing
from cosplace.index.photo_index import PhotoIndex, open_index
from cosplace.index.sources import find_photos, require_positions
from cosplace.index.syncing import sync_folder
from cosplace.photos.image_list import ImageList
from cosplace.photos.metadata import former_photo_key, read_metadata
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, from_table, read_table, to_table, write_table
from cosplace.retrieval.splitting import split_dataset
from tests.synthetic_dataset import place_image
from tests.table_samples import GEOD, around, write_exif_photo, write_records


class Colors(nn.Module):
    """A network that takes milliseconds."""

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(nn.functional.adaptive_avg_pool2d(photos, (2, 4)).flatten(1))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Colors(), name="colors", image_size=16, device="cpu")


@pytest.fixture
def records() -> list[PhotoRecord]:
    return [replace(one, accuracy_m=3.5) for one in around(45.0, 12.0, 8, 200)]


@pytest.fixture
def index(records: list[PhotoRecord], tmp_path: Path, encoder: Encoder) -> Iterator[PhotoIndex]:
    build_index(write_records(tmp_path / "city", records), encoder, tmp_path / "index")
    with open_index(tmp_path / "index", write=True) as opened:
        yield opened


def test_a_changed_time_and_accuracy_of_a_table_are_updated(
    index: PhotoIndex, records: list[PhotoRecord], tmp_path: Path, encoder: Encoder
) -> None:
    before = index.columns()
    changed = [
        replace(records[0], time=records[0].time + 86_400),
        replace(records[1], accuracy_m=50.0),
        replace(records[2], accuracy_m=math.nan),
        *records[3:],
    ]
    folder = write_records(tmp_path / "city", changed, with_files=False)
    result = add_photos(index, encoder, find_photos(folder))
    assert (result.num_added, result.num_known, result.num_moved, result.num_replaced) == (0, 8, 0, 0)
    columns = index.columns()
    assert columns.ids.tolist() == before.ids.tolist() and columns.names() == before.names()
    assert columns.times.tolist() == [one.time for one in changed]
    assert columns.accuracies_m == pytest.approx([one.accuracy_m for one in changed], nan_ok=True)


def test_a_time_and_heading_that_are_gone_from_a_table_are_unknown_unless_exif_has_them(
    tmp_path: Path, encoder: Encoder
) -> None:
    """Photos 0 and 1 have EXIF: that of photo 0 is the value of the table, that of photo 1 is another."""
    records = [replace(one, time=1_600_000_000.0 + number) for number, one in enumerate(around(45.0, 7.0, 6, 200))]
    for number, record in enumerate(records):
        in_exif = replace(record, heading=record.heading if number == 0 else 77.0)
        write_exif_photo(tmp_path / "city" / record.path, in_exif, place_image(number, 0, side=16))
    for number in range(2, 6):
        Image.fromarray(place_image(number, 0, side=16)).save(tmp_path / "city" / records[number].path)
    folder = write_records(tmp_path / "city", records, with_files=False)
    build_index(folder, encoder, tmp_path / "index")
    gone = [
        replace(records[0], heading=math.nan),
        replace(records[1], heading=math.nan),
        replace(records[2], heading=math.nan),
        replace(records[3], time=math.nan),
        replace(records[4], time=math.nan, heading=math.nan, accuracy_m=math.nan),
        records[5],
    ]
    write_records(folder, gone, with_files=False)
    with open_index(tmp_path / "index", write=True) as index:
        ids = index.columns().ids.tolist()
        for planned in (sync_folder(index, None, folder, dry_run=True), sync_folder(index, encoder, folder)):
            assert planned.indexing is not None
            assert (planned.indexing.num_added, planned.indexing.num_replaced) == (1, 1)  # photo 1 has a new heading
        columns = index.columns()
        assert columns.ids.tolist() == [ids[0], *ids[2:], 6]
        headings = dict(zip(columns.names(), columns.headings.tolist(), strict=True))
        expected = [records[0].heading, 77.0, math.nan, records[3].heading, math.nan, records[5].heading]
        assert [headings[one.path] for one in records] == pytest.approx(expected, abs=0.01, nan_ok=True)
        times = dict(zip(columns.names(), columns.times.tolist(), strict=True))
        assert [times[one.path] for one in records[2:]] == pytest.approx([one.time for one in gone[2:]], nan_ok=True)
        assert not Indexing(index=index, photos=find_photos(folder), stamps=index.stamps()).find_new_rows()
        write_records(folder, records, with_files=False)
        sync_folder(index, encoder, folder)
        columns = index.columns()
        again = dict(zip(columns.names(), columns.headings.tolist(), strict=True))
        assert [again[one.path] for one in records] == pytest.approx([one.heading for one in records], abs=0.01)


def names(images: ImageList) -> list[str]:
    return [images.name(row) for row in range(len(images))]


def test_an_index_has_the_values_of_the_table(index: PhotoIndex, records: list[PhotoRecord]) -> None:
    columns = index.columns()
    assert columns.names() == [record.path for record in records]
    latitudes, longitudes = ([getattr(one, name) for one in records] for name in ("latitude", "longitude"))
    meters = GEOD.inv(longitudes, latitudes, columns.longitudes.tolist(), columns.latitudes.tolist())[2]
    assert max(meters) < 0.01
    assert columns.headings == pytest.approx([one.heading for one in records], abs=0.001)
    assert columns.times.tolist() == [one.time for one in records]
    assert columns.accuracies_m.tolist() == [3.5] * 8


def test_exif_fills_what_the_table_lacks(tmp_path: Path, encoder: Encoder) -> None:
    in_exif = [
        replace(one, heading=heading) for one, heading in zip(around(45.0, 7.0, 2, 200), (123.0, 0.0), strict=True)
    ]
    for number, record in enumerate(in_exif):
        write_exif_photo(tmp_path / "city" / record.path, record, place_image(number, 0, side=16))
    in_table = [PhotoRecord(path=in_exif[0].path), replace(in_exif[1], heading=math.nan, latitude=46.0)]
    folder = write_records(tmp_path / "city", in_table, with_files=False)
    require_positions(find_photos(folder), folder)
    build_index(folder, encoder, tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        columns = index.columns()
    assert columns.latitudes == pytest.approx([in_exif[0].latitude, 46.0], abs=1e-6)
    assert columns.headings[0] == 123.0 and np.isnan(columns.headings[1])  # 0 was left out as unknown


def test_the_same_photo_by_its_table_and_by_exif_is_added_once(tmp_path: Path, encoder: Encoder) -> None:
    """EXIF has seconds of arc, a label millimeters: the positions differ in their last digits."""
    camera, city = tmp_path / "camera", tmp_path / "city"
    taken = around(45.0, 7.0, 6, 200)
    for number, record in enumerate(taken):
        write_exif_photo(camera / record.path, record, place_image(number, 0, side=16))
    run_import([camera], city, ImportSettings())
    build_index(camera, encoder, tmp_path / "index")
    with open_index(tmp_path / "index", write=True) as index:
        before = index.columns()
        result = add_photos(index, encoder, find_photos(city))
        assert (result.num_added, result.num_known, result.num_replaced) == (0, 6, 0)
        shutil.rmtree(camera)
        planned = sync_folder(index, None, city, dry_run=True)
        assert planned.indexing is not None and planned.indexing.num_moved == 6
        assert add_photos(index, encoder, find_photos(city)).num_moved == 6
        assert index.columns().ids.tolist() == before.ids.tolist()


def test_equal_photos_more_than_a_centimeter_apart_are_different(tmp_path: Path, encoder: Encoder) -> None:
    start = PhotoRecord(path="0.jpg", latitude=45.0, longitude=7.0, heading=359.995)
    rows = [start]
    for number, (meters, heading) in enumerate([(0.008, 359.995), (0.0, 0.002), (0.03, 359.995), (0.0, 0.02)], 1):
        longitude, latitude, _ = GEOD.fwd(7.0, 45.0, 30.0 * number, meters)
        rows.append(PhotoRecord(path=f"{number}.jpg", latitude=latitude, longitude=longitude, heading=heading))
    folder = write_records(tmp_path / "city", rows)
    for row in rows[1:]:
        (folder / row.path).write_bytes((folder / "0.jpg").read_bytes())
    result = build_index(folder, encoder, tmp_path / "index")
    assert (result.num_added, result.num_known, result.num_copies) == (3, 0, 2)
    with open_index(tmp_path / "index") as index:
        assert index.columns().names() == ["0.jpg", "3.jpg", "4.jpg"]


def test_a_photo_stored_by_an_earlier_version_is_known(index: PhotoIndex, tmp_path: Path, encoder: Encoder) -> None:
    photos = find_photos(tmp_path / "city")
    former = []
    for row in range(len(photos)):
        raw = photos.path(row).read_bytes()
        former.append(former_photo_key(raw, read_metadata(photos.path(row), raw, photos.label(row))))
    index._store.replace_columns(index.columns().ids, {"key": former})
    index.close()
    shutil.copytree(tmp_path / "city", tmp_path / "copy")
    with open_index(tmp_path / "index", write=True) as opened:
        result = add_photos(opened, encoder, find_photos(tmp_path / "copy"))
        assert (result.num_added, result.num_known) == (0, 8)


def test_sync_notices_a_new_table(
    index: PhotoIndex, records: list[PhotoRecord], tmp_path: Path, encoder: Encoder
) -> None:
    folder = tmp_path / "city"
    assert add_photos(index, encoder, find_photos(folder)).num_known == 8
    corrected = list(records)
    corrected[1] = replace(records[1], latitude=records[1].latitude + 0.0001)
    corrected[2] = replace(records[2], heading=(records[2].heading + 90) % 360)
    corrected[3] = replace(records[3], latitude=math.nan)
    del corrected[7]
    write_records(folder, corrected, with_files=False)
    planned = sync_folder(index, None, folder, dry_run=True)
    done = sync_folder(index, encoder, folder)
    for result in (planned, done):
        assert result.indexing is not None
        assert (result.indexing.num_added, result.indexing.num_replaced, result.num_removed) == (3, 3, 1)
    columns = index.columns()
    by_name = dict(zip(columns.names(), zip(columns.latitudes, columns.headings, strict=True), strict=True))
    assert sorted(by_name) == [record.path for record in corrected]
    for record in corrected:
        latitude, heading = by_name[record.path]
        assert latitude == pytest.approx(record.latitude, abs=1e-7, nan_ok=True)
        assert heading == pytest.approx(record.heading, abs=0.001)
    again = sync_folder(index, encoder, folder)
    assert again.indexing is not None and (again.indexing.num_added, again.num_removed) == (0, 0)


def test_photos_of_other_parts_stay_in_the_index(records: list[PhotoRecord], tmp_path: Path, encoder: Encoder) -> None:
    splits = ["train", "train", "test/queries", *["test/database"] * 5]
    folder = write_records(tmp_path / "city", [replace(one, split=s) for one, s in zip(records, splits, strict=True)])
    build_index(folder, encoder, tmp_path / "index")
    with open_index(tmp_path / "index", write=True) as index:
        assert index.columns().names() == [record.path for record in records[3:]]
        add_photos(index, encoder, find_photos(folder / "train"))
        assert sync_folder(index, encoder, folder).num_removed == 0
        assert len(index) == 7


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["", "", "", ""], [0, 1, 2, 3]),
        (["train", "test/database", "test/queries", "val/database"], [1]),
        (["train", "val/database", "val/queries", ""], [0, 1, 3]),
        (["database", "queries", "queries_night", "gallery"], [0]),
    ],
)
def test_queries_are_left_out(records: list[PhotoRecord], tmp_path: Path, splits: list[str], expected) -> None:
    rows = [replace(one, split=split) for one, split in zip(records, splits, strict=False)]
    folder = write_records(tmp_path / "city", rows)
    assert names(find_photos(folder)) == [records[row].path for row in expected]


def city(folder: Path, records: list[PhotoRecord]) -> Path:
    """A table like one of a city: 40 places with two photos each, 200 m apart."""
    rows = [
        replace(records[0], path=f"photos/{number:03d}.jpg", latitude=45 + (number // 2) * 0.0018, longitude=7.0)
        for number in range(80)
    ]
    return write_records(folder, rows)


def test_an_index_of_a_split_table_has_all_photos(
    records: list[PhotoRecord], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = city(tmp_path / "city", records)
    split_dataset(SplitConfig(dataset=str(folder), val=0.2, test=0.2))
    (folder / "database").mkdir()  # left from before: not a part of the table
    splits = read_table(folder / TABLE_NAME)["split"].to_pylist()
    num_database = splits.count("test/database")
    assert 0 < num_database < 80 and "test/queries" in splits
    with caplog.at_level("INFO", "cosplace"):
        assert len(find_photos(folder)) == len(find_photos(folder / TABLE_NAME)) == 80
    assert "indexed: all 80 photos of" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "cosplace"):
        assert len(find_photos(folder, part="database")) == num_database
    assert f"{num_database} of 80 photos of {folder}, those of test/database; `--part all`" in caplog.text
    table = read_table(folder / TABLE_NAME)
    write_table(folder / TABLE_NAME, table)  # as an import into this dataset does
    assert len(find_photos(folder)) == 80


def test_queries_that_came_with_a_dataset_are_left_out_unless_all_are_wanted(
    records: list[PhotoRecord], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = ["train", "test/database", "test/queries", "test/queries"]
    folder = write_records(tmp_path / "city", [replace(one, split=s) for one, s in zip(records, splits, strict=False)])
    with caplog.at_level("INFO", "cosplace"):
        assert names(find_photos(folder)) == [records[1].path]
    assert "1 of 4 photos of" in caplog.text and "`--part all`" in caplog.text
    assert len(find_photos(folder, part="all")) == 4
    assert len(find_photos(write_records(tmp_path / "new", records), part="all")) == len(records)
    with pytest.raises(DatasetError, match="has no database/"):
        find_photos(tmp_path / "new", part="database")


def test_night_queries_of_a_split_dataset_are_left_out(records: list[PhotoRecord], tmp_path: Path) -> None:
    folder = city(tmp_path / "city", records)
    rows = from_table(read_table(folder / TABLE_NAME))
    night = replace(rows[0], path="night_queries/000.jpg")
    (folder / "night_queries").mkdir()
    (folder / night.path).hardlink_to(folder / rows[0].path)
    write_table(folder / TABLE_NAME, to_table([*rows, night]))
    split_dataset(SplitConfig(dataset=str(folder), val=0.2, test=0.2))
    assert len(find_photos(folder)) == 80 and len(find_photos(folder, part="all")) == 81


def test_sync_keeps_the_part_that_was_built(records: list[PhotoRecord], tmp_path: Path, encoder: Encoder) -> None:
    folder = city(tmp_path / "city", records)
    split_dataset(SplitConfig(dataset=str(folder), val=0.2, test=0.2))
    build_index(find_photos(folder, part="database"), encoder, tmp_path / "index")
    with open_index(tmp_path / "index", write=True) as index:
        num_photos = len(index)
        same, more = (sync_folder(index, None, folder, dry_run=True, part=part) for part in ("database", None))
    assert same.indexing is not None and same.indexing.num_added == 0
    assert more.indexing is not None and more.indexing.num_added == 80 - num_photos


def test_queries_may_be_indexed_by_their_own_name(records: list[PhotoRecord], tmp_path: Path) -> None:
    rows = [replace(one, split=s) for one, s in zip(records, ["test/queries", "test/database"], strict=False)]
    folder = write_records(tmp_path / "city", rows)
    assert names(find_photos(folder / "test/queries")) == [records[0].path]


def test_a_table_without_positions_is_refused(records: list[PhotoRecord], tmp_path: Path) -> None:
    folder = write_records(tmp_path / "city", [PhotoRecord(path=one.path) for one in records])
    with pytest.raises(DatasetError, match=r"None of the 8 photos .* has a position"):
        require_positions(find_photos(folder), folder)


def test_locate_takes_the_photos_of_a_table(records: list[PhotoRecord], tmp_path: Path) -> None:
    rows = [replace(one, split=s) for one, s in zip(records, ["test/queries", "test/database"], strict=False)]
    folder = write_records(tmp_path / "city", rows)
    for part, expected in (("", rows[:2]), ("photos.parquet", rows[:2]), ("test/queries", rows[:1])):
        found = _find_photos([folder / part], is_sequence=False, is_writing=False, follow_outside=False)
        assert found == [folder / record.path for record in expected]
