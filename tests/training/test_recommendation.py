"""The recommended command fits the photos, and runs."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from cosplace.cli import main
from cosplace.config.sections import Grouping
from cosplace.geo import utm_to_latlon
from cosplace.photos.image_list import ImageList, image_list
from cosplace.photos.names import format_image_name
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, to_table, write_table
from cosplace.retrieval.validation import validate
from cosplace.training.enough_places import FEWEST_PLACES
from cosplace.training.groups import partition
from cosplace.training.recommendation import Recommendation, class_table, recommend, recommend_for
from tests.synthetic_dataset import write_dataset, write_place

SIZES = np.tile([[640, 480]], (10, 1))


def photo_names(num_places: int, per_place: int, *, headings: bool = True) -> ImageList:
    """Names of photos of places in a row, 40 m apart, each seen from one direction."""
    names = []
    for place in range(num_places):
        for number in range(per_place):
            heading = 37 * place % 360 if headings else ""
            names.append(
                format_image_name(
                    utm_east=500_005 + 40 * (place % 50), utm_north=4_000_005 + 40 * (place // 50), zone=31, letter="S",
                    latitude=36.1, longitude=3.0, pano_id=f"{place}-{number}", heading=heading,
                )
            )  # fmt: skip
    return image_list(Path("city"), names)


def advised(images: ImageList, **values) -> Recommendation:
    values = {"with_headings": True, "sizes": SIZES, "num_evaluated": 0, "device": "cpu", "measure": False} | values
    return recommend(Path("city"), images, **values)


def test_settings_give_the_classes_that_are_promised() -> None:
    images = photo_names(400, 6)
    found = advised(images)
    grouping = Grouping(**{name: found.settings[name] for name in Grouping.__dataclass_fields__})
    counts = partition(images, grouping).counts()[: grouping.groups_num]
    assert found.trains and len(counts) == grouping.groups_num
    assert (found.num_classes, found.num_images) == tuple(map(sum, zip(*counts, strict=True)))
    assert found.num_classes >= FEWEST_PLACES
    settings = found.settings
    seen = settings["epochs_num"] * settings["iterations_per_epoch"] * settings["batch_size"] / found.num_classes
    assert 60 <= seen <= 70 and settings["epochs_num"] % grouping.groups_num == 0
    assert (settings["image_size"], settings["resize_test_imgs"], settings["lr"]) == (224, True, 1e-4)
    assert found.commands[0].startswith("cosplace train --dataset_folder city --M ")


def test_small_photos_keep_their_size() -> None:
    settings = advised(photo_names(400, 6), sizes=np.full((5, 2), 128)).settings
    assert settings["image_size"] == 128 and "resize_test_imgs" not in settings


def test_photos_without_headings_have_classes_of_all_directions() -> None:
    found = advised(photo_names(400, 6, headings=False), with_headings=False)
    assert found.settings["alpha"] == 360 and found.settings["L"] == 1
    assert any("Headings are missing" in reason for reason in found.reasons)


@pytest.mark.parametrize(("num_places", "per_place"), [(60, 4), (2000, 1), (20, 100)])
def test_too_few_classes_are_not_trained_on(num_places: int, per_place: int) -> None:
    found = advised(photo_names(num_places, per_place))
    assert not found.trains and found.settings == {}
    assert found.commands == ("cosplace index build city --model cosplace_resnet50_512 --to INDEX",)
    assert "o not train on these photos" in found.reasons[0]


def test_class_table_counts_classes() -> None:
    table = {(row.M, row.alpha): row for row in class_table(photo_names(100, 3), with_headings=True)}
    assert table[10, 30].num_classes == 100 and table[10, 30].median_images == 3
    assert table[10, 360].num_at_least == {2: 100, 5: 0, 10: 0}
    assert table[40, 360].num_classes <= 100
    assert {row.alpha for row in class_table(photo_names(9, 1, headings=False), with_headings=False)} == {360}


@pytest.mark.slow
def test_a_dataset_without_splits_is_split_first(tmp_path: Path) -> None:
    records = [
        PhotoRecord(path=f"{place}-{number}.jpg", latitude=40 + place / 2000, longitude=3.0, heading=place % 360)
        for place in range(200)
        for number in range(4)
    ]
    write_table(tmp_path / TABLE_NAME, to_table(records))
    for record in records:
        (tmp_path / record.path).write_bytes(b"")
    split, train = recommend_for(validate(tmp_path, quick=True), device="cpu", measure=False).commands
    assert split == f"cosplace split {tmp_path}" and train.startswith(f"cosplace train --dataset_folder {tmp_path} ")
    photos = tmp_path / "photos"
    photos.mkdir()
    for place in range(200):
        (latitude,), (longitude,) = utm_to_latlon(np.array([550_000.0 + 30 * place]), np.array([4_180_000.0]), 10, "S")
        for number in range(3):
            name = format_image_name(
                utm_east=550_000.0 + 30 * place, utm_north=4_180_000.0, zone=10, letter="S", latitude=latitude,
                longitude=longitude, pano_id=f"{place}-{number}", heading=place % 360,
            )  # fmt: skip
            (photos / name).write_bytes(b"")
    first, second, third = recommend_for(validate(photos, quick=True), device="cpu", measure=False).commands
    assert (first, second) == (f"cosplace import {photos} --to {photos}-split", f"cosplace split {photos}-split")
    assert third.startswith(f"cosplace train --dataset_folder {photos}-split ")


def test_a_database_with_queries_is_evaluated(tmp_path: Path) -> None:
    write_place(tmp_path / "database", 1, 0)
    write_place(tmp_path / "queries", 1, 1)
    found = recommend_for(validate(tmp_path), device="cpu")
    assert found.commands == (f"cosplace eval --test_set_folder {tmp_path} --model cosplace_resnet50_512",)


@pytest.mark.slow
def test_the_recommended_command_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(tmp_path / "city", num_places=250, images_per_place=4)
    assert len(scan_images(folder / "train")) == 1000
    monkeypatch.chdir(tmp_path)
    assert main(["validate", str(folder), "--device", "cpu"]) == 2  # its latitudes are not those of the UTM fields
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  `cosplace train ")]
    words = [*shlex.split(line.strip().strip("`"))[1:], "--imagenet_weights", "none", "--device", "cpu"]
    assert main([*words, "--dry_run"]) == 0
    assert "iterations: " in capsys.readouterr().out
    short = {"--epochs_num": "1", "--iterations_per_epoch": "2"}
    for name, value in short.items():
        words[words.index(name) + 1] = value
    assert main([*words, "--num_workers", "0"]) == 0
    assert "R@1" in capsys.readouterr().out
