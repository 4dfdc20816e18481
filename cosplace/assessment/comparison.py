"""Compare runs on the same queries: differences of recalls with intervals, and the queries won and lost.

Two recalls of the same queries vary together, so their difference is tested on pairs.  McNemar's exact test
(Psychometrika 1947) counts only queries that one run gets right and the other wrong, as if they were independent; the
interval of `paired_difference` knows that queries of one place or sequence are not.  A run is called better only if
both agree.  Legend: Q queries, K predictions per query.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.assessment.intervals import Estimate, clustered_share, mcnemar, paired_difference
from cosplace.assessment.protocols import CUSTOM
from cosplace.assessment.run_files import QueryList, QueryResults, model_name, read_query_results, read_results
from cosplace.errors import ConfigError, one_line
from cosplace.photos.paths import printable

SIGNIFICANCE = 0.05
NO_DIFFERENCE = "no difference can be shown"
SAME_POSITION_M = 0.01
MIN_CONDITION_QUERIES, MAX_CONDITION_VALUES = 5, 20  # smaller groups and rarer values are left out
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """A run that is compared with others."""

    letter: str  # A, B, …
    name: str  # of its model
    folder: Path
    results: Mapping[str, Any]  # results.json
    queries: QueryResults

    def recall(self, n: int) -> Estimate:
        """Recall@n in percent, with its interval."""
        return clustered_share(self.queries.is_correct(n), self.queries.clusters)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallDifference:
    """One recall of two runs, A and B, of the same queries."""

    n: int
    num_queries: int
    recall_a: float  # percent
    recall_b: float
    difference: Estimate  # B minus A, in percentage points
    won: int  # queries that are wrong in A and correct in B
    lost: int
    p: float  # McNemar's exact test, two-sided

    @property
    def sign(self) -> int:
        """1 if B is better, -1 if A is better, 0 if no difference can be shown."""
        if not self.p < SIGNIFICANCE:  # also if it is unknown
            return 0
        return 1 if self.difference.low > 0 else -1 if self.difference.high < 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionDifference:
    """The difference of two runs on the queries of one condition, such as night."""

    condition: str
    value: str
    row: RecallDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One run, B, compared with the reference, A."""

    a: ComparedRun
    b: ComparedRun
    rows: Sequence[RecallDifference]  # by n, ascending
    won: np.ndarray  # int64, the queries that are wrong in A and correct in B for the first n
    lost: np.ndarray
    conditions: Sequence[ConditionDifference]  # for the first n
    notes: Sequence[str]  # sentences: settings that differ

    def verdict(self, row: RecallDifference) -> str:
        """In words: "B is better", "A is better" or "no difference can be shown"."""
        return {1: f"{self.b.letter} is better", -1: f"{self.a.letter} is better", 0: NO_DIFFERENCE}[row.sign]


# --- runs ------------------------------------------------------------------------------------------------------------


