"""Files of models: the same tensors in every kind of file, cards that tell the truth, reductions beside networks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.cli import main
from cosplace.errors import CheckpointError, ConfigError, DatasetError
from cosplace.export import conversion
from cosplace.export.conversion import convert, reduce
from cosplace.models.downloads import weights_folder
from cosplace.models.encoder import load_model
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_network
from cosplace.models.reduction import ReducedNetwork
from cosplace.models.weight_files import read_card, read_state_dict, tensors_sha256, write_weights
from cosplace.training.checkpoint import BEST_MODEL, BEST_MODEL_SAFE
from cosplace.training.loop import train
from cosplace.training.setup import prepare
from tests.streets import settings, write_streets

HUB = """
import torch
dependencies = ["torch"]
class Mean(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
def mean():
    return Mean()
"""


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_streets(tmp_path_factory.mktemp("streets"), num_places=8)


@pytest.fixture(scope="module")
def run(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(prepare(settings(streets, epochs_num=2, iterations_per_epoch=2)), folder)
    return folder


@pytest.fixture(scope="module")
def reduced(run: Path, streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reduced") / "small.safetensors"
    reduce(run / BEST_MODEL, streets / "train", path, 8, image_size=32, device="cpu")
    return path


@pytest.fixture
def hub(tmp_path: Path) -> str:
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "hubconf.py").write_text(HUB)
    return f"hub:{tmp_path}/clone:mean"


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value.dtype == b[key].dtype
        assert torch.equal(value, b[key])


def said_by(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


# --- the best model of a run -----------------------------------------------------------------------------------------


def test_a_run_keeps_its_best_model_as_safetensors_too(run: Path) -> None:
    assert_equal(read_state_dict(run / BEST_MODEL_SAFE), read_state_dict(run / BEST_MODEL))
    card = read_card(run / BEST_MODEL_SAFE)
    assert card["tensors_sha256"] == tensors_sha256(read_state_dict(run / BEST_MODEL))
    assert (card["backbone"], card["fc_output_dim"], card["image_size"]) == ("ResNet18_Small", "16", "32")
    assert set(json.loads(card["recalls"])["val"]) == {"1", "2"}
    assert card["source"].startswith("cosplace train, epoch ")


# --- convert ---------------------------------------------------------------------------------------------------------


def test_there_and_back_is_the_same_bit_for_bit(run: Path, tmp_path: Path) -> None:
    written = convert(run / BEST_MODEL, tmp_path / "a.safetensors")
    assert_equal(read_state_dict(written.path), read_state_dict(run / BEST_MODEL))
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth")
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    assert_equal(back, read_state_dict(run / BEST_MODEL))
    assert read_card(written.path) == dict(written.card)
    assert written.num_bytes == written.path.stat().st_size
    # Neither numbers that are not numbers nor short ones change.
    odd = read_state_dict(run / BEST_MODEL)
    odd["aggregation.3.bias"][0] = float("nan")
    odd["aggregation.3.weight"] = odd["aggregation.3.weight"].half()
    write_weights(tmp_path / "odd.pth", odd)
    convert(tmp_path / "odd.pth", tmp_path / "odd.safetensors")
    assert tensors_sha256(read_state_dict(tmp_path / "odd.safetensors")) == tensors_sha256(odd)


def test_the_card_says_what_the_run_knew(run: Path, tmp_path: Path) -> None:
    card = convert(run / BEST_MODEL, tmp_path / "a.safetensors").card
    own = read_card(run / BEST_MODEL_SAFE)
    for key in ("format", "backbone", "fc_output_dim", "method", "image_size", "recalls", "tensors_sha256", "source"):
        assert card[key] == own[key]
    assert card["created"].startswith("20")
    again = convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors").card
    assert again == card
    alone = shutil.copy(run / BEST_MODEL, tmp_path / "alone.pth")
    card = convert(alone, tmp_path / "d.safetensors").card
    assert card["source"] == "alone.pth"
    assert not {"recalls", "image_size", "method"} & card.keys()  # what is not known is not said


@pytest.fixture
def fetched() -> str:
    """A name of the zoo whose file is in the cache already."""
    write_weights(weights_folder() / "ResNet18_32_cosplace.pth", GeoLocalizationNet("ResNet18", 32).state_dict())
    return "cosplace_resnet18_32"


def test_a_name_of_the_zoo_is_converted_with_what_the_zoo_knows(fetched: str, tmp_path: Path) -> None:
    card = convert(fetched, tmp_path / "a.safetensors").card
    assert (card["backbone"], card["fc_output_dim"], card["method"]) == ("ResNet18", "32", "cosplace")
    assert card["source"].startswith("https://")
    assert card["licence"]


@pytest.mark.slow
def test_a_name_of_the_zoo_is_evaluated_and_trained(
    fetched: str, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    judged = ["eval", f"--dataset_folder={streets}", "--device=cpu", "--num_workers=0", "--recall_values", "1"]
    code, said = said_by(capsys, *judged, "--resize_test_imgs", "--image_size=64", f"--model={fetched}")
    assert code == 0, said
    assert f"{fetched}, judged on" in next(tmp_path.glob("logs/default/*/report.html")).read_text()
    prepared = prepare(settings(streets, resume_model=fetched, train_all_layers=True))
    assert (prepared.config.model.backbone, prepared.config.model.fc_output_dim) == ("ResNet18", 32)
    assert all(parameter.requires_grad for parameter in prepared.state.model.parameters())
    frozen = prepare(settings(streets, resume_model=fetched)).state.model
    assert not all(parameter.requires_grad for parameter in frozen.parameters())


def test_mistakes_in_converting_write_nothing(run: Path, reduced: Path, tmp_path: Path) -> None:
    (tmp_path / "there.pth").write_bytes(b"mine")
    (tmp_path / "foreign.pth").write_bytes(b"no weights")
    write_weights(tmp_path / "other.pth", {"weight": torch.zeros(3)})
    cases = [
        (run / BEST_MODEL, "there.pth", ConfigError, r"is there already: give another name, or --force"),
        (run / BEST_MODEL, "a.onnx", ConfigError, r"end it with \.safetensors or \.pth"),
        (tmp_path / "foreign.pth", "a.pth", CheckpointError, "foreign.pth"),
        (tmp_path / "other.pth", "a.pth", CheckpointError, "other.pth: These are not the weights of a CosPlace"),
        (tmp_path / "gone.pth", "a.pth", CheckpointError, "There is no file of weights"),
        ("cosplace_resnet50_511", "a.pth", ConfigError, "released with 511 dimensions"),
        ("hub:owner/repo:entry", "a.pth", ConfigError, "torch.hub"),
        (reduced, "a.pth", ConfigError, r"only \.safetensors has a place"),
    ]
    for source, to, kind, said in cases:
        with pytest.raises(kind, match=said) as caught:
            convert(source, tmp_path / to)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "there.pth").read_bytes() == b"mine"
    assert not list(tmp_path.glob("a.*"))
    convert(run / BEST_MODEL, tmp_path / "there.pth", force=True)
    assert_equal(read_state_dict(tmp_path / "there.pth"), read_state_dict(run / BEST_MODEL))


def test_a_disk_that_lies_is_found_out(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_a_bit(path: Path, tensors: dict, card: dict | None) -> None:
        changed = {key: value.clone() for key, value in tensors.items()}
        changed["aggregation.3.bias"][0] += 1
        write_weights(path, changed, card)

    monkeypatch.setattr(conversion, "write_weights", lose_a_bit)
    with pytest.raises(CheckpointError, match="does not hold what was written"):
        convert(run / BEST_MODEL, tmp_path / "a.safetensors")


def test_convert_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, said = said_by(capsys, "convert", run / BEST_MODEL, tmp_path / "a.safetensors")
    assert code == 0
    assert "read back and equal" in said
    assert "backbone           ResNet18_Small" in said
    code, said = said_by(capsys, "convert", run / BEST_MODEL, tmp_path / "a.safetensors")
    assert (code, said.count("\n")) == (2, 1)
    assert "--force" in said
    assert said_by(capsys, "convert", run / BEST_MODEL, tmp_path / "a.safetensors", "--force")[0] == 0
    code, said = said_by(capsys, "convert", tmp_path / "a.safetensors", tmp_path / "b.pth")
    assert "A .pth has no place for this card" in said


# --- reduce ----------------------------------------------------------------------------------------------------------


def test_a_reduced_model_is_a_model(reduced: Path, run: Path, streets: Path) -> None:
    network = open_network(reduced)
    assert isinstance(network, ReducedNetwork)
    card = read_card(reduced)
    assert (card["fc_output_dim"], card["features_dim"], card["reduction"]) == ("8", "16", "pca_whitening")
    assert card["reduction_photos"] == "48 of train"
    assert card["image_size"] == "32"
    assert "recalls" not in card  # those of the whole model are not its own
    photos = sorted((streets / "val" / "queries").iterdir())[:3]
    small = load_model(reduced, image_size=32, device="cpu").encode(photos)
    whole = load_model(run / BEST_MODEL, image_size=32, device="cpu").encode(photos)
    wanted = whole @ network.reduction.weight.numpy().T + network.reduction.bias.numpy()
    np.testing.assert_allclose(small, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-4)
    first = load_model(reduced, image_size=32, device="cpu", reduce_to=3).encode(photos)
    assert first.shape == (3, 3)


def test_reducing_twice_gives_the_same_and_reduced_models_are_fitted_anew(
    reduced: Path, streets: Path, tmp_path: Path
) -> None:
    path = tmp_path / "again.safetensors"
    reduce(reduced, streets / "train", path, 8, image_size=32, device="cpu")
    old, new = read_state_dict(reduced), read_state_dict(path)
    assert old.keys() == new.keys()
    for key in old:
        torch.testing.assert_close(new[key], old[key], rtol=1e-3, atol=1e-3)
    converted = convert(reduced, tmp_path / "copy.safetensors")
    assert_equal(read_state_dict(converted.path), old)
    assert open_network(converted.path).fc_output_dim == 8


def test_a_model_of_torch_hub_is_reduced_by_name(hub: str, streets: Path, tmp_path: Path) -> None:
    path = tmp_path / "hub.safetensors"
    with pytest.raises(ConfigError, match="--trust_remote_code"):
        reduce(hub, streets / "train", path, 6, device="cpu")
    reduce(hub, streets / "train", path, 6, device="cpu", trust_remote_code=True)
    assert sorted(read_state_dict(path)) == ["reduction.bias", "reduction.weight"]
    assert read_card(path)["base_model"] == hub
    with pytest.raises(ConfigError, match="--trust_remote_code"):
        load_model(path)
    model = load_model(path, device="cpu", trust_remote_code=True)
    photo = next((streets / "val" / "queries").iterdir())
    assert model.encode(photo).shape == (1, 6)
    with pytest.raises(CheckpointError, match=r"hub\.safetensors: it holds the reduction of hub:.* alone"):
        convert(path, tmp_path / "copy.safetensors")


def test_the_path_of_a_clone_is_kept_absolute(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert conversion._spec("hub:./clone:mean") == hub
    assert conversion._spec("hub:./clone:mean(size=3)") == f"{hub}(size=3)"
    assert conversion._spec("hub:owner/repo:main:entry(1)") == "hub:owner/repo:main:entry(1)"


def test_mistakes_in_reducing_write_nothing(run: Path, streets: Path, tmp_path: Path) -> None:
    model = run / BEST_MODEL
    cases = [
        ({"dims": 17}, ConfigError, "17 dimensions cannot be made of the model's 16"),
        ({"folder": tmp_path / "nowhere"}, DatasetError, "does not exist"),
        ({"max_photos": 8}, ConfigError, r"8 photos of .* are too few to fit 8 dimensions"),
        ({"to": tmp_path / "a.pth"}, ConfigError, r"only \.safetensors has a place"),
        ({"to": run / BEST_MODEL_SAFE}, ConfigError, "is there already"),
        ({"model": tmp_path / "gone.pth"}, CheckpointError, "There is no file of weights"),
        ({"method": "ica"}, ConfigError, "Unknown reduction 'ica'"),
    ]
    usual = {"model": model, "folder": streets / "train", "to": tmp_path / "a.safetensors", "dims": 8, "device": "cpu"}
    for changes, kind, said in cases:
        with pytest.raises(kind, match=said):
            reduce(**{**usual, **changes})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_reduce_and_eval_on_the_command_line(
    run: Path, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    size, testing = ["--image_size=32"], ["--resize_test_imgs", "--device=cpu", "--num_workers=0"]
    judged = ["eval", f"--dataset_folder={streets}", *size, *testing]
    code, said = said_by(
        capsys, "reduce", run / BEST_MODEL, "--on", streets / "train", "--to", "small.safetensors", "--dims=8", *size,
        "--device=cpu", "--num_workers=0",
    )  # fmt: skip
    assert code == 0, said
    assert "reduction          pca_whitening" in said
    recalls = []
    for flags in (
        ["--model=small.safetensors", "--reduce_to=4"],
        [f"--model={run / BEST_MODEL}", "--reduce_to=4"],
        [f"--resume_model={run / BEST_MODEL_SAFE}", "--reduce_to=4", f"--reduce_on={streets / 'train'}"],
    ):
        code, said = said_by(capsys, *judged, *flags)
        assert code == 0, said
        recalls.append([line for line in said.splitlines() if line.startswith("R@1")])
    assert recalls[0] == recalls[1] == recalls[2]
    assert len(recalls[0]) == 1
    report = sorted(tmp_path.glob("logs/default/*/report.html"))[-1].read_text()
    assert "reduced to 4 dimensions" in report
    code, said = said_by(capsys, *judged, f"--model={run / BEST_MODEL}", "--reduce_to=4", "--reduce_method=truncation")
    assert code == 0, said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model=RUN", "--resume_model=other.pth"], "contradicts --model"),
        (["--model=RUN", "--backbone=ResNet50"], "--backbone ResNet50 contradicts"),
        (["--model=RUN", "--fc_output_dim=32"], "--fc_output_dim 32 contradicts"),
        (["--model=RUN", "--reduce_to=17"], "17 dimensions cannot be made of the model's 16"),
        (["--model=RUN", "--reduce_to=4", "--reduce_on=STREETS/test"], "holds photos of the test set"),
        (["--model=RUN", "--reduce_to=4", "--reduce_on=STREETS"], "holds photos of the test set"),
        (["--model=RUN", "--reduce_to=4", "--reduce_on=STREETS/test/database"], "holds photos of the test set"),
        (["--model=RUN", "--reduce_on=STREETS/train"], "with --reduce_to"),
        (["--model=RUN", "--reduce_to=4", "--descriptors_folder=kept"], "write it with `cosplace reduce` first"),
        (["--model=SMALL", "--reduce_to=9"], "9 dimensions cannot be made of 8"),
        (["--model=SMALL", "--reduce_to=4", "--reduce_on=STREETS/train"], "has its reduction already"),
        (["--model=cosplace_resnet50_511"], "released with 511 dimensions"),
        (["--model=hub:owner/repo:entry"], "--trust_remote_code"),
    ],
)
def test_mistakes_in_evaluating(
    flags, said, run: Path, reduced: Path, streets: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(run / BEST_MODEL), "SMALL": str(reduced), "STREETS": str(streets)}
    for name, path in names.items():
        flags = [flag.replace(name, path) for flag in flags]
    code, text = said_by(capsys, "eval", f"--dataset_folder={streets}", "--device=cpu", "--num_workers=0", *flags)
    assert code == 2
    error = next(line for line in text.splitlines() if line.startswith("error:"))
    assert said in error


def test_models_of_torch_hub_are_evaluated_and_forecast(
    hub: str, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    judged = ["eval", f"--dataset_folder={streets}", "--device=cpu", "--num_workers=0", f"--model={hub}"]
    code, said = said_by(capsys, *judged, "--trust_remote_code")
    assert code == 0, said
    assert "R@1" in said
    results = json.loads(next(tmp_path.glob("logs/default/*/results.json")).read_text())
    assert results["recalls"]["1"] > 50
    code, said = said_by(capsys, *judged, "--trust_remote_code", "--dry_run")
    assert code == 0, said
    assert "descriptors take" in said
    code, said = said_by(capsys, *judged, "--trust_remote_code", "--reduce_to=6")
    assert code == 0, said


def test_what_cannot_be_trained_is_told(hub: str, reduced: Path, streets: Path) -> None:
    with pytest.raises(ConfigError, match="has a reduction behind it and cannot be trained"):
        prepare(settings(streets, resume_model=str(reduced)))
    with pytest.raises(ConfigError, match=r"comes through torch\.hub and is no file of weights"):
        prepare(settings(streets, resume_model=hub))
