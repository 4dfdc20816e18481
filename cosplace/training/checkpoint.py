"""The whole state of a run, saved atomically, resumed exactly.

    logs/<save_dir>/<time>/
        best_model.pth         state dict of the network with the best validation R@1: exchangeable with released ones
        best_model.safetensors the same tensors in a file that cannot hold code, with a card that says what they are
        last_checkpoint.pth    everything needed to go on: weights, optimizers, scaler, counters, settings
        metrics.jsonl          one line per stretch of losses and per epoch
        config.json  info.log  debug.log  report.html  TensorBoard events

Random state needs no saving: every draw is a function of the seed and of the counters.  A checkpoint of the original
code (https://github.com/gmberton/CosPlace) is read too; it holds no settings.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from cosplace import __version__
from cosplace.config.sections import TrainConfig
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.network import GeoLocalizationNet, infer_architecture, network_from_state_dict
from cosplace.models.reduction import ReducedNetwork, unreduced
from cosplace.models.weight_files import read_state_dict, tensors_sha256, write_weights
from cosplace.storage import storage_errors, write_atomically, write_text
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.groups import Group

FORMAT = "cosplace checkpoint 1"
MODEL_FORMAT = "cosplace model 1"  # in the card of a .safetensors
BEST_MODEL, BEST_MODEL_SAFE, LAST_CHECKPOINT = "best_model.pth", "best_model.safetensors", "last_checkpoint.pth"
METRICS, CONFIG = "metrics.jsonl", "config.json"


@dataclass(slots=True, kw_only=True)
class RunState:
    """What changes while a run goes on."""

    model: GeoLocalizationNet
    optimizer: torch.optim.Optimizer
    classifiers: list[MarginCosineProduct]  # one per group
    classifier_optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    epoch: int = 0  # the epoch and the iteration in it that come next
    iteration: int = 0
    best_recall1: float = -1.0  # below any recall: the first epoch's model is the best so far
    best_epoch: int = -1
    loss_sum: float = 0.0  # of the epoch's iterations so far
    stretch_sum: float = 0.0  # of the iterations since the last line of losses
    unreadable: dict[str, int] = field(default_factory=dict)  # message -> times, in the epoch so far


def save_checkpoint(folder: Path, state: RunState, config: Mapping[str, Any], data_digest: str) -> None:
    """Write last_checkpoint.pth; until it is whole, the former one stays.  Raises StorageError."""
    content = {
        "format": FORMAT,
        "config": {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
        "data_digest": data_digest,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "classifiers": [classifier.state_dict() for classifier in state.classifiers],
        "classifier_optimizers": [optimizer.state_dict() for optimizer in state.classifier_optimizers],
        "scaler": state.scaler.state_dict(),
        "counters": {name: getattr(state, name) for name in COUNTERS},
    }
    write_atomically(folder / LAST_CHECKPOINT, lambda file: torch.save(content, file))


COUNTERS = ("epoch", "iteration", "best_recall1", "best_epoch", "loss_sum", "stretch_sum", "unreadable")


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that a user means by a file or by a run's folder."""
    path = Path(path)
    return path / LAST_CHECKPOINT if path.is_dir() else path


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """The content of last_checkpoint.pth.  Raises CheckpointError when it is missing, truncated or no checkpoint.

    mapped: tensors stay in the file until they are used, for those who want the rest.
    """
    path = checkpoint_file(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the last_checkpoint.pth of a run, or the run's folder.")
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no checkpoint of ours: give another one.") from error
    if not isinstance(content, dict) or not (content.get("format") == FORMAT or is_original(content)):
        hint = " (it holds weights only: use --resume_model for them)" if isinstance(content, dict) else ""
        raise CheckpointError(f"{path} is no checkpoint of a run{hint}.")
    return content


def restore(state: RunState, content: Mapping[str, Any], path: Path) -> None:
    """Put a checkpoint's content into a run's state.  Raises CheckpointError when it belongs to another network."""
    try:
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        pairs = [
            *zip(state.classifiers, content["classifiers"], strict=True),
            *zip(state.classifier_optimizers, content["classifier_optimizers"], strict=True),
        ]
        for target, saved in pairs:
            target.load_state_dict(saved)
        state.scaler.load_state_dict(content["scaler"])
        for name in COUNTERS:
            setattr(state, name, content["counters"][name])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} belongs to another network or other groups: {reason}") from error


# --- checkpoints of the original code --------------------------------------------------------------------------------

ORIGINAL_KEYS = frozenset(
    {
        "epoch_num", "model_state_dict", "optimizer_state_dict", "classifiers_state_dict", "optimizers_state_dict",
        "best_val_recall1",
    }
)  # fmt: skip


