"""Values of tables that could be read in the wrong way: signs, hemispheres, zones, units, dates, files."""

import json
import math
import os
import sqlite3
import struct
import sys
import unicodedata
from contextlib import closing, suppress
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyproj import Transformer

from cosplace.config.importing import ImportSettings
from cosplace.errors import ConfigError, DatasetError
from cosplace.geo import lla_from_ecef, magnetic_declination
from cosplace.importing.columns import angle, number, parse_named_columns, time_of
from cosplace.importing.poses import coordinate_system
from cosplace.importing.position_columns import PositionTable, read_position_table
from tests.importing.photo_samples import import_all, rows_of, write_photo
from tests.photos.exif_blocks import ascii_tag


def table(folder: Path, text: str, crs: str = "") -> PositionTable:
    path = folder / "table.csv"
    path.write_text(text, "utf-8")
    return read_position_table(path, {}, crs)


def reasons(read: PositionTable) -> str:
    return "\n".join(problem.reason for problem in read.problems)


@pytest.mark.parametrize("minus", ["-", "\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2212", "\ufe63", "\uff0d"])
def test_any_minus_is_a_minus(minus: str) -> None:
    assert angle(f"{minus}33.8568") == -33.8568
    assert angle(f"{minus}33°51'24.5\"") == pytest.approx(-(33 + 51 / 60 + 24.5 / 3600))
    assert number(f"{minus}12,5 m") == -12.5


@pytest.mark.parametrize(
    "text", ["33.8568-", "33_5", "550.000,25", "33 S 5 N", "33.5.1", "1 2 3 4", "33 51 x", "3 70 S"]
)
def test_an_angle_that_is_not_one_is_unknown(text: str) -> None:
    assert math.isnan(angle(text))


def test_rows_that_are_not_understood_are_listed(tmp_path: Path) -> None:
    read = table(
        tmp_path, "file,lat,lon,time,alt\na.jpg,33.8568-,151.2,5/1/2026 12:00,1 furlong\nb.jpg,-33.8,151.2,,\n"
    )
    assert math.isnan(read.latitudes[0]) and read.latitudes[1] == -33.8
    for words in ("latitude, such as '33.8568-'", "time, such as '5/1/2026 12:00'", "altitude, such as '1 furlong'"):
        assert words in reasons(read)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100 ft", 30.48), ("100 feet", 30.48), ("1 km", 1000), ("5 m Above Sea Level", 5), ("7m", 7)],
)
def test_units_of_altitudes(text: str, expected: float) -> None:
    assert number(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("201903", datetime(2019, 3, 1, tzinfo=UTC)),
        (20190315, datetime(2019, 3, 15, tzinfo=UTC)),
        ("20260501120000", datetime(2026, 5, 1, 12, tzinfo=UTC)),
        (20260501120000, datetime(2026, 5, 1, 12, tzinfo=UTC)),
        ("01.05.2026 12:00", datetime(2026, 5, 1, 12, tzinfo=UTC)),
        (1777636800, datetime(2026, 5, 1, 12, tzinfo=UTC)),
        (1777636800000, datetime(2026, 5, 1, 12, tzinfo=UTC)),
    ],
)
def test_times(value: object, expected: datetime) -> None:
    assert time_of(value)[0] == expected.timestamp()


@pytest.mark.parametrize("value", ["1e300", 1e300, -1e13 * 1e9, datetime.max, "5/1/2026 12:00"])
def test_times_beyond_the_calendar_are_unknown(value: object) -> None:
    found = time_of(value)[0]
    assert math.isnan(found) or found <= datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC).timestamp()


def test_day_and_time_in_two_columns(tmp_path: Path) -> None:
    read = table(tmp_path, "file,lat,lon,date,time\na.jpg,1,2,2026-05-01,12:00:00\n")
    assert read.values["time"][0] == datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()


