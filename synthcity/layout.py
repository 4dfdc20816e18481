"""Blocks, lots, walls and objects of one district, from a seed.

A block is a cell of the lattice without its streets.  It is divided into lots along its four sides, in its bilinear
coordinates, so that lots are convex and never overlap.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from synthcity.furniture import place_objects
from synthcity.lattice import (
    BLOCK_M,
    BLOCK_RANGE,
    MARGIN,
    NODE_JITTER_M,
    Lattice,
    build_ground,
    build_lattice,
    camera_streets,
)
from synthcity.lots import sample_lots
from synthcity.scene import BACK, FACE, FRONT, SIDE, District, Scene, build_grid

LOT_DEPTH_M = (9.0, 13.0)
LOT_WIDTH_M = (6.0, 17.0)
PARK_SHARE = 0.06
MEAN_STREET_M = BLOCK_M * (BLOCK_RANGE[0] + BLOCK_RANGE[1]) / 2
MAX_ROTATION_DEG = 15.0


def interior_size(street_m: float) -> tuple[int, int]:
    """Nodes (across, upward) of the smallest lattice whose streets are at least `street_m` meters long together."""
    across, upward = 2, 2
    while (across - 1) * upward + across * (upward - 1) < street_m / (0.95 * MEAN_STREET_M):
        if across <= upward:
            across += 1
        else:
            upward += 1
    return across, upward


def build_district(
    name: str, across: int, upward: int, east: float, north: float, random: np.random.Generator
) -> District:
    """Lay out a district whose camera streets have across x upward nodes.  All randomness comes from `random`."""
    lattice = build_lattice(across + 2 * MARGIN - 1, upward + 2 * MARGIN - 1, random)
    blocks = _block_corners(lattice)  # (X, Y, 4, 2)
    cut = _cut_lots(blocks, lattice.park, random)
    lots = sample_lots(cut.corners, cut.block, random)
    faces = _build_faces(cut, lots)
    objects = place_objects(lattice, blocks, random)
    scene = Scene(
        faces=faces,
        face_grid=build_grid((faces["x0"] + faces["x1"]) / 2, (faces["y0"] + faces["y1"]) / 2),
        lots=lots,
        objects=objects,
        object_grid=build_grid(objects["x"], objects["y"]),
        ground=build_ground(lattice),
    )
    rotation = float(random.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG))
    return District(
        name=name,
        east=east,
        north=north,
        rotation_deg=rotation,
        scene=scene,
        nodes=lattice.nodes,
        streets=camera_streets(lattice),
    )


def district_extent_m(across: int, upward: int) -> float:
    """Upper bound of the diameter of a district in meters, margin included."""
    longest = BLOCK_M * BLOCK_RANGE[1]
    return float(np.hypot(across + 2 * MARGIN, upward + 2 * MARGIN) * longest + 4 * NODE_JITTER_M)


def _block_corners(lattice: Lattice) -> np.ndarray:
    """Cells without roads and sidewalks: corners (X, Y, 4, 2), counterclockwise from the lower left."""
    nodes, inset = lattice.nodes, lattice.sidewalk_m
    columns, rows = nodes.shape[0] - 1, nodes.shape[1] - 1
    corners = (nodes[:-1, :-1], nodes[1:, :-1], nodes[1:, 1:], nodes[:-1, 1:])
    upward, across = lattice.upward_half + inset, lattice.across_half + inset
    insets = (
        np.broadcast_to(across[None, :-1], (columns, rows)),
        np.broadcast_to(upward[1:, None], (columns, rows)),
        np.broadcast_to(across[None, 1:], (columns, rows)),
        np.broadcast_to(upward[:-1, None], (columns, rows)),
    )
    points, directions = [], []
    for side in range(4):
        start, end = corners[side], corners[(side + 1) % 4]
        direction = (end - start) / np.linalg.norm(end - start, axis=-1, keepdims=True)
        inward = np.stack([-direction[..., 1], direction[..., 0]], axis=-1)
        points.append(start + inward * insets[side][..., None])
        directions.append(direction)
    block = [_intersection(points[side - 1], directions[side - 1], points[side], directions[side]) for side in range(4)]
    return np.stack(block, axis=2)


def _intersection(p: np.ndarray, d: np.ndarray, q: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Intersection of the lines p + s d and q + t e."""
    across = d[..., 0] * e[..., 1] - d[..., 1] * e[..., 0]
    s = ((q - p)[..., 0] * e[..., 1] - (q - p)[..., 1] * e[..., 0]) / across
    return p + s[..., None] * d


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """Lots without a style."""

    corners: np.ndarray  # (lots, 4, 2): street side first, counterclockwise
    block: np.ndarray  # (lots,) int64
    previous: np.ndarray  # (lots,) int64: the neighbor across the wall 3 -> 0, or -1
    following: np.ndarray  # (lots,) int64: the neighbor across the wall 1 -> 2, or -1
    ends: np.ndarray  # (lots, 2) bool: the wall 3 -> 0, the wall 1 -> 2 faces a street


