"""GeoLocalizationNet: the network of CosPlace, a backbone and its aggregation."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from cosplace.config.names import DINOV2_BACKBONES, canonical_backbone
from cosplace.errors import CheckpointError, ConfigError, InputSizeError
from cosplace.models.aggregations import build_aggregation
from cosplace.models.architectures import closest_architecture, first_difference, tensor_shapes
from cosplace.models.backbones import allocate, build_backbone, frozen_layers, num_output_channels
from cosplace.models.designs import (
    DESIGN_KEY,
    Design,
    build_dinov2,
    default_num_frozen,
    freeze,
    freeze_first,
    load_dinov2_weights,
    new_design,
    read_design,
)
from cosplace.models.imagenet import available_imagenet_weights, load_imagenet
from cosplace.models.layers import GeM, L2Norm
from cosplace.models.layouts import describe_weights
from cosplace.models.resampling import resample
from cosplace.models.timm_backbones import TimmBackbone, load_timm_weights
from cosplace.models.vision_transformer import VisionTransformer

log = logging.getLogger(__name__)


class GeoLocalizationNet(nn.Module):
    """ImageNet-normalized images (B, 3, H, W) of any size -> unit descriptors (B, fc_output_dim) float32.

    >>> GeoLocalizationNet("ResNet18", 512)(torch.rand(2, 3, 224, 224)).shape
    torch.Size([2, 512])

    backbone: a name in BACKBONES, in any spelling, a DINOv2 transformer such as "dinov2_vits14", or "timm:NAME".  By
    default the early layers are frozen (before ResNet's layer3, VGG's last block, EfficientNet's block 5; of others all
    but the last two stages, or four blocks of a transformer), but their batch-norm statistics still follow training.
    imagenet_weights: "v1" or "v2" download torchvision's, "timm" timm's and "dinov2" those of DINOv2; a path is a local
    file of them; with None or "none" all weights are random, drawn from `generator` (default: torch's global
    generator).  ResNet18_Small, with half the width of ResNet-18 and without its last stage, has no ImageNet weights,
    so all of its layers are trained.
    aggregation: one of `aggregations`; the descriptors have fc_output_dim dimensions with each of them.
    features_stage: of a network of timm, None for the last.  frozen_layers: stages or names of layers to freeze, see
    `designs.freeze`.  image_size: side of the training images in pixels, for mixvpr.  design: replaces all settings
    of the architecture, for networks from files.

    Photos of a size that a transformer does not accept are resized to the nearest one that it does.

    Attributes: backbone_name (canonical), features_dim (channels of the features), fc_output_dim, aggregation_name,
    design (None for the networks of the paper, whose state dicts keep the keys of the released weights).
    Raises ConfigError for an unknown backbone, a dimension below 1 or weights that do not exist, CheckpointError for a
    file of another architecture, DownloadError when the weights cannot be downloaded.
    """

    def __init__(
        self,
        backbone: str,
        fc_output_dim: int,
        train_all_layers: bool = False,
        imagenet_weights: str | Path | None = None,
        generator: torch.Generator | None = None,
        *,
        aggregation: str = "gem",
        features_stage: int | None = None,
        frozen_layers: str | None = None,
        image_size: int | None = None,
        design: Design | None = None,
    ) -> None:
        super().__init__()
        if fc_output_dim < 1:
            raise ConfigError(f"--fc_output_dim must be at least 1, got {fc_output_dim}. Use for example 512.")
        self.backbone_name = canonical_backbone(backbone)
        self.fc_output_dim = fc_output_dim
        self.backbone: nn.Module
        self.aggregation: nn.Module
        self.design = design or new_design(
            self.backbone_name, fc_output_dim, aggregation=aggregation, features_stage=features_stage
        )
        self.aggregation_name = "gem" if self.design is None else self.design.aggregation
        if self.design is None:
            self.backbone = allocate(build_backbone(self.backbone_name))
            self.features_dim: int = num_output_channels(self.backbone)
            self.aggregation = _gem(self.features_dim, fc_output_dim)
            _initialize(self, generator)
        else:
            self._build(self.design, generator, image_size)
        if imagenet_weights is not None and str(imagenet_weights).lower() != "none":
            self._load_pretrained(imagenet_weights)
        self.freeze(train_all_layers, frozen_layers)

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, fc_output_dim) of ImageNet-normalized images (B, 3, H, W).

        In float32; in float64 if the weights are (`.double()`).
        """
        features, token = self.features(images)
        return self.aggregation(features) if self.aggregation_name == "gem" else self.aggregation(features, token)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, features_dim, h, w) of images (B, 3, H, W), and the token of a transformer."""
        kind = next(self.backbone.parameters()).dtype
        if self.design is None:
            return self.backbone(images.to(kind)), None
        output = self.backbone(fit_size(images, self.design).to(kind))
        features, token = output if isinstance(output, tuple) else (output, None)
        kind = next((one.dtype for one in self.aggregation.parameters()), kind)
        return features.to(kind), None if token is None else token.to(kind)

    def _build(self, design: Design, generator: torch.Generator | None, image_size: int | None) -> None:
        """Build the parts of a network that is not of the paper."""
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if generator is not None:  # timm and the aggregations draw from torch's global generator
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            if design.timm is not None:
                self.backbone = TimmBackbone(design.timm)
                self.features_dim = self.backbone.out_channels
            elif design.backbone in DINOV2_BACKBONES:
                self.backbone = build_dinov2(design.backbone, learned_tokens=design.aggregation == "tokens")
                self.features_dim = self.backbone.out_channels
            else:
                self.backbone = allocate(build_backbone(design.backbone))
                self.features_dim = num_output_channels(self.backbone)
                _initialize(self.backbone, None)
            if design.aggregation == "mixvpr" and design.grid is None and image_size is not None:
                design = replace(design, grid=_features_grid(self.backbone, design, image_size))
            self.design = design
            if design.aggregation == "gem":
                self.aggregation = _gem(self.features_dim, design.fc_output_dim)
                _initialize(self.aggregation, None)
            else:
                self.aggregation = build_aggregation(
                    design.aggregation, self.features_dim, design.fc_output_dim, grid=design.grid
                )
        self.register_buffer(DESIGN_KEY, design.to_tensor())

    def _load_pretrained(self, weights: str | Path) -> None:
        if isinstance(self.backbone, TimmBackbone):
            load_timm_weights(self.backbone, weights)
        elif isinstance(self.backbone, VisionTransformer):
            load_dinov2_weights(self.backbone, self.backbone_name, weights)
        else:
            load_imagenet(cast(nn.Sequential, self.backbone), self.backbone_name, weights)

    def freeze(self, train_all_layers: bool, chosen: str | None) -> None:
        """Freeze the chosen layers, or without a choice the early ones, unless all are trained."""
        if chosen is not None:
            if train_all_layers:
                raise ConfigError("--frozen_layers contradicts --train_all_layers. Use only one of them.")
            freeze(self.backbone, chosen)
        elif not train_all_layers:
            self.freeze_early_layers()

    def freeze_early_layers(self) -> None:
        """Freeze the layers that are frozen by default."""
        if isinstance(self.backbone, TimmBackbone | VisionTransformer):
            freeze_first(self.backbone, default_num_frozen(self.backbone))
            return
        for layer in frozen_layers(cast(nn.Sequential, self.backbone), self.backbone_name):
            layer.requires_grad_(False)


def fit_size(images: Tensor, design: Design) -> Tensor:
    """Resize images (B, 3, H, W) to the nearest size that the backbone accepts; unchanged if they have it.

    Bilinear with antialias.  Raises InputSizeError if a side would have no patch.
    """
    policy = design.policy
    if policy.fixed_size is None and policy.side_multiple == 1:
        return images
    height, width = images.shape[-2:]
    size = policy.size_for(height, width)
    if torch.compiler.is_compiling():  # sizes may be symbols
        return resample(images.float(), *size)
    if min(size) < 1:
        raise InputSizeError(
            f"Photos of {width} x {height} pixels are too small for patches of {policy.side_multiple} pixels.",
            "use a larger --image_size",
            "use larger photos",
        )
    return images if size == (height, width) else resample(images.float(), *size)


def _features_grid(backbone: nn.Module, design: Design, side: int) -> tuple[int, int]:
    """Rows and columns of the features of square images."""
    was_training = backbone.training
    with torch.no_grad():
        output = backbone.eval()(fit_size(torch.zeros(1, 3, side, side), design))
    backbone.train(was_training)
    features = output[0] if isinstance(output, tuple) else output
    return features.shape[-2], features.shape[-1]


def _gem(channels: int, dim: int) -> nn.Sequential:
    return nn.Sequential(L2Norm(), GeM(), nn.Flatten(), nn.Linear(channels, dim), L2Norm())


def _initialize(network: nn.Module, generator: torch.Generator | None) -> None:
    """Draw random weights like torchvision's ResNet, VGG and EfficientNet (He et al., ICCV 2015, fan out)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def new_network(
    *,
    backbone: str,
    fc_output_dim: int,
    train_all_layers: bool,
    imagenet_weights: str | None,
    seed: int,
    aggregation: str = "gem",
    features_stage: int | None = None,
    frozen_layers: str | None = None,
    image_size: int | None = None,
) -> GeoLocalizationNet:
    """Create a network for training; its random weights are drawn from `seed`.

    The settings are those of GeoLocalizationNet, but imagenet_weights None means the first of those that the backbone
    has, "v1" for the backbones of the paper.
    """
    available = available_imagenet_weights(backbone)
    if imagenet_weights is None and available:
        imagenet_weights = available[0]
    frozen_by_default = frozen_layers is None and not train_all_layers
    if imagenet_weights == "none" and available and (frozen_by_default or frozen_layers not in (None, "0")):
        log.warning(
            "The early layers are random and frozen. Use --imagenet_weights %s, or --train_all_layers.", available[0]
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GeoLocalizationNet(
            backbone,
            fc_output_dim,
            train_all_layers,
            imagenet_weights,
            aggregation=aggregation,
            features_stage=features_stage,
            frozen_layers=frozen_layers,
            image_size=image_size,
        )


# --- from state dicts ------------------------------------------------------------------------------------------------


def infer_architecture(state_dict: Mapping[str, Tensor]) -> tuple[str, int]:
    """Canonical backbone and descriptor dimension of a CosPlace state dict, from its keys and shapes alone.

    Raises CheckpointError, with the first difference from the closest architecture, when it is of no CosPlace model.
    """
    shapes = tensor_shapes(state_dict)
    linear = shapes.get("aggregation.3.weight", ())
    backbone = {key.removeprefix("backbone."): shape for key, shape in shapes.items() if key.startswith("backbone.")}
    closest = closest_architecture(backbone)
    if closest is None or len(linear) != 2:
        looks_like = describe_weights(state_dict)
        raise CheckpointError(
            f"These are not the weights of a CosPlace model, whose keys are backbone.<i>..., aggregation.1.p, "
            f"aggregation.3.weight and aggregation.3.bias{f'; they look like {looks_like}' if looks_like else ''}. Use "
            f"the best_model.pth of a run, or a released model of `cosplace zoo list`."
        )
    expected = {f"backbone.{key}": shape for key, shape in closest.shapes.items()} | {
        "aggregation.1.p": (1,),
        "aggregation.3.weight": (linear[0], closest.features_dim),
        "aggregation.3.bias": (linear[0],),
    }
    difference = first_difference(expected, shapes)
    if difference:
        raise CheckpointError(
            f"These weights look like a CosPlace {closest.name} but {difference}. Use the best_model.pth of a run."
        )
    return closest.name, linear[0]


def network_from_state_dict(state_dict: Mapping[str, Tensor]) -> GeoLocalizationNet:
    """Build the network of a CosPlace state dict and load its weights.  Raises what `infer_architecture` raises."""
    if DESIGN_KEY in state_dict:
        return _network_from_design(read_design(state_dict[DESIGN_KEY]), state_dict)
    backbone, dim = infer_architecture(state_dict)
    network = GeoLocalizationNet(backbone, dim)
    # Files without batch counters are complete too: those keep their initial value.
    network.load_state_dict(network.state_dict() | dict(state_dict))
    return network


def _network_from_design(design: Design, state_dict: Mapping[str, Tensor]) -> GeoLocalizationNet:
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced
        network = GeoLocalizationNet(design.backbone, design.fc_output_dim, design=design)
    network.register_buffer(DESIGN_KEY, state_dict[DESIGN_KEY].clone())  # as it was written
    difference = first_difference(tensor_shapes(network.state_dict()), tensor_shapes(state_dict))
    if difference:
        raise CheckpointError(
            f"These weights are of {design.backbone} with {design.aggregation} but {difference}. Use the version of "
            f"this package and of timm that trained them, or another file."
        )
    network.load_state_dict(network.state_dict() | dict(state_dict))
    return network
