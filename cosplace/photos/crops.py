"""Crops of one size from photos of any size, as the field crops queries.

Berton et al., "Deep Visual Geo-localization Benchmark", CVPR 2022, appendix: photos are resized until they cover the
size of the crop, and the crop is taken from the center or a corner.
"""

from dataclasses import dataclass
from pathlib import Path

from cosplace.photos.resizing import Pixels, check_resized, resize

CENTER = "center"
CORNERS = ("top left", "top right", "bottom left", "bottom right")
NATIVE, SHORT_SIDE, SINGLE_QUERY, SQUARE = "native", "short_side", "single_query", "square"  # policies for queries
CENTRAL_CROP, FIVE_CROPS, NEAREST_CROP, MAJORITY = "central_crop", "five_crops", "nearest_crop", "maj_voting"
POLICIES = (NATIVE, SHORT_SIDE, SQUARE, SINGLE_QUERY, CENTRAL_CROP, FIVE_CROPS, NEAREST_CROP, MAJORITY)
SEVERAL_CROPS = (FIVE_CROPS, NEAREST_CROP, MAJORITY)
SEVERAL_DESCRIPTORS = (NEAREST_CROP, MAJORITY)  # one per crop
WITH_SIZE = (SHORT_SIDE, SQUARE, SINGLE_QUERY, *SEVERAL_CROPS)  # those that use a size in pixels
NUM_CROPS = 5
WHOLE = "whole"  # the whole photo, with another aspect ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A part of a photo, in pixels after resizing."""

    height: int
    width: int
    place: str = CENTER  # or one of CORNERS, or WHOLE


def crop_photo(photo: Pixels, crop: Crop, name: str | Path = "the photo") -> Pixels:
    """Cut (3, crop.height, crop.width) out of a photo (3, H, W).

    name: for the PhotoSizeError of a photo that is too long and narrow.
    """
    if crop.place == WHOLE:
        return resize(photo, crop.height, crop.width)
    height, width = covering_shape(photo.shape[-2], photo.shape[-1], crop)
    check_resized(photo.shape[-2:], (height, width), name)
    photo = resize(photo, height, width)
    spare_rows, spare_columns = height - crop.height, width - crop.width
    if crop.place == CENTER:
        top, left = round(spare_rows / 2), round(spare_columns / 2)
    else:
        vertical, horizontal = crop.place.split()
        top, left = spare_rows * (vertical == "bottom"), spare_columns * (horizontal == "right")
    return photo[..., top : top + crop.height, left : left + crop.width]


def covering_shape(height: int, width: int, crop: Crop) -> tuple[int, int]:
    """Height and width of the smallest copy of a photo that covers a crop, with the aspect ratio of the photo."""
    if height * crop.width <= width * crop.height:  # wider than the crop
        return crop.height, max(crop.width, int(crop.height * width / height))
    return max(crop.height, int(crop.width * height / width)), crop.width
