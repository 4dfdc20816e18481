"""torchvision's ImageNet weights in a backbone of ours."""

import re
from pathlib import Path

from torch import nn

from cosplace.errors import CheckpointError
from cosplace.models.architectures import first_difference, likeliest_plan, plan_of, shapes_of
from cosplace.models.imagenet_files import imagenet_file
from cosplace.models.weight_files import read_state_dict

CLASSIFIERS = ("fc.", "classifier.")  # torchvision's layers after the backbone
RESNET_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")  # torchvision's names


def load_imagenet(backbone: nn.Sequential, name: str, weights: str | Path) -> None:
    """Fill a backbone from torchvision's weights: a version, or the path of a state dict."""
    if re.fullmatch(r"v\d+", str(weights), re.IGNORECASE):
        path = imagenet_file(name, str(weights).lower())
    else:
        path = Path(weights)
    given = read_state_dict(path)
    if any(key.startswith("aggregation.") for key in given):
        raise CheckpointError(f"{path} is a whole CosPlace model, not ImageNet weights: give it as --resume_model.")
    given = {key: value for key, value in given.items() if not key.startswith(CLASSIFIERS)}
    expected = {_torchvision_key(name, key): shape for key, shape in plan_of(name).shapes.items()}
    own = {_own_key(key, "features.0.0.weight" in given): value.float() for key, value in given.items()}
    difference = first_difference(expected, shapes_of(given))
    if difference:
        likely = likeliest_plan(shapes_of(own))
        known = likely is not None and likely.name != name
        hint = f"it looks like {likely.name}" if known else "give a torchvision state dict"
        raise CheckpointError(f"{path} does not fit {name}: {difference}; {hint}.")
    backbone.load_state_dict(backbone.state_dict() | own)


def _own_key(key: str, efficientnet: bool) -> str:
    """Translate a key of torchvision: `layer3.0.conv1.weight` is `6.0.conv1.weight` of a ResNet backbone."""
    first, _, rest = key.partition(".")
    if first == "features":
        return f"0.{rest}" if efficientnet else rest
    return f"{RESNET_CHILDREN.index(first)}.{rest}" if first in RESNET_CHILDREN else key


def _torchvision_key(name: str, key: str) -> str:
    """Translate a key of a backbone back, the inverse of `_own_key`."""
    first, _, rest = key.partition(".")
    if name == "VGG16":
        return f"features.{key}"
    return f"features.{rest}" if name.startswith("EfficientNet") else f"{RESNET_CHILDREN[int(first)]}.{rest}"
