"""Decorators of numba for this package, and a fingerprint of its source files."""

from pathlib import Path

from cosplace.compiled import compiled_function, fingerprint, inlined, inner_function, kernel

__all__ = ["compiled_function", "inlined", "inner_function", "kernel", "sources_fingerprint"]


def sources_fingerprint() -> int:
    """A number that changes with any source file of this folder.  Each `compiled_function` must close over it."""
    return fingerprint(Path(__file__).parent.glob("*.py"))
