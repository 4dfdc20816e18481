"""The pixels of a photo of the index: its file, else its thumbnail."""

from typing import TYPE_CHECKING

from cosplace.errors import CosPlaceError
from cosplace.index.photo_index import PhotoIndex
from cosplace.photos.opening import open_image
from cosplace.photos.paths import path_from_text
from cosplace.photos.thumbnails import decode_thumbnail

if TYPE_CHECKING:
    from torch import Tensor


def photo_pixels(index: PhotoIndex, photo_id: int, path: str) -> "Tensor | None":
    """A photo of the index as (3, H, W) uint8: its file, else its thumbnail; None when both are gone."""
    try:
        return open_image(path_from_text(path))
    except (CosPlaceError, OSError):
        pass
    try:
        return decode_thumbnail(index.thumbnail(photo_id))
    except (CosPlaceError, OSError):
        return None
