"""Phones, landscape, zoomed pages: the sheet, and what is in view."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browsers import axe_violations, open_chromium
from tests.web.test_answers import PHONE
from tests.web.test_web import locate, opened

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

LANDSCAPE = PHONE | {"viewport": {"width": 844, "height": 390}}
ZOOMED = {"viewport": {"width": 720, "height": 450}, "device_scale_factor": 2}  # 1440 x 900 at 200%
BOX = "(selector) => document.querySelector(selector).getBoundingClientRect().toJSON()"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_chromium() as chromium:
        yield chromium


def drag(page: Any, to_y: float) -> None:
    handle = page.evaluate(BOX, "#sheet-handle")
    page.mouse.move(195, handle["y"] + 10)
    page.mouse.down()
    page.mouse.move(195, (handle["y"] + to_y) / 2)
    page.mouse.move(195, to_y)
    page.mouse.up()


def test_the_sheet_is_dragged_on_a_phone(browser: Any) -> None:
    with opened(browser, **PHONE) as page:
        locate(page, "here-1.jpg")
        tops = []
        for to_y in (20, 800, 400):
            drag(page, to_y)
            tops.append(page.evaluate(BOX, "#panel")["y"])
            map_box = page.evaluate(BOX, "#map")
            assert map_box["bottom"] >= tops[-1] and page.evaluate("() => document.body.scrollHeight") <= 844
        assert tops == pytest.approx([0.08 * 844, 0.78 * 844, 0.38 * 844], abs=25)
        assert axe_violations(page) == []
        # The same from the keyboard, and by a click.
        page.focus("#sheet-handle")
        for key, size in (("ArrowUp", "large"), ("Home", "small"), ("ArrowUp", "medium"), ("End", "large")):
            page.keyboard.press(key)
            assert page.get_attribute("#sheet-handle", "aria-valuetext") == size
        page.click("#sheet-handle")
        assert page.get_attribute("#sheet-handle", "aria-valuetext") == "small"
    with opened(browser) as page:  # beside the map there is no sheet
        assert page.is_hidden("#sheet-handle")


@pytest.mark.parametrize("screen", [LANDSCAPE, ZOOMED], ids=["landscape", "zoomed"])
def test_low_windows_show_the_answer_and_whole_cards(browser: Any, screen: dict) -> None:
    height = screen["viewport"]["height"]
    with opened(browser, **screen) as page:
        assert page.evaluate(BOX, "#choose")["bottom"] < height
        locate(page, "here-1.jpg", "here-2.jpg")
        assert page.evaluate(BOX, ".answer")["bottom"] < height  # without scrolling
        assert page.evaluate(BOX, ".coordinates")["bottom"] < height
        page.keyboard.press("o")
        page.wait_for_selector("#card >> text=Ahead")
        card, panel = page.evaluate(BOX, "#card"), page.evaluate(BOX, "#panel")
        assert card["bottom"] <= height and card["x"] > panel["right"]
        assert page.evaluate(BOX, "#card [aria-label=Sequence]")["bottom"] <= height
        assert page.evaluate("() => document.documentElement.scrollWidth") <= screen["viewport"]["width"]
        assert axe_violations(page) == []
        page.keyboard.press("?")
        assert page.evaluate(BOX, "#help-title")["y"] > 0  # the dialog opens at its start
