"""Read the tables of an index: `python -m cosplace.index.table_trial ADDRESS` ends with 0 unless that ends the process.

Errors do not count: another process gets them, too, and reports them.  Any other end means that no process should read
this index.  `cosplace.index.tables` runs this in a process of its own.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from cosplace.index.file_checksums import TABLES
from cosplace.index.lance import connect
from cosplace.index.trials import FOREIGN_INDEX, watch_memory

ROWS = 1024  # in a batch
INDEXED = {"photos": ["descriptor"], "records": None}  # columns with a search index
NUM_TAKEN = 16  # rows that are read one by one


def main(address: str) -> int:
    """Read everything, one column at a time, in batches; after an error, the rows behind it, too.

    Returns the exit status.
    """
    watch_memory()
    database = connect(address)
    for name in TABLES:
        with _without_errors([]):
            table = database.open_table(name)
            if any(index.columns != INDEXED[name] for index in table.list_indices()):
                return FOREIGN_INDEX  # it would be read by any condition on its column
            for column in table.schema.names:
                _read(table, column)
            rows = table.search().select([]).with_row_id(True).to_arrow()["_rowid"].to_pylist()
            table.take_row_ids(rows[:: max(1, len(rows) // NUM_TAKEN)]).to_arrow()
    return 0


def _read(table: Any, column: str) -> None:
    """Read a column; if that fails, read it once more, each batch by itself."""
    errors: list[BaseException] = []
    with _without_errors(errors):
        for _ in table.search().select([column]).to_batches(ROWS):
            pass
    for start in range(0, table.count_rows(), ROWS) if errors else ():
        with _without_errors(errors):
            table.search().select([column]).offset(start).limit(ROWS).to_arrow()


@contextmanager
def _without_errors(found: list[BaseException]) -> Generator[None]:
    """Within: errors are only noted; failed assertions in Lance are not an Exception."""
    try:
        yield
    except BaseException as error:
        found.append(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
