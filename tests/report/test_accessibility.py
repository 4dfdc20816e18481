"""Pages can be read by everyone: contrast of all colors, order of headings, names of controls, without the script."""

import dataclasses
import itertools
import re

import pytest

from cosplace.report.colors import OUTCOME_COLORS
from cosplace.report.data import Report
from cosplace.report.page import report_html
from cosplace.report.render import style_sheet
from tests.report.report_samples import Page


def theme(dark: bool) -> dict[str, str]:
    """The colors of the style sheet by name."""
    light_rule, dark_rule = re.findall(r":root(?::not\(\.printing\))? \{(.*?)\n\s*\}", style_sheet(), re.DOTALL)[:2]
    found = dict(re.findall(r"--(\w+): (#\w+)", light_rule))
    return found | dict(re.findall(r"--(\w+): (#\w+)", dark_rule)) if dark else found


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2.2."""
    digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("dark", [False, True])
def test_texts_and_marks_have_enough_contrast(dark: bool) -> None:
    colors = theme(dark)
    for background in ("page", "card", "tint"):
        for text in ("ink", "soft", "link", "correct", "incorrect"):
            assert contrast(colors[text], colors[background]) >= 4.5, (text, background)
    for curve in ("s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(colors[curve], colors["card"]) >= 4.5, curve
    for kind in range(3):
        assert colors[f"outcome{kind}"] == OUTCOME_COLORS[kind]  # of the map without the script
        assert contrast(OUTCOME_COLORS[kind], colors["card"]) >= 3, kind


def test_headings_are_in_order_and_ids_are_unique(report: Report) -> None:
    page = Page(report_html(report))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_every_image_chart_and_control_has_a_name(report: Report) -> None:
    html = report_html(dataclasses.replace(report, conditions={"weather": ["sun", "rain", "", "sun"]}))
    page = Page(html)
    assert all(image["alt"] for image in page.of("img"))
    assert all(svg.get("aria-hidden") == "true" for svg in page.of("svg"))
    named = [part["aria-label"] for part in page.of("div") if part.get("role")]
    assert len(set(named)) == len(named) and all(named)
    labels = re.findall(r"<label>.*?</label>", html, re.DOTALL)
    named = sum(label.count("<select") + label.count("<input") for label in labels)
    named += sum("aria-label" in control for control in page.of("input"))
    assert named == len(page.of("select") + page.of("input")) == 8
    assert re.findall(r"<label>(Weather)\s", html) == ["Weather"]
    assert all(table["tabindex"] == "0" for table in page.of("div") if table.get("role") == "region")


def test_controls_that_need_the_script_are_hidden_without_it(report: Report) -> None:
    page = Page(report_html(report))
    for tag in ("form", "nav"):
        assert all("hidden" in attributes for attributes in page.of(tag))
    keys = [attributes for attributes in page.of("p") if "live-only" in attributes.get("class", "")]
    assert len(keys) == 1 and "hidden" in keys[0]
