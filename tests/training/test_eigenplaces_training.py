"""Training with EigenPlaces: one step on two classifiers, as computed by hand; a run; resuming exactly."""

import copy
import gc
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values
from cosplace.errors import CheckpointError, ConfigError, DatasetError
from cosplace.photos.names import format_image_name
from cosplace.progress import Progress
from cosplace.training.best_model import BEST_MODEL
from cosplace.training.checkpoint import RunState, read_checkpoint
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.data import epoch_batches
from cosplace.training.dry_run import estimate_training
from cosplace.training.loop import train
from cosplace.training.metrics import read_metrics
from cosplace.training.plan import describe_plan
from cosplace.training.resume import resumed_config
from cosplace.training.seen_photos import digest_training_photos
from cosplace.training.setup import prepare
from cosplace.training.step import TrainingStep, joint_step
from tests.synthetic_dataset import SETTINGS, place_image, write_dataset

EIGENPLACES = {
    **{name: value for name, value in SETTINGS.items() if name not in ("alpha", "L", "M", "N", "groups_num")},
    "method": "eigenplaces", "N": 2, "groups_num": 2, "min_images_per_class": 3, "batch_size": 4, "epochs_num": 3,
}  # fmt: skip


def write_road(folder: Path, num_cells: int = 12) -> None:
    """Write a road to the east: in each cell of 15 m, four positions with photos in four directions."""
    folder.mkdir(parents=True)
    for cell in range(num_cells):
        for step in range(4):
            for number, heading in enumerate((0, 90, 180, 270)):
                name = format_image_name(
                    utm_east=550_005.0 + 15 * cell + 3 * step + 1, utm_north=4_180_005.0, zone=10, letter="S",
                    latitude=37.7, longitude=-122.4, pano_id=f"{cell}-{step}", heading=heading, timestamp="202001",
                )  # fmt: skip
                Image.fromarray(place_image(10 * cell + number, step)).save(folder / name)


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_dataset(tmp_path_factory.mktemp("dataset"), num_places=1)
    (folder / "train").rename(folder / "unused")
    write_road(folder / "train")
    return folder


def settings(dataset_folder: Path, **changes) -> TrainConfig:
    return from_values(TrainConfig, {**EIGENPLACES, "dataset_folder": str(dataset_folder), **changes})


# --- one step --------------------------------------------------------------------------------------------------------


