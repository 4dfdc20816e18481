"""Files with 8-bit weights: a quarter of the size, nearly the same descriptors, never taken for other int8 files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from cosplace.engines import exporting
from cosplace.engines.cached import open_cached_engine
from cosplace.engines.comparison import sample_photos
from cosplace.engines.engine import INPUT, OUTPUT, open_session
from cosplace.engines.exporting import export_file
from cosplace.engines.files import file_key, find_file, store_file
from cosplace.engines.int8_weights import round_channels, round_weights
from cosplace.engines.kinds import KINDS
from cosplace.engines.opening import open_engine
from cosplace.errors import PhotoIndexError
from cosplace.index.records import ModelSpec
from cosplace.models.layouts import network_from_release
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.weight_files import model_checksum
from tests.models.networks import fill_by_rule
from tests.models.released_layouts import random_weights, released

KIND = KINDS["openvino_int8_weights"]


def new_network(backbone: str = "ResNet18") -> nn.Module:
    if backbone == "DINOv2":
        network = network_from_release(random_weights(released("salad", dim=64, depth=2, grid=10, small=True)))
        assert network is not None
        return network.eval()
    return fill_by_rule(GeoLocalizationNet(backbone, 32)).eval()


def photos_of(side: int) -> np.ndarray:
    return np.stack([photo.numpy() for photo in sample_photos(None, side, 4)])


def lowest_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    return float((found * expected).sum(axis=1).min())  # of unit vectors


def test_each_channel_has_its_scale() -> None:
    weights = np.array([[[1.0, -2.0]], [[0.0, 0.0]], [[0.01, 0.004]]], np.float32)
    rounded, scales = round_channels(weights, 0)
    assert rounded.dtype == np.int8 and scales.dtype == np.float32
    assert rounded.tolist() == [[[64, -127]], [[0, 0]], [[127, 51]]]
    np.testing.assert_allclose(scales, [2 / 127, 1, 0.01 / 127], rtol=1e-6)
    by_column, scales = round_channels(weights[:, 0], 1)
    assert by_column.tolist() == [[127, -127], [0, 0], [1, 0]] and scales.shape == (2,)


def test_weights_of_all_layers(tmp_path: Path) -> None:
    """A linear layer is a Gemm with rows or columns as output channels, or a MatMul; others stay as they are."""
    onnx = pytest.importorskip("onnx", reason="pip install 'cosplace[export]'")
    pytest.importorskip("onnxruntime", reason="pip install 'cosplace[export]'")
    random, helper, floats = np.random.default_rng(0), onnx.helper, onnx.TensorProto.FLOAT
    # Channels of very different sizes: with the scale of another axis, the small ones would be lost.
    stored = {
        "rows": random.random((7, 5), np.float32) * np.logspace(0, -4, 7, dtype=np.float32)[:, None],
        "columns": random.random((7, 3), np.float32) * np.logspace(0, -4, 3, dtype=np.float32),
        "matrix": random.random((3, 4), np.float32) * np.logspace(0, -4, 4, dtype=np.float32),
        "offset": random.random((1, 4), np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", [INPUT, "rows"], ["a"], transB=1),
            helper.make_node("Gemm", ["a", "columns"], ["b"]),
            helper.make_node("MatMul", ["b", "matrix"], ["c"]),
            helper.make_node("Add", ["c", "offset"], [OUTPUT]),
        ],
        "layers",
        [helper.make_tensor_value_info(INPUT, floats, ["batch", 5])],
        [helper.make_tensor_value_info(OUTPUT, floats, ["batch", 4])],
        [onnx.numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "fp32")
    round_weights(tmp_path / "fp32", tmp_path / "int8")
    images = random.random((6, 5), np.float32)
    found = open_session(KINDS["onnx"], tmp_path / "int8")(images) - stored["offset"]
    expected = images @ stored["rows"].T @ stored["columns"] @ stored["matrix"]
    np.testing.assert_allclose(found, expected, rtol=0.02)
    names = {tensor.name for tensor in onnx.load(tmp_path / "int8").graph.initializer}
    assert names == {f"{name}_{part}" for name in ("rows", "columns", "matrix") for part in ("int8", "scales")} | {
        "offset"
    }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["ResNet18", pytest.param("DINOv2", marks=pytest.mark.long)])
def test_the_file_is_smaller_and_runs_in_onnx_runtime(
    backbone: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx", reason="pip install 'cosplace[export]'")
    pytest.importorskip("onnxruntime", reason="pip install 'cosplace[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'cosplace[export]'")
    network = new_network(backbone)
    checksum = model_checksum(network)
    floats = export_file(network, checksum, KINDS["openvino"])
    monkeypatch.setattr(exporting, "write_onnx", lambda _, path: shutil.copy(floats.path, path))  # to save time
    rounded = export_file(network, checksum, KIND)
    if backbone == "ResNet18":  # in the small DINOv2, little is weights
        assert rounded.path.stat().st_size < 0.27 * floats.path.stat().st_size
    nodes = [[node.op_type for node in onnx.load(file.path).graph.node] for file in (floats, rounded)]
    assert [name for name in nodes[1] if name != "DequantizeLinear"] == nodes[0] and len(nodes[1]) > len(nodes[0])
    images = photos_of(126)
    found, expected = (open_session(KINDS["onnx"], file.path)(images) for file in (rounded, floats))
    assert 0.99 < lowest_cosine(found, expected) < 0.9999999
    assert export_file(network, checksum, KIND).sha256 == rounded.sha256


def test_it_is_never_taken_for_another_file(home: Path, tmp_path: Path) -> None:
    files = {}
    for name in ("onnx_int8", "openvino", "openvino_int8_weights"):
        (tmp_path / name).write_text(name)
        files[name] = store_file(file_key("c" * 64, KINDS[name]), tmp_path / name, 8)
    for name, file in files.items():
        assert find_file(file_key("c" * 64, KINDS[name])) == file and file.path.read_text() == name
    assert find_file(file_key("c" * 64, KINDS["openvino_int8"])) == files["onnx_int8"]  # which is the same file
    assert file_key("c" * 64, KIND, calibration="photos") == file_key("c" * 64, KIND)


def test_an_index_of_floats_refuses_it() -> None:
    spec = ModelSpec(model="m", checksum="c", dimension=8, engine="openvino")
    with pytest.raises(PhotoIndexError, match="cannot be compared with those of openvino_int8_weights"):
        spec.choose_engine("openvino_int8_weights", "index")
    rounded = ModelSpec(model="m", checksum="c", dimension=8, engine="openvino_int8_weights", engine_file="f" * 64)
    assert rounded.choose_engine(None, "index") == "openvino_int8_weights"
    for engine in ("openvino", "openvino_int8", "auto"):
        with pytest.raises(PhotoIndexError, match="Use --engine openvino_int8_weights"):
            rounded.choose_engine(engine, "index")


@pytest.mark.slow
@pytest.mark.extras
def test_openvino_needs_no_photos_and_no_model_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="pip install 'cosplace[openvino]'")
    network, images = new_network(), photos_of(64)
    expected = open_engine("torch", network, device="cpu").describe(images)
    engine = open_engine(KIND.name, network, image_size=64, device="cpu")
    assert 0.99 < lowest_cosine(engine.describe(images), expected) < 0.9999999

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(exporting, "write_onnx", refuse)
    assert open_engine(KIND.name, network, image_size=64, device="cpu").file_sha256 == engine.file_sha256
    for sha256 in ("", engine.file_sha256):
        cached = open_cached_engine(KIND.name, model_checksum(network), image_size=64, file_sha256=sha256)
        assert cached is not None and np.array_equal(cached.describe(images), engine.describe(images))
    assert open_cached_engine(KIND.name, model_checksum(network), image_size=65) is None  # not compared
