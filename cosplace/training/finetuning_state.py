"""What changes during a fine-tuning, saved atomically and resumed exactly.

Files of a run, besides those of `checkpoint`:

    best_model.pth     the start, until the end of the run shows that the trained model is better
    trained_model.pth  the best trained model so far; at the end also as .safetensors, with its card
"""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cosplace.config.finetuning import FinetuneConfig
from cosplace.config.names import BACKBONES
from cosplace.config.values import to_values
from cosplace.device import fused_adam
from cosplace.errors import CheckpointError
from cosplace.models.backbones import frozen_layers
from cosplace.models.network import GeoLocalizationNet
from cosplace.storage import write_atomically
from cosplace.training.checkpoint import LAST_CHECKPOINT
from cosplace.training.metric_losses import new_loss
from cosplace.training.places import Places
from cosplace.training.recipe import Recipe
from cosplace.training.weight_averaging import WeightAverage

FORMAT = "cosplace finetuning 1"
TRAINED_MODEL = "trained_model.pth"
CLASSIFIER_LR = 0.01  # of CosFace, as in the paper
COUNTERS = (
    "trial", "epoch", "iteration", "epochs_without_gain", "trial_score", "best_score", "best_trial", "best_epoch",
    "loss_sum", "unreadable",
)  # fmt: skip
# Settings that may differ when a run resumes.
FREE_ON_RESUME = frozenset(
    {"dataset", "device", "num_workers", "loader", "save_dir", "checkpoint_minutes", "resume_train",
     "infer_batch_size", "follow_outside"}
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class FinetuningState:
    """The trial that is running, and the best model so far.  A trial is a training with one seed."""

    model: GeoLocalizationNet
    average: WeightAverage
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    trial: int = 0
    epoch: int = 0  # of the trial
    iteration: int = 0  # the next one, counted from 0 in its epoch
    epochs_without_gain: int = 0
    trial_score: float = -1.0  # of the best epoch of the trial
    best_score: float = -1.0  # of the best epoch of all trials
    best_trial: int = -1
    best_epoch: int = -1
    loss_sum: float = 0.0
    unreadable: dict[str, int] = field(default_factory=dict)  # message -> number of times, in the epoch so far


def new_state(
    model: GeoLocalizationNet,
    recipe: Recipe,
    places: Places,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    seed: int,
) -> FinetuningState:
    """The state before the first iteration of a trial, which trains `model`, on the device, in evaluation mode."""
    freeze_layers(model, recipe.freeze)
    loss = new_loss(recipe.loss, model.fc_output_dim, places, seed=seed).to(device)
    optimizer = fused_adam([p for p in model.parameters() if p.requires_grad], recipe.lr)
    if parameters := list(loss.parameters()):
        optimizer.add_param_group({"params": parameters, "lr": CLASSIFIER_LR})
    return FinetuningState(
        model=model,
        average=WeightAverage(model, recipe.average_decay),
        loss=loss,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16 and device.type == "cuda"),
    )


def freeze_layers(model: GeoLocalizationNet, freeze: str) -> None:
    """Choose which layers are trained.  freeze: early, as in the paper; late, also all but the last stage of a ResNet;
    none.
    """
    model.requires_grad_(True)
    if freeze == "none":
        return
    if model.backbone_name not in BACKBONES:
        model.freeze_early_layers()
        return
    frozen = frozen_layers(cast(nn.Sequential, model.backbone), model.backbone_name)
    if freeze == "late" and model.backbone_name.startswith("ResNet"):
        frozen = list(model.backbone.children())[:-1]
    for layer in frozen:
        layer.requires_grad_(False)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def save_state(folder: Path, state: FinetuningState, config: FinetuneConfig, digest: str, sizes: str) -> None:
    """Write last_checkpoint.pth.  digest, sizes: of the photos.  Raises StorageError."""
    content = {
        "format": FORMAT,
        "config": to_values(config),
        "digest": digest,
        "sizes": sizes,
        "model": state.model.state_dict(),
        "average": state.average.model.state_dict(),
        "num_updates": state.average.num_updates,
        "loss": state.loss.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "counters": {name: getattr(state, name) for name in COUNTERS},
    }
    write_atomically(folder / LAST_CHECKPOINT, lambda file: torch.save(content, file))


def require_checkpoint(folder: Path) -> None:
    """Raise CheckpointError for a folder without last_checkpoint.pth."""
    if not (folder / LAST_CHECKPOINT).is_file():
        raise CheckpointError(f"{folder} has no {LAST_CHECKPOINT}. Start a new run without --resume_train.")


def read_state(folder: Path, config: FinetuneConfig) -> dict[str, Any]:
    """The content of last_checkpoint.pth.

    Raises CheckpointError if it is missing or damaged, or belongs to other settings.
    """
    path = folder / LAST_CHECKPOINT
    require_checkpoint(folder)
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise KeyError("format")
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged, or was not written by `cosplace finetune`. Start a new run."
        ) from error
    now = to_values(config)
    for name, saved in content["config"].items():
        if name not in FREE_ON_RESUME and now.get(name) != saved:
            raise CheckpointError(
                f"{path} was trained with --{name} {saved}, not {now.get(name)}. Use the same settings, or start "
                f"a new run."
            )
    return content


def check_photos(folder: Path, config: FinetuneConfig, digest: str, sizes: str) -> None:
    """Raise CheckpointError unless last_checkpoint.pth belongs to these photos; and what `read_state` raises."""
    path, content = folder / LAST_CHECKPOINT, read_state(folder, config)
    if content["digest"] != digest:
        raise CheckpointError(f"{path} was trained on other photos. Start a new run.")
    if content.get("sizes", sizes) != sizes:  # checkpoints of earlier versions have none
        raise CheckpointError(
            f"{path} was trained on photos with the same names, but other contents. Restore these photos, or start a "
            f"new run."
        )


def restore_state(folder: Path, state: FinetuningState, config: FinetuneConfig) -> None:
    """Load last_checkpoint.pth of a folder into a new state.  Raises what `read_state` raises."""
    path, content = folder / LAST_CHECKPOINT, read_state(folder, config)
    try:
        state.model.load_state_dict(content["model"])
        state.average.model.load_state_dict(content["average"])
        state.average.num_updates = content["num_updates"]
        state.loss.load_state_dict(content["loss"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.scaler.load_state_dict(content["scaler"])
        for name in COUNTERS:
            setattr(state, name, content["counters"][name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged. Start a new run.") from error
