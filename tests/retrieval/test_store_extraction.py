"""Stores of descriptors: workers, claims, checksums, damaged files, photos that cannot be opened."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosplace.errors import DatasetError, ImageError, StorageError
from cosplace.photos.image_list import ImageList
from cosplace.photos.scanning import scan_images
from cosplace.ranks import Ranks
from cosplace.retrieval.descriptor_store import open_store, remove_files, store_state, verify_store
from cosplace.retrieval.extraction import ExtractionSettings, extract
from cosplace.retrieval.npy_headers import read_header
from cosplace.retrieval.shard_claims import Claim, ShardClaims, claim_name, this_host
from cosplace.retrieval.shards import read_meta, read_shards, shard_name
from cosplace.retrieval.store_extraction import extract_to_store
from cosplace.retrieval.store_files import open_files
from tests.retrieval.store_samples import contents, small_network, write_photos_folder
from tests.unusual_input.samples import within

SETTINGS = ExtractionSettings(shard_rows=4, batch_size=3)
NUM_PHOTOS = 18  # 5 shards, the last with 2 photos


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    return write_photos_folder(tmp_path / "photos", NUM_PHOTOS)


def run(images: ImageList, to: Path | str, **options) -> int:
    model = options.pop("model", None) or small_network()
    return extract_to_store(model, images, to, options.pop("settings", SETTINGS), **options)


# --- what is stored --------------------------------------------------------------------------------------------------


def test_a_store_has_the_descriptors_of_extract(images: ImageList, tmp_path: Path) -> None:
    assert run(images, tmp_path / "store") == NUM_PHOTOS
    expected = extract(small_network(), images, SETTINGS).descriptors
    assert np.array_equal(read_shards(tmp_path / "store")[0][:], expected)
    store = open_store(tmp_path / "store")
    assert np.array_equal(store.read(range(3, 11)), expected[3:11])
    assert sorted(contents(tmp_path / "store")) == [
        *(shard_name(number) for number in range(5)), "meta.json", "photos.parquet",
    ]  # fmt: skip
    assert np.array_equal(np.load(tmp_path / "store" / shard_name(4)), expected[16:])  # numpy ignores the trailer
    assert run(images, tmp_path / "store") == 0


def test_eval_continues_from_a_store_and_a_store_from_eval(images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "store")
    model = small_network()
    model.forward = None  # not called
    assert np.array_equal(
        extract(model, images, SETTINGS, to=tmp_path / "store").descriptors[:], read_shards(tmp_path / "store")[0][:]
    )
    extract(small_network(), images, SETTINGS, to=tmp_path / "other")
    assert run(images, tmp_path / "other") == 0
    assert store_state(tmp_path / "other").is_complete


def test_the_list_of_photos_is_stored_with_positions(images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "store")
    for path in images.folder.iterdir():
        path.unlink()
    photos = open_store(tmp_path / "store").photos
    assert [photos.images.name(row) for row in range(NUM_PHOTOS)] == [images.name(row) for row in range(NUM_PHOTOS)]
    assert photos.images.folder == images.folder.resolve()
    assert len(photos.labeled()[0]) == NUM_PHOTOS


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_other_types(images: ImageList, tmp_path: Path, dtype: str) -> None:
    run(images, tmp_path / "one", dtype=dtype)
    for rank in (1, 0):  # workers agree on the codes
        run(images, tmp_path / "two", dtype=dtype, ranks=Ranks(rank, 2), wait=False, only=range(rank, 5, 2))
    run(images, tmp_path / "two", dtype=dtype)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    expected = extract(small_network(), images, SETTINGS).descriptors
    rows, meta = open_store(tmp_path / "one").read(range(NUM_PHOTOS)), store_state(tmp_path / "one").meta
    if dtype == "float16":
        assert np.array_equal(rows, expected.astype(np.float16))
    elif dtype == "int8":  # all photos are in the sample, so no value is cut
        assert np.allclose(rows * (meta.codes["scale"] / 127), expected, atol=0.51 * meta.codes["scale"] / 127)
        assert np.abs(rows).max() == 127
    else:
        assert rows.dtype == np.uint64 and rows.shape == (NUM_PHOTOS, 1)
        bits = np.unpackbits(rows.view(np.uint8), axis=1)
        assert 0.3 < bits[:, :32].mean() < 0.7 and not bits[:, 32:].any()
    with pytest.raises(DatasetError, match=f"dtype was {dtype}"):
        extract(small_network(), images, SETTINGS, to=tmp_path / "one")


# --- several workers -------------------------------------------------------------------------------------------------


def test_workers_divide_the_shards(images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "alone")
    done, models = {}, [small_network() for _ in range(3)]

    def work(rank: int) -> None:
        done[rank] = run(images, tmp_path / "store", ranks=Ranks(rank, 3), model=models[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    assert sum(done.values()) == NUM_PHOTOS  # no shard was computed twice


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_is_always_computed_in_the_same_batches(images: ImageList, tmp_path: Path, num_workers: int) -> None:
    class Recorded(type(small_network())):
        def forward(self, photos):
            batches.append(tuple(photos.shape))
            return super().forward(photos)

    def batches_of(only, to: str) -> list[tuple[int, ...]]:
        batches.clear()
        network = small_network()
        network.__class__ = Recorded
        settings = replace(SETTINGS, num_workers=num_workers)
        extract_to_store(network, images, tmp_path / to, settings, only=only, wait=False)
        return list(batches)

    batches: list[tuple[int, ...]] = []
    alone = [batches_of([number], "one by one") for number in range(5)]
    together = batches_of(None, "together")
    assert together == [shape for shapes in alone for shape in shapes]
    assert contents(tmp_path / "together") == contents(tmp_path / "one by one")


def leave_claim(to: Path, number: int, *, host: str, pid: int) -> None:
    claim = Claim(worker="other", host=host, pid=pid, count=3, time=time.time(), done=1, photos_per_s=2.5)
    open_files(to).write(claim_name(number), [claim.text()])


def ended_process() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_shards_of_a_killed_worker_are_taken_over_at_once(images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "store", only=[0], wait=False)
    leave_claim(tmp_path / "store", 2, host=this_host(), pid=ended_process())
    assert run(images, tmp_path / "store", stale_s=1000) == NUM_PHOTOS - 4
    assert not list((tmp_path / "store").glob("claim-*"))


def test_a_claim_that_does_not_change_is_taken_over(images: ImageList, tmp_path: Path) -> None:
    leave_claim(tmp_path / "store", 2, host="another machine", pid=1)
    assert run(images, tmp_path / "store", wait=False, stale_s=1000) == NUM_PHOTOS - 4
    started = time.monotonic()
    assert run(images, tmp_path / "store", stale_s=1.5) == 4
    assert time.monotonic() - started >= 1.5


def test_an_active_claim_is_respected(images: ImageList, tmp_path: Path) -> None:
    files = open_files(tmp_path / "store")
    other = ShardClaims(files, renew_s=0.0)
    assert other.claim(claim_name(1), exists=False)
    for count in range(4):
        assert run(images, files.address, wait=False, stale_s=1000) == (0 if count else NUM_PHOTOS - 4)
        other.renew({claim_name(1): count}, 1.0)
    assert store_state(files.address).claims[0].claim.done == 3
    other.release_all()
    assert run(images, files.address) == 4


def test_a_claim_is_created_only_once(tmp_path: Path) -> None:
    one, two = ShardClaims(open_files(tmp_path)), ShardClaims(open_files(tmp_path))
    assert one.claim(claim_name(0), exists=False)
    assert not two.claim(claim_name(0), exists=False)
    assert not two.claim(claim_name(0), exists=True)
    one.release(claim_name(0))
    assert two.claim(claim_name(0), exists=False)


def test_status_knows_the_rate_and_the_time_left(images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "store", only=[0, 3], wait=False)
    for number, pid in ((1, os.getpid()), (2, ended_process())):
        leave_claim(tmp_path / "store", number, host=this_host(), pid=pid)
    state = store_state(tmp_path / "store")
    assert (state.num_finished, state.num_photos_finished, state.num_shards) == (2, 8, 5)
    assert [(one.number, one.is_active) for one in state.claims] == [(1, True), (2, False)]
    assert state.photos_per_s == 2.5
    assert state.seconds_left == pytest.approx((NUM_PHOTOS - 8 - 1) / 2.5)
    assert not state.is_complete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": replace(SETTINGS, image_size=32)}, "image_size was None, now it is 32"),
        ({"settings": replace(SETTINGS, shard_rows=5)}, "shard_rows was 4, now it is 5"),
        ({"settings": replace(SETTINGS, flip=True)}, "views was not set, now it is flip"),
        ({"dtype": "int8"}, "dtype was float32, now it is int8"),
    ],
)
def test_workers_with_other_settings_are_refused(images: ImageList, tmp_path: Path, change: dict, message: str) -> None:
    run(images, tmp_path / "store", only=[0], wait=False)
    before = contents(tmp_path / "store")
    with pytest.raises(DatasetError, match=message):
        run(images, tmp_path / "store", **change)
    assert contents(tmp_path / "store") == before


def test_workers_of_another_version_or_model_or_list_are_refused(
    images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(images, tmp_path / "store", only=[0], wait=False)
    other = small_network()
    other.aggregation[1].p.data += 1
    with pytest.raises(DatasetError, match="model was"):
        extract_to_store(other, images, tmp_path / "store", SETTINGS)
    images.path(3).rename(images.folder / "other.jpg")
    with pytest.raises(DatasetError, match="photos was"):
        run(scan_images(images.folder), tmp_path / "store")
    (images.folder / "other.jpg").unlink()
    with pytest.raises(DatasetError, match="count was 18, now it is 17"):
        run(scan_images(images.folder), tmp_path / "store")
    monkeypatch.setattr("cosplace.__version__", "99.0")
    with pytest.raises(DatasetError, match=r"version was .*, now it is 99\.0"):
        run(images, tmp_path / "store")


def test_a_worker_notices_that_another_extraction_replaced_its_own(images: ImageList, tmp_path: Path) -> None:
    """As on object storage, where two workers that begin at the same moment may both write meta.json."""
    to = tmp_path / "store"

    def replace_meta(task: str, done: int, total: int, note: str = "") -> None:
        meta = json.loads((to / "meta.json").read_text())
        (to / "meta.json").write_text(json.dumps(meta | {"image_size": 99}))

    with pytest.raises(DatasetError, match="image_size was 99, now it is None"):
        run(images, to, progress=replace_meta)
    assert not list(to.glob("descriptors-*")) and not list(to.glob("claim-*"))


# --- damage ----------------------------------------------------------------------------------------------------------


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("position", [150, -1, -20, -45, 5])
def test_a_flipped_bit_is_found_and_only_that_shard_is_computed_again(
    images: ImageList, tmp_path: Path, position: int
) -> None:
    to = tmp_path / "store"
    run(images, to)
    before = contents(to)
    assert verify_store(to).damaged == ()
    flip_bit(to / shard_name(2), position)
    found = verify_store(to)
    assert found.damaged == (shard_name(2),)
    assert "00002.npy" in found.problems[0]
    remove_files(to, found.damaged)
    assert run(images, to) == 4
    assert contents(to) == before


@pytest.mark.parametrize("cut", [1, 60, 400])
def test_a_truncated_shard_is_computed_again_without_verify(
    images: ImageList, tmp_path: Path, cut: int, caplog
) -> None:
    to = tmp_path / "store"
    run(images, to)
    before = contents(to)
    path = to / shard_name(1)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DatasetError, match=r"truncated|not complete"):
        open_store(to)
    assert run(images, to) == 4
    assert "is truncated" in caplog.text
    assert contents(to) == before


def test_a_shard_without_its_trailer_is_truncated(images: ImageList, tmp_path: Path) -> None:
    """Shards of the first version have none, but their meta.json has no version either."""
    to = tmp_path / "store"
    run(images, to)
    path, meta = to / shard_name(1), json.loads((to / "meta.json").read_text())
    content = path.read_bytes()
    path.write_bytes(content[: -48 - int.from_bytes(content[-16:-8], "little")])
    assert verify_store(to).damaged == (shard_name(1),)
    del meta["version"]
    (to / "meta.json").write_text(json.dumps(meta))
    found = verify_store(to)
    assert (found.damaged, found.num_unchecked) == ((), 1)


def test_an_extraction_with_other_photos_is_not_continued(images: ImageList, tmp_path: Path) -> None:
    to = tmp_path / "store"
    run(images, to)
    meta = json.loads((to / "meta.json").read_text())
    for sizes in ([], meta["file_sizes"] * 2):
        (to / "meta.json").write_text(json.dumps(meta | {"file_sizes": sizes}))
        with pytest.raises(DatasetError, match="other file sizes"):
            run(images, to)


def test_headers_are_read_without_the_parser_of_python(
    images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_, **__) -> None:
        raise SystemError("AST constructor recursion depth mismatch")  # Python 3.11, in several threads

    run(images, tmp_path / "store")
    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", read)
    assert store_state(str(tmp_path / "store")).is_complete
    assert open_store(tmp_path / "store").meta.extraction.count == NUM_PHOTOS


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint64])
@pytest.mark.parametrize("shape", [(0, 4), (3, 1), (2, 70_000)])
def test_headers_are_read_as_numpy_reads_them(dtype: type, shape: tuple[int, int], tmp_path: Path) -> None:
    for array in (np.zeros(shape, dtype), np.asfortranarray(np.zeros(shape, dtype))):
        np.save(tmp_path / "array.npy", array)
        content = (tmp_path / "array.npy").read_bytes()
        with (tmp_path / "array.npy").open("rb") as file:
            assert np.lib.format.read_magic(file) == (1, 0)
            expected = (*np.lib.format.read_array_header_1_0(file), file.tell())
        assert read_header(content) == expected
    for wrong in (
        b"",
        content[:7],
        content[:40],
        content.replace(b"descr", b"other"),
        b"\x93NUMPY\x02\x00" + content[8:],
    ):
        with pytest.raises(ValueError):
            read_header(wrong)


def test_a_shard_of_another_store_is_noticed(images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "one")
    run(images, tmp_path / "two", settings=replace(SETTINGS, flip=True))
    (tmp_path / "one" / shard_name(1)).write_bytes((tmp_path / "two" / shard_name(1)).read_bytes())
    with pytest.raises(DatasetError, match="is of another extraction"):
        open_store(tmp_path / "one")
    assert run(images, tmp_path / "one") == 4


def test_each_rank_verifies_its_share(images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "store")
    for number in (1, 2):
        flip_bit(tmp_path / "store" / shard_name(number), 140)
    assert [verify_store(tmp_path / "store", Ranks(rank, 2)).damaged for rank in (0, 1)] == [
        (shard_name(2),), (shard_name(1),),
    ]  # fmt: skip


def test_a_list_of_other_photos_is_damage(images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "store")
    write_photos_folder(tmp_path / "others", NUM_PHOTOS, offset_m=5)
    run(scan_images(tmp_path / "others"), tmp_path / "other store")
    photos = (tmp_path / "other store" / "photos.parquet").read_bytes()
    (tmp_path / "store" / "photos.parquet").write_bytes(photos)
    with pytest.raises(DatasetError, match=r"has other photos than the descriptors\. Delete it"):
        open_store(tmp_path / "store").photos  # noqa: B018
    assert verify_store(tmp_path / "store").damaged == ("photos.parquet",)
    (tmp_path / "store" / "photos.parquet").write_bytes(photos[:100])
    assert "is damaged" in verify_store(tmp_path / "store").problems[0]


def test_damaged_photos_are_listed_with_their_shard(images: ImageList, tmp_path: Path) -> None:
    good = images.path(5).read_bytes()
    images.path(5).write_bytes(good[:50])
    images.path(16).write_bytes(b"")
    images.path(17).unlink()  # all photos of the last shard
    assert run(images, tmp_path / "store") == NUM_PHOTOS
    state = store_state(tmp_path / "store")
    assert [entry.index for entry in state.unreadable] == [5, 16, 17]
    assert images.name(5) in state.unreadable[0].message
    store = open_store(tmp_path / "store")
    assert np.flatnonzero(~store.readable).tolist() == [5, 16, 17]
    assert not store.read(range(5, 6)).any()


def test_photos_that_are_all_gone_are_no_damaged_photos(images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "store", only=[0], wait=False)
    images.folder.rename(tmp_path / "elsewhere")
    with pytest.raises((ImageError, DatasetError), match=r"are gone|other file sizes"):
        run(images, tmp_path / "store")

    def unmount(task: str, done: int, total: int, note: str = "") -> None:
        if done == 7 and images.folder.exists():
            images.folder.rename(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").rename(images.folder)
    with pytest.raises(ImageError, match="are gone"):
        run(images, tmp_path / "store", progress=unmount)
    (tmp_path / "elsewhere").rename(images.folder)
    run(images, tmp_path / "store")
    assert store_state(tmp_path / "store").unreadable == ()


def test_changed_photos_are_extracted_again_but_not_their_copies(images: ImageList, tmp_path: Path, caplog) -> None:
    run(images, tmp_path / "store")
    for row in range(NUM_PHOTOS):
        os.utime(images.path(row), (10**9, 10**9))  # as by `cp -r`
    assert run(images, tmp_path / "store") == 0
    assert "(5 of 5 shards). They are treated as unchanged copies" in caplog.text
    path = images.path(5)
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes(40))  # of the same size
    assert run(images, tmp_path / "store") == 4
    assert "files have changed since (1 of 5 shards)" in caplog.text


# --- folders that cannot be written ----------------------------------------------------------------------------------


def test_a_file_in_place_of_the_store(images: ImageList, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="Choose another folder"):
        run(images, tmp_path / "store")


@pytest.mark.parametrize(("number", "message"), [(28, "No space left"), (30, "Read-only file system")])
def test_a_folder_that_is_full_or_becomes_read_only(
    images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    run(images, tmp_path / "store", only=[0], wait=False)
    before = contents(tmp_path / "store")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("cosplace.storage.os.fsync", fail)
        with pytest.raises(StorageError, match=message):
            run(images, tmp_path / "store")
    assert contents(tmp_path / "store") == before
    assert run(images, tmp_path / "store") == NUM_PHOTOS - 4


@pytest.mark.parametrize(
    "change",
    [
        {"count": 10**15}, {"count": -5}, {"count": 0}, {"count": "24"}, {"count": 24.0}, {"count": 10**400},
        {"shard_rows": 1.5}, {"shard_rows": True}, {"dimension": "Infinity"}, {"file_sizes": ["1"]}, {"about": []},
        {"about": {"model": ["x"]}}, {"about": {"model_record": 7}}, {"about": {"batch_size": "x"}},
    ],
)  # fmt: skip
def test_numbers_that_no_extraction_has_are_damage(change: dict, images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "to")
    path = tmp_path / "to" / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DatasetError, match=r"meta\.json is damaged"):
        read_meta(open_files(tmp_path / "to"))


@pytest.mark.parametrize("name", ["meta.json", "photos.parquet", "descriptors-00000.npy"])
def test_a_pipe_in_a_store_is_not_read(name: str, images: ImageList, tmp_path: Path) -> None:
    run(images, tmp_path / "to")
    (tmp_path / "to" / name).unlink()
    os.mkfifo(tmp_path / "to" / name)
    with within(30), pytest.raises(StorageError, match=f"{name} is a pipe or a device"):
        open_files(tmp_path / "to").read(name)
