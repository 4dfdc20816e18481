"""Ground floors: shops whose owners change over the years, entrances of residences, garages."""

from typing import Any

from synthcity.compiling import kernel
from synthcity.noise import hash01, hash_int, smooth, value_noise
from synthcity.windows import BARE_WALL

Rgbg = tuple[float, float, float, float]
NEW_OWNER_CHANCE = 0.18  # of a shop, each year
SHOP_M = 5.5


@kernel
def shop_owner(seed: int, shop: int, year: int) -> int:
    """Seed of the owner of a shop in a year, for the look of the shop."""
    owner = 0
    for past in range(1, year + 1):
        if hash01(seed + 101 * shop, 300 + past) < NEW_OWNER_CHANCE:
            owner = past
    return hash_int(seed + 17 * shop, 700 + owner)


@kernel
def shop_color(seed: int) -> tuple[float, float, float]:
    """Color of a sign or awning: any hue, mostly muted."""
    hue = hash01(seed, 0) * 6.0
    full = 0.10 + 0.55 * hash01(seed, 1) ** 1.5
    gray = full * (0.15 + 0.5 * hash01(seed, 2))
    step = hue - int(hue)
    rising, falling = gray + (full - gray) * step, full - (full - gray) * step
    sector = int(hue)
    if sector == 0:
        return full, rising, gray
    if sector == 1:
        return falling, full, gray
    if sector == 2:
        return gray, full, rising
    if sector == 3:
        return gray, falling, full
    if sector == 4:
        return rising, gray, full
    return full, gray, falling


@kernel
def shop_front(lot: Any, u: float, v: float, length: float, year: int, lamps: float, footprint: float) -> Rgbg:
    """Ground floor with shops, each about SHOP_M wide: sign, awning, shop windows, door."""
    shops = max(1, int(length / SHOP_M + 0.5))
    width = length / shops
    shop = min(int(u / width), shops - 1)
    x = u - shop * width
    owner = shop_owner(lot.seed, shop, year)
    top = lot.ground_floor_m - 0.25
    sign_low = top - 0.5 - 0.35 * hash01(owner, 20)
    if x < 0.22 or x > width - 0.22 or v > top:
        return BARE_WALL
    if v > sign_low:
        return _sign(owner, x - 0.22, v - sign_low, width - 0.44, top - sign_low, lamps, footprint)
    if lot.awning and hash01(owner, 21) < 0.7 and v > sign_low - 0.75:
        return _awning(owner, x, (v - sign_low + 0.75) / 0.75, lot.awning == 1)
    return _shop_window(owner, x, v, width, sign_low, lamps, footprint)


@kernel
def _sign(owner: int, x: float, v: float, width: float, height: float, lamps: float, footprint: float) -> Rgbg:
    """Board with block letters, with strokes on a 4 x 5 grid per letter."""
    red, green, blue = shop_color(hash_int(owner, 30))
    if v < 0.05 or v > height - 0.05:
        return red * 0.6, green * 0.6, blue * 0.6, 0.0
    letters = 4 + int(6.0 * hash01(owner, 33))
    pitch = min(width * 0.86 / letters, height * 0.8)
    start = 0.5 * (width - letters * pitch) * (0.3 + 0.7 * (hash01(owner, 34) < 0.7))
    place = (x - start) / pitch
    letter = int(place)
    if 0.0 <= place < letters and footprint < 0.4 * height:
        column, row = int((place - letter) * 4.0), int((v / height - 0.16) / 0.68 * 5.0)
        inside = column < 3 and 0 <= row < 5 and v / height > 0.16
        shape = hash_int(owner, 400 + letter)
        # A vertical stroke on the left or in the center and two horizontal ones resemble most letters.
        stem = column == (shape & 1) or (column == 2 and (shape >> 1) & 1)
        bar = row == ((shape >> 2) % 3) * 2 or row == ((shape >> 5) % 3) * 2
        if inside and (stem or bar):
            light = red + green + blue < 0.75
            ink = 0.85 if light else 0.04
            return ink, ink * 0.97, ink * 0.9, 0.5 * lamps
    return red, green, blue, 0.35 * lamps


@kernel
def _awning(owner: int, x: float, part: float, striped: bool) -> Rgbg:
    """Awning: lighter towards the top, with a darker hem."""
    red, green, blue = shop_color(hash_int(owner, 40))
    shade = 0.75 + 0.35 * part
    if part < 0.2:
        shade = 0.62
    if striped and int(x / 0.3) % 2 == 0:
        return 0.75 * shade, 0.73 * shade, 0.68 * shade, 0.0
    return red * shade, green * shade, blue * shade, 0.0


