"""Tables of positions: every kind of file, usual and unusual columns, coordinate systems, and mistakes in tables."""

import csv
import json
import math
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod, Transformer

from cosplace.config.importing import ImportSettings, TableSettings
from cosplace.errors import ConfigError, DatasetError
from cosplace.importing.columns import angle, number, time_of
from cosplace.importing.coordinate_systems import to_degrees
from cosplace.importing.position_columns import PositionTable, read_position_table
from cosplace.photos.tables import PhotoRecord
from tests.importing.photo_samples import import_all, rows_of, write_photo

SYDNEY = (-33.8568, 151.2153)


def read(path: Path, crs: str = "", **named: str) -> PositionTable:
    return read_position_table(path, named, crs)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        write_photo(folder / name)
    return folder


def imported(tmp_path: Path, *sources: Path, **tables: object) -> dict[str, PhotoRecord]:
    city = tmp_path / "city"
    settings = ImportSettings(tables=TableSettings(**tables))  # type: ignore[arg-type]
    import_all(*sources, to=city, settings=settings)
    return {Path(path).name: row for path, row in rows_of(city).items()}


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize(
    "lines",
    [
        "filename,latitude,longitude,heading\né.jpg,-33.8568,151.2153,90.5\n",
        "Image;Lat;Lon;Yaw\r\né.jpg;-33,8568;151,2153;90,5\r\n",
        "sep=;\nImage;Lat;Lon;Yaw\né.jpg;-33,8568;151,2153;90,5\n",
        "photo\tGPSLatitude\tGPSLongitude\tGPSImgDirection\né.jpg\t33 deg 51' 24.48\" S\t151 deg 12' 55.08\" E\t90.5\n",
        '#name, y, x, bearing\n"é.jpg", "33.8568° S", "151°12\'55.08""E", 90.5 °\n\n',
        "FILE|LAT|LNG|northdeg|GPSLatitudeRef\né.jpg|33.8568|151.2153|450.5|South\n",
    ],
)
def test_text_tables_of_any_kind(lines: str, encoding: str, tmp_path: Path) -> None:
    table = read(write(tmp_path / "table.csv", lines, encoding))
    assert table.names == ["é.jpg"]
    assert (table.latitudes[0], table.longitudes[0]) == pytest.approx(SYDNEY, abs=1e-9)
    assert table.values["heading"][0] == pytest.approx(90.5)


