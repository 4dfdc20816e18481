"""Scores of the first prediction: does a high score mean that it is correct?

Scores that need no training (Zaffar et al., "On the Estimation of Image-matching Uncertainty in Visual Place
Recognition", CVPR 2024) are the baselines of a calibrated confidence.  Curves are computed from sorted scores, so no
precision is missed between two thresholds.  Queries without positives count as wrong.  Pure functions.
Legend: Q queries, K predictions per query, n distinct scores.
"""

import math

import numpy as np

from cosplace.assessment.absolute_means import sum_of_absolute_means
from cosplace.assessment.intervals import (
    SMALLEST_EFFECT,
    UNKNOWN,
    Estimate,
    clustered_share,
    effective_clusters,
    is_approximate,
    jackknife,
    t_quantile,
)
from cosplace.assessment.measures import ScoreMetrics, Transfer

CONFIDENCE = "confidence"  # the name of a score that is a probability
NUM_SPREAD = 10  # predictions whose spread is a score
SPREAD_DECAY = 350.0  # weight exp(-350 d) of a prediction with squared descriptor distance d
MAX_OFFSET_M = 500.0  # farther predictions count as this far, in both directions
NUM_BINS = 10  # of a reliability diagram
TRANSFER_PRECISIONS = (1.0, 0.95)
MIN_THRESHOLDS, MAX_THRESHOLDS = 50, 500  # at which a precision is tested
MAX_COUNTS = 2_000_000  # of clusters at thresholds, in memory
NEAR_SHARE = 0.1  # of the queries, on each side of a threshold, that count as near it
HALF_AN_ANSWER = 0.5  # numbers of answers are whole


# --- scores ----------------------------------------------------------------------------------------------------------


def distance_score(squared_distances: np.ndarray) -> np.ndarray:
    """Minus the L2 distance of the first prediction, (Q,) float64; -inf without one.  squared_distances: (Q, K)."""
    return -np.sqrt(squared_distances[:, 0].astype(np.float64))


def ratio_score(squared_distances: np.ndarray) -> np.ndarray:
    """Minus the ratio d1 / d2 of the first two L2 distances, (Q,) float64; -inf without them.

    Two predictions at a distance of 0 have the ratio 1.  The second one may show the same place.
    """
    if squared_distances.shape[1] < 2:
        return np.full(len(squared_distances), -np.inf)
    first, second = np.sqrt(squared_distances[:, :2].astype(np.float64)).T
    known = np.isfinite(second)
    ratio = np.divide(first, second, out=np.ones(len(first)), where=known & (second > 0))
    return np.where(known, -ratio, -np.inf)


