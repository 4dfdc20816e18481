"""One position from many neighbours: those that agree are averaged, the others are rivals.

Each neighbour votes with a weight that falls with its distance in similarity from the first, so that a photo only a
little less alike counts nearly as much.  The neighbour around which most votes lie is where the photo was taken; the
neighbours near it agree, and their weighted mean is the answer.  Legend: Q queries, K neighbours.  Pure.
"""

from dataclasses import dataclass

import numpy as np

from cosplace.localization.plane import arc_m, in_space, mean_radius_m, on_ground

AGREE_M = 15.0  # neighbours this near to the one with most votes saw its place and are averaged
RIVAL_M = 50.0  # a neighbour this far from the answer, twice the radius of a right one, saw another place
TEMPERATURE = 0.04  # of the votes, in cosine similarity; calibration chooses it anew
BLOCK_QUERIES = 256  # with 50 neighbours, differences of 15 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """For each query, where its neighbours say it was taken."""

    latitudes: np.ndarray  # (Q,) float64, nan where no neighbour has a position
    longitudes: np.ndarray  # (Q,) float64
    distances_m: np.ndarray  # (Q, K) float64, neighbours from the answer; nan where unknown
    votes: np.ndarray  # (Q, K) float64, sum 1 over the neighbours with a position
    agreeing: np.ndarray  # (Q, K) bool, neighbours that the answer is the mean of


def votes_of(similarities: np.ndarray, known: np.ndarray, temperature: float) -> np.ndarray:
    """Weights (Q, K) of neighbours: exp of similarity over temperature, sum 1; 0 where not `known` (Q, K) bool."""
    scores = np.where(known, similarities, -np.inf).astype(np.float64) / temperature
    best = scores.max(axis=1, keepdims=True, initial=-np.inf)
    votes = np.exp(scores - np.where(np.isfinite(best), best, 0.0))
    return votes / np.maximum(votes.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def fuse(
    similarities: np.ndarray,
    latitudes: np.ndarray,
    longitudes: np.ndarray,
    *,
    temperature: float = TEMPERATURE,
    agree_m: float = AGREE_M,
) -> Fusion:
    """Fuse the neighbours (Q, K), best first, of each query; -inf or nan stand for none and for no position."""
    known = np.isfinite(similarities) & np.isfinite(latitudes) & np.isfinite(longitudes)
    votes = votes_of(similarities, known, temperature)
    points = np.where(known[..., None], in_space(latitudes, longitudes), 0.0)
    answers = np.zeros((len(points), 3))
    agreeing = np.zeros(known.shape, bool)
    for at in range(0, len(points), BLOCK_QUERIES):
        part = slice(at, at + BLOCK_QUERIES)
        answers[part], agreeing[part] = _most_votes(points[part], votes[part], known[part], agree_m)
    located = known.any(axis=1)
    lat, lon = on_ground(np.where(located[:, None], answers, 1.0))
    lat, lon = np.where(located, lat, np.nan), np.where(located, lon, np.nan)
    chords = np.linalg.norm(points - in_space(lat, lon)[:, None], axis=-1)
    return Fusion(
        latitudes=lat,
        longitudes=lon,
        distances_m=np.where(known, arc_m(chords, mean_radius_m(lat)[:, None]), np.nan),
        votes=votes,
        agreeing=agreeing,
    )


def _most_votes(
    points: np.ndarray, votes: np.ndarray, known: np.ndarray, agree_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """Means (q, 3) of the points with most votes around them, and which neighbours (q, K) bool they are of."""
    apart_2 = ((points[:, :, None] - points[:, None]) ** 2).sum(-1)  # (q, K, K)
    # A vote counts less the farther it is from the place it speaks for: a row of photos has its middle, not an edge.
    near = np.exp(-apart_2 / (2 * (agree_m / 2) ** 2)) * (apart_2 <= agree_m**2)
    support = np.where(known, np.einsum("qjk,qk->qj", near, votes), -1.0)
    mode = support.argmax(axis=1)  # the better neighbour among equals
    rows = np.arange(len(points))
    agreeing = known & (apart_2[rows, mode] <= agree_m**2)
    weights = np.where(agreeing, votes, 0.0)
    total = np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.einsum("qk,qkd->qd", weights / total, points), agreeing
