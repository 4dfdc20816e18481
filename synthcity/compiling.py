"""What the city needs to be compiled: `cosplace.compiled`, and a number that watches over the files of this folder."""

from pathlib import Path

from cosplace.compiled import compiled_function, fingerprint, inlined, inner_function, kernel

__all__ = ["compiled_function", "inlined", "inner_function", "kernel", "sources_fingerprint"]


def sources_fingerprint() -> int:
    """Return a number that changes with any source file of this folder: `entry` functions must close over it."""
    return fingerprint(Path(__file__).parent.glob("*.py"))
