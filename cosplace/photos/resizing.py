"""Resize photos to a shorter side: bilinear, with antialiasing.

Tensors become what torchvision's `resize` makes of them, without importing torchvision, which takes longer than
locating a photo.  Arrays are resized by Pillow, without importing torch, and differ from these by one gray level,
rarely by two.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from platform import machine
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from cosplace.errors import PhotoSizeError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = TypeVar("Pixels", "Tensor", np.ndarray)
"""A photo (3, H, W) as it came: a tensor stays a tensor, an array stays an array."""

MAX_RESIZED_PIXELS = 16_000_000  # 5,000 x 10 pixels with a shorter side of 512 would take 25 GB in a network
MAX_ASPECT = 4  # panoramas up to this ratio are resized to any size


def resize_shorter_side(image: Pixels, size: int | None, name: str | Path = "the photo") -> Pixels:
    """Resize (..., 3, H, W) so that its shorter side has `size` pixels; None returns the image unchanged.

    name: for the PhotoSizeError of a photo that is too long and narrow (see `resized_shape`).
    """
    if size is None:
        return image
    height, width = image.shape[-2:]
    return resize(image, *resized_shape(height, width, size, name))


def resized_shape(height: int, width: int, size: int, name: str | Path = "the photo") -> tuple[int, int]:
    """Height and width of a photo after its shorter side is resized to `size` pixels.

    Raises PhotoSizeError for a photo that would then have more than MAX_RESIZED_PIXELS, unless its sides are at most
    MAX_ASPECT to 1.
    """
    shape = (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
    check_resized((height, width), shape, name)
    return shape


def check_resized(before: Sequence[int], after: Sequence[int], name: str | Path = "the photo") -> None:
    """Raise PhotoSizeError if resizing from one height and width to another gives too many pixels."""
    size = min(after)
    if after[0] * after[1] > max(MAX_RESIZED_PIXELS, MAX_ASPECT * size * size):
        raise PhotoSizeError(
            f"{name} is too long and narrow: its {before[1]} x {before[0]} pixels would become {after[1]} x {after[0]} "
            f"for a shorter side of {size}. Crop it."
        )


def batch_size_for(height: int, width: int, batch_size: int) -> int:
    """How many photos of one size to put into a batch: fewer of long and narrow ones, which have many more pixels."""
    aspect = max(height, width) / max(1, min(height, width))
    return max(1, int(batch_size * MAX_ASPECT / aspect)) if aspect > MAX_ASPECT else batch_size


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Resize (..., 3, H, W), a uint8 or float tensor, or an array (3, H, W) uint8, to height x width pixels."""
    if image.shape[-2:] == (height, width):
        return image
    if isinstance(image, np.ndarray):
        return cast(Pixels, _resize_array(image, height, width))
    return cast(Pixels, _resize_tensor(image, height, width))


def _resize_array(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _resize_tensor(image: "Tensor", height: int, width: int) -> "Tensor":
    import torch
    from torch.nn.functional import interpolate

    batch = image.reshape(-1, *image.shape[-3:])
    if len(batch) == 1 and batch.is_contiguous(memory_format=torch.channels_last):
        # The stride of a single image is ambiguous; with this one, torch keeps channels last and avoids a copy.
        batch = batch.as_strided(batch.shape, (batch.numel(), *batch.stride()[1:]))
    as_float = batch.dtype == torch.uint8 and not (batch.device.type == "cpu" and resizes_bytes())
    resized = interpolate(batch.float() if as_float else batch, (height, width), mode="bilinear", antialias=True)
    if as_float:
        resized = resized.round_().to(torch.uint8)
    return resized.reshape(*image.shape[:-2], height, width)


@cache
def resizes_bytes() -> bool:
    """Whether torch resizes uint8 images on this processor without converting them to floats."""
    import torch

    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or machine() in ("aarch64", "arm64")
