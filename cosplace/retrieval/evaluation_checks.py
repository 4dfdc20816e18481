"""What makes recalls meaningless: a database of a single place, descriptors that are equal or not finite.

Legend: D descriptor dimension.
"""

import logging
from collections.abc import Iterable, Iterator

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.image_list import ImageList
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.extraction import EQUAL_WITHIN, Extraction, not_finite_text

CHECKED_ROWS = 1 << 14  # descriptors that are checked at once

log = logging.getLogger(__name__)


def check_places(dataset: RetrievalDataset, radius_m: float) -> None:
    """Raise DatasetError if the database is a single image or place, within the radius: recalls would say nothing."""
    positions = dataset.database_positions
    if len(positions) == 1:
        raise DatasetError(
            f"The database of {dataset.name} is a single image, so each query has the same prediction, and recalls say "
            f"nothing about the model. Add photos of other places."
        )
    if len(positions) and np.linalg.norm(np.ptp(positions, axis=0)) <= radius_m:
        raise DatasetError(
            f"The {len(positions):,} database images for {dataset.name} are a single place, within {radius_m:g} m of "
            f"each other: any prediction is as correct as any other. Add photos of other places, or use a smaller "
            f"--positive_dist_threshold."
        )


def check_finite(extraction: Extraction, images: ImageList, split: str) -> None:
    """Raise DatasetError that names the images whose descriptors are not finite; unreadable ones do not matter."""
    found = []
    for first in range(0, len(extraction.descriptors), CHECKED_ROWS):
        rows = extraction.descriptors[first : first + CHECKED_ROWS]
        bad = ~np.isfinite(rows).all(axis=1) & extraction.readable[first : first + len(rows)]
        found.append(first + np.flatnonzero(bad))
    rows = np.concatenate(found) if found else np.zeros(0, np.int64)
    if len(rows):
        raise DatasetError(f"{not_finite_text(images, rows)} ({split}). Extract them again, into another folder.")


def readable_blocks(extraction: Extraction) -> Iterator[np.ndarray]:
    """The descriptors (n, D) of photos that could be opened, in blocks."""
    rows = np.flatnonzero(extraction.readable)
    for first in range(0, len(rows), CHECKED_ROWS):
        yield extraction.descriptors[rows[first : first + CHECKED_ROWS]]


def warn_of_equal_descriptors(blocks: Iterable[np.ndarray]) -> None:
    """Log a warning if all descriptors of a database are equal, because the order of photos then decides.

    blocks: arrays (n, D), read until two rows differ; n is 1 or more.
    """
    count, reference = 0, np.empty(0)
    for block in blocks:
        values = block.astype(np.float32)
        reference = reference if count else values[0]
        if np.abs(values - reference).max() > EQUAL_WITHIN:
            return
        count += len(block)
    if count > 1:
        log.warning(
            "The descriptors of all %s database photos are equal: the model does not distinguish them, so predictions "
            "and recalls only depend on the order of the photos. Use another model.",
            f"{count:,}",
        )
