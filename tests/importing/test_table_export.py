"""A dataset is exported, and read again, with the same positions and headings."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from cosplace.errors import DatasetError, StorageError
from cosplace.geo import geodesic_distances_m
from cosplace.importing.columns import time_of
from cosplace.importing.mapillary_json import detects
from cosplace.importing.table_export import at_names, export_dataset, feature_of
from cosplace.photos.metadata import metadata_from_name
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import PhotoRecord, to_table, write_table

ODD = ["a b.jpg", "x@y@z.jpg", "=1+1.png", "ünï.JPG", "q'\"<b>.webp", "-.jpg", "n" * 200 + ".jpg", "photo"]


def write(folder: Path, records: list[PhotoRecord]) -> Path:
    for number, record in enumerate(records):
        path = folder / record.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path, "JPEG")
    write_table(folder / "photos.parquet", to_table(records))
    return folder


def records_with_odd_names() -> list[PhotoRecord]:
    return [
        PhotoRecord(path=f"photos/{name}", latitude=10.0 * row - 30, longitude=179.9, heading=40.0 * row,
                    time=1e9 + row, sequence='"; DROP</script>\n', camera="=cmd()",
                    split="train" if row % 2 else "../out")
        for row, name in enumerate(ODD)
    ]  # fmt: skip


@given(st.floats(-84, 84), st.floats(-180, 180), st.floats(0, 359.99), st.floats(0, 4e9))
@settings(max_examples=60)
def test_names_keep_position_heading_and_time_anywhere(latitude, longitude, heading, time) -> None:
    assume(abs(latitude) > 1e-6 or abs(longitude) > 1e-6)  # 0, 0 means unknown
    record = PhotoRecord(path="a.jpg", latitude=latitude, longitude=longitude, heading=heading, time=time)
    (name,) = at_names(Path(), [record])
    found = metadata_from_name(name)
    assert geodesic_distances_m(found.latitude, found.longitude, latitude, longitude) < 0.01
    assert abs((found.heading - heading + 180) % 360 - 180) < 1
    assert found.time == pytest.approx(time, abs=1)


@pytest.mark.parametrize("link", [True, False])
def test_photos_with_odd_names_get_valid_ones(tmp_path: Path, link: bool) -> None:
    records = [*records_with_odd_names(), PhotoRecord(path="photos/unknown.jpg")]
    dataset = write(tmp_path / "data", records)
    result = export_dataset(dataset, tmp_path / "names", "names", link=link)
    assert (result.num_written, result.num_left_out) == (len(ODD), 1)
    images = scan_images(tmp_path / "names", follow_outside=link)
    assert len(images) == len(ODD)
    latitudes = sorted(metadata_from_name(images.name(row).rpartition("/")[2]).latitude for row in range(len(images)))
    np.testing.assert_allclose(latitudes, [10.0 * row - 30 for row in range(len(ODD))], atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "names").iterdir() if path.is_dir()) == ["train"]
    for row in range(len(images)):
        name = images.name(row).rpartition("/")[2]
        assert name.count("@") == 15
        assert len(name.encode()) <= 255
        image = Image.open(images.path(row))
        assert ODD[image.getpixel((0, 0))[0]] is not None
    with pytest.raises(StorageError, match="not an empty folder"):
        export_dataset(dataset, tmp_path / "names", "names")


@pytest.mark.parametrize(
    ("time", "timestamp", "text"),
    [
        ((2014, 7, 1), "201407", "2014-07"), ((2014, 7, 2), "20140702", "2014-07-02"),
        ((2014, 7, 2, 0, 0, 1), "20140702000001", "2014-07-02T00:00:01Z"),
    ],
)  # fmt: skip
def test_only_the_part_of_a_time_that_is_known_is_written(time: tuple[int, ...], timestamp: str, text: str) -> None:
    seconds = datetime(*time, tzinfo=UTC).timestamp()  # type: ignore[misc, arg-type]
    record = PhotoRecord(path="a.jpg", latitude=45, longitude=9, time=seconds)
    (name,) = at_names(Path(), [record])
    assert name.split("@")[13] == timestamp
    assert metadata_from_name(name).time == seconds
    assert feature_of(record)["properties"]["time"] == text
    assert time_of(text)[0] == seconds  # as a table of positions reads it


@pytest.mark.parametrize("time", [1e300, -1e300, 2.6e11, -7e10, np.inf])
def test_times_that_no_date_can_have_are_exported_as_unknown(time: float, tmp_path: Path) -> None:
    records = [PhotoRecord(path="a.jpg", latitude=45, longitude=9, time=time)]
    assert feature_of(records[0])["properties"].get("time", "") == ""
    dataset = write(tmp_path / "data", records)
    for format in ("geojson", "mapillary"):
        export_dataset(dataset, tmp_path / format, format)


def test_geojson_is_valid_and_complete(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", [*records_with_odd_names(), PhotoRecord(path="photos/unknown.jpg", heading=0.0)])
    assert export_dataset(dataset, tmp_path / "a.geojson", "geojson").num_written == len(ODD) + 1
    content = json.loads((tmp_path / "a.geojson").read_text(encoding="ascii"))
    assert content["type"] == "FeatureCollection"
    by_path = {one["properties"]["path"]: one for one in content["features"]}
    feature = by_path["photos/a b.jpg"]
    assert feature["geometry"] == {"type": "Point", "coordinates": [179.9, -30.0]}
    assert feature["properties"] == {
        "path": "photos/a b.jpg", "heading": 0.0, "time": "2001-09-09T01:46:40Z", "sequence": '"; DROP</script>\n',
        "camera": "=cmd()", "split": "../out",
    }  # fmt: skip
    assert by_path["photos/unknown.jpg"]["geometry"] is None
    assert by_path["photos/unknown.jpg"]["properties"]["heading"] == 0.0


def test_height_is_the_third_coordinate() -> None:
    record = PhotoRecord(path="a", latitude=1.0, longitude=2.0, altitude_m=3.0)
    assert feature_of(record)["geometry"]["coordinates"] == [2.0, 1.0, 3.0]


def test_mapillary(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", [*records_with_odd_names(), PhotoRecord(path="photos/unknown.jpg")])
    result = export_dataset(dataset, tmp_path / "description.json", "mapillary")
    assert (result.num_written, result.num_left_out) == (len(ODD), 1)
    assert detects(tmp_path / "description.json")


def test_a_part_of_a_dataset(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", records_with_odd_names())
    assert export_dataset(dataset / "train", tmp_path / "a.geojson", "geojson").num_written == len(ODD) // 2


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatasetError, match="has no table"):
        export_dataset(tmp_path / "folder", tmp_path / "a", "names")
    outside = write(tmp_path / "data", [PhotoRecord(path="photos/a.jpg", latitude=1.0, longitude=2.0)])
    write_table(outside / "photos.parquet", to_table([PhotoRecord(path="../secret.jpg", latitude=1.0, longitude=2.0)]))
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    with pytest.raises(DatasetError, match="outside"):
        export_dataset(outside, tmp_path / "a", "names")
