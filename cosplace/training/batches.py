"""Training batches: random images of random classes of one CosPlace group.

Every random draw is a function of (seed, epoch, item): the class, its image, the augmentation.  Batches are therefore
the same for any number of loading workers, and a run resumes exactly, also in the middle of an epoch.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from cosplace.device import one_thread
from cosplace.errors import DatasetError, ImageError
from cosplace.photos.batch_memory import MemoryPool, PhotoStacks
from cosplace.photos.loading import load_ahead
from cosplace.training.augmentation import NUMBERS_PER_DRAW, Augmentation, augment, draw
from cosplace.training.groups import Group

CLASS_ORDER, ITEM, REPLACEMENTS = range(3)  # kinds of random draws: each has a stream of its own
NUMBERS_PER_ITEM = 1 + NUMBERS_PER_DRAW  # the image of the class, and its augmentation
STEPS_PER_ITEM = NUMBERS_PER_ITEM // 4  # of Philox's counter; each gives four numbers
assert NUMBERS_PER_ITEM % 4 == 0
MAX_REPLACEMENTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B training images: decoded and stacked by size, or already augmented."""

    stacks: list[torch.Tensor]  # each (n, 3, H, W) uint8; if augmented, one (B, 3, S, S) float32
    rows: list[torch.Tensor]  # for each stack, (n,) int64: the rows of its images in the batch
    augmented: bool
    labels: torch.Tensor  # (B,) int64; of the whole batch, also if the images are those of one of several processes
    draws: torch.Tensor  # (B, 12): random parameters of the augmentation, see augmentation.py
    unreadable: tuple[str, ...]  # messages about photos that other photos replaced

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory, for transfers to the GPU during computation."""
        return replace(self, stacks=[stack.pin_memory() for stack in self.stacks], labels=self.labels.pin_memory())

    def share_memory_(self) -> "Batch":
        """Move the tensors into memory shared with other processes."""
        for tensor in (*self.stacks, *self.rows, self.labels, self.draws):
            tensor.share_memory_()
        return self

    def images(self, settings: Augmentation, device: torch.device) -> torch.Tensor:
        """Images (B, 3, S, S) float32 on the device, augmented and normalized."""
        if self.augmented:
            return self.stacks[0].to(device, non_blocking=True)
        stacks = [
            augment(stack.to(device, non_blocking=True), self.draws[rows], settings)
            for stack, rows in zip(self.stacks, self.rows, strict=True)
        ]
        if len(stacks) == 1:
            return stacks[0]
        return torch.cat(stacks)[torch.argsort(torch.cat(self.rows)).to(device)]


class GroupImages:
    """The training items of a group in one epoch: item k is a class and a random image of it.

    Each pass over the classes has a new random order.  stream: different for groups that share an epoch, so that their
    random numbers are independent.
    """

    def __init__(self, group: Group, *, seed: int, epoch: int, settings: Augmentation, stream: int = 0) -> None:
        self.group = group
        self.stream = stream
        self.seed = seed
        self.epoch = epoch
        self.settings = settings
        self._create_caches()

    def _create_caches(self) -> None:
        self.class_order = lru_cache(maxsize=2)(self._class_order)
        self.memory = MemoryPool()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("class_order", "memory")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._create_caches()

    def _generator(self, kind: int, number: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(key=[self.seed, self.epoch], counter=[0, self.stream, kind, number])
        )

    def _class_order(self, number: int) -> np.ndarray:
        return self._generator(CLASS_ORDER, number).permutation(self.group.num_classes)

    def _numbers(self, indices: Sequence[int]) -> np.ndarray:
        """Random numbers of some items, (n, NUMBERS_PER_ITEM) in [0, 1), from one stream per epoch."""
        first, last = min(indices), max(indices)
        stream = np.random.Philox(key=[self.seed, self.epoch], counter=[first * STEPS_PER_ITEM, self.stream, ITEM, 0])
        numbers = np.random.Generator(stream).random((last + 1 - first, NUMBERS_PER_ITEM))
        return numbers[np.asarray(indices) - first]

    def class_of_item(self, index: int) -> int:
        """The class of item `index`."""
        num_passes, position = divmod(index, self.group.num_classes)
        return int(self.class_order(num_passes)[position])

    def image_of_item(self, index: int, class_size: int, number: float) -> int:
        """Which image of its class item `index` shows, 0 <= image < class_size; number: its random number in [0, 1)."""
        return int(number * class_size)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Decode the images of some items and draw their augmentations.

        Raises DatasetError if no image of a class can be opened.
        """
        numbers = self._numbers(indices)
        photos = PhotoStacks(len(indices), self.memory)
        labels, sizes, unreadable = [], [], []
        for index, number in zip(indices, numbers[:, 0].tolist(), strict=True):
            labels.append(self.class_of_item(index))
            sizes.append(self._open(photos, index, labels[-1], number, unreadable))
        stacks = photos.stacks()
        return Batch(
            stacks=[stack for _, stack in stacks],
            rows=[torch.tensor(rows) for rows, _ in stacks],
            augmented=False,
            labels=torch.tensor(labels),
            draws=torch.from_numpy(draw(numbers[:, 1:], np.array(sizes), self.settings)),
            unreadable=tuple(dict.fromkeys(unreadable)),
        )

    def _open(
        self, photos: PhotoStacks, index: int, label: int, number: float, unreadable: list[str]
    ) -> tuple[int, int]:
        """Open the image of item `index` that `number` in [0, 1) selects; returns its height and width.

        An image that cannot be opened is replaced by another one of its class.
        """
        first, size = int(self.group.class_starts[label]), self.group.class_size(label)
        others: np.random.Generator | None = None
        chosen = self.image_of_item(index, size, number)
        for _ in range(MAX_REPLACEMENTS):
            try:
                path, offset = self.group.image_path(first + chosen), self.group.view_offset(first + chosen)
                return photos.open(path) if offset is None else photos.open_view(path, offset)
            except ImageError as error:
                unreadable.append(str(error))
            others = others or self._generator(REPLACEMENTS, index)
            chosen = int(others.integers(size))
        raise DatasetError(f"No image of a class can be opened: {unreadable[-1]} Repair or remove these files.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMaker:
    """Makes the Batch of some items, the same in any thread or process."""

    groups: tuple[GroupImages, ...]  # one batch of each, in turn
    batch_size: int
    augment: bool  # already here, on the CPU
    own: range | None = None  # the images of this process, of each batch; None: all

    def __call__(self, indices: Sequence[int]) -> Batch:
        """Make batch number indices[0] // batch_size.  Raises DatasetError if no image of a class can be opened."""
        iteration, turn = divmod(indices[0] // self.batch_size, len(self.groups))
        items, first = self.groups[turn], iteration * self.batch_size
        own = self.own or range(self.batch_size)
        batch = items.batch(range(first + own.start, first + own.stop))
        if self.own is not None:
            labels = [items.class_of_item(index) for index in range(first, first + self.batch_size)]
            batch = replace(batch, labels=torch.tensor(labels))
        if not self.augment:
            return batch
        with one_thread():  # the same bits in threads and in processes
            images = batch.images(items.settings, torch.device("cpu"))
        return replace(batch, stacks=[images], rows=[torch.arange(len(images))], augmented=True)


def training_batches(
    *groups: GroupImages,
    batch_size: int,
    first_iteration: int,
    num_iterations: int,
    num_workers: int,
    augment_in_loader: bool,
    loader: str = "processes",
    pin_memory: bool = False,
    own: range | None = None,
) -> Generator[Batch]:
    """Batches of iterations first_iteration to num_iterations - 1 of an epoch, loaded ahead: one of each group in turn.

    own: the images of each batch to load, if other processes load the rest; the labels are those of all.  loader:
    threads or processes.  Raises DatasetError if no image of a class can be opened, LoadingError if a loading process
    is killed.
    """
    first, last = first_iteration * len(groups), num_iterations * len(groups)
    return load_ahead(
        BatchMaker(groups=groups, batch_size=batch_size, augment=augment_in_loader, own=own),
        [range(i * batch_size, (i + 1) * batch_size) for i in range(first, last)],
        num_workers=num_workers,
        loader=loader,
        pin_memory=pin_memory,
    )
