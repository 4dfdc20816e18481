"""Color jitter and resized crop of a batch of photos on a GPU, in two Triton kernels: uint8 in, normalized float32 out.

The same function as `augment_batch` in augmentation.py.  The contrast step needs the mean gray of the whole image, so a
first kernel jitters the pixels up to that step and sums their gray.  A second kernel computes each pixel of the result
from the photo: it jitters the input pixels under the filter and adds them up, so nothing but the result is stored.
Each input pixel lies under the filters of about four output pixels, whatever the scale; computing it four times is much
cheaper than storing it.  Sums have a fixed order: the same bits in any batch.

Importing this module imports triton, which comes with torch's builds for CUDA on Linux.

Legend: B images, S side of the result; a row holds the random parameters of an image.
"""

from typing import Any, cast

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD, LUMA

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the order of the factors in augmentation.py
MAX_SCALE = 8  # input pixels per output pixel along an axis: beyond, few threads would have much work each
MAX_SIDE = 8192  # of the result: positions on the input are counted in 1 / (2 S) pixels, in 32 bits
MAX_ADDRESS = 2**30  # numbers in an image: addresses within an image have 32 bits

# Columns of a row.  Both jitters, up to the contrast step and whole, have the same layout.
# For each of three blends one after the other, the weights of the image, its gray version and its mean gray.
IMAGE_WEIGHTS, GRAY_WEIGHTS, MEAN_WEIGHTS = slice(0, 9, 3), slice(1, 9, 3), slice(2, 9, 3)
HUE_PLACE, HUE_SHIFT = 9, 10  # number of blends before the hue is turned, -1 for never; in sixths of the circle
JITTER_SIZE = 11
CROP = slice(2 * JITTER_SIZE, 2 * JITTER_SIZE + 4)  # top, left, height, width
ROW_SIZE = 2 * JITTER_SIZE + 4

PARTS = 64  # programs that share the mean of an image, a power of two; always as many: its sum has one order
PART_BLOCK = 1024  # pixels that such a program reads at once
TILE_HEIGHT, TILE_WIDTH, TILE_WARPS = 8, 32, 4  # of the result

jit: Any = cast("Any", triton.jit)  # its type refuses calls from one kernel to another

# Kernels read constants of a module only in this form.
_ROW_SIZE, _JITTER_SIZE = tl.constexpr(ROW_SIZE), tl.constexpr(JITTER_SIZE)
_LUMA_RED, _LUMA_GREEN, _LUMA_BLUE = (tl.constexpr(weight) for weight in LUMA)
_MEAN_RED, _MEAN_GREEN, _MEAN_BLUE = (tl.constexpr(mean) for mean in IMAGENET_MEAN)
_BY_STD_RED, _BY_STD_GREEN, _BY_STD_BLUE = (tl.constexpr(1 / std) for std in IMAGENET_STD)
_BY_255 = tl.constexpr(1 / 255)


def is_suited(images: Tensor, crops: np.ndarray, size: int) -> bool:
    """Whether the kernels can augment images (B, 3, H, W) with crops (B, 4) to size x size pixels."""
    return (
        images.dtype == torch.uint8
        and size <= MAX_SIDE
        and images.shape[2] * images.shape[3] * 3 < MAX_ADDRESS
        and crops[:, 2:].max(initial=0) <= MAX_SCALE * size
    )


