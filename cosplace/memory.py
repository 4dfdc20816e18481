"""How much main memory this process uses, and how it gets memory."""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

# Numbers of glibc's mallopt, from malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
KEPT_BYTES = 1 << 30


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
