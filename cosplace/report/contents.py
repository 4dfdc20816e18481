"""What a report is made of, and the words and numbers that all of its parts share."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cosplace.geo import distances_m
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.training.groups import Groups

FOUND_FIRST, FOUND_LATER, MISSED = 0, 1, 2  # what became of a query
RIGHT_SIGN, WRONG_SIGN = "✓", "✗"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallRow:
    """One line of the recall table: a model or a baseline."""

    name: str
    recalls: Mapping[int, float]  # N -> percentage
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that a page may show; whatever is empty or None leaves its section out."""

    title: str
    summary: Sequence[str] = ()  # short sentences: what was run
    recall_rows: Sequence[RecallRow] = ()
    highlight: str | None = None  # the name of the row that is ours
    metrics: Sequence[Mapping[str, Any]] = ()  # the rows of metrics.jsonl, in the order they were written
    groups: Groups | None = None
    groups_used: int = 0  # groups 0 … groups_used - 1 were trained on
    dataset: RetrievalDataset | None = None
    evaluation: Evaluation | None = None  # of `dataset`
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_queries_shown: int = 12
    num_predictions_shown: int = 5


def escape(value: object) -> str:
    """Text that is safe inside HTML, between tags and in quotes; file names may hold anything."""
    # A name that is no UTF-8 carries lone surrogates, which no file of text can hold.
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def shortened(text: str, length: int) -> str:
    """At most `length` characters of a text, its end replaced by an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def format_distance(distance_m: float) -> str:
    """Write a distance in meters or kilometers, with as many digits as a reader needs."""
    if not math.isfinite(distance_m):
        return "unknown distance"
    if distance_m < 99.95:
        return f"{distance_m:.1f} m"
    return f"{distance_m:,.0f} m" if distance_m < 999.5 else f"{distance_m / 1000:,.1f} km"


def outcomes(right: np.ndarray) -> np.ndarray:
    """(Q,) FOUND_FIRST, FOUND_LATER or MISSED for each query, from (Q, K) bool."""
    return np.where(right[:, 0], FOUND_FIRST, np.where(right.any(axis=1), FOUND_LATER, MISSED))


def nearest_positive(dataset: RetrievalDataset, evaluation: Evaluation, query: int) -> tuple[int, float] | None:
    """Return the database photo nearest to a query and its distance in meters; None when none is near enough."""
    candidates = evaluation.positives.of(query)
    if not len(candidates):
        return None
    distances = distances_m(dataset.database_positions[candidates], dataset.query_positions[query])
    nearest = int(distances.argmin())
    return int(candidates[nearest]), float(distances[nearest])
