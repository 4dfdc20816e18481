"""cosplace train, also as one of several processes that torchrun started."""

import logging
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import (
    LOGS,
    Bars,
    Interruption,
    interruption_text,
    log_to_folder,
    on_interrupt,
    show_only_errors,
    stop_on_signals,
    timestamp,
)
from cosplace.cli.training import print_training_result, resume_command, train_and_report, training_run
from cosplace.cli.training import run_train as run_train_alone
from cosplace.config.sections import TrainConfig
from cosplace.errors import ConfigError, CosPlaceError
from cosplace.progress import Progress, StopRequest, no_progress
from cosplace.training.torchrun import RECORD, Job, find_run, record_job, torchrun_command, torchrun_job

if TYPE_CHECKING:
    from cosplace.training.processes import Processes
    from cosplace.training.setup import Preparation

LOCK_S = 60.0  # until the processes before a restart have ended everywhere
USER_ERROR, SIGNAL = 2, 128  # exit codes, as in `commands`

log = logging.getLogger("cosplace")


def run_train(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Train a model, alone or as one of the processes of torchrun; see `training.run_train`."""
    job = torchrun_job()
    if job is None or (job.world_size == 1 and (config.training.seeds or config.running.dry_run)):
        run_train_alone(config, given)
    elif job.world_size == 1:
        _train_alone(config, given, job)
    else:
        _train_together(config, given, job)


def _train_alone(config: TrainConfig, given: Mapping[str, Any], job: Job) -> None:
    """Train in the only process of a job, and continue its run after a restart."""
    from cosplace.training.setup import prepare

    with ExitStack() as opened:
        folder, checkpoint = _open_folder(config, job, opened)
        config = _continued(config, given, checkpoint, job)
        train_and_report(prepare(config, given, Bars()), Path(folder))


def _train_together(config: TrainConfig, given: Mapping[str, Any], job: Job) -> None:
    from cosplace.training.distributed_setup import check_supported, join_training
    from cosplace.training.processes import join
    from cosplace.training.setup import prepare

    bars: Progress = Bars()
    if job.rank:
        bars = no_progress
        show_only_errors()
    with ExitStack() as opened:
        with _one_report_of_machine(job):
            timeout_s = 60 * config.processes.process_timeout_minutes
            processes = opened.enter_context(join(job, config.running.device, timeout_s))
        opened.enter_context(_one_report(processes))
        progress = processes.reporting(bars)
        processes.agree(_error_of(check_supported, config, job.world_size) if processes.is_main else None)
        opened.enter_context(files := ExitStack())
        folder, checkpoint = processes.broadcast(processes.on_main(lambda: _open_folder(config, job, files))) or (
            "",
            None,
        )

        def load() -> "Preparation":
            return prepare(_continued(config, given, checkpoint, job), given, progress, processes)

        prepared = join_training(processes.main_first(load))
        _train(prepared, processes, Path(folder), job, bars)


def _train(prepared: "Preparation", processes: "Processes", folder: Path, job: Job, bars: Progress) -> None:
    """Train in a folder, which the main process has locked, write the results, and print them."""
    from cosplace.report.training_results import write_training_results
    from cosplace.training.checkpoint import LAST_CHECKPOINT
    from cosplace.training.loop import train_together

    config = prepared.config
    command = resume_command(folder, config, torchrun_command(job))
    advice = f"Resume from {LAST_CHECKPOINT}: `{command}`"
    with ExitStack() as opened:
        if processes.is_main:
            opened.enter_context(log_to_folder(folder))
        opened.enter_context(on_interrupt(advice))
        progress = opened.enter_context(stop_on_signals(bars, advice, is_silent=not processes.is_main))
        log.info("results: %s", folder)
        log.info("%d processes; each trains on %d of the %d images of a batch", processes.world_size,
                 len(processes.part(config.training.batch_size)), config.training.batch_size)  # fmt: skip
        run = training_run(config)
        try:
            result = train_together(prepared, folder, progress)
        except StopRequest as stop:  # in a process that got no signal itself, it has no text
            number = stop.signal_number
            raise StopRequest(str(stop) or interruption_text(number, advice), number) from stop
        # Signals take effect after this: the run is complete then.
        progress = processes.reporting(bars)

        def write() -> None:
            assert result is not None  # of the main process
            measures = write_training_results(result, config, run=run, progress=progress)
            print_training_result(result, measures, config)

        processes.on_main(write)


# --- the folder of the run -------------------------------------------------------------------------------------------


def _open_folder(config: TrainConfig, job: Job, opened: ExitStack) -> tuple[str, str | None]:
    """Find or create the folder of the job's run, and lock it; also the checkpoint to continue from, or None."""
    from cosplace.storage import new_run_folder
    from cosplace.training.checkpoint import LAST_CHECKPOINT
    from cosplace.training.resume import resumed_folder

    resumed, name = config.training.resume_train, config.running.save_dir
    folder = find_run(LOGS / name, job)
    is_new = folder is None
    if folder is not None:
        log.info("continuing %s", folder)
    elif resumed:
        folder = resumed_folder(resumed)
        is_new = folder is None
    if folder is None:
        folder = new_run_folder(LOGS, name, timestamp())
        opened.push(partial(_remove_if_refused, folder))
    _lock(folder, job, opened)
    if is_new:
        record_job(folder, job)
    return str(folder), str(folder) if (folder / LAST_CHECKPOINT).exists() else resumed


def _remove_if_refused(folder: Path, error: type[BaseException] | None, *_: object) -> None:
    """Remove the new folder of a run that ended before it started, and the one around it if it is empty then."""
    from cosplace.training.run import LOCK

    if error is not None and {path.name for path in folder.iterdir()} <= {LOCK, RECORD}:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()


def _lock(folder: Path, job: Job, opened: ExitStack) -> None:
    """Lock the folder of a run.  After a restart, another machine may still be ending the processes before it."""
    from cosplace.training.run import lock_run

    end = time.monotonic() + (LOCK_S if job.num_restarts else 0.0)
    while True:
        try:
            opened.enter_context(lock_run(folder))
            return
        except ConfigError:
            if time.monotonic() >= end:
                raise
            time.sleep(1.0)


def _continued(config: TrainConfig, given: Mapping[str, Any], checkpoint: str | None, job: Job) -> TrainConfig:
    """The settings of the run that a checkpoint belongs to; those of the command without one.

    The device is always that of the command: the checkpoint may name one GPU.
    """
    from cosplace.training.resume import resumed_config

    if checkpoint is None:
        return config
    try:
        found = resumed_config(checkpoint, given)
    except ConfigError as error:
        if job.is_named and not config.training.resume_train:
            raise ConfigError(
                f"{error} The run belongs to a job with the same --rdzv-id, {job.name}: use another one for a new run."
            ) from error
        raise
    return replace(found, running=replace(found.running, device=config.running.device))


# --- one report ------------------------------------------------------------------------------------------------------


@contextmanager
def _one_report(processes: "Processes") -> Generator[None]:
    """Within: of several processes that end, one shows why."""
    try:
        yield
    except (CosPlaceError, StopRequest, KeyboardInterrupt) as error:
        if processes.is_reporter(error):
            raise
        number = getattr(error, "signal_number", getattr(error, "number", 0))
        raise SystemExit(SIGNAL + number if number else USER_ERROR) from error
    except Exception as error:
        processes.is_reporter(error)  # its traceback is the report
        raise


@contextmanager
def _one_report_of_machine(job: Job) -> Generator[None]:
    """Within: of the processes of a machine, which have not joined yet, the first one shows an error."""
    try:
        yield
    except (CosPlaceError, Interruption) as error:
        if job.local_rank == 0:
            raise
        raise SystemExit(USER_ERROR) from error


def _error_of(check: Any, *arguments: Any) -> Exception | None:
    try:
        check(*arguments)
    except CosPlaceError as error:
        return error
    return None
