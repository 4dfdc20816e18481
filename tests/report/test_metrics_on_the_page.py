"""Metrics on the page: intervals in tables and as bands, scores, conditions, and where the numbers come from."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from cosplace.assessment.intervals import UNKNOWN, Estimate, wilson
from cosplace.assessment.measures import ConditionRow, Measures, ScoreMetrics
from cosplace.assessment.metrics import measure
from cosplace.report.charts import BOTTOM, HEIGHT, TOP
from cosplace.report.data import RecallRow, Report
from cosplace.report.environment import environment_rows
from cosplace.report.measures_section import distance_texts, percent_texts
from cosplace.report.metric_charts import (
    distance_chart,
    precision_chart,
    precision_interval,
    queries_per_independent,
    radius_chart,
    reliability_chart,
)
from cosplace.report.page import report_html
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from tests.report.report_samples import Page, assert_single_file

SCORE = ScoreMetrics(
    name="confidence",
    recall=np.array([0.0, 0.25, 0.5]),
    precision=np.array([0.0, 0.5, 0.5]),
    threshold=np.array([0.9, 0.8, 0.1]),
    area=Estimate(60.0, 50.0, 70.0),
    recall_at_full_precision=Estimate(0.0, 0.0, 5.0),
    recall_at_95_precision=Estimate(1.0, 0.0, 6.0),
    calibration_error=Estimate(0.123, 0.0, 0.2),
    reliability=np.array([[0.2, 0.25, 40.0], [0.9, 1.0, 10.0], [0.5, 0.0, 0.0]]),
)


@pytest.fixture
def measures(dataset: RetrievalDataset, evaluation: Evaluation) -> Measures:
    night = ConditionRow(
        condition="time of day", value="night <b>", num_queries=1234, num_clusters=4, effective_clusters=3.2,
        recall1=Estimate(41.0, 39.0, 43.0), median_error_m=Estimate(7.25, 5.0, 11.5),
    )  # fmt: skip
    found = measure(evaluation, dataset)
    return dataclasses.replace(
        found,
        recalls={1: Estimate(50.0, 15.0, 85.0), 2: Estimate(75.0, 30.1, 95.4), 3: Estimate(75.0, 30.1, 95.4)},
        error_m={50: Estimate(24.5, 0.0, 300.0), 90: Estimate(300.0, 25.0, 1234.0)},
        mean_average_precision=UNKNOWN,
        scores=(
            SCORE,
            dataclasses.replace(SCORE, name="ratio", calibration_error=UNKNOWN, reliability=np.empty((0, 3))),
        ),
        conditions=(night,),
        longest_miss_m=120.0,
        longest_miss_queries=2,
    )


def band(svg: str) -> np.ndarray:
    """The corners (n, 2) of the first band of a chart, in units of the drawing."""
    path = re.search(r'class="s\d range" d="M([^"]+)z"', svg)
    assert path
    return np.array([[float(number) for number in corner.split()] for corner in path[1].split("L")])


def percent(down: np.ndarray, low: float = 0.0) -> np.ndarray:
    """Values on an axis of percent, from places in the drawing."""
    return low + (100 - low) * (HEIGHT - BOTTOM - down) / (HEIGHT - BOTTOM - TOP)


def tips(svg: str) -> list[str]:
    return re.findall(r'data-tip="([^"]+)"', svg)


def test_intervals_are_in_the_figures_and_the_table(report: Report, measures: Measures) -> None:
    html = report_html(dataclasses.replace(report, measures=measures))
    assert_single_file(html)
    text = Page(html).text()
    assert "50.0% [15.0–85.0%] Recall@1" in text
    assert "24.5 m [0.0 m – 300 m] median distance to the first prediction" in text
    assert "ours 50.0 [15.0, 85.0] 75.0 [30.1, 95.4] 75.0 [30.1, 95.4]" in text
    assert "Brackets and bands are 95% intervals; those from few" in text
    assert "90% of first predictions are within 300 m [25.0 m – 1.2 km]" in text
    assert "longest part of a sequence without a correct first prediction 120 m, 2 queries" in text
    assert "mean average precision" not in text  # unknown
    assert "confidence 60.0% [50.0–70.0%] 0.0% [0.0–5.0%] 1.0% [0.0–6.0%] 0.123 [0.000–0.200]" in text
    assert "night <b> 1,234 41.0% [39.0–43.0%] approximate, from 4 queries only 7.2 m" in text


def test_approximate_intervals_are_marked_on_the_page(report: Report, measures: Measures) -> None:
    def few(estimate: Estimate) -> Estimate:
        return dataclasses.replace(estimate, is_approximate=True)

    score = measures.scores[0]
    changed = dataclasses.replace(
        measures,
        recalls={n: few(one) for n, one in measures.recalls.items()},
        error_m={quantile: few(one) for quantile, one in measures.error_m.items()},
        scores=(dataclasses.replace(score, area=few(score.area), calibration_error=few(score.calibration_error)),),
        conditions=tuple(
            dataclasses.replace(row, recall1=few(row.recall1), median_error_m=few(row.median_error_m))
            for row in measures.conditions
        ),
    )
    text = Page(report_html(dataclasses.replace(report, measures=changed))).text()
    assert "50.0% [15.0–85.0%, approximate] Recall@1" in text
    assert "ours 50.0 [15.0, 85.0] (approximate) 75.0" in text
    assert "24.5 m [0.0 m – 300 m, approximate] median distance" in text
    assert "[50.0–70.0%, approximate] 0.0% [0.0–5.0%] 1.0% [0.0–6.0%] 0.123 [0.000–0.200, approximate]" in text
    assert "41.0% [39.0–43.0%] approximate, from 4 queries only 7.2 m" in text  # once


def test_rows_with_intervals_have_bands(report: Report) -> None:
    others = [
        RecallRow(
            name="other", recalls={1: 40.0, 3: 60.0}, intervals={1: Estimate(40, 30, 50), 3: Estimate(60, 55, 70)}
        )
    ]
    html = report_html(Report(title="t", recall_rows=[*report.recall_rows, *others], highlight="ours"))
    corners = band(html)
    np.testing.assert_allclose(percent(corners[:, 1]), [50, 70, 55, 30], atol=0.2)
    assert html.count(" range") == 1
    assert "Recall@1\nours: 50.0%\nother: 40.0 [30.0, 50.0]%\nchance: 12.5%" in tips(html)


def test_recall_by_radius_is_drawn_with_its_band(measures: Measures) -> None:
    svg = radius_chart(measures, 25.0)
    assert svg is not None
    corners, found = band(svg), measures.recall1_by_radius
    assert len(corners) == 2 * len(measures.radii_m) == 200
    np.testing.assert_allclose(percent(corners[:100, 1]), [one.high for one in found], atol=0.2)
    np.testing.assert_allclose(percent(corners[100:, 1][::-1]), [one.low for one in found], atol=0.2)
    assert tips(svg)[24] == f"within 25 m\n{found[24].text()}%"
    assert "used: 25 m" in svg and "used:" not in (radius_chart(measures, 500.0) or "")
    unknown = dataclasses.replace(measures, recall1_by_radius=(UNKNOWN,) * 100)
    assert radius_chart(unknown, 25.0) is None


def test_distances_have_the_interval_of_their_share(evaluation: Evaluation) -> None:
    alone = np.arange(4)  # a cluster for each query: the interval of Wilson
    svg = distance_chart(evaluation, alone)
    assert svg is not None
    corners = band(svg)
    num = len(corners) // 2
    highs, lows = percent(corners[:num, 1]), percent(corners[num:, 1][::-1])
    limits = np.geomspace(1, 100 if evaluation.distances_m[:, 0].max() <= 100 else 1000, num)
    for place in (0, num // 2, num - 1):
        within = int((evaluation.distances_m[:, 0] <= limits[place]).sum())
        expected = wilson(within, 4)
        assert (lows[place], highs[place]) == pytest.approx((expected.low, expected.high), abs=0.2)
    assert " range" not in (distance_chart(evaluation) or "")


def test_precision_interval_is_that_of_wilson_for_independent_queries(measures: Measures) -> None:
    # 4 queries, recall 0.5, precision 0.5: 2 of 4 answers are correct.
    alone = dataclasses.replace(measures, recalls={1: wilson(2, 4)})
    lows, highs = precision_interval(alone, SCORE)
    assert (lows[2], highs[2]) == pytest.approx((wilson(2, 4).low, wilson(2, 4).high))
    assert (lows[1], highs[1]) == pytest.approx((wilson(1, 2).low, wilson(1, 2).high))
    assert (lows[0], highs[0]) == pytest.approx((wilson(0, 1).low, wilson(0, 1).high))
    wider = Estimate(50.0, 50 - 2 * (50 - wilson(2, 4).low), 50 + 2 * (wilson(2, 4).high - 50))
    lows, highs = precision_interval(dataclasses.replace(measures, recalls={1: wider}), SCORE)
    assert (lows[2], highs[2]) == pytest.approx((wilson(0.5, 1).low, wilson(0.5, 1).high))  # type: ignore[arg-type]


def test_scores_are_drawn_in_different_lines(measures: Measures) -> None:
    svg = precision_chart(measures)
    assert svg is not None
    assert 'class="s0 strong"' in svg and 'class="s1 dashed"' in svg and svg.count(" range") == 1
    assert "recall 50%\nconfidence: 50.0%\nratio: 50.0%" in tips(svg)
    assert precision_chart(dataclasses.replace(measures, scores=())) is None


def test_reliability_has_a_dot_and_an_interval_for_each_bin_with_queries() -> None:
    svg = reliability_chart(SCORE)
    assert svg is not None
    assert svg.count("<circle") == svg.count('class="s0 whisker"') == 2
    first = wilson(10, 40)
    line = re.search(r'whisker" d="M[\d.]+ ([\d.]+)V([\d.]+)"', svg)
    assert line
    np.testing.assert_allclose(percent(np.array(line.groups(), float)), [first.low, first.high], atol=0.2)
    assert tips(svg)[0].startswith("confidence 20.0%, 40 queries\ncorrect: 25.0 [")
    assert reliability_chart(dataclasses.replace(SCORE, reliability=np.empty((0, 3)))) is None


def test_reliability_of_correlated_queries_has_wider_intervals(measures: Measures) -> None:
    wide = dataclasses.replace(measures, recalls={1: Estimate(50.0, *_twice_as_wide(wilson(2, 4)))})
    assert queries_per_independent(wide) == pytest.approx(4)
    assert queries_per_independent(dataclasses.replace(measures, recalls={1: wilson(4, 4)})) == 1
    svg = reliability_chart(SCORE, 4.0)
    assert svg is not None
    shown = re.search(r"correct: 25.0 \[([\d.]+), ([\d.]+)\]", tips(svg)[0])
    expected = wilson(2.5, 10)  # type: ignore[arg-type]
    assert shown
    np.testing.assert_allclose(np.array(shown.groups(), float), [expected.low, expected.high], atol=0.06)


def _twice_as_wide(estimate: Estimate) -> tuple[float, float]:
    return 3 * estimate.low / 2 - estimate.high / 2, 3 * estimate.high / 2 - estimate.low / 2


def test_texts_of_unknown_values() -> None:
    assert percent_texts(UNKNOWN) == ("unknown", "")
    assert percent_texts(Estimate(5.0, np.nan, np.nan)) == ("5.0%", "")
    assert distance_texts(Estimate(5.0, np.nan, 7.0)) == ("5.0 m", "")
    assert distance_texts(Estimate(5.0, 4.0, np.inf)) == ("5.0 m", "4.0 m – ∞")


@pytest.mark.parametrize(
    ("environment", "rows"),
    [
        ({}, []),
        ({"seed": 0, "git": None, "ok": True, "seconds": {"total": 1.23456789}},
         [("seed", "0"), ("git", "unknown"), ("ok", "yes"), ("seconds: total", "1.23457")]),
        ({"environment": {"libraries": {"torch": "2.6", "simplejpeg": None}, "device_name": "a\nb"}},
         [("environment: libraries", "torch 2.6"), ("environment: device name", "a\\nb")]),
        ({"list": [1, "x", 2.5], "empty": ""}, [("list", "1, x, 2.5")]),
        ({"long": "x" * 5000}, [("long", "x" * 999 + "…")]),
    ],
)  # fmt: skip
def test_environment_becomes_rows(environment: dict[str, Any], rows: list[tuple[str, str]]) -> None:
    assert environment_rows(environment) == rows
    html = report_html(Report(title="t", environment=environment))
    assert ('id="environment"' in html) == bool(rows)
