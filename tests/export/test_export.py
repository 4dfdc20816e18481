"""Exported files: the same descriptors in other runtimes for photos of any size; a file only if its check passes."""

import logging
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cosplace
from cosplace.cli import main
from cosplace.engines.deployable import find_smallest_side
from cosplace.engines.encoder import Encoder
from cosplace.engines.onnx_format import _name_axes
from cosplace.errors import CheckpointError, ConfigError, CosPlaceError, DatasetError, ExportError
from cosplace.export import settings as settings_module
from cosplace.export.exporter import ExportReport, export_model, export_network
from cosplace.export.runtime import open_exported
from cosplace.export.settings import ExportSettings
from cosplace.export.verification import Comparison, Difference
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import ReducedNetwork, Reduction
from cosplace.models.weight_files import write_weights
from cosplace.photos.normalization import normalize
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.retrieval.extraction import extract
from tests.photos.exif_blocks import png_chunk
from tests.synthetic_dataset import write_dataset

pytestmark = pytest.mark.slow  # too slow for `make check`; `make test` runs them

onnx = pytest.importorskip("onnx", reason="pip install 'cosplace[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'cosplace[export]'")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "onnx_runtime" / "encode.py"
SIZES = ((1, 64, 64), (2, 75, 101), (3, 33, 129), (1, 160, 90), (4, 121, 49))  # other sizes than the traced one


def with_statistics(network: GeoLocalizationNet) -> GeoLocalizationNet:
    """Give batch norms the statistics of a trained network."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.3 * torch.randn(module.num_features, generator=generator)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> GeoLocalizationNet:
    return with_statistics(GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def weights(network: GeoLocalizationNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best_model.pth"
    write_weights(path, network.state_dict())
    return path


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), num_places=6)


@pytest.fixture(scope="module")
def report(weights: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """An fp32 file, compared on the synthetic dataset."""
    to = tmp_path_factory.mktemp("exported") / "model.onnx"
    return export_model(weights, to, ExportSettings(image_size=48, check_dataset=dataset_folder / "test"))


@pytest.fixture(scope="module")
def pixel_report(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """An fp16 file that includes preprocessing."""
    to = tmp_path_factory.mktemp("exported") / "pixels.onnx"
    return export_model(weights, to, ExportSettings(precision="fp16", with_preprocessing=True))


def some_photos(size: tuple[int, int, int]) -> torch.Tensor:
    batch, height, width = size
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def pytorch_descriptors(network: nn.Module, photos: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network(normalize(photos)).numpy()


def run_session(path: Path, images: np.ndarray) -> np.ndarray:
    """Run a file in ONNX Runtime, without this package."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["descriptors"], {"images": images})[0]


# --- fp32 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_onnx_runtime_computes_the_same_descriptors_as_pytorch(
    report: ExportReport, network: GeoLocalizationNet, size: tuple[int, int, int]
) -> None:
    photos = some_photos(size)
    found = run_session(report.path, normalize(photos).contiguous().numpy())
    np.testing.assert_allclose(found, pytorch_descriptors(network, photos), rtol=0, atol=1e-5)


