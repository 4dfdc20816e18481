"""The engine torch_compile: descriptors of PyTorch, few compilations, errors in one line."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from cosplace.cli import main
from cosplace.config.names import ENGINES
from cosplace.engines import compiling
from cosplace.engines.comparison import sample_photos
from cosplace.engines.compiling import CompiledEngine
from cosplace.engines.encoder import Encoder
from cosplace.engines.kinds import KINDS
from cosplace.engines.opening import open_engine
from cosplace.errors import ConfigError
from cosplace.models.layers import L2Norm
from cosplace.models.network import GeoLocalizationNet

ROOT = Path(__file__).resolve().parents[2]


def has_compiler() -> bool:
    try:
        get_cpp_compiler()
    except RuntimeError:
        return False
    return True


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache folder for each test."""
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(compiling.CACHE_VARIABLE, str(tmp_path / "compiled"))
    yield
    torch._dynamo.reset()


def no_compiler() -> str:
    raise InvalidCxxCompiler


def tiny_network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L2Norm()
    return nn.Sequential(*layers).eval()


def pixels(batch: int, height: int, width: int) -> np.ndarray:
    return np.stack([photo[:, :height, :width].numpy() for photo in sample_photos(None, max(height, width), batch)])


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch finds no C++ compiler")
def test_descriptors_are_those_of_pytorch_at_any_size(caplog: pytest.LogCaptureFixture) -> None:
    from torch._dynamo.utils import counters

    network = tiny_network()
    with caplog.at_level(logging.INFO, "cosplace"):
        engine = open_engine("torch_compile", network, image_size=32, device="cpu")
    assert caplog.messages[-1] == "engine: torch_compile, lowest cosine similarity to PyTorch 1.0000000"
    expected = open_engine("torch", network, device="cpu")
    before, threads = counters["stats"]["unique_graphs"], torch.get_num_threads()
    # One photo was compiled for the comparison.  Equal sizes of batch, channels, height or width are no reason to
    # compile again, and neither is the number of threads of whoever calls.
    try:
        for number, size in enumerate([(3, 32, 32), (2, 32, 48), (1, 48, 32), (7, 40, 41), (3, 32, 32)]):
            torch.set_num_threads(1 + number % 2)
            found = engine.describe(pixels(*size))
            assert found.dtype == np.float32 and np.abs(found - expected.describe(pixels(*size))).max() < 1e-6
            assert np.array_equal(found, engine.describe(pixels(*size)))
            assert torch.get_num_threads() == 1 + number % 2
    finally:
        torch.set_num_threads(threads)
    assert counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.skipif(not has_compiler(), reason="torch finds no C++ compiler")
def test_compiled_parts_are_kept_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiling.CACHE_VARIABLE)
    CompiledEngine(tiny_network())
    assert os.environ[compiling.CACHE_VARIABLE] == str(tmp_path / "home" / "engines" / "compiled")


def test_auto_does_not_take_it() -> None:
    by_name = [kind.name for kind in KINDS.values() if not kind.is_for_auto]
    assert by_name == ["torch_compile", "onnx_int8", "openvino_int8", "openvino_int8_weights"]


def test_without_a_cpp_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    network = GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), tmp_path / "model.pth")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "photo.png")
    folders = [str(tmp_path / "photos"), f"--to={tmp_path / 'descriptors'}", f"--model={tmp_path / 'model.pth'}"]
    assert main(["extract", *folders, "--device=cpu", "--num_workers=0", "--engine=torch_compile"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --engine torch_compile needs a C++ compiler, and torch finds none. Install g++, or use --engine torch."
    )


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(ConfigError, match=r"needs Triton .* for cuda:1\. Install with: pip install triton\. Or use"):
        compiling._require_compiler(torch.device("cuda:1"))


def test_devices_without_a_compiler() -> None:
    with pytest.raises(ConfigError, match=r"on the CPU and on CUDA, not on mps\. Use --engine torch, or --dev"):
        compiling._require_compiler(torch.device("mps"))


class _Branching(nn.Module):
    """Computes what depends on the pixels, which torch.compile does not compile as a whole."""

    fc_output_dim = 2

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        return means[:, :2] if bool(means.sum() > 0) else means[:, 1:]


@pytest.mark.skipif(not has_compiler(), reason="torch finds no C++ compiler")
def test_a_network_that_cannot_be_compiled(capfd: pytest.CaptureFixture[str]) -> None:
    engine = CompiledEngine(_Branching())
    with pytest.raises(ConfigError, match=r"^torch.compile cannot compile this model for a batch of 2 photos of 40 x 32"
                                          r" pixels \(.+\)\. Use --engine torch\.$") as caught:  # fmt: skip
        engine.describe(np.zeros((2, 3, 32, 40), np.uint8))
    assert len(str(caught.value).splitlines()) == 1 and capfd.readouterr().err == ""


@pytest.mark.parametrize(("name", "batches"), [("torch_compile", [1, 2]), ("torch", [])])
def test_a_server_compiles_before_the_first_photo(name: str, batches: list[int]) -> None:
    class Engine:
        kind, file_sha256, checksum, dimension = KINDS[name], "", "", 2

        def __init__(self) -> None:
            self.shapes: list[tuple[int, ...]] = []

        def describe(self, photos: np.ndarray) -> np.ndarray:
            self.shapes.append(photos.shape)
            return np.zeros((len(photos), 2), np.float32)

    engine = Engine()
    Encoder(engine, image_size=60).compile(8)
    assert engine.shapes == [(batch, 3, 60, 80) for batch in batches]


def test_all_engines_are_documented() -> None:
    for page in ("docs/engines.md", "docs/commands.md"):
        text = (ROOT / page).read_text()
        assert [name for name in ENGINES if name not in text] == []
