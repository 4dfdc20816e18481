"""Which of several processes this one is, when `torchrun` or a Slurm array started them.

Side effects: reads environment variables.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cosplace.errors import ConfigError

TORCHRUN = ("RANK", "WORLD_SIZE")
SLURM_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of `world_size` processes that do the same work together."""

    rank: int  # from 0
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"The rank must be between 0 and {self.world_size - 1}, got {self.rank}.")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes what is needed once."""
        return self.rank == 0


ALONE = Ranks(0, 1)


def ranks_from_environment(environment: Mapping[str, str] | None = None) -> Ranks:
    """Rank of this process: that of `torchrun`, else that of the task of a Slurm array, else 0 of 1.

    Raises ConfigError for variables that are not such numbers.
    """
    environment = os.environ if environment is None else environment
    if all(name in environment for name in TORCHRUN):
        rank, world_size = (_number(environment, name) for name in TORCHRUN)
        return Ranks(rank, world_size)
    if all(name in environment for name in SLURM_ARRAY):
        task, world_size = (_number(environment, name) for name in SLURM_ARRAY)
        first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
        step = max(_number(environment, "SLURM_ARRAY_TASK_STEP", 1), 1)
        # The ids of an array may have gaps, as in --array=1,2,7: then ranks only say where a task starts.
        return Ranks((task - first) // step % max(world_size, 1), max(world_size, 1))
    return ALONE


def local_device(device: str, num_gpus: int, environment: Mapping[str, str] | None = None) -> str:
    """The GPU of this process of `torchrun` where `auto` or `cuda` is asked for; other devices stay as they are."""
    environment = os.environ if environment is None else environment
    if device in ("auto", "cuda") and num_gpus > 1 and "LOCAL_RANK" in environment:
        return f"cuda:{_number(environment, 'LOCAL_RANK') % num_gpus}"
    return device


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"The environment variable {name} must be an integer, got '{text}'. Unset it.") from None
