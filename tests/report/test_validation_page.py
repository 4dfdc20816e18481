"""The page of `cosplace validate` is a single file with the problems, the map, the histograms and the command."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cosplace.cli import main
from cosplace.photos.tables import TABLE_NAME, read_table, write_table
from cosplace.report.charts import MAX_ROWS
from cosplace.report.validation_page import _class_chart, time_ticks
from cosplace.training.recommendation import ClassCounts
from tests.report.report_samples import Page, assert_single_file, charts_of
from tests.synthetic_dataset import write_dataset, write_place
from tests.table_samples import write_table_of_places


def test_page_of_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path / "city", num_places=4, images_per_place=2)
    write_place(folder / "train", 900, 0).rename(folder / "train" / "<b>&.jpg")
    assert main(["validate", str(folder), "--html", str(tmp_path / "page.html"), "--json", "--device", "cpu"]) == 2
    result = json.loads(capsys.readouterr().out)
    html = (tmp_path / "page.html").read_text("utf-8")
    assert_single_file(html)
    page = Page(html)
    text = page.text()
    assert f"Dataset {folder}" in text and "<b>&.jpg" in text
    for report in result["folders"]:
        for problem in report["problems"]:
            assert problem["kind"] in text and f"{problem['count']:,}" in text
    for name in ("train: 9 photos", "val/database: 24 photos", "test/queries_v1: 12 photos"):
        assert name in text
    assert len(list(page.of("img"))) == 1  # the map
    charts = charts_of(html)
    assert list(charts) == [
        "Number of classes by their number of photos",
        "Number of photos by heading",
        "Number of queries by their number of positives",
        "Number of photos by size",
    ]
    for chart in charts.values():  # as many bars as rows, with the same counts
        assert [f"{count:,}" for count in chart.data["series"][0]["ys"]] == [row[1] for row in chart.rows]
    assert sum(charts["Number of photos by size"].data["series"][0]["ys"]) == sum(
        report["num_photos"] for report in result["folders"]
    )
    assert "No recommendation" in text or "cosplace" in text
    assert result["recommendation"]["trains"] is False


def test_page_of_photos_without_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_place(tmp_path / "photos", 1, 1).rename(tmp_path / "photos" / "a.jpg")
    assert main(["validate", str(tmp_path / "photos"), "--html", str(tmp_path / "page.html")]) == 2
    text = Page((tmp_path / "page.html").read_text("utf-8")).text()
    assert "No recommendation" in text and "photos: 1 photo" in text
    assert "The highlighted row" not in (tmp_path / "page.html").read_text("utf-8")
    assert "recommendation: none." in capsys.readouterr().out


def test_page_with_a_recommended_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("enough_places", "recommendation"):
        monkeypatch.setattr(f"cosplace.training.{module}.FEWEST_PLACES", 5)
    write_table_of_places(tmp_path / "city", 40)
    page = tmp_path / "page.html"
    main(["validate", str(tmp_path / "city"), "--quick", "--html", str(page), "--device", "cpu"])
    out = capsys.readouterr().out
    assert f"page: {page}" in out
    lines = out.splitlines()
    first = lines.index("recommendation:") + 1
    assert lines[first].startswith("  `cosplace")
    assert max(len(line) for line in lines[: first - 1] if line.startswith(("     M", "classes", "    "))) <= 100
    (marked,) = [line for line in lines if line.endswith("  recommended")]
    command = next(line for line in lines if "cosplace train" in line).split()
    M, alpha = (command[command.index(flag) + 1] for flag in ("--M", "--alpha"))
    assert marked.split()[:2] == [M, alpha]
    html = page.read_text("utf-8")
    assert "The highlighted row" in html and f'class="ours"><th scope="row">{M} m, {alpha}°' in html
    section = html[html.index('id="recommendation"') : html.index('id="problems"')]
    assert "`" not in section and "<code>cosplace finetune" in section
    assert section.index("<pre>") < section.index("<p>")


def test_the_page_counts_photos_that_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    city = write_table_of_places(tmp_path / "city", 80)
    records = read_table(city / TABLE_NAME).to_pylist()
    for record in records[:7]:
        record["latitude"] = record["longitude"] = None
    write_table(city / TABLE_NAME, pa.Table.from_pylist(records, schema=read_table(city / TABLE_NAME).schema))
    page = tmp_path / "page.html"
    words = ["validate", str(city), "--quick", "--device", "cpu", "--html", str(page)]
    assert main(words) == 0
    text = Page(page.read_text("utf-8")).text()
    assert "city: 320 photos" in text and "city: 313 of 320 photos" in text  # of the map
    assert "313 photos in " in text  # classes
    assert "taken: 2023-11-14 22:13:20 to 2023-11-17 22:14:39 UTC" in text
    assert "When the photos were taken: 2023-11-14 22:13 to 2023-11-17 22:14 UTC." in text
    assert main(["split", str(city)]) == 0
    capsys.readouterr()
    assert main(words) == 0
    num_unused = sum(not split for split in read_table(city / TABLE_NAME)["split"].to_pylist())
    assert num_unused >= 7 and f"in no split: {num_unused} of 320 photos" in capsys.readouterr().out
    text = " ".join(Page(page.read_text("utf-8")).text().split())
    assert f"{320 - num_unused} photos {num_unused} more in no split 100% with a position" in text


@pytest.mark.parametrize(
    ("first", "last", "texts"),
    [
        ("2019-06-01", "2023-03-01", ["2020", "2021", "2022", "2023"]),
        ("2012-06-01", "2023-03-01", ["2014", "2016", "2018", "2020", "2022"]),
        ("1944-06-01", "2043-03-01", ["1960", "1980", "2000", "2020", "2040"]),
        ("2023-01-15", "2023-04-02", ["2023-02", "2023-03", "2023-04"]),
        ("2023-01-15T12:00", "2023-01-18T06:00", ["01-16", "01-17", "01-18"]),
        ("2023-01-15T12:00", "2023-01-15T15:30", ["12:00", "13:00", "14:00", "15:00"]),
        ("2023-01-15T12:00:00", "2023-01-15T12:00:30", ["12:00"]),
    ],
)
def test_ticks_of_time_are_round(first: str, last: str, texts: list[str]) -> None:
    low, high = (np.datetime64(text, "s").astype(float) for text in (first, last))
    ticks = time_ticks(low, high)
    assert [text for _, text in ticks] == texts
    for seconds, text in ticks:
        assert low <= seconds <= high
        assert text in str(np.datetime64(int(seconds), "s"))


def test_times_of_no_calendar_have_no_ticks() -> None:
    assert time_ticks(0.0, 1e15) == time_ticks(-1e15, 0.0) == []


@pytest.mark.parametrize("largest", [3, 47, 100])
def test_the_last_bar_says_that_it_holds_larger_classes(largest: int) -> None:
    sizes = np.append(np.repeat(np.arange(1, largest + 1), 5), [10_000])
    row = ClassCounts(M=10, alpha=30, num_classes=len(sizes), median_images=1.0, num_at_least={}, sizes=sizes)
    chart, caption = _class_chart(row) or pytest.fail("no chart")
    name, count = chart.table[-1]
    assert name.endswith(" or more") and count != "0" and "The last bar also holds larger classes." in caption
    assert len(chart.table) == len(chart.values.rows) <= MAX_ROWS
    counted = sum(int(number.replace(",", "")) for _, number in chart.table)
    assert counted == len(sizes)
