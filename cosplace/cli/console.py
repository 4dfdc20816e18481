"""What the user sees while a command runs: progress bars, log lines, results."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from cosplace.errors import CosPlaceError

log = logging.getLogger("cosplace")


class Bars:
    """One progress bar at a time, on the terminal: what, how far, speed, time left."""

    def __init__(self) -> None:
        self.what, self.bar = "", None
        _BARS.add(self)

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show `done` of `total`; another `what` begins another bar."""
        from tqdm import tqdm

        if self.bar is None or what != self.what:
            self.close()
            self.what = what
            self.bar = tqdm(
                desc=what, total=total, unit="img", dynamic_ncols=True, smoothing=0.1, leave=False, initial=0
            )
        if note and note != getattr(self.bar, "postfix", ""):
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Leave the line clean."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


_BARS: WeakSet[Bars] = WeakSet()


class _BarHandler(logging.Handler):
    """Log lines above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


class console:  # noqa: N801 - reads as a statement
    """Within: log lines of level INFO go to the terminal.  Bars end with it, so that an error has a line of its own."""

    def __enter__(self) -> None:
        log.setLevel(logging.DEBUG)
        self.handler = _BarHandler(logging.INFO)
        self.handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        log.addHandler(self.handler)

    def __exit__(self, *_: object) -> None:
        for bars in list(_BARS):
            bars.close()
        log.removeHandler(self.handler)


class log_files:  # noqa: N801 - reads as a statement
    """Within: log lines also go to info.log and debug.log in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.handlers = folder, []

    def __enter__(self) -> None:
        from cosplace.storage import storage_errors

        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, level in (("info.log", logging.INFO), ("debug.log", logging.DEBUG)):
                handler = logging.FileHandler(self.folder / name)
                handler.setLevel(level)
                handler.setFormatter(logging.Formatter("%(asctime)s  %(levelname)-7s  %(message)s"))
                log.addHandler(handler)
                self.handlers.append(handler)

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if isinstance(error, CosPlaceError):
            self.handlers[0].handle(log.makeRecord(log.name, logging.ERROR, "", 0, str(error), (), None))
        for handler in self.handlers:
            log.removeHandler(handler)
            handler.close()


def now() -> str:
    """The time as the name of a folder."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def say(text: str) -> None:
    """Print a result."""
    print(text, flush=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON in one step."""
    from cosplace.storage import write_text

    write_text(path, json.dumps(content, indent=2) + "\n")
