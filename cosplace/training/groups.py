"""CosPlace classes and groups (Berton et al., CVPR 2022, section 3.1).

A class is a square cell of M meters and a sector of alpha degrees (equation 1).  A group holds classes that are at
least N cells apart by position, or L sectors by heading (equation 2), so that no two classes of a group show the same
scene.  Photos of different UTM zones are never in one class: their coordinates have different origins.

`class_of` and `group_of` are the equations; `partition` applies them to millions of photos by sorting one integer per
photo.  Legend: I images, C classes, G groups.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.defaults import SPLIT_PARENTS
from cosplace.config.sections import Grouping
from cosplace.errors import DatasetError
from cosplace.importing.dataset_layouts import refuse_download
from cosplace.photos.image_list import ImageList, photo_path
from cosplace.photos.labels import with_headings, with_positions
from cosplace.photos.names import check_hemispheres, different_zones, parse_fields, zone_error
from cosplace.photos.paths import printable
from cosplace.photos.scanning import has_part, scan_images
from cosplace.progress import Progress, no_progress

log = logging.getLogger(__name__)


def class_of(east: np.ndarray, north: np.ndarray, heading: np.ndarray, grouping: Grouping) -> np.ndarray:
    """Class of each photo (..., 3) int64, equation 1: (floor(east / M), floor(north / M), floor(heading / alpha)).

    east, north: meters.  heading: degrees; 360 and -360 are 0.
    """
    sides = (grouping.M, grouping.M, grouping.alpha)
    values = (east, north, heading_in_circle(heading))
    return np.stack([floor_divide(value, side) for value, side in zip(values, sides, strict=True)], -1).astype(np.int64)


def heading_in_circle(heading: np.ndarray) -> np.ndarray:
    """Headings in degrees modulo 360, in [0, 360)."""
    if not heading.size or (heading.min() >= 0 and heading.max() < 360):  # the modulo would take as long as parsing
        return heading
    heading = np.mod(heading, 360)
    return np.where(heading == 360, 0, heading)  # the modulo of a tiny negative number is rounded to 360


def group_of(classes: np.ndarray, grouping: Grouping) -> np.ndarray:
    """Group of each class (..., 3), equation 2: the class modulo (N, N, L)."""
    return classes % np.array([grouping.N, grouping.N, grouping.L])


def floor_divide(values: np.ndarray, side: int) -> np.ndarray:
    """floor(values / side), exactly, as float64."""
    cells = np.floor(values / side)
    # The quotient may have been rounded up to the next integer, never down below one; both products are exact.
    cells -= cells * side > values
    return cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One CosPlace group: C classes with I images in total."""

    cells: np.ndarray  # (C, 3) int64: lowest east and north (meters) and heading (degrees) of each class
    class_starts: np.ndarray  # (C + 1,) int64: start of each class in `image_starts`
    image_starts: np.ndarray  # (I,) int64: start of each image's path in `names`, sorted by class
    names: np.ndarray  # (bytes,) uint8: relative paths, each followed by a newline
    folder: Path
    whole: "Groups"
    number: int
    label_starts: np.ndarray | None = None  # (I,) int64: start of each image's label in `labels`
    labels: np.ndarray | None = None  # (bytes,) uint8: labels, each followed by a newline; None: names have the fields
    offsets: np.ndarray | None = None  # (I,) float32, as in Groups

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Groups.__getitem__, (self.whole, self.number)  # a loading process maps the cache file again

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.cells)

    @property
    def num_images(self) -> int:
        """I, the number of images."""
        return len(self.image_starts)

    def class_size(self, class_index: int) -> int:
        """Number of images of a class."""
        return int(self.class_starts[class_index + 1] - self.class_starts[class_index])

    def image_name(self, image: int) -> str:
        """Relative path of an image, 0 <= image < I; the images of class c start at class_starts[c]."""
        start = int(self.image_starts[image])
        return os.fsdecode(self.names[start : start + 4096].tobytes().partition(b"\n")[0])

    def image_label(self, image: int) -> str:
        """The '@' text with the fields of an image: its label, or without labels its name."""
        if self.labels is None or self.label_starts is None:
            return self.image_name(image)
        start = int(self.label_starts[image])
        return os.fsdecode(self.labels[start : start + 1024].tobytes().partition(b"\n")[0])

    def image_path(self, image: int) -> Path:
        """Path of an image.  Raises ImageError for one outside the folder, as `ImageList.path` does."""
        return photo_path(self.folder, self.image_name(image), self.whole.inside)

    def view_offset(self, image: int) -> float | None:
        """Center of the view to cut out of an image, in degrees clockwise from its own center; None for photos."""
        return float(self.offsets[image]) if self.whole.panoramas and self.offsets is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """All groups of a set of photos, group 0 first, in arrays sorted by group and class."""

    folder: Path
    cells: np.ndarray  # (C, 3) int64: classes of group 0, then of group 1, …
    group_starts: np.ndarray  # (G + 1,) int64: first class of each group
    class_starts: np.ndarray  # (C + 1,) int64: first image of each class
    image_starts: np.ndarray  # (I,) int64: start of each image's path in `names`
    names: np.ndarray  # (bytes,) uint8
    num_scanned: int  # including the images of classes that were dropped
    num_unknown: int = 0  # images that are in no class because their position is 0, 0: unknown
    # (C,) int8: UTM zone of each class, negative south of the equator; None if all images are in one zone
    zones: np.ndarray | None = None
    inside: tuple[str, ...] = ()  # real folders that may hold the photos, as in ImageList
    label_starts: np.ndarray | None = None  # (I,) int64: start of each image's label in `labels`
    labels: np.ndarray | None = None  # (bytes,) uint8, as in ImageList
    map_center: tuple[float, float] | None = None  # of the local map that the cells are on; None: UTM
    views: tuple[str, ...] = ("",)  # kinds of groups: groups 0, 1, … of each kind in turn; an epoch trains one of each
    # (I,) float32: degrees from the direction of each image to the direction of the point that its class looks at,
    # clockwise, -180 … 180; None for CosPlace, whose classes look in one direction
    offsets: np.ndarray | None = None
    panoramas: bool = False  # the images are panoramas; their views are cut out at `offsets`
    opened_from: tuple[Callable, tuple] | None = None  # the function and arguments that map the cache file again

    def __len__(self) -> int:
        return len(self.group_starts) - 1

    def __getitem__(self, number: int) -> Group:
        first, last = self.group_starts[number], self.group_starts[number + 1]
        starts = self.class_starts[first : last + 1]
        return Group(
            cells=self.cells[first:last],
            class_starts=starts - starts[0],
            image_starts=self.image_starts[starts[0] : starts[-1]],
            names=self.names,
            folder=self.folder,
            whole=self,
            number=number,
            label_starts=None if self.label_starts is None else self.label_starts[starts[0] : starts[-1]],
            labels=self.labels,
            offsets=None if self.offsets is None else self.offsets[starts[0] : starts[-1]],
        )

    def title(self, number: int) -> str:
        """How a group is called: its number, and its kind if there are several."""
        rank, kind = divmod(number, len(self.views))
        return f"group {rank} {self.views[kind]}".rstrip()

    def counts(self) -> list[tuple[int, int]]:
        """Number of classes and of images of each group."""
        images = np.diff(self.class_starts[self.group_starts])
        return [(int(c), int(i)) for c, i in zip(np.diff(self.group_starts), images, strict=True)]

    def image_names(self) -> Iterator[bytes]:
        """Relative paths of all images, each followed by a newline, in the order of `image_starts`."""
        names = self.names.tobytes()
        return (names[start : names.index(b"\n", start) + 1] for start in self.image_starts.tolist())

    def __reduce__(self) -> tuple[Callable, tuple]:
        # A spawned process maps the cache file again and shares its pages.
        if self.opened_from is not None:
            return self.opened_from
        return _rebuild, ({name: getattr(self, name) for name in self.__slots__},)


