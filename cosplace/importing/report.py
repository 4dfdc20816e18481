"""import_report.csv: every file or row that was left out or is uncertain, with its reason; counts of the reasons.

Side effects: writes a CSV file, line by line.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from cosplace.importing.records import Problem
from cosplace.photos.paths import csv_line, printable, writable
from cosplace.progress import format_count
from cosplace.storage import storage_errors

REPORT_NAME = "import_report.csv"
MAX_KINDS = 6  # of reasons in a summary
MAX_REASON = 300  # characters of a reason in a summary
VALUE = re.compile(r"'[^']*'|\([^)]*\)|-?\d[\d.,:]*")


class ImportReport:
    """Problems of one import, in the order in which they are found."""

    def __init__(self, path: Path | None) -> None:
        """path: the file to write; None: only count."""
        self.path = path
        self.file: TextIO | None = None
        self.left_out: Counter[str] = Counter()  # by kind of reason
        self.uncertain: Counter[str] = Counter()
        self.first: dict[str, Problem] = {}  # of each kind of reason
        if path is not None:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.file = path.open("w", encoding="utf-8", newline="")
            self._write(("name", "outcome", "reason"))

    def add(self, problem: Problem) -> None:
        """Count and write a problem."""
        kind = VALUE.sub("…", problem.reason).partition(": ")[0].rstrip(".")[:100]
        (self.left_out if problem.is_left_out else self.uncertain)[kind] += 1
        self.first.setdefault(kind, problem)
        self._write((problem.name, "left out" if problem.is_left_out else "uncertain", problem.reason))

    def _write(self, values: tuple[str, ...]) -> None:
        if self.file is not None and self.path is not None:
            with storage_errors(self.path):
                self.file.write(csv_line(map(writable, values)))

    def close(self) -> None:
        """Write what is left of the file."""
        if self.file is not None and self.path is not None:
            with storage_errors(self.path):
                self.file.close()
            self.file = None


def report_counts(report: ImportReport) -> list[str]:
    """How much is left out or uncertain, in words; nothing for 0.  A photo may have several uncertain values."""
    num_left_out, num_uncertain = sum(report.left_out.values()), sum(report.uncertain.values())
    counts = [f"{format_count(num_left_out, 'file or row', 'files or rows')} left out"] if num_left_out else []
    return counts + ([format_count(num_uncertain, "uncertain value")] if num_uncertain else [])


def report_lines(report: ImportReport) -> list[str]:
    """How many are left out or uncertain, and why: a line for each reason, the most frequent first.

    A reason that occurs once is told completely, with the file or row.
    """
    lines = []
    for outcome, counts in (("left out", report.left_out), ("uncertain", report.uncertain)):
        reasons = counts.most_common(MAX_KINDS)
        for kind, count in reasons:
            first = report.first[kind]
            reason = f"{first.reason.rstrip('.')[:MAX_REASON]} ({first.name})" if count == 1 else kind
            lines.append(f"  {count:,} {outcome}: {printable(reason)}")
        if more := sum(counts.values()) - sum(count for _, count in reasons):
            lines.append(f"  {more:,} {outcome}: for other reasons")
    return lines


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """A line for each kind of reason: the first file or row that has it, and how many others."""
    report = ImportReport(None)
    for problem in problems:
        report.add(problem)
    lines = []
    for kind, first in report.first.items():
        more = report.left_out[kind] + report.uncertain[kind] - 1
        others = f" (and {format_count(more, 'other file or row', 'other files or rows')})" if more else ""
        lines.append(printable(f"{first.name}: {first.reason.rstrip('.')}{others}."))
    return lines
