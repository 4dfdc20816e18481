"""Frames of one camera in time order: of all the places that each frame may show, those that a way leads through.

A hidden Markov model: the states of a frame are its neighbours, weighed by their votes and by how far the frame is
trusted alone, and one more, *lost*, for a place that is not in the index.  A step is free within what the speed limit
allows and ever less likely beyond.  The most likely way (Viterbi 1967) says where; the probability that all ways
together give to its surroundings (forward-backward) says how sure.  Legend: T frames, K neighbours.  Pure.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cosplace.errors import ConfigError
from cosplace.localization.fusion import AGREE_M, Fusion
from cosplace.localization.plane import in_space, on_ground
from cosplace.retrieval.recall import RADIUS_M

SLACK_M = 15.0  # that two positions may be off together, beyond what was driven
STEP_LOST, STEP_STAYING_LOST = 0.1, 0.3  # against 1 for a step within reach
INDEPENDENT_S = 1.0  # frames nearer in time fail together, and count for less
LEAST_COUNT = 0.05
IMPOSSIBLE = 1e-12
BRIDGED_M, BRIDGED_S = 2 * RADIUS_M, 10.0  # a gap so short is crossed in a straight line
BRIDGE_CONFIDENCE, DOUBTED = 0.8, 0.5  # of the frames at its ends, and below which a frame within it is not believed


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where a camera was, frame by frame."""

    latitudes: np.ndarray  # (T,) float64, nan where it is lost
    longitudes: np.ndarray  # (T,) float64
    confidences: np.ndarray  # (T,) float64, probability of being within 25 m, given the whole sequence
    bridged: np.ndarray  # (T,) bool: not seen, but between two frames that were


def follow(
    fusion: Fusion,
    latitudes: np.ndarray,
    longitudes: np.ndarray,
    confidences: np.ndarray,
    times_s: np.ndarray,
    *,
    max_speed_mps: float,
    agree_m: float = AGREE_M,
) -> Way:
    """The way through the neighbours (T, K) of frames.

    fusion and confidences (T,): of each frame alone.  times_s: (T,) seconds, ascending.
    Raises ConfigError for a speed that is none and for times that go back.
    """
    if not 0 < max_speed_mps < np.inf:
        raise ConfigError(f"--max_speed {max_speed_mps:g} cannot be: use meters per second above 0, for example 20.")
    if not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise ConfigError("The times of the frames go back or are unknown: sort the frames, or give --fps.")
    known = np.isfinite(latitudes) & np.isfinite(longitudes) & (fusion.votes > 0)
    points = np.where(known[..., None], in_space(latitudes, longitudes), 0.0)
    masses = _masses(fusion, known, confidences, times_s)
    steps = np.diff(times_s)
    best, smoothed = _best_way(masses, points, steps, max_speed_mps), _smoothed(masses, points, steps, max_speed_mps)
    return _bridge(_told(best, smoothed[:, :-1], points, known, agree_m), times_s)


def _masses(fusion: Fusion, known: np.ndarray, confidences: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """What a frame alone says of its states, (T, K + 1), sum 1; the last is lost."""
    agreeing = np.where(fusion.agreeing & known, fusion.votes, 0.0)
    others = np.where(known & ~fusion.agreeing, fusion.votes, 0.0)
    doubt = 1 - confidences[:, None]
    masses = np.concatenate([_shares(agreeing) * (1 - doubt) + _shares(others) * doubt / 2, doubt / 2], axis=1)
    masses[~known.any(axis=1)] = 0.0
    masses[:, -1] += 1 - masses.sum(axis=1)
    masses = np.maximum(masses, IMPOSSIBLE)
    gaps = np.diff(times_s)
    around = np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]]) if len(gaps) else np.full(1, np.inf)
    counts = np.clip(around / INDEPENDENT_S, LEAST_COUNT, 1.0)[:, None]
    masses = masses**counts
    masses[:, :-1][~known] = IMPOSSIBLE
    return masses / masses.sum(axis=1, keepdims=True)


