"""Parked and moving cars.  A car has two convex parts, body and cabin, which rays intersect plane by plane."""

from typing import Any, NamedTuple

import numpy as np

from synthcity.compiling import inner_function, kernel
from synthcity.noise import hash01, hash_int, smooth
from synthcity.view import GROUND, Canvas, Shade, View, haze_at, sun_at, write_sample

FARTHEST_M = 120.0
NEAREST_M = 4.2  # closer cars would fill the image
CLEARANCE_M = 0.22
WHEEL_M = 0.33
Rgb = tuple[float, float, float]


class Car(NamedTuple):
    """One car in its own axes: x forward, y left, z up, the origin on the ground below its center."""

    x: float
    y: float
    ahead_x: float
    ahead_y: float
    half_length: float
    half_width: float
    belt: float  # height where the cabin begins
    roof: float
    base_back: float  # ends of the cabin at the belt
    base_front: float
    top_back: float  # ends of the cabin at the roof
    top_front: float
    paint: Rgb
    seed: int


@kernel
def make_car(thing: Any, seed: int) -> Car:
    """Create the car of a parking slot.  seed: of the slot and the day."""
    shape = hash01(seed, 1)
    paint = _paint(seed)
    # Cars are not parked exactly at the center of a slot.
    shift, slide = 0.5 * (hash01(seed, 2) - 0.5), 0.24 * (hash01(seed, 3) - 0.5)
    ahead_x, ahead_y = np.cos(float(thing.direction)), np.sin(float(thing.direction))
    x, y = thing.x + shift * ahead_x - slide * ahead_y, thing.y + shift * ahead_y + slide * ahead_x
    if shape < 0.42:
        return Car(x, y, ahead_x, ahead_y, 2.25, 0.9, 0.9, 1.44, -1.75, 0.95, -1.1, 0.2, paint, seed)
    if shape < 0.68:
        return Car(x, y, ahead_x, ahead_y, 2.0, 0.87, 0.94, 1.5, -1.95, 0.95, -1.55, 0.25, paint, seed)
    if shape < 0.88:
        return Car(x, y, ahead_x, ahead_y, 2.3, 0.95, 1.08, 1.74, -2.25, 1.05, -2.0, 0.35, paint, seed)
    return Car(x, y, ahead_x, ahead_y, 2.6, 1.0, 1.25, 2.25, -2.58, 1.75, -2.5, 1.15, paint, seed)


@kernel
def _paint(seed: int) -> Rgb:
    """Mostly white, black, gray and silver, as in any city."""
    choice, tone = hash01(seed, 10), hash01(seed, 11)
    if choice < 0.24:
        return 0.62 + 0.1 * tone, 0.62 + 0.1 * tone, 0.6 + 0.1 * tone
    if choice < 0.44:
        return 0.015 + 0.03 * tone, 0.016 + 0.03 * tone, 0.02 + 0.03 * tone
    if choice < 0.66:
        return 0.12 + 0.25 * tone, 0.125 + 0.25 * tone, 0.13 + 0.25 * tone
    if choice < 0.78:
        return 0.03, 0.06 + 0.06 * tone, 0.16 + 0.2 * tone
    if choice < 0.89:
        return 0.3 + 0.2 * tone, 0.02, 0.02
    if choice < 0.95:
        return 0.05, 0.12 + 0.1 * tone, 0.07
    return 0.5, 0.3 + 0.2 * tone, 0.06


@kernel
def draw_car(view: View, car: Car, light: Any, shade: Shade, canvas: Canvas) -> None:
    """Draw a car where nothing is nearer, and its contact shadow on the ground."""
    dx, dy = car.x - view.x, car.y - view.y
    middle_z = dx * view.forward_x + dy * view.forward_y
    distance = np.sqrt(dx * dx + dy * dy)
    if middle_z < -car.half_length or distance > FARTHEST_M or distance < NEAREST_M:
        return
    first, last, high, low = _bounds(view, car, 0.5)
    if first > last or high > low:
        return
    _contact_shadow(view, car, canvas, first, last, low)
    side_x, side_y = -car.ahead_y, car.ahead_x
    origin_x, origin_y = -(dx * car.ahead_x + dy * car.ahead_y), -(dx * side_x + dy * side_y)
    forward_x = view.forward_x * car.ahead_x + view.forward_y * car.ahead_y
    forward_y = view.forward_x * side_x + view.forward_y * side_y
    right_x = view.right_x * car.ahead_x + view.right_y * car.ahead_y
    right_y = view.right_x * side_x + view.right_y * side_y
    sun_x = light.sun[0] * car.ahead_x + light.sun[1] * car.ahead_y
    sun_y = light.sun[0] * side_x + light.sun[1] * side_y
    sunshine = sun_at(shade, light, car.x, car.y, 1.0)
    haze = haze_at(light, distance)
    for column in range(first, last + 1):
        tangent = (column + 0.5 - view.middle) / view.focal
        ray_x, ray_y = forward_x + tangent * right_x, forward_y + tangent * right_y
        for row in range(high, low + 1):
            slope = (view.horizon - (row + 0.5)) / view.focal
            depth, plane, part = _hit(car, origin_x, origin_y, view.z, ray_x, ray_y, slope)
            if depth <= 0.0 or depth >= canvas.depth[row, column]:
                continue
            x, y, z = origin_x + ray_x * depth, origin_y + ray_y * depth, view.z + slope * depth
            color, normal, gloss = _surface(car, part, plane, x, y, z)
            facing = max(0.0, normal[0] * sun_x + normal[1] * sun_y + normal[2] * light.sun[2])
            ambient = 0.62 + 0.38 * normal[2] + gloss
            ambient *= 0.55 + 0.45 * smooth(0.1, 0.7, z)
            write_sample(canvas, row, column, depth, color, facing * sunshine, ambient, light, haze)


