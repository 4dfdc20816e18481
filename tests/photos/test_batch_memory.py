"""Memory that batches of photos use again, and never while something still lies in it."""

from concurrent.futures import ThreadPoolExecutor

import torch

from cosplace.photos.batch_memory import SpareMemory


def test_memory_comes_back_when_the_last_view_of_it_is_gone() -> None:
    memory = SpareMemory()
    block = memory.take(5_000)
    where = block.ctypes.data
    part = torch.from_numpy(block.reshape(50, 100)[3:5])[:, 7:9]
    part.fill_(7)
    del block
    meanwhile = memory.take(5_000)
    assert meanwhile.ctypes.data != where
    meanwhile[:] = 1
    assert (part == 7).all()
    del part
    again = memory.take(5_000)
    assert again.ctypes.data == where


def test_memory_is_as_long_as_was_asked_for() -> None:
    memory = SpareMemory()
    assert [len(memory.take(size)) for size in (10, 10, 20, 0, 20, 10, 10)] == [10, 10, 20, 0, 20, 10, 10]


def test_threads_never_write_into_what_another_keeps() -> None:
    memory = SpareMemory()

    def keep_some(number: int) -> bool:
        kept, intact = [], True
        for turn in range(60):
            block = memory.take(64)
            block[:] = value = (7 * number + turn) % 256
            kept.append((value, torch.from_numpy(block)))
            intact &= all(bool((tensor == value).all()) for value, tensor in kept)
            del kept[: turn % 4 or None]
        return intact

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(keep_some, range(4)))
