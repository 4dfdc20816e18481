"""Compute all metrics of one evaluation, with intervals.

A query without positives, or one that could not be opened, counts as a miss everywhere.  Legend: Q queries,
K predictions per query.  Side effects: `measure` reads the table of the dataset, for its conditions.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from cosplace.assessment.conditions import Conditions, condition_rows, find_conditions
from cosplace.assessment.confidence_scores import (
    CONFIDENCE,
    distance_score,
    ratio_score,
    score_metrics,
    spread_score,
    transfers,
)
from cosplace.assessment.intervals import (
    CELL_M,
    UNKNOWN,
    Estimate,
    are_clusters,
    clustered_mean,
    clustered_quantile,
    clustered_share,
    clusters_of,
    effective_clusters,
    is_approximate,
)
from cosplace.assessment.measures import Measures
from cosplace.geo import distances_m
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation

RADII_M = np.arange(1.0, 101.0)
QUANTILES = (50, 90)  # percent, of the distance of the first prediction
L2, RATIO, SPREAD = "L2 distance", "ratio d1/d2", "spread of the first 10 positions"


def measure(
    evaluation: Evaluation,
    dataset: RetrievalDataset,
    *,
    scores: Mapping[str, np.ndarray] = MappingProxyType({}),
    conditions: Conditions | None = None,
    sequences: np.ndarray | None = None,
) -> Measures:
    """All metrics of an evaluation.

    scores: more scores of the first prediction, by name, (Q,) float64; larger is better, -inf for no answer; that named
    "confidence" is a probability.  conditions: those of `find_conditions`, which is called if they are not given.
    sequences: (Q,) int64, -1 where unknown, instead of those of the conditions.
    """
    conditions = find_conditions(dataset, evaluation.positives) if conditions is None else conditions
    sequences = conditions.sequences if sequences is None else sequences
    clusters = query_clusters(evaluation, dataset, sequences)
    hits = evaluation.hits  # (Q, K) bool
    is_found = np.logical_or.accumulate(hits, axis=1)  # a hit at rank j is a hit for all larger N
    right, errors_m = hits[:, 0], evaluation.distances_m[:, 0]
    straight_m = straight_distances_m(evaluation, dataset)
    radius_m = evaluation.positive_dist_threshold
    precisions = average_precisions(hits, evaluation.positives.counts)
    all_scores = {**scores, **baseline_scores(evaluation, dataset)}
    best_score = next(iter(all_scores))
    longest_m, longest_queries = longest_miss(right, dataset.query_positions, sequences, conditions.seconds)
    found = Measures(
        recalls={n: clustered_share(is_found[:, n - 1], clusters) for n in evaluation.recalls},
        radii_m=RADII_M,
        recall1_by_radius=tuple(clustered_share(straight_m <= limit, clusters) for limit in RADII_M),
        error_m={quantile: clustered_quantile(errors_m, clusters, quantile / 100) for quantile in QUANTILES},
        errors_m=errors_m,
        near_misses=clustered_share((straight_m > radius_m) & (straight_m <= 2 * radius_m), clusters),
        mean_average_precision=mean_average_precision(precisions, clusters),
        num_predictions=hits.shape[1],
        scores=tuple(
            score_metrics(name, values, right, clusters, is_probability=name == CONFIDENCE)
            for name, values in all_scores.items()
        ),
        scores_of_queries=all_scores,
        transfers=transfers(best_score, all_scores[best_score], right, clusters, western_half(dataset, clusters)),
        conditions=condition_rows(conditions, right, errors_m, clusters),
        longest_miss_m=longest_m,
        longest_miss_queries=longest_queries,
        clusters=clusters,
        clustered_by=_clustered_by(clusters, sequences, dataset),
    )
    return _without_distances(found) if dataset.note else found


def _without_distances(measures: Measures) -> Measures:
    """The metrics of positions that are not on Earth, such as numbers of frames, whose distances mean nothing."""
    return replace(
        measures,
        radii_m=RADII_M[:0],
        recall1_by_radius=(),
        error_m=dict.fromkeys(measures.error_m, UNKNOWN),
        near_misses=UNKNOWN,
        transfers=(),  # from one half of the map to the other
        conditions=tuple(replace(row, median_error_m=UNKNOWN) for row in measures.conditions),
        longest_miss_m=math.nan,
    )


def query_clusters(
    evaluation: Evaluation, dataset: RetrievalDataset, sequences: np.ndarray | None = None
) -> np.ndarray:
    """The cluster of each query, (Q,) int64; see `clusters_of`.

    Where positions are not on Earth, such as numbers of frames times any factor, cells are twice as large as the
    radius, so that intervals do not depend on the factor.
    """
    cell_m = 2 * evaluation.positive_dist_threshold if dataset.note else CELL_M
    return clusters_of(dataset.query_positions, sequences, cell_m or CELL_M)


def _clustered_by(clusters: np.ndarray, sequences: np.ndarray, dataset: RetrievalDataset) -> str:
    if are_clusters(sequences):
        return "sequence" if (sequences >= 0).all() else "mixed"
    if np.bincount(clusters).max(initial=0) <= 1:
        return "query"
    return "radius" if dataset.note else "place"


def mean_average_precision(precisions: np.ndarray, clusters: np.ndarray) -> Estimate:
    """In percent.  If all precisions (Q,) are 0 or all are 1, nothing varies: the interval is that of a share."""
    if len(precisions) and np.ptp(precisions) == 0 and precisions[0] in (0, 1):
        return clustered_share(precisions == 1, clusters)
    mean = clustered_mean(precisions, clusters)
    ends = (min(max(100 * end, 0.0), 100.0) for end in (mean.value, mean.low, mean.high))
    return Estimate(*ends, is_approximate(effective_clusters(clusters), mean.value))


def straight_distances_m(evaluation: Evaluation, dataset: RetrievalDataset) -> np.ndarray:
    """Distance from each query to its first prediction in a straight line, as `find_positives` computes it.

    (Q,) float64; inf without a prediction.  So the recall at the radius of the evaluation is exactly its Recall@1.
    """
    first = evaluation.predictions[:, 0]
    offsets = (dataset.query_positions - dataset.database_positions[first]).T
    return np.where(first >= 0, np.sqrt(sum(offset * offset for offset in offsets)), np.inf)


def average_precisions(hits: np.ndarray, num_positives: np.ndarray) -> np.ndarray:
    """Average precision of the K predictions of each query, (Q,) float64 in [0, 1].

    The precisions of the first k predictions, summed over the ranks k of hits, divided by the number of positives or by
    K if that is smaller: 1 if all predictions that can be hits are.  0 for a query without positives.
    hits: (Q, K) bool.  num_positives: (Q,) int64.
    """
    num_predictions = hits.shape[1]
    precisions = np.cumsum(hits, axis=1) / np.arange(1, num_predictions + 1)
    return (precisions * hits).sum(axis=1) / np.maximum(np.minimum(num_positives, num_predictions), 1)


def baseline_scores(evaluation: Evaluation, dataset: RetrievalDataset) -> dict[str, np.ndarray]:
    """Scores of the first prediction that need no training, (Q,) float64 each."""
    squared = evaluation.squared_distances
    positions = dataset.database_positions[evaluation.predictions[:, :10]]
    scores = {L2: distance_score(squared), RATIO: ratio_score(squared), SPREAD: spread_score(squared, positions)}
    if squared.shape[1] == 1:
        return {L2: scores[L2]}
    return {name: values for name, values in scores.items() if name != SPREAD or not dataset.note}


def western_half(dataset: RetrievalDataset, clusters: np.ndarray) -> np.ndarray:
    """Queries on whose half of the area a threshold is chosen, (Q,) bool: whole clusters, those in the west first."""
    if not len(clusters):
        return np.zeros(0, bool)
    sizes = np.bincount(clusters)
    positions = dataset.query_positions
    east = positions[:, 0]
    if positions.shape[1] == 3:  # of several zones, from the center of the Earth
        x, y, _ = positions.mean(axis=0)
        east = positions @ (-y, x, 0.0)
    west = np.bincount(clusters, east) / np.maximum(sizes, 1)
    order = np.argsort(west, kind="stable")
    before = np.empty(len(sizes))
    before[order] = np.cumsum(sizes[order]) - sizes[order]
    return before[clusters] < len(clusters) / 2


def longest_miss(
    right: np.ndarray, positions: np.ndarray, sequences: np.ndarray, seconds: np.ndarray
) -> tuple[float, int]:
    """Longest stretch of a sequence without a correct answer: meters, and queries; nan and 0 without sequences.

    Queries are in the order of their times, or of their list where times are unknown.  The meters are the way between
    the correct answers before and after it, or the ends of the sequence.  Of equally long ones, the one with more
    queries.
    """
    rows = np.flatnonzero(sequences >= 0)
    if not len(rows):
        return math.nan, 0
    rows = rows[np.lexsort((rows, np.nan_to_num(seconds[rows]), sequences[rows]))]
    is_start = np.diff(sequences[rows], prepend=-1) != 0  # of a sequence
    steps = np.where(is_start[1:], 0.0, distances_m(positions[rows[1:]], positions[rows[:-1]]))
    way = np.concatenate([[0.0], np.cumsum(steps)])
    missed = ~right[rows]
    # A run of misses starts after a hit or at the start of a sequence, and ends before a hit or the next sequence.
    starts = np.flatnonzero(missed & (is_start | ~np.concatenate([[True], missed[:-1]])))
    last = np.append(is_start[1:], True)
    ends = np.flatnonzero(missed & (last | ~np.append(missed[1:], True)))
    if not len(starts):
        return 0.0, 0
    before = np.where(is_start[starts], starts, starts - 1)
    after = np.where(last[ends], ends, ends + 1)
    return max(zip((way[after] - way[before]).tolist(), (ends - starts + 1).tolist(), strict=True))
