"""Several processes that serve one index on one port, each with its own model and its share of the cores.

    the first process    binds one socket per worker, starts the workers, starts those again that end unexpectedly,
                         and stops all of them on SIGTERM or SIGINT
    a worker             loads the index and serves on its socket; ends when the first process has ended

Linux divides new connections among the listening sockets of a port (SO_REUSEPORT).  The socket of a worker that has
ended is closed, so new connections go to the others until it serves again.  The first process imports neither torch nor
the index.  Side effects: starts and ends processes, a temporary folder for metrics.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import RawValue
from typing import Any

from cosplace.errors import ConfigError, CosPlaceError
from cosplace.server.settings import ServerSettings
from cosplace.server.sockets import listening_socket

RESTART_S = (0.5, 30.0)  # before a worker is started again: at first, and at most after failures in a row
STABLE_S = 60.0  # a worker that has served for this time starts again with the first delay
STOP_MARGIN_S = 10.0  # beyond the time limit of a request, for the workers to end
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported

log = logging.getLogger("cosplace.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What a worker gets from the first process."""

    number: int  # from 1
    num_workers: int
    num_cores: int  # for this worker
    listener: socket.socket  # bound, not listening yet
    first_process: Connection
    num_serving: Any  # ctypes int in shared memory: workers that serve now; only the first process writes it
    metrics_folder: str

    def prepare(self) -> None:
        """Set up this process.  Before torch and prometheus_client are imported, which read the variables."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C: the first process stops all workers
        os.environ["OMP_NUM_THREADS"] = str(self.num_cores)
        os.environ[METRICS_VARIABLE] = self.metrics_folder
        threading.Thread(target=self._end_with_first_process, name="cosplace-first-process", daemon=True).start()

    def report(self, message: str = "") -> None:
        """Tell the first process that this worker serves, or why it cannot."""
        self.first_process.send(message)

    def problems(self) -> list[str]:
        """What is wrong with the other workers, for /health."""
        missing = self.num_workers - self.num_serving.value
        return [f"{missing} of {self.num_workers} workers do not serve; they are being started."] if missing else []

    def _end_with_first_process(self) -> None:
        with suppress(OSError, EOFError):
            self.first_process.recv()  # nothing is ever sent: it ends with the process
        os.kill(os.getpid(), signal.SIGTERM)


def share_of(settings: ServerSettings, num_workers: int) -> ServerSettings:
    """Settings of one of several workers: the limits of the whole server are divided among them."""
    decoding_threads = settings.decoding_threads
    return replace(
        settings,
        workers=1,
        max_queue=max(settings.max_files, -(-settings.max_queue // num_workers)),
        max_connections=-(-settings.max_connections // num_workers),
        decoding_threads=None if decoding_threads is None else -(-decoding_threads // num_workers),
    )


def usable_cores() -> int:
    """Number of cores that torch would use in this process: OMP_NUM_THREADS, or all that this process may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    allowed = getattr(os, "sched_getaffinity", None)
    return int(limit) if limit.isdigit() and int(limit) else len(allowed(0)) if allowed else os.cpu_count() or 1


def serve_with_workers(
    run: Callable[..., None],
    settings: ServerSettings,
    arguments: Sequence[Any] = (),
    *,
    announce: Callable[[str], object] = lambda address: None,
) -> None:
    """Run `settings.workers` processes until SIGTERM or SIGINT; they answer accepted photos before they end.

    run: called in each worker with its Worker, its settings and `arguments`; a function of a module.  It prepares the
    Worker, and reports when it serves.  announce: called with the address once all workers serve.
    Raises ConfigError on other systems than Linux and for a port in use, CosPlaceError with what a worker reports that
    cannot start, and SystemExit if workers do not end in time.
    """
    if sys.platform != "linux":
        raise ConfigError(
            "--workers above 1 needs Linux, which divides connections among processes. Start several servers behind a "
            "proxy, or use --workers 1."
        )
    with listening_socket(settings.host, settings.port) as alone:  # refused if any other server has the port
        settings = replace(settings, port=alone.getsockname()[1])
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    with tempfile.TemporaryDirectory(prefix="cosplace-metrics-") as folder, _signals_as_bytes() as stop_signal:
        workers = _Workers(run, settings, arguments, folder)
        try:
            if workers.start(stop_signal):
                announce(f"http://{host}:{settings.port}/")
                workers.keep_running(stop_signal)
        finally:
            workers.stop()


@contextmanager
def _signals_as_bytes() -> Generator[socket.socket]:
    """Within: SIGTERM and SIGINT are written to the socket, so that waiting for processes ends with them."""
    receiver, sender = socket.socketpair()
    numbers = (signal.SIGTERM, signal.SIGINT)
    with receiver, sender:
        sender.setblocking(False)

        def receive(number: int, _: Any) -> None:
            with suppress(BlockingIOError):
                sender.send(bytes([number]))

        before = {number: signal.signal(number, receive) for number in numbers}
        try:
            yield receiver
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(slots=True)
class _Slot:
    """One worker, and when to start it again."""

    number: int
    listener: socket.socket | None = None
    process: SpawnProcess | None = None
    pipe: Connection | None = None
    serves: bool = False
    started_at: float = 0.0
    start_at: float = 0.0  # of time.monotonic(), while there is no process
    delay_s: float = RESTART_S[0]


