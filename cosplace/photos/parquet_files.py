"""Parquet files within limits: some kilobytes may stand for many gigabytes of numbers and texts.

Side effects: reads files.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MAX_VALUES, VALUES_PER_BYTE = 64_000_000, 32  # in a file of 0 bytes, and how many more for each byte that it has
MAX_BYTES, BYTES_PER_BYTE = 512 << 20, 100  # of values that are read
TEXTS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")  # not all before Arrow 16
MAX_DEPTH = 32  # of lists and structs in each other
MAX_ROWS = 1 << 16  # that are read at once
MAX_CHECKED_BYTES = 256 << 20  # of a file whose texts are read twice, which takes a second per million photos


@contextmanager
def open_parquet(source: Path | BinaryIO) -> Generator["pq.ParquetFile"]:
    """Open a Parquet file.  source: its path, or the file, which has to be seekable.

    Raises OSError, or pyarrow.ArrowException for another kind of file, and for one that holds far more than its size
    suggests; sizes that it states are believed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(source, Path):
        with source.open("rb") as raw, open_parquet(raw) as file:  # Arrow itself opens no path that is not UTF-8
            yield file
        return
    num_bytes = source.seek(0, os.SEEK_END)
    source.seek(0)
    try:
        file = pq.ParquetFile(source)
        _check_stated(file, num_bytes)
        if num_bytes <= MAX_CHECKED_BYTES:
            _check_texts(file, source, num_bytes)
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid("a name of a column is not UTF-8") from error
    with file:
        yield file


def arrow_compute() -> Any:
    """The module pyarrow.compute; it creates its functions when it is imported, so type checkers know none of them."""
    import pyarrow.compute

    return pyarrow.compute


def _check_stated(file: "pq.ParquetFile", num_bytes: int) -> None:
    """Raise pyarrow.ArrowInvalid if a file states far more values or bytes than its size suggests."""
    import pyarrow as pa

    metadata = file.metadata
    leaves = [file.schema.column(number) for number in range(metadata.num_columns)]
    num_values = num_stored = num_fixed = 0
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        if group.num_columns != metadata.num_columns:
            raise pa.ArrowInvalid(f"a part of it has {group.num_columns} columns instead of {metadata.num_columns}")
        for leaf, chunk in zip(leaves, map(group.column, range(group.num_columns)), strict=True):
            count = max(chunk.num_values, 0)
            num_values += count
            num_stored += max(chunk.total_uncompressed_size, 0)
            num_fixed += count * leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
    num_fixed += max(metadata.num_rows, 0) * sum(_fixed_bytes(field.type) for field in file.schema_arrow)
    _check(num_values, MAX_VALUES + VALUES_PER_BYTE * num_bytes, "values", num_bytes)
    _check(num_stored, MAX_BYTES + BYTES_PER_BYTE * num_bytes, "uncompressed bytes", num_bytes)
    _check(num_fixed, MAX_BYTES + BYTES_PER_BYTE * num_bytes, "bytes of a fixed size", num_bytes)


def _check_texts(file: "pq.ParquetFile", source: BinaryIO, num_bytes: int) -> None:
    """Raise pyarrow.ArrowInvalid if texts that occur again and again take far more bytes than the file has.

    They are read as dictionaries, in which a text that is repeated takes no memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_text_bytes = 0
    for number in range(file.metadata.num_columns):
        leaf = file.schema.column(number)
        if leaf.physical_type != "BYTE_ARRAY":
            continue
        coded = pq.ParquetFile(source, metadata=file.metadata, read_dictionary=[leaf.path])
        with suppress(pa.ArrowNotImplementedError, OSError):  # reported if this column is read
            for part in _parts(file, coded, number, leaf.path):
                num_text_bytes += _text_bytes(part)
                _check(num_text_bytes, MAX_BYTES + BYTES_PER_BYTE * num_bytes, "bytes of texts", num_bytes)


def _parts(file: "pq.ParquetFile", coded: "pq.ParquetFile", number: int, path: str) -> Iterator[Any]:
    """A column of texts in parts (pyarrow).  coded: the same file, with the texts of this column in dictionaries."""
    import pyarrow as pa

    for group in range(file.num_row_groups):
        try:
            columns = coded.read_row_group(group, columns=[path]).columns
        except (pa.ArrowNotImplementedError, OSError):  # an encoding of which no dictionary can be made
            # Of so few rows that they fit into memory, even if each text begins with the one before.
            num_stored = max(1, file.metadata.row_group(group).column(number).total_uncompressed_size)
            num_rows = min(MAX_ROWS, max(1, MAX_BYTES // num_stored))
            for batch in file.iter_batches(num_rows, row_groups=[group], columns=[path]):
                yield from batch.columns
        else:
            for column in columns:
                yield from column.chunks


def _check(number: int, limit: int, unit: str, num_bytes: int) -> None:
    import pyarrow as pa

    if number > limit:
        raise pa.ArrowInvalid(f"{num_bytes} bytes with {number} {unit}, at most {limit} are read")


def _fixed_bytes(kind: Any, depth: int = 0) -> int:
    """Bytes of the lists of a fixed size in a value of this type (pyarrow).  Raises ArrowInvalid for a deep one."""
    import pyarrow as pa

    if depth > MAX_DEPTH:
        raise pa.ArrowInvalid(f"a column has more than {MAX_DEPTH} levels")
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * max(_fixed_bytes(kind.value_type, depth + 1), 8)
    return sum(_fixed_bytes(kind.field(number).type, depth + 1) for number in range(kind.num_fields))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(getattr(pa.types, f"is_{name}", lambda _: False)(kind) for name in TEXTS)


def _text_bytes(array: Any) -> int:
    """Bytes of the texts of an array (pyarrow), each counted where it occurs, also if they are in a dictionary."""
    import pyarrow as pa

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _text_bytes(array.storage)
    if _is_text(kind):
        lengths = arrow_compute().binary_length(array.cast(pa.large_binary()))
        return int(arrow_compute().sum(lengths).as_py() or 0)
    if pa.types.is_dictionary(kind):
        lengths = arrow_compute().binary_length(array.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
        places = array.indices.drop_null().to_numpy(zero_copy_only=False)
        return int(np.bincount(places, minlength=len(lengths)) @ lengths.astype(np.int64)) if len(places) else 0
    return sum(map(_text_bytes, _children(array)))


def _children(array: Any) -> Iterator[Any]:
    """The arrays that a nested array (pyarrow) is made of."""
    import pyarrow as pa

    if pa.types.is_struct(array.type):
        yield from array.flatten()
    elif pa.types.is_map(array.type):
        yield from (array.keys, array.items)
    elif pa.types.is_nested(array.type):
        yield array.flatten()
