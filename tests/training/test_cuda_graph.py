"""The network of a training step as CUDA graphs gives what the network gives."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from cosplace.device import fused_adam
from cosplace.errors import ConfigError
from cosplace.models.network import GeoLocalizationNet
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.cuda_graph import RecordedNetwork
from cosplace.training.step import TrainingStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BATCH, SIDE, CLASSES = 8, 96, 50


def step_of(forward: object, network: nn.Module, dtype: torch.dtype | None) -> TrainingStep:
    classifier = MarginCosineProduct(64, CLASSES, generator=torch.Generator().manual_seed(1)).cuda()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return TrainingStep(
        forward=forward,  # type: ignore[arg-type]
        classifier=classifier,
        optimizers=(fused_adam(trained, 1e-3), fused_adam(classifier.parameters(), 1e-2)),
        scaler=torch.amp.GradScaler("cuda", enabled=dtype == torch.float16),
        device=torch.device("cuda"),
        dtype=dtype,
    )


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    images = torch.randn(count, BATCH, 3, SIDE, SIDE, device="cuda")
    labels = torch.randint(CLASSES, (count, BATCH), device="cuda")
    return [(one.to(memory_format=torch.channels_last), classes) for one, classes in zip(images, labels, strict=True)]


@pytest.mark.parametrize("backbone", ["ResNet18", "VGG16"])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16], ids=str)
def test_losses_and_statistics_are_those_of_the_network(backbone: str, dtype: torch.dtype | None) -> None:
    network = GeoLocalizationNet(backbone, 64).cuda().to(memory_format=torch.channels_last).train()
    same = copy.deepcopy(network)
    recorded = RecordedNetwork(same, dtype)
    recorded.record(BATCH, SIDE, torch.device("cuda"))
    for (key, buffer), expected in zip(same.named_buffers(), network.buffers(), strict=True):
        assert torch.equal(buffer, expected), key
    plain_step, step = step_of(network, network, dtype), step_of(recorded, same, dtype)
    for number, (images, labels) in enumerate(batches(6)):
        torch.manual_seed(number)
        expected = plain_step(images, labels)
        torch.manual_seed(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remark about streams in the first call
            loss = step(images, labels)
        torch.testing.assert_close(loss, expected, rtol=2e-3, atol=2e-3)
    for (key, buffer), expected in zip(same.named_buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=5e-3, atol=5e-3, msg=key)


def test_evaluation_and_other_shapes_run_the_network_itself() -> None:
    network = GeoLocalizationNet("ResNet18", 64).cuda().to(memory_format=torch.channels_last).train()
    recorded = RecordedNetwork(network, None)
    recorded.record(BATCH, SIDE, torch.device("cuda"))
    images, _ = batches(1)[0]
    assert recorded(images[:3, :, :64, :64]).shape == (3, 64)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(recorded(images), network(images))
        assert torch.equal(recorded(images[:1]), network(images[:1]))


def test_a_network_that_draws_random_numbers_is_refused() -> None:
    network = GeoLocalizationNet("EfficientNet_B0", 64).cuda().train()
    recorded = RecordedNetwork(network, None)
    before = torch.cuda.get_rng_state()
    with pytest.raises(ConfigError, match="random numbers"):
        recorded.record(BATCH, SIDE, torch.device("cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), before)
