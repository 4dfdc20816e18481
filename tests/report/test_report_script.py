"""The script of the report in a real browser: map, list, filters, CSV, phone, print, and nothing from outside."""

import csv
import dataclasses
import io
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosplace.assessment.intervals import Estimate
from cosplace.assessment.measures import ConditionRow
from cosplace.assessment.metrics import measure
from cosplace.report.data import RecallRow, Report
from cosplace.report.page import write_report
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from tests.browsers import axe_violations, opened, scrolled_tables, table_parts
from tests.report.report_samples import OFFSETS

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

HOSTILE = "<img src=x onerror=alert(1)>"
KEEP_DRAWN_TEXTS = """() => {
  const { prototype } = CanvasRenderingContext2D, { fillText } = prototype;
  window.drawnTexts = [];
  prototype.fillText = function (text, ...place) { drawnTexts.push(text); fillText.call(this, text, ...place); };
}"""


@pytest.fixture(scope="module")
def path(
    tmp_path_factory: pytest.TempPathFactory, report: Report, dataset: RetrievalDataset, evaluation: Evaluation
) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    conditions = {"weather": ["sun", HOSTILE, "", "sun"]}
    rare = ConditionRow(
        condition="season", value="other or unknown", num_queries=2, num_clusters=2, effective_clusters=2.0,
        recall1=Estimate(56.0, 56.0, 74.7), median_error_m=Estimate(561.0, 316.0, 1234.0),
    )  # fmt: skip
    found = measure(evaluation, dataset)
    wide = Estimate(97.2, 93.4, 98.8)
    scores = [
        dataclasses.replace(
            found.scores[0], name=name, area=wide, recall_at_full_precision=wide, recall_at_95_precision=wide,
            calibration_error=Estimate(0.137, 0.0, 0.254),
        )
        for name in ("confidence", "L2 distance", "spread of the first 10 positions")
    ]  # fmt: skip
    measures = dataclasses.replace(found, conditions=(rare,), scores=tuple(scores))
    environment = {"command": "cosplace eval"}
    write_report(
        path,
        dataclasses.replace(
            report, conditions=conditions, measures=measures, environment=environment, num_queries_shown=1
        ),
    )
    return path


def numbers(page: Any) -> list[str]:
    """The queries in the list."""
    return page.locator("#query-list .query-row b:first-child").all_inner_texts()[:1]


def choose(page: Any, **values: str) -> None:
    for name, value in values.items():
        field = page.locator(f"#filters [name={name.replace('_', '-')}]")
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)


