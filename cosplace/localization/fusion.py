"""One position from many matches: the matches that agree are averaged, the others are rivals.

Each match votes with a weight that falls with the difference between its similarity and that of the best match.  The
match with the most votes around it marks the place; the matches near it agree, and their weighted mean is the answer.
Legend: Q queries, K matches.  Pure.

Positions of matches may have a known error (accuracy): matches with a larger one have less weight, and the answer
cannot be more exact than the matches that are averaged.
"""

from dataclasses import dataclass

import numpy as np

from cosplace.geo import ecef_from_lla, geodesic_distances_m, lla_from_ecef

AGREE_M = 15.0  # matches within this distance of the match with the most votes agree and are averaged
RIVAL_M = 50.0  # a match farther than this from the answer shows another place: twice the radius of a correct answer
TEMPERATURE = 0.04  # of the votes, in cosine similarity; calibration chooses it for an index
TYPICAL_ACCURACY_M = 5.0  # of positions whose error is unknown
# An accuracy is taken as the radius that holds 68% of the errors, which have a normal distribution east and north.
LOG_ACCURACY_SHARE = float(-np.log(1 - 0.6827))
BLOCK_QUERIES = 256  # with 50 matches, pairwise differences take 15 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """For each query, the position on which its matches agree."""

    latitudes: np.ndarray  # (Q,) float64, nan if no match has a position
    longitudes: np.ndarray  # (Q,) float64
    distances_m: np.ndarray  # (Q, K) float64, from the matches to the answer; nan where unknown
    votes: np.ndarray  # (Q, K) float64, sum 1 over the matches with a position
    agreeing: np.ndarray  # (Q, K) bool, the matches that are averaged
    accuracies_m: np.ndarray  # (Q,) float64, error of the averaged positions; 0 where unknown


def vote_weights(similarities: np.ndarray, has_position: np.ndarray, temperature: float) -> np.ndarray:
    """Weights (Q, K) of matches: exp(similarity / temperature), sum 1; 0 for matches without a position."""
    scores = np.where(has_position, similarities, -np.inf).astype(np.float64) / temperature
    best = scores.max(axis=1, keepdims=True, initial=-np.inf)
    votes = np.exp(scores - np.where(np.isfinite(best), best, 0.0))
    return votes / np.maximum(votes.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def fuse(
    similarities: np.ndarray,
    latitudes: np.ndarray,
    longitudes: np.ndarray,
    *,
    accuracies_m: np.ndarray | None = None,
    temperature: float = TEMPERATURE,
    agree_m: float = AGREE_M,
) -> Fusion:
    """Fuse the matches (Q, K) of each query, best first; -inf means no match, nan no position.

    accuracies_m: (Q, K) errors of the positions of the matches; nan where unknown.
    """
    points = ecef_from_lla(latitudes, longitudes)
    has_position = np.isfinite(similarities) & np.isfinite(points).all(axis=-1)
    points[~has_position] = 0.0
    votes = vote_weights(similarities, has_position, temperature)
    errors_m = np.zeros(votes.shape) if accuracies_m is None else np.nan_to_num(accuracies_m.astype(np.float64))
    if errors_m.any():
        votes = votes / (1 + (errors_m / TYPICAL_ACCURACY_M) ** 2)
        votes /= np.maximum(votes.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    means = np.zeros((len(points), 3))
    agreeing = np.zeros(has_position.shape, bool)
    for start in range(0, len(points), BLOCK_QUERIES):
        block = slice(start, start + BLOCK_QUERIES)
        means[block], agreeing[block] = _find_consensus(points[block], votes[block], has_position[block], agree_m)
    is_located = has_position.any(axis=1)
    lat, lon = lla_from_ecef(np.where(is_located[:, None], means, 1.0))
    lat, lon = np.where(is_located, lat, np.nan), np.where(is_located, lon, np.nan)
    distances_m = geodesic_distances_m(latitudes, longitudes, lat[:, None], lon[:, None])
    return Fusion(
        latitudes=lat,
        longitudes=lon,
        distances_m=np.where(has_position, distances_m, np.nan),
        votes=votes,
        agreeing=agreeing,
        accuracies_m=_mean_accuracy(errors_m, np.where(agreeing, votes, 0.0)),
    )


def _mean_accuracy(errors_m: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Root mean square (Q,) of errors (Q, K).  Photos of one drive share their error, so a mean does not reduce it."""
    total = np.maximum(weights.sum(axis=1), np.finfo(np.float64).tiny)
    return np.sqrt((weights * errors_m**2).sum(axis=1) / total)


def share_within(radius_m: float, accuracies_m: np.ndarray) -> np.ndarray:
    """Probability (Q,) that the error of a position with an accuracy is at most `radius_m`; 1 for an accuracy of 0."""
    squares = (radius_m / np.maximum(accuracies_m, 1e-6)) ** 2
    return -np.expm1(-LOG_ACCURACY_SHARE * squares)


def radius_with_accuracy(radii_m: np.ndarray, accuracies_m: np.ndarray, share: float) -> np.ndarray:
    """Radii (Q,) that hold a share of the errors of answers, and the same share of the errors of their matches."""
    factor = np.sqrt(-np.log(1 - share) / LOG_ACCURACY_SHARE)
    return np.where(accuracies_m > 0, np.hypot(radii_m, factor * accuracies_m), radii_m)


def _find_consensus(
    points: np.ndarray, votes: np.ndarray, has_position: np.ndarray, agree_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean points (q, 3) of the matches that agree, and which matches (q, K) bool those are."""
    squared_m = sum((along[:, :, None] - along[:, None]) ** 2 for along in np.moveaxis(points, -1, 0))  # (q, K, K)
    is_near = squared_m <= agree_m**2
    # A vote counts less with distance, so that a row of photos has its consensus in the middle, not at an end.
    near = np.exp(-squared_m / (2 * (agree_m / 2) ** 2), where=is_near, out=np.zeros_like(squared_m))
    support = np.where(has_position, np.einsum("qjk,qk->qj", near, votes), -1.0)
    mode = support.argmax(axis=1)  # the first, thus most similar, of equals
    agreeing = has_position & is_near[np.arange(len(points)), mode]
    weights = np.where(agreeing, votes, 0.0)
    total = np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.einsum("qk,qkd->qd", weights / total, points), agreeing
