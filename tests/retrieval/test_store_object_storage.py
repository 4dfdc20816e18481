"""Stores on object storage: a real S3 server on loopback."""

import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

from cosplace.cli import main
from cosplace.errors import ConfigError, DatasetError, StorageError
from cosplace.photos.image_list import ImageList
from cosplace.ranks import ALONE, Ranks
from cosplace.retrieval import store_files
from cosplace.retrieval.descriptor_store import open_store, remove_files, store_state, verify_store
from cosplace.retrieval.evaluation import EvaluationSettings
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.retrieval.rank_group import RankGroup
from cosplace.retrieval.shard_claims import ShardClaims, claim_name
from cosplace.retrieval.shards import shard_name
from cosplace.retrieval.store_evaluation import evaluate_stores, open_stores
from cosplace.retrieval.store_extraction import extract_to_store
from cosplace.retrieval.store_files import open_files
from tests import object_store
from tests.retrieval.store_samples import contents, small_network, unit_rows, write_photos_folder, write_store

MISSING = [name for name in ("s3fs", "moto", "flask_cors") if find_spec(name) is None]
needs_s3 = pytest.mark.skipif(
    bool(MISSING), reason=f"an S3 server needs {', '.join(MISSING)}: pip install s3fs 'moto[server]'"
)
warnings_of_clients = pytest.mark.filterwarnings("default")
SETTINGS = ExtractionSettings(shard_rows=4, batch_size=3)
NUM_PHOTOS = 18


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of an S3 server with a bucket."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with urlopen(Request(f"http://{host}:{port}/bucket", method="PUT")):
        yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An address of its own for each test."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/folder/{request.node.name}"


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    return write_photos_folder(tmp_path / "photos", NUM_PHOTOS)


def run(images: ImageList, to: Path | str, **options) -> int:
    return extract_to_store(small_network(), images, to, SETTINGS, **options)


def stored(address: str) -> dict[str, bytes]:
    files = open_files(address)
    return {name: files.read(name) for name in sorted(files.sizes())}


@needs_s3
@warnings_of_clients
def test_a_store_has_the_files_of_one_in_a_folder(images: ImageList, tmp_path: Path, store: str) -> None:
    run(images, tmp_path / "folder")
    assert run(images, store, only=[0, 3], wait=False) == 8
    assert store_state(store).num_finished == 2
    assert run(images, store) == NUM_PHOTOS - 8
    assert stored(store) == contents(tmp_path / "folder")
    assert run(images, store) == 0
    assert store_state(store).is_complete
    assert np.array_equal(open_store(store).read(range(3, 11)), open_store(tmp_path / "folder").read(range(3, 11)))
    with pytest.raises(DatasetError, match="is not a store of descriptors"):
        store_state(f"{store}-other")


@needs_s3
@warnings_of_clients
def test_damage_is_found_and_computed_again(images: ImageList, store: str) -> None:
    run(images, store)
    before, files = stored(store), open_files(store)
    changed = bytearray(before[shard_name(1)])
    changed[150] ^= 1
    files.write(shard_name(1), [changed])
    files.write(shard_name(2), [before[shard_name(2)][:-1]])
    found = verify_store(store)
    assert found.damaged == (shard_name(1), shard_name(2))
    remove_files(store, found.damaged)
    assert run(images, store) == 8
    assert stored(store) == before


@needs_s3
@warnings_of_clients
def test_workers_that_begin_together(images: ImageList, tmp_path: Path, store: str) -> None:
    """Without conditional writes, a shard may be computed twice, but its file is the same."""
    run(images, tmp_path / "folder")
    models = [small_network() for _ in range(3)]
    threads = [
        threading.Thread(
            target=extract_to_store, args=(models[rank], images, store, SETTINGS), kwargs={"ranks": Ranks(rank, 3)}
        )
        for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(store) == contents(tmp_path / "folder")


@needs_s3
@warnings_of_clients
def test_claims(store: str) -> None:
    one, two = ShardClaims(open_files(store)), ShardClaims(open_files(store))
    assert one.claim(claim_name(0), exists=False)
    assert not two.claim(claim_name(0), exists=False)
    assert not two.claim(claim_name(0), exists=True)
    one.release(claim_name(0))
    assert two.claim(claim_name(0), exists=False)


@needs_s3
@warnings_of_clients
def test_evaluation(tmp_path: Path, store: str) -> None:
    rows, results = unit_rows(500, 16), []
    for place in (f"{tmp_path}/", f"{store}-"):
        write_store(f"{place}database", rows)
        queries = rows[:40] + 0.05 * unit_rows(40, 16, seed=3)
        write_store(f"{place}queries", queries, offset_m=4, folder="/queries")
        stores = open_stores(f"{place}database", f"{place}queries")
        found = evaluate_stores(stores, EvaluationSettings(), group=RankGroup(ALONE))
        assert found is not None
        results.append(found[0])
    assert np.array_equal(results[0].predictions, results[1].predictions)
    assert results[0].recalls == results[1].recalls and results[0].recalls[1] > 90


@needs_s3
@warnings_of_clients
def test_a_bucket_that_does_not_exist(images: ImageList, store: str) -> None:
    with pytest.raises(StorageError, match=r"Cannot write to s3://missing/store: the bucket does not exist"):
        run(images, "s3://missing/store")


@needs_s3
@warnings_of_clients
def test_a_server_that_is_down_is_one_line(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(store_files.S3_OPTIONS, "retries", {"max_attempts": 1})
    assert main(["extract", "--status", "--to=s3://bucket/other"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Cannot read s3://bucket/other (") and error.count("\n") == 1
    assert "Check the address, the network and the credentials" in error


@needs_s3
@pytest.mark.skipif(bool(object_store.MISSING), reason=object_store.REASON)
@warnings_of_clients
@pytest.mark.slow
def test_a_server_that_fails_meanwhile_or_is_slow(
    images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(store_files.S3_OPTIONS, "retries", {"max_attempts": 1})
    address = f"s3://{object_store.BUCKET}/store"
    run(images, tmp_path / "folder")
    with object_store.run_object_store(tmp_path) as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # it remembers the servers of other tests
        run(images, address, only=[0], wait=False)
        before = stored(address)
        with pytest.raises(StorageError, match=f"Cannot (read|write to) {address} ") as caught:
            run(images, address, progress=lambda *_: server.set_faults(status=503))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        server.set_faults(delay_s=0.05)
        assert before.items() <= stored(address).items()
        # Its claims could not be removed, and this process has not ended.
        assert run(images, address, stale_s=0.0) == NUM_PHOTOS - 4
        assert stored(address) == contents(tmp_path / "folder")


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed")
def test_without_the_client() -> None:
    with pytest.raises(
        ConfigError, match=r"needs a package that is not installed\. Run `pip install 'cosplace\[s3\]'`"
    ):
        open_files("s3://bucket/store")


def test_other_addresses(tmp_path: Path) -> None:
    assert open_files(f"file://{tmp_path}").local_path("a") == tmp_path / "a"
    with pytest.raises(ConfigError, match="Unknown storage 'xyz'"):
        open_files("xyz://bucket/store")
