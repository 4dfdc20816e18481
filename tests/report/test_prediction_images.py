"""Saved predictions: the frames of the images and the rows of the table agree with the distances."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.report.colors import CORRECT_RGB, INCORRECT_RGB, QUERY_RGB
from cosplace.report.prediction_images import FRAME, GAP, save_predictions
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from tests.report.report_samples import EAST, NORTH, OFFSETS, write_photo


def test_saved_images_and_table(dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path) -> None:
    assert save_predictions(tmp_path / "all", dataset, evaluation, 2) == 4
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "000.jpg", "001.jpg", "002.jpg", "003.jpg", "predictions.csv",
    ]  # fmt: skip
    with (tmp_path / "all" / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    for line, (query, rank) in zip(lines, [(q, r) for q in range(4) for r in range(2)], strict=True):
        offset = OFFSETS[query][rank]
        assert (int(line["query"]), int(line["rank"])) == (query, rank + 1)
        assert float(line["distance_m"]) == pytest.approx(offset, abs=0.011)
        assert line["right"] == str(int(offset <= 25))
        assert Path(line["query_path"]).is_file() and Path(line["prediction_path"]).is_file()
        assert line["picture"] == f"{query:03d}.jpg"


def test_images_of_failures_only(dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []

    def record(task: str, done: int, total: int, note: str = "", /) -> None:
        steps.append((task, done, total))

    assert save_predictions(tmp_path, dataset, evaluation, 99, True, progress=record) == 2
    assert steps == [("saving predictions", 1, 2), ("saving predictions", 2, 2)]
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == ["001.jpg", "002.jpg"]
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 4 * 3


def test_photos_outside_the_dataset_are_gray(dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path) -> None:
    """As those of a list that lead outside, which are left out with --skip_unreadable."""
    nowhere = (str(tmp_path / "elsewhere"),)
    outside = replace(
        dataset, queries=replace(dataset.queries, inside=nowhere), database=replace(dataset.database, inside=nowhere)
    )
    assert save_predictions(tmp_path / "preds", outside, evaluation, 2) == 4
    image = np.asarray(Image.open(tmp_path / "preds" / "000.jpg"))
    assert np.abs(image[image.shape[0] // 2, GAP + FRAME + 4].astype(int) - (128, 134, 141)).max() <= 8
    assert (tmp_path / "preds" / "predictions.csv").read_text().count("\n") == 9


def test_no_predictions_to_save(dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path) -> None:
    assert save_predictions(tmp_path / "none", dataset, evaluation, 0) == 0
    assert not (tmp_path / "none").exists()


def frame_colors(path: Path, num_tiles: int) -> list[tuple[int, int, int]]:
    """Return the colors of the frames in an image of tiles of one size, from left to right."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    height, width, _ = pixels.shape
    tile = (width - GAP * (num_tiles + 1)) // num_tiles
    middles = GAP + tile // 2 + (tile + GAP) * np.arange(num_tiles)
    edges = pixels[height - GAP - FRAME // 2, middles]  # of the frames, at the bottom
    colors = (QUERY_RGB, CORRECT_RGB, INCORRECT_RGB)
    return [colors[int(np.abs(edge - np.array(colors)).sum(axis=1).argmin())] for edge in edges]


def test_frames_follow_the_distances(dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path) -> None:
    save_predictions(tmp_path, dataset, evaluation, 3)
    for query, offsets in OFFSETS.items():
        expected = [QUERY_RGB, *(CORRECT_RGB if offset <= 25 else INCORRECT_RGB for offset in offsets)]
        assert frame_colors(tmp_path / f"{query:03d}.jpg", 4) == expected


def test_photo_that_cannot_be_opened_is_gray(tmp_path: Path) -> None:
    write_photo(tmp_path / "queries", EAST, NORTH)
    write_photo(tmp_path / "database", EAST + 5, NORTH, size=(30, 400))
    broken = next((tmp_path / "queries").iterdir())
    broken.write_bytes(broken.read_bytes()[:40])
    dataset = open_retrieval_dataset(tmp_path)
    ones = np.ones((1, 2), np.float32)
    evaluation = evaluate_descriptors(ones, ones, dataset, recall_values=[1])
    assert save_predictions(tmp_path / "preds", dataset, evaluation, 1) == 1
    image = np.asarray(Image.open(tmp_path / "preds" / "000.jpg").convert("RGB")).astype(int)
    gray = image[80, 100]  # inside the first tile, away from its text
    assert np.ptp(gray) < 20 and 100 < gray.mean() < 160
