"""Networks optimized for inference compute the same descriptors."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cosplace.models.inference import optimize_for_inference
from cosplace.models.network import GeoLocalizationNet
from tests.models.networks import fill_by_rule, mark_slow, reference_input


@pytest.mark.parametrize(
    "backbone", mark_slow(("ResNet18", "ResNet18_Small", "ResNet50", "VGG16", "EfficientNet_B0", "EfficientNet_B3"))
)
def test_optimized_networks_compute_the_same_descriptors(backbone: str):
    network = GeoLocalizationNet(backbone, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():  # statistics and affine parameters that have an effect
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.8), (module.bias, -0.1), (module.running_mean, -0.1)):
                tensor.data.uniform_(low, low + 0.3, generator=generator)
    network.train()(torch.randn(4, 3, 64, 64, generator=generator))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = optimize_for_inference(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any(module.training for module in folded.modules())
    assert all(module.training for module in network.modules())
    images = torch.randn(2, 3, 96, 80, generator=generator)
    with torch.inference_mode():
        expected = network.eval()(images)
        torch.testing.assert_close(folded(images), expected, rtol=0, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            assert F.cosine_similarity(folded(images), expected).min() > 0.999
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    ours = {parameter.data_ptr() for parameter in folded.parameters()}
    assert not any(parameter.data_ptr() in ours for parameter in network.parameters())


@pytest.fixture(scope="module")
def pool() -> nn.MaxPool2d:
    """The pooling of a ResNet that is optimized."""
    modules = optimize_for_inference(GeoLocalizationNet("ResNet18", 8)).modules()
    (found,) = (module for module in modules if isinstance(module, nn.MaxPool2d))
    assert type(found) is not nn.MaxPool2d
    return found


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("height, width", [(2, 2), (2, 10), (16, 24), (5, 8), (8, 5), (1, 1)])
def test_pooling_after_relu_is_torchs_bit_for_bit(
    pool: nn.MaxPool2d, height: int, width: int, layout: torch.memory_format
):
    numbers = torch.randn(3, 7, height, width, generator=torch.Generator().manual_seed(0)) * 1e3
    numbers.view(-1)[:2] = torch.tensor([torch.inf, torch.nan])
    for dtype in (torch.bfloat16, torch.float32):
        inputs = numbers.to(dtype).relu().to(memory_format=layout)
        with torch.inference_mode():
            found, expected = pool(inputs), torch.nn.functional.max_pool2d(inputs, 3, 2, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backbone", ["ResNet18", "ResNet18_Small", "ResNet50", "VGG16"])
def test_the_bfloat16_pooling_changes_no_descriptor(backbone: str):
    fast = optimize_for_inference(GeoLocalizationNet(backbone, 8, generator=torch.Generator().manual_seed(0)))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        ours = fast(images)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cosplace.models.inference._PoolAfterReLU.forward", nn.MaxPool2d.forward)
            assert torch.equal(fast(images), ours)


def test_optimized_networks_compute_the_descriptors_of_the_reference(reference_folder: Path):
    network = optimize_for_inference(fill_by_rule(GeoLocalizationNet("ResNet18", 512)))
    with torch.inference_mode():
        found = network(reference_input()).numpy()
    np.testing.assert_allclose(found, np.load(reference_folder / "descriptors.npz")["ResNet18_512"], rtol=0, atol=1e-5)


def test_an_optimized_network_can_be_optimized_again():
    once = optimize_for_inference(GeoLocalizationNet("ResNet18_Small", 8))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(optimize_for_inference(once)(images), once(images))


def test_other_networks_are_returned_unchanged():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert optimize_for_inference(network) is network
    assert len(list(network.buffers())) == 3
