"""Released weights of other projects: recognized, opened by name and by file, refused when they do not fit."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from cosplace.cli import main
from cosplace.engines.encoder import load_model
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.cache import verify_cache
from cosplace.models.downloads import weights_folder
from cosplace.models.inference import optimize_for_inference
from cosplace.models.layouts import METHODS, Method, _build, find_method, network_from_release, ours
from cosplace.models.native import NativeNetwork
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model, weights_path
from cosplace.models.weight_files import write_weights
from cosplace.models.zoo import NATIVE_MODELS
from cosplace.training.starting_network import open_trainable_model
from tests.models.file_server import Server
from tests.models.networks import assert_refused
from tests.models.released_layouts import random_weights, released

LAYOUTS = {
    "megaloc": ("MegaLoc", "DINOv2-B/14", 8448),
    "megaloc_v1": ("MegaLoc", "DINOv2-B/14", 8448),
    "salad": ("SALAD", "DINOv2-B/14", 8448),
    "boq_dinov2": ("BoQ", "DINOv2-B/14", 12288),
    "boq_resnet50": ("BoQ", "ResNet50 to layer3", 16384),
    "image": ("ImAge", "DINOv2-B/14-reg4", 6144),
    "mixvpr": ("MixVPR", "ResNet50 to layer3", 4096),
    "conv_ap": ("Conv-AP", "ResNet50", 2048),
    "netvlad": ("NetVLAD", "VGG16", 32768),
}
IN_THE_ZOO = {
    "megaloc": "megaloc_v1",
    "salad": "salad",
    "boq_resnet50": "boq_resnet50",
    "boq_dinov2": "boq_dinov2",
    "image_gsv": "image",
    "image_merged": "image",
}
"""Name in the zoo -> layout of its file."""


def marked_slow(names: Iterable[str]) -> list:
    """Parameters of a test; layouts whose backbone has one size, which takes long to build, are marked."""
    large = ("boq_resnet50", "mixvpr", "conv_ap", "netvlad")
    return [pytest.param(name, marks=pytest.mark.slow if name in large else ()) for name in names]


def small(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return random_weights(released(name, dim=128, depth=5, grid=10, small=True), seed)


def write_release(path: Path, name: str, weights: dict[str, torch.Tensor]) -> Path:
    """A file as the project released it: ImAge's has more than the weights, with the keys of DataParallel."""
    if name == "image":
        wrapped = {f"module.{key}": value for key, value in weights.items()}
        torch.save({"epoch_num": 3, "model_state_dict": wrapped, "recalls": 94.1}, path)
    elif path.suffix == ".safetensors":
        write_weights(path, weights)
    else:
        torch.save(weights, path)
    return path


# --- keys and shapes --------------------------------------------------------------------------------------------------


def whole_network(name: str) -> tuple[Method, NativeNetwork, dict[str, torch.Tensor]]:
    """Network of a released file at full size, without memory, and its tensors with our keys."""
    with torch.device("meta"):
        tensors = ours({key: torch.empty(shape) for key, shape in released(name).items()})
        method = find_method(tensors)
        assert method is not None
        return method, _build(method, {key: tuple(value.shape) for key, value in tensors.items()}), tensors


@pytest.mark.parametrize("name", LAYOUTS)
def test_keys_and_shapes_are_those_of_the_released_files(name: str) -> None:
    method, network, tensors = whole_network(name)
    assert (method.name, network.backbone_name, network.fc_output_dim) == LAYOUTS[name]
    found = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert found == {key: tuple(value.shape) for key, value in tensors.items()}


def test_records_of_the_zoo_are_those_of_the_networks() -> None:
    assert set(IN_THE_ZOO) == set(NATIVE_MODELS)
    for name, layout in IN_THE_ZOO.items():
        record, (method, network, _) = NATIVE_MODELS[name], whole_network(layout)
        assert (record.method, record.backbone) == (method.name, network.backbone_name)
        assert record.fc_output_dim == network.fc_output_dim
        assert record.num_parameters == sum(value.numel() for value in network.parameters())
        policy = network.size_policy
        assert record.side_multiple == policy.side_multiple
        accepted = [
            side
            for side in range(1, 200)
            if min(policy.size_for(side, side)) >= policy.side_multiple
            and policy.size_for(side, side)[0] ** 2 >= policy.min_patches * policy.side_multiple**2
        ]
        assert record.smallest_side == accepted[0]


