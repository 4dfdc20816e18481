"""The color of the ground: asphalt with markings, curbs, sidewalk slabs, grass of parks and of open country."""

from typing import Any

from synthcity.compiling import inlined, kernel
from synthcity.noise import hash01, smooth, value_noise

Rgb = tuple[float, float, float]
CURB_M = 0.2


@inlined
def guess_block(ground: Any, x: float, y: float) -> tuple[int, int]:
    """The lattice cell of a point in a lattice without jitter."""
    return (
        int(ground.column_of[min(max(int(x), 0), len(ground.column_of) - 1)]),
        int(ground.row_of[min(max(int(y), 0), len(ground.row_of) - 1)]),
    )


@inlined
def find_block(ground: Any, x: float, y: float, column: int, row: int) -> tuple[int, int]:
    """Lattice cell (column, row) of a point, searched from a first guess; (-1, -1) outside the city."""
    columns, rows = ground.park.shape
    for _ in range(6):
        if column < 0 or row < 0 or column >= columns or row >= rows:
            return -1, -1
        crossed = -1
        for side in range(4):
            if _inside(ground, column, row, side, x, y) < 0.0:
                crossed = side
                break
        if crossed < 0:
            break
        if crossed in (0, 2):
            row += crossed - 1
        else:
            column += 2 - crossed
    return column, row


@inlined
def _inside(ground: Any, column: int, row: int, side: int, x: float, y: float) -> float:
    """Distance of a point from the center line of one of the streets around a cell, positive in the cell."""
    sides = ground.sides
    return sides[column, row, side, 0] * x + sides[column, row, side, 1] * y + sides[column, row, side, 2]


@inlined
def ground_color(ground: Any, x: float, y: float, column: int, row: int, footprint: float) -> Rgb:
    """Linear color of the ground at a point of block (column, row); footprint: meters that one ray covers there."""
    if column < 0:
        return _grass(x, y, footprint)
    # The nearest of the four roads around the block, by the distance from its curb, negative on the road.
    nearest, beyond, second = 0, 1.0e9, 1.0e9
    for side in range(4):
        distance = _inside(ground, column, row, side, x, y) - ground.sides[column, row, side, 7]
        if distance < beyond:
            nearest, beyond, second = side, distance, beyond
        elif distance < second:
            second = distance
    if second < 0.0:
        return _asphalt(x, y, footprint)
    sides = ground.sides
    along = sides[column, row, nearest, 3] * x + sides[column, row, nearest, 4] * y + sides[column, row, nearest, 5]
    if beyond >= ground.sidewalk_m:
        return _grass(x, y, footprint) if ground.park[column, row] else _yard(x, y)
    if beyond >= 0.0:
        return _sidewalk(x, y, along, beyond, footprint)
    half = sides[column, row, nearest, 7]
    start = along - sides[column, row, nearest, 8]
    end = sides[column, row, nearest, 6] - sides[column, row, nearest, 9] - along
    return _road(x, y, beyond + half, along, half, min(start, end), footprint)


@kernel
def _road(x: float, y: float, lateral: float, along: float, half: float, near: float, footprint: float) -> Rgb:
    """Half a road.  lateral: meters from its center line; near: meters from the nearer crossing."""
    red, green, blue = _asphalt(x, y, footprint)
    paint = _paint(lateral, along, half, near)
    if paint > 0.0:
        paint *= 0.55 + 0.4 * value_noise(x * 1.7, y * 1.7, 5) if footprint < 0.6 else 0.75
        return red + (0.62 - red) * paint, green + (0.62 - green) * paint, blue + (0.58 - blue) * paint
    # Oil and dust where wheels run and water flows.
    gutter = 1.0 - 0.22 * smooth(0.6, 0.0, half - lateral)
    return red * gutter, green * gutter, blue * gutter


@kernel
def _paint(lateral: float, along: float, half: float, near: float) -> float:
    """Amount of paint on a point of a road: crosswalk, stop line, center line, parking lane."""
    if 0.7 < near < 3.5:
        stripe = (lateral + 0.25) / 0.95
        return 1.0 if stripe - int(stripe) < 0.52 else 0.0
    if 4.3 < near < 4.65:
        return 1.0
    if near > 4.65:
        if half > 6.0:
            if 0.09 < lateral < 0.21:
                return 1.0
        elif lateral < 0.07:
            dash = along / 6.0
            return 1.0 if dash - int(dash) < 0.5 else 0.0
        edge = half - 2.25 - lateral
        if half > 4.4 and abs(edge) < 0.05:
            return 0.7
    return 0.0


@kernel
def _asphalt(x: float, y: float, footprint: float) -> Rgb:
    tone = 0.1
    if footprint < 0.8:
        patch = value_noise(x * 0.35, y * 0.35, 12)
        tone *= 0.78 if patch > 0.72 else 0.95 + 0.1 * patch
    if footprint < 0.06:
        tone *= 0.9 + 0.2 * value_noise(x * 14.0, y * 14.0, 13)
    return tone, tone, tone * 1.04


@kernel
def _sidewalk(x: float, y: float, along: float, beyond: float, footprint: float) -> Rgb:
    if beyond < CURB_M:
        stone = along / 1.2
        tone = 0.33 if stone - int(stone) > 0.03 or footprint > 0.1 else 0.2
        return tone, tone, tone * 0.97
    across, up = along / 1.4, (beyond - CURB_M) / 1.4
    fx, fy = across - int(across), up - int(up)
    tone = 0.24 * (0.88 + 0.2 * value_noise(x * 0.4, y * 0.4, 21))
    fade = smooth(0.45, 0.1, footprint)
    tone *= 1.0 + fade * 0.12 * (hash01(int(across) * 7 + int(x * 0.02), int(up)) - 0.5)
    if fx < 0.025 or fy < 0.03:
        tone *= 1.0 - 0.35 * fade
    return tone * 1.02, tone, tone * 0.95


@kernel
def _yard(x: float, y: float) -> Rgb:
    tone = 0.14 + 0.06 * value_noise(x * 0.5, y * 0.5, 31)
    return tone * 1.05, tone, tone * 0.88


@kernel
def _grass(x: float, y: float, footprint: float) -> Rgb:
    tone = 0.8 + 0.3 * value_noise(x * 0.25, y * 0.25, 41)
    if footprint < 0.15:
        tone *= 0.8 + 0.4 * value_noise(x * 7.0, y * 7.0, 42)
    return 0.085 * tone, 0.14 * tone, 0.04 * tone
