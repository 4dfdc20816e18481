"""The photos of an index in its tables: read, add, change and remove them, and join their files.

Every append or removal is one commit of Lance: after a kill the table holds all photos of a commit or none of them.
What is read is checked, see `cosplace.index.checksums`.  Side effects: reads and writes the address of the index.
"""

import logging
import warnings
from collections.abc import Generator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from cosplace.errors import PhotoIndexError
from cosplace.index.checksums import NUMBER_COLUMNS, PARTS, REST_COLUMNS, descriptor_checks, numbers_checks, rest_checks
from cosplace.index.disk import SPARE_BYTES, check_space
from cosplace.index.file_checksums import damaged
from cosplace.index.lance import OutdatedError, translated_errors
from cosplace.index.photo_table import (
    ADDED_COLUMNS,
    NARROW,
    NO_ROOT,
    WITH_DESCRIPTOR,
    are_descriptors,
    check_values,
    matrix,
    photo_rows,
    photo_schema,
    with_checks,
    wrong_numbers,
)
from cosplace.index.reader_copy import ReaderCopy, write_reader_copy
from cosplace.index.records import Columns
from cosplace.index.tables import CHECKED_FROM, PHOTOS, RECORDS, Tables, has_index
from cosplace.memory import resident_bytes
from cosplace.photos.parquet_files import arrow_compute
from cosplace.shapes import MAX_COUNT

__all__ = ["PHOTOS", "READ_ROWS", "RECORDS", "Store", "has_index"]

READ_ROWS = 8192
DELETE_ROWS = 5000  # ids in one expression

log = logging.getLogger(__name__)


