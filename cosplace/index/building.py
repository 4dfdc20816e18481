"""Add photos to an index: compute their descriptors and store them, a few thousand at a time.

A run that was stopped continues where it stopped.  Legend: n photos.  Side effects: reads photos, writes the index.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cosplace.config.index import IndexSettings
from cosplace.errors import ConfigError, DatasetError, ImageError, PhotoIndexError
from cosplace.geo import ecef_from_lla
from cosplace.index.keys import content_of, first_of_each
from cosplace.index.parts import record_part
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.index.roots import is_below
from cosplace.index.sources import find_photos
from cosplace.index.store import has_index
from cosplace.models.encoder import Encoder
from cosplace.photos.image_list import ImageList
from cosplace.photos.metadata import (
    SAME_HEADING_DEG,
    SAME_POSITION_M,
    PhotoMetadata,
    former_photo_key,
    photo_key,
    read_metadata,
)
from cosplace.photos.names import MAX_CONTRADICTION_M, optional_fields
from cosplace.photos.opening import open_image, read_file
from cosplace.photos.paths import path_from_text, path_text, printable
from cosplace.photos.thumbnails import make_thumbnail
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.extraction import ExtractionSettings, extract

TASK, PLAN_TASK = "indexing photos", "comparing photos"
PHOTOS_PER_COMMIT = 1024  # photos of one commit are stored together or not at all

log = logging.getLogger(__name__)

OnStored = Callable[[list[str], np.ndarray], None]
"""Called with paths and ids of photos as soon as they are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexingResult:
    """What happened to the photos that were given to an index."""

    num_given: int
    num_added: int
    num_known: int  # in the index before
    num_copies: int  # given more than once: the first one was added
    num_moved: int  # of the known ones, at another path than before
    num_replaced: int  # earlier versions of files that had changed
    num_without_position: int  # of the added ones
    unreadable: tuple[str, ...]  # one message per photo
    seconds: float


