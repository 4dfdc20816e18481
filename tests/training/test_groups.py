"""Classes and groups: the reference's groups, the paper's definition, the cache."""

import gzip
import hashlib
import json
import os
import pickle
import re
from collections import defaultdict
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.config.sections import Grouping
from cosplace.errors import CheckpointError, DatasetError
from cosplace.photos.image_list import image_list
from cosplace.training.advice import advice, check_enough, flags_text, uneven_headings
from cosplace.training.group_cache import FORMAT, HEADER_BYTES, cached_partition, open_groups
from cosplace.training.groups import class_of, partition, training_photos

FLAGS = [field.name for field in fields(Grouping)]


def plain_groups(names: list[str], grouping: Grouping) -> list[dict[tuple[int, int, int], list[str]]]:
    """The definition, one image at a time: per group, the images of each class."""
    classes = defaultdict(list)
    for name in sorted(names):
        fields = name.split("/")[-1].split("@")
        east, north, heading = float(fields[1]), float(fields[2]), float(fields[9]) % 360 % 360
        if east == north == 0:  # unknown
            continue
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


def name(east: float, north: float, heading: float | str, note: str = "", zone: str = "10@S@@") -> str:
    return f"@{east}@{north}@{zone}@pano@@{heading}@@@@@{note}@.jpg"


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


@pytest.mark.parametrize("damage", ["truncate", "foreign", "empty", "deep", "arrays", "counts", "pipe", "hole"])
def test_damaged_cache_is_refused(photos, tmp_path: Path, damage: str) -> None:
    cached_partition(photos, Grouping(), tmp_path / "cache")
    path = next((tmp_path / "cache").iterdir())
    raw = path.read_bytes()
    wrong = {
        "truncate": raw[:-100],
        "foreign": b"PK\x03\x04" + raw[4:],
        "empty": b"",
        "deep": b"[" * HEADER_BYTES,
        "arrays": raw.replace(b'"arrays": {', b'"arrays": [], "others": {', 1),
        "counts": raw.replace(b'"num_scanned": ', b'"num_scanned": "a", "x": ', 1),
    }
    if damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif damage == "hole":
        os.truncate(path, 1 << 40)
    else:
        path.write_bytes(wrong[damage])
    with pytest.raises(CheckpointError, match="Delete it"):
        cached_partition(photos, Grouping(), tmp_path / "cache")
    with pytest.raises(CheckpointError):
        open_groups(path, None, photos.folder)


def test_any_changed_byte_of_a_cache_is_refused(photos, tmp_path: Path) -> None:
    grouping, cache = Grouping(min_images_per_class=1), tmp_path / "cache"
    direct = as_dicts(cached_partition(photos, grouping, cache))
    (path,) = cache.iterdir()
    raw = path.read_bytes()
    header = json.loads(raw[:HEADER_BYTES])
    places = [at for _, _, at in header["arrays"].values()]
    places += [raw.index(b'"num_scanned": ') + 15, raw.index(b'"checksum": "') + 13, len(raw) - 1]
    for place in places:
        changed = bytearray(raw)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged .* Delete it") as caught:
            cached_partition(photos, grouping, cache)
        assert "\n" not in str(caught.value)
    del header["checksum"]
    path.write_bytes(json.dumps(header).encode().ljust(HEADER_BYTES - 1) + b"\n" + raw[HEADER_BYTES:])
    with pytest.raises(CheckpointError, match="Delete it"):
        cached_partition(photos, grouping, cache)
    path.write_bytes(raw)
    assert as_dicts(cached_partition(photos, grouping, cache)) == direct


