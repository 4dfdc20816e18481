"""Networks other than those of the paper: recorded in their weights, reopened exactly, frozen as asked."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cosplace.config.names import AGGREGATIONS, canonical_backbone
from cosplace.errors import CheckpointError, ConfigError, InputSizeError
from cosplace.models import aggregations, designs
from cosplace.models.designs import DESIGN_KEY, read_design, stages_of
from cosplace.models.model_files import model_card, model_tensors
from cosplace.models.network import GeoLocalizationNet, network_from_state_dict, new_network
from cosplace.models.opening import open_model
from cosplace.models.vision_transformer import TransformerSettings
from cosplace.models.weight_files import read_card, write_weights


@pytest.fixture
def tiny_dinov2(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(designs, "dinov2_settings", lambda size, *, registers: tiny_settings(registers))
    return "dinov2_vits14"


def tiny_settings(registers: bool = False) -> TransformerSettings:
    return TransformerSettings(dim=32, depth=6, grid=5, num_registers=4 if registers else 0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(height: int = 96, width: int = 128) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=generator(1))


def test_names_are_those_of_the_aggregations() -> None:
    assert AGGREGATIONS == aggregations.AGGREGATIONS


def test_networks_of_the_paper_keep_their_keys() -> None:
    network = GeoLocalizationNet("ResNet18_Small", 16)
    assert network.design is None
    assert [key for key in network.state_dict() if not key.startswith("backbone.")] == [
        "aggregation.1.p", "aggregation.3.weight", "aggregation.3.bias",
    ]  # fmt: skip


MADE_HERE = [name for name in AGGREGATIONS if name not in ("gem", "tokens")]


@pytest.mark.parametrize(
    ("aggregation", "suffix"),
    [
        *((name, ".safetensors") for name in MADE_HERE),
        *(pytest.param(name, ".pth", marks=() if name == "salad" else pytest.mark.slow) for name in MADE_HERE),
    ],
)
def test_a_model_reopens_by_itself(aggregation: str, suffix: str, tmp_path: Path) -> None:
    network = GeoLocalizationNet(
        "ResNet18_Small", 24, generator=generator(), aggregation=aggregation, image_size=160
    ).eval()
    images = photos(160, 192)  # stride 16: 120 positions, more than the 64 clusters of SALAD
    tensors = model_tensors(network)
    write_weights(tmp_path / f"model{suffix}", tensors, model_card(network, tensors))
    opened = open_model(tmp_path / f"model{suffix}")
    assert isinstance(opened, GeoLocalizationNet)
    with torch.inference_mode():
        expected = network(images)
        assert torch.equal(opened(images), expected)
    assert expected.shape == (2, 24)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(2))
    assert (opened.backbone_name, opened.aggregation_name) == ("ResNet18_Small", aggregation)
    if suffix == ".safetensors":
        assert read_card(tmp_path / "model.safetensors")["aggregation"] == aggregation


def test_flags_must_agree_with_the_model(tmp_path: Path) -> None:
    network = GeoLocalizationNet("ResNet18_Small", 24, aggregation="netvlad")
    write_weights(tmp_path / "model.pth", model_tensors(network))
    assert open_model(tmp_path / "model.pth", aggregation="netvlad").aggregation_name == "netvlad"
    with pytest.raises(ConfigError, match="--aggregation gem contradicts"):
        open_model(tmp_path / "model.pth", aggregation="gem")
    with pytest.raises(ConfigError, match="--features_stage 1 contradicts"):
        open_model(tmp_path / "model.pth", features_stage=1)


def test_mixvpr_has_the_grid_of_the_training_images() -> None:
    network = GeoLocalizationNet("ResNet18_Small", 16, aggregation="mixvpr", image_size=112)
    assert network.design is not None and network.design.grid == (7, 7)
    assert read_design(network.state_dict()[DESIGN_KEY]) == network.design


@pytest.mark.parametrize("aggregation", ["gem", "salad", "tokens"])
def test_dinov2_takes_photos_of_any_size(aggregation: str, tiny_dinov2: str) -> None:
    network = GeoLocalizationNet(tiny_dinov2, 16, generator=generator(), aggregation=aggregation).eval()
    opened = network_from_state_dict(network.state_dict()).eval()
    with torch.inference_mode():
        for size in ((140, 154), (150, 131)):
            assert torch.equal(network(photos(*size)), opened(photos(*size)))
    with torch.inference_mode(), pytest.raises(InputSizeError, match="too small for patches of 14 pixels"):
        network(photos(6, 140))


class Narrowed(TorchDispatchMode):
    """The names of all operations that make float32 numbers of float64 ones; single numbers do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        inputs, outputs = (
            {one.dtype for one in tree_leaves(values) if isinstance(one, torch.Tensor) and one.dim()}
            for values in ((args, kwargs), found)
        )
        if torch.float64 in inputs and torch.float32 in outputs:
            self.names.add(str(func))
        return found


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_networks_in_double_precision_have_it_in_every_layer(aggregation: str, tiny_dinov2: str) -> None:
    backbone = tiny_dinov2 if aggregation == "tokens" else "ResNet18_Small"
    network = GeoLocalizationNet(backbone, 24, generator=generator(), aggregation=aggregation, image_size=160).double()
    with Narrowed() as narrowed:
        descriptors = network(photos(160, 192))
        descriptors.square().sum().backward()
    assert descriptors.dtype == torch.float64
    assert narrowed.names == set()


def test_salad_refuses_few_patches_in_one_line(tiny_dinov2: str) -> None:
    network = GeoLocalizationNet(tiny_dinov2, 16, aggregation="salad").eval()
    with pytest.raises(InputSizeError, match="64 patches, but the model needs more than 64"):
        network(photos(112, 112))


