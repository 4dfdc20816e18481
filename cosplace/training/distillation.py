"""Train a small network, the student, to imitate a large one, the teacher.

    descriptors of the teacher for all photos, computed once and kept on disk
    validate the student before training; it is the best until an epoch is better
    for each epoch:
        for each iteration:
            loss = cosine_weight * cosine loss + relational_weight * relational loss
                   of the student on augmented photos, and the teacher on the same photos as they are
            update the student
        validate; keep the best student; write a checkpoint
    compare the best student with the teacher

The best student has the highest R@1 on the validation set; without one, the smallest loss on photos held out.

Side effects: writes the folder of the run.
"""

import json
import logging
import math
import time
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cosplace.config.values import loading_workers, to_values
from cosplace.device import mixed_precision, tuned_convolutions
from cosplace.errors import CosPlaceError, DatasetError
from cosplace.models.opening import weights_path
from cosplace.models.training_card import read_training_card
from cosplace.photos.loading import choose_loader
from cosplace.photos.viewpoints import ViewpointDigest, digest_of, merge_digests, viewpoints_of_names
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.evaluation import Evaluation, evaluate
from cosplace.retrieval.extraction import extract
from cosplace.storage import write_text
from cosplace.training.batches import Batch, GroupImages, training_batches
from cosplace.training.best_model import START, epoch_text, save_best_model
from cosplace.training.checkpoint import checkpoint_on_stop, save_checkpoint
from cosplace.training.distillation_losses import cosine_loss, similarity_loss
from cosplace.training.distillation_setup import DistillationPreparation
from cosplace.training.metrics import MetricsWriter
from cosplace.training.run import CONFIG, LOSSES_PER_EPOCH, lock_run
from cosplace.training.schedules import ITERATION_SEEDS
from cosplace.training.seen_photos import training_card_entries
from cosplace.training.step import batches_on_device, explain_out_of_memory
from cosplace.training.validation import correct_queries, won_and_lost, won_and_lost_text

WARM_UP = 0.05  # of all iterations
HELD_BATCH = 256  # photos whose similarities are compared, of those that are held out

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judgment:
    """The student on the validation set, or on the photos that are held out."""

    evaluation: Evaluation | None
    loss: float | None

    @property
    def score(self) -> float:
        """What students are ranked by: R@1 in percent, or the negative loss."""
        return self.evaluation.recalls[1] if self.evaluation is not None else -float(self.loss or 0.0)

    @property
    def recalls(self) -> dict[int, float]:
        return {} if self.evaluation is None else self.evaluation.recalls

    def text(self) -> str:
        if self.evaluation is not None:
            return f"validation {self.evaluation.recalls_text()}"
        return f"loss on photos held out {self.loss:.4f}"


@dataclass(slots=True, kw_only=True)
class _Run:
    prepared: DistillationPreparation
    folder: Path
    metrics: MetricsWriter
    progress: Progress
    digest: str  # of what is learned from
    training_photos: ViewpointDigest | None = None  # for the model card
    checkpoint_time: float = field(default_factory=time.monotonic)

    @property
    def step(self) -> int:
        state = self.prepared.state
        return state.epoch * self.prepared.iterations_per_epoch + state.iteration

    def checkpoint(self) -> None:
        prepared = self.prepared
        save_checkpoint(self.folder, prepared.state, to_values(prepared.config), self.digest)
        self.checkpoint_time = time.monotonic()


def distill(prepared: DistillationPreparation, folder: Path, progress: Progress = no_progress) -> None:
    """Train the student in `folder`, or continue what was stopped there; the best one is then in best_model.pth.

    Raises CosPlaceError for anything the user can fix; the last checkpoint is then still there to resume from.
    """
    for line in prepared.describe():
        log.info(line)
    if prepared.teacher_val is not None:
        log.info("teacher: validation %s", prepared.teacher_val.recalls_text())
    state = prepared.state
    with lock_run(folder):
        write_text(folder / CONFIG, json.dumps(to_values(prepared.config), indent=2) + "\n")
        first_step = state.epoch * prepared.iterations_per_epoch + state.iteration
        with MetricsWriter(folder, first_step) as metrics:
            photos = None if prepared.photos.val is None else _digest_photos(prepared)
            run = _Run(
                prepared=prepared, folder=folder, metrics=metrics, progress=progress, digest=prepared.digest(),
                training_photos=photos,
            )  # fmt: skip
            if state.is_new:
                run.checkpoint()
                _judge_start(run)
            else:
                log.info("resuming at epoch %d, iteration %d", state.epoch + 1, state.iteration)
            while state.epoch < prepared.config.training.epochs_num:
                started, first = time.monotonic(), state.iteration
                _train_epoch(run)
                _validate(run, seconds=time.monotonic() - started, num_iterations=state.iteration - first)


