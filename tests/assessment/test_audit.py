"""The audit of the ground truth: which pairs, files of verdicts, recalls with verdicts."""

import csv
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosplace.assessment.audit import (
    VERDICTS,
    Verdict,
    VerdictFile,
    audit_pairs,
    find_verdicts,
    judged_line,
    judged_recalls,
    judged_record,
    judged_text,
    merge,
    read_export,
    read_verdicts,
    verdicts_path,
    write_verdicts,
)
from cosplace.assessment.intervals import clustered_share
from cosplace.assessment.run_files import QueryResults, read_query_results
from cosplace.errors import ConfigError
from cosplace.photos.paths import path_text
from cosplace.retrieval.dataset import RetrievalDataset
from tests.assessment.comparison_samples import K, city_dataset, city_evaluation, write_run
from tests.assessment.test_provenance import SCHEMA, violations

RANKS = [1] * 6 + [2] * 2 + [0] * 2


@pytest.fixture
def dataset(tmp_path: Path) -> RetrievalDataset:
    return city_dataset(tmp_path / "city", len(RANKS))


@pytest.fixture
def run(dataset: RetrievalDataset, tmp_path: Path) -> QueryResults:
    return read_query_results(write_run(tmp_path / "run", dataset, RANKS))


def with_distances(run: QueryResults, firsts: list[float]) -> QueryResults:
    """The run with other descriptor distances of the first predictions."""
    return dataclasses.replace(run, descriptor_distances=[[first, 9, 9, 9, 9] for first in firsts])


def exported(run: QueryResults, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    content = {"format": "cosplace-audit-1", "dataset": run.dataset, "database_sha256": run.queries.database_sha256}
    return {**content, "verdicts": rows, **changes}


def row_of(run: QueryResults, number: int, verdict: str = "same", **changes: Any) -> dict[str, Any]:
    names = {"query": run.queries.names[number], "photo": run.predictions[number][0]}
    return {**names, "verdict": verdict, "who": "Ada", "when": "2026-01-31T12:00:00Z", **changes}


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_are_wrong_and_more_similar_than_correct_ones(run: QueryResults) -> None:
    # Correct: 0.1 … 0.6.  Wrong: more similar than 5, 3, 2 and 0 of the 6 correct ones.
    run = with_distances(run, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.35, 0.15, 0.7, 0.45])
    names = run.queries.names
    pairs = audit_pairs(run)
    assert [(pair.query, round(pair.more_similar_than, 6)) for pair in pairs] == [
        (names[7], round(100 * 5 / 6, 6)),
        (names[6], 50.0),
    ]
    assert pairs[0].photo == run.predictions[7][0] and pairs[0].distance_m == run.distances_m[7][0] > 25
    assert pairs[0].similarity == pytest.approx(1 - 0.15**2 / 2)
    assert [pair.query for pair in audit_pairs(run, more_similar_than=0)] == [names[row] for row in (7, 6, 9, 8)]
    judged = [Verdict(query=names[7], photo=run.predictions[7][0], verdict="unsure")]
    assert [pair.query for pair in audit_pairs(run, judged=judged)] == [names[6]]


def test_equal_distances_are_not_more_similar(run: QueryResults) -> None:
    assert audit_pairs(with_distances(run, [0.3] * 10)) == []


def test_without_any_correct_answer_all_wrong_ones_are_pairs(dataset: RetrievalDataset, tmp_path: Path) -> None:
    run = read_query_results(write_run(tmp_path / "bad", dataset, [0] * len(RANKS)))
    assert len(audit_pairs(run)) == len(RANKS)


# --- files -----------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1).filter(
    lambda text: text not in (".", "..")
)


