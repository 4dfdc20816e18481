"""Check uncertain answers: match local features of the photo and of its matches, and verify their geometry.

docs/localization.md measures how many points that fit one geometry (inliers) confirm a match.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from cosplace.geo import ecef_from_lla, geodesic_distances_m, lla_from_ecef
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.photo_pixels import photo_pixels
from cosplace.localization.answers import Location, Match
from cosplace.localization.confidence import RADIUS_SHARE
from cosplace.localization.fusion import AGREE_M, radius_with_accuracy, share_within
from cosplace.localization.local_features import MIN_INLIERS, count_inliers, detect_features
from cosplace.retrieval.recall import RADIUS_M

NUM_COMPARED = 10  # matches
HIGH_CONFIDENCE = 0.9  # an answer with this confidence is not checked
CONFIRMED_CONFIDENCE = 0.95


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
        guess=None,
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
