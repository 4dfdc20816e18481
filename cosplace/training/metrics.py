"""Metrics of a run: metrics.jsonl and TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from cosplace.storage import storage_errors, write_text

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Writes metrics to metrics.jsonl and TensorBoard.

    Rows after iteration `first_step` of the run, left by a run that was stopped, are removed: they are written again.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self.board = SummaryWriter(str(folder), purge_step=first_step)
        if (folder / METRICS).exists():
            rows = [row for row in read_metrics(folder) if row["step"] <= first_step]
            write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.board.close()

    def write_loss(self, *, step: int, epoch: int, loss: float) -> None:
        """Record the mean loss of the iterations up to `step`."""
        self._append({"kind": "loss", "step": step, "epoch": epoch, "loss": loss})
        self.board.add_scalar("loss", loss, step)

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

    def write_recalls(self, name: str, recalls: Mapping[int, float], step: int) -> None:
        """Send recalls to TensorBoard."""
        for k, recall in recalls.items():
            self.board.add_scalar(f"{name}/R@{k}", recall, step)

    def _append(self, row: Mapping[str, Any]) -> None:
        path = self.folder / METRICS
        with storage_errors(path), path.open("a") as file:
            file.write(json.dumps(row) + "\n")


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
