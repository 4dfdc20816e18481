"""Add photos to an index on a Ray cluster: processes describe photos and write their files; one process commits them.

The driver, which is the writer of the index, sends the photos in parts, in the order of the list.  A part comes back
as facts about its photos, while descriptors and thumbnails stay in the cluster.  In the order of the list, the driver
decides which photos are new and gives them ids, so the index holds the same photos with the same ids as one that was
built by one process.  Then some process of the cluster writes the new photos of several parts as one file of the table,
and the driver commits the files in order.  What was committed survives any kill; a later run continues after it.

Legend: n photos, D dimension.  Side effects: reads photos, writes the index.
"""

import json
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from cosplace.engines.encoder import Encoder
from cosplace.errors import DatasetError
from cosplace.index.building import PHOTOS_PER_COMMIT
from cosplace.index.cluster_search import has_many_files, join_files, photos_address
from cosplace.index.indexing import TASK, Indexing, IndexingResult, OnStored, describe_photos, read_photo
from cosplace.index.lance import translated_errors
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.photo_reader import check_descriptors
from cosplace.index.photo_table import photo_rows
from cosplace.index.records import AddResult, NewPhoto
from cosplace.photos.image_list import ImageList
from cosplace.progress import Progress, no_progress
from cosplace.ray_cluster import Cluster, check_same_versions, package_versions, remote, wait_for
from cosplace.retrieval.extraction import ExtractionSettings

PHOTOS_PER_FILE = 32_768  # of the table: few files, which fit into memory with their thumbnails
COMMIT_S = 60.0  # then files are written with the photos that there are
PARTS_AHEAD = 3  # per process: described, or being described, while the driver waits for an earlier one
FILES_AHEAD = 2  # being written while the driver waits for an earlier one
RETRIES = 3  # of a part, after a process or its machine was lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Photos of one part: what the driver needs, and what stays in the cluster."""

    photos: list[NewPhoto | str]  # without thumbnails; an error message for a photo that cannot be read
    contradictions: list[tuple[str, float]] = field(default_factory=list)  # names, and meters between their positions
    descriptors: np.ndarray  # (n, D) float32, of the photos that can be read
    thumbnails: list[bytes]  # of these


Describe = Callable[[Any], Described]
"""Describes one part of a list, in a process of the cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribePhotos:
    """Reads and describes photos of a list."""

    encoder: Encoder
    extraction: ExtractionSettings
    source: str
    thumbnail_size: int
    without_headings: bool = False

    def __call__(self, photos: ImageList) -> Described:
        """Describe all photos of a list.  Raises DatasetError if this machine does not have their folder."""
        if not photos.folder.is_dir():
            raise DatasetError(
                f"{photos.folder} is missing on {socket.gethostname()}. All machines of the Ray cluster need the "
                "photos at the same paths: mount the folder there."
            )
        rows, bare = range(len(photos)), self.without_headings
        with ThreadPoolExecutor(max(1, self.extraction.num_workers)) as readers:
            read = list(
                readers.map(
                    lambda row: read_photo(photos, row, self.source, self.thumbnail_size, without_heading=bare), rows
                )
            )
        found: list[NewPhoto | str] = [photo for photo, _ in read]
        readable = [row for row in rows if isinstance(found[row], NewPhoto)]
        described = describe_photos(self.encoder, photos, readable, self.extraction)
        failures = described.failures
        for number, message in failures.items():
            found[readable[number]] = message
        kept = np.array([number for number in range(len(readable)) if number not in failures], np.int64)
        contradictions = [(photos.path(row).name, meters) for row, (_, meters) in enumerate(read) if meters is not None]
        photos_found, thumbnails = without_thumbnails(found)
        return Described(
            photos=photos_found,
            contradictions=contradictions,
            descriptors=described.descriptors[kept],
            thumbnails=thumbnails,
        )


def without_thumbnails(photos: Sequence[NewPhoto | str]) -> tuple[list[NewPhoto | str], list[bytes]]:
    """Photos without their thumbnails, and these."""
    bare = [photo if isinstance(photo, str) else photo.without_thumbnail() for photo in photos]
    return bare, [photo.thumbnail for photo in photos if isinstance(photo, NewPhoto)]


def add_photos_on_cluster(
    index: PhotoIndex,
    encoder: Encoder,
    photos: ImageList,
    *,
    cluster: Cluster,
    source: str = "",
    batch_size: int = 16,
    num_workers: int = 0,
    photos_per_part: int = PHOTOS_PER_COMMIT,
    progress: Progress = no_progress,
    stored: OnStored | None = None,
) -> IndexingResult:
    """Do what `cosplace.index.building.add_photos` does, on a cluster; all its machines must see the photos.

    num_workers: threads or processes that load photos, of each process that describes them.  Raises PhotoIndexError for
    an index of another model, and ConfigError if a machine of the cluster has other versions.
    """
    index.check_encoder(encoder)
    index.add_root(photos.folder)
    extraction = ExtractionSettings(
        image_size=encoder.image_size,
        batch_size=batch_size,
        num_workers=num_workers,
        device=encoder.device,
        skip_unreadable=True,
    )
    indexing = Indexing(
        index=index, encoder=encoder, photos=photos, source=source, stored=stored, stamps=index.stamps()
    )
    rows = indexing.find_new_rows()
    num_known = indexing.num_known
    progress(TASK, num_known, len(photos))

    def accept(described: Described) -> tuple[list[int], list[NewPhoto], Callable[[AddResult], None]]:
        indexing.contradictions += described.contradictions
        ids, numbers, new = indexing.take_known(described.photos)

        def finish(added: AddResult) -> None:
            indexing.remove_former(ids | indexing.count_added(new, added))

        return numbers, new, finish

    describe = DescribePhotos(
        encoder=encoder,
        extraction=extraction,
        source=source,
        thumbnail_size=index.settings.thumbnail_size,
        without_headings=indexing.without_headings,
    )
    parts = [rows[at : at + photos_per_part] for at in range(0, len(rows), photos_per_part)]
    store_parts(
        index, cluster, describe, [len(part) for part in parts], lambda place: photos.subset(parts[place]),
        accept=accept, needs_gpu=encoder.device.startswith("cuda"),
        progress=lambda done: progress(TASK, num_known + done, len(photos)),
    )  # fmt: skip
    if has_many_files(index.store):
        index.commit(lambda _: join_files(index.store, cluster))
    return indexing.result()


Accept = Callable[[Described], tuple[list[int], list[NewPhoto], Callable[[AddResult], None]]]
"""Called with each part, in order.

