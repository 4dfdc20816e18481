"""The streets of a district: a lattice of jittered nodes, where each line of streets has its own width.

Cameras use only streets between nodes at least MARGIN blocks from the border, where buildings surround them.
"""

from dataclasses import dataclass

import numpy as np

from synthcity.scene import SIDE_FIELDS, Ground

BLOCK_M = 62.0
BLOCK_RANGE = (0.8, 1.3)
NODE_JITTER_M = 9.0
HALF_ROADS_M = (4.2, 4.6, 5.2, 6.4)
SIDEWALK_M = 3.0
PARK_SHARE = 0.06
MARGIN = 2  # blocks between the last street with cameras and open country


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """X + 1 by Y + 1 nodes around X by Y cells."""

    nodes: np.ndarray  # (X + 1, Y + 1, 2) float64, meters
    across_half: np.ndarray  # (Y + 1,) float64, half width of the road of each line of streets along x
    upward_half: np.ndarray  # (X + 1,) float64, and along y
    park: np.ndarray  # (X, Y) bool
    xs: np.ndarray  # (X + 1,) float64, the lines before the jitter
    ys: np.ndarray  # (Y + 1,) float64
    sidewalk_m: float = SIDEWALK_M


def build_lattice(columns: int, rows: int, random: np.random.Generator) -> Lattice:
    """Lay out columns x rows cells."""
    xs = np.concatenate([[0.0], np.cumsum(BLOCK_M * random.uniform(*BLOCK_RANGE, columns))])
    ys = np.concatenate([[0.0], np.cumsum(BLOCK_M * random.uniform(*BLOCK_RANGE, rows))])
    nodes = np.empty((columns + 1, rows + 1, 2))
    nodes[..., 0], nodes[..., 1] = xs[:, None], ys[None, :]
    return Lattice(
        nodes=nodes + random.uniform(-NODE_JITTER_M, NODE_JITTER_M, nodes.shape),
        across_half=random.choice(HALF_ROADS_M, rows + 1),
        upward_half=random.choice(HALF_ROADS_M, columns + 1),
        park=random.random((columns, rows)) < PARK_SHARE,
        xs=xs,
        ys=ys,
    )


def build_ground(lattice: Lattice) -> Ground:
    """The lattice for the renderer: for each cell the four streets around it."""
    nodes, across, upward = lattice.nodes, lattice.across_half, lattice.upward_half
    columns, rows = lattice.park.shape
    corners = (nodes[:-1, :-1], nodes[1:, :-1], nodes[1:, 1:], nodes[:-1, 1:])
    # Seen from both sides, a street runs to the right or upwards, so that its markings agree.
    sides = ((0, 1, 1.0), (1, 2, 1.0), (3, 2, -1.0), (0, 3, -1.0))
    left, right = (np.broadcast_to(half[:, None], (columns, rows)) for half in (upward[:-1], upward[1:]))
    lower, upper = (np.broadcast_to(half[None, :], (columns, rows)) for half in (across[:-1], across[1:]))
    halves = ((lower, left, right), (right, lower, upper), (upper, left, right), (left, lower, upper))
    table = np.empty((columns, rows, 4, len(SIDE_FIELDS)))
    for side, ((first, last, sign), half) in enumerate(zip(sides, halves, strict=True)):
        start = corners[first]
        step = corners[last] - start
        length = np.hypot(step[..., 0], step[..., 1])
        x, y = step[..., 0] / length, step[..., 1] / length
        table[:, :, side, 0], table[:, :, side, 1] = -sign * y, sign * x
        table[:, :, side, 2] = sign * (y * start[..., 0] - x * start[..., 1])
        table[:, :, side, 3], table[:, :, side, 4] = x, y
        table[:, :, side, 5] = -(x * start[..., 0] + y * start[..., 1])
        table[:, :, side, 6] = length
        table[:, :, side, 7:] = np.stack(half, axis=-1)
    return Ground(
        sides=table,
        sidewalk_m=lattice.sidewalk_m,
        column_of=_cell_table(lattice.xs),
        row_of=_cell_table(lattice.ys),
        park=lattice.park.astype(np.uint8),
    )


def _cell_table(edges: np.ndarray) -> np.ndarray:
    meters = np.arange(int(np.ceil(edges[-1])) + 1)
    return np.clip(np.searchsorted(edges, meters + 0.5) - 1, 0, len(edges) - 2).astype(np.int32)


def all_streets(lattice: Lattice) -> np.ndarray:
    """(streets, 8) float64: start, unit vector, length, half width, and half widths of the roads at both ends."""
    nodes, across, upward = lattice.nodes, lattice.across_half, lattice.upward_half
    columns, rows = lattice.park.shape
    i, j = (index.reshape(-1) for index in np.meshgrid(np.arange(columns), np.arange(rows + 1), indexing="ij"))
    along_x = _street_rows(nodes[i, j], nodes[i + 1, j], across[j], upward[i], upward[i + 1])
    i, j = (index.reshape(-1) for index in np.meshgrid(np.arange(columns + 1), np.arange(rows), indexing="ij"))
    along_y = _street_rows(nodes[i, j], nodes[i, j + 1], upward[i], across[j], across[j + 1])
    return np.concatenate([along_x, along_y])


def _street_rows(start: np.ndarray, end: np.ndarray, *halves: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(end - start, axis=1)
    return np.column_stack([start, (end - start) / length[:, None], length, *halves])


def camera_streets(lattice: Lattice) -> np.ndarray:
    """Streets (streets, 6) float64 with both ends at least MARGIN cells from the border, row by row.

    Columns: x and y of the start, x and y of the end, half width of the road, width of the sidewalk, in meters.
    """
    inner = lattice.nodes[MARGIN:-MARGIN, MARGIN:-MARGIN]
    upward_half, across_half = lattice.upward_half[MARGIN:-MARGIN], lattice.across_half[MARGIN:-MARGIN]
    streets = []
    for row in range(inner.shape[1]):
        for column in range(inner.shape[0]):
            here = inner[column, row]
            if column + 1 < inner.shape[0]:
                streets.append((*here, *inner[column + 1, row], across_half[row], lattice.sidewalk_m))
            if row + 1 < inner.shape[1]:
                streets.append((*here, *inner[column, row + 1], upward_half[column], lattice.sidewalk_m))
    return np.array(streets, dtype=np.float64)
