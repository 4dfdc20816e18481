"""Photos -> descriptors, in memory or in a folder, sharded and resumable.

Legend: I images, B batch, D descriptor dimension.  Side effects: reads photos, writes the folder `to`.
"""

import hashlib
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cosplace.device import choose_device
from cosplace.engines.engine import Engine
from cosplace.engines.torch_engine import TorchEngine, describe_tensors
from cosplace.errors import CheckpointError, ConfigError, DatasetError, ImageError
from cosplace.models.averaging import MAX_SCALES
from cosplace.photos.batch_memory import MemoryPool, PhotoStacks
from cosplace.photos.crops import Crop, crop_photo
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.loading import choose_loader, load_ahead
from cosplace.photos.opening import open_image
from cosplace.photos.resizing import batch_size_for, resize_shorter_side
from cosplace.progress import Progress, Stopwatch, no_progress
from cosplace.retrieval.photo_changes import photo_files
from cosplace.retrieval.shards import (
    SHARD_ROWS,
    Descriptors,
    DescriptorShards,
    ShardsMeta,
    UnreadableImage,
    find_finished_shards,
    read_shards,
    write_shard,
)
from cosplace.storage import remove_unfinished

NUM_FILE_SIZES = 64  # file sizes kept with descriptors, to detect copies of the photos at another resolution
NUM_NAMED = 3  # photos whose names are in an error
EQUAL_WITHIN = 1e-6  # of each number of two descriptors that count as equal
NETWORK = "network"  # the part of the time that is spent in the network
TASK = "extracting descriptors"  # the name of the task in progress reports
MAX_PENDING_BATCHES = 4  # photos of rare sizes that wait until a batch is full, in batches


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionSettings:
    """How to compute descriptors.  batch_size, num_workers and loader change the speed, not the descriptors.

    Raises ConfigError for a value outside its limits.
    """

    image_size: int | None = None  # pixels of the shorter side after resizing; None keeps each photo's own size
    crop: Crop | None = None  # the part of each photo that is described; image_size is not used then
    scales: tuple[float, ...] = (1.0,)  # descriptors are averaged over copies of each photo with these scales
    flip: bool = False  # and over mirror images
    batch_size: int = 16
    num_workers: int = 0  # threads or processes that load photos; 0 loads them between batches
    loader: str = "auto"  # threads, processes, or auto: threads on a CPU, else processes
    device: str | torch.device = "cpu"  # auto, cpu, cuda, cuda:N or mps
    autocast: torch.dtype | None = None  # torch.float16 or torch.bfloat16 for mixed precision
    stored_dtype: str = "float32"  # or float16
    skip_unreadable: bool = False  # continue without photos that cannot be opened
    shard_rows: int = SHARD_ROWS  # descriptors per file in a folder

    def __post_init__(self) -> None:
        for name, minimum in (("image_size", 1), ("batch_size", 1), ("num_workers", 0), ("shard_rows", 1)):
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ConfigError(f"{name} must be at least {minimum}, got {value}.")
        if not 1 <= len(set(self.scales)) == len(self.scales) <= MAX_SCALES or min(self.scales) <= 0:
            raise ConfigError(f"scales must be 1 to {MAX_SCALES} different numbers above 0, got {self.scales}.")
        if self.stored_dtype not in ("float32", "float16"):
            raise ConfigError(f"stored_dtype must be float32 or float16, got '{self.stored_dtype}'.")

    @property
    def views(self) -> str:
        """Crop, scales and flip as text; "" for none."""
        parts = [] if self.crop is None else [f"{self.crop.place} {self.crop.width}x{self.crop.height}"]
        parts += [] if self.scales == (1.0,) else ["scales " + " ".join(f"{scale:g}" for scale in self.scales)]
        return ", ".join([*parts, *["flip"] * self.flip])


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """Descriptors of a list of photos, in its order; rows of unreadable photos are zeros without meaning."""

    descriptors: Descriptors  # (I, D) float32 or float16
    readable: np.ndarray  # (I,) bool
    unreadable: tuple[UnreadableImage, ...]
    seconds: float
    network_seconds: float = 0.0  # of them, in the network; on a GPU, which computes beside the CPU, only the waiting


# --- extraction ------------------------------------------------------------------------------------------------------


