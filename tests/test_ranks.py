"""Ranks from the environment of torchrun and of Slurm arrays."""

import pytest

from cosplace.errors import ConfigError
from cosplace.ranks import ALONE, Ranks, local_device, ranks_from_environment


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Ranks(2, 4)),
        ({"RANK": "2"}, ALONE),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}, Ranks(2, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "8",
                "SLURM_ARRAY_TASK_COUNT": "5",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            Ranks(4, 5),
        ),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}, Ranks(0, 3)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9"}, Ranks(0, 2)),
    ],
)
def test_ranks_from_environment(environment: dict[str, str], expected: Ranks) -> None:
    assert ranks_from_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK must be an integer, got 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "between 0 and 1, got 2"),
    ],
)
def test_other_values_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ranks_from_environment(environment)


def test_each_process_of_torchrun_has_a_gpu() -> None:
    environment = {"LOCAL_RANK": "3"}
    assert local_device("auto", 2, environment) == "cuda:1"
    assert local_device("cuda", 4, environment) == "cuda:3"
    assert local_device("auto", 1, environment) == "auto"
    assert local_device("cpu", 4, environment) == "cpu"
    assert local_device("auto", 4, {}) == "auto"
