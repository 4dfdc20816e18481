"""The table of a dataset while photos are added: the same photo once, little memory, no space for temporary files."""

import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from pyproj import Geod

from cosplace.errors import DatasetError, StorageError
from cosplace.importing import dataset_table
from cosplace.importing.dataset_table import DatasetTable, is_same_photo
from cosplace.photos.tables import COLUMNS, TABLE_NAME, PhotoRecord, from_table, read_table, to_table, write_table
from tests.importing.photo_samples import import_all, rows_of, write_photo

GEOD = Geod(ellps="WGS84")
NAN = float("nan")


def photo(number: int, **values: float | str) -> PhotoRecord:
    known = {"latitude": 45 + number * 1e-4, "longitude": 7.0, "time": 1.7e9 + number, "checksum": f"{number:064x}"}
    return PhotoRecord(path=f"photos/{number:06d}.jpg", **known | values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("meters", "known", "heading", "is_same"),
    [
        (0.0, NAN, NAN, True), (0.008, NAN, NAN, True), (0.03, NAN, NAN, False),
        (0.0, 359.998, 0.001, True), (0.0, 90.0, 90.02, False),
        (0.0, 90.0, NAN, True),  # it adds nothing
        (0.0, NAN, 90.0, False),  # it adds a heading
        (0.0, NAN, 0.0, True),  # which may mean unknown
    ],
)  # fmt: skip
def test_the_same_photo(meters: float, known: float, heading: float, is_same: bool, tmp_path: Path) -> None:
    """Also across the 180th meridian, where longitudes jump."""
    for latitude, longitude in ((45.0, 7.0), (-80.0, 180.0), (0.0, -179.99999999)):
        there, here, _ = GEOD.fwd(longitude, latitude, 90, meters)
        one = photo(1, latitude=latitude, longitude=longitude, heading=known)
        other = replace(one, path="other.jpg", latitude=here, longitude=there, heading=heading)
        assert is_same_photo(other, one) == is_same
        assert not is_same_photo(replace(other, checksum="f"), one)
        table = DatasetTable(tmp_path)
        table.add(one)
        assert table.path_of_same(other) == (one.path if is_same else "")


def test_photos_without_positions_are_the_same_by_content(tmp_path: Path) -> None:
    table = DatasetTable(tmp_path)
    table.add(photo(1, latitude=NAN, longitude=NAN))
    assert table.path_of_same(photo(1, latitude=NAN, longitude=NAN)) and not table.path_of_same(photo(1))


def test_the_same_photo_by_exif_and_by_a_table_is_imported_once(tmp_path: Path) -> None:
    """EXIF has seconds of arc in fractions; the table has 8 decimals of a degree, about 1 mm."""
    for number in range(3):
        write_photo(tmp_path / "camera" / f"{number}.jpg", 45.123456789 + number * 1e-3, 7.987654321, seed=number)
    import_all(tmp_path / "camera", to=tmp_path / "city")
    rows = list(rows_of(tmp_path / "city").values())
    (tmp_path / "camera").rename(tmp_path / "backup")
    lines = [f"{Path(one.path).name},{one.latitude:.8f},{one.longitude:.8f}" for one in rows]
    (tmp_path / "positions.csv").write_text("\n".join(["file,lat,lon", *lines]))
    result = import_all(tmp_path / "backup", tmp_path / "positions.csv", to=tmp_path / "city")
    assert (result.num_added, result.num_photos) == (0, 3)
    assert dict(result.report.left_out) == {"the same photo at the same position is already in the dataset": 3}


def test_the_same_photo_at_another_position_is_added_and_reported(tmp_path: Path) -> None:
    """From a folder with a new name and corrected positions: both may be right, so a person must decide."""
    for number in range(3):
        write_photo(tmp_path / "camera" / f"{number}.jpg", 45.1 + number * 1e-3, 7.9, seed=number)
    import_all(tmp_path / "camera", to=tmp_path / "city")
    (tmp_path / "camera").rename(tmp_path / "backup")
    (tmp_path / "positions.csv").write_text("file,lat,lon\n" + "".join(f"{n}.jpg,45.2,7.{n}\n" for n in range(3)))
    result = import_all(tmp_path / "backup", tmp_path / "positions.csv", to=tmp_path / "city")
    assert (result.num_added, result.num_photos, len(result.report.left_out)) == (3, 6, 0)
    reason = "a photo with the same content is in the dataset at another position or heading"
    assert dict(result.report.uncertain) == {reason: 3}
    assert result.report.first[reason].reason == f"{reason}: photos/camera/0.jpg"


