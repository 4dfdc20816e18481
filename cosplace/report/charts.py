"""Curves as inline SVG: text stays text, colours follow the page's light or dark variables.  Pure: numbers in, SVG out.

Own drawing rather than a plotting library: its SVG would fix one set of colours, and text as outlines weighs more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cosplace.report.contents import escape, shortened
from cosplace.report.style import GROUP_COLORS

WIDTH, HEIGHT = 460, 320  # units of the drawing; small, so that 13-unit text stays readable at phone width
LEFT, TOP, BOTTOM = 50, 16, 46
LABEL_GAP = 15  # least distance between the baselines of two labels
NUM_SERIES = 6  # colours of style.py; markers differ too
MAX_LABEL = 23  # characters: trained EfficientNet_B0


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: what it means, where it runs from and to, and its ticks."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def fractions(self, values: np.ndarray) -> np.ndarray:
        """Where values lie along the axis, 0 at its start and 1 at its end."""
        values = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log(values), math.log(low), math.log(high)
        return (values - low) / (high - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve with the label at its end."""

    label: str
    xs: np.ndarray  # (n,) finite, rising
    ys: np.ndarray  # (n,) finite
    color: int  # number of the series' colour and marker
    strong: bool = False
    faint: bool = False  # background: thin, pale, neither markers nor label
    markers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A stretch of the strip along the lower edge: one epoch in the colour of its group."""

    start: float
    end: float
    group: int


def linear_axis(title: str, low: float, high: float, unit: str = "", num_ticks: int = 5) -> Axis:
    """Return an axis with round ticks that covers low … high."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = nice_step((high - low) / num_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(number * step, f"{number * step:.{decimals}f}{unit}") for number in range(first, last + 1)]
    return Axis(title=title, low=first * step, high=last * step, ticks=ticks)


def nice_step(at_least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below a value."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least * (1 - 1e-9))


def line_chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    name: str,
    bands: Sequence[Band] = (),
    threshold: tuple[float, str] | None = None,
) -> str:
    """Draw some curves as SVG.  name: what a screen reader says; threshold: a value on x, marked, with its label."""
    labelled = [line for line in lines if line.label and not line.faint]
    longest = max((len(shortened(line.label, MAX_LABEL)) for line in labelled), default=0)
    frame = _Frame(x=x, y=y, right=WIDTH - (round(7.9 * longest) + 20 if longest else 22))
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">']
    parts += _grid(frame)
    parts += [_band(frame, band) for band in bands]
    if threshold is not None:
        at = float(frame.across(np.array([threshold[0]]))[0])
        parts.append(f'<path class="threshold" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="note" x="{at + 5:.1f}" y="{HEIGHT - BOTTOM - 8}">{escape(threshold[1])}</text>')
    # The strong curve is drawn last, above the others.
    for line in sorted(lines, key=lambda line: (not line.faint, line.strong)):
        parts += _curve(frame, line)
    parts += _end_labels(frame, labelled)
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    x: Axis
    y: Axis
    right: float

    def across(self, values: np.ndarray) -> np.ndarray:
        return LEFT + self.x.fractions(values) * (self.right - LEFT)

    def down(self, values: np.ndarray) -> np.ndarray:
        return HEIGHT - BOTTOM - self.y.fractions(values) * (HEIGHT - BOTTOM - TOP)


def _grid(frame: _Frame) -> list[str]:
    parts = []
    floor = HEIGHT - BOTTOM
    for value, text in frame.y.ticks:
        at = float(frame.down(np.array([value]))[0])
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{frame.right:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in frame.x.ticks:
        at = float(frame.across(np.array([value]))[0])
        parts.append(f'<path class="axis" d="M{at:.1f} {floor}v5"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{floor + 18}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{frame.right:.1f}"/>')
    middle = (LEFT + frame.right) / 2
    parts.append(
        f'<text class="title" x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(frame.x.title)}</text>'
    )
    center = (TOP + floor) / 2
    parts.append(
        f'<text class="title" transform="translate(12 {center:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(frame.y.title)}</text>"
    )
    return parts


def _band(frame: _Frame, band: Band) -> str:
    start, end = frame.across(np.array([band.start, band.end]))
    top = HEIGHT - BOTTOM - 7
    color = band.group % len(GROUP_COLORS)
    rect = f'<rect class="g{color}" x="{start:.1f}" y="{top}" width="{max(end - start, 0.5):.1f}" height="7"/>'
    return f"<g><title>group {band.group}</title>{rect}</g>"


def _curve(frame: _Frame, line: Line) -> list[str]:
    points = [
        f"{across:.1f} {down:.1f}" for across, down in zip(frame.across(line.xs), frame.down(line.ys), strict=True)
    ]
    kind = "faint" if line.faint else "strong" if line.strong else "line"
    series = line.color % NUM_SERIES
    parts = [f'<path class="s{series} {kind}" d="M{"L".join(points)}"/>'] if len(points) > 1 else []
    if line.markers and not line.faint:
        parts += [_marker(series, float(p.split()[0]), float(p.split()[1]), line.strong) for p in points]
    return parts


def _marker(series: int, x: float, y: float, strong: bool) -> str:
    """Draw a small sign; its shape tells series apart where colours do not."""
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
    return f'<path class="s{series} marker" d="{shapes[series]}"/>'


def _end_labels(frame: _Frame, lines: Sequence[Line]) -> list[str]:
    """Each curve's name beside its last point, moved apart where curves end together."""
    if not lines:
        return []
    ends = np.array([frame.down(line.ys[-1:])[0] for line in lines])
    places = spread(ends, LABEL_GAP, TOP, HEIGHT - BOTTOM - 2)
    parts = []
    for line, end, place in zip(lines, ends, places, strict=True):
        last = float(frame.across(line.xs[-1:])[0])
        start = frame.right + 12
        if abs(place - end) > 3:
            parts.append(f'<path class="leader" d="M{last + 6:.1f} {end:.1f}L{start - 2:.1f} {place:.1f}"/>')
        weight = " bold" if line.strong else ""
        parts.append(
            f'<text class="label s{line.color % NUM_SERIES}{weight}" x="{start:.1f}" y="{place + 4.5:.1f}">'
            f"{escape(shortened(line.label, MAX_LABEL))}<title>{escape(line.label)}</title></text>"
        )
    return parts


def spread(places: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Places moved as little as needed to lie `gap` apart, inside low … high where there is room."""
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
