"""How often the 95% intervals that are not called approximate contain the truth, in simulated evaluations.

    python -m benchmarks.unmarked [--metrics NAME ...] [--runs N] [--seed N]

Each run draws an evaluation with its own truth: recalls are uniform from 30 to 99%, calibration errors from 0 to 0.2.
Settings are those of `benchmarks.coverage`, with MOST_QUERIES or fewer queries for metrics that take long.  A row has
the share of the intervals of a metric that are not called approximate, and the lowest, mean and highest coverage of
these over the settings.  Settings where less than LEAST_UNMARKED are such are left out: these few are extreme samples.
With --rows, the coverage of each setting is printed as well.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice

import numpy as np
from scipy.special import ndtr, ndtri

from benchmarks.coverage import (
    CONFIDENCES,
    LARGEST_DIFFERENCE,
    MEDIAN_M,
    NUM_TRUE,
    SPREAD,
    STRUCTURES,
    Setting,
    draw_hits,
    draw_scores,
    score_of,
)
from cosplace.assessment.confidence_scores import (
    NUM_BINS,
    average_precision,
    calibration_error,
    calibration_error_estimate,
    recall_at_precision,
    recall_estimate,
    reliability_bins,
    score_metrics,
)
from cosplace.assessment.intervals import (
    FEW_CLUSTERS,
    Estimate,
    clustered_quantile,
    clustered_share,
    effective_clusters,
    paired_difference,
)
from cosplace.assessment.metrics import mean_average_precision
from cosplace.training.comparison import compare

RECALLS = (0.3, 0.99)
MOST_QUERIES = 1_500
LEAST_UNMARKED = 0.1
LARGEST_ERROR = 0.2
NUM_GRID = 20_000  # confidences that a true calibration error is computed from
Sample = tuple[Estimate, float]  # an interval and the truth


# --- metrics ---------------------------------------------------------------------------------------------------------


def recall(setting: Setting, rng: np.random.Generator) -> Sample:
    """A recall, or another share of the queries."""
    share, sizes = rng.uniform(*RECALLS), setting.sizes
    rank = np.arange(len(setting.clusters)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of a query in its cluster
    return clustered_share(rank < draw_hits(setting, share, rng)[setting.clusters], setting.clusters), 100 * share


def two_runs(setting: Setting, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Hits of two runs (Q,) bool, and the true difference of their recalls in points."""
    one = rng.uniform(*RECALLS)
    other = rng.uniform(max(RECALLS[0], one - LARGEST_DIFFERENCE), min(RECALLS[1], one + LARGEST_DIFFERENCE))
    paired = Setting(setting.structure, setting.kind, shared=float(rng.choice([0.5, 0.8])))
    scores = draw_scores(paired, rng)
    return scores[0] < ndtri(one), scores[1] < ndtri(other), 100 * (one - other)


def difference(setting: Setting, rng: np.random.Generator) -> Sample:
    """The difference of the recalls of two runs."""
    a, b, truth = two_runs(setting, rng)
    return paired_difference(a, b, setting.clusters), truth


def difference_of_training(setting: Setting, rng: np.random.Generator) -> Sample:
    """The same as `cosplace finetune` and `cosplace distill` print it."""
    a, b, truth = two_runs(setting, rng)
    places = 1000.0 * np.stack([setting.clusters, setting.clusters], 1)
    found = compare(b[:, None], a[:, None], np.ones(len(a), np.int64), places)
    return Estimate(found.difference, found.low, found.high, found.is_approximate), truth


