"""Query policies, scales and flip: each against a plain computation from its definition."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cosplace.config.evaluation import EvalConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError, DatasetError, ImageError
from cosplace.models.averaging import AveragedModel, averaged
from cosplace.photos.crops import POLICIES, Crop, crop_photo
from cosplace.photos.image_list import image_list
from cosplace.photos.normalization import normalize
from cosplace.photos.opening import open_image
from cosplace.photos.resizing import resize
from cosplace.report.results import evaluation_summary
from cosplace.retrieval.crop_ranking import smallest, vote
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import evaluate, evaluation_settings
from cosplace.retrieval.extraction import ExtractionSettings, extract
from cosplace.retrieval.query_views import database_shape

NUM_DATABASE, NUM_QUERIES, SIZE = 14, 5, 32


class SmallNetwork(nn.Module):
    """(B, 3, H, W) -> (B, 6): a random convolution and the mean, as unit vectors; sees left and right differently."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 3, 5, 5, generator=generator))

    def forward(self, photos: Tensor) -> Tensor:
        return functional.normalize(functional.conv2d(photos, self.weight, stride=3).relu().mean((2, 3)), dim=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalDataset:
    """Database photos of 48 x 36 pixels, queries of other shapes; positions 100 m apart."""
    folder, rng = tmp_path_factory.mktemp("views"), np.random.default_rng(3)
    shapes = [(40, 70), (70, 40), (36, 48), (33, 33), (90, 50)]  # height, width
    names = {}
    for part, sizes in (("database", NUM_DATABASE * [(36, 48)]), ("queries", shapes)):
        (folder / part).mkdir()
        names[part] = [f"{number:02d}.png" for number in range(len(sizes))]
        for name, (height, width) in zip(names[part], sizes, strict=True):
            coarse = rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / part / name)
    positions = np.stack([100.0 * np.arange(NUM_DATABASE), np.zeros(NUM_DATABASE)], axis=1)
    return RetrievalDataset(
        name="views",
        folder=folder,
        database=image_list(folder / "database", names["database"]),
        queries=image_list(folder / "queries", names["queries"]),
        database_positions=positions,
        query_positions=positions[:NUM_QUERIES],
    )


# --- the plain computation -------------------------------------------------------------------------------------------


def short_side(photo: Tensor, size: int) -> Tensor:
    _, height, width = photo.shape
    if height <= width:
        return resize(photo, size, int(size * width / height))
    return resize(photo, int(size * height / width), size)


def central(photo: Tensor, height: int, width: int) -> Tensor:
    """Scaled until it covers the size; the same number of rows or columns is cut off at both ends."""
    _, own_height, own_width = photo.shape
    scale = max(height / own_height, width / own_width)
    covering = resize(photo, max(height, int(own_height * scale + 1e-9)), max(width, int(own_width * scale + 1e-9)))
    top, left = round((covering.shape[1] - height) / 2), round((covering.shape[2] - width) / 2)
    return covering[:, top : top + height, left : left + width]


def five(photo: Tensor, size: int) -> list[Tensor]:
    photo = short_side(photo, size)
    _, height, width = photo.shape
    corners = [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size)]
    corners.append((round((height - size) / 2), round((width - size) / 2)))
    return [photo[:, top : top + size, left : left + size] for top, left in corners]


def describe(photo: Tensor) -> np.ndarray:
    with torch.inference_mode():
        return SmallNetwork()(normalize(photo[None]))[0].numpy().astype(np.float64)


def photos(images) -> list[Tensor]:
    return [open_image(images.path(row)) for row in range(len(images))]


