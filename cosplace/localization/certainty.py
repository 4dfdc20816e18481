"""How confidence is computed from the matches of photos, and which answers are given.

Legend: Q queries.
"""

from dataclasses import dataclass

import numpy as np

from cosplace.index.records import Matches
from cosplace.localization.confidence import Calibration
from cosplace.localization.fusion import AGREE_M, TEMPERATURE, Fusion, fuse, share_within
from cosplace.localization.signals import compute_signals
from cosplace.retrieval.recall import RADIUS_M


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """A calibration and a threshold that belong together: one object, so that they are replaced at once."""

    calibration: Calibration | None  # None: the confidence is the share of votes that agree
    min_confidence: float  # answers below are unknown
    version: int  # of the records of the index, from which the calibration was read
    is_former: bool = False  # the calibration of this version cannot be used, so it is that of an earlier one

    def fuse(self, matches: Matches) -> Fusion:
        """Compute the positions of queries from their matches."""
        calibration = self.calibration
        return fuse(
            matches.scores,
            matches.latitudes,
            matches.longitudes,
            accuracies_m=matches.accuracies_m,
            temperature=TEMPERATURE if calibration is None else calibration.temperature,
            agree_m=AGREE_M if calibration is None else calibration.agree_m,
        )

    def confidences(self, matches: Matches, fusion: Fusion) -> np.ndarray:
        """Compute the confidences (Q,) of fused positions."""
        if self.calibration is None:
            confidences = (fusion.votes * fusion.agreeing).sum(axis=1)
        else:
            confidences = self.calibration.confidences(compute_signals(matches.scores, fusion))
        return confidences * share_within(RADIUS_M, fusion.accuracies_m)
