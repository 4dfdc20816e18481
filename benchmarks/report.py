"""The results of an evaluation, written to its folder: metrics, report.html, queries.parquet.

Predictions are random, and each photo is one of a few files.  Matching points need OpenCV and are limited to 50
queries, so they are left out: they cost the same for each size.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.stage import Options, Side, Stage, Work

if TYPE_CHECKING:
    from cosplace.retrieval.dataset import RetrievalDataset

NUM_PREDICTIONS = 20
DATABASE_PER_QUERY = 3
SPACING_M, NEAR_M = 15.0, 8.0  # between places; from a query to its place
FILES = 16  # further photos are links to these
FILES_PER_FOLDER = 1_000
SHARE_CORRECT = 0.7


def _make_results(folder: Path, size: int, _: Options) -> Path:
    """A dataset of `size` queries, and predictions of which most of the first are correct."""
    from benchmarks.photos import generate_photo

    rng = np.random.default_rng(0)
    photos = [folder / f"{number}.jpg" for number in range(FILES)]
    for number, photo in enumerate(photos):
        photo.write_bytes(generate_photo(number, 128))
    num_database = DATABASE_PER_QUERY * size
    side = int(np.ceil(num_database**0.5))
    places = np.stack(np.divmod(np.arange(num_database), side), axis=1) * SPACING_M
    chosen = rng.integers(0, num_database, size)
    _link_photos(folder / "test" / "database", places, photos)
    _link_photos(folder / "test" / "queries", places[chosen] + rng.uniform(-NEAR_M, NEAR_M, (size, 2)), photos)
    np.savez(folder / "found.npz", chosen=chosen)
    return folder


def _link_photos(folder: Path, positions: np.ndarray, photos: list[Path]) -> None:
    """Symbolic links with '@' names, in subfolders, in the order of their names."""
    for number, (east, north) in enumerate(positions.tolist()):
        inside = folder / f"{number // FILES_PER_FOLDER:04d}"
        if number % FILES_PER_FOLDER == 0:
            inside.mkdir(parents=True)
        name = f"{number:07d}@{500_000 + east:010.2f}@{4_180_000 + north:010.2f}@10@S@@@@@@@@@@@.jpg"
        (inside / name).symlink_to(photos[number % len(photos)])


def _predictions(dataset: "RetrievalDataset", chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (Q, K) and squared distances: random photos, of which the first is mostly that of the place."""
    rng = np.random.default_rng(1)
    predictions = rng.integers(0, len(dataset.database), (len(chosen), NUM_PREDICTIONS))
    is_correct = rng.random(len(chosen)) < SHARE_CORRECT
    predictions[is_correct, 0] = chosen[is_correct]
    return predictions, np.sort(rng.uniform(0.1, 1.5, predictions.shape).astype(np.float32), axis=1)


def _prepare_report(folder: Path) -> Work:
    from cosplace.config.evaluation import EvalConfig
    from cosplace.config.values import from_values
    from cosplace.report.results import write_evaluation_results
    from cosplace.retrieval.dataset import open_retrieval_dataset
    from cosplace.retrieval.evaluation import EvaluationSettings, evaluate_predictions

    dataset = open_retrieval_dataset(folder / "test", follow_outside=True)
    predictions, squared_distances = _predictions(dataset, np.load(folder / "found.npz")["chosen"])
    settings = EvaluationSettings()
    evaluation = evaluate_predictions(
        predictions, squared_distances, dataset, settings, recall_values=settings.recall_values
    )
    config = from_values(EvalConfig, {"report_matches": 0})
    out = folder / "run"
    out.mkdir(exist_ok=True)
    return lambda: write_evaluation_results(out, evaluation, dataset, config)


def _files_written(folder: Path, _: Any) -> list[str]:
    return sorted(path.name for path in (folder / "run").iterdir() if path.stat().st_size)


def _compare_files(_: None, names: list[str]) -> str | None:
    missing = {"queries.parquet", "report.html", "results.json"} - set(names)
    return f"{', '.join(sorted(missing))} is missing" if missing else None


STAGES = (
    Stage(
        name="report",
        title="metrics and report of an evaluation",
        unit="queries",
        make_inputs=_make_results,
        ours=Side(prepare=_prepare_report, output=_files_written),
        compare=_compare_files,
        full_size=10_000,
        quick_size=200,
        targets={"most_cpu_s": 60.0, "most_memory_mib": 1_000.0},
        growth_sizes=(1_000, 10_000, 100_000),
        imports=("cosplace.report.results",),
        max_turns=1,
    ),
)
