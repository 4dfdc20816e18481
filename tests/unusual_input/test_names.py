"""Unusual file names and positions in groups and eval: the values are those of pyproj and of the formulas."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pyarrow.parquet import read_table
from pyproj import Geod, Transformer

from cosplace.photos.metadata import read_metadata
from cosplace.photos.scanning import scan_images
from tests.unusual_input.samples import (
    exif_block,
    jpeg_with,
    place_pixels,
    rationals,
    run,
    text,
    utm_name,
    write_model,
    write_photo,
)

GROUPS = "--N", 1, "--L", 1, "--groups_num", 1, "--no_cache"
SYDNEY = -33.85678, 151.21530


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.pth")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # logs/ is created there


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def groups(capsys: pytest.CaptureFixture, folder: Path, *words: object) -> tuple[int, dict, str]:
    code, out, err = run(capsys, "groups", folder, "--json", *words)
    return code, json.loads(out) if out else {}, err


def evaluate(capsys: pytest.CaptureFixture, model: Path, *words: object) -> tuple[int, dict[int, float], str]:
    """Exit code, recalls by N and errors of `cosplace eval`."""
    code, out, err = run(capsys, "eval", "--model", model, "--device", "cpu", "--num_workers", 0, *words)
    return code, {int(n): float(value) for n, value in re.findall(r"R@(\d+): ([\d.]+)", out)}, err


# --- one name --------------------------------------------------------------------------------------------------------


def test_latitude_and_longitude_decide_where_the_letter_is_a_hemisphere() -> None:
    """pyproj: this position is Sydney; as a band, the S of its southern hemisphere is 7,000 km to the north."""
    east, north = Transformer.from_crs(4326, 32756).transform(*SYDNEY)
    name = f"@{east:.2f}@{north:.2f}@56@S@{SYDNEY[0]}@{SYDNEY[1]}@@@90@@@@@@.jpg"
    found = read_metadata(Path(name), b"")
    *_, away_m = Geod(ellps="WGS84").inv(found.longitude, found.latitude, SYDNEY[1], SYDNEY[0])
    assert away_m < 1


def test_a_name_at_0_0_has_no_position() -> None:
    """Cameras without a fix write zeros."""
    found = read_metadata(Path("@0@0@10@S@0@0@@@90@@@@@@.jpg"), b"")
    assert np.isnan(found.latitude) and np.isnan(found.longitude)


def test_latitude_and_longitude_decide_where_the_utm_position_is_0_0(tmp_path: Path, capsys, model: Path) -> None:
    """pyproj: the positions of the names with UTM; the same photo is then found at its place by eval and in groups."""
    names = [utm_name(-33.85, 151.2 + 0.01 * place, zone=56, note=str(place)) for place in range(3)]
    lost = [re.sub(r"^@[^@]*@[^@]*@", "@0@0@", name) for name in names]
    whole, _, err = groups(capsys, touch(tmp_path / "utm", *names), *GROUPS, "--min_images_per_class", 1)
    found, content, _ = groups(capsys, touch(tmp_path / "lost", *lost), *GROUPS, "--min_images_per_class", 1)
    assert (whole, found) == (0, 0) and content["groups"] == [{"num_classes": 3, "num_images": 3}] and "0, 0" not in err
    for place, name in enumerate(lost):
        write_photo(tmp_path / "test" / "database", name, place)
        write_photo(tmp_path / "test" / "queries", names[place], place, variant=1)
        expected = -33.85, 151.2 + 0.01 * place
        metadata = read_metadata(Path(name), b"")
        *_, away_m = Geod(ellps="WGS84").inv(metadata.longitude, metadata.latitude, expected[1], expected[0])
        assert away_m < 1
    code, recalls, err = evaluate(capsys, model, "--test_set_folder", tmp_path / "test", "--recall_values", 1, 3)
    assert code == 0 and recalls[3] == 100.0 and "left out" not in err  # each query has its positive
    code, out, _ = run(capsys, "validate", tmp_path / "test")
    assert "which means unknown" not in out


@pytest.mark.parametrize("zone", ["", "10"])
def test_a_zone_that_is_not_that_of_the_longitude_is_not_used(tmp_path: Path, capsys, zone: str) -> None:
    """pyproj: in zone 10, 25 m at Sydney are a third longer or more; without a zone, others may be on a local map."""
    names = [f"@{30 * place}@0@{zone}@@-33.85{place}@151.2@@@0@@@@@{place}@.jpg" for place in range(3)]
    code, content, err = groups(capsys, touch(tmp_path / "train", *names), *GROUPS, "--min_images_per_class", 1)
    assert code == 0 and content["groups"][0]["num_images"] == 2
    assert "1 of 3 photos are in no class: their position is 0, 0" in err


# --- classes and groups ----------------------------------------------------------------------------------------------


def test_photos_at_0_0_are_in_no_class(tmp_path: Path, capsys) -> None:
    """Counted by hand: two places with two photos each."""
    names = [utm_name(37.7, -122.4 - 0.001 * place, zone=10, note=f"{n}") for place in range(2) for n in range(2)]
    folder = touch(tmp_path / "train", *names, "@0@0@10@S@0@0@@@0@@@@@a@.jpg", "@0@0@10@S@0@0@@@0@@@@@b@.jpg")
    code, found, _ = groups(capsys, folder, *GROUPS, "--min_images_per_class", 2)
    assert (code, found["groups"]) == (0, [{"num_classes": 2, "num_images": 4}])


def test_equal_directions_are_in_one_class(tmp_path: Path, capsys) -> None:
    """The formula: heading modulo 360."""
    headings = 0, 360, 720, -360
    names = [utm_name(37.7, -122.4 - 0.001 * place, zone=10, heading=h) for place in range(2) for h in headings]
    code, found, _ = groups(capsys, touch(tmp_path / "train", *names), *GROUPS, "--min_images_per_class", 4)
    assert (code, found["groups"]) == (0, [{"num_classes": 2, "num_images": 8}])


@pytest.mark.parametrize("heading", [65535, 2**32 - 10, -721])
def test_numbers_that_are_not_headings_are_unknown_or_a_warning(tmp_path: Path, capsys, heading: int) -> None:
    """The definition: a direction is within two turns."""
    names = [utm_name(37.7, -122.4 - 0.001 * place, zone=10, heading=h) for place, h in enumerate((90, heading))]
    assert np.isnan(read_metadata(Path(names[1]), b"").heading)
    folder = touch(tmp_path / "train", *names)
    code, found, err = groups(capsys, folder, *GROUPS, "--min_images_per_class", 1)
    assert (code, found["groups"]) == (0, [{"num_classes": 2, "num_images": 2}])
    assert f"1 of 2 headings are more than two turns, for example {heading} in" in err and names[1] in err
    assert "turns" not in groups(capsys, folder, *GROUPS, "--min_images_per_class", 1, "--alpha", 360)[2]


def test_names_without_a_heading_are_told_of_alpha_360(tmp_path: Path, capsys) -> None:
    names = [utm_name(37.7, -122.4 - 0.001 * place, zone=10, heading="") for place in range(2)]
    code, _, err = groups(capsys, touch(tmp_path / "train", *names), *GROUPS)
    assert code == 2 and err.count("\n") == 1 and "--alpha 360" in err


def test_names_that_contradict_themselves_are_a_warning(tmp_path: Path, capsys) -> None:
    """pyproj: 0.001 degrees of latitude are 111 m there, and 0.0004 degrees are 44 m."""
    right, near, wrong = (utm_name(37.7, -122.4 - 0.001 * place, zone=10) for place in range(3))
    names = right, near.replace("@37.7000000@", "@37.7004000@"), wrong.replace("@37.7000000@", "@37.7010000@")
    code, found, err = groups(capsys, touch(tmp_path / "train", *names), *GROUPS, "--min_images_per_class", 1)
    assert (code, found["groups"]) == (0, [{"num_classes": 3, "num_images": 3}])
    assert "in 1 of 3 file names" in err and f"111 m in {names[2]}" in err


@pytest.mark.parametrize(("alpha", "L"), [(50, 2), (60, 4)])
def test_sectors_that_do_not_divide_the_circle_are_reported(tmp_path: Path, capsys, alpha: int, L: int) -> None:
    """The formula: the sectors of a group are equally far apart only if alpha x L divides 360."""
    names = [utm_name(37.7, -122.4 - 0.001 * place, zone=10, heading=h) for place in range(2) for h in range(0, 360, 5)]
    folder = touch(tmp_path / "train", *names)
    sectors = "--N", 1, "--groups_num", 1, "--no_cache", "--min_images_per_class", 1
    given = {"alpha": alpha, "L": L}
    for _ in range(2):  # one sentence about alpha, and one about L
        _, _, err = groups(capsys, folder, *sectors, *(word for flag in given for word in (f"--{flag}", given[flag])))
        given |= {flag: int(value) for flag, value in re.findall(r"`--(alpha|L) (\d+)`", err)[:1]}
    assert 360 % (given["alpha"] * given["L"]) == 0


def test_places_with_equal_coordinates_in_two_zones_are_two_classes(tmp_path: Path, capsys) -> None:
    """pyproj: the same east and north in zones 10 and 11 are 530 km apart."""
    west, east = utm_name(37.7, -123.0, zone=10), utm_name(37.7, -117.0, zone=11)
    assert west.split("@")[1:3] == east.split("@")[1:3]
    code, found, _ = groups(capsys, touch(tmp_path / "train", west, east), *GROUPS, "--min_images_per_class", 1)
    assert (code, found["groups"]) == (0, [{"num_classes": 2, "num_images": 2}])


def test_a_photo_without_a_zone_is_in_no_class_if_the_others_are_in_several(tmp_path: Path, capsys) -> None:
    names = [utm_name(37.7, -123.0, zone=10), utm_name(37.7, -117.0, zone=11), "@500000@4172000@@S@@@@@0@@@@@@.jpg"]
    folder = touch(tmp_path / "train", *names)
    code, _, err = run(capsys, "groups", folder, *GROUPS, "--min_images_per_class", 1)
    assert code == 2
    error = err.splitlines()[-1]
    assert error.startswith(f"error: {folder / names[2]}: it has no UTM zone, but the other photos are in several.")


def test_one_range_of_headings_needs_no_headings(tmp_path: Path, capsys) -> None:
    """With --alpha 360, all headings are in one sector."""
    names = [utm_name(37.7, -122.4 - 0.001 * place, zone=10, heading="") for place in range(2)]
    words = *GROUPS, "--alpha", 360, "--min_images_per_class", 1
    code, found, _ = groups(capsys, touch(tmp_path / "train", *names), *words)
    assert (code, found.get("groups")) == (0, [{"num_classes": 2, "num_images": 2}])


def is_trainable(found: dict, groups_num: int) -> bool:
    used = found["groups"][:groups_num]
    return len(used) == groups_num and all(group["num_classes"] >= 2 for group in used)


def test_following_the_advice_of_groups_once_is_enough(tmp_path: Path, capsys) -> None:
    """Training needs two classes in each group that it uses: the advice for 300 photos of a walk gives them."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.uniform(0.00002, 0.00008, 300))
    headings = rng.integers(0, 360, 300)
    names = [utm_name(37.7, -122.4 + x, zone=10, heading=int(h)) for x, h in zip(steps, headings, strict=True)]
    folder = touch(tmp_path / "train", *names)
    code, found, _ = groups(capsys, folder, "--no_cache")
    assert not is_trainable(found, 8) and code == 2
    flags = dict(re.findall(r"--(\w+) (\d+)", found["advice"]))
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    code, found, _ = groups(capsys, folder, "--no_cache", *words)
    assert code == 0 and is_trainable(found, int(flags.get("groups_num", 8)))


