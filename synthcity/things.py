"""Trees, people, lamps, signals, signs and advertising columns: objects drawn over the city, by depth."""

from typing import Any

import numpy as np

from synthcity.compiling import kernel
from synthcity.noise import hash01, hash_int, smooth, value_noise
from synthcity.scene import COLUMN, LAMP, SIGN, SIGNAL
from synthcity.view import Canvas, Shade, View, haze_at, sun_at, write_sample

PERSON_FARTHEST_M = 80.0
NEAREST_M = 0.9
Rgb = tuple[float, float, float]


@kernel
def _place(view: View, x: float, y: float) -> tuple[float, float, float]:
    """Position of a point: meters to the right of the camera, meters in front of it, distance."""
    dx, dy = x - view.x, y - view.y
    return (
        dx * view.right_x + dy * view.right_y,
        dx * view.forward_x + dy * view.forward_y,
        np.sqrt(dx * dx + dy * dy),
    )


@kernel
def _box(view: View, a: float, depth: float, half: float, low: float, high: float) -> tuple[int, int, int, int]:
    """Columns first..last and rows top..bottom of an upright rectangle at a depth, clipped to the canvas."""
    scale = view.focal / depth
    middle, side = a * scale + view.middle, view.side - 1
    return (
        max(0, int(np.ceil(middle - half * scale - 0.5))),
        min(side, int(np.floor(middle + half * scale - 0.5))),
        max(0, int(np.ceil(view.horizon + (view.z - high) * scale - 0.5))),
        min(side, int(np.floor(view.horizon + (view.z - low) * scale - 0.5))),
    )


@kernel
def _round_sun(view: View, light: Any, offset: float) -> float:
    """Sunshine on an upright cylinder, `offset` (-1 to 1) to the right of its axis as the camera sees it."""
    forward = np.sqrt(max(0.0, 1.0 - offset * offset))
    normal_x = view.right_x * offset - view.forward_x * forward
    normal_y = view.right_y * offset - view.forward_y * forward
    return max(0.0, normal_x * light.sun[0] + normal_y * light.sun[1])


@kernel
def _pillar(
    view: View,
    light: Any,
    shade: Shade,
    canvas: Canvas,
    x: float,
    y: float,
    half: float,
    low: float,
    high: float,
    color: Rgb,
) -> None:
    """Draw a round post, at least one sample wide."""
    a, depth, distance = _place(view, x, y)
    if depth < 0.4:
        return
    half = max(half, 0.5 * depth / view.focal)
    first, last, top, bottom = _box(view, a, depth, half, low, high)
    haze, lit = haze_at(light, distance), sun_at(shade, light, x, y, 2.0)
    for column in range(first, last + 1):
        offset = ((column + 0.5 - view.middle) / view.focal * depth - a) / half
        sun = lit * _round_sun(view, light, min(max(offset, -1.0), 1.0))
        for row in range(top, bottom + 1):
            if depth < canvas.depth[row, column]:
                write_sample(canvas, row, column, depth, color, sun, 0.75, light, haze)


@kernel
def draw_tree(view: View, tree: Any, light: Any, shade: Shade, canvas: Canvas) -> None:
    """Draw a trunk and a crown of ragged balls of leaves."""
    _, depth, distance = _place(view, tree.x, tree.y)
    crown = 0.26 * tree.size
    if depth < -crown or distance < NEAREST_M + 0.6:
        return
    bark = 0.05 + 0.05 * hash01(tree.seed, 1)
    trunk = (bark * 1.25, bark, bark * 0.8)
    _pillar(view, light, shade, canvas, tree.x, tree.y, 0.022 * tree.size, 0.0, 0.6 * tree.size, trunk)
    balls = 7
    for ball in range(balls):
        turn = 2.399963 * ball + 6.28 * hash01(tree.seed, 20)
        out = crown * 0.62 * (0.35 + 0.65 * hash01(tree.seed, 30 + ball)) if ball else 0.0
        x, y = tree.x + out * np.cos(turn), tree.y + out * np.sin(turn)
        z = tree.size * (0.56 + 0.26 * (ball / (balls - 1.0)) + 0.06 * hash01(tree.seed, 40 + ball))
        radius = crown * (0.5 + 0.24 * hash01(tree.seed, 50 + ball))
        _leaves(view, tree, light, shade, canvas, x, y, z, radius, ball)