def _shares(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(values.sum(axis=1, keepdims=True), 1e-300)


def _step(before: np.ndarray, after: np.ndarray, seconds: float, max_speed_mps: float) -> np.ndarray:
    """How freely one goes from each state to each, (K + 1, K + 1) in (0, 1], between points (K, 3)."""
    squares = (before**2).sum(1)[:, None] + (after**2).sum(1)[None] - 2 * before @ after.T
    too_far = np.maximum(np.sqrt(np.maximum(squares, 0.0)) - max_speed_mps * seconds - SLACK_M, 0.0)
    free = np.full((len(before) + 1, len(after) + 1), STEP_LOST)
    free[:-1, :-1] = np.maximum(np.exp(-0.5 * (too_far / SLACK_M) ** 2), IMPOSSIBLE)
    free[-1, -1] = STEP_STAYING_LOST
    return free


def _best_way(masses: np.ndarray, points: np.ndarray, steps: np.ndarray, max_speed_mps: float) -> np.ndarray:
    """The most likely state of each frame, (T,) int64."""
    scores = np.log(masses[0])
    came_from = np.zeros(masses.shape, np.int64)
    for frame in range(1, len(masses)):
        free = _step(points[frame - 1], points[frame], steps[frame - 1], max_speed_mps)
        ways = scores[:, None] + np.log(free)
        came_from[frame] = ways.argmax(axis=0)
        scores = ways.max(axis=0) + np.log(masses[frame])
    states = np.zeros(len(masses), np.int64)
    states[-1] = scores.argmax()
    for frame in range(len(masses) - 1, 0, -1):
        states[frame - 1] = came_from[frame, states[frame]]
    return states


def _smoothed(masses: np.ndarray, points: np.ndarray, steps: np.ndarray, max_speed_mps: float) -> np.ndarray:
    """Probability of each state given all frames, (T, K + 1)."""
    forward, backward = masses.copy(), np.ones_like(masses)
    for frame in range(1, len(masses)):
        free = _step(points[frame - 1], points[frame], steps[frame - 1], max_speed_mps)
        forward[frame] *= forward[frame - 1] @ free
        forward[frame] /= forward[frame].sum()
    for frame in range(len(masses) - 2, -1, -1):
        free = _step(points[frame], points[frame + 1], steps[frame], max_speed_mps)
        backward[frame] = free @ (backward[frame + 1] * masses[frame + 1])
        backward[frame] /= backward[frame].max()
    both = forward * backward
    return both / both.sum(axis=1, keepdims=True)


def _told(best: np.ndarray, smoothed: np.ndarray, points: np.ndarray, known: np.ndarray, agree_m: float) -> Way:
    """Positions around the most likely states, each the mean of the neighbours there."""
    num_neighbours = points.shape[1]
    lost = best == num_neighbours
    rows = np.arange(len(best))
    there = points[rows, np.where(lost, 0, best)] if num_neighbours else np.zeros((len(best), 3))
    near = known & (np.linalg.norm(points - there[:, None], axis=-1) <= agree_m)
    means = np.einsum("tk,tkd->td", _shares(np.where(near, smoothed, 0.0)), points)
    lost |= ~near.any(axis=1)
    within = known & (np.linalg.norm(points - means[:, None], axis=-1) <= RADIUS_M)
    lat, lon = on_ground(np.where(lost[:, None], 1.0, means))
    return Way(
        latitudes=np.where(lost, np.nan, lat),
        longitudes=np.where(lost, np.nan, lon),
        confidences=np.where(lost, 0.0, np.where(within, smoothed, 0.0).sum(axis=1)),
        bridged=np.zeros(len(best), bool),
    )


def _bridge(way: Way, times_s: np.ndarray) -> Way:
    """Place doubtful frames between sure ones that are near: on the line, as sure as the less sure of the two."""
    lost = np.isnan(way.latitudes) | (way.confidences < DOUBTED)
    sure = np.flatnonzero(~lost & (way.confidences >= BRIDGE_CONFIDENCE))
    points, confidences = in_space(way.latitudes, way.longitudes), way.confidences.copy()
    bridged = np.zeros(len(lost), bool)
    for before, after in pairwise(sure.tolist()):
        between = np.arange(before + 1, after)[lost[before + 1 : after]]
        seconds = times_s[after] - times_s[before]
        if seconds > BRIDGED_S or np.linalg.norm(points[after] - points[before]) > BRIDGED_M:
            continue
        share = (times_s[between] - times_s[before]) / seconds if seconds else np.full(len(between), 0.5)
        points[between] = points[before] + share[:, None] * (points[after] - points[before])
        confidences[between], bridged[between] = min(confidences[before], confidences[after]), True
    lat, lon = on_ground(np.where(np.isfinite(points), points, 1.0))
    return Way(
        latitudes=np.where(bridged, lat, way.latitudes),
        longitudes=np.where(bridged, lon, way.longitudes),
        confidences=confidences,
        bridged=bridged,
    )
