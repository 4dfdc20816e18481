"""The processes that train one network together: what they exchange, and how they end together.

Each process computes a part of each batch.  All of them hold the same weights, because all add up the same numbers:

    gather_rows     descriptors of the own part -> of the whole batch, with its gradient
    sum_gradients   gradients of the own part -> of the whole batch

Process 0, the main one, evaluates and writes files (`on_main`).  Between two iterations all processes meet (`agree`):
an error in one of them, or a signal to one of them, ends all of them at the same iteration.

torch's DistributedDataParallel is not used.  It adds up gradients during each backward pass, but EigenPlaces and
several datasets have more than one per iteration, it wants every weight to have a gradient, and it averages: one sum
after the last backward pass is simpler, and right for parts of different sizes.

torch.distributed is imported by `join` only.  Legend: K processes, B batch, D descriptor dimension.
"""

import json
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from cosplace.device import choose_device
from cosplace.errors import ConfigError, CosPlaceError, DeviceError
from cosplace.memory import is_out_of_memory
from cosplace.progress import Progress, StopRequest, format_duration, no_progress
from cosplace.training.meeting import ADVICE, MAX_PAUSE_S, RESTART, LostProcessError, meet
from cosplace.training.torchrun import Job

if TYPE_CHECKING:
    from torch.distributed import Store

BUCKET_NUMBERS = 8 << 20  # gradients that are added up at once, 32 MB
REPORT_S = 1.0  # at most one sign of life of the main process in this time
CONNECT_S = 120.0  # for processes that have all started, to connect
GRACE_S = 3.0  # after contact with a process is lost, until the others are asked why
BUSY_S = 20.0  # the same, while several seem to have ended

T = TypeVar("T")


class OtherProcessError(CosPlaceError):
    """Another process has an error, which it reports; all end after the same iteration."""


def part(total: int, rank: int, world_size: int) -> range:
    """The part of `total` rows that belongs to a process: they differ by one row at most."""
    size, more = divmod(total, world_size)
    first = rank * size + min(rank, more)
    return range(first, first + size + (rank < more))


