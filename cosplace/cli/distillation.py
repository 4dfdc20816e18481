"""cosplace distill."""

import logging
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cosplace.cli.console import (
    LOGS,
    Bars,
    command_line,
    log_to_folder,
    on_interrupt,
    print_result,
    program,
    stop_on_signals,
    timestamp,
)
from cosplace.config.distillation import DistillConfig
from cosplace.training.torchrun import require_one_process

RESUME = "--resume_train"

log = logging.getLogger("cosplace")


def run_distill(config: DistillConfig, given: Mapping[str, Any]) -> None:
    """Train a student, and print what it keeps of its teacher.  given: the settings of the command line."""
    from cosplace.assessment.provenance import RunInfo
    from cosplace.report.training_results import write_distillation_results
    from cosplace.storage import new_run_folder
    from cosplace.training.distillation import distill
    from cosplace.training.distillation_setup import prepare_distillation
    from cosplace.training.distillation_summary import summarize
    from cosplace.training.finetuning_state import require_checkpoint
    from cosplace.training.run import lock_run

    require_one_process("distill")
    resumed = Path(config.training.resume_train) if config.training.resume_train else None
    if resumed is not None:
        require_checkpoint(resumed)
    preparing = "The descriptors of the teacher that are finished are kept: repeat the command to continue."
    with nullcontext() if resumed is None else lock_run(resumed):
        with on_interrupt(preparing), stop_on_signals(Bars(), preparing) as progress:
            prepared = prepare_distillation(config, given, progress)
        folder = resumed or new_run_folder(LOGS, prepared.config.running.save_dir, timestamp())
        advice = f"Resume with `{resume_command(folder, sys.argv[1:])}`"
        with lock_run(folder), log_to_folder(folder), on_interrupt(advice), stop_on_signals(Bars(), advice) as progress:
            log.info("results: %s", folder)
            seed = prepared.config.running.seed
            run = RunInfo(command=command_line(), seed=seed, device=prepared.device, autocast=prepared.dtype)
            distill(prepared, folder, progress)
            result = summarize(prepared, folder, progress)
            write_distillation_results(result, run=run, progress=Bars())
    for line in result.lines():
        print_result(line)
    print_result(f"model: {folder / 'best_model.pth'}")
    if (folder / "report.html").exists():
        print_result(f"report: {folder / 'report.html'}")


def resume_command(folder: Path, words: list[str]) -> str:
    """The command that continues a run, for a shell in the same folder: the same words, and --resume_train."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == RESUME:
            skip = True
        elif not word.startswith(f"{RESUME}="):
            kept.append(word)
    return shlex.join([*program(), *kept, RESUME, str(folder)])
