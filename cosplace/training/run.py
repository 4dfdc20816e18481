"""A run in its folder: settings, state, metrics, and when to write a checkpoint."""

import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from cosplace.config.sections import TrainConfig
from cosplace.config.values import to_values
from cosplace.errors import ConfigError, CosPlaceError, DeviceError
from cosplace.memory import explain_memory_errors
from cosplace.photos.viewpoints import ViewpointDigest
from cosplace.progress import Progress
from cosplace.retrieval.evaluation import Evaluation
from cosplace.storage import lock_file, remove_unfinished, storage_errors, write_text
from cosplace.training.augmentation import Augmentation
from cosplace.training.best_model import copy_best_model
from cosplace.training.checkpoint import LAST_CHECKPOINT, RunState, save_checkpoint
from cosplace.training.cuda_graph import RecordedNetwork
from cosplace.training.data import TrainingData, augmentation_settings
from cosplace.training.distributed_setup import check_equal_weights
from cosplace.training.loggers import peak_memory_mb
from cosplace.training.metrics import MetricsWriter, NoMetrics
from cosplace.training.plan import describe_plan
from cosplace.training.processes import Processes
from cosplace.training.schedules import learning_rate
from cosplace.training.setup import Preparation
from cosplace.training.validation import doubts_about, won_and_lost, won_and_lost_text
from cosplace.training.validation_image import validation_image

