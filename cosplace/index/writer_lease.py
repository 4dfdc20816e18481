"""The right to write an index on object storage: one process at a time, without a server that grants it.

A small table, `<address>/writer.lance`, has one row: who writes, and a counter that the writer increases every
`RENEW_S` seconds.  All changes of the row are conditional commits of Lance: a change applies only if the row is still
as expected, and of two changes at the same time the store accepts one (conditional writes, `If-None-Match: *`).

A process that finds another writer in the row watches the counter.  If it increases, the other writer is alive.  If it
does not for `EXPIRE_S` seconds, the process takes over.  No clocks are compared.  A former writer may still be there,
only slow; so whoever takes over restores the newest version of each table as a new version.  Lance refuses every
commit that was prepared before a restore, so the former writer can no longer store anything, and nothing is lost.

Side effects: reads and writes the table, and has a thread that renews the row.
"""

import logging
import os
import socket
import threading
import time
import uuid
from datetime import timedelta
from typing import Any

from cosplace.errors import CosPlaceError, IndexInUseError
from cosplace.index.conditional_writes import check_conditional_writes
from cosplace.index.lance import connect, translated_errors

TABLE = "writer"
RENEW_S = 10.0
EXPIRE_S = 45.0  # more than four renewals
WATCH_S = 1.0  # between two looks at another writer
NOBODY = ""
CLEAN_AFTER = 100  # renewals, each of which is a version of the table
KEEP_VERSIONS = timedelta(minutes=10)

log = logging.getLogger(__name__)


class WriterLease:
    """The right to write an index on object storage; it expires if its process ends or cannot reach the store."""

    def __init__(self, address: str, tables: tuple[str, ...]) -> None:
        """Take the right.  tables: those that it protects.

        Raises IndexInUseError if another writer is alive, and ConfigError if the store has no conditional writes.
        """
        self.address, self._tables = address, tables
        self._id, self._count = uuid.uuid4().hex, 0
        self._successor: str | None = None  # who has taken over
        self._changing, self._ended = threading.Lock(), threading.Event()
        self._table = _open_table(address)
        self._take()
        self._thread = threading.Thread(target=self._renew_until_released, name="cosplace-lease", daemon=True)
        self._thread.start()

    @property
    def is_held(self) -> bool:
        """Whether this is the only writer."""
        return not self._ended.is_set()

    @property
    def is_lost(self) -> bool:
        """Whether another writer has taken over."""
        return self._successor is not None

    def confirm(self) -> None:
        """Check that this process still has the right.  Raises IndexInUseError.

        To call after each time that the newest version was read: without it, a writer that was replaced could read a
        version after the one that excludes it, and continue from there.
        """
        with self._changing:
            self._count += 1
            if self._successor is None and self._set(f"id = '{self._id}'", {"count": self._count}):
                return
            self._successor = self._successor or self._row()[1]
        self._ended.set()
        raise IndexInUseError(
            f"{self.address} was taken over by another writer ({self._successor}), because this one did not respond. "
            "Photos stored before are kept. Run the command again."
        )

    def release(self) -> None:
        """Allow other writers."""
        if self._ended.is_set():
            return
        self._ended.set()
        try:
            with self._changing:
                self._set(f"id = '{self._id}'", {"id": NOBODY})
        except CosPlaceError as error:  # it expires
            log.debug("the right to write was not returned", exc_info=error)

    # --- the row -----------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        known, since = None, time.monotonic()
        while True:
            holder, owner, count = self._row()
            if holder == self._id:  # taken by a change whose answer was lost
                return
            if holder == NOBODY:
                if self._become(NOBODY, count):
                    return
                continue
            if known is not None and known[0] == holder and known != (holder, count):
                raise IndexInUseError(
                    f"{self.address} is in use by another writer ({owner}). Wait until it ends, or stop it."
                )
            if known is None or known[0] != holder:
                known, since = (holder, count), time.monotonic()
                log.debug("%s: waiting for a sign of life of the writer %s", self.address, owner)
            if time.monotonic() - since > EXPIRE_S:
                if self._become(holder, count):
                    log.info("%s: the last writer (%s) did not end regularly; taking over", self.address, owner)
                    self._exclude_former_writer()
                    return
                continue
            time.sleep(WATCH_S)

    def _become(self, holder: str, count: int) -> bool:
        """Replace a holder in the row, unless it has changed; returns whether that was done."""
        owner = f"{socket.gethostname()}, pid {os.getpid()}".replace("'", "")
        values = {"id": self._id, "owner": owner, "count": 0}
        return self._set(f"id = '{holder}' AND count = {count}", values)

    def _set(self, condition: str, values: dict[str, Any]) -> bool:
        with translated_errors(self.address):
            return self._table.update(where=condition, values=values).rows_updated == 1

    def _row(self) -> tuple[str, str, int]:
        with translated_errors(self.address):
            self._table.checkout_latest()
            (row,) = self._table.to_arrow().to_pylist()
        return str(row["id"]), str(row["owner"]), int(row["count"])

    def _exclude_former_writer(self) -> None:
        with translated_errors(self.address):
            database = connect(self.address)
            for name in set(self._tables) & set(database.list_tables().tables):
                self.confirm()
                exclude_earlier_writers(database.open_table(name))

    def _renew_until_released(self) -> None:
        num_renewals = 0
        while not self._ended.wait(RENEW_S):
            try:
                self.confirm()
                num_renewals += 1
                if num_renewals % CLEAN_AFTER == 0:
                    with self._changing, translated_errors(self.address):
                        self._table.optimize(cleanup_older_than=KEEP_VERSIONS)
            except IndexInUseError as error:
                log.warning("%s", error)
                return
            except CosPlaceError as error:  # the next renewal may succeed
                log.debug("the right to write was not renewed", exc_info=error)


def exclude_earlier_writers(table: Any) -> None:
    """Make all commits fail that were prepared for an earlier version of a table.

    A commit that comes between reading the newest version and restoring it would be undone; then it is restored, too.
    """
    table.checkout_latest()
    newest = table.version
    table.restore(newest)
    if table.version != newest + 1:  # from here on, nobody else can commit
        table.restore(table.version - 1)


def _open_table(address: str) -> Any:
    """The table of the one row, created if it is missing."""
    import pyarrow as pa

    with translated_errors(address):
        database = connect(address)
        if TABLE not in database.list_tables().tables:
            check_conditional_writes(address)
            rows = pa.table({"id": [NOBODY], "owner": [""], "count": pa.array([0], pa.int64())})
            return database.create_table(TABLE, rows, mode="create", exist_ok=True)
        return database.open_table(TABLE)
