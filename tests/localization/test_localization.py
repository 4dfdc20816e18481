"""Fusion, signals, confidence, calibration and answers, on synthetic descriptors."""

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.assessment.confidence_scores import calibration_error_estimate
from cosplace.errors import ConfigError, CosPlaceError, PhotoIndexError
from cosplace.geo import EARTH, destination, geodesic_distances_m
from cosplace.index.filters import SearchFilter
from cosplace.index.photo_index import create_index, open_index
from cosplace.localization import confidence, leave_one_out
from cosplace.localization.answers import (
    CSV_COLUMNS,
    Unreadable,
    as_json,
    csv_text,
    geojson_text,
    json_text,
    plain_text,
)
from cosplace.localization.calibration import calibrate, compute_calibration
from cosplace.localization.confidence import (
    CURVE,
    Examples,
    as_record,
    calibration_error,
    fit_calibration,
    from_record,
    lower_bound,
    monotone,
    overconfidence,
    reliability_bins,
)
from cosplace.localization.fusion import fuse
from cosplace.localization.localizer import Localizer, read_calibration
from cosplace.localization.signals import SIGNALS, SIGNS, compute_signals
from tests.places import SPEC, D, make_world, new_photos, units, world_index

latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)


# --- fusion ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(latitudes, longitudes, st.integers(0, 2**32 - 1))
def test_the_fused_position_is_the_mean_anywhere_on_earth(lat: float, lon: float, seed: int) -> None:
    # On the antimeridian, on a UTM border or at a pole: the mean of equal matches around a point is that point.
    offsets = np.random.default_rng(seed).uniform(-4, 4, (4, 2))  # all are near each other
    offsets -= offsets.mean(axis=0)
    around = destination(lat, lon, offsets[:, 0], offsets[:, 1])
    fusion = fuse(np.full((1, 4), 0.8), around[0][None], around[1][None])
    assert fusion.agreeing.all()
    assert EARTH.inv(lon, lat, float(fusion.longitudes[0]), float(fusion.latitudes[0]))[2] < 1e-3
    true = [EARTH.inv(lon, lat, float(o), float(a))[2] for a, o in zip(*around, strict=True)]
    assert fusion.distances_m[0] == pytest.approx(true, abs=2e-3)


def test_matches_that_agree_outvote_a_better_match() -> None:
    lat, lon = destination(45.0, 7.0, np.array([500.0, 0, 3, -3]), np.array([0.0, 0, 2, 1]))
    fusion = fuse(np.array([[0.75, 0.74, 0.73, 0.73]]), lat[None], lon[None])
    assert fusion.agreeing.tolist() == [[False, True, True, True]]
    assert geodesic_distances_m(fusion.latitudes[0], fusion.longitudes[0], 45.0, 7.0) < 2
    # But not one that is much better.
    fusion = fuse(np.array([[0.95, 0.74, 0.73, 0.73]]), lat[None], lon[None])
    assert fusion.agreeing.tolist() == [[True, False, False, False]]


def test_matches_without_a_position_do_not_vote() -> None:
    nan = np.nan
    fusion = fuse(
        np.array([[0.9, 0.5, -np.inf], [0.9, 0.5, -np.inf]]),
        np.array([[nan, 45.0, nan], [nan, nan, nan]]), np.array([[nan, 7.0, nan], [nan, nan, nan]]),
    )  # fmt: skip
    assert fusion.votes[0].tolist() == [0, 1, 0]
    assert fusion.latitudes[0] == pytest.approx(45.0)
    assert np.isnan(fusion.latitudes[1]) and not fusion.agreeing[1].any()
    assert np.isnan(compute_signals(np.array([[0.9, 0.5, -np.inf]] * 2), fusion)[1]).all()


