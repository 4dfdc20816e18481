"""Add photos to an index: compute their descriptors and store them, a few thousand at a time.

A run that was stopped continues where it stopped.  Legend: n photos.  Side effects: reads photos, writes the index.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cosplace.config.index import IndexSettings
from cosplace.errors import ConfigError, DatasetError, ImageError, PhotoIndexError
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.index.store import has_index
from cosplace.models.encoder import Encoder
from cosplace.photos.image_list import ImageList
from cosplace.photos.metadata import make_thumbnail, photo_key, read_metadata
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import scan_images
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.extraction import ExtractionSettings, extract

TASK = "indexing photos"
PHOTOS_PER_COMMIT = 1024  # photos of one commit are stored together or not at all
DATABASE = "database"

OnStored = Callable[[list[str], np.ndarray], None]
"""Called with paths and ids of photos as soon as they are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexingResult:
    """What happened to the photos that were given to an index."""

    num_given: int
    num_added: int
    num_known: int  # already in the index
    num_replaced: int  # of the added ones, files that had changed
    num_without_position: int  # of the added ones
    unreadable: tuple[str, ...]  # one message per photo
    seconds: float


def build_index(
    dataset_folder: str | Path,
    encoder: Encoder,
    address: str | Path,
    *,
    settings: IndexSettings | None = None,
    source: str = "",
    batch_size: int = 16,
    num_workers: int = 0,
    progress: Progress = no_progress,
    stored: OnStored | None = None,
) -> IndexingResult:
    """Build an index of all photos of a folder, or continue one that was stopped.

    dataset_folder: photos in any subfolders; of a dataset, the photos of its database/ (or test/database/).  Photos
    keep the order of an evaluation, so that among equally similar matches both return the same one.
    Raises PhotoIndexError if the index was built with another model or other settings, and what `add_photos` raises.
    """
    photos = find_photos(dataset_folder)
    if has_index(str(address)):
        index = open_index(address, write=True)
        if settings is not None and index.settings != settings:
            index.close()
            raise PhotoIndexError(
                f"{address} contains an index with other settings ({index.settings}). Choose another address."
            )
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
    """List the photos of a folder; of a dataset, those of its database/ or test/database/."""
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
    photos_per_commit: int = PHOTOS_PER_COMMIT,
    progress: Progress = no_progress,
    stored: OnStored | None = None,
) -> IndexingResult:
    """Compute the descriptors of photos and add them; each photo is added once, by its path and by its content.

    A photo whose file has changed replaces its former version.  Photos that cannot be opened are left out and
    reported.  stored: called after each commit; what it reports survives any kill.
    Raises PhotoIndexError for an index of another model, StorageError if the disk is full.
    """
    if photos_per_commit < 1:
        raise ConfigError(f"photos_per_commit must be at least 1, got {photos_per_commit}.")
    index.check_model(encoder.name, encoder.checksum, encoder.image_size)
    started = time.perf_counter()
    extraction = ExtractionSettings(
        image_size=encoder.image_size,
        batch_size=batch_size,
        num_workers=num_workers,
        device=encoder.device,
        skip_unreadable=True,
    )
    indexing = _Indexing(
        index=index,
        encoder=encoder,
        photos=photos,
        source=source,
        extraction=extraction,
        stored=stored,
        stamps=index.stamps(),
    )
    new_rows = [row for row in range(len(photos)) if not indexing.is_unchanged(photos.path(row))]
    indexing.num_known = num_done = len(photos) - len(new_rows)
    if num_done:
        progress(TASK, num_done, len(photos))
    with ThreadPoolExecutor(max(1, num_workers)) as readers:
        for start in range(0, len(new_rows), photos_per_commit):
            rows = new_rows[start : start + photos_per_commit]
            indexing.progress = part_of(progress, TASK, num_done, len(photos))
            indexing.add(rows, list(readers.map(indexing.read, rows)))
            num_done += len(rows)
            progress(TASK, num_done, len(photos))
    return IndexingResult(
        num_given=len(photos),
        num_added=indexing.num_added,
        num_known=indexing.num_known,
        num_replaced=indexing.num_replaced,
        num_without_position=indexing.num_without_position,
        unreadable=tuple(indexing.unreadable),
        seconds=time.perf_counter() - started,
    )


