"""Buildings, ground and sky of one image, column by column, from the ground up and from near to far."""

from typing import Any

import numpy as np

from synthcity.compiling import kernel
from synthcity.facades import facade, painted, roof_rise
from synthcity.ground import find_block, ground_color, guess_block
from synthcity.noise import smooth
from synthcity.scene import VIEW_LIMIT_M
from synthcity.shadows import shade_top, sunlit
from synthcity.sky import sky_color, skyline
from synthcity.view import GROUND, MAX_WALLS, SKY, WALL, Canvas, Scratch, Shade, View, collect_visible, haze_at, sun_at

NEAR_M = 0.12


@kernel
def draw_city(scene: Any, view: View, pose: Any, light: Any, shade: Shade, canvas: Canvas, scratch: Scratch) -> int:
    """Fill every sample of the canvas with wall, ground or sky; returns the number of walls considered."""
    count, _ = collect_visible(view, scene.face_grid, 9.0, scratch.found)
    scratch.numbers[:] = 0
    for index in range(count):
        number = scratch.found[index]
        _project_face(scene.faces[number], number, view, scratch)
    for column in range(view.side):
        tangent = (column + 0.5 - view.middle) / view.focal
        row = view.side - 1
        for k in range(scratch.numbers[column]):
            depth = scratch.depths[column, k]
            base = view.horizon + view.focal * view.z / depth
            row = _draw_ground(scene, view, light, shade, canvas, column, tangent, row, base)
            face = scene.faces[scratch.walls[column, k]]
            row = _draw_wall(
                scene, view, pose, light, shade, canvas, column, tangent, row, depth, face, scratch.shares[column, k]
            )
            if row < 0:
                break
        row = _draw_ground(scene, view, light, shade, canvas, column, tangent, row, view.horizon)
        _draw_sky(view, light, canvas, column, tangent, row)
    return count


@kernel
def _project_face(face: Any, index: int, view: View, scratch: Scratch) -> None:
    """Insert a wall that faces the camera into the lists of its columns, which are sorted by depth."""
    x0, y0, x1, y1 = face.x0 - view.x, face.y0 - view.y, face.x1 - view.x, face.y1 - view.y
    if (x1 - x0) * y0 - (y1 - y0) * x0 < 0.0:  # faces away from the camera
        return
    a0, z0 = x0 * view.right_x + y0 * view.right_y, x0 * view.forward_x + y0 * view.forward_y
    a1, z1 = x1 * view.right_x + y1 * view.right_y, x1 * view.forward_x + y1 * view.forward_y
    if max(z0, z1) < NEAR_M or min(x0 * x0 + y0 * y0, x1 * x1 + y1 * y1) > VIEW_LIMIT_M**2:
        return
    da, dz = a1 - a0, z1 - z0
    left, left_z, right, right_z = a0, z0, a1, z1
    if z0 < NEAR_M:
        left, left_z = a0 + da * (NEAR_M - z0) / dz, NEAR_M
    if z1 < NEAR_M:
        right, right_z = a0 + da * (NEAR_M - z0) / dz, NEAR_M
    first, last = left / left_z * view.focal + view.middle, right / right_z * view.focal + view.middle
    if first > last:
        first, last = last, first
    for column in range(max(0, int(np.ceil(first - 0.5))), min(view.side - 1, int(np.floor(last - 0.5))) + 1):
        tangent = (column + 0.5 - view.middle) / view.focal
        share = min(max((tangent * z0 - a0) / (da - tangent * dz), 0.0), 1.0)
        depth = max(z0 + share * dz, NEAR_M)
        _insert(column, index, depth, share, scratch)


@kernel
def _insert(column: int, index: int, depth: float, share: float, scratch: Scratch) -> None:
    walls, depths, shares, numbers = scratch.walls, scratch.depths, scratch.shares, scratch.numbers
    place = numbers[column]
    if place == MAX_WALLS:
        if depth >= depths[column, place - 1]:
            return
        place -= 1
    else:
        numbers[column] += 1
    # Ties, as for shared walls, are decided by the number of the wall, not by the order of grid cells.
    while place > 0 and (
        depths[column, place - 1] > depth or (depths[column, place - 1] == depth and walls[column, place - 1] > index)
    ):
        depths[column, place] = depths[column, place - 1]
        walls[column, place] = walls[column, place - 1]
        shares[column, place] = shares[column, place - 1]
        place -= 1
    depths[column, place], walls[column, place], shares[column, place] = depth, index, share


