"""Fixtures of the tests of models: a local server with released files, and a small released model."""

from collections.abc import Iterator

import pytest
import torch

from cosplace.models.network import GeoLocalizationNet
from tests.models.file_server import Server, serve


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server in place of GitHub's releases."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve() as server:
        monkeypatch.setenv("COSPLACE_RELEASES", server.address)
        yield server


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[GeoLocalizationNet, bytes]:
    """A network in the shape of ONE, and its file."""
    network = GeoLocalizationNet("ResNet18", 32, generator=torch.Generator().manual_seed(1)).eval()
    path = tmp_path_factory.mktemp("released") / "w.pth"
    torch.save(network.state_dict(), path)
    return network, path.read_bytes()