Returns which of its readable photos are new, these, and what to call when they are stored.
"""


def store_parts(
    index: PhotoIndex,
    cluster: Cluster,
    describe: Describe,
    sizes: Sequence[int],
    part: Callable[[int], Any],
    *,
    accept: Accept,
    needs_gpu: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Describe the parts of a list on a cluster, and store their new photos, in the order of the list.

    sizes: number of photos of each part.  part: the argument of `describe` for a part.  progress: called with the
    number of photos that are stored.
    """
    if not len(sizes):
        return
    workers = _Workers(describe, cluster, needs_gpu=needs_gpu)
    writing = _Writing(index)
    try:
        described: deque[tuple[Any, Any]] = deque()
        num_sent = num_done = 0
        for size in sizes:
            while num_sent < len(sizes) and len(described) < PARTS_AHEAD * len(workers):
                described.append(workers.describe(part(num_sent)))
                num_sent += 1
            facts, heavy = described.popleft()
            found: Described = wait_for(lambda facts=facts: _get(facts))
            numbers, new, finish = accept(found)
            writing.add(numbers, new, heavy, finish)
            num_done += size
            if writing.commit_finished(num_pending=FILES_AHEAD):
                progress(num_done - writing.num_pending)
        writing.commit_finished(num_pending=0, is_last=True)
        progress(num_done)
    finally:
        workers.end()


class _Workers:
    """Processes of the cluster that describe photos; each holds the model once."""

    def __init__(self, describe: Describe, cluster: Cluster, *, needs_gpu: bool) -> None:
        ray: Any = import_module("ray")

        kind = remote(_Worker, num_cpus=1, num_gpus=int(needs_gpu), max_restarts=-1, max_task_retries=RETRIES)
        # Sent once to each machine.  In a list, so that a process reads it once, not for each part.
        self.shared = [ray.put(describe)]
        versions = package_versions()
        num_workers = cluster.workers_for(needs_gpu=needs_gpu)
        self.actors = [kind.remote(versions) for _ in range(num_workers)]
        self.running: list[list[Any]] = [[] for _ in self.actors]

    def __len__(self) -> int:
        return len(self.actors)

    def describe(self, part: Any) -> tuple[Any, Any]:
        """Send a part to the process with the fewest.

        Returns references to facts, and to descriptors and thumbnails.
        """
        ray: Any = import_module("ray")

        for running in self.running:
            if running:
                _, running[:] = ray.wait(running, num_returns=len(running), timeout=0)
        place = min(range(len(self.actors)), key=lambda number: len(self.running[number]))
        facts, heavy = self.actors[place].describe.options(num_returns=2).remote(self.shared, part)
        self.running[place].append(facts)
        return facts, heavy

    def end(self) -> None:
        """End the processes, so that their CPUs are free."""
        ray: Any = import_module("ray")

        for actor in self.actors:
            ray.kill(actor)


