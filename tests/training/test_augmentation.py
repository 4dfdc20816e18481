import itertools
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision.transforms._functional_tensor as internals
import torchvision.transforms.functional as F1
import torchvision.transforms.v2.functional as F2
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from cosplace.errors import ConfigError
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD, normalize
from cosplace.training import augmentation as augmentations
from cosplace.training.augmentation import NUMBERS_PER_DRAW, Augmentation, augment, augment_batch, draw, jitter

CHANGES = (F2.adjust_brightness, F2.adjust_contrast, F2.adjust_saturation, F2.adjust_hue)


def without_numba(images: torch.Tensor, draws: torch.Tensor, chosen: Augmentation) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentations, "_load_pixels", lambda: None)
        return augment(images, draws, chosen)


PATHS = (augment, augment_batch, without_numba)
STD = torch.tensor(IMAGENET_STD).view(3, 1, 1)
MEAN = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)


DEFAULTS = {"brightness": 0.7, "contrast": 0.7, "saturation": 0.7, "hue": 0.5}
NONE = dict.fromkeys(DEFAULTS, 0.0)


def draws_of(rng: np.random.Generator, num_images: int, height: int, width: int, chosen: Augmentation) -> np.ndarray:
    return draw(rng.random((num_images, NUMBERS_PER_DRAW)), np.full((num_images, 2), (height, width)), chosen)


def batch(height: int, width: int, size: int, num_images: int = 12, strengths: Mapping[str, float] = DEFAULTS):
    rng = np.random.default_rng(height * 1000 + width)
    chosen = Augmentation(image_size=size, **strengths)
    images = rng.integers(0, 256, (num_images, 3, height, width), np.uint8)
    images[0] = images[0, :1]  # gray pixels, whose hue is undefined
    images[1] = images[1] // 128 * 255  # only the corners of the color cube, where sectors of hues meet
    draws = draws_of(rng, num_images, height, width, chosen)
    return torch.from_numpy(images), torch.from_numpy(draws), chosen


