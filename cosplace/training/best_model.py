"""best_model.pth and best_model.safetensors: the network with the best R@1 on the validation set."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from cosplace.config.sections import TrainConfig
from cosplace.models.model_files import model_card
from cosplace.models.network import GeoLocalizationNet, network_from_state_dict
from cosplace.models.training_card import training_entries
from cosplace.models.weight_files import read_state_dict, write_weights
from cosplace.storage import write_atomically

START = -2  # in place of an epoch: the network before training
BEST_MODEL, BEST_MODEL_SAFE = "best_model.pth", "best_model.safetensors"


def best_model_card(config: TrainConfig, epoch: int, recalls: Mapping[int, float]) -> dict[str, str]:
    """Card of best_model.safetensors: what its tensors do not say about the run."""
    nested = config.extensions.nested_dims
    return {
        "method": config.method.method,
        "image_size": str(config.augmenting.image_size),
        "source": f"cosplace train, {epoch_text(epoch)}"
        + ("" if epoch == START else f" of {config.training.epochs_num}"),
        "recalls": json.dumps({"val": {str(k): round(recall, 2) for k, recall in recalls.items()}}),
    } | ({"nested_dims": " ".join(map(str, nested))} if nested else {})


def epoch_text(epoch: int) -> str:
    """Name an epoch, counting from 1; START is the network before training, -1 the run of the original code."""
    return (
        f"epoch {epoch + 1}" if epoch >= 0 else "the network before training" if epoch == START else "the resumed run"
    )


def save_best_model(folder: Path, model: GeoLocalizationNet, card: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write best_model.pth and best_model.safetensors, see `save_with_card`."""
    save_with_card(folder / BEST_MODEL, model, card)


def save_with_card(file: Path, model: GeoLocalizationNet, card: Mapping[str, str]) -> None:
    """Write a .pth file, a plain state dict that the original code loads too, and a .safetensors file with a card.

    Both are float32, also of a run with --use_float64.  card: entries for the card of the latter.  If the process is
    killed between the two files, resuming writes both again, because the checkpoint of the epoch is written last.
    """
    weights = {
        key: (value.float() if value.dtype == torch.float64 else value).detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    write_atomically(file, lambda open_file: torch.save(weights, open_file))
    write_weights(file.with_suffix(".safetensors"), weights, model_card(model, weights) | dict(card))


def copy_best_model(folder: Path, checkpoint: Path) -> None:
    """Bring the best model of the run that is resumed from `checkpoint` into `folder`, and add a missing .safetensors.

    Runs of the original code have only best_model.pth.
    """
    found = checkpoint.parent / BEST_MODEL
    if not found.is_file() or (folder / BEST_MODEL_SAFE).is_file():
        return
    weights = read_state_dict(found)
    if folder != checkpoint.parent:
        write_atomically(folder / BEST_MODEL, lambda file: torch.save(weights, file))
    card = model_card(network_from_state_dict(weights), weights) | training_entries(found)
    write_weights(folder / BEST_MODEL_SAFE, weights, card)
