"""Positives of queries, and recalls.

The plain side finds the images within 25 m as one list per query (scikit-learn; without it, SciPy), and loops over
queries and recall values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.filenames import city_positions
from benchmarks.stage import Options, Side, Stage, Work

if TYPE_CHECKING:
    from cosplace.retrieval.recall import Positives

RECALL_VALUES = (1, 5, 10, 20)
RADIUS_M = 25.0
MIN_DATABASE, DATABASE_PER_QUERY = 100_000, 12  # positions
PANORAMAS_PER_BLOCK = 40  # one every 5 m
HEADINGS = 12
K = 20
GROWTH_FROM = {False: 20_000, True: 40_000}
"""Queries of the smallest growth size, by whether the positives are known.  At all three sizes, the data that is read
in random order lies between the second (1 MB) and third (32 MB) cache of a processor: crossing that border would look
like growth."""


# --- inputs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Positions and predictions, from which recalls are computed."""

    database: np.ndarray  # (R, 2) meters
    queries: np.ndarray  # (Q, 2)
    predictions: np.ndarray  # (Q, K) int64


def _make_predictions(folder: Path, size: int, _: Options) -> Path:
    """A city of panoramas.  Nine of ten queries have a correct prediction at some rank."""
    from scipy.spatial import KDTree

    rng = np.random.default_rng(0)
    num_database = max(MIN_DATABASE, DATABASE_PER_QUERY * size)
    corner = (540_000, 4_170_000)
    panoramas = city_positions(rng, num_database // HEADINGS + 1, corner, PANORAMAS_PER_BLOCK).T / 100
    database = np.repeat(panoramas, HEADINGS, axis=0)[:num_database]
    queries = panoramas[rng.integers(0, len(panoramas), size)] + rng.normal(0, 5, (size, 2))
    predictions = rng.integers(0, num_database, (size, K))
    ranks = np.minimum(rng.geometric(0.5, size) - 1, K - 1)
    found = rng.random(size) < 0.9
    right = KDTree(panoramas).query(queries)[1] * HEADINGS + rng.integers(0, HEADINGS, size)
    predictions[np.flatnonzero(found), ranks[found]] = np.minimum(right[found], num_database - 1)
    np.savez(folder / "predictions.npz", database=database, queries=queries, predictions=predictions)
    return folder / "predictions.npz"


def _load(file: Path) -> Predicted:
    arrays = np.load(file)
    return Predicted(database=arrays["database"], queries=arrays["queries"], predictions=arrays["predictions"])


PlainResult = tuple[Sequence[Any], dict[int, float]]  # positives of each query; recalls


def _prepare_plain_recall(known: bool, file: Path) -> Work:
    inputs = _load(file)
    positives = _plain_positives(inputs)
    _plain_recalls(inputs.predictions[:2], positives)

    def work() -> PlainResult:
        found = positives if known else _plain_positives(inputs)
        return found, _plain_recalls(inputs.predictions, found)

    return work


def _plain_recalls(predictions: np.ndarray, positives: Sequence[Any]) -> dict[int, float]:
    recalls = np.zeros(len(RECALL_VALUES))
    for query, predicted in enumerate(predictions):
        for place, k in enumerate(RECALL_VALUES):
            if np.any(np.isin(predicted[:k], positives[query])):
                recalls[place:] += 1
                break
    return dict(zip(RECALL_VALUES, (recalls / len(predictions) * 100).tolist(), strict=True))


def _plain_positives(inputs: Predicted) -> Sequence[Any]:
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        from scipy.spatial import KDTree

        return [np.array(found, int) for found in KDTree(inputs.database).query_ball_point(inputs.queries, RADIUS_M)]
    neighbors = NearestNeighbors(n_jobs=1).fit(inputs.database)
    return neighbors.radius_neighbors(inputs.queries, radius=RADIUS_M, return_distance=False)


def _plain_output(_: Path, found: PlainResult) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    counts = np.array([len(some) for some in found[0]])
    return counts, np.concatenate([np.sort(some) for some in found[0]]), found[1]


def _prepare_recall(known: bool, file: Path) -> Work:
    from cosplace.retrieval.recall import find_positives, recall_at

    inputs = _load(file)
    positives = find_positives(inputs.database, inputs.queries, RADIUS_M)

    def work() -> "tuple[Positives, dict[int, float]]":
        found = positives if known else find_positives(inputs.database, inputs.queries, RADIUS_M)
        return found, recall_at(inputs.predictions, found, RECALL_VALUES)

    recall_at(inputs.predictions, positives, RECALL_VALUES)
    return work


def _our_output(
    _: Path, found: "tuple[Positives, dict[int, float]]"
) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    return found[0].counts, found[0].indices, found[1]


def _compare_recalls(plain: tuple[Any, Any, dict[int, float]], ours: tuple[Any, Any, dict[int, float]]) -> str | None:
    if not (np.array_equal(plain[0], ours[0]) and np.array_equal(plain[1], ours[1])):
        return f"{len(plain[1])} positives by plain, {len(ours[1])} by ours, or others"
    same = all(abs(plain[2][k] - ours[2][k]) < 1e-9 for k in RECALL_VALUES)
    return None if same else f"recalls {plain[2]} by plain, {ours[2]} by ours"


def _recall_stage(name: str, title: str, known: bool) -> Stage:
    return Stage(
        name=name,
        title=title,
        unit="queries",
        make_inputs=_make_predictions,
        plain=Side(prepare=partial(_prepare_plain_recall, known), output=_plain_output),
        ours=Side(prepare=partial(_prepare_recall, known), output=_our_output),
        compare=_compare_recalls,
        full_size=8_000,
        quick_size=2_000,
        targets={"cpu_ratio": 20.0},
        growth_sizes=tuple(GROWTH_FROM[known] * times for times in (1, 2, 4)),
        imports=("cosplace.retrieval.recall",),
        optional_imports=("sklearn.neighbors",),
    )


STAGES = (
    _recall_stage("recall", f"positives within {RADIUS_M:g} m, and recalls", known=False),
    _recall_stage("recall-count", "recalls from known positives", known=True),
)
