"""Positives of queries, and the recalls that are counted with them.

Plain, as the field writes it: neighbours within 25 m as one list per query (scikit-learn; without it, scipy), and a
loop over queries and recall values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.names import city
from benchmarks.records import Options, Side, Stage, Work

if TYPE_CHECKING:
    from cosplace.retrieval.recall import Positives

RECALL_VALUES = (1, 5, 10, 20)
RADIUS_M = 25.0
LEAST_DATABASE, DATABASE_PER_QUERY = 100_000, 12  # positions
PANORAMAS_PER_BLOCK = 40  # one every 5 m of street
HEADINGS = 12
K = 20
GROWTH_FROM = {False: 20_000, True: 40_000}
"""Queries of the smallest size of growth, positives being known or not: at all three sizes what is read at random lies
between a processor's second cache (1 MB) and its third (32 MB); a step from one to the other is no growth of work."""


# --- what is judged --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What recalls are counted from."""

    database: np.ndarray  # (R, 2) meters
    queries: np.ndarray  # (Q, 2)
    predictions: np.ndarray  # (Q, K) int64


def _make_judged(folder: Path, size: int, _: Options) -> Path:
    """A city of panoramas; of ten queries one is lost, and the others are found at some rank."""
    from scipy.spatial import KDTree

    rng = np.random.default_rng(0)
    num_database = max(LEAST_DATABASE, DATABASE_PER_QUERY * size)
    corner = (540_000, 4_170_000)
    panoramas = city(rng, num_database // HEADINGS + 1, corner, PANORAMAS_PER_BLOCK).T / 100
    database = np.repeat(panoramas, HEADINGS, axis=0)[:num_database]
    queries = panoramas[rng.integers(0, len(panoramas), size)] + rng.normal(0, 5, (size, 2))
    predictions = rng.integers(0, num_database, (size, K))
    ranks = np.minimum(rng.geometric(0.5, size) - 1, K - 1)
    found = rng.random(size) < 0.9
    right = KDTree(panoramas).query(queries)[1] * HEADINGS + rng.integers(0, HEADINGS, size)
    predictions[np.flatnonzero(found), ranks[found]] = np.minimum(right[found], num_database - 1)
    np.savez(folder / "judged.npz", database=database, queries=queries, predictions=predictions)
    return folder / "judged.npz"


def _load_judged(file: Path) -> Judged:
    given = np.load(file)
    return Judged(database=given["database"], queries=given["queries"], predictions=given["predictions"])


PlainJudgement = tuple[Sequence[Any], dict[int, float]]  # positives of each query; recalls


def _prepare_plain_recall(known: bool, file: Path) -> Work:
    judged = _load_judged(file)
    positives = _lists_of_positives(judged)
    _count_plainly(judged.predictions[:2], positives)

    def work() -> PlainJudgement:
        found = positives if known else _lists_of_positives(judged)
        return found, _count_plainly(judged.predictions, found)

    return work


def _count_plainly(predictions: np.ndarray, positives: Sequence[Any]) -> dict[int, float]:
    recalls = np.zeros(len(RECALL_VALUES))
    for query, predicted in enumerate(predictions):
        for place, k in enumerate(RECALL_VALUES):
            if np.any(np.isin(predicted[:k], positives[query])):
                recalls[place:] += 1
                break
    return dict(zip(RECALL_VALUES, (recalls / len(predictions) * 100).tolist(), strict=True))


def _lists_of_positives(judged: Judged) -> Sequence[Any]:
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        from scipy.spatial import KDTree

        return [np.array(found, int) for found in KDTree(judged.database).query_ball_point(judged.queries, RADIUS_M)]
    neighbors = NearestNeighbors(n_jobs=1).fit(judged.database)
    return neighbors.radius_neighbors(judged.queries, radius=RADIUS_M, return_distance=False)


def _reveal_plain_recall(_: Path, found: PlainJudgement) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    counts = np.array([len(some) for some in found[0]])
    return counts, np.concatenate([np.sort(some) for some in found[0]]), found[1]


def _prepare_recall(known: bool, file: Path) -> Work:
    from cosplace.retrieval.recall import find_positives, recall_at

    judged = _load_judged(file)
    positives = find_positives(judged.database, judged.queries, RADIUS_M)

    def work() -> "tuple[Positives, dict[int, float]]":
        found = positives if known else find_positives(judged.database, judged.queries, RADIUS_M)
        return found, recall_at(judged.predictions, found, RECALL_VALUES)

    recall_at(judged.predictions, positives, RECALL_VALUES)
    return work


def _reveal_recall(
    _: Path, found: "tuple[Positives, dict[int, float]]"
) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    return found[0].counts, found[0].indices, found[1]


def _compare_recalls(plain: tuple[Any, Any, dict[int, float]], ours: tuple[Any, Any, dict[int, float]]) -> str | None:
    if not (np.array_equal(plain[0], ours[0]) and np.array_equal(plain[1], ours[1])):
        return f"{len(plain[1])} against {len(ours[1])} positives, or others"
    same = all(abs(plain[2][k] - ours[2][k]) < 1e-9 for k in RECALL_VALUES)
    return None if same else f"recalls {plain[2]} against {ours[2]}"


def _recall_stage(name: str, title: str, known: bool) -> Stage:
    return Stage(
        name=name,
        title=title,
        unit="queries",
        make_inputs=_make_judged,
        plain=Side(prepare=partial(_prepare_plain_recall, known), reveal=_reveal_plain_recall),
        ours=Side(prepare=partial(_prepare_recall, known), reveal=_reveal_recall),
        compare=_compare_recalls,
        full_size=8_000,
        quick_size=2_000,
        targets={"cpu_ratio": 50.0},
        growth_sizes=tuple(GROWTH_FROM[known] * times for times in (1, 2, 4)),
        imports=("cosplace.retrieval.recall",),
        optional_imports=("sklearn.neighbors",),
    )


STAGES = (
    _recall_stage("recall", f"positives within {RADIUS_M:g} m, and recalls", known=False),
    _recall_stage("recall-count", "recalls from known positives", known=True),
)
