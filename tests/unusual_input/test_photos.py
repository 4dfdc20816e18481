"""Position, heading, time and pixels of unusual photos: the values are those of exiftool, pyproj and libpng."""

import os
import stat
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.errors import ImageError
from cosplace.photos.metadata import PhotoMetadata, read_metadata
from cosplace.photos.opening import open_image, upright_shape
from cosplace.photos.orientation import exif_orientation
from tests.unusual_input.samples import (
    ASCII,
    BYTE,
    SHORT,
    UNDEFINED,
    Tags,
    encoded,
    exif_block,
    exiftool,
    jpeg_with,
    needs_posix,
    place_pixels,
    rationals,
    text,
    within,
    xmp_packet,
)

SYDNEY = -(33 + 51 / 60 + 25 / 3600), 151 + 12 / 60 + 55 / 3600  # by the formula of EXIF
SOUTH, EAST = rationals((33, 1), (51, 1), (25, 1)), rationals((151, 1), (12, 1), (55, 1))


def metadata(raw: bytes) -> PhotoMetadata:
    return read_metadata(Path("photo.jpg"), raw)


def gps_tags(south: tuple[int, bytes], latitude: tuple[int, bytes] = SOUTH, longitude: tuple = EAST) -> Tags:
    return {1: south, 2: latitude, 3: (south[0], south[1].replace(b"S", b"E")), 4: longitude}


def assert_at(found: PhotoMetadata, position: tuple[float, float]) -> None:
    assert (found.latitude, found.longitude) == pytest.approx(position, abs=1e-6)


# --- positions -------------------------------------------------------------------------------------------------------


def test_a_signed_latitude_with_reference_s_is_negated_once() -> None:
    """exiftool: signed rationals with reference S are south."""
    signed = rationals((-33, 1), (-51, 1), (-25, 1), signed=True)
    raw = jpeg_with(exif=exif_block(gps_tags(text("S"), signed)))
    judge = exiftool(raw, "GPSLatitude", "GPSLongitude")
    if judge is not None:
        assert (-abs(judge["GPSLatitude"]), judge["GPSLongitude"]) == pytest.approx(SYDNEY, abs=1e-6)
    assert_at(metadata(raw), SYDNEY)


@pytest.mark.parametrize("reference", [(BYTE, b"S"), (UNDEFINED, b"S\0"), (SHORT, b"S\0"), (BYTE, b"S\0")])
def test_a_reference_of_another_type_is_read(reference: tuple[int, bytes]) -> None:
    """exiftool gives the letter S, or its number 83."""
    raw = jpeg_with(exif=exif_block(gps_tags(reference)))
    judge = exiftool(raw, "GPSLatitudeRef")
    assert judge is None or str(judge["GPSLatitudeRef"]).split()[0] in ("S", str(ord("S")))
    assert_at(metadata(raw), SYDNEY)


def test_a_position_without_references_is_unknown() -> None:
    """The definition of EXIF: without N or S, a latitude has no hemisphere."""
    found = metadata(jpeg_with(exif=exif_block({2: SOUTH, 4: EAST})))
    assert np.isnan(found.latitude) and np.isnan(found.longitude)


def test_one_rational_of_decimal_degrees_is_read() -> None:
    """exiftool: a single rational is an angle in degrees."""
    tags = gps_tags(text("S"), rationals((33856944, 1_000_000)), rationals((151215278, 1_000_000)))
    raw = jpeg_with(exif=exif_block(tags))
    judge = exiftool(raw, "GPSLatitude", "GPSLongitude")
    if judge is not None:
        assert (judge["GPSLatitude"], judge["GPSLongitude"]) == pytest.approx(SYDNEY, abs=1e-6)
    assert_at(metadata(raw), SYDNEY)
    # Pillow gives one rational as a number, and a count of 1 must not be read as three parts.
    assert_at(metadata(encoded(place_pixels(0), exif=_pillow_exif())), SYDNEY)


def _pillow_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x8825] = {1: "S", 2: -SYDNEY[0], 3: "E", 4: SYDNEY[1]}
    return exif


