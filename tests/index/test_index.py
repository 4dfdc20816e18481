"""The photo index: what is stored, found, filtered, removed and refused."""

import errno
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.index import SyntheticPlaces, index_table, measure_index
from cosplace.config.index import IndexSettings
from cosplace.errors import ConfigError, IndexInUseError, PhotoIndexError, ReplacedIndexError, StorageError
from cosplace.geo import great_circle_distances_m
from cosplace.index.filters import SearchFilter
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.reader_copy import remove_reader_copies
from cosplace.index.records import Columns, ModelSpec, NewPhoto
from cosplace.index.snapshot import load_snapshot
from cosplace.index.store import has_index
from cosplace.index.writer_lock import WriterLock
from cosplace.retrieval.search import nearest

D = 16
SPEC = ModelSpec(model="made", checksum="c" * 64, dimension=D)


def units(count: int, seed: int, num_places: int = 40) -> np.ndarray:
    """(count, D) float32: photos of places, so that neighbours mean something."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(7).standard_normal((num_places, D))
    rows = places[rng.integers(num_places, size=count)] + 0.5 * rng.standard_normal((count, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def photos(count: int, first: int = 0) -> list[NewPhoto]:
    """Photos along a meridian, one each 0.001 degrees; every fifth has no position."""
    return [
        NewPhoto(
            path=f"/photos/{number}.jpg",
            key=f"key-{number}",
            latitude=float("nan") if number % 5 == 4 else 10 + 0.001 * number,
            longitude=float("nan") if number % 5 == 4 else 20.0,
            heading=float(number % 360),
            time=1e9 + number,
            source="made",
            thumbnail=b"jpeg-%d" % number,
        )
        for number in range(first, first + count)
    ]


def filled(address: Path, count: int, **settings) -> PhotoIndex:
    index = create_index(address, SPEC, IndexSettings(**settings))
    index.add(photos(count), units(count, 1))
    return index


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("many", "many, float16", "many, with later ones")]


@pytest.fixture(scope="module", params=["few", *SLOW])
def stored_index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 photos, in memory or with an approximate search index."""
    address = tmp_path_factory.mktemp("stored") / "index"
    if request.param == "few":
        made = filled(address, 600)
    elif request.param == "many, with later ones":
        made = create_index(address, SPEC, IndexSettings(exact_rows=100))
        made.add(photos(600)[:450], units(600, 1)[:450])
        made.update_search()
        made.add(photos(600)[450:], units(600, 1)[450:])
    else:
        made = filled(address, 600, exact_rows=100, stored_dtype="float16" if "float16" in request.param else "float32")
        made.update_search()
    made.close()
    return address


@pytest.fixture
def index(stored_index: Path, tmp_path: Path) -> Iterator[PhotoIndex]:
    """A copy of the stored index, open for writing."""
    with open_index(shutil.copytree(stored_index, tmp_path / "index"), write=True) as copy:
        yield copy


def test_exact_search_finds_what_nearest_finds(index: PhotoIndex) -> None:
    queries = units(50, 2)
    stored = units(600, 1).astype(index.settings.stored_dtype)
    rows, _ = nearest(queries, stored, 7)
    found = index.search(queries, 7, exact=True)
    assert np.array_equal(found.ids, rows)
    assert np.allclose(found.similarities, np.einsum("qkd,qd->qk", stored[rows].astype(np.float32), queries), atol=1e-6)
    assert found.paths[3][2] == f"/photos/{rows[3, 2]}.jpg"


def test_plain_search_finds_most_of_it(index: PhotoIndex) -> None:
    queries = units(200, 2)
    rows, _ = nearest(queries, units(600, 1), 5)
    found = index.search(queries, 5)
    assert (found.ids[:, 0] == rows[:, 0]).mean() >= 0.97
    assert (np.diff(found.similarities, axis=1) <= 1e-6).all()
    assert index.descriptors(found.ids[0]) @ queries[0] == pytest.approx(found.similarities[0], abs=1e-3)