def test_signals_do_not_change_when_other_places_are_indexed() -> None:
    rng = np.random.default_rng(0)
    lat, lon = destination(45.0, 7.0, np.array([0.0, 3, -2, 900, 2000]), np.zeros(5))
    few = np.array([[0.8, 0.75, 0.7, 0.5, 0.45]])
    far = destination(45.0, 7.0, rng.uniform(5e3, 9e3, 15), np.zeros(15))
    many = np.concatenate([few, np.sort(rng.uniform(0.3, 0.42, (1, 15)))[:, ::-1]], axis=1)
    all_lat, all_lon = np.concatenate([lat, far[0]])[None], np.concatenate([lon, far[1]])[None]
    a = compute_signals(few, fuse(few, lat[None], lon[None]))[0]
    b = compute_signals(many, fuse(many, all_lat, all_lon))[0]
    own = [number for number, name in enumerate(SIGNALS) if name != "contrast"]
    assert b[own] == pytest.approx(a[own], abs=0.02)


# --- confidence ------------------------------------------------------------------------------------------------------


def synthetic_examples(count: int, seed: int, shift: float = 0.0) -> Examples:
    rng = np.random.default_rng(seed)
    signals = rng.standard_normal((count, len(SIGNALS)))
    logits = 1.5 * signals[:, 0] + 1.0 * signals[:, 1] + shift
    correct = rng.random(count) < 1 / (1 + np.exp(-logits))
    return Examples(
        signals=signals, correct=correct, errors_m=np.where(correct, rng.exponential(5, count).clip(0, 25), 300.0),
        out_of_index=~correct & (rng.random(count) < 0.3), folds=rng.integers(0, 5, count),
        areas=np.arange(count), measured=np.ones(count, bool),
    )  # fmt: skip


def test_confidence_is_a_probability_on_new_examples() -> None:
    calibration = fit_calibration(synthetic_examples(3000, 0), out_of_index_share=0.15)
    fresh = synthetic_examples(4000, 1)
    found = calibration.confidences(fresh.signals)
    assert calibration.calibration_error < 0.05
    assert calibration_error(reliability_bins(found, fresh.correct)) < 0.05
    assert found[fresh.correct].mean() > found[~fresh.correct].mean() + 0.2
    assert (fresh.errors_m[fresh.correct] <= calibration.radius_m(found)[fresh.correct]).mean() == pytest.approx(
        0.9, abs=0.03
    )


def test_a_better_signal_never_lowers_the_confidence() -> None:
    calibration = fit_calibration(synthetic_examples(800, 3))
    rng = np.random.default_rng(4)
    for signal, sign in enumerate(SIGNS):
        rows = rng.standard_normal((200, len(SIGNALS)))
        better = rows.copy()
        better[:, signal] += sign * rng.uniform(0, 2, 200)
        assert (calibration.confidences(better) >= calibration.confidences(rows) - 1e-12).all()


def test_new_answers_reach_the_target_precision() -> None:
    calibration = fit_calibration(synthetic_examples(4000, 5, shift=1.0))
    fresh = synthetic_examples(8000, 6, shift=1.0)
    found = calibration.confidences(fresh.signals)
    for precision in (0.85, 0.9, 0.95):
        answered = found >= calibration.confidence_threshold(precision)
        assert answered.mean() > 0.02
        assert fresh.correct[answered].mean() >= precision
        assert (~answered)[fresh.out_of_index].mean() >= precision - 0.01


