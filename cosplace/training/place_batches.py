"""Batches of several photos of each of several places, for losses that compare photos with each other.

No two places of a batch are neighbors, so photos of different places are negatives.  As in `batches`, every random draw
is a function of (seed, epoch, item).
"""

from functools import lru_cache

import numpy as np

from cosplace.training.augmentation import Augmentation
from cosplace.training.batches import CLASS_ORDER, ITEM, REPLACEMENTS, GroupImages
from cosplace.training.groups import Group
from cosplace.training.places import Places

PLACES, PHOTOS = 1 + np.array([CLASS_ORDER, ITEM]) + REPLACEMENTS  # kinds of random draws, as those of `batches`


class PlaceImages(GroupImages):
    """The training items of an epoch: items in a row are `photos_per_place` photos of one place.

    group: the places as a group (`as_groups`).
    """

    def __init__(
        self,
        group: Group,
        places: Places,
        *,
        seed: int,
        epoch: int,
        settings: Augmentation,
        places_per_batch: int,
        photos_per_place: int,
        num_batches: int,
    ) -> None:
        self.places_per_batch, self.photos_per_place = places_per_batch, photos_per_place
        self.schedule = schedule_places(places, places_per_batch, num_batches, seed=seed, epoch=epoch)  # (batches, P)
        super().__init__(group, seed=seed, epoch=epoch, settings=settings)

    def _create_caches(self) -> None:
        super()._create_caches()
        self.photo_order = lru_cache(maxsize=64)(self._photo_order)

    def __getstate__(self) -> dict:
        return {key: value for key, value in super().__getstate__().items() if key != "photo_order"}

    def _photo_order(self, visit: int, class_size: int) -> np.ndarray:
        return self._generator(int(PHOTOS), visit).permutation(class_size)

    def class_of_item(self, index: int) -> int:
        """The place of item `index`."""
        batch, position = divmod(index // self.photos_per_place, self.places_per_batch)
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
