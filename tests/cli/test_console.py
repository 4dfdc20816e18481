"""What a command shows and logs."""

import errno
import json
import logging
import os
import sys
from pathlib import Path

import pytest

from cosplace.cli.console import json_text, log_to_folder, log_to_terminal, print_result


def test_a_log_file_on_a_full_disk_loses_lines_without_tracebacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = write_through = lambda self, *_: None

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with log_to_folder(tmp_path):
        for handler in logging.getLogger("cosplace").handlers:
            if isinstance(handler, logging.FileHandler):
                handler.stream.close()
                handler.stream = Full()  # type: ignore[assignment]
        logging.getLogger("cosplace").warning("lost")
    assert "Traceback" not in capsys.readouterr().err


def test_json_has_names_that_are_not_utf_8_as_text() -> None:
    folder, name = (os.fsdecode(raw) for raw in (b"caf\xe9", b"\xff.jpg"))
    found = json.loads(json_text({"folder": folder, "names": [name, "plain.jpg"], "counts": {name: 1}}))
    assert found == {"folder": r"caf\xe9", "names": [r"\xff.jpg", "plain.jpg"], "counts": {r"\xff.jpg": 1}}


def test_log_lines_of_any_name_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cosplace"), "propagate", False)  # pytest-xdist cannot send such names
    with log_to_terminal(), log_to_folder(tmp_path):
        logging.getLogger("cosplace").warning("skipped %s", os.fsdecode(b"two\nlines\r\xe9.jpg"))
    for text in (capsys.readouterr().err, (tmp_path / "info.log").read_text("utf-8")):
        assert text.splitlines() == text.split("\n")[:-1] and text.endswith("skipped two\\nlines\\r\\xe9.jpg\n")
        assert text.count("\n") == 1


def test_a_log_file_has_errors_with_names_that_are_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("cosplace"), "propagate", False)
    with log_to_folder(tmp_path):
        try:
            raise ValueError(os.fsdecode(b"caf\xe9.jpg"))
        except ValueError:
            logging.getLogger("cosplace").exception("failed")
    assert (tmp_path / "info.log").read_text("utf-8").endswith("ValueError: caf\\udce9.jpg\n")


def test_names_in_results_do_not_control_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "name,place\n\x1b]0;title\x07a\u202e.jpg\t\x9b1m,1"
    print_result(text)
    assert capsys.readouterr().out == f"{text}\n"  # a file gets what the names are
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_result(text)
    assert capsys.readouterr().out == "name,place\n\\x1b]0;title\\x07a\\u202e.jpg\t\\x9b1m,1\n"
