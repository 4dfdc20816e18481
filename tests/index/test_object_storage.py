"""An index on object storage: all commands, two writers at once, faults of the store."""

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from cosplace.errors import ConfigError, CosPlaceError, IndexInUseError, PhotoIndexError
from cosplace.index import approximate, writer_lease
from cosplace.index.photo_index import create_index, open_index
from cosplace.index.store import has_index
from cosplace.index.verification import verify_index
from cosplace.index.view_table import EncodedBatch, append_views, read_views
from tests.index.index_samples import SPEC, some_photos, unit_rows, write_index
from tests.object_store import BUCKET, MISSING, REASON, ObjectStore, run_object_store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=REASON)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ObjectStore]:
    with run_object_store(tmp_path_factory.mktemp("object_store")) as running:
        yield running


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Generator[ObjectStore]:
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    yield server
    server.set_faults()


@pytest.fixture
def address(store: ObjectStore, request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that does not respond is replaced soon."""
    monkeypatch.setattr(writer_lease, "RENEW_S", 0.5)
    monkeypatch.setattr(writer_lease, "EXPIRE_S", 3.0)
    monkeypatch.setattr(writer_lease, "WATCH_S", 0.2)


def test_it_holds_what_a_local_index_holds(address: str, tmp_path: Path) -> None:
    queries = unit_rows(20, 9)
    with write_index(tmp_path / "index") as local, write_index(address) as remote:
        assert remote.columns().paths() == local.columns().paths()
        np.testing.assert_array_equal(remote.search(queries, 5).ids, local.search(queries, 5).ids)
        assert remote.read_record("note") == local.read_record("note")
        assert remote.thumbnail(30) == local.thumbnail(30)
        added = [index.add(some_photos(range(295, 305)), unit_rows(10, 2)).ids for index in (local, remote)]
        np.testing.assert_array_equal(*added)
        remote.compact()
    with open_index(address) as reader:
        assert len(reader) == 295
        assert reader.info()["num_bytes"] is None
    assert not verify_index(address).problems


def test_an_approximate_search(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "MIN_MEASURED", 20)  # the server is slow
    monkeypatch.setattr(approximate, "MAX_MEASURED", 20)
    with write_index(address, count=1000, exact_rows=500) as index:
        assert index.info()["search"]["kind"] == "approximate"
    with open_index(address) as reader:
        queries = unit_rows(20, 9)
        found, exact = reader.search(queries, 1).ids, reader.search(queries, 1, exact=True).ids
        assert (found == exact).mean() >= 0.9


def test_what_a_calibration_has_encoded(address: str) -> None:
    batch = EncodedBatch(rows=np.array([3, 5]), descriptors=unit_rows(2, 4))
    shape = batch.descriptors.shape[1:]
    with write_index(address, count=20) as index:
        append_views(index.store, {"a": batch}, is_first=True)
        append_views(index.store, {"b": batch}, is_first=False)
    assert any("has not ended" in note for note in verify_index(address).notes)
    with open_index(address, write=True) as index:
        found = read_views(index.store, {"a", "b"}, shape)
        assert found.keys() == {"a", "b"}
        np.testing.assert_array_equal(found["b"].descriptors, batch.descriptors)
        index.compact()
        assert not read_views(index.store, {"a", "b"}, shape)
    assert not verify_index(address).notes


def test_the_second_writer_gets_one_line(address: str, soon: None) -> None:
    with write_index(address) as index:
        with pytest.raises(IndexInUseError, match=r"in use by another writer .*pid \d+"):
            open_index(address, write=True)
        assert index.add(some_photos(range(300, 301)), unit_rows(1, 3)).is_new.all()
    with open_index(address, write=True) as index:
        assert index.add(some_photos(range(301, 302)), unit_rows(1, 3)).ids.tolist() == [301]


def test_a_writer_that_was_replaced_cannot_store_anything(address: str, soon: None) -> None:
    former = write_index(address)
    former._lock._ended.set()  # as if its process were stopped: the right is not renewed
    time.sleep(1)
    former._lock._ended.clear()
    with open_index(address, write=True) as index:
        assert index.add(some_photos(range(300, 310)), unit_rows(10, 3)).ids.tolist() == list(range(300, 310))
        for change in (
            lambda: former.add(some_photos(range(400, 410)), unit_rows(10, 4)),
            lambda: former.remove([30]),
            lambda: former.write_record("note", {"text": "former"}),
            former.refresh,
            former.compact,
            lambda: former.add(some_photos(range(400, 410)), unit_rows(10, 4)),
        ):
            with pytest.raises(IndexInUseError, match="taken over by another writer"):
                change()
        former.close()
        assert index.add(some_photos(range(310, 311)), unit_rows(1, 3)).ids.tolist() == [310]
    with open_index(address) as reader:
        assert reader.read_record("note") == {"text": "hello"}
        assert reader.columns().ids.tolist() == [*range(10), *range(20, 311)]
    assert not verify_index(address).problems


def test_a_commit_just_before_the_takeover_is_kept(address: str) -> None:
    write_index(address).close()
    former, current = open_index(address)._store.photos, open_index(address)._store.photos
    read_newest, restore, is_first = current.checkout_latest, current.restore, iter((True, False))

    def restore_late(version: int) -> None:
        if next(is_first):
            former.delete("id = 30")
        restore(version)

    late = type("Late", (), {
        "checkout_latest": staticmethod(read_newest), "restore": staticmethod(restore_late),
        "version": property(lambda _: current.version),
    })()  # fmt: skip
    writer_lease.exclude_earlier_writers(late)
    with open_index(address) as reader:
        assert 30 not in reader.columns().ids
        assert len(reader) == 289
    with pytest.raises(RuntimeError, match="Incompatible"):
        former.delete("id = 31")


def _add_and_report(address: str, numbers: range, sent: multiprocessing.SimpleQueue) -> None:
    """Add photos one by one, each as a writer of its own, waiting while another one writes."""
    for number in numbers:
        while True:
            try:
                with open_index(address, write=True) as index:
                    sent.put((number, *index.add(some_photos(range(number, number + 1)), unit_rows(1, number)).ids))
                break
            except IndexInUseError:
                continue
            except CosPlaceError as error:
                sent.put(str(error))
                return


def test_two_processes_that_write_in_turns(address: str) -> None:
    create_index(address, SPEC).close()
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_add_and_report, args=(address, range(first, first + 6), queue))
                 for first in (0, 3)]  # fmt: skip
    for process in processes:
        process.start()
    reports = [queue.get() for _ in range(12)]
    for process in processes:
        process.join()
    assert not [report for report in reports if isinstance(report, str)]
    columns = open_index(address).columns()
    assert sorted(columns.ids.tolist()) == list(range(9))  # each photo once, although three were sent twice
    ids = dict(zip(columns.paths(), columns.ids.tolist(), strict=True))
    assert all(ids[f"/photos/{number}.jpg"] == photo_id for number, photo_id in reports)


def test_two_processes_that_create_the_same_index(address: str) -> None:
    code = (
        "import sys; from cosplace.errors import CosPlaceError; from cosplace.index.photo_index import create_index\n"
        "from tests.index.index_samples import *\n"
        "try:\n"
        "    with create_index(sys.argv[1], SPEC) as index: index.add(some_photos(range(30)), unit_rows(30, 1))\n"
        "    print('created')\n"
        "except CosPlaceError as error: print(error)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True)
                 for _ in range(2)]  # fmt: skip
    lines = [process.communicate()[0].strip() for process in processes]
    others = [line for line in lines if line != "created"]
    assert len(others) == 1
    refusals = "already contains an index", "is creating an index", "in use by another writer"
    assert any(refusal in others[0] for refusal in refusals), others
    assert open_index(address).columns().ids.tolist() == list(range(30))


def test_a_killed_writer_is_replaced(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_lease, "EXPIRE_S", 15.0)
    code = (
        "import sys; from tests.index.index_samples import *\n"
        "index = write_index(sys.argv[1])\n"
        "print('ready', flush=True); import time; time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    with open_index(address, write=True) as index:
        assert len(index) == 290
        assert index.add(some_photos(range(300, 301)), unit_rows(1, 3)).ids.tolist() == [300]


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_store_without_conditional_writes(address: str, store: ObjectStore) -> None:
    store.set_faults(ignore_conditions=1)
    with pytest.raises(ConfigError, match="no conditional writes"):
        create_index(address, SPEC)
    store.set_faults(status=501)
    with pytest.raises(CosPlaceError) as caught:
        create_index(address, SPEC)
    assert "\n" not in str(caught.value)
    store.set_faults()
    assert not has_index(address)


@pytest.mark.long
def test_a_store_that_fails(address: str, store: ObjectStore) -> None:
    write_index(address).close()
    with open_index(address, write=True) as index:
        store.set_faults(status=503)
        for change in (
            lambda: index.add(some_photos(range(300, 310)), unit_rows(10, 3)),
            lambda: index.remove([30]),
            lambda: open_index(address),
        ):
            with pytest.raises(PhotoIndexError) as caught:
                change()
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 400
        store.set_faults()
        assert index.add(some_photos(range(300, 310)), unit_rows(10, 3)).is_new.all()
    assert not verify_index(address).problems
    with open_index(address) as reader:
        assert len(np.unique(reader.columns().ids)) == len(reader) == 300


def test_a_slow_store(address: str, store: ObjectStore) -> None:
    store.set_faults(delay_s=0.1)
    with write_index(address, count=40) as index:
        assert len(index) == 30


@pytest.mark.long
def test_a_store_that_is_down_or_has_no_such_bucket(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PhotoIndexError, match="cannot be reached"):
        open_index("s3://no-such-bucket/city")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(PhotoIndexError, match="cannot be reached"):
        open_index(f"s3://{BUCKET}/city")
    with pytest.raises(PhotoIndexError, match="cannot be"):
        create_index(f"s3://{BUCKET}/city", SPEC)
