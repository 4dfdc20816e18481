"""cosplace validate."""

import dataclasses

from cosplace.cli.console import Bars, print_json, print_result
from cosplace.config.validate import ValidateConfig
from cosplace.errors import DatasetError


def run_validate(config: ValidateConfig) -> None:
    """Check a dataset and print what was found.  Raises DatasetError if there are errors."""
    from cosplace.retrieval.validation import validate

    reports = validate(config.folder, quick=config.quick, follow_outside=config.follow_outside, progress=Bars())
    problems = [problem for report in reports for problem in report.problems]
    num_errors = sum(problem.is_error for problem in problems)
    if config.json:
        folders = [dataclasses.asdict(report) | {"folder": str(report.folder)} for report in reports]
        print_json({"folders": folders, "num_errors": num_errors, "num_warnings": len(problems) - num_errors})
    else:
        for report in reports:
            zones = ", ".join(f"{abs(zone)} {'south' if zone < 0 else 'north'}" for zone in report.zones) or "none"
            print_result(f"{report.folder}: {report.num_photos:,} photos; UTM zones: {zones}")
            for kind, count in report.skipped.items():
                print_result(f"  skipped: {count:,} {kind}")
            for problem in report.problems:
                kind = "error" if problem.is_error else "warning"
                more = ", ..." if problem.count > len(problem.examples) else ""
                examples = f": {', '.join(problem.examples)}{more}" if problem.examples else ""
                print_result(f"  {kind}: {problem.count:,} x {problem.kind}{examples}")
        print_result(f"kinds of errors: {num_errors}; kinds of warnings: {len(problems) - num_errors}")
    if num_errors:
        errors = ", ".join(sorted({problem.kind for problem in problems if problem.is_error}))
        raise DatasetError(f"{config.folder} has errors: {errors}. Correct or remove these photos.")
