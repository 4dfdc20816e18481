"""What EXIF and XMP say about cameras: altitude, pitch, roll, field of view, panoramas."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest

from cosplace.photos.camera import CameraFacts, camera_facts
from cosplace.photos.exif import read_tags
from tests.photos.exif_blocks import (
    BYTE,
    RATIONAL,
    SHORT,
    Tag,
    Tags,
    ascii_tag,
    exif_block,
    exif_segment,
    jpeg,
    xmp_packet,
    xmp_segment,
)

PANORAMA = {"GPano:ProjectionType": "equirectangular", "GPano:PoseHeadingDegrees": "350.5",
            "GPano:PosePitchDegrees": "-2.5", "GPano:PoseRollDegrees": "1.5"}  # fmt: skip


def facts(
    gps: Tags | None = None,
    taken: Tags | None = None,
    image: Tags | None = None,
    xmp: dict[str, str] | None = None,
    size: tuple[int, int] = (4000, 3000),
) -> CameraFacts:
    segments = [exif_segment(exif_block(gps, taken, image))] if gps or taken or image else []
    return camera_facts(read_tags(jpeg(*segments, *([xmp_segment(xmp_packet(xmp))] if xmp else []))), *size)


@pytest.mark.parametrize(
    ("values", "reference", "altitude_m"),
    [((1234, 10), 0, 123.4), ((1234, 10), 1, -123.4), ((1234, 10), None, 123.4), ((0, 0), 0, None),
     ((4_000_000_000, 1), 0, None)],
)  # fmt: skip
def test_altitude(values: tuple[int, int], reference: int | None, altitude_m: float | None) -> None:
    tags = {6: Tag(RATIONAL, [values])} | ({} if reference is None else {5: Tag(BYTE, [reference])})
    expected = math.nan if altitude_m is None else altitude_m
    assert facts(gps=tags).altitude_m == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("focal_length", "size", "degrees"),
    [
        (18, (6000, 4000), 90.0),  # 36 mm wide, 18 mm away: 45 degrees to each side
        (12, (4000, 6000), 90.0),  # upright: 24 mm wide
        (26, (4000, 3000), 67.3),  # a phone: 43.27 mm x 4 / 5 wide
        (0, (4000, 3000), None),
    ],
)
def test_field_of_view(focal_length: int, size: tuple[int, int], degrees: float | None) -> None:
    found = facts(taken={0xA405: Tag(SHORT, [focal_length])}, size=size).field_of_view
    assert found == pytest.approx(math.nan if degrees is None else degrees, abs=0.05, nan_ok=True)


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("Apple", "iPhone 15", "Apple iPhone 15"),
        ("", "X", "X"),
        ("A", "", "A"),
    ],
)
def test_camera(make: str, model: str, camera: str) -> None:
    image = {tag: ascii_tag(text) for tag, text in ((0x010F, make), (0x0110, model)) if text}
    assert facts(image=image).camera == camera


def test_a_panorama() -> None:
    found = facts(taken={0xA405: Tag(SHORT, [18])}, xmp=PANORAMA)
    assert (found.projection, found.heading, found.pitch, found.roll) == ("equirectangular", 350.5, -2.5, 1.5)
    assert found.field_of_view == 360  # not that of the lens


@pytest.mark.parametrize(
    ("left", "width", "full", "heading", "field_of_view"),
    [
        (0, 4000, 4000, 350.5, 360),
        (1000, 2000, 4000, 350.5, 180),  # the middle half
        (0, 2000, 4000, None, 180),  # the left half: which center the heading means is ambiguous
        (0, 5000, 4000, 350.5, 360),  # impossible: ignored
    ],
)
def test_a_part_of_a_panorama(left: int, width: int, full: int, heading: float | None, field_of_view: float) -> None:
    crop = {"GPano:CroppedAreaLeftPixels": str(left), "GPano:CroppedAreaImageWidthPixels": str(width),
            "GPano:FullPanoWidthPixels": str(full)}  # fmt: skip
    found = facts(xmp=PANORAMA | crop)
    assert found.heading == pytest.approx(math.nan if heading is None else heading, nan_ok=True)
    assert found.field_of_view == field_of_view


@pytest.mark.parametrize(("size", "projection"), [((1024, 512), "equirectangular"), ((768, 512), "")])
def test_a_part_that_was_cut_from_a_panorama_later(size: tuple[int, int], projection: str) -> None:
    whole = {"GPano:CroppedAreaLeftPixels": "0", "GPano:CroppedAreaImageWidthPixels": "1024",
             "GPano:CroppedAreaTopPixels": "0", "GPano:CroppedAreaImageHeightPixels": "512",
             "GPano:FullPanoWidthPixels": "1024", "GPano:FullPanoHeightPixels": "512"}  # fmt: skip
    found = facts(xmp=PANORAMA | whole, size=size)
    assert found.projection == projection
    assert math.isnan(found.heading) == math.isnan(found.field_of_view) == (projection == "")


def test_a_drone() -> None:
    xmp = {"drone-dji:GimbalYawDegree": "-90.5", "drone-dji:GimbalPitchDegree": "-45.0",
           "drone-dji:GimbalRollDegree": "+0.00", "drone-dji:AbsoluteAltitude": "+120.5"}  # fmt: skip
    found = facts(xmp=xmp)
    assert (found.heading, found.pitch, found.roll, found.altitude_m) == (269.5, -45, 0, 120.5)
    assert facts(xmp=xmp, gps={6: Tag(RATIONAL, [(90, 1)]), 5: Tag(BYTE, [0])}).altitude_m == 90


def test_nothing_known() -> None:
    assert repr(facts()) == repr(CameraFacts())
    assert repr(facts(xmp={"GPano:ProjectionType": "cylindrical", "Camera:Pitch": "nan"})) == repr(CameraFacts())


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_reads_the_same(tmp_path: Path) -> None:
    gps = {5: Tag(BYTE, [1]), 6: Tag(RATIONAL, [(1234, 10)])}
    raw = jpeg(
        exif_segment(exif_block(gps, {0xA405: Tag(SHORT, [18])}, {0x0110: ascii_tag("Cam")})),
        xmp_segment(xmp_packet(PANORAMA)),
    )
    (tmp_path / "a.jpg").write_bytes(raw)
    output = subprocess.run(
        ["exiftool", "-n", "-json", str(tmp_path / "a.jpg")], capture_output=True, check=True
    ).stdout
    theirs, ours = json.loads(output)[0], camera_facts(read_tags(raw), 6000, 4000)
    assert theirs["GPSAltitude"] == ours.altitude_m
    assert theirs["Model"] == ours.camera
    assert theirs["PoseHeadingDegrees"] == ours.heading
    assert theirs["PosePitchDegrees"] == ours.pitch
