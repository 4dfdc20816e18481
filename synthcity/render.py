"""From poses to images: the compiled renderer, and the camera that converts its samples to bytes."""

from typing import Any

import numpy as np

from synthcity.cars import car_seed, draw_car, make_car
from synthcity.compiling import compiled_function, kernel, sources_fingerprint
from synthcity.lighting import sun_vectors
from synthcity.noise import hash01, hash_int
from synthcity.scene import MOVING, PARKED, PERSON, TREE, District, Grid, Ground, Scene
from synthcity.shadows import cast_shadows
from synthcity.things import draw_person, draw_post, draw_tree
from synthcity.view import MAX_FOUND, MAX_WALLS, Canvas, Scratch, Shade, View, collect_visible, make_view
from synthcity.walls import draw_city

OBJECT_REACH_M = 3.5
TARGET_BRIGHTNESS = 0.36  # mean linear brightness, target of the automatic exposure
ADAPTATION = 0.7  # share of the difference that the automatic exposure corrects
WHITE = 3.2  # linear brightness that becomes white


@kernel
def _draw_objects(
    scene: Any, view: View, pose: Any, light: Any, shade: Shade, canvas: Canvas, found: np.ndarray
) -> int:
    count, _ = collect_visible(view, scene.object_grid, OBJECT_REACH_M, found)
    for index in range(count):
        thing = scene.objects[found[index]]
        if thing.kind == TREE:
            draw_tree(view, thing, light, shade, canvas)
        elif thing.kind == PARKED:
            seed = car_seed(thing, pose.capture_seed)
            if hash01(seed, 99) < pose.traffic:
                draw_car(view, make_car(thing, seed), light, shade, canvas)
        elif thing.kind == MOVING:
            seed = car_seed(thing, pose.site_seed)
            if hash01(seed, 99) < thing.chance:
                draw_car(view, make_car(thing, seed), light, shade, canvas)
        elif thing.kind == PERSON:
            seed = hash_int(thing.seed, pose.site_seed)
            if hash01(seed, 99) < thing.chance:
                draw_person(view, thing, seed, light, shade, canvas)
        else:
            draw_post(view, thing, light, shade, canvas)
    return count


@kernel
def _average(canvas: Canvas, rays: int, size: int) -> float:
    """Average the rays x rays samples of each pixel, in place: pixel (i, j) moves to sample (i, j).

    A sample is overwritten only after its own pixel has been read.  Returns the mean brightness of the image.
    """
    linear = canvas.color
    share = 1.0 / (rays * rays)
    total = 0.0
    for row in range(size):
        for column in range(size):
            for c in range(3):
                value = 0.0
                for i in range(rays):
                    for j in range(rays):
                        # Clipped, because a lamp brighter than white would dominate the pixel and show jagged edges.
                        value += min(canvas.color[row * rays + i, column * rays + j, c], 4.0)
                linear[row, column, c] = value * share
            total += 0.3 * linear[row, column, 0] + 0.6 * linear[row, column, 1] + 0.1 * linear[row, column, 2]
    return total / (size * size)


@kernel
def _develop(canvas: Canvas, rays: int, pose: Any, light: Any, out: np.ndarray) -> None:
    """Exposure, white balance, lens, tone curve and sensor noise: linear samples to bytes (size, size, 3)."""
    size, linear = out.shape[0], canvas.color
    mean = _average(canvas, rays, size)
    gain = light.exposure * (TARGET_BRIGHTNESS / max(mean, 1e-3)) ** ADAPTATION
    image_seed = hash_int(pose.image_id, 4242)
    for row in range(size):
        for column in range(size):
            x, y = (column + 0.5) / size - 0.5, (row + 0.5) / size - 0.5
            lens = gain * (1.0 - light.vignette * 2.0 * (x * x + y * y))
            red, green, blue = linear[row, column, 0], linear[row, column, 1], linear[row, column, 2]
            gray = 0.3 * red + 0.6 * green + 0.1 * blue
            pixel = hash_int(image_seed, row * size + column)
            for c in range(3):
                value = red if c == 0 else (green if c == 1 else blue)
                value = max(0.0, gray + (value - gray) * light.saturation) * light.white[c] * lens
                tone = np.sqrt(value * (1.0 + value / (WHITE * WHITE)) / (1.0 + 0.55 * value)) * 255.0
                word = hash_int(pixel, c)
                # Four bytes of a hash add up to nearly a normal deviate.
                bell = (word & 255) + ((word >> 8) & 255) + ((word >> 16) & 255) + (word >> 24)
                tone += light.noise * (bell - 510.0) * (1.0 / 147.8)
                out[row, column, c] = np.uint8(min(max(tone + 0.5, 0.0), 255.0))