def test_filters_order_and_pages_of_the_list(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        text = page.locator("#list-text")
        assert text.inner_text() == "1–1 of 2 (4 queries in total)" and numbers(page) == ["Query 1"]
        page.get_by_text("Next →").click()
        assert numbers(page) == ["Query 2"] and page.get_by_text("Next →").is_disabled()
        choose(page, outcome="all", sort="-meters")
        assert text.inner_text().startswith("1–1 of 4") and numbers(page) == ["Query 1"]  # 300 m
        choose(page, meters_to="25")
        assert text.inner_text().startswith("1–1 of 2") and numbers(page) == ["Query 3"]  # 24 m
        choose(page, sort="meters")
        assert numbers(page) == ["Query 0"]
        page.locator("#filters [data-condition]").select_option(label="unknown")
        assert text.inner_text() == "No query matches these filters."
        page.get_by_text("Clear filters").click()
        page.get_by_text("1–1 of 2 (4 queries in total)").wait_for()
        choose(page, outcome="alone")
        assert numbers(page) == ["Query 2"]
        choose(page, outcome="all", similarity_from="0.9")
        assert text.inner_text() == "No query matches these filters."


def test_rows_by_confidence_are_those_of_the_page_without_the_script(
    browser: Any, tmp_path: Path, report: Report, dataset: RetrievalDataset, evaluation: Evaluation
) -> None:
    measures = measure(evaluation, dataset, scores={"confidence": np.array([0.9, 0.2, 0.75, 0.1])})
    write_report(tmp_path / "report.html", dataclasses.replace(report, measures=measures))
    for javascript in (False, True):
        with opened(browser, tmp_path / "report.html", java_script_enabled=javascript) as page:
            rows = page.locator("#query-list .query-row p").all_inner_texts()
            heads = [row.partition("\n")[0].replace(" show on map", "").strip() for row in rows]
            assert heads[:2] == [
                "Query 2: none of 3 predictions is correct; confidence 0.750",
                "Query 1: first correct prediction at rank 2 of 3; confidence 0.200",
            ]


def test_rows_are_those_of_the_page_without_the_script(browser: Any, path: Path) -> None:
    read = "document.querySelector('#query-list .query-row').innerText.replace(' show on map', '')"
    sources = "[...document.querySelectorAll('#query-list img')].map((image) => image.src + image.alt)"
    with opened(browser, path) as page:
        live = page.evaluate(read), page.evaluate(sources)
    tab = browser.new_context(java_script_enabled=False)
    page = tab.new_page()
    page.goto(path.as_uri())
    assert not page.locator("#filters").is_visible() and page.locator("#query-map img").is_visible()
    row = page.locator("#query-list .query-row").first
    assert " ".join(live[0].split()) == " ".join(row.inner_text().split())
    images = page.locator("#query-list img").all()
    assert live[1] == [(image.get_attribute("src") or "") + (image.get_attribute("alt") or "") for image in images]
    tab.close()


def test_map_is_used_by_mouse_and_keyboard(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        canvas, text = page.locator("#query-map canvas"), page.locator("#selected-text")
        assert not page.locator("#query-map img").is_visible()
        canvas.focus()
        page.keyboard.press("ArrowUp")  # nothing is selected: the query nearest to the middle
        first = text.inner_text()
        assert first.startswith("Query ") and page.locator("#selected .tile").count() >= 4
        for _ in range(4):
            page.keyboard.press("ArrowUp")
        assert text.inner_text().startswith("Query 3:")  # the northernmost
        for _ in range(3):
            page.keyboard.press("ArrowDown")
        assert text.inner_text().startswith("Query 0: correct at rank 1")
        page.keyboard.press("+")
        page.keyboard.press("0")
        # Queries are on one line from south to north, 60 km long; the database is up to 7 km east of it.
        box = canvas.bounding_box()
        x = box["width"] / 2 - 3.5 / 66 * box["height"]
        found = set()
        for y in range(4, int(box["height"]) - 4, 8):
            canvas.click(position={"x": x, "y": y})
            found.add(text.inner_text().split(":")[0])
        assert found == {"Query 0", "Query 1", "Query 2", "Query 3"}
        page.locator(".link").first.click()
        assert text.inner_text().startswith("Query 1:") and page.evaluate("document.activeElement.tagName") == "CANVAS"


def test_names_are_texts(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        assert f"weather: {HOSTILE}" in page.locator("#query-list").inner_text()
        assert page.locator("#query-list img[src=x]").count() == 0


def test_csv_has_all_queries_and_predictions(
    browser: Any, path: Path, dataset: RetrievalDataset, evaluation: Evaluation
) -> None:
    with opened(browser, path) as page:
        with page.expect_download() as download:
            page.get_by_text("Download CSV").click()
        rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    assert download.value.suggested_filename == "queries.csv"
    assert [(int(row["query"]), int(row["rank"])) for row in rows] == [(q, r) for q in range(4) for r in (1, 2, 3)]
    for row in rows:
        query, rank = int(row["query"]), int(row["rank"]) - 1
        assert float(row["distance_m"]) == pytest.approx(OFFSETS[query][rank], abs=0.011)
        assert row["prediction_path"] == dataset.database.name(int(evaluation.predictions[query, rank]))
        assert row["query_path"] == dataset.queries.name(query)
        assert row["correct"] == str(int(OFFSETS[query][rank] <= 25))
        assert row["weather"] == ["sun", HOSTILE, "", "sun"][query]
        distance = float(evaluation.squared_distances[query, 0]) ** 0.5
        assert abs(float(row["score: L2 distance"])) == pytest.approx(distance, abs=1e-3)
    assert rows[6]["expected_path"] == "" and rows[6]["outcome"] == "not found in top 3"


@pytest.mark.parametrize("are_meters", [True, False])
def test_distances_have_the_unit_of_the_dataset(
    browser: Any, dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path, are_meters: bool
) -> None:
    """On the scale of the map, which is drawn, and in the columns of the CSV."""
    one = dataset if are_meters else dataclasses.replace(dataset, note="positions are numbers of frames")
    write_report(tmp_path / "report.html", Report(title="t", dataset=one, evaluation=evaluation))
    with opened(browser, tmp_path / "report.html") as page:
        page.evaluate(KEEP_DRAWN_TEXTS)
        page.locator("#query-map canvas").focus()
        page.keyboard.press("0")  # draws the map again
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert set(page.evaluate("drawnTexts")) == {"10 km" if are_meters else "10,000 units"}
        with page.expect_download() as download:
            page.get_by_text("Download CSV").click()
        columns = Path(download.value.path()).read_text("utf-8").splitlines()[0].split(",")
    end = "_m" if are_meters else ""
    assert [name for name in columns if "distance" in name] == [f"expected_distance{end}", f"distance{end}"]


@pytest.mark.parametrize("width", [320, 390, 640, 1280])
def test_page_and_tables_are_not_wider_than_the_screen(browser: Any, path: Path, width: int) -> None:
    with opened(browser, path, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert scrolled_tables(page) == []
        scores = page.get_by_role("region", name="Scores")
        assert table_parts(scores) == [1, 4, 5, 3, 12]  # also where each row looks like a list
        label = scores.locator("tbody td").first.evaluate("cell => getComputedStyle(cell, '::before').content")
        assert ("average precision" in label) == (width <= 640)


def test_recalls_at_many_ranks_fit_on_a_phone(browser: Any, report: Report, tmp_path: Path) -> None:
    recalls = dict.fromkeys((1, 2, 5, 10, 20, 50, 100), 50.0)
    intervals = {k: Estimate(50.0, 40.1, 59.9) for k in recalls}
    rows = [RecallRow(name="a model with a long name", recalls=recalls, intervals=intervals)]
    write_report(tmp_path / "report.html", Report(title="t", recall_rows=rows))
    for width in (320, 390, 1280):
        with opened(browser, tmp_path / "report.html", viewport={"width": width, "height": 800}) as page:
            assert scrolled_tables(page) == []


BROKEN_INTERVALS = r"""() => {
  const found = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    for (const match of node.data.matchAll(/\[[^\]]*\]/g)) {
      const range = document.createRange();
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      const tops = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      found.push([match[0], tops.size]);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("media", ["screen", "print"])
def test_intervals_are_not_broken_into_lines(browser: Any, path: Path, media: str) -> None:
    for width in (320, 390, 600, 768):
        with opened(browser, path, viewport={"width": width, "height": 800}) as page:
            page.emulate_media(media=media)
            found = page.evaluate(BROKEN_INTERVALS)
            assert [text for text, lines in found if lines == 1 and "km" in text] == ["[316 m – 1.2 km]"]
            assert [text for text, lines in found if lines > 1] == [], width


@pytest.mark.parametrize("width", [390, 1280])
def test_buttons_of_the_map_do_not_hide_queries(browser: Any, path: Path, width: int) -> None:
    with opened(browser, path, viewport={"width": width, "height": 800}) as page:
        canvas = page.locator("#query-map canvas").bounding_box()
        boxes = [button.bounding_box() for button in page.locator(".map-buttons button").all()]
        assert len(boxes) == 3 and len({box["y"] for box in boxes}) == 1
        assert all(box["y"] >= canvas["y"] + canvas["height"] for box in boxes)
        assert all(left["x"] + left["width"] < right["x"] for left, right in pairwise(boxes))


def test_print_has_the_map_and_the_settings_but_no_controls(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        page.emulate_media(media="print")
        assert page.locator("#query-map img").is_visible()
        for part in ("#filters", "#pages", "#query-map canvas", ".link"):
            assert not page.locator(part).first.is_visible(), part


@pytest.mark.parametrize("is_landscape", [False, True])
def test_a_tall_map_is_printed_on_one_page_with_its_heading(
    browser: Any, dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path, is_landscape: bool
) -> None:
    """The queries are on a line from south to north.  Lines of a summary move the map to any place on its page."""
    margin = dict.fromkeys(("top", "bottom", "left", "right"), "1cm")
    for num_lines in (0, 12, 24):
        summary = ["A line."] * num_lines
        write_report(
            tmp_path / "report.html", Report(title="t", summary=summary, dataset=dataset, evaluation=evaluation)
        )
        with opened(browser, tmp_path / "report.html") as page:
            page.pdf(path=str(tmp_path / "page.pdf"), format="A4", landscape=is_landscape, margin=margin)
        try:
            found = subprocess.run(
                ["pdftotext", "-layout", "page.pdf", "-"], cwd=tmp_path, check=True, capture_output=True
            )
        except FileNotFoundError:
            pytest.skip("no pdftotext on this machine: apt-get install poppler-utils")
        pages = found.stdout.decode().split("\f")
        (with_heading,) = [text for text in pages if "Map" in text.split()]
        assert "database: 12 images" in with_heading and "north" in with_heading, num_lines  # the scale is below


def test_a_printed_map_keeps_its_scale(browser: Any, path: Path) -> None:
    shares = """[...document.querySelectorAll(".map")].map((map) => {
      const [image, bar] = [...map.querySelectorAll("img, i")].map((part) => part.getBoundingClientRect());
      return [image.width / image.height, bar.width / image.width, image.height];
    })"""
    with opened(browser, path) as page:
        page.emulate_media(media="print")
        printed = page.evaluate(shares)
    tab = browser.new_context(java_script_enabled=False)
    page = tab.new_page()
    page.goto(path.as_uri())
    for (ratio, bar, height), expected in zip(printed, page.evaluate(shares), strict=True):
        assert (ratio, bar) == pytest.approx(expected[:2], rel=0.02) and height <= 15 / 2.54 * 96 + 1
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violations(browser: Any, path: Path, scheme: str) -> None:
    for width in (390, 1280):
        with opened(browser, path, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
            page.locator("#query-map canvas").focus()
            page.keyboard.press("ArrowUp")
            page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
            assert axe_violations(page) == []
