"""A tiny synthetic dataset in SF-XL layout, which a network can learn in seconds: each place has its own stripes."""

from pathlib import Path

import numpy as np
from PIL import Image

from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values
from cosplace.photos.names import format_image_name


def place_image(place: int, variant: int, side: int = 64) -> np.ndarray:
    """(side, side, 3) uint8: stripes by place, with light and noise by variant."""
    place_random = np.random.default_rng([1, place])
    variant_random = np.random.default_rng([2, place, variant])
    colors, widths = place_random.integers(30, 226, (8, 3)), place_random.integers(3, 12, 8)
    columns = np.repeat(colors, widths, axis=0)
    image = np.resize(np.roll(columns, variant_random.integers(-3, 4), axis=0), (side, 3))[None].repeat(side, 0)
    image = image * variant_random.uniform(0.7, 1.2) + variant_random.normal(0, 6, (side, side, 3))
    image[: side // 4] = place_random.integers(100, 200, 3)
    return image.clip(0, 255).astype(np.uint8)


def landscape(number: int) -> np.ndarray:
    """(240, 320, 3) uint8: a random landscape: sky above ground, and blocks of random colors."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)).astype(np.float64)
    image += np.linspace(60, -60, 240)[:, None, None]  # all skies are brighter than the ground
    for _ in range(6):
        top, left = random.integers(0, 200), random.integers(0, 280)
        image[top : top + random.integers(20, 120), left : left + random.integers(20, 80)] = random.integers(0, 256, 3)
    return image.clip(0, 255).astype(np.uint8)


def write_place(folder: Path, place: int, variant: int, *, offset: float = 0.0, side: int = 64, suffix=".jpg") -> Path:
    """Write one photo of a place; places are 10 m apart in a row, all headings are 0."""
    name = format_image_name(
        utm_east=550_000.0 + 10 * place + 2 + offset, utm_north=4_180_000.0 + variant % 3, zone=10, letter="S",
        latitude=37.7, longitude=-122.4, pano_id=f"p{place}v{variant}", heading=0, timestamp="202001", suffix=suffix,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(place_image(place, variant, side)).save(folder / name)
    return folder / name


def write_dataset(folder: Path, num_places: int = 24, images_per_place: int = 6, side: int = 64) -> Path:
    """Write train/, val/{database,queries} and test/{database,queries_v1}; the splits are far apart."""
    for place in range(num_places):
        for variant in range(images_per_place):
            write_place(folder / "train" / "37.70", place, variant, side=side)
    for split, queries, first in (("val", "queries", 1000), ("test", "queries_v1", 2000)):
        # Every third place: 30 m apart, so that only the correct place is a positive.
        for place in range(first, first + 3 * 12, 3):
            for variant in range(2):
                write_place(folder / split / "database", place, variant, side=side)
            write_place(folder / split / queries, place, 5, side=side)
    return folder


SETTINGS = {
    "backbone": "ResNet18_Small", "fc_output_dim": 16, "N": 1, "L": 2, "M": 20, "alpha": 180, "groups_num": 1,
    "min_images_per_class": 4, "batch_size": 6, "epochs_num": 3, "iterations_per_epoch": 5, "lr": 1e-3,
    "image_size": 32, "resize_test_imgs": True, "num_workers": 0, "device": "cpu", "recall_values": [1, 2],
}  # fmt: skip
"""A network and a run that take seconds on this dataset."""


def settings(dataset_folder: Path, **changes) -> TrainConfig:
    """Settings of a run on a dataset."""
    return from_values(TrainConfig, {**SETTINGS, "dataset_folder": str(dataset_folder), **changes})
