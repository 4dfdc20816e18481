"""Settings that make classes and groups suitable for training; warnings about photos and settings.

One search over M, alpha, N, L, the number of groups and the minimum of images per class finds the settings to
recommend.  They pass the same check as the settings that they replace, so no further advice follows.
"""

from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np

from cosplace.config.sections import Grouping
from cosplace.errors import DatasetError, one_line
from cosplace.photos.headings import impossible_heading_warning
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import all_positions_unknown, contradiction_warning, unknown_position
from cosplace.training.groups import Classes, Groups, class_of, form_classes, parse_coordinates, partition

CELLS_M = (10, 15, 20, 30, 40)
ALPHAS = (30, 60, 90, 180)  # or 360, if that is given: names then need no heading
DISTANCES = ((5, 2), (3, 2), (2, 2), (5, 1), (3, 1), (2, 1), (1, 2), (1, 1))  # (N, L)
GROUP_COUNTS = (8, 4, 2, 1)
MIN_IMAGES = (10, 5, 3, 2)
ENOUGH_CLASSES = 50  # in each group; hundreds give better results
LEVELS = (10, 20, ENOUGH_CLASSES)  # classes in the smallest group; settings below the first are not recommended
SEPARATION_M = 20  # settings with at least this distance between the classes of a group come first
MAX_SEARCHED = 1_000_000  # photos; the first ones of a larger list


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to change before training."""

    text: str
    settings: Grouping | None  # settings that work; None if there are none, or none that are better
    refused: bool  # whether training refuses the present settings


def check_enough(groups: Groups, grouping: Grouping, images: ImageList) -> None:
    """Raise DatasetError, with settings that work, if there are fewer groups or classes than training needs."""
    if _problem(groups, grouping) and (found := advice(groups, grouping, images)):
        raise DatasetError(found.text)


def advice(groups: Groups, grouping: Grouping, images: ImageList) -> Advice | None:
    """Recommend other settings if training on these groups would fail or work badly; None if they are fine.

    images: the photos that the groups were formed from.
    """
    problem = _problem(groups, grouping)
    if not problem:
        used = groups.counts()[: grouping.groups_num]
        smallest = min(num_classes for num_classes, _ in used)
        if smallest >= ENOUGH_CLASSES:
            return None
        problem = (
            f"{groups.folder}: the smallest of {len(used)} groups has {smallest} classes; hundreds of classes give "
            f"better results."
        )
    if groups.num_unknown == groups.num_scanned:
        text = f"{groups.folder}: {all_positions_unknown(images)}"
        return Advice(text=text, settings=None, refused=True)
    refused = _problem(groups, grouping) is not None
    settings = find_settings(images, grouping)
    if settings is not None:
        return Advice(
            text=f"{problem} These settings work: `{flags_text(settings)}`.", settings=settings, refused=refused
        )
    if not refused:
        return Advice(text=f"{problem} No other settings are much better: add photos.", settings=None, refused=False)
    return Advice(
        text=f"{problem} No settings give {LEVELS[0]} classes per group: do not train on these photos. Use a released "
        f"model: `cosplace index build {groups.folder} --model cosplace_resnet50_512 --to INDEX`; `cosplace zoo list` "
        f"lists the others.",
        settings=None,
        refused=True,
    )


def flags_text(grouping: Grouping) -> str:
    """Settings of classes and groups as the command line writes them."""
    return " ".join(f"--{name} {value}" for name, value in asdict(grouping).items())


def _problem(groups: Groups, grouping: Grouping) -> str | None:
    """Why training refuses these groups; None if it does not."""
    counts = groups.counts()
    if not counts:
        return (
            f"{groups.folder} has {groups.num_scanned} images, but no class with at least "
            f"{grouping.min_images_per_class} images."
        )
    if len(counts) < grouping.groups_num:
        return (
            f"{groups.folder} has {len(counts)} group{'s' if len(counts) > 1 else ''}, fewer than --groups_num "
            f"{grouping.groups_num}."
        )
    for number, (num_classes, _) in enumerate(counts[: grouping.groups_num]):
        if num_classes < 2:
            return f"{groups.folder}: group {number} has {num_classes} class, but training needs at least 2."
    return None


# --- the search ------------------------------------------------------------------------------------------------------


def find_settings(images: ImageList, current: Grouping) -> Grouping | None:
    """Find the settings under which these photos train best; None if none reaches a higher level than `current`.

    Settings are ranked by the level in LEVELS that their smallest group reaches; then by whether the classes of a group
    are SEPARATION_M apart; then by the number of images that are trained on.
    """
    coordinates = read_coordinates(images, current)
    current_rank = _rank(_counts(classes_of(coordinates, current), current), current)
    best, best_rank = current, current_rank
    for M, alpha in product(CELLS_M, ALPHAS if current.alpha < 360 else (360,)):
        cells = Grouping(M=M, alpha=alpha)
        classes = classes_of(coordinates, cells)
        for least, (N, L) in product(MIN_IMAGES, DISTANCES):
            if (360 // alpha) % L:
                continue
            settings = replace(cells, N=N, L=L, min_images_per_class=least)
            counts = _counts(classes, settings)
            for groups_num in GROUP_COUNTS:
                settings = replace(settings, groups_num=groups_num)
                rank = _rank(counts, settings)
                if rank[0] > 0 and rank > best_rank:
                    best, best_rank = settings, rank
    if best_rank[0] == current_rank[0]:
        return None
    # The search saw only the first photos of a very large list.
    return best if _problem(partition(images, best), best) is None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """Where the photos of a list were taken, to form classes of different sizes."""

    columns: np.ndarray  # (3, I) float64: east, north, heading
    zones: np.ndarray  # (I,) int8


def read_coordinates(images: ImageList, grouping: Grouping) -> Coordinates:
    """Positions and headings of a list, of its first MAX_SEARCHED photos; headings are 0 if alpha is 360."""
    images = images if len(images) <= MAX_SEARCHED else images.subset(range(MAX_SEARCHED))
    columns, zones = np.empty((3, len(images))), np.empty(len(images), np.int8)
    for rows, (east, north, heading, zone) in parse_coordinates(images, grouping):
        columns[:, rows], zones[rows] = (east, north, heading), zone
    return Coordinates(columns=columns, zones=zones)


def classes_of(coordinates: Coordinates, grouping: Grouping) -> Classes:
    """The classes of photos with these coordinates, also small ones."""
    east, north, heading = coordinates.columns
    cells = class_of(east, north, heading, grouping).T.astype(np.int32)
    return form_classes(cells, coordinates.zones, np.flatnonzero((east == 0) & (north == 0)))


def _counts(classes: Classes, grouping: Grouping) -> tuple[np.ndarray, np.ndarray]:
    """Number of classes and of images of each group, (G,) each."""
    kept = classes.of_at_least(grouping.min_images_per_class)
    groups = classes.group_numbers(kept, grouping)
    return np.bincount(groups), np.bincount(groups, weights=classes.sizes[kept])


def _rank(counts: tuple[np.ndarray, np.ndarray], grouping: Grouping) -> tuple[float, ...]:
    """Sort key, larger for better settings.  First, the level of the smallest group; -1 if training refuses it."""
    num_classes, num_images = (values[: grouping.groups_num] for values in counts)
    if len(num_classes) < grouping.groups_num or num_classes.min() < 2:
        return (-1,)
    return (
        sum(num_classes.min() >= level for level in LEVELS),
        grouping.M * (grouping.N - 1) >= SEPARATION_M,
        num_images.sum(),
        grouping.min_images_per_class,
        -grouping.M,
        -grouping.alpha,
    )


# --- warnings --------------------------------------------------------------------------------------------------------


def data_warnings(groups: Groups, grouping: Grouping, images: ImageList) -> list[str]:
    """Warn about photos without a position, contradictory names, and headings that are none or divide unevenly."""
    warnings = [contradiction_warning(images), uneven_headings(grouping)]
    if grouping.alpha < 360:
        warnings.append(impossible_heading_warning(images))
    if groups.num_unknown:
        warnings.append(
            f"{groups.folder}: {groups.num_unknown:,} of {groups.num_scanned:,} photos are in no class: their "
            f"{unknown_position(images)}."
        )
    if groups.zones is not None and len(groups.zones):
        zones = ", ".join(
            f"{abs(zone)} {'south' if zone < 0 else 'north'}" for zone in np.unique(groups.zones).tolist()
        )
        warnings.append(f"{groups.folder}: photos are in several UTM zones ({zones}); each class is in one zone.")
    return [one_line(text) for text in warnings if text]


def uneven_headings(grouping: Grouping) -> str:
    """Warn, with values to use, if ranges of headings in one group are closer around north than elsewhere, or narrower.

    Empty if neither is so.
    """
    alpha, L = grouping.alpha, grouping.L
    num_ranges = -(-360 // alpha)
    shared = num_ranges > L > 1  # whether different ranges are in one group
    if 360 % alpha == 0 and (num_ranges % L == 0 or not shared):
        return ""
    even = [a for a in range(1, 361) if 360 % a == 0 and (360 // a) % L == 0]
    options = [max((a for a in even if a < alpha), default=0), min((a for a in even if a > alpha), default=0)]
    texts = [f"`--alpha {a}`" for a in options if a]
    if 360 % alpha == 0:
        texts += [f"`--L {one}`" for one in (L - 1, L + 1) if one > 1 and num_ranges % one == 0]
    problem = (
        f"--alpha {alpha} does not divide 360 degrees evenly, so the last range is narrower"
        if 360 % alpha
        else f"--L {L} does not divide the {num_ranges} ranges of --alpha {alpha} degrees evenly"
    )
    closer = shared and num_ranges % L != 0
    effect = f"; around north, ranges in one group are less than {L} apart" if closer else ""
    return f"{problem}{effect}. Use {' or '.join(texts)}."
