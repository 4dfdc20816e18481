"""What `cosplace validate` found, as one HTML page: problems, a map, histograms, classes and the command to run."""

import itertools
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.photos.paths import printable
from cosplace.progress import format_count
from cosplace.report.charts import Axis, Chart, histogram, linear_axis
from cosplace.report.colors import GROUP_COLORS, OTHER_COLOR
from cosplace.report.maps import MapImage, on_one_plane, parts_map
from cosplace.report.page import LegendEntry
from cosplace.report.render import render
from cosplace.retrieval.folder_report import Part, num_positives
from cosplace.retrieval.recall import RADIUS_M
from cosplace.retrieval.validation import DatasetReport
from cosplace.storage import write_text
from cosplace.training.recommendation import ClassCounts, Recommendation

PART_COLORS = {"train": OTHER_COLOR, ".": GROUP_COLORS[0]}  # and of the others, in the order of the dataset:
OTHER_PART_COLORS = (GROUP_COLORS[0], GROUP_COLORS[3], GROUP_COLORS[2], GROUP_COLORS[1], *GROUP_COLORS[4:])
HEADING_BINS, NUM_BINS, MAX_POSITIVES = 24, 24, 40
MAX_TIME_TICKS = 5
FIRST_TIME, LAST_TIME = -6e10, 2e11  # seconds since 1970: years 69 to 8307
_YEAR, _MONTH, _DAY, _CLOCK = slice(0, 4), slice(0, 7), slice(5, 10), slice(11, 16)  # of 2026-01-31T12:00:00
TIME_STEPS = (
    *((step, "m", _CLOCK) for step in (1, 5, 15, 30, 60, 120, 180, 360)), (720, "m", slice(5, 16)),
    *((step, "D", _DAY) for step in (1, 2, 5, 10)), *((step, "M", _MONTH) for step in (1, 3, 6)),
    *((step, "Y", _YEAR) for step in (1, 2, 5, 10, 20, 50, 100, 500, 1000, 5000)),
)  # fmt: skip
"""Distances of ticks of a time axis: number, unit of NumPy, and the part of the text that is shown."""
COMPASS = ((0, "N"), (90, "E"), (180, "S"), (270, "W"), (360, "N"))


def write_validation_page(
    path: Path,
    result: DatasetReport,
    classes: Sequence[ClassCounts],
    recommendation: Recommendation | None,
    obstacle: str = "",
) -> None:
    """Write the page atomically.  obstacle: why there is no recommendation.  Raises StorageError."""
    write_text(path, validation_page(result, classes, recommendation, obstacle))


def validation_page(
    result: DatasetReport, classes: Sequence[ClassCounts], recommendation: Recommendation | None, obstacle: str = ""
) -> str:
    """The page as text."""
    problems = [problem for report in result.folders for problem in report.problems]
    num_photos = sum(report.num_photos for report in result.folders)
    num_errors = sum(problem.is_error for problem in problems)
    num_warnings = len(problems) - num_errors
    located = sum(int(part.is_located.sum()) for part in result.parts)
    return render(
        "validation.html",
        title=f"Dataset {printable(str(result.folder))}",
        figures=[
            (f"{num_photos:,}", "photo" if num_photos == 1 else "photos"),
            *[(f"{result.num_unused:,}", "more in no split")] * (result.num_unused > 0),
            (f"{100 * located / max(1, num_photos):.4g}%", "with a position"),
            *[(f"{num_errors:,}", "kind of error" if num_errors == 1 else "kinds of errors")] * (num_errors > 0),
            (f"{num_warnings:,}", "kind of warning" if num_warnings == 1 else "kinds of warnings"),
        ],
        commands=recommendation.commands if recommendation else (),
        reasons=recommendation.reasons if recommendation else [],
        obstacle="" if recommendation else obstacle,
        folders=[
            {"name": _part_title(part, result), "report": part.report, "facts": part.report.fact_lines()}
            for part in result.parts
        ],
        num_unused=result.num_unused,
        map=_map(result),
        charts=_charts(result, classes, recommendation),
        classes=classes,
        least=list(classes[0].num_at_least) if classes else [],
        chosen=_chosen(recommendation),
    )


def _part_title(part: Part, result: DatasetReport) -> str:
    return printable(result.folder.resolve().name) if part.name == "." else printable(part.name)


def _chosen(recommendation: Recommendation | None) -> tuple[int, int] | None:
    """M and alpha of the recommended command."""
    settings = recommendation.settings if recommendation else {}
    return (settings["M"], settings["alpha"]) if settings else None


