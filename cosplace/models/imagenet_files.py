"""torchvision's ImageNet weights: which exist, and where."""

from pathlib import Path

from torchvision.models import get_model_weights

from cosplace.config.knobs import BACKBONES, canonical_backbone
from cosplace.errors import ConfigError
from cosplace.models.downloads import download


def available_imagenet_weights(backbone: str) -> tuple[str, ...]:
    """Which of "v1" and "v2" (torchvision's IMAGENET1K_V1 and IMAGENET1K_V2) exist for a backbone.

    >>> available_imagenet_weights("ResNet50")
    ('v1', 'v2')
    """
    return tuple(_imagenet_urls(canonical_backbone(backbone)))


def imagenet_url(backbone: str, version: str, base: str | None = None) -> str:
    """Address of torchvision's ImageNet weights; `base` replaces https://download.pytorch.org/models.

    Raises ConfigError, naming what exists, when a backbone has no such version.
    """
    backbone = canonical_backbone(backbone)
    urls = _imagenet_urls(backbone)
    if version not in urls:
        offered = [*urls, "none", "the path of a state dict"]
        raise ConfigError(
            f"There are no ImageNet weights '{version}' for {backbone}: use --imagenet_weights {' or '.join(offered)}."
        )
    url = urls[version]
    return url if base is None else f"{base.rstrip('/')}/{url.rsplit('/', 1)[1]}"


def imagenet_file(backbone: str, version: str, folder: Path | None = None, base: str | None = None) -> Path:
    """Return the file of torchvision's ImageNet weights, fetched unless it is there.

    Raises ConfigError when it does not exist anywhere and DownloadError when it cannot be fetched.
    """
    return download(imagenet_url(backbone, version, base), folder, or_else="or pass --imagenet_weights none or PATH")


def _imagenet_urls(backbone: str) -> dict[str, str]:
    assert backbone in BACKBONES, backbone
    if backbone == "ResNet18_Small":
        return {}
    versions = {"v1": "IMAGENET1K_V1", "v2": "IMAGENET1K_V2"}
    records = {record.name: record.url for record in get_model_weights(backbone.lower())}
    return {version: records[name] for version, name in versions.items() if name in records}
