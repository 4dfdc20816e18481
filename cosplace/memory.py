"""How much main memory this process uses, how it gets memory, and what to do when there is none left."""

import ctypes
import os
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cosplace.errors import DeviceError
from cosplace.progress import format_bytes

# Numbers of glibc's mallopt, from malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
KEPT_BYTES = 1 << 30
NEED_MEMORY = ("batch_size", "infer_batch_size", "max_batch", "image_size")  # settings
WANTED = re.compile(r"allocate ([\d.]+) ?([KMGTPE]i?B|bytes)", re.IGNORECASE)  # in errors of numpy and torch


def keep_freed_memory() -> None:
    """Let this process keep memory that it has freed, up to 1 GiB, for its next allocations (Linux with glibc).

    Otherwise each feature map of a network is memory that the system has just cleared: for photos of 512 pixels on a
    CPU, that is a third of the time or more.  One arena, because those of threads always return large allocations.
    Call it before threads start.  Does nothing where the environment has settings of its own.
    """
    if (
        sys.platform != "linux"
        or "GLIBC_TUNABLES" in os.environ
        or any(name.startswith("MALLOC_") for name in os.environ)
    ):
        return
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for name, value in ((TRIM_THRESHOLD, KEPT_BYTES), (MMAP_THRESHOLD, KEPT_BYTES), (ARENA_MAX, 1)):
            libc.mallopt(name, value)


def return_freed_memory() -> None:
    """Return memory that this process has freed to the system (Linux with glibc)."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Memory that this process uses now; the most that it has used, where only that is known."""
    with suppress(OSError, ValueError, IndexError):  # not Linux
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process has used; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# --- no memory left --------------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether numpy or torch raised this error because a device, or the machine, has no memory left."""
    if isinstance(error, MemoryError):
        return True
    # Named, because torch may not have been imported.
    is_of_torch = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    return isinstance(error, RuntimeError) and is_of_torch


@contextmanager
def explain_memory_errors(settings: Mapping[str, Any]) -> Generator[None]:
    """Within: running out of memory raises DeviceError, which names those of some settings that need memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        used = [f"--{name} {settings[name]}" for name in NEED_MEMORY if settings.get(name) is not None]
        where = f" with {', '.join(used)}" if used else ""
        raise DeviceError(
            f"Not enough memory{where}{_wanted(str(error))}.",
            *(f"use a smaller --{name}" for name in NEED_MEMORY if name in settings),
            "use fewer --num_workers",
            "close other programs",
        ) from error


def _wanted(text: str) -> str:
    """How much memory an error says was wanted, as the end of a sentence; "" if it does not."""
    found = WANTED.search(text)
    if found is None:
        return ""
    amount = format_bytes(int(found[1])) if found[2] == "bytes" else f"{found[1].rstrip('.')} {found[2]}"
    return f": {amount} could not be allocated"
