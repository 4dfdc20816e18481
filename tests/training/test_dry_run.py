"""Before it runs, it tells: the forecast is made of the job's own batches, and leaves nothing behind."""

import re
from pathlib import Path

import pytest

from cosplace.config.sections import EvalConfig, TrainConfig
from cosplace.config.values import from_values
from cosplace.models.network import GeoLocalizationNet
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.training.dry_run import duration, forecast_evaluation, forecast_training
from cosplace.training.setup import prepare
from tests.streets import settings as tiny_run
from tests.streets import write_streets


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_streets(tmp_path_factory.mktemp("streets"))


def settings(streets: Path, **changes) -> TrainConfig:
    return tiny_run(streets, **{"epochs_num": 2, "iterations_per_epoch": 40, "num_workers": 1, **changes})


def test_a_training_is_foretold_and_nothing_is_written(streets: Path, tmp_path: Path) -> None:
    seen = []
    forecast = forecast_training(prepare(settings(streets)), tmp_path / "run", lambda *told: seen.append(told))
    assert not list(tmp_path.iterdir())
    text = "\n".join(forecast.lines)
    assert re.search(r"80 of 6 images, [\d,.]+ images/s \(the loader alone [\d,.]+\), bound by", text)
    for said in ("2 validations and the test", "main memory", "for descriptors", "are free"):
        assert said in text
    assert forecast.memory_bytes > 50e6
    assert forecast.disk_bytes > 2 * 4 * sum(p.numel() for p in GeoLocalizationNet("ResNet18_Small", 16).parameters())
    assert {what for what, *_ in seen} >= {"measuring the loader", "measuring iterations", "measuring validation"}


@pytest.mark.parametrize("done", [0, 40, 70])
def test_the_time_foretold_adds_up(streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    """A first iteration 7 s longer than the others of 2 s; 10 s to judge one set."""
    monkeypatch.setattr("cosplace.training.dry_run._iteration_times", lambda *_: (7.0, 2.0))
    monkeypatch.setattr("cosplace.training.dry_run._describing_seconds", lambda *_: 10.0)
    prepared = prepare(settings(streets))
    prepared.state.epoch, prepared.state.iteration = divmod(done, 40)
    epochs_left = 2 if done < 40 else 1
    expected = 7 + 2 * (80 - done) + 10 * epochs_left + 10
    assert forecast_training(prepared, tmp_path).seconds == expected


def test_a_resumed_run_counts_only_what_is_left(streets: Path, tmp_path: Path) -> None:
    prepared = prepare(settings(streets))
    prepared.state.epoch, prepared.state.iteration = 1, 30
    text = "\n".join(forecast_training(prepared, tmp_path / "run").lines)
    assert "iterations: 10 of 6" in text
    assert "1 validations and the test" in text


@pytest.mark.parametrize(("epoch", "iteration"), [(1, 40), (2, 0)])  # before the last validation; all done
def test_a_run_with_no_iteration_left_is_foretold(streets: Path, tmp_path: Path, epoch: int, iteration: int) -> None:
    prepared = prepare(settings(streets))
    prepared.state.epoch, prepared.state.iteration = epoch, iteration
    assert "iterations: 0 of 6" in forecast_training(prepared, tmp_path).lines[0]


@pytest.mark.parametrize("kept", [None, "descriptors"])
def test_an_evaluation_is_foretold_and_nothing_is_written(streets: Path, tmp_path: Path, kept: str | None) -> None:
    folder = None if kept is None else str(tmp_path / kept)
    values = {"image_size": 32, "resize_test_imgs": True, "device": "cpu", "descriptors_folder": folder}
    config = from_values(EvalConfig, {**values, "infer_batch_size": 4, "num_workers": 1})
    dataset = open_retrieval_dataset(streets / "test")
    forecast = forecast_evaluation(GeoLocalizationNet("ResNet18_Small", 16), dataset, config)
    assert not list(tmp_path.iterdir())
    text = "\n".join(forecast.lines)
    assert "photos: 24 of the database, 12 queries" in text
    assert forecast.disk_bytes == (0 if kept is None else 4 * 16 * (24 + 12))
    assert (kept or "--descriptors_folder") in text
    assert forecast.seconds > 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "under a second"), (42.4, "42 s"), (400, "7 min"), (12_000, "3 h 20 min"), (188_000, "2 days 4 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
