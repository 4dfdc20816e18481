"""Write files atomically (a reader sees the old file or the new one, never a part), and choose folders."""

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from cosplace.errors import ConfigError, CosPlaceError, StorageError

UNFINISHED = re.compile(r"\..+\.\d+\.part")  # names of files that `write_atomically` has not finished
DAY_S = 86_400.0  # writing one file takes less time
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of writing where there is no space
KINDS = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems that have no locks


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, owner: str = "") -> None:
    """Call `write` with a temporary file next to `path`, then rename that file to `path`.

    owner: a name that processes on other machines do not have, for a folder that several machines write to.
    After an error, `path` is unchanged.  Raises StorageError if the disk is full or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}{owner}.{os.getpid()}.part")  # see UNFINISHED
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.unlink(missing_ok=True)  # of a killed process with this number, or a link to somewhere else
            with temporary.open("xb") as file:
                recorder = _WriteErrorRecorder(file)
                try:
                    write(cast(BinaryIO, recorder))
                except Exception:
                    # torch.save and np.save replace the error of a failed write by their own.
                    if recorder.error is not None:
                        raise recorder.error from None
                    raise
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


class _WriteErrorRecorder:
    """A file that records the operating system's error of a failed write."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8; file name bytes that are not UTF-8 are escaped."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


@contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn operating system errors of writing `path` into a StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise StorageError(
                f"No space left while writing {path}. Free some space; an existing file is unchanged."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise StorageError(f"Cannot write {path} ({error.strerror}). Choose another folder.") from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure (neither possible nor needed on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_folder(kind: str, default: Path | None = None) -> Path:
    """Folder for cached files of one kind, such as "groups" or "index".

    $COSPLACE_HOME/<kind> if the variable is set, else `default`, else cosplace/<kind> in the user's cache folder.
    """
    home = os.environ.get("COSPLACE_HOME")
    if home:
        return Path(home).expanduser() / kind
    if default is not None:
        return default
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cosplace" / kind


@contextmanager
def lock_file(path: Path, busy: CosPlaceError) -> Generator[None]:
    """Hold a lock, which one thread may take several times; raises `busy` if another thread or process holds it.

    The system releases the lock of a killed process.  Some network file systems have no locks: then it does nothing.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.absolute(), is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise busy from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            with storage_errors(path):
                raise
    try:
        yield
    finally:
        lock.release()


def remove_unfinished(folder: Path, older_than_s: float = DAY_S, *, pattern: str = "**/.*.part") -> None:
    """Remove unfinished files of killed processes.  Only the holder of the folder's lock may remove recent ones.

    pattern: which, if other programs also write to the folder.
    """
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process has removed the file, or it is not ours
            if UNFINISHED.fullmatch(path.name) and path.stat().st_mtime <= time.time() - older_than_s:
                path.unlink()


def new_run_folder(logs: Path, save_dir: str, time: str) -> Path:
    """Create a folder for a run: logs/<save_dir>/<time>, with a number if it exists already."""
    while True:
        folder = run_folder(logs, save_dir, time)
        with storage_errors(folder), suppress(FileExistsError):  # another process was faster
            folder.mkdir(parents=True)
            return folder


def run_folder(logs: Path, save_dir: str, time: str) -> Path:
    """Path of a new folder for a run: logs/<save_dir>/<time>, with a number if it exists already."""
    parent = logs / save_dir
    for suffix in ("", *(f"_{number}" for number in range(2, 1000))):
        folder = parent / f"{time}{suffix}"
        if not folder.exists():
            return folder
    raise ConfigError(f"{parent} already has 1,000 runs of {time}.", "use another --save_dir", "remove old runs")


def problem_with_kind(path: str | Path, wanted: str) -> str:
    """Why a path is not what is wanted, "file" or "folder": `does not exist`, or such as `is a pipe, not a file`."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116 - a broken link does not exist, either
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return "does not exist"
    return f"is a {KINDS.get(kind, 'device')}, not a {wanted}"
