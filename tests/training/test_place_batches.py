"""Batches of places by their locations: distinct places that are apart, distinct photos, each place once a pass."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.training.augmentation import Augmentation
from cosplace.training.place_batches import CANDIDATES, PlaceImages, PlaceLocations, spread_places
from tests.training.test_place_sources import places_of


def row_of_places(count: int, apart_m: float, *, dimensions: int = 2) -> PlaceLocations:
    centers = np.zeros((count, dimensions))
    centers[:, 0] = apart_m * np.arange(count)
    return PlaceLocations(centers=centers, reaches_m=np.zeros(count), radius_m=25.0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(12, 80),
    per_batch=st.integers(2, 6),
    side_m=st.sampled_from([50.0, 500.0, 20_000.0]),
    dimensions=st.sampled_from([2, 3]),
    unknown=st.booleans(),
)
def test_places_of_a_batch_are_distinct_and_apart_where_the_area_allows_it(
    seed: int, count: int, per_batch: int, side_m: float, dimensions: int, unknown: bool
) -> None:
    random = np.random.default_rng(seed)
    centers, reaches = random.uniform(-side_m, side_m, (count, dimensions)), random.uniform(0, 20, count)
    if unknown:
        centers[0] = np.nan
    locations = PlaceLocations(centers=centers, reaches_m=reaches, radius_m=25.0)
    schedule = spread_places(locations, per_batch, 30, seed=seed, epoch=3)
    assert schedule.shape == (30, per_batch)
    assert (schedule == spread_places(locations, per_batch, 30, seed=seed, epoch=3)).all()
    for other in ({"seed": seed + 1, "epoch": 3}, {"seed": seed, "epoch": 4}, {"seed": seed, "epoch": 3, "stream": 1}):
        assert (schedule != spread_places(locations, per_batch, 30, **other)).any()
    for batch in schedule.tolist():
        assert len(set(batch)) == per_batch
        near = [
            (a, b)
            for i, a in enumerate(batch)
            for b in batch[:i]
            if np.linalg.norm(centers[a] - centers[b]) < 25.0 + reaches[a] + reaches[b]
        ]
        if side_m == 20_000.0 and count >= 2 * per_batch:
            assert not near
    visits = Counter(schedule.reshape(-1).tolist())
    assert len(visits) == count or 30 * per_batch < 3 * count


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(20, 60), per_batch=st.integers(2, 7))
def test_no_place_is_seen_twice_before_all_are_seen_once(seed: int, count: int, per_batch: int) -> None:
    locations = row_of_places(count, 1000.0)
    one_pass = spread_places(locations, per_batch, count // per_batch, seed=seed, epoch=0).reshape(-1)
    assert len(set(one_pass.tolist())) == len(one_pass)
    visits = np.bincount(spread_places(locations, per_batch, 40, seed=seed, epoch=0).reshape(-1), minlength=count)
    assert visits.max() - visits.min() <= 1 + (per_batch > 1)


def test_near_places_wait_for_the_next_batch() -> None:
    locations = row_of_places(40, 20.0)  # each is near the one before and the one after it
    schedule = spread_places(locations, 8, 50, seed=1, epoch=0)
    for batch in schedule.tolist():
        assert (np.diff(np.sort(batch)) >= 2).all()
    visits = np.bincount(schedule.reshape(-1), minlength=40)
    assert visits.max() - visits.min() <= 2


def test_a_small_area_is_filled_with_near_places() -> None:
    locations = row_of_places(6, 1.0)
    schedule = spread_places(locations, 6, 3, seed=0, epoch=0)
    assert np.sort(schedule).tolist() == [list(range(6))] * 3
    assert locations.are_near(np.arange(6)).all()


def test_a_large_dense_area_is_scheduled_without_looking_at_all_places_for_each_batch() -> None:
    class Counted(np.ndarray):
        taken = 0

        def __getitem__(self, key):
            Counted.taken += 1
            return super().__getitem__(key)

    locations = row_of_places(20_000, 0.0)
    counted = PlaceLocations(
        centers=locations.centers.view(Counted), reaches_m=locations.reaches_m, radius_m=locations.radius_m
    )
    schedule = spread_places(counted, 4, 50, seed=0, epoch=0)
    assert all(len(set(batch)) == 4 for batch in schedule.tolist())
    assert Counted.taken <= 2 + 50 * 4 * (CANDIDATES + 1) // 4096 * 2  # read in chunks, far from 20,000 for each batch


@pytest.mark.parametrize("stream", [0, 1])
def test_a_batch_has_distinct_photos_of_each_place(tmp_path, stream: int) -> None:
    places = places_of(tmp_path, {f"p{number:02d}": 4 + number % 3 for number in range(9)})
    group = places.groups[0]
    schedule = spread_places(row_of_places(9, 100.0), 3, 4, seed=5, epoch=1)
    items = PlaceImages(
        group, schedule, seed=5, epoch=1, settings=Augmentation(image_size=32), photos_per_place=4, stream=stream
    )
    chosen = []
    for item in range(3 * 4 * 4):
        place = items.class_of_item(item)
        assert place == schedule[item // 12, item // 4 % 3]
        size = group.class_size(place)
        chosen.append((place, items.image_of_item(item, size, 0.0)))
        assert 0 <= chosen[-1][1] < size
    for batch in range(4):
        assert len(set(chosen[12 * batch : 12 * batch + 12])) == 12
