"""Matching points of a query and its predictions: places, order, number, and the page without OpenCV."""

import dataclasses
import json
import os
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosplace.cli.commands import COSPLACE
from cosplace.cli.parser import parse_words
from cosplace.config.defaults import ALL_MATCHES
from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError
from cosplace.report.data import Report
from cosplace.report.feature_matches import MAX_POINTS, feature_matches, spread
from cosplace.report.page import report_html
from cosplace.report.query_data import Queries, open_queries, page_photos
from tests.report.match_samples import HEIGHT, SHIFT, WIDTH, make_matched_dataset, make_matched_evaluation
from tests.report.report_samples import Page, assert_single_file, data_of


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Queries:
    dataset = make_matched_dataset(tmp_path_factory.mktemp("matched"))
    return open_queries(dataset, make_matched_evaluation(dataset), 2, {})


@pytest.fixture(scope="module")
def photos(queries: Queries) -> set[str]:
    return set(page_photos(queries)[0])


@pytest.fixture
def report(queries: Queries) -> Report:
    return Report(
        title="Matches", dataset=queries.dataset, evaluation=queries.evaluation, settings={"M": 10},
        num_queries_matched=50,
    )  # fmt: skip


def found(queries: Queries, photos: set[str], number: int) -> dict[str, Any]:
    return feature_matches(queries, photos, number)["of"]


@pytest.fixture(scope="module")
def matches(queries: Queries, photos: set[str]) -> dict[str, Any]:
    """Those of all queries."""
    pytest.importorskip("cv2")
    return found(queries, photos, 50)