def test_photos_are_returned_whole(index: PhotoIndex) -> None:
    photo = index.photo(7)
    assert (photo.path, photo.source, photo.heading, photo.time) == ("/photos/7.jpg", "made", 7.0, 1e9 + 7)
    assert photo.latitude == pytest.approx(10.007)
    assert index.photo(9).latitude is None
    assert index.thumbnail(7) == b"jpeg-7"
    assert np.allclose(index.descriptors([5, 500, 5]), units(600, 1)[[5, 500, 5]], atol=1e-3)
    columns = index.within((19, 10.0995, 21, 10.1035))
    assert columns.ids.tolist() == [100, 101, 102, 103]
    assert columns.paths() == [f"/photos/{number}.jpg" for number in (100, 101, 102, 103)]
    with pytest.raises(PhotoIndexError, match="no photo with id 600"):
        index.photo(600)


@pytest.mark.parametrize("exact", [False, True])
def test_filters_are_exact(index: PhotoIndex, exact: bool) -> None:
    queries, stored = units(20, 2), units(600, 1)
    where = SearchFilter(bbox=(19, 10.2, 21, 10.3), after=1e9 + 210)
    passes = np.array([number % 5 != 4 and 210 <= number <= 300 for number in range(600)])
    rows, _ = nearest(queries, stored, 10, searchable=passes)
    found = index.search(queries, 10, where=where, exact=exact)
    if index.settings.stored_dtype == "float32":
        assert (found.ids == rows).mean() > (0.999 if exact else 0.98)  # float16 may turn near ties around
    assert passes[found.ids].all()
    ids = tuple(range(5, 600, 7))  # not all between the first and the last of them
    rows, _ = nearest(queries, stored, 10, searchable=np.isin(np.arange(600), ids))
    found = index.search(queries, 10, where=SearchFilter(ids=ids), exact=exact)
    assert np.isin(found.ids, ids).all()
    if index.settings.stored_dtype == "float32":
        assert (found.ids == rows).mean() > (0.999 if exact else 0.98)
    assert (index.search(queries, 10, where=SearchFilter(ids=()), exact=exact).ids == -1).all()


def test_a_photo_is_added_once(tmp_path: Path) -> None:
    with filled(tmp_path / "index", 30) as index:
        again = index.add([*photos(2, first=29), photos(1, first=30)[0]], units(3, 3))
        assert again.ids.tolist() == [29, 30, 30]
        assert again.is_new.tolist() == [False, True, False]
        assert len(index) == 31
        assert index.find(["key-3", "key-99"]).tolist() == [3, -1]
    with open_index(tmp_path / "index", write=True) as index:
        assert index.add(photos(31), units(31, 1)).is_new.sum() == 0
        assert len(index) == len(index.columns()) == 31


@pytest.mark.slow
def test_removed_photos_are_not_found_and_ids_are_not_given_again(index: PhotoIndex) -> None:
    query = index.descriptors([599])
    assert index.search(query, 1).ids[0, 0] == 599
    assert index.remove([599, 598, 7, 12345]) == 3
    assert len(index) == 597
    for exact in (False, True):
        assert not np.isin(index.search(units(50, 2), 20, exact=exact).ids, [599, 598, 7]).any()
    assert index.add(photos(1, first=700), units(1, 9)).ids.tolist() == [600]
    assert index.search(units(1, 9), 1).ids.tolist() == [[600]]
    index.compact()
    assert index.search(units(1, 9), 1, exact=True).ids.tolist() == [[600]]
    rows, _ = nearest(units(50, 2), index.descriptors(index.columns().ids), 3)
    assert np.array_equal(index.search(units(50, 2), 3, exact=True).ids, index.columns().ids[rows])


def test_removing_all_and_searching_an_empty_index(tmp_path: Path) -> None:
    with filled(tmp_path / "index", 3) as index:
        assert index.remove([0, 1, 2]) == 3
        found = index.search(units(2, 2), 4)
        assert (found.ids == -1).all() and np.isneginf(found.similarities).all() and found.paths == (("",) * 4,) * 2
        assert np.isnan(found.latitudes).all() and np.isnan(found.times).all()
        assert index.info()["count"] == 0 and index.info()["bounds"] is None
        assert index.descriptors([]).shape == (0, D)


def test_places_beyond_the_last_photo_stay_empty(tmp_path: Path) -> None:
    with filled(tmp_path / "index", 3) as index:
        found = index.search(units(2, 2), 5)
        assert sorted(found.ids[0].tolist()) == [-1, -1, 0, 1, 2]
        assert (index.search(units(2, 2), 5, where=SearchFilter(after=2e9)).ids == -1).all()