class _Workers:
    """The workers of one server, as the first process sees them."""

    def __init__(
        self, run: Callable[..., None], settings: ServerSettings, arguments: Sequence[Any], folder: str
    ) -> None:
        self.run, self.settings, self.arguments, self.folder = run, settings, arguments, folder
        self.context = multiprocessing.get_context("spawn")
        self.num_serving = RawValue("i", 0)
        self.num_cores = max(1, usable_cores() // settings.workers)
        self.slots = [_Slot(number) for number in range(1, settings.workers + 1)]

    def start(self, stop_signal: socket.socket) -> bool:
        """Start all workers and wait until they serve; False for a signal.  Raises CosPlaceError if one cannot."""
        for slot in self.slots:
            self._start(slot)
        while not all(slot.serves for slot in self.slots):
            ready = wait([stop_signal, *self._pipes()])
            if stop_signal in ready:
                return False
            for slot in self.slots:
                if slot.pipe in ready and (problem := self._read(slot)):
                    raise CosPlaceError(problem)
        return True

    def keep_running(self, stop_signal: socket.socket) -> None:
        """Start workers again that end, until a signal."""
        while True:
            waiting = [slot.start_at for slot in self.slots if slot.process is None]
            timeout = None if not waiting else max(0.0, min(waiting) - time.monotonic())
            ready = wait([stop_signal, *self._pipes()], timeout)
            if stop_signal in ready:
                return
            for slot in self.slots:
                if slot.pipe is not None and slot.pipe in ready and (problem := self._read(slot)):
                    self._note_end(slot, problem)
                elif slot.process is None and time.monotonic() >= slot.start_at:
                    self._start(slot)

    def stop(self) -> None:
        """Let all workers answer what they have accepted, and end.  Raises SystemExit if one does not end in time."""
        processes = [slot.process for slot in self.slots if slot.process is not None]
        for process in processes:
            process.terminate()
        until = time.monotonic() + self.settings.time_limit_s + STOP_MARGIN_S
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        failed = [process.exitcode for process in processes if process.exitcode not in (0, -signal.SIGTERM)]
        for process in processes:
            process.kill()
            process.join()
        for slot in self.slots:
            if slot.listener is not None:
                slot.listener.close()
        if failed and sys.exc_info()[0] is None:
            log.error("workers ended before all their threads had ended", extra={"event": "stop"})
            raise SystemExit(1)

    def _pipes(self) -> list[Connection]:
        return [slot.pipe for slot in self.slots if slot.pipe is not None]

    def _start(self, slot: _Slot) -> None:
        slot.listener = listening_socket(self.settings.host, self.settings.port, shared=True)
        pipe, far_end = self.context.Pipe()
        worker = Worker(
            number=slot.number,
            num_workers=len(self.slots),
            num_cores=self.num_cores,
            listener=slot.listener,
            first_process=far_end,
            num_serving=self.num_serving,
            metrics_folder=self.folder,
        )
        share = share_of(self.settings, len(self.slots))
        name = f"cosplace-worker-{slot.number}"
        slot.process = self.context.Process(target=self.run, args=(worker, share, *self.arguments), name=name)
        slot.process.start()
        far_end.close()  # now only the worker has it, so it is at its end when the worker has ended
        slot.pipe, slot.serves, slot.started_at = pipe, False, time.monotonic()

    def _read(self, slot: _Slot) -> str:
        """Read what a worker reports.  Returns what is wrong, "" if it serves now."""
        assert slot.pipe is not None and slot.process is not None
        try:
            problem = slot.pipe.recv()
        except (EOFError, OSError):
            slot.process.join()
            return f"Worker {slot.number} ended with code {slot.process.exitcode}. See the server log."
        if not problem:
            slot.serves = True
            self.num_serving.value += 1
            details = {"worker": slot.number, "workers": len(self.slots), "cores": self.num_cores}
            log.info("a worker serves", extra={"event": "worker", "details": details})
        return problem

    def _note_end(self, slot: _Slot, problem: str) -> None:
        """Log that a worker has ended, forget it, and choose when to start it again."""
        assert slot.pipe is not None and slot.process is not None and slot.listener is not None
        slot.listener.close()
        slot.pipe.close()
        slot.process.join()
        self.num_serving.value -= slot.serves
        _forget_gauges(slot.process.pid, self.folder)
        now = time.monotonic()
        is_stable = slot.serves and now - slot.started_at >= STABLE_S
        slot.delay_s = RESTART_S[0] if is_stable else slot.delay_s
        slot.start_at = now + slot.delay_s
        slot.delay_s = min(2 * slot.delay_s, RESTART_S[1])
        details = {
            "worker": slot.number,
            "exit_code": slot.process.exitcode,
            "again_in_s": round(slot.start_at - now, 1),
        }
        log.error("a worker ended and is started again: %s", problem, extra={"event": "worker", "details": details})
        slot.listener, slot.process, slot.pipe, slot.serves = None, None, None, False


def _forget_gauges(pid: int | None, folder: str) -> None:
    """Drop the gauges of a process that has ended, such as its photos in the queue; its counters are kept."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid, folder)