def open_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs in some folders, the reference first, and check that they can be compared with it.

    Raises ConfigError for folders that are not finished runs, are given twice, or differ in more than the model.
    """
    if len(folders) < 2:
        raise ConfigError("A comparison needs two or more runs. Use the folders of runs, the reference first.")
    if len(folders) > len(LETTERS):
        raise ConfigError(f"At most {len(LETTERS)} runs can be compared, got {len(folders)}.")
    for folder, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            raise ConfigError(f"{folder} is given {count} times. Use the folders of different runs.")
    runs = [open_run(folder, letter) for folder, letter in zip(folders, LETTERS, strict=False)]
    for other in runs[1:]:
        check_comparable(runs[0], other)
    return runs


def open_run(folder: Path, letter: str = LETTERS[0]) -> ComparedRun:
    """Read one run.  Raises ConfigError if it cannot be compared with any other."""
    results, queries = read_results(folder), read_query_results(folder)
    run = ComparedRun(letter=letter, name=model_name(results, folder), folder=folder, results=results, queries=queries)
    if not len(queries.queries.names):
        raise ConfigError(f"{folder} has no queries.")
    for text, recall in results["recalls"].items():
        n = int(text) if text.isdecimal() else 0
        found = run.recall(n).value if 1 <= n <= queries.num_predictions else recall
        if not math.isclose(found, recall, abs_tol=1e-6):
            raise ConfigError(
                f"{folder}: R@{n} is {recall:.2f} in results.json, but {found:.2f} in queries.parquet. "
                f"The files are of different runs. Evaluate the model again."
            )
    return run


def check_comparable(a: ComparedRun, b: ComparedRun) -> None:
    """Raise ConfigError unless two runs have the same protocol, database, queries and radius."""
    ids = [_protocol_ids(run) for run in (a, b)]
    if not set(ids[0]) & set(ids[1]):
        names = " and ".join(found[0] for found in ids)
        raise ConfigError(
            f"{b.folder} cannot be compared with {a.folder}: they follow different protocols, {names}. "
            f"Evaluate both models by the same protocol."
        )
    check_same_queries(a.queries.queries, b.queries.queries, str(a.folder), str(b.folder))


def _protocol_ids(run: ComparedRun) -> list[str]:
    """The protocol of a run, and for a custom one also the one that it follows although it was not named."""
    protocol = run.results.get("protocol")
    protocol = protocol if isinstance(protocol, Mapping) else {}
    return [str(protocol.get("id", CUSTOM)), *[str(one) for one in (protocol.get("similar"),) if one]]


def check_same_queries(a: QueryList, b: QueryList, name_a: str, name_b: str) -> None:
    """Raise ConfigError, with the first difference, unless two runs have the same queries, database and radius."""
    difference = _first_difference(a, b, name_a, name_b)
    if difference:
        raise ConfigError(
            f"{name_b} cannot be compared with {name_a}: {difference} Evaluate both on the same dataset, with the same "
            f"radius."
        )


def _first_difference(a: QueryList, b: QueryList, name_a: str, name_b: str) -> str:
    if a.radius_m != b.radius_m:
        return f"a prediction is correct within {a.radius_m:g} m in {name_a}, within {b.radius_m:g} m in {name_b}."
    if list(a.names) != list(b.names):
        only_a, only_b = sorted(set(a.names) - set(b.names)), sorted(set(b.names) - set(a.names))
        counts = f"{len(a.names):,} queries and {len(b.names):,} queries" if len(a.names) != len(b.names) else ""
        counts = f"they have {counts}; " if counts else "they have different queries; "
        if only_a or only_b:
            name, owner = (only_a[0], name_a) if only_a else (only_b[0], name_b)
            return f"{counts}{name} is only in {owner}."
        return f"{counts}the order or the number of the same names differs."
    if a.positions.shape != b.positions.shape:
        return "positions are in one UTM zone in one of them, in several in the other."
    moved = np.flatnonzero(~(np.abs(a.positions - b.positions) <= SAME_POSITION_M).all(axis=1))
    if len(moved):
        return f"the query {a.names[moved[0]]} has another position."
    if a.num_database != b.num_database:
        return f"they have {a.num_database:,} database images and {b.num_database:,} database images."
    if a.database_sha256 != b.database_sha256:
        return f"their databases have {a.num_database:,} images each, but with other names or positions."
    return ""


# --- differences -----------------------------------------------------------------------------------------------------


def compare(a: ComparedRun, b: ComparedRun, others: Sequence[ComparedRun] = ()) -> Comparison:
    """Compare a run with a reference that has the same queries, see `check_comparable`.

    others: runs in the same table, which shows the same recalls of all.
    """
    ns = recall_values(a, b, *others)
    clusters = a.queries.clusters
    correct_a, correct_b = a.queries.is_correct(ns[0]), b.queries.is_correct(ns[0])
    return Comparison(
        a=a,
        b=b,
        rows=[recall_difference(n, a.queries.is_correct(n), b.queries.is_correct(n), clusters) for n in ns],
        won=np.flatnonzero(correct_b & ~correct_a),
        lost=np.flatnonzero(correct_a & ~correct_b),
        conditions=_by_condition(a.queries, ns[0], correct_a, correct_b),
        notes=_notes(a, b),
    )


def recall_values(*runs: ComparedRun) -> list[int]:
    """The N that any of the runs has a recall of, and all have enough predictions for, ascending."""
    most = min(run.queries.num_predictions for run in runs)
    known = [{int(text) for text in run.results["recalls"] if text.isdecimal()} for run in runs]
    common = sorted(n for n in set.union(*known) if 1 <= n <= most)
    return common or [1]


def recall_difference(n: int, a: np.ndarray, b: np.ndarray, clusters: np.ndarray) -> RecallDifference:
    """Compare which queries are correct, (Q,) bool each.  clusters: (Q,) queries that are drawn together."""
    won, lost = int((b & ~a).sum()), int((a & ~b).sum())
    return RecallDifference(
        n=n,
        num_queries=len(a),
        recall_a=100 * float(a.mean()),
        recall_b=100 * float(b.mean()),
        difference=paired_difference(b, a, clusters),
        won=won,
        lost=lost,
        p=mcnemar(won, lost),
    )


def _by_condition(
    queries: QueryResults, n: int, correct_a: np.ndarray, correct_b: np.ndarray
) -> list[ConditionDifference]:
    found = []
    for condition, values in queries.conditions.items():
        of_query = np.array(values, object)
        frequent = Counter(value for value in values if value).most_common(MAX_CONDITION_VALUES)
        for value, count in sorted(frequent):
            if count >= MIN_CONDITION_QUERIES:
                rows = np.flatnonzero(of_query == value)
                clusters = np.unique(queries.clusters[rows], return_inverse=True)[1].reshape(-1)
                row = recall_difference(n, correct_a[rows], correct_b[rows], clusters)
                found.append(ConditionDifference(condition=condition, value=value, row=row))
    return found


def _notes(a: ComparedRun, b: ComparedRun) -> list[str]:
    notes = []
    sizes = [run.results.get("image_size") for run in (a, b)]
    if sizes[0] != sizes[1]:
        texts = ["their own size" if size is None else f"{size} pixels" for size in sizes]
        notes.append(f"Photos have {texts[0]} in {a.letter}, {texts[1]} in {b.letter}.")
    words = {"query_policy": "Query policies are", "scales": "Scales are", "flip": "Mirror images:"}
    # A size that all photos have is in the first note.
    words |= {"query_size": "Sizes of queries are"} if sizes[0] == sizes[1] else {}
    for name, text in words.items():
        views = [run.results.get(name) for run in (a, b)]
        if None not in views and views[0] != views[1]:
            notes.append(f"{text} {_view_text(views[0])} in {a.letter}, {_view_text(views[1])} in {b.letter}.")
    for run in (a, b):
        deviations = _entry(run.results, "protocol", "deviations")
        if isinstance(deviations, list) and deviations:
            notes.append(f"{run.letter} deviates: {'; '.join(map(str, deviations))}.")
    searches = [_search_text(run.results.get("compression")) for run in (a, b)]
    if searches[0] != searches[1]:
        notes.append(f"Search: {searches[0]} in {a.letter}, {searches[1]} in {b.letter}.")
    dimensions = [_entry(run.results, "model", "descriptor_dim") for run in (a, b)]
    if None not in dimensions and dimensions[0] != dimensions[1]:
        texts = [_view_text(dimension) for dimension in dimensions]
        notes.append(f"Descriptors have {texts[0]} dimensions in {a.letter}, {texts[1]} in {b.letter}.")
    dtypes = [run.results.get("descriptors_dtype", "float32") for run in (a, b)]
    if dtypes[0] != dtypes[1]:
        notes.append(f"Stored descriptors are {dtypes[0]} in {a.letter}, {dtypes[1]} in {b.letter}.")
    precisions = [_entry(run.results, "environment", "precision") for run in (a, b)]
    if None not in precisions and precisions[0] != precisions[1]:
        notes.append(f"Descriptors are {precisions[0]} in {a.letter}, {precisions[1]} in {b.letter}.")
    checksums = [_entry(run.results, "model", "sha256") for run in (a, b)]
    if checksums[0] is not None and checksums[0] == checksums[1]:
        notes.append(f"{a.letter} and {b.letter} have the same weights file.")
    return list(map(printable, notes))


def _search_text(compression: Any) -> str:
    """How a run searched, from its entry in results.json."""
    if not isinstance(compression, Mapping):
        return "exact"
    method, shortlist = _view_text(compression.get("method")), _view_text(compression.get("shortlist"))
    return f"{method} codes alone" if shortlist == "0" else f"{method} codes with a shortlist of {shortlist}"


def _view_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return one_line(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def _entry(results: Mapping[str, Any], section: str, key: str) -> Any:
    values = results.get(section)
    return values.get(key) if isinstance(values, Mapping) else None
