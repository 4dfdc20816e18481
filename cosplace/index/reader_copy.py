"""A copy of a small index in one file, which readers open without Lance: its Python package takes a second to import.

    <address>/reader-<version of photos>-<version of records>.safetensors

A writer removes it when it opens the index, and makes it when it closes the index.  The name says which versions of the
tables it is a copy of, so a copy of other versions is never read, and its checksum is recorded like those of other
files (`cosplace.index.file_checksums`).  Thumbnails are not in it.  Legend: I photos, D dimension.
Side effects: reads and writes that file.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.index.file_checksums import CheckedFiles, is_local, newest_version, reader_copy_name
from cosplace.index.records import Columns
from cosplace.storage import write_atomically

MAX_COPY_BYTES = 64_000_000  # of descriptors: 31,000 photos with 512 float32 numbers
TABLES = ("photos", "records")
NUMBERS = ("ids", "latitudes", "longitudes", "headings", "times", "accuracies_m", "row_ids", "roots")
FORMAT = "1"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderCopy:
    """Everything about an index but its thumbnails and keys."""

    versions: dict[str, int]  # of the tables
    columns: Columns  # by ascending id, as stored
    descriptors: np.ndarray  # (I, D) as stored
    records: dict[str, str]  # key -> JSON


def find_reader_copy(files: CheckedFiles) -> ReaderCopy | None:
    """The copy of the newest versions of an index; None if there is none that is intact.

    files: their checksums have been read.  Raises DamagedIndexError if the newest version of a table is missing.
    """
    if not is_local(files.address):
        return None
    versions = {table: newest_version(files.address, table) for table in TABLES}
    newest = {table: version for table, version in versions.items() if version is not None}
    if len(newest) < len(TABLES):
        return None
    files.check_versions(newest)
    name = reader_copy_name(newest)
    raw = files.read_intact(name)
    if raw is None:
        return None
    try:
        return _parse(raw, newest)
    except (ValueError, KeyError, TypeError, OSError) as error:  # its checksum is right: of another version of cosplace
        log.debug("%s/%s is not used: %s", files.address, name, error)
        return None


def write_reader_copy(address: str, copy: ReaderCopy) -> None:
    """Write the copy; afterwards, the checksums must be recorded."""
    import pyarrow as pa
    from safetensors.numpy import save

    columns = copy.columns
    texts = pa.array(columns.texts.to_pylist(), pa.large_string())
    _, offsets, characters = texts.buffers()
    checks = np.full(len(columns), -1, np.int64) if columns.path_checks is None else columns.path_checks
    tensors = {name: np.ascontiguousarray(getattr(columns, name)) for name in NUMBERS} | {
        "path_checks": checks,
        "path_offsets": np.frombuffer(offsets or bytes(8), np.int64)[: len(columns) + 1],
        "path_characters": np.frombuffer(characters or b"", np.uint8),
        "descriptors": np.ascontiguousarray(copy.descriptors),
    }
    content = save(tensors, {"format": FORMAT, "records": json.dumps(copy.records)})
    path = Path(address) / reader_copy_name(copy.versions)
    write_atomically(path, lambda file: file.write(content))


def reader_copies(address: str) -> list[Path]:
    """The copies of a local index, of any versions."""
    return list(Path(address).glob(reader_copy_name(dict.fromkeys(TABLES, "*"))))


def remove_reader_copies(address: str) -> None:
    """Remove the copies of a local index."""
    for path in reader_copies(address):
        path.unlink(missing_ok=True)


def _parse(raw: bytes, versions: dict[str, int]) -> ReaderCopy:
    import pyarrow as pa
    from safetensors.numpy import load

    length = int.from_bytes(raw[:8], "little")
    metadata: Mapping[str, str] = json.loads(raw[8 : 8 + length])["__metadata__"]
    if metadata["format"] != FORMAT:
        raise ValueError(f"format {metadata['format']}")
    tensors = load(raw)
    offsets, characters = (pa.py_buffer(tensors[name]) for name in ("path_offsets", "path_characters"))
    texts = pa.LargeStringArray.from_buffers(len(tensors["ids"]), offsets, characters)
    numbers: dict[str, Any] = {name: tensors[name] for name in NUMBERS}
    columns = Columns(**numbers, texts=texts, path_checks=tensors["path_checks"])
    return ReaderCopy(
        versions=versions,
        columns=columns,
        descriptors=tensors["descriptors"],
        records=json.loads(metadata["records"]),
    )