def test_a_reader_sees_what_is_new_after_refresh(tmp_path: Path) -> None:
    writer = filled(tmp_path / "index", 20)
    reader = open_index(tmp_path / "index")
    assert len(reader) == 20 and not reader.refresh()
    writer.add(photos(5, first=20), units(5, 4))
    assert len(reader) == len(reader.columns()) == 20
    assert reader.refresh() and len(reader) == 25
    writer.compact()  # forgets the version that the reader is at
    writer.remove([3])
    writer.compact()
    writer.close()
    assert reader.thumbnail(22) == b"jpeg-22"
    assert 3 not in reader.columns().ids


@pytest.mark.parametrize("with_copy", [True, False])
@pytest.mark.parametrize("num_records", [0, 2])
@pytest.mark.parametrize("was_refreshed", [True, False])
def test_two_indexes_at_one_address_are_never_mixed(
    tmp_path: Path, with_copy: bool, num_records: int, was_refreshed: bool
) -> None:
    address, other = tmp_path / "index", tmp_path / "other"
    filled(address, 20).close()
    with create_index(other, replace(SPEC, checksum="d" * 64)) as writer:  # of the same version, unless it has records
        writer.add(photos(20), units(20, 9))
        for number in range(num_records):
            writer.add(photos(1, first=20 + number), units(1, number))
    if not with_copy:
        remove_reader_copies(str(address))
        remove_reader_copies(str(other))
    reader = open_index(address)
    found = reader.search(units(3, 5), 4)
    if was_refreshed:
        assert not reader.refresh()
    address.rename(tmp_path / "former")
    other.rename(address)
    for read in (reader.refresh, lambda: reader.photo(3), reader.refresh, lambda: reader.thumbnail(4), reader.refresh):
        with pytest.raises(ReplacedIndexError, match=f"Another index is now at {address}. Restart") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert np.array_equal(reader.search(units(3, 5), 4).similarities, found.similarities)
    assert len(reader.columns()) == 20
    with open_index(address) as new, pytest.raises(ReplacedIndexError):
        reader.check_same(new)
    address.rename(other)
    (tmp_path / "former").rename(address)
    assert not reader.refresh() and reader.photo(3).source == "made" and reader.thumbnail(4) == b"jpeg-4"


@pytest.mark.parametrize("with_copy", [True, False])
@pytest.mark.parametrize("num_more", [1, 3])
@pytest.mark.parametrize("was_read", [True, False])
def test_copies_of_one_index_that_were_changed_are_never_mixed(
    tmp_path: Path, with_copy: bool, num_more: int, was_read: bool
) -> None:
    address, other = tmp_path / "index", tmp_path / "other"
    filled(address, 20).close()
    shutil.copytree(address, other)
    with open_index(address, write=True) as writer:
        writer.add(photos(5, first=20), units(5, 1))
    with open_index(other, write=True) as writer:
        for number in range(num_more):  # as many commits, or more
            writer.add(photos(5, first=100 + 5 * number), units(5, 2 + number))
    if not with_copy:
        remove_reader_copies(str(address))
        remove_reader_copies(str(other))
    reader = open_index(address)
    found = reader.search(units(3, 5), 4)
    if was_read:
        assert reader.thumbnail(22) == b"jpeg-22" and not reader.refresh()
    address.rename(tmp_path / "former")
    other.rename(address)
    for read in (reader.refresh, lambda: reader.thumbnail(22), reader.refresh):
        with pytest.raises(ReplacedIndexError, match=f"Another index is now at {address}. Restart"):
            read()
    assert np.array_equal(reader.search(units(3, 5), 4).ids, found.ids) and len(reader.columns()) == 25
    with open_index(address) as new, pytest.raises(ReplacedIndexError):
        reader.check_same(new)
    address.rename(other)
    (tmp_path / "former").rename(address)
    assert not reader.refresh() and reader.thumbnail(22) == b"jpeg-22"


def test_a_copy_that_was_only_continued_is_the_same_index(tmp_path: Path) -> None:
    address, other = tmp_path / "index", tmp_path / "other"
    filled(address, 20).close()
    shutil.copytree(address, other)
    with open_index(other, write=True) as writer:
        writer.add(photos(5, first=20), units(5, 1))
    with open_index(address) as reader:
        assert len(reader.columns()) == 20
        address.rename(tmp_path / "former")
        other.rename(address)
        assert reader.refresh() and len(reader.columns()) == 25


