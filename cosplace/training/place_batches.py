"""Batches of several photos of each of several places, for losses that compare photos with each other.

No two places of a batch are neighbors, so photos of different places are negatives.  As in `batches`, every random draw
is a function of (seed, epoch, item).

schedule_places   places with lists of their neighbors, for few places
spread_places     places by their locations, for millions of places
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from cosplace.training.augmentation import Augmentation
from cosplace.training.batches import CLASS_ORDER, ITEM, REPLACEMENTS, GroupImages
from cosplace.training.groups import Group
from cosplace.training.places import Places

CANDIDATES = 20  # places tried for each place of a batch, before near ones fill it
CHUNK = 4096  # places of a pass that are prepared at once
PLACES, PHOTOS = 1 + np.array([CLASS_ORDER, ITEM]) + REPLACEMENTS  # kinds of random draws, as those of `batches`


class PlaceImages(GroupImages):
    """The training items of an epoch: items in a row are `photos_per_place` photos of one place.

    group: the places as a group, whose classes they are.  schedule: (num_batches, P) int64, the places of each batch.
    """

    def __init__(
        self,
        group: Group,
        schedule: np.ndarray,
        *,
        seed: int,
        epoch: int,
        settings: Augmentation,
        photos_per_place: int,
        stream: int = 0,
    ) -> None:
        self.schedule, self.photos_per_place = schedule, photos_per_place
        super().__init__(group, seed=seed, epoch=epoch, settings=settings, stream=stream)

    def _create_caches(self) -> None:
        super()._create_caches()
        self.photo_order = lru_cache(maxsize=64)(self._photo_order)

    def __getstate__(self) -> dict:
        return {key: value for key, value in super().__getstate__().items() if key != "photo_order"}

    def _photo_order(self, visit: int, class_size: int) -> np.ndarray:
        return self._generator(int(PHOTOS), visit).permutation(class_size)

    def class_of_item(self, index: int) -> int:
        """The place of item `index`."""
        batch, position = divmod(index // self.photos_per_place, self.schedule.shape[1])
        return int(self.schedule[batch, position])

    def image_of_item(self, index: int, class_size: int, number: float) -> int:
        """Which photo of its place item `index` shows: different ones within a batch, where the place has enough."""
        visit, position = divmod(index, self.photos_per_place)
        return int(self.photo_order(visit, class_size)[position % class_size])


def schedule_places(places: Places, places_per_batch: int, num_batches: int, *, seed: int, epoch: int) -> np.ndarray:
    """Places of each batch, (num_batches, P) int64, P at most `places_per_batch`.

    Each pass over the places has a new random order; a place that is a neighbor of one in the batch waits for the next
    batch.  If the places are so close together that a batch cannot be filled, neighbors fill it.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, int(PLACES), 0]))
    size = min(places_per_batch, len(places))
    schedule = np.empty((num_batches, size), np.int64)
    waiting: list[int] = []
    for batch in range(num_batches):
        # Enough to choose from; a place of the previous pass comes first.
        while len(waiting) < 2 * size or len(set(waiting)) < size:
            waiting += generator.permutation(len(places)).tolist()
        chosen: list[int] = []
        excluded: set[int] = set()
        for place in waiting:
            if place not in excluded:
                chosen.append(place)
                excluded |= {place, *places.neighbors[place].tolist()}
            if len(chosen) == size:
                break
        for place in waiting:
            if len(chosen) < size and place not in chosen:
                chosen.append(place)
        schedule[batch] = chosen
        for place in chosen:
            waiting.remove(place)  # the first time it waits
    return schedule


# --- places by their locations ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceLocations:
    """Where C places are.  Two places are near if a photo of one may be less than `radius_m` from one of the other."""

    centers: np.ndarray  # (C, 2) float64, meters east and north; (C, 3), earth-centered, if in several UTM zones
    reaches_m: np.ndarray  # (C,) float64, from the center to the farthest photo of a place, at most `radius_m`
    radius_m: float

    def are_near(self, places: np.ndarray) -> np.ndarray:
        """Which pairs of some places (n,) are near, (n, n) bool; a place is near itself unless its position is nan."""
        centers, reaches = self.centers[places], self.reaches_m[places]
        apart = np.linalg.norm(centers[:, None] - centers[None], axis=2)
        return apart < self.radius_m + reaches[:, None] + reaches[None]


@dataclass(slots=True)
class _Candidate:
    place: int
    cell: tuple[int, ...]  # of a grid whose cells are so large that near places are in the same or adjacent cells
    center: list[float]
    reach_m: float


def spread_places(
    locations: PlaceLocations, places_per_batch: int, num_batches: int, *, seed: int, epoch: int, stream: int = 0
) -> np.ndarray:
    """Places of each batch, (num_batches, P) int64: P different places, none near another.

    Each pass over the places has a new random order, without a place twice; the places of a pass that are near others
    of a batch wait for the next one, and come first there.  If CANDIDATES x P places in a row do not fill a batch, it
    gets near places as well, whose pairs the loss must leave out.  There must be P places or more.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, stream, int(PLACES), 0]))
    passes = _passes(locations, generator)
    waiting: deque[_Candidate] = deque()
    schedule = np.empty((num_batches, places_per_batch), np.int64)
    for batch in range(num_batches):
        chosen: dict[int, None] = {}  # in order
        skipped: list[_Candidate] = []
        taken: defaultdict[tuple[int, ...], list[_Candidate]] = defaultdict(list)
        for _ in range(CANDIDATES * places_per_batch):
            one = waiting.popleft() if waiting else next(passes)
            if one.place in chosen or _is_near_any(one, taken, locations.radius_m):
                skipped.append(one)
                continue
            chosen[one.place] = None
            taken[one.cell].append(one)
            if len(chosen) == places_per_batch:
                break
        rest: list[_Candidate] = []
        for one in skipped:
            if len(chosen) < places_per_batch and one.place not in chosen:
                chosen[one.place] = None
            else:
                rest.append(one)
        while len(chosen) < places_per_batch:
            one = waiting.popleft() if waiting else next(passes)
            if one.place in chosen:
                rest.append(one)
            chosen[one.place] = None
        waiting.extendleft(reversed(rest))
        schedule[batch] = list(chosen)
    return schedule


def _passes(locations: PlaceLocations, generator: np.random.Generator) -> Iterator[_Candidate]:
    """All places in random order, again and again."""
    side = locations.radius_m + 2 * float(locations.reaches_m.max(initial=0.0)) + 1.0
    while True:
        order = generator.permutation(len(locations.centers))
        for first in range(0, len(order), CHUNK):
            places = order[first : first + CHUNK]
            centers = np.nan_to_num(locations.centers[places])
            cells = np.floor(centers / side).astype(np.int64)
            rows = (places, cells, locations.centers[places], locations.reaches_m[places])
            for place, cell, center, reach_m in zip(*(values.tolist() for values in rows), strict=True):
                yield _Candidate(place, tuple(cell), center, reach_m)


def _is_near_any(one: _Candidate, taken: dict[tuple[int, ...], list[_Candidate]], radius_m: float) -> bool:
    for step in product((-1, 0, 1), repeat=len(one.cell)):
        for other in taken.get(tuple(a + b for a, b in zip(one.cell, step, strict=True)), ()):
            if math.dist(one.center, other.center) < radius_m + one.reach_m + other.reach_m:
                return True
    return False
