"""A store of descriptors: opening, reading in blocks, state, checksums.

    <store>/meta.json, descriptors-00000.npy, ...   see `shards`
            photos.parquet                          see `stored_photos`
            claim-00012.json, ...                   while shards are computed, see `shard_claims`

Legend: I images, D descriptor dimension, W values of a stored row.  Side effects: reads these files; `remove_files` and
`remove_store` remove some.
"""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.progress import Progress, format_count, no_progress
from cosplace.ranks import ALONE, Ranks
from cosplace.retrieval.shard_claims import STALE_S, Claim, claim_name, is_running, read_claim, this_host
from cosplace.retrieval.shards import (
    END_BYTES,
    META,
    ShardFile,
    StoreMeta,
    UnreadableImage,
    open_shard_file,
    require_meta,
    shard_name,
)
from cosplace.retrieval.store_files import StoreFiles, open_files
from cosplace.retrieval.stored_photos import PHOTOS, StoredPhotos, read_photos

NUM_READERS = 16  # threads that read trailers, which are small: object storage answers slowly
CHECKED_BYTES = 1 << 24  # of a shard, read at once

log = logging.getLogger(__name__)


def finished_shards(meta: StoreMeta, sizes: dict[str, int]) -> list[int]:
    """Numbers of the shards whose files are there, and not too short; damaged content is what checksums are for."""
    return [
        number
        for number in range(meta.extraction.num_shards)
        if sizes.get(shard_name(number), -1) >= len(meta.extraction.shard(number)) * meta.row_bytes
    ]


# --- reading ---------------------------------------------------------------------------------------------------------


