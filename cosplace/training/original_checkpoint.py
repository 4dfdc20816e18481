"""Resume from a checkpoint of the original CosPlace code (https://github.com/gmberton/CosPlace).

Such a checkpoint holds weights, Adam's moments, the epoch and the best recall, but no settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.network import infer_architecture
from cosplace.training.best_model import BEST_MODEL
from cosplace.training.checkpoint import RunState
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.groups import Group


def original_values(content: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Settings of a run of the original code: those given, with backbone and dimension read from its weights.

    Raises ConfigError if the given ones contradict the weights, CheckpointError if they are not of a CosPlace model.
    """
    try:
        backbone, dimension = infer_architecture(content["model_state_dict"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    found = {"backbone": backbone, "fc_output_dim": dimension}
    for name, value in found.items():
        if given.get(name, value) != value:
            raise ConfigError(f"--{name} {given[name]} contradicts {path}, which has {value}. Omit the flag.")
    return {**given, **found}


def restore_original(
    state: RunState, content: Mapping[str, Any], groups: Sequence[Group], epochs_num: int, path: Path
) -> None:
    """Load a checkpoint of the original code into a run's state: weights, Adam's moments, epoch and best recall.

    groups: the groups to train on; the rows of each classifier are sorted into the order of our classes.
    Raises CheckpointError if the settings, which such a checkpoint does not hold, do not fit it.
    """
    has_best = (path.parent / BEST_MODEL).is_file()
    try:
        _check_original_fits(state, content, groups, path)
        if content["epoch_num"] >= epochs_num and not has_best:
            raise CheckpointError(
                f"{path} has finished epoch {content['epoch_num']} of {epochs_num}, and there is no {BEST_MODEL} "
                f"next to it to test. Put that file there, or use a larger --epochs_num."
            )
        weights = content["model_state_dict"]
        state.model.load_state_dict(weights)
        ours = dict(state.model.named_parameters())
        names = [key for key in weights if key in ours]
        numbers = [names.index(name) for name, parameter in ours.items() if parameter.requires_grad]
        _load_moments(state.optimizer, content["optimizer_state_dict"], numbers, path)
        for number, group in enumerate(groups):
            rows = _rows_in_our_order(group)
            weight = content["classifiers_state_dict"][number]["weight"][rows]
            state.classifiers[number].load_state_dict({"weight": weight})
            moments = content["optimizers_state_dict"][number]
            optimizer = state.classifier_optimizers[number]
            assert optimizer is not None
            _load_moments(optimizer, moments, [0], path, rows)
        state.epoch = int(content["epoch_num"])
        # Without the weights of the best model, the next validation sets a new best.
        state.best_recall1 = float(content["best_val_recall1"]) if has_best else -1.0
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} belongs to another network or is damaged: {reason}") from error


def _check_original_fits(state: RunState, content: Mapping[str, Any], groups: Sequence[Group], path: Path) -> None:
    flags = "The file contains no settings, so use all flags of that run"
    classifiers = content["classifiers_state_dict"]
    if len(classifiers) != len(groups):
        raise CheckpointError(
            f"{path} has {len(classifiers)} classifiers for --groups_num {len(groups)}. {flags}, here --groups_num "
            f"{len(classifiers)}."
        )
    for number, (saved, group) in enumerate(zip(classifiers, groups, strict=True)):
        classifier = state.classifiers[number]
        assert isinstance(classifier, MarginCosineProduct)
        wanted = classifier.weight.shape
        if (found := saved["weight"].shape) != wanted:
            raise CheckpointError(
                f"{path} has {found[0]} classes of {found[1]} dimensions in group {number}, but the settings and "
                f"{group.folder} give {wanted[0]} of {wanted[1]}. {flags} (--M, --alpha, --N, --L, "
                f"--min_images_per_class) and the same photos."
            )


def _rows_in_our_order(group: Group) -> torch.Tensor:
    """Row of the original's classifier for each of our classes, (C,) int64.

    The original builds the classes of a group as a Python set of (east, north, heading), filled in the order of the
    sorted list of photos, and turns it into a list.  The order of a set of integers is the same in all CPythons since
    3.8.
    """
    first_images = group.image_starts[group.class_starts[:-1]]  # paths are stored in the order of the list
    theirs: set[tuple[int, int, int]] = set()
    for number in np.argsort(first_images, kind="stable"):
        east, north, heading = group.cells[number].tolist()
        theirs.add((east, north, heading))
    rows = {cell: row for row, cell in enumerate(theirs)}
    return torch.tensor([rows[east, north, heading] for east, north, heading in group.cells.tolist()])


def _load_moments(
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, Any],
    numbers: Sequence[int],
    path: Path,
    rows: torch.Tensor | None = None,
) -> None:
    """Load Adam's moments saved by another Adam; numbers: the saved parameter number of each of our parameters.

    The original's Adam also lists frozen parameters, without moments.  Our parameter groups (fused, learning rate) do
    not change.  rows: order of the rows of the moments.
    """
    moments, parameters = {}, [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for ours, theirs in enumerate(numbers):
        if theirs not in saved["state"]:
            continue
        kept = dict(saved["state"][theirs])
        for key in ("exp_avg", "exp_avg_sq"):
            value = kept[key] if rows is None else kept[key][rows]
            if value.shape != parameters[ours].shape:
                raise ValueError(f"Adam's {key} is {list(value.shape)} for weights {list(parameters[ours].shape)}")
            # The fused step needs moments in the memory layout of their parameter (channels last).
            kept[key] = torch.empty_like(parameters[ours], requires_grad=False).copy_(value)
        kept["step"] = torch.as_tensor(kept["step"], dtype=torch.float32)  # old versions of torch save an int
        moments[ours] = kept
    if saved["state"].keys() - set(numbers):
        raise CheckpointError(f"{path} trained layers that are frozen here. Add --train_all_layers.")
    if moments and len(moments) < len(numbers):
        raise CheckpointError(
            f"{path} trained {len(moments)} of the {len(numbers)} tensors that are trained here. Omit "
            f"--train_all_layers."
        )
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
