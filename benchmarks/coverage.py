"""How often the 95% intervals of recalls contain the truth, in simulated evaluations.

    python -m benchmarks.coverage [--differences | --metrics | --calibration] [--runs N] [--seed N]
        [--settings all|even|odd]

The queries are in clusters like those of common test sets (STRUCTURES), and are right or wrong together (KINDS).  Hits
are whole numbers, so the coverage at one exact recall depends on where it is between two of them, even for independent
queries (Brown, Cai and DasGupta, Statistical Science 2001).  So each run draws its own recall: coverage is the average
over recalls from 30 to 97%.  Next to it are the coverage of Wilson's interval with the true design effect, which no
evaluation knows, and the mean width divided by the mean width of that interval.

The last line leaves out the settings with few clusters, whose intervals are called approximate.

With --differences: intervals of the difference of two runs on the same queries, whose recalls differ by up to 10
points; how often two equally good runs are called different, as by `cosplace compare`; the mean width, in points.

With --metrics: intervals of distance quantiles, mAP, and area and recall at 95% precision of a score.

With --calibration: intervals of the calibration error for MISCALIBRATIONS; N runs for each of them, in which
CONFIDENCES take turns.  An interval that may begin at 0 contains a true error of 0 more often than in 95% of the runs.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle

import numpy as np
from scipy.special import ndtr, ndtri

from cosplace.assessment.confidence_scores import (
    NUM_BINS,
    average_precision,
    calibration_error,
    calibration_error_estimate,
    recall_at_precision,
    reliability_bins,
    score_metrics,
)
from cosplace.assessment.intervals import (
    FEW_CLUSTERS,
    Estimate,
    Z,
    clustered_mean,
    clustered_quantile,
    clustered_share,
    effective_clusters,
    mcnemar,
    paired_difference,
)

RECALLS = (0.3, 0.97)  # the recall of a run is uniform between these
LARGEST_DIFFERENCE = 0.1  # of the recalls of two runs
KINDS = ("0", "0.1", "0.3", "0.5", "whole")  # correlation of two queries of a cluster, or WHOLE
WHOLE = 0.3  # this share of the clusters is right or wrong as a whole; that is also the correlation
SHARED = (0.5, 0.8)  # share of the variance of the scores of two runs that is the same in both
NEAR = 1.0  # percentage points from 95
METRICS = ("median distance", "75%", "90%", "mAP", "area", "recall at 95% precision")
SCORE_CORRELATION = 0.75  # of a score and whether a query is easy
MEDIAN_M, SPREAD = 20.0, 1.5  # of distances, log-normal
MOST_QUERIES = 1_500  # of a setting, with --metrics: the area takes long for many
NUM_TRUE = 1_000_000  # queries that the true values of METRICS are computed from
CONFIDENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # as quantiles of shares in (0, 1)
    "most near 1": lambda shares: np.maximum(shares ** (1 / 6), 0.2),
    "uniform": lambda shares: shares,
    "above 0.98": lambda shares: 0.98 + 0.02 * shares,
    "at both ends": lambda shares: np.sin(math.pi / 2 * shares) ** 2,
}
MISCALIBRATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # share of right answers for confidences
    "none": lambda confidences: confidences,
    "0.05 too high": lambda confidences: np.maximum(confidences - 0.05, 0),
    "0.15 too high": lambda confidences: np.maximum(confidences - 0.15, 0),
    "20% too high": lambda confidences: confidences / 1.2,
    "too far from 0.5": lambda confidences: 0.5 + 0.7 * (confidences - 0.5),
    "too low": lambda confidences: confidences + 0.3 * confidences * (1 - confidences),
    "above 0.9 too high": lambda confidences: np.where(confidences > 0.9, confidences - 0.15, confidences),
    "too low, too high, by turns": lambda confidences: np.clip(
        confidences + 0.12 * (1 - 2 * (np.minimum(confidences * NUM_BINS, NUM_BINS - 1).astype(int) % 2)), 0, 1
    ),
}


def drives(num: int) -> np.ndarray:
    """Queries of each of `num` drives: log-normal with a median of 12."""
    return np.maximum(1, np.round(12 * np.exp(ndtri((np.arange(num) + 0.5) / num)))).astype(np.int64)


STRUCTURES = {  # queries of each cluster
    "100 independent": np.ones(100, np.int64),
    "315 independent": np.ones(315, np.int64),
    "740 independent": np.ones(740, np.int64),
    "1,000 independent": np.ones(1_000, np.int64),
    "7,000 independent": np.ones(7_000, np.int64),
    "Tokyo 24/7: 105 places of 3": np.full(105, 3),
    "as Pitts30k: 284 places of 24": np.full(284, 24),
    "as MSLS val: 60 drives of 1 to 131": drives(60),
    "as SF-XL v1: 1,000 in 900 cells": np.repeat([1, 2, 3], [810, 80, 10]),
    "SF-XS slice, test: 47 cells of 2": np.full(47, 2),
    "SF-XS slice, val: 40 cells of 2": np.full(40, 2),
    "30 places of 10": np.full(30, 10),
    "100 places of 5": np.full(100, 5),
    "10 places of 10": np.full(10, 10),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """An evaluation to simulate."""

    structure: str
    kind: str  # one of KINDS
    shared: float = 1.0  # one of SHARED, for two runs

    @property
    def sizes(self) -> np.ndarray:
        """Queries of each cluster, (C,) int64."""
        return STRUCTURES[self.structure]

    @property
    def clusters(self) -> np.ndarray:
        """The cluster of each query, (Q,) int64."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def is_approximate(self) -> bool:
        """Whether an evaluation says that these intervals are approximate."""
        return effective_clusters(self.clusters) < FEW_CLUSTERS

    @property
    def correlation(self) -> float:
        """Of two queries of a cluster."""
        return WHOLE if self.kind == "whole" else float(self.kind)


