"""A tiny writer of EXIF blocks and XMP packets, with any type, count and value, and of files that hold them."""

import io
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from PIL import Image

BYTE, ASCII, SHORT, LONG, RATIONAL, SBYTE, UNDEFINED, SSHORT, SLONG, SRATIONAL, FLOAT, DOUBLE = range(1, 13)
SIZES = {BYTE: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, SBYTE: 1, UNDEFINED: 1, SSHORT: 2, SLONG: 4, SRATIONAL: 8,
         FLOAT: 4, DOUBLE: 8}  # fmt: skip
FORMATS = {BYTE: "B", SHORT: "H", LONG: "I", SBYTE: "b", SSHORT: "h", SLONG: "i", FLOAT: "f", DOUBLE: "d"}
EXIF_POINTER, GPS_POINTER = 0x8769, 0x8825
XMP_HEADER, EXTENSION_HEADER = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"


class Tag(NamedTuple):
    """The type and the values of one tag: numbers, pairs for rationals, or bytes."""

    kind: int
    values: Any


Tags = Mapping[int, Tag]


def ascii_tag(text: str) -> Tag:
    return Tag(ASCII, text.encode() + b"\0")


def degrees(value: float) -> Tag:
    """An angle as degrees, minutes and seconds, as cameras write it."""
    whole, minutes = divmod(abs(value) * 60, 60)
    return Tag(RATIONAL, [(int(whole), 1), (int(minutes), 1), (round(minutes % 1 * 60 * 10_000), 10_000)])


def exif_block(
    gps: Tags | None = None, taken: Tags | None = None, image: Tags | None = None, order: str = "<"
) -> bytes:
    """A TIFF block of a first directory and the directories of EXIF and GPS tags.  order: '<' or '>'."""
    first = dict(image or {})
    directories: list[tuple[int, Tags]] = [(0, first)]
    directories += [(EXIF_POINTER, taken)] if taken else []
    directories += [(GPS_POINTER, gps)] if gps else []
    for pointer, _ in directories[1:]:
        first[pointer] = Tag(LONG, [0])
    offset, parts = 8, []
    for pointer, tags in directories:
        if pointer:
            first[pointer] = Tag(LONG, [offset])
        size = _directory_size(tags)
        parts.append((tags, offset))
        offset += size
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return header + b"".join(_directory(tags, start, order) for tags, start in parts)


def _data(tag: Tag, order: str) -> bytes:
    if isinstance(tag.values, bytes):
        return tag.values
    if tag.kind in (RATIONAL, SRATIONAL):
        letter = "I" if tag.kind == RATIONAL else "i"
        return b"".join(struct.pack(order + 2 * letter, *pair) for pair in tag.values)
    return b"".join(struct.pack(order + FORMATS[tag.kind], value) for value in tag.values)


def _directory_size(tags: Tags) -> int:
    lengths = [len(_data(tag, "<")) for tag in tags.values()]
    return 2 + 12 * len(tags) + 4 + sum(length + length % 2 for length in lengths if length > 4)


def _directory(tags: Tags, start: int, order: str) -> bytes:
    entries, data = [], b""
    offset = start + 2 + 12 * len(tags) + 4
    for number, tag in sorted(tags.items()):
        value = _data(tag, order)
        count = len(value) // SIZES[tag.kind]
        if len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack(order + "I", offset + len(data))
            data += value + b"\0" * (len(value) % 2)
        entries.append(struct.pack(order + "HHI", number, tag.kind, count) + field)
    return struct.pack(order + "H", len(tags)) + b"".join(entries) + bytes(4) + data


# --- XMP -------------------------------------------------------------------------------------------------------------

NAMESPACES = {
    "exif": "http://ns.adobe.com/exif/1.0/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "drone-dji": "http://www.dji.com/drone-dji/1.0/",
    "GPano": "http://ns.google.com/photos/1.0/panorama/",
    "Camera": "http://pix4d.com/camera/1.0",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
}


def xmp_packet(properties: Mapping[str, str], *, elements: bool = False, prefixes: Mapping[str, str] = {}) -> bytes:
    """A packet of properties such as `exif:GPSLatitude`; prefixes: other names for the namespaces."""
    named = {f"{prefixes.get(space, space)}:{name}": value for key, value in properties.items()
             for space, name in [key.split(":")]}  # fmt: skip
    spaces = " ".join(f'xmlns:{prefixes.get(space, space)}="{address}"' for space, address in NAMESPACES.items())
    attributes = "" if elements else " ".join(f'{name}="{value}"' for name, value in named.items())
    children = "".join(f"<{name}>{value}</{name}>" for name, value in named.items()) if elements else ""
    return (
        f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" {spaces} '
        f'{attributes}>{children}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


# --- files -----------------------------------------------------------------------------------------------------------


def segment(data: bytes, marker: int = 0xE1) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data


def exif_segment(block: bytes) -> bytes:
    return segment(b"Exif\0\0" + block)


def xmp_segment(packet: bytes) -> bytes:
    return segment(XMP_HEADER + packet)


def extended_xmp_segments(packet: bytes, guid: bytes, part: int = 60_000) -> list[bytes]:
    """The part of a packet that the first 64 KB have no room for, in several segments."""
    return [
        segment(EXTENSION_HEADER + guid + struct.pack(">II", len(packet), start) + packet[start : start + part])
        for start in range(0, len(packet), part)
    ]


def pixels(image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (90, 40, 200)).save(buffer, image_format, **options)
    return buffer.getvalue()


def jpeg(*segments: bytes) -> bytes:
    raw = pixels("JPEG")
    return raw[:2] + b"".join(segments) + raw[2:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    raw = pixels("PNG")
    return raw[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + raw[33:]


def png_xmp(packet: bytes, *, compressed: bool = False) -> tuple[bytes, bytes]:
    text = zlib.compress(packet) if compressed else packet
    return b"iTXt", b"XML:com.adobe.xmp\0" + bytes([compressed, 0]) + b"\0\0" + text


def webp(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    raw = pixels("WEBP", lossless=True)
    flags = {b"EXIF": 8, b"XMP ": 4}
    chunks = list(chunks)
    header = (
        bytes([sum(flags.get(kind, 0) for kind in dict(chunks)), 0, 0, 0])
        + struct.pack("<I", 15)[:3]
        + struct.pack("<I", 11)[:3]
    )
    parts = [(b"VP8X", header)]
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in parts)
    tail = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    body = body + raw[12:] + tail
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def tiff(gps: Tags | None = None, taken: Tags | None = None, image: Tags | None = None, order: str = "<") -> bytes:
    """A TIFF file of one black pixel."""
    picture = {
        256: Tag(SHORT, [1]), 257: Tag(SHORT, [1]), 258: Tag(SHORT, [8]), 259: Tag(SHORT, [1]), 262: Tag(SHORT, [1]),
        273: Tag(LONG, [0]), 277: Tag(SHORT, [1]), 278: Tag(SHORT, [1]), 279: Tag(LONG, [1]),
    }  # fmt: skip
    return exif_block(gps, taken, picture | dict(image or {}), order)