def extract(
    model: nn.Module | Engine,
    images: ImageList,
    settings: ExtractionSettings | None = None,
    *,
    to: str | Path | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> Extraction:
    """Compute the descriptors of all photos, by a model (B, 3, H, W) ImageNet-normalized photos -> (B, D).

    model: a network, which PyTorch runs; or an engine, with its own device, scales and flip.
    Photos may have different sizes.  A network moves to the device and runs in evaluation mode; afterwards each of its
    modules gets its former mode back.
    to: a folder for the descriptors, which are then memory-mapped; an interrupted extraction continues after its last
    finished shard.  None keeps them in memory, as one array (I, D).
    options: fields of ExtractionSettings by name, in place of those in `settings`.

    Raises ImageError for photos that cannot be opened (with skip_unreadable only if no photo can be opened),
    DatasetError when `to` holds descriptors of other photos, another model or other settings, ConfigError,
    CheckpointError when a descriptor is not finite, DeviceError, StorageError.
    """
    started = time.perf_counter()
    settings = replace(settings or ExtractionSettings(), **options)
    if not len(images):
        raise DatasetError("The list of photos is empty. Add photos to the folder.")
    with running_engine(model, settings) as engine:
        run = ExtractionRun(engine=engine, images=images, settings=settings, progress=progress)
        if to is None:
            descriptors, unreadable = _extract_to_memory(run)
        else:
            descriptors, unreadable = _extract_to_folder(run, Path(to))
    readable = np.ones(len(images), bool)
    readable[[image.index for image in unreadable]] = False
    return Extraction(
        descriptors=descriptors,
        readable=readable,
        unreadable=tuple(unreadable),
        seconds=time.perf_counter() - started,
        network_seconds=run.watch.seconds.get(NETWORK, 0.0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionRun:
    """Photos whose descriptors are computed, and how."""

    engine: Engine
    images: ImageList
    settings: ExtractionSettings
    progress: Progress
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def device(self) -> torch.device:
        """Where the descriptors are computed."""
        return self.engine.device if isinstance(self.engine, TorchEngine) else torch.device("cpu")


@contextmanager
def running_engine(model: nn.Module | Engine, settings: ExtractionSettings) -> Generator[Engine]:
    """Within: an engine that describes photos with a model; the engine itself, if one is given."""
    if not isinstance(model, nn.Module):
        yield model
        return
    device = choose_device(str(settings.device))
    with evaluation_mode(model):
        yield TorchEngine(model, device=device, scales=settings.scales, flip=settings.flip, autocast=settings.autocast)


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Switch to evaluation and inference mode, then give each module its former mode (some may have been frozen)."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _extract_to_memory(run: ExtractionRun) -> tuple[np.ndarray, list[UnreadableImage]]:
    num_images, shard_rows = len(run.images), run.settings.shard_rows
    shards = [range(first, min(first + shard_rows, num_images)) for first in range(0, num_images, shard_rows)]
    memory, unreadable = np.empty((0, 0)), []
    for shard, descriptors, failed in extract_shards(run, shards, dimension=None):
        if shard.start == 0:  # the dimension is known only now; a single shard is not copied
            single = len(shard) == num_images
            memory = descriptors if single else np.empty((num_images, descriptors.shape[1]), descriptors.dtype)
        memory[shard.start : shard.stop] = descriptors
        unreadable += failed
    return memory, unreadable


def _extract_to_folder(run: ExtractionRun, folder: Path) -> tuple[DescriptorShards, list[UnreadableImage]]:
    settings = run.settings
    meta = extraction_meta(run.images, settings, run.engine.checksum, int8_text(run.engine))
    remove_unfinished(folder)
    photos = [photo_files(run.images, meta.shard(number)) for number in range(meta.num_shards)]
    finished, dimension = find_finished_shards(folder, meta, photos, complete=not settings.skip_unreadable)
    missing = [meta.shard(number) for number in range(meta.num_shards) if number not in finished]
    num_done = len(run.images) - sum(map(len, missing))
    with closing(extract_shards(run, missing, dimension, num_done)) as extracted:
        for shard, descriptors, failed in extracted:
            number = shard.start // settings.shard_rows
            write_shard(folder, number, meta, rows=descriptors, unreadable=failed, photos=photos[number])
    return read_shards(folder)


def extraction_meta(
    images: ImageList, settings: ExtractionSettings, checksum: str, int8_engine: str = ""
) -> ShardsMeta:
    """What identifies an extraction.  checksum: of the model.  int8_engine: see `int8_text`."""
    return ShardsMeta(
        count=len(images),
        photos=photos_digest(images),
        file_sizes=sample_file_sizes(images),
        model=checksum,
        image_size=None if settings.crop else settings.image_size,
        autocast=None if settings.autocast is None else str(settings.autocast),
        dtype=settings.stored_dtype,
        shard_rows=settings.shard_rows,
        views=settings.views,
        engine=int8_engine,
    )


def int8_text(engine: Engine) -> str:
    """An int8 engine and its file as text; "" for the other engines, whose descriptors agree."""
    return f"{engine.kind.name} {engine.file_sha256}" if engine.kind.is_int8 else ""


def photos_digest(images: ImageList) -> str:
    """SHA-256 of the relative paths of a list."""
    return hashlib.sha256(np.ascontiguousarray(images.names).data).hexdigest()


def sample_file_sizes(images: ImageList) -> tuple[int, ...]:
    """Sizes in bytes of up to NUM_FILE_SIZES files, evenly spaced over the list; -1 for a missing file."""
    paths = map(images.path, evenly_spaced(images, NUM_FILE_SIZES))
    return tuple(path.stat().st_size if path.is_file() else -1 for path in paths)


def extract_shards(
    run: ExtractionRun, shards: Iterable[range], dimension: int | None, num_done: int = 0
) -> Generator[tuple[range, np.ndarray, list[UnreadableImage]]]:
    """Yield (rows, their descriptors, the photos among them that could not be opened), shard by shard.

    shards: taken one by one, each when the loading of its photos begins; that is before the one before it is finished.
    The batches of a shard depend only on its photos and the settings.  num_done: photos done before, for the progress.
    """
    if num_done:
        run.progress(TASK, num_done, len(run.images))
    begun: deque[range] = deque()  # shards whose photos are being loaded

    def batches() -> Iterator[range]:
        for shard in shards:
            begun.append(shard)
            for first in range(shard.start, shard.stop, run.settings.batch_size):
                yield range(first, min(first + run.settings.batch_size, shard.stop))

    # Closed at once, also by an error: the loading processes end here and not when garbage is collected.
    with closing(_load_batches(run, batches())) as loaded:
        for first in loaded:
            shard = begun.popleft()
            descriptors, failed = _extract_shard(
                run, shard, chain([first], loaded), dimension=dimension, num_done=num_done
            )
            dimension = descriptors.shape[1]
            num_done += len(shard)
            yield shard, descriptors, failed


def _extract_shard(
    run: ExtractionRun, shard: range, batches: "Iterator[LoadedBatch]", *, dimension: int | None, num_done: int
) -> tuple[np.ndarray, list[UnreadableImage]]:
    """Compute descriptors (rows, D) of one shard from its share of the loaded batches; zeros for unreadable photos."""
    skip_unreadable = run.settings.skip_unreadable
    descriptors = _ShardDescriptors(run, shard, dimension)
    failures: list[tuple[int, str]] = []
    num_loaded = 0
    while num_loaded < len(shard):
        batch = next(batches)
        failures += batch.failures
        if skip_unreadable or not failures:  # else the extraction fails after this shard: only check its other photos
            for rows, photos in batch.stacks:
                descriptors.add(rows, photos)
        num_loaded += sum(len(rows) for rows, _ in batch.stacks) + len(batch.failures)
        run.progress(TASK, num_done + num_loaded, len(run.images))
    unreadable = [UnreadableImage(index=row, name=run.images.name(row), message=text) for row, text in sorted(failures)]
    if unreadable and not skip_unreadable:
        raise ImageError(
            _describe_failures(unreadable, len(shard)),
            "replace them",
            "continue without them (--skip_unreadable)",
        )
    if len(unreadable) == len(shard) and dimension is None:
        raise ImageError(_describe_failures(unreadable, len(shard)))
    return _to_stored_dtype(run, shard, descriptors.finish()), unreadable


def _describe_failures(unreadable: Sequence[UnreadableImage], num_photos: int) -> str:
    if num_photos == 1:
        return unreadable[0].message
    count = "any" if len(unreadable) == num_photos else f"{len(unreadable):,}"
    return f"Cannot open {count} of {num_photos:,} photos. The first: {unreadable[0].message}"


def _to_stored_dtype(run: ExtractionRun, shard: range, descriptors: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # values too large for float16 are reported below
        stored = descriptors.astype(run.settings.stored_dtype, copy=False)
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if len(bad):
        raise CheckpointError(
            f"{not_finite_text(run.images, shard.start + bad)}: the weights are damaged, training diverged, or 16-bit "
            f"precision is too low.",
            "try without --use_amp16",
            "use another model",
        )
    return stored


def not_finite_text(images: ImageList, rows: np.ndarray) -> str:
    """Name photos whose descriptors are not finite."""
    # A dataset may consist of positions only, and photos then have numbers only.
    names = [images.name(int(row)) if len(images) else f"photo {row}" for row in rows[:NUM_NAMED]]
    more = f" and {len(rows) - NUM_NAMED:,} more" if len(rows) > NUM_NAMED else ""
    if len(rows) == 1:
        return f"The descriptor of {names[0]} is not finite"
    last = more or f" and {names.pop()}"
    return f"The descriptors of {', '.join(names)}{last} are not finite"


class _ShardDescriptors:
    """Descriptors of one shard, kept on the device until the shard is complete: the CPU never waits for the device."""

    def __init__(self, run: ExtractionRun, shard: range, dimension: int | None) -> None:
        self.run, self.shard = run, shard
        self.batch_size = run.settings.batch_size
        self.pending: dict[torch.Size, list[tuple[list[int], Tensor]]] = {}  # (rows, photos) by the shape of a photo
        self.descriptors = None if dimension is None else self._zeros(dimension)

    def add(self, rows: list[int], photos: Tensor) -> None:
        """Add photos (B, 3, H, W) uint8 of one size; the model gets them once a batch of that size is full."""
        shape = photos[0].shape
        self.pending.setdefault(shape, []).append((rows, photos))
        if self._num_pending(shape) >= batch_size_for(*shape[-2:], self.batch_size):
            self._encode(shape)
        elif sum(map(self._num_pending, self.pending)) > MAX_PENDING_BATCHES * self.batch_size:
            self._encode(max(self.pending, key=self._num_pending))

    def finish(self) -> np.ndarray:
        """Encode all pending photos and return (rows, D) float32, zeros where no photo was added."""
        for shape in list(self.pending):
            self._encode(shape)
        assert self.descriptors is not None
        with self.run.watch.of(NETWORK):
            return self.descriptors.cpu().numpy()

    def _zeros(self, dimension: int) -> Tensor:
        return torch.zeros(len(self.shard), dimension, device=self.run.device)

    def _num_pending(self, shape: torch.Size) -> int:
        return sum(len(rows) for rows, _ in self.pending[shape])

    def _encode(self, shape: torch.Size) -> None:
        run, stacks = self.run, self.pending.pop(shape)
        rows = torch.tensor([row - self.shard.start for rows, _ in stacks for row in rows])
        photos = stacks[0][1] if len(stacks) == 1 else torch.cat([photos for _, photos in stacks])
        size = batch_size_for(*shape[-2:], self.batch_size)
        for batch, batch_rows in zip(photos.split(size), rows.split(size), strict=True):
            with run.watch.of(NETWORK):
                encoded = describe_tensors(run.engine, batch)
            if self.descriptors is None:
                self.descriptors = self._zeros(encoded.shape[1])
            self.descriptors[batch_rows.to(run.device)] = encoded


# --- loading photos --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBatch:
    """Photos by size, (n, 3, H, W) uint8 with their rows in the list; and rows that failed, with the error message."""

    stacks: list[tuple[list[int], Tensor]]
    failures: list[tuple[int, str]]

    def pin_memory(self) -> "LoadedBatch":
        """The same batch in page-locked memory, for transfers during computation."""
        return replace(self, stacks=[(rows, photos.pin_memory()) for rows, photos in self.stacks])

    def share_memory_(self) -> "LoadedBatch":
        """Move the photos into shared memory."""
        for _, photos in self.stacks:
            photos.share_memory_()
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class _BatchLoader:
    """Open, resize and stack the photos of some rows.  A photo that cannot be opened does not stop the worker."""

    images: ImageList
    image_size: int | None
    crop: Crop | None = None
    memory: MemoryPool = field(default_factory=MemoryPool)

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
            stacks=[([opened[index] for index in indices], stack) for indices, stack in photos.stacks()],
            failures=failures,
        )

    def _open(self, path: Path, photos: PhotoStacks) -> None:
        if self.crop is not None:
            photos.add(crop_photo(open_image(path), self.crop, path))
        elif self.image_size is None:
            photos.open(path)
        else:
            photos.add(resize_shorter_side(open_image(path), self.image_size, path))


def _load_batches(run: ExtractionRun, batches: Iterable[range]) -> Generator[LoadedBatch]:
    """Load the photos of batches of rows, in order."""
    settings = run.settings
    return load_ahead(
        _BatchLoader(images=run.images, image_size=settings.image_size, crop=settings.crop),
        batches,
        num_workers=settings.num_workers,
        loader=choose_loader(settings.loader),
        pin_memory=run.device.type == "cuda",
    )
