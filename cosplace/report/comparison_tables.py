"""A comparison of runs as lines for a terminal, and as tables in Markdown, LaTeX and JSON.  Pure: text out."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from cosplace.assessment.comparison import (
    NO_DIFFERENCE,
    SIGNIFICANCE,
    ComparedRun,
    Comparison,
    RecallDifference,
    recall_values,
)
from cosplace.assessment.intervals import FEW_CLUSTERS, Estimate, effective_clusters
from cosplace.assessment.run_files import variant_text
from cosplace.photos.paths import printable
from cosplace.progress import format_count
from cosplace.report.words import radius_text, shorten

NAME_LENGTH = 40  # characters of a model's name in a table
SMALLEST_P = 0.001
LATEX_SPECIAL = re.compile(r"[\\{}$&#%_^~<>|]")
LATEX_COMMANDS = {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
LATEX_MARK = r"^{\dagger}"  # of an approximate interval
MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!])")


def run_label(run: ComparedRun) -> str:
    """Name of a run's model in one line, and how the run differs from the usual evaluation of it."""
    variant = printable(variant_text(run.results))
    return shorten(printable(run.name), NAME_LENGTH) + (f" ({shorten(variant, NAME_LENGTH)})" if variant else "")


def p_text(p: float) -> str:
    """A p value: 0.267, or <0.001."""
    return f"<{SMALLEST_P:g}" if p < SMALLEST_P else f"{p:.3f}"


def interval_text(estimate: Estimate) -> str:
    """The interval of a difference with signs: [-1.2, +11.9], and whether it is approximate."""
    return f"[{signed(estimate.low)}, {signed(estimate.high)}]{estimate.mark}"