@kernel
def _draw_wall(
    scene: Any,
    view: View,
    pose: Any,
    light: Any,
    shade: Shade,
    canvas: Canvas,
    column: int,
    tangent: float,
    row: int,
    depth: float,
    face: Any,
    share: float,
) -> int:
    """Draw the part of one wall above `row`; returns the first row above it."""
    lot = scene.lots[face.lot]
    u = share * face.length
    top = face.height + roof_rise(lot, face.kind, u, face.length)
    top_row = view.horizon + view.focal * (view.z - top) / depth
    if row + 0.5 <= top_row:
        return row
    normal_x, normal_y = (face.y1 - face.y0) / face.length, (face.x0 - face.x1) / face.length
    facing = max(0.0, normal_x * light.sun[0] + normal_y * light.sun[1])
    x = view.x + (view.forward_x + tangent * view.right_x) * depth + normal_x * 1.3
    y = view.y + (view.forward_y + tangent * view.right_y) * depth + normal_y * 1.3
    shaded = shade_top(shade.maps, shade.x0, shade.y0, light.sun_index, x, y)
    paint = painted(lot, pose.year)
    haze = haze_at(light, depth * np.sqrt(1.0 + tangent * tangent))
    footprint = depth / view.focal
    # Walls look similar at all times of the day, with slightly more sky on those that face the sun.
    sky = 0.84 + 0.1 * (normal_x * light.sun[0] + normal_y * light.sun[1])
    while row >= 0 and row + 0.5 > top_row:
        v = max(0.0, view.z + depth * (view.horizon - (row + 0.5)) / view.focal)
        red, green, blue, glow = facade(
            lot, face.kind, u, v, face.length, paint, pose.year, pose.capture_seed, light.lamps, footprint
        )
        sun = facing * sunlit(v, shaded)
        ambient = sky * (0.68 + 0.32 * smooth(0.0, 3.5, v))
        dim = (1.0 - glow) * (1.0 - haze)
        clear = 1.0 - haze
        canvas.color[row, column, 0] = (
            red * (dim * (sun * light.sun_rgb[0] + ambient * light.ambient[0]) + glow * clear) + light.haze[0] * haze
        )
        canvas.color[row, column, 1] = (
            green * (dim * (sun * light.sun_rgb[1] + ambient * light.ambient[1]) + glow * clear) + light.haze[1] * haze
        )
        canvas.color[row, column, 2] = (
            blue * (dim * (sun * light.sun_rgb[2] + ambient * light.ambient[2]) + glow * clear) + light.haze[2] * haze
        )
        canvas.depth[row, column] = depth
        canvas.shows[row, column] = WALL
        row -= 1
    return row


@kernel
def _draw_ground(
    scene: Any, view: View, light: Any, shade: Shade, canvas: Canvas, column: int, tangent: float, row: int, end: float
) -> int:
    """Draw ground from `row` up to the row `end`; returns the first row above it."""
    if row + 0.5 <= end:
        return row
    ground = scene.ground
    ray_x, ray_y = view.forward_x + tangent * view.right_x, view.forward_y + tangent * view.right_y
    stretch = np.sqrt(1.0 + tangent * tangent)
    block_x, block_y = guess_block(ground, view.x, view.y)
    while row >= 0 and row + 0.5 > end:
        depth = view.z * view.focal / (row + 0.5 - view.horizon)
        distance = depth * stretch
        canvas.depth[row, column] = depth
        canvas.shows[row, column] = GROUND
        if distance > VIEW_LIMIT_M:
            for c in range(3):
                canvas.color[row, column, c] = light.haze[c]
            row -= 1
            continue
        x, y = view.x + ray_x * depth, view.y + ray_y * depth
        block_x, block_y = find_block(ground, x, y, block_x, block_y)
        if block_x < 0:
            block_x, block_y = guess_block(ground, x, y)
            block_x, block_y = find_block(ground, x, y, block_x, block_y)
        # The footprint of a ray on the ground is long and narrow: take the mean of length and width.
        footprint = depth / view.focal * np.sqrt(max(1.0, depth / view.z))
        red, green, blue = ground_color(ground, x, y, block_x, block_y, footprint)
        sun = light.sun[2] * sun_at(shade, light, x, y, 0.0)
        haze = haze_at(light, distance)
        clear = 1.0 - haze
        wet = light.wet * (1.0 - 0.5 * smooth(2.0, 0.0, distance)) * clear
        mirror = 0.5 * wet * smooth(0.0, 40.0, distance)
        dry = (1.0 - 0.45 * wet) * clear
        canvas.color[row, column, 0] = red * dry * (sun * light.sun_rgb[0] + light.ambient[0]) + light.haze[0] * (
            haze + 0.5 * mirror
        )
        canvas.color[row, column, 1] = green * dry * (sun * light.sun_rgb[1] + light.ambient[1]) + light.haze[1] * (
            haze + 0.5 * mirror
        )
        canvas.color[row, column, 2] = blue * dry * (sun * light.sun_rgb[2] + light.ambient[2]) + light.haze[2] * (
            haze + 0.5 * mirror
        )
        row -= 1
    return row


@kernel
def _draw_sky(view: View, light: Any, canvas: Canvas, column: int, tangent: float, row: int) -> None:
    stretch = np.sqrt(1.0 + tangent * tangent)
    dx = (view.forward_x + tangent * view.right_x) / stretch
    dy = (view.forward_y + tangent * view.right_y) / stretch
    far = skyline(np.arctan2(dx, dy))
    while row >= 0:
        slope = (view.horizon - (row + 0.5)) / (view.focal * stretch)
        red, green, blue = sky_color(light, dx, dy, max(slope, 0.0), far)
        canvas.color[row, column, 0], canvas.color[row, column, 1], canvas.color[row, column, 2] = red, green, blue
        canvas.depth[row, column] = 1.0e6
        canvas.shows[row, column] = SKY
        row -= 1
