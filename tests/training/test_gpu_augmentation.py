"""The augmentation in two kernels gives what `augment_batch` gives: on a GPU, and in Triton's interpreter."""

import itertools
import logging
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cosplace.training import augmentation as augmentations
from cosplace.training.augmentation import NUMBERS_PER_DRAW, ORDERS, Augmentation, augment, augment_batch, draw

MAX_ERROR = 5e-5  # in normalized units
ROOT = Path(__file__).resolve().parents[2]
HAS_TRITON = find_spec("triton") is not None
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed"),
]
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_gpu)])


def photos(num_images: int, height: int, width: int) -> Tensor:
    """Random images in the layout of decoders; some are gray, nearly gray, or have only a few colors."""
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (num_images, height, width, 3))
    pixels[1::4] = pixels[1::4, ..., :1]
    pixels[2::4] = np.minimum(pixels[2::4, ..., :1] + pixels[2::4] % 2, 255)
    pixels[3::4] = pixels[3::4] // 128 * 255
    return torch.from_numpy(pixels.astype(np.uint8)).permute(0, 3, 1, 2)


def draws_of(images: Tensor, chosen: Augmentation) -> Tensor:
    numbers = np.random.default_rng(len(images)).random((len(images), NUMBERS_PER_DRAW))
    return torch.from_numpy(draw(numbers, np.full((len(images), 2), images.shape[2:]), chosen))


def assert_equal_to_batch(images: Tensor, draws: Tensor, chosen: Augmentation, device: str) -> Tensor:
    """Augment with the kernels on a device, and compare with `augment_batch` on the CPU."""
    images = images.to(device)
    assert augmentations._load_kernels(images.device) is not None
    found = augmentations._augment_on_cuda(images, draws, chosen)
    assert found.dtype == torch.float32 and found.device == images.device
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu(), augment_batch(images.cpu(), draws, chosen), rtol=0, atol=MAX_ERROR)
    return found


# --- on a GPU, and a part of it in the interpreter -------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize(
    "num_images, height, width, size",
    [(5, 33, 40, 33), (2, 1, 1, 1), (1, 70, 9, 20), (3, 9, 70, 40), (4, 90, 75, 21), (1, 64, 1, 9), (2, 61, 83, 130)],
)
def test_sizes(num_images: int, height: int, width: int, size: int, device: str):
    chosen = Augmentation(image_size=size, random_resized_crop=0.9)
    images = photos(num_images, height, width)
    assert_equal_to_batch(images, draws_of(images, chosen), chosen, device)


@on_gpu
def test_all_orders(device: str):
    chosen = Augmentation(image_size=17)
    images = photos(len(ORDERS), 19, 23)
    draws = draws_of(images, chosen)
    draws[:, 4:8] = torch.from_numpy(ORDERS.astype(float))
    assert_equal_to_batch(images, draws, chosen, device)


@on_gpu
@pytest.mark.parametrize("active", [*itertools.product([False, True], repeat=4)])
def test_operations_of_no_strength_are_left_out(active: tuple[bool, ...], device: str):
    names = "brightness", "contrast", "saturation", "hue"
    strengths = {name: 0.5 * on for name, on in zip(names, active, strict=True)}
    chosen = Augmentation(image_size=20, **strengths)
    images = photos(4, 24, 20)
    draws = draws_of(images, chosen)
    assert_equal_to_batch(images, draws, chosen, device)
    for operation, on in enumerate(active):
        if not on:  # `augment` for the CPU ignores these factors too
            draws[:, operation] = 0.3
    found = augmentations._augment_on_cuda(images.to(device), draws, chosen).cpu()
    torch.testing.assert_close(found, augment(images, draws, chosen), rtol=0, atol=MAX_ERROR)


@on_gpu
@pytest.mark.parametrize("crop", [(0, 0, 60, 50), (59, 49, 1, 1), (0, 7, 60, 1), (31, 0, 1, 50), (3, 5, 40, 40)])
@pytest.mark.parametrize("size", [8, 40, 77])
def test_any_crop(crop: tuple[int, ...], size: int, device: str):
    chosen = Augmentation(image_size=size)
    images = photos(2, 60, 50)
    draws = draws_of(images, chosen)
    draws[:, 8:] = torch.tensor(crop, dtype=draws.dtype)
    assert_equal_to_batch(images, draws, chosen, device)


