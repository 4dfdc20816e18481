"""Every knob once."""

import json
from pathlib import Path

import pytest

from cosplace.config.knobs import BACKBONES, canonical_backbone
from cosplace.config.sections import DatasetFolders, EvalConfig, GroupsConfig, TrainConfig
from cosplace.config.values import from_values, knobs, set_folder, to_values
from cosplace.errors import ConfigError

PAPER = {
    "M": 10, "alpha": 30, "N": 5, "L": 2, "groups_num": 8, "min_images_per_class": 10, "backbone": "ResNet18",
    "fc_output_dim": 512, "train_all_layers": False, "use_amp16": False, "batch_size": 32, "epochs_num": 50,
    "iterations_per_epoch": 10000, "lr": 1e-5, "classifiers_lr": 0.01, "image_size": 512, "resize_test_imgs": False,
    "brightness": 0.7, "contrast": 0.7, "hue": 0.5, "saturation": 0.7, "random_resized_crop": 0.5,
    "infer_batch_size": 16, "positive_dist_threshold": 25, "seed": 0, "num_preds_to_save": 0,
    "save_only_wrong_preds": False, "save_dir": "default", "resume_train": None, "resume_model": None,
    "recall_values": (1, 5, 10, 20), "margin": 0.40, "scale": 30.0,
    "whitened_start": False, "margin_ramp": 0.0, "lr_schedule": "constant", "warmup_iterations": 0,
}  # fmt: skip


def test_defaults_are_the_papers() -> None:
    values = to_values(TrainConfig())
    assert {name: values[name] for name in PAPER} == PAPER


@pytest.mark.parametrize("command", [TrainConfig, EvalConfig, GroupsConfig])
def test_settings_survive_json(command: type) -> None:
    config = from_values(command, {"M": 20} if command is GroupsConfig else {"recall_values": [1, 2], "seed": 5})
    assert from_values(command, json.loads(json.dumps(to_values(config)))) == config


@pytest.mark.parametrize("command", [TrainConfig, EvalConfig, GroupsConfig])
def test_every_knob_explains_itself(command: type) -> None:
    names = [item.name for _, items in knobs(command) for item in items]
    assert len(names) == len(set(names))
    for _, items in knobs(command):
        for item in items:
            assert len(item.metadata["text"]) > 15, item.name


@pytest.mark.parametrize(
    ("spelt", "meant"),
    [("resnet50", "ResNet50"), ("RESNET-18", "ResNet18"), ("vgg_16", "VGG16"), ("efficientnet b3", "EfficientNet_B3")],
)
def test_backbones_in_any_spelling(spelt: str, meant: str) -> None:
    assert canonical_backbone(spelt) == meant
    assert [canonical_backbone(name.lower()) for name in BACKBONES] == list(BACKBONES)


def test_unknown_backbone_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="ResNet50"):
        canonical_backbone("resnet5")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("batch_size", 1, "use 2 or more"), ("lr", float("nan"), "use 0 or more"), ("hue", 0.6, "use 0.5 or less"),
        ("recall_values", [1, 0], "use 1 or more"), ("lr_schedule", "linear", "choose from constant, cosine"),
        ("lerning_rate", 1, "Unknown setting 'lerning_rate'"), ("batchsize", 3, "did you mean batch_size"),
    ],
)  # fmt: skip
def test_values_that_cannot_work_are_refused(name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_values(TrainConfig, {name: value})


def test_folders_come_from_their_flag_the_dataset_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_folder(DatasetFolders(dataset_folder="d", val_set_folder="v"), "val") == Path("v")
    assert set_folder(DatasetFolders(dataset_folder="d"), "val") == Path("d/val")
    with pytest.raises(ConfigError, match="--dataset_folder"):
        set_folder(DatasetFolders(), "val")
    monkeypatch.setenv("SF_XL_PROCESSED_FOLDER", "e")
    assert set_folder(DatasetFolders(), "train") == Path("e/train")
