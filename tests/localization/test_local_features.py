"""Points of two photos that fit one geometry; photos without any."""

from typing import Any

import numpy as np
import pytest
import torch

from cosplace.localization.local_features import (
    MAX_RATIO,
    LocalFeatures,
    count_inliers,
    detect_features,
    distinct_matches,
    match_features,
)

cv2 = pytest.importorskip("cv2")


def features_at(points: np.ndarray) -> LocalFeatures:
    """Each point matches the point of the same row in another photo."""
    descriptors = np.eye(128, dtype=np.float32)[: len(points)]
    return LocalFeatures(points=points.astype(np.float32), descriptors=descriptors, size=(640, 480))


def test_points_that_move_together_fit_one_geometry() -> None:
    a = np.random.default_rng(0).uniform(0, 480, (40, 2))
    b = a + np.array([25, -10])
    b[:10] = np.random.default_rng(1).uniform(0, 480, (10, 2))
    found = match_features(features_at(a), features_at(b))
    is_moved = np.isclose(found[:, 2:] - found[:, :2], (25, -10), atol=1e-3).all(axis=1)
    assert is_moved.sum() == 30 and len(found) <= 33
    assert count_inliers(features_at(a), features_at(b)) == len(found)


def test_other_random_numbers_do_not_change_the_points() -> None:
    a, b = np.random.default_rng(2).uniform(0, 480, (2, 60, 2))
    first = match_features(features_at(a), features_at(b))
    cv2.setRNGSeed(99)
    match_features(features_at(b), features_at(a))
    np.testing.assert_array_equal(match_features(features_at(a), features_at(b)), first)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 2), (16, 16)])
def test_small_photos_have_no_points(size: tuple[int, int]) -> None:
    photo = torch.full((3, *size), 128, dtype=torch.uint8)
    features = detect_features(photo)
    assert features.points.shape == (0, 2) and max(features.size) == min(640, max(size))
    assert match_features(features, features).shape == (0, 4)


def test_points_without_a_geometry_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise cv2.error("Assertion failed: !model.empty()")  # as OpenCV 5.0 for some points on one line

    points = np.random.default_rng(3).uniform(0, 480, (20, 2))
    monkeypatch.setattr(cv2, "findFundamentalMat", fail)
    assert match_features(features_at(points), features_at(points)).shape == (0, 4)


@pytest.mark.parametrize("others", [2, 40])
def test_distinct_matches_are_those_of_opencv(others: int) -> None:
    random = np.random.default_rng(others)
    b = np.sqrt(random.dirichlet(np.full(128, 0.2), others)).astype(np.float32)
    near = b[random.integers(0, others, 30)] + random.normal(0, 0.02, (30, 128)).astype(np.float32)
    a = np.concatenate([b[:2], near, np.zeros((1, 128), np.float32), random.random((20, 128), np.float32)])
    pairs = [two[0] for two in cv2.BFMatcher().knnMatch(a, b, k=2) if two[0].distance < MAX_RATIO * two[1].distance]
    rows, nearest = distinct_matches(a, b)
    assert rows.tolist() == [pair.queryIdx for pair in pairs]
    assert nearest.tolist() == [pair.trainIdx for pair in pairs]
    assert len(rows) > 20
