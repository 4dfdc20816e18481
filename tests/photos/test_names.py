"""Reading and writing '@' file names."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Proj, Transformer

from cosplace.errors import DatasetError
from cosplace.photos.image_list import image_list
from cosplace.photos.metadata import metadata_from_name
from cosplace.photos.names import (
    FIELDS,
    contradiction_warning,
    contradictions_m,
    earth_positions,
    format_image_name,
    is_at_name,
    optional_fields,
    parse_fields,
    split_name,
    utm_fields,
    without_rows,
    zones_of,
)

NUMBERS = ("utm_east", "utm_north", "heading")

number = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(-1e7, 1e7, places=2).map(str),
    st.decimals(0, 1e7, places=2).map(lambda d: f"{d:010.2f}"),
    st.integers(-(10**9), 10**18).map(str),
    st.sampled_from(
        ["0", "-0", "-0.0", "+3.5", ".5", "5.", "1e3", "1_0", "00000000012", "0.123456789012", " 7", "134"]
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(number, number, number, st.sampled_from(["", "a/", "x@1@y/", "/".join("@@@")])), min_size=1)
)
def test_numbers_equal_python_floats_bit_for_bit(rows: list[tuple[str, str, str, str]]) -> None:
    names = [f"{prefix}{i}/@{e}@{n}@@@@@p.jpg@@{h}@@@.jpg" for i, (e, n, h, prefix) in enumerate(rows)]
    images = image_list(Path("x"), names)
    found = np.concatenate([values for _, values in parse_fields(images, NUMBERS)], axis=1)
    expected = []
    for i in range(len(images)):
        fields = images.name(i).split("/")[-1].split("@")
        expected.append([float(fields[1]), float(fields[2]), float(fields[9])])
    assert found.T.tobytes() == np.array(expected).tobytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photo.jpg", r"field 1 of the file name \(utm_east\) is missing"),
        ("@1@.jpg", r"field 2 of the file name \(utm_north\) is missing"),
        ("@@5@@.jpg", r"field 1 .* is missing"),
        ("x@1@2/photo.jpg", r"field 1 .* is missing"),
        ("@1@2", r"field 2 .* is missing"),
        ("@1@nan@.jpg", "is 'nan', not a number"),
        ("@1,5@2@.jpg", "is '1,5', not a number"),
        ("@1@2.jpg", "field 2"),
        ("@12:4@2@.jpg", "is '12:4', not a number"),
        ("@1.2.3@2@.jpg", "is '1.2.3', not a number"),
        ("@-@2@.jpg", "is '-', not a number"),
        ("@\u0661@2@.jpg", "is '\u0661', not a number"),
    ],
)
def test_an_error_names_the_photo_and_the_field(name: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        utm_fields(image_list(Path("there"), ["@1@2@.jpg", name, "@3@4@.jpg"]))
    assert str(Path("there") / name) in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(
    headings=st.lists(st.sampled_from(["", "@", "7", "12", "112", "0", "360", "1@2"]), min_size=1, max_size=8),
    before=st.sampled_from(["", "37.70/", "a@b/", "@/"]),
    tail=st.sampled_from(["@@@@201311@@.jpg", "@.jpg", ".jpg", "@@@@"]),
)
def test_missing_and_extra_fields_are_detected(headings: list[str], before: str, tail: str) -> None:
    names = [f"{before}@{i}.5@0041@10@S@@@pano{i}@@{heading}{tail}" for i, heading in enumerate(headings)]
    images = image_list(Path(), names)
    fields = [images.name(i).split("/")[-1].split("@") for i in range(len(images))]
    try:
        expected = [[float(name[1]), float(name[2]), float(name[9])] for name in fields if len(name) > 10]
        readable = len(expected) == len(names)
    except ValueError:
        readable = False
    if readable:
        values = np.concatenate([v for _, v in parse_fields(images, NUMBERS)], axis=1)
        assert values.T.tolist() == expected
    else:
        with pytest.raises(DatasetError, match="field 9"):
            list(parse_fields(images, NUMBERS))


def test_positions_need_only_two_fields() -> None:
    images = image_list(Path("x"), ["@3@4.5@.jpg", "pre@1@2@.jpg"])
    assert utm_fields(images).east_north.tolist() == [[3, 4.5], [1, 2]]


def test_names_are_written_with_the_widths_of_sf_xl() -> None:
    name = format_image_name(
        utm_east=543037.377, utm_north=4180974.8, zone=10, letter="S", latitude=37.7751, longitude=-122.5113,
        pano_id="1ooZ", heading=134, timestamp="201311",
    )  # fmt: skip
    assert name == "@0543037.38@4180974.80@10@S@037.77510@-122.51130@1ooZ@@134@@@@201311@@.jpg"


def test_one_name_is_split_into_its_fields() -> None:
    name = format_image_name(
        utm_east=543037.377, utm_north=4180974.8, zone=10, letter="S", latitude=37.7751, longitude=-122.5113,
        pano_id="1ooZ", heading=134, timestamp="201311", note="test",
    )  # fmt: skip
    fields = split_name(f"folder@1/{name}")
    assert list(fields) == list(FIELDS)
    assert {field: text for field, text in fields.items() if text} == {
        "utm_east": "0543037.38", "utm_north": "4180974.80", "zone": "10", "letter": "S", "latitude": "037.77510",
        "longitude": "-122.51130", "pano_id": "1ooZ", "heading": "134", "timestamp": "201311", "note": "test",
    }  # fmt: skip
    assert split_name("holiday.jpg") == {}
    assert split_name("@1@2.jpg") == {"utm_east": "1", "utm_north": "2.jpg"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("@0549850.07@4178400.12@10@S@037.75150@-122.43400@pano@@90@@@@201911@@.jpg", True),
        ("@1@2@.jpg", True),
        ("before@1@2.jpg", True),  # the last '@' is missing, which is reported
        ("@0549850,07@4178400,12@.jpg", True),  # so are these numbers
        ("@@@@@37.75@-122.43@a@@@@@@@@.jpg", True),
        ("@anna_2020.jpg", False),
        ("@anna@2020.jpg", False),
        ("@2020_anna@3kids.jpg", False),
        ("photo@2x.png", False),
        ("@1@2@/a.jpg", False),
        ("a.jpg", False),
        ("@.jpg", False),
    ],
)
def test_an_at_name_has_numbers(name: str, expected: bool) -> None:
    assert is_at_name(name) == is_at_name(f"folder@1@2/{name}") == expected


# --- zones and positions on Earth ------------------------------------------------------------------------------------


def code_of(zone: str, letter: str, latitude: str) -> int:
    """The definition, one name at a time."""
    number = re.fullmatch(r"0*(\d{1,2})(\.0*)?[A-Za-z]?", zone)
    value = int(number[1]) if number else 0
    south = latitude.startswith("-") if latitude else letter.upper()[:1] in tuple("CDEFGHJKLM")
    if not 1 <= value <= 60:
        value = 31 if latitude else 0  # the zone of 1 degree east
    return -value if south else value


zone_texts = st.sampled_from(
    ["", "1", "10", "11", "56", "60", "61", "0", "00", "010", "10.0", "10S", "x", "-5", "1x", "100"]
)
letters = st.sampled_from(["", "S", "T", "H", "h", "M", "N", "n", "SS"])
latitudes = st.sampled_from(["", "37.7", "-33.8", "000.00000", "-0.1"])


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.tuples(zone_texts, letters, latitudes), min_size=1, max_size=12), repeats=st.integers(1, 4))
def test_zones_follow_the_definition(rows: list[tuple[str, str, str]], repeats: int) -> None:
    names = [f"{i:03}@5@6@{z}@{letter}@{lat}@1@p@@0@.jpg" for i, (z, letter, lat) in enumerate(rows * repeats)]
    assert zones_of(image_list(Path("x"), names)).tolist() == [code_of(*row) for row in rows * repeats]
    same = [f"{i:03}@5@6@{'@'.join(rows[0])}@1@p@@0@.jpg" for i in range(20)]
    assert utm_fields(image_list(Path("x"), same)).zones.tolist() == [code_of(*rows[0])] * 20


def test_names_without_zones() -> None:
    names = [
        "@1@2.jpg@.jpg",
        "@1@2@",
        "@1@2@.jpg",
        "@1@2@10@.jpg",
        "a@b/@1@2@@@@@@@@@@@@@.jpg",
        "@1@2@10.jpg",
        "x/y.jpg",
    ]
    images = image_list(Path("x"), names)
    expected = {name: 10 if name == "@1@2@10@.jpg" else 0 for name in names}
    assert zones_of(images).tolist() == [expected[images.name(row)] for row in range(len(images))]


def test_the_error_counts_the_names_without_a_position() -> None:
    images = image_list(Path("x"), ["@1@2@.jpg", "a.jpg", "@3@4@.jpg", "b.jpg"])
    with pytest.raises(DatasetError, match=r"a\.jpg: field 1 .* is missing, as in 2 of 4 photos\. Rename the photo"):
        utm_fields(images)


def test_names_with_latitude_and_longitude_only_can_be_imported() -> None:
    images = image_list(Path("x"), ["@@@@@37.5@-122.4@pano@.jpg"])
    with pytest.raises(DatasetError, match=r"\(utm_east\) is missing\. Use `cosplace import`, which computes it"):
        utm_fields(images)


def test_numbers_that_may_be_missing() -> None:
    names = ["@1@2@10@S@37.5@-122@.jpg", "@1@2@.jpg", "@1@x@10@S@1_0@nan@.jpg", "photo.jpg", "@@2@@@ 7@@.jpg"]
    images = image_list(Path("x"), names)
    found = {images.name(row): values for row, values in enumerate(
        optional_fields(images, ("utm_north", "latitude", "longitude")).T.tolist()
    )}  # fmt: skip
    nan = pytest.approx(np.nan, nan_ok=True)
    assert [found[name] for name in names] == [
        [2, 37.5, -122], [2, nan, nan], [nan, 10, nan], [nan, nan, nan], [2, 7, nan]
    ]  # fmt: skip


def test_positions_on_earth_are_those_of_pyproj() -> None:
    rng = np.random.default_rng(0)
    latitudes, longitudes = rng.uniform(-79, 79, 60), rng.uniform(-180, 180, 60)
    zones = (np.floor((longitudes + 180) / 6) + 1).astype(int)
    names, expected = [], []
    to_points = Transformer.from_crs(4979, 4978, always_xy=True)
    for row, (latitude, longitude, zone) in enumerate(zip(latitudes, longitudes, zones, strict=True)):
        east, north = Proj(proj="utm", zone=zone, south=latitude < 0, ellps="WGS84")(longitude, latitude)
        # With latitude and longitude, the letter does not matter; without them, it is that of a band.
        both = row % 2
        letter = "S" if both else "CDEFGHJKLMNPQRSTUVWXX"[int((latitude + 80) // 8)]
        text = f"{latitude:.5f}@{longitude:.5f}" if both else "@"
        names.append(f"{row:03}@{east:.2f}@{north:.2f}@{zone}@{letter}@{text}@.jpg")
        expected.append(to_points.transform(longitude, latitude, 0.0))
    images = image_list(Path("x"), names)
    utm = utm_fields(images)
    assert np.linalg.norm(earth_positions(images, utm) - expected, axis=1).max() < 0.02
    meters = contradictions_m(images, utm)
    assert np.isnan(meters[::2]).all() and meters[1::2].max() < 1


@pytest.mark.parametrize(
    ("name", "meters"),
    [
        # Sydney: the letter S of "south" is that of a northern band.
        ("@334900.57@6252288.75@56@S@-33.85680@151.21530@.jpg", 0.0),
        ("@334900.57@6252288.75@56@H@-33.85680@151.21530@.jpg", 0.0),
        ("@334900.57@6252388.75@56@H@-33.85680@151.21530@.jpg", 100.0),
        ("@334900.57@6252288.75@55@H@-33.85680@151.21530@.jpg", 554_600.0),
        ("@334900.57@6252288.75@56@H@000.00000@0000.00000@.jpg", np.nan),
        ("@334900.57@6252288.75@56@H@-93.8@151.21530@.jpg", np.nan),
        ("@334900.57@6252288.75@@@-33.85680@151.21530@.jpg", np.nan),
    ],
)
def test_names_that_contradict_themselves(name: str, meters: float) -> None:
    images = image_list(Path("x"), [name])
    found = contradictions_m(images, utm_fields(images))[0]
    assert found == pytest.approx(meters, rel=0.01, abs=1, nan_ok=True)
    assert metadata_from_name(name).contradiction_m == pytest.approx(found, rel=0.01, abs=1, nan_ok=True)
    warning = contradiction_warning(images)
    assert ("1 of 1 file names" in warning and name in warning) if meters > 50 else not warning


def test_latitude_and_longitude_decide_in_several_zones() -> None:
    names = ["a@334900.57@6252288.75@55@H@-33.85680@151.21530@.jpg", "b@334900.57@6252288.75@56@H@@@.jpg"]
    images = image_list(Path("x"), names)
    points = earth_positions(images, utm_fields(images))
    assert np.linalg.norm(points[0] - points[1]) < 1
    lost = image_list(Path("x"), [*names, "c@334900.57@6252288.75@@@@@.jpg"])
    with pytest.raises(DatasetError, match=r"c@3349.* has no UTM zone, but the other photos are in several"):
        earth_positions(lost, utm_fields(lost))


def test_the_letter_s_for_south_is_ambiguous_in_several_zones() -> None:
    """A street across 150° E at 33.8° S; band S would be 32 to 40 degrees north, which the northing is not."""
    south = image_list(Path("x"), ["a@777000@6256000@55@S@@@.jpg", "b@222000@6256000@56@S@@@.jpg"])
    with pytest.raises(DatasetError, match=r"a@777000.*letter S may be .* or mean the southern hemisphere"):
        earth_positions(south, utm_fields(south))
    band = image_list(Path("x"), ["a@777000@4180000@10@S@@@.jpg", "b@222000@4180000@11@S@@@.jpg"])
    with_latitude = image_list(Path("x"), ["a@777000@6256000@55@S@-33.8@149.99@.jpg", "b@222000@6256000@56@H@@@.jpg"])
    for images in (band, with_latitude):
        assert np.isfinite(earth_positions(images, utm_fields(images))).all()


def test_a_list_without_some_rows() -> None:
    images = image_list(Path("x"), ["a.jpg", "bb.jpg", "c/c.jpg", "dd.jpg"])
    left = without_rows(images, np.array([1, 3]))
    assert [left.name(row) for row in range(len(left))] == ["a.jpg", "c/c.jpg"]


@pytest.mark.parametrize(
    ("longitude", "zone"),
    [("-180", 1), ("-120.0001", 10), ("-120", 11), ("0", 31), ("179.99", 60), ("180", 1), ("181", 0)],
)
def test_a_name_without_zone_is_in_the_zone_of_its_longitude(longitude: str, zone: int) -> None:
    names = [f"@5@6@@@-33.8@{longitude}@p{i}@.jpg" for i in range(3)]
    assert zones_of(image_list(Path("x"), names)).tolist() == [-zone] * 3
    assert zones_of(image_list(Path("x"), ["@5@6@@@0@0@.jpg"])).tolist() == [0]
