"""Find the indexed photos in a box of the map: points, or where there are too many, clusters or a density.

Pure: arrays in, lists out.  A density is the number of photos in each cell of a fine grid.  Clusters are the cells of
a coarse one.  Both are grids in the map's projection (Web Mercator).  The size of a cell is a power of two, so cells do
not move when the map moves.
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
    """The photos with a position, in memory: about 50 bytes per photo."""

    ids: np.ndarray  # (I,) int64
    latitudes: np.ndarray  # (I,) float64
    longitudes: np.ndarray  # (I,) float64
    headings: np.ndarray  # (I,) float32, nan where unknown
    times: np.ndarray  # (I,) float64 seconds since 1970 (UTC), nan where unknown
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
        times=np.asarray(columns.times, np.float64)[has_position],
        mercator_y=to_mercator_y(latitudes),
    )


def to_mercator_y(latitudes: np.ndarray | float) -> np.ndarray:
    """Return the distance from the equator on a Web Mercator map, in degrees of longitude."""
    clipped = np.radians(np.clip(latitudes, -MAX_LATITUDE, MAX_LATITUDE))
    return np.degrees(np.arctanh(np.sin(clipped)))


def times_of(points: MapPoints) -> list[float] | None:
    """Return the first and the last time, in seconds since 1970; None if no time is known."""
    known = points.times[np.isfinite(points.times)]
    return [float(known.min()), float(known.max())] if len(known) else None


def find_in_box(
    points: MapPoints,
    box: Box | None,
    limit: int,
    *,
    after: float | None = None,
    before: float | None = None,
    ids: np.ndarray | None = None,
    cells: int | None = None,
    sample: int | None = None,
) -> dict[str, Any]:
    """Return {"total", "points", "clusters"} of a box; None: of the world.

    limit: points and clusters together, at least 4: around a corner of the grid there are 4 cells of any size.
    after, before: only photos of these times, in seconds since 1970, inclusive.  ids: only these photos.
    cells: above the limit, return "density" in place of clusters, with at most about this many cells per side.
    sample: return at most this many of the photos, spread evenly over their ids, and neither clusters nor a density.
    """
    west, south, east, north = box or (-180.0, -90.0, 180.0, 90.0)
    inside = (points.latitudes >= south) & (points.latitudes <= north)
    if west <= east:
        inside &= (points.longitudes >= west) & (points.longitudes <= east)
    else:
        inside &= (points.longitudes >= west) | (points.longitudes <= east)
    if after is not None:
        inside &= points.times >= after
    if before is not None:
        inside &= points.times <= before
    if ids is not None:
        inside &= np.isin(points.ids, ids)
    rows = np.flatnonzero(inside)
    if sample is not None and len(rows) > sample:
        chosen = rows[np.linspace(0, len(rows) - 1, sample).astype(np.int64)]
        return {"total": len(rows), "points": _as_json(points, chosen), "clusters": []}
    if len(rows) <= limit:
        return {"total": len(rows), "points": _as_json(points, rows), "clusters": []}
    longitudes = points.longitudes[rows]
    if west > east:  # make longitudes continuous across the antimeridian
        longitudes = np.where(longitudes < west, longitudes + 360, longitudes)
    if cells is not None:
        width = 360.0 if east - west >= 360 else (east - west) % 360
        height = float(np.ptp(to_mercator_y(np.array([south, north]))))
        density = _density(longitudes, points.mercator_y[rows], max(width, height, 1e-7) / 360, cells)
        return {"total": len(rows), "points": [], "clusters": [], "density": density}
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


def _density(longitudes: np.ndarray, mercator_y: np.ndarray, side: float, cells: int) -> dict[str, Any]:
    """Return {"level", "cells"}: the world is 2**level cells wide and high; cells is [x, y, count, x, y, count, ...].

    x counts from 180 degrees west, y from the north.  side: longer side of the box, as a share of the world's width.
    """
    level = max(0, min(30, int(np.floor(np.log2(cells / side)))))
    num_cells = 1 << level
    x = np.floor((longitudes + 180) / 360 * num_cells).astype(np.int64)
    y = np.floor((0.5 - mercator_y / 360) * num_cells).astype(np.int64)
    left, top, height = int(x.min()), int(y.min()), int(np.ptp(y)) + 1
    keys, counts = np.unique((x - left) * height + (y - top), return_counts=True)
    columns = [(keys // height + left) % num_cells, keys % height + top, counts]
    return {"level": level, "cells": np.stack(columns, 1).ravel().tolist()}


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
