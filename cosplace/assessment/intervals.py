"""95% intervals of shares, means, quantiles and differences.

Queries taken close together, or in one drive, tend to be right or wrong together, so C clusters count, not Q queries:

* Shares: the interval of Wilson (JASA 1927) for as many independent queries as they are worth: Q / design effect (Kish,
  "Survey Sampling", 1965, section 8.2), with t because clusters only show it roughly (Korn and Graubard, Survey
  Methodology 1998).
* Quantiles: between which shares of the values are below the true quantile, as positions in the sorted values
  (Woodruff, JASA 1952); with too few queries to see beyond the quantile, it has no end.
* Means and paired differences: the sandwich variance of the clusters, where residuals of large clusters are corrected
  (Bell and McCaffrey, Survey Methodology 2002), and t.
* Degrees of freedom of t: those of Satterthwaite (Biometrics 1946) for the variance of the clusters: C - 1 for clusters
  of equal size, fewer if a few clusters have most of the queries.
* Average precision: the variance of the delete-a-group jackknife (Kott, Journal of Official Statistics 2001) on the
  scale of log-odds, with t.  Bootstraps cover too little there (Boyd, Eng and Page, ECML PKDD 2013).
* Other statistics: the cluster bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 8.3).

`is_approximate` says where simulations show that they cover less than 94 or more than 96%.  With one cluster there is
no interval.  docs/lab.md has the coverage in simulations.
Pure functions.  Legend: Q queries, C clusters.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
Z = 1.959963984540054  # quantile of the normal distribution at (1 + LEVEL) / 2
RESAMPLES = 2_000
MIN_RESAMPLES = 200  # for many queries, whose statistics vary little
CHUNK = 1 << 20  # numbers in one array in memory at once
MAX_NUMBERS = 1 << 23  # weights of queries that are drawn for one interval
MAX_GROUPS = 200  # of clusters, for a jackknife
CELL_M = 50.0  # queries in one cell of this side are one cluster
MIN_SEQUENCES = 10  # fewer say little about other drives
FEW_CLUSTERS = 30  # effective number, see `is_approximate`
FEW_RARE = 5  # clusters that the hits, or the misses, would fill, see `is_approximate`
ADDED = 0.5  # queries won, and lost, in a difference
SMALLEST_EFFECT = 0.5  # design effect: clusters that are as alike as this are so by chance


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with the ends of its 95% interval; nan where it cannot be known."""

    value: float
    low: float
    high: float
    is_approximate: bool = False  # the interval may contain the truth in less than 94%, or more than 96%, of cases

    @property
    def mark(self) -> str:
        """What to write after the interval."""
        return " (approximate)" if self.is_approximate else ""

    def text(self, decimals: int = 1) -> str:
        """The number and its interval.

        >>> Estimate(66.0, 56.0, 74.7).text()
        '66.0 [56.0, 74.7]'
        """
        return f"{self.value:.{decimals}f} [{self.low:.{decimals}f}, {self.high:.{decimals}f}]"

    def marked_text(self, decimals: int = 1, unit: str = "") -> str:
        """The number, its interval, and whether this is approximate.

        >>> Estimate(1.0, 0.2, 5.4, is_approximate=True).marked_text(unit="%")
        '1.0 [0.2, 5.4]% (approximate)'
        """
        return f"{self.text(decimals)}{unit}{self.mark}"


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def wilson(num_successes: int, num: int) -> Estimate:
    """Percentage of `num` independent trials that succeeded.

    >>> wilson(62, 94).text()
    '66.0 [55.9, 74.7]'
    """
    if num == 0:
        return UNKNOWN
    share = num_successes / num
    low, high = _wilson_ends(share, num)
    return Estimate(100 * share, 100 * low, 100 * high, is_approximate(num, share))


def _wilson_ends(share: float, num: float, quantile: float = Z) -> tuple[float, float]:
    square = quantile**2 / num
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return 0.0 if share == 0 else center - half, 1.0 if share == 1 else center + half


# --- clusters --------------------------------------------------------------------------------------------------------


