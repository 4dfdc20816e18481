"""Batches of the server: how photos and cores are divided among them, and when a batch waits for more photos."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from cosplace.localization.localizer import Localizer
from cosplace.models.views import PLAIN_VIEWS
from cosplace.photos.opening import decode_upload
from cosplace.server import ServerSettings
from cosplace.server.batching import ENOUGH_PHOTOS, MAX_DECODING_BYTES, PhotoQueue
from cosplace.server.failures import BusyError, ExpiredError
from cosplace.server.metrics import Metrics
from cosplace.server.threads import PHOTOS_PER_BATCH, decoders, plan_batch
from cosplace.server.uploads import Upload
from tests.server.server_samples import good_photo

WAIT_S = 20.0
LONG_BATCH_S = 600.0  # a batch then waits up to a minute for its share of the photos
SIDE = 64  # pixels of good_photo


@given(st.integers(0, 500), st.integers(1, 64), st.integers(0, 63))
def test_batches_share_photos_and_cores(num_photos: int, num_cores: int, num_running: int) -> None:
    plan = plan_batch(num_photos, num_cores, num_running)
    assert 1 <= plan.num_batches <= num_cores
    assert plan.num_threads >= 1 and plan.num_batches * plan.num_threads <= num_cores
    assert plan.max_photos >= 1 and plan.num_batches * plan.max_photos >= num_photos
    if num_photos < 2 * PHOTOS_PER_BATCH and not num_running:
        assert (plan.num_batches, plan.num_threads) == (1, num_cores)
    if num_photos >= num_cores * PHOTOS_PER_BATCH:
        assert (plan.num_batches, plan.num_threads) == (num_cores, 1)


class StubEncoder:
    """Calls a function for each batch; records the sizes of batches and torch's threads."""

    name, image_size, views, device = "stub", SIDE, PLAIN_VIEWS, torch.device("cpu")

    def __init__(self, during: Any = lambda: None) -> None:
        self.during, self.batches, self.threads = during, list[int](), list[int]()

    def encode(self, photos: list[torch.Tensor], *, batch_size: int) -> np.ndarray:
        assert len(photos) <= batch_size
        self.batches.append(len(photos))
        self.threads.append(torch.get_num_threads())
        self.during()
        return np.zeros((len(photos), 2), np.float32)


@contextmanager
def running_queue(encoder: StubEncoder, num_cores: int, **changes: Any) -> Iterator[PhotoQueue]:
    """A queue whose network has this number of cores; answers are the names of the photos."""
    before = torch.get_num_threads()
    localizer = SimpleNamespace(encoder=encoder, locate_descriptors=lambda _, names, *, where: names)
    torch.set_num_threads(num_cores)
    try:
        queue = PhotoQueue(cast(Localizer, localizer), ServerSettings(**changes), Metrics())
    finally:
        torch.set_num_threads(before)
    queue.start()
    try:
        yield queue
    finally:
        queue.close()
        torch.set_num_threads(before)


def submit(queue: PhotoQueue, count: int) -> list[Any]:
    uploads = [Upload(name=f"{number}.jpg", raw=good_photo(number)) for number in range(count)]
    return queue.submit(uploads, None, time.monotonic() + 60)


def wait_until(condition: Any) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, "the condition did not become true in time"
        time.sleep(0.005)


def test_one_batch_per_core_at_a_time() -> None:
    both = threading.Barrier(2)  # breaks if the second batch does not start during the first
    encoder = StubEncoder(lambda: both.wait(WAIT_S))
    with running_queue(encoder, 2) as queue:
        queue.batch_s = LONG_BATCH_S
        futures = submit(queue, 16)
        assert [future.result(WAIT_S) for future in futures] == [f"{number}.jpg" for number in range(16)]
    assert encoder.batches == [8, 8] and encoder.threads == [1, 1]


def test_a_lone_photo_is_computed_by_all_cores_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = StubEncoder()
    with running_queue(encoder, 2, batch_wait_ms=1_000) as queue:
        monkeypatch.setattr(queue.decoded, "get_up_to", lambda *_: pytest.fail("it waits for other photos"))
        for _ in range(3):
            assert submit(queue, 1)[0].result(WAIT_S) == "0.jpg"
    assert encoder.batches == [1, 1, 1] and encoder.threads == [2, 2, 2]


def test_a_batch_waits_for_clients_that_were_just_answered() -> None:
    """Four photos were in the queue, so the next batch waits for four; later, it takes the photo that is there."""
    encoder = StubEncoder()
    with running_queue(encoder, 1) as queue:
        queue.batch_s = LONG_BATCH_S
        for future in submit(queue, 4):
            future.result(WAIT_S)
        futures = submit(queue, 1)
        futures += submit(queue, 3)
        for future in futures:
            future.result(WAIT_S)
        assert encoder.batches == [4, 4]
        queue.batch_s = 0.0
        submit(queue, 1)[0].result(WAIT_S)
    assert encoder.batches == [4, 4, 1]


