"""Atomic writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from cosplace.errors import StorageError
from cosplace.storage import write_atomically, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(file) -> None:
        file.write(b"half")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_folders_are_created_unless_a_file_blocks_them(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b", "x")
    with pytest.raises(StorageError, match="Choose another folder"):
        write_text(tmp_path / "a" / "b" / "c", "y")


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from cosplace.errors import StorageError
from cosplace.storage import write_atomically
path = Path(sys.argv[1])
write_atomically(path, lambda file: torch.save(torch.arange(10), file))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_atomically(path, lambda file: torch.save(torch.zeros(1_000_000), file))
except StorageError as error:
    print(error)
print(len(torch.load(path, weights_only=True)), sorted(entry.name for entry in path.parent.iterdir()))
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "last_checkpoint.pth"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    assert "No space left while writing" in done.stdout
    assert done.stdout.splitlines()[-1] == "10 ['last_checkpoint.pth']"
