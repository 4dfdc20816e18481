"""Networks other than those of the paper: which backbone and aggregation they have, recorded in their weights.

The tensors of a network of the paper tell its architecture.  Those of others do not: not the size of the patches that
a transformer was trained with, nor the normalization that a network of timm expects.  So their state dict has one more
tensor, `design_json`, with the bytes of a text.  It stays with the weights in files of any format.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosplace.config.names import BACKBONES, DINOV2_BACKBONES, TIMM, canonical_backbone
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.aggregations import AGGREGATIONS, NUM_TOKENS
from cosplace.models.architectures import first_difference, tensor_shapes
from cosplace.models.downloads import download
from cosplace.models.native import SizePolicy
from cosplace.models.timm_backbones import TimmBackbone, TimmSettings, timm_settings
from cosplace.models.vision_transformer import PATCH_SIZE, TransformerSettings, VisionTransformer, dinov2_settings
from cosplace.models.weight_files import read_state_dict

DESIGN_KEY = "design_json"  # in the state dict: uint8, the bytes of a JSON object
MAX_BYTES = 10_000  # of that text
TRAINED_BLOCKS = 4  # the last ones of a transformer are trained by default; learned tokens join before them
TRAINED_STAGES = 2  # the last ones of other networks of timm
WHOLE_MODELS = ("backbone.", "aggregator.", "aggregation.", "encoder.")  # keys of weights with an aggregation
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/{folder}/{folder}{registers}_pretrain.pth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Backbone and aggregation of a network."""

    backbone: str  # canonical
    aggregation: str
    fc_output_dim: int
    timm: TimmSettings | None = None  # of a backbone of timm
    grid: tuple[int, int] | None = None  # rows and columns of the features, for mixvpr

    @property
    def policy(self) -> SizePolicy:
        """Sizes that the backbone accepts."""
        if self.timm is not None:
            return self.timm.policy
        return SizePolicy(side_multiple=PATCH_SIZE) if self.backbone in DINOV2_BACKBONES else SizePolicy()

    def to_tensor(self) -> Tensor:
        """The design as a tensor (n,) uint8 for a state dict."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def new_design(
    backbone: str, fc_output_dim: int, *, aggregation: str = "gem", features_stage: int | None = None
) -> Design | None:
    """Design of a new network; None for the networks of the paper.  backbone: canonical.

    Raises ConfigError for parts that do not fit together, without timm, and for names that timm does not have.
    """
    if features_stage is not None and not backbone.startswith(TIMM):
        raise ConfigError(f"--features_stage is for networks of timm, not for {backbone}. Use --backbone timm:NAME.")
    if aggregation == "tokens" and backbone not in DINOV2_BACKBONES:
        raise ConfigError(f"--aggregation tokens needs a dinov2 backbone, not {backbone}. Use dinov2_vits14.")
    if backbone in BACKBONES and aggregation == "gem":
        return None
    timm = timm_settings(backbone, features_stage) if backbone.startswith(TIMM) else None
    return Design(backbone=backbone, aggregation=aggregation, fc_output_dim=fc_output_dim, timm=timm)


def read_design(record: Tensor) -> Design:
    """Design from the tensor in a state dict.  Raises CheckpointError for any other tensor."""
    try:
        if record.dtype != torch.uint8 or record.ndim != 1 or record.numel() > MAX_BYTES:
            raise ValueError(f"{record.dtype} of shape {tuple(record.shape)}")
        return _parse(json.loads(bytes(record.tolist())))
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError, RecursionError) as error:
        raise CheckpointError(
            f"The record of the network, {DESIGN_KEY}, cannot be read ({error}): the file is damaged or of a later "
            f"version. Copy it again, or update this package."
        ) from error


def _parse(values: Any) -> Design:
    design = {key: values.pop(key) for key in ("backbone", "aggregation", "fc_output_dim", "timm", "grid")}
    backbone, timm = design["backbone"], design["timm"]
    dim = int(design["fc_output_dim"])
    if values or canonical_backbone(backbone) != backbone or design["aggregation"] not in AGGREGATIONS or dim < 1:
        raise ValueError("unknown entries")
    if backbone.startswith(TIMM) != (timm is not None):
        raise ValueError("no settings of timm")
    if timm is not None:
        timm = _parse_timm(timm)
        if timm.name != backbone.removeprefix(TIMM):
            raise ValueError("another network of timm")
    grid = design["grid"] and _sides(design["grid"])
    return Design(backbone=backbone, aggregation=design["aggregation"], fc_output_dim=dim, timm=timm, grid=grid or None)


def _parse_timm(values: Any) -> TimmSettings:
    policy, fixed_size = values["policy"], values["policy"]["fixed_size"]
    return TimmSettings(
        name=str(values["name"]),
        stage=int(values["stage"]),
        mean=_color(values["mean"]),
        std=_color(values["std"]),
        policy=SizePolicy(
            side_multiple=_side(policy["side_multiple"]),
            fixed_size=None if fixed_size is None else _sides(fixed_size),
            min_patches=_side(policy["min_patches"]),
        ),
    )


def _color(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError("a color that is not finite")
    return red, green, blue


def _sides(values: Any) -> tuple[int, int]:
    height, width = map(_side, values)
    return height, width


def _side(value: Any) -> int:
    if not 0 < int(value) <= 10_000:
        raise ValueError(f"a side of {value}")
    return int(value)


# --- DINOv2 ----------------------------------------------------------------------------------------------------------


def build_dinov2(name: str, *, learned_tokens: bool) -> VisionTransformer:
    """Build a DINOv2 transformer with random weights.  learned_tokens: for the aggregation `tokens`."""
    settings = _dinov2_settings(name)
    if learned_tokens:
        block = settings.depth - TRAINED_BLOCKS
        settings = dataclasses.replace(settings, num_learned_tokens=NUM_TOKENS, learned_tokens_block=block)
    return VisionTransformer(settings)


def _dinov2_settings(name: str) -> TransformerSettings:
    size = {"s": "small", "b": "base", "l": "large"}[name.removeprefix("dinov2_vit")[0]]
    return dinov2_settings(size, registers=name.endswith("_reg"))


def load_dinov2_weights(backbone: VisionTransformer, name: str, weights: str | Path) -> None:
    """Load released weights: "dinov2" downloads them, a path is a local file of them.

    Raises DownloadError, and CheckpointError for a file of another network.
    """
    path = Path(weights)
    if str(weights).lower() == "dinov2":
        folder, registers = name.removesuffix("_reg"), "_reg4" if name.endswith("_reg") else ""
        url = DINOV2_URL.format(folder=folder, registers=registers)
        path = download(url, advice="pass --imagenet_weights none or PATH")
    tensors = {key: value.float() for key, value in read_state_dict(path).items() if key != "mask_token"}
    if any(key.startswith(WHOLE_MODELS) for key in tensors):
        raise CheckpointError(f"{path} is a whole model, not weights of {name}. Use the released file of this network.")
    own = {"learned_tokens": backbone.state_dict()["learned_tokens"]} if hasattr(backbone, "learned_tokens") else {}
    difference = first_difference(tensor_shapes(backbone.state_dict()), tensor_shapes(tensors | own))
    if difference:
        raise CheckpointError(f"{path} does not fit {name}: {difference}. Use the released file of this network.")
    backbone.load_state_dict(tensors | own)


# --- layers that are not trained -------------------------------------------------------------------------------------


def stages_of(backbone: nn.Module) -> tuple[str, ...]:
    """Names of the layers at which the stages of a backbone end; blocks of a transformer, children of others."""
    if isinstance(backbone, TimmBackbone):
        return tuple(f"model.{name}" for name in backbone.stages)
    if isinstance(backbone, VisionTransformer):
        return tuple(f"blocks.{number}" for number in range(backbone.settings.depth))
    children = list(backbone.named_children())
    if len(children) == 1:  # EfficientNet
        return tuple(f"{children[0][0]}.{name}" for name, _ in children[0][1].named_children())
    return tuple(name for name, _ in children)


def default_num_frozen(backbone: nn.Module) -> int:
    """Number of stages of a transformer or a network of timm that are frozen by default."""
    is_transformer = isinstance(backbone, VisionTransformer) or getattr(backbone, "is_transformer", False)
    return max(0, len(stages_of(backbone)) - (TRAINED_BLOCKS if is_transformer else TRAINED_STAGES))


def freeze(backbone: nn.Module, chosen: str) -> None:
    """Freeze the first stages of a backbone, and what comes before them, or layers by their names.

    chosen: a number of stages, or names separated by commas.  Raises ConfigError, with the stages, for others.
    """
    stages = stages_of(backbone)
    shown = ", ".join(stage.removeprefix("model.") for stage in stages)
    if chosen.strip().isdigit():
        if int(chosen) > len(stages):
            raise ConfigError(f"--frozen_layers {chosen}: the backbone has {len(stages)} stages: {shown}.")
        freeze_first(backbone, int(chosen))
        return
    for name in (text.strip() for text in chosen.split(",")):
        found = [
            parameter
            for key, parameter in backbone.named_parameters()
            if f"{key}.".startswith((f"{name}.", f"model.{name}.")) and name
        ]
        if not found:
            raise ConfigError(f"--frozen_layers: the backbone has no layer '{name}'. Its stages are {shown}.")
        for parameter in found:
            parameter.requires_grad_(False)


def freeze_first(backbone: nn.Module, count: int) -> None:
    """Freeze the first stages, and all layers before them; learned tokens are always trained."""
    modules = list(backbone.named_modules())
    end = 0
    for stage in stages_of(backbone)[:count]:  # a few networks of timm name stages that are not layers
        found = [number for number, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{stage}.")]
        end = max([end, *(number + 1 for number in found)])
    for _, module in modules[:end]:
        for key, parameter in module.named_parameters(recurse=False):
            if key != "learned_tokens":
                parameter.requires_grad_(False)
