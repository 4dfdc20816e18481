"""One trial of a fine-tuning: epochs until several bring no gain, each with a validation.

    for each epoch:
        train on batches of several photos of each of several places
        evaluate the average of the weights on the validation set

Side effects: writes metrics, checkpoints and the best trained model.
"""

import logging
import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from cosplace.config.values import loading_workers
from cosplace.device import mixed_precision, tuned_convolutions
from cosplace.errors import CosPlaceError
from cosplace.photos.loading import choose_loader
from cosplace.progress import Progress, format_count, part_of
from cosplace.storage import write_atomically
from cosplace.training.batches import Batch, training_batches
from cosplace.training.checkpoint import checkpoint_on_stop
from cosplace.training.finetuning_setup import FinetuningPreparation
from cosplace.training.finetuning_state import TRAINED_MODEL, FinetuningState, save_state
from cosplace.training.finetuning_validation import Judgment, compare_judgments, judge
from cosplace.training.metrics import MetricsWriter
from cosplace.training.place_batches import PlaceImages, schedule_places
from cosplace.training.schedules import ITERATION_SEEDS
from cosplace.training.step import batches_on_device, explain_out_of_memory

LOSSES_PER_EPOCH = 5  # how often the mean loss is shown

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class FinetuningRun:
    """A fine-tuning in its folder: all its trials."""

    prepared: FinetuningPreparation
    folder: Path
    state: FinetuningState
    start: Judgment
    metrics: MetricsWriter
    progress: Progress
    digest: str
    sizes: str
    checkpoint_time: float

    @property
    def epoch_number(self) -> int:
        """The epoch, counted over all trials."""
        return self.state.trial * self.prepared.recipe.epochs_num + self.state.epoch

    @property
    def step(self) -> int:
        """The iteration, counted over all trials."""
        return self.epoch_number * self.prepared.recipe.iterations_per_epoch + self.state.iteration

    def checkpoint(self) -> None:
        """Write the state of the run."""
        save_state(self.folder, self.state, self.prepared.config, self.digest, self.sizes)
        self.checkpoint_time = time.monotonic()


def train_trial(run: FinetuningRun) -> None:
    """Train until the last epoch, or until PATIENCE epochs have brought no gain."""
    recipe = run.prepared.recipe
    while run.state.epoch < recipe.epochs_num and run.state.epochs_without_gain < recipe.patience:
        started, first = time.monotonic(), run.state.iteration
        _train_epoch(run)
        _validate(run, seconds=time.monotonic() - started, num_iterations=run.state.iteration - first)
    if run.state.epoch < recipe.epochs_num:
        epochs = format_count(recipe.patience, "epoch")
        log.info("stopped after epoch %d: %s without a better model", run.state.epoch, epochs)