def test_rows_are_read_and_written_unchanged(tmp_path: Path) -> None:
    """All columns, bytes of paths that are not UTF-8, and the mark of `cosplace split`; sorted by path."""
    rows = [photo(number) for number in range(5)]
    rows[1] = replace(
        photo(1), path="\udcff.jpg", heading=12.5, heading_source="exif", camera="Acme", width=4, height=3, pitch=-1.5,
        video_time=2.25, time_zone="assumed", split="train",
    )  # fmt: skip
    rows[2] = replace(photo(2), latitude=NAN, longitude=NAN, time=NAN, path="a\\x5cb.jpg")
    write_table(tmp_path / TABLE_NAME, to_table(rows), own_splits=True)
    before = read_table(tmp_path / TABLE_NAME)
    table = DatasetTable(tmp_path)
    assert len(table) == 5 and table.num_missing() == 5
    assert table.summary() == {"positions": 4, "headings": 1, "times": 4}
    assert not any(map(table.update, rows)) and table.num_missing() == 0
    table.write()
    after = read_table(tmp_path / TABLE_NAME)
    assert after.equals(before) and after.column_names == list(COLUMNS)
    whole = (tmp_path / TABLE_NAME).read_bytes()
    assert b"cosplace_split" in whole and b'"bbox": [7.0, 45.0, 7.0, 45.0004]' in whole
    assert table.update(replace(rows[0], heading=5.0)) and not table.update(replace(rows[0], heading=5.0))
    table.write()
    assert from_table(read_table(tmp_path / TABLE_NAME))[2].heading == 5.0


def test_a_path_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(to_table([photo(1), photo(1)]), tmp_path / TABLE_NAME)
    with pytest.raises(DatasetError, match=r"photos/000001.jpg occurs twice"):
        DatasetTable(tmp_path)


@pytest.mark.parametrize(
    ("longitudes", "west", "east"),
    [
        ((-122.5, -122.4), -122.5, -122.4),
        ((-1.0, 2.0), -1, 2),
        ((-123.0, -116.9734), -123, -116.9734),
        ((179.9, -179.8), 179.9, -179.8),
    ],
)
def test_the_area_is_the_shorter_way_around_the_earth(
    tmp_path: Path, longitudes: tuple[float, float], west: float, east: float
) -> None:
    table = DatasetTable(tmp_path)
    assert table.area() == ()
    for number, longitude in enumerate(longitudes):
        table.add(replace(photo(number), latitude=10.0 + number, longitude=longitude))
    table.add(replace(photo(2), latitude=math.nan, longitude=math.nan))
    assert table.area() == pytest.approx((west, 10, east, 11))


def test_a_photo_needs_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bytes for its hashes, and some reserve; SQLite limits its own memory."""
    monkeypatch.setattr(dataset_table, "MAX_RECENT", 100)
    table = DatasetTable(tmp_path)

    def add(start: int, count: int) -> None:
        for number in range(start, start + count):
            one = photo(number)
            assert not table.has(one.path) and not table.path_of_same(one)
            table.add(one)

    add(0, 200)  # what is allocated once
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        add(200, 3000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == 3200 and (after - before) / 3000 < 40  # bytes
    assert table.has(photo(3199).path) and table.path_of_same(photo(0)) == photo(0).path


def test_without_space_for_temporary_files(tmp_path: Path) -> None:
    table = DatasetTable(tmp_path)
    (pages,) = table._run("PRAGMA page_count").fetchone()
    table._run(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(StorageError, match=r"No space for the rows of .*photos.parquet .*set TMPDIR to another folder"):
        for number in range(1000):
            table.add(photo(number))
    table.write()  # what was added before
    assert 0 < len(read_table(tmp_path / TABLE_NAME)) == len(table) < 1000
