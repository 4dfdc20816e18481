import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from cosplace.config.names import BACKBONES
from cosplace.device import one_thread
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.imagenet import available_imagenet_weights, imagenet_url
from cosplace.models.network import GeoLocalizationNet, infer_architecture, network_from_state_dict
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD
from cosplace.training.cosface import MarginCosineProduct
from tests.models.networks import fill_by_rule, mark_slow, reference_input

# The numbers of the reference were computed by kernels for AVX-512; others round otherwise.
ROUNDS_AS_REFERENCE = torch.backends.cpu.get_cpu_capability() == "AVX512"

REFERENCE_BACKBONES = ("ResNet18", "ResNet50", "ResNet101", "ResNet152", "VGG16", "EfficientNet_B0", "EfficientNet_B3")
DESCRIPTORS = (
    "ResNet18_512",
    pytest.param("ResNet50_128", marks=pytest.mark.slow),
    pytest.param("ResNet101_2048", marks=pytest.mark.slow),
    pytest.param("ResNet152_32", marks=pytest.mark.slow),
    pytest.param("VGG16_64", marks=pytest.mark.slow),
    "EfficientNet_B0_32",
    pytest.param("EfficientNet_B3_256", marks=pytest.mark.slow),
)


# --- against the reference implementation -----------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", mark_slow(REFERENCE_BACKBONES))
def test_keys_shapes_and_frozen_parameters_are_the_references(backbone: str, reference_folder: Path):
    reference = json.loads((reference_folder / "state_dict_keys.json").read_text())
    network = GeoLocalizationNet(backbone, 48)
    expected = {
        key: tuple(48 if size == "fc_output_dim" else size for size in shape)
        for key, shape in reference[backbone].items()
    }
    found = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert found == expected
    assert list(found) == list(expected)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == reference[f"{backbone}_frozen"]


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_descriptors_are_the_references(name: str, reference_folder: Path):
    backbone, dim = name.rsplit("_", 1)
    network = fill_by_rule(GeoLocalizationNet(backbone, int(dim))).eval()
    with torch.inference_mode(), one_thread():
        found = network(reference_input()).numpy()
    expected = np.load(reference_folder / "descriptors.npz")[name]
    # With weights by rule EfficientNet_B3 magnifies rounding: noise of one unit in the last place of the input moves
    # its descriptors by up to 6e-4, and two processors with AVX-512 differ by 1.6e-4.
    tolerance = 1e-3 if backbone == "EfficientNet_B3" else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