def torchvision_result(image: torch.Tensor, drawn: torch.Tensor, size: int) -> torch.Tensor:
    """One image by torchvision's own functions, in [0, 1]."""
    image = image.float() / 255
    for operation in drawn[4:8].int().tolist():
        image = CHANGES[operation](image, drawn[operation].item())
    return F1.resized_crop(image, *drawn[8:].int().tolist(), size=[size, size], antialias=True)


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "height, width, size", [(64, 64, 64), (75, 101, 33), (40, 37, 97), (150, 90, 20), (31, 200, 64)]
)
def test_pixels_are_torchvisions(path, height: int, width: int, size: int):
    images, draws, chosen = batch(height, width, size)
    found = path(images, draws, chosen) * STD + MEAN
    expected = torch.stack([torchvision_result(image, drawn, size) for image, drawn in zip(images, draws, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("operation", range(4))
@pytest.mark.parametrize("place", range(4))
def test_each_operation_at_each_place(path, operation: int, place: int):
    order = [other for other in range(4) if other != operation]
    order.insert(place, operation)
    images, draws, chosen = batch(24, 24, 24, num_images=3)
    draws[:, 4:8] = torch.tensor(order, dtype=draws.dtype)
    expected = torch.stack([torchvision_result(image, drawn, 24) for image, drawn in zip(images, draws, strict=True)])
    torch.testing.assert_close(path(images, draws, chosen) * STD + MEAN, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shift", [-0.5, -1 / 3, -0.17, 0.0, 1 / 6, 0.4999, 0.5])
def test_hues_turn_as_torchvisions(path, shift: float):
    images, draws, chosen = batch(16, 16, 16)
    draws[:] = torch.tensor([1, 1, 1, shift, 0, 1, 2, 3, 0, 0, 16, 16])
    found = path(images, draws, chosen) * STD + MEAN
    torch.testing.assert_close(found, F2.adjust_hue(images / 255, shift), rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_neutral_draws_only_normalize(path):
    images, draws, chosen = batch(20, 20, 20)
    draws[:] = torch.tensor([1, 1, 1, 0, 2, 3, 0, 1, 0, 0, 20, 20])
    torch.testing.assert_close(path(images, draws, chosen), normalize(images), rtol=0, atol=2e-5)


@pytest.mark.parametrize("path", PATHS)
def test_without_jitter_only_the_crop_is_left(path):
    images, draws, chosen = batch(30, 41, 16, strengths=NONE)
    assert torch.equal(draws[:, :4], torch.tensor([[1.0, 1, 1, 0]], dtype=draws.dtype).expand(12, 4))
    expected = [
        F1.resized_crop(image / 255, *drawn[8:].int().tolist(), size=[16, 16], antialias=True)
        for image, drawn in zip(images, draws, strict=True)
    ]
    found = path(images, draws, chosen) * STD + MEAN
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=5e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("only", ["brightness", "contrast", "saturation", "hue"])
def test_one_kind_of_jitter_alone(path, only: str):
    images, draws, chosen = batch(30, 30, 30, strengths=NONE | {only: 0.4})
    expected = torch.stack([torchvision_result(image, drawn, 30) for image, drawn in zip(images, draws, strict=True)])
    torch.testing.assert_close(path(images, draws, chosen) * STD + MEAN, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_images_do_not_depend_on_their_batch_and_inputs_stay(path):
    images, draws, chosen = batch(28, 36, 24)
    images_before, draws_before = images.clone(), draws.clone()
    together = path(images, draws, chosen)
    alone = torch.cat([path(images[i : i + 1], draws[i : i + 1], chosen) for i in range(len(images))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert torch.equal(images, images_before)
    assert torch.equal(draws, draws_before)
    floats = images.float() / 255
    torch.testing.assert_close(path(floats, draws, chosen), together, rtol=0, atol=1e-5)
    assert torch.equal(floats, images.float() / 255)


# --- the compiled path -----------------------------------------------------------------------------------------------


def exact_hue(image: torch.Tensor, shift: float) -> torch.Tensor:
    """torchvision's adjust_hue, which itself would round doubles to float32."""
    hue, saturation, value = internals._rgb2hsv(image).unbind(-3)
    return internals._hsv2rgb(torch.stack([(hue + shift) % 1, saturation, value], dim=-3))


def exact_result(image: torch.Tensor, drawn: torch.Tensor, chosen: Augmentation) -> torch.Tensor:
    """One image by torchvision's functions in double precision, normalised."""
    image = image.double() / 255
    for operation in drawn[4:8].int().tolist():
        if chosen.strengths[operation]:
            image = (*CHANGES[:3], exact_hue)[operation](image, drawn[operation].item())
    size = [chosen.image_size, chosen.image_size]
    image = F1.resized_crop(image, *drawn[8:].int().tolist(), size=size, antialias=True)
    return (image - MEAN.double()) / STD.double()


def assert_exact(images: torch.Tensor, draws: torch.Tensor, chosen: Augmentation, error: float = 1e-5):
    found = augment(images, draws, chosen)
    assert found.dtype == torch.float32 and found.is_contiguous()
    expected = torch.stack([exact_result(image, drawn, chosen) for image, drawn in zip(images, draws, strict=True)])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=error)


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_all_orders_are_exact(order: tuple[int, ...]):
    images, draws, chosen = batch(37, 41, 37, num_images=6)
    draws[:, 4:8] = torch.tensor(order, dtype=draws.dtype)
    assert_exact(images, draws, chosen)


@pytest.mark.parametrize(
    "height, width, size",
    [(1, 1, 1), (1, 1, 5), (1, 9, 4), (9, 1, 4), (2, 3, 1), (63, 65, 64), (17, 33, 71), (211, 157, 40), (97, 331, 1)],
)
def test_all_sizes_are_exact(height: int, width: int, size: int):
    assert_exact(*batch(height, width, size, num_images=4))


@pytest.mark.parametrize("crop", [(0, 0, 60, 50), (59, 49, 1, 1), (0, 7, 60, 1), (31, 0, 1, 50), (3, 5, 40, 40)])
@pytest.mark.parametrize("size", [3, 40, 130])
def test_any_crop_is_exact(crop: tuple[int, ...], size: int):
    images, draws, chosen = batch(60, 50, size, num_images=3)
    draws[:, 8:] = torch.tensor(crop, dtype=draws.dtype)
    assert_exact(images, draws, chosen)


@pytest.mark.parametrize("active", [*itertools.product([False, True], repeat=4)])
def test_operations_of_no_strength_are_left_out(active: tuple[bool, ...]):
    strengths = {name: 0.4 * on for name, on in zip(DEFAULTS, active, strict=True)}
    images, draws, chosen = batch(20, 24, 20, num_images=3, strengths=strengths)
    draws[:, :4] = torch.tensor([1.3, 0.7, 1.4, 0.3])  # for those left out, what would be seen
    assert_exact(images, draws, chosen)


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 254, 255), (1, 0, 1)])
def test_images_of_one_color_are_exact(color: tuple[int, ...]):
    images, draws, chosen = batch(19, 23, 16)
    images[:] = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)
    assert_exact(images, draws, chosen)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 90),
    strength=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    hue=st.sampled_from([0.0, 0.1, 0.5]),
    crop=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["noise", "few values", "nearly gray"]),
)
@settings(max_examples=150, deadline=None, database=None)
def test_wild_images_and_draws_are_exact(
    height: int, width: int, size: int, strength: float, hue: float, crop: float, seed: int, kind: str
):
    rng = np.random.default_rng(seed)
    chosen = Augmentation(
        image_size=size,
        brightness=strength,
        contrast=strength,
        saturation=strength,
        hue=hue,
        random_resized_crop=crop,
    )
    pixels = rng.integers(0, 256, (2, 3, height, width))
    if kind == "few values":
        pixels = pixels // 100 * 127
    if kind == "nearly gray":
        pixels = np.minimum(pixels[:, :1] + rng.integers(0, 2, pixels.shape), 255)
    draws = draws_of(rng, len(pixels), height, width, chosen)
    assert_exact(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(draws), chosen, error=2e-5)