def test_whole_models_are_not_imagenet_weights(tmp_path: Path) -> None:
    write_weights(tmp_path / "boq.pth", {"aggregator.fc.weight": torch.zeros(1), "backbone.0.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"boq.pth is a whole model of another project, not ImageNet weights"):
        GeoLocalizationNet("ResNet18", 16, imagenet_weights=tmp_path / "boq.pth")


def test_networks_of_other_projects_are_not_trained(tmp_path: Path) -> None:
    path = write_release(tmp_path / "salad.pth", "salad", small("salad"))
    with pytest.raises(ConfigError, match=r"salad.pth is SALAD, a network of another project, .* as --teacher of"):
        open_trainable_model(str(path))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked_slow(LAYOUTS))
def test_released_files_are_opened(name: str, tmp_path: Path) -> None:
    path = write_release(tmp_path / "weights.pth", name, small(name))
    network = open_model(path)
    assert isinstance(network, NativeNetwork) and not network.training
    assert network.method == LAYOUTS[name][0]
    images = torch.randn(2, 3, 140, 128)
    with torch.inference_mode():
        found = network(images)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
        assert found.shape == (2, network.fc_output_dim)
        torch.testing.assert_close(optimize_for_inference(network)(images), found, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stages"), [("boq_resnet50", 3), ("mixvpr", 3), ("conv_ap", 4)])
def test_features_of_resnets_are_those_of_torchvision(name: str, stages: int) -> None:
    from torchvision.models import resnet50

    weights = small(name)
    network = network_from_release(weights)
    assert network is not None
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    torchvision = resnet50().eval()
    mine = {key.removeprefix("backbone."): value for key, value in ours(weights).items() if key.startswith("backbone.")}
    theirs = {f"{names[int(key[0])]}{key[1:]}": value for key, value in mine.items()}
    missing = torchvision.load_state_dict(theirs, strict=False).missing_keys
    assert all(key.startswith(("fc.", "layer4.")) for key in missing)
    images = expected = torch.randn(1, 3, 64, 80)
    with torch.inference_mode():
        for layer in names[: 4 + stages]:
            expected = getattr(torchvision, layer)(expected)
        torch.testing.assert_close(network.backbone(images), expected)


def test_both_files_of_megaloc_are_one_network(tmp_path: Path) -> None:
    old = small("megaloc_v1")
    new = {key.replace("backbone.model.", "backbone."): value for key, value in old.items()}
    del new["backbone.mask_token"]
    images = torch.randn(1, 3, 126, 126)
    networks = [
        open_model(write_release(tmp_path / name, "megaloc", weights))
        for name, weights in (("megaloc.torch", old), ("model.safetensors", new))
    ]
    with torch.inference_mode():
        assert torch.equal(networks[0](images), networks[1](images))
    half = {key: value.half() for key, value in new.items()}
    assert open_model(write_release(tmp_path / "half.safetensors", "megaloc", half))(images).dtype == torch.float32


@pytest.mark.slow
def test_files_without_batch_counters_are_complete() -> None:
    weights = small("boq_resnet50")
    counters = [key for key in weights if key.endswith("num_batches_tracked")]
    network = network_from_release({key: value for key, value in weights.items() if key not in counters})
    assert network is not None
    images = torch.randn(1, 3, 64, 64)
    complete = network_from_release(weights)
    assert complete is not None
    assert torch.equal(network(images), complete(images))


@pytest.mark.parametrize("name", marked_slow(["megaloc", "boq_resnet50", "image"]))
def test_written_models_are_read_back(name: str, tmp_path: Path) -> None:
    path = write_release(tmp_path / "weights.pth", name, small(name))
    assert main(["convert", str(path), str(tmp_path / "model.safetensors")]) == 0
    images = torch.randn(1, 3, 126, 140)
    with torch.inference_mode():
        assert torch.equal(open_model(tmp_path / "model.safetensors")(images), open_model(path)(images))


def without(weights: dict[str, torch.Tensor], *keys: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "backbone.blocks.2.ls1.gamma"), "MegaLoc but backbone.blocks.2.ls1.gamma is missing"),
        (lambda w: w | {"backbone.extra": torch.ones(1)}, "MegaLoc but backbone.extra is unexpected"),
        (lambda w: w | {"aggregator.linear.bias": torch.ones(7)}, r"MegaLoc but .*has shape \[7\] instead of \[96\]"),
        (lambda w: without(w, "aggregator.linear.weight"), "MegaLoc but aggregator.linear.weight is missing"),
        (lambda w: w | {"backbone.pos_embed": torch.ones(1, 12, 128)}, r"but backbone.pos_embed has .*\[1, 12, 128\]"),
        (lambda w: w | {"backbone.cls_token": torch.ones(3)}, r"MegaLoc but backbone.cls_token has the shape \[3\]"),
        (lambda w: without(w, *[key for key in w if "blocks" in key]), "MegaLoc but"),
        (
            lambda w: {key: value for key, value in w.items() if key.startswith("backbone.")},
            "not the weights of a CosPlace model.* look like a network for place recognition of another project",
        ),
        (
            lambda w: {key[9:]: value for key, value in w.items() if key.startswith("backbone.")},
            "look like a vision transformer without an aggregation, as of DINOv2",
        ),
        (lambda w: {"layer1.0.conv1.weight": torch.ones(2)}, "look like torchvision's ResNet, .*--imagenet_weights"),
        (lambda w: {"visual.conv1.weight": torch.ones(2)}, "look like CLIP"),
        (lambda w: {"backbone.blocks.0.adapter.fc.weight": torch.ones(2)}, "look like SelaVPR"),
        (lambda w: {"nothing": torch.ones(2)}, "aggregation.3.bias. Use the best_model.pth"),
    ],
)
def test_other_weights_are_refused_with_what_they_look_like(change, message: str, tmp_path: Path) -> None:
    path = write_release(tmp_path / "changed.pth", "megaloc", change(small("megaloc")))
    assert_refused(CheckpointError, message, path)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("salad", "backbone.model.cls_token"),
        ("salad", "backbone.model.pos_embed"),
        ("salad", "backbone.model.blocks.3.norm1.bias"),
        ("salad", "aggregator.dust_bin"),
        ("salad", "aggregator.cluster_features.3.weight"),
        ("megaloc_v1", "aggregator.agg.dust_bin"),
        ("megaloc_v1", "aggregator.agg.score.3.weight"),
        ("megaloc_v1", "aggregator.linear.bias"),
        ("boq_dinov2", "backbone.dino.cls_token"),
        ("boq_dinov2", "aggregator.boqs.0.queries"),
        ("image", "backbone.cls_token"),
        ("image", "backbone.register_tokens"),
        ("mixvpr", "backbone.model.conv1.weight"),
        ("mixvpr", "backbone.model.layer3.0.conv3.weight"),
        ("mixvpr", "aggregator.row_proj.weight"),
        ("netvlad", "encoder.0.bias"),
        ("netvlad", "pool.centroids"),
    ],
)
def test_an_incomplete_file_is_refused_with_the_missing_key_as_in_the_file(name: str, key: str) -> None:
    weights = {
        key: torch.empty(shape, device="meta") for key, shape in released(name, dim=128, depth=5, small=True).items()
    }
    method = LAYOUTS[name][0]
    with pytest.raises(CheckpointError, match=rf"look like {method} but {key} is missing"):
        network_from_release(without(weights, key))


