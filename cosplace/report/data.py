"""The data that a report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cosplace.geo import distances_m
from cosplace.photos.names import optional_fields
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.training.groups import Groups

SAME_PLACE_M = 0.005  # names are written to the centimeter
CORRECT_FIRST, CORRECT_LATER, NOT_FOUND = 0, 1, 2  # the outcome of a query


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallRow:
    """One row of the recall table: a model or a baseline."""

    name: str
    recalls: Mapping[int, float]  # N -> percentage
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the page can show.  A section without data is left out."""

    title: str
    summary: Sequence[str] = ()  # short sentences: what was run
    recall_rows: Sequence[RecallRow] = ()
    highlight: str | None = None  # name of the row of this run's model
    metrics: Sequence[Mapping[str, Any]] = ()  # the rows of metrics.jsonl, in the order they were written
    groups: Groups | None = None
    groups_used: int = 0  # groups 0 … groups_used - 1 were trained on
    dataset: RetrievalDataset | None = None
    evaluation: Evaluation | None = None  # of `dataset`
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_queries_shown: int = 12
    num_predictions_shown: int = 5


def outcomes(hits: np.ndarray) -> np.ndarray:
    """(Q,) CORRECT_FIRST, CORRECT_LATER or NOT_FOUND for each query, from (Q, K) bool."""
    return np.where(hits[:, 0], CORRECT_FIRST, np.where(hits.any(axis=1), CORRECT_LATER, NOT_FOUND))


def outcome_names(num_predictions: int) -> tuple[str, str, str]:
    """Name the outcomes of queries with K predictions, in the order of their numbers."""
    later = "2" if num_predictions == 2 else f"2–{num_predictions}"
    return "correct at rank 1", f"correct at rank {later}", f"not found in top {num_predictions}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMatch:
    """The database image that a query should have found first."""

    image: int
    distance_m: float
    heading_difference_deg: float  # in [0, 180]; nan if a heading is unknown


def expected_match(dataset: RetrievalDataset, evaluation: Evaluation, query: int) -> ExpectedMatch | None:
    """Return the positive nearest to a query; among equally near ones, the one with the most similar heading.

    Images of a panorama are at one position; None for a query without positives.
    """
    positives = evaluation.positives.of(query)
    if not len(positives):
        return None
    distances = distances_m(dataset.database_positions[positives], dataset.query_positions[query])
    nearest = np.flatnonzero(distances <= distances.min() + SAME_PLACE_M)
    headings = optional_fields(dataset.database.subset(positives[nearest].tolist()), ("heading",))[0]
    heading = optional_fields(dataset.queries.subset([query]), ("heading",))[0, 0]
    differences = np.abs((headings - heading + 180) % 360 - 180)
    best = int(np.where(np.isnan(differences), 180.0, differences).argmin())
    return ExpectedMatch(
        image=int(positives[nearest[best]]),
        distance_m=float(distances[nearest[best]]),
        heading_difference_deg=float(differences[best]),
    )
