"""One photo, or a batch of them: files to pixels, upright, the same as Pillow's.

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

from cosplace.errors import ImageError

if TYPE_CHECKING:  # torch takes seconds to import, and scanning does not need it
    import torch

MAX_PIXELS = 200_000_000  # a picture larger than this is refused before it is decoded
MAX_FILE_BYTES = 500_000_000
ORIENTATION = 0x0112  # EXIF's tag
EXIF = b"Exif\x00\x00"

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


def open_image(path: str | Path, room: Room | None = None) -> "torch.Tensor":
    """One photo as RGB, (3, H, W) uint8, upright as its EXIF orientation says; its channels lie side by side.

    room: gives the memory to decode into; it is asked for at most once, and what it gives may stay unused.
    Raises ImageError that names the file when it is missing, empty, truncated, no picture, or larger than
    MAX_PIXELS (checked before decoding).
    """
    import torch

    raw = _read_file(Path(path))
    pixels = None
    if raw[:2] == b"\xff\xd8":
        pixels = _open_jpeg(raw, path, room)
    elif raw[:8] == b"\x89PNG\r\n\x1a\n" and len(raw) >= 24:
        _check_size(int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big"), path)
    if pixels is None:
        pixels = _open_with_pillow(raw, path)
    return torch.from_numpy(pixels).permute(2, 0, 1)


class PhotoStacks:
    """Up to `most` photos of any sizes, each decoded where it stays: in a stack of the photos of its size."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.buffers: dict[tuple[int, int], np.ndarray] = {}  # (most, H, W, 3) uint8
        self.places: dict[tuple[int, int], list[int]] = {}  # of their photos among all

    def room(self, height: int, width: int) -> np.ndarray:
        """Memory for the next photo of that size, (H, W, 3) uint8; it is kept by `add`."""
        size = height, width
        if size not in self.buffers:
            self.buffers[size], self.places[size] = np.empty((self.most, *size, 3), np.uint8), []
        return self.buffers[size][len(self.places[size])]

    def add(self, photo: "torch.Tensor") -> None:
        """Keep a photo (3, H, W) uint8; it is copied unless it lies where `room` said."""
        height, width = photo.shape[1:]
        room, pixels = self.room(height, width), photo.permute(1, 2, 0).numpy()
        if pixels.ctypes.data != room.ctypes.data or pixels.strides != room.strides:
            room[:] = pixels
        self.places[height, width].append(self.count)
        self.count += 1

    def stacks(self) -> "list[tuple[list[int], torch.Tensor]]":
        """(places among all photos, (n, 3, H, W) uint8) of each size, in the order in which sizes appeared."""
        import torch

        found = []
        for size, places in self.places.items():
            if places:
                photos = self.buffers[size][: len(places)]
                whole = photos if len(places) == self.most else photos.copy()  # not with what stayed empty
                found.append((places, torch.from_numpy(whole).permute(0, 3, 1, 2)))
        return found


# --- files -----------------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> bytearray:
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ImageError(f"{path} is larger than {MAX_FILE_BYTES // 1_000_000} MB: no photo.")
            raw = bytearray(size)
            view, done = memoryview(raw), 0
            while done < size and (count := file.readinto(view[done:])):
                done += count
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}).") from error
    if not done:
        raise ImageError(f"{path} is empty.")
    return raw if done == size else raw[:done]


def _check_size(width: int, height: int, path: str | Path) -> None:
    """Refuse by the header a picture whose pixels would fill the memory."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path} claims {width} x {height} pixels, more than {MAX_PIXELS:,} in all: refused.")


# --- JPEG ------------------------------------------------------------------------------------------------------------


@cache
def _jpeg_decoder() -> Callable[..., np.ndarray]:
    from simplejpeg import decode_jpeg

    return decode_jpeg


def _open_jpeg(raw: bytearray, path: str | Path, room: Room | None) -> np.ndarray | None:
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


# --- all else --------------------------------------------------------------------------------------------------------


def _open_with_pillow(raw: bytearray, path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8.  Raises ImageError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is another one
            with Image.open(io.BytesIO(raw)) as picture:
                _check_size(picture.width, picture.height, path)
                return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is no picture.") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise ImageError(f"{path} cannot be decoded ({str(error).rstrip('.') or type(error).__name__}).") from error
