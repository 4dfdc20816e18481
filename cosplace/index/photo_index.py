"""An index of photos: opened, searched, added to, cleaned up.  Legend: I photos, Q queries, K neighbours, D dimension.

One writer at a time, any number of readers; a reader sees the photos of the moment at which it opened the index or
last called `refresh`.  Searching is safe from many threads.  Side effects: reads and writes the index's address.
"""

import dataclasses
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from cosplace.errors import ConfigError, PhotoIndexError
from cosplace.index.filters import SearchFilter, in_box
from cosplace.index.inverted import InvertedLists, Progress, build_lists, open_lists
from cosplace.index.keys import Ledger
from cosplace.index.records import Added, Columns, Matches, ModelSpec, NewPhoto, Photo, Settings
from cosplace.index.snapshot import Snapshot
from cosplace.index.store import OutdatedError, Store, WriterLock, is_local, photo_schema
from cosplace.storage import cache_folder

FORMAT_VERSION = 1
SPEC, NEXT_ID = "spec", "next_id"
COMMIT_ROWS = 20_000  # photos stored at once
MANY_PIECES = 256  # files of photos that are then joined
KEEP_VERSIONS_S = 3600.0  # for readers of older versions
WRITTEN_BYTES = 200  # of a photo beside descriptor and thumbnail, about
UNIT_TOLERANCE = 0.01
LOCAL_SEARCH = "search"

log = logging.getLogger(__name__)
T = TypeVar("T")


def create_index(address: str | Path, spec: ModelSpec, settings: Settings | None = None) -> "PhotoIndex":
    """A new, empty index, open for writing; photos of any model but `spec` are refused from then on.

    address: a folder, or object storage such as s3://bucket/name.  Raises PhotoIndexError when there is one already.
    """
    settings = settings or Settings()
    if settings.stored_dtype not in ("float32", "float16"):
        raise ConfigError(f"stored_dtype is '{settings.stored_dtype}': use float32 or float16.")
    if settings.thumbnail_size < 0 or settings.exact_rows < 1 or spec.dimension < 1:
        raise ConfigError(f"An index cannot be made with {settings} and {spec}: sizes below 0, or no rows.")
    record = {
        "format": FORMAT_VERSION,
        "index": uuid.uuid4().hex,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": dataclasses.asdict(spec),
        "settings": dataclasses.asdict(settings),
    }
    Store.create(str(address), photo_schema(spec.dimension, settings.stored_dtype), {SPEC: record})
    return open_index(address, write=True)


def open_index(address: str | Path, *, write: bool = False) -> "PhotoIndex":
    """An index that is there; a context manager.

    Raises PhotoIndexError when there is none, or when `write` and another writer has it.
    """
    store = Store(str(address))
    lock = WriterLock(str(address)) if write else None
    try:
        store.catch_up()
        return PhotoIndex(store, lock)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