def test_the_same_bytes_alone_in_a_batch_and_in_any_memory_layout():
    images, draws, chosen = batch(61, 47, 52)
    together = augment(images, draws, chosen)
    for index in range(len(images)):
        alone = augment(images[index : index + 1], draws[index : index + 1], chosen)
        assert torch.equal(alone[0], together[index])
    padded = torch.zeros(12, 3, 70, 100, dtype=torch.uint8)
    padded[:, :, 4:65, 3:97:2] = images
    wide_draws = torch.zeros(12, 20, dtype=torch.float64)
    wide_draws[:, 3:15] = draws
    for same in (
        images.contiguous(memory_format=torch.channels_last),
        padded[:, :, 4:65, 3:97:2],
        images.flip(3).flip(3),
        images.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(augment(same, draws, chosen), together)
    assert torch.equal(augment(images, wide_draws[:, 3:15], chosen), together)
    assert torch.equal(augment(images, draws.T.contiguous().T, chosen), together)


def test_the_same_bytes_from_several_threads_at_once():
    batches = [batch(40 + step, 70 - step, 48, num_images=4) for step in range(12)]
    alone = [augment(*inputs) for inputs in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(lambda inputs: augment(*inputs), batches * 4), alone * 4, strict=True):
            assert torch.equal(found, expected)


def test_no_images_become_none():
    images, draws, chosen = batch(10, 10, 8)
    for path in (augment, without_numba):
        assert path(images[:0], draws[:0], chosen).shape == (0, 3, 8, 8)


def test_crops_outside_an_image_never_reach_compiled_code():
    images, draws, chosen = batch(10, 12, 8, num_images=2)
    for crop in ((0, 0, 11, 4), (-1, 0, 4, 4), (0, 9, 4, 4), (0, 0, 4, 0)):
        draws[:, 8:] = torch.tensor(crop, dtype=draws.dtype)
        with pytest.raises(AssertionError):
            augment(images, draws, chosen)


def run_python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    return done.stdout


@pytest.mark.slow
def test_numba_is_loaded_only_by_the_first_augmented_image():
    assert "loaded: False, then True" in run_python(
        "import sys, numpy as np, torch, cosplace.cli, cosplace.training.augmentation as a\n"
        "before = 'numba' in sys.modules\n"
        "chosen = a.Augmentation(image_size=4)\n"
        "draws = torch.from_numpy(a.draw(np.zeros((1, a.NUMBERS_PER_DRAW)), np.array([[9, 9]]), chosen))\n"
        "a.augment(torch.zeros(1, 3, 9, 9), draws, chosen)\n"
        "before |= 'numba' in sys.modules\n"
        "a.augment(torch.zeros(1, 3, 9, 9, dtype=torch.uint8), draws, chosen)\n"
        "print(f'loaded: {before}, then {\"numba\" in sys.modules}')\n"
    )


@pytest.mark.slow
def test_without_numba_one_warning_says_what_to_install_and_images_are_the_same():
    images, draws, chosen = batch(30, 41, 16)
    torch.testing.assert_close(without_numba(images, draws, chosen), augment(images, draws, chosen), rtol=0, atol=1e-5)
    lines = run_python(
        "import logging, sys; sys.modules['numba'] = None\n"
        "logging.basicConfig(stream=sys.stdout)\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import numpy as np, torch, cosplace.training.augmentation as a\n"
        "chosen = a.Augmentation(image_size=4)\n"
        "draws = torch.from_numpy(a.draw(np.zeros((1, a.NUMBERS_PER_DRAW)), np.array([[9, 9]]), chosen))\n"
        "image = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    for done in pool.map(lambda _: a.augment(image, draws, chosen), range(8)): pass\n"
    ).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("WARNING:cosplace.training.augmentation:numba cannot be imported")
    assert "run `pip install --upgrade numba`." in lines[0]


# --- either way ------------------------------------------------------------------------------------------------------


def test_draws_of_either_precision_and_autocast_change_nothing():
    images, draws, chosen = batch(28, 36, 24)
    expected = augment(images, draws, chosen)
    torch.testing.assert_close(augment(images, draws.float(), chosen), expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, draws, chosen), expected)
        torch.testing.assert_close(augment_batch(images, draws, chosen), expected, rtol=0, atol=2e-5)


