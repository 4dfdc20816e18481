"""Localizer on a small index, inputs of calibration, reranking."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosplace.engines.encoder import load_model
from cosplace.errors import PhotoIndexError
from cosplace.index.photo_index import open_index
from cosplace.localization.answers import Location, Match
from cosplace.localization.localizer import Localizer, needs_recalibration
from cosplace.localization.photo_changes import alter_photo, images_without_place
from cosplace.localization.reranking import CONFIRMED_CONFIDENCE, rerank
from cosplace.models.network import GeoLocalizationNet
from cosplace.photos.opening import open_image
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.retrieval.evaluation import evaluate
from tests.indexed_city import SIDE, queries, write_indexed_city
from tests.synthetic_dataset import place_image

pytestmark = pytest.mark.slow  # make check has a minute; make test runs all


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_indexed_city(tmp_path_factory.mktemp("localizer"))


def test_the_first_match_is_the_first_prediction_of_evaluation(city: Path) -> None:
    model = load_model(city / "model.pth", device="cpu")
    dataset = open_retrieval_dataset(city / "city" / "test")
    evaluation = evaluate(model.network, dataset, image_size=SIDE, recall_values=(1, 2))
    answers = Localizer(city / "index", exact=True, device="cpu").locate_many(
        [dataset.queries.path(row) for row in range(len(dataset.queries))]
    )
    first = [answer.neighbours[0].path for answer in answers]
    assert first == [str(dataset.database.path(int(row))) for row in evaluation.predictions[:, 0]]
    assert len(set(first)) > 3


def test_another_model_raises(city: Path) -> None:
    torch.manual_seed(1)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), city / "other.pth")
    with pytest.raises(PhotoIndexError, match=r"other\.pth"):
        Localizer(city / "index", encoder=load_model(city / "other.pth", image_size=SIDE, device="cpu"))


def test_another_model_of_more_dimensions_is_named(city: Path, tmp_path: Path) -> None:
    """An index may have the first dimensions of a model, but this model is not the index's."""
    torch.save(GeoLocalizationNet("ResNet18_Small", 32).state_dict(), tmp_path / "other.pth")
    localizer = Localizer(city / "index", model=str(tmp_path / "other.pth"), device="cpu")
    expected = r"was built with the model .*model\.pth \(checksum .*not with .*other\.pth .*Use that model, or build"
    with pytest.raises(PhotoIndexError, match=expected):
        localizer.locate(queries(city)[0])


def test_photos_in_memory_and_unreadable_photos(city: Path) -> None:
    localizer = Localizer(city / "index", device="cpu", min_confidence=0)
    path = queries(city)[0]
    with Image.open(path) as image:
        array = np.array(image.convert("RGB"))
    a, b = localizer.locate(path), localizer.locate(array, name="mine")
    assert b.photo == "mine" and a.neighbours[0].id == b.neighbours[0].id
    answers = list(localizer.answers([array, np.zeros((3,), np.uint8), path]))
    assert [hasattr(answer, "error") for answer in answers] == [False, True, False]


def test_an_index_needs_recalibration_after_a_change_of_size(city: Path, tmp_path: Path) -> None:
    shutil.copytree(city / "index", tmp_path / "index")
    with open_index(tmp_path / "index", write=True) as index:
        assert not needs_recalibration(index)
        index.remove(index.columns().ids[: len(index) // 2])
        assert needs_recalibration(index)
    with open_index(city / "bare") as index:
        assert not needs_recalibration(index)


def test_altered_photos_keep_their_shape_and_images_without_place_differ() -> None:
    rng = np.random.default_rng(0)
    photo = torch.from_numpy(place_image(0, 0)).permute(2, 0, 1)[:, :40]
    other = alter_photo(photo, rng)
    assert other.shape == photo.shape and other.dtype == torch.uint8 and not torch.equal(other, photo)
    assert alter_photo(photo[:, :1, :1], rng).shape == (3, 1, 1)
    images = images_without_place(10, rng, side=32)
    assert all(image.shape == (3, 32, 32) and image.dtype == torch.uint8 for image in images)
    assert images[0].float().mean() < 20 and not torch.equal(images[3], images[8])


def _random_texture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((480, 480), Image.Resampling.BICUBIC)


def test_reranking_confirms_only_photos_of_the_same_place(city: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    paths = []
    for number in range(3):
        _random_texture(number).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    _random_texture(1).crop((30, 20, 430, 440)).resize((420, 400)).save(tmp_path / "query.png")
    matches = tuple(
        Match(id=0, path=path, latitude=45.0 + n, longitude=7.0, heading=None, similarity=0.5, distance_m=1.0)
        for n, path in enumerate(paths)
    )
    doubtful = Location(photo="q", latitude=None, longitude=None, radius_m=None, confidence=0.2, unknown=True,
                        reason="", neighbours=matches)  # fmt: skip
    with open_index(city / "index") as index:
        found = rerank(index, doubtful, open_image(tmp_path / "query.png"), min_confidence=0.5)
        assert (found.unknown, found.confidence, found.latitude) == (False, CONFIRMED_CONFIDENCE, pytest.approx(46.0))
        assert "1.png" in found.reason and found.neighbours[1].distance_m == pytest.approx(0, abs=1e-3)
        _random_texture(8).save(tmp_path / "other.png")
        assert rerank(index, doubtful, open_image(tmp_path / "other.png"), min_confidence=0.5) == doubtful
        black = torch.zeros(3, 64, 64, dtype=torch.uint8)
        assert rerank(index, doubtful, black, min_confidence=0.5) == doubtful
        assert rerank(index, doubtful, open_image(tmp_path / "query.png"), min_confidence=0.99) == doubtful
