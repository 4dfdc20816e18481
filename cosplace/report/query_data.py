"""All queries of a report: their order, the values that the page's script shows, and the photos that the page has.

The script gets one JSON object (`page_data`): columns rather than rows, positions in whole decimeters from the
southwest corner of the map, and each database image once.  A page has a limited number of predictions and bytes of
photos, so that 10,000 queries stay below 25 MB.  Legend: Q queries, K predictions per query, P of them in the page,
B images of the database that the page names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosplace.assessment.confidence_scores import CONFIDENCE
from cosplace.photos.image_list import ImageList
from cosplace.photos.paths import writable
from cosplace.report.data import (
    CORRECT_FIRST,
    ExpectedMatches,
    expected_matches,
    outcome_names,
    outcomes,
    similarities,
)
from cosplace.report.maps import on_one_plane
from cosplace.report.thumbnails import Thumbnail, make_thumbnails
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation

MAX_PREDICTIONS = 50_000  # of all queries together, unless that is less than those shown
PHOTO_BUDGET = 12_000_000  # bytes of all thumbnails, as base64
FEW_PHOTOS = 1_000  # up to which thumbnails are larger
LARGE, SMALL = ((180, 234), 78), ((128, 166), 70)  # pixels, and quality of the JPEG
MAX_DOTS = 15_000  # of the database on the map
MAP_CELLS = 1_500  # along the longer side of the map; of the dots in one cell, one is drawn
PER_METER = 10  # positions are in decimeters


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """The queries of an evaluation with what the page shows of them."""

    dataset: RetrievalDataset
    evaluation: Evaluation
    outcome: np.ndarray  # (Q,) CORRECT_FIRST, CORRECT_LATER or NOT_FOUND
    hits: np.ndarray  # (Q, K) bool
    similarities: np.ndarray  # (Q, K) float64, -inf without a prediction
    expected: ExpectedMatches
    order: np.ndarray  # (Q,) int64: the most confident errors first, then the least confident correct answers
    conditions: Mapping[str, Sequence[str]]
    scores: Mapping[str, np.ndarray]  # of the first prediction, (Q,) float64, -inf without one
    num_shown: int  # predictions with photos
    num_stored: int  # P, predictions in the page

    @property
    def confidence(self) -> np.ndarray | None:
        """Calibrated confidence of the answers, (Q,) float64; None if the run has none."""
        return self.scores.get(CONFIDENCE)

    def first_correct(self, query: int) -> int:
        """Rank of the first correct prediction of a query, from 1; 0 without one."""
        return int(self.hits[query].argmax()) + 1 if self.hits[query].any() else 0

    def ranks_shown(self, query: int) -> list[int]:
        """Ranks of the predictions with photos, from 1: the first ones, and the first correct one."""
        ranks = [rank + 1 for rank in range(self.num_shown) if self.evaluation.predictions[query, rank] >= 0]
        correct = self.first_correct(query)
        return [*ranks, correct] if self.num_shown < correct <= self.num_stored else ranks


def num_tiles(queries: Queries) -> int:
    """Most photos of one query: itself, the first predictions, the first correct one if it is later, the expected."""
    return queries.num_shown + (3 if queries.num_stored > queries.num_shown else 2)


def open_queries(
    dataset: RetrievalDataset,
    evaluation: Evaluation,
    num_shown: int,
    conditions: Mapping[str, Sequence[str]],
    *,
    expected: ExpectedMatches | None = None,
    scores: Mapping[str, np.ndarray] | None = None,
) -> Queries:
    """Prepare the queries of an evaluation.

    conditions: name -> value of each query.  expected: if they are known.  scores: name -> (Q,), of the first
    prediction.
    """
    hits = evaluation.hits
    outcome, similarity = outcomes(hits), similarities(evaluation)
    num_queries, num_predictions = hits.shape
    num_shown = min(num_shown, num_predictions)
    return Queries(
        dataset=dataset,
        evaluation=evaluation,
        outcome=outcome,
        hits=hits,
        similarities=similarity,
        expected=expected or expected_matches(dataset, evaluation),
        order=query_order(outcome, similarity[:, 0], (scores or {}).get(CONFIDENCE)),
        conditions=conditions,
        scores=scores or {},
        num_shown=num_shown,
        num_stored=min(num_predictions, max(num_shown, MAX_PREDICTIONS // max(1, num_queries))),
    )


def query_order(outcome: np.ndarray, similarity: np.ndarray, confidence: np.ndarray | None = None) -> np.ndarray:
    """Order of queries, (Q,) int64: errors by falling confidence, then correct answers by rising confidence.

    Equal ones, and all where there is no confidence, are ordered by similarity.
    """
    is_correct = outcome == CORRECT_FIRST
    keys = (similarity,) if confidence is None else (similarity, confidence)  # the last one decides
    return np.lexsort((*(np.where(is_correct, key, -key) for key in keys), is_correct))


# --- photos ----------------------------------------------------------------------------------------------------------


def photos_wanted(queries: Queries) -> list[tuple[str, int]]:
    """Photos of the page, the most important first: ("q", query) or ("d", database image), each once.

    First the query, the first prediction and the expected match of each error, in their order; then those of the
    correct answers; then the other predictions.
    """
    predictions, expected = queries.evaluation.predictions, queries.expected.images
    wanted: dict[tuple[str, int], None] = {}
    for first_only in (True, False):
        for query in queries.order.tolist():
            ranks = queries.ranks_shown(query)
            if first_only:
                ranks = ranks[:1] + [rank for rank in ranks[-1:] if rank > queries.num_shown]
                wanted["q", query] = None
            images = [int(predictions[query, rank - 1]) for rank in ranks]
            for image in (*images, int(expected[query])):
                if image >= 0:
                    wanted["d", image] = None
    return list(wanted)


def page_photos(queries: Queries, budget: int = PHOTO_BUDGET) -> tuple[dict[str, Thumbnail], int]:
    """Thumbnails by key, such as q12 for a query and d7 for a database image, and how many were left out."""
    wanted = photos_wanted(queries)
    lists: dict[str, ImageList] = {"q": queries.dataset.queries, "d": queries.dataset.database}
    size, quality = LARGE if len(wanted) <= FEW_PHOTOS else SMALL
    made = make_thumbnails([(lists[kind], row) for kind, row in wanted], size, quality, budget)
    keys = [f"{kind}{row}" for kind, row in wanted]
    return dict(zip(keys, made, strict=False)), len(wanted) - len(made)


# --- the values of the script ----------------------------------------------------------------------------------------


def page_data(queries: Queries, photos: Mapping[str, Thumbnail]) -> dict[str, Any]:
    """Everything that the script of the page shows, as plain values; see the module's docstring for the units.

    photos: those that are not in the page as images.
    """
    dataset, evaluation, expected = queries.dataset, queries.evaluation, queries.expected
    predictions = evaluation.predictions[:, : queries.num_stored]
    rows: np.ndarray = np.append(predictions, expected.images)
    images = np.unique(rows[rows >= 0])  # (B,)
    database, query_plane = on_one_plane(dataset.database_positions, dataset.query_positions)
    corner = np.minimum(database.min(axis=0), query_plane.min(axis=0))
    later = queries.hits.any(axis=1)
    return {
        "radius": evaluation.positive_dist_threshold,
        "areMeters": not dataset.note,
        "numPredictions": predictions.shape[1],
        "numSearched": evaluation.predictions.shape[1],
        "numShown": queries.num_shown,
        "numTiles": num_tiles(queries),
        "outcomes": list(outcome_names(queries.hits.shape[1])),
        "queries": {
            "name": [writable(dataset.queries.name(row)) for row in range(len(dataset.queries))],
            "at": _decimeters(query_plane, corner),
            "outcome": queries.outcome.tolist(),
            "rank": np.where(later, queries.hits.argmax(axis=1) + 1, 0).tolist(),
            "predictions": _places(images, predictions),
            "meters": _rounded(evaluation.distances_m[:, : queries.num_stored], 2),
            "similarity": _rounded(queries.similarities[:, : queries.num_stored], 4),
            "correct": queries.hits[:, : queries.num_stored].astype(np.int64).tolist(),
            "expected": _places(images, expected.images),
            "expectedMeters": _rounded(expected.distances_m, 2),
            "expectedTurn": _rounded(expected.heading_differences_deg, 0),
            "numPositives": evaluation.positives.counts.tolist(),
            "scores": {name: _rounded(values, 4) for name, values in queries.scores.items()},
        },
        "images": {
            "row": images.tolist(),
            "name": [writable(dataset.database.name(int(row))) for row in images],
            "at": _decimeters(database[images], corner),
        },
        "order": queries.order.tolist(),
        "conditions": {writable(name): _coded(values) for name, values in queries.conditions.items()},
        "database": _decimeters(thinned(database), corner),
        "photos": {key: photo.data for key, photo in photos.items()},
    }


def thinned(positions: np.ndarray) -> np.ndarray:
    """Positions (n, 2) without those that a map would draw over each other, at most MAX_DOTS."""
    side = float(np.ptp(positions, axis=0).max(initial=0.0)) / MAP_CELLS or 1.0
    cells = np.floor((positions - positions.min(axis=0)) / side).astype(np.int64)
    kept = np.unique(cells[:, 0] * (1 << 32) + cells[:, 1], return_index=True)[1]
    if len(kept) > MAX_DOTS:
        kept = kept[np.linspace(0, len(kept) - 1, MAX_DOTS).astype(np.int64)]
    return positions[np.sort(kept)]


def _decimeters(positions: np.ndarray, corner: np.ndarray) -> list[int]:
    """East and north of each position, one after the other, in whole decimeters from a corner."""
    return np.round((positions - corner) * PER_METER).astype(np.int64).reshape(-1).tolist()


def _places(images: np.ndarray, rows: np.ndarray) -> list[Any]:
    """Where each row stands in `images`; -1 without a row."""
    return np.where(rows >= 0, np.searchsorted(images, rows), -1).tolist()


def _rounded(values: np.ndarray, decimals: int) -> list[Any]:
    """Rounded values; None where a value is not finite."""
    rounded = np.round(values, decimals).astype(object)
    rounded[~np.isfinite(values)] = None
    return rounded.tolist()


def _coded(values: Sequence[str]) -> dict[str, Any]:
    """The different values of a condition, sorted, and the number of that of each query."""
    different = sorted(set(values))
    numbers = {value: number for number, value in enumerate(different)}
    return {"values": [writable(value) for value in different], "of": [numbers[value] for value in values]}
