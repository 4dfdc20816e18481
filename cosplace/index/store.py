"""The storage of an index: two Lance tables in a folder or on object storage.

    <address>/photos.lance     one row per photo: position, time, path, descriptor, thumbnail; search index
              records.lance    facts about the index: key -> JSON
              .writer.lock     held by the one writer (local addresses)

Every append or removal is one commit of Lance: after a kill the table holds all photos of a commit or none of them.
Side effects: reads and writes that address.
"""

import json
import os
import shutil
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import PhotoIndexError, StorageError
from cosplace.index.records import Columns

PHOTOS, RECORDS, LOCK = "photos", "records", ".writer.lock"
SPARE_BYTES = 64_000_000  # kept free on the disk, for manifests of Lance
READ_ROWS = 8192
DELETE_ROWS = 5000  # ids in one expression
VECTOR_INDEX = "descriptor_idx"
CODE_BITS = 4  # per dimension of the codes of the search index
REFINE = 2  # times k candidates are compared by their full descriptors
NARROW = ("id", "latitude", "longitude", "heading", "time", "path")


def is_local(address: str) -> bool:
    """Whether an address is a folder, not object storage."""
    return "://" not in address


def has_index(address: str) -> bool:
    """Whether there is an index at the address.  Creates nothing."""
    if is_local(address) and not (Path(address) / f"{RECORDS}.lance").is_dir():
        return False
    with _translated_errors(address):
        return RECORDS in _connect(address).list_tables().tables


def _connect(address: str) -> Any:
    # Otherwise it prints a warning about every new table.
    os.environ.setdefault("LANCEDB_LOG", "error")
    os.environ.setdefault("LANCE_LOG", "error")
    # Imported late: it takes a second and starts threads.
    import lancedb

    return lancedb.connect(address)


