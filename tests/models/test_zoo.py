import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cosplace.cli import main
from cosplace.config.knobs import BACKBONES
from cosplace.errors import CheckpointError, ConfigError, CosPlaceError, DownloadError
from cosplace.models.cache import verify
from cosplace.models.downloads import digest_record, weights_folder
from cosplace.models.hub import IMAGENET_MEAN, IMAGENET_STD, HubNetwork, parse_hub
from cosplace.models.network import GeoLocalizationNet, infer_architecture
from cosplace.models.opening import model_file, open_network, released_network
from cosplace.models.weight_files import write_weights
from cosplace.models.zoo import (
    HUB_MODELS,
    MODELS,
    NEVER_RELEASED,
    HubModel,
    ZooModel,
    find_model,
    released,
    released_url,
)
from tests.models.serving import Server, serve

REPOSITORY = Path(__file__).resolve().parents[2]
ONE = "cosplace_resnet18_32"


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


def put_in_cache(name: str, content: bytes) -> Path:
    model = MODELS[name]
    path = weights_folder() / model.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def one_line(error: pytest.ExceptionInfo[CosPlaceError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(kind: type[CosPlaceError], match: str, model: str | Path, **options: bool) -> None:
    with pytest.raises(kind, match=match) as error:
        open_network(model, **options)
    one_line(error)


# --- records ---------------------------------------------------------------------------------------------------------


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


def test_names_may_be_spelt_in_any_way() -> None:
    for name in ("cosplace_resnet50_512", "CosPlace-ResNet50-512", "COSPLACE resnet-50 512"):
        assert find_model(name) is MODELS["cosplace_resnet50_512"]
    assert isinstance(find_model("MegaLoc"), HubModel)
    assert released("resnet-50", 512, "EigenPlaces") is MODELS["eigenplaces_resnet50_512"]


@pytest.mark.parametrize(
    "name, said",
    [
        ("cosplace_resnet50_300", "released with 300 dimensions: choose from 32, 64, 128, 256, 512, 1024, 2048"),
        ("cosplace_vgg16_32", "choose from 64, 128, 256, 512, or train it .*--backbone VGG16 --fc_output_dim 32"),
        ("eigenplaces_resnet18_128", "choose from 256, 512"),
        ("eigenplaces_resnet50", "lacks its dimension: choose from 128, .*as in eigenplaces_resnet50_2048"),
        ("eigenplaces_resnet152_512", "released for ResNet152: choose from VGG16, ResNet18, ResNet50, ResNet101"),
        ("eigenplaces_efficientnet_b0", "released for EfficientNet_B0"),
        ("cosplace_resnet18_small_512", "released for ResNet18_Small"),
        ("cosplace_resnet5_512", "did you mean cosplace_resnet50_512"),
        ("megalock", "did you mean megaloc"),
        ("resnet18", "cosplace zoo list"),
        ("cosplace_resnet50_" + "9" * 5000, "released with 999999999 dimensions"),
        ("x" * 5000, r"Unknown model 'x{60}\.\.\.'"),
        ("null\0byte", "Unknown model"),
    ],
)
def test_unknown_names_are_told_what_exists(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        find_model(name)
    one_line(error)
    refused(ConfigError, said, name)


def test_an_unknown_method_names_the_known() -> None:
    with pytest.raises(ConfigError, match="choose from cosplace, eigenplaces"):
        released("ResNet50", 512, "netvlad")


# --- architectures ---------------------------------------------------------------------------------------------------


def released_layout(model: ZooModel, reference_folder: Path, device: str) -> dict[str, torch.Tensor]:
    """A state dict with the keys and shapes of the reference implementation, which released these models."""
    layout = json.loads((reference_folder / "state_dict_keys.json").read_text())[model.backbone]
    return {
        key: torch.zeros([model.fc_output_dim if size == "fc_output_dim" else size for size in shape], device=device)
        for key, shape in layout.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_released_layout_is_recognised(name: str, reference_folder: Path) -> None:
    model = MODELS[name]
    assert infer_architecture(released_layout(model, reference_folder, "meta")) == (model.backbone, model.fc_output_dim)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds_a_network(name: str, reference_folder: Path, tmp_path: Path, monkeypatch) -> None:
    model = MODELS[name]
    torch.save(released_layout(model, reference_folder, "cpu"), tmp_path / model.file_name)
    monkeypatch.setenv("COSPLACE_RELEASES", str(tmp_path))
    network = open_network(name)
    assert isinstance(network, GeoLocalizationNet)
    assert (network.backbone_name, network.fc_output_dim) == (model.backbone, model.fc_output_dim)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, model.fc_output_dim)
    (tmp_path / model.file_name).unlink()
    (weights_folder() / model.file_name).unlink()


def test_a_model_that_was_never_released_can_be_built() -> None:
    assert GeoLocalizationNet("VGG16", 32)(torch.zeros(1, 3, 64, 64)).shape == (1, 32)


# --- opening ---------------------------------------------------------------------------------------------------------


def test_a_name_is_fetched_once_then_works_without_network(mirror: Server, small, monkeypatch) -> None:
    expected, content = small
    mirror.files["ResNet18_32_cosplace.pth"] = content
    images = torch.rand(2, 3, 64, 96)
    network = open_network(ONE)
    assert not network.training
    assert torch.equal(network(images), expected(images))
    assert network.state_dict().keys() == expected.state_dict().keys()
    assert mirror.paths == ["/ResNet18_32_cosplace.pth"]  # and no weights of ImageNet
    monkeypatch.setenv("COSPLACE_RELEASES", "http://127.0.0.1:9")
    assert torch.equal(open_network("CosPlace ResNet18 32")(images), expected(images))
    assert digest_record(weights_folder() / "ResNet18_32_cosplace.pth").is_file()


def test_a_whole_model_needs_no_imagenet_weights(small, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("fetched")

    put_in_cache(ONE, small[1])
    monkeypatch.setattr(urllib.request, "urlopen", never)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", never)
    monkeypatch.setattr(torch.hub, "download_url_to_file", never)
    assert isinstance(open_network(ONE), GeoLocalizationNet)
    with pytest.raises(AssertionError, match="fetched"):  # where they are needed, they would have been
        GeoLocalizationNet("ResNet18", 32, imagenet_weights="v1")


@pytest.mark.slow
def test_paths_are_opened_in_both_formats(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, content = small
    (tmp_path / "w.pth").write_bytes(content)
    write_weights(tmp_path / "w.safetensors", expected.state_dict(), {"backbone": "ResNet18"})
    (tmp_path / "plain").write_bytes(content)
    images = torch.rand(1, 3, 64, 64)
    monkeypatch.chdir(tmp_path)
    for model in (tmp_path / "w.pth", str(tmp_path / "w.safetensors"), "w.pth", "plain", Path("plain")):
        network = open_network(model)
        assert not network.training
        assert torch.equal(network(images), expected(images))
        assert model_file(model) == Path(model)


def test_files_that_are_no_model_are_refused(small, tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(small[1][:-3000])
    torch.save({"a": torch.zeros(3)}, tmp_path / "foreign.pth")
    for name in ("cut.pth", "foreign.pth", "absent.pth", "absent.safetensors"):
        refused(CheckpointError, name, tmp_path / name)
    refused(CheckpointError, "no file of weights absent.pth", "absent.pth")
    refused(CheckpointError, "absent/model", "absent/model")
    refused(CheckpointError, "null byte", "absent/\0.pth")


def test_a_file_of_another_architecture_under_a_name_is_refused(small) -> None:
    put_in_cache("cosplace_resnet18_64", small[1])
    refused(CheckpointError, "holds ResNet18 with 32 dimensions, not cosplace_resnet18_64", "cosplace_resnet18_64")


@pytest.mark.slow
def test_a_damaged_file_is_refused_or_fetched_anew(mirror: Server, small) -> None:
    path = put_in_cache(ONE, small[1][:-5000])
    refused(CheckpointError, "ResNet18_32_cosplace", ONE)  # put there by hand: nothing tells what it should be
    path.unlink()
    mirror.files[path.name] = small[1]
    open_network(ONE)
    path.write_bytes(small[1][:-5000])
    open_network(ONE)
    assert path.read_bytes() == small[1]


def test_without_network_one_line_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSPLACE_RELEASES", "http://127.0.0.1:9")
    refused(
        DownloadError, r"refused.*put the file at .*ResNet18_32_cosplace\.pth by hand, or set COSPLACE_RELEASES", ONE
    )


def test_a_folder_may_be_the_mirror(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with space").mkdir()
    (tmp_path / "with space" / "ResNet18_32_cosplace.pth").write_bytes(small[1])
    monkeypatch.setenv("COSPLACE_RELEASES", str(tmp_path / "with space"))
    assert model_file(ONE).read_bytes() == small[1]
    refused(DownloadError, "No such file", "cosplace_resnet18_64")


# --- verifying -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_tells_good_files_from_bad_ones(mirror: Server, small) -> None:
    mirror.files["ResNet18_32_cosplace.pth"] = small[1]
    path = model_file(ONE)
    put_in_cache("cosplace_resnet18_64", small[1])
    put_in_cache("cosplace_resnet18_128", small[1][:5000])
    (weights_folder() / "resnet18-f37072fd.pth").touch()  # of others
    good, other, broken = verify()
    assert (good.name, good.digest_source, good.is_good, good.path) == (ONE, "recorded", True, path)
    assert "holds ResNet18 with 32 dimensions: remove it" in other.problem
    assert other.digest_source == "none"
    assert "truncated or no file of weights" in broken.problem
    path.write_bytes(small[1][:-1] + b"?")
    assert "cosplace zoo download cosplace_resnet18_32" in verify()[0].problem
    assert not verify()[0].is_good


# --- torch.hub, both ways --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cosplace", "eigenplaces"])
def test_torch_hub_gives_released_models_from_a_clone(method: str) -> None:
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
    assert torch.equal(released_network("resnet-18", 256, method)(images), expected(images))


@pytest.mark.slow
def test_torch_hub_needs_no_package_but_torch_and_torchvision(small) -> None:
    put_in_cache(ONE, small[1])
    others = ["safetensors", "lancedb", "numba", "pyproj", "tqdm", "scipy", "simplejpeg", "tensorboard", "onnx"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others}))\n"
        f"import torch; print(torch.hub.load({str(REPOSITORY)!r}, 'get_trained_model', 'ResNet18', 32, source='local')"
        f"(torch.zeros(1, 3, 32, 32)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd="/")
    assert done.stdout == "torch.Size([1, 32])\n", done.stderr


def test_torch_hub_has_the_originals_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSPLACE_RELEASES", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"/ResNet50_2048_cosplace\.pth"):
        torch.hub.load(str(REPOSITORY), "get_trained_model", source="local")


HUBCONF = """
dependencies = ["torch"]
import os
import torch
from torch import nn

open(os.path.join(os.path.dirname(__file__), "was_run"), "w").close()
print("hello from others")


class Mean(nn.Module):
    def __init__(self, multiple=1, form="plain", dim=6):
        super().__init__()
        torch.manual_seed(0)
        self.multiple, self.form = multiple, form
        self.weight = nn.Parameter(torch.randn(3, dim))

    def forward(self, images):
        assert images.shape[2] % self.multiple == images.shape[3] % self.multiple == 0, "sides"
        found = 5 * images.mean((2, 3)) @ self.weight
        if self.form == "batch":
            found = found - found.mean(0) + len(found)
        forms = {"tuple": (found, [found]), "list": [torch.zeros(3), found], "dict": {"a": found}, "none": None}
        forms |= {"map": found[:, :, None, None], "counts": found.long(), "flat": found.sum(1)}
        return forms.get(self.form, found)


class Patches(Mean):
    def __init__(self):
        super().__init__(14)
        self.embed = nn.Module()
        self.embed.patch_size = (14, 14)


def plain(dim=6, device="cpu"):
    return Mean(dim=dim).to(device)

def formed(form, multiple=1):
    return Mean(multiple, form)

def patches():
    return Patches()

def parallel():
    return nn.DataParallel(nn.DataParallel(Mean()))

def number():
    return 3

def failing():
    raise KeyError("a\\nb")

def needing():
    import package_that_is_nowhere
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "their (own) repo"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


def opened(clone: Path, entry: str) -> HubNetwork:
    network = open_network(f"hub:{clone}:{entry}", trust_remote_code=True)
    assert isinstance(network, HubNetwork)
    return network


def test_code_of_others_is_run_only_with_trust(clone: Path, capsys: pytest.CaptureFixture) -> None:
    refused(
        ConfigError,
        f"would run code from .*{clone.name[-4:]} on this machine.*--trust_remote_code",
        f"hub:{clone}:plain()",
    )
    assert not (clone / "was_run").exists()
    for model in ("hub:someone/something:main:entry()", "megaloc"):
        refused(ConfigError, r"would run code from https://github\.com/\w+/\w+ on this machine", model)
    opened(clone, "plain()")
    assert (clone / "was_run").exists()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hello from others\n")  # results are not mixed with what others print


@pytest.mark.parametrize(
    "entry",
    [
        "plain",
        "plain()",
        "plain(dim=6, device='cpu')",
        "formed('tuple')",
        "formed(form='list')",
        "formed('dict')",
        "parallel()",
    ],
)
def test_models_of_others_behave_as_ours(clone: Path, entry: str) -> None:
    network = opened(clone, entry)
    images = torch.rand(3, 3, 40, 50)
    found = network(images)
    torch.manual_seed(0)
    expected = nn.functional.normalize(images.mean((2, 3)) @ torch.randn(3, 6), dim=1)
    assert (found.shape, found.dtype, network.fc_output_dim, network.training) == ((3, 6), torch.float32, 6, False)
    torch.testing.assert_close(found, expected)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("size", [(1, 1), (40, 50), (7, 224), (28, 42)])
def test_sides_are_resized_to_the_patches_of_a_transformer(clone: Path, size: tuple[int, int]) -> None:
    network = opened(clone, "patches()")
    assert network.traps.side_multiple == 14
    images = torch.rand(2, 3, 1, 1).expand(2, 3, *size)  # of one colour, which resizing keeps
    plain = opened(clone, "plain()")
    torch.testing.assert_close(network(images), plain(images))


def test_a_descriptor_that_depends_on_its_batch_is_computed_alone(clone: Path) -> None:
    module = opened(clone, "formed('batch')").network
    together = HubNetwork(module, HubModel(name="x", spec="x", fc_output_dim=6))
    alone = HubNetwork(module, HubModel(name="x", spec="x", fc_output_dim=6, one_by_one=True))
    images = torch.rand(3, 3, 20, 20)
    assert not torch.allclose(together(images)[:1], together(images[:1]))
    torch.testing.assert_close(alone(images)[:1], alone(images[:1]))


def test_another_normalisation_sees_the_same_photo() -> None:
    seen = []

    class Looking(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.mean((2, 3))

    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    network = HubNetwork(Looking(), HubModel(name="x", spec="x", fc_output_dim=3, mean=mean, std=std))
    photo = torch.rand(1, 3, 8, 8)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (photo - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    network(normalised(IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(seen[-1], normalised(mean, std))


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("megaloc", (14, False, False)),
        ("hub:lu-feng/cricavpr:main:trained_model()", (14, True, False)),
        ("hub:yxgeee/OpenIBL:vgg16_netvlad(pretrained=True)", (1, False, True)),
        ("hub:amaralibey/bag-of-queries:get_trained_boq('dinov2', 12288)", (14, False, False)),
        ("hub:amaralibey/bag-of-queries:get_trained_boq()", (1, False, False)),
        ("hub:someone/else:trained_model()", (1, False, False)),
    ],
)
def test_known_traps_are_found_however_a_model_is_asked_for(spec: str, expected: tuple, monkeypatch) -> None:
    class Pooled(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: Pooled())
    network = open_network(spec, trust_remote_code=True)
    assert isinstance(network, HubNetwork)
    traps = network.traps
    assert (traps.side_multiple, traps.one_by_one, traps.mean is not None) == expected


@pytest.mark.parametrize(
    "entry, kind, said",
    [
        ("formed('map')", CheckpointError, r"gives \[\[1, 6, 1, 1\]\] for 1 photos"),
        ("formed('none')", CheckpointError, r"gives \['NoneType'\]"),
        ("formed('counts')", CheckpointError, "none of it a descriptor"),
        ("formed('flat')", CheckpointError, "none of it a descriptor"),
        ("formed('x', 13)", CheckpointError, "cannot describe a photo of 224 x 224 pixels .AssertionError: sides"),
        ("number()", CheckpointError, "gives a int, no network"),
        ("failing()", ConfigError, "failed .KeyError"),
        ("needing()", ConfigError, "needs the package package_that_is_nowhere: pip install"),
        ("absent()", ConfigError, "has no entry 'absent'"),
        ("plain(size=3)", ConfigError, "unexpected keyword argument 'size'"),
    ],
)
def test_entries_that_give_no_descriptors_are_one_line(clone: Path, entry: str, kind, said: str) -> None:
    refused(kind, said, f"hub:{clone}:{entry}", trust_remote_code=True)


def test_missing_packages_and_clones_are_named(clone: Path) -> None:
    (clone / "hubconf.py").write_text("dependencies = ['torch', 'package_that_is_nowhere']\ndef entry(): pass\n")
    refused(ConfigError, "package_that_is_nowhere: pip install", f"hub:{clone}:entry()", trust_remote_code=True)
    refused(ConfigError, "no hubconf.py in .*nowhere", f"hub:{clone}/nowhere:entry()", trust_remote_code=True)


def test_a_repository_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    refused(
        DownloadError,
        "refused.*or clone https://github.com/someone/something",
        "hub:someone/something:entry()",
        trust_remote_code=True,
    )


# --- what hub: takes -------------------------------------------------------------------------------------------------


def test_specs_are_read() -> None:
    entry = parse_hub("hub:owner/repo:feature/x:entry(1, 'a:b(c)', dims=[1, 2], flag=True, none=None, x=-1.5)")
    assert (entry.source, entry.is_local, entry.entry) == ("owner/repo:feature/x", False, "entry")
    assert entry.args == (1, "a:b(c)")
    assert entry.kwargs == {"dims": [1, 2], "flag": True, "none": None, "x": -1.5}
    assert parse_hub("hub:./repo:entry").source == str(Path("repo").absolute())
    assert parse_hub("hub:C:\\repo:entry()").is_local
    for model in HUB_MODELS.values():
        assert not parse_hub(model.spec).is_local


@pytest.mark.parametrize(
    "spec",
    [
        "hub:",
        "hub:owner/repo",
        "hub:owner:entry()",
        "hub:owner/repo:",
        "hub:owner/repo:entry(",
        "hub:owner/repo:entry)",
        "hub:owner/repo:entry()()",
        "hub:owner/repo:entry() + entry()",
        "hub:owner/repo:entry(x)",
        "hub:owner/repo:entry(**{'a': 1})",
        "hub:owner/repo:entry(*[1])",
        "hub:owner/repo:entry(__import__('os').system('touch pwned'))",
        "hub:owner/repo:entry(a=[].__class__)",
        "hub:owner/repo:entry(lambda: 1)",
        "hub:owner/repo:entry(" + "(" * 500 + ")" * 500 + ")",
        "hub:owner/repo:entry(" + "1," * 5000 + ")",
        "hub:https://example.org/repo:entry()",
        "hub:../../etc passwd/repo",
    ],
)
def test_specs_that_are_none_are_refused_without_running_anything(spec: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(ConfigError, "hub:owner/repo:entry", spec, trust_remote_code=True)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_wild_specs_are_read_or_refused(text: str) -> None:
    for spec in (f"hub:{text}", f"hub:a/b:entry({text})"):
        try:
            parse_hub(spec)
        except ConfigError as error:
            assert len(str(error)) < 500


@pytest.mark.slow
@given(
    args=st.lists(st.integers() | st.text(max_size=9) | st.booleans() | st.none()),
    kwargs=st.dictionaries(
        st.from_regex(r"[a-z]{2,8}_", fullmatch=True), st.floats(allow_nan=False, allow_infinity=False)
    ),
)
def test_literals_come_back(args: list, kwargs: dict) -> None:
    written = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    entry = parse_hub(f"hub:a/b:entry({written})")
    assert (list(entry.args), dict(entry.kwargs)) == (args, kwargs)


# --- the command -----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    code = main(["zoo", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_list_as_json_and_text(capsys: pytest.CaptureFixture) -> None:
    records = json.loads(run(capsys, "list", "--json")[1])
    assert [record["name"] for record in records] == list(MODELS)
    assert {"name", "method", "backbone", "fc_output_dim", "url", "sha256", "licence", "recalls"} <= records[0].keys()
    assert len(json.loads(run(capsys, "list", "--json", "--method", "eigenplaces")[1])) == 13
    code, text, _ = run(capsys, "list")
    assert code == 0
    assert all(f"\n{name} " in text for name in (*MODELS, *HUB_MODELS))
    assert "32 dimensions stands in the CosPlace paper too but was never released" in text
    assert run(capsys)[1] == text


def test_info_tells_a_record(capsys: pytest.CaptureFixture) -> None:
    assert "tokyo247 89.5" in run(capsys, "info", "cosplace_resnet50_512")[1]
    assert json.loads(run(capsys, "info", ONE, "--json")[1])["path"] is None
    assert "--trust_remote_code" in run(capsys, "info", "cricavpr")[1]


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
    assert error == f"error: 1 of 1 cached models are not what they should be: {ONE}.\n"
    found = json.loads(run(capsys, "verify", "--json")[1])
    assert (found[0]["name"], bool(found[0]["problem"])) == (ONE, True)
    assert run(capsys, "download", ONE)[0] == 0  # fetches it anew
    assert path.read_bytes() == small[1]


@pytest.mark.slow
def test_verify_tells_of_downloads_that_were_stopped(mirror: Server, small, capsys: pytest.CaptureFixture) -> None:
    mirror.files["ResNet18_32_cosplace.pth"] = small[1]
    mirror.breaks_after = [5_000_000, 0, 0, 0]
    assert run(capsys, "download", ONE)[0] == 2
    assert f"{ONE:28s}  begun (5.0 MB)" in run(capsys, "verify")[1]
    mirror.breaks_after = []
    assert run(capsys, "download", ONE)[0] == 0
    assert mirror.ranges[-1] == "bytes=5000000-"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["download"], "Nothing to download"),
        (["download", ONE, "cosplace_resnet50_300"], "choose from 32, 64"),  # before anything is fetched
        (["download", "megaloc"], "through torch.hub"),
        (["info", "cosplace_resnet18_33"], "choose from 32, 64, 128, 256, 512"),
        (["info"], "NAME"),
        (["fetch"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    code, out, error = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in error
    assert error.count("\n") == 1


def test_a_reduction_whose_network_is_others_needs_trust_too(clone: Path, tmp_path: Path) -> None:
    tensors = {"reduction.weight": torch.eye(2, 6), "reduction.bias": torch.zeros(2)}
    path = tmp_path / "reduced.safetensors"
    write_weights(path, tensors, {"reduction": "truncation", "base_model": f"hub:{clone}:plain()"})
    refused(ConfigError, "would run code from", path)
    assert not (clone / "was_run").exists()
    images = torch.rand(1, 3, 30, 30)
    found = open_network(path, trust_remote_code=True)(images)
    torch.testing.assert_close(found, nn.functional.normalize(opened(clone, "plain()")(images)[:, :2], dim=1))
    for base in (str(path), "nothing"):
        write_weights(path, tensors, {"reduction": "truncation", "base_model": base})
        with pytest.raises(CosPlaceError, match=r"names|Unknown model") as error:
            open_network(path)
        one_line(error)
