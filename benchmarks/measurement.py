"""CPU time, wall time and memory of one side, in a forked child process or in a new interpreter.

CPU time is that of the process and of its finished children.  Memory in a forked child is the increase during the work:

    "peak"       of the peak resident memory, which the kernel records exactly
    "anonymous"  of memory that belongs to no file, sampled every 2 ms by the parent.  Pages of a mapped file are
                 resident too, but the system can drop them at any time

In a new interpreter, memory is the peak of the whole process ("whole").

A forked child has the modules that the parent imported, and computes with one thread.  The parent never computes:
otherwise a child could inherit the locks of its threads.  Side effects: starts and ends processes.
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
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from benchmarks.stage import BenchmarkError, ExcludedTime, Measurement, Side
from cosplace.errors import CosPlaceError

SAMPLE_S = 0.002
MIB = 1 << 20
RESET_PEAK = "5"  # clear_refs in proc(5)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Memory = Literal["peak", "anonymous", "whole"] | None

log = logging.getLogger("cosplace.benchmarks")


# --- in the parent ---------------------------------------------------------------------------------------------------


def measure(side: Side, inputs: Any, name: str, *, memory: Memory = "peak", with_output: bool = True) -> Measurement:
    """Measure one side in a forked child.

    name: for errors.  with_output: also return what is compared.  Raises BenchmarkError if the child raises or dies.
    """
    return _in_child(lambda signal_parent: _measure(side, inputs, memory, with_output, signal_parent), name, memory)


def measure_fresh(side: Side, inputs: Any, name: str, *, with_output: bool = True) -> Measurement:
    """Measure one side in a new interpreter, with the memory of the whole process.  Raises like `measure`."""
    with tempfile.TemporaryDirectory() as folder:
        task, answer = Path(folder) / "task", Path(folder) / "answer"
        task.write_bytes(pickle.dumps((side, inputs, with_output)))
        code = "from benchmarks.measurement import measure_task; measure_task()"
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", code, str(task), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return _read_answer(answer, name, done.returncode, done.stderr)


def in_child(function: Callable[[], Any], name: str) -> Any:
    """Call a function in a forked child and return its result; this process stays unchanged."""
    return _in_child(lambda _: function(), name, None)


def _in_child(function: Callable[[Callable[[str], None]], Any], name: str, memory: Memory) -> Any:
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_run_child, args=(function, answer, sender))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            child.start()
        sender.close()
        try:
            peak = _watch(child.pid or 0, receiver, memory)
            child.join()
        except BaseException:
            child.terminate()
            child.join()
            raise
        answered = _read_answer(answer, name, child.exitcode or 0, "")
    if memory == "anonymous" and isinstance(answered, Measurement) and answered.memory_mib is not None:
        return replace(answered, memory_mib=max(peak - answered.memory_mib, 0.0))
    return answered


def _watch(pid: int, pipe: Connection, memory: Memory) -> float:
    """Wait for the end of the child; return its largest anonymous memory in MiB during the work, if it is measured."""
    peak, working = 0.0, False
    while True:
        try:
            if pipe.poll(SAMPLE_S if working and memory == "anonymous" else None):
                working = pipe.recv() == "begin"
            if working and memory == "anonymous":
                peak = max(peak, _anonymous_mib(pid))
        except (EOFError, OSError):  # the child has closed the pipe or died
            return peak


def _read_answer(path: Path, name: str, exit_code: int, stderr: str) -> Any:
    if path.is_file():
        kind, content = pickle.loads(path.read_bytes())
        if kind == "result":
            return content
        message, trace = content
        log.debug("%s\n%s", name, trace)
        raise BenchmarkError(f"{name} failed: {message}")
    if exit_code < 0:
        cause = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
        raise BenchmarkError(f"{name} was stopped by {signal.Signals(-exit_code).name}{cause}. It has no result.")
    last = (stderr.strip().splitlines() or ["no output"])[-1]
    raise BenchmarkError(f"{name} ended with exit code {exit_code} and without a result: {last}")


# --- in the child ----------------------------------------------------------------------------------------------------


def _run_child(function: Callable[[Callable[[str], None]], Any], answer: Path, pipe: Connection) -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    if (faiss := sys.modules.get("faiss")) is not None:
        faiss.omp_set_num_threads(1)
    gc.freeze()  # otherwise each garbage collection would write to, and so copy, the pages of the parent's objects
    _write_answer(lambda: function(pipe.send), answer)
    pipe.close()


def measure_task() -> None:
    """Main function of a new interpreter: read a side and its inputs from a file, write a measurement to another."""
    task, answer = map(Path, sys.argv[1:3])
    side, inputs, with_output = pickle.loads(task.read_bytes())
    _write_answer(lambda: _measure(side, inputs, "whole", with_output, lambda _: None), answer)


def _write_answer(function: Callable[[], Any], answer: Path) -> None:
    try:
        content = ("result", function())
    except CosPlaceError as error:
        content = ("error", (str(error), traceback.format_exc()))
    except Exception as error:  # the parent raises one line and logs the traceback
        text = " ".join(str(error).split())
        content = ("error", (f"{type(error).__name__}: {text[:300]}", traceback.format_exc()))
    partial = answer.with_suffix(".part")
    partial.write_bytes(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))
    partial.replace(answer)


def _measure(
    side: Side, inputs: Any, memory: Memory, with_output: bool, signal_parent: Callable[[str], None]
) -> Measurement:
    if memory == "anonymous" and not Path("/proc/self/status").is_file():
        memory = None
    work = side.prepare(inputs)
    gc.collect()
    _release_freed_memory()
    before_mib = _memory_before(memory)
    signal_parent("begin")
    cpu_s, started = _cpu_s(), time.perf_counter()
    result = work()
    wall_s, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
    signal_parent("end")
    if isinstance(result, ExcludedTime):
        cpu_s, result = cpu_s - result.cpu_s, result.result
    memory_mib = {
        None: lambda: None,
        "peak": lambda: max(_peak_mib() - before_mib, 0.0),
        "anonymous": lambda: before_mib,  # the parent has sampled the peak and subtracts
        "whole": _peak_mib,
    }[memory]()
    output = None
    if with_output:
        output = result if side.output is None else side.output(inputs, result)
    return Measurement(cpu_s=cpu_s, wall_s=wall_s, memory_mib=memory_mib, output=output)


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _release_freed_memory() -> None:
    """Return memory that the warm-up freed to the system: otherwise the work would use it unmeasured."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library
        return


def _memory_before(memory: Memory) -> float:
    """MiB before the work.  Resets the recorded peak, if the system allows it."""
    if memory == "anonymous":
        return _anonymous_mib(os.getpid())
    if memory != "peak":
        return 0.0
    with suppress(OSError):  # only on Linux
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
    """Import modules, so that forked children have them.  optional: ignore those that are not installed."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            if not optional:
                raise
