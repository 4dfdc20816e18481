"""Wall surfaces: plaster, brick, stone, boards, concrete, timber frame.  Brightness at a point of a wall.

Detail finer than the footprint of a ray fades out, to avoid aliasing on distant walls.
"""

from synthcity.compiling import kernel
from synthcity.noise import hash01, smooth, value_noise

PLASTER, BRICK, STONE, BOARDS, CONCRETE, TIMBER = range(6)


@kernel
def wall_brightness(material: int, u: float, v: float, seed: int, footprint: float) -> float:
    """Factor on the wall's color at `u` meters along and `v` meters above the street.

    footprint: meters covered by one ray at this distance.
    """
    tone = 0.86 + 0.2 * value_noise(u * 0.45, v * 0.3, seed)
    if footprint > 0.5:
        return tone
    # Rain streaks below ledges, and dirt above the sidewalk.
    tone *= 1.0 - 0.10 * smooth(0.55, 0.95, value_noise(u * 2.1, v * 0.25, seed + 1)) - 0.16 * smooth(0.9, 0.0, v)
    if material == BRICK:
        return tone * _courses(u, v, 0.26, 0.085, 0.18, seed, footprint)
    if material == STONE:
        return tone * _courses(u, v, 1.05, 0.48, 0.14, seed, footprint)
    if material == BOARDS:
        board = v / 0.22
        part = board - int(board)
        detail = smooth(0.16, 0.05, footprint)
        return tone * (1.0 - detail * 0.3 * smooth(0.8, 1.0, part) + detail * 0.05 * part)
    if material == CONCRETE:
        across, up = u / 2.4, v / 1.5
        fx, fy = across - int(across), up - int(up)
        joint = 1.0 if fx < 0.02 or fy < 0.03 else 0.0
        return (
            tone
            * (1.0 - 0.3 * joint * smooth(0.2, 0.05, footprint))
            * (0.95 + 0.1 * hash01(seed + int(across), int(up)))
        )
    detail = smooth(0.08, 0.02, footprint)
    if detail > 0.0:
        tone *= 1.0 + detail * 0.14 * (value_noise(u * 9.0, v * 9.0, seed + 2) - 0.5)
    return tone


@kernel
def _courses(u: float, v: float, width: float, height: float, variety: float, seed: int, footprint: float) -> float:
    """Rows of bricks or blocks, with different tones and joints."""
    course = int(v / height)
    across = u / width + 0.5 * (course & 1)
    brick = int(across)
    fx, fy = (across - brick) * width, v - course * height
    joint = min(0.12 * height + 0.004, 0.03)
    fade = smooth(height * 1.2, height * 0.25, footprint)
    tone = 1.0 + fade * variety * (hash01(seed + brick * 31, course) - 0.5) * 2.0
    if fx < joint or fy < joint:
        tone *= 1.0 - 0.28 * fade
    # If single bricks are too small to see, patches of a few bricks still differ.
    return tone * (1.0 - 0.05 * (1.0 - fade)) * (0.94 + 0.12 * value_noise(u * 0.8 / width * 0.25, v * 1.6, seed + 3))


@kernel
def timber_beam(u: float, v: float, bay: float, floor: float, seed: int) -> bool:
    """Whether a point is on a beam of a timber frame; u from the left of the bay, v from the floor."""
    if v < 0.18 or u < 0.09 or u > bay - 0.09:
        return True
    if hash01(seed, 77) < 0.6 and v < 0.42 * floor:
        rise = 0.42 * floor / bay * u
        return abs(v - rise) < 0.1 or abs(v - 0.42 * floor) < 0.07
    return abs(v - 0.42 * floor) < 0.07
