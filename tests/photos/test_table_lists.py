"""Lists of photos from tables: whole tables, Parquet files, parts by split or by folder; wrong and missing paths."""

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cosplace.errors import DatasetError, ImageError
from cosplace.importing.table_files import GEOPACKAGE_SUFFIXES, JSON_SUFFIXES, TEXT_SUFFIXES
from cosplace.photos.image_list import ImageList
from cosplace.photos.metadata import metadata_from_name
from cosplace.photos.names import utm_fields
from cosplace.photos.scanning import is_dataset_part, scan_images, subfolders
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, to_table, write_table
from cosplace.retrieval.dataset import open_retrieval_dataset
from tests.table_samples import around, write_records

SPLITS = ("train", "train", "val/database", "val/queries", "test/database", "test/queries_v1")


def names(images: ImageList) -> list[str]:
    return [images.name(row) for row in range(len(images))]


@pytest.fixture
def records() -> list[PhotoRecord]:
    return [replace(one, split=split) for one, split in zip(around(45.0, 7.0, 6, 500), SPLITS, strict=True)]


@pytest.fixture
def dataset(tmp_path: Path, records: list[PhotoRecord]) -> Path:
    return write_records(tmp_path / "city", records)


@pytest.mark.parametrize(
    ("part", "rows"),
    [("", range(6)), (TABLE_NAME, range(6)), ("train", [0, 1]), ("val", [2, 3]), ("test/database", [4]),
     ("images/test/queries_v1", [5]), (f"{TABLE_NAME}/test", [4, 5])],
)  # fmt: skip
def test_parts_need_no_folders(dataset: Path, records: list[PhotoRecord], part: str, rows) -> None:
    assert is_dataset_part(dataset / part)
    images = scan_images(dataset / part)
    assert names(images) == [records[row].path for row in rows]
    assert images.path(0) == dataset / records[rows[0]].path
    for row, record in enumerate(records[first] for first in rows):
        known = metadata_from_name(images.label(row))
        assert known.latitude == pytest.approx(record.latitude, abs=1e-7) and known.time == record.time


@pytest.mark.parametrize("part", ["nothing", "test/gallery", "trai", "train/x", "photos/0000.jpg"])
def test_other_paths_are_no_parts(dataset: Path, part: str) -> None:
    assert not is_dataset_part(dataset / part)
    with pytest.raises(DatasetError) as caught:
        scan_images(dataset / part)
    of_table = (
        f"{dataset} has no {part}: its photos are in test/database, test/queries_v1, train, val/database, val/que"
    )
    assert str(caught.value).startswith(f"{dataset / part} is a file, not a" if part.endswith("jpg") else of_table)


def test_missing_splits_and_tables_of_other_formats(tmp_path: Path, records: list[PhotoRecord]) -> None:
    city = write_records(tmp_path / "city", [replace(one, split="") for one in records])
    for dataset in (city, city / TABLE_NAME):
        with pytest.raises(DatasetError) as caught:
            scan_images(dataset / "train")
        assert str(caught.value) == (
            f"{dataset} has no train: its table has no splits. Split it first: `cosplace split {dataset}`."
        )
        with pytest.raises(DatasetError, match=r"has no test: its table has no splits\. Split it first"):
            open_retrieval_dataset(dataset / "test")
    for suffix in (*TEXT_SUFFIXES, *JSON_SUFFIXES, *GEOPACKAGE_SUFFIXES):
        table = tmp_path / f"positions{suffix}"
        table.write_text("path,latitude,longitude\n")
        for path in (table, table / "train"):
            with pytest.raises(DatasetError) as caught:
                scan_images(path)
            assert str(caught.value).endswith(f"first: `cosplace import PHOTOS {table} --to DATASET`.")
        with pytest.raises(DatasetError, match="is a table of another format, not a dataset"):
            open_retrieval_dataset(table / "test")
    with pytest.raises(DatasetError, match=r"nothing does not exist\. Use the folder that contains the photos"):
        scan_images(tmp_path / "nothing")


def test_relative_paths(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset)
    assert len(scan_images(".")) == 6 and len(scan_images("train")) == 2
    (dataset / "test").mkdir()
    monkeypatch.chdir(dataset / "test")
    assert len(scan_images("database")) == 1 and len(scan_images("../train")) == 2


def test_subfolders_are_parts_and_folders(dataset: Path) -> None:
    assert subfolders(dataset) == ["photos", "test", "train", "val"]
    assert subfolders(dataset / "test") == ["database", "queries_v1"]
    assert subfolders(dataset / "test/database") == []


