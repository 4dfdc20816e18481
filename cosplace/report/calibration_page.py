"""The calibration of an index as one HTML page: reliability, precision, and the effect of confidence thresholds."""

from pathlib import Path

import numpy as np
from markupsafe import Markup

from cosplace.localization.confidence import RADIUS_SHARE, Calibration
from cosplace.photos.paths import printable
from cosplace.report.charts import Series, chart, percent_axis
from cosplace.report.render import render
from cosplace.storage import write_text

PAGE = "calibration.html"
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
# Names of the entries of `Calibration.about`.
DATA_NAMES = {
    "num_photos": "photos in the index",
    "num_training_photos": "of these, training photos of the model",
    "training_photos": "of these, training photos of the model",
    "correction": "correction for these",
    "num_validation": "validation queries of the model that are also used",
    "unlabeled": "folder of new photos without positions, to which the correction is adjusted",
    "num_unlabeled": "photos of this folder",
    "share_like_training": "share of these that resemble training photos",
    "queries": "query folder",
    "num_queries": "photos used as queries",
    "num_described_anew": "of these, encoded again with other light and another crop",
    "num_non_places": "images of noise and plain colors",
    "num_examples": "answers evaluated",
    "num_right": "correct answers",
    "num_elsewhere": "out-of-index tests",
    "seed": "seed",
    "seconds": "seconds",
}
# What is done about photos that the model was trained on, by the value of "correction".
CORRECTIONS = {
    "left out": "not used as queries",
    "validation": "similarities lowered to those of the model's validation, whose queries are also used",
    "none": "none: confidence is too high for new photos; calibrate with `--queries FOLDER`",
}


def write_calibration_page(calibration: Calibration, address: str) -> Path | None:
    """Write calibration.html into the folder of an index; return None for an index on object storage."""
    folder = Path(address)
    if not folder.is_dir():
        return None
    write_text(folder / PAGE, calibration_page(calibration, address))
    return folder / PAGE


def calibration_page(calibration: Calibration, name: str) -> str:
    """Return the page as text.  name: of the index."""
    return render(
        "calibration.html",
        title=f"Calibration report: {name}",
        measured_on=_measured_on(calibration),
        calibration_error=f"{calibration.calibration_error:.3f}",
        share_elsewhere=f"{100 * calibration.out_of_index_share:g}%",
        radius_share=f"{100 * RADIUS_SHARE:g}%",
        reliability_chart=_reliability_chart(calibration),
        precision_chart=_precision_chart(calibration),
        thresholds=[f"{threshold:g}" for threshold in THRESHOLDS],
        threshold_rows=_threshold_rows(calibration),
        data_used=[
            (DATA_NAMES.get(key, key), CORRECTIONS.get(value, value) if key == "correction" else value)
            for key, value in calibration.about.items()
        ],
    )


def _measured_on(calibration: Calibration) -> str:
    """Name the photos that were located."""
    if "queries" in calibration.about:
        return f"photos of {printable(str(calibration.about['queries']))}"
    also = " and validation queries of its model" if calibration.about.get("correction") == "validation" else ""
    return f"photos of the index{also}"


def _reliability_chart(calibration: Calibration) -> Markup:
    """Draw the share of correct answers over their confidence, one dot per bin."""
    confidences, correct, weights = calibration.reliability.T
    ends = np.array([0.0, 100.0])
    dots = Series(xs=100 * confidences, ys=100 * correct, shares=weights / max(1e-12, weights.max()))
    return chart(
        [Series(xs=ends, ys=ends, style="reference"), dots],
        percent_axis("confidence, %"),
        percent_axis("correct answers, %"),
        description="Percentage of correct answers by confidence",
    )


def _precision_chart(calibration: Calibration) -> Markup:
    """Draw precision, and the share of out-of-index photos that are rejected, over the share of photos answered."""
    # Thresholds rise from row to row, so the share of photos answered falls; a curve has rising xs.
    curve = calibration.curve[calibration.curve[:, 3] > 0][::-1]
    _, precision, _, answered, rejected = 100 * curve.T
    return chart(
        [
            Series(label="precision", xs=answered, ys=precision, style="strong", markers=False),
            Series(label="rejected", xs=answered, ys=rejected, color=1, markers=False),
        ],
        percent_axis("photos answered, %"),
        percent_axis("share, %"),
        description="Precision and rejected out-of-index photos by the percentage of photos answered",
    )


def _threshold_rows(calibration: Calibration) -> list[tuple[str, str, list[str]]]:
    """Return (name, note, one cell per threshold) of each row of the table."""
    nearest = [int(np.abs(calibration.curve[:, 0] - threshold).argmin()) for threshold in THRESHOLDS]
    _, precision, lower_bound, answered, rejected = calibration.curve[nearest].T
    radii_m = calibration.radius_m(np.array(THRESHOLDS))
    return [
        ("precision", "", [f"{value:.3f}" for value in precision]),
        ("precision", "lower bound (90%)", [f"{value:.3f}" for value in lower_bound]),
        ("photos answered, %", "", [f"{100 * value:.0f}" for value in answered]),
        ("out-of-index photos rejected", "lower bound (90%)", [f"{value:.3f}" for value in rejected]),
        ("radius at this threshold, m", "", [f"{value:.1f}" for value in radii_m]),
    ]
