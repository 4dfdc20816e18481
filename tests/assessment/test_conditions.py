"""Conditions of queries: from tables and names, the sun, and rows with enough queries."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from cosplace.assessment.conditions import (
    CAMERA,
    HEADING,
    OTHER,
    SEASON,
    SEQUENCE,
    TIME_OF_DAY,
    YEARS,
    Conditions,
    condition_rows,
    find_conditions,
    nearest_positives,
    sun_elevations,
    unknown_conditions,
)
from cosplace.config.importing import ImportSettings
from cosplace.geo import utm_to_latlon
from cosplace.importing.table_export import export_dataset
from cosplace.photos.names import format_image_name
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.recall import find_positives
from tests.importing.photo_samples import import_all, write_photo
from tests.importing.photo_samples import rows_of as rows_of_dataset
from tests.photos.exif_blocks import ascii_tag
from tests.table_samples import around, write_records


def seconds_of(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


# --- sun -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "latitude", "longitude", "elevation"),
    [
        ("2020-06-20T12:02", 23.44, 0.0, 90.0),  # noon at the solstice on the tropic
        ("2020-12-21T11:58", 51.48, 0.0, 90 - 51.48 - 23.44),  # Greenwich
        ("2020-06-21T00:02", 51.48, 0.0, 23.44 - (90 - 51.48)),  # midnight
        ("2021-03-20T16:07", 0.0, -60.0, 90.0),  # noon at the equinox; the equation of time is -7 minutes
        ("2021-11-03T06:00", 0.0, 86.0, 90 - 15.0),  # and +16 minutes in November: noon, 15 degrees south
        ("2022-12-21T20:00", -90.0, 0.0, 23.44),
    ],
)
def test_elevation_of_the_sun(time: str, latitude: float, longitude: float, elevation: float) -> None:
    found = sun_elevations(np.array([seconds_of(time)]), np.array([latitude]), np.array([longitude]))
    assert found[0] == pytest.approx(elevation, abs=0.6)


def test_sunrise() -> None:
    """In San Francisco on July 4, 2021, the sun rose at 5:53 PDT; its center without refraction 5 minutes later."""
    seconds = seconds_of("2021-07-04T12:58") + np.array([-1800.0, 0.0, 1800.0, np.nan])
    found = sun_elevations(seconds, np.full(4, 37.77), np.full(4, -122.42))
    assert found[1] == pytest.approx(0, abs=0.6)
    assert found[0] < -4 and found[2] > 4 and np.isnan(found[3])


# --- tables ----------------------------------------------------------------------------------------------------------


def from_table(folder: Path) -> RetrievalDataset:
    """Twelve queries 8 m east of a database photo each, at noon or midnight, of two cameras and one sequence."""
    database = [
        replace(one, split="test/database", time=seconds_of("2018-05-01T10:00"), heading=100.0)
        for one in around(45.0, 7.5, 12, 2000)
    ]
    queries = []
    for number, record in enumerate(database):
        hour = 11 if number % 2 else 23
        queries.append(
            replace(
                record, path=f"queries/{number:02d}.jpg", split="test/queries", longitude=record.longitude + 1e-4,
                time=seconds_of(f"2020-07-01T{hour}:00") if number < 10 else float("nan"),
                heading=80.0 if number % 3 else 300.0, camera="phone" if number < 5 else "" if number == 5 else "car",
                sequence="drive" if number > 2 else "",
            )
        )  # fmt: skip
    return open_retrieval_dataset(write_records(folder, [*database, *queries]) / "test")


def test_conditions_of_a_table(tmp_path: Path) -> None:
    dataset = from_table(tmp_path)
    found = find_conditions(dataset, find_positives(dataset.database_positions, dataset.query_positions, 25))
    values = {name: column.tolist() for name, column in found.values.items()}
    assert values[TIME_OF_DAY] == ["night", "day"] * 5 + ["", ""]
    assert values[SEASON] == ["summer"] * 10 + ["", ""]
    assert values[YEARS] == ["1–3"] * 10 + ["", ""]
    assert values[HEADING] == ["90–180°", "0–30°", "0–30°"] * 4
    assert values[CAMERA] == ["phone"] * 5 + [""] + ["car"] * 6
    assert values[SEQUENCE] == [""] * 3 + ["drive"] * 9
    assert found.sequences.tolist()[:3] == [-1] * 3 and len(set(found.sequences.tolist()[3:])) == 1


def test_clocks_without_a_time_zone_have_no_time_of_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Photos of a camera in Tokyo at noon, whose clock shows the local time: as UTC, it would be night there."""
    noon = {0x9003: ascii_tag("2024:07:01 12:00:00")}
    for number in range(4):
        for part in ("database", "queries"):
            offset = {0x9011: ascii_tag("+09:00")} if number > 1 else {}
            path = tmp_path / "camera" / "test" / part / f"{part}{number}.jpg"
            write_photo(path, 35.68 + 0.01 * number, 139.76, taken=noon | offset)
    with caplog.at_level("INFO", "cosplace"):
        values = values_of(open_retrieval_dataset(tmp_path / "camera" / "test"))
    assert values[TIME_OF_DAY] == ["", "", "day", "day"] and values[SEASON] == ["summer"] * 4
    assert "2 queries: the time of day is unknown" in caplog.text
    for timezone, expected in (("", "assumed"), ("Asia/Tokyo", "stated")):  # the second import corrects the first
        import_all(tmp_path / "camera", to=tmp_path / "city", settings=ImportSettings(timezone=timezone))
        rows = sorted(rows_of_dataset(tmp_path / "city").values(), key=lambda one: one.path)
        assert [one.time_zone for one in rows] == [expected, expected, "stated", "stated"] * 2
        table = [replace(one, split="test/queries" if "queries" in one.path else "test/database") for one in rows]
        write_records(tmp_path / "city", table, with_files=False)
        found = values_of(open_retrieval_dataset(tmp_path / "city" / "test"))[TIME_OF_DAY]
        assert found == (["", "", "day", "day"] if expected == "assumed" else ["day"] * 4)
        export_dataset(tmp_path / "city", tmp_path / f"{expected}.geojson", "geojson")
        features = json.loads((tmp_path / f"{expected}.geojson").read_text())["features"]
        assert [one["properties"]["time"].endswith("Z") for one in features] == [
            record.time_zone != "assumed" for record in rows
        ]
        # Names keep it, too, also when they are imported again.
        names = tmp_path / f"names {expected}"
        export_dataset(tmp_path / "city", names, "names")
        assert values_of(open_retrieval_dataset(names / "test"))[TIME_OF_DAY] == found
        import_all(names, to=tmp_path / f"again {expected}")
        zones = [one.time_zone for one in rows_of_dataset(tmp_path / f"again {expected}").values()]
        assert sorted(zones) == (["", "", "", "", *["assumed"] * 4] if expected == "assumed" else [""] * 8)


