"""What a command shows while it runs: --quiet, --verbose, --log_format json, colors."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from cosplace.cli import console, main
from cosplace.cli.console import Bars, log_to_terminal, print_error, set_terminal
from cosplace.config.terminal import TerminalSettings, take_terminal_settings
from cosplace.errors import ConfigError

log = logging.getLogger("cosplace")


@pytest.fixture(autouse=True)
def usual_terminal() -> Iterator[None]:
    yield
    set_terminal(TerminalSettings())


def show_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log lines of all levels, progress of ten minutes, and an error."""
    clock = iter(range(0, 10_000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with log_to_terminal():
        log.debug("a detail")
        log.info("a note")
        log.warning("a warning")
        bars = Bars()
        for done in range(1, 601):  # one item per second
            bars("encoding", done, 600, "loss 0.5")
    print_error("it failed\nat last")


def test_flags_stand_anywhere() -> None:
    settings, words = take_terminal_settings(["--quiet", "index", "info", "--log_format", "json", "city", "--json"])
    assert settings == TerminalSettings(quiet=True, log_format="json")
    assert words == ["index", "info", "city", "--json"]
    assert take_terminal_settings(["locate", "--log_format=json"])[0].log_format == "json"
    assert take_terminal_settings(["locate", "--", "--quiet"]) == (TerminalSettings(), ["locate", "--", "--quiet"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--quiet", "--verbose"], "--quiet contradicts --verbose"),
        (["--log_format"], "--log_format needs a value: text or json"),
        (["--log_format=jso"], "--log_format must be text or json, got 'jso'. Did you mean json?"),
    ],
)
def test_flags_that_do_not_fit_are_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")):
        take_terminal_settings(words)
    assert main(["zoo", "list", *words]) == 2
    assert told in capsys.readouterr().err


def test_by_default_a_log_file_gets_at_most_a_line_per_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_everything(monkeypatch)
    lines = [line[10:] for line in capsys.readouterr().err.splitlines()[:-1]]
    assert lines[:2] == ["a note", "a warning"]
    assert 9 <= len(lines[2:]) <= 10 and all(line.endswith("of 600, loss 0.5") for line in lines[2:])


def test_quiet_shows_warnings_and_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_terminal(TerminalSettings(quiet=True))
    show_everything(monkeypatch)
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.endswith("  a warning") and error == "error: it failed at last"


def test_verbose_shows_details(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_terminal(TerminalSettings(verbose=True))
    show_everything(monkeypatch)
    assert capsys.readouterr().err.splitlines()[0].endswith("  a detail")


def test_json_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_terminal(TerminalSettings(log_format="json"))
    show_everything(monkeypatch)
    note, warning, *progress, error = map(json.loads, capsys.readouterr().err.splitlines())
    assert (note["event"], note["message"]) == ("info", "a note")
    assert (warning["event"], warning["message"]) == ("warning", "a warning")
    assert {line["event"] for line in progress} == {"progress"}
    assert progress[0]["task"] == "encoding" and progress[0]["total"] == 600 and progress[0]["note"] == "loss 0.5"
    assert (error["event"], error["message"]) == ("error", "it failed at last")


@pytest.mark.parametrize(
    ("is_terminal", "variables", "has_color"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False)],
)
def test_color_only_where_the_terminal_has_it(
    is_terminal: bool, variables: dict[str, str], has_color: bool, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    print_error("it failed")
    assert capsys.readouterr().err == ("\x1b[31merror:\x1b[0m it failed\n" if has_color else "error: it failed\n")


def test_settings_end_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "info", "nothing", "--log_format", "json"]) == 2
    assert json.loads(capsys.readouterr().err)["event"] == "error"
    assert main(["zoo", "info", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_error_of_any_length_fits_on_a_screen(capsys) -> None:
    print_error(f"{'x' * 100_000} is too long. Use a shorter name.")
    text = capsys.readouterr().err
    assert len(text) < 2100 and text.startswith("error: xxx") and text.endswith("Use a shorter name.\n")
