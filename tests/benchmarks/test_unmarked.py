"""Intervals that are not called approximate contain the truth in 95% of simulated evaluations."""

import math
import sys
from itertools import islice

import numpy as np
import pytest

from benchmarks import unmarked as simulation
from benchmarks.coverage import STRUCTURES, Setting
from benchmarks.unmarked import METRICS, contains_truth, line, settings_of, unmarked
from cosplace.assessment.intervals import Estimate

RUNS, MORE_RUNS = 4_000, 12_000  # of a metric that takes long, and of others; intervals that are not called approximate
SETTINGS = (Setting("740 independent", "0"), Setting("Tokyo 24/7: 105 places of 3", "0.3"))
LARGE = (Setting("1,000 independent", "0"),)
SETTINGS_OF = {"recall at 95% precision": LARGE, "calibration error": LARGE}  # others are mostly approximate

LONG = (*SETTINGS_OF, "average precision", "difference, finetune")  # a minute or more


def is_95(covered: int, count: int) -> bool:
    """Whether coverage is 94 to 96%, or outside of this by chance: 0.57 points for RUNS, 0.33 for MORE_RUNS."""
    return abs(100 * covered / count - 95) <= 1 + 164 * math.sqrt(0.95 * 0.05 / count)


def test_coverage_that_is_off_by_two_points_is_refused() -> None:
    assert all(is_95(round(share * RUNS), RUNS) for share in (0.94, 0.95, 0.96))
    assert not any(is_95(round(share * RUNS), RUNS) for share in (0.93, 0.97))


@pytest.mark.parametrize(
    "metric", [pytest.param(one, marks=pytest.mark.long if one in LONG else pytest.mark.slow) for one in METRICS]
)
def test_intervals_that_are_not_called_approximate_contain_the_truth(metric: str) -> None:
    settings, runs = SETTINGS_OF.get(metric, SETTINGS), RUNS if metric in LONG else MORE_RUNS
    covered = 0
    for number, setting in enumerate(settings):
        found = contains_truth(metric, setting, np.random.default_rng([1, number]))
        covered += sum(islice((one for one in found if one is not None), runs // len(settings)))
    assert is_95(covered, runs), f"{100 * covered / runs:.1f}%"


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_are_near_the_truth(metric: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        found, truth = METRICS[metric](Setting("100 independent", "0"), rng)
        assert found.low <= found.value <= found.high
        assert found.low - 2 * (found.high - found.low) < truth < found.high + 2 * (found.high - found.low)


def test_settings_have_enough_clusters() -> None:
    assert not any(setting.structure.startswith(("as MSLS val", "10 places")) for setting in settings_of("recall"))
    assert any(setting.kind == "whole" for setting in settings_of("recall"))
    assert not any(setting.kind == "whole" for setting in settings_of("mAP"))
    assert max(STRUCTURES[setting.structure].sum() for setting in settings_of("average precision")) <= 1_500


def test_only_intervals_that_are_not_called_approximate_count(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = iter([Estimate(1, 0, 2), Estimate(1, 0, 2, is_approximate=True), Estimate(5, 4, 6)])
    monkeypatch.setitem(METRICS, "recall", lambda setting, rng: (next(estimates), 1.5))
    assert unmarked("recall", SETTINGS[0], 3, np.random.default_rng(0)) == (1, 2)


def test_the_table_leaves_out_settings_that_are_mostly_approximate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [(SETTINGS[0], 95, 100), (SETTINGS[1], 48, 50), (LARGE[0], 0, 9)]
    assert line("x", 100, found) == "| x | 2 of 3 | 53% | 95.0 | 95.5 | 96.0 |"
    monkeypatch.setattr(sys, "argv", ["unmarked", "--metrics", "recall", "--runs", "2", "--rows"])
    monkeypatch.setattr(simulation, "STRUCTURES", {name: STRUCTURES[name] for name in ("100 independent",)})
    simulation.main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("| recall | 1 of 1 | ")
