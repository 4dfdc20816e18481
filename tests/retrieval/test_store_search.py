"""Search of stores: the neighbors of a search in memory, for all types, blocks and numbers of ranks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cosplace.errors import ConfigError, DatasetError
from cosplace.ranks import Ranks
from cosplace.retrieval import store_search
from cosplace.retrieval.descriptor_store import DescriptorStore, open_store
from cosplace.retrieval.rank_group import RankGroup
from cosplace.retrieval.search import nearest
from cosplace.retrieval.shards import shard_name
from cosplace.retrieval.store_search import Nearest, rows_per_block, search_store
from tests.retrieval.store_samples import unit_rows, write_store

NUM_ROWS, DIMENSION = 450, 24
QUERIES = unit_rows(30, DIMENSION, seed=1)


def with_copies() -> np.ndarray:
    """Descriptors of which many are equal, also in other shards and in the parts of other ranks."""
    rows = unit_rows(NUM_ROWS, DIMENSION)
    rows[300:400] = rows[:100]
    rows[101] = rows[100]
    return rows


class OneByOne(RankGroup):
    """Ranks that run one after the other in this process, the first one last."""

    def __init__(self, ranks: Ranks, sent: dict[int, list[np.ndarray]]) -> None:
        super().__init__(ranks)
        self.sent, self.num_gathered = sent, 0

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        if not self.ranks.is_first:
            self.sent.setdefault(self.ranks.rank, []).append(array)
            return []
        self.num_gathered += 1
        return [array, *(self.sent[rank][self.num_gathered - 1] for rank in range(1, self.ranks.world_size))]


def search_by_ranks(store: DescriptorStore, k: int, num_ranks: int, searchable: np.ndarray) -> Nearest:
    sent: dict[int, list[np.ndarray]] = {}
    for rank in reversed(range(num_ranks)):
        group = OneByOne(Ranks(rank, num_ranks), sent)
        found = search_store(QUERIES, store, k, searchable=searchable, group=group)
        assert (found is None) == (rank > 0)
    assert found is not None
    return found


def plain_neighbors(distances: np.ndarray, searchable: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest by all distances (Q, R); of equal ones, those with lower rows."""
    distances = np.where(searchable, distances, np.inf)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, 1)


@pytest.fixture(params=["all rows", "some rows"])
def searchable(request: pytest.FixtureRequest) -> np.ndarray:
    wanted = np.ones(NUM_ROWS, bool)
    if request.param == "some rows":
        wanted[150:280] = False  # more than a shard
        wanted[::7] = False
    return wanted


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_descriptors_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, num_ranks: int, searchable: np.ndarray
) -> None:
    rows = with_copies()
    write_store(tmp_path / "store", rows, dtype=dtype)
    stored = rows.astype(dtype).astype(np.float32)
    expected, squared = nearest(QUERIES, stored, 20, searchable=searchable)
    exact = ((QUERIES[:, None].astype(np.float64) - stored) ** 2).sum(axis=2)
    assert np.array_equal(expected, plain_neighbors(exact, searchable, 20)[0])
    for block_rows in (NUM_ROWS, 64, 7):
        monkeypatch.setattr(store_search, "BLOCK_BYTES", block_rows * DIMENSION * np.dtype(dtype).itemsize)
        found = search_by_ranks(open_store(tmp_path / "store"), 20, num_ranks, searchable)
        assert np.array_equal(found.rows, expected)
        assert np.array_equal(found.squared_distances.astype(np.float32), squared)


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_codes_by_their_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, num_ranks: int, searchable: np.ndarray
) -> None:
    write_store(tmp_path / "store", with_copies(), dtype=dtype)
    store = open_store(tmp_path / "store")
    codes, values = store.read(range(NUM_ROWS)), store.meta.codes
    if dtype == "int8":
        scale = values["scale"] / 127
        asked = np.clip(np.rint(QUERIES / scale), -127, 127)
        distances = ((asked[:, None] - codes.astype(float)) ** 2).sum(axis=2)
    else:
        from cosplace.retrieval.compression import binary_codes, centered_and_rotated

        asked = binary_codes(centered_and_rotated(QUERIES, np.array(values["center"], np.float32)))
        differences = (asked[:, None] ^ codes).view(np.uint8)
        distances = np.unpackbits(differences, axis=2).sum(axis=2).astype(float)
    expected, integers = plain_neighbors(distances, searchable, 20)
    for block_bytes in (1 << 20, 300):
        monkeypatch.setattr(store_search, "BLOCK_BYTES", block_bytes)
        found = search_by_ranks(store, 20, num_ranks, searchable)
        assert np.array_equal(found.rows, expected)
        unit = scale**2 if dtype == "int8" else 4 / DIMENSION
        assert np.allclose(found.squared_distances, integers * unit)