def test_the_zone_of_each_row_is_used(tmp_path: Path) -> None:
    rows = [(10, "S", 37.77, -122.42), (11, "S", 37.7, -117.57), (56, "H", -33.86, 151.21), (32, "U", 50.1, 8.6)]
    lines = ["file,utm_east,utm_north,zone,letter"]
    for number_of_zone, letter, latitude, longitude in rows:
        code = (32700 if latitude < 0 else 32600) + number_of_zone
        east, north = Transformer.from_crs(4326, code, always_xy=True).transform(longitude, latitude)
        lines.append(f"{len(lines)}.jpg,{east},{north},{number_of_zone},{letter}")
    read = table(tmp_path, "\n".join(lines))
    np.testing.assert_allclose(read.latitudes, [row[2] for row in rows], atol=1e-7)
    np.testing.assert_allclose(read.longitudes, [row[3] for row in rows], atol=1e-7)
    with pytest.raises(DatasetError, match="zone 11, 32, 56"):
        table(tmp_path, "\n".join(lines), "EPSG:32610")


def test_zones_without_letters_need_a_coordinate_system(tmp_path: Path) -> None:
    text = "file,utm_east,utm_north,zone\na.jpg,550000,4180000,10\n"
    with pytest.raises(DatasetError, match="without letters"):
        table(tmp_path, text)
    assert table(tmp_path, text, "EPSG:32610").latitudes[0] == pytest.approx(37.76, abs=0.02)


def test_a_letter_that_does_not_fit_leaves_the_position_unknown(tmp_path: Path) -> None:
    read = table(
        tmp_path, "file,utm_east,utm_north,zone,letter\na.jpg,334000,6252000,56,S\nb.jpg,334000,6252000,56,H\n"
    )
    assert math.isnan(read.latitudes[0]) and read.latitudes[1] == pytest.approx(-33.86, abs=0.02)
    assert "does not fit" in reasons(read)


def test_a_row_without_hemisphere_is_unknown_where_others_have_one(tmp_path: Path) -> None:
    text = "SourceFile,GPSLatitude,GPSLatitudeRef,GPSLongitude,GPSLongitudeRef\n"
    read = table(tmp_path, text + "a.jpg,33.8568,,151.2153,\nb.jpg,33.8568,S,151.2153,E\nc.jpg,-33.8568,,151.2153,E\n")
    assert np.isnan(read.latitudes).tolist() == [True, False, False]
    assert read.latitudes[1:].tolist() == [-33.8568, -33.8568]
    assert "has no hemisphere" in reasons(read)
    degrees = "a.jpg,33 deg 51' 24.48\",,151.2153,E\nb.jpg,33.8568,S,151.2153,E\n"
    assert np.isnan(table(tmp_path, text + degrees.replace('24.48"', "24.48")).latitudes).tolist() == [True, False]
    read = table(tmp_path, "file,lat,ns,lon,ew\na.jpg,37.7,S,122.4,W\n")
    assert (read.latitudes[0], read.longitudes[0]) == (-37.7, -122.4)


def test_magnetic_headings_use_the_time_of_their_row(tmp_path: Path) -> None:
    lines = ["file,lat,lon,heading,GPSImgDirectionRef,time"]
    lines += ["a.jpg,51.5,-0.1,90,M,2010-07-01T12:00:00", "b.jpg,51.5,-0.1,91,M,2026-07-01T12:00:00"]
    for name in ("a.jpg", "b.jpg"):
        write_photo(tmp_path / "in" / name)
    (tmp_path / "table.csv").write_text("\n".join(lines), "utf-8")
    import_all(tmp_path / "in", tmp_path / "table.csv", to=tmp_path / "city")
    rows = list(rows_of(tmp_path / "city").values())
    for row, (heading, year) in enumerate(((90, 2010.5), (91, 2026.5))):
        expected = (heading + magnetic_declination(51.5, -0.1, year)) % 360
        assert rows[row].heading == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("has_exif_position", [True, False])
