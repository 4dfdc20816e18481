"""One function opens every model: names from the zoo, files, reductions."""

import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.errors import CheckpointError, ConfigError, DownloadError
from cosplace.models.downloads import sha256_record, weights_folder
from cosplace.models.model_files import model_card, model_tensors
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model, weights_path
from cosplace.models.reduction import ReducedNetwork, fit, truncation
from cosplace.models.weight_files import model_checksum, write_weights
from tests.models.file_server import Server
from tests.models.networks import ONE, assert_refused, put_in_cache


def test_a_name_is_downloaded_once_then_works_without_network(mirror: Server, small, monkeypatch) -> None:
    expected, content = small
    mirror.files["ResNet18_32_cosplace.pth"] = content
    images = torch.rand(2, 3, 64, 96)
    network = open_model(ONE)
    assert not network.training
    assert torch.equal(network(images), expected(images))
    assert network.state_dict().keys() == expected.state_dict().keys()
    assert mirror.paths == ["/ResNet18_32_cosplace.pth"]  # and no weights of ImageNet
    monkeypatch.setenv("COSPLACE_RELEASES", "http://127.0.0.1:9")
    assert torch.equal(open_model("CosPlace ResNet18 32")(images), expected(images))
    assert sha256_record(weights_folder() / "ResNet18_32_cosplace.pth").is_file()


def test_a_released_model_needs_no_imagenet_weights(small, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("downloaded")

    put_in_cache(ONE, small[1])
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", never)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", never)
    monkeypatch.setattr(torch.hub, "download_url_to_file", never)
    assert isinstance(open_model(ONE), GeoLocalizationNet)
    with pytest.raises(AssertionError, match="downloaded"):  # this is how it would look
        GeoLocalizationNet("ResNet18", 32, imagenet_weights="v1")


