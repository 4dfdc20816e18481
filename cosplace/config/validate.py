"""Settings of validate."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.setting import Section, required, setting
from cosplace.config.shared import device_setting, follow_outside_setting, json_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig(Section):
    """Settings of `cosplace validate`."""

    folder: str = required(
        "dataset with train/, val/ and test/; a folder with database/ and queries; any folder of photos; or a table",
        positional=True,
        metavar="DATASET",
    )
    quick: bool = setting(
        False, "check only names and positions; do not open the photos or measure the speed of training"
    )
    html: Path | None = setting(
        None, "also write the results as one HTML page, with a map and histograms", metavar="FILE"
    )
    json: bool = json_setting("the result")
    device: str = device_setting()
    follow_outside: bool = follow_outside_setting()
