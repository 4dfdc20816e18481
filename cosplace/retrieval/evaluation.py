"""Evaluate a model on one dataset: descriptors, exact search, recalls.

Protocol: Berton et al., CVPR 2022: exact nearest neighbors on L2 distance, correct within 25 m (inclusive), a query
without positives is a miss.  Legend: Q queries, R database images, K predictions per query, D descriptor dimension.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cosplace.config.evaluation import CompressionSettings, EvalConfig, ViewSettings
from cosplace.config.sections import TrainConfig
from cosplace.config.values import loading_workers
from cosplace.device import amp_type
from cosplace.engines.encoder import Encoder
from cosplace.engines.engine import Engine
from cosplace.errors import DatasetError
from cosplace.geo import distances_m
from cosplace.photos.crops import NATIVE, SHORT_SIDE, WITH_SIZE
from cosplace.photos.image_list import ImageList
from cosplace.progress import Progress, format_count, no_progress, part_of
from cosplace.retrieval.compression import Compression
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation_checks import check_finite, check_places, readable_blocks, warn_of_equal_descriptors
from cosplace.retrieval.extraction import TASK, Extraction, ExtractionSettings, extract
from cosplace.retrieval.query_views import Views, check_policy, combine, query_extractions, search
from cosplace.retrieval.recall import (
    RADIUS_M,
    RECALL_VALUES,
    Positives,
    chance_recalls,
    check_radius,
    check_recall_values,
    find_positives,
    is_positive,
    recall_at,
)
from cosplace.retrieval.shards import Descriptors, UnreadableImage, unreadable_text

SCORED_PREDICTIONS = 20  # of each query, whose metrics are computed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How to evaluate a model.  Raises ConfigError for a value outside its limits."""

    extraction: ExtractionSettings = field(default_factory=ExtractionSettings)
    recall_values: Sequence[int] = RECALL_VALUES  # the N of Recall@N
    positive_dist_threshold: float = RADIUS_M  # meters within which a prediction is correct
    num_predictions: int | None = None  # K; at least the largest recall value, at most the size of the database
    descriptors_folder: str | Path | None = None  # keeps descriptors in its subfolders database and queries
    query_policy: str | None = None  # one of POLICIES; None describes queries as the database
    query_size: int | None = None  # pixels, for policies that have a size
    compression: Compression | None = None  # search by compressed descriptors; None compares them exactly

    def __post_init__(self) -> None:
        check_policy(self.query_policy, self.query_size)
        check_recall_values(self.recall_values)
        check_radius(self.positive_dist_threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The results of a model on a dataset."""

    name: str
    recalls: dict[int, float]  # percent
    chance: dict[int, float]  # percent, of random predictions
    predictions: np.ndarray  # (Q, K) int64, database images, best first; -1 for queries that could not be opened
    squared_distances: np.ndarray  # (Q, K) float32 between descriptors; inf without a prediction
    distances_m: np.ndarray  # (Q, K) float64, meters between query and prediction; nan without a prediction
    positives: Positives
    positive_dist_threshold: float  # meters
    image_size: int | None
    unreadable_database: tuple[UnreadableImage, ...]  # never predicted
    unreadable_queries: tuple[UnreadableImage, ...]  # misses
    num_database: int
    num_queries: int
    num_queries_without_positives: int
    seconds: float  # in total
    seconds_extracting: float
    seconds_database: float = 0.0  # of seconds_extracting, for the database
    recall_values_left_out: tuple[int, ...] = ()  # those larger than the database
    views: Mapping[str, Any] = field(default_factory=dict)  # see `views_record`
    compression: Compression | None = None  # None: exact search
    dimension: int = 0  # D; 0 if unknown

    @property
    def num_searchable(self) -> int:
        """The number of database images that could be opened."""
        return self.num_database - len(self.unreadable_database)

    @property
    def num_unreadable(self) -> int:
        """The number of photos that could not be opened."""
        return len(self.unreadable_database) + len(self.unreadable_queries)

    @property
    def hits(self) -> np.ndarray:
        """Which predictions are correct, (Q, K) bool."""
        return is_positive(self.predictions, self.positives)

    def recalls_text(self) -> str:
        """Format the recalls on one line, as `R@1: 66.0, R@5: 85.1`."""
        return ", ".join(f"R@{k}: {recall:.1f}" for k, recall in self.recalls.items())


def evaluate(
    model: nn.Module | Engine | Encoder,
    dataset: RetrievalDataset | str | Path,
    settings: EvaluationSettings | None = None,
    *,
    progress: Progress = no_progress,
    **options: Any,
) -> Evaluation:
    """Evaluate a model on a dataset.

    model: a network (B, 3, H, W) ImageNet-normalized photos -> (B, D); an engine; or an Encoder, whose image size and
    device are then the defaults.  dataset: a dataset, or the folder that holds database/ and queries/.
    options: fields of EvaluationSettings and ExtractionSettings by name, in place of those in `settings`.
    With skip_unreadable, photos that cannot be opened are left out of the database, and are misses as queries.
    With descriptors_folder, an interrupted evaluation continues with the descriptors that are finished.

    Recall values larger than the database are left out, with a warning.
    Raises what `extract` raises, and DatasetError for a database smaller than all recall values, or with one place.
    """
    if isinstance(model, Encoder):
        extraction = ExtractionSettings(image_size=model.image_size, device=model.device)
        settings, model = settings or EvaluationSettings(extraction=extraction), model.engine
    settings = _with_options(settings or EvaluationSettings(), options)
    if isinstance(dataset, str | Path):
        dataset = open_retrieval_dataset(dataset)
    return evaluate_descriptors(*extract_dataset(model, dataset, settings, progress=progress), dataset, settings)


def extract_dataset(
    model: nn.Module | Engine,
    dataset: RetrievalDataset,
    settings: EvaluationSettings,
    *,
    progress: Progress = no_progress,
) -> tuple[Extraction, Views]:
    """Descriptors of database and queries.

    Raises what `extract` raises, and DatasetError for a database smaller than all recall values, or with one place.
    """
    _possible_recall_values(dataset, settings, len(dataset.database))
    check_places(dataset, settings.positive_dist_threshold)
    return extract_lists(model, dataset.database, dataset.queries, settings, progress=progress)


def extract_lists(
    model: nn.Module | Engine,
    database: ImageList,
    queries: ImageList,
    settings: EvaluationSettings,
    *,
    progress: Progress = no_progress,
) -> tuple[Extraction, Views]:
    """Descriptors of the photos of two lists.  Raises what `extract` and `query_extractions` raise."""
    crops = query_extractions(settings.query_policy, settings.query_size, settings.extraction, database)
    num_photos = len(database) + len(crops) * len(queries)
    folder = None if settings.descriptors_folder is None else Path(settings.descriptors_folder)
    described = extract(
        model,
        database,
        settings.extraction,
        to=folder and folder / "database",
        progress=part_of(progress, TASK, 0, num_photos),
    )
    found = []
    for number, crop in enumerate(crops):
        name = "queries" if len(crops) == 1 else f"queries-{number}"
        first = len(database) + number * len(queries)
        report = part_of(progress, TASK, first, num_photos)
        found.append(extract(model, queries, crop, to=folder and folder / name, progress=report))
    return described, combine(settings.query_policy, found)


def evaluate_descriptors(
    database: Extraction | Descriptors,
    queries: Views | Descriptors,
    dataset: RetrievalDataset,
    settings: EvaluationSettings | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate descriptors (R, D) and (Q, D) of the photos of a dataset, from any source.

    queries: also descriptors of several crops, see `query_views`.
    Rows of unreadable photos are ignored.  options: as for `evaluate`.
    Raises DatasetError when the number of descriptors differs from the number of photos, when descriptors are not
    finite, and when the database is too small.
    """
    started = time.perf_counter()
    settings = _with_options(settings or EvaluationSettings(), options)
    database = _as_extraction(database)
    crops = queries if isinstance(queries, tuple) else (_as_extraction(queries),)
    num_database, num_queries = len(dataset.database_positions), len(dataset.query_positions)
    for extraction, images, num_photos, split in (
        (database, dataset.database, num_database, "database"),
        *((crop, dataset.queries, num_queries, "queries") for crop in crops),
    ):
        if (num_rows := len(extraction.descriptors)) != num_photos:
            raise DatasetError(
                f"There are {num_rows} descriptors for {num_photos} photos of the {split}. Extract them again."
            )
        check_finite(extraction, images, split)
    warn_of_equal_descriptors(readable_blocks(database))
    num_searchable = int(database.readable.sum())
    recall_values, k = possible_recalls(dataset, settings, num_searchable)
    predictions, squared_distances = search(
        database,
        crops if len(crops) > 1 else crops[0],
        k,
        policy=settings.query_policy,
        device=str(settings.extraction.device),
        compression=settings.compression,
    )
    evaluation = evaluate_predictions(
        predictions,
        squared_distances,
        dataset,
        settings,
        recall_values=recall_values,
        unreadable_database=database.unreadable,
        unreadable_queries=crops[0].unreadable,
        dimension=database.descriptors.shape[1],
    )
    seconds_extracting = database.seconds + sum(crop.seconds for crop in crops)
    return replace(
        evaluation,
        seconds=seconds_extracting + time.perf_counter() - started,
        seconds_extracting=seconds_extracting,
        seconds_database=database.seconds,
    )


def evaluate_predictions(
    predictions: np.ndarray,
    squared_distances: np.ndarray,
    dataset: RetrievalDataset,
    settings: EvaluationSettings,
    *,
    recall_values: Sequence[int],
    unreadable_database: tuple[UnreadableImage, ...] = (),
    unreadable_queries: tuple[UnreadableImage, ...] = (),
    dimension: int = 0,
) -> Evaluation:
    """Evaluate the result of a search: predictions (Q, K) int64 and squared distances (Q, K) float32 of descriptors.

    recall_values: those that the database is large enough for; see `possible_recalls`.
    """
    started = time.perf_counter()
    positives = find_positives(dataset.database_positions, dataset.query_positions, settings.positive_dist_threshold)
    num_database, num_queries = len(dataset.database_positions), len(dataset.query_positions)
    meters = distances_m(dataset.query_positions[:, None], dataset.database_positions[predictions])
    return Evaluation(
        name=dataset.name,
        recalls=recall_at(predictions, positives, recall_values),
        chance=chance_recalls(positives, num_database, recall_values),
        predictions=predictions,
        squared_distances=squared_distances,
        distances_m=np.where(predictions >= 0, meters, np.nan),
        positives=positives,
        positive_dist_threshold=settings.positive_dist_threshold,
        image_size=settings.extraction.image_size,
        unreadable_database=unreadable_database,
        unreadable_queries=unreadable_queries,
        num_database=num_database,
        num_queries=num_queries,
        num_queries_without_positives=int((positives.counts == 0).sum()),
        seconds=time.perf_counter() - started,
        seconds_extracting=0.0,
        recall_values_left_out=tuple(k for k in settings.recall_values if k not in recall_values),
        views=views_record(settings),
        compression=settings.compression,
        dimension=dimension,
    )


def views_record(settings: EvaluationSettings) -> dict[str, Any]:
    """Sizes and copies of photos that were described, and a type of stored descriptors other than float32."""
    extraction = settings.extraction
    usual = NATIVE if extraction.image_size is None else SHORT_SIDE
    record = {
        "query_policy": settings.query_policy or usual,
        "query_size": settings.query_size if settings.query_policy else extraction.image_size,
        "scales": list(extraction.scales),
        "flip": extraction.flip,
    }
    return record if extraction.stored_dtype == "float32" else record | {"descriptors_dtype": extraction.stored_dtype}


def log_misses(evaluation: Evaluation) -> None:
    """Log which photos could not be opened, and how many queries have no positive: both lower the recalls."""
    photos = [*evaluation.unreadable_database, *evaluation.unreadable_queries]
    if photos:
        log.warning("%s", unreadable_text(photos, "queries count as misses, database images are never found"))
    if missing := evaluation.num_queries_without_positives:
        log.info("%s", about_missing_positives(missing))


def about_missing_positives(count: int) -> str:
    """Say that queries have no correct answer in the database."""
    verbs = "has no positive and counts as a miss" if count == 1 else "have no positive and count as misses"
    return f"{format_count(count, 'query', 'queries')} {verbs}"


def _as_extraction(descriptors: Extraction | Descriptors) -> Extraction:
    if isinstance(descriptors, Extraction):
        return descriptors
    readable = np.ones(len(descriptors), bool)
    return Extraction(descriptors=descriptors, readable=readable, unreadable=(), seconds=0.0)


def about_left_out(recall_values: Sequence[int], num_searchable: int) -> str:
    """Say which recalls cannot be computed in a database of this size."""
    *others, last = (f"Recall@{k}" for k in recall_values)
    names = f"{', '.join(others)} and {last} are" if others else f"{last} is"
    return f"{names} left out: the database has only {num_searchable} image{'' if num_searchable == 1 else 's'}."


@cache
def _warn_once(message: str) -> None:
    # Training evaluates the same dataset after each epoch.
    log.warning("%s", message)


def possible_recalls(
    dataset: RetrievalDataset, settings: EvaluationSettings, num_searchable: int
) -> tuple[tuple[int, ...], int]:
    """The recall values up to the size of the database, and the number of predictions that are needed.

    Warns about others.  Raises DatasetError if there are none.
    """
    recall_values = _possible_recall_values(dataset, settings, num_searchable)
    left_out = tuple(k for k in settings.recall_values if k not in recall_values)
    if left_out:
        _warn_once(f"{dataset.name}: {about_left_out(left_out, num_searchable)}")
    return recall_values, min(max(*settings.recall_values, settings.num_predictions or 1), num_searchable)


def _possible_recall_values(
    dataset: RetrievalDataset, settings: EvaluationSettings, num_searchable: int
) -> tuple[int, ...]:
    """The recall values up to the size of the database.  Raises DatasetError if there are none."""
    possible = tuple(k for k in settings.recall_values if k <= num_searchable)
    if not possible:
        smallest = min(settings.recall_values)
        remedies = ["use --recall_values 1"] if num_searchable else []
        raise DatasetError(
            f"Recall@{smallest} needs {smallest} database images, but {dataset.database.folder} has {num_searchable}.",
            "add images",
            *remedies,
        )
    return possible


# --- settings --------------------------------------------------------------------------------------------------------


def _with_options(settings: EvaluationSettings, options: dict[str, Any]) -> EvaluationSettings:
    """Replace fields of the settings, or of its extraction settings, by name.  Raises TypeError for unknown names."""
    names = {known.name for known in fields(ExtractionSettings)} & set(options)
    own = {name: value for name, value in options.items() if name not in names}
    extraction = own.pop("extraction", settings.extraction)
    return replace(settings, extraction=replace(extraction, **{name: options[name] for name in names}), **own)


def with_scored_predictions(settings: EvaluationSettings) -> EvaluationSettings:
    """At least SCORED_PREDICTIONS, so that scores and mAP do not depend on the recalls asked for."""
    return replace(settings, num_predictions=max(SCORED_PREDICTIONS, settings.num_predictions or 1))


def evaluation_settings(config: TrainConfig | EvalConfig, device: torch.device) -> EvaluationSettings:
    """Evaluation settings from the options of `cosplace train` or `cosplace eval`, for a device."""
    testing, running = config.testing, config.running
    if isinstance(config, EvalConfig):
        image_size, views, compressing = config.test_size.image_size, config.views, config.compression
        folder, dtype = config.weights.descriptors_folder, config.weights.descriptors_dtype
    else:
        image_size, views, compressing = config.augmenting.image_size, ViewSettings(), CompressionSettings()
        folder, dtype = None, "float32"
    return EvaluationSettings(
        extraction=ExtractionSettings(
            image_size=image_size if testing.resize_test_imgs else None,
            batch_size=testing.infer_batch_size,
            num_workers=loading_workers(running.num_workers),
            loader=running.loader,
            device=device,
            autocast=amp_type(running.use_amp16, running.amp_dtype, device),
            skip_unreadable=testing.skip_unreadable,
            scales=views.scales,
            flip=views.flip,
            stored_dtype=dtype,
        ),
        recall_values=testing.recall_values,
        positive_dist_threshold=testing.positive_dist_threshold,
        num_predictions=max(testing.num_preds_to_save, *testing.recall_values),
        descriptors_folder=folder,
        query_policy=views.query_policy,
        query_size=image_size if views.query_policy in WITH_SIZE else None,
        compression=Compression(method=compressing.compress, shortlist=compressing.shortlist)
        if compressing.compress
        else None,
    )
