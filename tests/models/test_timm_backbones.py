"""Networks of timm as backbones: features as timm computes them, any size, weights from files.  No downloads."""

import sys
from pathlib import Path

import pytest
import torch

from cosplace.errors import CheckpointError, ConfigError, DownloadError
from cosplace.models.inference import optimize_for_inference
from cosplace.models.network import GeoLocalizationNet, network_from_state_dict, new_network
from cosplace.models.timm_backbones import TimmBackbone, timm_settings
from cosplace.models.weight_files import model_checksum, write_weights

timm = pytest.importorskip("timm", reason="pip install 'cosplace[timm]'")
pytestmark = pytest.mark.slow  # importing timm takes seconds

NAMES = ("test_resnet", "test_vit", "test_vit3", "test_convnext", "test_efficientnet", "test_byobnet")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def pixels(height: int = 160, width: int = 160) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


def build(name: str, seed: int = 0, **settings) -> GeoLocalizationNet:
    generator = torch.Generator().manual_seed(seed)
    return GeoLocalizationNet(f"timm:{name}", 16, generator=generator, **settings).eval()


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_timm(name: str) -> None:
    network = build(name)
    whole = timm.create_model(name, num_classes=0).eval()
    whole.load_state_dict(network.backbone.model.state_dict(), strict=False)
    known = whole.pretrained_cfg
    mean, std = (torch.tensor(known[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        features, token = network.features((pixels() - MEAN) / STD)
        expected = whole.forward_features((pixels() - mean) / std)
    if "vit" in name:  # tokens (B, T, C): the class token if there is one, registers, then the patches
        num_prefix = whole.num_prefix_tokens
        torch.testing.assert_close(features.flatten(2).mT, expected[:, num_prefix:], atol=1e-4, rtol=1e-4)
        assert (token is None) == (whole.cls_token is None)
        if token is not None:
            torch.testing.assert_close(token, expected[:, 0], atol=1e-4, rtol=1e-4)
    elif name in ("test_resnet", "test_convnext"):  # of the others, forward_features has one more layer
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    assert features.shape[1] == network.features_dim


def test_a_stage_is_chosen() -> None:
    network = build("test_resnet", features_stage=-2)
    full = build("test_resnet")
    with torch.inference_mode():
        features, _ = network.features(pixels())
    assert features.shape == (2, 192, 10, 10)
    assert not any("layer4" in key for key in network.state_dict())
    assert any("layer4" in key for key in full.state_dict())
    with pytest.raises(ConfigError, match=r"has no stage 7.*4: 96 channels, stride 32"):
        build("test_resnet", features_stage=7)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_reopens_and_extracts_the_same(name: str) -> None:
    network = build(name, aggregation="netvlad")
    opened = network_from_state_dict(network.state_dict()).eval()
    for size in ((160, 160), (100, 147)):
        with torch.inference_mode():
            expected = network(pixels(*size))
            assert torch.equal(opened(pixels(*size)), expected)
            torch.testing.assert_close(optimize_for_inference(opened)(pixels(*size)), expected, atol=1e-5, rtol=0)
    assert model_checksum(opened) == model_checksum(network)


def test_opening_leaves_the_random_numbers_alone() -> None:
    state = build("test_vit").state_dict()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    network_from_state_dict(state)
    assert torch.equal(torch.rand(1), expected)


def test_all_layers_get_a_gradient() -> None:
    for name in NAMES:
        network = GeoLocalizationNet(f"timm:{name}", 16, train_all_layers=True)
        network(pixels()).sum().backward()
        assert [key for key, one in network.named_parameters() if one.grad is None] == [], name


def test_default_frozen_layers() -> None:
    resnet, vit = build("test_resnet"), build("test_vit3")
    trained = [key for key, one in resnet.backbone.named_parameters() if one.requires_grad]
    assert {key.split(".")[1] for key in trained} == {"layer3", "layer4"}  # as in the paper
    trained = [key for key, one in vit.backbone.named_parameters() if one.requires_grad]
    assert {".".join(key.split(".")[1:3]) for key in trained if "blocks" in key} == {f"blocks.{n}" for n in range(5, 9)}
    assert not any("pos_embed" in key or "cls_token" in key or "patch_embed" in key for key in trained)
    named = build("test_resnet", frozen_layers="conv1, layer1")
    assert {key.split(".")[1] for key, one in named.backbone.named_parameters() if not one.requires_grad} == {
        "conv1", "layer1",
    }  # fmt: skip


def test_weights_from_a_file(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet", num_classes=10)
    write_weights(tmp_path / "weights.safetensors", whole.state_dict())
    network = build("test_resnet", imagenet_weights=tmp_path / "weights.safetensors", features_stage=3)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.backbone.model.state_dict().items())
    deeper = {**expected, "layer4.9.conv1.weight": torch.zeros(1)}
    write_weights(tmp_path / "deeper.pth", deeper)
    with pytest.raises(CheckpointError, match=r"does not fit timm:test_resnet: layer4.9.conv1.weight is unexpected"):
        build("test_resnet", imagenet_weights=tmp_path / "deeper.pth")
    write_weights(tmp_path / "other.pth", timm.create_model("test_vit").state_dict())
    with pytest.raises(CheckpointError, match=r"does not fit timm:test_resnet: conv1.0.weight is missing"):
        build("test_resnet", imagenet_weights=tmp_path / "other.pth")


def test_default_weights_are_those_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("test_resnet", num_classes=0)
    create = timm.create_model

    def create_model(name: str, pretrained: bool = False, **options):
        return source if pretrained else create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    network = new_network(
        backbone="timm:test_resnet", fc_output_dim=16, train_all_layers=False, imagenet_weights=None, seed=0
    )
    assert torch.equal(network.backbone.model.conv1[0].weight, source.conv1[0].weight)

    def refuse(name: str, pretrained: bool = False, **options):
        if pretrained:
            raise OSError("no route to host\nand more")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(DownloadError, match=r"test_resnet \(no route to host\)\. .*--imagenet_weights PATH"):
        build("test_resnet", imagenet_weights="timm")


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"no network 'resnet19'. Did you mean timm:resnet1"):
        timm_settings("timm:resnet19")
    with pytest.raises(ConfigError, match=r"no network 'resnet18.a9_in1k'. Did you mean timm:resnet18.a"):
        timm_settings("timm:resnet18.a9_in1k")


def test_settings_of_timm() -> None:
    assert timm_settings("timm:resnet18.a1_in1k").stage == 4
    vit = timm_settings("timm:vit_small_patch14_dinov2")
    assert (vit.policy.side_multiple, vit.policy.fixed_size, vit.stage) == (14, None, 11)
    assert timm_settings("timm:test_resnet").mean == (0.5, 0.5, 0.5)
    assert timm_settings("timm:convnextv2_tiny").policy.side_multiple == 1


def test_sizes_that_a_network_accepts_are_found() -> None:
    """timm does not say that these need multiples of 32, or one size."""
    assert timm_settings("timm:dla34").policy.side_multiple == 32
    network = build("test_coatnet")
    with torch.inference_mode():
        assert network(pixels(150, 170)).shape == (2, 16)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm. Install with: pip install 'cosplace\[timm\]'"):
        GeoLocalizationNet("timm:resnet18", 16)


def test_timm_is_imported_only_when_used() -> None:
    import subprocess

    code = (
        "import sys; from cosplace.models.network import GeoLocalizationNet; GeoLocalizationNet('ResNet18', 8); "
        "sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_version_of_timm_without_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    with pytest.raises(
        ConfigError, match=r"gives no features of the stages of test_resnet. Install a newer version of timm"
    ):
        build("test_resnet")


def test_its_text_has_no_layers() -> None:
    assert "conv1" not in repr(build("test_resnet"))
    assert isinstance(build("test_resnet").backbone, TimmBackbone)
