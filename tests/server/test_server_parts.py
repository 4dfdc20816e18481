"""Parts of the server on their own: points and clusters, settings, parameters, file names, log lines."""

import json
import logging

import numpy as np
import pyarrow as pa
import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from cosplace.errors import ConfigError
from cosplace.index.filters import SearchFilter
from cosplace.index.records import Columns
from cosplace.server import ServerSettings
from cosplace.server.middleware import JsonLines
from cosplace.server.parameters import parse_box, parse_filter
from cosplace.server.points import MapPoints, find_in_box, map_points
from cosplace.server.settings import is_loopback, tile_origin
from cosplace.server.static import api_page, read_static_files
from cosplace.server.uploads import MAX_NAME_LENGTH, safe_name


def points_at(latitudes, longitudes, headings=None) -> MapPoints:
    count = len(latitudes)
    return map_points(
        Columns(
            ids=np.arange(count),
            latitudes=np.array(latitudes, np.float64),
            longitudes=np.array(longitudes, np.float64),
            headings=np.array(np.full(count, np.nan) if headings is None else headings, np.float32),
            times=np.full(count, np.nan),
            row_ids=np.arange(count, dtype=np.uint64),
            texts=pa.array([""] * count, pa.string()),
        )
    )


degrees = st.floats(-180, 180)
position_lists = st.lists(st.tuples(st.floats(-90, 90), degrees), max_size=60)


@given(position_lists, st.tuples(degrees, st.floats(-90, 90), degrees, st.floats(-90, 90)), st.integers(4, 40))
def test_every_photo_of_a_box_is_shown_once(positions, sides, limit) -> None:
    west, south, east, north = sides
    south, north = sorted((south, north))
    points = points_at([lat for lat, _ in positions], [lon for _, lon in positions])
    shown = find_in_box(points, (west, south, east, north), limit)
    inside = [
        south <= lat <= north and (west <= lon <= east if west <= east else lon >= west or lon <= east)
        for lat, lon in positions
    ]
    assert shown["total"] == sum(inside)
    assert len(shown["points"]) + sum(cluster["count"] for cluster in shown["clusters"]) == shown["total"]
    assert len(shown["points"]) + len(shown["clusters"]) <= max(limit, 4)
    ids = [point["id"] for point in shown["points"]]
    assert len(set(ids)) == len(ids) and all(inside[number] for number in ids)
    for cluster in shown["clusters"]:
        assert cluster["count"] > 1
        left, low, right, high = cluster["bbox"]
        assert low - 1e-9 <= cluster["latitude"] <= high + 1e-9
        assert -180 <= cluster["longitude"] <= 180
        assert left <= right or west > east
    assert json.dumps(shown, allow_nan=False)


def test_a_cluster_contains_only_photos_near_each_other() -> None:
    rng = np.random.default_rng(0)
    towns = np.array([[48.5, 9.0], [48.7, 9.2], [48.6, 9.5]])
    places = np.concatenate([town + rng.normal(0, 1e-4, (1_000, 2)) for town in towns])
    clusters = find_in_box(points_at(*places.T), None, 100)["clusters"]
    counts = [
        sum(cluster["count"] for cluster in clusters if abs(cluster["latitude"] - town[0]) < 0.05) for town in towns
    ]
    assert counts == [1_000] * 3
    assert all(abs(cluster["bbox"][2] - cluster["bbox"][0]) < 0.01 for cluster in clusters)


def test_cells_do_not_move_with_the_map() -> None:
    rng = np.random.default_rng(1)
    points = points_at(rng.uniform(48, 49, 20_000), rng.uniform(9, 10, 20_000))
    views = [find_in_box(points, (9.2 + shift, 48.2, 9.7 + shift, 48.7), 1_000)["clusters"] for shift in (0, 0.03)]
    inner = [{tuple(c["bbox"]) for c in view if 9.3 < c["longitude"] < 9.6} for view in views]
    assert len(inner[0]) > 50 and inner[0] == inner[1]