def _cut_lots(blocks: np.ndarray, park: np.ndarray, random: np.random.Generator) -> _Cut:
    corners: list[np.ndarray] = []
    block_of: list[int] = []
    previous: list[int] = []
    following: list[int] = []
    ends: list[tuple[bool, bool]] = []
    for index, block in enumerate(blocks.reshape(-1, 4, 2)):
        if park.reshape(-1)[index]:
            continue
        sides = np.linalg.norm(np.roll(block, -1, axis=0) - block, axis=1)  # (4,) meters
        depth = random.uniform(*LOT_DEPTH_M, 4) / np.array([sides[1], sides[0], sides[1], sides[0]])
        for side in range(4):
            # Lots of the lower and upper side include the corners; lots of the left and right side lie between them.
            whole = side % 2 == 0
            low, high = (0.0, 1.0) if whole else (depth[side - 1], 1.0 - depth[(side + 1) % 4])
            cuts = _cut_side(low, high, sides[side], random)
            first = len(corners)
            for position, (a, b) in enumerate(pairwise(cuts)):
                corners.append(_bilinear(block, side, a, b, depth[side]))
                block_of.append(index)
                last = position == len(cuts) - 2
                previous.append(first + position - 1 if position else -1)
                following.append(-1 if last else first + position + 1)
                ends.append((whole and position == 0, whole and last))
    return _Cut(
        corners=np.array(corners, dtype=np.float64).reshape(-1, 4, 2),
        block=np.array(block_of, dtype=np.int64),
        previous=np.array(previous, dtype=np.int64),
        following=np.array(following, dtype=np.int64),
        ends=np.array(ends, dtype=bool).reshape(-1, 2),
    )


def _cut_side(low: float, high: float, length_m: float, random: np.random.Generator) -> np.ndarray:
    """Borders of the lots along one side, as shares of its length."""
    most = max(1, int((high - low) * length_m / (LOT_WIDTH_M[0] + 1.0)))
    widths = random.uniform(*LOT_WIDTH_M, most)
    count = max(1, int(np.searchsorted(np.cumsum(widths), (high - low) * length_m)))
    shares = np.cumsum(widths[:count])
    return np.concatenate([[low], low + (high - low) * shares / shares[-1]])


def _bilinear(block: np.ndarray, side: int, a: float, b: float, depth: float) -> np.ndarray:
    """Corners (4, 2) of the lot between shares a and b of one side of a block; depth: a share too."""
    p, q, r, s = (block[(side + k) % 4] for k in range(4))
    share, inward = np.array([a, b, b, a])[:, None], np.array([0.0, 0.0, depth, depth])[:, None]
    return (p * (1 - share) + q * share) * (1 - inward) + (s * (1 - share) + r * share) * inward


def _build_faces(cut: _Cut, lots: np.ndarray) -> np.ndarray:
    """Walls (faces,) FACE of all lots; without walls that are hidden by a neighbor of at least the same height."""
    heights = np.append(lots["height"], 0.0)  # index -1: no neighbor
    built = lots["height"] > 0
    parts = []
    for edge in range(4):
        kind = np.full(len(lots), (FRONT, SIDE, BACK, SIDE)[edge], dtype=np.int32)
        shown = built.copy()
        if edge in (1, 3):
            neighbor = cut.following if edge == 1 else cut.previous
            shown &= heights[neighbor] < lots["height"]
            kind[cut.ends[:, 1 if edge == 1 else 0]] = FRONT
        start, end = cut.corners[:, edge], cut.corners[:, (edge + 1) % 4]
        part = np.zeros(int(shown.sum()), dtype=FACE)
        part["x0"], part["y0"], part["x1"], part["y1"] = (*start[shown].T, *end[shown].T)
        part["length"] = np.linalg.norm(end - start, axis=1)[shown]
        part["height"], part["kind"], part["lot"] = lots["height"][shown], kind[shown], np.flatnonzero(shown)
        parts.append(part)
    return np.concatenate(parts) if parts else np.zeros(0, FACE)
