"""Scores of the first prediction: curves and areas straight from their formulas, thresholds for other queries."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, stdtrit

from cosplace.assessment.confidence_scores import (
    average_precision,
    calibration_error,
    calibration_error_estimate,
    distance_score,
    lowest_threshold,
    precision_recall,
    quantile_threshold,
    ratio_score,
    recall_at_precision,
    recall_estimate,
    reliability_bins,
    score_metrics,
    spread_score,
    transfers,
)
from cosplace.assessment.intervals import clustered_share

Answers = list[tuple[int, bool]]
ANSWERS = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30)


def arrays(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(score) for score, _ in answers]), np.array([right for _, right in answers])


def counts_at(answers: Answers, threshold: float) -> tuple[int, int]:
    given = [right for score, right in answers if score >= threshold]
    return len(given), sum(given)


# --- curves ----------------------------------------------------------------------------------------------------------


@given(ANSWERS)
def test_curve_counts_the_answers_of_each_threshold(answers: Answers) -> None:
    recall, precision, threshold = precision_recall(*arrays(answers))
    assert threshold.tolist() == sorted({float(score) for score, _ in answers}, reverse=True)
    for row, limit in enumerate(threshold.tolist()):
        num_answers, num_right = counts_at(answers, limit)
        assert (recall[row], precision[row]) == (num_right / len(answers), num_right / num_answers)


@given(ANSWERS)
def test_area_is_the_sum_of_precision_times_growth_of_recall(answers: Answers) -> None:
    num_right = sum(right for _, right in answers)
    found = average_precision(*arrays(answers))
    if num_right == 0:
        assert math.isnan(found)
        return
    points = [counts_at(answers, limit) for limit in sorted({score for score, _ in answers}, reverse=True)]
    area = sum((b[1] - a[1]) / num_right * b[1] / b[0] for a, b in pairwise([(0, 0), *points]))
    assert found == pytest.approx(area)


@given(ANSWERS, st.sampled_from([1.0, 0.95, 0.5]))
def test_recall_at_precision_tries_all_thresholds(answers: Answers, precision: float) -> None:
    points = [counts_at(answers, score) for score, _ in answers]
    recalls = [right / len(answers) for num, right in points if right >= precision * num]
    assert recall_at_precision(*arrays(answers), precision) == pytest.approx(max(recalls, default=0.0))


def test_precision_between_two_grid_points_is_found() -> None:
    """Scores that are close together: 100 thresholds from 0 to 1 would answer all of them or none."""
    scores = np.concatenate([0.5 + 1e-6 * np.arange(50, 100), 0.5 + 1e-6 * np.arange(50)])
    right = np.arange(100) < 50
    assert recall_at_precision(scores, right, 1.0) == 0.5


def test_queries_without_an_answer_lower_the_recall() -> None:
    scores, right = np.array([3.0, 2.0, -np.inf, -np.inf]), np.array([True, False, False, False])
    recall, precision, threshold = precision_recall(scores, right)
    assert (recall.tolist(), precision.tolist(), threshold.tolist()) == ([0.25, 0.25], [1.0, 0.5], [3.0, 2.0])


def test_equal_scores_are_one_point() -> None:
    recall, precision, _ = precision_recall(np.zeros(4), np.array([True, True, True, False]))
    assert (recall.tolist(), precision.tolist()) == ([0.75], [0.75])


# --- scores ----------------------------------------------------------------------------------------------------------


def test_distances_and_ratios() -> None:
    squared = np.array([[4.0, 16.0], [0.0, 0.0], [1.0, np.inf], [np.inf, np.inf]], np.float32)
    assert distance_score(squared).tolist() == [-2.0, 0.0, -1.0, -np.inf]
    assert ratio_score(squared).tolist() == [-0.5, -1.0, -np.inf, -np.inf]
    assert ratio_score(squared[:, :1]).tolist() == [-np.inf] * 4


def test_spread_follows_its_formula() -> None:
    rng = np.random.default_rng(0)
    squared, positions = np.sort(0.02 * rng.random((5, 12)) + 0.9, axis=1), 300 * rng.random((5, 12, 2))
    for query, found in enumerate(spread_score(squared, positions).tolist()):
        weights = [math.exp(-350 * d) for d in squared[query, :10].tolist()]
        points = positions[query, :10].tolist()
        mean = [sum(w * p[axis] for w, p in zip(weights, points, strict=True)) / sum(weights) for axis in (0, 1)]
        variance = sum(
            w * ((p[0] - mean[0]) ** 2 + (p[1] - mean[1]) ** 2) for w, p in zip(weights, points, strict=True)
        ) / sum(weights)
        assert found == pytest.approx(-math.sqrt(variance), rel=1e-9)


def test_far_predictions_count_as_500_m_in_both_directions() -> None:
    squared = np.full((2, 2), 0.5)
    positions = np.array([[[0.0, 0.0], [1e6, 0.0]], [[0.0, 0.0], [-1e6, 0.0]]])
    assert spread_score(squared, positions).tolist() == [-500.0, -500.0]


def test_spread_of_distant_and_of_missing_predictions() -> None:
    squared = np.array([[9.0, 9.0, np.inf], [np.inf] * 3])  # exp(-3150) is 0
    positions = np.array([[[0.0, 0.0], [20.0, 0.0], [np.nan, np.nan]]] * 2)
    assert spread_score(squared, positions).tolist() == [-10.0, -np.inf]


# --- probabilities ---------------------------------------------------------------------------------------------------


def test_reliability_and_calibration_error() -> None:
    confidences, right = np.array([0.05, 0.15, 0.19, 0.95, 1.0]), np.array([False, True, False, True, True])
    bins = reliability_bins(confidences, right)
    assert bins == pytest.approx(np.array([[0.05, 0.0, 1], [0.17, 0.5, 2], [0.975, 1.0, 2]]))
    assert calibration_error(bins) == pytest.approx((0.05 + 2 * 0.33 + 2 * 0.025) / 5)
    assert math.isnan(calibration_error(np.zeros((0, 3))))
    assert calibration_error_estimate(confidences, right, np.arange(5)).value == pytest.approx(calibration_error(bins))
    assert math.isnan(calibration_error_estimate(confidences[:0], right[:0], np.arange(0)).value)


def test_calibration_error_far_from_0_has_the_interval_of_a_mean() -> None:
    """All confidences in one bin are too high: the error is a mean of independent differences."""
    right = np.arange(2000) % 2 == 0
    confidences = np.full(2000, 0.95)
    found = calibration_error_estimate(confidences, right, np.arange(2000))
    half = 1.96 * 0.5 / math.sqrt(2000)
    assert (found.value, found.low, found.high) == pytest.approx((0.45, 0.45 - half, 0.45 + half), abs=0.002)
    # 8 copies of each query are worth one.
    copies = calibration_error_estimate(np.repeat(confidences, 8), np.repeat(right, 8), np.arange(16_000) // 8)
    assert (copies.low, copies.high) == pytest.approx((found.low, found.high), abs=0.002)


def test_calibration_error_of_few_queries_may_be_chance() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.random(60)
    found = calibration_error_estimate(confidences, rng.random(60) < confidences, np.arange(60))
    assert (
        found.value > 0.08 and found.low == 0 and found.is_approximate
    )  # the error of calibrated confidences is 0 among many queries
    without_a_miss = calibration_error_estimate(np.full(50, 0.999), np.ones(50, bool), np.arange(50))
    assert without_a_miss.value == pytest.approx(0.001) and 0.02 < without_a_miss.high < 0.08  # rule of three: 0.06
    one_place = calibration_error_estimate(confidences, confidences > 0.5, np.zeros(60, np.int64))
    assert (one_place.low, one_place.high) == (0, 1)
    hopeless = calibration_error_estimate(np.ones(9), np.zeros(9, bool), np.arange(9))
    assert (hopeless.value, hopeless.high) == (1, 1) and hopeless.low < 1


def test_calibration_errors_of_few_correlated_queries_are_approximate() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.3, 1, 600)
    right = rng.random(600) < confidences - 0.3
    for clusters, expected in ((np.arange(600), False), (np.arange(600) // 3, False), (np.arange(600) // 4, True)):
        found = calibration_error_estimate(confidences, right, clusters)
        assert found.low > 0.1 and found.is_approximate == expected


def test_calibration_error_in_one_bin_is_that_of_the_share_of_right_answers() -> None:
    rng = np.random.default_rng(2)
    confidences, clusters = rng.uniform(0.91, 0.99, 120), np.arange(120) // 4
    for share in (0.7, 0.95, 1.0):
        right = rng.random(120) < share
        found, expected = calibration_error_estimate(confidences, right, clusters), clustered_share(right, clusters)
        ends = [confidences.mean() - expected.high / 100, confidences.mean() - expected.low / 100]
        assert found.value == pytest.approx(abs(confidences.mean() - right.mean()))
        assert found.high == pytest.approx(max(map(abs, ends)))
        assert found.low == pytest.approx(0 if ends[0] < 0 < ends[1] else min(map(abs, ends)))


def test_intervals_of_calibration_errors_are_not_wider_than_chance_requires() -> None:
    """The error that chance adds to that of 94 queries, 0.1, is not added to the interval a second time."""
    rng = np.random.default_rng(4)
    found = [calibration_error_estimate(c, rng.random(94) < c, np.arange(94) // 2) for c in rng.random((20, 94))]
    assert 0.08 < np.mean([one.value for one in found]) < 0.13
    assert np.mean([one.high for one in found]) < 0.22 and sum(one.low == 0 for one in found) >= 18


@pytest.mark.parametrize(("num_places", "size", "together"), [(47, 2, 0.3), (20, 5, 0.3), (100, 1, 0.0)])
@pytest.mark.parametrize("excess", [0.0, 0.03, 0.15])
def test_calibration_errors_are_covered(num_places: int, size: int, together: float, excess: float) -> None:
    """Most confidences are high, and too high by the same excess: it is the error among many queries."""
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(num_places), size)
    covered = 0
    for _ in range(100):
        confidences = np.maximum(rng.beta(6, 1, len(clusters)), 0.2)
        # Some places have one random number for all queries, so that these are right or wrong together.
        is_shared = rng.random(num_places)[clusters] < together
        draw = np.where(is_shared, rng.random(num_places)[clusters], rng.random(len(clusters)))
        found = calibration_error_estimate(confidences, draw < confidences - excess, clusters)
        covered += found.low <= excess <= found.high
    assert covered >= 91  # of 95 or more, two standard deviations


@pytest.mark.slow
def test_calibration_errors_of_a_few_confidences_are_covered() -> None:
    """Only confidences above 0.9 are wrong: in the other bins there is only chance."""
    rng = np.random.default_rng(5)
    shares = (np.arange(100_000) + 0.5) / 100_000
    truth = 0.15 * float((np.sin(math.pi / 2 * shares) ** 2 > 0.9).mean())
    covered, num_runs = 0, 150
    for _ in range(num_runs):
        confidences = np.sin(math.pi / 2 * rng.random(740)) ** 2
        right = rng.random(740) < np.where(confidences > 0.9, confidences - 0.15, confidences)
        found = calibration_error_estimate(confidences, right, np.arange(740))
        covered += found.low <= truth <= found.high
    assert covered >= 0.92 * num_runs - 2.5 * math.sqrt(num_runs * 0.08 * 0.92)


# --- all of a score --------------------------------------------------------------------------------------------------


def test_metrics_of_a_score() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(300) < 0.7
    scores = right + rng.standard_normal(300)
    found = score_metrics("x", scores, right, np.arange(300) // 3)
    assert found.area.value == 100 * average_precision(scores, right)
    assert found.area.low < found.area.value < found.area.high
    assert found.recall_at_full_precision.value == pytest.approx(100 * recall_at_precision(scores, right, 1.0))
    assert found.recall_at_95_precision.value == 100 * recall_at_precision(scores, right, 0.95)
    assert math.isnan(found.calibration_error.value) and not len(found.reliability)


def naive_recall_interval(scores: np.ndarray, right: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """The formula, one threshold and one cluster after the other; all scores differ."""
    num, precision, quantile = len(scores), 0.95, float(stdtrit(len(set(clusters)) - 1, 0.975))
    ranked = right[np.argsort(-scores)]
    points = []
    for count, threshold in enumerate(np.sort(scores)[::-1], start=1):
        answered = scores >= threshold
        recall = (right & answered).sum() / num
        reach = max(3, int(0.1 * num))
        near = ranked[max(0, count - reach) : count + reach]
        slope = 1 - precision / ((near.sum() + 0.5) / (len(near) + 1))
        gains = np.where(answered, right - precision, 0.0)
        errors = gains - slope * ((right & answered) - recall)  # at a fixed recall
        centered = errors - errors.mean()
        squares = sum(
            centered[clusters == cluster].sum() ** 2 / (1 - (clusters == cluster).mean()) for cluster in set(clusters)
        )
        effect = min(max(squares / (centered**2).sum(), 0.5), len(clusters) / len(set(clusters)))
        num_right = recall * num
        num_wrong = num_right / precision - num_right  # if the precision is the one sought
        expected = num_right * (1 - precision - slope * (1 - recall)) ** 2
        expected += num_wrong * (slope * recall - precision) ** 2
        expected += max(num - num_right - num_wrong, 0) * (slope * recall) ** 2
        points.append((100 * recall, gains.sum() / math.sqrt(effect * (expected + 0.25)) / quantile))
    last = max(place for place, (_, t) in enumerate(points) if t >= 1)
    first = min(place for place, (_, t) in enumerate(points) if t <= -1)
    ends = []
    for (recall, t), (next_recall, next_t), sought in (
        (points[last], points[last + 1], 1),
        (points[first - 1], points[first], -1),
    ):
        ends.append(recall + (next_recall - recall) * (t - sought) / (t - next_t))
    return ends[0], ends[1]


def test_interval_of_the_recall_at_a_precision() -> None:
    rng = np.random.default_rng(3)
    clusters = np.arange(480) // 3
    easiness = rng.standard_normal(480) + 0.3 * rng.standard_normal(160)[clusters]
    scores, right = easiness + 0.9 * rng.standard_normal(480), easiness > -0.5
    found = recall_estimate(scores, right, clusters, 0.95)
    low, high = naive_recall_interval(scores, right, clusters)
    assert found.value == 100 * recall_at_precision(scores, right, 0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert 0 < found.low < found.value < found.high < 100 and not found.is_approximate


def test_an_interval_of_the_recall_at_a_precision_with_one_end_is_approximate() -> None:
    scores, clusters = np.arange(400.0), np.arange(400)
    too_few = recall_estimate(scores, scores >= 350, clusters, 0.95)  # 50 answers cannot show a precision of 95%
    assert too_few.low == 0 and too_few.high < 20 and too_few.is_approximate
    always = recall_estimate(scores, scores >= 4, clusters, 0.95)  # the precision of all answers is 99%
    assert always.low > 95 and always.high > 99 and always.is_approximate
    assert recall_estimate(scores, scores >= 100, clusters // 20, 0.95).is_approximate  # 20 clusters


@pytest.mark.slow
def test_the_recall_at_a_precision_is_covered() -> None:
    """Independent queries; the truth is an integral."""
    truth = 100 * recall_of_many(0.95)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        easiness, noise = rng.standard_normal((2, 150))
        found = recall_estimate(0.75 * easiness + math.sqrt(1 - 0.75**2) * noise, easiness > -0.5, np.arange(150), 0.95)
        covered += found.low <= truth <= found.high
    assert covered >= 0.93 * 400 - 2.5 * math.sqrt(400 * 0.07 * 0.93)


def recall_of_many(precision: float) -> float:
    """Recall of very many queries at a precision: scores and easiness are normal with a correlation of 0.75."""
    steps = np.linspace(-5, 5, 4001)
    density = np.exp(-(steps**2) / 2) / math.sqrt(2 * math.pi) * (steps[1] - steps[0])
    is_right = ndtr((0.75 * steps + 0.5) / math.sqrt(1 - 0.75**2))  # easiness > -0.5, given the score
    answered, recalled = np.cumsum(density[::-1]), np.cumsum((density * is_right)[::-1])
    return float(recalled[recalled >= precision * answered].max())


def test_equal_scores_have_wide_intervals() -> None:
    clusters = np.arange(94) // 2
    found = score_metrics("x", np.zeros(94), np.arange(94) < 2, clusters)  # the right answers are in one cluster
    assert found.area.value == pytest.approx(100 * 2 / 94)
    assert found.area.low < 1 and found.area.high > 6
    assert found.recall_at_95_precision.low == 0 and found.recall_at_95_precision.high > 3


def test_perfect_and_hopeless_scores() -> None:
    right, clusters = np.arange(60) % 2 == 0, np.arange(60)
    perfect = score_metrics("x", right.astype(float), right, clusters)
    assert perfect.area.value == 100 and perfect.recall_at_full_precision.value == 50
    hopeless = score_metrics("x", 1.0 - right, right, clusters)
    assert hopeless.recall_at_full_precision.value == 0 and hopeless.recall_at_full_precision.high > 0
    assert hopeless.recall_at_95_precision.value == 0 and hopeless.recall_at_95_precision.high > 4
    never_right = score_metrics("x", np.arange(60.0), np.zeros(60, bool), clusters)
    assert never_right.recall_at_95_precision.high > 4
    assert math.isnan(never_right.area.value) and never_right.recall_at_95_precision.value == 0
    no_answer = score_metrics("x", np.full(60, -np.inf), np.zeros(60, bool), clusters, is_probability=True)
    assert not len(no_answer.recall) and no_answer.calibration_error.value == 0


@pytest.mark.slow
def test_areas_are_covered() -> None:
    """The area of 400,000 queries is inside the intervals of 200 queries."""
    rng = np.random.default_rng(1)

    def world(num_clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        clusters = np.repeat(np.arange(num_clusters), 4)
        easy = rng.standard_normal(num_clusters)[clusters]
        right = easy + rng.standard_normal(len(clusters)) > -0.7
        return right + 0.5 * easy + rng.standard_normal(len(clusters)), right, clusters

    truth = 100 * average_precision(*world(100_000)[:2])
    found = [score_metrics("x", *world(50)).area for _ in range(1000)]
    assert 92.5 < 100 * np.mean([area.low <= truth <= area.high for area in found]) < 97.5


# --- thresholds for other queries ------------------------------------------------------------------------------------


def test_lowest_threshold_with_a_precision() -> None:
    scores, right = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), np.array([True, True, False, True, False])
    assert lowest_threshold(scores, right, 1.0) == 4.0
    assert lowest_threshold(scores, right, 0.75) == 2.0
    assert lowest_threshold(scores, ~right & (scores < 2), 1.0) == math.inf


def test_a_quantile_follows_a_shift_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(1000)
    threshold = quantile_threshold(0.3, scores, 5 + 2 * scores)
    assert np.array_equal(5 + 2 * scores >= threshold, scores >= 0.3)
    assert quantile_threshold(math.inf, scores, scores) == math.inf


def test_transfer_under_shift() -> None:
    """All scores of the other half are lower: the threshold rejects right answers, the quantile does not."""
    rng = np.random.default_rng(0)
    right = rng.random(2000) < 0.6
    chosen = np.arange(2000) < 1000
    scores = 3.0 * right + rng.standard_normal(2000) - 2.0 * ~chosen
    rows = {(one.carried, one.target): one for one in transfers("x", scores, right, np.arange(2000), chosen)}
    assert len(rows) == 4
    threshold, quantile = rows["threshold", 0.95], rows["quantile", 0.95]
    least = lowest_threshold(scores[chosen], right[chosen], 0.95)
    answered = ~chosen & (scores >= least)
    assert threshold.recall.value == pytest.approx(100 * (answered & right).sum() / 1000)
    assert threshold.precision.value == pytest.approx(100 * right[answered].mean())
    assert quantile.recall.value > threshold.recall.value + 20
    assert quantile.precision.value == pytest.approx(95, abs=3)


def test_nothing_is_transferred_from_or_to_nothing() -> None:
    everything = np.ones(5, bool)
    assert transfers("x", np.arange(5.0), everything, np.arange(5), everything) == ()
    impossible = transfers("x", np.arange(5.0), ~everything, np.arange(5), np.arange(5) < 2)
    assert all(math.isnan(one.precision.value) and one.recall.value == 0 for one in impossible)
