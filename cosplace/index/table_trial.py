"""Read the tables of an index: `python -m cosplace.index.table_trial ADDRESS` ends with 0 unless that ends the process.

Errors do not count: another process gets them, too, and reports them.  Any other end means that no process should read
this index.  `cosplace.index.tables` runs this in a process of its own.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from cosplace.index.checked_files import table_bytes
from cosplace.index.file_checksums import TABLES
from cosplace.index.lance import connect
from cosplace.index.photo_table import NARROW
from cosplace.index.trials import FOREIGN, watch_memory

READ_ROWS = 8192  # in a batch, as `cosplace index verify` reads them
NUM_TAKEN = 16  # rows that are read one by one
SPARE_BYTES = 64 << 20  # of descriptors that are equal, which take few bytes of a file


def main(address: str) -> int:
    """Read everything as other processes do; after an error, the rows behind it, too.  Returns the exit status."""
    watch_memory(table_bytes(address))
    most_rows = table_bytes(address, stored=False)
    database = connect(address)
    for name in TABLES:
        with _without_errors([]):
            table = database.open_table(name)
            with _without_errors([]):
                if not 0 <= table.count_rows() <= most_rows or _descriptor_bytes(table) > SPARE_BYTES + 4 * most_rows:
                    return FOREIGN
            _read(table, most_rows)
    return 0


def _descriptor_bytes(table: Any) -> int:
    """Bytes of all descriptors in memory; a file holds them as they are, unless many are equal."""
    if "descriptor" not in table.schema.names:
        return 0
    kind = table.schema.field("descriptor").type
    return int(table.count_rows() * kind.list_size * kind.value_type.bit_width // 8)


def _read(table: Any, most_rows: int) -> None:
    """Read all rows, those of the columns that are held in memory, and some rows one by one."""
    errors: list[BaseException] = []
    names = table.schema.names
    with _without_errors(errors):
        for _ in table.search().select(names).to_batches(READ_ROWS):
            pass
    num_rows = most_rows
    with _without_errors(errors):
        num_rows = table.count_rows()
    for start in range(0, num_rows, READ_ROWS) if errors else ():
        for name in names:
            with _without_errors(errors):
                table.search().select([name]).offset(start).limit(READ_ROWS).to_arrow()
    rows: list[int] = [0]
    with _without_errors(errors):
        narrow = [name for name in names if name in NARROW]
        rows = table.search().select(narrow).with_row_id(True).to_arrow()["_rowid"].to_pylist()
    with _without_errors(errors):
        table.take_row_ids(rows[:: max(1, len(rows) // NUM_TAKEN)]).to_arrow()


@contextmanager
def _without_errors(found: list[BaseException]) -> Generator[None]:
    """Within: errors are only noted; failed assertions in Lance are not an Exception."""
    try:
        yield
    except BaseException as error:
        found.append(error)


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))  # threads of Lance may end a process that ends as usual