def clusters_of(positions: np.ndarray, sequences: np.ndarray | None = None, cell_m: float = CELL_M) -> np.ndarray:
    """The cluster of each query, (Q,) int64 from 0: its sequence where it is known, else its cell of side cell_m.

    With fewer than MIN_SEQUENCES sequences, all are in the cluster of their cell: intervals then are about other places
    of the same drives.  positions: (Q, 2) or (Q, 3), meters.  sequences: (Q,) int64, -1 where unknown.
    """
    cells = np.unique(np.floor(positions / cell_m), axis=0, return_inverse=True)[1].reshape(-1)
    if sequences is None or not are_clusters(sequences):
        return cells.astype(np.int64)
    known = sequences >= 0
    mixed = np.where(known, sequences, sequences.max(initial=-1) + 1 + cells)
    return np.unique(mixed, return_inverse=True)[1].reshape(-1).astype(np.int64)


def are_clusters(sequences: np.ndarray) -> bool:
    """Whether there are enough sequences to be clusters.  sequences: (Q,) int64, -1 where unknown."""
    return len(np.unique(sequences[sequences >= 0])) >= MIN_SEQUENCES


def effective_clusters(clusters: np.ndarray) -> float:
    """How many clusters of equal size have the same mean size for a query: Q² / sum of squared sizes (Kish 1965).

    >>> effective_clusters(np.array([0, 0, 0, 1]))
    1.6
    """
    sizes = np.bincount(clusters)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(clusters) else 0.0


def is_approximate(num_clusters: float, share: float = 0.5) -> bool:
    """Whether an interval covers less than 94% or more than 96% in simulations (docs/evaluation.md, "Coverage").

    num_clusters: the effective number.  Below FEW_CLUSTERS, coverage is 96 to 98%, and depends on what they are like.
    share: of the queries that are hits, or below a quantile; half of those that only one of two runs gets right.  If
    the rarer of the two kinds would fill fewer than FEW_RARE clusters, coverage is 76 to 100%: hardly anything shows
    how they vary.
    """
    return bool(num_clusters < FEW_CLUSTERS or num_clusters * min(share, 1 - share) < FEW_RARE - 1e-9)


