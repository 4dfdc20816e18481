"""Read the tables of an index: `python -m cosplace.index.table_trial ADDRESS` ends with 0 unless that ends the process.

Errors do not count: another process gets them, too, and reports them.  But failed assertions in Lance, which print much
more than a line, and any other end mean that no process should read this index.  `cosplace.index.tables` runs this in a
process of its own.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from cosplace.index.checked_files import table_bytes
from cosplace.index.file_checksums import TABLES
from cosplace.index.lance import connect, is_panic
from cosplace.index.photo_table import NARROW
from cosplace.index.trials import FAILED, FOREIGN, watch_memory
from cosplace.photos.parquet_files import arrow_compute

READ_ROWS = 8192  # in a batch, as `cosplace index verify` reads them
NUM_TAKEN = 16  # rows that are read one by one
SPARE_BYTES = 64 << 20  # of descriptors and texts that are equal, which take few bytes of a file
MAX_PATH_BYTES = 1 << 16  # those of the systems have a few thousand characters
MAX_RECORD_BYTES = 1 << 26


def main(address: str) -> int:
    """Read everything as other processes do; after an error, the rows behind it, too.  Returns the exit status."""
    watch_memory(table_bytes(address))
    most_rows = table_bytes(address, stored=False)
    database = connect(address)
    errors: list[BaseException] = []
    for name in TABLES:
        with _without_errors(errors):
            table = database.open_table(name)
            with _without_errors(errors):
                if not 0 <= table.count_rows() <= most_rows or _descriptor_bytes(table) > SPARE_BYTES + 4 * most_rows:
                    return FOREIGN
            if not _read(table, most_rows, MAX_PATH_BYTES if name == TABLES[0] else MAX_RECORD_BYTES, errors):
                return FOREIGN
    return FAILED if any(map(is_panic, errors)) else 0


def _descriptor_bytes(table: Any) -> int:
    """Bytes of all descriptors in memory; a file holds them as they are, unless many are equal."""
    if "descriptor" not in table.schema.names:
        return 0
    kind = table.schema.field("descriptor").type
    return int(table.count_rows() * kind.list_size * kind.value_type.bit_width // 8)


def _text_bytes(batch: pa.RecordBatch) -> tuple[int, int]:
    """Bytes of all texts and thumbnails of a batch, and of its longest text."""
    num_bytes = longest = 0
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_string(field.type) or pa.types.is_binary(field.type):
            lengths = arrow_compute().binary_length(column)
            num_bytes += arrow_compute().sum(lengths).as_py() or 0
            if pa.types.is_string(field.type):
                longest = max(longest, arrow_compute().max(lengths).as_py() or 0)
    return num_bytes, longest


def _read(table: Any, most_rows: int, most_text_bytes: int, errors: list[BaseException]) -> bool:
    """Read all rows, those of the columns that are held in memory, and some rows one by one.

    most_text_bytes: of one text.  errors: to which those that occur are added.  Returns False, and reads no further, if
    texts are longer, or all of them take much more memory than their files.
    """
    names, num_former = table.schema.names, len(errors)
    num_text_bytes = 0
    with _without_errors(errors):
        for batch in table.search().select(names).to_batches(READ_ROWS):
            num_bytes, longest = _text_bytes(batch)
            num_text_bytes += num_bytes
            if longest > most_text_bytes or num_text_bytes > SPARE_BYTES + 4 * most_rows:
                return False
    num_rows = most_rows
    with _without_errors(errors):
        num_rows = table.count_rows()
    for start in range(0, num_rows, READ_ROWS) if len(errors) > num_former else ():
        for name in names:
            with _without_errors(errors):
                table.search().select([name]).offset(start).limit(READ_ROWS).to_arrow()
    rows: list[int] = [0]
    with _without_errors(errors):
        narrow = [name for name in names if name in NARROW]
        rows = table.search().select(narrow).with_row_id(True).to_arrow()["_rowid"].to_pylist()
    with _without_errors(errors):
        table.take_row_ids(rows[:: max(1, len(rows) // NUM_TAKEN)]).to_arrow()
    return True


@contextmanager
def _without_errors(found: list[BaseException]) -> Generator[None]:
    """Within: errors are only noted; failed assertions in Lance are not an Exception."""
    try:
        yield
    except BaseException as error:
        found.append(error)


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))  # threads of Lance may end a process that ends as usual
