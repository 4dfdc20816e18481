"""One photo: a file to pixels, upright, the same as Pillow's.

JPEG files go through simplejpeg (libjpeg-turbo), in half of Pillow's time and outside of the interpreter's lock; what
it does not take (CMYK, damage that can be mended, other formats) Pillow does.
"""

import io
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from cosplace.errors import ImageError, PhotoFormatError, PhotoSizeError

if TYPE_CHECKING:  # torch takes seconds to import, and scanning does not need it
    import torch

MAX_PIXELS = 200_000_000  # a picture larger than this is refused before it is decoded
MAX_FILE_BYTES = 500_000_000
ORIENTATION = 0x0112  # EXIF's tag
EXIF = b"Exif\x00\x00"
START_OF_SCAN = b"\xff\xda"  # in a JPEG; never within a scan's data, where 0 follows 255
MAX_SCANS = 64  # cameras write 1, progressive files about 10

Room = Callable[[int, int], np.ndarray]
"""From height and width to (H, W, 3) uint8 to decode into, contiguous."""

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""What turns (H, W, 3) stored with an EXIF orientation upright; 1 is upright."""


def open_image(path: str | Path) -> "torch.Tensor":
    """One photo as RGB, (3, H, W) uint8, upright as its EXIF orientation says; its channels lie side by side.

    Raises ImageError that names the file when it is missing, empty, truncated, no picture, or larger than
    MAX_PIXELS (checked before decoding).
    """
    import torch

    return torch.from_numpy(open_pixels(path)).permute(2, 0, 1)


def open_pixels(path: str | Path, room: Room | None = None) -> np.ndarray:
    """What open_image gives, as (H, W, 3) uint8: the very array that `room` gave, or another one.

    room: gives the memory to decode into; it is asked for at most once, and what it gives may stay unused.
    """
    raw = _read_file(path)
    pixels = None
    if raw[:2] == b"\xff\xd8":
        pixels = _open_jpeg(raw, path, room)
    elif raw[:8] == b"\x89PNG\r\n\x1a\n" and len(raw) >= 24:
        _check_size(int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big"), path)
    return _open_with_pillow(raw, path) if pixels is None else pixels


def open_photo_bytes(raw: bytes | bytearray, name: str, *, max_pixels: int = MAX_PIXELS) -> "torch.Tensor":
    """One photo from a stranger as RGB, (3, H, W) uint8, upright; the first picture of several.

    name: what the messages call it; it is never opened.  Only JPEG, PNG and WebP are decoded, told by their first
    bytes, each by its own decoder alone; width and height are read from the header before any decoder runs.
    Raises PhotoFormatError for other files, PhotoSizeError for more than max_pixels, ImageError for an empty or
    damaged photo.
    """
    import torch

    if not raw:
        raise ImageError(f"{name} is empty.")
    kind = _kind_of(raw)
    if kind is None:
        raise PhotoFormatError(f"{name} is no JPEG, PNG or WebP picture.")
    size = HEADER_SIZES[kind](raw)
    if size is not None:
        _check_size(*size, name, max_pixels)
    elif kind != "JPEG":  # of those, Pillow takes many that simplejpeg does not, and reads the header first
        raise ImageError(f"{name} cannot be decoded (its {kind} header is damaged).")
    raw = bytes(raw)
    if kind == "JPEG" and raw.count(START_OF_SCAN) > MAX_SCANS:
        raise ImageError(f"{name} holds more than {MAX_SCANS} scans, each of which takes as long as a photo: refused.")
    pixels = _open_jpeg(raw, name, None) if kind == "JPEG" and size is not None else None
    if pixels is None:
        pixels = _open_with_pillow(raw, name, formats=(kind,), max_pixels=max_pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


# --- files -----------------------------------------------------------------------------------------------------------


def _read_file(path: str | Path) -> bytes:
    # With few calls to the system: after each a thread has to wait for the interpreter's lock.
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            size = os.fstat(file).st_size
            if size > MAX_FILE_BYTES:
                raise ImageError(f"{path} is larger than {MAX_FILE_BYTES // 1_000_000} MB: no photo.")
            raw = os.read(file, size)
            while len(raw) < size and (more := os.read(file, size - len(raw))):
                raw += more
        finally:
            os.close(file)
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}).") from error
    if not raw:
        raise ImageError(f"{path} is empty.")
    return raw


def _check_size(width: int, height: int, path: str | Path, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse by the header a picture whose pixels would fill the memory."""
    if width * height > max_pixels:
        raise PhotoSizeError(f"{path} claims {width} x {height} pixels, more than {max_pixels:,} in all: refused.")


