"""Distillation from end to end: the command, its files, stopping and resuming, and that the student learns."""

import json
import os
import shlex
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.assessment.run_list import summarize as summarize_run
from cosplace.cli import main
from cosplace.cli.console import Bars
from cosplace.cli.distillation import resume_command
from cosplace.config.distillation import DistillConfig
from cosplace.config.values import from_values
from cosplace.errors import CheckpointError, ConfigError, DatasetError
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model
from cosplace.models.weight_files import read_card
from cosplace.progress import StopRequest
from cosplace.retrieval.extraction import extract
from cosplace.training.best_model import BEST_MODEL, BEST_MODEL_SAFE
from cosplace.training.checkpoint import LAST_CHECKPOINT, read_checkpoint
from cosplace.training.distillation import distill, learning_rate
from cosplace.training.distillation_setup import open_photos, prepare_distillation
from cosplace.training.distillation_summary import summarize, untrained_text
from cosplace.training.metrics import read_metrics
from cosplace.training.run import lock_run
from tests.synthetic_dataset import write_dataset, write_place

QUICK = {
    "backbone": "ResNet18_Small", "fc_output_dim": 8, "image_size": 32, "epochs_num": 2, "iterations_per_epoch": 3,
    "batch_size": 8, "num_workers": 0, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos without positions in their names."""
    folder = tmp_path_factory.mktemp("photos")
    for place in range(24):
        for variant in range(2):
            write_place(folder, place, variant, side=48).rename(folder / f"IMG_{2 * place + variant:04}.jpg")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "large.pth"
    network = GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(7))
    torch.save(network.state_dict(), path)
    return path


def config(photos: Path, teacher: Path, **changes) -> DistillConfig:
    return from_values(DistillConfig, {**QUICK, "photos": str(photos), "teacher": str(teacher), **changes})


def run(photos: Path, teacher: Path, folder: Path, progress=lambda *_: None, **changes):
    given = {**QUICK, "photos": str(photos), "teacher": str(teacher), **changes}
    prepared = prepare_distillation(from_values(DistillConfig, given), given)
    distill(prepared, folder, progress)
    return prepared


def words(photos: Path, teacher: Path, **changes) -> list[str]:
    values = {**QUICK, **changes}
    return ["distill", str(photos), f"--teacher={teacher}", *(f"--{name}={value}" for name, value in values.items())]


# --- what does not train ---------------------------------------------------------------------------------------------


def test_one_line_for_each_mistake(
    photos: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    (tmp_path / "run").mkdir()
    cases = [
        (words(photos, tmp_path / "bad.pth"), "bad.pth"),
        (words(photos, tmp_path / "missing.pth"), "no weights file"),
        (words(photos, Path("cosplace_resnet18")), "dimension"),
        (words(tmp_path / "empty", teacher), "has no photos"),
        (words(tmp_path / "nowhere", teacher), "does not exist"),
        (words(photos, teacher, fc_output_dim=32), "more than the 16 dimensions of the teacher"),
        (words(photos, teacher, cosine_weight=0, relational_weight=0), "leave nothing to learn"),
        (words(photos, teacher, resume_train=tmp_path / "run"), "no last_checkpoint"),
        (words(photos, teacher)[:2], "--teacher is required"),
    ]
    for command, message in cases:
        assert main(command) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    assert not (tmp_path / "logs").exists()


def test_photos_of_a_test_set_are_not_learned_from(tmp_path: Path, teacher: Path) -> None:
    for place in range(4):
        write_place(tmp_path / "test" / "database", place, 0, side=32)
        write_place(tmp_path / "test" / "queries_v1", place, 1, side=32)
    with pytest.raises(DatasetError, match=r"has test/ but no train/"):
        prepare_distillation(config(tmp_path, teacher))


def test_every_20th_photo_is_held_out(photos: Path, teacher: Path) -> None:
    prepared = prepare_distillation(config(photos, teacher))
    rows = [*prepared.train_rows.tolist(), *prepared.held_rows.tolist()]
    assert sorted(rows) == list(range(48))
    assert len(prepared.held_rows) == 4  # at least
    again = prepare_distillation(config(photos, teacher, seed=5))
    assert (again.held_rows == prepared.held_rows).all()
    assert "4 photos that are held out" in " ".join(prepared.describe())
    # The group has the photos of these rows, in this order.
    names = [prepared.group.image_name(image) for image in range(prepared.group.num_images)]
    assert names == [f"IMG_{row:04}.jpg" for row in prepared.train_rows]


def test_learning_rate_rises_and_falls(photos: Path, teacher: Path) -> None:
    prepared = prepare_distillation(config(photos, teacher, epochs_num=20, iterations_per_epoch=10, lr=0.01))
    rates = [learning_rate(prepared, step) for step in range(200)]
    assert np.argmax(rates) == 9  # 5% of 200 iterations
    assert rates[0] == pytest.approx(0.001, rel=1e-3)
    assert rates[-1] < 1e-5
    assert (np.diff(rates[9:]) < 0).all()


def test_the_command_that_resumes() -> None:
    folder = Path("logs") / "default" / "a b"
    for before in ([], ["--resume_train", "x"], ["--resume_train=x"]):
        command = resume_command(folder, ["distill", "my photos", *before, "--lr", "0.1"])
        assert command.endswith("distill 'my photos' --lr 0.1 --resume_train 'logs/default/a b'")


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_student_learns_from_photos_without_labels(photos: Path, teacher: Path, tmp_path: Path) -> None:
    prepared = run(photos, teacher, tmp_path, epochs_num=6, iterations_per_epoch=15, lr=3e-3, relational_weight=10)
    result = summarize(prepared, tmp_path)
    start, best = result.held_out_losses
    assert best < 0.5 * start
    assert result.val is None
    assert result.best_epoch >= 0
    # The loss of the best model, by a plain computation.
    images = prepared.photos.images.subset(prepared.held_rows.tolist())
    found = extract(open_model(tmp_path / BEST_MODEL), images, image_size=32).descriptors
    stored = np.asarray(prepared.targets.descriptors[prepared.held_rows], np.float32)
    of_teacher = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    target = of_teacher @ prepared.targets.reduction.weight.numpy().T
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    differences = (found @ found.T - of_teacher @ of_teacher.T)[~np.eye(len(found), dtype=bool)]
    loss = (1 - (found * target).sum(1)).mean() + 10 * (differences**2).mean()
    assert best == pytest.approx(float(loss), rel=1e-3)


@pytest.mark.slow
def test_a_student_comes_closer_to_its_teacher_on_val(dataset: Path, teacher: Path, tmp_path: Path) -> None:
    """Similarities of photos of other places than those it learned from."""
    prepared = run(dataset, teacher, tmp_path, epochs_num=4, iterations_per_epoch=15, lr=3e-3, seed=1)
    result = summarize(prepared, tmp_path)
    assert result.val is not None and result.test is not None
    rows = read_metrics(tmp_path)
    (start,) = (row for row in rows if row["kind"] == "start")
    best = max(row["recalls"]["1"] for row in rows if row["kind"] == "epoch")
    assert result.val.student.recalls[1] == max(best, start["recalls"]["1"])
    assert best > start["recalls"]["1"]
    text = result.val.text()
    assert f"teacher {result.val.teacher.recalls[1]:.1f}, student {result.val.student.recalls[1]:.1f}" in text


@pytest.mark.slow
def test_the_command_writes_a_run_that_other_commands_take(
    dataset: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words(dataset, teacher)) == 0
    (folder,) = (tmp_path / "logs" / "default").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "best_model.pth", "best_model.safetensors", "config.json", "results.json", "distillation.json",
        "metrics.jsonl", "info.log", "debug.log", "report.html", "last_checkpoint.pth", "queries.parquet",
    }  # fmt: skip
    output = capsys.readouterr().out
    assert "teacher large.pth: unknown" in output
    results = json.loads((folder / "results.json").read_text())
    record = results["distillation"]
    assert record == json.loads((folder / "distillation.json").read_text())
    assert results["evaluated_on"] == "test/queries_v1"
    assert record["test"]["student_recalls"] == results["recalls"]
    assert record["speed_ratio"] > 0
    assert results["model"]["card"]["teacher"] == "large.pth"
    assert results["protocol"]["id"] == "custom"
    card = read_card(folder / BEST_MODEL_SAFE)
    assert card["teacher"] == "large.pth"
    assert card["teacher_licence"] == "unknown"
    assert len(card["teacher_checksum"]) == 64
    assert "license" in card["teacher_note"]
    assert "training_photos" in card
    summary = summarize_run(folder)
    assert (summary.kind, summary.state, summary.epochs) == ("distill", "finished", 2)
    model = folder / BEST_MODEL
    flags = ["--num_workers=0", "--image_size=32", "--resize_test_imgs", "--save_dir=eval"]
    assert main(["eval", f"--dataset_folder={dataset}", f"--model={model}", *flags]) == 0
    (again,) = (tmp_path / "logs" / "eval").iterdir()
    assert json.loads((again / "results.json").read_text())["recalls"] == results["recalls"]
    # A copy in another format keeps the name of the teacher; so does a student of the student.
    assert main(["convert", str(model), "copy.safetensors"]) == 0
    assert read_card(Path("copy.safetensors"))["teacher_checksum"] == card["teacher_checksum"]


@pytest.mark.slow
def test_a_run_without_val_and_test_measures_no_recall(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words(photos, teacher)) == 0
    (folder,) = (tmp_path / "logs" / "default").iterdir()
    assert not (folder / "results.json").exists()
    assert "loss on photos held out" in capsys.readouterr().out
    record = json.loads((folder / "distillation.json").read_text())
    assert record["val"] is record["test"] is None
    assert record["held_out_loss"]["best"] <= record["held_out_loss"]["start"]
    assert summarize_run(folder).state == "finished"
    assert open_model(folder / BEST_MODEL).fc_output_dim == 8


def test_a_dataset_without_a_validation_set_is_warned_of(
    dataset: Path, photos: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, without = dataset, tmp_path / "city"
    for split in ("train", "test"):
        shutil.copytree(dataset / split, without / split)
    for folder, text in ((without, "it has no val/"), (whole, ""), (photos, "")):
        caplog.clear()
        with caplog.at_level("WARNING", "cosplace"):
            open_photos(config(folder, teacher))
        assert (f"{folder}: {text}, so the best epoch is chosen by the loss" in caplog.text) == bool(text)
        assert text or "best epoch" not in caplog.text
    (without / "val" / "queries").mkdir(parents=True)
    with caplog.at_level("WARNING", "cosplace"):
        open_photos(config(without, teacher))
    assert "its val/ has no usable database/ and queries/" in caplog.text


def test_queries_that_are_in_the_database_too_are_known(dataset: Path, teacher: Path, tmp_path: Path) -> None:
    test = shutil.copytree(dataset / "test", tmp_path / "city" / "test")
    shutil.copytree(dataset / "train", tmp_path / "city" / "train")
    shutil.copy(sorted((test / "queries_v1").iterdir())[0], test / "database")
    for changes in ({}, {"test_set_folder": str(test)}):
        found = open_photos(config(tmp_path / "city", teacher, **changes)).test
        assert found is not None and found.copies.startswith("1 of 12 queries is in the database too")


@pytest.mark.slow
def test_a_student_that_did_not_learn_is_reported(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher itself as the start: no epoch can be nearer to it."""
    monkeypatch.chdir(tmp_path)
    changes = {"fc_output_dim": 16, "resume_model": str(teacher)}
    assert main(words(photos, teacher, **changes)) == 0
    out, err = capsys.readouterr()
    text = "no epoch has a smaller loss on the photos held out than the student before training"
    assert f"warning: {text}, so best_model.pth is unchanged {teacher}" in out and text in err
    prepared = prepare_distillation(config(photos, teacher), QUICK)
    assert f"{text}, so best_model.pth is an untrained network: do not use it." in untrained_text(prepared)


class _StopAfter:
    """A progress function that asks to stop once, at the n-th report of training."""

    def __init__(self, num_reports: int) -> None:
        self.left = num_reports

    def __call__(self, task: str, *_: object) -> None:
        self.left -= "epoch" in task
        if not self.left:
            raise StopRequest("stop", signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("with_val", [True, False])
def test_a_stopped_run_resumes_to_the_same_bytes(
    dataset: Path, photos: Path, teacher: Path, tmp_path: Path, with_val: bool
) -> None:
    source = dataset if with_val else photos
    run(source, teacher, tmp_path / "whole", lr=3e-3)
    for stop in (1, 2, 4, 6):  # within an epoch, in a validation, in the second epoch
        folder = tmp_path / f"stopped {stop}"
        with pytest.raises(StopRequest):
            run(source, teacher, folder, _StopAfter(stop), lr=3e-3)
        run(source, teacher, folder, lr=3e-3, resume_train=str(folder))
        for name in (BEST_MODEL, BEST_MODEL_SAFE):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        ours, theirs = read_checkpoint(folder), read_checkpoint(tmp_path / "whole")
        assert ours["counters"] == theirs["counters"]
        assert all(torch.equal(ours["model"][key], value) for key, value in theirs["model"].items())
        rows = [
            [{**row, "seconds": 0, "images_per_second": 0} for row in read_metrics(one)]
            for one in (folder, tmp_path / "whole")
        ]
        assert rows[0] == rows[1]


@pytest.mark.slow
def test_batches_are_the_same_for_any_number_of_workers(photos: Path, teacher: Path, tmp_path: Path) -> None:
    run(photos, teacher, tmp_path / "one", epochs_num=1)
    for name in ("threads", "processes"):
        run(photos, teacher, tmp_path / name, epochs_num=1, num_workers=2, loader=name)
        assert (tmp_path / name / BEST_MODEL).read_bytes() == (tmp_path / "one" / BEST_MODEL).read_bytes()


@pytest.mark.slow
def test_a_run_resumes_only_with_its_own_settings(photos: Path, teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(StopRequest):
        run(photos, teacher, folder, _StopAfter(1))
    with pytest.raises(ConfigError, match="--lr"):
        run(photos, teacher, folder, resume_train=str(folder), lr=0.1)
    other = tmp_path / "other.pth"
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), other)
    with pytest.raises(CheckpointError, match="with another teacher"):
        run(photos, other, folder, resume_train=str(folder))
    more = shutil.copytree(photos, tmp_path / "more")
    shutil.copy(photos / "IMG_0000.jpg", more / "new.jpg")
    with pytest.raises(CheckpointError, match="on other photos"):
        run(more, teacher, folder, resume_train=str(folder))
    edited = shutil.copytree(photos, tmp_path / "edited")
    shutil.copy(photos / "IMG_0001.jpg", edited / "IMG_0000.jpg")
    with pytest.raises(CheckpointError, match="on photos with the same names, but other contents"):
        run(edited, teacher, folder, resume_train=str(folder))
    run(shutil.copytree(photos, tmp_path / "moved"), teacher, folder, resume_train=str(folder))  # as they were


@pytest.mark.slow
def test_a_folder_in_use_is_refused(
    photos: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(StopRequest):
        run(photos, teacher, folder, _StopAfter(1))
    before = (folder / LAST_CHECKPOINT).read_bytes()
    with ThreadPoolExecutor(1) as pool, lock_run(folder):
        assert pool.submit(main, words(photos, teacher, resume_train=folder)).result() == 2
    assert "in use by another training run" in capsys.readouterr().err
    assert (folder / LAST_CHECKPOINT).read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
@pytest.mark.parametrize(
    ("number", "task"), [(signal.SIGINT, "descriptors of the teacher"), (signal.SIGTERM, "epoch 2/2"),
                         (signal.SIGINT, "validation")],
)  # fmt: skip
def test_a_signal_prints_the_command_that_continues(
    dataset: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], number: signal.Signals, task: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    called, sent = Bars.__call__, []

    def signal_once(self: Bars, now: str, *rest) -> None:
        called(self, now, *rest)
        if now == task and not sent:
            sent.append(now)
            os.kill(os.getpid(), number)

    command = words(dataset, teacher)
    monkeypatch.setattr(Bars, "__call__", signal_once)
    monkeypatch.setattr(sys, "argv", ["cosplace", *command])
    assert main(command) == 128 + number
    error = capsys.readouterr().err.strip().splitlines()[-1]
    if task.startswith("descriptors"):
        assert "repeat the command" in error
        assert not (tmp_path / "logs").exists()
    else:
        (folder,) = (tmp_path / "logs" / "default").iterdir()
        command = shlex.split(error.split("`")[1])[1:]
        assert command == [*words(dataset, teacher), "--resume_train", str(folder.relative_to(tmp_path))]
    assert main(command) == 0
    (folder,) = (tmp_path / "logs" / "default").iterdir()
    assert (folder / "results.json").exists()
    run(dataset, teacher, tmp_path / "whole")
    assert (folder / BEST_MODEL).read_bytes() == (tmp_path / "whole" / BEST_MODEL).read_bytes()
    ours, theirs = (read_checkpoint(one)["model"] for one in (folder, tmp_path / "whole"))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.slow
def test_a_student_may_start_from_a_model(photos: Path, teacher: Path, tmp_path: Path) -> None:
    prepared = run(photos, teacher, tmp_path / "a", resume_model=str(teacher), fc_output_dim=16, epochs_num=1)
    assert prepared.state.model.fc_output_dim == 16
    rows = read_metrics(tmp_path / "a")
    # It starts as its own teacher, but for the size of the photos.
    assert rows[0]["held_out_loss"] < 0.2
    with pytest.raises(ConfigError, match="--fc_output_dim 8 contradicts"):
        run(photos, teacher, tmp_path / "b", resume_model=str(teacher))


@pytest.mark.slow
def test_unreadable_photos_are_left_out(
    photos: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = shutil.copytree(photos, tmp_path / "damaged")
    (damaged / "IMG_0003.jpg").write_bytes((damaged / "IMG_0003.jpg").read_bytes()[:100])
    with caplog.at_level("WARNING", "cosplace"):
        prepared = run(damaged, teacher, tmp_path / "run", epochs_num=1)
    assert "IMG_0003.jpg" in caplog.text
    assert 3 not in prepared.train_rows
    assert len(prepared.train_rows) + len(prepared.held_rows) == 47