def photo_schema(dimension: int, stored_dtype: str) -> Any:
    """The columns of a photo."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.int64()),
            ("latitude", pa.float64()),
            ("longitude", pa.float64()),
            ("heading", pa.float32()),
            ("time", pa.float64()),
            ("path", pa.string()),
            ("source", pa.string()),
            ("key", pa.string()),
            ("num_bytes", pa.int64()),
            ("modified_ns", pa.int64()),
            ("thumbnail", pa.binary()),
            ("descriptor", pa.list_(pa.float16() if stored_dtype == "float16" else pa.float32(), dimension)),
        ]
    )


class Store:
    """The tables of one address.  A reader stays at the version it opened until `catch_up`."""

    def __init__(self, address: str) -> None:
        if not has_index(address):
            problem = "does not exist" if is_local(address) and not Path(address).exists() else "is not a photo index"
            raise PhotoIndexError(
                f"{address} {problem}. Build an index with `cosplace index build DATASET --model MODEL --to {address}`."
            )
        self.address = address
        with _translated_errors(address):
            database = _connect(address)
            self.photos, self.records = database.open_table(PHOTOS), database.open_table(RECORDS)

    @classmethod
    def create(cls, address: str, schema: Any, records: dict[str, dict[str, Any]]) -> "Store":
        """Create an empty store.  Raises PhotoIndexError if there is already one."""
        import pyarrow as pa

        if has_index(address):
            raise PhotoIndexError(f"{address} already contains an index. Add photos to it, or choose another address.")
        with _translated_errors(address):
            if is_local(address):
                _make_folder(Path(address))
            database = _connect(address)
            database.create_table(PHOTOS, schema=schema, mode="overwrite")
            # Last: its presence means that the index is complete.
            rows = {"key": list(records), "json": [json.dumps(value) for value in records.values()]}
            database.create_table(RECORDS, pa.table(rows))
        return cls(address)

    @property
    def version(self) -> int:
        """Version of the photo table that is read."""
        return self.photos.version

    def catch_up(self) -> None:
        """Read the newest version from now on."""
        with _translated_errors(self.address):
            self.photos.checkout_latest()
            self.records.checkout_latest()

    # --- photos ------------------------------------------------------------------------------------------------------

    def columns(self, newer_than: int | None = None) -> Columns:
        """All photos, or those whose id is larger, without descriptors and thumbnails; by ascending id."""
        with _translated_errors(self.address):
            query = self.photos.search().select(list(NARROW)).with_row_id(True)
            if newer_than is not None:
                query = query.where(f"id > {newer_than}")
            table = query.to_arrow().sort_by("id").combine_chunks()
        numbers = {name: table[name].to_numpy() for name in ("id", "latitude", "longitude", "heading", "time")}
        return Columns(
            ids=numbers["id"],
            latitudes=numbers["latitude"],
            longitudes=numbers["longitude"],
            headings=numbers["heading"],
            times=numbers["time"],
            row_ids=table["_rowid"].to_numpy(),
            texts=table["path"],
        )

    def scan(self, names: Sequence[str], *, newer_than: int | None = None) -> Generator[Any]:
        """Record batches of some columns of all photos, or of those whose id is larger."""
        with _translated_errors(self.address):
            query = self.photos.search().select(list(names))
            if newer_than is not None:
                query = query.where(f"id > {newer_than}")
            yield from query.to_batches(READ_ROWS)

    def descriptors(self, newer_than: int | None = None) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """(ids (n,), descriptors (n, D) as stored) of all photos, or of those whose id is larger, in batches."""
        for batch in self.scan(("id", "descriptor"), newer_than=newer_than):
            yield batch["id"].to_numpy(), _matrix(batch["descriptor"])

    def descriptors_at(self, row_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Descriptors (n, D) as stored of some photos, in the order given; ids may repeat."""
        table = self._take(row_ids, ("id", "descriptor"))
        found = table["id"].to_numpy()
        order = np.argsort(found)
        places = order[np.searchsorted(found[order], ids)]
        return _matrix(table["descriptor"].combine_chunks())[places]

    def descriptors_of(self, ids: np.ndarray) -> np.ndarray:
        """Descriptors (n, D) as stored of some photos by ascending id."""
        rows: dict[int, np.ndarray] = {}
        for at in range(0, len(ids), DELETE_ROWS):
            some = ", ".join(map(str, ids[at : at + DELETE_ROWS].tolist()))
            with _translated_errors(self.address):
                table = self.photos.search().where(f"id IN ({some})").select(["id", "descriptor"]).to_arrow()
            matrix = _matrix(table["descriptor"].combine_chunks())
            rows |= dict(zip(table["id"].to_pylist(), matrix, strict=True))
        return np.stack([rows[photo_id] for photo_id in ids.tolist()])

    def values_at(self, row_id: int, names: Sequence[str]) -> dict[str, Any]:
        """Some columns of one photo."""
        return self._take(np.array([row_id], np.uint64), names).to_pylist()[0]

    def _take(self, row_ids: np.ndarray, names: Sequence[str]) -> Any:
        with _translated_errors(self.address):
            return self.photos.take_row_ids(np.unique(row_ids).tolist()).select(list(names)).to_arrow()

    def append(self, rows: dict[str, Any], num_bytes: int) -> None:
        """Add photos in one commit; they are stored when this returns.  rows: columns of the schema."""
        import pyarrow as pa

        self._check_disk(num_bytes)
        schema = self.photos.schema
        dtype = schema.field("descriptor").type
        descriptors = np.ascontiguousarray(rows["descriptor"])
        flat = pa.array(descriptors.reshape(-1), type=dtype.value_type)
        arrays = {**rows, "descriptor": pa.FixedSizeListArray.from_arrays(flat, type=dtype)}
        table = pa.table([pa.array(arrays[name], type=schema.field(name).type) for name in schema.names], schema=schema)
        with _translated_errors(self.address):
            self.photos.add(table)

    def remove(self, ids: np.ndarray) -> None:
        """Remove photos by id."""
        for at in range(0, len(ids), DELETE_ROWS):
            with _translated_errors(self.address):
                self.photos.delete(f"id IN ({', '.join(map(str, ids[at : at + DELETE_ROWS].tolist()))})")

    def optimize(self, *, forget_older_s: float) -> None:
        """Join small files, drop removed photos, bring the search index up to date; forget older versions."""
        with _translated_errors(self.address), warnings.catch_warnings():
            # Lance warns that readers of older versions fail; ours retry with the newest one.
            warnings.simplefilter("ignore", UserWarning)
            for table in (self.photos, self.records):
                table.optimize(cleanup_older_than=timedelta(seconds=forget_older_s))

    # --- search ------------------------------------------------------------------------------------------------------

    def build_vector_index(self, num_partitions: int) -> None:
        """Build the approximate search index over all photos, replacing the one that is there."""
        from lancedb.index import IvfFlat, IvfRq

        dimension = self.photos.schema.field("descriptor").type.list_size
        if dimension % 8 == 0:
            config = IvfRq(distance_type="l2", num_partitions=num_partitions, num_bits=CODE_BITS)
        else:  # RaBitQ needs a multiple of 8
            config = IvfFlat(distance_type="l2", num_partitions=num_partitions)
        with _translated_errors(self.address):
            self.photos.create_index("descriptor", config=config, name=VECTOR_INDEX, replace=True)

    def has_vector_index(self) -> bool:
        """Whether there is an approximate search index."""
        with _translated_errors(self.address):
            return any(index.name == VECTOR_INDEX for index in self.photos.list_indices())

    def prewarm(self) -> None:
        """Read the search index into memory, so that the first search is as fast as the others."""
        with _translated_errors(self.address):
            self.photos.prewarm_index(VECTOR_INDEX)

    def search_index_state(self) -> tuple[int, int]:
        """Number of photos that the search index does not cover yet, and of the parts that updates have left in it."""
        with _translated_errors(self.address):
            statistics = self.photos.index_stats(VECTOR_INDEX)
        return (0, 0) if statistics is None else (int(statistics.num_unindexed_rows), int(statistics.num_indices))

    def search(
        self, query: np.ndarray, k: int, *, num_probed: int | None, condition: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids (n,) and descriptors (n, D) as stored of the k nearest photos by the search index, at most k.

        Photos that are not in the index yet are compared too; without an index, all are.  num_probed: partitions to
        look into.  condition: SQL that photos must meet; then more partitions are probed until k photos are found.
        """
        with _translated_errors(self.address):
            search = self.photos.search(query, vector_column_name="descriptor").distance_type("l2").limit(k)
            if num_probed is not None:
                search = search.minimum_nprobes(num_probed).maximum_nprobes(0 if condition else num_probed)
                search = search.refine_factor(REFINE)
            if condition:
                search = search.where(condition, prefilter=True)
            table = search.select(["id", "descriptor", "_distance"]).to_arrow()  # without _distance Lance warns
        return table["id"].to_numpy(), _matrix(table["descriptor"].combine_chunks())

    def count(self) -> int:
        """Number of photos."""
        with _translated_errors(self.address):
            return int(self.photos.count_rows())

    def keys_of(self, ids: np.ndarray) -> dict[str, int]:
        """Key -> id of some photos."""
        found: dict[str, int] = {}
        for at in range(0, len(ids), DELETE_ROWS):
            some = ", ".join(map(str, ids[at : at + DELETE_ROWS].tolist()))
            with _translated_errors(self.address):
                rows = self.photos.search().where(f"id IN ({some})").select(["id", "key"]).to_arrow()
            found |= zip(rows["key"].to_pylist(), rows["id"].to_pylist(), strict=True)
        return found

    def num_fragments(self) -> int:
        """Number of files that hold the photos."""
        return int(self.photos.stats()["fragment_stats"]["num_fragments"])

    def num_bytes(self) -> int | None:
        """Bytes on disk, search index included; None on object storage."""
        if not is_local(self.address):
            return None
        files = [Path(folder) / name for folder, _, names in os.walk(self.address) for name in names]
        return sum(file.stat().st_size for file in files if file.is_file())

    # --- records -----------------------------------------------------------------------------------------------------

    def read_record(self, key: str) -> dict[str, Any] | None:
        """The record of a key; None if there is none."""
        with _translated_errors(self.address):
            rows = self.records.search().where(f"key = '{_checked(key)}'").select(["json"]).to_arrow()
        return json.loads(rows["json"][0].as_py()) if len(rows) else None

    def write_record(self, key: str, value: dict[str, Any]) -> None:
        """Set the record of a key, in one commit."""
        import pyarrow as pa

        self._check_disk(0)
        row = pa.table({"key": [_checked(key)], "json": [json.dumps(value)]})
        with _translated_errors(self.address):
            self.records.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(row)

    def _check_disk(self, num_bytes: int) -> None:
        if not is_local(self.address):
            return
        free = shutil.disk_usage(self.address).free
        if free < num_bytes + SPARE_BYTES:
            raise StorageError(
                f"{self.address} needs {(num_bytes + SPARE_BYTES) / 1e6:.0f} MB for the next photos, but only "
                f"{free / 1e6:.0f} MB are free. Free some space and run the command again; all photos so far are kept."
            )


def _matrix(descriptors: Any) -> np.ndarray:
    width = descriptors.type.list_size
    return descriptors.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def _checked(key: str) -> str:
    assert key.replace("_", "").replace("-", "").isalnum(), key
    return key


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"Cannot write to {folder} ({error.strerror}). Choose another folder.") from error


# --- writer lock ---------------------------------------------------------------------------------------------------


class WriterLock:
    """The right to write a local index; it ends with the process that holds it."""

    def __init__(self, address: str) -> None:
        """Take the lock.  Raises PhotoIndexError if another writer holds it."""
        self.file = None
        if not is_local(address):  # on object storage, writers must be coordinated by the user
            return
        path = Path(address) / LOCK
        try:
            import fcntl
        except ImportError:  # Windows: the user must make sure that there is one writer
            return
        try:
            self.file = path.open("a+")
        except OSError as error:
            raise StorageError(f"Cannot write to {address} ({error.strerror}). Open it for reading only.") from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.seek(0)
            pid = self.file.read().strip() or "unknown"
            self.file.close()
            raise PhotoIndexError(
                f"{address} is in use by another writer (pid {pid}). Wait until it ends, or stop it."
            ) from error
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()

    def release(self) -> None:
        """Allow other writers."""
        if self.file is not None:
            self.file.close()
            self.file = None


# --- errors of Lance --------------------------------------------------------------------------------------------------


class OutdatedError(Exception):
    """A writer has removed the version that is read: catch up and read again."""


@contextmanager
def _translated_errors(address: str) -> Generator[None]:
    """Turn errors of Lance into errors that say what to do."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if "os error 28" in text or "No space left" in text:
            raise StorageError(
                f"{address}: no space left on the disk. Free some space and run the command again; all photos so far "
                "are kept."
            ) from error
        if "Permission denied" in text or "Read-only" in text:
            raise StorageError(f"Cannot write to {address} (permission denied). Choose another address.") from error
        if "Not found" in text or "was not found" in text:
            raise OutdatedError(text) from error
        if isinstance(error, FileExistsError):
            raise StorageError(f"{address} is a file, not a folder. Choose another address.") from error
        raise PhotoIndexError(f"Cannot read or write {address}: {text[:200]}") from error