class _Worker:
    """Runs in a process of the cluster."""

    def __init__(self, versions: dict[str, str]) -> None:
        self._versions, self._describe = versions, None

    def describe(self, shared: list[Any], part: Any) -> tuple[Described, tuple[np.ndarray, list[bytes]]]:
        if self._describe is None:
            check_same_versions(self._versions)
            self._describe = _get(shared[0])
        found: Described = self._describe(part)
        facts = Described(
            photos=found.photos, contradictions=found.contradictions, descriptors=np.empty(0), thumbnails=[]
        )
        return facts, (found.descriptors, found.thumbnails)


@dataclass(slots=True, kw_only=True)
class _File:
    """New photos of some parts, that will be one file of the table."""

    photos: list[NewPhoto] = field(default_factory=list)
    parts: list[tuple[Any, list[int]]] = field(default_factory=list)  # descriptors and thumbnails, which are stored
    finish: list[tuple[Callable[[AddResult], None], AddResult]] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    written: Any = None  # reference to its fragments


class _Writing:
    """Writes files on the cluster, and commits them in order."""

    def __init__(self, index: PhotoIndex) -> None:
        self.index, self.address = index, photos_address(index.address)
        self.write = remote(write_file, num_cpus=0, max_retries=RETRIES)  # also while all CPUs describe photos
        self.next, self.pending = _File(), deque[_File]()
        self.last_commit = time.monotonic()

    @property
    def num_pending(self) -> int:
        """Number of photos that are not committed yet."""
        return sum(len(file.photos) for file in [self.next, *self.pending])

    def add(self, numbers: list[int], new: list[NewPhoto], heavy: Any, finish: Callable[[AddResult], None]) -> None:
        """Add the new photos of a part to the next file."""
        result = self.index.reserve(new)
        kept = np.flatnonzero(result.is_new).tolist()
        self.next.finish.append((finish, result))
        if kept:
            self.next.photos += [new[place] for place in kept]
            self.next.ids.append(result.ids[kept])
            self.next.parts.append((heavy, [numbers[place] for place in kept]))
        is_late = time.monotonic() - self.last_commit > COMMIT_S and not self.pending
        if len(self.next.photos) >= PHOTOS_PER_FILE or is_late:
            self._start()

    def _start(self) -> None:
        file, self.next = self.next, _File()
        if file.photos:
            rows = self.index.columns_of(file.photos, np.concatenate(file.ids))
            file.written = self.write.remote(
                self.address, self.index.spec.dimension, rows, [numbers for _, numbers in file.parts],
                *[heavy for heavy, _ in file.parts],
            )  # fmt: skip
        self.pending.append(file)

    def commit_finished(self, *, num_pending: int, is_last: bool = False) -> bool:
        """Commit the files that are written; wait until at most `num_pending` are left.  Returns whether any was."""
        ray: Any = import_module("ray")

        if is_last:
            self._start()
        any_committed = False
        while self.pending:
            written = self.pending[0].written
            must_wait = len(self.pending) > num_pending
            if written is not None and not must_wait and not ray.wait([written], timeout=0)[0]:
                break
            self._commit(self.pending.popleft())
            any_committed = True
        return any_committed

    def _commit(self, file: _File) -> None:
        if file.written is not None:
            lance: Any = import_module("lance")

            texts: list[str] = wait_for(lambda: _get(file.written))
            fragments = [lance.FragmentMetadata.from_json(text) for text in texts]
            append = lance.LanceOperation.Append(fragments)
            self.index.commit(
                lambda newest: lance.LanceDataset.commit(self.address, append, read_version=newest) and None
            )
        for finish, result in file.finish:
            finish(result)
        self.last_commit = time.monotonic()


def write_file(
    address: str, dimension: int, rows: dict[str, Any], numbers: list[list[int]], *parts: tuple[np.ndarray, list[bytes]]
) -> list[str]:
    """On the cluster: write photos as files of a table, without adding them to it; returns these fragments as JSON.

    rows: columns but descriptors and thumbnails.  numbers: which photos of each part are stored.  parts: descriptors
    (n, D) float32 and thumbnails.
    """
    lance: Any = import_module("lance")
    descriptors = np.concatenate([part[0][chosen] for part, chosen in zip(parts, numbers, strict=True)])
    thumbnails = [part[1][number] for part, chosen in zip(parts, numbers, strict=True) for number in chosen]
    check_descriptors(descriptors, dimension, address)
    with translated_errors(address):
        table = lance.dataset(address)
        dtype = np.float16 if str(table.schema.field("descriptor").type.value_type) == "halffloat" else np.float32
        filled = rows | {"descriptor": descriptors.astype(dtype), "thumbnail": thumbnails}
        written = lance.fragment.write_fragments(
            photo_rows(table.schema, filled), table, mode="append", max_rows_per_file=1 << 20
        )
    return [json.dumps(fragment.to_json()) for fragment in written]


def _get(reference: Any) -> Any:
    ray: Any = import_module("ray")

    return ray.get(reference)
