"""One door to all models: a name of the zoo, a path, or an entry point of torch.hub."""

import re
from contextlib import suppress
from pathlib import Path

from torch import nn

from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.downloads import download
from cosplace.models.hub import is_hub, open_hub
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import network_from_weights
from cosplace.models.weight_files import read_card, read_state_dict
from cosplace.models.zoo import RELEASES_VARIABLE, HubModel, ZooModel, find_model, released, released_url

WEIGHT_SUFFIXES = re.compile(r"\.(pth|pt|ckpt|bin|torch|safetensors)$", re.IGNORECASE)


def open_network(model: str | Path, *, trust_remote_code: bool = False) -> nn.Module:
    """Open a model in evaluation mode: ImageNet-normalised photos (B, 3, H, W) -> unit descriptors (B, D) float32.

    model: a name of the zoo (`cosplace_resnet50_512`, fetched once), the path of a file of weights, or
    "hub:owner/repo:entry(args)".  trust_remote_code: allow what comes through torch.hub to run its code here.

    Raises ConfigError for a name that is unknown or a model that lacks trust, DownloadError when it cannot be fetched,
    CheckpointError when its file is missing, damaged or of another architecture.
    """
    if is_hub(model):
        return open_hub(str(model), trust_remote_code=trust_remote_code)
    record = _record(model)
    if isinstance(record, HubModel):
        return open_hub(record.spec, trust_remote_code=trust_remote_code)
    return _opened(_fetched(record), record) if record else _opened_file(Path(model), trust_remote_code)


def model_file(model: str | Path) -> Path:
    """Return the file of weights that a zoo name (fetched unless it is there) or a path stands for.

    Raises ConfigError for an unknown name, and for models of torch.hub, which are no file.
    """
    if is_hub(model) or isinstance(record := _record(model), HubModel):
        raise ConfigError(f"{model} comes through torch.hub and is no file of weights: give a zoo name or a path.")
    return _fetched(record) if record else Path(model)


def released_network(backbone: str, fc_output_dim: int, method: str = "cosplace") -> GeoLocalizationNet:
    """Return a released model in evaluation mode, fetched unless it is in the cache.

    Raises ConfigError when there is none, DownloadError when it cannot be fetched, CheckpointError when it is damaged.
    """
    record = released(backbone, fc_output_dim, method)
    return _opened(_fetched(record), record)


def _record(model: str | Path) -> ZooModel | HubModel | None:
    """Find the record of a name; None for paths."""
    text = str(model)
    if isinstance(model, Path) or "/" in text or "\\" in text or WEIGHT_SUFFIXES.search(text):
        return None
    try:
        return find_model(text)
    except ConfigError:
        with suppress(OSError, ValueError):  # of what can be no path
            if Path(text).is_file():
                return None
        raise


def _fetched(record: ZooModel) -> Path:
    mirror = f"or set {RELEASES_VARIABLE} to an address or a folder that has it"
    return download(released_url(record), sha256=record.sha256, or_else=mirror)


def _opened(path: Path, record: ZooModel) -> GeoLocalizationNet:
    """Open a released model's file, which must hold what its record says."""
    network = _opened_file(path, trust_remote_code=False)
    found = (getattr(network, "backbone_name", type(network).__name__), getattr(network, "fc_output_dim", None))
    if not isinstance(network, GeoLocalizationNet) or found != (record.backbone, record.fc_output_dim):
        raise CheckpointError(
            f"{path} holds {found[0]} with {found[1]} dimensions, not {record.name}: remove it, then fetch it again."
        )
    return network


def _opened_file(path: Path, trust_remote_code: bool) -> nn.Module:
    """Open a file of weights: a network, and behind it a reduction where the file has one."""

    def open_base(model: str) -> nn.Module:
        # Never a path: a file could name itself.
        if not is_hub(model) and _record(model) is None:
            raise CheckpointError(f"its card names {model} as its network, which is no name of a model.")
        return open_network(model, trust_remote_code=trust_remote_code)

    state_dict, card = read_state_dict(path), read_card(path)
    try:
        return network_from_weights(state_dict, card, open_base)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
