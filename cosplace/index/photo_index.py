"""An index of photos: open, search, add, remove, compact.  Legend: n photos, D dimension.

One writer at a time, any number of readers, see `cosplace.index.photo_reader`.  Side effects: reads and writes the
address of the index.
"""

import dataclasses
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.index import IndexSettings
from cosplace.errors import ConfigError, CosPlaceError, PhotoIndexError
from cosplace.index.approximate import BuildSearch, build_approximate_index, read_approximate_index
from cosplace.index.checksums import NUMBER_COLUMNS
from cosplace.index.conditional_writes import creating_alone
from cosplace.index.file_checksums import damaged, is_local
from cosplace.index.identity import SPEC, check_identity
from cosplace.index.keys import KeyTable, first_of_each
from cosplace.index.lance import OutdatedError, translated_errors
from cosplace.index.photo_reader import FORMAT_VERSION, PhotoReader, check_descriptors
from cosplace.index.photo_table import photo_schema, wrong_numbers
from cosplace.index.reader_copy import MAX_COPY_BYTES, remove_reader_copies
from cosplace.index.records import AddResult, ModelSpec, NewPhoto
from cosplace.index.search_index import (
    MAX_UNINDEXED,
    build_vector_index,
    check_search_index,
    drop_unchecked_search_index,
    drop_vector_index,
    optimize,
    search_index_state,
)
from cosplace.index.store import READ_ROWS, Store, has_index
from cosplace.index.view_table import remove_views
from cosplace.index.writer_lease import WriterLease
from cosplace.index.writer_lock import WriterLock, lock_for_writing
from cosplace.photos.paths import path_text, printable, writable
from cosplace.progress import Progress, no_progress
from cosplace.shapes import MAX_COUNT
from cosplace.storage import problem_with_kind, storage_errors

NEXT_ID = "next_id"  # the key of the record of the lowest id that was never used
PHOTO_COLUMNS = (
    "latitude", "longitude", "heading", "time", "accuracy_m", "source", "key", "num_bytes", "modified_ns", "thumbnail",
)  # fmt: skip
OPEN_ATTEMPTS = 3  # of a reader, while a writer removes versions
COMMIT_ROWS = 20_000  # photos per commit
MAX_FRAGMENTS = 256  # small files of the table; more are joined
KEEP_VERSIONS_S = 3600.0  # so that readers of older versions can finish
ROW_BYTES = 200  # of a photo without descriptor and thumbnail, roughly
MAX_INDEX_PARTS = 8  # each update of the search index adds a part, which slows down searches

log = logging.getLogger(__name__)


def create_index(address: str | Path, spec: ModelSpec, settings: IndexSettings | None = None) -> "PhotoIndex":
    """Create an empty index and open it for writing.

    address: a folder, or object storage such as s3://bucket/name.  spec: the model; descriptors of other models are
    refused.  Raises PhotoIndexError if there is already an index, IndexInUseError if another process is creating one.
    """
    settings = settings or IndexSettings()
    if writable(str(address)) != str(address):  # LanceDB opens no other paths
        raise ConfigError(f"{printable(str(address))}: the path of an index must be UTF-8. Choose another folder.")
    if settings.stored_dtype not in ("float32", "float16"):
        raise ConfigError(f"stored_dtype must be float32 or float16, got '{settings.stored_dtype}'.")
    if settings.thumbnail_size < 0 or settings.exact_rows < 1 or spec.dimension < 1:
        raise ConfigError(f"An index needs positive sizes, got {settings} and {spec}.")
    record = {
        "format": FORMAT_VERSION,
        "index": uuid.uuid4().hex,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": spec.record(),
        "settings": dataclasses.asdict(settings),
    }
    address, schema = str(address), photo_schema(spec.dimension, settings.stored_dtype)
    is_shared = not is_local(address) and not address.startswith(("file:", "memory:"))
    with creating_alone(address) if is_shared else nullcontext():
        lock = None
        if is_local(address) and not has_index(address):  # held until the index is closed
            if Path(address).exists() and not Path(address).is_dir():
                raise PhotoIndexError(f"{address} {problem_with_kind(address, 'folder')}. Choose another folder.")
            with storage_errors(Path(address)):
                Path(address).mkdir(parents=True, exist_ok=True)
            lock = WriterLock(address)
        try:
            store = Store.create(address, schema, {SPEC: record})
            return _opened(store, lock or lock_for_writing(address))
        except BaseException:
            if lock is not None:
                lock.release()
            raise


