"""Places, batches of places, losses, weight averages."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from PIL import Image

from cosplace.models.network import GeoLocalizationNet
from cosplace.photos.image_list import image_list
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.training.augmentation import Augmentation
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.heading_check import headings_fit, share_above
from cosplace.training.metric_losses import PlaceCosFace, new_loss
from cosplace.training.place_batches import PlaceImages, schedule_places
from cosplace.training.places import HEADING_RANGE_DEG, MIN_PHOTOS, NEIGHBOR_M, Viewpoints, as_groups, form_places

METERS = st.floats(-200, 200, allow_nan=False)


def turn(a: np.ndarray, b: float) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(np.cos(np.radians(a - b)), -1, 1)))


@settings(max_examples=50, deadline=None)
@given(
    points=numpy_strategies.arrays(np.float64, st.tuples(st.integers(1, 60), st.just(2)), elements=METERS),
    heading_seed=st.none() | st.integers(0, 100),
    radius_m=st.sampled_from([5.0, 20.0]),
)
def test_photos_of_a_place_are_close_and_look_the_same_way(
    points: np.ndarray, heading_seed: int | None, radius_m: float
) -> None:
    headings = None if heading_seed is None else np.random.default_rng(heading_seed).uniform(0, 360, len(points))
    places = form_places(Viewpoints(points=points, headings=headings), radius_m)
    assert len(set(places.rows.tolist())) == len(places.rows)  # no photo is in two places
    for number, middle in enumerate(places.middles.tolist()):
        rows = places.rows[places.starts[number] : places.starts[number + 1]]
        assert len(rows) >= MIN_PHOTOS
        assert middle in rows
        assert (np.linalg.norm(points[rows] - points[middle], axis=1) <= radius_m + 1e-9).all()
        if headings is not None:
            assert (turn(headings[rows], headings[middle]) <= HEADING_RANGE_DEG + 1e-6).all()
        others = [other for other in range(len(places)) if other != number]
        near = {o for o in others if np.linalg.norm(points[places.middles[o]] - points[middle]) <= NEIGHBOR_M - 1e-9}
        if headings is None:
            assert near <= set(places.neighbors[number].tolist()) <= set(others)


def test_the_radius_grows_where_photos_are_few() -> None:
    close = np.repeat(np.arange(20) * 100.0, 5) + np.tile(np.arange(5) * 2.0, 20)
    sparse = np.arange(100) * 8.0  # one drive, a photo every 8 m
    assert form_places(Viewpoints(points=np.stack([close, close * 0], 1), headings=None)).radius_m == 10
    assert form_places(Viewpoints(points=np.stack([sparse, sparse * 0], 1), headings=None)).radius_m > 10


def test_headings_around_north_are_one_direction() -> None:
    places = form_places(Viewpoints(points=np.zeros((4, 2)), headings=np.array([350.0, 5.0, 180.0, 190.0])), 10)
    assert sorted(np.diff(places.starts).tolist()) == [2, 2]


# --- batches ---------------------------------------------------------------------------------------------------------


def row_of_places(count: int, apart_m: float, photos: int = 5) -> Viewpoints:
    east = np.repeat(np.arange(count) * apart_m, photos) + np.tile(np.linspace(-2, 2, photos), count)
    return Viewpoints(points=np.stack([east, east * 0], 1), headings=None)


def test_each_place_is_visited_equally_often_and_neighbors_are_apart() -> None:
    places = form_places(row_of_places(40, 30.0), 10)
    schedule = schedule_places(places, 4, 50, seed=3, epoch=1)
    visits = Counter(schedule.reshape(-1).tolist())
    assert len(visits) == 40
    assert max(visits.values()) - min(visits.values()) <= 2
    for batch in schedule.tolist():
        assert not any(set(places.neighbors[place].tolist()) & set(batch) for place in batch)
    assert (schedule != schedule_places(places, 4, 50, seed=4, epoch=1)).any()


def test_a_small_area_still_fills_its_batches() -> None:
    places = form_places(row_of_places(6, 15.0), 5)  # all within 75 m
    assert [sorted(batch) for batch in schedule_places(places, 8, 3, seed=0, epoch=0).tolist()] == [list(range(6))] * 3


def test_photos_of_a_place_in_a_batch_differ() -> None:
    viewpoints = row_of_places(12, 100.0)
    places = form_places(viewpoints, 10)
    images = image_list(Path("photos"), [f"{row:03d}.jpg" for row in range(len(viewpoints))])
    group = as_groups(places, images, viewpoints)[0]
    schedule = schedule_places(places, 3, 5, seed=1, epoch=0)
    items = PlaceImages(group, schedule, seed=1, epoch=0, settings=Augmentation(image_size=32), photos_per_place=4)
    for visit in range(15):
        labels = {items.class_of_item(4 * visit + photo) for photo in range(4)}
        chosen = [items.image_of_item(4 * visit + photo, 5, 0.0) for photo in range(4)]
        assert len(labels) == 1
        assert len(set(chosen)) == 4
        place = labels.pop()
        names = {group.image_name(int(group.class_starts[place]) + one) for one in chosen}
        assert names <= {images.name(row) for row in places.rows[places.starts[place] : places.starts[place + 1]]}
    assert {items.image_of_item(photo, 2, 0.0) for photo in range(4)} == {0, 1}  # of a place with two photos


# --- losses ----------------------------------------------------------------------------------------------------------


def multi_similarity_formula(x: torch.Tensor, labels: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
    """Wang et al., CVPR 2019, equations 10 to 12: pair mining, then the loss."""
    similarity = x @ x.T
    total = torch.zeros(())
    for i in range(len(x)):
        same = (labels == labels[i]) & (torch.arange(len(x)) != i)
        other = labels != labels[i]
        positives = [s for s in similarity[i][same] if s - 0.1 < similarity[i][other].max()]
        negatives = [s for s in similarity[i][other & ~ignored[i]] if s + 0.1 > similarity[i][same].min()]
        if positives:
            total = total + torch.log1p(sum(torch.exp(-1.0 * s) for s in positives)) / 1.0
        if negatives:
            total = total + torch.log1p(sum(torch.exp(50.0 * s) for s in negatives)) / 50.0
    return total / len(x)


@pytest.mark.parametrize("apart_m", [100.0, 30.0])  # without neighbors, and with some
def test_multi_similarity_is_the_papers_formula_and_neighbors_are_no_negatives(apart_m: float) -> None:
    pytest.importorskip("pytorch_metric_learning")
    places = form_places(row_of_places(6, apart_m), 10)
    x = F.normalize(torch.randn(24, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(6).repeat_interleave(4)
    ignored = torch.tensor([[int(b) in places.neighbors[int(a)] for b in labels] for a in labels])
    assert ignored.any() == (apart_m < NEIGHBOR_M)
    loss = new_loss("multi_similarity", 8, places, seed=0)(x, labels)
    torch.testing.assert_close(loss, multi_similarity_formula(x, labels, ignored))


def test_cosface_leaves_neighbors_out_of_the_sum() -> None:
    places = form_places(row_of_places(6, 30.0), 10)
    x, labels = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 5])
    loss = PlaceCosFace(8, places, seed=0)
    logits = loss.product(x, labels)
    assert isinstance(loss.product, MarginCosineProduct)
    expected = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        kept = [place for place in range(6) if place not in places.neighbors[label]]
        expected.append(torch.logsumexp(row[kept], 0) - row[label])
    torch.testing.assert_close(loss(x, labels), torch.stack(expected).mean())
    assert loss.product.weight.grad_fn is None


def test_weights_are_averaged_with_their_statistics() -> None:
    from cosplace.training.weight_averaging import WeightAverage

    torch.manual_seed(0)
    model = GeoLocalizationNet("ResNet18_Small", 4)
    average = WeightAverage(model, decay=0.5)
    first = copy.deepcopy(model.state_dict())
    expected = {key: value.double() for key, value in first.items()}
    for step in range(1, 4):
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.randn(value.shape))
        decay = min(0.5, step / (10 + step))
        expected = {k: decay * e + (1 - decay) * model.state_dict()[k].double() for k, e in expected.items()}
        average.update(model)
    for key, value in average.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


# --- headings --------------------------------------------------------------------------------------------------------


def test_the_share_above_is_the_area_under_the_roc_curve() -> None:
    from scipy.stats import mannwhitneyu

    random = np.random.default_rng(0)
    values, others = random.integers(0, 20, 50).astype(float), random.integers(5, 25, 70).astype(float)
    expected = mannwhitneyu(values, others).statistic / (50 * 70)
    assert share_above(values, others) == pytest.approx(expected)


class _Views(torch.nn.Module):
    """The descriptor of a photo is its mean color."""

    fc_output_dim = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(images.mean(dim=(2, 3)), dim=1)


@pytest.mark.parametrize("right", [True, False])
def test_wrong_headings_are_noticed(tmp_path: Path, right: bool) -> None:
    random = np.random.default_rng(0)
    colors = {0: (255, 0, 0), 90: (0, 255, 0), 180: (0, 0, 255), 270: (255, 255, 0)}
    names, points, headings = [], [], []
    for number in range(160):
        heading = 90 * (number % 4)
        Image.new("RGB", (16, 16), colors[heading]).save(tmp_path / f"{number:03d}.png")
        names.append(f"{number:03d}.png")
        points.append([100.0 * (number // 16), random.uniform(0, 5)])
        headings.append(heading + random.uniform(-10, 10))
    if not right:
        headings = random.uniform(0, 360, 160).tolist()
    images = image_list(tmp_path, names)
    found = headings_fit(_Views(), images, np.array(points), np.array(headings), settings=ExtractionSettings())
    assert found == right
