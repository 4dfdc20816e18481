"""Similarities between the coordinates of a reconstruction and meters on the ground, estimated from positions.

Source: Umeyama, PAMI 1991, with RANSAC (Fischler and Bolles, 1981) against wrong positions.  Pure.
Legend: N cameras; targets are east, north and up in meters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cosplace.errors import DatasetError

MIN_POSITIONS = 4  # three positions fit a similarity nearly always
MIN_SHARE = 0.5  # of the positions that must agree
NUM_TRIALS = 500  # finds three of the agreeing half of the positions with a probability of 1 - 1e-29
NUM_REFINEMENTS = 5
MAX_COMPARED = 2000  # positions that rank the trials; all are used in the end
MAX_ANGLE_ERROR_DEG = 5.0
MIN_FLATNESS = 1e-3  # of the second extent to the first: less is a line


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """target = scale * rotation @ source + translation."""

    scale: float
    rotation: np.ndarray  # (3, 3)
    translation: np.ndarray  # (3,)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Transform points (..., 3)."""
        return self.scale * points @ self.rotation.T + self.translation


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """A similarity, and how well positions agree with it."""

    similarity: Similarity
    agree: np.ndarray  # (N,) bool: the positions that it was computed from
    residual_m: float  # horizontal, root mean square of the positions that agree
    angle_error: float  # degrees, estimate of the error of headings


Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Scale (...), rotation (..., 3, 3) and translation (..., 3)."""


def umeyama(sources: np.ndarray, targets: np.ndarray) -> Parts:
    """The similarities (...) of least squares between points (..., n, 3): scale, rotation, translation."""
    source_means, target_means = sources.mean(-2), targets.mean(-2)
    from_mean, to_mean = sources - source_means[..., None, :], targets - target_means[..., None, :]
    u, singular, vt = np.linalg.svd(np.swapaxes(to_mean, -1, -2) @ from_mean)
    signs = np.ones_like(singular)
    signs[..., 2] = np.where(np.linalg.det(u) * np.linalg.det(vt) < 0, -1, 1)  # a rotation, not a reflection
    rotation = (u * signs[..., None, :]) @ vt
    spread = (from_mean**2).sum((-1, -2))
    scale = np.divide((singular * signs).sum(-1), spread, out=np.zeros_like(spread), where=spread > 0)
    translation = target_means - scale[..., None] * (rotation @ source_means[..., None])[..., 0]
    return scale, rotation, translation


def upright_similarity(sources: np.ndarray, targets: np.ndarray) -> Parts:
    """As `umeyama`, for sources whose z axis points up: the rotation is about that axis.

    Scale and rotation are those of the horizontal positions, because heights are less accurate.
    """
    source_means, target_means = sources.mean(-2), targets.mean(-2)
    from_mean, to_mean = sources - source_means[..., None, :], targets - target_means[..., None, :]
    a, b = from_mean[..., 0] + 1j * from_mean[..., 1], to_mean[..., 0] + 1j * to_mean[..., 1]
    spread = (np.abs(a) ** 2).sum(-1)
    turn = np.divide((np.conj(a) * b).sum(-1), spread, out=np.zeros(spread.shape, complex), where=spread > 0)
    scale, angle = np.abs(turn), np.angle(turn)
    rotation = np.zeros((*scale.shape, 3, 3))
    rotation[..., 0, 0] = rotation[..., 1, 1] = np.cos(angle)
    rotation[..., 1, 0], rotation[..., 0, 1], rotation[..., 2, 2] = np.sin(angle), -np.sin(angle), 1
    translation = target_means - scale[..., None] * (rotation @ source_means[..., None])[..., 0]
    return scale, rotation, translation


def rotation_to_up(up: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) that turns a direction to the z axis."""
    up = up / np.linalg.norm(up)
    side = np.cross(up, [1.0, 0, 0] if abs(up[0]) < 0.9 else [0, 1.0, 0])
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(up, side), up])


