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

SHARE, LARGEST_SHARE = 0.05, 0.125  # of the training photos
FEWEST = 125  # a calibration needs 100; a few cannot be told from training photos with the same position and month
MOST = 2000  # photos; a calibration locates no more
SEED = 20  # of the choice; the same for all runs, so that runs with several seeds train on the same photos
RULE = 1  # version of `hold_out`; another one whenever it chooses other photos, as cached groups have its choice

log = logging.getLogger(__name__)


def num_held_out(groups: Groups, num_used: int, least: int, wanted: int | None = None) -> int:
    """How many photos of the first `num_used` groups to hold out.

    least: images that each class keeps.  wanted: number given by the user.  By default: 5%, but at least 125 and at
    most 2,000, or none if 125 are more than an eighth; none if 100 photos are in groups that are not trained on.  Those
    of classes that are too small do not suffice: they show the edges of the area.  If they are most of the photos, they
    do.  Raises ConfigError if fewer than the wanted number can be held out.
    """
    num_trained = len(_trained(groups, num_used))
    num_in_others = len(np.unique(groups.image_starts)) - num_trained
    num_new = groups.num_scanned - groups.num_unknown - num_trained
    has_others = num_in_others >= MIN_UNSEEN or num_new >= max(MIN_UNSEEN, num_trained)
    if wanted == 0 or (wanted is None and has_others):
        return 0
    num_possible = len(_possible(groups, num_used, least))
    if wanted is not None:
        if wanted > num_possible:
            raise ConfigError(
                f"--held_out_photos {wanted}: at most {num_possible} of the {format_count(num_trained, 'photo')} to "
                f"train on in {groups.folder} can be held out, because each class keeps {least}. Use a smaller number."
            )
        return wanted
    number = min(num_possible, MOST, max(FEWEST, int(SHARE * num_trained)))
    return number if FEWEST <= number <= LARGEST_SHARE * num_trained else 0


def hold_out(groups: Groups, num_used: int, number: int, least: int) -> Groups:
    """The groups without some photos of the first `num_used` groups, chosen at random.

    least: images that each class keeps, so classes and groups stay the same.
    """
    chosen = _possible(groups, num_used, least)[:number]
    kept = ~np.isin(groups.image_starts, chosen)  # in each of the classes that a photo is in
    sizes = np.bincount(_class_of_image(groups)[kept], minlength=len(groups.cells))
    return replace(
        groups,
        class_starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        image_starts=groups.image_starts[kept],
        label_starts=None if groups.label_starts is None else groups.label_starts[kept],
        offsets=None if groups.offsets is None else groups.offsets[kept],
        opened_from=None,
    )


def _possible(groups: Groups, num_used: int, least: int) -> np.ndarray:
    """Starts of the photos that can all be held out, in random order: each class keeps `least` random images."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(groups.image_starts))
    order = order[np.argsort(_class_of_image(groups)[order], kind="stable")]  # images of a class in random order
    first_of_class = np.repeat(groups.class_starts[:-1], np.diff(groups.class_starts))
    stays = np.zeros(len(order), bool)
    stays[order] = np.arange(len(order)) - first_of_class < least
    trained = _trained(groups, num_used)
    return rng.permutation(trained[~np.isin(trained, groups.image_starts[stays])])


def _class_of_image(groups: Groups) -> np.ndarray:
    return np.repeat(np.arange(len(groups.cells)), np.diff(groups.class_starts))


def log_held_out(number: int, groups: Groups, num_used: int) -> None:
    """Log how many photos of the first `num_used` groups are held out.  groups: before they are held out."""
    num_trained = len(_trained(groups, num_used))
    num_new = number + groups.num_scanned - groups.num_unknown - num_trained
    why = (
        "so that an index of this folder can be calibrated"
        if num_new >= MIN_UNSEEN
        else f"too few to calibrate an index of this folder, which needs {MIN_UNSEEN} photos that are not trained on"
    )
    total = format_count(num_trained, "training photo")
    log.info("%s: %s of %s held out, %s (--held_out_photos 0 trains on all)", groups.folder, f"{number:,}", total, why)


def _trained(groups: Groups, num_used: int) -> np.ndarray:
    """Starts in `names` (I,) of the photos of the first groups; a photo of several classes appears once."""
    return np.unique(groups.image_starts[: groups.class_starts[groups.group_starts[num_used]]])
