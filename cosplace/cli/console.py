"""What a command shows: progress, log lines, results."""

import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import WeakSet

from cosplace.cli.second_signal import EXIT_SIGNAL, Signals, end_at_second_signal
from cosplace.config.terminal import TerminalSettings
from cosplace.errors import CosPlaceError, one_line
from cosplace.photos.paths import writable
from cosplace.progress import Progress, StopRequest
from cosplace.storage import storage_errors, write_text

LOGS = Path("logs")  # folders of runs
LINE_SECONDS = 60.0  # without a terminal, at most one progress line in this time
SAME_SIGNAL_S = 1.0  # a signal that is repeated within this time is the same request
MAX_ERROR = 2000  # characters of an error
RETRY_S = 0.05  # until a signal that was ignored is sent again
RED, YELLOW, RESET = "\x1b[31m", "\x1b[33m", "\x1b[0m"

log = logging.getLogger("cosplace")


# --- progress --------------------------------------------------------------------------------------------------------


class Bars:
    """Progress on stderr: in a terminal one bar at a time, else, as in a log file, a line per minute."""

    def __init__(self) -> None:
        self.task, self.bar = "", None
        is_text = _terminal[-1].log_format == "text"
        self.is_terminal = is_text and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.line_time = time.monotonic()
        _BARS.add(self)

    def __call__(self, task: str, done: int, total: int, note: str = "", /) -> None:
        """Show that `done` of `total` items are finished; another task starts another bar."""
        if _terminal[-1].quiet:
            return
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
        if now - self.line_time < LINE_SECONDS:
            return
        self.line_time = now
        if _terminal[-1].log_format == "json":
            _print_json_line("progress", task=task, done=done, total=total, **({"note": note} if note else {}))
        else:
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
        text = one_line(record.getMessage())
        if _terminal[-1].log_format == "json":
            _print_json_line(record.levelname.lower(), message=text)
            return
        line = f"{_clock()}  {_colored(text, record.levelno)}"
        if any(bars.bar is not None for bars in _BARS):
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


class _OneLineFormatter(logging.Formatter):
    """One line per record, and one for each line of its traceback: file names may contain line breaks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in logging
        return one_line(super().formatMessage(record))


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _print_json_line(event: str, **details: Any) -> None:
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **details}
    print(json.dumps(_without_surrogates(line)), file=sys.stderr, flush=True)


def _colored(text: str, level: int) -> str:
    """A text in the color of its level, where stderr is a terminal and NO_COLOR is not set."""
    has_color = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    color = RED if level >= logging.ERROR else YELLOW if level >= logging.WARNING else ""
    return f"{color}{text}{RESET}" if has_color and color else text


def print_times(seconds: Mapping[str, float]) -> None:
    """Print where the time went, in seconds by part; with --log_format json also as an event on stderr."""
    if _terminal[-1].log_format == "json":
        _print_json_line("time", seconds={part: round(value, 1) for part, value in seconds.items()})
    print_result("time: " + ", ".join(f"{part} {value:.1f} s" for part, value in seconds.items()))


def print_error(text: str) -> None:
    """Print an error on stderr, in one line."""
    text = one_line(" ".join(text.split()))
    if len(text) > MAX_ERROR:  # it names something of a file; what to do is said at the end
        text = f"{text[: MAX_ERROR // 2]} ... {text[-MAX_ERROR // 2 :]}"
    if _terminal[-1].log_format == "json":
        _print_json_line("error", message=text)
    else:
        print(f"{_colored('error:', logging.ERROR)} {text}", file=sys.stderr)


def set_terminal(settings: TerminalSettings) -> None:
    """Set what commands of this process show while they run."""
    _terminal[:] = [settings]


_terminal = [TerminalSettings()]


def _level() -> int:
    return logging.WARNING if _terminal[-1].quiet else logging.DEBUG if _terminal[-1].verbose else logging.INFO


@contextmanager
def log_to_terminal() -> Generator[None]:
    """Within: log lines of level INFO go to stderr.  Progress bars are cleared at the end, also after an error."""
    log.setLevel(logging.DEBUG)
    handler = _TerminalHandler(_level())
    log.addHandler(handler)
    try:
        yield
    finally:
        _close_bars()
        log.removeHandler(handler)


def show_only_errors() -> None:
    """Show no log lines in this process, one of several, but errors."""
    for handler in log.handlers:
        handler.setLevel(logging.ERROR)


class _LogFile(logging.FileHandler):
    """A log file that a full disk does not turn into pages of tracebacks: the files of results report it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of logging
        """Lose the line."""


