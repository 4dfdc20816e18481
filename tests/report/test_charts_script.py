"""The charts in a real browser: drawn in the colors of the page, values at the pointer, print, without JavaScript."""

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosplace.assessment.intervals import Estimate
from cosplace.assessment.metrics import measure
from cosplace.report.calibration_page import calibration_page
from cosplace.report.data import RecallRow, Report
from cosplace.report.page import write_report
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from tests.browsers import opened
from tests.report.calibration_samples import sample_calibration
from tests.report.report_samples import charts_of

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

NUM_CHARTS = 7
# The share of the pixels of each chart that are near a color of the page.
SHARES = """(name) => [...document.querySelectorAll(".plot canvas")].map((canvas) => {
  const color = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = color;
  probe.fillRect(0, 0, 1, 1);
  const [red, green, blue] = probe.getImageData(0, 0, 1, 1).data;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let at = 0; at < data.length; at += 4) {
    const far = Math.abs(data[at] - red) + Math.abs(data[at + 1] - green) + Math.abs(data[at + 2] - blue);
    if (data[at + 3] > 200 && far < 30) count++;
  }
  return count / (data.length / 4);
})"""
PIXELS = "[...document.querySelectorAll('.plot canvas')].map((canvas) => canvas.toDataURL())"
SIZES = """[...document.querySelectorAll(".plot")].map((plot) => {
  const canvas = plot.querySelector("canvas");
  return [plot.clientWidth, canvas.clientWidth, canvas.clientHeight, canvas.width];
})"""


@pytest.fixture(scope="module")
def path(
    tmp_path_factory: pytest.TempPathFactory, report: Report, dataset: RetrievalDataset, evaluation: Evaluation
) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    measures = measure(evaluation, dataset, scores={"confidence": np.array([0.9, 0.2, 0.75, 0.1])})
    other = RecallRow(
        name="another <model>", recalls={1: 40.0, 3: 60.0}, intervals={1: Estimate(40, 30, 50), 3: Estimate(60, 55, 70)}
    )
    rows = [*report.recall_rows, other]
    write_report(path, dataclasses.replace(report, measures=measures, recall_rows=rows))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_charts_are_drawn_in_the_colors_of_the_page(browser: Any, path: Path, scheme: str) -> None:
    with opened(browser, path, color_scheme=scheme) as page:
        page.locator(".plot canvas").nth(NUM_CHARTS - 1).wait_for()
        curves, grids = page.evaluate(SHARES, "--s0"), page.evaluate(SHARES, "--rule")
        assert len(curves) == NUM_CHARTS
        assert min(curves) > 0.001 and min(grids) > 0.001
        page.emulate_media(color_scheme={"light": "dark", "dark": "light"}[scheme])
        page.wait_for_timeout(100)
        assert min(page.evaluate(SHARES, "--s0")) > 0.001 and min(page.evaluate(SHARES, "--rule")) > 0.001


def test_legends_name_the_curves_where_there_are_several(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        legends = [legend.inner_text().split("\n") for legend in page.locator(".curves:visible").all()]
        assert legends[0] == ["chance", "ours", "another <model>"]
        assert legends[1][0] == "confidence" and legends[2] == ["R@1", "R@5"] and len(legends) == 3
        styles = (
            page.locator(".curves:visible")
            .first.locator("path")
            .evaluate_all("lines => lines.map((line) => getComputedStyle(line).strokeDasharray)")
        )
        assert len(set(styles)) == 3


def hover(page: Any, description: str, share: float) -> str:
    """The values at a place of a chart, from its left to its right end."""
    chart_part = page.locator(".chart", has=page.get_by_role("img", name=description, exact=True))
    plot = chart_part.locator(".u-over")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + share * (box["width"] - 1), box["y"] + box["height"] / 2)
    tip = chart_part.locator(".tip")
    edges = tip.bounding_box()
    assert edges["x"] >= 0 and edges["x"] + edges["width"] <= page.viewport_size["width"] and edges["y"] >= 0
    return tip.inner_text()


@pytest.mark.parametrize("width", [390, 1200])
def test_values_are_shown_at_the_pointer(browser: Any, path: Path, width: int) -> None:
    with opened(browser, path, viewport={"width": width, "height": 900}) as page:
        first = "N: 1\nchance: 12.5%\nours: 50.0 [15.0, 85.0]% (approximate)\nanother <model>: 40.0 [30.0, 50.0]%"
        assert hover(page, "Recall@N of each row", 0) == first
        assert hover(page, "Recall@N of each row", 1).startswith("N: 3\nchance: ")
        assert hover(page, "Recall@1 by radius", 0).startswith("radius: 1 m\nRecall@1: 25.0 [")
        assert hover(page, "Training loss over epochs", 0.99) == "epochs trained: 3\ntraining loss: 8\ngroup: 0"
        assert hover(page, "Percentage of correct answers by confidence", 0.88).startswith(
            "confidence: 90.0%\nqueries: 1"
        )
        page.mouse.move(2, 2)
        assert page.locator(".tip:visible").count() == 0


