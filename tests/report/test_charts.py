"""Curves are drawn to scale, from complete and incomplete data."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosplace.report.charts import BOTTOM, HEIGHT, LEFT, TOP, Axis, Series, chart, percent_axis, spread
from cosplace.report.colors import GROUP_COLORS
from cosplace.report.curves import loss_chart, read_epochs, read_losses, recall_chart, validation_chart
from cosplace.report.data import RecallRow
from cosplace.report.metric_charts import distance_chart
from cosplace.retrieval.evaluation import Evaluation
from tests.report.report_samples import METRICS, Page


def curve(svg: str) -> np.ndarray:
    """Return the points (n, 2) of a chart's strong curve, in units of the drawing."""
    path = re.search(r'class="s\d strong" d="M([^"]+)"', svg)
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


def test_recall_chart_draws_at_most_ten_rows_and_always_the_highlighted_one() -> None:
    rows = [RecallRow(name=f"model {number} " + "x" * 60, recalls={1: 50.0}) for number in range(40)]
    svg = recall_chart(rows, "model 39 " + "x" * 60)
    assert svg.count('class="label') == 10
    assert svg.count('class="label s0 strong"') == 1


def test_distance_curve_is_drawn_to_scale(evaluation: Evaluation) -> None:
    first = np.array([[0.0], [np.nan], [80.0], [12.0]])  # a query without predictions is not within any distance
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
    # The axis runs from 1 m to 100 m, so 25 m is at log(25) / log(100).
    fraction = (float(at_radius[1]) - points[0, 0]) / (points[-1, 0] - points[0, 0])
    assert fraction == pytest.approx(np.log(25) / np.log(100), abs=0.002)


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


def test_the_strip_shows_the_group_of_each_epoch() -> None:
    for draw in (loss_chart, validation_chart):
        assert re.findall(r'<rect class="band" fill="([^"]+)"', draw(METRICS) or "") == [
            GROUP_COLORS[group] for group in (0, 1, 0)
        ]
        one_group = [{**row, "group": 0} if "group" in row else row for row in METRICS]
        assert "<rect" not in (draw(one_group) or "<rect")


@pytest.mark.parametrize(("share", "is_at_the_top"), [(0.0, True), (60.0, False)])
def test_a_curve_does_not_run_through_the_label_of_the_threshold(share: float, is_at_the_top: bool) -> None:
    ends, axis = np.array([0.0, 100.0]), percent_axis("%")
    svg = chart([Series(xs=ends, ys=np.full(2, share))], axis, axis, description="", threshold=(50.0, "here"))
    (y,) = re.findall(r'class="note" x="[\d.]+" y="(\d+)"', svg)
    assert (int(y) < HEIGHT / 2) is is_at_the_top


def test_texts_of_a_chart_are_escaped() -> None:
    evil = '<b onclick="x">&'
    axis = Axis(title=evil, low=0, high=1, ticks=[(0, evil)])
    ends = np.array([0.0, 1.0])
    svg = chart([Series(xs=ends, ys=ends, label=evil)], axis, axis, description=evil, threshold=(0.5, evil))
    page = Page(svg)
    assert not page.of("b") and page.of("svg")[0]["aria-label"] == evil
    assert page.text().count(evil) == 7  # two titles, two ticks, the threshold, the label and its tooltip


def test_area_of_dots_grows_with_their_share() -> None:
    axis = Axis(title="", low=0, high=1, ticks=[])
    places = np.array([0.2, 0.5, 0.8])
    dots = Series(xs=places, ys=places, shares=np.array([0.01, 0.25, 1.0]))
    radii = [float(dot["r"]) for dot in Page(chart([dots], axis, axis, description="dots")).of("circle")]
    assert radii == sorted(radii) and len(set(radii)) == 3


@given(st.lists(st.floats(0, 280), max_size=12))
def test_labels_are_spread_apart(places: list[float]) -> None:
    moved = spread(np.array(places), 15, 16, 270)
    assert len(moved) == len(places)
    ordered = np.sort(moved)
    assert (np.diff(ordered) >= 15 - 1e-9).all()
    assert len(places) == 0 or (ordered[0] >= 16 - 1e-9 and ordered[-1] <= 270 + 1e-9)
    if len(places) == 1:
        assert moved[0] == min(max(places[0], 16), 270)
