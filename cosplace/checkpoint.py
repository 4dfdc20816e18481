"""The whole state of a run, saved atomically, resumed exactly.

    logs/<save_dir>/<time>/
        best_model.pth         state dict of the network with the best validation R@1: exchangeable with released ones
        last_checkpoint.pth    everything needed to go on: weights, optimizers, scaler, counters, settings
        metrics.jsonl          one line per stretch of losses and per epoch
        config.json  info.log  debug.log  report.html  TensorBoard events

Random state needs no saving: every draw is a function of the seed and of the counters.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cosplace.cosface import MarginCosineProduct
from cosplace.errors import CheckpointError
from cosplace.network import GeoLocalizationNet
from cosplace.storage import storage_errors, write_atomically, write_text

FORMAT = "cosplace checkpoint 1"
BEST_MODEL, LAST_CHECKPOINT = "best_model.pth", "last_checkpoint.pth"
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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of last_checkpoint.pth.  Raises CheckpointError when it is missing, truncated or not ours."""
    path = checkpoint_file(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the last_checkpoint.pth of a run, or the run's folder.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no checkpoint of ours: give another one.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
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


def save_best_model(folder: Path, model: GeoLocalizationNet) -> None:
    """Write best_model.pth, a plain state dict that the original code loads too."""
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(folder / BEST_MODEL, lambda file: torch.save(weights, file))


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
