"""Unusual requests, clients and states of the index on a server; a judge for each value is in the test's docstring."""

import io
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from cosplace import GeoLocalizationNet, Localizer, load_model, open_index
from cosplace.config.index import IndexSettings
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.server import ServerSettings, create_app
from cosplace.server.process import listening_socket, make_server
from tests.unusual_input.samples import encoded, place_pixels

pytestmark = pytest.mark.slow  # they run whole commands

SIDE = 48
TOKEN = "token-of-the-test"
FOLDER = "/srv/archive/street"
NUM_PLACES = 4


def write_index(folder: Path, longitudes: list[float], image_size: int | None = SIDE) -> Path:
    """Write an index of one photo per longitude, on the equator, with thumbnails."""
    weights = folder / "model.pth"
    torch.manual_seed(0)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), weights)
    encoder = load_model(weights, image_size=image_size, device="cpu")
    pixels = [place_pixels(place, side=SIDE) for place in range(len(longitudes))]
    photos = [
        NewPhoto(
            path=f"{FOLDER}/{n}.jpg", key=str(n), latitude=0.0, longitude=longitude, source=FOLDER,
            thumbnail=encoded(pixels[n]),
        )
        for n, longitude in enumerate(longitudes)
    ]  # fmt: skip
    spec = ModelSpec(model=encoder.name, checksum=encoder.checksum, dimension=16, image_size=image_size)
    with create_index(folder / "index", spec, IndexSettings(thumbnail_size=SIDE)) as index:
        index.add(photos, encoder.encode(pixels))
    return folder / "index"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_index(tmp_path_factory.mktemp("stored"), [0.001 * place for place in range(NUM_PLACES)])


@pytest.fixture
def index(stored: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(stored, tmp_path / "index"))