# --- recalls ---------------------------------------------------------------------------------------------------------


def write_split(folder: Path, database: list[str], queries: list[str]) -> Path:
    for place, name in enumerate(database):
        write_photo(folder / "database", name, place)
    write_photo(folder / "database", utm_name(37.9, -120.5, zone=10), 9)  # another place
    for place, name in enumerate(queries):
        write_photo(folder / "queries", name, place, variant=1)
    return folder


@pytest.mark.parametrize(
    ("query", "match", "recall"),
    [
        (utm_name(37.7, -120.00005, zone=10), utm_name(37.7, -119.99995, zone=11), 100.0),
        (utm_name(37.7, -123.0, zone=10), utm_name(37.7, -117.0, zone=11), 0.0),
    ],
    ids=["9 m apart across the border", "same coordinates, 530 km apart"],
)
def test_distances_between_zones_are_those_on_earth(tmp_path, capsys, model, query, match, recall) -> None:
    """pyproj: the geodesic distance decides which of the two is within 25 m."""
    degrees = [tuple(map(float, name.split("@")[5:7])) for name in (query, match)]
    (lat, lon), (other_lat, other_lon) = degrees
    *_, distance_m = Geod(ellps="WGS84").inv(lon, lat, other_lon, other_lat)
    assert (distance_m <= 25) == (recall == 100)
    folder = write_split(tmp_path / "test", [match], [query])
    assert evaluate(capsys, model, "--test_set_folder", folder, "--recall_values", 1)[:2] == (0, {1: recall})


