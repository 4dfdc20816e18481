"""All metrics of one evaluation, as data.  `assessment.metrics` computes them; reports and tables show them.

Legend: Q queries, K predictions per query.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cosplace.assessment.intervals import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMetrics:
    """How well a score of the first prediction tells right from wrong answers (Zaffar et al., CVPR 2024).

    A query is answered if its score is high enough.  Recall is the share of all queries that are answered, and
    correctly: a query without positives, or without a prediction, lowers it.  Precision is the share of answers that
    are correct.
    """

    name: str  # "confidence", "L2 distance", "ratio d1/d2", "spread of the first 10 positions"
    recall: np.ndarray  # (n,) float64 in [0, 1], ascending: the curve, one point for each distinct score
    precision: np.ndarray  # (n,) float64 in [0, 1]
    threshold: (
        np.ndarray
    )  # (n,) float64, descending: answers with at least this score are given; distances are negative
    area: Estimate  # average precision in percent, with recall as a share of the correct answers: 100 if all of these
    # have a better score than all wrong ones, and Recall@1 for random scores
    recall_at_full_precision: Estimate  # percent; the interval is that for a fixed threshold
    recall_at_95_precision: Estimate  # percent
    calibration_error: Estimate  # ECE in [0, 1]; nan for scores that are not probabilities
    reliability: np.ndarray  # (bins, 3): mean confidence, share correct, number of queries; empty if no probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """The precision of answers whose threshold was chosen on other queries, in another part of the area."""

    score: str  # its name
    carried: str  # "threshold", or "quantile": the same share of queries is answered
    target: float  # precision on the queries of the choice, at least, in [0, 1]
    precision: Estimate  # percent of answers that are correct
    recall: Estimate  # percent of queries that are answered correctly


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionRow:
    """The recall of the queries of one condition, such as night."""

    condition: str  # "time of day", "season", "years between", "heading difference", "camera", "sequence"
    value: str  # "night", "1–3 years", …
    num_queries: int
    num_clusters: int  # that these queries are in
    effective_clusters: float  # how many of equal size these are worth
    recall1: Estimate  # percent
    median_error_m: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """All metrics of one evaluation."""

    recalls: Mapping[int, Estimate]  # N -> percent
    radii_m: np.ndarray  # (n,) float64, from 1 to 100
    recall1_by_radius: tuple[Estimate, ...]  # percent, for each radius
    error_m: Mapping[int, Estimate]  # quantile in percent (50, 90) -> meters, of the first prediction
    errors_m: np.ndarray  # (Q,) float64, distance of the first prediction; nan without one
    near_misses: Estimate  # percent of queries whose first prediction is between one and two radii away
    mean_average_precision: Estimate  # percent, over the K predictions of each query
    num_predictions: int  # K
    scores: tuple[ScoreMetrics, ...]  # the calibrated confidence first, if there is one
    scores_of_queries: Mapping[str, np.ndarray]  # by the names of `scores`: (Q,) float64, -inf without a prediction
    transfers: tuple[Transfer, ...] = ()  # of the first score
    conditions: tuple[ConditionRow, ...]
    longest_miss_m: float  # longest stretch of a sequence without a correct answer; nan without sequences
    longest_miss_queries: int
    clusters: np.ndarray  # (Q,) int64: queries that are drawn together
    clustered_by: str  # "sequence", "mixed" (sequence or cell), "place", "radius" or "query"

    @property
    def has_distances(self) -> bool:
        """Whether positions are on Earth, so that distances are meters."""
        return len(self.radii_m) > 0
