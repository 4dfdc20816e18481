"""The validation set: whether it can tell models apart, and queries won and lost since the start of a run.

Queries of the validation and test set must not be training photos: a run on them is refused.

The start is the network before training.  A query is won if its best matches are wrong for the start and correct now,
and lost the other way round.  Legend: Q queries, K predictions per query.
"""

import filecmp
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosplace.errors import DatasetError
from cosplace.photos.image_list import ImageList, image_list, rows_also_in
from cosplace.photos.names import is_at_name
from cosplace.photos.paths import printable
from cosplace.progress import Progress, format_count, no_progress
from cosplace.retrieval.evaluation import Evaluation
from cosplace.retrieval.two_folders import find_copies
from cosplace.training.best_model import START
from cosplace.training.data import TrainingData

FEW_QUERIES = 100
SIGNIFICANCE = 0.05  # of the sign test
# With this number of queries won and none lost, the sign test is significant: 2 / 2**6 < 0.05.
LEAST_WON = 6
# Copies under other names are looked for among up to so many training photos, of which so many of equal size are read.
MOST_PHOTOS = 100_000
MOST_READ = 5_000


def doubts_about(data: TrainingData) -> list[str]:
    """Reasons to doubt the choice of the best epoch, or the recalls of a run, as sentences; empty for good sets."""
    num_queries, doubts = len(data.val.queries), reused_photos(data)
    if num_queries < FEW_QUERIES:
        queries = format_count(num_queries, "query", "queries")
        doubts.append(
            f"The validation set has only {queries}: one query is {100 / num_queries:.1f} points of R@1. Differences "
            f"below {min(100.0, 100 * LEAST_WON / num_queries):.0f} points ({LEAST_WON} queries) may be chance. Use "
            f"more queries to choose the best epoch."
        )
    return doubts


def reused_photos(data: TrainingData) -> list[str]:
    """Sentences about queries in both val and test: recalls are then too high."""
    num_queries, doubts = len(data.val.queries), []
    if num_shared := _num_shared(data.val.queries, data.test.queries):
        are = "is also a test query" if num_shared == 1 else "are also test queries"
        doubts.append(
            f"{num_shared:,} of {num_queries:,} validation queries {are}: the best epoch is chosen on them, so the "
            f"test recalls are too high. Use other photos with --val_set_folder."
        )
    return doubts


def check_not_trained_on(data: TrainingData, progress: Progress = no_progress) -> None:
    """Raise DatasetError if queries of the validation or test set are trained on: recalls would be too high."""
    sets = {"validation": data.val.queries}
    if data.test is not data.val:  # a fine-tuning may have no test set
        sets["test"] = data.test.queries
    looks_for_copies = sum(num_images for _, num_images in data.counts()) <= MOST_PHOTOS
    names: dict[Path, set[str]] = defaultdict(set)  # of training photos, by folder
    paths: dict[str, list[tuple[str, Path]]] = {}
    for kind, queries in sets.items():
        for row in range(len(queries)):
            name = queries.name(row)
            paths.setdefault(name.rpartition("/")[2], []).append((kind, queries.folder / name))
    found: dict[str, dict[Path, Path]] = {kind: {} for kind in sets}  # the training photo of each query
    for number in range(len(data.used)):
        group = data.group(number)
        for image in range(group.num_images):
            name = group.image_name(image)
            if looks_for_copies:
                names[group.folder].add(name)
            for kind, path in paths.get(name.rpartition("/")[2], ()):
                if path not in found[kind] and is_copy(path, group.folder / name):
                    found[kind][path] = group.folder / name
    for folder, of_folder in names.items():
        photos = image_list(folder, sorted(of_folder))
        for kind, queries in sets.items():
            for query, photo in find_copies(photos, queries, progress, most_read=MOST_READ):
                found[kind].setdefault(queries.folder / queries.name(query), folder / photos.name(photo))
    parts = [f"{len(found[kind]):,} of {len(sets[kind]):,} {kind} queries" for kind in sets if found[kind]]
    if parts:
        query, photo = next(min(pairs.items()) for pairs in found.values() if pairs)
        is_one = sum(map(len, found.values())) == 1
        raise DatasetError(
            f"{' and '.join(parts)} {'is also a training photo' if is_one else 'are also training photos'}, such as "
            f"{printable(query)} = {printable(photo)}: recalls would be too high. Remove {'it' if is_one else 'them'} "
            f"from the queries or from the training photos."
        )


def is_copy(path: Path, other: Path) -> bool:
    """Whether two files of the same name are one photo: by an '@' name, whatever their content, or by content."""
    if is_at_name(path.name):
        return True
    try:
        return filecmp.cmp(path, other, shallow=False)
    except OSError:  # reported when the photo is opened
        return False


def _num_shared(val: ImageList, test: ImageList) -> int:
    """The number of photos of `val` that are in `test`.  Lists of one table have one folder."""
    if val.folder.resolve() != test.folder.resolve():
        return len(rows_also_in(val, test))
    names = {test.name(row) for row in range(len(test))}
    return sum(val.name(row) in names for row in range(len(val)))


# --- the start -------------------------------------------------------------------------------------------------------


def correct_queries(evaluation: Evaluation) -> Tensor:
    """Which queries count for the first recall of an evaluation, R@1 by default, (Q,) bool."""
    return torch.from_numpy(evaluation.hits[:, : min(evaluation.recalls)].any(axis=1))


def won_and_lost(start: Tensor | None, evaluation: Evaluation) -> dict[str, int]:
    """{"won": n, "lost": n}: queries compared with those that were correct at the start, (Q,) bool.

    Empty if the start is unknown, or was evaluated on another number of queries.
    """
    now = correct_queries(evaluation)
    if start is None or start.shape != now.shape:
        return {}
    return {"won": int((now & ~start).sum()), "lost": int((start & ~now).sum())}


def can_be_chance(won: int, lost: int) -> bool:
    """Whether a fair coin for each query won or lost gives such a difference in 5% of cases or more (sign test)."""
    num_queries = won + lost
    tail = sum(math.comb(num_queries, count) for count in range(min(won, lost) + 1))
    return 2 * tail >= SIGNIFICANCE * 2**num_queries


def best_epoch_summary(metrics: Sequence[Mapping[str, Any]], best_epoch: int) -> dict[str, Any]:
    """What results.json says about the choice of the best model, from the rows of metrics.jsonl.

    best_epoch counts from 1, 0 is the start.  The recalls of the start, and the queries won and lost since, are absent
    in runs of earlier versions.
    """
    start = next((row for row in metrics if row["kind"] == "start"), None)
    best = next((row for row in metrics if row["kind"] == "epoch" and row["epoch"] == best_epoch), None)
    summary: dict[str, Any] = {"best_epoch": 0 if best_epoch == START else best_epoch + 1 if best_epoch >= 0 else None}
    if start is not None:
        summary |= {"num_queries": start["num_queries"], "start_recalls": start["recalls"]}
    chosen = start if best_epoch == START else best
    if chosen is not None:
        summary |= {"best_recalls": chosen["recalls"]}
        summary |= {key: chosen[key] for key in ("won", "lost") if key in chosen}
    return summary


def won_and_lost_text(counts: Mapping[str, Any]) -> str:
    """Format queries won and lost, as `compared with the start: 7 queries won, 2 lost`; "" if they are unknown."""
    if "won" not in counts:
        return ""
    won, lost = counts["won"], counts["lost"]
    chance = " (may be chance)" if won != lost and can_be_chance(won, lost) else ""
    return f"compared with the start: {format_count(won, 'query', 'queries')} won, {lost} lost{chance}"
