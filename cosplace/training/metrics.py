"""Metrics of a run: metrics.jsonl, TensorBoard, and the service of --logger.

Names, the same everywhere: loss, learning_rate, images_per_second, memory_mb, validation/R@N, test/R@N, and the image
validation/queries.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from cosplace.errors import CosPlaceError, one_line
from cosplace.storage import storage_errors, write_text
from cosplace.training.loggers import Logger, TensorBoard, open_loggers

METRICS = "metrics.jsonl"
IMAGE = "validation/queries"

log = logging.getLogger(__name__)


class MetricsWriter:
    """Writes metrics to metrics.jsonl, and to TensorBoard and the service of --logger.

    Rows after iteration `first_step` of the run, left by a run that was stopped, are removed: they are written again.
    """

    def __init__(self, folder: Path, first_step: int, logger: str | None = None) -> None:
        self.folder = folder
        self.loggers = open_loggers(logger, folder, first_step)
        if (folder / METRICS).exists():
            rows = [row for row in read_metrics(folder) if row["step"] <= first_step]
            write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._send(lambda logger: logger.close())

    def write_settings(self, values: Mapping[str, Any]) -> None:
        """Record the settings of the run."""
        self._send(lambda logger: logger.write_settings(values))

    def write_loss(self, *, step: int, epoch: int, loss: float, learning_rate: float) -> None:
        """Record the mean loss of the iterations up to `step`, and the learning rate of the last one."""
        self._append({"kind": "loss", "step": step, "epoch": epoch, "loss": loss})
        self._send_scalars({"loss": loss, "learning_rate": learning_rate}, step)

    def write_start(self, row: Mapping[str, Any], recalls: Mapping[int, float]) -> None:
        """Record the validation before training; once, even if it is repeated after a kill."""
        if any(row["kind"] == "start" for row in read_metrics(self.folder)):
            return
        self._append({"kind": "start", "step": 0, **row, "recalls": {str(k): recall for k, recall in recalls.items()}})
        self.write_recalls("validation", recalls, 0)

    def write_epoch(self, row: Mapping[str, Any], recalls: Mapping[int, float]) -> None:
        """Record an epoch and its recalls on the validation set."""
        named = {str(k): recall for k, recall in recalls.items()}
        self._append({"kind": "epoch", **row, "recalls": named})
        self.write_recalls("validation", recalls, row["step"])
        self._send_scalars({"images_per_second": row["images_per_second"]}, row["step"])

    def write_memory(self, memory_mb: float | None, step: int) -> None:
        """Record the most memory that was in use so far; nothing if it is unknown."""
        if memory_mb is not None:
            self._send_scalars({"memory_mb": memory_mb}, step)

    def write_image(self, pixels: np.ndarray, step: int) -> None:
        """Record validation queries with their predictions, (H, W, 3) uint8."""
        self._send(lambda logger: logger.write_image(IMAGE, pixels, step))

    def write_recalls(self, name: str, recalls: Mapping[int, float], step: int) -> None:
        """Send recalls to TensorBoard and the service."""
        self._send_scalars({f"{name}/R@{k}": recall for k, recall in recalls.items()}, step)

    def _send_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._send(lambda logger: logger.write_scalars(values, step))

    def _send(self, write: Callable[[Logger], None]) -> None:
        """Write to all loggers.  A service that fails, such as one that cannot be reached, does not stop training."""
        for logger in list(self.loggers):
            try:
                write(logger)
            except Exception as error:
                if isinstance(logger, TensorBoard) or isinstance(error, CosPlaceError):
                    raise
                self.loggers.remove(logger)
                reason = one_line(str(error)) or type(error).__name__
                log.warning("%s failed and gets no more metrics of this run: %s", type(logger).__name__, reason)

    def _append(self, row: Mapping[str, Any]) -> None:
        path = self.folder / METRICS
        with storage_errors(path), path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class NoMetrics(MetricsWriter):
    """Of a process that leaves writing to another one."""

    def __init__(self) -> None:
        self.loggers = []

    def _append(self, row: Mapping[str, Any]) -> None:
        """Write nothing."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl; a last line that is incomplete is left out."""
    path, rows = folder / METRICS, []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
