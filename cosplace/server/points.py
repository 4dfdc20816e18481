"""The photos in a box of the map: each of them, or clusters where they are many.

Pure: arrays in, plain lists out.  Clusters are the cells of a grid on the map as it is drawn (Web Mercator), whose size
is a power of two: moving the map moves no cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

CELLS_ACROSS = 24  # of the longer side of a box, at least; at most twice as many
MAX_LATITUDE = 85.05  # where the drawn map ends

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees; west is larger than east where the box crosses the date line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The photos with a position, in memory: about 40 bytes each."""

    ids: np.ndarray  # (I,) int64
    latitudes: np.ndarray  # (I,) float64
    longitudes: np.ndarray  # (I,) float64
    headings: np.ndarray  # (I,) float32, nan where unknown
    heights: np.ndarray  # (I,) float64: latitudes as drawn, in degrees of longitude at the equator

    def __len__(self) -> int:
        return len(self.ids)

    def bounds(self) -> list[float] | None:
        """West, south, east, north of them all; None without any."""
        if not len(self):
            return None
        sides = self.longitudes.min(), self.latitudes.min(), self.longitudes.max(), self.latitudes.max()
        return [float(side) for side in sides]


def keep_points(ids: np.ndarray, latitudes: np.ndarray, longitudes: np.ndarray, headings: np.ndarray) -> Points:
    """Points of those photos that have a position."""
    known = np.isfinite(latitudes) & np.isfinite(longitudes)
    latitudes = np.asarray(latitudes, np.float64)[known]
    return Points(
        ids=np.asarray(ids, np.int64)[known],
        latitudes=latitudes,
        longitudes=np.asarray(longitudes, np.float64)[known],
        headings=np.asarray(headings, np.float32)[known],
        heights=drawn_height(latitudes),
    )


def drawn_height(latitudes: np.ndarray | float) -> np.ndarray:
    """Where Web Mercator draws a latitude, in degrees of longitude above the equator."""
    clipped = np.radians(np.clip(latitudes, -MAX_LATITUDE, MAX_LATITUDE))
    return np.degrees(np.arctanh(np.sin(clipped)))


def look(points: Points, box: Box | None, limit: int) -> dict[str, Any]:
    """What the map shows of a box: {"total", "points", "clusters"}.

    limit: points and clusters together, at most (4 or more: around a corner of the grid there are 4 cells of any size).
    """
    west, south, east, north = box or (-180.0, -90.0, 180.0, 90.0)
    inside = (points.latitudes >= south) & (points.latitudes <= north)
    if west <= east:
        inside &= (points.longitudes >= west) & (points.longitudes <= east)
    else:
        inside &= (points.longitudes >= west) | (points.longitudes <= east)
    rows = np.flatnonzero(inside)
    if len(rows) <= limit:
        return {"total": len(rows), "points": _as_points(points, rows), "clusters": []}
    longitudes = points.longitudes[rows]
    if west > east:  # the far side of the date line continues the near one
        longitudes = np.where(longitudes < west, longitudes + 360, longitudes)
    alone, clusters = _cluster(rows, longitudes, points.heights[rows], points.latitudes[rows], limit)
    return {"total": len(rows), "points": _as_points(points, alone), "clusters": clusters}


def _as_points(points: Points, rows: np.ndarray) -> list[dict[str, Any]]:
    columns: Sequence[list[Any]] = [
        points.ids[rows].tolist(),
        points.latitudes[rows].tolist(),
        points.longitudes[rows].tolist(),
        points.headings[rows].astype(np.float64).round(1).tolist(),
    ]
    return [
        {"id": number, "latitude": latitude, "longitude": longitude, "heading": None if isnan(heading) else heading}
        for number, latitude, longitude, heading in zip(*columns, strict=True)
    ]


def _cluster(
    rows: np.ndarray, longitudes: np.ndarray, heights: np.ndarray, latitudes: np.ndarray, limit: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(rows that are alone in their cell, clusters of the others)."""
    longest = max(float(np.ptp(longitudes)), float(np.ptp(heights)), 1e-7)
    cell = 2.0 ** np.floor(np.log2(longest / CELLS_ACROSS))
    while True:
        keys = (
            np.floor(longitudes / cell).astype(np.int64) << 32 | np.floor(heights / cell).astype(np.int64) & 0xFFFFFFFF
        )
        _, first, group, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        if len(counts) <= max(limit, 4):
            break
        cell *= 2
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    x, y = longitudes[order], latitudes[order]
    sides = [
        np.minimum.reduceat(x, starts),
        np.minimum.reduceat(y, starts),
        np.maximum.reduceat(x, starts),
        np.maximum.reduceat(y, starts),
    ]
    middles = np.add.reduceat(y, starts) / counts, np.add.reduceat(x, starts) / counts
    many = np.flatnonzero(counts > 1)
    clusters = [
        {
            "latitude": float(middles[0][place]),
            "longitude": _wrapped(middles[1][place]),
            "count": int(counts[place]),
            "bbox": [
                _wrapped(sides[0][place]),
                float(sides[1][place]),
                _wrapped(sides[2][place]),
                float(sides[3][place]),
            ],
        }
        for place in many.tolist()
    ]
    return rows[first[counts == 1]], clusters


def _wrapped(longitude: float) -> float:
    """A longitude between -180 and 180."""
    return float(longitude - 360 if longitude > 180 else longitude)
