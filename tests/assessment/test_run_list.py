"""The list of runs: states and figures, also of folders that are damaged, foreign or in use."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosplace.assessment.run_files import CONFIG, RESULTS
from cosplace.assessment.run_list import LAST_CHECKPOINT, LOCK, METRICS, RunSummary, list_runs, summarize
from cosplace.errors import ConfigError
from cosplace.training import checkpoint, metrics, run

TRAIN = {"backbone": "ResNet50", "fc_output_dim": 128, "epochs_num": 3, "test_set_folder": "/data/sf_xl/test"}


def make_run(folder: Path, config: Any = None, results: Any = None, epochs: int | None = None) -> Path:
    folder.mkdir(parents=True)
    for name, content in ((CONFIG, config), (RESULTS, results)):
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    if epochs is not None:
        rows = [{"kind": "loss", "epoch": 0, "loss": 1.0}, *({"kind": "epoch", "epoch": e} for e in range(epochs))]
        (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "ep')
        (folder / LAST_CHECKPOINT).write_bytes(b"")
    return folder


def one(runs: list[RunSummary], name: str) -> RunSummary:
    (found,) = [run for run in runs if name in str(run.folder)]
    return found


def test_names_are_those_of_training() -> None:
    assert (CONFIG, LOCK, METRICS, LAST_CHECKPOINT) == (
        run.CONFIG,
        run.LOCK,
        metrics.METRICS,
        checkpoint.LAST_CHECKPOINT,
    )


@pytest.mark.parametrize("name", ["answers.json", "neighbors.json"])
def test_a_run_without_labels_has_model_and_dataset(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run", {"resume_model": "/weights/best.pth", "database_folder": "mini/db"})
    answers = {"measured": False, "dataset": "db+qn", "model": {"name": "/weights/best.pth", "backbone": "VGG16"}}
    (folder / name).write_text(json.dumps(answers))
    (found,) = list_runs(tmp_path)
    assert (found.state, found.model, found.backbone, found.dataset) == ("finished", "best.pth", "VGG16", "db+qn")
    assert found.recalls is None
    (folder / name).write_text("[")
    assert summarize(folder).state == "finished"


def test_runs_with_their_figures(tmp_path: Path) -> None:
    model = {"name": "/weights/best.pth", "backbone": "VGG16", "descriptor_dim": 512, "reduced_to": 64}
    results = {
        "recalls": {"1": 60.0, "5": 80.0},
        "num_queries": 100,
        "intervals": {"recalls": {"1": [40.5, 75.5]}},
        "model": model,
        "dataset": {"name": "pitts30k/queries"},
    }
    make_run(tmp_path / "a" / "2026-01-31_12-30-59", {"resume_model": "/weights/best.pth"}, results)
    make_run(tmp_path / "b" / "2026-02-01_00-00-00_2", TRAIN, epochs=2)
    make_run(tmp_path / "c" / "tuned", TRAIN | {"resume_model": "logs/x/2026/best_model.pth"}, results, epochs=3)
    make_run(tmp_path / "d" / "old", {"resume_model": "x.pth"}, {"recalls": {"1": 66.0}, "num_queries": 94})
    runs = list_runs(tmp_path)
    first = one(runs, "/a/")
    assert (first.state, first.kind, first.time) == ("finished", "eval", "2026-01-31 12:30:59")
    assert (first.model, first.backbone, first.dimension) == ("best.pth", "VGG16", 64)
    assert (first.dataset, first.recalls) == ("pitts30k/queries", {1: 60.0, 5: 80.0})
    assert first.recall1 is not None and first.recall1.text() == "60.0 [40.5, 75.5]"
    assert (first.epochs_done, first.epochs) == (None, None)
    second = one(runs, "/b/")
    assert (second.state, second.kind, second.time) == ("stopped", "train", "2026-02-01 00:00:00")
    assert (second.backbone, second.dimension, second.dataset) == ("ResNet50", 128, "test")
    assert (second.epochs_done, second.epochs, second.recalls) == (2, 3, None)
    third = one(runs, "/c/")
    assert (third.kind, third.model, third.state) == ("finetune", "x/2026", "finished")
    fourth = one(runs, "/d/").recall1  # no interval recorded: that of Wilson
    assert fourth is not None and fourth.marked_text() == "66.0 [55.9, 74.7]"


@pytest.mark.parametrize(
    ("record", "protocol", "deviations"),
    [
        ({"id": "pitts30k-test@1", "version": 1, "deviations": []}, "pitts30k-test@1", ()),
        ({"id": "msls-val@1", "version": 1, "deviations": ["2 are missing"]}, "msls-val@1", ("2 are missing",)),
        ({"id": "custom", "version": None, "deviations": ["2 are missing"]}, "custom", ()),
        ({"id": 3, "version": 1, "deviations": "all"}, "", ()),  # damaged
        ([], "", ()),
    ],
)
def test_the_protocol_of_a_run(tmp_path: Path, record: object, protocol: str, deviations: tuple[str, ...]) -> None:
    results = {"recalls": {"1": 60.0}, "num_queries": 100, "protocol": record}
    found = summarize(make_run(tmp_path / "a", {"resume_model": "m.pth"}, results))
    assert (found.state, found.protocol, found.deviations) == ("finished", protocol, deviations)


@pytest.mark.parametrize(
    ("intervals", "mark"),
    [
        ({}, ""),
        ({"approximate": False, "approximate_recalls": [5]}, ""),
        ({"approximate": False, "approximate_recalls": [1, 5]}, " (approximate)"),
        ({"approximate": True}, " (approximate)"),
        ({"approximate_recalls": 1}, ""),  # damaged
    ],
)
def test_an_approximate_interval_stays_one(tmp_path: Path, intervals: dict[str, object], mark: str) -> None:
    results = {"recalls": {"1": 60.0}, "num_queries": 100, "intervals": {"recalls": {"1": [40.5, 75.5]}, **intervals}}
    make_run(tmp_path / "a" / "x", {"resume_model": "/weights/best.pth"}, results)
    recall1 = one(list_runs(tmp_path), "/a/").recall1
    assert recall1 is not None and recall1.marked_text() == f"60.0 [40.5, 75.5]{mark}"


def test_damaged_and_foreign_folders_have_a_reason(tmp_path: Path) -> None:
    make_run(tmp_path / "cut" / "x", '{"a": ', {"recalls": {"1": 1.0}})
    make_run(tmp_path / "list" / "x", [1])
    make_run(tmp_path / "none" / "x", {}, {"recalls": {}})
    make_run(tmp_path / "text" / "x", {}, {"recalls": {"1": "many"}})
    make_run(tmp_path / "long" / "x", {}, {"recalls": {"9" * 5000: 1.0}})
    make_run(tmp_path / "deep" / "x", "[" * 100_000)
    make_run(tmp_path / "later" / "x", {}, {"schema_version": 2, "recalls": {"1": 1.0}})
    make_run(tmp_path / "pipe" / "x", {})
    os.mkfifo(tmp_path / "pipe" / "x" / "results.json")  # would never end
    (tmp_path / "empty" / "x").mkdir(parents=True)
    (tmp_path / "photos" / "x").mkdir(parents=True)
    (tmp_path / "photos" / "x" / "a.jpg").write_bytes(b"")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "back").symlink_to(tmp_path)
    runs = list_runs(tmp_path)
    assert {run.folder.parent.name for run in runs} >= {
        "cut",
        "list",
        "none",
        "text",
        "long",
        "deep",
        "empty",
        "photos",
        "pipe",
    }
    assert {run.state for run in runs} == {"not readable"}
    reasons = {run.folder.parent.name: run.reason for run in runs}
    assert "config.json is damaged: it is not JSON" in reasons["cut"]
    assert "config.json is damaged: it is not a JSON object" in reasons["list"]
    assert "results.json is not a file" in reasons["pipe"]
    assert reasons["none"] == "results.json has no recalls"
    assert reasons["text"] == "results.json has recalls that are not percentages"
    assert reasons["later"].startswith("results.json has the schema_version 2, but this cosplace reads only 1.")
    assert reasons["empty"] == "not a run: it is empty"
    assert reasons["photos"] == "not a run: it has no config.json"
    with pytest.raises(ConfigError, match="is not a folder"):
        list_runs(tmp_path / "nowhere")
    (tmp_path / "nothing").mkdir()
    assert list_runs(tmp_path / "nothing") == []


def test_the_error_that_ended_a_run_is_its_reason(tmp_path: Path) -> None:
    def with_log(folder: Path, *lines: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "info.log").write_text("".join(f"2026-01-31 12:30:59,123  {line}\n" for line in lines))
        return folder

    error = "ERROR    The images are a single place. Use others."
    with_log(make_run(tmp_path / "refused", {}), "INFO     results", error)
    with_log(tmp_path / "early", error)  # before config.json
    with_log(make_run(tmp_path / "full", TRAIN, epochs=1), "ERROR    No space left")
    with_log(make_run(tmp_path / "done", {}, {"recalls": {"1": 1.0}}), error)
    with_log(make_run(tmp_path / "killed", {}), error, "INFO     results")
    with_log(tmp_path / "other", "INFO     results")
    (make_run(tmp_path / "cut", {}) / "info.log").write_bytes(b"\xff\n" * 10)
    make_run(tmp_path / "without", {})
    reason = "The images are a single place. Use others."
    assert {run.folder.name: (run.state, run.reason) for run in list_runs(tmp_path)} == {
        "refused": ("failed", reason),
        "early": ("failed", reason),
        "full": ("stopped", "No space left"),
        "done": ("finished", ""),
        "killed": ("not finished", ""),
        "other": ("not readable", "not a run: it has no config.json"),
        "cut": ("not finished", ""),
        "without": ("not finished", ""),
    }


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say who holds a lock")
def test_a_run_of_another_process_is_running(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "x", TRAIN, epochs=1)
    code = (
        "import sys; from pathlib import Path; from filelock import FileLock\n"
        f"with FileLock({str(folder / LOCK)!r}): print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    assert summarize(folder).state == "running"
    process.communicate()
    assert summarize(folder).state == "stopped"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(
        st.sampled_from(
            [
                "recalls",
                "model",
                "intervals",
                "dataset",
                "recipe",
                "epochs_num",
                "resume_model",
                "started",
                "num_queries",
            ]
        ),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["1", "5", "name", "recalls", "backbone", "x"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_any_content_gives_a_summary(tmp_path: Path, values: dict[str, Any]) -> None:
    for name in (CONFIG, RESULTS):
        (tmp_path / name).write_text(json.dumps(values))
    found = summarize(tmp_path)
    assert found.state in ("finished", "not readable")
    assert (found.reason == "") == (found.state == "finished")
    assert "\n" not in found.model and "\x1b" not in found.model


def test_the_name_of_a_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    results = {"recalls": {"1": 50.0}, "model": {"name": "a\n2026 forged\x1b[2J"}}
    (tmp_path / RESULTS).write_text(json.dumps(results))
    assert summarize(tmp_path).model == r"a\n2026 forged\x1b[2J"
