"""One side, measured once: in a forked child, or in a fresh interpreter.

CPU time is that of the process and of its children that ended; wall time is between the same two moments.  Memory in a
forked child is by how much the work raises it above what was there before: either the peak of resident memory
("peak", exact: the kernel keeps it), or of memory that belongs to no file ("anonymous", read every 2 ms from outside:
pages of a mapped file are resident too, but the system takes them back whenever it likes).  In a fresh interpreter it
is the peak of the whole process.

A forked child sees the modules that the parent imported and computes with one thread.  The parent never computes, so
that it has no threads whose locks a child would inherit.  Side effects: starts and ends processes.
"""

import ctypes
import gc
import importlib
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from benchmarks.records import BenchmarkError, Less, Measurement, Side
from cosplace.errors import CosPlaceError

SAMPLE_S = 0.002
MIB = 1 << 20
RESET_PEAK = "5"  # see clear_refs in proc(5)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Memory = Literal["peak", "anonymous", "whole"] | None

log = logging.getLogger(__name__)


# --- in the parent ---------------------------------------------------------------------------------------------------


def measure(side: Side, inputs: Any, what: str, *, memory: Memory = "peak", reveal: bool = True) -> Measurement:
    """Measure one side in a forked child.

    what: names it in errors.  reveal: also return what is compared.
    Raises BenchmarkError when the child raises or dies.
    """
    return _in_child(lambda signal_parent: _measured(side, inputs, memory, reveal, signal_parent), what, memory)


def measure_fresh(side: Side, inputs: Any, what: str, *, reveal: bool = True) -> Measurement:
    """Measure one side in a fresh interpreter; memory is that of the whole process.  Raises as `measure` does."""
    with tempfile.TemporaryDirectory() as folder:
        task, answer = Path(folder) / "task", Path(folder) / "answer"
        task.write_bytes(pickle.dumps((side, inputs, reveal)))
        code = "from benchmarks.measuring import answer_task; answer_task()"
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", code, str(task), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return _read_answer(answer, what, done.returncode, done.stderr)


def in_child(function: Callable[[], Any], what: str) -> Any:
    """The result of a function that runs in a forked child, and leaves nothing in this process."""
    return _in_child(lambda _: function(), what, None)


def _in_child(function: Callable[[Callable[[str], None]], Any], what: str, memory: Memory) -> Any:
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(function, answer, theirs))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            child.start()
        theirs.close()
        try:
            peak = _watch(child.pid or 0, ours, memory)
            child.join()
        except BaseException:
            child.terminate()
            child.join()
            raise
        found = _read_answer(answer, what, child.exitcode or 0, "")
    if memory == "anonymous" and isinstance(found, Measurement) and found.memory_mib is not None:
        grown = max(peak - found.memory_mib, 0.0)
        return Measurement(cpu_s=found.cpu_s, wall_s=found.wall_s, memory_mib=grown, revealed=found.revealed)
    return found


def _watch(pid: int, pipe: Connection, memory: Memory) -> float:
    """Wait for the child's end; the largest anonymous memory in MiB between its two signals, if that is wanted."""
    peak, working = 0.0, False
    while True:
        try:
            if pipe.poll(SAMPLE_S if working and memory == "anonymous" else None):
                working = pipe.recv() == "begin"
            if working and memory == "anonymous":
                peak = max(peak, _anonymous_mib(pid))
        except (EOFError, OSError):  # it has closed its end, or is gone
            return peak


def _read_answer(path: Path, what: str, exit_code: int, stderr: str) -> Any:
    if path.is_file():
        kind, content = pickle.loads(path.read_bytes())
        if kind == "found":
            return content
        message, trace = content
        log.debug("%s\n%s", what, trace)
        raise BenchmarkError(f"{what} failed: {message}")
    if exit_code < 0:
        cause = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
        raise BenchmarkError(
            f"{what} was ended by {signal.Signals(-exit_code).name}{cause}: nothing can be told of it."
        )
    last = (stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise BenchmarkError(f"{what} ended with exit code {exit_code} and no result: {last}")


# --- in the child ----------------------------------------------------------------------------------------------------


def _child(function: Callable[[Callable[[str], None]], Any], answer: Path, pipe: Connection) -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    if (faiss := sys.modules.get("faiss")) is not None:
        faiss.omp_set_num_threads(1)
    gc.freeze()  # else each collection would look at the parent's objects, and copy their pages by that
    _answer(lambda: function(pipe.send), answer)
    pipe.close()


def answer_task() -> None:
    """The whole life of a fresh interpreter: a file with a side and its inputs in, a file with a measurement out."""
    task, answer = map(Path, sys.argv[1:3])
    side, inputs, reveal = pickle.loads(task.read_bytes())
    _answer(lambda: _measured(side, inputs, "whole", reveal, lambda _: None), answer)


def _answer(function: Callable[[], Any], answer: Path) -> None:
    try:
        found = ("found", function())
    except CosPlaceError as error:
        found = ("raised", (str(error), traceback.format_exc()))
    except Exception as error:  # told in one line by the parent, which logs the rest
        text = " ".join(str(error).split())
        found = ("raised", (f"{type(error).__name__}: {text[:300]}", traceback.format_exc()))
    beside = answer.with_suffix(".part")
    beside.write_bytes(pickle.dumps(found, protocol=pickle.HIGHEST_PROTOCOL))
    beside.replace(answer)


def _measured(
    side: Side, inputs: Any, memory: Memory, reveal: bool, signal_parent: Callable[[str], None]
) -> Measurement:
    if memory == "anonymous" and not Path("/proc/self/status").is_file():
        memory = None
    work = side.prepare(inputs)
    gc.collect()
    _give_memory_back()
    before_mib = _begin(memory)
    signal_parent("begin")
    cpu_s, started = _cpu_s(), time.perf_counter()
    result = work()
    wall_s, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
    signal_parent("end")
    if isinstance(result, Less):
        cpu_s, result = cpu_s - result.cpu_s, result.result
    grown = {
        None: lambda: None,
        "peak": lambda: max(_peak_mib() - before_mib, 0.0),
        "anonymous": lambda: before_mib,  # the parent knows the peak
        "whole": _peak_mib,
    }[memory]()
    revealed = None
    if reveal:
        revealed = result if side.reveal is None else side.reveal(inputs, result)
    return Measurement(cpu_s=cpu_s, wall_s=wall_s, memory_mib=grown, revealed=revealed)


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _give_memory_back() -> None:
    """Let glibc return what the warm-up freed, or the work would use it without being seen to."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library
        return


def _begin(memory: Memory) -> float:
    """MiB before the work, the peak being reset to it where the system lets us."""
    if memory == "anonymous":
        return _anonymous_mib(os.getpid())
    if memory != "peak":
        return 0.0
    with suppress(OSError):  # elsewhere than on Linux the peak so far stands
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    return _peak_mib()


def _peak_mib() -> float:
    try:
        return _status_mib(os.getpid(), "VmHWM")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _anonymous_mib(pid: int) -> float:
    return _status_mib(pid, "RssAnon", "RssShmem")


def _status_mib(pid: int, *fields: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(values[field].split()[0]) for field in fields if field in values) / 1024


def import_modules(names: tuple[str, ...], *, optional: bool = False) -> None:
    """Import modules here, so that children have them; absent ones only matter when they are not optional."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            if not optional:
                raise
