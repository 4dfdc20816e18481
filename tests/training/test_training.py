"""The loop: reproducible to the byte, resumed exactly, and it learns."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cosplace.config.sections import TrainConfig
from cosplace.errors import CheckpointError, ConfigError, CosPlaceError, DatasetError, DeviceError, LoadingError
from cosplace.models.network import GeoLocalizationNet
from cosplace.training.batches import Batch, GroupImages
from cosplace.training.best_model import BEST_MODEL
from cosplace.training.checkpoint import LAST_CHECKPOINT, read_checkpoint
from cosplace.training.loop import train
from cosplace.training.metrics import read_metrics
from cosplace.training.resume import resumed_config
from cosplace.training.schedules import learning_rate, margin
from cosplace.training.setup import prepare
from tests.synthetic_dataset import SETTINGS, settings, write_dataset


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def weights(folder: Path) -> bytes:
    return (folder / BEST_MODEL).read_bytes()


def all_weights(folder: Path) -> list[torch.Tensor]:
    """Every tensor of the last checkpoint: network, classifiers and both kinds of moments."""
    found = []

    def collect(value) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for key in value:
                collect(value[key])
        elif isinstance(value, list):
            for one in value:
                collect(one)

    collect(read_checkpoint(folder))
    return found


def timeless(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def assert_same_run(a: Path, b: Path) -> None:
    assert weights(a) == weights(b)
    assert all(torch.equal(x, y) for x, y in zip(all_weights(a), all_weights(b), strict=True))
    assert timeless(read_metrics(a)) == timeless(read_metrics(b))


@pytest.fixture(scope="module")
def whole_run(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(prepare(settings(dataset_folder)), folder)
    return folder


@pytest.mark.slow
def test_one_seed_one_result(dataset_folder: Path, whole_run: Path, tmp_path: Path) -> None:
    for loader in ("threads", "processes"):
        train(prepare(settings(dataset_folder, num_workers=2, loader=loader)), tmp_path / loader)
        assert_same_run(tmp_path / loader, whole_run)
    train(prepare(settings(dataset_folder, seed=1)), tmp_path / "other")
    assert weights(tmp_path / "other") != weights(whole_run)


class StoppedError(Exception):
    pass


def train_until(config: TrainConfig, folder: Path, stop: int) -> None:
    """Train, and stop after that many iterations of the run, as a kill would."""
    epoch, iteration = divmod(stop, SETTINGS["iterations_per_epoch"])

    def progress(what: str, done: int, total: int, note: str) -> None:
        if what.startswith(f"epoch {epoch + 1}") and done >= iteration * SETTINGS["batch_size"]:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(prepare(config), folder, progress)


@pytest.mark.parametrize(
    ("stops", "minutes"),
    [
        ([4, 7], 0.0),
        pytest.param([5, 10], 10.0, marks=pytest.mark.slow),
        pytest.param([1], 0.0, marks=pytest.mark.slow),
        pytest.param([5, 10, 14], 0.0, marks=pytest.mark.slow),
        pytest.param([4, 7], 10.0, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_resumes_exactly(dataset_folder: Path, whole_run: Path, tmp_path: Path, stops, minutes) -> None:
    """minutes 0: a checkpoint after every iteration; 10: only at the ends of epochs, and the rest is done again."""
    config = settings(dataset_folder, checkpoint_minutes=minutes)
    for stop in stops:
        train_until(config, tmp_path, stop)
        loader = "threads" if stop % 2 else "processes"
        config = resumed_config(str(tmp_path), {"num_workers": 1, "loader": loader, "checkpoint_minutes": minutes})
    train(prepare(config), tmp_path)
    assert_same_run(tmp_path, whole_run)


def test_double_precision_is_that_of_all_weights_but_the_best_models(
    dataset_folder: Path, whole_run: Path, tmp_path: Path
) -> None:
    train(prepare(settings(dataset_folder, use_float64=True, epochs_num=1, iterations_per_epoch=1)), tmp_path)
    numbers = [value for value in all_weights(tmp_path) if value.is_floating_point() and value.dim()]
    assert {value.dtype for value in numbers} == {torch.float64}
    assert not all(torch.equal(value, value.float().double()) for value in numbers)
    best = torch.load(tmp_path / BEST_MODEL, weights_only=True)
    assert {value.dtype for value in best.values()} == {torch.float32, torch.int64}
    ours, plain = (
        next(row["loss"] for row in read_metrics(folder) if row["kind"] == "loss") for folder in (tmp_path, whole_run)
    )
    assert ours == pytest.approx(plain, rel=1e-5)
    assert ours != plain


def test_double_precision_is_refused_with_other_types(dataset_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--use_float64 and --use_amp16 contradict each other"):
        settings(dataset_folder, use_float64=True, use_amp16=True)
    monkeypatch.setattr("cosplace.training.setup.choose_device", lambda _: torch.device("mps"))
    with pytest.raises(ConfigError, match="--use_float64: MPS"):
        prepare(settings(dataset_folder, use_float64=True))


def test_cuda_graphs_without_a_gpu_are_refused_before_anything_is_written(dataset_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--cuda_graphs needs a GPU"):
        train(prepare(settings(dataset_folder, cuda_graphs=True)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        {"use_amp16": True, "amp_dtype": "bf16"},
        {"use_float64": True},
        {"groups_num": 2, "N": 2, "M": 10, "L": 1, "augmentation_device": "cpu"},
        pytest.param({"compile": True}, marks=pytest.mark.long),
    ],
)
def test_every_mode_resumes_exactly(dataset_folder: Path, tmp_path: Path, mode: dict) -> None:
    config = settings(dataset_folder, checkpoint_minutes=0.0, **mode)
    train(prepare(config), tmp_path / "whole")
    train_until(config, tmp_path / "stopped", stop=7)
    train(prepare(resumed_config(str(tmp_path / "stopped"), {})), tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.long
def test_a_compiled_network_learns_the_same(dataset_folder: Path, whole_run: Path, tmp_path: Path) -> None:
    train(prepare(settings(dataset_folder, compile=True)), tmp_path)
    ours, plain = (
        [row["loss"] for row in read_metrics(folder) if row["kind"] == "loss"] for folder in (tmp_path, whole_run)
    )
    assert ours[0] == pytest.approx(plain[0], rel=1e-4)
    assert ours == pytest.approx(plain, rel=0.1)  # Adam's first steps turn rounding into steps
    saved = [torch.load(folder / BEST_MODEL, weights_only=True) for folder in (tmp_path, whole_run)]
    assert saved[0].keys() == saved[1].keys()


@pytest.mark.slow
def test_a_killed_loading_process_costs_no_iteration(
    dataset_folder: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints come every 10 minutes, and one more when a loading process dies."""
    called = GroupImages.batch

    def dies(self: GroupImages, indices: Sequence[int]) -> Batch:
        if self.epoch == 1 and 3 * SETTINGS["batch_size"] in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return called(self, indices)

    monkeypatch.setattr(GroupImages, "batch", dies)
    config = settings(dataset_folder, num_workers=1, loader="processes")
    with pytest.raises(LoadingError, match=rf"--num_workers.*--resume_train {tmp_path}") as caught:
        train(prepare(config), tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    saved = read_checkpoint(tmp_path)["counters"]
    assert saved["epoch"] == 1
    assert 1 <= saved["iteration"] <= 3
    train(prepare(resumed_config(str(tmp_path), {"loader": "threads"})), tmp_path)
    assert_same_run(tmp_path, whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_device_without_memory_names_the_knobs(
    dataset_folder: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    called = GeoLocalizationNet.forward
    calls = []

    def full(self: GeoLocalizationNet, images: torch.Tensor) -> torch.Tensor:
        calls.append(self.training)
        if self.training == (where == "training") and calls.count(self.training) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return called(self, images)

    monkeypatch.setattr(GeoLocalizationNet, "forward", full)
    knob = "--batch_size" if where == "training" else "--infer_batch_size"
    with pytest.raises(DeviceError, match=rf"{knob}.*--resume_train {tmp_path}") as caught:
        train(prepare(settings(dataset_folder, checkpoint_minutes=0.0)), tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    train(prepare(resumed_config(str(tmp_path), {})), tmp_path)
    assert_same_run(tmp_path, whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.long)])
def test_kill_minus_nine_at_any_moment_loses_nothing(
    dataset_folder: Path, whole_run: Path, tmp_path: Path, kills: int
) -> None:
    flags = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in SETTINGS.items()
        if name != "recall_values"
    ]
    first = [*flags, "--recall_values", "1", "2", f"--dataset_folder={dataset_folder}", "--checkpoint_minutes=0"]
    moments = random.Random(7)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    for attempt in range(40):
        folders = sorted((tmp_path / "logs" / "default").glob("*/last_checkpoint.pth"))
        arguments = [f"--resume_train={folders[0]}", f"--num_workers={attempt % 2}"] if folders else first
        with (tmp_path / "out").open("w") as out:
            run = subprocess.Popen(
                [sys.executable, "-m", "cosplace", "train", *arguments],
                cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
            limit = time.monotonic() + 120
            if attempt < kills:
                before = folders[0].stat().st_mtime_ns if folders else 0
                # Killed some time after the first new checkpoint: in the loop, while saving, while validating.
                while time.monotonic() < limit and run.poll() is None:
                    now = sorted((tmp_path / "logs" / "default").glob("*/last_checkpoint.pth"))
                    if now and now[0].stat().st_mtime_ns != before:
                        break
                    time.sleep(0.01)
                time.sleep(moments.uniform(0, 0.5))
                run.send_signal(signal.SIGKILL)
                run.wait()
            elif run.wait(timeout=120) == 0:
                break
    assert run.returncode == 0, (tmp_path / "out").read_text()
    assert_same_run(folders[0].parent, whole_run)


def test_training_starts_from_given_weights(dataset_folder: Path, whole_run: Path, tmp_path: Path) -> None:
    start = {"resume_model": str(whole_run / BEST_MODEL), "backbone": "ResNet50", "lr": 0.0, "epochs_num": 1}
    prepared = prepare(settings(dataset_folder, **start))
    assert prepared.config.model.backbone == "ResNet18_Small"
    train(prepared, tmp_path)
    convolutions = [key for key in torch.load(tmp_path / BEST_MODEL, weights_only=True) if key.endswith("conv1.weight")]
    for key in convolutions:
        assert torch.equal(*(torch.load(f / BEST_MODEL, weights_only=True)[key] for f in (tmp_path, whole_run)))
    with pytest.raises(ConfigError, match="--backbone ResNet50 contradicts"):
        prepare(settings(dataset_folder, **start), {"backbone": "ResNet50"})
    # A resumed run holds all weights itself: what it started from may be gone.
    config = resumed_config(str(tmp_path), {})
    assert prepare(dataclasses.replace(config, training=dataclasses.replace(config.training, resume_model="gone")))


def test_resuming_refuses_what_would_change_the_result(dataset_folder: Path, whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--lr 0\.5 contradicts .* trained with 0\.001"):
        resumed_config(str(whole_run), {"lr": 0.5})
    same = {"lr": 1e-3, "recall_values": [1, 2], "device": "auto"}
    assert resumed_config(str(whole_run), same).running.device == "auto"
    moved = tmp_path / "val"  # one query is at another place
    shutil.copytree(dataset_folder / "val", moved)
    query = sorted((moved / "queries").iterdir())[0]
    parts = query.name.split("@")
    query.rename(query.with_name("@".join([*parts[:1], f"{float(parts[1]) + 5:.2f}", *parts[2:]])))
    with pytest.raises(CheckpointError, match="was validated on other photos or positions"):
        prepare(resumed_config(str(whole_run), {"val_set_folder": str(moved)}))
    other = write_dataset(tmp_path, num_places=10)
    with pytest.raises(CheckpointError, match="was trained on other photos"):
        train(prepare(resumed_config(str(whole_run), {"dataset_folder": str(other)})), whole_run)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b""), "truncated or not a checkpoint"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip"), "truncated or not a checkpoint"),
        (lambda path: torch.save({"weight": torch.zeros(1)}, path), "Start from them with --resume_model"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint of a training run"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, make, said: str) -> None:
    make(tmp_path / LAST_CHECKPOINT)
    with pytest.raises(CheckpointError, match=said):
        resumed_config(str(tmp_path / LAST_CHECKPOINT), {})


def test_a_truncated_checkpoint_is_refused(whole_run: Path, tmp_path: Path) -> None:
    raw = (whole_run / LAST_CHECKPOINT).read_bytes()
    (tmp_path / LAST_CHECKPOINT).write_bytes(raw[: len(raw) * 2 // 3])
    with pytest.raises(CheckpointError, match="truncated"):
        resumed_config(str(tmp_path), {})


@pytest.mark.slow
def test_it_learns_to_tell_classes_apart(dataset_folder: Path, tmp_path: Path) -> None:
    config = settings(
        dataset_folder, iterations_per_epoch=40, batch_size=16, lr=2e-3, whitened_start=True, lr_schedule="cosine",
        warmup_iterations=10, M=10, fc_output_dim=32, image_size=64, margin=0.1,
    )  # fmt: skip
    result = train(prepare(config), tmp_path)
    losses = [row["loss"] for row in result.metrics if row["kind"] == "epoch"]
    assert losses[2] < losses[1] < losses[0]
    assert losses[2] < 0.8 * losses[0]
    assert result.test.recalls[1] > 2 * result.test.chance[1]


def test_best_model_is_kept_even_when_recall_stays_zero(dataset_folder: Path, tmp_path: Path) -> None:
    config = settings(dataset_folder, epochs_num=1, iterations_per_epoch=1, positive_dist_threshold=0.0)
    result = train(prepare(config), tmp_path)
    assert result.test.recalls[1] == 0
    assert GeoLocalizationNet("ResNet18_Small", 16).load_state_dict(
        torch.load(tmp_path / BEST_MODEL, weights_only=True)
    )


def test_settings_of_the_original_save_a_plain_state_dict(whole_run: Path) -> None:
    saved = torch.load(whole_run / BEST_MODEL, weights_only=True)
    assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in saved.values())
    assert "aggregation.1.p" in saved
    assert saved["aggregation.3.weight"].shape == (16, 128)


def test_unreadable_photos_are_reported_at_the_end_of_the_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_dataset(tmp_path / "data", num_places=6)
    bad = sorted((folder / "train").rglob("*.jpg"))[:4]
    for path in bad:
        path.write_bytes(b"no picture")
    with caplog.at_level("WARNING", logger="cosplace"):
        train(prepare(settings(folder, epochs_num=1, iterations_per_epoch=20)), tmp_path / "run")
    said = caplog.text
    assert "4 photos cannot be opened" in said
    assert all(path.name in said for path in bad)


def test_schedules(dataset_folder: Path) -> None:
    config = settings(dataset_folder, lr=1.0, warmup_iterations=4, lr_schedule="cosine", margin=0.4, margin_ramp=0.5)
    total = 15
    assert [round(learning_rate(config, step), 6) for step in (0, 1)] == [
        0.25,
        round(0.5 * learning_rate_at(1, total), 6),
    ]
    assert learning_rate(config, total - 1) < 0.05
    assert margin(config, 0) == 0
    assert margin(config, 4) == pytest.approx(0.4 * 4 / 7.5)
    assert margin(config, 14) == 0.4
    plain = settings(dataset_folder)
    assert learning_rate(plain, 0) == learning_rate(plain, 14) == 1e-3
    assert margin(plain, 0) == 0.4


def learning_rate_at(step: int, total: int) -> float:
    import math

    return 0.5 * (1 + math.cos(math.pi * step / total))


def test_too_little_data_says_what_to_change_and_writes_nothing(dataset_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="groups_num"):
        train(prepare(settings(dataset_folder, groups_num=5)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops(dataset_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CosPlaceError, match="smaller --lr"):
        train(prepare(settings(dataset_folder, lr=1e30, iterations_per_epoch=30)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregation": "netvlad", "imagenet_weights": "none"}, "--whitened_start needs --aggregation gem"),
        ({"fc_output_dim": 512, "backbone": "ResNet18_Small"}, "--fc_output_dim is 512, the backbone has 128 features"),
        ({"resume_model": True}, "--fc_output_dim is 300, the backbone has 128 features"),
    ],
)
def test_what_whitening_needs_is_said_before_the_photos_are_read(tmp_path: Path, changes: dict, message: str) -> None:
    if "resume_model" in changes:
        weights = tmp_path / "weights.pth"
        torch.save(GeoLocalizationNet("ResNet18_Small", 300).state_dict(), weights)
        changes = {"resume_model": str(weights)}
    with pytest.raises(ConfigError, match=message):
        prepare(settings(tmp_path / "missing", whitened_start=True, **changes))
