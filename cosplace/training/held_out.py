"""Training photos that are held out, so that an index of the training photos can calibrate its confidence.

A network recognizes its training photos more easily than new ones, so an index is calibrated with its other photos
(`localization.chosen_photos`).  With the settings of the paper, most photos are in groups that are not trained on, or
in classes that are too small.  If nearly all photos would be trained on, some are held out: single photos, not whole
classes, because new photos show places that the network was trained on (docs/lab.md compares both).
Legend: I images.
"""

import logging
from dataclasses import replace

import numpy as np

from cosplace.errors import ConfigError
from cosplace.models.training_card import MIN_UNSEEN
from cosplace.progress import format_count
from cosplace.training.groups import Groups

SHARE = 0.05  # of the training photos
FEWEST, MOST = 250, 2000  # photos; a calibration needs 200 and locates at most 2,000
SEED = 20  # of the choice; the same for all runs, so that runs with several seeds train on the same photos

log = logging.getLogger(__name__)


def num_held_out(groups: Groups, num_used: int, wanted: int | None = None) -> int:
    """How many photos of the first `num_used` groups to hold out.

    wanted: number given by the user.  By default, 5%, or none if there are enough other photos or if 5% is too few.
    Raises ConfigError for more than half of the photos.
    """
    num_trained = len(_trained(groups, num_used))
    if wanted is not None:
        if 2 * wanted > num_trained:
            raise ConfigError(
                f"--held_out_photos {wanted} is more than half of the {format_count(num_trained, 'photo')} to train "
                f"on in {groups.folder}. Use at most {num_trained // 2}."
            )
        return wanted
    if groups.num_scanned - groups.num_unknown - num_trained >= MIN_UNSEEN:
        return 0
    number = min(MOST, int(SHARE * num_trained))
    return number if number >= FEWEST else 0


def hold_out(groups: Groups, num_used: int, number: int, least: int) -> Groups:
    """The groups without some photos of the first `num_used` groups, chosen at random.

    least: minimum number of images of a class; smaller classes are dropped.  Groups keep their numbers.
    """
    photos = _trained(groups, num_used)
    chosen = np.random.default_rng(SEED).permutation(photos)[:number]
    kept = ~np.isin(groups.image_starts, chosen)  # in each of the classes that a photo is in
    class_of_image = np.repeat(np.arange(len(groups.cells)), np.diff(groups.class_starts))
    sizes = np.bincount(class_of_image[kept], minlength=len(groups.cells))
    enough = sizes >= least
    kept &= enough[class_of_image]
    num_before = np.concatenate([[0], np.cumsum(enough)])  # classes that are kept, before each class
    return replace(
        groups,
        cells=groups.cells[enough],
        group_starts=num_before[groups.group_starts],
        class_starts=np.concatenate([[0], np.cumsum(sizes[enough])]).astype(np.int64),
        image_starts=groups.image_starts[kept],
        zones=None if groups.zones is None else groups.zones[enough],
        label_starts=None if groups.label_starts is None else groups.label_starts[kept],
        offsets=None if groups.offsets is None else groups.offsets[kept],
        opened_from=None,
    )


def log_held_out(number: int, groups: Groups, num_used: int) -> None:
    """Log how many photos of the first `num_used` groups are held out.  groups: before they are held out."""
    total = format_count(len(_trained(groups, num_used)), "training photo")
    log.info(
        "%s: %s of %s held out, so that an index of this folder can be calibrated (--held_out_photos 0 trains on "
        "all)", groups.folder, f"{number:,}", total,
    )  # fmt: skip


def _trained(groups: Groups, num_used: int) -> np.ndarray:
    """Starts in `names` (I,) of the photos of the first groups; a photo of several classes appears once."""
    return np.unique(groups.image_starts[: groups.class_starts[groups.group_starts[num_used]]])
