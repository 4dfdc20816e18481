"""Photos from strangers: the same pixels as from a file, and nothing decoded that was not looked at first."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cosplace.errors import ImageError, PhotoFormatError, PhotoSizeError
from cosplace.photos.opening import open_image, open_photo_bytes
from tests.server.server_stand import encoded, good_photo, jpeg_claiming, many_scans, png_claiming, webp_claiming
from tests.streets import place_picture

PICTURE = place_picture(3, 0, 64)[:48]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_same_upright_pixels_as_from_a_file(tmp_path, kind, orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(PICTURE, kind, exif=exif)
    (tmp_path / "photo").write_bytes(raw)
    photo = open_photo_bytes(raw, "photo")
    assert photo.shape == ((3, 48, 64) if orientation < 5 else (3, 64, 48))
    np.testing.assert_array_equal(photo.numpy(), open_image(tmp_path / "photo").numpy())


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP")]
)
def test_every_mode_becomes_rgb(mode, kind) -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(file, kind)
    assert open_photo_bytes(file.getvalue(), "photo").shape == (3, 48, 64)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_a_moving_picture_the_first_is_taken(kind) -> None:
    later = [Image.fromarray(255 - PICTURE)]
    raw = encoded(PICTURE, kind, save_all=True, append_images=later, lossless=True)
    np.testing.assert_array_equal(open_photo_bytes(raw, "photo").permute(1, 2, 0).numpy(), PICTURE)


@pytest.mark.parametrize(
    "raw",
    [png_claiming(60_000, 60_000), jpeg_claiming(65_500, 65_500), webp_claiming(16_383, 16_383)],
    ids=["PNG", "JPEG", "WEBP"],
)
def test_too_many_pixels_are_refused_before_a_decoder_runs(raw, monkeypatch) -> None:
    def decode(*_, **__) -> None:
        raise AssertionError("a decoder was asked")

    monkeypatch.setattr("cosplace.photos.opening._open_with_pillow", decode)
    monkeypatch.setattr("cosplace.photos.opening._open_jpeg", decode)
    with pytest.raises(PhotoSizeError, match="claims"):
        open_photo_bytes(raw, "photo")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_limit_of_pixels_is_exact(kind) -> None:
    for options in ({}, {"lossless": True}) if kind == "WEBP" else ({},):
        raw = encoded(PICTURE, kind, **options)
        assert open_photo_bytes(raw, "photo", max_pixels=48 * 64).shape == (3, 48, 64)
        with pytest.raises(PhotoSizeError):
            open_photo_bytes(raw, "photo", max_pixels=48 * 64 - 1)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "PDF"])
def test_other_formats_are_not_even_tried(kind) -> None:
    with pytest.raises(PhotoFormatError, match="no JPEG, PNG or WebP"):
        open_photo_bytes(encoded(PICTURE, kind), "photo")


def test_a_jpeg_of_countless_scans_is_refused_and_a_progressive_one_is_not() -> None:
    with pytest.raises(ImageError, match="scans"):
        open_photo_bytes(many_scans(), "photo")
    assert open_photo_bytes(encoded(PICTURE, "JPEG", progressive=True), "photo").shape == (3, 48, 64)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
def test_damage_is_told_in_one_line_or_mended(kind, data) -> None:
    raw = bytearray(good_photo(1, kind=kind))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(3, min(len(raw), 400) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        try:
            assert open_photo_bytes(raw, "photo", max_pixels=1_000_000).shape[0] == 3
        except ImageError as error:
            assert str(error).startswith("photo ") and len(str(error)) < 300
