"""Photos into an index: described, stored a few thousand at a time, gone on with after a stop.

Legend: n photos.  Side effects: reads photos, writes the index.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cosplace.errors import ConfigError, DatasetError, ImageError, PhotoIndexError
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import ModelSpec, NewPhoto, Settings
from cosplace.index.store import has_index
from cosplace.models.encoder import Encoder
from cosplace.photos.image_list import ImageList
from cosplace.photos.metadata import make_thumbnail, photo_key, read_metadata
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.extraction import extract

STORED_AT_ONCE = 1024  # photos; those of one commit are there together or not at all
DATABASE = "database"

Progress = Callable[[int, int], None]  # (done, total)
Stored = Callable[[list[str], np.ndarray], None]
"""Called with paths and ids of photos as soon as they are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What became of the photos that an index was given."""

    num_given: int
    num_added: int
    num_known: int  # were there already
    num_replaced: int  # of those added, files that had changed since
    num_without_position: int  # of those added
    unreadable: tuple[str, ...]  # what was wrong, a line a photo
    seconds: float


def build_index(
    dataset_folder: str | Path,
    encoder: Encoder,
    address: str | Path,
    *,
    settings: Settings | None = None,
    source: str = "",
    batch_size: int = 16,
    num_workers: int = 0,
    progress: Progress | None = None,
    stored: Stored | None = None,
) -> Growth:
    """Make an index of all photos of a folder, or go on with one that was stopped.

    dataset_folder: photos in any subfolders; where it holds database/ (or test/database/), those.  The photos keep the
    order of evaluation, so that among equal neighbours both name the same.
    Raises PhotoIndexError when the index there was made with another model or with other settings, and what
    `add_photos` raises.
    """
    photos = find_photos(dataset_folder)
    if has_index(str(address)):
        index = open_index(address, write=True)
        if settings is not None and index.settings != settings:
            index.close()
            raise PhotoIndexError(f"{address} holds an index with other settings ({index.settings}): choose another.")
    else:
        spec = ModelSpec(
            model=encoder.name,
            checksum=encoder.checksum,
            dimension=encoder.dimension,
            image_size=encoder.image_size,
        )
        index = create_index(address, spec, settings)
    with index:
        return add_photos(
            index,
            encoder,
            photos,
            source=source or str(photos.folder),
            batch_size=batch_size,
            num_workers=num_workers,
            progress=progress,
            stored=stored,
        )


def find_photos(folder: str | Path) -> ImageList:
    """The photos of a folder; of its database/ or test/database/ where it is a dataset."""
    folder = Path(folder)
    for inside in (folder / DATABASE, folder / "test" / DATABASE):
        if inside.is_dir():
            folder = inside
            break
    photos = scan_images(folder)
    return replace(photos, folder=photos.folder.absolute())


def add_photos(
    index: PhotoIndex,
    encoder: Encoder,
    photos: ImageList,
    *,
    source: str = "",
    batch_size: int = 16,
    num_workers: int = 0,
    stored_at_once: int = STORED_AT_ONCE,
    progress: Progress | None = None,
    stored: Stored | None = None,
) -> Growth:
    """Describe photos and add them; each is added once, whether it is found again by its path or by its content.

    A photo whose file changed since takes the place of its former self.  A photo that cannot be opened is left out and
    told.  stored: called after each commit; what it was told of survives any kill.
    Raises PhotoIndexError for an index of another model, StorageError when the disk is full.
    """
    if stored_at_once < 1:
        raise ConfigError(f"stored_at_once is {stored_at_once}: it must be at least 1.")
    index.check_model(encoder.name, encoder.checksum, encoder.image_size)
    started = time.perf_counter()
    adding = _Adding(
        index=index,
        encoder=encoder,
        photos=photos,
        source=source,
        batch_size=batch_size,
        num_workers=num_workers,
        stored=stored,
        stamps=index.stamps(),
    )
    unknown = [row for row in range(len(photos)) if not adding.is_known(photos.path(row))]
    adding.known = done = len(photos) - len(unknown)
    if progress is not None and done:
        progress(done, len(photos))
    with ThreadPoolExecutor(max(1, num_workers)) as readers:
        for at in range(0, len(unknown), stored_at_once):
            rows = unknown[at : at + stored_at_once]
            if progress is not None:
                adding.progress = lambda some, _, done=done: progress(done + some, len(photos))
            adding.add(rows, list(readers.map(adding.read, rows)))
            done += len(rows)
            if progress is not None:
                progress(done, len(photos))
    return Growth(
        num_given=len(photos),
        num_added=adding.added,
        num_known=adding.known,
        num_replaced=adding.replaced,
        num_without_position=adding.without_position,
        unreadable=tuple(adding.unreadable),
        seconds=time.perf_counter() - started,
    )


@dataclass(slots=True, kw_only=True)
class _Adding:
    """Photos on their way into an index, and counts of what became of them."""

    index: PhotoIndex
    encoder: Encoder
    photos: ImageList
    source: str
    batch_size: int
    num_workers: int
    stored: Stored | None
    stamps: dict[str, tuple[int, int, int]]  # path -> (bytes, time of change, id)
    progress: Progress | None = None  # within one stretch
    added: int = 0
    known: int = 0
    replaced: int = 0
    without_position: int = 0
    unreadable: list[str] = field(default_factory=list)

    def is_known(self, path: Path) -> bool:
        """Whether the index has this very file, unchanged since."""
        stamp = self.stamps.get(_text(path))
        if stamp is None:
            return False
        try:
            status = path.stat()
        except OSError:
            return False
        return stamp[:2] == (status.st_size, status.st_mtime_ns)

    def read(self, row: int) -> NewPhoto | str:
        """All of a photo but its descriptor; what is wrong for one that cannot be read."""
        path = self.photos.path(row)
        try:
            raw, status = path.read_bytes(), path.stat()
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})."
        facts = read_metadata(path, raw)
        return NewPhoto(
            path=_text(path),
            key=photo_key(raw, facts),
            latitude=facts.latitude,
            longitude=facts.longitude,
            heading=facts.heading,
            time=facts.time,
            source=self.source,
            num_bytes=status.st_size,
            modified_ns=status.st_mtime_ns,
            thumbnail=make_thumbnail(raw, self.index.settings.thumbnail_size),
        )

    def add(self, rows: Sequence[int], read: Sequence[NewPhoto | str]) -> None:
        """Describe some photos of the list and add them in one commit; nothing is described that is there already."""
        self.unreadable += [entry for entry in read if isinstance(entry, str)]
        readable = [(row, entry) for row, entry in zip(rows, read, strict=True) if isinstance(entry, NewPhoto)]
        there = self.index.find([entry.key for _, entry in readable])
        for photo_id, (_, entry) in zip(there.tolist(), readable, strict=True):
            if photo_id >= 0:
                self.known += 1
                self._forget_former(entry.path, photo_id)
        fresh = [both for photo_id, both in zip(there.tolist(), readable, strict=True) if photo_id < 0]
        descriptors, failures = self._describe([row for row, _ in fresh])
        self.unreadable += [failures[number] for number in sorted(failures)]
        kept = [number for number in range(len(fresh)) if number not in failures]
        if kept:
            self._store([fresh[number][1] for number in kept], descriptors[kept])

    def _store(self, entries: list[NewPhoto], descriptors: np.ndarray) -> None:
        added = self.index.add(entries, descriptors)
        for entry, photo_id, is_new in zip(entries, added.ids.tolist(), added.is_new.tolist(), strict=True):
            self.added += is_new
            self.known += not is_new  # twice in the list
            self.without_position += is_new and bool(np.isnan(entry.latitude))
            self._forget_former(entry.path, photo_id)
        if self.stored is not None:
            self.stored([entry.path for entry in entries], added.ids)

    def _forget_former(self, path: str, photo_id: int) -> None:
        """Remove what a file held before it changed.  Last: a kill before leaves both, the next run removes it."""
        stamp = self.stamps.get(path)
        if stamp is not None and stamp[2] != photo_id:
            self.replaced += self.index.remove([stamp[2]])

    def _describe(self, rows: list[int]) -> tuple[np.ndarray, dict[int, str]]:
        """Descriptors (n, D), and number -> what is wrong of the photos that cannot be opened."""
        nothing = np.empty((0, self.encoder.dimension), np.float32)
        if not rows:
            return nothing, {}
        some = _listed(self.photos, rows)
        try:
            extraction = extract(
                self.encoder.network,
                some,
                image_size=self.encoder.image_size,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                device=self.encoder.device,
                skip_unreadable=True,
                progress=self.progress,
            )
        except ImageError:  # not one of them can be opened
            return nothing, dict(_failures(some))
        return np.asarray(extraction.descriptors), {entry.index: entry.message for entry in extraction.unreadable}


def _text(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _listed(photos: ImageList, rows: list[int]) -> ImageList:
    """Some photos of a list, in their order there."""
    parts = [photos.text(int(photos.starts[row]), int(photos.starts[row + 1])) for row in rows]
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return ImageList(folder=photos.folder, names=np.concatenate(parts), starts=starts)


def _failures(photos: ImageList) -> Iterator[tuple[int, str]]:
    for number in range(len(photos)):
        try:
            open_image(photos.path(number))
        except ImageError as error:
            yield number, str(error)


def find_ids(index: PhotoIndex, what: Sequence[str]) -> np.ndarray:
    """Ids of photos named by id (a number), by path, or by a folder they lie in.

    Raises DatasetError for a name that no photo answers to.
    """
    columns = index.columns()
    rows_of = {path: row for row, path in enumerate(columns.paths())} if len(columns) else {}
    found: list[int] = []
    for name in what:
        if name.isdigit() and (row := columns.row_of(int(name))) is not None:
            found.append(int(columns.ids[row]))
            continue
        path = _text(Path(name).absolute())
        rows = (
            [rows_of[path]]
            if path in rows_of
            else [row for other, row in rows_of.items() if other.startswith(path.rstrip("/") + "/")]
        )
        if not rows:
            raise DatasetError(f"{index.address} has no photo '{name}': give an id, a path, or a folder of photos.")
        found += columns.ids[rows].tolist()
    return np.unique(np.array(found, np.int64))
