"""Evaluation of a model on a dataset, from files to recalls."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.cli import main
from cosplace.config.evaluation import EvalConfig
from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values
from cosplace.engines.encoder import Encoder
from cosplace.errors import ConfigError, DatasetError, ImageError
from cosplace.photos.image_list import ImageList, image_list
from cosplace.retrieval.baselines import TinyImage
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import EvaluationSettings, evaluate, evaluate_descriptors, evaluation_settings
from cosplace.retrieval.extraction import ExtractionSettings, extract
from cosplace.retrieval.shards import read_shards
from tests.synthetic_dataset import write_dataset, write_place

KS = (1, 2, 5)


@pytest.fixture
def dataset(tmp_path: Path) -> RetrievalDataset:
    """12 queries and 24 database images: two at each query's place, places 30 m apart."""
    return open_retrieval_dataset(write_dataset(tmp_path / "dataset", num_places=1) / "val")


def dataset_without_photos(database_positions: np.ndarray, query_positions: np.ndarray) -> RetrievalDataset:
    """A dataset of positions only, to evaluate given descriptors."""
    no_photos = image_list(Path("nowhere"), [])
    return RetrievalDataset(
        name="positions",
        folder=Path("nowhere"),
        database=no_photos,
        queries=no_photos,
        database_positions=database_positions,
        query_positions=query_positions,
    )


def damage(images: ImageList, *rows: int) -> None:
    for row in rows:
        images.path(row).write_bytes(b"not an image")


def test_recalls_of_a_tiny_image(dataset: RetrievalDataset) -> None:
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
    evaluate(TinyImage(), dataset, recall_values=KS, batch_size=12, progress=lambda *call: calls.append(call[:3]))
    assert calls == [("extracting descriptors", done, 36) for done in (12, 24, 36)]


def test_settings_and_options(dataset: RetrievalDataset) -> None:
    settings = EvaluationSettings(extraction=ExtractionSettings(image_size=32), recall_values=(1, 3))
    found = evaluate(TinyImage(), dataset, settings, num_predictions=4, batch_size=5)
    same = evaluate(TinyImage(), dataset, image_size=32, recall_values=(1, 3), num_predictions=4)
    assert found.image_size == 32
    assert found.recalls == same.recalls
    assert np.array_equal(found.predictions, same.predictions)
    assert evaluate(TinyImage(), dataset, settings, image_size=None).image_size is None
    with pytest.raises(TypeError, match="recall_valeus"):
        evaluate(TinyImage(), dataset, recall_valeus=(1, 3))
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        evaluate(TinyImage(), dataset, settings, batch_size=0)
    with pytest.raises(ConfigError, match=r"radius .* got -1"):
        evaluate(TinyImage(), dataset, positive_dist_threshold=-1)


def test_a_folder_and_an_encoder(dataset: RetrievalDataset) -> None:
    encoder = Encoder(TinyImage(), image_size=32, device="cpu")
    found = evaluate(encoder, str(dataset.folder), recall_values=KS)
    assert found.image_size == 32
    assert found.recalls == evaluate(TinyImage(), dataset, recall_values=KS, image_size=32).recalls
    assert evaluate(encoder, dataset.folder, recall_values=KS, image_size=None).image_size is None


def test_settings_of_the_commands(tmp_path: Path) -> None:
    values = {"image_size": 64, "infer_batch_size": 3, "num_workers": 2, "loader": "processes", "recall_values": [1, 9]}
    values |= {"num_preds_to_save": 4, "positive_dist_threshold": 7.0, "skip_unreadable": True}
    for config in (from_values(TrainConfig, values), from_values(EvalConfig, values)):
        settings = evaluation_settings(config, torch.device("cpu"))
        assert settings == EvaluationSettings(
            extraction=ExtractionSettings(
                image_size=None,
                batch_size=3,
                num_workers=2,
                loader="processes",
                device=torch.device("cpu"),
                skip_unreadable=True,
            ),
            recall_values=(1, 9),
            positive_dist_threshold=7.0,
            num_predictions=9,
        )
        resized = replace(config, testing=replace(config.testing, resize_test_imgs=True))
        assert evaluation_settings(resized, torch.device("cpu")).extraction.image_size == 64
    kept = from_values(EvalConfig, values | {"descriptors_folder": str(tmp_path)})
    assert evaluation_settings(kept, torch.device("cpu")).descriptors_folder == str(tmp_path)


