"""Shadow maps: for each sun, the height below which each square meter of a district is in the shade."""

from typing import Any

import numpy as np

from synthcity.compiling import compiled_function, inlined, kernel, sources_fingerprint
from synthcity.noise import smooth
from synthcity.scene import SHADOW_CELL_M, TREE

STEP_M = 0.25  # of stored heights
LOWEST_M = -4.0  # heights below the ground, so that the end of a shadow can be interpolated between cells
MARGIN_M = 20.0
TALLEST_M = 50.0


@kernel
def _fill_lot(heights: np.ndarray, lot: Any, x0: float, y0: float) -> None:
    """Write the height of a building into the cells whose centers are inside its four walls."""
    corners = lot.corners
    columns, rows = heights.shape
    first = max(0, int((min(corners[0, 0], corners[1, 0], corners[2, 0], corners[3, 0]) - x0) / SHADOW_CELL_M))
    last = min(columns - 1, int((max(corners[0, 0], corners[1, 0], corners[2, 0], corners[3, 0]) - x0) / SHADOW_CELL_M))
    low = max(0, int((min(corners[0, 1], corners[1, 1], corners[2, 1], corners[3, 1]) - y0) / SHADOW_CELL_M))
    high = min(rows - 1, int((max(corners[0, 1], corners[1, 1], corners[2, 1], corners[3, 1]) - y0) / SHADOW_CELL_M))
    for column in range(first, last + 1):
        for row in range(low, high + 1):
            x, y = x0 + (column + 0.5) * SHADOW_CELL_M, y0 + (row + 0.5) * SHADOW_CELL_M
            inside = True
            for side in range(4):
                ax, ay = corners[side, 0], corners[side, 1]
                bx, by = corners[(side + 1) % 4, 0], corners[(side + 1) % 4, 1]
                inside = inside and (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0.0
            if inside:
                heights[column, row] = max(heights[column, row], lot.height)


@kernel
def _fill_tree(heights: np.ndarray, tree: Any, x0: float, y0: float) -> None:
    radius = 0.26 * tree.size
    columns, rows = heights.shape
    center_x, center_y = (tree.x - x0) / SHADOW_CELL_M, (tree.y - y0) / SHADOW_CELL_M
    for column in range(int(center_x - radius), int(center_x + radius) + 1):
        for row in range(int(center_y - radius), int(center_y + radius) + 1):
            if 0 <= column < columns and 0 <= row < rows:
                off = (column + 0.5 - center_x) ** 2 + (row + 0.5 - center_y) ** 2
                if off < radius * radius:
                    heights[column, row] = max(heights[column, row], 0.9 * tree.size)


@kernel
def _cast(heights: np.ndarray, sun: np.ndarray, shade: np.ndarray) -> None:
    """Shade height of each cell: step towards the sun and keep the highest line to the sun that a roof blocks."""
    flat = (sun[0] ** 2 + sun[1] ** 2) ** 0.5
    dx, dy, drop = sun[0] / flat, sun[1] / flat, sun[2] / flat * SHADOW_CELL_M
    columns, rows = heights.shape
    steps = int((TALLEST_M - LOWEST_M) / drop) + 1
    for column in range(columns):
        for row in range(rows):
            best = heights[column, row]
            for step in range(1, steps):
                if TALLEST_M - step * drop < best:
                    break
                i, j = int(column + 0.5 + dx * step), int(row + 0.5 + dy * step)
                if i < 0 or j < 0 or i >= columns or j >= rows:
                    break
                best = max(best, heights[i, j] - step * drop)
            stored = (best - LOWEST_M) / STEP_M + 0.5
            shade[column, row] = np.uint8(min(max(stored, 0.0), 255.0))


def _make_shadow_map(fingerprint: int) -> Any:
    @compiled_function
    def shadow_map(
        lots: np.ndarray,
        objects: np.ndarray,
        suns: np.ndarray,
        x0: float,
        y0: float,
        heights: np.ndarray,
        shade: np.ndarray,
    ) -> None:
        if fingerprint < 0:
            return
        for index in range(len(lots)):
            if lots[index].height > 0.0:
                _fill_lot(heights, lots[index], x0, y0)
        for index in range(len(objects)):
            if objects[index].kind == TREE:
                _fill_tree(heights, objects[index], x0, y0)
        for layer in range(len(suns)):
            _cast(heights, suns[layer], shade[layer])

    return shadow_map


_shadow_map = _make_shadow_map(sources_fingerprint())


def cast_shadows(
    lots: np.ndarray, objects: np.ndarray, nodes: np.ndarray, suns: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Shadow maps of a district: (suns, columns, rows) uint8 and the x, y of their lower left corner.

    A stored value s means that this square meter is in the shade below s * STEP_M + LOWEST_M meters.
    """
    x0, y0 = (float(nodes[..., axis].min()) - MARGIN_M for axis in (0, 1))
    columns, rows = (
        int((nodes[..., axis].max() - start + MARGIN_M) / SHADOW_CELL_M) + 1 for axis, start in ((0, x0), (1, y0))
    )
    shade = np.zeros((len(suns), columns, rows), np.uint8)
    heights = np.full((columns, rows), LOWEST_M, np.float32)
    _shadow_map(lots, objects, np.asarray(suns, dtype=np.float64), x0, y0, heights, shade)
    return shade, x0, y0


@inlined
def shade_top(shade: np.ndarray, x0: float, y0: float, layer: int, x: float, y: float) -> float:
    """Height in meters below which a position is in the shade of one sun."""
    column, row = (x - x0) / SHADOW_CELL_M - 0.5, (y - y0) / SHADOW_CELL_M - 0.5
    i, j = int(column), int(row)
    if column < 0.0 or row < 0.0 or i >= shade.shape[1] - 1 or j >= shade.shape[2] - 1:
        return LOWEST_M
    fx, fy = column - i, row - j
    low = shade[layer, i, j] * (1.0 - fx) + shade[layer, i + 1, j] * fx
    high = shade[layer, i, j + 1] * (1.0 - fx) + shade[layer, i + 1, j + 1] * fx
    return (low * (1.0 - fy) + high * fy) * STEP_M + LOWEST_M


@inlined
def sunlit(z: float, top: float) -> float:
    """Share of the sun at height z, if the shade ends at `top`: 0 below, 1 above, with a soft edge."""
    return smooth(-0.35, 0.35, z - top)
