"""Color jitter and resized crop of one image, compiled: uint8 in, normalized float32 out.

The same function as `augment_batch` in augmentation.py, computed row by row: a row is read, jittered, resized
horizontally and added to the rows of the result that it contributes to, all in the processor's first-level cache.
Each operation is a plain loop over a row, which the compiler vectorizes.  One image at a time in one thread, without
state: the result does not depend on the number of threads.  Importing this module imports numba.

Legend: W, S widths of the image and of the result; T the largest number of input pixels per output pixel; `line` a row
of an image in [0, 1], (3, W + T) float32, followed by T zeros.
"""

from typing import NamedTuple

import numpy as np

from cosplace.compiled import compiled_for, inner_function

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the order of the factors in augmentation.py
DOWN, ACROSS = 0, 1  # resize vertically, horizontally

# Plain literals are float64 and would make every result float64.
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
TINY = np.float32(1e-12)
BYTE = np.float32(255)
TURN = 2.0**32  # the full circle of hues as an integer; elsewhere the unit is a sixth of it
SIXTH_TURN = round(TURN / 6)
SIXTH, SIXTHS = np.float32(TURN / 6), np.float32(6 / TURN)


class Buffers(NamedTuple):
    """Working memory of one thread: the compiled code allocates nothing."""

    line: np.ndarray  # (3, W + T) float32
    sums: np.ndarray  # (W,) float64: sums of gray
    ring: np.ndarray  # (T, 3, S) float32: the last rows, resized horizontally; row y at y % T
    # (2, 2, S) int64: for each direction, first input pixel and number of input pixels of each output pixel
    spans: np.ndarray
    weights: np.ndarray  # (2, T, S) float32: their weights


