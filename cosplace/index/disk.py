"""The disk of a local index: the space that it takes, and that the next photos need."""

import shutil
from pathlib import Path

from cosplace.errors import StorageError
from cosplace.index.file_checksums import FILE_NAME, TABLES, is_local
from cosplace.index.reader_copy import reader_copies

SPARE_BYTES = 64_000_000  # kept free, for manifests of Lance
RECORD_BYTES = 2_000_000  # enough for a record: photos can be removed from a disk that is nearly full


def index_bytes(address: str) -> int | None:
    """Bytes of the tables, their search index and copy; None on object storage.

    Other files are not counted: the folder may be that of the photos.
    """
    if not is_local(address):
        return None
    folder = Path(address)
    own = [folder / FILE_NAME, *reader_copies(address)]
    own += [path for table in TABLES for path in (folder / f"{table}.lance").rglob("*")]
    return sum(path.stat().st_size for path in own if path.is_file())


def check_space(address: str, num_bytes: int = SPARE_BYTES) -> None:
    """Raise StorageError if there is not enough space for some bytes."""
    if not is_local(address):
        return
    free = shutil.disk_usage(address).free
    if free < num_bytes:
        raise StorageError(
            f"{address} needs {num_bytes / 1e6:.0f} MB to be written, but only {free / 1e6:.0f} MB are free. Free some "
            "space and run the command again; all photos so far are kept."
        )
