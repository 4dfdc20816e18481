"""Training of networks other than those of the paper: each aggregation, resuming, reopening, fine-tuning, commands."""

import json
from pathlib import Path

import pytest
import torch

from cosplace.cli import main
from cosplace.errors import ConfigError
from cosplace.models.opening import open_model
from cosplace.training.best_model import BEST_MODEL, BEST_MODEL_SAFE
from cosplace.training.checkpoint import read_checkpoint
from cosplace.training.loop import train
from cosplace.training.metrics import read_metrics
from cosplace.training.resume import resumed_config
from cosplace.training.setup import prepare
from tests.synthetic_dataset import settings, write_dataset

pytest.importorskip("timm", reason="pip install 'cosplace[timm]'")
pytestmark = pytest.mark.slow

TIMM = {"backbone": "timm:test_resnet", "features_stage": 1, "imagenet_weights": "none", "frozen_layers": "0"}
"""Features of stride 4: 64 positions of an image of 32 pixels, 256 of one of 64."""


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.mark.parametrize("aggregation", ["gem", "salad", "boq", "mixvpr", "conv_ap", "netvlad"])
def test_each_aggregation_trains_and_reopens(dataset_folder: Path, tmp_path: Path, aggregation: str) -> None:
    config = settings(
        dataset_folder, aggregation=aggregation, image_size=64, epochs_num=1, iterations_per_epoch=3, **TIMM
    )
    prepared = prepare(config)
    before = {key: value.clone() for key, value in prepared.state.model.state_dict().items()}
    train(prepared, tmp_path)
    after = prepared.state.model.state_dict()
    assert not torch.equal(after["backbone.model.conv1.0.weight"], before["backbone.model.conv1.0.weight"])
    plain, safe = open_model(tmp_path / BEST_MODEL), open_model(tmp_path / BEST_MODEL_SAFE)
    with torch.inference_mode():
        images = torch.randn(1, 3, 64, 80)
        assert torch.equal(plain(images), safe(images))
        assert plain(images).shape == (1, 16)