def _rebuild(fields: dict[str, Any]) -> Groups:
    return Groups(**fields)


def training_photos(
    folder: str | Path,
    grouping: Grouping,
    *,
    dataset: str | Path | None = None,
    follow_outside: bool = False,
    progress: Progress = no_progress,
) -> ImageList:
    """The photos of a folder, a table or a part of it, with all that classes need (see `scan_images`).

    Of photos without '@' names, those without a position, or a heading unless alpha is 360, are left out.
    Of a whole dataset, only its part train is taken (see `training_part`).
    Raises DatasetError if none is left, and for a dataset as it is downloaded.
    """
    refuse_download(Path(folder))
    folder = training_part(Path(folder))
    images = with_positions(scan_images(folder, dataset=dataset, follow_outside=follow_outside), progress)
    return images if grouping.alpha == 360 else with_headings(images)


def training_part(folder: Path) -> Path:
    """The part train of a folder that is a whole dataset, as a warning says; other folders are returned as they are."""
    for root in (folder / between for between in SPLIT_PARENTS):
        held_out = [split for split in ("val", "test") if has_part(root, f"{split}/database")]
        if held_out and has_part(root, "train"):
            log.warning(
                "%s has photos of %s, which are not for training: only those in %s are used",
                *(printable(folder), " and ".join(held_out), printable(root / "train")),
            )
            return root / "train"
    return folder


