"""Viewpoints: photos of a set are found again by position, heading and time; others are not."""

import base64
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosplace.errors import CheckpointError
from cosplace.photos.image_list import image_list
from cosplace.photos.metadata import metadata_from_name
from cosplace.photos.names import format_image_name
from cosplace.photos.viewpoints import (
    SEEN,
    UNDECIDED,
    UNSEEN,
    ViewpointDigest,
    Viewpoints,
    digest_from_text,
    digest_of,
    digest_text,
    merge_digests,
    viewpoints_of_names,
)


def random_viewpoints(count: int, seed: int) -> Viewpoints:
    rng = np.random.default_rng(seed)
    return Viewpoints(
        latitudes=rng.uniform(-80, 80, count), longitudes=rng.uniform(-180, 180, count),
        headings=rng.integers(0, 360, count).astype(float), times=rng.integers(0, 2**31, count).astype(float),
    )  # fmt: skip


def as_an_index_stores_them(names: list[str]) -> Viewpoints:
    found = [metadata_from_name(name) for name in names]
    return Viewpoints(
        latitudes=np.array([one.latitude for one in found]), longitudes=np.array([one.longitude for one in found]),
        headings=np.array([one.heading for one in found], np.float32), times=np.array([one.time for one in found]),
    )  # fmt: skip


def name_of(number: int, *, heading: int = 30, timestamp: str = "201907", with_degrees: bool = True) -> str:
    name = format_image_name(
        utm_east=550_000 + 1.37 * number, utm_north=4_173_300 + 0.51 * number, zone=10, letter="S", heading=heading,
        latitude=37.7 + 0.51 * number / 111_000, longitude=-122.4327, pano_id=f"p{number}", timestamp=timestamp,
    )  # fmt: skip
    fields = name.split("@")
    return name if with_degrees else "@".join([*fields[:5], "", "", *fields[7:]])


@pytest.mark.parametrize("with_degrees", [False, True])
@pytest.mark.parametrize("timestamp", ["", "2019", "201907", "20190731", "201907312359", "20190731235959", "2019-07"])
def test_photos_named_in_training_are_found_in_an_index(timestamp: str, *, with_degrees: bool) -> None:
    names = [name_of(number, timestamp=timestamp, with_degrees=with_degrees) for number in range(300)]
    digest = digest_of([viewpoints_of_names(image_list(Path(), names))])
    assert digest.num_photos == 300 and digest.every == 1
    assert (digest.status(as_an_index_stores_them(names)) == SEEN).all()
    for other in ({"heading": 31}, {"timestamp": "201807"}):
        if "timestamp" in other and timestamp in ("", "2019-07"):
            continue  # a photo whose time is unknown counts for any time
        changed = [name_of(n, **{"timestamp": timestamp, **other}, with_degrees=with_degrees) for n in range(300)]
        assert (digest.status(as_an_index_stores_them(changed)) == UNSEEN).all()


def test_a_heading_of_zero_is_as_good_as_none() -> None:
    """Names with 0 for each heading are trained on as they are, but an index of them has no headings."""
    zero = replace(random_viewpoints(50, 4), headings=np.zeros(50))
    unknown, east = (replace(zero, headings=np.full(50, heading)) for heading in (np.nan, 90.0))
    for digest, same in ((digest_of([zero]), unknown), (digest_of([unknown]), zero)):
        assert (digest.status(same) == SEEN).all() and (digest.status(same.without_times()) == UNSEEN).all()
    assert (digest_of([zero]).status(east) == UNSEEN).all()


def test_an_unknown_heading_of_the_set_matches_any() -> None:
    """Names without headings are trained on, and an index of the same photos has headings from EXIF."""
    points = random_viewpoints(200, 5)
    digest = digest_of([replace(points, headings=np.full(200, np.nan))])
    assert (digest.status(points) == SEEN).all()
    assert (digest.status(replace(points, latitudes=points.latitudes + 0.001)) == UNSEEN).all()
    assert (digest.status(replace(points, times=points.times + 60)) == UNSEEN).all()


def test_times_of_another_time_zone() -> None:
    """A dataset that was imported with --timezone is trained on, and an index has the times of the cameras' clocks."""
    points = random_viewpoints(900, 6)
    is_summer = np.arange(900) < 400
    digest = digest_of([points])
    local = replace(points, times=points.times - np.where(is_summer, 7, 8) * 3600)
    assert (digest.status(local) == SEEN).all()
    at_end = digest_of([replace(points, times=points.times + 1)])  # as labels write .999 s
    assert (at_end.status(replace(local, times=local.times + 0.999)) == SEEN).all()
    assert (digest.status(replace(points, times=points.times + 1234)) == UNSEEN).all()
    few = replace(points, times=points.times + np.where(np.arange(900) < 20, 3600, 1234))
    assert (digest.status(few) == UNSEEN).all()  # photos of one view, exactly an hour apart


