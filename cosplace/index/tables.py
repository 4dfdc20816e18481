"""The tables of an index, in a folder or on object storage: open a version, notice what a writer has changed; records.

    <address>/photos.lance     one row per photo: position, time, path, descriptor, thumbnail; search index
              records.lance    facts about the index: key -> JSON
              checksums.json   checksums of all files (local addresses)
              reader-….safetensors   copy of a small index, read without Lance (local addresses)
              .writer.lock     held by the one writer (local addresses)

What is read is checked, see `cosplace.index.checksums` and `cosplace.index.file_checksums`.
Side effects: reads and writes that address.
"""

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from cosplace.errors import MissingIndexError, PhotoIndexError
from cosplace.index.checked_files import CheckedFiles, check_kinds, check_manifests, table_bytes
from cosplace.index.disk import RECORD_BYTES, check_space
from cosplace.index.file_checksums import (
    FILE_NAME,
    TABLES,
    damaged,
    find_changes,
    is_local,
    newest_versions,
    read_checksums,
    version_files,
)
from cosplace.index.identity import SPEC, check_tables, replaced
from cosplace.index.lance import OutdatedError, checked_key, connect, record_text, translated_errors
from cosplace.index.photo_table import check_columns
from cosplace.index.reader_copy import check_ids, find_reader_copy
from cosplace.index.record_checks import parse_record
from cosplace.index.trials import is_trusted, is_written_here, run_trial, trust

PHOTOS, RECORDS = "photos", "records"
CHECKED_FROM = "checked_from"  # the record of the first id whose photo has checksums
TRIAL = "cosplace.index.table_trial"
TRUSTED = "index_tables"
LARGE_BYTES = 1 << 30  # of tables that take long to try

log = logging.getLogger(__name__)


def has_index(address: str) -> bool:
    """Whether there is an index at the address.  Creates nothing."""
    if is_local(address) and not (Path(address) / f"{RECORDS}.lance").is_dir():
        return False
    with translated_errors(address):
        return RECORDS in connect(address, is_first=True).list_tables().tables


def try_tables(files: CheckedFiles, *, again: bool = False) -> None:
    """Raise DamagedIndexError if a process that reads the tables of a local index may not survive that.

    Tables that this machine wrote or tried are trusted, unless `again`.
    """
    if not is_local(files.address):
        return
    key = files.tables_key()
    if not again:
        if key == files.trusted_key or is_trusted(TRUSTED, key):
            files.trusted_key = key
            return
        # A writer at work has not said yet that it trusts the newest version; one that has just ended trusts another.
        if is_written_here(files.address) or is_trusted(TRUSTED, files.tables_key()):
            return
    check_kinds(files.address)
    check_manifests(files.address)
    num_bytes = table_bytes(files.address)
    log.log(
        logging.INFO if num_bytes >= LARGE_BYTES else logging.DEBUG,
        "%s: reading its tables once in a process of its own, as they are not those that this machine wrote",
        files.address,
    )
    if problem := run_trial(TRIAL, files.address, num_bytes):
        raise damaged(files.address, f"its tables cannot be read, {problem}")
    trust_tables(files, key)


def trust_tables(files: CheckedFiles, key: str | None = None) -> None:
    """Remember that the tables of a local index can be read.  key: of their files."""
    if is_local(files.address):
        key = files.tables_key() if key is None else key
        trust(TRUSTED, key, files.trusted_key)
        files.trusted_key = key


class Tables:
    """The tables of one address.  A reader stays at the version it opened until `catch_up`."""

    def __init__(
        self, address: str, *, check: bool = True, with_copy: bool = False, former: "Tables | None" = None
    ) -> None:
        """Open the newest version.  check: compare the small files and the sizes of others with their checksums.

        with_copy: read the copy of a small index if there is one; the tables are opened when they are needed.
        former: tables of this address, whose connection and memory are used too.  Raises MissingIndexError and
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
            try_tables(self.files)
            checked = newest_versions(self.address)
            table = self.database.open_table(name)
            if name in checked and not checked[name] <= table.version <= newest_versions(self.address).get(name, 0):
                raise damaged(self.address, f"{name}.lance has versions that are not what their names say")
            if name == PHOTOS:
                check_columns(self.address, table.schema)
            elif [str(table.schema.field(column).type) for column in ("key", "json")] != ["string", "string"]:
                raise damaged(self.address, "its records are no texts")
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
    def create(cls, address: str, schema: Any, records: dict[str, dict[str, Any]]) -> Self:
        """Create empty tables.  Raises PhotoIndexError if there is already one.  The caller is the only writer.

        Raises DamagedIndexError for files there that no writer makes.
        """
        import pyarrow as pa

        exists = PhotoIndexError(f"{address} already contains an index. Add photos to it, or choose another address.")
        if has_index(address):
            raise exists
        with translated_errors(address):
            if is_local(address):  # a process that was killed may have left a table
                check_kinds(address)
                check_manifests(address)
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
        trust_tables(CheckedFiles(address))
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
        trust_tables(self.files)

    def lacks_file_checksums(self) -> bool:
        """Whether the checksums of the files were deleted: a writer of this version records them."""
        has_checks = "numbers_check" in self.schema.names
        return has_checks and is_local(self.address) and not (Path(self.address) / FILE_NAME).is_file()

    def newest(self, *, reopen: bool = False) -> Self:
        """The newest version; this object if it has it, and not `reopen`.  Raises as __init__ does."""
        self.check_place()
        self.files.check()
        if not reopen and self._is_newest():
            return self
        return type(self)(self.address, check=self.is_checked, former=self)

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
        try_tables(self.files)
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

    def _read_checked_from(self) -> None:
        has_checks = self.copy is not None or "numbers_check" in self.schema.names
        record = self.read_record(CHECKED_FROM) if has_checks else None
        self.checked_from = np.iinfo(np.int64).max if not has_checks else 0 if record is None else int(record["id"])

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
