"""Settings of `cosplace groups`."""

from dataclasses import dataclass

from cosplace.config.methods import MethodSettings
from cosplace.config.sections import Grouping
from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import follow_outside_setting, json_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsConfig(Section):
    """Settings of `cosplace groups`."""

    folder: str = required(
        "training photos, in any subfolders: '@' names, EXIF, or a table", positional=True, metavar="FOLDER"
    )
    json: bool = json_setting("the groups")
    gsv_csv: str | None = setting(
        None, "also write all groups in the layout of GSV-Cities to a new folder: each class is a place id, each group "
        "a city with a CSV file, next to links to the photos", metavar="FOLDER",
    )  # fmt: skip
    no_cache: bool = setting(
        False, "form the groups again instead of reading them from the cache, and do not store them"
    )
    follow_outside: bool = follow_outside_setting()
    method: MethodSettings = section(MethodSettings)
    grouping: Grouping = section(Grouping)
