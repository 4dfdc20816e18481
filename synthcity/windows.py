"""Windows: glass, frames, curtains, shutters, lintels, balconies.

A point is `x` meters to the right of the center of its bay and `v` meters above its floor.  For points of the bare
wall, functions return BARE_WALL or a shade of it; only then the caller computes the color of the wall, which is slow.
"""

from typing import Any

from synthcity.compiling import kernel
from synthcity.noise import hash01, smooth

ONE_PANE, CROSS, SASH, ARCH, MANY_PANES, RIBBON, BAY = range(7)
BARE, FRAME, SHUTTERS, LINTEL, BALCONY = range(5)
Rgbg = tuple[float, float, float, float]
BARE_WALL = (1.0, 1.0, 1.0, -1.0)  # a factor of the wall color; the negative glow marks it


@kernel
def window(lot: Any, x: float, v: float, bay: float, slot: int, capture: int, lamps: float, footprint: float) -> Rgbg:
    """Color of a bay of an upper floor: window, surround or bare wall.  slot: seed of this window."""
    style, surround = lot.window_style, lot.surround
    half = 0.5 * bay * lot.window_w
    height = lot.floor_m * lot.window_h
    low = 0.55 * (lot.floor_m - height)
    if style == BAY:
        half *= 0.85
    if surround == BALCONY and v < 1.0 and style != RIBBON:
        rail = _balcony(x, v, half + 0.35, footprint)
        if rail >= 0.0:
            return rail, rail, rail * 1.05, 0.0
        low, height = 0.15, height + low - 0.15
    high = low + height
    inside = abs(x) < half and low < v < high
    if inside and style == ARCH:
        rise = v - (high - half)
        inside = rise < 0.0 or x * x + rise * rise < half * half
    if inside:
        return _glazing(lot, x, v - low, half, height, style, slot, capture, lamps, footprint)
    around = _surround(lot, x, v, half, low, high, surround, footprint)
    return _bay_relief(lot, x, v, bay) if style == BAY and around[3] < 0.0 else around


@kernel
def _surround(
    lot: Any, x: float, v: float, half: float, low: float, high: float, surround: int, footprint: float
) -> Rgbg:
    outside = abs(x) - half
    trim = (lot.trim[0], lot.trim[1], lot.trim[2], 0.0)
    if surround == FRAME and outside < 0.16 and low - 0.16 < v < high + 0.18:
        return trim
    if surround == SHUTTERS and 0.0 <= outside < 0.55 * half and low < v < high:
        slat = v / 0.09
        shade = (0.7 if slat - int(slat) < 0.4 else 1.0) if footprint < 0.035 else 0.88
        return lot.door[0] * shade, lot.door[1] * shade, lot.door[2] * shade, 0.0
    if surround == LINTEL and outside < 0.14 and (high <= v < high + 0.3 or low - 0.14 < v <= low):
        return trim
    if outside < 0.08 and low - 0.1 < v <= low:
        return trim
    # The shadow of the sill on the wall.
    if outside < 0.05 and low - 0.3 < v <= low - 0.1:
        return 0.8, 0.8, 0.8, -1.0
    return BARE_WALL


@kernel
def _bay_relief(lot: Any, x: float, v: float, bay: float) -> Rgbg:
    """Shading of a bay window: one side lit, the other in shade, panels below."""
    part = x / (0.5 * bay)
    if abs(part) > 0.82:
        return 0.72, 0.72, 0.72, -1.0
    shade = 1.12 if part < -0.62 else (0.8 if part > 0.62 else 1.0)
    if v < 0.12:
        return lot.trim[0] * shade, lot.trim[1] * shade, lot.trim[2] * shade, 0.0
    return shade, shade, shade, -1.0


@kernel
def _glazing(
    lot: Any,
    x: float,
    up: float,
    half: float,
    height: float,
    style: int,
    slot: int,
    capture: int,
    lamps: float,
    footprint: float,
) -> Rgbg:
    frame = 0.06 + 0.3 * min(footprint, 0.1)
    bar = frame * 0.6
    edge = min(half - abs(x), up, height - up)
    framed = edge < frame
    if style in (CROSS, ARCH):
        framed = framed or abs(x) < bar or abs(up - 0.66 * height) < bar
    elif style == SASH:
        framed = framed or abs(up - 0.5 * height) < bar
    elif style == MANY_PANES:
        across, along = (x + half) / (2.0 * half) * 4.0, up / height * 4.0
        framed = framed or abs(across - int(across + 0.5)) < 0.07 or abs(along - int(along + 0.5)) < 0.06
    elif style == RIBBON:
        across = (x + half) / 0.95
        framed = framed or across - int(across) < 0.07
    elif style == BAY:
        framed = framed or abs(abs(x) - 0.55 * half) < bar or abs(up - 0.5 * height) < bar * 0.7
    if framed:
        return lot.trim[0] * 0.85, lot.trim[1] * 0.85, lot.trim[2] * 0.85, 0.0
    return _pane(x, up, half, height, slot, capture, lamps)


@kernel
def _pane(x: float, up: float, half: float, height: float, slot: int, capture: int, lamps: float) -> Rgbg:
    """Glass: dark, lighter where it reflects the sky; sometimes with curtains, sometimes lit in the evening."""
    part = up / height
    glass = 0.028 + 0.05 * part * part + 0.05 * hash01(slot, 5)
    red, green, blue = glass * 0.82, glass * 0.97, glass * 1.15
    habit = hash01(slot, 6)
    drawn = hash01(slot, 50 + capture % 1000003)
    if habit < 0.3 and drawn < 0.75:
        opening = 0.25 + 0.55 * drawn
        if abs(x) > half * opening:
            fold = 0.85 + 0.15 * (int((x + 9.0) * 12.0) % 2)
            red, green, blue = 0.42 * fold, 0.4 * fold, 0.36 * fold
    elif habit < 0.5 and part > 0.35 + 0.9 * drawn:
        red, green, blue = 0.5, 0.49, 0.45
    # The wall shades the upper edge of the recessed window.
    shade = 0.55 if height - up < 0.2 else 1.0
    if lamps > 0.0 and hash01(slot, 70 + capture % 1000003) < 0.55 * lamps:
        warm = 0.55 + 0.25 * smooth(0.0, 1.0, part)
        return red * 0.4 + 0.85 * warm, green * 0.4 + 0.6 * warm, blue * 0.4 + 0.3 * warm, 0.8
    return red * shade, green * shade, blue * shade, 0.0


@kernel
def _balcony(x: float, v: float, half: float, footprint: float) -> float:
    """Gray of the slab or rail of a balcony; -1 between the bars."""
    if abs(x) > half:
        return -1.0
    if v < 0.14:
        return 0.3 if v > 0.05 else 0.12
    if v > 0.92:
        return 0.05
    bar = (x + 10.0) / 0.16
    part = bar - int(bar)
    if footprint < 0.05:
        return 0.05 if part < 0.3 else -1.0
    return -1.0
