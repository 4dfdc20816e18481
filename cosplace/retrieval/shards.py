"""Descriptors in shards: files of rows, in a folder or on object storage.

    <store>/meta.json               model, photos and settings of the extraction
            descriptors-00000.npy   (shard_rows, W), rows in the order of the list of photos
            descriptors-00001.npy   ... the last shard is shorter

Each file is written atomically, so a shard that exists is finished.  After the rows, a shard has a trailer: the photos
that could not be opened, checksums of the photos' files, a digest of the settings, and the SHA-256 of all that.  It is
in the same file, so that a shard and its checksum change in one step; numpy does not read it.  Older folders have no
trailers, and an unreadable-00001.json for the photos of a shard that could not be opened.

Legend: I images, D descriptor dimension, W values of a row: D, or the words of 64 bits of a binary code.
Side effects: reads and writes these files.
"""

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.paths import printable
from cosplace.progress import format_count
from cosplace.retrieval.npy_headers import MAX_HEADER, read_header
from cosplace.retrieval.photo_changes import PhotoFiles, have_changed
from cosplace.retrieval.store_files import StoreFiles, open_files
from cosplace.retrieval.store_shapes import (
    MAX_JSON_BYTES,
    MAX_SHARDS,
    META_SHAPE,
    TRAILER,
    UNREADABLE_PHOTOS,
    are_codes,
)
from cosplace.shapes import fits, is_count, parse

SHARD_ROWS = 65_536
FORMAT_VERSION = 1
META, SHARD, UNREADABLE = "meta.json", "descriptors-{}.npy", "unreadable-{}.json"
ARRAY_TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.uint64}  # by stored type
MAGIC = b"COSPLACE"  # the last bytes of a shard with a trailer
CHECKSUM_BYTES, LENGTH_BYTES = 32, 8
END_BYTES = CHECKSUM_BYTES + LENGTH_BYTES + len(MAGIC)  # of a trailer, after its JSON
NUM_NAMED = 3  # photos that a warning names

log = logging.getLogger(__name__)


# --- many arrays as one ----------------------------------------------------------------------------------------------


class DescriptorShards:
    """Several arrays (rows, D) as one array (I, D).  Indexing reads only the requested rows."""

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        if not shards:
            raise DatasetError("There are no shards of descriptors. Pass at least one array (rows, D).")
        widths = {shard.shape[1:] for shard in shards}
        if len(widths) != 1 or len(next(iter(widths))) != 1:
            raise DatasetError(
                f"Shards must be arrays (rows, D) with the same D, got shapes {[shard.shape for shard in shards[:5]]}."
            )
        self.shards = tuple(shards)
        self.starts = np.concatenate([[0], np.cumsum([len(shard) for shard in shards])]).astype(np.int64)
        self.shape = (int(self.starts[-1]), int(shards[0].shape[1]))
        self.dtype = np.result_type(*(shard.dtype for shard in shards))
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        """Rows (n, D) of a slice with step 1 (a view if it lies in one shard) or of an int64 array of row numbers."""
        if isinstance(key, slice):
            first, last, step = key.indices(len(self))
            assert step == 1, "only slices with step 1 are supported"
            spans = [(max(first - start, 0), max(last - start, 0)) for start in self.starts[:-1].tolist()]
            parts = [shard[low:high] for shard, (low, high) in zip(self.shards, spans, strict=True)]
            parts = [part for part in parts if len(part)] or parts[:1]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        rows = np.empty((len(key), self.shape[1]), self.dtype)
        shard_of = np.searchsorted(self.starts, key, side="right") - 1
        for number in np.unique(shard_of):
            inside = shard_of == number
            rows[inside] = self.shards[number][key[inside] - self.starts[number]]
        return rows


Descriptors = np.ndarray | DescriptorShards


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableImage:
    """A photo that could not be opened."""

    index: int  # in the list of photos
    name: str
    message: str


def unreadable_text(photos: Sequence[UnreadableImage], consequence: str) -> str:
    """Say how many photos could not be opened, which, what follows from that, and the reason of the first."""
    names = ", ".join(one.name for one in photos[:NUM_NAMED])
    more = f" and {len(photos) - NUM_NAMED:,} more" if len(photos) > NUM_NAMED else ""
    return printable(
        f"{format_count(len(photos), 'photo')} could not be opened ({names}{more}): {consequence}. "
        f"The first: {photos[0].message}"
    )


