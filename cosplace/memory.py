"""How much main memory this process uses."""

import os
import sys
from contextlib import suppress
from pathlib import Path


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
