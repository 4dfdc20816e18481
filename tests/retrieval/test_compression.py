"""Search by compressed descriptors: codes and distances by their definitions, and the float comparison after them."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import fft

from cosplace.errors import ConfigError, DatasetError
from cosplace.photos.crops import MAJORITY, NEAREST_CROP
from cosplace.photos.image_list import image_list
from cosplace.retrieval import compression as module
from cosplace.retrieval.compression import (
    BINARY,
    INT8,
    METHODS,
    BinaryCodes,
    ByteCodes,
    Compression,
    binary_codes,
    byte_codes,
    bytes_per_code,
    centered_and_rotated,
    compress,
    integer_products,
    search_compressed,
)
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import evaluate_descriptors
from cosplace.retrieval.extraction import Extraction
from cosplace.retrieval.query_views import search
from cosplace.retrieval.search import nearest
from cosplace.retrieval.shards import DescriptorShards, UnreadableImage

DIMENSIONS = (1, 2, 7, 8, 13, 63, 64, 65, 130)


def unit_rows(seed: int, count: int, dimension: int) -> np.ndarray:
    """Unit vectors (n, D) float32 whose values have means other than 0."""
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32) + 0.5
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain_distances(method: str, queries: np.ndarray, database: np.ndarray, searchable: np.ndarray) -> list[list[int]]:
    """Integer distances of codes, value by value: different bits, or squared differences of rounded values."""
    known = [row for row, is_known in zip(database.tolist(), searchable, strict=True) if is_known]
    if method == BINARY:
        mean = database[searchable].mean(axis=0, dtype=np.float64).astype(np.float32)

        def encode(row: list[float]) -> list[int]:
            return [int(value > 0) for value in centered_and_rotated(np.array([row], np.float32), mean)[0].tolist()]

    else:
        scale = max(abs(value) for row in known for value in row)

        def encode(row: list[float]) -> list[int]:
            return [max(-127, min(127, round(value / scale * 127))) if scale else 0 for value in row]

    codes = [encode(row) for row in database.tolist()]
    return [
        [sum((a - b) ** 2 for a, b in zip(encode(query), code, strict=True)) for code in codes]
        for query in queries.tolist()
    ]


def plain_order(distances: list[int], searchable: np.ndarray) -> list[int]:
    """Rows from the smallest distance to the largest, lower rows first on ties."""
    return sorted(np.flatnonzero(searchable).tolist(), key=lambda row: (distances[row], row))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_order_of_the_codes_is_that_of_their_plain_distances(
    method: str, dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    monkeypatch.setattr(module, "QUERY_ROWS", 2)
    database, queries = unit_rows(1, 40, dimension), unit_rows(2, 5, dimension)
    database[20:30] = database[:10]  # ties
    searchable = np.random.default_rng(3).random(40) < 0.7
    database[~searchable] = np.nan  # rows of unreadable photos are ignored
    plain = plain_distances(method, queries, np.nan_to_num(database), searchable)
    codes = compress(database, method, searchable=searchable)
    for k in (1, 6, int(searchable.sum())):
        rows, squared = search_compressed(queries, database, codes, k, 0)
        for query, distances in enumerate(plain):
            expected = plain_order(distances, searchable)[:k]
            assert rows[query].tolist() == expected
            unit = 4 / dimension if isinstance(codes, BinaryCodes) else (codes.scale / 127) ** 2
            np.testing.assert_allclose(squared[query], [unit * distances[row] for row in expected], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), method=st.sampled_from(METHODS), dimension=st.sampled_from((1, 3, 9, 64, 70)))
def test_a_shortlist_of_the_whole_database_is_exact_search(data: st.DataObject, method: str, dimension: int) -> None:
    values = st.one_of(st.floats(-2, 2, width=16), st.sampled_from([0.0, 1.0, -1.0]))  # many ties
    num_rows, num_queries = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    dtype = data.draw(st.sampled_from([np.float32, np.float16]))
    database = data.draw(arrays.arrays(np.float32, (num_rows, dimension), elements=values)).astype(dtype)
    queries = data.draw(arrays.arrays(np.float32, (num_queries, dimension), elements=values))
    searchable = data.draw(arrays.arrays(bool, num_rows))
    searchable[data.draw(st.integers(0, num_rows - 1))] = True
    k = data.draw(st.integers(1, int(searchable.sum())))
    codes = compress(database, method, searchable=searchable)
    found = search_compressed(queries, database, codes, k, num_rows)
    expected = nearest(queries, database, k, searchable=searchable)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("method", METHODS)
def test_a_shortlist_is_the_nearest_codes_ordered_by_descriptors(method: str) -> None:
    database, queries = unit_rows(4, 200, 24), unit_rows(5, 8, 24)
    codes = compress(DescriptorShards([database[:90], database[90:]]), method)
    everywhere = np.ones(200, bool)
    rows, squared = search_compressed(queries, database, codes, 3, 10)
    for query, distances in enumerate(plain_distances(method, queries, database, everywhere)):
        listed = plain_order(distances, everywhere)[:10]
        true = ((database[listed].astype(np.float64) - queries[query]) ** 2).sum(1)
        best = sorted(range(10), key=lambda place: (true[place], listed[place]))[:3]
        assert rows[query].tolist() == [listed[place] for place in best]
        np.testing.assert_allclose(squared[query], true[best], rtol=1e-5)
    # With so few bits, the order of the codes alone is another one: the test can tell the two apart.
    if method == BINARY:
        assert not np.array_equal(search_compressed(queries, database, codes, 3, 0)[0], rows)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_rotation_is_a_cosine_transform_and_keeps_distances(dimension: int) -> None:
    rows = unit_rows(16, 6, dimension)
    center = rows.mean(axis=0)
    rotated = centered_and_rotated(rows, center)
    assert rotated.dtype == np.float32
    np.testing.assert_allclose(
        ((rotated[:, None] - rotated) ** 2).sum(2), ((rows[:, None] - rows) ** 2).sum(2), atol=1e-5
    )
    signs = np.sign(fft.idct(centered_and_rotated(np.ones((1, dimension)), np.zeros(dimension)), norm="ortho"))[0]
    assert set(signs.tolist()) <= {-1, 1}
    for row, found in zip(rows, rotated, strict=True):
        values = [float(value) * sign for value, sign in zip(row - center, signs.tolist(), strict=True)]
        for k in range(dimension):
            angle = math.pi * k / dimension
            weight = math.sqrt((1 if k == 0 else 2) / dimension)
            total = sum(value * math.cos(angle * (place + 0.5)) for place, value in enumerate(values))
            assert math.isclose(found[k], weight * total, abs_tol=1e-5)


def test_dimensions_of_different_variance_count_by_it() -> None:
    """Without a rotation, a bit of one of the 120 dimensions of noise counts as much as one of the 8 that matter."""
    rng = np.random.default_rng(17)
    database = np.hstack([rng.standard_normal((300, 8)), 0.02 * rng.standard_normal((300, 120))]).astype(np.float32)
    queries = database[:60].copy()
    queries[:, 8:] = 0.02 * rng.standard_normal((60, 120))
    codes = compress(database, BINARY)
    rows, _ = search_compressed(queries, database, codes, 1, 0)
    share = float((rows[:, 0] == np.arange(60)).mean())
    plain = ((queries > 0)[:, None] != (database > 0)).sum(2)
    assert share > 0.9 > 0.5 > float((plain.argmin(1) == np.arange(60)).mean())


def test_equal_rows_are_found_in_their_order() -> None:
    for method in METHODS:  # nothing but equal rows: ties, so the first ones
        equal = np.full((9, 1), 0.5, np.float32)
        for shortlist in (0, 4, 100):
            rows, _ = search_compressed(equal[:2], equal, compress(equal, method), 4, shortlist)
            assert rows.tolist() == [[0, 1, 2, 3]] * 2
    zeros = compress(np.zeros((3, 5), np.float32), INT8)
    assert search_compressed(np.ones((1, 5), np.float32), np.zeros((3, 5), np.float32), zeros, 2, 0)[0].tolist() == [
        [0, 1]
    ]


def test_descriptors_without_negative_values_keep_their_order_by_the_mean() -> None:
    """Without a center, all bits of such descriptors would be equal."""
    places = np.abs(unit_rows(14, 40, 96)) + np.float32(0.1)
    database = places / np.linalg.norm(places, axis=1, keepdims=True)
    queries = database + 0.01 * np.abs(unit_rows(15, 40, 96))
    assert len(np.unique(binary_codes(database), axis=0)) == 1
    rows, _ = search_compressed(queries, database, compress(database, BINARY), 1, 0)
    assert rows[:, 0].tolist() == list(range(40))


def test_codes_have_the_stated_size_and_values() -> None:
    row = np.zeros((1, 65), np.float32)
    row[0, [0, 3, 64]] = 1, 0.5, 2
    row[0, 1] = -1
    assert binary_codes(row).tolist() == [[0b1001, 1]]
    assert byte_codes(np.array([[1.0, -1.0, 0.5, 3.0, -9.0, 0.003]]), 1.0).tolist() == [[127, -127, 64, 127, -127, 0]]
    for dimension in DIMENSIONS:
        database = unit_rows(8, 4, dimension)
        for method in METHODS:
            assert compress(database, method).codes.nbytes == 4 * bytes_per_code(method, dimension)


def test_integer_products_of_many_dimensions_are_exact() -> None:
    rng = np.random.default_rng(9)
    a = np.full((2, 5000), 127, np.int8)
    b = np.where(rng.random((3, 5000)) < 0.9, 127, -126).astype(np.int8)
    expected = [[sum(x * y for x, y in zip(p, q, strict=True)) for q in b.tolist()] for p in a.tolist()]
    assert max(map(max, expected)) > 1 << 24  # float32 alone would round
    assert integer_products(a, b).tolist() == expected


def test_int8_is_close_to_exact_search_and_binary_with_a_shortlist_is_closer_than_without() -> None:
    database = unit_rows(10, 500, 64)
    queries = database[:40] + 0.08 * np.random.default_rng(11).standard_normal((40, 64)).astype(np.float32)
    exact = nearest(queries, database, 5)[0]

    def share(method: str, shortlist: int) -> float:
        found = search_compressed(queries, database, compress(database, method), 5, shortlist)[0]
        return float(np.mean([np.isin(*pair).mean() for pair in zip(exact, found, strict=True)]))

    assert share(INT8, 0) > 0.9
    assert share(BINARY, 100) > share(BINARY, 0) + 0.1


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_refused(method: str) -> None:
    database, queries = unit_rows(12, 6, 4), unit_rows(13, 2, 4)
    for bad in (np.nan, np.inf):
        broken = database.copy()
        broken[3, 1] = bad
        with pytest.raises(DatasetError, match="Descriptor 3 of the database"):
            compress(broken, method)
        with pytest.raises(DatasetError, match="Descriptor 3 of the database"):
            compress(broken, method, searchable=np.array([False, True, False, True, True, True]))
        with pytest.raises(DatasetError, match="queries have values that are not finite"):
            search_compressed(np.full((1, 4), bad, np.float32), database, compress(database, method), 2, 0)
    assert isinstance(compress(database, method), BinaryCodes | ByteCodes)
    with pytest.raises(DatasetError, match="4 neighbors among 3 rows"):
        search_compressed(queries, database, compress(database, method, searchable=np.arange(6) < 3), 4, 0)
    with pytest.raises(DatasetError, match="no descriptors to compress"):
        compress(database, method, searchable=np.zeros(6, bool))
    with pytest.raises(DatasetError, match="3 dimensions but the database has 4"):
        search_compressed(queries[:, :3], database, compress(database, method), 2, 0)
    with pytest.raises(ConfigError, match="shortlist of 2 is smaller than the 3"):
        search_compressed(queries, database, compress(database, method), 3, 2)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of binary, int8, got 'pq'"):
        Compression(method="pq")
    for bad in (-1, 10_001):
        with pytest.raises(ConfigError, match="0 to 10,000 candidates"):
            Compression(method=BINARY, shortlist=bad)


# --- evaluations -----------------------------------------------------------------------------------------------------


def city(folder: Path) -> tuple[RetrievalDataset, np.ndarray, np.ndarray]:
    """60 places with two photos each and one query, 100 m apart, and their descriptors."""
    places = unit_rows(20, 60, 20)
    rng = np.random.default_rng(21)

    def photos(of: np.ndarray) -> np.ndarray:
        rows = of + 0.15 * rng.standard_normal(of.shape).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    positions = np.stack([100.0 * np.arange(60), np.zeros(60)], axis=1)
    dataset = RetrievalDataset(
        name="city/queries",
        folder=folder,
        database=image_list(folder / "database", [f"d{number:03d}.jpg" for number in range(120)]),
        queries=image_list(folder / "queries", [f"q{number:03d}.jpg" for number in range(60)]),
        database_positions=np.repeat(positions, 2, axis=0),
        query_positions=positions + 5,
    )
    return dataset, photos(np.repeat(places, 2, axis=0)), photos(places)


@pytest.mark.parametrize("method", METHODS)
def test_an_evaluation_by_compressed_descriptors(tmp_path: Path, method: str) -> None:
    dataset, database, queries = city(tmp_path)
    exact = evaluate_descriptors(database, queries, dataset)
    whole = evaluate_descriptors(database, queries, dataset, compression=Compression(method=method, shortlist=120))
    np.testing.assert_array_equal(whole.predictions, exact.predictions)
    assert whole.recalls == exact.recalls
    assert (exact.compression, whole.compression) == (None, Compression(method=method, shortlist=120))
    alone = evaluate_descriptors(database, queries, dataset, compression=Compression(method=method, shortlist=0))
    distances = plain_distances(method, queries, database, np.ones(120, bool))
    assert alone.predictions[:, 0].tolist() == [plain_order(row, np.ones(120, bool))[0] for row in distances]
    # A shortlist larger than the database is all of it.
    larger = evaluate_descriptors(database, queries, dataset, compression=Compression(method=method, shortlist=500))
    np.testing.assert_array_equal(larger.squared_distances, exact.squared_distances)
    with pytest.raises(ConfigError, match="shortlist of 5 is smaller than the 20"):
        evaluate_descriptors(database, queries, dataset, compression=Compression(method=method, shortlist=5))


@pytest.mark.parametrize("policy", [None, NEAREST_CROP, MAJORITY])
def test_crops_of_queries_and_unreadable_photos(policy: str | None) -> None:
    database = unit_rows(22, 50, 12)
    readable = np.arange(50) != 17
    crops = tuple(
        Extraction(
            descriptors=unit_rows(30 + crop, 4, 12),
            readable=np.array([True, False, True, True]),
            unreadable=(UnreadableImage(index=1, name="q", message="broken"),),
            seconds=0.0,
        )
        for crop in range(5)
    )
    views = crops[0] if policy is None else crops
    extraction = Extraction(descriptors=database, readable=readable, unreadable=(), seconds=0.0)
    expected = search(extraction, views, 8, policy=policy)
    for method in METHODS:
        found = search(extraction, views, 8, policy=policy, compression=Compression(method=method))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        alone = search(extraction, views, 8, policy=policy, compression=Compression(method=method, shortlist=0))
        assert (alone[0][1] == -1).all()
        assert 17 not in alone[0]