# --- training --------------------------------------------------------------------------------------------------------


def _train_epoch(run: _Run) -> None:
    prepared, state, device = run.prepared, run.prepared.state, run.prepared.device
    knobs, per_epoch = prepared.config.training, prepared.iterations_per_epoch
    task = f"epoch {state.epoch + 1}/{knobs.epochs_num}"
    interval = max(1, per_epoch // LOSSES_PER_EPOCH)
    state.model.train()
    with (
        tuned_convolutions(device),
        checkpoint_on_stop(run.checkpoint),
        closing(_batches(prepared)) as batches,
    ):
        for batch, images, _ in batches_on_device(batches, prepared.augmentation, device):
            torch.manual_seed((prepared.config.running.seed + 1 + run.step * ITERATION_SEEDS) % 2**63)
            loss = _train_step(prepared, images, torch.from_numpy(prepared.train_rows)[batch.labels], run.step)
            if not math.isfinite(loss):
                raise CosPlaceError(f"The loss is {loss} at {task}. Start again.", "use a smaller --lr")
            state.loss_sum += loss
            state.recent_loss_sum += loss
            state.iteration += 1
            if state.iteration % interval == 0:
                rate, mean = state.optimizer.param_groups[0]["lr"], state.recent_loss_sum / interval
                run.metrics.write_loss(step=run.step, epoch=state.epoch, loss=mean, learning_rate=rate)
                state.recent_loss_sum = 0.0
            note = f"loss {state.loss_sum / state.iteration:.3f}"
            run.progress(task, state.iteration * knobs.batch_size, per_epoch * knobs.batch_size, note)
            minutes = (time.monotonic() - run.checkpoint_time) / 60
            if minutes >= knobs.checkpoint_minutes and state.iteration < per_epoch:
                run.checkpoint()


def _batches(prepared: DistillationPreparation) -> Generator[Batch]:
    running, device, state = prepared.config.running, prepared.device, prepared.state
    items = GroupImages(prepared.group, seed=running.seed, epoch=state.epoch, settings=prepared.augmentation)
    return training_batches(
        items,
        batch_size=prepared.config.training.batch_size,
        first_iteration=state.iteration,
        num_iterations=prepared.iterations_per_epoch,
        num_workers=loading_workers(running.num_workers),
        loader=choose_loader(running.loader),
        augment_in_loader=device.type == "cpu",
        pin_memory=device.type == "cuda",
    )


def _train_step(prepared: DistillationPreparation, images: Tensor, rows: Tensor, step: int) -> float:
    """Train on images (B, 3, S, S) of the photos in some rows (B,); returns the loss."""
    state, device = prepared.state, prepared.device
    state.optimizer.param_groups[0]["lr"] = learning_rate(prepared, step)
    teacher, target = prepared.targets.batch(rows, device)  # (B, D), (B, d)
    with explain_out_of_memory(device, images):
        with mixed_precision(device, prepared.dtype):
            student = state.model(images)
        loss = weighted_loss(prepared, student.float(), teacher, target)
        state.optimizer.zero_grad()
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
    return loss.item()


def weighted_loss(prepared: DistillationPreparation, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """The loss () of descriptors (B, d).  teacher: (B, D), target: (B, d), its reduction."""
    knobs = prepared.config.training
    loss = student.new_zeros(())
    if knobs.cosine_weight:
        loss = loss + knobs.cosine_weight * cosine_loss(student, target)
    if knobs.relational_weight:
        loss = loss + knobs.relational_weight * similarity_loss(student, teacher)
    return loss


def learning_rate(prepared: DistillationPreparation, step: int) -> float:
    """Learning rate at an iteration of the run: a warm-up, then half a cosine."""
    total = prepared.num_iterations
    warm_up = min(1.0, (step + 1) / max(1, round(WARM_UP * total)))
    return prepared.config.training.lr * warm_up * 0.5 * (1 + math.cos(math.pi * step / total))


# --- validation ------------------------------------------------------------------------------------------------------


def _judge_start(run: _Run) -> None:
    state = run.prepared.state
    judgment = _judge(run, "validation before training")
    state.start_hits = torch.zeros(0, dtype=torch.bool)
    if judgment.evaluation is not None:
        state.start_hits = correct_queries(judgment.evaluation)
    state.best_recall1, state.best_epoch = judgment.score, START
    _save(run, judgment, START)
    row = {"num_queries": len(state.start_hits)} if judgment.loss is None else {"held_out_loss": judgment.loss}
    run.metrics.write_start(row, judgment.recalls)
    log.info("before training: %s", judgment.text())


def _validate(run: _Run, *, seconds: float, num_iterations: int) -> None:
    """Judge the student, keep it if it is the best, and write the checkpoint that the next epoch starts from."""
    prepared, state = run.prepared, run.prepared.state
    with checkpoint_on_stop(run.checkpoint):
        judgment = _judge(run, f"epoch {state.epoch + 1} validation")
    is_best = judgment.score >= state.best_recall1  # of equal ones the last, which has learned longer
    if is_best:
        state.best_recall1, state.best_epoch = judgment.score, state.epoch
        _save(run, judgment, state.epoch)
    counts = {} if judgment.evaluation is None else won_and_lost(state.start_hits, judgment.evaluation)
    mean_loss, batch_size = state.loss_sum / prepared.iterations_per_epoch, prepared.config.training.batch_size
    row = {
        "step": (state.epoch + 1) * prepared.iterations_per_epoch,
        "epoch": state.epoch,
        "group": 0,
        "loss": mean_loss,
        "seconds": round(seconds, 1),
        "images_per_second": round(num_iterations * batch_size / max(seconds, 1e-9), 1),
        **counts,
        **({} if judgment.loss is None else {"held_out_loss": judgment.loss}),
    }
    run.metrics.write_epoch(row, judgment.recalls)
    log.info(
        "epoch %d: loss %.4f, %.1f images/s, %s%s%s",
        state.epoch + 1, mean_loss, row["images_per_second"], judgment.text(),
        f", {won_and_lost_text(counts)}" if counts else "", " (best so far)" if is_best else "",
    )  # fmt: skip
    state.epoch, state.iteration, state.loss_sum, state.recent_loss_sum = state.epoch + 1, 0, 0.0, 0.0
    run.checkpoint()


def _judge(run: _Run, task: str) -> _Judgment:
    prepared, progress = run.prepared, part_of(run.progress, task)
    val, model = prepared.photos.val, prepared.state.model
    if val is not None:
        return _Judgment(evaluation=evaluate(model, val, prepared.settings, progress=progress), loss=None)
    held = prepared.photos.images.subset(prepared.held_rows.tolist())
    found = extract(model, held, prepared.settings.extraction, progress=progress)
    losses, rows = [], np.flatnonzero(found.readable)
    for first in range(0, len(rows), HELD_BATCH):
        part = rows[first : first + HELD_BATCH]
        teacher, target = prepared.targets.batch(torch.from_numpy(prepared.held_rows[part]), prepared.device)
        student = torch.from_numpy(np.asarray(found.descriptors)[part]).to(prepared.device)
        student = functional.normalize(student, dim=1)
        losses += [weighted_loss(prepared, student, teacher, target).item()] * len(part)
    return _Judgment(evaluation=None, loss=float(np.mean(losses)))


def _save(run: _Run, judgment: _Judgment, epoch: int) -> None:
    """Write best_model.pth and .safetensors, whose card names the teacher."""
    prepared = run.prepared
    total = "" if epoch == START else f" of {prepared.config.training.epochs_num}"
    card: dict[str, str] = {
        "method": "distillation",
        "image_size": str(prepared.image_size),
        "source": f"cosplace distill, {epoch_text(epoch)}{total}",
        **prepared.teacher.card_entries(),
    }
    val = prepared.photos.val
    if judgment.evaluation is None or val is None:
        card["held_out_loss"] = f"{judgment.loss:.4f}"
    else:
        card["recalls"] = json.dumps({"val": {str(k): round(recall, 2) for k, recall in judgment.recalls.items()}})
        card |= training_card_entries(run.training_photos, judgment.evaluation, val)
    save_best_model(run.folder, prepared.state.model, card)


def _digest_photos(prepared: DistillationPreparation) -> ViewpointDigest | None:
    """Digest of the photos that are learned from, for the model card; None if their names have no positions."""
    try:
        photos = digest_of([viewpoints_of_names(prepared.photos.images)])
    except DatasetError as error:
        log.debug("no digest of the training photos: %s", error)
        return None
    if start := prepared.config.training.resume_model:
        with suppress(CosPlaceError):  # the model may have been removed since the run began
            card = read_training_card(weights_path(start))
            return photos if card is None else merge_digests(photos, card.photos)
    return photos