def test_magnetic_headings_use_the_time_and_the_position_of_their_photo(
    has_exif_position: bool, tmp_path: Path
) -> None:
    """The table has neither, or another table has the position."""
    taken = {0x9003: ascii_tag("2011:07:02 12:00:00")}
    write_photo(tmp_path / "in" / "a.jpg", 42.4 if has_exif_position else None, -71.0, taken=taken)
    headings, places = tmp_path / "1.csv", tmp_path / "2.csv"
    headings.write_text("file,heading,heading_ref\na.jpg,100,M\n", "utf-8")
    places.write_text("file,lat,lon\na.jpg,42.4,-71\n", "utf-8")
    sources = [headings] if has_exif_position else [headings, places]
    import_all(tmp_path / "in", *sources, to=tmp_path / "city")
    (row,) = rows_of(tmp_path / "city").values()
    expected = 100 + magnetic_declination(42.4, -71.0, 2011.5)
    assert abs(expected - 100 - magnetic_declination(42.4, -71.0, 2020.0)) > 0.3
    assert row.heading == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("text", ["+33.8568 S", "33.5 30 S", "33.5.5", "N 33 S"])
def test_angles_that_contradict_themselves_are_unknown(text: str) -> None:
    assert math.isnan(angle(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12.3 m Below Sea Level", -12.3), ("12.3 m Above Sea Level", 12.3), ("3 ft AMSL", 0.9144),
        ("69.4 deg (0.5 m)", 69.4), ("350 deg true", 350), ("350 magnetic", None), ("350 (M)", None),
        ("5 m per second", None),
    ],
)  # fmt: skip
def test_what_follows_a_number_is_understood_as_a_whole(text: str, value: float | None) -> None:
    assert number(text) == pytest.approx(math.nan if value is None else value, nan_ok=True)


@pytest.mark.parametrize("names", ["GPSLatitudeRef,GPSLongitudeRef", "Lat Hemisphere,Lon Hemisphere", "ns,ew"])
def test_the_letters_of_deg_are_no_hemisphere(names: str, tmp_path: Path) -> None:
    """exiftool writes 33 deg 51' 24.48", with the hemisphere in another column, which may be empty."""
    lines = [f"file,lat,lon,{names}", "a.jpg,33 deg 51' 24.48'',151.2,S,E", "b.jpg,33 deg 51' 24.48'',151.2,,E",
             "c.jpg,33 deg 51' 24.48'' S,151.2,,E"]  # fmt: skip
    found = table(tmp_path, "\n".join(lines)).latitudes
    np.testing.assert_allclose(found, [-33.8568, math.nan, -33.8568], atol=1e-7)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("202605011230", (2026, 5, 1, 12, 30)), ("2026-05-01", (2026, 5, 1)), (date(2026, 5, 1), (2026, 5, 1)),
        (20261301120000, None), (202613011200, None), ("20260231", None), (0, None), (3.5, None), (46143.5, None),
        (1e300, None), ("2026-05-01 12:00:00+23:00", None), (np.datetime64(2**62, "s"), None),
    ],
)  # fmt: skip
def test_numbers_that_are_no_times_are_unknown(value: object, expected: tuple[int, ...] | None) -> None:
    wanted = math.nan if expected is None else datetime(*expected, tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]
    assert time_of(value)[0] == pytest.approx(wanted, nan_ok=True)


def test_a_date_stays_the_same_in_any_time_zone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("file,lat,lon,time\na.jpg,1,2,201903\nb.jpg,1,2,2019-03-01\nc.jpg,1,2,20190301120000\n", "utf-8")
    midnight = datetime(2019, 3, 1, tzinfo=UTC).timestamp()
    found = read_position_table(path, {}, timezone="Europe/Rome").values["time"]
    assert found.tolist() == [midnight, midnight, midnight + 11 * 3600]