# --- what is stored --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsMeta:
    """What identifies an extraction: shards are only continued by an extraction for which all of this is equal."""

    format: int = FORMAT_VERSION
    count: int  # I
    photos: str  # SHA-256 of the list of photos
    file_sizes: tuple[int, ...]  # bytes of some photos: a copy at another resolution has the same names
    model: str  # checksum of the model
    image_size: int | None
    autocast: str | None
    dtype: str  # one of ARRAY_TYPES
    shard_rows: int
    views: str = ""  # crop, scales and flip; "" for none, as in folders that were written before
    version: str = ""  # of the program, if several processes write the shards; "" for any
    engine: str = ""  # int8 engine and the SHA-256 of its file; "" for all others, whose descriptors agree

    def shard(self, number: int) -> range:
        """Rows of one shard."""
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, self.count))

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-self.count // self.shard_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreMeta:
    """The content of meta.json."""

    extraction: ShardsMeta
    dimension: int  # D
    codes: Mapping[str, Any] | None = None  # what int8 and binary codes need, see `stored_codes`
    about: Mapping[str, Any] = field(default_factory=dict)  # not compared: names for people
    has_trailers: bool = True  # not compared: false in folders of the first version

    @property
    def width(self) -> int:
        """W, the values of a row."""
        return -(-self.dimension // 64) if self.extraction.dtype == "binary" else self.dimension

    @property
    def array_type(self) -> np.dtype:
        """Type of the values of a row."""
        return np.dtype(ARRAY_TYPES[self.extraction.dtype])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.width * self.array_type.itemsize

    @property
    def digest(self) -> str:
        """A text that is the same for shards of the same extraction only."""
        values = {**asdict(self.extraction), "dimension": self.dimension, "codes": self.codes}
        left_out = ("file_sizes", "version", *([] if self.extraction.engine else ["engine"]))
        values = {name: value for name, value in values.items() if name not in left_out}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def shape(self, number: int) -> tuple[int, int]:
        """Shape of the array of one shard."""
        return len(self.extraction.shard(number)), self.width

    def text(self) -> str:
        """The content of meta.json."""
        values = {**asdict(self.extraction), "dimension": self.dimension}
        values |= {"codes": dict(self.codes)} if self.codes else {}
        values |= {"about": dict(self.about)} if self.about else {}
        return json.dumps(values, indent=2)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return SHARD.format(f"{number:05}")


def read_meta(files: StoreFiles) -> StoreMeta | None:
    """What is stored; None if meta.json is missing.  Raises DatasetError for one that is damaged."""
    try:
        values = _read_json(files, META, {"format": is_count})
        if values["format"] == FORMAT_VERSION and fits(values, META_SHAPE):
            dimension, codes, about = values.pop("dimension"), values.pop("codes", None), values.pop("about", {})
            extraction = ShardsMeta(**values | {"file_sizes": tuple(values["file_sizes"])})
            is_possible = extraction.dtype in ARRAY_TYPES and extraction.num_shards <= MAX_SHARDS
            if is_possible and are_codes(codes, extraction.dtype, dimension):
                return StoreMeta(
                    extraction=extraction, dimension=dimension, codes=codes, about=about,
                    has_trailers="version" in values,
                )  # fmt: skip
        is_known = values["format"] == FORMAT_VERSION
        found = "is damaged" if is_known else f"has format {values['format']} instead of {FORMAT_VERSION}"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):  # also entries of a later version
        found = "is damaged"
    raise DatasetError(f"{_place(files, META)} {found}. Extract the descriptors into another folder.")


def _read_json(files: StoreFiles, name: str, shape: Any) -> Any:
    """The content of a JSON file.  Raises ValueError for one that is too large, damaged or has another shape."""
    return parse(files.read(name, 0, MAX_JSON_BYTES + 1), shape, max_length=MAX_JSON_BYTES)


def require_meta(files: StoreFiles) -> StoreMeta:
    """What is stored.  Raises DatasetError if meta.json is missing or damaged."""
    meta = read_meta(files)
    if meta is None:
        raise DatasetError(f"{_place(files, META)} is missing. Extract the descriptors into another folder.")
    return meta


