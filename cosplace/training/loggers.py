"""Where the metrics of a run are sent: TensorBoard always, and Weights & Biases or MLflow with --logger.

All get the same names.  The packages of the last two are imported only when they are used.
Side effects: writes the folder of the run; the services of --logger may be on another machine.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cosplace.errors import ConfigError, one_line
from cosplace.memory import peak_bytes
from cosplace.storage import write_text

RUN_ID = "logger.json"  # which run of the service belongs to the folder, so that a resumed run continues it
PROJECT = "cosplace"
RESULTS = ("validation/R@1", "test/R@1")  # the results that hyperparameters are compared by

log = logging.getLogger(__name__)


class Logger(Protocol):
    """What receives the settings, numbers and images of a run."""

    def write_settings(self, values: Mapping[str, Any]) -> None:
        """Record the settings of the run."""

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at an iteration, by name."""

    def write_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Record an image (H, W, 3) uint8 at an iteration."""

    def close(self) -> None:
        """Finish; nothing is written later."""


def require_logger(name: str | None) -> None:
    """Raise ConfigError if the package of --logger is not installed."""
    if name is not None and find_spec(name) is None:
        raise ConfigError(
            f"--logger {name} needs the package {name}. Install it with `pip install 'cosplace[{name}]'`, or omit the "
            f"flag: TensorBoard has the same metrics."
        )


def open_loggers(name: str | None, folder: Path, first_step: int) -> list[Logger]:
    """TensorBoard, and the service of --logger, from iteration `first_step` of the run in a folder."""
    require_logger(name)
    others: list[Logger] = []
    if name is not None:
        try:
            others.append({"wandb": WeightsAndBiases, "mlflow": MLflow}[name](folder))
        except Exception as error:  # not logged in, or the service cannot be reached
            reason = one_line(str(error)) or type(error).__name__
            raise ConfigError(
                f"--logger {name} cannot start: {reason.rstrip('.')}. Fix this, or omit the flag."
            ) from error
    return [TensorBoard(folder, first_step), *others]


class TensorBoard:
    """Event files in the folder of the run.  Events after `first_step`, of a run that was stopped, are hidden."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=first_step)

    def write_settings(self, values: Mapping[str, Any]) -> None:
        """Record hyperparameters, which TensorBoard shows next to the results."""
        # SummaryWriter.add_hparams would write them to another folder, as another run.
        summaries = hparams(_simple(values), dict.fromkeys(RESULTS, 0.0))
        assert self.writer.file_writer is not None  # until it is closed
        for summary in summaries:
            self.writer.file_writer.add_summary(summary)

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def write_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Record an image."""
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; the environment variables of wandb say where it is sent."""

    def __init__(self, folder: Path) -> None:
        self.wandb = import_module("wandb")
        self.run = self.wandb.init(
            project=PROJECT, dir=str(folder), name=_run_name(folder), id=_read_run_id(folder, "wandb"), resume="allow"
        )
        _write_run_id(folder, "wandb", self.run.id)

    def write_settings(self, values: Mapping[str, Any]) -> None:
        """Record the configuration."""
        self.run.config.update(_simple(values), allow_val_change=True)

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers."""
        self.run.log(dict(values), step=step)

    def write_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Record an image."""
        self.run.log({name: self.wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow:
    """A run of MLflow; the environment variables of mlflow, such as MLFLOW_TRACKING_URI, say where it is stored."""

    def __init__(self, folder: Path) -> None:
        self.mlflow = import_module("mlflow")
        run_id = _read_run_id(folder, "mlflow")
        if run_id is None:
            self.mlflow.set_experiment(PROJECT)
            run = self.mlflow.start_run(run_name=_run_name(folder))
        else:
            run = self.mlflow.start_run(run_id=run_id)
        _write_run_id(folder, "mlflow", run.info.run_id)

    def write_settings(self, values: Mapping[str, Any]) -> None:
        """Record the parameters; those of a resumed run, which may not change, are recorded already."""
        with suppress(self.mlflow.MlflowException):
            self.mlflow.log_params(_simple(values))

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers; MLflow has no @ in names: validation/R_at_1."""
        self.mlflow.log_metrics({_mlflow_name(name): float(value) for name, value in values.items()}, step=step)

    def write_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Record an image as a file of the run."""
        self.mlflow.log_image(pixels, f"{name}/{step:09d}.png")

    def close(self) -> None:
        """Finish the run."""
        self.mlflow.end_run()


def _mlflow_name(name: str) -> str:
    return name.replace("@", "_at_")


def _run_name(folder: Path) -> str:
    """<save_dir>/<time>."""
    return "/".join(folder.resolve().parts[-2:])


def _simple(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as numbers, switches and texts; None is left out."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in values.items()
        if value is not None
    }


def _read_run_id(folder: Path, logger: str) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        run_id = json.loads((folder / RUN_ID).read_text("utf-8")).get(logger)
        return run_id if isinstance(run_id, str) else None
    return None


def _write_run_id(folder: Path, logger: str, run_id: str) -> None:
    write_text(folder / RUN_ID, json.dumps({logger: run_id}) + "\n")


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory that was in use so far, in MB: of a GPU by torch, else of the process; None if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_bytes() / 1e6 or None