@kernel
def _bounds(view: View, car: Car, extra: float) -> tuple[int, int, int, int]:
    """Columns first..last and rows high..low that a car, `extra` meters larger, may cover."""
    first, last, high, low = 1.0e9, -1.0e9, 1.0e9, -1.0e9
    for corner in range(8):
        along = (car.half_length + extra) * (1.0 if corner & 1 else -1.0)
        side = (car.half_width + extra) * (1.0 if corner & 2 else -1.0)
        z = car.roof if corner & 4 else 0.0
        x = car.x + along * car.ahead_x - side * car.ahead_y - view.x
        y = car.y + along * car.ahead_y + side * car.ahead_x - view.y
        a, depth = x * view.right_x + y * view.right_y, x * view.forward_x + y * view.forward_y
        depth = max(depth, 0.3)
        column, row = a / depth * view.focal + view.middle, view.horizon + view.focal * (view.z - z) / depth
        first, last, high, low = min(first, column), max(last, column), min(high, row), max(low, row)
    side_m = view.side - 1
    return (
        max(0, int(max(first, -9.0))),
        min(side_m, int(min(last, 1.0e6))),
        max(0, int(max(high, -9.0))),
        min(side_m, int(min(low, 1.0e6))),
    )


@inner_function("Tuple((float64, float64, int64))(float64, float64, int64, int64, float64, float64)")
def _clip(
    enter: float, leave: float, plane: int, number: int, outside: float, speed: float
) -> tuple[float, float, int]:
    """Clip a ray at one plane.  outside: distance of its origin beyond the plane; speed: its outward velocity."""
    if speed < -1e-9:
        depth = -outside / speed
        if depth > enter:
            return depth, leave, number
    elif speed > 1e-9:
        leave = min(leave, -outside / speed)
    elif outside > 0.0:
        leave = -1.0
    return enter, leave, plane


@kernel
def _hit(car: Car, x: float, y: float, z: float, dx: float, dy: float, dz: float) -> tuple[float, int, int]:
    """Depth, plane and part (0 body, 1 cabin) of the first point of a car on a ray; depth 0: none."""
    enter, leave, plane = _clip(0.0, 1e9, -1, 0, x - car.half_length, dx)
    enter, leave, plane = _clip(enter, leave, plane, 1, -x - car.half_length, -dx)
    enter, leave, plane = _clip(enter, leave, plane, 2, y - car.half_width, dy)
    enter, leave, plane = _clip(enter, leave, plane, 3, -y - car.half_width, -dy)
    enter, leave, plane = _clip(enter, leave, plane, 4, z - car.belt, dz)
    enter, leave, plane = _clip(enter, leave, plane, 5, -z, -dz)
    # The hood slopes towards the front, the trunk slightly towards the back.
    enter, leave, plane = _clip(enter, leave, plane, 6, z - car.belt + 0.16 * (x - car.base_front), dz + 0.16 * dx)
    enter, leave, plane = _clip(enter, leave, plane, 7, z - car.belt - 0.12 * (x - car.base_back), dz - 0.12 * dx)
    best, best_plane, part = 0.0, -1, 0
    if plane >= 0 and enter < leave:
        best, best_plane = enter, plane
    height = car.roof - car.belt
    front, back = (car.base_front - car.top_front) / height, (car.top_back - car.base_back) / height
    above = z - car.belt
    enter, leave, plane = _clip(0.0, 1e9, -1, 0, x - car.base_front + front * above, dx + front * dz)
    enter, leave, plane = _clip(enter, leave, plane, 1, -x + car.base_back + back * above, -dx + back * dz)
    enter, leave, plane = _clip(enter, leave, plane, 2, y - car.half_width + 0.04 + 0.28 * above, dy + 0.28 * dz)
    enter, leave, plane = _clip(enter, leave, plane, 3, -y - car.half_width + 0.04 + 0.28 * above, -dy + 0.28 * dz)
    enter, leave, plane = _clip(enter, leave, plane, 4, z - car.roof, dz)
    enter, leave, plane = _clip(enter, leave, plane, 5, car.belt - 0.15 - z, -dz)
    if plane >= 0 and enter < leave and (best_plane < 0 or enter < best):
        best, best_plane, part = enter, plane, 1
    return best, best_plane, part