@contextmanager
def running_server(app: Any, **options: Any) -> Iterator[tuple[str, int]]:
    settings = ServerSettings(**options)
    with listening_socket("127.0.0.1", 0) as listener:
        server = make_server(app(settings), settings)
        listener.listen(100)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def client_of(index: Path, **options: Any) -> Iterator[httpx.Client]:
    localizer = Localizer(index, uncalibrated=True, min_confidence=0, device="cpu")
    app = running_server(lambda settings: create_app(localizer, settings), **options)
    with app as (host, port), httpx.Client(base_url=f"http://{host}:{port}", timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(stored: Path) -> Iterator[httpx.Client]:
    """A client of a server that no test changes."""
    with client_of(stored) as shared:
        yield shared


def is_true_in_time(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


# --- the cost of photos ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_large_photos_of_one_request_are_split_into_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum: 16 photos of 256 x 2048 have 8.4 megapixels; a batch of usual photos has at most 6."""
    num_pixels: list[int] = []

    def forward(network: GeoLocalizationNet, images: torch.Tensor) -> torch.Tensor:
        num_pixels.append(images.shape[0] * images.shape[2] * images.shape[3])
        return torch.nn.functional.normalize(torch.ones(len(images), 16))

    index = write_index(tmp_path, [0.0], image_size=None)
    files = [("files", (f"{n}.png", encoded(np.full((2048, 256, 3), n, np.uint8), "PNG"))) for n in range(16)]
    with client_of(index, batch_wait_ms=500, decoding_threads=1) as client:
        monkeypatch.setattr(GeoLocalizationNet, "forward", forward)
        assert client.post("/locate", files=files).status_code == 200
    assert sum(num_pixels) == 16 * 256 * 2048 and max(num_pixels) <= 6_000_000


@pytest.mark.slow
def test_scans_of_a_jpeg_are_limited_by_their_pixels(client: httpx.Client) -> None:
    """The formula: 64 scans of 2600 x 2600 pixels visit 433 million pixels; photos of cameras, at most 100 million."""
    buffer = io.BytesIO()
    Image.new("RGB", (2600, 2600), (90, 90, 90)).save(buffer, "JPEG", progressive=True)
    raw = buffer.getvalue()
    last = raw.rindex(b"\xff\xda")
    num_scans = raw.count(b"\xff\xda")
    raw = raw[:last] + raw[last:-2] * (64 - num_scans + 1) + raw[-2:]
    assert raw.count(b"\xff\xda") == 64
    response = client.post("/locate", content=raw, headers={"Content-Type": "image/jpeg"})
    assert response.status_code in (413, 422) and "scans" in response.json()["detail"]


# --- connections -----------------------------------------------------------------------------------------------------


async def small_app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def status_of(address: tuple[str, int], *headers: str) -> int:
    request = "\r\n".join(["GET / HTTP/1.1", "Host: localhost", *headers, "Connection: close", "", ""])
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request.encode())
        return int(connection.recv(1000).split()[1])


def test_idle_connections_do_not_keep_new_clients_out() -> None:
    """HTTP: each of the connections got its answer, and has sent one byte since."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running_server(lambda _: small_app, max_connections=10) as address, ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(socket.create_connection(address, timeout=10))
            connection.sendall(request + b"G")
            connection.recv(1000)
        assert [status_of(address) for _ in range(3)] == [200, 200, 200]


def test_large_headers_are_refused(client: httpx.Client) -> None:
    """HTTP: 431 Request Header Fields Too Large, or 400."""
    assert client.get("/health", headers={"X-Large": "x" * 20_000}).status_code in (400, 431)
    assert client.get("/health", headers={"X-Usual": "x" * 2_000}).status_code == 200


# --- the index while it is served ------------------------------------------------------------------------------------


def test_a_server_notices_that_its_index_is_gone_and_back(index: Path) -> None:
    """The file system: the folder is moved away and back, then one photo is removed."""
    with client_of(index, refresh_s=0.1) as client:
        assert client.get("/health").json()["status"] == "ok"
        index.rename(index.with_name("away"))
        is_noticed = is_true_in_time(lambda: client.get("/health").json()["status"] != "ok")
        index.with_name("away").rename(index)
        with open_index(index, write=True) as writer:
            writer.remove([0])
        is_refreshed = is_true_in_time(lambda: client.get("/health").json()["photos"] == NUM_PLACES - 1)
    assert is_noticed and is_refreshed


def test_a_missing_index_is_a_failure_of_the_server(index: Path) -> None:
    """HTTP: 503 Service Unavailable, not 404 (no such photo), 409 (in use) or 500 (bug)."""
    with client_of(index, token=TOKEN, refresh_s=0) as client:
        shutil.rmtree(index)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answers = client.get("/photos/0"), client.delete("/photos/0", headers=headers)
    assert [answer.status_code for answer in answers] == [503, 503]
    assert all("index" in answer.json()["detail"] for answer in answers)


def test_a_lost_temporary_folder_is_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP: 507 Insufficient Storage."""
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    with client_of(index) as client:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        response = client.post("/locate", files=[("files", ("photo.png", encoded(noise, "PNG")))])
    assert response.status_code == 507 and "TMPDIR" in response.json()["detail"]


# --- other sites, and what strangers see -----------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}])
def test_requests_from_pages_of_other_sites_are_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    """Fetch metadata: browsers send these headers for a page of another site."""
    photo = encoded(place_pixels(1, side=SIDE))
    assert client.post("/locate", content=photo, headers={"Content-Type": "image/jpeg"}).status_code == 200
    assert client.post("/locate", content=photo, headers=headers).status_code == 403


def test_a_host_that_only_starts_like_an_address_is_refused(client: httpx.Client) -> None:
    """HTTP: 421 Misdirected Request; RFC 3986 allows only a port after the brackets."""
    assert client.get("/health", headers={"Host": "[::1]evil"}).status_code == 421
    assert client.get("/health", headers={"Host": "[::1]:8000"}).status_code == 200


def test_folders_of_the_server_are_not_told_to_clients(client: httpx.Client) -> None:
    """The path that was stored: only its last part is a name."""
    photo = client.get("/photos/0").text
    located = client.post("/locate", content=encoded(place_pixels(0, side=SIDE))).text
    assert "0.jpg" in photo and "0.jpg" in located
    assert FOLDER not in photo + located


# --- the map ---------------------------------------------------------------------------------------------------------

SHOWN = """() => {
    const map = document.querySelector("#map").getBoundingClientRect();
    const places = (selector) => [...document.querySelectorAll(selector)].map((one) => {
        const box = one.getBoundingClientRect();
        return box.x + box.width / 2 - map.x;
    });
    return { width: map.width, pin: places(".pin-icon")[0], matches: places(".match") };
}"""
DROP = """(bytes) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "photo.jpg", { type: "image/jpeg" }));
    for (const kind of ["dragover", "drop"])
        window.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
def test_an_answer_near_180_degrees_is_drawn_next_to_its_matches(tmp_path: Path) -> None:
    """A browser: photos 22 m apart, on both sides of 180 degrees, are within one view of the map."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    index = write_index(tmp_path, [179.9998, 180.0 - 1e-6, -179.9998, -179.9996])
    with client_of(index) as client, playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800}, reduced_motion="reduce")
        page.goto(str(client.base_url))
        page.wait_for_selector("#map[data-ready][data-points]")
        page.evaluate("() => { cosplace.map.setView([0, 180], 17, { animate: false }) }")
        page.evaluate(DROP, list(encoded(place_pixels(2, side=SIDE))))
        page.wait_for_selector(".match", state="attached")
        page.wait_for_timeout(500)
        shown, zoom = page.evaluate(SHOWN), page.evaluate("() => cosplace.map.getZoom()")
        browser.close()
    assert zoom > 14 and len(shown["matches"]) >= 2
    assert all(0 < x < shown["width"] for x in (shown["pin"], *shown["matches"]))
