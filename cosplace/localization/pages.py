"""What a calibration says, as one HTML page: its reliability and its precision, as curves and in numbers.  Pure."""

from collections.abc import Sequence
from html import escape

import numpy as np

from cosplace.localization.confidence import RADIUS_SHARE, Calibration

SIDE, MARGIN = 320, 42  # pixels of a drawing
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1c2733}"
    "figure{display:inline-block;margin:0 2rem 1rem 0}table{border-collapse:collapse}"
    "td,th{padding:.2rem .9rem .2rem 0;text-align:right}text{font:11px system-ui,sans-serif;fill:#556}"
)
TOLD = (0.5, 0.8, 0.9, 0.95, 0.99)


def calibration_page(calibration: Calibration, name: str) -> str:
    """The page; it loads nothing from outside."""
    bins, curve = calibration.reliability, calibration.curve
    full = curve[curve[:, 3] > 0]
    reliability = _drawing(
        "mean confidence", "share right", [("#aab4c0", [(0, 0), (1, 1)]), ("#0b6bcb", [(x, y) for x, y, _ in bins])]
    )
    precision = _drawing(
        "share of photos answered",
        "precision (grey: elsewhere unknown)",
        [("#aab4c0", list(zip(full[:, 3], full[:, 4], strict=True))),
         ("#0b6bcb", list(zip(full[:, 3], full[:, 1], strict=True)))],
    )  # fmt: skip
    about = "".join(f"<li>{escape(str(key))}: {escape(str(value))}</li>" for key, value in calibration.about.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Calibration of {escape(name)}</title>'
        f"<style>{STYLE}</style><h1>Calibration of {escape(name)}</h1>"
        f"<p>Measured on photos of the index in areas that the fit did not see. Expected calibration error: "
        f"<b>{calibration.calibration_error:.3f}</b>, with {calibration.share_elsewhere:.0%} of photos from elsewhere. "
        f"Right means within 25 m; a radius holds {RADIUS_SHARE:.0%} of right answers.</p>"
        f"<figure>{reliability}<figcaption>Reliability</figcaption></figure>"
        f"<figure>{precision}<figcaption>Precision and answers</figcaption></figure>"
        f"{_table(calibration)}<h2>How</h2><ul>{about}</ul></html>\n"
    )


def _table(calibration: Calibration) -> str:
    rows = []
    for least in TOLD:
        _, precision, bound, answered, unknown = calibration.curve[np.abs(calibration.curve[:, 0] - least).argmin()]
        radius = float(calibration.radius_m(np.array([least]))[0])
        cells = f"{least:g}", f"{precision:.3f}", f"{bound:.3f}", f"{answered:.0%}", f"{unknown:.3f}", f"{radius:.1f} m"
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "least confidence", "precision", "at least", "answered", "elsewhere unknown, at least", "radius there"
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def _drawing(across: str, up: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    size = SIDE + 2 * MARGIN
    ticks = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place(part, part)
        ticks.append(f'<text x="{x:.0f}" y="{size - MARGIN + 15}" text-anchor="middle">{part:g}</text>')
        ticks.append(f'<text x="{MARGIN - 6}" y="{y + 4:.0f}" text-anchor="end">{part:g}</text>')
    paths = []
    for color, points in lines:
        placed = [_place(x, y) for x, y in points]
        paths.append(
            f'<polyline fill="none" stroke="{color}" stroke-width="2" '
            f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}"/>'
        )
    return (
        f'<svg width="{size}" height="{size}" role="img" aria-label="{escape(up)} over {escape(across)}">'
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#d5dbe2"/>'
        f"{''.join(ticks)}{''.join(paths)}"
        f'<text x="{size / 2}" y="{size - 8}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="12" y="{size / 2}" text-anchor="middle" transform="rotate(-90 12 {size / 2})">{escape(up)}</text>'
        f"</svg>"
    )


def _place(x: float, y: float) -> tuple[float, float]:
    return MARGIN + SIDE * float(x), MARGIN + SIDE * (1 - float(y))
