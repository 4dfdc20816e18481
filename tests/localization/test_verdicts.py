"""The verdict on an answer: found, probable, guess or none, and the headline for each."""

import pytest

from cosplace.localization.answers import Guess, Location, Unreadable, as_json, csv_text, plain_text
from cosplace.localization.verdicts import headline_of, meters_text, percent_text, verdict_of


def location(**changes) -> Location:
    values = {"photo": "q.jpg", "latitude": 45.0, "longitude": 7.0, "radius_m": 5.2, "confidence": 0.98,
              "unknown": False, "reason": "", "neighbours": ()}  # fmt: skip
    return Location(**(values | changes))


@pytest.mark.parametrize(
    ("confidence", "verdict", "headline"),
    [
        (1.0, "found", "Found: within 5 m, 99% sure"),
        (0.98, "found", "Found: within 5 m, 98% sure"),
        (0.9, "found", "Found: within 5 m, 90% sure"),
        (0.8999, "probable", "Probably here (89% sure). If right, within 5 m"),
        (0.68, "probable", "Probably here (68% sure). If right, within 5 m"),
        (0.5, "probable", "Probably here (50% sure). If right, within 5 m"),
        (0.4999, "guess", "Not sure. Best guess, 49%"),
        (0.24, "guess", "Not sure. Best guess, 24%"),
        (0.0, "guess", "Not sure. Best guess, 0%"),
    ],
)
def test_an_answer_with_a_position(confidence: float, verdict: str, headline: str) -> None:
    answer = location(confidence=confidence)
    assert (answer.verdict, answer.headline) == (verdict, headline)


def test_answers_without_a_position_are_guesses_or_none() -> None:
    unknown = {"latitude": None, "longitude": None, "radius_m": None, "unknown": True, "reason": "not confident"}
    guess = Guess(latitude=45.123456, longitude=7.0, radius_m=12.3)
    # Above 0.5, but below the threshold that was asked for: not an answer, so not "probably".
    answer = location(**unknown, confidence=0.68, guess=guess)
    assert (answer.verdict, answer.headline) == ("guess", "Not sure. Best guess, 68%")
    assert as_json(answer)["latitude"] is None and as_json(answer)["guess"]["latitude"] == 45.123456
    text = plain_text(answer)
    assert "45.123456, 7.000000, if right within 12 m" in text and "unknown: not confident" in text
    assert csv_text([answer]).splitlines()[1].startswith("q.jpg,,,,0.68,true,not confident") and ",guess" in csv_text(
        [answer]
    )
    nothing = location(**unknown, confidence=0.0)
    assert (nothing.verdict, nothing.headline) == ("none", "No match in this index")
    assert as_json(nothing)["guess"] is None
    assert "verdict" not in as_json(Unreadable(photo="x", error="damaged"))


def test_without_calibration_an_answer_is_a_guess_whatever_its_number() -> None:
    answer = location(calibrated=False, radius_m=None, confidence=0.99)
    assert (answer.verdict, answer.headline) == ("guess", "Best guess, not calibrated")
    assert verdict_of(0.99, calibrated=False, has_position=False, has_guess=False) == "none"


def test_numbers_never_promise_too_much() -> None:
    assert [percent_text(c) for c in (0.687, 0.29, 0.999, 1.0)] == ["68%", "29%", "99%", "99%"]
    assert [meters_text(m) for m in (0.2, 4.5, 999.6, 1240, 20000)] == ["1 m", "5 m", "1.0 km", "1.2 km", "20 km"]
    assert headline_of("found", 0.95, None, calibrated=True) == "Found: 95% sure"
