"""The photos of a fine-tuning: splits, headings, refusals; the recipe; which models it starts from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import KDTree

from cosplace.config.finetuning import FinetuneConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError, CosPlaceError, DatasetError
from cosplace.models.network import GeoLocalizationNet
from cosplace.photos.names import format_image_name, utm_fields
from cosplace.training.finetuning_data import open_finetuning_photos
from cosplace.training.finetuning_start import name_imagenet_file, open_start
from cosplace.training.places import Viewpoints, form_places
from cosplace.training.recipe import Recipe, choose_recipe

PIXELS = Image.fromarray(np.zeros((32, 32, 3), np.uint8))


def write_photos(folder: Path, places: range, photos: int = 4, heading: str = "0", apart_m: float = 40.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for place in places:
        for photo in range(photos):
            name = format_image_name(
                utm_east=550_000 + apart_m * place + photo, utm_north=4_180_000.0, zone=10, letter="S",
                latitude=37.76689, longitude=-122.43231, pano_id=f"{place}-{photo}",
                heading=str(90 * photo) if heading == "all" else heading,
            )  # fmt: skip
            PIXELS.save(folder / name)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with train/ and val/."""
    write_photos(tmp_path / "train", range(30))
    write_photos(tmp_path / "val" / "database", range(100, 120), 2)
    write_photos(tmp_path / "val" / "queries", range(100, 120), 1, heading="1")
    return tmp_path


def test_splits_of_a_dataset_are_used_as_they_are(dataset: Path) -> None:
    photos = open_finetuning_photos(dataset)
    assert (len(photos.images), len(photos.val.database), len(photos.val.queries)) == (120, 40, 20)
    assert photos.test is None
    assert photos.headings is None  # 0 on all photos


def test_headings_are_used_where_they_are_known(dataset: Path) -> None:
    shutil.rmtree(dataset / "train")
    write_photos(dataset / "train", range(30), heading="all")
    headings = open_finetuning_photos(dataset).headings
    assert headings is not None
    assert set(headings.tolist()) == {0, 90, 180, 270}


def test_photos_without_a_validation_set_are_split_with_a_buffer(tmp_path: Path) -> None:
    write_photos(tmp_path, range(100))
    photos = open_finetuning_photos(tmp_path)
    train = utm_fields(photos.images).east_north
    val = np.concatenate([photos.val.database_positions, photos.val.query_positions])
    assert len(train) + len(val) <= 400
    assert len(photos.val.queries) >= 10
    assert KDTree(train).query(val)[0].min() >= 49.9  # twice the radius of positives, less the scale of UTM
    assert (train == photos.points).all()
    assert (open_finetuning_photos(tmp_path).points == photos.points).all()


def test_a_validation_set_without_positives_is_replaced(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(dataset / "val" / "queries")
    write_photos(dataset / "val" / "queries", range(5000, 5020), 1)
    shutil.rmtree(dataset / "train")
    write_photos(dataset / "train", range(100))
    with caplog.at_level("WARNING", "cosplace"):
        photos = open_finetuning_photos(dataset)
    assert "only 0 queries" in caplog.text
    assert photos.val.query_positions[:, 0].max() < 560_000


def test_a_small_validation_set_is_kept_where_no_other_can_be_made(dataset: Path) -> None:
    shutil.rmtree(dataset / "val" / "queries")
    write_photos(dataset / "val" / "queries", range(100, 103), 1, heading="1")
    shutil.rmtree(dataset / "train")
    write_photos(dataset / "train", range(3))
    photos = open_finetuning_photos(dataset)
    assert photos.too_few == "only 3 queries of its validation set have a database photo within 25 m"
    assert (len(photos.images), len(photos.val.queries)) == (12, 3)


def test_advice_names_the_model_that_was_given(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "my city", range(3))
    with pytest.raises(DatasetError, match=r"`cosplace index build '.*my city' --model mine.pth --to INDEX`"):
        open_finetuning_photos(folder, start="mine.pth")
    with pytest.raises(DatasetError, match="with a released model, as ImageNet weights were not trained on places"):
        open_finetuning_photos(folder)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: write_photos(folder / "test" / "database", range(3)), "no train/"),
        (lambda folder: write_photos(folder / "database", range(3)), "no train/"),
        (lambda folder: write_photos(folder, range(3)), "only 1 query would"),
        (lambda folder: write_photos(folder, range(300), 1, apart_m=100.0), "show each place only once"),
    ],
)
def test_photos_that_cannot_be_used(tmp_path: Path, prepare, message: str) -> None:
    prepare(tmp_path / "city")
    with pytest.raises(DatasetError, match=message):
        open_finetuning_photos(tmp_path / "city")


