"""Frames of one camera in time order: among the places that each frame may show, the track that the speed allows.

A hidden Markov model: the states of a frame are its matches, weighted by their votes and by the confidence of the frame
alone, and one more state, *lost*, for a place that is not in the index.  A step within the speed limit costs nothing; a
longer step is less likely with distance.  The most likely track (Viterbi 1967) gives the positions; the probability of
the states near them given all frames (forward-backward) gives the confidences.  Legend: T frames, K matches.  Pure.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cosplace.errors import ConfigError
from cosplace.geo import ecef_from_lla, lla_from_ecef
from cosplace.localization.fusion import AGREE_M, Fusion
from cosplace.retrieval.recall import RADIUS_M

SLACK_M = 15.0  # that a step may be longer than the speed limit allows, for errors of two positions
STEP_LOST, STEP_STAYING_LOST = 0.1, 0.3  # likelihood of steps to, from and within lost; 1 for a step within reach
INDEPENDENT_S = 1.0  # frames nearer in time have the same errors, so they count less
MIN_FRAME_WEIGHT = 0.05
MIN_LIKELIHOOD = 1e-12
MAX_GAP_M, MAX_GAP_S = 2 * RADIUS_M, 10.0  # a gap up to this size is filled by interpolation
GAP_END_CONFIDENCE = 0.8  # that both frames around a gap need
GAP_CONFIDENCE = 0.5  # frames in a gap with at least this confidence keep their own position


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Positions of a camera, frame by frame."""

    latitudes: np.ndarray  # (T,) float64, nan if lost
    longitudes: np.ndarray  # (T,) float64
    confidences: np.ndarray  # (T,) float64, probability of being within 25 m given the whole sequence
    interpolated: np.ndarray  # (T,) bool: not recognized, but between two frames that were


def estimate_track(
    fusion: Fusion,
    latitudes: np.ndarray,
    longitudes: np.ndarray,
    confidences: np.ndarray,
    times_s: np.ndarray,
    *,
    max_speed_mps: float,
    agree_m: float = AGREE_M,
) -> Track:
    """Estimate the track through the matches (T, K) of frames.

    fusion and confidences (T,): of each frame alone.  times_s: (T,) seconds, ascending.
    Raises ConfigError for an invalid speed and for times that are unknown or not ascending.
    """
    if not 0 < max_speed_mps < np.inf:
        raise ConfigError(f"--max_speed must be above 0 meters per second, got {max_speed_mps:g}. Use for example 20.")
    if not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise ConfigError("The times of the frames are unknown or not in order. Sort the frames, or set --fps.")
    points = ecef_from_lla(latitudes, longitudes)
    has_position = np.isfinite(points).all(axis=-1) & (fusion.votes > 0)
    points[~has_position] = 0.0
    likelihoods = _frame_likelihoods(fusion, has_position, confidences, times_s)
    steps_s = np.diff(times_s)
    states = _most_likely_states(likelihoods, points, steps_s, max_speed_mps)
    probabilities = _state_probabilities(likelihoods, points, steps_s, max_speed_mps)
    track = _track_around_states(states, probabilities[:, :-1], points, has_position, agree_m)
    return _interpolate_gaps(track, times_s)


def _frame_likelihoods(
    fusion: Fusion, has_position: np.ndarray, confidences: np.ndarray, times_s: np.ndarray
) -> np.ndarray:
    """Likelihoods (T, K + 1) of the states of each frame alone, sum 1; the last state is lost."""
    agreeing = np.where(fusion.agreeing & has_position, fusion.votes, 0.0)
    others = np.where(has_position & ~fusion.agreeing, fusion.votes, 0.0)
    doubt = 1 - confidences[:, None]
    likelihoods = np.concatenate(
        [_normalize(agreeing) * (1 - doubt) + _normalize(others) * doubt / 2, doubt / 2], axis=1
    )
    likelihoods[~has_position.any(axis=1)] = 0.0
    likelihoods[:, -1] += 1 - likelihoods.sum(axis=1)
    likelihoods = np.maximum(likelihoods, MIN_LIKELIHOOD)
    gaps = np.diff(times_s)
    around = np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]]) if len(gaps) else np.full(1, np.inf)
    weights = np.clip(around / INDEPENDENT_S, MIN_FRAME_WEIGHT, 1.0)[:, None]
    likelihoods = likelihoods**weights
    likelihoods[:, :-1][~has_position] = MIN_LIKELIHOOD
    return likelihoods / likelihoods.sum(axis=1, keepdims=True)


