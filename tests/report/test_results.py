"""Results of a run: results.json, report.html and preds/."""

import dataclasses
import json
from pathlib import Path

import pytest

from cosplace.config.evaluation import EvalConfig
from cosplace.config.values import from_values
from cosplace.report.results import evaluation_summary, write_evaluation_results
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.retrieval.shards import UnreadableImage
from tests.report.report_samples import Page


def test_results_of_an_evaluation(dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path) -> None:
    config = from_values(
        EvalConfig, {"resume_model": "models/best.pth", "num_preds_to_save": 1, "positive_dist_threshold": 25}
    )
    write_evaluation_results(tmp_path, evaluation, dataset, config)
    expected = {
        "recalls": {"1": 50.0, "2": 75.0, "3": 75.0},
        "num_database": 12,
        "num_queries": 4,
        "num_queries_without_positives": evaluation.num_queries_without_positives,
        "positive_dist_threshold_m": 25,
        "image_size": None,
    }
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: results[name] for name in expected} == expected
    assert set(results["intervals"]["recalls"]) == {"1", "2", "3"}
    assert len(list((tmp_path / "preds").glob("*.jpg"))) == 4
    text = Page((tmp_path / "report.html").read_text("utf-8")).text()
    assert f"models/best.pth, evaluated on {dataset.folder}." in text
    assert "chance random predictions" in text and "best.pth 50.0 [15.0, 85.0] (approximate) 75.0 [" in text


@pytest.mark.parametrize("count", [1, 2])
def test_summary_counts_photos_in_correct_english(
    evaluation: Evaluation, dataset: RetrievalDataset, count: int
) -> None:
    unreadable = (UnreadableImage(index=0, name="a.jpg", message="empty"),) * count
    changed = dataclasses.replace(
        evaluation, num_queries_without_positives=count, unreadable_queries=unreadable, image_size=224, views={}
    )
    assert evaluation_summary(changed, dataset) == (
        "4 queries, 12 database images, resized to 224 pixels; correct = within 25 m. "
        + ("1 query has no positive and counts as a miss. 1 photo could not be opened." if count == 1 else
           "2 queries have no positive and count as misses. 2 photos could not be opened.")
    )  # fmt: skip
    left_out = dataclasses.replace(dataset, num_unknown_queries=count, num_unknown_database=2)
    assert evaluation_summary(evaluation, left_out).endswith(
        ("1 query is left out: its position is unknown." if count == 1 else
         "2 queries are left out: their positions are unknown.")
        + " 2 database images are left out: their positions are unknown."
    )  # fmt: skip
