"""Parts of the server on their own: points and clusters, settings, parameters, file names, log lines."""

import asyncio
import json
import logging
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from cosplace.cli.serve import serve_index
from cosplace.config.index import IndexSettings
from cosplace.errors import ConfigError
from cosplace.index.filters import SearchFilter
from cosplace.index.records import Columns
from cosplace.localization.localizer import Localizer
from cosplace.models.views import PhotoViews
from cosplace.photos.opening import decoded_bytes
from cosplace.server import ServerSettings, new_photos
from cosplace.server.batching import MAX_DECODING_BYTES, DecodingMemory, SharedLimit, split_by_pixels
from cosplace.server.fair_queue import FairQueue
from cosplace.server.freed_memory import FreedMemory
from cosplace.server.hosts import Host, is_foreign, is_public, parse_host
from cosplace.server.json_lines import JsonLines
from cosplace.server.metrics import Metrics
from cosplace.server.parameters import parse_box, parse_filter
from cosplace.server.photo_routes import public_name
from cosplace.server.points import MapPoints, find_in_box, map_points
from cosplace.server.served_index import ServedIndex
from cosplace.server.settings import is_loopback, tile_origin
from cosplace.server.static import api_page, read_static_files
from cosplace.server.uploads import MAX_NAME_LENGTH, Upload, safe_name
from cosplace.server.workers import METRICS_VARIABLE
from tests.server.server_samples import good_photo


def columns_at(latitudes, longitudes, headings=None) -> Columns:
    count = len(latitudes)
    return Columns(
        ids=np.arange(count),
        latitudes=np.array(latitudes, np.float64),
        longitudes=np.array(longitudes, np.float64),
        headings=np.array(np.full(count, np.nan) if headings is None else headings, np.float32),
        times=np.full(count, np.nan),
        accuracies_m=np.full(count, np.nan, np.float32),
        row_ids=np.arange(count, dtype=np.uint64),
        roots=np.zeros(count, np.int32),
        texts=pa.array([""] * count, pa.string()),
    )


def points_at(latitudes, longitudes, headings=None) -> MapPoints:
    return map_points(columns_at(latitudes, longitudes, headings))


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
def test_a_million_photos_become_few_clusters() -> None:
    rng = np.random.default_rng(2)
    points = points_at(rng.uniform(48, 49, 1_000_000), rng.uniform(9, 10, 1_000_000))
    found = find_in_box(points, None, 2_000)
    assert found["total"] == 1_000_000
    assert 0 < len(found["clusters"]) <= 2_000
    assert sum(cluster["count"] for cluster in found["clusters"]) + len(found["points"]) == 1_000_000


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


def test_names_for_strangers_contain_no_folders_of_the_server() -> None:
    for name, shown in (
        ("street/0-0.jpg", "street/0-0.jpg"), ("upload:1234/a.jpg", "upload:1234/a.jpg"), ("/home/me/a.jpg", "a.jpg"),
        ("C:\\Users\\me\\a.jpg", "a.jpg"), ("s3://bucket/a.jpg", "a.jpg"), ("\\\\server\\share\\a.jpg", "a.jpg"),
        (r"\xff\xfe.jpg", r"\xff\xfe.jpg"), (r"/home/caf\xe9/\xff\xfe.jpg", r"\xff\xfe.jpg"),
    ):  # fmt: skip
        assert public_name(name) == shown


def test_file_names() -> None:
    for file_name, expected in (
        ("a\r\nb.jpg", "a b.jpg"),
        (None, "photo"),
        ("../..", "photo"),
        ("/etc/passwd\0", "passwd"),
    ):
        assert safe_name(file_name) == expected


# --- hosts and origins -----------------------------------------------------------------------------------------------


