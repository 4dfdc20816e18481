"""What the map asks the server for: density, dates, sample photos, sequences, EXIF positions."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cosplace.errors import ConfigError, DatasetError
from cosplace.index.records import Columns
from cosplace.localization.localizer import Localizer
from cosplace.server.points import find_in_box, map_points, times_of
from cosplace.server.samples import SIDE, read_samples
from cosplace.server.sequences import Sequences, find_sequences, lines_in_box, neighbors_of, photos_of_sequence
from cosplace.server.served_index import index_name
from cosplace.server.settings import OFFERED_TILES, ServerSettings
from cosplace.server.static import security_headers
from tests.server.server_samples import NUM_PLACES, client_of, good_photo, make_index, position_of
from tests.server.test_server import with_gps

NAN = float("nan")


def make_columns(rows: list[tuple[float, float, float, float, str]]) -> Columns:
    """Columns of photos: latitude, longitude, heading, time, path; ids are 0, 10, 20, ..."""
    latitudes, longitudes, headings, times = (np.array([row[k] for row in rows], float) for k in range(4))
    count = len(rows)
    return Columns(
        ids=np.arange(count, dtype=np.int64) * 10,
        latitudes=latitudes,
        longitudes=longitudes,
        headings=headings.astype(np.float32),
        times=times,
        accuracies_m=np.full(count, NAN, np.float32),
        row_ids=np.arange(count, dtype=np.uint64),
        roots=np.zeros(count, np.int32),
        texts=pa.array([row[4] for row in rows], pa.string()),
    )


# --- density ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(10.0, -5.0, 12.0, 5.0), (179.0, -5.0, -179.0, 5.0), None])
def test_a_density_counts_the_photos_of_each_cell(box) -> None:
    rng = np.random.default_rng(0)
    west, width = (10.0, 2.0) if box is None or box[0] == 10 else (179.0, 2.0)
    longitudes = (west + width * rng.random(3000) ** 2 + 180) % 360 - 180
    latitudes = rng.uniform(-5, 5, 3000)
    points = map_points(make_columns([(a, b, 0, 0, "") for a, b in zip(latitudes, longitudes, strict=True)]))
    found = find_in_box(points, box, 100, cells=64)
    level, cells = found["density"]["level"], np.reshape(found["density"]["cells"], (-1, 3))
    # Web Mercator by its formula: x and y from 0 to 1, from the northwest.
    sines = np.sin(np.radians(latitudes))
    x = np.floor((longitudes + 180) / 360 * 2**level)
    y = np.floor((0.5 - np.log((1 + sines) / (1 - sines)) / (4 * np.pi)) * 2**level)
    expected = Counter(zip(x.astype(int).tolist(), y.astype(int).tolist(), strict=True))
    assert {(a, b): count for a, b, count in cells.tolist()} == expected
    assert found["total"] == 3000 and found["points"] == found["clusters"] == []
    shares = 1.0 if box is None else 10.0 / 360  # the longer side of the box, of the world
    assert 32 <= shares * 2**level <= 64.1
    assert "density" not in find_in_box(points, box, 3000, cells=64)


def test_photos_of_a_time_and_some_of_them() -> None:
    rows = [(1.0, 2.0, 0.0, NAN if k % 10 == 0 else float(k), "") for k in range(100)]
    points = map_points(make_columns(rows))
    assert times_of(points) == [1.0, 99.0]
    assert times_of(map_points(make_columns(rows[:1]))) is None
    found = find_in_box(points, None, 1000, after=8.0, before=12.0)
    assert [point["id"] for point in found["points"]] == [80, 90, 110, 120]
    found = find_in_box(points, None, 4, sample=5)
    assert found["total"] == 100 and [point["id"] for point in found["points"]] == [0, 240, 490, 740, 990]
    assert find_in_box(points, None, 4, after=1000.0, sample=5)["total"] == 0


# --- sequences -------------------------------------------------------------------------------------------------------


def test_sequences_are_photos_of_a_folder_in_time_order() -> None:
    step = 10 / 111_000  # 10 m north
    rows = [
        (2 * step, 5.0, 0.0, 102.0, "a/x.jpg"),  # 0: not in the order of time
        (0 * step, 5.0, 0.0, 100.0, "a/z.jpg"),  # 10
        (1 * step, 5.0, 0.0, 101.0, "a/y.jpg"),  # 20: a panorama with three views
        (1 * step, 5.0, 170.0, 101.0, "a/y2.jpg"),  # 30
        (1 * step, 5.0, 350.0, 101.0, "a/y3.jpg"),  # 40
        (1 * step, 5.0, 0.0, 101.5, "b/y.jpg"),  # 50: another folder
        (3 * step, 5.0, 200.0, 103.0, "a/w.jpg"),  # 60
        (4 * step, 5.0, NAN, 200.0, "a/v.jpg"),  # 70: 97 s later
        (30 * step, 5.0, NAN, 201.0, "a/u.jpg"),  # 80: 260 m away
        (31 * step, NAN, NAN, 201.5, "a/t.jpg"),  # 90: without a position
        (31 * step, 5.0, NAN, 202.0, "a/s.jpg"),  # 100
        (32 * step, 5.0, NAN, NAN, "a/r.jpg"),  # 110: without a time
    ]
    sequences = find_sequences(make_columns(rows))
    expected = {
        10: (None, 20), 20: (10, 0), 30: (10, 0), 40: (10, 0), 0: (20, 60), 60: (0, None), 50: (None, None),
        70: (None, None), 80: (None, 100), 100: (80, None), 90: (None, None), 110: (None, None), 7: (None, None),
    }  # fmt: skip
    assert {photo_id: neighbors_of(sequences, photo_id) for photo_id in expected} == expected
    turned = make_columns([(*row[:2], 175.0 if number == 6 else row[2], *row[3:]) for number, row in enumerate(rows)])
    assert neighbors_of(find_sequences(turned), 60) == (0, None)
    found = {photo_id: photos_of_sequence(sequences, photo_id).tolist() for photo_id in (*expected, 7)}
    one, other = [10, 20, 30, 40, 0, 60], [80, 100]
    assert found == {k: one if k in one else other if k in other else [] for k in found}


def test_the_view_with_the_most_similar_heading_follows() -> None:
    step = 10 / 111_000
    rows = [(0.0, 5.0, heading, 1.0, "a/1.jpg") for heading in (0.0, 90.0, 180.0, 270.0)]
    rows += [(step, 5.0, heading, 2.0, "a/2.jpg") for heading in (275.0, 185.0, 95.0, 355.0)]
    sequences = find_sequences(make_columns(rows))
    assert [neighbors_of(sequences, k * 10)[1] for k in range(4)] == [70, 60, 50, 40]
    assert [neighbors_of(sequences, 40 + k * 10)[0] for k in range(4)] == [30, 20, 10, 0]


def test_lines_follow_the_stops_of_sequences() -> None:
    step = 10 / 111_000
    rows = [(k * step, 5.0, 0.0, 100.0 + k + (100 if k >= 6 else 0), f"a/{k}.jpg") for k in range(10)]
    sequences = find_sequences(make_columns([*rows, (0.5, 5.0, 0.0, 1.0, "b/alone.jpg")]))
    expected = [[value for k in stops for value in (5.0, round(k * step, 6))] for stops in (range(6), range(6, 10))]
    assert lines_in_box(sequences, None, 100) == {"total": 10, "lines": expected}
    box = (4.0, 0.5 * step, 6.0, 3.5 * step)
    assert lines_in_box(sequences, box, 100)["lines"] == [expected[0][2:8]]
    thin = lines_in_box(sequences, None, 3)["lines"]  # every third stop, and the ends
    assert thin == [[5.0, 0.0, 5.0, round(3 * step, 6), 5.0, round(5 * step, 6)], expected[1][:2] + expected[1][-2:]]
    assert lines_in_box(sequences, (50.0, 0.0, 51.0, 1.0), 100) == {"total": 10, "lines": []}
    assert lines_in_box(find_sequences(make_columns(rows[:0])), None, 100) == {"total": 0, "lines": []}


def test_months_are_no_sequence() -> None:
    rows = [(k * 20 / 111_000, 5.0, 0.0, 1e9, f"a/{k}.jpg") for k in range(5)]
    sequences = find_sequences(make_columns(rows))
    assert all(neighbors_of(sequences, k * 10) == (None, None) for k in range(5))
    assert neighbors_of(find_sequences(make_columns(rows[:0])), 0) == (None, None)


# --- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    folder = make_index(tmp_path_factory.mktemp("map"))
    return Localizer(folder, device="cpu", uncalibrated=True, min_confidence=0)


def test_dates_and_exif_of_an_upload(localizer: Localizer) -> None:
    photo = with_gps(*position_of(4), 0.0)
    with client_of(localizer) as client:

        def locate(**query: str) -> dict:
            response = client.post("/locate", files={"files": ("a.jpg", photo)}, params=query)
            assert response.status_code == 200, response.text
            return response.json()["results"][0]

        # The photos of each place were taken at 1.6e9 s (2020-09-13T12:26:40), 1.6e9 + 1 s and 1.6e9 + 2 s.
        found = locate(after="2020-09-13T12:26:41", before="2020-09-13T12:26:42")
        assert {row["name"].split("-")[1] for row in found["neighbours"]} == {"1.jpg"}
        assert found["exif"]["latitude"] == pytest.approx(position_of(4)[0], abs=1e-6)
        assert found["exif"]["distance_m"] >= 0 and isinstance(found["exif"]["agrees"], bool)
        empty = locate(before="2020")
        assert empty["neighbours"] == [] and empty["reason"] == "no photo of the index matches the filter"
        for query, words in (
            ({"after": "yesterday"}, "after must be a date, got 'yesterday'"),
            ({"after": "2020", "before": "2019"}, "after must be earlier than before"),
        ):
            for response in (client.post("/locate", content=photo, params=query), client.get("/photos", params=query)):
                assert response.status_code == 422 and words in response.json()["detail"]
        assert client.get("/photos", params={"after": "2020-09-13T12:26:42"}).json()["total"] == NUM_PLACES
        some = client.get("/photos", params={"sample": 7}).json()
        assert some["total"] == 3 * NUM_PLACES and len(some["points"]) == 7
        dense = client.get("/photos", params={"limit": 4, "cells": 64}).json()
        assert sum(dense["density"]["cells"][2::3]) == 3 * NUM_PLACES
        plain = client.post("/locate", files={"files": ("a.jpg", good_photo(1))}).json()["results"][0]
        assert "exif" not in plain
        record = client.get("/photos/0").json()
        assert (record["previous"], record["next"]) == (None, None)  # its time is shared by all places


def test_a_sequence_restricts_the_search_and_the_map(localizer: Localizer, monkeypatch) -> None:
    def find(columns: Columns) -> Sequences:
        places = columns.ids // 3  # the first five were passed at walking speed, the others at one time
        times = np.where(places < 5, 1e9 + 20 * places, 2e9)
        return find_sequences(replace(columns, times=times, latitudes=37.7 + 0.0005 * places))

    monkeypatch.setattr("cosplace.server.served_index.find_sequences", find)
    with client_of(localizer) as client:
        record = client.get("/photos/6").json()
        assert (record["previous"], record["next"]) == (3, 9)
        found = client.get("/photos", params={"sequence": 6}).json()
        assert [point["id"] for point in found["points"]] == list(range(15))
        west_of_it = {"sequence": 6, "bbox": "-123,37,-122.5,38"}
        assert client.get("/photos", params=west_of_it).json()["total"] == 0
        answer = client.post("/locate", content=good_photo(8), params={"sequence": 6}).json()["results"][0]
        assert answer["neighbours"] and {row["id"] for row in answer["neighbours"]} <= set(range(15))
        assert client.post("/locate", content=good_photo(8)).json()["results"][0]["neighbours"][0]["id"] >= 15
        for response in (
            client.get("/photos", params={"sequence": 60}),
            client.post("/locate", content=good_photo(8), params={"sequence": 60}),
        ):
            assert response.status_code == 422
            assert response.json()["detail"] == "Photo 60 is not part of a sequence."


def test_the_name_of_an_index_is_the_last_part_of_its_address() -> None:
    names = [index_name(address) for address in ("/a/my-city.index", "s3://bucket/paris/", "C:\\x\\lyon", "/run/index")]
    assert names == ["my-city", "paris", "lyon", ""]


def test_samples_of_a_folder(localizer: Localizer, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(with_gps(1.0, 2.0, 0.0) if number else b"damaged")
    with client_of(localizer, samples=str(tmp_path), name="Fiji") as client:
        config = client.get("/config.json").json()
        assert config["samples"] == [{"photo": None}] * 3 and config["name"] == "Fiji"
        assert config["times"] == [1.6e9, 1.6e9 + 2]
        response = client.get("/samples/2")
        assert response.headers["content-type"] == "image/jpeg" and b"Exif" not in response.content
        assert client.get("/samples/3").status_code == 404 and client.get("/samples/-1").status_code == 422
    assert read_samples("none", localizer.index) == ()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.jpg").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"can be read\. Use another folder for --samples"):
        read_samples(str(tmp_path / "none"), localizer.index)
    with pytest.raises(DatasetError):
        read_samples(str(tmp_path / "missing"), localizer.index)


def test_samples_of_the_index_are_marked_and_need_its_files(localizer: Localizer, monkeypatch, tmp_path: Path) -> None:
    assert read_samples(None, localizer.index) == ()  # the files of this index do not exist
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(good_photo(3))
    monkeypatch.setattr(Columns, "paths", lambda self, rows: [str(photo)] * len(rows))
    samples = read_samples(None, localizer.index)
    assert len({sample.photo_id for sample in samples}) == 3 and None not in {sample.photo_id for sample in samples}
    assert max(len(sample.jpeg) for sample in samples) < SIDE * SIDE
    with client_of(localizer) as client:
        assert client.get("/config.json").json()["samples"][0]["photo"] == samples[0].photo_id


def test_only_offered_tiles_are_in_the_policy(localizer: Localizer) -> None:
    def policy(**settings: str) -> str:
        return dict(security_headers(ServerSettings(**settings)))[b"content-security-policy"].decode()

    assert "https://tile.openstreetmap.org" in policy()
    assert "http" not in policy(tiles="none")
    assert "openstreetmap" not in policy(tiles="https://tiles.example.org/{z}/{x}/{y}.png")
    for tiles, shown, offered in ((None, None, OFFERED_TILES), ("none", None, None)):
        with client_of(localizer, **({"tiles": tiles} if tiles else {})) as client:
            config = client.get("/config.json").json()
            assert (config["tiles"], config["offered_tiles"]) == (shown, offered)
