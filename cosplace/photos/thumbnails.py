"""Thumbnails: small upright JPEGs of photos, kept in an index."""

import io
from typing import TYPE_CHECKING

import numpy as np

from cosplace.errors import ImageError
from cosplace.photos.modes import to_rgb, to_rgb_image
from cosplace.photos.opening import make_upright, open_with_pillow

if TYPE_CHECKING:  # torch takes seconds to import, and listing photos does not need it
    import torch

JPEG_QUALITY = 80


def make_thumbnail(raw: bytes, size: int) -> bytes:
    """A small upright JPEG, `size` pixels along the longer side; empty for size 0 or a photo that cannot be opened."""
    from PIL import Image

    if size == 0:
        return b""
    try:
        with open_with_pillow(raw, "photo") as (image, orientation):
            image.draft("RGB", (size, size))  # decodes JPEG files at a fraction of their size
            small = to_rgb_image(image)
            small.thumbnail((size, size))
            if orientation != 1:
                small = Image.fromarray(make_upright(np.asarray(small), orientation))
            else:
                small.load()
    except ImageError:  # reported when the photo itself is opened
        return b""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def decode_thumbnail(jpeg: bytes) -> "torch.Tensor":
    """Decode a thumbnail of the index, (3, H, W) uint8.  Raises ImageError."""
    import torch
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            return torch.from_numpy(to_rgb(image)).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"A thumbnail in the index is damaged ({error}). Build the index again.") from error
