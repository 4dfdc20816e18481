"""Resize photos to a shorter side: bilinear, with antialiasing.

The result is that of torchvision's `resize`, without importing torchvision, which takes longer than locating a photo.
"""

from platform import machine

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Processors on which torch resizes uint8 images without converting them to floats.
RESIZES_BYTES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or machine() in ("aarch64", "arm64")


def resize_shorter_side(image: Tensor, size: int | None) -> Tensor:
    """Resize (..., 3, H, W) so that its shorter side has `size` pixels; None returns the image unchanged."""
    if size is None:
        return image
    height, width = image.shape[-2:]
    if height <= width:
        return resize(image, size, int(size * width / height))
    return resize(image, int(size * height / width), size)


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
