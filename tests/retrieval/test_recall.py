"""Positives and recalls: compared with brute force, the reference and values computed by hand."""

from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosplace.errors import ConfigError, DatasetError
from cosplace.retrieval.recall import RECALL_VALUES, Positives, chance_recalls, find_positives, is_positive, recall_at


def positives_of(*lists: list[int], num_database: int | None = None) -> Positives:
    """The positives of each query, in a database of images at different positions."""
    images = np.array([image for positives in lists for image in positives], np.int64)
    num_database = int(images.max(initial=-1)) + 1 if num_database is None else num_database
    starts = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Positives(positions=images, starts=starts, image_starts=np.arange(num_database + 1))


def positions(max_rows: int) -> st.SearchStrategy[np.ndarray]:
    # With steps of 2.5 m, many distances equal the radius exactly.
    grid = st.integers(-20, 20).map(lambda step: 2.5 * step)
    return st.integers(1, max_rows).flatmap(lambda rows: arrays(np.float64, (rows, 2), elements=grid))


@settings(deadline=None)
@given(positions(40), positions(12), st.sampled_from([0.0, 2.5, 12.5, 25.0]))
def test_positives_equal_those_of_brute_force(database: np.ndarray, queries: np.ndarray, radius_m: float) -> None:
    positives = find_positives(database, queries, radius_m)
    offsets = queries[:, None] - database[None]
    near = np.sqrt((offsets**2).sum(-1)) <= radius_m
    assert len(positives) == len(queries)
    for query in range(len(queries)):
        assert positives.of(query).tolist() == np.flatnonzero(near[query]).tolist()
    assert positives.counts.tolist() == near.sum(1).tolist()


@pytest.mark.slow
@settings(deadline=None)
@given(positions(40), positions(12), st.lists(st.integers(-3, 45), min_size=4, max_size=4))
def test_hits_among_images_that_share_positions(database: np.ndarray, queries: np.ndarray, images: list[int]) -> None:
    positives = find_positives(np.repeat(database, 3, axis=0), queries)
    predictions = np.tile(images, (len(queries), 1))
    expected = [[image in positives.of(query) for image in images] for query in range(len(queries))]
    assert is_positive(predictions, positives).tolist() == expected
    listed = [positives.of(query).tolist() for query in range(len(queries))]
    assert positives.indices.tolist() == [image for images_of in listed for image in images_of]
    assert positives.counts.tolist() == [len(images_of) for images_of in listed]


@pytest.mark.parametrize("radius_m", [0.0, 25.0, 1e9])
def test_positions_far_apart(radius_m: float) -> None:
    corners = np.array([[0.0, 0.0], [1e12, -1e12], [5e5, 1e7], [-1e15, 3.0]])
    positives = find_positives(
        np.vstack([corners, corners + 20]), np.vstack([corners, [[2.0**53, -(2.0**53)]]]), radius_m
    )
    offsets = np.vstack([corners, [[2.0**53, -(2.0**53)]]])[:, None] - np.vstack([corners, corners + 20])[None]
    with np.errstate(over="ignore"):
        near = np.sqrt((offsets**2).sum(-1)) <= radius_m
    assert [positives.of(query).tolist() for query in range(5)] == [np.flatnonzero(row).tolist() for row in near]


def test_an_empty_database_has_no_positives() -> None:
    positives = find_positives(np.zeros((0, 2)), np.zeros((3, 2)))
    assert positives.counts.tolist() == [0, 0, 0]
    assert not is_positive(np.array([[0, -1]] * 3), positives).any()


def test_the_radius_is_inclusive() -> None:
    query = np.array([[0.0, 0.0]])
    database = np.array([[25.0, 0.0], [15.0, 20.0], [np.nextafter(25.0, 26.0), 0.0], [0.0, 25.001]])
    assert find_positives(database, query).indices.tolist() == [0, 1]


def test_boundary_at_the_size_of_utm_coordinates() -> None:
    query = np.array([[550_000.0, 4_180_000.0]])
    database = query + np.array([[15.0, 20.0], [15.0, 20.0 + 1e-8], [7.0, 24.0]])
    assert find_positives(database, query).indices.tolist() == [0, 2]


def test_distances_are_compared_and_not_their_squares() -> None:
    east, north = 18.23082189648201, 8.224179775439747
    assert east**2 + north**2 > 20.0**2
    assert np.sqrt(east**2 + north**2) == 20.0
    assert find_positives(np.array([[east, north]]), np.zeros((1, 2)), 20.0).indices.tolist() == [0]


def test_positives_of_points_in_space_equal_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    middle = np.array([4e6, -3e6, 2e6])
    database, queries = (middle + rng.uniform(0, 60, (count, 3)) for count in (300, 40))
    database[7] = queries[3] + [15, 0, 20]  # 25 m: inclusive
    positives = find_positives(database, queries)
    near = np.sqrt(((queries[:, None] - database[None]) ** 2).sum(-1)) <= 25
    assert [positives.of(query).tolist() for query in range(40)] == [np.flatnonzero(row).tolist() for row in near]
    assert 7 in positives.of(3)
    with pytest.raises(DatasetError, match="3 coordinates, those of the queries 2"):
        find_positives(database, queries[:, :2])


