"""Where and when a photo was taken, from its name or its EXIF block; thumbnails."""

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyproj import Geod, Proj

from cosplace.photos.metadata import metadata_from_exif, metadata_from_name, read_metadata, time_of_timestamp
from cosplace.photos.names import format_image_name
from cosplace.photos.thumbnails import make_thumbnail


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


SYDNEY_UTM = "@0334900.57@6252288.75@56"  # 33.85680 S, 151.21530 E


@pytest.mark.parametrize("letter", ["H", "S", "s", "N", "", "?"])
def test_latitude_and_longitude_decide_over_the_letter(letter: str) -> None:
    facts = metadata_from_name(f"{SYDNEY_UTM}@{letter}@-33.85680@0151.21530@.jpg")
    assert (facts.latitude, facts.longitude) == (pytest.approx(-33.8568, abs=2e-5), pytest.approx(151.2153, abs=2e-5))
    assert facts.contradiction_m < 2 and not facts.contradicts_itself


def test_letters_are_bands() -> None:
    assert metadata_from_name(f"{SYDNEY_UTM}@H@.jpg").latitude == pytest.approx(-33.8568, abs=1e-4)
    assert metadata_from_name("@551000@4180000@10@S@.jpg").latitude == pytest.approx(37.766, abs=1e-3)
    # S is meant as a hemisphere, or the band is wrong.
    assert not metadata_from_name(f"{SYDNEY_UTM}@S@.jpg").has_position
    # N is north as a band and as a hemisphere.
    assert metadata_from_name("@551000@4180000@10@N@.jpg").latitude == pytest.approx(37.766, abs=1e-3)


@pytest.mark.parametrize("moved_m", [0.0, 30.0, 60.0, 111_000.0])
@pytest.mark.parametrize(("latitude", "longitude", "zone"), [(-33.8568, 151.2153, 56), (37.77, -122.41, 10)])
def test_contradictions_of_a_name(latitude: float, longitude: float, zone: int, moved_m: float) -> None:
    project = Proj(proj="utm", zone=zone, south=latitude < 0)
    east, north = project(longitude, latitude)
    other_longitude, other_latitude, _ = Geod(ellps="WGS84").fwd(longitude, latitude, 30, moved_m)
    name = f"@{east:.3f}@{north:.3f}@{zone}@S@{other_latitude:.7f}@{other_longitude:.7f}@.jpg"
    assert metadata_from_name(name).contradiction_m == pytest.approx(moved_m, abs=0.1)
    facts = metadata_from_name(name)
    assert facts.contradicts_itself == (moved_m > 50)
    assert (facts.latitude, facts.longitude) == pytest.approx((other_latitude, other_longitude), abs=1e-6)


def test_names_with_one_position_do_not_contradict_themselves() -> None:
    for name in (f"{SYDNEY_UTM}@H@.jpg", "@1@2@@@37.75@-122.4@.jpg", f"{SYDNEY_UTM}@H@0@0@.jpg", "holiday.jpg"):
        assert np.isnan(metadata_from_name(name).contradiction_m)
    # A latitude that was rounded to zero has no hemisphere.
    assert metadata_from_name("@500000.00@9999999.95@37@M@00.00000@0039.00000@.jpg").contradiction_m < 1


@pytest.mark.parametrize(
    "name", ["@0@0@@@000.00000@0000.00000@id@@@@@@@@.jpg", "@0@0@.jpg", "@0@0@31@N@0@0@.jpg", "@0@0@31@N@-0.0@0@.jpg"]
)
def test_zeros_are_not_a_position(name: str) -> None:
    assert not metadata_from_name(name).has_position


def test_names_without_zone_give_latitude_and_longitude() -> None:
    facts = metadata_from_name("@551000@4180000@@@37.75@-122.4@.jpg")
    assert (facts.latitude, facts.longitude) == (37.75, -122.4)
    assert not metadata_from_name("@551000@4180000@.jpg").has_position
    assert not metadata_from_name("holiday.jpg").has_position


@given(st.text(alphabet="@0123456789.-+eNnaSX ", max_size=80))
def test_any_name_is_accepted(name: str) -> None:
    facts = metadata_from_name(name)
    assert facts.has_position == (-90 <= facts.latitude <= 90 and -180 <= facts.longitude <= 180)
    assert np.isnan(facts.heading) or 0 <= facts.heading < 360


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


def magnetic_photo(*, position: bool = True, year: int = 2020) -> bytes:
    """A photo that looks to 350 degrees from magnetic north, with a position error of 12 m."""
    gps = {16: "M", 17: 350.0, 29: f"{year}:01:01", 31: 12.0}
    return jpeg(gps_exif(gps=gps | ({} if position else {1: None, 2: None, 3: None, 4: None})))


def test_magnetic_headings_are_corrected() -> None:
    # 12.6 degrees east in Sydney, by the calculator of the National Centers for Environmental Information.
    facts = metadata_from_exif(magnetic_photo())
    assert facts.heading == pytest.approx(2.6, abs=0.1) and facts.accuracy_m == 12
    assert metadata_from_exif(jpeg(gps_exif(gps={16: "T", 17: 350.0}))).heading == 350
    assert np.isnan(metadata_from_exif(magnetic_photo(position=False)).heading)


def test_the_position_of_the_name_corrects_magnetic_headings() -> None:
    name = Path("@551000@4180000@10@S@37.766@-122.421@.jpg")  # 13.2 degrees east in San Francisco
    for position in (True, False):
        facts = read_metadata(name, magnetic_photo(position=position))
        assert facts.heading == pytest.approx(3.2, abs=0.2)
        assert np.isnan(facts.accuracy_m)  # that of another position
    named = read_metadata(Path("@551000@4180000@10@S@37.766@-122.421@@@90@.jpg"), magnetic_photo())
    assert named.heading == 90


def test_thumbnails_are_small_and_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(make_thumbnail(jpeg(exif, size=(640, 320)), 100))) as small:
        assert small.size == (50, 100)
    assert make_thumbnail(jpeg(), 0) == make_thumbnail(b"not an image", 100) == b""


# --- adding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hour"), [("202006011200+02", 10), ("20200601120000-0330", 15.5), ("202006011200+02:00", 10)]
)
def test_a_timestamp_with_an_offset_from_utc(text: str, hour: float) -> None:
    assert time_of_timestamp(text) == time_of_timestamp("20200601") + 3600 * hour


def test_a_timestamp_with_a_fraction_of_a_second() -> None:
    assert time_of_timestamp("20200601120000.25") == time_of_timestamp("20200601120000") + 0.25
    assert time_of_timestamp("20200601140000.25+02:00") == time_of_timestamp("20200601120000.25")