def make_buffers(height: int, width: int, size: int) -> Buffers:
    """Working memory for images of height x width pixels, resized to size x size."""
    most = 2 * -(-max(height, width, size) // size) + 1
    return Buffers(
        line=np.empty((3, width + most), np.float32),
        sums=np.empty(width),
        ring=np.empty((most, 3, size), np.float32),
        spans=np.empty((2, 2, size), np.int64),
        weights=np.empty((2, most, size), np.float32),
    )


# --- color jitter ----------------------------------------------------------------------------------------------------


@inner_function("void(uint8[::1], float32[::1])")
def _to_unit_floats(source: np.ndarray, out: np.ndarray) -> None:
    for x in range(len(source)):
        out[x] = np.float32(source[x]) / BYTE


@inner_function("void(float32[:, ::1], int64, float64, float64)")
def _blend(line: np.ndarray, width: int, factor: float, offset: float) -> None:
    own, other = np.float32(factor), np.float32(offset)
    for c in range(3):
        for x in range(width):
            line[c, x] = min(max(line[c, x] * own + other, ZERO), ONE)


@inner_function("void(float32[:, ::1], int64, float64, float32[::1])")
def _saturate(line: np.ndarray, width: int, factor: float, luma: np.ndarray) -> None:
    red, green, blue = luma[0], luma[1], luma[2]
    own, rest = np.float32(factor), np.float32(1 - factor)
    for x in range(width):
        gray = (line[0, x] * red + line[1, x] * green + line[2, x] * blue) * rest
        line[0, x] = min(max(line[0, x] * own + gray, ZERO), ONE)
        line[1, x] = min(max(line[1, x] * own + gray, ZERO), ONE)
        line[2, x] = min(max(line[2, x] * own + gray, ZERO), ONE)


@inner_function("float32(int64)")
def _weight(distance: int) -> np.float32:
    return min(max(TWO - abs(np.float32(np.int32(distance)) * SIXTHS), ZERO), ONE)


@inner_function("void(float32[:, ::1], int64, float64)")
def _shift_hue(line: np.ndarray, width: int, turns: float) -> None:
    """Turn hues as `cosplace.training.augmentation._shift_hue_`, which says how.

    Hues are integers of 32 bits that overflow after one turn: they need no comparisons and lose nothing by additions.
    """
    shift = np.int32(np.int64((turns - np.floor(turns)) * TURN))
    for x in range(width):
        red, green, blue = line[0, x], line[1, x], line[2, x]
        low = min(red, green, blue)
        spread = max(red, green, blue) - low
        past = ((green - red) + (blue - low)) / max(spread, TINY)  # distance from red, less one: in -1..2
        hue = np.int32(past * SIXTH) + SIXTH_TURN
        hue = np.int32((hue if green >= blue else -hue) + shift)
        line[0, x] = low + spread * _weight(hue)
        line[1, x] = low + spread * _weight(hue - 2 * SIXTH_TURN)
        line[2, x] = low + spread * _weight(hue + 2 * SIXTH_TURN)


@inner_function("void(float32[:, ::1], int64, int64[::1], float64[::1], float64, float32[::1])")
def _jitter(
    line: np.ndarray, width: int, steps: np.ndarray, factors: np.ndarray, mean: float, luma: np.ndarray
) -> None:
    for place in range(len(steps)):
        step, factor = steps[place], factors[place]
        if step == BRIGHTNESS:
            _blend(line, width, factor, 0.0)
        elif step == CONTRAST:
            _blend(line, width, factor, (1 - factor) * mean)
        elif step == SATURATION:
            _saturate(line, width, factor, luma)
        elif step == HUE:
            _shift_hue(line, width, factor)


@inner_function("void(float32[:, ::1], int64, float32[::1], float64[::1])")
def _add_gray(line: np.ndarray, width: int, luma: np.ndarray, sums: np.ndarray) -> None:
    """Add the grays of a row to sums of columns, which are independent of each other as vector instructions want."""
    red, green, blue = luma[0], luma[1], luma[2]
    for x in range(width):
        sums[x] += np.float64(line[0, x] * red + line[1, x] * green + line[2, x] * blue)


@inner_function("float64(uint8[:, :, ::1], int64[::1], float64[::1], float32[::1], float32[:, ::1], float64[::1])")
def _mean_gray(
    image: np.ndarray, steps: np.ndarray, factors: np.ndarray, luma: np.ndarray, line: np.ndarray, sums: np.ndarray
) -> float:
    """Mean gray of the whole image after some steps."""
    height, width = image.shape[1], image.shape[2]
    sums[:] = 0.0
    for y in range(height):
        for c in range(3):
            _to_unit_floats(image[c, y], line[c])
        _jitter(line, width, steps, factors, 0.0, luma)
        _add_gray(line, width, luma, sums)
    total = 0.0
    for x in range(width):
        total += sums[x]
    return total / (height * width)


# --- resizing --------------------------------------------------------------------------------------------------------


@inner_function("int64(int64, int64[:, ::1], float32[:, ::1])")
def _find_taps(length: int, spans: np.ndarray, weights: np.ndarray) -> int:
    """Which pixels of a line make up each pixel of the resized line, as `cosplace.training.augmentation._taps`.

    Fills spans (2, S) and weights (T, S); returns how many pixels make up one at most.
    """
    size, most = spans.shape[1], 0
    scale = length / size
    reach = max(scale, 1.0)
    for s in range(size):
        center = scale * (s + 0.5)
        start = max(int(center - reach + 0.5), 0)
        count = min(int(center + reach + 0.5), length) - start
        total = 0.0
        for t in range(count):
            total += max(1.0 - abs(start + t + 0.5 - center) / reach, 0.0)
        for t in range(len(weights)):
            weight = max(1.0 - abs(start + t + 0.5 - center) / reach, 0.0) / total
            weights[t, s] = np.float32(weight) if t < count else ZERO
        spans[0, s], spans[1, s] = start, count
        most = max(most, count)
    return most


@inner_function("void(float32[:, ::1], int64[::1], float32[:, ::1], int64, float32[:, ::1])")
def _resize_across(line: np.ndarray, starts: np.ndarray, weights: np.ndarray, num_taps: int, out: np.ndarray) -> None:
    """Resize a row (3, W + T) along itself: (3, S)."""
    size = len(starts)
    for s in range(size):
        # Unsigned numbers spare the question whether an index counts from the end.
        left, right = np.uint64(starts[s]), np.uint64(starts[s] + 1)
        left_weight, right_weight = weights[0, s], weights[1, s]
        out[0, s] = left_weight * line[0, left] + right_weight * line[0, right]
        out[1, s] = left_weight * line[1, left] + right_weight * line[1, right]
        out[2, s] = left_weight * line[2, left] + right_weight * line[2, right]
    for t in range(2, num_taps):
        for s in range(size):
            place, weight = np.uint64(starts[s] + t), weights[t, s]
            out[0, s] += weight * line[0, place]
            out[1, s] += weight * line[1, place]
            out[2, s] += weight * line[2, place]


@inner_function("void(float32[::1], float32, float32, float32[::1])")
def _scale(source: np.ndarray, factor: np.float32, offset: np.float32, out: np.ndarray) -> None:
    for x in range(len(source)):
        out[x] = source[x] * factor + offset


@inner_function("void(float32[::1], float32, float32[::1])")
def _add_scaled(source: np.ndarray, factor: np.float32, out: np.ndarray) -> None:
    for x in range(len(source)):
        out[x] += source[x] * factor


@inner_function("void(float32[:, :, ::1], int64, int64, float32[:, ::1], int64, float32[:, ::1], float32[:, :, ::1])")
def _resize_down(
    ring: np.ndarray,
    start: int,
    count: int,
    weights: np.ndarray,
    row: int,
    channels: np.ndarray,
    result: np.ndarray,
) -> None:
    """Make one normalised row of the result (3, S, S) from `count` rows of the ring."""
    for c in range(3):
        gain, offset = channels[1, c], channels[2, c]
        out = result[c, row]
        _scale(ring[start % len(ring), c], weights[0, row] * gain, offset, out)
        for t in range(1, count):
            _add_scaled(ring[(start + t) % len(ring), c], weights[t, row] * gain, out)


# --- the whole -------------------------------------------------------------------------------------------------------


@compiled_for(
    "void(uint8[:, :, ::1], int64[::1], float64[::1], int64[::1], float32[:, ::1], float32[:, ::1], float64[::1],"
    " float32[:, :, ::1], int64[:, :, ::1], float32[:, :, ::1], float32[:, :, ::1])"
)
def augment_image(  # eager signatures of numba take plain arrays, not a NamedTuple
    image: np.ndarray,
    steps: np.ndarray,
    factors: np.ndarray,
    crop: np.ndarray,
    channels: np.ndarray,
    line: np.ndarray,
    sums: np.ndarray,
    ring: np.ndarray,
    spans: np.ndarray,
    weights: np.ndarray,
    result: np.ndarray,
) -> None:
    """Augment one image (3, H, W) uint8 into `result` (3, S, S) float32.

    steps: (4,) int64, the operations in order; a negative number means none.  factors: (4,) float64, one per step.
    crop: (4,) int64, top, left, height, width; must lie in the image (not checked).
    channels: (3, 3) float32: for each channel its weight in gray, and scale and offset of the normalization.
    line, sums, ring, spans, weights: from `make_buffers`.
    """
    luma, mean = channels[0], 0.0
    for place in range(4):
        if steps[place] == CONTRAST:
            mean = _mean_gray(image, steps[:place], factors[:place], luma, line, sums)
    top, left, height, width = crop[0], crop[1], crop[2], crop[3]
    _find_taps(height, spans[DOWN], weights[DOWN])
    num_taps = _find_taps(width, spans[ACROSS], weights[ACROSS])
    line[:, width:] = ZERO
    done = 0
    for row in range(result.shape[1]):
        start, count = spans[DOWN, 0, row], spans[DOWN, 1, row]
        while done < start + count:
            for c in range(3):
                _to_unit_floats(image[c, top + done, left : left + width], line[c])
            _jitter(line, width, steps, factors, mean, luma)
            _resize_across(line, spans[ACROSS, 0], weights[ACROSS], num_taps, ring[done % len(ring)])
            done += 1
        _resize_down(ring, start, count, weights[DOWN], row, channels, result)
