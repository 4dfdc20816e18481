"""One run that adds photos to an index: which are new, moved or changed, and what happened to them.

Legend: n photos, D dimension.  Side effects: reads photos, writes the index.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cosplace.engines.encoder import Encoder
from cosplace.errors import ImageError
from cosplace.geo import ecef_from_lla
from cosplace.index.keys import content_of
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.records import AddResult, NewPhoto
from cosplace.photos.headings import are_all_zero
from cosplace.photos.image_list import ImageList
from cosplace.photos.labels import read_start
from cosplace.photos.metadata import (
    SAME_HEADING_DEG,
    SAME_POSITION_M,
    PhotoMetadata,
    former_photo_key,
    photo_key,
    read_metadata,
    time_and_accuracy,
)
from cosplace.photos.names import MAX_CONTRADICTION_M, optional_fields
from cosplace.photos.opening import read_file
from cosplace.photos.paths import path_from_text, path_text, printable
from cosplace.photos.thumbnails import make_thumbnail
from cosplace.progress import Progress, Stopwatch, no_progress
from cosplace.retrieval.extraction import EQUAL_WITHIN, NETWORK, ExtractionSettings, extract
from cosplace.retrieval.query_views import database_shape

TASK = "indexing photos"
SAME_TIME_S = 1e-3  # times that differ by no more are the same: a label has microseconds
DECODING, WRITING = "decoding", "writing"  # parts of the time, beside NETWORK

log = logging.getLogger(__name__)

AddPhotos = Callable[..., "IndexingResult"]
"""Adds photos to an index; has the parameters of `cosplace.index.building.add_photos`."""

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
    spent: dict[str, float] = field(default_factory=dict)  # seconds by part: DECODING, NETWORK, WRITING


@dataclass(slots=True, kw_only=True)
class Indexing:
    """Adds photos to an index, and counts what happens to them."""

    index: PhotoIndex
    photos: ImageList
    stamps: dict[str, tuple[int, int, int]]  # path -> (bytes, modification time, id)
    encoder: Encoder | None = None  # None: nothing is added
    extraction: ExtractionSettings | None = None
    source: str = ""
    check_content: bool = False  # read all files, also those whose size and time are those in the index
    stored: OnStored | None = None
    progress: Progress = no_progress  # of the photos of one commit
    num_added: int = 0
    num_known: int = 0
    num_copies: int = 0
    num_moved: int = 0
    num_replaced: int = 0
    num_without_position: int = 0
    headings: list[float] = field(default_factory=list)  # that are known, of the added photos
    unreadable: list[str] = field(default_factory=list)
    moved: set[int] = field(default_factory=set)  # ids of photos with a new path
    changed_labels: set[int] = field(default_factory=set)  # rows of photos
    without_headings: bool = False  # whether the names have 0 for each heading, which means unknown
    contradictions: list[tuple[str, float]] = field(default_factory=list)  # names, and meters between their positions
    first_new_id: int = 0  # ids from here on are of photos that this run has added
    first_descriptor: np.ndarray | None = None
    are_equal: bool = True  # all descriptors that were added
    started: float = field(default_factory=time.perf_counter)
    watch: Stopwatch = field(default_factory=Stopwatch)

    def find_new_rows(self) -> list[int]:
        """The photos that the index does not have as they are now; the others are counted as known.

        Raises DatasetError if all photos of the index must have one size, and these have another.
        """
        if self.photos.labels is None and are_all_zero(optional_fields(self.photos, ("heading",))[0]):
            self.without_headings = True
            log.warning("%s: all headings are exactly 0, which means unknown.", printable(self.photos.folder))
        self.find_changed_labels()
        self.first_new_id = max((stamp[2] for stamp in self.stamps.values()), default=-1) + 1
        rows = [row for row in range(len(self.photos)) if not self.is_unchanged(row)]
        self.num_known = len(self.photos) - len(rows)
        if self.num_known and rows:
            log.info("%d of %d photos are already in the index", self.num_known, len(self.photos))
        if (shape := self.index.spec.views.query_shape) is not None:
            database_shape(self.photos.subset(rows), self.index.spec.image_size, shape)
        return rows

    def result(self) -> IndexingResult:
        """What happened.  Warns about contradictory names, about headings, and about equal descriptors."""
        if self.contradictions:
            name, meters = self.contradictions[0]
            log.warning(
                "In %d file names, the UTM fields and the latitude and longitude are more than %g m apart, for example "
                "%.0f m in %s. Latitude and longitude are used. Correct the names: `cosplace validate` lists them.",
                len(self.contradictions), MAX_CONTRADICTION_M, meters, printable(name),
            )  # fmt: skip
        if are_all_zero(np.array(self.headings)):
            log.warning(
                "All %d headings are exactly 0, as cameras without a compass write them. Run `cosplace import` on the "
                "photos and index its dataset: it leaves such headings out.", len(self.headings),
            )  # fmt: skip
        is_whole_index = self.num_added == len(self.index)  # a few new photos may be alike
        if is_whole_index and self.num_added > 1 and self.are_equal and self.first_descriptor is not None:
            log.warning(
                "The descriptors of all %s photos are equal: the model does not distinguish them, so any photo is the "
                "best match of any other. Use another model.", f"{self.num_added:,}",
            )  # fmt: skip
        return IndexingResult(
            num_given=len(self.photos),
            num_added=self.num_added,
            num_known=self.num_known,
            num_copies=self.num_copies,
            num_moved=self.num_moved,
            num_replaced=self.num_replaced,
            num_without_position=self.num_without_position,
            unreadable=tuple(self.unreadable),
            seconds=time.perf_counter() - self.started,
            spent=self.watch.seconds,
        )

    def is_unchanged(self, row: int) -> bool:
        """Whether the index has this file, and neither the file nor its label has changed since."""
        if self.check_content or row in self.changed_labels:
            return False
        return self.holds(stored_path(self.photos, row))

    def find_changed_labels(self) -> None:
        """Find the photos that the index has with another position, heading, time or accuracy than their label."""
        if self.photos.labels is None:
            return
        columns = self.index.columns()
        row_of = {path: row for row, path in enumerate(columns.paths())}
        pairs = [(row, row_of.get(stored_path(self.photos, row), -1)) for row in range(len(self.photos))]
        rows, indexed = np.array([pair for pair in pairs if pair[1] >= 0], np.int64).reshape(-1, 2).T
        latitudes, longitudes, headings = optional_fields(self.photos, ("latitude", "longitude", "heading"))[:, rows]
        points = ecef_from_lla(columns.latitudes[indexed], columns.longitudes[indexed])
        moved_m = np.linalg.norm(ecef_from_lla(latitudes, longitudes) - points, axis=1)
        turns = np.abs((headings - columns.headings[indexed] + 180) % 360 - 180)
        # A value that the label lacks may be from EXIF, else it is gone from the label and must not stay in the index.
        is_new = np.isnan(latitudes) != np.isnan(columns.latitudes[indexed])
        is_new |= (moved_m > SAME_POSITION_M) | (turns > SAME_HEADING_DEG)
        is_new |= ~np.isnan(headings) & np.isnan(columns.headings[indexed])
        # A position error belongs to the position.
        labels = [time_and_accuracy(self.photos.label(row)) for row in rows.tolist()]
        times, accuracies_m = np.array(labels, np.float64).reshape(-1, 2).T
        is_new |= ~np.isnan(times) & ~(np.abs(times - columns.times[indexed]) <= SAME_TIME_S)
        is_same = np.isclose(accuracies_m, columns.accuracies_m[indexed], rtol=1e-5, atol=1e-3, equal_nan=True)
        is_new |= ~np.isnan(latitudes) & ~is_same
        is_gone = np.isnan(times) & ~np.isnan(columns.times[indexed])
        is_gone |= np.isnan(headings) & ~np.isnan(columns.headings[indexed])
        for place in np.flatnonzero(is_gone & ~is_new).tolist():
            known = float(columns.times[indexed[place]]), float(columns.headings[indexed[place]])
            is_new[place] = not self._is_from_exif(int(rows[place]), *known)
        self.changed_labels = set(rows[is_new].tolist())

    def _is_from_exif(self, row: int, time: float, heading: float) -> bool:
        """Whether a photo has this time and heading by its label and, where that lacks them, by EXIF."""
        try:
            path = self.photos.path(row)
            found = read_metadata(path, read_start(path), self.photos.label(row))
        except (ImageError, OSError, ValueError):  # reported when it is read
            return False
        has_time = abs(found.time - time) <= SAME_TIME_S or np.isnan([found.time, time]).all()
        turn = abs((found.heading - heading + 180) % 360 - 180)
        return bool(has_time and (turn <= SAME_HEADING_DEG or np.isnan([found.heading, heading]).all()))

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
        thumbnail_size = self.index.settings.thumbnail_size if with_thumbnail else 0
        photo, contradiction_m = read_photo(
            self.photos, row, self.source, thumbnail_size, without_heading=self.without_headings
        )
        if contradiction_m is not None:
            self.contradictions.append((self.photos.path(row).name, contradiction_m))
        return photo

    def add(self, rows: Sequence[int], read: Sequence[NewPhoto | str]) -> None:
        """Add some photos of the list in one commit; descriptors are computed only for new ones."""
        readable = [row for row, entry in zip(rows, read, strict=True) if isinstance(entry, NewPhoto)]
        with self.watch.of(WRITING):
            ids, new, entries = self.take_known(read)
        assert self.encoder is not None and self.extraction is not None
        chosen = [readable[number] for number in new]
        with self.watch.of(DECODING):
            described = describe_photos(self.encoder, self.photos, chosen, self.extraction, self.progress)
        self.watch.add(DECODING, -described.network_seconds)  # the rest of that time, photos are waited for
        self.watch.add(NETWORK, described.network_seconds)
        self.unreadable += [described.failures[number] for number in sorted(described.failures)]
        kept = [number for number in range(len(new)) if number not in described.failures]
        with self.watch.of(WRITING):
            if kept:
                self.compare_descriptors(described.descriptors[kept])
                added = [entries[number] for number in kept]
                ids |= self.count_added(added, self.index.add(added, described.descriptors[kept]))
            self.remove_former(ids)

    def take_known(self, read: Sequence[NewPhoto | str]) -> tuple[dict[str, int], list[int], list[NewPhoto]]:
        """Update the paths of photos that the index has, and count those that cannot be read.

        Returns the ids of known photos by path; which of the readable photos are new, and these.
        """
        self.unreadable += [entry for entry in read if isinstance(entry, str)]
        readable = [entry for entry in read if isinstance(entry, NewPhoto)]
        found = find_known(self.index, readable)
        ids = {entry.path: photo_id for photo_id, entry in zip(found, readable, strict=True) if photo_id >= 0}
        num_copies = sum(photo_id >= self.first_new_id for photo_id in ids.values())
        self.num_copies += num_copies
        self.num_known += len(ids) - num_copies
        self._move([entry for entry in readable if entry.path in ids], ids)
        new = [number for number, photo_id in enumerate(found) if photo_id < 0]
        return ids, new, [readable[number] for number in new]

    def _move(self, entries: Sequence[NewPhoto], ids: dict[str, int]) -> None:
        """Update the paths of photos that have moved; of several copies, the first path is kept."""
        moved = self.find_moved(entries, ids)
        dated = self.find_dated(entries, ids)
        self.index.move(list(moved), list(moved.values()))
        self.index.move(list(dated), list(dated.values()), with_place=True)
        self.num_moved += len(moved)
        self.moved |= moved.keys()

    def find_moved(self, entries: Sequence[NewPhoto], ids: dict[str, int]) -> dict[int, NewPhoto]:
        """Photos, by id, whose file is no longer at its recorded path but at the path of an entry.

        Of several copies that were added by this run, the first path is kept.
        """
        path_of = {stamp[2]: path for path, stamp in self.stamps.items()} if entries else {}
        moved: dict[int, NewPhoto] = {}
        for entry in entries:
            photo_id = ids[entry.path]
            former = path_of.get(photo_id)
            is_elsewhere = former != entry.path and photo_id not in self.moved and photo_id not in moved
            is_elsewhere &= photo_id < self.first_new_id
            if is_elsewhere and (former is None or not (self.holds(former) or _is_copy(former, entry.key))):
                moved[photo_id] = entry
        return moved

    def find_dated(self, entries: Sequence[NewPhoto], ids: dict[str, int]) -> dict[int, NewPhoto]:
        """Photos, by id, that are where they were, but whose label has another time or accuracy, or no heading now."""
        if not self.changed_labels:
            return {}
        paths = {stored_path(self.photos, row) for row in self.changed_labels}
        return {
            ids[entry.path]: entry
            for entry in entries
            if entry.path in paths and entry.path in self.stamps and self.stamps[entry.path][2] == ids[entry.path]
        }

    def count_added(self, entries: Sequence[NewPhoto], result: AddResult) -> dict[str, int]:
        """Count and report new photos that were stored; returns their ids by path."""
        for entry, is_new in zip(entries, result.is_new.tolist(), strict=True):
            self.num_added += is_new
            self.num_copies += not is_new
            self.num_without_position += is_new and bool(np.isnan(entry.latitude))
            if is_new and not np.isnan(entry.heading):
                self.headings.append(entry.heading)
        if self.stored is not None:
            self.stored([entry.path for entry in entries], result.ids)
        return dict(zip((entry.path for entry in entries), result.ids.tolist(), strict=True))

    def compare_descriptors(self, descriptors: np.ndarray) -> None:
        """Note whether all descriptors are equal.  descriptors: (n, D) of the next photos, n > 0."""
        if self.first_descriptor is None:
            self.first_descriptor = descriptors[0]
        self.are_equal &= bool(np.abs(descriptors - self.first_descriptor).max() <= EQUAL_WITHIN)

    def remove_former(self, ids: dict[str, int]) -> None:
        """Remove the earlier versions of changed files.  ids: of the photos that are at these paths now.

        This comes last: if the process is killed before, both versions stay and the next run removes the old one.
        """
        former = {self.stamps[path][2] for path in ids if path in self.stamps}
        if outdated := former.difference(ids.values(), self.moved):
            self.num_replaced += self.index.remove(sorted(outdated))


def stored_path(photos: ImageList, row: int) -> str:
    """The path of a photo as it is stored; the folder of a list has no links."""
    path = os.path.join(photos.folder, photos.name(row))  # noqa: PTH118 - much faster for many photos
    return path_text(os.path.normpath(path) if ".." in path else path)


def read_photo(
    photos: ImageList, row: int, source: str, thumbnail_size: int, *, without_heading: bool = False
) -> tuple[NewPhoto | str, float | None]:
    """Everything about a photo except its descriptor; an error message if it cannot be read.

    without_heading: a heading of exactly 0 in the name means unknown.
    The second value is the distance in meters between the positions in its name, if they contradict each other.
    """
    try:
        path = photos.path(row)
        status = path.stat()  # first: a change while it is read is found by the next run
        raw = read_file(path)
    except ImageError as error:
        return str(error), None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return str(ImageError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).")), None
    label = None if photos.labels is None else photos.label(row)
    metadata = read_metadata(path, raw, label)
    if without_heading and metadata.heading == 0:
        metadata = replace(metadata, heading=np.nan)
    photo = NewPhoto(
        path=stored_path(photos, row),
        key=photo_key(raw, metadata),
        former_key=former_photo_key(raw, metadata),
        latitude=metadata.latitude,
        longitude=metadata.longitude,
        heading=metadata.heading,
        time=metadata.time,
        accuracy_m=metadata.accuracy_m,
        source=source,
        num_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        thumbnail=make_thumbnail(raw, thumbnail_size),
    )
    return photo, metadata.contradiction_m if metadata.contradicts_itself else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoDescriptors:
    """Descriptors of n photos, and those that could not be opened."""

    descriptors: np.ndarray  # (n, D)
    failures: dict[int, str]  # number of a photo -> error message
    network_seconds: float = 0.0


def describe_photos(
    encoder: Encoder,
    photos: ImageList,
    rows: Sequence[int],
    extraction: ExtractionSettings,
    progress: Progress = no_progress,
) -> PhotoDescriptors:
    """Describe some photos of a list."""
    empty = np.empty((0, encoder.dimension), np.float32)
    if not len(rows):
        return PhotoDescriptors(descriptors=empty, failures={})
    chosen = photos.subset(rows)
    try:
        result = extract(encoder.engine, chosen, extraction, progress=progress)
    except ImageError as error:  # none of them can be described
        if len(rows) == 1:
            return PhotoDescriptors(descriptors=np.zeros((1, encoder.dimension), np.float32), failures={0: str(error)})
        # The error names the first photo only.
        one_by_one = replace(extraction, num_workers=0)
        found = [describe_photos(encoder, photos, [row], one_by_one) for row in rows]
        return PhotoDescriptors(
            descriptors=np.concatenate([one.descriptors for one in found]),
            failures={number: one.failures[0] for number, one in enumerate(found) if one.failures},
            network_seconds=sum(one.network_seconds for one in found),
        )
    return PhotoDescriptors(
        descriptors=np.asarray(result.descriptors),
        failures={entry.index: entry.message for entry in result.unreadable},
        network_seconds=result.network_seconds,
    )


def find_known(index: PhotoIndex, entries: Sequence[NewPhoto]) -> list[int]:
    """Id of each photo that the index has; -1 for the others."""
    return index.find([entry.key for entry in entries], [entry.former_key for entry in entries]).tolist()


def _is_copy(path: str, key: str) -> bool:
    """Whether the file at a path has the content of a key."""
    try:
        return content_of(photo_key(read_file(path_from_text(path)), PhotoMetadata())) == content_of(key)
    except ImageError:  # there is none
        return False
