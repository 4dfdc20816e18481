"""Groups as place ids: read again, the files have the same classes."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.cli.commands import main
from cosplace.config.sections import Grouping
from cosplace.errors import DatasetError, StorageError
from cosplace.photos.image_list import image_list
from cosplace.photos.names import format_image_name
from cosplace.photos.tables import PhotoRecord, to_table, write_table
from cosplace.training.groups import partition, training_photos
from cosplace.training.place_ids import COLUMNS, photo_name, write_place_ids

GROUPING = Grouping(M=10, alpha=90, N=2, L=2, min_images_per_class=2, groups_num=1)


def names(count: int = 150) -> list[str]:
    rng = np.random.default_rng(0)
    return [
        "sub/" + format_image_name(
            utm_east=550_000 + rng.uniform(0, 30), utm_north=4_180_000 + rng.uniform(0, 30), zone=10, letter="S",
            latitude=37.76, longitude=-122.43, pano_id=f"odd,\"id_{row}", heading=int(rng.integers(-30, 600)),
            timestamp="201911" if row % 2 else "",
        )
        for row in range(count)
    ]  # fmt: skip


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_reading_the_files_gives_the_classes(tmp_path: Path) -> None:
    groups = partition(image_list(tmp_path / "photos", names()), GROUPING)
    assert len(groups) > 4
    num_places = write_place_ids(groups, tmp_path / "gsv")
    assert num_places == len(groups.cells)
    path_of = {row["panoid"]: row["path"] for row in read_rows(tmp_path / "gsv" / "photos.csv")}
    seen: set[str] = set()
    for number in range(len(groups)):
        group, rows = groups[number], read_rows(tmp_path / "gsv" / "Dataframes" / f"group{number:03d}.csv")
        assert tuple(rows[0]) == COLUMNS
        places: dict[str, set[str]] = {}
        for row in rows:
            places.setdefault(row["place_id"], set()).add(path_of[row["panoid"]])
        assert not seen & set(places)
        seen |= set(places)
        classes = [
            {group.image_name(image) for image in range(start, end)}
            for start, end in zip(group.class_starts[:-1], group.class_starts[1:], strict=True)
        ]
        assert sorted(map(sorted, places.values())) == sorted(map(sorted, classes))
    assert len(path_of) == groups.class_starts[-1]


def test_a_row_has_what_the_name_has(tmp_path: Path) -> None:
    photos = [
        format_image_name(utm_east=550_001, utm_north=4_180_001, zone=10, letter="S", latitude=37.76544,
                          longitude=-122.43222, pano_id=str(row), heading=365, timestamp="20191103")
        for row in range(2)
    ]  # fmt: skip
    groups = partition(image_list(tmp_path, photos), GROUPING)
    write_place_ids(groups, tmp_path / "gsv")
    row = read_rows(tmp_path / "gsv" / "Dataframes" / "group000.csv")[0]
    assert (row["year"], row["month"], row["northdeg"]) == ("2019", "11", "5")
    assert float(row["lat"]) == pytest.approx(37.7654, abs=1e-3)
    assert row["lon"].startswith("-122.43")


def test_links_have_the_names_that_readers_compute(tmp_path: Path) -> None:
    """As in the GSV-Cities data loader, from the text of the cells."""
    groups = partition(image_list(tmp_path / "photos", names()), GROUPING)
    write_place_ids(groups, tmp_path / "gsv")
    for row in read_rows(tmp_path / "gsv" / "Dataframes" / "group001.csv"):
        place = str(int(row["place_id"]) % 10**5).zfill(7)
        parts = [row["city_id"], place, row["year"].zfill(4), row["month"].zfill(2), row["northdeg"].zfill(3),
                 str(float(row["lat"])), str(float(row["lon"])), row["panoid"]]  # fmt: skip
        assert (tmp_path / "gsv" / "Images" / row["city_id"] / ("_".join(parts) + ".jpg")).is_symlink()


def test_place_numbers_above_a_hundred_thousand_are_shortened_in_names() -> None:
    assert photo_name((123_456, 2019, 3, 7, "group000", 1.5, -2.25, "00000001")) == (
        "group000_0023456_2019_03_007_1.5_-2.25_00000001.jpg"
    )


def test_refused(tmp_path: Path) -> None:
    groups = partition(image_list(tmp_path, [f"@1@{row}@@@@@@@0@@.jpg" for row in range(2)]), GROUPING)
    with pytest.raises(DatasetError, match="no latitude and longitude"):
        write_place_ids(groups, tmp_path / "gsv")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").touch()
    with pytest.raises(StorageError, match="not an empty folder"):
        write_place_ids(groups, tmp_path / "used")


def test_command_on_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = tmp_path / "data"
    records = []
    for row in range(12):
        path = f'photos/odd "name", {row}.jpg'
        (dataset / "photos").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (row, 0, 0)).save(dataset / path)
        records.append(PhotoRecord(path=path, latitude=45.0, longitude=7.0, heading=10.0 + row % 2 * 180))
    write_table(dataset / "photos.parquet", to_table(records))
    words = ["groups", str(dataset), "--gsv_csv", str(tmp_path / "gsv"), "--M", "10", "--N", "1", "--L", "1"]
    main([*words, "--min_images_per_class", "2", "--groups_num", "1", "--no_cache"])
    assert f"{tmp_path / 'gsv'}: 2 places in 1 CSV file\n" in capsys.readouterr().out
    rows = read_rows(tmp_path / "gsv" / "photos.csv")
    assert {row["path"] for row in rows} == {record.path for record in records}
    links = list((tmp_path / "gsv" / "Images" / "group000").iterdir())
    assert {os.path.realpath(link) for link in links} == {str(dataset / record.path) for record in records}
    assert training_photos(dataset, GROUPING)
