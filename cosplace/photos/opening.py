"""Decode one photo to upright RGB pixels, the same as Pillow's.

JPEG files are decoded by simplejpeg (libjpeg-turbo), in half of Pillow's time and without the interpreter's lock.
Pillow decodes the rest: other formats, CMYK, and damaged files that it can still open.
"""

import io
import math
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cosplace.errors import ImageError, PhotoFormatError, PhotoSizeError

if TYPE_CHECKING:  # torch takes seconds to import, and scanning does not need it
    import torch

MAX_PIXELS = 200_000_000  # larger photos are refused before they are decoded
MAX_FILE_BYTES = 500_000_000
ORIENTATION = 0x0112  # tag in the EXIF block
EXIF_HEADER = b"Exif\x00\x00"
START_OF_SCAN = b"\xff\xda"  # JPEG marker; never inside the data of a scan, where 0 follows 255
MAX_SCANS = 64  # cameras write 1, progressive files about 10

Allocate = Callable[[int, int], np.ndarray]
"""From height and width to memory to decode into: (H, W, 3) uint8, contiguous."""

MAKE_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""From an EXIF orientation to the function that turns (H, W, 3) upright; orientation 1 is upright."""


def open_image(path: str | Path) -> "torch.Tensor":
    """Open a photo as RGB, (3, H, W) uint8, upright by its EXIF orientation; a view of (H, W, 3) memory.

    Raises ImageError that names the file if it is missing, empty, damaged, not an image, or larger than MAX_PIXELS
    (checked before decoding).
    """
    return decode_image(read_file(path), path)


def decode_image(raw: bytes, name: str | Path) -> "torch.Tensor":
    """Decode the content of a photo's file, as `open_image` does.  name: for error messages."""
    import torch

    return torch.from_numpy(_decode(raw, name, None)).permute(2, 0, 1)


def open_pixels(path: str | Path, allocate: Allocate | None = None) -> np.ndarray:
    """The pixels of `open_image` as (H, W, 3) uint8: either the array that `allocate` returned, or another one.

    allocate: called at most once; the memory that it returns may stay unused.
    """
    return _decode(read_file(path), path, allocate)


