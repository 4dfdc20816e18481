"""The files of a store: in a folder, or on object storage.

Each file is written whole or not at all.  In a folder, that is a rename; on object storage, uploads are.  Nothing needs
conditional writes: see `shard_claims` and `shards` for what happens when two processes write the same file.
Side effects: reads and writes files.
"""

import os
import socket
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from cosplace.errors import ConfigError, CosPlaceError, StorageError, one_line
from cosplace.storage import remove_unfinished, storage_errors, write_atomically

S3 = ("s3", "s3a")
S3_OPTIONS = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 5, "mode": "standard"}}
CLIENTS = ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs", "google", "azure")  # raise their own errors
READ, WRITE = "read", "write to"
MAX_TEXT = 160  # characters of an error of a client

Part = bytes | bytearray | memoryview


class StoreFiles(Protocol):
    """The files at an address.  Missing files raise FileNotFoundError, other problems StorageError."""

    address: str

    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its name; empty if the address does not exist."""
        ...

    def read(self, name: str, first: int = 0, last: int | None = None) -> bytes:
        """Bytes first … last - 1 of a file."""
        ...

    def read_into(self, name: str, first: int, memory: memoryview) -> None:
        """Fill memory with the bytes of a file from `first` on; raises EOFError for a file that is too short."""
        ...

    def write(self, name: str, parts: Sequence[Part]) -> None:
        """Write a file from its parts, whole or not at all."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists; whether this call wrote it.  On object storage, two calls may both write."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        ...

    def local_path(self, name: str) -> Path | None:
        """Path of a file in a folder; None on object storage."""
        ...

    def remove_unfinished(self) -> None:
        """Remove unfinished files of killed processes, once they are a day old."""
        ...


def open_files(address: str | Path) -> StoreFiles:
    """The files of an address: a folder, which may not exist yet, or object storage such as s3://bucket/store.

    Raises ConfigError for an unknown kind of storage, or one whose package is not installed.
    """
    text = os.fspath(address)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemoteFiles(text) if "://" in text else FolderFiles(Path(text))


# --- a folder --------------------------------------------------------------------------------------------------------


