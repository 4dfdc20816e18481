"""cosplace validate."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import Bars, print_json, print_result
from cosplace.config.validate import ValidateConfig
from cosplace.errors import DatasetError
from cosplace.progress import format_count

if TYPE_CHECKING:
    from cosplace.retrieval.folder_report import FolderReport
    from cosplace.retrieval.validation import DatasetReport
    from cosplace.training.recommendation import ClassCounts, Recommendation

PRINTED_M = (10, 20, 40)  # meters, besides the recommended one; --json and --html have more

log = logging.getLogger("cosplace")


def run_validate(config: ValidateConfig) -> None:
    """Check a dataset and print what was found.  Raises DatasetError if there are errors."""
    from cosplace.retrieval.validation import validate

    result = validate(config.folder, quick=config.quick, follow_outside=config.follow_outside, progress=Bars())
    problems = [problem for report in result.folders for problem in report.problems]
    num_errors = sum(problem.is_error for problem in problems)
    classes, recommendation, obstacle = _recommend(result, config)
    if recommendation is not None and num_errors:
        reasons = ("Fix the errors first: until then, commands may refuse the dataset.", *recommendation.reasons)
        recommendation = dataclasses.replace(recommendation, reasons=reasons)
    if config.html is not None:
        from cosplace.report.validation_page import write_validation_page

        write_validation_page(config.html, result, classes, recommendation, obstacle)
    if config.json:
        print_json(
            {
                "folders": [dataclasses.asdict(report) | {"folder": str(report.folder)} for report in result.folders],
                "num_errors": num_errors,
                "num_warnings": len(problems) - num_errors,
                "num_unused": result.num_unused,
                "classes": [_class_values(row) for row in classes],
                "recommendation": dataclasses.asdict(recommendation) if recommendation else None,
            }
        )
    else:
        for report in result.folders:
            _print_folder(report)
        if result.num_unused:
            num_photos = result.num_unused + sum(report.num_photos for report in result.folders)
            print_result(f"in no split: {result.num_unused:,} of {format_count(num_photos, 'photo')}")
        _print_classes(classes, recommendation.settings if recommendation else {})
        print_result(_count_text(num_errors, len(problems) - num_errors))
        if recommendation is not None:
            print_result("recommendation:")
            for line in (*(f"`{command}`" for command in recommendation.commands), *recommendation.reasons):
                print_result(f"  {line}")
        else:
            print_result(f"recommendation: none. {obstacle}")
    if config.html is not None:
        show = log.info if config.json else print_result
        show(f"page: {config.html}")
    if num_errors:
        errors = ", ".join(sorted({problem.kind for problem in problems if problem.is_error}))
        raise DatasetError(f"{config.folder} has errors: {errors}. Fix or remove these photos.")


def _recommend(
    result: "DatasetReport", config: ValidateConfig
) -> tuple[list["ClassCounts"], "Recommendation | None", str]:
    """The table of classes, what to do with the dataset, and why there is no recommendation."""
    from cosplace.training.recommendation import class_table, recommend_for, training_photos

    try:
        classes = []
        if result.train is not None:
            images, with_headings, _ = training_photos(result.train)
            classes = class_table(images, with_headings=with_headings)
        return classes, recommend_for(result, device=config.device, measure=not config.quick), ""
    except DatasetError as error:
        return [], None, str(error)


def _class_values(row: "ClassCounts") -> dict[str, Any]:
    return {
        "M": row.M,
        "alpha": row.alpha,
        "num_classes": row.num_classes,
        "median_images": row.median_images,
        "num_at_least": row.num_at_least,
    }


def _print_folder(report: "FolderReport") -> None:
    zones = ", ".join(f"{abs(zone)} {'south' if zone < 0 else 'north'}" for zone in report.zones) or "none"
    print_result(f"{report.folder}: {format_count(report.num_photos, 'photo')}; UTM zones: {zones}")
    for line in report.fact_lines():
        print_result(f"  {line}")
    for kind, count in report.skipped.items():
        print_result(f"  skipped: {count:,} {kind}")
    for problem in report.problems:
        kind = "error" if problem.is_error else "warning"
        more = ", ..." if problem.count > len(problem.examples) else ""
        examples = f": {', '.join(problem.examples)}{more}" if problem.examples else ""
        print_result(f"  {kind}: {problem.count:,} x {problem.kind}{examples}")


def _count_text(num_errors: int, num_warnings: int) -> str:
    """How many kinds of problems there are."""
    if not num_errors and not num_warnings:
        return "no problems found"
    errors = format_count(num_errors, "kind of error", "kinds of errors") if num_errors else "no errors"
    return f"{errors}, {format_count(num_warnings, 'kind of warning', 'kinds of warnings')}"


def _print_classes(classes: list["ClassCounts"], recommended: Mapping[str, Any]) -> None:
    """Print the classes of some settings.  recommended: settings of the recommended command; empty without one."""
    if not classes:
        return
    least = list(classes[0].num_at_least)
    chosen = recommended.get("M"), recommended.get("alpha")
    print_result("classes for training, of cells of M meters and alpha degrees; n+: those with n photos or more")
    print_result("     M  alpha  classes  photos (median)" + "".join(f"{f'{number}+':>9}" for number in least))
    for row in classes:
        if row.M in PRINTED_M or chosen[0] == row.M:
            counts = "".join(f"{row.num_at_least[number]:9,d}" for number in least)
            mark = "  recommended" if (row.M, row.alpha) == chosen else ""
            print_result(f"  {row.M:4d} {row.alpha:6d} {row.num_classes:8,d} {row.median_images:16g}{counts}{mark}")
