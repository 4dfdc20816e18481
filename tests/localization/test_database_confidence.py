"""Confidence of an evaluation from its database: it is calibrated, and tells right from wrong answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosplace.assessment.confidence_scores import calibration_error, reliability_bins, score_metrics
from cosplace.assessment.metrics import baseline_scores, straight_distances_m
from cosplace.geo import utm_from_latlon
from cosplace.localization.database_confidence import database_confidence
from cosplace.photos.image_list import image_list
from cosplace.photos.names import format_image_name
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from cosplace.retrieval.extraction import Extraction
from cosplace.retrieval.shards import UnreadableImage
from tests.places import make_world

NUM_PLACES, UNREADABLE = 150, 5


def names(latitudes: np.ndarray, longitudes: np.ndarray) -> list[str]:
    utm = utm_from_latlon(latitudes, longitudes, 32, south=False)
    return [
        format_image_name(
            utm_east=east, utm_north=north, zone=32, letter="T", latitude=latitude, longitude=longitude,
            timestamp=f"2020{1 + number % 12:02d}",
        )
        for number, ((east, north), latitude, longitude) in enumerate(
            zip(utm.tolist(), latitudes.tolist(), longitudes.tolist(), strict=True)
        )
    ]  # fmt: skip


def in_order_of_names(*columns: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(names(*columns[1:]))
    return [column[order] for column in columns]


@pytest.fixture(scope="module")
def world() -> tuple[Extraction, Evaluation, RetrievalDataset]:
    """Four database photos of each place, and queries of all places, some of them blurred."""
    places, rng = make_world(NUM_PLACES), np.random.default_rng(1)
    database = places.capture(np.repeat(np.arange(NUM_PLACES), 4), rng, (0.3, 1.6))
    queries = places.capture(np.arange(300) % NUM_PLACES, rng, (0.3, 1.6))
    database, queries = in_order_of_names(*database), in_order_of_names(*queries)
    dataset = RetrievalDataset(
        name="world", folder=Path("/nowhere"),
        database=image_list(Path("/nowhere/database"), names(*database[1:])),
        queries=image_list(Path("/nowhere/queries"), names(*queries[1:])),
        database_positions=utm_from_latlon(*database[1:], 32, south=False),
        query_positions=utm_from_latlon(*queries[1:], 32, south=False),
    )  # fmt: skip
    photos = Extraction(
        descriptors=database[0], readable=np.arange(4 * NUM_PLACES) != UNREADABLE, seconds=0.0,
        unreadable=(UnreadableImage(index=UNREADABLE, name="x", message="empty"),),
    )  # fmt: skip
    return photos, evaluate_descriptors(photos, queries[0], dataset), dataset


def test_confidence_is_calibrated_and_useful(world: tuple[Extraction, Evaluation, RetrievalDataset]) -> None:
    database, evaluation, dataset = world
    confidence = database_confidence(database, evaluation, dataset)
    assert confidence is not None and ((confidence >= 0) & (confidence <= 1)).all()
    right = evaluation.hits[:, 0]
    assert 0.3 < right.mean() < 0.95
    assert calibration_error(reliability_bins(confidence, right)) < 0.12
    scores = {"confidence": confidence, **baseline_scores(evaluation, dataset)}
    areas = {name: score_metrics(name, one, right, np.arange(300)).area.value for name, one in scores.items()}
    assert areas["confidence"] > max(areas["L2 distance"], areas["ratio d1/d2"])
    assert np.array_equal(confidence, database_confidence(database, evaluation, dataset))


@pytest.mark.parametrize("radius_m", [3.0, 25.0, 100.0])
def test_confidence_is_that_of_the_radius(
    world: tuple[Extraction, Evaluation, RetrievalDataset], radius_m: float
) -> None:
    database, evaluation, dataset = world
    evaluation = replace(evaluation, positive_dist_threshold=radius_m)
    confidence = database_confidence(database, evaluation, dataset)
    right = straight_distances_m(evaluation, dataset) <= radius_m
    assert confidence is not None and calibration_error(reliability_bins(confidence, right)) < 0.12
    assert 0.1 < right.mean() < 0.95


def test_more_predictions_for_other_recalls_do_not_change_it(
    world: tuple[Extraction, Evaluation, RetrievalDataset],
) -> None:
    database, evaluation, dataset = world
    assert evaluation.predictions.shape[1] == 20
    queries = np.random.default_rng(5).standard_normal((300, database.descriptors.shape[1])).astype(np.float32)
    queries = (
        database.descriptors[evaluation.predictions[:, 0]] + 0.3 * queries / np.linalg.norm(queries, axis=1)[:, None]
    )
    queries /= np.linalg.norm(queries, axis=1)[:, None]
    few, many = (
        database_confidence(database, evaluate_descriptors(database, queries, dataset, recall_values=values), dataset)
        for values in ((1, 5, 10, 20), (1, 100, 400))
    )
    assert few is not None and np.array_equal(few, many)


def test_no_confidence_without_enough_photos_or_places(world: tuple[Extraction, Evaluation, RetrievalDataset]) -> None:
    database, evaluation, dataset = world
    few = replace(database, readable=np.arange(4 * NUM_PLACES) < 50)
    assert database_confidence(few, evaluation, dataset) is None
    assert database_confidence(database, evaluation, replace(dataset, note="positions are frames")) is None
    orthogonal = np.eye(4 * NUM_PLACES, dtype=np.float32)  # no photo is found again, so no answer is correct
    assert database_confidence(replace(database, descriptors=orthogonal), evaluation, dataset) is None
