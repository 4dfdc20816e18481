"""Reductions fitted on photos."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from cosplace.errors import ConfigError
from cosplace.models.reduction import fit, truncation
from cosplace.photos.image_list import ImageList, image_list
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.baselines import TinyImage
from cosplace.retrieval.extraction import ExtractionSettings, extract
from cosplace.retrieval.reduction_fitting import fit_reduction
from tests.synthetic_dataset import place_image

UNREADABLE = "05.png"


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    """12 photos, one of which cannot be opened."""
    for number in range(12):
        Image.fromarray(place_image(number, 0)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / UNREADABLE).write_bytes(b"not an image")
    return scan_images(tmp_path)


def test_unreadable_photos_are_skipped_and_not_counted(images: ImageList) -> None:
    calls = []
    reduction, count = fit_reduction(
        TinyImage(4), images, 3, method="pca", progress=lambda *call: calls.append(call[:3])
    )
    assert (count, reduction.in_dim, reduction.out_dim) == (11, 16, 3)
    assert calls[-1] == ("fitting the reduction", 12, 12)
    names = [images.name(row) for row in range(len(images))]
    readable = image_list(images.folder, [name for name in names if name != UNREADABLE])
    expected = fit([extract(TinyImage(4), readable).descriptors[:]], 3, "pca")
    torch.testing.assert_close(reduction.weight, expected.weight)


def test_settings_are_used(images: ImageList) -> None:
    sizes = set()

    class Recorder(TinyImage):
        def forward(self, normalized: torch.Tensor) -> torch.Tensor:
            sizes.add(tuple(normalized.shape[2:]))
            return super().forward(normalized)

    fit_reduction(Recorder(4), images, 3, ExtractionSettings(image_size=24))
    assert (24, 24) in sizes
    assert (64, 64) not in sizes


def test_a_sample_of_many_photos(images: ImageList) -> None:
    _, count = fit_reduction(TinyImage(4), images, 2, max_photos=7)
    assert count in (6, 7)  # the sample may contain the unreadable photo


def test_truncation_is_not_fitted(images: ImageList) -> None:
    reduction, count = fit_reduction(TinyImage(4), images, 2, method="truncation")
    assert count == 0
    assert torch.equal(reduction.weight, truncation(16, 2).weight)


def test_too_few_photos_or_too_many_dimensions(images: ImageList) -> None:
    with pytest.raises(ConfigError, match=r"12 photos in .* are too few to fit 12 dimensions"):
        fit_reduction(TinyImage(4), images, 12)
    with pytest.raises(ConfigError, match=r"from 1 to 16 .* got 17"):
        fit_reduction(TinyImage(4), images, 17)
