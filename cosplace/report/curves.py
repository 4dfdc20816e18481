"""Charts of recalls, training loss and validation recalls.  Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cosplace.assessment.intervals import Estimate
from cosplace.report.charts import (
    Axis,
    Band,
    Chart,
    Series,
    Values,
    chart,
    linear_axis,
    percent,
    percent_axis,
    values_of,
)
from cosplace.report.data import RecallRow

MAX_CURVES = 10  # in one chart
MAX_POINTS = 400  # of one curve
NUM_MEANS = 60  # points of the smoothed loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One finished epoch in metrics.jsonl.  A missing value is None or empty."""

    number: int  # from 0
    group: int | None
    loss: float | None
    recalls: Mapping[int, float]
    seconds: float | None
    images_per_second: float | None


def recall_values(rows: Sequence[RecallRow]) -> list[int]:
    """Return every N for which some row has a Recall@N, rising."""
    return sorted({k for row in rows for k in row.recalls})


def rows_in_chart(rows: Sequence[RecallRow], highlight: str | None) -> list[RecallRow]:
    """Return up to MAX_CURVES rows to draw, in their order: the highlighted row and the first others."""
    drawable = [row for row in rows if any(math.isfinite(recall) for recall in row.recalls.values())]
    highlighted = [row for row in drawable if row.name == highlight]
    others = [row for row in drawable if row.name != highlight]
    chosen = {id(row) for row in (highlighted + others)[:MAX_CURVES]}
    return [row for row in drawable if id(row) in chosen]


def recall_chart(rows: Sequence[RecallRow], highlight: str | None) -> Chart | None:
    """Chart of Recall@N over N, one curve per row; None without recalls."""
    rows = rows_in_chart(rows, highlight)
    if not rows:
        return None
    ks = recall_values(rows)
    other_colors = iter(range(1, len(rows) + 1))  # color 0 is for the highlighted row
    series = []
    for row in rows:
        points = sorted((k, recall) for k, recall in row.recalls.items() if math.isfinite(recall))
        xs, ys = (np.array(column, np.float64) for column in zip(*points, strict=True))
        known = all(k in row.intervals for k, _ in points)
        lows, highs, marks = (
            np.array([getattr(row.intervals[k], part) for k, _ in points]) if known else None
            for part in ("low", "high", "is_approximate")
        )
        curve = Series(label=row.name, xs=xs, ys=ys, lows=lows, highs=highs, are_approximate=marks)
        if row.name == highlight:
            series.append(replace(curve, style="strong"))
        else:
            series.append(replace(curve, color=next(other_colors)))
    # Ratios of N matter more than differences.  A single N is drawn in the middle.
    low, high = (ks[0], ks[-1]) if len(ks) > 1 else (ks[0] / 2, ks[0] * 2)
    ticks = [(k, str(k)) for k in _readable_ticks(ks)]
    x = Axis(title="N (top-N predictions)", low=low, high=high, ticks=ticks, logarithmic=True)
    y = percent_axis("Recall@N, % of queries", _lowest(series))
    return chart(series, x, y, values_of(series, "N"), description="Recall@N of each row")


def _readable_ticks(ks: Sequence[int]) -> list[int]:
    """Return values whose labels do not touch on a logarithmic axis."""
    chosen: list[int] = []
    smallest_ratio = (ks[-1] / ks[0]) ** (1 / 14) if len(ks) > 1 else 1
    for k in ks:
        if not chosen or k >= chosen[-1] * smallest_ratio:
            chosen.append(k)
    return chosen


def _lowest(series: Sequence[Series]) -> float:
    return min(float((one.ys if one.lows is None else one.lows).min()) for one in series)


# --- training --------------------------------------------------------------------------------------------------------