def test_an_error_names_the_highest_precision() -> None:
    calibration = fit_calibration(synthetic_examples(120, 7))
    with pytest.raises(ConfigError, match=r"does not reach --precision 0.9999. Use at most 0[.]") as caught:
        calibration.confidence_threshold(0.9999)
    best = float(str(caught.value).split("at most ")[1].split(",")[0])
    assert 0 < calibration.confidence_threshold(best) <= 1
    for nonsense in (0.0, 1.0, -3.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            calibration.confidence_threshold(nonsense)


def test_too_few_examples_raise() -> None:
    examples = synthetic_examples(100, 8)
    with pytest.raises(ConfigError, match="Use more photos of more places"):
        fit_calibration(replace(examples, correct=np.ones(100, bool)))
    with pytest.raises(ConfigError, match="Use more photos of more places"):
        fit_calibration(replace(examples, folds=np.zeros(100, np.int64)))


def test_overconfidence_has_the_interval_of_its_areas() -> None:
    examples = replace(synthetic_examples(400, 9), areas=np.arange(400) // 20)
    confidences = np.random.default_rng(0).random(400)
    means = (confidences - examples.correct).reshape(20, 20).mean(axis=1)  # of areas of equal size
    half = 2.0930240544 * means.std(ddof=1) / np.sqrt(20)  # quantile of t with 19 degrees of freedom
    found = overconfidence(confidences, examples)
    assert found == {
        "value": pytest.approx(means.mean(), abs=1e-4), "low": pytest.approx(means.mean() - half, abs=1e-4),
        "high": pytest.approx(means.mean() + half, abs=1e-4), "num_areas": 20,
        "approximate": True,
    }  # fmt: skip
    one_area = overconfidence(confidences, replace(examples, areas=np.zeros(400, np.int64)))
    assert (one_area["low"], one_area["high"], one_area["num_areas"]) == (None, None, 1)
    many_areas = overconfidence(confidences, replace(examples, areas=np.arange(400) // 13))
    assert (many_areas["num_areas"], many_areas["approximate"]) == (31, False)


def test_overconfidence_is_measured_on_held_out_photos_of_the_index() -> None:
    examples = synthetic_examples(600, 9)
    found = fit_calibration(examples).about["overconfidence"]
    assert found["num_areas"] == (~examples.out_of_index).sum() and found["low"] < found["value"] < found["high"]
    unknown = fit_calibration(replace(examples, measured=np.zeros(600, bool))).about["overconfidence"]
    assert unknown == {"value": None, "low": None, "high": None, "num_areas": 0, "approximate": False}


def test_calibration_error_has_the_interval_of_its_areas_and_weights() -> None:
    examples = synthetic_examples(600, 9)
    calibration = fit_calibration(examples)
    low, high = calibration.about["calibration_error_interval"]
    assert low == 0 and calibration.calibration_error < high < 0.2  # of new examples, it is 0
    assert calibration.about["calibration_error_approximate"] is True
    alike = np.argsort(np.argsort(examples.correct, kind="stable"))  # right and wrong answers are in areas of their own
    together = fit_calibration(replace(examples, areas=alike // 30)).about["calibration_error_interval"]
    assert together[1] > 1.3 * high
    confidences, right, importance = np.array([0.9, 0.9, 0.2]), np.array([True, False, False]), np.array([0.5, 0.5, 2])
    found = calibration_error_estimate(confidences, right, np.arange(3), importance)
    assert found.value == pytest.approx(calibration_error(reliability_bins(confidences, right, importance)))


def test_a_calibration_as_json_and_back() -> None:
    calibration = fit_calibration(synthetic_examples(600, 9), about={"num_photos": 600})
    record = json.loads(json.dumps(as_record(calibration)))
    back = from_record(record)
    rows = np.random.default_rng(1).standard_normal((50, len(SIGNALS)))
    assert back.confidences(rows) == pytest.approx(calibration.confidences(rows), abs=1e-6)
    assert back.confidence_threshold(0.8) == pytest.approx(calibration.confidence_threshold(0.8))
    assert record["curve_columns"] == list(CURVE) and record["about"].keys() == {
        "num_photos", "calibration_error_interval", "calibration_error_approximate", "overconfidence"
    }  # fmt: skip
    for key, value in (("version", 0), ("features", ["x"]), ("weights", "?"), ("weights", [1.0]), ("bias", None)):
        with pytest.raises(ConfigError, match="cosplace index calibrate"):
            from_record(record | {key: value})
    record.pop("radii_m")
    with pytest.raises(ConfigError, match="damaged"):
        from_record(record)


IMPOSSIBLE = {  # changes of a stored calibration, by key: the value in place of all of its numbers, or of the last
    "bias": math.nan, "weights": 1e300, "scale": 0.0, "centre": math.inf, "temperature": 5e-324, "share_elsewhere": 1.5,
    "frequencies": 5.0, "logits": -1e8, "radius_confidences": -0.5, "radii_m": -5.0, "curve": 2.0, "reliability": -1.0,
    "calibration_error": math.nan,
}  # fmt: skip


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_a_calibration_with_impossible_numbers_is_damaged(key: str) -> None:
    record = json.loads(json.dumps(as_record(fit_calibration(synthetic_examples(600, 9)))))
    value = record[key]
    if isinstance(value, list):
        value[-1] = [IMPOSSIBLE[key]] * len(value[-1]) if isinstance(value[-1], list) else IMPOSSIBLE[key]
    else:
        record[key] = IMPOSSIBLE[key]
    with pytest.raises(ConfigError, match=r"damaged .*cosplace index calibrate"):
        from_record(record)


def test_repeated_examples_prove_no_more() -> None:
    """Validation queries are repeated for their weight, but counted once in the lower bound of precision."""
    examples = synthetic_examples(600, 9)
    inside, outside = np.flatnonzero(~examples.out_of_index), np.flatnonzero(examples.out_of_index)
    order = np.concatenate([np.repeat(inside, 3), outside])
    importance = np.where(examples.out_of_index, 1.0, 1 / 3)
    confidences = np.random.default_rng(0).random(len(importance))
    once = confidence._threshold_curve(confidences, examples, np.ones(len(importance)))
    often = confidence._threshold_curve(confidences[order], examples.take(order), importance[order])
    columns = [CURVE.index(name) for name in ("precision", "precision_lower_bound", "answered")]
    assert often[:, columns] == pytest.approx(once[:, columns])


@pytest.mark.parametrize("shown", [0.0, 0.01, 0.5, 1.0])
def test_best_matches_of_blocks(shown: float) -> None:
    """Compare with sorting all similarities at once, of which some are hidden."""
    rng = np.random.default_rng(0)
    similarities = rng.permuted(np.tile(np.linspace(-1, 1, 2000, dtype=np.float32), (20, 1)), axis=1)
    similarities[rng.random(similarities.shape) >= shown] = -np.inf
    best = leave_one_out._BestMatches(20)
    for start, end in ((0, 30), (30, 700), (700, 1400), (1400, 2000)):
        best.add(similarities[:, start:end], start)
        expected = np.argsort(-similarities[:, :end], axis=1, kind="stable")[:, :50]
        assert best.similarities.tolist() == np.take_along_axis(similarities, expected, 1).tolist()
        is_match = np.isfinite(best.similarities)
        assert (best.rows == expected)[is_match].all()


def test_squared_distances() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-20_000, 20_000, (count, 3)) for count in (40, 50))
    b[:5] = a[:5] + np.array([3.0, 0.0, 4.0])
    b[7] = np.nan
    found = leave_one_out.squared_distances(a, b)
    assert found == pytest.approx(((a[:, None] - b[None]) ** 2).sum(axis=2), abs=1e-4, nan_ok=True)
    assert np.isnan(found[:, 7]).all() and np.isfinite(np.delete(found, 7, axis=1)).all()


def test_measures() -> None:
    assert monotone(np.array([1.0, 3, 2, 4]), np.ones(4)).tolist() == [1, 2.5, 2.5, 4]
    assert lower_bound(1.0, 0) == 0
    assert 0.97 < lower_bound(1.0, 100) < lower_bound(1.0, 1000) < 1
    bins = reliability_bins(np.array([0.0, 0.95, 1.0]), np.array([False, True, False]))
    assert bins.tolist() == [[0, 0, 1], [0.975, 0.5, 2]]
    assert calibration_error(bins) == pytest.approx(0.475 * 2 / 3)


# --- an index --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory):
    """A world, and the address of its calibrated index."""
    world = make_world(300)
    address = tmp_path_factory.mktemp("world") / "index"
    with world_index(address, world) as index:
        calibrate(index, num_altered=0)
    return world, address


@pytest.mark.slow
def test_the_confidence_is_calibrated_for_new_photos(calibrated) -> None:
    world, address = calibrated
    localizer = Localizer(address)
    rng = np.random.default_rng(5)
    places = rng.integers(0, len(world.vectors), 1500)
    rows, lat, lon = world.capture(places, rng, (0.3, 1.2))
    answers = localizer.locate_descriptors(rows)
    matches = localizer.search(rows)
    fusion = localizer.fuse(matches)
    errors_m = geodesic_distances_m(fusion.latitudes, fusion.longitudes, lat, lon)
    confidences = np.array([answer.confidence for answer in answers])
    assert localizer.calibration is not None and localizer.calibration.calibration_error < 0.05
    assert calibration_error(reliability_bins(confidences, errors_m <= 25)) < 0.05
    correct = errors_m <= 25
    assert (errors_m <= localizer.calibration.radius_m(confidences))[correct].mean() == pytest.approx(0.9, abs=0.06)
    first_m = geodesic_distances_m(matches.latitudes[:, 0], matches.longitudes[:, 0], lat, lon)
    assert np.median(errors_m) < 0.8 * np.median(first_m)  # fusion helps
    assert (errors_m <= 25).mean() >= (first_m <= 25).mean()


@pytest.mark.slow
def test_out_of_index_photos_are_unknown(calibrated) -> None:
    world, address = calibrated
    localizer = Localizer(address, precision=0.95)
    unknown: list[bool] = []
    for seed in range(9, 14):
        rows, _, _ = make_world(300, seed=seed).capture(np.arange(300), np.random.default_rng(seed), (0.3, 1.2))
        unknown += [answer.unknown for answer in localizer.locate_descriptors(rows)]
    assert np.mean(unknown) >= 0.95
    own, _, _ = world.capture(np.arange(300), np.random.default_rng(1), (0.3, 0.5))
    assert np.mean([answer.unknown for answer in localizer.locate_descriptors(own)]) < 0.3


def test_an_answer_has_matches(calibrated) -> None:
    world, address = calibrated
    row, lat, lon = world.capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    answer = Localizer(address, k=3).locate_descriptors(row, ["me.jpg"])[0]
    assert (answer.photo, answer.unknown, answer.reason) == ("me.jpg", False, "")
    assert geodesic_distances_m(answer.latitude, answer.longitude, lat[0], lon[0]) < 10
    assert len(answer.neighbours) == 3
    for match in answer.neighbours:
        away = geodesic_distances_m(match.latitude, match.longitude, answer.latitude, answer.longitude)
        assert match.distance_m == pytest.approx(float(away), abs=0.01)
    assert set(as_json(answer)) == {
        "photo", "latitude", "longitude", "radius_m", "confidence", "calibrated", "unknown", "verdict", "reason",
        "guess", "neighbours",
    }  # fmt: skip
    assert set(as_json(answer)["neighbours"][0]) == {
        "id", "path", "latitude", "longitude", "heading", "similarity", "distance_m",
    }  # fmt: skip
    assert as_json(answer)["neighbours"][0]["heading"] is None


def test_without_a_guess_there_is_nothing_to_measure_from(calibrated, monkeypatch) -> None:
    world, address = calibrated
    row, _, _ = world.capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    localizer = Localizer(address, min_confidence=1.0)
    assert localizer.locate_descriptors(row)[0].neighbours[0].distance_m is not None
    monkeypatch.setattr("cosplace.localization.localizer.GUESS_CONFIDENCE", 1.0)  # as for a lower confidence
    answer = localizer.locate_descriptors(row)[0]
    assert (answer.verdict, answer.guess) == ("none", None)
    assert {match.distance_m for match in answer.neighbours} == {None}
    assert "m away" not in plain_text(answer) and "45." in plain_text(answer)


def test_an_unknown_answer_has_a_reason_and_no_position(calibrated, tmp_path: Path) -> None:
    world, address = calibrated
    row, _, _ = world.capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    doubtful = Localizer(address, min_confidence=1.0).locate_descriptors(row)[0]
    assert (
        doubtful.unknown
        and doubtful.reason.endswith("the threshold is 100%")
        and doubtful.latitude is doubtful.radius_m is None
    )
    nowhere = Localizer(address).locate_descriptors(row, where=SearchFilter(near=(0, 0, 10)))[0]
    assert nowhere.unknown and nowhere.reason == "no photo of the index matches the filter" and not nowhere.neighbours
    with create_index(tmp_path / "plain", SPEC) as index:
        index.add(new_photos(np.full(4, np.nan), np.full(4, np.nan)), units(np.ones((4, D)) + np.eye(4, D)))
    guess = doubtful.guess
    assert doubtful.verdict == "guess" and guess is not None
    answer = Localizer(address, min_confidence=0.0).locate_descriptors(row)[0]
    assert (guess.latitude, guess.longitude, guess.radius_m) == (answer.latitude, answer.longitude, answer.radius_m)
    assert as_json(doubtful)["guess"] == {name: as_json(answer)[name] for name in ("latitude", "longitude", "radius_m")}
    assert (nowhere.verdict, nowhere.guess, answer.guess) == ("none", None, None)
    plain = Localizer(tmp_path / "plain", uncalibrated=True).locate_descriptors(row)[0]
    assert plain.unknown and plain.reason == "none of the 4 most similar photos has a position"
    assert len(plain.neighbours) == 4 and plain.neighbours[0].distance_m is None


def test_filters(calibrated) -> None:
    world, address = calibrated
    row, lat, lon = world.capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    localizer = Localizer(address, min_confidence=0.0)
    assert localizer.locate_descriptors(row, where=SearchFilter(near=(lat[0], lon[0], 30)))[0].latitude is not None
    far = localizer.locate_descriptors(row, where=SearchFilter(bbox=(lon[0] + 0.003, 44, 8, 46)))[0]
    assert far.longitude is not None and far.longitude > lon[0] + 0.003
    assert far.confidence < 0.5


def test_an_index_without_calibration_needs_a_flag(tmp_path: Path) -> None:
    world = make_world(20)
    with world_index(tmp_path / "index", world) as index:
        assert read_calibration(index) is None
    with pytest.raises(
        ConfigError, match=r"has not been calibrated. Run `cosplace index calibrate .*`, or use --uncalibrated"
    ):
        Localizer(tmp_path / "index")
    with pytest.raises(ConfigError, match="needs a calibrated index"):
        Localizer(tmp_path / "index", uncalibrated=True, precision=0.9)
    row, _, _ = world.capture(np.array([3]), np.random.default_rng(1), (0.1, 0.1))
    answer = Localizer(tmp_path / "index", uncalibrated=True).locate_descriptors(row)[0]
    assert answer.reason.startswith("uncalibrated") and 0.5 < answer.confidence <= 1 and answer.radius_m is None
    assert (answer.verdict, answer.headline) == ("guess", "Best guess, not calibrated")


def test_an_index_too_small_to_calibrate_answers_without_a_flag(tmp_path: Path) -> None:
    world = make_world(20)
    with world_index(tmp_path / "index", world, captures=3) as index:
        assert len(index) == 60 and read_calibration(index) is None
    row, _, _ = world.capture(np.array([3]), np.random.default_rng(1), (0.1, 0.1))
    answer = Localizer(tmp_path / "index").locate_descriptors(row)[0]
    assert not answer.calibrated and answer.latitude is not None and answer.radius_m is None
    assert answer.headline == "Best guess, not calibrated" and answer.reason.startswith("uncalibrated: ")


def test_invalid_arguments_raise(calibrated, tmp_path: Path) -> None:
    _, address = calibrated
    for options, message in (
        ({"min_confidence": 0.5, "precision": 0.5}, "contradict"),
        ({"min_confidence": 2}, "from 0 to 1"),
        ({"min_confidence": float("nan")}, "from 0 to 1"),
        ({"precision": 7}, "between 0 and 1"),
        ({"k": 0}, "k must be 1 or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            Localizer(address, **options)
    with pytest.raises(PhotoIndexError):
        Localizer(tmp_path / "none")
    with pytest.raises(CosPlaceError):  # the model of the synthetic world does not exist
        Localizer(address).locate("x.jpg")
    with pytest.raises(ConfigError, match="got 3 descriptors, 2 names and 3 times"):
        Localizer(address).locate_sequence(np.ones((3, D)), ["a", "b"], [0, 1, 2])


def test_calibrating_a_small_index_raises(tmp_path: Path) -> None:
    with (
        world_index(tmp_path / "index", make_world(1), captures=3) as index,
        pytest.raises(ConfigError, match=r"needs 100 photos with a position, the index has 3\. Add at least 97 more\."),
    ):
        calibrate(index, num_altered=0)


@pytest.mark.slow
def test_calibration_is_reproducible_and_independent_of_blocks(calibrated, monkeypatch) -> None:
    _, address = calibrated
    with open_index(address) as index:
        once = compute_calibration(index, num_altered=0)
        again = compute_calibration(index, num_altered=0)
        monkeypatch.setattr(leave_one_out, "BLOCK_ROWS", 97)
        in_blocks = compute_calibration(index, num_altered=0)
    assert as_record(once) == as_record(again)
    rows = np.random.default_rng(1).standard_normal((50, len(SIGNALS)))
    assert in_blocks.confidences(rows) == pytest.approx(once.confidences(rows), abs=1e-5)
    assert in_blocks.about["num_right"] == once.about["num_right"]


def test_calibration_hides_photos_of_the_same_place_and_time(tmp_path: Path) -> None:
    # All photos of a place have the same position and time, so all of them are hidden and no answer is correct.
    world = make_world(40)
    rng = np.random.default_rng(0)
    places = np.repeat(np.arange(40), 3)
    rows, _, _ = world.capture(places, rng, (0.1, 0.1))
    at = world.east_north_m[places]
    lat, lon = destination(world.latitude, world.longitude, at[:, 0], at[:, 1])
    with create_index(tmp_path / "index", SPEC) as index:
        index.add([replace(photo, time=1e9) for photo in new_photos(lat, lon)], rows)
        with pytest.raises(ConfigError, match="0 correct and"):
            calibrate(index, num_altered=0)


def test_many_threads_get_the_same_answers(calibrated) -> None:
    world, address = calibrated
    localizer = Localizer(address)
    rows, _, _ = world.capture(np.arange(64), np.random.default_rng(3), (0.3, 1.2))
    alone = localizer.locate_descriptors(rows)
    with ThreadPoolExecutor(4) as pool:
        parts = list(
            pool.map(lambda at: localizer.locate_descriptors(rows[at : at + 8], range(at, at + 8)), range(0, 64, 8))
        )
    together = [replace(answer, photo=str(answer.photo)) for part in parts for answer in part]
    for a, b in zip(alone, together, strict=True):
        assert (a.photo, a.unknown, [n.id for n in a.neighbours]) == (b.photo, b.unknown, [n.id for n in b.neighbours])
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_formats_of_an_answer(calibrated) -> None:
    world, address = calibrated
    row, _, _ = world.capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    known = Localizer(address).locate_descriptors(row, ["a,b.jpg"])[0]
    unknown = Localizer(address, min_confidence=1.0).locate_descriptors(row, ["u.jpg"])[0]
    rows = [(known, {"agrees": True}), (unknown, None), (Unreadable(photo="x.jpg", error="damaged"), None)]
    found = json.loads(json_text(rows, is_list=True))
    assert [entry["photo"] for entry in found] == ["a,b.jpg", "u.jpg", "x.jpg"]
    assert found[0]["exif"] == {"agrees": True} and found[2] == {"photo": "x.jpg", "error": "damaged"}
    assert json.loads(json_text(rows[:1], is_list=False)) == found[0]
    shapes = json.loads(geojson_text(rows))
    assert shapes["features"][0]["geometry"]["coordinates"] == [found[0]["longitude"], found[0]["latitude"]]
    assert shapes["features"][1]["geometry"] is None is shapes["features"][2]["geometry"]
    table = csv_text([answer for answer, _ in rows]).splitlines()
    assert table[0] == ",".join(CSV_COLUMNS) and table[1].startswith('"a,b.jpg",45.') and len(table) == 4
    assert table[3] == "x.jpg,,,,,true,damaged,,,"
    text = plain_text(known)
    assert "https://www.openstreetmap.org/?mlat=45." in text and text.count(".jpg") == 4
    assert text.splitlines()[1] == f"  {known.headline}"
    assert text.count("(missing)") == 3  # no match has a file
    assert re.search(r"  unknown: confidence \d+%, the threshold is 100%", plain_text(unknown))
    assert unknown.guess is not None and "m away" in plain_text(unknown)
