"""Judge descriptors on one dataset: extract, search, recall.

Protocol: Berton et al., CVPR 2022: exact nearest neighbours on L2 distance, right within 25 m (inclusive), a query
without positives is a miss.  Legend: Q queries, R database images, K predictions per query, D descriptor dimension.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cosplace.errors import DatasetError
from cosplace.geo import distances_m
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.extraction import extract
from cosplace.retrieval.recall import (
    RADIUS_M,
    RECALL_VALUES,
    Positives,
    chance_recalls,
    check_recall_values,
    find_positives,
    is_positive,
    recall_at,
)
from cosplace.retrieval.search import nearest
from cosplace.retrieval.shards import Descriptors, UnreadableImage

Progress = Callable[[int, int], None]  # (photos done, all photos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of a model on a dataset."""

    name: str
    recalls: dict[int, float]  # percent
    chance: dict[int, float]  # percent, of guessing
    predictions: np.ndarray  # (Q, K) int64, database images, best first; -1 for queries that could not be opened
    squared_distances: np.ndarray  # (Q, K) float32 between descriptors; inf where there is no prediction
    distances_m: np.ndarray  # (Q, K) float64, meters between query and prediction; nan where there is none
    positives: Positives
    positive_dist_threshold: float  # meters
    image_size: int | None
    unreadable_database: tuple[UnreadableImage, ...]  # never predicted
    unreadable_queries: tuple[UnreadableImage, ...]  # misses
    num_database: int
    num_queries: int
    num_queries_without_positives: int
    seconds: float  # of everything
    seconds_extracting: float

    @property
    def num_unreadable(self) -> int:
        """How many photos could not be opened."""
        return len(self.unreadable_database) + len(self.unreadable_queries)

    @property
    def hits(self) -> np.ndarray:
        """Tell which predictions are right, (Q, K) bool."""
        return is_positive(self.predictions, self.positives)

    def recalls_text(self) -> str:
        """Recalls on one line, as `R@1: 66.0, R@5: 85.1`."""
        return ", ".join(f"R@{k}: {recall:.1f}" for k, recall in self.recalls.items())


