"""Models of other projects through torch.hub."""

import urllib.request
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cosplace.errors import CheckpointError, ConfigError, CosPlaceError, DownloadError
from cosplace.models.hub import IMAGENET_MEAN, IMAGENET_STD, HubNetwork, parse_hub
from cosplace.models.opening import open_model
from cosplace.models.weight_files import write_weights
from cosplace.models.zoo import (
    HUB_MODELS,
    HubModel,
)
from tests.models.networks import assert_refused, one_line

HUBCONF = """
dependencies = ["torch"]
import os
import torch
from torch import nn

open(os.path.join(os.path.dirname(__file__), "was_run"), "w").close()
print("hello from the repository")


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
    network = open_model(f"hub:{clone}:{entry}", trust_remote_code=True)
    assert isinstance(network, HubNetwork)
    return network


def test_code_of_a_repository_runs_only_with_trust(clone: Path, capsys: pytest.CaptureFixture) -> None:
    assert_refused(
        ConfigError,
        f"would run code from .*{clone.name[-4:]} on this machine.*--trust_remote_code",
        f"hub:{clone}:plain()",
    )
    assert not (clone / "was_run").exists()
    for model in ("hub:someone/something:main:entry()", "anyloc_urban"):
        assert_refused(ConfigError, r"would run code from https://github\.com/\w+/\w+ on this machine", model)
    opened(clone, "plain()")
    assert (clone / "was_run").exists()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hello from the repository\n")  # printed text must not mix with results


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
def test_networks_of_any_output_form_return_unit_descriptors(clone: Path, entry: str) -> None:
    network = opened(clone, entry)
    images = torch.rand(3, 3, 40, 50)
    found = network(images)
    torch.manual_seed(0)
    expected = nn.functional.normalize(images.mean((2, 3)) @ torch.randn(3, 6), dim=1)
    assert (found.shape, found.dtype, network.fc_output_dim, network.training) == ((3, 6), torch.float32, 6, False)
    torch.testing.assert_close(found, expected)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("size", [(1, 1), (40, 50), (7, 224), (28, 42)])
def test_sides_are_resized_to_multiples_of_the_patch_size(clone: Path, size: tuple[int, int]) -> None:
    network = opened(clone, "patches()")
    assert network.record.side_multiple == 14
    images = torch.rand(2, 3, 1, 1).expand(2, 3, *size)  # of one color, which resizing keeps
    plain = opened(clone, "plain()")
    torch.testing.assert_close(network(images), plain(images))


def test_photos_are_encoded_one_by_one_if_descriptors_depend_on_the_batch(clone: Path) -> None:
    module = opened(clone, "formed('batch')").network
    together = HubNetwork(module, HubModel(name="x", spec="x", fc_output_dim=6))
    alone = HubNetwork(module, HubModel(name="x", spec="x", fc_output_dim=6, one_by_one=True))
    images = torch.rand(3, 3, 20, 20)
    assert not torch.allclose(together(images)[:1], together(images[:1]))
    torch.testing.assert_close(alone(images)[:1], alone(images[:1]))


def test_the_network_gets_its_own_normalization() -> None:
    seen = []

    class Recorder(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.mean((2, 3))

    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    network = HubNetwork(Recorder(), HubModel(name="x", spec="x", fc_output_dim=3, mean=mean, std=std))
    photo = torch.rand(1, 3, 8, 8)

    def normalized(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (photo - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    network(normalized(IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(seen[-1], normalized(mean, std))


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("hub:gmberton/MegaLoc:get_trained_model()", (14, False, False)),
        ("hub:lu-feng/cricavpr:main:trained_model()", (14, True, False)),
        ("hub:yxgeee/OpenIBL:vgg16_netvlad(pretrained=True)", (1, False, True)),
        ("hub:amaralibey/bag-of-queries:get_trained_boq('dinov2', 12288)", (14, False, False)),
        ("hub:amaralibey/bag-of-queries:get_trained_boq()", (1, False, False)),
        ("hub:someone/else:trained_model()", (1, False, False)),
    ],
)
def test_the_record_of_a_known_model_is_found_for_every_spelling(spec: str, expected: tuple, monkeypatch) -> None:
    class Pooled(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: Pooled())
    network = open_model(spec, trust_remote_code=True)
    assert isinstance(network, HubNetwork)
    record = network.record
    assert (record.side_multiple, record.one_by_one, record.mean is not None) == expected


@pytest.mark.parametrize(
    "entry, kind, message",
    [
        ("formed('map')", CheckpointError, r"returns \[\[1, 6, 1, 1\]\] for 1 photos"),
        ("formed('none')", CheckpointError, r"returns \['NoneType'\]"),
        ("formed('counts')", CheckpointError, "contains no descriptors"),
        ("formed('flat')", CheckpointError, "contains no descriptors"),
        ("formed('x', 13)", CheckpointError, "fails on an image of 224 x 224 pixels .AssertionError: sides"),
        ("number()", CheckpointError, "returns int, not a network"),
        ("failing()", ConfigError, "failed .KeyError"),
        ("needing()", ConfigError, "needs the package package_that_is_nowhere. Install it with pip"),
        ("absent()", ConfigError, "has no entry point 'absent'"),
        ("plain(size=3)", ConfigError, "unexpected keyword argument 'size'"),
    ],
)
def test_entry_points_without_descriptors_are_refused_in_one_line(clone: Path, entry: str, kind, message: str) -> None:
    assert_refused(kind, message, f"hub:{clone}:{entry}", trust_remote_code=True)


def test_missing_packages_and_clones_give_one_line(clone: Path) -> None:
    (clone / "hubconf.py").write_text("dependencies = ['torch', 'package_that_is_nowhere']\ndef entry(): pass\n")
    assert_refused(
        ConfigError, "package_that_is_nowhere. Install them with pip", f"hub:{clone}:entry()", trust_remote_code=True
    )
    assert_refused(ConfigError, "no hubconf.py in .*nowhere", f"hub:{clone}/nowhere:entry()", trust_remote_code=True)


def test_an_unreachable_repository_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    assert_refused(
        DownloadError,
        "refused.*or clone https://github.com/someone/something",
        "hub:someone/something:entry()",
        trust_remote_code=True,
    )


def test_a_reduction_of_a_hub_model_needs_trust_too(clone: Path, tmp_path: Path) -> None:
    tensors = {"reduction.weight": torch.eye(2, 6), "reduction.bias": torch.zeros(2)}
    path = tmp_path / "reduced.safetensors"
    write_weights(path, tensors, {"reduction": "truncation", "base_model": f"hub:{clone}:plain()"})
    assert_refused(ConfigError, "would run code from", path)
    assert not (clone / "was_run").exists()
    images = torch.rand(1, 3, 30, 30)
    found = open_model(path, trust_remote_code=True)(images)
    torch.testing.assert_close(found, nn.functional.normalize(opened(clone, "plain()")(images)[:, :2], dim=1))
    for base in (str(path), "nothing"):
        write_weights(path, tensors, {"reduction": "truncation", "base_model": base})
        with pytest.raises(CosPlaceError, match=r"names|Unknown model") as error:
            open_model(path)
        one_line(error)


# --- specs ------------------------------------------------------------------------------------------------------------


def test_specs_are_parsed() -> None:
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
def test_invalid_specs_are_refused_without_running_anything(spec: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(ConfigError, "hub:owner/repo:entry", spec, trust_remote_code=True)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
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
def test_literals_are_parsed_back(args: list, kwargs: dict) -> None:
    written = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    entry = parse_hub(f"hub:a/b:entry({written})")
    assert (list(entry.args), dict(entry.kwargs)) == (args, kwargs)
