"""Photos of an import are read once: EXIF, XMP and names, time zones, sizes, damaged files, HEIC."""

import hashlib
import io
import math
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from PIL import Image

from cosplace.errors import ConfigError
from cosplace.importing.heic import jpeg_of_heic
from cosplace.importing.reading import LOCAL_TIME, read_photo
from cosplace.importing.records import FoundPhoto, Problem
from cosplace.photos.exif import read_exif
from cosplace.photos.names import format_image_name
from cosplace.photos.tables import PhotoRecord
from tests.importing.photo_samples import gps_tags, jpeg_pixels, write_photo
from tests.photos.exif_blocks import (
    RATIONAL,
    SHORT,
    Tag,
    ascii_tag,
    exif_block,
    exif_segment,
    jpeg,
    xmp_packet,
    xmp_segment,
)

NOON = ascii_tag("2024:07:01 12:00:00")


def read(
    file: Path, temporary: Path | None = None, timezone: str = "", mode: str = "copy", **known: object
) -> PhotoRecord:
    (photo,) = (entry for entry in read_all(file, temporary, timezone, mode, **known) if isinstance(entry, FoundPhoto))
    return photo.record


def read_all(
    file: Path, temporary: Path | None = None, timezone: str = "", mode: str = "copy", **known: object
) -> list[FoundPhoto | Problem]:
    record = PhotoRecord(path=f"photos/{file.name}", **known)  # type: ignore[arg-type]
    return read_photo(FoundPhoto(file=file, record=record), temporary, mode, timezone)


def test_a_photo_of_a_phone(tmp_path: Path) -> None:
    file = write_photo(tmp_path / "a.jpg", 48.1, 11.5, 90, gps={31: Tag(RATIONAL, [(5, 1)])})
    record = read(file)
    assert (record.latitude, record.longitude, record.heading, record.accuracy_m) == pytest.approx((48.1, 11.5, 90, 5))
    assert (record.heading_source, record.camera) == ("exif", "Acme Cam 1")
    assert record.checksum == hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_a_source_knows_is_not_replaced(tmp_path: Path) -> None:
    file = write_photo(tmp_path / "a.jpg", 48.1, 11.5, 90, gps={31: Tag(RATIONAL, [(5, 1)])})
    record = read(file, latitude=1.0, longitude=2.0, heading=3.0, heading_source="pose", camera="rig")
    assert (record.latitude, record.longitude, record.heading, record.heading_source) == (1, 2, 3, "pose")
    assert record.camera == "rig"
    assert math.isnan(record.accuracy_m)  # that of another position
    photo = FoundPhoto(file=file, record=PhotoRecord(path="a.jpg"), use_exif=False)
    (entry,) = read_photo(photo, None)
    assert isinstance(entry, FoundPhoto)
    assert math.isnan(entry.record.latitude)
    assert entry.record.width == 16


def test_names_take_precedence_over_exif(tmp_path: Path) -> None:
    name = format_image_name(
        utm_east=500000, utm_north=5_000_000, zone=32, letter="T", latitude=45.15322, longitude=9, heading=77
    )
    record = read(write_photo(tmp_path / name, 48.1, 11.5, 90))
    assert record.latitude == pytest.approx(45.1532, abs=1e-4)
    assert (record.heading, record.heading_source) == (77, "name")
    wrong = format_image_name(utm_east=500000, utm_north=5_000_000, zone=32, letter="T", latitude=46, longitude=9)
    problem, _ = read_all(write_photo(tmp_path / wrong))
    assert isinstance(problem, Problem)
    assert "94,092 m" in problem.reason or "from its latitude" in problem.reason
    assert not problem.is_left_out


@pytest.mark.parametrize(
    ("taken", "gps", "timezone", "expected"),
    [
        ({0x9003: NOON, 0x9011: ascii_tag("-05:00")}, {}, "Europe/Rome", "2024-07-01T17:00Z"),
        ({0x9003: NOON}, {}, "Europe/Rome", "2024-07-01T10:00Z"),
        ({0x9003: ascii_tag("2024:01:01 12:00:00"), 0x9291: ascii_tag("25")}, {}, "Europe/Rome",
         "2024-01-01T11:00:00.25Z"),
        ({0x9003: NOON}, {29: ascii_tag("2024:07:01"), 7: Tag(RATIONAL, [(9, 1), (59, 1), (58, 1)])}, "Asia/Tokyo",
         "2024-07-01T09:59:58Z"),
        ({0x9003: NOON}, {}, "", "2024-07-01T12:00Z"),
    ],
)  # fmt: skip
def test_time_zones(taken: dict, gps: dict, timezone: str, expected: str, tmp_path: Path) -> None:
    """The offset in EXIF or GPS time decides, then the zone of the user; a clock without either counts as UTC."""
    entries = read_all(write_photo(tmp_path / "a.jpg", 1, 1, taken=taken, gps=gps), timezone=timezone)
    photo = entries[-1]
    assert isinstance(photo, FoundPhoto)
    assert photo.record.time == pytest.approx(datetime.fromisoformat(expected).timestamp())
    assert [entry.reason for entry in entries[:-1] if isinstance(entry, Problem)] == ([] if timezone else [LOCAL_TIME])
    assert photo.record.time_zone == ("stated" if timezone else "assumed")


def test_every_hour_of_a_year_in_a_time_zone(tmp_path: Path) -> None:
    rome = ZoneInfo("Europe/Rome")
    for month in range(1, 13):
        local = datetime(2024, month, 15, 23, 30, 5, tzinfo=rome)
        text = ascii_tag(local.strftime("%Y:%m:%d %H:%M:%S"))
        record = read(write_photo(tmp_path / "a.jpg", 1, 1, taken={0x9003: text}), timezone="Europe/Rome")
        assert record.time == local.timestamp()
    with pytest.raises(ConfigError, match="Europe/Rom'"):
        read(write_photo(tmp_path / "b.jpg", 1, 1, taken={0x9003: NOON}), timezone="Europe/Rom")


