"""Processes find each other in a store, which may have what earlier processes wrote."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import TCPStore

from cosplace.training.meeting import LostProcessError, meet
from tests.training.jobs import new_store


def client(store: TCPStore) -> TCPStore:
    """A connection of its own, as each process has."""
    return TCPStore("127.0.0.1", store.port, is_master=False)


def meet_all(store: TCPStore, delays_s: Sequence[float]) -> list[str]:
    """What each of several processes, here threads, returns; each starts after its delay."""

    def one(rank: int) -> str:
        time.sleep(delays_s[rank])
        return meet(client(store), rank, len(delays_s), 60.0)

    with ThreadPoolExecutor(len(delays_s)) as threads:
        return list(threads.map(one, range(len(delays_s))))


def test_restarted_processes_do_not_meet_those_before_them() -> None:
    store, met = new_store(), set()
    # Whichever starts last, and with another number of processes, as when a machine joins or leaves.
    for delays_s in ([0, 0], [0.3, 0], [0, 0.3], [0, 0.3, 0.1], [0.1, 0]):
        (name,) = set(meet_all(store, delays_s))
        assert name not in met
        met.add(name)


@pytest.mark.parametrize(("world_size", "rank", "absent"), [(2, 0, 1), (2, 1, 0), (3, 0, 1)])
@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_process_that_does_not_start_is_named(world_size: int, rank: int, absent: int, is_restarted: bool) -> None:
    store = new_store()
    if is_restarted:
        meet_all(store, [0] * world_size)
    with pytest.raises(LostProcessError, match=f"Process {absent} did not start within "):
        meet(client(store), rank, world_size, 0.2)