def _train_epoch(run: FinetuningRun) -> None:
    prepared, state = run.prepared, run.state
    recipe, device = prepared.recipe, prepared.device
    task = f"epoch {state.epoch + 1}/{recipe.epochs_num}"
    if recipe.num_seeds > 1:
        task = f"seed {state.trial + 1}/{recipe.num_seeds}, {task}"
    interval = max(1, recipe.iterations_per_epoch // LOSSES_PER_EPOCH)
    with (
        tuned_convolutions(device),
        checkpoint_on_stop(run.checkpoint),
        closing(_batches(prepared, state)) as batches,
    ):
        for batch, images, labels in batches_on_device(batches, recipe.augmentation, device):
            torch.manual_seed((prepared.config.running.seed + 1 + run.step * ITERATION_SEEDS) % 2**63)
            loss = _train_step(prepared, state, images, labels)
            if not math.isfinite(loss):
                raise CosPlaceError(f"The loss is {loss} at {task}. Start again.", "use a smaller --lr")
            state.loss_sum += loss
            state.iteration += 1
            for message in batch.unreadable:
                state.unreadable[message] = state.unreadable.get(message, 0) + 1
            if state.iteration % interval == 0:
                rate = state.optimizer.param_groups[0]["lr"]
                run.metrics.write_loss(step=run.step, epoch=run.epoch_number, loss=loss, learning_rate=rate)
            note = f"loss {state.loss_sum / state.iteration:.3f}"
            run.progress(
                task, state.iteration * recipe.batch_size, recipe.iterations_per_epoch * recipe.batch_size, note
            )
            minutes = (time.monotonic() - run.checkpoint_time) / 60
            if minutes >= prepared.config.training.checkpoint_minutes and state.iteration < recipe.iterations_per_epoch:
                run.checkpoint()


def _batches(prepared: FinetuningPreparation, state: FinetuningState) -> Generator[Batch]:
    recipe, running, device = prepared.recipe, prepared.config.running, prepared.device
    seed = running.seed + state.trial
    items = PlaceImages(
        prepared.groups[0],
        schedule_places(
            prepared.places, recipe.places_per_batch, recipe.iterations_per_epoch, seed=seed, epoch=state.epoch
        ),
        seed=seed,
        epoch=state.epoch,
        settings=recipe.augmentation,
        photos_per_place=recipe.photos_per_place,
    )
    return training_batches(
        items,
        batch_size=recipe.batch_size,
        first_iteration=state.iteration,
        num_iterations=recipe.iterations_per_epoch,
        num_workers=loading_workers(running.num_workers),
        loader=choose_loader(running.loader),
        augment_in_loader=device.type == "cpu",
        pin_memory=device.type == "cuda",
    )


def _train_step(
    prepared: FinetuningPreparation, state: FinetuningState, images: torch.Tensor, labels: torch.Tensor
) -> float:
    """Train on images (B, 3, S, S) of places (B,); returns the loss.

    Batch norms keep the statistics of the start: those of a small batch of few places are far from those of a city.
    """
    step = state.epoch * prepared.recipe.iterations_per_epoch + state.iteration
    state.optimizer.param_groups[0]["lr"] = learning_rate(prepared, step)
    with explain_out_of_memory(prepared.device, images):
        with mixed_precision(prepared.device, prepared.dtype):
            descriptors = state.model(images)
        loss = state.loss(descriptors.float(), labels)
        state.optimizer.zero_grad()
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
    state.average.update(state.model)
    return loss.item()


def learning_rate(prepared: FinetuningPreparation, step: int) -> float:
    """Learning rate of the network at an iteration of a trial: a warm-up, then half a cosine."""
    recipe = prepared.recipe
    warm_up = min(1.0, (step + 1) / recipe.warmup_iterations)
    return recipe.lr * warm_up * 0.5 * (1 + math.cos(math.pi * step / recipe.num_iterations))


def _validate(run: FinetuningRun, *, seconds: float, num_iterations: int) -> None:
    """Evaluate the average of the weights, keep it if it is the best, and write the checkpoint of the next epoch."""
    prepared, state, recipe = run.prepared, run.state, run.prepared.recipe
    with checkpoint_on_stop(run.checkpoint):
        task = f"epoch {state.epoch + 1} validation"
        judgment = judge(state.average.model, prepared.photos.val, prepared.settings, part_of(run.progress, task))
    if judgment.score > state.trial_score:
        state.trial_score, state.epochs_without_gain = judgment.score, 0
    else:
        state.epochs_without_gain += 1
    is_best = judgment.score > state.best_score
    if is_best:
        state.best_score, state.best_trial, state.best_epoch = judgment.score, state.trial, run.epoch_number
        weights = {key: value.detach().cpu() for key, value in state.average.model.state_dict().items()}
        write_atomically(run.folder / TRAINED_MODEL, lambda file: torch.save(weights, file))
    comparison = compare_judgments(run.start, judgment, prepared.photos.val)
    mean_loss = state.loss_sum / recipe.iterations_per_epoch
    row = {
        "step": (run.epoch_number + 1) * recipe.iterations_per_epoch,
        "epoch": run.epoch_number,
        "group": 0,
        "loss": mean_loss,
        "seconds": round(seconds, 1),
        "images_per_second": round(num_iterations * recipe.batch_size / max(seconds, 1e-9), 1),
        "won": int((judgment.queries & ~run.start.queries).sum()),
        "lost": int((run.start.queries & ~judgment.queries).sum()),
        "seed": prepared.config.running.seed + state.trial,
    }
    run.metrics.write_epoch(row, judgment.evaluation.recalls)
    log.info(
        "seed %d, epoch %d: loss %.4f, %.1f images/s, validation %s (%s); %s%s",
        row["seed"], state.epoch + 1, mean_loss, row["images_per_second"], judgment.evaluation.recalls_text(),
        queries_text(judgment), comparison.changes_text(), " (best so far)" if is_best else "",
    )  # fmt: skip
    for message, times in state.unreadable.items():
        log.warning("skipped %d times: %s", times, message)
    state.epoch, state.iteration, state.loss_sum, state.unreadable = state.epoch + 1, 0, 0.0, {}
    run.checkpoint()


def queries_text(judgment: Judgment) -> str:
    """What recalls are measured on."""
    return format_count(len(judgment.queries), "query", "queries")
