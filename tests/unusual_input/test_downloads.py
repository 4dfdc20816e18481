"""Downloads from a server that answers oddly, and weights that are not real numbers; the judge is the file system."""

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from cosplace import GeoLocalizationNet
from cosplace.errors import DownloadError
from cosplace.models.downloads import download
from tests.unusual_input.samples import run, within, write_model, write_street

MODEL = "cosplace_resnet18_32"


class Server:
    """A server on this machine that gives every request the same answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.status, self.headers, self.body = 200, list[tuple[str, str]](), b""
        self.paths: list[str] = []  # of the requests


@contextmanager
def running_server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.paths.append(self.path)
            self.send_response(server.status)
            for name, value in server.headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(server.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server = Server(f"http://127.0.0.1:{running.server_address[1]}")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "weights"


def assert_refused(capsys: pytest.CaptureFixture, server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """`cosplace zoo download` with this server as mirror ends with one line; returns it."""
    monkeypatch.setenv("COSPLACE_RELEASES", server.address)
    with within(20):
        code, _, err = run(capsys, "zoo", "download", MODEL)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and err.splitlines()[-1] == line
    return line


def files_in(folder: Path) -> list[str]:
    """Names of files in a folder and below it, without locks."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "..", "%2e%2e", ".", "...", "..%2F..%2Fmodel.pth", "%2Fetc%2Fmodel.pth", "..%5Cmodel.pth", "C:%5Cmodel.pth",
        "model.pth%00.txt", "two%0Alines.pth", "model%7F.pth", "x" * 201,
    ],
)  # fmt: skip
def test_names_that_are_not_those_of_a_file_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    """The server and the file system: no request is sent, and no file is written."""
    server.body = b"weights"
    with pytest.raises(DownloadError) as raised:
        download(f"{server.address}/{name}", folder=tmp_path / "weights")
    assert "\n" not in str(raised.value)
    assert not server.paths and not files_in(tmp_path)


@pytest.mark.parametrize("url", ["http://[::1/model.pth", "http://[not-an-address]/model.pth"])
def test_urls_that_cannot_be_parsed_are_refused(tmp_path: Path, url: str) -> None:
    """The contract of the library: errors of users are of its own class."""
    with pytest.raises(DownloadError):
        download(url, folder=tmp_path / "weights")