def spread_score(squared_distances: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Minus the spread on the ground of the first NUM_SPREAD predictions (SUE), (Q,) float64; -inf without one.

    The spread is the square root of the variance of the positions around their mean, both weighted by
    exp(-SPREAD_DECAY d).  Offsets from the mean are limited to MAX_OFFSET_M on each axis, in both directions.
    positions: (Q, K, 2 or 3) meters, of the predictions.
    """
    distances = squared_distances[:, :NUM_SPREAD].astype(np.float64)
    known = np.isfinite(distances)
    nearest = np.where(known[:, :1], distances[:, :1], 0.0)  # as a common factor, it changes nothing but underflow
    weights = np.exp(-SPREAD_DECAY * (np.where(known, distances, np.inf) - nearest))[..., None]
    points = np.where(known[..., None], positions[:, :NUM_SPREAD], 0.0)
    totals = np.maximum(weights.sum(axis=1), 1e-300)
    offsets = points - ((weights * points).sum(axis=1) / totals)[:, None]
    squares = np.clip(offsets, -MAX_OFFSET_M, MAX_OFFSET_M) ** 2
    variance = ((weights * squares).sum(axis=1) / totals).sum(axis=1)
    return np.where(known[:, 0], -np.sqrt(variance), -np.inf)


# --- precision and recall --------------------------------------------------------------------------------------------


def precision_recall(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recall, precision and threshold (n,) of answers with at least each distinct score, the best first.

    scores: (Q,) float64; -inf is never answered.  right: (Q,) bool.  Recall is a share of all queries.
    """
    order, ends = _by_score(scores)
    num_right = np.cumsum(right[order])[ends]
    return num_right / max(1, len(scores)), num_right / (ends + 1), scores[order][ends]


def _by_score(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the queries that can be answered, the best first, and the last of each group of equal scores."""
    rows = np.flatnonzero(scores > -np.inf)
    order = rows[np.argsort(-scores[rows], kind="stable")]
    return order, np.flatnonzero(np.diff(scores[order], append=-np.inf) != 0)


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Area under the curve of precision over recall, where recall is the share of the right answers, in [0, 1].

    Sum of precision times the growth of recall, over all distinct scores; nan if no answer is right.
    """
    return float(_average_precisions(*_counts(scores, right, np.ones((1, len(scores)), np.int32)))[0])


def recall_at_precision(scores: np.ndarray, right: np.ndarray, precision: float) -> float:
    """The largest recall of a threshold with at least this precision, as a share of all queries, in [0, 1]."""
    weights = np.ones((1, len(scores)), np.int32)
    return float(_recalls_at(precision, *_counts(scores, right, weights), weights.sum(axis=1))[0])


def _counts(scores: np.ndarray, right: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers, and right answers, with at least each distinct score, (m, n) int32 each.

    weights: (m, Q) int32, how often each query counts.
    """
    order, ends = _by_score(scores)
    ordered = weights[:, order]
    answered = np.cumsum(ordered, axis=1, dtype=np.int32)
    num_right = np.cumsum(ordered * right[order], axis=1, dtype=np.int32)
    return (answered, num_right) if len(ends) == len(order) else (answered[:, ends], num_right[:, ends])


def _average_precisions(answered: np.ndarray, num_right: np.ndarray) -> np.ndarray:
    """(m,) float64 from counts (m, n)."""
    gains = np.diff(num_right, axis=1, prepend=0)
    sums = (gains * (num_right / np.maximum(answered, 1))).sum(axis=1)
    totals = num_right.max(axis=1, initial=0)
    return np.divide(sums, totals, out=np.full(len(totals), np.nan), where=totals > 0)


def _recalls_at(precision: float, answered: np.ndarray, num_right: np.ndarray, num_queries: np.ndarray) -> np.ndarray:
    """(m,) float64 from counts (m, n) and numbers of queries (m,)."""
    is_enough = num_right >= precision * answered - 1e-6
    return np.where(is_enough, num_right, 0).max(axis=1, initial=0) / np.maximum(num_queries, 1)


def recall_estimate(scores: np.ndarray, right: np.ndarray, clusters: np.ndarray, precision: float) -> Estimate:
    """`recall_at_precision` in percent, with the range of recalls at which this precision is plausible for others.

    The value is that of the luckiest threshold, and resamples are lucky a second time, so the interval comes from
    tests.  At each threshold, g = right answers - precision * answers is expected to be 0 at the recall sought and
    negative at larger recalls.  Its error is that at a fixed recall: g changes with the recall R at the rate
    dg/dR = 1 - precision / (share of right answers near this threshold).  As in Wilson's interval, it is the error
    that g would have if the precision were the one sought, times the design effect of the clusters.  The low end is the
    largest recall at which g is clearly above 0; the high end is the smallest at which it is clearly below.

    If no threshold is clearly too high, or none is clearly too low, a true recall is missed on one side only: the
    interval is then approximate, and not narrower than that of the recall at a fixed threshold.
    """
    value, at_all = 100 * recall_at_precision(scores, right, precision), clustered_share(right, clusters)
    order, ends = _by_score(scores)
    groups = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(groups)
    if len(sizes) < 2 or not len(ends):
        return Estimate(value, min(at_all.low, value), max(at_all.high, value), is_approximate=True)
    num = len(scores)
    # How many of the first answers are right; those with equal scores are in no order.
    places_known, right_known = np.append(0, ends + 1), np.append(0, np.cumsum(right[order])[ends])
    num_thresholds = min(MAX_THRESHOLDS, max(MIN_THRESHOLDS, MAX_COUNTS // len(sizes)))
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, num_thresholds).astype(np.int64))]
    counts = np.zeros((2, len(sizes), len(ends)))  # answers and right answers of each cluster
    places = groups[order], np.searchsorted(ends, np.arange(len(order)))
    np.add.at(counts[0], places, 1)
    np.add.at(counts[1], places, right[order])
    answered, num_right = counts.cumsum(axis=2)
    total_answered, total_right = answered.sum(axis=0), num_right.sum(axis=0)
    recalls = total_right / num

    reach = max(3, int(NEAR_SHARE * num))
    first, last = np.maximum(ends + 1 - reach, 0), np.minimum(ends + 1 + reach, len(order))
    num_near = np.interp(last, places_known, right_known) - np.interp(first, places_known, right_known)
    nearby = (num_near + 0.5) / (last - first + 1)
    slopes = 1 - precision / nearby

    def independent(num_wrong: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Sum of the squares of g of single queries at a fixed recall, if this number of answers is wrong."""
        none = slopes * recalls - mean
        of_others = np.maximum(num - total_right - num_wrong, 0) * none**2
        return total_right * (1 - precision - slopes + none) ** 2 + num_wrong * (none - precision) ** 2 + of_others

    weights, surplus = sizes[:, None], num_right - precision * answered
    means = surplus.sum(axis=0) / num
    deviations = surplus - slopes * (num_right - recalls * weights) - means * weights
    squares = (deviations**2 / (1 - weights / num)).sum(axis=0)
    effects = squares / np.maximum(independent(total_answered - total_right, means), 1e-9)
    effects = np.clip(effects, SMALLEST_EFFECT, (sizes**2).sum() / num) if sizes.max() > 1 else 1.0
    expected = independent(total_right * (1 / precision - 1), np.zeros(len(ends)))
    errors = np.sqrt(effects * (expected + HALF_AN_ANSWER**2))
    t = means * num / errors / t_quantile(len(sizes) - 1)

    above, below = np.flatnonzero(t >= 1), np.flatnonzero(t <= -1)
    low = 100 * _crossing(recalls, t - 1, above[-1]) if len(above) else 0.0
    high = 100 * _crossing(recalls, t + 1, below[0] - 1) if len(below) else at_all.high
    low, high = min(low, at_all.low), min(high, at_all.high)
    is_one_sided = not (len(above) and len(below))
    if is_one_sided:
        fixed = clustered_share(right & (scores >= lowest_threshold(scores, right, precision)), clusters)
        low, high = min(low, fixed.low), max(high, fixed.high)
    is_few = is_one_sided or is_approximate(effective_clusters(clusters))
    return Estimate(value, min(low, value), max(high, value), is_few)


def _crossing(places: np.ndarray, values: np.ndarray, before: int) -> float:
    """Where values at ascending places reach 0 after the place with this number, by a straight line."""
    if before < 0 or before + 1 == len(places):
        return float(places[max(before, 0)])
    share = values[before] / (values[before] - values[before + 1])
    return float(places[before] + share * (places[before + 1] - places[before]))


# --- probabilities ---------------------------------------------------------------------------------------------------


def reliability_bins(confidences: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Mean confidence, share correct and number of queries of each bin of equal width that is not empty, (bins, 3)."""
    bins = _bins_of(confidences, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    sums = np.stack([np.bincount(bins, values, num_bins) for values in (confidences, right)])[:, counts > 0]
    counts = counts[counts > 0]
    return np.column_stack([*(sums / counts), counts])


def _bins_of(confidences: np.ndarray, num_bins: int) -> np.ndarray:
    return np.minimum((confidences * num_bins).astype(np.int64), num_bins - 1)


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error: mean of |confidence - share correct| of the bins, weighted by their queries."""
    return float(np.average(np.abs(bins[:, 0] - bins[:, 1]), weights=bins[:, 2])) if len(bins) else math.nan


def calibration_error_estimate(
    confidences: np.ndarray, right: np.ndarray, clusters: np.ndarray, importance: np.ndarray | None = None
) -> Estimate:
    """The calibration error of confidences (Q,), in [0, 1], with its interval.

    importance: (Q,) weights of the queries, sum Q; 1 each if not given.  By chance, the error of few queries is larger
    than that of many; the interval allows for that, the value does not.  If all queries are in one bin, the error is
    that of the share of right answers, which has a better interval.
    """
    if not len(confidences):
        return UNKNOWN
    bins = _bins_of(confidences, NUM_BINS)
    differences = np.zeros((len(bins), NUM_BINS))
    differences[np.arange(len(bins)), bins] = (confidences - right) * (1.0 if importance is None else importance)
    used = np.unique(bins)
    if len(used) == 1 and importance is None:
        share, stated = clustered_share(right, clusters), float(confidences.mean())
        ends = sorted([abs(stated - share.low / 100), abs(stated - share.high / 100)])
        is_inside = share.low <= 100 * stated <= share.high
        is_few = share.is_approximate or is_inside
        return Estimate(abs(stated - share.value / 100), 0.0 if is_inside else ends[0], ends[1], is_few)
    # In each bin, half an answer more that is right and half a wrong one: without a wrong one, nothing would vary.
    means = np.diag(reliability_bins(confidences, right)[:, 0])
    added = np.zeros((2 * len(used), NUM_BINS))
    added[:, used] = np.concatenate([means, means - np.eye(len(used))])
    return sum_of_absolute_means(differences, clusters, math.sqrt(0.5) * added)


# --- all of a score --------------------------------------------------------------------------------------------------


def score_metrics(
    name: str, scores: np.ndarray, right: np.ndarray, clusters: np.ndarray, *, is_probability: bool = False
) -> ScoreMetrics:
    """All metrics of one score.  scores: (Q,) float64, larger is better, -inf for queries without an answer.

    The interval of the recall at full precision is that of a fixed threshold, the score of the best wrong answer.  The
    recall depends on that answer alone, and no interval covers what it will be for other queries.
    """
    recall, precision, threshold = precision_recall(scores, right)
    full = recall_at_precision(scores, right, 1.0)
    least = threshold[recall >= full - 1e-12][0] if full > 0 else math.inf

    def areas(weights: np.ndarray) -> np.ndarray:
        return _average_precisions(*_counts(scores, right, weights))

    confidences = np.where(scores > -np.inf, scores, 0.0)
    return ScoreMetrics(
        name=name,
        recall=recall,
        precision=precision,
        threshold=threshold,
        area=jackknife(areas, clusters, average_precision(scores, right), float(right.mean()) if len(right) else 0.0),
        recall_at_full_precision=clustered_share(right & (scores >= least), clusters),
        recall_at_95_precision=recall_estimate(scores, right, clusters, 0.95),
        calibration_error=calibration_error_estimate(confidences, right, clusters) if is_probability else UNKNOWN,
        reliability=reliability_bins(confidences, right) if is_probability else np.zeros((0, 3)),
    )


# --- thresholds for other queries ------------------------------------------------------------------------------------


def lowest_threshold(scores: np.ndarray, right: np.ndarray, target: float) -> float:
    """The lowest score at which answers are at least this precise; inf if there is none."""
    recall, precision, threshold = precision_recall(scores, right)
    enough = np.flatnonzero((precision >= target - 1e-12) & (recall > 0))
    return float(threshold[enough[-1]]) if len(enough) else math.inf


def quantile_threshold(threshold: float, scores: np.ndarray, new_scores: np.ndarray) -> float:
    """The threshold that answers the same share of new queries as a threshold does of the queries it was chosen on.

    Carrying the quantile instead of the threshold is robust to a shift of all scores (arXiv 2602.04401, 2026).
    """
    num = math.floor(np.mean(scores >= threshold) * len(new_scores) + 1e-9)
    return float(np.sort(new_scores)[-num]) if num else math.inf


def transfers(
    name: str, scores: np.ndarray, right: np.ndarray, clusters: np.ndarray, is_chosen_on: np.ndarray
) -> tuple[Transfer, ...]:
    """Choose thresholds on some queries (Q,) bool, and use them on the others, as thresholds and as quantiles."""
    rows = []
    others = ~is_chosen_on
    if not is_chosen_on.any() or not others.any():
        return ()
    for target in TRANSFER_PRECISIONS:
        threshold = lowest_threshold(scores[is_chosen_on], right[is_chosen_on], target)
        for carried, least in (
            ("threshold", threshold),
            ("quantile", quantile_threshold(threshold, scores[is_chosen_on], scores[others])),
        ):
            answered = others & (scores >= least)
            precision = clustered_share(right[answered], clusters[answered]) if answered.any() else UNKNOWN
            recall: Estimate = clustered_share(right[others] & answered[others], clusters[others])
            rows.append(Transfer(score=name, carried=carried, target=target, precision=precision, recall=recall))
    return tuple(rows)
