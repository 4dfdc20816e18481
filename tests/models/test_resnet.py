"""Our ResNet and VGG-16 are those of torchvision, module by module."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from cosplace.models.backbones import build_backbone


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "ResNet101", "ResNet152", "VGG16"])
def test_modules_are_those_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        whole = get_model(name.lower(), weights=None)
    children = whole.features.children() if name == "VGG16" else whole.children()
    theirs = nn.Sequential(*list(children)[:-2])
    ours = build_backbone(name)
    assert repr(ours) == repr(theirs)  # part of the checksum that indexes store
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", pytest.param("VGG16", marks=pytest.mark.slow)])
def test_features_are_those_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    whole = get_model(name.lower(), weights=None).eval()
    children = whole.features.children() if name == "VGG16" else whole.children()
    theirs = nn.Sequential(*list(children)[:-2])
    ours = build_backbone(name).to_empty(device="cpu").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
