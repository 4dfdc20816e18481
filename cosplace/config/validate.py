"""Settings of validate."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.sections import device_setting, follow_outside_setting, json_setting
from cosplace.config.setting import Section, required, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig(Section):
    """Settings of `cosplace validate`."""

    folder: str = required(
        "dataset with train/, val/ and test/, a folder with database/ and queries, any folder of photos, or a table",
        positional=True,
        metavar="DATASET",
    )
    quick: bool = setting(
        False, "check only names and positions, without opening the photos and measuring the speed of training"
    )
    html: Path | None = setting(
        None, "also write one HTML page, with a map, histograms and all that was found", metavar="FILE"
    )
    json: bool = json_setting("the result")
    device: str = device_setting()
    follow_outside: bool = follow_outside_setting()
