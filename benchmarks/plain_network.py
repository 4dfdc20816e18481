"""The network and its loss in plain PyTorch: the plain side of training and extraction.

GeM by powers and average pooling over the whole input, a margin by a full one-hot matrix, and torch's layouts and
defaults.  State dicts have the keys of `cosplace.models.network`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

NUM_FROZEN = 6  # children of ResNet before layer3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PlainL2Norm(nn.Module):
    """Normalize to unit length over channels."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, D, ...) -> (B, D, ...)."""
        return F.normalize(inputs, p=2.0, dim=1)


class PlainGeM(nn.Module):
    """Generalized mean pooling with a learned power."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, 1, 1)."""
        size = (inputs.shape[-2], inputs.shape[-1])
        return F.avg_pool2d(inputs.clamp(min=1e-6).pow(self.p), size).pow(1.0 / self.p)


class PlainNetwork(nn.Module):
    """A ResNet with GeM and a linear layer.  Layers before layer3 are frozen."""

    def __init__(self, dimension: int, backbone: str = "ResNet18") -> None:
        super().__init__()
        self.dimension = dimension
        resnet: Any = get_model(backbone.lower(), weights=None)
        self.backbone = nn.Sequential(*list(resnet.children())[:-2])
        for layer in list(self.backbone.children())[:NUM_FROZEN]:
            layer.requires_grad_(False)
        self.aggregation = nn.Sequential(
            PlainL2Norm(), PlainGeM(), nn.Flatten(), nn.Linear(resnet.fc.in_features, dimension), PlainL2Norm()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalized photos (B, 3, H, W) -> unit descriptors (B, D)."""
        return self.aggregation(self.backbone(images))


class PlainMargin(nn.Module):
    """Logits of CosFace, with the margin as a one-hot matrix."""

    def __init__(self, weight: Tensor, s: float = 30.0, m: float = 0.40) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.s, self.m = s, m

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C) of descriptors (B, D) with classes (B,)."""
        lengths = torch.outer(inputs.norm(dim=1), self.weight.norm(dim=1))  # (B, C)
        cosines = inputs @ self.weight.t() / lengths.clamp(min=1e-8)
        one_hot = torch.zeros_like(cosines).scatter_(1, labels.view(-1, 1), 1.0)
        return self.s * (cosines - one_hot * self.m)


def normalize_photos(photos: Tensor) -> Tensor:
    """Photos (B, 3, H, W) uint8 -> float32, like ToTensor and Normalize with the ImageNet constants."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return photos.float().div_(255).sub_(mean).div_(std)