def read_epochs(metrics: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """Read the finished epochs from the rows of metrics.jsonl, in order.  If one ran twice, the last run counts."""
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
    """Read (epochs trained, loss) from the loss rows, both (n,).  The rows of an epoch are evenly spread over it."""
    by_epoch: dict[int, dict[float, float]] = {}
    for row in metrics:
        epoch, step, loss = (_finite(row.get(key)) for key in ("epoch", "step", "loss"))
        if row.get("kind") == "loss" and epoch is not None and loss is not None:
            losses = by_epoch.setdefault(int(epoch), {})
            losses[len(losses) if step is None else step] = loss  # if a step ran twice, the last run counts
    xs, ys = [], []
    for epoch in sorted(by_epoch):
        losses = by_epoch[epoch]
        xs += [epoch + (place + 1) / len(losses) for place in range(len(losses))]
        ys += [losses[step] for step in sorted(losses)]
    return np.array(xs, np.float64), np.array(ys, np.float64)


def _finite(value: object) -> float | None:
    """Return a finite number as float, and None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _local_means(xs: np.ndarray, ys: np.ndarray, num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a curve to at most `num_points` points, each the mean of points next to each other."""
    if len(xs) <= num_points:
        return xs, ys
    starts = np.linspace(0, len(xs), num_points, endpoint=False).astype(np.int64)
    sizes = np.diff(np.append(starts, len(xs)))
    return np.add.reduceat(xs, starts) / sizes, np.add.reduceat(ys, starts) / sizes


def loss_chart(metrics: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Chart of the loss over the epochs trained, with the groups of the epochs on its edge; None without losses."""
    epochs = read_epochs(metrics)
    xs, ys = read_losses(metrics)
    means = [(epoch.number + 1, epoch.loss) for epoch in epochs if epoch.loss is not None]
    if not len(xs):
        if not means:
            return None
        xs, ys = (np.array(column, np.float64) for column in zip(*means, strict=True))
    all_xs, all_ys = _local_means(xs, ys, MAX_POINTS)
    mean_xs, mean_ys = _local_means(xs, ys, NUM_MEANS)
    series = [Series(label="training loss", xs=mean_xs, ys=mean_ys, style="strong")]
    if len(all_xs) > len(mean_xs):
        series.append(Series(xs=all_xs, ys=all_ys, style="faint"))
    last = max(float(xs.max()), float(epochs[-1].number + 1 if epochs else 0))
    y = linear_axis("training loss", min(0.0, float(all_ys.min())), float(all_ys.max()))
    bands = _bands(epochs)
    values = _epoch_values(series, bands, lambda estimate: f"{estimate.value:.4g}")
    return chart(series, _epoch_axis(last), y, values, description="Training loss over epochs", bands=bands)


def validation_chart(metrics: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Chart of the validation recalls after each epoch; None without any."""
    epochs = [epoch for epoch in read_epochs(metrics) if epoch.recalls]
    if not epochs:
        return None
    series = []
    for number, k in enumerate(sorted({k for epoch in epochs for k in epoch.recalls})[:MAX_CURVES]):
        points = [(epoch.number + 1, epoch.recalls[k]) for epoch in epochs if k in epoch.recalls]
        xs, ys = (np.array(column, np.float64) for column in zip(*points, strict=True))
        style = "strong" if number == 0 else "line"
        series.append(Series(label=f"R@{k}", xs=xs, ys=ys, color=number, style=style))
    bands = _bands(epochs)
    return chart(
        series,
        _epoch_axis(float(epochs[-1].number + 1)),
        percent_axis("validation recall, %", _lowest(series)),
        _epoch_values(series, bands),
        description="Validation recalls over epochs",
        bands=bands,
    )


def _epoch_values(series: Sequence[Series], bands: Sequence[Band], text: Callable[[Estimate], str] = percent) -> Values:
    """The values of series over the epochs trained, with the group of each epoch if there are several."""
    values = values_of(series, "epochs trained", "{:.4g}".format, text)
    if not bands:
        return values
    groups = {band.end: str(band.group) for band in bands}
    rows = [(x, [*texts, groups.get(math.ceil(x), "")]) for x, texts in values.rows]
    return Values(columns=[*values.columns, "group"], rows=rows)


def _epoch_axis(last: float) -> Axis:
    last = max(1, math.ceil(last))
    step = max(1, math.ceil(last / 8))
    step = next(nice for nice in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if nice >= step)
    ticks = [(tick, str(tick)) for tick in range(0, last + 1, step)]
    return Axis(title="epochs trained", low=0, high=last, ticks=ticks)


def _bands(epochs: Sequence[Epoch]) -> list[Band]:
    """Return one band per epoch, or none if all epochs trained the same group."""
    bands = [
        Band(start=epoch.number, end=epoch.number + 1, group=epoch.group) for epoch in epochs if epoch.group is not None
    ]
    return bands if len({band.group for band in bands}) > 1 else []
