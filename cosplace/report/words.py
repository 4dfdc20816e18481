"""Counts, distances, labels and JSON as text."""

import json
import math
from typing import Any


def shorten(text: str, length: int) -> str:
    """Cut a text to `length` characters; an ellipsis replaces its end."""
    return text if len(text) <= length else text[: length - 1] + "…"


def format_distance(distance_m: float, *, are_meters: bool = True) -> str:
    """Format a distance in meters or kilometers, with as many digits as a reader needs.

    are_meters: whether it is one; else it is a difference of numbers, such as those of frames.
    """
    if not math.isfinite(distance_m):
        return "unknown distance"
    if not are_meters:
        return f"{distance_m:,.0f} units" if distance_m >= 999.5 else f"{distance_m:.4g} units"
    if distance_m < 99.95:
        return f"{distance_m:.1f} m"
    return f"{distance_m:,.0f} m" if distance_m < 999.5 else f"{distance_m / 1000:,.1f} km"


def radius_text(radius: float, *, are_meters: bool) -> str:
    """Within which distance a prediction is correct, as in 25 m."""
    return f"{radius:.6g} {'m' if are_meters else 'units'}"


def as_json(value: Any) -> str:
    """JSON text that can stand inside a script element: no `<` can end it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
