"""cosplace finetune."""

import logging
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cosplace.cli.console import (
    LOGS,
    Bars,
    log_to_folder,
    on_interrupt,
    print_result,
    program,
    stop_on_signals,
    timestamp,
)
from cosplace.config.finetuning import FinetuneConfig
from cosplace.config.shared import DeviceSettings
from cosplace.training.torchrun import require_one_process

if TYPE_CHECKING:
    from cosplace.training.finetuning import FinetuneResult

log = logging.getLogger("cosplace")


def run_finetune(config: FinetuneConfig) -> None:
    """Fine-tune a model, and print whether it is better than its start."""
    from cosplace.report.training_results import write_finetuning_results
    from cosplace.storage import new_run_folder
    from cosplace.training.finetuning import finetune
    from cosplace.training.finetuning_setup import prepare_finetuning
    from cosplace.training.finetuning_state import require_checkpoint
    from cosplace.training.run import lock_run

    require_one_process("finetune")
    resumed = Path(config.training.resume_train) if config.training.resume_train else None
    if resumed is not None:
        require_checkpoint(resumed)
    with nullcontext() if resumed is None else lock_run(resumed):
        prepared = prepare_finetuning(config, Bars())
        folder = resumed or new_run_folder(LOGS, config.running.save_dir, timestamp())
        advice = f"Resume with the same command and --resume_train {shlex.quote(str(folder))}"
        with lock_run(folder), log_to_folder(folder), on_interrupt(advice), stop_on_signals(Bars(), advice) as progress:
            log.info("results: %s", folder)
            result = finetune(prepared, folder, progress)
            write_finetuning_results(result, progress=Bars())
    _print_result(result)
    if result.comparison is None:
        _index_photos(result)
    else:
        print_result(f"next: `{shlex.join(_index_command(result, 'INDEX'))}`")


def _print_result(result: "FinetuneResult") -> None:
    print_result(result.verdict)
    print_result(f"start on {result.dataset.name}: {result.start_evaluation.recalls_text()}")
    if result.is_better:
        print_result(f"fine-tuned on {result.dataset.name}: {result.evaluation.recalls_text()}")
    if result.test_comparison is not None:
        print_result(result.test_comparison.text("test"))
    print_result(f"report: {result.folder / 'report.html'}")


def _index_photos(result: "FinetuneResult") -> None:
    """Index the photos with the start, where they are too few to train on."""
    from cosplace.cli.index import run_build
    from cosplace.config.index import IndexBuildConfig

    prepared, index = result.prepared, result.folder / "index"
    config = prepared.config
    print_result(f"indexing the photos instead: `{shlex.join(_index_command(result, str(index)))}`")
    run_build(
        IndexBuildConfig(
            dataset=Path(config.dataset),
            model=str(result.folder / "best_model.pth"),
            to=str(index),
            image_size=result.image_size,
            follow_outside=config.follow_outside,
            device=DeviceSettings(device=config.running.device),
        )
    )


def _index_command(result: "FinetuneResult", index: str) -> list[str]:
    size = [] if result.image_size is None else ["--image_size", str(result.image_size)]
    model = str(result.folder / "best_model.pth")
    return [*program(), "index", "build", result.prepared.config.dataset, "--model", model, *size, "--to", index]
