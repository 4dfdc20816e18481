"""The k nearest of a few queries are those of the search with torch."""

import subprocess
import sys

import numpy as np
import pytest

from cosplace.retrieval.exact_distances import nearest_of_few
from cosplace.retrieval.search import nearest_in_float64


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["random", "equal rows", "nearly equal rows", "not of length 1"])
def test_the_same_rows_and_distances(kind: str, dtype: type) -> None:
    rng = np.random.default_rng(1)
    database = unit(rng.standard_normal((2000, 64)))
    if kind == "equal rows":
        database[100:1900] = database[50]
    elif kind == "nearly equal rows":
        database[100:1900] = database[50] + rng.uniform(-1e-6, 1e-6, (1800, 64)).astype(np.float32)
    elif kind == "not of length 1":
        database *= rng.uniform(0.1, 100, (2000, 1)).astype(np.float32)
    database = database.astype(dtype)
    queries = np.concatenate([database[[50, 3]].astype(np.float32), unit(rng.standard_normal((3, 64)))])
    for searchable in (None, rng.random(2000) < 0.3):
        for k in (1, 20, 300):
            found, expected = (search(queries, database, k, searchable=searchable)
                               for search in (nearest_of_few, nearest_in_float64))  # fmt: skip
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_all_rows() -> None:
    database = unit(np.random.default_rng(2).standard_normal((7, 16)))
    found, distances = nearest_of_few(database[:1], database, 7)
    assert sorted(found[0].tolist()) == list(range(7)) and found[0, 0] == 0 and (np.diff(distances) >= 0).all()


def test_without_torch() -> None:
    code = "import sys, cosplace.retrieval.exact_distances; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
