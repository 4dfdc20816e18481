"""One of several processes is killed, hangs or is asked to stop: all end, and the run continues to the same end."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from torch.distributed import PrefixStore

from cosplace.training.checkpoint import LAST_CHECKPOINT, read_checkpoint
from cosplace.training.loop import train
from cosplace.training.metrics import read_metrics
from cosplace.training.resume import resumed_config
from cosplace.training.setup import prepare
from tests.synthetic_dataset import settings, write_dataset
from tests.training.jobs import LIMIT_S, TRAIN, Job, environment, flags, new_store, only_run, run_job
from tests.training.test_training import assert_same_run
from tests.unusual_input.samples import needs_posix

pytestmark = [pytest.mark.long, needs_posix]

CHANGES = {"report_matches": 0, "checkpoint_minutes": 0}  # a checkpoint after each iteration
SLOWLY = """
import sys, time
from cosplace import GeoLocalizationNet
forward = GeoLocalizationNet.forward
def slow(network, images):
    if network.training:
        time.sleep(0.3)
    return forward(network, images)
GeoLocalizationNet.forward = slow
from cosplace.cli import main
sys.exit(main(sys.argv[1:]))
"""
KILLED_ONCE = """
import os, signal, sys
from cosplace.cli import main
from cosplace.training.loop import LossRecorder
add, losses = LossRecorder.add, []
def add_or_end(recorder, loss):
    losses.append(loss)
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], len(losses)) == ("1", "0", 8):
        os.kill(os.getpid(), signal.SIGKILL)
    add(recorder, loss)
LossRecorder.add = add_or_end
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""

FULL_AFTER_A_CHECKPOINT = """
import errno, os, sys
from pathlib import Path
from cosplace.cli import main
fsync = os.fsync
def full(file):
    if any(Path("logs").glob("*/*/last_checkpoint.pth")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(file)
os.fsync = full
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def undisturbed(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a run of two processes, and how long it took, in seconds."""
    folder, started = tmp_path_factory.mktemp("two"), time.monotonic()
    run_job([*TRAIN, *flags(dataset_folder, **CHANGES)], 2, folder)
    return only_run(folder), time.monotonic() - started


def wait_until(condition: Callable[[], bool], job: Job) -> None:
    """Wait until a condition holds, while the job runs."""
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit
        assert all(process.poll() is None for process in job.processes), "\n".join(job.texts())
        time.sleep(0.05)


def num_losses(folder: Path) -> int:
    """How many losses the only run in a folder has recorded."""
    runs = list(folder.glob("logs/default/*"))
    return sum(row["kind"] == "loss" for row in read_metrics(runs[0])) if runs else 0


def run_with_checkpoint(folder: Path) -> Path:
    """The folder of the only run that has a checkpoint; kills may leave folders that are still empty."""
    (found,) = folder.glob(f"logs/default/*/{LAST_CHECKPOINT}")
    return found.parent


@pytest.mark.parametrize("kills", [2, 20])
def test_kills_at_random_moments_do_not_change_the_end(
    dataset_folder: Path, undisturbed: tuple[Path, float], tmp_path: Path, kills: int
) -> None:
    """As torchrun does, the others get SIGTERM when one process was killed, then SIGKILL, and all are started again.

    They have the same store as before, as with torchrun.
    """
    expected, duration_s = undisturbed
    words, moments = [*TRAIN, *flags(dataset_folder, **CHANGES)], random.Random(23)
    num_kills = num_runs = 0
    while num_kills < kills:
        folder, codes, restarts, store = tmp_path / str(num_runs), [1], 0, new_store()
        while any(codes):
            with Job([words] * 2, folder, name=f"job {num_runs}", restarts=restarts, store=store) as job:
                started, killed = time.monotonic(), moments.randrange(2)
                end = started + moments.uniform(0.05, 0.95) * duration_s
                while num_kills < kills and time.monotonic() < end and job.processes[killed].poll() is None:
                    time.sleep(0.01)
                if num_kills < kills and job.processes[killed].poll() is None:
                    job.kill(killed)
                    job.signal(1 - killed, signal.SIGTERM)
                    num_kills += 1
                    with suppress(subprocess.TimeoutExpired):
                        job.processes[1 - killed].wait(timeout=30)
                    job.kill(1 - killed)
                    codes = job.wait()
                    assert codes[killed] in {-signal.SIGKILL, 0}  # 0: it had just ended
                else:
                    codes = job.wait()
                    assert codes == [0, 0], "\n".join(job.texts())
                    duration_s = min(duration_s, time.monotonic() - started)  # the machine may be less busy now
                assert "Traceback" not in "".join(job.texts())
            restarts += 1
        assert_same_run(run_with_checkpoint(folder), expected)
        num_runs += 1


