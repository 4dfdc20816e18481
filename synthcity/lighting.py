"""Weather, season and camera of a capture: independent draws, with moderate variation."""

import numpy as np

from synthcity.lots import srgb_to_linear
from synthcity.scene import LIGHT, NUM_SUNS

# Directions of the sun as (degrees clockwise from north, degrees above the horizon); one shadow map each.
SUNS = ((95.0, 26.0), (135.0, 40.0), (175.0, 52.0), (210.0, 46.0), (245.0, 33.0), (265.0, 24.0))
CLEAR, FAIR, OVERCAST, DUSK = range(4)
WEATHER_SHARES = (0.34, 0.26, 0.27, 0.13)
# Light of each weather: sun, ambient, sky at the horizon, sky above (sRGB bytes; sun and ambient are scaled below).
SUN_COLORS = ((255, 244, 226), (255, 240, 220), (255, 250, 245), (255, 190, 130))
AMBIENT_COLORS = ((196, 214, 240), (206, 216, 232), (226, 228, 232), (170, 170, 200))
SKY_LOW = ((206, 222, 238), (214, 222, 232), (214, 216, 220), (246, 190, 142))
SKY_HIGH = ((88, 138, 202), (112, 150, 200), (176, 182, 190), (92, 104, 152))
SUN_STRENGTH = (1.5, 1.15, 0.1, 0.75)
AMBIENT_STRENGTH = (0.62, 0.72, 1.05, 0.6)
CLOUDS = ((0.0, 0.35), (0.35, 0.65), (0.8, 1.0), (0.2, 0.6))
LEAVES = ((112, 136, 62), (84, 116, 50), (168, 110, 44), (112, 92, 70))  # spring, summer, autumn, winter
LEAF_DENSITY = (0.9, 1.0, 0.8, 0.3)


def sample_lights(count: int, strength: float, rotation_deg: float, random: np.random.Generator) -> np.ndarray:
    """Draw `count` lights (count,) LIGHT for one district.

    strength: 0 gives the same neutral light every time, 1 the full variety.  rotation_deg: of the district, because
    the sun is stored in its axes.
    """
    lights = np.zeros(count, dtype=LIGHT)
    lights["seed"] = random.integers(0, 2**31, count)
    neutral = random.random(count) >= strength
    weather = random.choice(4, count, p=WEATHER_SHARES)
    weather[neutral] = FAIR
    index = random.integers(0, NUM_SUNS, count)
    dusk = weather == DUSK
    index[dusk] = np.where(random.random(int(dusk.sum())) < 0.5, 0, NUM_SUNS - 1)
    lights["sun_index"] = index
    lights["sun"] = sun_vectors(rotation_deg)[index]
    scale = strength * 0.08
    lights["sun_rgb"] = _color(SUN_COLORS, weather) * _take(SUN_STRENGTH, weather)
    lights["ambient"] = _color(AMBIENT_COLORS, weather) * _take(AMBIENT_STRENGTH, weather)
    for field, colors in (("sky_low", SKY_LOW), ("sky_high", SKY_HIGH)):
        lights[field] = _color(colors, weather) * np.exp(random.normal(0.0, scale, (count, 3)))
    lights["haze"] = 0.85 * lights["sky_low"]
    lights["haze_m"] = np.exp(random.uniform(np.log(260.0), np.log(900.0), count))
    low, high = np.array(CLOUDS)[weather].T
    lights["clouds"] = random.uniform(low, high)
    lights["wet"] = (weather == OVERCAST) * (random.random(count) < 0.4) * random.uniform(0.4, 1.0, count)
    lights["lamps"] = np.where(dusk, random.uniform(0.3, 1.0, count), 0.0)
    _sample_season(lights, random)
    _sample_camera(lights, strength, random)
    return lights


def sun_vectors(rotation_deg: float) -> np.ndarray:
    """Return unit vectors (NUM_SUNS, 3) towards the suns, in the axes of a district rotated by `rotation_deg`."""
    azimuth, elevation = np.radians(np.array(SUNS)).T
    local = azimuth - np.radians(rotation_deg)
    flat = np.cos(elevation)
    return np.stack([flat * np.sin(local), flat * np.cos(local), np.sin(elevation)], axis=1)


def _sample_season(lights: np.ndarray, random: np.random.Generator) -> None:
    count = len(lights)
    season = random.choice(4, count, p=(0.25, 0.35, 0.25, 0.15))
    lights["leaves"] = _color(LEAVES, season) * np.exp(random.normal(0.0, 0.1, (count, 1)))
    lights["leaf_density"] = _take(LEAF_DENSITY, season)[:, 0]
    lights["month"] = (3 * season + random.integers(2, 5, count)) % 12 + 1


def _sample_camera(lights: np.ndarray, strength: float, random: np.random.Generator) -> None:
    count = len(lights)
    lights["exposure"] = np.exp(random.normal(0.0, 0.14 * strength, count))
    warmth = random.normal(0.0, 0.06 * strength, count)
    tint = random.normal(0.0, 0.025 * strength, count)
    lights["white"] = np.exp(np.stack([warmth, tint, -warmth], axis=1))
    lights["saturation"] = 1.0 + random.normal(0.0, 0.12 * strength, count)
    lights["noise"] = 1.0 + 5.0 * strength * random.random(count) ** 2
    lights["vignette"] = random.uniform(0.0, 0.28, count)


def _color(colors: tuple[tuple[int, int, int], ...], index: np.ndarray) -> np.ndarray:
    return srgb_to_linear(np.array(colors))[index]


def _take(values: tuple[float, ...], index: np.ndarray) -> np.ndarray:
    return np.array(values)[index][:, None]
