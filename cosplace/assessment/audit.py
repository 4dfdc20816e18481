"""Audit of the ground truth: wrong answers that look right, and verdicts of people on them.

A query's best match may show the same place although it is outside the radius: positions are wrong, or a building is
seen from afar.  People judge such pairs; their verdicts are stored next to the folder of the queries, in
`<queries>_verdicts.csv`: query, photo, verdict (same, different or unsure), who, when, and checksums of both photos.
Photos that are judged to show the same place are additional positives of their query.  Legend: Q queries, K
predictions per query.  Side effects: reads and writes files of verdicts, and reads photos.
"""

import csv
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosplace.assessment.intervals import Estimate, clustered_share
from cosplace.assessment.run_files import QueryResults, read_json
from cosplace.errors import ConfigError, ImageError, one_line
from cosplace.photos.image_list import ImageList
from cosplace.photos.opening import read_file
from cosplace.photos.paths import csv_line, path_from_text, path_text, printable
from cosplace.progress import format_count
from cosplace.storage import problem_with_kind, write_text

if TYPE_CHECKING:  # these import torch, which reading a run does not need
    from cosplace.retrieval.dataset import RetrievalDataset
    from cosplace.retrieval.evaluation import Evaluation

SAME, DIFFERENT, UNSURE = "same", "different", "unsure"
VERDICTS = (SAME, DIFFERENT, UNSURE)
HEADER = ("query", "photo", "verdict", "who", "when")
CHECKSUMS = ("query_sha256", "photo_sha256")  # columns that files of earlier versions do not have
FILE_ENDING = "_verdicts.csv"
FORMAT = "cosplace-audit-1"  # of the file that the page exports
MAX_CSV_BYTES = 1 << 28
MAX_TEXT = 80  # characters of who and when

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPair:
    """A query and its first prediction, which is wrong but looks right."""

    query: str  # path below the folder of the queries
    photo: str  # path below the folder of the database
    distance_m: float
    descriptor_distance: float  # L2
    more_similar_than: float  # percent of the correct first predictions

    @property
    def similarity(self) -> float:
        """Cosine similarity, for descriptors of length 1."""
        return 1 - self.descriptor_distance**2 / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a person says about a pair."""

    query: str
    photo: str
    verdict: str  # same, different or unsure
    who: str = ""
    when: str = ""  # ISO 8601, UTC
    query_sha256: str = ""  # of the files that the person has seen; empty if unknown
    photo_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictFile:
    """A file of verdicts on the queries of a dataset."""

    path: Path
    verdicts: Sequence[Verdict]
    num_changed: int = 0  # verdicts that are left out because a photo has changed since


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRecalls:
    """Recalls with verdicts: photos judged to show the same place are additional positives."""

    file: Path
    recalls: Mapping[int, Estimate]  # N -> percent
    counts: Mapping[str, int]  # pairs of this dataset by verdict
    num_contradicted: int  # pairs that one person calls the same and another one different: not used
    num_unknown: int  # verdicts on queries or photos that the dataset does not have
    num_changed: int = 0  # verdicts on photos that have changed since: not used


# --- pairs -----------------------------------------------------------------------------------------------------------


def audit_pairs(
    run: QueryResults, *, more_similar_than: float = 50.0, judged: Iterable[Verdict] = ()
) -> list[AuditPair]:
    """Wrong first predictions that are at least as similar as some correct ones, the most similar first.

    more_similar_than: percent of the correct first predictions; 0 takes all wrong ones.
    judged: pairs that have a verdict are left out.
    """
    is_known = {(one.query, one.photo) for one in judged}
    has_answer = np.array([len(row) > 0 for row in run.predictions], bool)
    first = np.array([row[0] if row else np.inf for row in run.descriptor_distances], np.float64)
    correct = np.sort(first[has_answer & (run.first_correct == 1)])
    found = []
    for query in np.flatnonzero(has_answer & (run.first_correct != 1)).tolist():
        # Correct answers with the same distance do not count as less similar.
        less_similar = len(correct) - int(np.searchsorted(correct, first[query], "right"))
        share = 100 * less_similar / len(correct) if len(correct) else 100.0
        name, photo = run.queries.names[query], run.predictions[query][0]
        if share >= more_similar_than and (name, photo) not in is_known:
            found.append(
                AuditPair(
                    query=name,
                    photo=photo,
                    distance_m=run.distances_m[query][0],
                    descriptor_distance=float(first[query]),
                    more_similar_than=share,
                )
            )
    return sorted(found, key=lambda pair: (pair.descriptor_distance, pair.query))


# --- files -----------------------------------------------------------------------------------------------------------


def verdicts_path(queries_folder: Path) -> Path:
    """Where the verdicts on some queries are stored: next to their folder."""
    folder = queries_folder.resolve()
    return folder.with_name(folder.name + FILE_ENDING)


def read_verdicts(path: Path) -> list[Verdict]:
    """The verdicts in a CSV file.  Raises ConfigError if it is missing or damaged."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Use the CSV file in it, such as queries{FILE_ENDING}.")
    if not path.is_file():
        raise ConfigError(f"{path} {problem_with_kind(path, 'file')}. Write it with `cosplace audit RUN --apply FILE`.")
    if path.stat().st_size > MAX_CSV_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CSV_BYTES >> 20} MB: it is not a file of verdicts.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := set(HEADER) - set(rows.fieldnames or ()):
                raise ConfigError(f"{path} has no column '{sorted(missing)[0]}': it is not a file of verdicts.")
            return [_verdict(row, f"{path}, line {rows.line_num}") for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is damaged: {error}.") from error


def read_export(path: Path, run: QueryResults) -> list[Verdict]:
    """The verdicts in a file that the page of an audit exported.

    Raises ConfigError if it is damaged, or of another dataset than the run.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path} {problem_with_kind(path, 'file')}. Use the file that the page of the audit exported."
        )
    content = read_json(path, "Export the verdicts again.")
    rows = content.get("verdicts")
    if content.get("format") != FORMAT or not isinstance(rows, list):
        raise ConfigError(f"{path} is not a file that the page of an audit exported.")
    if content.get("database_sha256") != run.queries.database_sha256:
        raise ConfigError(
            f"{path} has verdicts on {one_line(str(content.get('dataset')))}, whose database is not the one of this "
            f"run. Use the run that the audit was made for."
        )
    verdicts = [_verdict(row, f"{path}, verdict {number}") for number, row in enumerate(rows, 1)]
    row_of = {name: row for row, name in enumerate(run.queries.names)}
    for one in verdicts:
        row = row_of.get(one.query)
        if row is None or one.photo not in run.predictions[row]:
            raise ConfigError(
                f"{path} has a verdict on {printable(one.query)} and {printable(one.photo)}, which this run did not "
                f"find. Use the run that the audit was made for."
            )
    return verdicts


def _verdict(row: Any, place: str) -> Verdict:
    row = row if isinstance(row, Mapping) else {}
    values = {name: value for name in HEADER if isinstance(value := row.get(name), str)}
    if len(values) < len(HEADER) or values["verdict"] not in VERDICTS:
        raise ConfigError(f"{place} is damaged: it needs {', '.join(HEADER)}, and a verdict of {', '.join(VERDICTS)}.")
    checksums = {name: row.get(name) or "" for name in CHECKSUMS}
    if not all(isinstance(one, str) and re.fullmatch("[0-9a-f]{64}|", one) for one in checksums.values()):
        raise ConfigError(f"{place} is damaged: {' and '.join(CHECKSUMS)} must be 64 hexadecimal digits, or empty.")
    try:
        datetime.fromisoformat(values["when"] or "2000-01-01")
    except ValueError as error:
        raise ConfigError(
            f"{place}: `when` is '{printable(values['when'])}', which is not a time. Use one such as "
            "2026-01-31T12:00:00Z, or leave it empty."
        ) from error
    return Verdict(
        # A spreadsheet-safe "./" in front of a path does not change it.
        query=str(path_from_text(values["query"])),
        photo=str(path_from_text(values["photo"])),
        verdict=values["verdict"],
        who=one_line(values["who"]).removeprefix("./")[:MAX_TEXT],
        when=one_line(values["when"])[:MAX_TEXT],
        **checksums,
    )


def merge(before: Sequence[Verdict], new: Sequence[Verdict]) -> list[Verdict]:
    """All verdicts; a new one replaces that of the same person on the same pair.  Sorted by query, photo and person."""
    found = {(one.query, one.photo, one.who): one for one in (*before, *new)}
    return [found[key] for key in sorted(found)]


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write verdicts to a CSV file, atomically.  Raises StorageError if it cannot be written."""
    rows = [
        (path_text(one.query), path_text(one.photo), one.verdict, one.who, one.when, one.query_sha256, one.photo_sha256)
        for one in verdicts
    ]
    write_text(path, "".join(map(csv_line, (HEADER + CHECKSUMS, *rows))))


def photo_checksum(images: ImageList, row: int) -> str:
    """SHA-256 of a photo's file in hexadecimal; empty for one that cannot be read."""
    try:
        return hashlib.sha256(read_file(images.path(row))).hexdigest()
    except ImageError:
        return ""


def without_changed(verdicts: Sequence[Verdict], queries: ImageList, database: ImageList) -> list[Verdict]:
    """The verdicts on photos that have not changed since.

    Those without checksums, or on photos that cannot be read, are kept.
    """
    now: list[dict[str, str]] = []
    for images, seen in (
        (queries, {one.query for one in verdicts if one.query_sha256}),
        (database, {one.photo for one in verdicts if one.photo_sha256}),
    ):
        rows = range(len(images)) if seen else ()
        now.append({name: photo_checksum(images, row) for row in rows if (name := images.name(row)) in seen})
    return [
        one
        for one in verdicts
        if all(
            not (before and after) or before == after
            for before, after in (
                (one.query_sha256, now[0].get(one.query)),
                (one.photo_sha256, now[1].get(one.photo)),
            )
        )
    ]


# --- recalls ---------------------------------------------------------------------------------------------------------


def find_verdicts(dataset: "RetrievalDataset", path: Path | None = None) -> VerdictFile | None:
    """The verdicts on the queries of a dataset: in a file, or next to the folder of the queries if they are there.

    Those on photos that have changed since are left out, with a warning.
    Raises ConfigError for a file that is missing or damaged, or has no verdict on a query of the dataset.
    """
    beside = verdicts_path(dataset.queries.folder)
    if path is None and not beside.is_file():
        return None
    found = VerdictFile(path=path or beside, verdicts=read_verdicts(path or beside))
    names = {one.query for one in found.verdicts}
    if path is not None and not any(dataset.queries.name(row) in names for row in range(len(dataset.queries))):
        raise ConfigError(f"{path} has no verdict on a query of {dataset.name}. Use the file of this dataset.")
    current = without_changed(found.verdicts, dataset.queries, dataset.database)
    if num_changed := len(found.verdicts) - len(current):
        first = next(one for one in found.verdicts if one not in current)
        log.warning(
            "%s: %s of %s left out, because a photo has changed since, for example that on %s and %s. Use `cosplace "
            "audit RUN` to judge again.",
            printable(found.path), f"{num_changed:,}", format_count(len(found.verdicts), "verdict"),
            printable(first.query), printable(first.photo),
        )  # fmt: skip
    return VerdictFile(path=found.path, verdicts=current, num_changed=num_changed)


def judged_recalls(
    evaluation: "Evaluation", dataset: "RetrievalDataset", file: VerdictFile, clusters: np.ndarray
) -> JudgedRecalls:
    """Recalls of an evaluation with verdicts.  clusters: (Q,) queries that are drawn together.

    A pair counts as the same place if at least one person says so, and nobody that it is different.
    """
    opinions: dict[str, dict[str, set[str]]] = {}
    judged_photos = {one.photo for one in file.verdicts}
    photos = judged_photos.intersection(map(dataset.database.name, range(len(dataset.database))))
    for one in file.verdicts:
        if one.photo not in photos:
            continue
        opinions.setdefault(one.query, {}).setdefault(one.photo, set()).add(one.verdict)
    row_of = {name: row for row in range(len(dataset.queries)) if (name := dataset.queries.name(row)) in opinions}
    hits, counts, num_contradicted = evaluation.hits.copy(), dict.fromkeys(VERDICTS, 0), 0
    for query, row in row_of.items():
        for rank, image in enumerate(evaluation.predictions[row].tolist()):
            if image >= 0:
                hits[row, rank] |= opinions[query].get(dataset.database.name(image), set()) - {UNSURE} == {SAME}
        for opinion in opinions[query].values():
            decided = opinion - {UNSURE}
            num_contradicted += len(decided) > 1
            if len(decided) <= 1:
                counts[next(iter(decided), UNSURE)] += 1
    is_found = np.logical_or.accumulate(hits, axis=1)
    return JudgedRecalls(
        file=file.path,
        recalls={n: clustered_share(is_found[:, n - 1], clusters) for n in evaluation.recalls},
        counts=counts,
        num_contradicted=num_contradicted,
        num_unknown=sum(one.query not in row_of or one.photo not in photos for one in file.verdicts),
        num_changed=file.num_changed,
    )


def judged_record(judged: JudgedRecalls) -> dict[str, Any]:
    """The entry of results.json."""
    return {
        "file": path_text(judged.file),
        "recalls": {str(n): one.value for n, one in judged.recalls.items()},
        "intervals": {str(n): [round(one.low, 4), round(one.high, 4)] for n, one in judged.recalls.items()},
        "approximate_recalls": [n for n, one in judged.recalls.items() if one.is_approximate],
        "pairs": dict(judged.counts),
        "contradicted": judged.num_contradicted,
        "unknown": judged.num_unknown,
        "changed": judged.num_changed,
    }


def judged_text(judged: JudgedRecalls) -> str:
    """How many judged pairs show the same place, and how many are not used."""
    num_contradicted = judged.num_contradicted
    num_pairs = sum(judged.counts.values()) + num_contradicted
    unused = format_count(num_contradicted, "contradicted pair") + (" is" if num_contradicted == 1 else " are")
    text = f"{judged.counts[SAME]:,} of {num_pairs:,} judged pairs show the same place"
    return f"{text}; {unused} not used" if num_contradicted else text


def judged_line(judged: JudgedRecalls) -> str:
    """Both counts and recalls in one line, for the terminal."""
    recalls = ", ".join(f"R@{n}: {one.marked_text()}" for n, one in judged.recalls.items())
    unknown = (
        f"; {judged.num_unknown:,} verdicts are on photos that are not in the dataset" if judged.num_unknown else ""
    )
    return f"with verdicts ({judged_text(judged)}{unknown}): {recalls}"
