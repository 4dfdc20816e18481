"""Which headings in the names of a list are known: many datasets have 0 in each name."""

import numpy as np

from cosplace.photos.image_list import ImageList
from cosplace.photos.names import optional_fields


def are_all_zero(headings: np.ndarray) -> bool:
    """Whether several headings (I,) are known and all are exactly 0: cameras without a compass write that."""
    known = headings[np.isfinite(headings)]
    return len(known) > 1 and not known.any()


def known_headings(images: ImageList) -> np.ndarray:
    """Headings in the names of a list in degrees, (I,) float64; nan where unknown, and everywhere if all are 0."""
    headings = optional_fields(images, ("heading",))[0]
    return np.full(len(headings), np.nan) if are_all_zero(headings) else headings
