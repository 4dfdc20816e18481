"""Extraction of descriptors, and exact search.  With one thread.

The plain search loads all descriptors into one array and copies them into an index (faiss; without faiss, matrix
products and argpartition on a copy).  The memory of the search is anonymous memory: ours maps descriptors from their
files, and the system can drop pages of a file at any time.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.photos import open_with_pillow, write_photos
from benchmarks.stage import Options, Side, Stage, Work
from benchmarks.training import DIMENSION, IMPORTS, no_bf16

if TYPE_CHECKING:
    from cosplace.retrieval.shards import DescriptorShards

EXTRACTION_BATCH = 4
QUICK_PHOTO_SIDE = 192  # pixels
NUM_QUERIES, QUICK_QUERIES = 1_000, 200
SEARCH_DIMENSION, QUICK_DIMENSION = 512, 256
K = 20
TIE = 1e-6  # squared distances that differ by less are ties


# --- extraction ------------------------------------------------------------------------------------------------------


def _make_photos(folder: Path, size: int, options: Options) -> Path:
    import torch

    from cosplace.models.network import GeoLocalizationNet

    paths = write_photos(folder / "photos", size, options)
    side = QUICK_PHOTO_SIDE if options.quick else None
    photos = torch.stack([open_with_pillow(path).mul(255).round().byte()[:, :side, :side] for path in paths])
    network = GeoLocalizationNet("ResNet18", DIMENSION, generator=torch.Generator().manual_seed(0))
    torch.save({"photos": photos, "network": network.state_dict()}, folder / "photos.torch")
    return folder / "photos.torch"


def _prepare_plain_extraction(file: Path) -> Work:
    import torch

    from benchmarks.plain_network import PlainNetwork, normalize_photos

    stored = torch.load(file)
    network = PlainNetwork(DIMENSION)
    network.load_state_dict(stored["network"])
    network.eval()

    def work(photos: torch.Tensor = stored["photos"]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([network(normalize_photos(batch)) for batch in photos.split(EXTRACTION_BATCH)])

    work(stored["photos"][:EXTRACTION_BATCH])
    return work


def _prepare_extraction(autocast: str | None, file: Path) -> Work:
    import torch

    from cosplace.models.inference import encode_batch, optimize_for_inference
    from cosplace.models.network import GeoLocalizationNet

    stored, device = torch.load(file), torch.device("cpu")
    dtype = None if autocast is None else getattr(torch, autocast)
    trained = GeoLocalizationNet("ResNet18", DIMENSION)
    trained.load_state_dict(stored["network"])
    network = optimize_for_inference(trained)

    def work(photos: torch.Tensor = stored["photos"]) -> torch.Tensor:
        with torch.inference_mode():
            batches = photos.split(EXTRACTION_BATCH)
            return torch.cat([encode_batch(network, batch, device=device, autocast=dtype) for batch in batches])

    work(stored["photos"][:EXTRACTION_BATCH])
    return work


def _descriptors_output(_: Path, descriptors: Any) -> np.ndarray:
    return descriptors.numpy()


def _compare_descriptors(plain: np.ndarray, ours: np.ndarray) -> str | None:
    error = float(np.abs(plain - ours).max())
    return None if error <= 1e-6 else f"descriptors differ by up to {error:.2g}, more than 1e-6"


def _compare_cosines(plain: np.ndarray, ours: np.ndarray) -> str | None:
    cosine = float((plain * ours).sum(1).min())
    return None if cosine >= 0.999 else f"the descriptors of a photo have a cosine of {cosine:.5f}, less than 0.999"


def _extraction_stage(name: str, title: str, autocast: str | None, **others: Any) -> Stage:
    return Stage(
        name=name,
        title=title,
        unit="photos",
        make_inputs=_make_photos,
        plain=Side(prepare=_prepare_plain_extraction, output=_descriptors_output),
        ours=Side(prepare=partial(_prepare_extraction, autocast), output=_descriptors_output),
        full_size=16,
        quick_size=4,
        growth_sizes=(8, 16, 32),
        imports=(*IMPORTS, "PIL.Image", "cosplace.retrieval.extraction"),
        **others,
    )


# --- exact search ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Files of descriptors."""

    queries: Path
    shards: tuple[Path, ...]

    def open(self) -> "tuple[np.ndarray, DescriptorShards]":
        """Load the queries and map the database."""
        from cosplace.retrieval.shards import DescriptorShards

        return np.load(self.queries), DescriptorShards([np.load(shard, mmap_mode="c") for shard in self.shards])