@kernel
def _surface(car: Car, part: int, plane: int, x: float, y: float, z: float) -> tuple[Rgb, Rgb, float]:
    """Color, normal and additional reflected sky of a point of a car."""
    normal = (0.0, 0.0, 1.0)
    if plane == 0:
        normal = (0.94, 0.0, 0.34) if part else (1.0, 0.0, 0.0)
    elif plane == 1:
        normal = (-0.94, 0.0, 0.34) if part else (-1.0, 0.0, 0.0)
    elif plane == 2:
        normal = (0.0, 0.96, 0.27) if part else (0.0, 1.0, 0.0)
    elif plane == 3:
        normal = (0.0, -0.96, 0.27) if part else (0.0, -1.0, 0.0)
    if part:
        return _cabin(car, plane, x, y, z), normal, 0.25
    if plane in (2, 3):
        return _flank(car, x, z), normal, 0.05 + 0.1 * smooth(0.5, 0.9, z)
    if plane in (0, 1):
        return _end(car, plane == 0, y, z), normal, 0.05
    return car.paint, normal, 0.12


@kernel
def _cabin(car: Car, plane: int, x: float, y: float, z: float) -> Rgb:
    if plane == 4 or z > car.roof - 0.07 or z < car.belt + 0.03:
        return car.paint
    dark = 0.02 + 0.06 * smooth(car.belt, car.roof, z)
    if plane in (2, 3):
        middle = 0.5 * (car.top_back + car.top_front)
        lean = (z - car.belt) / (car.roof - car.belt)
        back = car.base_back + (car.top_back - car.base_back) * lean
        front = car.base_front + (car.top_front - car.base_front) * lean
        closed = car.roof > 2.0 and x < 0.3
        if closed or abs(x - middle) < 0.05 or x < back + 0.14 or x > front - 0.1:
            return car.paint
    elif abs(y) > car.half_width - 0.04 - 0.28 * (z - car.belt) - 0.07:
        return car.paint
    return dark, dark * 1.05, dark * 1.12


@kernel
def _flank(car: Car, x: float, z: float) -> Rgb:
    axle = car.half_length - 0.85
    off = abs(x) - axle
    wheel = off * off + (z - WHEEL_M) ** 2
    if wheel < WHEEL_M * WHEEL_M:
        return (0.3, 0.3, 0.31) if wheel < 0.035 else (0.012, 0.012, 0.013)
    if z < CLEARANCE_M or wheel < (WHEEL_M + 0.06) ** 2:
        return 0.006, 0.006, 0.007
    shade = 1.0
    if abs(x - 0.85) < 0.015 or abs(x + 0.15) < 0.015 or abs(z - car.belt + 0.28) < 0.012:
        shade = 0.5
    elif z < 0.36:
        shade = 0.45
    return car.paint[0] * shade, car.paint[1] * shade, car.paint[2] * shade


@kernel
def _end(car: Car, front: bool, y: float, z: float) -> Rgb:
    if z < CLEARANCE_M:
        return 0.006, 0.006, 0.007
    lamp = abs(y) > car.half_width - 0.42 and 0.55 < z < 0.75
    if lamp:
        return (0.8, 0.8, 0.74) if front else (0.55, 0.02, 0.02)
    if abs(y) < 0.27 and 0.42 < z < 0.55:
        return 0.65, 0.65, 0.6
    if z < 0.5 or (front and abs(y) < 0.5 and 0.56 < z < 0.68):
        return 0.03, 0.03, 0.032
    return car.paint


@kernel
def _contact_shadow(view: View, car: Car, canvas: Canvas, first: int, last: int, low: int) -> None:
    """Darken the ground below and around a car."""
    for row in range(max(0, int(view.horizon) + 1), low + 1):
        depth = view.z * view.focal / (row + 0.5 - view.horizon)
        for column in range(first, last + 1):
            if canvas.shows[row, column] != GROUND:
                continue
            tangent = (column + 0.5 - view.middle) / view.focal
            x = view.x + (view.forward_x + tangent * view.right_x) * depth - car.x
            y = view.y + (view.forward_y + tangent * view.right_y) * depth - car.y
            along = abs(x * car.ahead_x + y * car.ahead_y) - car.half_length
            side = abs(y * car.ahead_x - x * car.ahead_y) - car.half_width
            dark = 0.72 * smooth(0.35, -0.35, along) * smooth(0.4, -0.3, side)
            if dark > 0.0:
                for c in range(3):
                    canvas.color[row, column, c] *= 1.0 - dark


@kernel
def car_seed(thing: Any, day: int) -> int:
    """Seed of the car in a slot on a day."""
    return hash_int(thing.seed, day)
