"""Resizing equals that of torchvision."""

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode, functional

from cosplace.photos.resizing import resize, resize_shorter_side

# On processors with AVX512, older versions convert photos to floats, which rounds some pixels differently.
OLD_TORCHVISION = tuple(map(int, torchvision.__version__.split(".")[:2])) < (0, 24)

sides = st.integers(2, 90)  # torch and torchvision fail to resize to one pixel


@given(height=sides, width=sides, size=sides, seed=st.integers(0, 9), layout=st.sampled_from(["rows", "pixels"]))
def test_resizing_the_shorter_side_equals_torchvision(
    height: int, width: int, size: int, seed: int, layout: str
) -> None:
    shape = (3, height, width) if layout == "rows" else (height, width, 3)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    image = image if layout == "rows" else image.permute(2, 0, 1)
    for given_image in (image, image / 255):
        expected = functional.resize(given_image, [size], InterpolationMode.BILINEAR, antialias=True)
        found = resize_shorter_side(given_image, size)
        assert found.dtype == expected.dtype
        if given_image.dtype == torch.uint8 and OLD_TORCHVISION:
            assert (found.int() - expected.int()).abs().max() <= 1
        else:
            assert torch.equal(found, expected)


def test_batches_and_sizes() -> None:
    batch = torch.rand(2, 3, 20, 30)
    assert torch.equal(resize(batch, 10, 12), functional.resize(batch, [10, 12], antialias=True))
    assert resize_shorter_side(batch, None) is batch and resize_shorter_side(batch, 20) is batch


def test_uint8_is_rounded_if_torch_cannot_resize_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    expected = resize_shorter_side(image.float(), 17).round().to(torch.uint8)
    monkeypatch.setattr("cosplace.photos.resizing.RESIZES_BYTES", False)
    assert torch.equal(resize_shorter_side(image, 17), expected)
