"""The calibration page is a single file with the numbers and the curves of a calibration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosplace.localization.confidence import Calibration, from_record
from cosplace.localization.signals import SIGNALS
from cosplace.report.calibration_page import THRESHOLDS, calibration_page, write_calibration_page
from tests.report.report_samples import Page, assert_single_file


@pytest.fixture
def calibration() -> Calibration:
    thresholds = np.linspace(0, 1, 201)
    # threshold, precision, its lower bound, photos answered, out-of-index photos rejected
    columns = thresholds, 0.5 + thresholds / 2, 0.4 + thresholds / 2, 0.95 - thresholds, thresholds
    ones = [1.0] * len(SIGNALS)
    return from_record(
        {
            "version": 1, "features": list(SIGNALS), "temperature": 0.1, "agree_m": 25.0, "bias": 0.0,
            "centre": ones, "scale": ones, "weights": ones, "logits": [-1.0, 1.0], "frequencies": [0.0, 1.0],
            "radius_confidences": [0.5, 1.0], "radii_m": [20.0, 10.0], "curve": np.transpose(columns).tolist(),
            "reliability": [[0.1, 0.2, 40.0], [0.9, 0.8, 10.0]], "calibration_error": 0.0123, "share_elsewhere": 0.05,
            "about": {"num_photos": 376, "num_elsewhere": 94, "seed": 7, "of a later version": "new"},
        }
    )  # fmt: skip


def test_page_shows_the_numbers_of_a_calibration(calibration: Calibration, tmp_path: Path) -> None:
    assert write_calibration_page(calibration, str(tmp_path)) == tmp_path / "calibration.html"
    html = (tmp_path / "calibration.html").read_text("utf-8")
    assert_single_file(html)
    page = Page(html)
    text = page.text()
    assert f"Calibration report: {tmp_path}" in text
    assert "Expected calibration error: 0.012" in text and "5% of all photos" in text
    for words in ("photos in the index 376", "out-of-index tests 94", "seed 7", "of a later version new"):
        assert words in text, words
    cells = " ".join(f"{value:.3f}" for value in (0.75, 0.9, 0.95, 0.975, 0.995))
    assert len(THRESHOLDS) == 5 and f"precision {cells}" in text
    assert "radius at this threshold, m 20.0 14.0 12.0 11.0 10.2" in text


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
    page = Page(calibration_page(calibration, "index"))
    radii = [float(dot["r"]) for dot in page.of("circle")]
    assert len(radii) == 2 and radii[0] > radii[1]  # the first bin has more answers
    paths = [path["class"] for path in page.of("path")]
    assert [paths.count(name) for name in ("s0 reference", "s0 strong", "s1 line")] == [1, 1, 1]


def test_index_on_object_storage_has_no_page(calibration: Calibration) -> None:
    assert write_calibration_page(calibration, "s3://bucket/index") is None


def test_name_of_the_index_is_escaped(calibration: Calibration) -> None:
    html = calibration_page(calibration, "<script>&")
    assert_single_file(html)
    assert Page(html).text().count("<script>&") == 2