def check_same_extraction(files: StoreFiles, before: ShardsMeta, now: ShardsMeta) -> None:
    """Raise DatasetError, which names the first field that differs, if shards are of another extraction."""
    for one in fields(ShardsMeta):
        was, value = getattr(before, one.name), getattr(now, one.name)
        if was == value or one.name == "file_sizes" or (one.name == "version" and "" in (was, value)):
            continue
        if one.name == "engine":
            was, value = (text.partition(" ")[0] or "engines without int8" for text in (was, value))
        was, value = (text if text != "" else "not set" for text in (was, value))
        raise DatasetError(
            f"{files.address} has descriptors of another extraction ({one.name} was {was}, now it is {value}). Use "
            f"another folder, or delete this one."
        )
    # Some photos may have been replaced, but not most of them.
    same = sum(was == size for was, size in zip(before.file_sizes, now.file_sizes, strict=False))
    if 2 * same < len(now.file_sizes) or len(before.file_sizes) != len(now.file_sizes):
        raise DatasetError(
            f"{files.address} has descriptors of photos with the same names but other file sizes. Use another folder, "
            f"or delete this one."
        )


# --- one shard -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """Where the rows of a shard are in its file, and what its trailer says."""

    name: str
    first_byte: int  # of the rows
    shape: tuple[int, int]
    unreadable: tuple[UnreadableImage, ...]
    checksum: bytes  # SHA-256 of all bytes before it; empty in older folders
    photos: Mapping[str, str] = field(default_factory=dict)  # checksums, see `PhotoFiles`; none in older folders


def write_shard_file(
    files: StoreFiles,
    number: int,
    meta: StoreMeta,
    *,
    rows: np.ndarray,
    unreadable: Sequence[UnreadableImage],
    photos: PhotoFiles | None = None,
) -> None:
    """Write one shard (n, W) with its trailer."""
    assert rows.shape == meta.shape(number) and rows.dtype == meta.array_type
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(rows))
    record: dict[str, Any] = {"extraction": meta.digest, "unreadable": [asdict(entry) for entry in unreadable]}
    record |= {"photos": photos._asdict()} if photos else {}
    text = json.dumps(record).encode()
    content = np.ascontiguousarray(rows)
    parts: list[bytes | memoryview] = [header.getvalue(), content.view(np.uint8).reshape(-1).data, text]
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    files.write(shard_name(number), [*parts, checksum.digest(), len(text).to_bytes(LENGTH_BYTES, "little"), MAGIC])


def open_shard_file(files: StoreFiles, number: int, meta: StoreMeta, size: int | None = None) -> ShardFile:
    """Read the header and the trailer of a shard.  size: bytes of its file, if known.

    Raises DatasetError for one that is missing, truncated or of another extraction.
    """
    name, shape = shard_name(number), meta.shape(number)
    size = files.sizes().get(name) if size is None else size
    if size is None:
        raise DatasetError(
            f"{_place(files, name)} is missing. Run the same extraction again to complete the descriptors."
        )
    try:
        found_shape, in_columns, found_type, first_byte = read_header(files.read(name, 0, min(MAX_HEADER, size)))
        end = first_byte + int(np.prod(found_shape)) * found_type.itemsize
        if found_shape != shape or found_type != meta.array_type or in_columns:
            problem = f"has shape {found_shape} and type {found_type}"
        elif size == end and not meta.has_trailers:
            unreadable = _read_older_unreadable(files, number)
            return ShardFile(name=name, first_byte=first_byte, shape=shape, unreadable=unreadable, checksum=b"")
        else:
            record, checksum = _read_trailer(files, name, end, size)
            if record["extraction"] == meta.digest:
                unreadable = tuple(UnreadableImage(**entry) for entry in record["unreadable"])
                if any(one.index not in meta.extraction.shard(number) for one in unreadable):
                    raise ValueError(unreadable)
                return ShardFile(
                    name=name, first_byte=first_byte, shape=shape, unreadable=unreadable, checksum=checksum,
                    photos=dict(record.get("photos", {})),
                )  # fmt: skip
            raise DatasetError(
                f"{_place(files, name)} is of another extraction, which may still be running. Use another folder, "
                f"or run this extraction again to replace the file."
            )
    except (ValueError, EOFError, TypeError, FileNotFoundError):
        problem = "is truncated"
    raise DatasetError(
        f"{_place(files, name)} {problem}, expected {shape} {meta.extraction.dtype}. Run the extraction again to "
        f"replace it."
    )


