"""Reuse of memory between batches, and photos decoded into stacks."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cosplace.errors import ImageError
from cosplace.photos.batch_memory import MemoryPool, PhotoStacks
from cosplace.photos.opening import open_image


def test_memory_is_reused_only_after_its_last_view_is_gone() -> None:
    pool = MemoryPool()
    block = pool.take(5_000)
    address = block.ctypes.data
    part = torch.from_numpy(block.reshape(50, 100)[3:5])[:, 7:9]
    part.fill_(7)
    del block
    other = pool.take(5_000)
    assert other.ctypes.data != address
    other[:] = 1
    assert (part == 7).all()
    del part
    again = pool.take(5_000)
    assert again.ctypes.data == address


def test_blocks_have_the_requested_size() -> None:
    pool = MemoryPool()
    assert [len(pool.take(size)) for size in (10, 10, 20, 0, 20, 10, 10)] == [10, 10, 20, 0, 20, 10, 10]


def test_threads_never_share_a_block_in_use() -> None:
    pool = MemoryPool()

    def keep_some(number: int) -> bool:
        kept, intact = [], True
        for turn in range(60):
            block = pool.take(64)
            block[:] = value = (7 * number + turn) % 256
            kept.append((value, torch.from_numpy(block)))
            intact &= all(bool((tensor == value).all()) for value, tensor in kept)
            del kept[: turn % 4 or None]
        return intact

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(keep_some, range(4)))


@settings(max_examples=30, deadline=None)
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from([(8, 8), (16, 24)]), st.sampled_from([".jpg", ".png"]), st.sampled_from([1, 6])),
        min_size=1,
        max_size=7,
    )
)
def test_photos_are_stacked_by_size(tmp_path_factory, kinds: list) -> None:
    folder = tmp_path_factory.mktemp("stacked")
    stacks, expected = PhotoStacks(len(kinds) + 1), []
    for i, (size, suffix, orientation) in enumerate(kinds):
        path, exif = folder / f"{i}{suffix}", Image.Exif()
        exif[0x0112] = orientation
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)
        expected.append(open_image(path))
        assert stacks.open(path) == expected[-1].shape[1:]
        (folder / "bad.jpg").write_bytes(path.read_bytes()[:-40])  # an error must append nothing
        with contextlib.suppress(ImageError):
            stacks.open(folder / "bad.jpg")
    found = stacks.stacks()
    assert sorted(index for indices, _ in found for index in indices) == list(range(len(kinds)))
    for indices, photos in found:
        assert len(indices) == len(photos)
        assert all(torch.equal(expected[index], photo) for index, photo in zip(indices, photos, strict=True))
