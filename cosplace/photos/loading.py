"""Batches loaded before they are needed, by threads or by processes, always in order.

Decoding releases the interpreter's lock.  So threads decode as fast as processes, without their cost: a process packs
each batch, sends it through shared memory and unpacks it.  Processes pay off with many cores and a busy interpreter,
as when a GPU is fed.  The batches depend neither on the kind nor on the number of workers.
"""

import atexit
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset

from cosplace.errors import ConfigError, CosPlaceError, LoadingError

LOADERS = ("auto", "threads", "processes")
BATCHES_AHEAD = 2  # per worker


@runtime_checkable
class Shareable(Protocol):
    """A batch that holds tensors."""

    def share_memory_(self) -> Any:
        """Move its tensors into shared memory, as Tensor.share_memory_ does, and return it."""

    def pin_memory(self) -> Any:
        """The same batch in page-locked memory, as Tensor.pin_memory."""


T = TypeVar("T")
Indices = Sequence[int]


def choose_loader(name: str) -> str:
    """Threads or processes.  auto: threads.

    Decoders work without the interpreter's lock, and batches of threads need not be copied.  On a machine with a GPU,
    training with threads was 1.9 times as fast (docs/lab.md).
    """
    if name not in LOADERS:
        raise ConfigError(f"--loader must be one of {', '.join(LOADERS)}, got {name}.")
    return "threads" if name == "auto" else name


def load_ahead(
    load: Callable[[Indices], T],
    batches: Iterable[Indices],
    *,
    num_workers: int,
    loader: str = "processes",
    pin_memory: bool = False,
) -> Generator[T]:
    """Yield load(batch) for each batch, in order, loaded by `num_workers` threads or processes.

    batches: taken one by one, each when its loading starts.
    load: a pure function of the indices; for processes it must be picklable and should return tensors or Shareable.
    num_workers: 0 loads each batch in this thread, when it is needed.  pin_memory: into page-locked memory.
    Raises errors of `load`; LoadingError if a process was killed or shared memory is full.  Close it (for example with
    contextlib.closing) to stop its workers at once.
    """
    if num_workers == 0:
        return (_pinned(load(batch), pin_memory) for batch in batches)
    if loader == "threads":
        return _load_in_threads(lambda batch: _pinned(load(batch), pin_memory), batches, num_workers)
    return _load_in_processes(load, batches, num_workers, pin_memory)


def _pinned(batch: Any, pin_memory: bool) -> Any:
    return batch.pin_memory() if pin_memory else batch


# --- threads ---------------------------------------------------------------------------------------------------------


def _load_in_threads(load: Callable[[Indices], T], batches: Iterable[Indices], num_workers: int) -> Generator[T]:
    pool = _single_threaded_pool(num_workers)
    waiting: deque[Future[T]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(load, batch))
            if len(waiting) >= num_workers * BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _single_threaded_pool(num_workers: int) -> ThreadPoolExecutor:
    """A pool of threads that use one torch thread each, as more of them would compete for the cores.

    torch stores the number of threads per Python thread.  A Python thread copies a global value at its first use, and
    setting the number changes that global value, too.  So all workers set theirs first; then this thread, which has
    its own number already, restores the global value.
    """
    num_threads = torch.get_num_threads()
    all_set = Barrier(num_workers + 1)
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="loading")
    for _ in range(num_workers):
        pool.submit(_use_one_torch_thread, all_set)
    all_set.wait()
    torch.set_num_threads(num_threads)
    return pool


def _use_one_torch_thread(all_set: Barrier) -> None:
    torch.get_num_threads()  # copies the global value now; later it would replace the value set below
    torch.set_num_threads(1)
    all_set.wait()


# --- processes -------------------------------------------------------------------------------------------------------


class _BatchDataset(Dataset):
    """A dataset with whole batches as items, in shared memory.

    A user's error is returned as an item; as an exception it would arrive with the traceback of the process in its
    message.  Batches are moved to shared memory here: if there is no space, the loader's queue would do that in a
    thread of its own, drop the batch, and wait for it forever.
    """

    def __init__(self, load: Callable[[Indices], Any]) -> None:
        self.load = load

    def __getitem__(self, index: Indices) -> Any:
        try:
            batch = self.load(index)
            return batch.share_memory_() if isinstance(batch, Shareable) else batch
        except CosPlaceError as error:
            return error


def _identity(batch: Any) -> Any:
    return batch


def _load_in_processes(
    load: Callable[[Indices], T], batches: Iterable[Indices], num_workers: int, pin_memory: bool
) -> Generator[T]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
        loader = DataLoader(
            _BatchDataset(load),
            batch_size=None,
            sampler=batches,
            num_workers=num_workers,
            collate_fn=_identity,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the loader draws a seed, which must not come from the global generator
        )
        with _restored_child_handler(), _signals_blocked():
            loaded = iter(loader)
            _PROCESSES.update(getattr(loaded, "_workers", ()))
    try:
        with _process_errors(num_workers, loaded):
            for batch in loaded:
                if isinstance(batch, CosPlaceError):
                    raise batch
                yield batch
    finally:
        # Explicitly: otherwise the processes live as long as a traceback refers to the iterator.
        getattr(loaded, "_shutdown_workers", lambda: None)()
        _kill(getattr(loaded, "_workers", ()))  # those that hang


_PROCESSES: WeakSet[Any] = WeakSet()  # all loading processes


@contextmanager
def _signals_blocked() -> Generator[None]:
    """Within: new processes never receive Ctrl+C and SIGTERM.

    Both may be sent to all processes of a job.  The main process then still needs its batch to stop between two
    iterations, and ends the loading processes itself.  A handler in the process would be too late for a signal at its
    start.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()


# This runs before multiprocessing sends them SIGTERM, which they do not receive, and waits for them.
atexit.register(lambda: _kill(list(_PROCESSES)))


@contextmanager
def _restored_child_handler() -> Generator[None]:
    """Remove torch's SIGCHLD handler afterwards: it raises in the main thread, at any point of the program.

    Without it, the loader detects a killed process some seconds later, when the next batch is needed.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _process_errors(num_workers: int, loaded: Any) -> Generator[None]:
    """Turn errors of a killed process or of full shared memory into one LoadingError."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error)
        # A process that dies while it sends a batch closes its end of the pipe.
        died = "DataLoader worker" in text or isinstance(error, ConnectionError | EOFError)
        # Writing to shared memory that is full ends a process with a bus error.
        exit_codes = [worker.exitcode for worker in getattr(loaded, "_workers", ())] if died else []
        memory_errors = ("shared memory", "shm", "Bus error", "No space left")
        bus_error = -getattr(signal, "SIGBUS", 0)
        if any(words in text for words in memory_errors) or bus_error in filter(None, exit_codes):
            raise LoadingError(
                "Shared memory (/dev/shm) is full.",
                "load images with threads (--loader threads)",
                f"use fewer than {num_workers} processes (--num_workers)",
            ) from error
        if died:
            raise LoadingError(
                "A process that loads photos was killed, probably because memory is full.",
                f"use fewer than {num_workers} workers (--num_workers)",
                "load images with threads (--loader threads)",
            ) from error
        raise
