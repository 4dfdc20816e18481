"""Models as files to share: .pth and .safetensors into each other, and smaller descriptors beside their network.

A .safetensors holds a card, text by name: format, backbone, fc_output_dim, method, source, image_size, recalls (JSON:
dataset -> k -> percent, or dataset -> R@1), created, cosplace_version, tensors_sha256; of a reduced model also
reduction, features_dim, reduction_photos and, where the network is not in the file, base_model.  What is not known is
left out.  Side effects: writes one file, then reads it back.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values
from cosplace.errors import CheckpointError, ConfigError, CosPlaceError
from cosplace.models.hub import is_hub, parse_hub
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import model_file, open_network
from cosplace.models.reduction import BASE_MODEL, ReducedNetwork, network_from_weights, tensors_to_keep, unreduced
from cosplace.models.weight_files import read_card, read_state_dict, tensors_sha256, write_weights
from cosplace.models.zoo import MODELS, find_model
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.reduction_fitting import MAX_FITTED_PHOTOS, fit_reduction
from cosplace.training.checkpoint import CONFIG, best_model_card, own_card, read_metrics

SAFE, TORCH = ".safetensors", (".pth", ".pt")
OF_SMALLER = frozenset({"recalls", "created", "reduction", "reduction_photos"})  # not true of a model made smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenModel:
    """A file of weights that was just written and read back."""

    path: Path
    num_bytes: int
    card: Mapping[str, str]  # what is known of it; a .pth has no place for it


def convert(source: str | Path, to: str | Path, *, force: bool = False) -> WrittenModel:
    """Write a model's tensors, bit for bit, in the kind of file that the suffix of `to` says.

    source: a file of weights, or a name of the zoo.  force: write over what is there.
    Raises ConfigError for a file that is there or a suffix that says nothing, CheckpointError when the source is no
    model of ours.
    """
    to = _checked_target(to, force)
    path = model_file(source)
    tensors, card = read_state_dict(path), read_card(path)
    try:
        network = network_from_weights(tensors, card, _refuse_base)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if to.suffix != SAFE and isinstance(network, ReducedNetwork):
        raise ConfigError(f"{to}: a reduced model is opened by its card, for which only {SAFE} has a place: use that.")
    known = {**card, **_card_of_run(path), **_card_of_zoo(source), **own_card(network, tensors)}
    if "created" not in known:
        known |= {"source": known.get("source", _origin(source)), "created": _now()}
    return _write(to, tensors, known)


def reduce(
    model: str | Path,
    folder: str | Path,
    to: str | Path,
    dims: int,
    *,
    method: str = "pca_whitening",
    max_photos: int = MAX_FITTED_PHOTOS,
    force: bool = False,
    trust_remote_code: bool = False,
    **knobs: Any,
) -> WrittenModel:
    """Fit a reduction of a model on the photos below a folder, and write both as one model.

    A reduction that the model has already is fitted anew.  Of a torch.hub model the file holds the reduction and the
    name alone: opening it fetches and runs that repository's code again, with trust_remote_code.
    knobs: of `extract` (image_size, batch_size, num_workers, loader, device, autocast, progress).
    Raises ConfigError for too many dimensions, too few photos or a file that is there, DatasetError, CheckpointError.
    """
    to = _checked_target(to, force)
    if to.suffix != SAFE:
        raise ConfigError(f"{to}: a reduced model is opened by its card, for which only {SAFE} has a place: use that.")
    network = unreduced(open_network(model, trust_remote_code=trust_remote_code))
    images = scan_images(folder)
    reduction, count = fit_reduction(network, images, dims, method=method, max_photos=max_photos, **knobs)
    reduced = ReducedNetwork(network.cpu(), reduction)
    whole = isinstance(network, GeoLocalizationNet)
    tensors = tensors_to_keep(reduced, with_base=whole)
    card = {key: value for key, value in _card_of(model).items() if key not in OF_SMALLER}
    card |= {"source": card.get("source", _origin(model)), "created": _now(), **own_card(reduced, tensors)}
    if method != "truncation":
        card["reduction_photos"] = f"{count} of {Path(folder).resolve().name}"
    if not whole:
        card[BASE_MODEL] = _spec(model)
    if knobs.get("image_size"):
        card["image_size"] = str(knobs["image_size"])
    return _write(to, tensors, card)


# --- cards -----------------------------------------------------------------------------------------------------------


def _card_of(model: str | Path) -> dict[str, str]:
    """What is known of a model from where it comes."""
    try:
        path = model_file(model)
    except ConfigError:  # of torch.hub
        return {}
    return {**read_card(path), **_card_of_run(path), **_card_of_zoo(model)}


def _card_of_run(path: Path) -> dict[str, str]:
    """What the files of a run beside its best model tell."""
    file = path.parent / CONFIG
    if path.name != "best_model.pth" or not file.is_file():
        return {}
    try:
        config = from_values(TrainConfig, json.loads(file.read_text()))
        epochs = [row for row in read_metrics(path.parent) if row["kind"] == "epoch"]
        best = max(epochs, key=lambda row: row["recalls"][min(row["recalls"], key=int)])
        return best_model_card(config, best["epoch"], {int(k): recall for k, recall in best["recalls"].items()})
    except (CosPlaceError, ValueError, KeyError, TypeError, AttributeError):  # of another version, or of someone else
        return {}


def _card_of_zoo(model: str | Path) -> dict[str, str]:
    """What the zoo says of a released model."""
    name = str(model)
    if isinstance(model, Path) or Path(name).is_file():
        return {}
    record = MODELS.get(find_model(name).name)
    if record is None:
        return {}
    card = {"method": record.method, "source": record.url, "image_size": str(record.input_size)}
    card["licence"] = record.licence
    return card | ({"recalls": json.dumps(dict(record.recalls))} if record.recalls else {})


def _origin(model: str | Path) -> str:
    """Where a model comes from, without the folders of whoever converts it."""
    return Path(model).name if Path(model).is_file() else str(model)


def _spec(model: str | Path) -> str:
    """What opens a torch.hub model again from any folder: the name, or with the path of a clone made absolute."""
    spec = str(model)
    if not is_hub(spec):
        return spec
    entry = parse_hub(spec)
    _, _, call = spec.rpartition(f":{entry.entry}")
    return f"hub:{entry.source}:{entry.entry}{call}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- files -----------------------------------------------------------------------------------------------------------


def _checked_target(to: str | Path, force: bool) -> Path:
    """The path to write, when its suffix says how and nothing is there."""
    to = Path(to)
    if to.suffix not in (SAFE, *TORCH):
        raise ConfigError(f"{to}: its suffix says what to write, so end it with {SAFE} or {TORCH[0]}.")
    if to.exists() and not (force and to.is_file()):
        raise ConfigError(f"{to} is there already: give another name{'' if to.is_dir() else ', or --force'}.")
    return to


def _write(to: Path, tensors: Mapping[str, Tensor], card: dict[str, str]) -> WrittenModel:
    """Write, read back and compare."""
    write_weights(to, tensors, card if to.suffix == SAFE else None)
    if tensors_sha256(read_state_dict(to)) != card["tensors_sha256"]:
        raise CheckpointError(f"{to} does not hold what was written: check the disk, then write it again.")
    return WrittenModel(path=to, num_bytes=to.stat().st_size, card=card)


def _refuse_base(model: str) -> nn.Module:
    raise CheckpointError(f"it holds the reduction of {model} alone, which only opens as it is: copy the file.")
