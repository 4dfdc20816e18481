"""The simulated coverage of intervals: what is drawn, and what is printed."""

import sys

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.coverage import (
    KINDS,
    MISCALIBRATIONS,
    SHARED,
    STRUCTURES,
    Setting,
    draw_hits,
    draw_scores,
    settings_of_shares,
    simulate,
    simulate_calibration,
    simulate_shares,
    summary,
    true_calibration_error,
)

PLACES = "100 places of 5"
FEW = "10 places of 10"


@pytest.mark.parametrize("kind", KINDS)
def test_hits_of_a_cluster_have_the_given_correlation(kind: str) -> None:
    rng, setting = np.random.default_rng(0), Setting(PLACES, kind)
    hits = np.concatenate([draw_hits(setting, 0.7, rng) for _ in range(200)])
    assert hits.mean() / 5 == pytest.approx(0.7, abs=0.01)
    expected = 5 * 0.7 * 0.3 * (1 + 4 * setting.correlation)  # Kish
    assert hits.var() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("kind", ["0", "0.3"])
def test_scores_of_two_runs_have_the_given_correlations(kind: str, shared: float) -> None:
    rng, setting = np.random.default_rng(0), Setting(PLACES, kind, shared)
    scores = np.stack([draw_scores(setting, rng) for _ in range(200)])  # (200, 2, Q)
    assert scores.var() == pytest.approx(1, abs=0.02)
    assert (scores[:, 0] * scores[:, 1]).mean() == pytest.approx(shared, abs=0.03)
    assert (scores[..., ::5] * scores[..., 1::5]).mean() == pytest.approx(float(kind), abs=0.03)


def test_without_clusters_the_interval_is_that_of_wilson() -> None:
    row = simulate_shares(Setting("100 independent", "0"), 50, np.random.default_rng(0))
    assert row.others == pytest.approx((row.coverage, 100.0))


def test_true_calibration_errors() -> None:
    assert all(true_calibration_error(confidences, "none") < 1e-12 for confidences in coverage.CONFIDENCES)
    assert true_calibration_error("uniform", "0.15 too high") == pytest.approx(0.85 * 0.15 + 0.15**2 / 2, abs=1e-5)
    assert true_calibration_error("uniform", "above 0.9 too high") == pytest.approx(0.1 * 0.15, abs=1e-5)
    assert true_calibration_error("uniform", "too low, too high, by turns") == pytest.approx(0.12, abs=0.001)
    assert true_calibration_error("above 0.98", "0.05 too high") == pytest.approx(0.05, abs=1e-5)


def test_intervals_of_calibration_errors_in_simulated_evaluations() -> None:
    row = simulate_calibration(Setting(PLACES, "0.3"), 8, np.random.default_rng(0))
    *coverages, width = row.others
    assert len(coverages) == len(MISCALIBRATIONS) and row.coverage == pytest.approx(np.mean(coverages[1:]))
    assert min(coverages) >= 50 and row.coverage > 80 and 4 < width < 15


def test_halves_have_the_rows_of_the_whole() -> None:
    whole, even, odd = (list(simulate(False, part, 1, 0)) for part in ("all", "even", "odd"))
    assert whole[::2] == even and whole[1::2] == odd
    assert [row.setting for row in whole] == settings_of_shares()
    assert summary(whole).startswith(f"{len(whole)} settings: ")


def test_the_table_has_a_line_for_each_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coverage, "STRUCTURES", {name: STRUCTURES[name] for name in ("100 independent", PLACES, FEW)})
    monkeypatch.setattr(sys, "argv", ["coverage", "--differences", "--runs", "3"])
    coverage.main()
    lines = capsys.readouterr().out.splitlines()
    assert len([one for one in lines if one.startswith("| 100")]) == 2 + 2 * 4
    assert lines[-2].startswith("18 settings: ")
    assert lines[-1].startswith("without those that are called approximate: 10 settings: ")
    monkeypatch.setattr(sys, "argv", ["coverage", "--calibration", "--runs", "1"])
    coverage.main()
    lines = capsys.readouterr().out.splitlines()
    assert len([one for one in lines if one.startswith("| 1")]) == 1 + 2 * 4
    assert lines[-len(MISCALIBRATIONS)].startswith("none: 5 settings: ") and "; lowest " in lines[-1]
