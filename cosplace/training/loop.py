"""The loop of CosPlace (Berton et al., CVPR 2022, section 3.2): epoch e trains group e mod groups_num.

Each group has its own classifier and optimizer, on the device only during its epochs.  After each epoch the network
is judged on the validation set; the best by R@1 is tested at the end.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values, loading_workers, to_values
from cosplace.device import choose_device, tuned_convolutions
from cosplace.errors import ConfigError, CosPlaceError, DeviceError, LoadingError
from cosplace.models.network import GeoLocalizationNet
from cosplace.photos.loading import choose_loader
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, evaluate
from cosplace.storage import storage_errors, write_text
from cosplace.training.batches import Batch, GroupImages, training_batches
from cosplace.training.checkpoint import (
    BEST_MODEL,
    CONFIG,
    LAST_CHECKPOINT,
    RunState,
    adopt_best_model,
    append_metrics,
    best_model_card,
    checkpoint_file,
    epoch_text,
    is_original,
    original_values,
    read_checkpoint,
    read_metrics,
    rewind_metrics,
    save_best_model,
    save_checkpoint,
)
from cosplace.training.setup import Preparation, TrainingData, augmentation_settings, describe_plan, load_network
from cosplace.training.step import batches_on_device, learner, move_classifier

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, str], None]
"""Called with (what, done, of how many, a note), in images."""

LOSSES_PER_EPOCH = 20
ITERATIONS_BEFORE_NEXT = 8  # when the next group's classifier starts on its way to the device
ITERATION_SEEDS = 0x9E3779B97F4A7C15  # spreads (seed, step) over 64 bits

# What may differ when a run goes on: it changes where and how fast, not what is learned.
FREE_ON_RESUME = frozenset(
    {
        "dataset_folder", "train_set_folder", "val_set_folder", "test_set_folder", "device", "num_workers",
        "save_dir", "checkpoint_minutes", "resume_train", "resume_model", "num_preds_to_save",
        "save_only_wrong_preds", "infer_batch_size", "loader", "compile", "dry_run",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a finished run leaves in memory; its files lie in `folder`."""

    folder: Path
    data: TrainingData
    model: GeoLocalizationNet  # the best on the validation set
    test: Evaluation
    best_epoch: int
    metrics: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What stays the same while a run goes on."""

    config: TrainConfig
    folder: Path
    data: TrainingData
    forward: Callable[[Tensor], Tensor]  # the network, compiled where asked for
    device: torch.device
    dtype: torch.dtype | None
    board: SummaryWriter
    progress: Progress


def resumed_config(path: str, given: Mapping[str, Any]) -> TrainConfig:
    """The settings of the run whose checkpoint this is, with those of `given` that may differ.

    A checkpoint of the original code holds none: there all come from `given`, but the network's own from its weights.
    Raises ConfigError for a setting in `given` that would change what is learned.
    """
    file = checkpoint_file(path)
    content = read_checkpoint(file, mapped=True)
    if is_original(content):
        return from_values(TrainConfig, {**original_values(content, given, file), "resume_train": str(file)})
    saved = from_values(TrainConfig, content["config"])
    values, asked = to_values(saved), to_values(from_values(TrainConfig, given))
    for name in given:
        if name not in FREE_ON_RESUME and values[name] != asked[name]:
            raise ConfigError(
                f"--{name} {given[name]} contradicts {file}, which was trained with {values[name]}: leave the flag "
                f"out, or start a new run."
            )
    return from_values(TrainConfig, {**values, **given, "resume_train": str(file)})


def resumed_folder(path: str) -> Path | None:
    """The folder in which a run goes on; None for a run of the original code, whose files stay as they are."""
    file = checkpoint_file(path)
    return None if is_original(read_checkpoint(file, mapped=True)) else file.parent


def train(prepared: Preparation, folder: Path, progress: Progress = lambda *_: None) -> TrainResult:
    """Train in `folder`, from where the prepared state stands, and test the best model.

    Raises CosPlaceError for anything a user can mend; the last checkpoint then still stands.
    """
    config, state, data = prepared.config, prepared.state, prepared.data
    for line in describe_plan(prepared):
        log.info(line)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, json.dumps(to_values(config), indent=2) + "\n")
    step = state.epoch * config.training.iterations_per_epoch + state.iteration
    if config.training.resume_train:
        log.info("goes on from epoch %d, iteration %d", state.epoch + 1, state.iteration)
        rewind_metrics(folder, step)
        adopt_best_model(folder, Path(config.training.resume_train))
    else:
        save_checkpoint(folder, state, to_values(config), data.digest())
    with closing(SummaryWriter(str(folder), purge_step=step)) as board:
        run = _Run(
            config=config,
            folder=folder,
            data=data,
            forward=forward_of(prepared),
            device=prepared.device,
            dtype=prepared.dtype,
            board=board,
            progress=progress,
        )
        try:
            while state.epoch < config.training.epochs_num:
                started, first = time.monotonic(), state.iteration
                _train_epoch(run, state)
                seconds = time.monotonic() - started
                _finish_epoch(run, state, seconds, (state.iteration - first) * config.training.batch_size / seconds)
            return _test_best(run, state)
        except DeviceError as error:
            raise type(error)(f"{error} The run goes on with --resume_train {folder}.") from error


# --- one epoch -------------------------------------------------------------------------------------------------------


def forward_of(prepared: Preparation) -> Callable[[Tensor], Tensor]:
    """The network as it is called in training: compiled with --compile; the weights are the same ones."""
    model = prepared.state.model
    return torch.compile(model) if prepared.config.running.compile else model


def epoch_batches(
    config: TrainConfig, data: TrainingData, device: torch.device, *, epoch: int, iteration: int = 0
) -> Generator[Batch]:
    """The batches of an epoch from an iteration on, loaded ahead.  Close it to end its workers."""
    items = GroupImages(
        data.groups[epoch % data.num_used],
        seed=config.running.seed,
        epoch=epoch,
        settings=augmentation_settings(config),
    )
    where = config.augmenting.augmentation_device
    return training_batches(
        items,
        batch_size=config.training.batch_size,
        first_iteration=iteration,
        num_iterations=config.training.iterations_per_epoch,
        num_workers=loading_workers(config.running.num_workers),
        loader=choose_loader(config.running.loader, device),
        augment_in_loader=(device if where == "auto" else choose_device(where)).type == "cpu",
        pin_memory=device.type == "cuda",
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """The network's learning rate at iteration `step` of the run."""
    total = config.training.epochs_num * config.training.iterations_per_epoch
    rate = config.training.lr
    if step < config.departures.warmup_iterations:
        rate *= (step + 1) / config.departures.warmup_iterations
    if config.departures.lr_schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / total))
    return rate


