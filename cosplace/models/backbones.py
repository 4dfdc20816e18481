"""Backbones without pooling and classifier, and their layers that are frozen by default."""

import torch
from torch import nn

from cosplace.models.resnet import build_resnet, build_vgg16

# The first child that is trained by default:
FIRST_TRAINED_RESNET = 6  # layer3; before it are the four layers of the stem, layer1 and layer2
FIRST_TRAINED_VGG = 24  # the first layer of the last convolutional block
FIRST_TRAINED_EFFICIENTNET = 5  # block 5


def build_backbone(name: str) -> nn.Sequential:
    """Build a backbone, by canonical name, on the meta device, where weights take no time and no memory.

    Its children are numbered as in the released models.
    """
    with torch.device("meta"):
        if name == "VGG16":
            return build_vgg16()
        if name.startswith("ResNet"):
            return build_resnet(name)
        from torchvision.models import get_model

        return nn.Sequential(*list(get_model(name.lower(), weights=None).children())[:-2])


def allocate(backbone: nn.Sequential) -> nn.Sequential:
    """Give the tensors of a backbone on the meta device memory on the CPU, with arbitrary values.

    `Module.to_empty` does the same, but imports a part of torch that takes longer than all of this.
    """
    for module in backbone.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(value.shape, dtype=value.dtype)))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(value.shape, dtype=value.dtype))
    return backbone


def num_output_channels(backbone: nn.Module) -> int:
    """Channels of the last convolution, which is never a shortcut: only the first block of a ResNet stage has one."""
    return [module for module in backbone.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


def frozen_layers(backbone: nn.Sequential, name: str) -> list[nn.Module]:
    """Early layers of a backbone that are frozen by default; none for ResNet18_Small, which has no ImageNet weights."""
    if name == "ResNet18_Small":
        return []
    if name == "VGG16":
        return list(backbone.children())[:FIRST_TRAINED_VGG]
    if name.startswith("EfficientNet"):
        return list(backbone[0].children())[:FIRST_TRAINED_EFFICIENTNET]
    return list(backbone.children())[:FIRST_TRAINED_RESNET]
