"""cosplace runs: the runs of a folder with their main figures."""

import shutil
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import print_json, print_result
from cosplace.cli.text_table import text_table
from cosplace.config.runs import RunsConfig
from cosplace.photos.paths import printable

if TYPE_CHECKING:
    from cosplace.assessment.run_list import RunSummary

HEAD = ("time", "kind", "model", "dataset", "protocol", "R@1 [95% interval]", "R@5", "epochs", "state", "folder")
WIDEST = {"kind": 30, "model": 34, "dataset": 26, "protocol": 40, "state": 60}  # characters
SHORTEST_MODEL = 12  # characters of its name, where backbone and dimension are long
NARROW_HEAD = ("time", "kind", "model", "dataset", "R@1 [95% interval]", "R@5")
NARROW = {"model": 20, "dataset": 20}
MINUTES = len("2026-01-31 12:00")
UNLIMITED = 1 << 16  # columns where the output is not a terminal


def run_runs(config: RunsConfig) -> None:
    """Print the runs below a folder."""
    from cosplace.assessment.run_list import list_runs

    runs = sorted_runs(list_runs(config.folder), config.sort)
    if config.json:
        print_json([_record(run) for run in runs])
        return
    if not runs:
        print_result(f"There are no runs in {printable(config.folder)}.")
        return
    for line in run_lines(runs, shutil.get_terminal_size(fallback=(UNLIMITED, 0)).columns):
        print_result(line)
    if any(run.recall1 is not None and run.recall1.is_approximate for run in runs):
        print_result("* approximate interval")


def run_lines(runs: "list[RunSummary]", columns: int) -> list[str]:
    """A table with one line for each run; in a narrow terminal, folder, protocol and state are on a second line."""
    lines = text_table([HEAD, *(_cells(run) for run in runs)])
    if max(map(len, lines)) <= columns:
        return lines
    lines = text_table([NARROW_HEAD, *(_narrow_cells(run) for run in runs)])
    found = [lines[0]]
    for run, line in zip(runs, lines[1:], strict=True):
        *_, epochs, state, folder = _cells(run)
        notes = [f"protocol {_protocol(run)}"] if run.protocol else []
        notes += [f"epochs {epochs}"] if epochs else []
        notes += [] if state == "finished" else [state]
        found += [line, ", ".join([f"  {folder}", *notes])]
    return found


def sorted_runs(runs: "list[RunSummary]", order: str) -> "list[RunSummary]":
    """Runs in an order of `cosplace runs --sort`: newest, best, or by name; those without a value come last."""
    if order in ("r1", "r5"):
        n = int(order[1:])
        return sorted(runs, key=lambda run: -(run.recalls or {}).get(n, -1.0))
    if order == "time":
        return sorted(runs, key=lambda run: run.time, reverse=True)
    return sorted(runs, key=lambda run: (str(getattr(run, order)) == "", str(getattr(run, order))))


def _cells(run: "RunSummary") -> tuple[str, ...]:
    from cosplace.report.words import shorten

    size = [run.backbone] if run.backbone else []
    size += [str(run.dimension)] if run.dimension else []
    about = f" ({' '.join(size)})" if run.model and size else " ".join(size)
    model = shorten(run.model, max(SHORTEST_MODEL, WIDEST["model"] - len(about))) + about
    recalls = run.recalls or {}
    epochs = "" if run.epochs_done is None else f"{run.epochs_done}/{'?' if run.epochs is None else run.epochs}"
    return (
        run.time or "unknown",
        f"{run.kind}, {shorten(run.variant, WIDEST['kind'])}" if run.variant else run.kind,
        model,
        shorten(run.dataset, WIDEST["dataset"]),
        shorten(_protocol(run), WIDEST["protocol"]),
        "" if run.recall1 is None else run.recall1.text() + "*" * run.recall1.is_approximate,
        f"{recalls[5]:.1f}" if 5 in recalls else "",
        epochs,
        shorten(f"{run.state}: {run.reason}", WIDEST["state"]) if run.reason else run.state,
        printable(run.folder),
    )


def _narrow_cells(run: "RunSummary") -> tuple[str, ...]:
    from cosplace.report.words import shorten

    time, kind, _, _, _, recall1, recall5, *_ = _cells(run)
    model = run.model or run.backbone
    return (
        time[:MINUTES], kind, shorten(model, NARROW["model"]), _end(run.dataset, NARROW["dataset"]), recall1, recall5
    )  # fmt: skip


def _protocol(run: "RunSummary") -> str:
    return f"{run.protocol} (deviates)" if run.deviations else run.protocol


def _end(text: str, length: int) -> str:
    """The last `length` characters of a text; an ellipsis replaces its start."""
    return text if len(text) <= length else f"…{text[1 - length :]}"


def _record(run: "RunSummary") -> dict[str, Any]:
    interval = None if run.recall1 is None else [run.recall1.low, run.recall1.high]
    return {
        "folder": str(run.folder),
        "state": run.state,
        "reason": run.reason or None,
        "time": run.time or None,
        "kind": run.kind or None,
        "model": run.model or None,
        "backbone": run.backbone or None,
        "dimension": run.dimension,
        "compression": run.compression or None,
        "variant": run.variant or None,
        "dataset": run.dataset or None,
        "protocol": run.protocol or None,
        "deviations": list(run.deviations),
        "recalls": None if run.recalls is None else {str(n): recall for n, recall in run.recalls.items()},
        "recall1_interval": interval,
        "recall1_approximate": None if run.recall1 is None else run.recall1.is_approximate,
        "epochs_done": run.epochs_done,
        "epochs": run.epochs,
    }