def _number(dtype: np.dtype, raw: bytes) -> float:
    """What numpy's `scalar` makes of its pickled arguments, for real numbers alone."""
    if dtype.kind != "f" or len(raw) != dtype.itemsize:
        raise ValueError(f"a {dtype} is no number of a checkpoint")
    return float(np.frombuffer(raw, dtype)[0])


# The original's best recall is a numpy scalar, whose pickle names these; numpy 1 and 2 call the module differently.
NUMPY_NUMBERS: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
]


def is_original(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written by the original code."""
    return content.keys() >= ORIGINAL_KEYS


def original_values(content: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a run of the original code: as given, but backbone and dimension are read from its weights.

    Raises ConfigError when those given contradict them, CheckpointError when the weights are none of a CosPlace model.
    """
    try:
        backbone, dimension = infer_architecture(content["model_state_dict"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    found = {"backbone": backbone, "fc_output_dim": dimension}
    for name, value in found.items():
        if given.get(name, value) != value:
            raise ConfigError(f"--{name} {given[name]} contradicts {path}, which holds {value}: leave the flag out.")
    return {**given, **found}


def restore_original(
    state: RunState, content: Mapping[str, Any], groups: Sequence[Group], epochs_num: int, path: Path
) -> None:
    """Put a checkpoint of the original code into a run's state: weights, Adam's moments, epoch and best recall.

    groups: those to train on; the rows of each classifier are put in the order of our classes.
    Raises CheckpointError when the settings, which such a checkpoint does not hold, do not fit it.
    """
    has_best = (path.parent / BEST_MODEL).is_file()
    try:
        _check_original_fits(state, content, groups, path)
        if content["epoch_num"] >= epochs_num and not has_best:
            raise CheckpointError(
                f"{path} has finished epoch {content['epoch_num']} of {epochs_num} and has no {BEST_MODEL} beside it "
                f"to test: put that there, or give more --epochs_num."
            )
        weights = content["model_state_dict"]
        state.model.load_state_dict(weights)
        ours = dict(state.model.named_parameters())
        names = [key for key in weights if key in ours]
        places = [names.index(name) for name, parameter in ours.items() if parameter.requires_grad]
        _load_moments(state.optimizer, content["optimizer_state_dict"], places, path)
        for number, group in enumerate(groups):
            rows = _rows_in_our_order(group)
            weight = content["classifiers_state_dict"][number]["weight"][rows]
            state.classifiers[number].load_state_dict({"weight": weight})
            moments = content["optimizers_state_dict"][number]
            _load_moments(state.classifier_optimizers[number], moments, [0], path, rows)
        state.epoch = int(content["epoch_num"])
        # Without its weights the former best cannot be kept, so the next validation sets a new one.
        state.best_recall1 = float(content["best_val_recall1"]) if has_best else -1.0
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} belongs to another network or is damaged: {reason}.") from error


def _check_original_fits(state: RunState, content: Mapping[str, Any], groups: Sequence[Group], path: Path) -> None:
    flags = "it holds no settings, so give all flags of that run"
    classifiers = content["classifiers_state_dict"]
    if len(classifiers) != len(groups):
        raise CheckpointError(
            f"{path} has {len(classifiers)} classifiers for --groups_num {len(groups)}: {flags}, here --groups_num "
            f"{len(classifiers)}."
        )
    for number, (saved, group) in enumerate(zip(classifiers, groups, strict=True)):
        wanted = state.classifiers[number].weight.shape
        if (found := saved["weight"].shape) != wanted:
            raise CheckpointError(
                f"{path} has {found[0]} classes of {found[1]} dimensions in group {number} where the settings and "
                f"{group.folder} give {wanted[0]} of {wanted[1]}: {flags} (--M, --alpha, --N, --L, "
                f"--min_images_per_class) and the same photos."
            )


def _rows_in_our_order(group: Group) -> torch.Tensor:
    """(C,) int64: where each of our classes stands in the original's classifier.

    There a group's classes are a Python set of (east, north, heading), filled along the sorted list of photos, then
    made a list.  Its order is a function of the numbers, the same in all CPythons since 3.8.
    """
    first_images = group.image_starts[group.class_starts[:-1]]  # paths lie in the order of the list
    theirs: set[tuple[int, int, int]] = set()
    for one in np.argsort(first_images, kind="stable"):
        east, north, heading = group.cells[one].tolist()
        theirs.add((east, north, heading))
    places = {cell: row for row, cell in enumerate(theirs)}
    return torch.tensor([places[east, north, heading] for east, north, heading in group.cells.tolist()])


def _load_moments(
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, Any],
    places: Sequence[int],
    path: Path,
    rows: torch.Tensor | None = None,
) -> None:
    """Give Adam the moments that another Adam saved; `places`: where its parameters stand among the other's.

    The original's Adam also lists parameters that are frozen, without moments.  Our groups (fused, learning rate)
    stay as they are.  rows: the order of the moments' rows.
    """
    moments, parameters = {}, [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for ours, theirs in enumerate(places):
        if theirs not in saved["state"]:
            continue
        kept = dict(saved["state"][theirs])
        for key in ("exp_avg", "exp_avg_sq"):
            value = kept[key] if rows is None else kept[key][rows]
            if value.shape != parameters[ours].shape:
                raise ValueError(f"Adam's {key} is {list(value.shape)} for weights {list(parameters[ours].shape)}")
            # The fused step walks memory: moments must lie as their parameter does, channels last.
            kept[key] = torch.empty_like(parameters[ours], requires_grad=False).copy_(value)
        kept["step"] = torch.as_tensor(kept["step"], dtype=torch.float32)  # old torch counts in plain integers
        moments[ours] = kept
    if saved["state"].keys() - set(places):
        raise CheckpointError(f"{path} trained layers that are frozen here: give --train_all_layers.")
    if moments and len(moments) < len(places):
        raise CheckpointError(
            f"{path} trained {len(moments)} of the {len(places)} tensors that train here: leave out --train_all_layers."
        )
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


# --- the best model --------------------------------------------------------------------------------------------------


def best_model_card(config: TrainConfig, epoch: int, recalls: Mapping[int, float]) -> dict[str, str]:
    """What best_model.safetensors says of the run that made it, beside what its tensors tell."""
    return {
        "method": "cosplace",
        "image_size": str(config.augmenting.image_size),
        "source": f"cosplace train, {epoch_text(epoch)} of {config.training.epochs_num}",
        "recalls": json.dumps({"val": {str(k): round(recall, 2) for k, recall in recalls.items()}}),
    }


def epoch_text(epoch: int) -> str:
    """An epoch in words, counted from 1; below 0 stand those before a run of the original code was resumed."""
    return f"epoch {epoch + 1}" if epoch >= 0 else "the run that was resumed"


def save_best_model(folder: Path, model: GeoLocalizationNet, card: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write best_model.pth, a plain state dict that the original code loads too, and the same as safetensors.

    card: what else the latter should say.  A kill in between is mended on resuming: the epoch's checkpoint comes last.
    """
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(folder / BEST_MODEL, lambda file: torch.save(weights, file))
    write_weights(folder / BEST_MODEL_SAFE, weights, own_card(model, weights) | dict(card))


def own_card(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What can be said of a model from itself alone; `reduction.network_from_weights` checks it against the tensors."""
    base = unreduced(network)
    card = {
        "format": MODEL_FORMAT,
        "fc_output_dim": str(getattr(network, "fc_output_dim", "")),
        "cosplace_version": __version__,
        "tensors_sha256": tensors_sha256(tensors),
    }
    if isinstance(base, GeoLocalizationNet):
        card["backbone"] = base.backbone_name
    if isinstance(network, ReducedNetwork):
        card |= {"reduction": network.reduction.method, "features_dim": str(network.reduction.in_dim)}
    return card


def adopt_best_model(folder: Path, origin: Path) -> None:
    """Let a resumed run have all files of the best model so far; `origin` is the checkpoint that it goes on from.

    Runs of the original code, and of before there were .safetensors, have only best_model.pth.
    """
    found = origin.parent / BEST_MODEL
    if not found.is_file() or (folder / BEST_MODEL_SAFE).is_file():
        return
    weights = read_state_dict(found)
    if folder != origin.parent:
        write_atomically(folder / BEST_MODEL, lambda file: torch.save(weights, file))
    write_weights(folder / BEST_MODEL_SAFE, weights, own_card(network_from_state_dict(weights), weights))


# --- metrics ---------------------------------------------------------------------------------------------------------


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a kill cut short is left out."""
    path, rows = folder / METRICS, []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def append_metrics(folder: Path, row: Mapping[str, Any]) -> None:
    """Add one row to metrics.jsonl."""
    path = folder / METRICS
    with storage_errors(path), path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def rewind_metrics(folder: Path, step: int) -> None:
    """Forget the rows after iteration `step` of the run: they will be written again."""
    rows = [row for row in read_metrics(folder) if row["step"] <= step]
    write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