def test_more_ranks_than_rows(tmp_path: Path) -> None:
    write_store(tmp_path / "store", unit_rows(3, DIMENSION))
    found = search_by_ranks(open_store(tmp_path / "store"), 3, 5, np.ones(3, bool))
    assert np.array_equal(np.sort(found.rows, axis=1), np.tile(np.arange(3), (len(QUERIES), 1)))


def test_what_cannot_be_found(tmp_path: Path) -> None:
    write_store(tmp_path / "store", unit_rows(5, DIMENSION))
    store = open_store(tmp_path / "store")
    with pytest.raises(DatasetError, match="Cannot find 3 neighbors among 2 rows"):
        search_store(QUERIES, store, 3, searchable=np.arange(5) < 2)
    with pytest.raises(DatasetError, match="queries have 8 dimensions but the store has 24"):
        search_store(QUERIES[:, :8], store, 1, searchable=np.ones(5, bool))


def test_a_shard_that_becomes_shorter(tmp_path: Path) -> None:
    write_store(tmp_path / "store", unit_rows(NUM_ROWS, DIMENSION))
    store = open_store(tmp_path / "store")
    (tmp_path / "store" / shard_name(3)).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"descriptors-00003\.npy has changed while it was read"):
        search_store(QUERIES, store, 1, searchable=np.ones(NUM_ROWS, bool))


# --- memory ----------------------------------------------------------------------------------------------------------


def test_too_little_memory_is_refused_with_an_amount_that_suffices(tmp_path: Path) -> None:
    write_store(tmp_path / "store", unit_rows(5, DIMENSION))
    store = open_store(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"--memory 0\.001 is too small") as error:
        rows_per_block(store, 10, 5, round(0.001 * 2**30))
    suggested = float(str(error.value).rsplit(" ", 1)[1].rstrip("."))
    assert rows_per_block(store, 10, 5, round(suggested * 2**30)) > 100_000


SEARCH = """
import json, sys
from pathlib import Path
import numpy as np
from cosplace.retrieval.descriptor_store import open_store
from cosplace.memory import resident_bytes
from cosplace.retrieval.store_search import rows_per_block, search_store, working_bytes

store = open_store(sys.argv[1])
queries = np.random.default_rng(1).standard_normal((100, store.meta.dimension)).astype(np.float32)
search_store(queries[:2], open_store(sys.argv[2]), 1, searchable=np.ones(50, bool))  # libraries are loaded
limit = resident_bytes() + working_bytes(store, len(queries), 20) + (48 << 20)
num_blocks = len(store) / rows_per_block(store, len(queries), 20, limit)
search_store(queries, store, 20, searchable=np.ones(len(store), bool), memory_bytes=limit)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"limit": limit, "peak": 1024 * int(status["VmHWM"].split()[0]), "num_blocks": num_blocks}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
@pytest.mark.parametrize(
    ("dtype", "num_rows"),
    [
        ("float32", 100_000),
        pytest.param("float16", 160_000, marks=pytest.mark.long),
        pytest.param("int8", 300_000, marks=pytest.mark.long),
        pytest.param("binary", 300_000, marks=pytest.mark.long),
    ],
)
def test_memory_stays_below_the_limit(tmp_path: Path, dtype: str, num_rows: int) -> None:
    block = unit_rows(2000, 256)
    write_store(tmp_path / "store", np.tile(block, (num_rows // 2000, 1)), dtype=dtype, shard_rows=20_000)
    write_store(tmp_path / "small", block[:50], dtype=dtype)
    command = [sys.executable, "-c", SEARCH, str(tmp_path / "store"), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert dtype == "binary" or found["num_blocks"] > 2
    assert found["peak"] <= found["limit"], found
