"""The benchmark: measurements of toy stages, results, errors, and that both sides of each real stage agree."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.filenames import write_names
from benchmarks.measurement import in_child, measure
from benchmarks.results import exponent, growth_of, row_of, table
from benchmarks.run import as_json, choose_stages, run_stages
from benchmarks.stage import BenchmarkError, ExcludedTime, Measurement, Options, Report, Side, Stage
from benchmarks.stages import STAGES
from cosplace.errors import ConfigError

needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")


# --- toy stages ------------------------------------------------------------------------------------------------------


def use_cpu(cpu_s: float) -> None:
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        pass


def returning(answer: int, size: int):
    return lambda: answer


def filling(mib: int, size: int):
    def work() -> int:
        filled = np.ones(mib * size << 17)
        time.sleep(0.03)  # memory is sampled every 2 ms
        return int(filled[-1])

    return work


def killed(size: int):
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def raising(size: int):
    def work() -> None:
        raise ValueError("the reason,\nin two lines")

    return work


def toy(plain, ours, **others) -> Stage:
    defaults = {
        "name": "toy",
        "title": "a toy",
        "unit": "toys",
        "make_inputs": lambda folder, size, options: size,
        "plain": None if plain is None else Side(prepare=plain),
        "ours": Side(prepare=ours),
        "compare": lambda plain, ours: None if plain in (None, ours) else f"{plain} is not {ours}",
        "full_size": 1,
        "quick_size": 1,
        "targets": {},
    }
    return Stage(**defaults | others)


SEVEN, EIGHT = partial(returning, 7), partial(returning, 8)


def run(*stages: Stage, **others) -> Report:
    return run_stages(stages, options=Options(), **{"turns": 2} | others)


# --- measurement -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("memory", ["peak", "anonymous"])
def test_memory_is_the_increase_during_the_work(memory: str) -> None:
    stage = toy(partial(filling, 120), partial(filling, 40), memory=memory, targets={"memory_ratio": 2.5})
    (row,) = run(stage).rows
    assert row.ours["memory_mib"] == pytest.approx(40, abs=6)
    assert 2.5 < row.memory_ratio < 3.3 and row.met


@needs_proc
def test_pages_of_a_file_are_not_anonymous_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones(40 << 17))
    reading = Side(prepare=lambda mode: lambda: float(np.load(tmp_path / "rows.npy", mmap_mode=mode).sum()))
    assert measure(reading, "r", "mapped", memory="anonymous").memory_mib < 4
    assert measure(reading, "r", "mapped", memory="peak").memory_mib > 30
    assert measure(reading, None, "read", memory="anonymous").memory_mib > 30


def test_excluded_time_is_subtracted() -> None:
    def prepare(_: None):
        def work() -> ExcludedTime:
            use_cpu(0.1)
            return ExcludedTime("result", 0.1)

        return work

    measurement = measure(Side(prepare=prepare), None, "toy")
    assert measurement.output == "result"
    assert measurement.wall_s - measurement.cpu_s > 0.09


def test_cpu_time_of_children_counts() -> None:
    def prepare(_: None):
        return lambda: in_child(lambda: use_cpu(0.1), "child")

    assert measure(Side(prepare=prepare), None, "toy").cpu_s > 0.09


def test_a_child_returns_its_result_and_leaves_the_parent_unchanged() -> None:
    assert in_child(lambda: sys.modules.setdefault("not a module", 3), "child") == 3
    assert "not a module" not in sys.modules


def test_errors_of_a_child_are_one_line() -> None:
    with pytest.raises(BenchmarkError, match="x failed: ZeroDivisionError"):
        in_child(lambda: 1 // 0, "x")


# --- running ---------------------------------------------------------------------------------------------------------


def test_stages_with_different_results_are_failures_and_have_no_row() -> None:
    report = run(toy(SEVEN, EIGHT), toy(SEVEN, SEVEN, name="other"))
    assert [row.stage for row in report.rows] == ["other"]
    assert report.failures == ["toy: the results of the two sides differ: 7 is not 8"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "message"),
    [
        (killed, "toy: our side was stopped by SIGKILL"),
        (raising, "toy: our side failed: ValueError: the reason, in two"),
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_the_failure_of_a_side_is_one_line(side, message: str, fresh: bool) -> None:
    report = run(toy(SEVEN, side, fresh=fresh))
    assert not report.rows and len(report.failures) == 1
    assert report.failures[0].startswith(message) and "\n" not in report.failures[0]


def test_inputs_that_fail_are_one_line() -> None:
    report = run(toy(None, SEVEN, make_inputs=lambda *_: 1 // 0))
    assert report.failures == ["toy: creating the inputs failed: ZeroDivisionError: integer division or modulo by zero"]


@pytest.mark.slow
def test_a_new_interpreter_reports_the_memory_of_the_whole_process() -> None:
    (row,) = run(toy(SEVEN, SEVEN, fresh=True), turns=1).rows
    assert row.equal and row.ours["memory_mib"] > 5


def test_a_stage_without_a_plain_side_has_no_ratios() -> None:
    (row,) = run(toy(None, SEVEN)).rows
    assert row.met and row.cpu_ratio is row.wall_ratio is row.memory_ratio is row.plain is None


def test_findings_can_be_targets() -> None:
    stage = toy(None, SEVEN, targets={"shared": True}, find=lambda size: {"shared": size == 1})
    assert run(stage).rows[0].met
    assert not run(replace(stage, find=lambda _: {"shared": False})).rows[0].met


def test_stages_that_cannot_run_are_left_out_with_a_reason() -> None:
    report = run(toy(None, SEVEN, unavailable=lambda: "no such processor"))
    assert not report.rows and "left out: toy: no such processor" in table(report)
    assert "toy" in run_stages([toy(None, SEVEN, quick_size=None)], options=Options(quick=True)).left_out


def test_json_holds_rows_and_machine() -> None:
    content = json.loads(json.dumps(as_json(run(toy(SEVEN, SEVEN, targets={"cpu_ratio": 1.5})), Options())))
    row = content["rows"][0]
    assert row.keys() >= {"stage", "equal", "cpu_ratio", "wall_ratio", "memory_ratio", "target", "met"}
    assert row["stage"] == "toy" and row["equal"] is True and row["target"] == {"cpu_ratio": 1.5}
    assert content["machine"]["torch"] and content["machine"]["cores"]


@pytest.mark.slow
def test_growth_is_measured_at_three_sizes() -> None:
    report = run(toy(None, SEVEN, growth_sizes=(1, 2, 4)), growth=True)
    assert report.growth[0].sizes == [1, 2, 4] and len(report.growth[0].cpu_s) == 3
    assert "growth of" in table(report)


# --- results ---------------------------------------------------------------------------------------------------------


def turn(plain_s: float, ours_s: float) -> tuple[Measurement, Measurement]:
    return tuple(Measurement(cpu_s=s, wall_s=2 * s, memory_mib=10 * s) for s in (plain_s, ours_s))


def test_ratios_are_medians_of_plain_divided_by_ours() -> None:
    turns = [turn(4, 2), turn(9, 3), turn(50, 10)]
    row = row_of(toy(SEVEN, SEVEN), 1, turns, {"cpu_ratio": 3.0, "most_cpu_s": 3.0}, {})
    assert row.cpu_ratio == row.wall_ratio == row.memory_ratio == 3
    assert row.plain == {"cpu_s": 9, "wall_s": 18, "memory_mib": 90}
    assert row.ours == {"cpu_s": 3, "wall_s": 6, "memory_mib": 30}
    assert row.met


@pytest.mark.parametrize("target", [{"cpu_ratio": 3.1}, {"most_cpu_s": 2.9}, {"most_memory_mib": 29}, {"shared": True}])
def test_missed_targets_are_marked(target: dict) -> None:
    row = row_of(toy(SEVEN, SEVEN), 1, [turn(9, 3)], target, {})
    assert not row.met
    assert "NO" in table(Report(rows=[row]))


def test_there_is_no_ratio_to_almost_no_memory() -> None:
    turns = (Measurement(cpu_s=1, wall_s=1, memory_mib=5), Measurement(cpu_s=1, wall_s=1, memory_mib=0.01))
    assert row_of(toy(SEVEN, SEVEN), 1, [turns], {}, {}).memory_ratio is None


@pytest.mark.parametrize("power", [0, 1, 2])
def test_exponents(power: int) -> None:
    assert exponent([10, 20, 40], [3 * size**power for size in (10, 20, 40)]) == pytest.approx(power)


@pytest.mark.parametrize(("power", "met"), [(1, True), (2, False)])
def test_growth_above_linear_is_marked(power: int, met: bool) -> None:
    sizes = (100, 200, 400)
    turns = [[Measurement(cpu_s=size**power / 1e3, wall_s=1, memory_mib=size)] for size in sizes]
    growth = growth_of(toy(None, SEVEN), sizes, turns)
    assert growth.time_exponent == pytest.approx(power) and growth.memory_exponent == pytest.approx(1)
    assert growth.met is met


def test_noise_has_no_exponent() -> None:
    turns = [[Measurement(cpu_s=1e-6 * 10**i, wall_s=1, memory_mib=0.1 * i)] for i in range(3)]
    growth = growth_of(toy(None, SEVEN), (1, 2, 4), turns)
    assert growth.time_exponent == growth.memory_exponent == 0


# --- command line ----------------------------------------------------------------------------------------------------


def test_unknown_stages_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"Unknown stage 'serch'\. Did you mean search"):
        choose_stages(["serch"], STAGES)
    with pytest.raises(ConfigError, match="Choose from groups, "):
        choose_stages(["zzzzz"], STAGES)


def test_stages_are_chosen_by_name_in_the_order_of_the_list() -> None:
    assert [stage.name for stage in choose_stages(["scan", "groups"], STAGES)] == ["groups", "scan"]
    assert len({stage.name for stage in STAGES}) == len(STAGES) == len(choose_stages([], STAGES))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Unknown stage 'trian'. Did you mean train"),
        (["help", "--turns", "0"], "--turns must be at least 1, got 0"),
        (["help", "--turns", "many"], "--turns"),
        (["help", "--fast"], "--fast"),
        (["help", "--json", "{tmp}/file/rows.json"], "Cannot write"),
        (["help", "--json", "{tmp}"], "Cannot write"),
        (["decode", "--quick", "--photos", "{tmp}/nowhere"], "nowhere does not exist"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ") and message in last


def test_a_stage_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["help", "--quick", "--turns=1", f"--json={tmp_path / 'rows.json'}"]) == 0
    assert capsys.readouterr().out.startswith("stage  size     turns")
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["stage"] == "help" and row["cpu_ratio"] is None


def test_a_failed_stage_exits_with_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("benchmarks.stages.STAGES", (toy(SEVEN, EIGHT), toy(None, SEVEN, name="other")))
    assert main(["--turns=1"]) == 2
    captured = capsys.readouterr()
    assert "other" in captured.out and "error: toy: the results of the two sides differ" in captured.err


# --- real stages -----------------------------------------------------------------------------------------------------


def test_generated_names_are_sorted_and_distinct(tmp_path: Path) -> None:
    names = write_names(tmp_path, 7_777)
    lines = names.list_file.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 7_777 and lines == sorted(lines)
    assert {line.split("@")[2][:2] for line in lines} == {"41", "58"}  # two cities, far apart


TINY = {
    "groups": 6_000, "groups-5m": 6_000, "groups-41m": 6_000, "open-groups": 6_000, "scan": 1_100, "help": 1,
    "locate": 100, "decode": 2, "panoramas": 2, "augment": 2, "load-processes": 32, "load-threads": 32, "train": 2,
    "train-bf16": 2, "gem": 2, "cosface": 50, "extract": 2, "extract-bf16": 2, "search": 1_000, "search-fp16": 1_000,
    "recall": 60, "recall-count": 60, "report": 40,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [pytest.param(s, id=s.name, marks=[pytest.mark.long] if s.name == "locate" else []) for s in STAGES]
)
def test_both_sides_of_a_real_stage_agree(stage: Stage) -> None:
    tiny = replace(stage, quick_size=TINY[stage.name])
    report = run_stages([tiny], options=Options(quick=True), turns=1)
    assert not report.failures
    assert stage.name in report.left_out or (report.rows[0].equal and report.rows[0].stage == stage.name)


def test_other_neighbors_are_a_difference_unless_they_tie() -> None:
    (search,) = choose_stages(["search"], STAGES)
    rows, distances = np.arange(6).reshape(2, 3), np.ones((2, 3))
    other = rows.copy()
    other[1, 2] = 9
    assert search.compare((rows, distances), (other, distances)) is None  # a tie
    farther = distances.copy()
    farther[1, 2] = 1.1
    assert search.compare((rows, distances), (other, farther)) == "1 of 2 queries have other neighbors"


def test_own_photos_replace_generated_ones(tmp_path: Path) -> None:
    from PIL import Image

    from benchmarks.photos import write_photos

    (tmp_path / "own").mkdir()
    Image.new("RGB", (700, 600), (200, 10, 10)).save(tmp_path / "own" / "red.jpg")
    (path, other) = write_photos(tmp_path / "out", 2, Options(photos=tmp_path / "own"))
    with Image.open(path) as photo:
        assert photo.size == (512, 512) and photo.getpixel((5, 5))[0] > 190
    assert path.read_bytes() == other.read_bytes()


def test_the_plain_search_without_faiss_has_the_same_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import retrieval

    (search,) = choose_stages(["search"], STAGES)
    stored = search.make_inputs(tmp_path, 2_000, Options(quick=True))
    monkeypatch.setitem(sys.modules, "faiss", None)
    plain, ours = (side.output(stored, side.prepare(stored)()) for side in (search.plain, search.ours))
    assert search.compare(plain, ours) is None
    assert plain[0].shape[1] == retrieval.K


def test_the_plain_positives_without_scikit_learn_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (recall,) = choose_stages(["recall"], STAGES)
    file = recall.make_inputs(tmp_path, 50, Options(quick=True))
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    plain, ours = (side.output(file, side.prepare(file)()) for side in (recall.plain, recall.ours))
    assert recall.compare(plain, ours) is None and 50 < plain[2][20] <= 100
