"""Metrics on the page: intervals in tables and as bands, scores, conditions, and where the numbers come from."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from cosplace.assessment.intervals import UNKNOWN, Estimate, wilson
from cosplace.assessment.measures import ConditionRow, Measures, ScoreMetrics
from cosplace.assessment.metrics import measure
from cosplace.report.charts import MAX_ROWS, Chart
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
from tests.report.report_samples import Page, assert_single_file, charts_of

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


def curves(chart: Chart | None) -> list[dict[str, Any]]:
    """The curves that the script draws."""
    assert chart is not None
    return json.loads(chart.data)["series"]


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
    assert "50.0% [15.0–85.0%] (approximate) Recall@1" in text
    assert "ours 50.0 [15.0, 85.0] (approximate) 75.0" in text
    assert "24.5 m [0.0 m – 300 m] (approximate) median distance" in text
    assert "[50.0–70.0%] (approximate) 0.0% [0.0–5.0%] 1.0% [0.0–6.0%] 0.123 [0.000–0.200] (approximate)" in text
    assert "41.0% [39.0–43.0%] approximate, from 4 queries only 7.2 m" in text  # once


def test_approximate_intervals_are_marked_in_the_values_of_charts(report: Report, measures: Measures) -> None:
    """Those that are marked in the tables above, and no others."""
    recalls = {k: Estimate(50.0, 40.0, 60.0, is_approximate=k == 3) for k in (1, 2, 3)}
    by_radius = tuple(
        Estimate(50.0, 40.0, 60.0, is_approximate=radius > 25) for radius in np.asarray(measures.radii_m).tolist()
    )
    changed = dataclasses.replace(measures, recalls=recalls, recall1_by_radius=by_radius)
    charts = charts_of(report_html(dataclasses.replace(report, measures=changed)))
    found = charts["Recall@N of each row"]
    at = found.columns.index("ours")
    assert [row[at].partition("%")[2] for row in found.rows] == ["", "", " (approximate)"]
    assert [texts[at] for _, texts in found.data["rows"]] == [row[at] for row in found.rows]  # also at the pointer
    for radius, text in charts["Recall@1 by radius"].rows:
        assert text.endswith("]% (approximate)") == (int(radius.removesuffix(" m")) > 25), radius
    for _, text in charts["Share of queries by the distance to their first prediction"].rows:
        assert text.endswith("]% (approximate)")  # from 4 queries


def test_rows_with_intervals_have_bands(report: Report) -> None:
    others = [
        RecallRow(
            name="other", recalls={1: 40.0, 3: 60.0}, intervals={1: Estimate(40, 30, 50), 3: Estimate(60, 55, 70)}
        )
    ]
    html = report_html(Report(title="t", recall_rows=[*report.recall_rows, *others], highlight="ours"))
    chart = charts_of(html)["Recall@N of each row"]
    assert chart.legend == ["chance", "ours", "other"]
    assert ["lows" in curve for curve in chart.data["series"]] == [False, False, True]
    assert chart.data["series"][2] == {"xs": [1, 3], "ys": [40, 60], "lows": [30, 55], "highs": [50, 70]}
    assert chart.columns == ["N", "chance", "ours", "other"]
    assert chart.rows[0] == ["1", "12.5%", "50.0%", "40.0 [30.0, 50.0]%"]
    assert chart.rows[1] == ["2", "23.9%", "75.0%", "–"]
    assert chart.data["rows"][0] == [1, chart.rows[0]]


def test_recall_by_radius_is_drawn_with_its_band(measures: Measures) -> None:
    chart, found = radius_chart(measures, 25.0), measures.recall1_by_radius
    curve = curves(chart)[0]
    assert curve["xs"] == list(measures.radii_m) and len(found) == 100
    for name, part in (("ys", "value"), ("lows", "low"), ("highs", "high")):
        np.testing.assert_allclose(curve[name], [getattr(one, part) for one in found], atol=0.005)
    assert chart is not None
    assert json.loads(chart.data)["rows"][24] == [25, ["25 m", found[24].marked_text(unit="%")]]
    texts = {f"{radius:g} m": one.marked_text(unit="%") for radius, one in zip(measures.radii_m, found, strict=True)}
    shown = [int(row[0].removesuffix(" m")) for row in chart.table]
    assert {1, 2, 5, 10, 25, 50, 100} < set(shown) and MAX_ROWS <= len(shown) <= MAX_ROWS + 7
    assert all(texts[radius] == text for radius, text in chart.table)
    assert json.loads(chart.data)["threshold"] == [25, "used: 25 m"]
    outside = radius_chart(measures, 500.0)
    assert outside is not None and json.loads(outside.data)["threshold"] is None
    unknown = dataclasses.replace(measures, recall1_by_radius=(UNKNOWN,) * 100)
    assert radius_chart(unknown, 25.0) is None


def test_distances_have_the_interval_of_their_share(evaluation: Evaluation) -> None:
    alone = np.arange(4)  # a cluster for each query: the interval of Wilson
    curve = curves(distance_chart(evaluation, alone))[0]
    for limit, low, high in list(zip(curve["xs"], curve["lows"], curve["highs"], strict=True))[::20]:
        within = int((evaluation.distances_m[:, 0] <= limit).sum())
        expected = wilson(within, 4)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert "lows" not in curves(distance_chart(evaluation))[0]


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
    chart = precision_chart(measures)
    first, second = curves(chart)
    assert chart is not None and [one.classes for one in chart.series] == ["s0 d0 strong", "s1 d1 line"]
    assert first["xs"] == second["xs"] == [0, 25, 50] and first["ys"] == second["ys"] == [0, 50, 50]
    assert "lows" in first and "lows" not in second
    assert chart.values.columns == ["recall", "confidence", "ratio"]
    assert ["50%", "50.0%", "50.0%"] in chart.table and ["0%", "0.0%", "0.0%"] in chart.table
    assert precision_chart(dataclasses.replace(measures, scores=())) is None


def test_the_last_recall_of_a_score_is_among_the_values(measures: Measures) -> None:
    few = dataclasses.replace(SCORE, recall=np.array([0.001, 0.0123]), precision=np.array([1.0, 0.5]))
    chart = precision_chart(dataclasses.replace(measures, scores=(few,)))
    assert chart is not None and chart.table == [["1.2%", "50.0%"]]


def test_without_correct_answers_there_is_no_curve_of_precision(report: Report, measures: Measures) -> None:
    wrong = dataclasses.replace(SCORE, recall=np.zeros(3), precision=np.zeros(3), reliability=np.zeros((0, 3)))
    html = report_html(dataclasses.replace(report, measures=dataclasses.replace(measures, scores=(wrong,))))
    assert "No first prediction is correct, so there is no curve of precision over recall." in html
    assert "Precision by recall, for each score" not in charts_of(html)


def test_reliability_has_a_dot_and_an_interval_for_each_bin_with_queries() -> None:
    chart = reliability_chart(SCORE)
    diagonal, dots = curves(chart)
    assert diagonal == {"xs": [0, 100], "ys": [0, 100]}
    assert (dots["xs"], dots["ys"]) == ([20, 90], [25, 100]) and dots["radii"][0] > dots["radii"][1]
    first = wilson(10, 40)
    assert (dots["lows"][0], dots["highs"][0]) == pytest.approx((first.low, first.high), abs=0.01)
    assert chart is not None and chart.values.columns == ["confidence", "queries", "correct"]
    assert chart.table[0] == ("20.0%", "40", f"{first.text()}% (approximate)")
    assert reliability_chart(dataclasses.replace(SCORE, reliability=np.empty((0, 3)))) is None


def test_reliability_of_correlated_queries_has_wider_intervals(measures: Measures) -> None:
    wide = dataclasses.replace(measures, recalls={1: Estimate(50.0, *_twice_as_wide(wilson(2, 4)))})
    assert queries_per_independent(wide) == pytest.approx(4)
    assert queries_per_independent(dataclasses.replace(measures, recalls={1: wilson(4, 4)})) == 1
    chart = reliability_chart(SCORE, 4.0)
    assert chart is not None
    assert chart.table[0][2] == f"{wilson(2.5, 10).text()}% (approximate)"  # type: ignore[arg-type]


def _twice_as_wide(estimate: Estimate) -> tuple[float, float]:
    return 3 * estimate.low / 2 - estimate.high / 2, 3 * estimate.high / 2 - estimate.low / 2


def test_texts_of_unknown_values() -> None:
    assert percent_texts(UNKNOWN) == ("unknown", "")
    assert percent_texts(Estimate(5.0, np.nan, np.nan)) == ("5.0%", "")
    assert distance_texts(Estimate(5.0, np.nan, 7.0)) == ("5.0 m", "")
    assert distance_texts(Estimate(5.0, 4.0, np.inf)) == ("5.0 m", "[4.0 m – ∞]")


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
