"""How good a model is on the validation set of a fine-tuning.

Small validation sets have few queries, so every photo of the set, of the database too, is also compared with all
others: those within 25 m are its positives.  Models are ranked by the mean of R@1 and mean average precision, of
queries and of photos.  Legend: Q queries, R database images, A = R + Q photos, K predictions, D descriptor dimension.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from cosplace.geo import distances_m
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, EvaluationSettings, evaluate_descriptors
from cosplace.retrieval.extraction import TASK, extract
from cosplace.retrieval.recall import RADIUS_M, find_positives
from cosplace.retrieval.search import nearest
from cosplace.training.comparison import Comparison, average_precisions, compare

MOST_PHOTOS = 20_000  # that are compared with all others; of larger sets only the queries are used
ENOUGH_QUERIES = 200  # that decide alone whether a model is better
NUM_OTHERS = 20  # predictions of each photo


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """A model on the validation set."""

    evaluation: Evaluation  # of the queries
    photos: np.ndarray  # (n, K) bool, which predictions are correct, of photos with a positive; none for large sets
    num_positives: np.ndarray  # (n,) int64, positives of each of these photos
    photo_rows: np.ndarray  # (n,) int64, these photos: the database first, then the queries

    @property
    def queries(self) -> np.ndarray:
        """Whether the first prediction of each query is correct, (Q,) bool."""
        return self.evaluation.hits[:, 0]

    @property
    def score(self) -> float:
        """What models are ranked by, in percent."""
        parts = [(self.evaluation.hits, self.evaluation.positives.counts), (self.photos, self.num_positives)]
        values = [
            (hits[:, 0].mean() + average_precisions(hits, counts).mean()) / 2 for hits, counts in parts if len(hits)
        ]
        return 100 * float(np.mean(values))


def judge(
    model: nn.Module, val: RetrievalDataset, settings: EvaluationSettings, progress: Progress = no_progress
) -> Judgment:
    """Evaluate a model (B, 3, H, W) -> (B, D) on the validation set.  Raises what `evaluate` raises."""
    num_database, num_photos = len(val.database), len(val.database) + len(val.queries)
    database, queries = (
        extract(model, images, settings.extraction, progress=part_of(progress, TASK, done, num_photos))
        for images, done in ((val.database, 0), (val.queries, num_database))
    )
    readable = np.concatenate([database.readable, queries.readable])
    evaluation = evaluate_descriptors(database, queries, val, settings)
    return _judgment(evaluation, np.asarray(database.descriptors), np.asarray(queries.descriptors), readable, val)


def judge_descriptors(
    database: np.ndarray, queries: np.ndarray, val: RetrievalDataset, settings: EvaluationSettings
) -> Judgment:
    """The same from descriptors (R, D) and (Q, D) float32."""
    readable = np.ones(len(database) + len(queries), bool)
    return _judgment(evaluate_descriptors(database, queries, val, settings), database, queries, readable, val)


def _judgment(
    evaluation: Evaluation, database: np.ndarray, queries: np.ndarray, readable: np.ndarray, val: RetrievalDataset
) -> Judgment:
    hits, num_positives, rows = np.zeros((0, 1), bool), np.zeros(0, np.int64), np.zeros(0, np.int64)
    if len(readable) <= MOST_PHOTOS:
        points = np.concatenate([val.database_positions, val.query_positions])
        counts = find_positives(points, points).counts - 1  # without the photo itself
        rows = np.flatnonzero(readable & (counts > 0))
    if len(rows) > 1:
        others = np.flatnonzero(readable)
        descriptors, num = np.concatenate([database, queries]), min(NUM_OTHERS, len(others) - 1)
        found = others[nearest(descriptors[rows], descriptors[others], num + 1)[0]]  # (n, K + 1)
        itself = found == rows[:, None]
        itself[~itself.any(axis=1), -1] = True  # among many equal descriptors, it may not be found
        best = found[~itself].reshape(len(rows), num)
        hits, num_positives = distances_m(points[best], points[rows, None]) <= RADIUS_M, counts[rows]
    return Judgment(evaluation=evaluation, photos=hits, num_positives=num_positives, photo_rows=rows[: len(hits)])


def compare_judgments(start: Judgment, trained: Judgment, val: RetrievalDataset) -> Comparison:
    """Compare two models on the queries; on all photos of a set with few queries."""
    if len(start.queries) >= ENOUGH_QUERIES or not len(start.photos):
        return compare_evaluations(start.evaluation, trained.evaluation, val)
    points = np.concatenate([val.database_positions, val.query_positions])
    shared, of_start, of_trained = np.intersect1d(start.photo_rows, trained.photo_rows, return_indices=True)
    return compare(
        start.photos[of_start],
        trained.photos[of_trained],
        start.num_positives[of_start],
        points[shared],
        what="photos",
    )


def compare_evaluations(start: Evaluation, trained: Evaluation, dataset: RetrievalDataset) -> Comparison:
    """Compare two models on the queries of a dataset."""
    return compare(start.hits, trained.hits, start.positives.counts, dataset.query_positions)
