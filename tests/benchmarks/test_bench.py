"""The benchmark: its harness on toy stages, its bad input, and that both sides of each real stage agree."""

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

from benchmarks.catalog import STAGES
from benchmarks.judging import exponent, growth_of, row_of, table
from benchmarks.measuring import in_child, measure
from benchmarks.names import write_names
from benchmarks.records import BenchmarkError, Less, Measurement, Options, Side, Stage
from benchmarks.running import as_json, choose_stages, run_stages
from cosplace.cli import main
from cosplace.errors import ConfigError

BURN_S = 0.05


# --- toy stages ------------------------------------------------------------------------------------------------------


def burn(cpu_s: float) -> None:
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        pass


def burning(times: float, answer: int, size: int):
    def work() -> int:
        burn(BURN_S * times * size)
        return answer

    return work


def filling(mib: int, size: int):
    def work() -> int:
        filled = np.ones(mib * size << 17)
        time.sleep(0.03)  # memory is sampled every 2 ms
        return int(filled[-1])

    return work


def dying(size: int):
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
        "compare": lambda plain, ours: None if plain in (None, ours) else f"{plain} against {ours}",
        "full_size": 1,
        "quick_size": 1,
        "targets": {"cpu_ratio": 1.5},
    }
    return Stage(**defaults | others)


def run(*stages: Stage, **others):
    return run_stages(stages, options=Options(), **{"turns": 2} | others)


@pytest.mark.slow
def test_ratios_are_plain_over_ours() -> None:
    (row,) = run(toy(partial(burning, 2, 7), partial(burning, 1, 7)), turns=3).rows
    assert row.equal and row.met and row.turns == 3
    assert 1.7 < row.cpu_ratio < 2.3
    assert row.plain["cpu_s"] == pytest.approx(2 * BURN_S, rel=0.3)
    assert row.wall_ratio > 1


@pytest.mark.slow
def test_a_missed_target_is_told() -> None:
    report = run(toy(partial(burning, 1, 7), partial(burning, 2, 7)))
    assert report.rows[0].cpu_ratio < 0.7 and not report.rows[0].met
    assert "NO" in table(report)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
@pytest.mark.parametrize("memory", ["peak", "anonymous"])
def test_memory_is_what_the_work_adds(memory: str) -> None:
    (row,) = run(toy(partial(filling, 120), partial(filling, 40), memory=memory, targets={"memory_ratio": 2.5})).rows
    assert row.ours["memory_mib"] == pytest.approx(40, abs=6)
    assert 2.5 < row.memory_ratio < 3.3 and row.met


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
def test_pages_of_a_file_are_no_anonymous_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones(40 << 17))
    reading = Side(prepare=lambda mode: lambda: float(np.load(tmp_path / "rows.npy", mmap_mode=mode).sum()))
    assert measure(reading, "r", "mapped", memory="anonymous").memory_mib < 4
    assert measure(reading, "r", "mapped", memory="peak").memory_mib > 30
    assert measure(reading, None, "read", memory="anonymous").memory_mib > 30


def test_different_results_are_a_failure_and_no_row() -> None:
    report = run(
        toy(partial(burning, 0, 7), partial(burning, 0, 8)), toy(partial(burning, 0, 7), partial(burning, 0, 7))
    )
    assert len(report.rows) == 1
    assert report.failures == [
        "toy: the two sides have different results, so that no ratio means anything: 7 against 8"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "words"),
    [(dying, "toy: our side was ended by SIGKILL"), (raising, "toy: our side failed: ValueError: the reason, in two")],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_side_that_dies_is_one_line(side, words: str, fresh: bool) -> None:
    report = run(toy(partial(burning, 0, 7), side, fresh=fresh))
    assert not report.rows and len(report.failures) == 1
    assert report.failures[0].startswith(words) and "\n" not in report.failures[0]