def evaluate(
    model: nn.Module,
    dataset: RetrievalDataset,
    *,
    image_size: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    loader: str = "auto",
    device: str | torch.device = "cpu",
    autocast: torch.dtype | None = None,
    stored_dtype: str = "float32",
    skip_unreadable: bool = False,
    recall_values: Sequence[int] = RECALL_VALUES,
    positive_dist_threshold: float = RADIUS_M,
    num_predictions: int | None = None,
    descriptors_folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Recalls of a model, which turns (B, 3, H, W) ImageNet-normalized photos into (B, D), on a dataset.

    image_size: pixels of the shorter side after resizing; None keeps each photo's own size.
    skip_unreadable: photos that cannot be opened are left out of the database, and are misses among the queries.
    positive_dist_threshold: a prediction is right within so many meters.  num_predictions: K, at least the largest
    recall value, which it is by default; fewer where the database is smaller.  descriptors_folder: keeps descriptors
    in its subfolders database and queries; a stopped evaluation goes on from there.

    Raises what `extract` does, and DatasetError for a database smaller than the largest recall value.
    """
    started = time.perf_counter()
    _check_enough(dataset, recall_values, len(dataset.database))
    total = len(dataset.database) + len(dataset.queries)
    folder = None if descriptors_folder is None else Path(descriptors_folder)
    database, queries = (
        extract(
            model,
            images,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            loader=loader,
            device=device,
            autocast=autocast,
            stored_dtype=stored_dtype,
            skip_unreadable=skip_unreadable,
            to=None if folder is None else folder / part,
            progress=None if progress is None else partial(_from, progress, before, total),
        )
        for part, images, before in (
            ("database", dataset.database, 0),
            ("queries", dataset.queries, len(dataset.database)),
        )
    )
    return evaluate_descriptors(
        database.descriptors,
        queries.descriptors,
        dataset,
        recall_values=recall_values,
        positive_dist_threshold=positive_dist_threshold,
        num_predictions=num_predictions,
        device=device,
        image_size=image_size,
        unreadable_database=database.unreadable,
        unreadable_queries=queries.unreadable,
        seconds_extracting=time.perf_counter() - started,
    )


def evaluate_descriptors(
    database_descriptors: Descriptors,
    query_descriptors: Descriptors,
    dataset: RetrievalDataset,
    *,
    recall_values: Sequence[int] = RECALL_VALUES,
    positive_dist_threshold: float = RADIUS_M,
    num_predictions: int | None = None,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    unreadable_database: Sequence[UnreadableImage] = (),
    unreadable_queries: Sequence[UnreadableImage] = (),
    seconds_extracting: float = 0.0,
) -> Evaluation:
    """Recalls of descriptors (R, D) and (Q, D) of a dataset's photos, wherever they come from.

    Rows of unreadable photos may hold anything.  Raises DatasetError where counts do not fit.
    """
    started = time.perf_counter()
    num_database, num_queries = len(dataset.database_positions), len(dataset.query_positions)
    for rows, wanted, whose in (
        (database_descriptors, num_database, "database"),
        (query_descriptors, num_queries, "queries"),
    ):
        if len(rows) != wanted:
            raise DatasetError(
                f"There are {len(rows)} descriptors for {wanted} photos of the {whose}: extract them again."
            )
    searchable, answerable = _readable(num_database, unreadable_database), _readable(num_queries, unreadable_queries)
    num_searchable = int(searchable.sum())
    _check_enough(dataset, recall_values, num_searchable)
    k = min(max(*recall_values, num_predictions or 1), num_searchable)

    positives = find_positives(dataset.database_positions, dataset.query_positions, positive_dist_threshold)
    predictions = np.full((num_queries, k), -1, np.int64)
    squared_distances = np.full((num_queries, k), np.inf, np.float32)
    asked = query_descriptors[np.flatnonzero(answerable)] if unreadable_queries else query_descriptors
    predictions[answerable], squared_distances[answerable] = nearest(
        asked, database_descriptors, k, device=device, searchable=searchable if unreadable_database else None
    )
    meters = distances_m(dataset.query_positions[:, None], dataset.database_positions[predictions])
    return Evaluation(
        name=dataset.name,
        recalls=recall_at(predictions, positives, recall_values),
        chance=chance_recalls(positives, num_database, recall_values),
        predictions=predictions,
        squared_distances=squared_distances,
        distances_m=np.where(predictions >= 0, meters, np.nan),
        positives=positives,
        positive_dist_threshold=positive_dist_threshold,
        image_size=image_size,
        unreadable_database=tuple(unreadable_database),
        unreadable_queries=tuple(unreadable_queries),
        num_database=num_database,
        num_queries=num_queries,
        num_queries_without_positives=int((positives.counts == 0).sum()),
        seconds=seconds_extracting + time.perf_counter() - started,
        seconds_extracting=seconds_extracting,
    )


def _from(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Report progress in one of the two lists of photos as progress in both."""
    progress(before + done, total)


def _readable(num_images: int, unreadable: Sequence[UnreadableImage]) -> np.ndarray:
    readable = np.ones(num_images, bool)
    readable[[entry.index for entry in unreadable]] = False
    return readable


def _check_enough(dataset: RetrievalDataset, recall_values: Sequence[int], num_searchable: int) -> None:
    check_recall_values(recall_values)
    if num_searchable < max(recall_values):
        kept = [str(k) for k in recall_values if k <= num_searchable] or ["1"]
        raise DatasetError(
            f"Recall@{max(recall_values)} needs {max(recall_values)} database images but {dataset.name} has "
            f"{num_searchable}: add images, or ask for less with `--recall_values {' '.join(kept)}`."
        )
