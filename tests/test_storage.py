"""Atomic writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cosplace import storage
from cosplace.errors import StorageError
from cosplace.storage import (
    UNFINISHED,
    new_run_folder,
    problem_with_kind,
    remove_unfinished,
    write_atomically,
    write_text,
)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_what_a_path_is_instead(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    expected = {
        "file": "is a file, not a folder", "pipe": "is a pipe, not a folder", "link": "does not exist",
        "a\0b": "does not exist",
    }  # fmt: skip
    assert {name: problem_with_kind(tmp_path / name, "folder") for name in expected} == expected
    assert problem_with_kind(tmp_path, "file") == "is a folder, not a file"
    assert problem_with_kind("/dev/null", "file") == "is a device, not a file"


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


def test_unfinished_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "preds").mkdir()
    left = [tmp_path / ".last_checkpoint.pth.123.part", tmp_path / "preds" / ".0001.jpg.4567.part"]
    others = [tmp_path / "file.part", tmp_path / ".notes.part", tmp_path / ".123.part.txt", tmp_path / "config.json"]
    for path in (*left, *others):
        path.write_bytes(b"half")
    remove_unfinished(tmp_path)  # another process may still write them
    assert all(path.exists() for path in (*left, *others))
    os.utime(left[1], (0, 0))
    remove_unfinished(tmp_path)
    assert [path.exists() for path in left] == [True, False]
    remove_unfinished(tmp_path, older_than_s=0.0)
    assert not left[0].exists() and all(path.exists() for path in others)


def test_a_killed_writer_leaves_a_file_that_is_removed(tmp_path: Path) -> None:
    """The name of a temporary file is one that `remove_unfinished` knows."""
    names = []
    write_atomically(tmp_path / "a.pth", lambda file: names.extend(path.name for path in tmp_path.iterdir()))
    assert len(names) == 1 and UNFINISHED.fullmatch(names[0])


def test_two_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path: Path, monkeypatch) -> None:
    first = new_run_folder(tmp_path, "default", "12-00-00")
    assert first == tmp_path / "default" / "12-00-00" and first.is_dir()
    assert new_run_folder(tmp_path, "default", "12-00-00").name == "12-00-00_2"
    # Another process creates the folder that this one has found free.
    free = iter([first, tmp_path / "default" / "free"])
    monkeypatch.setattr(storage, "run_folder", lambda *_: next(free))
    assert new_run_folder(tmp_path, "default", "12-00-00").name == "free"
