"""Batches made ahead of their use, by threads or by processes, always in order.

Decoding leaves the interpreter's lock alone, so threads decode as fast as processes and save what processes pay: a
batch need not be packed, sent through shared memory and unpacked.  Processes are for many cores beside a busy
interpreter, as when a GPU is fed.  What is made depends on neither kind nor number.
"""

import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, Protocol, TypeVar, runtime_checkable

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


def choose_loader(name: str, device: torch.device) -> str:
    """Threads or processes; auto takes threads where the network runs on the CPU, else processes.

    On a CPU the main thread computes outside of the interpreter's lock; feeding a GPU it needs the lock all the time.
    """
    if name not in LOADERS:
        raise ConfigError(f"--loader {name}: choose from {', '.join(LOADERS)}.")
    return name if name != "auto" else "threads" if device.type == "cpu" else "processes"


def load_ahead(
    make: Callable[[Indices], T],
    batches: Sequence[Indices],
    *,
    num_workers: int,
    loader: str = "processes",
    pin_memory: bool = False,
) -> Generator[T]:
    """Yield make(batch) for each of the batches, in order, made by `num_workers` threads or processes.

    make: a pure function of the indices; for processes it must be picklable, and the batches it makes should be
    tensors or Shareable.  num_workers 0 makes each batch when it is asked for.  pin_memory: in page-locked memory.
    Raises what `make` raises; LoadingError when a process was killed or shared memory is full.  Close it (as
    contextlib.closing does) to end its workers at once.
    """
    if num_workers == 0:
        return (_pinned(make(batch), pin_memory) for batch in batches)
    if loader == "threads":
        return _by_threads(lambda batch: _pinned(make(batch), pin_memory), batches, num_workers)
    return _by_processes(make, batches, num_workers, pin_memory)


def _pinned(batch: Any, pin_memory: bool) -> Any:
    return batch.pin_memory() if pin_memory else batch


# --- threads ---------------------------------------------------------------------------------------------------------


def _by_threads(make: Callable[[Indices], T], batches: Sequence[Indices], num_workers: int) -> Generator[T]:
    pool = _single_threaded_pool(num_workers)
    waiting: deque[Future[T]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(make, batch))
            if len(waiting) >= num_workers * BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _single_threaded_pool(num_workers: int) -> ThreadPoolExecutor:
    """Threads in each of which torch computes alone: teams of teams would fight for the cores.

    torch keeps one number of threads for each thread of Python, copied at its first use from a common one, which
    setting it changes too.  So all of them set theirs before this thread, which has had its own, restores the common.
    """
    num_threads = torch.get_num_threads()
    all_set = Barrier(num_workers + 1)
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="loading")
    for _ in range(num_workers):
        pool.submit(_compute_alone, all_set)
    all_set.wait()
    torch.set_num_threads(num_threads)
    return pool


def _compute_alone(all_set: Barrier) -> None:
    torch.get_num_threads()  # takes the common number now, and not later in place of the one that is set here
    torch.set_num_threads(1)
    all_set.wait()


# --- processes -------------------------------------------------------------------------------------------------------


class _Made(Dataset):
    """Batches as items, in shared memory.

    A user's error is an item too: as an exception it would arrive as a wall of text.  And were a batch put into shared
    memory only by the queue, in a thread of its own, then for want of room it would be dropped and waited for forever.
    """

    def __init__(self, make: Callable[[Indices], Any]) -> None:
        self.make = make

    def __getitem__(self, index: Indices) -> Any:
        try:
            batch = self.make(index)
            return batch.share_memory_() if isinstance(batch, Shareable) else batch
        except CosPlaceError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _by_processes(make: Callable[[Indices], T], batches: Sequence[Indices], workers: int, pin: bool) -> Generator[T]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
        loader = DataLoader(
            _Made(make),
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            generator=torch.Generator(),  # the loader draws a seed that nothing here uses: not from the global one
        )
        with _own_child_signals():
            made = iter(loader)
    try:
        with _loading_errors(workers, made):
            for batch in made:
                if isinstance(batch, CosPlaceError):
                    raise batch
                yield batch
    finally:
        # Now: else the processes would live as long as some traceback remembers them.
        getattr(made, "_shutdown_workers", lambda: None)()


@contextmanager
def _own_child_signals() -> Generator[None]:
    """Undo torch's handler of dead children: it would raise in the midst of whatever the main thread does just then.

    Without it the loader notices some seconds later, where the next batch is asked for.
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
def _loading_errors(num_workers: int, made: Any) -> Generator[None]:
    """Say in one line what the system did to the processes."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error)
        # The other end of a pipe is gone when a process dies while its batch is on the way.
        died = "DataLoader worker" in text or isinstance(error, ConnectionError | EOFError)
        # Memory that cannot be had when it is written to ends a process with a bus error.
        ended = [worker.exitcode for worker in getattr(made, "_workers", ())] if died else []
        signs = ("shared memory", "shm", "Bus error", "No space left")
        if any(sign in text for sign in signs) or -getattr(signal, "SIGBUS", 0) in filter(None, ended):
            raise LoadingError(
                f"Shared memory (/dev/shm) is full: load with threads (--loader threads), or with fewer than "
                f"{num_workers} processes (--num_workers) or smaller batches."
            ) from error
        if died:
            raise LoadingError(
                f"A process that loads photos was killed, most likely for lack of memory: use fewer than "
                f"{num_workers} workers (--num_workers), threads (--loader threads) or smaller batches."
            ) from error
        raise
