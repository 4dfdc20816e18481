"""The table of a dataset while photos are added to it: no photo twice, every state on disk valid.

A photo is known by its path, its content, its position and its heading.  Rows are in a temporary database of SQLite,
which keeps some megabytes in memory, and the rest in a file in the folder for temporary files, without a name.  In
memory are 16 bytes for each photo: hashes, which tell which photos are new, because each query of the database stops
the threads that read photos.  Side effects: reads and writes photos.parquet.
"""

import math
import os
import sqlite3
import tempfile
import weakref
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosplace.errors import DatasetError, StorageError, one_line
from cosplace.geo import geodesic_distances_m
from cosplace.importing.positions import is_known
from cosplace.importing.report import REPORT_NAME
from cosplace.photos.metadata import SAME_HEADING_DEG, SAME_POSITION_M
from cosplace.photos.paths import path_text, printable
from cosplace.photos.tables import (
    COLUMNS,
    INTEGERS,
    TABLE_NAME,
    TEXTS,
    UNKNOWN,
    PhotoRecord,
    from_table,
    known_time,
    read_blocks,
    schema,
    stored_path,
    table_of_columns,
    write_sorted,
)
from cosplace.storage import lock_file, storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_BLOCK, ROWS_PER_GROUP = 1024, 16_384  # that are read or written at a time
ROWS_PER_INSERT = 32  # SQLite has at most 999 values in a statement
CACHE_KB = 8192  # of the database, in memory
MAX_RECENT = 8192  # hashes in a Python set, before they are sorted in
LOCK = ".import.lock"
WRITE_SECONDS = 10.0  # between two writes of the table, at least
WRITE_SHARE = 0.1  # of the time of an import that may be spent on writing the table
UNPLACED = "its position is unknown"
GONE = "no longer exists, so that its row was removed"
MEASURED = ("exif", "xmp", "name", "table", "")  # sources of headings that write 0 for unknown; computed ones do not
RECORDED = ("exif", "xmp", "name")  # those by cameras, which write a heading for each photo or for none
MIN_ZERO_HEADINGS = 2  # one photo may face north exactly
NEAR_DEGREES = 1e-6  # of latitude, more than SAME_POSITION_M
TYPES = {name: "TEXT" if name in TEXTS else "INTEGER" if name in INTEGERS else "REAL" for name in COLUMNS}
NAMES, NUM_VALUES = ", ".join(COLUMNS), len(COLUMNS) + 1  # of a row


