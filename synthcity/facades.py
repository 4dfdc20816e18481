"""The color of a building at a point of its wall: a pure function of place, lot and year, seen from any position.

A point is `u` meters along the wall and `v` above the street.  Functions return linear red, green, blue and the share
of emitted light (lit windows), which does not depend on sun and shadow.
"""

from typing import Any

from synthcity.compiling import kernel
from synthcity.materials import TIMBER, timber_beam, wall_brightness
from synthcity.noise import hash01, hash_int, smooth
from synthcity.scene import FRONT, SIDE
from synthcity.shops import garage, residence_entrance, shop_front
from synthcity.windows import BARE_WALL, window

Rgb = tuple[float, float, float]
Rgbg = tuple[float, float, float, float]
REPAINT_CHANCE = 0.04


@kernel
def roof_rise(lot: Any, kind: int, u: float, length: float) -> float:
    """Height in meters of the roof line above the flat top of a wall at `u`."""
    if kind != FRONT:
        return 0.0
    middle = abs(2.0 * u / length - 1.0)  # 0 in the middle, 1 at the corners
    profile = lot.profile
    if profile == 1:
        return lot.roof_m * 1.2 * (1.0 - middle)
    if profile == 2:
        return lot.roof_m * 1.2 * max(0.0, 1.0 - int(middle * 4.999) * 0.25)
    if profile in (3, 5):
        return lot.roof_m if profile == 3 else 0.6 * lot.roof_m
    if profile == 4:
        return 0.5 * lot.roof_m if middle < 0.4 else 0.0
    if profile == 6 and (abs(middle - 0.7) < 0.08):
        return 1.3
    return 0.0


@kernel
def painted(lot: Any, year: int) -> Rgb:
    """The wall color of a building in a year: some buildings are repainted."""
    for past in range(1, year + 1):
        if hash01(lot.seed, 900 + past) < REPAINT_CHANCE:
            return lot.repaint[0], lot.repaint[1], lot.repaint[2]
    return lot.base[0], lot.base[1], lot.base[2]


@kernel
def facade(
    lot: Any,
    kind: int,
    u: float,
    v: float,
    length: float,
    paint: Rgb,
    year: int,
    capture: int,
    lamps: float,
    footprint: float,
) -> Rgbg:
    """Color of a wall.  paint: from `painted`; capture: seed of daily changes; lamps: share of lit windows."""
    color = _covering(lot, kind, u, v, length, year, capture, lamps, footprint)
    if color[3] >= 0.0:
        return color
    tone = wall_brightness(lot.material, u, v, lot.seed, footprint)
    return paint[0] * color[0] * tone, paint[1] * color[1] * tone, paint[2] * color[2] * tone, 0.0


@kernel
def _covering(
    lot: Any, kind: int, u: float, v: float, length: float, year: int, capture: int, lamps: float, footprint: float
) -> Rgbg:
    """Color of the part that covers the wall at a point, or BARE_WALL."""
    if v > lot.height:
        return _roof(lot, kind, u, v, length, footprint)
    if kind == SIDE:
        return _party_wall(lot, u, v, length, capture, lamps, footprint)
    top = lot.height - lot.cornice_m
    if v > top:
        return _cornice(lot, u, v - top, footprint) if kind == FRONT else BARE_WALL
    if v < lot.ground_floor_m:
        if kind != FRONT:
            return BARE_WALL
        if lot.street_use == 1:
            return shop_front(lot, u, v, length, year, lamps, footprint)
        if lot.street_use == 2:
            return garage(lot, u, v, length, footprint)
        return residence_entrance(lot, u, v, length, capture, lamps, footprint)
    return _upper_floor(lot, kind, u, v - lot.ground_floor_m, length, capture, lamps, footprint)


@kernel
def _upper_floor(
    lot: Any, kind: int, u: float, above: float, length: float, capture: int, lamps: float, footprint: float
) -> Rgbg:
    floor = int(above / lot.floor_m)
    v = above - floor * lot.floor_m
    bays = max(1, int(length / lot.bay_m + 0.5))
    width = length / bays
    bay = min(int(u / width), bays - 1)
    local = u - bay * width
    if lot.bands and v < 0.2 and kind == FRONT:
        shade = 0.7 if v < 0.05 else 1.0
        return lot.trim[0] * shade, lot.trim[1] * shade, lot.trim[2] * shade, 0.0
    slot = hash_int(lot.seed + 13 * bay, 1000 + floor + 500 * kind)
    # A few bays have no windows, on all floors.
    color = BARE_WALL
    if bays <= 2 or hash01(lot.seed + bay, 41) >= 0.06:
        color = window(lot, local - 0.5 * width, v, width, slot, capture, lamps, footprint)
    beams = lot.material == TIMBER and kind == FRONT and color[3] < 0.0
    if beams and timber_beam(local, v, width, lot.floor_m, lot.seed + bay):
        return 0.055, 0.035, 0.025, 0.0
    return color


