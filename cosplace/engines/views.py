"""Descriptors averaged over copies of a photo, with numpy: as `models.averaging`, for engines without torch.

Legend: B photos, D descriptor dimension.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np


def averaged_views(
    describe: Callable[[np.ndarray], np.ndarray], images: np.ndarray, scales: Sequence[float], *, flip: bool
) -> np.ndarray:
    """Average the descriptors (B, D) of images (B, 3, H, W) at several scales, and of their mirror images.

    images: of any type for scale 1 alone; floats for other scales.
    """
    total: np.ndarray | None = None
    for scale in scales:
        scaled = images if scale == 1 else _resized(images, scale)
        for view in (scaled, np.ascontiguousarray(scaled[..., ::-1])) if flip else (scaled,):
            descriptors = unit_rows(describe(view))
            total = descriptors if total is None else total + descriptors
    assert total is not None
    return unit_rows(total)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (B, D) of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)


def _resized(images: np.ndarray, scale: float) -> np.ndarray:
    """Bilinear with antialias, as products of matrices."""
    height, width = images.shape[-2:]
    rows, columns = (_weights(max(1, round(scale * side)), side) for side in (height, width))
    return np.ascontiguousarray(rows @ images @ columns.T)


@lru_cache(maxsize=64)
def _weights(size: int, source: int) -> np.ndarray:
    """Matrix (size, source) float32 of a bilinear resampling, as in `models.resampling`."""
    scale = source / size
    centers = (np.arange(size) + 0.5) * scale  # in source pixels
    distances = (np.arange(source) + 0.5 - centers[:, None]) / max(scale, 1)
    weights = (1 - np.abs(distances)).clip(min=0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
