"""The pixels of a photo of the index: its file, else its thumbnail."""

from typing import Any

from cosplace.errors import CosPlaceError
from cosplace.index.photo_index import PhotoIndex


def photo_pixels(index: PhotoIndex, photo_id: int, path: str) -> Any:
    """A photo of the index as (3, H, W) uint8: its file, else its thumbnail; None when both are gone."""
    from cosplace.photos.opening import decode_thumbnail, open_image

    try:
        return open_image(path)
    except (CosPlaceError, OSError):
        pass
    try:
        return decode_thumbnail(index.thumbnail(photo_id))
    except (CosPlaceError, OSError):
        return None