@on_gpu
def test_any_memory_layout(device: str):
    chosen = Augmentation(image_size=16)
    images = photos(2, 21, 18).to(device)
    draws = draws_of(images, chosen)
    padded = torch.zeros(2, 3, 30, 40, dtype=torch.uint8, device=device)
    padded[:, :, 4:25, 3:39:2] = images
    expected = assert_equal_to_batch(images, draws, chosen, device)
    for same in (
        images.contiguous(),
        padded[:, :, 4:25, 3:39:2],
        images.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(augmentations._augment_on_cuda(same, draws, chosen), expected)


@on_gpu
def test_the_same_bits_alone_and_in_a_batch(device: str):
    chosen = Augmentation(image_size=24, random_resized_crop=1)
    images = photos(5, 50, 40)
    draws = draws_of(images, chosen)
    together = assert_equal_to_batch(images, draws, chosen, device)
    for index in range(len(images)):
        one = slice(index, index + 1)
        assert torch.equal(augmentations._augment_on_cuda(images[one].to(device), draws[one], chosen), together[one])


@on_gpu
def test_no_images(device: str):
    chosen = Augmentation(image_size=24)
    assert augmentations._augment_on_cuda(photos(0, 9, 9).to(device), torch.empty(0, 12), chosen).shape == (
        0,
        3,
        24,
        24,
    )


@on_gpu
def test_beyond_their_limits_the_other_path_is_used(device: str):
    chosen = Augmentation(image_size=2, random_resized_crop=0)
    images = photos(2, 17, 17).to(device)  # 17 / 2 input pixels per output pixel, more than 8
    draws = draws_of(images, chosen)
    found = augmentations._augment_on_cuda(images, draws, chosen)
    assert torch.equal(found, augment_batch(images, draws, chosen))


# --- only on a GPU ---------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("size", [224, 512])
def test_a_training_batch_on_another_stream_without_waiting(size: int, device: str):
    chosen = Augmentation(image_size=size)
    images = photos(32, 512, 512)
    draws = draws_of(images, chosen)
    on_device = images.to(device)
    augment(on_device, draws, chosen)  # compiles
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with warnings.catch_warnings(), torch.cuda.stream(stream):
        warnings.simplefilter("ignore")  # "a prototype feature"
        try:
            torch.cuda.set_sync_debug_mode("error")
            found = [augment(on_device, draws, chosen) for _ in range(3)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    expected = augment_batch(on_device, draws, chosen)
    for one in found:
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-4)
        assert torch.equal(one, found[0])


@on_gpu
def test_floats_take_the_other_path(device: str):
    chosen = Augmentation(image_size=16)
    images = photos(3, 20, 20).to(device) / 255
    draws = draws_of(images, chosen)
    assert torch.equal(augment(images, draws, chosen), augment_batch(images, draws, chosen))


# --- without a GPU ---------------------------------------------------------------------------------------------------


def test_without_triton_the_other_path_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "cosplace.training.gpu_augmentation", raising=False)
    augmentations._load_kernels.cache_clear()
    chosen = Augmentation(image_size=16)
    images = photos(3, 20, 20)
    draws = draws_of(images, chosen)
    with caplog.at_level(logging.DEBUG, "cosplace.training.augmentation"):
        for _ in range(2):
            found = augmentations._augment_on_cuda(images, draws, chosen)
            assert torch.equal(found, augment_batch(images, draws, chosen))
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    augmentations._load_kernels.cache_clear()


def check_in_interpreter() -> None:
    """A part of the tests above on the CPU, with small images; TRITON_INTERPRET must be set."""
    from triton.runtime import interpreter

    from cosplace.training import gpu_augmentation as kernels

    prepare = interpreter._patch_lang_tensor

    def prepare_for_new_numpy(tensor: type, *scope: object) -> None:  # int() of an array of one number is an error now
        prepare(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = prepare_for_new_numpy
    kernels.PARTS, kernels.TILE_HEIGHT = 2, 32  # fewer programs: each takes many milliseconds
    test_all_orders("cpu")
    test_sizes(1, 61, 83, 11, "cpu")
    test_operations_of_no_strength_are_left_out((True, False, True, True), "cpu")
    test_any_crop((31, 0, 1, 50), 8, "cpu")
    test_any_memory_layout("cpu")
    test_no_images("cpu")
    test_beyond_their_limits_the_other_path_is_used("cpu")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_the_kernels_in_the_interpreter():
    script = "from tests.training.test_gpu_augmentation import check_in_interpreter as check; check(); print('checked')"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False, capture_output=True, text=True, cwd=ROOT,
        env=dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=path),
    )  # fmt: skip
    assert done.stdout.strip() == "checked", done.stderr
