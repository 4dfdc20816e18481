"""The training loop of CosPlace (Berton et al., CVPR 2022, section 3.2).

for epoch in range(epochs_num):
group = epoch mod groups_num
for each iteration of the epoch:
images, labels = random images of a batch of the group's classes
loss = CosFace(network(images), labels, classifier of the group)
update the network and the classifier
validate; keep the best network by R@1; write a checkpoint
test the best network
"""

import logging
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cosplace.device import tuned_convolutions
from cosplace.errors import DeviceError, LoadingError
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.evaluation import Evaluation, evaluate, evaluation_settings
from cosplace.training.best_model import BEST_MODEL, best_model_card, epoch_text, save_best_model
from cosplace.training.data import TrainingData, epoch_batches
from cosplace.training.metrics import read_metrics
from cosplace.training.run import LossRecorder, Run, open_run
from cosplace.training.schedules import iteration_seed, learning_rate, margin, num_steps
from cosplace.training.setup import Preparation
from cosplace.training.step import TrainingStep, batches_on_device

PREFETCH_ITERATIONS = 8  # before the end of an epoch, the next group's classifier starts to move to the device

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a finished run returns; its files are in `folder`."""

    folder: Path
    data: TrainingData
    model: GeoLocalizationNet  # the best on the validation set
    test: Evaluation
    best_epoch: int
    metrics: list[dict[str, Any]]


def train(prepared: Preparation, folder: Path, progress: Progress = no_progress) -> TrainResult:
    """Train in `folder`, from the prepared state to the last epoch, and test the best model.

    Raises CosPlaceError for anything the user can fix; the last checkpoint is then still there to resume from.
    """
    with open_run(prepared, folder, progress) as run:
        while run.state.epoch < run.config.training.epochs_num:
            started, first = time.monotonic(), run.state.iteration
            train_epoch(run)
            validate(run, seconds=time.monotonic() - started, num_iterations=run.state.iteration - first)
        return test_best_model(run)


def train_epoch(run: Run) -> None:
    """Train on one group, from the state's iteration to the end of the epoch."""
    config, data, state, device = run.config, run.data, run.state, run.device
    per_epoch, batch_size = config.training.iterations_per_epoch, config.training.batch_size
    group, next_group = state.epoch % data.num_used, (state.epoch + 1) % data.num_used
    state.move_classifier(group, device)
    train_step = TrainingStep.for_group(state, group, forward=run.forward, device=device, dtype=run.dtype)
    state.model.train()
    losses = LossRecorder(run)
    task = f"epoch {state.epoch + 1}/{config.training.epochs_num}, group {group}"
    with (
        tuned_convolutions(device),
        run.checkpoint_on(LoadingError, losses),
        closing(epoch_batches(config, data, device, epoch=state.epoch, iteration=state.iteration)) as batches,
    ):
        for batch, images, labels in batches_on_device(batches, run.augmentation, device):
            step = state.epoch * per_epoch + state.iteration
            for parameters in state.optimizer.param_groups:
                parameters["lr"] = learning_rate(config, step)
            train_step.classifier.m = margin(config, step)
            torch.manual_seed(iteration_seed(config, step))

            losses.add(train_step(images, labels))

            state.iteration += 1
            for message in batch.unreadable:
                state.unreadable[message] = state.unreadable.get(message, 0) + 1
            losses.record_when_due()
            run.progress(task, state.iteration * batch_size, per_epoch * batch_size, losses.text)
            if state.iteration == per_epoch - PREFETCH_ITERATIONS:
                state.move_classifier(next_group, device)
            if state.iteration < per_epoch:  # the epoch's own checkpoint follows its validation
                run.checkpoint_when_due(losses)
    if next_group != group:
        state.move_classifier(group, torch.device("cpu"))


def validate(run: Run, *, seconds: float, num_iterations: int) -> None:
    """Evaluate on the validation set, keep the best model, and write the checkpoint that the next epoch starts from.

    seconds, num_iterations: of this process; an epoch that was resumed counts from where it was resumed.
    """
    config, state = run.config, run.state
    task = f"epoch {state.epoch + 1} validation"
    with run.checkpoint_on(DeviceError):
        settings = evaluation_settings(config, run.device)
        validation = evaluate(state.model, run.data.val, settings, progress=part_of(run.progress, task))
    recall1 = validation.recalls[min(validation.recalls)]
    is_best = recall1 > state.best_recall1
    if is_best:
        state.best_recall1, state.best_epoch = recall1, state.epoch
        save_best_model(run.folder, state.model, best_model_card(config, state.epoch, validation.recalls))
    images_per_second = num_iterations * config.training.batch_size / seconds
    run.finish_epoch(validation, is_best=is_best, seconds=seconds, images_per_second=images_per_second)


def test_best_model(run: Run) -> TrainResult:
    """Evaluate the best model on the test set."""
    best = open_model(run.folder / BEST_MODEL).to(run.device).to(memory_format=torch.channels_last)
    assert isinstance(best, GeoLocalizationNet)
    log.info("testing the best model, from %s", epoch_text(run.state.best_epoch))
    settings = evaluation_settings(run.config, run.device)
    test = evaluate(best, run.data.test, settings, progress=part_of(run.progress, "test"))
    log.info("%s: %s", run.data.test.name, test.recalls_text())
    run.metrics.write_recalls("test", test.recalls, num_steps(run.config))
    return TrainResult(
        folder=run.folder,
        data=run.data,
        model=best,
        test=test,
        best_epoch=run.state.best_epoch,
        metrics=read_metrics(run.folder),
    )