def test_a_name_from_the_server_is_not_used(server: Server, tmp_path: Path) -> None:
    """The file system: the file has the name of the URL."""
    server.headers = [("Content-Disposition", 'attachment; filename="../../evil.pth"'), ("Content-Length", "7")]
    server.body = b"weights"
    path = download(f"{server.address}/model.pth", folder=tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "model.pth" and path.read_bytes() == b"weights"
    assert files_in(tmp_path) == ["model.pth", "model.pth.sha256"]


# --- redirects -------------------------------------------------------------------------------------------------------


def test_a_redirect_to_ftp_is_not_followed(server: Server, weights_folder: Path, capsys, monkeypatch) -> None:
    """The network: nobody connects to the address that the redirect names."""
    connections: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(20)

        def accept() -> None:
            while True:
                connection, address = other.accept()
                connection.close()
                if not is_open:
                    return
                connections.append(address)

        is_open, thread = True, threading.Thread(target=accept)
        thread.start()
        server.status = 302
        server.headers = [("Location", f"ftp://127.0.0.1:{other.getsockname()[1]}/model.pth"), ("Content-Length", "0")]
        try:
            line = assert_refused(capsys, server, monkeypatch)
        finally:
            is_open = False
            socket.create_connection(other.getsockname()).close()
            thread.join()
    assert not connections and "redirect" in line
    assert not files_in(weights_folder)


def test_a_redirect_to_a_file_is_not_followed(
    server: Server, tmp_path: Path, weights_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system: the secret is not copied.  The reason of the error is the redirect."""
    (tmp_path / "secret").write_text("secret")
    server.status, server.headers = 302, [("Location", (tmp_path / "secret").as_uri()), ("Content-Length", "0")]
    assert "redirect" in assert_refused(capsys, server, monkeypatch)
    assert not files_in(weights_folder)


def test_the_body_of_a_redirect_is_not_read(server: Server, tmp_path: Path) -> None:
    """HTTP: the body of a redirect is a note for people; this one never ends."""
    ended = threading.Event()

    with socket.create_server(("127.0.0.1", 0)) as other, running_server() as target:
        target.body, target.headers = b"weights", [("Content-Length", "7")]
        other.settimeout(20)

        def redirect() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(10_000)
                header = f"HTTP/1.1 302 Found\r\nLocation: {target.address}/model.pth\r\nConnection: close\r\n\r\n"
                connection.sendall(header.encode())
                ended.wait(15)  # the body ends with the connection

        thread = threading.Thread(target=redirect)
        thread.start()
        try:
            with within(10):
                path = download(f"http://127.0.0.1:{other.getsockname()[1]}/model.pth", folder=tmp_path)
        finally:
            ended.set()
            thread.join()
    assert path.read_bytes() == b"weights"


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["-5", "-99999999999999", "seven", "7.0", "+7", "0x7", "²", "9" * 5000])
def test_lengths_that_are_not_those_of_a_file_are_refused(
    server: Server, weights_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    """RFC 9110, section 8.6: Content-Length is digits; no file has a length of 5,000 digits."""
    server.headers, server.body = [("Content-Length", length), ("Connection", "close")], b"weights"
    line = assert_refused(capsys, server, monkeypatch)
    assert "length" in line or "too large" in line
    assert not files_in(weights_folder)


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def complex_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a network, of which one tensor has imaginary parts, by suffix."""
    folder = tmp_path_factory.mktemp("complex")
    torch.manual_seed(0)
    tensors = GeoLocalizationNet("ResNet18_Small", 16).state_dict()
    key = "aggregation.3.weight"
    torch.save({**tensors, key: torch.complex(tensors[key], tensors[key])}, folder / "model.pth")
    write_safetensors(folder / "model.safetensors", {**tensors, key: torch.complex(tensors[key], tensors[key])})
    return {path.suffix: path for path in folder.iterdir()}


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The format: the length of the header (u64), the header in JSON, then the numbers."""
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.complex64: "C64"}
    header, data = {}, b""
    for key, value in tensors.items():
        raw = value.contiguous().numpy().tobytes()
        shape, place = list(value.shape), [len(data), len(data) + len(raw)]
        header[key] = {"dtype": kinds[value.dtype], "shape": shape, "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for variant in range(2):
        write_street(folder / "train", range(6), variant=variant)
    for split, queries in (("val", "queries"), ("test", "queries_v1")):
        write_street(folder / split / "database", range(6))
        write_street(folder / split / queries, range(6), variant=2)
    return folder


COMMON = "--image_size", 32, "--resize_test_imgs", "--num_workers", 0, "--device", "cpu", "--recall_values", 1
TRAINING = (
    "--backbone", "ResNet18_Small", "--fc_output_dim", 16, "--N", 1, "--L", 1, "--M", 20, "--alpha", 360,
    "--groups_num", 1, "--min_images_per_class", 2, "--batch_size", 4, "--epochs_num", 1, "--iterations_per_epoch", 1,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("command", ["eval", "train", "index build"])
def test_complex_weights_are_refused(
    tmp_path: Path, capsys, monkeypatch, dataset: Path, complex_weights: dict[str, Path], command: str, suffix: str
) -> None:
    """The formula of the layer: real photos and imaginary weights give no real descriptor.  Real weights are taken."""
    monkeypatch.chdir(tmp_path)  # logs/ is created there
    real = write_model(tmp_path / "real.pth")
    for model, expected in ((complex_weights[suffix], 2), (real, 0)):
        words: dict[str, tuple[object, ...]] = {
            "eval": ("--model", model, "--test_set_folder", dataset / "val", "--queries_folder", "queries", *COMMON),
            "train": ("--resume_model", model, "--dataset_folder", dataset, *TRAINING, *COMMON),
            "index build": (
                dataset / "train", "--model", model, "--to", tmp_path / f"index{expected}", "--no_calibrate",
                "--num_workers", 0, "--device", "cpu",
            ),
        }  # fmt: skip
        code, _, err = run(capsys, *command.split(), *words[command])
        assert code == expected
        if expected:
            errors = [line for line in err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and str(model) in errors[0] and re.search("complex|aggregation.3.weight", errors[0])