@pytest.mark.parametrize("fraction", ["", ".5", ".99", ".999", ".9999"])
def test_fractions_of_a_second(fraction: str) -> None:
    names = [name_of(number, timestamp=f"20190731235959{fraction}") for number in range(100)]
    digest = digest_of([viewpoints_of_names(image_list(Path(), names))])
    times = np.full(100, 1_564_617_599 + float(f"0{fraction}"))
    indexed = replace(as_an_index_stores_them(names), times=times)
    assert (digest.status(indexed) == SEEN).all()
    assert (digest.status(replace(indexed, times=times + 2)) == UNSEEN).all()


def test_positions_may_differ_by_a_rounding_step_but_not_by_three() -> None:
    points = random_viewpoints(500, 1)
    digest = digest_of([points])
    near = replace(points, latitudes=points.latitudes + 0.9e-5, longitudes=points.longitudes - 0.9e-5)
    assert (digest.status(near) == SEEN).all()
    assert (digest.status(replace(points, latitudes=points.latitudes + 3e-5)) == UNSEEN).all()
    nowhere = replace(points, longitudes=np.full(500, np.nan))
    assert (digest.status(nowhere) == UNDECIDED).all()
    assert len(digest_of([nowhere]).hashes) == 0


def test_a_large_set_keeps_a_part_and_is_never_wrong_about_its_photos() -> None:
    points = [random_viewpoints(5000, seed) for seed in range(4)]
    digest = digest_of(points, max_hashes=3000)
    assert digest.every == 8 and 2000 < len(digest.hashes) <= 3000 and digest.num_photos == 20_000
    for part in points:
        status = digest.status(part)
        assert (status != UNSEEN).all() and np.mean(status == SEEN) == pytest.approx(1 / 8, abs=0.02)
    others = digest.status(random_viewpoints(5000, 9))
    assert np.mean(others == SEEN) < 0.001 and np.mean(others == UNSEEN) == pytest.approx(1 / 8, abs=0.02)


def test_merged_digests_have_the_photos_of_both() -> None:
    a, b = random_viewpoints(4000, 1), random_viewpoints(300, 2)
    merged = merge_digests(digest_of([a], max_hashes=1000), digest_of([b]))
    assert (merged.num_photos, merged.every) == (4300, 4)
    for part in (a, b):
        assert (merged.status(part) != UNSEEN).all() and (merged.status(part) == SEEN).any()
    both = merge_digests(digest_of([a]), digest_of([b]))
    assert both.hashes.tolist() == digest_of([a, b]).hashes.tolist()


def test_a_digest_as_text_and_back() -> None:
    for digest in (
        digest_of([random_viewpoints(2000, 3)]), digest_of([]),
        ViewpointDigest(num_photos=2, every=1, hashes=np.array([0, 2**32 - 1], np.uint32)),
    ):  # fmt: skip
        back = digest_from_text(digest_text(digest))
        assert (back.num_photos, back.every) == (digest.num_photos, digest.every)
        assert back.hashes.tolist() == digest.hashes.tolist()
    assert len(digest_text(digest_of([random_viewpoints(2000, 3)]))) < 2000 * 5


@pytest.mark.slow
def test_damaged_texts_raise() -> None:
    record = json.loads(digest_text(digest_of([random_viewpoints(50, 3)])))
    bomb = base64.b85encode(zlib.compress(bytes(200_000_000), 9)).decode()
    too_high = base64.b85encode(zlib.compress(np.full(3, 2**32 - 1, "<u4").tobytes())).decode()
    for text in (
        "", "[]", "{}", json.dumps(record | {"hashes": "é"}), json.dumps(record | {"hashes": bomb}),
        json.dumps(record | {"hashes": record["hashes"][:-20]}), json.dumps(record | {"every": 0}),
        json.dumps(record | {"photos": None}), json.dumps(record | {"every": 2**32}), "[" * 200_000,
        json.dumps(record | {"photos": math.inf}), json.dumps(record | {"hashes": too_high}),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="training photos in the model card is damaged"):
            digest_from_text(text)
