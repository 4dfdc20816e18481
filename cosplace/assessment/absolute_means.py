"""95% interval of a sum of absolute means, such as a calibration error.

Chance makes such a sum larger than its expectation, the more so the smaller the expectation of a mean is, so tests of
smaller and larger sums make the interval.  docs/lab.md has what else was tried.  Pure functions.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from cosplace.assessment.intervals import (
    FEW_CLUSTERS,
    LEVEL,
    RESAMPLES,
    Estimate,
    Z,
    degrees_of_freedom,
    effective_clusters,
    t_quantile,
)

PRECISION = 1e-4  # of the ends
FEW_CORRELATED = 200  # effective number of clusters
CLEAR = 2.5  # standard errors that a mean is from 0


def sum_of_absolute_means(values: np.ndarray, clusters: np.ndarray, added: np.ndarray) -> Estimate:
    """Sum over columns of |mean of the column|, which is at most 1, as a calibration error is.

    The value is that of these queries.  What was found is compared with samples, all of them `_without_bias`.  The low
    end is the smallest sum of which 2.5% of the samples are as large; the high end is the largest sum of which 2.5% are
    as small.  Samples depend on the proportions of the expectations, which are unknown.  So the low end is the smaller
    one of two: with the proportions found, and with those of the columns that are CLEAR, the others being 0, where bias
    is largest.  For the high end, proportions are those of the standard errors, with which bias is least.  If less was
    found than half of the samples of 0 have, the high end is that of half of them, or it could be 0.

    An interval that begins at 0 is approximate: it misses a true sum on one side only.  So is one from fewer than
    FEW_CORRELATED clusters of several queries, which covers 97%.
    values: (Q, S) float64.  added: (n, S), queries that count too, because a few queries vary less than all do.
    """
    groups = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(groups)
    num, num_clusters, means = len(values), len(sizes), values.mean(axis=0)
    value = float(np.abs(means).sum())
    if num_clusters < 2:
        return Estimate(value, 0.0, 1.0, is_approximate=True)
    deviations = np.zeros((num_clusters, values.shape[1]))
    np.add.at(deviations, groups, values - means)
    deviations /= np.sqrt(1 - sizes / num)[:, None]
    # As in `paired_difference`, but the design effect is always the root of the size of a cluster that a query sees.
    rows = np.concatenate([deviations, added * ((sizes**2).sum() / num) ** 0.25])
    effect = (deviations**2).sum() / max(((values - means) ** 2).sum(), 1e-12)
    rows *= t_quantile(degrees_of_freedom(sizes, float(effect))) / Z / num
    errors = np.sqrt((rows**2).sum(axis=0))
    means, rows, errors = means[errors > 0], rows[:, errors > 0], errors[errors > 0]
    factors = np.linalg.qr(rows, mode="r")  # factors.T @ factors is the covariance of the means
    noise = np.random.default_rng(0).standard_normal((RESAMPLES, len(factors))) @ factors
    found = _without_bias(means, errors)
    usual = max(float(found.sum()), float(np.median(_without_bias(noise, errors).sum(axis=-1))))

    def end(proportions: np.ndarray, share: float, sum_found: float) -> float:
        """The sum of which this share of the samples are smaller than what was found."""
        expectations = np.copysign(proportions / proportions.sum(), means)

        def quantile(total: float) -> float:
            return float(np.quantile(_without_bias(total * expectations + noise, errors).sum(axis=-1), share))

        return _where(quantile, sum_found)

    positive = np.maximum(found, 0) if found.max() > 0 else errors
    clear = np.where(np.abs(means) > CLEAR * errors, found, 0)
    low = end(positive, (1 + LEVEL) / 2, float(found.sum()))
    if clear.max() > 0:
        low = min(low, end(clear, (1 + LEVEL) / 2, float(found.sum())))
    high = end(errors, (1 - LEVEL) / 2, usual)
    few = FEW_CORRELATED if sizes.max() > 1 else FEW_CLUSTERS
    is_few = effective_clusters(clusters) < few or low <= 0
    return Estimate(value, min(low, value), max(high, value), is_few)


def _without_bias(means: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """|means| (..., S) less their bias, which is 0.8 standard errors (S,) where an expectation is 0.

    The bias that a mean shows if it is taken for the expectation, E |mean + noise| - |mean|, is then sqrt(2) - 1 times
    the bias on average, so it is subtracted 1 / (sqrt(2) - 1) times.  Where expectations are not 0, the bias that is
    left is from 0 to -0.4 standard errors.
    """
    sizes = np.abs(means) / errors
    known, without = _table()
    return errors * np.where(sizes < known[-1], np.interp(sizes, known, without), sizes)


@cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Absolute means in standard errors, and the same without bias: faster than the formula, and within 1e-6."""
    from scipy.special import erf  # takes longer to import than this module

    sizes = np.linspace(0, 9, 9_001)
    expected = math.sqrt(2 / math.pi) * np.exp(-(sizes**2) / 2) + sizes * erf(sizes / math.sqrt(2))
    return sizes, sizes - (math.sqrt(2) + 1) * (expected - sizes)


def _where(ascending: Callable[[float], float], value: float) -> float:
    """Where an ascending function of numbers in [0, 1] has a value, within PRECISION; 0 or 1 if it is outside."""
    from scipy.optimize import brentq  # takes longer to import than this module

    if ascending(0.0) >= value:
        return 0.0
    if ascending(1.0) <= value:
        return 1.0
    return float(brentq(lambda place: ascending(place) - value, 0.0, 1.0, xtol=PRECISION))
