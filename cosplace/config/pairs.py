"""Settings of pairs, dataset export."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import MODEL_HELP, DeviceSettings, EncodingSettings, follow_outside_setting
from cosplace.errors import ConfigError

DATASET_FORMATS = ("names", "geojson", "mapillary")
NUM_MATCHES, PAIR_RADIUS_M = 20, 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsConfig(Section):
    """Settings of `cosplace pairs`."""

    dataset: Path = required(
        "photos to pair: a folder, a table, or a part of one; with --queries_folder, a folder with database/",
        positional=True, metavar="DATASET",
    )  # fmt: skip
    to: Path = required(
        "file to write, with two names on each line, relative to the common folder of the photos", metavar="FILE"
    )
    queries_folder: str | None = setting(
        None, "pair each photo of this folder next to database/ with photos of the database, instead of photos of "
        "DATASET with each other", metavar="NAME",
    )  # fmt: skip
    radius_m: float | None = setting(
        None, "pair photos within this distance, in meters", above=0,
        default_text=f"{PAIR_RADIUS_M:g}, if neither --next_photos nor --model is used",
    )  # fmt: skip
    max_heading_difference: float = setting(
        90.0, "within the radius, pair only photos whose headings differ by at most this angle, in degrees; photos "
        "with unknown headings are also paired", at_least=0, at_most=180, metavar="DEGREES",
    )  # fmt: skip
    next_photos: int | None = setting(
        None, "pair each photo with this number of photos that follow it in its folder, by time, or by name if times "
        "are unknown", at_least=1,
    )  # fmt: skip
    model: str | None = setting(
        None, f"pair photos with the most similar descriptors of this model: {MODEL_HELP}", metavar="MODEL"
    )
    image_size: int | None = setting(
        None, "with a model, resize photos to this number of pixels along the shorter side", at_least=1,
        default_text="the size of each photo",
    )  # fmt: skip
    num_matches: int = setting(
        NUM_MATCHES, "pair each photo with at most this number of photos within the radius, and at most this number of "
        "similar photos",
        at_least=1,
    )  # fmt: skip
    follow_outside: bool = follow_outside_setting()
    encoding: EncodingSettings = section(EncodingSettings)
    device: DeviceSettings = section(DeviceSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetExportConfig(Section):
    """Settings of `cosplace dataset export`."""

    dataset: Path = required(
        "dataset with a table written by `cosplace import`, or a part of it, such as DATASET/train", positional=True,
        metavar="DATASET",
    )  # fmt: skip
    to: Path = required("new folder for --format names, otherwise the file to write")
    format: str = setting(
        "names", "names: the photos with '@' names, in the folders of their splits; geojson: points; mapillary: a "
        "description for mapillary_tools upload", choices=DATASET_FORMATS,
    )  # fmt: skip
    link: bool = setting(False, "with --format names, link the photos instead of copying them")
    follow_outside: bool = follow_outside_setting()

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.link and self.format != "names":
            raise ConfigError("--link has an effect only with --format names. Omit --link.")
