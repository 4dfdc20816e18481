"""The EXIF blocks and the XMP packet in the bytes of a photo's file: JPEG, PNG, WebP, TIFF or GIF.

Bytes are only extracted here, not interpreted.  Damaged files and files of other formats have no blocks.  A file may be
made to waste time and memory, so the numbers of its parts and blocks are limited.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from cosplace.photos.formats import PNG_START
from cosplace.photos.orientation import BYTE_ORDERS, EXIF_HEADER
from cosplace.photos.xmp import MAX_XMP_BYTES, contains

APP1, START_OF_SCAN, END_OF_IMAGE = 0xE1, 0xDA, 0xD9  # JPEG markers
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))  # markers
FILL_BYTES = re.compile(b"\xff+")
XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
EXTENSION_HEADER = b"http://ns.adobe.com/xmp/extension/\0"  # packets above 64 KB continue in such segments
GUID_LENGTH = 32
PNG_KEYWORD_BYTES = 80  # at most, with the zero byte after it
PNG_XMP_KEYWORD = b"XML:com.adobe.xmp"
IMAGEMAGICK_XMP = b"Raw profile type xmp"
IMAGEMAGICK_KEYWORDS = (b"Raw profile type exif", b"Raw profile type APP1", IMAGEMAGICK_XMP)
GIF_STARTS, GIF_XMP = (b"GIF87a", b"GIF89a"), b"\x21\xff\x0bXMP DataXMP"
GIF_XMP_END = b"\x01\xff\xfe\xfd"  # of the bytes that let other programs skip the packet
MAX_EXIF_TEXT_BYTES = 1_000_000  # of an EXIF block that is written as text in a PNG file
MAX_SEGMENTS, MAX_CHUNKS = 10_000, 100_000  # of a JPEG before its pixels, of a PNG or WebP
MAX_BLOCKS = 4  # that are used, of each kind; photos have one or two


@dataclass(frozen=True, slots=True)
class MetadataBlocks:
    """The blocks in a file that describe its photo."""

    exif: tuple[bytes, ...] = ()  # TIFF blocks without the leading "Exif"
    xmp: tuple[bytes, ...] = ()  # the packet, and its continuation if it has one


def find_blocks(raw: bytes) -> MetadataBlocks:
    """The EXIF blocks and the XMP packet of a file.  Never raises."""
    if raw[:2] == b"\xff\xd8":
        return _jpeg_blocks(raw)
    if raw[:8] == PNG_START:
        return _png_blocks(raw)
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return _webp_blocks(raw)
    if raw[:4] in BYTE_ORDERS:
        return MetadataBlocks(exif=(raw,))  # a TIFF file is such a block itself, and holds its packet in a tag
    if raw[:6] in GIF_STARTS:
        packet = gif_xmp(raw)
        return MetadataBlocks(xmp=(packet,) if packet else ())
    return MetadataBlocks()


def gif_xmp(raw: bytes) -> bytes:
    """The XMP packet of a GIF; empty without one."""
    return raw.partition(GIF_XMP)[2][: MAX_XMP_BYTES + len(GIF_XMP_END)].partition(GIF_XMP_END)[0]


def has_too_many_parts(raw: bytes, image_format: str) -> bool:
    """Whether a JPEG has MAX_SEGMENTS segments before its pixels, or a PNG MAX_CHUNKS chunks.  No program does that."""
    if image_format == "JPEG":
        return sum(1 for _ in jpeg_segments(raw)) >= MAX_SEGMENTS
    return image_format == "PNG" and sum(1 for _ in _png_chunks(raw)) >= MAX_CHUNKS


# --- JPEG ------------------------------------------------------------------------------------------------------------


def _jpeg_blocks(raw: bytes) -> MetadataBlocks:
    exif: list[list[bytes]] = []
    packets: list[bytes] = []
    extensions: list[tuple[bytes, int, bytes]] = []  # GUID, offset, part
    for segment in _app1_segments(raw):
        if segment.startswith(EXIF_HEADER[:-1]):  # the last byte is padding
            block = segment[len(EXIF_HEADER) :]
            if exif and block[:4] not in BYTE_ORDERS:
                exif[-1].append(block)  # blocks above 64 KB are split
            else:
                exif.append([block])
        elif segment.startswith(XMP_HEADER):
            packets.append(segment[len(XMP_HEADER) :])
        elif segment.startswith(EXTENSION_HEADER):
            part = segment[len(EXTENSION_HEADER) :]
            if len(part) > GUID_LENGTH + 8:
                (offset,) = struct.unpack_from(">I", part, GUID_LENGTH + 4)
                extensions.append((part[:GUID_LENGTH], offset, part[GUID_LENGTH + 8 :]))
    if packets and extensions:
        # Programs that do not know continuations may leave one of another packet in the file.
        mine = [(offset, part) for guid, offset, part in extensions if _names(packets[0], guid)]
        packets[1:] = [b"".join(part for _, part in sorted(mine))]
    return MetadataBlocks(tuple(map(b"".join, exif[:MAX_BLOCKS])), tuple(packets[:MAX_BLOCKS]))


def _names(packet: bytes, guid: bytes) -> bool:
    return guid.isalnum() and contains(packet, guid.decode("ascii"))


def _app1_segments(raw: bytes) -> Iterator[bytes]:
    """Contents of the APP1 segments before the pixels."""
    return (raw[start:end] for marker, start, end in jpeg_segments(raw) if marker == APP1)


def jpeg_segments(raw: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the first MAX_SEGMENTS segments of a JPEG, up to that of the first scan.

    A marker without a length is a segment without content.  The last segment may end beyond the file.
    """
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position + 4 >= len(raw) or raw[position] != 0xFF:
            return
        if raw[position + 1] == 0xFF and (fill := FILL_BYTES.match(raw, position)):
            position = fill.end() - 1
            if position + 4 >= len(raw):
                return
        marker, start = raw[position + 1], position + 2
        if marker == END_OF_IMAGE:
            return
        if marker not in WITHOUT_LENGTH:
            start, position = position + 4, start + int.from_bytes(raw[start : start + 2], "big")
        else:
            position = start
        yield marker, start, position
        if marker == START_OF_SCAN:
            return