def test_searches_continue_while_new_photos_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def load_late(*arguments: object, **options: object) -> object:
        reading.set()
        assert go_on.wait(30)
        return load_snapshot(*arguments, **options)  # ty: ignore[invalid-argument-type]

    with filled(tmp_path / "index", 20) as writer, open_index(tmp_path / "index") as reader:
        assert len(reader.columns()) == 20
        writer.add(photos(5, first=20), units(5, 4))
        monkeypatch.setattr("cosplace.index.photo_reader.load_snapshot", load_late)
        with ThreadPoolExecutor(1) as pool:
            refreshed = pool.submit(reader.refresh)
            assert reading.wait(30)
            found = reader.search(units(5, 4), 1).ids[:, 0]
            assert (found < 20).all() and reader.thumbnail(19) == b"jpeg-19" and len(reader.descriptors([3])) == 1
            go_on.set()
            assert refreshed.result()
        np.testing.assert_array_equal(reader.search(units(5, 4), 1).ids[:, 0], np.arange(20, 25))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with filled(tmp_path / "index", 2) as first:
        with pytest.raises(PhotoIndexError, match=r"in use by another writer \(pid \d+\)"):
            open_index(tmp_path / "index", write=True)
        assert open_index(tmp_path / "index").search(units(1, 2), 1).ids[0, 0] in (0, 1)
        assert first.can_write
    with pytest.raises(PhotoIndexError, match="reading only"):
        first.add(photos(1), units(1, 1))
    open_index(tmp_path / "index", write=True).close()


@pytest.mark.slow
def test_a_writer_removes_what_killed_ones_left(tmp_path: Path) -> None:
    address = tmp_path / "index"
    filled(address, 2).close()
    left, mine = address / ".checksums.json.123.part", address / ".notes.part"
    for path in (left, mine):
        path.write_bytes(b"half")
    open_index(address).close()
    assert left.exists()  # a writer may be writing it
    open_index(address, write=True).close()
    assert not left.exists() and mine.exists()


def test_without_locks_of_the_file_system_the_index_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    address = tmp_path / "index"
    filled(address, 2).close()

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with open_index(address, write=True) as index:
        assert index.can_write and index.remove([0]) == 1


@pytest.mark.slow
def test_the_search_index_is_built_once_and_recorded(tmp_path: Path) -> None:
    with filled(tmp_path / "index", 600, exact_rows=100) as index:
        assert index.info()["search"]["kind"] == "approximate"  # built when it is first needed
        assert not index.update_search()
    info = open_index(tmp_path / "index").info()["search"]
    assert info["recall_at_1"] >= 0.99 and info["measured_on"] == 150
    assert info["partitions"] >= info["partitions_searched"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codes", "kind", "share"), [("4bit", "IvfRq", 0.5), ("binary", "IvfRq", 0.25), ("int8", "IvfSq", 1)]
)
def test_codes_of_approximate_search(tmp_path: Path, codes: str, kind: str, share: float) -> None:
    queries = units(3000, 1)[:100] + 0.3 * units(100, 2)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    with filled(tmp_path / "index", 3000, exact_rows=100, search_codes=codes) as index:
        index.update_search()
        (vectors,) = [one for one in index._store.photos.list_indices() if one.name == "descriptor_idx"]
        assert vectors.index_type == kind
        info = index.info()["search"]
        assert info["codes"] == codes and info["recall_at_1"] >= 0.98 and info["recall_at_20"] >= 0.95
        found, exact = index.search(queries, 1), index.search(queries, 1, exact=True)
        same = found.ids == exact.ids
        assert same.mean() >= 0.9  # the clusters of the photos depend on threads
        assert np.allclose(found.similarities[same], exact.similarities[same], atol=1e-6)  # of the full descriptors
    size = sum(
        path.stat().st_size for path in (tmp_path / "index" / "photos.lance" / "_indices").rglob("*") if path.is_file()
    )
    codes_bytes = 3000 * SPEC.dimension * share
    assert codes_bytes < size < codes_bytes + 40 * 3000 + 400_000
    with open_index(tmp_path / "index") as index:
        assert index.info()["search"]["codes"] == codes
        assert (index.search(queries, 1).ids == found.ids).all()


def test_unknown_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--search_codes must be 4bit, binary or int8, got 'pq'"):
        IndexSettings(search_codes="pq")