class Store(Tables):
    """The photos of one address, and its records."""

    def check_columns_written(self) -> None:
        """Raise PhotoIndexError for a column that this version would have to leave empty."""
        if unknown := set(self.schema.names) - set(photo_schema(self.dimension, "float32").names):
            raise PhotoIndexError(
                f"{self.address} has a column {min(unknown)!a} that this version of cosplace does not write. Update "
                f"cosplace, or build the index again."
            )

    def upgrade(self) -> None:
        """Add the columns that an index of an earlier version lacks; its photos do not change."""
        names = set(self.schema.names)
        missing = {name: value for name, value in ADDED_COLUMNS.items() if name not in names}
        if missing:
            log.info("%s: adding columns that earlier versions did not have", self.address)
            ids = self.columns().ids
            self.write_record(CHECKED_FROM, {"id": int(ids.max(initial=-1)) + 1})
            with translated_errors(self.address):
                self.photos.add_columns(missing)
            self.record_checksums()
        self._read_checked_from()

    def mark_all_checked(self) -> None:
        """Record that all photos have checksums."""
        self.write_record(CHECKED_FROM, {"id": 0})
        self._read_checked_from()

    # --- photos ------------------------------------------------------------------------------------------------------

    def columns(self, newer_than: int | None = None) -> Columns:
        """All photos, or those whose id is larger, without descriptors and thumbnails; by ascending id.

        Their paths are as stored, with the root NO_ROOT where they are whole.  Raises DamagedIndexError.
        """
        if self.copy is not None and newer_than is None:
            return self.copy.columns
        with translated_errors(self.address):
            query = self.photos.search().select(self.present(NARROW)).with_row_id(True)
            if newer_than is not None:
                query = query.where(f"id > {newer_than}")
            table = query.to_arrow()
            check_values(self.address, table)
            table = table.sort_by("id").combine_chunks()
            ids = table["id"].to_numpy()
            numbers = {name: self._numbers(table, name) for name in NUMBER_COLUMNS}
        if (np.diff(ids) <= 0).any():
            raise damaged(self.address, "an id occurs twice")
        if len(ids) and not 0 <= ids[0] <= ids[-1] <= MAX_COUNT:
            raise damaged(self.address, f"a photo has the id {ids[0] if ids[0] < 0 else ids[-1]}")
        if newer_than is None and len(ids) != self.count():
            raise damaged(self.address, f"it says that it has {self.count():,} photos, and has {len(ids):,}")
        if wrong := wrong_numbers(numbers):
            raise damaged(self.address, f"photo {ids[wrong[0]]} has {wrong[1]}")
        if arrow_compute().any(arrow_compute().match_substring(table["path"], "\0")).as_py():
            raise damaged(self.address, "the path of a photo has a zero, which no file has")
        if self.checked_from <= ids.max(initial=-1):
            self._check(ids, table, "numbers_check", numbers_checks(ids, numbers))
        checks = np.full(len(ids), -1, np.int64)
        if "path_check" in table.schema.names:
            checks = np.where(ids >= self.checked_from, table["path_check"].to_numpy().astype(np.int64), checks)
        return Columns(
            ids=ids,
            latitudes=numbers["latitude"],
            longitudes=numbers["longitude"],
            headings=numbers["heading"],
            times=numbers["time"],
            accuracies_m=numbers["accuracy_m"],
            row_ids=table["_rowid"].to_numpy(),
            roots=numbers["root"],
            texts=table["path"],
            path_checks=checks,
        )

    def present(self, names: Sequence[str]) -> list[str]:
        """Those of some columns that the table has; an index of an earlier version lacks some."""
        present = set(self.schema.names)
        return [name for name in names if name in present]

    def _numbers(self, table: Any, name: str) -> np.ndarray:
        if name in table.schema.names:
            return table[name].to_numpy()
        return np.full(len(table), NO_ROOT if name == "root" else np.nan, NUMBER_COLUMNS[name])

    def _check(self, ids: np.ndarray, table: Any, column: str, checks: np.ndarray) -> None:
        """Compare checksums (n,) with the stored ones.  Raises DamagedIndexError."""
        if not self.is_checked or column not in table.schema.names:
            return
        wrong = (checks != table[column].to_numpy()) & (ids >= self.checked_from)
        if wrong.any():
            num_others = int(wrong.sum()) - 1
            others = f" and {num_others} other{'s' if num_others > 1 else ''}" if num_others else ""
            raise damaged(self.address, f"the {PARTS[column]} of photo {ids[wrong][0]}{others} has changed")

    def scan(self, names: Sequence[str], *, newer_than: int | None = None) -> Generator[Any]:
        """Record batches of some columns of all photos, or of those whose id is larger."""
        with translated_errors(self.address):
            query = self.photos.search().select(list(names))
            if newer_than is not None:
                query = query.where(f"id > {newer_than}")
            for batch in query.to_batches(READ_ROWS):
                check_values(self.address, batch)
                yield batch

    def descriptors(self, newer_than: int | None = None) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """(ids (n,), descriptors (n, D) as stored) of all photos, or of those whose id is larger, in batches."""
        if self.copy is not None and newer_than is None:
            yield self.copy.columns.ids, self.copy.descriptors
            return
        for batch in self.scan(self.present(WITH_DESCRIPTOR), newer_than=newer_than):
            yield self.checked_descriptors(batch)

    def checked_descriptors(self, table: Any) -> tuple[np.ndarray, np.ndarray]:
        """Ids (n,) and descriptors (n, D) as stored.  Raises DamagedIndexError."""
        check_values(self.address, table)
        ids, column = table["id"].to_numpy(), table["descriptor"]
        descriptors = matrix(column.combine_chunks() if hasattr(column, "combine_chunks") else column)
        if "descriptor_check" in table.schema.names:
            self._check(ids, table, "descriptor_check", descriptor_checks(ids, descriptors))
        if not are_descriptors(descriptors):
            raise damaged(self.address, "a descriptor does not have length 1")
        return ids, descriptors

    def descriptors_at(self, row_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Descriptors (n, D) as stored of some photos, in the order given; ids may repeat."""
        found, descriptors = self.checked_descriptors(self._take(row_ids, WITH_DESCRIPTOR))
        order = np.argsort(found)
        places = order[np.minimum(np.searchsorted(found[order], ids), len(order) - 1)]
        if not np.array_equal(found[places], ids):
            raise OutdatedError(f"The photos of {self.address} have changed. Read the index again.")
        return descriptors[places]

    def descriptors_of(self, ids: np.ndarray) -> np.ndarray:
        """Descriptors (n, D) as stored of some photos by ascending id."""
        rows: dict[int, np.ndarray] = {}
        for at in range(0, len(ids), DELETE_ROWS):
            some = ", ".join(map(str, ids[at : at + DELETE_ROWS].tolist()))
            with translated_errors(self.address):
                columns = self.present(WITH_DESCRIPTOR)
                table = self.photos.search().where(f"id IN ({some})").select(columns).to_arrow()
            found, matrix = self.checked_descriptors(table)
            rows |= dict(zip(found.tolist(), matrix, strict=True))
        return np.stack([rows[photo_id] for photo_id in ids.tolist()])

    def values_at(self, row_id: int, photo_id: int) -> dict[str, Any]:
        """The REST_COLUMNS of one photo.  Raises DamagedIndexError."""
        table = self._take(np.array([row_id], np.uint64), ("id", *REST_COLUMNS, "rest_check"))
        check_values(self.address, table)
        ids = table["id"].to_numpy()
        if ids.tolist() != [photo_id]:
            raise OutdatedError(f"Photo {photo_id} is no longer in {self.address}. Read the index again.")
        columns = {name: table[name].to_pylist() for name in REST_COLUMNS}
        self._check(ids, table, "rest_check", rest_checks(ids, columns))
        return {name: values[0] for name, values in columns.items()}

    def _take(self, row_ids: np.ndarray, names: Sequence[str]) -> Any:
        with translated_errors(self.address):
            return self.photos.take_row_ids(np.unique(row_ids).tolist()).select(self.present(names)).to_arrow()

    def append(self, rows: dict[str, Any], num_bytes: int) -> None:
        """Add photos in one commit; they are stored when this returns.  rows: columns of the schema."""
        check_space(self.address, num_bytes + SPARE_BYTES)
        with translated_errors(self.address):
            self.photos.add(photo_rows(self.schema, rows))
        self.record_checksums()

    def replace_columns(self, ids: np.ndarray, columns: dict[str, Sequence]) -> None:
        """Replace some columns of some photos, in one commit.  columns: (n,) each, in the order of ids."""
        import pyarrow as pa

        check_space(self.address)
        with translated_errors(self.address):
            table = self.photos.search().where(f"id IN ({', '.join(map(str, ids.tolist()))})").to_arrow()
        table = table.select(self.schema.names)
        found, descriptors = self.checked_descriptors(table)
        rows: dict[str, Any] = {name: table[name].to_pylist() for name in table.schema.names if name != "descriptor"}
        self._check(
            found, table, "numbers_check", numbers_checks(found, {n: table[n].to_numpy() for n in NUMBER_COLUMNS})
        )
        self._check(found, table, "rest_check", rest_checks(found, rows))
        place_of = {photo_id: place for place, photo_id in enumerate(ids.tolist())}
        for name, values in columns.items():
            rows[name] = [values[place_of[photo_id]] for photo_id in found.tolist()]
        rows = with_checks(rows | {"id": found, "descriptor": descriptors})
        arrays = [
            table[name].combine_chunks()
            if name == "descriptor"
            else pa.array(rows[name], type=table.schema.field(name).type)
            for name in table.schema.names
        ]
        with translated_errors(self.address):
            new = pa.table(arrays, schema=self.schema)
            self.photos.merge_insert("id").when_matched_update_all().execute(new)
        self.record_checksums()

    def remove(self, ids: np.ndarray) -> None:
        """Remove photos by id."""
        for at in range(0, len(ids), DELETE_ROWS):
            with translated_errors(self.address):
                self.photos.delete(f"id IN ({', '.join(map(str, ids[at : at + DELETE_ROWS].tolist()))})")
        self.record_checksums()

    def optimize(self, *, forget_older_s: float, is_only_writer: bool = False) -> None:
        """Join small files, drop removed photos, bring the search index up to date; forget older versions.

        is_only_writer: remove what killed writers left, too; otherwise after a week, as another writer may need it.
        """
        before, num_files = resident_bytes() / 1e6, self.num_fragments()
        with translated_errors(self.address), warnings.catch_warnings():
            # Lance warns that readers of older versions fail; ours retry with the newest one.
            warnings.simplefilter("ignore", UserWarning)
            for table in (self.photos, self.records):
                table.optimize(cleanup_older_than=timedelta(seconds=forget_older_s), delete_unverified=is_only_writer)
        log.info(
            "%s: joined %d files of photos to %d; memory of this process %.0f MB before, %.0f MB after",
            self.address, num_files, self.num_fragments(), before, resident_bytes() / 1e6,
        )  # fmt: skip
        self.record_checksums()

    def count(self) -> int:
        """Number of photos."""
        if self.copy is not None:
            return len(self.copy.columns)
        with translated_errors(self.address):
            return int(self.photos.count_rows())

    def keys_of(self, ids: np.ndarray) -> list[tuple[str, int]]:
        """Keys and ids of some photos."""
        found: list[tuple[str, int]] = []
        for at in range(0, len(ids), DELETE_ROWS):
            some = ", ".join(map(str, ids[at : at + DELETE_ROWS].tolist()))
            with translated_errors(self.address):
                rows = self.photos.search().where(f"id IN ({some})").select(["id", "key"]).to_arrow()
                check_values(self.address, rows)
            found += zip(rows["key"].to_pylist(), rows["id"].to_pylist(), strict=True)
        return found

    def num_fragments(self) -> int:
        """Number of files that hold the photos."""
        return int(self.photos.stats()["fragment_stats"]["num_fragments"])

    def num_small_fragments(self) -> int:
        """Number of files that hold less than 100,000 photos; joining them makes reading faster."""
        return int(self.photos.stats()["fragment_stats"]["num_small_fragments"])

    def write_copy(self) -> None:
        """Write the copy for readers, unless an earlier version stored some of the photos."""
        if not self.checked_from:
            write_reader_copy(self.address, self.make_copy())
            self.record_checksums()

    def make_copy(self) -> ReaderCopy:
        """Read everything that a copy for readers holds.  The store must not read one itself."""
        import pyarrow as pa

        columns = self.columns()
        is_half = pa.types.is_float16(self.schema.field("descriptor").type.value_type)
        descriptors = np.empty((len(columns), self.dimension), np.float16 if is_half else np.float32)
        for ids, rows in self.descriptors():
            descriptors[np.searchsorted(columns.ids, ids)] = rows
        with translated_errors(self.address):
            rows = self.records.search().select(["key", "json"]).to_arrow()
        records = dict(zip(rows["key"].to_pylist(), rows["json"].to_pylist(), strict=True))
        return ReaderCopy(versions=self.versions(), columns=columns, descriptors=descriptors, records=records)
