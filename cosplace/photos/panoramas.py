"""Equirectangular panoramas to perspective crops: the geometry, in plain NumPy, and for a GPU in torch.

A panorama shows azimuth along its columns and elevation along its rows, both linearly.  A crop is what a pinhole camera
would see that looks in one direction: `pitch` degrees up, and `yaw` degrees clockwise from the center of the image.
Pixels are areas: the center of the first one is at 0.5, and a field of view extends from edge to edge.

`compiled_panoramas` computes the same pixels as `sample_bilinear`, much faster.  Pure functions.
GPano: https://developers.google.com/streetview/spherical-metadata.

Legend: H, W rows and columns of the panorama; h, w of a crop; N crops.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cosplace.photos.xmp import GPANO_NAMESPACE

if TYPE_CHECKING:
    import torch

STRIP_SIZE = (3328, 512)  # width and height of the panoramas of SF-XL
STRIP_HORIZON = 320.0  # they are rows 512 to 1023 of panoramas with 1664 rows, whose horizon is row 832
MAX_ASPECT_ERROR = 0.002  # of 2:1; a few pixels of rounding
HALF_PIXEL = 0.5
PITCH_STEP, MAX_FITTED_PITCH = 0.05, 60.0  # degrees
BLENDING_ROUND = 0.5
MAX_SHAPE_ERROR = 0.02  # of width / height, from that which the properties of an image state
VIEW_COLUMNS = 512  # of a strip of STRIP_SIZE: the views of SF-XL and EigenPlaces, 55.4 degrees
FULL_ROWS = 1664  # of the panoramas that the strips are cut from


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Which part of the sphere an equirectangular image shows."""

    width: int  # pixels of the image
    height: int
    full_width: float  # pixels of 360 degrees
    full_height: float  # pixels of 180 degrees
    top: float = 0.0  # rows of the sphere above the image
    shift: float = 0.0  # azimuth of the center of the image from that of the whole panorama, degrees

    @property
    def is_closed(self) -> bool:
        """Whether the last column is next to the first."""
        return abs(self.full_width - self.width) < HALF_PIXEL

    @property
    def has_zenith(self) -> bool:
        """Whether the first row is next to the zenith, so that what follows above is on the other side."""
        return self.is_closed and abs(self.top) < HALF_PIXEL

    @property
    def has_nadir(self) -> bool:
        """Whether the last row is next to the nadir."""
        return self.is_closed and abs(self.top + self.height - self.full_height) < HALF_PIXEL

    @property
    def elevations(self) -> tuple[float, float]:
        """The lowest and the highest elevation in the image, in degrees."""
        low, high = (90 - 180 * row / self.full_height for row in (self.top + self.height, self.top))
        return low, high

    def resized(self, width: int, height: int) -> "Coverage":
        """The same part of the sphere with other numbers of pixels."""
        across, down = width / self.width, height / self.height
        return replace(
            self, width=width, height=height, full_width=self.full_width * across,
            full_height=self.full_height * down, top=self.top * down,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CropView:
    """The camera of a crop, without its yaw."""

    width: int  # pixels
    height: int
    field_of_view: float  # horizontal, degrees, from edge to edge
    pitch: float = 0.0  # degrees, up is positive

    @property
    def focal_length(self) -> float:
        """Pixels."""
        return self.width / 2 / math.tan(math.radians(self.field_of_view) / 2)


# --- what an image shows ---------------------------------------------------------------------------------------------


def coverage_of(
    width: int, height: int, properties: Mapping[str, str], horizon_row: float | None = None
) -> Coverage | None:
    """The part of the sphere that an image shows; None if it is not known to be an equirectangular panorama.

    properties: of the image's XMP packet, see `read_xmp`.  GPano decides; without it, 2:1 images show everything.
    horizon_row: row of the horizon in images that show 360 degrees, but neither zenith nor nadir.
    """
    projection = properties.get(f"{{{GPANO_NAMESPACE}}}ProjectionType", "").lower()
    if projection and projection != "equirectangular":
        return None
    if not width or not height:
        return None
    if found := _gpano_coverage(width, height, properties):
        return found
    if abs(width / height - 2) <= 2 * MAX_ASPECT_ERROR:
        return Coverage(width=width, height=height, full_width=width, full_height=height)
    if horizon_row is None and (width, height) == STRIP_SIZE:
        horizon_row = STRIP_HORIZON
    if horizon_row is None or width < 2 * height:
        return None
    return Coverage(width=width, height=height, full_width=width, full_height=width / 2, top=width / 4 - horizon_row)


def gpano_heading(properties: Mapping[str, str], coverage: Coverage) -> float:
    """Heading of the center of an image by its GPano properties, in degrees; nan without one.

    GPano states that of the whole panorama, of which the image may be a part.
    """
    if is_of_another_image(coverage.width, coverage.height, properties):
        return math.nan
    return (pose_heading(properties) + coverage.shift) % 360


def pose_heading(properties: Mapping[str, str]) -> float:
    """Heading of the center of the whole panorama by GPano, in degrees; nan without one."""
    heading = _number(properties, "PoseHeadingDegrees")
    return heading if -360 <= heading <= 360 else math.nan


def gpano_tilt(properties: Mapping[str, str]) -> float:
    """Degrees by which the camera was not level, 0 where unknown."""
    angles = [_number(properties, name) for name in ("PosePitchDegrees", "PoseRollDegrees")]
    return max(abs(angle) if abs(angle) <= 180 else 0.0 for angle in angles)


def is_of_another_image(width: int, height: int, properties: Mapping[str, str]) -> bool:
    """Whether GPano states the size of an image of another shape: a part was cut out later, with its properties."""
    part_width, part_height = (_number(properties, f"CroppedAreaImage{side}Pixels") for side in ("Width", "Height"))
    return min(width, height, part_width, part_height) > 0 and (
        abs(width / part_width * part_height / height - 1) > MAX_SHAPE_ERROR
    )


def _gpano_coverage(width: int, height: int, properties: Mapping[str, str]) -> Coverage | None:
    """Of an image that may have been resized after its properties were written; None without valid ones."""
    full_width, full_height, part_width, part_height, left, top = (
        _number(properties, name)
        for name in (
            "FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaImageWidthPixels",
            "CroppedAreaImageHeightPixels", "CroppedAreaLeftPixels", "CroppedAreaTopPixels",
        )
    )  # fmt: skip
    if not (0 < part_width <= full_width and 0 < part_height <= full_height and left >= 0):
        return None
    if not 0 <= top <= full_height - part_height or max(full_width, full_height) > 1e9:
        return None
    if is_of_another_image(width, height, properties):
        return None
    shift = ((left + part_width / 2) / full_width - 0.5) * 360
    coverage = Coverage(
        width=round(part_width), height=round(part_height), full_width=full_width, full_height=full_height, top=top,
        shift=(shift + 180) % 360 - 180,
    )  # fmt: skip
    return coverage.resized(width, height)


def _number(properties: Mapping[str, str], name: str) -> float:
    try:
        value = float(properties.get(f"{{{GPANO_NAMESPACE}}}{name}", ""))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


# --- geometry --------------------------------------------------------------------------------------------------------


def crop_directions(view: CropView) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth from the optical axis and elevation of each pixel of a crop, (h, w) float64 in radians each."""
    x = (np.arange(view.width) + 0.5 - view.width / 2) / view.focal_length  # right
    y = (view.height / 2 - 0.5 - np.arange(view.height)) / view.focal_length  # up
    x, y = np.meshgrid(x, y)
    cosine, sine = math.cos(math.radians(view.pitch)), math.sin(math.radians(view.pitch))
    up, forward = y * cosine + sine, cosine - y * sine
    return np.arctan2(x, forward), np.arctan2(up, np.hypot(x, forward))


@lru_cache(maxsize=16)
def crop_map(coverage: Coverage, view: CropView) -> tuple[np.ndarray, np.ndarray]:
    """Column and row in the panorama of each pixel of the crop with yaw 0, (h, w) float64 each, read-only.

    The map of another yaw is the same, `column_shift` columns further right.
    """
    azimuths, elevations = crop_directions(view)
    columns = azimuths * (coverage.full_width / (2 * math.pi)) + (coverage.width - 1) / 2
    rows = (0.5 - elevations / math.pi) * coverage.full_height - 0.5 - coverage.top
    for one in (columns, rows):
        one.flags.writeable = False
    return columns, rows


def column_shift(coverage: Coverage, yaw: float) -> float:
    """Columns between the crop with a yaw in degrees and the one with yaw 0; modulo the width."""
    return ((yaw + 180) % 360 - 180) / 360 * coverage.full_width


def shows(coverage: Coverage, view: CropView, yaw: float = 0.0) -> bool:
    """Whether a panorama shows all that a crop does."""
    columns, rows = crop_map(coverage, view)
    if not coverage.has_zenith and rows.min() < -HALF_PIXEL:
        return False
    if not coverage.has_nadir and rows.max() > coverage.height - HALF_PIXEL:
        return False
    shift = column_shift(coverage, yaw)
    return coverage.is_closed or (
        columns.min() + shift >= -HALF_PIXEL and columns.max() + shift <= coverage.width - HALF_PIXEL
    )


def fitted_pitch(coverage: Coverage, view: CropView) -> float | None:
    """The pitch nearest to 0 with which a panorama shows all rows of a crop, a multiple of PITCH_STEP; None if none."""
    low, high = coverage.elevations
    half_pixel = 90 / coverage.full_height
    low = -90.0 if coverage.has_nadir else low - half_pixel
    high = 90.0 if coverage.has_zenith else high + half_pixel
    for step in range(round(MAX_FITTED_PITCH / PITCH_STEP) + 1):
        for pitch in (round(step * PITCH_STEP, 2), round(-step * PITCH_STEP, 2)):
            lowest, highest = crop_elevations(replace(view, pitch=pitch))
            if low <= lowest and highest <= high:
                return pitch
    return None


def crop_elevations(view: CropView) -> tuple[float, float]:
    """The lowest and the highest elevation in a crop, in degrees: in the middle or at the ends of its outer rows."""
    x, y = view.width / 2 / view.focal_length, view.height / 2 / view.focal_length
    cosine, sine = math.cos(math.radians(view.pitch)), math.sin(math.radians(view.pitch))
    elevations = []
    for row in (y, -y):
        up, forward = row * cosine + sine, cosine - row * sine
        if forward <= 0:  # the crop contains a pole
            elevations.append(math.copysign(90, up))
        elevations += [math.degrees(math.atan2(up, math.hypot(column, forward))) for column in (0, x)]
    return min(elevations), max(elevations)


def reduction(coverage: Coverage, view: CropView) -> int:
    """How many times more detailed a panorama is than the center of a crop, rounded down; at least 1."""
    return max(1, math.floor(coverage.full_width / (2 * math.pi) / view.focal_length + 1e-9))


def reduced(pixels: np.ndarray, coverage: Coverage, factor: int) -> tuple[np.ndarray, Coverage]:
    """A panorama with `factor` times fewer columns and rows, each pixel the mean of the area that it replaces.

    Bilinear interpolation reads four pixels for one of the crop: more detailed panoramas would be sampled with gaps.
    """
    if factor == 1:
        return pixels, coverage
    from PIL import Image

    width, height = max(1, round(coverage.width / factor)), max(1, round(coverage.height / factor))
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small), coverage.resized(width, height)


# --- pixels ----------------------------------------------------------------------------------------------------------


def sample_bilinear(pixels: np.ndarray, coverage: Coverage, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pixels of a panorama (H, W, 3) uint8 at columns and rows (h, w), interpolated; (h, w, 3) uint8.

    Next to the last column is the first one, and above the first row is the other side of the zenith.
    """
    left, top = np.floor(columns), np.floor(rows)
    right_weight, bottom_weight = (columns - left)[..., None], (rows - top)[..., None]
    left, top = left.astype(np.int64), top.astype(np.int64)

    def pixels_at(column: np.ndarray, row: np.ndarray) -> np.ndarray:
        beyond = ((row < 0) & coverage.has_zenith) | ((row >= coverage.height) & coverage.has_nadir)
        column = np.where(beyond, column + coverage.width // 2, column)
        column = column % coverage.width if coverage.is_closed else np.clip(column, 0, coverage.width - 1)
        return pixels[np.clip(row, 0, coverage.height - 1), column].astype(np.float64)

    upper = pixels_at(left, top) * (1 - right_weight) + pixels_at(left + 1, top) * right_weight
    lower = pixels_at(left, top + 1) * (1 - right_weight) + pixels_at(left + 1, top + 1) * right_weight
    return np.floor(upper * (1 - bottom_weight) + lower * bottom_weight + BLENDING_ROUND).astype(np.uint8)


def plain_crop(pixels: np.ndarray, coverage: Coverage, view: CropView, yaw: float) -> np.ndarray:
    """One crop of a panorama (H, W, 3) uint8; (h, w, 3) uint8."""
    columns, rows = crop_map(coverage, view)
    return sample_bilinear(pixels, coverage, columns + column_shift(coverage, yaw), rows)


def cut_view(pixels: np.ndarray, offset: float) -> np.ndarray:
    """A square part of a panorama (H, W, 3) of 360 degrees, as EigenPlaces trains on; (S, S, 3) uint8.

    Its center is `offset` degrees clockwise from the center of the panorama: column W ((offset + 180) mod 360) / 360.
    It is a plain part, without perspective projection, 55.4 degrees wide or as wide as the strip is high; it continues
    across the seam.  Of a whole sphere (2:1), it shows the rows that SF-XL keeps; of other images, those in the middle.
    Raises ValueError for an image that cannot be a panorama of 360 degrees.
    """
    height, width, _ = pixels.shape
    if width < (2 - 2 * MAX_ASPECT_ERROR) * height:
        raise ValueError(f"is not a panorama of 360 degrees: it has {width} x {height} pixels.")
    side = min(height, max(1, round(width * VIEW_COLUMNS / STRIP_SIZE[0])))
    is_sphere = width <= (2 + 2 * MAX_ASPECT_ERROR) * height
    top = round(height * VIEW_COLUMNS / FULL_ROWS) if is_sphere else (height - side) // 2
    left = math.floor(width * ((offset + 180) % 360) / 360) - side // 2
    return pixels[top : top + side].take(range(left, left + side), axis=1, mode="wrap")


def crops_on_device(
    pixels: np.ndarray, coverage: Coverage, view: CropView, yaws: Sequence[float], device: "torch.device"
) -> np.ndarray:
    """All crops of a panorama (H, W, 3) uint8, computed on a device; (N, h, w, 3) uint8.

    Equal to `plain_crop` up to one gray level, where fp32 rounds differently.
    """
    import torch
    from torch.nn.functional import grid_sample

    padded = _padded(torch.tensor(pixels, device=device).permute(2, 0, 1), coverage)[None].float()
    height, width = padded.shape[2:]
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    columns, rows = (torch.tensor(part, dtype=dtype, device=device) for part in crop_map(coverage, view))
    grid_rows = ((2 * rows + 3) / height - 1).float()  # +1 for the row above
    crops = []
    for yaw in yaws:
        shifted = columns + column_shift(coverage, yaw)
        if coverage.is_closed:
            shifted = (shifted + HALF_PIXEL) % coverage.width - HALF_PIXEL
        grid = torch.stack([((2 * shifted + 3) / width - 1).float(), grid_rows], -1)[None]
        crop = grid_sample(padded, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        crops.append((crop + BLENDING_ROUND).clamp(0, 255).to(torch.uint8).permute(1, 2, 0))
    return torch.stack(crops).cpu().numpy()


def _padded(image: "torch.Tensor", coverage: Coverage) -> "torch.Tensor":
    """A panorama (3, H, W) with one more pixel on each side, (3, H + 2, W + 2): what is next to its border."""
    import torch

    opposite = image.roll(-(coverage.width // 2), 2)
    above = opposite[:, :1] if coverage.has_zenith else image[:, :1]
    below = opposite[:, -1:] if coverage.has_nadir else image[:, -1:]
    tall = torch.cat([above, image, below], 1)
    first, last = tall[..., :1], tall[..., -1:]
    return torch.cat([last, tall, first] if coverage.is_closed else [first, tall, last], 2)
