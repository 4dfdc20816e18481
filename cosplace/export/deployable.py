"""The network in the form that leaves PyTorch: batch norms folded, preprocessing inside if wanted, traced.

Batch, height and width stay free.  In fp16 the backbone alone computes with 16 bits: its weights are nearly all of
the file, while the norms, GeM's powers and the small linear layer behind it, which would lose most, stay in float32.
"""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cosplace.errors import ConfigError
from cosplace.export.settings import ExportError
from cosplace.models.inference import for_inference
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import ReducedNetwork, unreduced
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD

TRACED_SIZE = 2, 96, 160  # B, H, W of the example; no two alike, no feature map of side 1, so that none is a constant
LARGEST_SMALLEST_SIDE = 512  # pixels; no backbone needs as many


class Portable(nn.Module):
    """What is written to a file: photos (B, 3, H, W) float32, or (B, H, W, 3) uint8 -> unit descriptors (B, D).

    The copy shares nothing with `network`.  half: the backbone computes with 16 bits.
    """

    def __init__(self, network: nn.Module, *, with_preprocessing: bool, half: bool) -> None:
        super().__init__()
        self.with_preprocessing, self.half_backbone = with_preprocessing, half
        self.network = folded(network)
        self.mean: Tensor
        self.std: Tensor
        if with_preprocessing:
            self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN))
            self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD))
        if half:
            unreduced(self.network).get_submodule("backbone").half()
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, D) float32."""
        if self.with_preprocessing:
            images = ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        return self.network(images.half() if self.half_backbone else images)


def check_exportable(network: nn.Module) -> None:
    """Raise ConfigError for networks that this package did not build."""
    base = unreduced(network)
    if not isinstance(base, GeoLocalizationNet):
        raise ConfigError(
            f"A {type(base).__name__} cannot be exported here, its code is not this package's: give a CosPlace or "
            f"EigenPlaces model, of the zoo or of a run."
        )


def folded(network: nn.Module) -> nn.Module:
    """A copy with batch norms folded into convolutions, also of a network with a reduction behind it.

    Its weights lie contiguous: with channels last, traces depend on whether sides of feature maps are 1.
    """
    if isinstance(network, ReducedNetwork):
        copied: nn.Module = ReducedNetwork(for_inference(network.network), network.reduction)
    else:
        copied = for_inference(network)
    return copied.to(memory_format=torch.contiguous_format)


def example_photos(with_preprocessing: bool, size: tuple[int, int, int] = TRACED_SIZE) -> Tensor:
    """Made input of a file: (B, H, W, 3) uint8, or (B, 3, H, W) float32."""
    batch, height, width = size
    generator = torch.Generator().manual_seed(0)
    if with_preprocessing:
        return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    return torch.randn(batch, 3, height, width, generator=generator)


def trace(portable: Portable) -> ExportedProgram:
    """The operations of the network, for any batch, height and width.  Raises ExportError when torch cannot."""
    height, width = (1, 2) if portable.with_preprocessing else (2, 3)
    free = {0: Dim.DYNAMIC, height: Dim.DYNAMIC, width: Dim.DYNAMIC}
    try:
        with quietly(), torch.no_grad():
            # Not strict: plain Python is followed, not compiled; strict tracing of torch 2.6 stumbles over our pooling.
            return torch.export.export(
                portable, (example_photos(portable.with_preprocessing),), dynamic_shapes=(free,), strict=False
            )
    except Exception as error:  # the tracer raises nearly anything
        raise ExportError(f"PyTorch cannot trace the network ({first_line(error)}): try another version.") from error


def smallest_side(network: nn.Module) -> int:
    """The fewest pixels that both sides of a photo may have, for example 16 for VGG16."""
    side = 1
    while side < LARGEST_SMALLEST_SIDE and not _describes(network, side):
        side *= 2
    too_small = side // 2
    while side - too_small > 1:
        middle = (side + too_small) // 2
        side, too_small = (middle, too_small) if _describes(network, middle) else (side, middle)
    return side


def _describes(network: nn.Module, side: int) -> bool:
    try:
        with torch.inference_mode():
            return bool(torch.isfinite(network(torch.zeros(1, 3, side, side))).all())
    except RuntimeError:
        return False


@contextmanager
def quietly() -> Generator[None]:
    """Within: what torch's tracers and ONNX Runtime's quantizer log and warn of their own workings is not shown."""
    disabled, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.ERROR)  # of all loggers: torch sets the levels of its own while it works
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers  # logging.warning adds one where there is none, and lines would come twice


def first_line(error: BaseException) -> str:
    """The kind of an error of others and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
