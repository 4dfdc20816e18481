"""Charts of the metrics of one evaluation, with their 95% intervals as bands.  Pure.

Legend: Q queries, n points of a curve.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cosplace.assessment.intervals import clustered_share, wilson
from cosplace.assessment.measures import Measures, ScoreMetrics
from cosplace.report.charts import NUM_COLORS, Axis, Chart, Series, Values, chart, percent, percent_axis, values_of
from cosplace.report.words import format_distance
from cosplace.retrieval.evaluation import Evaluation

DISTANCE_TICKS_M = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
RADIUS_TICKS_M = (1, 2, 5, 10, 25, 50, 100)
NUM_POINTS = 80  # of the curve of distances
MAX_POINTS = 300  # of a precision-recall curve


def radius_chart(measures: Measures, radius_m: float) -> Chart | None:
    """Chart of Recall@1 over the radius within which a prediction counts as correct; None without values."""
    radii, found = np.asarray(measures.radii_m, np.float64), measures.recall1_by_radius
    if len(radii) < 2 or not all(math.isfinite(one.value) for one in found):
        return None
    values, lows, highs = (np.array([getattr(one, part) for one in found]) for part in ("value", "low", "high"))
    marks = np.array([one.is_approximate for one in found])
    curve = Series(label="Recall@1", xs=radii, ys=values, lows=lows, highs=highs, are_approximate=marks, style="strong")
    ticks = [(tick, str(tick)) for tick in RADIUS_TICKS_M if radii[0] <= tick <= radii[-1]]
    inside = radii[0] <= radius_m <= radii[-1]
    return chart(
        [curve],
        Axis(title="radius, m", low=radii[0], high=radii[-1], ticks=ticks, logarithmic=True),
        percent_axis("Recall@1, % of queries", float(lows.min())),
        replace(values_of([curve], "radius", "{:g} m".format), kept=(*RADIUS_TICKS_M, radius_m)),
        description="Recall@1 by radius",
        threshold=(radius_m, f"used: {radius_m:g} m") if inside else None,
    )


def distance_chart(evaluation: Evaluation, clusters: np.ndarray | None = None) -> Chart | None:
    """Chart of the share of queries whose first prediction is within each distance; None without predictions.

    clusters: (Q,), of queries that are drawn together for the intervals; None for no intervals.
    """
    first = evaluation.distances_m[:, 0]
    known = first[np.isfinite(first)]
    if not len(known):
        return None
    highest = max(float(known.max()), evaluation.positive_dist_threshold * 4, 100.0)
    highest = next((tick for tick in DISTANCE_TICKS_M if tick >= highest), highest)
    limits = np.geomspace(1, highest, NUM_POINTS)
    shares = 100 * np.searchsorted(np.sort(known), limits, side="right") / len(first)
    lows = highs = marks = None
    if clusters is not None:
        found = [clustered_share(first <= limit, clusters) for limit in limits]
        lows, highs = (np.array([getattr(one, end) for one in found]) for end in ("low", "high"))
        marks = np.array([one.is_approximate for one in found])
    curve = Series(label="queries", xs=limits, ys=shares, lows=lows, highs=highs, are_approximate=marks, style="strong")
    x = Axis(
        title="maximum distance to the first prediction",
        low=1,
        high=highest,
        ticks=[(tick, _short_distance(tick)) for tick in DISTANCE_TICKS_M if tick <= highest],
        logarithmic=True,
    )
    radius = evaluation.positive_dist_threshold
    return chart(
        [curve],
        x,
        percent_axis("% of queries"),
        values_of([curve], "within", format_distance),
        description="Share of queries by the distance to their first prediction",
        threshold=(radius, f"correct: {radius:g} m") if radius >= 1 else None,
    )


def _short_distance(meters: float) -> str:
    return f"{meters:g} m" if meters < 1000 else f"{meters / 1000:g} km"


def precision_chart(measures: Measures) -> Chart | None:
    """Chart of precision over recall, one curve per score; None if there are no scores, or no correct answers."""
    scores = [score for score in measures.scores[:NUM_COLORS] if score.recall.any()]
    series = []
    for number, score in enumerate(scores):
        rows = np.unique(np.linspace(0, len(score.recall) - 1, MAX_POINTS).astype(np.int64))
        recall, precision = 100 * score.recall[rows], 100 * score.precision[rows]
        curve = Series(label=score.name, xs=recall, ys=precision, color=number)
        if number == 0:
            lows, highs = precision_interval(measures, score)
            curve = replace(curve, style="strong", lows=lows[rows], highs=highs[rows])
        series.append(curve)
    if not series:
        return None
    lowest = min(float((one.ys if one.lows is None else one.lows).min()) for one in series)
    return chart(
        series,
        percent_axis("recall, %"),
        percent_axis("precision, %", lowest),
        _precision_values(scores),
        description="Precision by recall, for each score",
    )


def _precision_values(scores: Sequence[ScoreMetrics]) -> Values:
    """The precision of each score at round recalls that some score reaches, and at its last one."""
    rows = []
    for at in sorted({*map(float, range(0, 101, 2)), *(100 * float(score.recall[-1]) for score in scores)}):
        texts = [
            f"{100 * np.interp(at / 100, score.recall, score.precision):.1f}%"
            if 100 * score.recall[0] <= at <= 100 * score.recall[-1]
            else ""
            for score in scores
        ]
        if any(texts):
            rows.append((at, [f"{round(at, 1):g}%", *texts]))
    return Values(columns=["recall", *(score.name for score in scores)], rows=rows)


def precision_interval(measures: Measures, score: ScoreMetrics) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of the precision at each threshold of a score, in percent, (n,) each.

    That of `wilson`, for fewer answers than there are, see `queries_per_independent`.
    """
    num_queries, factor = len(measures.errors_m), queries_per_independent(measures)
    num_correct = score.recall * num_queries / factor
    num_answered = num_correct / np.maximum(score.precision, 1e-12)
    # At the first thresholds, all answers may be wrong; then their number is not known, but it is at least 1.
    num_answered = np.where(num_correct > 0, num_answered, 1 / factor)
    found = [wilson(*counts) for counts in zip(num_correct.tolist(), num_answered.tolist(), strict=True)]
    return np.array([one.low for one in found]), np.array([one.high for one in found])


