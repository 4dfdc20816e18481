"""The calibration of an index as one HTML page in plain words: how far its answers can be trusted."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.assessment.intervals import FEW_CLUSTERS, Estimate
from cosplace.localization.confidence import RADIUS_SHARE, Calibration
from cosplace.photos.paths import printable
from cosplace.report.charts import Chart, Series, Values, chart, percent_axis, values_of
from cosplace.report.render import render
from cosplace.storage import write_text

PAGE = "calibration.html"
ONE_CAPTURE_DAYS = 27  # file names may have only the month, and months begin 28 days apart or more
MANY_TRAINED = 500  # training photos; the fewest that were measured in docs/lab.md are 756
SEVERAL_YEARS = 0.5  # share of photos whose place is shown a year apart; new photos of one capture differ more from it
DEFAULT_THRESHOLD = 0.5  # of `--min_confidence`
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
# Names of the entries of `Calibration.about`, in the order in which they are shown.
DATA_NAMES = {
    "num_photos": "photos in the index",
    "num_training_photos": "of these, training photos of the model",
    "training_photos": "of these, training photos of the model",
    "correction": "correction for these",
    "days": "days from the first photo to the last",
    "share_revisited": "share of photos whose place is also shown a year or more before or after",
    "num_validation": "validation queries of the model that are also used",
    "share_like_index": "share of new photos expected to be like photos of the index, not like validation queries",
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
    "validation": "similarities changed to those of the validation queries of the model, which are also used",
    "none": "none: confidence is too high for new photos; calibrate with --queries FOLDER",
}


def write_calibration_page(calibration: Calibration, address: str) -> Path | None:
    """Write calibration.html into the folder of an index; return None for an index on object storage."""
    folder = Path(address)
    if not folder.is_dir():
        return None
    write_text(folder / PAGE, calibration_page(calibration, address))
    return folder / PAGE


def calibration_page(calibration: Calibration, name: str, *, style_sheet: str | None = None) -> str:
    """Return the page as text.

    name: of the index.  style_sheet: its address, for a page that is not a single file.
    """
    return render(
        "calibration.html",
        title="How far can you trust the answers?",
        name=name,
        style_sheet=style_sheet,
        measured_on=_measured_on(calibration),
        summary=_summary(calibration),
        calibration_error=calibration_error_text(calibration),
        overconfidence=overconfidence_text(calibration.about),
        trained=trained_text(calibration.about),
        share_elsewhere=f"{100 * calibration.out_of_index_share:g}%",
        radius_share=f"{100 * RADIUS_SHARE:g}",
        reliability_chart=_reliability_chart(calibration),
        precision_chart=_precision_chart(calibration),
        threshold_rows=_threshold_rows(calibration),
        data_used=[
            (DATA_NAMES.get(key, key), CORRECTIONS.get(value, value) if key == "correction" else value)
            for key, value in sorted(calibration.about.items(), key=_place)
            if key not in {"calibration_error_interval", "calibration_error_approximate", "overconfidence"}
        ],
    )


def _place(entry: tuple[str, Any]) -> int:
    """Where an entry of `Calibration.about` is shown; last, if it has no name."""
    names = list(DATA_NAMES)
    return names.index(entry[0]) if entry[0] in DATA_NAMES else len(names)


def calibration_error_text(calibration: Calibration) -> str:
    """The expected calibration error with its 95% interval, which calibrations of earlier versions lack."""
    error, ends = calibration.calibration_error, calibration.about.get("calibration_error_interval")
    return Estimate(error, *ends, _is_approximate(calibration)).marked_text(3) if ends else f"{error:.3f}"


def _is_approximate(calibration: Calibration) -> bool:
    return bool(calibration.about.get("calibration_error_approximate", True))  # earlier versions did not say


def overconfidence_text(about: Mapping[str, Any]) -> str:
    """How far the mean confidence is from the share of correct answers, as far as so few photos show; "" if unknown.

    about: facts stored with the calibration; calibrations of earlier versions lack this one.

    >>> overconfidence_text({"overconfidence": {"value": -0.02, "low": -0.071, "high": 0.031, "num_areas": 30}})
    'mean confidence on photos of 30 held-out areas: 2.0 points too low (95% interval: 7.1 too low to 3.1 too high)'
    """
    found = about.get("overconfidence") or {}
    if None in (found.get("value"), found.get("low"), found.get("high")):
        return ""
    value, low, high = (_too_high(found[name]) for name in ("value", "low", "high"))
    is_few = found.get("approximate", found["num_areas"] < FEW_CLUSTERS)
    few = "; approximate, as the areas are few" if is_few else ""
    number, direction = value.split(" ", 1)
    return (
        f"mean confidence on photos of {found['num_areas']:,} held-out areas: {number} points {direction} "
        f"(95% interval: {low} to {high}{few})"
    )


def capture_text(about: Mapping[str, Any]) -> str:
    """That the photos say nothing about other seasons; "" if others are used as well, or if that is not known.

    about: facts stored with the calibration.
    """
    if "queries" in about or "num_validation" in about or about.get("days", math.inf) > ONE_CAPTURE_DAYS:
        return ""
    return (
        "all photos were taken within a month: for photos of another season, light or camera, confidence may be too "
        "high; `cosplace index calibrate --queries FOLDER` with some of these corrects it"
    )


def trained_text(about: Mapping[str, Any]) -> str:
    """That new photos may be easier than validation queries, if the model has seen many photos of several years.

    "" if this is not so, or corrected.  about: facts stored with the calibration.
    """
    num_trained, revisited = about.get("num_training_photos", 0), about.get("share_revisited", 1.0)
    if about.get("correction") != "validation" or "unlabeled" in about:
        return ""
    if num_trained < MANY_TRAINED or revisited < SEVERAL_YEARS:
        return ""
    return (
        "the model was trained on nearly all photos of this index: for new photos with their light and camera, "
        "confidence may be too low, in measurements by up to 10 points with 750 training photos, 21 with 7,200, and 36 "
        "with places from a table; `cosplace index calibrate --unlabeled FOLDER` with 100 of these new photos corrects "
        "it, and so does training again with photos held out, if there are 1,000 or more"
    )


def _too_high(share: float) -> str:
    """A difference in percentage points, at most 100: "3.1 too high"."""
    return f"{min(100 * abs(share), 100):.1f} too {'low' if share < 0 else 'high'}"


def _summary(calibration: Calibration) -> dict[str, str]:
    """The main numbers, of 100 photos or answers each; no number of correct ones without answers."""
    row = calibration.curve[np.abs(calibration.curve[:, 0] - DEFAULT_THRESHOLD).argmin()]
    _, precision, _, answered, rejected = (100 * row).tolist()
    ends = [f"{100 * end:.1f}" for end in calibration.about.get("calibration_error_interval", ())]
    return {
        "threshold": f"{100 * DEFAULT_THRESHOLD:g}",
        "answered": f"{answered:.0f}",
        "correct": f"{precision:.0f}" if answered > 0 else "",
        "rejected": f"{rejected:.0f}",
        "error": f"{100 * calibration.calibration_error:.1f}",
        "error_interval": " to ".join(ends),
        "error_words": "approximate 95% interval" if _is_approximate(calibration) else "95% interval",
    }


def _measured_on(calibration: Calibration) -> str:
    """Name the photos that were located."""
    if "queries" in calibration.about:
        return f"photos of {printable(str(calibration.about['queries']))}"
    also = " and validation queries of its model" if "num_validation" in calibration.about else ""
    return f"photos of the index{also}"


def _reliability_chart(calibration: Calibration) -> Chart | None:
    """Chart of the share of correct answers over their confidence, one dot per bin; None without bins."""
    if not len(calibration.reliability):
        return None
    confidences, correct, weights = calibration.reliability.T
    ends = np.array([0.0, 100.0])
    dots = Series(xs=100 * confidences, ys=100 * correct, shares=weights / max(1e-12, weights.max()))
    shares = (100 * weights / max(1e-12, weights.sum())).tolist()
    rows = [
        (x, (f"{x:.1f}%", f"{y:.1f}%", f"{share:.1f}%"))
        for x, y, share in zip(dots.xs.tolist(), dots.ys.tolist(), shares, strict=True)
    ]
    return chart(
        [Series(xs=ends, ys=ends, style="reference"), dots],
        percent_axis("stated confidence, %"),
        percent_axis("correct answers, %"),
        Values(columns=["stated confidence", "correct", "share of answers"], rows=rows),
        description="Percentage of correct answers by confidence",
    )


def _precision_chart(calibration: Calibration) -> Chart | None:
    """Chart of precision and of out-of-index photos that are rejected, over the share of photos answered; or None."""
    # Thresholds rise from row to row, so the share of photos answered falls; a curve has rising xs.
    curve = calibration.curve[calibration.curve[:, 3] > 0][::-1]
    if not len(curve):
        return None
    _, precision, _, answered, rejected = 100 * curve.T
    series = [
        Series(label="correct", xs=answered, ys=precision, style="strong"),
        Series(label="rejected", xs=answered, ys=rejected, color=1),
    ]
    return chart(
        series,
        percent_axis("photos answered, %"),
        percent_axis("share, %"),
        values_of(series, "photos answered", "{:.1f}%".format),
        description="Correct answers and rejected photos of other places by the percentage of photos answered",
    )


def _threshold_rows(calibration: Calibration) -> list[dict[str, str]]:
    """Return one row of the table per threshold; without answers, none can be correct."""
    nearest = [int(np.abs(calibration.curve[:, 0] - threshold).argmin()) for threshold in THRESHOLDS]
    radii_m = calibration.radius_m(np.array(THRESHOLDS))
    rows = []
    for threshold, radius_m, measured in zip(THRESHOLDS, radii_m, calibration.curve[nearest], strict=True):
        _, precision, lower_bound, answered, rejected = measured.tolist()
        rows.append(
            {
                "threshold": f"{100 * threshold:g}%",
                "answered": f"{100 * answered:.0f}%",
                "correct": f"{100 * precision:.1f}%" if answered > 0 else "–",
                "correct_bound": f"{100 * lower_bound:.1f}%" if answered > 0 else "",
                "rejected": f"{100 * rejected:.1f}%",
                "radius": f"{radius_m:.0f} m",
            }
        )
    return rows
