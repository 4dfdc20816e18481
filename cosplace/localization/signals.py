"""What a list of neighbours says about its own answer, in numbers that do not depend on the size of the index.

Legend: Q queries, K neighbours, F features.  Pure.
"""

import numpy as np

from cosplace.localization.fusion import RIVAL_M, Fusion

FEATURES = ("similarity", "margin", "agreement", "support", "contrast", "spread")
"""Each speaks for the answer when it is large, but for the last:

similarity  of the best agreeing neighbour
margin      of the best agreeing neighbour over the best rival, which saw another place
agreement   votes of the agreeing neighbours among all
support     how many captures agree, counted as votes (1 / sum of squared shares), as a logarithm
contrast    of the best agreeing neighbour over the typical similarity of the list's last half
spread      of the agreeing neighbours on the ground, as a logarithm of meters
"""
SIGNS = (1, 1, 1, 1, 1, -1)


def features_of(similarities: np.ndarray, fusion: Fusion, *, rival_m: float = RIVAL_M) -> np.ndarray:
    """Features (Q, F) float64 of neighbour lists (Q, K); nan for queries without an answer."""
    similarities = np.asarray(similarities, np.float64)
    found = np.isfinite(similarities)
    agreeing = fusion.agreeing & found
    best = np.max(np.where(agreeing, similarities, -1.0), axis=1, initial=-1.0)
    last = np.min(np.where(found, similarities, np.inf), axis=1, initial=1.0)
    rivals = found & (fusion.distances_m > rival_m)
    # Where the whole list is of one place, the best rival is below its end.
    rival = np.where(rivals.any(axis=1), np.max(np.where(rivals, similarities, -1.0), axis=1, initial=-1.0), last)
    shares = np.where(agreeing, fusion.votes, 0.0)
    agreement = shares.sum(axis=1)
    counted = agreement**2 / np.maximum((shares**2).sum(axis=1), 1e-300)
    squares = np.where(agreeing, np.nan_to_num(fusion.distances_m) ** 2, 0.0)
    spread = np.sqrt((shares * squares).sum(axis=1) / np.maximum(agreement, 1e-300))
    columns = (best, best - rival, agreement, np.log(np.maximum(counted, 1.0)), best - _typical(similarities, found))
    table = np.stack([*columns, np.log1p(spread)], axis=1)
    table[~agreeing.any(axis=1)] = np.nan
    return table


def _typical(similarities: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Mean similarity (Q,) of the last half of each list."""
    count = found.sum(axis=1)
    place = np.cumsum(found, axis=1)
    half = found & (place > (count // 2)[:, None])
    return np.where(half, similarities, 0.0).sum(axis=1) / np.maximum(half.sum(axis=1), 1)