def test_a_zone_without_letter_among_others_south_of_the_equator_is_refused(tmp_path, capsys, model) -> None:
    """pyproj: taken as north, the query would be 10,000 km away from its match."""
    match = utm_name(-33.86, 151.2, zone=56)
    fields = match.split("@")
    fields[4:7] = "", "", ""  # neither letter nor latitude and longitude
    folder = write_split(tmp_path / "test", [match], ["@".join(fields)])
    code, _, err = evaluate(capsys, model, "--test_set_folder", folder, "--recall_values", 1)
    assert code == 2 and "its zone has no letter" in err and "Correct fields 3 and 4" in err
    code, out, _ = run(capsys, "validate", folder)
    assert code == 2 and "no letter of the UTM zone" in out
    code, _, err = run(capsys, "groups", write_split(tmp_path / "train", [match, "@".join(fields)], []) / "database")
    assert code == 2 and "its zone has no letter" in err


@pytest.mark.parametrize("zone", ["56", ""], ids=["no letter", "no zone"])
def test_validate_says_that_an_index_takes_such_positions_as_unknown(tmp_path, capsys, model, zone: str) -> None:
    for place in range(12):
        fields = utm_name(-33.86, 151.2 + 0.001 * place, zone=56).split("@")
        fields[3:7] = zone, "", "", ""
        write_photo(tmp_path / "photos", "@".join(fields), place)
    code, out, _ = run(capsys, "validate", tmp_path / "photos")
    assert code == 0 and ("unknown position for index and import" in out) == bool(zone)
    assert "index build" not in out and "(fields 3 to 6)" in out
    code, _, err = run(capsys, "index", "build", tmp_path / "photos", "--model", model, "--to", tmp_path / "index")
    assert code == 2 and "None of the 12 photos" in err


