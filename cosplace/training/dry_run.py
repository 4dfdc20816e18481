"""Before it runs, it tells: time, memory and disk of a whole job, from a few batches of it.

The batches are the job's own: its photos, its loader, its network on its device.  Nothing is kept and nothing is
written.  Legend: R database images, Q queries, D descriptor dimension.
"""

import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cosplace.config.sections import EvalConfig, TrainConfig
from cosplace.config.values import loading_workers
from cosplace.device import amp_type, choose_device, tuned_convolutions
from cosplace.models.encoder import find_dimension
from cosplace.photos.image_list import ImageList, image_list
from cosplace.progress import duration, megabytes
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.extraction import extract
from cosplace.retrieval.search import nearest
from cosplace.training.batches import Batch
from cosplace.training.loop import epoch_batches, forward_of
from cosplace.training.setup import Preparation, augmentation_settings, expected_bytes
from cosplace.training.step import batches_on_device, learner, move_classifier

WARM_UP_ITERATIONS = 3
MEASURED_ITERATIONS = 20
MEASURED_SECONDS = 20.0  # enough for the forecast; slow machines stop after fewer iterations
SAMPLED_BATCHES = 4
SEARCHED_ROWS, SEARCHED_QUERIES = 20_000, 64
LOADER_BOUND = 1.15  # a loader that alone is not faster than this is what the network waits for

Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a job will take."""

    seconds: float
    memory_bytes: int  # at the peak, on the device (of the main process, where that is the CPU)
    disk_bytes: int
    lines: tuple[str, ...]  # the same in sentences, with where it comes from


# --- training --------------------------------------------------------------------------------------------------------


def forecast_training(prepared: Preparation, folder: Path, progress: Progress = lambda *_: None) -> Forecast:
    """Train some iterations and describe some validation images; `folder` is where the run would be kept.

    The prepared state is used up.  Raises what training raises, DeviceError when memory does not suffice for one.
    """
    config, data, state = prepared.config, prepared.data, prepared.state
    knobs = config.training
    done = state.epoch * knobs.iterations_per_epoch + state.iteration
    left = knobs.epochs_num * knobs.iterations_per_epoch - done
    _forget_peak(prepared.device)
    loaded_per_second = _loading_speed(prepared, progress)
    first_seconds, iteration_seconds = _iteration_times(prepared, progress)
    peak = _peak_bytes(prepared.device)

    image_size = config.augmenting.image_size if config.testing.resize_test_imgs else None
    model, described = state.model, {}
    for name, dataset in (("validation", data.val), ("test", data.test)):
        told = partial(_told, progress, f"measuring {name}")
        described[name] = _describing_seconds(model, dataset, config, image_size, told)
    epochs_left = knobs.epochs_num - state.epoch
    training_seconds = left * iteration_seconds + first_seconds
    judging_seconds = epochs_left * described["validation"] + described["test"]

    _, checkpoint_bytes, weight_bytes = expected_bytes(config, state, prepared.dtype)
    disk = 2 * checkpoint_bytes + 2 * weight_bytes  # a new file is written beside the one that it replaces
    trained_per_second = knobs.batch_size / iteration_seconds
    bound = "loading photos" if loaded_per_second < LOADER_BOUND * trained_per_second else "the network"
    remedy = "; more --num_workers may help" if bound != "the network" else ""
    lines = (
        f"iterations: {left:,} of {knobs.batch_size} images, {trained_per_second:,.1f} images/s (the loader alone "
        f"{loaded_per_second:,.1f}), bound by {bound}{remedy}",
        f"time: {duration(training_seconds + judging_seconds)}, of which {duration(judging_seconds)} for "
        f"{epochs_left} validations and the test"
        + (f"; the first iteration takes {duration(first_seconds)}" if config.running.compile else ""),
        f"memory: {megabytes(peak)} {_of(prepared.device)} at the peak of an iteration, "
        f"{megabytes(max(map(_descriptor_bytes, (data.val, data.test), 2 * [model.fc_output_dim])))} for descriptors",
        f"disk: {megabytes(disk)} in {folder}{_free_space(folder, disk)}",
    )
    return Forecast(seconds=training_seconds + judging_seconds, memory_bytes=peak, disk_bytes=disk, lines=lines)


def _batches(prepared: Preparation) -> Generator[Batch]:
    """Enough batches to measure, however few the job has or has left."""
    config = prepared.config
    training = replace(config.training, iterations_per_epoch=WARM_UP_ITERATIONS + MEASURED_ITERATIONS)
    config = replace(config, training=training)
    return epoch_batches(config, prepared.data, prepared.device, epoch=prepared.state.epoch)


def _loading_speed(prepared: Preparation, progress: Progress) -> float:
    """Images per second that the loader makes when nobody else works."""
    with closing(_batches(prepared)) as batches:
        next(batches)  # workers start
        count, seconds = _timed(batches, prepared, "measuring the loader", progress)
    return prepared.config.training.batch_size * count / seconds


def _iteration_times(prepared: Preparation, progress: Progress) -> tuple[float, float]:
    """Seconds of the first iteration beyond the others (compilation and the like), and of an iteration."""
    state, device = prepared.state, prepared.device
    group = state.epoch % prepared.data.num_used
    move_classifier(state, group, device)
    learns = learner(state, group, forward_of(prepared), prepared.dtype, device)
    state.model.train()
    with tuned_convolutions(device), closing(_batches(prepared)) as batches:
        ready = batches_on_device(batches, augmentation_settings(prepared.config), device)
        steps = (learns.step(images, labels) for _, images, labels in ready)
        started = time.perf_counter()
        next(steps)
        _wait_for(device)
        first = time.perf_counter() - started
        for _ in islice(steps, WARM_UP_ITERATIONS - 1):
            pass
        _wait_for(device)
        count, seconds = _timed(steps, prepared, "measuring iterations", progress)
    return max(0.0, first - seconds / count), seconds / count


def _timed(things: Generator, prepared: Preparation, what: str, progress: Progress) -> tuple[int, float]:
    """How many batches or steps were made, and in how many seconds."""
    size = prepared.config.training.batch_size
    count, started = 0, time.perf_counter()
    for _ in islice(things, MEASURED_ITERATIONS):
        count += 1
        progress(what, count * size, MEASURED_ITERATIONS * size, "")
        if time.perf_counter() - started > MEASURED_SECONDS:
            break
    _wait_for(prepared.device)
    return count, time.perf_counter() - started


# --- evaluation ------------------------------------------------------------------------------------------------------


def forecast_evaluation(
    model: nn.Module, dataset: RetrievalDataset, config: EvalConfig, progress: Progress = lambda *_: None
) -> Forecast:
    """Describe some photos of the database and search some rows.  Raises what an evaluation raises."""
    device = choose_device(config.running.device)
    image_size = config.test_size.image_size if config.testing.resize_test_imgs else None
    _forget_peak(device)
    describing = _describing_seconds(model, dataset, config, image_size, partial(_told, progress, "measuring"))
    dimension = find_dimension(model.to(device), device)
    searching = _searching_seconds(len(dataset.queries), len(dataset.database), dimension, device)
    descriptors = _descriptor_bytes(dataset, dimension)
    kept = config.weights.descriptors_folder
    peak = _peak_bytes(device) + (0 if kept or device.type != "cpu" else descriptors)
    count = len(dataset.database) + len(dataset.queries)
    lines = (
        f"photos: {len(dataset.database):,} of the database, {len(dataset.queries):,} queries; "
        f"{count / describing:,.1f} images/s",
        f"time: {duration(describing + searching)}, of which {duration(searching)} for the search",
        f"memory: {megabytes(peak)} {_of(device)}; descriptors take {megabytes(descriptors)} "
        + (f"in {kept}" if kept else "in memory (on disk with --descriptors_folder)"),
        f"disk: {megabytes(descriptors)}{_free_space(Path(kept), descriptors)}" if kept else "disk: the report alone",
    )
    return Forecast(
        seconds=describing + searching, memory_bytes=peak, disk_bytes=descriptors if kept else 0, lines=lines
    )


def _describing_seconds(
    model: nn.Module,
    dataset: RetrievalDataset,
    config: TrainConfig | EvalConfig,
    image_size: int | None,
    progress: Callable[[int, int], None],
) -> float:
    """Seconds to describe all photos of a dataset, from an even sample of its database."""
    running, batch_size = config.running, config.testing.infer_batch_size
    workers = loading_workers(running.num_workers)
    device = choose_device(running.device)

    def seconds(num_batches: int) -> float:
        return extract(
            model,
            _sample(dataset.database, num_batches * batch_size),
            image_size=image_size,
            batch_size=batch_size,
            num_workers=workers,
            loader=running.loader,
            device=device,
            autocast=amp_type(running.use_amp16, running.amp_dtype, device),
            skip_unreadable=config.testing.skip_unreadable,
            progress=progress,
        ).seconds

    few, more = 1, 1 + SAMPLED_BATCHES * max(1, workers)
    # The difference leaves out how long the workers take to start.
    num_images = len(_sample(dataset.database, more * batch_size)) - len(_sample(dataset.database, few * batch_size))
    started_up = seconds(few)
    if num_images <= 0:  # one batch is all there is
        return started_up * (1 + len(dataset.queries) / len(dataset.database))
    each = max(seconds(more) - started_up, 1e-9) / num_images
    return started_up + each * (len(dataset.database) + len(dataset.queries))


def _told(progress: Progress, what: str, done: int, total: int) -> None:
    progress(what, done, total, "")


def _sample(images: ImageList, count: int) -> ImageList:
    rows = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)).tolist()
    return image_list(images.folder, [images.name(row) for row in rows])


def _searching_seconds(num_queries: int, num_database: int, dimension: int, device: torch.device) -> float:
    """Seconds of an exact search, whose work grows with Q x R, from a small one."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((min(SEARCHED_ROWS, num_database), max(1, dimension)), np.float32)
    asked = rows[: min(SEARCHED_QUERIES, num_queries)]
    k = min(20, len(rows))
    nearest(asked, rows, k, device=device)
    started = time.perf_counter()
    nearest(asked, rows, k, device=device)
    return (time.perf_counter() - started) * (num_queries * num_database) / (len(asked) * len(rows))


# --- measures --------------------------------------------------------------------------------------------------------


def _descriptor_bytes(dataset: RetrievalDataset, dimension: int) -> int:
    """Bytes of all descriptors of a dataset."""
    return 4 * dimension * (len(dataset.database) + len(dataset.queries))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> int:
    """Largest memory so far: of the device; on a CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _of(device: torch.device) -> str:
    return "of main memory" if device.type == "cpu" else f"on {device}"


def _free_space(folder: Path, needed: int) -> str:
    there = next((parent for parent in (folder, *folder.absolute().parents) if parent.is_dir()), Path())
    free = shutil.disk_usage(there).free
    return f" ({megabytes(free)} are free{': too few' if free < needed else ''})"
