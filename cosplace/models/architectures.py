"""Recognize a backbone by the names and shapes of the tensors in its state dict."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from cosplace.config.names import BACKBONES
from cosplace.models.backbones import build_backbone, num_output_channels

BATCH_COUNTER = "num_batches_tracked"  # missing in files older than PyTorch 0.4.1; does not affect results

Shapes = dict[str, tuple[int, ...]]
"""Key in a state dict -> shape of its tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A backbone and the shapes of its tensors."""

    name: str
    shapes: Shapes  # without batch counters
    features_dim: int  # channels of its output


@lru_cache(maxsize=len(BACKBONES))
def architecture_of(name: str) -> Architecture:
    """Architecture of a backbone, by canonical name."""
    backbone = build_backbone(name)
    return Architecture(
        name=name, shapes=tensor_shapes(backbone.state_dict()), features_dim=num_output_channels(backbone)
    )


def tensor_shapes(state_dict: Mapping[str, Tensor]) -> Shapes:
    """Shapes of the tensors of a state dict by key, without batch counters."""
    return {key: tuple(value.shape) for key, value in state_dict.items() if not key.endswith(BATCH_COUNTER)}


def closest_architecture(shapes: Shapes) -> Architecture | None:
    """Find the backbone that has the most tensors in common with `shapes`; None if no backbone has any."""
    closest, best_score = None, 0
    efficientnet = any(key.startswith("0.0.") for key in shapes)
    for name in BACKBONES:
        if name.startswith("EfficientNet") != efficientnet:  # building an architecture takes a fraction of a second
            continue
        architecture = architecture_of(name)
        if architecture.shapes == shapes:
            return architecture
        # Divided by the larger set: otherwise the deepest network would always win.
        num_common = len(architecture.shapes.items() & shapes.items())
        score = num_common / max(len(architecture.shapes), len(shapes))
        if score > best_score:
            closest, best_score = architecture, score
    return closest


def first_difference(expected: Shapes, found: Shapes) -> str | None:
    """Describe the first tensor that is missing in `found`, has another shape or is unexpected; None if none is."""
    for key, shape in expected.items():
        if key not in found:
            return f"{key} is missing"
        if found[key] != shape:
            return f"{key} has shape {list(found[key])} instead of {list(shape)}"
    unexpected = next((key for key in found if key not in expected), None)
    return None if unexpected is None else f"{unexpected} is unexpected"