def test_inputs_that_cannot_be_made_are_one_line() -> None:
    report = run(toy(None, partial(burning, 0, 7), make_inputs=lambda *_: 1 // 0))
    assert report.failures == ["toy: making its inputs failed: ZeroDivisionError: integer division or modulo by zero"]


@pytest.mark.slow
def test_a_fresh_interpreter_tells_its_whole_memory() -> None:
    (row,) = run(toy(partial(burning, 1, 7), partial(burning, 1, 7), fresh=True), turns=1).rows
    assert row.equal and row.ours["memory_mib"] > 5


def test_time_that_is_not_the_sides_own_is_taken_off() -> None:
    def prepare(_: None):
        def work() -> Less:
            burn(0.1)
            return Less("result", 0.1)

        return work

    found = measure(Side(prepare=prepare), None, "toy")
    assert found.revealed == "result" and found.cpu_s < 0.05 < found.wall_s


def test_time_of_children_counts() -> None:
    def prepare(_: None):
        return lambda: in_child(lambda: burn(0.1), "child")

    assert measure(Side(prepare=prepare), None, "toy").cpu_s > 0.09


def test_results_of_a_child_come_back_and_leave_nothing() -> None:
    assert in_child(lambda: sys.modules.setdefault("left behind", 3), "child") == 3
    assert "left behind" not in sys.modules


@pytest.mark.slow
def test_a_stage_alone_has_bounds_and_no_ratios() -> None:
    (row,) = run(toy(None, partial(burning, 1, 7), targets={"most_cpu_s": 1.0, "most_memory_mib": 1000.0})).rows
    assert row.met and row.cpu_ratio is row.wall_ratio is row.memory_ratio is row.plain is None
    (row,) = run(toy(None, partial(burning, 1, 7), targets={"most_cpu_s": 0.01})).rows
    assert not row.met


def test_findings_can_be_wanted() -> None:
    stage = toy(None, partial(burning, 0, 7), targets={"shared": True}, finding=lambda size: {"shared": size == 1})
    assert run(stage).rows[0].met
    assert not run(replace(stage, finding=lambda _: {"shared": False})).rows[0].met


def test_what_cannot_run_here_is_left_out_with_a_reason() -> None:
    report = run(toy(None, partial(burning, 0, 7), absent=lambda: "no such processor"))
    assert not report.rows and "left out: toy: no such processor" in table(report)
    slow = toy(None, partial(burning, 0, 7), quick_size=None)
    assert "toy" in run_stages([slow], options=Options(quick=True)).left_out


@pytest.mark.slow
def test_json_holds_rows_and_machine() -> None:
    report = run(toy(partial(burning, 2, 7), partial(burning, 1, 7)))
    content = json.loads(json.dumps(as_json(report, Options())))
    row = content["rows"][0]
    assert row.keys() >= {"stage", "equal", "cpu_ratio", "wall_ratio", "memory_ratio", "target", "met"}
    assert row["stage"] == "toy" and row["equal"] is True and row["target"] == {"cpu_ratio": 1.5}
    assert content["machine"]["torch"] and content["machine"]["cores"]


def test_a_ratio_to_nearly_no_memory_is_none() -> None:
    turn = (Measurement(cpu_s=1, wall_s=1, memory_mib=5), Measurement(cpu_s=1, wall_s=1, memory_mib=0.01))
    assert row_of(toy(dying, dying), 1, [turn], {}, {}).memory_ratio is None


# --- growth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0, 1, 2])
def test_exponents(power: int) -> None:
    assert exponent([10, 20, 40], [3 * size**power for size in (10, 20, 40)]) == pytest.approx(power)


@pytest.mark.parametrize(("power", "met"), [(1, True), (2, False)])
def test_growth_above_linear_is_marked(power: int, met: bool) -> None:
    sizes = (100, 200, 400)
    turns = [[Measurement(cpu_s=size**power / 1e3, wall_s=1, memory_mib=size)] for size in sizes]
    growth = growth_of(toy(None, dying), sizes, turns)
    assert growth.time_exponent == pytest.approx(power) and growth.memory_exponent == pytest.approx(1)
    assert growth.met is met


@pytest.mark.slow
def test_growth_is_measured() -> None:
    report = run(toy(None, partial(burning, 1, 7), growth_sizes=(1, 2, 4), targets={}), growth=True)
    assert 0.8 < report.growth[0].time_exponent < 1.2
    assert "growth of" in table(report)


def test_noise_has_no_exponent() -> None:
    turns = [[Measurement(cpu_s=1e-6 * 10**i, wall_s=1, memory_mib=0.1 * i)] for i in range(3)]
    growth = growth_of(toy(None, dying), (1, 2, 4), turns)
    assert growth.time_exponent == growth.memory_exponent == 0


# --- bad input -------------------------------------------------------------------------------------------------------


def test_unknown_stages_are_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown stage 'serch': did you mean search"):
        choose_stages(["serch"], STAGES)
    with pytest.raises(ConfigError, match="choose from groups, "):
        choose_stages(["zzzzz"], STAGES)
    assert [stage.name for stage in choose_stages(["scan", "groups"], STAGES)] == ["groups", "scan"]
    assert len({stage.name for stage in STAGES}) == len(STAGES) == len(choose_stages([], STAGES))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Unknown stage 'trian': did you mean train"),
        (["help", "--turns", "0"], "--turns 0 is too small"),
        (["help", "--json", "{tmp}/file/rows.json"], "Cannot write"),
        (["help", "--json", "{tmp}"], "Cannot write"),
        (["decode", "--quick", "--photos", "{tmp}/nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert main(["bench", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ") and words in last


def test_a_stage_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "help", "--quick", "--turns=1", f"--json={tmp_path / 'rows.json'}"]) == 0
    assert capsys.readouterr().out.startswith("stage  size     turns")
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["stage"] == "help" and row["cpu_ratio"] is None


# --- real stages -----------------------------------------------------------------------------------------------------


def test_names_are_sorted_and_different(tmp_path: Path) -> None:
    names = write_names(tmp_path, 7_777)
    lines = names.list_file.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 7_777 and lines == sorted(lines)
    assert {line.split("@")[2][:2] for line in lines} == {"41", "58"}  # two cities, far apart


TINY = {
    "groups": 6_000, "groups-5m": 6_000, "groups-41m": 6_000, "open-groups": 6_000, "scan": 1_100, "help": 1,
    "decode": 2, "augment": 2, "load-processes": 32, "load-threads": 32, "train": 2, "train-bf16": 2, "gem": 2,
    "cosface": 50, "extract": 2, "extract-bf16": 2, "search": 1_000, "search-fp16": 1_000, "recall": 60,
    "recall-count": 60,
}  # fmt: skip
SLOW = {"load-processes", "load-threads", "train", "train-bf16", "extract", "extract-bf16", "groups-5m", "groups-41m"}


@pytest.mark.parametrize(
    "stage", [pytest.param(s, id=s.name, marks=[pytest.mark.slow] if s.name in SLOW else []) for s in STAGES]
)
def test_both_sides_of_a_real_stage_agree(stage: Stage) -> None:
    tiny = replace(stage, quick_size=TINY[stage.name])
    report = run_stages([tiny], options=Options(quick=True), turns=1)
    assert not report.failures
    assert stage.name in report.left_out or (report.rows[0].equal and report.rows[0].stage == stage.name)


def test_different_neighbours_are_found_out() -> None:
    (search,) = choose_stages(["search"], STAGES)
    rows, distances = np.arange(6).reshape(2, 3), np.ones((2, 3))
    other = rows.copy()
    other[1, 2] = 9
    assert search.compare((rows, distances), (other, distances)) is None  # a tie
    farther = distances.copy()
    farther[1, 2] = 1.1
    assert search.compare((rows, distances), (other, farther)) == "1 of 2 queries have other neighbours"


def test_given_photos_take_the_place_of_made_ones(tmp_path: Path) -> None:
    from PIL import Image

    from benchmarks.photos import write_photos

    (tmp_path / "given").mkdir()
    Image.new("RGB", (700, 600), (200, 10, 10)).save(tmp_path / "given" / "red.jpg")
    (path, other) = write_photos(tmp_path / "out", 2, Options(photos=tmp_path / "given"))
    with Image.open(path) as photo:
        assert photo.size == (512, 512) and photo.getpixel((5, 5))[0] > 190
    assert path.read_bytes() == other.read_bytes()


def test_the_plain_search_without_faiss_finds_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import retrieval

    (search,) = choose_stages(["search"], STAGES)
    stored = search.make_inputs(tmp_path, 2_000, Options(quick=True))
    monkeypatch.setitem(sys.modules, "faiss", None)
    plain, ours = (side.reveal(stored, side.prepare(stored)()) for side in (search.plain, search.ours))
    assert search.compare(plain, ours) is None
    assert plain[0].shape[1] == retrieval.K


def test_the_plain_positives_without_scikit_learn_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (recall,) = choose_stages(["recall"], STAGES)
    file = recall.make_inputs(tmp_path, 50, Options(quick=True))
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    plain, ours = (side.reveal(file, side.prepare(file)()) for side in (recall.plain, recall.ours))
    assert recall.compare(plain, ours) is None and 50 < plain[2][20] <= 100


def test_a_failed_stage_ends_the_command_line_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stages = (toy(partial(burning, 0, 7), partial(burning, 0, 8)), toy(None, partial(burning, 0, 7), name="other"))
    monkeypatch.setattr("benchmarks.catalog.STAGES", stages)
    assert main(["bench", "--turns=1"]) == 2
    captured = capsys.readouterr()
    assert "other" in captured.out and "error: toy: the two sides have different results" in captured.err


def test_errors_are_errors_of_the_package() -> None:
    with pytest.raises(BenchmarkError, match="x failed: ZeroDivisionError"):
        in_child(lambda: 1 // 0, "x")
