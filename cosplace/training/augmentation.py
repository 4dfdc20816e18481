"""Color jitter and random resized crop, batched, on CPU or GPU.  Pure functions.

Distributions and results are those of torchvision's ColorJitter and RandomResizedCrop on float images, which CosPlace
trains with (Berton et al., CVPR 2022, section 4.1).  The random parameters of an image are drawn on the CPU when it is
opened; the pixels are computed on the device, without waiting for it, or on the CPU by compiled code.  On CUDA, two
kernels of gpu_augmentation.py compute what `augment_batch` computes.
"""

import itertools
import logging
import math
from dataclasses import dataclass
from functools import cache
from threading import Lock
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from cosplace.errors import ConfigError
from cosplace.memory import is_out_of_memory
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD, LUMA, normalize_in_place, to_unit_floats

log = logging.getLogger(__name__)

CROP_RATIOS = (3 / 4, 4 / 3)  # width over height
CROP_TRIES = 10

# Columns of a draw: the random parameters of one image.
FACTORS = slice(0, 4)
ORDER = slice(4, 8)
CROP = slice(8, 12)
DRAW_SIZE = 12
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # factors that change nothing
ORDERS = np.array(list(itertools.permutations(range(4))))
NUMBERS_PER_DRAW = 4 + 1 + 2 * CROP_TRIES + 2  # factors, their order, areas and ratios of crops, the crop's corner


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Strength of the augmentation; defaults are the paper's.  Raises ConfigError for values out of range."""

    image_size: int
    """Side of the square result in pixels."""
    brightness: float = 0.7
    """Factors are drawn from [max(0, 1 - x), 1 + x]; the same holds for contrast and saturation."""
    contrast: float = 0.7
    saturation: float = 0.7
    hue: float = 0.5
    """Shifts are drawn from [-x, x], as fractions of the full circle of hues."""
    random_resized_crop: float = 0.5
    """The area of a crop is drawn from [1 - x, 1] of the image."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"--image_size must be at least 1, got {self.image_size}. Use for example 512.")
        limits = {"brightness": math.inf, "contrast": math.inf, "saturation": math.inf}
        for name, most in (limits | {"hue": 0.5, "random_resized_crop": 1.0}).items():
            value = getattr(self, name)
            if not 0 <= value <= most or math.isinf(value):  # NaN fails the comparison too
                limit = "at least 0" if math.isinf(most) else f"between 0 and {most:g}"
                raise ConfigError(f"--{name} must be {limit}, got {value}.")

    @property
    def strengths(self) -> tuple[float, float, float, float]:
        """Brightness, contrast, saturation and hue."""
        return self.brightness, self.contrast, self.saturation, self.hue


# --- random parameters -----------------------------------------------------------------------------------------------


def draw(numbers: np.ndarray, sizes: np.ndarray, settings: Augmentation) -> np.ndarray:
    """Random parameters of n images, (n, 12) float64, from the random numbers of each.

    numbers: (n, NUMBERS_PER_DRAW) uniform in [0, 1).  sizes: (n, 2), heights and widths in pixels.  A row holds four
    factors (brightness, contrast, saturation, hue), the order of these four as indices, then top, left, height and
    width of the crop in pixels.
    """
    jitters = np.array(settings.strengths[:HUE])
    least = np.append(np.maximum(0.0, 1 - jitters), -settings.hue)
    most = np.append(1 + jitters, settings.hue)
    factors, orders, crops = np.split(numbers, (4, 5), axis=1)
    drawn = np.empty((len(numbers), DRAW_SIZE))
    drawn[:, FACTORS] = least + (most - least) * factors
    drawn[:, ORDER] = ORDERS[(len(ORDERS) * orders[:, 0]).astype(np.int64)]
    drawn[:, CROP] = _draw_crops(crops, sizes, settings.random_resized_crop)
    return drawn


def _draw_crops(numbers: np.ndarray, sizes: np.ndarray, most_lost: float) -> np.ndarray:
    """Crops (n, 4), each the first of several tries that fits its image; most_lost: largest share of area removed."""
    areas, ratios, places = np.split(numbers, (CROP_TRIES, 2 * CROP_TRIES), axis=1)
    areas = sizes.prod(axis=1, keepdims=True) * (1 - most_lost + most_lost * areas)
    narrowest, widest = np.log(CROP_RATIOS)
    ratios = np.exp(narrowest + (widest - narrowest) * ratios)
    tries = np.stack([areas / ratios, areas * ratios], axis=2)  # (n, CROP_TRIES, 2)
    tries = np.rint(np.sqrt(tries, out=tries), out=tries)  # heights and widths
    fits = ((tries > 0) & (tries <= sizes[:, None])).all(axis=2)
    crops = tries[np.arange(len(tries)), fits.argmax(axis=1)]  # (n, 2)
    corners = np.floor(places * (sizes - crops + 1))
    found = np.logical_or.reduce(fits, axis=1)
    if not found.all():  # the largest centered crop with an allowed ratio
        largest = np.minimum(sizes, np.rint(sizes[:, ::-1] * (1 / CROP_RATIOS[0], CROP_RATIOS[1])))
        crops = np.where(found[:, None], crops, largest)
        corners = np.where(found[:, None], corners, (sizes - largest) // 2)
    return np.concatenate([corners, crops], axis=1)


# --- pixels ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def augment(images: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    """Augment and normalize images (B, 3, H, W), uint8 or float in [0, 1]: (B, 3, S, S) float32 on the same device.

    draws: (B, 12) on the CPU, from `draw`.  S is settings.image_size.
    """
    assert images.ndim == 4 and images.shape[1] == 3, images.shape
    assert draws.shape == (len(images), DRAW_SIZE) and draws.device.type == "cpu", (draws.shape, draws.device)
    if images.device.type == "cuda" and images.dtype == torch.uint8:
        return _augment_on_cuda(images, draws, settings)
    if images.device.type != "cpu":
        return augment_batch(images, draws, settings)
    pixels = _load_pixels() if images.dtype == torch.uint8 else None
    if pixels is not None:
        return _augment_compiled(pixels, images, draws, settings)
    # One image at a time: it stays in the cache, and the result does not depend on the batch.
    results = torch.empty((len(images), 3, settings.image_size, settings.image_size))
    for index, result in enumerate(results):
        result.copy_(augment_batch(images[index : index + 1], draws[index : index + 1], settings)[0])
    return results


_LOADING = Lock()


@cache
def _load_pixels() -> ModuleType | None:
    """Import the compiled functions; None where numba cannot be imported."""
    with _LOADING:  # all threads of a pool start here; a failing import must not run twice
        return _import_pixels()


@cache
def _import_pixels() -> ModuleType | None:
    try:
        from cosplace.training import compiled_augmentation as pixels
    except ConfigError as error:
        log.warning("%s Images are augmented without numba, several times slower.", error)
        return None
    return pixels


def _augment_compiled(pixels: ModuleType, images: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    size, height, width = settings.image_size, images.shape[2], images.shape[3]
    numbers = np.ascontiguousarray(draws.double().numpy())
    order, crops = numbers[:, ORDER].astype(np.int64), _crops_inside(numbers, images)
    factors = np.take_along_axis(numbers[:, FACTORS], order, axis=1)
    steps = np.where(np.array(settings.strengths, bool)[order], order, -1)
    std = np.array(IMAGENET_STD)
    channels = np.stack([LUMA, 1 / std, -np.array(IMAGENET_MEAN) / std]).astype(np.float32)
    buffers = pixels.make_buffers(height, width, size)
    # numpy allocates huge pages, several times faster than torch.
    results = np.empty((len(images), 3, size, size), np.float32)
    for index, image in enumerate(images):
        drawn = steps[index], factors[index], crops[index]
        pixels.augment_image(image.contiguous().numpy(), *drawn, channels, *buffers, results[index])
    return torch.from_numpy(results)


def _crops_inside(numbers: np.ndarray, images: Tensor) -> np.ndarray:
    """The crops (B, 4) int64 of draws; asserts that compiled code would read only inside the images."""
    crops = numbers[:, CROP].astype(np.int64)
    corners, sizes = crops[:, :2], crops[:, 2:]
    assert ((corners >= 0) & (sizes >= 1) & (corners + sizes <= images.shape[2:])).all(), crops
    return crops


def _augment_on_cuda(images: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    """`augment` by the kernels, in channels-last layout, or by `augment_batch` where they are not suited."""
    kernels = _load_kernels(images.device)
    if kernels is None:
        return augment_batch(images, draws, settings)
    numbers = draws.double().numpy()
    crops = _crops_inside(numbers, images)
    if not kernels.is_suited(images, crops, settings.image_size):
        return augment_batch(images, draws, settings)
    factors = np.where(np.array(settings.strengths, bool), numbers[:, FACTORS], NEUTRAL)
    orders = numbers[:, ORDER].astype(np.int64)
    return kernels.augment_by_kernels(images, orders, factors, crops, settings.image_size, settings.contrast > 0)


@cache
def _load_kernels(device: torch.device) -> ModuleType | None:
    """Import the kernels for a GPU and try them; None where they cannot be imported or compiled."""
    try:
        from cosplace.training import gpu_augmentation as kernels
    except ImportError as error:
        log.debug("triton cannot be imported (%s). Images are augmented without it.", error)
        return None
    image = torch.empty((1, 3, 1, 1), dtype=torch.uint8, device=device)
    try:
        kernels.augment_by_kernels(image, ORDERS[:1], np.array([NEUTRAL]), np.array([[0, 0, 1, 1]]), 1)
    except Exception as error:  # of many kinds: an old GPU, no C compiler, no headers of Python
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        log.warning(
            "triton cannot compile for %s (%s). Images are augmented without it, several times slower. If no C "
            "compiler was found, install gcc.", device, reason,
        )  # fmt: skip
        return None
    return kernels


def augment_batch(images: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    """`augment` in a few tensor operations for the whole batch."""
    device = images.device
    jitters = any(settings.strengths)
    pixels = _jitter_batch(images, draws, settings) if jitters else to_unit_floats(images)  # (B, 3, H, W)
    tops, lefts, heights, widths = draws[:, CROP].double().unbind(1)
    pixels = _resample(pixels, 2, *_taps(tops, heights, settings.image_size), device)
    pixels = _resample(pixels, 3, *_taps(lefts, widths, settings.image_size), device)
    return normalize_in_place(pixels)


# --- color jitter ----------------------------------------------------------------------------------------------------


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of images (B, 3, H, W) uint8, in this order: float32 in [0, 1].

    factors: (B, 4); hue is shifted by a fraction of the full circle.
    """
    draws = torch.zeros(len(images), DRAW_SIZE)
    draws[:, FACTORS], draws[:, ORDER] = factors, torch.arange(4.0)
    return _jitter_batch(images, draws, Augmentation(image_size=1))