# --- the map ---------------------------------------------------------------------------------------------------------


def _map(result: DatasetReport) -> dict[str, Any] | None:
    """The map of all parts with positions on Earth, or of all names with plain east and north."""
    dimensions = {part.points.shape[1] for part in result.parts if part.is_located.any()}
    if not dimensions:
        return None
    parts = [part for part in result.parts if part.points.shape[1] == max(dimensions) and part.is_located.any()]
    colors = _colors(parts)
    planes = on_one_plane(*(part.points[part.is_located] for part in parts))
    drawn: MapImage = parts_map(planes, colors, [part.is_queries for part in parts])
    legend = [
        LegendEntry(color=color, shape="disc", text=f"{_part_title(part, result)}: {_num_drawn(len(plane), part)}")
        for part, plane, color in zip(parts, planes, colors, strict=True)
    ]
    num_missing = sum(len(part.images) for part in result.parts) - sum(map(len, planes))
    return {"map": drawn, "legend": legend, "num_missing": num_missing}


def _num_drawn(number: int, part: Part) -> str:
    """How many photos of a part the map shows."""
    whole = format_count(len(part.images), "photo")
    return whole if number == len(part.images) else f"{number:,} of {whole}"


def _colors(parts: Sequence[Part]) -> list[str]:
    others = iter(OTHER_PART_COLORS * (1 + len(parts) // len(OTHER_PART_COLORS)))
    return [PART_COLORS.get(part.name) or next(others) for part in parts]


# --- histograms ------------------------------------------------------------------------------------------------------


def _charts(
    result: DatasetReport, classes: Sequence[ClassCounts], recommendation: Recommendation | None
) -> list[tuple[Chart, str]]:
    """Histograms with their captions; without those that have no values."""
    chosen = _chosen(recommendation)
    row = next((row for row in classes if (row.M, row.alpha) == chosen), classes[0] if classes else None)
    found = [_class_chart(row) if row is not None else None]
    found += [_heading_chart(result), _time_chart(result), _positives_chart(result), _size_chart(result)]
    return [one for one in found if one is not None]


def _class_chart(row: ClassCounts) -> tuple[Chart, str] | None:
    if not len(row.sizes):
        return None
    largest = int(max(10, np.quantile(row.sizes, 0.99)))
    counted = np.minimum(row.sizes, largest + 1)
    step = max(1, -(-(largest + 1) // NUM_BINS))
    edges = np.arange(1, largest + 2 + step, step) - 0.5
    chart = histogram(
        edges, np.histogram(counted, edges)[0], _whole_names(edges, int(row.sizes.max())),
        _whole_axis("photos in a class", float(edges[-1])), "classes",
        description="Number of classes by their number of photos",
    )  # fmt: skip
    more = " The last bar also holds larger classes." if row.sizes.max() > largest else ""
    counts = f"{format_count(int(row.sizes.sum()), 'photo')} in {format_count(len(row.sizes), 'class', 'classes')}"
    return chart, f"Photos per class for M {row.M} m and alpha {row.alpha} degrees: {counts}.{more}"


def _whole_axis(title: str, high: float) -> Axis:
    """An axis of whole numbers from 0, whose first bar may start below."""
    ticks = [tick for tick in linear_axis(title, 0, high).ticks if tick[0] <= high and tick[0] == int(tick[0])]
    return Axis(title=title, low=-0.5, high=high, ticks=ticks)


def _whole_names(edges: np.ndarray, largest: int) -> list[str]:
    """The whole numbers of each bar.  largest: of all numbers; the last bar also has those above its edge."""
    ends = [(math.ceil(low), math.floor(high)) for low, high in itertools.pairwise(edges.tolist())]
    names = [f"{first}" if first == last else f"{first} to {last}" for first, last in ends]
    return names if largest <= ends[-1][1] else [*names[:-1], f"{ends[-1][0]} or more"]


def _heading_chart(result: DatasetReport) -> tuple[Chart, str] | None:
    headings = np.concatenate([part.headings for part in result.parts])
    headings = headings[~np.isnan(headings)]
    if not len(headings):
        return None
    edges = np.linspace(0, 360, HEADING_BINS + 1)
    x = Axis(title="heading, degrees clockwise from north", low=0, high=360,
             ticks=[(degrees, f"{degrees} {name}") for degrees, name in COMPASS])  # fmt: skip
    names = [f"{low:g}° to {high:g}°" for low, high in itertools.pairwise(edges.tolist())]
    counts = np.histogram(headings, edges)[0]
    chart = histogram(edges, counts, names, x, "photos", description="Number of photos by heading")
    text = f"Headings{_known(len(headings), result)}."
    if len(headings) > 1 and not headings.any():
        text = "Headings: all are exactly 0, which counts as missing."
    return chart, text


def _time_chart(result: DatasetReport) -> tuple[Chart, str] | None:
    seconds = np.concatenate([part.times.seconds for part in result.parts])
    seconds = seconds[~np.isnan(seconds)]
    if len(seconds) < 2 or np.ptp(seconds) == 0:
        return None
    low, high = float(seconds.min()), float(seconds.max())
    edges = np.linspace(low, high, NUM_BINS + 1)
    x = Axis(title="time taken (UTC)", low=low, high=high, ticks=time_ticks(low, high))
    texts = [_time_text(edge)[: 10 if high - low > NUM_BINS * 86_400 else None] for edge in edges.tolist()]
    names = [f"{start} to {end}" for start, end in itertools.pairwise(texts)]
    counts = np.histogram(seconds, edges)[0]
    chart = histogram(edges, counts, names, x, "photos", description="Number of photos by time")
    first, last = (_time_text(mark) for mark in (low, high))
    return chart, f"When the photos were taken: {first} to {last} UTC{_known(len(seconds), result)}."


def _known(number: int, result: DatasetReport) -> str:
    """How many photos a histogram is of, where that is not all."""
    num_photos = sum(len(part.images) for part in result.parts)
    return "" if number == num_photos else f", {number:,} of {format_count(num_photos, 'photo')}"


def time_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round dates or times within low ... high, in seconds since 1970, with their texts; at most MAX_TIME_TICKS."""
    if low < FIRST_TIME or high > LAST_TIME:  # of broken clocks
        return []
    for step, unit, length in TIME_STEPS:
        start = np.datetime64(int(low), "s").astype(f"datetime64[{unit}]").astype(np.int64)
        start -= (start + 1970 * (unit == "Y")) % step
        marks = np.arange(start, start + step * (MAX_TIME_TICKS + 2), step)
        times = marks.astype(f"datetime64[{unit}]").astype("datetime64[s]").astype(np.int64)
        inside = (times >= low) & (times <= high)
        if inside.sum() <= MAX_TIME_TICKS and times[-1] > high:
            texts = times.astype("datetime64[s]").astype(str)
            return [(float(times[row]), texts[row][length]) for row in np.flatnonzero(inside)]
    return []


def _time_text(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):  # no calendar has it
        return "?"


def _positives_chart(result: DatasetReport) -> tuple[Chart, str] | None:
    counts = [num_positives(*pair) for pair in result.query_sets()]
    if not counts:
        return None
    positives = np.concatenate(counts)
    most = int(positives.max(initial=0))
    largest = min(MAX_POSITIVES, max(10, most))
    step = max(1, -(-largest // NUM_BINS))
    edges = np.arange(0, largest + 1 + step, step) - 0.5
    chart = histogram(
        edges, np.histogram(np.minimum(positives, largest), edges)[0], _whole_names(edges, most),
        _whole_axis(f"database photos within {RADIUS_M:g} m", float(edges[-1])), "queries",
        description="Number of queries by their number of positives",
    )  # fmt: skip
    alone = int((positives == 0).sum())
    text = f"{alone:,} of {len(positives):,} queries are without positives and count as misses." if alone else ""
    return chart, f"Positives of each query. {text or 'All queries have positives.'}"


def _size_chart(result: DatasetReport) -> tuple[Chart, str] | None:
    opened = [part.contents.sizes[part.contents.opened] for part in result.parts if part.contents is not None]
    if not opened or not sum(map(len, opened)):
        return None
    shorter = np.concatenate(opened).min(axis=1)
    low, high = float(shorter.min()), float(shorter.max())
    edges = np.linspace(low * 0.9, high * 1.1 + 1, NUM_BINS + 1)
    x = linear_axis("shorter side, pixels", float(edges[0]), float(edges[-1]), num_ticks=4)
    names = [f"{low:.0f} to {high:.0f}" for low, high in itertools.pairwise(edges.tolist())]
    counts = np.histogram(shorter, edges)[0]
    chart = histogram(edges, counts, names, x, "photos", description="Number of photos by size")
    return chart, "Shorter side of the photos."
