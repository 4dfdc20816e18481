"""Splits keep their distance anywhere on Earth, and each photo is in one split or counted as unused."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Geod

from cosplace.cli import main
from cosplace.config.splitting import SplitConfig
from cosplace.errors import ConfigError, DatasetError, StorageError
from cosplace.geo import ecef_from_lla
from cosplace.importing.dataset_table import locked_dataset
from cosplace.photos.scanning import is_dataset_part, scan_images
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, from_table, read_table, to_table, write_table
from cosplace.retrieval.query_choice import QUERY, choose_queries, visits_of
from cosplace.retrieval.splitting import Places, block_numbers, plan_splits, split_dataset

GEOD = Geod(ellps="WGS84")
HOUR = 3600.0


def positions(
    latitude: float, longitude: float, count: int, extent_m: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random latitudes and longitudes around a point, by geodesics."""
    random = np.random.default_rng(seed)
    azimuths, lengths = random.uniform(0, 360, count), extent_m * np.sqrt(random.uniform(0, 1, count))
    longitudes, latitudes, _ = GEOD.fwd([longitude] * count, [latitude] * count, azimuths, lengths)
    return np.asarray(latitudes), np.asarray(longitudes)


def smallest_geodesic(latitudes: np.ndarray, longitudes: np.ndarray, areas: np.ndarray) -> float:
    """Smallest distance between photos of different areas, all pairs compared by pyproj."""
    smallest = np.inf
    for row in range(len(areas)):
        others = np.flatnonzero((areas != areas[row]) & (areas != "") & (areas[row] != ""))
        if len(others):
            start = [longitudes[row]] * len(others), [latitudes[row]] * len(others)
            smallest = min(smallest, np.min(GEOD.inv(*start, longitudes[others], latitudes[others])[2]))
    return smallest


def config(**values: object) -> SplitConfig:
    return SplitConfig(**{"dataset": "city", **values})  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    latitude=st.sampled_from([0.0, 37.7, -54.8, 78.2, 89.99, -89.99]) | st.floats(-89.9, 89.9),
    longitude=st.sampled_from([180.0, -180.0, 0.0, 6.0]) | st.floats(-180, 180),
    by=st.sampled_from(["blocks", "time", "sequence"]),
    buffer_m=st.sampled_from([0.0, 26.0, 50.0, 120.0]),
    seed=st.integers(0, 1000),
)
def test_no_two_splits_are_nearer_than_the_buffer(
    latitude: float, longitude: float, by: str, buffer_m: float, seed: int
) -> None:
    count = 200
    latitudes, longitudes = positions(latitude, longitude, count, 400, seed)
    random = np.random.default_rng(seed)
    unknown = random.uniform(size=count) < 0.05
    places = Places(
        points=np.where(unknown[:, None], np.nan, ecef_from_lla(latitudes, longitudes)),
        seconds=np.where(random.uniform(size=count) < 0.05, np.nan, random.uniform(0, 1000 * HOUR, count)),
        sequences=np.where(random.uniform(size=count) < 0.05, -1, random.integers(0, 40, count)),
    )
    try:
        result = plan_splits(places, config(by=by, buffer_m=buffer_m, seed=seed))
    except DatasetError:  # too small an area for the buffer, or drives that are all near each other
        assert by != "blocks" or buffer_m > 50
        return
    areas = np.array([split.partition("/")[0] for split in result.splits.tolist()])
    assert smallest_geodesic(latitudes, longitudes, areas) >= buffer_m
    assert not (unknown & (result.splits != "")).any()
    assert sum(result.counts.values()) + sum(result.unused.values()) == count
    assert (result.splits == "").sum() == sum(result.unused.values())
    assert np.array_equal(plan_splits(places, config(by=by, buffer_m=buffer_m, seed=seed)).splits, result.splits)


