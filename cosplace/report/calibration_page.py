"""What a calibration says, as one HTML page: its reliability and its precision, as curves and in numbers.  Pure."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from cosplace.localization.confidence import RADIUS_SHARE, Calibration
from cosplace.storage import write_text

SIDE, MARGIN = 300, 46  # pixels of a drawing
PAGE = "calibration.html"
STYLE = (
    ":root{color-scheme:light dark;--ink:#1c2733;--soft:#5c6b7a;--line:#d5dbe2;--main:#3b5bdb;--other:#a8b3c2;"
    "--back:#fff}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6ebf2;--soft:#9aa7b8;--line:#38424f;--main:#8ea6ff;"
    "--other:#5d6b7d;--back:#12171e}}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:54rem;margin:2.5rem auto;padding:0 1.2rem;color:var(--ink);"
    "background:var(--back)}"
    "h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}p,figcaption,dt{color:var(--soft)}b{color:var(--ink)}"
    ".pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(19rem,1fr));gap:1.5rem}figure{margin:0}"
    "svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}"
    ".frame{fill:none;stroke:var(--line)}.other{fill:none;stroke:var(--other);stroke-width:2}"
    ".main{fill:none;stroke:var(--main);stroke-width:2.5}.dot{fill:var(--main);fill-opacity:.75}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}"
    "td,th{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--line)}"
    "th{font-weight:600;color:var(--soft)}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;margin:0}dd{margin:0}"
)
TOLD = (0.5, 0.8, 0.9, 0.95, 0.99)
FACTS = {
    "num_photos": "photos in the index",
    "num_queries": "photos asked where they were taken",
    "num_described_anew": "of them in other light and another crop",
    "num_non_places": "frames of noise and plain colors",
    "num_examples": "answers judged",
    "num_right": "right answers",
    "num_elsewhere": "questions about places that were hidden",
    "seed": "seed",
    "seconds": "seconds",
}


def write_calibration_page(calibration: Calibration, address: str) -> Path | None:
    """Write calibration.html into the folder of an index; None for an index on object storage."""
    folder = Path(address)
    if not folder.is_dir():
        return None
    write_text(folder / PAGE, calibration_page(calibration, address))
    return folder / PAGE


def calibration_page(calibration: Calibration, name: str) -> str:
    """The page; it loads nothing from outside."""
    bins, curve = calibration.reliability, calibration.curve
    full = curve[curve[:, 3] > 0]
    dots = [(x, y, weight / max(1e-12, bins[:, 2].max())) for x, y, weight in bins]
    reliability = _drawing("confidence told", "share that is right", other=[(0, 0), (1, 1)], dots=dots)
    precision = _drawing(
        "share of photos answered",
        "share",
        other=list(zip(full[:, 3], full[:, 4], strict=True)),
        main=list(zip(full[:, 3], full[:, 1], strict=True)),
    )
    about = "".join(
        f"<dt>{escape(FACTS.get(key, str(key)))}</dt><dd>{escape(str(value))}</dd>"
        for key, value in calibration.about.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Calibration of {escape(name)}</title><style>{STYLE}</style><h1>How sure {escape(name)} may be</h1>"
        f"<p>Measured on photos of the index, in areas that the fit did not see. Expected calibration error "
        f"<b>{calibration.calibration_error:.3f}</b>, with {calibration.share_elsewhere:.0%} of photos from elsewhere. "
        f"Right is within 25 m; a radius holds {RADIUS_SHARE:.0%} of right answers.</p>"
        f'<div class="pair">'
        f"<figure>{reliability}<figcaption><b>Reliability.</b> On the grey line, of answers told with 80 %, 80 % are "
        f"right. A dot is as large as its share of answers.</figcaption></figure>"
        f"<figure>{precision}<figcaption><b>Precision.</b> Blue: of the answers given, the share that is right. Grey: "
        f"of photos from elsewhere, the share that comes out unknown. To the left only the surest are answered."
        f"</figcaption></figure></div>"
        f"<h2>What a least confidence buys</h2>{_table(calibration)}<h2>From</h2><dl>{about}</dl></html>\n"
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


def _drawing(
    across: str,
    up: str,
    *,
    other: Sequence[tuple[float, float]],
    main: Sequence[tuple[float, float]] = (),
    dots: Sequence[tuple[float, float, float]] = (),
) -> str:
    """Two lines, and dots (x, y, weight up to 1), in a square from 0 to 1."""
    size = SIDE + 2 * MARGIN
    ticks = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place(part, part)
        ticks.append(f'<text x="{x:.0f}" y="{size - MARGIN + 17}" text-anchor="middle">{part:.0%}</text>')
        ticks.append(f'<text x="{MARGIN - 7}" y="{y + 4:.0f}" text-anchor="end">{part:.0%}</text>')
    shapes = []
    for kind, points in (("other", other), ("main", main)):
        placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(*point) for point in points))
        shapes.append(f'<polyline class="{kind}" points="{placed}"/>' if placed else "")
    for x, y, weight in dots:
        (left, top), radius = _place(x, y), 2 + 9 * weight**0.5
        shapes.append(f'<circle class="dot" cx="{left:.1f}" cy="{top:.1f}" r="{radius:.1f}"/>')
    return (
        f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{escape(up)} by {escape(across)}">'
        f'<rect class="frame" x="{MARGIN}" y="{MARGIN}" width="{SIDE}" height="{SIDE}"/>'
        f"{''.join(ticks)}{''.join(shapes)}"
        f'<text x="{size / 2}" y="{size - 8}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="{MARGIN}" y="{MARGIN - 12}">{escape(up)}</text>'
        f"</svg>"
    )


def _place(x: float, y: float) -> tuple[float, float]:
    return MARGIN + SIDE * float(x), MARGIN + SIDE * (1 - float(y))
