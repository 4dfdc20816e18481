"""The right to write a local index: one process at a time.

Side effects: creates and locks a file, and removes what killed writers left unfinished.
"""

import os
import shutil
from pathlib import Path

from cosplace.errors import IndexInUseError, StorageError
from cosplace.index.file_checksums import is_local
from cosplace.storage import NO_LOCKS, remove_unfinished

LOCK = ".writer.lock"


class WriterLock:
    """The right to write a local index; it ends with the process that holds it."""

    def __init__(self, address: str) -> None:
        """Take the lock.  Raises IndexInUseError if another writer holds it."""
        self.file = None
        if not is_local(address):  # on object storage, writers must be coordinated by the user
            return
        path = Path(address) / LOCK
        try:
            import fcntl
        except ImportError:  # Windows: the user must make sure that there is one writer
            return
        try:
            self.file = path.open("a+")
        except OSError as error:
            raise StorageError(f"Cannot write to {address} ({error.strerror}). Open it for reading only.") from error
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
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()
        remove_unfinished(Path(address), older_than_s=0.0)  # of killed writers
        for folder in (Path(address) / "search").glob(".*.part"):  # of killed writers of earlier versions
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def is_held(self) -> bool:
        """Whether this is the only writer; unknown, and False, where there are no locks."""
        return self.file is not None

    def release(self) -> None:
        """Allow other writers."""
        if self.file is not None:
            self.file.close()
            self.file = None
