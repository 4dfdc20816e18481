"""Files written beside, synced, renamed: a reader sees the old file or the new one, never half of one."""

import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from cosplace.errors import ConfigError, StorageError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a file beside `path`, then put that file in its place in one step.

    Whatever goes wrong, `path` keeps what it held.  Raises StorageError when the disk is full or refuses.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                remembering = _Remembering(file)
                try:
                    write(cast(BinaryIO, remembering))
                except Exception:
                    # torch.save and np.save hide why a write failed behind errors of their own.
                    if remembering.failure is not None:
                        raise remembering.failure from None
                    raise
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        _sync_folder(path.parent)


class _Remembering:
    """A file that remembers the error with which the system refused a write."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


@contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn the operating system's refusals to write `path` into one StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"No space left while writing {path}: free some space; what was there before is untouched."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise StorageError(f"Cannot write {path} ({error.strerror}): choose another folder.") from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut (not possible, nor needed, on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_folder(kind: str, default: Path | None = None) -> Path:
    """Folder for cached files of one kind, such as "groups" or "index".

    $COSPLACE_HOME/<kind> if that variable is set, else `default`, else cosplace/<kind> in the user's cache folder.
    """
    home = os.environ.get("COSPLACE_HOME")
    if home:
        return Path(home).expanduser() / kind
    if default is not None:
        return default
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cosplace" / kind


def run_folder(logs: Path, save_dir: str, time: str) -> Path:
    """A new folder for a run: logs/<save_dir>/<time>, with a number where two runs start in one second."""
    parent = logs / save_dir
    for suffix in ("", *(f"_{number}" for number in range(2, 1000))):
        folder = parent / f"{time}{suffix}"
        if not folder.exists():
            return folder
    raise ConfigError(f"{parent} has a thousand runs of this second: choose another --save_dir.")