class LiteralGeM(nn.Module):
    """The reference's operations in the reference's order, whose rounding its trajectory holds."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.avg_pool2d(inputs.clamp(min=1e-6).pow(self.p), inputs.shape[-2:]).pow(1 / self.p)


class LiteralL2Norm(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return F.normalize(inputs, dim=1)


def literal_loss(classifier: MarginCosineProduct, descriptors: Tensor, labels: Tensor) -> Tensor:
    lengths = torch.outer(descriptors.norm(dim=1), classifier.weight.norm(dim=1))
    cosines = descriptors @ classifier.weight.t() / lengths.clamp(min=1e-8)
    return F.cross_entropy(30.0 * (cosines - 0.4 * F.one_hot(labels, classifier.out_features)), labels)


def margin_loss(classifier: MarginCosineProduct, descriptors: Tensor, labels: Tensor) -> Tensor:
    return classifier.loss(descriptors, labels)


def literal_network() -> nn.Module:
    network = GeoLocalizationNet("ResNet18", 64)
    network.aggregation[0], network.aggregation[4] = LiteralL2Norm(), LiteralL2Norm()
    network.aggregation[1] = LiteralGeM()
    return fill_by_rule(network).train()


def trajectory_batch(epoch: int, iteration: int, num_classes: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(1000 + 10 * epoch + iteration)
    images = torch.from_numpy(rng.integers(0, 256, (8, 3, 96, 96), np.uint8)).float() / 255
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (images - mean) / std, torch.from_numpy(rng.integers(0, num_classes, 8))


def trajectory_classifiers() -> list[MarginCosineProduct]:
    classifiers = [MarginCosineProduct(64, num_classes) for num_classes in (20, 30)]
    for i, classifier in enumerate(classifiers):
        weight = np.random.default_rng(21 + i).standard_normal(tuple(classifier.weight.shape)) * 0.1
        classifier.load_state_dict({"weight": torch.from_numpy(weight)})
    return classifiers


def train_steps(
    network: nn.Module,
    classifiers: list[MarginCosineProduct],
    loss_of: Callable[[MarginCosineProduct, Tensor, Tensor], Tensor],
    before_step: Callable[[MarginCosineProduct, Tensor, Tensor], None] = lambda *_: None,
) -> list[float]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    optimizers = [torch.optim.Adam(classifier.parameters(), lr=1e-2) for classifier in classifiers]
    losses = []
    for epoch in range(4):
        classifier, classifier_optimizer = classifiers[epoch % 2], optimizers[epoch % 2]
        for iteration in range(3):
            images, labels = trajectory_batch(epoch, iteration, classifier.out_features)
            optimizer.zero_grad()
            classifier_optimizer.zero_grad()
            loss = loss_of(classifier, network(images), labels)
            loss.backward()
            before_step(classifier, images, labels)
            optimizer.step()
            classifier_optimizer.step()
            losses.append(loss.item())
    return losses


def assert_ends_as_the_reference(
    network: nn.Module, classifiers: list[MarginCosineProduct], reference: Mapping[str, np.ndarray]
) -> None:
    with torch.inference_mode():
        descriptors = network.eval()(reference_input()).numpy()
    np.testing.assert_allclose(descriptors, reference["final_descriptors"], rtol=0, atol=1e-2)
    np.testing.assert_allclose(
        network.get_parameter("aggregation.1.p").detach().numpy(), reference["gem_p"], rtol=0, atol=1e-3
    )
    for i, classifier in enumerate(classifiers):
        # One step in the other direction moves a weight by 2e-2.
        moved = np.abs(classifier.weight.detach().numpy() - reference[f"classifier{i}"])
        assert moved.max() < 4e-2
        assert moved.mean() < 1e-3
    # Frozen layers still follow the statistics of what they see.
    np.testing.assert_allclose(
        network.get_buffer("backbone.4.0.bn1.running_mean"), reference["bn_layer1_running_mean"], rtol=0, atol=1e-3
    )


# Adam's first steps are nearly the signs of the gradients, so that rounding decides some of them: noise of 1e-7 in the
# images moves the third loss by 1e-3, and so do float64 and other instruction sets.  Hence three tests: the reference's
# operations in its order give its numbers; at each of its steps ours give the same gradients; and ours, left alone,
# stay near.


@pytest.mark.slow
def test_the_references_operations_follow_its_trajectory(reference_folder: Path):
    reference = np.load(reference_folder / "training.npz")
    network, classifiers = literal_network(), trajectory_classifiers()
    losses = train_steps(network, classifiers, literal_loss)
    if ROUNDS_AS_REFERENCE:
        np.testing.assert_allclose(losses[:4], reference["losses"][:4], rtol=0, atol=1e-4)
    np.testing.assert_allclose(losses[:1], reference["losses"][:1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses, reference["losses"], rtol=5e-3)
    assert_ends_as_the_reference(network, classifiers, reference)


@pytest.mark.slow
def test_our_formulas_have_the_references_gradients_at_each_of_its_steps():
    network, classifiers = literal_network(), trajectory_classifiers()
    ours, our_classifiers = GeoLocalizationNet("ResNet18", 64).train(), trajectory_classifiers()
    compared = 0

    def compare(classifier: MarginCosineProduct, images: Tensor, labels: Tensor) -> None:
        nonlocal compared
        own = our_classifiers[classifiers.index(classifier)]
        own.load_state_dict(classifier.state_dict())
        ours.load_state_dict(network.state_dict())  # its statistics are one batch ahead, which training does not see
        ours.zero_grad()
        own.zero_grad()
        own.loss(ours(images), labels).backward()
        pairs = dict(network.named_parameters()) | {"classifier": classifier.weight}
        for name, parameter in (dict(ours.named_parameters()) | {"classifier": own.weight}).items():
            expected = pairs[name].grad
            assert (parameter.grad is None) == (expected is None), name
            if expected is not None:
                difference = (parameter.grad - expected).norm() / expected.norm()
                assert difference < 1e-4, (name, difference)
                compared += 1

    train_steps(network, classifiers, literal_loss, compare)
    assert compared >= 12 * 30


@pytest.mark.slow
def test_training_stays_near_the_references_trajectory(reference_folder: Path):
    reference = np.load(reference_folder / "training.npz")
    network, classifiers = fill_by_rule(GeoLocalizationNet("ResNet18", 64)).train(), trajectory_classifiers()
    losses = train_steps(network, classifiers, margin_loss)
    np.testing.assert_allclose(losses[:1], reference["losses"][:1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses[1:2], reference["losses"][1:2], rtol=0, atol=3e-4)
    np.testing.assert_allclose(losses, reference["losses"], rtol=5e-3)
    assert_ends_as_the_reference(network, classifiers, reference)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(96, 96), (33, 80), (224, 161)])
def test_photos_of_any_size_become_unit_descriptors(height: int, width: int):
    network = GeoLocalizationNet("resnet18-small", 7).eval()
    descriptors = network(torch.randn(3, 3, height, width))
    assert descriptors.shape == (3, 7)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(3))
    assert (network.backbone_name, network.features_dim, network.fc_output_dim) == ("ResNet18_Small", 128, 7)


def test_small_network_has_stride_16_and_all_its_layers_are_trained():
    network = GeoLocalizationNet("ResNet18_Small", 64)
    assert network.backbone(torch.randn(2, 3, 96, 64)).shape == (2, 128, 6, 4)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) < 1_000_000


def test_train_all_layers_freezes_nothing():
    assert all(parameter.requires_grad for parameter in GeoLocalizationNet("VGG16", 8, True).parameters())


def test_equal_generators_give_equal_networks():
    networks = [GeoLocalizationNet("ResNet18", 16, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    first, same, other = (network.state_dict() for network in networks)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["backbone.0.weight"], other["backbone.0.weight"])
    assert not torch.equal(first["aggregation.3.weight"], other["aggregation.3.weight"])


def test_random_weights_have_the_spread_of_torchvisions():
    ours = GeoLocalizationNet("ResNet18", 16).backbone.state_dict()["7.1.conv2.weight"]
    theirs = get_model("resnet18", weights=None).state_dict()["layer4.1.conv2.weight"]
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.01)


@pytest.mark.parametrize("dim", [0, -1])
def test_dimensions_below_one_are_refused(dim: int):
    with pytest.raises(ConfigError, match=f"fc_output_dim must be at least 1, got {dim}"):
        GeoLocalizationNet("ResNet18", dim)


@pytest.mark.slow
def test_export_keeps_height_and_width_free():
    network = GeoLocalizationNet("ResNet18_Small", 8).eval()
    height, width = (torch.export.Dim(name, min=32, max=1024) for name in ("height", "width"))
    program = torch.export.export(
        network, (torch.randn(2, 3, 96, 64),), dynamic_shapes={"images": {2: height, 3: width}}, strict=False
    )
    images = torch.randn(2, 3, 75, 130)
    torch.testing.assert_close(program.module()(images), network(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_descriptors_are_unit_float32_near_the_full_ones(dtype: torch.dtype):
    network = GeoLocalizationNet("ResNet18_Small", 32, generator=torch.Generator().manual_seed(0)).eval()
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        full = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = network(images)
        low = network.to(dtype)(images.to(dtype))
    for found in (mixed, low):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2), rtol=0, atol=1e-5)
        assert F.cosine_similarity(found, full).min() > 0.999


# --- ImageNet weights -------------------------------------------------------------------------------------------------


def test_imagenet_versions_are_torchvisions():
    versions = {backbone: available_imagenet_weights(backbone) for backbone in BACKBONES}
    assert versions["ResNet18"] == versions["VGG16"] == ("v1",)
    assert versions["ResNet50"] == versions["ResNet152"] == versions["EfficientNet_B1"] == ("v1", "v2")
    assert versions["ResNet18_Small"] == ()
    assert imagenet_url("resnet-18", "v1") == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert imagenet_url("ResNet50", "v2", base="http://x/y/") == "http://x/y/resnet50-11ad3fa6.pth"


def test_imagenet_versions_that_do_not_exist_get_the_existing_ones():
    with pytest.raises(ConfigError, match=r"'v2' for VGG16\. Use --imagenet_weights v1, none"):
        imagenet_url("VGG16", "v2")


@pytest.mark.parametrize(
    "backbone, ours, theirs",
    [
        ("ResNet18", "6.1.conv2.weight", "layer3.1.conv2.weight"),
        ("EfficientNet_B0", "0.5.1.block.1.0.weight", "features.5.1.block.1.0.weight"),
        pytest.param("VGG16", "28.bias", "features.28.bias", marks=pytest.mark.slow),
    ],
)
def test_local_torchvision_weights_fill_the_backbone(backbone: str, ours: str, theirs: str, tmp_path: Path):
    model = get_model(backbone.lower(), weights=None)
    # As published files are: half precision here, and without counters before PyTorch 0.4.1.
    state_dict = {k: v.half() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state_dict, tmp_path / "weights.pth")
    network = GeoLocalizationNet(backbone, 8, imagenet_weights=tmp_path / "weights.pth")
    loaded = network.backbone.state_dict()
    assert loaded[ours].dtype == torch.float32
    assert torch.equal(loaded[ours], state_dict[theirs].float())
    images = torch.randn(1, 3, 64, 64)
    model.load_state_dict({k: v.float() for k, v in state_dict.items()}, strict=False)
    model.eval()
    with torch.inference_mode():
        if backbone == "ResNet18":
            expected = model.get_submodule("layer1")(images[:, :1].expand(1, 64, 64, 64))
            found = network.eval().backbone[4](images[:, :1].expand(1, 64, 64, 64))
        else:
            layers = list(model.get_submodule("features").children())
            expected = nn.Sequential(*(layers[:-2] if backbone == "VGG16" else layers))(images)
            found = network.eval().backbone(images)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_imagenet_weights_of_another_architecture_are_refused(tmp_path: Path):
    path = tmp_path / "resnet50.pth"
    torch.save({k: v.half() for k, v in get_model("resnet50", weights=None).state_dict().items()}, path)
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight has shape .* looks like ResNet50") as caught:
        GeoLocalizationNet("ResNet18", 8, imagenet_weights=str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"features\.0\.weight is missing.*looks like ResNet50"):
        GeoLocalizationNet("VGG16", 8, imagenet_weights=path)


def test_incomplete_imagenet_weights_are_refused(tmp_path: Path):
    state_dict = get_model("resnet18", weights=None).state_dict()
    del state_dict["layer3.0.bn1.running_mean"]
    torch.save(state_dict, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"layer3\.0\.bn1\.running_mean is missing"):
        GeoLocalizationNet("ResNet18", 8, imagenet_weights=tmp_path / "weights.pth")


def test_a_whole_model_is_refused_as_imagenet_weights(tmp_path: Path):
    torch.save(GeoLocalizationNet("ResNet18_Small", 8).state_dict(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="--resume_model"):
        GeoLocalizationNet("ResNet18_Small", 8, imagenet_weights=tmp_path / "model.pth")


@pytest.mark.parametrize("backbone, version", [("ResNet18", "v2"), ("ResNet18_Small", "v1"), ("ResNet50", "v3")])
def test_imagenet_versions_that_do_not_exist_are_refused(backbone: str, version: str):
    with pytest.raises(ConfigError, match=f"'{version}' for {backbone}. Use --imagenet_weights"):
        GeoLocalizationNet(backbone, 8, imagenet_weights=version)


def test_a_missing_file_of_imagenet_weights_is_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no weights file .*absent\.pth"):
        GeoLocalizationNet("ResNet18", 8, imagenet_weights=str(tmp_path / "absent.pth"))


# --- architectures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", mark_slow(BACKBONES))
def test_architecture_is_inferred_from_keys_and_shapes(backbone: str):
    assert infer_architecture(GeoLocalizationNet(backbone, 96).state_dict()) == (backbone, 96)


def test_network_from_its_own_state_dict_gives_the_same_descriptors():
    network = GeoLocalizationNet("ResNet18_Small", 24).eval()
    network(torch.randn(4, 3, 64, 64))
    again = network_from_state_dict(network.state_dict()).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), network(images))


def test_nearly_matching_state_dicts_report_the_first_difference():
    state_dict = GeoLocalizationNet("ResNet18", 16).state_dict()
    broken = {key: value for key, value in state_dict.items() if key != "backbone.7.1.conv2.weight"}
    with pytest.raises(CheckpointError, match=r"ResNet18 but backbone\.7\.1\.conv2\.weight is missing"):
        infer_architecture(broken)
    with pytest.raises(CheckpointError, match=r"aggregation\.3\.bias is missing"):
        infer_architecture({key: value for key, value in state_dict.items() if key != "aggregation.3.bias"})
    with pytest.raises(CheckpointError, match=r"aggregation\.3\.weight has shape \[16, 99\] instead of \[16, 512\]"):
        infer_architecture(state_dict | {"aggregation.3.weight": torch.zeros(16, 99)})
    with pytest.raises(CheckpointError, match=r"extra\.weight is unexpected"):
        infer_architecture(state_dict | {"extra.weight": torch.zeros(1)})


def test_other_state_dicts_are_refused():
    with pytest.raises(CheckpointError, match="not the weights of a CosPlace model"):
        infer_architecture(get_model("resnet18", weights=None).state_dict())
    with pytest.raises(CheckpointError, match="not the weights of a CosPlace model"):
        infer_architecture({})
