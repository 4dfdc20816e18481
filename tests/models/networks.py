"""Networks and weights files for the tests of models."""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosplace.errors import CosPlaceError
from cosplace.models.downloads import weights_folder
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model
from cosplace.models.zoo import MODELS

ONE = "cosplace_resnet18_32"


def mark_slow(backbones: Iterable[str]) -> list:
    """Parameters of a test; backbones that take long to build are marked."""
    fast = ("ResNet18", "ResNet50", "EfficientNet_B0", "EfficientNet_B1", "ResNet18_Small")
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in backbones]


def fill_by_rule(network: GeoLocalizationNet, seed: int = 1) -> GeoLocalizationNet:
    """Weights that depend on nothing but their key, as the reference numbers were computed with."""
    state_dict = {}
    for key, value in network.state_dict().items():
        rng = np.random.default_rng(int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:8], 16))
        shape = tuple(value.shape)
        if key.endswith("num_batches_tracked"):
            array = np.zeros(shape)
        elif key.endswith("running_var"):
            array = 0.5 + rng.random(shape)
        elif key.endswith("running_mean"):
            array = 0.1 * rng.standard_normal(shape)
        elif key == "aggregation.1.p":
            array = np.full(shape, 3.0)
        elif len(shape) == 1 and key.endswith("weight"):
            array = 0.8 + 0.4 * rng.random(shape)
        elif len(shape) == 1:
            array = 0.1 * rng.standard_normal(shape)
        else:
            array = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        state_dict[key] = torch.as_tensor(array).to(value.dtype)
    network.load_state_dict(state_dict)
    return network


def reference_input(seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed + 7).standard_normal((2, 3, 160, 128)).astype(np.float32))


def put_in_cache(name: str, content: bytes) -> Path:
    model = MODELS[name]
    path = weights_folder() / model.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def one_line(error: pytest.ExceptionInfo[CosPlaceError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_refused(kind: type[CosPlaceError], match: str, model: str | Path, **options: Any) -> None:
    with pytest.raises(kind, match=match) as error:
        open_model(model, **options)
    one_line(error)
