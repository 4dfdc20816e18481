"""The calibration page is a single file with the numbers and the curves of a calibration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosplace.localization.confidence import Calibration
from cosplace.report.calibration_page import THRESHOLDS, calibration_page, write_calibration_page
from tests.report.calibration_samples import sample_calibration
from tests.report.report_samples import Page, assert_single_file, charts_of


@pytest.fixture
def calibration() -> Calibration:
    return sample_calibration(**{"of a later version": "new"})


def test_page_shows_the_numbers_of_a_calibration(calibration: Calibration, tmp_path: Path) -> None:
    assert write_calibration_page(calibration, str(tmp_path)) == tmp_path / "calibration.html"
    html = (tmp_path / "calibration.html").read_text("utf-8")
    assert_single_file(html)
    page = Page(html)
    text = page.text()
    assert f"Calibration of the index {tmp_path}" in text
    assert "Expected calibration error: 0.012." in text and "5% of all photos" in text
    ends: dict[str, object] = {"calibration_error_interval": [0.0, 0.0345]}
    for about, mark, words in (
        ({"calibration_error_approximate": False}, ",", ""),
        ({"calibration_error_approximate": True}, " (approximate),", "approximate "),
        ({}, " (approximate),", "approximate "),  # of earlier versions, which did not know
    ):
        shown = Page(calibration_page(sample_calibration(**ends, **about), "index")).text()
        assert f"calibration error: 0.012 [0.000, 0.035]{mark}" in shown
        assert "error_interval" not in shown and "error_approximate" not in shown
        assert f"by 1.2 percentage points on average ({words}95% interval: 0.0 to 3.5)." in shown
    for words in ("photos in the index 376", "out-of-index tests 94", "seed 7", "of a later version new"):
        assert words in text, words
    # At 0.5: precision 0.5 + 0.25, its lower bound 0.4 + 0.25, answered 0.95 - 0.5, rejected 0.5, radius 20 m.
    assert "50% 45% 75.0% ≥ 65.0% 50.0% 20 m" in text
    assert "90% 5% 95.0% ≥ 85.0% 90.0% 12 m" in text
    assert len(THRESHOLDS) == 5


def test_the_data_are_in_the_order_of_their_names() -> None:
    """Some names refer to the one before: "of these, training photos of the model"."""
    stored = sample_calibration(share_like_index=0.5, later=1, num_validation=300, num_training_photos=12)
    text = Page(calibration_page(stored, "index")).text()
    words = (
        "photos in the index 376 of these, training photos of the model 12",
        "validation queries of the model that are also used 300 share of new photos expected to be like photos of",
        "seed 7",
        "later 1",
    )  # fmt: skip
    places = [text.index(part) for part in words]
    assert places == sorted(places)


def test_page_begins_with_a_summary_in_plain_words(calibration: Calibration) -> None:
    text = Page(calibration_page(calibration, "index")).text()
    summary = text[: text.index("Fewer answers")]
    for words in (
        "about 45 get an answer with a confidence of 50% or more",
        "about 75 are correct",
        "50 or more get no such answer",
        "by 1.2 percentage points",
        "For 90 of 100 correct answers",
    ):
        assert words in summary, words
    for word in ("precision", "calibration error", "threshold", "out-of-index", "fitting"):
        assert word not in summary, word


def test_page_says_how_far_so_few_photos_can_tell(calibration: Calibration) -> None:
    def text(**found: object) -> str:
        return Page(calibration_page(sample_calibration(overconfidence=found), "index")).text()

    shown = text(value=-0.021, low=-0.07, high=0.03, num_areas=25, approximate=False)
    sentence = (
        "Mean confidence on photos of 25 held-out areas: 2.1 points too low (95% interval: 7.0 too low to 3.0 too high)"
    )
    assert sentence in shown and "calibrate with such photos, --queries FOLDER" in shown
    assert "approximate, as the areas are few)" in text(value=0.01, low=-0.2, high=0.22, num_areas=29)
    assert "approximate" not in text(value=0.01, low=-0.2, high=0.22, num_areas=30)
    assert "approximate, as the areas are few)" in text(value=0, low=0, high=0, num_areas=40, approximate=True)
    assert "held-out areas" not in text(value=None, low=None, high=None, num_areas=0)
    assert "held-out areas:" not in Page(calibration_page(calibration, "index")).text()  # of an earlier version


def test_without_answers_no_answer_is_called_correct(calibration: Calibration) -> None:
    curve = calibration.curve.copy()
    curve[curve[:, 0] >= 0.45, 1:4] = (1, 0, 0)  # precision of nothing is stored as 1
    text = Page(calibration_page(replace(calibration, curve=curve), "index")).text()
    assert "are correct." not in text.split("To check")[0] and "Of 100 such answers" not in text
    assert "50% 0% – 50.0% 20 m" in text


def test_page_with_a_style_sheet_has_no_inline_styles(calibration: Calibration) -> None:
    html = calibration_page(calibration, "index", style_sheet="docs.css")
    assert '<link rel="stylesheet" href="docs.css">' in html
    assert "<style" not in html and "style=" not in html and "single file" not in html


def test_page_says_what_was_located(calibration: Calibration) -> None:
    for about, words in (
        ({}, "Measured on photos of the index, in areas"),
        ({"queries": "new/a\nb"}, "Measured on photos of new/a\\nb, in areas"),
        ({"correction": "validation", "num_validation": 80}, "index and validation queries of its model, in areas"),
        ({"correction": "none", "num_training_photos": 5}, "confidence is too high for new photos"),
        ({"correction": "left out", "num_training_photos": 5}, "not used as queries"),
    ):
        page = Page(calibration_page(replace(calibration, about=about), "index"))
        assert words in page.text(), words


def test_charts_show_bins_and_curves(calibration: Calibration) -> None:
    reliability, precision = charts_of(calibration_page(calibration, "index")).values()
    diagonal, dots = reliability.data["series"]
    assert diagonal == {"xs": [0, 100], "ys": [0, 100]}
    assert (dots["xs"], dots["ys"]) == ([10, 90], [20, 80])
    assert dots["radii"][0] > dots["radii"][1]  # the first bin has more answers
    assert reliability.rows == [["10.0%", "20.0%", "80.0%"], ["90.0%", "80.0%", "20.0%"]]
    assert precision.legend == ["correct", "rejected"] == precision.columns[1:]
    for curve, column in zip(precision.data["series"], (1, 4), strict=True):
        measured = 100 * calibration.curve[calibration.curve[:, 3] > 0][::-1]
        assert curve["xs"] == pytest.approx(measured[:, 3].tolist(), abs=0.01)
        assert curve["ys"] == pytest.approx(measured[:, column].tolist(), abs=0.01)
    assert precision.rows[-1] == ["95.0%", "50.0%", "0.0%"]


def test_without_answers_there_is_no_chart(calibration: Calibration) -> None:
    none = replace(calibration, curve=calibration.curve * [1, 1, 1, 0, 1], reliability=np.zeros((0, 3)))
    html = calibration_page(none, "index")
    assert_single_file(html)
    assert charts_of(html) == {}


def test_index_on_object_storage_has_no_page(calibration: Calibration) -> None:
    assert write_calibration_page(calibration, "s3://bucket/index") is None


def test_name_of_the_index_is_escaped(calibration: Calibration) -> None:
    html = calibration_page(calibration, "<script>&")
    assert_single_file(html)
    assert Page(html).text().count("<script>&") == 1
