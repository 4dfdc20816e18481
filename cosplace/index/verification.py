"""Verify an index: read everything, find what has changed since it was written, and repair what can be repaired.

Side effects: `verify_index` reads the whole index; `repair_index` writes it.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import CosPlaceError, DamagedIndexError
from cosplace.index.checked_files import CheckedFiles, check_kinds, unreadable_versions
from cosplace.index.checksums import (
    NUMBER_COLUMNS,
    PARTS,
    REST_COLUMNS,
    descriptor_checks,
    numbers_checks,
    path_checks,
    rest_checks,
)
from cosplace.index.file_checksums import (
    FILE_NAME,
    FileChecksums,
    changed_ends,
    damaged,
    find_changes,
    is_copy,
    is_derived,
    is_local,
    is_manifest,
    is_of_photos,
    read_checksums,
    reader_copy_name,
)
from cosplace.index.lance import is_panic
from cosplace.index.photo_index import open_index
from cosplace.index.photo_reader import PhotoReader
from cosplace.index.photo_table import are_descriptors, matrix
from cosplace.index.reader_copy import is_same, parse_reader_copy, remove_reader_copies
from cosplace.index.record_checks import RECORDS
from cosplace.index.root_folders import RootFolders
from cosplace.index.search_index import check_search_index, drop_vector_index, has_vector_index
from cosplace.index.store import Store, has_index
from cosplace.index.tables import try_tables
from cosplace.index.view_table import has_views, remove_views
from cosplace.index.writer_lock import lock_for_writing
from cosplace.progress import Progress, no_progress

TASK = "verifying"
NUM_NAMED = 5  # damaged photos that a problem names

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What the verification of an index has found."""

    num_photos: int
    num_unchecked: int  # photos stored by an earlier version, without checksums
    num_files: int  # files that were compared with their checksums; 0 on object storage and for earlier versions
    problems: tuple[str, ...]  # one line each
    notes: tuple[str, ...]  # one line each, about what is no damage
    damaged_ids: tuple[int, ...]  # of photos
    can_repair: bool  # whether everything that is damaged can be removed or rebuilt


def verify_index(address: str | Path, progress: Progress = no_progress) -> Verification:
    """Compare all files and all photos of an index with their checksums.  Raises MissingIndexError without an index."""
    address = str(address)
    if not has_index(address):
        Store(address)  # raises
    problems: list[str] = []
    checksums = FileChecksums()
    if is_local(address):
        try:
            check_kinds(address)
        except DamagedIndexError as error:  # then nothing should be read
            return _unreadable(_problem_in(error, address))
        try:
            checksums = read_checksums(address) or checksums
        except DamagedIndexError:
            problems.append(f"{FILE_NAME} cannot be read")
    names = list(checksums.files)
    changed = []
    for place, name in enumerate(names):
        progress(TASK, place, len(names) + 1)
        changed += find_changes(address, checksums, [name])
    problems += [f"{name} has changed" for name in changed]
    if is_local(address):
        problems += [f"{name}, an older version, cannot be read" for name in unreadable_versions(address)]
    tables = _Tables(address=address, checksums=checksums)
    needed = [name for name in changed if is_manifest(name)]
    needed += changed_ends(address, checksums, [name for name in changed if is_of_photos(name)])
    if needed:
        problems.append(f"the index cannot be read without {needed[0]}")
    else:
        tables.read(is_intact=not changed)
    problems += tables.problems
    ids, missing = tables.damaged_ids, tables.missing
    progress(TASK, len(names) + 1, len(names) + 1)
    # A changed data file without a damaged photo: the change is in photos without checksums, or in no photo.
    is_bounded = bool(ids) or not tables.num_unchecked
    broken = [name for name in [*changed, *missing] if not (is_derived(name) or (is_of_photos(name) and is_bounded))]
    lost = [name for name in missing if not is_derived(name)]
    notes = [
        f"{name} is missing: readers read the tables, which takes longer; the next writer makes it again"
        for name in missing
        if is_copy(name)
    ]
    if has_views(address):
        notes.append(
            "views.lance is of a calibration that has not ended: `cosplace index calibrate` continues it, "
            "`cosplace index compact` removes it"
        )
    return Verification(
        num_photos=tables.num_photos,
        num_unchecked=tables.num_unchecked,
        num_files=len(names),
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
        damaged_ids=tuple(sorted(ids)),
        can_repair=tables.can_be_read and not broken and not lost and "newest version" not in " ".join(problems),
    )


