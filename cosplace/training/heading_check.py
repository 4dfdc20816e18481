"""Do the headings fit the photos?

Of two photos taken at one spot, those that look the same way are more similar.  The share of comparisons in which that
holds (the area under the ROC curve) is 0.8 to 0.9 for right headings, even with ImageNet features, and 0.5 for wrong
ones.  Legend: I photos, P pairs of them.
"""

import numpy as np
import torch

from cosplace.photos.image_list import ImageList
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.extraction import ExtractionSettings, extract

SPOT_M = 10.0  # between two photos of one spot
SAME_DEG, OTHER_DEG = 30.0, 90.0  # turns of photos that look the same way, and of those that do not
MOST_PHOTOS = 800
FEWEST_PAIRS = 50  # of each kind, for an answer
LEAST_SHARE = 0.65


def headings_fit(
    model: torch.nn.Module,
    images: ImageList,
    points: np.ndarray,
    headings: np.ndarray,
    *,
    settings: ExtractionSettings,
    progress: Progress = no_progress,
) -> bool:
    """Whether the headings (I,) in degrees fit the photos, by descriptors of the model; True if too few can tell.

    points: (I, 2) or (I, 3), meters.
    """
    rows, pairs = pairs_of_spots(points)
    turns = np.abs((headings[rows][pairs[:, 0]] - headings[rows][pairs[:, 1]] + 180) % 360 - 180)
    same, other = turns <= SAME_DEG, turns >= OTHER_DEG
    if min(same.sum(), other.sum()) < FEWEST_PAIRS:
        return True
    task = part_of(progress, "checking headings")
    descriptors = np.asarray(extract(model, images.subset(rows.tolist()), settings, progress=task).descriptors)
    similarities = (descriptors[pairs[:, 0]] * descriptors[pairs[:, 1]]).sum(axis=1)
    return share_above(similarities[same], similarities[other]) >= LEAST_SHARE


def pairs_of_spots(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of up to MOST_PHOTOS photos, ascending, spot by spot; and the pairs (P, 2) of them within SPOT_M."""
    from scipy.spatial import KDTree

    tree, chosen = KDTree(points), np.zeros(len(points), bool)
    for row in np.random.default_rng(0).permutation(len(points)).tolist():
        if chosen.sum() >= MOST_PHOTOS:
            break
        chosen[tree.query_ball_point(points[row], SPOT_M)[:MOST_PHOTOS]] = True
    rows = np.flatnonzero(chosen)
    return rows, KDTree(points[rows]).query_pairs(SPOT_M, output_type="ndarray").reshape(-1, 2)


def share_above(values: np.ndarray, others: np.ndarray) -> float:
    """Share of the pairs of a value and another one in which the value is larger; equal ones count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return float(below.mean() / 2 / len(others))
