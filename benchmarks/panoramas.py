"""Perspective crops of a panorama, next to py360convert.e2p.

py360convert lets the field of view extend between the centers of the outer pixels; ours gets the slightly larger angle
between their edges.  With OpenCV, py360convert rounds positions to 1/32 pixel, so gray values may differ a little.
"""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.stage import Options, Side, Stage, Work

SIDE, FIELD_OF_VIEW = 512, 90.0  # of a crop
WIDTH, QUICK_WIDTH = 4096, 1024  # of the panorama
MAX_DIFFERENCE, MAX_SHARE = 10, 0.001  # gray levels; share of pixels that differ by more than one


def _make_panorama(folder: Path, size: int, options: Options) -> tuple[Path, int]:
    """A smooth panorama with some noise, (H, W, 3) uint8, and the number of crops."""
    from PIL import Image

    width = QUICK_WIDTH if options.quick else WIDTH
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (width // 32, width // 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, width // 2), Image.Resampling.BICUBIC)).astype(np.int16)
    panorama = (smooth + rng.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
    np.save(folder / "panorama.npy", panorama)
    return folder / "panorama.npy", size


def _yaws(count: int) -> list[float]:
    return [360 * index / count - 180 for index in range(count)]


def _prepare_plain(inputs: tuple[Path, int]) -> Work:
    from py360convert import e2p
    from py360convert.utils import EquirecSampler

    panorama, yaws = np.load(inputs[0]), _yaws(inputs[1])

    def work() -> np.ndarray:
        EquirecSampler.from_perspective.cache_clear()
        return np.stack([e2p(panorama, FIELD_OF_VIEW, yaw, 0, (SIDE, SIDE)) for yaw in yaws])

    e2p(panorama, FIELD_OF_VIEW, 0, 0, (32, 32))
    return work


def _prepare_ours(inputs: tuple[Path, int]) -> Work:
    from cosplace.photos.compiled_panoramas import fast_crop
    from cosplace.photos.panoramas import CropView, coverage_of, crop_map

    panorama, yaws = np.load(inputs[0]), _yaws(inputs[1])
    coverage = coverage_of(panorama.shape[1], panorama.shape[0], {})
    assert coverage is not None
    between_edges = math.degrees(2 * math.atan(math.tan(math.radians(FIELD_OF_VIEW / 2)) * SIDE / (SIDE - 1)))
    view = CropView(width=SIDE, height=SIDE, field_of_view=between_edges)

    def work() -> np.ndarray:
        crop_map.cache_clear()
        return np.stack([fast_crop(panorama, coverage, view, yaw) for yaw in yaws])

    fast_crop(panorama, coverage, CropView(width=32, height=32, field_of_view=90), 0)
    return work


def _compare(plain: np.ndarray, ours: np.ndarray) -> str | None:
    differences = np.abs(plain.astype(np.int16) - ours)
    largest, share = int(differences.max()), float((differences > 1).mean())
    if largest <= MAX_DIFFERENCE and share <= MAX_SHARE:
        return None
    return f"pixels differ by up to {largest} gray levels, {share:.2%} of them by more than 1"


STAGES = (
    Stage(
        name="panoramas",
        title="crops of a panorama, 4096 x 2048 to 512 x 512, bilinear",
        unit="crops",
        make_inputs=_make_panorama,
        plain=Side(prepare=_prepare_plain),
        ours=Side(prepare=_prepare_ours),
        compare=_compare,
        full_size=12,
        quick_size=4,
        targets={"cpu_ratio": 5.0},
        quick_targets={"cpu_ratio": 3.0},
        growth_sizes=(3, 6, 12),
        imports=("PIL.Image", "cosplace.photos.compiled_panoramas"),
        optional_imports=("py360convert",),
        unavailable=lambda: None if find_spec("py360convert") else "py360convert is not installed",
    ),
)
