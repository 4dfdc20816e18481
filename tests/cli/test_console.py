"""What a command shows and logs."""

import errno
import logging
from pathlib import Path

import pytest

from cosplace.cli.console import log_to_folder


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