def _decode(raw: bytes, name: str | Path, allocate: Allocate | None) -> np.ndarray:
    pixels = None
    if raw[:2] == b"\xff\xd8":
        pixels = _decode_jpeg(raw, name, allocate)
    elif raw[:8] == b"\x89PNG\r\n\x1a\n" and len(raw) >= 24:
        _check_size(int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big"), name)
    return _decode_with_pillow(raw, name) if pixels is None else pixels


def decode_upload(raw: bytes | bytearray, name: str, *, max_pixels: int = MAX_PIXELS) -> "torch.Tensor":
    """Decode a photo from an untrusted source as RGB, (3, H, W) uint8, upright; the first frame of an animation.

    name: for error messages; it is never opened.  Only JPEG, PNG and WebP are decoded, each by its own decoder alone;
    the format is detected from the first bytes, and the size is read from the header before any decoder runs.
    Raises PhotoFormatError for other formats, PhotoSizeError for more than max_pixels, ImageError for an empty or
    damaged photo.
    """
    import torch

    if not raw:
        raise ImageError(f"{name} is empty. Export it again.")
    image_format = _detect_format(raw)
    if image_format is None:
        raise PhotoFormatError(f"{name} is not a JPEG, PNG or WebP image. Export it as JPEG.")
    size = SIZE_READERS[image_format](raw)
    if size is not None:
        _check_size(*size, name, max_pixels)
    elif image_format != "JPEG":  # Pillow opens many JPEG files that simplejpeg does not, and checks their size first
        raise damaged_photo(name, f"damaged {image_format} header")
    raw = bytes(raw)
    if image_format == "JPEG" and raw.count(START_OF_SCAN) > MAX_SCANS:
        raise ImageError(f"{name} has more than {MAX_SCANS} scans, too many to decode. Export it again.")
    pixels = _decode_jpeg(raw, name, None) if image_format == "JPEG" and size is not None else None
    if pixels is None:
        pixels = _decode_with_pillow(raw, name, formats=(image_format,), max_pixels=max_pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


# --- files -----------------------------------------------------------------------------------------------------------


def read_file(path: str | Path) -> bytes:
    """Read a photo's file.  Raises ImageError that names the file if it is missing, empty or too large."""
    # With few system calls: after each of them, a thread has to wait for the interpreter's lock.
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            size = os.fstat(file).st_size
            if size > MAX_FILE_BYTES:
                raise ImageError(f"{path} is larger than {MAX_FILE_BYTES // 1_000_000} MB. Export it as JPEG.")
            raw = os.read(file, size)
            while len(raw) < size and (more := os.read(file, size - len(raw))):
                raw += more
        finally:
            os.close(file)
    except OSError as error:
        raise ImageError(f"Cannot read {path}: {error.strerror}.") from error
    if not raw:
        raise ImageError(f"{path} is empty. Copy or export it again.")
    return raw


def _check_size(width: int, height: int, name: str | Path, max_pixels: int = MAX_PIXELS) -> None:
    """Raise PhotoSizeError for more than max_pixels."""
    if width * height > max_pixels:
        megapixels = math.ceil(width * height / 1e5) / 10  # rounded up: always above the limit
        raise PhotoSizeError(
            f"{name} has {megapixels:,.12g} megapixels; the limit is {max_pixels / 1e6:,.12g}. Resize it first."
        )


def damaged_photo(name: str | Path, reason: str | Exception) -> ImageError:
    """The error for a photo that its decoder refuses."""
    text = str(reason).rstrip(".") or type(reason).__name__
    return ImageError(f"{name} is incomplete or damaged ({text}). Export it again.")


# --- JPEG ------------------------------------------------------------------------------------------------------------


@cache
def _jpeg_decoder() -> Callable[..., np.ndarray]:
    from simplejpeg import decode_jpeg

    return decode_jpeg


def _decode_jpeg(raw: bytes, name: str | Path, allocate: Allocate | None) -> np.ndarray | None:
    """(H, W, 3) uint8; None for files that Pillow has to open."""
    header = jpeg_header(raw)
    if header is None:
        return None
    width, height, channels, exif = header
    _check_size(width, height, name)
    if channels not in (1, 3) or not width * height:
        return None
    orientation = 1 if exif is None else _orientation(exif)
    buffer = allocate(height, width) if allocate is not None and orientation not in MAKE_UPRIGHT else None
    try:
        pixels = _jpeg_decoder()(raw, buffer=buffer)
    except ValueError:  # Pillow still opens some of these files
        return None
    if buffer is not None and pixels.shape == buffer.shape:
        return buffer
    return np.ascontiguousarray(MAKE_UPRIGHT[orientation](pixels)) if orientation in MAKE_UPRIGHT else pixels


def jpeg_header(raw: bytes | bytearray) -> tuple[int, int, int, bytes | None] | None:
    """Width, height and channels in the frame header (marker SOF) of a JPEG, and the EXIF block before it."""
    position, exif = 2, None
    while position + 9 < len(raw) and raw[position] == 0xFF:
        marker = raw[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(raw[position + i : position + i + 2], "big") for i in (5, 7))
            return width, height, raw[position + 9], exif
        # Fill bytes take one byte, markers without a length two.
        has_no_length = marker == 0x01 or 0xD0 <= marker <= 0xD8
        if marker == 0xFF:
            length = 1
        elif has_no_length:
            length = 2
        else:
            length = 2 + int.from_bytes(raw[position + 2 : position + 4], "big")
        if marker == 0xE1 and raw[position + 4 : position + 10] == EXIF_HEADER and exif is None:
            exif = bytes(raw[position + 4 : position + length])
        position += length
    return None


def _orientation(exif: bytes) -> int:
    from PIL import Image

    block = Image.Exif()
    try:
        block.load(exif)
        return int(block.get(ORIENTATION, 1))
    except Exception:  # Pillow raises nearly anything on a damaged block
        return 1


# --- uploads: format and size, before any decoder runs ---------------------------------------------------------------


def _detect_format(raw: bytes | bytearray) -> str | None:
    """Pillow's name of the format, by the first bytes; None for formats other than JPEG, PNG and WebP."""
    if raw[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if raw[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    return "WEBP" if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP" else None


def _jpeg_size(raw: bytes | bytearray) -> tuple[int, int] | None:
    """Width and height as the decoder itself reads them; None for files that it does not open."""
    from simplejpeg import decode_jpeg_header

    try:
        height, width, *_ = decode_jpeg_header(raw)
    except ValueError:
        return None
    return int(width), int(height)


def _png_size(raw: bytes | bytearray) -> tuple[int, int] | None:
    if len(raw) < 24 or raw[12:16] != b"IHDR":
        return None
    return int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")


def _webp_size(raw: bytes | bytearray) -> tuple[int, int] | None:
    """Width and height of the canvas.  Pillow reports them only after it has allocated the canvas twice."""
    chunk, data = raw[12:16], raw[20:30]
    if len(data) < 10:
        return None
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    return None


SIZE_READERS: dict[str, Callable[[bytes | bytearray], tuple[int, int] | None]] = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "WEBP": _webp_size,
}


# --- Pillow ----------------------------------------------------------------------------------------------------------


def _decode_with_pillow(
    raw: bytes, name: str | Path, *, formats: tuple[str, ...] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """(H, W, 3) uint8.  formats: those to try, by Pillow's names; None for all.  Raises ImageError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size has its own limit
            with Image.open(io.BytesIO(raw), formats=formats) as image:
                _check_size(image.width, image.height, name, max_pixels)
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if formats is None:
            raise ImageError(f"{name} is not an image, or in an unknown format. Export it as JPEG.") from error
        raise damaged_photo(name, f"not a {formats[0]} image") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise damaged_photo(name, error) from error


def decode_thumbnail(jpeg: bytes) -> "torch.Tensor":
    """Decode a thumbnail of the index, (3, H, W) uint8.  Raises ImageError."""
    import torch
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"A thumbnail in the index is damaged ({error}). Build the index again.") from error