@kernel
def _leaves(
    view: View,
    tree: Any,
    light: Any,
    shade: Shade,
    canvas: Canvas,
    x: float,
    y: float,
    z: float,
    radius: float,
    ball: int,
) -> None:
    a, depth, distance = _place(view, x, y)
    if depth < radius + 0.35:
        return
    first, last, top, bottom = _box(view, a, depth, radius * 1.15, z - radius * 1.15, z + radius * 1.15)
    haze = haze_at(light, distance)
    lit = 0.35 + 0.65 * sun_at(shade, light, x + 2.0 * light.sun[0], y + 2.0 * light.sun[1], z + 2.0)
    sun_right = light.sun[0] * view.right_x + light.sun[1] * view.right_y
    sun_back = -(light.sun[0] * view.forward_x + light.sun[1] * view.forward_y)
    tint = 0.8 + 0.4 * hash01(tree.seed, 2)
    seed = tree.seed + 101 * ball
    fine = view.focal / depth > 9.0
    for column in range(first, last + 1):
        dx = ((column + 0.5 - view.middle) / view.focal * depth - a) / radius
        for row in range(top, bottom + 1):
            dy = ((view.horizon - (row + 0.5)) / view.focal * depth + view.z - z) / radius
            off = dx * dx + dy * dy
            if off > 1.32 or depth - radius >= canvas.depth[row, column]:
                continue
            clump = value_noise(dx * radius * 3.2 + 40.0, dy * radius * 3.2 + 40.0, seed)
            leaf = value_noise(dx * radius * 11.0 + 90.0, dy * radius * 11.0 + 90.0, seed + 7) if fine else 0.5
            edge = 0.62 + 0.65 * (0.65 * clump + 0.35 * leaf)
            if off > edge or 0.5 * clump + 0.5 * leaf > light.leaf_density * 0.56 + 0.2 * (1.0 - off):
                continue
            up = np.sqrt(max(0.0, 1.0 - min(off, 1.0)))
            ball_depth = depth - 0.8 * radius * up
            if ball_depth >= canvas.depth[row, column]:
                continue
            facing = max(0.0, 0.25 + 0.75 * (dx * sun_right + dy * light.sun[2] + up * sun_back))
            tone = tint * (0.55 + 0.6 * clump) * (0.7 + 0.6 * leaf)
            color = (light.leaves[0] * tone, light.leaves[1] * tone, light.leaves[2] * tone)
            write_sample(canvas, row, column, ball_depth, color, facing * lit, 0.5 + 0.3 * dy, light, haze)


@kernel
def draw_person(view: View, person: Any, seed: int, light: Any, shade: Shade, canvas: Canvas) -> None:
    """Draw a person on the sidewalk: head, coat, arms, legs."""
    x = person.x + 1.6 * (hash01(seed, 1) - 0.5)
    y = person.y + 1.6 * (hash01(seed, 2) - 0.5)
    a, depth, distance = _place(view, x, y)
    if depth < 0.8 or distance < NEAREST_M or distance > PERSON_FARTHEST_M:
        return
    height = float(person.size)
    first, last, top, bottom = _box(view, a, depth, 0.36, 0.0, height)
    haze, lit = haze_at(light, distance), sun_at(shade, light, x, y, 1.0)
    coat = _cloth(hash_int(seed, 11))
    trousers = _cloth(hash_int(seed, 12))
    skin_tone = 0.12 + 0.4 * hash01(seed, 13)
    skin = (skin_tone, skin_tone * 0.72, skin_tone * 0.58)
    stride = 0.05 + 0.13 * hash01(seed, 14)
    for column in range(first, last + 1):
        dx = (column + 0.5 - view.middle) / view.focal * depth - a
        for row in range(top, bottom + 1):
            if depth >= canvas.depth[row, column]:
                continue
            v = ((view.horizon - (row + 0.5)) / view.focal * depth + view.z) / height
            part = _body_part(dx, v, stride)
            if part == 0:
                continue
            color = skin
            if part == 1:
                color = coat
            elif part == 2:
                color = trousers
            elif part == 3:
                color = (0.04, 0.03, 0.025)
            sun = lit * _round_sun(view, light, min(max(dx / 0.25, -1.0), 1.0))
            write_sample(canvas, row, column, depth, color, sun, 0.6 + 0.25 * v, light, haze)


