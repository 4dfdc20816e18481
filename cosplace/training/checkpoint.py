"""The state of a run, saved atomically and resumed exactly.

Files of a run:

    logs/<save_dir>/<time>/
        best_model.pth          state dict of the network with the best R@1 on the validation set
        best_model.safetensors  the same tensors, with a card that describes them
        last_checkpoint.pth     everything needed to resume: weights, optimizers, scaler, counters, settings
        metrics.jsonl           one line per loss and per epoch
        config.json  info.log  debug.log  report.html  TensorBoard events

Random state is not saved: every random draw is a function of the seed and of the counters.
"""

import pickle
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosplace.errors import CheckpointError, DeviceError, LoadingError
from cosplace.models.network import GeoLocalizationNet
from cosplace.progress import StopRequest
from cosplace.storage import problem_with_kind, write_atomically
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.metric_losses import MultiSimilarity
from cosplace.training.split_classifier import SplitClassifier, own_state, whole_states

FORMAT = "cosplace checkpoint 1"
LAST_CHECKPOINT = "last_checkpoint.pth"
# Names in the file -> attributes of RunState.
COUNTERS = {
    "epoch": "epoch",
    "iteration": "iteration",
    "best_recall1": "best_recall1",
    "best_epoch": "best_epoch",
    "loss_sum": "loss_sum",
    "stretch_sum": "recent_loss_sum",
    "unreadable": "unreadable",
}
# Keys of a checkpoint of the original CosPlace code.
ORIGINAL_KEYS = frozenset(
    {
        "epoch_num", "model_state_dict", "optimizer_state_dict", "classifiers_state_dict", "optimizers_state_dict",
        "best_val_recall1",
    }
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class RunState:
    """What changes during a run."""

    model: GeoLocalizationNet
    optimizer: torch.optim.Optimizer
    # One per group; the multi-similarity loss has no weights, and no optimizer.
    classifiers: list[MarginCosineProduct | MultiSimilarity]
    classifier_optimizers: list[torch.optim.Optimizer | None]
    scaler: torch.amp.GradScaler
    epoch: int = 0  # of the next iteration
    iteration: int = 0  # the next one, counted from 0 in its epoch
    best_recall1: float = -1.0  # below any recall, so that the first model becomes the best
    best_epoch: int = -1  # START for the network before training
    loss_sum: float = 0.0  # of the epoch's iterations so far
    recent_loss_sum: float = 0.0  # of the iterations since a loss was last recorded
    start_hits: torch.Tensor | None = None  # (Q,) bool, validation queries that were correct before training
    unreadable: dict[str, int] = field(default_factory=dict)  # message -> number of times, in the epoch so far

    @property
    def is_split(self) -> bool:
        """Whether other processes have parts of the classifiers."""
        return any(isinstance(one, SplitClassifier) for one in self.classifiers)

    @property
    def number_type(self) -> torch.dtype:
        """Of all weights: float64 with --use_float64, else float32."""
        return next(self.model.parameters()).dtype

    @property
    def is_new(self) -> bool:
        """Whether nothing was trained or validated yet."""
        return self.epoch == self.iteration == 0 and self.start_hits is None

    def move_classifier(self, group: int, device: torch.device) -> None:
        """Move a group's classifier and its optimizer's moments to a device, without waiting for it."""
        self.classifiers[group].to(device, non_blocking=device.type == "cuda")
        optimizer = self.classifier_optimizers[group]
        if optimizer is None:
            return
        fused = optimizer.param_groups[0].get("fused")
        for moments in optimizer.state.values():
            for name, value in moments.items():
                # Only a fused optimizer needs its step count on the device of the weights.
                if isinstance(value, torch.Tensor) and (value.dim() or fused):
                    moments[name] = value.to(device, non_blocking=device.type == "cuda")


def save_checkpoint(
    folder: Path,
    state: RunState,
    config: Mapping[str, Any],
    data_digest: str,
    *,
    val_digest: str = "",
    is_writer: bool = True,
) -> None:
    """Write last_checkpoint.pth; the previous one stays until the new one is complete.  Raises StorageError.

    data_digest, val_digest: of the photos to train on, and of the validation set; "" without one.
    is_writer: whether this process writes the file; the others only send their parts of split classifiers.
    """
    classifiers, classifier_optimizers = whole_states(state.classifiers, state.classifier_optimizers)
    if not is_writer:
        return
    content = {
        "format": FORMAT,
        "config": {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
        "data_digest": data_digest,
        "val_digest": val_digest,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "classifiers": classifiers,
        "classifier_optimizers": classifier_optimizers,
        "scaler": state.scaler.state_dict(),
        "counters": {name: getattr(state, attribute) for name, attribute in COUNTERS.items()},
        "start_hits": state.start_hits,
    }
    write_atomically(folder / LAST_CHECKPOINT, lambda file: torch.save(content, file))


def checkpoint_file(path: str | Path) -> Path:
    """Return the path of a checkpoint, given the file or the folder of its run."""
    path = Path(path)
    return path / LAST_CHECKPOINT if path.is_dir() else path


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read last_checkpoint.pth.  Raises CheckpointError if it is missing, truncated or not a checkpoint.

    mapped: leave the tensors in the file until they are used.
    """
    path = checkpoint_file(path)
    if not path.is_file():
        problem = problem_with_kind(path, "file")
        raise CheckpointError(f"{path} {problem}. Use the last_checkpoint.pth of a run, or the folder of the run.")
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint. Use the last_checkpoint.pth of a run."
        ) from error
    if not isinstance(content, dict) or not (content.get("format") == FORMAT or is_original(content)):
        hint = " It contains only weights. Start from them with --resume_model." if isinstance(content, dict) else ""
        raise CheckpointError(f"{path} is not a checkpoint of a training run.{hint}")
    return content


def is_original(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written by the original CosPlace code."""
    return content.keys() >= ORIGINAL_KEYS


def restore(state: RunState, content: Mapping[str, Any], path: Path) -> None:
    """Load a checkpoint's content into a run's state.  Raises CheckpointError if it belongs to another network."""
    try:
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        for targets, states in (
            (state.classifiers, content["classifiers"]),
            (state.classifier_optimizers, content["classifier_optimizers"]),
        ):
            for target, saved, classifier in zip(targets, states, state.classifiers, strict=True):
                if target is not None:
                    target.load_state_dict(own_state(saved, classifier))
        state.scaler.load_state_dict(content["scaler"])
        for name, attribute in COUNTERS.items():
            setattr(state, attribute, content["counters"][name])
        state.start_hits = content.get("start_hits")  # absent in earlier checkpoints
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} belongs to another network or to other groups: {reason}") from error


def _float_from_numpy(dtype: np.dtype, raw: bytes) -> float:
    """Unpickle a numpy floating-point scalar; every other type is refused."""
    if dtype.kind != "f" or len(raw) != dtype.itemsize:
        raise ValueError(f"a checkpoint holds floating-point numbers, not {dtype}")
    return float(np.frombuffer(raw, dtype)[0])


# The original code saves its best recall as a numpy scalar; its pickle names these.  numpy 1 and 2 differ.
NUMPY_NUMBERS: list[Any] = [
    (_float_from_numpy, "numpy.core.multiarray.scalar"),
    (_float_from_numpy, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
]


@contextmanager
def checkpoint_on_stop(checkpoint: Callable[[], object]) -> Generator[None]:
    """Within: an error that leaves the state between two iterations writes a checkpoint."""
    try:
        yield
    except (StopRequest, LoadingError, DeviceError):
        checkpoint()
        raise
