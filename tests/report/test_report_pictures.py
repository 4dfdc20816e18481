"""Maps, queries with their predictions, and pictures saved as files: colours, frames and signs tell the truth."""

import base64
import csv
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosplace.report.contents import FOUND_FIRST, FOUND_LATER, MISSED, RecallRow, Report, outcomes
from cosplace.report.maps import canvas_around, common_step, groups_map, outcome_map
from cosplace.report.page import report_html, write_report
from cosplace.report.style import GROUP_COLORS, QUERY_COLORS
from cosplace.report.thumbnails import FRAME, GAP, PLAIN, RIGHT, WRONG, choose_queries, save_predictions
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from tests.report.report_samples import (
    EAST,
    NORTH,
    OFFSETS,
    SQUARE,
    Page,
    assert_stands_alone,
    make_dataset,
    make_evaluation,
    make_groups,
    make_report,
    tiles_of,
    write_photo,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalDataset:
    return make_dataset(tmp_path_factory.mktemp("test"))


@pytest.fixture(scope="module")
def evaluation(dataset: RetrievalDataset) -> Evaluation:
    return make_evaluation(dataset)


@pytest.fixture(scope="module")
def report(dataset: RetrievalDataset, evaluation: Evaluation) -> Report:
    return make_report(dataset, evaluation)


# --- maps ------------------------------------------------------------------------------------------------------------


def pixels_of(html: str) -> np.ndarray:
    """The raster (H, W, 4) uint8 of a map."""
    data = re.search(r"data:image/png;base64,([^\"]+)", html)
    assert data
    return np.array(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("RGBA"))


def shows(pixels: np.ndarray, color: str) -> np.ndarray:
    wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return (pixels[..., :3] == wanted).all(axis=-1) & (pixels[..., 3] > 0)


def test_map_gives_each_class_its_cell_and_group() -> None:
    pixels = pixels_of(groups_map(make_groups(SQUARE, [60, 30, 10]), 2).whole)
    areas = [shows(pixels, color).sum() for color in GROUP_COLORS[:3]]
    assert areas[0] == 2 * areas[1] > 0 and areas[2] == 0
    # The cells are listed from west to east: group 0 fills the west, group 1 the middle, grey the east.
    columns = [np.flatnonzero(shows(pixels, color).any(axis=0)) for color in GROUP_COLORS[:2]]
    assert columns[0].max() + 1 == columns[1].min()
    assert len(columns[0]) == 2 * len(columns[1])
    assert (pixels[0, 0, 3], pixels[-1, -1, 3]) == (0, 0)  # nothing in the corners: any page shines through


def test_map_has_north_above() -> None:
    pixels = pixels_of(groups_map(make_groups([(0, 0, 0), (0, 500, 0)], [1, 1]), 2).whole)
    south, north = (np.flatnonzero(shows(pixels, color).any(axis=1)).mean() for color in GROUP_COLORS[:2])
    assert north < south


def test_sectors_point_where_photos_look() -> None:
    cells = [(100, 100, heading) for heading in (0, 90, 180, 270)]
    pixels = pixels_of(groups_map(make_groups(cells, [1, 1, 1, 1]), 4, M=10, alpha=90).whole)
    middles = []
    for color in GROUP_COLORS[:4]:
        rows, columns = np.nonzero(shows(pixels, color))
        middles.append((rows.mean(), columns.mean()))
    middle = np.mean(middles, axis=0)
    quadrants = [(row < middle[0], column > middle[1]) for row, column in middles]
    # 0–90° looks to the north-east, then clockwise.
    assert quadrants == [(True, True), (False, True), (False, False), (True, False)]


def test_detail_shows_the_densest_part() -> None:
    lonely = [(0, 0, 0), (20_000, 20_000, 30)]
    dense = [(9600 + 10 * x, 4800, heading) for x in range(6) for heading in (0, 180)]
    drawing = groups_map(make_groups(lonely + dense, [2, 12]), 2, M=10, alpha=30)
    assert drawing.detail
    pixels = pixels_of(drawing.detail)
    assert shows(pixels, GROUP_COLORS[1]).any() and not shows(pixels, GROUP_COLORS[0]).any()


@pytest.mark.slow
def test_map_of_many_scattered_classes_stays_small() -> None:
    rng = np.random.Generator(np.random.Philox(key=1))
    keys = rng.permutation(np.unique(rng.integers(0, 12 * 1000 * 1000, 320_000)))
    cells = np.stack([keys % 1000 * 10, keys // 1000 % 1000 * 10, keys // 1_000_000 * 30], axis=1)
    assert len(cells) > 300_000
    starts = np.linspace(0, len(cells), 9).astype(np.int64)
    groups = dataclasses.replace(
        make_groups([], []), cells=cells, group_starts=starts, class_starts=np.arange(len(cells) + 1)
    )
    html = report_html(Report(title="t", groups=groups, groups_used=8))
    assert 10_000 < len(html) < 1_000_000


def test_queries_on_the_map_tell_what_became_of_them() -> None:
    places = np.array([[0.0, 0.0], [500.0, 0.0], [1000.0, 0.0]])
    pixels = pixels_of(outcome_map(places[:1], places, np.array([MISSED, FOUND_LATER, FOUND_FIRST])))
    columns = [np.flatnonzero(shows(pixels, color).any(axis=0)).mean() for color in QUERY_COLORS]
    assert columns[2] < columns[1] < columns[0]
    stamps = [shows(pixels, color) for color in QUERY_COLORS]  # shapes differ, not only colours
    cropped = [stamp[np.ix_(stamp.any(axis=1), stamp.any(axis=0))] for stamp in stamps]
    middle = [stamp[stamp.shape[0] // 2, stamp.shape[1] // 2] for stamp in cropped]
    corner = [stamp[1, 1] for stamp in cropped]
    assert middle == [True, False, True] and corner == [False, False, True]


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e7, 1e7)), min_size=1, max_size=5),
    st.sampled_from([0.0, 1.0, 10.0, 25.0]),
)
def test_canvas_holds_all_positions(positions: list[tuple[float, float]], cell_m: float) -> None:
    array = np.array(positions)
    canvas = canvas_around(array, cell_m)
    rows, columns = canvas.rows(array[:, 1]), canvas.columns(array[:, 0])
    assert ((rows >= 0) & (rows < canvas.pixels.shape[0])).all()
    assert ((columns >= 0) & (columns < canvas.pixels.shape[1])).all()
    assert max(canvas.pixels.shape) <= 1101


def test_common_step_of_corners() -> None:
    assert common_step(np.array([1000, 1030, 1050])) == 10
    assert common_step(np.array([7, 7])) == 0


# --- queries and predictions -----------------------------------------------------------------------------------------


def test_frames_and_signs_follow_the_distances(report: Report) -> None:
    tiles = tiles_of(report_html(report))
    judged = [(kind, caption) for kind, caption in tiles if kind in ("right", "wrong")]
    # Found first: queries 0 and 3; found later: 1; missed: 2 (25.01 m is beyond, 25.00 m is not).
    assert [(kind, caption) for kind, caption in judged] == [
        ("right", "1. ✓ 0.0 m"),
        ("wrong", "2. ✗ 400 m"),
        ("right", "1. ✓ 24.0 m"),
        ("wrong", "2. ✗ 26.0 m"),
        ("wrong", "1. ✗ 300 m"),
        ("right", "2. ✓ 25.0 m"),
        ("wrong", "1. ✗ 25.0 m"),
        ("wrong", "2. ✗ 90.0 m"),
    ]
    assert [kind for kind, _ in tiles].count("asked") == len(OFFSETS)
    assert ("answer", "no photo within 25 m") in tiles


def test_missed_query_shows_the_photo_it_sought_and_a_late_hit_is_shown(
    dataset: RetrievalDataset, evaluation: Evaluation
) -> None:
    # With only the first prediction kept, query 1 is missed though photos lie within the radius.
    first_only = dataclasses.replace(
        evaluation, predictions=evaluation.predictions[:, :1], distances_m=evaluation.distances_m[:, :1]
    )
    report = Report(title="t", dataset=dataset, evaluation=first_only)
    assert ("answer", "sought: nearest photo, 12.0 m") in tiles_of(report_html(report))
    late = Report(title="t", dataset=dataset, evaluation=evaluation, num_predictions_shown=1)
    assert ("right", "2. ✓ 25.0 m") in tiles_of(report_html(late))


def test_caption_says_how_many_of_how_many(report: Report) -> None:
    text = Page(report_html(dataclasses.replace(report, num_queries_shown=3))).text()
    assert "3 of 4 queries, each with its first 2 of 3 predictions" in text
    assert "1 shown of 2" in text


def test_query_without_prediction_is_no_crash(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    predictions, distances = evaluation.predictions.copy(), evaluation.distances_m.copy()
    predictions[1], distances[1] = -1, np.nan
    unread = dataclasses.replace(evaluation, predictions=predictions, distances_m=distances)
    rows = [RecallRow(name="ours", recalls=unread.recalls)]
    html = report_html(Report(title="t", recall_rows=rows, dataset=dataset, evaluation=unread))
    assert_stands_alone(html)
    assert "the photo could not be opened" in html
    assert "1 of 4 queries have no prediction" in html


@given(st.lists(st.sampled_from([FOUND_FIRST, FOUND_LATER, MISSED]), max_size=60), st.integers(0, 20))
def test_shown_queries_are_a_balanced_mix(kinds: list[int], number: int) -> None:
    outcome = np.array(kinds, np.int64)
    chosen = choose_queries(outcome, number)
    assert len(set(chosen)) == len(chosen) == min(number, len(kinds))
    shown, there = np.bincount(outcome[chosen], minlength=3), np.bincount(outcome, minlength=3)
    for kind in range(3):  # a kind may be shown less often than another only when all of it is shown
        assert shown[kind] == there[kind] or shown[kind] >= shown.max() - 1


def test_outcomes_of_queries() -> None:
    right = np.array([[True, False], [False, True], [False, False], [True, True]])
    assert outcomes(right).tolist() == [FOUND_FIRST, FOUND_LATER, MISSED, FOUND_FIRST]


# --- pictures as files -----------------------------------------------------------------------------------------------


def test_saved_pictures_and_table(dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path) -> None:
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


def test_saved_pictures_of_failures_only(dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    count = save_predictions(
        tmp_path, dataset, evaluation, 99, True, progress=lambda done, total: steps.append((done, total))
    )
    assert count == 2 and steps == [(1, 2), (2, 2)]
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == ["001.jpg", "002.jpg"]
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 4 * 3


def test_nothing_is_saved_when_nothing_is_asked(
    dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path
) -> None:
    assert save_predictions(tmp_path / "none", dataset, evaluation, 0) == 0
    assert not (tmp_path / "none").exists()


def frame_colors(path: Path, num_tiles: int) -> list[tuple[int, int, int]]:
    """The colours of the frames in a saved picture of tiles of one size, from left to right."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    height, width, _ = pixels.shape
    tile = (width - GAP * (num_tiles + 1)) // num_tiles
    middles = GAP + tile // 2 + (tile + GAP) * np.arange(num_tiles)
    edges = pixels[height - GAP - FRAME // 2, middles]  # of the frames, at the bottom
    names = (PLAIN, RIGHT, WRONG)
    return [names[int(np.abs(edge - np.array(names)).sum(axis=1).argmin())] for edge in edges]


def test_frames_of_saved_pictures_follow_the_distances(
    dataset: RetrievalDataset, evaluation: Evaluation, tmp_path: Path
) -> None:
    save_predictions(tmp_path, dataset, evaluation, 3)
    for query, offsets in OFFSETS.items():
        expected = [PLAIN, *(RIGHT if offset <= 25 else WRONG for offset in offsets)]
        assert frame_colors(tmp_path / f"{query:03d}.jpg", 4) == expected


def test_photo_that_cannot_be_opened_is_grey(tmp_path: Path) -> None:
    write_photo(tmp_path / "queries", EAST, NORTH)
    write_photo(tmp_path / "database", EAST + 5, NORTH, size=(30, 400))
    broken = next((tmp_path / "queries").iterdir())
    broken.write_bytes(broken.read_bytes()[:40])
    dataset = open_retrieval_dataset(tmp_path)
    ones = np.ones((1, 2), np.float32)
    evaluation = evaluate_descriptors(ones, ones, dataset, recall_values=[1])
    assert save_predictions(tmp_path / "preds", dataset, evaluation, 1) == 1
    picture = np.asarray(Image.open(tmp_path / "preds" / "000.jpg").convert("RGB")).astype(int)
    grey = picture[80, 100]  # inside the first tile, away from its text
    assert np.ptp(grey) < 20 and 100 < grey.mean() < 160
    html = report_html(Report(title="t", dataset=dataset, evaluation=evaluation))
    assert html.count("data:image/jpeg") == 2


@pytest.mark.slow
def test_report_of_real_photos(real_photos_folder: Path, tmp_path: Path) -> None:
    dataset = open_retrieval_dataset(real_photos_folder / "test")
    rng = np.random.Generator(np.random.Philox(key=3))
    database, queries = (rng.normal(size=(len(x), 8)).astype(np.float32) for x in (dataset.database, dataset.queries))
    evaluation = evaluate_descriptors(database, queries, dataset)
    rows = [RecallRow(name="noise", recalls=evaluation.recalls)]
    write_report(tmp_path / "report.html", Report(title="t", recall_rows=rows, dataset=dataset, evaluation=evaluation))
    html = (tmp_path / "report.html").read_text("utf-8")
    assert_stands_alone(html)
    assert [kind for kind, _ in tiles_of(html)].count("asked") == 12
    assert len(html) < 3_000_000
