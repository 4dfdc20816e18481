"""Charts have the right values, from complete and incomplete data, in the browser and in their tables."""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
import pytest

from cosplace.assessment.intervals import Estimate
from cosplace.report.charts import (
    MAX_ROWS,
    MAX_TIPS,
    Axis,
    Chart,
    Series,
    Values,
    chart,
    evenly,
    histogram,
    linear_axis,
    percent_axis,
    values_of,
)
from cosplace.report.colors import GROUP_COLORS
from cosplace.report.curves import loss_chart, read_epochs, read_losses, recall_chart, validation_chart
from cosplace.report.data import RecallRow, Report
from cosplace.report.metric_charts import distance_chart
from cosplace.report.page import report_html
from cosplace.report.render import UPLOT
from cosplace.retrieval.evaluation import Evaluation
from tests.report.report_samples import METRICS, Page, assert_single_file, charts_of

UPLOT_SHA256 = {  # of the npm package, 1.6.32
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}


def drawn(found: Chart | None) -> dict[str, Any]:
    """What the script draws."""
    assert found is not None
    return json.loads(found.data)


def test_uplot_is_the_published_file_with_its_license() -> None:
    for name, checksum in UPLOT_SHA256.items():
        assert hashlib.sha256((UPLOT / name).read_bytes()).hexdigest() == checksum
    assert "MIT License" in (UPLOT / "LICENSE").read_text()


def test_recalls_are_drawn_and_listed() -> None:
    rows = [
        RecallRow(name="chance", recalls={1: 0.54321, 10: 5.0}),
        RecallRow(name="ours", recalls={1: 0.0, 10: 50.0, 100: 100.0}, intervals={1: Estimate(0.0, 0.0, 4.56789)}),
    ]
    found = recall_chart(rows, "ours")
    data = drawn(found)
    assert found is not None and [one.classes for one in found.series] == ["s1 d1 line", "s0 d0 strong"]
    assert data["series"] == [{"xs": [1, 10], "ys": [0.54, 5]}, {"xs": [1, 10, 100], "ys": [0, 50, 100]}]
    assert data["x"]["logarithmic"] and (data["x"]["low"], data["x"]["high"]) == (1, 100)
    assert data["x"]["ticks"] == [[1, "1"], [10, "10"], [100, "100"]]
    assert found.values.columns == ["N", "chance", "ours"]
    assert found.table == [["1", "0.5%", "0.0%"], ["10", "5.0%", "50.0%"], ["100", "", "100.0%"]]
    assert data["rows"] == [[1, found.table[0]], [10, found.table[1]], [100, found.table[2]]]


def test_a_recall_chart_has_at_most_ten_rows_in_different_styles_and_always_the_highlighted_one() -> None:
    rows = [RecallRow(name=f"model {number}", recalls={1: 50.0}) for number in range(40)]
    found = recall_chart(rows, "model 39")
    assert found is not None and len({one.classes for one in found.series}) == len(found.series) == 10
    assert found.series[-1].label == "model 39" and found.series[-1].style == "strong"
    assert recall_chart([RecallRow(name="unknown", recalls={1: float("nan")})], None) is None


def test_a_distance_chart_has_the_share_of_queries_within_each_distance(evaluation: Evaluation) -> None:
    first = np.array([[0.0], [np.nan], [80.0], [12.0]])  # a query without predictions is not within any distance
    found = distance_chart(dataclasses.replace(evaluation, distances_m=first))
    data = drawn(found)
    curve, radius = data["series"]
    assert (curve["xs"][0], curve["xs"][-1], data["x"]["high"]) == (1, 100, 100)
    for limit, share in ((1, 25), (25, 50), (79, 50), (100, 75)):
        assert np.interp(limit, curve["xs"], curve["ys"]) == share
    assert data["threshold"] == [25, "correct: 25 m"] and radius == {"xs": [25, 25], "ys": [0, 100]}
    assert "lows" not in curve
    assert found is not None and found.table[0] == ["1.0 m", "25.0%"] and found.table[-1] == ["100 m", "75.0%"]
    assert len(found.table) == MAX_ROWS


def test_no_distance_curve_without_predictions(evaluation: Evaluation) -> None:
    assert distance_chart(dataclasses.replace(evaluation, distances_m=np.full((4, 3), np.nan))) is None