def test_times_of_parquet_that_python_cannot_hold(tmp_path: Path) -> None:
    path, photos = tmp_path / "t.parquet", pa.table({"file": ["a.jpg", "b.jpg"], "lat": [1.0, 1], "lon": [2.0, 2]})
    for column in (
        pa.array([2**62, 1714557600000], pa.int64()).cast(pa.timestamp("ms")),
        pa.array([2**62, 1714557600000], pa.int64()).cast(pa.timestamp("ms", "Nowhere/Never")),
        pa.array([2**31 - 1, 19845], pa.int32()).cast(pa.date32()),
    ):
        pq.write_table(photos.append_column("time", column), path)
        found = read_position_table(path, {}).values["time"]
        assert math.isnan(found[0])
        assert found[1] // 86_400 == 1714557600 // 86_400 or found[1] == 19845 * 86_400
    lists = pa.array([[2**62], [1]], pa.list_(pa.timestamp("ms")))
    pq.write_table(photos.append_column("history", lists), path)
    assert read_position_table(path, {}).latitudes.tolist() == [1, 1]


@pytest.mark.parametrize("crs", ["nonsense", {"type": "x"}, [1], 7, {"name": "odd"}])
def test_a_bad_coordinate_system_of_a_file_is_not_that_of_a_flag(crs: object, tmp_path: Path) -> None:
    geo = {"primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB", "crs": crs}}}
    point = struct.pack("<BIdd", 1, 1, 2, 1)
    photos = pa.table({"filename": ["a.jpg"], "geometry": [point]}).replace_schema_metadata({"geo": json.dumps(geo)})
    pq.write_table(photos, tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"t\.parquet: its coordinate system .* is not known.*in --crs EPSG"):
        read_position_table(tmp_path / "t.parquet", {})


def test_zones_of_other_systems_and_single_outliers_are_no_utm_zones(tmp_path: Path) -> None:
    x, y = Transformer.from_crs(4326, 31467, always_xy=True).transform(9, 50)
    assert table(tmp_path, f"file,x,y,zone\na.jpg,{x},{y},3\n", "EPSG:31467").latitudes[0] == pytest.approx(
        50, abs=1e-3
    )
    found = table(tmp_path, "file,lat,lon,zone\na.jpg,1,2,33\nb.jpg,1,2,33\nc.jpg,65535,2,33\n").latitudes
    np.testing.assert_equal(found, [1, 1, math.nan])


def test_a_column_that_the_user_has_named_is_not_used_for_another_field(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,lat,lon\na.jpg,1,2\n", "utf-8")
    with pytest.raises(DatasetError, match="no columns of latitude and longitude"):
        read_position_table(tmp_path / "t.csv", {"latitude": "lon", "heading": "lat"})


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_table_alone_finds_photos_with_accents(form: str, tmp_path: Path) -> None:
    write_photo(tmp_path / unicodedata.normalize(form, "Zürich.jpg"))
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "file,lat,lon\nZürich.jpg,47,8\n")
    (tmp_path / "t.csv").write_text(other, "utf-8")
    import_all(tmp_path / "t.csv", to=tmp_path / "city")
    assert [row.latitude for row in rows_of(tmp_path / "city").values()] == [47]


def test_a_field_cannot_have_two_columns() -> None:
    with pytest.raises(ConfigError, match="heading twice"):
        parse_named_columns(["heading=yaw", "heading=lat"])


def test_names_with_accents_in_either_form(tmp_path: Path) -> None:
    name = "Zürich.jpg"
    write_photo(tmp_path / "in" / unicodedata.normalize("NFD", name))
    path = tmp_path / "table.csv"
    path.write_text(f"file,lat,lon\n{unicodedata.normalize('NFC', name)},47.37,8.54\n", "utf-8")
    import_all(tmp_path / "in", path, to=tmp_path / "city")
    assert [row.latitude for row in rows_of(tmp_path / "city").values()] == [47.37]


def test_files_with_odd_metadata(tmp_path: Path) -> None:
    path = tmp_path / "t.geojson"
    point = {"type": "Point", "coordinates": [2, 1]}
    feature = {"type": "Feature", "properties": {"file": "a.jpg"}, "geometry": point}
    content = {"type": "FeatureCollection", "features": [feature], "crs": {"type": "name", "properties": None}}
    path.write_text(json.dumps(content))
    assert read_position_table(path, {}).latitudes.tolist() == [1]
    times = pa.array([1_777_636_800_000_000_001], pa.timestamp("ns"))
    rows = pa.table({"file": ["a.jpg"], "lat": [1.0], "lon": [2.0], "time": times})
    path = tmp_path / "t.parquet"
    pq.write_table(rows.replace_schema_metadata({"geo": '{"primary_column": ["x"]}'}), path)
    assert read_position_table(path, {}).values["time"][0] == pytest.approx(1_777_636_800)


