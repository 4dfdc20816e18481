"""Manifests of tables with other contents."""

import struct
from collections.abc import Callable


def field(number: int, value: bytes) -> bytes:
    """A field of bytes of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def with_message(raw: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A file of a manifest with another message.  raw: its content."""
    start = struct.unpack("<Q", raw[-16:-8])[0]
    (length,) = struct.unpack("<I", raw[start : start + 4])
    message = change(raw[start + 4 : start + 4 + length])
    return raw[:start] + struct.pack("<I", len(message)) + message + raw[start + 4 + length :]


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