@dataclass(slots=True, kw_only=True)
class _Tables:
    """The photos and records of an index, and what is wrong with them."""

    address: str
    checksums: FileChecksums
    num_photos: int = 0
    num_unchecked: int = 0
    damaged_ids: set[int] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)  # files
    problems: list[str] = field(default_factory=list)
    can_be_read: bool = False

    def read(self, *, is_intact: bool) -> None:
        """Read everything.  is_intact: no file has changed, so the copy for readers is compared, too."""
        try:
            self._read(is_intact)
            self.can_be_read = True
        except BaseException as error:
            if isinstance(error, MemoryError) or not (isinstance(error, Exception) or is_panic(error)):
                raise
            if not isinstance(error, CosPlaceError):  # such as a KeyError for a column that a damaged version lacks
                log.debug("%s cannot be read", self.address, exc_info=error)
                problem = f"the photos cannot be read ({_first_line(error)})"
                error = damaged(self.address, "a file cannot be decoded" if is_panic(error) else problem)
            self.problems.append(_problem_in(error, self.address))

    def _read(self, is_intact: bool) -> None:
        if not is_intact:
            try_tables(CheckedFiles(self.address, check=False), again=True)
        store = Store(self.address, check=False)
        current = {"photos": store.version, "records": store.records.version}
        versions = self.checksums.versions
        self.problems += [
            f"the newest version of {table}.lance is missing"
            for table, version in versions.items()
            if current[table] < version
        ]
        if current == versions:
            self.missing = [name for name in self.checksums.files if not (Path(self.address) / name).is_file()]
            self.problems += [f"{name} is missing" for name in self.missing if not is_copy(name)]
        for batch in store.scan(store.schema.names):
            self.num_photos += len(batch)
            self.num_unchecked += int(np.count_nonzero(batch["id"].to_numpy() < store.checked_from))
            if not are_descriptors(matrix(batch["descriptor"])):
                raise damaged(self.address, "a descriptor does not have length 1")
            for part, changed_ids in _damaged_photos(batch, store.checked_from).items():
                self.damaged_ids.update(changed_ids)
                self.problems.append(f"the {part} of {_named(changed_ids)} has changed")
        _read_records(store)
        self.problems += _copy_problems(store) if is_intact and not self.damaged_ids else []
        if store.lacks_file_checksums():
            self.problems.append(f"{FILE_NAME} is missing: the search index is not used until its files can be checked")
        elif (
            is_intact and not self.problems and has_vector_index(store) and not check_search_index(Store(self.address))
        ):
            self.problems.append("the search index cannot be searched, although its checksums are right")


def repair_index(address: str | Path, found: Verification, progress: Progress = no_progress) -> None:
    """Remove damaged photos, build the search index again, and record new checksums.

    What a stopped calibration has encoded is removed, too.  found: the result of `verify_index`.  Raises
    DamagedIndexError if that is not enough.
    """
    address = str(address)
    if not found.can_repair:
        raise DamagedIndexError(f"{address} cannot be repaired. Restore a copy of it, or build it again.")
    lock = lock_for_writing(address)
    try:
        if is_local(address):
            remove_reader_copies(address)  # their checksums would be recorded as they are
            (Path(address) / FILE_NAME).unlink(missing_ok=True)
            for name in unreadable_versions(address):
                (Path(address) / name).unlink(missing_ok=True)
        store = Store(address, check=False)
        remove_views(store)
        if has_vector_index(store):
            drop_vector_index(store)
        if found.damaged_ids:
            store.remove(np.array(found.damaged_ids, np.int64))
        store.record_checksums(again=True)
    finally:
        lock.release()
    with open_index(address, write=True) as index:
        index.update_search(progress)


def _unreadable(problem: str) -> Verification:
    return Verification(
        num_photos=0,
        num_unchecked=0,
        num_files=0,
        problems=(problem,),
        notes=(),
        damaged_ids=(),
        can_repair=False,
    )


def _problem_in(error: BaseException, address: str) -> str:
    """What an error says about an index, without its address and without the advice to verify it."""
    text = str(error)
    for start in ("damaged", "not complete"):
        text = text.removeprefix(f"{address} is {start}: ")
    return text.removesuffix(f" Run `cosplace index verify {address}`.").rstrip(".")


def _read_records(store: Store) -> None:
    """Raise DamagedIndexError for a record that cannot be read, or settings that do not fit the photos."""
    for key in RECORDS:
        store.read_record(key)
    PhotoReader(store)
    RootFolders(store).placed(store.columns())


def _copy_problems(store: Store) -> list[str]:
    """What is wrong with the copy for readers of the newest version, whose checksum may be right."""
    name = reader_copy_name(store.versions())
    path = Path(store.address) / name
    if not is_local(store.address) or not path.is_file():
        return []
    try:
        copy = parse_reader_copy(path.read_bytes(), store.versions())
        if copy is None or is_same(copy, store.make_copy()):
            return []
    except (DamagedIndexError, OSError) as error:
        log.debug("%s", path, exc_info=error)
    return [f"{name} differs from the photos or records of the index"]


def _damaged_photos(batch: Any, checked_from: int) -> dict[str, list[int]]:
    """Ids of photos whose checksums are wrong, by part."""
    if "numbers_check" not in batch.schema.names:
        return {}
    ids = batch["id"].to_numpy()
    numbers = {name: batch[name].to_numpy() for name in NUMBER_COLUMNS}
    checks = {
        "numbers_check": numbers_checks(ids, numbers),
        "path_check": path_checks(ids, batch["path"].to_pylist()),
        "descriptor_check": descriptor_checks(ids, matrix(batch["descriptor"])),
        "rest_check": rest_checks(ids, {name: batch[name].to_pylist() for name in REST_COLUMNS}),
    }
    found = {}
    for name, values in checks.items():
        wrong = (values != batch[name].to_numpy()) & (ids >= checked_from)
        if wrong.any():
            found[PARTS[name]] = ids[wrong].tolist()
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip("'").splitlines() or [type(error).__name__])[0][:100]


def _named(ids: list[int]) -> str:
    if len(ids) == 1:
        return f"photo {ids[0]}"
    names = ", ".join(map(str, ids[:NUM_NAMED])) + (", ..." if len(ids) > NUM_NAMED else "")
    return f"{len(ids):,} photos ({names})"
