"""Calibration of an index that holds the photos that its model was trained on, in a synthetic world.

A network recognizes photos of training easily: their descriptors are near the vector of their place.  Those of new
photos are drawn to a second place.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cosplace.cli.index_maintenance import calibration_text, print_info
from cosplace.errors import ConfigError
from cosplace.geo import geodesic_distances_m
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import ModelSpec
from cosplace.localization import calibration
from cosplace.localization.calibration import calibrate, compute_calibration
from cosplace.localization.confidence import as_record, calibration_error, reliability_bins
from cosplace.localization.localizer import Localizer, should_calibrate_again
from cosplace.localization.seen_photos import match_similarities, unseen_matches
from cosplace.models.training_card import TrainingCard, ValidationMatches, card_entries
from cosplace.models.views import PhotoViews, how_described
from cosplace.models.weight_files import write_weights
from cosplace.photos.metadata import time_of_timestamp
from cosplace.photos.viewpoints import Viewpoints, digest_of
from cosplace.report.calibration_page import capture_text
from tests.places import D, World, make_world, new_photos, units

NOISE = (0.3, 0.8)
DRAWN = (0.2, 0.6)  # weight of the second place
CAPTURES = 5


def photos_of(world: World, seed: int, *, captures: int = CAPTURES, is_new: bool = False):
    """Descriptors (n, D), latitudes, longitudes (n,) and photos of a world."""
    places = np.repeat(np.arange(len(world.vectors)), captures)
    rng = np.random.default_rng(seed)
    rows, lat, lon = world.capture(places, rng, NOISE)
    if is_new:
        weights = rng.uniform(*DRAWN, (len(rows), 1))
        rows = units((1 - weights) * rows + weights * world.vectors[rng.permutation(places)])
    return rows, lat, lon, new_photos(lat, lon, prefix=f"s{seed}-")


def validation(num_places: int = 250) -> ValidationMatches:
    """Matches of new photos in another world, whose database is as easy to match as that of the index."""
    world = make_world(num_places, seed=7)
    database, *_ = photos_of(world, 21)
    at = np.repeat(world.east_north_m, CAPTURES, axis=0)
    queries, *_ = photos_of(world, 22, captures=1, is_new=True)
    similarities = queries @ database.T
    best = np.argsort(-similarities, axis=1)[:, :50]
    offsets_m = at[best] - world.east_north_m[:, None]
    return ValidationMatches(
        similarities=np.take_along_axis(similarities, best, 1), east_m=offsets_m[..., 0], north_m=offsets_m[..., 1]
    )


@pytest.mark.parametrize(
    ("described", "difference"),
    [
        (None, ""),
        (how_described(None), ""),
        (
            how_described(320),
            "image_size 320 instead of none; query_policy short_side instead of native; query_size 320",
        ),
        (how_described(128), ""),  # photos of the index have 128 pixels
        (how_described(150), ""),
        (how_described(128, PhotoViews(query_policy="square", query_size=100)), "query_policy square instead of short"),
        (how_described(None) | {"usual_size": 512}, "photos of 512 pixels instead of 128 pixels)"),
        (how_described(None) | {"usual_size": 140}, ""),
        (how_described(None) | {"usual_size": None}, ""),
        (how_described(None, PhotoViews(flip=True, scales=(0.7, 1.0))), "scales 0.7 1.0 instead of 1.0; flip True"),
    ],
)
def test_validation_photos_that_were_described_in_another_way_are_reported(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    described: dict[str, Any] | None,
    difference: str,
) -> None:
    monkeypatch.setattr("cosplace.photos.opening.open_image", lambda _: np.zeros((3, 128, 200)))
    matches = replace(validation(), described=described)
    address = trained_index(tmp_path, make_world(100, seed=1), matches=matches)
    with open_index(address) as index, caplog.at_level(logging.WARNING):
        compute_calibration(index, num_altered=0)
    assert (difference in caplog.text) if difference else ("encoded differently" not in caplog.text)


@pytest.mark.parametrize(
    ("usual_size", "difference"),
    [(200, ""), (180, ""), (512, "image_size none instead of 200"), (None, "image_size none instead of 200")],
)
def test_photos_that_keep_their_size_can_be_like_resized_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, usual_size: int | None, difference: str
) -> None:
    matches = replace(validation(), described=how_described(None) | {"usual_size": usual_size})
    address = trained_index(tmp_path, make_world(100, seed=1), matches=matches, image_size=200)
    with open_index(address) as index, caplog.at_level(logging.WARNING):
        compute_calibration(index, num_altered=0)
    assert (difference in caplog.text) if difference else ("encoded differently" not in caplog.text)


def trained_index(
    folder: Path,
    world: World,
    *,
    image_size: int | None = None,
    num_unseen: int = 0,
    are_held_out: bool = False,
    matches: ValidationMatches | None = None,
    captures: int = CAPTURES,
) -> Path:
    """The address of an index of the photos of training, and of `num_unseen` others, which the card may list."""
    folder.mkdir(exist_ok=True)
    rows, lat, lon, photos = photos_of(world, 2, captures=captures)
    others, other_lat, other_lon, other_photos = photos_of(world, 3, is_new=True)
    later = [replace(photo, time=photo.time + 3600) for photo in other_photos[:num_unseen]]
    held_out = Viewpoints(
        latitudes=other_lat[:num_unseen], longitudes=other_lon[:num_unseen], headings=np.full(num_unseen, np.nan),
        times=np.array([photo.time for photo in later]),
    )  # fmt: skip
    seen = Viewpoints(
        latitudes=lat, longitudes=lon, headings=np.full(len(lat), np.nan),
        times=np.array([photo.time for photo in photos]),
    )  # fmt: skip
    without = digest_of([held_out]) if are_held_out else None
    card = card_entries(TrainingCard(photos=digest_of([seen]), matches=matches, held_out=without))
    write_weights(folder / "model.safetensors", {"a": torch.zeros(1)}, card)
    spec = ModelSpec(model=str(folder / "model.safetensors"), checksum="c" * 64, dimension=D, image_size=image_size)
    with create_index(folder / "index", spec) as index:
        index.add(photos, rows)
        if num_unseen:
            index.add(later, others[:num_unseen])
    return folder / "index"


def promised_and_kept(index: Path, world: World) -> tuple[float, float, float]:
    """Mean confidence of new photos, the share that is correct, and the calibration error."""
    rows, lat, lon, _ = photos_of(world, 99, is_new=True)
    localizer = Localizer(index, min_confidence=0)
    matches = localizer.search(rows)
    fusion = localizer.fuse(matches)
    confidences = localizer.confidences(matches, fusion)
    correct = geodesic_distances_m(fusion.latitudes, fusion.longitudes, lat, lon) <= 25
    error = calibration_error(reliability_bins(confidences, correct))
    return float(confidences.mean()), float(correct.mean()), error


def calibrated_on(index: Path, **options: Any) -> dict[str, Any]:
    with open_index(index, write=True) as opened:
        return dict(calibrate(opened, num_altered=0, **options).about)


@pytest.mark.slow
def test_confidence_of_new_photos_in_an_index_of_photos_of_training(tmp_path: Path, caplog) -> None:
    world = make_world(300)
    index = trained_index(tmp_path / "without", world)
    with caplog.at_level(logging.WARNING):
        about = calibrated_on(index)
    assert about["correction"] == "none" and about["num_training_photos"] == 1500
    assert "1,500 of 1,500 photos of the index were used to train its model" in caplog.text
    assert "--queries FOLDER" in caplog.text
    promised, kept, error = promised_and_kept(index, world)
    assert error > 0.2 and promised > kept + 0.2  # what the correction is for

    index = trained_index(tmp_path / "with", world, matches=validation())
    about = calibrated_on(index)
    assert (about["correction"], about["num_validation"]) == ("validation", 250)
    promised, kept, error = promised_and_kept(index, world)
    assert error < 0.1 and abs(promised - kept) <= 0.07


@pytest.mark.parametrize(
    ("correction", "said"),
    [
        ("left out", "calibrated on its own photos, without 1,500 photos that the model was trained on"),
        ("validation", "and 250 validation queries, because it contains 1,500 photos that the model was trained on"),
        ("none", "too high for new photos, because it contains 1,500 photos that the model was trained on"),
    ],
)
def test_an_index_says_how_it_was_calibrated_with_photos_of_training(correction: str, said: str) -> None:
    counts = {"num_training_photos": 1500} | ({"num_validation": 250} if correction == "validation" else {})
    assert said in calibration_text({"correction": correction, **counts})


@pytest.mark.slow
def test_photos_of_training_are_left_out_where_there_are_enough_others(tmp_path: Path) -> None:
    world, matches = make_world(300), validation()
    for number, (num_unseen, known, correction) in enumerate(
        [(99, None, "none"), (100, None, "left out"), (99, matches, "validation"), (100, matches, "left out")]
    ):
        index = trained_index(tmp_path / f"{number}", world, num_unseen=num_unseen, matches=known)
        assert calibrated_on(index)["correction"] == correction
    index = trained_index(tmp_path / "enough", world, num_unseen=1500)
    about = calibrated_on(index)
    assert (about["correction"], about["num_queries"], about["num_training_photos"]) == ("left out", 1500, 1500)
    promised, kept, error = promised_and_kept(index, world)
    assert error < 0.07 and abs(promised - kept) <= 0.05


@pytest.mark.parametrize(
    ("are_held_out", "enough_wrong", "num_altered"), [(True, 20, []), (True, 1000, [100]), (False, 20, [400])]
)
def test_few_photos_are_altered_if_photos_were_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, are_held_out: bool, enough_wrong: int, num_altered: list[int]
) -> None:
    """All of 400 held-out photos were altered, half of the examples: confidence was too low (docs/lab.md)."""
    index = trained_index(tmp_path, make_world(300), num_unseen=400, are_held_out=are_held_out)
    chosen: list[int] = []

    def altered(_index, _encoder, columns, rows, *_args):
        chosen.append(len(rows))
        return calibration.queries_of_index(columns, rows[:0], np.empty((0, D), np.float32))

    def without_place(*_args):
        return calibration.queries_of_index(columns, np.empty(0, np.int64), np.empty((0, D), np.float32))

    monkeypatch.setattr(calibration, "ENOUGH_WRONG", enough_wrong)
    monkeypatch.setattr(calibration, "altered_queries", altered)
    monkeypatch.setattr(calibration, "queries_without_place", without_place)
    monkeypatch.setattr(calibration, "open_index_encoder", lambda *_: None)
    with open_index(index) as opened:
        columns = opened.columns()
        about = compute_calibration(opened).about
    assert (about["correction"], about["num_queries"], chosen) == ("left out", 400, num_altered)
    assert about.get("num_held_out") == (400 if are_held_out else None)


@pytest.mark.slow
def test_a_model_that_has_not_seen_the_photos_changes_nothing(tmp_path: Path) -> None:
    world, other = make_world(60), make_world(60, seed=5, latitude=46.0)
    trained_index(tmp_path / "a", other)  # this model was trained on another world
    spec = ModelSpec(model=str(tmp_path / "a" / "model.safetensors"), checksum="c" * 64, dimension=D)
    rows, _, _, photos = photos_of(world, 3, is_new=True)
    found = []
    for address, one in ((tmp_path / "b", spec), (tmp_path / "c", ModelSpec(model="x", checksum="c", dimension=D))):
        with create_index(address, one) as index:
            index.add(photos, rows)
            found.append(as_record(compute_calibration(index, num_altered=0)))
    assert found[0]["about"].pop("num_training_photos") == 0
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_damaged_card_is_reported_and_ignored(tmp_path: Path, caplog) -> None:
    index = trained_index(tmp_path, make_world(60))
    write_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {"training_photos": "{}"})
    about = calibrated_on(index)
    assert "correction" not in about and about["training_photos"] == "unknown"
    assert "is damaged" in caplog.text and "too high for new photos" in caplog.text and "no list" not in caplog.text


def test_similarities_are_lowered_to_the_quantiles_of_the_validation() -> None:
    matches = validation(120)
    rng = np.random.default_rng(0)
    seen = np.sort(rng.uniform(0.7, 0.99, (400, 6)), axis=1)[:, ::-1].astype(np.float32)
    seen[:50, 3:] = -np.inf  # fewer positives
    seen[:20] = -np.inf  # none
    lowered = match_similarities(seen, matches)
    assert (lowered <= seen).all() and (np.isfinite(lowered) == np.isfinite(seen)).all()
    is_positive = np.hypot(matches.east_m, matches.north_m) <= 25
    unseen = np.where(is_positive, matches.similarities, -np.inf).max(axis=1)
    unseen = np.where(np.isfinite(unseen), unseen, matches.similarities[:, -1])
    for quantile in (0.1, 0.5, 0.9):
        assert np.quantile(lowered[20:, 0], quantile) == pytest.approx(np.quantile(unseen, quantile), abs=0.01)
    # The other positives keep their difference; the order of the queries stays.
    assert lowered[60:, :1] - lowered[60:, 1:] == pytest.approx(seen[60:, :1] - seen[60:, 1:], abs=1e-5)
    assert (np.argsort(lowered[20:, 0]) == np.argsort(seen[20:, 0])).mean() > 0.95
    assert match_similarities(seen[:20], matches) is seen[:20] or np.isinf(match_similarities(seen[:20], matches)).all()


def test_matches_of_the_validation_keep_their_distances() -> None:
    matches = validation(60)
    found, latitudes, longitudes = unseen_matches(matches, 60)
    assert found.similarities.shape == (180, 60) and np.isneginf(found.similarities[:, 50:]).all()
    meters = geodesic_distances_m(found.latitudes, found.longitudes, latitudes[:, None], longitudes[:, None])
    expected = np.repeat(np.hypot(matches.east_m, matches.north_m), 3, axis=0)
    assert meters[:, :50] == pytest.approx(expected, abs=0.01)


class FakeEncoder:
    """Descriptors of photos that are one color, which is the number of the photo."""

    name, dimension = "fake", D

    def __init__(self, descriptors: np.ndarray) -> None:
        self.descriptors = descriptors

    def encode(self, photos: Any) -> np.ndarray:
        if isinstance(photos, list):  # images that show no place
            rows = np.random.default_rng(0).standard_normal((len(photos), D))
            return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        color = [int(value) for value in photos[:, 0, 0]]
        return self.descriptors[[color[0] * 256 + color[1]]]


def write_new_photos(folder: Path, world: World, seed: int) -> FakeEncoder:
    """Write a new photo of each place, with its position in its name, and return the encoder that describes them."""
    folder.mkdir()
    rows, lat, lon, _ = photos_of(world, seed, captures=1, is_new=True)
    for number in range(len(rows)):
        name = f"@400000@5000000@@@{lat[number]:.7f}@{lon[number]:.7f}@{number}@@0@@@@2020@@.png"
        Image.new("RGB", (4, 4), (number // 256, number % 256, 0)).save(folder / name)
    return FakeEncoder(rows)


@pytest.mark.slow
def test_calibrating_with_new_photos(tmp_path: Path) -> None:
    world = make_world(600)
    index = trained_index(tmp_path / "trained", world)
    encoder: Any = write_new_photos(tmp_path / "new", world, 41)
    (tmp_path / "new" / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    Image.new("RGB", (4, 4)).save(tmp_path / "new" / "without_position.png")
    about = calibrated_on(index, encoder=encoder, queries=tmp_path / "new")
    assert about["num_queries"] == 600 and about["queries"] == str(tmp_path / "new")
    promised, kept, error = promised_and_kept(index, world)
    assert error < 0.05 and abs(promised - kept) <= 0.05


@pytest.mark.slow
def test_new_photos_without_positions_and_places_with_one_photo_each(tmp_path: Path) -> None:
    """No photo of the index has an answer within its place, so the examples are those of the validation queries."""
    world = make_world(150)
    index = trained_index(tmp_path / "trained", world, matches=validation(60), captures=1)
    encoder: Any = write_new_photos(tmp_path / "new", world, 41)
    about = calibrated_on(index, encoder=encoder, unlabeled=tmp_path / "new")
    assert (about["share_like_training"], about["num_unlabeled"]) == (0.0, 150)


def test_too_few_new_photos_raise_and_keep_the_former_calibration(tmp_path: Path) -> None:
    world = make_world(40)
    index = trained_index(tmp_path / "trained", world, matches=validation(60))
    calibrated_on(index)
    before = Localizer(index).calibration
    encoder: Any = write_new_photos(tmp_path / "new", make_world(9), 41)
    with pytest.raises(ConfigError, match="has 9 readable photos with a position, but calibration needs at least 10"):
        calibrated_on(index, encoder=encoder, queries=tmp_path / "new")
    after = Localizer(index).calibration
    assert before is not None and after is not None and as_record(before) == as_record(after)


# --- small indexes ---------------------------------------------------------------------------------------------------


class NoEncoder:
    """Fails when a photo is encoded."""

    name, dimension = "none", D

    def encode(self, photos: Any) -> np.ndarray:
        raise AssertionError("a photo was encoded")


def small_index(folder: Path) -> PhotoIndex:
    """60 photos, one of each place: located as if new, none has a positive."""
    index = create_index(folder, ModelSpec(model="x", checksum="c", dimension=D))
    rows, _, _, photos = photos_of(make_world(60), 2, captures=1)
    index.add(photos, rows)
    return index


def test_a_small_index_that_grows_but_stays_small_still_answers(tmp_path: Path) -> None:
    """Calibrating it again would fail again, so nothing must ask for that."""
    rows, _, _, photos = photos_of(make_world(60), 2, captures=1)
    with create_index(tmp_path / "index", ModelSpec(model="x", checksum="c", dimension=D)) as index:
        index.add(photos[:30], rows[:30])
        with pytest.raises(ConfigError, match="the index has 30"):
            calibrate(index, num_altered=0)
        assert not should_calibrate_again(index)
        index.add(photos[30:], rows[30:])  # twice as large
        assert should_calibrate_again(index)
        assert not Localizer(index).locate_descriptors(rows[:1])[0].calibrated
        with pytest.raises(ConfigError, match="add 40 more photos"):
            Localizer(index, precision=0.9)


def test_a_weights_file_without_its_card_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, _, _, photos = photos_of(make_world(300), 2)
    for model, is_reported in ((str(tmp_path / "model.pth"), True), ("resnet18_512", False)):
        caplog.clear()
        with create_index(tmp_path / model, ModelSpec(model=model, checksum="c", dimension=D)) as index:
            index.add(photos, rows)
            about = calibrate(index, num_altered=0).about
        assert (about.get("training_photos") == "unknown") == is_reported
        assert ("has no list of the photos that it was trained on" in caplog.text) == is_reported
        assert ("is unknown" in calibration_text(about)) == is_reported


@pytest.mark.parametrize(
    ("days", "is_said"),
    [(0.0, True), (27.0, True), (28.0, False), (np.nan, False)],
    ids=["day", "month", "February and March", "unknown"],
)
def test_photos_of_one_month_say_nothing_about_other_seasons(
    tmp_path: Path, days: float, is_said: bool, capsys
) -> None:
    rows, _, _, photos = photos_of(make_world(300), 2)
    times = 1e9 + 86_400 * np.linspace(0, days, len(photos))
    photos = [replace(photo, time=float(time)) for photo, time in zip(photos, times, strict=True)]
    with create_index(tmp_path / "index", ModelSpec(model="resnet18_512", checksum="c", dimension=D)) as index:
        index.add(photos, rows)
        about = calibrate(index, num_altered=0).about
        print_info(index.info())
    assert about.get("days") == (None if np.isnan(days) else days)
    assert bool(capture_text(about)) == is_said == ("all photos were taken within a month" in capsys.readouterr().out)
    assert not capture_text({**about, "queries": "folder"})


def test_photos_with_only_a_year_may_be_of_any_season(tmp_path: Path) -> None:
    rows, _, _, photos = photos_of(make_world(300), 2)
    photos = [replace(photo, time=time_of_timestamp("2014")) for photo in photos]
    with create_index(tmp_path / "index", ModelSpec(model="resnet18_512", checksum="c", dimension=D)) as index:
        index.add(photos, rows)
        assert "days" not in calibrate(index, num_altered=0).about


def test_a_small_index_answers_marked_as_uncalibrated(tmp_path: Path) -> None:
    encoder: Any = NoEncoder()
    with small_index(tmp_path / "index") as index:
        assert Localizer(index).calibration is None  # no flag is needed, as it is too small to calibrate
        with pytest.raises(ConfigError, match="Calibration needs 100 photos with a position, the index has 60"):
            calibrate(index, encoder=encoder)  # before any photo is encoded
        assert "has 60" in index.info()["calibration_failed"]["reason"]
    rows, *_ = photos_of(make_world(60), 5, captures=1)
    localizer = Localizer(tmp_path / "index")
    answers = localizer.locate_descriptors(rows)
    known = [answer for answer in answers if not answer.unknown]
    assert len(known) > 30 and not any(answer.calibrated for answer in answers)
    for answer in known:
        assert answer.radius_m is None and answer.reason.startswith("uncalibrated")
    with pytest.raises(ConfigError, match=r"--precision needs a calibrated index.* add 40 more photos, then .*omit"):
        Localizer(tmp_path / "index", precision=0.9)
    # An index that has grown since may be calibrated.
    with open_index(tmp_path / "index", write=True) as index:
        more, _, _, photos = photos_of(make_world(60), 6)
        index.add(photos, more)
        with pytest.raises(ConfigError, match="has not been calibrated"):
            Localizer(index)
        calibrate(index, num_altered=0)
        assert Localizer(index).locate_descriptors(rows)[0].calibrated and not index.info()["calibration_failed"]