def test_photos_next_to_the_splits_of_a_prepared_dataset_are_kept(tmp_path: Path) -> None:
    names = ["test/database/a", "test/queries/b", "train/c", "holiday/d", "e", "val/f", "test/g"]
    for name in names:
        path = tmp_path / "in" / f"{name}.jpg"
        write_photo(path.with_name(f"@550000.0@4180000.0@10@S@37.76@-122.4@{path.stem}@.jpg"))
    (tmp_path / "in" / "notes").mkdir()
    import_all(tmp_path / "in", to=tmp_path / "city")
    splits = {Path(path).name.split("@")[7]: row.split for path, row in rows_of(tmp_path / "city").items()}
    assert splits == {"a": "test/database", "b": "test/queries", "c": "train", "d": "", "e": "", "f": "", "g": ""}


@pytest.mark.parametrize("code", ["EPSG:25832", "EPSG:2227"])
def test_reconstructions_outside_a_coordinate_system_or_in_feet_are_refused(code: str) -> None:
    with pytest.raises((ConfigError, DatasetError), match=r"outside its area|not in meters"):
        coordinate_system(code)(np.array([[0.0, 0, 0], [50, 20, 3]]))
    east, north = Transformer.from_crs(4326, 25832, always_xy=True).transform(9.0, 48.0)
    latitude, longitude = lla_from_ecef(coordinate_system("EPSG:25832")(np.array([[east, north, 0.0]])))
    assert (latitude[0], longitude[0]) == pytest.approx((48.0, 9.0), abs=1e-6)


@pytest.mark.parametrize("mode", ["table", "copy"])
def test_rows_of_photos_that_are_gone_are_removed_by_the_next_import(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "in"
    names = ["a.jpg", "b.jpg", "c.jpg"]
    for name in names:
        write_photo(folder / name)
    positions = folder / "positions.csv"
    positions.write_text("file,lat,lon\na.jpg,1,2\nb.jpg,1,2.1\nc.jpg,1,2.2\n")
    city = folder if mode == "table" else tmp_path / "city"
    settings = ImportSettings(mode=mode)
    import_all(folder, positions, to=city, settings=settings)
    gone = next(path for path in rows_of(city) if path.endswith("b.jpg"))
    (folder / "b.jpg").unlink()
    (city / gone).unlink(missing_ok=True)
    result = import_all(folder, positions, to=city, settings=settings)
    assert [Path(path).name for path in rows_of(city)] == ["a.jpg", "c.jpg"] and result.num_photos == 2
    assert f'{gone},left out,"no longer exists' in (city / "import_report.csv").read_text()
    for path in list(rows_of(city)):
        (city / path).rename(city / f"{path}.away")
        (folder / Path(path).name).unlink(missing_ok=True)
    with suppress(DatasetError):  # no photos
        import_all(folder, positions, to=city, settings=settings)
    assert len(rows_of(city)) == 2  # most files are missing: perhaps a disk is


def test_a_row_that_stands_there_twice_is_used_once(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "a.jpg")
    path = tmp_path / "table.csv"
    path.write_text("file,lat,lon\na.jpg,1,2\na.jpg,1,2\n")
    import_all(tmp_path / "in", path, to=tmp_path / "city")
    assert [(row.latitude, row.longitude) for row in rows_of(tmp_path / "city").values()] == [(1, 2)]
    assert "rows that equal earlier ones, which are used: 1" in (tmp_path / "city" / "import_report.csv").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="names on other systems are text")
