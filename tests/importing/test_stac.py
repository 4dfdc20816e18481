"""STAC items of Panoramax."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError
from cosplace.importing.records import FoundPhoto, Problem
from cosplace.importing.stac import detects, read
from tests.importing.test_mapillary_json import JSON
from tests.importing.track_samples import START


def item(name: str = "a", href: str | None = None, azimuth: float | None = 91.5, **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": f"id-{name}", "collection": "walk-1",
        "geometry": {"type": "Point", "coordinates": [7.6, 45.1]},
        "properties": {
            "datetime": "2026-05-01T10:00:00.25+00:00", "view:azimuth": azimuth, "pers:pitch": 2.0, "pers:roll": -1.0,
            "quality:horizontal_accuracy": 1.8,
            "pers:interior_orientation": {"camera_manufacturer": "Maker", "camera_model": "Cam 1", "field_of_view": 70},
        } | properties,
        "assets": {
            "thumb": {"href": f"thumb/{name}.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
            "sd": {"href": "https://example.org/sd.jpg", "type": "image/jpeg"},
            "hd": {"href": href or f"./images/{name}.jpg", "type": "image/jpeg", "roles": ["data"]},
            "notes": {"href": "notes.txt", "type": "text/plain"},
        },
    }  # fmt: skip


def page(folder: Path, *items: Any, name: str = "page.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items, "links": []}))
    return path


def entries(path: Path) -> tuple[list[FoundPhoto], list[Problem]]:
    found = list(read(path, ImportSettings()))
    return ([entry for entry in found if isinstance(entry, FoundPhoto)],
            [entry for entry in found if isinstance(entry, Problem)])  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "thumb").mkdir()
    for name in ("a", "b", "c d"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(name.encode())
        (tmp_path / "thumb" / f"{name}.jpg").write_bytes(b"thumb")
    return tmp_path


def test_item(folder: Path) -> None:
    path = folder / "item.json"
    path.write_text(json.dumps(item()))
    assert detects(path)
    (found,), problems = entries(path)
    assert not problems
    assert found.file.read_bytes() == b"a"
    record = found.record
    assert (record.path, record.latitude, record.longitude, record.accuracy_m, record.heading, record.heading_source,
            record.pitch, record.roll, record.field_of_view, record.time, record.sequence, record.camera,
            record.projection) == ("photos/images/a.jpg", 45.1, 7.6, 1.8, 91.5, "table", 2, -1, 70, START + 0.25,
                                   "walk-1", "Maker Cam 1", "")  # fmt: skip


def test_pages_of_a_folder(folder: Path) -> None:
    panorama = item("b", None, -90.0, **{"pers:interior_orientation": {"field_of_view": 360}})
    page(folder, item("a"), panorama, name="page1.json")
    page(folder, item("c", "images/c%20d.jpg"), name="page2.geojson")
    (folder / "other.json").write_text('{"type": "Collection"}')
    assert detects(folder)
    found, problems = entries(folder)
    assert [one.file.name for one in found] == ["a.jpg", "b.jpg", "c d.jpg"]
    assert (found[1].record.projection, found[1].record.heading, found[1].record.camera) == ("equirectangular", 270, "")
    assert "3 photos that no item names" in problems[0].reason  # the thumbnails


@pytest.mark.parametrize("azimuth", [0, 0.0])
def test_zero_azimuths_are_placeholders(folder: Path, azimuth: float) -> None:
    found, problems = entries(page(folder, item("a", None, azimuth), item("b", None, azimuth)))
    assert all(np.isnan(one.record.heading) and not one.record.heading_source for one in found)
    assert "every view:azimuth is 0" in problems[0].reason
    found, problems = entries(page(folder, item("a", None, azimuth), item("b", None, 12.0)))
    assert [one.record.heading for one in found] == [0, 12]
    assert not problems


def test_addresses_and_missing_files_are_listed(folder: Path) -> None:
    remote = item("b")
    remote["assets"] = {"hd": {"href": "https://example.org/hd.jpg"}}
    path = page(folder, item("a", "../outside.jpg"), remote, item("c", "images/gone.jpg"), {"type": "Feature"}, 7)
    (folder.parent / "outside.jpg").write_bytes(b"private")
    found, problems = entries(path)
    assert not found
    reasons = [problem.reason for problem in problems]
    assert "was not found" in reasons[0]
    assert "https://example.org/hd.jpg; photos are not downloaded" in reasons[1]
    assert "was not found" in reasons[2]
    assert "no asset" in reasons[3]


def test_unusual_items(folder: Path) -> None:
    line = item("a", None, None, datetime=None)
    line["geometry"] = {"type": "LineString", "coordinates": [[1, 2], [3, 4]]}
    swapped = item("b")
    swapped["geometry"]["coordinates"] = [45.1, 120.0]
    found, problems = entries(page(folder, line, swapped, item("a")))
    assert all(np.isnan(one.record.latitude) for one in found)
    assert np.isnan(found[0].record.time)
    assert np.isnan(found[0].record.heading)
    assert [problem.is_left_out for problem in problems] == [False, False, True]
    assert "belongs to an earlier item" in problems[2].reason


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "yesterday"])
def test_times_that_no_date_can_have_are_listed(folder: Path, time: str) -> None:
    found, problems = entries(page(folder, item("a", datetime=time)))
    assert np.isnan(found[0].record.time)
    assert [one.reason for one in problems if repr(time) in one.reason and not one.is_left_out]


def test_other_json(folder: Path) -> None:
    for content in ('{"type": "FeatureCollection", "features": []}', "[]", "", '{"type": "Feature"}'):
        (folder / "x.json").write_text(content)
        assert not detects(folder / "x.json")
    assert not detects(folder)
    (folder / "x.json").write_text('{"type": "FeatureCollection", "stac_version": "1.0.0"}')
    with pytest.raises(DatasetError, match="not a STAC item"):
        entries(folder / "x.json")


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(item())), JSON, max_size=3), st.dictionaries(
    st.sampled_from(sorted(item()["properties"])), JSON, max_size=3))  # fmt: skip
def test_values_of_any_type(folder: Path, values: dict[str, Any], properties: dict[str, Any]) -> None:
    odd = item()
    found, problems = entries(page(folder, {**odd, "properties": odd["properties"] | properties, **values}, item("b")))
    assert len(found) + len(problems) >= 2
    for one in found:
        assert np.isnan(one.record.latitude) or abs(one.record.latitude) <= 90
        assert np.isnan(one.record.heading) or 0 <= one.record.heading < 360
