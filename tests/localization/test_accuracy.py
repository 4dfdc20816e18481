"""Position errors of matches: they count less, widen the radius, lower the confidence; unknown ones change nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosplace.errors import ConfigError
from cosplace.geo import destination, geodesic_distances_m
from cosplace.index.photo_index import create_index, open_index
from cosplace.localization.answers import Location, Match
from cosplace.localization.calibration import compute_calibration
from cosplace.localization.confidence import as_record
from cosplace.localization.fusion import fuse, radius_with_accuracy, share_within
from cosplace.localization.localizer import Localizer
from tests.places import SPEC, make_world, new_photos


def matches_around(east_m: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lat, lon = destination(45.0, 7.0, np.array(east_m), np.zeros(len(east_m)))
    return np.full((1, len(east_m)), 0.8), lat[None], lon[None]


def test_unknown_errors_change_nothing() -> None:
    rng = np.random.default_rng(0)
    similarities = np.sort(rng.uniform(0.2, 0.9, (30, 20)), axis=1)[:, ::-1]
    lat, lon = destination(45.0, 7.0, rng.uniform(-60, 60, (30, 20)), rng.uniform(-60, 60, (30, 20)))
    plain, unknown = (fuse(similarities, lat, lon, accuracies_m=given) for given in (None, np.full((30, 20), np.nan)))
    for name in ("latitudes", "longitudes", "votes", "agreeing", "distances_m"):
        assert np.array_equal(getattr(plain, name), getattr(unknown, name)), name
    assert not plain.accuracies_m.any()
    assert share_within(25.0, plain.accuracies_m).tolist() == [1.0] * 30
    radii_m = rng.uniform(1, 20, 30)
    assert np.array_equal(radius_with_accuracy(radii_m, plain.accuracies_m, 0.9), radii_m)


def test_inaccurate_matches_count_less() -> None:
    similarities, lat, lon = matches_around([0.0, 10.0])
    # Weights 1 and 1 / (1 + (10 / 5)^2) = 1 / 5: the mean is 10 / 6 m from the first.
    fusion = fuse(similarities, lat, lon, accuracies_m=np.array([[np.nan, 10.0]]))
    assert geodesic_distances_m(fusion.latitudes[0], fusion.longitudes[0], 45.0, 7.0) == pytest.approx(10 / 6, abs=0.01)
    assert fusion.accuracies_m[0] == pytest.approx(np.sqrt(100 / 6))
    # Two matches of another place, whose positions say nothing, do not outvote one that is exact.
    similarities, lat, lon = matches_around([0.0, 500.0, 501.0])
    fusion = fuse(similarities, lat, lon, accuracies_m=np.array([[4.0, 1500.0, 1500.0]]))
    assert fusion.agreeing.tolist() == [[True, False, False]]


def test_the_radius_holds_the_errors_of_the_matches() -> None:
    # Of normal errors with 68% within the accuracy, 90% are within the radius.
    rng = np.random.default_rng(0)
    errors_m = np.hypot(*rng.standard_normal((2, 200_000)))
    accuracy_m = np.quantile(errors_m, 0.6827)
    radius_m = radius_with_accuracy(np.zeros(1), np.array([accuracy_m]), 0.9)[0]
    assert np.mean(errors_m <= radius_m) == pytest.approx(0.9, abs=0.005)
    for limit in (0.3, 1.0, 2.0):
        assert share_within(limit, np.array([accuracy_m]))[0] == pytest.approx(np.mean(errors_m <= limit), abs=0.005)
    assert radius_with_accuracy(np.array([12.0]), np.array([1500.0]), 0.9)[0] > 1500
    assert share_within(25.0, np.array([5.0]))[0] > 0.999 and share_within(25.0, np.array([1500.0]))[0] < 0.001


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Indexes with one calibration and equal photos, whose positions have different errors."""
    world, folder = make_world(60), tmp_path_factory.mktemp("accuracy")
    rows, lat, lon = world.capture(np.repeat(np.arange(60), 5), np.random.default_rng(2), (0.3, 0.9))
    record: dict = {}
    for name, accuracy_m in (("unknown", np.nan), ("15", 15.0), ("1500", 1500.0)):
        with create_index(folder / name, SPEC) as index:
            index.add([replace(photo, accuracy_m=accuracy_m) for photo in new_photos(lat, lon)], rows)
            record = record or as_record(compute_calibration(index, num_altered=0))
            index.write_record("calibration", record)
    return {name: folder / name for name in ("unknown", "15", "1500")}


def test_answers_are_no_more_exact_than_their_matches(addresses) -> None:
    query, _, _ = make_world(60).capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    exact, vague, lost = (Localizer(addresses[key]).locate_descriptors(query)[0] for key in ("unknown", "15", "1500"))
    assert exact.radius_m is not None and vague.radius_m is not None and not exact.unknown and not vague.unknown
    assert exact.radius_m < 15 < vague.radius_m
    assert vague.confidence == pytest.approx(
        exact.confidence * float(share_within(25.0, np.array([15.0]))[0]), abs=0.01
    )
    assert lost.unknown and lost.confidence < 0.01
    assert lost.reason.endswith("the positions of its matches have an error of 1500 m")
    anyway = Localizer(addresses["1500"], min_confidence=0.0).locate_descriptors(query)[0]
    assert anyway.radius_m is not None and anyway.radius_m > 1500
    uncalibrated = Localizer(addresses["1500"], uncalibrated=True).locate_descriptors(query)[0]
    assert uncalibrated.confidence < 0.01


def test_photos_with_large_errors_are_no_queries_of_a_calibration(addresses) -> None:
    with (
        open_index(addresses["1500"]) as index,
        pytest.raises(
            ConfigError, match=r"the index has 0, and [\d,]+ whose position has an error above 25 m\. Add at"
        ),
    ):
        compute_calibration(index, num_altered=0)


def test_reranking_keeps_the_errors_of_the_matches(monkeypatch) -> None:
    pytest.importorskip("cv2")
    import torch

    from cosplace.localization import reranking

    monkeypatch.setattr(reranking, "_count_inliers_of_matches", lambda index, matches, photo: [100] * len(matches))
    photo = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for accuracy_m, confirmed in ((None, True), (10.0, True), (1500.0, False)):
        match = Match(id=0, path="a", latitude=45.0, longitude=7.0, heading=None, similarity=0.5, distance_m=0.0,
                      accuracy_m=accuracy_m)  # fmt: skip
        doubtful = Location(photo="q", latitude=None, longitude=None, radius_m=None, confidence=0.2, unknown=True,
                            reason="", neighbours=(match,))  # fmt: skip
        index = None
        found = reranking.rerank(index, doubtful, photo, min_confidence=0.5)  # ty: ignore[invalid-argument-type]
        assert (not found.unknown) is confirmed
        if accuracy_m:
            assert found.unknown or (found.radius_m or 0) > accuracy_m
        elif accuracy_m is None:
            assert (found.radius_m, found.confidence) == (15.0, 0.95)