def _normalize(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(values.sum(axis=1, keepdims=True), 1e-300)


def _transitions(before: np.ndarray, after: np.ndarray, seconds: float, max_speed_mps: float) -> np.ndarray:
    """Likelihoods (K + 1, K + 1) in (0, 1] of steps from each state to each, between points (K, 3)."""
    squares = (before**2).sum(1)[:, None] + (after**2).sum(1)[None] - 2 * before @ after.T
    too_far_m = np.maximum(np.sqrt(np.maximum(squares, 0.0)) - max_speed_mps * seconds - SLACK_M, 0.0)
    likelihoods = np.full((len(before) + 1, len(after) + 1), STEP_LOST)
    likelihoods[:-1, :-1] = np.maximum(np.exp(-0.5 * (too_far_m / SLACK_M) ** 2), MIN_LIKELIHOOD)
    likelihoods[-1, -1] = STEP_STAYING_LOST
    return likelihoods


def _most_likely_states(
    likelihoods: np.ndarray, points: np.ndarray, steps_s: np.ndarray, max_speed_mps: float
) -> np.ndarray:
    """The states (T,) int64 of the most likely track (Viterbi)."""
    scores = np.log(likelihoods[0])
    previous = np.zeros(likelihoods.shape, np.int64)
    for frame in range(1, len(likelihoods)):
        step = _transitions(points[frame - 1], points[frame], steps_s[frame - 1], max_speed_mps)
        candidates = scores[:, None] + np.log(step)
        previous[frame] = candidates.argmax(axis=0)
        scores = candidates.max(axis=0) + np.log(likelihoods[frame])
    states = np.zeros(len(likelihoods), np.int64)
    states[-1] = scores.argmax()
    for frame in range(len(likelihoods) - 1, 0, -1):
        states[frame - 1] = previous[frame, states[frame]]
    return states


def _state_probabilities(
    likelihoods: np.ndarray, points: np.ndarray, steps_s: np.ndarray, max_speed_mps: float
) -> np.ndarray:
    """Probabilities (T, K + 1) of the states given all frames (forward-backward)."""
    forward, backward = likelihoods.copy(), np.ones_like(likelihoods)
    for frame in range(1, len(likelihoods)):
        step = _transitions(points[frame - 1], points[frame], steps_s[frame - 1], max_speed_mps)
        forward[frame] *= forward[frame - 1] @ step
        forward[frame] /= forward[frame].sum()
    for frame in range(len(likelihoods) - 2, -1, -1):
        step = _transitions(points[frame], points[frame + 1], steps_s[frame], max_speed_mps)
        backward[frame] = step @ (backward[frame + 1] * likelihoods[frame + 1])
        backward[frame] /= backward[frame].max()
    both = forward * backward
    return both / both.sum(axis=1, keepdims=True)


def _track_around_states(
    states: np.ndarray, probabilities: np.ndarray, points: np.ndarray, has_position: np.ndarray, agree_m: float
) -> Track:
    """Positions around the most likely states, each the mean of the matches near it."""
    num_matches = points.shape[1]
    lost = states == num_matches
    rows = np.arange(len(states))
    centers = points[rows, np.where(lost, 0, states)] if num_matches else np.zeros((len(states), 3))
    near = has_position & (np.linalg.norm(points - centers[:, None], axis=-1) <= agree_m)
    means = np.einsum("tk,tkd->td", _normalize(np.where(near, probabilities, 0.0)), points)
    lost |= ~near.any(axis=1)
    within = has_position & (np.linalg.norm(points - means[:, None], axis=-1) <= RADIUS_M)
    lat, lon = lla_from_ecef(np.where(lost[:, None], 1.0, means))
    return Track(
        latitudes=np.where(lost, np.nan, lat),
        longitudes=np.where(lost, np.nan, lon),
        confidences=np.where(lost, 0.0, np.where(within, probabilities, 0.0).sum(axis=1)),
        interpolated=np.zeros(len(states), bool),
    )


def _interpolate_gaps(track: Track, times_s: np.ndarray) -> Track:
    """Place doubtful frames on the line between confident ones that are near, with the lower of their confidences."""
    doubtful = np.isnan(track.latitudes) | (track.confidences < GAP_CONFIDENCE)
    confident = np.flatnonzero(~doubtful & (track.confidences >= GAP_END_CONFIDENCE))
    points, confidences = ecef_from_lla(track.latitudes, track.longitudes), track.confidences.copy()
    interpolated = np.zeros(len(doubtful), bool)
    for before, after in pairwise(confident.tolist()):
        between = np.arange(before + 1, after)[doubtful[before + 1 : after]]
        seconds = times_s[after] - times_s[before]
        if seconds > MAX_GAP_S or np.linalg.norm(points[after] - points[before]) > MAX_GAP_M:
            continue
        share = (times_s[between] - times_s[before]) / seconds if seconds else np.full(len(between), 0.5)
        points[between] = points[before] + share[:, None] * (points[after] - points[before])
        confidences[between], interpolated[between] = min(confidences[before], confidences[after]), True
    lat, lon = lla_from_ecef(np.where(np.isfinite(points), points, 1.0))
    return Track(
        latitudes=np.where(interpolated, lat, track.latitudes),
        longitudes=np.where(interpolated, lon, track.longitudes),
        confidences=confidences,
        interpolated=interpolated,
    )
