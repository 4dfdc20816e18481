"""The storage of an index: two Lance tables in a folder or on object storage.

    <address>/photos.lance     one row per photo: position, time, path, descriptor, thumbnail; search index
              records.lance    facts about the index: key -> JSON
              checksums.json   checksums of all files (local addresses)
              reader-….safetensors   copy of a small index, read without Lance (local addresses)
              .writer.lock     held by the one writer (local addresses)

Every append or removal is one commit of Lance: after a kill the table holds all photos of a commit or none of them.
What is read is checked, see `cosplace.index.checksums` and `cosplace.index.file_checksums`.
Side effects: reads and writes that address.
"""

import json
import logging
import warnings
from collections.abc import Generator, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import MissingIndexError, PhotoIndexError
from cosplace.index.checksums import NUMBER_COLUMNS, PARTS, REST_COLUMNS, descriptor_checks, numbers_checks, rest_checks
from cosplace.index.disk import RECORD_BYTES, SPARE_BYTES, check_space
from cosplace.index.file_checksums import (
    FILE_NAME,
    TABLES,
    CheckedFiles,
    damaged,
    find_changes,
    is_local,
    newest_versions,
    read_checksums,
    version_files,
)
from cosplace.index.identity import SPEC, check_tables, replaced
from cosplace.index.lance import OutdatedError, checked_key, connect, record_text, translated_errors
from cosplace.index.photo_table import (
    ADDED_COLUMNS,
    NARROW,
    NO_ROOT,
    WITH_DESCRIPTOR,
    check_columns,
    matrix,
    photo_rows,
    with_checks,
)
from cosplace.index.reader_copy import ReaderCopy, check_ids, find_reader_copy, write_reader_copy
from cosplace.index.record_checks import parse_record
from cosplace.index.records import Columns
from cosplace.memory import resident_bytes

PHOTOS, RECORDS = "photos", "records"
READ_ROWS = 8192
DELETE_ROWS = 5000  # ids in one expression
CHECKED_FROM = "checked_from"  # the record of the first id whose photo has checksums

log = logging.getLogger(__name__)


def has_index(address: str) -> bool:
    """Whether there is an index at the address.  Creates nothing."""
    if is_local(address) and not (Path(address) / f"{RECORDS}.lance").is_dir():
        return False
    with translated_errors(address):
        return RECORDS in connect(address, is_first=True).list_tables().tables


