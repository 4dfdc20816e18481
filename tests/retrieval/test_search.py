"""Exact search: compared with brute force in float64 and the reference, also with many equal rows."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosplace.errors import ConfigError, DatasetError
from cosplace.retrieval.search import nearest
from cosplace.retrieval.shards import DescriptorShards


def brute_force(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    differences = queries[:, None].astype(np.float64) - database[None].astype(np.float64)
    distances = (differences**2).sum(-1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, 1)


def unit_rows(num_rows: int, dimension: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((num_rows, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def assert_nearest(queries: np.ndarray, database, k: int, **options) -> None:
    predictions, distances = nearest(queries, database, k, **options)
    whole = database if isinstance(database, np.ndarray) else np.concatenate(database)
    expected, expected_distances = brute_force(queries, whole, k)
    assert predictions.dtype == np.int64
    assert distances.dtype == np.float32
    assert predictions.tolist() == expected.tolist()
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_brute_force(data: st.DataObject) -> None:
    dimension = data.draw(st.integers(1, 4))
    # Few different values: most rows have equals, so ties decide nearly everything.
    value = st.sampled_from([-1.0, 0.0, 0.5, 1.0])
    queries = data.draw(arrays(np.float32, (data.draw(st.integers(1, 5)), dimension), elements=value))
    database = data.draw(arrays(np.float32, (data.draw(st.integers(1, 150)), dimension), elements=value))
    k = data.draw(st.integers(1, min(len(database), 40)))
    assert_nearest(queries, database, k, block_rows=data.draw(st.integers(1, 200)))


@pytest.mark.parametrize("block_rows", [7, 100, 1000, 4999, 5000, 32_768])
def test_blocks_do_not_matter(block_rows: int) -> None:
    assert_nearest(unit_rows(30, 16, 1), unit_rows(5000, 16, 2), 20, block_rows=block_rows)


def test_more_queries_than_a_block() -> None:
    assert_nearest(unit_rows(1500, 8, 3), unit_rows(400, 8, 4), 5)


def test_large_blocks() -> None:
    database = unit_rows(9_001, 8, 5)
    queries = np.concatenate([unit_rows(20, 8, 6), database[-3:]])  # in the last columns, after the last whole strip
    assert_nearest(queries, database, 3)


def test_of_many_equal_rows_the_lower_ones_are_found() -> None:
    database = np.repeat(unit_rows(3, 64, 7), 2000, axis=0)
    queries = np.concatenate([database[[0, 2500, 5999]], unit_rows(5, 64, 8)])
    for block_rows in (333, 32_768):
        predictions, distances = nearest(queries, database, 20, block_rows=block_rows)
        assert predictions[:3].tolist() == [list(range(first, first + 20)) for first in (0, 2000, 4000)]
        assert not distances[:3].any()
        assert_nearest(queries, database, 20, block_rows=block_rows)


def test_rows_far_from_the_origin() -> None:
    # Products of such rows lose all digits of their distances in float32.
    rng = np.random.default_rng(9)
    database = (1000 + rng.standard_normal((2000, 8))).astype(np.float32)
    assert_nearest((1000 + rng.standard_normal((20, 8))).astype(np.float32), database, 10)


def test_nearly_equal_rows() -> None:
    rng = np.random.default_rng(10)
    database = (unit_rows(1, 32, 11) + 1e-6 * rng.standard_normal((3000, 32))).astype(np.float32)
    assert_nearest(database[::300] + np.float32(1e-6), database, 20, block_rows=1024)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shards_and_memory_maps(tmp_path: Path, dtype: type) -> None:
    database = unit_rows(1000, 16, 12).astype(dtype)
    queries = unit_rows(10, 16, 13).astype(dtype)
    np.save(tmp_path / "all.npy", database)
    assert_nearest(queries, np.load(tmp_path / "all.npy", mmap_mode="r"), 7, block_rows=300)
    assert_nearest(queries, [database[:1], database[1:700], database[700:]], 7, block_rows=300)
    assert_nearest(queries, database[::-1][:500], 7)


def test_rows_that_are_not_searchable_are_never_found() -> None:
    queries, database = unit_rows(6, 8, 14), unit_rows(300, 8, 15)
    database[40:] = database[:260]  # many ties
    searchable = np.random.default_rng(16).random(300) < 0.2
    predictions, distances = nearest(queries, database, 30, searchable=searchable, block_rows=64)
    rows = np.flatnonzero(searchable)
    expected, expected_distances = brute_force(queries, database[rows], 30)
    assert predictions.tolist() == rows[expected].tolist()
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-6)
    num_left = int(searchable.sum())
    assert set(nearest(queries, database, num_left, searchable=searchable)[0][0]) == set(rows.tolist())
    with pytest.raises(DatasetError, match=f"{num_left + 1} neighbors among {num_left}"):
        nearest(queries, database, num_left + 1, searchable=searchable)


@pytest.fixture
def precision():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("precision")
def test_precision_settings_of_the_caller_have_no_effect_and_remain() -> None:
    queries, database = unit_rows(50, 64, 17), unit_rows(4000, 64, 18)
    torch.set_float32_matmul_precision("medium")
    inside = []
    with torch.autocast("cpu", torch.bfloat16):
        assert_nearest(queries, database, 20, progress=lambda *_: inside.append(torch.backends.cuda.matmul.allow_tf32))
    assert inside == [False]
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.usefixtures("precision")
@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="settings of torch 2.9 and later")
def test_newer_precision_settings_of_the_caller() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    inside = []
    rows = unit_rows(10, 4, 17)
    assert_nearest(rows, rows, 3, progress=lambda *_: inside.append(torch.backends.cuda.matmul.fp32_precision))
    assert inside == ["ieee"]
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_reference(reference_folder: Path) -> None:
    with np.load(reference_folder / "recall.npz") as file:
        predictions, distances = nearest(file["queries_descriptors"], file["database_descriptors"], 20)
        assert predictions.tolist() == file["predictions"].tolist()
        np.testing.assert_allclose(distances, file["squared_distances"], rtol=0, atol=1.2e-7)


def test_inputs_are_not_changed_and_progress_counts_rows() -> None:
    queries, database = unit_rows(3, 4, 19), unit_rows(250, 4, 20)
    copies, calls = (queries.copy(), database.copy()), []
    nearest(queries, database, 5, block_rows=100, progress=lambda *call: calls.append(call))
    assert np.array_equal(queries, copies[0])
    assert np.array_equal(database, copies[1])
    assert calls == [("searching", done, 250) for done in (100, 200, 250)]


def test_invalid_arguments_are_rejected() -> None:
    rows = unit_rows(10, 4, 21)
    with pytest.raises(DatasetError, match="11 neighbors among 10"):
        nearest(rows, rows, 11)
    with pytest.raises(DatasetError, match=r"queries must have shape .* got \(0, 4\)"):
        nearest(rows[:0], rows, 1)
    with pytest.raises(DatasetError, match=r"database must have shape .* got \(4,\)"):
        nearest(rows, rows[0], 1)
    with pytest.raises(DatasetError, match="4 dimensions but the database has 3"):
        nearest(rows, rows[:, :3], 1)
    with pytest.raises(DatasetError, match="int64"):
        nearest(rows, np.zeros((3, 4), np.int64), 1)
    with pytest.raises(ConfigError, match="k and block_rows must be at least 1, got 0"):
        nearest(rows, rows, 0)
    with pytest.raises(DatasetError, match="no shards"):
        nearest(rows, [], 1)
    with pytest.raises(DatasetError, match=r"\(10, 4\), \(10, 3\)"):
        nearest(rows, [rows, rows[:, :3]], 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_descriptors_that_are_not_finite_are_rejected(value: float) -> None:
    rows = unit_rows(10, 4, 22)
    broken = rows.copy()
    broken[7, 2] = value
    with pytest.raises(DatasetError, match="Descriptor 7 of the database"):
        nearest(rows, broken, 1, block_rows=3)
    with pytest.raises(DatasetError, match="Descriptor 7 of the queries"):
        nearest(broken, rows, 1)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_shards_read_as_one_array(sizes: list[int], data: st.DataObject) -> None:
    whole = np.arange(2 * sum(sizes), dtype=np.float32).reshape(-1, 2)
    shards = DescriptorShards(np.split(whole, np.cumsum(sizes)[:-1]))
    first, last = data.draw(st.integers(0, sum(sizes))), data.draw(st.integers(0, sum(sizes) + 2))
    assert len(shards) == len(whole)
    assert shards.shape == whole.shape
    assert np.array_equal(shards[first:last], whole[first:last])
    if len(whole):
        rows = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)), np.int64)
        assert np.array_equal(shards[rows], whole[rows])


def test_the_database_is_not_copied(tmp_path: Path) -> None:
    rows = unit_rows(60_000, 64, 23)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    tracemalloc.start()  # numpy's share; torch's buffers are bounded by construction
    nearest(rows[:4], mapped, 5, block_rows=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes / 4
