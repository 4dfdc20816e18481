"""A model judged on a dataset: the whole way from files to recalls."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.errors import DatasetError, ImageError
from cosplace.photos.image_list import ImageList, image_list
from cosplace.retrieval.baselines import TinyImage
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import evaluate, evaluate_descriptors
from cosplace.retrieval.extraction import extract
from tests.streets import write_streets

KS = (1, 2, 5)


@pytest.fixture
def dataset(tmp_path: Path) -> RetrievalDataset:
    """12 queries, and 24 database images: two of each query's place, places 30 m apart."""
    return open_retrieval_dataset(write_streets(tmp_path / "streets", num_places=1) / "val")


def made_dataset(database_positions: np.ndarray, query_positions: np.ndarray) -> RetrievalDataset:
    """Positions without photos, for descriptors that come from elsewhere."""
    no_photos = image_list(Path("nowhere"), [])
    return RetrievalDataset(
        name="made",
        folder=Path("nowhere"),
        database=no_photos,
        queries=no_photos,
        database_positions=database_positions,
        query_positions=query_positions,
    )


def spoil(images: ImageList, *rows: int) -> None:
    for row in rows:
        images.path(row).write_bytes(b"no picture")


def test_stripes_are_recognised(dataset: RetrievalDataset) -> None:
    found = evaluate(TinyImage(), dataset, recall_values=KS, num_predictions=7)
    assert found.recalls[1] > 60
    assert found.recalls[1] <= found.recalls[2] <= found.recalls[5]
    assert found.chance[1] == pytest.approx(100 * 2 / 24)
    assert (found.num_database, found.num_queries, found.num_unreadable) == (24, 12, 0)
    assert found.num_queries_without_positives == 0
    assert found.predictions.shape == found.squared_distances.shape == found.distances_m.shape == (12, 7)
    assert (np.diff(found.squared_distances, axis=1) >= 0).all()
    assert np.array_equal(found.hits, found.distances_m <= 25)
    offsets = dataset.query_positions[:, None] - dataset.database_positions[found.predictions]
    np.testing.assert_allclose(found.distances_m, np.sqrt((offsets**2).sum(-1)))
    assert found.recalls_text() == ", ".join(f"R@{k}: {found.recalls[k]:.1f}" for k in KS)
    assert found.seconds >= found.seconds_extracting > 0


def test_progress_counts_all_photos(dataset: RetrievalDataset) -> None:
    calls = []
    evaluate(
        TinyImage(), dataset, recall_values=KS, batch_size=12, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(12, 36), (24, 36), (36, 36)]