def _jitter_batch(images: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    """Jitter images (B, 3, H, W), each with its own factors in its own order: float32 in [0, 1], a new tensor.

    Brightness, contrast and saturation are all `clamp(factor * image + (1 - factor) * other)`, so one blend computes
    whichever comes next for each image.  Hue is anywhere among the three.  With images sorted by the position of hue,
    those whose j-th blend precedes hue are the tail of the batch and the others its head, so that slices suffice.
    """
    order = draws[:, ORDER].long()  # (B, 4)
    places, by_place = (order == HUE).long().argmax(dim=1).sort(stable=True)  # (B,): number of blends before hue
    order, draws = order[by_place], draws[by_place]
    heads = torch.searchsorted(places, torch.arange(HUE), right=True).tolist()
    blends = order[order != HUE].view(-1, HUE)  # (B, 3) operations
    # Everything that depends on draws goes to the device in two asynchronous copies.
    sent = torch.cat([_coefficients(blends, draws), draws[:, HUE : HUE + 1]], dim=1).float()
    sent = sent.to(images.device, non_blocking=True)[:, :, None, None, None]  # (B, 10, 1, 1, 1)
    back = by_place.argsort()
    indices = torch.stack([by_place, back]).to(images.device, non_blocking=True)
    images = to_unit_floats(images.index_select(0, indices[0]))
    blended = any(settings.strengths[:HUE])
    for j, head in enumerate(heads):
        if blended:
            _blend_(images[head:], sent[head:, 3 * j : 3 * j + 3])
    if settings.hue:
        _shift_hue_(images, sent[:, 9, 0])
    for j, head in enumerate(heads):
        if blended:
            _blend_(images[:head], sent[:head, 3 * j : 3 * j + 3])
    return images.index_select(0, indices[1])


def _coefficients(blends: Tensor, draws: Tensor) -> Tensor:
    """Weights (B, 9) of the image, its gray version and its mean gray in each of the blends (B, 3)."""
    factors = draws.gather(1, blends)  # (B, 3)
    gray = (1 - factors) * (blends == SATURATION)
    mean = (1 - factors) * (blends == CONTRAST)
    return torch.stack([factors, gray, mean], dim=2).flatten(1)


def _blend_(images: Tensor, weights: Tensor) -> None:
    """Blend images (B, 3, H, W) in place with gray and mean gray by weights (B, 3, 1, 1, 1)."""
    if len(images):
        image_weight, gray_weight, mean_weight = weights.unbind(1)  # each (B, 1, 1, 1)
        gray = _gray(images)  # (B, 1, H, W)
        mean = gray.mean(dim=(1, 2, 3), keepdim=True)
        images.mul_(image_weight).add_(gray.mul_(gray_weight).add_(mean.mul_(mean_weight))).clamp_(0, 1)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=-3)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _shift_hue_(images: Tensor, shifts: Tensor) -> None:
    """Shift the hues of images (..., 3, H, W) in place by shifts (..., 1, 1), fractions of the full circle.

    With V the largest and v the smallest channel, each channel is v + (V - v) * w(distance from the hue to the
    channel), where hues run from -3 to 3 around the circle, red, green and blue are at 0, 2 and -2, and w falls from 1
    at distance 1 to 0 at distance 2.  This equals the six cases of HSV without comparisons or gathering.
    """
    red, green, blue = images.unbind(-3)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    spread = torch.maximum(red, green)
    torch.maximum(spread, blue, out=spread).sub_(low)
    # Gray pixels have spread 0: any hue gives the same result.
    hue = (green + blue).sub_(red).sub_(low).div_(spread.clamp(min=1e-12)).add_(1)  # distance from red, in 0..3
    hue = hue.copysign_(green - blue).add_(shifts * 6)
    hue.sub_(hue.mul(1 / 6).round_(), alpha=6)  # back to -3..3
    for channel, place in enumerate((0, 2, -2)):
        distance = hue.sub(place).abs_()
        # Between 1 and 5 around the circle |distance - 3| - 1 is w already; red's distances end at 3.
        weight = distance.sub_(3).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(low, spread, weight, out=images.select(-3, channel))


