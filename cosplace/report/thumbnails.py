"""Small copies of photos, as images inside a page."""

import base64
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from PIL import Image, ImageDraw, ImageFont

from cosplace.errors import ImageError
from cosplace.photos.image_list import ImageList
from cosplace.photos.opening import open_image

MAX_SIZE = (200, 260)  # pixels, width and height
PHOTOS_PER_STEP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A JPEG as base64, with its size in pixels."""

    data: str
    width: int
    height: int

    @property
    def source(self) -> str:
        """The JPEG as a data URI."""
        return f"data:image/jpeg;base64,{self.data}"


def make_thumbnail(images: ImageList, row: int, max_size: tuple[int, int] = MAX_SIZE, quality: int = 80) -> Thumbnail:
    """Return a small copy of a photo of a list, or a gray image if the photo cannot be opened.

    quality: of the JPEG, from 1 to 95.
    """
    photo = open_photo(images, row) or placeholder((max_size[0], max_size[0] * 3 // 4), "cannot be opened")
    photo.thumbnail(max_size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _encode(photo, quality)


def make_thumbnails(
    photos: Sequence[tuple[ImageList, int]], max_size: tuple[int, int], quality: int, budget: int
) -> list[Thumbnail]:
    """Return small copies of the first photos, (list, row) each: as many as have `budget` bytes of base64 together."""
    found: list[Thumbnail] = []
    left, waiting = budget, iter(photos)
    # Decoding and encoding release the GIL.  In steps, as only the sizes of the copies say when to stop.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while step := list(islice(waiting, PHOTOS_PER_STEP)):
            for thumbnail in _made(pool, step, max_size, quality):
                left -= len(thumbnail.data)
                if left < 0:
                    return found
                found.append(thumbnail)
    return found


def _made(
    pool: ThreadPoolExecutor, photos: Sequence[tuple[ImageList, int]], max_size: tuple[int, int], quality: int
) -> Iterator[Thumbnail]:
    return pool.map(lambda photo: make_thumbnail(*photo, max_size, quality), photos)


def placeholder(size: tuple[int, int], text: str = "cannot be opened") -> Image.Image:
    """Return a gray image with a text that says what is missing."""
    image = Image.new("RGB", size, (128, 134, 141))
    font = ImageFont.load_default(min(17, size[0] / 9))
    ImageDraw.Draw(image).text((size[0] / 2, size[1] / 2), text, fill="white", font=font, anchor="mm")
    return image


def open_photo(images: ImageList, row: int) -> Image.Image | None:
    """Open a photo of a list as a Pillow image; None if it cannot be opened."""
    try:
        return Image.fromarray(open_image(images.path(row)).permute(1, 2, 0).numpy())
    except ImageError:
        return None


def _encode(image: Image.Image, quality: int) -> Thumbnail:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality, optimize=True)
    data = base64.b64encode(encoded.getvalue()).decode("ascii")
    return Thumbnail(data=data, width=image.width, height=image.height)
