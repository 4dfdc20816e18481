"""Several processes agree on what they train: what they support, the same settings, data, versions and weights."""

import platform
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

import cosplace
from cosplace.config.sections import TrainConfig
from cosplace.config.values import to_values
from cosplace.errors import ConfigError
from cosplace.training.checkpoint import RunState
from cosplace.training.distributed_network import distribute
from cosplace.training.processes import Processes, checksum
from cosplace.training.resume import FREE_ON_RESUME
from cosplace.training.setup import Preparation

MAX_NAMED = 4  # differences in an error


def check_supported(config: TrainConfig, world_size: int) -> None:
    """Raise ConfigError for settings that several processes do not support."""
    for flag, value, instead in (
        ("--seeds", config.training.seeds, "Train with one --seed after the other, or in one process."),
        ("--dry_run", config.running.dry_run, "Use it in one process, with --batch_size divided by their number."),
        ("--compile", config.running.compile, "Omit it."),
        ("--cuda_graphs", config.running.cuda_graphs, "Omit it."),
    ):
        if value:
            raise ConfigError(f"{flag} does not work with several processes, here {world_size}. {instead}")
    if config.training.batch_size < world_size:
        raise ConfigError(
            f"--batch_size {config.training.batch_size} is smaller than the number of processes, {world_size}. It is "
            f"the number of images that all of them train on in an iteration."
        )


def join_training(prepared: Preparation) -> Preparation:
    """Make a prepared run one of several processes: compare them, and split the network's batches.

    Raises ConfigError, naming what differs, unless all processes have the same settings, classes, versions and weights.
    """
    processes, config = prepared.processes, prepared.config
    assert processes is not None
    check_same(processes, prepared)
    distribute(prepared.state.model, processes, config.training.batch_size, config.augmenting.image_size)
    return replace(prepared, processes=processes)


def check_same(processes: Processes, prepared: Preparation) -> None:
    """Raise ConfigError in all processes, naming the first differences, unless they are about to do the same."""
    first, *others = every = processes.gather(_facts(prepared))
    error = None
    for rank, facts in enumerate(every):
        names = [name for name in first if facts.get(name) != first[name]]
        if names:
            shown = ", ".join(
                f"{name} {_shown(facts.get(name))}, not {_shown(first[name])}" for name in names[:MAX_NAMED]
            )
            more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            error = ConfigError(
                f"Process {rank} differs from process 0: {shown}{more}. Start all with the same command, photos and "
                f"versions."
            )
            break
    assert len(others) == processes.world_size - 1
    # All have the same error; one shows it.
    processes.agree(error if processes.is_main else None)


def _facts(prepared: Preparation) -> dict[str, Any]:
    """What must be the same in all processes, under the names that users know."""
    config, state = prepared.config, prepared.state
    flags = {f"--{name}": value for name, value in to_values(config).items() if name not in FREE_ON_RESUME}
    return {
        **flags,
        "--split_classifiers_above": config.processes.split_classifiers_above,
        "device": prepared.device.type,
        "classes of the training photos": prepared.data.digest()[:12],
        "epoch": state.epoch + 1,
        "iteration": state.iteration,
        "weights of the classifiers": _classifier_checksum(state),
        "cosplace": cosplace.__version__,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # without its import, which takes longer than that of torch
        "numpy": np.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _classifier_checksum(state: RunState) -> int:
    """Of all weights that each process has: of the classifiers and of Adam's moments."""
    if state.is_split:
        return 0
    weights = [parameter for one in state.classifiers for parameter in one.parameters()]
    moments = [
        value
        for optimizer in (state.optimizer, *filter(None, state.classifier_optimizers))
        for values in optimizer.state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    ]
    return checksum([*weights, *moments])


def check_equal_weights(processes: Processes, state: RunState, groups: list[int]) -> None:
    """Raise ConfigError in all processes unless their networks, and classifiers of some groups, are the same bits."""
    tensors = list(state.model.state_dict().values())
    if not state.is_split:
        tensors += [parameter for number in groups for parameter in state.classifiers[number].parameters()]
    first, *others = processes.gather(checksum(tensors))
    wrong = [rank for rank, other in enumerate(others, start=1) if other != first]
    error = ConfigError(
        f"Process {wrong[0]} has other weights than process 0 after epoch {state.epoch + 1}: its processor rounds "
        f"differently, or is damaged. Use machines of one kind, and start again from the last checkpoint."
    ) if wrong and processes.is_main else None  # fmt: skip
    processes.agree(error)
