"""Thumbnails: small, upright, of the same brightness as the photo."""

import io

import numpy as np
import pytest
from PIL import Image

from cosplace.errors import ImageError
from cosplace.photos.opening import decode_image
from cosplace.photos.resizing import resize
from cosplace.photos.thumbnails import decode_thumbnail, make_thumbnail

ROWS, COLUMNS = np.mgrid[0:240, 0:320]
PHOTO = np.stack([COLUMNS * 0.79, ROWS, (ROWS < 120) * 200], axis=2).astype(np.uint8)  # no symmetry


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(PHOTO)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_thumbnails_show_the_upright_photo(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(kind, exif=exif)
    photo, small = decode_image(raw, "x"), decode_thumbnail(make_thumbnail(raw, 80))
    assert small.shape == ((3, 60, 80) if orientation < 5 else (3, 80, 60))
    assert (resize(photo, *small.shape[1:]).float() - small.float()).abs().mean() < 4


def test_thumbnails_of_16_bits_keep_their_brightness() -> None:
    gray = (COLUMNS * 205).astype(np.uint16)
    small = decode_thumbnail(make_thumbnail(encoded("PNG", Image.fromarray(gray)), 80))
    assert abs(float(small.float().mean()) - gray.mean() / 257) < 2


def test_no_thumbnail_of_what_is_not_a_photo() -> None:
    raw = encoded("JPEG")
    assert make_thumbnail(raw, 0) == b""
    for bad in (b"", b"hello", raw[:300], encoded("PNG")[:200], encoded("PPM")):
        assert make_thumbnail(bad, 80) == b""
    with pytest.raises(ImageError, match="thumbnail"):
        decode_thumbnail(b"\xff\xd8\xff damaged")
