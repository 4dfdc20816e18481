"""Normalization by the mean and standard deviation of ImageNet, which all backbones expect."""

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision rounds it


def normalize(images: Tensor) -> Tensor:
    """Normalize images (..., 3, H, W), uint8 or float in [0, 1]; returns a new float32 tensor.

    On the CPU, images in the memory layout of decoders (..., H, W, 3) keep that layout.
    """
    pixels = images.movedim(-3, -1)  # (..., H, W, 3)
    if images.device.type != "cpu" or not pixels.is_contiguous():
        return normalize_in_place(to_unit_floats(images))
    # Rows of 3 W numbers with constants of that length: contiguous, while a single channel is every third number.
    rows = to_unit_floats(pixels.flatten(-2))
    mean, std = (torch.tensor(values).repeat(pixels.shape[-2]) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return rows.sub_(mean).div_(std).view(pixels.shape).movedim(-1, -3)


def normalize_in_place(images: Tensor) -> Tensor:
    """Normalize float images (..., 3, H, W) in [0, 1] in place."""
    # Plain numbers: a tensor of constants would have to be sent to the device first.
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        images.select(-3, channel).sub_(mean).div_(std)
    return images


def to_unit_floats(images: Tensor) -> Tensor:
    """Copy images as contiguous float32 in [0, 1]."""
    floats = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return floats if images.is_floating_point() else floats.div_(255)
