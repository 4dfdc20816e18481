"""The right to write an index: one process at a time.  Of a local index, it is a locked file.

Side effects: creates and locks a file, and removes what killed writers left unfinished.
"""

import os
import stat
from pathlib import Path
from typing import IO

from cosplace.errors import IndexInUseError, StorageError
from cosplace.index.file_checksums import FILE_NAME, damaged, is_local, reader_copy_name
from cosplace.index.trials import mark_writing
from cosplace.index.writer_lease import WriterLease
from cosplace.storage import NO_LOCKS, remove_unfinished

LOCK = ".writer.lock"
TABLES = ("photos", "records")  # of an index, that the right to write protects
OWN_FILES = (FILE_NAME, reader_copy_name(dict.fromkeys(TABLES, "*")), "calibration.html")  # next to the tables


class WriterLock:
    """The right to write a local index; it ends with the process that holds it."""

    def __init__(self, address: str) -> None:
        """Take the lock.  Raises IndexInUseError if another writer holds it, DamagedIndexError if it is a link."""
        self.file, self.mark = None, None
        try:
            import fcntl
        except ImportError:  # Windows: the user must make sure that there is one writer
            return
        self.file = _open_lock(address)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:  # some network file systems: the user must make sure that there is one writer
                self.release()
                return
            self.file.seek(0)
            pid = self.file.read().strip() or "unknown"
            self.file.close()
            raise IndexInUseError(
                f"{address} is in use by another writer (pid {pid}). Wait until it ends, or stop it."
            ) from error
        if os.fstat(self.file.fileno()).st_nlink == 1:  # not if it is also a file elsewhere, such as in a snapshot
            self.file.truncate(0)
            self.file.write(str(os.getpid()))
            self.file.flush()
        self.mark = mark_writing(address)
        # Of killed writers.  The folder may be that of the photos, to which others write too.
        for name in OWN_FILES:
            remove_unfinished(Path(address), older_than_s=0.0, pattern=f".{name}.*.part")

    @property
    def is_held(self) -> bool:
        """Whether this is the only writer; unknown, and False, where there are no locks."""
        return self.file is not None

    is_lost = False  # the operating system holds the lock until the process ends

    def confirm(self) -> None:
        """Nothing to check."""

    def release(self) -> None:
        """Allow other writers."""
        for file in (self.mark, self.file):
            if file is not None:
                file.close()
        self.file, self.mark = None, None


def _open_lock(address: str) -> IO[str]:
    """Open the file of the lock.  Raises DamagedIndexError if the writer would write to a file elsewhere."""
    path = Path(address) / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise damaged(address, f"{LOCK} is a link") from error
        raise StorageError(f"Cannot write to {address} ({error.strerror}). Open it for reading only.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise damaged(address, f"{LOCK} is not a regular file")
    return os.fdopen(descriptor, "a+")


def lock_for_writing(address: str) -> WriterLock | WriterLease:
    """Take the right to write an index.  Raises IndexInUseError if another writer has it."""
    return WriterLock(address) if is_local(address) else WriterLease(address, TABLES)
