"""Evaluation of stores: the same as that of the photos."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosplace.errors import DatasetError
from cosplace.photos.image_list import image_list
from cosplace.photos.opening import open_pixels
from cosplace.photos.tables import PhotoRecord
from cosplace.ranks import ALONE
from cosplace.retrieval.baselines import TinyImage
from cosplace.retrieval.compression import Compression
from cosplace.retrieval.dataset import RetrievalDataset, dataset_lists, open_retrieval_dataset
from cosplace.retrieval.descriptor_store import open_store
from cosplace.retrieval.evaluation import Evaluation, EvaluationSettings, evaluate
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.retrieval.rank_group import RankGroup
from cosplace.retrieval.store_evaluation import evaluate_stores, open_stores
from cosplace.retrieval.store_extraction import extract_to_store
from tests.retrieval.store_samples import small_network, unit_rows, write_store
from tests.table_samples import record_of_name, write_exif_photo, write_named_dataset

EXTRACTION = ExtractionSettings(shard_rows=5, batch_size=4)
SETTINGS = EvaluationSettings(extraction=EXTRACTION, recall_values=(1, 2, 5), num_predictions=7)


@pytest.fixture
def dataset(tmp_path: Path) -> RetrievalDataset:
    """12 queries and 24 database images."""
    return open_retrieval_dataset(write_named_dataset(tmp_path / "dataset", num_places=1) / "val")


def extract_both(dataset: RetrievalDataset, to: Path, *, dtype: str = "float32", model=None) -> tuple[Path, Path]:
    lists = dataset_lists(dataset.folder)  # also photos without positions
    for name, images, stored in (("database", lists.database, dtype), ("queries", lists.queries, "float32")):
        extract_to_store(model or small_network(), images, to / name, EXTRACTION, dtype=stored)
    return to / "database", to / "queries"


def evaluate_both(*stores: Path) -> tuple[Evaluation, RetrievalDataset]:
    found = evaluate_stores(open_stores(*stores), SETTINGS, group=RankGroup(ALONE))
    assert found is not None
    return found


def check_same(found: Evaluation, expected: Evaluation) -> None:
    for name in ("recalls", "chance", "num_database", "num_queries", "num_searchable", "compression", "dimension"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("predictions", "distances_m", "hits"):
        assert np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=name == "distances_m"), name
    assert np.allclose(found.squared_distances, expected.squared_distances, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int8", "binary"])
def test_the_result_is_that_of_the_photos(dataset: RetrievalDataset, tmp_path: Path, dtype: str) -> None:
    found, stored = evaluate_both(*extract_both(dataset, tmp_path, dtype=dtype))
    # The database is smaller than the sample that codes are fitted on, so they are those of `eval --compress`.
    codes = None if dtype == "float32" else Compression(method=dtype, shortlist=0)
    check_same(found, evaluate(small_network(), dataset, replace(SETTINGS, compression=codes)))
    assert np.array_equal(stored.database_positions, dataset.database_positions)
    assert np.array_equal(stored.query_positions, dataset.query_positions)


def test_the_photos_are_not_needed(dataset: RetrievalDataset, tmp_path: Path) -> None:
    expected = evaluate(TinyImage(), dataset, SETTINGS)
    stores = extract_both(dataset, tmp_path, model=TinyImage())
    dataset.folder.rename(tmp_path / "elsewhere")
    found, _ = evaluate_both(*stores)
    check_same(found, expected)
    assert found.recalls[1] > 30


@pytest.mark.parametrize("dtype", ["float32", "float16", "binary"])
def test_equal_descriptors_of_a_store_are_a_warning(
    tmp_path: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unit_rows(30, 24)
    write_store(tmp_path / "queries", rows[:5], offset_m=3)
    for name, descriptors, is_said in (("equal", np.zeros((30, 24), np.float32), True), ("different", rows, False)):
        caplog.clear()
        write_store(tmp_path / name, descriptors, dtype=dtype, folder="/others")
        evaluate_both(tmp_path / name, tmp_path / "queries")
        assert ("The descriptors of all 30 database photos are equal" in caplog.text) == is_said


def test_photos_that_cannot_be_opened(dataset: RetrievalDataset, tmp_path: Path) -> None:
    for images, rows in ((dataset.database, (3, 20)), (dataset.queries, (0,))):
        for row in rows:
            images.path(row).write_bytes(b"not an image")
    expected = evaluate(small_network(), dataset, SETTINGS, skip_unreadable=True)
    found, _ = evaluate_both(*extract_both(dataset, tmp_path))
    check_same(found, expected)
    for name in ("unreadable_database", "unreadable_queries"):
        unreadable, wanted = getattr(found, name), getattr(expected, name)
        assert [(entry.index, entry.name) for entry in unreadable] == [(entry.index, entry.name) for entry in wanted]
    assert (found.predictions[0] == -1).all()


def test_photos_without_a_position_are_left_out(dataset: RetrievalDataset, tmp_path: Path) -> None:
    """Rows of the stores and of the dataset differ."""
    photos = tmp_path / "exif"
    for part, images in (("database", dataset.database), ("queries", dataset.queries)):
        for row in range(len(images)):
            name = f"{row:02d}.jpg"
            write_exif_photo(photos / part / name, record_of_name(images.name(row)), open_pixels(images.path(row)))
        for row in (0, 7):  # they would be the nearest
            path = photos / part / f"{row:02d}-unplaced.jpg"
            write_exif_photo(path, PhotoRecord(path=""), open_pixels(dataset.queries.path(row)))
    (photos / "database" / "09.jpg").write_bytes((photos / "database" / "09.jpg").read_bytes()[:-300])
    by_exif = open_retrieval_dataset(photos)
    expected = evaluate(TinyImage(), by_exif, SETTINGS, skip_unreadable=True)
    assert (expected.num_database, expected.num_queries) == (24, 12)
    stores = extract_both(by_exif, tmp_path, model=TinyImage())
    assert [len(open_store(store)) for store in stores] == [26, 14]
    found, stored = evaluate_both(*stores)
    check_same(found, expected)
    assert found.recalls[1] > 30
    assert [entry.index for entry in found.unreadable_database] == [9]
    assert stored.database.name(9) == "09.jpg"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "model is checksum in .*database, other in"),
        ({"views": "flip"}, "views is none in .*database, flip in .*queries"),
    ],
)
def test_stores_of_different_extractions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    from tests.retrieval import store_samples

    write_store(tmp_path / "database", unit_rows(5, 8))
    original = store_samples.extraction_meta
    monkeypatch.setattr(store_samples, "extraction_meta", lambda *given: replace(original(*given), **change))
    write_store(tmp_path / "queries", unit_rows(5, 8))
    with pytest.raises(DatasetError, match=message):
        open_stores(tmp_path / "database", tmp_path / "queries")


def test_queries_must_be_descriptors_of_the_same_dimension(tmp_path: Path) -> None:
    write_store(tmp_path / "database", unit_rows(5, 8))
    write_store(tmp_path / "queries", unit_rows(5, 8), dtype="int8")
    with pytest.raises(DatasetError, match=r"has int8 codes of its own.*--dtype float32"):
        open_stores(tmp_path / "database", tmp_path / "queries")
    write_store(tmp_path / "others", unit_rows(5, 9))
    with pytest.raises(DatasetError, match=r"dimension is 8 in .*, 9 in"):
        open_stores(tmp_path / "database", tmp_path / "others")
    with pytest.raises(DatasetError, match=r"nothing is not a store of descriptors\. Create one"):
        open_stores(tmp_path / "database", tmp_path / "nothing")


def test_queries_that_are_in_the_database(tmp_path: Path) -> None:
    write_store(tmp_path / "database", unit_rows(50, 8), folder="/photos")
    write_store(tmp_path / "queries", unit_rows(3, 8), folder="/photos")
    with pytest.raises(DatasetError, match="is in the database too, and would find itself"):
        evaluate_both(tmp_path / "database", tmp_path / "queries")


def test_stores_without_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.retrieval import store_samples

    write_store(tmp_path / "database", unit_rows(50, 8))
    monkeypatch.setattr(
        store_samples,
        "image_list",
        lambda folder, names: image_list(folder, [f"{len(n)}-{n[9:16]}.jpg" for n in names]),
    )
    write_store(tmp_path / "queries", unit_rows(3, 8), folder="/queries")
    with pytest.raises(DatasetError, match="queries has no positions of its photos, so nothing can be measured"):
        evaluate_both(tmp_path / "database", tmp_path / "queries")
