"""From features to the probability that an answer is right within 25 m, learned from examples with known answers.

A logistic regression whose coefficients may not contradict their meaning (a larger margin never lowers confidence),
then a monotone map from its output to frequencies seen (isotonic regression on bins, Zadrozny and Elkan 2002).  What
is reported and what thresholds rest on comes from folds that the fit never saw, split by place.  Legend: N examples,
F features.  Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from cosplace.errors import ConfigError
from cosplace.localization.fusion import AGREE_M, TEMPERATURE
from cosplace.localization.signals import FEATURES, SIGNS

SHARE_ELSEWHERE = 0.05  # of photos asked about that are assumed to show no place of the index
RIDGE = 1e-3
NUM_FOLDS = 5
LARGEST_BINS, EXAMPLES_PER_BIN = 15, 40
RADIUS_SHARE = 0.9  # of right answers lie within the radius told
CAUTION = 1.2816  # standard errors: precision is told as a lower bound that holds 9 times in 10
STRANGENESS = 0.7  # hidden places are nearer to the index than strangers' photos: so much of what is allowed is used
NUM_THRESHOLDS = 201
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Answers whose truth is known."""

    features: np.ndarray  # (N, F) float64
    errors_m: np.ndarray  # (N,) float64 between answer and truth
    right: np.ndarray  # (N,) bool, within 25 m
    elsewhere: np.ndarray  # (N,) bool, the index held no photo of the place
    folds: np.ndarray  # (N,) int64; photos of one place share a fold

    def take(self, rows: np.ndarray) -> "Examples":
        """Some of them, by number or by bool."""
        fields = ("features", "errors_m", "right", "elsewhere", "folds")
        return Examples(**{name: getattr(self, name)[rows] for name in fields})


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What turns neighbour lists into answers that know how sure they are; stored with the index."""

    temperature: float  # of the votes
    agree_m: float
    centre: np.ndarray  # (F,) and
    scale: np.ndarray  # (F,) of the features
    weights: np.ndarray  # (F,)
    bias: float
    logits: np.ndarray  # (J,) ascending, joints of the map from the regression's output
    frequencies: np.ndarray  # (J,) to confidence
    radius_confidences: np.ndarray  # (J',) ascending
    radii_m: np.ndarray  # (J',) that held RADIUS_SHARE of the right answers
    curve: np.ndarray  # (NUM_THRESHOLDS, 5), see CURVE
    reliability: np.ndarray  # (bins, 3): mean confidence, share right, weight; on folds held out
    calibration_error: float  # expected calibration error on folds held out
    share_elsewhere: float
    about: Mapping[str, Any]  # how the examples were made, and how many

    def confidences(self, features: np.ndarray) -> np.ndarray:
        """Probability (Q,) float64 of being right within 25 m; 0 for features of nan."""
        return np.where(np.isfinite(features).all(axis=1), self._mapped(self._outputs(features)), 0.0)

    def radius_m(self, confidences: np.ndarray) -> np.ndarray:
        """Meters (Q,) within which 90 % of right answers of such confidence lie from the truth."""
        return np.interp(confidences, self.radius_confidences, self.radii_m)

    def least_confidence(self, precision: float) -> float:
        """The lowest confidence from which on answers are right with this precision.

        Of photos from elsewhere at most 1 - precision reach it.  Raises ConfigError when no confidence is enough, and
        for a precision that is none.
        """
        if not 0 < precision < 1:
            raise ConfigError(f"--precision {precision:g} cannot be: use a number between 0 and 1, for example 0.95.")
        least, _, lower_bound, answered, unknown = self.curve.T
        unknown = 1 - (1 - unknown) / STRANGENESS
        enough = (lower_bound >= precision) & (unknown >= precision) & (answered > 0)
        if not enough.any():
            best = np.minimum(lower_bound, unknown)[answered > 0].max(initial=0.0)
            below = f"ask for less, at most {np.floor(best * 1000) / 1000:g}, or index more photos and calibrate again"
            raise ConfigError(f"--precision {precision:g} is more than this index can promise: {below}.")
        return float(least[np.argmax(enough)])

    def _outputs(self, features: np.ndarray) -> np.ndarray:
        return (np.nan_to_num(features) - self.centre) / self.scale @ self.weights + self.bias

    def _mapped(self, outputs: np.ndarray) -> np.ndarray:
        return np.interp(outputs, self.logits, self.frequencies)


CURVE = ("least_confidence", "precision", "precision_lower_bound", "answered", "elsewhere_unknown")
"""Columns of a calibration's curve, on folds held out: with that threshold, the share of answers that are right, its
lower bound, the share of photos of places in the index that are answered, the lower bound of the share of photos from
elsewhere that are not."""


# --- fitting ---------------------------------------------------------------------------------------------------------


def fit_calibration(
    examples: Examples,
    *,
    temperature: float = TEMPERATURE,
    agree_m: float = AGREE_M,
    share_elsewhere: float = SHARE_ELSEWHERE,
    about: Mapping[str, Any] | None = None,
) -> Calibration:
    """Fit on all examples; judge by fits that saw none of the places they are judged on."""
    examples = examples.take(np.flatnonzero(np.isfinite(examples.features).all(axis=1)))
    _check(examples)
    held_out = np.zeros(len(examples.right))
    for fold in np.unique(examples.folds):
        inside = np.equal(examples.folds, fold)
        regression, joints = _fit(examples.take(~inside), share_elsewhere)
        held_out[inside] = np.interp(_outputs(examples.features[inside], *regression), *joints)
    (centre, scale, weights, bias), (logits, frequencies) = _fit(examples, share_elsewhere)
    importance = _importance(examples, share_elsewhere)
    radius_confidences, radii_m = _radii(held_out[examples.right], examples.errors_m[examples.right])
    reliability = reliability_bins(held_out, examples.right, importance)
    return Calibration(
        temperature=temperature,
        agree_m=agree_m,
        centre=centre,
        scale=scale,
        weights=weights,
        bias=bias,
        logits=logits,
        frequencies=frequencies,
        radius_confidences=radius_confidences,
        radii_m=radii_m,
        curve=_curve(held_out, examples, importance),
        reliability=reliability,
        calibration_error=calibration_error(reliability),
        share_elsewhere=share_elsewhere,
        about=dict(about or {}),
    )


def _check(examples: Examples) -> None:
    num_right, num_wrong = int(examples.right.sum()), int((~examples.right).sum())
    folds = np.unique(examples.folds)
    everywhere = all(
        0 < examples.right[examples.folds != fold].sum() < (examples.folds != fold).sum() for fold in folds
    )
    if num_right < NUM_FOLDS or num_wrong < NUM_FOLDS or len(folds) < 2 or not everywhere:
        raise ConfigError(
            f"Confidence cannot be learned from {num_right} right and {num_wrong} wrong answers in {len(folds)} areas: "
            f"index more photos of more places."
        )


def _importance(examples: Examples, share_elsewhere: float) -> np.ndarray:
    """Weights (N,), sum N, that give photos from elsewhere their assumed share."""
    num, num_elsewhere = len(examples.right), int(examples.elsewhere.sum())
    if num_elsewhere in (0, num):
        return np.ones(num)
    return np.where(
        examples.elsewhere, share_elsewhere * num / num_elsewhere, (1 - share_elsewhere) * num / (num - num_elsewhere)
    )


Regression = tuple[np.ndarray, np.ndarray, np.ndarray, float]


def _outputs(
    features: np.ndarray, centre: np.ndarray, scale: np.ndarray, weights: np.ndarray, bias: float
) -> np.ndarray:
    return (features - centre) / scale @ weights + bias


def _fit(examples: Examples, share_elsewhere: float) -> tuple[Regression, tuple[np.ndarray, np.ndarray]]:
    importance = _importance(examples, share_elsewhere)
    regression = _fit_regression(examples.features, examples.right, importance)
    outputs = _outputs(examples.features, *regression)
    return regression, _fit_map(outputs, examples.right, importance)


def _fit_regression(features: np.ndarray, right: np.ndarray, importance: np.ndarray) -> Regression:
    from scipy.optimize import minimize

    centre = np.average(features, axis=0, weights=importance)
    scale = np.sqrt(np.average((features - centre) ** 2, axis=0, weights=importance)) + 1e-9
    rows, share = (features - centre) / scale, importance / importance.sum()

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        bias, weights = parameters[0], parameters[1:]
        outputs = rows @ weights + bias
        value = share @ (np.logaddexp(0, outputs) - right * outputs) + RIDGE * weights @ weights
        slope = share * (0.5 * (1 + np.tanh(outputs / 2)) - right)
        return float(value), np.concatenate([[slope.sum()], rows.T @ slope + 2 * RIDGE * weights])

    bounds = [(None, None)] + [(0, None) if sign > 0 else (None, 0) for sign in SIGNS]
    found = minimize(loss, np.zeros(1 + rows.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B")
    return centre, scale, found.x[1:], float(found.x[0])


def _fit_map(outputs: np.ndarray, right: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints of the map from outputs to frequencies: bins of equal counts, made monotone, joined by lines."""
    count = int(np.clip(len(outputs) // EXAMPLES_PER_BIN, 1, LARGEST_BINS))
    parts = np.array_split(np.argsort(outputs, kind="stable"), count)
    sums = np.array([importance[part].sum() for part in parts])
    # The regression's own probability counts as two more examples, so that no bin is sure of anything for ever.
    own = np.array([np.average(0.5 * (1 + np.tanh(outputs[p] / 2)), weights=importance[p]) for p in parts])
    prior = 2 * importance.mean()
    rates = np.array([importance[p] @ right[p] for p in parts]) + prior * own
    rates = monotone(rates / (sums + prior), sums + prior)
    centres = np.array([np.average(outputs[p], weights=importance[p]) for p in parts])
    return _strictly_ascending(centres), rates


def _strictly_ascending(values: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(values) + 1e-7 * np.arange(len(values))


def monotone(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The ascending sequence nearest to `values` in weighted squares (pool adjacent violators)."""
    from scipy.optimize import isotonic_regression

    return isotonic_regression(values, weights=weights).x


def _radii(confidences: np.ndarray, errors_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints of the map from confidence to the radius of right answers, which falls as confidence rises."""
    count = int(np.clip(len(errors_m) // (2 * EXAMPLES_PER_BIN), 1, 5))
    parts = np.array_split(np.argsort(confidences, kind="stable"), count)
    radii = np.array([np.quantile(errors_m[part], RADIUS_SHARE, method="higher") for part in parts])
    sizes = np.array([float(len(part)) for part in parts])
    centres = _strictly_ascending(np.array([confidences[part].mean() for part in parts]))
    return centres, np.maximum(-monotone(-radii, sizes), 1.0)


# --- judging ---------------------------------------------------------------------------------------------------------


def reliability_bins(
    confidences: np.ndarray, right: np.ndarray, importance: np.ndarray | None = None, num_bins: int = 10
) -> np.ndarray:
    """Per bin of equal width that is not empty: mean confidence, share right, weight; (bins, 3) float64."""
    importance = np.ones(len(right)) if importance is None else importance
    places = np.minimum((confidences * num_bins).astype(np.int64), num_bins - 1)
    sums = [
        np.bincount(places, values, num_bins) for values in (importance, importance * confidences, importance * right)
    ]
    full = sums[0] > 0
    return np.stack([sums[1][full] / sums[0][full], sums[2][full] / sums[0][full], sums[0][full]], axis=1)


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error: |confidence - share right|, averaged over the examples of the bins."""
    return float(np.average(np.abs(bins[:, 0] - bins[:, 1]), weights=bins[:, 2]))


def _curve(confidences: np.ndarray, examples: Examples, importance: np.ndarray) -> np.ndarray:
    rows = []
    num_elsewhere, num_here = int(examples.elsewhere.sum()), int((~examples.elsewhere).sum())
    for least in np.round(np.linspace(0, 1, NUM_THRESHOLDS), 6):
        answered = confidences >= least
        total = importance[answered].sum()
        precision = float(importance[answered] @ examples.right[answered] / total) if total else 1.0
        # Answers of one place hang together, yet each is counted: the caution is for that as well.
        bound = lower_bound(precision, int((answered & ~examples.elsewhere).sum()))
        here = (answered & ~examples.elsewhere).sum() / max(num_here, 1)
        wrongly = (answered & examples.elsewhere).sum() / max(num_elsewhere, 1)
        rows.append((least, precision, bound, here, lower_bound(1 - float(wrongly), num_elsewhere)))
    return np.array(rows)


def lower_bound(share: float, count: int, deviations: float = CAUTION) -> float:
    """Wilson's lower bound of a share that was seen among `count`; 0 of none."""
    if count == 0:
        return 0.0
    square = deviations**2 / count
    spread = deviations * np.sqrt(share * (1 - share) / count + square / (4 * count))
    return float((share + square / 2 - spread) / (1 + square))


# --- stored with the index -------------------------------------------------------------------------------------------

ARRAYS = (
    "centre",
    "scale",
    "weights",
    "logits",
    "frequencies",
    "radius_confidences",
    "radii_m",
    "curve",
    "reliability",
)
NUMBERS = ("temperature", "agree_m", "bias", "calibration_error", "share_elsewhere")


def as_record(calibration: Calibration) -> dict[str, Any]:
    """A calibration as JSON holds it."""
    arrays = {name: np.round(getattr(calibration, name), 9).tolist() for name in ARRAYS}
    numbers = {name: getattr(calibration, name) for name in NUMBERS}
    names = {"version": VERSION, "features": list(FEATURES), "curve_columns": list(CURVE)}
    return names | numbers | arrays | {"about": dict(calibration.about)}


def from_record(record: Mapping[str, Any]) -> Calibration:
    """The calibration that a record holds.  Raises ConfigError when another version wrote it or it is damaged."""
    again = "run `cosplace index calibrate` on the index again"
    if record.get("version") != VERSION or record.get("features") != list(FEATURES):
        raise ConfigError(f"The calibration of the index is of another version ({record.get('version')}): {again}.")
    try:
        arrays = {name: np.array(record[name], np.float64) for name in ARRAYS}
        numbers = {name: float(record[name]) for name in NUMBERS}
        found = Calibration(**cast(Any, arrays | numbers), about=dict(record["about"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The calibration of the index is damaged ({error}): {again}.") from error
    if not all(np.isfinite(array).all() for array in arrays.values()) or found.weights.shape != (len(FEATURES),):
        raise ConfigError(f"The calibration of the index is damaged (its numbers): {again}.")
    return found
