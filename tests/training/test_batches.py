"""Batches of a group, and databases with queries."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.config.sections import Grouping
from cosplace.errors import DatasetError
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.training.augmentation import Augmentation, augment
from cosplace.training.batches import Batch, GroupImages, training_batches
from cosplace.training.groups import Group, partition
from tests.streets import write_place, write_streets

SETTINGS = Augmentation(image_size=32)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_streets(tmp_path_factory.mktemp("streets"))


def first_group(folder: Path) -> Group:
    return partition(scan_images(folder), Grouping(N=1, L=1, min_images_per_class=2))[0]


def batches(group: Group, *, epoch: int = 3, seed: int = 5, **options) -> list[Batch]:
    items = GroupImages(group, seed=seed, epoch=epoch, settings=SETTINGS)
    defaults = {"batch_size": 8, "first_iteration": 0, "num_iterations": 9, "num_workers": 0, "augment_in_loader": True}
    return list(training_batches(items, **{**defaults, **options}))


def test_batches_do_not_depend_on_workers_or_on_where_they_start(streets: Path) -> None:
    group = first_group(streets / "train")
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


def test_each_pass_shows_each_class_once_with_a_random_image_of_it(streets: Path) -> None:
    group = first_group(streets / "train")
    items = GroupImages(group, seed=0, epoch=0, settings=SETTINGS)
    passes = [items.batch(range(p * group.num_classes, (p + 1) * group.num_classes)).labels.tolist() for p in range(3)]
    assert all(sorted(labels) == list(range(group.num_classes)) for labels in passes)
    assert passes[0] != passes[1]
    many = items.batch(range(30 * group.num_classes))
    (photos,) = many.stacks
    seen = {photo.numpy().tobytes() for photo in photos[many.labels == 0]}
    of_class = {open_image(group.folder / group.image_name(i)).numpy().tobytes() for i in range(group.class_size(0))}
    assert seen == of_class


def test_an_item_is_the_same_in_any_batch(streets: Path) -> None:
    items = GroupImages(first_group(streets / "train"), seed=1, epoch=2, settings=SETTINGS)
    whole, some = items.batch(range(40)), items.batch([31, 7, 7, 38])
    places = [31, 7, 7, 38]
    assert torch.equal(whole.stacks[0][places], some.stacks[0])
    assert torch.equal(whole.labels[places], some.labels)
    assert torch.equal(whole.draws[places], some.draws)
    assert len(whole.draws.unique(dim=0)) == 40


def test_augmenting_in_the_loader_or_later_gives_the_same(streets: Path) -> None:
    group = first_group(streets / "train")
    for inside, later in zip(batches(group), batches(group, augment_in_loader=False), strict=True):
        assert later.stacks[0].dtype == torch.uint8
        outside = later.images(SETTINGS, torch.device("cpu"))
        assert torch.allclose(inside.images(SETTINGS, torch.device("cpu")), outside, atol=1e-5)


def test_images_of_any_size_share_a_batch(streets: Path, tmp_path: Path) -> None:
    shutil.copytree(streets / "train", tmp_path / "train")
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


def test_unreadable_photos_are_replaced_and_named(streets: Path, tmp_path: Path) -> None:
    shutil.copytree(streets / "train", tmp_path / "train")
    bad = sorted((tmp_path / "train").rglob("*p3v*"))[:3]
    for path in bad:
        path.write_bytes(path.read_bytes()[:100])
    found = batches(first_group(tmp_path / "train"), num_iterations=40, num_workers=2)
    named = {message for batch in found for message in batch.unreadable}
    assert len(named) == 3
    assert all(any(path.name in message for message in named) for path in bad)
    assert all(len(batch.labels) == 8 for batch in found)


def test_a_class_without_any_readable_photo_stops(streets: Path, tmp_path: Path) -> None:
    shutil.copytree(streets / "train", tmp_path / "train")
    for path in (tmp_path / "train").rglob("*p3v*"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="Mend or remove"):
        batches(first_group(tmp_path / "train"), num_iterations=40, num_workers=1)


def test_databases_with_queries(streets: Path, tmp_path: Path) -> None:
    test = open_retrieval_dataset(streets / "test")
    assert (test.name, len(test.database), len(test.queries)) == ("test/queries_v1", 24, 12)
    assert open_retrieval_dataset(streets / "val").name == "val/queries"
    assert np.allclose(test.query_positions[:, 0].min(), 550_000 + 20_000 + 2)
    with pytest.raises(DatasetError, match=r"queries_night.*it holds queries_v1: choose with --queries_folder"):
        open_retrieval_dataset(streets / "test", "queries_night")
    with pytest.raises(DatasetError, match="no folder `database`"):
        open_retrieval_dataset(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        open_retrieval_dataset(tmp_path / "x")
    (tmp_path / "database").mkdir()
    (tmp_path / "queries").mkdir()
    write_place(tmp_path / "database", 0, 0)
    with pytest.raises(DatasetError, match="queries holds no photos"):
        open_retrieval_dataset(tmp_path)


def test_an_at_sign_in_a_folder_does_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "me@home" / "@set@1"
    write_place(folder / "database", 1, 0)
    write_place(folder / "queries", 1, 1)
    test = open_retrieval_dataset(folder)
    assert test.database_positions.tolist() == [[550012, 4180000]]
