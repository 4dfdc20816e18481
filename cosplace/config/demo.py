"""Settings of city, demo."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.setting import Section, required, setting
from cosplace.config.shared import num_workers_setting, seed_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class CityConfig(Section):
    """Settings of `cosplace city`."""

    folder: Path = required("folder to write, with train/, val/ and test/", positional=True, metavar="FOLDER")
    images: int = setting(20_000, "approximate number of training images")
    image_size: int = setting(96, "width and height of the images, in pixels")
    database_images: int = setting(3_700, "approximate number of database images in val/ and in test/")
    num_queries: int = setting(300, "number of queries in val/ and in test/")
    seed: int = seed_setting("seed of the city; the same seed gives the same images")
    num_workers: int | None = num_workers_setting("threads that render images; 0 uses one per core")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig(Section):
    """Settings of `cosplace demo`."""

    folder: Path = setting(Path("demo"), "folder for the synthetic city", metavar="FOLDER")
    seed: int = seed_setting("seed of the city and of training")
    serve: bool = setting(False, "open the map at the end, at http://127.0.0.1:8000; stop it with Ctrl+C")
