"""What TensorBoard and the services of --logger get: the same names; a service that fails does not stop training."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cosplace.errors import ConfigError
from cosplace.training.loggers import open_loggers, require_logger
from cosplace.training.metrics import MetricsWriter
from cosplace.training.validation_image import CORRECT, EMPTY, FRAME, GAP, QUERY, SIDE, WRONG, validation_image
from tests.assessment.comparison_samples import city_dataset, city_evaluation

SETTINGS = {"lr": 1e-5, "backbone": "ResNet18", "use_amp16": False, "recall_values": (1, 5), "resume_model": None}
PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
SCALARS = {"loss", "learning_rate", "images_per_second", "memory_mb", "validation/R@1", "validation/R@5", "test/R@1"}


def write_all(writer: MetricsWriter) -> None:
    """Everything that a run writes."""
    writer.write_settings(SETTINGS)
    writer.write_start({"num_queries": 4}, {1: 50.0, 5: 75.0})
    writer.write_image(PIXELS, 0)
    writer.write_loss(step=10, epoch=0, loss=3.5, learning_rate=1e-5)
    writer.write_epoch({"step": 10, "epoch": 0, "images_per_second": 12.5}, {1: 60.0, 5: 80.0})
    writer.write_memory(321.0, 10)
    writer.write_memory(None, 10)
    writer.write_recalls("test", {1: 70.0}, 10)


def test_tensorboard_has_numbers_image_and_settings(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, first_step=0) as writer:
        write_all(writer)
    assert len(list(tmp_path.glob("events*"))) == 1 and not [path for path in tmp_path.iterdir() if path.is_dir()]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == SCALARS
    assert [(event.step, event.value) for event in events.Scalars("validation/R@1")] == [(0, 50.0), (10, 60.0)]
    assert events.Scalars("learning_rate")[0].value == pytest.approx(1e-5)
    assert events.Scalars("memory_mb")[0].value == 321.0
    image = events.Images("validation/queries")[0]
    assert (image.width, image.height, image.step) == (3, 2, 0)
    plugin = events.PluginTagToContent("hparams")
    start = plugin["_hparams_/session_start_info"]
    assert b"backbone" in start and b"ResNet18" in start and b"(1, 5)" in start and b"resume_model" not in start


# --- services --------------------------------------------------------------------------------------------------------


class Calls(list):
    """Calls of a service, as (name, arguments)."""

    def method(self, name: str, result: Any = None) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            self.append((name, words, options))
            return result

        return call


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def wandb(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(name="wandb")  # type: ignore[assignment]
    run = SimpleNamespace(
        id="run7",
        config=SimpleNamespace(update=calls.method("config")),
        log=calls.method("log"),
        finish=calls.method("finish"),
    )
    module.init = calls.method("init", run)  # type: ignore[attr-defined]
    module.Image = lambda pixels: ("image", pixels.shape)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("mlflow")
    module.__spec__ = SimpleNamespace(name="mlflow")  # type: ignore[assignment]
    module.MlflowException = type("MlflowException", (Exception,), {})  # type: ignore[attr-defined]
    run = SimpleNamespace(info=SimpleNamespace(run_id="abc1"))
    for name in ("set_experiment", "log_params", "log_image", "end_run"):
        setattr(module, name, calls.method(name))
    module.start_run = calls.method("start_run", run)  # type: ignore[attr-defined]

    def log_metrics(values: dict[str, float], step: int) -> None:
        for name in values:
            if not re.fullmatch(r"[/\w.\- :]*", name):  # as MLflow does
                raise module.MlflowException(f"Invalid metric name: '{name}'")  # type: ignore[attr-defined]
        calls.append(("log_metrics", (values,), {"step": step}))

    module.log_metrics = log_metrics  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def test_weights_and_biases_gets_the_same_names(wandb: ModuleType, calls: Calls, tmp_path: Path) -> None:
    folder = tmp_path / "default" / "2026"
    folder.mkdir(parents=True)
    with MetricsWriter(folder, first_step=0, logger="wandb") as writer:
        write_all(writer)
    init = calls[0]
    assert init[0] == "init" and init[2]["name"] == "default/2026" and init[2]["id"] is None
    (config,) = [words[0] for name, words, _ in calls if name == "config"]
    assert config == {"lr": 1e-5, "backbone": "ResNet18", "use_amp16": False, "recall_values": "(1, 5)"}
    logged = [(words[0], options["step"]) for name, words, options in calls if name == "log"]
    assert {name for values, _ in logged for name in values} == SCALARS | {"validation/queries"}
    assert ({"validation/queries": ("image", PIXELS.shape)}, 0) in logged
    steps = [step for _, step in logged]
    assert steps == sorted(steps)  # it refuses earlier steps
    assert calls[-1][0] == "finish"
    with MetricsWriter(folder, first_step=10, logger="wandb"):
        pass
    assert [options["id"] for name, _, options in calls if name == "init"] == [None, "run7"]  # continued


def test_mlflow_gets_the_same_names(mlflow: ModuleType, calls: Calls, tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, first_step=0, logger="mlflow") as writer:
        write_all(writer)
    metrics = {name for kind, words, _ in calls if kind == "log_metrics" for name in words[0]}
    assert metrics == {name.replace("@", "_at_") for name in SCALARS}
    assert ("log_image", "validation/queries/000000000.png") in [
        (name, words[1]) for name, words, _ in calls if name == "log_image"
    ]
    assert calls[-1][0] == "end_run"
    with MetricsWriter(tmp_path, first_step=10, logger="mlflow"):
        pass
    starts = [options for name, _, options in calls if name == "start_run"]
    assert "run_id" not in starts[0] and starts[1] == {"run_id": "abc1"}
    assert json.loads((tmp_path / "logger.json").read_text()) == {"mlflow": "abc1"}


def test_a_service_that_fails_gets_no_more_metrics(
    wandb: ModuleType, calls: Calls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        calls.append(("failed", (), {}))
        raise ConnectionError("no route\nto host")

    with caplog.at_level(logging.WARNING), MetricsWriter(tmp_path, first_step=0, logger="wandb") as writer:
        writer.loggers[1].run.log = fail  # type: ignore[attr-defined]
        write_all(writer)
    assert [name for name, _, _ in calls].count("failed") == 1
    (message,) = caplog.messages
    assert message == r"WeightsAndBiases failed and gets no more metrics of this run: no route\nto host"
    assert set(EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]) == SCALARS


def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosplace.training.loggers.find_spec", lambda _: None)
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # of other tests of this process
        with pytest.raises(ConfigError, match=rf"pip install 'cosplace\[{name}\]'"):
            require_logger(name)
    assert "wandb" not in sys.modules and "mlflow" not in sys.modules
    (logger,) = open_loggers(None, tmp_path, 0)  # TensorBoard
    logger.close()


def test_a_service_that_cannot_start_is_reported(wandb: ModuleType, tmp_path: Path) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("api_key not configured")

    wandb.init = fail  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="--logger wandb cannot start: api_key not configured"):
        MetricsWriter(tmp_path, first_step=0, logger="wandb")


@pytest.mark.slow
def test_the_real_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs `pip install 'cosplace[wandb]'`", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "default" / "2026"
    folder.mkdir(parents=True)
    with MetricsWriter(folder, first_step=0, logger="wandb") as writer:
        write_all(writer)
    run_id = json.loads((folder / "logger.json").read_text())["wandb"]
    (events,) = folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb")
    names = [name.encode() for name in [*SCALARS, "backbone", "ResNet18", "default/2026"]]
    until = time.monotonic() + 60
    while missing := [name for name in names if name not in events.read_bytes()]:  # another process of wandb writes it
        assert time.monotonic() < until, missing
        time.sleep(0.1)
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/validation/*.png"))) == 1
    with MetricsWriter(folder, first_step=10, logger="wandb") as writer:
        writer.write_recalls("test", {1: 75.0}, 20)
    assert json.loads((folder / "logger.json").read_text()) == {"wandb": run_id}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that mlflow uses
def test_the_real_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="needs `pip install 'cosplace[mlflow]'`", exc_type=ImportError)
    pytest.importorskip("sqlalchemy", reason="needs `pip install 'cosplace[mlflow]'`", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    folder = tmp_path / "default" / "2026"
    folder.mkdir(parents=True)
    with MetricsWriter(folder, first_step=0, logger="mlflow") as writer:
        write_all(writer)
    with MetricsWriter(folder, first_step=10, logger="mlflow") as writer:  # resumed
        writer.write_settings(SETTINGS | {"lr": 2e-5})
        writer.write_recalls("test", {1: 75.0}, 20)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("cosplace").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "default/2026"
    assert set(run.data.metrics) == {name.replace("@", "_at_") for name in SCALARS}
    history = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "test/R_at_1")]
    assert sorted(history) == [(10, 70.0), (20, 75.0)]
    assert run.data.params == {"lr": "1e-05", "backbone": "ResNet18", "use_amp16": "False", "recall_values": "(1, 5)"}
    (image,) = client.list_artifacts(run.info.run_id, "validation/queries")
    assert image.path == "validation/queries/000000000.png"


# --- the image -------------------------------------------------------------------------------------------------------


def test_the_validation_image_frames_what_was_found(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path, 2, photos=True)
    Image.new("RGB", (40, 80), (250, 0, 0)).save(tmp_path / "queries" / "q0000.jpg", quality=95)
    (tmp_path / "database" / "d0001.jpg").write_bytes(b"damaged")
    evaluation = city_evaluation(dataset, [3, 1])
    predictions = evaluation.predictions.copy()
    predictions[1, 3] = -1
    image = validation_image(dataset, replace(evaluation, predictions=predictions))
    step = SIDE + GAP
    assert image.shape == (2 * step - GAP, 5 * step - GAP, 3) and image.dtype == np.uint8
    frames = [[tuple(image[row * step, column * step].tolist()) for column in range(5)] for row in range(2)]
    assert frames[0] == [QUERY, WRONG, WRONG, CORRECT, WRONG]
    assert frames[1] == [QUERY, CORRECT, WRONG, WRONG, WRONG]
    middle = SIDE // 2
    red = image[middle, middle].astype(int)  # a tall photo keeps its shape: gray at its sides
    assert red[0] > 230 and red[1] < 30
    assert tuple(image[middle, FRAME + 3].tolist()) == EMPTY
    assert tuple(image[step + middle, step + middle].tolist()) == EMPTY  # the damaged photo
    assert tuple(image[step + middle, 4 * step + middle].tolist()) == EMPTY  # no prediction
