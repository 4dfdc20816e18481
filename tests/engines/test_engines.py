"""Engines: the same descriptors as PyTorch; files and records of the cache; the choice of the fastest."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cosplace.engines import cached, kinds, onnx_format, opening
from cosplace.engines.cached import EngineUse, open_cached_engine, remembered_engine
from cosplace.engines.comparison import lowest_cosine, measure_speedups, sample_photos
from cosplace.engines.encoder import Encoder
from cosplace.engines.engine import INPUT, OUTPUT, Engine, FileEngine, open_session
from cosplace.engines.files import file_key, find_file, find_file_by_sha256, read_record, store_file, write_record
from cosplace.engines.kinds import KINDS, find_kind
from cosplace.engines.opening import open_engine
from cosplace.engines.torch_engine import TorchEngine
from cosplace.errors import CheckpointError, ConfigError, DeviceError
from cosplace.models.averaging import averaged
from cosplace.models.layouts import network_from_release
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.weight_files import model_checksum
from cosplace.photos.normalization import normalize
from cosplace.photos.scanning import scan_images
from tests.engines.test_fp16 import has_fp16
from tests.models.released_layouts import random_weights, released

pytestmark = pytest.mark.slow  # too slow for `make check`; `make test` runs them

SIZES = ((2, 64, 64), (1, 75, 101), (3, 120, 97))  # B, H, W


def new_network(backbone: str = "ResNet18_Small", dimension: int = 16) -> nn.Module:
    if backbone == "DINOv2":
        network = network_from_release(random_weights(released("salad", dim=64, depth=2, grid=10, small=True)))
        assert network is not None
        return network.eval()
    return GeoLocalizationNet(backbone, dimension, generator=torch.Generator().manual_seed(0)).eval()


def pixels(size: Sequence[int]) -> np.ndarray:
    """Photos (B, 3, H, W) uint8 with structure: those of noise alone are all alike."""
    batch, height, width = size
    photos = sample_photos(None, min(height, width), batch)
    return np.stack([photo[:, :height, :width].numpy() for photo in photos])


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)


def by_formula(network: nn.Module, photos: np.ndarray, scales: Sequence[float] = (1.0,), *, flip: bool = False) -> Any:
    with torch.inference_mode():
        return averaged(network, scales, flip=flip)(normalize(torch.from_numpy(photos))).numpy()


# --- descriptors -----------------------------------------------------------------------------------------------------


@pytest.mark.extras
@pytest.mark.parametrize(
    "backbone", ["ResNet18", *(pytest.param(name, marks=pytest.mark.long) for name in ("EfficientNet_B0", "DINOv2"))]
)
def test_descriptors_agree_with_pytorch_at_any_size(backbone: str) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, added = new_network(backbone), 70 if backbone == "DINOv2" else 0
    opener = opening.Opener(network, EngineUse(checksum=model_checksum(network)), device="cpu")
    for name in ("onnx", "openvino", "openvino_bf16", "openvino_fp16", "openvino_int8_weights"):
        if not KINDS[name].is_installed or (name == "openvino_fp16" and not has_fp16()):
            continue
        engine = opener.open(KINDS[name])
        for batch, height, width in SIZES:
            photos = pixels((batch, height + added, width + added))
            found, expected = engine.describe(photos), by_formula(network, photos)
            assert found.dtype == np.float32 and found.shape == expected.shape == (batch, engine.dimension)
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
            if KINDS[name].numbers == "fp32":
                assert np.abs(found - expected).max() < 2e-5
            else:  # random weights amplify errors more than trained ones
                assert cosines(found, expected).min() > (0.99 if KINDS[name].is_int8 else 0.999)


def test_pytorch_engines(caplog: pytest.LogCaptureFixture) -> None:
    network, photos = new_network(), pixels(SIZES[1])
    expected = by_formula(network, photos)
    with caplog.at_level(logging.INFO, "cosplace"):
        engine = open_engine("torch", network, device="cpu")
        assert np.abs(engine.describe(photos) - expected).max() < 1e-6
        assert isinstance(engine, TorchEngine)
        engine.release_original()
        assert np.abs(engine.describe(photos) - expected).max() < 1e-6 and engine.dimension == expected.shape[1]
        assert engine.checksum == model_checksum(network) and not hasattr(engine, "network")
        assert not caplog.messages
        bf16 = open_engine("torch_bf16", network, device="cpu", image_size=64).describe(photos)
    assert cosines(bf16, expected).min() > 0.999 and not np.array_equal(bf16, expected)
    assert caplog.messages[-1].startswith("engine: torch_bf16, lowest cosine similarity to PyTorch 0.9999")


@pytest.fixture(scope="module")
def onnx_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the exported file of `new_network`, compared with PyTorch at 64 pixels."""
    pytest.importorskip("onnxruntime", reason="pip install 'cosplace[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'cosplace[export]'")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COSPLACE_HOME", str(home))
        open_engine("onnx", new_network(), image_size=64, device="cpu")
    return home


