"""cosplace compare, and eval --compare: runs on the same queries."""

from pathlib import Path
from typing import TYPE_CHECKING

from cosplace.cli.console import print_json, print_result
from cosplace.config.comparing import CompareConfig
from cosplace.errors import ConfigError

if TYPE_CHECKING:
    from cosplace.retrieval.dataset import RetrievalDataset

COMPARISON = "comparison.html"
STDOUT = Path("-")


def run_compare(config: CompareConfig) -> None:
    """Compare runs with the first one, and print their differences."""
    from cosplace.assessment.comparison import compare, open_runs
    from cosplace.assessment.run_files import check_dataset
    from cosplace.photos.scanning import is_dataset_part
    from cosplace.report.comparison_page import write_comparison_page
    from cosplace.report.comparison_tables import comparison_record, latex_table, markdown_table, terminal_lines
    from cosplace.storage import write_text

    tables = {"markdown": config.markdown, "latex": config.latex}
    printed = [name for name, path in tables.items() if path == STDOUT] + ["json"] * config.json
    if len(printed) > 1:
        raise ConfigError(f"Only one of --{' and --'.join(printed)} can be printed. Write the others to a file.")
    if config.dataset is not None and not is_dataset_part(config.dataset):
        raise ConfigError(
            f"--dataset {config.dataset} is not a folder or table of photos. Use the place that it has moved to."
        )
    reference, *others = open_runs(config.runs)
    comparisons = [compare(reference, other, others) for other in others]
    if config.html is not None:
        check_dataset(reference.queries, reference.folder, config.dataset)
    texts = {"markdown": markdown_table, "latex": latex_table}
    for name, path in tables.items():
        if path is not None and path != STDOUT:
            write_text(path, texts[name](comparisons))
    if config.html is not None:
        write_comparison_page(
            config.html, comparisons, dataset_folder=config.dataset, follow_outside=config.follow_outside
        )
    if not printed:
        for line in terminal_lines(comparisons):
            print_result(line)
    elif printed == ["json"]:
        print_json(comparison_record(comparisons))
    else:
        print_result(texts[printed[0]](comparisons).rstrip("\n"))


def check_reference(reference: Path, dataset: "RetrievalDataset", radius_m: float) -> None:
    """Raise ConfigError unless a new evaluation of a dataset can be compared with a run."""
    from cosplace.assessment.comparison import check_same_queries, open_run
    from cosplace.assessment.run_files import query_list

    queries = query_list(dataset, radius_m)
    check_same_queries(open_run(reference).queries.queries, queries, str(reference), "this evaluation")


def compare_with(reference: Path, folder: Path, *, follow_outside: bool) -> None:
    """Print the differences of a finished evaluation from a run, and write the page to the folder of the evaluation."""
    from cosplace.assessment.comparison import compare, open_runs
    from cosplace.report.comparison_page import write_comparison_page
    from cosplace.report.comparison_tables import terminal_lines

    former, new = open_runs([reference, folder])
    comparison = compare(former, new)
    write_comparison_page(folder / COMPARISON, [comparison], follow_outside=follow_outside)
    for line in ("", *terminal_lines([comparison])):
        print_result(line)
    print_result(f"comparison: {folder / COMPARISON}")
