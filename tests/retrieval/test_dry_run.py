"""The estimate of an evaluation: plausible numbers, and nothing is written."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosplace.models.network import GeoLocalizationNet
from cosplace.retrieval.baselines import TinyImage
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.dry_run import estimate_evaluation, extraction_seconds, free_space_text
from cosplace.retrieval.evaluation import EvaluationSettings
from cosplace.retrieval.extraction import ExtractionSettings
from tests.synthetic_dataset import write_dataset

SECONDS_PER_IMAGE = 0.02


class SlowNetwork(nn.Module):
    """Takes a fixed time per image."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(SECONDS_PER_IMAGE * len(images))
        return torch.ones(len(images), 4) / 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalDataset:
    """24 database images and 12 queries."""
    return open_retrieval_dataset(write_dataset(tmp_path_factory.mktemp("dataset"), num_places=1) / "test")


@pytest.mark.parametrize(
    ("folder", "dtype", "num_bytes"),
    [(None, "float32", 0), ("descriptors", "float32", 4), ("descriptors", "float16", 2)],
)
def test_an_evaluation_is_estimated_and_nothing_is_written(
    dataset: RetrievalDataset, tmp_path: Path, folder: str | None, dtype: str, num_bytes: int
) -> None:
    settings = EvaluationSettings(
        extraction=ExtractionSettings(image_size=32, batch_size=4, num_workers=1, stored_dtype=dtype),
        descriptors_folder=None if folder is None else tmp_path / folder,
    )
    tasks = set()
    estimate = estimate_evaluation(
        GeoLocalizationNet("ResNet18_Small", 16), dataset, settings, lambda task, *_: tasks.add(task)
    )
    assert not list(tmp_path.iterdir())
    text = "\n".join(estimate.lines)
    assert "photos: 24 database images, 12 queries" in text
    assert (folder or "--descriptors_folder") in text
    assert estimate.disk_bytes == num_bytes * 16 * (24 + 12)
    assert estimate.memory_bytes > 50e6
    assert estimate.seconds > 0
    assert tasks == {"measuring"}


@pytest.mark.parametrize("batch_size", [1, 2, 100])  # 100: the whole database in one batch
def test_the_time_is_proportional_to_the_number_of_photos(dataset: RetrievalDataset, batch_size: int) -> None:
    seconds = extraction_seconds(SlowNetwork(), dataset, ExtractionSettings(batch_size=batch_size))
    # A busy machine takes longer; the time of another number of photos would be off by far more.
    assert 0.7 <= seconds / (36 * SECONDS_PER_IMAGE) <= 4


def test_settings_are_those_of_the_evaluation(dataset: RetrievalDataset) -> None:
    sizes = set()

    class Recorder(TinyImage):
        def forward(self, normalized: Tensor) -> Tensor:
            sizes.add(tuple(normalized.shape[2:]))
            return super().forward(normalized)

    extraction_seconds(Recorder(), dataset, ExtractionSettings(image_size=24))
    assert sizes == {(24, 24)}


def test_free_space_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert free_space_text(folder, 0).endswith("B free)")
    assert free_space_text(folder, 2**80).endswith("B free: not enough)")
    assert not folder.parent.exists()
