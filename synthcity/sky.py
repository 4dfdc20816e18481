"""The sky: a gradient, clouds on a flat layer, the glow around the sun, the distant city as a hazy silhouette."""

from typing import Any

from synthcity.compiling import kernel
from synthcity.noise import hash01, smooth, value_noise

Rgb = tuple[float, float, float]


@kernel
def skyline(azimuth: float) -> float:
    """Tangent of the elevation of the distant city and hills, by direction in radians."""
    hills = 0.012 + 0.05 * value_noise(azimuth * 3.0 + 20.0, 0.5, 301) ** 2
    block = int((azimuth + 10.0) * 60.0)
    far = 0.02 + 0.045 * hash01(block, 302) ** 2
    near = 0.015 + 0.04 * hash01(int((azimuth + 10.0) * 37.0), 303) ** 3
    return max(hills, far, near)


@kernel
def sky_color(light: Any, dx: float, dy: float, slope: float, far: float) -> Rgb:
    """Linear color in direction (dx, dy, slope), (dx, dy) of length 1; far: `skyline` of the direction."""
    if slope < far:
        # Haze hides the bottom of the silhouette.
        mix = 0.22 + 0.2 * smooth(0.0, far, slope)
        shade = 0.5 + 0.2 * far * 10.0
        return (
            light.haze[0] * (1.0 - mix * shade),
            light.haze[1] * (1.0 - mix * shade * 0.95),
            light.haze[2] * (1.0 - mix * shade * 0.85),
        )
    rise = slope / (0.55 + slope)
    red = light.sky_low[0] + (light.sky_high[0] - light.sky_low[0]) * rise
    green = light.sky_low[1] + (light.sky_high[1] - light.sky_low[1]) * rise
    blue = light.sky_low[2] + (light.sky_high[2] - light.sky_low[2]) * rise
    scale = 1.3 / (slope + 0.16)
    x, y = dx * scale, dy * scale
    seed = light.seed % 100003
    shape = 0.62 * value_noise(x, y, seed) + 0.38 * value_noise(x * 2.3, y * 2.3, seed + 1)
    cloud = smooth(0.78 - 0.6 * light.clouds, 1.02 - 0.5 * light.clouds, shape) * smooth(0.0, 0.12, slope)
    white = 0.42 * (light.sun_rgb[0] + light.sun_rgb[1]) * 0.5 + 0.36
    lit = white * (0.75 + 0.5 * (shape - 0.4))
    red += (lit * (0.7 + 0.3 * light.sun_rgb[0]) - red) * cloud * 0.8
    green += (lit * (0.72 + 0.28 * light.sun_rgb[1]) - green) * cloud * 0.8
    blue += (lit * (0.78 + 0.22 * light.sun_rgb[2]) - blue) * cloud * 0.8
    inverse = 1.0 / (1.0 + slope * slope) ** 0.5
    facing = (dx * light.sun[0] + dy * light.sun[1] + slope * light.sun[2]) * inverse
    if facing > 0.6:
        glow = 0.35 * ((facing - 0.6) * 2.5) ** 4
        red += glow * light.sun_rgb[0]
        green += glow * light.sun_rgb[1]
        blue += glow * light.sun_rgb[2]
    return red, green, blue
