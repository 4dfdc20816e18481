"""Batches loaded ahead: order, errors, killed processes."""

import errno
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.errors import ConfigError, DatasetError, LoadingError
from cosplace.photos.loading import choose_loader, load_ahead

KINDS = ("threads", "processes")
BATCHES = [range(first, first + 3) for first in range(0, 30, 3)]


def squares(batch: Sequence[int]) -> torch.Tensor:
    time.sleep(0.02 * (batch[0] % 2))  # later batches may be ready sooner
    return torch.tensor([index**2 for index in batch])


def failing(batch: Sequence[int], *, error: Exception) -> torch.Tensor:
    if batch[0] == 12:
        raise error
    return squares(batch)


def killed(batch: Sequence[int], *, folder: Path) -> torch.Tensor:
    if batch[0] == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return squares(batch)


def num_threads(batch: Sequence[int]) -> int:
    return torch.get_num_threads()


@pytest.mark.parametrize("loader", KINDS)
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_are_the_same_and_in_order(loader: str, num_workers: int) -> None:
    loaded = list(load_ahead(squares, BATCHES, num_workers=num_workers, loader=loader))
    assert torch.equal(torch.stack(loaded), torch.arange(30).view(10, 3) ** 2)


@settings(max_examples=30, deadline=None)
@given(num_batches=st.integers(0, 12), num_workers=st.integers(1, 5))
def test_any_number_of_threads_loads_any_number_of_batches(num_batches: int, num_workers: int) -> None:
    batches = [[index] for index in range(num_batches)]
    assert list(load_ahead(list, batches, num_workers=num_workers, loader="threads")) == batches


@pytest.mark.parametrize("loader", KINDS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_user_error_arrives_unchanged(loader: str, num_workers: int) -> None:
    load = partial(failing, error=DatasetError("photo.jpg is empty."))
    seen = []
    with pytest.raises(DatasetError, match=r"^photo.jpg is empty\.$"):
        for batch in load_ahead(load, BATCHES, num_workers=num_workers, loader=loader):
            seen.append(int(batch[0]))
    assert seen == [0, 9, 36, 81]


@pytest.mark.parametrize("loader", KINDS)
def test_a_bug_keeps_its_traceback(loader: str) -> None:
    with pytest.raises(ZeroDivisionError):
        list(load_ahead(partial(failing, error=ZeroDivisionError()), BATCHES, num_workers=2, loader=loader))


@pytest.mark.slow
def test_a_killed_process_is_one_line_with_the_settings_to_change(tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match=r"killed.*--num_workers.*--loader threads") as caught:
        list(load_ahead(partial(killed, folder=tmp_path), BATCHES, num_workers=2, loader="processes"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("unable to write to file </torch_1>: No space left on device (28), shared memory"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."),
    ],
)
def test_full_shared_memory_is_one_line_with_the_settings_to_change(error: Exception) -> None:
    with pytest.raises(LoadingError, match=r"/dev/shm.*--loader threads.*--num_workers"):
        list(load_ahead(partial(failing, error=error), BATCHES, num_workers=2, loader="processes"))


def test_workers_use_one_torch_thread_and_others_are_unchanged() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert set(load_ahead(num_threads, BATCHES, num_workers=2, loader="threads")) == {1}
        assert torch.get_num_threads() == 3
        later = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)


def test_closing_stops_the_threads() -> None:
    with closing(load_ahead(squares, BATCHES * 100, num_workers=3, loader="threads")) as loaded:
        next(loaded)
        assert any(thread.name.startswith("loading") for thread in threading.enumerate())
    assert not any(thread.name.startswith("loading") for thread in threading.enumerate())


def test_threads_load_only_a_few_batches_ahead() -> None:
    started = []
    with closing(load_ahead(started.append, BATCHES, num_workers=2, loader="threads")) as loaded:
        next(loaded)
        time.sleep(0.1)
        assert 1 <= len(started) <= 5


def test_the_loader_is_chosen_by_name() -> None:
    assert choose_loader("auto") == choose_loader("threads") == "threads"
    assert choose_loader("processes") == "processes"
    with pytest.raises(ConfigError, match=r"--loader must be one of .*, got fibers"):
        choose_loader("fibers")
