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

from cosplace.errors import StorageError
from cosplace.memory import resident_bytes
from cosplace.progress import format_bytes
from cosplace.storage import cache_folder, write_text

TRIAL_S = 600
SLOWEST_BYTES_PER_S = 20_000_000  # of a disk, for the time that a trial may take
MAX_BYTES = 8 << 30  # of memory that a trial may use; some hundred MB are needed
TOO_LARGE, FOREIGN_INDEX = 4, 5  # exit status: of more memory, and of a search index that no writer makes
WATCH_S = 0.02


def is_trusted(kind: str, key: str) -> bool:
    """Whether a part of an index with this checksum was written or tried here.  kind: of part, a name of a folder."""
    return (cache_folder(kind) / key).exists()


def trust(kind: str, key: str, former: str | None = None) -> None:
    """Remember that a part of an index can be used.  former: the key of what it replaces."""
    with suppress(OSError, StorageError):  # then it is tried again
        write_text(cache_folder(kind) / key, "")
        if former is not None and former != key:
            (cache_folder(kind) / former).unlink(missing_ok=True)


def run_trial(module: str, address: str, num_bytes: int = 0) -> str | None:
    """Why a local index cannot be used: what happened to a process that tried; None if it ended well.

    module: what it runs, with the path of the index; it calls `watch_memory`.  num_bytes: how much it reads.
    """
    limit_s = TRIAL_S + num_bytes / SLOWEST_BYTES_PER_S
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, str(Path(address).absolute())],  # -P: no modules of this folder
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"a process that tried took more than {limit_s:,.0f} s"
    except OSError as error:
        return f"no process could be started to try ({error.strerror or error})"
    if done.returncode == TOO_LARGE:
        return f"a process that tried took more than {format_bytes(MAX_BYTES)} of memory"
    if done.returncode == FOREIGN_INDEX:
        return "they have a search index that cosplace does not make"
    if done.returncode < 0:
        return f"a process that tried was ended by signal {-done.returncode}"
    return f"a process that tried ended with {done.returncode}" if done.returncode else None


def watch_memory(leave: Callable[[int], object] = os._exit) -> None:
    """From now on, end this process as soon as it has more than MAX_BYTES of memory, or its parent has ended."""
    parent = os.getppid()

    def watch() -> None:
        wait = threading.Event().wait
        while resident_bytes() <= MAX_BYTES and os.getppid() == parent:
            wait(WATCH_S)
        leave(TOO_LARGE)

    threading.Thread(target=watch, daemon=True).start()
