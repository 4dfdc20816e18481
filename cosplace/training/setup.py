"""Prepare a run: data, network, classifiers, optimizers; or the state of a run that is resumed."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from cosplace.config.methods import COSPLACE, MULTI_SIMILARITY
from cosplace.config.sections import TrainConfig
from cosplace.device import amp_type, choose_device, fused_adam
from cosplace.errors import CheckpointError, ConfigError
from cosplace.memory import explain_memory_errors
from cosplace.models.network import GeoLocalizationNet
from cosplace.progress import Progress, no_progress
from cosplace.training.checkpoint import RunState, checkpoint_file, is_original, read_checkpoint, restore
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.data import TrainingData, open_training_data
from cosplace.training.metric_losses import MultiSimilarity, near_places
from cosplace.training.original_checkpoint import restore_original
from cosplace.training.place_batches import PlaceLocations
from cosplace.training.processes import Processes
from cosplace.training.split_classifier import SplitClassifier
from cosplace.training.starting_network import open_network
from cosplace.training.validation import check_not_trained_on
from cosplace.training.whitened_start import check_whitening, whiten_start


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Everything a run needs, opened and checked; nothing is written yet."""

    config: TrainConfig
    data: TrainingData
    state: RunState
    device: torch.device
    dtype: torch.dtype | None  # of mixed precision
    processes: Processes | None = None  # those that train together; None: this one alone


def prepare(
    config: TrainConfig,
    given: Mapping[str, Any] = MappingProxyType({}),
    progress: Progress = no_progress,
    processes: Processes | None = None,
) -> Preparation:
    """Open the data and build the network.

    given: the settings that the user gave; weights to start from must not contradict them.  processes: those that will
    train together, after `distributed_setup.join_training`.
    Raises CosPlaceError for anything the user can fix.
    """
    device = choose_device(config.running.device) if processes is None else processes.device
    if config.running.cuda_graphs and (config.running.compile or device.type != "cuda"):
        raise ConfigError("--cuda_graphs needs a GPU from NVIDIA, and no --compile. Train without this flag.")
    if config.running.use_float64 and device.type == "mps":
        raise ConfigError("--use_float64: MPS computes with 32 bits at most. Use --device cpu.")
    dtype = amp_type(config.running.use_amp16, config.running.amp_dtype, device)
    batch_size = config.training.batch_size
    _check_memory(config, device, batch_size if processes is None else len(processes.part(batch_size)))
    opened = None
    if config.extensions.whitened_start and not config.training.resume_train:
        opened = _open_network(config, given)
        check_whitening(opened[0])  # before millions of photos are listed
    data = open_training_data(config, progress)
    if processes is None or processes.is_main:
        check_not_trained_on(data, progress)
    model, config = opened or _open_network(config, given)
    check_nested_dims(config.extensions.nested_dims, model.fc_output_dim)
    locations = [one.locations for one, _ in data.used]
    state = new_state(config, data.counts(), model, device, dtype, locations=locations, processes=processes)
    if config.training.resume_train:
        _restore_checkpoint(state, data, config, checkpoint_file(config.training.resume_train))
    elif config.extensions.whitened_start:
        whiten_start(state.model, data, config, device)
    return Preparation(config=config, data=data, state=state, device=device, dtype=dtype, processes=processes)


def _check_memory(config: TrainConfig, device: torch.device, num_images: int) -> None:
    """Raise DeviceError if the device has no memory for the images of a batch.  It is not used, so this takes no time.

    num_images: of this process.
    """
    batch_size, side = config.training.batch_size, config.augmenting.image_size
    with explain_memory_errors({"batch_size": batch_size, "image_size": side}):
        torch.empty(num_images, 3, side, side, device=device)


def _open_network(config: TrainConfig, given: Mapping[str, Any]) -> tuple[GeoLocalizationNet, TrainConfig]:
    """The network to train, and the settings with its architecture.  Arguments as for `prepare`."""
    model, knobs = open_network(
        config.model,
        given,
        resume_train=config.training.resume_train,
        resume_model=config.training.resume_model,
        seed=config.running.seed,
        image_size=config.augmenting.image_size,
    )
    return model, dataclasses.replace(config, model=knobs)