@kernel
def _body_part(dx: float, v: float, stride: float) -> int:
    """What a point of a person shows: 0 nothing, 1 coat, 2 trousers, 3 hair or shoes, 4 skin."""
    if v > 0.86:
        head = (dx / 0.105) ** 2 + ((v - 0.932) / 0.068) ** 2
        if head < 1.0:
            return 3 if v > 0.955 or dx < -0.07 else 4
        return 4 if v < 0.88 and abs(dx) < 0.05 else 0
    if v > 0.46:
        shoulder = 0.24 - 0.25 * max(0.0, v - 0.8) * 2.0
        waist = 0.15 + 0.09 * smooth(0.5, 0.8, v)
        if abs(dx) < waist:
            return 1
        return 1 if abs(dx) < shoulder + 0.03 and abs(dx) > waist + 0.02 - 0.02 * v else 0
    spread = stride * (0.46 - v) / 0.46
    leg = min(abs(dx - spread), abs(dx + spread))
    if leg < 0.085 - 0.03 * (0.46 - v):
        return 3 if v < 0.04 else 2
    return 0


@kernel
def _cloth(seed: int) -> Rgb:
    tone = 0.015 + 0.28 * hash01(seed, 1) ** 2
    color = hash01(seed, 2)
    if color < 0.5:
        return tone, tone, tone * 1.1
    if color < 0.7:
        return tone * 0.6, tone * 0.8, tone * 1.7
    if color < 0.85:
        return tone * 1.8, tone * 0.5, tone * 0.5
    return tone * 1.5, tone * 1.2, tone * 0.6


@kernel
def draw_post(view: View, thing: Any, light: Any, shade: Shade, canvas: Canvas) -> None:
    """Draw a lamp, a traffic light, a sign or an advertising column."""
    _, depth, distance = _place(view, thing.x, thing.y)
    if depth < 0.4 or distance < NEAREST_M:
        return
    metal = (0.045, 0.05, 0.05)
    if thing.kind == COLUMN:
        _advertising(view, thing, light, shade, canvas)
    elif thing.kind == LAMP:
        _pillar(view, light, shade, canvas, thing.x, thing.y, 0.06, 0.0, thing.size, metal)
        _pillar(view, light, shade, canvas, thing.x, thing.y, 0.1, 0.0, 1.0, metal)
        arm_x, arm_y = -np.sin(float(thing.direction)), np.cos(float(thing.direction))
        for step in range(1, 7):
            reach = 0.2 * step
            glass = (0.5 + light.lamps, 0.5 + 0.8 * light.lamps, 0.45 + 0.5 * light.lamps)
            end = step > 3
            _pillar(
                view,
                light,
                shade,
                canvas,
                thing.x + reach * arm_x,
                thing.y + reach * arm_y,
                0.11,
                thing.size - (0.14 if end else 0.06),
                thing.size,
                glass if end else metal,
            )
    elif thing.kind == SIGNAL:
        _pillar(view, light, shade, canvas, thing.x, thing.y, 0.06, 0.0, thing.size, metal)
        _signal(view, thing, light, canvas)
    elif thing.kind == SIGN:
        _pillar(view, light, shade, canvas, thing.x, thing.y, 0.035, 0.0, thing.size, (0.2, 0.2, 0.2))
        _plate(view, thing, light, canvas)


