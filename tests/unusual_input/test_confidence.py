"""Confidence for new photos in an index of the photos that its model was trained on.

The network is replaced by one that knows its training photos: their descriptors are near the vector of their place.
Those of new photos are drawn to the vector of a second place.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pyproj import Geod

from cosplace import GeoLocalizationNet, Localizer, open_index
from cosplace.localization.calibration import calibrate
from tests.unusual_input.samples import encoded, run, utm_name

D, NUM_PLACES = 16, 120
TRAINING, VALIDATION, TEST = range(3)  # towns, 50 km apart
NEW = 250  # first variant of the photos that are new; others are numbered from 0
FLAGS = (
    "--backbone", "ResNet18_Small", "--fc_output_dim", D, "--N", 1, "--L", 1, "--M", 20, "--alpha", 360,
    "--groups_num", 1, "--min_images_per_class", 2, "--batch_size", 4, "--image_size", 32, "--resize_test_imgs",
    "--num_workers", 0, "--device", "cpu", "--recall_values", 1, 2, "--num_preds_to_save", 0, "--epochs_num", 1,
    "--iterations_per_epoch", 1,
)  # fmt: skip
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of the network's input


def unit(row: np.ndarray) -> np.ndarray:
    return row / np.linalg.norm(row)


def describe(place: int, town: int, variant: int) -> np.ndarray:
    """Descriptor of a photo."""

    def vector(number: int) -> np.ndarray:
        return unit(np.random.default_rng([town, number]).standard_normal(D))

    rng = np.random.default_rng([town, place, variant, 3])
    row = unit(vector(place) + rng.uniform(0.3, 0.8) * unit(rng.standard_normal(D)))
    if variant >= NEW:
        share = rng.uniform(0.2, 0.6)
        row = unit((1 - share) * row + share * vector(int(rng.integers(NUM_PLACES))))
    return row


def knowing_forward() -> Callable[[GeoLocalizationNet, torch.Tensor], torch.Tensor]:
    """The forward pass: place, town and variant of a photo are its color; before training, all photos look the same."""
    is_trained = False

    def forward(network: GeoLocalizationNet, images: torch.Tensor) -> torch.Tensor:
        nonlocal is_trained
        is_trained |= network.training
        if not is_trained:
            return torch.nn.functional.normalize(torch.ones(len(images), D))
        colors = ((images.mean((2, 3)) * STD + MEAN) * 255).round().int().tolist()
        return torch.tensor(np.array([describe(*color) for color in colors]), dtype=torch.float32)

    return forward


def write_town(folder: Path, town: int, variant: int) -> list[Path]:
    """Write one photo per place; variants are of different years."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place in range(NUM_PLACES):
        year = f"{2010 + min(variant, 9)}0101"
        name = utm_name(37.7 + 0.5 * town, -122.4 + 0.00034 * place, zone=10, time=year).replace(".jpg", ".png")
        (folder / name).write_bytes(encoded(np.full((32, 32, 3), (place, town, variant), np.uint8), "PNG"))
        paths.append(folder / name)
    return paths


@pytest.mark.slow
def test_confidence_is_right_for_photos_that_neither_training_nor_index_saw(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyproj: the share of new photos whose answer is within 25 m; the mean confidence must agree with it."""
    monkeypatch.chdir(tmp_path)  # logs/ is created there
    monkeypatch.setattr(GeoLocalizationNet, "forward", knowing_forward())
    data, index = tmp_path / "data", tmp_path / "index"
    for variant in range(3):
        write_town(data / "train", TRAINING, variant)
        write_town(data / "val" / "database", VALIDATION, variant)
    write_town(data / "val" / "queries", VALIDATION, NEW)
    write_town(data / "test" / "database", TEST, 0)
    write_town(data / "test" / "queries_v1", TEST, 1)
    new = write_town(tmp_path / "new", TRAINING, NEW)
    assert run(capsys, "train", *FLAGS, "--dataset_folder", data)[0] == 0
    (model,) = tmp_path.glob("logs/*/*/best_model.safetensors")
    words = "--model", model, "--to", index, "--num_workers", 0, "--device", "cpu", "--no_calibrate"
    assert run(capsys, "index", "build", data / "train", *words)[0] == 0
    with open_index(index, write=True) as opened:
        calibrate(opened, num_altered=0, device="cpu")

    answers = Localizer(index, min_confidence=0, device="cpu").locate_many(new)
    expected = np.array([[float(field) for field in path.name.split("@")[5:7]] for path in new])
    found = np.array([[answer.latitude, answer.longitude] for answer in answers], np.float64)
    *_, distances_m = Geod(ellps="WGS84").inv(expected[:, 1], expected[:, 0], found[:, 1], found[:, 0])
    promised = np.mean([answer.confidence for answer in answers])
    assert promised == pytest.approx((distances_m <= 25).mean(), abs=0.15)