def expected_predictions(dataset: RetrievalDataset, policy: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and squared distances by a loop over queries, from the definitions."""
    database = np.stack([describe(photo) for photo in photos(dataset.database)])
    one_crop = {
        "native": lambda photo: photo,
        "short_side": lambda photo: short_side(photo, SIZE),
        "single_query": lambda photo: short_side(photo, SIZE),
        "square": lambda photo: resize(photo, SIZE, SIZE),
        "central_crop": lambda photo: central(photo, 36, 48),
    }
    rows = []
    for photo in photos(dataset.queries):
        if policy in one_crop:
            squared = ((describe(one_crop[policy](photo)) - database) ** 2).sum(1)
        else:
            crops = np.stack([describe(crop) for crop in five(photo, SIZE)])
            if policy == "five_crops":
                mean = crops.mean(0)
                squared = ((mean / np.linalg.norm(mean) - database) ** 2).sum(1)
            else:
                each = ((crops[:, None] - database) ** 2).sum(2)  # (5, R)
                if policy == "maj_voting":
                    order = each.argsort(axis=1)
                    lists = [row[:10].tolist() for row in order]
                    for n in (1, 5, 10):
                        firsts = [image for one in lists for image in one[:n]]
                        for crop, one in enumerate(lists):
                            for image in one[:n]:
                                if firsts.count(image) > 1:
                                    each[crop, image] -= 0.01 * firsts.count(image) / n
                squared = each.min(0)
        rows.append(squared)
    squared = np.stack(rows)
    order = squared.argsort(axis=1)[:, :k]
    return order, np.take_along_axis(squared, order, 1)


# --- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_is_its_definition(dataset: RetrievalDataset, policy: str) -> None:
    k = 10 if policy == "maj_voting" else NUM_DATABASE
    found = evaluate(SmallNetwork(), dataset, recall_values=(1, k), query_policy=policy, query_size=SIZE)
    predictions, squared = expected_predictions(dataset, policy, k)
    if policy != "maj_voting":  # whose order is that after the votes
        np.testing.assert_allclose(found.squared_distances, squared, atol=1e-5)
    gaps = np.diff(squared, axis=1, append=9) > 1e-4  # where the order is certain
    gaps &= np.diff(squared, axis=1, prepend=-9) > 1e-4
    assert gaps.mean() > 0.2
    assert np.array_equal(found.predictions[gaps], predictions[gaps])
    assert found.views["query_policy"] == policy


def test_policies_differ_and_the_database_keeps_its_size(dataset: RetrievalDataset) -> None:
    distances = {
        policy: evaluate(SmallNetwork(), dataset, recall_values=(1,), query_policy=policy, query_size=SIZE)
        for policy in POLICIES
    }
    plain = evaluate(SmallNetwork(), dataset, recall_values=(1,))
    assert np.array_equal(distances["native"].squared_distances, plain.squared_distances)
    assert np.array_equal(distances["short_side"].squared_distances, distances["single_query"].squared_distances)
    different = {found.squared_distances.tobytes() for found in distances.values()}
    assert len(different) == len(POLICIES) - 1
    resized_all = evaluate(SmallNetwork(), dataset, recall_values=(1,), image_size=SIZE)
    assert not np.array_equal(distances["short_side"].squared_distances, resized_all.squared_distances)


@given(
    images=st.lists(st.permutations(range(12)), min_size=5, max_size=5),
    distances=arrays.arrays(np.float32, (5, 12), elements=st.floats(0, 4, width=32)),
)
def test_votes_and_the_smallest_distances(images: list[list[int]], distances: np.ndarray) -> None:
    rows, squared = np.array(images), np.sort(distances, axis=1)
    voted = vote(rows, squared)
    expected = squared.astype(np.float64)
    for n in (1, 5, 10):
        for crop in range(5):
            for rank in range(n):
                count = int((rows[:, :n] == rows[crop, rank]).sum())
                expected[crop, rank] -= 0.01 * count / n if count > 1 else 0
    np.testing.assert_allclose(voted, expected, atol=1e-9)
    found, smallest_squared = smallest(rows, squared, squared, 7)
    best = [min(float(squared[crop][images[crop].index(image)]) for crop in range(5)) for image in range(12)]
    order = sorted(range(12), key=lambda image: (best[image], image))[:7]  # the lower image on ties
    assert found.tolist() == order
    assert smallest_squared.tolist() == [best[image] for image in order]
    by_votes, their_distances = smallest(rows, voted, squared, 7)
    least = [min(float(voted[crop][images[crop].index(image)]) for crop in range(5)) for image in range(12)]
    assert [least[image] for image in by_votes] == sorted(least)[:7]
    assert their_distances.tolist() == [best[image] for image in by_votes]


def test_unreadable_queries_are_misses_with_several_crops(dataset: RetrievalDataset, tmp_path: Path) -> None:
    folder = tmp_path / "queries"
    folder.mkdir()
    for row in range(NUM_QUERIES):
        content = b"damaged" if row == 2 else dataset.queries.path(row).read_bytes()
        (folder / dataset.queries.name(row)).write_bytes(content)
    queries = image_list(folder, [dataset.queries.name(row) for row in range(NUM_QUERIES)])
    damaged = replace(dataset, queries=queries)
    for policy in ("five_crops", "nearest_crop", "maj_voting"):
        options = {"recall_values": (1,), "query_policy": policy, "query_size": SIZE}
        with pytest.raises(ImageError, match=r"02\.png"):
            evaluate(SmallNetwork(), damaged, **options)
        found = evaluate(SmallNetwork(), damaged, skip_unreadable=True, **options)
        whole = evaluate(SmallNetwork(), dataset, **options)
        readable = np.arange(NUM_QUERIES) != 2
        assert np.array_equal(found.predictions[readable], whole.predictions[readable])
        assert found.predictions[2].tolist() == [-1] and [one.index for one in found.unreadable_queries] == [2]


def test_descriptors_of_crops_are_kept_in_a_folder(dataset: RetrievalDataset, tmp_path: Path) -> None:
    options = {"recall_values": (1,), "query_policy": "nearest_crop", "query_size": SIZE}
    plain = evaluate(SmallNetwork(), dataset, **options)
    for _ in range(2):
        kept = evaluate(SmallNetwork(), dataset, descriptors_folder=tmp_path, **options)
        assert np.array_equal(kept.predictions, plain.predictions)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["database", *(f"queries-{crop}" for crop in range(5))]


def test_central_crop_needs_a_database_of_one_size(dataset: RetrievalDataset) -> None:
    mixed = replace(dataset, database=dataset.queries, database_positions=dataset.query_positions)
    with pytest.raises(DatasetError, match=r"different sizes, such as .*Use another --query_policy"):
        evaluate(SmallNetwork(), mixed, recall_values=(1,), query_policy="central_crop")


def test_central_crop_measures_all_photos(tmp_path: Path) -> None:
    names = [f"{number:03d}.jpg" for number in range(100)]
    for name in names:
        Image.new("RGB", (48, 36)).save(tmp_path / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (36, 48)).save(tmp_path / names[1], exif=turned)  # 48 x 36, upright
    (tmp_path / names[0]).write_bytes(b"damaged")  # the extraction reports it
    database = image_list(tmp_path, names)
    assert database_shape(database, None) == (36, 48)
    assert database_shape(database, 18) == (18, 24)
    Image.new("RGB", (48, 37)).save(tmp_path / names[3])
    with pytest.raises(DatasetError, match=r"48 x 36 and 48 x 37 \(003\.jpg\)"):
        database_shape(database, None)
    with pytest.raises(ImageError, match=r"000\.jpg"):
        database_shape(image_list(tmp_path, names[:1]), None)


def test_policies_and_scales_are_checked(dataset: RetrievalDataset) -> None:
    with pytest.raises(ConfigError, match=r"must be one of native, .* got 'ten_crops'"):
        evaluate(SmallNetwork(), dataset, query_policy="ten_crops")
    with pytest.raises(ConfigError, match="five_crops needs a size"):
        evaluate(SmallNetwork(), dataset, query_policy="five_crops")
    for scales in ((), (1.0, 1.0), (0.0, 1.0), (-1.0,), tuple(range(1, 12))):
        with pytest.raises(ConfigError, match="scales must be"):
            ExtractionSettings(scales=scales)


def test_crops_of_any_shape() -> None:
    photo = torch.arange(3 * 20 * 30, dtype=torch.float32).reshape(3, 20, 30).to(torch.uint8)
    for place in ("center", "top left", "bottom right", "whole"):
        for height, width in ((20, 30), (7, 7), (40, 11), (5, 60)):
            assert crop_photo(photo, Crop(height=height, width=width, place=place)).shape == (3, height, width)
    assert torch.equal(crop_photo(photo, Crop(height=20, width=20, place="top right")), photo[:, :, 10:])
    with pytest.raises(ImageError, match="too long and narrow"):
        crop_photo(torch.zeros(3, 4, 40_000, dtype=torch.uint8), Crop(height=512, width=512))


# --- scales and flip -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), True), ((0.5, 1.0, 1.4), False), ((0.7, 1.3), True)])
def test_averages_are_the_normalized_mean(dataset: RetrievalDataset, scales: tuple[float, ...], flip: bool) -> None:
    found = extract(SmallNetwork(), dataset.queries, scales=scales, flip=flip).descriptors[:]
    for row, photo in enumerate(photos(dataset.queries)):
        parts, network = [], SmallNetwork()
        for scale in scales:
            height, width = round(scale * photo.shape[1]), round(scale * photo.shape[2])
            scaled = functional.interpolate(normalize(photo[None]), (height, width), mode="bilinear", antialias=True)
            for view in (scaled, scaled.flip(3))[: 1 + flip]:
                with torch.inference_mode():
                    parts.append(network(view)[0])
        mean = torch.stack(parts).mean(0)
        np.testing.assert_allclose(found[row], (mean / mean.norm()).numpy(), atol=1e-6)


def test_nothing_to_average_is_the_model_itself() -> None:
    network = SmallNetwork()
    assert averaged(network) is network
    assert isinstance(averaged(network, (0.5,)), AveragedModel)
    photo = torch.rand(1, 3, 20, 24)
    both = AveragedModel(network, flip=True)
    torch.testing.assert_close(both(photo), both(photo.flip(3)))


def test_the_database_is_averaged_too(dataset: RetrievalDataset) -> None:
    same = replace(dataset, queries=dataset.database, query_positions=dataset.database_positions)
    found = evaluate(SmallNetwork(), same, recall_values=(1,), scales=(0.7, 1.0), flip=True)
    assert found.recalls[1] == 100 and found.squared_distances.max() < 1e-10
    assert (found.views["scales"], found.views["flip"]) == ([0.7, 1.0], True)


def test_the_report_says_what_was_used(dataset: RetrievalDataset) -> None:
    plain = evaluation_summary(evaluate(SmallNetwork(), dataset, recall_values=(1,)), dataset)
    assert plain == "5 queries, 14 database images, at their original size; correct = within 25 m."
    options = {"query_policy": "five_crops", "query_size": SIZE, "scales": (0.7, 1.0), "flip": True}
    found = evaluation_summary(evaluate(SmallNetwork(), dataset, recall_values=(1,), **options), dataset)
    more = "Queries: five_crops at 32 pixels. Descriptors are averaged over scales 0.7, 1 and mirror images."
    assert found == f"{plain} {more}"


def test_settings_of_the_command() -> None:
    values = {"query_policy": "five_crops", "image_size": 64, "scales": [0.7, 1], "flip": True}
    found = evaluation_settings(from_values(EvalConfig, values), torch.device("cpu"))
    assert (found.query_policy, found.query_size) == ("five_crops", 64)
    assert (found.extraction.image_size, found.extraction.scales, found.extraction.flip) == (None, (0.7, 1), True)
    assert json.loads(json.dumps(found.extraction.scales)) == [0.7, 1]
