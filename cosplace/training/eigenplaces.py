"""EigenPlaces classes and groups: photos of a cell that look at one point (Berton et al., ICCV 2023).

A cell is a square of M meters, whatever the headings.  The positions of its photos x_1 … x_p have a mean mu and two
principal directions: v0 along the road, where they vary most, and v1 across it.  Two points are looked at:

    lateral   mu + D v1             next to the road
    frontal   mu + D R(90°) v1      along the road

v1 is a singular vector of the centered positions (2, p): a column of U in U S V^T.  Of the two signs of v1, the one is
taken that points north (or east, if it points neither north nor south); R(90°) turns counterclockwise.  The photo at
position x_j that belongs to a class looks in the direction of its point, at the azimuth atan2(east, north) of c - x_j:

    panoramas   the view is cut out of the panorama exactly there
    photos      of the photos at one position, the one whose heading is nearest

So all images of a class show one point from different positions.  A cell is in group (floor(east / M) mod N,
floor(north / M) mod N), like the cells of CosPlace.  Each group has lateral and frontal classes, which are trained
together with a classifier each: `Groups` holds them as groups 2k (lateral) and 2k + 1 (frontal).

Pure functions, except `check_views`, which opens a photo.  Legend: I photos, P positions, C cells.
"""

from dataclasses import dataclass, replace

import numpy as np

from cosplace.config.methods import MethodSettings
from cosplace.config.sections import Grouping
from cosplace.errors import ConfigError, DatasetError, ImageError
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import parse_fields, text_keys
from cosplace.photos.opening import open_pixels
from cosplace.photos.panoramas import cut_view
from cosplace.training.groups import Groups, cells_along, check_zones, form_classes

VIEWS = ("lateral", "frontal")
WITHOUT_HEADINGS = "--method cosplace --alpha 360"  # flags to train without headings
NO_DIRECTION_M2 = 1e-6  # difference of the two variances, times p, below which v0 is east and v1 north


def focal_points(east: np.ndarray, north: np.ndarray, cell: np.ndarray, distance_m: float) -> np.ndarray:
    """The points that the classes of each cell look at, (2, C, 2): lateral and frontal; east and north in meters.

    east, north: (P,) float64, positions.  cell: (P,) int64, the cell of each position, 0 … C - 1, none of them empty.
    distance_m: D, from the mean of the positions of a cell to its points.
    """
    count = np.bincount(cell)
    mean_east, mean_north = (np.bincount(cell, weights=values) / count for values in (east, north))
    x, y = east - mean_east[cell], north - mean_north[cell]
    xx, yy, xy = (np.bincount(cell, weights=products) for products in (x * x, y * y, x * y))
    along = 0.5 * np.arctan2(2 * xy, xx - yy)  # angle of v0, counterclockwise from east
    along[np.hypot(2 * xy, xx - yy) < NO_DIRECTION_M2] = 0.0  # else rounding would choose one
    v1_east, v1_north = -np.sin(along), np.cos(along)  # cos >= 0 for angles of -90 … 90 degrees: v1 points north
    is_level = v1_north < 1e-9
    v1_east, v1_north = np.where(is_level, np.abs(v1_east), v1_east), np.where(is_level, 0.0, v1_north)
    lateral = np.stack([mean_east + distance_m * v1_east, mean_north + distance_m * v1_north], -1)
    frontal = np.stack([mean_east - distance_m * v1_north, mean_north + distance_m * v1_east], -1)
    return np.stack([lateral, frontal])


