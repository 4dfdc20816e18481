"""What is fed to the network: the batches of one CosPlace group; a database with its queries.

Every random choice of training is a pure function of (seed, epoch, item): which class, which of its images, how it is
augmented.  Batches are therefore the same for any number of loading processes, and a run resumes in mid-epoch exactly.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from cosplace.device import one_thread
from cosplace.errors import DatasetError, ImageError
from cosplace.photos.batch_memory import PhotoStacks, SpareMemory
from cosplace.photos.loading import load_ahead
from cosplace.training.augmentation import NUMBERS_PER_DRAW, Augmentation, augment, draw
from cosplace.training.groups import Group

CLASS_ORDER, ITEM, REPLACEMENTS = range(3)  # the kinds of random draws, so that their streams never meet
NUMBERS_PER_ITEM = 1 + NUMBERS_PER_DRAW  # which image of the class, and how it is changed
STEPS_PER_ITEM = NUMBERS_PER_ITEM // 4  # of Philox's counter, each of which gives four numbers
assert NUMBERS_PER_ITEM % 4 == 0
MAX_REPLACEMENTS = 100


# --- a database with its queries -------------------------------------------------------------------------------------


# --- one group -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B training images: either raw, stacked by shape, or augmented."""

    stacks: list[torch.Tensor]  # each (n, 3, H, W) uint8; or one (B, 3, S, S) float32, augmented
    places: list[torch.Tensor]  # for each stack, (n,) int64: the places of its images in the batch
    labels: torch.Tensor  # (B,) int64
    draws: torch.Tensor  # (B, 12)
    unreadable: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for transfers beside computation."""
        return replace(self, stacks=[stack.pin_memory() for stack in self.stacks], labels=self.labels.pin_memory())

    def share_memory_(self) -> "Batch":
        """Move its tensors into memory that other processes see."""
        for tensor in (*self.stacks, *self.places, self.labels, self.draws):
            tensor.share_memory_()
        return self

    def images(self, settings: Augmentation, device: torch.device) -> torch.Tensor:
        """(B, 3, S, S) float32: the images on the device, augmented and normalized."""
        if self.stacks[0].dtype != torch.uint8:
            return self.stacks[0].to(device, non_blocking=True)
        stacks = [
            augment(stack.to(device, non_blocking=True), self.draws[places], settings)
            for stack, places in zip(self.stacks, self.places, strict=True)
        ]
        if len(stacks) == 1:
            return stacks[0]
        return torch.cat(stacks)[torch.argsort(torch.cat(self.places)).to(device)]


class GroupImages:
    """The endless stream of training items of a group in one epoch; item k is a class and a random image of it.

    Classes come in passes, each a new random order of all classes.
    """

    def __init__(self, group: Group, *, seed: int, epoch: int, settings: Augmentation) -> None:
        self.group = group
        self.seed = seed
        self.epoch = epoch
        self.settings = settings
        self._begin()

    def _begin(self) -> None:
        self.class_order = lru_cache(maxsize=2)(self._class_order)
        self.memory = SpareMemory()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("class_order", "memory")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._begin()

    def _generator(self, kind: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, self.epoch], counter=[0, 0, kind, number]))

    def _class_order(self, number: int) -> np.ndarray:
        return self._generator(CLASS_ORDER, number).permutation(self.group.num_classes)

    def _numbers(self, indices: Sequence[int]) -> np.ndarray:
        """The random numbers of some items, (n, NUMBERS_PER_ITEM) in [0, 1): stretches of one stream."""
        first, last = min(indices), max(indices)
        stream = np.random.Philox(key=[self.seed, self.epoch], counter=[first * STEPS_PER_ITEM, 0, ITEM, 0])
        numbers = np.random.Generator(stream).random((last + 1 - first, NUMBERS_PER_ITEM))
        return numbers[np.asarray(indices) - first]

    def batch(self, indices: Sequence[int]) -> Batch:
        """These items as they are, with what is drawn for each.

        Raises DatasetError when no image of some class can be opened.
        """
        numbers = self._numbers(indices)
        photos = PhotoStacks(len(indices), self.memory)
        labels, sizes, unreadable = [], [], []
        for index, number in zip(indices, numbers[:, 0].tolist(), strict=True):
            passes, place = divmod(index, self.group.num_classes)
            labels.append(int(self.class_order(passes)[place]))
            sizes.append(self._open(photos, index, labels[-1], number, unreadable))
        stacks = photos.stacks()
        return Batch(
            stacks=[stack for _, stack in stacks],
            places=[torch.tensor(places) for places, _ in stacks],
            labels=torch.tensor(labels),
            draws=torch.from_numpy(draw(numbers[:, 1:], np.array(sizes), self.settings)),
            unreadable=tuple(dict.fromkeys(unreadable)),
        )

    def _open(
        self, photos: PhotoStacks, index: int, label: int, number: float, unreadable: list[str]
    ) -> tuple[int, int]:
        """Open the image of item `index` that `number` in [0, 1) chooses: its height and width.

        Another of its class takes the place of one that cannot be opened.
        """
        first, size = int(self.group.class_starts[label]), self.group.class_size(label)
        others: np.random.Generator | None = None
        chosen = int(number * size)
        for _ in range(MAX_REPLACEMENTS):
            try:
                return photos.open(self.group.folder / self.group.image_name(first + chosen))
            except ImageError as error:
                unreadable.append(str(error))
            others = others or self._generator(REPLACEMENTS, index)
            chosen = int(others.integers(size))
        raise DatasetError(f"No image of a whole class can be opened: {unreadable[-1]}  Mend or remove these files.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMaker:
    """From the numbers of some items to their Batch, the same in any thread or process."""

    items: GroupImages
    augmented: bool  # right here, on the CPU

    def __call__(self, indices: Sequence[int]) -> Batch:
        """The batch of these items.  Raises DatasetError when no image of some class can be opened."""
        batch = self.items.batch(indices)
        if not self.augmented:
            return batch
        with one_thread():  # as in a loading process: the same bits with any number of them
            images = batch.images(self.items.settings, torch.device("cpu"))
        return replace(batch, stacks=[images], places=[torch.arange(len(batch.labels))])


def training_batches(
    items: GroupImages,
    *,
    batch_size: int,
    first_iteration: int,
    num_iterations: int,
    num_workers: int,
    augment_in_loader: bool,
    loader: str = "processes",
    pin_memory: bool = False,
) -> Generator[Batch]:
    """The batches of iterations first_iteration … num_iterations - 1 of an epoch.

    loader: threads or processes.  Raises DatasetError when no image of some class can be opened, LoadingError when
    a loading process is killed.
    """
    return load_ahead(
        BatchMaker(items=items, augmented=augment_in_loader),
        [range(i * batch_size, (i + 1) * batch_size) for i in range(first_iteration, num_iterations)],
        num_workers=num_workers,
        loader=loader,
        pin_memory=pin_memory,
    )
