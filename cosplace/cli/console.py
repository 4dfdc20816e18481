"""What a command shows: progress, log lines, results."""

import json
import logging
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

from cosplace.errors import CosPlaceError
from cosplace.storage import storage_errors, write_text

LINE_SECONDS = 30.0  # at most one progress line in this time where there is no terminal
LINE_SHARE = 0.1  # and at most one for this share of a task

log = logging.getLogger("cosplace")


# --- progress --------------------------------------------------------------------------------------------------------


class Bars:
    """Progress on stderr: in a terminal one bar at a time, else, as in a log file, a line now and then."""

    def __init__(self) -> None:
        self.task, self.bar, self.is_terminal = "", None, sys.stderr.isatty()
        self.line_time, self.line_done = time.monotonic(), 0
        _BARS.add(self)

    def __call__(self, task: str, done: int, total: int, note: str = "", /) -> None:
        """Show that `done` of `total` items are finished; another task starts another bar."""
        if self.is_terminal:
            self._draw(task, done, total, note)
        else:
            self._print_line(task, done, total, note)

    def _draw(self, task: str, done: int, total: int, note: str) -> None:
        from tqdm import tqdm

        if self.bar is None or task != self.task:
            self.close()
            self.task = task
            self.bar = tqdm(desc=task, total=total, unit="img", dynamic_ncols=True, smoothing=0.1, leave=False)
        if note and note != getattr(self.bar, "postfix", ""):
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.close()

    def _print_line(self, task: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if task != self.task:
            self.task, self.line_time, self.line_done = task, now, 0
        if now - self.line_time < LINE_SECONDS or done - self.line_done < LINE_SHARE * total:
            return
        self.line_time, self.line_done = now, done
        print(f"{_clock()}  {task}: {done:,} of {total:,}{note and f', {note}'}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line of the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


_BARS: WeakSet[Bars] = WeakSet()


def _close_bars() -> None:
    for bars in list(_BARS):
        bars.close()


# --- log lines -------------------------------------------------------------------------------------------------------


class _TerminalHandler(logging.Handler):
    """Prints log lines on stderr, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{_clock()}  {record.getMessage()}"
        if any(bars.bar is not None for bars in _BARS):
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def _clock() -> str:
    return time.strftime("%H:%M:%S")


@contextmanager
def log_to_terminal() -> Generator[None]:
    """Within: log lines of level INFO go to stderr.  Progress bars are cleared at the end, also after an error."""
    log.setLevel(logging.DEBUG)
    handler = _TerminalHandler(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        _close_bars()
        log.removeHandler(handler)


@contextmanager
def log_to_folder(folder: Path) -> Generator[None]:
    """Within: log lines also go to info.log and debug.log in the folder of a run, the error that ends it too."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handlers = [logging.FileHandler(folder / name) for name in ("info.log", "debug.log")]
    for handler, level in zip(handlers, (logging.INFO, logging.DEBUG), strict=True):
        handler.setLevel(level)
        handler.setFormatter(logging.Formatter("%(asctime)s  %(levelname)-7s  %(message)s"))
        log.addHandler(handler)
    try:
        yield
    except CosPlaceError as error:
        handlers[0].handle(log.makeRecord(log.name, logging.ERROR, "", 0, str(error), (), None))
        raise
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


# --- results ---------------------------------------------------------------------------------------------------------


def print_result(text: str) -> None:
    """Print a result on stdout."""
    print(text, flush=True)


def print_json(content: Any) -> None:
    """Print a result as JSON."""
    print_result(json.dumps(content, indent=2))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def timestamp() -> str:
    """The time, as the name of a folder."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


@contextmanager
def on_interrupt(advice: str) -> Generator[None]:
    """Within: Ctrl+C ends the command with this advice."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"Interrupted. {advice}") from error