def build_index(
    dataset_folder: str | Path | ImageList,
    encoder: Encoder,
    address: str | Path,
    *,
    dataset: str | Path | None = None,
    part: str | None = None,
    settings: IndexSettings | None = None,
    source: str = "",
    batch_size: int = 16,
    num_workers: int = 0,
    follow_outside: bool = False,
    progress: Progress = no_progress,
    stored: OnStored | None = None,
) -> IndexingResult:
    """Build an index of all photos of a folder, or continue one that was stopped.

    dataset_folder: photos in any subfolders, or their list; of a dataset, the photos of its database (`find_photos`).
    dataset: the folder or table that a list is of.  part: see `find_photos`; stored for `sync_folder`.
    Photos keep the order of an evaluation, so that among equally similar matches both return the same one.
    Raises PhotoIndexError if the index was built with another model or other settings, and what `add_photos` raises.
    """
    photos = dataset_folder
    if not isinstance(photos, ImageList):
        dataset = photos
        photos = find_photos(dataset, part=part, follow_outside=follow_outside)
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
            views=encoder.views,
        )
        index = create_index(address, spec, settings)
    with index:
        record_part(index, photos.folder if dataset is None else dataset, photos.folder, part)
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

    A photo whose file has changed replaces its earlier version.  A photo that has moved keeps its id and gets its new
    path.  Photos that cannot be opened are left out and reported.  stored: called after each commit; what it reports
    survives any kill.
    Raises PhotoIndexError for an index of another model, StorageError if the disk is full.
    """
    if photos_per_commit < 1:
        raise ConfigError(f"photos_per_commit must be at least 1, got {photos_per_commit}.")
    index.check_model(encoder.name, encoder.checksum, encoder.image_size, encoder.views)
    index.add_root(photos.folder)
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
    indexing.find_changed_labels()
    new_rows = [row for row in range(len(photos)) if not indexing.is_unchanged(row)]
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
    if indexing.contradictions:
        name, meters = indexing.contradictions[0]
        log.warning(
            "In %d file names, the UTM fields and the latitude and longitude are more than %g m apart, for example "
            "%.0f m in %s. Latitude and longitude are used. Correct the names: `cosplace validate` lists them.",
            len(indexing.contradictions), MAX_CONTRADICTION_M, meters, printable(name),
        )  # fmt: skip
    return IndexingResult(
        num_given=len(photos),
        num_added=indexing.num_added,
        num_known=indexing.num_known,
        num_copies=indexing.num_copies,
        num_moved=indexing.num_moved,
        num_replaced=indexing.num_replaced,
        num_without_position=indexing.num_without_position,
        unreadable=tuple(indexing.unreadable),
        seconds=time.perf_counter() - started,
    )


@dataclass(slots=True, kw_only=True)
class _Indexing:
    """Adds photos to an index, and counts what happens to them."""

    index: PhotoIndex
    photos: ImageList
    stamps: dict[str, tuple[int, int, int]]  # path -> (bytes, modification time, id)
    encoder: Encoder | None = None  # None: nothing is added
    extraction: ExtractionSettings | None = None
    source: str = ""
    stored: OnStored | None = None
    progress: Progress = no_progress  # of the photos of one commit
    num_added: int = 0
    num_known: int = 0
    num_copies: int = 0
    num_moved: int = 0
    num_replaced: int = 0
    num_without_position: int = 0
    unreadable: list[str] = field(default_factory=list)
    moved: set[int] = field(default_factory=set)  # ids of photos with a new path
    added: set[int] = field(default_factory=set)  # ids of new photos
    changed_labels: set[int] = field(default_factory=set)  # rows of photos
    contradictions: list[tuple[str, float]] = field(default_factory=list)  # names, and meters between their positions

    def path_text(self, row: int) -> str:
        """The path of a photo as it is stored; the folder of a list has no links."""
        path = os.path.join(self.photos.folder, self.photos.name(row))  # noqa: PTH118 - much faster for many photos
        return path_text(os.path.normpath(path) if ".." in path else path)

    def is_unchanged(self, row: int) -> bool:
        """Whether the index has this file, and neither the file nor its label has changed since."""
        return row not in self.changed_labels and self.holds(self.path_text(row))

    def find_changed_labels(self) -> None:
        """Find the photos that the index has with another position or heading than their label."""
        if self.photos.labels is None:
            return
        columns = self.index.columns()
        row_of = {path: row for row, path in enumerate(columns.paths())}
        pairs = [(row, row_of.get(self.path_text(row), -1)) for row in range(len(self.photos))]
        rows, indexed = np.array([pair for pair in pairs if pair[1] >= 0], np.int64).reshape(-1, 2).T
        latitudes, longitudes, headings = optional_fields(self.photos, ("latitude", "longitude", "heading"))[:, rows]
        points = ecef_from_lla(columns.latitudes[indexed], columns.longitudes[indexed])
        moved_m = np.linalg.norm(ecef_from_lla(latitudes, longitudes) - points, axis=1)
        turns = np.abs((headings - columns.headings[indexed] + 180) % 360 - 180)
        # A value that the label lacks may be from EXIF, so only a new value is a change; but a position that is gone
        # must not stay in the index.
        is_new = np.isnan(latitudes) != np.isnan(columns.latitudes[indexed])
        is_new |= (moved_m > SAME_POSITION_M) | (turns > SAME_HEADING_DEG)
        is_new |= ~np.isnan(headings) & np.isnan(columns.headings[indexed])
        self.changed_labels = set(rows[is_new].tolist())

    def holds(self, path: str) -> bool:
        """Whether the index has the file at a path as it is now."""
        stamp = self.stamps.get(path)
        if stamp is None:
            return False
        try:
            status = path_from_text(path).stat()
        except OSError:
            return False
        return stamp[:2] == (status.st_size, status.st_mtime_ns)

    def read(self, row: int, *, with_thumbnail: bool = True) -> NewPhoto | str:
        """Everything about a photo except its descriptor; an error message if it cannot be read."""
        try:
            path = self.photos.path(row)
            status = path.stat()  # first: a change while it is read is found by the next run
            raw = read_file(path)
        except ImageError as error:
            return str(error)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            return str(ImageError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})."))
        label = None if self.photos.labels is None else self.photos.label(row)
        metadata = read_metadata(path, raw, label)
        if metadata.contradicts_itself:
            self.contradictions.append((path.name, metadata.contradiction_m))
        return NewPhoto(
            path=self.path_text(row),
            key=photo_key(raw, metadata),
            former_key=former_photo_key(raw, metadata),
            latitude=metadata.latitude,
            longitude=metadata.longitude,
            heading=metadata.heading,
            time=metadata.time,
            accuracy_m=metadata.accuracy_m,
            source=self.source,
            num_bytes=status.st_size,
            modified_ns=status.st_mtime_ns,
            thumbnail=make_thumbnail(raw, self.index.settings.thumbnail_size if with_thumbnail else 0),
        )

    def add(self, rows: Sequence[int], read: Sequence[NewPhoto | str]) -> None:
        """Add some photos of the list in one commit; descriptors are computed only for new ones."""
        self.unreadable += [entry for entry in read if isinstance(entry, str)]
        readable = [(row, entry) for row, entry in zip(rows, read, strict=True) if isinstance(entry, NewPhoto)]
        found = _find(self.index, [entry for _, entry in readable])
        ids = {entry.path: photo_id for photo_id, (_, entry) in zip(found, readable, strict=True) if photo_id >= 0}
        num_copies = sum(photo_id in self.added for photo_id in ids.values())
        self.num_copies += num_copies
        self.num_known += len(ids) - num_copies
        self._move([entry for _, entry in readable if entry.path in ids], ids)
        new = [pair for photo_id, pair in zip(found, readable, strict=True) if photo_id < 0]
        descriptors, failures = self._compute_descriptors([row for row, _ in new])
        self.unreadable += [failures[number] for number in sorted(failures)]
        kept = [number for number in range(len(new)) if number not in failures]
        if kept:
            ids |= self._store([new[number][1] for number in kept], descriptors[kept])
        self._remove_former(ids)

    def _move(self, entries: Sequence[NewPhoto], ids: dict[str, int]) -> None:
        """Update the paths of photos that have moved; of several copies, the first path is kept."""
        moved = self.find_moved(entries, ids)
        self.index.move(list(moved), list(moved.values()))
        self.num_moved += len(moved)
        self.moved |= moved.keys()

    def find_moved(self, entries: Sequence[NewPhoto], ids: dict[str, int]) -> dict[int, NewPhoto]:
        """Photos, by id, whose file is no longer at its recorded path but at the path of an entry."""
        path_of = {stamp[2]: path for path, stamp in self.stamps.items()} if entries else {}
        moved: dict[int, NewPhoto] = {}
        for entry in entries:
            photo_id = ids[entry.path]
            former = path_of.get(photo_id)
            is_elsewhere = former != entry.path and photo_id not in self.moved and photo_id not in moved
            if is_elsewhere and (former is None or not (self.holds(former) or _is_copy(former, entry.key))):
                moved[photo_id] = entry
        return moved

    def _store(self, entries: list[NewPhoto], descriptors: np.ndarray) -> dict[str, int]:
        """Add new photos; returns their ids by path."""
        result = self.index.add(entries, descriptors)
        for entry, is_new in zip(entries, result.is_new.tolist(), strict=True):
            self.num_added += is_new
            self.num_copies += not is_new
            self.num_without_position += is_new and bool(np.isnan(entry.latitude))
        self.added.update(result.ids.tolist())
        if self.stored is not None:
            self.stored([entry.path for entry in entries], result.ids)
        return dict(zip((entry.path for entry in entries), result.ids.tolist(), strict=True))

    def _remove_former(self, ids: dict[str, int]) -> None:
        """Remove the earlier versions of changed files.  ids: of the photos that are at these paths now.

        This comes last: if the process is killed before, both versions stay and the next run removes the old one.
        """
        former = {self.stamps[path][2] for path in ids if path in self.stamps}
        if outdated := former.difference(ids.values(), self.moved):
            self.num_replaced += self.index.remove(sorted(outdated))

    def _compute_descriptors(self, rows: list[int]) -> tuple[np.ndarray, dict[int, str]]:
        """Descriptors (n, D), and number -> error message of the photos that cannot be opened."""
        assert self.encoder is not None and self.extraction is not None
        empty = np.empty((0, self.encoder.dimension), np.float32)
        if not rows:
            return empty, {}
        photos = self.photos.subset(rows)
        try:
            result = extract(self.encoder.network, photos, self.extraction, progress=self.progress)
        except ImageError:  # none of them can be opened
            return empty, dict(_failures(photos))
        return np.asarray(result.descriptors), {entry.index: entry.message for entry in result.unreadable}


def _find(index: PhotoIndex, entries: Sequence[NewPhoto]) -> list[int]:
    """Id of each photo that the index has; -1 for the others."""
    return index.find([entry.key for entry in entries], [entry.former_key for entry in entries]).tolist()


def _is_copy(path: str, key: str) -> bool:
    """Whether the file at a path has the content of a key."""
    try:
        return content_of(photo_key(read_file(path_from_text(path)), PhotoMetadata())) == content_of(key)
    except ImageError:  # there is none
        return False


def _failures(photos: ImageList) -> Iterator[tuple[int, str]]:
    for number in range(len(photos)):
        try:
            open_image(photos.path(number))
        except ImageError as error:
            yield number, str(error)


def plan_photos(
    index: PhotoIndex, photos: ImageList, num_workers: int = 0, progress: Progress = no_progress
) -> tuple[IndexingResult, frozenset[int]]:
    """What `add_photos` would do, and the ids of photos that have moved; new and changed files are read and decoded."""
    started = time.perf_counter()
    plan = _Indexing(index=index, photos=photos, stamps=index.stamps())
    plan.find_changed_labels()
    new_rows = [row for row in range(len(photos)) if not plan.is_unchanged(row)]
    num_done = len(photos) - len(new_rows)
    read: list[tuple[NewPhoto | str, str]] = []  # with an error message for a photo that cannot be decoded
    with ThreadPoolExecutor(max(1, num_workers)) as readers:
        for one in readers.map(lambda row: _read_and_decode(plan, row), new_rows):
            read.append(one)
            progress(PLAN_TASK, num_done + len(read), len(photos))
    entries = [(entry, error) for entry, error in read if isinstance(entry, NewPhoto)]
    found = _find(index, [entry for entry, _ in entries])
    ids = {entry.path: photo_id for photo_id, (entry, _) in zip(found, entries, strict=True) if photo_id >= 0}
    moved = plan.find_moved([entry for entry, _ in entries if entry.path in ids], ids)
    # A photo that the index has is not decoded when it is added.
    failed = [error for entry, error in entries if error and entry.path not in ids]
    new = [entry for entry, error in entries if not error and entry.path not in ids]
    firsts = sorted(set(first_of_each([entry.key for entry in new])))
    placed = [*ids, *(entry.path for entry in new)]
    former = {plan.stamps[path][2] for path in placed if path in plan.stamps}
    result = IndexingResult(
        num_given=len(photos),
        num_added=len(firsts),
        num_known=num_done + len(ids),
        num_copies=len(new) - len(firsts),
        num_moved=len(moved),
        num_replaced=len(former.difference(ids.values(), moved)),
        num_without_position=sum(bool(np.isnan(new[first].latitude)) for first in firsts),
        unreadable=(*(entry for entry, _ in read if isinstance(entry, str)), *failed),
        seconds=time.perf_counter() - started,
    )
    return result, frozenset(moved)


def _read_and_decode(plan: _Indexing, row: int) -> tuple[NewPhoto | str, str]:
    entry = plan.read(row, with_thumbnail=False)
    if isinstance(entry, str):
        return entry, ""
    try:
        open_image(plan.photos.path(row))
    except ImageError as error:
        return entry, str(error)
    return entry, ""


def find_ids(index: PhotoIndex, names: Sequence[str]) -> np.ndarray:
    """Ids of photos given by id (a number), by path, or by a folder that contains them, in any spelling.

    Raises DatasetError for a name that matches no photo.
    """
    columns = index.columns()
    paths = columns.paths()
    rows_of = {path: row for row, path in enumerate(paths)}
    found: list[int] = []
    for name in names:
        if name.isdigit() and (row := columns.row_of(int(name))) is not None:
            found.append(int(columns.ids[row]))
            continue
        rows = [rows_of[path] for path in _spellings(name) if path in rows_of] or rows_below(paths, name)
        if not rows:
            raise DatasetError(f"{index.address} has no photo '{name}'. Use an id, a path, or a folder of photos.")
        found += columns.ids[rows].tolist()
    return np.unique(np.array(found, np.int64))


def rows_below(paths: Sequence[str], folder: str | Path) -> list[int]:
    """Which of some absolute paths, as text, are below a folder, in any spelling of it."""
    spellings = _spellings(folder)
    folders = [path.rpartition("/")[0] for path in paths]
    below = {
        each: any(is_below(one, spelling) for one in (each, _real(each)) for spelling in spellings)
        for each in set(folders)
    }
    return [row for row, each in enumerate(folders) if below[each]]


def _spellings(name: str | Path) -> set[str]:
    """The paths that a name may stand for: as given, without links, and without those of the folders above."""
    path = Path(name).absolute()
    return {
        path_text(spelling) for spelling in (os.path.normpath(path), path.resolve(), path.parent.resolve() / path.name)
    }


def _real(folder: str) -> str:
    return path_text(os.path.realpath(path_from_text(folder)))
