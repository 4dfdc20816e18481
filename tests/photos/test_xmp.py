"""XMP packets, and how a photo is stored by EXIF and XMP."""

import pytest

from cosplace.photos.blocks import find_blocks
from cosplace.photos.orientation import read_orientation
from cosplace.photos.xmp import EXIF_NAMESPACE, MAX_XMP_BYTES, contains, read_xmp
from tests.photos.exif_blocks import BYTE, LONG, RATIONAL, SHORT, Tag, exif_block, png, png_xmp, xmp_packet

LATITUDE = f"{{{EXIF_NAMESPACE}}}GPSLatitude"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("elements", [True, False])
def test_packets_in_all_encodings(encoding: str, elements: bool) -> None:
    packet = xmp_packet({"exif:GPSLatitude": "33,51.408S"}, elements=elements).decode().encode(encoding) + b"\0"
    assert contains(packet, "GPSLatitude") and not contains(packet, "GPSLongitude")
    assert read_xmp(packet)[LATITUDE] == "33,51.408S"


def test_entities_are_not_expanded() -> None:
    text = xmp_packet({"exif:GPSLatitude": "&a;"}).decode().partition("?>")[2]
    text = '<!DOCTYPE x [<!ENTITY a "33,51.408S">]>' + text
    for encoding in ENCODINGS:
        assert read_xmp(text.encode(encoding)) == {}


@pytest.mark.parametrize(
    "packet", [b"", b"<", b"<a", b"\xff\xfe", b"\0" * 9, b"<a>" * 1000, b"<a/>" + b" " * MAX_XMP_BYTES]
)
def test_damaged_and_large_packets_are_empty(packet: bytes) -> None:
    assert read_xmp(packet) == {}


def test_a_packet_is_read_only_up_to_a_size() -> None:
    packet = xmp_packet({"exif:GPSLatitude": "33,51.408S"})
    assert read_xmp(packet.ljust(MAX_XMP_BYTES))[LATITUDE] == "33,51.408S"
    assert read_xmp(packet.ljust(MAX_XMP_BYTES + 1)) == {}


def test_a_small_file_does_not_become_a_large_packet() -> None:
    bomb = png(png_xmp(b"<x>" + b" " * 20_000_000, compressed=True))
    assert len(bomb) < 100_000
    assert sum(map(len, find_blocks(bomb).xmp)) <= MAX_XMP_BYTES


# --- orientation -----------------------------------------------------------------------------------------------------


def stored(tag: Tag | None = None, order: str = "<") -> bytes:
    return exif_block(image={} if tag is None else {0x0112: tag}, taken={0x9003: Tag(2, b"2020")}, order=order)


def xmp_orientation(text: str, **options) -> bytes:
    return xmp_packet({"tiff:Orientation": text}, **options)


def test_exif_decides_and_xmp_gives_what_it_lacks() -> None:
    assert read_orientation(None, None) == 1
    for order in "<>":
        for value in range(1, 9):
            block = stored(Tag(SHORT, [value]), order)
            assert read_orientation(block, None) == read_orientation(b"Exif\0\0" + block, None) == value
            assert read_orientation(block, xmp_orientation("6")) == value
            assert read_orientation(stored(None, order), xmp_orientation(str(value))) == value
    assert read_orientation(None, xmp_orientation("8", elements=True)) == 8
    assert read_orientation(None, xmp_orientation("8", prefixes={"tiff": "t"}).decode().encode("utf-16")) == 8


def test_impossible_orientations_are_none() -> None:
    for tag in (Tag(SHORT, [0]), Tag(SHORT, [9]), Tag(RATIONAL, [(6, 0)]), Tag(RATIONAL, [(13, 2)]), Tag(2, b"x\0")):
        assert read_orientation(stored(tag), None) == 1
        assert read_orientation(stored(tag), xmp_orientation("3")) == 3
    for tag in (Tag(BYTE, [6]), Tag(LONG, [6]), Tag(RATIONAL, [(6, 1)]), Tag(2, b"6\0")):  # as exiftool reads them
        assert read_orientation(stored(tag), None) == 6
    for text in ("0", "9", "66", "", "six", "6.0"):
        assert read_orientation(None, xmp_orientation(text)) == 1


def test_orientations_of_others_do_not_count() -> None:
    assert read_orientation(None, xmp_packet({"exif:Orientation": "6"})) == 1
    preview = stored(Tag(SHORT, [6]))  # the second directory is that of the preview
    first = b"II*\0\x08\0\0\0" + b"\0\0" + (14).to_bytes(4, "little") + preview[8:]
    assert read_orientation(first, None) == 1


def test_damaged_blocks_are_upright() -> None:
    block, packet = stored(Tag(SHORT, [6])), xmp_orientation("6")
    for end in range(len(block)):
        assert read_orientation(block[:end], None) in (1, 6)
    for end in range(0, len(packet), 9):
        assert read_orientation(None, packet[:end]) in (1, 6)
    assert read_orientation(b"II*\0\xff\xff\xff\xff", b"Orientation") == 1
