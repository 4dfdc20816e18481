"""From measurements to results: ratios, targets, growth, and the table.  Pure functions."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.stage import Growth, Measurement, Report, Row, Stage

MIN_MIB = 0.25  # less is noise of the allocator and has no ratio
MAX_EXPONENT = 1.1
FLOOR_S, FLOOR_MIB = 1e-3, 1.0  # smaller values count as these when growth is fitted, so that noise has no exponent

Turn = tuple[Measurement | None, Measurement]  # (plain, ours)


# --- one row ---------------------------------------------------------------------------------------------------------


def row_of(
    stage: Stage, size: int, turns: Sequence[Turn], targets: Mapping[str, float | bool], findings: Mapping[str, Any]
) -> Row:
    """The row of a stage whose two sides have equal results."""
    ratios = {f"{name}_ratio": _median_ratio(turns, field) for name, field in _FIELDS.items()}
    ours = _medians([ours for _, ours in turns])
    plain = _medians([plain for plain, _ in turns if plain is not None]) if stage.plain is not None else None
    figures = {**ratios, "most_cpu_s": ours["cpu_s"], "most_memory_mib": ours["memory_mib"], **findings}
    return Row(
        stage=stage.name,
        title=stage.title,
        size=size,
        unit=stage.unit,
        turns=len(turns),
        equal=True,
        **ratios,
        target=dict(targets),
        met=all(_meets(name, figures.get(name), target) for name, target in targets.items()),
        plain=plain,
        ours=ours,
        findings=dict(findings),
    )


_FIELDS = {"cpu": "cpu_s", "wall": "wall_s", "memory": "memory_mib"}


def _median_ratio(turns: Sequence[Turn], field: str) -> float | None:
    """Median over turns of plain divided by ours in the same turn; None if a figure is missing or too small."""
    pairs = [(getattr(plain, field), getattr(ours, field)) for plain, ours in turns if plain is not None]
    minimum = MIN_MIB if field == "memory_mib" else 0.0
    if not pairs or any(value is None or value <= minimum for pair in pairs for value in pair):
        return None
    return statistics.median(plain / ours for plain, ours in pairs)


def _medians(measurements: Sequence[Measurement]) -> dict[str, float | None]:
    figures = [measurement.figures() for measurement in measurements]
    return {name: _median(figure[name] for figure in figures) for name in _FIELDS.values()}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _meets(name: str, value: Any, target: float | bool) -> bool:
    if isinstance(target, bool):
        return value is target
    if value is None:
        return False
    return value <= target if name.startswith("most_") else value >= target


# --- growth ----------------------------------------------------------------------------------------------------------


def growth_of(stage: Stage, sizes: Sequence[int], measured: Sequence[Sequence[Measurement]]) -> Growth:
    """Growth of ours.  measured: the turns of each size."""
    cpu_s = [min(turn.cpu_s for turn in turns) for turns in measured]  # disturbances only add time
    memory_mib = [_median(turn.memory_mib for turn in turns) for turns in measured]
    known = [mib for mib in memory_mib if mib is not None]
    time_exponent = exponent(sizes, [max(seconds, FLOOR_S) for seconds in cpu_s])
    memory_exponent = None
    if len(known) == len(sizes):
        memory_exponent = exponent(sizes, [max(mib, FLOOR_MIB) for mib in known])
    return Growth(
        stage=stage.name,
        unit=stage.unit,
        sizes=list(sizes),
        cpu_s=cpu_s,
        memory_mib=memory_mib,
        time_exponent=time_exponent,
        memory_exponent=memory_exponent,
        met=max(time_exponent, memory_exponent or 0.0) <= MAX_EXPONENT,
    )


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent of the power law through the values: slope of a least-squares line on logarithms."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values]).slope


# --- the table -------------------------------------------------------------------------------------------------------

HEADS = ("stage", "size", "turns", "plain s", "ours s", "cpu", "wall", "memory", "target", "met")
GROWTH_HEADS = ("growth of", "sizes", "seconds", "MiB", "time ^", "memory ^", "met")
_SHORT = {"cpu_ratio": "cpu", "wall_ratio": "wall", "memory_ratio": "memory"}


def table(report: Report) -> str:
    """The report as aligned text."""
    parts = []
    if report.rows:
        parts.append(aligned([HEADS, *map(_cells, report.rows)]))
        parts.append(
            "seconds: CPU, medians.  cpu, wall, memory: plain divided by ours, medians over turns.  Results are equal."
        )
    if report.growth:
        parts.append(aligned([GROWTH_HEADS, *map(_growth_cells, report.growth)]))
        parts.append(f"time ^, memory ^: exponent of the growth with size.  Up to {MAX_EXPONENT} counts as linear.")
    parts += [f"left out: {stage}: {reason}" for stage, reason in report.left_out.items()]
    return "\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    ratios = [_ratio(value) for value in (row.cpu_ratio, row.wall_ratio, row.memory_ratio)]
    target = ", ".join(_target(name, value) for name, value in row.target.items())
    size = f"{row.size:,} {row.unit}"
    plain_s = _figure(row.plain["cpu_s"] if row.plain else None)
    return (row.stage, size, str(row.turns), plain_s, _figure(row.ours["cpu_s"]), *ratios, target, _yes(row.met))


def _growth_cells(growth: Growth) -> tuple[str, ...]:
    return (
        growth.stage,
        f"{' '.join(f'{size:,}' for size in growth.sizes)} {growth.unit}",
        " ".join(map(_figure, growth.cpu_s)),
        " ".join(map(_figure, growth.memory_mib)),
        f"{growth.time_exponent:.2f}",
        "-" if growth.memory_exponent is None else f"{growth.memory_exponent:.2f}",
        _yes(growth.met),
    )


def _target(name: str, value: float | bool) -> str:
    if isinstance(value, bool):
        return name.replace("_", " ")
    if name == "most_cpu_s":
        return f"<= {value:g} s"
    if name == "most_memory_mib":
        return f"<= {value:g} MiB"
    return f"{_SHORT.get(name, name)} {value:g}"


def _yes(met: bool) -> str:
    return "yes" if met else "NO"


def _ratio(value: float | None) -> str:
    return (
        "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 20 else f"{value:.2f}"
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