def test_values_are_shown_by_touch(browser: Any, path: Path) -> None:
    with opened(browser, path, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        plot = page.locator(".u-over").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] - 3, box["y"] + 40)
        page.wait_for_selector(".tip:visible")
        assert page.locator(".tip:visible").inner_text().startswith("N: 3\n")
        page.touchscreen.tap(box["x"] + 20, box["y"] + box["height"] + 80)
        page.wait_for_selector(".tip:visible", state="detached")


def test_tables_have_the_values_of_the_charts(browser: Any, path: Path) -> None:
    expected = charts_of(path.read_text("utf-8"))
    assert len(expected) == NUM_CHARTS
    with opened(browser, path) as page:
        assert page.locator(".values table:visible").count() == 0
        for description, chart in expected.items():
            chart_part = page.locator(".chart", has=page.get_by_role("img", name=description, exact=True))
            chart_part.get_by_text("Values", exact=True).click()
            text = chart_part.get_by_role("table").inner_text().replace("\u00a0", " ")
            rows = [row.split("\t") for row in text.split("\n")]
            assert rows == [chart.columns, *chart.rows]
            shown = [[text or "–" for text in texts] for _, texts in chart.data["rows"]]
            assert all(row in shown for row in chart.rows)


def test_without_javascript_the_tables_are_there(browser: Any, path: Path) -> None:
    with opened(browser, path, java_script_enabled=False) as page:
        assert page.locator(".plot canvas").count() == page.locator(".curves:visible").count() == 0
        notes = page.locator("noscript p:visible").all_inner_texts()
        assert notes == ["The chart needs JavaScript; its values are below."] * NUM_CHARTS
        page.locator(".values summary").first.click()
        assert "another <model>" in page.locator(".values table:visible").inner_text()


def test_charts_follow_the_width_of_the_window(browser: Any, path: Path) -> None:
    with opened(browser, path, device_scale_factor=2) as page:
        for width in (1200, 390, 900):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(200)
            sizes = page.evaluate(SIZES)
            assert len(sizes) == NUM_CHARTS
            for box, shown, height, pixels in sizes:
                assert box == shown == pixels / 2 and 240 <= height < box
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_charts_are_printed_light_and_sharp_and_drawn_again_afterwards(browser: Any, path: Path) -> None:
    with opened(browser, path, color_scheme="dark") as page:
        page.locator(".plot canvas").nth(NUM_CHARTS - 1).wait_for()
        before = page.evaluate(PIXELS)
        print_event = "dispatchEvent(new Event('beforeprint'));"
        assert min(page.evaluate(f"(name) => {{ {print_event} return ({SHARES})(name); }}", "--s0")) > 0.001  # at once
        page.emulate_media(media="print", color_scheme="dark")
        assert min(page.evaluate(SHARES, "--s0")) > 0.001
        sizes = page.evaluate(SIZES)
        assert all(shown == box and pixels >= 2 * shown for box, shown, _, pixels in sizes)
        assert page.locator(".values:visible").count() == 0
        page.emulate_media(media="screen", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.wait_for_timeout(100)
        assert page.evaluate(PIXELS) == before


def test_a_pdf_has_the_charts_on_pages_of_the_same_width(browser: Any, path: Path, tmp_path: Path) -> None:
    with opened(browser, path, color_scheme="dark") as page:
        page.pdf(path=str(tmp_path / "page.pdf"), format="A4", print_background=True)
    try:
        subprocess.run(["pdftoppm", "-png", "-r", "80", "page.pdf", "page"], cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("no pdftoppm on this machine: apt-get install poppler-utils")
    from PIL import Image

    pages = [np.asarray(Image.open(one).convert("RGB")).astype(int) for one in sorted(tmp_path.glob("page-*.png"))]
    blue = sum((np.abs(one - (0x0B, 0x5F, 0xC0)).sum(axis=2) < 30).sum() for one in pages)
    assert blue > 1500  # the curves in the light color
    assert all(np.median(one) == 255 for one in pages)  # on white


def test_the_calibration_page_is_drawn_from_its_own_file(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(calibration_page(sample_calibration(), "index"), "utf-8")
    with opened(browser, tmp_path / "page.html") as page:
        page.locator(".plot canvas").nth(1).wait_for()
        assert min(page.evaluate(SHARES, "--s0")) > 0.001
        text = hover(page, "Percentage of correct answers by confidence", 0.1)
        assert text == "stated confidence: 10.0%\ncorrect: 20.0%\nshare of answers: 80.0%"