def _read_trailer(files: StoreFiles, name: str, first: int, size: int) -> tuple[dict[str, Any], bytes]:
    """What a trailer says, and the checksum of what is before it.  Raises ValueError if it is not whole."""
    if size < first + END_BYTES:
        raise ValueError(name)
    trailer = files.read(name, first, min(size, first + MAX_JSON_BYTES))
    end = trailer[-END_BYTES:]
    length = int.from_bytes(end[CHECKSUM_BYTES : CHECKSUM_BYTES + LENGTH_BYTES], "little")
    if not end.endswith(MAGIC) or first + length + END_BYTES != size:
        raise ValueError(name)
    return parse(trailer[:length], TRAILER, max_length=MAX_JSON_BYTES), end[:CHECKSUM_BYTES]


def _read_older_unreadable(files: StoreFiles, number: int) -> tuple[UnreadableImage, ...]:
    try:
        entries = _read_json(files, UNREADABLE.format(f"{number:05}"), UNREADABLE_PHOTOS)
    except FileNotFoundError:
        return ()
    return tuple(UnreadableImage(**entry) for entry in entries)


# --- all shards of a folder ------------------------------------------------------------------------------------------


def read_shards(folder: str | Path) -> tuple[DescriptorShards, list[UnreadableImage]]:
    """Open all descriptors in a folder, memory-mapped, and list the photos that could not be opened.

    Raises DatasetError when the folder is incomplete or damaged, has no descriptors, or has codes.
    """
    files = open_files(folder)
    meta, sizes = require_meta(files), files.sizes()
    if meta.extraction.dtype not in ("float32", "float16"):
        raise DatasetError(f"{files.address} has {meta.extraction.dtype} codes instead of descriptors.")
    shards, unreadable = [], []
    for number in range(meta.extraction.num_shards):
        shard = open_shard_file(files, number, meta, sizes.get(shard_name(number), None))
        path = files.local_path(shard.name)
        assert path is not None
        # Copied on write: torch cannot share read-only memory.
        shards.append(np.memmap(path, meta.array_type, "c", offset=shard.first_byte, shape=shard.shape))
        unreadable += shard.unreadable
    return DescriptorShards(shards), unreadable


def find_finished_shards(
    folder: Path, meta: ShardsMeta, photos: Sequence[PhotoFiles], *, complete: bool
) -> tuple[frozenset[int], int | None]:
    """Find the numbers of the shards that are finished, and their dimension D (None if there are none).

    photos: of each shard; those whose photos have changed are left out.
    complete: leave out shards with photos that could not be opened, as these may have been replaced since.
    Raises DatasetError when the folder has descriptors of another extraction than `meta`.
    """
    files = open_files(folder)
    sizes = files.sizes()
    if META not in sizes and not any(Path(name).match(SHARD.format("*")) for name in sizes):
        return frozenset(), None
    before = require_meta(files)
    check_same_extraction(files, before.extraction, meta)
    finished, num_changed = set(), 0
    for number in range(meta.num_shards):
        if shard_name(number) not in sizes:
            continue
        try:
            shard = open_shard_file(files, number, before, sizes[shard_name(number)])
        except DatasetError as error:
            log.warning("%s Extracting it again.", error)
            continue
        if complete and shard.unreadable:
            continue
        if have_changed(shard.photos, photos[number]):
            num_changed += 1
        else:
            finished.add(number)
    if num_changed:
        log.warning(
            "%s has descriptors of photos whose files have changed or were copied since (%d of %d shards). "
            "Extracting them again.", files.address, num_changed, meta.num_shards,
        )  # fmt: skip
    return frozenset(finished), before.dimension


def write_shard(
    folder: Path,
    number: int,
    meta: ShardsMeta,
    *,
    rows: np.ndarray,
    unreadable: Sequence[UnreadableImage],
    photos: PhotoFiles,
) -> None:
    """Write one shard (n, D) of descriptors, and meta.json before the first one."""
    files = open_files(folder)
    stored = StoreMeta(extraction=meta, dimension=rows.shape[1])
    if not (Path(folder) / META).exists():
        files.create(META, stored.text().encode())
    write_shard_file(files, number, stored, rows=rows, unreadable=unreadable, photos=photos)
    files.remove(UNREADABLE.format(f"{number:05}"))  # of an older folder: the trailer replaces it


def _place(files: StoreFiles, name: str) -> str:
    return f"{files.address}/{name}"