def margin(config: TrainConfig, step: int) -> float:
    """CosFace's margin at iteration `step` of the run."""
    ramp = config.departures.margin_ramp * config.training.epochs_num * config.training.iterations_per_epoch
    return config.training.margin * (min(1.0, step / ramp) if ramp else 1.0)


def _train_epoch(run: _Run, state: RunState) -> None:
    """Train from the state's iteration to the end of its epoch."""
    knobs = run.config.training
    group, following = (epoch % run.data.num_used for epoch in (state.epoch, state.epoch + 1))
    move_classifier(state, group, run.device)
    learns = learner(state, group, run.forward, run.dtype, run.device)
    settings = augmentation_settings(run.config)
    state.model.train()
    # Sums stay on the device: reading a loss would make it wait.
    stretch_sum = torch.tensor(state.stretch_sum, dtype=torch.float32, device=run.device)
    stretch = max(1, knobs.iterations_per_epoch // LOSSES_PER_EPOCH)
    what = f"epoch {state.epoch + 1}/{knobs.epochs_num}, group {group}"
    num_images = knobs.iterations_per_epoch * knobs.batch_size
    saved_at, note = time.monotonic(), ""
    with (
        tuned_convolutions(run.device),
        _kept_on(LoadingError, run, state, stretch_sum),
        closing(
            epoch_batches(run.config, run.data, run.device, epoch=state.epoch, iteration=state.iteration)
        ) as batches,
    ):
        for batch, images, labels in batches_on_device(batches, settings, run.device):
            step = state.epoch * knobs.iterations_per_epoch + state.iteration
            _set_rates(run, state, learns.classifier, step)
            stretch_sum += learns.step(images, labels)

            for message in batch.unreadable:
                state.unreadable[message] = state.unreadable.get(message, 0) + 1
            state.iteration += 1
            if state.iteration % stretch == 0 or state.iteration == knobs.iterations_per_epoch:
                in_stretch = state.iteration % stretch or stretch
                mean = _read_losses(run, state, stretch_sum.item(), in_stretch, step + 1)
                stretch_sum.zero_()
                note = f"loss {mean:.3f}"
            run.progress(what, state.iteration * knobs.batch_size, num_images, note)
            if state.iteration == knobs.iterations_per_epoch - ITERATIONS_BEFORE_NEXT:
                move_classifier(state, following, run.device)
            # The end of the epoch has a checkpoint of its own, after validation.
            due = time.monotonic() - saved_at >= 60 * knobs.checkpoint_minutes
            if due and state.iteration < knobs.iterations_per_epoch:
                _save(run, state, stretch_sum)
                saved_at = time.monotonic()
    if following != group:
        move_classifier(state, group, torch.device("cpu"))


def _save(run: _Run, state: RunState, stretch_sum: Tensor) -> None:
    """Write the checkpoint between two iterations; stretch_sum: losses since the last line of them."""
    state.stretch_sum = stretch_sum.item()
    save_checkpoint(run.folder, state, to_values(run.config), run.data.digest())


@contextmanager
def _kept_on(kind: type[CosPlaceError], run: _Run, state: RunState, stretch_sum: Tensor) -> Generator[None]:
    """Write the checkpoint when such an error comes, which leaves the state as it is between two iterations."""
    try:
        yield
    except kind:
        _save(run, state, stretch_sum)
        raise


def _set_rates(run: _Run, state: RunState, classifier: Any, step: int) -> None:
    """Set all that depends on how far the run is: learning rate, margin, and the seed of the network's own draws."""
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = learning_rate(run.config, step)
    classifier.m = margin(run.config, step)
    # Only EfficientNet's stochastic depth draws from torch's generator.
    torch.manual_seed((run.config.running.seed + 1 + step * ITERATION_SEEDS) % 2**63)


def _read_losses(run: _Run, state: RunState, total: float, count: int, step: int) -> float:
    """Book the losses of the last `count` iterations, and return their mean."""
    mean = total / count
    if not math.isfinite(mean):
        raise CosPlaceError(
            f"The loss is {mean} at epoch {state.epoch}, iteration {state.iteration}: start again from "
            f"{run.folder / LAST_CHECKPOINT} or anew, with a smaller --lr or without --use_amp16."
        )
    state.loss_sum += total
    append_metrics(run.folder, {"kind": "loss", "step": step, "epoch": state.epoch, "loss": mean})
    run.board.add_scalar("loss", mean, step)
    return mean


def _finish_epoch(run: _Run, state: RunState, seconds: float, images_per_second: float) -> None:
    """Validate, keep the best model, write the checkpoint from which the next epoch starts.

    seconds, images_per_second: of this process; a resumed epoch counts from where it was resumed.
    """
    knobs = run.config.training
    group = state.epoch % run.data.num_used
    mean_loss = state.loss_sum / knobs.iterations_per_epoch
    with _kept_on(DeviceError, run, state, torch.zeros(())):
        validation = _evaluate(run, state.model, run.data.val, f"epoch {state.epoch + 1} validation")
    recall1 = validation.recalls[min(validation.recalls)]
    best = recall1 > state.best_recall1
    if best:
        state.best_recall1, state.best_epoch = recall1, state.epoch
        save_best_model(run.folder, state.model, best_model_card(run.config, state.epoch, validation.recalls))
    step = (state.epoch + 1) * knobs.iterations_per_epoch
    recalls = {str(k): recall for k, recall in validation.recalls.items()}
    row = {"kind": "epoch", "step": step, "epoch": state.epoch, "group": group, "loss": mean_loss, "recalls": recalls}
    speed = {"seconds": round(seconds, 1), "images_per_second": round(images_per_second, 1)}
    append_metrics(run.folder, row | speed)
    for k, recall in validation.recalls.items():
        run.board.add_scalar(f"validation/R@{k}", recall, step)
    log.info(
        "epoch %d, group %d: loss %.4f, %.1f images/s, validation %s%s",
        state.epoch + 1, group, mean_loss, images_per_second, validation.recalls_text(),
        " (best so far)" if best else "",
    )  # fmt: skip
    if state.unreadable:
        total = sum(state.unreadable.values())
        log.warning(
            "epoch %d: %d draws met %d photos that cannot be opened", state.epoch + 1, total, len(state.unreadable)
        )
        for message, times in state.unreadable.items():
            log.warning("skipped %d times: %s", times, message)
    state.epoch, state.iteration = state.epoch + 1, 0
    state.loss_sum, state.stretch_sum, state.unreadable = 0.0, 0.0, {}
    save_checkpoint(run.folder, state, to_values(run.config), run.data.digest())


def _evaluate(run: _Run, model: GeoLocalizationNet, dataset: RetrievalDataset, what: str) -> Evaluation:
    testing = run.config.testing
    return evaluate(
        model,
        dataset,
        image_size=run.config.augmenting.image_size if testing.resize_test_imgs else None,
        batch_size=testing.infer_batch_size,
        num_workers=loading_workers(run.config.running.num_workers),
        loader=run.config.running.loader,
        device=run.device,
        autocast=run.dtype,
        skip_unreadable=testing.skip_unreadable,
        recall_values=testing.recall_values,
        positive_dist_threshold=testing.positive_dist_threshold,
        num_predictions=max(testing.num_preds_to_save, *testing.recall_values),
        progress=partial(_progress_of, run.progress, what),
    )


def _progress_of(progress: Progress, what: str, done: int, total: int) -> None:
    progress(what, done, total, "")


def _test_best(run: _Run, state: RunState) -> TrainResult:
    best = load_network(str(run.folder / BEST_MODEL), backbone=None, fc_output_dim=None)
    best = best.to(run.device).to(memory_format=torch.channels_last)
    log.info("test of the best model, of %s", epoch_text(state.best_epoch))
    test = _evaluate(run, best, run.data.test, "test")
    log.info("%s: %s", run.data.test.name, test.recalls_text())
    step = run.config.training.epochs_num * run.config.training.iterations_per_epoch
    for k, recall in test.recalls.items():
        run.board.add_scalar(f"test/R@{k}", recall, step)
    return TrainResult(
        folder=run.folder,
        data=run.data,
        model=best,
        test=test,
        best_epoch=state.best_epoch,
        metrics=read_metrics(run.folder),
    )
