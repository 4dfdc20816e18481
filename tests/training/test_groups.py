"""Classes and groups: the reference's groups, the paper's definition, the cache."""

import gzip
import hashlib
import json
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.config.sections import Grouping
from cosplace.errors import CheckpointError, DatasetError
from cosplace.photos.image_list import image_list
from cosplace.training.group_cache import cached_partition, open_groups
from cosplace.training.groups import advice, check_enough, partition


def plain_groups(names: list[str], grouping: Grouping) -> list[dict[tuple[int, int, int], list[str]]]:
    """The definition, one image at a time: per group, the images of each class."""
    classes = defaultdict(list)
    for name in sorted(names):
        fields = name.split("/")[-1].split("@")
        east, north, heading = float(fields[1]), float(fields[2]), float(fields[9])
        cell = (
            int(east // grouping.M * grouping.M),
            int(north // grouping.M * grouping.M),
            int(heading // grouping.alpha * grouping.alpha),
        )
        classes[cell].append(name)
    kept = {cell: images for cell, images in classes.items() if len(images) >= grouping.min_images_per_class}
    groups = defaultdict(dict)
    for cell, images in sorted(kept.items(), key=lambda item: item[1][0]):
        number = (
            cell[0] % (grouping.M * grouping.N) // grouping.M,
            cell[1] % (grouping.M * grouping.N) // grouping.M,
            cell[2] % (grouping.alpha * grouping.L) // grouping.alpha,
        )
        groups[number][cell] = images
    return list(groups.values())


def as_dicts(groups) -> list[dict[tuple[int, int, int], list[str]]]:
    result = []
    for number in range(len(groups)):
        group = groups[number]
        result.append(
            {
                tuple(group.cells[c].tolist()): [
                    group.image_name(i) for i in range(group.class_starts[c], group.class_starts[c + 1])
                ]
                for c in range(group.num_classes)
            }
        )
    return result


def name(east: float, north: float, heading: float, note: str = "") -> str:
    return f"@{east}@{north}@10@S@@@pano@@{heading}@@@@@{note}@.jpg"


@pytest.mark.parametrize("case", ["0", "1", "2", "3"])
def test_groups_equal_the_reference(reference_folder: Path, case: str) -> None:
    expected = json.loads((reference_folder / "groups.json").read_text())[case]
    paths = gzip.decompress((reference_folder / expected["paths"]).read_bytes()).decode().splitlines()
    grouping = Grouping(**expected["params"], min_images_per_class=expected["min_images_per_class"])
    groups = as_dicts(partition(image_list(Path("train"), paths), grouping))
    assert len(groups) == len(expected["groups"])
    for ours, theirs in zip(groups, expected["groups"], strict=True):
        digests = {
            cell: (len(images), hashlib.sha256("\n".join(sorted(images)).encode()).hexdigest()[:16])
            for cell, images in ours.items()
        }
        assert digests == {tuple(c["cls"]): (c["images"], c["sha256"]) for c in theirs}


coordinate = st.one_of(
    st.floats(-1e7, 1e7, allow_nan=False),
    st.integers(-1000, 1000).map(lambda n: n * 5.0),
    st.integers(-1000, 1000).map(lambda n: n * 10 - 0.01),
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(coordinate, coordinate, st.floats(-400, 800)), min_size=1, max_size=60),
    M=st.integers(1, 40),
    alpha=st.integers(1, 360),
    N=st.integers(1, 6),
    L=st.integers(1, 4),
    least=st.integers(1, 3),
)
def test_groups_follow_the_definition(rows, M, alpha, N, L, least) -> None:
    names = [name(*row, note=str(i)) for i, row in enumerate(rows)]
    grouping = Grouping(M=M, alpha=alpha, N=N, L=L, min_images_per_class=least)
    assert as_dicts(partition(image_list(Path("x"), names), grouping)) == plain_groups(names, grouping)


def test_places_far_apart_do_not_collide() -> None:
    rng = np.random.default_rng(0)
    names = [
        name(round(e, 2), round(n, 2), h)
        for e, n, h in zip(
            rng.uniform(0, 1e6, 3000), rng.uniform(0, 1e7, 3000), rng.integers(0, 360, 3000), strict=True
        )
    ]
    grouping = Grouping(M=1, alpha=1, min_images_per_class=1)
    assert as_dicts(partition(image_list(Path("x"), names), grouping)) == plain_groups(names, grouping)


@pytest.fixture
def photos(tmp_path: Path):
    folder = tmp_path / "train"
    folder.mkdir()
    names = [name(e, n, h, i) for e in range(0, 100, 5) for n in (0, 13) for h in (0, 40) for i in range(3)]
    return image_list(folder, names)


def test_cache_gives_the_same_groups_and_follows_the_names(photos, tmp_path: Path) -> None:
    grouping = Grouping(min_images_per_class=2)
    direct = as_dicts(partition(photos, grouping))
    cache = tmp_path / "cache"
    assert as_dicts(cached_partition(photos, grouping, cache)) == direct
    assert as_dicts(cached_partition(photos, grouping, cache)) == direct
    assert len(list(cache.iterdir())) == 1
    more = image_list(photos.folder, [photos.name(i) for i in range(len(photos))] + [name(0.5, 0.5, 0)])
    assert as_dicts(cached_partition(more, grouping, cache)) == as_dicts(partition(more, grouping)) != direct


def test_groups_travel_to_loading_processes(photos, tmp_path: Path) -> None:
    groups = cached_partition(photos, Grouping(min_images_per_class=1), tmp_path)
    travelled = pickle.dumps(groups)
    assert len(travelled) < 2000  # a path, not the arrays
    assert as_dicts(pickle.loads(travelled)) == as_dicts(groups)
    assert len(pickle.dumps(groups[0])) < 2000
    assert pickle.loads(pickle.dumps(groups[0])).image_name(2) == groups[0].image_name(2)
    in_memory = partition(photos, Grouping())
    assert as_dicts(pickle.loads(pickle.dumps(in_memory))) == as_dicts(in_memory)


@pytest.mark.parametrize("damage", ["truncate", "foreign", "empty"])
def test_damaged_cache_is_refused(photos, tmp_path: Path, damage: str) -> None:
    cached_partition(photos, Grouping(), tmp_path / "cache")
    path = next((tmp_path / "cache").iterdir())
    raw = path.read_bytes()
    path.write_bytes({"truncate": raw[:-100], "foreign": b"PK\x03\x04" + raw[4:], "empty": b""}[damage])
    with pytest.raises(CheckpointError, match="Delete it"):
        cached_partition(photos, Grouping(), tmp_path / "cache")
    with pytest.raises(CheckpointError):
        open_groups(path, None, photos.folder)


def test_too_few_groups_and_classes_say_what_to_change(photos) -> None:
    grouping = Grouping(N=1, L=1, groups_num=2)
    with pytest.raises(DatasetError, match="Use fewer groups, for example `--groups_num 1`"):
        check_enough(partition(photos, Grouping(N=1, L=1, groups_num=2, min_images_per_class=1)), grouping)
    with pytest.raises(DatasetError, match="--min_images_per_class 50"):
        check_enough(partition(photos, Grouping(min_images_per_class=100)), Grouping(min_images_per_class=100))
    one_class = Grouping(M=1000, alpha=360, N=1, L=1, groups_num=1)
    with pytest.raises(DatasetError, match="has 1 class"):
        check_enough(partition(photos, one_class), one_class)
    small = Grouping(groups_num=1, min_images_per_class=1)
    check_enough(partition(photos, small), small)
    assert "hundreds" in (advice(partition(photos, small), small) or "")


@pytest.mark.parametrize(
    ("bad", "said"),
    [("@12@34@@@@@@@@@.jpg", "heading"), ("@12@x@@@@@@@30@@.jpg", "is 'x', not a number"), ("photo.jpg", "utm_east")],
)
def test_a_name_without_numbers_is_named(bad: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        partition(image_list(Path("x"), [name(1, 2, 3), bad]), Grouping())
    assert bad in str(caught.value)
