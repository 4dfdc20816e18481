"""The training loop of CosPlace (Berton et al., CVPR 2022, section 3.2).

    validate the network before training; it is the best until an epoch is better
    for epoch in range(epochs_num):
        group = epoch mod groups_num
        for each iteration of the epoch:
            images, labels = random images of a batch of the group's classes
            loss = CosFace(network(images), labels, classifier of the group)
            update the network and the classifier
        validate; keep the best network by R@1; write a checkpoint
    test the best network

EigenPlaces (Berton et al., ICCV 2023) differs in an iteration: it has a batch and a classifier of lateral classes, and
one of frontal classes, and updates the network once, on the sum of both gradients.  Several datasets are trained on in
the same way.  Multi-similarity has batches of several photos of each of several places, and no classifier.

Side effects: writes the folder of the run.
"""

import logging
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cosplace.device import tuned_convolutions
from cosplace.errors import CosPlaceError, DeviceError, LoadingError
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model, weights_path
from cosplace.models.training_card import MAX_MATCHES, training_entries
from cosplace.progress import Progress, StopRequest, no_progress, part_of
from cosplace.retrieval.evaluation import Evaluation, evaluate, evaluation_settings, log_misses
from cosplace.training.best_model import BEST_MODEL, START, best_model_card, epoch_text, save_best_model
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.cuda_graph import RecordedNetwork
from cosplace.training.data import TrainingData, epoch_batches
from cosplace.training.metrics import read_metrics
from cosplace.training.run import LossRecorder, Run, open_run
from cosplace.training.schedules import iteration_seed, learning_rate, margin, num_steps
from cosplace.training.seen_photos import (
    NO_PHOTOS,
    digest_held_out_photos,
    digest_training_photos,
    training_card_entries,
)
from cosplace.training.setup import Preparation
from cosplace.training.step import TrainingStep, batches_on_device, joint_step
from cosplace.training.validation import best_epoch_summary, correct_queries, reused_photos
from cosplace.training.validation_image import validation_image

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
    validation: dict[str, Any]  # how the best model was chosen, see `best_epoch_summary`
    metrics: list[dict[str, Any]]


def train(prepared: Preparation, folder: Path, progress: Progress = no_progress) -> TrainResult:
    """Train in `folder`, from the prepared state to the last epoch, and test the best model.

    Raises CosPlaceError for anything the user can fix; the last checkpoint is then still there to resume from.
    """
    result = train_together(prepared, folder, progress)
    assert result is not None
    return result


def train_together(prepared: Preparation, folder: Path, progress: Progress = no_progress) -> TrainResult | None:
    """As `train`, also in one of several processes, of which the main one returns the result.

    Raises CosPlaceError for anything the user can fix; the last checkpoint is then still there to resume from.
    """
    with open_run(prepared, folder, progress) as run:
        if run.state.is_new:
            run.on_main(lambda: judge_start(run))
        while run.state.epoch < run.config.training.epochs_num:
            started, first = time.monotonic(), run.state.iteration
            train_epoch(run)
            validate(run, seconds=time.monotonic() - started, num_iterations=run.state.iteration - first)
        return run.on_main(lambda: test_best_model(run))


def judge_start(run: Run) -> None:
    """Evaluate the network before training, which is the best model until an epoch is better."""
    state = run.state
    start = _evaluate_on_val(run, "validation before training")
    state.start_hits = correct_queries(start)
    state.best_recall1, state.best_epoch = start.recalls[min(start.recalls)], START
    card = best_model_card(run.config, START, start.recalls)
    if source := run.config.training.resume_model:
        with suppress(CosPlaceError):  # the model may have been removed since the run began
            card |= training_entries(weights_path(source))  # the photos that it was trained on
    else:
        card |= training_card_entries(NO_PHOTOS, start, run.data.val)
    save_best_model(run.folder, state.model, card)
    run.metrics.write_start({"num_queries": start.num_queries}, start.recalls)
    run.metrics.write_image(validation_image(run.data.val, start), 0)
    log.info("before training: validation %s", start.recalls_text())