@pytest.mark.parametrize("place", ["second block", "xmp"])
def test_a_position_in_a_second_block_or_in_xmp_is_found(place: str) -> None:
    """exiftool reads every block, and XMP."""
    camera = exif_block(taken={0x9003: text("2020:01:02 03:04:05")})
    packet = xmp_packet('exif:GPSLatitude="33,51.416667S" exif:GPSLongitude="151,12.916667E"')
    blocks = [camera, exif_block(gps_tags(text("S")))] if place == "second block" else [camera]
    raw = jpeg_with(exif=blocks, xmp=packet if place == "xmp" else b"")
    judge = exiftool(raw, "GPSLatitude", "GPSLongitude")
    if judge is not None:
        assert (judge["GPSLatitude"], judge["GPSLongitude"]) == pytest.approx(SYDNEY, abs=1e-6)
    assert_at(metadata(raw), SYDNEY)


# --- headings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [2**32 - 10, 65535, 361])
def test_an_impossible_heading_is_unknown(value: int) -> None:
    """The definition of EXIF: 0 to 359.99 degrees."""
    raw = jpeg_with(exif=exif_block(gps_tags(text("S")) | {16: text("T"), 17: rationals((value, 1))}))
    found = metadata(raw)
    assert found.has_position and np.isnan(found.heading)


def test_a_magnetic_heading_is_corrected_to_true_north() -> None:
    """pygeomag (World Magnetic Model): the declination at Sydney in 2020 is 12.5° to 12.9° east."""
    from pygeomag import GeoMag

    tags = gps_tags(text("S")) | {16: text("M"), 17: rationals((90, 1))}
    raw = jpeg_with(exif=exif_block(tags, taken={0x9003: text("2020:07:01 12:00:00")}))
    declination = GeoMag(coefficients_file="wmm/WMM_2020.COF").calculate(*SYDNEY, 0, 2020.5).d
    assert metadata(raw).heading == pytest.approx(90 + declination, abs=0.1)


# --- times -----------------------------------------------------------------------------------------------------------

TAKEN = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("taken", "first", "expected"),
    [
        ({0x9003: text("2020:01:02 05:04:05+02:00")}, {}, TAKEN),
        ({0x9003: text("2020:01:02 05:04:05"), 0x9011: text("+0200")}, {}, TAKEN),
        ({0x9003: text("2020:01:02 05:04:05"), 0x9010: text("+02:00")}, {}, TAKEN),
        ({0x9004: text("2020:01:02 05:04:05"), 0x9012: text("+02:00")}, {}, TAKEN),
        ({0x9003: text("0000:00:00 00:00:00"), 0x9004: text("2020:01:02 03:04:05")}, {}, TAKEN),
        ({0x9003: text("0000:00:00 00:00:00")}, {0x0132: text("2020:01:02 03:04:05")}, TAKEN),
        ({0x9003: text("2020:01:02 03:04:05"), 0x9291: (ASCII, b"75\0")}, {}, TAKEN + 0.75),
    ],
    ids=["suffix", "no colon", "OffsetTime", "OffsetTimeDigitized", "next date", "ModifyDate", "sub-seconds"],
)
def test_dates_with_offsets_zeros_and_fractions(taken: Tags, first: Tags, expected: float) -> None:
    """The definition of EXIF 2.32; exiftool gives the same values, as texts."""
    raw = jpeg_with(exif=exif_block(taken=taken, first=first))
    assert metadata(raw).time == pytest.approx(expected, abs=1e-3)


# --- pixels ----------------------------------------------------------------------------------------------------------


def rgb(path: Path) -> np.ndarray:
    return open_image(path).permute(1, 2, 0).numpy()


def test_16_bit_gray_is_scaled_as_by_libpng(tmp_path: Path) -> None:
    """OpenCV (libpng) scales 16 bits to 8."""
    cv2 = pytest.importorskip("cv2")
    ramp = np.linspace(0, 65535, 48 * 48).astype(np.uint16).reshape(48, 48)
    path = tmp_path / "gray.png"
    Image.fromarray(ramp).save(path)
    judge = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert np.abs(rgb(path).astype(int) - judge).max() <= 1
    assert np.ptp(rgb(path)) == 255


