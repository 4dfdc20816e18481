"""Charts as inline SVG: text stays text, and colors follow the light or dark variables of the page's stylesheet.

This is our own drawing code because the SVG of a plotting library has one fixed set of colors, and its text, stored as
outlines, is larger.  Pure: numbers in, SVG out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup

from cosplace.report.colors import GROUP_COLORS
from cosplace.report.words import shorten

WIDTH, HEIGHT = 460, 320  # units of the drawing; small, so that 13-unit text stays readable at phone width
LEFT, TOP, BOTTOM = 50, 16, 46  # margins
LABEL_GAP = 16  # smallest distance between the baselines of two labels
LABEL_ROOM = 26  # a curve that is nearer to the x axis would run through a label there
NUM_COLORS = 6  # colors in style.css; markers differ too
MAX_LABEL = 23  # characters: trained EfficientNet_B0
CHARACTER_WIDTH = 7.9  # units, a generous mean
SMALLEST_DOT, LARGEST_DOT = 2.5, 11.0  # radius in units


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: its title, range and ticks."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def fractions(self, values: np.ndarray) -> np.ndarray:
        """Positions of values along the axis: 0 at its start, 1 at its end."""
        values = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log(values), math.log(low), math.log(high)
        return (values - low) / (high - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve, with a label at its end, or dots of different sizes."""

    xs: np.ndarray  # (n,) finite, rising
    ys: np.ndarray  # (n,) finite
    color: int = 0  # number of the color and of the marker's shape
    label: str = ""
    # strong: thick, drawn last; faint: thin and pale background, without label; reference: a dashed gray line.
    # dashed: a pattern for each color, for curves without markers.
    style: Literal["line", "strong", "dashed", "faint", "reference"] = "line"
    markers: bool = True
    shares: np.ndarray | None = None  # (n,) from 0 to 1: draw dots with these areas instead of a curve
    lows: np.ndarray | None = None  # (n,) ends of the interval at each point: a band, or for dots a line
    highs: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A part of the strip along the lower edge: one epoch in the color of its group."""

    start: float
    end: float
    group: int


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


def chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    description: str,
    bands: Sequence[Band] = (),
    threshold: tuple[float, str] | None = None,
    tips: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draw series as SVG.

    description: for screen readers.  threshold: a value on x to mark, and its label.  tips: values on x, rising, with
    the text that the page's script shows while the pointer is near them.
    """
    labeled = [one for one in series if one.label and one.style != "faint"]
    longest = max((len(shorten(one.label, MAX_LABEL)) for one in labeled), default=0)
    plot = _Plot(x=x, y=y, right=WIDTH - (round(CHARACTER_WIDTH * longest) + 20 if longest else 22))
    parts = [*_grid(plot), *(_band(plot, band) for band in bands), *(_interval_band(plot, one) for one in series)]
    if threshold is not None:
        value, text = threshold
        at = float(plot.across(np.array([value]))[0])
        floor = HEIGHT - BOTTOM
        is_low = any(floor - np.interp(at, plot.across(one.xs), plot.down(one.ys)) < LABEL_ROOM for one in series)
        parts.append(_element("path", class_="threshold", d=f"M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"))
        parts.append(_element("text", text, class_="note", x=at + 5, y=TOP + 14 if is_low else floor - 8))
    order = ("faint", "reference", "dashed", "line", "strong")  # the last is drawn above the others
    for one in sorted(series, key=lambda one: order.index(one.style)):
        parts += _curve(plot, one) if one.shares is None else _dots(plot, one, one.shares)
    parts += _end_labels(plot, labeled)
    parts += _tips(plot, tips)
    return _element("svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=description)


def histogram(edges: np.ndarray, counts: np.ndarray, x: Axis, y_title: str, *, description: str) -> Markup:
    """Draw bars as SVG.  edges: (n + 1,) rising, on x.  counts: (n,)."""
    plot = _Plot(x=x, y=linear_axis(y_title, 0, max(1.0, float(counts.max(initial=0)))), right=WIDTH - 22)
    lefts, rights = plot.across(edges[:-1]).tolist(), plot.across(edges[1:]).tolist()
    floor, tops = HEIGHT - BOTTOM, plot.down(counts).tolist()
    bars = [
        _element(
            "rect", _element("title", f"{count:,}"), class_="s0 bar", x=left + 0.5, y=top,
            width=max(right - left - 1, 0.5), height=floor - top,
        )
        for left, right, top, count in zip(lefts, rights, tops, counts.tolist(), strict=True)
        if count
    ]  # fmt: skip
    parts = [*_grid(plot), *bars]
    return _element("svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=description)


def _element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an SVG element.  Every text and attribute value that is not yet Markup is escaped here.

    Attribute names: `class_` for class, `text_anchor` for text-anchor.  Floats get one decimal.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(
            name.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else str(value)
        )
        for name, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(tag, written, Markup("").join(children))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plot:
    """The rectangle of a chart that holds its curves."""

    x: Axis
    y: Axis
    right: float

    def across(self, values: np.ndarray) -> np.ndarray:
        return LEFT + self.x.fractions(values) * (self.right - LEFT)

    def down(self, values: np.ndarray) -> np.ndarray:
        return HEIGHT - BOTTOM - self.y.fractions(values) * (HEIGHT - BOTTOM - TOP)


def _grid(plot: _Plot) -> list[Markup]:
    parts = []
    floor = HEIGHT - BOTTOM
    for value, text in plot.y.ticks:
        at = float(plot.down(np.array([value]))[0])
        parts.append(_element("path", class_="grid", d=f"M{LEFT} {at:.1f}H{plot.right:.1f}"))
        parts.append(_element("text", text, class_="tick", x=LEFT - 7, y=at + 4, text_anchor="end"))
    for value, text in plot.x.ticks:
        at = float(plot.across(np.array([value]))[0])
        parts.append(_element("path", class_="axis", d=f"M{at:.1f} {floor}v5"))
        parts.append(_element("text", text, class_="tick", x=at, y=floor + 18, text_anchor="middle"))
    parts.append(_element("path", class_="axis", d=f"M{LEFT} {floor}H{plot.right:.1f}"))
    middle = (LEFT + plot.right) / 2
    parts.append(_element("text", plot.x.title, class_="title", x=middle, y=HEIGHT - 8, text_anchor="middle"))
    turned = f"translate(12 {(TOP + floor) / 2:.1f}) rotate(-90)"
    parts.append(_element("text", plot.y.title, class_="title", transform=turned, text_anchor="middle"))
    return parts


def _band(plot: _Plot, band: Band) -> Markup:
    start, end = plot.across(np.array([band.start, band.end])).tolist()
    color = GROUP_COLORS[band.group % len(GROUP_COLORS)]
    width = max(end - start, 0.5)
    rectangle = _element("rect", class_="band", fill=color, x=start, y=HEIGHT - BOTTOM - 7, width=width, height=7)
    return _element("g", _element("title", f"group {band.group}"), rectangle)


def _interval_band(plot: _Plot, series: Series) -> Markup:
    """Draw the area between the ends of the intervals of a curve."""
    if series.lows is None or series.highs is None or series.shares is not None or len(series.xs) < 2:
        return Markup("")
    across, lows, highs = plot.across(series.xs), plot.down(series.lows), plot.down(series.highs)
    corners = zip(np.append(across, across[::-1]).tolist(), np.append(highs, lows[::-1]).tolist(), strict=True)
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    return _element("path", class_=f"s{series.color % NUM_COLORS} range", d=f"M{line}z")


def _tips(plot: _Plot, tips: Sequence[tuple[float, str]]) -> list[Markup]:
    """Draw invisible columns that have a text each; a column reaches halfway to the next one."""
    if not tips:
        return []
    centers = plot.across(np.array([x for x, _ in tips]))
    borders = np.concatenate([[LEFT], (centers[1:] + centers[:-1]) / 2, [plot.right]])
    height = HEIGHT - BOTTOM - TOP
    return [
        _element(
            "rect", class_="tip", x=left, y=TOP, width=max(right - left, 0.5), height=height,
            data_x=center, data_tip=text,
        )
        for left, right, center, (_, text) in zip(
            borders[:-1].tolist(), borders[1:].tolist(), centers.tolist(), tips, strict=True
        )
    ]  # fmt: skip


def _curve(plot: _Plot, series: Series) -> list[Markup]:
    points = list(zip(plot.across(series.xs).tolist(), plot.down(series.ys).tolist(), strict=True))
    color = series.color % NUM_COLORS
    line = "L".join(f"{across:.1f} {down:.1f}" for across, down in points)
    parts = [_element("path", class_=f"s{color} {series.style}", d=f"M{line}")] if len(points) > 1 else []
    if series.markers and series.style in ("line", "strong"):
        parts += [_marker(color, across, down, series.style == "strong") for across, down in points]
    return parts


def _marker(color: int, x: float, y: float, strong: bool) -> Markup:
    """Draw a marker.  Its shape tells curves apart where colors do not."""
    r = 4.6 if strong else 3.7
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r:.1f} 0a{r} {r} 0 1 0 {-2 * r:.1f} 0z",  # disc
        f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z",  # square
        f"M{x:.1f} {y - r * 1.2:.1f}l{r * 1.15:.1f} {2 * r:.1f}h{-2.3 * r:.1f}z",  # triangle
        f"M{x:.1f} {y - r * 1.3:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}"
        f"l{-1.3 * r:.1f} {-1.3 * r:.1f}z",  # diamond
        f"M{x:.1f} {y + r * 1.2:.1f}l{r * 1.15:.1f} {-2 * r:.1f}h{-2.3 * r:.1f}z",  # triangle upside down
        f"M{x - r:.1f} {y - r / 2:.1f}h{2 * r:.1f}v{r:.1f}h{-2 * r:.1f}z",  # bar
    )
    return _element("path", class_=f"s{color} marker", d=shapes[color])


