"""Settings of compare, and of eval --compare."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.setting import Section, required, setting
from cosplace.config.shared import follow_outside_setting, json_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig(Section):
    """Settings of `cosplace compare`."""

    runs: tuple[Path, ...] = required(
        "folders of two or more runs of the same dataset, such as logs/default/<time>; the others are compared with "
        "the first one", positional=True, metavar="RUN",
    )  # fmt: skip
    html: Path | None = setting(
        None, "also write one HTML page, with the photos of the queries that only one of two runs gets right",
        metavar="FILE",
    )  # fmt: skip
    markdown: Path | None = setting(None, "also write a table in Markdown; - prints it instead", metavar="FILE|-")
    latex: Path | None = setting(None, "also write a table in LaTeX; - prints it instead", metavar="FILE|-")
    json: bool = json_setting("the comparison, with the names of all queries won and lost,")
    dataset: Path | None = setting(
        None, "with --html, the dataset or its test set, if it has moved since the runs", metavar="FOLDER"
    )
    follow_outside: bool = follow_outside_setting()