# --- start and recipe ------------------------------------------------------------------------------------------------


def open_with(model: str, **changes) -> GeoLocalizationNet:
    settings = {"backbone": None, "fc_output_dim": None, "imagenet_weights": None, "seed": 0}
    return open_start(model, **(settings | changes))


def test_a_start_must_be_trainable(tmp_path: Path) -> None:
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), tmp_path / "start.pth")
    assert open_with(str(tmp_path / "start.pth")).fc_output_dim == 16
    with pytest.raises(ConfigError, match="contradicts"):
        open_with(str(tmp_path / "start.pth"), backbone="ResNet50")
    with pytest.raises(ConfigError, match="features"):
        open_with("imagenet", fc_output_dim=1024)
    with pytest.raises(ConfigError, match="needs weights"):
        open_with("imagenet", imagenet_weights="none")
    with pytest.raises(CosPlaceError):
        open_with("no_such_model")


def test_a_torchvision_state_dict_is_a_start_from_imagenet_weights(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "mine.pth")
    given = from_values(FinetuneConfig, {"dataset": "data", "model": str(tmp_path / "mine.pth")})
    found = name_imagenet_file(given)
    assert (found.model, found.start.backbone, found.start.imagenet_weights) == ("imagenet", "ResNet18", given.model)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), tmp_path / "model.pth")
    for model in (str(tmp_path / "model.pth"), "imagenet", "cosplace_resnet50_512"):
        config = from_values(FinetuneConfig, {"dataset": "data", "model": model})
        assert name_imagenet_file(config) == config
    twice = {"dataset": "data", "model": given.model, "imagenet_weights": "v1"}
    with pytest.raises(ConfigError, match="contradicts"):
        name_imagenet_file(from_values(FinetuneConfig, twice))


def recipe(num_places: int, photo_size: int = 512, device: str = "cpu", **values) -> Recipe:
    east = np.repeat(np.arange(num_places) * 100.0, 4)
    places = form_places(Viewpoints(points=np.stack([east, east * 0], 1), headings=None))
    config = from_values(FinetuneConfig, {"dataset": "data", "model": "imagenet"} | values)
    return choose_recipe(config, places, photo_size, torch.device(device))


def test_the_recipe_follows_the_photos() -> None:
    few, some, many = recipe(60), recipe(200), recipe(5000)
    assert few.freeze == "late"
    assert some.freeze == many.freeze == "early"
    assert few.num_iterations >= 100
    assert some.num_iterations * some.places_per_batch == pytest.approx(6 * 200, rel=0.1)
    assert many.num_iterations * many.places_per_batch == pytest.approx(6 * 5000, rel=0.1)
    assert recipe(200, photo_size=100).image_size == 96
    assert recipe(200, photo_size=4000).image_size == 224
    assert recipe(200, device="cuda").image_size == 512
    assert recipe(60, photo_size=64).num_seeds > recipe(5000).num_seeds
    given = recipe(200, image_size=160, epochs_num=2, iterations_per_epoch=7, lr=0.5, num_seeds=4, batch_size=12)
    assert (given.image_size, given.epochs_num, given.iterations_per_epoch) == (160, 2, 7)
    assert (given.lr, given.num_seeds, given.batch_size) == (0.5, 4, 12)
    assert (recipe(200, loss="cosface").places_per_batch, recipe(200, loss="cosface").photos_per_place) == (32, 1)