def test_descriptors_kept_in_a_folder_give_the_same(dataset: RetrievalDataset, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    plain = evaluate(TinyImage(), dataset, recall_values=KS)
    for _ in range(2):
        kept = evaluate(TinyImage(), dataset, recall_values=KS, descriptors_folder=folder)
        assert np.array_equal(kept.predictions, plain.predictions)
        assert kept.recalls == plain.recalls
    assert sorted(path.name for path in folder.iterdir()) == ["database", "queries"]


def test_descriptors_of_16_bits_need_half_of_the_space(dataset: RetrievalDataset, tmp_path: Path) -> None:
    """The squared distances are those between the rounded descriptors: 11 bits of each number are kept."""
    half, whole = tmp_path / "half", tmp_path / "whole"
    kept = evaluate(TinyImage(), dataset, recall_values=KS, descriptors_folder=whole)
    for _ in range(2):
        found = evaluate(TinyImage(), dataset, recall_values=KS, descriptors_folder=half, stored_dtype="float16")
        np.testing.assert_allclose(found.squared_distances, kept.squared_distances, atol=1e-2)
        assert found.recalls == kept.recalls and found.views["descriptors_dtype"] == "float16"
    for part in ("database", "queries"):
        rows, rounded = (read_shards(folder / part)[0] for folder in (whole, half))
        assert rounded.dtype == np.float16
        assert np.array_equal(rounded[: len(rounded)], rows[: len(rows)].astype(np.float16))
    with pytest.raises(DatasetError, match="float16"):
        evaluate(TinyImage(), dataset, recall_values=KS, descriptors_folder=half)


def test_the_type_of_descriptors_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--descriptors_dtype float16 needs --descriptors_folder"):
        from_values(EvalConfig, {"dataset_folder": str(tmp_path), "descriptors_dtype": "float16"})
    values = {"dataset_folder": str(tmp_path), "descriptors_dtype": "float16", "descriptors_folder": str(tmp_path)}
    settings = evaluation_settings(from_values(EvalConfig, values), torch.device("cpu"))
    assert settings.extraction.stored_dtype == "float16"


@pytest.mark.parametrize(
    ("num_images", "message"), [(1, "is a single image, so each query has the same"), (2, "are a single place, within")]
)
def test_a_database_of_one_place_is_refused(
    tmp_path: Path,
    num_images: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(num_images):
        write_place(tmp_path / "test" / "database", 1, number)
    write_place(tmp_path / "test" / "queries", 1, 5)
    words = ["--backbone", "ResNet18_Small", "--imagenet_weights", "none", "--device", "cpu", "--recall_values", "1",
             "--num_workers", "0"]  # fmt: skip
    assert main(["eval", "--dataset_folder", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("report.html"))
    whole = write_dataset(tmp_path / "whole")
    for split in ("train", "val"):
        (whole / split).rename(tmp_path / split)
    assert main(["train", "--dataset_folder", str(tmp_path), *words, "--min_images_per_class", "2", "--M", "20",
                 "--alpha", "180", "--N", "1", "--L", "2", "--groups_num", "1", "--dry_run"]) == 2  # fmt: skip
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: The ") and message in error


def test_predictions_are_at_most_the_database(dataset: RetrievalDataset) -> None:
    found = evaluate(TinyImage(), dataset, recall_values=KS, num_predictions=1000)
    assert found.predictions.shape == (12, 24)
    assert (np.sort(found.predictions, axis=1) == np.arange(24)).all()


def test_unreadable_photos(dataset: RetrievalDataset) -> None:
    plain = evaluate(TinyImage(), dataset, recall_values=KS)
    damage(dataset.database, 0, 1, 6)
    damage(dataset.queries, 3)
    with pytest.raises(ImageError, match="Cannot open 3 of 24 photos"):
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
    # Query 0 lost both of its positives and query 3 is unreadable: both are misses, and still count.
    assert not found.hits[0].any()
    assert found.recalls == {k: pytest.approx(100 * found.hits[:, :k].any(1).sum() / 12) for k in KS}
    assert plain.hits[[0, 3]].any(1).all()


def test_recall_values_larger_than_the_database_are_left_out(
    dataset: RetrievalDataset, caplog: pytest.LogCaptureFixture
) -> None:
    plain = evaluate(TinyImage(), dataset, recall_values=(1, 5))
    found = evaluate(TinyImage(), dataset, recall_values=(1, 5, 50, 100))
    assert found.recalls == plain.recalls
    assert list(found.chance) == [1, 5]
    assert found.recall_values_left_out == (50, 100)
    assert "Recall@50 and Recall@100 are left out: the database has only 24 images." in caplog.text
    with pytest.raises(DatasetError, match=r"Recall@50 needs 50 database images, but .* has 24\."):
        evaluate(TinyImage(), dataset, recall_values=(50, 100))
    damage(dataset.database, *range(22))
    found = evaluate(TinyImage(), dataset, recall_values=KS, skip_unreadable=True)
    assert (list(found.recalls), found.recall_values_left_out) == ([1, 2], (5,))


def test_given_descriptors() -> None:
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 300, (200, 2))
    queries = np.concatenate([positions[:49] + rng.uniform(-10, 10, (49, 2)), [[5000.0, 5000.0]]])
    dataset = dataset_without_photos(positions, queries)
    # Positions used as descriptors find the nearest image, which is within 25 m of all queries except one.
    found = evaluate_descriptors(positions.astype(np.float32), queries.astype(np.float32), dataset)
    assert found.recalls == {1: 98.0, 5: 98.0, 10: 98.0, 20: 98.0}
    assert found.num_queries_without_positives == 1
    assert (np.diff(found.distances_m, axis=1) > -1e-3).all()
    with pytest.raises(DatasetError, match="199 descriptors for 200 photos of the database"):
        evaluate_descriptors(positions[1:].astype(np.float32), queries.astype(np.float32), dataset)


def test_random_descriptors_have_the_recalls_of_chance() -> None:
    rng = np.random.default_rng(1)
    dataset = dataset_without_photos(rng.uniform(0, 200, (300, 2)), rng.uniform(0, 200, (4000, 2)))
    database, queries = (rng.standard_normal((rows, 32)).astype(np.float32) for rows in (300, 4000))
    found = evaluate_descriptors(database, queries, dataset)
    for k, recall in found.recalls.items():
        assert recall == pytest.approx(found.chance[k], abs=4)


def test_a_larger_radius_gives_higher_recalls(dataset: RetrievalDataset) -> None:
    near = evaluate(TinyImage(), dataset, recall_values=(1,), positive_dist_threshold=0.5)
    far = evaluate(TinyImage(), dataset, recall_values=(1,), positive_dist_threshold=300)
    assert near.chance[1] < far.chance[1] and near.recalls[1] < far.recalls[1]
    assert near.num_queries_without_positives > 0


def test_reference(reference_folder: Path) -> None:
    with np.load(reference_folder / "recall.npz") as file:
        dataset = dataset_without_photos(file["database_utm"], file["queries_utm"])
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
