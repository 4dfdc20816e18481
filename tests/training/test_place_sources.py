"""Places from a table, from GSV-Cities and from cells; where they are; what is left out; settings that do not apply."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.config.sections import Grouping, TrainConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError, DatasetError
from cosplace.photos.image_list import image_list
from cosplace.photos.tables import PhotoRecord, to_table, write_table
from cosplace.training.groups import partition, training_photos
from cosplace.training.place_sources import (
    PlaceSet,
    check_grouping,
    check_places,
    check_settings,
    groups_of_ids,
    locate,
    open_places,
    wide_places,
)
from tests.importing.layout_samples import gsv_cities
from tests.synthetic_dataset import write_dataset

GROUPING = Grouping(N=1, L=1, groups_num=1, min_images_per_class=4)


def name(east_m: float, north_m: float, number: int = 0, zone: int = 10) -> str:
    return f"@{500_000 + east_m:.1f}@{4_180_000 + north_m:.1f}@{zone}@S@@@{number}@@0@@@@@@.jpg"


def places_of(folder: Path, sizes: dict[str, int]) -> PlaceSet:
    """Places with some photos each, 100 m apart, 3 m from photo to photo."""
    names, ids = [], []
    for number, (place, size) in enumerate(sizes.items()):
        names += [name(100 * number + 3 * photo, 0, photo) for photo in range(size)]
        ids += [place] * size
    order = sorted(range(len(names)), key=names.__getitem__)
    images = image_list(folder, [names[row] for row in order])
    groups = groups_of_ids(images, [ids[row] for row in order], 1)
    return PlaceSet(groups=groups, images=images, source="", cure="use a smaller --M")


def photos_of_place(places: PlaceSet, place: int) -> list[str]:
    group = places.groups[0]
    return [group.image_name(image) for image in range(*group.class_starts[place : place + 2].tolist())]


def test_places_by_id_keep_their_photos_and_small_ones_are_left_out(tmp_path: Path) -> None:
    names = [f"@{500_000 + number}@4180000@10@S@.jpg" for number in range(9)]
    ids = ["b", "a", "", "b", "a", "c", "b", "a", "b"]
    groups = groups_of_ids(image_list(tmp_path, names), ids, 3)
    places = PlaceSet(groups=groups, images=image_list(tmp_path, names), source="", cure="use a smaller --M")
    assert groups.counts() == [(2, 7)]
    assert groups.num_scanned == 9
    for place, wanted in enumerate("ab"):
        assert photos_of_place(places, place) == [one for one, its in zip(names, ids, strict=True) if its == wanted]


def test_locations_are_means_and_reaches_go_to_the_farthest_photo(tmp_path: Path) -> None:
    places = places_of(tmp_path, {"a": 3, "b": 5, "far": 40})
    locations = locate(places, 25.0)
    assert locations.centers[:, 0] == pytest.approx([500_003.0, 500_106.0, 500_258.5])
    assert locations.reaches_m == pytest.approx([3.0, 6.0, 25.0])  # at most the radius
    apart = np.abs(locations.centers[:, 0][:, None] - locations.centers[:, 0])
    wanted = apart < 25 + locations.reaches_m[:, None] + locations.reaches_m
    assert (locations.are_near(np.array([0, 1, 2])) == wanted).all()
    assert (locations.are_near(np.array([2, 2, 0]))[0] == [True, True, False]).all()


def test_wide_places_are_warned_of(tmp_path: Path) -> None:
    assert wide_places(places_of(tmp_path, {"a": 3, "b": 15}), 25.0) == ""  # reaches of 3 and 21 m
    warning = wide_places(places_of(tmp_path, {"a": 3, "b": 5, "far": 40}), 25.0)
    assert "1 of 3 places has photos more than 25 m from the center of the place, up to 58 m" in warning
    assert warning.endswith("use a smaller --M.")


def test_places_of_several_zones_and_without_positions(tmp_path: Path) -> None:
    names = sorted([name(0, 0, zone=10), name(0, 0, zone=11), name(-500_000, -4_180_000)])
    images = image_list(tmp_path, names)
    ids = ["unknown" if "@0" in one[:2] else one.split("@")[3] for one in names]
    locations = locate(
        PlaceSet(groups=groups_of_ids(images, ids, 1), images=images, source="", cure="use a smaller --M"), 25.0
    )
    assert locations.centers.shape == (3, 3)
    assert np.isnan(locations.centers[2]).all()
    assert np.linalg.norm(locations.centers[0] - locations.centers[1]) > 400_000
    assert (locations.are_near(np.arange(3)) == np.diag([True, True, False])).all()


# --- sources ---------------------------------------------------------------------------------------------------------


def write_table_of_places(folder: Path, column: bool = True) -> Path:
    records = []
    for place in range(5):
        for photo in range(3 + place % 2 * 2):
            path = f"photos/{place}_{photo}.jpg"
            (folder / "photos").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (40 * place, 30 * photo, 90)).save(folder / path)
            records.append(
                PhotoRecord(
                    path=path, latitude=48.0 + 0.001 * place, longitude=2.0, heading=10.0 + photo, split="train",
                    place=f"Paris {place}" if column and place else "",
                )
            )  # fmt: skip
    write_table(folder / "photos.parquet", to_table(records))
    return folder


def test_places_of_a_table(tmp_path: Path) -> None:
    places = open_places(write_table_of_places(tmp_path) / "train", GROUPING)
    assert [photos_of_place(places, place)[0] for place in range(2)] == ["photos/1_0.jpg", "photos/3_0.jpg"]
    assert places.groups.counts() == [(2, 10)]
    assert "column place of" in places.source
    assert "2 places with 10 photos; of 19 photos, 9 are left out" in places.source
    assert "3 photos without a place" in places.source


def test_places_of_gsv_cities_as_downloaded_and_imported(tmp_path: Path) -> None:
    from cosplace.cli import main

    raw = gsv_cities(tmp_path / "raw")
    places = open_places(raw, GROUPING)
    assert places.groups.counts() == [(6, 24)]
    assert "the names of GSV-Cities" in places.source
    assert all(len({one.split("_")[1] for one in photos_of_place(places, place)}) == 1 for place in range(6))
    centers = locate(places, 25.0).centers
    assert np.linalg.norm(centers[:, None] - centers, axis=2).max() > 300_000  # of London and Paris
    assert main(["import", str(raw), "--to", str(tmp_path / "imported")]) == 0
    imported = open_places(tmp_path / "imported" / "train", GROUPING)
    assert imported.groups.counts() == [(6, 24)]
    assert {Path(one).name for place in range(6) for one in photos_of_place(imported, place)} == {
        Path(one).name for place in range(6) for one in photos_of_place(places, place)
    }


def test_else_places_are_the_classes_of_all_groups(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, num_places=10) / "train"
    places = open_places(folder, GROUPING)
    classes = partition(training_photos(folder, GROUPING), GROUPING)
    assert (places.groups.cells == classes.cells).all()
    assert "cells of 10 m and ranges of 30 degrees: 10 places with 60 photos" in places.source


def test_a_table_without_places_has_cells(tmp_path: Path) -> None:
    places = open_places(write_table_of_places(tmp_path, column=False) / "train", GROUPING)
    assert "cells of 10 m" in places.source


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"N": 5}, "--N, --L and --groups_num do not apply"),
        ({"groups_num": 8}, "--N, --L and --groups_num do not apply"),
        ({"margin": 0.3}, "--margin is for the CosFace loss"),
        ({"margin_ramp": 0.3}, "--margin_ramp is for the CosFace loss"),
        ({"classifiers_lr": 0.3}, "--classifiers_lr is for the CosFace loss"),
        ({"batch_size": 50}, "--batch_size 50 must be a multiple of --photos_per_place 4.*--batch_size 48"),
        ({"batch_size": 4}, "--batch_size 8"),
    ],
)
def test_settings_that_do_not_apply_are_refused(changes: dict, message: str) -> None:
    config = from_values(TrainConfig, {"method": "multi_similarity"} | changes)
    with pytest.raises(ConfigError, match=message):
        check_settings(config)


def test_the_defaults_of_the_method_and_its_own_settings() -> None:
    config = from_values(TrainConfig, {"method": "multi_similarity"})
    check_settings(config)
    assert (config.training.batch_size, config.method.photos_per_place, config.augmenting.image_size) == (240, 4, 320)
    with pytest.raises(ConfigError, match="--photos_per_place needs --method multi_similarity"):
        from_values(TrainConfig, {"photos_per_place": 3})
    with pytest.raises(ConfigError, match="--focal_distance needs --method eigenplaces"):
        from_values(TrainConfig, {"method": "multi_similarity", "focal_distance": 3.0})
    with pytest.raises(ConfigError, match="do not apply"):
        check_grouping(Grouping())


def test_too_few_places_for_a_batch(tmp_path: Path) -> None:
    groups = places_of(tmp_path, {"a": 4, "b": 4, "c": 4}).groups
    check_places(groups, GROUPING, 3, 4)
    with pytest.raises(DatasetError, match=r"has 3 places .* fewer than the 60 places of a batch.*--batch_size 12 or"):
        check_places(groups, GROUPING, 60, 4)
