"""The calibration that is stored with an index: whether there is one, why not, and whether the index needs another one.

Side effects: reads the records of the index.
"""

from typing import Any

import numpy as np

from cosplace.index.photo_index import PhotoIndex
from cosplace.index.records import Columns
from cosplace.localization.confidence import Calibration, from_record
from cosplace.progress import format_count
from cosplace.retrieval.recall import RADIUS_M

CALIBRATION_RECORD, FAILED_RECORD = "calibration", "calibration_failed"
MIN_PHOTOS = 100  # with a position: with fewer, the share of correct answers is known to 10 points at best
MAX_SIZE_CHANGE = 1.5  # factor by which an index may grow or shrink before it needs a new calibration


def read_calibration(index: PhotoIndex) -> Calibration | None:
    """The calibration stored with an index; None if there is none."""
    record = index.read_record(CALIBRATION_RECORD)
    return None if record is None else from_record(record)


def answers_uncalibrated(index: PhotoIndex) -> bool:
    """Whether an index without calibration answers by default: it is too small to calibrate, or calibration failed."""
    if len(exact_rows(index.columns())) < MIN_PHOTOS:
        return True
    failed = index.read_record(FAILED_RECORD)
    return failed is not None and not _has_other_size(index, failed.get("num_photos"))


def how_to_calibrate(index: PhotoIndex) -> str:
    """What to do about an index without calibration; to calibrate it is not enough where that has failed."""
    command = f"`cosplace index calibrate {index.address}`"
    if not answers_uncalibrated(index):
        return f"Run {command}."
    num_photos = len(exact_rows(index.columns()))
    if num_photos < MIN_PHOTOS:
        missing = format_count(MIN_PHOTOS - num_photos, "more photo")
        return f"It has too few photos with an exact position: add {missing}, then run {command}. Or omit --precision."
    failed = index.read_record(FAILED_RECORD) or {}
    return f"Its calibration failed: {failed.get('reason', '')} Or omit --precision."


def exact_rows(columns: Columns) -> np.ndarray:
    """Rows (n,) int64 of the photos whose position is known, with an error of no more than 25 m."""
    has_position = np.isfinite(columns.latitudes) & np.isfinite(columns.longitudes)
    return np.flatnonzero(has_position & ~(columns.accuracies_m > RADIUS_M))


def should_calibrate_again(index: PhotoIndex) -> bool:
    """Whether an index whose calibration failed has changed since."""
    failed = index.read_record(FAILED_RECORD)
    return failed is not None and read_calibration(index) is None and failed.get("num_photos") != len(index)


def needs_recalibration(index: PhotoIndex) -> bool:
    """Whether the size of an index has changed a lot since its calibration."""
    calibration = read_calibration(index)
    return calibration is not None and _has_other_size(index, calibration.about.get("num_photos"))


def _has_other_size(index: PhotoIndex, num_photos: Any) -> bool:
    """Whether an index has grown or shrunk a lot since it had this number of photos; False for an unknown number."""
    if not isinstance(num_photos, int) or num_photos < 1:
        return False
    return not num_photos / MAX_SIZE_CHANGE <= len(index) <= num_photos * MAX_SIZE_CHANGE