def test_torchrun_restarts_a_run_whose_process_was_killed(
    dataset_folder: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    script = tmp_path / "killed_once.py"
    script.write_text(KILLED_ONCE)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1")
    done = subprocess.run(
        [sys.executable, *torchrun, script, "train", *flags(dataset_folder, **CHANGES)],
        cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resuming at epoch 2, iteration 2" in done.stderr + done.stdout
    assert_same_run(only_run(tmp_path), undisturbed[0])


def test_the_others_end_when_a_process_is_killed(dataset_folder: Path, tmp_path: Path) -> None:
    """Also without torchrun's signal, as when its machine fails."""
    words = ["-c", SLOWLY, "train", *flags(dataset_folder, **CHANGES)]
    with Job([words] * 3, tmp_path) as job:
        wait_until(lambda: num_losses(tmp_path) >= 2, job)
        job.kill(1)
        assert job.wait() == [2, -signal.SIGKILL, 2]
        (line,) = job.errors()
        assert "Process 1 ended or cannot be reached." in line
        assert "--resume_train" in line
        assert "Traceback" not in "".join(job.texts())
    assert read_checkpoint(only_run(tmp_path))["counters"]["iteration"] >= 1


def test_a_process_that_does_not_start_is_named(dataset_folder: Path, tmp_path: Path) -> None:
    words = [*TRAIN, *flags(dataset_folder, process_timeout_minutes=0.05)]
    with Job([words, ["-c", ""]], tmp_path / "in time") as job:
        assert job.wait() == [2, 0]
        (line,) = job.errors()
        assert "Process 1 did not start within 3 s." in line
    with Job([[*TRAIN, *flags(dataset_folder)], ["-c", ""]], tmp_path / "stopped") as job:
        wait_until_started(job, 0)
        job.signal(0, signal.SIGTERM)
        assert job.processes[0].wait(timeout=LIMIT_S) == 128 + signal.SIGTERM
        assert "Terminated." in job.texts()[0]


def wait_until_started(job: Job, rank: int) -> None:
    """Wait until a process waits for the others."""
    stores = (job.store, PrefixStore("/worker/attempt_0", job.store))  # of torch now, and of earlier versions
    limit = time.monotonic() + LIMIT_S
    while not any(store.check([f"cosplace/started/{rank}"]) for store in stores):
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_process_that_hangs_ends_the_run_in_time(dataset_folder: Path, tmp_path: Path) -> None:
    words = ["-c", SLOWLY, "train", *flags(dataset_folder, **CHANGES), "--process_timeout_minutes=0.5"]
    with Job([words] * 2, tmp_path) as job:
        wait_until(lambda: num_losses(tmp_path) >= 1, job)
        job.signal(1, signal.SIGSTOP)
        assert job.processes[0].wait(timeout=LIMIT_S) == 2
        (line,) = job.errors()
        assert re.search(r"Process 1 (has not answered for|ended or cannot be reached)", line), line
        assert "30 s" in line
        assert "--process_timeout_minutes" in line


def test_a_signal_to_one_process_stops_all_with_a_checkpoint(dataset_folder: Path, tmp_path: Path) -> None:
    words = ["-c", SLOWLY, "train", *flags(dataset_folder, report_matches=0, lr=1e-5, epochs_num=2)]
    with Job([words] * 2, tmp_path) as job:
        wait_until(lambda: num_losses(tmp_path) >= 2, job)
        job.signal(1, signal.SIGTERM)
        assert job.wait() == [128 + signal.SIGTERM] * 2
        stopped = [line for text in job.texts() for line in text.splitlines() if line.startswith("Terminated.")]
        assert len(stopped) == 1, stopped
        assert "torchrun --nproc_per_node=2 " in stopped[0]
    run = only_run(tmp_path)
    counters = read_checkpoint(run)["counters"]
    assert counters["epoch"] * 5 + counters["iteration"] >= 2  # those that were trained, without --checkpoint_minutes
    # One process continues, with the losses that it would have had alone.
    train(prepare(resumed_config(str(run), {})), run)
    train(prepare(settings(dataset_folder, report_matches=0, lr=1e-5, epochs_num=2)), tmp_path / "one")
    found, expected = (
        [row["loss"] for row in read_metrics(one) if row["kind"] == "loss"] for one in (run, tmp_path / "one")
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_of_another_dataset_is_refused(
    undisturbed: tuple[Path, float], dataset_folder: Path, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", write_dataset(tmp_path / "other", num_places=20)
    shutil.copytree(undisturbed[0], run)
    before = (run / LAST_CHECKPOINT).read_bytes()
    with Job([[*TRAIN, f"--resume_train={run}", f"--dataset_folder={other}"]] * 2, tmp_path) as job:
        assert job.wait() == [2, 2]
        (line,) = job.errors()
        assert "was trained on other photos" in line
    assert (run / LAST_CHECKPOINT).read_bytes() == before


def test_an_error_of_one_process_ends_all(dataset_folder: Path, tmp_path: Path) -> None:
    """As when the photos are damaged on one machine only."""
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset_folder, damaged)
    for photo in (damaged / "train").rglob("*.jpg"):
        photo.write_bytes(b"not an image")
    words = [[*TRAIN, *flags(folder, **CHANGES)] for folder in (dataset_folder, damaged)]
    with Job(words, tmp_path / "job") as job:
        assert job.wait() == [2, 2]
        (line,) = job.errors()
        assert "No image of a class can be opened" in line
        assert line in job.texts()[1]  # of the process that has the error
        assert "Traceback" not in "".join(job.texts())
    assert read_checkpoint(only_run(tmp_path / "job"))["counters"]["iteration"] == 0


def test_a_folder_that_is_full_ends_all_and_keeps_the_checkpoint(dataset_folder: Path, tmp_path: Path) -> None:
    with Job([["-c", FULL_AFTER_A_CHECKPOINT, "train", *flags(dataset_folder, **CHANGES)]] * 2, tmp_path) as job:
        assert job.wait() == [2, 2]
        (line,) = job.errors()
        assert "No space left while writing" in line
        assert "Traceback" not in "".join(job.texts())
    assert read_checkpoint(only_run(tmp_path))["counters"]["iteration"] >= 0
