"""Counts, distances and labels as text."""

import math


def shorten(text: str, length: int) -> str:
    """Cut a text to `length` characters; an ellipsis replaces its end."""
    return text if len(text) <= length else text[: length - 1] + "…"


def format_distance(distance_m: float) -> str:
    """Format a distance in meters or kilometers, with as many digits as a reader needs."""
    if not math.isfinite(distance_m):
        return "unknown distance"
    if distance_m < 99.95:
        return f"{distance_m:.1f} m"
    return f"{distance_m:,.0f} m" if distance_m < 999.5 else f"{distance_m / 1000:,.1f} km"
