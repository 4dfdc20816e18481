"""Training that is stopped, that two processes share, or that makes the network worse."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from tests.unusual_input.samples import (
    encoded,
    needs_posix,
    place_pixels,
    run,
    within,
    write_model,
    write_street,
)

NUM_PLACES = 12
FLAGS = (
    "--backbone", "ResNet18_Small", "--fc_output_dim", 16, "--N", 1, "--L", 1, "--M", 20, "--alpha", 360,
    "--groups_num", 1, "--min_images_per_class", 2, "--batch_size", 4, "--image_size", 32, "--resize_test_imgs",
    "--num_workers", 0, "--device", "cpu", "--recall_values", 1, 2, "--num_preds_to_save", 0,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of places that are 30 m apart; those of each split are other places."""
    folder = tmp_path_factory.mktemp("dataset")
    for variant in range(3):
        write_street(folder / "train", range(NUM_PLACES), variant=variant)
    for split, queries, first in (("val", "queries", 100), ("test", "queries_v1", 200)):
        places = range(first, first + NUM_PLACES)
        write_street(folder / split / "database", places)
        write_altered(folder / split / queries, places, seed=5)
    return folder


def write_altered(folder: Path, places: range, seed: int) -> list[Path]:
    """Write photos of places in other light and with noise, which an untrained network confuses with others."""
    rng = np.random.default_rng(seed)
    paths = write_street(folder, places, variant=seed)
    for path, place in zip(paths, places, strict=True):
        pixels = place_pixels(place) * rng.uniform(0.7, 1.2) + rng.normal(0, 20, (48, 48, 3))
        path.write_bytes(encoded(pixels.clip(0, 255).astype(np.uint8)))
    return paths


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # logs/ is created there


def only_run() -> Path:
    (folder,) = Path("logs/default").iterdir()
    return folder


def is_true_in_time(condition: Callable[[], object], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


# --- stopping --------------------------------------------------------------------------------------------------------


class TerminatedError(BaseException):
    """The command left SIGTERM to its default, which ends the process."""


@needs_posix
@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_prints_how_to_continue(dataset: Path, tmp_path: Path, capsys) -> None:
    """The shell: exit code 143 is 128 + SIGTERM; the printed command finishes the run."""

    def terminate(_: int, __: FrameType | None) -> None:
        raise TerminatedError

    def send() -> None:
        is_true_in_time(lambda: any("group 0:" in log.read_text() for log in tmp_path.glob("logs/*/*/info.log")), 30)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, terminate)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        words = *FLAGS, "--dataset_folder", dataset, "--epochs_num", 1, "--iterations_per_epoch", 100
        code, _, err = run(capsys, "train", *words)
    finally:
        sender.join()
        signal.signal(signal.SIGTERM, before)
    assert code == 143 and (only_run() / "last_checkpoint.pth").is_file()
    (command,) = re.findall(r"Resume from .*`(.*)`", err)
    words = shlex.split(command)
    code, out, _ = run(capsys, *words[words.index("train") :])
    assert code == 0 and "R@1" in out


@needs_posix
@pytest.mark.slow
def test_two_runs_in_one_folder_are_refused(dataset: Path, capsys) -> None:
    """The first process holds its folder until it ends; the second would write the same files."""
    words = "train", *FLAGS, "--dataset_folder", dataset, "--epochs_num", 1000, "--iterations_per_epoch", 2
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        first = subprocess.Popen(
            [sys.executable, "-m", "cosplace", *map(str, words)], stdout=nowhere, stderr=nowhere, env=environment
        )
    try:
        assert is_true_in_time(lambda: list(Path().glob("logs/default/*/last_checkpoint.pth")), 60)
        with within(20):
            code, _, err = run(capsys, "train", "--resume_train", only_run())
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


# --- the best model --------------------------------------------------------------------------------------------------


def recall(capsys: pytest.CaptureFixture, model: Path, folder: Path) -> float:
    words = "--num_workers", 0, "--device", "cpu", "--image_size", 32, "--resize_test_imgs", "--recall_values", 1
    data = "--test_set_folder", folder, "--queries_folder", "queries"
    code, out, _ = run(capsys, "eval", *data, "--model", model, *words)
    assert code == 0
    return float(re.findall(r"R@1: ([\d.]+)", out)[0])


@pytest.mark.slow
def test_the_best_model_is_never_worse_than_the_start(dataset: Path, tmp_path: Path, capsys) -> None:
    """`cosplace eval` on the validation set: a learning rate that is far too high destroys the network."""
    start = write_model(tmp_path / "start.pth")
    words = *FLAGS, "--dataset_folder", dataset, "--epochs_num", 1, "--iterations_per_epoch", 6, "--lr", 0.1
    assert run(capsys, "train", *words, "--resume_model", start)[0] == 0
    best = only_run() / "best_model.pth"
    assert recall(capsys, best, dataset / "val") >= recall(capsys, start, dataset / "val") >= 40
