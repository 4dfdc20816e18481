"""Settings of a synthetic city: size, seed, captures, difficulty."""

import math
import os
from dataclasses import asdict, dataclass

from cosplace.errors import ConfigError

HEADINGS_PER_SITE = 12  # crops of one panorama, 30 degrees apart
MAX_IMAGES = 20_000_000
WITHOUT_EFFECT_ON_IMAGES = ("num_threads",)


@dataclass(frozen=True, slots=True, kw_only=True)
class CitySettings:
    """Settings of a city.  With the defaults, a small network can be trained in minutes.

    `horizon` is the distance of the horizon below the center of an image, as a share of its height.  Pairs are (lowest,
    highest).  Raises ConfigError for invalid values.
    """

    images: int = 23_000  # training images, rounded up to whole sites (12 headings x years)
    database_images: int = 3_700  # database images of val and of test, rounded up to whole sites
    num_queries: int = 300  # queries of val and of test
    seed: int = 0
    image_size: int = 96  # pixels; images are square
    samples_per_pixel: int = 4  # 1, 4, 9 or 16 rays per pixel
    jpeg_quality: int = 90
    years: int = 4  # captures of every training site
    train_spacing_m: float = 8.0
    database_spacing_m: float = 5.0
    position_jitter_m: float = 0.8  # maximum distance of a capture from its site, in each direction
    heading_jitter_deg: float = 3.0  # maximum difference of the true heading from the one in the name
    fov_deg: tuple[float, float] = (70.0, 80.0)
    camera_height_m: tuple[float, float] = (2.2, 2.8)
    horizon: tuple[float, float] = (0.07, 0.13)
    query_sideways: float = 0.3  # share of the width of the street that queries use; harder towards 1
    query_fov_deg: tuple[float, float] = (70.0, 80.0)
    query_height_m: tuple[float, float] = (1.5, 1.8)
    query_horizon: tuple[float, float] = (0.06, 0.14)
    light_strength: float = 1.0  # 0: neutral light everywhere, 1: full variety of weather and season
    query_light_strength: float = 0.8
    traffic: float = 0.55  # share of occupied parking slots
    query_traffic: float = 0.7
    num_threads: int = 0  # 0: one per available core

    def __post_init__(self) -> None:
        """Raise ConfigError for the first invalid value."""
        _check_counts(self)
        _check_lengths(self)
        _check_pairs(self)

    @property
    def threads(self) -> int:
        """Threads that render: `num_threads`, or one per core that this process may use."""
        if self.num_threads > 0:
            return self.num_threads
        # Not available on Windows and macOS.
        allowed = getattr(os, "sched_getaffinity", None)
        return len(allowed(0)) if allowed else os.cpu_count() or 1


def settings_to_json(settings: CitySettings) -> dict[str, object]:
    """The settings that determine pixels and names, as JSON values."""
    values = {name: value for name, value in asdict(settings).items() if name not in WITHOUT_EFFECT_ON_IMAGES}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check_counts(settings: CitySettings) -> None:
    ranges = {
        "images": (1, MAX_IMAGES),
        "database_images": (1, MAX_IMAGES),
        "num_queries": (1, MAX_IMAGES),
        "seed": (0, 2**31 - 1),
        "image_size": (16, 4096),
        "jpeg_quality": (1, 100),
        "years": (1, 20),
        "num_threads": (0, 1024),
    }
    for name, (lowest, highest) in ranges.items():
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise ConfigError(f"The city's {name} must be a whole number from {lowest} to {highest}, got {value!r}.")
    if settings.samples_per_pixel not in (1, 4, 9, 16):
        raise ConfigError(f"The city's samples_per_pixel must be 1, 4, 9 or 16, got {settings.samples_per_pixel!r}.")


def _check_lengths(settings: CitySettings) -> None:
    ranges = {
        "train_spacing_m": (1.0, 50.0),
        "database_spacing_m": (1.0, 50.0),
        "position_jitter_m": (0.0, 2.0),
        "heading_jitter_deg": (0.0, 15.0),
        "query_sideways": (0.0, 1.0),
        "light_strength": (0.0, 1.0),
        "query_light_strength": (0.0, 1.0),
        "traffic": (0.0, 1.0),
        "query_traffic": (0.0, 1.0),
    }
    for name, (lowest, highest) in ranges.items():
        value = getattr(settings, name)
        if not math.isfinite(value) or not lowest <= value <= highest:
            raise ConfigError(f"The city's {name} must be a number from {lowest} to {highest}, got {value!r}.")


def _check_pairs(settings: CitySettings) -> None:
    ranges = {
        "fov_deg": (20.0, 120.0),
        "camera_height_m": (0.5, 5.0),
        "horizon": (-0.4, 0.4),
        "query_fov_deg": (20.0, 120.0),
        "query_height_m": (0.5, 5.0),
        "query_horizon": (-0.4, 0.4),
    }
    for name, (lowest, highest) in ranges.items():
        pair = getattr(settings, name)
        if len(pair) != 2 or not lowest <= pair[0] <= pair[1] <= highest:
            raise ConfigError(
                f"The city's {name} must be two numbers (lowest, highest) between {lowest} and {highest}, got {pair!r}."
            )
