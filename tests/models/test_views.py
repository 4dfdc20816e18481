"""Views of photos: the descriptors of queries equal those of an evaluation with the same policy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cosplace.engines.encoder import Encoder
from cosplace.errors import ConfigError
from cosplace.models.averaging import averaged
from cosplace.models.views import PLAIN_VIEWS, PhotoViews, views_from_record
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.extraction import ExtractionSettings, extract
from cosplace.retrieval.query_views import combine, query_extractions

SETTINGS = [
    PhotoViews(),
    PhotoViews(query_policy="native"),
    PhotoViews(query_policy="short_side", query_size=24),
    PhotoViews(query_policy="square", query_size=20),
    PhotoViews(query_policy="five_crops", query_size=20),
    PhotoViews(query_policy="single_query", query_size=24),
    PhotoViews(query_policy="nearest_crop", query_size=20),
    PhotoViews(query_policy="maj_voting", query_size=20, flip=True),
    PhotoViews(scales=(0.5, 1.0), flip=True),
    PhotoViews(scales=(1.0, 1.5), query_policy="five_crops", query_size=16),
]
CENTRAL = PhotoViews(query_policy="central_crop", query_shape=(24, 40))


class Thirds(nn.Module):
    """Mean colors of nine parts, of unit length: sensitive to sizes, crops and mirroring."""

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(nn.functional.adaptive_avg_pool2d(photos, 3).flatten(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, (width, height) in enumerate(((60, 40), (40, 60), (50, 50))):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"@550000.0@4180000.0@10@S@{number}@.png")
    return folder


@pytest.mark.parametrize("views", SETTINGS, ids=lambda views: views.text() or "plain")
def test_descriptors_are_those_of_an_evaluation(views: PhotoViews, folder: Path) -> None:
    images = scan_images(folder)
    encoder = Encoder(Thirds(), image_size=32, device="cpu", views=views)
    plain = ExtractionSettings(image_size=32, device=torch.device("cpu"))
    network = averaged(Thirds(), views.scales, flip=views.flip)
    crops = [
        extract(network, images, one) for one in query_extractions(views.query_policy, views.query_size, plain, images)
    ]
    expected = combine(views.query_policy, crops)
    paths = [images.path(row) for row in range(len(images))]
    if isinstance(expected, tuple):
        descriptors = np.stack([crop.descriptors for crop in expected], axis=1)
    else:
        descriptors = expected.descriptors
    np.testing.assert_allclose(encoder.encode(paths), descriptors, atol=1e-6)
    assert encoder.encode([]).shape == (0, *descriptors.shape[1:])
    as_database = extract(network, images, plain).descriptors
    np.testing.assert_allclose(encoder.encode(paths, database=True), as_database, atol=1e-6)
    if views.query_policy is not None:
        crops = descriptors.reshape(len(paths), -1, encoder.dimension)
        assert np.abs(crops - as_database[:, None]).max() > 1e-3


@pytest.mark.parametrize("views", [*SETTINGS, CENTRAL], ids=lambda views: views.text() or "plain")
def test_a_record_gives_the_same_views(views: PhotoViews) -> None:
    assert views_from_record(views.record()) == views
    assert bool(views.record()) == (views != PLAIN_VIEWS) == bool(views.text())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"query_policy": "ten_crops", "query_size": 20}, "native, short_side, square, single_query, central_crop"),
        ({"query_policy": "central_crop"}, "query_shape"),
        ({"query_policy": "central_crop", "query_shape": (0, 8)}, "query_shape"),
        ({"query_policy": "central_crop", "query_shape": (8, 8), "query_size": 20}, "--query_size"),
        ({"query_policy": "native", "query_shape": (8, 8)}, "query_shape"),
        ({"query_policy": "maj_voting"}, "--query_size"),
        ({"query_policy": "square"}, "--query_size"),
        ({"query_size": 20}, "needs --query_policy"),
        ({"scales": (0.0,)}, "--scales"),
        ({"scales": ()}, "--scales"),
        ({"scales": (1.0,) * 11}, "at most 10 numbers"),
    ],
)
def test_views_that_make_no_sense_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PhotoViews(**values)
