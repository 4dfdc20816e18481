"""Arrays between the processes of `torchrun`, by torch.distributed with gloo, on CPUs.

Side effects: connects to the other processes.
"""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cosplace.errors import ConfigError, DeviceError, one_line
from cosplace.ranks import Ranks

TIMEOUT_S = 1800.0  # that a rank waits for others: a slow disk may keep one of them busy


class RankGroup:
    """Several processes, or this one alone."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def broadcast(self, content: bytes) -> bytes:
        """Bytes of the first rank, for all ranks."""
        if self.ranks.world_size == 1:
            return content
        with _rank_errors():
            length = torch.tensor([len(content)], dtype=torch.int64)
            dist.broadcast(length, src=0)
            data = torch.empty(int(length), dtype=torch.uint8)
            if self.ranks.is_first:
                data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            if len(data):
                dist.broadcast(data, src=0)
        return data.numpy().tobytes()

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Arrays of one shape and type of all ranks, for the first rank; an empty list for the others."""
        if self.ranks.world_size == 1:
            return [array]
        with _rank_errors():
            own = torch.from_numpy(np.ascontiguousarray(array))
            found = [torch.empty_like(own) for _ in range(self.ranks.world_size)] if self.ranks.is_first else None
            dist.gather(own, found, dst=0)
        return [one.numpy() for one in found or ()]

    def check_equal(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError in all ranks, which names the first setting that differs between them."""
        if self.ranks.world_size == 1:
            return
        first = json.loads(self.broadcast(json.dumps(settings).encode()))
        own = json.loads(json.dumps(settings))
        different = [name for name in own if own[name] != first.get(name)]
        number = list(own).index(different[0]) if different else -1
        with _rank_errors():
            largest = torch.tensor([number], dtype=torch.int64)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        if largest >= 0:
            name = list(own)[int(largest)]
            raise ConfigError(
                f"The ranks have different settings: {name} is {first.get(name)} in rank 0"
                + (f", {own[name]} in rank {self.ranks.rank}" if own[name] != first.get(name) else "")
                + ". Start all ranks with the same command."
            )


@contextmanager
def rank_group(ranks: Ranks, timeout_s: float = TIMEOUT_S) -> Generator[RankGroup]:
    """Within: the ranks are connected.  Raises ConfigError if `torchrun` did not start them, DeviceError."""
    if ranks.world_size == 1:
        yield RankGroup(ranks)
        return
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"This process is 1 of {ranks.world_size}, but they are not connected. Start them with `torchrun "
            f"--nproc_per_node {ranks.world_size} -m cosplace eval ...`."
        )
    with _rank_errors():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield RankGroup(ranks)
    finally:
        dist.destroy_process_group()


@contextmanager
def _rank_errors() -> Generator[None]:
    """Turn errors of torch.distributed into one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # DistBackendError and others are RuntimeErrors
        text = one_line(" ".join(str(error).split()))[:160].rstrip(". ")
        raise DeviceError(
            f"Another rank has ended or does not answer ({text}). Its own error says why; run the same command again."
        ) from error