@pytest.mark.gpu
def test_gpu_gives_the_same_pixels_and_never_waits():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images, draws, chosen = batch(75, 101, 64)
    on_gpu = images.cuda()
    augment(on_gpu, draws, chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "a prototype feature"
        try:
            torch.cuda.set_sync_debug_mode("error")
            found = augment(on_gpu, draws, chosen)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), augment(images, draws, chosen), rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 9)])
def test_normalize_keeps_channels_side_by_side_and_the_same_bits(size: tuple[int, int]):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8))
    beside = pixels.permute(0, 3, 1, 2)
    assert torch.equal(normalize(beside), normalize(beside.contiguous()))
    assert normalize(beside).permute(0, 2, 3, 1).is_contiguous()
    assert torch.equal(normalize(beside[0]), normalize(beside)[0])
    assert torch.equal(normalize(beside / 255), normalize(beside))


def test_normalize_is_torchvisions_for_bytes_and_floats():
    images, _, _ = batch(9, 7, 8)
    expected = F1.normalize(images / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    for given_images in (images, images / 255, (images / 255).double()):
        found = normalize(given_images)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    floats = images[0] / 255
    before = floats.clone()
    normalize(floats)
    assert torch.equal(floats, before)


# --- draws -----------------------------------------------------------------------------------------------------------


@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    share=st.floats(0, 1),
    hue=st.floats(0, 0.5),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None, database=None)
def test_draws_stay_in_their_limits(height: int, width: int, share: float, hue: float, seed: int):
    chosen = Augmentation(image_size=8, brightness=1.5, hue=hue, random_resized_crop=share)
    (drawn,) = draws_of(np.random.default_rng(seed), 1, height, width, chosen)
    assert drawn.shape == (12,)
    assert 0 <= drawn[0] <= 2.5
    assert abs(drawn[3]) <= hue
    assert sorted(drawn[4:8]) == [0, 1, 2, 3]
    top, left, h, w = drawn[8:]
    assert (drawn[8:] == np.floor(drawn[8:])).all()
    assert top >= 0 and left >= 0 and h >= 1 and w >= 1
    assert top + h <= height and left + w <= width