def test_a_table_takes_precedence_over_folders(dataset: Path, records: list[PhotoRecord]) -> None:
    (dataset / "train").mkdir()
    Image.new("RGB", (8, 8)).save(dataset / "train" / "@1@2@.jpg")
    Image.new("RGB", (8, 8)).save(dataset / "photos" / "unlisted.jpg")
    assert names(scan_images(dataset / "train")) == [records[0].path, records[1].path]
    assert len(scan_images(dataset)) == 6
    write_table(dataset / TABLE_NAME, to_table([]))
    assert names(scan_images(dataset / "train")) == ["@1@2@.jpg"]


def test_folders_are_parts_of_a_table_without_splits(tmp_path: Path) -> None:
    records = [replace(one, path=f"{'train' if row < 3 else 'more'}/{row}.jpg")
               for row, one in enumerate(around(45.0, 7.0, 5, 100))]  # fmt: skip
    write_records(tmp_path, records)
    images = scan_images(tmp_path / "train")
    assert names(images) == ["train/0.jpg", "train/1.jpg", "train/2.jpg"] and utm_fields(images).known.all()


def test_names_are_sorted_by_their_bytes(tmp_path: Path) -> None:
    paths = ["b.jpg", "a/z.jpg", "a-b.jpg", "ü.jpg", "Z.jpg", "a.jpg", os.fsdecode(b"caf\xe9.jpg"), "x\\x41.jpg"]
    records = [replace(one, path=path) for one, path in zip(around(45.0, 7.0, 8, 100), paths, strict=True)]
    write_records(tmp_path, records)
    images = scan_images(tmp_path)
    assert names(images) == [os.fsdecode(name) for name in sorted(map(os.fsencode, paths))]
    latitude = {record.path: record.latitude for record in records}
    for row in range(8):
        known = metadata_from_name(images.label(row))
        assert known.latitude == pytest.approx(latitude[images.name(row)], abs=1e-7)
        assert images.path(row).is_file()


@pytest.mark.parametrize("path", ["/etc/passwd.jpg", "../x.jpg", "a/../../x.jpg", ".."])
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    folder = write_records(tmp_path / "city", [PhotoRecord(path=path)], with_files=False)
    with pytest.raises(DatasetError, match=r"outside its folder.*--follow_outside") as caught:
        scan_images(folder)
    assert str(path) in str(caught.value)


def test_follow_outside(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    folder = write_records(tmp_path / "city", [PhotoRecord(path="../x.jpg")], with_files=False)
    assert scan_images(folder, follow_outside=True).path(0).samefile(tmp_path / "x.jpg")


def test_links_that_lead_outside_are_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    (tmp_path / "city").mkdir()
    (tmp_path / "city" / "a.jpg").symlink_to(tmp_path / "x.jpg")
    write_records(tmp_path / "city", [PhotoRecord(path="a.jpg")], with_files=False)
    with pytest.raises(ImageError, match="outside"):
        scan_images(tmp_path / "city")


def test_missing_files_are_reported(dataset: Path, records: list[PhotoRecord]) -> None:
    (dataset / records[2].path).unlink()
    with pytest.raises(DatasetError, match=r"lists 'photos/0002\.jpg', which is not in"):
        scan_images(dataset)
    assert len(scan_images(dataset / "train")) == 2


def test_wrong_tables(tmp_path: Path) -> None:
    cases = {"repeated": ["a.jpg", "a.jpg"], "empty": [""], "missing": [None]}
    for name, paths in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.table({"path": pa.array(paths, pa.string())}), folder / TABLE_NAME)
        with pytest.raises(DatasetError, match="occurs twice" if name == "repeated" else "row without a path"):
            scan_images(folder)
    (folder / "sub").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "sub" / "a.jpg")
    (folder / TABLE_NAME).write_bytes(b"damaged")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        scan_images(folder)
    assert names(scan_images(folder / "sub")) == ["a.jpg"]


def test_line_breaks_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [
        replace(one, path=path) for one, path in zip(around(45.0, 7.0, 2, 9), ["a\nb.jpg", "c.jpg"], strict=True)
    ]
    images = scan_images(write_records(tmp_path, records))
    assert names(images) == ["c.jpg"] and "skipped 1 photo with a line break" in caplog.text
    known = metadata_from_name(images.label(0))
    assert known.latitude == pytest.approx(records[1].latitude, abs=1e-7)
