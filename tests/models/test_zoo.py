"""The zoo: records, names, released layouts, the cache and `cosplace zoo`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cosplace.cli import main
from cosplace.config.names import BACKBONES
from cosplace.errors import ConfigError, DownloadError
from cosplace.models.cache import verify_cache
from cosplace.models.downloads import weights_folder
from cosplace.models.network import GeoLocalizationNet, infer_architecture
from cosplace.models.opening import open_model, weights_path
from cosplace.models.zoo import (
    HUB_MODELS,
    MODELS,
    NATIVE_MODELS,
    NEVER_RELEASED,
    HubModel,
    ZooModel,
    find_model,
    released,
    released_url,
)
from tests.models.file_server import Server
from tests.models.networks import ONE, assert_refused, one_line, put_in_cache

REPOSITORY = Path(__file__).resolve().parents[2]


# --- records ----------------------------------------------------------------------------------------------------------


def test_thirty_cosplace_and_thirteen_eigenplaces_models_were_released() -> None:
    by_method = [model.method for model in MODELS.values()]
    assert (by_method.count("cosplace"), by_method.count("eigenplaces"), len(by_method)) == (30, 13, 43)
    powers = [2**i for i in range(5, 12)]
    cosplace = {"VGG16": powers[1:5], "ResNet18": powers[:5], "ResNet50": powers, "ResNet101": powers}
    cosplace["ResNet152"] = powers
    eigenplaces = {"VGG16": [512], "ResNet18": [256, 512], "ResNet50": powers[2:], "ResNet101": powers[2:]}
    found: dict[str, dict[str, list[int]]] = {"cosplace": {}, "eigenplaces": {}}
    for model in MODELS.values():
        found[model.method].setdefault(model.backbone, []).append(model.fc_output_dim)
    assert found == {"cosplace": cosplace, "eigenplaces": eigenplaces}
    assert NEVER_RELEASED not in MODELS


def test_records_are_complete_and_distinct() -> None:
    assert len({model.url for model in MODELS.values()}) == 43
    for name, model in MODELS.items():
        assert name == model.name == f"{model.method}_{model.backbone.lower()}_{model.fc_output_dim}"
        assert model.backbone in BACKBONES
        assert model.licence and model.paper and model.resize and model.recalls_source
        assert all(50 < recall <= 100 for recall in model.recalls.values())
    assert released_url(MODELS["eigenplaces_resnet50_2048"]) == (
        "https://github.com/gmberton/EigenPlaces/releases/download/v1.0/ResNet50_2048_eigenplaces.pth"
    )
    assert MODELS["cosplace_resnet50_512"].url == (
        "https://github.com/gmberton/CosPlace/releases/download/v1.0/ResNet50_512_cosplace.pth"
    )
    assert MODELS["cosplace_resnet101_2048"].recalls["pitts250k"] == 91.8
    assert MODELS["eigenplaces_resnet50_512"].recalls["tokyo247"] == 89.8


def test_names_may_be_spelled_in_any_way() -> None:
    for name in ("cosplace_resnet50_512", "CosPlace-ResNet50-512", "COSPLACE resnet-50 512"):
        assert find_model(name) is MODELS["cosplace_resnet50_512"]
    assert find_model("MegaLoc") is NATIVE_MODELS["megaloc"]
    assert isinstance(find_model("Crica-VPR"), HubModel)
    assert released("resnet-50", 512, "EigenPlaces") is MODELS["eigenplaces_resnet50_512"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("cosplace_resnet50_300", "released with 300 dimensions. Choose from 32, 64, 128, 256, 512, 1024, 2048"),
        ("cosplace_vgg16_32", "Choose from 64, 128, 256, 512, or train it: .*--backbone VGG16 --fc_output_dim 32"),
        ("eigenplaces_resnet18_128", "Choose from 256, 512"),
        ("eigenplaces_resnet50", "has no dimension. Choose from 128, .*for example eigenplaces_resnet50_2048"),
        ("eigenplaces_resnet152_512", "released for ResNet152. Choose from VGG16, ResNet18, ResNet50, ResNet101"),
        ("eigenplaces_efficientnet_b0", "released for EfficientNet_B0"),
        ("cosplace_resnet18_small_512", "released for ResNet18_Small"),
        ("cosplace_resnet5_512", "Did you mean cosplace_resnet50_512"),
        ("megalock", "Did you mean megaloc"),
        ("resnet18", "cosplace zoo list"),
        ("cosplace_resnet50_" + "9" * 5000, "released with 999999999 dimensions"),
        ("x" * 5000, r"Unknown model 'x{60}\.\.\.'"),
        ("null\0byte", "Unknown model"),
    ],
)
def test_unknown_names_get_a_hint(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        find_model(name)
    one_line(error)
    assert_refused(ConfigError, message, name)


def test_an_unknown_method_gets_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="Choose from cosplace, eigenplaces"):
        released("ResNet50", 512, "netvlad")


# --- architectures ----------------------------------------------------------------------------------------------------


def released_layout(model: ZooModel, reference_folder: Path, device: str) -> dict[str, torch.Tensor]:
    """A state dict with the keys and shapes of the reference implementation, which released these models."""
    layout = json.loads((reference_folder / "state_dict_keys.json").read_text())[model.backbone]
    return {
        key: torch.zeros([model.fc_output_dim if size == "fc_output_dim" else size for size in shape], device=device)
        for key, shape in layout.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_released_layout_is_recognized(name: str, reference_folder: Path) -> None:
    model = MODELS[name]
    assert infer_architecture(released_layout(model, reference_folder, "meta")) == (model.backbone, model.fc_output_dim)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds_a_network(name: str, reference_folder: Path, tmp_path: Path, monkeypatch) -> None:
    model = MODELS[name]
    torch.save(released_layout(model, reference_folder, "cpu"), tmp_path / model.file_name)
    monkeypatch.setenv("COSPLACE_RELEASES", str(tmp_path))
    network = open_model(name)
    assert isinstance(network, GeoLocalizationNet)
    assert (network.backbone_name, network.fc_output_dim) == (model.backbone, model.fc_output_dim)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, model.fc_output_dim)
    (tmp_path / model.file_name).unlink()
    (weights_folder() / model.file_name).unlink()


def test_a_model_that_was_never_released_can_be_built() -> None:
    assert GeoLocalizationNet("VGG16", 32)(torch.zeros(1, 3, 64, 64)).shape == (1, 32)


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_finds_damaged_files_and_wrong_architectures(mirror: Server, small) -> None:
    mirror.files["ResNet18_32_cosplace.pth"] = small[1]
    path = weights_path(ONE)
    put_in_cache("cosplace_resnet18_64", small[1])
    put_in_cache("cosplace_resnet18_128", small[1][:5000])
    (weights_folder() / "resnet18-f37072fd.pth").touch()  # of another project
    good, other, broken = verify_cache()
    assert (good.name, good.digest_source, good.is_good, good.path) == (ONE, "recorded", True, path)
    assert "holds ResNet18 with 32 dimensions: remove it" in other.problem
    assert other.digest_source == "none"
    assert "truncated or not a weights file" in broken.problem
    path.write_bytes(small[1][:-1] + b"?")
    assert "cosplace zoo download cosplace_resnet18_32" in verify_cache()[0].problem
    assert not verify_cache()[0].is_good


# --- torch.hub --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cosplace", "eigenplaces"])
def test_torch_hub_loads_released_models_from_a_clone(method: str) -> None:
    expected = GeoLocalizationNet("ResNet18", 256).eval()
    path = weights_folder() / f"ResNet18_256_{method}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(expected.state_dict(), path)
    chosen = {} if method == "cosplace" else {"method": method}
    model = torch.hub.load(
        str(REPOSITORY), "get_trained_model", source="local", backbone="ResNet18", fc_output_dim=256, **chosen
    )
    images = torch.randn(2, 3, 96, 64)
    assert not model.training
    assert torch.equal(model(images), expected(images))
    assert torch.equal(open_model(released("resnet-18", 256, method).name)(images), expected(images))


@pytest.mark.slow
def test_torch_hub_needs_only_torch_and_torchvision(small) -> None:
    put_in_cache(ONE, small[1])
    others = ["safetensors", "lancedb", "numba", "pyproj", "tqdm", "scipy", "simplejpeg", "tensorboard", "onnx"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others}))\n"
        f"import torch; print(torch.hub.load({str(REPOSITORY)!r}, 'get_trained_model', 'ResNet18', 32, source='local')"
        f"(torch.zeros(1, 3, 32, 32)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd="/")
    assert done.stdout == "torch.Size([1, 32])\n", done.stderr


def test_torch_hub_has_the_defaults_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSPLACE_RELEASES", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"/ResNet50_2048_cosplace\.pth"):
        torch.hub.load(str(REPOSITORY), "get_trained_model", source="local")


# --- the command ------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    code = main(["zoo", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_list_as_json_and_text(capsys: pytest.CaptureFixture) -> None:
    records = json.loads(run(capsys, "list", "--json")[1])
    assert [record["name"] for record in records] == [*MODELS, *NATIVE_MODELS]
    assert {"name", "method", "backbone", "fc_output_dim", "url", "sha256", "licence", "recalls"} <= records[0].keys()
    assert len(json.loads(run(capsys, "list", "--json", "--method", "eigenplaces")[1])) == 13
    code, text, _ = run(capsys, "list")
    assert code == 0
    assert all(f"\n{name} " in text for name in (*MODELS, *HUB_MODELS))
    assert "32 dimensions is in the CosPlace paper but was never released" in text
    assert run(capsys)[1] == text


def test_the_list_can_be_sorted(capsys: pytest.CaptureFixture) -> None:
    def sorted_by(key: str) -> list[dict]:
        return json.loads(run(capsys, "list", "--json", "--sort", key)[1])

    assert [record["name"] for record in sorted_by("recall")][:2] == ["megaloc", "image_merged"]  # 94.1 both
    for key, field in (("dimension", "fc_output_dim"), ("size", "num_parameters"), ("name", "name")):
        values = [record[field] for record in sorted_by(key)]
        assert values == sorted(values)


@pytest.mark.parametrize(("key", "title"), [("speed", "photos/s"), ("license", "commercial use"), ("size", "size, MB")])
def test_the_sorted_list_shows_what_it_is_sorted_by(key: str, title: str, capsys: pytest.CaptureFixture) -> None:
    header, *rows = run(capsys, "list", "--sort", key)[1].partition("\n\n")[0].splitlines()
    end = header.index(title) + len(title) + len(" (CPU core)") * (key == "speed")
    values = [row[:end].split()[-1] for row in rows]
    order: dict[str, Callable[[str], float]] = {
        "speed": lambda value: -float(value.replace("-", "0")),
        "license": ("yes", "unclear", "no").index,
        "size": float,
    }
    assert len(set(values)) > 1
    assert values == sorted(values, key=order[key])


def test_the_table_of_the_documentation_is_that_of_the_records(capsys: pytest.CaptureFixture) -> None:
    table = run(capsys, "list", "--markdown", "--sort", "recall")[1]
    assert table in (REPOSITORY / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert "| `megaloc` | 94.1 | 96.5 | - | 95.3 | 8448 | 915 | 1.08 | MIT | MIT |" in table
    assert all(f"| `{name}` |" in table for name in NATIVE_MODELS)


def test_info_shows_a_record(capsys: pytest.CaptureFixture) -> None:
    assert "tokyo247 89.5" in run(capsys, "info", "cosplace_resnet50_512")[1]
    assert json.loads(run(capsys, "info", ONE, "--json")[1])["path"] is None
    assert "--trust_remote_code" in run(capsys, "info", "cricavpr")[1]
    salad = json.loads(run(capsys, "info", "salad", "--json")[1])
    assert (salad["commercial_use"], salad["licenses"]["code"], salad["side_multiple"]) == ("unclear", "GPL-3.0", 14)


@pytest.mark.slow
def test_download_then_verify(mirror: Server, small, capsys: pytest.CaptureFixture) -> None:
    mirror.files["ResNet18_32_cosplace.pth"] = small[1]
    path = weights_folder() / "ResNet18_32_cosplace.pth"
    assert run(capsys, "download", ONE)[:2] == (0, f"{path}\n")
    assert run(capsys, "verify")[:2][0] == 0
    path.write_bytes(small[1][:-1] + b"?")
    code, out, error = run(capsys, "verify")
    assert code == 2
    assert "instead of" in out
    assert error.startswith(f"error: 1 of 1 models in the cache are damaged: {ONE}.")
    found = json.loads(run(capsys, "verify", "--json")[1])
    assert (found[0]["name"], bool(found[0]["problem"])) == (ONE, True)
    assert run(capsys, "download", ONE)[0] == 0  # downloads it again
    assert path.read_bytes() == small[1]


@pytest.mark.slow
def test_verify_lists_incomplete_downloads(mirror: Server, small, capsys: pytest.CaptureFixture) -> None:
    mirror.files["ResNet18_32_cosplace.pth"] = small[1]
    mirror.break_after = [5_000_000, 0, 0, 0]
    assert run(capsys, "download", ONE)[0] == 2
    assert f"{ONE:28s}  incomplete (5.0 MB)" in run(capsys, "verify")[1]
    mirror.break_after = []
    assert run(capsys, "download", ONE)[0] == 0
    assert mirror.ranges[-1] == "bytes=5000000-"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["download"], "No models to download"),
        (["download", ONE, "cosplace_resnet50_300"], "Choose from 32, 64"),  # before anything is downloaded
        (["download", "cricavpr"], "through torch.hub"),
        (["download", "salad"], "`cosplace zoo download salad --accept_license` once"),
        (["info", "cosplace_resnet18_33"], "Choose from 32, 64, 128, 256, 512"),
        (["info"], "NAME"),
        (["fetch"], "Unknown action 'fetch'"),
    ],
)
def test_mistakes_give_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    code, out, error = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in error
    assert error.count("\n") == 1
