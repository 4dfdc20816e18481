"""The metrics of an evaluation as values for the page: key figures, table, charts, conditions."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

from cosplace.assessment.intervals import Estimate, effective_clusters
from cosplace.assessment.measures import ConditionRow, Measures
from cosplace.assessment.records import few_clusters_text, num_clusters
from cosplace.progress import format_count
from cosplace.report.charts import NUM_COLORS
from cosplace.report.metric_charts import precision_chart, queries_per_independent, reliability_chart
from cosplace.report.words import format_distance

CLUSTERS = {
    "sequence": "Intervals allow for queries of one sequence being alike.",
    "mixed": "Intervals allow for queries of one sequence, or of one place where this is unknown, being alike.",
    "place": "Intervals allow for queries of one place being alike.",
    "radius": "Intervals allow for queries that are near each other being alike.",
    "query": "Intervals take the queries as independent.",
}

CARRIED = {"threshold": "the same threshold", "quantile": "the same share of queries answered"}


def percent_texts(estimate: Estimate) -> tuple[str, str]:
    """A percentage and its interval, which may be approximate; empty without an interval.

    >>> percent_texts(Estimate(66.0, 55.9, 74.7))
    ('66.0%', '[55.9–74.7%]')
    >>> percent_texts(Estimate(2.0, 0.3, 10.5, is_approximate=True))
    ('2.0%', '[0.3–10.5%] (approximate)')
    """
    if not math.isfinite(estimate.value):
        return "unknown", ""
    known = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    return f"{estimate.value:.1f}%", f"[{estimate.low:.1f}–{estimate.high:.1f}%]{estimate.mark}" if known else ""


def _share_texts(estimate: Estimate) -> tuple[str, str]:
    """A number in [0, 1] and its interval; a dash for an unknown one."""
    if math.isnan(estimate.value):
        return "–", ""
    return f"{estimate.value:.3f}", f"[{estimate.low:.3f}–{estimate.high:.3f}]{estimate.mark}"


def distance_texts(estimate: Estimate) -> tuple[str, str]:
    """A distance and its interval; empty without an interval."""
    known = math.isfinite(estimate.low) and not math.isnan(estimate.high)
    high = "∞" if math.isinf(estimate.high) else format_distance(estimate.high)  # of queries without predictions
    interval = f"[{format_distance(estimate.low)} – {high}]{estimate.mark}" if known else ""
    return format_distance(estimate.value), interval


def interval_note(measures: Measures) -> str:
    """What the intervals are."""
    few = few_clusters_text(num_clusters(measures), effective_clusters(measures.clusters), measures.clustered_by)
    parts = [
        "Brackets and bands are 95% intervals; those from few correct or few incorrect queries are approximate.",
        CLUSTERS[measures.clustered_by],
        f"They are {few}." if few else "",
    ]
    return " ".join(part for part in parts if part)


def metric_rows(measures: Measures, radius_m: float) -> list[tuple[str, str, str]]:
    """Return (name, value, interval) of the metrics that are one number, without those that are unknown."""
    rows = [
        (f"{quantile}% of first predictions are within" if quantile != 50 else "median distance to first prediction",
         *distance_texts(estimate))
        for quantile, estimate in sorted(measures.error_m.items())
        if math.isfinite(estimate.value)
    ]  # fmt: skip
    near = f"near misses: first prediction {radius_m:g} to {2 * radius_m:g}\u00a0m away" if radius_m else ""
    precision = f"mean average precision of {format_count(measures.num_predictions, 'prediction')}"
    for name, estimate in ((near, measures.near_misses), (precision, measures.mean_average_precision)):
        if name and math.isfinite(estimate.value):
            rows.append((name, *percent_texts(estimate)))
    if math.isfinite(measures.longest_miss_m):
        queries = format_count(measures.longest_miss_queries, "query", "queries")
        text = f"{format_distance(measures.longest_miss_m)}, {queries}"
        rows.append(("longest part of a sequence without a correct first prediction", text, ""))
    return rows


def scores_section(measures: Measures | None) -> Mapping[str, Any] | None:
    """How well scores tell correct answers from incorrect ones; None without scores."""
    if measures is None or not measures.scores:
        return None
    calibrated = next((score for score in measures.scores if len(score.reliability)), None)
    rows = [
        {
            "name": score.name,
            "cells": [
                percent_texts(one) for one in (score.area, score.recall_at_full_precision, score.recall_at_95_precision)
            ],
            "calibration_error": _share_texts(score.calibration_error),
        }
        for score in measures.scores[:NUM_COLORS]
    ]
    return {
        "rows": rows,
        "precision_chart": precision_chart(measures),
        "reliability_chart": None
        if calibrated is None
        else reliability_chart(calibrated, queries_per_independent(measures)),
        "transfers": [
            (
                CARRIED.get(one.carried, one.carried),
                f"{100 * one.target:g}%",
                percent_texts(one.precision),
                percent_texts(one.recall),
            )
            for one in measures.transfers
        ],
        "transfer_score": measures.transfers[0].score if measures.transfers else "",
        "calibrated": None if calibrated is None else calibrated.name,
        "has_calibration_error": any(not math.isnan(score.calibration_error.value) for score in measures.scores),
    }


def condition_groups(measures: Measures | None) -> list[dict[str, Any]]:
    """The rows of each condition: (value, number of queries, *recall, *distance).

    recall: Recall@1, its interval, and why it is approximate; distance: the median and its interval.
    """
    if measures is None:
        return []
    return [
        {
            "name": condition,
            "rows": [
                (row.value, f"{row.num_queries:,}", *_recall1_texts(row, measures), *distance_texts(row.median_error_m))
                for row in group
            ],
        }
        for condition, group in groupby(measures.conditions, key=lambda row: row.condition)
    ]


def _recall1_texts(row: ConditionRow, measures: Measures) -> tuple[str, str, str]:
    """Recall@1, its interval, and a text if this is from few groups of queries."""
    few = few_clusters_text(row.num_clusters, row.effective_clusters, measures.clustered_by)
    recall1 = replace(row.recall1, is_approximate=False) if few else row.recall1  # the text says why it is
    return *percent_texts(recall1), few
