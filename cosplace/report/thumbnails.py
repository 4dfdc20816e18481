"""Small copies of photos, as images inside a page."""

import base64
import io
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from cosplace.errors import ImageError
from cosplace.photos.image_list import ImageList
from cosplace.photos.opening import open_image

MAX_SIZE = (200, 260)  # pixels, width and height


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A JPEG as a data URI, with its size in pixels."""

    source: str
    width: int
    height: int


def make_thumbnail(images: ImageList, row: int) -> Thumbnail:
    """Return a small copy of a photo of a list, or a gray image if the photo cannot be opened."""
    photo = open_photo(images, row)
    if photo is None:
        return placeholder_thumbnail("cannot be opened")
    photo.thumbnail(MAX_SIZE, Image.Resampling.LANCZOS)
    return _encode(photo)


def placeholder_thumbnail(text: str) -> Thumbnail:
    """Return a gray image with a text that says what is missing."""
    return _encode(placeholder((MAX_SIZE[0], 150), text))


def placeholder(size: tuple[int, int], text: str = "cannot be opened") -> Image.Image:
    """Return a gray image with a text that says what is missing."""
    image = Image.new("RGB", size, (128, 134, 141))
    center = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(image).text(center, text, fill="white", font=ImageFont.load_default(17), anchor="mm")
    return image


def open_photo(images: ImageList, row: int) -> Image.Image | None:
    """Open a photo of a list as a Pillow image; None if it cannot be opened."""
    try:
        return Image.fromarray(open_image(images.path(row)).permute(1, 2, 0).numpy())
    except ImageError:
        return None


def _encode(image: Image.Image) -> Thumbnail:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=80, optimize=True)
    data = base64.b64encode(encoded.getvalue()).decode("ascii")
    return Thumbnail(source=f"data:image/jpeg;base64,{data}", width=image.width, height=image.height)
