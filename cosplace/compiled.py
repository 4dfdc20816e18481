"""Decorators that compile functions with numba, to run without the interpreter's lock.

Importing this module imports numba (0.2 CPU s, 60 MB).  So import it only in files of compiled functions, and import
these files where they are used.  Raises ConfigError if numba cannot be imported.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cosplace.errors import ConfigError

try:
    from numba import njit, types  # noqa: F401 - types and intrinsic are for files of compiled functions
    from numba.extending import intrinsic  # noqa: F401
except (ImportError, OSError) as error:  # OSError: a library of LLVM cannot be loaded
    raise ConfigError(
        f"numba cannot be imported ({error}). It compiles the augmentation, the search by binary codes "
        f"and the synthetic city: run `pip install --upgrade numba`."
    ) from error

# The compiled functions allocate nothing: their arrays come from Python, so they need no reference counts (_nrt).
# Reference counts are atomic: threads would wait for each other at every array that a function receives.  Without
# `fastmath`, sums keep their order and products their rounding, whatever vector instructions a machine has.
SHARED: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}
# Only compiled code calls these functions.  Without a wrapper for Python they compile in half the time.
INNER: dict[str, Any] = SHARED | {"no_cpython_wrapper": True}

Decorator = Callable[[Callable[..., Any]], Any]

kernel: Decorator = njit(**INNER)
"""Compile a function that only compiled code calls, together with its caller."""
inlined: Decorator = njit(**INNER, forceinline=True)
"""Like `kernel`, and inline it: for small functions with many arguments that every ray calls."""


def inner_function(signature: str) -> Decorator:
    """Compile a function that only compiled code calls, for one signature, cached on disk.

    It must not call functions of other files: the cache would miss changes there.  Without a signature, numba would
    compile it again for every constant argument.
    """
    return lambda function: _compile(function, signature, INNER)


def compiled_function(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, cached on disk.

    If it calls functions of other files, it must close over a `fingerprint` of them.
    """
    return _compile(function, None, SHARED)


def compiled_for(signature: str) -> Decorator:
    """Compile a function that Python calls, for one signature, at once; otherwise like `compiled_function`."""
    return lambda function: _compile(function, signature, SHARED)


def _compile(function: Callable[..., Any], signature: str | None, options: dict[str, Any]) -> Any:
    arguments = () if signature is None else (signature,)
    try:
        return njit(*arguments, cache=True, **options)(function)
    except Exception:  # no writable folder, a full disk, or a damaged cache file: compile without the cache
        return njit(*arguments, **options)(function)


def fingerprint(paths: Iterable[Path]) -> int:
    """A number below 2**48 that changes when one of these source files, or this one, changes.

    The cache of numba checks only the file of the cached function.  A function that closes over this number is compiled
    again when a function that it calls in another file has changed.
    """
    digest = hashlib.sha256()
    for path in sorted([*paths, Path(__file__)]):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:6], "big")
