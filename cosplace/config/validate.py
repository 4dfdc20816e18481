"""Settings of validate."""

from dataclasses import dataclass

from cosplace.config.sections import follow_outside_setting, json_setting
from cosplace.config.setting import Section, required, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig(Section):
    """Settings of `cosplace validate`."""

    folder: str = required(
        "dataset with train/, val/ and test/, a folder with database/ and queries, or any folder of photos",
        positional=True,
        metavar="DATASET",
    )
    quick: bool = setting(False, "check only names and positions, without opening the photos")
    json: bool = json_setting("the result")
    follow_outside: bool = follow_outside_setting()