def plain_loss(network: torch.nn.Linear, classes: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """CosFace: cross-entropy of s (cos - m [own class]), s = 100, m = 0.4."""
    descriptors = torch.nn.functional.normalize(network(images))
    cosines = descriptors @ torch.nn.functional.normalize(classes).T
    own = torch.nn.functional.one_hot(labels, len(classes))
    return torch.nn.functional.cross_entropy(100 * (cosines - 0.4 * own), labels)


def test_a_step_is_that_of_the_paper() -> None:
    """Two steps, by hand: each classifier on its own batch, then the network on the sum of both gradients."""
    random_numbers = torch.Generator().manual_seed(3)
    network = torch.nn.Linear(6, 5)
    classifiers = [MarginCosineProduct(5, count, s=100, m=0.4) for count in (7, 4)]
    plain_network = copy.deepcopy(network)
    plain_classes = [torch.nn.Parameter(one.weight.detach().clone()) for one in classifiers]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    steps = [
        TrainingStep(
            forward=lambda images: torch.nn.functional.normalize(network(images)),
            classifier=one,
            optimizers=(optimizer, torch.optim.Adam(one.parameters(), lr=0.01)),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            device=torch.device("cpu"),
            dtype=None,
        )
        for one in classifiers
    ]
    plain_optimizers = [torch.optim.Adam([classes], lr=0.01) for classes in plain_classes]
    plain_optimizer = torch.optim.Adam(plain_network.parameters(), lr=1e-3)
    for _ in range(2):
        batches = [
            (torch.randn(3, 6, generator=random_numbers), torch.randint(count, (3,), generator=random_numbers))
            for count in (7, 4)
        ]
        loss = joint_step(steps, batches)
        plain_optimizer.zero_grad()
        total = 0.0
        for classes, its_optimizer, (images, labels) in zip(plain_classes, plain_optimizers, batches, strict=True):
            plain = plain_loss(plain_network, classes, images, labels)
            total += plain.item()
            its_optimizer.zero_grad()
            plain.backward()
            its_optimizer.step()
        plain_optimizer.step()
        assert loss.item() == pytest.approx(total, rel=1e-5)
    for ours, theirs in zip(network.parameters(), plain_network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for one, theirs in zip(classifiers, plain_classes, strict=True):
        torch.testing.assert_close(one.weight, theirs, rtol=1e-5, atol=1e-6)


def test_both_kinds_of_batches_come_in_turn_with_independent_draws(dataset_folder: Path) -> None:
    config = settings(dataset_folder)
    data = prepare(config).data
    assert [list(data.groups_of_epoch(epoch)) for epoch in range(3)] == [[0, 1], [2, 3], [0, 1]]
    counts = [len(data.groups[number].cells) for number in (0, 1)]
    assert counts == [6, 6]
    batches = list(epoch_batches(config, data, torch.device("cpu"), epoch=0))
    assert len(batches) == 2 * config.training.iterations_per_epoch
    lateral, frontal = (torch.cat([batch.labels for batch in batches[kind::2]]) for kind in (0, 1))
    assert not torch.equal(lateral, frontal)
    assert not torch.equal(batches[0].draws, batches[1].draws)
    later = list(epoch_batches(config, data, torch.device("cpu"), epoch=0, iteration=3))
    assert [batch.labels.tolist() for batch in later] == [batch.labels.tolist() for batch in batches[6:]]


# --- runs ------------------------------------------------------------------------------------------------------------


def tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def assert_same_run(a: Path, b: Path) -> None:
    assert (a / BEST_MODEL).read_bytes() == (b / BEST_MODEL).read_bytes()
    saved = [tensors(read_checkpoint(folder)) for folder in (a, b)]
    assert len(saved[0]) > 100
    assert all(torch.equal(x, y) for x, y in zip(*saved, strict=True))
    rows = [
        [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in found]
        for found in map(read_metrics, (a, b))
    ]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def whole_run(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(prepare(settings(dataset_folder)), folder)
    return folder


def test_a_run_trains_all_classifiers(dataset_folder: Path, whole_run: Path) -> None:
    start: RunState = prepare(settings(dataset_folder)).state
    saved = read_checkpoint(whole_run)
    assert len(saved["classifiers"]) == 4
    for before, after in zip(start.classifiers, saved["classifiers"], strict=True):
        assert not torch.equal(before.weight, after["weight"])
    epochs = [row for row in read_metrics(whole_run) if row["kind"] == "epoch"]
    assert [row["group"] for row in epochs] == [0, 1, 0]
    assert saved["config"]["method"] == "eigenplaces"


class StoppedError(Exception):
    pass


def stop_at(epoch: int, iteration: int) -> Progress:
    def progress(what: str, done: int, total: int, note: str) -> None:
        if what.startswith(f"epoch {epoch + 1}") and done >= iteration * 2 * EIGENPLACES["batch_size"]:
            raise StoppedError

    return progress


@pytest.mark.slow  # the loop is that of CosPlace, whose fast test resumes
@pytest.mark.parametrize("minutes", [0.0, 10.0])
def test_a_stopped_run_resumes_exactly(dataset_folder: Path, whole_run: Path, tmp_path: Path, minutes: float) -> None:
    """minutes 0: a checkpoint after every iteration; 10: only at the ends of epochs, and the rest is done again."""
    config = settings(dataset_folder, checkpoint_minutes=minutes)
    for epoch, iteration in ((0, 3), (1, 2)):
        with pytest.raises(StoppedError):
            train(prepare(config), tmp_path, stop_at(epoch, iteration))
        loader = "threads" if epoch else "processes"
        config = resumed_config(str(tmp_path), {"num_workers": 1, "loader": loader, "checkpoint_minutes": minutes})
    train(prepare(config), tmp_path)
    assert_same_run(tmp_path, whole_run)


def test_other_settings_are_refused_on_resume(dataset_folder: Path, whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--focal_distance 20\.0 contradicts"):
        resumed_config(str(whole_run), {"method": "eigenplaces", "focal_distance": 20.0})
    with pytest.raises(ConfigError, match="--method cosplace contradicts"):
        resumed_config(str(whole_run), {"method": "cosplace"})
    write_road(tmp_path / "other", num_cells=8)
    with pytest.raises(CheckpointError, match="other photos"):
        prepare(resumed_config(str(whole_run), {"train_set_folder": str(tmp_path / "other")}))


@pytest.mark.slow
@pytest.mark.long
def test_kill_minus_nine_at_any_moment_loses_nothing(dataset_folder: Path, whole_run: Path, tmp_path: Path) -> None:
    flags = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in EIGENPLACES.items()
        if name != "recall_values"
    ]
    first = [*flags, "--recall_values", "1", "2", f"--dataset_folder={dataset_folder}", "--checkpoint_minutes=0"]
    assert_same_run(train_with_kills(first, tmp_path), whole_run)


def train_with_kills(first: list[str], tmp_path: Path) -> Path:
    """Train with these arguments, killed and resumed several times; returns the folder of the run."""
    moments = random.Random(5)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    for attempt in range(40):
        folders = sorted((tmp_path / "logs" / "default").glob("*/last_checkpoint.pth"))
        arguments = [f"--resume_train={folders[0]}", f"--num_workers={attempt % 2}"] if folders else first
        with (tmp_path / "out").open("w") as out:
            run = subprocess.Popen(
                [sys.executable, "-m", "cosplace", "train", *arguments],
                cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
            if attempt < 6:
                limit, before = time.monotonic() + 120, folders[0].stat().st_mtime_ns if folders else 0
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
    return folders[0].parent


def test_the_plan_counts_both_kinds(dataset_folder: Path, tmp_path: Path) -> None:
    prepared = prepare(settings(dataset_folder, num_workers=1))
    plan = "\n".join(describe_plan(prepared))
    assert "group 0 lateral: 6 classes, 24 images; 2 epochs, each class seen about 6.67 times" in plan
    assert "group 1 frontal: 6 classes, 24 images; 1 epoch," in plan
    assert "15 of 4 + 4 images" in estimate_training(prepared, tmp_path / "run").lines[0]
    assert not list(tmp_path.iterdir())


def test_the_plan_keeps_no_activations(dataset_folder: Path) -> None:
    # Such a graph, computed on another stream, also made it impossible to record CUDA graphs.
    describe_plan(prepare(settings(dataset_folder, num_workers=1)))
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is torch.Tensor and one.grad_fn is not None]


def write_one_direction(folder: Path) -> Path:
    """A road of which all photos look west, as those of a car's only camera."""
    write_road(folder)
    for path in folder.iterdir():
        if "@@270@" not in path.name:
            path.unlink()
    return folder


def test_a_photo_of_two_classes_is_one_training_photo(dataset_folder: Path, tmp_path: Path) -> None:
    road = write_one_direction(tmp_path / "road")
    data = prepare(settings(dataset_folder, train_set_folder=str(road), max_view_error=180.0)).data
    assert sum(num_images for _, num_images in data.groups.counts()) == 2 * 48
    photos = digest_training_photos(data)
    assert photos is not None
    assert photos.num_photos == 48


def test_photos_that_look_one_way_cannot_be_trained_on(dataset_folder: Path, tmp_path: Path) -> None:
    road = write_one_direction(tmp_path / "road")
    with pytest.raises(DatasetError, match=r"group 0 lateral has 0 classes.*--method cosplace"):
        prepare(settings(dataset_folder, train_set_folder=str(road)))


@pytest.mark.slow
def test_a_run_on_panoramas(dataset_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "panoramas"
    folder.mkdir()
    for path in sorted((dataset_folder / "train").glob("*@@0@*")):
        views = [place_image(int(path.name.split("@")[1][:-3]) + side, 0) for side in range(6)]
        Image.fromarray(np.concatenate(views, 1)).save(folder / path.name)  # 384 x 64
    config = settings(dataset_folder, train_set_folder=str(folder), panoramas=True, epochs_num=2)
    train(prepare(config), tmp_path / "run")
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if row["kind"] == "loss"]
    assert losses
    assert np.isfinite(losses).all()
