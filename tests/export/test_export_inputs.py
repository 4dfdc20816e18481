"""What an exported file takes: values, layouts, sizes, names and opsets; and the parity file beside it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.cli import main
from cosplace.engines.input_format import InputFormat
from cosplace.errors import CheckpointError, ConfigError, ExportError
from cosplace.export.exporter import export_network
from cosplace.export.parity import COSINE, LARGEST, check_parity, parity_path
from cosplace.export.runtime import open_exported
from cosplace.export.settings import ExportSettings
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.weight_files import write_weights
from cosplace.photos.normalization import normalize
from cosplace.photos.resizing import resize_shorter_side
from tests.export.versions import needs_new_torch

slow = pytest.mark.slow
onnx = pytest.importorskip("onnx", reason="pip install 'cosplace[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'cosplace[export]'")


@pytest.fixture(autouse=True)
def _quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of each export compares two sizes and measures no time; test_export has the whole check."""
    monkeypatch.setattr("cosplace.export.exporter.SIZES", ((1, 96, 160), (2, 171, 153)))
    monkeypatch.setattr("cosplace.export.exporter.measure_latency_ms", lambda *_: (1.0, 1.0))


@pytest.fixture(scope="module")
def network() -> GeoLocalizationNet:
    return GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(0)).eval()


