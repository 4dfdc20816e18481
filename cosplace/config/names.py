"""Names that users type: backbones, aggregations and devices, and suggestions for misspelled names."""

import difflib
import re
from collections.abc import Iterable, Sequence

from cosplace.errors import ConfigError

BACKBONES = (
    "VGG16",
    "ResNet18",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    *(f"EfficientNet_B{i}" for i in range(8)),
    "ResNet18_Small",
)
"""Backbones of the paper, and a small one."""
DINOV2_BACKBONES = tuple(f"dinov2_vit{size}14{registers}" for registers in ("", "_reg") for size in "sbl")
TIMM = "timm:"  # before the name of a network of timm
TIMM_NAME = re.compile(r"\w+(\.\w+)?")  # architecture, and tag of its weights
ENGINES = (
    "torch",
    "torch_bf16",
    "torch_compile",
    "onnx",
    "onnx_int8",
    "openvino",
    "openvino_bf16",
    "openvino_fp16",
    "openvino_int8",
    "openvino_int8_weights",
)
"""Programs that run a network, see `engines.kinds`."""
AGGREGATIONS = ("gem", "salad", "boq", "mixvpr", "conv_ap", "netvlad", "tokens")


def similar_names(name: str, names: Iterable[str], *, count: int = 3, cutoff: float = 0.5) -> list[str]:
    """Names that are spelled like `name`, the most similar first; case and separators are ignored."""
    by_plain = {_plain(candidate): candidate for candidate in names}
    return [by_plain[plain] for plain in difflib.get_close_matches(_plain(name), by_plain, n=count, cutoff=cutoff)]


def either(names: Sequence[str]) -> str:
    """The names as a choice: "a, b or c"."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def canonical_backbone(name: str) -> str:
    """Return the backbone that `name` spells, in any case, with or without separators.

    Names of timm's networks, "timm:resnet18.a1_in1k", stay as they are; timm itself checks them when it builds one.
    Raises ConfigError, which suggests similar names, when there is none.
    """
    if name.lower().startswith(TIMM):
        network = name[len(TIMM) :]
        if TIMM_NAME.fullmatch(network):
            return TIMM + network
        raise ConfigError(f"'{network}' is not a name of timm. Use for example timm:convnextv2_tiny.")
    own = (*BACKBONES, *DINOV2_BACKBONES)
    for backbone in own:
        if _plain(name) == _plain(backbone):
            return backbone
    similar = similar_names(name, own)
    hint = f"Did you mean {either(similar)}?" if similar else f"Choose from {', '.join(own)}, timm:NAME."
    raise ConfigError(f"Unknown backbone '{name}'. {hint}")


def parse_device(text: str) -> str:
    """Return the name of a device.  Raises ConfigError for any other text."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        return text
    raise ConfigError(f"Unknown device '{text}'. Use auto, cpu, cuda, cuda:N or mps.")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
