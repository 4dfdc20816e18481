"""Measure a list of stages: results are compared first, then time and memory are measured in turns."""

import importlib.metadata
import logging
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.measurement import Memory, import_modules, in_child, measure, measure_fresh
from benchmarks.results import Turn, growth_of, row_of
from benchmarks.stage import BenchmarkError, Growth, Measurement, Options, Report, Row, Side, Stage
from cosplace.config.names import similar_names
from cosplace.errors import ConfigError

FULL_TURNS, QUICK_TURNS = 5, 2
GROWTH_TURNS = 3
QUICK_GROWTH = (1, 2, 4)  # times the quick size
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "numba", "faiss-cpu", "scikit-learn")

log = logging.getLogger("cosplace.benchmarks")


def choose_stages(names: Sequence[str], stages: Sequence[Stage]) -> list[Stage]:
    """Stages with these names in the order of the list, or all for no names.  Raises ConfigError for unknown names."""
    known = {stage.name: stage for stage in stages}
    for name in names:
        if name not in known:
            similar = similar_names(name, known)
            advice = f"Did you mean {' or '.join(similar)}?" if similar else f"Choose from {', '.join(known)}."
            raise ConfigError(f"Unknown stage '{name}'. {advice}")
    return [stage for stage in stages if not names or stage.name in names]


def run_stages(
    stages: Sequence[Stage],
    *,
    options: Options,
    turns: int | None = None,
    growth: bool = False,
) -> Report:
    """Measure stages, then the growth of ours.  A stage that fails is reported; the other stages still run.

    turns: of every stage; None uses the number of each stage.  Raises ConfigError for turns below 1.
    """
    if turns is not None and turns < 1:
        raise ConfigError(f"--turns must be at least 1, got {turns}. Use for example {FULL_TURNS}.")
    report = Report()
    runnable = []
    for stage in stages:
        reason = stage.unavailable()
        if reason is None and options.quick and stage.quick_size is None:
            reason = "takes too long for --quick"
        if reason is not None:
            report.left_out[stage.name] = reason
            continue
        runnable.append(stage)
    for stage in runnable:
        _import_and_warm_up(stage)
        try:
            report.rows.append(_measure_stage(stage, options, turns))
        except BenchmarkError as error:
            report.failures.append(str(error))
    for stage in runnable if growth else ():
        try:
            if stage.growth_sizes:
                report.growth.append(_measure_growth(stage, options, turns))
        except BenchmarkError as error:
            report.failures.append(str(error))
    return report


def as_json(report: Report, options: Options) -> dict[str, Any]:
    """The report as JSON, with the machine."""
    return {
        "rows": [asdict(row) for row in report.rows],
        "growth": [asdict(growth) for growth in report.growth],
        "left_out": report.left_out,
        "failures": report.failures,
        "quick": options.quick,
        "machine": _machine(),
    }


def _machine() -> dict[str, Any]:
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            libraries[name] = None
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        **libraries,
    }


# --- one stage -------------------------------------------------------------------------------------------------------


def _import_and_warm_up(stage: Stage) -> None:
    import_modules(stage.imports)
    import_modules(stage.optional_imports, optional=True)
    if stage.warm_up is not None:
        stage.warm_up()


def _measure_stage(stage: Stage, options: Options, turns: int | None) -> Row:
    size = stage.full_size
    targets: Mapping[str, float | bool] = stage.targets
    if options.quick:
        size = stage.quick_size or size
        targets = stage.targets if stage.quick_targets is None else stage.quick_targets
    num_turns = turns or min(QUICK_TURNS if options.quick else FULL_TURNS, stage.max_turns or FULL_TURNS)
    log.info("%s: %s, %s %s, turns: %d", stage.name, stage.title, f"{size:,}", stage.unit, num_turns)
    with tempfile.TemporaryDirectory() as folder:
        inputs = in_child(lambda: stage.make_inputs(Path(folder), size, options), f"{stage.name}: creating the inputs")
        measured: list[Turn] = []
        for turn in range(num_turns):
            first = turn == 0
            plain = _measure_side(stage, stage.plain, inputs, "the plain side", first) if stage.plain else None
            ours = _measure_side(stage, stage.ours, inputs, "our side", first)
            if first and (difference := stage.compare(plain.output if plain else None, ours.output)) is not None:
                raise BenchmarkError(f"{stage.name}: the results of the two sides differ: {difference}")
            # Without the outputs, which would fill the memory until the end.
            measured.append((None if plain is None else replace(plain, output=None), replace(ours, output=None)))
        findings: Mapping[str, Any] = {}
        if (find := stage.find) is not None:
            findings = in_child(lambda: find(inputs), f"{stage.name}: further findings")
    return row_of(stage, size, measured, targets, findings)


def _measure_side(stage: Stage, side: Side, inputs: Any, side_name: str, with_output: bool) -> Measurement:
    name = f"{stage.name}: {side_name}"
    if stage.fresh:
        return measure_fresh(side, inputs, name, with_output=with_output)
    memory: Memory = "anonymous" if stage.memory == "anonymous" else "peak" if stage.memory == "peak" else None
    return measure(side, inputs, name, memory=memory, with_output=with_output)


def _measure_growth(stage: Stage, options: Options, turns: int | None) -> Growth:
    sizes = [(stage.quick_size or 1) * times for times in QUICK_GROWTH] if options.quick else stage.growth_sizes
    log.info("%s: growth, %s %s", stage.name, " ".join(f"{size:,}" for size in sizes), stage.unit)
    measured = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            inputs = in_child(
                lambda size=size, folder=folder: stage.make_inputs(Path(folder), size, options),
                f"{stage.name}: creating the inputs",
            )
            measured.append(
                [
                    _measure_side(stage, stage.ours, inputs, "our side", False)
                    for _ in range(turns or min(GROWTH_TURNS, stage.max_turns or GROWTH_TURNS))
                ]
            )
    return growth_of(stage, sizes, measured)
