"""The network to export: batch norms folded, preprocessing included if wanted, traced for photos of any size.

Batch, height and width stay dynamic.  With fp16, only the backbone computes with 16 bits.  It holds nearly all weights,
while the norms, the powers of GeM and the small linear layer, which lose most precision, stay in float32.
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
from cosplace.models.inference import optimize_for_inference
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import unreduced
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD

# B, H, W of the traced example: all different and no feature map with side 1, else the tracer makes them constants.
EXAMPLE_SHAPE = 2, 96, 160
MAX_SMALLEST_SIDE = 512  # pixels; every backbone accepts photos of this size


class DeployableNetwork(nn.Module):
    """The network in the file: photos (B, 3, H, W) float32, or (B, H, W, 3) uint8 -> unit descriptors (B, D).

    It is a copy that shares no memory with `network`.  half: the backbone computes with 16 bits.
    """

    def __init__(self, network: nn.Module, *, with_preprocessing: bool, half: bool) -> None:
        super().__init__()
        self.with_preprocessing, self.half_backbone = with_preprocessing, half
        # Contiguous: with channels last, traces depend on whether sides of feature maps are 1.
        self.network = optimize_for_inference(network).to(memory_format=torch.contiguous_format)
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
    """Raise ConfigError unless the network, without its reduction, is a GeoLocalizationNet."""
    base = unreduced(network)
    if not isinstance(base, GeoLocalizationNet):
        raise ConfigError(
            f"A {type(base).__name__} cannot be exported, only CosPlace and EigenPlaces models can. Use a name of "
            f"`cosplace zoo list` or a weights file."
        )


def find_smallest_side(network: nn.Module) -> int:
    """Return the smallest side of a photo in pixels that the network accepts, for example 16 for VGG16."""
    side = 1
    while side < MAX_SMALLEST_SIDE and not _accepts_side(network, side):
        side *= 2
    too_small = side // 2
    while side - too_small > 1:
        middle = (side + too_small) // 2
        side, too_small = (middle, too_small) if _accepts_side(network, middle) else (side, middle)
    return side


def _accepts_side(network: nn.Module, side: int) -> bool:
    try:
        with torch.inference_mode():
            return bool(torch.isfinite(network(torch.zeros(1, 3, side, side))).all())
    except RuntimeError:
        return False


def trace(deployable: DeployableNetwork) -> ExportedProgram:
    """Trace the network for any batch, height and width.  Raises ExportError if torch cannot."""
    height, width = (1, 2) if deployable.with_preprocessing else (2, 3)
    dynamic_axes = {0: Dim.DYNAMIC, height: Dim.DYNAMIC, width: Dim.DYNAMIC}
    example = _example_input(deployable.with_preprocessing)
    try:
        with suppress_messages(), torch.no_grad():
            # strict=False follows Python code instead of compiling it: strict tracing in torch 2.6 fails on GeM.
            return torch.export.export(deployable, (example,), dynamic_shapes=(dynamic_axes,), strict=False)
    except Exception as error:  # the tracer raises many types
        raise ExportError(
            f"PyTorch cannot trace the network ({summarize_error(error)}). Use another version of torch."
        ) from error


def _example_input(with_preprocessing: bool) -> Tensor:
    """Random input of the traced network: (B, H, W, 3) uint8, or (B, 3, H, W) float32."""
    batch, height, width = EXAMPLE_SHAPE
    generator = torch.Generator().manual_seed(0)
    if with_preprocessing:
        return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    return torch.randn(batch, 3, height, width, generator=generator)


@contextmanager
def suppress_messages() -> Generator[None]:
    """Suppress logs and warnings of torch's tracer and exporters and of ONNX Runtime's quantizer."""
    disabled, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.ERROR)  # for all loggers, because torch sets the levels of its own while it works
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers  # logging.warning adds one if there is none: lines would appear twice


def summarize_error(error: BaseException) -> str:
    """Return the type and the first line of an error of another library."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
