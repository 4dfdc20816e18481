"""What the state dicts of backbones look like, and which backbone one is of."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from cosplace.config.knobs import BACKBONES
from cosplace.models.backbones import empty_backbone, features_dim_of

COUNTER = "num_batches_tracked"  # absent from files older than PyTorch 0.4.1, and of no effect on results

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a backbone's state dict looks like."""

    name: str
    shapes: Shapes  # without counters
    features_dim: int


@lru_cache(maxsize=len(BACKBONES))
def plan_of(name: str) -> Plan:
    """Tell what the state dict of a backbone, by canonical name, looks like."""
    backbone = empty_backbone(name)
    return Plan(name=name, shapes=shapes_of(backbone.state_dict()), features_dim=features_dim_of(backbone))


def shapes_of(state_dict: Mapping[str, Tensor]) -> Shapes:
    """Tell the shapes of a state dict by key, without counters."""
    return {key: tuple(value.shape) for key, value in state_dict.items() if not key.endswith(COUNTER)}


def likeliest_plan(given: Shapes) -> Plan | None:
    """Find the backbone that shares most tensors with `given`; None when no one shares any beyond chance."""
    best, most = None, 0
    efficientnet = any(key.startswith("0.0.") for key in given)
    for name in BACKBONES:
        if name.startswith("EfficientNet") != efficientnet:  # each plan costs a fraction of a second
            continue
        plan = plan_of(name)
        if plan.shapes == given:
            return plan
        # What is missing and what is too much count alike, or the deepest network would always win.
        shared = len(plan.shapes.items() & given.items())
        score = shared / max(len(plan.shapes), len(given))
        if score > most:
            best, most = plan, score
    return best


def first_difference(expected: Shapes, given: Shapes) -> str | None:
    """Say where `given` first departs from `expected`; None when it does not."""
    for key, shape in expected.items():
        if key not in given:
            return f"{key} is missing"
        if given[key] != shape:
            return f"{key} has shape {list(given[key])} instead of {list(shape)}"
    unexpected = next((key for key in given if key not in expected), None)
    return None if unexpected is None else f"{unexpected} is unexpected"
