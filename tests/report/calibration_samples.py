"""A calibration with round numbers, for tests of its page."""

import numpy as np

from cosplace.localization.confidence import Calibration, from_record
from cosplace.localization.signals import SIGNALS


def sample_calibration(**about: object) -> Calibration:
    """At threshold t: precision 0.5 + t / 2, its lower bound 0.4 + t / 2, answered 0.95 - t, rejected t."""
    thresholds, ones = np.linspace(0, 1, 201), [1.0] * len(SIGNALS)
    columns = thresholds, 0.5 + thresholds / 2, 0.4 + thresholds / 2, np.maximum(0.95 - thresholds, 0), thresholds
    return from_record(
        {
            "version": 1, "features": list(SIGNALS), "temperature": 0.1, "agree_m": 25.0, "bias": 0.0,
            "centre": ones, "scale": ones, "weights": ones, "logits": [-1.0, 1.0], "frequencies": [0.0, 1.0],
            "radius_confidences": [0.5, 1.0], "radii_m": [20.0, 10.0], "curve": np.transpose(columns).tolist(),
            "reliability": [[0.1, 0.2, 40.0], [0.9, 0.8, 10.0]], "calibration_error": 0.0123, "share_elsewhere": 0.05,
            "about": {"num_photos": 376, "num_elsewhere": 94, "seed": 7} | about,
        }
    )  # fmt: skip
