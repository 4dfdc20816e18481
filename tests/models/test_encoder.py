"""load_model and Encoder: descriptors as `cosplace eval` computes them, for photos of every kind."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cosplace
from cosplace.engines.encoder import Encoder, load_model
from cosplace.errors import CheckpointError, ConfigError, ImageError
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import ReducedNetwork, fit
from cosplace.models.weight_files import write_weights
from cosplace.photos.image_list import image_list
from cosplace.retrieval.baselines import TinyImage
from cosplace.retrieval.extraction import extract
from cosplace.training.best_model import save_best_model
from tests.synthetic_dataset import place_image

SIZES = [(64, 64), (48, 64), (64, 48), (64, 64), (40, 40)]  # (width, height)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    generator = torch.Generator().manual_seed(3)
    save_best_model(folder, GeoLocalizationNet("ResNet18_Small", 16, generator=generator))
    return folder / "best_model.pth"


@pytest.fixture(scope="module")
def model(model_file: Path) -> Encoder:
    return load_model(model_file, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos of several sizes, in a lossless format."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        Image.fromarray(place_image(number, 0)).resize(size).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("image_size", [None, 32, 80])
def test_descriptors_are_those_of_eval(model_file: Path, photos: list[Path], image_size: int | None) -> None:
    model = load_model(model_file, image_size=image_size, device="cpu")
    found = model.encode(photos)
    listed = image_list(photos[0].parent, [path.name for path in photos])
    assert_same(found, extract(model.network, listed, image_size=image_size).descriptors)
    assert found.shape == (5, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert (model.dimension, model.image_size, model.name) == (16, image_size, str(model_file))


@pytest.mark.slow
def test_the_package_exports_load_model_without_importing_torch() -> None:
    code = "import sys, cosplace; assert 'torch' not in sys.modules; print(cosplace.load_model.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "load_model"
    assert cosplace.load_model is load_model
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        cosplace.load_modell  # noqa: B018


def test_one_photo_of_every_kind(model: Encoder, photos: list[Path]) -> None:
    expected = model.encode(photos)[:1]
    image = Image.open(photos[0])
    pixels = np.array(image)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    with_alpha = np.dstack([pixels, np.zeros((64, 64), np.uint8)])
    kinds = [photos[0], str(photos[0]), image, pixels, with_alpha, pixels[None], tensor, tensor[None], tensor / 255]
    for kind in kinds:
        assert_same(model.encode(kind), expected)
        assert_same(model.encode([kind]), expected)


def test_lists_of_mixed_kinds_and_sizes_keep_their_order(model: Encoder, photos: list[Path]) -> None:
    alone = np.concatenate([model.encode(path) for path in photos])
    arrays = [np.array(Image.open(path)) for path in photos]
    mixed = [photos[0], arrays[1], Image.open(photos[2]), torch.from_numpy(arrays[3]).permute(2, 0, 1), arrays[4]]
    for batch_size in (1, 2, 16):
        assert_same(model.encode(mixed, batch_size=batch_size), alone)
    batch = np.stack([arrays[0], arrays[3]])
    assert_same(model.encode([batch, photos[1]]), alone[[0, 3, 1]])
    assert_same(model.encode(iter(photos)), alone)
    assert model.encode([]).shape == (0, 16)


def test_gray(model: Encoder) -> None:
    gray = place_image(1, 0)[..., 0]
    expected = model.encode(np.dstack([gray] * 3))
    for kind in (gray, gray[..., None], Image.fromarray(gray), torch.from_numpy(gray)[None]):
        assert_same(model.encode(kind), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_pil_images_of_every_mode_are_encoded_like_their_files(model: Encoder, tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(place_image(2, 1)).convert(mode)
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    image.save(path)
    assert_same(model.encode(image), model.encode(path))
    assert_same(model.encode(image), model.encode(image.convert("RGB")))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_is_applied(model: Encoder, photos: list[Path], tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.open(photos[1])
    turned.save(tmp_path / "turned.png", exif=exif)
    image = Image.open(tmp_path / "turned.png")
    assert_same(model.encode(image), model.encode(tmp_path / "turned.png"))
    upright = np.rot90(np.array(turned), {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    assert_same(model.encode(image), model.encode(upright))


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (np.zeros((8, 8, 3)), "array of float64. Use uint8"),
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (np.zeros(8, np.uint8), r"shape \(8,\)"),
        (torch.zeros(8, 8, 3), r"tensor of shape \(8, 8, 3\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"tensor of torch\.int64"),
        (torch.full((3, 8, 8), -1.5), r"values from -1\.5 to -1\.5\. .*before any normalization"),
        (torch.full((3, 8, 8), float("nan")), r"values from nan"),
        (7, "int is not a photo"),
        (b"bytes", "bytes is not a photo"),
        ([None], "photo 0 is a NoneType"),
        ("nowhere.jpg", r"^Cannot read nowhere\.jpg: "),
    ],
)
def test_other_objects_are_refused_in_one_line(model: Encoder, photo: object, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        model.encode(photo)
    assert "\n" not in str(caught.value)


def test_one_unreadable_photo_of_many_is_named(model: Encoder, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(photos[0].read_bytes()[:300])
    with pytest.raises(ImageError, match=r"bad\.jpg is incomplete or damaged"):
        model.encode([*photos, tmp_path / "bad.jpg"])
    Image.fromarray(place_image(1, 0)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(ImageError, match=r"cut\.png is incomplete or damaged"):
        model.encode([photos[0], cut])
    with pytest.raises(ImageError, match="photo 1 is an array"):
        model.encode([photos[0], np.zeros((4, 4))])


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3, 4]),
    fill=st.integers(0, 255),
    count=st.integers(1, 3),
)
def test_any_array_of_uint8_is_encoded(height, width, channels, fill, count) -> None:
    found = tiny().encode(np.full((count, height, width, channels), fill, np.uint8))
    assert found.shape == (count, 16)
    assert np.isfinite(found).all()


def tiny() -> Encoder:
    return Encoder(TinyImage(4), device="cpu")


def test_any_network_can_encode_and_its_dimension_is_found(photos: list[Path]) -> None:
    found = tiny()
    assert found.dimension == 16
    listed = image_list(photos[0].parent, [path.name for path in photos])
    assert_same(found.encode(photos), extract(TinyImage(4), listed).descriptors)


def test_threads_do_not_disturb_each_other(model: Encoder, photos: list[Path]) -> None:
    expected = model.encode(photos)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model.encode(photos), range(8)):
            assert_same(found, expected)


def test_the_checksum_differs_between_models(model_file: Path, model: Encoder, tmp_path: Path) -> None:
    assert load_model(model_file.with_suffix(".safetensors"), device="cpu").checksum == model.checksum
    save_best_model(tmp_path, GeoLocalizationNet("ResNet18_Small", 16))
    assert load_model(tmp_path / "best_model.pth", device="cpu").checksum != model.checksum


def test_reduce_to_needs_a_reduced_model(model_file: Path, photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`cosplace reduce MODEL --on FOLDER"):
        load_model(model_file, reduce_to=8, device="cpu")
    assert load_model(model_file, reduce_to=16, device="cpu").dimension == 16
    network = load_model(model_file, device="cpu").network
    reduced = ReducedNetwork(network, fit([np.random.default_rng(0).standard_normal((50, 16))], 8, "pca"))
    first = Encoder(reduced, device="cpu").encode(photos)[:, :3]
    found = Encoder(ReducedNetwork(network, reduced.reduction.first(3)), device="cpu").encode(photos)
    assert_same(found, first / np.linalg.norm(first, axis=1, keepdims=True))


def test_mistakes_in_loading(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no weights file .*gone\.pth"):
        load_model(tmp_path / "gone.pth")
    with pytest.raises(ConfigError, match="Choose from 32, 64"):
        load_model("cosplace_resnet50_511")
    with pytest.raises(ConfigError, match="trust_remote_code"):
        load_model("hub:owner/repo:entry")
    with pytest.raises(ConfigError, match="image_size must be at least 1, got 0"):
        load_model(model_file, image_size=0)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        load_model(model_file, device="cpu").encode([], batch_size=0)
    write_weights(tmp_path / "other.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="not the weights of a CosPlace model"):
        load_model(tmp_path / "other.safetensors")


def test_descriptors_that_are_not_finite_are_refused(model_file: Path, photos: list[Path]) -> None:
    network = load_model(model_file, device="cpu").network
    with torch.no_grad():
        network.get_parameter("aggregation.3.bias")[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        Encoder(network, name="broken", device="cpu").encode(photos[0])


def test_images_of_16_bits_have_the_descriptor_of_their_8_bits(model: Encoder) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    floats = Image.fromarray(gray.astype(np.float32) / 255)
    expected = model.encode(gray)
    assert np.array_equal(model.encode(deep), expected) and np.array_equal(model.encode(floats), expected)


def test_a_photo_that_is_too_long_for_the_size_is_named(model_file: Path, photos: list[Path], tmp_path: Path) -> None:
    Image.new("RGB", (5_000, 10)).save(tmp_path / "strip.png")
    encoder = load_model(model_file, image_size=512, device="cpu")
    with pytest.raises(ImageError, match=r"strip\.png is too long and narrow"):
        encoder.encode([photos[0], tmp_path / "strip.png"])
    with pytest.raises(ImageError, match=r"photo 1 is too long and narrow"):
        encoder.encode([Image.new("RGB", (64, 48)), Image.new("L", (10, 5_000))])
