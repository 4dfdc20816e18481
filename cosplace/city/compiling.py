"""What the city needs to be compiled: `cosplace.compiled`, and a number that watches over the files of this folder."""

from pathlib import Path

from cosplace.compiled import entry, fingerprint, inlined, kernel, leaf

__all__ = ["entry", "inlined", "kernel", "leaf", "sources_fingerprint"]


def sources_fingerprint() -> int:
    """Return a number that changes with any source file of this folder: `entry` functions must close over it."""
    return fingerprint(Path(__file__).parent.glob("*.py"))
