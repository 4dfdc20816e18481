"""Descriptions of mapillary_tools, against its own schema and reader."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosplace.config.importing import ImportConfig, ImportSettings
from cosplace.errors import DatasetError
from cosplace.geo import destination
from cosplace.importing.mapillary_json import NAME, detects, read, write_mapillary_json
from cosplace.importing.records import FoundPhoto, Problem
from cosplace.photos.tables import PhotoRecord
from tests.importing.track_samples import START, write_video

ROW = {
    "filename": "a.jpg", "filetype": "image", "MAPLatitude": 45.123456789, "MAPLongitude": -7.5, "MAPAltitude": 250.5,
    "MAPCaptureTime": "2026_05_01_10_00_00_250", "MAPCompassHeading": {"TrueHeading": 91.5, "MagneticHeading": 91.5},
    "MAPSequenceUUID": "walk-1", "MAPOrientation": 1, "MAPGPSAccuracyMeters": 3.5, "MAPDeviceMake": "Maker",
    "MAPDeviceModel": "Cam 1", "md5sum": None, "filesize": None,
}  # fmt: skip


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "mapillary_image_description.json"
    path.write_text(json.dumps(list(rows)))
    return path


def entries(path: Path, settings: ImportSettings | None = None) -> tuple[list[FoundPhoto], list[Problem]]:
    found = list(read(path, settings or ImportSettings()))
    return ([entry for entry in found if isinstance(entry, FoundPhoto)],
            [entry for entry in found if isinstance(entry, Problem)])  # fmt: skip


def photo(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())
    return path


def test_image(tmp_path: Path) -> None:
    photo(tmp_path, "a.jpg")
    path = write(tmp_path, ROW | {"filename": str(tmp_path / "a.jpg")})
    assert detects(path)
    (found,), problems = entries(path)
    assert not problems
    record = found.record
    assert found.file.read_bytes() == b"a.jpg"
    assert (record.path, record.sequence, record.camera) == ("photos/a.jpg", "walk-1", "Maker Cam 1")
    assert (record.latitude, record.longitude, record.altitude_m) == (45.123456789, -7.5, 250.5)
    assert (record.accuracy_m, record.heading, record.heading_source) == (3.5, 91.5, "table")
    assert record.time == START + 0.25


def test_values_may_be_missing_or_impossible(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photo(tmp_path, name)
    path = write(
        tmp_path,
        {"filename": "a.jpg", "filetype": "image", "MAPLatitude": 95, "MAPLongitude": 7, "MAPCaptureTime": "no"},
        ROW
        | {"filename": "b.jpg", "MAPCompassHeading": {"TrueHeading": 725.0}, "MAPCaptureTime": "2026_13_01_10_00_00_1"},
        ROW | {"filename": "c.jpg", "MAPLatitude": 0, "MAPLongitude": 0.0, "MAPCompassHeading": None},
    )
    found, problems = entries(path)
    assert [np.isnan(one.record.latitude) for one in found] == [True, False, True]
    assert [np.isnan(one.record.time) for one in found] == [True, True, False]
    assert found[1].record.heading == 5
    assert (found[0].record.heading_source, found[2].record.heading_source) == ("", "")
    assert len([one for one in problems if "time" not in one.reason]) == 2
    assert len([one for one in problems if "not a capture time" in one.reason]) == 2


def test_error_rows_and_missing_files_are_listed(tmp_path: Path) -> None:
    photo(tmp_path, "a.jpg")
    error = {"type": "MapillaryGeoTaggingError", "message": "Unable to extract GPS"}
    path = write(tmp_path, {"filename": "/x/b.jpg", "error": error}, ROW, ROW, ROW | {"filename": "gone.jpg"}, 7, {})
    found, problems = entries(path)
    assert len(found) == 1
    reasons = [problem.reason for problem in problems]
    assert "MapillaryGeoTaggingError: Unable to extract GPS" in reasons[0]
    assert "named twice" in reasons[1]
    assert "was not found" in reasons[2]
    assert reasons[3:] == ["has no file name", "has no file name"]
    only_errors = write(tmp_path, {"filename": "/x/b.jpg", "filetype": "image", "error": error})
    assert detects(only_errors.rename(tmp_path / "trip.json"))


def test_paths_of_another_machine(tmp_path: Path) -> None:
    photo(tmp_path, "day1/a.jpg")
    photo(tmp_path, "day2/a.jpg")
    path = write(
        tmp_path, ROW | {"filename": "/home/them/trip/day2/a.jpg"}, ROW | {"filename": "C:\\trip\\day1\\a.jpg"}
    )
    assert [one.record.path for one in entries(path)[0]] == ["photos/day2/a.jpg", "photos/day1/a.jpg"]


def test_no_file_outside_of_the_folders_is_read(tmp_path: Path) -> None:
    secret = photo(tmp_path, "private/secret.jpg")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "link.jpg").symlink_to(secret)
    names = [str(secret), "../private/secret.jpg", "link.jpg", "/etc/passwd", "x/../../private/secret.jpg", "a\0b.jpg"]
    path = write(tmp_path / "dataset", *(ROW | {"filename": name} for name in names))
    found, problems = entries(path)
    assert not found
    assert len(problems) == 6
    allowed = ImportConfig(sources=(str(path), str(tmp_path / "private")))
    assert [one.file.name for one in entries(path, allowed)[0]] == ["secret.jpg"]


def test_zero_headings_on_every_photo_are_unknown(tmp_path: Path) -> None:
    zero = {"MAPCompassHeading": {"TrueHeading": 0.0, "MagneticHeading": 0.0}}
    for name in "abc":
        photo(tmp_path, f"{name}.jpg")
    rows = [ROW | zero | {"filename": f"{name}.jpg"} for name in "abc"]
    found, problems = entries(write(tmp_path, *rows))
    assert all(np.isnan(one.record.heading) and not one.record.heading_source for one in found)
    assert "every heading is 0" in problems[0].reason
    found, problems = entries(write(tmp_path, *rows[:2], ROW | {"filename": "c.jpg"}))
    assert [one.record.heading for one in found] == [0, 0, 91.5]


def test_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("mapillary_tools")
    write_video(tmp_path / "ride.mp4", 100)
    times = np.arange(0, 10.5, 0.5)
    latitudes, longitudes = destination(45.0, 7.6, 4 * times, 0 * times)
    track = [
        [round(1000 * t), lon, lat, 250.5, None, START + t]
        for t, lat, lon in zip(times, latitudes, longitudes, strict=True)
    ]
    path = write(
        tmp_path, {"filename": "ride.mp4", "filetype": "video", "MAPGPSTrack": track, "MAPDeviceModel": "Cam 1"}
    )
    assert detects(path)
    found, problems = entries(path)
    assert not problems
    assert [one.record.video_time for one in found] == pytest.approx([1.25 * row for row in range(8)], abs=0.11)
    second = found[1].record
    assert second.longitude == pytest.approx(destination(45.0, 7.6, 4 * second.video_time, 0)[1], abs=1e-6)
    assert (second.heading, second.time) == pytest.approx((90, START + second.video_time), abs=0.01)
    assert (second.camera, second.sequence, second.altitude_m) == ("Cam 1", "ride", 250.5)
    bad = write(tmp_path, {"filename": "ride.mp4", "filetype": "video", "MAPGPSTrack": [[0], "x", [1, None, 2]]})
    assert "no valid position" in entries(bad)[1][0].reason


def test_other_files(tmp_path: Path) -> None:
    for content in ('{"MAPLatitude": 1}', '[{"filename": "a.jpg", "error": "5 m"}]', "[]", "[1, 2]", "MAPLatitude", ""):
        (tmp_path / "x.json").write_text(content)
        assert not detects(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('[{"MAPLatitude": 1,')
    with pytest.raises(DatasetError, match="not valid JSON"):
        entries(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="not valid JSON"):
        entries(tmp_path / "x.json")


RECORDS = [
    PhotoRecord(path="photos/a.jpg", latitude=45.123456789, longitude=-179.99999999, altitude_m=-3.25, accuracy_m=2.5,
                heading=359.9999, heading_source="exif", time=START + 0.9996, sequence="day 1/ride",
                camera="Maker Cam 1"),
    PhotoRecord(path="photos/b c.jpg", latitude=-33.0, longitude=18.0, time=START - 0.25),
    PhotoRecord(path="photos/no position.jpg", time=START),
    PhotoRecord(path="photos/no time.jpg", latitude=1, longitude=2),
]  # fmt: skip


def test_written_files_are_valid_for_mapillary_tools(tmp_path: Path) -> None:
    description = pytest.importorskip("mapillary_tools.serializer.description")
    to = tmp_path / "mapillary_image_description.json"
    assert write_mapillary_json(RECORDS, tmp_path, to) == (2, 2)
    rows = json.loads(to.read_text())
    for row in rows[:2]:
        description.validate_image_desc(row)
    read_back = description.DescriptionJSONSerializer.deserialize(to.read_bytes())
    assert len(read_back) == 2  # it leaves out errors
    for image, record in zip(read_back, RECORDS, strict=False):
        assert image.filename == tmp_path / record.path
        assert (image.lat, image.lon) == pytest.approx((record.latitude, record.longitude), abs=1e-9)
        assert image.time == pytest.approx(record.time, abs=5.1e-4)
    assert (read_back[0].alt, read_back[0].angle, read_back[0].MAPGPSAccuracyMeters) == (-3.25, 360.0, 2.5)
    assert [row["error"]["message"] for row in rows[2:]] == ["no position", "no time"]


def test_a_date_is_not_published_as_a_capture_time(tmp_path: Path) -> None:
    """Names such as @...@201407@ have only a month, which is stored as its first day at 00:00:00."""
    month = PhotoRecord(path="a.jpg", latitude=1, longitude=2, time=datetime(2014, 7, 1, tzinfo=UTC).timestamp())
    second = PhotoRecord(path="b.jpg", latitude=1, longitude=2, time=month.time + 1)
    assert write_mapillary_json([month, second], tmp_path, tmp_path / NAME) == (1, 1)
    rows = json.loads((tmp_path / NAME).read_text())
    assert rows[0]["error"]["message"] == "no time of day"
    assert rows[1]["MAPCaptureTime"] == "2014_07_01_00_00_01_000"


def test_capture_times_that_are_none_are_listed(tmp_path: Path) -> None:
    photo(tmp_path, "a.jpg")
    path = write(tmp_path, {"filename": "a.jpg", "MAPLatitude": 1, "MAPLongitude": 2, "MAPCaptureTime": "2026-05-01"})
    found, problems = entries(path)
    assert np.isnan(found[0].record.time)
    assert [one.reason for one in problems] == ["'2026-05-01' is not a capture time, so its time is unknown"]


def test_round_trip(tmp_path: Path) -> None:
    for record in RECORDS:
        photo(tmp_path, record.path)
    to = tmp_path / "mapillary_image_description.json"
    write_mapillary_json(RECORDS, tmp_path, to)
    found, problems = entries(to)
    assert len(problems) == 2
    first, second = (one.record for one in found)
    assert first.time == pytest.approx(RECORDS[0].time, abs=5.1e-4)
    assert second.time == START - 0.25
    assert (first.latitude, first.longitude, first.camera) == (45.123456789, -179.99999999, "Maker Cam 1")
    assert abs((first.heading - 359.9999 + 180) % 360 - 180) < 1e-3
    assert np.isnan(second.heading)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(ROW)), JSON, max_size=4))
def test_values_of_any_type(tmp_path: Path, values: dict[str, Any]) -> None:
    photo(tmp_path, "a.jpg")
    found, problems = entries(write(tmp_path, ROW | values, 1))
    assert problems
    for one in found:
        assert np.isnan(one.record.latitude) or abs(one.record.latitude) <= 90
        assert np.isnan(one.record.heading) or 0 <= one.record.heading < 360