def test_clusters_across_the_antimeridian_are_not_at_longitude_zero() -> None:
    points = points_at([0.0] * 10, [179.99 + 0.002 * k if k < 5 else -180 + 0.002 * (k - 5) for k in range(10)])
    shown = find_in_box(points, (179, -1, -179, 1), 4)
    assert shown["total"] == 10
    assert all(abs(cluster["longitude"]) > 179.9 for cluster in shown["clusters"])


def test_photos_without_position_are_not_on_the_map() -> None:
    points = points_at([1.0, np.nan, 2.0], [1.0, 2.0, np.nan], [370.0, 0, 0])
    assert points.ids.tolist() == [0]


@pytest.mark.slow
def test_a_million_photos_are_clustered_in_less_than_a_second() -> None:
    import time

    rng = np.random.default_rng(2)
    points = points_at(rng.uniform(48, 49, 1_000_000), rng.uniform(9, 10, 1_000_000))
    started = time.perf_counter()
    assert find_in_box(points, None, 2_000)["total"] == 1_000_000
    assert time.perf_counter() - started < 1


# --- parameters of a request -----------------------------------------------------------------------------------------


def test_parameters_become_a_filter() -> None:
    assert parse_filter(None, None) is None
    expected = SearchFilter(near=(37.5, -122, 1000), bbox=(170, -10, -170, 10))
    assert parse_filter(" 37.5 , -122 , 1e3", "170,-10,190,10") == expected


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text) -> None:
    for parse in (parse_box, lambda text: parse_filter(text, None)):
        try:
            parse(text)
        except HTTPException as error:
            assert error.status_code == 422


@given(st.text(max_size=300))
def test_file_names_are_short_printable_and_without_a_path(text) -> None:
    name = safe_name(text)
    assert 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable()
    assert not set(name) & set("/\\") and name not in (".", "..")


def test_file_names() -> None:
    for file_name, expected in (
        ("a\r\nb.jpg", "a b.jpg"),
        (None, "photo"),
        ("../..", "photo"),
        ("/etc/passwd\0", "passwd"),
    ):
        assert safe_name(file_name) == expected


# --- settings, log, pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"port": 70_000}, "--port"),
        ({"max_upload_mb": 0}, "--max_upload_mb"),
        ({"time_limit_s": float("nan")}, "--time_limit_s"),
        ({"max_files": 10, "max_queue": 5}, "--max_queue"),
        ({"token": "short"}, "token"),
        ({"token": "with a space in it"}, "token"),
        ({"tiles": "javascript:alert(1)"}, "--tiles"),
        ({"tiles": "https://example.org/{z}/{x}"}, "--tiles"),
        ({"tiles": "https://a.org;script-src */{z}/{x}/{y}"}, "--tiles"),
        ({"tiles": "https://user:pw@a.org/{z}/{x}/{y}"}, "--tiles"),
        ({"tiles": "https://a.org 'unsafe-inline'/{z}/{x}/{y}"}, "--tiles"),
    ],
)
def test_invalid_settings_raise(changes, word) -> None:
    with pytest.raises(ConfigError) as error:
        ServerSettings(**changes)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_hosts_and_tile_addresses() -> None:
    assert tile_origin("https://{s}.a.org:8080/{z}/{x}/{y}.png?key=1") == "https://*.a.org:8080"
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org")] == [False] * 4
    assert ServerSettings(host="0.0.0.0").host_names is None


def test_a_log_line_is_one_json_object() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "a\nb", "levelname": "ERROR", "exc_info": (type(error), error, None)})
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "a\nb" and "second" in json.loads(line)["traceback"]


def test_only_files_for_the_browser_are_read(tmp_path) -> None:
    for name in (
        "index.html",
        "vendor/a.js",
        ".hidden/a.js",
        "vendor/.secret",
        "code.py",
        "__pycache__/a.js",
        "app.js.map",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert set(read_static_files(tmp_path)) == {"index.html", "vendor/a.js"}
    assert read_static_files(tmp_path / "nothing") == {}


def test_the_page_about_the_api_escapes_its_texts() -> None:
    page = api_page({"info": {"title": "<b>", "version": "1"}, "paths": {"/<i>": {"get": {"summary": "<u>"}}}}, "<s>")
    assert not any(tag in page for tag in ("<b>", "<i>", "<u>", "<s>"))
