"""Photos as another camera would have taken them, and images that show no place: queries for calibration.

Without torchvision, whose import takes longer than that of torch.
"""

import math

import numpy as np
import torch
from torch import Tensor

from cosplace.photos.resizing import resize, resized_shape
from cosplace.training.augmentation import jitter

MIN_CROP = 0.6  # share of the area
MAX_LOG_RATIO = 0.1  # change of width / height, as a logarithm
LIGHT = ((-0.6, 0.5), (-0.5, 0.4), (-0.6, 0.4), (-0.5, 0.5))  # logarithms of brightness, contrast, saturation, gamma
HUE = 0.03  # in turns
IMAGE_SIDE = 256  # pixels


def alter_photo(photo: Tensor, rng: np.random.Generator, size: int | None = None) -> Tensor:
    """A photo (3, H, W) uint8 in other light and another crop.

    size: its shorter side afterwards, in pixels, so that the light of fewer pixels has to change; None: of the same
    size.  Raises PhotoSizeError for a photo that is too long and narrow for that.
    """
    height, width = photo.shape[1:]
    shape = (height, width) if size is None else resized_shape(height, width, size)
    scale, ratio = math.sqrt(rng.uniform(MIN_CROP, 1)), math.exp(rng.uniform(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    crop = max(1, min(height, round(height * scale * ratio))), max(1, min(width, round(width * scale / ratio)))
    top, left = (int(rng.integers(0, full - part + 1)) for full, part in zip((height, width), crop, strict=True))
    photo = resize(photo[:, top : top + crop[0], left : left + crop[1]], *shape)
    brightness, contrast, saturation, gamma = (math.exp(rng.uniform(*limits)) for limits in LIGHT)
    hue = float(rng.uniform(-HUE, HUE))
    values = jitter(photo[None], torch.tensor([[brightness, contrast, saturation, hue]]))[0].pow_(gamma)
    return values.mul_(255).round_().to(torch.uint8)


def images_without_place(count: int, rng: np.random.Generator, side: int = IMAGE_SIDE) -> list[Tensor]:
    """Images (3, side, side) uint8, in turn: black, one color, a gradient, fine noise, coarse noise."""
    images = []
    down = np.linspace(0, 1, side)[:, None, None]
    for number in range(count):
        colors = rng.uniform(0, 255, (2, 3))
        kind = number % 5
        if kind == 0:
            image = np.full((side, side, 3), rng.uniform(0, 12)) + rng.normal(0, rng.uniform(0, 4), (side, side, 3))
        elif kind == 1:
            image = np.broadcast_to(colors[0], (side, side, 3))
        elif kind == 2:
            image = np.broadcast_to(colors[0] * down + colors[1] * (1 - down), (side, side, 3))
        elif kind == 3:
            image = rng.normal(128, rng.uniform(20, 80), (side, side, 3))
        else:
            cells = int(rng.integers(2, side // 4))
            small = torch.from_numpy(rng.uniform(0, 255, (1, 3, cells, cells)))
            image = resize(small, side, side)[0].permute(1, 2, 0).numpy()
        pixels = np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return images
