"""What precedes the pixels of a photo: its size, its EXIF block and its XMP packet.  Pure functions.

Only bytes are cut out here; nothing is decoded.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from cosplace.photos.blocks import APP1, START_OF_SCAN, WITHOUT_LENGTH, XMP_HEADER, jpeg_segments, png_xmp
from cosplace.photos.formats import PNG_START
from cosplace.photos.orientation import EXIF_HEADER, exif_orientation

MAX_PNG_XMP_BYTES = 1 << 20  # uncompressed; only the orientation is read from it

# --- JPEG ------------------------------------------------------------------------------------------------------------


class JpegHeader(NamedTuple):
    """What precedes the pixels of a JPEG."""

    width: int
    height: int
    channels: int
    exif: bytes | None  # the first EXIF block with an orientation; the last one if none has
    xmp: bytes | None  # the first XMP packet
    has_scans: bool  # several scans, or possibly so: each visits all pixels


def jpeg_header(raw: bytes | bytearray) -> JpegHeader | None:
    """Read the header of a JPEG, up to its first scan; None if it has no frame header (marker SOF)."""
    frame, exif, xmp, has_scans = None, None, None, True
    for marker, first, last in _jpeg_segments(raw):
        if marker == APP1:
            if raw[first : first + 6] == EXIF_HEADER and (exif is None or not exif_orientation(exif)):
                exif = bytes(raw[first:last])
            elif xmp is None and raw[first : first + len(XMP_HEADER)] == XMP_HEADER:
                xmp = bytes(raw[first + len(XMP_HEADER) : last])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if frame is not None or last - first < 6:
                return None
            height, width = (int.from_bytes(raw[first + i : first + i + 2], "big") for i in (1, 3))
            frame = marker, width, height, raw[first + 5]
        elif marker == START_OF_SCAN and frame is not None:
            # One scan with all channels ends a file that is not progressive: the decoder refuses further ones.
            has_scans = frame[0] not in (0xC0, 0xC1) or raw[first] != frame[3]
    return None if frame is None else JpegHeader(*frame[1:], exif, xmp, has_scans)


def has_all_metadata(start: bytes) -> bool:
    """Whether the first bytes of a file contain all its metadata: those of a JPEG that is cut after its first scan."""
    return start[:2] == b"\xff\xd8" and any(marker == START_OF_SCAN for marker, _, _ in _jpeg_segments(start))


def _jpeg_segments(raw: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte, end) of each segment with content up to that of the first scan; until one is damaged."""
    for marker, first, last in jpeg_segments(raw):
        if marker in WITHOUT_LENGTH:
            continue
        if marker < 0xC0 or last > len(raw):  # decoders handle the former differently
            return
        yield marker, first, last


def simplejpeg_size(raw: bytes) -> tuple[int, int] | None:
    """Width and height as the decoder itself reads them; None for files that it does not open."""
    from simplejpeg import decode_jpeg_header

    try:
        height, width, *_ = decode_jpeg_header(raw)
    except ValueError:
        return None
    return int(width), int(height)


# --- other formats: size, before any decoder runs --------------------------------------------------------------------


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


SIZE_READERS: dict[str, Callable[[bytes | bytearray], tuple[int, int] | None]] = {"PNG": _png_size, "WEBP": _webp_size}


# --- PNG -------------------------------------------------------------------------------------------------------------


def plain_png(raw: bytes) -> tuple[bytes, bytes | None, bytes | None]:
    """A PNG with only the chunks that its pixels need, its EXIF block and its XMP packet.

    Pillow refuses intact images if a text or color profile in them is large or damaged.
    """
    parts, exif, xmp, position, is_plain = [PNG_START], None, None, len(PNG_START), True
    while position + 12 <= len(raw):
        kind = raw[position + 4 : position + 8]
        last = position + 12 + int.from_bytes(raw[position : position + 4], "big")
        if kind[:1].isupper() or not kind.isalpha():  # critical, or damaged: the decoder decides
            parts.append(raw[position:last])
        else:
            is_plain = False
            if kind == b"eXIf" and exif is None:
                exif = raw[position + 8 : last - 4]
            elif kind == b"iTXt" and xmp is None:
                xmp = png_xmp(raw[position + 8 : last - 4], MAX_PNG_XMP_BYTES)
        position = last
    return (raw if is_plain else b"".join([*parts, raw[position:]])), exif, xmp
