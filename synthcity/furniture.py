"""Objects in the streets: trees, lamps, signals, signs, advertising columns, slots for cars and people."""

import numpy as np

from synthcity.lattice import Lattice, all_streets
from synthcity.scene import COLUMN, LAMP, MOVING, OBJECT, PARKED, PERSON, SIGN, SIGNAL, TREE

CORNER_M = 9.0  # without trees and cars, measured from the crossing road
CAR_SLOT_M = 5.9


def place_objects(lattice: Lattice, blocks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """All objects (objects,) OBJECT of a district.  blocks: (X, Y, 4, 2) meters, for the trees of parks."""
    streets = all_streets(lattice)
    parts = [
        _along(streets, PARKED, CAR_SLOT_M, CAR_SLOT_M, -1.15, random, chance=1.0, size=(0.0, 1.0)),
        _along(streets, TREE, 8.5, 8.5, 0.85, random, share=0.55, size=(4.6, 8.4), keep=0.85),
        _along(streets, LAMP, 26.0, 7.0, 0.45, random, size=(5.5, 7.5), keep=0.8),
        _along(streets, SIGN, 30.0, 5.0, 0.4, random, size=(2.2, 2.8), keep=0.45),
        _along(streets, COLUMN, 40.0, 4.0, 1.1, random, size=(2.3, 2.9), keep=0.16),
        _along(streets, PERSON, 6.0, 2.0, 1.9, random, chance=0.26, size=(1.55, 1.92), scatter=0.8),
        _moving(streets, random),
        _signals(lattice, random),
        _park_trees(blocks[lattice.park], random),
    ]
    return np.concatenate(parts)


def _along(
    streets: np.ndarray,
    kind: int,
    step_m: float,
    corner_m: float,
    beyond_curb_m: float,
    random: np.random.Generator,
    *,
    size: tuple[float, float],
    chance: float = 1.0,
    share: float = 1.0,
    keep: float = 1.0,
    scatter: float = 0.0,
) -> np.ndarray:
    """Objects every `step_m` on both sides of a share of the streets, `beyond_curb_m` outside the road."""
    parts = []
    for side in (-1.0, 1.0):
        used = streets[random.random(len(streets)) < share]
        first, last = used[:, 6] + corner_m, used[:, 4] - used[:, 7] - corner_m
        counts = np.maximum(0, ((last - first) // step_m).astype(np.int64) + 1)
        street = np.repeat(np.arange(len(used)), counts)
        rank = np.arange(len(street)) - np.repeat(np.cumsum(counts) - counts, counts)
        position = first[street] + rank * step_m + random.uniform(0, 0.12 * step_m, len(street))
        kept = (random.random(len(street)) < keep) & (position < last[street] + 0.2 * step_m)
        street, position = street[kept], position[kept]
        chosen = used[street]
        lateral = side * (chosen[:, 5] + beyond_curb_m) + random.uniform(-scatter, scatter, len(street))
        part = np.zeros(len(street), dtype=OBJECT)
        part["x"] = chosen[:, 0] + chosen[:, 2] * position + chosen[:, 3] * lateral
        part["y"] = chosen[:, 1] + chosen[:, 3] * position - chosen[:, 2] * lateral
        # Cars drive and park on the right.  Side +1 is right of the direction of the street.
        part["direction"] = np.arctan2(side * chosen[:, 3], side * chosen[:, 2])
        part["kind"], part["chance"] = kind, chance
        part["size"] = random.uniform(*size, len(street))
        part["seed"] = random.integers(0, 2**31, len(street))
        parts.append(part)
    return np.concatenate(parts)


def _moving(streets: np.ndarray, random: np.random.Generator) -> np.ndarray:
    lanes = _along(streets, MOVING, 11.0, 6.0, 0.0, random, chance=0.07, size=(0.0, 1.0))
    half = np.repeat(0.0, len(lanes)) + 2.9  # from the curb to the center of the lane
    lanes["x"] -= half * np.sin(lanes["direction"])
    lanes["y"] += half * np.cos(lanes["direction"])
    return lanes


def _signals(lattice: Lattice, random: np.random.Generator) -> np.ndarray:
    """Traffic lights at two opposite corners of some crossings."""
    columns, rows = lattice.nodes.shape[:2]
    i, j = (index.reshape(-1) for index in np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"))
    chosen = random.random(len(i)) < 0.4
    i, j = i[chosen], j[chosen]
    part = np.zeros(2 * len(i), dtype=OBJECT)
    for half, sign in ((part[: len(i)], 1.0), (part[len(i) :], -1.0)):
        half["x"] = lattice.nodes[i, j, 0] + sign * (lattice.upward_half[i] + 0.7)
        half["y"] = lattice.nodes[i, j, 1] + sign * (lattice.across_half[j] + 0.7)
    part["kind"], part["chance"], part["size"] = SIGNAL, 1.0, 3.4
    part["seed"] = random.integers(0, 2**31, len(part))
    return part


def _park_trees(parks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    per_park = 16
    share = random.uniform(0.06, 0.94, (len(parks), per_park, 2, 1))
    a, b = share[:, :, 0], share[:, :, 1]
    p, q, r, s = (parks[:, None, corner] for corner in range(4))
    points = ((p * (1 - a) + q * a) * (1 - b) + (s * (1 - a) + r * a) * b).reshape(-1, 2)
    part = np.zeros(len(points), dtype=OBJECT)
    part["x"], part["y"], part["kind"], part["chance"] = points[:, 0], points[:, 1], TREE, 1.0
    part["size"] = random.uniform(5.5, 10.0, len(part))
    part["seed"] = random.integers(0, 2**31, len(part))
    return part
