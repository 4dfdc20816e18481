"""Settings of runs."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.setting import Section, setting
from cosplace.config.shared import json_setting

ORDERS = ("time", "r1", "r5", "kind", "dataset", "model", "state", "folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsConfig(Section):
    """Settings of `cosplace runs`."""

    folder: Path = setting(
        Path("logs"), "folder that contains the runs, in any subfolders", positional=True, metavar="FOLDER"
    )
    sort: str = setting("time", "order: the newest or best run comes first", choices=ORDERS)
    json: bool = json_setting("the runs")
