"""The table of a dataset while photos are added to it: no photo twice, every state on disk valid.

A photo is known by its path, its content, its position and its heading.  Rows are kept as Arrow tables, which need
about 500 bytes for each photo.  Side effects: reads and writes photos.parquet.
"""

import math
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosplace.errors import StorageError
from cosplace.importing.positions import is_known
from cosplace.photos.paths import path_text
from cosplace.photos.tables import (
    COLUMNS,
    INTEGERS,
    TABLE_NAME,
    PhotoRecord,
    arrow_compute,
    from_table,
    read_table,
    schema,
    to_table,
    write_table,
)
from cosplace.storage import lock_file, storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_BLOCK = 4096
LOCK = ".import.lock"
WRITE_SECONDS = 10.0  # between two writes of the table, at least
WRITE_SHARE = 0.1  # of the time of an import that may be spent on writing the table
UNPLACED = "its position is unknown"
GONE = "no longer exists, so that its row was removed"
MEASURED = ("exif", "xmp", "name", "table", "")  # sources of headings that write 0 for unknown; computed ones do not
MIN_ZERO_HEADINGS = 2  # one photo may face north exactly


@contextmanager
def locked_dataset(folder: Path) -> Generator[None]:
    """Within: the folder exists, and no other import writes to it.  Raises StorageError if one does."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / LOCK, StorageError(f"{folder} is in use by another import. Wait for it to end.")):
        yield


class DatasetTable:
    """The rows of a dataset, those on disk and those added since."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TABLE_NAME
        self.blocks: list[pa.Table] = []
        self.added: list[PhotoRecord] = []
        self.changed: dict[str, PhotoRecord] = {}  # by path
        self.rows: dict[str, tuple[int, int, int]] = {}  # of each path: row, digests of checksum and of record
        self.same_photo: dict[int, str] = {}  # path by the digest of content, position and heading
        self.num_rows = 0
        self.missing: dict[str, int] = {}  # `photo_digest` by path, of rows whose files do not exist
        if self.path.exists():
            table = read_table(self.path)
            for start in range(0, len(table), ROWS_PER_BLOCK):
                block = table.slice(start, ROWS_PER_BLOCK)
                for record in from_table(block):
                    # A link whose target is missing counts as a file: the target may be on a disk that is not mounted.
                    if not os.path.lexists(folder / record.path):
                        self.missing[record.path] = photo_digest(record)
                    self._remember(record)
                self.blocks.append(to_table(from_table(block)))
        self.num_on_disk = self.num_rows

    def __len__(self) -> int:
        return self.num_rows

    def _remember(self, record: PhotoRecord) -> None:
        self.rows[record.path] = (self.num_rows, hash(record.checksum), _digest(record))
        if record.path not in self.missing:
            self.same_photo.setdefault(photo_digest(record), record.path)
        self.num_rows += 1

    def has(self, path: str) -> bool:
        """Whether a path is in the table."""
        return path in self.rows

    def has_photo(self, path: str, checksum: str) -> bool:
        """Whether a path is in the table, with the same content."""
        return path in self.rows and self.rows[path][1] == hash(checksum)

    def path_of_same(self, record: PhotoRecord) -> str:
        """Path of the photo with the same content, position and heading; "" if there is no such photo."""
        return self.same_photo.get(photo_digest(record), "")

    def add(self, record: PhotoRecord) -> None:
        """Add a photo whose path is not in the table yet."""
        assert record.path not in self.rows, record.path
        self._remember(record)
        self.added.append(record)
        if len(self.added) >= ROWS_PER_BLOCK:
            self._seal()

    def update(self, record: PhotoRecord) -> bool:
        """Replace the known values of a row, whose file is in place, by those of a record; returns whether any has
        changed.
        """
        if record.path in self.missing:
            del self.missing[record.path]
            self.same_photo.setdefault(photo_digest(record), record.path)
        row, _, digest = self.rows[record.path]
        if digest == _digest(record):
            return False
        present = self.changed.get(record.path) or self._record(row)
        known = {
            name: value
            for name, value in _values(record).items()
            if is_known(value) and (value or name not in INTEGERS)
        }
        if record.heading_source and math.isnan(record.heading):
            known.pop("heading_source")
        merged = replace(present, **known)
        self.rows[record.path] = (row, hash(record.checksum), _digest(merged))
        if _digest(merged) == _digest(present):
            return False
        self.same_photo.setdefault(photo_digest(merged), record.path)
        self.changed[record.path] = merged
        return True

    def _record(self, row: int) -> PhotoRecord:
        for block in self.blocks:
            if row < len(block):
                return from_table(block.slice(row, 1))[0]
            row -= len(block)
        return self.added[row]

    def _seal(self) -> None:
        """Turn the added records into a block."""
        if self.added:
            self.blocks.append(to_table(self.added))
            self.added = []

    def table(self) -> "pa.Table":
        """All rows, in the order in which they were added."""
        import pyarrow as pa

        self._seal()
        if self.changed:
            blocks = []
            for block in self.blocks:
                records = [self.changed.get(record.path, record) for record in from_table(block)]
                blocks.append(to_table(records))
            self.blocks, self.changed = blocks, {}
        return pa.concat_tables(self.blocks) if self.blocks else schema().empty_table()

    def write(self) -> None:
        """Write the table as it is now.  Raises StorageError; the file on disk is then unchanged."""
        write_table(self.path, self.table())

    def remove_missing(self) -> list[str]:
        """Remove the rows whose files do not exist, and return their paths, sorted; `missing` has those that are kept.

        If most files are missing, they are probably on a disk that is not there: then only rows of photos that have
        another path now are removed.  Nothing can be added afterwards.
        """
        import pyarrow as pa

        removed = sorted(self.missing)
        if 2 * len(removed) > self.num_on_disk:
            removed = [path for path in removed if self.missing[path] in self.same_photo]
        if removed:
            table, pc = self.table(), arrow_compute()
            is_missing = pc.is_in(table["path"], pa.array(map(path_text, removed), pa.string()))
            self.blocks = [table.filter(pc.invert(is_missing))]
            self.num_rows -= len(removed)
            for path in removed:
                del self.rows[path], self.missing[path]
        return removed

    def clear_zero_headings(self) -> dict[str, int]:
        """Remove headings of cameras that wrote 0 for each photo; returns the number of photos by camera."""
        import pyarrow as pa

        table = self.table()
        headings = table["heading"].to_numpy()
        cameras = np.array(table["camera"].fill_null("").to_pylist(), object)
        sources = np.array(table["heading_source"].fill_null("").to_pylist(), object)
        found, is_cleared = {}, np.zeros(len(headings), bool)
        for camera in sorted(set(cameras[headings == 0])):
            for source in MEASURED:
                rows = (cameras == camera) & (sources == source) & ~np.isnan(headings)
                if rows.sum() >= MIN_ZERO_HEADINGS and (headings[rows] == 0).all():
                    is_cleared |= rows
                    found[str(camera)] = found.get(str(camera), 0) + int(rows.sum())
        if found:
            for name, values, missing in (
                ("heading", headings, np.isnan(headings)),
                ("heading_source", sources, sources == ""),
            ):
                field = schema().field(name)
                column = pa.array(values, field.type, mask=is_cleared | missing)
                table = table.set_column(COLUMNS.index(name), field, column)
            self.blocks = [table]
        return found


def summary_of(table: "pa.Table") -> dict[str, int]:
    """How many rows have a position, a heading, a time."""
    columns = {"positions": "latitude", "headings": "heading", "times": "time"}
    return {name: len(table) - table[column].null_count for name, column in columns.items()}


def _values(record: PhotoRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in COLUMNS}


def _digest(record: PhotoRecord) -> int:
    """A number for all values of a record, as the table stores them.  Headings of 0 may have been removed."""
    values = _values(record)
    values["time"] = record.time if math.isnan(record.time) else round(record.time * 1e6)
    if record.heading == 0:
        values |= {"heading": math.nan, "heading_source": ""}
    return hash(tuple(value if is_known(value) else None for value in values.values()))


def photo_digest(record: PhotoRecord) -> int:
    """A number for the content, position and heading of a photo: the same photo has it, whatever its path."""
    values = [round(value, 9) + 0.0 for value in (record.latitude, record.longitude, record.heading or math.nan)]
    return hash((record.checksum, *(value if is_known(value) else None for value in values)))
