"""How many independent queries are worth the queries of some clusters.

Queries of a cluster, such as a place or a drive, tend to be right or wrong together.  The share of Q queries that are
right then varies like that of Q / (1 + (m - 1) correlation) independent ones (Kish, "Survey Sampling", 1965, section
8.2).  m is the size of the cluster that a query sees on average; the correlation is that of two queries of a cluster.

Few clusters hardly show their correlation, and a single estimate of it makes intervals too narrow.  So all correlations
are kept, with their probabilities: the likelihood of the hits of the clusters as beta-binomial numbers (Williams,
Biometrics 1975), times a prior.  Pure functions.  Legend: C clusters, U different clusters, R correlations.
"""

from dataclasses import dataclass

import numpy as np

NUM_CORRELATIONS = 48
PRIOR_EXPONENT = -0.5  # the prior density of a correlation r is proportional to (1 - r) to this power
ADDED = 0.1  # of a cluster with hits only and one with misses only: some may not have been seen


@dataclass(frozen=True, slots=True)
class EffectiveNumbers:
    """Numbers of independent queries that the queries may be worth, and their probabilities."""

    numbers: np.ndarray  # (R,) float64
    probabilities: np.ndarray  # (R,) float64, sum 1


def independent(num: int) -> EffectiveNumbers:
    """What independent queries are worth: their own number."""
    return EffectiveNumbers(np.array([float(num)]), np.ones(1))


def effective_numbers(hits: np.ndarray, sizes: np.ndarray) -> EffectiveNumbers:
    """What the queries of two or more clusters are worth: from the number of clusters, about, to that of queries.

    hits, sizes: (C,) float64, hits and queries of each cluster.
    """
    num = sizes.sum()
    mean_size = float((sizes**2).sum() / num)  # of the cluster of a query
    # Equal steps of an angle are dense near 0, where large clusters need it, and near 1.
    angles = (np.arange(NUM_CORRELATIONS) + 0.5) / NUM_CORRELATIONS * np.pi / 2
    correlations = np.sin(angles) ** 2
    prior = np.sin(angles) * np.cos(angles) ** (1 + 2 * PRIOR_EXPONENT)
    logs = _log_likelihoods(hits, sizes, mean_size, correlations)
    weights = np.exp(logs - logs.max()) * prior
    weights /= weights.sum()
    effects = 1 + (mean_size - 1) * correlations
    # The clusters may differ more than beta-binomial ones, such as a few that are wrong as a whole among good ones.
    effects *= max(1.0, _observed_effect(hits, sizes, mean_size) / float(weights @ effects))
    return EffectiveNumbers(num / effects, weights)


def _log_likelihoods(hits: np.ndarray, sizes: np.ndarray, mean_size: float, correlations: np.ndarray) -> np.ndarray:
    """Logarithms (R,) of the probability of the hits, but for a constant, if the hits of clusters are beta-binomial."""
    from scipy.special import betaln  # takes longer to import than this module

    # Half a cluster of hits and half a cluster of misses are added: with hits only, the share would be known exactly.
    share = (hits.sum() + mean_size / 2) / (sizes.sum() + mean_size)
    clusters, counts = np.unique(np.stack([hits, sizes - hits], axis=1), axis=0, return_counts=True)
    num_hits = np.append(clusters[:, 0], [mean_size, 0])[:, None]  # (U, 1)
    num_misses = np.append(clusters[:, 1], [0, mean_size])[:, None]
    total = 1 / correlations - 1  # the two parameters of the beta distribution, added
    a, b = share * total, (1 - share) * total
    logs = np.asarray(betaln(num_hits + a, num_misses + b)) - np.asarray(betaln(a, b))
    return np.append(counts, [ADDED, ADDED]) @ logs


def _observed_effect(hits: np.ndarray, sizes: np.ndarray, mean_size: float) -> float:
    """The design effect from the variance of the clusters alone, at most that of clusters that are worth one query."""
    num, share = sizes.sum(), hits.sum() / sizes.sum()
    if share in (0, 1):
        return 1.0
    squares = ((hits - share * sizes) ** 2 / (1 - sizes / num)).sum()
    return min(float(squares / (num * share * (1 - share))), mean_size)
