"""One process at a time: a lock that its holder's death opens."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

POLL_S = 0.05

if os.name == "nt":
    import msvcrt

    def _try_lock(file: BinaryIO) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # some network file systems have no locks; there each process fetches for itself
            return True
        return True


@contextmanager
def locked(path: Path, on_wait: Callable[[], object]) -> Generator[None]:
    """Within: no other process or thread is within, for the same `path`.  `on_wait` is called once if others are.

    The lock is a file that exists while it is held; the system opens it when its holder dies.
    """
    waited = False
    while True:
        file = path.open("ab")
        if _try_lock(file):
            if _is_still(path, file):
                break
        elif not waited:
            on_wait()
            waited = True
        file.close()
        time.sleep(POLL_S if waited else 0)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps open files
            path.unlink()
        file.close()


def _is_still(path: Path, file: BinaryIO) -> bool:
    """Whether the locked file is the one that others find: its last holder removes it before it opens the lock."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