def test_degrees_in_the_fields_of_utm_are_a_warning(tmp_path, capsys, model) -> None:
    towns = (37.7, -122.4), (-33.9, 151.2)
    places = [(latitude + 0.0001 * step, longitude) for latitude, longitude in towns for step in range(12)]
    names = [f"@{latitude:.6f}@{longitude:.6f}@.jpg" for latitude, longitude in places]
    for place, name in enumerate(names):
        write_photo(tmp_path / "test" / "database", name, place)
        write_photo(tmp_path / "test" / "queries", name, place, variant=1)
    code, _, err = evaluate(capsys, model, "--test_set_folder", tmp_path / "test", "--recall_values", 1)
    assert code == 0 and "such as -33.8989 and 151.2, look like degrees" in err and "cosplace import" in err


def test_a_street_along_a_meridian_across_the_equator_is_on_earth(tmp_path, capsys, model) -> None:
    for folder, variant in (("database", 0), ("queries", 1)):
        for place in range(4):
            (tmp_path / "test" / folder).mkdir(parents=True, exist_ok=True)
            latitude = -0.0015 + 0.001 * place
            gps = {1: text("NS"[latitude < 0]), 2: rationals((round(abs(latitude) * 1e7), 10**7), (0, 1), (0, 1)),
                   3: text("E"), 4: rationals((89, 10), (0, 1), (0, 1))}  # fmt: skip
            raw = jpeg_with(exif=exif_block(gps=gps), pixels=place_pixels(place, variant))
            (tmp_path / "test" / folder / f"{place}.jpg").write_bytes(raw)
    code, _, err = evaluate(capsys, model, "--test_set_folder", tmp_path / "test", "--recall_values", 1)
    assert code == 0 and "not places on Earth" not in err


