"""The runs below a folder with their main figures.  Reads files that may be damaged, foreign or still being written."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosplace.assessment.intervals import Estimate, wilson
from cosplace.assessment.run_files import (
    CONFIG,
    MAX_DIGITS,
    RESULTS,
    UNMEASURED,
    check_version,
    is_running,
    model_name,
    read_json,
    variant_text,
)
from cosplace.errors import ConfigError, one_line

METRICS, LOCK, LAST_CHECKPOINT = "metrics.jsonl", ".lock", "last_checkpoint.pth"  # of a training run
ANSWERS = (*UNMEASURED, "distillation.json")  # of a run that measured nothing
RUN_FILES = (CONFIG, RESULTS, LAST_CHECKPOINT)
FINISHED, RUNNING, STOPPED, NOT_FINISHED, UNREADABLE = "finished", "running", "stopped", "not finished", "not readable"
FAILED = "failed"
LOG, MAX_LINE_BYTES = "info.log", 1 << 16
ERROR_LINE = re.compile(r"[\d-]+ [\d:,]+  ERROR +(.+)")  # of a log
MAX_DEPTH = 5  # folders below the given one: logs/<save_dir>/<time>, and the runs of several seeds
MAX_METRICS_BYTES = 1 << 28
TIME = re.compile(r"(\d{4}-\d\d-\d\d)_(\d\d)-(\d\d)-(\d\d)")  # names of the folders of runs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run, or a folder that is none."""

    folder: Path
    state: str  # finished, running, stopped, failed, not finished or not readable
    reason: str = ""  # why it is not readable, or the error that ended it
    time: str = ""  # when it started, local time: 2026-01-31 12:00:00; "" if unknown
    kind: str = ""  # train, finetune, distill or eval
    model: str = ""
    backbone: str = ""
    dimension: int | None = None
    compression: str = ""  # binary or int8, of an evaluation by compressed descriptors
    variant: str = ""  # how it searched and which views it described; "" for the usual ones
    dataset: str = ""
    protocol: str = ""  # name and version, "custom" for an evaluation without one; "" if unknown
    deviations: tuple[str, ...] = ()  # from the protocol, such as photos that could not be opened
    recalls: Mapping[int, float] | None = None  # percent
    recall1: Estimate | None = None
    epochs_done: int | None = None  # of a training run
    epochs: int | None = None


