"""The network to export: batch norms folded, preprocessing included if wanted, traced for photos of any size or of one.

Batch, height and width stay dynamic unless their sizes are given.  With fp16, only the backbone computes with 16 bits.
It holds nearly all weights, while the norms, the powers of GeM, other aggregations and the linear layer, which lose
most precision, stay in float32.
"""

import logging
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cosplace.engines.input_format import InputFormat
from cosplace.errors import ConfigError, ExportError, InputSizeError
from cosplace.models.inference import optimize_for_inference
from cosplace.models.native import NativeNetwork
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import unreduced
from cosplace.models.resampling import resample
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD
from cosplace.photos.resizing import resize_shorter_side

# B, H, W of the traced example: all different and no feature map with side 1, else the tracer makes them constants.
EXAMPLE_SHAPE = 2, 96, 160
MAX_SMALLEST_SIDE = 512  # pixels; every backbone accepts photos of this size


class DeployableNetwork(nn.Module):
    """The network in the file: photos in the form that `inputs` describes -> unit descriptors (B, D).

    It is a copy that shares no memory with `network`.  half: the backbone computes with 16 bits.
    """

    def __init__(self, network: nn.Module, *, inputs: InputFormat, half: bool) -> None:
        super().__init__()
        self.inputs = inputs
        # Contiguous: with channels last, traces depend on whether sides of feature maps are 1.
        self.network = optimize_for_inference(network).to(memory_format=torch.contiguous_format)
        self.mean: Tensor
        self.std: Tensor
        if inputs.values != "normalized":
            largest = 255 if inputs.values == "uint8" else 1
            shape = (3,) if inputs.channels_last else (3, 1, 1)
            self.register_buffer("mean", largest * torch.tensor(IMAGENET_MEAN).view(shape))
            self.register_buffer("std", largest * torch.tensor(IMAGENET_STD).view(shape))
        if half:
            unreduced(self.network).get_submodule("backbone").half()
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, D) float32."""
        if self.inputs.values != "normalized":
            images = (images.float() - self.mean) / self.std
        if self.inputs.channels_last:
            images = images.permute(0, 3, 1, 2)
        if self.inputs.resize_to is not None:
            images = resize_inside(images, self.inputs.resize_to)
        return self.network(images)


def resize_inside(images: Tensor, size: int) -> Tensor:
    """Resize images (B, 3, H, W) to a shorter side of `size` pixels: bilinear with antialias, as products of matrices.

    Like `photos.resizing.resize_shorter_side`, but of floats: that one rounds to whole pixels.
    """
    height, width = images.shape[-2:]
    shorter: Any = torch.sym_min(height, width)  # while tracing, sizes are symbols
    return resample(images, size * height // shorter, size * width // shorter)


class ResizingNetwork(nn.Module):
    """The same network in PyTorch as in a file that resizes photos: images (B, 3, H, W) -> descriptors (B, D)."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        """Resize as photos are resized, then compute descriptors."""
        return self.network(resize_shorter_side(images, self.size))


def check_exportable(network: nn.Module) -> None:
    """Raise ConfigError unless the network, without its reduction, is one that this package builds."""
    base = unreduced(network)
    if not isinstance(base, GeoLocalizationNet | NativeNetwork):
        raise ConfigError(
            f"A {type(base).__name__} cannot be exported, only models that this package builds itself can. Use a name "
            f"of `cosplace zoo list` or a weights file."
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
    except (RuntimeError, InputSizeError):
        return False


def trace(deployable: DeployableNetwork) -> ExportedProgram:
    """Trace the network for any batch, height and width, or for the shape of its inputs.

    Raises ExportError if torch cannot.
    """
    inputs = deployable.inputs
    height, width = (1, 2) if inputs.channels_last else (2, 3)
    dynamic_axes = {0: Dim.DYNAMIC, height: Dim.DYNAMIC, width: Dim.DYNAMIC} if inputs.static_shape is None else None
    example = _example_input(inputs)
    try:
        with suppress_messages(), torch.no_grad():
            # strict=False follows Python code instead of compiling it: strict tracing in torch 2.6 fails on GeM.
            return torch.export.export(deployable, (example,), dynamic_shapes=(dynamic_axes,), strict=False)
    except Exception as error:  # the tracer raises many types
        raise ExportError(
            f"PyTorch cannot trace the network ({summarize_error(error)}). Use another version of torch."
        ) from error


def _example_input(inputs: InputFormat) -> Tensor:
    """Random input of the traced network."""
    batch, height, width = inputs.static_shape or EXAMPLE_SHAPE
    photos = torch.randint(
        0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return inputs.from_pixels(photos)


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
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
