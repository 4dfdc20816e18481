"""Calibration of an index that shows each place in one capture: validation queries of the model are used as well,
or alone if the model has learned this capture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosplace.cli.index_maintenance import calibration_text, print_info
from cosplace.errors import ConfigError
from cosplace.geo import geodesic_distances_m
from cosplace.index.photo_index import create_index, open_index
from cosplace.index.records import ModelSpec
from cosplace.localization.calibration import calibrate
from cosplace.localization.chosen_photos import share_near, share_revisited
from cosplace.localization.localizer import Localizer
from cosplace.models.training_card import TrainingCard, ValidationMatches, card_entries
from cosplace.models.views import how_described
from cosplace.models.weight_files import write_weights
from cosplace.photos.viewpoints import Viewpoints, digest_of
from cosplace.report.calibration_page import MANY_TRAINED, calibration_page, capture_text, trained_text
from tests.localization.test_seen_photos import NoEncoder, photos_of, promised_and_kept, validation
from tests.places import D, World, make_world, new_photos, units

YEAR = 365 * 86_400.0


ELSEWHERE = Viewpoints(
    latitudes=np.array([-30.0]), longitudes=np.array([3.0]), headings=np.array([0.0]), times=np.array([0.0])
)


def model_of(
    folder: Path,
    matches: ValidationMatches | None,
    trained_on: Viewpoints = ELSEWHERE,
    held_out: Viewpoints | None = None,
) -> ModelSpec:
    """A model with a card."""
    folder.mkdir()
    without = None if held_out is None else digest_of([held_out])
    card = card_entries(TrainingCard(photos=digest_of([trained_on]), matches=matches, held_out=without))
    write_weights(folder / "model.safetensors", {"a": torch.zeros(1)}, card)
    return ModelSpec(model=str(folder / "model.safetensors"), checksum="c" * 64, dimension=D)


def index_of(
    folder: Path,
    world: World,
    *,
    matches: ValidationMatches | None,
    years_apart: float = 0.0,
    trained: slice = slice(0, 0),
    held_out: slice | None = None,
    times_are_known: bool = True,
) -> Path:
    """An index; the captures of a place are hours or years apart.

    trained, held_out: photos that the model was trained on, and that were held out.
    """
    rows, lat, lon, photos = photos_of(world, 2)
    times = 1e9 + 3600.0 * np.arange(len(photos)) + years_apart * YEAR * (np.arange(len(photos)) % 5)
    if not times_are_known:
        times[:] = np.nan
    headings = np.array([photo.heading for photo in photos])
    points = Viewpoints(latitudes=lat, longitudes=lon, headings=headings, times=times)
    seen = points.take(np.arange(len(times))[trained])
    without = None if held_out is None else points.take(np.arange(len(times))[held_out])
    spec = model_of(folder, matches, seen if len(seen.times) else ELSEWHERE, without)
    with create_index(folder / "index", spec) as index:
        index.add([replace(photo, time=float(time)) for photo, time in zip(photos, times, strict=True)], rows)
    return folder / "index"


def calibrated(index: Path) -> dict[str, Any]:
    with open_index(index, write=True) as opened:
        return dict(calibrate(opened, num_altered=0).about)


@pytest.mark.slow
def test_photos_of_one_capture_promise_less_with_validation_queries(tmp_path: Path) -> None:
    """New photos are harder than those of the index, and as hard as validation queries."""
    world = make_world(300)
    index = index_of(tmp_path / "without", world, matches=None)
    assert "num_validation" not in calibrated(index)
    promised, kept, _ = promised_and_kept(index, world)
    before = promised - kept
    index = index_of(tmp_path / "with", world, matches=validation())
    about = calibrated(index)
    assert (about["share_revisited"], about["share_like_index"], about["num_validation"]) == (0.0, 0.5, 250)
    promised, kept, _ = promised_and_kept(index, world)
    assert before > 0.2 and -0.05 < promised - kept < 0.6 * before
    text = calibration_text(about)
    assert "on its own photos and 250 validation queries, because it shows each place in one year only" in text
    text = calibration_text({**about, "share_revisited": 0.703})
    assert "because it shows the places of 30% of its photos in one year only" in text
    assert not capture_text({**about, "days": 1.0})


@pytest.mark.parametrize(
    ("trained", "held_out", "num_located"),
    [
        (slice(600), slice(600, 800), 200 + 175),  # a quarter of the others, as of those that would be trained on
        (slice(600), slice(600, 690), 900),  # too few
        (slice(600), None, 900),
        (slice(1300), slice(1300, 1500), 200),  # no others
        (slice(300), slice(300, 400), 100 + 275),
    ],
)
def test_photos_that_were_not_held_out_count_as_often_as_in_the_index(
    tmp_path: Path, trained: slice, held_out: slice | None, num_located: int
) -> None:
    """Else those of small classes, at the edges of the area, count too often: confidence is too low (docs/lab.md)."""
    index = index_of(tmp_path / "x", make_world(300), matches=None, years_apart=1.0, trained=trained, held_out=held_out)
    about = calibrated(index)
    assert (about["correction"], about["num_queries"]) == ("left out", num_located)


@pytest.mark.slow
@pytest.mark.parametrize(("years_apart", "is_said"), [(1.0, True), (0.0, False)], ids=["years", "capture"])
def test_an_index_of_many_training_photos_says_that_confidence_may_be_too_low(
    tmp_path: Path, capsys, years_apart: float, is_said: bool
) -> None:
    """New photos with the light and camera of one of several years are easier than validation queries."""
    address = index_of(
        tmp_path / "trained", make_world(300), matches=validation(), years_apart=years_apart, trained=slice(None)
    )
    with open_index(address, write=True) as index:
        calibration = calibrate(index, num_altered=0)
        print_info(index.info())
    about = calibration.about
    assert about["correction"] == "validation" and about["num_training_photos"] == 1500 > MANY_TRAINED
    assert about["share_revisited"] == years_apart
    text = capsys.readouterr().out
    assert ("confidence may be too low" in text and "--unlabeled FOLDER" in text) == is_said
    page = calibration_page(calibration, "index")
    assert ("<code>cosplace index calibrate --unlabeled FOLDER</code>" in page) == is_said
    assert bool(trained_text(about)) == is_said
    for other in ({"unlabeled": "folder"}, {"correction": "left out"}, {"num_training_photos": MANY_TRAINED - 1}):
        assert not trained_text({**about, **other})
    without_times = {key: value for key, value in about.items() if key != "share_revisited"}
    assert trained_text(without_times)  # they may be of several years


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["years", "described", "few"])
def test_validation_queries_are_left_out(tmp_path: Path, reason: str) -> None:
    """Places with captures of several years say more; queries described differently or too few say too little."""
    world, matches = make_world(120), validation()
    if reason == "described":
        matches = replace(matches, described=how_described(320))
    if reason == "few":
        matches = replace(
            matches,
            similarities=matches.similarities[:49], east_m=matches.east_m[:49], north_m=matches.north_m[:49],
        )  # fmt: skip
    years_apart = float(reason == "years")
    about = calibrated(index_of(tmp_path / "with", world, matches=matches, years_apart=years_apart))
    without = calibrated(index_of(tmp_path / "without", world, matches=None, years_apart=years_apart))
    assert about.pop("share_revisited", None) == (1.0 if reason == "years" else None)
    assert {**about, "seconds": 0} == {**without, "seconds": 0}


@pytest.mark.slow
def test_a_capture_that_the_model_has_learned_is_like_validation_queries_only(tmp_path: Path) -> None:
    world = make_world(300)
    index = index_of(tmp_path / "half", world, matches=validation(), trained=slice(0, None, 2))
    about = calibrated(index)
    assert (about["correction"], about["share_revisited"], about["share_like_index"]) == ("left out", 0.0, 0.0)
    assert (about["num_training_photos"], about["num_validation"]) == (750, 250)
    promised, kept, _ = promised_and_kept(index, world)
    assert -0.06 < promised - kept < 0.06  # 0.10 if half of the examples are photos of the index
    text = calibration_text(about)
    assert "on its own photos (without 750 photos that the model was trained on) and 250 validation queries" in text


def test_a_capture_of_other_places_than_the_training_photos_is_not_learned(tmp_path: Path) -> None:
    world = make_world(300)
    about = calibrated(index_of(tmp_path / "some", world, matches=validation(), trained=slice(0, 500)))
    assert (about["share_revisited"], about["share_like_index"], about["num_training_photos"]) == (0.0, 0.5, 500)
    about = calibrated(index_of(tmp_path / "years", world, matches=validation(), trained=slice(0, 750), years_apart=1))
    assert about["share_revisited"] == 1.0 and "share_like_index" not in about and "num_validation" not in about


@pytest.mark.parametrize("years_apart", [0.0, 1.0], ids=["capture", "years"])
def test_new_photos_of_one_place_are_too_few_next_to_training_photos(tmp_path: Path, years_apart: float) -> None:
    """They are right or wrong together, so nothing can be fitted to them; validation queries can show more."""
    world = make_world(300)
    rows, lat, lon, photos = photos_of(world, 2)
    new_rows, _, _, new = photos_of(make_world(1, seed=3, latitude=46.0), 3, captures=120)
    headings, times = np.full(len(lat), np.nan), np.array([photo.time for photo in photos])
    spec = model_of(
        tmp_path / "model", validation(), Viewpoints(latitudes=lat, longitudes=lon, headings=headings, times=times)
    )
    with create_index(tmp_path / "index", spec) as index:
        index.add(photos, rows)
        index.add(
            [replace(photo, time=photo.time + years_apart * YEAR * row) for row, photo in enumerate(new)], new_rows
        )
    about = calibrated(tmp_path / "index")
    assert (about["correction"], about["num_training_photos"], about["num_validation"]) == ("validation", 1500, 250)


def test_without_capture_times_training_photos_may_be_of_the_same_capture(tmp_path: Path) -> None:
    world = make_world(300)
    index = index_of(tmp_path / "half", world, matches=validation(), trained=slice(0, None, 2), times_are_known=False)
    about = calibrated(index)
    assert about["share_like_index"] == 0.0 and "share_revisited" not in about
    assert "and 250 validation queries, because most capture times are unknown;" in calibration_text(about)
    about = calibrated(index_of(tmp_path / "none", world, matches=validation(), times_are_known=False))
    assert "num_validation" not in about
    index = index_of(tmp_path / "far", world, matches=validation(), trained=slice(0, 500), times_are_known=False)
    assert "num_validation" not in calibrated(index)  # the others are not near the training photos


@pytest.mark.parametrize("reason", ["described", "few"])
def test_a_learned_capture_without_suitable_validation_queries_is_reported(tmp_path: Path, caplog, reason: str) -> None:
    world, matches = make_world(300), validation()
    matches = replace(matches, described=how_described(320)) if reason == "described" else None
    with caplog.at_level("WARNING"):
        about = calibrated(index_of(tmp_path / "half", world, matches=matches, trained=slice(0, None, 2)))
    if reason == "described":
        assert "were encoded differently" in caplog.text and about["num_validation"] == 250
    else:
        assert "trained on 750 photos of the index, and others near them may be of the same capture" in caplog.text
        assert "--queries FOLDER" in caplog.text and "num_validation" not in about
        caplog.clear()
        calibrated(index_of(tmp_path / "far", world, matches=None, trained=slice(0, 500)))
        assert "WARNING" not in caplog.text  # the others are not near the training photos


def test_share_of_photos_near_others(tmp_path: Path) -> None:
    rows, lat, lon, photos = photos_of(make_world(120), 2, captures=2)
    with create_index(tmp_path / "index", ModelSpec(model="x", checksum="c", dimension=D)) as index:
        index.add(photos, rows)
        columns = index.columns()
    some, others = np.arange(0, 200, 3), np.arange(150, 240)
    near = geodesic_distances_m(lat[some][:, None], lon[some][:, None], lat[others][None], lon[others][None]) <= 25
    expected = near.any(axis=1).mean()
    assert 0.1 < expected < 0.9
    assert share_near(columns, some, others) == pytest.approx(expected)
    assert share_near(columns, some, np.arange(0)) == 0.0


def test_share_of_photos_with_another_year(tmp_path: Path) -> None:
    """Compare with all pairs of photos, by distances on the ellipsoid."""
    rng = np.random.default_rng(3)
    rows, lat, lon, photos = photos_of(make_world(80), 2, captures=2)
    times = np.where(
        rng.random(len(photos)) < 0.1, np.nan, 1e9 + YEAR * rng.choice([0.0, 0.4, 0.8, 1.1, 3.0], len(photos))
    )
    photos = [replace(photo, time=float(time)) for photo, time in zip(photos, times, strict=True)]
    with create_index(tmp_path / "index", ModelSpec(model="x", checksum="c", dimension=D)) as index:
        index.add(photos, rows)
        columns = index.columns()
    near = geodesic_distances_m(lat[:, None], lon[:, None], lat[None], lon[None]) <= 25
    apart = np.abs(times[:, None] - times[None]) >= YEAR
    known = np.isfinite(times)
    expected = (near & apart).any(axis=1)[known].mean()
    assert 0.2 < expected < 0.8
    assert share_revisited(columns, np.arange(len(photos))) == pytest.approx(expected)
    assert share_revisited(columns, np.flatnonzero(~known)) is None
    assert share_revisited(columns, np.arange(0)) is None
    few = np.concatenate([np.flatnonzero(~known), np.flatnonzero(known)[: (~known).sum() - 1]])
    assert share_revisited(columns, few) is None and share_revisited(columns, few[1:]) is not None


@pytest.mark.slow
def test_sites_far_apart_are_calibrated_like_validation_queries(tmp_path: Path) -> None:
    """Without the photos of its own site, a photo of the index is harder to locate than a new photo of that site."""
    world, found = make_world(300), []
    rng = np.random.default_rng(8)
    places = np.repeat(np.arange(len(world.vectors)), 2)
    rows, lat, lon = world.capture(places, rng, (1.2, 1.8))  # two sites of each place, which look different
    lon[::2] += 12 / 78_800  # meters to degrees
    photos = new_photos(lat, lon)
    for name, matches in (("without", None), ("with", validation())):
        with create_index(tmp_path / f"{name}-index", model_of(tmp_path / name, matches)) as index:
            index.add(photos, rows)
            about = dict(calibrate(index, num_altered=0).about)
        new = units(rows + 0.8 * rng.standard_normal(rows.shape) / np.sqrt(D))
        localizer = Localizer(tmp_path / f"{name}-index", min_confidence=0)
        answers = localizer.locate_descriptors(new)
        at = np.array([(answer.latitude, answer.longitude) for answer in answers])
        is_right = geodesic_distances_m(at[:, 0], at[:, 1], lat, lon) <= 25
        found.append(np.mean([answer.confidence for answer in answers]) - is_right.mean())
    assert about["share_like_index"] == 0.0
    assert found[0] < -0.2 and abs(found[1]) < abs(found[0]) / 2


@pytest.mark.slow
def test_photos_without_another_one_of_their_place_are_not_compared(tmp_path: Path) -> None:
    """They have no correct answer, neither as they are nor with other similarities."""
    world, rng = make_world(300), np.random.default_rng(8)
    rows, lat, lon = world.capture(np.repeat(np.arange(300), 2), rng, (0.6, 0.9))
    lon[::2] += 12 / 78_800  # meters to degrees
    alone = make_world(900, seed=4, latitude=45.5)
    other_rows, other_lat, other_lon = alone.capture(np.arange(900), rng, (0.3, 0.8))
    photos = new_photos(np.concatenate([lat, other_lat]), np.concatenate([lon, other_lon]))
    with create_index(tmp_path / "index", model_of(tmp_path / "model", validation())) as index:
        index.add(photos, np.concatenate([rows, other_rows]))
        about = calibrate(index, num_altered=0).about
    assert about["share_like_index"] == 0.0


@pytest.mark.parametrize("num_altered", [0, 500])
def test_validation_queries_do_not_replace_photos_of_the_index(tmp_path: Path, num_altered: int) -> None:
    """No photo has another one of its place: as without the model's card, this is said before a photo is encoded."""
    rows, _, _, photos = photos_of(make_world(150), 2, captures=1)
    encoder: Any = NoEncoder()
    with create_index(tmp_path / "index", model_of(tmp_path / "model", validation())) as index:
        index.add(photos, rows)
        with pytest.raises(ConfigError, match="there are 0 correct and 300 wrong answers"):
            calibrate(index, encoder=encoder, num_altered=num_altered)
        assert index.info()["calibration_failed"]["num_photos"] == 150