@dataclass(frozen=True, slots=True)
class Row:
    """What was found for a setting, in percent."""

    setting: Setting
    coverage: float
    others: tuple[float, ...]  # one for each further column


def settings_of_shares() -> list[Setting]:
    """All structures and kinds; without clusters, kinds are the same."""
    return [
        Setting(structure, kind)
        for structure, sizes in STRUCTURES.items()
        for kind in (KINDS if sizes.max() > 1 else KINDS[:1])
    ]


def settings_of_differences() -> list[Setting]:
    """All structures, correlations and shares of variance that two runs have in common."""
    return [
        Setting(setting.structure, setting.kind, shared)
        for setting in settings_of_shares()
        if setting.kind != "whole"
        for shared in SHARED
    ]


def settings_of_metrics() -> list[Setting]:
    """Structures and correlations of MOST_QUERIES or fewer queries."""
    return [one for one in settings_of_shares() if one.kind != "whole" and one.sizes.sum() <= MOST_QUERIES]


# --- shares ----------------------------------------------------------------------------------------------------------


def draw_hits(setting: Setting, recall: float, rng: np.random.Generator) -> np.ndarray:
    """Hits of each cluster, (C,): beta-binomial, or some clusters are right or wrong as a whole."""
    sizes, correlation = setting.sizes, setting.correlation
    if setting.kind == "whole":
        is_whole, is_right = rng.random((2, len(sizes))) < [[WHOLE], [recall]]
        return rng.binomial(sizes, np.where(is_whole, is_right, recall))
    if correlation == 0:
        return rng.binomial(sizes, recall)
    total = 1 / correlation - 1
    return rng.binomial(sizes, rng.beta(recall * total, (1 - recall) * total, len(sizes)))


