"""Which headings in the names of a list are known: many datasets have 0 in each name, some 65535 for unknown."""

import numpy as np

from cosplace.errors import one_line
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.names import optional_fields

MAX_TURNS_DEG = 720.0  # larger values are not headings, such as 65535 for unknown
HEADINGS_COMPARED = 10_000  # at most, when a list is checked for values that are not headings


def are_all_zero(headings: np.ndarray) -> bool:
    """Whether several headings (I,) are known and all are exactly 0: cameras without a compass write that."""
    known = headings[np.isfinite(headings)]
    return len(known) > 1 and not known.any()


def known_headings(images: ImageList) -> np.ndarray:
    """Headings in the names of a list in degrees, (I,) float64; nan where unknown, and everywhere if all are 0."""
    headings = optional_fields(images, ("heading",))[0]
    headings[np.abs(headings) > MAX_TURNS_DEG] = np.nan
    return np.full(len(headings), np.nan) if are_all_zero(headings) else headings


def impossible_heading_warning(images: ImageList) -> str:
    """Describe in a sentence how many numbers are not headings, with the first example; empty if none is so.

    A long list is checked by an even sample of HEADINGS_COMPARED names.
    """
    few = len(images) <= HEADINGS_COMPARED
    sample = images if few else images.subset(evenly_spaced(images, HEADINGS_COMPARED))
    headings = optional_fields(sample, ("heading",))[0]
    wrong = np.flatnonzero(np.abs(headings) > MAX_TURNS_DEG)
    if not len(wrong):
        return ""
    row = int(wrong[0])
    return one_line(
        f"{images.folder}: {len(wrong):,} of {len(sample):,} headings{'' if few else ' compared'} are more than two "
        f"turns, for example {headings[row]:.10g} in {sample.name(row)}; they are used modulo 360. Remove such photos, "
        "or use --alpha 360 to train without headings."
    )
