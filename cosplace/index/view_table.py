"""What a calibration has encoded, in a table beside those of the index until it ends.

    <address>/views.lance    one row per batch of photos: a key, rows in the index, descriptors, a checksum

Lance does not survive all damage, so a folder also has checksums of its files (views.lance/checksums.json), and only
what this machine wrote is read.
A calibration that was stopped continues with it, see `cosplace.localization.stored_views`.
Legend: n photos, D dimension.  Side effects: reads and writes that table, as one that may write the index.
"""

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import CosPlaceError
from cosplace.index.disk import RECORD_BYTES, check_space
from cosplace.index.file_checksums import FILE_NAME, content_checksum, file_checksum, is_local, read_record_file
from cosplace.index.lance import connect, translated_errors
from cosplace.index.store import Store
from cosplace.index.trials import is_trusted, trust
from cosplace.storage import write_text

VIEWS = "views"
TRUSTED = "index_views"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """Photos of an index that were encoded together."""

    rows: np.ndarray  # (n,) int64
    descriptors: np.ndarray  # (n, D) float32, or (n, 5, D) of crops


def has_views(address: str) -> bool:
    """Whether an index has the table of a calibration that has not ended."""
    if is_local(address):
        return _folder(address).is_dir()
    with translated_errors(address):
        return VIEWS in connect(address).list_tables().tables


def read_views(store: Store, keys: Collection[str], shape: tuple[int, ...]) -> dict[str, EncodedBatch]:
    """The batches with some keys, without those that are damaged.  shape: of the descriptors of one photo."""
    if not has_views(store.address) or not _is_intact(store.address):
        return {}
    try:
        with translated_errors(store.address):
            table = store.database.open_table(VIEWS).to_arrow()
            table.validate(full=True)
    except CosPlaceError as error:  # then everything is encoded once more
        log.debug("%s: %s.lance cannot be read", store.address, VIEWS, exc_info=error)
        return {}
    if table.schema != _schema():
        return {}
    return {
        key: EncodedBatch(
            rows=np.frombuffer(rows, np.int64), descriptors=np.frombuffer(descriptors, np.float32).reshape(-1, *shape)
        )
        for key, rows, descriptors, checksum in zip(*(column.to_pylist() for column in table.columns), strict=True)
        if key in keys and checksum == _checksum(key, rows, descriptors)
    }


def append_views(store: Store, batches: Mapping[str, EncodedBatch], *, is_first: bool) -> None:
    """Add batches in one commit.  is_first: replace what the table holds."""
    import pyarrow as pa

    check_space(store.address, RECORD_BYTES)
    contents = [
        (key, batch.rows.tobytes(), batch.descriptors.astype(np.float32).tobytes()) for key, batch in batches.items()
    ]
    columns = zip(*((*content, _checksum(*content)) for content in contents), strict=True)
    if is_first and is_local(store.address):
        _remove_folder(_folder(store.address))
    with translated_errors(store.address):
        new = pa.table(list(map(list, columns)), schema=_schema())
        if is_first:
            store.database.create_table(VIEWS, new, mode="overwrite")
        else:
            store.database.open_table(VIEWS).add(new)
    if is_local(store.address):
        former, new = _read_text(store.address), json.dumps(_file_checksums(store.address))
        write_text(_folder(store.address) / FILE_NAME, new)
        trust(TRUSTED, _key(new), None if former is None else _key(former))


def _folder(address: str) -> Path:
    return Path(address) / f"{VIEWS}.lance"


def _file_checksums(address: str) -> dict[str, str]:
    """The checksum of each file of the table, by path."""
    files = (path for path in _folder(address).rglob("*") if path.is_file() and path.name != FILE_NAME)
    return {path.relative_to(_folder(address)).as_posix(): file_checksum(path) for path in files}


def _is_intact(address: str) -> bool:
    """Whether all files of the table are as this machine wrote them; object storage has no checksums to compare."""
    if not is_local(address):
        return True
    text = _read_text(address)
    try:
        return text is not None and is_trusted(TRUSTED, _key(text)) and json.loads(text) == _file_checksums(address)
    except (OSError, ValueError):
        return False


def _read_text(address: str) -> str | None:
    """The recorded checksums of the files; None if they cannot be read."""
    try:
        return read_record_file(_folder(address) / FILE_NAME).decode()
    except (OSError, ValueError):
        return None


def _key(text: str) -> str:
    return content_checksum(text.encode())


def remove_views(store: Store) -> None:
    """Remove the table, if there is one."""
    if has_views(store.address):
        if is_local(store.address):
            _remove_folder(_folder(store.address))
            return
        with translated_errors(store.address):
            store.database.drop_table(VIEWS, ignore_missing=True)


def _remove_folder(path: Path) -> None:
    """Remove what is in the place of the table, without Lance, which would read it."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _checksum(key: str, rows: bytes, descriptors: bytes) -> str:
    return content_checksum(key.encode() + rows + descriptors)


def _schema() -> Any:
    import pyarrow as pa

    text, data = pa.string(), pa.binary()
    return pa.schema([("key", text), ("rows", data), ("descriptors", data), ("checksum", text)])