@contextmanager
def log_to_folder(folder: Path) -> Generator[None]:
    """Within: log lines also go to info.log and debug.log in the folder of a run, the error that ends it too."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handlers = [
            _LogFile(folder / name, encoding="utf-8", errors="backslashreplace") for name in ("info.log", "debug.log")
        ]
    for handler, level in zip(handlers, (logging.INFO, logging.DEBUG), strict=True):
        handler.setLevel(level)
        handler.setFormatter(_OneLineFormatter("%(asctime)s  %(levelname)-7s  %(message)s"))
        log.addHandler(handler)
    try:
        yield
    except (CosPlaceError, StopRequest) as error:
        level = logging.ERROR if isinstance(error, CosPlaceError) else logging.INFO
        handlers[0].handle(log.makeRecord(log.name, level, "", 0, str(error), (), None))
        raise
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            with suppress(OSError):  # a full disk: the results say so
                handler.close()


# --- results ---------------------------------------------------------------------------------------------------------


def print_result(text: str) -> None:
    """Print a result on stdout; characters that its encoding lacks are escaped, and those that control a terminal."""
    text, encoding = writable(text), getattr(sys.stdout, "encoding", None) or "utf-8"
    if sys.stdout.isatty():  # CSV has names of files as they are
        text = "".join(part if part in "\n\t" else one_line(part) for part in re.split(r"([\n\t])", text))
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def print_main_file(folder: Path, *, no_report: bool) -> None:
    """Print the file of an evaluation that a user opens."""
    print_result(f"results: {folder / 'results.json'}" if no_report else f"report: {folder / 'report.html'}")


def print_json(content: Any) -> None:
    """Print a result as JSON."""
    print_result(json_text(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step."""
    write_text(path, json_text(content) + "\n")


def json_text(content: Any) -> str:
    r"""JSON in ASCII.  File name bytes that are not UTF-8 become \x and two digits: JSON has no lone surrogates."""
    text = json.dumps(content, indent=2)
    return json.dumps(_without_surrogates(content), indent=2) if "\\udc" in text else text


def _without_surrogates(content: Any) -> Any:
    if isinstance(content, str):
        return writable(content)
    if isinstance(content, Mapping):
        return {_without_surrogates(key): _without_surrogates(value) for key, value in content.items()}
    return [_without_surrogates(value) for value in content] if isinstance(content, list | tuple) else content


