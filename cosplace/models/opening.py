"""Open any model: a name from the zoo, a weights file, or a model from torch.hub."""

import re
import shlex
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn

from cosplace.config.names import canonical_backbone
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.downloads import download, weights_folder
from cosplace.models.hub import is_hub, network_from_hub
from cosplace.models.imagenet import imagenet_backbone
from cosplace.models.layouts import network_from_release
from cosplace.models.model_files import BASE_MODEL, FOLDED_REDUCTION, REDUCTION_PREFIX
from cosplace.models.network import network_from_state_dict
from cosplace.models.reduction import METHODS, ReducedNetwork, Reduction, first_dimensions, mark_ordered, unreduced
from cosplace.models.weight_files import read_card, read_state_dict, tensors_sha256
from cosplace.models.zoo import RELEASES_VARIABLE, HubModel, NativeModel, ZooModel, find_model, released_url
from cosplace.storage import write_text

WEIGHT_SUFFIXES = re.compile(r"\.(pth|pt|ckpt|bin|torch|safetensors)$", re.IGNORECASE)


def open_model(
    model: str | Path,
    *,
    backbone: str | None = None,
    fc_output_dim: int | None = None,
    aggregation: str | None = None,
    features_stage: int | None = None,
    reduce_to: int | None = None,
    trust_remote_code: bool = False,
    accept_license: bool = False,
) -> nn.Module:
    """Open a model in evaluation mode: ImageNet-normalized images (B, 3, H, W) -> unit descriptors (B, D) float32.

    model: a name from the zoo such as "cosplace_resnet50_512" (downloaded once), the path of a weights file, or
    "hub:owner/repo:entry(args)".
    backbone, fc_output_dim, aggregation, features_stage: what the model must have, for flags that the user gave; None
    accepts any.
    reduce_to: keep only the first `reduce_to` dimensions of a model written by `cosplace reduce`.
    trust_remote_code: allow models from torch.hub, whose code then runs on this machine.
    accept_license: accept the license of weights that may be used only under its terms; needed once.

    Raises ConfigError for an unknown name, another backbone or dimension, too few dimensions, a model whose code is not
    trusted or whose license is not accepted; DownloadError; CheckpointError for a file that is missing, damaged or of
    another architecture.
    """
    network = _open(model, trust_remote_code, accept_license)
    _check_flag("backbone", backbone and canonical_backbone(backbone), _backbone_name(network), model)
    _check_flag("fc_output_dim", fc_output_dim, getattr(network, "fc_output_dim", None), model)
    base = unreduced(network)
    _check_flag("aggregation", aggregation, getattr(base, "aggregation_name", type(base).__name__), model)
    timm = getattr(getattr(base, "design", None), "timm", None)
    _check_flag("features_stage", features_stage, None if timm is None else timm.stage, model)
    return network if reduce_to is None else first_dimensions(network, reduce_to)


def weights_path(model: str | Path, *, accept_license: bool = False) -> Path:
    """Weights file of a zoo name (downloaded unless it is in the cache), or the path itself.

    Raises ConfigError for an unknown name, a license that is not accepted, and for models from torch.hub, which have
    no weights file.
    """
    source = _find_source(model)
    if isinstance(source, str):
        raise ConfigError(
            f"{model} is loaded through torch.hub and has no weights file. Use a name from the zoo or a path."
        )
    return source if isinstance(source, Path) else _download(source, accept_license)


def _open(model: str | Path, trust_remote_code: bool, accept_license: bool) -> nn.Module:
    source = _find_source(model)
    if isinstance(source, str):
        return network_from_hub(source, trust_remote_code=trust_remote_code)
    if isinstance(source, Path):
        return _open_file(source, trust_remote_code, accept_license)
    path = _download(source, accept_license)
    network = _open_file(path, trust_remote_code=False, accept_license=False)
    found = _backbone_name(network), getattr(network, "fc_output_dim", None)
    other_method = isinstance(source, NativeModel) and getattr(network, "method", None) != source.method
    if isinstance(network, ReducedNetwork) or other_method or found != (source.backbone, source.fc_output_dim):
        raise CheckpointError(
            f"{path} holds {found[0]} with {found[1]} dimensions, not {source.name}. Remove the file, then try again."
        )
    return network


def _find_source(model: str | Path) -> ZooModel | str | Path:
    """Record of a released model, spec of a model from torch.hub, or path of a file."""
    text = str(model)
    if is_hub(model):
        return text
    if isinstance(model, Path) or "/" in text or "\\" in text or WEIGHT_SUFFIXES.search(text):
        return Path(model)
    try:
        record = find_model(text)
    except ConfigError:
        with suppress(OSError, ValueError):  # of text that is not a valid path
            if Path(text).is_file():
                return Path(text)
        raise
    return record.spec if isinstance(record, HubModel) else record


