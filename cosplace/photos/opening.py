"""Decode one photo to upright RGB pixels, the same as Pillow's.

JPEG files are decoded by simplejpeg (libjpeg-turbo), in half of Pillow's time and without the interpreter's lock.
Pillow decodes the rest: other formats, CMYK, and damaged files that it can still open.  The format is detected from the
first bytes (see `cosplace.photos.formats`), and only the decoder of that format runs.
"""

import errno
import io
import math
import os
import stat
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cosplace.errors import ImageError, PhotoFormatError, PhotoSizeError
from cosplace.photos.blocks import gif_xmp, has_too_many_parts
from cosplace.photos.formats import UPLOAD_FORMATS, detect_format, refused_format
from cosplace.photos.headers import SIZE_READERS, has_all_metadata, jpeg_header, plain_png, simplejpeg_size
from cosplace.photos.orientation import ORIENTATION, read_orientation

if TYPE_CHECKING:  # torch takes seconds to import, and scanning does not need it
    import torch
    from PIL import Image

MAX_PIXELS = 200_000_000  # larger photos are refused before they are decoded
NUM_MEASURED = 15  # photos that are opened to find out the usual size
MAX_PILLOW_PIXELS = 178_900_000  # of what Pillow opens: it refuses more, as if the photo were damaged
MAX_FILE_BYTES = 500_000_000
START_BYTES = 1 << 17  # of a JPEG, with its size and orientation, unless its metadata are large
START_OF_SCAN = b"\xff\xda"  # JPEG marker; never inside the data of a scan, where 0 follows 255
MAX_SCANS = 64  # of a JPEG; cameras write 1, progressive files about 10
# Scans x pixels of a progressive JPEG, as each scan visits each pixel: 200 megapixels in 10 scans take some seconds.
MAX_SCAN_PIXELS = 2_000_000_000
MAX_UPLOAD_SCAN_PIXELS = 400_000_000  # at most 2 seconds
BYTES_PER_PIXEL = {"JPEG": 6, "PNG": 14, "WEBP": 28}  # peak of memory while decoding, copies included
COEFFICIENT_BYTES = 6  # per pixel of a JPEG with several scans
OTHER_BYTES_PER_PIXEL = 16  # of other formats, and of JPEG files that Pillow decodes

READ_FLAGS = os.O_RDONLY
for _flag in ("O_BINARY", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC"):  # O_NONBLOCK: do not wait for a pipe's writer
    READ_FLAGS |= getattr(os, _flag, 0)

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
TURNED = (5, 6, 7, 8)  # orientations of photos whose height is stored as their width


def open_image(path: str | Path) -> "torch.Tensor":
    """Open a photo as RGB, (3, H, W) uint8, upright by its EXIF orientation; a view of (H, W, 3) memory.

    Raises ImageError that names the file if it is missing, empty, damaged, not a regular file, not an image of one of
    FORMATS, or larger than MAX_PIXELS (checked before decoding).
    """
    return decode_image(read_file(path), path)


def typical_side(paths: Sequence[Path]) -> int | None:
    """Median of the shorter sides, in pixels, of a few of some photos; None if none of them can be read."""
    sides = []
    for number in np.unique(np.linspace(0, len(paths) - 1, min(NUM_MEASURED, len(paths))).astype(np.int64)):
        try:
            sides.append(min(open_image(paths[number]).shape[-2:]))
        except (ImageError, OSError):
            continue
    return int(np.median(sides)) if sides else None


def decode_image(raw: bytes, name: str | Path) -> "torch.Tensor":
    """Decode the content of a photo's file, as `open_image` does.  name: for error messages."""
    import torch

    return torch.from_numpy(_decode(raw, name, None)).permute(2, 0, 1)


def open_pixels(path: str | Path, allocate: Allocate | None = None) -> np.ndarray:
    """The pixels of `open_image` as (H, W, 3) uint8: either the array that `allocate` returned, or another one.

    allocate: called at most once; the memory that it returns may stay unused.
    """
    return _decode(read_file(path), path, allocate)


def decode_pixels(raw: bytes, name: str | Path) -> np.ndarray:
    """Like `open_pixels`, from the bytes of a file; (H, W, 3) uint8.  Raises ImageError."""
    return _decode(raw, name, None)


def _decode(raw: bytes, name: str | Path, allocate: Allocate | None) -> np.ndarray:
    image_format = detect_format(raw)
    pixels = _decode_jpeg(raw, name, allocate, MAX_SCAN_PIXELS) if image_format == "JPEG" else None
    return _decode_with_pillow(raw, name, MAX_PIXELS, MAX_SCAN_PIXELS) if pixels is None else pixels


def decode_upload(raw: bytes | bytearray, name: str, *, max_pixels: int = MAX_PIXELS) -> "torch.Tensor":
    """Decode a photo from an untrusted source as RGB, (3, H, W) uint8, upright; the first frame of an animation.

    name: for error messages; it is never opened.  Only JPEG, PNG and WebP are decoded.  The size is read from the
    header before any decoder runs; `decoded_bytes` returns the memory that decoding takes.
    Raises PhotoFormatError for other formats, PhotoSizeError for more than max_pixels, ImageError for an empty or
    damaged photo.
    """
    import torch

    if not raw:
        raise ImageError(f"{name} is empty. Export it again.")
    image_format = detect_format(raw)
    if image_format not in UPLOAD_FORMATS:
        raise PhotoFormatError(f"{name} is not a JPEG, PNG or WebP image. Export it as JPEG.")
    raw = bytes(raw)
    # As the decoder itself reads it.  JPEG files that simplejpeg does not open are left to Pillow, below.
    size = simplejpeg_size(raw) if image_format == "JPEG" else None
    if size is not None:
        _check_size(*size, name, max_pixels)
    pixels = _decode_jpeg(raw, name, None, MAX_UPLOAD_SCAN_PIXELS) if size is not None else None
    if pixels is None:
        pixels = _decode_with_pillow(raw, name, max_pixels, MAX_UPLOAD_SCAN_PIXELS)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decoded_bytes(raw: bytes | bytearray) -> int:
    """Memory in bytes that decoding a photo takes at its peak, from its header alone; nothing is decoded.

    0 for content that is refused before it is decoded.
    """
    image_format = detect_format(raw)
    if image_format == "JPEG":
        header = jpeg_header(raw)
        if header is None:
            size = simplejpeg_size(bytes(raw))
            return 0 if size is None else size[0] * size[1] * OTHER_BYTES_PER_PIXEL
        per_pixel = BYTES_PER_PIXEL["JPEG"] if header.channels in (1, 3) else OTHER_BYTES_PER_PIXEL
        return header.width * header.height * (per_pixel + COEFFICIENT_BYTES * header.has_scans)
    if image_format is None:
        return 0
    if image_format in SIZE_READERS:
        size = SIZE_READERS[image_format](raw)
    else:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(raw), formats=(image_format,)) as image:  # reads the header only
                size = image.size
        except Exception:  # Pillow raises nearly anything on damaged files
            size = None
    return 0 if size is None else size[0] * size[1] * BYTES_PER_PIXEL.get(image_format, OTHER_BYTES_PER_PIXEL)


