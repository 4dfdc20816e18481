"""The verdict on an answer, and its headline: the same words on the command line, in JSON and on the map.  Pure.

cosplace/web/text.js has the same headlines; tests/web/test_answers.py compares them.
"""

import math

FOUND, PROBABLE, GUESS, NONE = "found", "probable", "guess", "none"
VERDICTS = (FOUND, PROBABLE, GUESS, NONE)
FOUND_CONFIDENCE = 0.9
PROBABLE_CONFIDENCE = 0.5
GUESS_CONFIDENCE = 0.01  # below it, a position is not even a guess


def verdict_of(confidence: float, *, calibrated: bool, has_position: bool, has_guess: bool) -> str:
    """One of VERDICTS: of an answer with a position by its confidence, else whether there is a guess.

    Without calibration nobody knows how often such answers are right, so they are guesses.
    """
    if not has_position:
        return GUESS if has_guess else NONE
    if not calibrated or confidence < PROBABLE_CONFIDENCE:
        return GUESS
    return FOUND if confidence >= FOUND_CONFIDENCE else PROBABLE


def headline_of(verdict: str, confidence: float, radius_m: float | None, *, calibrated: bool) -> str:
    """The answer in one line."""
    if verdict == NONE:
        return "No match in this index"
    if not calibrated:
        return "Best guess, not calibrated"
    if verdict == FOUND:
        return (
            f"Found: {'' if radius_m is None else f'within {meters_text(radius_m)}, '}{percent_text(confidence)} sure"
        )
    if verdict == PROBABLE:
        radius = "" if radius_m is None else f". If right, within {meters_text(radius_m)}"
        return f"Probably here ({percent_text(confidence)} sure){radius}"
    return f"Not sure. Best guess, {percent_text(confidence)}"


def percent_text(confidence: float) -> str:
    """0.687 -> "68%": rounded down and below 100%, so that it never promises too much."""
    return f"{min(99, math.floor(100 * confidence + 1e-9))}%"


def meters_text(value_m: float) -> str:
    """4.2 -> "4 m", 1240 -> "1.2 km"."""
    if value_m < 999.5:
        return f"{max(1, math.floor(value_m + 0.5))} m"
    return f"{value_m / 1000:.1f} km" if value_m < 9950 else f"{math.floor(value_m / 1000 + 0.5):,} km"
