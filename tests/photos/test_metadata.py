"""Where and when a photo was taken, from its name or its EXIF block; thumbnails."""

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosplace.photos.metadata import make_thumbnail, metadata_from_exif, metadata_from_name, read_metadata
from cosplace.photos.names import format_image_name


def jpeg(exif: Image.Exif | None = None, size: tuple[int, int] = (64, 48), shade: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 40, 200)).save(buffer, "JPEG", **({} if exif is None else {"exif": exif}))
    return buffer.getvalue()


def gps_exif(**changes) -> Image.Exif:
    """Sydney, looking west, at noon UTC."""
    exif = Image.Exif()
    gps = {1: "S", 2: (33.0, 51.0, 24.84), 3: "E", 4: (151.0, 12.0, 54.36), 16: "T", 17: 270.5,
           7: (12.0, 0.0, 30.0), 29: "2021:05:04"} | changes.pop("gps", {})  # fmt: skip
    exif[0x8825] = {tag: value for tag, value in gps.items() if value is not None}
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05", 0x9011: "+02:00"} | changes.pop("taken", {})
    return exif


# --- what a file says ------------------------------------------------------------------------------------------------


def test_names_give_position_heading_and_month() -> None:
    name = format_image_name(
        utm_east=551_000.0, utm_north=4_180_000.0, zone=10, letter="S", latitude=0, longitude=0, heading=-30,
        timestamp="202001",
    )  # fmt: skip
    facts = metadata_from_name(name)
    assert facts.latitude == pytest.approx(37.7660, abs=1e-3) and facts.longitude == pytest.approx(-122.421, abs=1e-2)
    assert facts.heading == 330
    assert facts.time == datetime(2020, 1, 1, tzinfo=UTC).timestamp()


def test_names_without_zone_give_latitude_and_longitude() -> None:
    facts = metadata_from_name("@551000@4180000@@@37.75@-122.4@.jpg")
    assert (facts.latitude, facts.longitude) == (37.75, -122.4)
    assert not metadata_from_name("@551000@4180000@.jpg").has_position
    assert not metadata_from_name("holiday.jpg").has_position


@given(st.text(alphabet="@0123456789.-+eNnaSX ", max_size=80))
def test_any_name_is_accepted(name: str) -> None:
    facts = metadata_from_name(name)
    assert facts.has_position == (-90 <= facts.latitude <= 90 and -180 <= facts.longitude <= 180)
    assert np.isnan(facts.heading) or 0 <= facts.heading <= 360


def test_exif_gives_position_direction_and_time() -> None:
    facts = metadata_from_exif(jpeg(gps_exif()))
    assert facts.latitude == pytest.approx(-33.8569) and facts.longitude == pytest.approx(151.2151)
    assert facts.heading == pytest.approx(270.5)
    assert facts.time == datetime(2021, 5, 4, 12, 0, 30, tzinfo=UTC).timestamp()


def test_exif_camera_time_uses_its_offset() -> None:
    facts = metadata_from_exif(jpeg(gps_exif(gps={7: None, 29: None})))
    assert facts.time == datetime(2020, 1, 2, 1, 4, 5, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("gps", [{2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}, {2: (95.0, 0.0, 0.0)}, {4: None}])
def test_exif_without_a_fix_is_unknown(gps: dict) -> None:
    assert not metadata_from_exif(jpeg(gps_exif(gps=gps))).has_position


@given(st.binary(max_size=300), st.integers(0, 400))
def test_broken_exif_is_ignored(noise: bytes, at: int) -> None:
    raw = bytearray(jpeg(gps_exif()))
    raw[at : at + len(noise)] = noise
    facts = metadata_from_exif(bytes(raw))
    assert not facts.has_position or (abs(facts.latitude) <= 90 and abs(facts.longitude) <= 180)
    make_thumbnail(bytes(raw), 16)


def test_names_take_precedence_over_exif() -> None:
    facts = read_metadata(Path("@551000@4180000@10@S@.jpg"), jpeg(gps_exif()))
    assert facts.latitude == pytest.approx(37.766, abs=1e-2)
    assert facts.time == datetime(2021, 5, 4, 12, 0, 30, tzinfo=UTC).timestamp()


def test_thumbnails_are_small_and_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(make_thumbnail(jpeg(exif, size=(640, 320)), 100))) as small:
        assert small.size == (50, 100)
    assert make_thumbnail(jpeg(), 0) == make_thumbnail(b"not an image", 100) == b""


# --- adding ----------------------------------------------------------------------------------------------------------
