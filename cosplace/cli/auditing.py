"""cosplace audit, and eval --audit: wrong answers that look right, judged by people."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from cosplace.cli.console import print_result
from cosplace.config.auditing import AuditConfig
from cosplace.photos.paths import printable

if TYPE_CHECKING:
    from cosplace.assessment.run_files import QueryResults

PAGE = "audit.html"


def run_audit(config: AuditConfig) -> None:
    """Write the page of an audit, or store the verdicts that it exported."""
    from cosplace.assessment.run_files import check_dataset, read_query_results

    run = read_query_results(config.run)
    if config.apply is None or config.verdicts is None:
        check_dataset(run, config.run, config.dataset)
    if config.apply is None:
        write_audit(config, run)
    else:
        _apply(config, run, config.apply)


def _verdicts_path(config: AuditConfig, run: "QueryResults") -> Path:
    return config.verdicts or _usual_path(config, run)


def _usual_path(config: AuditConfig, run: "QueryResults") -> Path:
    from cosplace.assessment.audit import verdicts_path
    from cosplace.assessment.run_files import folder_now

    return verdicts_path(folder_now(run, run.queries_folder, config.dataset))


def _verdicts_flag(config: AuditConfig, run: "QueryResults") -> str:
    """The flag that `cosplace eval` needs to find the verdicts; "" where it looks for them anyway."""
    if config.verdicts is None or config.verdicts.resolve() == _usual_path(config, run):
        return ""
    return f"--verdicts {shlex.quote(printable(config.verdicts))}"


def write_audit(config: AuditConfig, run: "QueryResults") -> None:
    """Write the page with the pairs that have no verdict yet."""
    from cosplace.assessment.audit import audit_pairs, read_verdicts, without_changed
    from cosplace.report.audit_page import pairs_text, photos_of_run, write_audit_page

    path = _verdicts_path(config, run)
    judged = read_verdicts(path) if path.exists() else []
    queries, database = (
        photos_of_run(run, folder, names, config.dataset, config.follow_outside)[0]
        for folder, names in (
            (run.queries_folder, [one.query for one in judged]),
            (run.database_folder, [one.photo for one in judged]),
        )
    )
    judged = without_changed(judged, queries, database)
    pairs = audit_pairs(run, more_similar_than=config.more_similar_than, judged=judged)
    all_pairs = audit_pairs(run, more_similar_than=config.more_similar_than)
    html = config.html or config.run / PAGE
    num_shown = write_audit_page(
        html,
        run,
        pairs,
        run_folder=config.run,
        num_judged=len(all_pairs) - len(pairs),
        all_wrong=config.more_similar_than == 0,
        dataset_folder=config.dataset,
        verdicts_flag=_verdicts_flag(config, run),
        follow_outside=config.follow_outside,
    )
    what = "wrong answers that look right" if config.more_similar_than else "wrong answers"
    print_result(f"audit of {what}, {pairs_text(num_shown, len(pairs))}: {html}")
    if num_shown:  # the run may be somebody else's, and name any folder
        folders = sorted({printable(queries.folder), printable(database.folder)})
        print_result(f"the page contains photos from {' and '.join(folders)}")


def _apply(config: AuditConfig, run: "QueryResults", exported: Path) -> None:
    from cosplace.assessment.audit import VERDICTS, merge, read_export, read_verdicts, write_verdicts

    path, flag = _verdicts_path(config, run), _verdicts_flag(config, run)
    new = read_export(exported, run)
    before = read_verdicts(path) if path.exists() else []
    merged = merge(before, new)
    write_verdicts(path, merged)
    counts = ", ".join(f"{sum(one.verdict == verdict for one in new):,} {verdict}" for verdict in VERDICTS)
    print_result(f"{path}: {len(merged):,} verdicts, {len(merged) - len(before):,} of them new ({counts} applied)")
    print_result(f"Evaluate again{flag and f' with {flag}'} to get recalls both as labeled and with verdicts.")
