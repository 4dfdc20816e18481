"""Check doubtful answers: match local features of the photo and of its matches, and verify their geometry.

SIFT (Lowe 2004) as RootSIFT (Arandjelovic and Zisserman 2012), ratio test, epipolar geometry by MAGSAC++ (Barath et
al. 2020), all from OpenCV.  In two photos of one place, many points fit one geometry (inliers); in others, a few fit by
chance.  docs/localization.md measures how many inliers confirm a match.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
from torch import Tensor

from cosplace.errors import ConfigError
from cosplace.geo import ecef_from_lla, geodesic_distances_m, lla_from_ecef
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.photo_pixels import photo_pixels
from cosplace.localization.answers import Location, Match
from cosplace.localization.confidence import RADIUS_SHARE
from cosplace.localization.fusion import AGREE_M, radius_with_accuracy, share_within
from cosplace.retrieval.recall import RADIUS_M

MAX_SIDE = 640  # pixels; larger photos are resized
MAX_FEATURES = 1500
MAX_RATIO = 0.8  # of the distances to the nearest and to the second nearest feature
THRESHOLD_PX = 1.5
NUM_COMPARED = 10  # matches
HIGH_CONFIDENCE = 0.9  # an answer with this confidence is not checked
MIN_INLIERS = 30  # no wrong match had this number; see docs/localization.md
CONFIRMED_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFeatures:
    """Local features of one photo."""

    points: np.ndarray  # (n, 2) float32 pixels
    descriptors: np.ndarray  # (n, 128) float32


def require_opencv() -> ModuleType:
    """Import OpenCV.  Raises ConfigError if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise ConfigError("--rerank needs OpenCV. Run `pip install 'cosplace[rerank]'`.") from error
    return cv2


def rerank(index: PhotoIndex, location: Location, photo: Tensor, *, min_confidence: float) -> Location:
    """Check a doubtful answer with local features; photo: (3, H, W) uint8.

    If a match has enough inliers, the answer is the mean position of that match and of those near it with enough
    inliers, with CONFIRMED_CONFIDENCE.  Otherwise the answer does not change.
    """
    compared = [match for match in location.neighbours if match.latitude is not None][:NUM_COMPARED]
    if location.confidence >= HIGH_CONFIDENCE or not compared:
        return location
    inliers = np.array(_count_inliers_of_matches(index, compared, photo))
    best = int(inliers.argmax())
    if inliers[best] < MIN_INLIERS or min_confidence > CONFIRMED_CONFIDENCE:
        return location
    latitudes = np.array([match.latitude for match in compared], np.float64)
    longitudes = np.array([match.longitude for match in compared], np.float64)
    near = geodesic_distances_m(latitudes, longitudes, latitudes[best], longitudes[best]) <= AGREE_M
    weights = np.where(near & (inliers >= MIN_INLIERS), inliers, 0)
    accuracies_m = np.array([match.accuracy_m or 0.0 for match in compared])
    accuracy_m = np.sqrt(np.average(accuracies_m**2, weights=weights, keepdims=True))
    confidence = CONFIRMED_CONFIDENCE * float(share_within(RADIUS_M, accuracy_m)[0])
    if min_confidence > confidence:
        return location
    radius_m = radius_with_accuracy(np.array([location.radius_m or AGREE_M]), accuracy_m, RADIUS_SHARE)
    mean = lla_from_ecef(np.average(ecef_from_lla(latitudes, longitudes), axis=0, weights=weights))
    latitude, longitude = float(mean[0]), float(mean[1])
    return replace(
        location,
        latitude=latitude,
        longitude=longitude,
        radius_m=float(radius_m[0]),
        confidence=confidence,
        unknown=False,
        reason=f"confirmed by {inliers[best]} local features shared with {compared[best].path}",
        neighbours=tuple(_with_distance(match, latitude, longitude) for match in location.neighbours),
    )


def _count_inliers_of_matches(index: PhotoIndex, matches: Sequence[Match], photo: Tensor) -> list[int]:
    """Inliers of each match; 0 for a photo that cannot be read."""
    features = detect_features(photo)
    counts = []
    for match in matches:
        pixels = photo_pixels(index, match.id, match.path)
        counts.append(0 if pixels is None else count_inliers(features, detect_features(pixels)))
    return counts


def _with_distance(match: Match, latitude: float, longitude: float) -> Match:
    if match.latitude is None or match.longitude is None:
        return match
    distance_m = float(geodesic_distances_m(match.latitude, match.longitude, latitude, longitude))
    return replace(match, distance_m=distance_m)


def detect_features(photo: Tensor) -> LocalFeatures:
    """Detect and describe local features of a photo (3, H, W) uint8."""
    cv2 = require_opencv()
    pixels = np.ascontiguousarray(np.asarray(photo).transpose(1, 2, 0))
    scale = MAX_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    keypoints, descriptors = cv2.SIFT_create(MAX_FEATURES).detectAndCompute(gray, None)
    if descriptors is None:
        return LocalFeatures(points=np.empty((0, 2), np.float32), descriptors=np.empty((0, 128), np.float32))
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
    return LocalFeatures(points=np.array([keypoint.pt for keypoint in keypoints], np.float32), descriptors=roots)


def count_inliers(a: LocalFeatures, b: LocalFeatures) -> int:
    """Number of points of two photos that fit one epipolar geometry."""
    cv2 = require_opencv()
    if min(len(a.points), len(b.points)) < 8:
        return 0
    nearest_two = cv2.BFMatcher().knnMatch(a.descriptors, b.descriptors, k=2)
    good = [two[0] for two in nearest_two if len(two) == 2 and two[0].distance < MAX_RATIO * two[1].distance]
    if len(good) < 8:
        return 0
    a_points = a.points[[pair.queryIdx for pair in good]]
    b_points = b.points[[pair.trainIdx for pair in good]]
    cv2.setRNGSeed(0)
    _, is_inlier = cv2.findFundamentalMat(a_points, b_points, cv2.USAC_MAGSAC, THRESHOLD_PX, 0.999, 2000)
    return 0 if is_inlier is None else int(is_inlier.sum())