@pytest.fixture
def home(onnx_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    shutil.copytree(onnx_home, tmp_path / "home")
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def forbid_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr("cosplace.engines.exporting.write_onnx", refuse)


def test_copies_of_photos_are_averaged_as_by_pytorch(home: Path) -> None:
    network, photos = new_network(), pixels(SIZES[2])
    kind = KINDS["onnx"]
    file = find_file(file_key(model_checksum(network), kind))
    assert file is not None
    engine = cached.open_file_engine(kind, file, EngineUse(checksum="", flip=True))
    assert np.abs(engine.describe(photos) - by_formula(network, photos, flip=True)).max() < 2e-5

    def session(images: np.ndarray) -> np.ndarray:  # a file with other scales takes floats
        return by_formula_of_floats(network, images)

    scaled = FileEngine(
        session, kind, checksum="", dimension=16, file_sha256="", values="unit", scales=(0.7, 1.0, 1.3), flip=True
    )
    expected = by_formula(network, photos, (0.7, 1.0, 1.3), flip=True)
    assert cosines(scaled.describe(photos), expected).min() > 0.999999


def by_formula_of_floats(network: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(normalize(torch.from_numpy(images))).numpy()


def test_an_encoder_uses_the_engine(home: Path) -> None:
    network = new_network()
    photos = [np.moveaxis(photo, 0, -1) for size in SIZES[:2] for photo in pixels(size)]
    by_torch = Encoder(network, image_size=64, device="cpu")
    engine = open_engine("onnx", network, image_size=64, device="cpu")
    by_engine = Encoder(engine, image_size=64)
    assert (by_engine.checksum, by_engine.dimension) == (by_torch.checksum, by_torch.dimension)
    cosines = (by_engine.encode(photos) * by_torch.encode(photos)).sum(axis=1)
    assert cosines.min() >= 0.9999  # photos are resized by Pillow, without torch
    floats = torch.from_numpy(pixels(SIZES[0])) / 255
    assert np.abs(by_engine.encode(floats) - by_torch.encode(floats)).max() < 2e-5
    with pytest.raises(ConfigError, match="The engine onnx has no network in PyTorch"):
        _ = by_engine.network


# --- without torch ---------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
import numpy as np
from cosplace.engines.cached import open_cached_engine
engine = open_cached_engine("onnx", sys.argv[1], image_size=64)
np.save(sys.argv[3], engine.describe(np.load(sys.argv[2])))
print(sorted(name for name in ("torch", "onnx", "lancedb", "PIL") if name in sys.modules))
"""


def test_a_cached_engine_needs_no_torch(home: Path, tmp_path: Path) -> None:
    network, photos = new_network(), pixels(SIZES[0])
    np.save(tmp_path / "photos.npy", photos)
    arguments = [model_checksum(network), str(tmp_path / "photos.npy"), str(tmp_path / "found.npy")]
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
    assert np.abs(np.load(tmp_path / "found.npy") - by_formula(network, photos)).max() < 2e-5


def test_a_cached_engine_that_was_not_compared_is_not_opened(home: Path) -> None:
    checksum = model_checksum(new_network())
    assert open_cached_engine("onnx", checksum, image_size=64) is not None
    assert open_cached_engine("onnx", checksum, image_size=65) is None  # at another size
    assert open_cached_engine("onnx", checksum, image_size=64, flip=True) is None
    assert open_cached_engine("onnx", "0" * 64, image_size=64) is None
    assert open_cached_engine("torch", checksum, image_size=64) is None
    assert open_cached_engine("auto", checksum, image_size=64) is None
    assert open_cached_engine("onnx_int8", checksum, image_size=64) is None
    assert open_cached_engine("onnx", checksum, image_size=64, device="cuda") is None


@pytest.mark.extras
def test_a_matrix_times_stored_matrices(tmp_path: Path) -> None:
    """As the positions of DINOv2 are resampled."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("openvino", reason="pip install 'cosplace[openvino]'")
    random = np.random.default_rng(0)
    matrix, stack = random.random((7, 10), np.float32), random.random((64, 10, 10), np.float32)
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", [INPUT, "stack"], [OUTPUT])],
        "product",
        [helper.make_tensor_value_info(INPUT, floats, ["height", 10])],
        [helper.make_tensor_value_info(OUTPUT, floats, [64, "height", 10])],
        [onnx.numpy_helper.from_array(stack, "stack")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx_format._equalize_ranks(model)
    onnx.save(model, tmp_path / "product.onnx")
    for kind in (KINDS["onnx"], KINDS["openvino"]):
        found = open_session(kind, tmp_path / "product.onnx")(matrix)
        np.testing.assert_allclose(found, matrix @ stack, rtol=1e-5)


@pytest.mark.extras
def test_openvino_sends_no_usage_data(home: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'cosplace[openvino]'")
    code = (
        "import sys; from pathlib import Path; from cosplace.engines import engine, kinds\n"
        "engine.open_session(kinds.KINDS['openvino'], Path(sys.argv[1]))\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]])"
    )
    command = [sys.executable, "-c", code, str(model_of(home))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.extras
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_signals_arrive_after_engines_of_openvino_were_closed(home: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'cosplace[openvino]'")
    code = (
        "import os, signal, sys; from pathlib import Path; from cosplace.engines import engine, kinds\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('received', flush=True))\n"
        "sessions = [engine.open_session(kinds.KINDS['openvino'], Path(sys.argv[1])) for _ in range(2)]\n"
        "del sessions[0]; del sessions[0]  # not the last one first\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    command = [sys.executable, "-c", code, str(model_of(home))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "received"


# --- the cache -------------------------------------------------------------------------------------------------------


def model_of(home: Path) -> Path:
    (path,) = home.glob("engines/*/model.onnx")
    return path


def test_the_file_is_exported_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_export(monkeypatch)
    open_engine("onnx", new_network(), image_size=64, device="cpu")
    with pytest.raises(AssertionError, match="exported again"):
        open_engine("onnx", new_network(dimension=8), image_size=64, device="cpu")  # another model


@pytest.mark.parametrize("damage", ["bit", "short", "gone", "description", "description of another"])
def test_a_damaged_file_is_not_used(home: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path = new_network(), model_of(home)
    content, about = path.read_bytes(), path.with_name("model.json")
    if damage == "bit":
        path.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    elif damage == "short":
        path.write_bytes(content[:-1])
    elif damage == "gone":
        path.unlink()
    elif damage == "description":
        about.write_text(about.read_text()[:-10])
    else:
        about.write_text(about.read_text().replace(model_checksum(network), "0" * 64))
    checksum = model_checksum(network)
    assert open_cached_engine("onnx", checksum, image_size=64) is None
    forbid_export(monkeypatch)
    with pytest.raises(AssertionError, match="exported again"):
        open_engine("onnx", network, image_size=64, device="cpu")


def test_a_stored_file_is_found_by_its_content(home: Path, tmp_path: Path) -> None:
    key = file_key("c" * 64, KINDS["onnx_int8"], calibration="photos")
    (tmp_path / "exported").write_bytes(b"an exported network")
    stored = store_file(key, tmp_path / "exported", 8)
    assert find_file(key) == stored == find_file_by_sha256(stored.sha256)
    assert find_file(key | {"calibration": "others"}) is None and find_file_by_sha256("0" * 64) is None
    assert not list(home.rglob("*.part"))


def test_files_and_records_of_other_versions_are_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = new_network()
    use = EngineUse(checksum=model_checksum(network), image_size=64)
    write_record(use.choice_key("auto"), {"engine": "onnx", "speedup": 1.7, "cosine": 1.0})
    assert remembered_engine(use, "auto") == {"engine": "onnx", "speedup": 1.7, "cosine": 1.0}
    assert remembered_engine(replace(use, image_size=65), "auto") is None
    assert open_cached_engine("auto", use.checksum, image_size=64) is not None
    before = kinds.versions

    def newer(packages: tuple[str, ...]) -> dict[str, str]:
        return before(packages) | {package: "99" for package in packages if package == "onnxruntime"}

    monkeypatch.setattr("cosplace.engines.machine.versions", newer)
    assert remembered_engine(use, "auto") is None
    assert open_cached_engine("onnx", use.checksum, image_size=64) is None  # not compared with this version
    monkeypatch.setattr("cosplace.engines.machine.versions", before)
    monkeypatch.setattr("cosplace.engines.files.versions", newer)
    assert find_file(file_key(use.checksum, KINDS["onnx"])) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"key": {}, "values": {"engine": "onnx"}}', "\0" * 100])
def test_a_damaged_record_does_not_exist(home: Path, text: str) -> None:
    use = EngineUse(checksum="c" * 64)
    write_record(use.choice_key("cpu"), {"engine": "onnx", "speedup": 1.7, "cosine": 1.0})
    (path,) = (path for path in home.glob("engines/records/*.json") if '"choice"' in path.read_text())
    path.write_text(text)
    assert read_record(use.choice_key("cpu")) is None and remembered_engine(use, "cpu") is None
    for values in (
        {"engine": "gone", "speedup": 2, "cosine": 1},
        {"engine": "onnx"},
        {"engine": "onnx", "speedup": "x"},
    ):
        write_record(use.choice_key("cpu"), values)
        assert remembered_engine(use, "cpu") is None


# --- the fastest -----------------------------------------------------------------------------------------------------


def test_auto_takes_the_fastest_and_remembers_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = new_network()
    timed: list[list[str]] = []

    def speedups(engines: dict[str, Engine], baseline: str, photos: Any, batch_size: int) -> Any:
        timed.append(sorted(engines))
        return {name: {"torch": 1.0, "onnx": 3.0}.get(name, 0.5) for name in engines}, 0.1

    monkeypatch.setattr(opening, "measure_speedups", speedups)
    with caplog.at_level(logging.INFO, "cosplace"):
        assert open_engine("auto", network, image_size=64, device="cpu").kind.name == "onnx"
    assert "onnx_int8" not in timed[0] and "torch_bf16" in timed[0]
    assert caplog.messages[-1] == "engine: onnx, 3.0 times PyTorch, lowest cosine similarity 1.0000000"
    with caplog.at_level(logging.INFO, "cosplace"):
        assert open_engine("auto", network, image_size=64, device="cpu").kind.name == "onnx"
    assert caplog.messages[-1].endswith("lowest cosine similarity 1.0000000 (remembered)") and len(timed) == 1
    engine = open_cached_engine("auto", model_checksum(network), image_size=64, device="cpu")
    assert engine is not None and engine.kind.name == "onnx"
    # Without its program, the next best.
    monkeypatch.setattr(kinds, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert open_engine("auto", network, image_size=64, device="cpu").kind.name == "torch"


def test_an_engine_that_loses_too_much_is_no_candidate(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = new_network()
    monkeypatch.setattr(
        opening, "lowest_cosine", lambda engine, *_: 0.99 if engine.kind.name == "torch_bf16" else float("nan")
    )
    monkeypatch.setattr(opening, "measure_speedups", lambda engines, *_: (dict.fromkeys(engines, 1.0), 0.1))
    with caplog.at_level(logging.INFO, "cosplace"):
        assert open_engine("auto", network, image_size=63, device="cpu").kind.name == "torch"
    assert "engine: not torch_bf16, lowest cosine similarity 0.9900000, less than 0.9999" in caplog.messages
    assert caplog.messages[-1] == "engine: torch, the fastest here"
    with pytest.raises(ConfigError, match=r"--engine torch_bf16 loses too much with this model: .* is 0\.99000, less"):
        open_engine("torch_bf16", network, image_size=63, device="cpu")
    with pytest.raises(ConfigError, match="--engine onnx loses too much"):  # nan is no similarity
        open_engine("onnx", network, image_size=63, device="cpu")
    assert open_cached_engine("onnx", model_checksum(network), image_size=63) is None


class FakeEngine:
    """Says which batches it got."""

    def __init__(self, name: str, row: Sequence[float]) -> None:
        self.kind, self.file_sha256, self.checksum, self.dimension = KINDS[name], "", "", len(row)
        self.row, self.shapes = np.array([row], np.float32), []

    def describe(self, photos: np.ndarray) -> np.ndarray:
        self.shapes.append(photos.shape)
        return self.row.repeat(len(photos), 0)


def test_engines_are_timed_in_turn_on_all_sizes() -> None:
    engines: Any = {"torch": FakeEngine("torch", [1, 0]), "onnx": FakeEngine("onnx", [1, 0])}
    photos = [torch.zeros(3, 8, side, dtype=torch.uint8) for side in (8, 8, 9)]
    ratios, seconds = measure_speedups(engines, "torch", photos, batch_size=2)
    assert set(ratios) == set(engines) and ratios["torch"] == 1 and seconds > 0
    assert set(engines["onnx"].shapes) == {(2, 3, 8, 8), (2, 3, 8, 9)}
    assert engines["onnx"].shapes == engines["torch"].shapes


def test_the_lowest_cosine_similarity_is_that_of_the_worst_photo() -> None:
    photos = sample_photos(None, 32, 3)
    assert [photo.shape for photo in photos] == [(3, 32, 42)] * 3
    one, other = FakeEngine("torch", [1, 0]), FakeEngine("onnx", [3, 4])
    assert lowest_cosine(other, one, photos) == pytest.approx(0.6)
    assert np.isnan(lowest_cosine(FakeEngine("onnx", [float("nan"), 1]), one, photos))


def test_photos_of_the_user_are_compared(tmp_path: Path) -> None:
    for number, shape in enumerate(((40, 60), (80, 50))):
        Image.fromarray(np.full((*shape, 3), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"damaged")
    shapes = sorted(tuple(photo.shape) for photo in sample_photos(scan_images(tmp_path), 20))
    assert shapes == [(3, 20, 30), (3, 32, 20)]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_unknown_and_missing_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"Unknown engine 'tensorrt'\. Use auto, torch, torch_bf16, torch_compile,"):
        find_kind("tensorrt")
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--engine openvino needs openvino\. Install with: pip install 'cosplace\["):
        open_engine("openvino", new_network(), device="cpu")


def test_a_network_of_others_is_refused_by_name_and_left_out_by_auto(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxscript")

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(images.mean((2, 3)) + self.bias)

    with pytest.raises(ConfigError, match="A Mean cannot be exported, only models that this package builds itself can"):
        open_engine("onnx", Mean(), device="cpu", image_size=32)
    monkeypatch.setattr(opening, "measure_speedups", lambda engines, *_: (dict.fromkeys(engines, 1.0), 0.1))
    with caplog.at_level(logging.INFO, "cosplace"):
        assert isinstance(open_engine("auto", Mean(), device="cpu", image_size=32), TorchEngine)
    (line,) = [one for one in caplog.messages if "A Mean cannot be exported" in one]  # of all engines that it concerns
    assert line.startswith("engine: not onnx")


def test_int8_needs_photos_or_its_file(home: Path) -> None:
    with pytest.raises(ConfigError, match="--engine onnx_int8 needs photos to calibrate on"):
        open_engine("onnx_int8", new_network(), device="cpu")
    with pytest.raises(ConfigError, match=r"The file of the engine onnx_int8 \(SHA-256 abc\) is missing or damaged"):
        open_engine("onnx_int8", new_network(), device="cpu", file_sha256="abc")


def test_photos_that_the_network_does_not_take(home: Path) -> None:
    engine = open_engine("onnx", new_network(), image_size=64, device="cpu")
    with pytest.raises(CheckpointError, match="The engine onnx cannot compute descriptors of photos of 1 x 0 pixels"):
        engine.describe(np.zeros((1, 3, 0, 1), np.uint8))


@pytest.mark.parametrize(
    ("answer", "expected", "text"),
    [
        (np.zeros((0, 4), np.float32), CheckpointError, r"\(wrong shape of descriptors: \(0, 4\)\)"),
        (RuntimeError("src/memory_desc/cpu_memory_desc.h:99: ParameterMismatch"), CheckpointError, "ParameterMismatch"),
        (RuntimeError("std::bad_alloc"), DeviceError, "Not enough memory for a batch of 1 photos of 8 x 8 pixels"),
        (RuntimeError("Failed to allocate memory"), DeviceError, "Not enough memory"),
        (RuntimeError("Out of memory."), DeviceError, "Not enough memory"),
        (RuntimeError("could not execute a primitive: out_of_memory"), DeviceError, "Not enough memory"),
    ],
)
def test_programs_that_fail(answer: Any, expected: type[Exception], text: str) -> None:
    def session(images: np.ndarray) -> np.ndarray:
        if isinstance(answer, Exception):
            raise answer
        return answer

    engine = FileEngine(session, KINDS["onnx"], checksum="", dimension=4, file_sha256="")
    with pytest.raises(expected, match=text):
        engine.describe(np.zeros((1, 3, 8, 8), np.uint8))