class PhotoIndex:
    """Photos with their descriptors and coordinates; see `create_index` and `open_index`."""

    def __init__(self, store: Store, lock: WriterLock | None) -> None:
        record = store.read_record(SPEC)
        if record is None or record.get("format") != FORMAT_VERSION:
            found = None if record is None else record.get("format")
            raise PhotoIndexError(f"{store.address} has format {found}, not {FORMAT_VERSION}: build it again.")
        self.address = store.address
        self.spec = ModelSpec(**record["model"])
        self.settings = Settings(**record["settings"])
        self._store, self._lock, self._record = store, lock, record
        self._guard = threading.RLock()  # of what is loaded late
        self._snapshot: Snapshot | None = None
        self._ledger: Ledger | None = None

    def __enter__(self) -> "PhotoIndex":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let others write; what was searched stays usable."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __len__(self) -> int:
        return self._snapshot_now().columns.ids.size if self._snapshot else self._store.count()

    @property
    def can_write(self) -> bool:
        """Whether it was opened for writing and not closed since."""
        return self._lock is not None

    # --- looking -----------------------------------------------------------------------------------------------------

    def search(
        self, descriptors: np.ndarray, k: int, *, where: SearchFilter | None = None, exact: bool = False
    ) -> Matches:
        """The k photos most similar to each descriptor (Q, D), by cosine; among equals the lower id comes first.

        where: only photos that pass.  exact: compare with all of them, as evaluation does; otherwise many photos
        (more than settings.exact_rows) are searched by lists, whose measured recall `info` tells.
        """
        queries = self._checked(descriptors, "Queries").astype(np.float32)
        if k < 1:
            raise ConfigError(f"k is {k}: ask for at least 1 neighbour.")
        return self._steady(lambda: self._snapshot_now().search(queries, k, where, exact=exact))

    def photo(self, photo_id: int) -> Photo:
        """One photo.  Raises PhotoIndexError when there is none with that id."""
        return self._steady(lambda: self._photo(photo_id))

    def _photo(self, photo_id: int) -> Photo:
        columns, row = self._row(photo_id)
        return columns.photo(row, self._store.values_at(int(columns.row_ids[row]), ("source",))["source"])

    def thumbnail(self, photo_id: int) -> bytes:
        """The small JPEG of a photo; empty where the index keeps none."""
        return self._steady(lambda: self._thumbnail(photo_id))

    def _thumbnail(self, photo_id: int) -> bytes:
        columns, row = self._row(photo_id)
        return self._store.values_at(int(columns.row_ids[row]), ("thumbnail",))["thumbnail"] or b""

    def descriptors(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Descriptors (n, D) float32 of some photos, in the order given."""
        return self._steady(lambda: self._descriptors(np.asarray(ids, np.int64)))

    def _descriptors(self, ids: np.ndarray) -> np.ndarray:
        if not len(ids):
            return np.empty((0, self.spec.dimension), np.float32)
        snapshot = self._snapshot_now()
        rows = np.minimum(np.searchsorted(snapshot.columns.ids, ids), max(0, len(snapshot.columns) - 1))
        missing = np.ones(len(ids), bool) if not len(snapshot.columns) else snapshot.columns.ids[rows] != ids
        if missing.any():
            raise PhotoIndexError(f"{self.address} has no photo with id {ids[missing][0]}: it may have been removed.")
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
        """See what a writer stored since; returns whether there is anything new."""
        with self._guard:
            before = self._store.version
            self._store.catch_up()
            if self._store.version == before:
                return False
            self._snapshot = self._ledger = None
            return True

    def info(self) -> dict[str, Any]:
        """What the index holds and how it is searched, for people and programs."""
        snapshot = self._snapshot_now()
        columns = snapshot.columns
        placed = ~np.isnan(columns.latitudes)
        searching: dict[str, Any] = {"kind": "exact"}
        if snapshot.lists is not None:
            meta = snapshot.lists.meta
            searching = {
                "kind": "lists",
                "lists": meta.num_lists,
                "lists_looked_at": meta.num_probed,
                "recall_at_1": meta.recall_at_1,
                "recall_at_20": meta.recall_at_20,
                "measured_on": meta.num_measured,
                "added_since": len(snapshot.later),
                "removed_since": int((snapshot.listed < 0).sum()),
            }
        return {
            "address": self.address,
            "count": len(columns),
            "with_position": int(placed.sum()),
            "with_heading": int((~np.isnan(columns.headings)).sum()),
            "with_time": int((~np.isnan(columns.times)).sum()),
            "bounds": _bounds(columns.latitudes[placed], columns.longitudes[placed]),
            "created": self._record["created"],
            "model": dataclasses.asdict(self.spec),
            "settings": dataclasses.asdict(self.settings),
            "search": searching,
            "calibrated": self.read_record("calibration") is not None,
            "pieces": self._store.num_pieces(),
            "num_bytes": self._store.num_bytes(),
        }

    def check_model(self, name: str, checksum: str, image_size: int | None) -> None:
        """Raise PhotoIndexError unless this model, with photos of this size, made the index."""
        if checksum != self.spec.checksum:
            raise PhotoIndexError(
                f"{self.address} was made with the model {self.spec.model} (checksum {self.spec.checksum[:12]}), not "
                f"with {name} (checksum {checksum[:12]}): use that model, or build an index with this one."
            )
        if image_size != self.spec.image_size:
            was, now = (
                "their own size" if size is None else f"{size} pixels" for size in (self.spec.image_size, image_size)
            )
            raise PhotoIndexError(f"{self.address} holds photos described at {was}, not at {now}: give --image_size.")

    # --- records -----------------------------------------------------------------------------------------------------

    def read_record(self, key: str) -> dict[str, Any] | None:
        """What was written under a key (letters, digits, - and _); None when nothing was."""
        return self._steady(lambda: self._store.read_record(key))

    def write_record(self, key: str, value: dict[str, Any]) -> None:
        """Keep JSON under a key."""
        self._check_writable()
        self._store.write_record(key, value)

    # --- writing -----------------------------------------------------------------------------------------------------

    def add(self, photos: Sequence[NewPhoto], descriptors: np.ndarray) -> Added:
        """Add photos with their descriptors (n, D); those whose key is there are left as they are.

        When it returns, all of them are stored.  Raises StorageError when the disk is full: nothing is lost, and what
        was stored stays.
        """
        self._check_writable()
        if len(photos) != len(descriptors):
            raise ConfigError(f"{len(photos)} photos come with {len(descriptors)} descriptors: give one for each.")
        if not len(photos):
            return Added(ids=np.empty(0, np.int64), is_new=np.empty(0, bool))
        descriptors = self._checked(descriptors, "Descriptors")
        lengths = np.linalg.norm(descriptors.astype(np.float32), axis=1)
        if not np.allclose(lengths, 1, atol=UNIT_TOLERANCE):
            raise ConfigError(
                f"Descriptors have lengths from {lengths.min():.3f} to {lengths.max():.3f}: normalize them to length 1."
            )
        parts = []
        with self._guard:
            for at in range(0, len(photos), COMMIT_ROWS):
                parts.append(self._add(photos[at : at + COMMIT_ROWS], descriptors[at : at + COMMIT_ROWS]))
            self._snapshot = None
        return Added(
            ids=np.concatenate([part.ids for part in parts]), is_new=np.concatenate([part.is_new for part in parts])
        )

    def _add(self, photos: Sequence[NewPhoto], descriptors: np.ndarray) -> Added:
        ledger = self._ledger_now()
        keys = [photo.key for photo in photos]
        ids = ledger.find(keys)
        first: dict[str, int] = {}  # of each new key
        for number in np.flatnonzero(ids < 0).tolist():
            first.setdefault(keys[number], number)
        fresh = np.array(sorted(first.values()), np.int64)
        ids[fresh] = self._next_id() + np.arange(len(fresh))
        for number in np.flatnonzero(ids < 0).tolist():
            ids[number] = ids[first[keys[number]]]
        is_new = np.zeros(len(photos), bool)
        is_new[fresh] = True
        if len(fresh):
            self._append([photos[number] for number in fresh.tolist()], ids[fresh], descriptors[fresh])
            ledger.add([keys[number] for number in fresh.tolist()], ids[fresh])
        return Added(ids=ids, is_new=is_new)

    def _append(self, photos: list[NewPhoto], ids: np.ndarray, descriptors: np.ndarray) -> None:
        names = ("latitude", "longitude", "heading", "time", "source", "key", "num_bytes", "modified_ns", "thumbnail")
        rows: dict[str, Any] = {name: [getattr(photo, name) for photo in photos] for name in names}
        # A name that is no text keeps its bytes visible; Lance stores UTF-8 only.
        rows["path"] = [photo.path.encode("utf-8", "backslashreplace").decode() for photo in photos]
        rows |= {"id": ids, "descriptor": descriptors.astype(self.settings.stored_dtype)}
        beside = sum(len(photo.thumbnail) + len(photo.path) + WRITTEN_BYTES for photo in photos)
        self._store.append(rows, rows["descriptor"].nbytes + beside)
        if self._store.version % 64 == 0 and self._store.num_pieces() > MANY_PIECES:
            self._store.join_pieces(forget_older_s=KEEP_VERSIONS_S)

    def _next_id(self) -> int:
        reserved = self._store.read_record(NEXT_ID)
        return max(self._ledger_now().last_id + 1, 0 if reserved is None else reserved["next_id"])

    def remove(self, ids: Sequence[int] | np.ndarray) -> int:
        """Remove photos by id; returns how many there were.  Ids are never given again."""
        self._check_writable()
        with self._guard:
            present = np.intersect1d(np.asarray(ids, np.int64), self.columns().ids)
            if len(present):
                self._store.write_record(NEXT_ID, {"next_id": self._next_id()})  # before: a kill must not free them
                self._store.remove(present)
                self._ledger_now().forget(present)
                self._snapshot = None
            return len(present)

    def update_search(self, progress: Progress | None = None, *, always: bool = False) -> bool:
        """Make the lists that many photos are searched by, where they are missing or most photos changed since.

        Returns whether they were made.  progress: called with (done, total).
        """
        with self._guard:
            count = self._store.count()
            if count <= self.settings.exact_rows:
                return False
            lists = open_lists(self._search_folder(), self._record["index"])
            if lists is not None and not always:
                num_later = sum(len(ids) for ids in self._ids_after(lists.meta.last_id))
                num_removed = lists.meta.count + num_later - count
                if max(num_later, num_removed) <= max(self.settings.exact_rows, count // 10):
                    return False
            self._build_lists(count, progress)
            self._snapshot = None
            return True

    def compact(self, progress: Progress | None = None) -> None:
        """Join the pieces that additions left, give back what removals freed, make the lists for searching anew."""
        self._check_writable()
        with self._guard:
            self._store.join_pieces(forget_older_s=0)
            self._snapshot = None
            self.update_search(progress, always=True)

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """(n,) int64: the id of the photo with each key, -1 where there is none."""
        with self._guard:
            return self._ledger_now().find(list(keys))

    def stamps(self) -> dict[str, tuple[int, int, int]]:
        """Path -> (bytes, time of change in ns, id) of the photos that came from files."""
        found = {}
        for batch in self._store.scan(("id", "path", "num_bytes", "modified_ns")):
            columns = (batch[name].to_pylist() for name in ("path", "num_bytes", "modified_ns", "id"))
            found |= {path: (size, changed, photo_id) for path, size, changed, photo_id in zip(*columns, strict=True)}
        return found

    # --- inside ------------------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self._lock is None:
            raise PhotoIndexError(f"{self.address} is open for reading only: open it with write=True.")

    def _checked(self, descriptors: np.ndarray, whose: str) -> np.ndarray:
        if descriptors.ndim != 2 or descriptors.shape[1] != self.spec.dimension:
            raise ConfigError(
                f"{whose} have the shape {descriptors.shape}, but {self.address} holds (n, {self.spec.dimension}): "
                f"describe photos with {self.spec.model}."
            )
        if not np.isfinite(descriptors).all():
            raise ConfigError(f"{whose} hold values that are not finite: describe these photos again.")
        return descriptors

    def _row(self, photo_id: int) -> tuple[Columns, int]:
        columns = self.columns()
        row = columns.row_of(photo_id)
        if row is None:
            raise PhotoIndexError(f"{self.address} has no photo with id {photo_id}: it may have been removed.")
        return columns, row

    def _ledger_now(self) -> Ledger:
        if self._ledger is None:
            self._ledger = Ledger(self._store)
        return self._ledger

    def _snapshot_now(self) -> Snapshot:
        if (snapshot := self._snapshot) is not None:
            return snapshot
        with self._guard:
            if self._snapshot is None:
                self._snapshot = self._load()
            return self._snapshot

    def _steady(self, read: Callable[[], T]) -> T:
        """Read; again when a writer forgot the version that was read."""
        try:
            return read()
        except OutdatedError:
            with self._guard:
                self._store.catch_up()
                self._snapshot = None
            return read()

    def _load(self) -> Snapshot:
        columns = self._store.columns()
        if len(columns) <= self.settings.exact_rows:
            return Snapshot.few(self._store, columns, self._held(columns.ids, None))
        lists = open_lists(self._search_folder(), self._record["index"])
        if lists is None:
            log.info("%s: the lists for searching are missing, they are made from the photos", self.address)
            lists = self._build_lists(len(columns), None)
        later = columns.ids[columns.ids > lists.meta.last_id]
        held = self._held(later, lists.meta.last_id)
        return Snapshot.many(self._store, columns, lists, held, self.settings.exact_rows)

    def _held(self, ids: np.ndarray, newer_than: int | None) -> np.ndarray:
        """Descriptors (n, D) as stored of the photos with these ascending ids, which are all or all newer ones."""
        held = np.empty((len(ids), self.spec.dimension), self.settings.stored_dtype)
        if len(ids):
            for some, rows in self._store.descriptors(newer_than):
                held[np.searchsorted(ids, some)] = rows
        return held

    def _ids_after(self, last_id: int) -> Iterator[np.ndarray]:
        for batch in self._store.scan(("id",), newer_than=last_id):
            yield batch["id"].to_numpy()

    def _search_folder(self) -> Path:
        beside = Path(self.address) / LOCAL_SEARCH
        if is_local(self.address) and (beside.is_dir() or os.access(self.address, os.W_OK)):
            return beside
        return cache_folder("index") / self._record["index"]

    def _build_lists(self, count: int, progress: Progress | None) -> InvertedLists:
        return build_lists(
            self._search_folder(),
            self._store.descriptors,
            index=self._record["index"],
            count=count,
            dimension=self.spec.dimension,
            progress=progress,
        )


def _bounds(latitudes: np.ndarray, longitudes: np.ndarray) -> tuple[float, float, float, float] | None:
    """West, south, east, north; across the antimeridian (west > east) where that box is narrower."""
    if not len(latitudes):
        return None
    west, east = float(longitudes.min()), float(longitudes.max())
    if east - west > 180:
        eastern, western = longitudes[longitudes >= 0], longitudes[longitudes < 0]
        if len(eastern) and len(western) and 360 - (eastern.min() - western.max()) < east - west:
            west, east = float(eastern.min()), float(western.max())
    return west, float(latitudes.min()), east, float(latitudes.max())
