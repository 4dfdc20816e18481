"""Matching points of a query and its first prediction, and of the query and its expected match, for the page's script.

The page has no matcher: the points are found when the page is written, for a limited number of queries, and the script
draws them.  A pair takes up to 700 bytes of the page, so the 2 pairs of 20 queries take up to 28 kB; all take up to
MATCH_BUDGET.
"""

import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cosplace.errors import ImageError
from cosplace.localization.local_features import MIN_INLIERS, LocalFeatures, detect_features, match_features
from cosplace.photos.image_list import ImageList
from cosplace.photos.opening import open_image
from cosplace.progress import Progress, no_progress
from cosplace.report.query_data import Queries

TASK = "matching local features"
MAX_POINTS = 40  # of a pair; more lines hide the photos
MATCH_BUDGET = 4_000_000  # bytes of all pairs, as JSON
AT_ONCE = 64  # queries, after which the size is checked
PER_SIDE = 1000  # a point is in thousandths of the width and of the height of a photo


def feature_matches(
    queries: Queries,
    photos: Collection[str],
    num_queries: int,
    progress: Progress = no_progress,
    *,
    budget: int = MATCH_BUDGET,
) -> dict[str, Any]:
    """The matching points of the first queries of the page's order, as plain values.  Needs OpenCV.

    photos: keys of the photos that the page has; see `query_data.page_photos`.  Pairs without both are left out.
    num_queries: with at least one pair.  budget: bytes, after which the other queries are only counted (`leftOut`).
    """
    chosen = _pairs_of_queries(queries, photos, num_queries)
    found: dict[str, Any] = {}
    wanted, done, size = list(chosen), 0, 0
    # Decoding and OpenCV release the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while done < len(wanted) and size < budget:
            some = wanted[done : done + AT_ONCE]
            for query, pairs in zip(
                some, pool.map(lambda one: _match_pairs(queries, one, chosen[one]), some), strict=True
            ):
                if pairs:
                    found[str(query)] = pairs
                    size += len(json.dumps(pairs, separators=(",", ":")))
                done += 1
                progress(TASK, done, len(wanted))
    if done < len(wanted):
        progress(TASK, len(wanted), len(wanted))
    return {"chanceBelow": MIN_INLIERS, "of": found, "leftOut": len(wanted) - done}


def _pairs_of_queries(queries: Queries, photos: Collection[str], num_queries: int) -> dict[int, dict[str, int]]:
    """The queries to compare, in order, with the database images to compare each with."""
    chosen: dict[int, dict[str, int]] = {}
    for query in queries.order.tolist():
        if len(chosen) == num_queries:
            break
        first, expected = int(queries.evaluation.predictions[query, 0]), int(queries.expected.images[query])
        images = {"first": first} if first == expected else {"first": first, "expected": expected}
        pairs = {name: image for name, image in images.items() if image >= 0 and f"d{image}" in photos}
        if pairs and f"q{query}" in photos:
            chosen[query] = pairs
    return chosen


def _match_pairs(queries: Queries, query: int, images: dict[str, int]) -> dict[str, Any]:
    """The matches of one query with some database images by name; without photos that cannot be opened."""
    features = _features(queries.dataset.queries, query)
    if features is None:
        return {}
    pairs = {}
    for name, image in images.items():
        other = _features(queries.dataset.database, image)
        if other is not None:
            pairs[name] = match_pair(features, other)
    return pairs


def _features(images: ImageList, row: int) -> LocalFeatures | None:
    try:
        return detect_features(open_image(images.path(row)))
    except ImageError:
        return None


def match_pair(query: LocalFeatures, image: LocalFeatures) -> dict[str, Any]:
    """The number of points that fit one geometry, and x, y in the query, x, y in the image of those to draw.

    In thousandths of the width and of the height.  Features at the same places, in several directions, are one point.
    """
    inliers = match_features(query, image)
    shares = (inliers + 0.5) / (*query.size, *image.size)  # pixels have their centers at whole numbers
    points = np.unique(np.clip(np.floor(shares * PER_SIDE), 0, PER_SIDE - 1).astype(np.int64), axis=0)
    return {"found": len(points), "points": spread(points, MAX_POINTS).reshape(-1).tolist()}


def spread(points: np.ndarray, number: int) -> np.ndarray:
    """The rows of points, (n, 4), that are spread best over the query (columns 0 and 1), (up to `number`, 4).

    The first is the point nearest to the middle of all, each other one the farthest from those that are chosen
    (Gonzalez 1985).  Only places in the query count: a few matches by chance, which point anywhere, are the most
    different ones in all four columns.
    """
    if len(points) <= number:
        return points
    places = points[:, :2].astype(np.float64)
    chosen = [int(((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin())]
    distances = np.full(len(points), np.inf)
    while len(chosen) < number:
        distances = np.minimum(distances, ((places - places[chosen[-1]]) ** 2).sum(axis=1))
        distances[chosen] = -1  # of points at one place, each once
        chosen.append(int(distances.argmax()))
    return points[np.sort(chosen)]
