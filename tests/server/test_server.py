"""The server: answers, errors, limits, order of results, and a shutdown that loses nothing."""

import errno
import gc
import json
import os
import re
import socket
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cosplace
from cosplace.errors import (
    DamagedIndexError,
    DeviceError,
    IndexInUseError,
    MissingIndexError,
    PhotoIndexError,
    StorageError,
)
from cosplace.index.photo_index import open_index
from cosplace.index.records import NewPhoto
from cosplace.localization.answers import as_json
from cosplace.localization.localizer import Localizer
from cosplace.photos.opening import decode_upload
from cosplace.server.batching import max_places, num_places
from cosplace.server.json_lines import JsonLines
from cosplace.server.settings import ServerSettings
from tests.server.server_samples import (
    NUM_PLACES,
    SIDE,
    client_of,
    encoded,
    good_photo,
    jpeg,
    make_index,
    malformed,
    png_with_size,
    position_of,
)
from tests.synthetic_dataset import place_image

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

FORM_WITHOUT_FILES = b'--abc\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--abc--\r\n'
TOKEN = "a-token-for-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def localizer(index_folder: Path) -> Localizer:
    return Localizer(index_folder, device="cpu", uncalibrated=True)


@pytest.fixture(autouse=True)
def _one_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches on machines with any number of cores; tests/server/test_batching.py has more cores."""
    monkeypatch.setattr("cosplace.server.batching.cores_of_network", lambda _: 1)


@pytest.fixture
def client(localizer: Localizer):
    with client_of(localizer) as client:
        yield client


def answer_of(localizer: Localizer, raw: bytes, name: str, where=None) -> dict:
    return as_json(localizer.locate(decode_upload(raw, name), name=name, where=where))


def assert_same(got: dict, expected: dict) -> None:
    """Compare answers up to the last digits, which depend on the other photos of a batch."""
    assert got.keys() == expected.keys()
    for key in ("photo", "unknown", "reason"):
        assert got[key] == expected[key]
    for key in ("latitude", "longitude", "radius_m", "confidence"):
        assert got[key] == pytest.approx(expected[key], abs=2e-4)
    assert [row["id"] for row in got["neighbours"][:3]] == [row["id"] for row in expected["neighbours"][:3]]
    assert [row["similarity"] for row in got["neighbours"]] == pytest.approx(
        [row["similarity"] for row in expected["neighbours"]], abs=2e-4
    )


class InterceptedLocalizer:
    """A localizer that calls a function before it encodes a batch, and records the batch sizes."""

    def __init__(self, localizer: Localizer, before_encode=None) -> None:
        self.index, self.inner = localizer.index, localizer
        self.encoder = self
        self.name, self.image_size = localizer.encoder.name, localizer.encoder.image_size
        self.views, self.device = localizer.encoder.views, localizer.encoder.device
        self.certainty, self.compile = localizer.certainty, localizer.encoder.compile
        self.batches: list[int] = []
        self.before_encode = before_encode or (lambda photos: None)

    def encode(self, photos, **options) -> np.ndarray:
        self.batches.append(len(photos))
        self.before_encode(photos)
        return self.inner.encoder.encode(photos, **options)

    def locate_descriptors(self, descriptors, names, *, where=None):
        return self.inner.locate_descriptors(descriptors, names, where=where)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_answer_equals_that_of_the_localizer(client, localizer, kind) -> None:
    raw = good_photo(3, kind=kind)
    found = client.post("/locate", files=[("files", ("here.jpg", raw))])
    assert found.status_code == 200
    (answer,) = found.json()["results"]
    assert_same(answer, answer_of(localizer, raw, "here.jpg"))
    assert len(answer["neighbours"]) == 20


def test_a_photo_as_the_body(client, localizer) -> None:
    raw = good_photo(4)
    for kind in ("image/jpeg", "application/octet-stream"):
        found = client.post("/locate", content=raw, headers={"Content-Type": kind})
        assert_same(found.json()["results"][0], answer_of(localizer, raw, "photo"))


def test_results_are_in_the_order_sent_with_an_error_for_a_damaged_photo(client, localizer) -> None:
    photos = [(f"{number}.jpg", good_photo(number)) for number in range(5)]
    files = [*photos[:2], ("bad.jpg", good_photo(9)[:500]), *photos[2:]]
    found = client.post("/locate", files=[("files", file) for file in files])
    assert found.status_code == 200
    results = found.json()["results"]
    assert [result["photo"] for result in results] == [name for name, _ in files]
    assert set(results.pop(2)) == {"photo", "error"}
    for result, (name, raw) in zip(results, photos, strict=True):
        assert_same(result, answer_of(localizer, raw, name))


def test_filters_reach_the_search(client) -> None:
    latitude, longitude = position_of(5)
    raw = good_photo(1)
    near = client.post("/locate", params={"near": f"{latitude},{longitude},20"}, content=raw).json()["results"][0]
    assert {row["latitude"] for row in near["neighbours"]} == {round(latitude, 7)}
    box = f"-122.5,{latitude - 0.0001},-122.3,{latitude + 0.001}"
    boxed = client.post("/locate", params={"bbox": box}, content=raw).json()["results"][0]
    assert {row["latitude"] for row in boxed["neighbours"]} == {round(position_of(n)[0], 7) for n in (5, 6)}
    for parameters in (
        {"near": "1,2"},
        {"near": "95,0,5"},
        {"near": "1,2,-3"},
        {"near": "nan,0,5"},
        {"bbox": "a,b,c,d"},
    ):
        refused = client.post("/locate", params=parameters, content=raw)
        assert refused.status_code == 422 and next(iter(parameters)) in refused.json()["detail"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("nearr=37.7,-122.4,20", "no parameter 'nearr'"),
        ("Near=37.7,-122.4,20", "no parameter 'Near'"),
        ("near=37.7,-122.4,20&near=37.8,-122.4,20", "near is given 2 times"),
        ("near=37.7,-122.4,20&near=37.7,-122.4,20", "near is given 2 times"),
        ("%0Ax", "no parameter '\\nx'"),
    ],
)
def test_unknown_and_repeated_parameters_are_refused(client, query, words) -> None:
    refused = client.post(f"/locate?{query}", content=good_photo(1))
    assert refused.status_code == 422
    assert words in refused.json()["detail"] and "near, bbox, after, before, sequence" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("path", "field", "words"),
    [
        ("/locate", "near", "near is a URL parameter, not a form field. Use ?near=VALUE."),
        ("/locate", "topk", "There is no form field 'topk'. Form fields: files; URL parameters: near, bbox, "),
        ("/locate", "a\nb", "There is no form field 'a"),
        ("/photos", "lat", "There is no form field 'lat'. Form fields: files, latitude, longitude, heading."),
    ],
)
def test_unknown_form_fields_are_refused(localizer, path: str, field: str, words: str) -> None:
    with client_of(localizer, token=TOKEN) as client:
        files = [("files", ("a.jpg", good_photo(1)))]
        refused = client.post(path, files=files, data={field: "48.1,11.5,20"}, headers=BEARER)
        assert refused.status_code == 422
        assert refused.json()["detail"].startswith(words) and "\n" not in refused.json()["detail"]
        assert "cosplace_body_bytes 0.0" in client.get("/metrics").text


def test_a_form_field_that_is_given_twice_is_refused(own_folder) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    with client_of(localizer, token=TOKEN) as client:
        files = [("files", ("a.jpg", good_photo(1, variant=9)))]
        form = {"latitude": ["45.0", "46.0"], "longitude": "7.0"}
        refused = client.post("/photos", files=files, data=form, headers=BEARER)
        assert refused.status_code == 422
        assert refused.json()["detail"] == "The form field 'latitude' is given 2 times. Send it once."
        assert client.get("/health").json()["photos"] == 3 * NUM_PLACES
        accepted = client.post("/photos", files=files, data=form | {"latitude": "45.0"}, headers=BEARER)
        assert accepted.status_code == 201, accepted.text


def test_photos_of_several_requests_share_batches(localizer) -> None:
    gate = threading.Event()
    intercepted = InterceptedLocalizer(localizer, lambda photos: gate.wait(10))
    raws = {number: good_photo(number) for number in range(NUM_PLACES)}
    with client_of(intercepted, max_batch=8, batch_wait_ms=50) as client, ThreadPoolExecutor(NUM_PLACES) as clients:
        futures = {0: clients.submit(client.post, "/locate", content=raws.pop(0))}
        wait_until(lambda: intercepted.batches == [1])
        futures |= {number: clients.submit(client.post, "/locate", content=raw) for number, raw in raws.items()}
        decoded = f'cosplace_stage_seconds_count{{stage="decode"}} {NUM_PLACES}.0'
        wait_until(lambda: decoded in client.get("/metrics").text)
        gate.set()
        answers = {number: future.result().json()["results"][0] for number, future in futures.items()}
    assert intercepted.batches == [1, 8, NUM_PLACES - 9]
    for number, answer in answers.items():
        assert_same(answer, answer_of(localizer, good_photo(number), "photo"))


def wait_until(condition, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not become true in time"
        time.sleep(0.01)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_malformed_uploads_get_a_4xx_and_the_server_keeps_working(client, localizer) -> None:
    source = malformed()
    for number in range(120):
        what, raw, statuses = next(source)
        if number % 2:
            refused = client.post("/locate", files=[("files", ("x.jpg", raw))])
        else:
            refused = client.post("/locate", content=raw, headers={"Content-Type": "image/jpeg"})
        assert refused.status_code in statuses, (what, refused.status_code, refused.text)
        detail = refused.json()["detail"]
        assert detail and "\n" not in detail and "Traceback" not in detail, what
    assert client.get("/health").json()["in_line"] == 0
    raw = good_photo(2)
    assert_same(client.post("/locate", content=raw).json()["results"][0], answer_of(localizer, raw, "photo"))


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"x", "multipart/form-data", 400),
        (b"no boundary here", "multipart/form-data; boundary=abc", 400),
        (b"--abc\r\n\r\nx\r\n--abc--\r\n", "multipart/form-data; boundary=abc", 400),
        (FORM_WITHOUT_FILES, "multipart/form-data; boundary=abc", 400),
        (b"", "image/jpeg", 400),
    ],
)  # fmt: skip
def test_bodies_without_photos(client, content, kind, status) -> None:
    refused = client.post("/locate", content=content, headers={"Content-Type": kind})
    assert refused.status_code == status
    assert refused.json()["detail"]


def test_upload_limits_hold_with_and_without_a_declared_length(localizer) -> None:
    def chunks(total: int):
        for _ in range(total // 65_536):
            yield b"\xff" * 65_536

    with client_of(localizer, max_upload_mb=1, max_files=2) as client:
        for body in (b"\xff" * 1_100_000, chunks(1_310_720), b"\xff" * 9_000_000, chunks(9_000_000)):
            refused = client.post("/locate", content=body, headers={"Content-Type": "image/jpeg"})
            assert refused.status_code == 413, refused.text
            assert "MB" in refused.json()["detail"]
        one = ("files", ("a.jpg", b"\xff" * 1_100_000))
        assert client.post("/locate", files=[one]).status_code == 413
        three = [("files", ("a.jpg", good_photo(0)))] * 3
        assert client.post("/locate", files=three).status_code == 413
        assert client.post("/locate", files=three[:2]).status_code == 200
        assert "cosplace_body_bytes 0.0" in client.get("/metrics").text


def test_a_form_with_too_many_or_too_large_fields_is_refused(client) -> None:
    for parts in ({f"f{number}": "x" for number in range(20_000)}, {"one": "x" * 100_000}):
        refused = client.post("/locate", data=parts, files=[("files", ("a.jpg", good_photo(0)))])
        assert refused.status_code == 413, refused.text


def test_pixels_are_counted_before_decoding(localizer) -> None:
    with client_of(localizer, max_pixels=SIDE * SIDE - 1) as client:
        refused = client.post("/locate", content=good_photo(0))
        assert refused.status_code == 413
        assert "megapixels; the limit is" in refused.json()["detail"]


def test_messages_contain_the_file_name_but_no_path(client) -> None:
    for given, shown in (
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("a\u202eb.jpg", "a b.jpg"),
        ("", None),
    ):
        files = [("files", (given, b"no photo"))] if given else [("files", ("x" * 500, b"no photo"))]
        detail = client.post("/locate", files=files).json()["detail"]
        assert "/" not in detail and len(detail) < 200
        assert shown is None or shown in detail


# --- full queue, time limit, failures --------------------------------------------------------------------------------


def test_a_full_queue_gets_429_with_retry_after(localizer) -> None:
    gate = threading.Event()
    intercepted = InterceptedLocalizer(localizer, lambda photos: gate.wait(10))
    with client_of(intercepted, max_queue=2, max_files=2, max_batch=1) as client, ThreadPoolExecutor(2) as clients:
        waiting = [clients.submit(client.post, "/locate", content=good_photo(0)) for _ in range(2)]
        wait_until(lambda: client.get("/health").json()["in_line"] == 2)
        refused = client.post("/locate", content=good_photo(1))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        gate.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert client.post("/locate", content=good_photo(1)).status_code == 200


def test_a_request_above_the_time_limit_gets_504_and_frees_the_queue(localizer) -> None:
    gate = threading.Event()
    intercepted = InterceptedLocalizer(localizer, lambda photos: gate.wait(10))
    with client_of(intercepted, time_limit_s=0.3, max_batch=1) as client:
        started = time.monotonic()
        late = client.post("/locate", files=[("files", (f"{n}.jpg", good_photo(n))) for n in range(3)])
        assert late.status_code == 504 and "0.3 s" in late.json()["detail"]
        assert time.monotonic() - started < 5
        gate.set()
        wait_until(lambda: client.get("/health").json()["in_line"] == 0)
        assert len(intercepted.batches) == 1  # the expired photos behind it were not encoded
        assert client.post("/locate", content=good_photo(1)).status_code == 200


def test_a_photo_that_fails_does_not_fail_the_others_of_its_batch(localizer, caplog) -> None:
    bad = decode_upload(good_photo(1), "x")

    def fail(photos) -> None:
        if any(bool((photo == bad).all()) for photo in photos):
            raise DeviceError("Not enough memory on /secret/path") if len(photos) == 1 else RuntimeError("a bug")

    with client_of(InterceptedLocalizer(localizer, fail)) as client:
        results = client.post("/locate", files=[("files", (f"{n}.jpg", good_photo(n))) for n in range(3)]).json()[
            "results"
        ]
        assert [("error" in result) for result in results] == [False, True, False]
        assert "secret" not in results[1]["error"]
        alone = client.post("/locate", content=good_photo(1))
        assert alone.status_code == 500 and "secret" not in alone.text
        assert client.get("/health").status_code == 200


def test_stopping_finishes_all_accepted_photos(localizer) -> None:
    intercepted = InterceptedLocalizer(localizer, lambda photos: time.sleep(0.1))
    with ThreadPoolExecutor(8) as clients:
        with client_of(intercepted, max_batch=1) as client:
            futures = [clients.submit(client.post, "/locate", content=good_photo(n)) for n in range(6)]
            wait_until(lambda: client.get("/health").json()["in_line"] >= 5)
        assert [future.result().status_code for future in futures] == [200] * 6


# --- cost of photos --------------------------------------------------------------------------------------------------


def long_png(height: int, width: int) -> bytes:
    return encoded(np.full((height, width, 3), 90, np.uint8), "PNG")


def test_batches_are_limited_by_pixels_and_requests_take_turns(localizer) -> None:
    """One request of 16 panoramas: small uploads that cost much memory and time."""
    started, gate, num_pixels = threading.Event(), threading.Event(), []

    def note(photos) -> None:
        num_pixels.append(sum(photo.shape[1] * photo.shape[2] for photo in photos))
        started.set()
        gate.wait(10)

    panorama = long_png(SIDE, 8 * SIDE)  # 32,768 pixels
    files = [("files", (f"{number}.png", panorama)) for number in range(16)]
    intercepted = InterceptedLocalizer(localizer, note)
    with client_of(intercepted, max_batch_pixels=100_000, batch_wait_ms=50) as client, ThreadPoolExecutor(2) as clients:
        attack = clients.submit(client.post, "/locate", files=files)
        started.wait(10)
        honest = clients.submit(client.post, "/locate", content=good_photo(3))
        decoded = 'cosplace_stage_seconds_count{stage="decode"} 17.0'
        wait_until(lambda: decoded in client.get("/metrics").text)
        gate.set()
        assert honest.result().status_code == 200 and len(attack.result().json()["results"]) == 16
    assert max(num_pixels) <= 100_000 and len(num_pixels) == 6
    assert num_pixels[1] % (8 * SIDE * SIDE) == SIDE * SIDE  # the other request was answered in the next batch


def test_a_photo_with_too_many_pixels_after_resizing_is_refused(localizer) -> None:
    with client_of(localizer, max_batch_pixels=100_000) as client:
        for shape in ((10, 5_000), (5_000, 10), (40, 400)):
            assert client.post("/locate", content=long_png(*shape)).status_code in (413, 422), shape
        assert client.post("/locate", content=long_png(40, 300)).status_code == 200
    large = InterceptedLocalizer(localizer)
    large.image_size = 200
    with client_of(large, max_batch_pixels=100_000) as client:
        assert client.post("/locate", content=long_png(100, 200)).status_code == 200
        refused = client.post("/locate", files=[("files", ("wide.png", long_png(100, 260)))])
        assert refused.status_code == 413 and "wide.png has 520 x 200 pixels after" in refused.json()["detail"]


def test_places_in_the_queue_are_taken_by_decoded_bytes(localizer) -> None:
    gate = threading.Event()
    intercepted = InterceptedLocalizer(localizer, lambda photos: gate.wait(10))
    large = long_png(6_000, 6_000)  # takes 504 MB to decode
    with client_of(intercepted, max_queue=3, max_files=2) as client, ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(client.post, "/locate", content=large)
        wait_until(lambda: client.get("/health").json()["in_line"] == 1)
        assert client.post("/locate", content=good_photo(1)).status_code == 429
        gate.set()
        assert waiting.result().status_code == 200
        wait_until(lambda: client.get("/health").json()["in_line"] == 0)
        # A photo that its header refuses takes one place.
        files = [("files", ("a.jpg", good_photo(1))), ("files", ("b.png", png_with_size(60_000, 60_000)))]
        first, second = client.post("/locate", files=files).json()["results"]
        assert "error" not in first and "megapixels" in second["error"]


def test_one_request_does_not_take_the_whole_queue(localizer) -> None:
    gate = threading.Event()
    intercepted = InterceptedLocalizer(localizer, lambda photos: gate.wait(10))
    large = long_png(6_000, 6_000)  # takes 4 places
    files = [("files", (f"{number}.png", large)) for number in range(3)]
    with client_of(intercepted, max_queue=18, max_files=4) as client, ThreadPoolExecutor(2) as clients:
        refused = client.post("/locate", files=files)
        assert refused.status_code == 413
        assert refused.json()["detail"] == (
            "The photos take about 1,536 MB to decode; the limit of one request is 1,152 MB. Send fewer photos at once."
        )
        waiting = clients.submit(client.post, "/locate", files=files[:2])
        wait_until(lambda: client.get("/health").json()["in_line"] == 2)
        other = clients.submit(client.post, "/locate", content=good_photo(1))
        wait_until(lambda: client.get("/health").json()["in_line"] == 3)
        gate.set()
        assert other.result().status_code == waiting.result().status_code == 200


@pytest.mark.parametrize("bytes_per_pixel", [6, 28])  # JPEG, WebP
def test_a_request_may_have_the_largest_number_of_ordinary_photos(bytes_per_pixel: int, monkeypatch) -> None:
    monkeypatch.setattr("cosplace.server.batching.decoded_bytes", lambda raw: bytes_per_pixel * 12_000_000)
    settings = ServerSettings()
    assert settings.max_files * num_places(b"", settings) <= max_places(settings)


def test_photos_that_are_added_are_encoded_within_the_limits(tmp_path) -> None:
    intercepted = InterceptedLocalizer(Localizer(make_index(tmp_path), device="cpu", uncalibrated=True))
    files = [("files", (f"{n}.png", encoded(place_image(n, 3, SIDE).repeat(8, 1), "PNG"))) for n in range(8)]
    with client_of(intercepted, token=TOKEN, max_batch_pixels=100_000) as client:
        added = client.post("/photos", files=files, data={"latitude": "1", "longitude": "2"}, headers=BEARER)
    assert added.status_code == 201 and all(result["added"] for result in added.json()["results"])
    assert intercepted.batches == [3, 3, 2]


def test_threads_survive_any_error(localizer, monkeypatch, caplog) -> None:
    class OddError(BaseException):
        """Not an Exception, as of a library that ends threads."""

    def fail_once(photos) -> None:
        if not failed:
            failed.append(True)
            raise OddError("an odd error")

    failed: list[bool] = []
    with client_of(InterceptedLocalizer(localizer, fail_once)) as client:
        assert client.post("/locate", content=good_photo(1)).status_code == 500
        assert client.post("/locate", content=good_photo(1)).status_code == 200
        with monkeypatch.context() as patched:
            patched.setattr("cosplace.server.batching.decode_upload", lambda *_, **__: fail_once(failed.clear()))
            assert client.post("/locate", content=good_photo(1)).status_code == 500
        assert client.post("/locate", content=good_photo(1)).status_code == 200
        assert client.get("/health").json()["status"] == "ok"
    assert [record.event for record in caplog.records if record.levelname == "ERROR"] == ["bug", "bug"]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files of a Linux process")
def test_memory_and_open_files_stay_flat(localizer) -> None:
    def usage() -> tuple[int, int]:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        num_files = len(list(Path("/proc/self/fd").iterdir()))
        return num_files, int(status.partition("VmRSS:")[2].split()[0]) // 1_024

    def load(num_requests: int) -> None:
        for number in range(num_requests):
            assert client.get(("/health", "/photos", "/photos/3/image")[number % 3]).status_code == 200
        for number in range(num_requests // 15):
            assert client.post("/locate", content=good_photo(number % 12)[:300]).status_code == 422
            with socket.create_connection(address) as connection:  # an upload that breaks off
                header = b"POST /locate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
                kind = b"Content-Type: multipart/form-data; boundary=a\r\n\r\n"
                part = b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
                connection.sendall(header + kind + part + bytes(1_200_000))

    with client_of(localizer) as client:
        address = (client.base_url.host, client.base_url.port)
        load(600)
        wait_until(lambda: "cosplace_body_bytes 0.0" in client.get("/metrics").text)
        files_before, memory_before = usage()
        load(3_000)
        wait_until(lambda: "cosplace_body_bytes 0.0" in client.get("/metrics").text)
        wait_until(lambda: usage()[0] <= files_before + 2)
        assert usage()[1] < memory_before + 50
        assert client.get("/health").json()["in_line"] == 0


# --- storage ---------------------------------------------------------------------------------------------------------


SECRET = "/srv/secret/index"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MissingIndexError(f"{SECRET} does not exist."), 503, "missing"),
        (DamagedIndexError(f"{SECRET} is damaged."), 503, "index verify"),
        (PhotoIndexError(f"Cannot read {SECRET}."), 503, "See the server log"),
        (StorageError(f"{SECRET}: no space left on the disk."), 507, "Free some space"),
        (IndexInUseError(f"{SECRET} is in use (pid 4)."), 409, "Another process"),
    ],
)
def test_storage_failures_say_what_to_do(localizer, monkeypatch, error, status, words) -> None:
    def fail(*_, **__) -> None:
        raise error

    with client_of(localizer, token=TOKEN) as client:
        for name in ("search", "photo", "thumbnail"):
            monkeypatch.setattr(type(localizer.index), name, fail)
        monkeypatch.setattr("cosplace.server.served_index.open_index", fail)
        form = {"latitude": "1", "longitude": "2"}
        for refused in (
            client.post("/locate", content=good_photo(1)),
            client.get("/photos/0"),
            client.get("/photos/0/image"),
            client.delete("/photos/0", headers=BEARER),
            client.post("/photos", files=[("files", ("a.jpg", good_photo(1)))], data=form, headers=BEARER),
        ):
            assert refused.status_code == status, refused.text
            assert words in refused.json()["detail"] and "secret" not in refused.text
        if isinstance(error, PhotoIndexError):
            assert client.get("/photos/999999").status_code == 404


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EMFILE])
def test_a_full_temporary_folder_is_named(localizer, monkeypatch, code) -> None:
    def fail(*_, **__) -> None:
        raise OSError(code, os.strerror(code), "/secret/tmp")

    large = encoded(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8), "PNG")  # above 1 MB
    with client_of(localizer) as client:
        with monkeypatch.context() as patched:
            patched.setattr("tempfile.TemporaryFile", fail)
            refused = client.post("/locate", files=[("files", ("a.png", large))])
        assert refused.status_code == (503 if code == errno.EMFILE else 507)
        assert "secret" not in refused.text and ("TMPDIR" in refused.text or code == errno.EMFILE)
        assert client.post("/locate", files=[("files", ("a.png", large))]).status_code == 200
        assert "cosplace_body_bytes 0.0" in client.get("/metrics").text


def test_too_little_free_space_is_not_called_a_full_disk(own_folder, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 20_000_000, 20_000_000)
    with client_of(Localizer(own_folder, device="cpu", uncalibrated=True), token=TOKEN) as client:
        monkeypatch.setattr("cosplace.index.disk.shutil.disk_usage", lambda path: usage)
        files, form = [("files", ("a.jpg", good_photo(1)))], {"latitude": "1", "longitude": "2"}
        refused = client.post("/photos", files=files, data=form, headers=BEARER)
    assert refused.status_code == 507 and "too little space is free" in refused.json()["detail"]
    assert "is full" not in refused.text and str(own_folder) not in refused.text


def test_an_index_that_was_away_is_read_again(own_folder) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    with client_of(localizer, refresh_s=0.1, token=TOKEN) as client:
        away = own_folder.with_name("away")
        own_folder.rename(away)
        wait_until(lambda: client.get("/health").json()["status"] == "degraded")
        health = client.get("/health")
        assert health.status_code == 200 and "could not be read" in health.json()["problems"][0]
        assert str(own_folder.parent) not in health.text
        assert client.delete("/photos/5", headers=BEARER).status_code == 503
        time.sleep(3)
        with open_index(away, write=True) as index:
            index.remove([0, 1])
        away.rename(own_folder)
        wait_until(lambda: client.get("/config.json").json()["count"] == 3 * NUM_PLACES - 2, 20)
        assert client.get("/health").json() | {"uptime_s": 0} == {
            "status": "ok", "problems": [], "photos": 3 * NUM_PLACES - 2, "in_line": 0, "model": "model.pth",
            "version": cosplace.__version__, "uptime_s": 0,
        }  # fmt: skip
        assert client.get("/photos/0").status_code == 404


def test_health_tells_that_photos_of_the_index_cannot_be_read(own_folder, monkeypatch) -> None:
    """As when files of photos are gone, before the next check for changes."""
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)

    def locate(*_: object, **__: object) -> list:
        raise MissingIndexError("photos.lance/data/1.lance is missing")

    with client_of(localizer) as client:
        with monkeypatch.context() as patched:
            patched.setattr(localizer, "locate_descriptors", locate)
            assert client.post("/locate", files={"files": good_photo(1)}).status_code == 503
        health = client.get("/health").json()
        assert health["status"] == "degraded" and "missing or incomplete" in health["problems"][0]
        assert client.post("/locate", files={"files": good_photo(1)}).status_code == 200
        assert client.get("/health").json()["status"] == "ok"


def test_health_tells_that_the_last_photo_could_not_be_read(own_folder, monkeypatch) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)

    def read(_: int) -> bytes:
        raise MissingIndexError("photos.lance/data/1.lance is missing")

    with client_of(localizer) as client:
        assert client.get("/photos/99999/image").status_code == 404
        with monkeypatch.context() as patched:
            patched.setattr(localizer.index, "thumbnail", read)
            assert client.get("/photos/3/image").status_code == 503
        health = client.get("/health").json()
        assert health["status"] == "degraded" and "missing or incomplete" in health["problems"][0]
        assert client.get("/photos/3/image").status_code == 200
        assert client.get("/health").json()["status"] == "ok"


def test_health_tells_that_files_of_the_index_are_gone(own_folder) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    data = own_folder / "photos.lance" / "data"
    with client_of(localizer, refresh_s=0.1) as client:
        data.rename(own_folder / "away")
        wait_until(lambda: client.get("/health").json()["status"] == "degraded")
        (problem,) = client.get("/health").json()["problems"]
        assert "files of the index are missing, such as photos.lance/data/" in problem and "verify" in problem
        assert client.post("/locate", files={"files": good_photo(1)}).status_code == 200
        (own_folder / "away").rename(data)
        wait_until(lambda: client.get("/health").json()["status"] == "ok")


def test_requests_while_an_index_is_away_log_few_lines(own_folder, caplog) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    with caplog.at_level("INFO", "cosplace.server"), client_of(localizer, refresh_s=0.1) as client:
        own_folder.rename(own_folder.with_name("away"))
        wait_until(lambda: client.get("/health").json()["status"] == "degraded")
        for number in range(10):
            assert (
                client.get(f"/photos/{number}").status_code == client.get(f"/photos/{number}/image").status_code == 503
            )
    records = [record for record in caplog.records if record.levelname == "ERROR"]
    failed = [record.details["failures"] for record in records if record.event == "failed"]
    assert failed == [1, 2, 4, 8, 16]
    assert {record.event for record in records} == {"failed", "refresh_failed"}
    assert all(len(JsonLines().format(record)) < 500 for record in records)
    assert all(str(own_folder) in record.getMessage() for record in records)


def test_another_index_at_the_address_is_not_mixed_with_the_former(own_folder, tmp_path, caplog) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    other = make_index(tmp_path / "other", checksum="d" * 64)
    expected = answer_of(localizer, good_photo(2), "a.jpg")
    with caplog.at_level("INFO", "cosplace.server"), client_of(localizer, refresh_s=0.05, token=TOKEN) as client:
        own_folder.rename(tmp_path / "former")
        other.rename(own_folder)
        wait_until(lambda: client.get("/health").json()["status"] == "degraded")
        health = client.get("/health")
        assert "Restart the server" in health.json()["problems"][0] and str(tmp_path) not in health.text
        answer = client.post("/locate", files=[("files", ("a.jpg", good_photo(2)))])
        assert_same(answer.json()["results"][0], expected)
        upload = {"files": [("files", ("a.jpg", good_photo(40)))], "data": {"latitude": "1", "longitude": "2"}}
        for refused in (
            client.get("/photos/3"),
            client.get("/photos/3/image"),
            client.delete("/photos/3", headers=BEARER),
            client.post("/photos", **upload, headers=BEARER),
        ):
            assert refused.status_code == 503 and "Restart the server" in refused.json()["detail"], refused.text
        with open_index(own_folder) as index:
            assert len(index) == 3 * NUM_PLACES
        assert str(own_folder) in caplog.text and "Another index is now at" in caplog.text
        own_folder.rename(other)
        (tmp_path / "former").rename(own_folder)
        wait_until(lambda: client.get("/health").json()["status"] == "ok", 20)
        assert client.get("/photos/3/image").status_code == 200


def test_checks_for_changes_survive_any_error(localizer, monkeypatch, caplog) -> None:
    errors = [ValueError("a"), ValueError("b"), RuntimeError("c"), KeyError("d"), KeyError("e"), KeyError("f")]
    with caplog.at_level("INFO", "cosplace.server"), client_of(localizer, refresh_s=0.01) as client:
        with monkeypatch.context() as patched:
            patched.setattr(type(localizer.index), "refresh", lambda _: (_ for _ in ()).throw(errors.pop(0)))
            wait_until(lambda: not errors)
        wait_until(lambda: client.get("/health").json()["status"] == "ok", 20)
    events = [record.event for record in caplog.records if hasattr(record, "event")]
    assert events.count("refresh_failed") in (4, 5)  # the first of each kind, and the 2nd and 4th in a row
    assert events.count("recovered") == 1


def test_health_reports_a_check_for_changes_that_does_not_end(localizer, monkeypatch) -> None:
    monkeypatch.setattr("cosplace.server.served_index.LATE_S", 0.1)
    storage_responds = threading.Event()
    with client_of(localizer, refresh_s=0.1) as client:
        monkeypatch.setattr(type(localizer.index), "refresh", lambda _: not storage_responds.wait(30))
        wait_until(lambda: client.get("/health").json()["status"] == "degraded")
        (problem,) = client.get("/health").json()["problems"]
        assert "has not ended" in problem and "storage" in problem
        storage_responds.set()
        wait_until(lambda: client.get("/health").json()["status"] == "ok")


# --- photos of the index ---------------------------------------------------------------------------------------------


def test_photos_of_the_index_are_shown(client) -> None:
    listed = client.get("/photos", params={"bbox": "-123,37,-122,38"}).json()
    assert listed["total"] == 3 * NUM_PLACES == len(listed["points"]) and not listed["clusters"]
    assert {point["heading"] for point in listed["points"]} == {None, 10.0, 20.0}
    clustered = client.get("/photos", params={"limit": 8}).json()
    counts = sum(cluster["count"] for cluster in clustered["clusters"])
    assert counts + len(clustered["points"]) == 3 * NUM_PLACES
    assert len(clustered["clusters"]) + len(clustered["points"]) <= 8
    first = listed["points"][0]["id"]
    photo = client.get(f"/photos/{first}").json()
    assert photo == {
        "id": first, "name": "street/0-0.jpg", "latitude": 37.7, "longitude": -122.4, "heading": None, "time": 1.6e9,
        "accuracy_m": None, "source": "street", "previous": None, "next": None,
    }  # fmt: skip
    image = client.get(f"/photos/{first}/image")
    assert image.headers["content-type"] == "image/jpeg"
    assert decode_upload(image.content, "x").shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("number", ["999999", "-1", str(2**70), "abc", "..%2f..%2fetc%2fpasswd"])
def test_unknown_photo_ids(client, number) -> None:
    for address in (f"/photos/{number}", f"/photos/{number}/image"):
        refused = client.get(address)
        assert refused.status_code in (404, 422)
        assert isinstance(refused.json()["detail"], str)


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    return make_index(tmp_path)


def test_photos_are_added_located_and_deleted(own_folder) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    raw, form = good_photo(50), {"latitude": "48.5", "longitude": "9.05", "heading": "45"}
    with client_of(localizer, token=TOKEN) as client:
        assert client.get("/config.json").json()["can_write"]
        files = [("files", ("new.jpg", raw)), ("files", ("bad.jpg", b"no photo"))]
        added = client.post("/photos", files=files, data=form, headers=BEARER)
        assert added.status_code == 201
        good, bad = added.json()["results"]
        assert good["added"] and "JPEG" in bad["error"]
        again = client.post("/photos", files=files[:1], data=form, headers=BEARER).json()["results"][0]
        assert (again["id"], again["added"]) == (good["id"], False)
        photo = client.get(f"/photos/{good['id']}").json()
        assert (photo["latitude"], photo["longitude"], photo["heading"], photo["source"]) == (
            48.5,
            9.05,
            45.0,
            "upload",
        )
        assert photo["name"].endswith("/new.jpg")
        assert decode_upload(client.get(f"/photos/{good['id']}/image").content, "x").shape[0] == 3
        assert client.get("/config.json").json()["count"] == 3 * NUM_PLACES + 1
        assert client.get("/photos", params={"bbox": "9,48,10,49"}).json()["total"] == 1
        nearest = client.post("/locate", content=raw).json()["results"][0]["neighbours"][0]
        assert nearest["id"] == good["id"] and nearest["similarity"] == pytest.approx(1, abs=1e-3)
        assert client.delete(f"/photos/{good['id']}", headers=BEARER).json() == {"deleted": good["id"]}
        assert client.delete(f"/photos/{good['id']}", headers=BEARER).status_code == 404
        assert client.get(f"/photos/{good['id']}").status_code == 404
        assert client.get("/photos", params={"bbox": "9,48,10,49"}).json()["total"] == 0
    with open_index(own_folder) as index:
        assert len(index) == 3 * NUM_PLACES


def with_gps(latitude: float, longitude: float, heading: float, accuracy_m: float | None = None) -> bytes:
    exif = Image.Exif()
    degrees = [(abs(int(value)), (abs(value) % 1) * 60, 0.0) for value in (latitude, longitude)]
    signs = ("S" if latitude < 0 else "N"), ("W" if longitude < 0 else "E")
    exif[0x8825] = {1: signs[0], 2: degrees[0], 3: signs[1], 4: degrees[1], 17: heading}
    exif[0x8825] |= {} if accuracy_m is None else {31: accuracy_m}
    return jpeg(place_image(60, 0, SIDE), exif=exif)


def test_without_a_position_in_the_form_the_exif_data_is_used(own_folder) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    with client_of(localizer, token=TOKEN) as client:
        raw = with_gps(-33.855, 151.215, 270.0, accuracy_m=1500.0)
        added = client.post("/photos", files=[("files", ("phone.jpg", raw))], headers=BEARER).json()["results"][0]
        photo = client.get(f"/photos/{added['id']}").json()
        assert photo["latitude"] == pytest.approx(-33.855) and photo["longitude"] == pytest.approx(151.215)
        assert photo["heading"] == 270 and photo["accuracy_m"] == 1500
        form = {"latitude": "-33.9", "longitude": "151.3"}  # the error in EXIF is that of the position in EXIF
        other = client.post("/photos", files=[("files", ("a.jpg", raw))], data=form, headers=BEARER)
        photo = client.get(f"/photos/{other.json()['results'][0]['id']}").json()
        assert (photo["latitude"], photo["longitude"], photo["accuracy_m"]) == (-33.9, 151.3, None)
        for form in (
            {},
            {"latitude": "1"},
            {"latitude": "91", "longitude": "0"},
            {"latitude": "0", "longitude": "0"},
            {"latitude": "x", "longitude": "0"},
        ):
            refused = client.post("/photos", files=[("files", ("b.jpg", good_photo(1)))], data=form, headers=BEARER)
            assert refused.status_code == 422, form
            assert "latitude" in refused.json()["detail"].lower()


def test_writing_needs_the_token(own_folder) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    files = [("files", ("a.jpg", good_photo(1)))]
    with client_of(localizer) as client:  # without a token the index is read-only
        for headers in ({}, BEARER, {"Authorization": "Bearer"}):
            assert client.post("/photos", files=files, headers=headers).status_code == 403
            assert client.delete("/photos/0", headers=headers).status_code == 403
    wrong = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"})
    with client_of(localizer, token=TOKEN) as client:
        for headers in (*wrong, {"Authorization": "Bearer tökén".encode("latin-1")}):
            refused = client.delete("/photos/0", headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert client.post("/photos", files=files, headers=headers).status_code == 401
        assert client.get("/health").json()["photos"] == 3 * NUM_PLACES


def test_another_writer_is_a_conflict(own_folder) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    form = {"latitude": "1", "longitude": "2"}
    with client_of(localizer, token=TOKEN) as client:
        with open_index(own_folder, write=True):
            files = [("files", ("a.jpg", good_photo(1)))]
            refused = client.post("/photos", files=files, data=form, headers=BEARER)
            assert refused.status_code == 409 and "Another process" in refused.json()["detail"]
            assert str(own_folder) not in refused.text
            assert client.delete("/photos/0", headers=BEARER).status_code == 409
        assert client.delete("/photos/0", headers=BEARER).status_code == 200


def test_changes_by_other_processes_are_read(own_folder) -> None:
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    with client_of(localizer, refresh_s=0.05) as client:
        with open_index(own_folder, write=True) as index:
            index.remove([0, 1])
        wait_until(lambda: client.get("/config.json").json()["count"] == 3 * NUM_PLACES - 2)
        assert client.get("/photos/0").status_code == 404


def test_the_map_and_the_index_agree_on_the_bounds_across_the_antimeridian(own_folder) -> None:
    with open_index(own_folder, write=True) as index:
        index.remove(index.columns().ids)
        photos = [
            NewPhoto(path=f"{n}.jpg", key=str(n), latitude=-17.0 + n, longitude=longitude, source="fiji")
            for n, longitude in enumerate((179.5, -179.75, 178.25))
        ]
        index.add(photos, np.eye(3, index.spec.dimension, dtype=np.float32))
    localizer = Localizer(own_folder, device="cpu", uncalibrated=True)
    with client_of(localizer) as client:
        bounds = client.get("/config.json").json()["bounds"]
        assert bounds == list(localizer.index.info()["bounds"]) == [178.25, -17.0, -179.75, -15.0]
        assert client.get("/photos", params={"bbox": ",".join(map(str, bounds))}).json()["total"] == 3


# --- middleware, logs, pages -----------------------------------------------------------------------------------------


def test_every_response_has_security_headers(client) -> None:
    responses = [
        client.get(path) for path in ("/health", "/photos", "/nowhere", "/docs", "/config.json", "/static/app.js")
    ]
    for answer in [*responses, client.post("/locate", content=b"x"), client.request("OPTIONS", "/locate")]:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert len(answer.headers["x-request-id"]) == 12
    assert responses[0].headers["cache-control"] == "no-store"


def test_only_the_tile_server_is_added_to_the_policy(localizer) -> None:
    tiles = "https://{s}.tiles.example.org/{z}/{x}/{y}.png"
    with client_of(localizer, tiles=tiles, attribution="(c) Tiles") as client:
        policy = client.get("/").headers["content-security-policy"]
        assert "img-src 'self' blob: data: https://*.tiles.example.org;" in policy
        config = client.get("/config.json").json()
        assert (config["tiles"], config["attribution"]) == (tiles, "(c) Tiles")


def test_other_host_names_are_refused_on_loopback(localizer) -> None:
    with client_of(localizer, allowed_hosts=("maps.example.org",)) as client:
        for host, status in (
            ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("MAPS.example.org", 200),
            ("LOCALHOST.", 200), ("[0:0:0:0:0:0:0:1]:8000", 200),
            ("evil.example.org", 421), ("127.0.0.1.evil.example.org:80", 421), ("", 421), ("[::1]evil", 421),
            ("[::1]evil:80", 421), ("localhost.evil", 421), ("localhost:80@evil", 421), ("localhost:99999", 421),
            ("localhost:80:80", 421), ("localhost..", 421), ("[::1", 421), ("::1", 421), ("localhost evil", 421),
            ("localhost:", 421), ("localhost/evil", 421), ("127.1", 421), ("[localhost]", 421),
        ):  # fmt: skip
            assert client.get("/health", headers={"Host": host}).status_code == status, host
    with client_of(localizer, host="0.0.0.0") as client:
        assert client.get("/health", headers={"Host": "anything.example.org"}).status_code == 200
        assert client.get("/health", headers={"Host": "[::1]evil"}).status_code == 400


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": "null"},
    {"Origin": "https://evil.example.org"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_other_sites_cannot_use_the_server(localizer, headers) -> None:
    with client_of(localizer, token=TOKEN) as client:
        for refused in (
            client.post("/locate", content=good_photo(1), headers=headers),
            client.post("/locate", files=[("files", ("a.jpg", good_photo(1)))], headers=headers),
            client.delete("/photos/0", headers=headers | BEARER),
            client.options("/locate", headers=headers),
            client.get("/photos", headers=headers),
            client.get("/photos/0/image", headers=headers),
            client.get("/config.json", headers=headers),
            client.get("/metrics", headers=headers),
        ):
            assert refused.status_code == 403 and "another site" in refused.json()["detail"]
        for path in ("/", "/docs", "/static/app.js", "/health"):  # links from other sites work
            assert client.get(path, headers=headers).status_code == 200
        assert client.get("/photos/0").status_code == 200


def test_the_page_of_the_server_and_programs_can_use_it(localizer) -> None:
    with client_of(localizer, allowed_hosts=("maps.example.org",)) as client:
        own = str(client.base_url).rstrip("/")
        for headers in (
            {},
            {"Sec-Fetch-Site": "none"},
            {"Sec-Fetch-Site": "same-origin", "Origin": own},
            {"Origin": own},
            {"Origin": "https://maps.example.org"},
            {"Origin": "https://maps.example.org", "Host": "maps.example.org"},
            {"Origin": "http://localhost", "Host": "localhost"},
        ):
            assert client.post("/locate", content=good_photo(1), headers=headers).status_code == 200, headers
    with client_of(localizer, host="0.0.0.0") as client:
        origin = {"Origin": "http://cameras.example.org:8000"}
        same, other = {"Host": "cameras.example.org:8000"}, {"Host": "cameras.example.org"}
        assert client.post("/locate", content=good_photo(1), headers=origin | same).status_code == 200
        assert client.post("/locate", content=good_photo(1), headers=origin | other).status_code == 403


def test_large_headers_are_refused(client) -> None:
    for headers in ({"X-Long": "a" * 20_000}, {f"X-{number}": "a" * 100 for number in range(200)}):
        assert client.get("/health", headers=headers).status_code in (400, 431)
    assert client.get("/health", headers={"X-Long": "a" * 8_000}).status_code == 200


def test_a_body_of_two_lengths_is_refused(localizer) -> None:
    """A proxy may read the other length, and would pass what follows as a request of somebody else."""
    hidden = b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with client_of(localizer) as client, socket.create_connection((client.base_url.host, client.base_url.port)) as link:
        link.settimeout(10)
        link.sendall(
            b"POST /locate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\n%b" % (5 + len(hidden), hidden)
        )
        answer = b"".join(iter(lambda: link.recv(4096), b""))  # until the server closes the connection
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1
    assert b"both Content-Length and Transfer-Encoding" in answer


def test_responses_contain_no_paths_of_the_server(tmp_path) -> None:
    secret = "/home/somebody/holiday"
    folder = make_index(tmp_path)
    with open_index(folder, write=True) as index:
        photos = [
            NewPhoto(
                path=f"{secret}/{n}.jpg",
                key=f"s{n}",
                latitude=50.0,
                longitude=8.0,
                source=secret,
                thumbnail=jpeg(image),
            )
            for n, image in enumerate(place_image(n, 5, SIDE) for n in range(30, 33))
        ]
        descriptors = np.eye(3, index.spec.dimension, dtype=np.float32)
        ids = index.add(photos, descriptors).ids.tolist()
    localizer = Localizer(folder, device="cpu", uncalibrated=True)
    with client_of(localizer) as client:
        answer = client.post("/locate", content=good_photo(31), params={"near": "50,8,1000"})
        photo = client.get(f"/photos/{ids[1]}")
        others = [client.get(path) for path in ("/photos", "/config.json", "/health", "/openapi.json", "/metrics")]
        for response in (answer, photo, *others):
            assert response.status_code == 200
            assert "/home" not in response.text and str(tmp_path) not in response.text
        names = [row["name"] for row in answer.json()["results"][0]["neighbours"]]
        assert sorted(names) == ["0.jpg", "1.jpg", "2.jpg"] or all(name.endswith(".jpg") for name in names)
        assert photo.json()["name"].endswith("1.jpg") and photo.json()["source"] == "holiday"
        assert "path" not in photo.json() and "path" not in answer.json()["results"][0]["neighbours"][0]


@pytest.mark.parametrize("path", ["C:\\Users\\somebody\\31.jpg", "file:///home/somebody/31.jpg"])
def test_names_of_photos_from_other_places_contain_no_folders(tmp_path, path: str) -> None:
    folder = make_index(tmp_path)
    with open_index(folder, write=True) as index:
        photo = NewPhoto(path=path, key="s", latitude=50.0, longitude=8.0, source=path)
        (photo_id,) = index.add([photo], np.eye(1, index.spec.dimension, dtype=np.float32)).ids.tolist()
    with client_of(Localizer(folder, device="cpu", uncalibrated=True)) as client:
        answer = client.post("/locate", content=good_photo(31), params={"near": "50,8,1000"})
        photo = client.get(f"/photos/{photo_id}")
    assert "somebody" not in answer.text + photo.text
    assert photo.json()["name"] == answer.json()["results"][0]["neighbours"][0]["name"] == "31.jpg"


def test_logs_contain_requests_but_no_photos_or_positions(client, caplog) -> None:
    with caplog.at_level("INFO", "cosplace.server"):
        client.post(
            "/locate", params={"near": "37.70001,-122.4,5000"}, files=[("files", ("secret.jpg", good_photo(1)))]
        )
        client.get("/%0afake-line")
        for page in ("/", "/static/app.js", "/static/gone.js", "/docs", "/docs.css", "/charts.js", "/health"):
            client.get(page)
        # A request is logged after its answer was sent.
        expected = {"/locate", "unknown", "/static/{name:path}", "/health"}
        wait_until(lambda: expected <= {record.__dict__.get("details", {}).get("route") for record in caplog.records})

    lines = [JsonLines().format(record) for record in caplog.records if record.name == "cosplace.server"]
    parsed = [json.loads(line) for line in lines]
    located = next(line for line in parsed if line.get("route") == "/locate")
    assert located["event"] == "request" and located["status"] == 200 and located["bytes"] > 1_000
    pages = [
        line for line in parsed if line.get("route") in ("/", "/static/{name:path}", "/docs", "/docs.css", "/charts.js")
    ]
    assert [page["status"] for page in pages] == [404]  # pages are logged only if they fail
    health = next(line for line in parsed if line.get("route") == "/health")
    assert "bytes" not in health  # the request has no body
    assert not any("\n" in line for line in lines)
    assert not any(word in line for line in lines for word in ("secret", "37.70001", "fake"))


def test_metrics_are_counted_per_app(client, localizer) -> None:
    client.post("/locate", content=good_photo(0))
    client.post("/locate", content=b"no photo")
    client.get("/nowhere/at/all")
    client.request("BREW", "/locate")
    text = client.get("/metrics").text
    for line in (
        'cosplace_requests_total{method="POST",route="/locate",status="200"} 1.0',
        'cosplace_requests_total{method="POST",route="/locate",status="415"} 1.0',
        'cosplace_requests_total{method="GET",route="unknown",status="404"} 1.0',
        'cosplace_photos_total{outcome="refused"} 1.0',
        "cosplace_batch_photos_count 1.0",
        f"cosplace_index_photos {3 * NUM_PLACES}.0",
        "cosplace_queue_photos 0.0",
    ):
        assert line in text, line
    assert 'method="BREW"' not in text
    with client_of(localizer) as other:
        assert 'route="/locate"' not in other.get("/metrics").text


def test_the_page_about_the_api_makes_no_outside_requests(client) -> None:
    page = client.get("/docs").text
    described = client.get("/openapi.json").json()
    for path in ("/locate", "/photos", "/photos/{photo_id}/image", "/health", "/metrics"):
        assert path in described["paths"] and path in page
    assert "<script" not in page and "https://" not in page
    assert page.count("http://") == page.count(f"{client.base_url}/") > 0
    assert client.get("/docs.css").headers["content-type"].startswith("text/css")
    assert "files" in json.dumps(described["paths"]["/locate"]["post"]["requestBody"])
    assert described["paths"]["/photos"]["post"]["security"]


def test_the_map_and_its_files_are_served(client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    names = re.findall(r'(?:src|href)="(static/[^"]+)"', page.text)
    assert names
    for name in names:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200 and answer.content, name
        again = client.get(f"/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/static/app.js").headers["content-type"].startswith("text/javascript")


def test_responses_are_not_compressed_unless_accepted(client) -> None:
    plain = client.get("/photos", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.json()["total"] == 3 * NUM_PLACES


def test_only_static_files_are_served(client) -> None:
    for path in ("../server/app.py", "..%2f__init__.py", "%2e%2e/errors.py", "/etc/passwd", "nothing.js", ""):
        assert client.get(f"/static/{path}").status_code == 404, path


def test_a_png_with_excess_data_is_decoded_up_to_its_size(client) -> None:
    import zlib

    bomb = png_with_size(64, 64, zlib.compress(bytes(50_000_000), 9))
    assert client.post("/locate", content=bomb).status_code == 200
    assert client.post("/locate", content=encoded(np.zeros((64, 64), np.uint8), "PNG")).status_code == 200