def test_blocks_are_about_square_and_have_their_size() -> None:
    for latitude, longitude in ((0, 180), (60, 10), (-45, -180), (88, 0)):
        latitudes, longitudes = positions(latitude, longitude, 4000, 1000, 1)
        numbers = block_numbers(ecef_from_lla(latitudes, longitudes), 250)
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            assert GEOD.inv(
                [longitudes[rows[0]]] * len(rows), [latitudes[rows[0]]] * len(rows), longitudes[rows], latitudes[rows]
            )[2] == pytest.approx(0, abs=2.1 * 250)
        assert 30 < len(np.unique(numbers)) < 90  # a circle of 3.14 square kilometers has 50


# --- queries ---------------------------------------------------------------------------------------------------------


def street(num_places: int, spacing_m: float = 30.0) -> np.ndarray:
    """Points of places along a street, (n, 3) meters."""
    return ecef_from_lla(np.full(num_places, 45.0), 7.0 + np.arange(num_places) * spacing_m / 78_847)


def test_queries_are_from_another_visit_than_their_database() -> None:
    points = np.concatenate([street(50)] * 4)
    visits = np.repeat(np.arange(4), 50)
    choice = choose_queries(points, visits, 0.25, np.random.default_rng(0))
    is_query = choice.roles == QUERY
    assert "other visits" in choice.rule and is_query.sum() == 50
    assert len(np.unique(visits[is_query])) == 1


