"""The comparison with scripts: equal results, what counts as different, figures of commands, the command line."""

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stage import BenchmarkError
from benchmarks.user import __main__ as user_benchmark
from benchmarks.user import methods_evaluation, plain_script
from benchmarks.user.__main__ import CONTESTANTS, COSPLACE, Task, main, missing_packages
from benchmarks.user.commands import CommandFigures, disk_bytes, measure_command
from benchmarks.user.photos import write_test_set, write_weights
from benchmarks.user.shared_steps import KS, read_recalls, recalls_of
from benchmarks.user.table import Figures, Results, difference, row_of, table
from cosplace.errors import DatasetError
from cosplace.models.opening import open_model
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.retrieval.evaluation import evaluate
from cosplace.retrieval.shards import read_shards
from tests.synthetic_dataset import write_dataset

needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is measured on Linux")


# --- results ---------------------------------------------------------------------------------------------------------


def test_the_scripts_have_the_recalls_and_descriptors_of_cosplace(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("sklearn")
    photos = write_test_set(tmp_path / "photos", 30, None, side=64)
    weights, out = tmp_path / "weights.pth", tmp_path / "out"
    write_weights(weights, photos.database, 48)
    options = {"image_size": 48, "num_workers": 0, "recall_values": KS, "descriptors_folder": tmp_path / "ours"}
    ours = evaluate(open_model(weights), open_retrieval_dataset(photos.database.parent), **options)
    out.mkdir()
    arguments = [str(path) for path in (photos.database, photos.queries, weights, out)]
    scripts = [plain_script, methods_evaluation]
    if importlib.util.find_spec("h5py") is not None:
        scripts.append(importlib.import_module("benchmarks.user.feature_file"))
    for script in scripts:
        script.main([*arguments, "--image_size", "48", "--num_workers", "0"])
        assert read_recalls(out) == pytest.approx(ours.recalls)
        for part in ("database", "queries"):
            shards = read_shards(tmp_path / "ours" / part)[0]
            assert (np.load(out / f"{part}.npy") * shards[: len(shards)]).sum(axis=1).min() > 0.9999


def results(recall: float, *rows: tuple[float, ...]) -> Results:
    return Results(recalls={1: recall}, descriptors=np.array(rows))


def test_other_recalls_or_descriptors_are_a_difference() -> None:
    ours = results(50.0, (1, 0), (0, 1))
    assert difference(results(50.0, (1, 0), (0, 1)), ours) is None
    assert "recalls" in (difference(results(60.0, (1, 0), (0, 1)), ours) or "")
    assert difference(results(60.0, (1, 0), (0, 1)), ours, 10.0) is None
    assert "cosine of 0.98" in (difference(results(50.0, (1, 0.2), (0, 1)), ours) or "")
    assert "shape" in (difference(results(50.0, (1, 0)), ours) or "")


@pytest.mark.parametrize("recall", [50.0, 60.0, 75.0])
def test_a_side_that_chooses_an_engine_is_left_out_where_its_results_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recall: float
) -> None:
    photos = write_test_set(tmp_path / "photos", 40, None, side=32)  # 4 queries of 25 points each
    task = Task(photos=photos, weights=tmp_path, image_size=32, batch_size=1, num_workers=0)
    figures = Figures(command=CommandFigures(wall_s=1.0, cpu_s=1.0, memory_mib=1.0), descriptors_mib=1.0, other_mib=1.0)
    monkeypatch.setattr(user_benchmark, "_measure", lambda *_: figures)
    monkeypatch.setattr(user_benchmark, "_choose_engine", lambda *_: None)
    ours = replace(COSPLACE, results=lambda _: results(40.0, (1, 0)))
    monkeypatch.setattr(user_benchmark, "COSPLACE", ours)
    other = replace(ours, name="other", results=lambda _: results(recall, (1, 0)), chooses_engine=True)
    with caplog.at_level("WARNING"):
        rows = [row.side for row in user_benchmark.compare([other], task, 2)]
    is_close = recall <= 65
    assert rows == (["other", "cosplace eval"] if is_close else ["cosplace eval"])
    assert ("other is left out" in caplog.text) == (not is_close)
    with pytest.raises(BenchmarkError, match="The results of the other"):
        user_benchmark.compare([replace(other, chooses_engine=False)], task, 1)


def test_recalls_of_the_scripts() -> None:
    predictions = np.array([[4, 1, 2], [0, 7, 9], [3, 5, 6]])
    positives = [np.array([4]), np.array([9]), np.array([], int)]
    found = recalls_of(predictions, positives)
    assert found[1] == pytest.approx(100 / 3)
    assert found[5] == pytest.approx(200 / 3)


