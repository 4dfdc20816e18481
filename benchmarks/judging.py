"""Measurements in, judgements out: ratios, targets, how fast ours grows, and the table.  Pure."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.records import Growth, Measurement, Report, Row, Stage

LEAST_MIB = 0.25  # less than that is the allocator's noise: there is no ratio to it
MOST_EXPONENT = 1.1
FLOOR_S, FLOOR_MIB = 1e-3, 1.0  # of growth: what is smaller counts as this much, so that noise has no exponent

Turn = tuple[Measurement | None, Measurement]  # (plain, ours)


# --- one row ---------------------------------------------------------------------------------------------------------


def row_of(
    stage: Stage, size: int, turns: Sequence[Turn], targets: Mapping[str, float | bool], findings: Mapping[str, Any]
) -> Row:
    """The row of a stage whose sides were found equal."""
    ratios = {f"{name}_ratio": _median_ratio(turns, field) for name, field in _FIELDS.items()}
    ours = _medians([ours for _, ours in turns])
    plain = _medians([plain for plain, _ in turns if plain is not None]) if stage.plain is not None else None
    found = {**ratios, "most_cpu_s": ours["cpu_s"], "most_memory_mib": ours["memory_mib"], **findings}
    return Row(
        stage=stage.name,
        title=stage.title,
        size=size,
        unit=stage.unit,
        turns=len(turns),
        equal=True,
        **ratios,
        target=dict(targets),
        met=all(_meets(name, found.get(name), wanted) for name, wanted in targets.items()),
        plain=plain,
        ours=ours,
        findings=dict(findings),
    )


_FIELDS = {"cpu": "cpu_s", "wall": "wall_s", "memory": "memory_mib"}


def _median_ratio(turns: Sequence[Turn], field: str) -> float | None:
    """The median over turns of plain's figure divided by ours of the same turn; None where one means nothing."""
    pairs = [(getattr(plain, field), getattr(ours, field)) for plain, ours in turns if plain is not None]
    least = LEAST_MIB if field == "memory_mib" else 0.0
    if not pairs or any(value is None or value <= least for pair in pairs for value in pair):
        return None
    return statistics.median(plain / ours for plain, ours in pairs)


def _medians(measurements: Sequence[Measurement]) -> dict[str, float | None]:
    figures = [measurement.figures() for measurement in measurements]
    return {name: _median(figure[name] for figure in figures) for name in _FIELDS.values()}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _meets(name: str, value: Any, wanted: float | bool) -> bool:
    if isinstance(wanted, bool):
        return value is wanted
    if value is None:
        return False
    return value <= wanted if name.startswith("most_") else value >= wanted


# --- growth ----------------------------------------------------------------------------------------------------------


def growth_of(stage: Stage, sizes: Sequence[int], measured: Sequence[Sequence[Measurement]]) -> Growth:
    """How ours grows; measured: for each size, its turns."""
    cpu_s = [min(turn.cpu_s for turn in turns) for turns in measured]  # what disturbs a turn only adds to it
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
        met=max(time_exponent, memory_exponent or 0.0) <= MOST_EXPONENT,
    )


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power of the size that the values grow with: the slope of least squares on logarithms."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values]).slope


# --- the table -------------------------------------------------------------------------------------------------------

HEADS = ("stage", "size", "turns", "plain s", "ours s", "cpu", "wall", "memory", "target", "met")
GROWTH_HEADS = ("growth of", "sizes", "seconds", "MiB", "time ^", "memory ^", "met")
_SHORT = {"cpu_ratio": "cpu", "wall_ratio": "wall", "memory_ratio": "memory"}


def table(report: Report) -> str:
    """The report as aligned text."""
    parts = []
    if report.rows:
        parts.append(_aligned([HEADS, *map(_cells, report.rows)]))
        parts.append(
            "seconds: CPU, medians.  cpu, wall, memory: plain divided by ours, medians over turns; results are equal."
        )
    if report.growth:
        parts.append(_aligned([GROWTH_HEADS, *map(_growth_cells, report.growth)]))
        parts.append(f"time ^, memory ^: the power of the size that they grow with; up to {MOST_EXPONENT} is linear.")
    parts += [f"left out: {stage}: {reason}" for stage, reason in report.left_out.items()]
    return "\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    ratios = [_ratio(value) for value in (row.cpu_ratio, row.wall_ratio, row.memory_ratio)]
    target = ", ".join(_target(name, wanted) for name, wanted in row.target.items())
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


def _target(name: str, wanted: float | bool) -> str:
    if isinstance(wanted, bool):
        return name.replace("_", " ")
    if name == "most_cpu_s":
        return f"<= {wanted:g} s"
    if name == "most_memory_mib":
        return f"<= {wanted:g} MiB"
    return f"{_SHORT.get(name, name)} {wanted:g}"


def _yes(met: bool) -> str:
    return "yes" if met else "NO"


def _ratio(value: float | None) -> str:
    return (
        "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 20 else f"{value:.2f}"
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