class Processes:
    """The processes of a job that have joined, as one of them sees it.  See `join`."""

    def __init__(self, job: Job, device: torch.device, timeout_s: float, store: "Store") -> None:
        self.rank, self.world_size, self.device = job.rank, job.world_size, device
        self.timeout_s = timeout_s
        self.ended_together = False  # whether an error ended all between two iterations, so that they can still meet
        self._store = store  # of these processes only, see `meet`
        self._progress: Progress = no_progress
        self._request: StopRequest | None = None  # of this process
        self._waits, self._is_alone, self._beat_time, self._beats = 0, False, 0.0, 0

    def __deepcopy__(self, _: Any) -> Self:
        """Copies of a network belong to the same processes."""
        return self

    @property
    def is_main(self) -> bool:
        """Whether this process evaluates and writes files."""
        return self.rank == 0

    def part(self, total: int) -> range:
        """The part of `total` rows that belongs to this process."""
        return part(total, self.rank, self.world_size)

    # --- tensors -----------------------------------------------------------------------------------------------------

    def add_up(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by the sum of those of all processes; returns it.  Raises LostProcessError."""
        import torch.distributed as dist

        with self._contact():
            dist.all_reduce(tensor)
        return tensor

    def gather_rows(self, own: Tensor, total: int) -> Tensor:
        """Rows of all processes (total, D) from the own ones (n, D).

        Every process computes the whole loss from them; so the gradient of the own rows needs no exchange.
        """
        return _GatherRows.apply(own, self, total)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of parameters by their sums over all processes, many at once."""
        import torch.distributed as dist

        gradients = [one.grad for one in parameters if one.grad is not None]
        with self._contact():
            works = []
            for bucket in _buckets(gradients):
                numbers = torch.cat([one.reshape(-1) for one in bucket])
                works.append((dist.all_reduce(numbers, async_op=True), numbers, bucket))
            for work, numbers, bucket in works:
                assert work is not None
                work.wait()
                for one, summed in zip(bucket, numbers.split([one.numel() for one in bucket]), strict=True):
                    one.copy_(summed.view(one.shape))

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the main process."""
        import torch.distributed as dist

        with self._contact(), torch.no_grad():
            for one in tensors:
                copied = one.detach().to(self.device, copy=True, memory_format=torch.contiguous_format)
                dist.broadcast(copied, 0)
                one.copy_(copied)

    def collect_rows(self, own: Tensor, total: int) -> Tensor | None:
        """In the main process: all rows (total, ...), on the CPU, from the own part (n, ...) of each."""
        import torch.distributed as dist

        own = own.detach().cpu().contiguous()
        with self._contact():
            if not self.is_main:
                dist.send(own, 0)
                return None
            rows = own.new_empty(total, *own.shape[1:])
            rows[: len(own)] = own
            for rank in range(1, self.world_size):
                theirs = part(total, rank, self.world_size)
                dist.recv(rows[theirs.start : theirs.stop], rank)
            return rows

    # --- values ------------------------------------------------------------------------------------------------------

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank.  value: anything that JSON can hold."""
        data = json.dumps(value).encode()
        sizes = torch.zeros(self.world_size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self.add_up(sizes)
        table = torch.zeros(self.world_size, int(sizes.max()), dtype=torch.uint8)
        table[self.rank, : len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.add_up(table)
        return [json.loads(bytes(row[:size].numpy())) for row, size in zip(table, sizes.tolist(), strict=True)]

    def broadcast(self, value: T) -> T:
        """The value of the main process."""
        return self.gather(value if self.is_main else None)[0]

    # --- ending together ---------------------------------------------------------------------------------------------

    def reporting(self, progress: Progress) -> Progress:
        """A progress function for tasks of these processes: a signal is noted, and stops all where they meet next.

        While the main process works alone, it stops at its next report.
        """
        self._progress = progress

        def report(task: str, done: int, total: int, note: str = "", /) -> None:
            self._note_signals(task, done, total, note)
            if self._is_alone:
                self._show_life()

        return report

    def agree(self, error: Exception | None = None, *, is_due: bool = False) -> bool:
        """Meet the other processes, between two iterations; returns `is_due` of the main one.

        error: why this process cannot continue.  It is raised here, and OtherProcessError in the others; of several
        errors, that of the lowest rank.  Raises StopRequest in all if one of them was asked to stop.
        """
        import torch.distributed as dist

        failed = self.world_size if error is None else self.rank
        number = self._request.signal_number if self._request else 0
        flags = torch.tensor([failed, -number, -int(self._request is not None), -int(is_due and self.is_main)])
        with self._contact():
            dist.all_reduce(flags, dist.ReduceOp.MIN)
        failed, number, is_stopped, due = flags.tolist()
        self.ended_together = failed < self.world_size or bool(is_stopped)
        if failed == self.rank and error is not None:
            raise error
        if failed < self.world_size:
            raise OtherProcessError(f"Process {failed} ended; see its message.")
        if is_stopped:
            raise self._request or StopRequest("", -number)
        return bool(due)

    def on_main(self, work: Callable[[], T]) -> T | None:
        """In the main process: the result of `work`.  The others wait for it, as long as it reports progress."""
        self._waits += 1
        key, result, error = f"alone/{self._waits}", None, None
        if self.is_main:
            self._is_alone, self._beat_time = True, 0.0
            try:
                result = work()
            except StopRequest as request:
                self._request = request
            except Exception as problem:
                error = problem
            finally:
                self._is_alone = False
                with self._contact():
                    self._store.set(key, "end")
        else:
            self._wait_for_main(key)
        self.agree(error)
        return result

    def main_first(self, work: Callable[[], T]) -> T:
        """The result of `work`, first in the main process, which fills the caches, then in the others."""
        result, error = self.on_main(work), None
        if not self.is_main:
            try:
                result = work()
            except Exception as problem:
                error = problem
        self.agree(error)
        assert result is not None
        return result

    def _note_signals(self, task: str = "", done: int = 0, total: int = 0, note: str = "") -> None:
        try:
            self._progress(task, done, total, note)
        except StopRequest as request:
            self._request = request

    def _show_life(self) -> None:
        """While the main process works alone: show the others that it does, and stop if one was asked to."""
        now = time.monotonic()
        if now - self._beat_time < REPORT_S and self._request is None:
            return
        self._beat_time, self._beats = now, self._beats + 1
        with self._contact():
            self._store.set("beat", str(self._beats))
            is_stopped = self._store.check(["stop"])
        if self._request or is_stopped:
            raise self._request or StopRequest()

    def _wait_for_main(self, key: str) -> None:
        """Wait until the main process has set a key, as long as it shows life."""
        beat, seen, seen_time, pause = "beat", b"", time.monotonic(), 0.005
        while True:
            with self._contact():
                has_ended = self._store.check(["ended"])  # before the key, which the main process sets first
                if self._store.check([key]):
                    return
                if has_ended:
                    raise OtherProcessError("Process 0 ended; see its message.")
                found = self._store.get(beat) if self._store.check([beat]) else b""
                self._note_signals()
                if self._request:
                    self._store.set("stop", "")
            if found != seen:
                seen, seen_time = found, time.monotonic()
            elif time.monotonic() - seen_time > self.timeout_s:
                raise LostProcessError(
                    f"Process 0 has not reported progress for {format_duration(self.timeout_s)}. {ADVICE}"
                )
            time.sleep(pause)  # Store.wait would log a warning whenever it is called again
            pause = min(MAX_PAUSE_S, pause * 1.5)

    def note_end(self) -> None:
        """Tell those that wait for the main process that it ends, which they would not notice otherwise."""
        if self.is_main:
            with suppress(RuntimeError):  # the store ended before it
                self._store.set("ended", "")

    # --- reports -----------------------------------------------------------------------------------------------------

    def is_reporter(self, error: BaseException) -> bool:
        """Whether this process shows the error that ends the job: the first one that asks."""
        if isinstance(error, OtherProcessError):
            return False
        try:
            if isinstance(error, LostProcessError):
                time.sleep(GRACE_S)  # the process that ended may have said why
            return self._store.add("reports", 1) == 1
        except RuntimeError:  # the store ended too
            return True

    @contextmanager
    def _contact(self) -> Generator[None]:
        """Within: a process that does not answer raises LostProcessError."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise LostProcessError(self._explain(str(error))) from error

    def _explain(self, reason: str) -> str:
        """Leave the group after contact was lost; returns what to say.  reason: what torch says."""
        import torch.distributed as dist

        if self.device.type == "cpu" and dist.is_initialized():  # NCCL would wait for the lost process
            dist.destroy_process_group()  # so that those that wait for this process, not for the lost one, notice too
        is_late = "timed out" in reason.lower() or "timeout" in reason.lower()
        missing: list[int] = []
        try:  # all that can answer say so; the rest have ended or hang
            self._store.set(f"alive/{self.rank}", "")
            started, waited_s = time.monotonic(), 0.0
            # Most often one has ended; the others may be busy until they notice.
            while waited_s < GRACE_S or (len(missing) > 1 and waited_s < BUSY_S):
                time.sleep(MAX_PAUSE_S)
                waited_s = time.monotonic() - started
                missing = [rank for rank in range(self.world_size) if not self._store.check([f"alive/{rank}"])]
        except RuntimeError:
            pass
        who = (
            f"Process{'es' if missing[1:] else ''} {' and '.join(map(str, missing))}" if missing else "Another process"
        )
        if is_late:
            have = "have" if missing[1:] else "has"
            return f"{who} {have} not answered for {format_duration(self.timeout_s)}. {ADVICE}"
        return f"{who} ended or cannot be reached. {RESTART}"


@contextmanager
def join(job: Job, device_name: str, timeout_s: float) -> Generator[Processes]:
    """Within: the processes of a job can reach each other.

    They compute on one kind of device: each on its own GPU, by NCCL, or all on the CPU, by gloo, which also serves what
    they exchange between iterations.  Raises LostProcessError if they do not meet in time.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    device, timeout = device_of_process(device_name, job), timedelta(seconds=timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        shared, _, _ = next(rendezvous("env://", timeout=timeout))
        shared.set_timeout(timeout)
        store = dist.PrefixStore(meet(shared, job.rank, job.world_size, timeout_s), shared)
        # All are there: to connect takes seconds, unless one has just ended, which the others would wait for.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=job.rank,
            world_size=job.world_size,
            timeout=min(timeout, timedelta(seconds=CONNECT_S)),
        )
        if hasattr(dist, "set_timeout"):
            dist.set_timeout(timeout)
        else:
            dist.distributed_c10d._set_pg_timeout(timeout)  # ty: ignore[deprecated] - before torch 2.15
        processes = Processes(job, device, timeout_s, store)
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"The {job.world_size} processes cannot reach each other: {str(error).splitlines()[0]}. "
            f"Check the address that torchrun was given, and the network."
        ) from error
    try:
        yield processes
    finally:
        processes.note_end()
        if dist.is_initialized():
            dist.destroy_process_group()


def device_of_process(name: str, job: Job) -> torch.device:
    """The device of a process: the GPU with its number on its machine, or the CPU.  name: --device."""
    device = choose_device(name)
    if device.type == "mps":
        if name != "auto":
            raise ConfigError("--device mps: training in several processes needs a GPU from NVIDIA, or --device cpu.")
        return torch.device("cpu")
    if device.type != "cuda":
        return device
    if device.index is not None and job.world_size > 1:
        raise ConfigError(f"--device {name}: each of several processes has a GPU of its own. Use --device cuda.")
    count = torch.cuda.device_count()
    if job.local_world_size > count:
        raise DeviceError(
            f"{job.local_world_size} processes on this machine need as many GPUs, but torch finds {count}. Use "
            f"torchrun --nproc_per_node={count}, or --device cpu."
        )
    return torch.device("cuda", job.local_rank)


class _GatherRows(Function):
    """Adding zeros is exact, so the rows are the same bits for every number of processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes, total: int) -> Tensor:
        ctx.rows = processes.part(total)
        rows = own.new_zeros(total, *own.shape[1:])
        rows[ctx.rows.start : ctx.rows.stop] = own
        return processes.add_up(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.rows.start : ctx.rows.stop], None, None


def _buckets(tensors: Sequence[Tensor]) -> Generator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for one in tensors:
        bucket.append(one)
        size += one.numel()
        if size >= BUCKET_NUMBERS:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def checksum(tensors: Iterable[Tensor]) -> int:
    """A number that differs when a bit of the tensors does, nearly always: the sum of their bits as integers."""
    total = 0
    for position, one in enumerate(tensors):
        # In the order of memory, which does not matter for a sum.
        flat = one.detach().reshape(-1)
        bits = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        total += (position + 1) * int(bits.sum(dtype=torch.int64))
    return total % (1 << 53)  # JSON's numbers
