"""Photos as strangers would have taken them, and frames that show no place: what calibration asks beyond its own."""

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

LEAST_CROP = 0.6  # of the area
RATIO = 0.1  # of width to height, as a logarithm
LIGHT = ((-0.6, 0.5), (-0.5, 0.4), (-0.6, 0.4), (-0.5, 0.5))  # logarithms of brightness, contrast, saturation, gamma
HUE = 0.03  # in turns
FRAME_SIDE = 256  # pixels


def changed(photo: Tensor, rng: np.random.Generator) -> Tensor:
    """A photo (3, H, W) uint8 in other light and another crop, of the same size."""
    height, width = photo.shape[1:]
    side, ratio = math.sqrt(rng.uniform(LEAST_CROP, 1)), math.exp(rng.uniform(-RATIO, RATIO))
    cropped = max(1, min(height, round(height * side * ratio))), max(1, min(width, round(width * side / ratio)))
    top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip((height, width), cropped, strict=True))
    photo = functional.resized_crop(photo, top, left, *cropped, [height, width], antialias=True)
    brightness, contrast, saturation, gamma = (math.exp(rng.uniform(*span)) for span in LIGHT)
    photo = functional.adjust_brightness(photo, brightness)
    photo = functional.adjust_contrast(photo, contrast)
    photo = functional.adjust_saturation(photo, saturation)
    photo = functional.adjust_hue(photo, float(rng.uniform(-HUE, HUE)))
    return functional.adjust_gamma(photo, gamma)


def non_places(count: int, rng: np.random.Generator, side: int = FRAME_SIDE) -> list[Tensor]:
    """Frames (3, side, side) uint8: black, plain colors, gradients, noise fine and coarse, in turns."""
    frames = []
    down = np.linspace(0, 1, side)[:, None, None]
    for number in range(count):
        colors = rng.uniform(0, 255, (2, 3))
        kind = number % 5
        if kind == 0:
            frame = np.full((side, side, 3), rng.uniform(0, 12)) + rng.normal(0, rng.uniform(0, 4), (side, side, 3))
        elif kind == 1:
            frame = np.broadcast_to(colors[0], (side, side, 3))
        elif kind == 2:
            frame = np.broadcast_to(colors[0] * down + colors[1] * (1 - down), (side, side, 3))
        elif kind == 3:
            frame = rng.normal(128, rng.uniform(20, 80), (side, side, 3))
        else:
            cells = int(rng.integers(2, side // 4))
            small = torch.from_numpy(rng.uniform(0, 255, (1, 3, cells, cells)))
            frame = functional.resize(small, [side, side], antialias=True)[0].permute(1, 2, 0).numpy()
        pixels = np.ascontiguousarray(np.clip(frame, 0, 255).astype(np.uint8))
        frames.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return frames