def test_queries_of_one_visit_keep_a_photo_of_their_place() -> None:
    points = np.repeat(street(50, 100), 3, axis=0) + np.tile([[0, 0, 0], [5, 0, 0], [0, 5, 0]], (50, 1))
    choice = choose_queries(points, np.zeros(150, np.int64), 0.2, np.random.default_rng(0))
    is_query = choice.roles == QUERY
    assert "at random" in choice.rule and 15 <= is_query.sum() <= 31
    for row in np.flatnonzero(is_query):
        assert not is_query[row // 3 * 3 : row // 3 * 3 + 3].all()


def test_crops_of_a_panorama_stay_together() -> None:
    points = np.repeat(np.concatenate([street(40), street(40) + 3]), 6, axis=0)
    roles = choose_queries(points, np.full(480, -1), 0.2, np.random.default_rng(1)).roles.reshape(80, 6)
    assert (roles == roles[:, :1]).all() and (roles == QUERY).any()


def test_visits_are_sequences_or_hours() -> None:
    seconds = np.array([0, 10, 2 * HOUR, 2 * HOUR + 60, np.nan, 5])
    visits = visits_of(seconds, np.array([-1, -1, -1, -1, -1, 3]))
    assert visits[5] == 3 and visits[4] == -1
    assert visits[0] == visits[1] != visits[2] == visits[3] and 3 not in visits[:4]


# --- tables ----------------------------------------------------------------------------------------------------------


def write_city(folder: Path, *, visits: int = 3, side: int = 12, spacing_m: float = 60.0) -> Path:
    """A table of a grid of places, each seen in each visit, across the antimeridian; three photos have no position."""
    records = []
    for visit in range(visits):
        for row in range(side):
            for column in range(side):
                longitude, latitude, _ = GEOD.fwd(180.0, -17.0, 90, (column - side / 2) * spacing_m + visit)
                longitude, latitude, _ = GEOD.fwd(longitude, latitude, 0, row * spacing_m)
                records.append(
                    PhotoRecord(
                        path=f"{visit}/{row:02d}-{column:02d}.jpg", latitude=latitude, longitude=longitude,
                        heading=90.0, time=1.7e9 + visit * 86_400 + row * 10 + column, sequence=f"drive {visit}",
                    )
                )  # fmt: skip
    records += [PhotoRecord(path=f"lost/{number}.jpg") for number in range(3)]
    write_table(folder / TABLE_NAME, to_table(records))
    for record in records:
        (folder / record.path).parent.mkdir(exist_ok=True)
        (folder / record.path).write_bytes(b"")
    return folder


@pytest.mark.parametrize("by", ["blocks", "time"])
def test_the_table_gets_its_splits(tmp_path: Path, by: str) -> None:
    city = write_city(tmp_path)
    result, former = split_dataset(config(dataset=str(city), by=by))
    assert former == {} and result.without_positives == {"val": 0, "test": 0}
    records = from_table(read_table(city / TABLE_NAME))
    found = {split: [record for record in records if record.split == split] for split in result.counts}
    assert {split: len(photos) for split, photos in found.items()} == result.counts
    assert 0.08 < (len(found["test/database"]) + len(found["test/queries"])) / len(records) < 0.3
    assert min(result.distances_m.values()) >= 50
    for query in found["test/queries"]:
        near = [
            photo
            for photo in found["test/database"]
            if GEOD.inv(query.longitude, query.latitude, photo.longitude, photo.latitude)[2] <= 25
        ]
        assert near and all(photo.sequence != query.sequence for photo in near)
        if by == "time":
            assert all(photo.time < query.time for photo in (*near, *found["train"]))
    if by == "blocks":
        assert len(scan_images(city / "train")) == result.counts["train"]
        assert is_dataset_part(city / "test" / "queries")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    city = write_city(tmp_path)
    before = (city / TABLE_NAME).read_bytes()
    assert main(["split", str(city), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "nothing was written" in out and "Next:" not in out
    assert (city / TABLE_NAME).read_bytes() == before
    assert main(["split", str(city), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["written"] and first["replaced"] == {} and first["unused"]["without a position"] == 3
    assert main(["split", str(city), "--seed", "1"]) == 0
    out = capsys.readouterr().out
    assert "previous splits were replaced: test/database" in out
    assert out.splitlines()[-1] == f"Next: cosplace validate {city}"
    assert "smallest distance between train and test (as written): " in out
    assert main(["split", str(city), "--by", "sequence"]) == 2  # each drive is everywhere
    assert "Use `cosplace split` with another --by, a smaller --buffer_m" in capsys.readouterr().err
    assert main(["split", str(city), "--by", "sequence", "--buffer_m", "0", "--val", "0", "--test", "0.67"]) == 0
    assert "warning: --buffer_m 0 is not more than the 25 m" in capsys.readouterr().out
    assert main(["split", str(city / "0")]) == 2
    assert "cosplace import" in capsys.readouterr().err


def test_a_dataset_that_an_import_writes_is_not_split(tmp_path: Path) -> None:
    """The import would write its rows without the splits, or the split would drop the rows that are new."""
    city = write_city(tmp_path)
    before = (city / TABLE_NAME).read_bytes()
    with ThreadPoolExecutor(1) as other, locked_dataset(city):
        with pytest.raises(StorageError, match="in use by another command"):
            other.submit(split_dataset, config(dataset=str(city))).result()
        assert (city / TABLE_NAME).read_bytes() == before
        other.submit(split_dataset, config(dataset=str(city), dry_run=True)).result()
    split_dataset(config(dataset=str(city)))


def test_columns_of_other_programs_stay(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    city = write_city(tmp_path)
    table = pq.read_table(city / TABLE_NAME)
    names = pa.array([f"note {row}" for row in range(len(table))])
    write_table(city / TABLE_NAME, table.append_column("note", names))
    expected = dict(zip(table["path"].to_pylist(), names.to_pylist(), strict=True))
    split_dataset(config(dataset=str(city)))
    written = pq.read_table(city / TABLE_NAME)
    assert dict(zip(written["path"].to_pylist(), written["note"].to_pylist(), strict=True)) == expected
    assert set(written["split"].to_pylist()) > {"train", "test/queries"}


def test_settings_that_leave_no_photos(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="less than 5%"):
        config(val=0.5, test=0.5)
    city = write_city(tmp_path, side=2, visits=1)
    with pytest.raises(DatasetError, match="too small an area"):
        split_dataset(config(dataset=str(city), buffer_m=500.0))
    records = [PhotoRecord(path=f"{number}.jpg") for number in range(4)]
    write_table(tmp_path / TABLE_NAME, to_table(records))
    with pytest.raises(DatasetError, match="all photos are without a position"):
        split_dataset(config(dataset=str(tmp_path)))
