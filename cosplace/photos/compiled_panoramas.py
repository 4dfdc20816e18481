"""Perspective crops of panoramas, compiled: the same pixels as `sample_bilinear` in panoramas.py.

One map serves all crops of panoramas with the same size, as another yaw only shifts the columns.  Importing this module
imports numba.
"""

import numpy as np

from cosplace.compiled import compiled_for, inlined
from cosplace.photos.panoramas import Coverage, CropView, column_shift, crop_map


@inlined
def _inside(row: int, height: int, turn_above: int, turn_below: int) -> tuple[int, int]:
    """The row of a panorama that continues it at `row`, and the columns by which it is turned."""
    if row < 0:
        return 0, turn_above
    return (row, 0) if row < height else (height - 1, turn_below)


@compiled_for(
    "void(Array(uint8, 3, 'C', readonly=True), Array(float64, 2, 'C', readonly=True), "
    "Array(float64, 2, 'C', readonly=True), float64, boolean, int64, int64, uint8[:, :, ::1])"
)
def _sample(  # noqa: PLR0917 - compiled functions take plain positional arguments
    pixels: np.ndarray, columns: np.ndarray, rows: np.ndarray, shift: float,
    is_closed: bool, turn_above: int, turn_below: int, out: np.ndarray,
) -> None:  # fmt: skip
    height, width = pixels.shape[0], pixels.shape[1]
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            column, row = columns[y, x] + shift, rows[y, x]
            left, top = int(np.floor(column)), int(np.floor(row))
            right_weight, bottom_weight = column - left, row - top
            bottom, lower_turn = _inside(top + 1, height, turn_above, turn_below)
            top, upper_turn = _inside(top, height, turn_above, turn_below)
            if is_closed:
                while left < 0:  # faster than a division
                    left += width
                while left >= width:
                    left -= width
                right = left + 1 if left + 1 < width else 0
            else:
                left, right = min(max(left, 0), width - 1), min(max(left + 1, 0), width - 1)
            upper_left, upper_right, lower_left, lower_right = left, right, left, right
            if upper_turn or lower_turn:
                upper_left, upper_right = (left + upper_turn) % width, (right + upper_turn) % width
                lower_left, lower_right = (left + lower_turn) % width, (right + lower_turn) % width
            for channel in range(3):
                upper = (
                    pixels[top, upper_left, channel] * (1 - right_weight)
                    + pixels[top, upper_right, channel] * right_weight
                )
                lower = (
                    pixels[bottom, lower_left, channel] * (1 - right_weight)
                    + pixels[bottom, lower_right, channel] * right_weight
                )
                out[y, x, channel] = int(upper * (1 - bottom_weight) + lower * bottom_weight + 0.5)


def fast_crop(pixels: np.ndarray, coverage: Coverage, view: CropView, yaw: float) -> np.ndarray:
    """One crop of a panorama (H, W, 3) uint8; (h, w, 3) uint8, as `plain_crop`."""
    columns, rows = crop_map(coverage, view)
    out = np.empty((view.height, view.width, 3), np.uint8)
    opposite = pixels.shape[1] // 2  # columns to the other side of a pole
    turn_above, turn_below = opposite * coverage.has_zenith, opposite * coverage.has_nadir
    shift = column_shift(coverage, yaw)
    _sample(np.ascontiguousarray(pixels), columns, rows, shift, coverage.is_closed, turn_above, turn_below, out)
    return out