def test_descriptors_kept_in_a_folder_give_the_same(dataset: RetrievalDataset, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    plain = evaluate(TinyImage(), dataset, recall_values=KS)
    for _ in range(2):
        kept = evaluate(TinyImage(), dataset, recall_values=KS, descriptors_folder=folder)
        assert np.array_equal(kept.predictions, plain.predictions)
        assert kept.recalls == plain.recalls
    assert sorted(path.name for path in folder.iterdir()) == ["database", "queries"]


def test_predictions_are_at_most_the_database(dataset: RetrievalDataset) -> None:
    found = evaluate(TinyImage(), dataset, recall_values=KS, num_predictions=1000)
    assert found.predictions.shape == (12, 24)
    assert (np.sort(found.predictions, axis=1) == np.arange(24)).all()


def test_unreadable_photos(dataset: RetrievalDataset) -> None:
    plain = evaluate(TinyImage(), dataset, recall_values=KS)
    spoil(dataset.database, 0, 1, 6)
    spoil(dataset.queries, 3)
    with pytest.raises(ImageError, match="3 of 24 photos cannot be opened"):
        evaluate(TinyImage(), dataset, recall_values=KS)
    found = evaluate(TinyImage(), dataset, recall_values=KS, skip_unreadable=True)
    assert not np.isin(found.predictions, [0, 1, 6]).any()
    assert [entry.index for entry in found.unreadable_database] == [0, 1, 6]
    assert [entry.index for entry in found.unreadable_queries] == [3]
    assert (found.num_unreadable, found.num_database, found.num_queries) == (4, 24, 12)
    assert (found.predictions[3] == -1).all()
    assert np.isinf(found.squared_distances[3]).all()
    assert np.isnan(found.distances_m[3]).all()
    assert not found.hits[3].any()
    # Query 0 lost both of its positives, query 3 itself: both are misses, and still count.
    assert not found.hits[0].any()
    assert found.recalls == {k: pytest.approx(100 * found.hits[:, :k].any(1).sum() / 12) for k in KS}
    assert plain.hits[[0, 3]].any(1).all()


def test_too_small_a_database(dataset: RetrievalDataset) -> None:
    with pytest.raises(DatasetError, match=r"needs 50 database images but .* has 24: .*--recall_values 1 5`"):
        evaluate(TinyImage(), dataset, recall_values=(1, 5, 50))
    spoil(dataset.database, *range(22))
    with pytest.raises(DatasetError, match=r"needs 5 database images but .* has 2: .*--recall_values 1 2`"):
        evaluate(TinyImage(), dataset, recall_values=KS, skip_unreadable=True)


def test_descriptors_from_elsewhere() -> None:
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 300, (200, 2))
    queries = np.concatenate([positions[:49] + rng.uniform(-10, 10, (49, 2)), [[5000.0, 5000.0]]])
    dataset = made_dataset(positions, queries)
    # Descriptors that are the positions themselves find the nearest image, which lies within 25 m but for one query.
    found = evaluate_descriptors(positions.astype(np.float32), queries.astype(np.float32), dataset)
    assert found.recalls == {1: 98.0, 5: 98.0, 10: 98.0, 20: 98.0}
    assert found.num_queries_without_positives == 1
    assert (np.diff(found.distances_m, axis=1) > -1e-3).all()
    with pytest.raises(DatasetError, match="199 descriptors for 200 photos of the database"):
        evaluate_descriptors(positions[1:].astype(np.float32), queries.astype(np.float32), dataset)


def test_random_descriptors_reach_chance() -> None:
    rng = np.random.default_rng(1)
    dataset = made_dataset(rng.uniform(0, 200, (300, 2)), rng.uniform(0, 200, (4000, 2)))
    database, queries = (rng.standard_normal((rows, 32)).astype(np.float32) for rows in (300, 4000))
    found = evaluate_descriptors(database, queries, dataset)
    for k, recall in found.recalls.items():
        assert recall == pytest.approx(found.chance[k], abs=4)


def test_the_radius_counts(dataset: RetrievalDataset) -> None:
    near = evaluate(TinyImage(), dataset, recall_values=(1,), positive_dist_threshold=0.5)
    far = evaluate(TinyImage(), dataset, recall_values=(1,), positive_dist_threshold=1e4)
    assert far.recalls == far.chance == {1: 100.0}
    assert near.recalls[1] < far.recalls[1]
    assert near.num_queries_without_positives > 0


def test_reference(reference_folder: Path) -> None:
    with np.load(reference_folder / "recall.npz") as file:
        dataset = made_dataset(file["database_utm"], file["queries_utm"])
        found = evaluate_descriptors(file["database_descriptors"], file["queries_descriptors"], dataset)
        assert list(found.recalls.values()) == file["recalls"].tolist()
        assert np.array_equal(found.predictions, file["predictions"])
        assert found.positives.counts.tolist() == file["positives_count"].tolist()


@pytest.mark.slow
def test_real_photos(real_photos_folder: Path) -> None:
    dataset = open_retrieval_dataset(real_photos_folder / "test")
    found = evaluate(TinyImage(), dataset, num_workers=1)
    assert found.num_queries_without_positives == 0
    assert found.recalls[1] > 5 * found.chance[1]
    half = replace(dataset, queries=dataset.database, query_positions=dataset.database_positions)
    itself = extract(TinyImage(), dataset.database).descriptors
    assert evaluate_descriptors(itself, itself, half).recalls[1] == 100.0
    assert torch.is_grad_enabled()
