"""--engine of the commands: equal recalls and answers, what an index and a store accept, int8."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cosplace.cli import main
from cosplace.cli.evaluating import MAX_INT8_LOSS
from cosplace.engines import kinds
from cosplace.errors import PhotoIndexError
from cosplace.index.photo_index import open_index
from cosplace.localization.localizer import Localizer, open_index_encoder
from cosplace.models.network import GeoLocalizationNet
from cosplace.retrieval.descriptor_store import open_store
from tests.synthetic_dataset import write_dataset

pytest.importorskip("onnxruntime", reason="pip install 'cosplace[export]'")
pytest.importorskip("onnxscript", reason="pip install 'cosplace[export]'")
pytestmark = pytest.mark.slow

SIZE = ("--image_size", "64")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with its database, a model, and a folder for the cache that all tests share."""
    folder = tmp_path_factory.mktemp("engines")
    write_dataset(folder / "city", num_places=1, images_per_place=1)
    network = GeoLocalizationNet("ResNet18_Small", 32, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), folder / "model.pth")
    return folder


@pytest.fixture(autouse=True)
def shared_cache(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSPLACE_HOME", str(city / "home"))
    monkeypatch.chdir(city)
    monkeypatch.setattr("cosplace.engines.exporting.NUM_CALIBRATION_PHOTOS", 8)


def build(city: Path, name: str, *flags: str) -> int:
    return main([
        "index", "build", "city/test/database", "--model=model.pth", f"--to={name}", *SIZE, "--no_calibrate",
        "--num_workers=0", "--device=cpu", *flags,
    ])  # fmt: skip


def evaluate(*flags: str) -> int:
    return main([
        "eval", "--test_set_folder=city/test", "--model=model.pth", "--resize_test_imgs", *SIZE, "--num_workers=0",
        "--device=cpu", *flags,
    ])  # fmt: skip


def newest_results() -> dict:
    path = max(Path("logs").glob("*/*/results.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(path.read_text())


def test_recalls_are_those_of_pytorch(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for engine in ("torch", "onnx"):
        assert evaluate(f"--engine={engine}", f"--save_dir={engine}") == 0
        lines.append(capsys.readouterr().out.splitlines()[0])
        environment = newest_results()["environment"]
        assert (environment["engine"], environment["precision"]) == (engine, "fp32")
    assert lines[0] == lines[1] and lines[0].startswith("R@1: ")


def test_int8_says_what_it_loses(
    city: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosplace.cli.evaluating.MAX_INT8_LOSS", 100.0)
    assert evaluate("--engine=onnx_int8", "--save_dir=int8") == 0
    printed = capsys.readouterr()
    assert "engine: onnx_int8, lowest cosine similarity to PyTorch 0." in printed.err
    assert "; the engine onnx_int8 loses " in printed.err
    environment = newest_results()["environment"]
    assert (environment["engine"], environment["precision"]) == ("onnx_int8", "int8")
    # As if PyTorch found all places: the loss is then that of all queries that int8 missed.
    perfect = SimpleNamespace(recalls=dict.fromkeys((1, 5, 10, 20), 1000.0), recalls_text=lambda: "R@1: 1000.0")
    monkeypatch.setattr("cosplace.cli.evaluating.MAX_INT8_LOSS", MAX_INT8_LOSS)
    monkeypatch.setattr("cosplace.retrieval.evaluation.evaluate", lambda *_, **__: perfect)
    assert evaluate("--engine=onnx_int8", "--save_dir=int8") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --engine onnx_int8 loses ") and "points of recall on" in error


def test_an_index_of_another_engine(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(city, "index", "--engine=onnx") == 0
    with open_index("index") as index:
        assert (index.spec.engine, index.spec.engine_file) == ("onnx", "")
    photo = str(next(Path("city/test/queries_v1").glob("*.jpg")))
    answers = [
        Localizer("index", device="cpu", engine=engine, uncalibrated=True).locate(photo) for engine in (None, "onnx")
    ]
    assert [match.id for match in answers[0].neighbours] == [match.id for match in answers[1].neighbours]
    similarities = np.array([[match.similarity for match in answer.neighbours] for answer in answers])
    np.testing.assert_allclose(similarities[0], similarities[1], atol=1e-5)
    # Engines that agree may add photos to it.
    flags = ["--num_workers=0", "--device=cpu"]
    assert main(["index", "add", "index", "city/test/queries_v1", *flags]) == 0
    capsys.readouterr()
    assert main(["locate", photo, "--index=index", "--engine=onnx_int8", "--uncalibrated"]) == 2
    assert (
        "error: index was built with the engine onnx, whose descriptors cannot be compared with those of onnx_int8. "
        "Omit --engine onnx_int8, or build a new index." in capsys.readouterr().err
    )


def test_a_cached_engine_locates_without_the_model(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(city, "cached", "--engine=onnx") == 0
    monkeypatch.setattr("cosplace.models.opening.open_model", lambda *_, **__: pytest.fail("opened the model"))
    with open_index("cached") as index:
        assert open_index_encoder(index, "cpu", engine="onnx").engine.kind.name == "onnx"


def test_an_index_of_int8_is_used_with_its_file_only(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(city, "int8", "--engine=onnx_int8") == 0
    with open_index("int8") as index:
        assert index.spec.engine == "onnx_int8" and len(index.spec.engine_file) == 64
        assert open_index_encoder(index, "cpu").engine.file_sha256 == index.spec.engine_file
        with pytest.raises(PhotoIndexError, match=r"with the engine onnx_int8, .* of torch\. Use --engine onnx_int8"):
            open_index_encoder(index, "cpu", engine="torch")
    capsys.readouterr()
    assert build(city, "int8", "--engine=torch") == 2
    assert "whose descriptors cannot be compared with those of torch. Use --engine onnx_int8" in capsys.readouterr().err
    for path in (city / "home" / "engines").glob("*/model.onnx"):
        if '"int8"' in path.with_name("model.json").read_text():
            path.write_bytes(b"damaged")
    photo = str(next(Path("city/test/queries_v1").glob("*.jpg")))
    assert main(["locate", photo, "--index=int8", "--uncalibrated", "--device=cpu"]) == 2
    assert "The file of the engine onnx_int8 (SHA-256 " in capsys.readouterr().err


def test_a_store_of_int8_is_not_continued_by_others(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["extract", "city/test/database", "--model=model.pth", "--device=cpu", "--num_workers=0", *SIZE]
    assert main([*command, "--to=floats", "--engine=onnx"]) == 0
    assert main([*command, "--to=floats"]) == 0  # complete, and torch agrees
    assert open_store("floats").meta.about["engine"] == "onnx"
    assert main([*command, "--to=codes", "--engine=onnx_int8"]) == 0
    capsys.readouterr()
    assert main([*command, "--to=codes"]) == 2
    assert (
        "codes has descriptors of another extraction (engine was onnx_int8, now it is engines without int8)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--engine=onnx", "--use_amp16"], "error: --use_amp16 needs --engine torch, not onnx. Omit one of them."),
        (["--engine=tensorrt"], "error: --engine must be auto, torch, torch_bf16, torch_compile, onnx, "),
        (
            ["--engine=openvino"],
            "error: --engine openvino needs openvino. Install with: pip install 'cosplace[openvino]'.",
        ),
    ],
)
def test_bad_input(
    city: Path, flags: list[str], error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    assert evaluate(*flags, "--save_dir=bad") == 2
    assert error in capsys.readouterr().err
