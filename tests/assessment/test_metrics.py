"""Metrics of an evaluation straight from their formulas, with queries that have no positive or no prediction."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosplace.assessment.conditions import unknown_conditions
from cosplace.assessment.intervals import Estimate
from cosplace.assessment.measures import Measures
from cosplace.assessment.metrics import L2, RATIO, SPREAD, average_precisions, longest_miss, measure, western_half
from cosplace.assessment.records import few_clusters_text, intervals_record, metrics_record, summary_lines
from cosplace.geo import ecef_from_lla
from cosplace.photos.image_list import image_list
from cosplace.report.measures_section import interval_note, metric_rows
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from cosplace.retrieval.extraction import Extraction
from cosplace.retrieval.recall import find_positives
from cosplace.retrieval.shards import UnreadableImage

NUM_QUERIES, NUM_DATABASE, UNREADABLE = 40, 60, 7


@pytest.fixture(scope="module")
def dataset() -> RetrievalDataset:
    rng = np.random.default_rng(0)
    database = np.floor(rng.random((NUM_DATABASE, 2)) * 200)
    queries = database[rng.integers(0, NUM_DATABASE, NUM_QUERIES)] + rng.integers(-20, 20, (NUM_QUERIES, 2))
    queries[0] = database[0] + [15.0, 20.0]  # exactly 25 m away
    queries[1] = [9000.0, 9000.0]  # without positives
    return RetrievalDataset(
        name="test/queries",
        folder=Path("/nowhere"),
        database=image_list(Path("/nowhere/database"), [f"{row}.jpg" for row in range(NUM_DATABASE)]),
        queries=image_list(Path("/nowhere/queries"), [f"{row}.jpg" for row in range(NUM_QUERIES)]),
        database_positions=database,
        query_positions=queries,
    )


@pytest.fixture(scope="module")
def evaluation(dataset: RetrievalDataset) -> Evaluation:
    rng = np.random.default_rng(1)
    database = rng.standard_normal((NUM_DATABASE, 8)).astype(np.float32)
    nearest = ((dataset.query_positions[:, None] - dataset.database_positions) ** 2).sum(axis=2).argmin(axis=1)
    nearest[0] = 0
    queries = (database[nearest] + 0.9 * rng.standard_normal((NUM_QUERIES, 8))).astype(np.float32)
    queries[0] = database[0]
    readable = np.arange(NUM_QUERIES) != UNREADABLE
    photos = Extraction(
        descriptors=queries, readable=readable, seconds=0.0,
        unreadable=(UnreadableImage(index=UNREADABLE, name="7.jpg", message="empty"),),
    )  # fmt: skip
    return evaluate_descriptors(database, photos, dataset, recall_values=(1, 3, 12))


@pytest.fixture(scope="module")
def measures(evaluation: Evaluation, dataset: RetrievalDataset) -> Measures:
    confidence = np.linspace(0.1, 0.9, NUM_QUERIES)
    return measure(evaluation, dataset, scores={"confidence": confidence})


def distances_of(evaluation: Evaluation, dataset: RetrievalDataset, rank: int = 0) -> list[float]:
    """Distance of a prediction of each query; inf without one."""
    meters = []
    for query, image in zip(dataset.query_positions, evaluation.predictions[:, rank].tolist(), strict=True):
        offset = query - dataset.database_positions[image]
        meters.append(math.hypot(*offset) if image >= 0 else math.inf)
    return meters


# --- all metrics -----------------------------------------------------------------------------------------------------


def test_recalls_are_those_of_the_evaluation(measures: Measures, evaluation: Evaluation) -> None:
    assert {n: one.value for n, one in measures.recalls.items()} == evaluation.recalls
    assert 0 < evaluation.recalls[1] < evaluation.recalls[12] < 100
    assert all(one.low < one.value < one.high for one in measures.recalls.values())


def test_recall_by_radius_includes_the_radius(
    measures: Measures, evaluation: Evaluation, dataset: RetrievalDataset
) -> None:
    meters = distances_of(evaluation, dataset)
    assert meters[0] == 25.0
    for limit, found in zip(measures.radii_m.tolist(), measures.recall1_by_radius, strict=True):
        assert found.value == pytest.approx(100 * sum(one <= limit for one in meters) / NUM_QUERIES)
    assert measures.radii_m.tolist() == list(range(1, 101))
    assert measures.recall1_by_radius[24] == measures.recalls[1]
    assert measures.recall1_by_radius[23].value < measures.recalls[1].value


def test_distances(measures: Measures, evaluation: Evaluation, dataset: RetrievalDataset) -> None:
    meters = sorted(distances_of(evaluation, dataset))
    assert measures.error_m[50].value == pytest.approx(meters[19])  # the 20th of 40
    assert measures.error_m[90].value == pytest.approx(meters[35])
    assert np.flatnonzero(np.isnan(measures.errors_m)).tolist() == [UNREADABLE]
    near = sum(25 < one <= 50 for one in meters)
    assert near > 0 and measures.near_misses.value == pytest.approx(100 * near / NUM_QUERIES)


def test_no_metric_is_certain_where_nothing_is_right(evaluation: Evaluation, dataset: RetrievalDataset) -> None:
    far = dataclasses.replace(evaluation, predictions=np.full_like(evaluation.predictions, -1))
    found = measure(far, dataset).mean_average_precision
    assert (found.value, found.low) == (0, 0) and found.high > 5


def test_mean_average_precision(measures: Measures, evaluation: Evaluation, dataset: RetrievalDataset) -> None:
    positives = find_positives(dataset.database_positions, dataset.query_positions, 25)
    total = 0.0
    for query in range(NUM_QUERIES):
        true = set(positives.of(query).tolist())
        hits, score = 0, 0.0
        for rank, image in enumerate(evaluation.predictions[query].tolist(), start=1):
            if image in true:
                hits += 1
                score += hits / rank
        total += score / min(len(true), 12) if true else 0.0
    assert measures.mean_average_precision.value == pytest.approx(100 * total / NUM_QUERIES)


def test_average_precision_of_one_query() -> None:
    hits = np.array([[True, False, True, False], [True, True, False, False], [False] * 4])
    assert average_precisions(hits, np.array([9, 2, 0])) == pytest.approx([(1 + 2 / 3) / 4, 1.0, 0.0])


def test_scores(measures: Measures, evaluation: Evaluation) -> None:
    assert [score.name for score in measures.scores] == ["confidence", L2, RATIO, SPREAD]
    assert [math.isnan(score.calibration_error.value) for score in measures.scores[:2]] == [False, True]
    l2 = measures.scores[1]
    assert len(l2.recall) == NUM_QUERIES - 1  # one query has no answer
    assert l2.recall[-1] == pytest.approx(evaluation.recalls[1] / 100)
    assert measures.scores[0].recall[-1] == l2.recall[-1]
    assert {one.score for one in measures.transfers} == {"confidence"}


def test_one_prediction_per_query(dataset: RetrievalDataset) -> None:
    rng = np.random.default_rng(0)
    database, queries = (rng.random((count, 4), np.float32) for count in (NUM_DATABASE, NUM_QUERIES))
    one = evaluate_descriptors(database, queries, dataset, recall_values=(1,))
    assert [score.name for score in measure(one, dataset).scores] == [L2]


def test_clusters(measures: Measures, evaluation: Evaluation, dataset: RetrievalDataset) -> None:
    assert measures.clustered_by == "place" and len(np.unique(measures.clusters)) < NUM_QUERIES
    by_sequence = measure(evaluation, dataset, sequences=np.arange(NUM_QUERIES) // 4, conditions=unknown_conditions(40))
    assert by_sequence.clustered_by == "sequence" and np.array_equal(by_sequence.clusters, np.arange(NUM_QUERIES) // 4)
    assert math.isfinite(by_sequence.longest_miss_m) and math.isnan(measures.longest_miss_m)


def test_clusters_of_queries_without_a_sequence_are_cells(evaluation: Evaluation, dataset: RetrievalDataset) -> None:
    sequences = np.where(np.arange(NUM_QUERIES) < 12, -1, np.arange(NUM_QUERIES))
    mixed = measure(evaluation, dataset, sequences=sequences, conditions=unknown_conditions(NUM_QUERIES))
    count = len(np.unique(mixed.clusters))
    assert mixed.clustered_by == "mixed" and count > NUM_QUERIES - 12
    assert f"{count} sequences and cells" in summary_lines(mixed, 25.0)[0]
    assert "one sequence, or of one place" in interval_note(mixed)


def test_clusters_of_frames_do_not_depend_on_their_distance(evaluation: Evaluation, dataset: RetrievalDataset) -> None:
    def clusters(meters: float, note: str = "distances are numbers of frames") -> np.ndarray:
        """With so many meters between frames."""
        rows = meters * np.stack([np.arange(float(NUM_QUERIES)), np.zeros(NUM_QUERIES)], axis=1)
        frames = dataclasses.replace(dataset, query_positions=rows, note=note)
        found = dataclasses.replace(evaluation, positive_dist_threshold=10 * meters)
        measured = measure(found, frames, conditions=unknown_conditions(NUM_QUERIES))
        assert measured.clustered_by == ("radius" if note else "place")
        return measured.clusters

    assert np.array_equal(clusters(1.5), np.arange(NUM_QUERIES) // 20)
    assert np.array_equal(clusters(1.5), clusters(10.5))
    assert np.array_equal(clusters(10.0, note=""), np.arange(NUM_QUERIES) // 5)


@pytest.mark.parametrize("longitude", [12.0, -179.999, 180.0])
def test_the_western_half_of_several_zones(dataset: RetrievalDataset, longitude: float) -> None:
    count = len(dataset.query_positions)
    longitudes = longitude + np.linspace(-0.01, 0.01, count)
    points = ecef_from_lla(np.full(count, 48.0), longitudes)
    found = western_half(dataclasses.replace(dataset, query_positions=points), np.arange(count))
    assert np.array_equal(found, np.arange(count) < count / 2)


def test_distances_of_frames_are_unknown(evaluation: Evaluation, dataset: RetrievalDataset) -> None:
    frames = dataclasses.replace(dataset, note="distances are numbers of frames")
    found, measured = measure(evaluation, frames), measure(evaluation, dataset)
    assert found.recalls.keys() == measured.recalls.keys() and found.scores[0].name == measured.scores[0].name
    assert SPREAD not in found.scores_of_queries and SPREAD in measured.scores_of_queries
    assert not found.recall1_by_radius and not found.transfers and math.isnan(found.longest_miss_m)
    unknown = [found.near_misses, *found.error_m.values(), *(row.median_error_m for row in found.conditions)]
    assert all(math.isnan(one.value) for one in unknown)


# --- sequences -------------------------------------------------------------------------------------------------------


def longest_by_hand(right: list[bool], sequences: list[int], east: list[float]) -> tuple[float, int]:
    """Walk along each sequence, from one correct answer to the next."""
    stretches = [(0.0, 0)]
    for number in {one for one in sequences if one >= 0}:
        way, count, previous = 0.0, 0, None
        for hit, sequence, x in zip(right, sequences, east, strict=True):
            if sequence != number:
                continue
            way += abs(x - previous) if previous is not None else 0.0
            previous = x
            if hit:
                stretches.append((way if count else 0.0, count))
                way, count = 0.0, 0
            else:
                count += 1
        stretches.append((way if count else 0.0, count))
    return max(stretches)


@given(st.lists(st.tuples(st.booleans(), st.integers(-1, 2), st.integers(0, 100)), min_size=1, max_size=30))
def test_longest_miss(rows: list[tuple[bool, int, int]]) -> None:
    right, sequences, east = (list(column) for column in zip(*rows, strict=True))
    positions = np.column_stack([east, np.zeros(len(rows))]).astype(float)
    found = longest_miss(np.array(right), positions, np.array(sequences), np.full(len(rows), np.nan))
    if max(sequences) < 0:
        assert math.isnan(found[0]) and found[1] == 0
    else:
        assert found == pytest.approx(longest_by_hand(right, sequences, east))


def test_the_longest_stretch_is_one_stretch() -> None:
    """One with 2 wrong answers over 300 m, and one with 8 over 9 m."""
    east = [0.0, 100, 200, 300, *range(1_000, 1_010)]
    right = np.array([True, False, False, True, True, *[False] * 8, True])
    positions, sequences = np.column_stack([east, np.zeros(14)]), np.array([0] * 4 + [1] * 10)
    assert longest_miss(right, positions, sequences, np.full(14, np.nan)) == (300.0, 2)


def test_queries_are_in_the_order_of_their_times() -> None:
    positions, sequences = np.array([[0.0, 0], [10.0, 0], [20.0, 0], [30.0, 0]]), np.zeros(4, np.int64)
    right = np.array([True, False, True, False])
    assert longest_miss(right, positions, sequences, np.arange(4.0)) == (20.0, 1)
    assert longest_miss(right, positions, sequences, np.array([0.0, 2.0, 1.0, 3.0])) == (30.0, 2)


# --- JSON and text ---------------------------------------------------------------------------------------------------


def test_records_are_plain_json(measures: Measures) -> None:
    records = {"intervals": intervals_record(measures), "metrics": metrics_record(measures)}
    text = json.dumps(records, allow_nan=False)
    assert json.loads(text) == records
    assert records["intervals"]["recalls"]["3"] == pytest.approx(
        [measures.recalls[3].low, measures.recalls[3].high], abs=1e-4
    )
    assert records["metrics"]["recall1_by_radius_m"]["25"]["value"] == pytest.approx(
        measures.recalls[1].value, abs=1e-4
    )
    assert records["metrics"]["longest_miss"] is None
    error, scores = measures.scores[0].calibration_error, records["metrics"]["scores"]
    assert scores[0]["calibration_error_interval"] == pytest.approx([error.low, error.high], abs=1e-4)
    assert scores[1]["calibration_error_interval"] == [None, None]


@pytest.fixture(scope="module")
def of_frames(evaluation: Evaluation, dataset: RetrievalDataset) -> Measures:
    return measure(evaluation, dataclasses.replace(dataset, note="distances are numbers of frames"))


def test_distances_that_are_not_meters_are_null(of_frames: Measures) -> None:
    record = metrics_record(of_frames)
    assert {one["value"] for one in (*record["error_m"].values(), record["near_misses"])} == {None}
    assert record["recall1_by_radius_m"] == {} and record["longest_miss"] is None
    assert {row["median_error_m"] for row in record["conditions"]} <= {None}
    assert record["mean_average_precision"]["value"] is not None


def test_lines(measures: Measures, of_frames: Measures) -> None:
    text = "\n".join(summary_lines(measures, 25.0))
    low, high = measures.recalls[12].low, measures.recalls[12].high
    assert f"R@12 [{low:.1f}, {high:.1f}]" in text and "cells of 50 m" in text
    assert f"near misses (25 to 50 m): {measures.near_misses.text()}%" in text
    assert "precision–recall by confidence" in text
    error = measures.scores[0].calibration_error
    assert f"calibration error (ECE) of confidence: {error.value:.3f} [{error.low:.3f}, {error.high:.3f}]" in text
    frames = "\n".join(summary_lines(of_frames, 5.0))
    assert not any(word in frames for word in (" m ", " m,", "near misses", "nan")) and "mAP@" in frames
    assert "near misses" not in "\n".join(summary_lines(measures, 0.0))
    assert "near misses" not in "\n".join(name for name, *_ in metric_rows(measures, 0.0))


def marked(estimate: Estimate) -> Estimate:
    return dataclasses.replace(estimate, is_approximate=True)


def test_each_approximate_interval_is_marked(measures: Measures) -> None:
    """In the lines of the terminal and in JSON, and only those."""
    score, others = dataclasses.replace(measures.scores[0]), measures.scores[1:]
    plain = dataclasses.replace(
        measures,
        clusters=np.arange(NUM_QUERIES),
        recalls={n: dataclasses.replace(one, is_approximate=False) for n, one in measures.recalls.items()},
        error_m={q: dataclasses.replace(one, is_approximate=False) for q, one in measures.error_m.items()},
        near_misses=Estimate(2.0, 1.0, 4.0),
        mean_average_precision=Estimate(40.0, 30.0, 50.0),
        scores=(
            dataclasses.replace(
                score,
                area=Estimate(90.0, 80.0, 95.0),
                recall_at_full_precision=Estimate(50.0, 40.0, 60.0),
                recall_at_95_precision=Estimate(70.0, 60.0, 80.0),
                calibration_error=Estimate(0.1, 0.05, 0.15),
            ),
            *others,
        ),
    )
    assert "approximate" not in "\n".join(summary_lines(plain, 25.0))
    changes = {
        "R@12": {"recalls": {**plain.recalls, 12: marked(plain.recalls[12])}},
        "90% within": {"error_m": {**plain.error_m, 90: marked(plain.error_m[90])}},
        "near misses (25 to 50 m): 2.0 [1.0, 4.0]%": {"near_misses": marked(plain.near_misses)},
        "40.0 [30.0, 50.0]": {"mean_average_precision": marked(plain.mean_average_precision)},
    }
    of_score = {
        "90.0 [80.0, 95.0]": "area", "50.0 [40.0, 60.0]": "recall_at_full_precision",
        "70.0 [60.0, 80.0]": "recall_at_95_precision", "0.100 [0.050, 0.150]": "calibration_error",
    }  # fmt: skip
    for text, name in of_score.items():
        changed = dataclasses.replace(plain.scores[0], **{name: marked(getattr(plain.scores[0], name))})
        changes[text] = {"scores": (changed, *others)}
    for text, change in changes.items():
        few = dataclasses.replace(plain, **change)
        lines = "\n".join(summary_lines(few, 25.0))
        assert lines.count("(approximate)") == 1
        assert re.search(rf"{re.escape(text)}[^\[\]]*(\[[^\]]*\])? \(approximate\)", lines), text
        before, after = (json.dumps([intervals_record(one), metrics_record(one)]) for one in (plain, few))
        assert before != after and "true" in after
    assert intervals_record(dataclasses.replace(plain, **changes["R@12"]))["approximate_recalls"] == [12]


def test_intervals_of_few_clusters_are_marked(measures: Measures) -> None:
    sizes = {
        "approximate, from 29 cells of 50 m only": np.arange(NUM_QUERIES) % 29,
        "queries are in 30 cells of 50 m": np.repeat(np.arange(30), NUM_QUERIES // 30),
        "approximate, from 31 cells of 50 m of very unequal size": np.maximum(
            np.arange(NUM_QUERIES) - NUM_QUERIES + 31, 0
        ),
    }
    for text, clusters in sizes.items():
        few = dataclasses.replace(measures, clusters=clusters, clustered_by="place")
        assert intervals_record(few)["approximate"] == text.startswith("approximate")
        assert summary_lines(few, 25.0)[0].endswith(f"({text})")
    assert few_clusters_text(1, 1.0, "place") == "approximate, from 1 cell of 50 m only"