@pytest.mark.parametrize("kind", ["I", "F"])
def test_gray_integers_and_floats_use_their_whole_range(tmp_path: Path, kind: str) -> None:
    """The formula: value · 255 / 65535 for integers, value · 255 for floats of 0 to 1."""
    ramp = np.linspace(0, 1, 48 * 48).reshape(48, 48)
    values = (ramp * 65535).round().astype(np.int32) if kind == "I" else ramp.astype(np.float32)
    path = tmp_path / "gray.tif"
    Image.fromarray(values).save(path)
    with Image.open(path) as image:
        assert image.mode == kind
    assert np.abs(rgb(path)[..., 0] - ramp * 255).max() <= 1


def test_an_orientation_in_xmp_alone_turns_the_photo(tmp_path: Path) -> None:
    """exiftool: Orientation 6, a turn of 90° clockwise."""
    raw = jpeg_with(xmp=xmp_packet('tiff:Orientation="6"'), pixels=place_pixels(0)[:32])
    judge = exiftool(raw, "Orientation")
    assert judge is None or judge["Orientation"] == 6
    (tmp_path / "turned.jpg").write_bytes(raw)
    (tmp_path / "plain.jpg").write_bytes(jpeg_with(pixels=place_pixels(0)[:32]))
    assert np.array_equal(rgb(tmp_path / "turned.jpg"), np.rot90(rgb(tmp_path / "plain.jpg"), -1))


@pytest.mark.parametrize(
    ("kind", "value"),
    [(2, b"6\0"), (7, b"\6"), (5, struct.pack("<II", 12, 2)), (10, struct.pack("<ii", 6, 1)),
     (11, struct.pack("<f", 6)), (12, struct.pack("<d", 6)), (3, struct.pack("<HHH", 6, 6, 6))],
    ids=["text", "undefined", "rational", "signed rational", "float", "double", "three numbers"],
)  # fmt: skip
def test_an_orientation_of_an_odd_type_turns_the_photo(tmp_path: Path, kind: int, value: bytes) -> None:
    """exiftool: Orientation 6 in each of them."""
    (tmp_path / "turned.jpg").write_bytes(
        jpeg_with(exif=exif_block(first={274: (kind, value)}), pixels=place_pixels(0)[:32])
    )
    (tmp_path / "plain.jpg").write_bytes(jpeg_with(pixels=place_pixels(0)[:32]))
    judge = exiftool((tmp_path / "turned.jpg").read_bytes(), "Orientation")
    assert judge is None or str(judge["Orientation"])[0] == "6"
    assert np.array_equal(rgb(tmp_path / "turned.jpg"), np.rot90(rgb(tmp_path / "plain.jpg"), -1))


@pytest.mark.parametrize(
    ("kind", "value"),
    [(2, b"x\0"), (5, struct.pack("<II", 6, 0)), (11, struct.pack("<f", np.nan)), (11, struct.pack("<f", 6.5))],
)
def test_an_impossible_orientation_of_an_odd_type_is_none(kind: int, value: bytes) -> None:
    assert exif_orientation(exif_block(first={274: (kind, value)})) == 0


def test_an_orientation_in_a_second_exif_block_turns_the_photo(tmp_path: Path) -> None:
    """OpenCV and exiftool: a turn of 90° clockwise."""
    blocks = [exif_block(taken={0x9003: text("2020:01:02 03:04:05")}), exif_block(first={274: (3, b"\6\0")})]
    raw = jpeg_with(exif=blocks, pixels=place_pixels(0)[:32])
    judge = exiftool(raw, "Orientation")
    assert judge is None or judge["Orientation"] == 6
    (tmp_path / "turned.jpg").write_bytes(raw)
    (tmp_path / "plain.jpg").write_bytes(jpeg_with(pixels=place_pixels(0)[:32]))
    assert np.array_equal(rgb(tmp_path / "turned.jpg"), np.rot90(rgb(tmp_path / "plain.jpg"), -1))
    assert upright_shape(tmp_path / "turned.jpg") == (48, 32)