def test_a_name_that_is_not_utf8_is_in_the_report_as_it_is_printed(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "in" / "a.jpg")
    path.rename(os.fsdecode(os.fsencode(path.parent) + b"/plain\xe9.jpg"))
    write_photo(tmp_path / "in" / "b.jpg")
    (tmp_path / "table.csv").write_text("file,lat,lon\nb.jpg,1,2\n")
    import_all(tmp_path / "in", tmp_path / "table.csv", to=tmp_path / "city")
    assert "plain\\xe9.jpg,left out" in (tmp_path / "city" / "import_report.csv").read_text()


def test_a_photo_that_cannot_be_used_is_listed_once(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    (tmp_path / "in" / "link.jpg").symlink_to(write_photo(tmp_path / "elsewhere.jpg"))
    path = tmp_path / "in" / "table.csv"
    path.write_text("file,lat,lon\na.jpg,1,2\nbroken.jpg,1,3\nlink.jpg,1,4\nmissing.jpg,1,5\n")
    import_all(tmp_path / "in", path, to=tmp_path / "city")
    lines = (tmp_path / "city" / "import_report.csv").read_text().splitlines()
    assert len([line for line in lines if "broken.jpg" in line]) == 1
    (of_row,) = [line for line in lines if line.startswith(f"{path} row 3")]
    assert "link.jpg was not imported" in of_row and any("leads outside" in line for line in lines)
    assert any("row 4" in line and "no photo is named missing.jpg" in line for line in lines)


def test_one_column_is_not_both_latitude_and_longitude() -> None:
    with pytest.raises(ConfigError, match="for both latitude and longitude"):
        parse_named_columns(["latitude=lat", "longitude=lat"])
    assert parse_named_columns(["filename=lat", "latitude=lat"])


@pytest.mark.parametrize(
    ("column", "timezone", "hours", "is_listed"),
    [("time", "", 12, True), ("time", "Europe/Rome", 10, False), ("time_utc", "Europe/Rome", 12, False),
     ("GPSDateTime", "", 12, False)],
)  # fmt: skip
def test_times_without_a_zone_are_listed_unless_their_column_names_it(
    column: str, timezone: str, hours: int, is_listed: bool, tmp_path: Path
) -> None:
    lines = [f"file,lat,lon,{column}", "a.jpg,1,2,2026-05-01 12:00:00", "b.jpg,1,2,2026-05-01T12:00:00Z"]
    (tmp_path / "t.csv").write_text("\n".join(lines), "utf-8")
    found = read_position_table(tmp_path / "t.csv", {}, timezone=timezone)
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
    assert found.values["time"].tolist() == [noon + 3600 * (hours - 12), noon]
    reasons = [problem.reason for problem in found.problems]
    assert any(reason.startswith("1 times have no time zone, so UTC was assumed") for reason in reasons) == is_listed
    assert len(reasons) == is_listed


@pytest.mark.parametrize(
    ("name", "offset", "hours"), [("offset", "+02:00", -2), ("UTC offset", "-0530", 5.5), ("tz", "Europe/Rome", 0)]
)
def test_offsets_of_times_may_be_in_a_column(name: str, offset: str, hours: float, tmp_path: Path) -> None:
    found = table(tmp_path, f"file,lat,lon,time,{name}\na.jpg,1,2,2026-05-01 12:00:00,{offset}\n")
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
    assert found.values["time"].tolist() == [noon + 3600 * hours]


@pytest.mark.parametrize("suffix", [".csv", ".geojson", ".gpkg"])
def test_offsets_of_times_are_used_in_any_kind_of_table(suffix: str, tmp_path: Path) -> None:
    times = [f"2026-05-01T12:00:00{zone}" for zone in ("", "Z", "+02:00", ".5-05:30")]
    names, path = [f"{row}.jpg" for row in range(4)], tmp_path / f"table{suffix}"
    if suffix == ".csv":
        rows = [f"{name},45,7,{time}" for name, time in zip(names, times, strict=True)]
        path.write_text("\n".join(["filename,lat,lon,time", *rows]), "utf-8")
    elif suffix == ".geojson":
        point = {"type": "Point", "coordinates": [7, 45]}
        features = [{"type": "Feature", "properties": {"filename": name, "time": time}, "geometry": point}
                    for name, time in zip(names, times, strict=True)]  # fmt: skip
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), "utf-8")
    else:
        pyogrio = pytest.importorskip("pyogrio")
        point, no_times = struct.pack("<BIdd", 1, 1, 7, 45), np.full(4, "NaT", "datetime64[ms]")
        pyogrio.raw.write(
            path, np.array([point] * 4, object), [np.array(names, object), no_times], ["filename", "time"],
            crs="EPSG:4326", geometry_type="Point", driver="GPKG", SPATIAL_INDEX="NO",
        )  # fmt: skip
        with closing(sqlite3.connect(path)) as database, database:
            database.executemany(
                f'UPDATE "{path.stem}" SET time = ? WHERE filename = ?', zip(times, names, strict=True)
            )
    found = read_position_table(path, {}, timezone="Asia/Tokyo").values["time"]
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
    assert [(time - noon) / 3600 for time in found] == pytest.approx([-9, 0, -2, 5.5 + 0.5 / 3600], abs=1e-9)