# --- PNG -------------------------------------------------------------------------------------------------------------


def _png_blocks(raw: bytes) -> MetadataBlocks:
    exif: list[bytes] = []
    packets: list[bytes] = []
    found = (
        (kind, raw[start:end])
        for kind, start, end in _png_chunks(raw)
        if _is_metadata(kind, raw[start : start + PNG_KEYWORD_BYTES])
    )
    for kind, content in islice(found, 2 * MAX_BLOCKS):
        if kind == b"eXIf":
            exif.append(content.removeprefix(EXIF_HEADER))
        elif kind == b"iTXt":
            packet = png_xmp(content)
            packets += [] if packet is None else [packet]
        else:
            keyword, _, rest = content.partition(b"\0")
            if kind == b"tEXt" and keyword == PNG_XMP_KEYWORD:
                packets.append(rest)
            elif keyword in IMAGEMAGICK_KEYWORDS:
                text = _inflate(rest[1:], MAX_EXIF_TEXT_BYTES) if kind == b"zTXt" else rest[:MAX_EXIF_TEXT_BYTES]
                block = _hexadecimal_block(text)
                if keyword == IMAGEMAGICK_XMP:
                    packets.append(block.removeprefix(XMP_HEADER))
                elif block.startswith(EXIF_HEADER):
                    exif.append(block.removeprefix(EXIF_HEADER))
                elif block.startswith(XMP_HEADER):
                    packets.append(block.removeprefix(XMP_HEADER))
    return MetadataBlocks(tuple(exif[:MAX_BLOCKS]), tuple(packets[:MAX_BLOCKS]))


def _is_metadata(kind: bytes, start: bytes) -> bool:
    """Whether a chunk may describe the photo.  start: its first bytes, with the keyword of a text."""
    if kind in (b"iTXt", b"zTXt", b"tEXt"):
        return start.partition(b"\0")[0] in (PNG_XMP_KEYWORD, *IMAGEMAGICK_KEYWORDS)
    return kind == b"eXIf"


def _png_chunks(raw: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the first MAX_CHUNKS chunks."""
    position = len(PNG_START)
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(raw):
            return
        length, kind = struct.unpack_from(">I4s", raw, position)
        yield kind, position + 8, position + 8 + length
        position += 12 + length


def png_xmp(chunk: bytes, max_bytes: int = MAX_XMP_BYTES) -> bytes | None:
    """The XMP packet in an iTXt chunk, empty if it is damaged; None for other texts.

    max_bytes: a compressed packet is cut off there.
    """
    keyword, _, rest = chunk.partition(b"\0")
    if keyword != PNG_XMP_KEYWORD:
        return None
    is_compressed, text = rest[:1] == b"\1", rest[2:]
    for _ in ("language", "translated keyword"):
        text = text.partition(b"\0")[2]
    return _inflate(text, max_bytes) if is_compressed else text


def _inflate(data: bytes, max_bytes: int) -> bytes:
    """Decompressed data, at most max_bytes; empty for damaged data."""
    try:
        return zlib.decompressobj().decompress(data, max_bytes)
    except zlib.error:
        return b""


def _hexadecimal_block(text: bytes) -> bytes:
    """The block that ImageMagick writes as "name, length, digits"; empty for other text."""
    match = re.match(rb"\s*[A-Za-z]\w*(?: \w+)?\s+\d+\s+([0-9a-fA-F\s]*)", text)
    try:
        return bytes.fromhex(match[1].decode("ascii")) if match else b""
    except ValueError:
        return b""


# --- WebP ------------------------------------------------------------------------------------------------------------


def _webp_blocks(raw: bytes) -> MetadataBlocks:
    exif: list[bytes] = []
    packets: list[bytes] = []
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(raw):
            break
        kind, length = struct.unpack_from("<4sI", raw, position)
        if kind == b"EXIF":
            exif.append(raw[position + 8 : position + 8 + length].removeprefix(EXIF_HEADER))
        elif kind == b"XMP ":
            packets.append(raw[position + 8 : position + 8 + length])
        position += 8 + length + length % 2
    return MetadataBlocks(tuple(exif[:MAX_BLOCKS]), tuple(packets[:MAX_BLOCKS]))