def photos(height: int, width: int, count: int = 1) -> torch.Tensor:
    """Smooth photos: resizing to whole pixels changes them little."""
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand(count, 3, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (255 * smooth).clamp(0, 255).byte()


def descriptors(network: torch.nn.Module, pixels: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network(normalize(pixels)).numpy()


def run(path: Path, images: torch.Tensor, names: tuple[str, str] = ("images", "descriptors")) -> np.ndarray:
    """Run a file in ONNX Runtime, without this package."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run([names[1]], {names[0]: images.numpy()})[0]


def axes(path: Path) -> list[str | int]:
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    return [axis.dim_param or axis.dim_value for axis in shape.dim]


# --- forms of the input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["normalized", "unit", "uint8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_forms_of_photos(values: str, layout: str) -> None:
    pixels = photos(5, 7, count=2)
    inputs = InputFormat(values=values, layout=layout)
    plain = pixels.double().numpy()
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    expected = {"uint8": plain, "unit": plain / 255, "normalized": (plain / 255 - mean) / std}[values]
    expected = expected.transpose(0, 2, 3, 1) if layout == "NHWC" else expected
    for found in (inputs.from_pixels(pixels), inputs.from_normalized(normalize(pixels))):
        assert found.dtype == (torch.uint8 if values == "uint8" else torch.float32)
        assert found.is_contiguous()
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6)


@slow
@pytest.mark.parametrize(
    ("values", "layout"),
    [
        pytest.param("unit", "NCHW", marks=pytest.mark.long),
        ("uint8", "NCHW"),
        ("unit", "NHWC"),
        pytest.param("normalized", "NHWC", marks=pytest.mark.long),
    ],
)
def test_files_take_each_form(network: GeoLocalizationNet, tmp_path: Path, values: str, layout: str) -> None:
    settings = ExportSettings(input_values=values, input_layout=layout)
    written = export_network(network, tmp_path / "model.onnx", settings)
    pixels = photos(65, 91, count=3)
    found = run(written.path, InputFormat(values=values, layout=layout).from_pixels(pixels))
    np.testing.assert_allclose(found, descriptors(network, pixels), rtol=0, atol=1e-4)
    assert written.metadata["normalisation"] == ("inside" if values != "normalized" else "(pixel / 255 - mean) / std")
    with torch.inference_mode():
        reopened = open_exported(written.path)(normalize(pixels)).numpy()
    np.testing.assert_allclose(reopened, found, rtol=0, atol=1e-6)


@slow
@needs_new_torch
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.long)])
def test_resizing_inside(network: GeoLocalizationNet, tmp_path: Path, precision: str) -> None:
    settings = ExportSettings(input_values="uint8", resize_inside=True, image_size=64, precision=precision)
    written = export_network(network, tmp_path / "model.onnx", settings)
    assert (written.metadata["resize"], written.metadata["smallest_side"]) == ("inside", "1")
    for height, width in ((200, 333), (257, 120), (64, 90), (40, 50)):
        pixels = photos(height, width, count=2)
        found = run(written.path, pixels)
        float_resized = resize_shorter_side(normalize(pixels), 64)
        with torch.inference_mode():
            exact = network(float_resized).numpy()
        tolerance = 1e-4 if precision == "fp32" else 2e-3
        np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance)
        # The package itself rounds resized photos to whole pixels.
        rounded = descriptors(network, resize_shorter_side(pixels, 64))
        assert (found * rounded).sum(1).min() > 0.9999


@slow
def test_a_static_shape(network: GeoLocalizationNet, tmp_path: Path) -> None:
    settings = ExportSettings(static_shape=(2, 80, 112), input_values="unit", parity_file=True)
    written = export_network(network, tmp_path / "model.onnx", settings)
    assert axes(written.path) == [2, 3, 80, 112]
    model = onnx.load(written.path)
    assert not {node.op_type for node in model.graph.node} & {"Shape", "Range", "If", "Loop"}
    pixels = photos(80, 112, count=3)
    exported = open_exported(written.path)
    with torch.inference_mode():  # an incomplete batch is filled
        np.testing.assert_allclose(exported(normalize(pixels)).numpy(), descriptors(network, pixels), rtol=0, atol=1e-4)
        with pytest.raises(ConfigError, match="takes photos of 112 x 80 pixels, not 96 x 64"):
            exported(normalize(photos(64, 96)))
    assert check_parity(written.path).num_photos == 2


@slow
def test_names_and_opset(network: GeoLocalizationNet, tmp_path: Path) -> None:
    settings = ExportSettings(input_name="image", output_name="global_descriptor", opset=18, with_preprocessing=True)
    written = export_network(network, tmp_path / "model.onnx", settings)
    assert written.opset == 18
    pixels = photos(65, 91)
    found = run(written.path, pixels.permute(0, 2, 3, 1).contiguous(), ("image", "global_descriptor"))
    np.testing.assert_allclose(found, descriptors(network, pixels), rtol=0, atol=1e-4)
    with torch.inference_mode():
        assert open_exported(written.path)(normalize(pixels)).shape == (1, 16)


@slow
@pytest.mark.parametrize(
    ("aggregation", "precision"),
    [
        ("salad", "fp32"),
        pytest.param("boq", "fp32", marks=needs_new_torch),
        ("mixvpr", "fp32"),
        pytest.param("conv_ap", "fp32", marks=pytest.mark.long),
        pytest.param("netvlad", "fp32", marks=pytest.mark.long),
        ("salad", "fp16"),
        pytest.param("netvlad", "fp16", marks=pytest.mark.long),
    ],
)
def test_each_aggregation(tmp_path: Path, aggregation: str, precision: str) -> None:
    """16 bits in the backbone only: the powers of GeM, and what other aggregations compute, stay in float32."""
    network = GeoLocalizationNet(
        "ResNet18_Small", 16, generator=torch.Generator().manual_seed(0), aggregation=aggregation, image_size=160
    ).eval()
    written = export_network(network, tmp_path / "model.onnx", ExportSettings(precision=precision))
    pixels = photos(170, 190, count=2)
    found, expected = run(written.path, normalize(pixels).contiguous()), descriptors(network, pixels)
    if precision == "fp32":
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert (found * expected).sum(1).min() > 0.9999


@slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("test_resnet", "fp32"),
        pytest.param("test_vit", "fp32", marks=pytest.mark.long),
        pytest.param("test_convnext", "fp32", marks=pytest.mark.long),
        pytest.param("test_vit", "fp16", marks=pytest.mark.long),
    ],
)
def test_networks_of_timm(tmp_path: Path, name: str, precision: str) -> None:
    pytest.importorskip("timm", reason="pip install 'cosplace[timm]'")
    network = GeoLocalizationNet(f"timm:{name}", 16, generator=torch.Generator().manual_seed(0)).eval()
    settings = ExportSettings(precision=precision, input_values="uint8")
    written = export_network(network, tmp_path / "model.onnx", settings)
    for height, width in ((128, 160), (150, 133)):
        pixels = photos(height, width, count=2)
        found, expected = run(written.path, pixels), descriptors(network, pixels)
        if precision == "fp32":
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        assert (found * expected).sum(1).min() > 0.9999


def test_gem_in_16_bits_would_underflow() -> None:
    """Why GeM stays in float32: the cube of a normalized feature is below the smallest number of 16 bits."""
    feature = torch.tensor(1 / 512**0.5 / 20)
    assert float(feature) ** 3 > 0
    assert float((feature.half() ** 3).float()) == 0


# --- parity ----------------------------------------------------------------------------------------------------------


@slow
def test_the_parity_file(network: GeoLocalizationNet, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_weights(tmp_path / "weights.pth", network.state_dict())
    model = str(tmp_path / "model.onnx")
    flags = ["--to", model, "--with_preprocessing", "--parity_file"]
    assert main(["export", str(tmp_path / "weights.pth"), *flags]) == 0
    assert "wrote " + str(tmp_path / "model.parity.npz") in capsys.readouterr().out
    with np.load(tmp_path / "model.parity.npz") as parity:
        images, expected, tolerance = parity["images"], parity["descriptors"], float(parity["tolerance"])
        assert str(parity["measure"]) == LARGEST
    assert images.dtype == np.uint8 and images.shape == (2, 240, 320, 3)
    found = run(Path(model), torch.from_numpy(images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    by_pytorch = descriptors(network, torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(expected, by_pytorch, rtol=0, atol=1e-6)
    assert main(["export", model, "--check"]) == 0
    assert "2 photos, largest difference" in capsys.readouterr().out

    np.savez(
        tmp_path / "model.parity.npz", images=images, descriptors=np.roll(expected, 1, axis=1), tolerance=tolerance,
        measure=LARGEST,
    )  # fmt: skip
    with pytest.raises(ExportError, match=r"largest difference is .* more than 1e-05"):
        check_parity(model)
    np.savez(
        tmp_path / "model.parity.npz", images=images.transpose(0, 3, 1, 2), descriptors=expected, tolerance=1.0,
        measure=COSINE,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="does not fit"):
        check_parity(model)
    (tmp_path / "model.parity.npz").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged or not a parity file"):
        check_parity(model)
    (tmp_path / "model.parity.npz").unlink()
    with pytest.raises(CheckpointError, match=r"no parity file .*--parity_file"):
        check_parity(model)


def test_its_name() -> None:
    assert parity_path(Path("a/model.onnx")) == Path("a/model.parity.npz")


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"with_preprocessing": True, "input_values": "unit"}, "contradicts --input_values unit"),
        ({"resize_inside": True}, "needs the size to resize to. Add --image_size"),
        ({"static_shape": (1, 480)}, "three numbers, batch, height and width"),
        ({"static_shape": (1, 64, 64), "check_dataset": Path("x")}, "several sizes"),
        ({"input_name": "a b"}, "--input_name must be letters"),
        ({"input_name": "x", "output_name": "x"}, "must differ"),
        ({"format": "torch_export", "opset": 18}, "--opset needs --format onnx"),
        ({"format": "torch_export", "input_name": "x"}, "--input_name needs --format onnx"),
        ({"opset": 11}, "--opset must be 18 or more, got 11"),
    ],
)
def test_settings_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportSettings(**options)


def test_the_command_needs_a_file(capsys: pytest.CaptureFixture) -> None:
    assert main(["export", "model.pth"]) == 2
    assert "--to is required" in capsys.readouterr().err
    assert main(["export", "model.onnx", "--check", "--to", "x.onnx"]) == 2
    assert "--check writes no file" in capsys.readouterr().err