class Store:
    """The tables of one address.  A reader stays at the version it opened until `catch_up`."""

    def __init__(
        self, address: str, *, check: bool = True, with_copy: bool = False, former: "Store | None" = None
    ) -> None:
        """Open the newest version.  check: compare the small files and the sizes of others with their checksums.

        with_copy: read the copy of a small index if there is one; the tables are opened when they are needed.
        former: a store of this address, whose connection and memory are used too.  Raises MissingIndexError and
        DamagedIndexError.
        """
        self.address, self.is_checked = address, check
        self.search_codes = "4bit" if former is None else former.search_codes  # of IndexSettings, set by `PhotoReader`
        self.files = CheckedFiles(address, check=check) if former is None else former.files
        if former is not None and "database" in vars(former):
            self.database = former.database
        self.files.check()  # before the versions are listed: a writer records checksums after each commit
        self.copy = find_reader_copy(self.files) if with_copy and former is None else None
        if self.copy is None and not has_index(address):
            problem = "does not exist" if is_local(address) and not Path(address).exists() else "is not a photo index"
            raise MissingIndexError(
                f"{address} {problem}. Build an index with `cosplace index build DATASET --model MODEL --to {address}`."
            )
        self.files.check_versions(self.versions())
        self._opened = version_files(address, self.versions())
        self.checked_from = 0
        self._read_checked_from()

    @cached_property
    def database(self) -> Any:
        """The connection to the tables."""
        with translated_errors(self.address):
            return connect(self.address)

    @cached_property
    def photos(self) -> Any:
        """The table of photos."""
        return self._open(PHOTOS)

    @cached_property
    def records(self) -> Any:
        """The table of records."""
        return self._open(RECORDS)

    def _open(self, name: str) -> Any:
        """Open the newest version of a table, or that of the copy."""
        with translated_errors(self.address):
            if self.copy is not None:
                self.check_place()  # before Lance, which creates the folder of an index that was moved away
            table = self.database.open_table(name)
            if name == PHOTOS:
                check_columns(self.address, table.schema)
            if self.copy is None:
                return table
            check_tables(self.address, self.database, self.copy.records[SPEC])
            if table.version != self.copy.versions[name]:
                try:
                    table.checkout(self.copy.versions[name])
                except (RuntimeError, ValueError, OSError) as error:  # a writer has removed that version
                    raise OutdatedError(f"The photos of {self.address} have changed. Read the index again.") from error
            if name == PHOTOS:
                check_ids(self.address, self.copy, table.search().select(["id"]).to_arrow()["id"].to_numpy())
            return table

    @classmethod
    def create(cls, address: str, schema: Any, records: dict[str, dict[str, Any]]) -> "Store":
        """Create an empty store.  Raises PhotoIndexError if there is already one.  The caller is the only writer."""
        import pyarrow as pa

        exists = PhotoIndexError(f"{address} already contains an index. Add photos to it, or choose another address.")
        if has_index(address):
            raise exists
        with translated_errors(address):
            if is_local(address):
                (Path(address) / FILE_NAME).unlink(missing_ok=True)
            database = connect(address)
            if is_local(address):
                database.create_table(PHOTOS, schema=schema, mode="overwrite")
            else:  # a process that was killed may have created it
                photos = database.create_table(PHOTOS, schema=schema, mode="create", exist_ok=True)
                if photos.schema != schema or photos.count_rows():
                    raise PhotoIndexError(
                        f"{address} has a table {PHOTOS}.lance of another index. Delete it, or choose another address."
                    )
            # Last: its presence means that the index is complete.
            rows = {"key": list(records), "json": [json.dumps(value) for value in records.values()]}
            try:
                database.create_table(RECORDS, pa.table(rows), mode="create")
            except ValueError as error:
                raise (exists if "already exists" in str(error) else error) from error
        store = cls(address)
        store.record_checksums()
        return store

    @property
    def schema(self) -> Any:
        """The columns of the table of photos."""
        with translated_errors(self.address):
            return self.photos.schema

    @property
    def version(self) -> int:
        """Version of the photo table that is read."""
        return self.versions()[PHOTOS]

    @property
    def dimension(self) -> int:
        """D, the dimension of the descriptors."""
        if self.copy is not None:
            return self.copy.descriptors.shape[1]
        return int(self.schema.field("descriptor").type.list_size)

    def versions(self) -> dict[str, int]:
        """Versions of the tables that are read."""
        if self.copy is not None:
            return self.copy.versions
        with translated_errors(self.address):
            return {PHOTOS: int(self.photos.version), RECORDS: int(self.records.version)}

    def record_checksums(self, *, again: bool = False) -> None:
        """Record the checksums of new files, after each commit.  again: of all files."""
        with translated_errors(self.address):
            self.files.record(self.versions(), again=again)

    def lacks_file_checksums(self) -> bool:
        """Whether the checksums of the files were deleted: a writer of this version records them."""
        has_checks = "numbers_check" in self.schema.names
        return has_checks and is_local(self.address) and not (Path(self.address) / FILE_NAME).is_file()

    def newest(self, *, reopen: bool = False) -> "Store":
        """The newest version; this store if it has it, and not `reopen`.  Raises as __init__ does."""
        self.check_place()
        self.files.check()
        if not reopen and self._is_newest():
            return self
        return Store(self.address, check=self.is_checked, former=self)

    def _is_newest(self) -> bool:
        """Whether no table has another version and no file is missing, found without opening the tables."""
        opened = self._opened.files
        if len(opened) < len(TABLES) or newest_versions(self.address) != self.versions():
            return False
        return all((Path(self.address) / name).is_file() for name in {*opened, *self.files.names})

    def catch_up(self) -> None:
        """Read the newest version from now on.  Raises MissingIndexError and DamagedIndexError."""
        self.check_place()
        self.files.check()
        self.copy = None
        with translated_errors(self.address):
            self.photos.checkout_latest()
            self.records.checkout_latest()
        self.files.check_versions(self.versions())
        self._opened = version_files(self.address, self.versions())
        self._read_checked_from()

    def check_place(self) -> None:
        """Raise MissingIndexError without an index, ReplacedIndexError with a copy that was changed separately."""
        if is_local(self.address) and not (Path(self.address) / f"{RECORDS}.lance").is_dir():
            raise MissingIndexError(f"{self.address} no longer exists. Restore it, or open another index.")
        if changed := find_changes(self.address, self._opened, list(self._opened.files)):
            checksums, name = read_checksums(self.address), changed[0]
            if checksums is not None and checksums.files.get(name) == self._opened.files[name]:
                raise damaged(self.address, f"{name} has changed")
            raise replaced(self.address)

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

    def _read_checked_from(self) -> None:
        has_checks = self.copy is not None or "numbers_check" in self.schema.names
        record = self.read_record(CHECKED_FROM) if has_checks else None
        self.checked_from = np.iinfo(np.int64).max if not has_checks else 0 if record is None else int(record["id"])

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
            table = query.to_arrow().sort_by("id").combine_chunks()
            ids = table["id"].to_numpy()
            numbers = {name: self._numbers(table, name) for name in NUMBER_COLUMNS}
        if (np.diff(ids) <= 0).any():
            raise damaged(self.address, "an id occurs twice")
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
            yield from query.to_batches(READ_ROWS)

    def descriptors(self, newer_than: int | None = None) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """(ids (n,), descriptors (n, D) as stored) of all photos, or of those whose id is larger, in batches."""
        if self.copy is not None and newer_than is None:
            yield self.copy.columns.ids, self.copy.descriptors
            return
        for batch in self.scan(self.present(WITH_DESCRIPTOR), newer_than=newer_than):
            yield self.checked_descriptors(batch)

    def checked_descriptors(self, table: Any) -> tuple[np.ndarray, np.ndarray]:
        """Ids (n,) and descriptors (n, D) as stored.  Raises DamagedIndexError."""
        ids, column = table["id"].to_numpy(), table["descriptor"]
        descriptors = matrix(column.combine_chunks() if hasattr(column, "combine_chunks") else column)
        if "descriptor_check" in table.schema.names:
            self._check(ids, table, "descriptor_check", descriptor_checks(ids, descriptors))
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

    # --- records -----------------------------------------------------------------------------------------------------

    def read_record(self, key: str) -> dict[str, Any] | None:
        """The record of a key; None if there is none.  Raises DamagedIndexError."""
        text = self._record_text(key)
        record = None if text is None else parse_record(key, text)
        if text is not None and record is None:
            raise damaged(self.address, f"the record '{key}' cannot be read")
        return record

    def _record_text(self, key: str) -> str | None:
        if self.copy is not None:
            return self.copy.records.get(key)
        with translated_errors(self.address):
            return record_text(self.records, key)

    def write_record(self, key: str, value: dict[str, Any]) -> None:
        """Set the record of a key, in one commit."""
        import pyarrow as pa

        check_space(self.address, RECORD_BYTES)
        row = pa.table({"key": [checked_key(key)], "json": [json.dumps(value)]})
        with translated_errors(self.address):
            self.records.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(row)
        self.record_checksums()
