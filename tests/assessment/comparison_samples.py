"""Folders of runs with chosen outcomes, to compare."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosplace.assessment.run_files import write_query_results
from cosplace.photos.image_list import image_list
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors

K = 5


def city_dataset(folder: Path, num_queries: int = 40, photos: bool = False) -> RetrievalDataset:
    """Queries 1 km apart, each with one positive 3 m away, and database images without queries."""
    places = 1000.0 * np.arange(num_queries + K)
    database = [f"d{number:04d}.jpg" for number in range(num_queries + K)]
    queries = [f"q{number:04d}.jpg" for number in range(num_queries)]
    if photos:
        for part, names in (("database", database), ("queries", queries)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            for number, name in enumerate(names):
                Image.new("RGB", (64, 48), (5 * number % 250, 90, 160)).save(folder / part / name)
    return RetrievalDataset(
        name="city/queries",
        folder=folder,
        database=image_list(folder / "database", database),
        queries=image_list(folder / "queries", queries),
        database_positions=np.stack([places, np.zeros(len(places))], axis=1),
        query_positions=np.stack([places[:num_queries] + 3.0, np.zeros(num_queries)], axis=1),
    )


def city_evaluation(dataset: RetrievalDataset, ranks: Sequence[int], radius_m: float = 25.0) -> Evaluation:
    """An evaluation whose first correct prediction of each query has this rank, from 1; 0: not among the first K."""
    num_queries, num_database = len(dataset.queries), len(dataset.database)
    assert len(ranks) == num_queries
    evaluation = evaluate_descriptors(
        np.eye(num_database, dtype=np.float32),
        np.eye(num_database, dtype=np.float32)[:num_queries],
        dataset,
        recall_values=(1, K),
        positive_dist_threshold=radius_m,
    )
    others = num_queries + np.arange(K)  # images near no query
    predictions = np.tile(others, (num_queries, 1))
    for query, rank in enumerate(ranks):
        if rank:
            predictions[query, rank - 1] = query
    meters = np.abs(dataset.query_positions[:, None, 0] - dataset.database_positions[predictions, 0])
    hits = meters <= radius_m
    recalls = {n: 100 * float(hits[:, :n].any(axis=1).mean()) for n in (1, K)}
    return replace(evaluation, predictions=predictions, distances_m=meters, recalls=recalls)


def write_run(
    folder: Path,
    dataset: RetrievalDataset,
    ranks: Sequence[int],
    *,
    radius_m: float = 25.0,
    conditions: Mapping[str, Sequence[str]] | None = None,
    **more: Any,
) -> Path:
    """A run with results.json and queries.parquet."""
    evaluation = city_evaluation(dataset, ranks, radius_m)
    folder.mkdir(parents=True)
    results = {
        "recalls": {str(n): recall for n, recall in evaluation.recalls.items()},
        "image_size": None,
        "protocol": {"id": "custom", "similar": None},
        "model": {"name": f"{folder.name}.pth", "backbone": "ResNet18", "descriptor_dim": 512, "sha256": folder.name},
        **more,
    }
    expected = np.arange(len(dataset.queries))
    write_query_results(folder / "queries.parquet", evaluation, dataset, expected=expected, conditions=conditions or {})
    (folder / "results.json").write_text(json.dumps(results))
    return folder