@kernel
def _party_wall(lot: Any, u: float, v: float, length: float, capture: int, lamps: float, footprint: float) -> Rgbg:
    """Wall towards a lower neighbor: bare and darker, sometimes with an advertisement or a few windows."""
    choice = hash01(lot.seed, 61)
    if v > lot.height - 0.25:
        return lot.trim[0] * 0.7, lot.trim[1] * 0.7, lot.trim[2] * 0.7, 0.0
    if choice < 0.14:
        x, y = u / length - 0.5, (lot.height - 1.2 - v) / 5.0
        if abs(x) < 0.36 and 0.0 < y < 1.0:
            return _mural(lot.seed, x, y)
    elif choice < 0.5 and v > lot.ground_floor_m and length > 4.0:
        above = v - lot.ground_floor_m
        floor = int(above / lot.floor_m)
        slot = hash_int(lot.seed, 3000 + floor)
        if above < (lot.height - lot.cornice_m - lot.ground_floor_m) and abs(u - 0.5 * length) < 1.4:
            return window(
                lot,
                u - 0.5 * length,
                above - floor * lot.floor_m,
                2.8,
                slot,
                capture,
                lamps,
                footprint,
            )
    return 0.86, 0.86, 0.86, -1.0


@kernel
def _mural(seed: int, x: float, y: float) -> Rgbg:
    hue = hash01(seed, 62)
    if abs(x) > 0.34 or y < 0.03 or y > 0.97:
        return 0.7, 0.68, 0.62, 0.0
    wave = (x * (3.0 + 5.0 * hash01(seed, 63)) + y * (2.0 + 6.0 * hash01(seed, 64))) * 1.5
    band = int(wave + 20.0) % 3
    if (x * x + (0.7 * (y - 0.5)) ** 2) < 0.03:
        return 0.8, 0.65 * hue + 0.1, 0.12, 0.0
    if band == 0:
        return 0.1 + 0.5 * hue, 0.16, 0.5 - 0.4 * hue, 0.0
    if band == 1:
        return 0.75, 0.7, 0.55, 0.0
    return 0.12, 0.2 + 0.3 * (1.0 - hue), 0.3, 0.0


@kernel
def _cornice(lot: Any, u: float, v: float, footprint: float) -> Rgbg:
    """Ledge below the roof: a shadow, brackets, a light edge."""
    height = lot.cornice_m
    part = v / height
    shade = 1.0
    if part < 0.18:
        shade = 0.5
    elif part < 0.55 and footprint < 0.25:
        bracket = u / 0.55
        shade = 0.6 if bracket - int(bracket) < 0.45 else 0.92
    elif part > 0.9:
        shade = 1.1
    if lot.surround == 0:
        return shade, shade, shade, -1.0
    return lot.trim[0] * shade, lot.trim[1] * shade, lot.trim[2] * shade, 0.0


@kernel
def _roof(lot: Any, kind: int, u: float, v: float, length: float, footprint: float) -> Rgbg:
    """Part above the flat top: gables continue the wall, mansards have tiles and dormers, chimneys are brick."""
    above = v - lot.height
    if lot.profile in (1, 2, 4):
        middle = abs(u - 0.5 * length)
        edge = roof_rise(lot, kind, u, length) - above
        if edge < 0.22:
            return lot.trim[0] * 0.9, lot.trim[1] * 0.9, lot.trim[2] * 0.9, 0.0
        if lot.profile != 4 and middle * middle + (above - 0.9) ** 2 < 0.3:
            return 0.03, 0.035, 0.045, 0.0
        return BARE_WALL
    if lot.profile == 6:
        return 0.2, 0.09, 0.06, 0.0
    course = above / 0.3
    tone = 0.75 + 0.25 * (course - int(course)) if footprint < 0.2 else 0.87
    tone *= 0.85 + 0.3 * hash01(lot.seed + int(u / 0.35), int(course)) if footprint < 0.12 else 1.0
    if lot.profile == 3:
        dormers = max(1, int(length / 4.2))
        width = length / dormers
        local = abs(u - (int(u / width) + 0.5) * width)
        if local < 0.75 and 0.25 < above < 0.25 + 1.5:
            if local < 0.5 and 0.45 < above < 1.5:
                glass = 0.05 + 0.03 * smooth(0.4, 1.4, above)
                return glass * 0.8, glass * 0.95, glass * 1.1, 0.0
            return lot.trim[0] * 0.85, lot.trim[1] * 0.85, lot.trim[2] * 0.85, 0.0
    return lot.roof[0] * tone, lot.roof[1] * tone, lot.roof[2] * tone, 0.0
