"""An index of photos, opened for reading: search, photos, thumbnails, descriptors, facts.

A reader sees the photos as they were when it opened the index or last called `refresh`.  Several threads may search one
index.  Legend: I photos, Q queries, K neighbors, D dimension.  Side effects: reads the address of the index.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from cosplace.config.index import IndexSettings
from cosplace.errors import ConfigError, PhotoIndexError
from cosplace.geo import bounding_box, in_box
from cosplace.index.disk import index_bytes
from cosplace.index.file_checksums import damaged
from cosplace.index.filters import SearchFilter
from cosplace.index.identity import SPEC, check_identity
from cosplace.index.lance import OutdatedError
from cosplace.index.records import Columns, Matches, Photo, spec_from_record
from cosplace.index.root_folders import RootFolders
from cosplace.index.snapshot import Snapshot, load_snapshot
from cosplace.index.store import RECORDS, Store
from cosplace.models.views import PLAIN_VIEWS, PhotoViews

if TYPE_CHECKING:
    from cosplace.engines.encoder import Encoder

FORMAT_VERSION = 2  # 1: without roots, position errors and checksums; a writer adds them
PAUSES_S = (0.0, 0.2, 0.5)  # before the newest version is read again
UNIT_TOLERANCE = 0.01

T = TypeVar("T")


class PhotoReader:
    """Photos with descriptors and positions, to search and read."""

    def __init__(self, store: Store, roots: Sequence[str] = ()) -> None:
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
            store.search_codes = self.settings.search_codes
            self._created = str(record["created"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise damaged(store.address, "its settings cannot be read") from error
        if self.spec.dimension != store.dimension:
            raise damaged(
                store.address, f"its settings name {self.spec.dimension} dimensions, its photos have {store.dimension}"
            )
        self._store, self._record = store, record
        self._guard = threading.RLock()  # of everything that is loaded when it is first needed
        self._snapshot: Snapshot | None = None
        self._given_roots = tuple(roots)
        self._roots = RootFolders(store, roots)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to end: a reader holds no lock."""

    def __len__(self) -> int:
        return self._snapshot_now().columns.ids.size if self._snapshot else self._store.count()

    @property
    def can_write(self) -> bool:
        """Whether the index is open for writing."""
        return False

    def search(
        self, descriptors: np.ndarray, k: int, *, where: SearchFilter | None = None, exact: bool = False
    ) -> Matches:
        """The k photos most similar to each descriptor (Q, D), by cosine; among equals the lower id comes first.

        With the query policies nearest_crop and maj_voting, each query has the descriptors (Q, 5, D) of its crops.
        where: only photos that pass.  exact: compare with all of them, as an evaluation does.  Otherwise more than
        settings.exact_rows photos are searched approximately; `info` reports the measured recall.
        """
        num_crops, policy = self.spec.views.num_descriptors, self.spec.views.query_policy
        is_of_crops = num_crops > 1 and descriptors.ndim == 3 and descriptors.shape[1] == num_crops
        rows = descriptors.reshape(-1, descriptors.shape[2]) if is_of_crops else descriptors
        check_shape(rows, self.spec.dimension, self.address, "Queries")
        queries = descriptors.astype(np.float32)
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}.")
        return self._retry_if_outdated(
            lambda: self._snapshot_now().search(queries, k, where, exact=exact, policy=policy)
        )

    def photo(self, photo_id: int) -> Photo:
        """One photo.  Raises PhotoIndexError if there is no photo with this id."""
        return self._retry_if_outdated(lambda: self._photo(photo_id))

    def _photo(self, photo_id: int) -> Photo:
        snapshot, row = self._row(photo_id)
        columns = snapshot.columns
        return columns.photo(row, snapshot.store.values_at(int(columns.row_ids[row]), photo_id)["source"])

    def thumbnail(self, photo_id: int) -> bytes:
        """Thumbnail of a photo as JPEG; empty if the index stores none."""
        return self._retry_if_outdated(lambda: self._thumbnail(photo_id))

    def _thumbnail(self, photo_id: int) -> bytes:
        snapshot, row = self._row(photo_id)
        return snapshot.store.values_at(int(snapshot.columns.row_ids[row]), photo_id)["thumbnail"] or b""

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
            return snapshot.held[rows]
        return snapshot.store.descriptors_at(snapshot.columns.row_ids[rows], ids).astype(np.float32)

    def columns(self) -> Columns:
        """All photos as columns, by ascending id."""
        return self._snapshot_now().columns

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

    def within(self, bbox: tuple[float, float, float, float]) -> Columns:
        """Photos in west, south, east, north (degrees; west > east crosses the antimeridian), as columns."""
        columns = self.columns()
        return columns.take(np.flatnonzero(in_box(columns.latitudes, columns.longitudes, bbox)))

    def refresh(self) -> bool:
        """Read what a writer has stored since; returns whether there is anything new.

        Until everything is read, other threads search the photos that were read before.  Raises ReplacedIndexError if
        another index is now at the address; searches continue in the photos that were read before.
        """
        with self._guard:
            try:
                return self._read_newest()
            except OutdatedError:  # a writer has removed that version meanwhile
                return self._read_newest()

    def _read_newest(self) -> bool:
        newest = self._newest()
        if newest.version == self._store.version:
            self._store = newest  # its records may be newer
            return False
        roots, snapshot = RootFolders(newest, self._given_roots), self._snapshot
        if snapshot is not None:
            snapshot = load_snapshot(newest, self.settings, roots.placed, can_write=False)
        self._store, self._roots, self._snapshot = newest, roots, snapshot
        return True

    def _newest(self, *, reopen: bool = False) -> Store:
        newest = self._store.newest(reopen=reopen)
        check_identity(self.address, self._record, newest.read_record(SPEC))
        return newest

    def missing_files(self) -> list[str]:
        """The files of a local index that are gone; a writer may have just removed them."""
        return self._store.files.missing()

    def check_same(self, other: "PhotoReader") -> None:
        """Raise ReplacedIndexError if `other`, opened at the same address, is another index."""
        check_identity(self.address, self._record, other._record)
        self._store.check_place()

    def info(self) -> dict[str, Any]:
        """Facts about the index: photos, model, settings, search, size."""
        return self._retry_if_outdated(self._info)

    def _info(self) -> dict[str, Any]:
        snapshot = self._snapshot_now()
        columns = snapshot.columns
        placed = ~np.isnan(columns.latitudes)
        used_roots = set(np.unique(columns.roots).tolist())  # a root whose photos all moved is not one anymore
        search: dict[str, Any] = {"kind": "exact"}
        if (approximate := snapshot.approximate) is not None:
            num_added = int(np.count_nonzero(columns.ids > approximate.last_id))
            search = {
                "kind": "approximate",
                "codes": self.settings.search_codes,
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
            "model": {"engine": self.spec.engine} | self.spec.record(),
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
            "num_bytes": index_bytes(self.address),
        }

    def check_model(
        self,
        name: str,
        checksum: str,
        image_size: int | None,
        views: PhotoViews = PLAIN_VIEWS,
        *,
        engine: str = "torch",
        engine_file: str = "",
    ) -> None:
        """Raise PhotoIndexError unless the index was built with this model, image size and views.

        engine, engine_file: an engine and, for int8, the SHA-256 of its file, whose descriptors must agree.
        """
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
            raise PhotoIndexError(
                f"{self.address} was built from photos at {built}, not at {given}. Use that size, or build a new index."
            )
        if views != self.spec.views:
            built, given = (one.text() or "none" for one in (self.spec.views, views))
            raise PhotoIndexError(
                f"{self.address} was built with other --scales, --flip or --query_policy ({built}), not with {given}. "
                f"Use the same ones, or build a new index."
            )

        self.spec.choose_engine(engine, self.address)
        if engine_file != self.spec.engine_file:
            raise PhotoIndexError(
                f"{self.address} was built with another file of {engine} ({self.spec.engine_file[:12]}, not "
                f"{engine_file[:12]}), calibrated on other photos or exported by other versions. Omit --engine to use "
                f"it, or build a new index."
            )

    def check_encoder(self, encoder: "Encoder") -> None:
        """Raise PhotoIndexError unless the descriptors of an encoder agree with those of the index."""
        self.check_model(
            encoder.name or "the model",
            encoder.checksum,
            encoder.image_size,
            encoder.views,
            engine=encoder.engine.kind.name,
            engine_file=encoder.engine_file,
        )

    def read_record(self, key: str) -> dict[str, Any] | None:
        """Record stored under a key (letters, digits, - and _); None if there is none."""
        return self._retry_if_outdated(lambda: self._store.read_record(key))

    @property
    def records_version(self) -> int:
        """Version of the records that are read; another one after they were changed."""
        return self._store.versions()[RECORDS]

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders of photos, as text, where they are now."""
        return tuple(self._roots.folders)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _row(self, photo_id: int) -> tuple[Snapshot, int]:
        snapshot = self._snapshot_now()
        row = snapshot.columns.row_of(photo_id)
        if row is None:
            raise PhotoIndexError(f"{self.address} has no photo with id {photo_id}. It may have been removed.")
        return snapshot, row

    def _snapshot_now(self) -> Snapshot:
        if (snapshot := self._snapshot) is not None:
            return snapshot
        with self._guard:
            if self._snapshot is None:
                self._snapshot = self._retry_if_outdated(self._load)
            return self._snapshot

    def _retry_if_outdated(self, read: Callable[[], T]) -> T:
        """Call `read`, and again if a writer has removed the version that was read, as `compact` does several times."""
        for pause_s in PAUSES_S:
            try:
                return read()
            except OutdatedError:
                time.sleep(pause_s)
                with self._guard, suppress(OutdatedError):  # then the next call of `read` raises it
                    self._catch_up()
                    if self._snapshot is not None:  # the old one is kept if the newest version cannot be read
                        self._snapshot = self._load()
        return read()

    def _catch_up(self) -> None:
        """Read the newest version from now on.  Raises ReplacedIndexError, and then nothing has changed."""
        newest = self._newest(reopen=True)
        self._store, self._roots = newest, RootFolders(newest, self._given_roots)

    def _load(self) -> Snapshot:
        return load_snapshot(self._store, self.settings, self._roots.placed, can_write=self.can_write)


def check_shape(descriptors: np.ndarray, dimension: int, address: str, name: str) -> None:
    """Raise ConfigError unless descriptors (n, D) have the dimension of an index and are finite."""
    if descriptors.ndim != 2 or descriptors.shape[1] != dimension:
        raise ConfigError(
            f"{name} have the shape {descriptors.shape}, but {address} holds (n, {dimension}). Compute them with the "
            "model of the index."
        )
    if not np.isfinite(descriptors).all():
        raise ConfigError(f"{name} have values that are not finite. Compute them again.")


def check_descriptors(descriptors: np.ndarray, dimension: int, address: str) -> None:
    """Raise ConfigError unless new descriptors (n, D) have the dimension of an index and length 1."""
    check_shape(descriptors, dimension, address, "Descriptors")
    lengths = np.linalg.norm(descriptors.astype(np.float32), axis=1)
    if num_zero := int((lengths == 0).sum()):
        raise ConfigError(
            f"{num_zero:,} of {len(lengths):,} descriptors are all zeros, which cannot be compared: the weights of the "
            f"model are damaged. Use another model."
        )
    if not np.allclose(lengths, 1, atol=UNIT_TOLERANCE):
        raise ConfigError(
            f"Descriptors must have length 1, got {lengths.min():.3f} to {lengths.max():.3f}. Normalize them."
        )
