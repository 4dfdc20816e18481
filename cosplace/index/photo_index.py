"""An index of photos: open, search, add, remove, compact.  Legend: I photos, Q queries, K neighbors, D dimension.

One writer at a time, any number of readers.  A reader sees the photos as they were when it opened the index or last
called `refresh`.  Several threads may search one index.  Side effects: reads and writes the address of the index.
"""

import dataclasses
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from cosplace.config.index import IndexSettings
from cosplace.errors import ConfigError, PhotoIndexError
from cosplace.geo import bounding_box, in_box
from cosplace.index.approximate import build_approximate_index, read_approximate_index
from cosplace.index.file_checksums import damaged, is_local
from cosplace.index.filters import SearchFilter
from cosplace.index.keys import KeyTable, first_of_each
from cosplace.index.lance import OutdatedError
from cosplace.index.photo_table import photo_schema
from cosplace.index.records import AddResult, Columns, Matches, ModelSpec, NewPhoto, Photo, spec_from_record
from cosplace.index.root_folders import RootFolders
from cosplace.index.snapshot import Snapshot, load_snapshot
from cosplace.index.store import READ_ROWS, Store
from cosplace.index.writer_lock import WriterLock
from cosplace.models.views import PLAIN_VIEWS, PhotoViews
from cosplace.photos.paths import path_text, writable
from cosplace.progress import Progress, no_progress

FORMAT_VERSION = 2  # 1: without roots, position errors and checksums; a writer adds them
SPEC, NEXT_ID = "spec", "next_id"
PHOTO_COLUMNS = (
    "latitude", "longitude", "heading", "time", "accuracy_m", "source", "key", "num_bytes", "modified_ns", "thumbnail",
)  # fmt: skip
COMMIT_ROWS = 20_000  # photos per commit
MAX_FRAGMENTS = 256  # files of the table; more are joined
KEEP_VERSIONS_S = 3600.0  # so that readers of older versions can finish
ROW_BYTES = 200  # of a photo without descriptor and thumbnail, roughly
UNIT_TOLERANCE = 0.01
MAX_UNINDEXED = 10_000  # photos that every search compares before the search index is brought up to date
MAX_INDEX_PARTS = 8  # each update of the search index adds a part, which slows down searches

log = logging.getLogger(__name__)
T = TypeVar("T")


def create_index(address: str | Path, spec: ModelSpec, settings: IndexSettings | None = None) -> "PhotoIndex":
    """Create an empty index and open it for writing.

    address: a folder, or object storage such as s3://bucket/name.  spec: the model; descriptors of other models are
    refused.  Raises PhotoIndexError if there is already an index.
    """
    settings = settings or IndexSettings()
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
    Store.create(str(address), photo_schema(spec.dimension, settings.stored_dtype), {SPEC: record})
    return open_index(address, write=True)


def open_index(address: str | Path, *, write: bool = False, roots: Sequence[str] = ()) -> "PhotoIndex":
    """Open an index, also as a context manager.  write: open it for writing too.

    roots: new places of folders of photos, NEW or OLD=NEW; a writer records them.  Raises MissingIndexError if there
    is no index, DamagedIndexError if its files have changed, and IndexInUseError if another writer has it open.
    """
    store = Store(str(address))
    lock = WriterLock(str(address)) if write else None
    try:
        store.catch_up()
        return PhotoIndex(store, lock, roots)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