def test_many_images_at_one_position() -> None:
    database = np.zeros((5000, 2))
    positives = find_positives(database, np.array([[3.0, 4.0], [300.0, 0.0]]))
    assert positives.of(0).tolist() == list(range(5000))
    assert len(positives.of(1)) == 0


def test_invalid_positions_are_rejected() -> None:
    with pytest.raises(DatasetError, match=r"Position 1 of the queries is \(nan, 2\.0\)"):
        find_positives(np.zeros((3, 2)), np.array([[0.0, 0.0], [np.nan, 2.0]]))
    with pytest.raises(DatasetError, match=r"Position 0 of the database is \(1e\+300, 0\.0\)"):
        find_positives(np.array([[1e300, 0.0]]), np.zeros((1, 2)))
    with pytest.raises(DatasetError, match=r"database must have shape \(n, 2\).* got \(3,\)"):
        find_positives(np.zeros(3), np.zeros((1, 2)))
    with pytest.raises(ConfigError, match=r"got -1\.0"):
        find_positives(np.zeros((3, 2)), np.zeros((1, 2)), -1.0)


def test_recalls_counted_by_hand() -> None:
    positives = positives_of([4], [0, 7], [], [2])
    predictions = np.array([[4, 1, 2], [1, 2, 7], [0, 1, 2], [5, 2, 2]])
    assert is_positive(predictions, positives).tolist() == [
        [True, False, False], [False, False, True], [False, False, False], [False, True, True],
    ]  # fmt: skip
    # Query 2 has no positive: it counts as a miss.
    assert recall_at(predictions, positives, (1, 2, 3)) == {1: 25.0, 2: 50.0, 3: 75.0}


@settings(deadline=None)
@given(st.data())
def test_is_positive_checks_membership(data: st.DataObject) -> None:
    num_queries, num_database = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 15))
    images = st.integers(0, num_database - 1)
    lists = [sorted(data.draw(st.sets(images))) for _ in range(num_queries)]
    shape = (num_queries, data.draw(st.integers(1, 6)))
    predictions = data.draw(arrays(np.int64, shape, elements=st.integers(-1, num_database - 1)))
    found = is_positive(predictions, positives_of(*lists))
    assert found.tolist() == [
        [image in allowed for image in row] for row, allowed in zip(predictions.tolist(), lists, strict=True)
    ]


def test_missing_predictions_are_not_positives() -> None:
    assert not is_positive(np.full((2, 3), -1), positives_of([0], [])).any()


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(DatasetError, match="Recall@20 needs 20 predictions per query, got 3"):
        recall_at(np.zeros((1, 3), np.int64), positives_of([0]))
    with pytest.raises(DatasetError, match="no queries"):
        recall_at(np.zeros((0, 20), np.int64), positives_of())
    with pytest.raises(DatasetError, match="2 queries but positives for 1"):
        recall_at(np.zeros((2, 20), np.int64), positives_of([0]))
    with pytest.raises(ConfigError, match=r"Recall values must be .* got \(0, 5\)"):
        recall_at(np.zeros((1, 20), np.int64), positives_of([0]), (0, 5))


def test_reference(reference_folder: Path) -> None:
    with np.load(reference_folder / "recall.npz") as file:
        positives = find_positives(file["database_utm"], file["queries_utm"], float(file["threshold_m"]))
        assert positives.counts.tolist() == file["positives_count"].tolist()
        assert tuple(file["recall_values"]) == RECALL_VALUES
        recalls = recall_at(file["predictions"], positives)
        assert list(recalls.values()) == file["recalls"].tolist()


@pytest.mark.parametrize(("num_database", "counts"), [(6, (2,)), (7, (1, 3, 0)), (5, (5, 4))])
def test_chance_by_enumeration(num_database: int, counts: tuple[int, ...]) -> None:
    positives = positives_of(*[list(range(count)) for count in counts])
    for k in range(1, num_database + 1):
        draws = list(combinations(range(num_database), k))
        shares = [sum(min(draw) < count for draw in draws) / len(draws) for count in counts]
        found = chance_recalls(positives, num_database, (k,))[k]
        assert found == pytest.approx(100 * np.mean(shares), abs=1e-10)


def test_chance_in_a_large_database() -> None:
    num_database, count = 2_800_000, 153
    exact = 100 * (1 - comb(num_database - count, 20) / comb(num_database, 20))
    positives = positives_of(list(range(count)))
    assert chance_recalls(positives, num_database, (20,))[20] == pytest.approx(exact, rel=1e-9)


def test_chance_of_a_tiny_database() -> None:
    assert chance_recalls(positives_of([0], []), 3) == {1: pytest.approx(50 / 3), 5: 50.0, 10: 50.0, 20: 50.0}
    with pytest.raises(DatasetError, match="database of 3 images, got num_database=2"):
        chance_recalls(positives_of([2]), 2)