def _sums(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of queries of each cluster that has queries, (C,) float64."""
    sizes = np.bincount(clusters).astype(np.float64)
    sums = np.bincount(clusters, np.asarray(values, np.float64), len(sizes))
    return sums[sizes > 0], sizes[sizes > 0]


def _design_effect(values: np.ndarray, clusters: np.ndarray, ends: tuple[int, int]) -> float:
    """The variance of the mean of the values (Q,), in two or more clusters, divided by that of independent values.

    At most the size of a cluster that a query sees on average, m.  Where most values are equal, the others may be too
    few to show how much they are correlated.  So a cluster of m queries at each end of the range counts, too, with a
    weight of 0.5 / (1 + k)² if the other values would fill k clusters.
    """
    sums, sizes = _sums(values, clusters)
    num = sizes.sum()
    mean_size = float((sizes**2).sum() / num)
    most_common = round(float(sums.sum() / num))
    num_others = np.count_nonzero(values != most_common)
    added = mean_size * 0.5 / (1 + num_others / mean_size) ** 2  # queries at each end
    mean = (sums.sum() + added * sum(ends)) / (num + 2 * added)
    of_ends = added * sum((end - mean) ** 2 for end in ends)
    squares = ((sums - mean * sizes) ** 2 / (1 - sizes / num)).sum() + mean_size * of_ends
    independent = ((values - mean) ** 2).sum() + of_ends
    return min(max(float(squares / independent), SMALLEST_EFFECT), mean_size)


def t_quantile(degrees: float) -> float:
    """Quantile of the t distribution at (1 + LEVEL) / 2."""
    from scipy.special import stdtrit  # takes longer to import than this module

    return float(stdtrit(degrees, (1 + LEVEL) / 2))


def degrees_of_freedom(sizes: np.ndarray, design_effect: float) -> float:
    """Degrees of freedom of the variance that is estimated from two or more clusters.  sizes: (C,) queries.

    Satterthwaite's number, 2 mean² / variance of that estimate, if sums of clusters are independent and normal, and
    queries of a cluster have the correlation that the design effect says (Bell and McCaffrey 2002, section 3).
    """
    num = sizes.sum()
    mean_size = (sizes**2).sum() / num  # of the cluster of a query
    correlation = min(max((design_effect - 1) / (mean_size - 1), 0.0), 1.0) if mean_size > 1 else 0.0
    variances = sizes * (1 + (sizes - 1) * correlation)  # of the sums of clusters
    share, total = sizes / num, variances.sum()
    # The estimate sums the squares of (sum of a cluster - its share of all sums) / sqrt(1 - share).  Their covariances
    # are c = scale_i scale_j (variances where i = j, minus share_i variances_j + share_j variances_i, plus share_i
    # share_j total); the number is (trace of c)² / (sum of the squares of c), here without a matrix (C, C).
    scale = 1 / (1 - share)
    trace = (scale * (variances * (1 - 2 * share) + share**2 * total)).sum()
    shares, crossed, squared = ((scale * one).sum() for one in (share**2, share * variances, variances**2))
    squares = 2 * shares * squared + 2 * crossed**2 + (total * shares) ** 2 - 4 * total * shares * crossed
    squares += (scale**2 * (variances**2 * (1 - 4 * share) + 2 * variances * share**2 * total)).sum()
    return float(trace**2 / squares)


# --- shares, quantiles, means ----------------------------------------------------------------------------------------


def clustered_share(hits: np.ndarray, clusters: np.ndarray) -> Estimate:
    """Percentage of queries that are hits.

    hits: (Q,) bool.  clusters: (Q,) int64.  Queries with a cluster each have the interval of `wilson`.
    """
    sums, sizes = _sums(hits, clusters)
    num, num_hits = int(sizes.sum()), int(sums.sum())
    if num == 0 or sizes.max() == 1:
        return wilson(num_hits, num)
    share = num_hits / num
    if len(sizes) == 1:
        return Estimate(100 * share, 0.0, 100.0, is_approximate=True)
    effect = _design_effect(np.asarray(hits, np.float64), clusters, (0, 1))
    low, high = _wilson_ends(share, num / effect, t_quantile(degrees_of_freedom(sizes, effect)))
    return Estimate(100 * share, 100 * low, 100 * high, is_approximate(effective_clusters(clusters), share))


def clustered_quantile(values: np.ndarray, clusters: np.ndarray, q: float) -> Estimate:
    """The smallest value that at least a share q of the values, in (0, 1), do not exceed.

    values: (Q,) float64, 0 or more; nan, for an unknown value, counts as infinite.  With few queries, all of them may
    be below the true quantile by chance: then its upper end is infinite.  The lower end is 0 if all may be above it.
    """
    values = np.where(np.isnan(values), np.inf, values)
    if not len(values):
        return UNKNOWN
    ordered = np.sort(values)
    value = _at_share(ordered, q)
    below = (values <= value).astype(np.float64)
    sizes = _sums(below, clusters)[1]
    if len(sizes) == 1:
        return Estimate(value, 0.0, math.inf, is_approximate=True)
    num, quantile = float(len(values)), Z
    if sizes.max() > 1:
        effect = _design_effect(below, clusters, (0, 1))
        num, quantile = num / effect, t_quantile(degrees_of_freedom(sizes, effect))
    # Of n values, n * low to n * high are below the true quantile, so it is between the values at these places, on
    # average half a place before the next one.  Values are interpolated (Beran and Hall 1993): from one whole place to
    # the next, coverage jumps.
    low, high = (_at_place(ordered, len(ordered) * end - 0.5) for end in _shares_below(q, num, quantile))
    return Estimate(
        value,
        0.0 if (1 - q) ** num > (1 - LEVEL) / 2 else min(low, value),
        math.inf if q**num > (1 - LEVEL) / 2 else max(high, value),
        is_approximate(effective_clusters(clusters), q),
    )


def _shares_below(q: float, num: float, quantile: float) -> tuple[float, float]:
    """Between which shares of `num` independent values are below their true quantile q, in 95% of cases.

    As wide as the interval of Wilson, but around q, moved as the skewness requires (Cornish and Fisher 1938).
    """
    half = quantile * math.sqrt(q * (1 - q) / (num + quantile**2))
    center = q + (1 - 2 * q) * (Z**2 - 1) / (6 * num)
    return center - half, center + half


def _at_place(ordered: np.ndarray, place: float) -> float:
    """The value at a place in ascending values, counted from 0; between two places, between their values."""
    place = min(max(place, 0.0), len(ordered) - 1.0)
    first = float(ordered[int(place)])
    after = float(ordered[math.ceil(place)])
    return first if after == first else first + (place - int(place)) * (after - first)


def _at_share(ordered: np.ndarray, share: float) -> float:
    """The smallest of the ascending values that at least this share of them do not exceed."""
    return float(ordered[np.clip(math.ceil(share * len(ordered) - 1e-9) - 1, 0, len(ordered) - 1)])


def clustered_mean(values: np.ndarray, clusters: np.ndarray) -> Estimate:
    """Mean of values (Q,) float64."""
    if not len(values):
        return UNKNOWN
    sums, sizes = _sums(values, clusters)
    mean = float(np.mean(values))
    if len(sizes) == 1:
        return Estimate(mean, -math.inf, math.inf, is_approximate=True)
    share = sizes / sizes.sum()
    squares = float(((sums - mean * sizes) ** 2 / (1 - share)).sum())
    independent = float(((values - mean) ** 2).sum())  # what the squares would be
    quantile = t_quantile(degrees_of_freedom(sizes, squares / independent if independent > 0 else 1.0))
    half = quantile * math.sqrt(squares) / float(sizes.sum())
    return Estimate(mean, mean - half, mean + half, is_approximate(effective_clusters(clusters)))


def jackknife(
    statistic: Callable[[np.ndarray], np.ndarray], clusters: np.ndarray, value: float, share: float = 0.5
) -> Estimate:
    """Percentage with the interval of its log-odds, for a smooth statistic in [0, 1] of queries in clusters.

    statistic: weights of the queries (n, Q) int32 -> (n,) values; nan, where it is undefined, counts as 0.  value: for
    weights of 1.  share: of the queries that are hits.
    """
    groups = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    num_clusters, num = int(groups.max(initial=-1)) + 1, len(groups)
    if not math.isfinite(value):
        return UNKNOWN
    if num_clusters < 2:
        return Estimate(100 * value, 0.0, 100.0, is_approximate=True)
    is_few = is_approximate(effective_clusters(groups), share)
    groups %= MAX_GROUPS
    num_groups = min(num_clusters, MAX_GROUPS)
    per_chunk = max(1, CHUNK // num)
    without = np.concatenate(
        [
            statistic((groups != np.arange(first, min(first + per_chunk, num_groups))[:, None]).astype(np.int32))
            for first in range(0, num_groups, per_chunk)
        ]
    )
    without = np.nan_to_num(without)
    # At 0 or 1 nothing varies: it is as if half a query were wrong or right.
    inner = min(max(value, 0.5 / num), 1 - 0.5 / num)
    squares = (num_groups - 1) / num_groups * float(((without - without.mean()) ** 2).sum())
    error = math.sqrt(max(squares, inner * (1 - inner) / num if inner != value else 0.0))
    half = t_quantile(num_clusters - 1) * error / (inner * (1 - inner))
    odds = inner / (1 - inner)
    low, high = 1 / (1 + math.exp(min(half, 700.0)) / odds), 1 / (1 + math.exp(-half) / odds)
    return Estimate(100 * value, 100 * min(low, value), 100 * max(high, value), is_few)


# --- two runs --------------------------------------------------------------------------------------------------------


def paired_difference(a: np.ndarray, b: np.ndarray, clusters: np.ndarray) -> Estimate:
    """Share of hits of run a minus that of run b on the same queries, in percentage points.

    a, b: (Q,) bool.  Half a query won and half a query lost are added for the interval (after Bonett and Price, British
    Journal of Mathematical and Statistical Psychology 2012), times the square root of the design effect of the
    differences; so runs without any difference also have an interval.
    """
    if not len(a):
        return UNKNOWN
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    sums, sizes = _sums(differences, clusters)
    num = sizes.sum()
    value = 100 * float(sums.sum() / num)
    if len(sizes) == 1:
        return Estimate(value, -100.0, 100.0, is_approximate=True)
    added = ADDED * math.sqrt(_design_effect(differences, clusters, (-1, 1)))
    total = num + 2 * added
    center = sums.sum() / total
    of_added = (1 - center) ** 2 + (1 + center) ** 2
    squares = ((sums - center * sizes) ** 2 / (1 - sizes / total)).sum() + added**2 * of_added
    independent = ((differences - center) ** 2).sum() + added * of_added  # what the squares would be
    quantile = t_quantile(degrees_of_freedom(sizes, float(squares / independent)))
    center, half = float(center), quantile * math.sqrt(squares) / float(total)
    low, high = max(-100.0, 100 * (center - half)), min(100.0, 100 * (center + half))
    differing = np.count_nonzero(differences) / num
    return Estimate(value, low, high, is_approximate(effective_clusters(clusters), differing / 2))


def mcnemar(won: int, lost: int) -> float:
    """Probability of a split at least as uneven if both runs were equally good (McNemar 1947, exact and two-sided).

    won, lost: queries that only one of the two runs answers correctly.

    >>> mcnemar(8, 1)
    0.0390625
    """
    from scipy.special import bdtr

    return 1.0 if abs(won - lost) <= 1 else 2 * float(bdtr(min(won, lost), won + lost, 0.5))


# --- bootstrap -------------------------------------------------------------------------------------------------------


def resampled_weights(clusters: np.ndarray, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, in chunks (n, C) int64; the same for a given seed.

    In all RESAMPLES rows, fewer for many queries, but at least MIN_RESAMPLES.
    """
    num = int(clusters.max(initial=-1)) + 1
    generator = np.random.default_rng(seed)
    resamples = int(np.clip(MAX_NUMBERS // max(1, len(clusters)), MIN_RESAMPLES, RESAMPLES))
    per_chunk = max(1, CHUNK // max(1, len(clusters)))
    for first in range(0, resamples, per_chunk):
        count = min(per_chunk, resamples - first)
        drawn = generator.integers(0, max(1, num), (count, num)) + num * np.arange(count)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=count * num).reshape(count, num)


def bootstrap(
    statistics: Callable[[np.ndarray], np.ndarray],
    clusters: np.ndarray,
    values: Sequence[float],
    limits: tuple[float, float],
) -> list[Estimate]:
    """S statistics with percentiles of their resamples, as far from the values as t and the number of clusters require.

    statistics: weights of the queries (n, Q) int32 -> (S, n) values; nan, where one is undefined, is left out.
    values: (S,) for weights of 1.  limits: of all values.
    """
    num_clusters, is_few = len(np.unique(clusters)), is_approximate(effective_clusters(clusters))
    if num_clusters < 2:
        return [
            Estimate(value, *(limits if math.isfinite(value) else (math.nan, math.nan)), is_few) for value in values
        ]
    drawn = np.concatenate(
        [statistics(weights.astype(np.int32)[:, clusters]) for weights in resampled_weights(clusters)], axis=1
    )
    wider = _widening(num_clusters)
    estimates = []
    for value, row in zip(values, drawn, strict=True):
        defined = row[~np.isnan(row)]
        if not math.isfinite(value) or not len(defined):
            estimates.append(Estimate(value, math.nan, math.nan))
            continue
        ends = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        low, high = np.clip(value + wider * (ends - value), *limits).tolist()
        estimates.append(Estimate(value, low, high, is_few))
    return estimates


def _widening(num_clusters: int) -> float:
    """Factor of the deviations of resamples that a number of clusters, two or more, requires."""
    return t_quantile(num_clusters - 1) / Z * math.sqrt(num_clusters / (num_clusters - 1))
