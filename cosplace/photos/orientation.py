"""How a photo is stored: upright, turned or mirrored.  One rule for pixels, thumbnails and the server.

The EXIF block decides; where it has no orientation, XMP's tiff:Orientation; where there is none, the photo is upright.
"""

import struct

from cosplace.photos.xmp import TIFF_NAMESPACE, contains, read_xmp

ORIENTATION = 0x0112  # tag of the first directory of an EXIF block
EXIF_HEADER = b"Exif\x00\x00"
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# From a type of TIFF to its format in `struct`: numbers, rationals as two numbers, and text.
VALUE_FORMATS = {1: "B", 2: "c", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
INLINE_BYTES = 4  # of a value that is in the entry itself; the entry of a longer one has its place
ORIENTATION_TEXTS = tuple("12345678")
UPRIGHT = 1


def read_orientation(exif_block: bytes | None, xmp: bytes | None) -> int:
    """The orientation of a photo, 1 to 8; 1 if neither block has one, or an impossible one.  Never raises.

    exif_block: with or without the leading "Exif"; xmp: a packet.  None for a block that the photo lacks.
    """
    orientation = exif_orientation(exif_block) if exif_block else 0
    if not orientation and xmp and contains(xmp, "Orientation"):
        text = read_xmp(xmp).get(f"{{{TIFF_NAMESPACE}}}Orientation", "")
        orientation = int(text) if text in ORIENTATION_TEXTS else 0
    return orientation or UPRIGHT


def exif_orientation(block: bytes) -> int:
    """The orientation in the first directory of an EXIF block; 0 without one.  Other directories describe previews."""
    start = len(EXIF_HEADER) if block[: len(EXIF_HEADER)] == EXIF_HEADER else 0
    order = BYTE_ORDERS.get(bytes(block[start : start + 4]))
    if order is None:
        return 0
    try:
        directory = start + struct.unpack_from(order + "I", block, start + 4)[0]
        (num_entries,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", block, entry)
            if tag == ORIENTATION and kind in VALUE_FORMATS:
                place, size = entry + 8, count * struct.calcsize(order + VALUE_FORMATS[kind])
                if size > INLINE_BYTES:
                    place = start + struct.unpack_from(order + "I", block, place)[0]
                return _checked(*struct.unpack_from(order + VALUE_FORMATS[kind], block, place))
    except struct.error:  # a truncated block
        pass
    return 0


def _checked(value: float | bytes, denominator: int = 1) -> int:
    """A value as an orientation, 1 to 8; 0 for an impossible one."""
    number = float(value) if not isinstance(value, bytes) else float(value) if value.isdigit() else 0.0
    number = number / denominator if denominator else 0.0
    return int(number) if 1 <= number <= 8 and number % 1 == 0 else 0