@kernel
def _shop_window(owner: int, x: float, v: float, width: float, top: float, lamps: float, footprint: float) -> Rgbg:
    plinth = 0.35 + 0.35 * hash01(owner, 22)
    frame = shop_color(hash_int(owner, 50))
    door = 0.3 + (width - 1.7) * (0.0 if hash01(owner, 23) < 0.4 else (1.0 if hash01(owner, 23) < 0.8 else 0.5))
    local = x - door
    if 0.0 < local < 1.1 and v < 2.3:
        if local < 0.1 or local > 1.0 or v < 0.25 or v > 2.2:
            return frame[0] * 0.8, frame[1] * 0.8, frame[2] * 0.8, 0.0
        if abs(v - 1.05) < 0.05 and local > 0.75:
            return 0.6, 0.55, 0.4, 0.0
        return 0.06, 0.065, 0.07, 0.3 * lamps
    if v < plinth:
        return frame[0] * 0.7, frame[1] * 0.7, frame[2] * 0.7, 0.0
    pane = (x - 0.22) / 1.55
    if pane - int(pane) < 0.05 or v < plinth + 0.07 or top - v < 0.07:
        return frame[0], frame[1], frame[2], 0.0
    # Goods behind the glass: soft blobs, brighter near the bottom.
    goods = value_noise(x * 2.4, v * 2.0, owner)
    hue = value_noise(x * 1.3, v * 1.1, owner + 1)
    full = 0.05 + 0.28 * smooth(0.45, 0.8, goods) * smooth(top, plinth, v)
    glow = 0.75 * lamps
    light = 1.0 + 2.2 * lamps
    return (
        full * (0.7 + 0.6 * hue) * light + 0.03,
        full * 0.9 * light + 0.035,
        full * (1.3 - 0.6 * hue) * light + 0.04,
        glow,
    )


@kernel
def residence_entrance(
    lot: Any, u: float, v: float, length: float, capture: int, lamps: float, footprint: float
) -> Rgbg:
    """Ground floor of a residence: a plinth, a door in one bay, windows in the others; or an arcade."""
    bays = max(1, int(length / (lot.bay_m * 1.15) + 0.5))
    width = length / bays
    bay = min(int(u / width), bays - 1)
    x = u - (bay + 0.5) * width
    if lot.street_use == 3:
        return _arch(x, v, 0.36 * width, lot)
    if bay == hash_int(lot.seed, 81) % bays:
        return _door(lot, x, v, footprint)
    if v < 0.55:
        return 0.62, 0.62, 0.62, -1.0
    half, low, high = 0.26 * width, 1.15, lot.ground_floor_m - 0.7
    if abs(x) < half and low < v < high:
        if half - abs(x) < 0.08 or v - low < 0.08 or high - v < 0.08 or abs(x) < 0.04:
            return lot.trim[0] * 0.85, lot.trim[1] * 0.85, lot.trim[2] * 0.85, 0.0
        slot = hash_int(lot.seed, 8000 + bay)
        if hash01(slot, 50 + capture % 1000003) < 0.4 * lamps:
            return 0.5, 0.36, 0.18, 0.8
        shade = 0.05 + 0.09 * hash01(slot, 3)
        return shade * 0.85, shade, shade * 1.1, 0.0
    if lot.surround and abs(x) < half + 0.14 and low - 0.16 < v < high + 0.16:
        return lot.trim[0], lot.trim[1], lot.trim[2], 0.0
    return BARE_WALL


@kernel
def _door(lot: Any, x: float, v: float, footprint: float) -> Rgbg:
    half, step, top = 0.62, 0.32, 2.75
    if abs(x) < half + 0.3 and v < step:
        shade = 0.34 if int(v / 0.16) % 2 == 0 else 0.42
        return shade, shade, shade, 0.0
    if abs(x) < half and v < top:
        if v > top - 0.45:
            return 0.07, 0.08, 0.09, 0.0
        panel = abs(abs(x) - 0.3) < 0.2 and (0.5 < v < 1.15 or 1.35 < v < 2.1)
        shade = 0.72 if panel else 1.0
        if 0.45 < x < 0.55 and abs(v - 1.2) < 0.06 and footprint < 0.06:
            return 0.6, 0.5, 0.25, 0.0
        return lot.door[0] * shade, lot.door[1] * shade, lot.door[2] * shade, 0.0
    if abs(x) < half + 0.18 and v < top + 0.2:
        return lot.trim[0], lot.trim[1], lot.trim[2], 0.0
    return BARE_WALL


@kernel
def _arch(x: float, v: float, half: float, lot: Any) -> Rgbg:
    spring = lot.ground_floor_m - 0.5 - half
    inside = abs(x) < half and (v < spring or x * x + (v - spring) ** 2 < half * half)
    if inside:
        depth = 0.035 + 0.06 * smooth(half, 0.0, abs(x))
        return depth, depth * 0.95, depth * 0.9, 0.0
    if abs(x) < half + 0.2 and v < lot.ground_floor_m - 0.25:
        return lot.trim[0] * 0.92, lot.trim[1] * 0.92, lot.trim[2] * 0.92, 0.0
    return BARE_WALL


@kernel
def garage(lot: Any, u: float, v: float, length: float, footprint: float) -> Rgbg:
    """Garage doors next to an entrance."""
    doors = max(1, int((length - 1.8) / 3.6))
    width = (length - 1.8) / doors
    if u > length - 1.8:
        return _door(lot, u - (length - 0.9), v, footprint)
    x = u - (int(u / width) + 0.5) * width
    half = min(1.35, 0.4 * width)
    if abs(x) < half and v < 2.4:
        panel = v / 0.5
        shade = 0.7 if (panel - int(panel) < 0.1 and footprint < 0.12) else 0.95
        return lot.door[0] * shade, lot.door[1] * shade, lot.door[2] * shade, 0.0
    if abs(x) < half + 0.15 and v < 2.55:
        return lot.trim[0], lot.trim[1], lot.trim[2], 0.0
    return BARE_WALL