def test_a_batch_with_enough_photos_does_not_wait_for_its_share() -> None:
    encoder = StubEncoder()
    with running_queue(encoder, 1) as queue:
        queue.batch_s = LONG_BATCH_S
        queue.peak, queue.peak_at = 2 * ENOUGH_PHOTOS, time.monotonic()  # so many were in the queue lately
        for future in submit(queue, ENOUGH_PHOTOS):
            future.result(WAIT_S)
    assert encoder.batches == [ENOUGH_PHOTOS]


def test_numpy_has_one_thread_next_to_the_network() -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(limits=2, user_api="blas"):
        before = threads()
        with running_queue(StubEncoder(), 2):
            assert threads() == {1}
        assert threads() == before


def test_a_batch_waits_no_longer_than_a_tenth_of_the_time_of_a_batch() -> None:
    with running_queue(StubEncoder(), 1) as queue:
        assert queue._max_wait_s() == 0
        queue.batch_s = 0.5
        assert queue._max_wait_s() == pytest.approx(0.05)
    with running_queue(StubEncoder(), 1, batch_wait_ms=7) as queue:
        queue.batch_s = 0.5
        assert queue._max_wait_s() == pytest.approx(0.007)


def test_all_batches_together_stay_within_the_limit_of_pixels() -> None:
    """A photo has 4,096 pixels: one batch of at most 24, or two of at most 12, are within 100,000."""
    lock, running, most = threading.Lock(), [0], [0]
    encoder = StubEncoder()

    def during() -> None:
        with lock:
            running[0] += encoder.batches[-1]
            most[0] = max(most[0], queue.pixels_in_network.used)
        time.sleep(0.01)

    encoder.during = during
    with running_queue(encoder, 2, max_batch=64, max_batch_pixels=100_000, batch_wait_ms=100) as queue:
        futures = submit(queue, 40)
        futures += submit(queue, 40)
        for future in futures:
            future.result(WAIT_S)
    assert sum(encoder.batches) == 80 and max(encoder.batches) <= 24
    assert 0 < most[0] <= 100_000


def test_photos_wait_for_the_memory_of_others_that_are_decoded() -> None:
    with running_queue(StubEncoder(), 1) as queue:
        with queue.memory.reserve(MAX_DECODING_BYTES):
            (future,) = submit(queue, 1)
            with pytest.raises(TimeoutError):
                future.result(0.3)
        assert future.result(WAIT_S) == "0.jpg"


def test_a_request_that_needs_more_places_than_are_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosplace.server.batching.num_places", lambda raw, settings: 3)
    gate = threading.Event()
    with running_queue(StubEncoder(lambda: gate.wait(WAIT_S)), 1, max_queue=8, max_files=4) as queue:
        futures = submit(queue, 1) + submit(queue, 1)
        assert not queue.is_full()
        with pytest.raises(BusyError, match="busy"):
            submit(queue, 1)
        gate.set()
        assert [future.result(WAIT_S) for future in futures] == ["0.jpg", "0.jpg"]


def test_photos_whose_time_is_over_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def decode(raw: bytes, name: str, **limits: int) -> torch.Tensor:
        decoded.append(name)
        return decode_upload(raw, name, **limits)

    monkeypatch.setattr("cosplace.server.batching.decode_upload", decode)
    uploads = [Upload(name=f"{number}.jpg", raw=good_photo(number)) for number in range(2)]
    with running_queue(StubEncoder(), 1) as queue:
        (late,) = queue.submit(uploads[:1], None, time.monotonic() - 1)
        (other,) = queue.submit(uploads[1:], None, time.monotonic() + 60)
        with pytest.raises(ExpiredError, match=r"0\.jpg was not processed within the time limit"):
            late.result(WAIT_S)
        assert other.result(WAIT_S) == "1.jpg"
    assert decoded == ["1.jpg"]


def test_a_failed_batch_leaves_all_threads_working() -> None:
    encoder = StubEncoder()

    def during() -> None:
        if encoder.batches[-1] > 1:
            raise RuntimeError("not more than one photo")

    encoder.during = during
    with running_queue(encoder, 2, batch_wait_ms=100) as queue:
        assert [future.result(WAIT_S) for future in submit(queue, 3)] == ["0.jpg", "1.jpg", "2.jpg"]
        assert queue.is_working() and queue.num_running == 0
        wait_until(lambda: queue.num_photos == 0)
        assert queue.pixels_in_network.used == 0


def test_threads_that_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 2), (2, 2), (16, 16)):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert decoders(None) == expected
    assert decoders(5) == 5
