"""The estimate of a training run comes from its own batches and writes nothing."""

import re
from pathlib import Path

import pytest

from cosplace.config.sections import TrainConfig
from cosplace.models.network import GeoLocalizationNet
from cosplace.training.dry_run import estimate_training, steps_left
from cosplace.training.setup import prepare
from tests.synthetic_dataset import settings as tiny_run
from tests.synthetic_dataset import write_dataset


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def settings(dataset_folder: Path, **changes) -> TrainConfig:
    return tiny_run(dataset_folder, **{"epochs_num": 2, "iterations_per_epoch": 40, "num_workers": 1, **changes})


def test_a_run_is_estimated_and_nothing_is_written(dataset_folder: Path, tmp_path: Path) -> None:
    seen = []
    estimate = estimate_training(
        prepare(settings(dataset_folder)), tmp_path / "run", lambda *report: seen.append(report)
    )
    assert not list(tmp_path.iterdir())
    text = "\n".join(estimate.lines)
    assert re.search(r"80 of 6 images, [\d,.]+ images/s \(the loader alone [\d,.]+\), bound by", text)
    for part in ("2 validations and the test", "main memory", "for descriptors", "free"):
        assert part in text
    assert estimate.memory_bytes > 50e6
    assert estimate.disk_bytes > 2 * 4 * sum(p.numel() for p in GeoLocalizationNet("ResNet18_Small", 16).parameters())
    assert {task for task, *_ in seen} >= {"measuring the loader", "measuring iterations", "measuring validation"}


@pytest.mark.slow
def test_a_longer_run_takes_longer(dataset_folder: Path, tmp_path: Path) -> None:
    """With the same speed, a thousand times the iterations: far beyond any noise of the measurement."""
    short = estimate_training(prepare(settings(dataset_folder, epochs_num=1)), tmp_path)
    long = estimate_training(prepare(settings(dataset_folder, epochs_num=1, iterations_per_epoch=40_000)), tmp_path)
    assert long.seconds > 10 * short.seconds


@pytest.mark.parametrize(("epoch", "iteration", "left"), [(0, 0, 80), (1, 0, 40), (1, 30, 10), (1, 40, 0), (2, 0, 0)])
def test_a_resumed_run_counts_the_remaining_iterations(
    dataset_folder: Path, epoch: int, iteration: int, left: int
) -> None:
    assert steps_left(settings(dataset_folder), epoch, iteration) == left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epoch", "iteration", "says"),
    [
        (1, 30, ("iterations: 10 of 6", "1 validations and the test")),
        (2, 0, ("iterations: 0 of 6", "0 validations and the test")),
    ],
)
def test_a_resumed_run_is_estimated(
    dataset_folder: Path, tmp_path: Path, epoch: int, iteration: int, says: tuple[str, ...]
) -> None:
    prepared = prepare(settings(dataset_folder))
    prepared.state.epoch, prepared.state.iteration = epoch, iteration
    text = "\n".join(estimate_training(prepared, tmp_path / "run").lines)
    assert all(part in text for part in says)
