"""Images of all modes become RGB by their whole range.  The oracle for 16 bits is libpng, through OpenCV."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from cosplace.errors import PhotoFormatError
from cosplace.photos.modes import to_rgb
from cosplace.photos.opening import decode_image, decode_upload

ROWS, COLUMNS = np.mgrid[0:48, 0:64]
GRAY16 = (COLUMNS * 65_535 // 63 * (ROWS + 1) // 48).astype(np.uint16)  # (H, W), 0 ... 65535
COLOR8 = np.stack([COLUMNS * 4, ROWS * 5, (COLUMNS + ROWS) * 2], axis=2).astype(np.uint8)
GRAY8 = np.rint(GRAY16 / 257).astype(np.uint8)


def rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_with_16_bits_have_the_brightness_that_opencv_reads(suffix: str, channels: int) -> None:
    cv2 = pytest.importorskip("cv2")
    stored = np.stack([GRAY16, GRAY16[::-1], GRAY16[:, ::-1], GRAY16][:channels], axis=2).squeeze()
    raw = cv2.imencode(suffix, stored)[1].tobytes()
    read = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)  # BGR, 16 bits
    expected = np.rint((rgb(read) if channels == 1 else read[..., 2::-1]) / 257)
    found = decode_image(raw, "x").permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1
    if suffix == ".png":
        assert np.array_equal(decode_upload(raw, "x").permute(1, 2, 0).numpy(), found)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_gray_images_with_16_bits_are_scaled(mode: str) -> None:
    stored = GRAY16.astype(">u2" if mode == "I;16B" else "=u2" if mode == "I;16N" else "<u2")
    found = to_rgb(Image.frombytes(mode, (64, 48), stored.tobytes()))
    assert np.abs(found.astype(int) - rgb(GRAY8)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 128, 255], [0, 128, 255]),  # already 8 bits
        ([0, 256, 65_535], [0, 1, 255]),
        ([-5, 2**30, 2**31 - 1], [0, 128, 255]),
    ],
)
def test_integers_of_32_bits_are_scaled_by_their_largest_value(values: list[int], expected: list[int]) -> None:
    assert to_rgb(Image.fromarray(np.array([values], np.int32)))[0, :, 1].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 0.5, 1.25], [0, 128, 255]),  # a sharpened image
        ([0, 100, 255], [0, 100, 255]),
        ([0, 25_700, 65_535], [0, 100, 255]),
        ([0, 1e6, 4e6], [0, 64, 255]),
        ([np.nan, -np.inf, np.inf, -1, 1], [0, 0, 255, 0, 255]),
    ],
)
def test_floats_are_scaled_by_their_largest_value(values: list[float], expected: list[int]) -> None:
    assert to_rgb(Image.fromarray(np.array([values], np.float32)))[0, :, 2].tolist() == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"])
def test_color_modes_keep_their_colors(mode: str) -> None:
    image = Image.fromarray(COLOR8)
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    else:
        image = (image.convert("RGBA") if mode == "RGBa" else image).convert(mode)
    found = to_rgb(image)
    assert found.dtype == np.uint8 and found.flags.writeable and found.flags.c_contiguous
    assert np.abs(found.astype(int) - COLOR8).mean() < 3


@pytest.mark.parametrize("mode", ["L", "LA", "La", "1", "P", "PA"])
def test_gray_and_palette_modes_keep_their_brightness(mode: str) -> None:
    gray = Image.fromarray(np.where(GRAY8 > 127, np.uint8(255), np.uint8(0)) if mode == "1" else GRAY8)
    image = gray.convert("LA") if mode == "La" else gray
    assert np.abs(to_rgb(image.convert(mode)).astype(int) - rgb(np.asarray(gray)).astype(int)).max() <= 1


def test_transparency_is_ignored() -> None:
    image = Image.fromarray(COLOR8).quantize(64)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(range(64)))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(file.getvalue(), "x").permute(1, 2, 0).numpy(), expected)
    clear = Image.fromarray(np.dstack([COLOR8, np.zeros((48, 64), np.uint8)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(to_rgb(clear), COLOR8)


def gray_tiff(values: np.ndarray, tags: dict[int, int]) -> bytes:
    """A TIFF without compression, written by hand: Pillow writes neither of these variants."""
    height, width = values.shape
    entries = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height,
               279: values.nbytes, **tags}  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<I", 8 + values.nbytes) + values.tobytes() + directory + b"\0\0\0\0"


def open_gray_tiff(values: np.ndarray, tags: dict[int, int]) -> Image.Image:
    return Image.open(io.BytesIO(gray_tiff(values, tags)), formats=("TIFF",))


@pytest.mark.parametrize("orientation", [{}, {274: 1}, {274: 3}])
def test_tags_of_a_tiff_count_when_it_is_opened_as_a_photo(orientation: dict[int, int]) -> None:
    inverted = decode_image(gray_tiff(np.array([[0, 257 * 100, 65535]], "<u2"), {262: 0, **orientation}), "a.tif")
    unsigned = decode_image(gray_tiff(np.array([[0, 2**31 - 1, 2**32 - 1]], "<u4"), orientation), "b.tif")
    step = -1 if orientation == {274: 3} else 1
    assert np.asarray(inverted)[0, 0].tolist()[::step] == [255, 155, 0]
    assert np.asarray(unsigned)[0, 0].tolist()[::step] == [0, 127, 255]


def test_a_tiff_with_16_bits_where_0_is_white_is_inverted() -> None:
    values = np.array([[0, 257 * 100, 65535]], "<u2")
    assert to_rgb(open_gray_tiff(values, {}))[0, :, 0].tolist() == [0, 100, 255]
    assert to_rgb(open_gray_tiff(values, {262: 0}))[0, :, 0].tolist() == [255, 155, 0]


def test_a_tiff_with_unsigned_32_bits_has_no_negative_numbers() -> None:
    values = np.array([[0, 2**31 - 1, 2**32 - 1]], "<u4")
    assert to_rgb(open_gray_tiff(values, {}))[0, :, 0].tolist() == [0, 127, 255]
    assert to_rgb(open_gray_tiff(values, {339: 1}))[0, :, 0].tolist() == [0, 127, 255]
    assert to_rgb(open_gray_tiff(values, {339: 2}))[0, :, 0].tolist() == [0, 255, 0]  # signed: -1 is black


def test_a_tiff_with_signed_8_bits_has_black_below_0() -> None:
    values = np.array([[0, 50, 127, -1, -128]], np.int8)
    assert to_rgb(open_gray_tiff(values, {339: 2}))[0, :, 0].tolist() == [0, 100, 255, 0, 0]


def test_a_tiff_with_12_bits_has_values_up_to_4095() -> None:
    """Two values in three bytes: without the tag, they would be nearly black."""
    values = [0, 1606, 2048, 4095]
    packed = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True))
    raw = gray_tiff(np.frombuffer(packed, np.uint8)[None], {256: 4, 258: 12})
    assert decode_image(raw, "a.tif")[0, 0].tolist() == [0, 100, 128, 255]


def test_floats_of_a_tiff_where_0_is_white_are_inverted() -> None:
    values = np.array([[0, 0.25, 1]], "<f4")
    assert to_rgb(open_gray_tiff(values, {339: 3}))[0, :, 0].tolist() == [0, 64, 255]
    assert to_rgb(open_gray_tiff(values, {339: 3, 262: 0}))[0, :, 0].tolist() == [255, 191, 0]


@pytest.mark.parametrize(("bits", "is_refused"), [(8, False), (16, True)])
def test_a_tiff_with_separate_channels_of_16_bits_is_refused(bits: int, is_refused: bool) -> None:
    """Pillow opens it as if it had 8 bits: the rows would be those of other channels."""
    planes = np.arange(3 * 4 * 6).reshape(3, 4, 6).astype(f"<u{bits // 8}") * 3 * (257 if bits == 16 else 1)
    size = planes[0].nbytes
    entries = [(256, 4, 1, 6), (257, 4, 1, 4), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, 14),
               (277, 3, 1, 3), (278, 4, 1, 4), (279, 4, 3, 26), (284, 3, 1, 2)]  # fmt: skip
    data = struct.pack("<3H3I3I", bits, bits, bits, *(40 + size * i for i in range(3)), size, size, size)
    raw = b"II*\0" + struct.pack("<I", 40 + 3 * size) + data.ljust(32, b"\0") + planes.tobytes()
    raw += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *one) for one in entries) + bytes(4)
    if is_refused:
        with pytest.raises(PhotoFormatError, match="stores its channels one by one, with 16 bits"):
            decode_image(raw, "a.tif")
    else:
        assert np.array_equal(np.asarray(decode_image(raw, "a.tif")), planes)