def test_hosts_are_parsed_strictly() -> None:
    for text, expected in (
        ("localhost", ("localhost", None)),
        ("LocalHost.:8000", ("localhost", 8000)),
        ("my_camera-1.example.org:80", ("my_camera-1.example.org", 80)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("[::1]", ("::1", None)),
        ("[0:0:0:0:0:0:0:1]:8000", ("::1", 8000)),
        ("[2001:DB8::1]:80", ("2001:db8::1", 80)),
    ):
        assert parse_host(text) == Host(*expected)
    for text in (
        "", "[::1]evil", "[::1]:evil", "[::1]:", "[::1", "::1", "localhost:", "localhost:99999", "localhost:80:80",
        "localhost evil", "localhost\t", "localhost/evil", "a@localhost", "localhost..", ".localhost", "a..b", "-a.b",
        "127.1", "127.0.0.01", "0x7f.1", "256.0.0.1", "[127.0.0.1]", "[localhost]", "löcalhost", "localhost\u0000", "١",
        "a" * 64, "localhost:٨٠",
    ):  # fmt: skip
        assert parse_host(text) is None, text


@given(st.text(alphabet="[]:.@/\\ aZ019-_%é\0", max_size=30))
def test_a_parsed_host_is_one_of_a_url(text) -> None:
    from urllib.parse import urlsplit

    host = parse_host(text)
    if host is not None:
        parts = urlsplit(f"//{text}")
        assert parts.hostname is not None and not parts.path and parts.username is None
        assert parts.hostname.removesuffix(".") == host.name or ip_address(parts.hostname) == ip_address(host.name)
        assert parts.port == host.port


def test_origins_of_other_sites() -> None:
    def foreign(own_names=(), **headers) -> bool:
        return is_foreign({name.replace("_", "-").encode(): value for name, value in headers.items()}, own_names)

    assert not foreign(host="a.org")
    assert not foreign(host="a.org", origin="https://a.org")
    assert not foreign(host="a.org:443", origin="https://a.org")
    assert not foreign(host="a.org:8000", origin="http://A.org:8000", sec_fetch_site="same-origin")
    assert not foreign(host="[::1]:8000", origin="http://[::1]:8000")
    assert not foreign(host="10.0.0.1:8000", origin="https://a.org", own_names={"a.org"})
    for headers in (
        {"origin": "null"}, {"origin": ""}, {"origin": "a.org"}, {"origin": "https://b.org"}, {"origin": "file://a.org"},
        {"origin": "http://a.org:8000"}, {"origin": "https://a.org.b.org"}, {"origin": "https://a.org@b.org"},
        {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"}, {"sec_fetch_site": ""},
        {"origin": "https://a.org", "sec_fetch_site": "cross-site"},
    ):  # fmt: skip
        assert foreign(host="a.org", **headers), headers
    assert [is_public("GET", path) for path in ("/", "/static/a.js", "/photos", "/static", "/metrics", "/docs/x")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    assert not is_public("POST", "/")


# --- queues ----------------------------------------------------------------------------------------------------------


def test_requests_take_turns_in_a_queue() -> None:
    queue: FairQueue[str] = FairQueue()
    for owner, item in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")):
        queue.put(owner, item, 2.0)
    assert [queue.get() for _ in range(4)] == ["a1", "b1", "c1", "a2"]
    queue.put("d", "small", 1.0)
    assert queue.get_up_to(1.0, 0.0) == "small"  # the first in turn that fits
    assert queue.get_up_to(1.0, 0.0) is None
    queue.close()
    assert [queue.get() for _ in range(3)] == ["b2", "a3", None]
    assert queue.size == 0


def test_a_full_queue_holds_up_those_who_add() -> None:
    queue: FairQueue[int] = FairQueue(max_size=10)
    queue.put("a", 0, 100)  # an empty queue takes any size
    added = threading.Event()
    thread = threading.Thread(target=lambda: (queue.put("a", 1, 1), added.set()))
    thread.start()
    assert not added.wait(0.1)
    assert queue.get() == 0
    assert added.wait(5)
    thread.join()
    assert queue.get() == 1


def test_a_limit_is_shared() -> None:
    memory, most, lock = SharedLimit(100), [0], threading.Lock()

    def use(num_bytes: int) -> None:
        with memory.reserve(num_bytes):
            with lock:
                most[0] = max(most[0], memory.used)
            time.sleep(0.01)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, [60, 40, 30, 80, 10, 50, 100, 20] * 2))
    assert most[0] <= 100
    with memory.reserve(1_000):  # alone
        assert memory.used == 1_000
    assert memory.used == 0


def test_photos_do_not_wait_for_a_large_one_that_is_decoded() -> None:
    memory = DecodingMemory()
    has_started = threading.Event()

    def decode_large() -> None:
        with memory.reserve(2 * MAX_DECODING_BYTES):
            has_started.set()

    with ThreadPoolExecutor(1) as threads:
        with memory.reserve(3 * MAX_DECODING_BYTES):
            second = threads.submit(decode_large)
            with memory.reserve(MAX_DECODING_BYTES):  # does not wait
                assert not has_started.wait(0.1)  # one large photo at a time
        second.result(10)
    assert has_started.is_set()


def test_photos_of_an_index_are_decoded_within_the_memory_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, used = DecodingMemory(), {}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            used[name] = memory.usual.used
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(new_photos, "decode_upload", noting("photo", new_photos.decode_upload))
    monkeypatch.setattr(new_photos, "make_thumbnail", noting("thumbnail", new_photos.make_thumbnail))
    parts = {
        "encoder": SimpleNamespace(image_size=64, views=PhotoViews()),
        "index": SimpleNamespace(settings=IndexSettings()),
    }
    localizer, upload = cast(Localizer, SimpleNamespace(**parts)), Upload(name="a.jpg", raw=good_photo(1))
    position = {"latitude": "1", "longitude": "2"}
    photo, _ = new_photos.read_new_photo(upload, position, ServerSettings(), localizer, memory)
    assert photo.thumbnail and used == dict.fromkeys(("photo", "thumbnail"), decoded_bytes(upload.raw))
    assert memory.usual.used == 0


def test_photos_are_split_by_pixels() -> None:
    photos = [torch.zeros(3, side, 10, dtype=torch.uint8) for side in (10, 10, 30, 5, 5)]
    assert [len(part) for part in split_by_pixels(photos, 200)] == [2, 1, 2]
    assert split_by_pixels([], 200) == []


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
        ({"allowed_hosts": ("maps.example.org:443",)}, "--allowed_hosts"),
        ({"allowed_hosts": ("https://maps.example.org",)}, "--allowed_hosts"),
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


def test_everything_that_a_server_logs_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what asyncio, uvicorn and threads report, as when the process may open no more files."""

    def serve(*_: Any, **__: Any) -> None:
        for name in ("asyncio", "uvicorn.error", "cosplace.index.store"):
            logging.getLogger(name).error("%s:\ntoo many open files", name, exc_info=OSError(24, "Too many open files"))
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a warning", UserWarning, stacklevel=1)
        thread = threading.Thread(target=lambda: {}["missing"])
        thread.start()
        thread.join()

    monkeypatch.setattr("cosplace.server.serve", serve)
    monkeypatch.setattr("cosplace.localization.localizer.Localizer", lambda *_, **__: None)
    serve_index("index")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["error", "error", "error", "warning", "error"]
    assert "too many open files" in lines[0]["message"] and "Too many open files" in lines[0]["traceback"]
    assert "KeyError" in lines[4]["traceback"]


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


def test_what_was_read_last_is_shown() -> None:
    """A check for changes that is slow does not hide a photo that was added meanwhile."""
    photos, reading, go_on = [1.0], threading.Event(), threading.Event()

    def columns() -> Columns:
        found = list(photos)
        if reading.is_set() and not go_on.is_set():
            reading.clear()
            go_on.wait(10)
        return columns_at(found, found)

    index = SimpleNamespace(columns=columns, refresh=lambda: True, missing_files=list)
    localizer = SimpleNamespace(index=index, encoder=SimpleNamespace(name="model"), certainty=lambda: None)
    served = ServedIndex(cast(Localizer, localizer), ServerSettings())
    reading.set()
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(served.refresh)
        while reading.is_set() and not slow.done():
            time.sleep(0.01)
        photos.append(2.0)
        fast = pool.submit(served.refresh)
        time.sleep(0.2)
        go_on.set()
        slow.result(), fast.result()
    assert served.num_photos == len(served.points) == 2


def test_memory_is_given_back_after_growth_only() -> None:
    mib, used, given_back = 1 << 20, [0], []

    def give_back() -> None:
        given_back.append(used[0] // mib)
        used[0] = 950 * mib

    memory = FreedMemory(lambda: used[0], give_back)
    for number in (900, 800, 1000, 1312):  # the start, an idle server, the first batches
        used[0] = number * mib
        memory.check()
    assert not given_back
    for number in (1313, 1400, 1462, 1463, 1000):
        used[0] = number * mib
        memory.check()
    assert given_back == [1313, 1463]  # more than 512 MiB above 800, then above 950


def test_checks_of_memory_go_on_after_a_failure(monkeypatch) -> None:
    monkeypatch.setattr("cosplace.server.freed_memory.CHECK_S", 0.001)
    calls = []

    def used() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no /proc")
        return 0

    async def run() -> None:
        task = asyncio.create_task(FreedMemory(used).check_forever())
        while len(calls) < 3:
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_sharing_metrics_goes_on_after_failures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cosplace.server.metrics.SHARE_S", 0.001)
    monkeypatch.setenv(METRICS_VARIABLE, "folder")
    calls, metrics = list[int](), Metrics()

    def queued() -> float:
        calls.append(1)
        if len(calls) <= 5:
            raise OSError("no space left on the disk")
        return 3

    metrics.set_gauges(queued=queued, indexed=lambda: 7, body_bytes=lambda: 0)

    async def run() -> None:
        task = asyncio.create_task(metrics.share_forever())
        while metrics.registry.get_sample_value("cosplace_index_photos") != 7:
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 10))
    assert caplog.text.count("metrics could not be shared") == 3  # of five failures, the 1st, 2nd and 4th
