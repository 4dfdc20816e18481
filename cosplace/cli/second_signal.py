"""End the process at a second Ctrl+C or SIGTERM, also while the main thread is in a long computation.

Python calls handlers of signals in the main thread, between two of its instructions: not while a layer of a network, a
decomposition or an import runs.  The interpreter notes each signal at once, though, in a file descriptor.  A thread
reads it and ends the process if the main thread does not.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from time import monotonic, sleep

GRACE_S = 0.5  # for the main thread to end the process itself, with the exit code of the signal
EXIT_SIGNAL = 128  # plus the number of the signal, as shells count


class Signals:
    """The signals that a command has received."""

    def __init__(self) -> None:
        self.first = 0
        self.is_ending = False  # a second one has come

    def is_first(self, number: int) -> bool:
        """Note a signal; whether it is the first one.  A later one ends the process, unless it followed at once.

        This is called long after the signal if the main thread was busy, so another thread measures the time.
        """
        if not self.first:
            self.first = number
            return True
        for _ in range(10):  # no lock: another signal may come meanwhile
            if self.is_ending:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            sleep(0.01)
        return False

    def end(self) -> None:
        """Note that a second signal has come."""
        self.is_ending = True


@contextmanager
def end_at_second_signal(
    is_ours: Callable[[int], bool],
    answer: Callable[[int], None] = lambda _: None,
    end: Callable[[], None] = lambda: None,
    *,
    after_s: float,
) -> Generator[None]:
    """Within: a second signal ends the process, unless it comes within `after_s` seconds of the first one.

    is_ours: whether a signal, by number, is to be counted.  answer: called for the first one.  end: called for the
    second one, GRACE_S before the end.  All are called in another thread.  Only for the main thread.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    thread = threading.Thread(target=_watch, args=(reading, is_ours, answer, end, after_s), name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        if (now := signal.set_wakeup_fd(before)) not in (writing.fileno(), -1):
            signal.set_wakeup_fd(now)  # of an event loop that was started within
        with suppress(OSError):  # closing alone does not end it where a forked process has a copy
            writing.shutdown(socket.SHUT_RDWR)
        writing.close()
        thread.join()
        reading.close()


def _watch(
    reading: socket.socket,
    is_ours: Callable[[int], bool],
    answer: Callable[[int], None],
    end: Callable[[], None],
    after_s: float,
) -> None:
    first_time: float | None = None
    while numbers := reading.recv(64):
        for number in numbers:
            if not is_ours(number):
                continue
            if first_time is None:
                first_time = monotonic()
                answer(number)
            elif monotonic() - first_time > after_s:
                end()
                sleep(GRACE_S)
                os._exit(EXIT_SIGNAL + number)


def _forget_in_child() -> None:
    """A process that was forked must not tell its parent of its own signals."""
    with suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