def align(sources: np.ndarray, targets: np.ndarray, max_error_m: float, up: np.ndarray | None = None) -> Alignment:
    """The similarity that most positions (N, 3) agree with.  up: direction of the sources that points up, if known.

    A position agrees within max_error_m, horizontally.
    Raises DatasetError for too few positions, if fewer than half agree, and if they do not determine the directions
    because they are nearly on a line, or too inaccurate for their extent.
    """
    if len(sources) < MIN_POSITIONS:
        raise DatasetError(
            f"{len(sources)} photos with known positions are too few: at least {MIN_POSITIONS} are needed."
        )
    turned = rotation_to_up(up) if up is not None else np.eye(3)
    sources = sources @ turned.T
    fit = umeyama if up is None else upright_similarity
    agree = _largest_agreement(sources, targets, max_error_m, fit, 3 if up is None else 2)
    for _ in range(NUM_REFINEMENTS):
        if agree.sum() < max(MIN_POSITIONS, MIN_SHARE * len(sources)):
            raise DatasetError(
                f"only {int(agree.sum())} of {len(sources)} known positions agree within {max_error_m:g} m.",
                "use a larger --max_error_m",
            )
        parts = fit(sources[agree], targets[agree])
        errors_m = _errors_m(sources, targets, parts)
        if (agree == (errors_m <= max_error_m)).all():
            break
        agree = errors_m <= max_error_m
    scale, rotation, translation = parts
    residual_m = float(np.sqrt(np.mean(errors_m[agree] ** 2)))
    angle_error = _angle_error(float(scale) * sources[agree], residual_m, with_up=up is not None)
    if angle_error > MAX_ANGLE_ERROR_DEG:
        reason = "are nearly on a line" if np.isinf(angle_error) else "are too close together for their accuracy"
        raise DatasetError(f"the known positions {reason}: they do not determine the headings.")
    similarity = Similarity(scale=float(scale), rotation=rotation @ turned, translation=translation)
    return Alignment(similarity=similarity, agree=agree, residual_m=residual_m, angle_error=angle_error)


def _largest_agreement(
    sources: np.ndarray, targets: np.ndarray, max_error_m: float, fit: Callable[..., Parts], size: int
) -> np.ndarray:
    """Which positions agree with the best of many similarities that were each computed from a few positions, (N,)."""
    rng = np.random.default_rng(0)
    samples = np.argsort(rng.random((NUM_TRIALS, min(len(sources), 64))), axis=1)[:, :size]
    if len(sources) > 64:
        samples = rng.integers(0, len(sources), (NUM_TRIALS, size))
    compared = np.unique(np.linspace(0, len(sources) - 1, MAX_COMPARED).astype(np.int64))
    best, lowest = 0, np.inf
    scales, rotations, translations = fit(sources[samples], targets[samples])
    for trial in range(NUM_TRIALS):
        parts = scales[trial], rotations[trial], translations[trial]
        # Errors above the limit count as the limit: MSAC (Torr and Zisserman, 2000).
        cost = np.minimum(_errors_m(sources[compared], targets[compared], parts), max_error_m) ** 2
        if cost.sum() < lowest:
            best, lowest = trial, cost.sum()
    return _errors_m(sources, targets, (scales[best], rotations[best], translations[best])) <= max_error_m


def _errors_m(sources: np.ndarray, targets: np.ndarray, parts: Parts) -> np.ndarray:
    """Horizontal distances between transformed sources and targets, (N,)."""
    scale, rotation, translation = parts
    return np.linalg.norm((scale * sources @ rotation.T + translation - targets)[:, :2], axis=1)


def _angle_error(points_m: np.ndarray, residual_m: float, *, with_up: bool) -> float:
    """Estimate of the error of directions in degrees; infinite for points that do not determine them.

    Without a known vertical, the second extent counts: a rotation about a line through all positions changes nothing.
    """
    centered = points_m - points_m.mean(0)
    extents = np.linalg.svd(centered[:, :2] if with_up else centered, compute_uv=False)  # sum over all points
    extent = extents[0] if with_up else extents[1]
    if extents[0] == 0 or extent < MIN_FLATNESS * extents[0]:
        return np.inf
    # Two positions less, because a few always fit too well.
    return float(np.degrees(residual_m / extent) * np.sqrt(len(points_m) / (len(points_m) - 2)))
