"""Find the indexed photos in a box of the map: points, or clusters where there are too many.

Pure: arrays in, lists out.  Clusters are the cells of a grid in the map's projection (Web Mercator).  The size of a
cell is a power of two, so cells do not move when the map moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from cosplace.geo import Box
from cosplace.index.records import Columns

MIN_CELLS_ACROSS = 24  # along the longer side of a box; there are fewer than twice as many
MAX_LATITUDE = 85.05  # limit of the map's projection


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPoints:
    """The photos with a position, in memory: about 40 bytes per photo."""

    ids: np.ndarray  # (I,) int64
    latitudes: np.ndarray  # (I,) float64
    longitudes: np.ndarray  # (I,) float64
    headings: np.ndarray  # (I,) float32, nan where unknown
    mercator_y: np.ndarray  # (I,) float64: latitudes in the map's projection

    def __len__(self) -> int:
        return len(self.ids)


def map_points(columns: Columns) -> MapPoints:
    """Return the photos of an index that have a position."""
    has_position = np.isfinite(columns.latitudes) & np.isfinite(columns.longitudes)
    latitudes = np.asarray(columns.latitudes, np.float64)[has_position]
    return MapPoints(
        ids=np.asarray(columns.ids, np.int64)[has_position],
        latitudes=latitudes,
        longitudes=np.asarray(columns.longitudes, np.float64)[has_position],
        headings=np.asarray(columns.headings, np.float32)[has_position],
        mercator_y=to_mercator_y(latitudes),
    )


def to_mercator_y(latitudes: np.ndarray | float) -> np.ndarray:
    """Return the distance from the equator on a Web Mercator map, in degrees of longitude."""
    clipped = np.radians(np.clip(latitudes, -MAX_LATITUDE, MAX_LATITUDE))
    return np.degrees(np.arctanh(np.sin(clipped)))


def find_in_box(points: MapPoints, box: Box | None, limit: int) -> dict[str, Any]:
    """Return {"total", "points", "clusters"} of a box; None: of the world.

    limit: points and clusters together, at least 4: around a corner of the grid there are 4 cells of any size.
    """
    west, south, east, north = box or (-180.0, -90.0, 180.0, 90.0)
    inside = (points.latitudes >= south) & (points.latitudes <= north)
    if west <= east:
        inside &= (points.longitudes >= west) & (points.longitudes <= east)
    else:
        inside &= (points.longitudes >= west) | (points.longitudes <= east)
    rows = np.flatnonzero(inside)
    if len(rows) <= limit:
        return {"total": len(rows), "points": _as_json(points, rows), "clusters": []}
    longitudes = points.longitudes[rows]
    if west > east:  # make longitudes continuous across the antimeridian
        longitudes = np.where(longitudes < west, longitudes + 360, longitudes)
    single, clusters = _cluster(rows, longitudes, points.mercator_y[rows], points.latitudes[rows], limit)
    return {"total": len(rows), "points": _as_json(points, single), "clusters": clusters}


def _as_json(points: MapPoints, rows: np.ndarray) -> list[dict[str, Any]]:
    columns: Sequence[list[Any]] = [
        points.ids[rows].tolist(),
        points.latitudes[rows].tolist(),
        points.longitudes[rows].tolist(),
        points.headings[rows].astype(np.float64).round(1).tolist(),
    ]
    return [
        {"id": photo_id, "latitude": latitude, "longitude": longitude, "heading": None if isnan(heading) else heading}
        for photo_id, latitude, longitude, heading in zip(*columns, strict=True)
    ]


def _cluster(
    rows: np.ndarray, longitudes: np.ndarray, mercator_y: np.ndarray, latitudes: np.ndarray, limit: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the rows that are alone in their cell, and clusters of the others."""
    longer_side = max(float(np.ptp(longitudes)), float(np.ptp(mercator_y)), 1e-7)
    cell = 2.0 ** np.floor(np.log2(longer_side / MIN_CELLS_ACROSS))
    while True:
        keys = (
            np.floor(longitudes / cell).astype(np.int64) << 32
            | np.floor(mercator_y / cell).astype(np.int64) & 0xFFFFFFFF
        )
        _, first, group, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        if len(counts) <= max(limit, 4):
            break
        cell *= 2
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    x, y = longitudes[order], latitudes[order]
    mean_x, mean_y = np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts
    min_x, max_x = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
    min_y, max_y = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    clusters = [
        {
            "latitude": float(mean_y[k]),
            "longitude": _wrap(mean_x[k]),
            "count": int(counts[k]),
            "bbox": [_wrap(min_x[k]), float(min_y[k]), _wrap(max_x[k]), float(max_y[k])],
        }
        for k in np.flatnonzero(counts > 1).tolist()
    ]
    return rows[first[counts == 1]], clusters


def _wrap(longitude: float) -> float:
    """Return the same longitude, at most 180."""
    return float(longitude - 360 if longitude > 180 else longitude)