def partition(images: ImageList, grouping: Grouping) -> Groups:
    """Form the classes and all N*N*L groups of a list of photos.

    Classes with fewer than `min_images_per_class` images are dropped.  Groups are numbered by their first appearance
    with a kept class along the sorted list of paths.  Images at 0, 0, which means unknown, are in no class.
    Peak memory: about 50 bytes per image, plus the names.
    Raises DatasetError for a photo without position, or without heading unless alpha is 360.
    """
    keys, spans, num_unknown = _read_keys(images, grouping)
    classes = _sorted_classes(keys, spans)
    del keys  # 8 bytes per image
    kept = classes.of_at_least(grouping.min_images_per_class)
    group_numbers = classes.group_numbers(kept, grouping)

    by_group = np.argsort(group_numbers, kind="stable")
    kept = kept[by_group]
    num_groups = int(group_numbers.max(initial=-1)) + 1
    image_order = _concatenated_runs(classes.images, classes.starts, kept)
    return Groups(
        folder=images.folder,
        cells=classes.cells(kept) * np.array([grouping.M, grouping.M, grouping.alpha]),
        group_starts=np.searchsorted(group_numbers[by_group], np.arange(num_groups + 1)),
        class_starts=np.concatenate([[0], np.cumsum(classes.sizes[kept])]).astype(np.int64),
        image_starts=images.starts[image_order],
        names=images.names,
        num_scanned=len(images),
        num_unknown=num_unknown,
        zones=classes.zones(kept),
        inside=images.inside,
        label_starts=None if images.labels is None else images.labels.starts[image_order],
        labels=None if images.labels is None else images.labels.names,
        map_center=images.map_center,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """All classes of a list of photos, including small ones, sorted by zone, east, north and heading."""

    images: np.ndarray  # (I,) int64: numbers of the images, sorted by class, then by number
    starts: np.ndarray  # (C + 1,) int64: start of each class in `images`
    keys: np.ndarray  # (C,) int64; negative for the images without a position
    spans: list[np.ndarray]  # per coordinate, the cell number of each digit of the key

    @property
    def sizes(self) -> np.ndarray:
        """Number of images of each class, (C,)."""
        return np.diff(self.starts)

    def of_at_least(self, num_images: int) -> np.ndarray:
        """Numbers of the classes with at least this many images."""
        return np.flatnonzero((self.sizes >= num_images) & (self.keys >= 0))

    def cells(self, chosen: np.ndarray) -> np.ndarray:
        """(..., 3) int64: east, north and heading of some classes, in units of M, M and alpha."""
        return _unpack(self.keys[chosen], self.spans)[:, -3:]

    def zones(self, chosen: np.ndarray) -> np.ndarray | None:
        """(...,) int8: UTM zone of some classes; None if all images are in one zone."""
        return _unpack(self.keys[chosen], self.spans)[:, 0].astype(np.int8) if len(self.spans) > 3 else None

    def group_numbers(self, chosen: np.ndarray, grouping: Grouping) -> np.ndarray:
        """Number of the group of each of some classes."""
        groups = group_of(self.cells(chosen), grouping)
        group_keys = (groups[:, 0] * grouping.N + groups[:, 1]) * grouping.L + groups[:, 2]
        first_images = self.images[self.starts[chosen]]  # images of a class stay in the order of the list
        return _number_by_first_appearance(group_keys, first_images)


def form_classes(columns: np.ndarray, zones: np.ndarray, unknown: np.ndarray) -> Classes:
    """Form classes of cells.  columns: (3, I) int32, in units of M, M and alpha.  zones: (I,) int8.

    unknown: numbers of the images without a position.
    """
    return _sorted_classes(*_class_keys(columns, zones, unknown))


def _sorted_classes(keys: np.ndarray, spans: list[np.ndarray]) -> Classes:
    order, starts = _sorted_runs(keys)
    keys = keys[order[starts[:-1]]] if len(order) else keys
    return Classes(images=order, starts=starts, keys=keys, spans=spans)


def _class_keys(columns: np.ndarray, zones: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Class of each image as one int64, (I,); and, per coordinate, the cell number of each digit of the key.

    Images of several zones have the zone as their first coordinate.  The key of images without a position is -1.

    The key numbers the cells, row by row, in the bounding box of all images.  Where the box has too many cells for an
    int64, it numbers the distinct coordinates instead.
    """
    several = len(different_zones(np.delete(zones, unknown) if len(unknown) else zones)) > 1
    coordinates = [zones.astype(np.int32), *columns] if several else [*columns]
    spans = [np.arange(values.min(), values.max() + 1) for values in coordinates]
    digits: list[np.ndarray] = [values - span[0] for values, span in zip(coordinates, spans, strict=True)]
    if math.prod(len(span) for span in spans) >= 1 << 62:
        spans, digits = map(list, zip(*(np.unique(values, return_inverse=True) for values in coordinates), strict=True))
    keys = np.zeros(len(zones), np.int64)
    for span, digit in zip(spans, digits, strict=True):
        keys *= len(span)
        keys += digit
    keys[unknown] = -1
    return keys, spans


def _read_keys(images: ImageList, grouping: Grouping) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Keys and spans, as from `_class_keys`, and the number of images at 0, 0."""
    columns, zones = np.zeros((3, len(images)), np.int32), np.empty(len(images), np.int8)
    unknown = [np.zeros(0, np.int64)]
    for rows, (east, north, heading, zone) in parse_coordinates(images, grouping):
        sides = (grouping.M, grouping.M, grouping.alpha)
        for column, value, side in zip(columns, (east, north, heading), sides, strict=True):
            column[rows] = cells_along(value, side, images, rows.start)
        zones[rows] = zone
        unknown.append(rows.start + np.flatnonzero((east == 0) & (north == 0)))
    rows_unknown = np.concatenate(unknown)
    check_zones(images, zones, rows_unknown)
    return *_class_keys(columns, zones, rows_unknown), len(rows_unknown)


def check_zones(images: ImageList, zones: np.ndarray, unknown: np.ndarray) -> None:
    """Raise DatasetError for a photo without a zone, or maybe on either side of the equator, if others are in several.

    unknown: rows without a position.
    """
    different = different_zones(np.delete(zones, unknown))
    if len(different) < 2:
        return
    check_hemispheres(images, zones, different)
    lost = np.setdiff1d(np.flatnonzero(zones == 0), unknown)
    if len(lost):
        raise zone_error(images, int(lost[0]))


def parse_coordinates(images: ImageList, grouping: Grouping) -> Iterator[tuple[slice, tuple[np.ndarray, ...]]]:
    """Parse the names of a list; yield (rows, (east, north, heading in [0, 360), zone)).

    Names need no heading if alpha is 360: all headings are then 0.
    """
    fields = ("utm_east", "utm_north") if grouping.alpha == 360 else ("utm_east", "utm_north", "heading")
    for rows, values in parse_fields(images, fields, with_zone=True):
        heading = heading_in_circle(values[2]) if grouping.alpha < 360 else np.zeros(values.shape[1])
        yield rows, (values[0], values[1], heading, values[-1])


def cells_along(values: np.ndarray, side: int, images: ImageList, first: int) -> np.ndarray:
    """Cell of each value; raises DatasetError for coordinates that are too large for an integer."""
    cells = floor_divide(values, side)
    if (far := np.abs(cells) >= 1 << 30).any():
        bad = images.path(first + int(far.argmax()))
        raise DatasetError(f"{bad}: its coordinates are not on Earth. Correct the file name.")
    return cells


def _unpack(keys: np.ndarray, spans: list[np.ndarray]) -> np.ndarray:
    """Cell of each class key, (C, 3) int64, or (C, 4) with the zone in front."""
    cells = np.empty((len(keys), len(spans)), np.int64)
    for axis in reversed(range(len(spans))):
        keys, digits = np.divmod(keys, len(spans[axis]))
        cells[:, axis] = spans[axis][digits]
    return cells


def _sorted_runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images sorted by key, then by number; and the start of each run of equal keys, (runs + 1,)."""
    bits = max(1, len(keys) - 1).bit_length()
    if int(keys.max(initial=0)) < 1 << (63 - bits):
        # Key and number in one integer: numpy sorts integers several times faster than it argsorts.
        packed = (keys << bits) | np.arange(len(keys))
        packed.sort()
        order = packed & ((1 << bits) - 1)
        packed >>= bits
        sorted_keys = packed
    else:
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
    starts = np.flatnonzero(np.diff(sorted_keys, prepend=sorted_keys[:1] - 1)) if len(keys) else np.zeros(0, np.int64)
    return order, np.append(starts, len(keys))


def _number_by_first_appearance(group_keys: np.ndarray, first_images: np.ndarray) -> np.ndarray:
    """Number of the group of each class, (C,): groups are numbered by their first image."""
    _, group = np.unique(group_keys, return_inverse=True)
    earliest = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(earliest, group, first_images)
    return np.argsort(np.argsort(earliest))[group]


def _concatenated_runs(order: np.ndarray, run_starts: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Concatenate order[run_starts[r] : run_starts[r + 1]] for each r in `runs`."""
    sizes = run_starts[runs + 1] - run_starts[runs]
    offsets = np.repeat(run_starts[runs] - (np.cumsum(sizes) - sizes), sizes)
    return order[offsets + np.arange(len(offsets))]
