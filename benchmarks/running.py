"""The benchmark's run: which stages, how often, results compared before anything is told of them."""

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.judging import Turn, growth_of, row_of
from benchmarks.measuring import Memory, import_modules, in_child, measure, measure_fresh
from benchmarks.records import BenchmarkError, Growth, Measurement, Options, Report, Row, Side, Stage
from cosplace.config.knobs import nearest_names
from cosplace.errors import ConfigError

FULL_TURNS, QUICK_TURNS = 5, 2
GROWTH_TURNS = 3
QUICK_GROWTH = (1, 2, 4)  # times the quick size
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "numba", "faiss-cpu", "scikit-learn")

Progress = Callable[[str], None]
"""Called with one line on what is done next."""


def choose_stages(names: Sequence[str], stages: Sequence[Stage]) -> list[Stage]:
    """The stages of these names, in their order on the list; all for no names.  Raises ConfigError for others."""
    known = {stage.name: stage for stage in stages}
    for name in names:
        if name not in known:
            offered = nearest_names(name, known)
            meant = f"did you mean {' or '.join(offered)}?" if offered else f"choose from {', '.join(known)}."
            raise ConfigError(f"Unknown stage '{name}': {meant}")
    return [stage for stage in stages if not names or stage.name in names]


def run_stages(
    stages: Sequence[Stage],
    *,
    options: Options,
    turns: int | None = None,
    growth: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Measure stages, then how ours grows; a stage that fails is told of and does not stop the others.

    turns: of every stage; None takes each stage's own number.  Raises ConfigError for turns below 1.
    """
    if turns is not None and turns < 1:
        raise ConfigError(f"--turns {turns} is too small: use 1 or more, for example {FULL_TURNS}.")
    report = Report()
    runnable = []
    for stage in stages:
        reason = stage.absent()
        if reason is None and options.quick and stage.quick_size is None:
            reason = "takes too long for --quick"
        if reason is not None:
            report.left_out[stage.name] = reason
            continue
        runnable.append(stage)
    for stage in runnable:
        _import(stage)
        try:
            report.rows.append(_measure_stage(stage, options, turns, progress))
        except BenchmarkError as error:
            report.failures.append(str(error))
    for stage in runnable if growth else ():
        try:
            if stage.growth_sizes:
                report.growth.append(_measure_growth(stage, options, turns, progress))
        except BenchmarkError as error:
            report.failures.append(str(error))
    return report


def as_json(report: Report, options: Options) -> dict[str, Any]:
    """The report as JSON holds it, with the machine that it was made on."""
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


def _import(stage: Stage) -> None:
    import_modules(stage.imports)
    import_modules(stage.optional_imports, optional=True)
    if stage.warm is not None:
        stage.warm()


def _measure_stage(stage: Stage, options: Options, turns: int | None, progress: Progress) -> Row:
    size = stage.full_size
    targets: Mapping[str, float | bool] = stage.targets
    if options.quick:
        size = stage.quick_size or size
        targets = stage.targets if stage.quick_targets is None else stage.quick_targets
    num_turns = turns or min(QUICK_TURNS if options.quick else FULL_TURNS, stage.most_turns or FULL_TURNS)
    progress(f"{stage.name}: {stage.title}, {size:,} {stage.unit}, turns: {num_turns}")
    with tempfile.TemporaryDirectory() as folder:
        inputs = in_child(lambda: stage.make_inputs(Path(folder), size, options), f"{stage.name}: making its inputs")
        taken: list[Turn] = []
        for turn in range(num_turns):
            first = turn == 0
            plain = _measure_side(stage, stage.plain, inputs, "the plain side", reveal=first) if stage.plain else None
            ours = _measure_side(stage, stage.ours, inputs, "our side", reveal=first)
            if first and (difference := stage.compare(plain.revealed if plain else None, ours.revealed)) is not None:
                raise BenchmarkError(
                    f"{stage.name}: the two sides have different results, so that no ratio means anything: {difference}"
                )
            # What was compared would otherwise wait in memory for the end.
            taken.append((None if plain is None else replace(plain, revealed=None), replace(ours, revealed=None)))
        findings: Mapping[str, Any] = {}
        if (finding := stage.finding) is not None:
            findings = in_child(lambda: finding(inputs), f"{stage.name}: looking closer")
    return row_of(stage, size, taken, targets, findings)


def _measure_side(stage: Stage, side: Side, inputs: Any, which: str, *, reveal: bool) -> Measurement:
    what = f"{stage.name}: {which}"
    if stage.fresh:
        return measure_fresh(side, inputs, what, reveal=reveal)
    memory: Memory = "anonymous" if stage.memory == "anonymous" else "peak" if stage.memory == "peak" else None
    return measure(side, inputs, what, memory=memory, reveal=reveal)


def _measure_growth(stage: Stage, options: Options, turns: int | None, progress: Progress) -> Growth:
    sizes = [(stage.quick_size or 1) * times for times in QUICK_GROWTH] if options.quick else stage.growth_sizes
    progress(f"{stage.name}: growth of ours, {' '.join(f'{size:,}' for size in sizes)} {stage.unit}")
    measured = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            inputs = in_child(
                lambda size=size, folder=folder: stage.make_inputs(Path(folder), size, options),
                f"{stage.name}: making its inputs",
            )
            measured.append(
                [
                    _measure_side(stage, stage.ours, inputs, "our side", reveal=False)
                    for _ in range(turns or min(GROWTH_TURNS, stage.most_turns or GROWTH_TURNS))
                ]
            )
    return growth_of(stage, sizes, measured)