class DescriptorStore:
    """A complete store, opened for reading.  meta: what is stored; photos: of its rows; shape: (I, W)."""

    def __init__(self, files: StoreFiles, meta: StoreMeta, shards: Sequence[ShardFile]) -> None:
        self.files, self.meta, self.shards = files, meta, tuple(shards)
        self.address = files.address
        self.shape = (meta.extraction.count, meta.width)
        self.unreadable = tuple(entry for shard in shards for entry in shard.unreadable)

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def photos(self) -> StoredPhotos:
        """The list of photos, read at its first use."""
        photos = read_photos(self.files)
        if len(photos.images) != len(self):
            raise DatasetError(
                f"{self.address}/{PHOTOS} has {len(photos.images):,} photos, but there are {len(self):,} descriptors. "
                f"Delete it and run the same extraction again."
            )
        if problem := _photos_problem(self.files, self.meta, photos):
            raise DatasetError(f"{problem} Delete it and run the same extraction again.")
        return photos

    @property
    def readable(self) -> np.ndarray:
        """Which photos have descriptors, (I,) bool."""
        readable = np.ones(len(self), bool)
        readable[[entry.index for entry in self.unreadable]] = False
        return readable

    def read(self, rows: range, memory: np.ndarray | None = None) -> np.ndarray:
        """Rows (n, W) with step 1; not memory-mapped, so that no pages of files stay in memory.

        memory: (n or more, W), used if given.  Raises DatasetError for a shard that has become shorter.
        """
        found = np.empty((len(rows), self.shape[1]), self.meta.array_type) if memory is None else memory[: len(rows)]
        shard_rows, row_bytes = self.meta.extraction.shard_rows, self.meta.row_bytes
        first = rows.start
        while first < rows.stop:
            shard = self.shards[first // shard_rows]
            inside = first % shard_rows
            count = min(rows.stop - first, shard.shape[0] - inside)
            part = found[first - rows.start : first - rows.start + count]
            try:
                self.files.read_into(
                    shard.name, shard.first_byte + inside * row_bytes, part.view(np.uint8).reshape(-1).data
                )
            except (EOFError, FileNotFoundError) as error:
                raise DatasetError(
                    f"{self.address}/{shard.name} has changed while it was read. Run `cosplace extract --verify --to "
                    f"{self.address}`."
                ) from error
            first += count
        return found


def open_store(address: str | Path) -> DescriptorStore:
    """Open a complete store.  Raises DatasetError for one that is missing, incomplete or damaged; StorageError."""
    files = open_files(address)
    sizes = files.sizes()
    if not sizes:
        raise DatasetError(f"{address} is not a store of descriptors. Create one with `cosplace extract`.")
    meta = require_meta(files)
    missing = meta.extraction.num_shards - len(finished_shards(meta, sizes))
    if missing:
        raise DatasetError(
            f"{address} is not complete: {missing:,} of {meta.extraction.num_shards:,} shards are missing. Run the "
            f"same `cosplace extract` again to complete it."
        )
    return DescriptorStore(files, meta, open_shards(files, meta, sizes, range(meta.extraction.num_shards)))


def open_shards(files: StoreFiles, meta: StoreMeta, sizes: dict[str, int], numbers: Sequence[int]) -> list[ShardFile]:
    """Read headers and trailers of some shards."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return list(pool.map(lambda number: open_shard_file(files, number, meta, sizes[shard_name(number)]), numbers))


def damaged_shards(files: StoreFiles, meta: StoreMeta, sizes: dict[str, int], numbers: Sequence[int]) -> dict[str, str]:
    """Names of the shards among some that cannot be opened, with the problem; their rows are not read."""

    def problem_of(number: int) -> str:
        try:
            open_shard_file(files, number, meta, sizes[shard_name(number)])
        except DatasetError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = dict(zip(map(shard_name, numbers), pool.map(problem_of, numbers), strict=True))
    return {name: problem for name, problem in found.items() if problem}


def recorded_photos(
    files: StoreFiles, meta: StoreMeta, sizes: dict[str, int], numbers: Sequence[int]
) -> dict[int, Mapping[str, str]]:
    """Checksums of the photos of some shards, see `ShardFile`; without the shards that cannot be opened."""

    def read(number: int) -> Mapping[str, str]:
        try:
            return open_shard_file(files, number, meta, sizes[shard_name(number)]).photos
        except DatasetError:
            return {}

    with ThreadPoolExecutor(NUM_READERS) as pool:
        return {number: photos for number, photos in zip(numbers, pool.map(read, numbers), strict=True) if photos}


# --- state -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedShard:
    """A shard that a worker computes."""

    number: int
    claim: Claim
    age_s: float  # since it was renewed, by the clocks of both machines
    is_active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """How far the extraction of a store is."""

    address: str
    meta: StoreMeta
    has_photos: bool  # the list of photos
    num_shards: int
    num_finished: int
    num_photos_finished: int
    num_bytes: int
    unreadable: tuple[UnreadableImage, ...]  # in finished shards
    claims: tuple[ClaimedShard, ...]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return self.num_finished == self.num_shards and self.has_photos

    @property
    def num_photos(self) -> int:
        """I."""
        return self.meta.extraction.count

    @property
    def photos_per_s(self) -> float:
        """Of all active workers together; 0 if unknown."""
        rates = {one.claim.worker: one.claim.photos_per_s for one in self.claims if one.is_active}
        return sum(rates.values())

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None if unknown."""
        done = self.num_photos_finished + sum(one.claim.done for one in self.claims if one.is_active)
        return max(self.num_photos - done, 0) / self.photos_per_s if self.photos_per_s else None


def store_state(address: str | Path) -> StoreState:
    """How far the extraction of a store is.  Raises DatasetError if there is no store, StorageError."""
    files = open_files(address)
    sizes = files.sizes()
    if not sizes:
        raise DatasetError(f"{address} is not a store of descriptors. Create one with `cosplace extract`.")
    meta = require_meta(files)
    finished = finished_shards(meta, sizes)
    unreadable = _unreadable(files, meta, sizes, finished)
    done = set(finished)
    claims = []
    for number in range(meta.extraction.num_shards):
        name = claim_name(number)
        if number not in done and name in sizes and (claim := read_claim(files, name)) is not None:
            age = max(time.time() - claim.time, 0.0)
            has_ended = claim.host == this_host() and not is_running(claim.pid)
            claims.append(
                ClaimedShard(number=number, claim=claim, age_s=age, is_active=age < STALE_S and not has_ended)
            )
    return StoreState(
        address=files.address,
        meta=meta,
        has_photos=PHOTOS in sizes,
        num_shards=meta.extraction.num_shards,
        num_finished=len(finished),
        num_photos_finished=sum(len(meta.extraction.shard(number)) for number in finished),
        num_bytes=sum(sizes.values()),
        unreadable=tuple(unreadable),
        claims=tuple(claims),
    )


def _unreadable(
    files: StoreFiles, meta: StoreMeta, sizes: dict[str, int], numbers: Sequence[int]
) -> list[UnreadableImage]:
    """The photos of finished shards that could not be opened; warns about shards that are damaged."""

    def read(number: int) -> tuple[UnreadableImage, ...]:
        try:
            return open_shard_file(files, number, meta, sizes[shard_name(number)]).unreadable
        except DatasetError as error:
            log.warning("%s", error)
            return ()

    with ThreadPoolExecutor(NUM_READERS) as pool:
        return [entry for found in pool.map(read, numbers) for entry in found]


# --- checksums -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What the checksums of a store say."""

    num_checked: int
    num_missing: int  # shards that are not finished
    num_unchecked: int  # shards without a checksum, from an earlier version
    damaged: tuple[str, ...]  # files
    problems: tuple[str, ...]  # one sentence each


def verify_store(address: str | Path, ranks: Ranks = ALONE, progress: Progress = no_progress) -> Verification:
    """Compare the shards of a store with their checksums, and check that descriptors are finite.

    With several ranks, each checks its share.

    Raises DatasetError if there is no store or its meta.json is damaged, StorageError.
    """
    files = open_files(address)
    sizes = files.sizes()
    if not sizes:
        raise DatasetError(f"{address} is not a store of descriptors. Create one with `cosplace extract`.")
    meta = require_meta(files)
    numbers = range(ranks.rank, meta.extraction.num_shards, ranks.world_size)
    damaged, problems, num_unchecked, num_missing = [], [], 0, 0
    for done, number in enumerate(numbers, 1):
        name = shard_name(number)
        if name not in sizes:
            num_missing += 1
            continue
        try:
            shard = open_shard_file(files, number, meta, sizes[name])
            checksum, num_infinite = _read_shard(files, shard, meta, sizes[name] - END_BYTES)
            if not shard.checksum:
                num_unchecked += 1
            elif checksum != shard.checksum:
                raise DatasetError(f"{address}/{name} has changed since it was written: its checksum is another one.")
            if num_infinite:
                found = format_count(num_infinite, "descriptor")
                raise DatasetError(f"{address}/{name} has {found} with values that are not finite.")
        except (DatasetError, FileNotFoundError, EOFError) as error:
            damaged.append(name)
            problems.append(str(error))
        progress("comparing checksums", done, len(numbers))
    if ranks.is_first and PHOTOS in sizes and (problem := _damage_of_photos(files, meta)):
        damaged.append(PHOTOS)
        problems.append(problem)
    return Verification(
        num_checked=len(numbers) - num_missing - num_unchecked,
        num_missing=num_missing,
        num_unchecked=num_unchecked,
        damaged=tuple(damaged),
        problems=tuple(problems),
    )


def _read_shard(files: StoreFiles, shard: ShardFile, meta: StoreMeta, num_bytes: int) -> tuple[bytes, int]:
    """SHA-256 of the first bytes of a shard, and the number of photos with descriptors that are not finite."""
    first, end = shard.first_byte, shard.first_byte + shard.shape[0] * meta.row_bytes
    checksum, num_infinite = hashlib.sha256(files.read(shard.name, 0, first)), 0
    opened = np.ones(shard.shape[0], bool)
    opened[[one.index % meta.extraction.shard_rows for one in shard.unreadable]] = False
    step = max(1, CHECKED_BYTES // meta.row_bytes)
    for row in range(0, shard.shape[0], step):
        content = files.read(shard.name, first + row * meta.row_bytes, min(first + (row + step) * meta.row_bytes, end))
        checksum.update(content)
        if meta.extraction.dtype in ("float32", "float16"):
            rows = np.frombuffer(content, meta.array_type).reshape(-1, meta.width)
            num_infinite += int((~np.isfinite(rows).all(axis=1) & opened[row : row + step]).sum())
    if num_bytes > end:  # a trailer follows
        checksum.update(files.read(shard.name, end, num_bytes))
    return checksum.digest(), num_infinite


def _damage_of_photos(files: StoreFiles, meta: StoreMeta) -> str:
    try:
        return _photos_problem(files, meta, read_photos(files))
    except DatasetError as error:
        return str(error)


def _photos_problem(files: StoreFiles, meta: StoreMeta, photos: StoredPhotos) -> str:
    """What is wrong if the list of photos is not the one that was extracted; "" if it is."""
    names = np.ascontiguousarray(photos.images.names)
    same = hashlib.sha256(names.data).hexdigest() == meta.extraction.photos
    return "" if same else f"{files.address}/{PHOTOS} has other photos than the descriptors."


def remove_files(address: str | Path, names: Sequence[str]) -> None:
    """Remove damaged files of a store: the next extraction computes them again."""
    files = open_files(address)
    for name in names:
        files.remove(name)


def remove_store(files: StoreFiles) -> None:
    """Remove the files of a store that has no descriptor, and its folder if that is empty then.

    Descriptors of other photos or of another model can be extracted to the same address.
    """
    for name in files.sizes():
        if name == PHOTOS or name.startswith(("descriptors-", "claim-", "unreadable-")):
            files.remove(name)
    files.remove(META)  # last: without it, what is left of a store is refused
    if (path := files.local_path(META)) is not None:
        with suppress(OSError):  # other files are in it
            path.parent.rmdir()
