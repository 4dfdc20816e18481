"""Places: classes for few photos, without the borders of a grid.

A place is a photo and the photos around it that look the same way.  Cells of a grid cut a street into classes of two or
three photos where photos are few; places do not, and their radius follows the photos.  Two places that may show the
same scene are neighbors: they are never told apart in training, as CosPlace's groups keep near classes apart (Berton et
al., CVPR 2022, section 3.1).  Legend: I photos, C places.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cosplace.photos.image_list import ImageList
from cosplace.training.groups import Group, Groups

RADII_M = (10, 15, 20)  # of a place; the first one that suffices is used
MIN_PHOTOS = 2  # of a place: fewer show nothing that two photos have in common
GOOD_PHOTOS = 4  # of a place
GOOD_SHARE = 0.8  # of the photos should be in places with GOOD_PHOTOS
HEADING_RANGE_DEG = 30.0  # between the middle photo of a place and the others
NEIGHBOR_M = 50.0  # between the middle photos of two places: they may show the same scene
CHUNK = 4096  # photos whose neighbors are found at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewpoints:
    """Where I photos were taken, and where they look."""

    points: np.ndarray  # (I, 2) float64, meters east and north; (I, 3), earth-centered, if in several UTM zones
    headings: np.ndarray | None  # (I,) float64, degrees; None if they are unknown or wrong

    def __len__(self) -> int:
        return len(self.points)

    def near(self, radius_m: float, range_deg: float = HEADING_RANGE_DEG) -> Iterator[tuple[int, np.ndarray]]:
        """For each photo: its row, and the rows of the photos around it that look the same way, itself included."""
        from scipy.spatial import KDTree  # takes long to import

        tree = KDTree(self.points)
        for first in range(0, len(self), CHUNK):
            found = tree.query_ball_point(self.points[first : first + CHUNK], radius_m, return_sorted=True)
            for row, others in enumerate(found, first):
                rows = np.array(others, np.int64)
                if self.headings is not None:
                    rows = rows[self._turn(row, rows) <= range_deg]
                yield row, rows

    def _turn(self, row: int, others: np.ndarray) -> np.ndarray:
        """Degrees between the heading of a photo and those of others, 0 to 180."""
        assert self.headings is not None
        return np.abs((self.headings[others] - self.headings[row] + 180) % 360 - 180)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """C places with at least MIN_PHOTOS photos each; a photo is in one place at most."""

    middles: np.ndarray  # (C,) int64, row of the photo in the middle of each place
    starts: np.ndarray  # (C + 1,) int64, where each place starts in `rows`
    rows: np.ndarray  # (n,) int64, rows of the photos, ascending within a place
    neighbors: tuple[np.ndarray, ...]  # for each place, the numbers of its neighbors, int64
    radius_m: float

    def __len__(self) -> int:
        return len(self.middles)

    @property
    def sizes(self) -> np.ndarray:
        """The number of photos of each place, (C,) int64."""
        return np.diff(self.starts)


def form_places(viewpoints: Viewpoints, radius_m: float | None = None) -> Places:
    """Put the photos into places, those with the most photos first.

    radius_m: None for the smallest of RADII_M that puts GOOD_SHARE of the photos into places with GOOD_PHOTOS; if none
    does, the one that comes closest.
    """
    if radius_m is not None:
        return _places_of(viewpoints, radius_m)
    best, best_share = None, -1.0
    for radius in RADII_M:
        places = _places_of(viewpoints, radius)
        sizes = places.sizes
        share = sizes[sizes >= GOOD_PHOTOS].sum() / max(1, len(viewpoints))
        if share >= GOOD_SHARE:
            return places
        if share > best_share:
            best, best_share = places, share
    assert best is not None
    return best


def _places_of(viewpoints: Viewpoints, radius_m: float) -> Places:
    near = [rows for _, rows in viewpoints.near(radius_m)]
    order = np.argsort([-len(rows) for rows in near], kind="stable")
    is_free = np.ones(len(viewpoints), bool)
    middles, members = [], []
    for row in order.tolist():
        if not is_free[row]:
            continue
        rows = near[row][is_free[near[row]]]
        if len(rows) >= MIN_PHOTOS:
            is_free[rows] = False
            middles.append(row)
            members.append(rows)
    return Places(
        middles=np.array(middles, np.int64),
        starts=np.cumsum([0, *map(len, members)]).astype(np.int64),
        rows=np.concatenate([np.zeros(0, np.int64), *members]),
        neighbors=_neighbors(viewpoints, np.array(middles, np.int64)),
        radius_m=radius_m,
    )


def _neighbors(viewpoints: Viewpoints, middles: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each place, the other places within NEIGHBOR_M that do not look away from it."""
    if not len(middles):
        return ()
    headings = viewpoints.headings
    of_places = Viewpoints(points=viewpoints.points[middles], headings=None if headings is None else headings[middles])
    return tuple(others[others != place] for place, others in of_places.near(NEIGHBOR_M, 90.0))


def as_groups(places: Places, images: ImageList, viewpoints: Viewpoints) -> Groups:
    """The places as one CosPlace group, whose classes are the places."""
    headings = np.zeros(len(viewpoints)) if viewpoints.headings is None else viewpoints.headings
    cells = np.column_stack([viewpoints.points[:, :2], headings])[places.middles]  # (C, 3)
    return Groups(
        folder=images.folder,
        cells=np.floor(cells).astype(np.int64),
        group_starts=np.array([0, len(places)]),
        class_starts=places.starts,
        image_starts=images.starts[places.rows],
        names=images.names,
        num_scanned=len(images),
        inside=images.inside,
        label_starts=None if images.labels is None else images.labels.starts[places.rows],
        labels=None if images.labels is None else images.labels.names,
        map_center=images.map_center,
    )


def the_group(groups: Groups) -> Group:
    """The only group."""
    return groups[0]