def augment_by_kernels(
    images: Tensor, orders: np.ndarray, factors: np.ndarray, crops: np.ndarray, size: int, has_contrast: bool = True
) -> Tensor:
    """Augment images (B, 3, H, W) uint8 on a GPU: (B, 3, S, S) float32 there, normalized, channels last.

    orders: (B, 4), the operations of an image in their order.  factors: (B, 4), of brightness, contrast, saturation and
    hue; 1, 1, 1 and 0 change nothing.  crops: (B, 4) top, left, height and width in pixels, inside the images.
    has_contrast: whether any factor of contrast is not 1.  Nothing here waits for the GPU.
    """
    num_images, height, width = len(images), images.shape[2], images.shape[3]
    result = torch.empty((num_images, 3, size, size), device=images.device, memory_format=torch.channels_last)
    if num_images == 0:
        return result
    images, pixel_stride = _with_even_pixels(images)
    strides = images.stride(0), images.stride(1), pixel_stride
    with torch.cuda.device_of(images):  # kernels start on the current device
        sent = torch.empty((num_images, ROW_SIZE), pin_memory=images.is_cuda)
        _fill_rows(sent.numpy(), orders, factors, crops)
        rows = sent.to(images.device, non_blocking=True)
        sums = torch.empty((num_images, PARTS), device=images.device)
        if has_contrast:
            _sum_gray[(num_images * PARTS,)](
                images, rows, sums, height * width, *strides,
                PARTS=PARTS, BLOCK=PART_BLOCK, enable_fp_fusion=True,
            )  # fmt: skip
        num_tiles = -(-size // TILE_HEIGHT) * -(-size // TILE_WIDTH)
        _write_tile[(num_images * num_tiles,)](
            images, rows, sums, result, width, 1 / (height * width), size, *strides,
            HAS_CONTRAST=has_contrast, PARTS=PARTS, TILE_HEIGHT=TILE_HEIGHT, TILE_WIDTH=TILE_WIDTH,
            num_warps=TILE_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return result


def _with_even_pixels(images: Tensor) -> tuple[Tensor, int]:
    """The images, copied if needed, such that a fixed step leads from each pixel to the next; and this step."""
    height, width = images.shape[2:]
    step = images.stride(3) if width > 1 else images.stride(2)
    is_even = height == 1 or images.stride(2) == width * step
    if is_even and height * width * step + 2 * images.stride(1) < MAX_ADDRESS:
        return images, step
    return images.clone(memory_format=torch.contiguous_format), 1


def _fill_rows(rows: np.ndarray, orders: np.ndarray, factors: np.ndarray, crops: np.ndarray) -> None:
    """Compute the rows (B, ROW_SIZE) float32 of some images.

    Brightness, contrast and saturation are all `clamp(factor * image + (1 - factor) * other)`: three blends, and the
    hue is turned anywhere among them.
    """
    is_hue = orders == HUE
    hue_place = is_hue.argmax(axis=1)  # (B,)
    hue_place[factors[:, HUE] == 0] = -1
    blends = orders[~is_hue].reshape(-1, HUE)  # (B, 3) operations
    is_contrast = blends == CONTRAST
    contrast_place = is_contrast.argmax(axis=1)
    own = factors[np.arange(len(rows))[:, None], blends]  # (B, 3)
    before, whole = rows[:, :JITTER_SIZE], rows[:, JITTER_SIZE : 2 * JITTER_SIZE]
    whole[:, IMAGE_WEIGHTS] = own
    whole[:, GRAY_WEIGHTS] = (1 - own) * (blends == SATURATION)
    whole[:, MEAN_WEIGHTS] = (1 - own) * is_contrast
    whole[:, HUE_PLACE] = hue_place
    whole[:, HUE_SHIFT] = 6 * factors[:, HUE]
    before[:] = whole
    is_left_out = np.arange(HUE) >= contrast_place[:, None]
    before[:, IMAGE_WEIGHTS][is_left_out] = 1
    before[:, GRAY_WEIGHTS][is_left_out] = 0
    before[hue_place > contrast_place, HUE_PLACE] = -1
    rows[:, CROP] = crops


# --- pixels ----------------------------------------------------------------------------------------------------------


@jit
def _gray(red, green, blue):
    return red * _LUMA_RED + green * _LUMA_GREEN + blue * _LUMA_BLUE


@jit
def _blend(red, green, blue, image_weight, gray_weight, added):
    other = _gray(red, green, blue) * gray_weight + added
    red = tl.minimum(tl.maximum(red * image_weight + other, 0.0), 1.0)
    green = tl.minimum(tl.maximum(green * image_weight + other, 0.0), 1.0)
    blue = tl.minimum(tl.maximum(blue * image_weight + other, 0.0), 1.0)
    return red, green, blue


@jit
def _channel(low, spread, distance):
    weight = tl.minimum(tl.maximum(tl.abs(tl.abs(distance) - 3.0) - 1.0, 0.0), 1.0)
    return low + spread * weight


@jit
def _turn_hue(red, green, blue, shift):
    """The formula of `_shift_hue_` in augmentation.py; shift in sixths of the circle."""
    low = tl.minimum(tl.minimum(red, green), blue)
    spread = tl.maximum(tl.maximum(red, green), blue) - low
    hue = (green + blue - red - low) / tl.maximum(spread, 1e-12) + 1.0  # distance from red, in 0..3
    hue = tl.where(green < blue, -hue, hue) + shift
    hue -= 6.0 * tl.floor(hue * (1 / 6) + 0.5)  # back to -3..3
    return _channel(low, spread, hue), _channel(low, spread, hue - 2.0), _channel(low, spread, hue + 2.0)


@jit
def _jitter(red, green, blue, hue_place, shift, a0, b0, c0, a1, b1, c1, a2, b2, c2):
    """All steps of an image; a, b, c: weights of the image and its gray version and the added number in each blend."""
    if hue_place == 0:
        red, green, blue = _turn_hue(red, green, blue, shift)
    red, green, blue = _blend(red, green, blue, a0, b0, c0)
    if hue_place == 1:
        red, green, blue = _turn_hue(red, green, blue, shift)
    red, green, blue = _blend(red, green, blue, a1, b1, c1)
    if hue_place == 2:
        red, green, blue = _turn_hue(red, green, blue, shift)
    red, green, blue = _blend(red, green, blue, a2, b2, c2)
    if hue_place == 3:
        red, green, blue = _turn_hue(red, green, blue, shift)
    return red, green, blue


@jit(do_not_specialize=["num_pixels", "image_stride", "channel_stride", "pixel_stride"])
def _sum_gray(
    images, rows, sums, num_pixels, image_stride, channel_stride, pixel_stride, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Write sums (B, PARTS): the gray of the pixels of each part, at the moment when contrast is changed."""
    program = tl.program_id(0)
    image, part = program // PARTS, program % PARTS
    pixels = images + image.to(tl.int64) * image_stride
    row = rows + image * _ROW_SIZE
    a0, b0, a1, b1 = tl.load(row), tl.load(row + 1), tl.load(row + 3), tl.load(row + 4)
    a2, b2 = tl.load(row + 6), tl.load(row + 7)
    hue_place, shift = tl.load(row + 9), tl.load(row + 10)
    total = tl.full([BLOCK], 0.0, tl.float32)
    for start in range(part * BLOCK, num_pixels, PARTS * BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        is_inside = pixel < num_pixels
        red_at = pixels + pixel * pixel_stride
        red = tl.load(red_at, mask=is_inside, other=0).to(tl.float32) * _BY_255
        green = tl.load(red_at + channel_stride, mask=is_inside, other=0).to(tl.float32) * _BY_255
        blue = tl.load(red_at + 2 * channel_stride, mask=is_inside, other=0).to(tl.float32) * _BY_255
        red, green, blue = _jitter(red, green, blue, hue_place, shift, a0, b0, 0.0, a1, b1, 0.0, a2, b2, 0.0)
        total += tl.where(is_inside, _gray(red, green, blue), 0.0)
    tl.store(sums + program, tl.sum(total))


# --- resized crops ---------------------------------------------------------------------------------------------------


@jit
def _filter(first_output, length, size, BLOCK: tl.constexpr):
    """The filter of some output pixels, as `_taps` in augmentation.py, in exact integers: the unit is 1 / (2 S) pixels.

    Returns the number of taps, then for each output pixel its center and its first tap; and the reach of the filter.
    """
    reach = 2 * tl.maximum(length, size)
    num_taps = (reach + size - 1) // size
    output = tl.minimum(first_output + tl.arange(0, BLOCK), size - 1)  # tiles may reach beyond the result
    center = length * (2 * output + 1)
    # Division rounds toward zero: the dividend is kept above it.
    first = (center - reach + size + 2 * size * num_taps) // (2 * size) - num_taps
    return num_taps, center, first, reach


@jit
def _tap(place, center, reach, length, size):
    """Weight of input pixels at `place`, not yet divided by the sum of weights, and their place inside the crop."""
    weight = tl.maximum(reach - tl.abs((2 * place + 1) * size - center), 0)
    weight = tl.where((place >= 0) & (place < length), weight, 0).to(tl.float32)
    return weight, tl.minimum(tl.maximum(place, 0), length - 1)


@jit(do_not_specialize=["width", "size", "image_stride", "channel_stride", "pixel_stride"])
def _write_tile(
    images, rows, sums, result, width, by_num_pixels, size, image_stride, channel_stride, pixel_stride,
    HAS_CONTRAST: tl.constexpr, PARTS: tl.constexpr, TILE_HEIGHT: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute one tile of one image of the result (B, S, S, 3)."""
    tiles_across = tl.cdiv(size, TILE_WIDTH)
    num_tiles = tl.cdiv(size, TILE_HEIGHT) * tiles_across
    image, tile = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    top_of_tile, left_of_tile = tile // tiles_across * TILE_HEIGHT, tile % tiles_across * TILE_WIDTH

    row = rows + image * _ROW_SIZE + _JITTER_SIZE
    a0, b0, c0 = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    a1, b1, c1 = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    a2, b2, c2 = tl.load(row + 6), tl.load(row + 7), tl.load(row + 8)
    hue_place, shift = tl.load(row + 9), tl.load(row + 10)
    top, left = tl.load(row + 11).to(tl.int32), tl.load(row + 12).to(tl.int32)
    height_of_crop, width_of_crop = tl.load(row + 13).to(tl.int32), tl.load(row + 14).to(tl.int32)
    if HAS_CONTRAST:
        mean = tl.sum(tl.load(sums + image * PARTS + tl.arange(0, PARTS))) * by_num_pixels
        c0, c1, c2 = c0 * mean, c1 * mean, c2 * mean

    pixels = images + image.to(tl.int64) * image_stride
    taps_down, y_center, y_first, y_reach = _filter(top_of_tile, height_of_crop, size, TILE_HEIGHT)
    taps_across, x_center, x_first, x_reach = _filter(left_of_tile, width_of_crop, size, TILE_WIDTH)
    total = tl.full([TILE_HEIGHT, TILE_WIDTH], 0.0, tl.float32)  # of the weights
    red_sum, green_sum, blue_sum = total, total, total
    for down in range(taps_down):
        y_weight, y = _tap(y_first + down, y_center, y_reach, height_of_crop, size)
        line = (top + y) * width + left
        for across in range(taps_across):
            x_weight, x = _tap(x_first + across, x_center, x_reach, width_of_crop, size)
            weight = y_weight[:, None] * x_weight[None, :]
            red_at = pixels + (line[:, None] + x[None, :]) * pixel_stride
            red = tl.load(red_at).to(tl.float32) * _BY_255
            green = tl.load(red_at + channel_stride).to(tl.float32) * _BY_255
            blue = tl.load(red_at + 2 * channel_stride).to(tl.float32) * _BY_255
            red, green, blue = _jitter(red, green, blue, hue_place, shift, a0, b0, c0, a1, b1, c1, a2, b2, c2)
            total += weight
            red_sum += weight * red
            green_sum += weight * green
            blue_sum += weight * blue

    y_out, x_out = top_of_tile + tl.arange(0, TILE_HEIGHT), left_of_tile + tl.arange(0, TILE_WIDTH)
    is_inside = (y_out < size)[:, None] & (x_out < size)[None, :]
    red_to = result + (image.to(tl.int64) * size * size + y_out[:, None] * size + x_out[None, :]) * 3
    tl.store(red_to, (red_sum / total - _MEAN_RED) * _BY_STD_RED, mask=is_inside)
    tl.store(red_to + 1, (green_sum / total - _MEAN_GREEN) * _BY_STD_GREEN, mask=is_inside)
    tl.store(red_to + 2, (blue_sum / total - _MEAN_BLUE) * _BY_STD_BLUE, mask=is_inside)
