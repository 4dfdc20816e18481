"""Classes and groups of tables and EXIF photos are those of the same photos with '@' names."""

import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosplace.cli import main
from cosplace.config.sections import Grouping
from cosplace.errors import DatasetError
from cosplace.photos.names import utm_fields
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import TABLE_NAME, from_table, read_table
from cosplace.report.maps import fits_one_map
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.training.advice import data_warnings
from cosplace.training.data import open_training_data
from cosplace.training.group_cache import cached_partition
from cosplace.training.groups import class_of, partition, training_photos
from cosplace.training.seen_photos import digest_training_photos
from cosplace.training.validation import doubts_about
from tests.synthetic_dataset import place_image, settings
from tests.table_samples import around, table_of_names, write_exif_photo, write_named_dataset, write_records

GROUPING = Grouping(M=10, alpha=60, N=3, L=2, groups_num=1, min_images_per_class=2)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_named_dataset(tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="module")
def table(named: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table_of_names(named, tmp_path_factory.mktemp("made") / "table")


def test_groups_are_those_of_names(named: Path, table: Path) -> None:
    by_name = partition(training_photos(named / "train", GROUPING), GROUPING)
    by_table = partition(training_photos(table / "train", GROUPING), GROUPING)
    assert by_table.counts() == by_name.counts()
    assert len(by_name) > 3
    for array in ("cells", "group_starts", "class_starts"):
        assert getattr(by_table, array).tolist() == getattr(by_name, array).tolist()
    for expected, group in zip(by_name, by_table, strict=True):
        for image in range(group.num_images):
            assert group.image_path(image).samefile(expected.image_path(image))
            assert group.image_label(image).split("@")[9] == expected.image_name(image).split("@")[9]


def test_labels_are_cached_with_groups(table: Path, tmp_path: Path) -> None:
    images = training_photos(table / "train", GROUPING)
    first = cached_partition(images, GROUPING, tmp_path)
    again = pickle.loads(pickle.dumps(cached_partition(images, GROUPING, tmp_path)))
    whole = partition(images, GROUPING)
    for groups in (first, again):
        for number, group in enumerate(groups):
            labels = [group.image_label(image) for image in range(group.num_images)]
            assert labels == [whole[number].image_label(image) for image in range(group.num_images)]
    assert len(list(tmp_path.iterdir())) == 1


def test_other_labels_have_other_groups(tmp_path: Path) -> None:
    records = around(45.0, 7.0, 40, 30)
    counts = []
    for shift in (0.0, 0.001):
        moved = [replace(one, latitude=one.latitude + shift) for one in records]
        images = scan_images(write_records(tmp_path / "city", moved))
        counts.append(cached_partition(images, GROUPING, tmp_path / "cache").cells[:, 1].tolist())
    assert len(list((tmp_path / "cache").iterdir())) == 2 and counts[0] != counts[1]


@pytest.mark.parametrize(("latitude", "longitude"), [(45.0, 12.0), (0.0, 9.0), (-17.0, 180.0)])
def test_classes_do_not_end_at_borders(tmp_path: Path, latitude: float, longitude: float) -> None:
    records = around(latitude, longitude, 200, 40)
    images = scan_images(write_records(tmp_path, records))
    grouping = replace(GROUPING, min_images_per_class=1)
    groups = partition(images, grouping)
    assert groups.zones is None and groups.map_center == images.map_center
    east, north = utm_fields(images).east_north.T
    headings = np.array([record.heading for record in records])
    classes = class_of(east, north, headings, grouping)
    assert len(np.unique(classes, axis=0)) == len(groups.cells)
    assert np.ptp(groups.cells[:, :2], axis=0).max() <= 90  # one city, not two far apart
    assert not any("UTM zones" in warning for warning in data_warnings(groups, grouping, images))


def test_photos_of_the_digest_are_those_of_names(named: Path, table: Path) -> None:
    digests = [
        digest_training_photos(open_training_data(settings(folder, M=10, alpha=60, min_images_per_class=2)))
        for folder in (named, table)
    ]
    assert digests[0] is not None and digests[1] is not None
    assert digests[0].num_photos == digests[1].num_photos > 0
    assert np.isin(digests[0].hashes, digests[1].hashes).mean() > 0.9  # rounding may differ


def test_maps_of_the_report_need_one_origin(tmp_path: Path) -> None:
    records = around(45.0, 12.0, 40, 30)
    split = [replace(one, split=("train", "test/database", "test/queries")[row % 3]) for row, one in enumerate(records)]
    folder = write_records(tmp_path / "a", split)
    other = write_records(tmp_path / "b", [replace(one, longitude=one.longitude - 1) for one in split])
    groups = partition(scan_images(folder / "train"), replace(GROUPING, min_images_per_class=1))
    assert fits_one_map(groups, open_retrieval_dataset(folder / "test"))
    assert not fits_one_map(groups, open_retrieval_dataset(other / "test"))


# --- headings --------------------------------------------------------------------------------------------------------


def test_training_without_headings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, record in enumerate(around(45.0, 7.0, 60, 40)):
        photo = replace(record, heading=math.nan)
        write_exif_photo(tmp_path / record.path, photo, place_image(number, 0, side=16))
    with pytest.raises(DatasetError, match=r"heading of all 60 photos is unknown\. Use --alpha 360"):
        training_photos(tmp_path, GROUPING)
    assert main(["groups", str(tmp_path), "--alpha=60"]) == 2
    assert "Use --alpha 360 to train without headings" in capsys.readouterr().err
    flags = ["--alpha=360", "--L=1", "--M=20", "--N=1", "--groups_num=1", "--min_images_per_class=2"]
    assert main(["groups", str(tmp_path), *flags]) == 0
    assert capsys.readouterr().out.startswith("60 images, ")


def test_partition_names_a_photo_without_heading(tmp_path: Path) -> None:
    records = around(45.0, 7.0, 4, 40)
    records[2] = replace(records[2], heading=math.nan)
    with pytest.raises(DatasetError, match=r"0002\.jpg: its heading is unknown. Use --alpha 360"):
        partition(scan_images(write_records(tmp_path, records)), GROUPING)


# --- the commands ----------------------------------------------------------------------------------------------------

QUICK = [
    "--backbone=resnet18-small", "--fc_output_dim=16", "--image_size=32", "--resize_test_imgs", "--num_workers=0",
    "--device=cpu", "--M=10", "--alpha=60", "--N=1", "--L=1", "--groups_num=1", "--min_images_per_class=2",
    "--batch_size=4", "--epochs_num=1", "--iterations_per_epoch=2",
]  # fmt: skip


@pytest.mark.slow
def test_train_and_eval_take_tables(
    named: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = []
    for folder in (named, table, table / "photos.parquet"):
        assert main(["train", f"--dataset_folder={folder}", f"--save_dir={len(outputs)}", *QUICK]) == 0
        outputs.append(capsys.readouterr().out.splitlines()[0])
    assert outputs[0] == outputs[1] == outputs[2]
    model = next((tmp_path / "logs" / "1").glob("*/best_model.pth"))
    assert main(["eval", f"--dataset_folder={table}", f"--model={model}", *QUICK[:6]]) == 0
    assert capsys.readouterr().out.splitlines()[0] == outputs[1]


def test_shared_queries_of_a_table_are_counted_by_path(table: Path) -> None:
    data = open_training_data(settings(table))
    assert data.val.queries.folder == data.test.queries.folder
    assert not [doubt for doubt in doubts_about(data) if "also test queries" in doubt]
    same = replace(data, test=data.val)
    assert any("12 of 12 validation queries are also test queries" in doubt for doubt in doubts_about(same))


def test_queries_that_are_in_the_database_too_are_reported(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = from_table(read_table(table / TABLE_NAME))
    folder = tmp_path / "copies"
    shutil.copytree(table, folder)
    query, image = (next(one for one in records if one.split == f"test/{part}") for part in ("queries", "database"))
    shutil.copyfile(table / image.path, folder / query.path)
    open_training_data(settings(folder))
    assert "1 of 12 queries in" in caplog.text and "is in the database too" in caplog.text
