"""Progress of long tasks, and where their time went; counts, sizes and durations in words."""

import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """A function that long tasks call as they advance, such as a progress bar."""

    def __call__(self, task: str, done: int, total: int, note: str = "", /) -> None:
        """Report that `done` of `total` items of `task` are finished; note: a short text such as the current loss."""
        ...


class StopRequest(Exception):  # noqa: N818 - not an error
    """Raised by a progress function to stop a task that can continue later; training saves a checkpoint first."""

    def __init__(self, message: str = "", signal_number: int = 0) -> None:
        super().__init__(message)
        self.signal_number = signal_number  # of the signal that asked to stop


def no_progress(task: str, done: int, total: int, note: str = "") -> None:
    """Report nothing: the default of every `progress` parameter."""


def part_of(progress: Progress, task: str, start: int = 0, total: int | None = None) -> Progress:
    """Report a part of a longer task: `start` items are added to what is done, out of `total` (default: the part's)."""

    def report(_: str, done: int, part_total: int, note: str = "") -> None:
        progress(task, start + done, part_total if total is None else total, note)

    return report


class Stopwatch:
    """Seconds that one thread spends on each part of a task."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}  # by part, in the order in which the parts first ended

    @contextmanager
    def of(self, part: str) -> Generator[None]:
        """Within: the time counts for a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - started)

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def format_count(count: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun: 1 epoch, 1,000 queries."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def format_bytes(count: float) -> str:
    """Format a number of bytes: 12 MB, 1.5 GB."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{math.ceil(count / 2**20)} MB"


def format_duration(seconds: float) -> str:
    """Format a duration: 42 s, 7 min, 3 h 20 min, 2 days 4 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "under a second"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} days {hours % 24} h"