def test_tokens_train_with_dinov2(dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosplace.models import designs
    from cosplace.models.vision_transformer import TransformerSettings

    monkeypatch.setattr(
        designs, "dinov2_settings", lambda size, *, registers: TransformerSettings(dim=32, depth=6, grid=5)
    )
    config = settings(
        dataset_folder, backbone="dinov2_vits14", aggregation="tokens", imagenet_weights="none", epochs_num=1,
        iterations_per_epoch=3,
    )  # fmt: skip
    prepared = prepare(config)
    tokens = prepared.state.model.backbone.learned_tokens
    before = tokens.detach().clone()
    train(prepared, tmp_path)
    assert not torch.equal(tokens, before)
    assert open_model(tmp_path / BEST_MODEL).aggregation_name == "tokens"


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": "salad", "image_size": 64},  # dropout draws random numbers
        {"backbone": "timm:test_vit", "features_stage": None, "aggregation": "mixvpr", "use_amp16": True},
        pytest.param({"compile": True, "aggregation": "gem", "epochs_num": 2}, marks=pytest.mark.long),
    ],
)
def test_a_stopped_run_resumes_exactly(dataset_folder: Path, tmp_path: Path, changes: dict) -> None:
    config = settings(dataset_folder, checkpoint_minutes=0.0, **TIMM | changes)
    train(prepare(config), tmp_path / "whole")

    def progress(what: str, done: int, total: int, note: str) -> None:
        if what.startswith("epoch 2") and done >= 12:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(prepare(config), tmp_path / "stopped", progress)
    train(prepare(resumed_config(str(tmp_path / "stopped"), {})), tmp_path / "stopped")
    assert (tmp_path / "whole" / BEST_MODEL).read_bytes() == (tmp_path / "stopped" / BEST_MODEL).read_bytes()
    whole, stopped = (read_checkpoint(tmp_path / name)["model"] for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_a_model_continues_with_its_own_architecture(dataset_folder: Path, tmp_path: Path) -> None:
    """Also at another image size: the layers of mixvpr keep the grid of their first training."""
    quick = {"epochs_num": 1, "iterations_per_epoch": 2, "checkpoint_minutes": 0.0}
    train(prepare(settings(dataset_folder, aggregation="mixvpr", **TIMM, **quick)), tmp_path / "first")
    model = str(tmp_path / "first" / BEST_MODEL)
    config = settings(dataset_folder, resume_model=model, image_size=64, frozen_layers="1", **quick)
    prepared = prepare(config, given={"image_size": 64})
    assert prepared.config.model.aggregation == "mixvpr"
    assert prepared.config.model.backbone == "timm:test_resnet"
    assert not prepared.state.model.backbone.model.conv1[0].weight.requires_grad
    train(prepared, tmp_path / "second")
    resumed = prepare(resumed_config(str(tmp_path / "second"), {}))
    assert resumed.state.model.design == prepared.state.model.design
    assert resumed.state.model.design is not None and resumed.state.model.design.grid == (8, 8)
    with pytest.raises(ConfigError, match="--aggregation gem contradicts"):
        prepare(config, given={"aggregation": "gem"})


def test_whitened_start(dataset_folder: Path, tmp_path: Path) -> None:
    model = prepare(settings(dataset_folder, whitened_start=True, **TIMM)).state.model
    assert torch.isfinite(model.aggregation[3].weight).all()
    with pytest.raises(ConfigError, match="--whitened_start needs --aggregation gem"):
        prepare(settings(dataset_folder, whitened_start=True, aggregation="netvlad", **TIMM))


def test_commands(dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Train, evaluate, index, locate and export one model by their commands."""
    monkeypatch.chdir(tmp_path)
    flags = """
        --backbone timm:test_vit --imagenet_weights none --train_all_layers --aggregation netvlad --fc_output_dim 16
        --N 1 --L 2 --M 20 --alpha 180 --groups_num 1 --min_images_per_class 4 --batch_size 6 --epochs_num 1
        --iterations_per_epoch 2 --image_size 64 --resize_test_imgs --num_workers 0 --device cpu --recall_values 1 2
    """.split()  # noqa: SIM905
    assert main(["train", "--dataset_folder", str(dataset_folder), "--save_dir", "run", *flags]) == 0
    (folder,) = (tmp_path / "logs" / "run").iterdir()
    model = str(folder / BEST_MODEL)
    assert json.loads((folder / "config.json").read_text())["aggregation"] == "netvlad"
    small = ["--image_size", "64", "--resize_test_imgs", "--num_workers", "0", "--recall_values", "1", "2"]
    assert main(["eval", "--dataset_folder", str(dataset_folder), "--model", model, *small]) == 0
    assert (
        main(["eval", "--dataset_folder", str(dataset_folder), "--model", model, "--aggregation", "gem", *small]) == 2
    )
    assert "--aggregation gem contradicts" in capsys.readouterr().err
    database = dataset_folder / "test" / "database"
    assert main(["index", "build", str(database), "--to", str(tmp_path / "index"), "--model", model]) == 0
    photo = next((dataset_folder / "test").glob("queries*/*.jpg"))
    assert main(["locate", str(photo), "--index", str(tmp_path / "index"), "--uncalibrated"]) == 0


def test_finetuning(dataset_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_metric_learning")
    from cosplace.config.finetuning import FinetuneConfig
    from cosplace.config.values import from_values
    from cosplace.training.finetuning import finetune
    from cosplace.training.finetuning_setup import prepare_finetuning

    train(
        prepare(settings(dataset_folder, aggregation="netvlad", epochs_num=1, iterations_per_epoch=1, **TIMM)),
        tmp_path / "start",
    )
    config = from_values(
        FinetuneConfig,
        {
            "dataset": str(dataset_folder), "model": str(tmp_path / "start" / BEST_MODEL), "image_size": 32,
            "epochs_num": 1, "iterations_per_epoch": 2, "num_seeds": 1, "batch_size": 8, "num_workers": 0,
            "device": "cpu", "force": True,
        },
    )  # fmt: skip
    finetune(prepare_finetuning(config), tmp_path / "run", lambda *_: None)
    assert read_metrics(tmp_path / "run")
    assert open_model(tmp_path / "run" / BEST_MODEL).aggregation_name == "netvlad"
    with pytest.raises(ConfigError, match="starts from a backbone of the paper"):
        prepare_finetuning(
            from_values(
                FinetuneConfig,
                {"dataset": str(dataset_folder), "model": "imagenet", "backbone": "timm:test_vit"},
            )
        )
