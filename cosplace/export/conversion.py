"""Convert weights files between .pth and .safetensors, and write reduced models.

A .safetensors file holds a model card, text by name: format, backbone, fc_output_dim, method, source, image_size,
recalls (JSON: dataset -> k -> percent, or dataset -> R@1), created, cosplace_version, tensors_sha256; for a reduced
model also reduction and features_dim, or folded_reduction; reduction_photos and, if the network is not in the file,
base_model.  A model that was trained here also has training_photos and validation_matches (see
`models.training_card`).  Unknown entries are left out.  Side effects: writes one file, then reads it back.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor, nn

from cosplace.assessment.provenance import card_of
from cosplace.config.defaults import MAX_FITTED_PHOTOS
from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values
from cosplace.errors import CheckpointError, ConfigError, CosPlaceError
from cosplace.models.hub import is_hub, parse_hub
from cosplace.models.model_files import BASE_MODEL, FOLDED_REDUCTION, model_card, model_tensors
from cosplace.models.native import NativeNetwork
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model, weights_path
from cosplace.models.reduction import (
    ReducedNetwork,
    can_fold,
    fold_reduction,
    last_linear,
    num_parameters,
    unreduced,
)
from cosplace.models.training_card import VALIDATION_MATCHES, training_entries
from cosplace.models.weight_files import read_card, read_state_dict, tensors_sha256, write_weights
from cosplace.models.zoo import ZooModel, find_model
from cosplace.photos.scanning import scan_images
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.retrieval.reduction_fitting import fit_reduction
from cosplace.training.best_model import BEST_MODEL, START, best_model_card
from cosplace.training.metrics import read_metrics
from cosplace.training.run import CONFIG

SAFETENSORS, TORCH_SUFFIXES = ".safetensors", (".pth", ".pt")
# Card entries that reducing changes.
NOT_INHERITED = frozenset({"recalls", "created", "reduction", "reduction_photos", FOLDED_REDUCTION, VALIDATION_MATCHES})


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenModel:
    """A weights file that was written and read back."""

    path: Path
    num_bytes: int
    card: Mapping[str, str]  # the model card; .pth files do not store it


def convert_model(source: str | Path, to: str | Path, *, force: bool = False) -> WrittenModel:
    """Write the tensors of a model, bit for bit, in the format of the suffix of `to`.

    source: a weights file, or a name from `cosplace zoo list`.  force: replace an existing file.
    Raises ConfigError if the file exists or has an unknown suffix, CheckpointError if the source is not a model.
    """
    to = _checked_target(to, force)
    path = weights_path(source)
    tensors, card = read_state_dict(path), read_card(path)
    if BASE_MODEL in card:
        raise CheckpointError(
            f"{path} contains only a reduction of {card[BASE_MODEL]} and cannot be converted. Copy the file instead."
        )
    network = open_model(path)
    if isinstance(network, ReducedNetwork):
        _check_stores_card(to)
    known = {**card, **training_entries(path), **_run_card(path), **_zoo_card(source), **model_card(network, tensors)}
    if "created" not in known:
        known |= {"source": known.get("source", _source_name(source)), "created": _now()}
    return _write(to, tensors, known)


def reduce_model(
    model: str | Path,
    folder: str | Path,
    to: str | Path,
    dims: int,
    *,
    settings: ExtractionSettings | None = None,
    method: str | None = None,
    max_photos: int = MAX_FITTED_PHOTOS,
    force: bool = False,
    trust_remote_code: bool = False,
    accept_license: bool = False,
    follow_outside: bool = False,
    progress: Progress = no_progress,
) -> WrittenModel:
    """Fit a reduction of a model to `dims` dimensions on the photos of a folder, and write both as one model.

    method: None is pca_uncentered for networks whose last layer projects an aggregation, such as MegaLoc, else
    pca_whitening.  A reduction that subtracts no mean is multiplied into the last linear layer, if there is one.  A
    reduction that the model already has is fitted again.  For a model from torch.hub, the file holds only the
    reduction and the name of the model: opening it runs the code of that repository, so it needs trust_remote_code.
    Raises ConfigError for too many dimensions, too few photos or an existing file, DatasetError, CheckpointError.
    """
    to, settings = _checked_target(to, force), settings or ExtractionSettings()
    _check_stores_card(to)
    network = unreduced(open_model(model, trust_remote_code=trust_remote_code, accept_license=accept_license))
    if method is None:
        is_projected = isinstance(network, NativeNetwork) and last_linear(network) is not None
        method = "pca_uncentered" if is_projected else "pca_whitening"
    images = scan_images(folder, follow_outside=follow_outside)
    reduction, num_photos = fit_reduction(
        network, images, dims, settings, method=method, max_photos=max_photos, progress=progress
    )
    reduced: nn.Module = ReducedNetwork(network.cpu(), reduction)
    with_base = isinstance(network, GeoLocalizationNet | NativeNetwork)
    folded = ""
    if can_fold(network, reduction):
        before = num_parameters(network)
        reduced = fold_reduction(network, reduction)
        folded = (
            f"{method}, {reduction.in_dim} to {dims} dimensions, in the last linear layer: "
            f"{before / 1e6:.1f} to {num_parameters(reduced) / 1e6:.1f} million parameters"
        )
    tensors = model_tensors(reduced, with_base=with_base)
    card = {key: value for key, value in _known_card(model).items() if key not in NOT_INHERITED}
    card |= {"source": card.get("source", _source_name(model)), "created": _now(), **model_card(reduced, tensors)}
    if folded:
        card[FOLDED_REDUCTION] = folded
    if method != "truncation":
        card["reduction_photos"] = f"{num_photos} of {Path(folder).resolve().name}"
    if not with_base:
        card[BASE_MODEL] = _absolute_hub_name(model)
    if settings.image_size:
        card["image_size"] = str(settings.image_size)
    return _write(to, tensors, card)


# --- model cards -----------------------------------------------------------------------------------------------------


def _known_card(model: str | Path) -> dict[str, str]:
    """The card of a model: from its file, from its training run or from the zoo."""
    try:
        path = weights_path(model)
    except ConfigError:  # a model from torch.hub
        return {}
    return {**read_card(path), **training_entries(path), **_run_card(path), **_zoo_card(model)}


def _run_card(path: Path) -> dict[str, str]:
    """The card of the best model of a training run, from the files next to it; empty for other files."""
    config_file = path.parent / CONFIG
    if path.name != BEST_MODEL or not config_file.is_file():
        return {}
    try:
        values = json.loads(config_file.read_text())
        if "teacher" in values:  # a distillation: its card names the teacher and its license
            return card_of(path)
        config = from_values(TrainConfig, values)
        rows = [row for row in read_metrics(path.parent) if row["kind"] in ("start", "epoch")]
        best = max(rows, key=lambda row: row["recalls"][min(row["recalls"], key=int)])  # the first of equal ones
        epoch = START if best["kind"] == "start" else best["epoch"]
        return best_model_card(config, epoch, {int(k): recall for k, recall in best["recalls"].items()})
    except (CosPlaceError, ValueError, KeyError, TypeError, AttributeError):  # files of another version or program
        return {}


def _zoo_card(model: str | Path) -> dict[str, str]:
    """The card of a released model; empty for others."""
    name = str(model)
    if isinstance(model, Path) or Path(name).is_file():
        return {}
    record = find_model(name)
    if not isinstance(record, ZooModel):
        return {}
    card = {"method": record.method, "source": record.url, "image_size": str(record.input_size)}
    card["licence"] = record.licence
    return card | ({"recalls": json.dumps(dict(record.recalls))} if record.recalls else {})


def _source_name(model: str | Path) -> str:
    """The name of a model for the card: for a file, its name without folders, which may be private."""
    return Path(model).name if Path(model).is_file() else str(model)


def _absolute_hub_name(model: str | Path) -> str:
    """Name that opens a torch.hub model from any folder: the path of a local clone becomes absolute."""
    name = str(model)
    if not is_hub(name):
        return name
    entry = parse_hub(name)
    _, _, call = name.rpartition(f":{entry.entry}")
    return f"hub:{entry.source}:{entry.entry}{call}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- files -----------------------------------------------------------------------------------------------------------


def _checked_target(to: str | Path, force: bool) -> Path:
    """Path of the file to write.  Raises ConfigError for an unknown suffix or an existing file."""
    to = Path(to)
    if to.suffix not in (SAFETENSORS, *TORCH_SUFFIXES):
        raise ConfigError(f"{to} has an unknown suffix, '{to.suffix}'. Use {SAFETENSORS} or {TORCH_SUFFIXES[0]}.")
    if to.is_dir():
        raise ConfigError(f"{to} is a folder. Choose another name.")
    if to.exists() and not force:
        raise ConfigError(f"{to} already exists. Choose another name, or replace it with --force.")
    return to


def _check_stores_card(to: Path) -> None:
    """Raise ConfigError unless the format of the file stores the model card, which opens a reduced model."""
    if to.suffix != SAFETENSORS:
        raise ConfigError(f"{to} cannot store the card that a reduced model needs. Use the suffix {SAFETENSORS}.")


def _write(to: Path, tensors: Mapping[str, Tensor], card: dict[str, str]) -> WrittenModel:
    """Write the file, read it back and compare."""
    write_weights(to, tensors, card if to.suffix == SAFETENSORS else None)
    if tensors_sha256(read_state_dict(to)) != card["tensors_sha256"]:
        raise CheckpointError(f"{to} differs from what was written. Check the disk, then write the file again.")
    return WrittenModel(path=to, num_bytes=to.stat().st_size, card=card)