def test_every_method_has_its_own_marks() -> None:
    for name, (method, _, _) in LAYOUTS.items():
        found = find_method(ours({key: torch.empty(0) for key in released(name, depth=1)}))
        assert found is not None and found.name == method
    assert len({method.marks for method in METHODS}) == len(METHODS)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_record(monkeypatch: pytest.MonkeyPatch):
    """Make the zoo expect the small networks of these tests."""

    def make(name: str) -> None:
        record, network = NATIVE_MODELS[name], network_from_release(small(IN_THE_ZOO[name]))
        assert network is not None
        for field, value in (("backbone", network.backbone_name), ("fc_output_dim", network.fc_output_dim)):
            object.__setattr__(record, field, value)

    before = {name: (record.backbone, record.fc_output_dim) for name, record in NATIVE_MODELS.items()}
    yield make
    for name, values in before.items():
        for field, value in zip(("backbone", "fc_output_dim"), values, strict=True):
            object.__setattr__(NATIVE_MODELS[name], field, value)


@pytest.mark.parametrize("name", ["megaloc", "boq_dinov2", "image_merged"])
def test_names_are_downloaded_and_opened(name: str, small_record, mirror: Server, tmp_path: Path) -> None:
    small_record(name)
    file = NATIVE_MODELS[name].file_name
    mirror.files[file] = write_release(tmp_path / file, IN_THE_ZOO[name], small(IN_THE_ZOO[name])).read_bytes()
    model = load_model(name, device="cpu")
    assert model.dimension == NATIVE_MODELS[name].fc_output_dim
    assert model.encode(torch.rand(3, 150, 160)).shape == (1, model.dimension)
    assert mirror.paths == [f"/{file}"]
    checked = verify_cache()
    assert [(one.name, one.is_good) for one in checked if one.name == name] == [(name, True)]


def test_a_file_of_another_method_is_refused(mirror: Server, tmp_path: Path) -> None:
    mirror.body = write_release(tmp_path / "weights.pth", "boq_dinov2", small("boq_dinov2")).read_bytes()
    assert_refused(CheckpointError, "holds DINOv2-128/14 with 2048 dimensions, not megaloc. Remove the file", "megaloc")


def test_a_restricted_license_must_be_accepted_once(small_record, mirror: Server, tmp_path: Path, capsys) -> None:
    small_record("salad")
    mirror.body = write_release(tmp_path / "weights.pth", "salad", small("salad")).read_bytes()
    assert_refused(ConfigError, "salad have a license that restricts their use, GPL-3.0.*--accept_license", "salad")
    assert main(["zoo", "download", "salad"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert mirror.paths == [] and not (weights_folder() / "dino_salad.ckpt.license").exists()
    assert main(["zoo", "download", "salad", "--accept_license"]) == 0
    assert (weights_folder() / "dino_salad.ckpt").is_file()
    assert isinstance(open_model("salad"), NativeNetwork)
    assert weights_path("salad") == weights_folder() / "dino_salad.ckpt"


def test_a_license_can_be_accepted_in_python(small_record, mirror: Server, tmp_path: Path) -> None:
    small_record("salad")
    mirror.body = write_release(tmp_path / "weights.pth", "salad", small("salad")).read_bytes()
    assert load_model("salad", device="cpu", accept_license=True).dimension == NATIVE_MODELS["salad"].fc_output_dim
