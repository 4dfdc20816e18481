"""Records of a city: walls, lots, objects, light, poses.  Plain arrays, shared with the compiled renderer.

Coordinates are local to one district: x to the right, y up the map, z above the street, in meters.  `rotation_deg` is
the rotation of a district against north.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

VIEW_LIMIT_M = 160.0  # nothing farther is drawn, so districts farther apart share no building
GRID_CELL_M = 24.0
SHADOW_CELL_M = 1.0
NUM_SUNS = 6

FRONT, SIDE, BACK = 0, 1, 2  # kinds of walls
TREE, LAMP, SIGNAL, SIGN, COLUMN, PARKED, MOVING, PERSON = range(8)  # kinds of objects

FACE: np.dtype[Any] = np.dtype(
    [
        ("x0", "f8"),
        ("y0", "f8"),
        ("x1", "f8"),
        ("y1", "f8"),
        ("length", "f8"),
        ("height", "f8"),  # of the flat part of the wall, without gables and roofs
        ("kind", "i8"),
        ("lot", "i8"),
    ],
    align=True,
)

LOT: np.dtype[Any] = np.dtype(
    [
        ("corners", "f8", (4, 2)),  # counterclockwise
        ("height", "f8"),
        ("seed", "i8"),
        ("base", "f8", 3),  # colors are linear RGB
        ("repaint", "f8", 3),  # the wall color after a change of owner
        ("trim", "f8", 3),
        ("door", "f8", 3),
        ("roof", "f8", 3),
        ("material", "i8"),
        ("ground_floor_m", "f8"),
        ("floor_m", "f8"),
        ("bay_m", "f8"),
        ("window_w", "f8"),  # share of a bay
        ("window_h", "f8"),  # share of a floor
        ("window_style", "i8"),
        ("surround", "i8"),  # 0 none, 1 frame, 2 shutters, 3 lintel and sill, 4 balconies
        ("profile", "i8"),  # of the roof line
        ("roof_m", "f8"),
        ("cornice_m", "f8"),
        ("street_use", "i8"),  # of the ground floor
        ("awning", "i8"),
        ("bands", "i8"),
    ],
    align=True,
)

OBJECT: np.dtype[Any] = np.dtype(
    [
        ("x", "f8"),
        ("y", "f8"),
        ("kind", "i8"),
        ("size", "f8"),
        ("direction", "f8"),  # radians, counterclockwise from x
        ("chance", "f8"),  # of being present, for cars and people
        ("seed", "i8"),
    ],
    align=True,
)

LIGHT: np.dtype[Any] = np.dtype(
    [
        ("seed", "i8"),
        ("sun", "f8", 3),  # unit vector towards the sun, in the axes of the district
        ("sun_index", "i8"),  # layer of the shadow map
        ("sun_rgb", "f8", 3),
        ("ambient", "f8", 3),
        ("sky_low", "f8", 3),
        ("sky_high", "f8", 3),
        ("haze", "f8", 3),
        ("haze_m", "f8"),
        ("clouds", "f8"),
        ("leaves", "f8", 3),
        ("leaf_density", "f8"),
        ("wet", "f8"),
        ("lamps", "f8"),  # share of lit windows and lamps, 0 to 1
        ("exposure", "f8"),
        ("white", "f8", 3),
        ("saturation", "f8"),
        ("noise", "f8"),
        ("vignette", "f8"),
        ("month", "i8"),
    ],
    align=True,
)

POSE: np.dtype[Any] = np.dtype(
    [
        ("image_id", "i8"),  # unique in the city; seed of the sensor noise
        ("site_seed", "i8"),  # shared by the images of a panorama; seed of people and moving cars
        ("capture_seed", "i8"),  # shared by a street in one year; seed of parked cars and curtains
        ("x", "f8"),
        ("y", "f8"),
        ("view_deg", "f8"),  # viewing direction, clockwise from the y axis of the district
        ("heading", "i8"),  # whole degrees clockwise from north, as in the file name
        ("fov_deg", "f8"),
        ("height_m", "f8"),
        ("horizon", "f8"),
        ("traffic", "f8"),
        ("year", "i8"),
        ("light", "i8"),
        ("site", "i8"),
    ],
    align=True,
)


class Ground(NamedTuple):
    """Blocks between streets, for the renderer: X by Y cells of a jittered lattice."""

    sides: np.ndarray  # (X, Y, 4, 10) float64: lower, right, upper, left street, each as in SIDE_FIELDS
    sidewalk_m: float
    column_of: np.ndarray  # (meters,) int32: a first guess of the block's column at x
    row_of: np.ndarray  # (meters,) int32
    park: np.ndarray  # (X, Y) uint8


# A street next to a block: a x + b y + c is the distance of a point from its center line, positive in the block;
# d x + e y + f is the position along it; then its length, its half width, and half widths of the roads at both ends.
SIDE_FIELDS = ("a", "b", "c", "d", "e", "f", "length", "half", "first_half", "last_half")


class Grid(NamedTuple):
    """Objects or walls by square cell (CSR), so that the work for an image does not grow with the city."""

    starts: np.ndarray  # (columns * rows + 1,) int64
    order: np.ndarray  # (items,) int64
    columns: int
    rows: int
    x0: float
    y0: float


class Scene(NamedTuple):
    """One district for the renderer."""

    faces: np.ndarray  # FACE
    face_grid: Grid
    lots: np.ndarray  # LOT
    objects: np.ndarray  # OBJECT
    object_grid: Grid
    ground: Ground


@dataclass(frozen=True, slots=True, kw_only=True)
class District:
    """One part of the city: its position, the streets with cameras, and its scene."""

    name: str
    east: float  # UTM of the local origin
    north: float
    rotation_deg: float  # of the district's y axis, clockwise from north
    scene: Scene
    nodes: np.ndarray  # (X + 1, Y + 1, 2) float64: corners of the streets
    streets: np.ndarray  # (streets, 6) float64: x0, y0, x1, y1, half width of the road, sidewalk; both ends interior

    def to_utm(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """UTM east and north in meters of local points."""
        angle = np.radians(self.rotation_deg)
        return (
            self.east + x * np.cos(angle) + y * np.sin(angle),
            self.north - x * np.sin(angle) + y * np.cos(angle),
        )


def build_grid(x: np.ndarray, y: np.ndarray) -> Grid:
    """Sort points into square cells of GRID_CELL_M."""
    if len(x) == 0:
        return Grid(np.zeros(2, np.int64), np.zeros(0, np.int64), 1, 1, 0.0, 0.0)
    x0, y0 = float(x.min()), float(y.min())
    column = ((x - x0) // GRID_CELL_M).astype(np.int64)
    row = ((y - y0) // GRID_CELL_M).astype(np.int64)
    columns, rows = int(column.max()) + 1, int(row.max()) + 1
    cell = row * columns + column  # (items,) int64
    counts = np.bincount(cell, minlength=columns * rows)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Grid(starts, np.argsort(cell, kind="stable").astype(np.int64), columns, rows, x0, y0)
