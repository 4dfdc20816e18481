"""Resampling of images, feature maps and positions as products with small matrices.

A separable resampling of a map with S rows to N rows is a matrix (N, S) of weights, and the same for columns.  The
weights are those of torch's `interpolate` (and of Pillow with antialias): bilinear, or bicubic by Keys, "Cubic
Convolution Interpolation for Digital Image Processing", 1981, with a = -0.75, with antialias a = -0.5.  As a product,
the same code runs at any size, is differentiable, and can be exported with dynamic sizes, which `interpolate` with a
scale factor or with antialias cannot in every format.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

Weights = Callable[[int, int, float | Tensor], Tensor]
"""Size, source size and offset -> matrix (size, source)."""
CACHED_MATRICES = 64  # one per pair of sizes; each has at most some hundred kilobytes


def resample(maps: Tensor, height: int, width: int) -> Tensor:
    """Resample maps (..., H, W) to (..., height, width): bilinear with antialias, without aligned corners."""
    rows = bilinear_weights(height, maps.shape[-2], maps)
    columns = bilinear_weights(width, maps.shape[-1], maps)
    return rows @ maps @ columns.T


def bilinear_weights(size: int, source: int, like: Tensor) -> Tensor:
    """Matrix (size, source) of the bilinear resampling with antialias, with the type and device of `like`."""
    return _matrix(_bilinear, size, source, 0.0, like)


def bicubic_weights(size: int, source: int, like: Tensor, *, offset: float | Tensor, antialias: bool) -> Tensor:
    """Matrix (size, source) of a bicubic resampling, with the type and device of `like`.

    offset: the scale is (size + offset) / source, as DINOv2 computes it; antialias widens the kernel when the map
    becomes smaller, and needs offset 0.
    """
    return _matrix(_bicubic_antialias if antialias else _bicubic, size, source, offset, like)


def _matrix(weights: Weights, size: int, source: int, offset: float | Tensor, like: Tensor) -> Tensor:
    # While a network is exported, sizes are symbols, which must stay in the program.
    if torch.compiler.is_compiling() or isinstance(offset, Tensor):
        matrix = weights(size, source, offset)
    else:
        matrix = _cached(weights, size, source, offset)
    return matrix.to(like)


@lru_cache(maxsize=CACHED_MATRICES)
def _cached(weights: Weights, size: int, source: int, offset: float) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # a tensor of inference mode could not be used in training
        return weights(size, source, offset)


def _bilinear(size: int, source: int, offset: float | Tensor) -> Tensor:
    distances = _distances(size, source)
    return _normalized((1 - distances.abs()).clamp(min=0))


def _bicubic_antialias(size: int, source: int, offset: float | Tensor) -> Tensor:
    return _normalized(_cubic(_distances(size, source), -0.5))


def _distances(size: int, source: int) -> Tensor:
    """Distance (size, source) of each source pixel from each target pixel, in widths of the kernel."""
    ones = torch.ones(size)
    scale = torch.ones(source).sum() / ones.sum()
    centers = (torch.arange(size) + 0.5) * scale  # in source pixels
    return (torch.arange(source) + 0.5 - centers[:, None]) / scale.clamp(min=1)


def _normalized(weights: Tensor) -> Tensor:
    return weights / weights.sum(1, keepdim=True)


def _bicubic(size: int, source: int, offset: float | Tensor) -> Tensor:
    """Four taps around each target pixel; taps beyond the border use the pixel at the border."""
    # In the precision of torch, whose positions the released weights were trained with.
    step = (source / (torch.ones(size, dtype=torch.float64).sum() + offset)).float()
    centers = (torch.arange(size) + 0.5) * step - 0.5
    taps = centers.floor()[:, None] + torch.arange(-1, 3)  # (size, 4)
    weights = _cubic(taps - centers[:, None], -0.75)
    chosen = taps.clamp(0, source - 1)[:, :, None] == torch.arange(source)  # (size, 4, source)
    return (weights[:, :, None] * chosen).sum(1)


def _cubic(distances: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel at a distance in pixels."""
    x = distances.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
