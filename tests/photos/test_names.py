"""Reading and writing '@' file names."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.errors import DatasetError
from cosplace.photos.image_list import image_list
from cosplace.photos.names import FIELDS, format_image_name, parse_fields, split_name, utm_positions

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
        utm_positions(image_list(Path("there"), ["@1@2@.jpg", name, "@3@4@.jpg"]))
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
    assert utm_positions(images).tolist() == [[3, 4.5], [1, 2]]


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
