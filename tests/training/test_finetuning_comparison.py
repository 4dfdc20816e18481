"""Is a trained model better than its start?"""

import numpy as np
import pytest

from cosplace.training import comparison
from cosplace.training.comparison import Comparison, average_precisions


def spread(count: int) -> np.ndarray:
    """Positions far apart: one cell each."""
    return np.stack([np.arange(count) * 1000.0, np.zeros(count)], 1)


def answers(num_queries: int, *, both: int, won: int, lost: int) -> tuple[np.ndarray, np.ndarray]:
    start, trained = np.zeros(num_queries, bool), np.zeros(num_queries, bool)
    start[: both + lost] = True
    trained[:both] = True
    trained[both + lost : both + lost + won] = True
    return start, trained


def compare(start: np.ndarray, trained: np.ndarray, positions: np.ndarray) -> Comparison:
    """Two models with one prediction per query, and one positive."""
    return comparison.compare(start[:, None], trained[:, None], np.ones(len(start), int), positions)


def test_counts_and_recalls() -> None:
    found = compare(*answers(80, both=60, won=9, lost=2), spread(80))
    assert (found.won, found.lost, found.num_queries) == (9, 2, 80)
    assert found.start_recall1 == pytest.approx(100 * 62 / 80)
    assert found.recall1 == pytest.approx(100 * 69 / 80)
    assert found.difference == pytest.approx(found.recall1 - found.start_recall1)
    assert found.low <= found.difference <= found.high
    assert "+8.8 points" in found.text()


def test_the_interval_is_that_of_a_plain_paired_bootstrap() -> None:
    start, trained = answers(60, both=30, won=10, lost=4)
    found = compare(start, trained, spread(60))
    random = np.random.default_rng(1)
    changes = trained.astype(int) - start.astype(int)
    differences = 100 * changes[random.integers(0, 60, (20_000, 60))].mean(axis=1)
    low, high = np.quantile(differences, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=1.0)
    assert found.high == pytest.approx(high, abs=1.0)


@pytest.mark.parametrize(
    ("num_places", "won", "expected"), [(80, 9, ""), (80, 4, "approximate "), (29, 9, "approximate ")]
)
def test_intervals_of_few_places_or_few_changes_are_approximate(num_places: int, won: int, expected: str) -> None:
    found = compare(*answers(80, both=40, won=won, lost=3), spread(80) % (1000 * num_places))
    assert f"points ({expected}95% interval " in found.text()


@pytest.mark.parametrize(
    ("won", "lost", "is_better"), [(0, 0, False), (7, 7, False), (5, 15, False), (2, 0, False), (20, 3, True)]
)
def test_only_a_clear_gain_is_better(won: int, lost: int, is_better: bool) -> None:
    assert compare(*answers(91, both=20, won=won, lost=lost), spread(91)).is_better == is_better


@pytest.mark.parametrize(
    ("won", "lost", "words"),
    [
        (4, 2, "may be better than its start, but the difference can be chance"),
        (7, 7, "is not better than its start"),
        (20, 3, "finds a correct match for fewer queries than its start"),  # better on photos, worse on queries
    ],
)
def test_the_verdict_says_why_the_start_is_kept(won: int, lost: int, words: str) -> None:
    found = compare(*answers(91, both=20, won=won, lost=lost), spread(91))
    assert found.verdict(is_kept=False) == f"The trained model {words}, so the start is kept."


def test_queries_of_one_place_are_not_independent() -> None:
    start, trained = answers(100, both=50, won=10, lost=0)
    one_place = spread(100)
    one_place[50:60] = [1e6, 0]  # all that were won
    assert compare(start, trained, spread(100)).is_better
    assert not compare(start, trained, one_place).is_better


def test_the_average_precision_is_the_mean_precision_at_each_correct_prediction() -> None:
    hits = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    expected = [(1 / 1 + 2 / 3) / 2, (1 / 4) / 1, 0.0, 1.0]
    assert average_precisions(hits, np.array([2, 1, 0, 9])) == pytest.approx(expected)


def test_a_gain_below_the_first_prediction_counts_if_recall_1_rises_too() -> None:
    start, trained = np.zeros((200, 4), bool), np.zeros((200, 4), bool)
    start[:, [0, 3]] = True  # two positives: the second one is found later
    trained[:, [0, 1]] = True
    two = np.full(200, 2)
    found = comparison.compare(start, trained, two, spread(200))
    assert (found.low, found.won, found.lost) == (0, 0, 0)
    assert found.start_map == pytest.approx(75.0)
    assert found.map == pytest.approx(100.0)
    assert not found.is_better  # R@1 does not rise
    start[:20, 0], start[:20, 2], trained[20:30, 0], trained[20:30, 2] = False, True, False, True
    found = comparison.compare(start, trained, two, spread(200))
    assert (found.won, found.lost) == (20, 10)
    assert found.low < 0 < found.map_low
    assert found.is_better
    trained[:20, 0], trained[:20, 2] = False, True
    assert not comparison.compare(start, trained, two, spread(200)).is_better