def queries_per_independent(measures: Measures) -> float:
    """How many queries are worth one independent query, because those of a cluster tend to be right or wrong together.

    The factor of the interval of Recall@1; 1 if its queries are all right or all wrong.
    """
    recall1, num_queries = measures.recalls.get(1), len(measures.errors_m)
    if recall1 is None or not 0 < recall1.value < 100:
        return 1.0
    single = wilson(round(recall1.value / 100 * num_queries), num_queries)
    return max(1.0, ((recall1.high - recall1.low) / (single.high - single.low)) ** 2)


def reliability_chart(score: ScoreMetrics, queries_each: float = 1.0) -> Chart | None:
    """Chart of the share of correct answers over the confidence, one dot per bin; None without bins.

    queries_each: how many queries are worth one independent query; intervals are those of `wilson` for the latter.
    """
    bins = score.reliability[score.reliability[:, 2] > 0] if len(score.reliability) else score.reliability
    if not len(bins):
        return None
    confidences, correct, counts = bins[np.argsort(bins[:, 0])].T
    worth = np.maximum(counts / queries_each, 1.0)
    intervals = [wilson(*pair) for pair in zip((correct * worth).tolist(), worth.tolist(), strict=True)]
    ends = np.array([0.0, 100.0])
    dots = Series(
        xs=100 * confidences,
        ys=100 * correct,
        shares=counts / counts.max(),
        lows=np.array([one.low for one in intervals]),
        highs=np.array([one.high for one in intervals]),
    )
    rows = [
        (x, (f"{x:.1f}%", f"{count:,.0f}", percent(replace(interval, is_approximate=True))))
        for x, count, interval in zip(dots.xs.tolist(), counts.tolist(), intervals, strict=True)
    ]
    return chart(
        [Series(xs=ends, ys=ends, style="reference"), dots],
        percent_axis("confidence, %"),
        percent_axis("correct answers, %"),
        Values(columns=["confidence", "queries", "correct"], rows=rows),
        description="Percentage of correct answers by confidence",
    )