# --- JPEG ------------------------------------------------------------------------------------------------------------


@cache
def _jpeg_decoder() -> Callable[..., np.ndarray]:
    from simplejpeg import decode_jpeg

    return decode_jpeg


def _open_jpeg(raw: bytes, path: str | Path, room: Room | None) -> np.ndarray | None:
    """(H, W, 3) uint8; None for what Pillow should look at."""
    header = jpeg_header(raw)
    if header is None:
        return None
    width, height, channels, exif = header
    _check_size(width, height, path)
    if channels not in (1, 3) or not width * height:
        return None
    orientation = 1 if exif is None else _orientation(exif)
    buffer = room(height, width) if room is not None and orientation not in UPRIGHT else None
    try:
        pixels = _jpeg_decoder()(raw, buffer=buffer)
    except ValueError:  # also for damage that Pillow mends
        return None
    if buffer is not None and pixels.shape == buffer.shape:
        return buffer
    return np.ascontiguousarray(UPRIGHT[orientation](pixels)) if orientation in UPRIGHT else pixels


def jpeg_header(raw: bytes | bytearray) -> tuple[int, int, int, bytes | None] | None:
    """Width, height and channels in the frame header (marker SOF) of a JPEG, and the EXIF block before it."""
    at, exif = 2, None
    while at + 9 < len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(raw[at + first : at + first + 2], "big") for first in (5, 7))
            return width, height, raw[at + 9], exif
        # Fill bytes and the markers without a length are one byte and two bytes long.
        lone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        length = 1 if marker == 0xFF else 2 if lone else 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
        if marker == 0xE1 and raw[at + 4 : at + 10] == EXIF and exif is None:
            exif = bytes(raw[at + 4 : at + length])
        at += length
    return None


def _orientation(exif: bytes) -> int:
    from PIL import Image

    block = Image.Exif()
    try:
        block.load(exif)
        return int(block.get(ORIENTATION, 1))
    except Exception:  # a broken block says nothing, and Pillow raises nearly anything on it
        return 1


# --- photos from strangers -------------------------------------------------------------------------------------------


def _kind_of(raw: bytes | bytearray) -> str | None:
    """Pillow's name of the format that the first bytes announce."""
    if raw[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if raw[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    return "WEBP" if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP" else None


def _jpeg_size(raw: bytes | bytearray) -> tuple[int, int] | None:
    """Width and height as the decoder itself will read them; None for what it does not take."""
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
    """Of the canvas.  Pillow would reserve it twice over before it says how large it is."""
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


HEADER_SIZES: dict[str, Callable[[bytes | bytearray], tuple[int, int] | None]] = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "WEBP": _webp_size,
}


# --- all else --------------------------------------------------------------------------------------------------------


def _open_with_pillow(
    raw: bytes, path: str | Path, *, formats: tuple[str, ...] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """(H, W, 3) uint8.  formats: those to try, by Pillow's names; None for all.  Raises ImageError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is another one
            with Image.open(io.BytesIO(raw), formats=formats) as picture:
                _check_size(picture.width, picture.height, path, max_pixels)
                return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is no picture.") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise ImageError(f"{path} cannot be decoded ({str(error).rstrip('.') or type(error).__name__}).") from error


def decode_thumbnail(jpeg: bytes) -> Tensor:
    """A thumbnail (3, H, W) uint8.  Raises ImageError."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"A thumbnail of the index cannot be decoded ({error}).") from error
