"""Add photos to an index: compute their descriptors and store them, a few thousand at a time.

A run that was stopped continues where it stopped.  Legend: n photos.  Side effects: reads photos, writes the index.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cosplace.config.index import IndexSettings
from cosplace.engines.encoder import Encoder
from cosplace.errors import ConfigError, DatasetError, ImageError, PhotoIndexError
from cosplace.index.indexing import DECODING, TASK, AddPhotos, Indexing, IndexingResult, OnStored, find_known
from cosplace.index.keys import first_of_each
from cosplace.index.parts import record_part
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.index.roots import is_below
from cosplace.index.sources import find_photos
from cosplace.index.store import has_index
from cosplace.photos.image_list import ImageList
from cosplace.photos.opening import open_image
from cosplace.photos.paths import path_from_text, path_text
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.extraction import ExtractionSettings

PLAN_TASK = "comparing photos"
PHOTOS_PER_COMMIT = 1024  # photos of one commit are stored together or not at all
FIRST_COMMIT = 64  # photos

log = logging.getLogger(__name__)


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
    add: AddPhotos | None = None,
) -> IndexingResult:
    """Build an index of all photos of a folder, or continue one that was stopped.

    dataset_folder: photos in any subfolders, or their list; of a dataset, the photos of its database (`find_photos`).
    dataset: the folder or table that a list is of.  part: see `find_photos`; stored for `sync_folder`.
    Photos keep the order of an evaluation, so that among equally similar matches both return the same one.
    add: adds the photos, `add_photos` by default.
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
            engine=encoder.engine.kind.name,
            engine_file=encoder.engine_file,
        )
        index = create_index(address, spec, settings)
    with index:
        record_part(index, photos.folder if dataset is None else dataset, photos.folder, part)
        return (add or add_photos)(
            index,
            encoder,
            photos,
            source=path_text(source or photos.folder),
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
    check_content: bool = False,
    photos_per_commit: int = PHOTOS_PER_COMMIT,
    progress: Progress = no_progress,
    stored: OnStored | None = None,
) -> IndexingResult:
    """Compute the descriptors of photos and add them; each photo is added once, by its path and by its content.

    A photo whose file has changed replaces its earlier version.  A photo that has moved keeps its id and gets its new
    path.  Photos that cannot be opened are left out and reported.  stored: called after each commit; what it reports
    survives any kill.  check_content: also read files of the same size and modification time as in the index.
    Raises PhotoIndexError for an index of another model, StorageError if the disk is full.
    """
    if photos_per_commit < 1:
        raise ConfigError(f"photos_per_commit must be at least 1, got {photos_per_commit}.")
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
        index=index,
        encoder=encoder,
        photos=photos,
        source=source,
        extraction=extraction,
        stored=stored,
        stamps=index.stamps(),
        check_content=check_content,
    )
    new_rows = indexing.find_new_rows()
    num_done = indexing.num_known
    if num_done:
        progress(TASK, num_done, len(photos))
    with ThreadPoolExecutor(max(1, num_workers)) as readers:
        for rows, reading in _read_ahead(readers, indexing.read, _commits(new_rows, photos_per_commit)):
            with indexing.watch.of(DECODING):
                read = [one.result() for one in reading]
            indexing.progress = part_of(progress, TASK, num_done, len(photos))
            indexing.add(rows, read)
            num_done += len(rows)
            progress(TASK, num_done, len(photos))
    return indexing.result()


def _commits(rows: Sequence[int], photos_per_commit: int) -> Iterator[Sequence[int]]:
    """The photos of each commit: few at first, which are read before any is described, then twice as many each time."""
    start, size = 0, min(FIRST_COMMIT, photos_per_commit)
    while start < len(rows):
        yield rows[start : start + size]
        start, size = start + size, min(2 * size, photos_per_commit)


def _read_ahead(
    readers: ThreadPoolExecutor, read: Callable[[int], NewPhoto | str], commits: Iterable[Sequence[int]]
) -> Iterator[tuple[Sequence[int], list[Future[NewPhoto | str]]]]:
    """Each commit with what is read of its photos; the next one is read meanwhile."""
    begun: deque[tuple[Sequence[int], list[Future[NewPhoto | str]]]] = deque()
    for rows in commits:
        begun.append((rows, [readers.submit(read, row) for row in rows]))
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun


def plan_photos(
    index: PhotoIndex,
    photos: ImageList,
    num_workers: int = 0,
    progress: Progress = no_progress,
    *,
    check_content: bool = False,
) -> tuple[IndexingResult, frozenset[int]]:
    """What `add_photos` would do, and the ids of photos that have moved; new and changed files are read and decoded."""
    plan = Indexing(index=index, photos=photos, stamps=index.stamps(), check_content=check_content)
    new_rows = plan.find_new_rows()
    num_done = plan.num_known
    read: list[tuple[NewPhoto | str, str]] = []  # with an error message for a photo that cannot be decoded
    with ThreadPoolExecutor(max(1, num_workers)) as readers:
        for one in readers.map(lambda row: _read_and_decode(plan, row), new_rows):
            read.append(one)
            progress(PLAN_TASK, num_done + len(read), len(photos))
    entries = [(entry, error) for entry, error in read if isinstance(entry, NewPhoto)]
    found = find_known(index, [entry for entry, _ in entries])
    ids = {entry.path: photo_id for photo_id, (entry, _) in zip(found, entries, strict=True) if photo_id >= 0}
    moved = plan.find_moved([entry for entry, _ in entries if entry.path in ids], ids)
    # A photo that the index has is not decoded when it is added.
    failed = [error for entry, error in entries if error and entry.path not in ids]
    new = [entry for entry, error in entries if not error and entry.path not in ids]
    firsts = sorted(set(first_of_each([entry.key for entry in new])))
    placed = [*ids, *(entry.path for entry in new)]
    former = {plan.stamps[path][2] for path in placed if path in plan.stamps}
    plan.num_added, plan.num_copies, plan.num_moved = len(firsts), len(new) - len(firsts), len(moved)
    plan.num_known += len(ids)
    plan.num_replaced = len(former.difference(ids.values(), moved))
    plan.num_without_position = sum(bool(np.isnan(new[first].latitude)) for first in firsts)
    plan.unreadable = [*(entry for entry, _ in read if isinstance(entry, str)), *failed]
    return plan.result(), frozenset(moved)


def _read_and_decode(plan: Indexing, row: int) -> tuple[NewPhoto | str, str]:
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
