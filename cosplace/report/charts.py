"""Charts: the data that `templates/charts.js` draws with uPlot in the browser, and the same numbers as a table.

Colors, widths and dashes are in the stylesheet.  Pure: numbers in, the data of a chart out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from markupsafe import Markup

from cosplace.assessment.intervals import Estimate
from cosplace.photos.paths import writable
from cosplace.report.colors import GROUP_COLORS
from cosplace.report.words import as_json

NUM_COLORS, NUM_DASHES = 6, 5  # in style.css; together they tell 30 curves apart
MAX_ROWS = 25  # of the table below a chart; all bars of a histogram
MAX_TIPS = 100  # values at the pointer
SMALLEST_DOT, LARGEST_DOT = 2.5, 11.0  # radius in CSS pixels

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: its title, range and ticks."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve, or dots of different sizes, or bars."""

    xs: np.ndarray  # (n,) finite, rising
    ys: np.ndarray  # (n,) finite
    color: int = 0  # number of the color and of the dashes
    label: str = ""  # in the legend and the table; a series without label is in neither
    # strong: thick, drawn last; faint: thin and pale background; reference: a dashed gray line.
    style: Literal["line", "strong", "faint", "reference", "bar"] = "line"
    shares: np.ndarray | None = None  # (n,) from 0 to 1: draw dots with these areas instead of a curve
    lows: np.ndarray | None = None  # (n,) ends of the interval at each point: a band, or for dots a line
    highs: np.ndarray | None = None
    are_approximate: np.ndarray | None = None  # (n,) bool: which of these intervals are; None if none is

    @property
    def classes(self) -> str:
        """Its classes in style.css."""
        return f"s{self.color % NUM_COLORS} d{self.color % NUM_DASHES} {self.style}"

    def estimates(self) -> dict[float, Estimate]:
        """The value at each x, with its interval."""
        unknown = np.full(len(self.xs), math.nan)
        lows, highs = (unknown if ends is None else ends for ends in (self.lows, self.highs))
        marks = np.zeros(len(self.xs), bool) if self.are_approximate is None else self.are_approximate
        columns = (self.xs, self.ys, lows, highs, marks)
        points = zip(*(column.tolist() for column in columns), strict=True)
        return {x: Estimate(*values) for x, *values in points}


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A part of the strip along the lower edge: one epoch in the color of its group."""

    start: float
    end: float
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """The numbers of a chart as text, for the pointer and the table."""

    columns: Sequence[str]
    rows: Sequence[tuple[float, Sequence[str]]]  # (x, a text for each column), by rising x
    kept: Sequence[float] = ()  # x of rows that the table has even if there are too many


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart for the macro `chart_figure`."""

    description: str  # for screen readers
    series: Sequence[Series]  # for the legend, from which the script also takes their styles
    values: Values
    data: Markup  # for the script, as JSON

    @property
    def table(self) -> list[Sequence[str]]:
        """Rows of the values, without their x."""
        shown = {at for at, _ in evenly(self.values.rows, MAX_ROWS)} | set(self.values.kept)
        return [texts for at, texts in self.values.rows if at in shown]


def linear_axis(title: str, low: float, high: float, unit: str = "", num_ticks: int = 5) -> Axis:
    """Return an axis with round ticks that covers low … high."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = round_step((high - low) / num_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(number * step, f"{number * step:.{decimals}f}{unit}") for number in range(first, last + 1)]
    return Axis(title=title, low=first * step, high=last * step, ticks=ticks)


def percent_axis(title: str, lowest: float = 0.0) -> Axis:
    """Return an axis from 0 to 100 %, or of its upper part if the lowest value is high."""
    low = min(math.floor(lowest / 10) * 10, 90) if lowest >= 60 else 0
    step = 20 if low == 0 else 10 if low < 90 else 2
    return Axis(title=title, low=low, high=100, ticks=[(tick, str(tick)) for tick in range(low, 101, step)])


def round_step(minimum: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below a value."""
    power = 10.0 ** math.floor(math.log10(minimum))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= minimum * (1 - 1e-9))


def evenly(rows: Sequence[T], number: int) -> Sequence[T]:
    """At most `number` rows, evenly chosen, with the first and the last."""
    if len(rows) <= number:
        return rows
    return [rows[row] for row in np.linspace(0, len(rows) - 1, number).round().astype(np.int64).tolist()]


