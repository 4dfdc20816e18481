"""A copy of a small index in one file, which readers open without Lance: its Python package takes a second to import.

    <address>/reader-<version of photos>-<version of records>.safetensors

A writer removes it when it opens the index, and makes it when it closes the index.  The name says which versions of the
tables it is a copy of, so a copy of other versions is never read, and its checksum is recorded like those of other
files (`cosplace.index.file_checksums`).  Thumbnails are not in it.

Whoever can write an index can also write its checksums, so everything in the copy is checked before it is used: wrong
offsets of texts would be read outside of them.  Legend: I photos, D dimension.
Side effects: reads and writes that file.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import DamagedIndexError
from cosplace.index.checked_files import CheckedFiles
from cosplace.index.checksums import NUMBER_COLUMNS, numbers_checks
from cosplace.index.file_checksums import (
    TABLES,
    newest_versions,
    reader_copy_name,
    warn_not_used,
)
from cosplace.index.identity import SPEC
from cosplace.index.lance import OutdatedError
from cosplace.index.photo_table import are_descriptors, wrong_numbers
from cosplace.index.record_checks import parse_record
from cosplace.index.records import Columns
from cosplace.shapes import MAX_COUNT
from cosplace.storage import write_atomically

MAX_COPY_BYTES = 64_000_000  # of descriptors: 31,000 photos with 512 float32 numbers
MAX_HEADER_BYTES = 1 << 25  # with the records
NUMBERS = ("latitudes", "longitudes", "headings", "times", "accuracies_m", "roots")  # in the order of NUMBER_COLUMNS
DTYPES = dict(zip(NUMBERS, NUMBER_COLUMNS.values(), strict=True)) | {
    "ids": np.int64,
    "row_ids": np.uint64,
    "path_checks": np.int64,
    "numbers_checks": np.uint32,  # see `cosplace.index.checksums`
}
OTHERS = ("path_offsets", "path_characters", "descriptors")
FORMAT = "2"  # 1: without numbers_checks
ERRORS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError)  # of a damaged copy

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
    newest = newest_versions(files.address)
    if len(newest) < len(TABLES):
        return None
    files.check_versions(newest)
    name = reader_copy_name(newest)
    raw = files.read_intact(name)
    if raw is None:
        return None
    try:
        return parse_reader_copy(raw, newest)
    except DamagedIndexError as error:
        log.debug("%s/%s: %s", files.address, name, error)
        warn_not_used(files.address, name)
        return None


def write_reader_copy(address: str, copy: ReaderCopy) -> None:
    """Write the copy; afterwards, the checksums must be recorded."""
    from safetensors.numpy import save

    tensors = _tensors(copy)
    try:
        _check(tensors, copy.records)
    except ERRORS as error:  # such as a longitude of 200 degrees, stored by an earlier version
        log.debug("%s: no copy for readers: %s", address, error)
        return
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


def check_ids(address: str, copy: ReaderCopy, stored: np.ndarray) -> None:
    """Raise OutdatedError unless a copy has the photos of the table, whose ids (n,) are `stored`, in any order."""
    if not np.array_equal(np.sort(stored), copy.columns.ids):
        warn_not_used(address, reader_copy_name(copy.versions))
        raise OutdatedError(f"The copy for readers of {address} is damaged. Read the index again.")


def is_same(copy: ReaderCopy, other: ReaderCopy) -> bool:
    """Whether two copies have the same content."""
    first, second = _tensors(copy), _tensors(other)
    return copy.records == other.records and all(
        np.array_equal(values, second[name], equal_nan=values.dtype.kind == "f") for name, values in first.items()
    )


def parse_reader_copy(raw: bytes, versions: dict[str, int]) -> ReaderCopy | None:
    """The copy in the content of a file; None if another version of cosplace wrote it.  Raises DamagedIndexError."""
    import pyarrow as pa
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        length = int.from_bytes(raw[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError("header")
        metadata: Mapping[str, str] = json.loads(raw[8 : 8 + length])["__metadata__"]
        if metadata["format"] != FORMAT:
            return None
        tensors, records = load(raw), json.loads(metadata["records"])
        _check(tensors, records)
        offsets, characters = (pa.py_buffer(tensors[name]) for name in ("path_offsets", "path_characters"))
        texts = pa.LargeStringArray.from_buffers(len(tensors["ids"]), offsets, characters)
        texts.validate(full=True)  # that they are UTF-8
    except (*ERRORS, SafetensorError) as error:
        raise DamagedIndexError(f"The copy for readers cannot be read ({error}).") from error
    numbers: dict[str, Any] = {name: tensors[name] for name in ("ids", *NUMBERS, "row_ids", "path_checks")}
    columns = Columns(**numbers, texts=texts)
    return ReaderCopy(versions=versions, columns=columns, descriptors=tensors["descriptors"], records=records)


def _tensors(copy: ReaderCopy) -> dict[str, np.ndarray]:
    """What the file of a copy holds, but its records."""
    import pyarrow as pa

    columns = copy.columns
    texts = pa.array(columns.texts.to_pylist(), pa.large_string())
    _, buffer, characters = texts.buffers()
    offsets = np.frombuffer(buffer or bytes(8), np.int64)[: len(columns) + 1]
    checks = np.full(len(columns), -1, np.int64) if columns.path_checks is None else columns.path_checks
    return {name: np.ascontiguousarray(getattr(columns, name)) for name in ("ids", *NUMBERS, "row_ids")} | {
        "path_checks": checks,
        "numbers_checks": _numbers_checks({name: getattr(columns, name) for name in ("ids", *NUMBERS)}),
        "path_offsets": offsets,
        "path_characters": np.frombuffer(characters or b"", np.uint8)[: offsets[-1]],
        "descriptors": np.ascontiguousarray(copy.descriptors),
    }


def _numbers_checks(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Checksums (I,) of the numbers of the photos."""
    columns = {column: tensors[name] for column, name in zip(NUMBER_COLUMNS, NUMBERS, strict=True)}
    return numbers_checks(tensors["ids"], columns)