@kernel
def _advertising(view: View, thing: Any, light: Any, shade: Shade, canvas: Canvas) -> None:
    """Draw a round column with posters, which are fixed in the world."""
    a, depth, distance = _place(view, thing.x, thing.y)
    half, height = 0.62, float(thing.size)
    if depth < 1.2:
        return
    first, last, top, bottom = _box(view, a, depth, half, 0.0, height)
    haze, lit = haze_at(light, distance), sun_at(shade, light, thing.x, thing.y, 1.5)
    for column in range(first, last + 1):
        offset = min(max(((column + 0.5 - view.middle) / view.focal * depth - a) / half, -1.0), 1.0)
        sun = lit * _round_sun(view, light, offset)
        forward = np.sqrt(1.0 - offset * offset)
        angle = np.arctan2(
            view.right_y * offset - view.forward_y * forward, view.right_x * offset - view.forward_x * forward
        )
        poster = (angle + 3.2) / 1.05
        for row in range(top, bottom + 1):
            if depth >= canvas.depth[row, column]:
                continue
            v = (view.horizon - (row + 0.5)) / view.focal * depth + view.z
            color = (0.03, 0.07, 0.05)
            if 0.4 < v < height - 0.35:
                seed = hash_int(thing.seed, int(poster) + 10 * int(v / 1.1))
                color = (0.08 + 0.6 * hash01(seed, 1), 0.08 + 0.5 * hash01(seed, 2), 0.08 + 0.5 * hash01(seed, 3))
                inner = poster - int(poster)
                if 0.25 < inner < 0.75 and 0.3 < v / 1.1 - int(v / 1.1) < 0.6:
                    color = (0.75 - color[0], 0.75 - color[1], 0.7 - color[2])
            write_sample(canvas, row, column, depth, color, sun, 0.7, light, haze)


@kernel
def _signal(view: View, thing: Any, light: Any, canvas: Canvas) -> None:
    a, depth, distance = _place(view, thing.x, thing.y)
    half, low, high = 0.17, float(thing.size) - 0.95, float(thing.size)
    first, last, top, bottom = _box(view, a, depth - 0.1, half, low, high)
    haze = haze_at(light, distance)
    lamp = int(3.0 * hash01(thing.seed, light.seed))
    for column in range(first, last + 1):
        dx = (column + 0.5 - view.middle) / view.focal * depth - a
        for row in range(top, bottom + 1):
            if depth - 0.1 >= canvas.depth[row, column]:
                continue
            v = ((view.horizon - (row + 0.5)) / view.focal * depth + view.z - low) / 0.95 * 3.0
            color = (0.02, 0.02, 0.02)
            if dx * dx + ((v - int(v) - 0.5) * 0.32) ** 2 < 0.012 and int(v) == lamp:
                color = (0.1, 1.2, 0.4) if lamp == 0 else ((1.3, 0.8, 0.1) if lamp == 1 else (1.4, 0.1, 0.08))
            write_sample(canvas, row, column, depth - 0.1, color, 0.3, 0.8, light, haze)


@kernel
def _plate(view: View, thing: Any, light: Any, canvas: Canvas) -> None:
    """Draw a street sign: round with a red rim, blue square, or yellow diamond."""
    a, depth, distance = _place(view, thing.x, thing.y)
    middle = float(thing.size)
    first, last, top, bottom = _box(view, a, depth - 0.06, 0.36, middle - 0.36, middle + 0.36)
    haze = haze_at(light, distance)
    shape = int(3.0 * hash01(thing.seed, 1))
    for column in range(first, last + 1):
        dx = (column + 0.5 - view.middle) / view.focal * depth - a
        for row in range(top, bottom + 1):
            dy = (view.horizon - (row + 0.5)) / view.focal * depth + view.z - middle
            reach = max(abs(dx), abs(dy)) if shape == 1 else (abs(dx) + abs(dy) if shape == 2 else np.hypot(dx, dy))
            if reach > 0.34 or depth - 0.06 >= canvas.depth[row, column]:
                continue
            color = (0.75, 0.75, 0.75)
            if shape == 1:
                color = (0.03, 0.1, 0.5) if reach > 0.14 or hash01(thing.seed, 2) < 0.4 else color
            elif shape == 2:
                color = (0.8, 0.55, 0.04) if reach < 0.28 else (0.02, 0.02, 0.02)
            elif reach > 0.24 or (abs(dy) < 0.06 and hash01(thing.seed, 2) < 0.5):
                color = (0.6, 0.02, 0.02)
            write_sample(canvas, row, column, depth - 0.06, color, 0.4, 0.75, light, haze)