def azimuth(east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """Direction of vectors, in degrees clockwise from north, 0 … 360."""
    return np.degrees(np.arctan2(east, north)) % 360


def angle_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Degrees clockwise from one direction to another, -180 … 180."""
    return (end - start + 180) % 360 - 180


def partition_views(images: ImageList, grouping: Grouping, method: MethodSettings) -> Groups:
    """Form the lateral and frontal classes of a list of photos, and all N x N groups of each.

    Cells with fewer positions than `min_images_per_class` have no class; nor has a cell where fewer photos look at its
    point, with an error up to `max_view_error`.  Groups are numbered like those of CosPlace, by their first appearance
    along the list.  Peak memory: about 140 bytes per photo.
    Raises DatasetError for a photo without position or heading.
    """
    check_grouping(grouping)
    photos = _read_photos(images, grouping, method)
    kept = np.flatnonzero(
        np.bincount(photos.cell[photos.starts], minlength=len(photos.corners)) >= grouping.min_images_per_class
    )
    photos = photos.in_cells(kept)
    points = focal_points(*photos.positions.T, photos.cell[photos.starts], method.focal_distance)
    chosen = [_nearest_views(photos, points[view], method, grouping.min_images_per_class) for view in range(len(VIEWS))]
    return _as_groups(images, grouping, method, photos, chosen)


def check_grouping(grouping: Grouping) -> None:
    """Raise ConfigError for ranges of headings, which these classes do not have."""
    if (grouping.alpha, grouping.L) != (360, 1):
        raise ConfigError(
            "--alpha and --L do not apply to --method eigenplaces, whose classes have no ranges of headings. Omit them."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Photos:
    """Photos with a known position, sorted by cell and position.  East and north are from the corner of their cell."""

    rows: np.ndarray  # (I,) int64: numbers in the list
    cell: np.ndarray  # (I,) int64: 0 … C - 1
    east: np.ndarray  # (I,) float64
    north: np.ndarray  # (I,) float64
    heading: np.ndarray  # (I,) float64: of the optical axis, or the center of the panorama
    starts: np.ndarray  # (P,) int64: first photo of each position
    corners: np.ndarray  # (C, 3) int64: east and north of each cell in units of M, and 0
    zones: np.ndarray | None  # (C,) int8, as in Groups
    num_unknown: int

    @property
    def positions(self) -> np.ndarray:
        """(P, 2) float64."""
        return np.stack([self.east[self.starts], self.north[self.starts]], -1)

    def in_cells(self, kept: np.ndarray) -> "_Photos":
        """The photos of some cells, which are numbered again."""
        number = np.full(len(self.corners), -1)
        number[kept] = np.arange(len(kept))
        inside = number[self.cell] >= 0
        is_start = np.zeros(len(self.rows), bool)
        is_start[self.starts] = True
        return replace(
            self,
            rows=self.rows[inside],
            cell=number[self.cell[inside]],
            east=self.east[inside],
            north=self.north[inside],
            heading=self.heading[inside],
            starts=np.flatnonzero(is_start[inside]),
            corners=self.corners[kept],
            zones=None if self.zones is None else self.zones[kept],
        )


def _read_photos(images: ImageList, grouping: Grouping, method: MethodSettings) -> _Photos:
    """Read positions and headings.  A position is a place and a panorama id; with panoramas, each image is one."""
    east, north, heading = np.empty((3, len(images)))
    zones = np.empty(len(images), np.int8)
    columns = np.zeros((3, len(images)), np.int32)
    for rows, values in parse_fields(images, ("utm_east", "utm_north", "heading"), with_zone=True):
        east[rows], north[rows], heading[rows], zones[rows] = values
        for column, value in zip(columns, values[:2], strict=False):
            column[rows] = cells_along(value, grouping.M, images, rows.start)
    unknown = np.flatnonzero((east == 0) & (north == 0))
    check_zones(images, zones, unknown)
    classes = form_classes(columns, zones, unknown)
    known = np.flatnonzero(classes.keys >= 0)
    # Those without a position come first: their key is -1.
    cell = np.repeat(np.arange(len(known)), classes.sizes[known])
    rows = classes.images[len(unknown) :]
    corners = classes.cells(known)
    east, north = (values[rows] - corners[cell, axis] * grouping.M for axis, values in enumerate((east, north)))
    places = [text_keys(images, "pano_id")[rows], north, east]
    if method.panoramas:
        places = [rows]
    order = np.lexsort([rows, *places, cell])
    is_start = np.zeros(len(rows), bool)
    is_start[:1] = True
    for values in (*places, cell):
        is_start[1:] |= np.diff(values[order]) != 0
    return _Photos(
        rows=rows[order],
        cell=cell[order],
        east=east[order],
        north=north[order],
        heading=(heading[rows[order]] + method.heading_offset) % 360,
        starts=np.flatnonzero(is_start),
        corners=corners,
        zones=classes.zones(known),
        num_unknown=len(unknown),
    )


def _nearest_views(
    photos: _Photos, points: np.ndarray, method: MethodSettings, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Photos that look at the point of their cell, as indices into `photos`; and their offsets, in degrees.

    points: (C, 2).  least: the minimum of photos of a cell.
    """
    if not len(photos.rows):
        return np.zeros(0, np.int64), np.zeros(0)
    position_of = np.repeat(np.arange(len(photos.starts)), np.diff(photos.starts, append=len(photos.rows)))
    to_point = points[photos.cell] - np.stack([photos.east, photos.north], -1)
    offsets = angle_between(photos.heading, azimuth(*to_point.T))
    errors = np.zeros(len(offsets)) if method.panoramas else np.abs(offsets)
    smallest = np.minimum.reduceat(errors, photos.starts)
    nearest = np.flatnonzero((errors == smallest[position_of]) & (errors <= method.max_view_error))
    first = np.diff(position_of[nearest], prepend=-1) > 0  # of those that are equally near
    nearest = nearest[first]
    enough = np.bincount(photos.cell[nearest], minlength=len(photos.corners)) >= least
    nearest = nearest[enough[photos.cell[nearest]]]
    return nearest, offsets[nearest]


def _as_groups(
    images: ImageList,
    grouping: Grouping,
    method: MethodSettings,
    photos: _Photos,
    chosen: list[tuple[np.ndarray, np.ndarray]],
) -> Groups:
    """Sort the classes of both views into groups: 0 lateral, 0 frontal, 1 lateral, …"""
    group = _group_numbers(photos, grouping, np.concatenate([nearest for nearest, _ in chosen]))
    num_groups = len(VIEWS) * (int(group.max(initial=-1)) + 1)
    nearest, offsets = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    view = np.repeat(np.arange(len(VIEWS)), [len(indices) for indices, _ in chosen])
    cell, rows = photos.cell[nearest], photos.rows[nearest]
    number = len(VIEWS) * group[cell] + view
    order = np.lexsort([rows, cell, number])
    cell, rows, number = cell[order], rows[order], number[order]
    first = np.flatnonzero(np.diff(cell, prepend=-1) | np.diff(number, prepend=-1))  # image of each class
    corner_m = np.array([grouping.M, grouping.M, grouping.alpha])
    labels = images.labels
    return Groups(
        folder=images.folder,
        cells=photos.corners[cell[first]] * corner_m,
        group_starts=np.searchsorted(number[first], np.arange(num_groups + 1)),
        class_starts=np.append(first, len(cell)).astype(np.int64),
        image_starts=images.starts[rows],
        names=images.names,
        num_scanned=len(images),
        num_unknown=photos.num_unknown,
        zones=None if photos.zones is None else photos.zones[cell[first]],
        inside=images.inside,
        label_starts=None if labels is None else labels.starts[rows],
        labels=None if labels is None else labels.names,
        map_center=images.map_center,
        views=VIEWS,
        offsets=offsets[order].astype(np.float32),
        panoramas=method.panoramas,
    )


def _group_numbers(photos: _Photos, grouping: Grouping, used: np.ndarray) -> np.ndarray:
    """Group of each cell, (C,) int64: numbered by the first used photo along the list; 0 for cells without one."""
    key = (photos.corners[:, 0] % grouping.N) * grouping.N + photos.corners[:, 1] % grouping.N
    earliest = np.full(grouping.N**2, np.iinfo(np.int64).max)
    np.minimum.at(earliest, key[photos.cell[used]], photos.rows[used])
    ranks = np.argsort(np.argsort(earliest, kind="stable"), kind="stable")
    has_photo = np.zeros(len(photos.corners), bool)
    has_photo[photos.cell[used]] = True
    return np.where(has_photo, ranks[key], 0)


# --- checks ----------------------------------------------------------------------------------------------------------


def view_errors(groups: Groups) -> dict[str, dict[str, float]]:
    """Number of images of each view, and mean and largest error of their direction in degrees; 0 for panoramas."""
    found = {}
    for kind, view in enumerate(groups.views):
        offsets = [groups[number].offsets for number in range(kind, len(groups), len(groups.views))]
        errors = np.abs(np.concatenate([np.zeros(0), *(part for part in offsets if part is not None)]))
        errors *= not groups.panoramas
        found[view] = {
            "num_images": len(errors),
            "mean_error_deg": round(float(errors.mean()), 2) if len(errors) else 0.0,
            "max_error_deg": round(float(errors.max(initial=0.0)), 2),
        }
    return found


def views_summary(groups: Groups) -> list[str]:
    """`view_errors` as sentences."""
    if groups.panoramas:
        return [f"{view} views: {found['num_images']:,} panoramas" for view, found in view_errors(groups).items()]
    return [
        f"{view} views: {found['num_images']:,} photos, whose headings differ from the direction of the point by "
        f"{found['mean_error_deg']:.1f} degrees on average, at most {found['max_error_deg']:.1f}"
        for view, found in view_errors(groups).items()
    ]


def check_views(groups: Groups, grouping: Grouping, method: MethodSettings) -> None:
    """Raise DatasetError if there are fewer groups or classes than training needs, or no panoramas with --panoramas."""
    counts = groups.counts()[: grouping.groups_num * len(groups.views)]
    if not counts:
        raise DatasetError(
            f"{groups.folder} has {groups.num_scanned:,} images, but no cell with views from at least "
            f"{grouping.min_images_per_class} positions. Use a smaller --min_images_per_class, or --method cosplace."
        )
    num_groups = len(groups) // len(groups.views)
    if num_groups < grouping.groups_num:
        raise DatasetError(
            f"{groups.folder} has {num_groups} group{'s' if num_groups > 1 else ''}, fewer than --groups_num "
            f"{grouping.groups_num}. Use --groups_num {num_groups}."
        )
    for number, (num_classes, _) in enumerate(counts):
        if num_classes < 2:
            raise DatasetError(
                f"{groups.folder}: {groups.title(number)} has {num_classes} class{'' if num_classes == 1 else 'es'}, "
                f"but training needs at least 2. Photos must look in several directions: use a larger "
                f"--max_view_error, a smaller --N or --min_images_per_class, or --method cosplace."
            )
    _check_kind(groups)


def _check_kind(groups: Groups) -> None:
    """Raise DatasetError if the first photo is not a panorama, though --panoramas says so."""
    if not groups.panoramas:
        return
    group = groups[0]
    try:
        pixels = open_pixels(path := group.image_path(0))
    except ImageError:  # training replaces it
        return
    try:
        cut_view(pixels, 0.0)
    except ValueError as error:
        raise DatasetError(f"{path} {error} Omit --panoramas to train on photos.") from error
