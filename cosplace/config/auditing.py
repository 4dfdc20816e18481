"""Settings of audit, and of eval --audit."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.setting import Section, required, setting
from cosplace.config.shared import follow_outside_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig(Section):
    """Settings of `cosplace audit`."""

    run: Path = required("folder of a run, such as logs/default/<time>", positional=True, metavar="RUN")
    html: Path | None = setting(
        None, "file of the page with the pairs to judge", metavar="FILE", default_text="audit.html in RUN"
    )
    more_similar_than: float = setting(
        50.0, "show wrong answers that are more similar than this percentage of the correct ones; 0 shows all wrong "
        "ones", at_least=0, at_most=100, metavar="PERCENT",
    )  # fmt: skip
    apply: Path | None = setting(
        None, "instead of writing the page, store the verdicts of a file that it exported, next to the folder of the "
        "queries: <queries>_verdicts.csv", metavar="FILE",
    )  # fmt: skip
    verdicts: Path | None = setting(
        None, "another place for the stored verdicts, such as for a dataset that cannot be written", metavar="FILE",
        default_text="<queries>_verdicts.csv next to the folder of the queries",
    )  # fmt: skip
    dataset: Path | None = setting(None, "the dataset or its test set, if it has moved since the run", metavar="FOLDER")
    follow_outside: bool = follow_outside_setting()
