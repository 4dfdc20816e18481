"""Batches of a group, and databases with queries."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from cosplace.config.sections import Grouping
from cosplace.errors import DatasetError, ImageError
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import scan_images
from cosplace.training.augmentation import Augmentation, augment
from cosplace.training.batches import Batch, GroupImages, training_batches
from cosplace.training.group_cache import cached_partition
from cosplace.training.groups import Group, partition
from tests.synthetic_dataset import write_dataset, write_place

SETTINGS = Augmentation(image_size=32)


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def first_group(folder: Path) -> Group:
    return partition(scan_images(folder), Grouping(N=1, L=1, min_images_per_class=2))[0]


def batches(group: Group, *, epoch: int = 3, seed: int = 5, **options) -> list[Batch]:
    items = GroupImages(group, seed=seed, epoch=epoch, settings=SETTINGS)
    defaults = {"batch_size": 8, "first_iteration": 0, "num_iterations": 9, "num_workers": 0, "augment_in_loader": True}
    return list(training_batches(items, **{**defaults, **options}))


def test_batches_do_not_depend_on_workers_or_on_where_they_start(dataset_folder: Path) -> None:
    group = first_group(dataset_folder / "train")
    whole = batches(group)
    assert len(whole) == 9
    for other in (batches(group, num_workers=2), batches(group, num_workers=1)):
        for a, b in zip(whole, other, strict=True):
            assert torch.equal(a.stacks[0], b.stacks[0])
            assert torch.equal(a.labels, b.labels)
    for a, b in zip(whole[4:], batches(group, first_iteration=4, num_workers=2), strict=True):
        assert torch.equal(a.stacks[0], b.stacks[0])
    assert not torch.equal(whole[0].stacks[0], batches(group, epoch=4)[0].stacks[0])
    assert not torch.equal(whole[0].stacks[0], batches(group, seed=6)[0].stacks[0])


def test_each_pass_shows_each_class_once_with_a_random_image_of_it(dataset_folder: Path) -> None:
    group = first_group(dataset_folder / "train")
    items = GroupImages(group, seed=0, epoch=0, settings=SETTINGS)
    passes = [items.batch(range(p * group.num_classes, (p + 1) * group.num_classes)).labels.tolist() for p in range(3)]
    assert all(sorted(labels) == list(range(group.num_classes)) for labels in passes)
    assert passes[0] != passes[1]
    many = items.batch(range(30 * group.num_classes))
    (photos,) = many.stacks
    seen = {photo.numpy().tobytes() for photo in photos[many.labels == 0]}
    of_class = {open_image(group.folder / group.image_name(i)).numpy().tobytes() for i in range(group.class_size(0))}
    assert seen == of_class


def test_an_item_is_the_same_in_any_batch(dataset_folder: Path) -> None:
    items = GroupImages(first_group(dataset_folder / "train"), seed=1, epoch=2, settings=SETTINGS)
    whole, some = items.batch(range(40)), items.batch([31, 7, 7, 38])
    places = [31, 7, 7, 38]
    assert torch.equal(whole.stacks[0][places], some.stacks[0])
    assert torch.equal(whole.labels[places], some.labels)
    assert torch.equal(whole.draws[places], some.draws)
    assert len(whole.draws.unique(dim=0)) == 40


@pytest.mark.parametrize("follow_outside", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_listed_photos_outside_the_folder_are_not_opened(tmp_path: Path, cached: bool, follow_outside: bool) -> None:
    folder = tmp_path / "train"
    names = sorted(write_place(folder, 1, variant).name for variant in range(3))
    (tmp_path / "train_images_paths.txt").write_text("".join(f"{name}\n" for name in names))
    images, grouping = scan_images(folder, follow_outside=follow_outside), Grouping(N=1, L=1, min_images_per_class=2)
    groups = cached_partition(images, grouping, tmp_path / "cache") if cached else partition(images, grouping)
    group: Group = pickle.loads(pickle.dumps(groups[0]))  # as in a loading process
    (folder / names[1]).rename(tmp_path / names[1])
    (folder / names[1]).symlink_to(tmp_path / names[1])
    assert group.image_path(0) == folder / names[0]
    if follow_outside:
        assert group.image_path(1) == folder / names[1]
        return
    with pytest.raises(ImageError, match="outside"):
        group.image_path(1)
    batch = GroupImages(group, seed=0, epoch=0, settings=SETTINGS).batch(range(30))
    assert len(batch.unreadable) == 1 and names[1] in batch.unreadable[0]


def test_augmenting_in_the_loader_or_later_gives_the_same(dataset_folder: Path) -> None:
    group = first_group(dataset_folder / "train")
    for inside, later in zip(batches(group), batches(group, augment_in_loader=False), strict=True):
        assert later.stacks[0].dtype == torch.uint8
        outside = later.images(SETTINGS, torch.device("cpu"))
        assert torch.allclose(inside.images(SETTINGS, torch.device("cpu")), outside, atol=1e-5)


def test_images_of_any_size_share_a_batch(dataset_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_folder / "train", tmp_path / "train")
    for place in range(0, 24, 2):
        for variant in range(6, 14):
            write_place(tmp_path / "train", place, variant, side=80, suffix=".PNG")
    group = first_group(tmp_path / "train")
    items = GroupImages(group, seed=0, epoch=0, settings=SETTINGS)
    batch = next(iter(training_batches(
        items, batch_size=16, first_iteration=0, num_iterations=1, num_workers=0, augment_in_loader=False
    )))  # fmt: skip
    assert len(batch.stacks) == 2
    images = batch.images(SETTINGS, torch.device("cpu"))
    for k in range(16):
        item = items.batch([k])
        alone = augment(item.stacks[0], item.draws, SETTINGS)
        assert torch.allclose(images[k], alone[0], atol=1e-5)
        assert batch.labels[k] == item.labels


def test_unreadable_photos_are_replaced_and_named(dataset_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_folder / "train", tmp_path / "train")
    bad = sorted((tmp_path / "train").rglob("*p3v*"))[:3]
    for path in bad:
        path.write_bytes(path.read_bytes()[:100])
    found = batches(first_group(tmp_path / "train"), num_iterations=40, num_workers=2)
    named = {message for batch in found for message in batch.unreadable}
    assert len(named) == 3
    assert all(any(path.name in message for message in named) for path in bad)
    assert all(len(batch.labels) == 8 for batch in found)


def test_a_class_without_any_readable_photo_stops(dataset_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_folder / "train", tmp_path / "train")
    for path in (tmp_path / "train").rglob("*p3v*"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="Repair or remove"):
        batches(first_group(tmp_path / "train"), num_iterations=40, num_workers=1)
