"""Processes that are stopped or killed: what they have saved, and what the next one finds and removes.

Training runs in processes of their own; a program given as text changes how long a step takes, or when the process is
killed.  The judges are the shell's exit codes, the file system, and the numbers of an undisturbed run.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace import GeoLocalizationNet, open_index
from cosplace.config.index import IndexSettings
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec, NewPhoto
from tests.unusual_input.samples import needs_posix, run, write_street

pytestmark = [pytest.mark.slow, needs_posix]

D = 16
FLAGS = (
    "--backbone", "ResNet18_Small", "--fc_output_dim", D, "--N", 1, "--L", 1, "--M", 20, "--alpha", 360,
    "--groups_num", 1, "--min_images_per_class", 2, "--batch_size", 4, "--image_size", 32, "--resize_test_imgs",
    "--num_workers", 0, "--device", "cpu", "--recall_values", 1, 2, "--num_preds_to_save", 0, "--seed", 3,
    "--iterations_per_epoch", 6,
)  # fmt: skip
SLOW_STEPS = """
import time
from pathlib import Path
from cosplace import GeoLocalizationNet
forward = GeoLocalizationNet.forward
def slow(network, images):
    if network.training:
        with Path("training").open("a") as steps:
            steps.write("x")
        until = time.monotonic() + {seconds}
        while time.monotonic() < until:
            time.sleep(0.01)
    return forward(network, images)
GeoLocalizationNet.forward = slow
"""
KILLED_WHILE_WRITING = """
import os, signal
fsync, times = os.fsync, []
def sync(descriptor):
    if ".last_checkpoint.pth." in os.readlink(f"/proc/self/fd/{descriptor}"):
        times.append(descriptor)
    if len(times) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = sync
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for variant in range(3):
        write_street(folder / "train", range(8), variant=variant)
    for split, queries in (("val", "queries"), ("test", "queries_v1")):
        write_street(folder / split / "database", range(8))
        write_street(folder / split / queries, range(8), variant=3)
    return folder


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # logs/ is created there


def start(change: str, *words: object) -> subprocess.Popen:
    """Start a command in a process of its own, after a change to the program."""
    code = f"import sys\n{change}\nfrom cosplace.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def only_run() -> Path:
    (folder,) = Path("logs/default").iterdir()
    return folder


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_a_second_signal_ends_training_at_once(dataset: Path, number: int) -> None:
    """The shell: the process is ended by the second signal, not by the first; a step takes two minutes here."""
    process = start(SLOW_STEPS.format(seconds=120), "train", *FLAGS, "--dataset_folder", dataset, "--epochs_num", 1)
    try:
        wait_until(Path("training").exists, 60)
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):  # it finishes the step first
            process.wait(2)
        process.send_signal(number)
        assert process.wait(5) == -number
    finally:
        process.kill()
        _, err = process.communicate()
    assert "Resume from" not in err  # the first signal would have printed it


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_a_run_that_was_stopped_continues_as_if_nothing_had_happened(
    dataset: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An undisturbed run: the weights after the printed command are the same, to the last bit."""
    words = "train", *FLAGS, "--dataset_folder", dataset, "--epochs_num", 1
    for name in ("undisturbed", "stopped"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "undisturbed")
    assert run(capsys, *words)[0] == 0
    expected = torch.load(only_run() / "last_checkpoint.pth", weights_only=True)["model"]

    monkeypatch.chdir(tmp_path / "stopped")
    process = start(SLOW_STEPS.format(seconds=2), *words)
    wait_until(Path("training").exists, 60)
    time.sleep(1)  # in the first of six steps
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    steps = list(Path("training").read_text())
    forward = GeoLocalizationNet.forward

    def counted(network: GeoLocalizationNet, images: torch.Tensor) -> torch.Tensor:
        steps.extend("x" * network.training)
        return forward(network, images)

    monkeypatch.setattr(GeoLocalizationNet, "forward", counted)
    (command,) = re.findall(r"Resume from .*`(.*)`", err)
    resumed = shlex.split(command)
    assert run(capsys, *resumed[resumed.index("train") :])[0] == 0
    found = torch.load(only_run() / "last_checkpoint.pth", weights_only=True)["model"]
    assert len(steps) == 6  # none of the epoch is done twice
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_files_of_a_killed_run_are_removed_when_it_continues(dataset: Path, capsys) -> None:
    """The file system: SIGKILL comes while the second checkpoint is written; nothing with .part is left afterwards."""
    words = "train", *FLAGS, "--dataset_folder", dataset, "--epochs_num", 2
    process = start(KILLED_WHILE_WRITING, *words)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in only_run().rglob("*.part")] == [f".last_checkpoint.pth.{process.pid}.part"]
    assert run(capsys, "train", *FLAGS, "--dataset_folder", dataset, "--resume_train", only_run())[0] == 0
    assert not list(only_run().rglob("*.part"))


# --- indexes ---------------------------------------------------------------------------------------------------------


def rows(count: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of 300 photos with an approximate search index."""
    photos = [NewPhoto(path=f"/photos/{n}.jpg", key=str(n), latitude=10 + n / 1000, longitude=20.0) for n in range(300)]
    spec = ModelSpec(model="model.pth", checksum="c" * 64, dimension=D)
    with create_index(tmp_path / "index", spec, IndexSettings(exact_rows=100)) as opened:
        opened.add(photos, rows(300, 1))
        opened.update_search()
    return tmp_path / "index"


def test_the_next_writer_removes_what_a_killed_one_left(index: Path) -> None:
    """The names of unfinished files; other files are not touched."""
    (index / ".checksums.json.12345.part").write_text("{")
    (index / ".reader-2-3.safetensors.12345.part").write_text("{")
    (index / "photos").mkdir()
    (index / "photos" / ".1.jpg.12345.part").write_text("an import is at work")
    with open_index(index):
        assert len(list(index.rglob("*.part"))) == 3  # a reader removes nothing
    with open_index(index, write=True):
        assert [path.name for path in index.rglob("*.part")] == [".1.jpg.12345.part"]


def test_a_writer_removes_nothing_of_another_one(index: Path) -> None:
    """The lock: the file is of a writer that is still at work."""
    with open_index(index, write=True):
        (index / ".checksums.json.12345.part").write_text("{")
        with pytest.raises(Exception, match="another writer"):
            open_index(index, write=True)
        assert (index / ".checksums.json.12345.part").is_file()


def test_compacting_removes_what_a_killed_writer_left_in_the_tables(index: Path) -> None:
    """Lance writes files before the version that names them: a killed writer leaves files that no version names."""
    table = index / "photos.lance"
    (search,), (data,) = (table / "_indices").iterdir(), (table / "data").iterdir()
    abandoned = (
        table / "_indices" / "11111111-2222-4333-8444-555555555555",
        table / "data" / f"{1 - int(data.name[0])}{data.name[1:]}",
    )
    shutil.copytree(search, abandoned[0])
    shutil.copy(data, abandoned[1])
    with open_index(index, write=True) as opened:
        opened.compact()
    assert not any(path.exists() for path in abandoned)
    with open_index(index) as opened:
        assert len(opened) == 300
        queries = rows(20, 2)
        expected = (queries @ rows(300, 1).T).argmax(axis=1)
        assert opened.search(queries, 1, exact=True).ids[:, 0].tolist() == expected.tolist()
