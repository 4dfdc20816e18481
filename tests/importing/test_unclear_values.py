"""Values of tables that could be read in the wrong way: signs, hemispheres, zones, units, dates, files."""

import json
import math
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyproj import Transformer

from cosplace.config.importing import ImportSettings
from cosplace.errors import ConfigError, DatasetError
from cosplace.geo import lla_from_ecef, magnetic_declination
from cosplace.importing.columns import angle, number, parse_named_columns, time_of
from cosplace.importing.poses import coordinate_system
from cosplace.importing.position_tables import PositionTable, read_position_table
from tests.importing.photo_samples import import_all, rows_of, write_photo


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
    headings = table(tmp_path, "\n".join(lines)).values["heading"]
    for row, (heading, year) in enumerate(((90, 2010.5), (91, 2026.5))):
        assert headings[row] == pytest.approx(heading + magnetic_declination(51.5, -0.1, year), abs=0.02)


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
