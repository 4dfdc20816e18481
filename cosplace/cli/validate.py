"""cosplace validate."""

import dataclasses
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import Bars, print_json, print_result
from cosplace.config.validate import ValidateConfig
from cosplace.errors import DatasetError
from cosplace.report.words import format_count

if TYPE_CHECKING:
    from cosplace.retrieval.folder_report import FolderReport
    from cosplace.retrieval.validation import DatasetReport
    from cosplace.training.recommendation import ClassCounts, Recommendation

PRINTED_M = (10, 20, 40)  # meters; --json and --html have more


def run_validate(config: ValidateConfig) -> None:
    """Check a dataset and print what was found.  Raises DatasetError if there are errors."""
    from cosplace.retrieval.validation import validate

    result = validate(config.folder, quick=config.quick, follow_outside=config.follow_outside, progress=Bars())
    problems = [problem for report in result.folders for problem in report.problems]
    num_errors = sum(problem.is_error for problem in problems)
    classes, recommendation, obstacle = _recommend(result, config)
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
            print_result(f"photos in no split: {result.num_unused:,}")
        _print_classes(classes, recommendation)
        print_result(_number_of_problems(num_errors, len(problems) - num_errors))
        if recommendation is not None:
            print_result("recommendation:")
            for line in (*recommendation.reasons, *(f"`{command}`" for command in recommendation.commands)):
                print_result(f"  {line}")
        else:
            print_result(f"recommendation: none. {obstacle}")
    if config.html is not None and not config.json:
        print_result(f"page: {config.html}")
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


def _number_of_problems(num_errors: int, num_warnings: int) -> str:
    if not num_errors and not num_warnings:
        return "no errors, no warnings"
    return f"{format_count(num_errors, 'kind')} of errors, {format_count(num_warnings, 'kind')} of warnings"


def _print_classes(classes: list["ClassCounts"], recommendation: "Recommendation | None") -> None:
    if not classes:
        return
    chosen = recommendation.settings.get("M") if recommendation is not None else None
    least = list(classes[0].num_at_least)
    print_result("classes for training, by M (m) and alpha (degrees); 5+: classes with 5 photos or more")
    titles = "".join(f"{f'{number}+':>9s}" for number in least)
    print_result(f"  {'M':>4s} {'alpha':>6s} {'classes':>9s}{titles}  median photos")
    for row in (row for row in classes if row.M in {*PRINTED_M, chosen}):
        counts = "".join(f"{row.num_at_least[number]:9,d}" for number in least)
        print_result(f"  {row.M:4d} {row.alpha:6d} {row.num_classes:9,d}{counts} {row.median_images:14g}")
