"""The server's parts without a server: points and clusters, settings, names, places of requests, the log's lines."""

import json
import logging

import numpy as np
import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from cosplace.errors import ConfigError
from cosplace.server import ServerSettings
from cosplace.server.middleware import JsonLines
from cosplace.server.parameters import parse_bbox, parse_near
from cosplace.server.points import Points, keep_points, look
from cosplace.server.settings import is_loopback, tile_origin
from cosplace.server.static import api_page, read_static_files
from cosplace.server.uploads import MAX_NAME, safe_name


def points_of(latitudes, longitudes, headings=None) -> Points:
    headings = np.full(len(latitudes), np.nan) if headings is None else headings
    return keep_points(np.arange(len(latitudes)), np.array(latitudes), np.array(longitudes), np.array(headings))


degrees = st.floats(-180, 180)
positions = st.lists(st.tuples(st.floats(-90, 90), degrees), max_size=60)


@given(positions, st.tuples(degrees, st.floats(-90, 90), degrees, st.floats(-90, 90)), st.integers(4, 40))
def test_every_photo_of_a_box_is_shown_once(where, sides, limit) -> None:
    west, south, east, north = sides
    south, north = sorted((south, north))
    points = points_of([lat for lat, _ in where], [lon for _, lon in where])
    shown = look(points, (west, south, east, north), limit)
    inside = [
        south <= lat <= north and (west <= lon <= east if west <= east else lon >= west or lon <= east)
        for lat, lon in where
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


def test_a_cluster_is_made_of_photos_that_are_near_each_other() -> None:
    rng = np.random.default_rng(0)
    towns = np.array([[48.5, 9.0], [48.7, 9.2], [48.6, 9.5]])
    places = np.concatenate([town + rng.normal(0, 1e-4, (1_000, 2)) for town in towns])
    clusters = look(points_of(*places.T), None, 100)["clusters"]
    counts = [
        sum(cluster["count"] for cluster in clusters if abs(cluster["latitude"] - town[0]) < 0.05) for town in towns
    ]
    assert counts == [1_000] * 3
    assert all(abs(cluster["bbox"][2] - cluster["bbox"][0]) < 0.01 for cluster in clusters)


def test_cells_stay_where_they_are_while_the_map_moves() -> None:
    rng = np.random.default_rng(1)
    points = points_of(rng.uniform(48, 49, 20_000), rng.uniform(9, 10, 20_000))
    views = [look(points, (9.2 + shift, 48.2, 9.7 + shift, 48.7), 1_000)["clusters"] for shift in (0, 0.03)]
    inner = [{tuple(c["bbox"]) for c in view if 9.3 < c["longitude"] < 9.6} for view in views]
    assert len(inner[0]) > 50 and inner[0] == inner[1]


def test_clusters_across_the_date_line_lie_on_one_side() -> None:
    points = points_of([0.0] * 10, [179.99 + 0.002 * k if k < 5 else -180 + 0.002 * (k - 5) for k in range(10)])
    shown = look(points, (179, -1, -179, 1), 4)
    assert shown["total"] == 10
    assert all(abs(cluster["longitude"]) > 179.9 for cluster in shown["clusters"])


def test_photos_without_position_are_not_on_the_map() -> None:
    points = points_of([1.0, np.nan, 2.0], [1.0, 2.0, np.nan], [370.0, 0, 0])
    assert len(points) == 1 and points.bounds() == [1.0, 1.0, 1.0, 1.0]
    assert points_of([], []).bounds() is None


@pytest.mark.slow
def test_a_million_photos_are_clustered_in_less_than_a_second() -> None:
    import time

    rng = np.random.default_rng(2)
    points = points_of(rng.uniform(48, 49, 1_000_000), rng.uniform(9, 10, 1_000_000))
    started = time.perf_counter()
    assert look(points, None, 2_000)["total"] == 1_000_000
    assert time.perf_counter() - started < 1


# --- words of a request ----------------------------------------------------------------------------------------------


def test_boxes_of_a_map_that_shows_the_world_more_than_once() -> None:
    assert parse_bbox("-122.5,37,-122,38") == (-122.5, 37, -122, 38)
    assert parse_bbox("170,-10,190,10") == (170, -10, -170, 10)
    assert parse_bbox("-200,-10,-170,10") == (160, -10, -170, 10)
    assert parse_bbox("-400,-95,400,95") == (-180, -90, 180, 90)
    assert parse_near(" 37.5 , -122 , 1e3") == (37.5, -122, 1000)


@given(st.text(max_size=30))
def test_wild_words_are_read_or_refused(text) -> None:
    for parse in (parse_bbox, parse_near):
        try:
            assert all(np.isfinite(parse(text)))
        except HTTPException as error:
            assert error.status_code == 422


@given(st.text(max_size=300))
def test_names_of_uploads_are_short_printable_and_no_paths(text) -> None:
    name = safe_name(text)
    assert 0 < len(name) <= MAX_NAME and name.isprintable()
    assert not set(name) & set("/\\") and name not in (".", "..")


def test_names_of_uploads() -> None:
    for given_name, kept in (
        ("a\r\nb.jpg", "a b.jpg"),
        (None, "photo"),
        ("../..", "photo"),
        ("/etc/passwd\0", "passwd"),
    ):
        assert safe_name(given_name) == kept


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
def test_settings_that_cannot_work_are_told(changes, word) -> None:
    with pytest.raises(ConfigError) as error:
        ServerSettings(**changes)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_addresses() -> None:
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


def test_only_files_for_browsers_are_served(tmp_path) -> None:
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


def test_the_page_about_the_api_escapes_what_it_shows() -> None:
    page = api_page({"info": {"title": "<b>", "version": "1"}, "paths": {"/<i>": {"get": {"summary": "<u>"}}}}, "<s>")
    assert not any(tag in page for tag in ("<b>", "<i>", "<u>", "<s>"))
