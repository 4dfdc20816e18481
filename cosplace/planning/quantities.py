"""Numbers that know the formula they come from, so that a plan can show how each figure was computed.  Pure.

sheet = Sheet()
sheet.enter("photos", "photos", 1e9, "", "given", "--photos")
sheet.enter("photo_kb", "size of a photo", 39, "KB", "measured", "SF-XS, 2,834 photos")
sheet.compute("photos_gb", "photos", sheet["photos"] * sheet["photo_kb"] / 1e6, "GB")
sheet.figures["photos_gb"].detail    # "photos x photo_kb / 1e+06", with the signs × and ÷
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

ORIGINS = ("given", "default", "measured", "computed")
"""Where a figure comes from: a flag, the default of a flag, a measurement, or a formula of other figures."""

SUM, PRODUCT, NAME = 0, 1, 2  # how tightly the parts of a formula are bound


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its formula."""

    value: float
    formula: str
    level: int = NAME
    names: tuple[str, ...] = ()  # of the figures in the formula

    def __add__(self, other: "Quantity | float") -> "Quantity":
        return _join(self, "+", other, SUM, lambda a, b: a + b)

    def __sub__(self, other: "Quantity | float") -> "Quantity":
        return _join(self, "-", other, SUM, lambda a, b: a - b)

    def __mul__(self, other: "Quantity | float") -> "Quantity":
        return _join(self, "×", other, PRODUCT, lambda a, b: a * b)

    def __truediv__(self, other: "Quantity | float") -> "Quantity":
        return _join(self, "÷", other, PRODUCT, lambda a, b: a / b)

    def __rtruediv__(self, other: float) -> "Quantity":
        return _as_quantity(other) / self


def at_least(least: float, one: Quantity) -> Quantity:
    """The larger of a number and a quantity."""
    return Quantity(max(least, one.value), f"max({_text(least)}, {one.formula})", NAME, one.names)


def smallest(*several: Quantity) -> Quantity:
    """The smallest of some quantities."""
    formula = f"min({', '.join(one.formula for one in several)})"
    return Quantity(min(one.value for one in several), formula, NAME, _all_names(*several))


def clipped(low: float, one: Quantity, high: float) -> Quantity:
    """A quantity, but at least `low` and at most `high`."""
    formula = f"min({_text(high)}, max({_text(low)}, {one.formula}))"
    return Quantity(min(high, max(low, one.value)), formula, NAME, one.names)


def rounded_up(one: Quantity) -> Quantity:
    """The next whole number."""
    # Errors of floating point must not add one: 3 machines for 3.0000000000000004.
    nearest = round(one.value)
    value = nearest if math.isclose(one.value, nearest, rel_tol=1e-12) else math.ceil(one.value)
    return Quantity(value, f"ceil({one.formula})", NAME, one.names)


def rounded_down(one: Quantity) -> Quantity:
    """The whole number below."""
    return Quantity(math.floor(one.value), f"floor({one.formula})", NAME, one.names)


def _as_quantity(value: "Quantity | float") -> Quantity:
    return value if isinstance(value, Quantity) else Quantity(value, _text(value))


def _text(number: float) -> str:
    return f"{number:,.15g}" if abs(number) < 1e7 else f"{number:g}".replace("e+0", "e").replace("e+", "e")


def _join(
    left: Quantity, sign: str, right: Quantity | float, level: int, apply: Callable[[float, float], float]
) -> Quantity:
    right = _as_quantity(right)
    before = f"({left.formula})" if left.level < level else left.formula
    # The right side of - and ÷ keeps its parentheses: a - (b + c), a ÷ (b × c).
    is_loose = right.level < level or (sign in "-÷" and right.level == level)
    after = f"({right.formula})" if is_loose else right.formula
    return Quantity(apply(left.value, right.value), f"{before} {sign} {after}", level, _all_names(left, right))


def _all_names(*several: Quantity) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in several for name in one.names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of a plan."""

    name: str  # in formulas and in JSON
    title: str
    value: float
    unit: str
    origin: str  # one of ORIGINS
    detail: str  # the flag, the source of the measurement, or the formula
    inputs: tuple[str, ...] = ()  # names of the figures in the formula


@dataclass(slots=True)
class Sheet:
    """The figures of a plan by name, each computed from figures above it."""

    figures: dict[str, Figure] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Quantity:
        """A figure as a part of a formula."""
        return Quantity(self.figures[name].value, name, NAME, (name,))

    def enter(self, name: str, title: str, value: float, unit: str, origin: str, detail: str) -> None:  # noqa: PLR0917
        """Add a figure that is given or measured."""
        self._add(Figure(name=name, title=title, value=value, unit=unit, origin=origin, detail=detail))

    def compute(self, name: str, title: str, quantity: Quantity, unit: str = "") -> Quantity:
        """Add a figure that a formula gives, and return it as a part of further formulas."""
        detail, inputs = quantity.formula, quantity.names
        self._add(
            Figure(
                name=name, title=title, value=quantity.value, unit=unit, origin="computed", detail=detail, inputs=inputs
            )
        )
        return self[name]

    def _add(self, figure: Figure) -> None:
        assert figure.name not in self.figures and figure.origin in ORIGINS, figure.name
        assert set(figure.inputs) <= set(self.figures), figure.name
        self.figures[figure.name] = figure

    def with_numbers(self, name: str) -> str:
        """The formula of a figure with the values of its inputs instead of their names."""
        figure = self.figures[name]
        values = {one: _text(float(f"{self.figures[one].value:.6g}")) for one in figure.inputs}
        return re.sub(r"[a-z]\w*", lambda word: values.get(word[0], word[0]), figure.detail)
