"""From neighbours to positions with a confidence that means something."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from cosplace.errors import ConfigError, CosPlaceError, PhotoIndexError
from cosplace.index.filters import SearchFilter
from cosplace.index.photo_index import create_index, open_index
from cosplace.localization.answers import (
    CSV_COLUMNS,
    Unreadable,
    as_json,
    csv_text,
    geojson_text,
    json_text,
    plain_text,
)
from cosplace.localization.calibration import calibrate
from cosplace.localization.confidence import (
    CURVE,
    Examples,
    as_record,
    calibration_error,
    fit_calibration,
    from_record,
    lower_bound,
    monotone,
    reliability_bins,
)
from cosplace.localization.fusion import fuse
from cosplace.localization.localizer import Localizer, read_calibration
from cosplace.localization.plane import east_north_m, ground_distances_m, in_space, moved, on_ground
from cosplace.localization.signals import FEATURES, SIGNS, features_of
from cosplace.report.calibration_page import calibration_page, write_calibration_page
from tests.places import SPEC, D, make_world, new_photos, units, world_index

EARTH = Geod(ellps="WGS84")
latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)
ways = st.tuples(st.floats(0, 360), st.floats(0.5, 5000))  # direction in degrees, meters


# --- the ground ------------------------------------------------------------------------------------------------------


@given(latitudes, longitudes)
def test_a_position_comes_back_from_space(lat: float, lon: float) -> None:
    back_lat, back_lon = on_ground(in_space(lat, lon))
    assert back_lat == pytest.approx(lat, abs=1e-9)
    assert EARTH.inv(lon, lat, float(back_lon), float(back_lat))[2] < 1e-3  # at a pole any longitude is right


@given(latitudes, longitudes, ways)
def test_distances_are_those_of_the_ellipsoid_everywhere(lat: float, lon: float, way: tuple[float, float]) -> None:
    other_lon, other_lat, _ = EARTH.fwd(lon, lat, *way)
    found = float(ground_distances_m(lat, lon, other_lat, other_lon))
    assert found == pytest.approx(way[1], rel=1e-6, abs=1e-6)
    assert found == pytest.approx(float(np.linalg.norm(east_north_m(other_lat, other_lon, lat, lon))), rel=1e-6)


@given(latitudes, longitudes, latitudes, longitudes)
def test_long_distances_are_right_to_a_fifth_of_a_percent(lat: float, lon: float, lat_2: float, lon_2: float) -> None:
    true = EARTH.inv(lon, lat, lon_2, lat_2)[2]
    found = float(ground_distances_m(lat, lon, lat_2, lon_2))
    assert found == pytest.approx(true, rel=0.002 if true < 1e7 else 0.08, abs=1e-3)


@given(st.floats(-89.9, 89.9), longitudes, ways)
def test_a_way_east_and_north_leads_there_and_back(lat: float, lon: float, way: tuple[float, float]) -> None:
    east, north = way[1] * np.sin(np.radians(way[0])), way[1] * np.cos(np.radians(way[0]))
    there = moved(lat, lon, east, north)
    assert east_north_m(*there, lat, lon) == pytest.approx([east, north], abs=1e-3)
    direction, _, length = EARTH.inv(lon, lat, float(there[1]), float(there[0]))
    assert length == pytest.approx(way[1], rel=1e-5)
    if abs(lat) < 80 and way[1] > 1:
        assert (direction - way[0] + 180) % 360 - 180 == pytest.approx(0, abs=0.01)


# --- fusing ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(latitudes, longitudes, st.integers(0, 2**32 - 1))
def test_the_fused_position_is_in_the_middle_anywhere_on_earth(lat: float, lon: float, seed: int) -> None:
    # On the antimeridian, on a UTM border or at a pole: the mean of equal neighbours around a point is that point.
    offsets = np.random.default_rng(seed).uniform(-6, 6, (4, 2))
    offsets -= offsets.mean(axis=0)
    around = moved(lat, lon, offsets[:, 0], offsets[:, 1])
    fusion = fuse(np.full((1, 4), 0.8), around[0][None], around[1][None])
    assert fusion.agreeing.all()
    assert EARTH.inv(lon, lat, float(fusion.longitudes[0]), float(fusion.latitudes[0]))[2] < 1e-3
    true = [EARTH.inv(lon, lat, float(o), float(a))[2] for a, o in zip(*around, strict=True)]
    assert fusion.distances_m[0] == pytest.approx(true, abs=2e-3)


def test_agreeing_neighbours_beat_a_better_one_alone() -> None:
    lat, lon = moved(45.0, 7.0, np.array([500.0, 0, 3, -3]), np.array([0.0, 0, 2, 1]))
    fusion = fuse(np.array([[0.75, 0.74, 0.73, 0.73]]), lat[None], lon[None])
    assert fusion.agreeing.tolist() == [[False, True, True, True]]
    assert ground_distances_m(fusion.latitudes[0], fusion.longitudes[0], 45.0, 7.0) < 2
    # But not one that is better by far.
    fusion = fuse(np.array([[0.95, 0.74, 0.73, 0.73]]), lat[None], lon[None])
    assert fusion.agreeing.tolist() == [[True, False, False, False]]


def test_neighbours_without_position_do_not_vote_and_no_position_is_no_answer() -> None:
    nan = np.nan
    fusion = fuse(
        np.array([[0.9, 0.5, -np.inf], [0.9, 0.5, -np.inf]]),
        np.array([[nan, 45.0, nan], [nan, nan, nan]]), np.array([[nan, 7.0, nan], [nan, nan, nan]]),
    )  # fmt: skip
    assert fusion.votes[0].tolist() == [0, 1, 0]
    assert fusion.latitudes[0] == pytest.approx(45.0)
    assert np.isnan(fusion.latitudes[1]) and not fusion.agreeing[1].any()
    assert np.isnan(features_of(np.array([[0.9, 0.5, -np.inf]] * 2), fusion)[1]).all()


def test_features_do_not_change_when_the_index_grows_by_other_places() -> None:
    rng = np.random.default_rng(0)
    lat, lon = moved(45.0, 7.0, np.array([0.0, 3, -2, 900, 2000]), np.zeros(5))
    few = np.array([[0.8, 0.75, 0.7, 0.5, 0.45]])
    far = moved(45.0, 7.0, rng.uniform(5e3, 9e3, 15), np.zeros(15))
    many = np.concatenate([few, np.sort(rng.uniform(0.3, 0.42, (1, 15)))[:, ::-1]], axis=1)
    all_lat, all_lon = np.concatenate([lat, far[0]])[None], np.concatenate([lon, far[1]])[None]
    a = features_of(few, fuse(few, lat[None], lon[None]))[0]
    b = features_of(many, fuse(many, all_lat, all_lon))[0]
    own = [number for number, name in enumerate(FEATURES) if name != "contrast"]
    assert b[own] == pytest.approx(a[own], abs=0.02)


# --- confidence ------------------------------------------------------------------------------------------------------


def made_examples(count: int, seed: int, shift: float = 0.0) -> Examples:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, len(FEATURES)))
    logits = 1.5 * features[:, 0] + 1.0 * features[:, 1] + shift
    right = rng.random(count) < 1 / (1 + np.exp(-logits))
    return Examples(
        features=features, right=right, errors_m=np.where(right, rng.exponential(5, count).clip(0, 25), 300.0),
        elsewhere=~right & (rng.random(count) < 0.3), folds=rng.integers(0, 5, count),
    )  # fmt: skip


def test_confidence_is_a_probability_on_examples_never_seen() -> None:
    calibration = fit_calibration(made_examples(3000, 0), share_elsewhere=0.15)
    fresh = made_examples(4000, 1)
    found = calibration.confidences(fresh.features)
    assert calibration.calibration_error < 0.05
    assert calibration_error(reliability_bins(found, fresh.right)) < 0.05
    assert found[fresh.right].mean() > found[~fresh.right].mean() + 0.2
    assert (fresh.errors_m[fresh.right] <= calibration.radius_m(found)[fresh.right]).mean() == pytest.approx(
        0.9, abs=0.03
    )


def test_a_better_list_never_lowers_confidence() -> None:
    calibration = fit_calibration(made_examples(800, 3))
    rng = np.random.default_rng(4)
    for feature, sign in enumerate(SIGNS):
        rows = rng.standard_normal((200, len(FEATURES)))
        better = rows.copy()
        better[:, feature] += sign * rng.uniform(0, 2, 200)
        assert (calibration.confidences(better) >= calibration.confidences(rows) - 1e-12).all()


def test_a_promised_precision_is_kept_by_answers_never_seen() -> None:
    calibration = fit_calibration(made_examples(4000, 5, shift=1.0))
    fresh = made_examples(8000, 6, shift=1.0)
    found = calibration.confidences(fresh.features)
    for precision in (0.85, 0.9, 0.95):
        answered = found >= calibration.least_confidence(precision)
        assert answered.mean() > 0.02
        assert fresh.right[answered].mean() >= precision
        assert (~answered)[fresh.elsewhere].mean() >= precision - 0.01


def test_a_precision_out_of_reach_says_what_can_be_had() -> None:
    calibration = fit_calibration(made_examples(120, 7))
    with pytest.raises(ConfigError, match=r"more than this index can promise: ask for less, at most 0[.]") as caught:
        calibration.least_confidence(0.9999)
    best = float(str(caught.value).split("at most ")[1].split(",")[0])
    assert 0 < calibration.least_confidence(best) <= 1
    for nonsense in (0.0, 1.0, -3.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            calibration.least_confidence(nonsense)


def test_too_few_examples_are_refused() -> None:
    examples = made_examples(100, 8)
    with pytest.raises(ConfigError, match="index more photos"):
        fit_calibration(replace(examples, right=np.ones(100, bool)))
    with pytest.raises(ConfigError, match="index more photos"):
        fit_calibration(replace(examples, folds=np.zeros(100, np.int64)))


def test_a_record_keeps_a_calibration_through_json_and_refuses_damage() -> None:
    calibration = fit_calibration(made_examples(600, 9), about={"num_photos": 600})
    record = json.loads(json.dumps(as_record(calibration)))
    back = from_record(record)
    rows = np.random.default_rng(1).standard_normal((50, len(FEATURES)))
    assert back.confidences(rows) == pytest.approx(calibration.confidences(rows), abs=1e-6)
    assert back.least_confidence(0.8) == pytest.approx(calibration.least_confidence(0.8))
    assert record["curve_columns"] == list(CURVE) and record["about"] == {"num_photos": 600}
    for key, value in (("version", 0), ("features", ["x"]), ("weights", "?"), ("weights", [1.0]), ("bias", None)):
        with pytest.raises(ConfigError, match="cosplace index calibrate"):
            from_record(record | {key: value})
    record.pop("radii_m")
    with pytest.raises(ConfigError, match="damaged"):
        from_record(record)


def test_small_pieces() -> None:
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
        calibrate(index, num_changed=0)
    return world, address


@pytest.mark.slow
def test_an_index_learns_a_confidence_that_holds_for_photos_it_never_saw(calibrated) -> None:
    world, address = calibrated
    localizer = Localizer(address)
    rng = np.random.default_rng(5)
    places = rng.integers(0, len(world.vectors), 1500)
    rows, lat, lon = world.capture(places, rng, (0.3, 1.2))
    answers = localizer.locate_descriptors(rows)
    neighbours = localizer.search(rows)
    fusion = localizer.fuse(neighbours)
    errors_m = ground_distances_m(fusion.latitudes, fusion.longitudes, lat, lon)
    confidences = np.array([answer.confidence for answer in answers])
    assert localizer.calibration is not None and localizer.calibration.calibration_error < 0.05
    assert calibration_error(reliability_bins(confidences, errors_m <= 25)) < 0.05
    right = errors_m <= 25
    assert (errors_m <= localizer.calibration.radius_m(confidences))[right].mean() == pytest.approx(0.9, abs=0.06)
    first_m = ground_distances_m(neighbours.latitudes[:, 0], neighbours.longitudes[:, 0], lat, lon)
    assert np.median(errors_m) < 0.8 * np.median(first_m)  # fusing is worth it
    assert (errors_m <= 25).mean() >= (first_m <= 25).mean()


def test_photos_from_elsewhere_are_unknown(calibrated) -> None:
    world, address = calibrated
    localizer = Localizer(address, precision=0.95)
    unknown: list[bool] = []
    for seed in range(9, 14):
        rows, _, _ = make_world(300, seed=seed).capture(np.arange(300), np.random.default_rng(seed), (0.3, 1.2))
        unknown += [answer.unknown for answer in localizer.locate_descriptors(rows)]
    assert np.mean(unknown) >= 0.95
    own, _, _ = world.capture(np.arange(300), np.random.default_rng(1), (0.3, 0.5))
    assert np.mean([answer.unknown for answer in localizer.locate_descriptors(own)]) < 0.3


def test_an_answer_carries_its_evidence(calibrated) -> None:
    world, address = calibrated
    row, lat, lon = world.capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    answer = Localizer(address, k=3).locate_descriptors(row, ["me.jpg"])[0]
    assert (answer.photo, answer.unknown, answer.reason) == ("me.jpg", False, "")
    assert ground_distances_m(answer.latitude, answer.longitude, lat[0], lon[0]) < 10
    assert len(answer.neighbours) == 3
    for neighbour in answer.neighbours:
        away = ground_distances_m(neighbour.latitude, neighbour.longitude, answer.latitude, answer.longitude)
        assert neighbour.distance_m == pytest.approx(float(away), abs=0.01)
    assert set(as_json(answer)) == {
        "photo", "latitude", "longitude", "radius_m", "confidence", "unknown", "reason", "neighbours",
    }  # fmt: skip
    assert set(as_json(answer)["neighbours"][0]) == {
        "id", "path", "latitude", "longitude", "heading", "similarity", "distance_m",
    }  # fmt: skip
    assert as_json(answer)["neighbours"][0]["heading"] is None


def test_unknown_says_why_and_tells_no_position(calibrated, tmp_path: Path) -> None:
    world, address = calibrated
    row, _, _ = world.capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    doubtful = Localizer(address, min_confidence=1.0).locate_descriptors(row)[0]
    assert (
        doubtful.unknown and doubtful.reason.endswith("needs 1.00)") and doubtful.latitude is doubtful.radius_m is None
    )
    nowhere = Localizer(address).locate_descriptors(row, where=SearchFilter(near=(0, 0, 10)))[0]
    assert nowhere.unknown and nowhere.reason == "no photo of the index passes the filter" and not nowhere.neighbours
    with create_index(tmp_path / "plain", SPEC) as index:
        index.add(new_photos(np.full(4, np.nan), np.full(4, np.nan)), units(np.ones((4, D)) + np.eye(4, D)))
    plain = Localizer(tmp_path / "plain", uncalibrated=True).locate_descriptors(row)[0]
    assert plain.unknown and plain.reason == "none of the 4 most similar photos has a position"
    assert len(plain.neighbours) == 4 and plain.neighbours[0].distance_m is None


def test_filters_move_the_answer(calibrated) -> None:
    world, address = calibrated
    row, lat, lon = world.capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    localizer = Localizer(address, min_confidence=0.0)
    assert localizer.locate_descriptors(row, where=SearchFilter(near=(lat[0], lon[0], 30)))[0].latitude is not None
    far = localizer.locate_descriptors(row, where=SearchFilter(bbox=(lon[0] + 0.003, 44, 8, 46)))[0]
    assert far.longitude is not None and far.longitude > lon[0] + 0.003
    assert far.confidence < 0.5


def test_an_index_without_calibration_is_refused_unless_asked_for(tmp_path: Path) -> None:
    world = make_world(20)
    with world_index(tmp_path / "index", world) as index:
        assert read_calibration(index) is None
    with pytest.raises(ConfigError, match=r"no calibration.*cosplace index calibrate .*--uncalibrated"):
        Localizer(tmp_path / "index")
    with pytest.raises(ConfigError, match="needs a calibrated index"):
        Localizer(tmp_path / "index", uncalibrated=True, precision=0.9)
    row, _, _ = world.capture(np.array([3]), np.random.default_rng(1), (0.1, 0.1))
    answer = Localizer(tmp_path / "index", uncalibrated=True).locate_descriptors(row)[0]
    assert answer.reason.startswith("uncalibrated") and 0.5 < answer.confidence <= 1 and answer.radius_m is None


def test_mistakes_of_callers(calibrated, tmp_path: Path) -> None:
    _, address = calibrated
    for options, message in (
        ({"min_confidence": 0.5, "precision": 0.5}, "contradict"), ({"min_confidence": 2}, "from 0 to 1"),
        ({"min_confidence": float("nan")}, "from 0 to 1"), ({"precision": 7}, "between 0 and 1"), ({"k": 0}, "k is 0"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Localizer(address, **options)
    with pytest.raises(PhotoIndexError):
        Localizer(tmp_path / "none")
    with pytest.raises(CosPlaceError):  # the model of the made world is no file
        Localizer(address).locate("x.jpg")
    with pytest.raises(ConfigError, match="3 frames come with 2 names"):
        Localizer(address).locate_sequence(np.ones((3, D)), ["a", "b"], [0, 1, 2])


def test_an_index_too_small_to_calibrate_says_so(tmp_path: Path) -> None:
    with (
        world_index(tmp_path / "index", make_world(1), captures=3) as index,
        pytest.raises(ConfigError, match="too few"),
    ):
        calibrate(index, num_changed=0)


@pytest.mark.slow
def test_calibration_does_not_depend_on_blocks_and_repeats(calibrated, monkeypatch) -> None:
    _, address = calibrated
    from cosplace.localization import calibration as calibrating

    with open_index(address) as index:
        once = calibrating.measure(index, num_changed=0)
        monkeypatch.setattr(calibrating, "BLOCK_ROWS", 97)
        again = calibrating.measure(index, num_changed=0)
    assert as_record(once) == as_record(again)


def test_pseudo_queries_find_neither_themselves_nor_their_twin(tmp_path: Path) -> None:
    # All photos of a place are from one moment and spot: what could be found of it is hidden, nothing is learned right.
    world = make_world(40)
    rng = np.random.default_rng(0)
    places = np.repeat(np.arange(40), 3)
    rows, _, _ = world.capture(places, rng, (0.1, 0.1))
    at = world.east_north_m[places]
    lat, lon = moved(world.latitude, world.longitude, at[:, 0], at[:, 1])
    with create_index(tmp_path / "index", SPEC) as index:
        index.add([replace(photo, time=1e9) for photo in new_photos(lat, lon)], rows)
        with pytest.raises(ConfigError, match="learned from 0 right"):
            calibrate(index, num_changed=0)


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


# --- forms -----------------------------------------------------------------------------------------------------------


def test_forms_of_an_answer(calibrated) -> None:
    world, address = calibrated
    row, _, _ = world.capture(np.array([7]), np.random.default_rng(1), (0.3, 0.3))
    known = Localizer(address).locate_descriptors(row, ["a,b.jpg"])[0]
    unknown = Localizer(address, min_confidence=1.0).locate_descriptors(row, ["u.jpg"])[0]
    rows = [(known, {"agrees": True}), (unknown, None), (Unreadable(photo="x.jpg", error="no picture"), None)]
    found = json.loads(json_text(rows, is_list=True))
    assert [entry["photo"] for entry in found] == ["a,b.jpg", "u.jpg", "x.jpg"]
    assert found[0]["exif"] == {"agrees": True} and found[2] == {"photo": "x.jpg", "error": "no picture"}
    assert json.loads(json_text(rows[:1], is_list=False)) == found[0]
    shapes = json.loads(geojson_text(rows))
    assert shapes["features"][0]["geometry"]["coordinates"] == [found[0]["longitude"], found[0]["latitude"]]
    assert shapes["features"][1]["geometry"] is None is shapes["features"][2]["geometry"]
    table = csv_text([answer for answer, _ in rows]).splitlines()
    assert table[0] == ",".join(CSV_COLUMNS) and table[1].startswith('"a,b.jpg",45.') and len(table) == 4
    assert table[3] == "x.jpg,,,,,True,no picture,,"
    text = plain_text(known)
    assert "https://www.openstreetmap.org/?mlat=45." in text and "confidence" in text and text.count(".jpg") == 4
    assert "unknown: not sure enough (confidence" in plain_text(unknown)


def test_the_page_shows_numbers_and_loads_nothing(calibrated) -> None:
    _, address = calibrated
    calibration = read_calibration(open_index(address))
    assert write_calibration_page(calibration, str(address)) == address / "calibration.html"
    page = (address / "calibration.html").read_text()
    assert f"{calibration.calibration_error:.3f}" in page and page.count("<polyline") == 3 and "<circle" in page
    assert "http" not in page and "<script" not in page
    assert "&lt;b&gt;" in calibration_page(calibration, "<b>")
