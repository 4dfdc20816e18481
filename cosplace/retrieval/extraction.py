"""Photos -> descriptors, in memory or in a folder, sharded and resumable.

Legend: I images, B batch, D descriptor dimension.  Side effects: reads photos, writes the folder `to`.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from cosplace.device import choose_device
from cosplace.errors import CheckpointError, ConfigError, DatasetError, ImageError
from cosplace.models.encoder import encode_batch
from cosplace.models.inference import for_inference
from cosplace.models.weight_files import model_checksum
from cosplace.photos.batch_memory import PhotoStacks, SpareMemory
from cosplace.photos.image_list import ImageList
from cosplace.photos.loading import choose_loader, load_ahead
from cosplace.photos.opening import open_image
from cosplace.retrieval.shards import (
    SHARD_ROWS,
    Descriptors,
    DescriptorShards,
    ShardsMeta,
    UnreadableImage,
    finished_shards,
    keep_shard,
    read_shards,
)

NUM_FILE_SIZES = 64
WAITING_BATCHES = 4  # photos of rare shapes that wait for company, in batches

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """Descriptors of a list of photos, in its order; rows of unreadable photos are zeros and mean nothing."""

    descriptors: Descriptors  # (I, D) float32 or float16
    readable: np.ndarray  # (I,) bool
    unreadable: tuple[UnreadableImage, ...]
    seconds: float


# --- extraction ------------------------------------------------------------------------------------------------------


def extract(
    model: nn.Module,
    images: ImageList,
    *,
    image_size: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    loader: str = "auto",
    device: str | torch.device = "cpu",
    autocast: torch.dtype | None = None,
    stored_dtype: str = "float32",
    skip_unreadable: bool = False,
    to: str | Path | None = None,
    progress: Progress | None = None,
    shard_rows: int = SHARD_ROWS,
) -> Extraction:
    """Descriptors of all photos, by a model that turns (B, 3, H, W) ImageNet-normalized photos into (B, D).

    image_size: pixels of the shorter side after resizing (bilinear, antialiased); None keeps each photo's own size.
    Photos of any sizes may mix; the result depends on neither batch_size nor num_workers nor loader (auto, threads or
    processes).  The model moves to
    `device` and runs in evaluation mode; each of its modules gets its former mode back.
    autocast: torch.float16 or torch.bfloat16 for mixed precision.  stored_dtype: float32 or float16.
    to: a folder for the descriptors, read back memory-mapped; a run that was stopped goes on after its last finished
    shard.  None keeps them in memory, (I, D) as one array.

    Raises ImageError for photos that cannot be opened (with skip_unreadable: only when that is every photo),
    DatasetError when `to` holds descriptors of other photos, another model or other settings, ConfigError,
    CheckpointError when a descriptor is not finite, DeviceError, StorageError.
    """
    started = time.perf_counter()
    device = choose_device(str(device))
    original = model.to(device)
    job = _Job(
        model=for_inference(original),
        images=images,
        image_size=image_size,
        batch_size=batch_size,
        num_workers=num_workers,
        loader=choose_loader(loader, device),
        device=device,
        autocast=autocast,
        stored_dtype=stored_dtype,
        skip_unreadable=skip_unreadable,
        shard_rows=shard_rows,
        progress=progress,
    )
    with _evaluating(original):
        if to is None:
            descriptors, unreadable = _into_memory(job)
        else:
            descriptors, unreadable = _into_folder(job, Path(to), model_checksum(original))
    readable = np.ones(len(images), bool)
    readable[[entry.index for entry in unreadable]] = False
    return Extraction(
        descriptors=descriptors,
        readable=readable,
        unreadable=tuple(unreadable),
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The arguments of `extract`."""

    model: nn.Module
    images: ImageList
    image_size: int | None
    batch_size: int
    num_workers: int
    loader: str
    device: torch.device
    autocast: torch.dtype | None
    stored_dtype: str
    skip_unreadable: bool
    shard_rows: int
    progress: Progress | None

    def __post_init__(self) -> None:
        if not len(self.images):
            raise DatasetError("There are no photos to describe: the list is empty.")
        for name, least in (("image_size", 1), ("batch_size", 1), ("num_workers", 0), ("shard_rows", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"{name} is {value}: it must be at least {least}.")
        if self.stored_dtype not in ("float32", "float16"):
            raise ConfigError(f"stored_dtype is '{self.stored_dtype}': use float32 or float16.")


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Switch to evaluation and inference mode, then give each module its former mode (some may have been frozen)."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _into_memory(job: _Job) -> tuple[np.ndarray, list[UnreadableImage]]:
    num_images = len(job.images)
    shards = [range(at, min(at + job.shard_rows, num_images)) for at in range(0, num_images, job.shard_rows)]
    memory, unreadable = np.empty((0, 0)), []
    for shard, found, failed in _described_shards(job, shards, dimension=None):
        if shard.start == 0:  # only now is the dimension known; one shard alone need not be copied
            memory = found if len(shard) == num_images else np.empty((num_images, found.shape[1]), found.dtype)
        memory[shard.start : shard.stop] = found
        unreadable += failed
    return memory, unreadable


def _into_folder(job: _Job, folder: Path, model: str) -> tuple[DescriptorShards, list[UnreadableImage]]:
    meta = ShardsMeta(
        count=len(job.images),
        photos=hashlib.sha256(np.ascontiguousarray(job.images.names).data).hexdigest(),
        file_sizes=_some_file_sizes(job.images),
        model=model,
        image_size=job.image_size,
        autocast=None if job.autocast is None else str(job.autocast),
        dtype=job.stored_dtype,
        shard_rows=job.shard_rows,
    )
    finished, dimension = finished_shards(folder, meta, whole=not job.skip_unreadable)
    missing = [meta.shard(number) for number in range(meta.num_shards) if number not in finished]
    with closing(_described_shards(job, missing, dimension)) as described:
        for shard, found, failed in described:
            keep_shard(folder, shard.start // job.shard_rows, meta, rows=found, unreadable=failed)
    return read_shards(folder)


def _described_shards(
    job: _Job, shards: list[range], dimension: int | None
) -> Generator[tuple[range, np.ndarray, list[UnreadableImage]]]:
    """(rows, their descriptors, the photos among them that could not be opened), shard by shard."""
    num_done = len(job.images) - sum(map(len, shards))
    if job.progress is not None and num_done:
        job.progress(num_done, len(job.images))
    # Closed at once, also by an error: the loading processes end here and not when garbage is collected.
    with closing(_loaded_batches(job, shards)) as loaded:
        for shard in shards:
            found, failed = _describe_shard(job, shard, loaded, dimension=dimension, num_done=num_done)
            dimension = found.shape[1]
            num_done += len(shard)
            yield shard, found, failed


def _describe_shard(
    job: _Job, shard: range, loaded: "Iterator[LoadedBatch]", *, dimension: int | None, num_done: int
) -> tuple[np.ndarray, list[UnreadableImage]]:
    """Descriptors (rows, D) of one shard from its share of the loaded batches, zeros for photos not opened."""
    buffer = _ShardBuffer(job, shard, dimension)
    failures: list[tuple[int, str]] = []
    num_seen = 0
    while num_seen < len(shard):
        batch = next(loaded)
        failures += batch.failures
        if job.skip_unreadable or not failures:  # else the shard is lost: only look at the rest of its photos
            for rows, photos in batch.stacks:
                buffer.add(rows, photos)
        num_seen += sum(len(rows) for rows, _ in batch.stacks) + len(batch.failures)
        if job.progress is not None:
            job.progress(num_done + num_seen, len(job.images))
    unreadable = [UnreadableImage(index=row, name=job.images.name(row), message=text) for row, text in sorted(failures)]
    if unreadable and not job.skip_unreadable:
        raise ImageError(
            f"{len(unreadable)} of {len(shard)} photos cannot be opened, the first: {unreadable[0].message} "
            f"Repair or remove them, or go on without them (--skip_unreadable)."
        )
    if len(unreadable) == len(shard) and dimension is None:
        raise ImageError(
            f"None of {len(shard)} photos can be opened, the first: {unreadable[0].message} Check the folder."
        )
    return _stored(job, shard, buffer.finish()), unreadable


def _stored(job: _Job, shard: range, found: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large for float16 is told below
        stored = found.astype(job.stored_dtype, copy=False)
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if len(bad):
        raise CheckpointError(
            f"The descriptor of {job.images.name(shard.start + int(bad[0]))} is not finite ({len(bad)} such photos): "
            f"the weights are damaged, their training diverged, or 16-bit numbers are too narrow (go without them)."
        )
    return stored


# --- photos in, batch by batch ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBatch:
    """Photos by shape, (n, 3, H, W) uint8 with their rows in the list; and rows that failed, with what was wrong."""

    stacks: list[tuple[list[int], Tensor]]
    failures: list[tuple[int, str]]

    def pin_memory(self) -> "LoadedBatch":
        """The same batch in page-locked memory, for transfers beside computation."""
        return replace(self, stacks=[(rows, photos.pin_memory()) for rows, photos in self.stacks])

    def share_memory_(self) -> "LoadedBatch":
        """Move its photos into memory that other processes see."""
        for _, photos in self.stacks:
            photos.share_memory_()
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class _Photos:
    """From some rows of the list to their photos, opened, resized and stacked by shape.

    An unreadable photo is a failure (its message), so no worker dies of it.
    """

    images: ImageList
    image_size: int | None
    memory: SpareMemory = field(default_factory=SpareMemory)

    def __call__(self, rows: Sequence[int]) -> LoadedBatch:
        opened, failures, photos = [], [], PhotoStacks(len(rows), self.memory)
        for row in rows:
            try:
                self._open(self.images.path(row), photos)
            except ImageError as error:
                failures.append((row, str(error)))
            else:
                opened.append(row)
        return LoadedBatch(
            stacks=[([opened[place] for place in places], stack) for places, stack in photos.stacks()],
            failures=failures,
        )

    def _open(self, path: Path, photos: PhotoStacks) -> None:
        if self.image_size is None:
            photos.open(path)
        else:
            photos.add(resize(open_image(path), [self.image_size], InterpolationMode.BILINEAR, antialias=True))


def _loaded_batches(job: _Job, shards: list[range]) -> Generator[LoadedBatch]:
    """All photos of the shards in order; no batch holds photos of two shards."""
    batches = [
        range(first, min(first + job.batch_size, shard.stop))
        for shard in shards
        for first in range(shard.start, shard.stop, job.batch_size)
    ]
    return load_ahead(
        _Photos(images=job.images, image_size=job.image_size),
        batches,
        num_workers=job.num_workers,
        loader=job.loader,
        pin_memory=job.device.type == "cuda",
    )


class _ShardBuffer:
    """Descriptors of one shard, on the model's device until all are there: the device is never waited for."""

    def __init__(self, job: _Job, shard: range, dimension: int | None) -> None:
        self.job, self.shard = job, shard
        self.waiting: dict[torch.Size, list[tuple[list[int], Tensor]]] = {}
        self.descriptors = None if dimension is None else torch.zeros(len(shard), dimension, device=job.device)

    def add(self, rows: list[int], photos: Tensor) -> None:
        """Take photos (B, 3, H, W) uint8 of one shape; they pass the model once a batch of them is there."""
        shape = photos[0].shape
        self.waiting.setdefault(shape, []).append((rows, photos))
        if self._num_waiting(shape) >= self.job.batch_size:
            self._describe(shape)
        elif sum(map(self._num_waiting, self.waiting)) > WAITING_BATCHES * self.job.batch_size:
            self._describe(max(self.waiting, key=self._num_waiting))

    def finish(self) -> np.ndarray:
        """Describe what still waits and return (rows, D) float32, zeros where no photo was added."""
        for shape in list(self.waiting):
            self._describe(shape)
        assert self.descriptors is not None
        return self.descriptors.cpu().numpy()

    def _num_waiting(self, shape: torch.Size) -> int:
        return sum(len(rows) for rows, _ in self.waiting[shape])

    def _describe(self, shape: torch.Size) -> None:
        group = self.waiting.pop(shape)
        rows = torch.tensor([row - self.shard.start for rows, _ in group for row in rows])
        photos = group[0][1] if len(group) == 1 else torch.cat([photos for _, photos in group])
        size = self.job.batch_size
        for part, where in zip(photos.split(size), rows.split(size), strict=True):
            found = encode_batch(self.job.model, part, device=self.job.device, autocast=self.job.autocast)
            if self.descriptors is None:
                self.descriptors = torch.zeros(len(self.shard), found.shape[1], device=self.job.device)
            self.descriptors[where.to(self.job.device)] = found


# --- what a folder must agree with -----------------------------------------------------------------------------------


def _some_file_sizes(images: ImageList) -> tuple[int, ...]:
    """Bytes of up to NUM_FILE_SIZES files, evenly spread over the list; -1 for one that is gone."""
    rows = np.unique(np.linspace(0, len(images) - 1, NUM_FILE_SIZES).astype(np.int64)).tolist()
    return tuple(path.stat().st_size if path.is_file() else -1 for path in map(images.path, rows))


# --- a baseline without a network ------------------------------------------------------------------------------------