def signed(value: float) -> str:
    """A difference in percentage points with its sign; a difference that rounds to 0 has none."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def few_groups_text(clusters: np.ndarray) -> str:
    """Why intervals are approximate; "" if they are not.

    >>> few_groups_text(np.arange(9))
    ', which are few: intervals are approximate'
    """
    if effective_clusters(clusters) >= FEW_CLUSTERS:
        return ""
    are_few = len(np.unique(clusters)) < FEW_CLUSTERS
    return f", which are {'few' if are_few else 'of very unequal size'}: intervals are approximate"


def facts(runs: Sequence[ComparedRun]) -> list[str]:
    """Sentences about the queries, and how a difference is tested."""
    queries = runs[0].queries
    num_clusters = len(np.unique(queries.clusters))
    few = few_groups_text(queries.clusters)
    lines = [
        f"{printable(queries.dataset)}: {format_count(len(queries.queries.names), 'query', 'queries')}, "
        f"{format_count(queries.queries.num_database, 'database image')}; correct = within "
        f"{radius_text(queries.queries.radius_m, are_meters=queries.are_meters)}.",
        f"Intervals: 95%. Queries of one place or sequence tend to be right or wrong together; they are in "
        f"{format_count(num_clusters, 'group')}{few}. p: McNemar's exact test. A run is called better if the interval "
        f"of the difference excludes 0 and p is below {SIGNIFICANCE:g}.",
    ]
    num_verdicts = len(runs) - 1
    if num_verdicts > 1:
        lines.append(
            f"There are {num_verdicts} comparisons. If all runs were equally good, about 4% (at most 6%) of the "
            f"verdicts for each N would still name a better one."
        )
    return lines


# --- terminal --------------------------------------------------------------------------------------------------------


def terminal_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """All comparisons with one reference, as lines."""
    runs = all_runs(comparisons)
    width = max(len(run_label(run)) for run in runs)
    lines = [f"{run.letter}  {run_label(run):{width}s}  {printable(run.folder)}" for run in runs]
    lines += ["", *facts(runs)]
    for one in comparisons:
        lines += ["", f"{one.b.letter} compared with {one.a.letter}", *difference_lines(one), *one.notes]
    return lines


def difference_lines(one: Comparison) -> list[str]:
    """The recalls of two runs and their differences, as the lines of a table."""
    a, b = one.a.letter, one.b.letter
    lines = [f"{'':24s}{a:>7s}{b:>7s}  difference  95% interval      won  lost       p  verdict"]
    lines += [_line(f"R@{row.n}", row, one.verdict(row)) for row in one.rows]
    if one.conditions:
        lines.append(f"R@{one.rows[0].n} by condition (without verdicts: there are many)")
        for condition, rows in groupby(one.conditions, key=lambda found: found.condition):
            lines.append(f"  {printable(condition)}")
            for found in rows:
                text = f"{found.value} ({found.row.num_queries:,})"
                lines.append(_line(f"    {shorten(printable(text), 19)}", found.row))
    return lines


def _line(name: str, row: RecallDifference, verdict: str = "") -> str:
    interval = interval_text(row.difference).removesuffix(row.difference.mark)
    words = [*([verdict] if verdict else []), *(["approximate interval"] if row.difference.is_approximate else [])]
    return (
        f"{name:24s}{row.recall_a:7.1f}{row.recall_b:7.1f}{signed(row.difference.value):>12s}  {interval:16s}"
        f"{row.won:5d}{row.lost:6d}{p_text(row.p):>8s}  {', '.join(words)}"
    ).rstrip()


def all_runs(comparisons: Sequence[Comparison]) -> list[ComparedRun]:
    """The reference and the runs that are compared with it."""
    return [comparisons[0].a, *(one.b for one in comparisons)]


# --- Markdown and LaTeX ----------------------------------------------------------------------------------------------


def markdown_table(comparisons: Sequence[Comparison]) -> str:
    """Tables of recalls and of differences, with what they mean below."""
    runs = all_runs(comparisons)
    ns = recall_values(*runs)
    lines = [_markdown_row(["", "model", *(f"R@{n}" for n in ns)]), _markdown_row([":--", ":--", *["--:"] * len(ns)])]
    lines += [
        _markdown_row([run.letter, _markdown(run_label(run)), *(run.recall(n).marked_text() for n in ns)])
        for run in runs
    ]
    head = ["", "recall", "difference, points", "won", "lost", "p", "verdict"]
    lines += ["", _markdown_row(head), _markdown_row([":--", ":--", *["--:"] * 4, ":--"])]
    for one in comparisons:
        for row in one.rows:
            difference = f"{signed(row.difference.value)} {interval_text(row.difference)}"
            cells = [f"{one.b.letter} − {one.a.letter}", f"R@{row.n}", difference, str(row.won), str(row.lost)]
            lines.append(_markdown_row([*cells, _markdown(p_text(row.p)), one.verdict(row)]))
    notes = [note for one in comparisons for note in one.notes]
    for line in (*facts(runs), *notes):
        lines += ["", _markdown(line)]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return MARKDOWN_SPECIAL.sub(r"\\\1", text)


def latex_table(comparisons: Sequence[Comparison]) -> str:
    r"""A table of recalls and differences for \usepackage{booktabs}."""
    runs = all_runs(comparisons)
    ns = recall_values(*runs)
    rows = {one.b.letter: {row.n: row for row in one.rows} for one in comparisons}
    lines = [
        "% needs \\usepackage{booktabs}",
        *(f"% {line}" for line in map(latex_comment, facts(runs))),
        f"\\begin{{tabular}}{{ll{'r' * len(ns)}}}",
        "\\toprule",
        f" & model & {' & '.join(f'R@{n}' for n in ns)} \\\\",
        "\\midrule",
    ]
    for run in runs:
        recalls = " & ".join(_latex_recall(run.recall(n)) for n in ns)
        lines.append(f"{run.letter} & {latex_text(run_label(run))} & {recalls} \\\\")
        if found := rows.get(run.letter):
            lines.append(f" & & {' & '.join(_latex_difference(found[n]) for n in ns)} \\\\")
    notes = [f"Below a recall: difference from {runs[0].letter} in percentage points, with its 95\\% interval."]
    if any(row.sign for one in comparisons for row in one.rows):
        notes.append(f"$^{{*}}$ McNemar's exact test: $p < {SIGNIFICANCE:g}$, and the interval excludes 0.")
    marked = [run.recall(n) for run in runs for n in ns] + [row.difference for one in comparisons for row in one.rows]
    if any(one.is_approximate for one in marked):
        notes.append(f"${LATEX_MARK}$ The interval is approximate.")
    lines.append("\\bottomrule")
    lines += [f"\\multicolumn{{{2 + len(ns)}}}{{l}}{{\\scriptsize {note}}} \\\\" for note in notes]
    return "\n".join([*lines, "\\end{tabular}"]) + "\n"


def _latex_recall(recall: Estimate) -> str:
    return f"{recall.value:.1f} {{\\scriptsize $[{recall.low:.1f}, {recall.high:.1f}]{_latex_mark(recall)}$}}"


def _latex_mark(estimate: Estimate) -> str:
    return LATEX_MARK if estimate.is_approximate else ""


def _latex_difference(row: RecallDifference) -> str:
    star = "^{*}" if row.sign else ""
    low, high = signed(row.difference.low), signed(row.difference.high)
    return f"\\scriptsize ${signed(row.difference.value)}{star}$ $[{low}, {high}]{_latex_mark(row.difference)}$"


def latex_text(text: str) -> str:
    """A text in which every special character of LaTeX is escaped."""
    return LATEX_SPECIAL.sub(lambda match: LATEX_COMMANDS.get(match[0], f"\\{match[0]}"), text)


def latex_comment(text: str) -> str:
    """A text for a comment: in one line."""
    return " ".join(text.split())


# --- JSON ------------------------------------------------------------------------------------------------------------


def comparison_record(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything that the comparisons found, as plain values."""
    runs = all_runs(comparisons)
    ns = recall_values(*runs)
    queries = runs[0].queries
    num_clusters = len(np.unique(queries.clusters))
    return {
        "dataset": queries.dataset,
        "num_queries": len(queries.queries.names),
        "num_database": queries.queries.num_database,
        "positive_dist_threshold_m": queries.queries.radius_m,
        "num_clusters": num_clusters,
        "approximate": effective_clusters(queries.clusters) < FEW_CLUSTERS,
        "runs": [
            {
                "letter": run.letter,
                "model": run.name,
                "variant": variant_text(run.results) or None,
                "folder": str(run.folder),
                "recalls": {str(n): run.recall(n).value for n in ns},
                "intervals": {str(n): [run.recall(n).low, run.recall(n).high] for n in ns},
                "approximate_recalls": [n for n in ns if run.recall(n).is_approximate],
            }
            for run in runs
        ],
        "comparisons": [_record(one) for one in comparisons],
    }


def _record(one: Comparison) -> dict[str, Any]:
    names = one.a.queries.queries.names
    return {
        "reference": one.a.letter,
        "other": one.b.letter,
        "recalls": {str(row.n): {**_row_record(row), "verdict": _verdict(row)} for row in one.rows},
        "conditions": [
            {"condition": found.condition, "value": found.value, **_row_record(found.row)} for found in one.conditions
        ],
        "won": [names[query] for query in one.won],
        "lost": [names[query] for query in one.lost],
        "notes": list(one.notes),
    }


def _verdict(row: RecallDifference) -> str:
    return {1: "other is better", -1: "reference is better", 0: NO_DIFFERENCE}[row.sign]


def _row_record(row: RecallDifference) -> Mapping[str, Any]:
    return {
        "n": row.n,
        "num_queries": row.num_queries,
        "reference": row.recall_a,
        "other": row.recall_b,
        "difference": row.difference.value,
        "interval": [row.difference.low, row.difference.high],
        "approximate": row.difference.is_approximate,
        "won": row.won,
        "lost": row.lost,
        "p": row.p,
    }
