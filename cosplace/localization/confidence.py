"""From signals to the probability that an answer is correct (within 25 m), learned from examples with known answers.

A logistic regression whose coefficients keep the sign of their signal (a larger margin never lowers the confidence),
then a monotone map from its output to observed frequencies (isotonic regression on bins, Zadrozny and Elkan 2002).
Reports and thresholds use folds that the fit did not see, split by place.  Legend: N examples, F signals.  Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np

from cosplace.assessment.confidence_scores import calibration_error_estimate
from cosplace.assessment.intervals import clustered_mean
from cosplace.errors import ConfigError
from cosplace.localization.fusion import AGREE_M, TEMPERATURE
from cosplace.localization.signals import SIGNALS, SIGNS
from cosplace.progress import format_count

OUT_OF_INDEX_SHARE = 0.05  # assumed share of photos that show no place of the index
RIDGE = 1e-3
MIN_SCALE = 1e-3  # of a signal; smaller differences, such as the spread of photos of one point, are rounding
MORE_PHOTOS = " Use more photos of more places, in the index or in --queries."
NUM_FOLDS = 5
MAX_BINS, EXAMPLES_PER_BIN = 15, 40
RADIUS_SHARE = 0.9  # share of correct answers whose true position is within the reported radius
LOWER_BOUND_DEVIATIONS = 1.2816  # standard errors: lower bounds of precision hold 9 times in 10
# Hidden places of the index are more similar to it than out-of-index photos of users, so a threshold may use only this
# share of the permitted wrong answers.
OUT_OF_INDEX_MARGIN = 0.7
NUM_THRESHOLDS = 201
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Answers whose true position is known."""

    signals: np.ndarray  # (N, F) float64
    errors_m: np.ndarray  # (N,) float64, between answer and true position
    correct: np.ndarray  # (N,) bool, within 25 m
    out_of_index: np.ndarray  # (N,) bool, the index had no photo of the place
    areas: np.ndarray  # (N,) int64; photos of one place share an area
    folds: np.ndarray  # (N,) int64; photos of one area share a fold
    measured: np.ndarray  # (N,) bool, of new photos as they are: the rest are training photos, or were corrected

    def take(self, rows: np.ndarray) -> "Examples":
        """Select examples by number or by mask."""
        return Examples(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def answered(self) -> "Examples":
        """Select the examples that have an answer."""
        return self.take(np.flatnonzero(np.isfinite(self.signals).all(axis=1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How an index turns lists of matches into positions with a confidence; stored with the index."""

    temperature: float  # of the votes
    agree_m: float
    center: np.ndarray  # (F,) mean and
    scale: np.ndarray  # (F,) standard deviation of the signals
    weights: np.ndarray  # (F,)
    bias: float
    logits: np.ndarray  # (J,) ascending, knots of the map from the output of the regression
    frequencies: np.ndarray  # (J,) to confidence
    radius_confidences: np.ndarray  # (J',) ascending, knots of the map from confidence
    radii_m: np.ndarray  # (J',) to the radius that holds RADIUS_SHARE of the correct answers
    curve: np.ndarray  # (NUM_THRESHOLDS, 5), see CURVE
    reliability: np.ndarray  # (bins, 3): mean confidence, share correct, weight; on held-out folds
    calibration_error: float  # expected calibration error on held-out folds
    out_of_index_share: float
    about: Mapping[str, Any]  # how many examples, and of which kinds

    def confidences(self, signals: np.ndarray) -> np.ndarray:
        """Probability (Q,) float64 of being correct; 0 for signals of nan."""
        logits = (np.nan_to_num(signals) - self.center) / self.scale @ self.weights + self.bias
        confidences = np.interp(logits, self.logits, self.frequencies)
        return np.where(np.isfinite(signals).all(axis=1), confidences, 0.0)

    def radius_m(self, confidences: np.ndarray) -> np.ndarray:
        """Radius (Q,) in meters within which 90% of correct answers of this confidence are."""
        return np.interp(confidences, self.radius_confidences, self.radii_m)

    def confidence_threshold(self, precision: float) -> float:
        """The lowest threshold whose answers have this precision.

        At most 1 - precision of out-of-index photos reach it.  Raises ConfigError if no threshold is high enough, and
        for a precision outside (0, 1).
        """
        if not 0 < precision < 1:
            raise ConfigError(f"--precision must be between 0 and 1, got {precision:.12g}. Use for example 0.95.")
        thresholds, _, precision_bound, answered, rejected = self.curve.T
        rejected = 1 - (1 - rejected) / OUT_OF_INDEX_MARGIN
        is_enough = (precision_bound >= precision) & (rejected >= precision) & (answered > 0)
        if not is_enough.any():
            best = np.minimum(precision_bound, rejected)[answered > 0].max(initial=0.0)
            raise ConfigError(
                f"This index does not reach --precision {precision:g}. Use at most {np.floor(best * 1000) / 1000:g}, "
                f"or index more photos and calibrate again."
            )
        return float(thresholds[np.argmax(is_enough)])


CURVE = ("least_confidence", "precision", "precision_lower_bound", "answered", "elsewhere_unknown")
"""Columns of the curve of a calibration, on held-out folds: threshold, share of answers that are correct, its lower
bound, share of photos of places in the index that are answered, lower bound of the share of out-of-index photos that
are not answered.  These names are stored with the index."""


# --- fitting ---------------------------------------------------------------------------------------------------------


def fit_calibration(
    examples: Examples,
    *,
    temperature: float = TEMPERATURE,
    agree_m: float = AGREE_M,
    out_of_index_share: float = OUT_OF_INDEX_SHARE,
    about: Mapping[str, Any] | None = None,
) -> Calibration:
    """Fit on all examples; measure with fits that did not see the places they are measured on.

    Raises ConfigError for examples that are too few or too similar.
    """
    examples = check_examples(examples)
    held_out = np.zeros(len(examples.correct))  # confidences by fits that did not see the fold
    for fold in np.unique(examples.folds):
        inside = np.equal(examples.folds, fold)
        regression, knots = _fit(examples.take(~inside), out_of_index_share)
        held_out[inside] = np.interp(_logits(examples.signals[inside], *regression), *knots)
    (center, scale, weights, bias), (logits, frequencies) = _fit(examples, out_of_index_share)
    importance = _importance(examples, out_of_index_share)
    radius_confidences, radii_m = _fit_radii(held_out[examples.correct], examples.errors_m[examples.correct])
    reliability = reliability_bins(held_out, examples.correct, importance)
    inside = examples.measured & ~examples.out_of_index
    error = calibration_error_estimate(held_out, examples.correct, examples.areas, importance)
    about = dict(about or {}) | {
        "calibration_error_interval": [round(error.low, 4), round(error.high, 4)],
        "calibration_error_approximate": error.is_approximate,
        "overconfidence": overconfidence(held_out[inside], examples.take(inside)),
    }
    return Calibration(
        temperature=temperature,
        agree_m=agree_m,
        center=center,
        scale=scale,
        weights=weights,
        bias=bias,
        logits=logits,
        frequencies=frequencies,
        radius_confidences=radius_confidences,
        radii_m=radii_m,
        curve=_threshold_curve(held_out, examples, importance),
        reliability=reliability,
        calibration_error=calibration_error(reliability),
        out_of_index_share=out_of_index_share,
        about=about,
    )


def check_examples(examples: Examples) -> Examples:
    """Return the examples that have an answer.  Raises ConfigError if they are too few or too similar."""
    examples = examples.answered()
    num_correct, num_wrong = int(examples.correct.sum()), int((~examples.correct).sum())
    folds = np.unique(examples.folds)
    each_fit_sees_both = all(
        0 < examples.correct[examples.folds != fold].sum() < (examples.folds != fold).sum() for fold in folds
    )
    if num_correct < NUM_FOLDS or num_wrong < NUM_FOLDS or len(folds) < 2 or not each_fit_sees_both:
        raise ConfigError(
            f"Calibration needs more examples: there are {num_correct} correct and {num_wrong} wrong answers in "
            f"{format_count(len(folds), 'area')}.{MORE_PHOTOS}"
        )
    return examples


def _importance(examples: Examples, out_of_index_share: float) -> np.ndarray:
    """Weights (N,), sum N, that give out-of-index photos their assumed share."""
    num, num_outside = len(examples.correct), int(examples.out_of_index.sum())
    if num_outside in (0, num):
        return np.ones(num)
    return np.where(
        examples.out_of_index,
        out_of_index_share * num / num_outside,
        (1 - out_of_index_share) * num / (num - num_outside),
    )


Regression = tuple[np.ndarray, np.ndarray, np.ndarray, float]
"""Center, scale and weights of the signals, bias."""
Knots = tuple[np.ndarray, np.ndarray]
"""Inputs, ascending, and outputs of a map that is linear between them."""


def _logits(signals: np.ndarray, center: np.ndarray, scale: np.ndarray, weights: np.ndarray, bias: float) -> np.ndarray:
    return (signals - center) / scale @ weights + bias


def _fit(examples: Examples, out_of_index_share: float) -> tuple[Regression, Knots]:
    importance = _importance(examples, out_of_index_share)
    regression = _fit_regression(examples.signals, examples.correct, importance)
    logits = _logits(examples.signals, *regression)
    return regression, _fit_frequencies(logits, examples.correct, importance)


def _fit_regression(signals: np.ndarray, correct: np.ndarray, importance: np.ndarray) -> Regression:
    from scipy.optimize import minimize

    center = np.average(signals, axis=0, weights=importance)
    scale = np.sqrt(np.average((signals - center) ** 2, axis=0, weights=importance)) + 1e-9
    scale = np.maximum(scale, MIN_SCALE)
    rows, share = (signals - center) / scale, importance / importance.sum()

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        bias, weights = parameters[0], parameters[1:]
        logits = rows @ weights + bias
        loss = share @ (np.logaddexp(0, logits) - correct * logits) + RIDGE * weights @ weights
        gradient = share * (0.5 * (1 + np.tanh(logits / 2)) - correct)
        return float(loss), np.concatenate([[gradient.sum()], rows.T @ gradient + 2 * RIDGE * weights])

    bounds = [(None, None)] + [(0, None) if sign > 0 else (None, 0) for sign in SIGNS]
    found = minimize(loss_and_gradient, np.zeros(1 + rows.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B")
    return center, scale, found.x[1:], float(found.x[0])


def _fit_frequencies(logits: np.ndarray, correct: np.ndarray, importance: np.ndarray) -> Knots:
    """Map from logits to frequencies: bins of equal counts, made monotone, linear between their centers."""
    num_bins = int(np.clip(len(logits) // EXAMPLES_PER_BIN, 1, MAX_BINS))
    bins = np.array_split(np.argsort(logits, kind="stable"), num_bins)
    sums = np.array([importance[rows].sum() for rows in bins])
    # The probability of the regression counts as two more examples, so that no bin has a confidence of exactly 0 or 1.
    expected = np.array([np.average(0.5 * (1 + np.tanh(logits[r] / 2)), weights=importance[r]) for r in bins])
    prior = 2 * importance.mean()
    frequencies = np.array([importance[rows] @ correct[rows] for rows in bins]) + prior * expected
    frequencies = monotone(frequencies / (sums + prior), sums + prior)
    centers = np.array([np.average(logits[rows], weights=importance[rows]) for rows in bins])
    return _strictly_ascending(centers), frequencies


def _strictly_ascending(values: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(values) + 1e-7 * np.arange(len(values))


def monotone(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The ascending sequence nearest to `values` in weighted squares (pool adjacent violators)."""
    from scipy.optimize import isotonic_regression

    return isotonic_regression(values, weights=weights).x


def _fit_radii(confidences: np.ndarray, errors_m: np.ndarray) -> Knots:
    """Map from confidence to the radius of correct answers, which falls as the confidence rises."""
    num_bins = int(np.clip(len(errors_m) // (2 * EXAMPLES_PER_BIN), 1, 5))
    bins = np.array_split(np.argsort(confidences, kind="stable"), num_bins)
    radii = np.array([np.quantile(errors_m[rows], RADIUS_SHARE, method="higher") for rows in bins])
    sizes = np.array([float(len(rows)) for rows in bins])
    centers = _strictly_ascending(np.array([confidences[rows].mean() for rows in bins]))
    return centers, np.maximum(-monotone(-radii, sizes), 1.0)


# --- measuring -------------------------------------------------------------------------------------------------------


def reliability_bins(
    confidences: np.ndarray, correct: np.ndarray, importance: np.ndarray | None = None, num_bins: int = 10
) -> np.ndarray:
    """Per bin of equal width that is not empty: mean confidence, share correct, weight; (bins, 3) float64."""
    importance = np.ones(len(correct)) if importance is None else importance
    bins = np.minimum((confidences * num_bins).astype(np.int64), num_bins - 1)
    sums = [
        np.bincount(bins, values, num_bins) for values in (importance, importance * confidences, importance * correct)
    ]
    full = sums[0] > 0
    return np.stack([sums[1][full] / sums[0][full], sums[2][full] / sums[0][full], sums[0][full]], axis=1)


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error: mean of |confidence - share correct|, weighted by the examples of the bins."""
    return float(np.average(np.abs(bins[:, 0] - bins[:, 1]), weights=bins[:, 2]))


def overconfidence(confidences: np.ndarray, examples: Examples) -> dict[str, float | int | None]:
    """Mean confidence minus the share of correct answers, with its 95% interval and the number of areas it is from.

    The interval says how far the difference may be from 0 on other photos like these: answers in one area tend to be
    right or wrong together.  Null where it is not known, as with fewer than two areas.
    """
    found = clustered_mean(confidences - examples.correct, examples.areas)
    ends = {name: getattr(found, name) for name in ("value", "low", "high")}
    known = {name: round(end, 4) if np.isfinite(end) else None for name, end in ends.items()}
    return known | {"num_areas": len(np.unique(examples.areas)), "approximate": found.is_approximate}


def _threshold_curve(confidences: np.ndarray, examples: Examples, importance: np.ndarray) -> np.ndarray:
    rows = []
    outside, inside = examples.out_of_index, ~examples.out_of_index
    # Examples may be repeated for their weight, but the lower bound counts each once.
    counted = np.flatnonzero(inside)[np.unique(examples.signals[inside], axis=0, return_index=True)[1]]
    for threshold in np.round(np.linspace(0, 1, NUM_THRESHOLDS), 6):
        answered = confidences >= threshold
        total = importance[answered].sum()
        precision = float(importance[answered] @ examples.correct[answered] / total) if total else 1.0
        # Answers of one place depend on each other, but each is counted: the lower bound allows for that as well.
        precision_bound = lower_bound(precision, int(answered[counted].sum()))
        share_answered = (answered & inside).sum() / max(int(inside.sum()), 1)
        share_rejected = 1 - float((answered & outside).sum() / max(int(outside.sum()), 1))
        rejected_bound = lower_bound(share_rejected, int(outside.sum()))
        rows.append((threshold, precision, precision_bound, share_answered, rejected_bound))
    return np.array(rows)


def lower_bound(share: float, count: int, deviations: float = LOWER_BOUND_DEVIATIONS) -> float:
    """Wilson's lower bound of a share observed among `count` examples; 0 for none."""
    if count == 0:
        return 0.0
    square = deviations**2 / count
    spread = deviations * np.sqrt(share * (1 - share) / count + square / (4 * count))
    return float((share + square / 2 - spread) / (1 + square))


# --- stored with the index -------------------------------------------------------------------------------------------

ARRAYS = (
    "center",
    "scale",
    "weights",
    "logits",
    "frequencies",
    "radius_confidences",
    "radii_m",
    "curve",
    "reliability",
)
NUMBERS = ("temperature", "agree_m", "bias", "calibration_error", "out_of_index_share")
LARGEST = 1e9  # of the numbers of a calibration
SMALLEST = 1e-10  # of those by which others are divided
STORED_KEYS = {"center": "centre", "out_of_index_share": "share_elsewhere"}  # of fields whose key is not their name


def as_record(calibration: Calibration) -> dict[str, Any]:
    """A calibration as JSON."""
    arrays = {_key(field): np.round(getattr(calibration, field), 9).tolist() for field in ARRAYS}
    numbers = {_key(field): getattr(calibration, field) for field in NUMBERS}
    names = {"version": VERSION, "features": list(SIGNALS), "curve_columns": list(CURVE)}
    return names | numbers | arrays | {"about": dict(calibration.about)}


def from_record(record: Mapping[str, Any]) -> Calibration:
    """The calibration of a record.  Raises ConfigError if another version wrote it or it is damaged."""
    advice = "Run `cosplace index calibrate` again."
    if record.get("version") != VERSION:
        raise ConfigError(f"The calibration of the index has version {record.get('version')}, not {VERSION}. {advice}")
    if record.get("features") != list(SIGNALS):
        raise ConfigError(f"The calibration of the index has other signals. {advice}")
    try:
        arrays = {field: np.array(record[_key(field)], np.float64) for field in ARRAYS}
        numbers = {field: float(record[_key(field)]) for field in NUMBERS}
        calibration = Calibration(**cast(Any, arrays | numbers), about=dict(record["about"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"The calibration of the index is damaged ({type(error).__name__}). {advice}") from error
    if not (_have_shapes(calibration) and _are_possible(calibration)):
        raise ConfigError(f"The calibration of the index is damaged (wrong numbers). {advice}")
    return calibration


def _have_shapes(calibration: Calibration) -> bool:
    """Whether the arrays of a calibration have the sizes that belong together."""
    per_signal = (calibration.center, calibration.scale, calibration.weights)
    maps = (
        (calibration.logits, calibration.frequencies),
        (calibration.radius_confidences, calibration.radii_m),
    )
    tables = ((calibration.curve, len(CURVE)), (calibration.reliability, 3))
    return (
        all(array.shape == (len(SIGNALS),) for array in per_signal)
        and all(knots.ndim == 1 and knots.size > 0 and knots.shape == values.shape for knots, values in maps)
        and all(table.ndim == 2 and len(table) > 0 and table.shape[1] == width for table, width in tables)
    )


def _are_possible(calibration: Calibration) -> bool:
    """Whether the numbers of a calibration are such that `fit_calibration` may give; nan is never."""
    shares = (calibration.frequencies, calibration.radius_confidences, calibration.curve)
    numbers = (calibration.center, calibration.weights, calibration.bias, calibration.logits)
    sorted_knots = (calibration.logits, calibration.frequencies, calibration.radius_confidences)
    return bool(
        all(SMALLEST < value < LARGEST for value in (calibration.temperature, calibration.agree_m))
        and all((np.abs(values) < LARGEST).all() for values in numbers)
        and ((calibration.scale > SMALLEST) & (calibration.scale < LARGEST)).all()
        and all(((values >= 0) & (values <= 1)).all() for values in shares)
        and all((np.diff(knots) >= 0).all() for knots in sorted_knots)
        and ((calibration.radii_m >= 0) & (calibration.radii_m < LARGEST)).all()
        and ((calibration.reliability >= 0) & (calibration.reliability < LARGEST)).all()
        and 0 <= calibration.calibration_error <= 1
        and 0 <= calibration.out_of_index_share <= 1
    )


def _key(field: str) -> str:
    return STORED_KEYS.get(field, field)
