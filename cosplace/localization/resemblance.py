"""How many new photos resemble training photos, from the photos alone: their positions are not needed.

The corrections of `seen_photos` assume that new photos are as difficult as the validation.  Photos of the same camera
and light as the training photos are easier, and then confidence is too low.  New photos show which case applies: the
signals of their answers are compared with those of training photos, without and with changed similarities.  The share
of each set is estimated by expectation maximization with the output of a classifier of the two sets (Saerens et al.
2002, "Adjusting the outputs of a classifier to new a priori probabilities", equation 2.9; the sets are its classes).
Then the examples are mixed with this share.

Legend: N, M, U examples or photos, F signals.  Pure.
"""

from dataclasses import fields

import numpy as np

from cosplace.localization.confidence import MIN_SCALE, Examples

RIDGE = 1e-3
MAX_DEVIATIONS = 4.0  # signals further from the mean count as this
MAX_STEPS, TOLERANCE = 1000, 1e-6


def share_like_training(seen: np.ndarray, corrected: np.ndarray, new: np.ndarray) -> float:
    """Share of new photos, 0 to 1, whose signals (U, F) are like those of training photos (N, F), not (M, F)."""
    rows = np.concatenate([seen, corrected])
    center, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), MIN_SCALE)

    def scaled(signals: np.ndarray) -> np.ndarray:
        return np.clip((signals - center) / scale, -MAX_DEVIATIONS, MAX_DEVIATIONS)

    weights, bias = _classifier(scaled(seen), scaled(corrected))
    odds = np.exp(np.clip(scaled(new) @ weights + bias, -50, 50))  # density of the training photos / of the others
    share = 0.5
    for _ in range(MAX_STEPS):
        before, share = share, float((share * odds / (share * odds + 1 - share)).mean())
        if abs(share - before) < TOLERANCE:
            break
    return share


def _classifier(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (F,) and bias of a logistic regression that tells `first` from `second`; both count the same."""
    from scipy.optimize import minimize

    rows = np.concatenate([first, second])
    labels = np.repeat([1.0, 0.0], [len(first), len(second)])
    importance = np.repeat([0.5 / len(first), 0.5 / len(second)], [len(first), len(second)])

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        bias, weights = parameters[0], parameters[1:]
        logits = rows @ weights + bias
        loss = importance @ (np.logaddexp(0, logits) - labels * logits) + RIDGE * weights @ weights
        gradient = importance * (0.5 * (1 + np.tanh(logits / 2)) - labels)
        return float(loss), np.concatenate([[gradient.sum()], rows.T @ gradient + 2 * RIDGE * weights])

    found = minimize(loss_and_gradient, np.zeros(1 + rows.shape[1]), jac=True, method="L-BFGS-B")
    return found.x[1:], float(found.x[0])


def mix_examples(first: Examples, second: Examples, share: float, rng: np.random.Generator) -> Examples:
    """A share of examples from the first set, and the rest from the second; as many as both have together.

    If a set has too few, they are repeated.  Out-of-index examples, which only the second set has, are all kept.
    """
    inside, outside = second.take(~second.out_of_index), second.take(second.out_of_index)
    total = len(first.correct) + len(inside.correct)
    num_first = round(share * total)
    parts = [
        first.take(np.resize(rng.permutation(len(first.correct)), num_first)),
        inside.take(np.resize(rng.permutation(len(inside.correct)), total - num_first)),
        outside,
    ]
    columns = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Examples)}
    return Examples(**columns)
