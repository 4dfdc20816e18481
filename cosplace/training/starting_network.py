"""The network that a training starts from: a new one, a model to continue with, or that of a run that is resumed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cosplace.config.sections import Model
from cosplace.errors import ConfigError
from cosplace.models.designs import DESIGN_KEY, read_design
from cosplace.models.native import NativeNetwork
from cosplace.models.network import GeoLocalizationNet, new_network
from cosplace.models.opening import open_model, weights_path
from cosplace.training.checkpoint import checkpoint_file, read_checkpoint

ARCHITECTURE = ("backbone", "fc_output_dim", "aggregation", "features_stage")  # settings


def open_network(
    knobs: Model,
    given: Mapping[str, Any],
    *,
    resume_train: str | None,
    resume_model: str | None,
    seed: int,
    image_size: int | None,
) -> tuple[GeoLocalizationNet, Model]:
    """The network to train, and the settings with its architecture.

    given: the settings that the user gave, which weights must not contradict.  resume_train: the checkpoint has all
    weights, which are loaded later.  resume_model: the weights to start from.
    """
    if resume_train:
        return network_of_checkpoint(knobs, checkpoint_file(resume_train)), knobs
    if resume_model:
        model = open_trainable_model(resume_model, **{name: given.get(name) for name in ARCHITECTURE})
        if knobs.train_all_layers or knobs.frozen_layers is not None:
            model.requires_grad_(True)
            model.freeze(knobs.train_all_layers, knobs.frozen_layers)
        return model, replace(knobs, **architecture_of(model))
    model = new_network(
        backbone=knobs.backbone,
        fc_output_dim=knobs.fc_output_dim,
        train_all_layers=knobs.train_all_layers,
        imagenet_weights=knobs.imagenet_weights,
        seed=seed,
        aggregation=knobs.aggregation,
        features_stage=knobs.features_stage,
        frozen_layers=knobs.frozen_layers,
        image_size=image_size,
    )
    return model, knobs


def network_of_checkpoint(knobs: Model, file: Path) -> GeoLocalizationNet:
    """The network of a run that is resumed, before its weights are loaded."""
    record = read_checkpoint(file, mapped=True).get("model", {}).get(DESIGN_KEY)
    return GeoLocalizationNet(
        knobs.backbone,
        knobs.fc_output_dim,
        knobs.train_all_layers,
        frozen_layers=knobs.frozen_layers,
        design=None if record is None else read_design(record),
    )


def open_trainable_model(model: str, **architecture: Any) -> GeoLocalizationNet:
    """Open a model to continue training it.  architecture: settings that must be those of the model.

    Raises ConfigError for models that cannot be trained here: those from torch.hub, those of other projects, and those
    with a reduction.
    """
    weights_path(model)  # raises for models from torch.hub
    network = open_model(model, **architecture)
    if isinstance(network, NativeNetwork):
        raise ConfigError(
            f"{model} is {network.method}, a network of another project, which cannot be trained here. Train a network "
            f"with --backbone and --aggregation, or use {model} as --teacher of `cosplace distill`."
        )
    if not isinstance(network, GeoLocalizationNet):
        raise ConfigError(f"{model} has a reduction and cannot be trained. Use the model before its reduction.")
    return network


def architecture_of(network: GeoLocalizationNet) -> dict[str, Any]:
    """Settings of the architecture of a network: --backbone, --fc_output_dim, --aggregation and --features_stage."""
    design = network.design
    stage = None if design is None or design.timm is None else design.timm.stage
    return {
        "backbone": network.backbone_name,
        "fc_output_dim": network.fc_output_dim,
        "aggregation": network.aggregation_name,
        "features_stage": stage,
    }
