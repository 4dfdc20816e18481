"""The one door to numba: functions that run without the interpreter's lock.

Importing this module imports numba (0.2 CPU s, 60 MB): it is imported by what is compiled, which in turn is imported by
the function that needs it.  Raises ConfigError where numba cannot be imported.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cosplace.errors import ConfigError

try:
    from numba import njit
except (ImportError, OSError) as error:  # OSError: a library of LLVM that cannot be loaded
    raise ConfigError(
        f"numba, which compiles the augmentation and the synthetic city, cannot be imported ({error}): "
        f"run `pip install --upgrade numba`."
    ) from error

# Compiled code here allocates nothing, its arrays come from Python, so it needs no reference counts (_nrt).  Those are
# atomic: with them, threads would wait for each other at every array that a function receives.  No `fastmath`: sums
# keep their order and products their rounding, whatever vector instructions a machine has.
SHARED: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}
# Functions that only compiled code calls: without a door to the interpreter they compile in half the time.
INNER: dict[str, Any] = SHARED | {"no_cpython_wrapper": True}

Decorator = Callable[[Callable[..., Any]], Any]

kernel: Decorator = njit(**INNER)
inlined: Decorator = njit(**INNER, forceinline=True)  # for what every ray calls with many arguments


def inner_function(signature: str) -> Decorator:
    """Compile a function that only compiled code calls, for one signature only, kept on disk.

    It may call others of its file, not of other files, whose changes the cache on disk would miss.  Without the
    signature numba would compile it anew for every constant it is called with.
    """
    return lambda function: _kept(function, signature, INNER)


def compiled_function(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, kept on disk.

    When it calls functions of other files, it must close over a `fingerprint` of these.
    """
    return _kept(function, None, SHARED)


def compiled_for(signature: str) -> Decorator:
    """Compile a function that Python calls, for one signature only and at once, kept on disk; else as `leaf`."""
    return lambda function: _kept(function, signature, SHARED)


def _kept(function: Callable[..., Any], signature: str | None, options: dict[str, Any]) -> Any:
    arguments = () if signature is None else (signature,)
    try:
        return njit(*arguments, cache=True, **options)(function)
    except Exception:  # no folder can be written, the disk is full, a file of the cache is broken
        return njit(*arguments, **options)(function)


def fingerprint(paths: Iterable[Path]) -> int:
    """Return a number below 2**48 that changes with the content of any of these source files, or of this one.

    numba's cache on disk watches only the file of the cached function.  Closing the cached functions over this number
    makes them compile anew when a function that they call, in another file, has changed.
    """
    digest = hashlib.sha256()
    for path in sorted([*paths, Path(__file__)]):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:6], "big")