@contextmanager
def locked_dataset(folder: Path) -> Generator[None]:
    """Within: the folder exists, and no other command writes to its table.  Raises StorageError if one does.

    After an error, folders that were made here are removed if there are no photos in them.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with lock_file(
            folder / LOCK, StorageError(f"{folder} is in use by another command that writes to it. Wait until it ends.")
        ):
            yield
    except BaseException:
        with suppress(OSError):  # such as a folder that is not empty
            if made and {path.name for path in folder.iterdir()} <= {LOCK, REPORT_NAME}:
                for path in folder.iterdir():
                    path.unlink()
                for one in made:
                    one.rmdir()
        raise


class _Hashes:
    """Hashes of texts, 8 bytes each: a text is not among them for certain, or it may be."""

    def __init__(self) -> None:
        self._sorted = array("q")  # bisect is faster here than NumPy, which lets other threads run meanwhile
        self._recent: set[int] = set()

    def add(self, text: str) -> None:
        """Add the hash of a text."""
        self._recent.add(hash(text))
        if len(self._recent) > MAX_RECENT:
            recent = np.fromiter(self._recent, np.int64, len(self._recent))
            merged = np.sort(np.concatenate([np.frombuffer(self._sorted, np.int64), recent]), kind="stable")
            self._sorted, self._recent = array("q", merged.tobytes()), set()

    def may_have(self, text: str) -> bool:
        """False if a text was not added."""
        wanted = hash(text)
        place = bisect_left(self._sorted, wanted)
        return wanted in self._recent or (place < len(self._sorted) and self._sorted[place] == wanted)


class DatasetTable:
    """The rows of a dataset, those on disk and those added since."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TABLE_NAME
        # In the database, paths are text as in the table, unknown numbers are null, and unknown texts are empty.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._database.close)
        columns = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
        for statement in (
            f"PRAGMA cache_size = -{CACHE_KB}", "PRAGMA journal_mode = MEMORY", "PRAGMA synchronous = OFF",
            f"CREATE TABLE photos ({columns}, is_missing INTEGER)",  # is_missing: whether its file does not exist
            "CREATE UNIQUE INDEX by_path ON photos (path)",
            "CREATE INDEX by_content ON photos (checksum, latitude)",
        ):  # fmt: skip
            self._run(statement)
        self._waiting: list[Any] = []  # values of rows that are not in the database yet
        self._paths, self._contents = _Hashes(), _Hashes()
        self.num_rows = 0
        if self.path.exists():
            for block in read_blocks(self.path, ROWS_PER_BLOCK):
                for record in from_table(block):
                    if self.has(record.path):
                        problem = f"{self.path}: {record.path} occurs twice. Give each photo its own path."
                        raise DatasetError(one_line(problem))
                    # A link whose target is missing counts as a file: the target may be on a disk that is not mounted.
                    self._insert(record, is_missing=not os.path.lexists(folder / record.path))
        self.num_on_disk = self.num_rows

    def __len__(self) -> int:
        return self.num_rows

    def _run(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        """Run a statement.  Raises StorageError if there is no space."""
        try:
            return self._database.execute(statement, tuple(values))
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"No space for the rows of {printable(self.path)} in the folder for temporary files "
                f"({tempfile.gettempdir()}): {error}. Free some space, or set TMPDIR to another folder."
            ) from error

    def _query(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        """Run a statement after all rows are in the database."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            row = f"({', '.join('?' * NUM_VALUES)})"
            num_rows = len(waiting) // NUM_VALUES
            try:
                self._run(f"INSERT INTO photos VALUES {', '.join([row] * num_rows)}", waiting)
            except StorageError:
                self.num_rows -= num_rows
                raise
        return self._run(statement, values)

    def _insert(self, record: PhotoRecord, *, is_missing: bool) -> None:
        self._waiting += (*_stored(record), is_missing)
        self._paths.add(record.path)
        self._contents.add(record.checksum)
        self.num_rows += 1
        if len(self._waiting) >= ROWS_PER_INSERT * NUM_VALUES:
            self._query("SELECT 1")

    def _select(self, what: str, path: str) -> tuple[Any, ...] | None:
        if not self._paths.may_have(path):
            return None
        return self._query(f"SELECT {what} FROM photos WHERE path = ?", (path_text(path),)).fetchone()

    def has(self, path: str) -> bool:
        """Whether a path is in the table."""
        return self._select("1", path) is not None

    def has_photo(self, path: str, checksum: str) -> bool:
        """Whether a path is in the table, with the same content."""
        return self._select("checksum", path) == (checksum,)

    def path_of_same(self, record: PhotoRecord) -> str:
        """Path of a photo with the same content, position and heading (see `is_same_photo`); "" if there is none."""
        if not self._contents.may_have(record.checksum):
            return ""
        if math.isnan(record.latitude):
            where, limits = "latitude IS NULL", ()
        else:
            where = "latitude BETWEEN ? AND ?"
            limits = (float(record.latitude) - NEAR_DEGREES, float(record.latitude) + NEAR_DEGREES)
        found = self._query(
            f"SELECT {NAMES} FROM photos WHERE checksum = ? AND {where} AND NOT is_missing ORDER BY rowid",
            (record.checksum, *limits),
        )
        return next((one.path for one in map(_record, found) if is_same_photo(record, one)), "")

    def path_of_content(self, checksum: str) -> str:
        """Path of a photo with the same content, wherever it was taken; "" if there is none."""
        if not self._contents.may_have(checksum):
            return ""
        found = self._query(
            "SELECT path FROM photos WHERE checksum = ? AND NOT is_missing ORDER BY rowid LIMIT 1", (checksum,)
        ).fetchone()
        return stored_path(found[0]) if found else ""

    def add(self, record: PhotoRecord) -> None:
        """Add a photo whose path is not in the table yet."""
        self._insert(record, is_missing=False)

    def update(self, record: PhotoRecord) -> bool:
        """Replace the known values of a row, whose file is in place, by those of a record; returns whether any has
        changed.
        """
        row = self._select(f"{NAMES}, is_missing", record.path)
        assert row is not None, record.path
        present, is_missing = _record(row[:-1]), row[-1]
        known = {
            name: value
            for name, value in _values(record).items()
            if is_known(value) and (value or name not in INTEGERS)
        }
        if record.heading_source and math.isnan(record.heading):
            known.pop("heading_source")
        merged = replace(present, **known)
        has_changed = _comparable(merged) != _comparable(present)
        if has_changed:
            changes = ", ".join(f"{name} = ?" for name in COLUMNS)
            self._query(f"UPDATE photos SET {changes} WHERE path = ?", (*_stored(merged), path_text(record.path)))
        if is_missing:
            self._query("UPDATE photos SET is_missing = 0 WHERE path = ?", (path_text(record.path),))
        return has_changed

    def blocks(self) -> Iterator["pa.Table"]:
        """All rows, sorted by path, in groups."""
        import pyarrow as pa

        found = self._query(f"SELECT {NAMES} FROM photos ORDER BY path")
        # As values of Python, rows need much memory.
        few_rows = iter(lambda: found.fetchmany(ROWS_PER_BLOCK), [])
        while group := [_table_of(rows) for rows in islice(few_rows, ROWS_PER_GROUP // ROWS_PER_BLOCK)]:
            yield pa.concat_tables(group)
            pa.default_memory_pool().release_unused()

    def write(self) -> None:
        """Write the table as it is now.  Raises StorageError; the file on disk is then unchanged."""
        (*bounds,) = self._query(
            "SELECT min(longitude), min(latitude), max(longitude), max(latitude) FROM photos "
            "WHERE longitude IS NOT NULL AND latitude IS NOT NULL"
        ).fetchone()
        write_sorted(self.path, schema(), self.blocks(), [] if None in bounds else bounds)

    def num_missing(self) -> int:
        """How many rows have no file."""
        return self._query("SELECT count(*) FROM photos WHERE is_missing").fetchone()[0]

    def remove_missing(self) -> list[str]:
        """Remove the rows whose files do not exist, and return their paths, sorted; `num_missing` are kept.

        If most files are missing, they are probably on a disk that is not there: then only rows of photos that have
        another path now are removed.
        """
        are_few = 2 * self.num_missing() <= self.num_on_disk
        missing = self._query(f"SELECT {NAMES} FROM photos WHERE is_missing ORDER BY path")
        removed = [one.path for one in map(_record, missing) if are_few or self.path_of_same(one)]
        for path in removed:
            self._query("DELETE FROM photos WHERE path = ?", (path_text(path),))
        self.num_rows -= len(removed)
        return removed

    def clear_zero_headings(self) -> dict[str, int]:
        """Remove headings of cameras that wrote 0 for each photo; returns the number of photos by camera.

        A single photo with 0 counts as such, too, if its camera has photos without a heading: theirs may have been
        removed by an earlier import.
        """
        are_measured = f"heading_source IN ({', '.join('?' * len(MEASURED))})"
        groups = self._query(
            f"SELECT camera, heading_source, count(*) FROM photos WHERE heading IS NOT NULL AND {are_measured} "
            "GROUP BY camera, heading_source HAVING min(heading) = 0 AND max(heading) = 0 ORDER BY camera",
            MEASURED,
        ).fetchall()
        found: dict[str, int] = {}
        for camera, source, count in groups:
            if count < MIN_ZERO_HEADINGS and not (source in RECORDED and self._has_unknown_headings(camera)):
                continue
            self._query(
                "UPDATE photos SET heading = NULL, heading_source = '' WHERE camera = ? AND heading_source = ? AND "
                "heading IS NOT NULL", (camera, source),
            )  # fmt: skip
            found[camera] = found.get(camera, 0) + count
        return found

    def _has_unknown_headings(self, camera: str) -> bool:
        statement = "SELECT 1 FROM photos WHERE camera = ? AND heading IS NULL LIMIT 1"
        return self._query(statement, (camera,)).fetchone() is not None

    def headings_from(self, heading_source: str) -> Iterator[tuple[str, float]]:
        """Paths, as text, and headings of the photos whose heading has this source."""
        statement = "SELECT path, heading FROM photos WHERE heading_source = ? AND heading IS NOT NULL"
        yield from self._query(statement, (heading_source,))

    def forget_headings_from(self, heading_source: str) -> bool:
        """Remove the headings that have this source, all of them 0 or from a 0; returns whether there were any.

        Those of a single file are kept, as it may face north exactly; but not if there are photos without a heading:
        theirs may have been removed earlier.
        """
        files = "SELECT count(DISTINCT source) FROM photos WHERE heading_source = ? OR heading IS NULL"
        if self._query(files, (heading_source,)).fetchone()[0] < MIN_ZERO_HEADINGS:
            return False
        change = "UPDATE photos SET heading = NULL, heading_source = '' WHERE heading_source = ?"
        return self._query(change, (heading_source,)).rowcount > 0

    def summary(self) -> dict[str, int]:
        """How many rows have a position, a heading, a time."""
        counts = self._query("SELECT count(latitude), count(heading), count(time) FROM photos").fetchone()
        return dict(zip(("positions", "headings", "times"), counts, strict=True))

    def area(self) -> tuple[float, ...]:
        """West, south, east, north of the positions in degrees; west is more than east across the antimeridian."""
        shifted = "longitude + 360 * (longitude < 0)"
        south, north, *longitudes = self._query(
            f"SELECT min(latitude), max(latitude), min(longitude), max(longitude), min({shifted}), max({shifted}) "
            "FROM photos WHERE longitude IS NOT NULL AND latitude IS NOT NULL"
        ).fetchone()
        if south is None:
            return ()
        west, east, shifted_west, shifted_east = longitudes
        if shifted_west <= 180 < shifted_east and shifted_east - shifted_west < east - west:
            west, east = shifted_west, shifted_east - 360
        return west, south, east, north


def is_same_photo(record: PhotoRecord, known: PhotoRecord) -> bool:
    """Whether a photo is one that is known, whatever its path.

    Its content must be the same, its position within 1 cm, and its heading, if it has one: the same photo has slightly
    different numbers in EXIF and in a table.  A heading of 0 may mean unknown.
    """
    if record.checksum != known.checksum or math.isnan(record.latitude) != math.isnan(known.latitude):
        return False
    here, there = ((one.latitude, one.longitude) for one in (record, known))
    is_elsewhere = here != there and not math.isnan(record.latitude)
    if is_elsewhere and not geodesic_distances_m(*here, *there) <= SAME_POSITION_M:
        return False
    if math.isnan(record.heading):
        return True
    if math.isnan(known.heading):
        return record.heading == 0
    return abs((record.heading - known.heading + 180) % 360 - 180) <= SAME_HEADING_DEG


_values_of = attrgetter(*COLUMNS)


def _values(record: PhotoRecord) -> dict[str, Any]:
    return dict(zip(COLUMNS, _values_of(record), strict=True))


def _stored(record: PhotoRecord) -> list[Any]:
    """The values of a record as the database has them, which stores nan as null."""
    values = _values(record) | {"path": path_text(record.path), "time": known_time(record.time)}
    return [value if name in TEXTS else float(value) if TYPES[name] == "REAL" else int(value)
            for name, value in values.items()]  # fmt: skip


def _record(row: tuple[Any, ...]) -> PhotoRecord:
    """The record of a row of the database."""
    values: dict[str, Any] = {
        name: UNKNOWN if value is None else value for name, value in zip(COLUMNS, row, strict=True)
    }
    values["path"] = stored_path(values["path"])
    return PhotoRecord(**values)


def _table_of(rows: Sequence[tuple[Any, ...]]) -> "pa.Table":
    """The Arrow table of rows of the database."""
    return table_of_columns(dict(zip(COLUMNS, zip(*rows, strict=True), strict=True)))


def _comparable(record: PhotoRecord) -> list[Any]:
    """All values, as the table stores them, to compare them.  Measured headings of 0 may have been removed."""
    values = _values(record)
    values["time"] = record.time if math.isnan(record.time) else round(record.time * 1e6)
    if record.heading == 0 and record.heading_source in MEASURED:
        values |= {"heading": math.nan, "heading_source": ""}
    return [value if is_known(value) else None for value in values.values()]
