"""What a check of a dataset found in one folder: problems, facts, and the values of each photo."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import one_line
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import UtmPositions
from cosplace.retrieval.capture_times import CaptureTimes
from cosplace.retrieval.photo_contents import PhotoContents
from cosplace.retrieval.recall import RADIUS_M, find_positives

NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One kind of problem with the photos of a folder."""

    kind: str
    count: int
    is_error: bool
    examples: list[str]  # the first names, in one line each


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """What was found in one folder of photos."""

    folder: Path
    num_photos: int
    zones: list[int]  # UTM zones, negative south of the equator
    skipped: dict[str, int]  # files that are not photos, by kind
    problems: list[Problem] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # extent, sizes, times, ...: values that JSON can hold

    def add(self, kind: str, names: Iterable[str], *, is_error: bool, count: int) -> None:
        """Add a problem unless its count is 0."""
        if count:
            examples = [one_line(name) for name, _ in zip(names, range(NUM_EXAMPLES), strict=False)]
            self.problems.append(Problem(kind=kind, count=count, is_error=is_error, examples=examples))

    def add_rows(self, kind: str, images: ImageList, wrong: np.ndarray, *, is_error: bool) -> None:
        """Add a problem of some photos.  wrong: (I,) bool."""
        rows = np.flatnonzero(wrong).tolist()
        self.add(kind, (images.name(row) for row in rows), is_error=is_error, count=len(rows))

    def fact_lines(self) -> list[str]:
        """Extent, times and sizes of images in a line each."""
        facts, lines = self.facts, []
        if extent := facts.get("extent"):
            corners = ("south", "west", "north", "east")
            south, west, north, east = (extent.get(corner) for corner in corners)
            where = "" if south is None else f", from {south}, {west} to {north}, {east}"
            lines.append(f"extent: {extent['width_m']:,.0f} x {extent['height_m']:,.0f} m{where}")
        if facts.get("first_time"):
            sequences = f"; sequences: {facts['num_sequences']:,}" if facts["num_sequences"] else ""
            first, last = (facts[name].replace("T", " ").removesuffix("Z") for name in ("first_time", "last_time"))
            lines.append(f"taken: {first} to {last} UTC{sequences}")
        if facts.get("sizes"):
            sizes = ", ".join(f"{size['width']} x {size['height']} ({size['count']:,})" for size in facts["sizes"])
            lines.append(f"sizes: {sizes}{', ...' if facts['num_sizes'] > len(facts['sizes']) else ''}")
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The photos of one folder, or of one split of a table; I photos."""

    name: str  # relative to the dataset, such as test/database
    report: FolderReport
    images: ImageList  # all photos
    labeled: ImageList  # the photos that training and evaluation would use; those of EXIF folders have labels
    utm: UtmPositions  # of `images`; east and north are nan where unknown
    # (I, 3) earth-centered points in meters, nan where unknown; (I, 2) east and north of names without a UTM zone
    points: np.ndarray
    headings: np.ndarray  # (I,) degrees in [0, 360), nan where unknown
    times: CaptureTimes
    contents: PhotoContents | None  # None if the photos were not opened

    @property
    def is_located(self) -> np.ndarray:
        """Which positions are known, (I,) bool."""
        return ~np.isnan(self.points[:, 0])

    @property
    def is_database(self) -> bool:
        """Whether these are photos to find."""
        return self.name.rpartition("/")[2] in ("database", "gallery")

    @property
    def is_queries(self) -> bool:
        """Whether these are queries."""
        return self.name.rpartition("/")[2].startswith("quer")


def common_points(one: Part, other: Part) -> tuple[np.ndarray, np.ndarray]:
    """Positions of two parts in meters that can be compared, nan where unknown.

    East and north as in an evaluation, if all photos are in one UTM zone or on one local map; else points on Earth.
    Positions of names without a zone cannot be compared with others: they are nan then.
    """
    zones = np.union1d(one.utm.zones, other.utm.zones)
    same_map = one.labeled.map_center == other.labeled.map_center
    if same_map and len(zones[zones != 0]) <= 1:
        return one.utm.east_north, other.utm.east_north
    points = [
        np.full((len(part.images), 3), np.nan) if part.points.shape[1] < 3 else part.points for part in (one, other)
    ]
    return points[0], points[1]


def num_positives(database: Part, queries: Part) -> np.ndarray:
    """Number of database photos within the radius of each query, (Q,) int64; 0 for queries without a position."""
    points = common_points(database, queries)
    known = [~np.isnan(one[:, 0]) for one in points]
    counts = np.zeros(len(queries.images), np.int64)
    counts[known[1]] = find_positives(points[0][known[0]], points[1][known[1]], RADIUS_M).counts
    return counts