def _restore_checkpoint(state: RunState, data: TrainingData, config: TrainConfig, file: Path) -> None:
    content = read_checkpoint(file, mapped=state.is_split)
    if is_original(content):
        if state.is_split:
            raise CheckpointError(
                f"{file} was written by the original CosPlace code. Use a larger --split_classifiers_above."
            )
        if config.method.method != COSPLACE:
            raise CheckpointError(f"{file} was written by the original CosPlace code. Omit --method.")
        if data.further:
            raise CheckpointError(f"{file} was written by the original CosPlace code. Omit --extra_datasets.")
        groups = [data.groups[number] for number in range(data.num_used)]
        restore_original(state, content, groups, config.training.epochs_num, file)
        return
    saved = content["data_digest"].split()  # earlier versions wrote no checksum of the photos of places
    if not saved or saved != data.digest().split()[: len(saved)]:
        folders = ", ".join(str(one.groups.folder) for one in data.sets)
        raise CheckpointError(
            f"{file} was trained on other photos than those in {folders}. Use the same photos, or start a "
            f"new run from its best_model.pth with --resume_model."
        )
    if content.get("val_digest", "") not in ("", data.val_digest()):  # earlier versions wrote none
        raise CheckpointError(
            f"{file} was validated on other photos or positions than those now in {data.val.folder}, so its best "
            f"recall cannot be compared with new ones. Use the same validation set, or start a new run from its "
            f"best_model.pth with --resume_model."
        )
    restore(state, content, file)


def check_nested_dims(dims: Sequence[int], dimension: int) -> None:
    """Raise ConfigError unless the numbers rise and are smaller than the dimension of the descriptor."""
    if list(dims) != sorted(set(dims)) or (dims and dims[-1] >= dimension):
        raise ConfigError(
            f"--nested_dims {' '.join(map(str, dims))} must rise and be smaller than --fc_output_dim {dimension}. Use "
            f"for example {' '.join(map(str, (max(1, dimension // 4), max(2, dimension // 2))))}."
        )


def new_state(
    config: TrainConfig,
    counts: Sequence[tuple[int, int]],
    model: GeoLocalizationNet,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    locations: Sequence[PlaceLocations | None] = (),
    processes: Processes | None = None,
) -> RunState:
    """State at the start of a run: network, one classifier and optimizer per group, scaler.

    counts: number of classes and of images of each group to train on.  locations: of the classes of each group that are
    places, which have no classifier; none if this is empty.  processes: those that share classifiers of more weights
    than --split_classifiers_above.
    """
    knobs = config.training
    model = model.double() if config.running.use_float64 else model
    model = model.to(device).to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in
    classifiers: list[MarginCosineProduct | MultiSimilarity] = []
    of_groups = locations or [None] * len(counts)
    for number, ((num_classes, _), places) in enumerate(zip(counts, of_groups, strict=True)):
        if places is not None:
            classifiers.append(MultiSimilarity(near_places(places), needed_by=f"--method {MULTI_SIMILARITY}"))
            continue
        generator = torch.Generator().manual_seed(config.running.seed * 1_000_003 + number)
        whole = MarginCosineProduct(
            model.fc_output_dim, num_classes, s=knobs.scale, m=knobs.margin, generator=generator
        )
        whole = whole.double() if config.running.use_float64 else whole
        is_large = whole.weight.numel() > config.processes.split_classifiers_above
        can_split = processes is not None and num_classes >= processes.world_size
        classifiers.append(SplitClassifier(whole, processes) if processes and can_split and is_large else whole)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return RunState(
        model=model,
        optimizer=fused_adam(trained, knobs.lr),
        classifiers=classifiers,
        classifier_optimizers=[
            fused_adam(one.parameters(), knobs.classifiers_lr) if isinstance(one, MarginCosineProduct) else None
            for one in classifiers
        ],
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16 and device.type == "cuda"),
    )
