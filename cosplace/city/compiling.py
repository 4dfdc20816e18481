"""The one door to numba: compiled functions that run without the interpreter's lock."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cosplace.errors import ConfigError

try:
    from numba import njit
except ModuleNotFoundError as error:
    raise ConfigError(
        "The synthetic city needs numba, which is not installed: run `pip install 'cosplace[city]'`."
    ) from error

# Compiled code here allocates nothing, its arrays come from Python, so it needs no reference counts (_nrt).  Those are
# atomic: with them, threads would wait for each other at every array that a function receives.
SHARED: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}
# Functions that only compiled code calls: without a door to the interpreter they compile in half the time.
INNER: dict[str, Any] = SHARED | {"no_cpython_wrapper": True}

kernel = njit(**INNER)
inlined = njit(**INNER, forceinline=True)  # for what every ray calls with many arguments


def leaf(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that calls nothing outside its file, for one signature only, kept on disk.

    Without the signature numba would compile it anew for every constant it is called with.
    """
    return lambda function: _kept(function, signature, INNER)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, kept on disk; it must close over `sources_fingerprint`."""
    return _kept(function, None, SHARED)


def _kept(function: Callable[..., Any], signature: str | None, options: dict[str, Any]) -> Any:
    arguments = () if signature is None else (signature,)
    try:
        return njit(*arguments, cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(*arguments, **options)(function)


def sources_fingerprint() -> int:
    """Return a number that changes with any source file of this folder.

    numba's cache on disk watches only the file of the cached function.  Closing the cached functions over this number
    makes them compile anew when a function that they call, in another file, has changed.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:6], "big")
