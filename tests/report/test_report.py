"""The report: one file that stands alone, shows what it was given, and cannot be hijacked by a file name."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosplace.report.charts import BOTTOM, HEIGHT, LEFT, TOP, spread
from cosplace.report.contents import RecallRow, Report, format_distance
from cosplace.report.curves import distance_chart, read_epochs, read_losses, recall_chart
from cosplace.report.page import report_html, write_report
from cosplace.report.thumbnails import save_predictions
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from tests.report.report_samples import (
    EAST,
    METRICS,
    NORTH,
    Page,
    assert_stands_alone,
    make_dataset,
    make_evaluation,
    make_groups,
    make_report,
    write_photo,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalDataset:
    return make_dataset(tmp_path_factory.mktemp("test"))


@pytest.fixture(scope="module")
def evaluation(dataset: RetrievalDataset) -> Evaluation:
    return make_evaluation(dataset)


@pytest.fixture(scope="module")
def report(dataset: RetrievalDataset, evaluation: Evaluation) -> Report:
    return make_report(dataset, evaluation)


def test_page_stands_alone_and_shows_everything(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    write_report(path, report)
    html = path.read_text("utf-8")
    assert_stands_alone(html)
    text = Page(html).text()
    for words in (
        "A run",
        "Trained for three epochs.",
        "Best validation Recall@1: 55.5 % after epoch 2.",
        "Time of all epochs together: 2 minutes.",
        "group 0: 60 classes, 600 photos",
        "group 1: 30 classes, 300 photos",
        "1 group not used: 10 classes",
        "1,000 of 1,007",
        "ResNet18",
    ):
        assert words in text


def test_same_input_gives_same_bytes(report: Report) -> None:
    assert report_html(report) == report_html(report)


def test_every_part_may_be_missing(report: Report) -> None:
    sections = {"recalls", "training", "maps", "predictions", "settings"}

    def ids(some: Report) -> set[str]:
        html = report_html(some)
        assert_stands_alone(html)
        return {section["id"] for section in Page(html).of("section")}

    assert ids(report) == sections
    assert ids(Report(title="nothing")) == set()
    assert ids(Report(title="train", metrics=METRICS)) == {"training"}
    assert ids(Report(title="groups", groups=report.groups, groups_used=99)) == {"maps"}
    assert ids(Report(title="places", dataset=report.dataset)) == {"maps"}
    eval_only = Report(
        title="eval", recall_rows=report.recall_rows, dataset=report.dataset, evaluation=report.evaluation
    )
    assert ids(eval_only) == {"recalls", "maps", "predictions"}
    assert ids(Report(title="empty groups", groups=make_groups([], []))) == set()


HOSTILE = '<script>alert(1)</script>"\' onload="x" <img src=x onerror=alert(2)>&amp;'


def test_hostile_texts_are_only_text(report: Report) -> None:
    hostile = dataclasses.replace(
        report,
        title=HOSTILE,
        summary=[HOSTILE],
        recall_rows=[RecallRow(name=HOSTILE, recalls={1: 1.0, 5: 2.0}, note=HOSTILE)],
        highlight=HOSTILE,
        settings={HOSTILE: HOSTILE},
    )
    html = report_html(hostile)
    assert_stands_alone(html)
    assert Page(html).text().count("<script>alert(1)</script>") >= 6


def test_hostile_file_names_are_only_text(tmp_path: Path) -> None:
    evil = '"><script>alert(1)<'
    write_photo(tmp_path / "queries", EAST, NORTH, evil)
    write_photo(tmp_path / "database", EAST + 5, NORTH, evil)
    # A name that is no UTF-8 is legal on Linux, but no page of text can hold it.
    query = next((tmp_path / "queries").iterdir())
    query.rename(query.with_name(query.name.replace("@.jpg", os.fsdecode(b"\xff@.jpg"))))
    dataset = open_retrieval_dataset(tmp_path)
    evaluation = evaluate_descriptors(
        np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), dataset, recall_values=[1]
    )
    write_report(tmp_path / "report.html", Report(title="evil", dataset=dataset, evaluation=evaluation))
    html = (tmp_path / "report.html").read_text("utf-8")
    assert_stands_alone(html)
    about = [image["alt"] for image in Page(html).of("img")]
    assert sum(evil in text for text in about) == 2
    save_predictions(tmp_path / "preds", dataset, evaluation, 1)
    assert b"\xff@.jpg" in (tmp_path / "preds" / "predictions.csv").read_bytes()


# --- figures ---------------------------------------------------------------------------------------------------------


def test_recall_table_shows_one_decimal_and_marks_our_row() -> None:
    rows = [
        RecallRow(name="chance", recalls={1: 0.04, 5: 12.349}, note="random"),
        RecallRow(name="ours", recalls={1: 66.66, 10: 100.0}),
    ]
    html = report_html(Report(title="t", recall_rows=rows, highlight="ours"))
    table = html[html.index("<table>") : html.index("</table>")]
    lines = [" ".join(re.sub(r"<[^>]*>", " ", "<tr" + line).split()) for line in table.split("<tr")[1:]]
    assert lines == ["R@1 R@5 R@10", "chance random 0.0 12.3 –", "ours 66.7 – 100.0"]
    assert table.count('class="ours"') == 1 and table.index('class="ours"') > table.index("chance")


def curve(svg: str, kind: str = "strong") -> np.ndarray:
    """The points (n, 2) of a chart's curve, in units of the drawing."""
    path = re.search(rf'class="s\d {kind}" d="M([^"]+)"', svg)
    assert path
    return np.array([[float(number) for number in point.split()] for point in path[1].split("L")])