class FolderFiles:
    """Files in a folder of this machine, or in one that several machines share."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder)

    def sizes(self) -> dict[str, int]:
        """See StoreFiles."""
        found = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        with suppress(FileNotFoundError):  # removed since
                            found[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            return {}
        except NotADirectoryError as error:
            raise StorageError(f"{self.folder} is not a folder. Choose another folder.") from error
        except OSError as error:
            raise StorageError(f"Cannot read {self.folder} ({error.strerror}). Choose another folder.") from error
        return found

    def read(self, name: str, first: int = 0, last: int | None = None) -> bytes:
        """See StoreFiles."""
        with self._read_errors(name), BufferedReader(self._open(name)) as file:
            file.seek(first)
            return file.read() if last is None else file.read(max(last - first, 0))

    def read_into(self, name: str, first: int, memory: memoryview) -> None:
        """See StoreFiles."""
        with self._read_errors(name), self._open(name) as file:
            file.seek(first)
            done = 0
            while done < len(memory):
                count = file.readinto(memory[done:])
                if not count:
                    raise EOFError(name)
                done += count

    def _open(self, name: str) -> FileIO:
        """Open a file without a buffer.  Raises StorageError for a pipe or a device, which may never end."""
        path = self.folder / name
        file = FileIO(path, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise StorageError(
                f"{path} is a pipe or a device, not a file. Extract the descriptors into another folder."
            )
        return file

    @contextmanager
    def _read_errors(self, name: str) -> Generator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:
            raise StorageError(f"{self.folder} is not a folder. Choose another folder.") from error
        except OSError as error:
            raise StorageError(
                f"Cannot read {self.folder / name} ({error.strerror}). Check the disk, then run the same command again."
            ) from error

    def write(self, name: str, parts: Sequence[Part]) -> None:
        """See StoreFiles."""
        with self._write_errors(name):
            write_atomically(self.folder / name, lambda file: [file.write(part) for part in parts], owner=_owner())

    def create(self, name: str, content: bytes) -> bool:
        """See StoreFiles: a link to a finished file is made in one step, also on network file systems."""
        path = self.folder / name
        finished = self.folder / f".{name}{_owner()}.{os.getpid()}.part"  # `remove_unfinished` removes it after a kill
        with self._write_errors(name):
            write_atomically(finished, lambda file: file.write(content))
            with storage_errors(path):
                try:
                    path.hardlink_to(finished)
                except FileExistsError:
                    return False
                except OSError:  # a file system without hard links
                    if path.exists():
                        return False
                    finished.replace(path)
                finally:
                    finished.unlink(missing_ok=True)
        return True

    def remove(self, name: str) -> None:
        """See StoreFiles."""
        with self._write_errors(name), storage_errors(self.folder / name):
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _write_errors(self, name: str) -> Generator[None]:
        try:
            yield
        except OSError as error:  # such as those of a network file system
            raise StorageError(
                f"Cannot write {self.folder / name} ({error.strerror}). Run the same command again to continue."
            ) from error

    def local_path(self, name: str) -> Path | None:
        """See StoreFiles."""
        return self.folder / name

    def remove_unfinished(self) -> None:
        """See StoreFiles."""
        remove_unfinished(self.folder)


def _owner() -> str:
    """A name of this process that no process on another machine has."""
    return f"-{socket.gethostname()}-{token_hex(4)}"


# --- object storage --------------------------------------------------------------------------------------------------


class RemoteFiles:
    """Files on object storage, by fsspec."""

    def __init__(self, address: str) -> None:
        import fsspec.core  # torch installs it

        self.address = address.rstrip("/")
        protocol = address.partition("://")[0]
        options: dict[str, Any] = {"use_listings_cache": False}
        if protocol in S3:
            options["config_kwargs"] = dict(S3_OPTIONS)
        try:
            self.storage, self.folder = fsspec.core.url_to_fs(self.address, **options)
        except ImportError as error:
            extra = "'cosplace[s3]'" if protocol in S3 else f"the package that fsspec names for {protocol}://"
            raise ConfigError(f"{address} needs a package that is not installed. Run `pip install {extra}`.") from error
        except ValueError as error:
            raise ConfigError(
                f"Unknown storage '{protocol}' ({address}). Use a folder, or s3://bucket/store."
            ) from error

    @contextmanager
    def _errors(self, doing: str) -> Generator[None]:
        try:
            yield
        except (CosPlaceError, EOFError):
            raise
        except FileNotFoundError as error:
            if doing == READ:
                raise
            raise StorageError(f"Cannot {doing} {self.address}: the bucket does not exist. Create it.") from error
        except PermissionError as error:
            raise StorageError(f"No permission to {doing} {self.address}. Check the credentials.") from error
        except Exception as error:
            is_of_client = type(error).__module__.partition(".")[0] in CLIENTS
            if not (is_of_client or isinstance(error, OSError | TimeoutError)):
                raise
            text = one_line(" ".join(str(error).split()))[:MAX_TEXT].rstrip(". ") or type(error).__name__
            raise StorageError(
                f"Cannot {doing} {self.address} ({text}). Check the address, the network and the credentials; then "
                f"run the same command again to continue."
            ) from error

    def _path(self, name: str) -> str:
        return f"{self.folder.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """See StoreFiles."""
        with self._errors(READ):
            self.storage.invalidate_cache(self.folder)
            try:
                entries = self.storage.ls(self.folder, detail=True)
            except FileNotFoundError:
                return {}
        return {
            entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in entries if entry["type"] == "file"
        }

    def read(self, name: str, first: int = 0, last: int | None = None) -> bytes:
        """See StoreFiles."""
        with self._errors(READ):
            whole = first == 0 and last is None
            path = self._path(name)
            return self.storage.cat_file(path) if whole else self.storage.cat_file(path, start=first, end=last)

    def read_into(self, name: str, first: int, memory: memoryview) -> None:
        """See StoreFiles."""
        content = self.read(name, first, first + len(memory))
        if len(content) < len(memory):
            raise EOFError(name)
        memory[:] = content

    def write(self, name: str, parts: Sequence[Part]) -> None:
        """See StoreFiles."""
        with self._errors(WRITE):
            self.storage.pipe_file(self._path(name), b"".join(parts))

    def create(self, name: str, content: bytes) -> bool:
        """See StoreFiles."""
        with self._errors(WRITE):
            self.storage.invalidate_cache(self.folder)
            if self.storage.exists(self._path(name)):
                return False
            self.storage.pipe_file(self._path(name), content)
            return True

    def remove(self, name: str) -> None:
        """See StoreFiles."""
        with self._errors(WRITE), suppress(FileNotFoundError):
            self.storage.rm_file(self._path(name))

    def local_path(self, name: str) -> Path | None:
        """See StoreFiles."""
        return None

    def remove_unfinished(self) -> None:
        """Object storage has no unfinished files."""