@pytest.mark.parametrize(
    "content",
    [
        [{"file": "a.jpg", "lat": SYDNEY[0], "lon": SYDNEY[1], "compass": 90.5}],
        {"version": 1, "photos": [{"file": "a.jpg", "lat": SYDNEY[0], "lon": SYDNEY[1], "compass": "90.5"}]},
        {"a.jpg": {"lat": SYDNEY[0], "lon": SYDNEY[1], "azimuth": 90.5}},
        [{"SourceFile": "a.jpg", "EXIF:GPSLatitude": 33.8568, "EXIF:GPSLongitude": 151.2153,
          "GPS": {"GPSImgDirection": 90.5}, "Composite:GPSLatitude": SYDNEY[0],
          "Composite:GPSLongitude": SYDNEY[1]}],
        {"type": "FeatureCollection", "features": [
            {"type": "Feature", "properties": {"image": "a.jpg", "heading": 90.5},
             "geometry": {"type": "Point", "coordinates": [SYDNEY[1], SYDNEY[0], 12]}}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_lines", [False, True])
def test_json_tables(content: object, as_lines: bool, tmp_path: Path) -> None:
    if as_lines and not isinstance(content, list):
        return
    text = "\n".join(map(json.dumps, content)) if as_lines and isinstance(content, list) else json.dumps(content)
    table = read(write(tmp_path / "table.json", text))
    assert table.names == ["a.jpg"]
    assert (table.latitudes[0], table.longitudes[0]) == pytest.approx(SYDNEY, abs=1e-9)
    assert table.values["heading"][0] == pytest.approx(90.5)


def wkb(x: float, y: float) -> bytes:
    return struct.pack("<BIdd", 1, 1, x, y)


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32756"])
def test_tables_with_a_geometry_know_their_coordinate_system(suffix: str, crs: str, tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyproj import CRS

    path, x_y = tmp_path / f"table{suffix}", Transformer.from_crs(4326, crs, always_xy=True).transform(*SYDNEY[::-1])
    if suffix == ".gpkg":
        pyogrio.raw.write(
            path, np.array([wkb(*x_y)], object), [np.array(["a.jpg"], object), np.array([90.5])],
            ["filename", "heading"], crs=crs, geometry_type="Point", driver="GPKG",
        )  # fmt: skip
    else:
        geo = {"version": "1.1.0", "primary_column": "geometry",
               "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Point"],
                                        "crs": CRS.from_user_input(crs).to_json_dict()}}}  # fmt: skip
        table = pa.table({"filename": ["a.jpg"], "heading": [90.5], "geometry": [wkb(*x_y)]})
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    table = read(path)
    assert (table.latitudes[0], table.longitudes[0]) == pytest.approx(SYDNEY, abs=1e-8)
    assert table.values["heading"][0] == 90.5


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("options", [["-csv"], ["-csv", "-n"], ["-json"], ["-json", "-n"], ["-json", "-G"]])
def test_tables_of_exiftool_give_what_its_photos_give(options: Sequence[str], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for index, (latitude, longitude) in enumerate([SYDNEY, (12.5, -77.25), (-1e-4, 1e-4), (89.5, 179.99)]):
        write_photo(folder / f"{index}.jpg", latitude, longitude, 10.25 * index)
    output = subprocess.run(["exiftool", *options, "-r", "in"], cwd=tmp_path, capture_output=True, check=True).stdout
    path = tmp_path / ("table.csv" if "-csv" in options else "table.json")
    path.write_bytes(output)
    table = read(path)
    import_all(folder, to=tmp_path / "city")
    photos = {Path(path).name: row for path, row in rows_of(tmp_path / "city").items()}
    for row, name in enumerate(table.names):
        own = photos[Path(name).name]
        distance_m = Geod(ellps="WGS84").inv(own.longitude, own.latitude, table.longitudes[row], table.latitudes[row])[
            2
        ]
        assert distance_m < 0.5  # without -n, exiftool prints hundredths of a second
        assert table.values["heading"][row] == pytest.approx(own.heading)


# --- positions and headings survive ----------------------------------------------------------------------------------

UTM_CODES = st.sampled_from([32601, 32618, 32633, 32660, 32701, 32733, 32760])
EARTH_CODES = {
    4326: (-180, -90, 180, 90), 4258: (-16, 34, 38, 84), 3857: (-180, -85, 180, 85), 25832: (6, 39, 12, 84),
    27700: (-7, 50, 1.5, 60.5), 2056: (6, 46, 10.4, 47.8), 2193: (167, -47, 178, -34.5), 3031: (-180, -89, 180, -60),
    6933: (-180, -85, 180, 85), 31467: (8, 47.5, 10.4, 55), 5514: (12.2, 48, 18.8, 51), 2154: (-4, 42, 8, 51),
}  # fmt: skip
"""EPSG codes, and a box of their area: west, south, east, north."""


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_positions_survive_any_coordinate_system(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """From WGS 84 by pyproj into a code, written to the millimeter into a CSV file, and read: within 1 cm."""
    if data.draw(st.booleans()):
        code = data.draw(UTM_CODES)
        middle = 6 * (code % 100) - 183
        west, south, east, north = middle - 3, -80 if code > 32700 else 0, middle + 3, 0 if code > 32700 else 84
    else:
        code = data.draw(st.sampled_from(sorted(EARTH_CODES)))
        west, south, east, north = EARTH_CODES[code]
    longitude, latitude = data.draw(st.floats(west, east)), data.draw(st.floats(south, north))
    heading = data.draw(st.floats(0, 359.99))
    x, y = Transformer.from_crs(4326, code, always_xy=True).transform(longitude, latitude)
    path = tmp_path_factory.mktemp("table") / "table.csv"
    digits = 8 if max(abs(x), abs(y)) <= 180 else 3
    path.write_text(f"file;east;north;yaw\na.jpg;{x:.{digits}f};{y:.{digits}f};{heading:.2f}\n".replace(".", ","))
    path.write_text(path.read_text().replace("a,jpg", "a.jpg"))
    table = read(path, f"EPSG:{code}")
    back = float(table.latitudes[0]), float(table.longitudes[0])
    if abs(latitude) < 1e-6 and abs(longitude) < 1e-6:
        return  # 0, 0 means unknown
    if code in (27700, 31467, 5514):  # their shift to WGS 84 depends on the grids that pyproj has: there and back
        expected = Transformer.from_crs(code, 4326, always_xy=True).transform(round(x, digits), round(y, digits))
        assert back == pytest.approx(expected[::-1], abs=1e-9)
    else:
        assert Geod(ellps="WGS84").inv(longitude, latitude, back[1], back[0])[2] < 0.01
    assert table.values["heading"][0] == pytest.approx(heading, abs=0.01)


def test_positions_survive_from_exif_to_the_dataset(tmp_path: Path) -> None:
    """Anywhere on Earth, within 1 cm and 1 degree."""
    random = np.random.default_rng(0)
    places = [(89.99, 179.999), (-89.99, -179.999), (1e-5, -1e-5), (-1e-5, 180), (0, 12), (12, 0)]
    places += list(zip(random.uniform(-90, 90, 60), random.uniform(-180, 180, 60), strict=True))
    headings = random.uniform(0, 359.99, len(places))
    for index, ((latitude, longitude), heading) in enumerate(zip(places, headings, strict=True)):
        write_photo(tmp_path / f"{index:02d}.jpg", latitude, longitude, heading)
    import_all(tmp_path, to=None, settings=ImportSettings(mode="table"))
    rows = rows_of(tmp_path)
    assert len(rows) == len(places)
    for (latitude, longitude), heading, row in zip(places, headings, rows.values(), strict=True):
        assert Geod(ellps="WGS84").inv(longitude, latitude, row.longitude, row.latitude)[2] < 0.01
        assert abs((row.heading - heading + 180) % 360 - 180) < 1


def test_axes_are_east_and_north_whatever_their_order_in_the_code() -> None:
    latitudes, longitudes, _ = to_degrees(np.array([151.2153]), np.array([-33.8568]), "EPSG:4326")  # latitude first
    assert (latitudes[0], longitudes[0]) == pytest.approx(SYDNEY)
    latitudes, longitudes, _ = to_degrees(np.array([3_500_000.0]), np.array([5_400_000.0]), "EPSG:31467")  # north first
    assert 48 < latitudes[0] < 49.5
    assert 8.5 < longitudes[0] < 9.5


# --- joining ---------------------------------------------------------------------------------------------------------


def test_rows_are_joined_by_path_and_both_sides_without_partner_are_listed(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", "x/1.jpg", "y/1.jpg", "2.jpg", "3.JPG", "unnamed.jpg", "z/4.jpg", "w/4.jpg")
    table = write(
        tmp_path / "table.csv",
        "path,lat,lon\n/home/somebody/in/x/1.jpg,1,1\nC:\\drive\\y\\1.jpg,2,1\n2,3,1\n3.jpg,4,1\nmissing.jpg,5,1\n4.jpg,6,1\n",
    )
    result = import_all(folder, table, to=tmp_path / "city")
    rows = {path.removeprefix("photos/in/"): row.latitude for path, row in rows_of(tmp_path / "city").items()}
    assert rows == {"x/1.jpg": 1, "y/1.jpg": 2, "2.jpg": 3, "3.JPG": 4}
    text = (tmp_path / "city" / "import_report.csv").read_text()
    assert f"{table} row 5,left out,no photo is named missing.jpg" in text
    assert text.count("may mean any of 2 photos with this name") == 2
    assert f"{folder}/unnamed.jpg,uncertain,no row names this photo" in text
    assert sum(result.report.left_out.values()) == 3 + 2  # photos, rows


def test_a_table_alone_brings_the_photos_next_to_it_and_none_from_elsewhere(tmp_path: Path) -> None:
    outside = write_photo(tmp_path / "private.jpg")
    folder = photos(tmp_path / "in", "a.jpg", "sub/b.jpg", "not_named.jpg")
    (folder / "link.jpg").symlink_to(outside)
    lines = ["filename,lat,lon,split,sequence", "a.jpg,1,1,train,s1", "sub/b.jpg,2,2,test/queries,s2",
             "../private.jpg,3,3,,", f"{outside},4,4,,", "link.jpg,5,5,,"]  # fmt: skip
    rows = imported(tmp_path, write(folder / "table.csv", "\n".join(lines)))
    assert set(rows) == {"a.jpg", "b.jpg"}
    assert (rows["b.jpg"].split, rows["b.jpg"].sequence) == ("test/queries", "s2")


def test_two_tables_complete_each_other(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", "a.jpg")
    one = write(tmp_path / "one.csv", "filename,lat,lon,accuracy\na.jpg,1,2,3.5\n")
    two = write(
        tmp_path / "two.csv", "filename,heading,ref,timestamp,alt\na.jpg,370,T,2024-05-01T12:00:00+02:00,12 m\n"
    )
    row = imported(tmp_path, folder, one, two)["a.jpg"]
    assert (row.latitude, row.longitude, row.accuracy_m, row.heading, row.altitude_m) == (1, 2, 3.5, 10, 12)
    assert row.heading_source == "table"
    assert row.time == 1714557600


def test_columns_of_other_names_are_named_by_flags(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", "a.jpg")
    table = write(tmp_path / "t.csv", "Bild;Breite;Länge;Richtung\na.jpg;48,1;11,5;77\n")
    columns = ("filename=Bild", "latitude=Breite", "longitude=Länge", "heading=Richtung")
    row = imported(tmp_path, folder, table, column=columns)["a.jpg"]
    assert (row.latitude, row.longitude, row.heading) == (48.1, 11.5, 77)
    with pytest.raises(DatasetError, match=r"no column 'Breit'.*Did you mean 'Breite'"):
        imported(tmp_path, folder, table, column=("latitude=Breit",))
    with pytest.raises(ConfigError, match="Did you mean latitude=Breite"):
        imported(tmp_path, folder, table, column=("latitud=Breite",))


def test_times_without_a_zone_are_in_that_of_the_user(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.csv", "file,lat,lon,time\na.jpg,1,2,2024-07-01 12:00:00\nb.jpg,1,2,2024-07-01T12:00:00Z\n"
    )
    assert read_position_table(table, {}, timezone="Europe/Rome").values["time"].tolist() == [1719828000, 1719835200]
    assert read(table).values["time"].tolist() == [1719835200, 1719835200]


def test_a_column_of_zero_headings_does_not_replace_those_of_the_photos(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for index in range(3):
        write_photo(folder / f"{index}.jpg", 45, 9 + index, 90 + index)
    table = write(tmp_path / "t.csv", "file,lat,lon,heading\n0.jpg,1,2,0\n1.jpg,1,3,0\n2.jpg,1,4,0\n")
    rows = imported(tmp_path, folder, table)
    assert [(row.longitude, row.heading) for row in rows.values()] == [(2, 90), (3, 91), (4, 92)]
    assert "column 'heading' is 0 in each row" in (tmp_path / "city" / "import_report.csv").read_text()


def test_one_of_two_columns_of_the_same_name_is_chosen_unless_they_are_equal(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "file,lat,lat,lon,note,note\na.jpg,1,2,3,x,y\n")
    assert read(table, latitude="lat 2").latitudes.tolist() == [2]
    assert read(write(tmp_path / "u.csv", "file,lat,lat,lon\na.jpg,1,1,3\n")).latitudes.tolist() == [1]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "crs", "problem"),
    [
        ("file,lat,lon\na.jpg,151.2,-33.8\nb.jpg,151.3,-33.9\n", "", "swapped: column 'lat' has values beyond 90"),
        ("file,x,y\na.jpg,5330440,686122\n", "EPSG:25832", "swapped: they are in the area of EPSG:25832"),
        ("file,x,y\na.jpg,686122,5330440\n", "", r"not degrees\. Name their coordinate system, as in --crs"),
        ("file,x,y\na.jpg,6861220,53304\n", "EPSG:25832", "outside the area of EPSG:25832"),
        ("file,lat,lon\na.jpg,,\nb.jpg,n/a,\n", "", "column 'lat' has no numbers"),
        ("file,lat\na.jpg,1\n", "", "no columns of latitude and longitude"),
        ("file,color\na.jpg,red\n", "", "no columns of latitude and longitude; it has file, color"),
        ("lat,lon\n1,2\n", "", "no column of file names"),
        ("file,lat,lat,lon\na.jpg,1,2,3\n", "", "several columns named 'lat'.*: --column 'latitude=lat' for the first"),
        ("file,lat,latitude,lon\na.jpg,1,2,3\n", "", r"'latitude' and 'lat' of latitude.*'latitude=lat'"),
        ("file,lat,lon,lng\na.jpg,1,2,2\nb.jpg,1,2,3\n", "", "'lon' and 'lng' of longitude"),
        ("file,lat,lon\na.jpg,45,1,7,2\n", "", r"1 of 1 rows have more values than the 3 columns .*semicolons"),
        ("file,lat,lon\n", "", "no rows"),
        ("", "", "no rows"),
    ],
)
def test_tables_that_cannot_be_right_are_refused(text: str, crs: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=problem) as raised:
        read(write(tmp_path / "table.csv", text), crs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "altitude_m"),
    [("1,234", math.nan), ("-1,234 m", math.nan), ("1,234.5", 1234.5), ("12,5", 12.5), ("0,123", 0.123), ("7", 7)],
)
def test_altitudes_that_may_be_thousands_are_unknown(text: str, altitude_m: float, tmp_path: Path) -> None:
    found = read(write(tmp_path / "table.csv", f"file;lat;lon;altitude\na.jpg;1;2;{text}\n"))
    assert found.values["altitude_m"][0] == pytest.approx(altitude_m, nan_ok=True)
    assert [text in problem.reason for problem in found.problems] == [True] * math.isnan(altitude_m)


def test_equal_columns_of_one_meaning_are_read(tmp_path: Path) -> None:
    text = "file,lat,latitude,GPSLatitude,utmnorth,lon\na.jpg,-1.5,-1.50001,1 deg 30' 0,9834000,3\nb.jpg,2,,,1,3\n"
    found = read(write(tmp_path / "table.csv", text))
    assert found.latitudes[0] == -1.50001
    table = write(tmp_path / "other.csv", "file,lat,latitude,lon\na.jpg,1,2,3\n")
    assert read(table, latitude="lat").latitudes.tolist() == [1]


def test_single_rows_with_too_many_values_are_not_used(tmp_path: Path) -> None:
    text = "file,lat,lon\na.jpg,1,2,,\nb.jpg,45,1,7,2\nc.jpg,1,3\n"
    found = read(write(tmp_path / "table.csv", text))
    assert found.names == ["a.jpg", "", "c.jpg"] and found.repeated == {1}
    (problem,) = found.problems
    assert problem.name.endswith("row 2") and "b.jpg has more values than the header" in problem.reason


@pytest.mark.parametrize(
    ("crs", "problem"),
    [
        ("EPSG:99999", "EPSG:99999 is not a known"),
        ("EPSG:4978", "no positions"),
        ("nonsense", "nonsense is not a known"),
        ("EPSG:5773", "no positions"),
    ],
)
def test_unknown_coordinate_systems_are_named(crs: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(write(tmp_path / "table.csv", "file,x,y\na.jpg,1,2\n"), crs)


def test_swapped_columns_are_found_by_the_positions_in_the_photos(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    lines = ["file,lat,lon"]
    for index in range(4):
        write_photo(folder / f"{index}.jpg", 45.4 + index * 1e-3, 9.2)
        lines.append(f"{index}.jpg,9.2,{45.4 + index * 1e-3}")
    with pytest.raises(DatasetError, match="swapped: the positions in the photos"):
        imported(tmp_path, folder, write(tmp_path / "table.csv", "\n".join(lines)))
    assert not (tmp_path / "city" / "photos.parquet").exists()


def test_impossible_and_unknown_values_of_single_rows(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", *(f"{number}.jpg" for number in range(6)))
    lines = ["file,lat,lon,heading,split", "0.jpg,0,0,1,", "1.jpg,95,10,1,", "2.jpg,1,181,1,", "3.jpg,1,1,65535,",
             "4.jpg,1,2,-90,holdout", "5.jpg,1,3,none,train"]  # fmt: skip
    rows = imported(tmp_path, folder, write(tmp_path / "table.csv", "\n".join(lines)))
    assert set(rows) == {"3.jpg", "4.jpg", "5.jpg"}
    assert math.isnan(rows["3.jpg"].heading)
    assert math.isnan(rows["5.jpg"].heading)
    assert (rows["4.jpg"].heading, rows["4.jpg"].split, rows["5.jpg"].split) == (270, "", "train")
    with (tmp_path / "city" / "import_report.csv").open(newline="") as file:
        reasons = {(Path(row[0].split(" row ")[0]).name, row[0][-1]): row[2] for row in csv.reader(file)}
    assert "impossible" in reasons["table.csv", "2"]
    assert "impossible" in reasons["table.csv", "3"]
    assert reasons["table.csv", "4"] == "headings such as 65535 are not directions, and are unknown: 1"
    assert "holdout" in reasons["table.csv", "5"]


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-33.8568", -33.8568), ("33.8568 S", -33.8568), ("S 33.8568", -33.8568), ("33,51.408S", -33.8568),
        ("-33,8568", -33.8568), ("33°51'24.48\"S", -33.8568), ("33 51 24.48 S", -33.8568), ("-33 51 24.48", -33.8568),
        ("1.5e-5", 1.5e-5),
        ("33 deg 51' 24.48\" S", -33.8568), ("151.2153E", 151.2153), ("-33 N", None), ("33 75 0 S", None), ("", None),
        ("nan", None), ("abc", None), ("inf", None), (True, None), (None, None), (48, 48), ("10 m N", None),
    ],
)  # fmt: skip
def test_angles(text: object, value: float | None) -> None:
    assert angle(text) == pytest.approx(math.nan if value is None else value, nan_ok=True, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5 m", 5), ("12.5", 12.5), ("12,5", 12.5), ("1,234.5", 1234.5), ("90°", 90), ("1_000", None), ("5x", None),
     ("", None), ("12.3 m Above Sea Level", 12.3), (math.inf, None), ([1], None), ("1e400", None)],
)  # fmt: skip
def test_numbers(text: object, value: float | None) -> None:
    assert number(text) == pytest.approx(math.nan if value is None else value, nan_ok=True)


@pytest.mark.parametrize(
    "value", ["2024-05-01T10:00:00Z", "2024:05:01 12:00:00+02:00", 1714557600, "1714557600", 1714557600000,
              1714557600000000, np.datetime64("2024-05-01T10:00:00"), "2024-05-01 10:00:00.000"],
)  # fmt: skip
def test_times(value: object) -> None:
    assert time_of(value)[0] == 1714557600
    assert time_of("2024:05:01 12:00:00", "+02:00")[0] == 1714557600
    assert math.isnan(time_of("yesterday")[0])


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=400), suffix=st.sampled_from([".csv", ".json", ".parquet", ".geojson", ".gpkg"]))
def test_any_content_gives_a_table_or_an_error_in_one_line(
    content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("table") / f"table{suffix}"
    path.write_bytes(content)
    try:
        read(path)
    except (DatasetError, ConfigError) as error:
        assert "\n" not in str(error)


def test_a_table_among_the_photos_is_no_photo_that_was_left_out(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", "a.jpg")
    table = write(folder / "positions.csv", "name,lat,lon\na.jpg,-33.8568,151.2153\n")
    other = write(folder / "other.csv", "name\n")
    result = import_all(folder, table, to=tmp_path / "city")
    reported = (tmp_path / "city" / "import_report.csv").read_text("utf-8")
    assert result.num_added == 1 and str(table) not in reported
    assert str(other) in reported and "also pass it as SOURCE" in reported
