"""The table of the queries of a run: what is written is read; damaged files are refused in one line."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cosplace.assessment.intervals import clusters_of
from cosplace.assessment.run_files import (
    QUERIES,
    STORED,
    query_list,
    read_query_results,
    read_results,
    variant_text,
    write_query_results,
)
from cosplace.errors import ConfigError
from cosplace.photos.image_list import image_list
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from cosplace.retrieval.extraction import Extraction
from cosplace.retrieval.shards import UnreadableImage

CONDITIONS = {"time of day": ["night", "day", "", "day"]}


def line_dataset(folder: Path, names: list[str] | None = None) -> RetrievalDataset:
    """Twelve database images, 20 m apart, and four queries; the last one is far away."""
    names = names or ["a.jpg", "b.jpg", os.fsdecode(b"caf\xe9.jpg"), "d\\x41.jpg"]
    return RetrievalDataset(
        name="line/queries",
        folder=folder,
        database=image_list(folder / "database", [f"sub/{number:02d}.jpg" for number in range(12)]),
        queries=image_list(folder / "queries", names),
        database_positions=np.array([[20.0 * number, 0.0] for number in range(12)]),
        query_positions=np.array([[0.0, 0.0], [62.0, 0.0], [100.0, 10.0], [5000.0, 0.0]]),
    )


def line_evaluation(dataset: RetrievalDataset, seed: int = 0, unreadable: bool = False) -> Evaluation:
    generator = np.random.default_rng(seed)
    database, queries = (generator.normal(size=(count, 6)).astype(np.float32) for count in (12, 4))
    readable = np.array([True, True, not unreadable, True])
    extraction = Extraction(
        descriptors=queries,
        readable=readable,
        unreadable=(UnreadableImage(index=2, name="c.jpg", message="empty"),) if unreadable else (),
        seconds=0.0,
    )
    return evaluate_descriptors(database, extraction, dataset, recall_values=(1, 12))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, ""),
        ({"image_size": None, "query_policy": "native", "query_size": None, "scales": [1.0], "flip": False}, ""),
        ({"image_size": 320, "query_policy": "short_side", "query_size": 320, "scales": [1.0], "flip": False},
         "320 pixels"),
        ({"image_size": 320, "query_policy": "native", "query_size": None}, "native, 320 pixels"),
        ({"image_size": 320, "query_policy": "short_side", "query_size": 480}, "short_side 480, 320 pixels"),
        ({"compression": {"method": "binary", "shortlist": 100}}, "binary codes"),
        ({"model": {"descriptor_dim": 16, "reduced_to": 16}, "flip": True}, "reduced to 16, flip"),
        ({"model": {"descriptor_dim": 512, "reduced_to": None}}, ""),
        ({"compression": {"method": "int8", "shortlist": 0}, "scales": [0.7, 1.0], "flip": True},
         "int8 codes alone, scales 0.7 1.0, flip"),
        ({"compression": {"method": ["?"]}, "query_policy": 3, "scales": "x", "flip": "yes"}, ""),
    ],
)  # fmt: skip
def test_the_variant_is_what_an_evaluation_changes(values: dict, text: str) -> None:
    assert variant_text(values) == text


def test_every_value_is_read_as_it_was_found(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    dataset = line_dataset(folder)
    evaluation = line_evaluation(dataset, unreadable=True)
    expected = np.array([0, 3, 5, -1])
    write_query_results(folder / QUERIES, evaluation, dataset, expected=expected, conditions=CONDITIONS)
    found = read_query_results(folder)

    assert list(found.queries.names) == [dataset.queries.name(row) for row in range(4)]  # also \xe9 and \x41
    np.testing.assert_array_equal(found.queries.positions, dataset.query_positions)
    assert found.num_predictions == 12
    for query in range(4):
        stored = evaluation.predictions[query, :STORED]
        assert found.predictions[query] == [dataset.database.name(int(image)) for image in stored if image >= 0]
        count = len(found.predictions[query])
        np.testing.assert_allclose(found.distances_m[query], evaluation.distances_m[query, :count], atol=0.051)
        squared = evaluation.squared_distances[query, :count]
        np.testing.assert_allclose(found.descriptor_distances[query], np.sqrt(squared), atol=1e-4)
        # The rank is that of the first prediction within 25 m, from the positions themselves.
        near = np.flatnonzero(evaluation.distances_m[query] <= 25.0)
        assert found.first_correct[query] == (near[0] + 1 if len(near) else 0)
    assert found.predictions[2] == []  # the unreadable query
    assert found.has_positive.tolist() == [True, True, True, False]
    assert list(found.expected) == ["sub/00.jpg", "sub/03.jpg", "sub/05.jpg", ""]
    np.testing.assert_array_equal(found.clusters, clusters_of(dataset.query_positions))
    assert found.conditions == CONDITIONS
    for n in (1, 5, 12):
        correct = evaluation.hits[:, :n].any(axis=1)
        np.testing.assert_array_equal(found.is_correct(n), correct)


def test_photos_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = line_dataset(Path("data"))
    write_query_results(tmp_path / QUERIES, line_evaluation(dataset), dataset)
    found = read_query_results(tmp_path)
    assert (found.folder, found.database_folder) == (tmp_path / "data", tmp_path / "data" / "database")
    assert found.queries_folder == tmp_path / "data" / "queries"


def test_the_database_is_recognized_by_names_and_positions(tmp_path: Path) -> None:
    first = query_list(line_dataset(tmp_path / "first"), 25.0)
    copy = query_list(line_dataset(tmp_path / "second"), 25.0)
    assert first.database_sha256 == copy.database_sha256
    dataset = line_dataset(tmp_path)
    moved = dataset.database_positions.copy()
    moved[7, 1] += 0.02
    assert query_list(dataclasses.replace(dataset, database_positions=moved), 25.0).database_sha256 != (
        first.database_sha256
    )
    other = image_list(tmp_path / "database", [f"sub/{number:02d}.png" for number in range(12)])
    assert query_list(dataclasses.replace(dataset, database=other), 25.0).database_sha256 != first.database_sha256


def test_a_query_takes_about_a_kilobyte(tmp_path: Path) -> None:
    """With names as long as those of SF-XL, and predictions whose names are all different."""
    generator = np.random.default_rng(0)
    num_database, num_queries, k = 20_000, 2_000, 20

    def names(count: int) -> tuple[list[str], np.ndarray]:
        positions = np.round(generator.uniform((540_000, 4_170_000), (560_000, 4_190_000), (count, 2)), 2)
        ids = generator.integers(0, 64, (count, 22))
        letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
        texts = ["".join(row) for row in letters[ids]]
        rows = zip(positions.tolist(), texts, strict=True)
        found = [f"@{e:010.2f}@{n:010.2f}@10@S@037.7@-122.4@{text}@@30@@@@201801@@.jpg" for (e, n), text in rows]
        order = np.argsort(found)
        return [found[row] for row in order], positions[order]

    database, database_positions = names(num_database)
    queries, query_positions = names(num_queries)
    dataset = RetrievalDataset(
        name="large", folder=tmp_path,
        database=image_list(tmp_path, database), queries=image_list(tmp_path, queries),
        database_positions=database_positions, query_positions=query_positions,
    )  # fmt: skip
    small = line_evaluation(line_dataset(tmp_path))
    predictions = generator.permutation(num_database * 2)[: num_queries * k].reshape(num_queries, k) // 2
    positives = dataclasses.replace(
        small.positives,
        positions=np.empty(0, np.int64),
        starts=np.zeros(num_queries + 1, np.int64),
        image_starts=np.arange(num_database + 1),
    )
    evaluation = dataclasses.replace(
        small,
        predictions=predictions,
        distances_m=generator.uniform(0, 20_000, (num_queries, k)),
        squared_distances=generator.uniform(0, 2, (num_queries, k)).astype(np.float32),
        positives=positives,
    )
    write_query_results(tmp_path / QUERIES, evaluation, dataset)
    assert (tmp_path / QUERIES).stat().st_size < 1_200 * num_queries


@pytest.mark.parametrize(
    "damage",
    [
        "cut",
        "empty",
        "other table",
        "no metadata",
        "rank",
        "cluster",
        "null",
        "format",
        "lists",
        "negative",
        "text",
        "folder",
    ],
)
def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / QUERIES
    dataset = line_dataset(tmp_path)
    write_query_results(path, line_evaluation(dataset), dataset)
    table = parquet.read_table(path)
    metadata = table.schema.metadata

    def with_distances(change: Callable[[float], Any]) -> pa.Table:
        rows = [[change(value) for value in row] for row in table["descriptor_distances"].to_pylist()]
        return table.set_column(4, "descriptor_distances", pa.array(rows))

    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        changed = {
            "other table": pa.table({"a": [1]}),
            "no metadata": table.replace_schema_metadata({}),
            "rank": table.set_column(5, "first_correct", pa.array([0, 99, 1, 1], pa.int32())),
            "cluster": table.set_column(8, "cluster", pa.array([0, 1, 2, 1_000_000_000], pa.int32())),
            "null": table.set_column(0, "query", pa.array(["a", None, "b", "c"])),
            "lists": table.set_column(3, "distances_m", pa.array([[]] * 4, pa.list_(pa.float32()))),
            "negative": with_distances(lambda value: -1e300),
            "text": with_distances(str),
            "folder": table.replace_schema_metadata(
                {b"cosplace": json.dumps(json.loads(metadata[b"cosplace"]) | {"database_folder": "\ud800"}).encode()}
            ),
            "format": table.replace_schema_metadata({b"cosplace": metadata[b"cosplace"].replace(b'": 1,', b'": 9,')}),
        }[damage]
        parquet.write_table(changed, path)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        read_query_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="not the folder of a finished run"):
        read_results(tmp_path)
    with pytest.raises(ConfigError, match=r"has no queries\.parquet.*Evaluate the model again"):
        read_query_results(tmp_path)
    for text in ("[]", "{", "\xff", "[" * 100_000, '{"recalls": 3}', f'{{"recalls": {{"{"9" * 5000}": 1}}}}'):
        (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=r"damaged|no recalls"):
            read_results(tmp_path)


@pytest.mark.parametrize("version", ["2", "0", "null", '"1"', "true", "1.5"])
def test_results_of_another_version_are_refused(tmp_path: Path, version: str) -> None:
    (tmp_path / "results.json").write_text(f'{{"schema_version": {version}, "recalls": {{"1": 50.0}}}}')
    with pytest.raises(ConfigError, match=r"has the schema_version .* Update cosplace"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"recalls": {"1": 50.0}}')  # of the first runs
    assert read_results(tmp_path)["recalls"] == {"1": 50.0}