def test_headings_of_xmp_and_panoramas(tmp_path: Path) -> None:
    packet = xmp_packet({"GPano:ProjectionType": "equirectangular", "GPano:PoseHeadingDegrees": "12.5"})
    (tmp_path / "a.jpg").write_bytes(jpeg(xmp_segment(packet)))
    record = read(tmp_path / "a.jpg")
    assert (record.heading, record.heading_source, record.projection) == (12.5, "xmp", "equirectangular")
    packet = xmp_packet({"exif:GPSImgDirection": "33/2"})
    (tmp_path / "b.jpg").write_bytes(jpeg(xmp_segment(packet)))
    assert (read(tmp_path / "b.jpg").heading, read(tmp_path / "b.jpg").heading_source) == (16.5, "xmp")


def test_an_orientation_in_xmp_alone_counts_for_the_size(tmp_path: Path) -> None:
    """exiftool: Orientation 6, a turn of 90° clockwise."""
    raw = jpeg_pixels(size=(16, 12))
    (tmp_path / "a.jpg").write_bytes(raw[:2] + xmp_segment(xmp_packet({"tiff:Orientation": "6"})) + raw[2:])
    record = read(tmp_path / "a.jpg")
    assert (record.width, record.height) == (12, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_photo(orientation: int, tmp_path: Path) -> None:
    file = write_photo(tmp_path / "a.jpg", image={0x0112: Tag(SHORT, [orientation])})
    record = read(file)
    assert (record.width, record.height) == ((16, 12) if orientation < 5 else (12, 16))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats(image_format: str, tmp_path: Path) -> None:
    image, options = Image.new("RGB", (30, 20)), {}
    if image_format in ("PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0110] = "Cam"
        options = {"exif": exif}
    image.save(tmp_path / "photo.img", image_format, **options)
    record = read(tmp_path / "photo.img")
    assert (record.width, record.height, record.camera) == (30, 20, "Cam" if options else "")


def truncated(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_damaged_photos_are_left_out(image_format: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, image_format)
    (tmp_path / "good").write_bytes(buffer.getvalue())
    assert read(tmp_path / "good").width == 64
    (tmp_path / "good").write_bytes(buffer.getvalue() + b"a video of some seconds")  # as phones append
    assert read(tmp_path / "good").width == 64
    (tmp_path / "bad").write_bytes(truncated(buffer.getvalue()))
    (problem,) = read_all(tmp_path / "bad")
    assert isinstance(problem, Problem)
    assert problem.is_left_out
    assert "\n" not in problem.reason


def test_frames_are_written_only_with_a_temporary_folder(tmp_path: Path) -> None:
    raw = jpeg_pixels()
    photo = FoundPhoto(file=tmp_path / "video.mp4", record=PhotoRecord(path="f.jpg"), content=raw, use_exif=False)
    (dry,), (entry,) = read_photo(photo, None), read_photo(photo, tmp_path)
    assert isinstance(dry, FoundPhoto)
    assert isinstance(entry, FoundPhoto)
    assert entry.file.read_bytes() == raw
    (equal,) = read_photo(photo, tmp_path)
    assert isinstance(equal, FoundPhoto)
    assert equal.file != entry.file  # each is moved into the dataset
    assert (dry.record, dry.content, entry.content) == (entry.record, None, None)
    assert entry.record.source.endswith("video.mp4")


def test_a_gray_heic_of_more_than_8_bits_keeps_its_brightness() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[:, None], 96, 1)
    file = io.BytesIO()
    pillow_heif.from_bytes(mode="I;16", size=(96, 64), data=ramp.tobytes()).save(file, quality=95)
    with Image.open(io.BytesIO(jpeg_of_heic(file.getvalue(), "a.heic"))) as image:
        found = np.asarray(image.convert("L")).astype(float)
    assert np.abs(found - ramp / 257).mean() < 3


def test_heic_becomes_an_upright_jpeg_with_its_exif(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = (255, 0, 0)  # stored at the top left; upright (orientation 6) it is at the top right
    block = exif_block(gps_tags(48.1, 11.5, 90), None, {0x0112: Tag(SHORT, [6])})
    heic = pillow_heif.from_pillow(Image.fromarray(pixels))
    heic.save(tmp_path / "a.heic", exif=exif_segment(block)[4:], quality=95)
    (entry,) = read_all(tmp_path / "a.heic", tmp_path)
    assert isinstance(entry, FoundPhoto)
    assert entry.record.path == "photos/a.jpg"
    assert (entry.record.latitude, entry.record.heading) == pytest.approx((48.1, 90))
    assert (entry.record.width, entry.record.height) == (40, 60)
    with Image.open(entry.file) as image:
        assert (image.format, image.size, image.getexif().get(0x0112, 1)) == ("JPEG", (40, 60), 1)
        red = np.asarray(image.convert("RGB"))[:, :, 0] > 128
    assert red[:30, 20:].mean() > 0.95
    assert red[30:].mean() < 0.05
    assert red[:, :20].mean() < 0.05
    assert read_exif(entry.file.read_bytes()).latitude == pytest.approx(48.1)
    for mode in ("link", "table"):
        (problem,) = read_all(tmp_path / "a.heic", tmp_path, mode=mode)
        assert isinstance(problem, Problem)
        assert "--mode copy" in problem.reason
    (tmp_path / "b.heic").write_bytes(truncated((tmp_path / "a.heic").read_bytes()))
    (problem,) = read_all(tmp_path / "b.heic", tmp_path)
    assert isinstance(problem, Problem)