@pytest.mark.slow
def test_paths_are_opened_in_both_formats(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, content = small
    (tmp_path / "w.pth").write_bytes(content)
    write_weights(tmp_path / "w.safetensors", expected.state_dict(), {"backbone": "ResNet18"})
    (tmp_path / "plain").write_bytes(content)
    images = torch.rand(1, 3, 64, 64)
    monkeypatch.chdir(tmp_path)
    for model in (tmp_path / "w.pth", str(tmp_path / "w.safetensors"), "w.pth", "plain", Path("plain")):
        network = open_model(model)
        assert not network.training
        assert torch.equal(network(images), expected(images))
        assert weights_path(model) == Path(model)


def test_other_files_are_refused(small, tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(small[1][:-3000])
    torch.save({"a": torch.zeros(3)}, tmp_path / "foreign.pth")
    for name in ("cut.pth", "foreign.pth", "absent.pth", "absent.safetensors"):
        assert_refused(CheckpointError, name, tmp_path / name)
    assert_refused(CheckpointError, "no weights file absent.pth", "absent.pth")
    assert_refused(CheckpointError, "absent/model", "absent/model")
    assert_refused(CheckpointError, "null byte", "absent/\0.pth")


def test_a_file_of_another_architecture_under_a_name_is_refused(small) -> None:
    put_in_cache("cosplace_resnet18_64", small[1])
    assert_refused(
        CheckpointError, "holds ResNet18 with 32 dimensions, not cosplace_resnet18_64", "cosplace_resnet18_64"
    )


@pytest.mark.slow
def test_a_damaged_file_is_refused_or_downloaded_again(mirror: Server, small) -> None:
    path = put_in_cache(ONE, small[1][:-5000])
    assert_refused(CheckpointError, "ResNet18_32_cosplace", ONE)  # copied by hand: its checksum is unknown
    path.unlink()
    mirror.files[path.name] = small[1]
    open_model(ONE)
    path.write_bytes(small[1][:-5000])
    open_model(ONE)
    assert path.read_bytes() == small[1]


def test_without_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSPLACE_RELEASES", "http://127.0.0.1:9")
    assert_refused(
        DownloadError, r"refused.*copy the file to .*ResNet18_32_cosplace\.pth yourself, or set COSPLACE_RELEASES", ONE
    )


def test_a_folder_may_be_the_mirror(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with space").mkdir()
    (tmp_path / "with space" / "ResNet18_32_cosplace.pth").write_bytes(small[1])
    monkeypatch.setenv("COSPLACE_RELEASES", str(tmp_path / "with space"))
    assert weights_path(ONE).read_bytes() == small[1]
    assert_refused(DownloadError, "No such file", "cosplace_resnet18_64")


# --- flags and reduced models ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> GeoLocalizationNet:
    return GeoLocalizationNet("ResNet18_Small", 5, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def reduced(network: GeoLocalizationNet) -> ReducedNetwork:
    """A network with a reduction to 3 dimensions."""
    descriptors = np.random.default_rng(0).standard_normal((50, 5))
    return ReducedNetwork(network, fit([descriptors], 3, "pca")).eval()


def descriptors_of(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(2)))


def write_model(path: Path, network: torch.nn.Module, **changes: str) -> Path:
    """Write a model with its card, some entries of which are changed."""
    tensors = model_tensors(network)
    write_weights(path, tensors, model_card(network, tensors) | changes)
    return path


def test_flags_must_agree_with_the_model(network: GeoLocalizationNet, reduced: ReducedNetwork, tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain.safetensors", network)
    small = write_model(tmp_path / "small.safetensors", reduced)
    open_model(plain, backbone="resnet18-small", fc_output_dim=5)
    open_model(small, backbone="ResNet18_Small", fc_output_dim=3)
    assert_refused(
        ConfigError, "--backbone ResNet50 contradicts .*has ResNet18_Small. Omit", plain, backbone="ResNet50"
    )
    assert_refused(ConfigError, "--backbone VGG16 contradicts .*has ResNet18_Small. Omit", small, backbone="VGG16")
    assert_refused(ConfigError, "--fc_output_dim 5 contradicts .*which has 3. Omit", small, fc_output_dim=5)


def test_reduce_to_keeps_the_first_dimensions(
    network: GeoLocalizationNet, reduced: ReducedNetwork, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "small.safetensors", reduced)
    first = descriptors_of(reduced)[:, :2]
    found = descriptors_of(open_model(path, reduce_to=2))
    torch.testing.assert_close(found, torch.nn.functional.normalize(first, dim=1))
    assert_refused(ConfigError, "from 1 to 3, got 4", path, reduce_to=4)
    plain = write_model(tmp_path / "plain.safetensors", network)
    assert_refused(ConfigError, "no reduction, so 2 dimensions must be fitted", plain, reduce_to=2)
    assert descriptors_of(open_model(plain, reduce_to=5)).shape == (3, 5)


def test_a_reduced_model_is_read_back(network: GeoLocalizationNet, reduced: ReducedNetwork, tmp_path: Path) -> None:
    found = open_model(write_model(tmp_path / "small.safetensors", reduced))
    assert isinstance(found, ReducedNetwork)
    assert not found.training
    tensors, expected = model_tensors(found), model_tensors(reduced)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert torch.equal(descriptors_of(found), descriptors_of(reduced))
    assert model_checksum(found) == model_checksum(reduced)
    assert set(model_tensors(network)) == set(network.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "ResNet50"}, "card says backbone ResNet50, but the tensors have ResNet18_Small"),
        ({"fc_output_dim": "512"}, "card says fc_output_dim 512, but the tensors have 3"),
        ({"features_dim": "6"}, "card says features_dim 6, but the tensors have 5"),
        ({"reduction": "magic"}, "The reduction is damaged"),
        ({"tensors_sha256": "0" * 64}, "not those that the model card describes"),
    ],
)
def test_a_card_that_contradicts_its_tensors_is_refused(
    reduced: ReducedNetwork, changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "changed.safetensors", reduced, **changes)
    assert_refused(CheckpointError, message, path)


def test_damaged_reductions_are_refused(network: GeoLocalizationNet, reduced: ReducedNetwork, tmp_path: Path) -> None:
    tensors, path = model_tensors(reduced), tmp_path / "damaged.safetensors"
    without_bias = {key: value for key, value in tensors.items() if key != "reduction.bias"}
    for damaged, card, message in (
        (without_bias, {"reduction": "pca"}, "The reduction is damaged"),
        (tensors | {"reduction.bias": torch.zeros(2)}, {"reduction": "pca"}, r"got \[3, 5\] and \[2\]"),
        (network.state_dict(), {"reduction": "pca"}, "card names a reduction, but the file has none"),
        (model_tensors(reduced, with_base=False), {"reduction": "pca"}, "a reduction but no network"),
        ({"weight": torch.zeros(3)}, {}, "not the weights of a CosPlace model"),
    ):
        write_weights(path, damaged, card)
        assert_refused(CheckpointError, message, path)


def test_a_reduction_alone_names_its_network(small, reduced: ReducedNetwork, tmp_path: Path) -> None:
    network, content = small
    put_in_cache(ONE, content)
    reduction = ReducedNetwork(network, truncation(32, 4))
    path = tmp_path / "reduction.safetensors"
    write_weights(path, model_tensors(reduction, with_base=False), {"reduction": "truncation", "base_model": ONE})
    assert torch.equal(descriptors_of(open_model(path)), descriptors_of(reduction))


def test_imagenet_weights_are_no_model_yet(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "my weights.pth")
    with pytest.raises(CheckpointError, match=r"ImageNet weights of ResNet18.*`cosplace finetune DATASET --model '"):
        open_model(tmp_path / "my weights.pth")
