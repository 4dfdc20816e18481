"""The curves of a report: recalls, loss, validation, distances.  Pure: rows and arrays in, SVG out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosplace.report.charts import Axis, Band, Line, line_chart, linear_axis
from cosplace.report.contents import RecallRow
from cosplace.retrieval.evaluation import Evaluation

MAX_ROWS = 10  # curves in one chart
MAX_POINTS = 400  # of one curve
SMOOTHED_POINTS = 60
DISTANCE_TICKS_M = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What metrics.jsonl says about one finished epoch; what it leaves out is None or empty."""

    number: int  # from 0
    group: int | None
    loss: float | None
    recalls: Mapping[int, float]
    seconds: float | None
    images_per_second: float | None


def recall_values(rows: Sequence[RecallRow]) -> list[int]:
    """All N that any row has a Recall@N for, rising."""
    return sorted({k for row in rows for k in row.recalls})


def rows_in_chart(rows: Sequence[RecallRow], highlight: str | None) -> list[RecallRow]:
    """Return the rows that a chart has room for: ours, then the first others, in their order."""
    drawable = [row for row in rows if any(math.isfinite(recall) for recall in row.recalls.values())]
    ours = [row for row in drawable if row.name == highlight]
    others = [row for row in drawable if row.name != highlight]
    kept = {id(row) for row in (ours + others)[:MAX_ROWS]}
    return [row for row in drawable if id(row) in kept]


def recall_chart(rows: Sequence[RecallRow], highlight: str | None) -> str:
    """Recall@N over N, one curve per row."""
    rows = rows_in_chart(rows, highlight)
    ks = recall_values(rows)
    spare = iter(range(1, len(rows) + 1))  # series 0 is ours
    lines = []
    for row in rows:
        points = sorted((k, recall) for k, recall in row.recalls.items() if math.isfinite(recall))
        xs, ys = (np.array(column, np.float64) for column in zip(*points, strict=True))
        ours = row.name == highlight
        lines.append(Line(label=row.name, xs=xs, ys=ys, color=0 if ours else next(spare), strong=ours))
    # Ratios of N matter more than differences; a lone N stands in the middle.
    low, high = (ks[0], ks[-1]) if len(ks) > 1 else (ks[0] / 2, ks[0] * 2)
    x = Axis(
        title="N, predictions looked at", low=low, high=high, ticks=[(k, str(k)) for k in _apart(ks)], logarithmic=True
    )
    return line_chart(lines, x, _percent_axis("Recall@N, % of queries", lines), name="Recall at N of each row")


def _apart(ks: Sequence[int]) -> list[int]:
    """Keep values whose numbers do not touch on a logarithmic axis."""
    kept: list[int] = []
    nearest = (ks[-1] / ks[0]) ** (1 / 14) if len(ks) > 1 else 1
    for k in ks:
        if not kept or k >= kept[-1] * nearest:
            kept.append(k)
    return kept


def _percent_axis(title: str, lines: Sequence[Line]) -> Axis:
    """0 to 100 %, or its upper part where all values are high."""
    lowest = min(float(line.ys.min()) for line in lines)
    low = math.floor(lowest / 10) * 10 if lowest >= 60 else 0
    step = 20 if low == 0 else 10 if low < 90 else 2
    return Axis(
        title=title, low=min(low, 90), high=100, ticks=[(tick, f"{tick}") for tick in range(min(low, 90), 101, step)]
    )


# --- training --------------------------------------------------------------------------------------------------------


