"""One camera in one district: visible objects, samples, haze."""

from typing import Any, NamedTuple

import numpy as np

from synthcity.compiling import inlined, kernel
from synthcity.noise import smooth
from synthcity.scene import GRID_CELL_M, VIEW_LIMIT_M
from synthcity.shadows import shade_top, sunlit

HALF_DIAGONAL_M = 0.7072 * GRID_CELL_M
MAX_WALLS = 32  # per column, the nearest ones
MAX_FOUND = 16384
GROUND, WALL, SKY, THING = range(4)  # what a sample shows


class View(NamedTuple):
    """A camera without roll.  Its pitch only shifts the horizon, so that walls stay upright."""

    x: float
    y: float
    z: float
    forward_x: float
    forward_y: float
    right_x: float
    right_y: float
    focal: float  # in samples
    middle: float  # column of the optical axis, in samples
    horizon: float  # row of the horizon, in samples
    side: int  # samples per side


class Canvas(NamedTuple):
    """Samples of one image: linear color, depth along the optical axis in meters, what they show."""

    color: np.ndarray  # (side, side, 3) float32
    depth: np.ndarray  # (side, side) float32
    shows: np.ndarray  # (side, side) uint8


class Scratch(NamedTuple):
    """Working memory for one image."""

    found: np.ndarray  # (MAX_FOUND,) int64
    walls: np.ndarray  # (side, MAX_WALLS) int64: the walls of each column, near to far
    depths: np.ndarray  # (side, MAX_WALLS) float64
    shares: np.ndarray  # (side, MAX_WALLS) float64: position along the wall, 0 to 1
    numbers: np.ndarray  # (side,) int64: number of walls of each column


class Shade(NamedTuple):
    """Shadow maps of a district (see shadows.cast_shadows)."""

    maps: np.ndarray  # (suns, columns, rows) uint8
    x0: float
    y0: float


@kernel
def make_view(pose: Any, side: int) -> View:
    """Set up the camera of a pose on a canvas of side x side samples."""
    angle = np.radians(float(pose.view_deg))
    sine, cosine = np.sin(angle), np.cos(angle)
    focal = 0.5 * side / np.tan(np.radians(0.5 * float(pose.fov_deg)))
    return View(
        pose.x,
        pose.y,
        float(pose.height_m),
        sine,
        cosine,
        cosine,
        -sine,
        focal,
        0.5 * side,
        side * (0.5 + float(pose.horizon)),
        side,
    )


@kernel
def collect_visible(view: View, grid: Any, reach_m: float, found: np.ndarray) -> tuple[int, int]:
    """Find objects or walls whose cell may be visible: writes their numbers to `found`, returns how many, and how many
    cells were read.

    Reads only cells within VIEW_LIMIT_M in front of the camera, however large the district is.
    reach_m: maximum distance of an object from its cell.
    """
    margin = HALF_DIAGONAL_M + reach_m
    half = view.middle / view.focal
    scale = 1.0 / np.sqrt(1.0 + half * half)
    limit = VIEW_LIMIT_M + margin
    first = max(0, int((view.x - limit - grid.x0) / GRID_CELL_M))
    last = min(grid.columns - 1, int((view.x + limit - grid.x0) / GRID_CELL_M))
    low = max(0, int((view.y - limit - grid.y0) / GRID_CELL_M))
    high = min(grid.rows - 1, int((view.y + limit - grid.y0) / GRID_CELL_M))
    count, cells = 0, 0
    for row in range(low, high + 1):
        for column in range(first, last + 1):
            dx = grid.x0 + (column + 0.5) * GRID_CELL_M - view.x
            dy = grid.y0 + (row + 0.5) * GRID_CELL_M - view.y
            z = dx * view.forward_x + dy * view.forward_y
            a = abs(dx * view.right_x + dy * view.right_y)
            if z < -margin or (a - z * half) * scale > margin or dx * dx + dy * dy > limit * limit:
                continue
            cells += 1
            cell = row * grid.columns + column
            for place in range(grid.starts[cell], grid.starts[cell + 1]):
                if count < len(found):
                    found[count] = grid.order[place]
                    count += 1
    return count, cells


@inlined
def haze_at(light: Any, distance: float) -> float:
    """Share of haze in the color at a distance; 1 at the view limit."""
    part = distance / light.haze_m
    return max(part / (1.0 + part), smooth(0.7 * VIEW_LIMIT_M, 0.99 * VIEW_LIMIT_M, distance))


@inlined
def sun_at(shade: Shade, light: Any, x: float, y: float, z: float) -> float:
    """Share of the sun that reaches a point."""
    return sunlit(z, shade_top(shade.maps, shade.x0, shade.y0, light.sun_index, x, y))


@kernel
def write_sample(
    canvas: Canvas,
    row: int,
    column: int,
    depth: float,
    color: tuple[float, float, float],
    sun: float,
    ambient: float,
    light: Any,
    haze: float,
) -> None:
    """Write one sample of an object: its color lit by sun and sky, behind haze."""
    clear = 1.0 - haze
    for c in range(3):
        lit = color[c] * (sun * light.sun_rgb[c] + ambient * light.ambient[c])
        canvas.color[row, column, c] = lit * clear + light.haze[c] * haze
    canvas.depth[row, column] = depth
    canvas.shows[row, column] = THING