def list_runs(folder: Path) -> list[RunSummary]:
    """All runs below a folder, in the order of their paths.  Raises ConfigError if it is not a folder.

    A folder without runs below it that is not a run itself is listed too, with the reason.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder. Use the folder that contains the runs, such as logs.")
    return list(_runs_below(folder, 0))


def _runs_below(folder: Path, depth: int) -> Iterator[RunSummary]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield RunSummary(folder=folder, state=UNREADABLE, reason=f"cannot be read: {error.strerror}")
        return
    if {entry.name for entry in entries} & set(RUN_FILES) or _last_error(folder):
        yield summarize(folder)
        return
    folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    if folders and depth < MAX_DEPTH:
        for entry in folders:
            yield from _runs_below(Path(entry.path), depth + 1)
    elif depth:
        found = "it is empty" if not entries else f"it has no {CONFIG}"
        yield RunSummary(folder=folder, state=UNREADABLE, reason=f"not a run: {found}")


def summarize(folder: Path) -> RunSummary:
    """The main figures of one run; files that are damaged make it not readable, with the reason."""
    try:
        config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
        results = read_json(folder / RESULTS) if (folder / RESULTS).exists() else None
        if results is not None:
            check_version(results, Path(RESULTS))
        kind = _kind(config, folder)
        epochs_done = None if kind == "eval" else _epochs_done(folder / METRICS)
        recalls = None if results is None else _recalls(results)
    except (ConfigError, OSError) as error:
        return RunSummary(folder=folder, state=UNREADABLE, reason=one_line(str(error)), time=_time(folder, {}))
    results = results or _answers(folder)
    model, protocol = _section(results, "model"), _section(results, "protocol")
    backbone = _text(model.get("backbone")) or ("" if config.get("resume_model") else _text(config.get("backbone")))
    is_finished = recalls is not None or any((folder / name).exists() for name in ANSWERS)
    state, reason = (FINISHED, "") if is_finished else _unfinished_state(folder)
    return RunSummary(
        folder=folder,
        state=state,
        reason=reason,
        time=_time(folder, results),
        kind=kind,
        model=one_line(_model(config, results, kind, folder)),
        backbone=backbone,
        dimension=_count(model.get("reduced_to") or model.get("descriptor_dim") or config.get("fc_output_dim")),
        compression=_text(_section(results, "compression").get("method")),
        variant=variant_text(results),
        dataset=_dataset(config, results),
        protocol=_text(protocol.get("id")),
        deviations=_texts(protocol.get("deviations")) if protocol.get("version") is not None else (),
        recalls=recalls,
        recall1=None if recalls is None or 1 not in recalls else _interval(results, recalls[1]),
        epochs_done=epochs_done,
        epochs=None
        if kind == "eval"
        else _count(_section(config, "recipe").get("epochs_num") or config.get("epochs_num")),
    )


def _answers(folder: Path) -> Mapping[str, Any]:
    """What a run whose queries have no labels says about its model and dataset; empty for other runs."""
    for name in UNMEASURED:
        with suppress(ConfigError, OSError):
            return read_json(folder / name)
    return {}


def _unfinished_state(folder: Path) -> tuple[str, str]:
    """The state of a run without results, and the error that ended it."""
    if is_running(folder, LOCK):
        return RUNNING, ""
    error = _last_error(folder)
    if (folder / LAST_CHECKPOINT).exists():
        return STOPPED, error
    return (FAILED if error else NOT_FINISHED), error


def _last_error(folder: Path) -> str:
    """The error that ended a run, which is the last line of its log; "" if it ended in another way."""
    with suppress(OSError), (folder / LOG).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LINE_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
        found = ERROR_LINE.fullmatch(lines[-1]) if lines else None
        return one_line(found[1]) if found else ""
    return ""


def _kind(config: Mapping[str, Any], folder: Path) -> str:
    if "teacher" in config:
        return "distill"
    if "recipe" in config:
        return "finetune"
    if "epochs_num" in config or (folder / LAST_CHECKPOINT).exists():
        return "finetune" if config.get("resume_model") else "train"
    return "eval"


def _epochs_done(path: Path) -> int:
    """The number of epochs in metrics.jsonl, up to a line that is incomplete."""
    if not path.exists():
        return 0
    if path.stat().st_size > MAX_METRICS_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_METRICS_BYTES >> 20} MB: it is not a file of a run.")
    epochs = set()
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("kind") == "epoch":
                    epochs.add(str(row.get("epoch")))
    return len(epochs)


def _recalls(results: Mapping[str, Any]) -> dict[int, float]:
    """Recalls in percent by N.  Raises ConfigError if there are none."""
    recalls = results.get("recalls")
    if not isinstance(recalls, Mapping) or not recalls:
        raise ConfigError(f"{RESULTS} has no recalls")
    numbers = [n for n in recalls if n.isdecimal() and len(n) < MAX_DIGITS and _is_percentage(recalls[n])]
    found = {int(n): float(recalls[n]) for n in numbers}
    if len(found) != len(recalls):
        raise ConfigError(f"{RESULTS} has recalls that are not percentages")
    return found


def _interval(results: Mapping[str, Any], recall1: float) -> Estimate:
    """R@1 with the interval that the run recorded; runs of earlier versions have that of independent queries."""
    intervals = _section(results, "intervals")
    ends = intervals.get("recalls")
    ends = ends.get("1") if isinstance(ends, Mapping) else None
    if isinstance(ends, list) and len(ends) == 2 and all(map(_is_percentage, ends)):
        few = intervals.get("approximate_recalls")
        is_few = intervals.get("approximate") is True or (isinstance(few, list) and 1 in few)
        return Estimate(recall1, float(ends[0]), float(ends[1]), is_few)
    num_queries = _count(results.get("num_queries")) or 0
    found = wilson(min(num_queries, max(0, round(recall1 * num_queries / 100))), num_queries)
    return Estimate(recall1, found.low, found.high, found.is_approximate)


def _model(config: Mapping[str, Any], results: Mapping[str, Any], kind: str, folder: Path) -> str:
    """What was evaluated, or what training started from."""
    if kind == "eval" and _section(results, "model"):
        return model_name(results, folder)
    source = _text(config.get("resume_model") or config.get("model"))
    return model_name({"model": {"name": source}}, folder) if source else ""


def _dataset(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Name of the test set, or of the folder of the dataset; of a fine-tuning both, as in mine: test/queries."""
    if name := _text(_section(results, "dataset").get("name") or results.get("dataset")):
        return name
    path = next(
        (
            text
            for key in ("test_set_folder", "dataset_folder", "dataset", "photos")
            if (text := _text(config.get(key)))
        ),
        "",
    )
    return ": ".join(filter(None, (Path(path).name, _text(results.get("evaluated_on")))))


def _time(folder: Path, results: Mapping[str, Any]) -> str:
    """When a run started: its folder has the local time as its name; else the time in results.json, which is UTC."""
    for name in (folder.name, folder.parent.name):
        if match := TIME.match(name):
            date, *clock = match.groups()
            return f"{date} {':'.join(clock)}"
    return _text(results.get("started")).replace("T", " ")[:19]


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def _text(value: Any) -> str:
    return one_line(value) if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(filter(None, map(_text, value))) if isinstance(value, list) else ()


def _is_percentage(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
