"""A network that computes a part of a batch as if it had the whole batch.

Three kinds of layers see more than one image.  Batch norms use the statistics of the whole batch (`synced_batch_norm`).
Layers that draw random numbers, such as dropout, draw them for the whole batch and use those of the own images, so that
the numbers do not depend on how many processes there are.  Any other layer that would make a difference is refused:
`distribute` compares a small batch before and after.

Layers keep their types and weights; only their `forward` is replaced.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cosplace.errors import ConfigError
from cosplace.models.network import GeoLocalizationNet
from cosplace.training.processes import Processes, part
from cosplace.training.synced_batch_norm import SyncedForward

CHECKED_IMAGES = 2  # per process
TOLERANCE = 1e-3  # of the numbers of unit descriptors; rounding is far below, a layer that differs far above
BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNormAct2d")  # the last is of timm
BY_IMAGE = ("DropPath",)  # of timm: one random number for each image


class Share:
    """The own images of a batch."""

    def __init__(self, total: int, rank: int, world_size: int) -> None:
        self.total, self.own = total, part(total, rank, world_size)


class DrawnForBatch:
    """Replaces `forward` of a layer that multiplies its inputs by random numbers."""

    def __init__(self, layer: nn.Module, share: Share, *, by_image: bool) -> None:
        self.layer, self.share, self.by_image = layer, share, by_image

    def __call__(self, inputs: Tensor) -> Tensor:
        """(n, ...) -> (n, ...), n own images.  Raises ConfigError if the first dimension is another one."""
        forward = type(self.layer).forward
        if not self.layer.training:
            return forward(self.layer, inputs)
        own, total = self.share.own, self.share.total
        if len(inputs) != len(own):
            raise ConfigError(
                f"This network has a layer ({type(self.layer).__name__}) with random numbers for {len(inputs)} parts "
                f"of {len(own)} images, which cannot be split over processes. Train in one process."
            )
        rest = [1] * (inputs.dim() - 1) if self.by_image else inputs.shape[1:]
        ones = torch.ones(total, *rest, dtype=inputs.dtype, device=inputs.device)
        if inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            ones = ones.to(memory_format=torch.channels_last)  # numbers are drawn in the order of memory
        return inputs * forward(self.layer, ones)[own.start : own.stop]


def distribute(network: GeoLocalizationNet, processes: Processes, batch_size: int, image_size: int) -> None:
    """Change a network, in place, into one for the own part of batches of `batch_size` images.

    Its weights become those of the main process.  Raises ConfigError for a network that cannot be split.
    """
    processes.broadcast_tensors([*network.parameters(), *network.buffers()])
    share = Share(CHECKED_IMAGES * processes.world_size, processes.rank, processes.world_size)
    images = torch.randn(
        share.total, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)
    ).to(processes.device)  # fmt: skip
    random_layers = [layer for layer in network.modules() if _random_kind(layer) is not None]
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    error: Exception | None = None
    try:
        for norm in norms:
            if type(norm).__name__ not in BATCH_NORMS:
                raise ConfigError(
                    f"This network has batch normalization of a kind ({type(norm).__name__}) that cannot be split over "
                    f"processes. Train in one process."
                )
        _refuse_other_random_layers(network, random_layers, images[:CHECKED_IMAGES])
        expected = _outputs(network, images)
        for norm in norms:
            norm.__dict__["forward"] = SyncedForward(norm, processes)
        for layer in random_layers:
            layer.__dict__["forward"] = DrawnForBatch(layer, share, by_image=_random_kind(layer) == "image")
    except ConfigError as problem:
        error = problem
    processes.agree(error)
    own = slice(share.own.start, share.own.stop)
    apart = (_outputs(network, images[own]) - expected[own]).abs().max().item()
    if not apart < TOLERANCE:
        error = ConfigError(
            f"The descriptors of this network differ by {apart:.2g} when a batch is split over processes, so its "
            f"training would be another one. Train in one process."
        )
    processes.agree(error)
    share.total, share.own = batch_size, processes.part(batch_size)


def _random_kind(layer: nn.Module) -> str | None:
    """What a layer draws a random number for, "image" or "number"; None if it does not, or is not known."""
    from torchvision.ops import StochasticDepth

    if type(layer).__name__ in BY_IMAGE or (isinstance(layer, StochasticDepth) and layer.mode == "row"):
        return "image"
    return "number" if type(layer) is nn.Dropout and layer.p > 0 else None


def _refuse_other_random_layers(network: nn.Module, known: list[nn.Module], images: Tensor) -> None:
    """Raise ConfigError if a layer that is not known draws random numbers."""
    with _kept(network, images.device):
        for layer in known:
            layer.eval()
        before = _random_state(images.device)
        network(images)
        draws = not torch.equal(before, _random_state(images.device))
    if draws:
        raise ConfigError(
            "This network draws random numbers in training, in layers that cannot be split over processes. Train in "
            "one process."
        )


def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    with _kept(network, images.device):
        return network(images.to(memory_format=torch.channels_last))


@contextmanager
def _kept(network: nn.Module, device: torch.device) -> Generator[None]:
    """Within: the network is in training mode, draws the same random numbers, and keeps its statistics."""
    modes = [(module, module.training) for module in network.modules()]
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        network.train()
        try:
            yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)
            for module, mode in modes:
                module.training = mode


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
