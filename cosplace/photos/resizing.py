"""Resize photos to a shorter side: bilinear, with antialiasing.

The result is that of torchvision's `resize`, without importing torchvision, which takes longer than locating a photo.
"""

from collections.abc import Sequence
from pathlib import Path
from platform import machine

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cosplace.errors import PhotoSizeError

MAX_RESIZED_PIXELS = 16_000_000  # 5,000 x 10 pixels with a shorter side of 512 would take 25 GB in a network
MAX_ASPECT = 4  # panoramas up to this ratio are resized to any size
# Processors on which torch resizes uint8 images without converting them to floats.
RESIZES_BYTES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or machine() in ("aarch64", "arm64")


def resize_shorter_side(image: Tensor, size: int | None, name: str | Path = "the photo") -> Tensor:
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


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (..., 3, H, W), uint8 or float, to height x width pixels."""
    if image.shape[-2:] == (height, width):
        return image
    batch = image.reshape(-1, *image.shape[-3:])
    if len(batch) == 1 and batch.is_contiguous(memory_format=torch.channels_last):
        # The stride of a single image is ambiguous; with this one, torch keeps channels last and avoids a copy.
        batch = batch.as_strided(batch.shape, (batch.numel(), *batch.stride()[1:]))
    as_float = batch.dtype == torch.uint8 and not (batch.device.type == "cpu" and RESIZES_BYTES)
    resized = interpolate(batch.float() if as_float else batch, (height, width), mode="bilinear", antialias=True)
    if as_float:
        resized = resized.round_().to(torch.uint8)
    return resized.reshape(*image.shape[:-2], height, width)