def upright_shape(path: str | Path) -> tuple[int, int]:
    """Height and width of what `open_image` returns, from the header of the file alone.

    Raises ImageError for a file that cannot be read, or whose header is damaged.
    """
    raw = read_file(path, START_BYTES)
    if detect_format(raw) != "JPEG" or not has_all_metadata(raw):
        raw = read_file(path)
    header = jpeg_header(raw) if detect_format(raw) == "JPEG" else None
    if header is not None and header.width * header.height:
        width, height, orientation = header.width, header.height, read_orientation(header.exif, header.xmp)
    else:
        with open_with_pillow(raw, path) as (image, orientation):
            width, height = image.size
    return (width, height) if orientation in TURNED else (height, width)


# --- files -----------------------------------------------------------------------------------------------------------


def read_file(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a photo's file, or its first max_bytes.

    Raises ImageError that names the file if it is missing, empty, too large, or not a regular file: reading a pipe or a
    device could wait forever, so none is read.
    """
    # With few system calls: after each of them, a thread has to wait for the interpreter's lock.
    try:
        file = os.open(path, READ_FLAGS)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
                raise ImageError(f"Cannot read {path}: it is {kind}, not a file. Use the path of a photo.")
            size = status.st_size
            if size > MAX_FILE_BYTES:
                raise ImageError(f"{path} is larger than {MAX_FILE_BYTES // 1_000_000} MB. Export it as JPEG.")
            size = min(size, max_bytes)
            raw = os.read(file, size)
            while len(raw) < size and (more := os.read(file, size - len(raw))):
                raw += more
        finally:
            os.close(file)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise ImageError(f"Cannot read {path}: it is a socket, not a file. Use the path of a photo.") from error
        raise ImageError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
    except ValueError as error:  # a zero byte in the name
        raise ImageError(f"Cannot read {path}: {error}.") from error
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


def _decode_jpeg(raw: bytes, name: str | Path, allocate: Allocate | None, max_scan_pixels: int) -> np.ndarray | None:
    """(H, W, 3) uint8; None for files that Pillow has to open."""
    header = jpeg_header(raw)
    if header is None:
        return None
    width, height = header.width, header.height
    _check_size(width, height, name)
    if header.has_scans:
        _check_scans(raw, width * height, name, max_scan_pixels)
    if header.channels not in (1, 3) or not width * height:
        return None
    orientation = read_orientation(header.exif, header.xmp) if header.exif or header.xmp else 1
    buffer = allocate(height, width) if allocate is not None and orientation not in MAKE_UPRIGHT else None
    try:
        pixels = _jpeg_decoder()(raw, buffer=buffer)
    except ValueError:  # Pillow still opens some of these files
        return None
    if buffer is not None and pixels.shape == buffer.shape:
        return buffer
    return make_upright(pixels, orientation)


def make_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, 3) upright; contiguous."""
    # A copy, as a view of one row or column would be contiguous but have negative strides, which torch refuses.
    return MAKE_UPRIGHT[orientation](pixels).copy() if orientation in MAKE_UPRIGHT else pixels


def _check_scans(raw: bytes, num_pixels: int, name: str | Path, max_scan_pixels: int) -> None:
    """Raise ImageError for a JPEG with several scans, such as a progressive one, that takes too long to decode."""
    num_scans = raw.count(START_OF_SCAN)
    if num_scans > MAX_SCANS:
        raise ImageError(f"{name} has more than {MAX_SCANS} scans, too many to decode. Export it again.")
    if num_scans * num_pixels > max_scan_pixels:
        raise PhotoSizeError(
            f"{name} has {num_scans} scans of {num_pixels / 1e6:,.3g} megapixels each; the limit is "
            f"{max_scan_pixels / 1e6:,.0f} megapixels in total. Export it as a JPEG that is not progressive."
        )


# --- Pillow ----------------------------------------------------------------------------------------------------------


def _decode_with_pillow(raw: bytes, name: str | Path, max_pixels: int, max_scan_pixels: int) -> np.ndarray:
    """(H, W, 3) uint8.  Raises ImageError."""
    from cosplace.photos.modes import to_rgb

    with open_with_pillow(raw, name, max_pixels, max_scan_pixels) as (image, orientation):
        return make_upright(to_rgb(image), orientation)


@contextmanager
def open_with_pillow(
    raw: bytes, name: str | Path, max_pixels: int = MAX_PIXELS, max_scan_pixels: int = MAX_SCAN_PIXELS
) -> "Generator[tuple[Image.Image, int]]":
    """Within: the photo as a Pillow image that is not decoded yet, and its orientation (mostly 1 for TIFF).

    Raises ImageError for everything that is wrong with the photo, also while it is decoded within.
    """
    from PIL import Image, UnidentifiedImageError

    image_format, max_pixels = detect_format(raw), min(max_pixels, MAX_PILLOW_PIXELS)
    if image_format is None:
        raise PhotoFormatError(f"{name} {refused_format(raw)}")
    if image_format in SIZE_READERS:
        size = SIZE_READERS[image_format](raw)
        if size is None:
            raise damaged_photo(name, f"damaged {image_format} header")
        _check_size(*size, name, max_pixels)
    if has_too_many_parts(raw, image_format):
        raise damaged_photo(name, "it has too many parts")
    exif, xmp = None, None
    if image_format == "PNG":
        raw, exif, xmp = plain_png(raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, for which _check_size has its own limit; odd metadata
            with Image.open(io.BytesIO(raw), formats=(image_format,)) as image:
                _check_size(image.width, image.height, name, max_pixels)
                if image_format == "JPEG":
                    header = jpeg_header(raw)
                    if header is None or header.has_scans:
                        _check_scans(raw, image.width * image.height, name, max_scan_pixels)
                    exif, xmp = (None, None) if header is None else (header.exif, header.xmp)
                elif image_format == "TIFF":
                    _check_tiff(image, name)
                    yield image, _turn_tiff(image, raw)
                    return
                elif image_format in ("WEBP", "GIF"):
                    exif = image.info.get("exif")
                    xmp = gif_xmp(raw) if image_format == "GIF" else image.info.get("xmp")
                yield image, read_orientation(exif, xmp)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        kind = "TIFF image of a supported kind" if image_format == "TIFF" else f"{image_format} image"
        raise damaged_photo(name, f"not a {kind}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise damaged_photo(name, error) from error


def _check_tiff(image: "Image.Image", name: str | Path) -> None:
    """Raise PhotoFormatError for a TIFF whose photo Pillow does not open, although it raises nothing."""
    tags = getattr(image, "tag_v2")  # noqa: B009 - only TIFF images have it
    is_preview = bool(int(tags.get(254, 0)) & 1)  # NewSubfileType
    if 50706 in tags or (is_preview and 330 in tags):  # DNGVersion; SubIFDs: only a small preview is opened
        raise PhotoFormatError(f"{name} is a camera raw image. Export it as JPEG.")
    bits = tags.get(258, 8)  # BitsPerSample
    if tags.get(284, 1) == 2 and isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8:  # PlanarConfiguration
        # The channels follow each other, and are opened as if they had 8 bits.
        raise PhotoFormatError(f"{name} stores its channels one by one, with {max(bits)} bits. Export it as JPEG.")


def _turn_tiff(image: "Image.Image", raw: bytes) -> int:
    """Turn a TIFF upright as Pillow does when it decodes one; returns the orientation that Pillow does not see."""
    from PIL import ImageOps

    packet = getattr(image, "tag_v2").get(700)  # noqa: B009 - only TIFF images have it
    orientation = read_orientation(raw, packet if isinstance(packet, bytes) else None)
    is_seen = image.getexif().get(ORIENTATION) in MAKE_UPRIGHT
    ImageOps.exif_transpose(image, in_place=True)  # a copy would not have the tags, which say what 0 means
    return 1 if is_seen else orientation
