"""Descriptors in a folder, in memory-mapped shards.

    <folder>/meta.json               model, photos and settings of the extraction
             descriptors-00000.npy   (65536, D) float32 or float16, rows in the order of the list of photos
             descriptors-00001.npy   ... the last shard is shorter
             unreadable-00001.json   the photos of that shard that could not be opened, if any

Each file is written atomically, so a shard that exists is finished.  Legend: I images, D descriptor dimension.
Side effects: reads and writes that folder.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cosplace.errors import DatasetError
from cosplace.storage import storage_errors, write_atomically, write_text

SHARD_ROWS = 65_536
FORMAT_VERSION = 1
META, SHARD, UNREADABLE = "meta.json", "descriptors-{}.npy", "unreadable-{}.json"

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


# --- the folder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsMeta:
    """What identifies an extraction: a folder is only continued by an extraction for which all of this is equal."""

    format: int = FORMAT_VERSION
    count: int  # I
    photos: str  # SHA-256 of the list of photos
    file_sizes: tuple[int, ...]  # bytes of some photos: a copy at another resolution has the same names
    model: str  # checksum of the model
    image_size: int | None
    autocast: str | None
    dtype: str
    shard_rows: int
    views: str = ""  # crop, scales and flip; "" for none, as in folders that were written before

    def shard(self, number: int) -> range:
        """Rows of one shard."""
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, self.count))

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-self.count // self.shard_rows)


def read_shards(folder: str | Path) -> tuple[DescriptorShards, list[UnreadableImage]]:
    """Open all descriptors in a folder, memory-mapped, and list the photos that could not be opened.

    Raises DatasetError when the folder is incomplete or damaged, or has no descriptors.
    """
    folder = Path(folder)
    meta, dimension = _read_meta(folder)
    shards, unreadable = [], []
    for number in range(meta.num_shards):
        shards.append(_open_shard(folder, number, meta, dimension))
        if (unreadable_file := _path(folder, UNREADABLE, number)).is_file():
            unreadable += [UnreadableImage(**entry) for entry in json.loads(unreadable_file.read_bytes())]
    return DescriptorShards(shards), unreadable


def find_finished_shards(folder: Path, meta: ShardsMeta, *, complete: bool) -> tuple[frozenset[int], int | None]:
    """Find the numbers of the shards that are finished, and their dimension D (None if there are none).

    complete: leave out shards with photos that could not be opened, as these may have been replaced since.
    Raises DatasetError when the folder has descriptors of another extraction than `meta`.
    """
    if not (folder / META).exists() and not any(folder.glob(SHARD.format("*"))):
        return frozenset(), None
    before, dimension = _read_meta(folder)
    for name, value in asdict(meta).items():
        if (was := getattr(before, name)) != value and name != "file_sizes":
            raise DatasetError(
                f"{folder} has descriptors of another extraction ({name} was {was}, now it is {value}). Use another "
                f"folder, or delete this one."
            )
    # Some photos may have been replaced, but not most of them.
    if 2 * sum(was == size for was, size in zip(before.file_sizes, meta.file_sizes, strict=True)) < len(
        meta.file_sizes
    ):
        raise DatasetError(
            f"{folder} has descriptors of photos with the same names but other file sizes. Use another folder, or "
            f"delete this one."
        )
    finished = set()
    for number in range(meta.num_shards):
        if not _path(folder, SHARD, number).exists() or (complete and _path(folder, UNREADABLE, number).exists()):
            continue
        try:
            _open_shard(folder, number, meta, dimension)
            finished.add(number)
        except DatasetError as error:
            log.warning("%s Extracting it again.", error)
    return frozenset(finished), dimension


def write_shard(
    folder: Path, number: int, meta: ShardsMeta, *, rows: np.ndarray, unreadable: Sequence[UnreadableImage]
) -> None:
    """Write one shard (n, D); its .npy comes last, as it marks the shard as finished."""
    if not (folder / META).exists():
        write_text(folder / META, json.dumps({**asdict(meta), "dimension": rows.shape[1]}, indent=2))
    unreadable_file = _path(folder, UNREADABLE, number)
    with storage_errors(unreadable_file):
        unreadable_file.unlink(missing_ok=True)
    if unreadable:
        write_text(unreadable_file, json.dumps([asdict(entry) for entry in unreadable], indent=1))

    def write(file: BinaryIO) -> None:  # not np.save: its error does not mention a full disk
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
        file.write(np.ascontiguousarray(rows).data)

    write_atomically(_path(folder, SHARD, number), write)


def _path(folder: Path, kind: str, number: int) -> Path:
    return folder / kind.format(f"{number:05}")


def _read_meta(folder: Path) -> tuple[ShardsMeta, int]:
    try:
        values = json.loads((folder / META).read_bytes())
        if values["format"] == FORMAT_VERSION:
            dimension = int(values.pop("dimension"))
            return ShardsMeta(**values | {"file_sizes": tuple(values["file_sizes"])}), dimension
        found = f"has format {values['format']} instead of {FORMAT_VERSION}"
    except (FileNotFoundError, NotADirectoryError):
        found = "is missing"
    except (ValueError, KeyError, TypeError):
        found = "is damaged"
    raise DatasetError(f"{folder / META} {found}. Extract the descriptors into another folder.")


def _open_shard(folder: Path, number: int, meta: ShardsMeta, dimension: int) -> np.ndarray:
    path, shape = _path(folder, SHARD, number), (len(meta.shard(number)), dimension)
    if not path.is_file():
        raise DatasetError(f"{path} is missing. Run the same extraction again to complete the descriptors.")
    try:
        shard = np.load(path, mmap_mode="c", allow_pickle=False)  # torch cannot share read-only memory
        if shard.shape == shape and shard.dtype == meta.dtype:
            return shard
        found = f"has shape {shard.shape} and type {shard.dtype}"
    except (ValueError, OSError, EOFError):
        found = "is truncated"
    raise DatasetError(f"{path} {found}, expected {shape} {meta.dtype}. Run the extraction again to replace it.")
