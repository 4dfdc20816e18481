"""Metrics of an evaluation as JSON, where unknown numbers are null, and as lines for the terminal.  Pure functions."""

import math
from typing import Any

import numpy as np

from cosplace.assessment.intervals import FEW_CLUSTERS, LEVEL, Estimate, effective_clusters
from cosplace.assessment.measures import Measures, ScoreMetrics
from cosplace.progress import format_count

SCHEMA_VERSION = 1  # of results.json
RADII_SHOWN = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100)  # meters
CLUSTER_NAMES = {
    "sequence": ("sequence", "sequences"),
    "mixed": ("sequence or cell", "sequences and cells"),  # of queries without a sequence
    "place": ("cell of 50 m", "cells of 50 m"),
    "radius": ("cell of twice the radius", "cells of twice the radius"),
    "query": ("query", "queries"),
}


def intervals_record(measures: Measures) -> dict[str, Any]:
    """Intervals of the recalls, and what was drawn together."""
    return {
        "level": LEVEL,
        "clustered_by": measures.clustered_by,
        "num_clusters": num_clusters(measures),
        "approximate": effective_clusters(measures.clusters) < FEW_CLUSTERS,
        "recalls": {str(n): _interval(one) for n, one in measures.recalls.items()},
        "approximate_recalls": [n for n, one in measures.recalls.items() if one.is_approximate],
    }


def metrics_record(measures: Measures) -> dict[str, Any]:
    """All other metrics."""
    by_radius = dict(zip(measures.radii_m.tolist(), measures.recall1_by_radius, strict=True))
    return {
        "error_m": {str(quantile): _record(one) for quantile, one in measures.error_m.items()},
        "near_misses": _record(measures.near_misses),
        "mean_average_precision": _record(measures.mean_average_precision),
        "num_predictions": measures.num_predictions,
        "recall1_by_radius_m": {str(limit): _record(by_radius[limit]) for limit in RADII_SHOWN if limit in by_radius},
        "scores": [_score_record(score) for score in measures.scores],
        "transfers": [
            {
                "score": one.score, "carried": one.carried, "target": one.target,
                "precision": _record(one.precision), "recall": _record(one.recall),
            }
            for one in measures.transfers
        ],
        "conditions": [
            {
                "condition": row.condition, "value": row.value, "num_queries": row.num_queries,
                "num_clusters": row.num_clusters,
                "recall1": _record(row.recall1), "median_error_m": _number(row.median_error_m.value),
                "median_error_interval_m": _interval(row.median_error_m),
                "median_error_approximate": row.median_error_m.is_approximate,
            }
            for row in measures.conditions
        ],
        "longest_miss": {"meters": _number(measures.longest_miss_m), "queries": measures.longest_miss_queries}
        if math.isfinite(measures.longest_miss_m)
        else None,
    }  # fmt: skip


def _score_record(score: ScoreMetrics) -> dict[str, Any]:
    return {
        "name": score.name,
        "average_precision": _record(score.area),
        "recall_at_full_precision": _record(score.recall_at_full_precision),
        "recall_at_95_precision": _record(score.recall_at_95_precision),
        "calibration_error": _number(score.calibration_error.value),
        "calibration_error_interval": _interval(score.calibration_error),
        "calibration_error_approximate": score.calibration_error.is_approximate,
        "reliability": [[_number(value) for value in row] for row in score.reliability.tolist()],
    }


def _record(estimate: Estimate) -> dict[str, float | bool | None]:
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: _number(number) for name, number in numbers.items()} | {"approximate": estimate.is_approximate}


def _interval(estimate: Estimate) -> list[float | None]:
    return [_number(estimate.low), _number(estimate.high)]


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def num_clusters(measures: Measures) -> int:
    """The number of groups of queries that are drawn together."""
    return len(np.unique(measures.clusters))


def few_clusters_text(count: int, effective: float, clustered_by: str) -> str:
    """What to say beside an interval from too few groups of queries; "" for enough.

    effective: see `effective_clusters`.

    >>> few_clusters_text(6, 5.2, "place")
    'approximate, from 6 cells of 50 m only'
    >>> few_clusters_text(60, 26.0, "sequence")
    'approximate, from 60 sequences of very unequal size'
    """
    if effective >= FEW_CLUSTERS:
        return ""
    groups = _clusters(count, clustered_by)
    return f"approximate, from {groups} {'only' if count < FEW_CLUSTERS else 'of very unequal size'}"


def _clusters(count: int, clustered_by: str) -> str:
    return format_count(count, *CLUSTER_NAMES[clustered_by])


def summary_lines(measures: Measures, radius_m: float) -> list[str]:
    """Recalls with intervals and the main metrics, on a few lines; without distances where they are unknown."""
    count = num_clusters(measures)
    together = (
        "" if measures.clustered_by == "query" else f" (queries are in {_clusters(count, measures.clustered_by)})"
    )
    few = few_clusters_text(count, effective_clusters(measures.clusters), measures.clustered_by)
    recalls = ", ".join(
        f"R@{n} [{one.low:.1f}, {one.high:.1f}]{'' if few else one.mark}" for n, one in measures.recalls.items()
    )
    lines = [f"95% intervals: {recalls}{f' ({few})' if few else together}"]
    precision = f"mAP@{measures.num_predictions} {measures.mean_average_precision.marked_text()}"
    if measures.has_distances:
        median, ninety = measures.error_m[50], measures.error_m[90]
        lines.append(f"first prediction: median error {_meters(median)}, 90% within {_meters(ninety)}")
        if radius_m:
            near = f"near misses ({radius_m:g} to {2 * radius_m:g} m): {measures.near_misses.marked_text(unit='%')}"
            precision = f"{near}, {precision}"
    lines.append(precision)
    if math.isfinite(measures.longest_miss_m):
        lines.append(
            f"longest stretch without a correct answer: {measures.longest_miss_m:,.0f} m, "
            f"{measures.longest_miss_queries:,} queries"
        )
    score = measures.scores[0] if measures.scores else None
    if score is not None and math.isfinite(score.area.value):
        lines.append(
            f"precision–recall by {score.name}: average precision {score.area.marked_text()}, recall "
            f"{score.recall_at_full_precision.marked_text()} at 100% precision, "
            f"{score.recall_at_95_precision.marked_text()} at 95%"
        )
    if score is not None and math.isfinite(score.calibration_error.value):
        lines.append(f"calibration error (ECE) of {score.name}: {score.calibration_error.marked_text(3)}")
    return lines


def _meters(estimate: Estimate) -> str:
    ends = [f"{end:,.1f}" if math.isfinite(end) else "∞" for end in (estimate.value, estimate.low, estimate.high)]
    return f"{ends[0]} m [{ends[1]}, {ends[2]}]{estimate.mark}"
