"""GeoLocalizationNet: the network of CosPlace, a backbone and its aggregation."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cosplace.config.names import canonical_backbone
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.architectures import closest_architecture, first_difference, tensor_shapes
from cosplace.models.backbones import allocate, build_backbone, frozen_layers, num_output_channels
from cosplace.models.imagenet import available_imagenet_weights, load_imagenet
from cosplace.models.layers import GeM, L2Norm

log = logging.getLogger(__name__)


class GeoLocalizationNet(nn.Module):
    """ImageNet-normalized images (B, 3, H, W) of any size -> unit descriptors (B, fc_output_dim) float32.

    >>> GeoLocalizationNet("ResNet18", 512)(torch.rand(2, 3, 224, 224)).shape
    torch.Size([2, 512])

    backbone: a name in BACKBONES, in any spelling.  By default the early layers are frozen (before ResNet's layer3,
    VGG's last block, EfficientNet's block 5), but their batch-norm statistics still follow training.
    imagenet_weights: "v1" or "v2" download torchvision's; a path is a local torchvision state dict; with None or "none"
    all weights are random, drawn from `generator` (default: torch's global generator).  ResNet18_Small, with half the
    width of ResNet-18 and without its last stage, has no ImageNet weights, so all of its layers are trained.

    Attributes: backbone_name (canonical), features_dim (channels that GeM pools), fc_output_dim.
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
    ) -> None:
        super().__init__()
        if fc_output_dim < 1:
            raise ConfigError(f"--fc_output_dim must be at least 1, got {fc_output_dim}. Use for example 512.")
        self.backbone_name = canonical_backbone(backbone)
        self.fc_output_dim = fc_output_dim
        self.backbone = allocate(build_backbone(self.backbone_name))
        self.features_dim = num_output_channels(self.backbone)
        self.aggregation = nn.Sequential(
            L2Norm(), GeM(), nn.Flatten(), nn.Linear(self.features_dim, fc_output_dim), L2Norm()
        )
        _initialize(self, generator)
        if imagenet_weights is not None and str(imagenet_weights).lower() != "none":
            load_imagenet(self.backbone, self.backbone_name, imagenet_weights)
        if not train_all_layers:
            for layer in frozen_layers(self.backbone, self.backbone_name):
                layer.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, fc_output_dim) float32 of ImageNet-normalized images (B, 3, H, W)."""
        return self.aggregation(self.backbone(images))


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
    *, backbone: str, fc_output_dim: int, train_all_layers: bool, imagenet_weights: str | None, seed: int
) -> GeoLocalizationNet:
    """Create a network for training; its random weights are drawn from `seed`.

    imagenet_weights: as for GeoLocalizationNet, but None means "v1" for every backbone that has ImageNet weights.
    """
    has_imagenet_weights = bool(available_imagenet_weights(backbone))
    if imagenet_weights is None and has_imagenet_weights:
        imagenet_weights = "v1"
    if imagenet_weights == "none" and has_imagenet_weights and not train_all_layers:
        log.warning("The early layers are random and frozen. Use --imagenet_weights v1, or --train_all_layers.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GeoLocalizationNet(backbone, fc_output_dim, train_all_layers, imagenet_weights)


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
        raise CheckpointError(
            "These are not the weights of a CosPlace model, whose keys are backbone.<i>..., aggregation.1.p, "
            "aggregation.3.weight and aggregation.3.bias. Use the best_model.pth of a run, or a released model."
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
    backbone, dim = infer_architecture(state_dict)
    network = GeoLocalizationNet(backbone, dim)
    # Files without batch counters are complete too: those keep their initial value.
    network.load_state_dict(network.state_dict() | dict(state_dict))
    return network