def in_pixels(pair: dict[str, Any], other_size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """(n, 4): x, y in the query, x, y in the other photo, from the corner of the photo."""
    return (np.array(pair["points"]).reshape(-1, 4) + 0.5) / 1000 * (WIDTH, HEIGHT, *other_size)


def test_points_of_a_shifted_copy_differ_by_the_shift(matches: dict[str, Any]) -> None:
    pair = matches["1"]["first"]
    x, y, other_x, other_y = in_pixels(pair).T
    assert pair["found"] > len(x) == MAX_POINTS
    # The copy is cut from a place SHIFT to the right and above.
    is_right = (np.abs(x - SHIFT - other_x) < 1.5) & (np.abs(y + SHIFT - other_y) < 1.5)
    assert is_right.mean() > 0.9
    assert np.ptp(x[is_right]) > 0.7 * (WIDTH - SHIFT) and np.ptp(y[is_right]) > 0.7 * (HEIGHT - SHIFT)


def test_points_of_a_turned_copy_are_turned(matches: dict[str, Any]) -> None:
    x, y, other_x, other_y = in_pixels(matches["0"]["first"], (HEIGHT, WIDTH)).T
    is_right = (np.abs(other_x - y) < 1.5) & (np.abs(other_y - (WIDTH - x)) < 1.5)  # 90° counterclockwise
    assert len(x) == MAX_POINTS and is_right.mean() > 0.9


def test_pairs_are_the_first_prediction_and_the_expected_match(matches: dict[str, Any]) -> None:
    assert {query: sorted(pairs) for query, pairs in matches.items()} == {
        "0": ["expected", "first"],
        "1": ["first"],  # which is also the expected match
        "2": ["first"],  # there is no expected match
        "3": ["first"],  # the expected match cannot be opened
    }
    assert matches["2"]["first"] == {"found": 0, "points": []}
    assert matches["3"]["first"]["found"] < 30
    assert matches["0"]["expected"]["found"] > MAX_POINTS


def test_the_most_confident_errors_come_first(queries: Queries, photos: set[str], matches: dict[str, Any]) -> None:
    assert list(matches) == ["2", "0", "3", "1"]  # similarities .95, .9, .7, and a correct one
    assert list(found(queries, photos, 2)) == ["2", "0"]


def test_only_pairs_whose_photos_are_in_the_page(queries: Queries, photos: set[str]) -> None:
    pytest.importorskip("cv2")
    first = f"d{int(queries.evaluation.predictions[0, 0])}"
    matches = found(queries, photos - {first, "q2"}, 2)
    assert list(matches) == ["0", "3"] and list(matches["0"]) == ["expected"]


def test_size_is_below_what_is_stated(matches: dict[str, Any]) -> None:
    for pairs in matches.values():
        for pair in pairs.values():
            assert len(json.dumps(pair, separators=(",", ":"))) <= 700
            assert all(0 <= value < 1000 for value in pair["points"])


def test_progress_counts_queries(queries: Queries, photos: set[str]) -> None:
    pytest.importorskip("cv2")
    seen: list[tuple[str, int, int]] = []
    feature_matches(queries, photos, 3, lambda task, done, total, note="", /: seen.append((task, done, total)))
    assert seen == [("matching local features", done, 3) for done in (1, 2, 3)]


def test_same_bytes_again_and_on_one_core(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    html = report_html(report)
    assert_single_file(html)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert report_html(report) == html


def test_page_says_which_queries_have_matches(report: Report) -> None:
    pytest.importorskip("cv2")
    html = report_html(report)
    assert "Show matches draws the matching points of two photos. " in Page(html).text()
    assert data_of(html)["matches"]["chanceBelow"] == 30
    html = report_html(dataclasses.replace(report, num_queries_matched=1))
    assert "; 1 query has it, the most confident errors first." in Page(html).text()
    assert list(data_of(html)["matches"]["of"]) == ["2"]


def test_without_opencv_the_settings_say_what_to_install(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it raises ImportError
    html = report_html(report)
    settings = html.partition('<section id="settings">')[2]
    assert "<code>pip install 'cosplace[rerank]'</code>" in settings
    assert data_of(html)["matches"] is None and "Show matches" not in Page(html).text()


def test_none_are_found_where_none_are_wanted(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    with_opencv = report_html(dataclasses.replace(report, num_queries_matched=0))
    assert data_of(with_opencv)["matches"] is None and "Show matches" not in Page(with_opencv).text()
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert report_html(dataclasses.replace(report, num_queries_matched=0)) == with_opencv


def test_queries_above_the_size_budget_are_counted(
    queries: Queries, photos: set[str], report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setattr("cosplace.report.feature_matches.AT_ONCE", 1)
    calls: list[tuple[int, int]] = []
    note = lambda task, done, total, note="", /: calls.append((done, total))  # noqa: E731
    part = feature_matches(queries, photos, 50, note, budget=100)
    whole = feature_matches(queries, photos, 50)
    assert (part["leftOut"], whole["leftOut"]) == (2, 0)
    assert list(part["of"]) == ["2", "0"] and part["of"].items() <= whole["of"].items()
    assert calls == [(1, 4), (2, 4), (4, 4)]
    monkeypatch.setattr("cosplace.report.page.feature_matches", lambda *_: part)
    text = Page(report_html(report)).text()
    assert (
        "; 2 queries have it, the most confident errors first; those of 2 more queries would make the page too" in text
    )


def test_all_is_more_than_any_number(capsys: pytest.CaptureFixture) -> None:
    command = next(one for one in COSPLACE.actions if one.name == "eval")
    for text, number in (("all", ALL_MATCHES), ("All", ALL_MATCHES), ("1e3", 1000), ("0", 0)):
        config, _ = parse_words(command, ["--report_matches", text], "cosplace eval", COSPLACE)
        assert config.testing.report_matches == number
    with pytest.raises(ConfigError, match="--report_matches must be a whole number or all, got 'many'"):
        parse_words(command, ["--report_matches", "many"], "cosplace eval", COSPLACE)


def test_number_of_queries_is_limited() -> None:
    for number in (-1, ALL_MATCHES + 1):
        with pytest.raises(ConfigError, match="report_matches"):
            from_values(TrainConfig, {"report_matches": number})


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 99)), max_size=40, unique=True),
    st.integers(1, 12),
)
def test_no_point_is_farther_from_the_chosen_ones_than_these_are_apart(
    values: list[tuple[int, int, int]], number: int
) -> None:
    points = np.array([(x, y, other, 0) for x, y, other in values], np.int64).reshape(-1, 4)
    chosen = spread(points, number)
    assert len(chosen) == min(number, len(points))
    assert {tuple(row) for row in chosen.tolist()} <= {tuple(row) for row in points.tolist()}
    assert len(np.unique(chosen, axis=0)) == len(chosen)
    if len(chosen) > 1:
        apart = [np.hypot(*(a - b)[:2]) for place, a in enumerate(chosen) for b in chosen[:place]]
        gaps = [min(np.hypot(*(point - one)[:2]) for one in chosen) for point in points]
        assert max(gaps) <= min(apart) + 1e-9
