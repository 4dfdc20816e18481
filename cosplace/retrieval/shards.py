"""Descriptors in a folder: sharded, memory-mapped, and complete at every moment.

    <folder>/meta.json               what was extracted, from which photos, by which model
             descriptors-00000.npy   (65536, D) float32 or float16, rows in the order of the list
             descriptors-00001.npy   ... the last one is shorter
             unreadable-00001.json   the photos of that shard that could not be opened, where there are any

Each file is written beside, synced and renamed; a shard that is there is finished.  Legend: I images, D descriptor
dimension.  Side effects: reads and writes that folder.
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


# --- many arrays seen as one -----------------------------------------------------------------------------------------


class DescriptorShards:
    """Several arrays (rows, D) seen as one (I, D): a slice or an array of rows reads only what it names."""

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        if not shards:
            raise DatasetError("There are no shards of descriptors: give at least one array (rows, D).")
        widths = {shard.shape[1:] for shard in shards}
        if len(widths) != 1 or len(next(iter(widths))) != 1:
            raise DatasetError(
                f"Shards must be arrays (rows, D) of one D but have the shapes {[shard.shape for shard in shards[:5]]}."
            )
        self.shards = tuple(shards)
        self.starts = np.concatenate([[0], np.cumsum([len(shard) for shard in shards])]).astype(np.int64)
        self.shape = (int(self.starts[-1]), int(shards[0].shape[1]))
        self.dtype = np.result_type(*(shard.dtype for shard in shards))
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        """Rows (n, D) of a slice of step 1 (a view where one shard holds it) or of an int64 array of row numbers."""
        if isinstance(key, slice):
            first, last, step = key.indices(len(self))
            assert step == 1, "rows in steps are not needed anywhere"
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
    """One photo that could not be opened, and why."""

    index: int  # its place in the list
    name: str
    message: str


# --- the folder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsMeta:
    """What a folder of descriptors holds; two extractions may share a folder when all of it is equal."""

    format: int = FORMAT_VERSION
    count: int  # I
    photos: str  # digest of the list of photos
    file_sizes: tuple[int, ...]  # of some of them, in bytes; a copy at another resolution has the same names
    model: str  # checksum of the model
    image_size: int | None
    autocast: str | None
    dtype: str
    shard_rows: int

    def shard(self, number: int) -> range:
        """Rows of one shard."""
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, self.count))

    @property
    def num_shards(self) -> int:
        """How many shards hold all rows."""
        return -(-self.count // self.shard_rows)


def read_shards(folder: str | Path) -> tuple[DescriptorShards, list[UnreadableImage]]:
    """Open all descriptors of a folder, memory-mapped, with the list of photos that could not be opened.

    Raises DatasetError when the folder is unfinished, damaged or no folder of descriptors.
    """
    folder = Path(folder)
    meta, dimension = _read_meta(folder)
    shards, unreadable = [], []
    for number in range(meta.num_shards):
        shards.append(_open_shard(folder, number, meta, dimension))
        if (listed := _path(folder, UNREADABLE, number)).is_file():
            unreadable += [UnreadableImage(**entry) for entry in json.loads(listed.read_bytes())]
    return DescriptorShards(shards), unreadable


def finished_shards(folder: Path, meta: ShardsMeta, *, whole: bool) -> tuple[frozenset[int], int | None]:
    """Numbers of the shards that need not be made again, and their dimension D (None while unknown).

    whole: shards with photos that could not be opened do not count: those photos may have been repaired since.
    Raises DatasetError when the folder holds descriptors of anything but `meta`.
    """
    if not (folder / META).exists() and not any(folder.glob(SHARD.format("*"))):
        return frozenset(), None
    before, dimension = _read_meta(folder)
    for name, value in asdict(meta).items():
        if (was := getattr(before, name)) != value and name != "file_sizes":
            raise DatasetError(
                f"{folder} holds descriptors of another extraction ({name} was {was}, is {value} now): choose another "
                f"folder, or delete this one."
            )
    # A few photos may have been repaired, but not most.
    if 2 * sum(was == size for was, size in zip(before.file_sizes, meta.file_sizes, strict=True)) < len(
        meta.file_sizes
    ):
        raise DatasetError(
            f"{folder} holds descriptors of photos with the same names but other file sizes: choose another folder, "
            f"or delete this one."
        )
    finished = set()
    for number in range(meta.num_shards):
        if not _path(folder, SHARD, number).exists() or (whole and _path(folder, UNREADABLE, number).exists()):
            continue
        try:
            _open_shard(folder, number, meta, dimension)
            finished.add(number)
        except DatasetError as error:
            log.warning("%s It is made again.", error)
    return frozenset(finished), dimension


def keep_shard(
    folder: Path, number: int, meta: ShardsMeta, *, rows: np.ndarray, unreadable: Sequence[UnreadableImage]
) -> None:
    """Write one shard (n, D); its .npy comes last, as its presence says that the shard is finished."""
    if not (folder / META).exists():
        write_text(folder / META, json.dumps({**asdict(meta), "dimension": rows.shape[1]}, indent=2))
    listed = _path(folder, UNREADABLE, number)
    with storage_errors(listed):
        listed.unlink(missing_ok=True)
    if unreadable:
        write_text(listed, json.dumps([asdict(entry) for entry in unreadable], indent=1))

    def write(file: BinaryIO) -> None:  # not np.save: its error does not say that the disk is full
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
        found = "is not there"
    except (ValueError, KeyError, TypeError):
        found = "is damaged"
    raise DatasetError(f"{folder / META} {found}: extract the descriptors into another folder.")


def _open_shard(folder: Path, number: int, meta: ShardsMeta, dimension: int) -> np.ndarray:
    path, shape = _path(folder, SHARD, number), (len(meta.shard(number)), dimension)
    if not path.is_file():
        raise DatasetError(f"{path} is missing, the extraction was stopped: run it again, it goes on from there.")
    try:
        shard = np.load(path, mmap_mode="c", allow_pickle=False)  # torch does not share read-only memory
        if shard.shape == shape and shard.dtype == meta.dtype:
            return shard
        found = f"holds {shard.shape} {shard.dtype}"
    except (ValueError, OSError, EOFError):
        found = "is truncated"
    raise DatasetError(f"{path} {found} instead of {shape} {meta.dtype}: run the extraction again, it mends it.")