# --- names -----------------------------------------------------------------------------------------------------------


def from_names(
    folder: Path, timestamps: list[str], *, south: bool = False, heading: int | str = ""
) -> RetrievalDataset:
    """Queries with some timestamps, each beside a database photo of December 2010."""
    for number, timestamp in enumerate(timestamps):
        east, north = 500_000.0 + 100 * number, 6_000_000.0 if south else 4_000_000.0
        latitudes, longitudes = utm_to_latlon(np.array(east), np.array(north), 33, "H" if south else "S")
        for part, time in (("database", "201012"), ("queries", timestamp)):
            name = format_image_name(
                utm_east=east, utm_north=north, zone=33, letter="H" if south else "S", latitude=float(latitudes),
                longitude=float(longitudes), timestamp=time, heading=heading,
            )  # fmt: skip
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / name).touch()
    return open_retrieval_dataset(folder)


def values_of(dataset: RetrievalDataset) -> dict[str, list[str]]:
    found = find_conditions(dataset, find_positives(dataset.database_positions, dataset.query_positions, 25))
    return {name: column.tolist() for name, column in found.values.items()}


def test_dates_have_a_season_but_no_time_of_day(tmp_path: Path) -> None:
    values = values_of(from_names(tmp_path / "north", ["201503", "20151224", "2015", "", "201501"], heading=0))
    assert set(values) == {SEASON, YEARS}  # all headings 0 are unknown
    assert values[SEASON] == ["spring", "winter", "", "", "winter"]
    assert values[YEARS] == ["3–6", "3–6", "3–6", "", "3–6"]
    south = values_of(from_names(tmp_path / "south", ["201503", "20151224"], south=True))
    assert south[SEASON] == ["autumn", "summer"]


