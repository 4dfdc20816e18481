"""Tables in Parquet files, read within limits: some kilobytes may stand for many gigabytes of texts and numbers.

Side effects: reads files.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_VALUES, VALUES_PER_BYTE = 2_000_000, 32  # in a file of 0 bytes, and how many more for each byte that it has
MAX_TEXT_BYTES, TEXT_BYTES_PER_BYTE = 1 << 28, 100


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """An open Parquet file, whose texts are read as dictionaries, so that one that is repeated takes no memory."""

    file: "pq.ParquetFile"
    schema: "pa.Schema"  # of the tables that are returned
    num_bytes: int

    def groups(self, columns: Sequence[str] | None = None) -> Iterator["pa.Table"]:
        """The row groups, each as a table.  columns: their names; None: all columns.

        Raises pyarrow.ArrowException if the file is damaged, or holds far more than its size suggests.
        """
        import pyarrow as pa

        num_text_bytes = 0
        for number in range(self.file.num_row_groups):
            coded = self.file.read_row_group(number, columns=columns)
            if len(coded) != self.file.metadata.row_group(number).num_rows:
                raise pa.ArrowInvalid("the number of rows is not the one that it states")
            num_text_bytes += sum(_text_bytes(chunk) for column in coded.columns for chunk in column.chunks)
            self._check(num_text_bytes, MAX_TEXT_BYTES + TEXT_BYTES_PER_BYTE * self.num_bytes, "bytes of texts")
            for place, field in enumerate(self._fields(coded.column_names)):
                coded = coded.set_column(place, field, coded.column(place).cast(field.type))
            yield coded.replace_schema_metadata(self.schema.metadata)

    def read(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """All rows as a table; as `groups`."""
        import pyarrow as pa

        groups = list(self.groups(columns))
        if groups:
            return pa.concat_tables(groups)
        kept = self._fields(self.schema.names if columns is None else columns)
        return pa.schema(kept, self.schema.metadata).empty_table()

    def check_values(self) -> None:
        """Raise pyarrow.ArrowInvalid if the file states far more values or bytes than its size suggests."""
        metadata = self.file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        num_values = sum(max(chunk.num_values, 0) for chunk in chunks)
        self._check(num_values, MAX_VALUES + VALUES_PER_BYTE * self.num_bytes, "values")
        num_stored = sum(max(chunk.total_uncompressed_size, 0) for chunk in chunks)
        self._check(num_stored, MAX_TEXT_BYTES + TEXT_BYTES_PER_BYTE * self.num_bytes, "bytes, uncompressed")

    def _check(self, number: int, limit: int, unit: str) -> None:
        import pyarrow as pa

        if number > limit:
            raise pa.ArrowInvalid(f"{self.num_bytes} bytes with {number} {unit}, at most {limit} are read")

    def _fields(self, names: Sequence[str]) -> "list[pa.Field]":
        """The fields of columns, in this order; several may have the same name."""
        fields: dict[str, list[pa.Field]] = {}
        for field in self.schema:
            fields.setdefault(field.name, []).append(field)
        return [fields[name].pop(0) for name in names]


@contextmanager
def open_parquet(source: Path | BinaryIO) -> Generator[ParquetTable]:
    """Open a Parquet file.  source: its path, or the file, which has to be seekable.

    Raises OSError, or pyarrow.ArrowException for another kind of file.
    """
    import pyarrow.parquet as pq

    if isinstance(source, Path):
        with source.open("rb") as raw, open_parquet(raw) as table:  # Arrow itself opens no path that is not UTF-8
            yield table
        return
    num_bytes = source.seek(0, os.SEEK_END)
    source.seek(0)
    with pq.ParquetFile(source) as plain:
        leaves = [plain.schema.column(number) for number in range(len(plain.schema.names))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        coded = pq.ParquetFile(source, metadata=plain.metadata, read_dictionary=texts)
        table = ParquetTable(coded, plain.schema_arrow, num_bytes)
        table.check_values()
        yield table


def arrow_compute() -> Any:
    """The module pyarrow.compute; it creates its functions when it is imported, so type checkers know none of them."""
    import pyarrow.compute

    return pyarrow.compute


def _text_bytes(array: Any) -> int:
    """Bytes of the texts of an array (pyarrow) that has them as dictionaries, if each is stored where it occurs."""
    import pyarrow as pa

    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = arrow_compute().binary_length(array.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
        places = array.indices.drop_null().to_numpy(zero_copy_only=False)
        return int(np.bincount(places, minlength=len(lengths)) @ lengths.astype(np.int64)) if len(places) else 0
    if pa.types.is_struct(kind):
        return sum(map(_text_bytes, array.flatten()))
    if pa.types.is_map(kind):
        return _text_bytes(array.keys) + _text_bytes(array.items)
    if pa.types.is_nested(kind):
        return _text_bytes(array.flatten())
    return 0
