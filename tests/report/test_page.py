"""The report is a single file, shows all its data, and treats file names as text only."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyproj import Proj

from cosplace.assessment.metrics import measure
from cosplace.config.sections import Grouping
from cosplace.progress import format_count
from cosplace.report.data import (
    CORRECT_FIRST,
    CORRECT_LATER,
    NOT_FOUND,
    RecallRow,
    Report,
    expected_matches,
    outcome_names,
    outcomes,
)
from cosplace.report.maps import fits_one_map, groups_map, on_one_plane
from cosplace.report.page import report_html, write_report
from cosplace.report.prediction_images import save_predictions
from cosplace.report.words import format_distance
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from cosplace.training.groups import partition
from tests.report.report_samples import (
    EAST,
    METRICS,
    NORTH,
    OFFSETS,
    Page,
    assert_single_file,
    make_groups,
    tiles_of,
    write_photo,
)


def test_page_is_a_single_file_with_all_sections(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    write_report(path, report)
    html = path.read_text("utf-8")
    assert_single_file(html)
    text = Page(html).text()
    for words in (
        "A run",
        "Trained for 3 epochs.",
        "Best validation Recall@1: 55.5% after epoch 2.",
        "Total time of all epochs: 2 min.",
        "within 25 m among their first N predictions",
        "group 0: 60 classes, 600 photos",
        "group 1: 30 classes, 300 photos",
        "1 group not used: 10 classes",
        "1,000 of 1,007",
        "correct at rank 1: 2",
        "correct at rank 2–3: 1",
        "not found in top 3: 1",
        "ResNet18",
    ):
        assert words in text, words


def test_same_input_gives_same_bytes(report: Report) -> None:
    assert report_html(report) == report_html(report)


def test_sections_without_data_are_left_out(report: Report) -> None:
    sections = {"recalls", "training", "maps", "queries", "settings"}

    def ids(some: Report) -> set[str]:
        html = report_html(some)
        assert_single_file(html)
        return {section["id"] for section in Page(html).of("section")}

    assert ids(report) == sections
    assert ids(Report(title="nothing")) == set()
    assert ids(Report(title="train", metrics=METRICS)) == {"training"}
    assert ids(Report(title="groups", groups=report.groups, groups_used=99)) == {"maps"}
    assert ids(Report(title="places", dataset=report.dataset)) == {"maps"}
    eval_only = Report(
        title="eval", recall_rows=report.recall_rows, dataset=report.dataset, evaluation=report.evaluation
    )
    assert ids(eval_only) == {"recalls", "maps", "queries"}
    assert ids(Report(title="empty groups", groups=make_groups([], []))) == set()


def test_the_heading_of_a_single_map_is_in_the_singular(report: Report) -> None:
    assert "<h2>Maps</h2>" in report_html(report)
    assert "<h2>Map</h2>" in report_html(dataclasses.replace(report, groups=None))
    assert "<h2>Map</h2>" in report_html(Report(title="groups", groups=report.groups, groups_used=99))


def test_settings_are_written_as_one_gives_them(report: Report) -> None:
    settings = {"reduce_to": None, "flip": False, "resize_test_imgs": True, "scales": (0.7, 1.0), "queries": [], "N": 5}
    text = report_html(dataclasses.replace(report, settings=settings)).partition('<section id="settings">')[2]
    values = re.findall(r"<td class=\"text\"><code>(.*?)</code>", text)
    assert values == ["not set", "no", "yes", "0.7 1.0", "none", "5"]


HOSTILE = '<script>alert(1)</script>"\' onload="x" <img src=x onerror=alert(2)>&amp;'


def test_hostile_texts_are_escaped(report: Report) -> None:
    hostile = dataclasses.replace(
        report,
        title=HOSTILE,
        summary=[HOSTILE],
        recall_rows=[RecallRow(name=HOSTILE, recalls={1: 1.0, 5: 2.0}, note=HOSTILE)],
        highlight=HOSTILE,
        settings={HOSTILE: HOSTILE},
    )
    html = report_html(hostile)
    assert_single_file(html)
    # Title twice, summary, name and note of the row, legend and table of the chart, name and value of the setting.
    assert Page(html).text().count(HOSTILE) == 9


def test_hostile_file_names_are_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)<'
    write_photo(tmp_path / "queries", EAST, NORTH, evil)
    write_photo(tmp_path / "database", EAST + 5, NORTH, evil)
    # A file name that is not valid UTF-8 is legal on Linux, but a page cannot contain it.
    query = next((tmp_path / "queries").iterdir())
    query.rename(query.with_name(query.name.replace("@.jpg", os.fsdecode(b"\xff@.jpg"))))
    dataset = open_retrieval_dataset(tmp_path)
    ones = np.ones((1, 2), np.float32)
    evaluation = evaluate_descriptors(ones, ones, dataset, recall_values=[1])
    write_report(tmp_path / "report.html", Report(title="evil", dataset=dataset, evaluation=evaluation))
    html = (tmp_path / "report.html").read_text("utf-8")
    assert_single_file(html)
    descriptions = [image["alt"] for image in Page(html).of("img")]
    assert sum(evil in text for text in descriptions) == 3  # the prediction is the expected match, too
    save_predictions(tmp_path / "preds", dataset, evaluation, 1)
    assert r"\xff@.jpg" in (tmp_path / "preds" / "predictions.csv").read_text("utf-8")


# --- recalls and training --------------------------------------------------------------------------------------------


def test_recall_table_has_one_decimal_and_a_highlighted_row() -> None:
    rows = [
        RecallRow(name="chance", recalls={1: 0.04, 5: 12.349}, note="random"),
        RecallRow(name="ours", recalls={1: 66.66, 10: 100.0}),
    ]
    html = report_html(Report(title="t", recall_rows=rows, highlight="ours"))
    table = html[html.index('<table class="stacked"') : html.index("</table>")]
    lines = [" ".join(re.sub(r"<[^>]*>", " ", "<tr" + line).split()) for line in table.split("<tr")[1:]]
    assert lines == ["model R@1 R@5 R@10", "chance random 0.0 12.3 –", "ours 66.7 – 100.0"]
    assert table.count('class="ours"') == 1 and table.index('class="ours"') > table.index("chance")


def test_chart_says_that_the_table_has_more_rows() -> None:
    rows = [RecallRow(name=f"model {number}", recalls={1: 50.0}) for number in range(40)]
    assert (
        "The chart shows 10 of 40 rows; the table shows all."
        in Page(report_html(Report(title="t", recall_rows=rows))).text()
    )


def test_incomplete_metrics_are_tolerated(odd_metrics: list[dict[str, Any]]) -> None:
    html = report_html(Report(title="t", metrics=odd_metrics))
    assert "Best validation Recall@1: 0.0% after epoch 2." in html


# --- queries and predictions -----------------------------------------------------------------------------------------


def test_frames_and_marks_follow_the_distances(report: Report) -> None:
    tiles = tiles_of(report_html(report))
    predictions = [(kind, caption) for kind, caption in tiles if kind in ("correct", "incorrect")]
    # Errors first: 1 (correct later) and 2 (not found: 25.01 m is too far, 25.00 m is not); then 0 and 3.
    assert predictions == [
        ("incorrect", "1. ✗ 300 m similarity 0.844"),
        ("correct", "2. ✓ 25.0 m similarity 0.344"),
        ("incorrect", "1. ✗ 25.0 m similarity 0.844"),
        ("incorrect", "2. ✗ 90.0 m similarity 0.344"),
        ("correct", "1. ✓ 0.0 m similarity 0.844"),
        ("incorrect", "2. ✗ 400 m similarity 0.344"),
        ("correct", "1. ✓ 24.0 m similarity 0.844"),
        ("incorrect", "2. ✗ 26.0 m similarity 0.344"),
    ]
    assert [kind for kind, _ in tiles].count("query") == len(OFFSETS)
    assert ("expected", "no database image within 25 m") in tiles
    assert ("expected", "expected match, 12.0 m") in tiles


def test_late_correct_prediction_is_shown(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    # With only the first prediction, query 1 is not found although photos are within the radius.
    first_only = dataclasses.replace(
        evaluation,
        predictions=evaluation.predictions[:, :1],
        distances_m=evaluation.distances_m[:, :1],
        squared_distances=evaluation.squared_distances[:, :1],
    )
    html = report_html(Report(title="t", dataset=dataset, evaluation=first_only))
    assert "not found in top 1: 2" in html and "correct at rank 2" not in html
    late = Report(title="t", dataset=dataset, evaluation=evaluation, num_predictions_shown=1)
    assert ("correct", "2. ✓ 25.0 m similarity 0.344") in tiles_of(report_html(late))


def test_captions_say_how_many_are_shown(report: Report) -> None:
    text = Page(report_html(dataclasses.replace(report, num_queries_shown=3))).text()
    assert "Each query with its first 2 of 3 predictions" in text
    assert "2 queries have an incorrect first prediction" in text
    assert "The first 3 of 4 queries." in text


def test_the_page_says_by_what_the_list_is_ordered(
    report: Report, dataset: RetrievalDataset, evaluation: Evaluation
) -> None:
    text = Page(report_html(report)).text()
    assert "the most confident errors, by the similarity of the first prediction, are first" in text
    assert "; confidence" not in text
    measures = measure(evaluation, dataset, scores={"confidence": np.array([0.9, 0.2, 0.75, 0.1])})
    text = Page(report_html(dataclasses.replace(report, measures=measures))).text()
    assert (
        "the most confident errors, by calibrated confidence (equal ones by the similarity of the first prediction), "
        "are first"
    ) in text
    places = [text.index(f"confidence {value}") for value in ("0.750", "0.200", "0.100", "0.900")]
    assert places == sorted(places)


def test_query_without_predictions(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    predictions, distances = evaluation.predictions.copy(), evaluation.distances_m.copy()
    predictions[1], distances[1] = -1, np.nan
    unreadable = dataclasses.replace(evaluation, predictions=predictions, distances_m=distances)
    rows = [RecallRow(name="ours", recalls=unreadable.recalls)]
    html = report_html(Report(title="t", recall_rows=rows, dataset=dataset, evaluation=unreadable))
    assert_single_file(html)
    assert "the photo could not be opened" in html
    assert "1 query has no prediction, so the curve stays below 100%." in html


def test_counts_of_one_are_singular(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    one = dataclasses.replace(evaluation, num_queries=1, num_database=1, num_queries_without_positives=1)
    rows = [RecallRow(name="ours", recalls=one.recalls)]
    html = report_html(Report(title="t", recall_rows=rows, evaluation=one))
    assert "<b>1</b> <span>query</span>" in html and "<b>1</b> <span>database image</span>" in html
    assert "1 query has no database image within that distance, so recall cannot reach 100%." in html


def test_unreadable_photo_has_a_gray_thumbnail(tmp_path: Path) -> None:
    write_photo(tmp_path / "queries", EAST, NORTH)
    write_photo(tmp_path / "database", EAST + 5, NORTH)
    broken = next((tmp_path / "queries").iterdir())
    broken.write_bytes(broken.read_bytes()[:40])
    dataset = open_retrieval_dataset(tmp_path)
    ones = np.ones((1, 2), np.float32)
    evaluation = evaluate_descriptors(ones, ones, dataset, recall_values=[1])
    html = report_html(Report(title="t", dataset=dataset, evaluation=evaluation))
    assert html.count('src="data:image/jpeg') == 3


def test_outcomes_of_queries() -> None:
    hits = np.array([[True, False], [False, True], [False, False], [True, True]])
    assert outcomes(hits).tolist() == [CORRECT_FIRST, CORRECT_LATER, NOT_FOUND, CORRECT_FIRST]
    assert outcome_names(20) == ("correct at rank 1", "correct at rank 2–20", "not found in top 20")
    assert outcome_names(2)[CORRECT_LATER] == "correct at rank 2"


@pytest.mark.slow
def test_report_of_real_photos(real_photos_folder: Path, tmp_path: Path) -> None:
    dataset = open_retrieval_dataset(real_photos_folder / "test")
    rng = np.random.Generator(np.random.Philox(key=3))
    database, queries = (rng.normal(size=(len(x), 8)).astype(np.float32) for x in (dataset.database, dataset.queries))
    evaluation = evaluate_descriptors(database, queries, dataset)
    rows = [RecallRow(name="noise", recalls=evaluation.recalls)]
    write_report(tmp_path / "report.html", Report(title="t", recall_rows=rows, dataset=dataset, evaluation=evaluation))
    html = (tmp_path / "report.html").read_text("utf-8")
    assert_single_file(html)
    assert [kind for kind, _ in tiles_of(html)].count("query") == 12
    assert len(html) < 6_000_000


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meters", "text"),
    [(0.0, "0.0 m"), (24.96, "25.0 m"), (99.94, "99.9 m"), (99.96, "100 m"), (812.4, "812 m"), (999.6, "1.0 km"),
     (1_234_567.0, "1,234.6 km"), (float("nan"), "unknown distance")],
)  # fmt: skip
def test_distances_in_words(meters: float, text: str) -> None:
    assert format_distance(meters) == text


@pytest.mark.parametrize(
    ("units", "text"), [(0.0, "0 units"), (9.52, "9.52 units"), (999.4, "999.4 units"), (291_000.0, "291,000 units")]
)
def test_distances_of_frames_in_words(units: float, text: str) -> None:
    assert format_distance(units, are_meters=False) == text


def test_counts_in_words() -> None:
    assert format_count(1, "epoch") == "1 epoch"
    assert format_count(0, "epoch") == "0 epochs"
    assert format_count(1234, "query", "queries") == "1,234 queries"


@pytest.mark.parametrize(
    ("query_heading", "expected", "said"),
    [(100, 90, " heading differs by 10°"), (-5, 0, " heading differs by 5°"), (704, 330, " heading differs by 14°"),
     ("", 0, "")],
)  # fmt: skip
def test_the_expected_match_of_a_panorama_has_the_heading_of_the_query(
    tmp_path: Path, query_heading: float | str, expected: int, said: str
) -> None:
    for heading in range(0, 360, 30):  # twelve images at one position, and one nearer in heading but farther away
        write_photo(tmp_path / "database", EAST + 5, NORTH, f"@@@@@@{heading}@@{heading:03}")
    write_photo(tmp_path / "database", EAST + 6, NORTH, f"@@@@@@{query_heading}@@farther")
    write_photo(tmp_path / "database", EAST + 5000, NORTH, "@@@@@@0@@wrong")
    write_photo(tmp_path / "queries", EAST, NORTH, f"@@@@@@{query_heading}@")
    dataset = open_retrieval_dataset(tmp_path)
    descriptors = np.zeros((14, 2), np.float32)
    descriptors[13, 0] = 1
    assert "wrong" in dataset.database.name(13)
    evaluation = evaluate_descriptors(descriptors, np.array([[1, 0]], np.float32), dataset, recall_values=(1,))
    found = expected_matches(dataset, evaluation)
    assert f"@{expected:03}@" in dataset.database.name(int(found.images[0]))
    html = report_html(Report(title="x", dataset=dataset, evaluation=evaluation))
    assert ("expected", f"expected match, 5.0 m{said}") in tiles_of(html)


def test_a_dataset_of_two_zones_on_one_map(tmp_path: Path) -> None:
    for split in ("database", "queries"):
        (tmp_path / split).mkdir()
        for number, longitude in enumerate((-120.001, -119.999)):
            east, north = Proj(proj="utm", zone=10 + number, ellps="WGS84")(longitude, 39.0)
            name = f"@{east:.2f}@{north:.2f}@{10 + number}@S@@@p@@0@.jpg"
            Image.new("RGB", (8, 8)).save(tmp_path / split / name)
    dataset = open_retrieval_dataset(tmp_path)
    database, _ = on_one_plane(dataset.database_positions, dataset.query_positions)
    assert np.abs(database[0] - database[1]) == pytest.approx([173.2, 0], abs=0.5)
    groups = partition(dataset.database, Grouping(min_images_per_class=1))
    assert not fits_one_map(groups, dataset)
    drawn = groups_map(groups, 1, M=10).whole
    # Two cells of 10 m, 173 m apart: the scale bar is a part of that, not of half a million meters.
    assert drawn.bar_text in ("20 m", "50 m")
    html = report_html(Report(title="x", dataset=dataset, groups=groups, groups_used=1))
    assert_single_file(html)


def test_distances_that_are_no_meters_have_no_unit_of_length(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    frames = dataclasses.replace(dataset, note="distances are numbers of frames")
    for one, are_meters in ((dataset, True), (frames, False)):
        measures = measure(evaluation, one)
        rows = [RecallRow(name="ours", recalls=evaluation.recalls)]
        report = Report(
            title="t", dataset=one, evaluation=evaluation, measures=measures, recall_rows=rows, highlight="ours"
        )
        page = report_html(report)
        for text in ("median distance", "first predictions are within", "Recall@1 by radius", "by the distance to"):
            assert (text in page) == are_meters, text
        assert bool(re.search(r"\d units away", page)) != are_meters
        assert ("within 25 m" in page) == are_meters
        assert ("<legend>Distance, m</legend>" in page) == are_meters
        assert ("north ↑" in page) == are_meters and ("</i>5,000 units</div>" in page) != are_meters
        assert bool(re.search(r"(\d|,)\s*k?m\b", Page(page).text())) == are_meters  # none anywhere
