"""Are there enough places to train on?  One rule for `validate`, `split`, `train`, `groups` and `finetune`.

What counts are the places of the training photos, as they are after the dataset is split: photos with at least one
other photo around them that looks the same way.  With fewer than FEWEST_PLACES, training did not beat its start, see
docs/lab.md.  Legend: I photos.
"""

from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.geo import EARTH_RADIUS_M, ecef_from_lla
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import different_zones, earth_positions, optional_fields, utm_fields, without_rows
from cosplace.progress import format_count
from cosplace.retrieval.capture_times import capture_times, read_columns
from cosplace.retrieval.splitting import Places as SplitPlaces
from cosplace.training.groups import Groups
from cosplace.training.places import Viewpoints, form_places

FEWEST_PLACES = 100  # of the training photos, with at least two photos each; training on fewer does not help
MOST_UNKNOWN = 0.1  # share of photos without a heading, above which no heading is used
MOST_COUNTED = 100_000  # photos whose places are counted; more photos have enough places in practice


def too_few_places(num_places: int, least: int = 2) -> str:
    """Why a number of places with `least` photos or more is too few to train on; "" if it is not."""
    if num_places >= FEWEST_PLACES:
        return ""
    places, photos = format_count(num_places, "place"), "two" if least == 2 else str(least)
    verb = "is" if num_places == 1 else "are"
    return f"{places} with at least {photos} photos {verb} too few: training needs {FEWEST_PLACES} or more to help"


def count_places(points: np.ndarray, headings: np.ndarray | None) -> int:
    """The number of places of photos.

    points: (I, 2) or (I, 3), all known.  headings: (I,) degrees, nan where unknown; None if they are not used.
    """
    if not len(points):
        return 0
    if headings is not None and unusable_headings(headings):
        headings = None
    return len(form_places(Viewpoints(points=points, headings=headings)))


def count_places_of(images: ImageList, *, with_headings: bool) -> int | None:
    """The number of places of a list of photos, of those with a position; None for a very large list."""
    if len(images) > MOST_COUNTED:
        return None
    utm = utm_fields(images)
    images = without_rows(images, np.flatnonzero(~utm.known))
    if not len(images):
        return 0
    headings = optional_fields(images, ("heading",))[0] if with_headings else None
    return count_places(points_of(images), headings)


def points_of(images: ImageList) -> np.ndarray:
    """Points of photos with known positions: (I, 2) meters east and north; (I, 3), earth-centered, in several zones."""
    utm = utm_fields(images)
    return earth_positions(images, utm) if len(different_zones(utm.zones)) > 1 else utm.east_north


def split_places(images: ImageList, points: np.ndarray, dataset: Path) -> SplitPlaces:
    """Where and when photos were taken, for `plan_splits`.  points: as of `points_of`."""
    times = capture_times(images, read_columns(dataset))
    return SplitPlaces(points=_on_earth(points), seconds=times.seconds, sequences=times.sequences)


def _on_earth(points: np.ndarray) -> np.ndarray:
    """Earth-centered points of positions (I, 2) or (I, 3); east and north are moved to the equator at longitude 0."""
    if points.shape[1] == 3:
        return points
    east, north = np.degrees((points - points.mean(axis=0)) / EARTH_RADIUS_M).T
    return ecef_from_lla(north, east)


def unusable_headings(headings: np.ndarray) -> str:
    """Why headings (I,) in degrees, nan where unknown, are not used; "" if they are.  All equal means unknown."""
    unknown = np.isnan(headings)
    if unknown.mean() > MOST_UNKNOWN:
        return "unknown" if unknown.all() else f"unknown for {unknown.sum():,} of {len(headings):,} photos"
    known = headings[~unknown]
    if (known == known[0]).all():
        return f"{known[0]:g} degrees on all photos, which means unknown"
    return ""


def few_places_warning(groups: Groups, images: ImageList, *, with_headings: bool) -> str:
    """Warn before a training on photos of few places; "" if there are enough.

    groups: the classes of the photos.  Places are counted only where there are few classes.
    """
    if len(groups.cells) >= FEWEST_PLACES:
        return ""
    try:
        num_places = count_places_of(images, with_headings=with_headings)
    except DatasetError:  # positions that do not say where on Earth
        return ""
    return "" if num_places is None else few_places(groups.folder, num_places)


def few_places(folder: Path, num_places: int, least: int = 2) -> str:
    """Warn before a training on a number of places with `least` photos or more; "" if it is enough."""
    problem = too_few_places(num_places, least)
    if not problem:
        return ""
    return (
        f"{folder}: {problem}. Expect a model that is not better than a released one: compare them with `cosplace "
        f"eval`."
    )
