"""Confidence of the answers of an evaluation, calibrated on its database alone.

Some photos of the database are located as if they were new, as `calibrate` does with photos of an index.  No photo is
encoded again in other light, so the confidence may be too high for queries that differ much from the database.
Legend: Q queries, R database images, K predictions per query, D dimension.  Side effects: writes a line to the log.
"""

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from cosplace.assessment.conditions import latitudes_longitudes
from cosplace.errors import ConfigError
from cosplace.index.records import Columns
from cosplace.localization.calibration import MIN_PHOTOS, all_examples
from cosplace.localization.confidence import MORE_PHOTOS, fit_calibration
from cosplace.localization.fusion import AGREE_M, fuse
from cosplace.localization.leave_one_out import find_matches
from cosplace.localization.queries import queries_of_index
from cosplace.localization.signals import compute_signals
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.capture_times import capture_times
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.retrieval.extraction import Extraction

NUM_QUERIES = 500  # photos of the database to calibrate on
NUM_MATCHES = 20  # at most; more predictions, for other recalls, do not change the confidence

log = logging.getLogger(__name__)


def database_confidence(
    database: Extraction,
    evaluation: Evaluation,
    dataset: RetrievalDataset,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> np.ndarray | None:
    """Probability that each answer is within the radius of the evaluation, (Q,) float64; -inf without an answer.

    The answer is the position that `Localizer` computes from the first NUM_MATCHES predictions.
    None if the database has too few photos or places, or positions that are not on Earth.
    """
    degrees = latitudes_longitudes(dataset.database)
    rows = np.flatnonzero(database.readable & np.isfinite(degrees).all(axis=0))
    if dataset.note or len(rows) < MIN_PHOTOS:
        return None
    unknown = np.full(len(rows), np.nan)
    columns = Columns(
        ids=rows, latitudes=degrees[0, rows], longitudes=degrees[1, rows], headings=unknown,
        times=capture_times(dataset.database, None).seconds[rows], accuracies_m=unknown,
        row_ids=rows, roots=np.zeros(len(rows), np.int32), texts=None,
    )  # fmt: skip
    index: Any = SimpleNamespace(descriptors=lambda ids: database.descriptors[ids])
    rng = np.random.default_rng([seed, 25])
    chosen = np.sort(rng.permutation(len(rows))[:NUM_QUERIES])
    queries = queries_of_index(columns, chosen, index.descriptors(rows[chosen]).astype(np.float32))
    as_new, out_of_index = find_matches(index, columns, queries, progress, 0, None)
    width = slice(min(evaluation.predictions.shape[1], NUM_MATCHES))  # signals depend on the number of matches
    try:
        examples, temperature, _ = all_examples((as_new.take(width), out_of_index.take(width)), queries, None, rng)
        correct = examples.errors_m <= evaluation.positive_dist_threshold
        calibration = fit_calibration(replace(examples, correct=correct), temperature=temperature)
    except ConfigError as error:
        log.info("no confidence of answers: %s", str(error).removesuffix(MORE_PHOTOS))
        return None
    predictions, squared = evaluation.predictions[:, width], evaluation.squared_distances[:, width].astype(np.float64)
    similarities = np.where(predictions >= 0, 1 - squared / 2, -np.inf)
    fusion = fuse(similarities, *degrees[:, predictions], temperature=temperature, agree_m=AGREE_M)
    confidences = calibration.confidences(compute_signals(similarities, fusion))
    return np.where(predictions[:, 0] >= 0, confidences, -np.inf)