def test_a_cache_without_checksum_is_not_opened(photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patched:
        patched.setattr("cosplace.training.group_cache.FORMAT", "cosplace groups 2")
        cached_partition(photos, Grouping(), cache)
    (former,) = cache.iterdir()
    former.write_bytes(b"not opened")
    cached_partition(photos, Grouping(), cache)
    assert len(list(cache.iterdir())) == 2


# --- unusual names ---------------------------------------------------------------------------------------------------


def test_headings_are_directions_of_a_circle() -> None:
    headings = [0, 5, 360, 365, 720, -355, -360, 359, -1, 719.5, 30, -330, -1e-18]
    names = [name(5, 5, heading, str(i)) for i, heading in enumerate(headings)]
    cells = as_dicts(partition(image_list(Path("x"), names), Grouping(N=1, L=1, min_images_per_class=1)))
    assert {cell[2]: len(images) for cell, images in cells[0].items()} == {0: 8, 30: 2, 330: 3}
    directions = np.arange(0, 360, 0.25)
    assert np.array_equal(class_of(directions, directions, directions, Grouping())[:, 2], directions // 30)


def test_photos_of_different_zones_are_in_different_classes(tmp_path: Path) -> None:
    zones = {"10@S@@": 10, "11@S@@": 11, "56@H@-33.8@151.2": -56, "56@H@@": -56, "56@S@-33.8@151.2": -56}
    images = image_list(tmp_path, [name(500_005, 4_170_005, 0, str(i), zone) for i, zone in enumerate(zones)])
    grouping = Grouping(min_images_per_class=1)
    found = partition(images, grouping)
    assert sorted(zip(found.zones.tolist(), np.diff(found.class_starts).tolist(), strict=True)) == [
        (-56, 3), (10, 1), (11, 1)
    ]  # fmt: skip
    assert set(map(tuple, found.cells.tolist())) == {(500_000, 4_170_000, 0)}
    for _ in range(2):  # written, then read
        cached = cached_partition(images, grouping, tmp_path / "cache")
        assert cached.zones.tolist() == found.zones.tolist()


@pytest.mark.parametrize(
    "zones", [["", "@"], ["10@S@@", "10@T@@", "10@S@37.1@-122.0", "@@@", "10.0@S@@"], ["56@@-1@1"]]
)
def test_in_one_zone_or_without_zones_classes_are_those_of_east_and_north(zones: list[str]) -> None:
    texts = [name(20 * (i // 4), 5, 0, str(i), zones[i % len(zones)].ljust(3, "@")) for i in range(4, 40)]
    images = image_list(Path("x"), texts)
    found = partition(images, Grouping(min_images_per_class=2))
    assert found.zones is None
    assert as_dicts(found) == plain_groups(texts, Grouping(min_images_per_class=2))


def test_photos_at_0_0_are_in_no_class(tmp_path: Path) -> None:
    names = [name(0, 0, 0, str(i)) for i in range(5)] + [name(1000 * i, 0, 0, str(j)) for i in (1, 2) for j in range(2)]
    grouping = Grouping(min_images_per_class=1)
    for found in (partition(image_list(tmp_path, names), grouping), *(
        cached_partition(image_list(tmp_path, names), grouping, tmp_path / "cache") for _ in range(2)
    )):  # fmt: skip
        assert (found.num_scanned, found.num_unknown, len(found.cells)) == (9, 5, 2)
        assert all("@0@0@" not in found[0].image_name(image) for image in range(found[0].num_images))


def test_the_zone_of_an_unknown_position_does_not_count() -> None:
    names = ["@1005@7@10@S@@@a@@0@.jpg", "@1006@7@@@@@b@@0@.jpg"]  # one class: a name without zone is in that of others
    grouping = Grouping(min_images_per_class=1)
    alone = partition(image_list(Path("x"), names), grouping)
    found = partition(image_list(Path("x"), [*names, "@0@0@31@U@@@c@@0@.jpg"]), grouping)
    assert found.zones is None and found.num_unknown == 1
    assert found.cells.tolist() == alone.cells.tolist() == [[1000, 0, 0]]


def test_names_need_no_heading_with_alpha_360() -> None:
    images = image_list(Path("x"), [f"@{1000 * i + 5}@7@@@@@p{j}@@@.jpg" for i in range(1, 3) for j in range(2)])
    found = partition(images, Grouping(alpha=360, L=1, N=1, min_images_per_class=2))
    assert found.cells.tolist() == [[1000, 0, 0], [2000, 0, 0]]
    with pytest.raises(DatasetError, match="heading"):
        partition(images, Grouping(alpha=180))


def test_a_cache_of_an_older_format_is_not_read(photos, tmp_path: Path) -> None:
    cached_partition(photos, Grouping(min_images_per_class=1), tmp_path)
    (file,) = tmp_path.glob("groups-*.bin")
    raw = file.read_bytes()
    file.write_bytes(raw.replace(FORMAT.encode(), b"cosplace groups 1", 1))
    with pytest.raises(CheckpointError, match="Delete it"):
        open_groups(file, None, photos.folder)


@pytest.mark.parametrize(
    ("alpha", "L", "said"),
    [
        (30, 2, ""), (360, 1, ""), (360, 2, ""), (180, 2, ""), (180, 4, ""), (120, 3, ""), (60, 3, ""), (1, 360, ""),
        (40, 2, "--L 2 .* 9 ranges .* around north, .* less than 2 apart. Use `--alpha 36` or `--alpha 45` or `--L 3`"),
        (50, 2, "--alpha 50 .* narrower. Use `--alpha 45` or `--alpha 60`"),
        (50, 1, "--alpha 50 .* narrower. Use `--alpha 45` or `--alpha 60`"),
        (30, 5, "--L 5 .* 12 ranges .* Use `--alpha 24` or `--alpha 36` or `--L 4` or `--L 6`"),
    ],
)  # fmt: skip
def test_ranges_of_headings_that_do_not_divide_the_circle(alpha: int, L: int, said: str) -> None:
    warning = uneven_headings(Grouping(alpha=alpha, L=L))
    assert re.search(said, warning) if said else warning == ""
    for flag, value in re.findall(r"`--(\w+) (\d+)`", warning):
        assert uneven_headings(replace(Grouping(alpha=alpha, L=L), **{flag: int(value)})) == ""


# --- advice ----------------------------------------------------------------------------------------------------------


def walk(count: int, step_m: float) -> list[str]:
    """Photos along a street, all looking ahead."""
    rng = np.random.default_rng(0)
    return [name(550_000 + step_m * i, 4_180_000 + rng.normal(0, 2), round(rng.normal(90, 8)), i) for i in range(count)]


def area(count: int, side_m: float) -> list[str]:
    """Photos anywhere in a square, in all directions."""
    rng = np.random.default_rng(0)
    return [
        name(550_000 + rng.uniform(0, side_m), 4_180_000 + rng.uniform(0, side_m), rng.integers(360), i)
        for i in range(count)
    ]


def panoramas(count: int) -> list[str]:
    """Twelve directions at places 15 m apart."""
    return [name(550_000 + 15 * (i // 12), 4_180_000, 30 * (i % 12), i) for i in range(count)]


@pytest.mark.parametrize("names", [walk(300, 5), walk(150, 10), area(300, 200), area(300, 900), panoramas(300)])
@pytest.mark.parametrize("grouping", [Grouping(), Grouping(M=20), Grouping(N=1, L=1), Grouping(alpha=360, L=1)])
def test_following_the_advice_ends_it(names: list[str], grouping: Grouping) -> None:
    images = image_list(Path("x"), names)
    groups = partition(images, grouping)
    found = advice(groups, grouping, images)
    if found is None:
        return check_enough(groups, grouping, images)
    if found.settings is None:
        return None
    assert f"These settings work: `{flags_text(found.settings)}`" in found.text
    advised = partition(images, found.settings)
    check_enough(advised, found.settings, images)  # does not raise
    smallest = min(num_classes for num_classes, _ in advised.counts()[: found.settings.groups_num])
    assert smallest >= 10
    again = advice(advised, found.settings, images)
    assert again is None or (again.settings is None and not again.refused)
    return None


def test_settings_are_found_for_300_photos_of_a_walk() -> None:
    images = image_list(Path("x"), walk(300, 5))
    with pytest.raises(DatasetError, match=r"has 300 images, but no class .* These settings work: `--M \d+ --alpha"):
        check_enough(partition(images, Grouping()), Grouping(), images)


STARS = [name(550_000 + 60 * (i // 8), 4_180_000, 45 * (i % 8) + 3, i) for i in range(320)]  # 8 directions, 60 m apart


@pytest.mark.parametrize(
    "names",
    [walk(300, 18), STARS, area(300, 200), walk(300, 5)],
    ids=["large cells", "wide ranges of headings", "small N and L", "few groups and images per class"],
)
def test_settings_are_found_where_most_photos_need_others(names: list[str]) -> None:
    images = image_list(Path("x"), names)
    found = advice(partition(images, Grouping()), Grouping(), images)
    assert found is not None and found.refused and found.settings is not None
    check_enough(partition(images, found.settings), found.settings, images)  # does not raise


def test_photos_that_no_settings_suit() -> None:
    images = image_list(Path("x"), area(30, 5000))
    with pytest.raises(DatasetError, match=r"do not train .* `cosplace index build x --model .*`; `cosplace zoo list`"):
        check_enough(partition(images, Grouping()), Grouping(), images)
    few = image_list(Path("x"), [name(550_000 + 100 * (i // 4), 4_180_000, 30, i) for i in range(20)])  # of 5 places
    with pytest.raises(DatasetError, match="No settings give 10 classes per group: do not train on these photos"):
        check_enough(partition(few, Grouping()), Grouping(), few)
    unknown = image_list(Path("x"), [name(0, 0, 0, str(i)) for i in range(20)])
    with pytest.raises(DatasetError, match="all positions are 0, 0"):
        check_enough(partition(unknown, Grouping()), Grouping(), unknown)


def test_reasons_for_a_refusal(photos) -> None:
    for grouping, reason in [
        (Grouping(N=1, L=1, groups_num=2, min_images_per_class=1), "has 1 group, fewer than --groups_num 2"),
        (Grouping(min_images_per_class=100), "has 240 images, but no class with at least 100 images"),
        (Grouping(M=1000, alpha=360, N=1, L=1, groups_num=1), "has 1 class, but training needs at least 2"),
    ]:
        with pytest.raises(DatasetError, match=reason):
            check_enough(partition(photos, grouping), grouping, photos)
    small = Grouping(groups_num=1, min_images_per_class=1)
    check_enough(partition(photos, small), small, photos)
    found = advice(partition(photos, small), small, photos)
    assert found is not None and not found.refused and "hundreds" in found.text


@pytest.mark.parametrize("names", [walk(300, 5), walk(300, 10), area(300, 200), panoramas(300)])
def test_the_settings_of_the_readme_suit_300_photos(names: list[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    line = re.search(r"cosplace train --dataset_folder mine (.*)", readme)[1]
    words = line.split("#")[0].split()
    values = {flag[2:]: int(value) for flag, value in pairwise(words) if flag[2:] in FLAGS}
    grouping = Grouping(**values)
    images = image_list(Path("x"), names)
    groups = partition(images, grouping)
    check_enough(groups, grouping, images)
    assert groups.counts()[0][0] >= 50


@pytest.mark.parametrize(
    ("bad", "said"),
    [("@12@34@@@@@@@@@.jpg", "heading"), ("@12@x@@@@@@@30@@.jpg", "is 'x', not a number"), ("photo.jpg", "utm_east")],
)
def test_a_name_without_numbers_is_named(bad: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        partition(image_list(Path("x"), [name(1, 2, 3), bad]), Grouping())
    assert bad in str(caught.value)


@pytest.mark.parametrize("levels", ["", "images", "processed"])
def test_of_a_whole_dataset_only_photos_for_training_are_taken(
    levels: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "pitts30k" / levels
    for part, count in (("train/database", 5), ("val/database", 3), ("test/database", 7), ("test/queries", 2)):
        (root / part).mkdir(parents=True)
        for number in range(count):
            (root / part / f"@{500000 + number}@4180000@10@S@@@@@90@@@@@@.jpg").write_bytes(b"")
    assert len(training_photos(tmp_path / "pitts30k", Grouping())) == 5
    assert "photos of val and test, which are not for training" in caplog.text
    caplog.clear()
    assert len(training_photos(root / "train", Grouping())) == 5
    assert len(training_photos(root / "test" / "database", Grouping())) == 7
    assert not caplog.text
