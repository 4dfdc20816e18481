"""GeoLocalizationNet, new or from a state dict."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cosplace.config.knobs import canonical_backbone
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.architectures import first_difference, likeliest_plan, shapes_of
from cosplace.models.backbones import empty_backbone, features_dim_of, frozen_layers
from cosplace.models.imagenet import load_imagenet
from cosplace.models.layers import GeM, L2Norm


class GeoLocalizationNet(nn.Module):
    """ImageNet-normalised photos (B, 3, H, W) of any size -> unit descriptors (B, fc_output_dim) float32.

    >>> GeoLocalizationNet("ResNet18", 512)(torch.rand(2, 3, 224, 224)).shape
    torch.Size([2, 512])

    backbone: a name in BACKBONES, in any spelling.  By default the early layers are frozen (before ResNet's layer3,
    VGG's last block, EfficientNet's block 5), while their batch-norm statistics still follow training.
    imagenet_weights: "v1" or "v2" fetch torchvision's; a path is a local torchvision state dict; None or "none" draws
    all weights from `generator` (torch's own when None).  ResNet18_Small, half of ResNet-18's width and without its
    last stage, has no ImageNet weights, so all of its layers train.

    Attributes: backbone_name (canonical), features_dim (channels that GeM pools), fc_output_dim.
    Raises ConfigError for an unknown backbone, a dimension below 1 or weights that do not exist, CheckpointError for a
    file of another architecture, DownloadError when weights cannot be fetched.
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
            raise ConfigError(f"--fc_output_dim {fc_output_dim} is too small: use 1 or more, for example 512.")
        self.backbone_name = canonical_backbone(backbone)
        self.fc_output_dim = fc_output_dim
        self.backbone = empty_backbone(self.backbone_name).to_empty(device="cpu")
        self.features_dim = features_dim_of(self.backbone)
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
        """Compute descriptors (B, fc_output_dim) float32 of images (B, 3, H, W), normalised as ImageNet's are."""
        return self.aggregation(self.backbone(images))


def _initialize(network: nn.Module, generator: torch.Generator | None) -> None:
    """Draw weights as torchvision's ResNet, VGG and EfficientNet do (He et al., ICCV 2015, fan out)."""
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


# --- from state dicts ------------------------------------------------------------------------------------------------


def infer_architecture(state_dict: Mapping[str, Tensor]) -> tuple[str, int]:
    """Tell the canonical backbone and the descriptor dimension of a CosPlace state dict from keys and shapes alone.

    Raises CheckpointError, with the first difference to the likeliest architecture, when it is none.
    """
    given = shapes_of(state_dict)
    head = given.get("aggregation.3.weight", ())
    backbone = {key.removeprefix("backbone."): shape for key, shape in given.items() if key.startswith("backbone.")}
    plan = likeliest_plan(backbone)
    if plan is None or len(head) != 2:
        raise CheckpointError(
            "These are not the weights of a CosPlace model (backbone.<i>..., aggregation.1.p and aggregation.3.weight "
            "with their known shapes): give best_model.pth of a run or a released model."
        )
    expected = {f"backbone.{key}": shape for key, shape in plan.shapes.items()} | {
        "aggregation.1.p": (1,),
        "aggregation.3.weight": (head[0], plan.features_dim),
        "aggregation.3.bias": (head[0],),
    }
    difference = first_difference(expected, given)
    if difference:
        raise CheckpointError(
            f"These weights look like a CosPlace {plan.name} but {difference}: give best_model.pth of a run."
        )
    return plan.name, head[0]


def network_from_state_dict(state_dict: Mapping[str, Tensor], train_all_layers: bool = False) -> GeoLocalizationNet:
    """Build the network that a CosPlace state dict belongs to, filled with it; raises as `infer_architecture` does."""
    backbone, dim = infer_architecture(state_dict)
    network = GeoLocalizationNet(backbone, dim, train_all_layers)
    # Files without counters are complete too, so what is missing keeps its start.
    network.load_state_dict(network.state_dict() | dict(state_dict))
    return network