def _dots(plot: _Plot, series: Series, shares: np.ndarray) -> list[Markup]:
    centers = zip(plot.across(series.xs).tolist(), plot.down(series.ys).tolist(), strict=True)
    radii = (SMALLEST_DOT + (LARGEST_DOT - SMALLEST_DOT) * np.sqrt(shares)).tolist()
    color = series.color % NUM_COLORS
    dots = [
        _element("circle", class_=f"s{color} dot", cx=across, cy=down, r=radius)
        for (across, down), radius in zip(centers, radii, strict=True)
    ]
    if series.lows is None or series.highs is None:
        return dots
    ends = zip(
        plot.across(series.xs).tolist(), plot.down(series.lows).tolist(), plot.down(series.highs).tolist(), strict=True
    )
    lines = [_element("path", class_=f"s{color} whisker", d=f"M{x:.1f} {low:.1f}V{high:.1f}") for x, low, high in ends]
    return [*lines, *dots]


def _end_labels(plot: _Plot, series: Sequence[Series]) -> list[Markup]:
    """Draw the label of each curve next to its last point, moved apart where curves end together."""
    if not series:
        return []
    ends = np.array([plot.down(one.ys[-1:])[0] for one in series])
    places = spread(ends, LABEL_GAP, TOP, HEIGHT - BOTTOM - 2)
    parts = []
    for one, end, place in zip(series, ends.tolist(), places.tolist(), strict=True):
        last = float(plot.across(one.xs[-1:])[0])
        start = plot.right + 12
        if abs(place - end) > 3:
            parts.append(_element("path", class_="leader", d=f"M{last + 6:.1f} {end:.1f}L{start - 2:.1f} {place:.1f}"))
        name = f"label s{one.color % NUM_COLORS} {one.style}"
        full = _element("title", one.label)  # a tooltip with the whole label
        parts.append(_element("text", shorten(one.label, MAX_LABEL), full, class_=name, x=start, y=place + 4.5))
    return parts


def spread(places: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Return places at least `gap` apart, moved as little as needed, inside low … high where they all fit."""
    order = np.argsort(places, kind="stable")
    moved = np.asarray(places, np.float64)[order]
    moved = np.maximum(moved, low)
    for number in range(1, len(moved)):
        moved[number] = max(moved[number], moved[number - 1] + gap)
    if len(moved) and moved[-1] > high:
        moved[-1] = high
        for number in range(len(moved) - 2, -1, -1):
            moved[number] = min(moved[number], moved[number + 1] - gap)
    result = np.empty_like(moved)
    result[order] = moved
    return result