class PhotoIndex:
    """Photos with descriptors and positions; see `create_index` and `open_index`."""

    def __init__(self, store: Store, lock: WriterLock | None, roots: Sequence[str] = ()) -> None:
        record = store.read_record(SPEC)
        version = None if record is None else record.get("format")
        if record is None or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise PhotoIndexError(
                f"{store.address} has format {version}; this version reads formats 1 to {FORMAT_VERSION}. Use a newer "
                "version of cosplace, or build the index again."
            )
        self.address = store.address
        try:
            self.spec = spec_from_record(record["model"])
            self.settings = IndexSettings(**record["settings"])
            self._created = str(record["created"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise damaged(store.address, "its settings cannot be read") from error
        self._store, self._lock, self._record = store, lock, record
        self._guard = threading.RLock()  # of everything that is loaded when it is first needed
        self._snapshot: Snapshot | None = None
        self._keys: KeyTable | None = None
        if lock is not None:
            self._upgrade()
        self._roots = RootFolders(store, roots)
        if lock is not None:
            self._roots.record_moves()

    def _upgrade(self) -> None:
        """Add what an index of an earlier version lacks; photos and ids do not change."""
        if self._record["format"] < FORMAT_VERSION:
            self._store.upgrade()
            self._write_spec(format=FORMAT_VERSION)
        self._store.drop_unchecked_search_index()

    def _write_spec(self, **changes: Any) -> None:
        self._record = self._record | changes
        self._store.write_record(SPEC, self._record)

    def __enter__(self) -> "PhotoIndex":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Allow other writers; the index can still be searched."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __len__(self) -> int:
        return self._snapshot_now().columns.ids.size if self._snapshot else self._store.count()

    @property
    def can_write(self) -> bool:
        """Whether the index is open for writing."""
        return self._lock is not None

    # --- reading -----------------------------------------------------------------------------------------------------

    def search(
        self, descriptors: np.ndarray, k: int, *, where: SearchFilter | None = None, exact: bool = False
    ) -> Matches:
        """The k photos most similar to each descriptor (Q, D), by cosine; among equals the lower id comes first.

        where: only photos that pass.  exact: compare with all of them, as an evaluation does.  Otherwise more than
        settings.exact_rows photos are searched approximately; `info` reports the measured recall.
        """
        queries = self._checked(descriptors, "Queries").astype(np.float32)
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}.")
        return self._retry_if_outdated(lambda: self._snapshot_now().search(queries, k, where, exact=exact))

    def photo(self, photo_id: int) -> Photo:
        """One photo.  Raises PhotoIndexError if there is no photo with this id."""
        return self._retry_if_outdated(lambda: self._photo(photo_id))

    def _photo(self, photo_id: int) -> Photo:
        columns, row = self._row(photo_id)
        return columns.photo(row, self._store.values_at(int(columns.row_ids[row]), photo_id)["source"])

    def thumbnail(self, photo_id: int) -> bytes:
        """Thumbnail of a photo as JPEG; empty if the index stores none."""
        return self._retry_if_outdated(lambda: self._thumbnail(photo_id))

    def _thumbnail(self, photo_id: int) -> bytes:
        columns, row = self._row(photo_id)
        return self._store.values_at(int(columns.row_ids[row]), photo_id)["thumbnail"] or b""

    def descriptors(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Descriptors (n, D) float32 of some photos, in the order given."""
        return self._retry_if_outdated(lambda: self._descriptors(np.asarray(ids, np.int64)))

    def _descriptors(self, ids: np.ndarray) -> np.ndarray:
        if not len(ids):
            return np.empty((0, self.spec.dimension), np.float32)
        snapshot = self._snapshot_now()
        rows = np.minimum(np.searchsorted(snapshot.columns.ids, ids), max(0, len(snapshot.columns) - 1))
        missing = np.ones(len(ids), bool) if not len(snapshot.columns) else snapshot.columns.ids[rows] != ids
        if missing.any():
            raise PhotoIndexError(f"{self.address} has no photo with id {ids[missing][0]}. It may have been removed.")
        if snapshot.held is not None:
            return snapshot.held[rows].astype(np.float32)
        return self._store.descriptors_at(snapshot.columns.row_ids[rows], ids).astype(np.float32)

    def columns(self) -> Columns:
        """All photos as columns, by ascending id."""
        return self._snapshot_now().columns

    def within(self, bbox: tuple[float, float, float, float]) -> Columns:
        """Photos in west, south, east, north (degrees; west > east crosses the antimeridian), as columns."""
        columns = self.columns()
        return columns.take(np.flatnonzero(in_box(columns.latitudes, columns.longitudes, bbox)))

    def refresh(self) -> bool:
        """Read what a writer has stored since; returns whether there is anything new."""
        with self._guard:
            before = self._store.version
            self._store.catch_up()
            if self._store.version == before:
                return False
            self._snapshot = self._keys = None
            self._roots.read()
            return True

    def info(self) -> dict[str, Any]:
        """Facts about the index: photos, model, settings, search, size."""
        snapshot = self._snapshot_now()
        columns = snapshot.columns
        placed = ~np.isnan(columns.latitudes)
        used_roots = set(np.unique(columns.roots).tolist())  # a root whose photos all moved is not one anymore
        search: dict[str, Any] = {"kind": "exact"}
        if (approximate := snapshot.approximate) is not None:
            num_added = int(np.count_nonzero(columns.ids > approximate.last_id))
            search = {
                "kind": "approximate",
                "partitions": approximate.num_partitions,
                "partitions_searched": approximate.num_probed,
                "recall_at_1": approximate.recall_at_1,
                "recall_at_20": approximate.recall_at_20,
                "measured_on": approximate.num_measured,
                "added_since": num_added,
                "removed_since": approximate.count + num_added - len(columns),
            }
        return {
            "address": self.address,
            "count": len(columns),
            "with_position": int(placed.sum()),
            "with_heading": int((~np.isnan(columns.headings)).sum()),
            "with_time": int((~np.isnan(columns.times)).sum()),
            "bounds": bounding_box(columns.latitudes[placed], columns.longitudes[placed]),
            "created": self._created,
            "model": self.spec.record(),
            "settings": dataclasses.asdict(self.settings),
            "roots": [
                facts for root, facts in enumerate(self._roots.facts()) if root in used_roots or not len(columns)
            ],
            "with_accuracy": int((~np.isnan(columns.accuracies_m)).sum()),
            "without_checksums": int(np.count_nonzero(columns.ids < self._store.checked_from)),
            "search": search,
            "calibrated": (calibration := self.read_record("calibration")) is not None,
            "calibration": None if calibration is None else calibration.get("about"),
            "calibration_failed": self.read_record("calibration_failed") if calibration is None else None,
            "pieces": self._store.num_fragments(),
            "num_bytes": self._store.num_bytes(),
        }

    def check_model(self, name: str, checksum: str, image_size: int | None, views: PhotoViews = PLAIN_VIEWS) -> None:
        """Raise PhotoIndexError unless the index was built with this model, image size and views."""
        if checksum != self.spec.checksum:
            raise PhotoIndexError(
                f"{self.address} was built with the model {self.spec.model} (checksum {self.spec.checksum[:12]}), not "
                f"with {name} (checksum {checksum[:12]}). Use that model, or build a new index."
            )
        if image_size != self.spec.image_size:
            built, given = (
                "their original size" if size is None else f"{size} pixels"
                for size in (self.spec.image_size, image_size)
            )
            raise PhotoIndexError(f"{self.address} was built from photos at {built}, not at {given}. Set --image_size.")
        if views != self.spec.views:
            built, given = (one.text() or "none" for one in (self.spec.views, views))
            raise PhotoIndexError(
                f"{self.address} was built with other --scales, --flip or --query_policy ({built}), not with {given}. "
                f"Use the same ones, or build a new index."
            )

    # --- records -----------------------------------------------------------------------------------------------------

    def read_record(self, key: str) -> dict[str, Any] | None:
        """Record stored under a key (letters, digits, - and _); None if there is none."""
        return self._retry_if_outdated(lambda: self._store.read_record(key))

    def write_record(self, key: str, value: dict[str, Any]) -> None:
        """Store a record, as JSON, under a key."""
        self._check_writable()
        self._store.write_record(key, value)

    # --- roots of photos ---------------------------------------------------------------------------------------------

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders of photos, as text, where they are now."""
        return tuple(self._roots.folders)

    def add_root(self, folder: str | Path) -> None:
        """Store photos below a folder relative to it, unless it is below a root already."""
        self._check_writable()
        with self._guard:
            self._roots.add(path_text(Path(folder).resolve()))

    def set_model(self, model: str) -> None:
        """Record another name or path of the model, which has the same checksum."""
        self._check_writable()
        if model != self.spec.model:
            self.spec = dataclasses.replace(self.spec, model=model)
            self._write_spec(model=self.spec.record())

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
        descriptors = self._checked(descriptors, "Descriptors")
        lengths = np.linalg.norm(descriptors.astype(np.float32), axis=1)
        if not np.allclose(lengths, 1, atol=UNIT_TOLERANCE):
            raise ConfigError(
                f"Descriptors must have length 1, got {lengths.min():.3f} to {lengths.max():.3f}. Normalize them."
            )
        parts = []
        with self._guard:
            for at in range(0, len(photos), COMMIT_ROWS):
                parts.append(self._add(photos[at : at + COMMIT_ROWS], descriptors[at : at + COMMIT_ROWS]))
            self._snapshot = None
        return AddResult(
            ids=np.concatenate([part.ids for part in parts]), is_new=np.concatenate([part.is_new for part in parts])
        )

    def _add(self, photos: Sequence[NewPhoto], descriptors: np.ndarray) -> AddResult:
        table = self._key_table()
        keys = [photo.key for photo in photos]
        ids = table.find(keys, [photo.former_key for photo in photos])
        new = np.flatnonzero(ids < 0)
        first = new[first_of_each([keys[number] for number in new])]  # the photo itself, or an earlier copy of it
        fresh = np.unique(first)
        ids[fresh] = self._next_id() + np.arange(len(fresh))
        ids[new] = ids[first]
        is_new = np.zeros(len(photos), bool)
        is_new[fresh] = True
        if len(fresh):
            self._append([photos[number] for number in fresh.tolist()], ids[fresh], descriptors[fresh])
            table.add([keys[number] for number in fresh.tolist()], ids[fresh])
        return AddResult(ids=ids, is_new=is_new)

    def _append(self, photos: list[NewPhoto], ids: np.ndarray, descriptors: np.ndarray) -> None:
        rows: dict[str, Any] = {name: [getattr(photo, name) for photo in photos] for name in PHOTO_COLUMNS}
        rows["root"], rows["path"] = zip(
            *(self._roots.stored_path(writable(photo.path)) for photo in photos), strict=True
        )
        rows |= {"id": ids, "descriptor": descriptors.astype(self.settings.stored_dtype)}
        num_bytes = sum(len(photo.thumbnail) + len(photo.path) + ROW_BYTES for photo in photos)
        self._store.append(rows, rows["descriptor"].nbytes + num_bytes)
        if self._store.version % 64 == 0 and self._store.num_fragments() > MAX_FRAGMENTS:
            self._store.optimize(forget_older_s=KEEP_VERSIONS_S)

    def _next_id(self) -> int:
        reserved = self._store.read_record(NEXT_ID)
        return max(self._key_table().last_id + 1, 0 if reserved is None else reserved["next_id"])

    def remove(self, ids: Sequence[int] | np.ndarray) -> int:
        """Remove photos by id; returns the number removed.  Ids are never used again."""
        self._check_writable()
        with self._guard:
            present = np.intersect1d(np.asarray(ids, np.int64), self.columns().ids)
            if len(present):
                self._store.write_record(
                    NEXT_ID, {"next_id": self._next_id()}
                )  # first: after a kill, the ids stay used
                self._store.remove(present)
                self._key_table().remove(present)
                self._snapshot = None
            return len(present)

    def move(self, ids: Sequence[int] | np.ndarray, photos: Sequence[NewPhoto]) -> None:
        """Change the path, size and time of photos to those of another file with the same content."""
        self._check_writable()
        if not len(ids):
            return
        with self._guard:
            roots, paths = zip(*(self._roots.stored_path(writable(photo.path)) for photo in photos), strict=True)
            columns: dict[str, Sequence] = {"root": roots, "path": paths}
            columns |= {
                name: [getattr(photo, name) for photo in photos] for name in ("source", "num_bytes", "modified_ns")
            }
            self._store.replace_columns(np.asarray(ids, np.int64), columns)
            self._snapshot = None

    def update_search(self, progress: Progress = no_progress, *, always: bool = False) -> bool:
        """Build the approximate search index, if the photos are many and it is missing or most of them changed since.

        With smaller changes the index is only brought up to date.  Returns whether it was built.
        """
        self._check_writable()
        with self._guard:
            count = self._store.count()
            if count <= self.settings.exact_rows:
                return False
            is_intact = self._store.check_search_index()
            index = read_approximate_index(self._store) if is_intact else None
            if index is not None and not always:
                num_added = int(np.count_nonzero(self.columns().ids > index.last_id))
                num_removed = index.count + num_added - count
                num_unindexed, num_parts = self._store.search_index_state()
                few_changed = max(num_added, num_removed) <= max(self.settings.exact_rows, count // 10)
                if few_changed and num_parts <= MAX_INDEX_PARTS:
                    if num_unindexed > MAX_UNINDEXED:
                        self._store.optimize(forget_older_s=KEEP_VERSIONS_S)
                        self._snapshot = None
                    return False
            if not is_intact:
                self._store.drop_vector_index()  # Lance would read it
            build_approximate_index(self._store, progress)
            self._snapshot = None
            return True

    def compact(self, progress: Progress = no_progress) -> None:
        """Join small files, free the space of removed photos, and build the search index again.

        Photos stored by an earlier version get checksums.
        """
        self._check_writable()
        with self._guard:
            self._add_checksums()
            is_only_writer = self._lock is not None and self._lock.is_held
            self._store.optimize(forget_older_s=0, is_only_writer=is_only_writer)
            self._snapshot = None
            if self.update_search(progress, always=True):  # then the files of the former search index are not needed
                self._store.optimize(forget_older_s=0, is_only_writer=is_only_writer)
            if is_local(self.address):  # where earlier versions kept their search structure
                shutil.rmtree(Path(self.address) / "search", ignore_errors=True)

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

    def stamps(self) -> dict[str, tuple[int, int, int]]:
        """Path -> (bytes, modification time in ns, id) of the photos that come from files."""
        columns = self.columns()
        path_of = dict(zip(columns.ids.tolist(), columns.paths(), strict=True))
        found = {}
        for batch in self._store.scan(("id", "num_bytes", "modified_ns")):
            values = (batch[name].to_pylist() for name in ("id", "num_bytes", "modified_ns"))
            found |= {
                path_of[photo_id]: (size, changed, photo_id) for photo_id, size, changed in zip(*values, strict=True)
            }
        return found

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self._lock is None:
            raise PhotoIndexError(f"{self.address} is open for reading only. Open it with write=True.")

    def _checked(self, descriptors: np.ndarray, name: str) -> np.ndarray:
        if descriptors.ndim != 2 or descriptors.shape[1] != self.spec.dimension:
            raise ConfigError(
                f"{name} have the shape {descriptors.shape}, but {self.address} holds (n, {self.spec.dimension}). "
                f"Compute them with {self.spec.model}."
            )
        if not np.isfinite(descriptors).all():
            raise ConfigError(f"{name} have values that are not finite. Compute them again.")
        return descriptors

    def _row(self, photo_id: int) -> tuple[Columns, int]:
        columns = self.columns()
        row = columns.row_of(photo_id)
        if row is None:
            raise PhotoIndexError(f"{self.address} has no photo with id {photo_id}. It may have been removed.")
        return columns, row

    def _key_table(self) -> KeyTable:
        if self._keys is None:
            self._keys = KeyTable(self._store)
        return self._keys

    def _snapshot_now(self) -> Snapshot:
        if (snapshot := self._snapshot) is not None:
            return snapshot
        with self._guard:
            if self._snapshot is None:
                self._snapshot = self._load()
            return self._snapshot

    def _retry_if_outdated(self, read: Callable[[], T]) -> T:
        """Call `read`, and again if a writer has removed the version that was read."""
        try:
            return read()
        except OutdatedError:
            with self._guard:
                self._store.catch_up()
                self._snapshot = None
            return read()

    def _load(self) -> Snapshot:
        return load_snapshot(self._store, self.settings, self._roots.placed, can_write=self.can_write)
