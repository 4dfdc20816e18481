"""File names of any bytes, as text to store, to print and in CSV tables."""

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.photos.paths import csv_line, path_from_text, path_text, printable, writable

NAMES = st.binary(max_size=20) | st.lists(
    st.sampled_from([b"\\", b"\\x", b"5c", b"e9", b"\xff", b"\xe9", "é".encode(), b"\n", b"/"])
).map(b"".join)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(name=NAMES)
def test_stored_paths_are_utf8_and_give_the_same_path_back(name: bytes) -> None:
    path = Path(os.fsdecode(name))
    text = path_text(path)
    assert path_from_text(text) == path
    assert text.encode("utf-8")
    if b"\\" not in name and max(str(path)) < "\udc80":
        assert text == str(path)


def test_bytes_that_are_not_utf8_are_escaped() -> None:
    assert path_text(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg" == writable(os.fsdecode(b"caf\xe9.jpg"))
    assert path_text(r"literal\xe9.jpg") == r"literal\x5cxe9.jpg"
    assert path_text("café\n.jpg") == "café\n.jpg"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines\r.jpg", r"two\nlines\r.jpg"),
        ("\x1b[31mred", r"\x1b[31mred"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("東京 駅\u3000é.jpg", "東京 駅\u3000é.jpg"),
    ],
)
def test_printed_names_are_one_line(name: str, shown: str) -> None:
    assert printable(name) == printable(Path(name)) == shown


@settings(max_examples=200, deadline=None)
@given(name=st.binary(max_size=30).map(os.fsdecode))
def test_printed_names_have_no_control_characters(name: str) -> None:
    text = printable(name)
    text.encode("utf-8")
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=3)))
def test_tables_are_read_back_as_they_were(rows: list[list[str]]) -> None:
    table = "".join(csv_line(row) for row in rows)
    read = list(csv.reader(io.StringIO(table, newline="")))
    assert [[cell.removeprefix("./") for cell in row] for row in read] == [
        [cell.removeprefix("./") for cell in row] for row in rows
    ]


def test_a_name_is_no_formula_in_a_spreadsheet() -> None:
    assert csv_line(['=HYPERLINK("x").jpg', 1]) == '"./=HYPERLINK(""x"").jpg",1\n'
    assert csv_line(["-dash.jpg", "@SUM(A1)", "+1.jpg"]) == "./-dash.jpg,./@SUM(A1),./+1.jpg\n"
    assert csv_line(["@0549850.07@4173300.90@10@S@.jpg", -5.0, None]) == "@0549850.07@4173300.90@10@S@.jpg,-5.0,\n"