def simulate_shares(setting: Setting, runs: int, rng: np.random.Generator) -> Row:
    """Coverage of the interval of a recall."""
    sizes, clusters = setting.sizes, setting.clusters
    rank = np.arange(len(clusters)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of a query in its cluster
    recalls = rng.uniform(*RECALLS, runs)
    found = np.empty((runs, 3))  # share, low, high
    for run, recall in enumerate(recalls.tolist()):
        estimate = clustered_share(rank < draw_hits(setting, recall, rng)[clusters], clusters)
        found[run] = estimate.value, estimate.low, estimate.high
    shares, low, high = found.T / 100
    mean_size = (sizes**2).sum() / sizes.sum()
    best_low, best_high = wilson_ends(shares, sizes.sum() / (1 + (mean_size - 1) * setting.correlation))
    best = percent((best_low <= recalls) & (recalls <= best_high))
    width = 100 * float((high - low).mean() / (best_high - best_low).mean())
    return Row(setting, percent((low <= recalls) & (recalls <= high)), (best, width))


def wilson_ends(shares: np.ndarray, num: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Wilson's intervals of shares of `num` independent queries, which may be a fraction."""
    square = Z**2 / num
    half = np.sqrt(shares * (1 - shares) * square + square**2 / 4)
    return (shares + square / 2 - half) / (1 + square), (shares + square / 2 + half) / (1 + square)


def percent(is_true: np.ndarray) -> float:
    """Percentage of True."""
    return 100 * float(is_true.mean())


# --- differences of two runs -----------------------------------------------------------------------------------------


def draw_scores(setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """Scores of the queries in two runs, (2, Q), standard normal; a query is right if its score is low enough.

    A place is difficult for both runs or for one of them, and so is a query.
    """
    clusters = setting.clusters
    places, queries = (
        math.sqrt(setting.shared) * rng.standard_normal(num)
        + math.sqrt(1 - setting.shared) * rng.standard_normal((2, num))
        for num in (len(setting.sizes), len(clusters))
    )
    return math.sqrt(setting.correlation) * places[:, clusters] + math.sqrt(1 - setting.correlation) * queries


def simulate_differences(setting: Setting, runs: int, rng: np.random.Generator) -> Row:
    """Coverage of the interval of a difference, and how often two equally good runs are called different."""
    covered, different, width, clusters = 0, 0, 0.0, setting.clusters
    for recall in rng.uniform(*RECALLS, runs).tolist():
        other = rng.uniform(max(RECALLS[0], recall - LARGEST_DIFFERENCE), min(RECALLS[1], recall + LARGEST_DIFFERENCE))
        scores = draw_scores(setting, rng)
        a, b, equally_good = scores[0] < ndtri(recall), scores[1] < ndtri(other), scores[1] < ndtri(recall)
        found = paired_difference(a, b, clusters)
        covered += found.low <= 100 * (recall - other) <= found.high
        width += found.high - found.low
        different += are_different(a, equally_good, paired_difference(a, equally_good, clusters))
    return Row(setting, 100 * covered / runs, (100 * different / runs, width / runs))


def are_different(a: np.ndarray, b: np.ndarray, difference: Estimate) -> bool:
    """Whether the interval and McNemar's test both say so."""
    is_outside = difference.low > 0 or difference.high < 0
    return is_outside and mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) < 0.05


# --- other metrics ---------------------------------------------------------------------------------------------------


@cache
def true_metrics(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`num` recalls in [0, 1], and area and recall at 95% precision of a very large number of queries, (num,) each."""
    recalls = np.linspace(*RECALLS, num)
    rng = np.random.default_rng(0)
    easiness, noise = rng.standard_normal((2, NUM_TRUE))
    scores = score_of(easiness, noise)
    right = [easiness > ndtri(1 - recall) for recall in recalls.tolist()]
    areas = np.array([average_precision(scores, hits) for hits in right])
    return recalls, areas, np.array([recall_at_precision(scores, hits, 0.95) for hits in right])


def score_of(easiness: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Scores of queries."""
    return SCORE_CORRELATION * easiness + math.sqrt(1 - SCORE_CORRELATION**2) * noise


def simulate_metrics(setting: Setting, runs: int, rng: np.random.Generator) -> Row:
    """Coverage of the intervals of METRICS; `coverage` is their mean."""
    clusters, correlation = setting.clusters, setting.correlation
    grid, areas, recalls_at_95 = true_metrics(24)
    covered = np.zeros(len(METRICS))
    for recall in rng.uniform(*RECALLS, runs).tolist():
        # Each query has three numbers: how easy it is, how far its first prediction is, and the noise of its score.
        of_places, of_queries = (rng.standard_normal((3, num)) for num in (len(setting.sizes), len(clusters)))
        numbers = math.sqrt(correlation) * of_places[:, clusters] + math.sqrt(1 - correlation) * of_queries
        easiness, distance, noise = numbers
        right, share = easiness > ndtri(1 - recall), ndtr(distance)
        metrics = score_metrics("score", score_of(easiness, noise), right, clusters)
        quantiles = (0.5, 0.75, 0.9)
        found = [clustered_quantile(MEDIAN_M * np.exp(SPREAD * distance), clusters, q) for q in quantiles]
        # Average precisions are uniform between 0.5 and 1 for right queries, and between 0 and 0.3 for the others.
        found.append(clustered_mean(np.where(right, 1 - 0.5 * share, 0.3 * share), clusters))
        found += [metrics.area, metrics.recall_at_95_precision]
        truth = [
            *(MEDIAN_M * math.exp(SPREAD * float(ndtri(q))) for q in quantiles),
            0.75 * recall + 0.15 * (1 - recall),
            100 * float(np.interp(recall, grid, areas)),
            100 * float(np.interp(recall, grid, recalls_at_95)),
        ]
        covered += [one.low <= true <= one.high for one, true in zip(found, truth, strict=True)]
    shares = 100 * covered / runs
    return Row(setting, float(shares.mean()), tuple(shares.tolist()))


def metric_summaries(rows: Sequence[Row], names: Iterable[str] = METRICS) -> str:
    """How near to 95% the coverage of each column is where intervals are not called approximate."""
    exact = [row for row in rows if not row.setting.is_approximate]
    lines = []
    for number, name in enumerate(names):
        of_metric = [Row(row.setting, row.others[number], (0.0,)) for row in exact]
        lines.append(f"{name}: {summary(of_metric).partition('; means')[0]}")
    return "without those that are called approximate:\n" + "\n".join(lines)


# --- calibration error -----------------------------------------------------------------------------------------------


@cache
def true_calibration_error(confidences: str, miscalibration: str) -> float:
    """The error, in bins, of a very large number of queries."""
    stated = CONFIDENCES[confidences]((np.arange(NUM_TRUE) + 0.5) / NUM_TRUE)
    return calibration_error(reliability_bins(stated, MISCALIBRATIONS[miscalibration](stated)))


def simulate_calibration(setting: Setting, runs: int, rng: np.random.Generator) -> Row:
    """Coverage of the interval of a calibration error for MISCALIBRATIONS; `coverage` is that of true errors above 0.

    Both the confidences and the answers of a cluster are correlated.  The last column is the mean width, in points.
    """
    clusters, correlation = setting.clusters, setting.correlation
    covered, width = np.zeros(len(MISCALIBRATIONS)), 0.0
    for number, (name, share_right) in enumerate(MISCALIBRATIONS.items()):
        for _, (confidences, quantiles) in zip(range(runs), cycle(CONFIDENCES.items()), strict=False):
            of_places, of_queries = (rng.standard_normal((2, num)) for num in (len(setting.sizes), len(clusters)))
            numbers = math.sqrt(correlation) * of_places[:, clusters] + math.sqrt(1 - correlation) * of_queries
            shares, draw = ndtr(numbers)
            stated = quantiles(shares)
            found = calibration_error_estimate(stated, draw < share_right(stated), clusters)
            covered[number] += found.low <= true_calibration_error(confidences, name) + 1e-9 <= found.high + 2e-9
            width += 100 * (found.high - found.low)
    shares = 100 * covered / runs
    mean_width = width / runs / len(MISCALIBRATIONS)
    return Row(setting, float(shares[1:].mean()), (*shares.tolist(), mean_width))


# --- the table -------------------------------------------------------------------------------------------------------

SHARES_HEAD = (
    "| queries | correlation | coverage | Wilson, true design effect | width, % of its width |\n"
    "|---|---|---:|---:|---:|"
)
DIFFERENCES_HEAD = (
    "| queries | correlation | same in both runs | coverage | equally good, called different | width |\n"
    "|---|---|---:|---:|---:|---:|"
)


def metrics_head(names: Sequence[str]) -> str:
    """The head of the table of these metrics."""
    return f"| queries | correlation | mean | {' | '.join(names)} |\n|---|---|{'---:|' * (1 + len(names))}"


def line(row: Row, is_difference: bool) -> str:
    """A row of the table."""
    names = [row.setting.structure, row.setting.kind, *([f"{row.setting.shared}"] if is_difference else [])]
    return f"| {' | '.join(names)} | {' | '.join(f'{number:.1f}' for number in (row.coverage, *row.others))} |"


def summaries(rows: Sequence[Row]) -> str:
    """How near to 95% the settings are: all, and those whose intervals are not called approximate."""
    exact = [row for row in rows if not row.setting.is_approximate]
    return f"{summary(rows)}\nwithout those that are called approximate: {summary(exact)}"


def summary(rows: Sequence[Row]) -> str:
    """How near to 95% some settings are."""
    coverages = np.array([row.coverage for row in rows])
    within = percent(np.abs(coverages - 95) <= NEAR)
    below, above = percent(coverages < 95 - NEAR), percent(coverages > 95 + NEAR)
    others = ", ".join(f"{mean:.1f}" for mean in np.mean([row.others for row in rows], axis=0))
    return (
        f"{len(rows)} settings: {within:.0f}% within 95 ± 1, {below:.0f}% below, {above:.0f}% above; lowest "
        f"{coverages.min():.1f}, highest {coverages.max():.1f}, mean {coverages.mean():.1f}; means of the other "
        f"columns {others}"
    )


def simulate(kind: str, part: str, runs: int, seed: int) -> Iterator[Row]:
    """The rows of all settings, or of every second one; the random numbers of a setting are its own.

    kind: "shares", "differences", "metrics" or "calibration".
    """
    settings_of, simulate_one = {
        "differences": (settings_of_differences, simulate_differences),
        "metrics": (settings_of_metrics, simulate_metrics),
        "calibration": (settings_of_metrics, simulate_calibration),
    }.get(kind, (settings_of_shares, simulate_shares))
    settings = settings_of()
    for number, setting in enumerate(settings):
        if part == "all" or (part == "odd") == (number % 2 == 1):
            yield simulate_one(setting, runs, np.random.default_rng([seed, number]))


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_mutually_exclusive_group()
    for kind, text in (
        ("differences", "two runs instead of one"),
        ("metrics", "distances, mAP, area, precision"),
        ("calibration", "calibration error"),
    ):
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, default="shares", help=text)
    parser.add_argument("--runs", type=int, default=4_000, help="of each setting (default: 4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", choices=("all", "even", "odd"), default="all", help="all, or every second one")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs must be at least 1, got {arguments.runs}")
    heads = {
        "differences": DIFFERENCES_HEAD,
        "metrics": metrics_head(METRICS),
        "calibration": metrics_head([*MISCALIBRATIONS, "width"]),
    }
    print(heads.get(arguments.kind, SHARES_HEAD), flush=True)
    rows = []
    for row in simulate(arguments.kind, arguments.settings, arguments.runs, arguments.seed):
        rows.append(row)
        print(line(row, arguments.kind == "differences"), flush=True)
    names = {"metrics": METRICS, "calibration": MISCALIBRATIONS}.get(arguments.kind)
    print(f"\n{summaries(rows) if names is None else metric_summaries(rows, names)}")


if __name__ == "__main__":
    main()
