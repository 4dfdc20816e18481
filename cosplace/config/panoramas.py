"""Settings of panoramas."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.names import parse_device
from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import follow_outside_setting, num_workers_setting
from cosplace.errors import ConfigError

RESAMPLINGS = ("antialias", "bilinear")
MAX_SIDE = 8192  # pixels of a crop
MAX_CROPS = 360


@dataclass(frozen=True, slots=True, kw_only=True)
class CropSettings(Section):
    """Crops"""

    crops: int = setting(
        12, "number of crops per panorama, at equal angles; the first one is at the center of the panorama",
        at_least=1, at_most=MAX_CROPS,
    )  # fmt: skip
    yaws: tuple[float, ...] = setting(
        (), "directions of the crops, in degrees clockwise from the center of the panorama, such as -90 90 for left "
        "and right; replaces --crops", at_least=-360, at_most=360, metavar="DEGREES",
    )  # fmt: skip
    size: tuple[int, ...] = setting(
        (512,), "width and height of the crops in pixels, or one number for both", at_least=16, at_most=MAX_SIDE
    )
    field_of_view: float = setting(
        55.0, "horizontal field of view of the crops in degrees, from edge to edge; phone photos have about 65",
        at_least=1, at_most=150, metavar="DEGREES",
    )  # fmt: skip
    pitch: float | None = setting(
        None, "angle of the crops above the horizon, in degrees; negative is down", at_least=-90, at_most=90,
        metavar="DEGREES", default_text="0; for panoramas without sky or ground, the nearest pitch that they show",
    )  # fmt: skip
    resampling: str = setting(
        "antialias", "antialias: panoramas at least twice as detailed as the crops are first reduced, by averaging; "
        "bilinear: panoramas are never reduced, so fine patterns may flicker", choices=RESAMPLINGS,
    )  # fmt: skip
    horizon_row: float | None = setting(
        None, "row of the horizon in images that show 360 degrees, but lack rows at the top or bottom and have no "
        "GPano properties", metavar="ROW", default_text="320 for images of 3328 x 512 pixels, as in SF-XL",
    )  # fmt: skip

    def __post_init__(self) -> None:
        # Not `super()`: a dataclass with slots is another class than the one that this function was defined in.
        Section.__post_init__(self)
        if len(self.size) > 2:
            raise ConfigError(f"--size must be one or two numbers, got {len(self.size)}.")
        if len({round(yaw % 360, 2) for yaw in self.yaws}) < len(self.yaws):
            raise ConfigError("--yaws has the same direction twice. Use each once.")

    @property
    def directions(self) -> tuple[float, ...]:
        """Yaw of each crop in degrees, in [0, 360)."""
        yaws = self.yaws or tuple(360 * index / self.crops for index in range(self.crops))
        return tuple(yaw % 360 % 360 for yaw in yaws)  # a tiny negative number modulo 360 is 360


@dataclass(frozen=True, slots=True, kw_only=True)
class PanoramasConfig(Section):
    """Settings of `cosplace panoramas`."""

    source: Path = required(
        "folder of equirectangular panoramas, or dataset written by `cosplace import`",
        positional=True,
        metavar="SOURCE",
    )
    to: Path = required(
        "folder of the dataset to create or extend: photos/, photos.parquet, import_report.csv", metavar="DATASET"
    )
    crop: CropSettings = section(CropSettings)
    device: str = setting(
        "cpu", "where to compute the crops: auto, cpu, cuda, cuda:N or mps; a GPU does not speed up reading and "
        "writing JPEG files, which takes most of the time", parse=parse_device, metavar="DEVICE",
    )  # fmt: skip
    num_workers: int | None = num_workers_setting("panoramas processed at the same time")
    timezone: str = setting(
        "", "time zone of camera clocks that do not state one, such as Europe/Rome", default_text="UTC", metavar="ZONE"
    )
    keep_unplaced: bool = setting(False, "also use panoramas without a position; they are listed either way")
    follow_outside: bool = follow_outside_setting()
    dry_run: bool = setting(False, "only report what would be written, without writing anything")
