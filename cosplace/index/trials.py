"""Try parts of an index in a process of their own: with some changed files, Lance ends the process or takes all memory.

What this machine wrote, or has tried, is trusted.  Side effects: starts a process; remembers in `cache_folder(kind)`
what is trusted.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from cosplace.errors import StorageError
from cosplace.index.file_checksums import content_checksum
from cosplace.memory import resident_bytes
from cosplace.progress import format_bytes
from cosplace.storage import cache_folder, write_text

WRITERS = "index_writers"
TRIAL_S = 120
SLOWEST_BYTES_PER_S = 20_000_000  # of a disk, for the time that a trial may take
MAX_BYTES = 2 << 30  # of memory that a trial may use; some hundred MB are needed for a small index
BYTES_PER_BYTE = 4  # more of it for each byte on the disk
TOO_LARGE, FOREIGN, FAILED = 4, 5, 6  # exit status: too much memory, more rows than bytes, a failed assertion
WATCH_S = 0.02

_running: set[subprocess.Popen] = set()


def is_trusted(kind: str, key: str) -> bool:
    """Whether a part of an index with this checksum was written or tried here.  kind: of part, a name of a folder."""
    return (cache_folder(kind) / key).exists()


def trust(kind: str, key: str, former: str | None = None) -> None:
    """Remember that a part of an index can be used.  former: the key of what it replaces."""
    with suppress(OSError, StorageError):  # then it is tried again
        write_text(cache_folder(kind) / key, "")
        if former is not None and former != key:
            (cache_folder(kind) / former).unlink(missing_ok=True)


def mark_writing(address: str) -> IO[str] | None:
    """Until the file is closed, other processes here trust what is written to a local index: see `is_written_here`."""
    with suppress(ImportError, OSError, StorageError):  # then they try each version
        import fcntl

        file = _writer_file(address)
        file.parent.mkdir(parents=True, exist_ok=True)
        mark = file.open("a")
        fcntl.flock(mark, fcntl.LOCK_EX)
        return mark
    return None


def is_written_here(address: str) -> bool:
    """Whether a process of this machine, which trusts a local index, writes it now."""
    with suppress(ImportError, OSError):
        import fcntl

        with _writer_file(address).open() as mark:
            try:
                fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _writer_file(address: str) -> Path:
    return cache_folder(WRITERS) / content_checksum(os.path.realpath(address).encode("utf-8", "surrogateescape"))


def run_trial(module: str, address: str, num_bytes: int = 0) -> str | None:
    """Why a local index cannot be used: what happened to a process that tried; None if it ended well.

    module: what it runs, with the path of the index; it calls `watch_memory`.  num_bytes: how much it reads.
    """
    limit_s = TRIAL_S + num_bytes / SLOWEST_BYTES_PER_S
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(Path(address).absolute())],  # -P: no modules of this folder
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        return f"no process could be started to try ({error.strerror or error})"
    _running.add(process)
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"a process that tried took more than {limit_s:,.0f} s"
    finally:
        process.kill()  # also when this thread is interrupted
        process.wait()
        _running.discard(process)
    if status == TOO_LARGE:
        return f"a process that tried took more than {format_bytes(MAX_BYTES + BYTES_PER_BYTE * num_bytes)} of memory"
    if status == FOREIGN:
        return "they have more rows, descriptors or texts than their bytes can hold"
    if status == FAILED:
        return "a file cannot be decoded"
    if status < 0:
        return f"a process that tried was ended by signal {-status}"
    return f"a process that tried ended with {status}" if status else None


def end_trials() -> None:
    """End the processes that threads of this one wait for: it stops."""
    for process in list(_running):
        process.kill()


def watch_memory(num_bytes: int, leave: Callable[[int], object] = os._exit) -> None:
    """From now on, end this process as soon as it has too much memory, or its parent has ended.

    num_bytes: of the files that it reads.
    """
    parent, most = os.getppid(), MAX_BYTES + BYTES_PER_BYTE * num_bytes

    def watch() -> None:
        wait = threading.Event().wait
        while resident_bytes() <= most and os.getppid() == parent:
            wait(WATCH_S)
        leave(TOO_LARGE)

    threading.Thread(target=watch, daemon=True).start()
