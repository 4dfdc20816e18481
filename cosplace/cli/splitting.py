"""cosplace split."""

import shlex
from typing import TYPE_CHECKING

from cosplace.cli.console import print_json, print_result
from cosplace.config.defaults import RADIUS_M
from cosplace.config.splitting import SplitConfig
from cosplace.progress import format_count

if TYPE_CHECKING:
    from cosplace.retrieval.splitting import SplitResult


def run_split(config: SplitConfig) -> None:
    """Split a dataset into train, val and test, and print the result."""
    from cosplace.retrieval.splitting import split_dataset
    from cosplace.training.enough_places import too_few_places

    result, former = split_dataset(config)
    num_places = _num_training_places(config, result)
    if config.json:
        print_json(
            {
                "counts": result.counts,
                "unused": result.unused,
                "method": result.method,
                "query_rules": result.rules,
                "queries_without_positives": result.without_positives,
                "smallest_distances_m": {pair: round(meters, 2) for pair, meters in result.distances_m.items()},
                "num_training_places": num_places,
                "advice": None if num_places is None else too_few_places(num_places) or None,
                "replaced": former,
                "written": not config.dry_run,
            }
        )
        return
    if former:
        parts = ", ".join(f"{split} {count:,}" for split, count in sorted(former.items()))
        print_result(f"previous splits {'would be' if config.dry_run else 'were'} replaced: {parts}")
    print_result(f"{config.dataset}: {format_count(len(result.splits), 'photo')}; {result.method}; seed {config.seed}")
    print_result(f"  {', '.join(f'{split} {count:,}' for split, count in result.counts.items() if count)}")
    for reason, count in result.unused.items():
        print_result(f"  in no split: {count:,} {reason}")
    for name, rule in result.rules.items():
        print_result(
            f"  queries of {name}: {rule}; {result.without_positives[name]:,} without a database photo within "
            f"{RADIUS_M:g} m"
        )
    if num_places is not None:
        problem = too_few_places(num_places)
        enough = f"{num_places:,} places with at least two photos"
        print_result(f"  to train on: {problem or enough}")
    measured = "planned" if config.dry_run else "as written"
    for pair, meters in result.distances_m.items():
        print_result(f"  smallest distance between {pair.replace(', ', ' and ')} ({measured}): {meters:,.1f} m")
    if config.buffer_m <= RADIUS_M:
        print_result(
            f"  warning: --buffer_m {config.buffer_m:g} is not more than the {RADIUS_M:g} m within which a match is "
            f"correct: training photos may show the places of queries"
        )
    if config.dry_run:
        print_result("nothing was written (--dry_run)")
        return
    print_result(f"Next: {shlex.join(['cosplace', 'validate', config.dataset])}")


def _num_training_places(config: SplitConfig, result: "SplitResult") -> int | None:
    """The number of places of the training photos; None if there are too many to count."""
    import numpy as np

    from cosplace.photos.tables import read_table
    from cosplace.retrieval.splitting import read_places, table_path
    from cosplace.training.enough_places import MOST_COUNTED, count_places

    of_train = result.splits == "train"
    if of_train.sum() > MOST_COUNTED:
        return None
    table = read_table(table_path(config.dataset), ("latitude", "longitude", "time", "sequence", "heading"))
    headings = np.array(table["heading"].to_numpy(), np.float64)
    return count_places(read_places(table).points[of_train], headings[of_train])