def test_minutes_have_a_time_of_day(tmp_path: Path) -> None:
    assert values_of(from_names(tmp_path, ["202006211100", "202006212300", "202006"]))[TIME_OF_DAY] == [
        "day",
        "night",
        "",
    ]


def test_nothing_known(tmp_path: Path) -> None:
    assert values_of(from_names(tmp_path, ["", "x"])) == {}
    assert not unknown_conditions(3).values and unknown_conditions(3).sequences.tolist() == [-1] * 3


# --- nearest positives -----------------------------------------------------------------------------------------------


def test_nearest_positive_is_the_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dataset = from_names(tmp_path, ["2015"])
    database, queries = np.repeat(100 * rng.random((40, 2)), 3, axis=0), 140 * rng.random((30, 2))
    dataset = replace(dataset, database_positions=database, query_positions=queries)
    positives = find_positives(database, queries, 12)
    first, count = nearest_positives(dataset, positives)
    assert (positives.counts == 0).any()
    for query in range(30):
        near = positives.of(query)
        if not len(near):
            assert count[query] == 0
            continue
        best = near[np.linalg.norm(database[near] - queries[query], axis=1).argmin()]
        assert (first[query], count[query]) == (best, 3)


# --- rows ------------------------------------------------------------------------------------------------------------


def rows_of(column: list[str], right: np.ndarray, errors_m: np.ndarray):
    count = len(column)
    conditions = Conditions(
        values=MappingProxyType({"weather": np.array(column, object)}), sequences=np.full(count, -1),
        seconds=np.full(count, np.nan),
    )  # fmt: skip
    return condition_rows(conditions, right, errors_m, np.arange(count))


def test_rows_count_the_queries_of_each_value() -> None:
    column = ["rain"] * 12 + ["sun"] * 20 + ["fog"] * 3 + [""] * 2
    right, errors_m = np.arange(37) % 4 == 0, np.arange(37.0)
    rows = rows_of(column, right, errors_m)
    assert [(row.value, row.num_queries) for row in rows] == [("rain", 12), ("sun", 20), (OTHER, 5)]
    assert [row.recall1.value for row in rows] == pytest.approx([25.0, 25.0, 40.0])
    assert [row.median_error_m.value for row in rows] == [5.0, 21.0, 34.0]
    assert all(row.median_error_m.low < row.median_error_m.value < row.median_error_m.high for row in rows)


def test_a_condition_needs_two_values_with_enough_queries() -> None:
    right = np.ones(30, bool)
    assert rows_of(["sun"] * 30, right, np.zeros(30)) == ()
    assert rows_of(["sun"] * 21 + ["rain"] * 9, right, np.zeros(30)) == ()


def test_values_are_in_their_natural_order() -> None:
    column = ["winter"] * 10 + ["autumn"] * 15 + ["spring"] * 20
    rows = rows_of(column, np.ones(45, bool), np.zeros(45))
    assert [row.value for row in rows] == ["winter", "spring", "autumn"]