def test_an_onnx_file_is_one_file_with_named_axes_and_no_paths(report: ExportReport) -> None:
    assert [path.name for path in report.path.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(report.path)
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.output[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 16]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    content = report.path.read_bytes()
    assert str(Path(cosplace.__file__).parent).encode() not in content
    assert b"site-packages" not in content
    assert report.opset == 20 or report.opset == 18


def test_metadata_describes_the_input(report: ExportReport, weights: Path) -> None:
    import hashlib

    metadata = open_exported(report.path).metadata
    assert metadata == report.metadata
    assert metadata["backbone"] == "ResNet18_Small"
    assert (metadata["dimension"], metadata["precision"], metadata["reduction"]) == ("16", "fp32", "none")
    assert (metadata["input_layout"], metadata["input_type"], metadata["image_size"]) == ("NCHW", "float32", "48")
    assert metadata["source_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert metadata["model"] == "best_model.pth"
    assert metadata["cosplace_version"] == cosplace.__version__


def test_recalls_of_pytorch_and_the_file_are_reported(report: ExportReport) -> None:
    comparison = report.comparison
    assert comparison.pytorch_recalls is not None
    assert comparison.pytorch_recalls == comparison.exported_recalls
    assert comparison.recall_loss == 0
    text = "\n".join(report.summary_lines())
    assert f"test/queries_v1, the file: R@1: {comparison.pytorch_recalls[1]:.1f}" in text
    assert "queries of test/queries_v1" in text  # the photos that were compared
    assert comparison.worst.largest < 1e-5


def test_extract_accepts_an_exported_file(
    pixel_report: ExportReport, report: ExportReport, network: GeoLocalizationNet, dataset_folder: Path
) -> None:
    images = open_retrieval_dataset(dataset_folder / "test").queries
    expected = extract(network, images, image_size=40).descriptors[:]
    np.testing.assert_allclose(
        extract(open_exported(report.path), images, image_size=40).descriptors[:], expected, atol=1e-5
    )
    found = extract(open_exported(pixel_report.path), images, image_size=40).descriptors[:]
    assert (found * expected).sum(1).min() > 0.9999


# --- other forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES[:3])
def test_uint8_photos_as_input(
    pixel_report: ExportReport, network: GeoLocalizationNet, size: tuple[int, int, int]
) -> None:
    photos = some_photos(size)
    found = run_session(pixel_report.path, photos.permute(0, 2, 3, 1).contiguous().numpy())
    assert found.dtype == np.float32
    assert (found * pytorch_descriptors(network, photos)).sum(1).min() > 0.9999
    assert pixel_report.metadata["input_layout"] == "NHWC"


def test_fp16_converts_only_the_backbone(pixel_report: ExportReport, report: ExportReport) -> None:
    model = onnx.load(pixel_report.path)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    float16, float32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    convolutions = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 15
    assert {kinds[name] for name in convolutions} == {float16}
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    assert {kinds[name] for name in gemm.input if name in kinds} == {float32}
    assert pixel_report.num_bytes < 0.6 * report.num_bytes


def test_preprocessing_in_fp32_is_exact(network: GeoLocalizationNet, tmp_path: Path) -> None:
    written = export_network(network, tmp_path / "p.onnx", ExportSettings(with_preprocessing=True))
    photos = some_photos((2, 61, 83))
    found = run_session(written.path, photos.permute(0, 2, 3, 1).contiguous().numpy())
    np.testing.assert_allclose(found, pytorch_descriptors(network, photos), rtol=0, atol=1e-5)


def test_int8(network: GeoLocalizationNet, report: ExportReport, dataset_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((dataset_folder / "train").rglob("*.jpg"))[::2]):
        (folder / f"{number:02d}.jpg").write_bytes(path.read_bytes())  # names without coordinates are enough
    (folder / "00.jpg").write_bytes(b"damaged")
    settings = ExportSettings(precision="int8", calibrate_on=folder, calibration_photos=10, image_size=64)
    handlers = list(logging.root.handlers)
    written = export_network(network, tmp_path / "model.onnx", settings)
    assert logging.root.handlers == handlers  # the quantizer adds one
    assert written.num_calibration_photos == 9  # of 10, one is damaged
    assert written.comparison.photos == "photos outside the calibration"
    assert written.num_bytes < 0.4 * report.num_bytes
    nodes = onnx.load(written.path).graph.node
    producers = {name: node for node in nodes for name in node.output}
    for node in nodes:
        sources = [producers[name].op_type for name in node.input if name in producers]
        if node.op_type == "Conv":
            assert sources[:2] == ["DequantizeLinear"] * 2
        if node.op_type in ("Gemm", "Log", "Exp", "ReduceMean"):
            assert "DequantizeLinear" not in sources
    photos = torch.stack([torch.from_numpy(np.array(Image.open(folder / f"{n:02d}.jpg"))) for n in (3, 5)])
    photos = photos.permute(0, 3, 1, 2)
    found = run_session(written.path, normalize(photos).contiguous().numpy())
    expected = pytorch_descriptors(network, photos)
    assert (found * expected).sum(1).min() > 0.95
    assert not np.allclose(found, expected, atol=1e-5)


def test_a_reduced_network(network: GeoLocalizationNet, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    reduction = Reduction(torch.randn(5, 16, generator=generator), torch.randn(5, generator=generator), "pca_whitening")
    reduced = ReducedNetwork(network, reduction).eval()
    written = export_network(reduced, tmp_path / "reduced.onnx", ExportSettings(precision="fp16"))
    assert (written.metadata["dimension"], written.metadata["fc_output_dim"]) == ("5", "16")
    assert written.metadata["reduction"] == "pca_whitening"
    photos = some_photos((2, 57, 80))
    found = run_session(written.path, normalize(photos).contiguous().numpy())
    assert found.shape == (2, 5)
    assert (found * pytorch_descriptors(reduced, photos)).sum(1).min() > 0.999


@pytest.mark.parametrize(("precision", "least"), [("fp32", 1 - 1e-9), ("fp16", 0.9999)])
def test_torch_export(
    weights: Path,
    network: GeoLocalizationNet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    least: float,
) -> None:
    if precision == "fp16":  # torch emulates it on the CPU, twenty times slower
        monkeypatch.setattr("cosplace.export.exporter.SIZES", ((1, 64, 64), (2, 51, 75)))
    settings = ExportSettings(format="torch_export", precision=precision, image_size=64)
    written = export_model(weights, tmp_path / "model.pt2", settings)
    assert written.opset is None
    program = torch.export.load(written.path).module()  # without this package
    for size in SIZES:
        photos = some_photos(size)
        found = program(normalize(photos).contiguous()).double().numpy()
        assert (found * pytorch_descriptors(network, photos)).sum(1).min() > least - 1e-6
    assert open_exported(written.path).metadata == written.metadata


def test_the_network_is_not_changed(network: GeoLocalizationNet, tmp_path: Path) -> None:
    training = GeoLocalizationNet("ResNet18_Small", 16)
    training.load_state_dict(network.state_dict())
    before = {key: value.clone() for key, value in training.state_dict().items()}
    export_network(training.train(), tmp_path / "model.pt2", ExportSettings(format="torch_export"))
    assert training.training
    assert all(parameter.dtype == torch.float32 for parameter in training.parameters())
    assert all(torch.equal(value, before[key]) for key, value in training.state_dict().items())
    assert any(parameter.requires_grad for parameter in training.parameters())


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param("VGG16", marks=pytest.mark.long),
        "ResNet18",
        pytest.param("ResNet50", marks=pytest.mark.long),
        pytest.param("EfficientNet_B0", marks=pytest.mark.long),
    ],
)
def test_every_backbone_family(backbone: str, tmp_path: Path) -> None:
    network = with_statistics(GeoLocalizationNet(backbone, 24, generator=torch.Generator().manual_seed(0)))
    written = export_network(network, tmp_path / "model.onnx")
    for size in SIZES:
        photos = some_photos(size)
        found = run_session(written.path, normalize(photos).contiguous().numpy())
        np.testing.assert_allclose(found, pytorch_descriptors(network, photos), rtol=0, atol=1e-5)


def test_real_photos(real_photos_folder: Path, tmp_path: Path) -> None:
    network = with_statistics(GeoLocalizationNet("ResNet18_Small", 64, generator=torch.Generator().manual_seed(0)))
    settings = ExportSettings(image_size=128, check_dataset=real_photos_folder / "test", precision="int8",
                              calibrate_on=real_photos_folder / "train", calibration_photos=32)  # fmt: skip
    comparison = export_network(network, tmp_path / "model.onnx", settings).comparison
    assert comparison.num_queries == 94
    assert comparison.worst.least_cosine > 0.95
    assert comparison.recall_loss is not None


# --- the check -------------------------------------------------------------------------------------------------------


def test_a_failed_check_writes_no_file(network: GeoLocalizationNet, tmp_path: Path) -> None:
    strict = ExportSettings(precision="fp16", max_difference=1e-12)
    with pytest.raises(ExportError, match=r"no file was written.*fp16 and PyTorch differ by.*--max_difference"):
        export_network(network, tmp_path / "model.onnx", strict)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model.onnx").write_text("old content")
    with pytest.raises(ExportError):
        export_network(network, tmp_path / "model.onnx", replace(strict, force=True))
    assert (tmp_path / "model.onnx").read_text() == "old content"


def test_a_file_with_other_weights_fails_the_check(
    network: GeoLocalizationNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = with_statistics(GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(9)))
    monkeypatch.setattr(
        "cosplace.export.exporter.DeployableNetwork", lambda _, **options: _deployable(other, **options)
    )
    with pytest.raises(ExportError, match="descriptors of fp32 and PyTorch differ by"):
        export_network(network, tmp_path / "model.onnx")


def _deployable(network: nn.Module, **options: bool) -> nn.Module:
    from cosplace.engines.deployable import DeployableNetwork

    return DeployableNetwork(network, **options)


def comparison_with(**changes: object) -> Comparison:
    difference = Difference(size=(1, 2, 3), largest=1e-7, least_cosine=1.0, mean_cosine=1.0)
    comparison = Comparison(
        precision="fp32", photos="synthetic images", differences=(difference,), latency_size=(2, 3), pytorch_ms=1.0,
        exported_ms=1.0, num_threads=1, dataset="test/queries", num_queries=200,
        pytorch_recalls={1: 90.0, 5: 95.0}, exported_recalls={1: 90.0, 5: 95.0},
    )  # fmt: skip
    return replace(comparison, **changes)


def test_limits() -> None:
    comparison_with().check_limits(1e-5, 0.0)
    for largest in (2e-5, float("nan")):
        worse = Difference(size=(1, 2, 3), largest=largest, least_cosine=1.0, mean_cosine=1.0)
        with pytest.raises(ExportError, match="3 x 2 pixels, more than 1e-05"):
            comparison_with(differences=(worse,)).check_limits(1e-5, 0.0)
    turned = Difference(size=(1, 2, 3), largest=0.0, least_cosine=0.9, mean_cosine=0.9)
    with pytest.raises(ExportError, match=r"1 - cosine similarity of descriptors of int8 and PyTorch differ by 0\.1"):
        comparison_with(precision="int8", differences=(turned,)).check_limits(0.05, 0.0)
    comparison_with(exported_recalls={1: 89.5, 5: 96.0}).check_limits(1e-5, 0.0)  # one query of 200
    with pytest.raises(ExportError, match=r"recall on test/queries falls by 1\.0 points, more than 0\.1"):
        comparison_with(exported_recalls={1: 90.0, 5: 94.0}).check_limits(1e-5, 0.1)
    comparison_with(exported_recalls={1: 90.0, 5: 94.0}).check_limits(1e-5, 1.0)


def test_a_fixed_axis_is_an_error() -> None:
    value = onnx.helper.make_tensor_value_info
    inputs = [value("images", onnx.TensorProto.FLOAT, ["s0", 3, 224, "s2"])]
    outputs = [value("descriptors", onnx.TensorProto.FLOAT, ["s0", 8])]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", inputs, outputs))
    with pytest.raises(ExportError, match="exported a network with a fixed height of 224"):
        _name_axes(model, channels_last=False)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--format", "onxx"], "--format must be onnx or torch_export, got 'onxx'. Did you mean onnx?"),
        (["--precision", "fp8"], "--precision must be fp32, fp16 or int8, got 'fp8'"),
        (["--precision", "int8"], "Add --calibrate_on FOLDER"),
        (["--precision", "int8", "--format", "torch_export", "--calibrate_on", "x"], "Use --format onnx"),
        (["--precision", "int8", "--calibrate_on", "nowhere"], "nowhere does not exist"),
        (["--precision", "int8", "--calibrate_on", "empty"], "empty has no photos"),
        (["--precision", "int8", "--calibrate_on", "x", "--calibration_photos", "0"], "must be 1 or more, got 0"),
        (["--image_size", "0"], "--image_size must be 1 or more, got 0"),
        (["--max_difference", "nan"], "--max_difference must be 0 or more, got nan"),
        (["--check_dataset", "empty"], "has no subfolder database/"),
        (["--to", "existing.onnx"], "existing.onnx already exists. Choose another name, or replace it with --force"),
        (["--to", "empty", "--format", "onnx"], "empty is a folder"),
        (["--to", "model.bin"], "model.bin has an unknown suffix"),
        (["--to", "existing.onnx/model.onnx"], "Cannot write existing.onnx/model.onnx"),
        (["--precison", "fp16"], "--precison"),
    ],
)
def test_errors_are_one_line(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    flags: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("existing.onnx").write_text("mine")
    to = [] if "--to" in flags else ["--to", "new.onnx"]
    assert main(["export", str(weights), *to, *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert words in error[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "existing.onnx"]
    assert Path("existing.onnx").read_text() == "mine"


@pytest.mark.parametrize("model", ["cosplace_resnet99_512", "missing.pth", "hub:owner/repo:entry"])
def test_models_that_cannot_be_exported(model: str, tmp_path: Path) -> None:
    with pytest.raises(CosPlaceError):
        export_model(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_target_must_not_be_the_model(weights: Path) -> None:
    before = weights.read_bytes()
    with pytest.raises(ConfigError, match="is the model itself"):
        export_model(weights, weights, ExportSettings(force=True))
    assert weights.read_bytes() == before


def test_a_missing_package_names_the_extra(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"needs onnxscript. Install with: pip install 'cosplace\[export\]'"):
        export_model(weights, tmp_path / "model.onnx")


def test_other_networks_and_too_small_photos(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A Linear cannot be exported"):
        export_network(nn.Linear(1, 1), tmp_path / "model.onnx")
    vgg = GeoLocalizationNet("VGG16", 8).eval()
    assert find_smallest_side(vgg) == 16
    with pytest.raises(ConfigError, match=r"--image_size 15 is too small for VGG16.*at least 16"):
        export_network(vgg, tmp_path / "model.onnx", ExportSettings(image_size=15))


def test_no_photo_can_be_opened(network: GeoLocalizationNet, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"not an image")
    settings = ExportSettings(precision="int8", calibrate_on=tmp_path / "photos")
    with pytest.raises(DatasetError, match="None of the photos"):
        export_network(network, tmp_path / "model.onnx", settings)


@pytest.mark.parametrize("name", ["damaged.onnx", "damaged.pt2", "missing.onnx"])
def test_damaged_and_missing_files(name: str, tmp_path: Path) -> None:
    if name.startswith("damaged"):
        (tmp_path / name).write_bytes(b"\x08\x0a no model")
    with pytest.raises(CheckpointError):
        open_exported(tmp_path / name)


def test_an_onnx_file_of_another_program(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="not a file of `cosplace export`"):
        open_exported(tmp_path / "other.onnx")


# --- command line and example ----------------------------------------------------------------------------------------


def test_export_command(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    to = tmp_path / "model.pt2"
    assert main(["export", str(weights), "--to", str(to), "--image_size", "64"]) == 0
    output = capsys.readouterr().out
    assert "compared with PyTorch on synthetic images" in output
    assert f"wrote {to}: ResNet18_Small, 16 dimensions, fp32, input float32 NCHW" in output
    assert open_exported(to).metadata["image_size"] == "64"


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from cosplace.cli import main\n"
        "try: main(['export', '--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--calibrate_on" in done.stdout


def run_example(*arguments: object) -> str:
    """Run the example without torch and this package."""
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'torchvision', 'cosplace', 'onnx'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("form", ["report", "pixel_report"])
def test_the_example_needs_no_torch(
    form: str, request: pytest.FixtureRequest, network: GeoLocalizationNet, dataset_folder: Path, tmp_path: Path
) -> None:
    written: ExportReport = request.getfixturevalue(form)
    database = dataset_folder / "test" / "database"
    paths = sorted(database.rglob("*.jpg"))
    run_example(written.path, database, "--to", tmp_path / "photos.npy")
    found = np.load(tmp_path / "photos.npy")
    size = written.metadata["image_size"]
    expected = Encoder(network, image_size=int(size) if size else None, device="cpu").encode(paths)
    assert (found * expected).sum(1).min() > 0.9999
    shown = run_example(written.path, paths[0], database, "--nearest", 3).splitlines()
    assert len(shown) == 3
    assert shown[0].split("  ", 1) == ["1.0000", str(paths[0])]
    assert shown[1].split("  ")[0] <= shown[0].split("  ")[0]


def test_the_example_opens_a_png_with_large_or_damaged_metadata(
    report: ExportReport, dataset_folder: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with Image.open(next((dataset_folder / "test" / "database").rglob("*.jpg"))) as photo:
        photo.save(photos / "a.png")
    raw = (photos / "a.png").read_bytes()
    large, damaged = png_chunk(b"zTXt", b"text\0\0" + zlib.compress(bytes(8_000_000))), png_chunk(b"iCCP", b"p\0\0?")
    (photos / "b.png").write_bytes(raw[:33] + large + damaged[:-1] + b"?" + raw[33:])
    run_example(report.path, photos, "--to", tmp_path / "photos.npy")
    found = np.load(tmp_path / "photos.npy")
    np.testing.assert_array_equal(found[0], found[1])


def test_the_example_opens_16_bits_as_libpng_does(report: ExportReport, tmp_path: Path) -> None:
    """OpenCV (libpng) divides 16 bits by 257; Pillow alone would make nearly all of the photo white."""
    gray = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    Image.fromarray(gray).save(tmp_path / "8.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert run_example(report.path, tmp_path / "8.png", tmp_path / "16.png").split()[0] == "1.0000"


def test_the_example_is_short() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) < 120
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported <= {"argparse", "io", "sys", "pathlib", "numpy", "onnxruntime", "PIL"}
