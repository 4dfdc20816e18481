"""Backbones without pooling and classifier, and which of their layers are frozen."""

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock

SMALL_WIDTHS = (32, 64, 128)  # channels of the three stages of ResNet18_Small
TRAINED_FROM_RESNET = 6  # layer3, counted in children: the four of the stem, layer1, layer2
TRAINED_FROM_VGG = 24  # the last block of convolutions
TRAINED_FROM_EFFICIENTNET = 5  # block 5


def empty_backbone(backbone: str) -> nn.Sequential:
    """Build a backbone on the meta device: no time and memory for classifiers that are cut, or weights to be replaced.

    Its children are numbered as in the released models.
    """
    with torch.device("meta"):
        if backbone == "ResNet18_Small":
            return _small_resnet()
        model = get_model(backbone.lower(), weights=None)
    if backbone == "VGG16":
        # The last ReLU and the last pooling are left out.
        return nn.Sequential(*list(model.get_submodule("features").children())[:-2])
    return nn.Sequential(*list(model.children())[:-2])


def _small_resnet() -> nn.Sequential:
    """ResNet-18 up to layer3 with half the channels: stride 16, 0.7 instead of 11.2 million parameters."""
    stem = [
        nn.Conv2d(3, SMALL_WIDTHS[0], kernel_size=7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(SMALL_WIDTHS[0]),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    ]
    stages, previous = [], SMALL_WIDTHS[0]
    for width in SMALL_WIDTHS:
        first = BasicBlock(previous, width)
        if width != previous:
            shortcut = nn.Sequential(
                nn.Conv2d(previous, width, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(width)
            )
            first = BasicBlock(previous, width, stride=2, downsample=shortcut)
        stages.append(nn.Sequential(first, BasicBlock(width, width)))
        previous = width
    return nn.Sequential(*stem, *stages)


def features_dim_of(backbone: nn.Module) -> int:
    """Channels of the last convolution; shortcuts of ResNets stand only in first blocks, so none comes last."""
    return [module for module in backbone.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


def frozen_layers(backbone: nn.Sequential, name: str) -> list[nn.Module]:
    """List the layers before the last ones, which alone are trained; none of ResNet18_Small."""
    if name == "ResNet18_Small":
        return []
    if name == "VGG16":
        return list(backbone.children())[:TRAINED_FROM_VGG]
    if name.startswith("EfficientNet"):
        return list(backbone[0].children())[:TRAINED_FROM_EFFICIENTNET]
    return list(backbone.children())[:TRAINED_FROM_RESNET]