def test_dinov2_loads_a_released_file(tiny_dinov2: str, tmp_path: Path) -> None:
    source = GeoLocalizationNet(tiny_dinov2, 16, generator=generator(5)).backbone.state_dict()
    write_weights(tmp_path / "dinov2.pth", {**source, "mask_token": torch.zeros(1, 32)})
    network = new_network(
        backbone=tiny_dinov2, fc_output_dim=16, train_all_layers=False, aggregation="tokens", seed=0,
        imagenet_weights=str(tmp_path / "dinov2.pth"),
    )  # fmt: skip
    loaded = network.backbone.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.items())
    assert set(loaded) - set(source) == {"learned_tokens"}
    write_weights(tmp_path / "other.pth", {key: value for key, value in source.items() if "blocks.5" not in key})
    with pytest.raises(CheckpointError, match=r"does not fit dinov2_vits14: blocks.5.norm1.weight is missing"):
        GeoLocalizationNet(tiny_dinov2, 16, imagenet_weights=tmp_path / "other.pth")
    write_weights(tmp_path / "salad.pth", {f"backbone.model.{key}": value for key, value in source.items()})
    with pytest.raises(CheckpointError, match=r"salad.pth is a whole model, not weights of dinov2_vits14"):
        GeoLocalizationNet(tiny_dinov2, 16, imagenet_weights=tmp_path / "salad.pth")


def trained(network: GeoLocalizationNet) -> set[str]:
    return {key for key, parameter in network.backbone.named_parameters() if parameter.requires_grad}


def test_frozen_layers_by_number_and_by_name(tiny_dinov2: str) -> None:
    all_layers = trained(GeoLocalizationNet(tiny_dinov2, 16, train_all_layers=True))
    by_default = trained(GeoLocalizationNet(tiny_dinov2, 16))
    blocks = {f"blocks.{number}." for number in range(2, 6)}
    assert by_default == {key for key in all_layers if key.startswith((*blocks, "norm."))}
    assert trained(GeoLocalizationNet(tiny_dinov2, 16, frozen_layers="2")) == by_default
    assert trained(GeoLocalizationNet(tiny_dinov2, 16, frozen_layers="0")) == all_layers
    named = trained(GeoLocalizationNet(tiny_dinov2, 16, frozen_layers="patch_embed, blocks.1"))
    assert all_layers - named == {key for key in all_layers if key.startswith(("patch_embed.", "blocks.1."))}
    tokens = trained(GeoLocalizationNet(tiny_dinov2, 16, aggregation="tokens", frozen_layers="6"))
    assert tokens == {"learned_tokens", "norm.weight", "norm.bias"}


def test_frozen_layers_of_the_paper_by_number() -> None:
    by_default = trained(GeoLocalizationNet("ResNet18", 16))
    assert trained(GeoLocalizationNet("ResNet18", 16, frozen_layers="6")) == by_default
    efficientnet = GeoLocalizationNet("EfficientNet_B0", 16, frozen_layers="5")
    assert trained(efficientnet) == trained(GeoLocalizationNet("EfficientNet_B0", 16))
    assert stages_of(efficientnet.backbone)[:2] == ("0.0", "0.1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen_layers": "9"}, "the backbone has 7 stages"),
        ({"frozen_layers": "layer1"}, "no layer 'layer1'"),
        ({"frozen_layers": "1", "train_all_layers": True}, "--frozen_layers contradicts --train_all_layers"),
        ({"features_stage": 1}, "--features_stage is for networks of timm"),
        ({"aggregation": "tokens"}, "tokens needs a dinov2 backbone"),
        ({"aggregation": "mixvpr", "fc_output_dim": 30}, "multiple of 4"),
    ],
)
def test_settings_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GeoLocalizationNet("ResNet18_Small", **({"fc_output_dim": 16} | settings))


def test_names_of_backbones() -> None:
    assert canonical_backbone("DINOv2-ViT-S14") == "dinov2_vits14"
    assert canonical_backbone("timm:resnet18.a1_in1k") == "timm:resnet18.a1_in1k"
    with pytest.raises(ConfigError, match="Did you mean dinov2_vitl14"):
        canonical_backbone("dinov2_vitl15")
    for name in ("timm:", "timm:hf-hub:someone/model", "timm:../model"):
        with pytest.raises(ConfigError, match="not a name of timm"):
            canonical_backbone(name)


def changed(**entries: object) -> torch.Tensor:
    network = GeoLocalizationNet("ResNet18_Small", 16, aggregation="netvlad")
    values = json.loads(bytes(network.state_dict()[DESIGN_KEY].tolist())) | entries
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "record",
    [
        torch.zeros(3, dtype=torch.uint8),
        torch.zeros(3),
        torch.zeros(20_000, dtype=torch.uint8),
        changed(aggregation="unknown"),
        changed(fc_output_dim=0),
        changed(backbone="resnet 18 small"),
        changed(backbone="timm:resnet18"),
        changed(grid=[7]),
        changed(grid=[7, 10**9]),
        changed(more=1),
        torch.tensor(list(b"[1]"), dtype=torch.uint8),
    ],
)
def test_a_damaged_record_is_refused(record: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match="record of the network"):
        read_design(record)


def test_weights_that_do_not_fit_their_record() -> None:
    state_dict = GeoLocalizationNet("ResNet18_Small", 16, aggregation="netvlad").state_dict()
    with pytest.raises(CheckpointError, match=r"are of ResNet18_Small with salad but aggregation\.\S+ is missing"):
        network_from_state_dict({**state_dict, DESIGN_KEY: changed(aggregation="salad")})