# --- resized crops ---------------------------------------------------------------------------------------------------


def _taps(starts: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Input pixels of each output pixel of a resized line: indices (T, B, S) int64 and weights (T, B, S) float32.

    The crop starts at `starts` (B,) and is `lengths` (B,) float64 long.  The filter is a triangle of half-width one
    output pixel, at least one input pixel; it is cut off and rescaled at the ends of the crop.
    """
    scale = (lengths / size).unsqueeze(1)  # (B, 1) input pixels per output pixel
    reach = scale.clamp(min=1)
    centers = scale * (torch.arange(size, dtype=torch.float64) + 0.5)  # (B, S)
    num_taps = math.ceil(2 * reach.max().item())
    taps = torch.arange(num_taps, dtype=torch.float64)[:, None, None]
    places = (centers - reach + 0.5).floor() + taps  # (T, B, S)
    weights = (1 - (places + 0.5 - centers).abs() / reach).clamp(min=0)
    last = lengths.unsqueeze(1) - 1
    weights *= (places >= 0) & (places <= last)
    weights /= weights.sum(dim=0)
    indices = places.clamp(min=0).minimum(last) + starts.unsqueeze(1)
    return indices.long(), weights.float()


def _resample(images: Tensor, dim: int, indices: Tensor, weights: Tensor, device: torch.device) -> Tensor:
    """Resize images (B, 3, H, W) along one dimension, a weighted sum of T gathered images."""
    # Gathering is faster than a product with sparse (S, H) matrices, and exact where such products use TF32.
    across = 3 if dim == 2 else 2
    indices = indices.to(device, non_blocking=True).unsqueeze(2).unsqueeze(across + 1)  # (T, B, 1, ...) as images
    weights = weights.to(device, non_blocking=True).unsqueeze(2).unsqueeze(across + 1)
    shape = list(images.shape)
    shape[dim] = indices.shape[1 + dim]
    result = torch.zeros(shape, device=device)
    for index, weight in zip(indices, weights, strict=True):
        result.addcmul_(images.gather(dim, index.expand(shape)), weight)
    return result
