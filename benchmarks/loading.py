"""Batches of photos from two workers, during a training loop, as uint8.

The loop takes small training steps in the main thread, so that the workers compete for the interpreter's lock.  The CPU
time of these steps is subtracted from both sides: the loading is compared.  The plain side is a torch DataLoader with
two processes, Pillow, ToTensor and the default collate function.
"""

import hashlib
import time
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.photos import SIDE, as_bytes, open_with_pillow, write_photos
from benchmarks.stage import ExcludedTime, Options, Side, Stage, Work

if TYPE_CHECKING:
    import torch

    from cosplace.training.batches import GroupImages

BATCH = 32
NUM_WORKERS = 2
NUM_CLASSES = 32  # with one photo each
STEPS_PER_BATCH = 10
STRIDE = 16  # the network sees every 16th pixel


def _make_train_folder(folder: Path, size: int, options: Options) -> tuple[Path, int]:
    """A folder with one photo per class, and the number of batches."""
    from cosplace.photos.names import format_image_name

    names = [
        format_image_name(
            utm_east=540_005 + 10 * i,
            utm_north=4_170_005,
            zone=10,
            letter="S",
            latitude=37.7,
            longitude=-122.4,
            heading=5,
        )
        for i in range(NUM_CLASSES)
    ]
    write_photos(folder / "train", NUM_CLASSES, options, names)
    return folder / "train", max(1, size // BATCH)


# --- training loop ---------------------------------------------------------------------------------------------------


class _Loop:
    """A small training loop."""

    def __init__(self) -> None:
        import torch
        from torch import nn

        generator = torch.Generator().manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(NUM_CLASSES))
        self.network(torch.zeros(BATCH, 3, SIDE // STRIDE, SIDE // STRIDE))
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, std=0.01, generator=generator)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3)
        self.cpu_s = 0.0

    def train(self, images: "torch.Tensor", labels: "torch.Tensor") -> None:
        """Take some steps, and add up their CPU time."""
        from torch.nn.functional import cross_entropy

        started = time.thread_time()
        small = images[:, :, ::STRIDE, ::STRIDE].float()
        for _ in range(STEPS_PER_BATCH):
            self.optimizer.zero_grad()
            cross_entropy(self.network(small), labels).backward()
            self.optimizer.step()
        self.cpu_s += time.thread_time() - started


def _warmed_up_loop() -> _Loop:
    import torch

    loop = _Loop()
    loop.train(torch.zeros(BATCH, 3, SIDE, SIDE), torch.zeros(BATCH, dtype=torch.int64))
    loop.cpu_s = 0.0
    return loop


# --- plain -----------------------------------------------------------------------------------------------------------


class PlainPhotos:
    """Dataset of photos with their classes."""

    def __init__(self, folder: Path, length: int) -> None:
        self.paths = sorted(folder.iterdir())
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> "tuple[torch.Tensor, int]":
        label = index % len(self.paths)
        return open_with_pillow(self.paths[label]), label


def _plain_batches(folder: Path, num_batches: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    photos: Any = PlainPhotos(folder, num_batches * BATCH)
    return DataLoader(photos, batch_size=BATCH, num_workers=NUM_WORKERS)


def _prepare_plain(inputs: tuple[Path, int]) -> Work:
    folder, num_batches = inputs
    loop = _warmed_up_loop()
    open_with_pillow(next(folder.iterdir()))

    def work() -> ExcludedTime:
        for images, labels in _plain_batches(folder, num_batches):
            loop.train(images, labels)
        return ExcludedTime(None, loop.cpu_s)

    return work


def _plain_output(inputs: tuple[Path, int], _: None) -> dict[str, str]:
    folder, paths = inputs[0], sorted(inputs[0].iterdir())
    return {
        paths[label].name: _digest(as_bytes(image))
        for images, labels in _plain_batches(folder, NUM_CLASSES // BATCH)
        for image, label in zip(images, labels.tolist(), strict=True)
    }


# --- ours ------------------------------------------------------------------------------------------------------------


def _items(folder: Path) -> "GroupImages":
    from cosplace.config.sections import Grouping
    from cosplace.photos.scanning import scan_images
    from cosplace.training.augmentation import Augmentation
    from cosplace.training.batches import GroupImages
    from cosplace.training.groups import partition

    groups = partition(scan_images(folder), Grouping(N=1, L=1, min_images_per_class=1))
    return GroupImages(groups[0], seed=0, epoch=0, settings=Augmentation(image_size=SIDE))


def _our_batches(items: "GroupImages", num_batches: int, loader: str) -> Any:
    from cosplace.training.batches import training_batches

    return training_batches(
        items,
        batch_size=BATCH,
        first_iteration=0,
        num_iterations=num_batches,
        num_workers=NUM_WORKERS,
        augment_in_loader=False,
        loader=loader,
    )


def _prepare_ours(loader: str, inputs: tuple[Path, int]) -> Work:
    folder, num_batches = inputs
    loop, items = _warmed_up_loop(), _items(folder)
    items.batch([0])

    def work() -> ExcludedTime:
        with closing(_our_batches(items, num_batches, loader)) as batches:
            for batch in batches:
                loop.train(batch.stacks[0], batch.labels)
        return ExcludedTime(None, loop.cpu_s)

    return work


def _our_output(loader: str, inputs: tuple[Path, int], _: None) -> dict[str, str]:
    items = _items(inputs[0])
    with closing(_our_batches(items, NUM_CLASSES // BATCH, loader)) as batches:
        return {
            items.group.image_name(label): _digest(image)
            for batch in batches
            for stack, places in zip(batch.stacks, batch.rows, strict=True)
            for image, label in zip(stack, batch.labels[places].tolist(), strict=True)
        }


def _digest(image: "torch.Tensor") -> str:
    return hashlib.sha256(image.contiguous().numpy().data).hexdigest()


def _compare(plain: dict[str, str], ours: dict[str, str]) -> str | None:
    wrong = [name for name in plain.keys() | ours.keys() if plain.get(name) != ours.get(name)]
    return (
        f"{len(wrong)} of {len(plain)} photos have different pixels or are missing, for example {min(wrong)}"
        if wrong
        else None
    )


STAGES = tuple(
    Stage(
        name=f"load-{loader}",
        title=f"batches of 32 from 2 {loader}, during a training loop",
        unit="photos",
        make_inputs=_make_train_folder,
        plain=Side(prepare=_prepare_plain, output=_plain_output),
        ours=Side(prepare=partial(_prepare_ours, loader), output=partial(_our_output, loader)),
        compare=_compare,
        full_size=4096,
        quick_size=96,
        targets={"cpu_ratio": target},
        growth_sizes=(512, 1024, 2048),
        imports=("torch", "torchvision", "torch.utils.data", "PIL.Image", "cosplace.training.batches"),
        memory=None,
    )
    for loader, target in (("processes", 2.7), ("threads", 5.0))
)
