"""The data that a report shows.  Legend: Q queries, R database images, K predictions per query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cosplace.assessment.intervals import Estimate
from cosplace.assessment.measures import Measures
from cosplace.geo import distances_m
from cosplace.photos.headings import known_headings
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.training.groups import Groups

SAME_PLACE_M = 0.005  # names are written to the centimeter
FACING_DEG = (
    45.0  # two photos with a smaller difference of their headings face the same way: half a usual field of view
)
CORRECT_FIRST, CORRECT_LATER, NOT_FOUND = 0, 1, 2  # the outcome of a query


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallRow:
    """One row of the recall table: a model or a baseline."""

    name: str
    recalls: Mapping[int, float]  # N -> percentage
    note: str = ""
    intervals: Mapping[int, Estimate] = field(default_factory=dict)  # of the recalls; without those that are unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMatches:
    """For each query, the database image that it should have found first."""

    images: np.ndarray  # (Q,) int64; -1 for a query without positives
    distances_m: np.ndarray  # (Q,) float64; nan without one
    heading_differences_deg: np.ndarray  # (Q,) float64 in [0, 180]; nan if a heading is unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the page can show.  A section without data is left out."""

    title: str
    summary: Sequence[str] = ()  # short sentences: what was run
    recall_rows: Sequence[RecallRow] = ()
    highlight: str | None = None  # name of the row of this run's model
    measures: Measures | None = None  # of `evaluation`
    conditions: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name -> value of each query; "" if unknown
    metrics: Sequence[Mapping[str, Any]] = ()  # the rows of metrics.jsonl, in the order they were written
    groups: Groups | None = None
    groups_used: int = 0  # groups 0 … groups_used - 1 were trained on
    dataset: RetrievalDataset | None = None
    evaluation: Evaluation | None = None  # of `dataset`
    expected: ExpectedMatches | None = None  # of `evaluation`, if they are known
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)  # command, versions, times; may be nested
    num_queries_shown: int = 12  # at once
    num_predictions_shown: int = 5
    num_queries_matched: int = 0  # with matches of local features, if OpenCV is installed


def outcomes(hits: np.ndarray) -> np.ndarray:
    """(Q,) CORRECT_FIRST, CORRECT_LATER or NOT_FOUND for each query, from (Q, K) bool."""
    return np.where(hits[:, 0], CORRECT_FIRST, np.where(hits.any(axis=1), CORRECT_LATER, NOT_FOUND))


def outcome_names(num_predictions: int) -> tuple[str, str, str]:
    """Name the outcomes of queries with K predictions, in the order of their numbers; empty for one that cannot be."""
    ranks = f"2–{num_predictions}" if num_predictions > 2 else "2"
    later = f"correct at rank {ranks}" if num_predictions > 1 else ""
    return "correct at rank 1", later, f"not found in top {num_predictions}"


def similarities(evaluation: Evaluation) -> np.ndarray:
    """Cosine similarities of queries and predictions, (Q, K) float64, for descriptors of length 1; -inf without one."""
    return 1 - evaluation.squared_distances.astype(np.float64) / 2


def expected_matches(dataset: RetrievalDataset, evaluation: Evaluation) -> ExpectedMatches:
    """Return the expected match of each query: near, and with a similar heading.

    It is the nearest of the positives that face the same way as the query (up to FACING_DEG), or the nearest positive
    if no positive is known to do so.  Among equally near ones, such as the images of a panorama, it is the one with the
    most similar heading.
    """
    database_headings, query_headings = known_headings(dataset.database), known_headings(dataset.queries)
    num_queries = len(dataset.query_positions)
    images = np.full(num_queries, -1, np.int64)
    distances, differences = np.full(num_queries, np.nan), np.full(num_queries, np.nan)
    for query in np.flatnonzero(evaluation.positives.counts):
        positives = evaluation.positives.of(int(query))
        meters = distances_m(dataset.database_positions[positives], dataset.query_positions[query])
        turns = np.abs((database_headings[positives] - query_headings[query] + 180) % 360 - 180)
        facing = turns <= FACING_DEG  # False where unknown
        candidates = np.flatnonzero(facing) if facing.any() else np.arange(len(positives))
        nearest = candidates[meters[candidates] <= meters[candidates].min() + SAME_PLACE_M]
        best = nearest[np.where(np.isnan(turns[nearest]), 180.0, turns[nearest]).argmin()]
        images[query], distances[query], differences[query] = positives[best], meters[best], turns[best]
    return ExpectedMatches(images=images, distances_m=distances, heading_differences_deg=differences)