@pytest.mark.parametrize("reference", ["Below Sea Level", "1"])
def test_altitudes_below_sea_level_are_negative(reference: str, tmp_path: Path) -> None:
    found = table(tmp_path, f"file,lat,lon,altitude,altitude_ref\na.jpg,1,2,12,{reference}\n")
    assert found.values["altitude_m"].tolist() == [-12]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_of_tables(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("file\tlat\tlon\nä€.jpg\t1\t2\n".encode(encoding))
    assert read_position_table(tmp_path / "t.csv", {}).names == ["ä€.jpg"]


def test_a_table_with_an_unknown_delimiter_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"it has file\^lat\^lon\. Separate its columns by commas, semicolons, tabs"):
        table(tmp_path, "file^lat^lon\na.jpg^1^2\n")


def test_rows_that_name_the_same_photo_are_listed_as_such(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "a.jpg", 45, 7)
    (tmp_path / "t.csv").write_text("file,lat,lon\na.jpg,1,2\na.jpg,3,4\n", "utf-8")
    import_all(tmp_path / "in", tmp_path / "t.csv", to=tmp_path / "city")
    report = (tmp_path / "city" / "import_report.csv").read_text()
    assert report.count("a.jpg is in several rows") == 2 and "no photo is named" not in report
    assert f"2 rows name this photo: rows 1, 2 (in {tmp_path / 't.csv'})" in report


AT_NAME = "@@@@@37.75@-122.43@a@@@@@@@@.heic"


def test_tables_name_heic_photos_although_they_become_jpeg(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    (tmp_path / "in").mkdir()
    for name, color in (("a.heic", "red"), ("b.HEIC", "green"), ("c.heic", "blue"), (AT_NAME, "gray")):
        pillow_heif.from_pillow(Image.new("RGB", (32, 32), color)).save(tmp_path / "in" / name)
    (tmp_path / "t.csv").write_text("file,lat,lon\na.heic,45,7\nb.HEIC,46,8\n", "utf-8")
    import_all(tmp_path / "in", tmp_path / "t.csv", to=tmp_path / "city")
    found = {path: row.latitude for path, row in rows_of(tmp_path / "city").items()}
    assert found == {"photos/in/a.jpg": 45, "photos/in/b.jpg": 46, f"photos/in/{AT_NAME[:-5]}.jpg": 37.75}
    report = (tmp_path / "city" / "import_report.csv").read_text()
    assert f"{tmp_path / 'in' / 'c.heic'},uncertain,no row names this photo" in report


def test_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "a.jpg", 45, 7)
    (tmp_path / "in" / "more.ZIP").write_bytes(b"PK\x03\x04")
    import_all(tmp_path / "in", to=tmp_path / "city")
    assert 'more.ZIP,left out,"is an archive. Unpack it' in (tmp_path / "city" / "import_report.csv").read_text()
    with pytest.raises(DatasetError, match=r"more\.ZIP is an archive\. Unpack it, and pass its folder as SOURCE"):
        import_all(tmp_path / "in" / "more.ZIP", to=tmp_path / "town")
