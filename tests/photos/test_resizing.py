"""Resizing equals that of torchvision."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

from cosplace.errors import PhotoSizeError
from cosplace.photos.resizing import batch_size_for, resize, resize_shorter_side, resized_shape

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


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), size=st.tuples(sides, sides), seed=st.integers(0, 9),
    kind=st.sampled_from(["noise", "steps", "gradient"]),
)  # fmt: skip
def test_arrays_become_what_tensors_become_within_two_gray_levels(
    height: int, width: int, size: tuple[int, int], seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    pixels = {
        "noise": lambda: rng.integers(0, 256, (height, width, 3)),
        "steps": lambda: 255 * rng.integers(0, 2, (height, width, 3)),
        "gradient": lambda: np.add.outer(np.arange(height), np.arange(width))[..., None] + rng.integers(0, 60, 3),
    }[kind]()
    photo = np.clip(pixels, 0, 255).astype(np.uint8).transpose(2, 0, 1)
    found = resize(photo, *size)
    assert isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.shape == (3, *size)
    expected = resize(torch.from_numpy(photo), *size).numpy()
    # Both round after each of two passes; a half may be rounded up by one of them, and down by the other.
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2


def test_large_photos_as_arrays() -> None:
    """Sizes of cameras, reduced to those of networks."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((1600, 1200))
    photo = np.clip(np.asarray(coarse) + rng.normal(0, 8, (1200, 1600, 3)), 0, 255).astype(np.uint8).transpose(2, 0, 1)
    for size in (224, 320, 512):
        found, expected = resize_shorter_side(photo, size), resize_shorter_side(torch.from_numpy(photo), size).numpy()
        assert found.shape == expected.shape == (3, size, size * 4 // 3)
        differences = np.abs(found.astype(int) - expected.astype(int))
        assert differences.max() <= 1 and differences.mean() < 0.05
    assert resize_shorter_side(photo, None) is photo and resize(photo, 1200, 1600) is photo


def test_batches_and_sizes() -> None:
    batch = torch.rand(2, 3, 20, 30)
    assert torch.equal(resize(batch, 10, 12), functional.resize(batch, [10, 12], antialias=True))
    assert resize_shorter_side(batch, None) is batch and resize_shorter_side(batch, 20) is batch


def test_uint8_is_rounded_if_torch_cannot_resize_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    expected = resize_shorter_side(image.float(), 17).round().to(torch.uint8)
    monkeypatch.setattr("cosplace.photos.resizing.resizes_bytes", lambda: False)
    assert torch.equal(resize_shorter_side(image, 17), expected)


def test_a_long_and_narrow_photo_is_refused_by_name() -> None:
    strip = torch.zeros(3, 10, 5_000, dtype=torch.uint8)
    with pytest.raises(
        PhotoSizeError, match=r"strip\.png is too long and narrow: its 5000 x 10 pixels would become 256000"
    ):
        resize_shorter_side(strip, 512, "strip.png")
    with pytest.raises(PhotoSizeError, match="10 x 5000 pixels would become 512 x 256000"):
        resized_shape(5_000, 10, 512)
    assert resize_shorter_side(strip, None) is strip
    assert resize_shorter_side(strip, 10, "strip.png").shape == (3, 10, 5_000)


@pytest.mark.parametrize(
    ("height", "width", "size", "shape"),
    [
        (1_000, 4_000, 1_080, (1_080, 4_320)),
        (3_000, 4_000, 4_000, (4_000, 5_333)),
        (500, 2_000, 6_000, (6_000, 24_000)),
    ],
)
def test_panoramas_and_large_sizes_are_allowed(height: int, width: int, size: int, shape: tuple[int, int]) -> None:
    assert resized_shape(height, width, size) == shape


def test_batches_of_long_photos_are_smaller() -> None:
    assert [batch_size_for(*size, 16) for size in ((512, 683), (2_048, 512), (512, 8_192), (1, 10**6))] == [
        16,
        16,
        4,
        1,
    ]
