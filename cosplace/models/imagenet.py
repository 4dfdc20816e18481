"""torchvision's ImageNet weights: which versions exist, where they are, and how they fit into a backbone."""

import re
from pathlib import Path

from torch import nn

from cosplace.config.names import BACKBONES, DINOV2_BACKBONES, TIMM, canonical_backbone
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.architectures import architecture_of, closest_architecture, first_difference, tensor_shapes
from cosplace.models.downloads import download
from cosplace.models.weight_files import read_state_dict

CLASSIFIERS = ("fc.", "classifier.")  # torchvision's layers after the backbone
RESNET_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")  # torchvision's names


# --- versions and files ----------------------------------------------------------------------------------------------


def available_imagenet_weights(backbone: str) -> tuple[str, ...]:
    """Versions that exist for a backbone: "v1" and "v2" are torchvision's IMAGENET1K_V1 and IMAGENET1K_V2.

    A network of timm has "timm", if any, and a DINOv2 transformer "dinov2".

    >>> available_imagenet_weights("ResNet50")
    ('v1', 'v2')
    """
    backbone = canonical_backbone(backbone)
    if backbone.startswith(TIMM):
        return ("timm",)
    return ("dinov2",) if backbone in DINOV2_BACKBONES else tuple(_imagenet_urls(backbone))


def imagenet_url(backbone: str, version: str, base: str | None = None) -> str:
    """URL of torchvision's ImageNet weights; `base` replaces https://download.pytorch.org/models.

    Raises ConfigError, with the versions that exist, when the backbone has no such version.
    """
    backbone = canonical_backbone(backbone)
    urls = _imagenet_urls(backbone)
    if version not in urls:
        options = ", ".join([*urls, "none"])
        raise ConfigError(
            f"There are no ImageNet weights '{version}' for {backbone}. Use --imagenet_weights {options}, or the path "
            "of a state dict."
        )
    url = urls[version]
    return url if base is None else f"{base.rstrip('/')}/{url.rsplit('/', 1)[1]}"


def imagenet_file(backbone: str, version: str, folder: Path | None = None, base: str | None = None) -> Path:
    """Path of torchvision's ImageNet weights, downloaded unless they are in `folder` (default: the cache).

    Raises ConfigError when they do not exist and DownloadError when the download fails.
    """
    return download(imagenet_url(backbone, version, base), folder, advice="pass --imagenet_weights none or PATH")


def _imagenet_urls(backbone: str) -> dict[str, str]:
    """Version -> URL."""
    assert backbone in BACKBONES, backbone
    if backbone == "ResNet18_Small":
        return {}
    from torchvision.models import get_model_weights

    versions = {"v1": "IMAGENET1K_V1", "v2": "IMAGENET1K_V2"}
    urls = {weights.name: weights.url for weights in get_model_weights(backbone.lower())}
    return {version: urls[name] for version, name in versions.items() if name in urls}


# --- into a backbone -------------------------------------------------------------------------------------------------


def load_imagenet(backbone: nn.Sequential, name: str, weights: str | Path) -> None:
    """Load ImageNet weights into a backbone: a version such as "v1", or the path of a torchvision state dict.

    Raises ConfigError for a version that does not exist, CheckpointError for a file that does not fit `name`, and
    DownloadError.
    """
    if re.fullmatch(r"v\d+", str(weights), re.IGNORECASE):
        path = imagenet_file(name, str(weights).lower())
    else:
        path = Path(weights)
    state_dict = read_state_dict(path)
    if any(key.startswith("aggregation.") for key in state_dict):
        raise CheckpointError(f"{path} is a whole CosPlace model, not ImageNet weights. Use it with --resume_model.")
    if any(key.startswith("aggregator.") for key in state_dict):
        raise CheckpointError(
            f"{path} is a whole model of another project, not ImageNet weights. Use a torchvision state dict."
        )
    state_dict = {key: value for key, value in state_dict.items() if not key.startswith(CLASSIFIERS)}
    efficientnet = "features.0.0.weight" in state_dict
    renamed = {_backbone_key(key, efficientnet): value.float() for key, value in state_dict.items()}
    expected = {_torchvision_key(name, key): shape for key, shape in architecture_of(name).shapes.items()}
    difference = first_difference(expected, tensor_shapes(state_dict))
    if difference:
        closest = closest_architecture(tensor_shapes(renamed))
        is_other = closest is not None and closest.name != name
        hint = f"it looks like {closest.name}" if is_other else "use a torchvision state dict"
        raise CheckpointError(f"{path} does not fit {name}: {difference}; {hint}.")
    backbone.load_state_dict(backbone.state_dict() | renamed)


def imagenet_backbone(path: str | Path) -> str | None:
    """The backbone of a torchvision state dict, such as "ResNet18"; None for any other file.

    Raises CheckpointError for a file that cannot be read.
    """
    tensors = {key: value for key, value in read_state_dict(Path(path)).items() if not key.startswith(CLASSIFIERS)}
    if not any(key.startswith(("conv1.", "features.")) for key in tensors):
        return None
    efficientnet = "features.0.0.weight" in tensors
    shapes = {_backbone_key(key, efficientnet): shape for key, shape in tensor_shapes(tensors).items()}
    closest = closest_architecture(shapes)
    return closest.name if closest is not None and closest.shapes == shapes else None


def _backbone_key(torchvision_key: str, efficientnet: bool) -> str:
    """Key in our backbone, for example `6.0.conv1.weight` for ResNet's `layer3.0.conv1.weight`."""
    first, _, rest = torchvision_key.partition(".")
    if first == "features":
        return f"0.{rest}" if efficientnet else rest
    return f"{RESNET_CHILDREN.index(first)}.{rest}" if first in RESNET_CHILDREN else torchvision_key


def _torchvision_key(name: str, key: str) -> str:
    """Key in torchvision's model: the inverse of `_backbone_key`."""
    first, _, rest = key.partition(".")
    if name == "VGG16":
        return f"features.{key}"
    return f"features.{rest}" if name.startswith("EfficientNet") else f"{RESNET_CHILDREN[int(first)]}.{rest}"