def _download(record: ZooModel, accept_license: bool) -> Path:
    if isinstance(record, NativeModel) and record.restricted:
        check_license(record, accept_license)
    advice = f"set {RELEASES_VARIABLE} to a URL or a folder that has it"
    return download(released_url(record), sha256=record.sha256, advice=advice)


def check_license(record: NativeModel, accept_license: bool) -> None:
    """Raise ConfigError unless the license of a model is accepted, now or earlier; acceptance is kept in a file."""
    accepted = weights_folder() / f"{record.file_name}.license"
    if accepted.is_file():
        return
    if not accept_license:
        raise ConfigError(
            f"The weights of {record.name} have a license that restricts their use, {record.licence}. If you accept "
            f"it, run `cosplace zoo download {record.name} --accept_license` once (in Python accept_license=True).",
            "Or add --accept_license to this command.",
        )
    write_text(accepted, f"{record.restricted} accepted for {record.file_name}\n")


def _backbone_name(network: nn.Module) -> str:
    base = unreduced(network)
    return getattr(base, "backbone_name", type(base).__name__)


def _check_flag(flag: str, given: str | int | None, found: str | int | None, model: str | Path) -> None:
    if given is not None and given != found:
        raise ConfigError(f"--{flag} {given} contradicts {model}, which has {found}. Omit the flag.")


# --- files -----------------------------------------------------------------------------------------------------------


def _open_file(path: Path, trust_remote_code: bool, accept_license: bool) -> nn.Module:
    """Open a weights file: a network and, if the file has one, its reduction."""
    tensors, card = read_state_dict(path), read_card(path)
    try:
        if "tensors_sha256" in card and card["tensors_sha256"] != tensors_sha256(tensors):
            raise CheckpointError("The tensors are not those that the model card describes. Copy the file again.")
        of_reduction = {key: value for key, value in tensors.items() if key.startswith(REDUCTION_PREFIX)}
        of_network = {key: value for key, value in tensors.items() if key not in of_reduction}
        if of_network or not of_reduction:
            network: nn.Module = network_from_release(of_network) or network_from_state_dict(of_network)
            if FOLDED_REDUCTION in card:
                mark_ordered(network)
            _check_card(card, "backbone", _backbone_name(network))
        else:
            network = _open_base(card, trust_remote_code, accept_license)
        if of_reduction:
            network = ReducedNetwork(network, _reduction_from(of_reduction, card))
        elif "reduction" in card:
            raise CheckpointError("The model card names a reduction, but the file has none. Convert the model again.")
        _check_card(card, "fc_output_dim", getattr(network, "fc_output_dim", None))
    except CheckpointError as error:
        if (backbone := imagenet_backbone(path)) is not None:
            raise CheckpointError(
                f"{path} has ImageNet weights of {backbone}, which is not yet a model for places. Make one from your "
                f"photos: `{shlex.join(['cosplace', 'finetune', 'DATASET', '--model', str(path)])}`."
            ) from error
        raise CheckpointError(f"{path}: {error}") from error
    return network.eval()


def _open_base(card: dict[str, str], trust_remote_code: bool, accept_license: bool) -> nn.Module:
    """Open the network of a file that holds only its reduction."""
    if BASE_MODEL not in card:
        raise CheckpointError("The file has a reduction but no network, and no model card that names it.")
    base = card[BASE_MODEL]
    if isinstance(_find_source(base), Path):  # never a path: a file could name itself
        raise CheckpointError(f"The model card names {base} as its network, which is not the name of a model.")
    return _open(base, trust_remote_code, accept_license)


def _reduction_from(tensors: dict[str, Tensor], card: dict[str, str]) -> Reduction:
    tensors = {key.removeprefix(REDUCTION_PREFIX): value for key, value in tensors.items()}
    method = card.get("reduction", "")
    if tensors.keys() != {"weight", "bias"} or method not in METHODS:
        raise CheckpointError(
            f"The reduction is damaged (tensors {', '.join(sorted(tensors))}, method '{method}'). Fit it again with "
            f"`cosplace reduce`."
        )
    _check_card(card, "features_dim", tensors["weight"].shape[-1])
    try:
        return Reduction(tensors["weight"], tensors["bias"], method)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _check_card(card: dict[str, str], key: str, found: str | int | None) -> None:
    if key in card and found is not None and card[key] != str(found):
        raise CheckpointError(
            f"The model card says {key} {card[key]}, but the tensors have {found}. Copy or convert the file again."
        )
