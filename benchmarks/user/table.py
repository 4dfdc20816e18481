"""Comparison of the results, ratios, and the table.  Pure functions."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.results import aligned
from benchmarks.user.commands import CommandFigures

MIN_COSINE = 0.9999
ROUNDING = 1e-6  # of recalls in percent
HEADS = ("", "wall s", "images/s", "CPU s", "memory MiB", "disk MiB", "wall", "CPU", "memory", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a side computed, for the comparison."""

    recalls: Mapping[int, float]  # percent
    descriptors: np.ndarray  # (R + Q, D), database photos first, both sorted by path


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of one side in one turn."""

    command: CommandFigures
    descriptors_mib: float  # on disk
    other_mib: float  # on disk: pairs, logs, a report


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians of one side, and its figures divided by ours: medians over turns.  Ours has no ratios."""

    side: str
    wall_s: float
    images_per_s: float
    cpu_s: float
    memory_mib: float
    descriptors_mib: float
    other_mib: float
    wall_ratio: float | None = None
    cpu_ratio: float | None = None
    memory_ratio: float | None = None
    disk_ratio: float | None = None  # of the descriptors


def difference(plain: Results, ours: Results, allowed: float = 0.0) -> str | None:
    """What is different, None for equal recalls and a cosine of at least MIN_COSINE for each photo.

    allowed: difference of a recall, in percentage points.
    """
    if plain.descriptors.shape != ours.descriptors.shape:
        return f"descriptors of shape {plain.descriptors.shape} and {ours.descriptors.shape}"
    if (cosine := lowest_cosine(plain, ours)) < MIN_COSINE:
        return f"the descriptors of a photo have a cosine of {cosine:.6f}, less than {MIN_COSINE}"
    # The last digit of a percentage depends on how it was computed.
    if plain.recalls.keys() != ours.recalls.keys() or any(
        abs(plain.recalls[k] - ours.recalls[k]) > allowed + ROUNDING for k in ours.recalls
    ):
        return f"recalls {recalls_text(plain)}, and ours {recalls_text(ours)}"
    return None


def lowest_cosine(plain: Results, ours: Results) -> float:
    """The lowest cosine between two descriptors of the same photo."""
    first, second = plain.descriptors.astype(np.float64), ours.descriptors.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float((np.einsum("nd,nd->n", first, second) / norms).min())


def recalls_text(results: Results) -> str:
    """Recalls in percent, such as 51.67/68.33."""
    return "/".join(f"{value:.2f}" for value in results.recalls.values())


def row_of(side: str, turns: Sequence[Figures], ours: Sequence[Figures] | None, num_photos: int) -> Row:
    """The row of a side.  ours: our figures in the same turns; None for the row of ours."""
    wall_s = statistics.median(turn.command.wall_s for turn in turns)
    ratios = {}
    if ours is not None:
        pairs = list(zip(turns, ours, strict=True))
        ratios = {
            "wall_ratio": statistics.median(a.command.wall_s / b.command.wall_s for a, b in pairs),
            "cpu_ratio": statistics.median(a.command.cpu_s / b.command.cpu_s for a, b in pairs),
            "memory_ratio": statistics.median(a.command.memory_mib / b.command.memory_mib for a, b in pairs),
            "disk_ratio": statistics.median(a.descriptors_mib / b.descriptors_mib for a, b in pairs),
        }
    return Row(
        side=side,
        wall_s=wall_s,
        images_per_s=num_photos / wall_s,
        cpu_s=statistics.median(turn.command.cpu_s for turn in turns),
        memory_mib=statistics.median(turn.command.memory_mib for turn in turns),
        descriptors_mib=statistics.median(turn.descriptors_mib for turn in turns),
        other_mib=statistics.median(turn.other_mib for turn in turns),
        **ratios,
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    return aligned([HEADS, *map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
    ratios = (row.wall_ratio, row.cpu_ratio, row.memory_ratio, row.disk_ratio)
    return (
        row.side,
        f"{row.wall_s:.1f}",
        f"{row.images_per_s:.1f}",
        f"{row.cpu_s:.1f}",
        f"{row.memory_mib:,.0f}",
        f"{row.descriptors_mib:.1f} + {row.other_mib:.1f}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
    )
