"""Matching points in a real browser: a button draws them over two photos, and removes them."""

from pathlib import Path
from typing import Any

import pytest

from cosplace.report.data import Report
from cosplace.report.page import write_report
from tests.browsers import axe_violations
from tests.report.match_samples import HEIGHT, WIDTH, make_matched_dataset, make_matched_evaluation
from tests.report.report_samples import data_of
from tests.report.test_report_script import opened

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

# Of each line of the first pair: where its ends are in the photos, in thousandths, as in the data of the page.
ENDS = """() => {
  const boxes = [...document.querySelectorAll(".match-photos img")].map((photo) => photo.getBoundingClientRect());
  return [...document.querySelectorAll(".match-photos g")].map((line) =>
    [...line.querySelectorAll("circle")].flatMap((end, which) => {
      const { left, top, width, height } = end.getBoundingClientRect(), box = boxes[which];
      return [(left + width / 2 - box.left) / box.width * 1000, (top + height / 2 - box.top) / box.height * 1000];
    }));
}"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with matches of all queries but the last, which is correct."""
    pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("page")
    dataset = make_matched_dataset(folder / "city")
    report = Report(
        title="Matches", dataset=dataset, evaluation=make_matched_evaluation(dataset), num_queries_matched=3
    )
    write_report(folder / "report.html", report)
    return folder / "report.html"


def select(page: Any, query: int) -> None:
    page.locator("#filters [name=outcome]").select_option("all")
    page.get_by_label(f"show on map: query {query}", exact=True).click()


def test_click_draws_the_lines_and_another_one_removes_them(browser: Any, path: Path) -> None:
    pairs = data_of(path.read_text("utf-8"))["matches"]["of"]["0"]
    with opened(browser, path) as page:
        button = page.get_by_role("button", name="Show matches")
        select(page, 0)
        assert button.get_attribute("aria-pressed") == "false" and page.locator(".match-photos").count() == 0
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        for number, name in enumerate(("first", "expected")):
            frame = page.locator(".match-photos").nth(number)
            assert frame.locator("img").count() == 2
            assert frame.locator("g").count() == len(pairs[name]["points"]) // 4 == 40
        texts = page.locator(".matches figcaption").all_inner_texts()
        assert texts == [
            f"{what}: 40 matching points (of {pairs[name]['found']} found to fit one geometry)"
            for what, name in (("Query and prediction 1", "first"), ("Query and expected match", "expected"))
        ]
        button.click()
        assert button.get_attribute("aria-pressed") == "false" and page.locator(".matches *").count() == 0


@pytest.mark.parametrize(("width", "are_stacked"), [(390, True), (1280, False)])
def test_lines_end_at_the_points_on_every_screen(browser: Any, path: Path, width: int, are_stacked: bool) -> None:
    points = data_of(path.read_text("utf-8"))["matches"]["of"]["0"]["first"]["points"]
    with opened(browser, path, viewport={"width": width, "height": 800}) as page:
        select(page, 0)
        page.get_by_role("button", name="Show matches").click()
        for screen in (width, width - 60):
            page.set_viewport_size({"width": screen, "height": 800})
            page.wait_for_timeout(300)
            query, other = (page.locator(".match-photos img").nth(number).bounding_box() for number in (0, 1))
            assert (other["y"] >= query["y"] + query["height"]) == are_stacked
            assert (other["x"] >= query["x"] + query["width"]) != are_stacked
            assert query["width"] / query["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.02)
            assert other["width"] / other["height"] == pytest.approx(HEIGHT / WIDTH, rel=0.02)  # turned by 90°
            ends = [value for line in page.evaluate(ENDS)[: len(points) // 4] for value in line]
            assert ends == pytest.approx([value + 0.5 for value in points], abs=1)
            assert page.evaluate("document.documentElement.scrollWidth") <= screen


def test_button_is_used_by_keyboard_and_stays_pressed_for_other_queries(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        select(page, 0)  # the focus is on the map
        button = page.get_by_role("button", name="Show matches")
        for _ in range(8):
            if page.evaluate("document.activeElement.textContent") == "Show matches":
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert button.get_attribute("aria-pressed") == "true" and page.locator(".match-photos g").count() == 80
        select(page, 2)
        assert page.locator(".matches figcaption").all_inner_texts() == ["Query and prediction 1: no matching points"]
        assert page.locator(".match-photos g").count() == 0
        select(page, 1)
        assert button.count() == 0 and page.locator(".matches").count() == 0  # none were found for this one
        select(page, 0)
        assert button.get_attribute("aria-pressed") == "true" and page.locator(".match-photos g").count() == 80


@pytest.mark.parametrize(("number", "end"), [(29, "; so few can also fit by chance"), (30, "")])
def test_few_matches_are_not_called_evidence(browser: Any, path: Path, number: int, end: str) -> None:
    html = path.read_text("utf-8")
    nothing, pair = '"3":{"first":{"found":0,"points":[]}', f'{{"found":{number},"points":{list(range(4 * number))}}}'
    assert html.count(nothing) == 1
    changed = path.with_name(f"{number}.html")
    changed.write_text(html.replace(nothing, f'"3":{{"first":{pair}'), "utf-8")
    with opened(browser, changed) as page:
        select(page, 3)
        page.get_by_role("button", name="Show matches").click()
        text = f"Query and prediction 1: {number} matching points that fit one geometry{end}"
        assert page.locator(".matches figcaption").inner_text() == text


def test_matches_are_not_printed(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        select(page, 0)
        page.get_by_role("button", name="Show matches").click()
        page.emulate_media(media="print")
        assert not page.locator(".match-photos").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violations_with_matches(browser: Any, path: Path, scheme: str) -> None:
    for width in (390, 1280):
        with opened(browser, path, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
            select(page, 0)
            page.get_by_role("button", name="Show matches").click()
            assert axe_violations(page) == []
