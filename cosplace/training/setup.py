"""What must stand before the first iteration: data, network, classifiers, and what it all will cost."""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from cosplace.config.sections import TrainConfig
from cosplace.config.values import loading_workers, set_folder
from cosplace.device import amp_type, choose_device, fused_adam
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.imagenet_files import available_imagenet_weights
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import model_file, open_network
from cosplace.models.reduction import unreduced
from cosplace.photos.loading import choose_loader
from cosplace.photos.scanning import scan_images
from cosplace.progress import megabytes
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.training.augmentation import Augmentation
from cosplace.training.batches import GroupImages, training_batches
from cosplace.training.checkpoint import (
    RunState,
    checkpoint_file,
    is_original,
    read_checkpoint,
    restore,
    restore_original,
)
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.group_cache import cached_partition
from cosplace.training.groups import Groups, check_enough

log = logging.getLogger(__name__)

WHITENING_IMAGES = 1024  # several times the feature dimension of the small network; seconds on a CPU
WHITENING_FLOOR = 1e-3  # of the largest variance: directions below it hold noise, which whitening would blow up
START_SEED = 1 << 32  # above any seed a user gives to a run's epochs: the images of a whitened start are their own


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The groups to train on, and the sets to judge by."""

    groups: Groups
    num_used: int
    val: RetrievalDataset
    test: RetrievalDataset

    def digest(self) -> str:
        """Tells whether two runs see the same classes."""
        parts = hashlib.sha256(self.groups.cells.tobytes())
        parts.update(self.groups.group_starts.tobytes())
        parts.update(self.groups.class_starts.tobytes())
        return parts.hexdigest()


def open_training_data(config: TrainConfig) -> TrainingData:
    """Scan the three sets and form the groups.  Raises DatasetError when anything is missing or too small."""
    folders = {split: set_folder(config.folders, split) for split in ("train", "val", "test")}
    groups = cached_partition(scan_images(folders["train"]), config.grouping)
    check_enough(groups, config.grouping)
    return TrainingData(
        groups=groups,
        num_used=config.grouping.groups_num,
        val=open_retrieval_dataset(folders["val"], config.folders.queries_folder),
        test=open_retrieval_dataset(folders["test"], config.folders.queries_folder),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """All that a run needs, found and checked; nothing is written yet."""

    config: TrainConfig
    data: TrainingData
    state: RunState
    device: torch.device
    dtype: torch.dtype | None  # of mixed precision


def prepare(config: TrainConfig, given: Mapping[str, Any] = MappingProxyType({})) -> Preparation:
    """Open the data and build the network.

    given: the settings that the user spelt out; weights to start from must not contradict them.
    Raises CosPlaceError for anything a user can mend.
    """
    device = choose_device(config.running.device)
    dtype = amp_type(config.running.use_amp16, config.running.amp_dtype, device)
    data = open_training_data(config)
    knobs = config.model
    if config.training.resume_train:  # the checkpoint holds all weights
        model = GeoLocalizationNet(knobs.backbone, knobs.fc_output_dim, knobs.train_all_layers)
    elif config.training.resume_model:
        model = load_network(
            config.training.resume_model,
            backbone=given.get("backbone"),
            fc_output_dim=given.get("fc_output_dim"),
            train_all_layers=knobs.train_all_layers,
        )
        knobs = dataclasses.replace(knobs, backbone=model.backbone_name, fc_output_dim=model.fc_output_dim)
        config = dataclasses.replace(config, model=knobs)
    else:
        model = new_network(
            backbone=knobs.backbone,
            fc_output_dim=knobs.fc_output_dim,
            train_all_layers=knobs.train_all_layers,
            imagenet_weights=knobs.imagenet_weights,
            seed=config.running.seed,
        )
    state = _new_state(config, data, model, device, dtype)
    if config.training.resume_train:
        _restore_checkpoint(state, data, config, checkpoint_file(config.training.resume_train))
    elif config.departures.whitened_start:
        whiten_start(state.model, data, config, device)
    return Preparation(config=config, data=data, state=state, device=device, dtype=dtype)


def _restore_checkpoint(state: RunState, data: TrainingData, config: TrainConfig, file: Path) -> None:
    content = read_checkpoint(file)
    if is_original(content):
        groups = [data.groups[number] for number in range(data.num_used)]
        restore_original(state, content, groups, config.training.epochs_num, file)
        return
    if content["data_digest"] != data.digest():
        raise CheckpointError(
            f"{file} was trained on other photos than {data.groups.folder} holds now: give the same photos, or start "
            f"a new run from its best_model.pth with --resume_model."
        )
    restore(state, content, file)


def augmentation_settings(config: TrainConfig) -> Augmentation:
    """The knobs of augmentation, as the augmentations take them."""
    knobs = config.augmenting
    return Augmentation(
        image_size=knobs.image_size,
        brightness=knobs.brightness,
        contrast=knobs.contrast,
        saturation=knobs.saturation,
        hue=knobs.hue,
        random_resized_crop=knobs.random_resized_crop,
    )


# --- the network -----------------------------------------------------------------------------------------------------


def load_network(
    model: str, *, backbone: str | None, fc_output_dim: int | None, train_all_layers: bool = False
) -> GeoLocalizationNet:
    """The network of a file of weights or of a name in the zoo, for training: it knows its backbone and dimension.

    Raises CheckpointError when the file is none, and ConfigError when it contradicts what was asked for or cannot be
    trained here.
    """
    model_file(model)  # refuses what comes through torch.hub, whatever trust is given
    network = open_model(model, backbone=backbone, fc_output_dim=fc_output_dim)
    if not isinstance(network, GeoLocalizationNet):
        raise ConfigError(
            f"{model} has a reduction behind it and cannot be trained: give the model that it was made from."
        )
    if train_all_layers:
        network.requires_grad_(True)
    return network


def open_model(
    model: str, *, backbone: str | None, fc_output_dim: int | None, trust_remote_code: bool = False
) -> nn.Module:
    """Any model that describes photos, in evaluation mode.

    backbone, fc_output_dim: as the user gave them, None where not: models know their own.
    Raises what `open_network` raises, and ConfigError when the model contradicts what was asked for.
    """
    network = open_network(model, trust_remote_code=trust_remote_code)
    asked_and_found = {
        "backbone": (backbone, getattr(unreduced(network), "backbone_name", "a network of its own")),
        "fc_output_dim": (fc_output_dim, getattr(network, "fc_output_dim", None)),
    }
    for flag, (asked, found) in asked_and_found.items():
        if asked is not None and asked != found:
            raise ConfigError(f"--{flag} {asked} contradicts {model}, which holds {found}: leave the flag out.")
    return network


def new_network(
    *, backbone: str, fc_output_dim: int, train_all_layers: bool, imagenet_weights: str | None, seed: int
) -> GeoLocalizationNet:
    """A network to train, its fresh layers drawn from the seed.  imagenet_weights None: v1 where they exist."""
    if imagenet_weights is None and available_imagenet_weights(backbone):
        imagenet_weights = "v1"
    if imagenet_weights in (None, "none"):
        imagenet_weights = None
        frozen = not train_all_layers and available_imagenet_weights(backbone)
        if frozen:
            log.warning("The early layers are random and frozen: give --imagenet_weights, or --train_all_layers.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GeoLocalizationNet(backbone, fc_output_dim, train_all_layers, imagenet_weights)


def _new_state(
    config: TrainConfig, data: TrainingData, model: GeoLocalizationNet, device: torch.device, dtype: torch.dtype | None
) -> RunState:
    """Network, classifiers, optimizers and scaler at the start of a run."""
    knobs = config.training
    model = model.to(device).to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in
    classifiers = []
    for number, (num_classes, _) in enumerate(data.groups.counts()[: data.num_used]):
        generator = torch.Generator().manual_seed(config.running.seed * 1_000_003 + number)
        classifiers.append(
            MarginCosineProduct(model.fc_output_dim, num_classes, s=knobs.scale, m=knobs.margin, generator=generator)
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return RunState(
        model=model,
        optimizer=fused_adam(trained, knobs.lr),
        classifiers=classifiers,
        classifier_optimizers=[fused_adam(one.parameters(), knobs.classifiers_lr) for one in classifiers],
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16 and device.type == "cuda"),
    )


@torch.no_grad()
def whiten_start(model: GeoLocalizationNet, data: TrainingData, config: TrainConfig, device: torch.device) -> None:
    """Make the last layer a PCA whitening of the features of training images, and settle batch normalization.

    A random network's features are nearly collinear; whitened, they tell images apart from the first iteration.
    Not in the paper.  Raises ConfigError when there are more descriptor dimensions than features.
    """
    linear = cast(torch.nn.Linear, model.aggregation[3])
    if linear.out_features > linear.in_features:
        raise ConfigError(
            f"--whitened_start has {linear.in_features} features for --fc_output_dim {linear.out_features}: "
            f"use {linear.in_features} dimensions or fewer."
        )
    batch_size = config.training.batch_size
    items = GroupImages(
        data.groups[0], seed=config.running.seed + START_SEED, epoch=0, settings=augmentation_settings(config)
    )
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
    model.train()
    torch.manual_seed(config.running.seed)  # EfficientNet's stochastic depth draws from it
    features = []
    for batch in training_batches(
        items,
        batch_size=batch_size,
        first_iteration=0,
        num_iterations=-(-WHITENING_IMAGES // batch_size),
        num_workers=loading_workers(config.running.num_workers),
        loader=choose_loader(config.running.loader, device),
        augment_in_loader=device.type == "cpu",
    ):
        images = batch.images(items.settings, device).to(memory_format=torch.channels_last)
        features.append(model.aggregation[:3](model.backbone(images)).double().cpu())
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    stacked = torch.cat(features)  # (n, F)
    mean = stacked.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(stacked.T))  # ascending
    variances, directions = variances.flip(0)[: linear.out_features], directions.flip(1)[:, : linear.out_features]
    scales = (variances + WHITENING_FLOOR * variances[0]).rsqrt()
    weight = scales[:, None] * directions.T
    linear.weight.copy_(weight)
    linear.bias.copy_(-weight @ mean)


# --- what it will cost -----------------------------------------------------------------------------------------------


def describe_plan(prepared: Preparation) -> list[str]:
    """Sentences about what will be trained, how often each class will be seen, and the memory it takes."""
    config, data = prepared.config, prepared.data
    knobs = config.training
    lines = []
    for number, (num_classes, num_images) in enumerate(data.groups.counts()[: data.num_used]):
        epochs = len(range(number, knobs.epochs_num, data.num_used))
        seen = epochs * knobs.iterations_per_epoch * knobs.batch_size / num_classes
        lines.append(
            f"group {number}: {num_classes} classes, {num_images} images; {epochs} epochs, each class seen "
            f"about {seen:.3g} times"
        )
    if knobs.epochs_num < data.num_used:
        lines.append(f"--epochs_num {knobs.epochs_num} reaches {knobs.epochs_num} of the {data.num_used} groups")
    device_bytes, checkpoint_bytes, _ = expected_bytes(config, prepared.state, prepared.dtype)
    lines.append(
        f"expected memory: {megabytes(device_bytes)} on the device, {megabytes(checkpoint_bytes)} per checkpoint "
        f"on disk"
    )
    return lines


def expected_bytes(config: TrainConfig, state: RunState, dtype: torch.dtype | None) -> tuple[int, int, int]:
    """Bytes on the device while training, of a checkpoint, and of the network's weights."""
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    network = sum(value.numel() for value in state.model.state_dict().values())
    largest = max(one.weight.numel() for one in state.classifiers)
    every = sum(one.weight.numel() for one in state.classifiers)
    num_classes = max(one.weight.shape[0] for one in state.classifiers)
    logits = 3 * 4 * config.training.batch_size * num_classes
    # Adam keeps two moments, and a gradient comes with each trained weight.
    at_work = 4 * (network + 3 * trained + 4 * largest) + logits
    activations = config.training.batch_size * _activation_bytes(state.model, config.augmenting.image_size)
    return at_work + activations // (2 if dtype else 1), 4 * (network + 2 * trained + 3 * every), 4 * network


def _activation_bytes(model: GeoLocalizationNet, side: int) -> int:
    """Bytes that one image leaves behind for the backward pass, by asking autograd what it keeps."""
    storages: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(model.parameters()).device
    model.eval()  # batch normalization must not see this picture
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(1, 3, side, side, device=device).to(memory_format=torch.channels_last))
    return sum(storages.values())