def test_photos_that_a_list_has_twice_count_once(tmp_path, capsys, model) -> None:
    names = [utm_name(37.7, -122.4 - 0.001 * place, zone=10) for place in range(6)]
    folder = write_split(tmp_path / "test", names, names[:2])
    for lines in ([names[0], *names[:2]], [*names[:2], names[0]]):
        (folder / "queries_images_paths.txt").write_text("\n".join(sorted(lines)) + "\n")
        found = scan_images(folder / "queries")
        assert [found.name(row) for row in range(len(found))] == sorted(names[:2])
        code, _, err = evaluate(capsys, model, "--test_set_folder", folder, "--recall_values", 1)
        assert code == 0 and "one line repeats another; each photo counts once" in err


def test_recalls_that_a_small_database_cannot_have_are_left_out(tmp_path, capsys, model) -> None:
    """Recall@10 needs ten photos in the database."""
    names = [utm_name(37.7, -122.4 - 0.001 * place, zone=10) for place in range(6)]
    code, recalls, _ = evaluate(capsys, model, "--test_set_folder", write_split(tmp_path / "test", names, names[:2]))
    assert (code, list(recalls)) == (0, [1, 5])


def test_the_images_folder_of_a_dataset_is_found(tmp_path, capsys, model) -> None:
    """The layout of the published archive: pitts30k/images/test."""
    names = [utm_name(37.7, -122.4, zone=10)]
    write_split(tmp_path / "pitts30k" / "images" / "test", names, names)
    words = "--dataset_folder", tmp_path / "pitts30k", "--queries_folder", "queries", "--recall_values", 1
    assert evaluate(capsys, model, *words)[:2] == (0, {1: 100.0})


def test_skipped_files_are_counted_and_named(tmp_path, capsys, model) -> None:
    """Counted by hand: one HEIC photo and one video."""
    names = [utm_name(37.7, -122.4, zone=10)]
    folder = write_split(tmp_path / "test", names, names)
    (folder / "database" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "database" / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    code, _, err = evaluate(capsys, model, "--test_set_folder", folder, "--recall_values", 1)
    assert code == 0 and "IMG_1.HEIC" in err and "clip.mp4" in err


def test_the_expected_match_faces_as_the_query_does(tmp_path, capsys, model) -> None:
    """The formula: of twelve photos at one position, the one with the nearest heading."""
    place = utm_name(37.7, -122.4, zone=10, heading=92)
    folder = tmp_path / "test"
    write_photo(folder / "queries", place, place=0, variant=1)
    for heading in range(0, 360, 30):  # at the position of the query, but of other scenes
        write_photo(folder / "database", utm_name(37.7, -122.4, zone=10, heading=heading), 1 + heading)
    write_photo(folder / "database", utm_name(37.8, -122.4, zone=10), place=0)  # the same scene, 11 km away
    code, recalls, _ = evaluate(capsys, model, "--test_set_folder", folder, "--recall_values", 1)
    assert (code, recalls) == (0, {1: 0.0})
    (table,) = tmp_path.glob("logs/*/*/queries.parquet")
    (expected,) = read_table(table)["expected"].to_pylist()
    assert expected.split("@")[9] == "90"
