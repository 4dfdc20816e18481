"""Settings: defaults, limits, names, and their flat form in config.json."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import pytest

from cosplace.cli.commands import COSPLACE
from cosplace.cli.parser import leaf_commands
from cosplace.config.evaluation import EvalConfig
from cosplace.config.groups import GroupsConfig
from cosplace.config.index import IndexSettings
from cosplace.config.locate import LocateConfig, parse_date
from cosplace.config.models import ReduceConfig
from cosplace.config.names import BACKBONES, canonical_backbone, similar_names
from cosplace.config.sections import DatasetFolders, TrainConfig
from cosplace.config.server import ServerOptions
from cosplace.config.setting import Section, own_settings, required, section, setting
from cosplace.config.values import all_settings, from_values, set_folder, to_values
from cosplace.errors import ConfigError
from cosplace.localization.localizer import Localizer
from cosplace.retrieval.evaluation import EvaluationSettings
from cosplace.retrieval.reduction_fitting import fit_reduction

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

# The keys of config.json, which old runs and checkpoints hold.
SHARED_KEYS = {
    "dataset_folder", "test_set_folder", "queries_folder", "backbone", "fc_output_dim", "imagenet_weights",
    "image_size", "resize_test_imgs", "infer_batch_size", "positive_dist_threshold", "recall_values",
    "num_preds_to_save", "save_only_wrong_preds", "skip_unreadable", "device", "use_amp16", "amp_dtype", "seed",
    "num_workers", "dry_run", "loader", "save_dir", "resume_model", "follow_outside", "report_matches",
    "aggregation", "features_stage",
}  # fmt: skip
TRAIN_KEYS = SHARED_KEYS | {
    "train_set_folder", "val_set_folder", "M", "alpha", "N", "L", "groups_num", "min_images_per_class",
    "train_all_layers", "frozen_layers", "batch_size", "epochs_num", "iterations_per_epoch", "lr", "classifiers_lr",
    "margin", "scale", "held_out_photos", "resume_train", "checkpoint_minutes", "whitened_start", "margin_ramp",
    "lr_schedule", "warmup_iterations",
    "brightness", "contrast", "hue", "saturation", "random_resized_crop", "augmentation_device", "compile",
    "cuda_graphs", "use_float64", "seeds", "logger", "nested_dims", "method", "focal_distance", "max_view_error",
    "panoramas", "heading_offset", "photos_per_place", "extra_datasets", "process_timeout_minutes",
    "split_classifiers_above",
}  # fmt: skip
EVAL_KEYS = SHARED_KEYS | {
    "trust_remote_code", "reduce_to", "reduce_on", "reduce_method", "descriptors_folder", "descriptors_dtype",
    "protocol", "compare", "no_report",
    "database_folder", "no_labels", "query_policy", "scales", "flip", "audit", "verdicts", "accept_license", "compress",
    "shortlist", "database_store", "queries_store", "memory", "engine",
}  # fmt: skip


def test_defaults_are_those_of_the_paper() -> None:
    values = to_values(TrainConfig())
    assert {name: values[name] for name in PAPER} == PAPER


@pytest.mark.parametrize(("kind", "keys"), [(TrainConfig, TRAIN_KEYS), (EvalConfig, EVAL_KEYS)])
def test_config_json_keeps_its_keys(kind: type, keys: set[str]) -> None:
    assert set(to_values(kind())) == keys


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TrainConfig, {"recall_values": [1, 2], "seed": 5}),
        (EvalConfig, {"recall_values": [1, 2], "reduce_to": 5}),
        (GroupsConfig, {"folder": "photos", "M": 20}),
        (LocateConfig, {"photos": ["a.jpg", "b"], "index": "city", "near": "1,2,3", "fps": 2.0, "sequence": True}),
    ],
)
def test_settings_survive_json(kind: type, values: dict) -> None:
    config = from_values(kind, values)
    assert from_values(kind, json.loads(json.dumps(to_values(config)))) == config


def test_names_of_settings_are_unique_within_a_command() -> None:
    for prog, command in leaf_commands(COSPLACE):
        names = [name for one in command.settings for name in (one.name, *one.aliases)]
        assert len(names) == len(set(names)), prog


def test_hidden_settings_are_neither_flags_nor_values() -> None:
    names = {one.name for one in all_settings(EvalConfig)}
    assert not names & {"train_set_folder", "val_set_folder", "train_all_layers", "compile"}
    with pytest.raises(ConfigError, match="Unknown setting 'compile'"):
        from_values(EvalConfig, {"compile": True})


# --- types, limits, required values ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner(Section):
    """Inner settings"""

    ratio: float | None = setting(None, "a ratio above 0", above=0, example="0.5")
    paths: tuple[Path, ...] = setting((), "some paths")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer(Section):
    """Outer settings."""

    name: str = required("name of the thing", positional=True, metavar="NAME")
    kind: str = setting("plain", "kind of the thing", choices=("plain", "striped"))
    inner: Inner = section(Inner)


def test_the_type_of_a_setting_follows_from_its_annotation() -> None:
    ratio, paths = own_settings(Inner)
    assert (ratio.type, ratio.is_list, ratio.metavar, ratio.label) == (float, False, "NUMBER", "--ratio")
    assert (paths.type, paths.is_list, paths.metavar) == (Path, True, "PATH")
    name, kind = own_settings(Outer)
    assert (name.is_required, name.label, kind.metavar, kind.shown_default) == (True, "NAME", "plain|striped", "plain")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "NAME is required (name of the thing)"),
        ({"name": "x", "kind": "stripd"}, "--kind must be plain or striped, got 'stripd'. Did you mean striped?"),
        ({"name": "x", "ratio": 0.0}, "--ratio must be above 0, got 0. Use for example 0.5."),
        ({"name": "x", "ratio": float("nan")}, "--ratio must be above 0, got nan"),
        ({"name": "x", "ration": 1}, "Unknown setting 'ration'. Did you mean ratio?"),
    ],
)
def test_values_that_do_not_fit_are_explained(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_values(Outer, values)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 1, "--batch_size must be 2 or more, got 1"),
        ("lr", float("nan"), "--lr must be 0 or more, got nan"),
        ("hue", 0.6, "--hue must be between 0 and 0.5, got 0.6"),
        ("recall_values", [1, 0], "--recall_values must be 1 or more, got 0"),
        ("lr_schedule", "linear", "--lr_schedule must be constant or cosine, got 'linear'"),
        ("batchsize", 3, "Did you mean batch_size"),
    ],
)
def test_training_values_outside_their_limits(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_values(TrainConfig, {name: value})


def test_sections_check_their_values_when_created() -> None:
    with pytest.raises(ConfigError, match="--port must be between 0 and 65,535, got 70,000"):
        ServerOptions(port=70_000)
    with pytest.raises(ConfigError, match="--exact_rows must be 1 or more"):
        IndexSettings(exact_rows=0)


def test_flags_and_functions_share_their_defaults() -> None:
    def default(function: Callable, name: str) -> object:
        return signature(function).parameters[name].default

    locate = from_values(LocateConfig, {"photos": ["a"], "index": "i"})
    shown = {one.name: one.shown_default for one in all_settings(LocateConfig)}
    assert locate.neighbors == default(Localizer, "k")
    assert shown["max_speed"] == f"{default(Localizer.locate_sequence, 'max_speed_mps'):g}"
    reduce = from_values(ReduceConfig, {"model": "m", "on": "o", "to": "t"})
    assert reduce.reduction.max_photos == default(fit_reduction, "max_photos")
    assert EvalConfig().testing.recall_values == EvaluationSettings().recall_values
    assert EvalConfig().testing.positive_dist_threshold == EvaluationSettings().positive_dist_threshold


# --- names and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("resnet50", "ResNet50"), ("RESNET-18", "ResNet18"), ("vgg_16", "VGG16"), ("efficientnet b3", "EfficientNet_B3")],
)
def test_backbones_in_any_spelling(spelling: str, name: str) -> None:
    assert canonical_backbone(spelling) == name
    assert [canonical_backbone(backbone.lower()) for backbone in BACKBONES] == list(BACKBONES)


def test_an_unknown_backbone_suggests_similar_names() -> None:
    with pytest.raises(ConfigError, match="Did you mean ResNet50"):
        canonical_backbone("resnet5")
    with pytest.raises(ConfigError, match="Choose from VGG16, "):
        canonical_backbone("xyz")


def test_similar_names_ignore_case_and_separators() -> None:
    assert similar_names("Batch-Size", ["batch_size", "seed"], count=1) == ["batch_size"]
    assert similar_names("qqq", ["batch_size", "seed"]) == []


def test_folders_come_from_their_flag_the_dataset_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_folder(DatasetFolders(dataset_folder="d", val_set_folder="v"), "val") == Path("v")
    assert set_folder(DatasetFolders(dataset_folder="d"), "val") == Path("d/val")
    with pytest.raises(ConfigError, match="--dataset_folder"):
        set_folder(DatasetFolders(), "val")
    monkeypatch.setenv("SF_XL_PROCESSED_FOLDER", "e")
    assert set_folder(DatasetFolders(), "train") == Path("e/train")


# --- dates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2020", 1_577_836_800),
        ("2020-05", 1_588_291_200),
        ("2020-05-01", 1_588_291_200),
        ("2020-05-01T12:00", 1_588_334_400),
        ("2020-05-01T12:00:05", 1_588_334_405),
        ("2020-05-01T12:00:05.25", 1_588_334_405.25),
        ("2020-05-01T12:00Z", 1_588_334_400),
        ("2020-05-01T12:00+02:00", 1_588_327_200),
        ("2020-05-01T12:00-0530", 1_588_354_200),
    ],
)
def test_dates_with_and_without_an_offset(text: str, seconds: float) -> None:
    assert parse_date(text) == seconds


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone of a process cannot be changed")
@pytest.mark.parametrize("text", ["2020-05-01T12:00", "2020-05-01T12:00:00.0", "2020-05-01T14:00+02:00"])
def test_the_time_zone_of_the_machine_does_not_change_dates(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "America/Los_Angeles")
        time.tzset()
        found = parse_date(text)
    time.tzset()
    assert found == 1_588_334_400


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2020-13", "2020-02-30", "2020-05-01T25:00", "2020-05-01T12:00+99:00"]
)
def test_other_dates_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_date(text)