def read_epochs(metrics: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """Return the finished epochs among the rows of metrics.jsonl, in order; of an epoch that ran twice, the later."""
    epochs: dict[int, Epoch] = {}
    for row in metrics:
        number = _finite(row.get("epoch"))
        if row.get("kind") != "epoch" or number is None:
            continue
        recalls = {int(k): _finite(value) for k, value in (row.get("recalls") or {}).items()}
        group = _finite(row.get("group"))
        epochs[int(number)] = Epoch(
            number=int(number),
            group=None if group is None else int(group),
            loss=_finite(row.get("loss")),
            recalls={k: recall for k, recall in recalls.items() if recall is not None},
            seconds=_finite(row.get("seconds")),
            images_per_second=_finite(row.get("images_per_second")),
        )
    return [epochs[number] for number in sorted(epochs)]


def read_losses(metrics: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(epochs trained, loss) of each loss row, both (n,); an epoch's rows lie evenly spread over it."""
    by_epoch: dict[int, dict[float, float]] = {}
    for row in metrics:
        epoch, step, loss = (_finite(row.get(key)) for key in ("epoch", "step", "loss"))
        if row.get("kind") == "loss" and epoch is not None and loss is not None:
            losses = by_epoch.setdefault(int(epoch), {})
            losses[len(losses) if step is None else step] = loss  # a step that ran twice: the later
    xs, ys = [], []
    for epoch in sorted(by_epoch):
        losses = by_epoch[epoch]
        xs += [epoch + (place + 1) / len(losses) for place in range(len(losses))]
        ys += [losses[step] for step in sorted(losses)]
    return np.array(xs, np.float64), np.array(ys, np.float64)


def _finite(value: object) -> float | None:
    """Return a number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _binned(xs: np.ndarray, ys: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `number` points, each the mean of neighbours."""
    if len(xs) <= number:
        return xs, ys
    starts = np.linspace(0, len(xs), number, endpoint=False).astype(np.int64)
    sizes = np.diff(np.append(starts, len(xs)))
    return np.add.reduceat(xs, starts) / sizes, np.add.reduceat(ys, starts) / sizes


def loss_chart(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw the loss over the epochs trained, and each epoch's group along the lower edge; None without losses."""
    epochs = read_epochs(metrics)
    xs, ys = read_losses(metrics)
    means = [(epoch.number + 1, epoch.loss) for epoch in epochs if epoch.loss is not None]
    if not len(xs):
        if not means:
            return None
        xs, ys = (np.array(column, np.float64) for column in zip(*means, strict=True))
    faint_xs, faint_ys = _binned(xs, ys, MAX_POINTS)
    line_xs, line_ys = _binned(xs, ys, SMOOTHED_POINTS)
    markers = len(line_xs) < 12
    lines = [Line(label="", xs=line_xs, ys=line_ys, color=0, strong=True, markers=markers)]
    if len(faint_xs) > len(line_xs):
        lines.append(Line(label="", xs=faint_xs, ys=faint_ys, color=0, faint=True))
    last = max(float(xs.max()), float(epochs[-1].number + 1 if epochs else 0))
    y = linear_axis("training loss", min(0.0, float(faint_ys.min())), float(faint_ys.max()))
    return line_chart(lines, _epoch_axis(last), y, name="Training loss over epochs", bands=_bands(epochs))


def validation_chart(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw the validation recalls after each epoch; None without any."""
    epochs = [epoch for epoch in read_epochs(metrics) if epoch.recalls]
    if not epochs:
        return None
    lines = []
    for number, k in enumerate(sorted({k for epoch in epochs for k in epoch.recalls})[:MAX_ROWS]):
        points = [(epoch.number + 1, epoch.recalls[k]) for epoch in epochs if k in epoch.recalls]
        xs, ys = (np.array(column, np.float64) for column in zip(*points, strict=True))
        lines.append(Line(label=f"R@{k}", xs=xs, ys=ys, color=number, strong=number == 0, markers=len(xs) <= 20))
    axis = _epoch_axis(float(epochs[-1].number + 1))
    y = _percent_axis("validation recall, %", lines)
    return line_chart(lines, axis, y, name="Validation recalls over epochs", bands=_bands(epochs))


def _epoch_axis(last: float) -> Axis:
    last = max(1, math.ceil(last))
    step = max(1, math.ceil(last / 8))
    step = next(nice for nice in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if nice >= step)
    ticks = [(tick, str(tick)) for tick in range(0, last + 1, step)]
    return Axis(title="epochs trained", low=0, high=last, ticks=ticks)


def _bands(epochs: Sequence[Epoch]) -> list[Band]:
    """Return the stretch of each epoch; nothing where all epochs trained one group."""
    bands = [
        Band(start=epoch.number, end=epoch.number + 1, group=epoch.group) for epoch in epochs if epoch.group is not None
    ]
    return bands if len({band.group for band in bands}) > 1 else []


# --- distances -------------------------------------------------------------------------------------------------------


def distance_chart(evaluation: Evaluation) -> str | None:
    """How many queries have their first prediction within a distance; None when nothing was predicted."""
    first = evaluation.distances_m[:, 0]
    known = np.sort(first[np.isfinite(first)])
    if not len(known):
        return None
    highest = max(float(known[-1]), evaluation.positive_dist_threshold * 4, 100.0)
    highest = next((tick for tick in DISTANCE_TICKS_M if tick >= highest), highest)
    within = np.geomspace(1, highest, 160)
    shares = 100 * np.searchsorted(known, within, side="right") / len(first)
    ticks = [(tick, f"{tick} m" if tick < 1000 else f"{tick // 1000} km") for tick in DISTANCE_TICKS_M]
    x = Axis(
        title="distance of the first prediction, at most",
        low=1,
        high=highest,
        ticks=[tick for tick in ticks if tick[0] <= highest],
        logarithmic=True,
    )
    y = Axis(title="% of queries", low=0, high=100, ticks=[(tick, str(tick)) for tick in range(0, 101, 20)])
    radius = evaluation.positive_dist_threshold
    return line_chart(
        [Line(label="", xs=within, ys=shares, color=0, strong=True, markers=False)],
        x,
        y,
        name="Share of queries by the distance of their first prediction",
        threshold=(radius, f"right: {radius:g} m") if radius >= 1 else None,
    )