def numbers(setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """How easy each query is, how far its first prediction is, and the noise of its score, (3, Q) standard normal."""
    of_places, of_queries = (rng.standard_normal((3, num)) for num in (len(setting.sizes), len(setting.clusters)))
    shared = setting.correlation
    return math.sqrt(shared) * of_places[:, setting.clusters] + math.sqrt(1 - shared) * of_queries


def distance(q: float) -> Callable[[Setting, np.random.Generator], Sample]:
    """A quantile of the distances of first predictions."""

    def sample(setting: Setting, rng: np.random.Generator) -> Sample:
        meters = MEDIAN_M * np.exp(SPREAD * numbers(setting, rng)[1])
        return clustered_quantile(meters, setting.clusters, q), MEDIAN_M * math.exp(SPREAD * float(ndtri(q)))

    return sample


def mean_precision(setting: Setting, rng: np.random.Generator) -> Sample:
    """MAP: average precisions are uniform between 0.5 and 1 for right queries, and between 0 and 0.3 for the others."""
    share = rng.uniform(*RECALLS)
    easiness, far, _ = numbers(setting, rng)
    precisions = np.where(easiness > ndtri(1 - share), 1 - 0.5 * ndtr(far), 0.3 * ndtr(far))
    return mean_average_precision(precisions, setting.clusters), 100 * (0.75 * share + 0.15 * (1 - share))


@cache
def true_scores() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recalls, and the average precision and the recall at 95% precision of very many queries, in percent."""
    recalls = np.linspace(*RECALLS, 24)
    easiness, noise = np.random.default_rng(0).standard_normal((2, NUM_TRUE))
    scores = score_of(easiness, noise)
    right = [easiness > ndtri(1 - share) for share in recalls.tolist()]
    areas = [100 * average_precision(scores, hits) for hits in right]
    return recalls, np.array(areas), np.array([100 * recall_at_precision(scores, hits, 0.95) for hits in right])


def scored(setting: Setting, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores and hits of queries, (Q,), and the true recall."""
    share = rng.uniform(*RECALLS)
    easiness, _, noise = numbers(setting, rng)
    return score_of(easiness, noise), easiness > ndtri(1 - share), share


def area(setting: Setting, rng: np.random.Generator) -> Sample:
    """Average precision of a score."""
    scores, right, share = scored(setting, rng)
    return score_metrics("score", scores, right, setting.clusters).area, float(np.interp(share, *true_scores()[:2]))


def full_precision(setting: Setting, rng: np.random.Generator) -> Sample:
    """Recall at 100% precision; the truth is the recall of other queries with the score of the best wrong answer."""
    scores, right, share = scored(setting, rng)
    limit = float(scores[~right].max(initial=-math.inf))
    found = clustered_share(right & (scores > limit), setting.clusters)  # as in `score_metrics`
    correlation = score_of(np.float64(1), np.float64(0))
    easy = ndtri(1 - share * (1 - (np.arange(2_000) + 0.5) / 2_000))  # easiness of right answers
    return found, 100 * share * float(ndtr((correlation * easy - limit) / math.sqrt(1 - correlation**2)).mean())


def recall_at_95(setting: Setting, rng: np.random.Generator) -> Sample:
    """Recall at 95% precision."""
    scores, right, share = scored(setting, rng)
    recalls, _, truths = true_scores()
    return recall_estimate(scores, right, setting.clusters, 0.95), float(np.interp(share, recalls, truths))


SHAPES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {  # share of right answers for confidences and an error
    "too high": lambda stated, error: np.clip(stated - error, 0, 1),
    "too low": lambda stated, error: np.clip(stated + error, 0, 1),
    "by turns": lambda stated, error: np.clip(
        stated + error * (1 - 2 * (np.minimum(stated * NUM_BINS, NUM_BINS - 1).astype(int) % 2)), 0, 1
    ),
    "too far from 0.5": lambda stated, error: np.clip(0.5 + (1 - 4 * error) * (stated - 0.5), 0, 1),
    "above 0.9 too high": lambda stated, error: np.where(stated > 0.9, np.clip(stated - 2 * error, 0, 1), stated),
}


def calibration(setting: Setting, rng: np.random.Generator) -> Sample:
    """A calibration error: confidences of CONFIDENCES that are wrong in one of the SHAPES."""
    confidences = CONFIDENCES[str(rng.choice(list(CONFIDENCES)))]
    shape, error = SHAPES[str(rng.choice(list(SHAPES)))], float(rng.uniform(0, LARGEST_ERROR))
    grid = confidences((np.arange(NUM_GRID) + 0.5) / NUM_GRID)
    truth = calibration_error(reliability_bins(grid, shape(grid, error)))
    stated, draw = ndtr(numbers(setting, rng)[:2])
    stated = confidences(stated)
    return calibration_error_estimate(stated, draw < shape(stated, error), setting.clusters), truth


METRICS: dict[str, Callable[[Setting, np.random.Generator], Sample]] = {
    "recall": recall,
    "difference of two runs": difference,
    "difference, finetune": difference_of_training,
    "median distance": distance(0.5),
    "90% distance": distance(0.9),
    "mAP": mean_precision,
    "average precision": area,
    "recall at 100% precision": full_precision,
    "recall at 95% precision": recall_at_95,
    "calibration error": calibration,
}
QUICK = ("recall", "difference of two runs", "median distance", "90% distance", "mAP")
NORMAL = set(METRICS) - {"recall"}  # whose clusters are normal: none is right or wrong as a whole


# --- coverage --------------------------------------------------------------------------------------------------------


def settings_of(metric: str) -> list[Setting]:
    """Settings whose clusters are not too few."""
    return [
        setting
        for structure, sizes in STRUCTURES.items()
        for kind in (("0", "0.1", "0.3", "0.5", "whole") if sizes.max() > 1 else ("0",))
        if (kind != "whole" or metric not in NORMAL) and (sizes.sum() <= MOST_QUERIES or metric in QUICK)
        if effective_clusters((setting := Setting(structure, kind)).clusters) >= FEW_CLUSTERS
    ]


def contains_truth(metric: str, setting: Setting, rng: np.random.Generator) -> Iterator[bool | None]:
    """Whether the interval contains the truth, for one evaluation after the other; None if it is called approximate."""
    while True:
        found, truth = METRICS[metric](setting, rng)
        yield None if found.is_approximate else bool(found.low - 1e-9 <= truth <= found.high + 1e-9)


def unmarked(metric: str, setting: Setting, runs: int, rng: np.random.Generator) -> tuple[int, int]:
    """Of the intervals of some runs that are not called approximate: how many contain the truth, and their number."""
    known = [one for one in islice(contains_truth(metric, setting, rng), runs) if one is not None]
    return sum(known), len(known)


def rows(metric: str, runs: int, seed: int) -> Iterator[tuple[Setting, int, int]]:
    """The counts of `unmarked` for each setting; the random numbers of a setting are its own."""
    for number, setting in enumerate(settings_of(metric)):
        yield setting, *unmarked(metric, setting, runs, np.random.default_rng([seed, number]))


def line(metric: str, runs: int, found: Sequence[tuple[Setting, int, int]]) -> str:
    """A row of the table."""
    kept = [(covered, count) for _, covered, count in found if count >= LEAST_UNMARKED * runs]
    share = 100 * sum(count for *_, count in found) / max(1, runs * len(found))
    coverages = [100 * covered / count for covered, count in kept]
    numbers = (min(coverages), sum(coverages) / len(kept), max(coverages)) if kept else (math.nan,) * 3
    return f"| {metric} | {len(kept)} of {len(found)} | {share:.0f}% | {' | '.join(f'{one:.1f}' for one in numbers)} |"


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), metavar="NAME")
    parser.add_argument("--runs", type=int, default=2_000, help="of each setting (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", action="store_true", help="also print each setting")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs must be at least 1, got {arguments.runs}")
    print(
        "| interval of | settings | not marked | lowest | mean | highest |\n|---|---:|---:|---:|---:|---:|", flush=True
    )
    for metric in arguments.metrics:
        found = []
        for setting, covered, count in rows(metric, arguments.runs, arguments.seed):
            found.append((setting, covered, count))
            if arguments.rows:
                coverage = 100 * covered / max(1, count)
                print(f"{setting.structure}, {setting.kind}: {coverage:.1f} of {count}", flush=True)
        print(line(metric, arguments.runs, found), flush=True)


if __name__ == "__main__":
    main()
