import hashlib
import pickle
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.config import BACKBONES
from cosplace.errors import CheckpointError, ConfigError, CosPlaceError, DownloadError
from cosplace.network import GeoLocalizationNet, released_network
from cosplace.weights import (
    RELEASED,
    available_imagenet_weights,
    cache_folder,
    download,
    imagenet_file,
    imagenet_url,
    read_state_dict,
    released_file,
    released_url,
)

REPOSITORY = Path(__file__).resolve().parents[1]
BODY = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(BODY).hexdigest()


@dataclass
class Server:
    """A web server on this machine that can misbehave."""

    address: str = ""
    body: bytes = BODY
    breaks_after: list[int | None] = field(default_factory=list)  # bytes sent per request; None or absent: all
    takes_ranges: bool = True
    status: int = 200
    ranges: list[str | None] = field(default_factory=list)  # header of each request


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.takes_ranges else 0
            if state.status != 200:
                self.send_error(state.status)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(state.body) - start))
            self.end_headers()
            number = len(state.ranges) - 1
            stop = state.breaks_after[number] if number < len(state.breaks_after) else None
            self.wfile.write(state.body[start:][:stop])

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.address = f"http://127.0.0.1:{running.server_address[1]}"
    yield state
    running.shutdown()
    running.server_close()
    thread.join()


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def one_line(error: pytest.ExceptionInfo[CosPlaceError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- names -----------------------------------------------------------------------------------------------------------


def test_imagenet_versions_are_torchvisions():
    versions = {backbone: available_imagenet_weights(backbone) for backbone in BACKBONES}
    assert versions["ResNet18"] == versions["VGG16"] == ("v1",)
    assert versions["ResNet50"] == versions["ResNet152"] == versions["EfficientNet_B1"] == ("v1", "v2")
    assert versions["ResNet18_Small"] == ()
    assert imagenet_url("resnet-18", "v1") == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert imagenet_url("ResNet50", "v2", base="http://x/y/") == "http://x/y/resnet50-11ad3fa6.pth"


def test_absent_imagenet_versions_name_what_exists():
    with pytest.raises(ConfigError, match="'v2' for VGG16: use --imagenet_weights v1 or none"):
        imagenet_url("VGG16", "v2")


def test_released_models_are_those_of_the_paper():
    assert sum(map(len, RELEASED.values())) == 4 + 5 + 3 * 7
    assert released_url("resnet50", 2048) == (
        "https://github.com/gmberton/CosPlace/releases/download/v1.0/ResNet50_2048_cosplace.pth"
    )
    assert set(RELEASED) <= set(BACKBONES)


@pytest.mark.parametrize(
    "backbone, dim, cure",
    [
        ("ResNet18", 1024, "32, 64, 128, 256, 512"),
        ("VGG16", 32, "64, 128, 256, 512"),
        ("EfficientNet_B0", 512, "VGG16, ResNet18, ResNet50, ResNet101, ResNet152"),
    ],
)
def test_models_that_were_not_released_name_what_exists(backbone: str, dim: int, cure: str):
    with pytest.raises(ConfigError, match=f"choose from {cure}"):
        released_url(backbone, dim)


# --- fetching --------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once(server: Server, tmp_path: Path):
    path = download(f"{server.address}/weights.pth", tmp_path / "new", sha256=DIGEST)
    assert path == tmp_path / "new" / "weights.pth"
    assert path.read_bytes() == BODY
    assert download(f"{server.address}/weights.pth", tmp_path / "new", sha256=DIGEST[:10].upper()) == path
    assert len(server.ranges) == 1
    assert names_in(path.parent) == ["weights.pth"]


def test_the_digest_in_a_file_name_is_checked(server: Server, tmp_path: Path):
    right, wrong = f"w-{DIGEST[:8]}.pth", "w-0123abcd.pth"
    assert download(f"{server.address}/{right}", tmp_path).name == right
    with pytest.raises(
        DownloadError, match=rf"sha256 {DIGEST[:16]}\.\.\. instead of 0123abcd.*put the file at"
    ) as error:
        download(f"{server.address}/{wrong}", tmp_path)
    one_line(error)
    assert names_in(tmp_path) == [right]


def test_a_damaged_file_in_the_cache_is_fetched_anew(server: Server, tmp_path: Path):
    path = tmp_path / f"w-{DIGEST[:8]}.pth"
    path.write_bytes(b"half")
    assert download(f"{server.address}/{path.name}", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_broken_connection_goes_on(server: Server, tmp_path: Path, takes_ranges: bool):
    server.breaks_after = [1_500_000, 0, 100]
    server.takes_ranges = takes_ranges
    path = download(f"{server.address}/weights.pth", tmp_path, sha256=DIGEST)
    assert path.read_bytes() == BODY
    goes_on = ["bytes=1500000-", "bytes=1500000-", "bytes=1500100-"]
    assert server.ranges == [None, *(goes_on if takes_ranges else ["bytes=1500000-", None, "bytes=100-"])]


def test_a_body_that_stays_truncated_is_refused(server: Server, tmp_path: Path):
    server.breaks_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match="broke off 4 times, at last after 1000 of 3000000 bytes") as error:
        download(f"{server.address}/weights.pth", tmp_path)
    one_line(error)
    assert names_in(tmp_path) == []


def test_missing_files_and_silent_servers_say_how_to_go_on(server: Server, tmp_path: Path):
    server.status = 404
    with pytest.raises(
        DownloadError, match=r"answered 404 .*put the file at .*ResNet18_32_cosplace\.pth by hand"
    ) as error:
        released_file("ResNet18", 32, tmp_path, base=server.address)
    one_line(error)


def test_without_network_imagenet_says_how_to_go_on(server: Server, tmp_path: Path):
    with pytest.raises(DownloadError, match=r"refused.*--imagenet_weights none or PATH") as error:
        imagenet_file("ResNet18", "v1", tmp_path, base="http://127.0.0.1:9")
    one_line(error)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("url", ["weights.pth", "gopher://host/weights.pth", "http://host with space/weights.pth"])
def test_impossible_addresses_are_download_errors(url: str, tmp_path: Path):
    with pytest.raises(DownloadError, match="Cannot fetch") as error:
        download(url, tmp_path)
    one_line(error)


def test_proxies_of_the_environment_are_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # urllib keeps its first opener, and with it the proxies it saw then.
    monkeypatch.setattr(urllib.request, "_opener", None)
    assert download("http://nowhere.invalid/weights.pth", tmp_path).read_bytes() == BODY


def test_the_cache_lies_in_cosplace_home_else_where_torch_hub_keeps_weights(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "weights"
    monkeypatch.delenv("COSPLACE_HOME")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert cache_folder() == tmp_path / "torch" / "hub" / "checkpoints"


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts_are_read_without_wrappers(prefix: str, tmp_path: Path):
    tensors = {"a.weight": torch.randn(3, 2), "b.module.bias": torch.arange(4)}
    torch.save({prefix + key: value for key, value in tensors.items()}, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == list(tensors)
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


class Malicious:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_not_run(save, tmp_path: Path):
    trace = tmp_path / "trace"
    save({"backbone.0.weight": torch.zeros(1), "x": Malicious(trace)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="was not opened") as error:
        read_state_dict(tmp_path / "w.pth")
    one_line(error)
    assert not trace.exists()
    Malicious(trace).__reduce__()[0](trace)
    assert trace.exists()


def test_missing_empty_and_foreign_files_are_told_apart(tmp_path: Path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    for name, what in (
        ("absent.pth", "no file of weights"),
        ("empty.pth", "is empty"),
        ("photo.jpg", "no "),
        (".", "give a readable file"),
    ):
        with pytest.raises(CheckpointError, match=what) as error:
            read_state_dict(tmp_path / name)
        assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files_are_refused_wherever_they_end(legacy: bool, tmp_path: Path):
    path = tmp_path / "w.pth"
    content = {f"layer{i}.weight": torch.randn(20, 20) for i in range(5)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for size in np.random.default_rng(0).integers(1, len(whole) - 100, 40):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as error:
            read_state_dict(path)
        one_line(error)


def test_damaged_pickles_never_escape_as_other_errors(tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content, what",
    [
        ({}, "holds a dict without tensors"),
        ([torch.zeros(1)], "holds a list without tensors"),
        (torch.zeros(3), "holds a Tensor without tensors"),
        ({"epoch_num": 3, "model_state_dict": {"a": torch.zeros(1)}}, "'epoch_num' is int"),
        ({3: torch.zeros(1)}, "'3' is Tensor"),
    ],
)
def test_anything_but_tensors_by_name_is_refused(content: object, what: str, tmp_path: Path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=what) as error:
        read_state_dict(tmp_path / "w.pth")
    one_line(error)


# --- torch.hub -------------------------------------------------------------------------------------------------------


def put_released(backbone: str, dim: int) -> GeoLocalizationNet:
    network = GeoLocalizationNet(backbone, dim).eval()
    path = cache_folder() / f"{backbone}_{dim}_cosplace.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return network


def test_torch_hub_gives_a_released_model_from_a_clone():
    expected = put_released("ResNet18", 32)
    model = torch.hub.load(str(REPOSITORY), "get_trained_model", source="local", backbone="ResNet18", fc_output_dim=32)
    images = torch.randn(2, 3, 96, 64)
    assert not model.training
    assert torch.equal(model(images), expected(images))


def test_a_damaged_released_model_is_refused():
    put_released("ResNet18", 64)
    path = cache_folder() / "ResNet18_64_cosplace.pth"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="ResNet18_64_cosplace"):
        released_network("ResNet18", 64)
