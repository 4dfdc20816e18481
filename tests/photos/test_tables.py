"""A dataset as a GeoParquet table: records survive, and tables of others are refused or read."""

import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosplace.errors import DatasetError
from cosplace.photos.tables import PhotoRecord, from_table, read_table, to_table, write_table

FULL = PhotoRecord(
    path="a/b.jpg", latitude=-33.8568, longitude=151.2153, altitude_m=12.5, accuracy_m=4.0, heading=270.5,
    heading_source="exif", pitch=-3.0, roll=1.0, field_of_view=60.0, time=1_620_129_600.123456, sequence="drive",
    camera="Phone 1", projection="perspective", split="train", place="7", source="a.csv", video_time=1.5, width=640,
    height=480, checksum="0" * 64,
)  # fmt: skip


def test_records_survive(tmp_path: Path) -> None:
    empty = PhotoRecord(path="c.jpg")
    write_table(tmp_path / "t.parquet", to_table([FULL, empty]))
    first, second = from_table(read_table(tmp_path / "t.parquet"))
    assert first == FULL
    assert {name for name, value in asdict(second).items() if value == value and value not in ("", 0)} == {"path"}


@given(st.text(st.characters(blacklist_characters="\0/.", blacklist_categories=("Cs",)), min_size=1), st.binary())
def test_paths_survive(text: str, more: bytes) -> None:
    path = "photos/" + text + os.fsdecode(more.translate(None, b"\0/."))
    assert from_table(to_table([replace(FULL, path=path)]))[0].path == path


def test_geometry_is_a_point(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", to_table([FULL]))
    table = pq.read_table(tmp_path / "t.parquet")
    assert b'"bbox": [151.2153, -33.8568' in table.schema.metadata[b"geo"]
    point = table["geometry"][0].as_py()
    assert len(point) == 21 and point[:5] == b"\x01\x01\0\0\0"


@pytest.mark.parametrize("time", [1e300, -1e300, 253_402_300_800.0, -62_135_596_801.0, math.inf])
def test_times_outside_the_years_1_to_9999_are_unknown(time: float) -> None:
    (record,) = from_table(to_table([PhotoRecord(path="x.jpg", time=time)]))
    assert math.isnan(record.time)


def test_times_of_other_tables_outside_these_years_are_unknown(tmp_path: Path) -> None:
    table = pa.table({"path": ["x.jpg"], "time": pa.array([2**62], pa.int64()).cast(pa.timestamp("us", "UTC"))})
    pq.write_table(table, tmp_path / "t.parquet")
    assert math.isnan(from_table(read_table(tmp_path / "t.parquet"))[0].time)


def test_a_table_of_others_may_lack_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["x.jpg"], "latitude": pa.array([1.5], pa.float32())}), tmp_path / "t.parquet")
    (record,) = from_table(read_table(tmp_path / "t.parquet"))
    assert record.path == "x.jpg" and record.latitude == 1.5 and math.isnan(record.longitude)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"file": ["x.jpg"]}, "no column `path`"),
        ({"path": ["x.jpg"], "latitude": ["north"]}, "column `latitude` has type"),
        ({"path": ["x.jpg"], "latitude": [True]}, "column `latitude` has type bool"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, content: dict, message: str) -> None:
    pq.write_table(pa.table(content), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=message):
        read_table(tmp_path / "t.parquet")


def test_damaged_files_and_repeated_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        read_table(tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"b\.jpg occurs twice"):
        write_table(tmp_path / "u.parquet", to_table([FULL, FULL]))
