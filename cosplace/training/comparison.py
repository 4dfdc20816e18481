"""Is a model better than its start?  A paired bootstrap on the queries of the validation set.

Both models answer the same queries.  The intervals are those of the differences of their R@1 and of their mean average
precision when the places of the queries are drawn again with replacement (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993).  Queries of one place are drawn together: they are not independent.  With few places a bootstrap is
too narrow, so its interval is widened (Hesterberg, The American Statistician, 2015: expanded percentile intervals).

R@1 of a small validation set changes with a few queries; the average precision of a query uses all its positives, so it
shows smaller gains.  Pure functions.  Legend: Q queries, K predictions per query.
"""

from dataclasses import dataclass

import numpy as np

from cosplace.assessment.intervals import bootstrap, clusters_of, effective_clusters, is_approximate


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A model and its start on the same queries, in percent; differences in points."""

    what: str  # queries, or photos: each photo of the validation set is a query for all others
    num_queries: int
    start_recall1: float
    recall1: float
    won: int  # queries that are wrong for the start and correct for the model
    lost: int  # the other way round
    low: float  # ends of the interval of the difference of R@1
    high: float
    start_map: float  # mean average precision
    map: float
    map_low: float  # ends of the interval of its difference
    map_high: float
    is_approximate: bool = False  # the intervals are: few places, or few queries that differ

    @property
    def difference(self) -> float:
        """How much higher R@1 of the model is."""
        return 100 * (self.won - self.lost) / self.num_queries

    @property
    def is_better(self) -> bool:
        """Whether R@1 rises: its whole interval is above 0; or that of the mean average precision, and R@1 agrees.

        It agrees if it rises by more than its standard error, a quarter of the length of its interval.
        """
        agrees = self.difference > (self.high - self.low) / 4
        return self.low > 0 or (self.map_low > 0 and agrees)

    @property
    def interval_words(self) -> str:
        """What the intervals are."""
        return "approximate 95% interval" if self.is_approximate else "95% interval"

    def verdict(self, *, is_kept: bool) -> str:
        """Which model is kept, and why, in one sentence.  is_kept: whether the trained model is."""
        if is_kept:
            return "The trained model is better than its start."
        if self.is_better:  # on photos that are compared with each other
            reason = "finds a correct match for fewer queries than its start"
        elif self.difference > 0:
            reason = "may be better than its start, but the difference can be chance"
        else:
            reason = "is not better than its start"
        return f"The trained model {reason}, so the start is kept."

    def changes_text(self) -> str:
        """What changed since the start, for a log line."""
        return f"of {self.num_queries:,} {self.what} compared with the start, {self.won:,} won, {self.lost:,} lost"

    def text(self, part: str = "validation") -> str:
        """The result in one sentence.  part: of the dataset, which the queries are from."""
        return (
            f"R@1 on {self.num_queries} {part} {self.what}: start {self.start_recall1:.1f}, trained "
            f"{self.recall1:.1f}, difference {self.difference:+.1f} points ({self.interval_words} {self.low:+.1f} to "
            f"{self.high:+.1f}; {self.won} won, {self.lost} lost); mean average precision: {self.start_map:.1f}, "
            f"{self.map:.1f}, {self.map - self.start_map:+.1f} points ({self.map_low:+.1f} to {self.map_high:+.1f})."
        )


def compare(
    start: np.ndarray, trained: np.ndarray, num_positives: np.ndarray, positions: np.ndarray, *, what: str = "queries"
) -> Comparison:
    """Compare the predictions of two models.

    start, trained: (Q, K) bool, whether each prediction is correct, best first.  num_positives: (Q,) int.
    positions: (Q, 2) or (Q, 3), meters.
    """
    assert start.shape == trained.shape and len(start) == len(positions) > 0, (start.shape, trained.shape)
    precisions = [average_precisions(hits, num_positives) for hits in (start, trained)]
    first = start[:, 0], trained[:, 0]
    changes = np.stack([first[1].astype(float) - first[0], precisions[1] - precisions[0]], 1)  # (Q, 2)
    means, clusters = changes.mean(axis=0), clusters_of(positions)
    of_recall1, of_map = bootstrap(
        lambda weights: (weights @ changes).T / weights.sum(axis=1), clusters, means.tolist(), (-1.0, 1.0)
    )
    return Comparison(
        what=what,
        num_queries=len(start),
        start_recall1=100 * float(first[0].mean()),
        recall1=100 * float(first[1].mean()),
        won=int((first[1] & ~first[0]).sum()),
        lost=int((first[0] & ~first[1]).sum()),
        low=100 * of_recall1.low,
        high=100 * of_recall1.high,
        start_map=100 * float(precisions[0].mean()),
        map=100 * float(precisions[1].mean()),
        map_low=100 * of_map.low,
        map_high=100 * of_map.high,
        is_approximate=is_approximate(effective_clusters(clusters), float(np.mean(first[0] != first[1])) / 2),
    )


def average_precisions(hits: np.ndarray, num_positives: np.ndarray) -> np.ndarray:
    """Average precision of each query among its K predictions, (Q,) float64 in [0, 1]; 0 without positives.

    The mean, over the first min(K, number of positives) correct predictions a query can have, of the share of correct
    ones up to each.  hits: (Q, K) bool, best first.  num_positives: (Q,) int.
    """
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(axis=1) / np.clip(num_positives, 1, hits.shape[1])
