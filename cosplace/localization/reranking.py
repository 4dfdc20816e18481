"""A second look at doubtful answers: local features of the photo and of its neighbours, matched and checked.

SIFT (Lowe 2004, as RootSIFT, Arandjelovic and Zisserman 2012), ratio test, epipolar geometry by MAGSAC++ (Barath et
al. 2020), all from OpenCV.  Two photos of one place share points that one geometry explains; others share a handful
by chance.  What the count of such points says about an answer was measured once (docs/localization.md).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cosplace.errors import ConfigError
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.photo_pixels import photo_pixels
from cosplace.localization.answers import Location, Match
from cosplace.localization.fusion import AGREE_M
from cosplace.localization.plane import ground_distances_m, in_space, on_ground

LONGER_SIDE = 640  # pixels that features are looked for in
MOST_FEATURES = 1500
RATIO = 0.8
THRESHOLD_PX = 1.5
NUM_COMPARED = 10  # neighbours
SURE = 0.9  # an answer of such confidence needs no second look
CONFIRMING_POINTS = 30  # no wrong neighbour shared as many; see docs/localization.md
CONFIRMED = 0.95  # confidence of an answer that they confirm


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Local features of one photo."""

    points: np.ndarray  # (n, 2) float32 pixels
    descriptors: np.ndarray  # (n, 128) float32


def require_opencv() -> Any:
    """OpenCV.  Raises ConfigError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise ConfigError("--rerank needs OpenCV: pip install 'cosplace[rerank]'.") from error
    return cv2


def find_features(photo: Any) -> Features:
    """Features of a photo (3, H, W) uint8."""
    cv2 = require_opencv()
    pixels = np.ascontiguousarray(np.asarray(photo).transpose(1, 2, 0))
    scale = LONGER_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    found, descriptors = cv2.SIFT_create(MOST_FEATURES).detectAndCompute(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None)
    if descriptors is None:
        return Features(points=np.empty((0, 2), np.float32), descriptors=np.empty((0, 128), np.float32))
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
    return Features(points=np.array([point.pt for point in found], np.float32), descriptors=roots)


def count_shared(a: Features, b: Features) -> int:
    """How many points of two photos one epipolar geometry explains."""
    cv2 = require_opencv()
    if min(len(a.points), len(b.points)) < 8:
        return 0
    pairs = cv2.BFMatcher().knnMatch(a.descriptors, b.descriptors, k=2)
    good = [pair[0] for pair in pairs if len(pair) == 2 and pair[0].distance < RATIO * pair[1].distance]
    if len(good) < 8:
        return 0
    ours = a.points[[match.queryIdx for match in good]]
    theirs = b.points[[match.trainIdx for match in good]]
    cv2.setRNGSeed(0)
    _, inside = cv2.findFundamentalMat(ours, theirs, cv2.USAC_MAGSAC, THRESHOLD_PX, 0.999, 2000)
    return 0 if inside is None else int(inside.sum())


def look_closer(index: PhotoIndex, location: Location, photo: Any, *, min_confidence: float) -> Location:
    """The answer after a second look, where the first is doubtful; photo: (3, H, W) uint8.

    When enough points are shared with a neighbour, the mean position of that neighbour and of the others like it near
    it is the answer, with a confidence of CONFIRMED; else the answer stays as it was.
    """
    compared = [neighbour for neighbour in location.neighbours if neighbour.latitude is not None][:NUM_COMPARED]
    if location.confidence >= SURE or not compared:
        return location
    features = find_features(photo)
    shared = []
    for neighbour in compared:
        pixels = photo_pixels(index, neighbour.id, neighbour.path)
        shared.append(0 if pixels is None else count_shared(features, find_features(pixels)))
    best = int(np.argmax(shared))
    if shared[best] < CONFIRMING_POINTS or min_confidence > CONFIRMED:
        return location
    latitudes = np.array([neighbour.latitude for neighbour in compared], np.float64)
    longitudes = np.array([neighbour.longitude for neighbour in compared], np.float64)
    near = ground_distances_m(latitudes, longitudes, latitudes[best], longitudes[best]) <= AGREE_M
    weights = np.where(near & (np.array(shared) >= CONFIRMING_POINTS), shared, 0)
    lat, lon = (
        float(value) for value in on_ground(np.average(in_space(latitudes, longitudes), axis=0, weights=weights))
    )
    return replace(
        location,
        latitude=lat,
        longitude=lon,
        radius_m=location.radius_m or AGREE_M,
        confidence=CONFIRMED,
        unknown=False,
        reason=f"confirmed by {shared[best]} points shared with {compared[best].path}",
        neighbours=tuple(_measured_from(neighbour, lat, lon) for neighbour in location.neighbours),
    )


def _measured_from(neighbour: Match, latitude: float, longitude: float) -> Match:
    if neighbour.latitude is None or neighbour.longitude is None:
        return neighbour
    away_m = float(ground_distances_m(neighbour.latitude, neighbour.longitude, latitude, longitude))
    return replace(neighbour, distance_m=away_m)