def _make_descriptors(dtype: str, folder: Path, size: int, options: Options) -> Stored:
    """Random unit vectors.  Each query is a database row with noise."""
    from cosplace.retrieval.shards import SHARD_ROWS

    rng = np.random.default_rng(0)
    dimension, num_queries = (QUICK_DIMENSION, QUICK_QUERIES) if options.quick else (SEARCH_DIMENSION, NUM_QUERIES)
    shards, samples = [], []
    for first in range(0, size, SHARD_ROWS):
        rows = _units(rng.standard_normal((min(SHARD_ROWS, size - first), dimension), np.float32))
        shards.append(folder / f"descriptors-{first // SHARD_ROWS:05}.npy")
        np.save(shards[-1], rows.astype(dtype))
        samples.append(rows[:: max(1, size // num_queries)])
    originals = np.concatenate(samples)
    originals = originals[np.arange(num_queries) % len(originals)]
    noisy = _units(originals + 0.05 * rng.standard_normal(originals.shape, np.float32))
    np.save(folder / "queries.npy", noisy)
    return Stored(queries=folder / "queries.npy", shards=tuple(shards))


def _units(rows: np.ndarray) -> np.ndarray:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _prepare_index(stored: Stored) -> Work:
    queries, shards = stored.open()
    shape = shards.shape
    del shards
    try:
        import faiss
    except ImportError:
        faiss = None
    make_index = _CopiedRows if faiss is None else faiss.IndexFlatL2
    warm = make_index(shape[1])
    warm.add(queries[:100])
    warm.search(queries[:10], min(K, len(queries[:100])))

    def work() -> np.ndarray:
        database, start = np.empty(shape, np.float32), 0
        for shard in stored.shards:
            rows = np.load(shard)
            database[start : start + len(rows)] = rows
            start += len(rows)
            del rows
        index = make_index(shape[1])
        index.add(database)
        return index.search(queries, K)[1]

    return work


class _CopiedRows:
    """Replacement for the index of faiss: exact search in a copy, block by block."""

    def __init__(self, dimension: int) -> None:
        self.rows = np.empty((0, dimension), np.float32)

    def add(self, rows: np.ndarray) -> None:
        self.rows = rows.copy()

    def search(self, queries: np.ndarray, k: int, block: int = 16_384) -> tuple[np.ndarray, np.ndarray]:
        norms = np.einsum("rd,rd->r", self.rows, self.rows)
        best, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for first in range(0, len(self.rows), block):
            scores = norms[first : first + block] - 2 * queries @ self.rows[first : first + block].T
            columns = np.argpartition(scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
            best = np.concatenate([best, np.take_along_axis(scores, columns, 1)], axis=1)
            found = np.concatenate([found, columns + first], axis=1)
            order = np.argsort(best, axis=1)[:, :k]
            best, found = np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
        return best, found


def _prepare_search(stored: Stored) -> Work:
    from cosplace.retrieval.search import nearest

    queries, shards = stored.open()
    nearest(queries[:10], shards.shards[0][:100], min(K, len(shards.shards[0][:100])))
    return lambda: nearest(queries, shards, K)[0]


def _search_output(stored: Stored, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (Q, K) and their squared distances in float64, computed from the files."""
    queries, shards = stored.open()
    rows = shards[predictions.ravel().astype(np.int64)].reshape(*predictions.shape, -1)
    distances = [((found.astype(np.float64) - query) ** 2).sum(1) for found, query in zip(rows, queries, strict=True)]
    return predictions, np.stack(distances)


def _compare_predictions(plain: tuple[np.ndarray, np.ndarray], ours: tuple[np.ndarray, np.ndarray]) -> str | None:
    wrong = (plain[0] != ours[0]) & ~(np.abs(plain[1] - ours[1]) <= TIE)
    return f"{int(wrong.any(1).sum())} of {len(wrong)} queries have other neighbors" if wrong.any() else None


def _search_stage(name: str, dtype: str) -> Stage:
    return Stage(
        name=name,
        title=f"exact search, k = {K}, {dtype} on disk",
        unit="rows",
        make_inputs=partial(_make_descriptors, dtype),
        plain=Side(prepare=_prepare_index, output=_search_output),
        ours=Side(prepare=_prepare_search, output=_search_output),
        compare=_compare_predictions,
        full_size=500_000,
        quick_size=20_000,
        targets={"cpu_ratio": 0.95, "wall_ratio": 0.95, "memory_ratio": 1.9},
        quick_targets={"cpu_ratio": 0.9, "wall_ratio": 0.9},
        growth_sizes=(100_000, 200_000, 400_000),
        imports=("torch", "cosplace.retrieval.search"),
        optional_imports=("faiss",),
        memory="anonymous",
    )


STAGES = (
    _extraction_stage(
        "extract",
        "ResNet-18 descriptors, fp32",
        None,
        compare=_compare_descriptors,
        targets={"cpu_ratio": 1.3},
        quick_targets={"cpu_ratio": 1.1},
    ),
    _extraction_stage(
        "extract-bf16",
        "ResNet-18 descriptors, bf16 compared with fp32",
        "bfloat16",
        compare=_compare_cosines,
        targets={"cpu_ratio": 2.5},
        quick_targets={"cpu_ratio": 1.4},
        unavailable=no_bf16,
    ),
    _search_stage("search", "float32"),
    _search_stage("search-fp16", "float16"),
)
