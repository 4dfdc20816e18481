"""Threads of a server: one number of cores, divided among the batches of the network and the threads that decode.

    few photos     one batch at a time, computed by all cores: the shortest time to the answer
    many photos    one batch per core, computed by one thread: the most photos per second

The threads that compute one batch wait for each other after each layer.  If one of them has lost its core to a thread
that decodes, all cores wait.  Batches that are computed side by side do not wait for each other, so decoding takes no
more time of the cores than it needs.
"""

from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits

PHOTOS_PER_BATCH = 4  # takes 7% more time per photo than a batch of 8; a batch of 1 takes 44% more (ResNet-18)
MIN_DECODERS = 2  # so that one photo that takes long to decode does not hold up all others


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How the next batch is computed: as one of `num_batches`, with up to `max_photos`, by `num_threads` threads."""

    num_batches: int
    max_photos: int
    num_threads: int


def plan_batch(num_photos: int, num_cores: int, num_running: int = 0) -> BatchPlan:
    """Divide the photos that wait for an answer, and the cores, among batches that are computed side by side.

    num_running: batches that are being computed now, and keep their threads until they end.
    """
    num_batches = min(num_cores, max(1, num_running + 1, num_photos // PHOTOS_PER_BATCH))
    return BatchPlan(num_batches, max(1, -(-num_photos // num_batches)), num_cores // num_batches)


def cores_of_network(device: torch.device | str) -> int:
    """Number of cores that the network may compute on: those of this process, or OMP_NUM_THREADS; 1 for a GPU."""
    return torch.get_num_threads() if torch.device(device).type == "cpu" else 1


def decoders(wanted: int | None) -> int:
    """Number of threads that decode: as set by the user, or one for each core."""
    return max(MIN_DECODERS, torch.get_num_threads()) if wanted is None else wanted


def use_one_thread_of_numpy() -> threadpool_limits:
    """Let numpy compute products of matrices with one thread, in the whole process; the result can restore the former.

    OpenBLAS has a thread for each further core, which goes on waiting busily for some milliseconds after a product.
    """
    return threadpool_limits(limits=1, user_api="blas")


def use_torch_threads(number: int) -> None:
    """Let torch compute with this number of threads in the calling Python thread.

    torch stores the number per Python thread, and a value that threads copy at their first use.
    """
    if torch.get_num_threads() != number:
        torch.set_num_threads(number)
