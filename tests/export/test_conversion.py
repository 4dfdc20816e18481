"""Convert weights files bit for bit, with correct model cards; write reduced models."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.cli import main
from cosplace.engines.encoder import load_model
from cosplace.errors import CheckpointError, ConfigError, DatasetError
from cosplace.export import conversion
from cosplace.export.conversion import convert_model, reduce_model
from cosplace.models.downloads import weights_folder
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model
from cosplace.models.reduction import ReducedNetwork
from cosplace.models.training_card import card_entries
from cosplace.models.weight_files import read_card, read_state_dict, tensors_sha256, write_weights
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.training.best_model import BEST_MODEL, BEST_MODEL_SAFE, save_best_model
from cosplace.training.loop import train
from cosplace.training.setup import prepare
from tests.models.test_training_card import make_card
from tests.synthetic_dataset import settings, write_dataset

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
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), num_places=8)


@pytest.fixture(scope="module")
def run(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(prepare(settings(dataset_folder, epochs_num=2, iterations_per_epoch=2)), folder)
    return folder


@pytest.fixture(scope="module")
def reduced(run: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reduced") / "small.safetensors"
    reduce_model(run / BEST_MODEL, dataset_folder / "train", path, 8, settings=ExtractionSettings(image_size=32))
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


def run_command(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


# --- the best model of a run -----------------------------------------------------------------------------------------


def test_a_run_also_writes_its_best_model_as_safetensors(run: Path) -> None:
    assert_equal(read_state_dict(run / BEST_MODEL_SAFE), read_state_dict(run / BEST_MODEL))
    card = read_card(run / BEST_MODEL_SAFE)
    assert card["tensors_sha256"] == tensors_sha256(read_state_dict(run / BEST_MODEL))
    assert (card["backbone"], card["fc_output_dim"], card["image_size"]) == ("ResNet18_Small", "16", "32")
    assert set(json.loads(card["recalls"])["val"]) == {"1", "2"}
    assert card["source"].startswith("cosplace train, ")


# --- convert ---------------------------------------------------------------------------------------------------------


def test_converting_there_and_back_keeps_every_bit(run: Path, tmp_path: Path) -> None:
    written = convert_model(run / BEST_MODEL, tmp_path / "a.safetensors")
    assert_equal(read_state_dict(written.path), read_state_dict(run / BEST_MODEL))
    convert_model(tmp_path / "a.safetensors", tmp_path / "b.pth")
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    assert_equal(back, read_state_dict(run / BEST_MODEL))
    assert read_card(written.path) == dict(written.card)
    assert written.num_bytes == written.path.stat().st_size
    # The smallest numbers and 16-bit numbers stay as they are.
    odd = read_state_dict(run / BEST_MODEL)
    odd["aggregation.3.bias"][0] = torch.finfo(torch.float32).smallest_normal / 3
    odd["aggregation.3.weight"] = odd["aggregation.3.weight"].half()
    write_weights(tmp_path / "odd.pth", odd)
    convert_model(tmp_path / "odd.pth", tmp_path / "odd.safetensors")
    assert tensors_sha256(read_state_dict(tmp_path / "odd.safetensors")) == tensors_sha256(odd)


def test_the_card_has_the_facts_of_the_run(run: Path, tmp_path: Path) -> None:
    card = convert_model(run / BEST_MODEL, tmp_path / "a.safetensors").card
    own = read_card(run / BEST_MODEL_SAFE)
    for key in ("format", "backbone", "fc_output_dim", "method", "image_size", "recalls", "tensors_sha256", "source"):
        assert card[key] == own[key]
    assert card["created"].startswith("20")
    again = convert_model(tmp_path / "a.safetensors", tmp_path / "c.safetensors").card
    assert again == card
    alone = shutil.copy(run / BEST_MODEL, tmp_path / "alone.pth")
    card = convert_model(alone, tmp_path / "d.safetensors").card
    assert card["source"] == "alone.pth"
    assert not {"recalls", "image_size", "method"} & card.keys()  # unknown entries are left out


@pytest.fixture
def downloaded() -> str:
    """A zoo name whose file is in the cache."""
    write_weights(weights_folder() / "ResNet18_32_cosplace.pth", GeoLocalizationNet("ResNet18", 32).state_dict())
    return "cosplace_resnet18_32"


def test_the_card_of_a_converted_zoo_model_has_the_facts_of_the_zoo(downloaded: str, tmp_path: Path) -> None:
    card = convert_model(downloaded, tmp_path / "a.safetensors").card
    assert (card["backbone"], card["fc_output_dim"], card["method"]) == ("ResNet18", "32", "cosplace")
    assert card["source"].startswith("https://")
    assert card["licence"]


@pytest.mark.slow
def test_eval_and_train_accept_a_zoo_name(
    downloaded: str,
    dataset_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    eval_command = [
        "eval",
        f"--dataset_folder={dataset_folder}",
        "--device=cpu",
        "--num_workers=0",
        "--recall_values",
        "1",
    ]
    code, output = run_command(capsys, *eval_command, "--resize_test_imgs", "--image_size=64", f"--model={downloaded}")
    assert code == 0, output
    assert f"{downloaded}, evaluated on" in next(tmp_path.glob("logs/default/*/report.html")).read_text()
    prepared = prepare(settings(dataset_folder, resume_model=downloaded, train_all_layers=True))
    assert (prepared.config.model.backbone, prepared.config.model.fc_output_dim) == ("ResNet18", 32)
    assert all(parameter.requires_grad for parameter in prepared.state.model.parameters())
    frozen = prepare(settings(dataset_folder, resume_model=downloaded)).state.model
    assert not all(parameter.requires_grad for parameter in frozen.parameters())


def test_convert_errors_write_nothing(run: Path, reduced: Path, tmp_path: Path) -> None:
    (tmp_path / "existing.pth").write_bytes(b"mine")
    (tmp_path / "foreign.pth").write_bytes(b"no weights")
    write_weights(tmp_path / "other.pth", {"weight": torch.zeros(3)})
    cases = [
        (run / BEST_MODEL, "existing.pth", ConfigError, "already exists.*replace it with --force"),
        (run / BEST_MODEL, "a.onnx", ConfigError, r"Use \.safetensors or \.pth"),
        (tmp_path / "foreign.pth", "a.pth", CheckpointError, "foreign.pth"),
        (tmp_path / "other.pth", "a.pth", CheckpointError, "other.pth: These are not the weights of a CosPlace"),
        (tmp_path / "gone.pth", "a.pth", CheckpointError, "There is no weights file"),
        ("cosplace_resnet50_511", "a.pth", ConfigError, "released with 511 dimensions"),
        ("hub:owner/repo:entry", "a.pth", ConfigError, "torch.hub"),
        (reduced, "a.pth", ConfigError, r"cannot store the card .* Use the suffix \.safetensors"),
    ]
    for source, to, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            convert_model(source, tmp_path / to)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "existing.pth").read_bytes() == b"mine"
    assert not list(tmp_path.glob("a.*"))
    convert_model(run / BEST_MODEL, tmp_path / "existing.pth", force=True)
    assert_equal(read_state_dict(tmp_path / "existing.pth"), read_state_dict(run / BEST_MODEL))


def test_a_file_that_changes_when_it_is_read_back(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_other_values(path: Path, tensors: dict, card: dict | None) -> None:
        changed = {key: value.clone() for key, value in tensors.items()}
        changed["aggregation.3.bias"][0] += 1
        write_weights(path, changed, card)

    monkeypatch.setattr(conversion, "write_weights", write_other_values)
    with pytest.raises(CheckpointError, match="differs from what was written"):
        convert_model(run / BEST_MODEL, tmp_path / "a.safetensors")


def test_convert_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, output = run_command(capsys, "convert", run / BEST_MODEL, tmp_path / "a.safetensors")
    assert code == 0
    assert "read back and compared" in output
    assert "backbone           ResNet18_Small" in output
    code, output = run_command(capsys, "convert", run / BEST_MODEL, tmp_path / "a.safetensors")
    assert (code, output.count("\n")) == (2, 1)
    assert "--force" in output
    assert run_command(capsys, "convert", run / BEST_MODEL, tmp_path / "a.safetensors", "--force")[0] == 0
    code, output = run_command(capsys, "convert", tmp_path / "a.safetensors", tmp_path / "b.pth")
    assert "A .pth file stores only the tensors" in output


# --- reduce ----------------------------------------------------------------------------------------------------------


def test_a_reduced_model_opens_like_any_other(reduced: Path, run: Path, dataset_folder: Path) -> None:
    network = open_model(reduced)
    assert isinstance(network, ReducedNetwork)
    card = read_card(reduced)
    assert (card["fc_output_dim"], card["features_dim"], card["reduction"]) == ("8", "16", "pca_whitening")
    assert card["reduction_photos"] == "48 of train"
    assert card["image_size"] == "32"
    assert "recalls" not in card  # they belong to the model without the reduction
    photos = sorted((dataset_folder / "val" / "queries").iterdir())[:3]
    small = load_model(reduced, image_size=32, device="cpu").encode(photos)
    whole = load_model(run / BEST_MODEL, image_size=32, device="cpu").encode(photos)
    expected = whole @ network.reduction.weight.numpy().T + network.reduction.bias.numpy()
    np.testing.assert_allclose(small, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)
    first = load_model(reduced, image_size=32, device="cpu", reduce_to=3).encode(photos)
    assert first.shape == (3, 3)


def test_a_reduced_model_can_be_reduced_again(reduced: Path, dataset_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.safetensors"
    reduce_model(reduced, dataset_folder / "train", path, 8, settings=ExtractionSettings(image_size=32))
    old, new = read_state_dict(reduced), read_state_dict(path)
    assert old.keys() == new.keys()
    for key in old:
        torch.testing.assert_close(new[key], old[key], rtol=1e-3, atol=1e-3)
    converted = convert_model(reduced, tmp_path / "copy.safetensors")
    assert_equal(read_state_dict(converted.path), old)
    assert open_model(converted.path).fc_output_dim == 8


def test_a_reduced_torch_hub_model_is_stored_by_name(hub: str, dataset_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "hub.safetensors"
    with pytest.raises(ConfigError, match="--trust_remote_code"):
        reduce_model(hub, dataset_folder / "train", path, 6)
    reduce_model(hub, dataset_folder / "train", path, 6, trust_remote_code=True)
    assert sorted(read_state_dict(path)) == ["reduction.bias", "reduction.weight"]
    assert read_card(path)["base_model"] == hub
    with pytest.raises(ConfigError, match="--trust_remote_code"):
        load_model(path)
    model = load_model(path, device="cpu", trust_remote_code=True)
    photo = next((dataset_folder / "val" / "queries").iterdir())
    assert model.encode(photo).shape == (1, 6)
    with pytest.raises(
        CheckpointError, match=r"hub\.safetensors contains only a reduction of hub:.* cannot be converted"
    ):
        convert_model(path, tmp_path / "copy.safetensors")


def test_the_path_of_a_local_clone_becomes_absolute(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert conversion._absolute_hub_name("hub:./clone:mean") == hub
    assert conversion._absolute_hub_name("hub:./clone:mean(size=3)") == f"{hub}(size=3)"
    assert conversion._absolute_hub_name("hub:owner/repo:main:entry(1)") == "hub:owner/repo:main:entry(1)"


def test_reduce_errors_write_nothing(run: Path, dataset_folder: Path, tmp_path: Path) -> None:
    model = run / BEST_MODEL
    cases = [
        ({"dims": 17}, ConfigError, "from 1 to 16 .*got 17"),
        ({"folder": tmp_path / "nowhere"}, DatasetError, "does not exist"),
        ({"max_photos": 8}, ConfigError, r"8 photos in .* are too few to fit 8 dimensions"),
        ({"to": tmp_path / "a.pth"}, ConfigError, r"cannot store the card .* Use the suffix \.safetensors"),
        ({"to": run / BEST_MODEL_SAFE}, ConfigError, "already exists"),
        ({"model": tmp_path / "gone.pth"}, CheckpointError, "There is no weights file"),
        ({"method": "ica"}, ConfigError, "Unknown reduction 'ica'"),
    ]
    usual = {"model": model, "folder": dataset_folder / "train", "to": tmp_path / "a.safetensors", "dims": 8}
    for changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            reduce_model(**{**usual, **changes})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_reduce_and_eval_commands(
    run: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    size, testing = ["--image_size=32"], ["--resize_test_imgs", "--device=cpu", "--num_workers=0"]
    eval_command = ["eval", f"--dataset_folder={dataset_folder}", *size, *testing]
    code, output = run_command(
        capsys, "reduce", run / BEST_MODEL, "--on", dataset_folder / "train", "--to", "small.safetensors", "--dims=8",
        *size, "--device=cpu", "--num_workers=0",
    )  # fmt: skip
    assert code == 0, output
    assert "reduction          pca_whitening" in output
    recalls = []
    for flags in (
        ["--model=small.safetensors", "--reduce_to=4"],
        [f"--model={run / BEST_MODEL}", "--reduce_to=4"],
        [f"--resume_model={run / BEST_MODEL_SAFE}", "--reduce_to=4", f"--reduce_on={dataset_folder / 'train'}"],
    ):
        code, output = run_command(capsys, *eval_command, *flags)
        assert code == 0, output
        recalls.append([line for line in output.splitlines() if line.startswith("R@1")])
    assert recalls[0] == recalls[1] == recalls[2]
    assert len(recalls[0]) == 1
    report = sorted(tmp_path.glob("logs/default/*/report.html"))[-1].read_text()
    assert "reduced to 4 dimensions" in report
    code, output = run_command(
        capsys, *eval_command, f"--model={run / BEST_MODEL}", "--reduce_to=4", "--reduce_method=truncation"
    )
    assert code == 0, output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=RUN", "--resume_model=other.pth"], "contradicts --model"),
        (["--model=RUN", "--backbone=ResNet50"], "--backbone ResNet50 contradicts"),
        (["--model=RUN", "--fc_output_dim=32"], "--fc_output_dim 32 contradicts"),
        (["--model=RUN", "--reduce_to=17"], "the model's own), got 17"),
        (["--model=RUN", "--reduce_to=4", "--reduce_on=STREETS/test"], "has photos of the test set"),
        (["--model=RUN", "--reduce_to=4", "--reduce_on=STREETS"], "has photos of the test set"),
        (["--model=RUN", "--reduce_to=4", "--reduce_on=STREETS/test/database"], "has photos of the test set"),
        (["--model=RUN", "--reduce_on=STREETS/train"], "needs --reduce_to"),
        (["--model=RUN", "--reduce_to=4", "--descriptors_folder=kept"], "Write it with `cosplace reduce`, then"),
        (["--model=SMALL", "--reduce_to=9"], "from 1 to 8, got 9"),
        (["--model=SMALL", "--reduce_to=4", "--reduce_on=STREETS/train"], "already has a reduction"),
        (["--model=cosplace_resnet50_511"], "released with 511 dimensions"),
        (["--model=hub:owner/repo:entry"], "--trust_remote_code"),
    ],
)
def test_eval_errors(
    flags, message, run: Path, reduced: Path, dataset_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"RUN": str(run / BEST_MODEL), "SMALL": str(reduced), "STREETS": str(dataset_folder)}
    for name, path in names.items():
        flags = [flag.replace(name, path) for flag in flags]
    code, text = run_command(
        capsys, "eval", f"--dataset_folder={dataset_folder}", "--device=cpu", "--num_workers=0", *flags
    )
    assert code == 2
    error = next(line for line in text.splitlines() if line.startswith("error:"))
    assert message in error


def test_eval_and_dry_run_of_torch_hub_models(
    hub: str, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    eval_command = ["eval", f"--dataset_folder={dataset_folder}", "--device=cpu", "--num_workers=0", f"--model={hub}"]
    code, output = run_command(capsys, *eval_command, "--trust_remote_code")
    assert code == 0, output
    assert "R@1" in output
    results = json.loads(next(tmp_path.glob("logs/default/*/results.json")).read_text())
    assert results["recalls"]["1"] > 50
    code, output = run_command(capsys, *eval_command, "--trust_remote_code", "--dry_run")
    assert code == 0, output
    assert "descriptors need" in output
    code, output = run_command(capsys, *eval_command, "--trust_remote_code", "--reduce_to=6")
    assert code == 0, output


def test_models_that_cannot_be_trained(hub: str, reduced: Path, dataset_folder: Path) -> None:
    with pytest.raises(ConfigError, match="has a reduction and cannot be trained"):
        prepare(settings(dataset_folder, resume_model=str(reduced)))
    with pytest.raises(ConfigError, match=r"loaded through torch\.hub and has no weights file"):
        prepare(settings(dataset_folder, resume_model=hub))


def test_what_is_known_about_training_is_kept(dataset_folder: Path, tmp_path: Path, capsys) -> None:
    entries = card_entries(make_card(num_queries=60, num_matches=50))
    save_best_model(tmp_path, GeoLocalizationNet("ResNet18_Small", 16), entries)
    assert main(["convert", str(tmp_path / BEST_MODEL), str(tmp_path / "a.safetensors")]) == 0
    assert re.search(r"validation_matches +[0-9,]+ characters", capsys.readouterr().out)
    assert entries.items() <= read_card(tmp_path / "a.safetensors").items()
    # The matches of a validation are not those of a model with fewer dimensions.
    reduce_model(
        tmp_path / BEST_MODEL, dataset_folder / "train", tmp_path / "b.safetensors", 8,
        settings=ExtractionSettings(image_size=32),
    )  # fmt: skip
    card = read_card(tmp_path / "b.safetensors")
    assert card["training_photos"] == entries["training_photos"] and "validation_matches" not in card