CONFIG, LOCK = "config.json", ".lock"
LOSSES_PER_EPOCH = 20  # how often the mean loss is recorded

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Run:
    """A run in progress."""

    config: TrainConfig
    folder: Path
    data: TrainingData
    state: RunState
    forward: Callable[[Tensor], Tensor]  # the network, compiled with --compile; the weights are those of `state`
    augmentation: Augmentation
    device: torch.device
    dtype: torch.dtype | None  # of mixed precision
    metrics: MetricsWriter
    progress: Progress
    processes: Processes | None = None  # those that train together; None: this one alone
    training_photos: ViewpointDigest | None = None  # computed when the first best model is saved
    held_out_photos: ViewpointDigest | None = None  # the same
    checkpoint_time: float = field(default_factory=time.monotonic)  # of the last checkpoint

    @property
    def own_images(self) -> range | None:
        """The images of each batch that this process trains on; None for all."""
        return None if self.processes is None else self.processes.part(self.config.training.batch_size)

    @property
    def is_main(self) -> bool:
        """Whether this process evaluates and writes files."""
        return self.processes is None or self.processes.is_main

    def on_main(self, work: Callable[[], T]) -> T | None:
        """The result of `work`, in the main process; see `Processes.on_main`."""
        return work() if self.processes is None else self.processes.on_main(work)

    def checkpoint(self) -> None:
        """Write last_checkpoint.pth.  All processes call it."""
        self.collect_unreadable()
        save_checkpoint(
            self.folder, self.state, to_values(self.config), self.data.digest(), val_digest=self.data.val_digest(),
            is_writer=self.is_main,
        )  # fmt: skip
        self.checkpoint_time = time.monotonic()

    def collect_unreadable(self) -> None:
        """Move the messages about unreadable photos to the main process."""
        if self.processes is None:
            return
        found = self.processes.gather(self.state.unreadable)
        self.state.unreadable = {}
        for one in found if self.is_main else ():
            for message, times in one.items():
                self.state.unreadable[message] = self.state.unreadable.get(message, 0) + times

    @contextmanager
    def checkpoint_on(self, *kinds: type[Exception], losses: "LossRecorder | None" = None) -> Generator[None]:
        """Write a checkpoint when an error of these kinds is raised, which leaves the state between two iterations.

        Several processes write one for any error that ends all of them where they meet, between two iterations.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, kinds) if self.processes is None else self.processes.ended_together:
                if losses is not None:
                    losses.save()
                self.checkpoint()
            raise

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether --checkpoint_minutes have passed since the last checkpoint."""
        return time.monotonic() - self.checkpoint_time >= 60 * self.config.training.checkpoint_minutes

    def checkpoint_when_due(self, losses: "LossRecorder") -> None:
        """Write a checkpoint if it is time for one.  Several processes do so where they meet, see `met`."""
        if self.processes is None and self.is_checkpoint_due:
            losses.save()
            self.checkpoint()

    def met(self, batches: Iterable[T], losses: "LossRecorder") -> Generator[T]:
        """Yield what `batches` yields, as long as all processes have the next one and none was asked to stop.

        Between two iterations, they write a checkpoint if it is time for one.  See `Processes.agree`.
        """
        if self.processes is None:
            yield from batches
            return
        iterator, is_first = iter(batches), True
        while True:
            batch, error = None, None
            try:
                batch = next(iterator, None)
            except Exception as problem:
                error = problem
            is_due = not is_first and batch is not None and self.is_checkpoint_due
            if self.processes.agree(error, is_due=is_due):
                losses.save()
                self.checkpoint()
            if batch is None:
                return
            yield batch
            is_first = False

    def record_epoch(self, validation: Evaluation, *, is_best: bool, seconds: float, images_per_second: float) -> None:
        """Record an epoch that was trained and validated."""
        state, per_epoch = self.state, self.config.training.iterations_per_epoch
        group, mean_loss = self.data.rank(state.epoch), state.loss_sum / per_epoch
        row = {
            "step": (state.epoch + 1) * per_epoch,
            "epoch": state.epoch,
            "group": group,
            "loss": mean_loss,
            "seconds": round(seconds, 1),
            "images_per_second": round(images_per_second, 1),
            **(counts := won_and_lost(state.start_hits, validation)),
        }
        self.metrics.write_epoch(row, validation.recalls)
        self.metrics.write_memory(peak_memory_mb(self.device), row["step"])
        self.metrics.write_image(validation_image(self.data.val, validation), row["step"])
        log.info(
            "epoch %d, group %d: loss %.4f, %.1f images/s, validation %s%s%s",
            state.epoch + 1, group, mean_loss, images_per_second, validation.recalls_text(),
            f", {won_and_lost_text(counts)}" if counts else "", " (best so far)" if is_best else "",
        )  # fmt: skip
        if state.unreadable:
            num_skipped = sum(state.unreadable.values())
            log.warning(
                "epoch %d: %d photos cannot be opened; they were replaced %d times by others of their class",
                state.epoch + 1, len(state.unreadable), num_skipped,
            )  # fmt: skip
            for message, times in state.unreadable.items():
                log.warning("skipped %d times: %s", times, message)

    def next_epoch(self) -> None:
        """Move the state to the next epoch, and write its checkpoint."""
        state = self.state
        if self.processes is not None:
            check_equal_weights(self.processes, state, self.data.groups_of_epoch(state.epoch))
        state.epoch, state.iteration = state.epoch + 1, 0
        state.loss_sum, state.recent_loss_sum, state.unreadable = 0.0, 0.0, {}
        self.checkpoint()