def open_index(address: str | Path, *, write: bool = False, roots: Sequence[str] = ()) -> "PhotoIndex":
    """Open an index, also as a context manager.  write: open it for writing too.

    roots: new places of folders of photos, NEW or OLD=NEW; a writer records them.  Raises MissingIndexError if there
    is no index, DamagedIndexError if its files have changed, and IndexInUseError if another writer has it open.
    """
    address = str(address)
    if write:
        return _opened(Store(address), lock_for_writing(address), roots)
    for _ in range(OPEN_ATTEMPTS - 1):
        with suppress(OutdatedError):  # a writer has removed that version meanwhile
            return _opened(Store(address, with_copy=True), None, roots)
    return _opened(Store(address, with_copy=True), None, roots)


def _opened(store: Store, lock: WriterLock | WriterLease | None, roots: Sequence[str] = ()) -> "PhotoIndex":
    try:
        if lock is not None:
            store.catch_up()
            lock.confirm()
        return PhotoIndex(store, lock, roots)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


class PhotoIndex(PhotoReader):
    """Photos with descriptors and positions, to search and to change; see `create_index` and `open_index`."""

    def __init__(self, store: Store, lock: WriterLock | WriterLease | None, roots: Sequence[str] = ()) -> None:
        super().__init__(store, roots)
        self._lock = lock
        self._keys: KeyTable | None = None
        if lock is not None:
            if is_local(self.address):
                remove_reader_copies(self.address)  # written again by `close`
            self._upgrade()
            self._roots.record_moves()

    def close(self) -> None:
        """Allow other writers; the index can still be searched."""
        if self._lock is None:
            return
        try:
            self._write_copy()
        finally:
            self._lock.release()
            self._lock = None

    def _write_copy(self) -> None:
        """Write the copy for readers of a small local index; without it, they read the tables."""
        row_bytes = self.spec.dimension * np.dtype(self.settings.stored_dtype).itemsize
        max_rows = min(self.settings.exact_rows, MAX_COPY_BYTES // row_bytes)
        if not is_local(self.address) or not self.can_write:
            return
        try:
            if self._store.count() <= max_rows:
                self._store.write_copy()
        except CosPlaceError as error:  # such as a full disk
            log.debug("%s: no copy for readers: %s", self.address, error)

    @property
    def can_write(self) -> bool:
        """Whether the index is open for writing."""
        return self._lock is not None and not self._lock.is_lost

    def _upgrade(self) -> None:
        """Add what an index of an earlier version lacks; photos and ids do not change."""
        self._store.check_columns_written()
        if self._record["format"] < FORMAT_VERSION:
            self._store.upgrade()
            self._write_spec(format=FORMAT_VERSION)
        drop_unchecked_search_index(self._store)

    def _write_spec(self, **changes: Any) -> None:
        self._record = self._record | changes
        self._store.write_record(SPEC, self._record)

    @property
    def store(self) -> Store:
        """The tables."""
        return self._store

    # --- records -----------------------------------------------------------------------------------------------------

    def write_record(self, key: str, value: dict[str, Any]) -> None:
        """Store a record, as JSON, under a key."""
        self._check_writable()
        self._store.write_record(key, value)

    def set_model(self, model: str) -> None:
        """Record another name or path of the model, which has the same checksum."""
        self._check_writable()
        if model != self.spec.model:
            self.spec = dataclasses.replace(self.spec, model=model)
            self._write_spec(model=self.spec.record())

    def add_root(self, folder: str | Path) -> None:
        """Store photos below a folder relative to it, unless it is below a root already."""
        self._check_writable()
        with self._guard:
            self._roots.add(path_text(Path(folder).resolve()))

    # --- writing -----------------------------------------------------------------------------------------------------

    def add(self, photos: Sequence[NewPhoto], descriptors: np.ndarray) -> AddResult:
        """Add photos with their descriptors (n, D); photos whose key is already there are not changed.

        When this returns, all of them are stored.  Raises StorageError if the disk is full; everything stored before
        stays.
        """
        self._check_writable()
        if len(photos) != len(descriptors):
            raise ConfigError(
                f"Each photo needs a descriptor, got {len(photos)} photos and {len(descriptors)} descriptors."
            )
        if not len(photos):
            return AddResult(ids=np.empty(0, np.int64), is_new=np.empty(0, bool))
        check_descriptors(descriptors, self.spec.dimension, self.address)
        parts = []
        with self._guard:
            for at in range(0, len(photos), COMMIT_ROWS):
                parts.append(self._add(photos[at : at + COMMIT_ROWS], descriptors[at : at + COMMIT_ROWS]))
            self._snapshot = None
        return AddResult(
            ids=np.concatenate([part.ids for part in parts]), is_new=np.concatenate([part.is_new for part in parts])
        )

    def _add(self, photos: Sequence[NewPhoto], descriptors: np.ndarray) -> AddResult:
        result = self.reserve(photos)
        fresh = np.flatnonzero(result.is_new)
        if len(fresh):
            try:
                new = [photos[number] for number in fresh.tolist()]
                rows = self.columns_of(new, result.ids[fresh])
                rows["descriptor"] = descriptors[fresh].astype(self.settings.stored_dtype)
                num_bytes = sum(len(photo.thumbnail) + len(photo.path) + ROW_BYTES for photo in new)
                self._store.append(rows, rows["descriptor"].nbytes + num_bytes)
            except BaseException:
                self._keys = None  # the ids were not used
                raise
            if self._store.version % 64 == 0 and self._store.num_small_fragments() > MAX_FRAGMENTS:
                optimize(self._store, forget_older_s=KEEP_VERSIONS_S)
        return result

    def reserve(self, photos: Sequence[NewPhoto]) -> AddResult:
        """Give ids to new photos, which the caller stores next; of others, return the id that they have.

        If they are not stored, the index must not be used further: it would take them for known photos.
        """
        table = self._key_table()
        keys = [photo.key for photo in photos]
        ids = table.find(keys, [photo.former_key for photo in photos])
        new = np.flatnonzero(ids < 0)
        first = new[first_of_each([keys[number] for number in new])]  # the photo itself, or an earlier copy of it
        fresh = np.unique(first)
        if len(fresh):
            next_id = self._next_id()
            if next_id + len(fresh) > MAX_COUNT:
                raise damaged(self.address, f"its next id is {next_id}")
            ids[fresh] = next_id + np.arange(len(fresh))
            table.add([keys[number] for number in fresh.tolist()], ids[fresh])
        ids[new] = ids[first]
        is_new = np.zeros(len(photos), bool)
        is_new[fresh] = True
        return AddResult(ids=ids, is_new=is_new)

    def commit(self, append: Callable[[int], None]) -> None:
        """Add photos to the table whose files have been written already, or join such files.

        append: does it, for a version of the table.  The ids of new photos come from `reserve`.  When this returns,
        they are stored.
        """
        self._check_writable()
        with self._guard, translated_errors(self.address):
            append(self._store.version)
            self._catch_up()
            self._store.record_checksums()
            self._snapshot = None

    def columns_of(self, photos: Sequence[NewPhoto], ids: np.ndarray) -> dict[str, Any]:
        """Columns of new photos as they are stored, without descriptors and checksums.  ids: (n,).

        Raises ConfigError for positions, headings, times and errors that no photo has.
        """
        rows: dict[str, Any] = {name: [getattr(photo, name) for photo in photos] for name in PHOTO_COLUMNS}
        if wrong := wrong_numbers({name: np.array(rows[name], float) for name in NUMBER_COLUMNS if name != "root"}):
            raise ConfigError(f"{printable(photos[wrong[0]].path)} has {wrong[1]}. Correct it, or use nan for unknown.")
        rows["root"], rows["path"] = zip(
            *(self._roots.stored_path(writable(photo.path)) for photo in photos), strict=True
        )
        return rows | {"id": ids}

    def _next_id(self) -> int:
        reserved = self._store.read_record(NEXT_ID)
        return max(self._key_table().last_id + 1, 0 if reserved is None else reserved["next_id"])

    def remove(self, ids: Sequence[int] | np.ndarray) -> int:
        """Remove photos by id; returns the number removed.  Ids are never used again."""
        self._check_writable()
        with self._guard:
            present = np.intersect1d(np.asarray(ids, np.int64), self.columns().ids)
            if len(present):
                # First: after a kill, the ids stay used.
                self._store.write_record(NEXT_ID, {"next_id": self._next_id()})
                self._store.remove(present)
                self._key_table().remove(present)
                self._snapshot = None
            return len(present)

    def move(self, ids: Sequence[int] | np.ndarray, photos: Sequence[NewPhoto], *, with_place: bool = False) -> None:
        """Change the path, file, time and accuracy of photos to those of another file with the same content.

        with_place: change position and heading, too.
        """
        self._check_writable()
        if not len(ids):
            return
        with self._guard:
            roots, paths = zip(*(self._roots.stored_path(writable(photo.path)) for photo in photos), strict=True)
            columns: dict[str, Sequence] = {"root": roots, "path": paths}
            names = ("source", "num_bytes", "modified_ns", "time", "accuracy_m")
            names += ("key", "latitude", "longitude", "heading") if with_place else ()
            columns |= {name: [getattr(photo, name) for photo in photos] for name in names}
            self._store.replace_columns(np.asarray(ids, np.int64), columns)
            self._snapshot = None

    def update_search(
        self,
        progress: Progress = no_progress,
        *,
        always: bool = False,
        build: BuildSearch | None = None,
    ) -> bool:
        """Build the approximate search index, if the photos are many and it is missing or most of them changed since.

        With smaller changes the index is only brought up to date.  Returns whether it was built.  build: builds it,
        for example on a cluster; by default, this process does.
        """
        self._check_writable()
        with self._guard:
            count = self._store.count()
            if count <= self.settings.exact_rows:
                return False
            is_intact = check_search_index(self._store)
            index = read_approximate_index(self._store) if is_intact else None
            if index is not None and not always:
                num_added = int(np.count_nonzero(self.columns().ids > index.last_id))
                num_removed = index.count + num_added - count
                num_unindexed, num_parts = search_index_state(self._store)
                few_changed = max(num_added, num_removed) <= max(self.settings.exact_rows, count // 10)
                if few_changed and num_parts <= MAX_INDEX_PARTS:
                    if num_unindexed > MAX_UNINDEXED:
                        optimize(self._store, forget_older_s=KEEP_VERSIONS_S)
                        self._snapshot = None
                    return False
            if not is_intact:
                drop_vector_index(self._store)  # Lance would read it
            build_approximate_index(self._store, progress, self._confirmed(build or build_vector_index))
            self._snapshot = None
            return True

    def _confirmed(self, build: BuildSearch) -> BuildSearch:
        """Afterwards, make sure that this process still is the only writer: it has read the newest version."""

        def build_and_confirm(store: Store, num_partitions: int) -> None:
            build(store, num_partitions)
            if self._lock is not None:
                self._lock.confirm()

        return build_and_confirm

    def compact(self, progress: Progress = no_progress) -> None:
        """Join small files, free the space of removed photos, and build the search index again.

        Photos stored by an earlier version get checksums.  What a stopped calibration has encoded is removed.
        """
        self._check_writable()
        with self._guard:
            remove_views(self._store)
            self._add_checksums()
            is_only_writer = self._lock is not None and self._lock.is_held
            optimize(self._store, forget_older_s=0, is_only_writer=is_only_writer)
            self._snapshot = None
            if self.update_search(progress, always=True):  # then the files of the former search index are not needed
                optimize(self._store, forget_older_s=0, is_only_writer=is_only_writer)

    def _add_checksums(self) -> None:
        """Rewrite the photos stored by an earlier version, with checksums."""
        columns = self.columns()
        ids = columns.ids[columns.ids < self._store.checked_from]
        for at in range(0, len(ids), READ_ROWS):
            self._store.replace_columns(ids[at : at + READ_ROWS], {})
        if len(ids):
            self._store.mark_all_checked()
            self._snapshot = None

    def find(self, keys: Sequence[str], former_keys: Sequence[str] = ()) -> np.ndarray:
        """Id of the photo with each key, (n,) int64; -1 if there is none.

        former_keys: of the same photos, as earlier versions wrote them; "" for none.
        """
        with self._guard:
            return self._key_table().find(keys, former_keys)

    def have_content(self, keys: Sequence[str]) -> np.ndarray:
        """Whether a photo of the index has the content of each key, at any position and heading, (n,) bool."""
        with self._guard:
            return self._key_table().have_content(keys)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self._lock is None:
            raise PhotoIndexError(f"{self.address} is open for reading only. Open it with write=True.")
        if self._lock.is_lost:
            self._lock.confirm()

    def _key_table(self) -> KeyTable:
        if self._keys is None:
            self._keys = KeyTable(self._store)
        return self._keys

    def refresh(self) -> bool:
        """Read what other writers have stored since; returns whether there is anything new."""
        with self._guard:
            if self._lock is None:
                is_new = super().refresh()
            else:
                before = self._store.version
                self._catch_up()
                is_new = self._store.version != before
                if is_new:
                    self._snapshot = None
                    self._roots.read()
            if is_new:
                self._keys = None
            return is_new

    def _catch_up(self) -> None:
        """Read the newest version from now on; a writer makes sure that it still is the only one."""
        if self._lock is None:
            super()._catch_up()
            return
        self._store.catch_up()  # the roots and the cluster use this store, too
        check_identity(self.address, self._record, self._store.read_record(SPEC))
        self._lock.confirm()
