"""What a command shows and logs."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest

from cosplace.cli.console import json_text, log_to_folder


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
