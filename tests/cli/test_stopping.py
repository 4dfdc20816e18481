"""Ctrl+C and SIGTERM stop training between two iterations, and the printed command continues it to the same bytes."""

import hashlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cosplace.cli import main
from cosplace.cli.commands import COSPLACE
from cosplace.cli.console import Bars
from cosplace.cli.parser import parse_words
from cosplace.config.values import set_folder
from cosplace.errors import ConfigError
from cosplace.models.network import GeoLocalizationNet
from cosplace.photos.loading import load_ahead
from cosplace.training.best_model import BEST_MODEL
from cosplace.training.checkpoint import LAST_CHECKPOINT, read_checkpoint
from cosplace.training.metrics import read_metrics
from cosplace.training.run import LOCK, lock_run
from tests.synthetic_dataset import SETTINGS, write_dataset

ROOT = Path(__file__).resolve().parents[2]
# With descriptors of two dimensions and this seed, an epoch is better than the start.
VALUES = {**SETTINGS, "fc_output_dim": 2, "seed": 2}
FLAGS = [f"--{name}" if value is True else f"--{name}={value}" for name, value in VALUES.items() if name[0] != "r"]
FLAGS += ["--resize_test_imgs", "--recall_values", "1", "2"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset with a space"))


@pytest.fixture(scope="module")
def whole_run(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", *FLAGS, f"--dataset_folder={dataset_folder}"]) == 0
    finally:
        os.chdir(before)
    return only_run(folder)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cosplace", *sys.argv[1:]])  # else that of pytest, or of python -m pytest


def only_run(folder: Path) -> Path:
    (run,) = (folder / "logs" / "default").iterdir()
    return run


def assert_same_run(a: Path, b: Path) -> None:
    assert (a / BEST_MODEL).read_bytes() == (b / BEST_MODEL).read_bytes()
    ours, theirs = read_checkpoint(a), read_checkpoint(b)
    assert ours["counters"] == theirs["counters"]
    assert ours["counters"]["best_epoch"] >= 0  # else the best model is the same for all runs
    assert all(torch.equal(ours["model"][key], value) for key, value in theirs["model"].items())
    rows = [
        [{**row, "seconds": 0, "images_per_second": 0} for row in read_metrics(folder) if row["kind"] != "test"]
        for folder in (a, b)
    ]
    assert rows[0] == rows[1]
    assert not list(a.glob(".*.part"))


def resume_words(text: str) -> list[str]:
    """The words of the command that a stopped run prints."""
    (line,) = (line for line in text.splitlines() if "Resume from" in line)
    return shlex.split(line.split("`")[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "task", "done"),
    [
        (signal.SIGTERM, "epoch 2/3, group 0", 12),
        pytest.param(signal.SIGTERM, "validation before training", 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "epoch 1 validation", 16, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "epoch 1/3, group 0", 30, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "test", 16, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_prints_how_to_continue(
    dataset_folder: Path,
    whole_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    number: signal.Signals,
    task: str,
    done: int,
) -> None:
    called = Bars.__call__

    def signal_once(self: Bars, now: str, now_done: int, total: int, note: str = "", /) -> None:
        called(self, now, now_done, total, note)
        if now == task and now_done >= done and not sent:
            sent.append(now_done)
            os.kill(os.getpid(), number)

    sent: list[int] = []
    monkeypatch.setattr(Bars, "__call__", signal_once)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(["train", *FLAGS, f"--dataset_folder={dataset_folder}"]) == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    run = only_run(Path())
    counters = read_checkpoint(run)["counters"]
    if task.startswith("epoch"):
        epoch = int(task[6]) - 1
        iteration = sent[0] // SETTINGS["batch_size"] if "group" in task else SETTINGS["iterations_per_epoch"]
        assert (counters["epoch"], counters["iteration"]) == (epoch, iteration)  # no finished iteration is lost
    words = resume_words(capsys.readouterr().err)
    assert words == ["cosplace", "train", "--resume_train", str(run)]
    assert "Resume from" in (run / "info.log").read_text()
    assert main(words[1:]) == 0
    assert_same_run(run, whole_run)


def test_the_printed_command_has_the_dataset_of_the_environment(
    dataset_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop_in_an_epoch(self: Bars, now: str, *_: object) -> None:
        if now.startswith("epoch"):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setenv("SF_XL_PROCESSED_FOLDER", str(dataset_folder))
        patched.setattr(Bars, "__call__", stop_in_an_epoch)
        assert main(["train", *FLAGS]) == 143
    words = resume_words(capsys.readouterr().err)
    assert words[-2:] == ["--dataset_folder", str(dataset_folder)]
    set_folder(parse_words(COSPLACE.find_action("train"), words[2:], "cosplace train", COSPLACE)[0].folders, "val")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_all_processes_at_random_moments_lose_nothing(
    dataset_folder: Path, whole_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Schedulers and terminals send the signal to the loading processes, too."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    moments = random.Random(int(number))
    words = [sys.executable, "-m", "cosplace", "train", *FLAGS, "--num_workers=2", "--loader=processes"]
    words.append(f"--dataset_folder={dataset_folder}")
    num_stopped = 0
    for _ in range(20):
        with (tmp_path / "out").open("w+") as out:
            process = subprocess.Popen(
                words, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            while num_stopped < 5 and process.poll() is None:
                if "results:" in (tmp_path / "out").read_text():  # signals are received from here on
                    time.sleep(moments.uniform(0.0, 0.4))
                    os.killpg(process.pid, number)
                    break
                time.sleep(0.02)
            code = process.wait(timeout=120)
            text = (tmp_path / "out").read_text()
        assert "Traceback" not in text
        if "\nreport: " in text:  # all is written: a signal from here on finds nothing to stop
            break
        assert code == 128 + number, text
        num_stopped += 1
        words = resume_words(text)
        assert words[:4] == [sys.executable, "-m", "cosplace", "train"]
    assert "\nreport: " in text
    assert num_stopped >= 1
    assert_same_run(only_run(tmp_path), whole_run)


WAITING = """
import hashlib, time
from cosplace.cli.console import stop_on_signals
with stop_on_signals(lambda *_: None, "advice"):
    print("ready", flush=True)
    {task}
"""
# The second one computes for minutes without returning to the interpreter, which calls no handlers meanwhile.
TASKS = ["time.sleep(60)", "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 1_000_000_000)"]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_second_signal_ends_at_once(number: signal.Signals, task: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(task=task)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stderr.readline() == "\n"
    assert "stopping" in process.stderr.readline()
    process.send_signal(number)  # of the same request, to the group of the process
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=20)
    # By the signal; or, if the main thread did not see it, with the exit code of the shell for it.
    assert process.returncode == (-number if task == TASKS[0] else 128 + number)


BUSY = """
import hashlib
from cosplace.cli.console import stop_on_signals
from cosplace.progress import StopRequest
with stop_on_signals(lambda *_: None, "advice") as progress:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", {iterations})  # no handler is called meanwhile
    try:
        progress("task", 1, 2)
    except StopRequest:
        print("saved", flush=True)
"""


@pytest.mark.slow
def test_a_signal_that_is_repeated_at_once_is_one_request_however_long_an_iteration_takes() -> None:
    start = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 200_000)
    iterations = int(200_000 * 4 / (time.perf_counter() - start))  # four seconds
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(iterations=iterations)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.stderr.readline()
    assert "stopping" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == 0


IMPORTING = """
import sys
sys.path.insert(0, {folder!r})
from cosplace.cli.console import end_on_signals, on_interrupt
with end_on_signals(owns_process=True), on_interrupt("Run it again."):
    import slow
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ((), "Run the same command again to start again. With --descriptors_folder FOLDER, it can be continued."),
        (("--descriptors_folder", "descriptors"), "Run the same command again to continue."),
    ],
)
def test_a_stopped_evaluation_says_how_to_continue(
    flags: tuple[str, ...], advice: str, dataset_folder: Path, monkeypatch, capsys
) -> None:
    def stop(*_: object, **__: object) -> None:
        # Python ignores SIGINT if the shell that has started the tests runs them in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the command went on")

    torch.save(GeoLocalizationNet("ResNet18_Small", 2).state_dict(), "model.pth")
    monkeypatch.setattr("cosplace.retrieval.evaluation.extract_dataset", stop)
    words = ["eval", "--dataset_folder", str(dataset_folder), "--resume_model", "model.pth", "--device", "cpu"]
    assert main([*words, "--backbone", "ResNet18_Small", "--fc_output_dim", "2", *flags]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"Interrupted. {advice}"


@pytest.mark.slow
def test_a_signal_ends_an_import_at_once(tmp_path: Path) -> None:
    """An exception within the import of a compiled module would abort the process."""
    text = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException:\n    os.abort()\n"
    (tmp_path / "slow.py").write_text(text)
    words = [sys.executable, "-c", IMPORTING.format(folder=str(tmp_path))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "Terminated. Run it again.\n")


LEAVING = """
import atexit, os, signal, sys
from cosplace.cli import commands
class Slow:
    def __del__(self):
        print("freed", flush=True)
sys.kept = Slow()
atexit.register(print, "files are closed")
commands._run = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(commands.main())
"""


@pytest.mark.slow
def test_a_process_that_a_signal_ended_does_not_free_its_objects() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "files are closed\n")


FORKED = """
import multiprocessing, os, signal, time
from cosplace.cli.console import end_on_signals
with end_on_signals():
    for _ in range(2):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.2)
        os.kill(child.pid, signal.SIGTERM)
        child.join()
        time.sleep(1.1)
print("done")
"""


@pytest.mark.slow
def test_signals_of_forked_processes_are_not_those_of_the_parent() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "done\n"


def sends_signals(indices: range) -> int:
    """A batch whose process receives what a scheduler sends to all processes of a job."""
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    return len(indices)


def test_loading_processes_leave_signals_to_the_main_process() -> None:
    assert list(load_ahead(sends_signals, [range(2), range(3)], num_workers=1, loader="processes")) == [2, 3]


UNCLOSED = """
import builtins
from cosplace.photos.loading import load_ahead
builtins.kept = load_ahead(len, [range(2)] * 50, num_workers=2, loader="processes")
print(next(builtins.kept))
"""


@pytest.mark.slow
def test_loading_processes_end_with_their_program() -> None:
    done = subprocess.run([sys.executable, "-c", UNCLOSED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "2\n"


# --- two runs in one folder ------------------------------------------------------------------------------------------

HOLDING = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("locked", flush=True)
time.sleep(60)
"""


def test_a_folder_in_use_is_refused_until_its_process_is_killed(
    dataset_folder: Path, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(whole_run / LOCK)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        files = [path for path in whole_run.iterdir() if path.name != LOCK]  # trying a lock may touch its file
        before = {path: path.stat().st_mtime_ns for path in files}
        assert main(["train", "--resume_train", str(whole_run)]) == 2
        assert re.fullmatch(rf"error: {whole_run} is in use by another training run\. .*\n", capsys.readouterr().err)
        assert {path: path.stat().st_mtime_ns for path in files} == before
    finally:
        process.kill()
        process.communicate()
    # What the killed process was writing is removed by the next one, and only that.
    mine = whole_run / ".notes.part"
    for path in (whole_run / f".{LAST_CHECKPOINT}.123.part", mine):
        path.write_bytes(b"half")
    with lock_run(whole_run), lock_run(whole_run):
        assert [path.name for path in whole_run.glob(".*.part")] == [mine.name]
    mine.unlink()


def test_a_lock_of_another_thread_is_respected(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def lock() -> str:
        with lock_run(tmp_path):
            return "locked"

    with ThreadPoolExecutor(1) as pool:
        with lock_run(tmp_path), pytest.raises(ConfigError, match="in use"):
            pool.submit(lock).result()
        assert pool.submit(lock).result() == "locked"
    assert {path.name for path in tmp_path.iterdir()} <= {LOCK}