def test_recall_curve_is_drawn_to_scale() -> None:
    svg = recall_chart([RecallRow(name="ours", recalls={1: 0.0, 10: 50.0, 100: 100.0})], "ours")
    points = curve(svg)
    assert points[2, 1] == TOP
    steps = np.diff(points, axis=0)  # equal ratios of N and equal percentages: one straight line
    np.testing.assert_allclose(steps[0], steps[1], atol=0.2)
    assert steps[0, 0] > 0 > steps[0, 1]
    axis = re.search(rf'class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H([\d.]+)', svg)
    assert axis and points[0].tolist() == [LEFT, HEIGHT - BOTTOM] and points[2, 0] == float(axis[1])


def test_recall_chart_takes_one_value_many_rows_and_long_names() -> None:
    rows = [RecallRow(name=f"model {number} " + "x" * 60, recalls={1: 50.0}) for number in range(40)]
    svg = recall_chart(rows, "model 39 " + "x" * 60)
    assert svg.count('class="label') == 10
    assert svg.count("bold") == 1
    html = report_html(Report(title="t", recall_rows=rows))
    assert "10 of 40 rows are drawn" in html


def test_distance_curve_is_drawn_to_scale(evaluation: Evaluation) -> None:
    first = np.array([[0.0], [np.nan], [80.0], [12.0]])  # a query without prediction is never within any distance
    svg = distance_chart(dataclasses.replace(evaluation, distances_m=first))
    assert svg is not None
    points = curve(svg)
    at_radius = re.search(r'class="threshold" d="M([\d.]+)', svg)
    assert at_radius
    floor = HEIGHT - BOTTOM

    def share_at(x: float) -> float:
        return 100 * (floor - np.interp(x, points[:, 0], points[:, 1])) / (floor - TOP)

    assert share_at(float(at_radius[1])) == pytest.approx(50, abs=0.2)
    assert share_at(points[0, 0]) == pytest.approx(25, abs=0.2)
    assert share_at(points[-1, 0]) == pytest.approx(75, abs=0.2)
    # From 1 m to 100 m: 25 m lies at log(25) / log(100) of the way.
    way = (float(at_radius[1]) - points[0, 0]) / (points[-1, 0] - points[0, 0])
    assert way == pytest.approx(np.log(25) / np.log(100), abs=0.002)


def test_no_distance_curve_without_predictions(evaluation: Evaluation) -> None:
    assert distance_chart(dataclasses.replace(evaluation, distances_m=np.full((4, 3), np.nan))) is None


def test_losses_lie_evenly_over_their_epoch_and_a_repeated_step_counts_once() -> None:
    repeated = [*METRICS, {"kind": "loss", "step": 10, "epoch": 0, "loss": 7.0}]
    xs, ys = read_losses(repeated)
    np.testing.assert_allclose(xs, [0.5, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(ys, [7.0, 10.0, 9.0, 8.0])


def test_epochs_that_ran_twice_count_once_and_gaps_are_tolerated() -> None:
    odd: list[dict[str, Any]] = [
        {},
        {"kind": "epoch"},
        {"kind": "epoch", "epoch": 0},
        {"kind": "epoch", "epoch": 1, "recalls": None, "loss": float("nan")},
        {"kind": "loss", "epoch": 0, "loss": float("inf")},
        {"kind": "loss", "loss": 3.0},
        {"kind": "other", "epoch": 5, "loss": 1.0},
        {"kind": "epoch", "epoch": 1, "recalls": {"1": 0.0}},
    ]
    epochs = read_epochs(odd)
    assert [epoch.number for epoch in epochs] == [0, 1]
    assert epochs[1].recalls == {1: 0.0} and epochs[1].loss is None
    assert len(read_losses(odd)[0]) == 0
    html = report_html(Report(title="t", metrics=odd))
    assert "Best validation Recall@1: 0.0 % after epoch 2." in html


def test_groups_are_marked_along_the_epochs() -> None:
    html = report_html(Report(title="t", metrics=METRICS))
    strip = re.findall(r'<rect class="g(\d)"', html)
    assert strip == ["0", "1", "0"] * 2  # under the loss, and under the recalls
    one_group = [{**row, "group": 0} if "group" in row else row for row in METRICS]
    assert '<rect class="g' not in report_html(Report(title="t", metrics=one_group))


@given(st.lists(st.floats(0, 280), max_size=12))
def test_labels_are_spread_apart(places: list[float]) -> None:
    moved = spread(np.array(places), 15, 16, 270)
    assert len(moved) == len(places)
    ordered = np.sort(moved)
    assert (np.diff(ordered) >= 15 - 1e-9).all()
    assert len(places) == 0 or (ordered[0] >= 16 - 1e-9 and ordered[-1] <= 270 + 1e-9)
    if len(places) == 1:
        assert moved[0] == min(max(places[0], 16), 270)


@pytest.mark.parametrize(
    ("meters", "text"),
    [(0.0, "0.0 m"), (24.96, "25.0 m"), (99.94, "99.9 m"), (99.96, "100 m"), (812.4, "812 m"), (999.6, "1.0 km"),
     (1_234_567.0, "1,234.6 km"), (float("nan"), "unknown distance")],
)  # fmt: skip
def test_distances_in_words(meters: float, text: str) -> None:
    assert format_distance(meters) == text