def _check(tensors: Mapping[str, np.ndarray], records: Mapping[str, str]) -> None:
    """Raise one of ERRORS unless the arrays and records of a copy are what a writer stores."""
    if any(parse_record(key, text) is None for key, text in records.items()):
        raise ValueError("records")
    spec = json.loads(records[SPEC])
    if set(tensors) != {*DTYPES, *OTHERS} or spec["settings"]["stored_dtype"] not in ("float32", "float16"):
        raise ValueError("names or settings")
    count = tensors["ids"].size
    shapes = {name: ((count,), dtype) for name, dtype in DTYPES.items()} | {
        "path_offsets": ((count + 1,), np.int64),
        "path_characters": ((tensors["path_characters"].size,), np.uint8),
        "descriptors": ((count, spec["model"]["dimension"]), spec["settings"]["stored_dtype"]),
    }
    if tensors["descriptors"].nbytes > MAX_COPY_BYTES:
        raise ValueError("too many descriptors")
    for name, (shape, dtype) in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            raise ValueError(f"{name} {tensors[name].dtype} {tensors[name].shape}")
    ids, offsets, characters = (tensors[name] for name in ("ids", "path_offsets", "path_characters"))
    columns = {column: tensors[name] for column, name in zip(NUMBER_COLUMNS, NUMBERS, strict=True)}
    is_valid = {
        "ids": bool((ids[1:] > ids[:-1]).all()) and ids.min(initial=0) >= 0 and ids.max(initial=0) <= MAX_COUNT,
        "offsets": offsets[0] == 0 and offsets[-1] == characters.size and bool((offsets[1:] >= offsets[:-1]).all()),
        "characters": bool(characters.all()),  # no name of a file has a zero
        "numbers": wrong_numbers(columns) is None,
        "numbers_checks": np.array_equal(tensors["numbers_checks"], _numbers_checks(tensors)),
        "descriptors": are_descriptors(tensors["descriptors"]),
    }
    if wrong := [name for name, holds in is_valid.items() if not holds]:
        raise ValueError(wrong[0])