@dataclass(slots=True, kw_only=True)
class _Indexing:
    """Adds photos to an index, and counts what happens to them."""

    index: PhotoIndex
    encoder: Encoder
    photos: ImageList
    source: str
    extraction: ExtractionSettings
    stored: OnStored | None
    stamps: dict[str, tuple[int, int, int]]  # path -> (bytes, modification time, id)
    progress: Progress = no_progress  # of the photos of one commit
    num_added: int = 0
    num_known: int = 0
    num_replaced: int = 0
    num_without_position: int = 0
    unreadable: list[str] = field(default_factory=list)

    def is_unchanged(self, path: Path) -> bool:
        """Whether the index has this file, and the file has not changed since."""
        stamp = self.stamps.get(_path_text(path))
        if stamp is None:
            return False
        try:
            status = path.stat()
        except OSError:
            return False
        return stamp[:2] == (status.st_size, status.st_mtime_ns)

    def read(self, row: int) -> NewPhoto | str:
        """Everything about a photo except its descriptor; an error message if it cannot be read."""
        path = self.photos.path(row)
        try:
            raw, status = path.read_bytes(), path.stat()
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})."
        metadata = read_metadata(path, raw)
        return NewPhoto(
            path=_path_text(path),
            key=photo_key(raw, metadata),
            latitude=metadata.latitude,
            longitude=metadata.longitude,
            heading=metadata.heading,
            time=metadata.time,
            source=self.source,
            num_bytes=status.st_size,
            modified_ns=status.st_mtime_ns,
            thumbnail=make_thumbnail(raw, self.index.settings.thumbnail_size),
        )

    def add(self, rows: Sequence[int], read: Sequence[NewPhoto | str]) -> None:
        """Add some photos of the list in one commit; descriptors are computed only for new ones."""
        self.unreadable += [entry for entry in read if isinstance(entry, str)]
        readable = [(row, entry) for row, entry in zip(rows, read, strict=True) if isinstance(entry, NewPhoto)]
        known_ids = self.index.find([entry.key for _, entry in readable]).tolist()
        for photo_id, (_, entry) in zip(known_ids, readable, strict=True):
            if photo_id >= 0:
                self.num_known += 1
                self._remove_former(entry.path, photo_id)
        new = [pair for photo_id, pair in zip(known_ids, readable, strict=True) if photo_id < 0]
        descriptors, failures = self._compute_descriptors([row for row, _ in new])
        self.unreadable += [failures[number] for number in sorted(failures)]
        kept = [number for number in range(len(new)) if number not in failures]
        if kept:
            self._store([new[number][1] for number in kept], descriptors[kept])

    def _store(self, entries: list[NewPhoto], descriptors: np.ndarray) -> None:
        result = self.index.add(entries, descriptors)
        for entry, photo_id, is_new in zip(entries, result.ids.tolist(), result.is_new.tolist(), strict=True):
            self.num_added += is_new
            self.num_known += not is_new  # twice in the list
            self.num_without_position += is_new and bool(np.isnan(entry.latitude))
            self._remove_former(entry.path, photo_id)
        if self.stored is not None:
            self.stored([entry.path for entry in entries], result.ids)

    def _remove_former(self, path: str, photo_id: int) -> None:
        """Remove the former version of a changed file.

        This comes last: if the process is killed before, both versions stay and the next run removes the old one.
        """
        stamp = self.stamps.get(path)
        if stamp is not None and stamp[2] != photo_id:
            self.num_replaced += self.index.remove([stamp[2]])

    def _compute_descriptors(self, rows: list[int]) -> tuple[np.ndarray, dict[int, str]]:
        """Descriptors (n, D), and number -> error message of the photos that cannot be opened."""
        empty = np.empty((0, self.encoder.dimension), np.float32)
        if not rows:
            return empty, {}
        photos = self.photos.subset(rows)
        try:
            result = extract(self.encoder.network, photos, self.extraction, progress=self.progress)
        except ImageError:  # none of them can be opened
            return empty, dict(_failures(photos))
        return np.asarray(result.descriptors), {entry.index: entry.message for entry in result.unreadable}


def _path_text(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _failures(photos: ImageList) -> Iterator[tuple[int, str]]:
    for number in range(len(photos)):
        try:
            open_image(photos.path(number))
        except ImageError as error:
            yield number, str(error)


def find_ids(index: PhotoIndex, names: Sequence[str]) -> np.ndarray:
    """Ids of photos given by id (a number), by path, or by a folder that contains them.

    Raises DatasetError for a name that matches no photo.
    """
    columns = index.columns()
    rows_of = {path: row for row, path in enumerate(columns.paths())} if len(columns) else {}
    found: list[int] = []
    for name in names:
        if name.isdigit() and (row := columns.row_of(int(name))) is not None:
            found.append(int(columns.ids[row]))
            continue
        path = _path_text(Path(name).absolute())
        rows = (
            [rows_of[path]]
            if path in rows_of
            else [row for other, row in rows_of.items() if other.startswith(path.rstrip("/") + "/")]
        )
        if not rows:
            raise DatasetError(f"{index.address} has no photo '{name}'. Use an id, a path, or a folder of photos.")
        found += columns.ids[rows].tolist()
    return np.unique(np.array(found, np.int64))
