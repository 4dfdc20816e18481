"""What a run will do and need: how often each class is seen, memory, disk."""

import torch

from cosplace.config.sections import TrainConfig
from cosplace.errors import DeviceError
from cosplace.memory import is_out_of_memory
from cosplace.models.network import GeoLocalizationNet
from cosplace.progress import format_bytes, format_count
from cosplace.training.checkpoint import RunState
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.setup import Preparation


def describe_plan(prepared: Preparation) -> list[str]:
    """Describe in sentences what will be trained, how often each class is seen, and the memory needed."""
    config, data = prepared.config, prepared.data
    knobs = config.training
    lines = []
    for number, ((one, own_number), (num_classes, num_images)) in enumerate(zip(data.used, data.counts(), strict=True)):
        if one.locations is not None:
            lines.append(_describe_places(config, data.title(number), num_classes, num_images))
            continue
        num_views = len(one.groups.views)
        epochs = len(range(own_number // num_views, knobs.epochs_num, one.num_used // num_views))
        seen = epochs * knobs.iterations_per_epoch * knobs.batch_size / num_classes
        lines.append(
            f"{data.title(number)}: {format_count(num_classes, 'class', 'classes')}, "
            f"{format_count(num_images, 'image')}; {format_count(epochs, 'epoch')}, each class "
            f"seen about {seen:.3g} times"
        )
    num_groups = data.num_used // len(data.groups.views)
    if knobs.epochs_num < num_groups:
        epochs = format_count(knobs.epochs_num, "epoch trains", "epochs train")
        lines.append(f"{epochs} only {knobs.epochs_num} of the {num_groups} groups")
    lines += _resized(prepared)
    device_bytes, checkpoint_bytes, _ = expected_bytes(
        config, prepared.state, prepared.dtype, groups_per_epoch=len(data.groups_of_epoch(0))
    )
    where = "" if prepared.device.type == "cpu" else " on the GPU"
    lines.append(
        f"expected memory: {format_bytes(device_bytes)}{where}; each checkpoint takes {format_bytes(checkpoint_bytes)} "
        "of disk space"
    )
    return lines


def _describe_places(config: TrainConfig, title: str, num_places: int, num_images: int) -> str:
    photos = config.method.photos_per_place
    per_batch = config.training.batch_size // photos
    seen = config.training.epochs_num * config.training.iterations_per_epoch * per_batch / num_places
    return (
        f"{title}: {num_places} places, {num_images} images; batches of {per_batch} places with {photos} images each, "
        f"each place seen about {seen:.3g} times"
    )


def _resized(prepared: Preparation) -> list[str]:
    """Say when the network resizes the training images, which costs time and sharpness."""
    design, side = prepared.state.model.design, prepared.config.augmenting.image_size
    if design is None or design.policy.size_for(side, side) == (side, side):
        return []
    height, width = design.policy.size_for(side, side)
    return [
        f"{design.backbone} does not accept images of {side} x {side} pixels: they are resized to {width} x {height} "
        f"in the network. Use --image_size {width} to avoid it."
    ]


def expected_bytes(
    config: TrainConfig, state: RunState, dtype: torch.dtype | None, *, groups_per_epoch: int = 1
) -> tuple[int, int, int]:
    """Bytes on the device while training, of a checkpoint on disk, and of the network's weights."""
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    network = sum(value.numel() for value in state.model.state_dict().values())
    weights = [one.weight for one in state.classifiers if isinstance(one, MarginCosineProduct)]
    largest = groups_per_epoch * max((one.numel() for one in weights), default=0)
    every = sum(one.numel() for one in weights)
    num_classes = max((one.shape[0] for one in weights), default=config.training.batch_size)
    number = state.number_type.itemsize
    logits = 3 * number * config.training.batch_size * num_classes
    # Each trained weight has a gradient and two moments of Adam.
    training = number * (network + 3 * trained + 4 * largest) + logits
    activations = config.training.batch_size * _activation_bytes(state.model, config.augmenting.image_size)
    return training + activations // (2 if dtype else 1), number * (network + 2 * trained + 3 * every), 4 * network


def _activation_bytes(model: GeoLocalizationNet, side: int) -> int:
    """Bytes that autograd keeps for the backward pass of one image."""
    storages: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output of a layer that kept itself would never be freed

    device = next(model.parameters()).device
    model.eval()  # so that batch-norm statistics do not change
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.zeros(1, 3, side, side, device=device).to(memory_format=torch.channels_last))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"Not enough memory on {device} for one image of {side} x {side} pixels.",
            "use a smaller --image_size",
            "use a smaller --backbone",
            "use another --device",
        ) from error
    return sum(storages.values())
