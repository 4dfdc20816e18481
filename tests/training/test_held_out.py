"""Held-out training photos: which they are, what is left of the groups, and that the network never sees them."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.config.methods import MethodSettings
from cosplace.config.sections import Grouping, TrainConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError
from cosplace.models.training_card import MIN_UNSEEN
from cosplace.photos.image_list import ImageList, image_list
from cosplace.photos.scanning import scan_images
from cosplace.photos.viewpoints import SEEN, UNSEEN, viewpoints_of_names
from cosplace.training.data import _set_of_places, open_training_data
from cosplace.training.eigenplaces import partition_views
from cosplace.training.group_cache import cached_partition, cached_without
from cosplace.training.groups import Groups, partition
from cosplace.training.held_out import FEWEST, RULE, hold_out, num_held_out
from cosplace.training.loop import train
from cosplace.training.place_sources import _of_ids
from cosplace.training.resume import resumed_config
from cosplace.training.seen_photos import digest_held_out_photos, digest_training_photos
from cosplace.training.setup import prepare
from tests.synthetic_dataset import settings, write_dataset

ALL = {"N": 1, "L": 1, "groups_num": 1}


def street(num_photos: int, seed: int = 0, zone: str = "10@S", start_m: float = 0) -> ImageList:
    """Photos along a street of 400 m, in random directions."""
    rng = np.random.default_rng(seed)
    names = [
        f"@{550_000 + start_m + rng.uniform(0, 400):.2f}@{4_180_000 + rng.uniform(0, 15):.2f}@{zone}@@@p{number}@@"
        f"{rng.integers(360)}@@@@202001@@.jpg"
        for number in range(num_photos)
    ]
    return image_list(Path("street"), names)


def classes(groups: Groups) -> list[dict[tuple, list[str]]]:
    """The photos of each class of each group, by its cell."""
    return [
        {
            tuple(cell): [group.image_name(row) for row in range(*group.class_starts[number : number + 2])]
            for number, cell in enumerate(group.cells.tolist())
        }
        for group in groups
    ]


def rows_left(images: ImageList, groups: Groups, without: Groups) -> list[int]:
    """Rows of the list without the photos that only the groups have."""
    gone = {name for one in classes(groups) for photos in one.values() for name in photos}
    gone -= {name for one in classes(without) for photos in one.values() for name in photos}
    return [row for row in range(len(images)) if images.name(row) not in gone]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_are_the_classes_of_the_other_photos(seed: int) -> None:
    images, grouping = street(900, seed), Grouping(M=10, alpha=60, min_images_per_class=3, **ALL)
    groups = partition(images, grouping)
    found = hold_out(groups, 1, 60, grouping.min_images_per_class)
    rows = rows_left(images, groups, found)
    assert len(rows) == 840
    assert classes(found) == classes(partition(images.subset(rows), grouping))
    assert np.array_equal(found.cells, groups.cells)
    assert classes(hold_out(groups, 1, 60, grouping.min_images_per_class)) == classes(found)


def test_each_class_keeps_its_minimum_and_every_other_photo_can_be_held_out() -> None:
    grouping = Grouping(M=10, alpha=60, min_images_per_class=3, **ALL)
    groups = partition(street(900), grouping)
    most = int((np.diff(groups.class_starts) - 3).sum())
    assert num_held_out(groups, 1, 3, most) == most
    assert (np.diff(hold_out(groups, 1, most, 3).class_starts) == 3).all()
    with pytest.raises(ConfigError, match=rf"--held_out_photos {most + 1}: at most {most} of the .* class keeps 3"):
        num_held_out(groups, 1, 3, most + 1)


def test_only_photos_of_the_first_groups_are_held_out_and_groups_keep_their_numbers() -> None:
    grouping = Grouping(M=10, alpha=60, N=2, L=2, min_images_per_class=2)
    groups = partition(street(1500), grouping)
    before, after = classes(groups), classes(hold_out(groups, 2, 50, grouping.min_images_per_class))
    assert len(before) == len(after) == 8
    assert before[2:] == after[2:]
    for one, left in zip(before[:2], after[:2], strict=True):
        assert left.keys() == one.keys() and all(set(left[cell]) <= set(one[cell]) for cell in left)
    num_before, num_left = (sum(len(photos) for one in some[:2] for photos in one.values()) for some in (before, after))
    assert num_left == num_before - 50


def test_a_photo_of_two_classes_is_held_out_of_both() -> None:
    grouping = Grouping(M=15, alpha=360, N=1, L=1, groups_num=1, min_images_per_class=2)
    groups = partition_views(street(900), grouping, MethodSettings(method="eigenplaces", max_view_error=180))
    without = hold_out(groups, 2, 40, grouping.min_images_per_class)
    before, after = (
        [name for photos in one.values() for name in photos] for one in (classes(groups)[0], classes(groups)[1])
    )
    assert set(before) & set(after)
    left = [name for one in classes(without) for photos in one.values() for name in photos]
    gone = set(before) | set(after)
    gone -= set(left)
    assert len(gone) == 40
    assert len(left) == sum(name not in gone for name in before + after)
    assert without.offsets is not None and len(without.offsets) == len(left)


def test_zones_and_labels_stay_with_their_photos(tmp_path: Path) -> None:
    both = [street(200, 1), street(200, 2, "11@S", start_m=1000)]
    labels = image_list(Path(), [one.name(row) for one in both for row in range(200)])
    images = ImageList(
        folder=tmp_path, names=(photos := image_list(tmp_path, [f"{row:03}.jpg" for row in range(400)])).names,
        starts=photos.starts, labels=labels,
    )  # fmt: skip
    grouping = Grouping(M=20, alpha=90, min_images_per_class=2, **ALL)
    groups = cached_partition(images, grouping, tmp_path / "cache")
    found = cached_without(groups, images, 1, 50, grouping.min_images_per_class)
    rows = rows_left(images, groups, found)
    assert len(rows) == 350
    other = partition(images.subset(rows), grouping)
    assert classes(found) == classes(other)
    assert found.zones is not None and other.zones is not None and found.zones.tolist() == other.zones.tolist()
    travelled = pickle.dumps(found)
    assert len(travelled) < 2000 and classes(pickle.loads(travelled)) == classes(found)
    group, expected = pickle.loads(pickle.dumps(found[0])), other[0]
    assert [group.image_label(i) for i in range(5)] == [expected.image_label(i) for i in range(5)]
    assert classes(cached_partition(images, grouping, tmp_path / "cache")) == classes(groups)


def test_another_rule_is_not_read_from_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, grouping = street(200), Grouping(M=20, alpha=90, min_images_per_class=2, **ALL)
    groups = cached_partition(images, grouping, tmp_path)
    cached_without(groups, images, 1, 50, grouping.min_images_per_class)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr("cosplace.training.group_cache.RULE", RULE + 1)
    cached_without(groups, images, 1, 50, grouping.min_images_per_class)
    assert len(list(tmp_path.iterdir())) == 3


def test_photos_are_held_out_if_nearly_all_would_be_trained_on() -> None:
    images = street(6000)
    every = Grouping(M=20, alpha=90, min_images_per_class=2, **ALL)
    groups = partition(images, every)
    num_trained = len(groups.image_starts)
    assert num_trained > 6000 - MIN_UNSEEN
    assert num_held_out(groups, 1, 2) == num_trained // 20
    assert num_held_out(groups, 1, 2, 0) == 0 and num_held_out(groups, 1, 2, 7) == 7
    assert num_held_out(partition(street(1500), every), 1, 2) == FEWEST > MIN_UNSEEN  # 5% would be too few
    assert num_held_out(partition(street(950), every), 1, 2) == 0  # an eighth would be too few
    grouping = Grouping(M=20, alpha=90, N=2, L=2, min_images_per_class=2)
    assert num_held_out(partition(images, grouping), 2, 2) == 0  # other groups have enough photos
    assert num_held_out(partition(images, grouping), 4, 2) == num_trained // 20
    small = Grouping(M=20, alpha=90, min_images_per_class=100, **ALL)
    assert num_held_out(partition(images, small), 1, 100) == 0  # most photos are in small classes
    edges = replace(groups, num_scanned=groups.num_scanned + 500)
    assert num_held_out(edges, 1, 2) == num_trained // 20  # some are: they are not like the others
    many = partition(street(50_000), every)
    assert num_held_out(many, 1, 2) == 2000
    assert num_held_out(groups, 1, int(np.diff(groups.class_starts).max())) == 0  # no class has photos to spare


@pytest.mark.parametrize(("has_positions", "num_left"), [(True, 1075), (False, 1200)], ids=["positions", "none"])
def test_photos_of_given_places_are_held_out_if_they_have_positions(has_positions: bool, num_left: int) -> None:
    images = street(1200)
    east = np.array([float(images.name(row).split("@")[1]) for row in range(len(images))])
    ids = [str(place) for place in np.argsort(np.argsort(east)) // 6]  # neighbors along the street
    if not has_positions:  # the receiver had no fix
        images = image_list(Path("street"), [f"@0@0@@@@@p{row}@@@@@@202001@@.jpg" for row in range(len(images))])
    places = _of_ids(images, ids, Grouping(min_images_per_class=4), "a table")
    config = from_values(TrainConfig, {"train_set_folder": "street", "method": "multi_similarity"})
    assert len(_set_of_places(config, places).groups.image_starts) == num_left


@pytest.mark.parametrize("method", ["cosplace", "multi_similarity"])
def test_the_card_of_the_model_does_not_have_them(tmp_path: Path, caplog, method: str) -> None:
    folder = write_dataset(tmp_path, num_places=16)
    for path in sorted(folder.rglob("@*")):  # latitude and longitude of the helper are the same for all photos
        fields = path.name.split("@")
        month = f"20200{1 + int(fields[7][-1])}"  # several photos of a place are at one position
        path.rename(path.with_name("@".join([*fields[:5], "", "", *fields[7:13], month, *fields[14:]])))
    names = {"alpha": 360, "M": 10, "min_images_per_class": 2, "method": method, "L": 1}
    names |= {"photos_per_place": 2} if method == "multi_similarity" else {}
    everything = open_training_data(settings(folder, **names))
    images = scan_images(folder / "train")
    viewpoints = viewpoints_of_names(images)
    digest = digest_training_photos(everything)
    assert digest is not None and (digest.status(viewpoints) == SEEN).all()
    with caplog.at_level("INFO"):
        data = open_training_data(settings(folder, held_out_photos=20, **names))
    assert "20 of 96 training photos held out" in caplog.text and "--held_out_photos 0" in caplog.text
    left = {name for photos in classes(data.groups)[0].values() for name in photos}
    digest = digest_training_photos(data)
    assert digest is not None and len(left) <= 76
    held_out = digest_held_out_photos(data)
    assert held_out is not None and digest_held_out_photos(everything) is None
    before = {name for photos in classes(everything.groups)[0].values() for name in photos}
    for row, (status, is_held_out) in enumerate(
        zip(digest.status(viewpoints), held_out.status(viewpoints), strict=True)
    ):
        assert status == (SEEN if images.name(row) in left else UNSEEN)
        assert is_held_out == (SEEN if images.name(row) in before - left else UNSEEN)
    assert data.digest() != everything.digest()  # so a run is not continued with other photos
    assert data.digest() == open_training_data(settings(folder, held_out_photos=20, seed=5, **names)).digest()


def test_places_of_a_batch_stay(tmp_path: Path) -> None:
    """Otherwise, batches of more places than there are would never be complete."""
    folder = write_dataset(tmp_path, num_places=10, images_per_place=4)
    names = {"M": 10, "alpha": 360, "L": 1, "min_images_per_class": 3, "method": "multi_similarity"}
    names |= {"photos_per_place": 2, "batch_size": 20}
    assert len(open_training_data(settings(folder, held_out_photos=10, **names)).groups.cells) == 10
    with pytest.raises(ConfigError, match="--held_out_photos 11: at most 10 of the 40 photos"):
        open_training_data(settings(folder, held_out_photos=11, **names))


def test_runs_of_earlier_versions_are_resumed_with_all_photos(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", num_places=6)
    preparation = prepare(settings(folder, M=10, alpha=360, L=1, epochs_num=1, iterations_per_epoch=1))
    train(preparation, tmp_path / "run")
    file = tmp_path / "run" / "last_checkpoint.pth"
    with pytest.raises(ConfigError, match=r"--held_out_photos 5 contradicts .* trained with the default"):
        resumed_config(str(file), {"held_out_photos": 5})
    content = torch.load(file, weights_only=True)
    del content["config"]["held_out_photos"]
    torch.save(content, file)
    assert resumed_config(str(file), {}).training.held_out_photos == 0
    assert resumed_config(str(file), {"held_out_photos": 0}).training.held_out_photos == 0
    with pytest.raises(ConfigError, match="--held_out_photos 5 contradicts"):
        resumed_config(str(file), {"held_out_photos": 5})
