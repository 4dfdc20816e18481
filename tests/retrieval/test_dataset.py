"""A database with its queries, opened from a folder."""

from pathlib import Path

import numpy as np
import pytest

from cosplace.errors import DatasetError
from cosplace.retrieval.dataset import open_retrieval_dataset
from tests.synthetic_dataset import write_dataset, write_place


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def test_databases_with_queries(dataset_folder: Path, tmp_path: Path) -> None:
    test = open_retrieval_dataset(dataset_folder / "test")
    assert (test.name, len(test.database), len(test.queries)) == ("test/queries_v1", 24, 12)
    assert open_retrieval_dataset(dataset_folder / "val").name == "val/queries"
    assert np.allclose(test.query_positions[:, 0].min(), 550_000 + 20_000 + 2)
    with pytest.raises(DatasetError, match=r"queries_night.*with --queries_folder: queries_v1"):
        open_retrieval_dataset(dataset_folder / "test", "queries_night")
    with pytest.raises(DatasetError, match="no subfolder database"):
        open_retrieval_dataset(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        open_retrieval_dataset(tmp_path / "x")
    (tmp_path / "database").mkdir()
    (tmp_path / "queries").mkdir()
    write_place(tmp_path / "database", 0, 0)
    with pytest.raises(DatasetError, match="queries has no photos"):
        open_retrieval_dataset(tmp_path)


def test_an_at_sign_in_a_folder_does_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "me@home" / "@set@1"
    write_place(folder / "database", 1, 0)
    write_place(folder / "queries", 1, 1)
    test = open_retrieval_dataset(folder)
    assert test.database_positions.tolist() == [[550012, 4180000]]
