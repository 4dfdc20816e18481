"""timm's weights from a local server in the layout of huggingface.co: cut, damaged, missing, and without a network."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from cosplace.errors import DownloadError
from cosplace.models.network import GeoLocalizationNet

timm = pytest.importorskip("timm", reason="pip install 'cosplace[timm]'")
hub = pytest.importorskip("huggingface_hub", reason="pip install 'cosplace[timm]'")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.slow  # importing timm takes seconds

NAME = "test_resnet.r160_in1k"
FILE = f"/timm/{NAME}/resolve/main/model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A server with one repository, which has one file."""

    content: bytes
    sent: bytes | None = None  # in place of the content
    num_bytes: int | None = None  # sent of each body, before the connection ends
    num_bodies: int = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path != FILE:
            handler.send_response(404)
            handler.send_header("X-Error-Code", "EntryNotFound")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        digest = hashlib.sha256(self.content).hexdigest()
        handler.send_response(200)
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("ETag", f'"{digest}"')
        handler.send_header("Content-Length", str(len(self.content)))
        handler.end_headers()
        if handler.command == "GET":
            self.num_bodies += 1
            handler.wfile.write((self.sent or self.content)[: self.num_bytes])


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model("test_resnet").state_dict()


@pytest.fixture
def server(weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub(safetensors.save(weights))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def do_HEAD(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        # The client reads the variables HF_ENDPOINT and HF_HUB_CACHE only when it is imported.
        use_endpoint(monkeypatch, f"http://127.0.0.1:{http.server_port}")
        monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("time.sleep", lambda _: None)  # between two attempts
        yield state
        http.shutdown()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(hub.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def build() -> GeoLocalizationNet:
    return GeoLocalizationNet(f"timm:{NAME}", 16, imagenet_weights="timm")


def assert_same(network: GeoLocalizationNet, weights: dict[str, torch.Tensor]) -> None:
    found: Any = network.backbone
    assert torch.equal(found.model.conv1[0].weight, weights["conv1.0.weight"])


def test_weights_are_downloaded_once(server: Hub, weights: dict[str, torch.Tensor]) -> None:
    for _ in range(2):
        assert_same(build(), weights)
    assert server.num_bodies == 1


def test_a_download_that_is_cut(server: Hub, weights: dict[str, torch.Tensor]) -> None:
    server.num_bytes = 1000
    with pytest.raises(DownloadError, match=rf"^timm cannot download the weights of {NAME} \(.+\)\. Check") as caught:
        build()
    assert "\n" not in str(caught.value)
    server.num_bytes = None
    assert_same(build(), weights)


@pytest.mark.parametrize("place", ["weights", "header"])
def test_a_file_with_another_checksum_is_removed(server: Hub, weights: dict[str, torch.Tensor], place: str) -> None:
    """The client compares sizes only."""
    damaged = bytearray(server.content)
    damaged[-1 if place == "weights" else 9] ^= 1
    server.sent = bytes(damaged)
    right, wrong = (hashlib.sha256(one).hexdigest()[:16] for one in (server.content, damaged))
    with pytest.raises(
        DownloadError, match=rf"weights of {NAME} are damaged: their sha256 is {wrong}\.\.\., not {right}\.\.\.\. They"
    ):
        build()
    server.sent = None
    assert_same(build(), weights)


def test_a_server_without_the_file(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.FILE", "/elsewhere")
    with pytest.raises(DownloadError, match=rf"^timm cannot download the weights of {NAME} \(.+\)\. Check") as caught:
        build()
    assert "\n" not in str(caught.value)


def test_without_a_network(server: Hub, monkeypatch: pytest.MonkeyPatch, weights: dict[str, torch.Tensor]) -> None:
    address = hub.constants.ENDPOINT
    use_endpoint(monkeypatch, "http://127.0.0.1:1")  # nothing listens there
    with pytest.raises(DownloadError, match=rf"^timm cannot download the weights of {NAME} \(.+\)\. Check") as caught:
        build()
    assert "\n" not in str(caught.value)
    use_endpoint(monkeypatch, address)
    assert_same(build(), weights)
    use_endpoint(monkeypatch, "http://127.0.0.1:1")
    assert_same(build(), weights)  # from the cache
