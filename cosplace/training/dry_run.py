"""Estimate the time, memory and disk space of a training run from a few batches of it, before it runs.

The batches come from the real photos, loader, network and device.  Nothing is written.
"""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from cosplace.config.sections import TrainConfig
from cosplace.device import tuned_convolutions
from cosplace.progress import Progress, format_bytes, format_duration, no_progress, part_of
from cosplace.retrieval.dry_run import (
    Estimate,
    descriptor_bytes,
    extraction_seconds,
    free_space_text,
    memory_name,
    peak_memory_bytes,
    reset_peak_memory,
    synchronize,
)
from cosplace.retrieval.evaluation import evaluation_settings
from cosplace.training.batches import Batch
from cosplace.training.cuda_graph import RecordedNetwork
from cosplace.training.data import augmentation_settings, epoch_batches
from cosplace.training.plan import expected_bytes
from cosplace.training.run import training_forward
from cosplace.training.schedules import num_steps
from cosplace.training.setup import Preparation
from cosplace.training.step import TrainingStep, batches_on_device, joint_step

WARM_UP_ITERATIONS = 3
MEASURED_ITERATIONS = 20
MEASURED_SECONDS = 20.0  # enough for an estimate; slow machines stop after fewer iterations
LOADER_BOUND = 1.15  # below this ratio to training speed, the network waits for the loader


def estimate_training(prepared: Preparation, folder: Path, progress: Progress = no_progress) -> Estimate:
    """Estimate a run by training a few iterations and encoding some validation and test images.

    The prepared state must not be used afterwards.  folder: where the run would be written.  Raises what training
    raises, for example DeviceError if the device has too little memory for one iteration.
    """
    config, data, state = prepared.config, prepared.data, prepared.state
    settings = config.training
    left = steps_left(config, state.epoch, state.iteration)
    reset_peak_memory(prepared.device)
    loaded_per_second = _loading_speed(prepared, progress)
    first_seconds, iteration_seconds = _iteration_times(prepared, progress)
    peak = peak_memory_bytes(prepared.device)

    model, extraction = state.model, evaluation_settings(config, prepared.device).extraction
    validation_seconds, test_seconds = (
        extraction_seconds(model, dataset, extraction, part_of(progress, f"measuring {name}"))
        for name, dataset in (("validation", data.val), ("test", data.test))
    )
    epochs_left = settings.epochs_num - state.epoch
    training_seconds = left * iteration_seconds + first_seconds
    evaluation_seconds = (epochs_left + state.is_new) * validation_seconds + test_seconds

    _, checkpoint_bytes, weight_bytes = expected_bytes(config, state, prepared.dtype)
    disk = 2 * checkpoint_bytes + 2 * weight_bytes  # each file is written next to the one that it replaces
    num_views = len(data.groups_of_epoch(state.epoch))
    images_text = " + ".join([str(settings.batch_size)] * num_views)
    trained_per_second = num_views * settings.batch_size / iteration_seconds
    bound = "loading photos" if loaded_per_second < LOADER_BOUND * trained_per_second else "the network"
    remedy = "; more --num_workers may help" if bound != "the network" else ""
    lines = (
        f"iterations: {left:,} of {images_text} images, {trained_per_second:,.1f} images/s (the loader alone "
        f"{loaded_per_second:,.1f}), bound by {bound}{remedy}",
        f"time: {format_duration(training_seconds + evaluation_seconds)}, including "
        f"{format_duration(evaluation_seconds)} for {'the validation before training, ' if state.is_new else ''}"
        f"{epochs_left} validations and the test"
        + (f"; the first iteration takes {format_duration(first_seconds)}" if config.running.compile else ""),
        f"memory: {format_bytes(peak)} {memory_name(prepared.device)} at the peak of an iteration, "
        f"{format_bytes(max(descriptor_bytes(part, model.fc_output_dim) for part in (data.val, data.test)))} "
        "for descriptors",
        f"disk: {format_bytes(disk)} in {folder}{free_space_text(folder, disk)}",
    )
    return Estimate(seconds=training_seconds + evaluation_seconds, memory_bytes=peak, disk_bytes=disk, lines=lines)


def steps_left(config: TrainConfig, epoch: int, iteration: int) -> int:
    """Iterations of a run that remain when `iteration` of `epoch` comes next, both counted from 0."""
    return num_steps(config) - (epoch * config.training.iterations_per_epoch + iteration)


def _batches(prepared: Preparation) -> Generator[Batch]:
    """Batches to measure: always the same number, even if the run has fewer iterations."""
    config = prepared.config
    training = replace(config.training, iterations_per_epoch=WARM_UP_ITERATIONS + MEASURED_ITERATIONS)
    config = replace(config, training=training)
    return epoch_batches(config, prepared.data, prepared.device, epoch=prepared.state.epoch)


def _loading_speed(prepared: Preparation, progress: Progress) -> float:
    """Images per second of the loader alone."""
    with closing(_batches(prepared)) as batches:
        next(batches)  # workers start
        count, seconds = _timed(batches, prepared, "measuring the loader", progress)
    return prepared.config.training.batch_size * count / seconds


def _iteration_times(prepared: Preparation, progress: Progress) -> tuple[float, float]:
    """Extra seconds of the first iteration, for compilation and warm-up, and seconds of each iteration."""
    state, device = prepared.state, prepared.device
    groups, forward = prepared.data.groups_of_epoch(state.epoch), training_forward(prepared)
    for group in groups:
        state.move_classifier(group, device)
    of_groups = [
        TrainingStep.for_group(
            state,
            group,
            forward=forward,
            device=device,
            dtype=prepared.dtype,
            nested_dims=prepared.config.extensions.nested_dims,
        )
        for group in groups
    ]
    state.model.train()
    if isinstance(forward, RecordedNetwork):
        forward.record(prepared.config.training.batch_size, prepared.config.augmenting.image_size, device)
    with tuned_convolutions(device), closing(_batches(prepared)) as batches:
        ready = batches_on_device(batches, augmentation_settings(prepared.config), device)
        steps = (
            joint_step(of_groups, [(images, labels) for _, images, labels in parts])
            for parts in zip(*[ready] * len(groups), strict=True)
        )
        started = time.perf_counter()
        next(steps)
        synchronize(device)
        first = time.perf_counter() - started
        for _ in islice(steps, WARM_UP_ITERATIONS - 1):
            pass
        synchronize(device)
        count, seconds = _timed(steps, prepared, "measuring iterations", progress)
    return max(0.0, first - seconds / count), seconds / count


def _timed(steps: Generator, prepared: Preparation, task: str, progress: Progress) -> tuple[int, float]:
    """Run some batches or steps: their number, and the seconds they took."""
    size = prepared.config.training.batch_size
    count, started = 0, time.perf_counter()
    for _ in islice(steps, MEASURED_ITERATIONS):
        count += 1
        progress(task, count * size, MEASURED_ITERATIONS * size, "")
        if time.perf_counter() - started > MEASURED_SECONDS:
            break
    synchronize(prepared.device)
    return count, time.perf_counter() - started
