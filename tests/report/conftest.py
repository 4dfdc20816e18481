"""One small report, shared by all tests of a module."""

from collections.abc import Iterator
from typing import Any

import pytest

from cosplace.report.data import Report
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from tests.browsers import open_chromium
from tests.report.report_samples import make_dataset, make_evaluation, make_report


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalDataset:
    return make_dataset(tmp_path_factory.mktemp("test"))


@pytest.fixture(scope="session")
def evaluation(dataset: RetrievalDataset) -> Evaluation:
    return make_evaluation(dataset)


@pytest.fixture(scope="session")
def report(dataset: RetrievalDataset, evaluation: Evaluation) -> Report:
    return make_report(dataset, evaluation)


@pytest.fixture
def odd_metrics() -> list[dict[str, Any]]:
    """Metrics with missing and repeated values."""
    return [
        {},
        {"kind": "epoch"},
        {"kind": "epoch", "epoch": 0},
        {"kind": "epoch", "epoch": 1, "recalls": None, "loss": float("nan")},
        {"kind": "loss", "epoch": 0, "loss": float("inf")},
        {"kind": "loss", "loss": 3.0},
        {"kind": "other", "epoch": 5, "loss": 1.0},
        {"kind": "epoch", "epoch": 1, "recalls": {"1": 0.0}},
    ]