class LossRecorder:
    """Adds up losses on the device, where reading each one would wait for it, and records their mean now and then."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.text = ""  # the last mean, for the progress bar
        self._sum = torch.tensor(run.state.recent_loss_sum, dtype=run.state.number_type, device=run.device)
        self._interval = max(1, run.config.training.iterations_per_epoch // LOSSES_PER_EPOCH)

    def add(self, loss: Tensor) -> None:
        """Add the loss () of an iteration."""
        self._sum += loss

    def save(self) -> None:
        """Put the sum into the state, for a checkpoint."""
        self.run.state.recent_loss_sum = self._sum.item()

    def record_when_due(self) -> None:
        """Record the mean of the losses since the last record, several times per epoch and at its end.

        Raises CosPlaceError when it is not finite.
        """
        run, state = self.run, self.run.state
        per_epoch = run.config.training.iterations_per_epoch
        if state.iteration % self._interval and state.iteration < per_epoch:
            return
        total, count = self._sum.item(), state.iteration % self._interval or self._interval
        mean = total / count
        if not math.isfinite(mean):
            raise CosPlaceError(
                f"The loss is {mean} at epoch {state.epoch + 1}, iteration {state.iteration}. Resume from "
                f"{run.folder / LAST_CHECKPOINT}, or start a new run.",
                "use a smaller --lr",
                "train without --use_amp16",
            )
        state.loss_sum += total
        step = state.epoch * per_epoch + state.iteration
        rate = learning_rate(run.config, step - 1)
        run.metrics.write_loss(step=step, epoch=state.epoch, loss=mean, learning_rate=rate)
        self._sum.zero_()
        state.recent_loss_sum = 0.0
        self.text = f"loss {mean:.3f}"


@contextmanager
def open_run(prepared: Preparation, folder: Path, progress: Progress) -> Generator[Run]:
    """Start a run in its folder, or continue it: settings, first checkpoint, metrics."""
    config, state = prepared.config, prepared.state
    processes = prepared.processes
    with ExitStack() as opened:
        metrics: MetricsWriter = NoMetrics()
        error: Exception | None = None
        try:
            if processes is None or processes.is_main:
                for line in describe_plan(prepared):
                    log.info(line)
                for doubt in doubts_about(prepared.data):
                    log.warning(doubt)
                opened.enter_context(lock_run(folder))
                metrics = opened.enter_context(_open_metrics(prepared, folder))
        except CosPlaceError as problem:
            error = problem
        if processes is not None:
            processes.agree(error)
        elif error is not None:
            raise error
        run = Run(
            config=config,
            folder=folder,
            data=prepared.data,
            state=state,
            forward=training_forward(prepared),
            augmentation=augmentation_settings(config),
            device=prepared.device,
            dtype=prepared.dtype,
            metrics=metrics,
            progress=progress if processes is None else processes.reporting(progress),
            processes=processes,
        )
        if not config.training.resume_train:
            run.checkpoint()
        try:
            with explain_memory_errors(to_values(config)):
                yield run
        except DeviceError as error:
            raise type(error)(*error.args, f"Then resume with `cosplace train --resume_train {folder}`.") from error


def _open_metrics(prepared: Preparation, folder: Path) -> MetricsWriter:
    """Write the files that a new or resumed run needs except for its checkpoint, and open its metrics."""
    config, state = prepared.config, prepared.state
    write_text(folder / CONFIG, json.dumps(to_values(config), indent=2) + "\n")
    if config.training.resume_train:
        log.info("resuming at epoch %d, iteration %d", state.epoch + 1, state.iteration)
        copy_best_model(folder, Path(config.training.resume_train))
    first_step = state.epoch * config.training.iterations_per_epoch + state.iteration
    metrics = MetricsWriter(folder, first_step, config.training.logger)
    metrics.write_settings(to_values(config))
    return metrics


@contextmanager
def lock_run(folder: Path) -> Generator[None]:
    """Keep other processes from writing to the folder of a run; created if it does not exist.

    One thread may lock it several times.  The system releases the lock of a killed process; its unfinished files are
    removed.  Raises ConfigError if another process trains there.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(f"{folder} is in use by another training run. Wait until it ends, or start a new run.")
    with lock_file(folder / LOCK, busy):
        remove_unfinished(folder, older_than_s=0.0)
        yield


def training_forward(prepared: Preparation) -> Callable[[Tensor], Tensor]:
    """Return the network as a training step calls it: compiled with --compile, as CUDA graphs with --cuda_graphs."""
    model, running = prepared.state.model, prepared.config.running
    if running.cuda_graphs:
        return RecordedNetwork(model, prepared.dtype)
    return torch.compile(model) if running.compile else model