def test_a_reader_without_search_index_compares_all_photos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path / "index", 600, exact_rows=100).close()
    reader = open_index(tmp_path / "index")
    rows, _ = nearest(units(20, 2), units(600, 1), 5)
    assert np.array_equal(reader.search(units(20, 2), 5).ids, rows)
    assert "has no search index" in caplog.text and "cosplace index compact" in caplog.text


@pytest.mark.slow
def test_the_search_index_is_rebuilt_when_many_photos_were_added(tmp_path: Path) -> None:
    with filled(tmp_path / "index", 300, exact_rows=100) as index:
        index.update_search()
        index.add(photos(150, first=300), units(150, 5))
        assert index.info()["search"]["added_since"] == 150
        assert index.update_search()
        assert index.info()["search"]["added_since"] == 0


def test_records_are_kept(tmp_path: Path) -> None:
    with filled(tmp_path / "index", 1) as index:
        assert index.read_record("calibration") is None
        for value in (1, 2):
            index.write_record("calibration", {"value": value})
        assert open_index(tmp_path / "index").read_record("calibration") == {"value": 2}


def test_another_model_is_refused_with_both_names(tmp_path: Path) -> None:
    with filled(tmp_path / "index", 1) as index:
        index.check_model("made", "c" * 64, None)
        with pytest.raises(PhotoIndexError, match=r"built with the model made .*cccc.* not with other .*dddd"):
            index.check_model("other", "d" * 64, None)
        with pytest.raises(PhotoIndexError, match="at their original size, not at 224 pixels"):
            index.check_model("made", "c" * 64, 224)


def test_one_process_creates_an_index(tmp_path: Path) -> None:
    """The second one must not replace the tables that the first one has begun to fill."""
    folder = tmp_path / "new/index"
    folder.mkdir(parents=True)
    first = WriterLock(str(folder))  # of a process that has not created the tables yet
    with pytest.raises(IndexInUseError, match="in use by another writer"):
        create_index(folder, SPEC)
    assert not has_index(str(folder))
    first.release()
    with create_index(folder, SPEC) as index:
        with pytest.raises(PhotoIndexError, match="already contains an index"):
            create_index(folder, SPEC)
        with pytest.raises(IndexInUseError):  # the creator is the writer from the beginning
            open_index(folder, write=True)
        index.add(photos(3), units(3, 1))
    assert len(open_index(folder)) == 3


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(PhotoIndexError, match="does not exist"):
        open_index(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(PhotoIndexError, match="is not a photo index"):
        open_index(tmp_path)
    with filled(tmp_path / "index", 2) as index:
        with pytest.raises(PhotoIndexError, match="already contains an index"):
            create_index(tmp_path / "index", SPEC)
        with pytest.raises(ConfigError, match="shape"):
            index.search(units(2, 1)[:, :5], 1)
        with pytest.raises(ConfigError, match="not finite"):
            index.search(np.full((1, D), np.nan, np.float32), 1)
        with pytest.raises(ConfigError, match="length 1"):
            index.add(photos(1, first=5), 3 * units(1, 1))
        with pytest.raises(ConfigError, match=r"1 of 1 descriptors are all zeros.*Use another model"):
            index.add(photos(1, first=5), 0 * units(1, 1))
        with pytest.raises(ConfigError, match="1 photos and 2 descriptors"):
            index.add(photos(1, first=5), units(2, 1))
        with pytest.raises(ConfigError, match="at least 1"):
            index.search(units(1, 1), 0)
        assert len(index) == 2


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with filled(tmp_path / "index", 10) as index:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(StorageError, match="all photos so far are kept"):
            index.add(photos(5, first=10), units(5, 1))
        monkeypatch.undo()
        assert index.add(photos(5, first=10), units(5, 1)).ids.tolist() == [10, 11, 12, 13, 14]
        assert len(index) == 15


@pytest.mark.slow
def test_threads_may_search_one_index(index: PhotoIndex) -> None:
    queries = units(64, 2)
    alone = index.search(queries, 5)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda query: index.search(query[None], 5).ids[0], queries))
    assert np.array_equal(np.stack(together), alone.ids)


# --- filters ---------------------------------------------------------------------------------------------------------

LATITUDES, LONGITUDES = st.floats(-90, 90), st.floats(-180, 180)


