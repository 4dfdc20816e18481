"""axe-core finds no violations on any page, light or dark, on a phone or a desktop; no table has to be scrolled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosplace.assessment.audit import audit_pairs
from cosplace.assessment.comparison import Comparison, RecallDifference, compare, open_runs
from cosplace.assessment.intervals import Estimate
from cosplace.assessment.run_files import read_query_results
from cosplace.cli import main
from cosplace.report.audit_page import write_audit_page
from cosplace.report.calibration_page import calibration_page
from cosplace.report.comparison_page import comparison_page
from tests.assessment.comparison_samples import city_dataset, write_run
from tests.browsers import axe_violations, scrolled_tables, table_parts
from tests.report.calibration_samples import sample_calibration
from tests.synthetic_dataset import write_dataset

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all


def write_comparison(path: Path) -> None:
    dataset = city_dataset(path.parent / "city", 16, photos=True)
    conditions = {"time of day": ["night"] * 8 + ["day"] * 8}
    folders = [
        write_run(path.parent / name, dataset, ranks, conditions=conditions)
        for name, ranks in (("first", [1] * 8 + [3] * 6 + [0] * 2), ("second", [1] * 6 + [2, 2] + [1] * 6 + [0] * 2))
    ]
    reference, other = open_runs(folders)
    path.write_text(comparison_page([compare(reference, other)]), "utf-8")


def write_large_comparison(path: Path) -> None:
    """Three runs with many recalls, and numbers as wide as those of thousands of queries."""
    dataset = city_dataset(path.parent / "city", 16, photos=True)
    conditions = {"time of day": ["night"] * 8 + ["day"] * 8}
    folders = []
    for name, ranks in (("first", [1] * 16), ("second", [2] * 8 + [1] * 8), ("third", [1, 2] * 8)):
        recalls = {str(n): 100 * sum(rank <= n for rank in ranks) / len(ranks) for n in range(1, 6)}
        folders.append(write_run(path.parent / name, dataset, ranks, conditions=conditions, recalls=recalls))
    reference, *others = open_runs(folders)
    path.write_text(comparison_page([_widened(compare(reference, other)) for other in others]), "utf-8")


def _widened(one: Comparison) -> Comparison:
    def widened(row: RecallDifference) -> RecallDifference:
        difference = Estimate(-50.0, -100.0, -10.0, is_approximate=True)
        return replace(row, num_queries=12_345, recall_a=100.0, difference=difference, won=1234, lost=1234, p=0.0)

    conditions = tuple(replace(found, row=widened(found.row)) for found in one.conditions)
    return replace(one, rows=tuple(map(widened, one.rows)), conditions=conditions)


def write_audit(path: Path) -> None:
    dataset = city_dataset(path.parent / "city", 4, photos=True)
    run = read_query_results(write_run(path.parent / "run", dataset, [1, 0, 0, 0]))
    write_audit_page(path, run, audit_pairs(run, more_similar_than=0), run_folder=path.parent)


def write_validation(path: Path) -> None:
    main(["validate", str(write_dataset(path.parent / "city", num_places=4)), "--html", str(path), "--device", "cpu"])


def write_calibration(path: Path) -> None:
    path.write_text(calibration_page(sample_calibration(), "index"), "utf-8")


def write_zoo(path: Path) -> None:
    main(["zoo", "list", "--html", str(path)])


@pytest.mark.parametrize("write", [write_comparison, write_audit, write_validation, write_calibration, write_zoo])
def test_axe_finds_no_violations(write: Any, browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(path)
    parts = []
    for scheme in ("light", "dark"):
        for width in (390, 1280):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
            page = context.new_page()
            page.goto(path.as_uri())
            page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
            assert axe_violations(page) == [], (scheme, width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert scrolled_tables(page) == [], (scheme, width)
            parts.append(table_parts(page))
            context.close()
    assert parts == [parts[0]] * 4


# Texts that are not inside of their cells.
OVERFLOWING = """() => [...document.querySelectorAll("tbody th, tbody td")].filter((cell) => {
    const range = document.createRange(), box = cell.getBoundingClientRect();
    range.selectNodeContents(cell);
    return [...range.getClientRects()].some(({ left, right }) => left < box.left - 1 || right > box.right + 1);
}).map((cell) => cell.textContent)"""


@pytest.mark.parametrize("write", [write_large_comparison, write_comparison, write_audit])
@pytest.mark.parametrize(
    "widths",
    [
        (320, 390, 641, 820),
        pytest.param((320, 360, 390, 430, 600, 641, 700, 768, 820, 1000, 1280), marks=pytest.mark.long),
    ],
    ids=["some", "all"],
)
def test_nothing_is_cut_off_on_any_screen(write: Any, widths: tuple[int, ...], browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(path)
    parts = []
    for width in widths:
        context = browser.new_context(viewport={"width": width, "height": 800})
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert scrolled_tables(page) == [] == page.evaluate(OVERFLOWING), width
        parts.append(table_parts(page))
        context.close()
    assert parts == [parts[0]] * len(parts)
