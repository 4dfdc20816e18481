"""CosPlace classes and groups (Berton et al., CVPR 2022, section 3.1).

A class is a square cell of M meters and a sector of alpha degrees (equation 1).  A group holds classes that are at
least N cells apart by position, or L sectors by heading (equation 2), so that no two classes of a group show the same
scene.

`class_of` and `group_of` are the equations; `partition` applies them to millions of photos by sorting one integer per
photo.  Legend: I images, C classes, G groups.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.sections import Grouping
from cosplace.errors import DatasetError
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import parse_fields


def class_of(east: np.ndarray, north: np.ndarray, heading: np.ndarray, grouping: Grouping) -> np.ndarray:
    """Class of each photo (..., 3) int64, equation 1: (floor(east / M), floor(north / M), floor(heading / alpha)).

    east, north: meters.  heading: degrees in [0, 360).
    """
    sides = (grouping.M, grouping.M, grouping.alpha)
    return np.stack(
        [floor_divide(values, side) for values, side in zip((east, north, heading), sides, strict=True)], -1
    )


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
        )

    def counts(self) -> list[tuple[int, int]]:
        """Number of classes and of images of each group."""
        images = np.diff(self.class_starts[self.group_starts])
        return [(int(c), int(i)) for c, i in zip(np.diff(self.group_starts), images, strict=True)]

    def __reduce__(self) -> tuple[Callable, tuple]:
        # A spawned process maps the cache file again and shares its pages.
        if self.opened_from is not None:
            return self.opened_from
        return _rebuild, ({name: getattr(self, name) for name in self.__slots__},)


def _rebuild(fields: dict[str, Any]) -> Groups:
    return Groups(**fields)


def partition(images: ImageList, grouping: Grouping) -> Groups:
    """Form the classes and all N*N*L groups of a list of photos.

    Classes with fewer than `min_images_per_class` images are dropped.  Groups are numbered by their first appearance
    with a kept class along the sorted list of paths.  Peak memory: about 50 bytes per image, plus the names.
    Raises DatasetError for a file name without position or heading.
    """
    keys, spans = _class_keys(images, grouping)
    order, run_starts = _sorted_runs(keys)  # images sorted by class; start of each class
    keys = keys[order[run_starts[:-1]]] if len(order) else keys  # (classes,) one key per class
    sizes = np.diff(run_starts)
    kept = np.flatnonzero(sizes >= grouping.min_images_per_class)

    cells = _unpack(keys[kept], spans)  # (C, 3) in units of M, M and alpha
    groups = group_of(cells, grouping)
    group_keys = (groups[:, 0] * grouping.N + groups[:, 1]) * grouping.L + groups[:, 2]
    first_images = order[run_starts[kept]]  # images of a class stay in the order of the list
    group_numbers = _number_by_first_appearance(group_keys, first_images)

    by_group = np.argsort(group_numbers, kind="stable")
    kept = kept[by_group]
    num_groups = int(group_numbers.max(initial=-1)) + 1
    image_order = _concatenated_runs(order, run_starts, kept)
    return Groups(
        folder=images.folder,
        cells=cells[by_group] * np.array([grouping.M, grouping.M, grouping.alpha]),
        group_starts=np.searchsorted(group_numbers[by_group], np.arange(num_groups + 1)),
        class_starts=np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64),
        image_starts=images.starts[image_order],
        names=images.names,
        num_scanned=len(images),
    )


def _class_keys(images: ImageList, grouping: Grouping) -> tuple[np.ndarray, list[np.ndarray]]:
    """Class of each image as one int64, (I,); and, per coordinate, the cell number of each digit of the key.

    The key numbers the cells, row by row, in the bounding box of all images.  Where the box has too many cells for an
    int64, it numbers the distinct coordinates instead.
    """
    sides = (grouping.M, grouping.M, grouping.alpha)
    columns = np.empty((3, len(images)), np.int32)
    for rows, values in parse_fields(images, ("utm_east", "utm_north", "heading")):
        for column, value, side in zip(columns, values, sides, strict=True):
            column[rows] = _cells(value, side, images, rows.start)
    spans = [np.arange(low, high + 1) for low, high in zip(columns.min(axis=1), columns.max(axis=1), strict=True)]
    digits: list[np.ndarray] = [column - span[0] for column, span in zip(columns, spans, strict=True)]
    if math.prod(len(span) for span in spans) >= 1 << 62:
        spans, digits = map(list, zip(*(np.unique(column, return_inverse=True) for column in columns), strict=True))
    keys = np.zeros(len(images), np.int64)
    for span, digit in zip(spans, digits, strict=True):
        keys *= len(span)
        keys += digit
    return keys, spans


def _cells(values: np.ndarray, side: int, images: ImageList, first: int) -> np.ndarray:
    """Cell of each value; raises DatasetError for coordinates that are too large for an integer."""
    cells = floor_divide(values, side)
    if (far := np.abs(cells) >= 1 << 30).any():
        bad = images.path(first + int(far.argmax()))
        raise DatasetError(f"{bad}: its coordinates are not on Earth. Correct the file name.")
    return cells


def _unpack(keys: np.ndarray, spans: list[np.ndarray]) -> np.ndarray:
    """Cell of each class key, (C, 3) int64."""
    cells = np.empty((len(keys), 3), np.int64)
    for axis in (2, 1, 0):
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


# --- advice ----------------------------------------------------------------------------------------------------------


def check_enough(groups: Groups, grouping: Grouping) -> None:
    """Raise DatasetError, with a setting to change, if there are fewer groups or classes than training needs."""
    if problem := _problem(groups, grouping):
        raise DatasetError(problem)


def _problem(groups: Groups, grouping: Grouping) -> str | None:
    counts = groups.counts()
    if not counts:
        return (
            f"{groups.folder}: no class of its {groups.num_scanned} images has at least "
            f"{grouping.min_images_per_class} images. Require fewer images per class, for example "
            f"`--min_images_per_class {max(1, grouping.min_images_per_class // 2)}`, or use larger classes, for "
            f"example `--M {2 * grouping.M}`."
        )
    if len(counts) < grouping.groups_num:
        return (
            f"{groups.folder} has {len(counts)} group{'s' if len(counts) > 1 else ''}, fewer than --groups_num "
            f"{grouping.groups_num}. Use fewer groups, for example `--groups_num {len(counts)}`, or keep smaller "
            f"classes, for example `--min_images_per_class {max(1, grouping.min_images_per_class // 2)}`."
        )
    for number, (num_classes, _) in enumerate(counts[: grouping.groups_num]):
        if num_classes < 2:
            return (
                f"{groups.folder}: group {number} has {num_classes} class, but training needs at least 2. Form fewer "
                f"groups, for example `--N {max(1, grouping.N - 1)} --L {max(1, grouping.L - 1)}`, or keep smaller "
                f"classes, for example `--min_images_per_class "
                f"{max(1, grouping.min_images_per_class // 2)}`."
            )
    return None


def advice(groups: Groups, grouping: Grouping) -> str | None:
    """Suggest settings to change if these groups would train badly; None if they are fine."""
    problem = _problem(groups, grouping)
    if problem:
        return problem
    used = groups.counts()[: grouping.groups_num]
    smallest = min(num_classes for num_classes, _ in used)
    if smallest < 50:
        return (
            f"The smallest of the first {len(used)} groups has {smallest} classes; hundreds of classes train better. "
            f"Form fewer groups, for example `--N {max(1, grouping.N // 2)} --groups_num "
            f"{max(1, grouping.groups_num // 4)}`, or keep smaller classes, for example `--min_images_per_class "
            f"{max(1, grouping.min_images_per_class // 2)}`."
        )
    return None