@kernel
def _unpack(city: Any, canvas: Any) -> tuple[Scene, Shade, Canvas]:
    """Convert plain tuples to named ones.

    Compiled functions take only plain tuples and arrays from Python: numba caches the types of their arguments on disk,
    and a class that a later version has moved could not be read from this cache.
    """
    faces, face_grid, lots, objects, object_grid, ground, shade = city
    scene = Scene(faces, _grid(face_grid), lots, objects, _grid(object_grid), _ground(ground))
    return scene, Shade(shade[0], shade[1], shade[2]), Canvas(canvas[0], canvas[1], canvas[2])


@kernel
def _grid(grid: Any) -> Grid:
    return Grid(grid[0], grid[1], grid[2], grid[3], grid[4], grid[5])


@kernel
def _ground(ground: Any) -> Ground:
    return Ground(ground[0], ground[1], ground[2], ground[3], ground[4])


def _pack(scene: Scene, shade: tuple[np.ndarray, float, float]) -> tuple[Any, ...]:
    return (*(tuple(part) if isinstance(part, tuple) else part for part in scene), shade)


def _compile_entry_points(fingerprint: int) -> tuple[Any, Any, Any]:
    """The three compiled functions that Python calls.

    They are called one after the other: nested in one function, everything would be optimized twice.
    """

    @compiled_function
    def city(city: Any, lights: np.ndarray, poses: np.ndarray, samples: Any, scratch: Any) -> int:
        if fingerprint < 0:
            return 0
        scene, shade, canvas = _unpack(city, samples)
        view = make_view(poses[0], canvas.depth.shape[0])
        buffers = Scratch(scratch[0], scratch[1], scratch[2], scratch[3], scratch[4])
        return draw_city(scene, view, poses[0], lights[poses[0].light], shade, canvas, buffers)

    @compiled_function
    def objects(city: Any, lights: np.ndarray, poses: np.ndarray, samples: Any, found: np.ndarray) -> int:
        if fingerprint < 0:
            return 0
        scene, shade, canvas = _unpack(city, samples)
        view = make_view(poses[0], canvas.depth.shape[0])
        return _draw_objects(scene, view, poses[0], lights[poses[0].light], shade, canvas, found)

    @compiled_function
    def develop(lights: np.ndarray, poses: np.ndarray, samples: Any, rays: int, out: np.ndarray) -> None:
        if fingerprint < 0:
            return
        canvas = Canvas(samples[0], samples[1], samples[2])
        _develop(canvas, rays, poses[0], lights[poses[0].light], out)

    return city, objects, develop


_CITY, _OBJECTS, _DEVELOP = _compile_entry_points(sources_fingerprint())


def render(
    scene: Scene,
    shade: tuple[np.ndarray, float, float],
    lights: np.ndarray,
    poses: np.ndarray,
    image_size: int,
    samples_per_pixel: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Render poses (I,) POSE under lights (lights,) LIGHT.

    shade: from `district_shade`.  Returns images (I, image_size, image_size, 3) uint8, and the numbers of walls and
    objects that each of them processed, (I, 2) int64.  An image depends only on its pose, not on its batch.
    """
    images = np.empty((len(poses), image_size, image_size, 3), np.uint8)
    visits = np.empty((len(poses), 2), np.int64)
    rays = round(samples_per_pixel**0.5)
    samples, scratch = _samples(image_size * rays), _scratch(image_size * rays)
    city = _pack(scene, shade)
    for index in range(len(poses)):
        pose = poses[index : index + 1]
        visits[index, 0] = _CITY(city, lights, pose, samples, scratch)
        visits[index, 1] = _OBJECTS(city, lights, pose, samples, scratch[0])
        _DEVELOP(lights, pose, samples, rays, images[index])
    return images, visits


def trace(
    scene: Scene, shade: tuple[np.ndarray, float, float], lights: np.ndarray, pose: np.ndarray, side: int
) -> Canvas:
    """Trace side x side rays of one pose (1,) POSE through the city, without camera effects, trees, cars and people.

    Returns linear colors, depths along the optical axis in meters and what each ray shows.
    """
    samples = _samples(side)
    _CITY(_pack(scene, shade), lights, pose, samples, _scratch(side))
    return Canvas(*samples)


def _samples(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.empty((side, side, 3), np.float32),
        np.empty((side, side), np.float32),
        np.empty((side, side), np.uint8),
    )


def _scratch(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.empty(MAX_FOUND, np.int64),
        np.empty((side, MAX_WALLS), np.int64),
        np.empty((side, MAX_WALLS), np.float64),
        np.empty((side, MAX_WALLS), np.float64),
        np.empty(side, np.int64),
    )


def district_shade(district: District) -> tuple[np.ndarray, float, float]:
    """Shadow maps of a district for all suns."""
    scene = district.scene
    return cast_shadows(scene.lots, scene.objects, district.nodes, sun_vectors(district.rotation_deg))
