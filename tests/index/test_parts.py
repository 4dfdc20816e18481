"""Which part of a dataset an index holds: `--part` is stored with the index, moves with it, and `sync` uses it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cosplace.config.splitting import SplitConfig
from cosplace.engines.encoder import Encoder
from cosplace.errors import DatasetError
from cosplace.index.building import add_photos, build_index
from cosplace.index.parts import choose_part, record_part
from cosplace.index.photo_index import open_index
from cosplace.index.sources import find_photos
from cosplace.index.syncing import SyncResult, sync_folder
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, from_table, read_table, to_table, write_table
from cosplace.retrieval.splitting import split_dataset
from tests.table_samples import around, write_records

NUM_PHOTOS, NUM_DATABASE = 8, 5
SPLITS = ["train", "test/queries", "test/queries", *["test/database"] * NUM_DATABASE]


class Colors(nn.Module):
    """A network that takes milliseconds."""

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(nn.functional.adaptive_avg_pool2d(photos, (2, 4)).flatten(1))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Colors(), name="colors", image_size=16, device="cpu")


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """A table that is divided as `cosplace split` does it, so that an index has all of its photos by default."""
    records = around(45.0, 12.0, NUM_PHOTOS, 200)
    folder = write_records(tmp_path / "city", [replace(one, split=s) for one, s in zip(records, SPLITS, strict=True)])
    write_table(folder / TABLE_NAME, read_table(folder / TABLE_NAME), own_splits=True)
    return folder


def counts(result: SyncResult) -> tuple[int, int]:
    assert result.indexing is not None
    return result.indexing.num_added, result.num_removed


def test_sync_uses_the_part_that_was_built(
    city: Path, tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(find_photos(city)) == NUM_PHOTOS
    assert build_index(city, encoder, tmp_path / "index", part="database").num_added == NUM_DATABASE
    with open_index(tmp_path / "index", write=True) as index, caplog.at_level("INFO", "cosplace"):
        assert counts(sync_folder(index, None, city, dry_run=True)) == (0, 0)
        assert counts(sync_folder(index, encoder, city / TABLE_NAME)) == (0, 0)
        assert "--part database, as when it was indexed" in caplog.text
        caplog.clear()
        assert counts(sync_folder(index, None, city, part="all", dry_run=True)) == (NUM_PHOTOS - NUM_DATABASE, 0)
        assert "was indexed with --part database; from now on it is --part all" in caplog.text
        assert counts(sync_folder(index, encoder, city)) == (0, 0)  # a dry run stores nothing
        assert counts(sync_folder(index, encoder, city, part="all")) == (NUM_PHOTOS - NUM_DATABASE, 0)
        caplog.clear()
        assert choose_part(index, city, None) == "all"
        assert choose_part(index, tmp_path, None) is None and choose_part(index, city / "test", None) is None


def test_the_part_moves_with_the_dataset(city: Path, tmp_path: Path, encoder: Encoder) -> None:
    build_index(city, encoder, tmp_path / "index", part="database")
    (tmp_path / "elsewhere").mkdir()
    city.rename(tmp_path / "elsewhere" / "town")
    moved = tmp_path / "elsewhere" / "town"
    with open_index(tmp_path / "index", write=True, roots=[str(moved)]) as index:
        assert choose_part(index, moved, None) == "database" and choose_part(index, city, None) is None
    with open_index(tmp_path / "index", write=True) as index:
        assert counts(sync_folder(index, encoder, moved)) == (0, 0)


def test_the_part_of_a_folder_is_found_by_the_folder_of_its_dataset(tmp_path: Path, encoder: Encoder) -> None:
    """The photos are in test/database, and the user names the dataset above it."""
    source = write_records(tmp_path / "source", around(45.0, 12.0, 4, 200))
    for number, part in enumerate(("database", "database", "queries", "queries")):
        path = tmp_path / "city" / "test" / part / f"@055000{number}.00@4180000.00@10@S@@@p{number}@@0@@@@2020@@.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "photos" / f"000{number}.jpg", path)
    city = tmp_path / "city"
    assert build_index(city, encoder, tmp_path / "index", part="all").num_added == 4
    with open_index(tmp_path / "index", write=True) as index:
        assert counts(sync_folder(index, None, city, dry_run=True)) == (0, 0)
        photos = find_photos(city, part="database")
        record_part(index, city, photos.folder, "database")
        assert choose_part(index, city, None) == "database"


def test_sync_reports_indexed_photos_of_other_parts(
    city: Path, tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    build_index(city, encoder, tmp_path / "index", part="database")
    with open_index(tmp_path / "index", write=True) as index:
        sync_folder(index, encoder, city)
        assert "not in its database" not in caplog.text
        add_photos(index, encoder, find_photos(city, part="all"))
        sync_folder(index, encoder, city)
        assert "3 indexed photos of" in caplog.text and "are not in its database, such as queries" in caplog.text
        assert len(index) == NUM_PHOTOS


def test_a_dataset_whose_only_database_is_in_val_is_named(tmp_path: Path) -> None:
    records = around(45.0, 12.0, 3, 200)
    splits = ["val/database", "val/database", "val/queries"]
    folder = write_records(tmp_path / "city", [replace(one, split=s) for one, s in zip(records, splits, strict=True)])
    with pytest.raises(DatasetError, match=r"has no database/ or gallery/.*Use \S+/city/val, which has a database"):
        find_photos(folder, part="database")
    assert len(find_photos(folder / "val", part="database")) == 2


def test_folders_named_like_queries_are_left_out_of_any_dataset_of_the_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One rule, whether `cosplace split` has divided the dataset or not."""
    rows = [
        PhotoRecord(path=f"photos/{number:03d}.jpg", latitude=45 + (number // 2) * 0.0018, longitude=7.0)
        for number in range(80)
    ]
    folder = write_records(tmp_path / "city", rows)
    (folder / "queries").mkdir()
    (folder / "queries" / "000.jpg").hardlink_to(folder / rows[0].path)
    write_table(folder / TABLE_NAME, to_table([*rows, replace(rows[0], path="queries/000.jpg")]))
    for is_split in (False, True):
        if is_split:
            split_dataset(SplitConfig(dataset=str(folder), val=0.2, test=0.2))
            assert any(one.split == "test/queries" for one in from_table(read_table(folder / TABLE_NAME)))
        caplog.clear()
        assert len(find_photos(folder)) == 80 and len(find_photos(folder, part="all")) == 81
        assert "left out 1 photo in folders of queries (queries)" in caplog.text and "`--part all`" in caplog.text