@given(rows=st.lists(st.tuples(NAMES, NAMES, st.sampled_from(VERDICTS)), max_size=5))
def test_any_names_survive_the_file(rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("verdicts") / "v.csv"
    verdicts = [Verdict(query=query, photo=photo, verdict=verdict, who="=A1") for query, photo, verdict in rows]
    write_verdicts(path, verdicts)
    assert read_verdicts(path) == verdicts
    with path.open(encoding="utf-8", newline="") as file:
        assert not any(cell.startswith("=") for row in csv.reader(file) for cell in row)


def test_a_new_verdict_replaces_that_of_the_same_person() -> None:
    old = [Verdict(query="q", photo="p", verdict="same", who=who) for who in ("Ada", "Eve")]
    new = [Verdict(query="q", photo="p", verdict="different", who="Ada")]
    assert {(one.who, one.verdict) for one in merge(old, new)} == {("Ada", "different"), ("Eve", "same")}


def test_where_verdicts_are(tmp_path: Path) -> None:
    assert verdicts_path(tmp_path / "queries_v1") == tmp_path / "queries_v1_verdicts.csv"


def test_an_export_is_read(run: QueryResults, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps(exported(run, [row_of(run, 8), row_of(run, 9, "different", who="x\ny" * 99)])))
    first, second = read_export(path, run)
    assert first == Verdict(**row_of(run, 8))
    assert second.who.startswith(r"x\ny") and len(second.who) == 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: exported(run, [], format="other"), "not a file that the page"),
        (lambda run: exported(run, {}), "not a file that the page"),  # type: ignore[arg-type]
        (lambda run: exported(run, [], database_sha256="0", dataset="a\nb"), r"verdicts on a\\nb, whose database"),
        (lambda run: exported(run, [row_of(run, 8, "right")]), "verdict 1 is damaged"),
        (lambda run: exported(run, [row_of(run, 8, who=3)]), "verdict 1 is damaged"),
        (lambda run: exported(run, [None]), "verdict 1 is damaged"),  # type: ignore[list-item]
        (lambda run: exported(run, [row_of(run, 8, query="new.jpg")]), r"verdict on new\.jpg and .* did not find"),
        (lambda run: exported(run, [row_of(run, 8, photo="new.jpg")]), r"new\.jpg, which this run did not find"),
    ],
)
def test_exports_of_something_else_are_refused(change: Any, message: str, run: QueryResults, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps(change(run)))
    with pytest.raises(ConfigError, match=message):
        read_export(path, run)
    path.write_text("{cut")
    with pytest.raises(ConfigError, match=r"v\.json is damaged: it is not JSON .* Export the verdicts again\.$"):
        read_export(path, run)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_is_called_one(run: QueryResults, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"pipe is a pipe, not a file\. Write it with `cosplace audit"):
        read_verdicts(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (tmp_path, "folder")):
        with pytest.raises(ConfigError, match=rf"is a {kind}, not a file\. Use the file that the page"):
            read_export(path, run)
    with pytest.raises(ConfigError, match="does not exist"):
        read_export(tmp_path / "nothing", run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"query,photo\n", "no column 'verdict'"),
        (b"", "no column"),
        (b"query,photo,verdict,who,when\na,b\n", "line 2 is damaged"),
        (b"query,photo,verdict,who,when\na,b,perhaps,,\n", "line 2 is damaged"),
        (b"query,photo,verdict,who,when\na,b,same,,yesterday\n", "line 2: `when` is 'yesterday', which is not a time"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"query,photo,verdict,who,when,photo_sha256\na,b,same,,,x\n", "line 2 is damaged: .* 64 hexadecimal digits"),
    ],
)
def test_damaged_tables_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_verdicts(path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_verdicts(tmp_path / "missing.csv")
    with pytest.raises(ConfigError, match=r"is a folder\. Use the CSV file in it"):
        read_verdicts(tmp_path)


# --- recalls ---------------------------------------------------------------------------------------------------------


def verdict_on(dataset: RetrievalDataset, query: int, image: int, verdict: str, who: str = "Ada") -> Verdict:
    return Verdict(query=dataset.queries.name(query), photo=dataset.database.name(image), verdict=verdict, who=who)


def test_photos_of_the_same_place_are_additional_positives(dataset: RetrievalDataset) -> None:
    evaluation = city_evaluation(dataset, RANKS)
    predicted = evaluation.predictions
    verdicts = [
        verdict_on(dataset, 8, predicted[8, 0], "same"),  # first prediction: a hit for all N
        verdict_on(dataset, 9, predicted[9, 1], "same"),  # second prediction: a hit for N = 5
        verdict_on(dataset, 6, predicted[6, 0], "unsure"),
        verdict_on(dataset, 7, predicted[7, 0], "same"),
        verdict_on(dataset, 7, predicted[7, 0], "different", "Eve"),  # contradicted: not used
        verdict_on(dataset, 0, predicted[0, 0], "different"),  # a labeled positive stays one
        Verdict(query="gone.jpg", photo="d0001.jpg", verdict="same"),
        Verdict(query=dataset.queries.name(5), photo="renamed.jpg", verdict="same"),
    ]
    clusters = np.arange(len(RANKS))
    judged = judged_recalls(evaluation, dataset, VerdictFile(path=Path("v.csv"), verdicts=verdicts), clusters)
    first = np.array([rank == 1 for rank in RANKS])
    assert judged.recalls[1] == clustered_share(first | (clusters == 8), clusters)
    assert judged.recalls[K] == clustered_share(np.ones(len(RANKS), bool), clusters)
    assert (judged.counts, judged.num_contradicted, judged.num_unknown) == (
        {"same": 2, "different": 1, "unsure": 1},
        1,
        2,
    )
    assert evaluation.recalls == {1: 60.0, K: 80.0}  # as labeled
    text = "2 of 5 judged pairs show the same place; 1 contradicted pair is not used"
    assert judged_text(judged) == text
    assert f"{text}; 2 verdicts are on photos that are not in the dataset): R@1: 70.0 [" in judged_line(judged)
    record = json.loads(json.dumps(judged_record(judged)))
    assert record["recalls"] == {"1": 70.0, "5": 100.0} and record["intervals"]["1"][0] < 70
    assert list(violations(record, SCHEMA["properties"]["verdicts"])) == []


def test_verdicts_are_found_next_to_the_queries(dataset: RetrievalDataset, tmp_path: Path) -> None:
    assert find_verdicts(dataset) is None
    verdicts = [verdict_on(dataset, 8, 0, "same")]
    dataset.folder.mkdir()
    write_verdicts(dataset.folder / "queries_verdicts.csv", verdicts)
    found = find_verdicts(dataset)
    assert found == VerdictFile(path=(dataset.folder / "queries_verdicts.csv").resolve(), verdicts=verdicts)
    other = tmp_path / "other.csv"
    write_verdicts(other, [Verdict(query="x.jpg", photo="y.jpg", verdict="same")])
    with pytest.raises(ConfigError, match=r"no verdict on a query of city/queries"):
        find_verdicts(dataset, other)
    with pytest.raises(ConfigError, match="does not exist"):
        find_verdicts(dataset, tmp_path / "missing.csv")


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    write_verdicts(tmp_path / "v.csv", [Verdict(query=name, photo=name, verdict="same")])
    assert path_text(name) in (tmp_path / "v.csv").read_text("utf-8")
    assert read_verdicts(tmp_path / "v.csv")[0].query == name