def test_draws_have_the_papers_distributions():
    chosen = Augmentation(image_size=512)
    rng = np.random.default_rng(0)
    draws = draws_of(rng, 6_000, 512, 512, chosen)
    for column, low, high in ((0, 0.3, 1.7), (1, 0.3, 1.7), (2, 0.3, 1.7), (3, -0.5, 0.5)):
        factors = (draws[:, column] - low) / (high - low)
        assert np.abs(np.sort(factors) - np.linspace(0, 1, len(factors))).max() < 0.025, column  # Kolmogorov-Smirnov
    orders = draws[:, 4:8] @ [64, 16, 4, 1]
    _, counts = np.unique(orders, return_counts=True)
    assert len(counts) == 24
    assert np.abs(counts / len(draws) - 1 / 24).max() < 0.01
    assert abs(np.corrcoef(draws[:, :4].T) - np.eye(4)).max() < 0.05


def test_crops_are_distributed_as_torchvisions():
    chosen = Augmentation(image_size=512)
    rng = np.random.default_rng(1)
    ours = draws_of(rng, 4_000, 300, 400, chosen)[:, 8:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.empty(3, 300, 400)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(4_000)])
    for column in range(4):
        values = np.concatenate([ours[:, column], theirs[:, column]])
        grid = np.unique(values)
        below = [np.searchsorted(np.sort(side[:, column]), grid, side="right") / 4_000 for side in (ours, theirs)]
        assert np.abs(below[0] - below[1]).max() < 0.045, column  # two-sample Kolmogorov-Smirnov, p about 0.001
    areas = ours[:, 2] * ours[:, 3] / (300 * 400)
    assert areas.min() > 0.49


@pytest.mark.parametrize("height, width, crop", [(100, 1000, (0, 433, 100, 133)), (1000, 100, (433, 0, 133, 100))])
def test_very_long_images_fall_back_to_their_middle(height: int, width: int, crop: tuple[int, ...]):
    chosen = Augmentation(image_size=8, random_resized_crop=0.1)
    assert tuple(draws_of(np.random.default_rng(0), 1, height, width, chosen)[0, 8:]) == crop


def test_a_draw_depends_on_its_own_numbers_and_size_alone():
    chosen = Augmentation(image_size=8, random_resized_crop=0.2)
    numbers = np.random.default_rng(5).random((9, NUMBERS_PER_DRAW))
    sizes = np.array([(50, 60), (500, 60), (60, 500)] * 3)  # no crop of the longer ones is found in a few tries
    together = draw(numbers, sizes, chosen)
    alone = [draw(numbers[i : i + 1], sizes[i : i + 1], chosen)[0] for i in range(9)]
    assert (together == alone).all()
    assert (together[0] != together[3]).any()


@pytest.mark.parametrize(
    "name, value, cure",
    [
        ("hue", 0.6, "between 0 and 0.5"),
        ("random_resized_crop", 1.1, "between 0 and 1"),
        ("brightness", -0.1, "at least 0"),
        ("contrast", math.nan, "at least 0"),
        ("saturation", math.inf, "at least 0"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float, cure: str):
    with pytest.raises(ConfigError, match=f"--{name} must be {cure}, got {value}"):
        Augmentation(image_size=8, **{name: value})


def test_images_of_no_size_are_refused():
    with pytest.raises(ConfigError, match="--image_size must be at least 1, got 0"):
        Augmentation(image_size=0)


def test_jitter_is_that_of_torchvision_on_float_images() -> None:
    images = torch.randint(0, 256, (3, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([[0.6, 1.4, 0.7, 0.03], [1.5, 0.6, 1.3, -0.02], [1.0, 1.0, 1.0, 0.0]])
    found = jitter(images, factors)
    steps = (F2.adjust_brightness, F2.adjust_contrast, F2.adjust_saturation, F2.adjust_hue)
    for image, row, values in zip(images.float() / 255, factors.tolist(), found, strict=True):
        expected = image
        for step, factor in zip(steps, row, strict=True):
            expected = step(expected, factor)
        assert torch.allclose(values, expected, atol=2e-5)
