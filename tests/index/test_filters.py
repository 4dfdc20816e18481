"""Boxes and the text forms of filters: `near`, `bbox`, and the box around all photos."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosplace.errors import ConfigError
from cosplace.index.filters import parse_bbox, parse_near


def test_near_is_parsed() -> None:
    assert parse_near(" 37.5 , -122 , 1e3") == (37.5, -122, 1000)
    assert parse_near("-90,180,0.5") == (-90, 180, 0.5)


def test_boxes_are_wrapped_to_one_world() -> None:
    assert parse_bbox("-122.5,37,-122,38") == (-122.5, 37, -122, 38)
    assert parse_bbox("170,-10,190,10") == (170, -10, -170, 10)
    assert parse_bbox("-200,-10,-170,10") == (160, -10, -170, 10)
    assert parse_bbox("-400,-95,400,95") == (-180, -90, 180, 90)
    assert parse_bbox("0,95,1,99") == (0, 90, 1, 90)


def test_a_value_just_beyond_the_limit_is_shown_in_full() -> None:
    with pytest.raises(ConfigError, match=r"got 180\.0005\."):
        parse_near("0,180.0005,5")


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "a,b,c", "91,0,5", "0,181,5", "0,0,0", "0,0,-1", "nan,0,5"])
def test_invalid_near_raises(text: str) -> None:
    with pytest.raises(ConfigError, match="near"):
        parse_near(text)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,5,3,2", "inf,0,5,1"])
def test_invalid_bbox_raises(text: str) -> None:
    with pytest.raises(ConfigError, match="bbox"):
        parse_bbox(text)


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_bbox, parse_near):
        with suppress(ConfigError):
            assert np.isfinite(parse(text)).all()