def test_losses_are_evenly_spread_over_their_epoch_and_a_repeated_step_counts_once() -> None:
    repeated = [*METRICS, {"kind": "loss", "step": 10, "epoch": 0, "loss": 7.0}]
    xs, ys = read_losses(repeated)
    np.testing.assert_allclose(xs, [0.5, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(ys, [7.0, 10.0, 9.0, 8.0])


def test_epochs_that_ran_twice_count_once_and_missing_values_are_tolerated(odd_metrics: list[dict[str, Any]]) -> None:
    epochs = read_epochs(odd_metrics)
    assert [epoch.number for epoch in epochs] == [0, 1]
    assert epochs[1].recalls == {1: 0.0} and epochs[1].loss is None
    assert len(read_losses(odd_metrics)[0]) == 0


def test_many_losses_are_averaged_over_a_pale_curve() -> None:
    rng = np.random.default_rng(0)
    losses = rng.normal(9, 1, 5000)
    rows = [{"kind": "loss", "step": step, "epoch": 0, "loss": loss} for step, loss in enumerate(losses.tolist())]
    found = loss_chart(rows)
    mean, pale = drawn(found)["series"]
    assert found is not None and [one.style for one in found.series] == ["strong", "faint"]
    assert (len(mean["xs"]), len(pale["xs"])) == (60, 400)
    assert np.std(mean["ys"]) < np.std(pale["ys"]) < 1 and np.mean(mean["ys"]) == pytest.approx(losses.mean(), abs=0.05)
    assert found.table[-1][0] == f"{mean['xs'][-1]:.4g}" and found.table[-1][1] == f"{mean['ys'][-1]:.4g}"


def test_the_strip_shows_the_group_of_each_epoch() -> None:
    for draw in (loss_chart, validation_chart):
        found = draw(METRICS)
        assert drawn(found)["strip"] == [
            [epoch, epoch + 1, GROUP_COLORS[group]] for epoch, group in enumerate((0, 1, 0))
        ]
        assert found is not None and found.values.columns[-1] == "group"
        assert {(row[0], row[-1]) for row in found.table} >= {("1", "0"), ("2", "1"), ("3", "0")}
        one_group = [{**row, "group": 0} if "group" in row else row for row in METRICS]
        found = draw(one_group)
        assert drawn(found)["strip"] == [] and found is not None and "group" not in found.values.columns


def test_a_loss_in_the_middle_of_an_epoch_has_its_group() -> None:
    found = loss_chart(METRICS)
    assert found is not None and [(row[0], row[-1]) for row in found.table[:3]] == [
        ("0.5", "0"),
        ("1", "0"),
        ("2", "1"),
    ]


def test_bars_have_their_counts_and_names() -> None:
    edges, names = np.array([0.0, 10.0, 20.0, 30.0]), ["0 to 10", "10 to 20", "20 to 30"]
    found = histogram(edges, np.array([1, 0, 1234]), names, linear_axis("size", 0, 30), "photos", description="sizes")
    data = drawn(found)
    assert data["series"] == [{"xs": [5, 15, 25], "ys": [1, 0, 1234]}] and found.series[0].style == "bar"
    assert data["columns"] == ["size", "photos"] and data["rows"][2] == [25, ["20 to 30", "1,234"]]
    assert found.table == [("0 to 10", "1"), ("10 to 20", "0"), ("20 to 30", "1,234")]


@pytest.mark.parametrize(
    ("values", "low", "high", "logarithmic", "rounded"),
    [
        ([1.23456, 99.999, -0.0], 0, 100, False, [1.23, 100, 0]),
        ([0.123456], 0, 1, False, [0.1235]),
        ([1_600_012_345.0], 1.5e9, 1.7e9, False, [1_600_010_000]),
        ([1.23456, 123_456.0], 1, 1e6, True, [1.235, 123_500]),
    ],
)
def test_numbers_are_short_but_exact_enough_to_be_drawn(
    values: list[float], low: float, high: float, logarithmic: bool, rounded: list[float]
) -> None:
    axis = Axis(title="", low=low, high=high, ticks=[], logarithmic=logarithmic)
    one = Series(label="a", xs=np.array(values), ys=np.zeros(len(values)))
    found = drawn(chart([one], axis, percent_axis(""), values_of([one], "x"), description=""))
    assert found["series"][0]["xs"] == rounded
    assert all(isinstance(number, int) for number in found["series"][0]["ys"])


def test_rows_are_chosen_evenly_with_both_ends() -> None:
    assert evenly([1, 2, 3], 5) == [1, 2, 3]
    assert evenly(range(101), 5) == [0, 25, 50, 75, 100]
    many = Series(label="a", xs=np.arange(1000.0), ys=np.zeros(1000))
    axis = linear_axis("", 0, 1000)
    found = chart([many], axis, percent_axis(""), values_of([many], "x"), description="")
    assert len(found.table) == MAX_ROWS and len(drawn(found)["rows"]) == MAX_TIPS
    assert [found.table[0][0], found.table[-1][0]] == ["0", "999"]


def test_texts_of_a_chart_cannot_end_its_data_or_its_table() -> None:
    evil = "</script><b onclick='x'>&\u2028\udcff"
    recalls = {1: 1.0, 5: 2.0}
    html = report_html(Report(title="t", recall_rows=[RecallRow(name=evil, recalls=recalls)] * 2))
    assert_single_file(html)
    assert not Page(html).of("b")
    one = charts_of(html)["Recall@N of each row"]
    shown = evil.replace("\udcff", r"\xff")
    assert one.legend == [shown] * 2 and one.columns == ["N", shown, shown]
    assert one.data["columns"] == ["N", shown, shown]


def test_pages_have_uplot_only_if_they_have_a_chart(report: Report) -> None:
    assert "uPlot" in report_html(report)
    without = report_html(Report(title='<div class="chart">', groups=report.groups, groups_used=1))
    assert "uPlot" not in without and "u-legend" not in without and not Page(without).of("script")


def test_area_of_dots_grows_with_their_share() -> None:
    axis = Axis(title="", low=0, high=1, ticks=[])
    places = np.array([0.2, 0.5, 0.8])
    dots = Series(xs=places, ys=places, shares=np.array([0.01, 0.25, 1.0]))
    radii = drawn(chart([dots], axis, axis, Values(columns=["x"], rows=[]), description="dots"))["series"][0]["radii"]
    assert radii == sorted(radii) and len(set(radii)) == 3
