"""Labels: positions, headings and times of tables and EXIF, as precise as their source, anywhere on Earth."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyproj import CRS, Transformer

from cosplace.errors import DatasetError
from cosplace.photos.image_list import image_list
from cosplace.photos.labels import PhotoFields, choose_map, describe_map, with_headings, with_labels, with_positions
from cosplace.photos.metadata import metadata_from_name
from cosplace.photos.names import earth_positions, optional_fields, utm_fields, without_rows, zones_of
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import PhotoRecord
from tests.synthetic_dataset import place_image
from tests.table_samples import GEOD, around, write_exif_photo, write_records

LATITUDES = st.floats(-89.9, 89.9) | st.sampled_from([0.0, -0.0, 1e-9, -1e-9, 72.0, -80.0, 84.0])
LONGITUDES = st.floats(-180, 180) | st.sampled_from([0.0, 6.0, -180.0, 180.0, 179.9999999, -177.0, 5.9999999])
HEADINGS = st.floats(0, 360, exclude_max=True)
TIMES = st.floats(-4e9, 7e9).map(lambda seconds: round(seconds, 6))


def fields_of(latitudes, longitudes, **others) -> PhotoFields:
    latitudes, longitudes = np.array(latitudes, np.float64), np.array(longitudes, np.float64)
    names = ("headings", "times", "accuracies_m", "pitches", "rolls", "altitudes_m")
    columns = {name: np.array(others.get(name, np.full(len(latitudes), np.nan)), np.float64) for name in names}
    return PhotoFields(latitudes=latitudes, longitudes=longitudes, **columns)


def labeled(fields: PhotoFields):
    names = image_list(Path(), [f"{row:05d}.jpg" for row in range(len(fields.latitudes))])
    return with_labels(names, fields, choose_map(fields))


# --- one photo -------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(LATITUDES, LONGITUDES, HEADINGS, TIMES)
def test_values_survive_anywhere_on_earth(latitude: float, longitude: float, heading: float, time: float) -> None:
    images = labeled(fields_of([latitude], [longitude], headings=[heading], times=[time], accuracies_m=[4.25]))
    known = metadata_from_name(images.label(0))
    if max(abs(latitude), abs(longitude)) <= 5e-9:  # half a millimeter from 0, 0
        assert not known.has_position
        return
    assert GEOD.inv(longitude, latitude, known.longitude, known.latitude)[2] < 0.01
    assert abs((known.heading - heading + 180) % 360 - 180) < 0.001
    assert known.time == pytest.approx(time, abs=2e-6)
    assert known.accuracy_m == 4.25


@settings(max_examples=50, deadline=None)
@given(LATITUDES, LONGITUDES)
def test_east_and_north_are_those_of_pyproj(latitude: float, longitude: float) -> None:
    images = labeled(fields_of([latitude], [longitude]))
    utm = utm_fields(images)
    zone = int((longitude + 180) // 6) % 60 + 1
    if max(abs(latitude), abs(longitude)) <= 5e-9:
        assert not utm.known[0]
        return
    assert utm.zones[0] == (-zone if latitude < 0 else zone)
    to_utm = Transformer.from_crs(4326, CRS.from_dict({"proj": "utm", "zone": zone, "south": latitude < 0}))
    assert utm.east_north[0] == pytest.approx(to_utm.transform(latitude, longitude), abs=0.01)


@pytest.mark.parametrize(
    ("latitude", "longitude"), [(math.nan, 5.0), (0.0, 0.0), (91.0, 5.0), (5.0, 190.0), (math.inf, 5.0)]
)
def test_positions_that_are_not_on_earth_are_unknown(latitude: float, longitude: float) -> None:
    images = labeled(fields_of([latitude, 45.0], [longitude, 7.0]))
    assert utm_fields(images).known.tolist() == [False, True]
    assert not metadata_from_name(images.label(0)).has_position


@pytest.mark.parametrize(
    ("heading", "expected"), [(370.0, 10.0), (-90.0, 270.0), (360.0, 0.0), (720.0, 0.0), (65535.0, math.nan)]
)
def test_headings_are_in_the_circle_or_unknown(heading: float, expected: float) -> None:
    images = labeled(fields_of([45.0], [7.0], headings=[heading]))
    assert metadata_from_name(images.label(0)).heading == pytest.approx(expected, nan_ok=True)
    assert optional_fields(images, ("heading",)).tolist() == [[pytest.approx(expected, nan_ok=True)]]


def test_whole_seconds_have_no_fraction() -> None:
    images = labeled(fields_of([45.0] * 2, [7.0] * 2, times=[1_600_000_000.0, 1_600_000_000.5]))
    assert "@20200913122640@" in images.label(0) and "@20200913122640.5@" in images.label(1)


# --- several photos --------------------------------------------------------------------------------------------------

BORDERS = {
    "zone": (45.0, 12.0), "equator": (0.0, 9.0), "antimeridian": (-17.0, 180.0), "equator and zone": (0.0, 6.0),
    "pole": (-89.999, 0.0), "svalbard": (78.2, 15.6), "arctic antimeridian": (71.0, -180.0),
}  # fmt: skip


@pytest.mark.parametrize("radius_m", [2_000.0, 200_000.0])
@pytest.mark.parametrize("where", BORDERS)
def test_distances_across_borders_are_meters_on_the_ground(where: str, radius_m: float) -> None:
    latitude, longitude = BORDERS[where]
    records = around(latitude, longitude, 300, radius_m)
    fields = fields_of([one.latitude for one in records], [one.longitude for one in records])
    images, center = labeled(fields), choose_map(fields)
    if where == "svalbard" and radius_m < 10_000:
        assert center is None
        return
    assert center is not None and not zones_of(images).any()
    stated = float(describe_map(fields, center).rpartition("exact to ")[2].partition(" ppm")[0].replace(",", "")) / 1e6
    assert stated < 0.0012
    rng = np.random.default_rng(1)
    a, b = rng.integers(300, size=(2, 3000))
    points = utm_fields(images).east_north
    on_map_m = np.linalg.norm(points[a] - points[b], axis=1)
    positions = fields.longitudes[a], fields.latitudes[a], fields.longitudes[b], fields.latitudes[b]
    on_ground_m = GEOD.inv(*positions)[2]
    assert (np.abs(on_map_m - on_ground_m) <= stated * on_ground_m + 0.002).all()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.floats(-89, 89), st.floats(-180, 180), st.floats(10, 250_000), st.integers(0, 10_000))
def test_near_photos_are_near_and_far_ones_far(latitude: float, longitude: float, radius_m: float, seed: int) -> None:
    records = around(latitude, longitude, 40, radius_m, seed)
    fields = fields_of([one.latitude for one in records], [one.longitude for one in records])
    images = labeled(fields)
    points = utm_fields(images).east_north
    if len(set(zones_of(images).tolist())) > 1:  # a list that reaches around a pole
        points = earth_positions(images, utm_fields(images))
    a, b = np.triu_indices(40, 1)
    on_map_m = np.linalg.norm(points[a] - points[b], axis=1)
    on_ground_m = GEOD.inv(fields.longitudes[a], fields.latitudes[a], fields.longitudes[b], fields.latitudes[b])[2]
    # UTM scales are from 0.9996 to 1.001 in a zone, and to 1.0012 in a local map.
    assert (np.abs(on_map_m - on_ground_m) <= 0.0015 * on_ground_m + 0.002).all()


def test_photos_too_far_apart_have_their_own_zones() -> None:
    images = labeled(fields_of([45.0, 45.0, -33.9], [7.0, 13.0, 151.2]))
    assert images.map_center is None
    assert zones_of(images).tolist() == [32, 33, -56]
    points = earth_positions(images, utm_fields(images))
    chord_m = GEOD.inv(7.0, 45.0, 13.0, 45.0)[2]
    assert np.linalg.norm(points[0] - points[1]) == pytest.approx(chord_m, rel=1e-3)


def test_the_map_stays_when_photos_are_added() -> None:
    records = around(45.0, 12.0, 400, 3_000)
    fields = fields_of([one.latitude for one in records], [one.longitude for one in records])
    assert choose_map(fields) == choose_map(fields.at(np.arange(300))) == (45.0, 12.0)


def test_selected_photos_keep_their_labels() -> None:
    images = labeled(fields_of([45.0, 45.1, 45.2], [7.0, 7.1, 7.2], headings=[10, 20, 30]))
    some = images.subset([0, 2])
    assert [some.label(row) for row in range(2)] == [images.label(0), images.label(2)]
    assert optional_fields(without_rows(images, np.array([0])), ("heading",)).tolist() == [[20, 30]]


# --- EXIF ------------------------------------------------------------------------------------------------------------


def write_exif_photos(folder: Path, records: list[PhotoRecord]) -> Path:
    for number, record in enumerate(records):
        write_exif_photo(folder / record.path, record, place_image(number, 0, side=16))
    return folder


def test_exif_gives_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = around(-17.0, 180.0, 8, 500)
    folder = write_exif_photos(tmp_path, [*records, PhotoRecord(path="photos/none.jpg")])
    images = with_positions(scan_images(folder))
    assert [images.name(row) for row in range(len(images))] == [record.path for record in records]
    assert "1 of 9 photos are left out, for example photos/none.jpg" in caplog.text
    for row, record in enumerate(records):
        known = metadata_from_name(images.label(row))
        assert GEOD.inv(record.longitude, record.latitude, known.longitude, known.latitude)[2] < 0.01
        assert known.heading == pytest.approx(record.heading, abs=0.02)
    assert images.map_center == (-17.0, 180.0) or images.map_center == (-17.0, -180.0)


def test_metadata_behind_the_first_part_of_a_file_is_found(tmp_path: Path) -> None:
    record = around(45.0, 7.0, 1, 10)[0]
    raw = write_exif_photo(tmp_path / "a.jpg", record, place_image(0, 0, side=16)).read_bytes()
    comment = b"\xff\xfe" + (65_000).to_bytes(2, "big") + bytes(64_998)
    (tmp_path / "a.jpg").write_bytes(raw[:2] + 5 * comment + raw[2:])
    assert metadata_from_name(with_positions(scan_images(tmp_path)).label(0)).has_position


def test_large_photos_are_not_read_completely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = around(45.0, 7.0, 1, 10)[0]
    path = write_exif_photo(tmp_path / "a.jpg", record, place_image(0, 0, side=16))
    path.write_bytes(path.read_bytes() + bytes(1 << 20))
    sizes = []
    from cosplace.photos import labels

    def read(path: Path, *size: int) -> bytes:
        sizes.append(size)
        return original(path, *size)

    original = labels.read_file
    monkeypatch.setattr(labels, "read_file", read)
    with_positions(scan_images(tmp_path))
    assert sizes == [(labels.START_BYTES,)]


def test_photos_without_any_position_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    (tmp_path / "positions.csv").write_text("name,lat,lon\n")
    with pytest.raises(DatasetError, match=r"None of the 2 photos .* has a position.*positions\.csv.*cosplace import"):
        with_positions(scan_images(tmp_path))


def test_wrong_names_are_reported_as_names(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "@1,5@2@.jpg")
    images = with_positions(scan_images(tmp_path))
    with pytest.raises(DatasetError, match="is '1,5', not a number"):
        utm_fields(images)


def test_one_name_does_not_decide_for_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handle, named = "photos/@anna_2020.jpg", "photos/@0395201.00@4983500.00@32@T@45.00100@7.00200@@@90@@@@@@.jpg"
    records = [*around(45.0, 7.0, 7, 100), *(replace(one, path=handle) for one in around(45.0, 7.0, 1, 50, seed=1))]
    folder = write_exif_photos(tmp_path, [*records, PhotoRecord(path=named)])
    images = with_positions(scan_images(folder))
    assert len(images) == 9 and not caplog.records
    known = {images.name(row): metadata_from_name(images.label(row)) for row in range(9)}
    for record in records:
        found = known[record.path]
        assert GEOD.inv(record.longitude, record.latitude, found.longitude, found.latitude)[2] < 0.01
    assert (known[named].latitude, known[named].longitude) == pytest.approx((45.001, 7.002), abs=2e-5)
    assert known[named].heading == 90


def test_the_majority_of_names_decides(tmp_path: Path) -> None:
    records = [replace(one, path=f"{number}.jpg") for number, one in enumerate(around(45.0, 7.0, 2, 100))]
    folder = write_exif_photos(tmp_path, records)
    for number in range(2):
        Image.new("RGB", (8, 8)).save(folder / f"@{number}@2@.jpg")
    images = with_positions(scan_images(folder))
    assert images.labels is None
    with pytest.raises(DatasetError, match=r"0\.jpg: field 1 of the file name .* is missing, as in 2 of 4 photos"):
        utm_fields(images)


# --- headings --------------------------------------------------------------------------------------------------------


def test_photos_without_heading_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = around(45.0, 7.0, 4, 100)
    records[1] = replace(records[1], heading=math.nan)
    images = with_headings(scan_images(write_records(tmp_path, records)))
    assert len(images) == 3 and "1 of 4 photos are left out, for example photos/0001.jpg" in caplog.text


@pytest.mark.parametrize(("heading", "message"), [(math.nan, "is unknown"), (0.0, "is unknown"), (90.0, "are 90 deg")])
def test_headings_that_say_nothing_are_refused(tmp_path: Path, heading: float, message: str, caplog) -> None:
    records = [replace(record, heading=heading) for record in around(45.0, 7.0, 4, 100)]
    images = scan_images(write_records(tmp_path, records))
    with pytest.raises(DatasetError, match=f"{message}.*--alpha 360"):
        with_headings(images)
    assert ("all headings are exactly 0" in caplog.text) == (heading == 0)


def test_a_local_map_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [replace(one, split="train" if row % 2 else "test/database")
               for row, one in enumerate(around(45.0, 12.0, 20, 1000))]  # fmt: skip
    write_records(tmp_path, records)
    with caplog.at_level(logging.INFO):
        parts = [scan_images(tmp_path / part) for part in ("train", "test/database", "test", "")]
    assert len({part.map_center for part in parts}) == 1
    assert caplog.text.count("on one local map around 45.0, 12.0, which is exact to") == 1
