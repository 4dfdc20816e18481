"""The data of all queries: order, expected matches, photos within a budget, and the JSON for the page's script."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosplace.photos.headings import known_headings
from cosplace.report import query_data
from cosplace.report.data import CORRECT_FIRST, expected_matches, similarities
from cosplace.report.query_data import (
    num_tiles,
    open_queries,
    page_data,
    page_photos,
    photos_wanted,
    query_order,
    thinned,
)
from cosplace.report.query_rows import result_text
from cosplace.report.words import as_json
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from tests.report.report_samples import EAST, NORTH, OFFSETS, write_photo


def evaluated(folder: Path) -> tuple[RetrievalDataset, Evaluation]:
    """A dataset whose descriptors are all the same."""
    dataset = open_retrieval_dataset(folder)
    ones = (np.ones((len(images), 2), np.float32) for images in (dataset.database, dataset.queries))
    return dataset, evaluate_descriptors(*ones, dataset, recall_values=(1,))


def write_views(folder: Path, query_heading: str, database: list[tuple[float, str]]) -> None:
    """One query, and database images (meters east of it, heading)."""
    write_photo(folder / "queries", EAST, NORTH, f"@@@@@@{query_heading}")
    for offset, heading in database:
        write_photo(folder / "database", EAST + offset, NORTH, f"@@@@@@{heading}")


@pytest.mark.parametrize(
    ("query_heading", "database", "expected"),
    [
        ("90", [(1, "270"), (6, "100"), (9, "90")], 6),  # the nearest faces the other way
        ("350", [(1, "180"), (6, "30")], 6),  # across north: 40 degrees
        ("90", [(1, "270"), (6, "200")], 1),  # none faces the same way
        ("90", [(1, ""), (6, "100")], 6),  # an unknown heading is not the same
        ("15", [(1, "65535"), (6, "20")], 6),  # 65535 is unknown, although it is 15 modulo 360
        ("", [(1, "270"), (6, "100")], 1),
        ("0", [(1, "0"), (6, "0")], 1),  # all 0: unknown
        ("90", [(26, "90")], None),
    ],
)
def test_expected_match_is_near_and_faces_the_same_way(
    tmp_path: Path, query_heading: str, database: list[tuple[float, str]], expected: float | None
) -> None:
    write_views(tmp_path, query_heading, database)
    dataset, evaluation = evaluated(tmp_path)
    found = expected_matches(dataset, evaluation)
    if expected is None:
        assert found.images.tolist() == [-1] and np.isnan(found.distances_m[0])
        return
    assert dataset.database_positions[found.images[0], 0] == EAST + expected
    assert found.distances_m[0] == pytest.approx(expected, abs=0.01)
    heading = dict(database)[expected]
    known = query_heading != "" and heading != "" and any(float(value or 0) for _, value in database)
    turn = abs((float(heading) - float(query_heading) + 180) % 360 - 180) if known else math.nan
    assert found.heading_differences_deg[0] == pytest.approx(turn, nan_ok=True)


def test_headings_that_are_all_zero_are_unknown(tmp_path: Path) -> None:
    write_views(tmp_path, "0", [(1, "0"), (2, "0"), (3, "")])
    dataset = open_retrieval_dataset(tmp_path)
    assert np.isnan(known_headings(dataset.database)).all()
    assert known_headings(dataset.queries).tolist() == [0.0]  # one photo may face north


SCORES = st.sampled_from([0.9, 0.5, 0.5, -1.0, -math.inf])


@given(st.lists(st.tuples(st.integers(0, 2), SCORES, SCORES), max_size=30))
def test_most_confident_errors_are_first(queries: list[tuple[int, float, float]]) -> None:
    outcome = np.array([kind for kind, _, _ in queries], np.int64)
    similarity = np.array([value for _, value, _ in queries], np.float64)
    confidence = np.array([value for _, _, value in queries], np.float64)
    errors = [q for q in range(len(queries)) if outcome[q] != CORRECT_FIRST]
    correct = [q for q in range(len(queries)) if outcome[q] == CORRECT_FIRST]
    order = query_order(outcome, similarity).tolist()
    assert order == sorted(errors, key=lambda q: -similarity[q]) + sorted(correct, key=lambda q: similarity[q])
    order = query_order(outcome, similarity, confidence).tolist()
    assert order == [
        *sorted(errors, key=lambda q: (-confidence[q], -similarity[q])),
        *sorted(correct, key=lambda q: (confidence[q], similarity[q])),
    ]


def test_the_list_is_by_confidence_where_a_run_has_one(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    by_similarity = open_queries(dataset, evaluation, 2, {})
    assert by_similarity.confidence is None and by_similarity.order.tolist() == [1, 2, 0, 3]
    assert "confidence" not in result_text(by_similarity, 2)
    scores = {"confidence": np.array([0.9, 0.2, 0.75, 0.1]), "L2 distance": np.array([0.0, -1.0, -2.0, -3.0])}
    by_confidence = open_queries(dataset, evaluation, 2, {}, scores=scores)
    assert by_confidence.order.tolist() == [2, 1, 3, 0]
    assert result_text(by_confidence, 2) == "none of 3 predictions is correct; confidence 0.750"
    assert result_text(by_confidence, 1) == "first correct prediction at rank 2 of 3; confidence 0.200"
    others = open_queries(dataset, evaluation, 2, {}, scores={"L2 distance": scores["L2 distance"]})
    assert others.order.tolist() == by_similarity.order.tolist()


def test_similarities_are_cosines(evaluation: Evaluation) -> None:
    squared = np.array([[0.0, 2.0], [4.0, np.inf]], np.float32)
    found = similarities(dataclasses.replace(evaluation, squared_distances=squared))
    assert found.tolist() == [[1.0, 0.0], [-1.0, -math.inf]]


def test_values_of_the_script(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    weather = ["sun", "", "rain", "sun"]
    scores = {"confidence": np.array([0.75, 0.5, -np.inf, 1.0])}
    data = page_data(open_queries(dataset, evaluation, 2, {"weather": weather}, scores=scores), {})
    queries, images = data["queries"], data["images"]
    assert queries["name"] == [dataset.queries.name(row) for row in range(4)]
    for query, offsets in OFFSETS.items():
        east, north = queries["at"][2 * query : 2 * query + 2]
        for rank, offset in enumerate(offsets):
            place = queries["predictions"][query][rank]
            assert images["name"][place] == dataset.database.name(images["row"][place])
            assert images["at"][2 * place] - east == pytest.approx(10 * offset, abs=1)
            assert images["at"][2 * place + 1] == north
            assert queries["meters"][query][rank] == pytest.approx(offset, abs=0.011)
            assert queries["correct"][query][rank] == int(offset <= 25)
    assert queries["rank"] == [1, 2, 0, 1] and queries["outcome"] == [0, 1, 2, 0]
    assert queries["expected"][2] == -1 and queries["expectedMeters"][2] is None
    assert queries["numPositives"] == [2, 2, 0, 2]
    assert queries["scores"] == {"confidence": [0.75, 0.5, None, 1.0]}
    weathers = data["conditions"]["weather"]
    assert [weathers["values"][number] for number in weathers["of"]] == weather
    assert min(data["database"] + queries["at"]) == 0
    json.dumps(data, allow_nan=False)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_json_is_read_back_and_ends_no_script(text: str) -> None:
    written = as_json({text: ["</script><!--", text]})
    assert json.loads(written) == {text: ["</script><!--", text]}
    assert "<" not in written and "\u2028" not in written


# --- photos ----------------------------------------------------------------------------------------------------------


def test_photos_of_errors_are_wanted_first(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    queries = open_queries(dataset, evaluation, 2, {})
    wanted = photos_wanted(queries)
    assert len(set(wanted)) == len(wanted)
    first, expected = evaluation.predictions[:, 0].tolist(), queries.expected.images.tolist()
    assert queries.order.tolist()[:2] == [1, 2]
    assert wanted[:5] == [("q", 1), ("d", first[1]), ("d", expected[1]), ("q", 2), ("d", first[2])]
    assert {kind_row for kind_row in wanted if kind_row[0] == "q"} == {("q", query) for query in range(4)}
    shown = {int(evaluation.predictions[query, rank - 1]) for query in range(4) for rank in queries.ranks_shown(query)}
    assert {row for kind, row in wanted if kind == "d"} == shown | {row for row in expected if row >= 0}


def test_first_correct_prediction_has_a_photo(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    queries = open_queries(dataset, evaluation, 1, {})
    assert [queries.ranks_shown(query) for query in range(4)] == [[1], [1, 2], [1], [1]]
    assert num_tiles(queries) == 4


def test_photos_stay_within_their_budget(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    queries = open_queries(dataset, evaluation, 3, {})
    everything, left_out = page_photos(queries)
    assert left_out == 0 and len(everything) == len(photos_wanted(queries))
    sizes = [len(photo.data) for photo in everything.values()]
    some, left_out = page_photos(queries, budget=sum(sizes[:5]))
    assert list(some) == list(everything)[:5] and left_out == len(sizes) - 5
    assert page_photos(queries, budget=sizes[0] - 1)[0] == {}


def test_many_queries_have_fewer_predictions_in_the_page(
    dataset: RetrievalDataset, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_data, "MAX_PREDICTIONS", 8)
    assert open_queries(dataset, evaluation, 1, {}).num_stored == 2
    assert open_queries(dataset, evaluation, 3, {}).num_stored == 3  # those shown are always there


def test_thinned_positions_cover_the_same_area() -> None:
    rng = np.random.Generator(np.random.Philox(key=1))
    positions = rng.uniform(0, 15_000, (40_000, 2))
    kept = thinned(np.concatenate([positions, positions]))
    assert len(kept) <= query_data.MAX_DOTS
    assert {tuple(place) for place in kept} <= {tuple(place) for place in positions}
    counts = np.histogram2d(*kept.T, bins=5, range=[[0, 15_000]] * 2)[0]
    assert counts.min() > 0.5 * counts.mean()
    few = positions[:10]
    assert thinned(few).tolist() == few.tolist()
    assert thinned(np.array([[1.0, 2.0]] * 3)).tolist() == [[1.0, 2.0]]