def timestamp() -> str:
    """The time, as the name of a folder."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


# --- signals ---------------------------------------------------------------------------------------------------------


class Interruption(KeyboardInterrupt):
    """Ctrl+C or SIGTERM, as an exception.  Its text is for the user."""

    def __init__(self, number: int = signal.SIGINT, advice: str = "") -> None:
        super().__init__(interruption_text(number, advice))
        self.number = number  # of the signal


def interruption_text(number: int, advice: str) -> str:
    """What ended a command, and how to continue."""
    return f"{'Interrupted' if number == signal.SIGINT else 'Terminated'}. {advice}".rstrip()


@contextmanager
def end_on_signals(*, owns_process: bool = False) -> Generator[None]:
    """Within: Ctrl+C and SIGTERM raise an Interruption, so that files are not left half-written.

    A second signal ends the process at once, unless it follows immediately.  Ignored signals stay ignored.
    owns_process: whether the process is only this command; it then ends at once while a module is imported.
    """
    signals = Signals()
    again: list[int] = []  # signals that are sent again, which are not second ones

    def receive(number: int, frame: FrameType | None) -> None:
        if signals.is_first(number):
            if owns_process and _is_importing(frame):
                with suppress(OSError):  # a full disk
                    os.write(2, f"{interruption_text(number, _ADVICE[-1])}\n".encode())
                os._exit(EXIT_SIGNAL + number)
            raise Interruption(number)

    def send_later(number: int) -> None:
        def send() -> None:
            again.append(number)
            os.kill(os.getpid(), number)

        signals.first = 0
        timer = threading.Timer(RETRY_S, send)
        timer.daemon = True
        timer.start()

    def send_again(ignored: Any) -> None:
        """Python ignores exceptions in finalizers, which may run at any time."""
        if issubclass(ignored.exc_type, Interruption):
            send_later(signals.first)
        else:
            hook(ignored)

    hook, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        with _received(receive, signals, only=(signal.default_int_handler, signal.SIG_DFL), again=again):
            yield
    except Exception as error:
        if signals.first:  # compiled code may replace an exception by its own
            raise Interruption(signals.first) from error
        raise
    finally:
        sys.unraisablehook = hook


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: an exception would abort compiled ones, such as those of torch."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


_ADVICE = [""]  # of the command that runs, and of its parts, the innermost last


@contextmanager
def on_interrupt(advice: str) -> Generator[None]:
    """Within: Ctrl+C and SIGTERM end the command with this advice."""
    _ADVICE.append(advice)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interruption(getattr(error, "number", signal.SIGINT), advice) from error
    finally:
        _ADVICE.pop()


@contextmanager
def stop_on_signals(progress: Progress, advice: str, *, is_silent: bool = False) -> Generator[Progress]:
    """Within: Ctrl+C and SIGTERM stop the task at its next progress report, with a StopRequest that has this advice.

    A second signal ends the process at once, unless it follows immediately: `timeout` and others send a signal both to
    a process and to its group.  Returns the progress function for the task.  is_silent: do not confirm the signal.
    """
    signals = Signals()

    def receive(number: int, _: object) -> None:
        signals.is_first(number)

    def answer(number: int) -> None:  # at once, also if the main thread is busy
        if is_silent:
            return
        how = "press Ctrl+C" if number == signal.SIGINT else "send SIGTERM"
        with suppress(OSError):  # a full disk; not with print: the signal may have interrupted a call of it
            os.write(2, f"\n{_clock()}  stopping; {how} again to stop at once\n".encode())

    def report(task: str, done: int, total: int, note: str = "", /) -> None:
        progress(task, done, total, note)
        if signals.first:
            raise StopRequest(interruption_text(signals.first, advice), signals.first)

    with _received(receive, signals, answer=answer):
        yield report


@contextmanager
def _received(
    receive: Callable[[int, Any], None],
    signals: Signals,
    *,
    only: Sequence[Any] = (),
    answer: Callable[[int], None] = lambda _: None,
    again: list[int] | None = None,
) -> Generator[None]:
    """Within: SIGINT and SIGTERM call a function, in the main thread, and a second one ends the process.

    only: handlers that it replaces; () for any.  answer: called for the first signal, in another thread.
    again: signals that this process sends to itself again, removed here; they are not second ones.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach only that one
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    replaced = {number: handler for number, handler in before.items() if not only or handler in only}
    for number in replaced:
        signal.signal(number, receive)
    try:

        def is_ours(number: int) -> bool:
            if again and number in again:
                again.remove(number)
                return False
            return signal.getsignal(number) is receive

        with end_at_second_signal(is_ours, answer, signals.end, after_s=SAME_SIGNAL_S):
            yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def command_line() -> str:
    """The command line of this process, for a shell."""
    return shlex.join([*program(), *sys.argv[1:]])


def program() -> list[str]:
    """The words that started this program, such as ["cosplace"], for commands that the user can copy."""
    start = Path(sys.argv[0])
    if start.suffix == ".py":
        return [sys.executable, *(["-m", "cosplace"] if start.name == "__main__.py" else [sys.argv[0]])]
    installed = shutil.which("cosplace")
    is_other = start.name == "cosplace" and (installed is None or not start.exists() or not start.samefile(installed))
    return [sys.argv[0] if is_other else "cosplace"]
