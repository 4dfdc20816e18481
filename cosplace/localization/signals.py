"""Signals: what a list of matches says about its answer, in numbers that do not depend on the size of the index.

Legend: Q queries, K matches, F signals.  Pure.
"""

import numpy as np

from cosplace.localization.fusion import RIVAL_M, Fusion

SIGNALS = ("similarity", "margin", "agreement", "support", "contrast", "spread")
"""Large values speak for the answer, except for the last:

similarity  of the best agreeing match
margin      similarity of the best agreeing match minus that of the best rival, a match of another place
agreement   share of the votes that the agreeing matches have
support     effective number of agreeing matches (1 / sum of squared shares of votes), as a logarithm
contrast    similarity of the best agreeing match minus the mean similarity of the second half of the list
spread      of the agreeing matches on the ground, as a logarithm of meters
"""
SIGNS = (1, 1, 1, 1, 1, -1)


def compute_signals(similarities: np.ndarray, fusion: Fusion, *, rival_m: float = RIVAL_M) -> np.ndarray:
    """Signals (Q, F) float64 of lists of matches (Q, K); nan for queries without an answer."""
    similarities = np.asarray(similarities, np.float64)
    is_match = np.isfinite(similarities)
    agreeing = fusion.agreeing & is_match
    best = np.max(np.where(agreeing, similarities, -1.0), axis=1, initial=-1.0)
    last = np.min(np.where(is_match, similarities, np.inf), axis=1, initial=1.0)
    rivals = is_match & (fusion.distances_m > rival_m)
    # If all matches show one place, the best rival is less similar than the last match.
    rival = np.where(rivals.any(axis=1), np.max(np.where(rivals, similarities, -1.0), axis=1, initial=-1.0), last)
    shares = np.where(agreeing, fusion.votes, 0.0)
    agreement = shares.sum(axis=1)
    num_effective = agreement**2 / np.maximum((shares**2).sum(axis=1), 1e-300)
    squares = np.where(agreeing, np.nan_to_num(fusion.distances_m) ** 2, 0.0)
    spread = np.sqrt((shares * squares).sum(axis=1) / np.maximum(agreement, 1e-300))
    contrast = best - _mean_of_second_half(similarities, is_match)
    columns = (best, best - rival, agreement, np.log(np.maximum(num_effective, 1.0)), contrast, np.log1p(spread))
    signals = np.stack(columns, axis=1)
    signals[~agreeing.any(axis=1)] = np.nan
    return signals


def _mean_of_second_half(similarities: np.ndarray, is_match: np.ndarray) -> np.ndarray:
    """Mean similarity (Q,) of the second half of each list."""
    count = is_match.sum(axis=1)
    rank = np.cumsum(is_match, axis=1)
    half = is_match & (rank > (count // 2)[:, None])
    return np.where(half, similarities, 0.0).sum(axis=1) / np.maximum(half.sum(axis=1), 1)