@given(st.data())
def test_the_sql_condition_is_met_by_all_photos_that_pass(data: st.DataObject) -> None:
    """SQLite evaluates the condition; it may let more photos pass, never fewer."""
    latitude, longitude = data.draw(LATITUDES), data.draw(LONGITUDES)
    south, north = sorted([data.draw(LATITUDES), data.draw(LATITUDES)])
    where = data.draw(
        st.sampled_from(
            [
                SearchFilter(near=(latitude, longitude, data.draw(st.floats(0, 1e6)))),
                SearchFilter(bbox=(data.draw(LONGITUDES), south, data.draw(LONGITUDES), north)),
                SearchFilter(after=10.0, before=20.0),
                SearchFilter(ids=tuple(data.draw(st.sets(st.integers(0, 7))))),
            ]
        )
    )
    near = st.tuples(
        st.floats(-1, 1).map(lambda d: float(np.clip(latitude + d, -90, 90))),
        st.floats(-1, 1).map(lambda d: (longitude + d + 180) % 360 - 180),
    )
    anywhere = st.tuples(LATITUDES, LONGITUDES | st.sampled_from([-180.0, 180.0]))
    rows = [(*data.draw(near | anywhere), data.draw(st.sampled_from([5.0, 10.0, 20.0, 25.0]))) for _ in range(8)]
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE photos (id, latitude, longitude, time)")
    database.executemany("INSERT INTO photos VALUES (?, ?, ?, ?)", [(i, *row) for i, row in enumerate(rows)])
    found = {row[0] for row in database.execute(f"SELECT id FROM photos WHERE {where.sql()}")}
    numbers = np.array(rows)
    columns = Columns(
        ids=np.arange(8), latitudes=numbers[:, 0], longitudes=numbers[:, 1], headings=np.full(8, np.nan, np.float32),
        times=numbers[:, 2], accuracies_m=np.full(8, np.nan, np.float32), row_ids=np.arange(8, dtype=np.uint64),
        roots=np.zeros(8, np.int32), texts=None,
    )  # fmt: skip
    assert set(np.flatnonzero(where.mask(columns)).tolist()) <= found


def test_near_is_inclusive_and_exact(index: PhotoIndex) -> None:
    columns = index.columns()
    passes = SearchFilter(near=(10.1, 20.0, 1000.0)).mask(columns)
    away = great_circle_distances_m(columns.latitudes, columns.longitudes, 10.1, 20.0)
    assert np.array_equal(passes, away <= 1000.0) and 10 < passes.sum() < 20


@pytest.mark.parametrize(
    "given",
    [{"near": (91, 0, 5)}, {"near": (0, 0, -1)}, {"bbox": (0, 5, 1, 4)}, {"after": 5, "before": 4}, {"after": np.nan}],
)
def test_impossible_filters_are_refused(given: dict) -> None:
    with pytest.raises(ConfigError):
        SearchFilter(**given)


# --- exact search ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exact_search_in_crowds_of_equal_rows(tmp_path: Path) -> None:
    rows = np.repeat(units(8, 3), 100, axis=0)
    rows[::7] += 1e-4 * np.random.default_rng(1).standard_normal((len(rows[::7]), D)).astype(np.float32)
    with create_index(tmp_path / "index", SPEC, IndexSettings(exact_rows=50)) as index:
        index.add(photos(800), rows)
        index.update_search()
        expected, _ = nearest(units(20, 2), rows, 30)
        assert np.array_equal(index.search(units(20, 2), 30, exact=True).ids, expected)


# --- the benchmark ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_benchmark_measures_recall_and_size(tmp_path: Path) -> None:
    figures = measure_index(tmp_path / "index", 3000, IndexSettings(exact_rows=1000))
    assert figures["recall_at_1"] >= 0.97 and figures["right_place_first"] >= 0.97
    assert figures["within_300_m_recall_at_1"] == 1
    assert figures["search"]["kind"] == "approximate" and figures["disk_mb"] > 3000 * 512 * 4 / 1e6
    table = index_table(figures)
    assert "| search p50 ms |" in table and "| search index: partitions searched |" in table


def test_descriptors_of_the_benchmark_with_8_bits() -> None:
    places = np.arange(40)
    exact, rounded = (SyntheticPlaces(40, 32, dtype).descriptors(places, 1) for dtype in ("float32", "int8"))
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1, atol=1e-6)
    steps = rounded / np.abs(rounded).max(1, keepdims=True) * 127
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert 0 < np.abs(rounded - exact).max() < 1 / 127