def test_an_orientation_in_the_xmp_of_a_gif_turns_the_photo(tmp_path: Path) -> None:
    path = tmp_path / "photo.gif"
    path.write_bytes(encoded(place_pixels(0)[:32], "GIF"))
    plain = rgb(path)
    packet = xmp_packet('tiff:Orientation="6"')
    extension = b"\x21\xff\x0bXMP DataXMP" + packet + b"\1" + bytes(range(255, -1, -1)) + b"\0"
    path.write_bytes(path.read_bytes()[:-1] + extension + b";")
    assert np.array_equal(rgb(path), np.rot90(plain, -1))


@pytest.mark.parametrize(
    ("kind", "value", "packet"),
    [(3, 6, ""), (1, 6, ""), (3, 0, "6"), (3, 9, "6"), (None, 0, "6"), (3, 6, "3")],
    ids=["short", "byte", "EXIF 0", "EXIF 9", "XMP alone", "EXIF before XMP"],
)
def test_the_orientation_of_a_tiff_follows_the_rule_of_other_formats(
    tmp_path: Path, kind: int | None, value: int, packet: str
) -> None:
    pixels = np.arange(32 * 48, dtype=np.uint8).reshape(32, 48)
    xmp = xmp_packet(f'tiff:Orientation="{packet}"') if packet else b""
    entries = {256: (4, 48), 257: (4, 32), 258: (4, 8), 259: (4, 1), 262: (4, 1), 273: (4, 8), 278: (4, 32),
               279: (4, pixels.size)}  # fmt: skip
    if kind is not None:
        entries[274] = (kind, value)
    directory = b"".join(struct.pack("<HHII", tag, of, 1, number) for tag, (of, number) in sorted(entries.items()))
    if xmp:
        directory += struct.pack("<HHII", 700, 1, len(xmp), 8 + pixels.size)
    raw = b"II*\0" + struct.pack("<I", 8 + pixels.size + len(xmp)) + pixels.tobytes() + xmp
    raw += struct.pack("<H", len(entries) + bool(xmp)) + directory + bytes(4)
    (tmp_path / "photo.tif").write_bytes(raw)
    assert np.array_equal(rgb(tmp_path / "photo.tif")[..., 0], np.rot90(pixels, -1))
    assert upright_shape(tmp_path / "photo.tif") == (48, 32)


def chunk(kind: bytes, data: bytes, *, checksum: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ checksum)


@pytest.mark.parametrize(
    "metadata_chunk",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8_000_000))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(8_000_000))),
        chunk(b"tEXt", b"Comment\0damaged", checksum=1),
    ],
    ids=["large zTXt", "large iTXt", "wrong checksum"],
)
def test_a_png_with_large_or_damaged_metadata_is_opened(tmp_path: Path, metadata_chunk: bytes) -> None:
    """OpenCV (libpng) opens these files."""
    cv2 = pytest.importorskip("cv2")
    raw = encoded(place_pixels(3), "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(raw[:33] + metadata_chunk + raw[33:])
    with within(20):
        found = rgb(path)
    assert np.array_equal(found, cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])


# --- files that are not photos ---------------------------------------------------------------------------------------


@needs_posix
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    """POSIX: opening a pipe for reading waits for a writer."""
    os.mkfifo(tmp_path / "photo.jpg")
    with within(5), pytest.raises(ImageError, match=r"photo\.jpg"):
        open_image(tmp_path / "photo.jpg")


@needs_posix
def test_postscript_named_jpg_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program named gs, first in the search path, records whether it is started."""
    program, record = tmp_path / "bin" / "gs", tmp_path / "started"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{record}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError):
        open_image(tmp_path / "photo.jpg")
    assert not record.exists()


@pytest.mark.parametrize("kind", ["PCX", "SGI", "PPM", "ICO"])
def test_a_format_that_cameras_do_not_write_is_refused(tmp_path: Path, kind: str) -> None:
    """The list of formats in the documentation: JPEG, PNG, WebP, TIFF, BMP, GIF."""
    (tmp_path / "photo.jpg").write_bytes(encoded(place_pixels(0), kind))
    with pytest.raises(ImageError):
        open_image(tmp_path / "photo.jpg")
