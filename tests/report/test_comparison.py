"""Comparisons as lines, tables and a page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.assessment.comparison import Comparison, compare, open_runs
from cosplace.assessment.intervals import Estimate
from cosplace.report import comparison_page as page_module
from cosplace.report.comparison_page import comparison_page
from cosplace.report.comparison_tables import (
    comparison_record,
    interval_text,
    latex_table,
    latex_text,
    markdown_table,
    p_text,
    signed,
    terminal_lines,
)
from tests.assessment.comparison_samples import city_dataset, write_run
from tests.report.report_samples import Page, assert_single_file, charts_of, tiles_of

RANKS_A = [1] * 8 + [3] * 6 + [0] * 2
RANKS_B = [1] * 6 + [2, 2] + [1] * 6 + [0] * 2  # six won, two lost
CONDITIONS = {"time of day": ["night"] * 8 + ["day"] * 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("compared")
    dataset = city_dataset(folder / "city", len(RANKS_A), photos=True)
    odd = "a|b_$50%\n<b>.pth"
    return [
        write_run(folder / "first", dataset, RANKS_A, conditions=CONDITIONS),
        write_run(folder / "second", dataset, RANKS_B, conditions=CONDITIONS, model={"name": odd, "sha256": "2"}),
        write_run(folder / "third", dataset, RANKS_A, conditions=CONDITIONS),
    ]


@pytest.fixture(scope="module")
def comparisons(runs: list[Path]) -> list[Comparison]:
    reference, *others = open_runs(runs)
    return [compare(reference, other) for other in others]


def test_numbers_as_text() -> None:
    assert [signed(value) for value in (5.34, -1.26, 0.04, -0.04, 0.0)] == ["+5.3", "-1.3", "0.0", "0.0", "0.0"]
    assert [p_text(p) for p in (1.0, 0.26743, 0.001, 0.00099)] == ["1.000", "0.267", "0.001", "<0.001"]
    assert interval_text(Estimate(5.3, -1.23, 11.9)) == "[-1.2, +11.9]"
    assert interval_text(Estimate(5.3, -1.23, 11.9, is_approximate=True)) == "[-1.2, +11.9] (approximate)"


def test_lines_of_the_terminal(comparisons: list[Comparison]) -> None:
    lines = terminal_lines(comparisons)
    assert all(line.isprintable() for line in lines)
    row = next(line for line in lines if line.startswith("R@1 "))
    assert row.split()[:4] == ["R@1", "50.0", "75.0", "+25.0"]
    assert re.search(r"\] +6 +2 +0\.289 +no difference can be shown, approximate interval$", row)
    assert any(re.match(r"    night \(8\) .* approximate interval$", line) for line in lines)
    about = r"2 comparisons\. .* about 4% \(at most 6%\) of .* name a better one\.$"
    assert any(re.search(about, line) for line in lines)
    assert any(line.startswith("C compared with A") for line in lines)


def test_markdown_has_as_many_cells_in_each_row(comparisons: list[Comparison]) -> None:
    text = markdown_table(comparisons)
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        # A vertical line in the name of a model would start another cell.
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(counts) == 1
    assert "B − A" in tables[1][2]
    assert r"a\|b\_$50%\\n\<b\>.pth" in text


def test_latex_escapes_what_is_special(comparisons: list[Comparison]) -> None:
    assert latex_text("a_b & 50% $ # {x} ~ ^ \\") == (
        r"a\_b \& 50\% \$ \# \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    lines = latex_table(comparisons).splitlines()
    rows = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 3 for line in rows)  # letter, model, R@1, R@5
    body = "".join(line for line in lines if not line.startswith("%"))
    assert body.count("{") == body.count("}") and body.count("$") % 2 == 1  # one of them is escaped: \$50
    assert r"\toprule" in body and r"\bottomrule" in body


def test_tables_say_below_what_a_shown_difference_means(comparisons: list[Comparison], tmp_path: Path) -> None:
    star = r"\multicolumn{4}{l}{\scriptsize $^{*}$ McNemar's exact test: $p < 0.05$, and the interval excludes 0.} \\"
    text = latex_table(comparisons)
    assert "{*}" not in text
    assert text.endswith(r"The interval is approximate.} \\" + "\n\\end{tabular}\n")
    dataset = city_dataset(tmp_path / "city", 40)
    folders = [write_run(tmp_path / name, dataset, ranks) for name, ranks in (("a", [2] * 40), ("b", [1] * 40))]
    better = [compare(*open_runs(folders))]
    *_, row, bottom, about, explained, few, end = latex_table(better).splitlines()
    assert "approximate" in few  # all queries are right in b, and wrong in a
    assert "$+100.0^{*}$" in row and about.startswith(r"\multicolumn{4}{l}{\scriptsize Below a recall: ")
    assert (bottom, explained, end) == (r"\bottomrule", star, r"\end{tabular}")
    assert "p: McNemar's exact test. A run is called better if the interval" in markdown_table(better)


def test_approximate_intervals_are_marked_in_tables_for_papers(comparisons: list[Comparison]) -> None:
    """16 queries are few, so all intervals are: of 3 runs and 2 differences, at 2 values of N."""
    text = latex_table(comparisons)
    assert r"\scriptsize $^{\dagger}$ The interval is approximate.} \\" in text
    assert text.count(r"]^{\dagger}$") == 2 * (3 + 2)
    assert markdown_table(comparisons).count("] (approximate) |") == 2 * (3 + 2)
    html = comparison_page(comparisons)
    assert html.count(']</small> <small class="few">(approximate)</small>') >= 2 * (3 + 2)
    values = [row[1] for chart in charts_of(html).values() for row in chart.rows]
    assert len(values) == 2 * 2 and all(text.endswith("] (approximate)") for text in values)


def test_intervals_that_are_not_approximate_have_no_mark(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city", 100)
    ranks = {"a": [1, 2] * 50, "b": [2, 1] * 50}
    runs = open_runs([write_run(tmp_path / name, dataset, one) for name, one in ranks.items()])
    for run in runs:
        run.queries.clusters[:] = np.arange(100)
    found = [compare(*runs)]
    assert not found[0].rows[0].difference.is_approximate and not runs[0].recall(1).is_approximate
    assert "approximate" not in "\n".join(line for line in terminal_lines(found) if line.startswith("R@1 "))
    assert r"50.0 {\scriptsize $[40.4, 59.6]$}" in latex_table(found)
    (values,) = charts_of(comparison_page(found)).values()
    assert values.rows[0][1].endswith("]")


def test_the_record_has_all_flipped_queries(comparisons: list[Comparison]) -> None:
    record = json.loads(json.dumps(comparison_record(comparisons)))
    first, second = record["comparisons"]
    assert first["won"] == [f"q{number:04d}.jpg" for number in range(8, 14)]
    assert first["lost"] == ["q0006.jpg", "q0007.jpg"]
    assert first["recalls"]["1"]["verdict"] == "no difference can be shown"
    assert (first["recalls"]["1"]["won"], first["recalls"]["1"]["lost"]) == (6, 2)
    assert second["won"] == second["lost"] == []
    assert record["runs"][0]["recalls"] == {"1": 50.0, "5": 87.5}
    assert record["runs"][0]["approximate_recalls"] == [1, 5] and first["recalls"]["1"]["approximate"] is True
    assert all(row["approximate"] for row in first["conditions"])


def test_the_page_shows_what_both_runs_found(comparisons: list[Comparison]) -> None:
    html = comparison_page(comparisons)
    assert_single_file(html)
    text = Page(html).text()
    assert "No difference between A and B can be shown" in text
    assert "6 queries correct only in B (R@1)" in text and "2 queries correct only in A (R@1)" in text
    assert "0 queries correct only in C" in text
    assert "time of day: night" in text
    tiles = tiles_of(html)
    assert len(tiles) == 8 * 4  # query, what A found, what B found, expected
    assert [kind for kind, _ in tiles[:4]] == ["query", "incorrect", "correct", "expected"]
    assert tiles[1][1].startswith("A ✗") and tiles[2] == ("correct", "B ✓ 3.0 m")
    assert [kind for kind, _ in tiles[24:28]] == ["query", "correct", "incorrect", "expected"]
    assert html == comparison_page(comparisons)


def test_queries_beyond_the_limits_are_listed_by_name(
    comparisons: list[Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MAX_SHOWN", 2)
    monkeypatch.setattr(page_module, "MAX_LISTED", 3)
    html = comparison_page(comparisons[:1])
    assert len(tiles_of(html)) == 4 * 4
    text = Page(html).text()
    assert "2 of them" in text and "4 more" in text and "1 more left out here" in text
    monkeypatch.setattr(page_module, "PHOTO_BYTES", 0)
    html = comparison_page(comparisons[:1])
    assert not tiles_of(html) and "q0008.jpg" in html and "6 queries" in Page(html).text()


def test_photos_that_have_moved_or_are_outside(runs: list[Path], tmp_path: Path) -> None:
    a, b = open_runs(runs[:2])
    city = a.queries.folder
    moved = city.with_name("moved")
    city.rename(moved)
    try:
        comparison = [compare(a, b)]
        gray = comparison_page(comparison)
        assert len(tiles_of(gray)) == 8 * 4  # gray images
        there = comparison_page(comparison, dataset_folder=moved)
        assert there != gray and len(tiles_of(there)) == 8 * 4
        # A link out of the dataset is not followed: the page could show private photos.
        secret = tmp_path / "secret.jpg"
        Image.fromarray(np.full((48, 64, 3), 250, np.uint8)).save(secret)
        photo = moved / "queries" / "q0008.jpg"
        content = photo.read_bytes()
        photo.unlink()
        photo.symlink_to(secret)
        refused = comparison_page(comparison, dataset_folder=moved)
        shown = comparison_page(comparison, dataset_folder=moved, follow_outside=True)
        photo.unlink()
        photo.write_bytes(content)
        assert len({there, refused, shown}) == 3
        sources = re.findall(r'src="(data:[^"]+)"', gray)
        assert sources[0] in refused  # the gray image
        assert sources[0] not in shown
    finally:
        moved.rename(city)
