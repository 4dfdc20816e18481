"""Provenance: every result has it, in the form of docs/results.schema.json, and it is true."""

import dataclasses
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosplace.assessment.metrics import measure
from cosplace.assessment.protocols import find_protocol, protocol_record
from cosplace.assessment.provenance import (
    RunInfo,
    describe_model,
    deviations,
    git_state,
    photo_sizes,
    provenance,
    sizes_text,
)
from cosplace.assessment.records import CLUSTER_NAMES, intervals_record, metrics_record
from cosplace.models.model_files import model_card
from cosplace.models.network import GeoLocalizationNet, new_network
from cosplace.models.reduction import ReducedNetwork, truncation
from cosplace.models.weight_files import write_weights
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate
from tests.importing import layout_samples

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = json.loads((DOCS / "results.schema.json").read_text("utf-8"))
TYPES: Mapping[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip


def violations(value: Any, schema: Mapping[str, Any], place: str = "results") -> Iterator[str]:
    """Where a value differs from a schema, for the keywords that the schema of results.json uses."""
    known = {
        "$schema", "title", "type", "properties", "required", "additionalProperties", "items", "enum", "const",
        "pattern", "minimum", "maximum", "minItems", "maxItems", "$defs", "$ref",
    }  # fmt: skip
    assert schema.keys() <= known, f"{place}: this test does not know {schema.keys() - known}"
    if "$ref" in schema:
        yield from violations(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], place)
    types = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", list(TYPES))
    if not any(isinstance(value, TYPES[one]) and (one == "boolean" or type(value) is not bool) for one in types):
        yield f"{place} is {value!r}, not {types}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} is {value!r}, not one of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{place} is {value!r}, not {schema['const']!r}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{place} is {value!r}, which does not match {schema['pattern']}"
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{place} is {value}, outside its limits"
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{place} has {len(value)} items"
        for row, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), f"{place}[{row}]")
    if isinstance(value, dict):
        yield from (f"{place} has no {key}" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            below = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            yield from violations(item, below, f"{place}.{key}")


@pytest.fixture(scope="module")
def network() -> GeoLocalizationNet:
    return new_network(
        backbone="ResNet18_Small", fc_output_dim=8, train_all_layers=True, imagenet_weights="none", seed=0
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a query of unknown position, and a damaged query."""
    folder = layout_samples.prepared(tmp_path_factory.mktemp("provenance"))
    queries = folder / "test" / "queries"
    layout_samples.photo(queries / "@0@0@.jpg")
    next(queries.glob("*@S@*.jpg")).write_bytes(b"not a photo")
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> RetrievalDataset:
    return open_retrieval_dataset(folder)


@pytest.fixture(scope="module")
def evaluation(network: GeoLocalizationNet, dataset: RetrievalDataset) -> Evaluation:
    return evaluate(network, dataset, recall_values=(1, 2), skip_unreadable=True)


def run_info(**options: Any) -> RunInfo:
    values = {"command": "cosplace eval", "seed": 3, "device": torch.device("cpu")}
    return RunInfo(**(values | options))


def as_results(evaluation: Evaluation, origin: Any) -> dict[str, Any]:
    """The numbers of results.json with their provenance, as read from the file."""
    numbers = {
        "recalls": {str(n): recall for n, recall in evaluation.recalls.items()},
        "num_database": evaluation.num_database,
        "num_queries": evaluation.num_queries,
        "num_queries_without_positives": evaluation.num_queries_without_positives,
        "positive_dist_threshold_m": evaluation.positive_dist_threshold,
        "image_size": evaluation.image_size,
    }
    return json.loads(json.dumps({**numbers, **origin.record()}))


def test_results_follow_the_schema(network, dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    origin = provenance(
        evaluation, dataset, protocol=protocol_record(None, 25.0), model=describe_model(None, network), run=run_info()
    )
    results = as_results(evaluation, origin)
    assert list(violations(results, SCHEMA)) == []
    by_protocol = {**results, "protocol": protocol_record(find_protocol("nordland-1f"), 3.57)}
    assert list(violations(json.loads(json.dumps(by_protocol)), SCHEMA)) == []
    for key in SCHEMA["required"]:  # the check itself
        assert list(violations({name: one for name, one in results.items() if name != key}, SCHEMA))
    for place, wrong in (("seconds", {**results["seconds"], "total": -1}), ("started", "yesterday"), ("command", None)):
        assert list(violations({**results, place: wrong}, SCHEMA))


def test_metrics_follow_the_schema(evaluation: Evaluation, dataset: RetrievalDataset) -> None:
    for note in ("", "frames"):
        measures = measure(evaluation, dataclasses.replace(dataset, note=note))
        record = json.loads(json.dumps(metrics_record(measures)))
        assert list(violations(record, SCHEMA["properties"]["metrics"])) == []
    assert SCHEMA["properties"]["intervals"]["properties"]["clustered_by"]["enum"] == list(CLUSTER_NAMES)
    ends = json.loads(json.dumps(intervals_record(measures)))
    assert list(violations(ends, SCHEMA["properties"]["intervals"])) == []
    del record["mean_average_precision"]["low"]  # the check itself
    assert list(violations(record, SCHEMA["properties"]["metrics"]))
    assert list(violations({**ends, "recalls": {"1": [50.0]}}, SCHEMA["properties"]["intervals"]))


def test_the_documentation_names_every_key() -> None:
    text = (DOCS / "results.md").read_text("utf-8")

    def keys(schema: Mapping[str, Any]) -> Iterator[str]:
        for key, below in schema.get("properties", {}).items():
            yield key
            yield from keys(below)
            yield from keys(below.get("items", {}))

    missing = [key for key in keys(SCHEMA) if f"`{key}`" not in text and f"## {key}\n" not in text]
    assert not missing


def test_what_was_left_out_is_listed(network, dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    origin = provenance(evaluation, dataset, protocol={}, model={}, run=run_info())
    assert origin.dataset["unknown_positions"] == {"database": 0, "queries": 1}
    unreadable = origin.dataset["unreadable"]
    assert unreadable["database"] == {"count": 0, "photos": []}
    assert unreadable["queries"]["count"] == 1
    (photo,) = unreadable["queries"]["photos"]
    assert photo["name"].endswith(".jpg") and photo["reason"]
    assert deviations(evaluation, dataset) == ["1 query could not be opened"]
    readable = dataclasses.replace(evaluation, unreadable_queries=())
    assert deviations(readable, dataset) == []
    copies = "1 of 2 queries is in the database too"
    assert deviations(readable, dataclasses.replace(dataset, copies=copies)) == [copies]


def test_the_report_leaves_out_what_a_model_does_not_have(
    network, dataset: RetrievalDataset, evaluation: Evaluation
) -> None:
    model = describe_model(None, network)
    assert model["reduced_to"] is None
    origin = provenance(evaluation, dataset, protocol=protocol_record(None, 25.0), model=model, run=run_info())
    assert origin.summary()["model"].keys() == model.keys() - {"name", "file", "sha256", "reduced_to"}
    assert origin.summary()["dataset"]["database_photos"] == "16 x 12 pixels (4 of 4 photos measured)"


def test_times_add_up(dataset: RetrievalDataset, evaluation: Evaluation) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    origin = provenance(
        evaluation, dataset, protocol={}, model={}, run=run_info(started=datetime(2026, 1, 2, tzinfo=UTC))
    )
    seconds = origin.seconds
    assert seconds["database"] > 0 and seconds["queries"] > 0 and seconds["search"] > 0
    assert seconds["database"] + seconds["queries"] + seconds["search"] == pytest.approx(seconds["total"])
    assert origin.started == "2026-01-02T00:00:00Z"
    assert before <= datetime.fromisoformat(origin.finished) <= datetime.now(UTC)


def test_photo_sizes_in_words() -> None:
    some = {"640x480": 17, "480x640": 3}
    words = "640 x 480 pixels (17 of 20 photos measured), 480 x 640 pixels (3 of 20 photos measured)"
    assert sizes_text(some) == words
    assert not sizes_text({})  # none could be opened: no row of the report


def test_photo_sizes_are_those_of_the_photos(dataset: RetrievalDataset) -> None:
    assert photo_sizes(dataset.database) == {"16x12": 4}
    assert photo_sizes(dataset.queries) == {"16x12": 3}  # the damaged one has no size


# --- model -----------------------------------------------------------------------------------------------------------


def test_a_model_has_the_checksum_and_card_of_its_file(tmp_path: Path, network: GeoLocalizationNet) -> None:
    weights = network.state_dict()
    card = model_card(network, weights) | {"source": "a test", "training_photos": "x" * 5000}
    for name in ("best_model.safetensors", "best_model.pth"):
        write_weights(tmp_path / name, weights, card)
    for name in ("best_model.safetensors", "best_model.pth"):  # a .pth file has the card of the file next to it
        record = describe_model(tmp_path / name, network)
        assert record["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert record["card"]["source"] == "a test" and "training_photos" not in record["card"]
        assert (record["backbone"], record["descriptor_dim"]) == ("ResNet18_Small", 8)
        assert record["licenses"] == {"code": "unknown", "weights": "unknown", "data": "unknown"}
    other = {key: value + 1 if value.is_floating_point() else value for key, value in weights.items()}
    write_weights(tmp_path / "best_model.pth", other)
    assert describe_model(tmp_path / "best_model.pth", network)["card"] == {}


def test_a_reduced_model_has_the_backbone_of_its_network(network: GeoLocalizationNet) -> None:
    record = describe_model(None, ReducedNetwork(network, truncation(8, 3)), reduced_to=3)
    assert (record["backbone"], record["descriptor_dim"], record["reduced_to"]) == ("ResNet18_Small", 3, 3)


def test_models_without_a_file(network: GeoLocalizationNet) -> None:
    for name, code in (("edtformer", "MIT"), ("hub:serizba/salad:dinov2_salad()", "GPL-3.0"), (None, "unknown")):
        record = describe_model(name, network)
        assert (record["name"], record["file"], record["sha256"]) == (name, None, None)
        assert record["licenses"]["code"] == code


# --- code ------------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_and_changes_of_a_checkout(tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    (folder / "package").mkdir(parents=True)
    assert git_state(folder) is None
    git(folder, "init", "-q")
    assert git_state(folder) is None  # no commit yet
    (folder / "file").write_text("1")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "first")
    assert git_state(folder) == {"commit": git(folder, "rev-parse", "HEAD"), "dirty": False}
    (folder / "new").write_text("untracked")
    assert git_state(folder)["dirty"] is False
    (folder / "file").write_text("2")
    assert git_state(folder)["dirty"] is True
    assert git_state(folder / "package") is None  # installed inside the repository of another project


@pytest.mark.parametrize(("autocast", "precision"), [(None, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_the_environment(
    dataset: RetrievalDataset, evaluation: Evaluation, autocast: torch.dtype | None, precision: str
) -> None:
    origin = provenance(evaluation, dataset, protocol={}, model={}, run=run_info(autocast=autocast))
    environment = origin.environment
    assert environment["precision"] == precision
    assert environment["libraries"]["numpy"] == np.__version__
    assert (environment["seed"], environment["device"]) == (3, "cpu")
    assert environment["device_name"] and environment["threads"] == torch.get_num_threads()