def percent(estimate: Estimate) -> str:
    """A percentage, with its interval if it has one, and whether this is approximate.

    >>> percent(Estimate(97.9, 91.9, 99.5, is_approximate=True))
    '97.9 [91.9, 99.5]% (approximate)'
    """
    return estimate.marked_text(unit="%") if math.isfinite(estimate.low) else f"{estimate.value:.1f}%"


def values_of(
    series: Sequence[Series],
    x_name: str,
    x_text: Callable[[float], str] = "{:g}".format,
    y_text: Callable[[Estimate], str] = percent,
) -> Values:
    """The values of the labeled series, a row for each x of any of them."""
    labeled = [one for one in series if one.label]
    found = [one.estimates() for one in labeled]
    xs = sorted({x for estimates in found for x in estimates})
    return Values(
        columns=[x_name, *(one.label for one in labeled)],
        rows=[(x, [x_text(x), *(y_text(one[x]) if x in one else "" for one in found)]) for x in xs],
    )


def chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    values: Values,
    *,
    description: str,
    bands: Sequence[Band] = (),
    threshold: tuple[float, str] | None = None,
) -> Chart:
    """Return a chart of series.  values: at least one row.  threshold: a value on x to mark, and its label."""
    tips = evenly(values.rows, MAX_TIPS)
    if threshold is not None:
        series = [*series, Series(xs=np.full(2, threshold[0]), ys=np.array([y.low, y.high]), style="reference")]
    data = {
        "x": _axis_data(x),
        "y": _axis_data(y),
        "series": [_series_data(one, x, y) for one in series],
        "strip": [(band.start, band.end, GROUP_COLORS[band.group % len(GROUP_COLORS)]) for band in bands],
        "threshold": threshold,
        "columns": [writable(name) for name in values.columns],
        "rows": list(zip(_rounded([at for at, _ in tips], x), [texts for _, texts in tips], strict=True)),
    }
    return Chart(description=description, series=series, values=values, data=Markup(as_json(data)))


def histogram(
    edges: np.ndarray, counts: np.ndarray, names: Sequence[str], x: Axis, y_title: str, *, description: str
) -> Chart:
    """Return a chart of bars.  edges: (n + 1,) at equal distances, on x.  counts: (n,).  names: texts of the bars."""
    y = linear_axis(y_title, 0, max(1.0, float(counts.max(initial=0))))
    bars = Series(xs=(edges[1:] + edges[:-1]) / 2, ys=counts, label=y_title, style="bar")
    rows = [
        (at, (name, f"{count:,}")) for at, name, count in zip(bars.xs.tolist(), names, counts.tolist(), strict=True)
    ]
    return chart([bars], x, y, Values(columns=[x.title, y_title], rows=rows), description=description)


def _axis_data(axis: Axis) -> dict[str, Any]:
    places, texts = zip(*axis.ticks, strict=True) if axis.ticks else ((), ())
    return {
        "title": axis.title,
        "low": axis.low,
        "high": axis.high,
        "logarithmic": axis.logarithmic,
        "ticks": list(zip(_rounded(places, axis), texts, strict=True)),
    }


def _series_data(series: Series, x: Axis, y: Axis) -> dict[str, Any]:
    data: dict[str, Any] = {"xs": _rounded(series.xs, x), "ys": _rounded(series.ys, y)}
    if series.lows is not None and series.highs is not None:
        data |= {"lows": _rounded(series.lows, y), "highs": _rounded(series.highs, y)}
    if series.shares is not None:
        radii = SMALLEST_DOT + (LARGEST_DOT - SMALLEST_DOT) * np.sqrt(series.shares)
        data["radii"] = radii.round(2).tolist()
    return data


def _rounded(values: Sequence[float] | np.ndarray, axis: Axis) -> list[float]:
    """Values to a ten-thousandth of an axis or less, as no screen shows more; to four digits on a logarithmic one."""
    if axis.logarithmic:
        numbers = [float(f"{value:.4g}") for value in values]
    else:
        numbers = np.round(np.asarray(values, np.float64), 4 - math.floor(math.log10(axis.high - axis.low))).tolist()
    return [int(number) if number == int(number) else number for number in numbers]