def train_epoch(run: Run) -> None:
    """Train on one group, from the state's iteration to the end of the epoch."""
    config, data, state, device = run.config, run.data, run.state, run.device
    groups, next_groups = data.groups_of_epoch(state.epoch), data.groups_of_epoch(state.epoch + 1)
    per_epoch, batch_size = config.training.iterations_per_epoch, config.training.batch_size * len(groups)
    for group in groups:
        state.move_classifier(group, device)
    steps = [
        TrainingStep.for_group(
            state,
            group,
            forward=run.forward,
            device=device,
            dtype=run.dtype,
            nested_dims=config.extensions.nested_dims,
            processes=run.processes,
        )
        for group in groups
    ]
    state.model.train()
    losses = LossRecorder(run)
    if isinstance(run.forward, RecordedNetwork):  # before batches are loaded
        run.forward.record(config.training.batch_size, config.augmenting.image_size, device)
    task = f"epoch {state.epoch + 1}/{config.training.epochs_num}, group {data.rank(state.epoch)}"
    with (
        tuned_convolutions(device),
        run.checkpoint_on(LoadingError, StopRequest, losses=losses),
        closing(
            epoch_batches(config, data, device, epoch=state.epoch, iteration=state.iteration, own=run.own_images)
        ) as batches,
    ):
        on_device = batches_on_device(batches, run.augmentation, device)
        for parts in run.met(zip(*[on_device] * len(groups), strict=True), losses):  # one batch of each group
            step = state.epoch * per_epoch + state.iteration
            for parameters in state.optimizer.param_groups:
                parameters["lr"] = learning_rate(config, step)
            for one in steps:
                if isinstance(one.classifier, MarginCosineProduct):
                    one.classifier.m = margin(config, step)
            torch.manual_seed(iteration_seed(config, step))

            losses.add(joint_step(steps, [(images, labels) for _, images, labels in parts]))

            state.iteration += 1
            for message in (message for batch, _, _ in parts for message in batch.unreadable):
                state.unreadable[message] = state.unreadable.get(message, 0) + 1
            losses.record_when_due()
            run.progress(task, state.iteration * batch_size, per_epoch * batch_size, losses.text)
            if state.iteration == per_epoch - PREFETCH_ITERATIONS:
                for group in next_groups:
                    state.move_classifier(group, device)
            if state.iteration < per_epoch:  # the epoch's own checkpoint follows its validation
                run.checkpoint_when_due(losses)
    for group in groups:
        if group not in next_groups:
            state.move_classifier(group, torch.device("cpu"))


def validate(run: Run, *, seconds: float, num_iterations: int) -> None:
    """Evaluate on the validation set, keep the best model, and write the checkpoint that the next epoch starts from.

    seconds, num_iterations: of this process; an epoch that was resumed counts from where it was resumed.
    """
    config, state = run.config, run.state
    with run.checkpoint_on(DeviceError, StopRequest):
        validation = run.on_main(lambda: _evaluate_on_val(run, f"epoch {state.epoch + 1} validation"))
    run.collect_unreadable()
    batch_size = config.training.batch_size * len(run.data.groups_of_epoch(state.epoch))
    images_per_second = num_iterations * batch_size / seconds
    run.on_main(lambda: _keep_epoch(run, validation, seconds, images_per_second))
    run.next_epoch()


def _keep_epoch(run: Run, validation: Evaluation | None, seconds: float, images_per_second: float) -> None:
    """Record an epoch, and keep its network if it is the best so far."""
    config, state = run.config, run.state
    assert validation is not None  # of the main process
    recall1 = validation.recalls[min(validation.recalls)]
    is_best = recall1 > state.best_recall1
    if is_best:
        state.best_recall1, state.best_epoch = recall1, state.epoch
        if run.training_photos is None:
            run.training_photos = digest_training_photos(run.data, config.training.resume_model)
            run.held_out_photos = digest_held_out_photos(run.data)
        card = best_model_card(config, state.epoch, validation.recalls)
        card |= training_card_entries(run.training_photos, validation, run.data.val, run.held_out_photos)
        save_best_model(run.folder, state.model, card)
    run.record_epoch(validation, is_best=is_best, seconds=seconds, images_per_second=images_per_second)


def _evaluate_on_val(run: Run, task: str) -> Evaluation:
    settings = evaluation_settings(run.config, run.device)
    settings = replace(settings, num_predictions=max(settings.num_predictions or 1, MAX_MATCHES))  # for the model card
    return evaluate(run.state.model, run.data.val, settings, progress=part_of(run.progress, task))


def test_best_model(run: Run) -> TrainResult:
    """Evaluate the best model on the test set."""
    best = open_model(run.folder / BEST_MODEL).to(run.device).to(memory_format=torch.channels_last)
    assert isinstance(best, GeoLocalizationNet)
    log.info("testing the best model (%s)", epoch_text(run.state.best_epoch))
    if run.state.best_epoch == START:
        log.warning(
            "No epoch has a higher R@1 on %s than the start, so the best model is the one before training",
            run.data.val.name,
        )
    settings = evaluation_settings(run.config, run.device)
    test = evaluate(best, run.data.test, settings, progress=part_of(run.progress, "test"))
    log.info("%s: %s", run.data.test.name, test.recalls_text())
    log_misses(test)
    for doubt in reused_photos(run.data):  # said at the start, too
        log.warning(doubt)
    run.metrics.write_recalls("test", test.recalls, num_steps(run.config))
    metrics = read_metrics(run.folder)
    return TrainResult(
        folder=run.folder,
        data=run.data,
        model=best,
        test=test,
        best_epoch=run.state.best_epoch,
        validation=best_epoch_summary(metrics, run.state.best_epoch),
        metrics=metrics,
    )