def test_ratios_are_medians_over_turns_and_ours_has_none() -> None:
    def turn(wall_s: float) -> Figures:
        command = CommandFigures(wall_s=wall_s, cpu_s=2.0, memory_mib=100.0)
        return Figures(command=command, descriptors_mib=1.0, other_mib=0.5)

    plain, ours = [turn(2.0), turn(9.0), turn(4.0)], [turn(1.0), turn(3.0), turn(1.0)]
    row = row_of("a script", plain, ours, 40)
    assert (row.wall_ratio, row.cpu_ratio, row.wall_s, row.images_per_s) == (3.0, 1.0, 4.0, 10.0)
    text = table([row, row_of("ours", ours, None, 40)])
    assert [len(line.split("  ")) > 5 for line in text.splitlines()] == [True] * 3
    assert "3.00" in text.splitlines()[1] and "1.00" not in text.splitlines()[2]


# --- photos ----------------------------------------------------------------------------------------------------------


def test_every_tenth_photo_is_a_query_with_positives(tmp_path: Path) -> None:
    photos = write_test_set(tmp_path, 30, None, side=32)
    dataset = open_retrieval_dataset(photos.database.parent)
    assert (len(dataset.database), len(dataset.queries)) == (27, 3)
    assert np.linalg.norm(dataset.database_positions[:, None] - dataset.query_positions, axis=2).min(0).max() < 25


def test_mirror_images_fill_up_and_lie_elsewhere(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "source", num_places=4, images_per_place=3) / "train"
    photos = write_test_set(tmp_path / "photos", 20, source)
    dataset = open_retrieval_dataset(photos.database.parent)
    assert len(dataset.database) + len(dataset.queries) == 20
    assert np.ptp(dataset.database_positions[:, 0]) > 9_000
    with pytest.raises(DatasetError, match="at least half"):
        write_test_set(tmp_path / "more", 25, source)


# --- commands --------------------------------------------------------------------------------------------------------

FILL = "import time; filled = bytearray(60 << 20); time.sleep(0.7)"


@needs_proc
def test_memory_of_all_processes_counts(tmp_path: Path) -> None:
    two = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FILL!r}]); {FILL}"
    code = f"import os\nif os.fork():\n    {FILL}\n    os.wait()\nelse:\n    {FILL}"
    together = measure_command([sys.executable, "-c", code], tmp_path, os.environ, name="two")
    assert together.memory_mib > 115
    one_after_the_other = measure_command([sys.executable, "-c", two], tmp_path, os.environ, name="two")
    assert 55 < one_after_the_other.memory_mib < 115
    assert together.wall_s > 0.6


@needs_proc
def test_a_command_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"^toy ended with exit code 1: ValueError: reason$"):
        measure_command([sys.executable, "-c", "raise ValueError('reason')"], tmp_path, os.environ, name="toy")


def test_bytes_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"678")
    assert disk_bytes(tmp_path) == 8


# --- the command line ------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--turns", "0"]) == 2
    assert "--turns must be at least 1, got 0" in capsys.readouterr().err
    assert main(["--photos", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_packages(COSPLACE) == []
    assert missing_packages(replace(COSPLACE, needs={"no_such_module": "no-such-package"})) == ["no-such-package"]


@needs_proc
@pytest.mark.long
def test_the_whole_comparison(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_benchmark, "CONTESTANTS", CONTESTANTS[-3:])
    assert main(["--size", "40", "--quick", "--turns", "1", "--json", str(tmp_path / "figures.json")]) == 0
    sides = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"plain script", "cosplace eval --no_report", "cosplace eval"} <= set(sides)


def test_descriptors_of_random_weights_differ(tmp_path: Path) -> None:
    """Otherwise the rounding of 16-bit numbers decides which is the nearest."""
    photos = write_test_set(tmp_path / "photos", 30, None, side=64)
    lowest = []
    for folder in (None, photos.database):
        write_weights(tmp_path / "weights.pth", folder, 48)
        evaluate(
            open_model(tmp_path / "weights.pth"), open_retrieval_dataset(photos.database.parent),
            image_size=48, num_workers=0, descriptors_folder=tmp_path / str(folder is None),
        )  # fmt: skip
        shards = read_shards(tmp_path / str(folder is None) / "database")[0]
        descriptors = shards[: len(shards)].astype(np.float64)
        lowest.append((descriptors @ descriptors.T).min())
    assert lowest[0] > 0.9 and lowest[1] < 0
