"""Engines compared with PyTorch: descriptors first, then the time of a batch.

Legend: B photos of one size, D descriptor dimension.
"""

import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cosplace.engines.engine import Engine
from cosplace.errors import ImageError
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.opening import open_image
from cosplace.photos.resizing import resize, resize_shorter_side

NUM_COMPARED = 8  # photos
UNKNOWN_SIZE = 480  # pixels of the shorter side of synthetic images, if photos keep their size
SYNTHETIC_SIDE = 512  # pixels
NUM_ROUNDS, MIN_ROUNDS = 7, 3  # of timing, after one that allocates memory
MAX_SIZES = 3  # of photos in a round
MAX_TIMING_S = 20.0  # after this time, MIN_ROUNDS are enough


def synthetic_photos(count: int, seed: int = 0) -> list[Tensor]:
    """Photos (3, 512, 512) uint8 for models without a folder of photos: blurred colors with details of all scales."""
    generator = torch.Generator().manual_seed(seed)
    photos = []
    for _ in range(count):
        photo = torch.zeros(1, 3, SYNTHETIC_SIDE, SYNTHETIC_SIDE)
        for side in (4, 16, 64, 256):
            layer = torch.randn(1, 3, side, side, generator=generator)
            photo += functional.interpolate(layer, (SYNTHETIC_SIDE, SYNTHETIC_SIDE), mode="bicubic") * (4 / side) ** 0.5
        photos.append((127 + 60 * photo[0]).clamp(0, 255).byte())
    return photos


def sample_photos(images: ImageList | None, image_size: int | None, count: int = NUM_COMPARED) -> list[Tensor]:
    """Photos (3, H, W) uint8 as the network gets them: of a list, evenly spaced, or synthetic images of 4 : 3."""
    photos: list[Tensor] = []
    paths = [] if images is None else [images.path(row) for row in evenly_spaced(images, count)]
    for path in paths:
        try:
            photos.append(resize_shorter_side(open_image(path), image_size))
        except ImageError:  # whoever describes all photos reports it
            continue
    if photos:
        return photos
    side = image_size or UNKNOWN_SIZE
    return [resize(photo, side, 4 * side // 3) for photo in synthetic_photos(count)]


def lowest_cosine(engine: Engine, reference: Engine, photos: Sequence[Tensor]) -> float:
    """Lowest cosine similarity of the descriptors of two engines; nan if a descriptor is not finite."""
    cosines = []
    for photo in photos:
        batch = np.ascontiguousarray(photo[None].numpy())
        found, expected = (one.describe(batch)[0].astype(np.float64) for one in (engine, reference))
        cosines.append(float(found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected))))
    return float(np.min(cosines))


def measure_speedups(
    engines: Mapping[str, Engine], baseline: str, photos: Sequence[Tensor], batch_size: int
) -> tuple[dict[str, float], float]:
    """How many times faster than the baseline each engine is, as the median over rounds; and seconds of the baseline.

    In each round, every engine describes the same batches in turn, so that other work on the machine slows all of them.
    The batches have the sizes of the photos, MAX_SIZES at most: some engines are slow when the size changes.
    """
    by_size = {photo.shape: photo for photo in photos}
    batches = [
        np.ascontiguousarray(photo.expand(batch_size, -1, -1, -1).numpy())
        for photo in list(by_size.values())[:MAX_SIZES]
    ]
    ratios: dict[str, list[float]] = {name: [] for name in engines}
    seconds: list[float] = []
    started = time.perf_counter()
    for number in range(NUM_ROUNDS + 1):
        if number > MIN_ROUNDS and time.perf_counter() - started > MAX_TIMING_S:
            break
        times = {name: _seconds(engine, batches) for name, engine in engines.items()}
        if number:  # the first round allocates memory
            seconds.append(times[baseline] / len(batches))
            for name, taken in times.items():
                ratios[name].append(times[baseline] / taken)
    return {name: statistics.median(found) for name, found in ratios.items()}, statistics.median(seconds)


def _seconds(engine: Engine, batches: Sequence[np.ndarray]) -> float:
    started = time.perf_counter()
    for batch in batches:
        engine.describe(batch)
    return time.perf_counter() - started
