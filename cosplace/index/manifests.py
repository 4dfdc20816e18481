"""What the manifest of a version of a table says about where its files are: Lance can read them from anywhere.

The file of a manifest ends with the position of a message (a length of four bytes, then a protocol buffer), two
versions, and "LANC".  Pure functions.
"""

import struct

END = struct.Struct("<QHH4s")  # position of the message; versions; magic
LENGTH = struct.Struct("<I")
MAGIC = b"LANC"
BASE_PATHS = 18  # the field of folders and addresses of other files
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of fields
MAX_VARINT_BYTES = 10


def has_other_places(raw: bytes) -> bool:
    """Whether a manifest names places outside of its table.  raw: content of the file.  Raises ValueError."""
    return BASE_PATHS in field_numbers(_message(raw))


def _message(raw: bytes) -> bytes:
    if len(raw) < END.size or not raw.endswith(MAGIC):
        raise ValueError("no manifest")
    start = END.unpack(raw[-END.size :])[0] + LENGTH.size
    if start > len(raw):
        raise ValueError("position")
    (length,) = LENGTH.unpack(raw[start - LENGTH.size : start])
    if start + length > len(raw):
        raise ValueError("length")
    return raw[start : start + length]


def field_numbers(message: bytes) -> set[int]:
    """The numbers of the fields of a protocol buffer.  Raises ValueError.

    >>> sorted(field_numbers(bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x41, 0x42])))
    [1, 2]
    """
    found, at = set(), 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            _, at = _varint(message, at)
        elif kind == BYTES:
            length, at = _varint(message, at)
            at += length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"kind {kind}")
        found.add(number)
    if at > len(message):
        raise ValueError("length")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits per byte, least first, and the position behind it."""
    value = 0
    for shift in range(MAX_VARINT_BYTES):
        if at >= len(message):
            break
        byte = message[at]
        value, at = value | (byte & 0x7F) << 7 * shift, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("number")
