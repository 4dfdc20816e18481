"""Local features of two photos, and those of their matches that fit one geometry.

SIFT (Lowe 2004) as RootSIFT (Arandjelovic and Zisserman 2012), ratio test, epipolar geometry by MAGSAC++ (Barath et
al. 2020), all from OpenCV.  In two photos of one place, many points fit one geometry (inliers); in others, a few fit by
chance.  The same photos give the same result: the random numbers of MAGSAC++ start from a fixed seed.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from torch import Tensor

from cosplace.errors import ConfigError

MAX_SIDE = 640  # pixels; larger photos are resized
MAX_FEATURES = 1500
MAX_RATIO = 0.8  # of the distances to the nearest and to the second nearest feature
THRESHOLD_PX = 1.5
MIN_INLIERS = 30  # no wrong match had this number; see docs/localization.md


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFeatures:
    """Local features of one photo."""

    points: np.ndarray  # (n, 2) float32 pixels: across and down from the center of the first pixel
    descriptors: np.ndarray  # (n, 128) float32
    size: tuple[int, int]  # pixels, width and height of the photo that `points` refers to


def has_opencv() -> bool:
    """Whether OpenCV is installed."""
    try:
        import cv2  # noqa: F401
    except ImportError:
        return False
    return True


def require_opencv() -> ModuleType:
    """Import OpenCV.  Raises ConfigError if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise ConfigError("--rerank needs OpenCV. Run `pip install 'cosplace[rerank]'`.") from error
    return cv2


def detect_features(photo: Tensor) -> LocalFeatures:
    """Detect and describe local features of a photo (3, H, W) uint8."""
    cv2 = require_opencv()
    pixels = np.ascontiguousarray(np.asarray(photo).transpose(1, 2, 0))
    scale = MAX_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    size = (gray.shape[1], gray.shape[0])
    keypoints, descriptors = cv2.SIFT_create(MAX_FEATURES).detectAndCompute(gray, None)
    if descriptors is None:
        return LocalFeatures(points=np.empty((0, 2), np.float32), descriptors=np.empty((0, 128), np.float32), size=size)
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)
    return LocalFeatures(points=points, descriptors=roots, size=size)


def match_features(a: LocalFeatures, b: LocalFeatures) -> np.ndarray:
    """Points of two photos that fit one epipolar geometry, (n, 4) float32: x and y in a, x and y in b, in pixels."""
    cv2 = require_opencv()
    nothing = np.empty((0, 4), np.float32)
    if min(len(a.points), len(b.points)) < 8:
        return nothing
    a_rows, b_rows = distinct_matches(a.descriptors, b.descriptors)
    if len(a_rows) < 8:
        return nothing
    a_points, b_points = a.points[a_rows], b.points[b_rows]
    cv2.setRNGSeed(0)
    try:
        _, is_inlier = cv2.findFundamentalMat(a_points, b_points, cv2.USAC_MAGSAC, THRESHOLD_PX, 0.999, 2000)
    except cv2.error:  # of some points on one line, for which no geometry is found
        return nothing
    if is_inlier is None:
        return nothing
    return np.concatenate([a_points, b_points], axis=1)[is_inlier.ravel() > 0]


def distinct_matches(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m,) of a (n, 128) whose nearest row of b is much nearer than the second nearest, and these rows of b (m,).

    As OpenCV's BFMatcher finds them, in a third of its time.  b has at least two rows.
    """
    squares = np.einsum("nd,nd->n", b, b) - 2 * (a @ b.T)  # (n, rows of b): squared distances without the square of a
    rows = np.arange(len(a))
    nearest = squares.argmin(axis=1)
    first = squares[rows, nearest]
    squares[rows, nearest] = np.inf
    second, own = squares.min(axis=1), np.einsum("nd,nd->n", a, a)
    kept = np.maximum(first + own, 0) < MAX_RATIO**2 * (second + own)
    return rows[kept], nearest[kept]


def count_inliers(a: LocalFeatures, b: LocalFeatures) -> int:
    """Number of points of two photos that fit one epipolar geometry."""
    return len(match_features(a, b))
