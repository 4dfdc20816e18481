"""Stores of somebody else: no value in their JSON files ends a command with anything but one line."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosplace.errors import CosPlaceError, DatasetError
from cosplace.retrieval.descriptor_store import DescriptorStore, open_store, store_state, verify_store
from cosplace.retrieval.shard_claims import Claim, claim_name, read_claim
from cosplace.retrieval.shards import META, open_shard_file, require_meta, shard_name
from cosplace.retrieval.store_files import open_files
from cosplace.retrieval.stored_codes import codes_of
from cosplace.retrieval.stored_photos import read_photos
from tests.hostile_json import changed
from tests.retrieval.store_samples import unit_rows, write_store

RECORD = {"name": "m", "file": "/m.pth", "sha256": "a", "backbone": "b", "descriptor_dim": 64, "card": {"a": "b"}}
MIB = 1 << 20


def store_of(folder: Path, dtype: str = "float32") -> Path:
    """A store of 25 photos in shards of 10."""
    write_store(folder, unit_rows(25, 64), dtype=dtype, shard_rows=10)
    return folder


def replace_trailer(path: Path, change: bytes | Callable[[Any], Any]) -> None:
    """Change or replace the JSON in the trailer of a shard; the checksum is computed again."""
    content = path.read_bytes()
    length = int.from_bytes(content[-16:-8], "little")
    start = len(content) - 48 - length
    text = (
        change
        if isinstance(change, bytes)
        else json.dumps(change(json.loads(content[start : start + length]))).encode()
    )
    body = content[:start] + text
    path.write_bytes(body + hashlib.sha256(body).digest() + len(text).to_bytes(8, "little") + b"COSPLACE")


def use(store: Path) -> None:
    """Whatever commands do with a store; raises nothing but an error of the program."""
    for action in (store_state, verify_store, _read):
        try:
            action(store)
        except CosPlaceError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000


def _read(store: Path) -> None:
    opened: DescriptorStore = open_store(store)
    rows = opened.read(range(len(opened.readable)))
    if opened.meta.codes:
        codes_of(rows, opened.readable, opened.meta)


@pytest.mark.parametrize("dtype", ["float32", "int8", "binary"])
def test_any_value_of_meta_json(tmp_path: Path, dtype: str) -> None:
    store = store_of(tmp_path / "store", dtype)
    meta = json.loads((store / META).read_text()) | {"about": {"model": "m", "batch_size": 8, "model_record": RECORD}}
    if dtype == "binary":
        meta["codes"]["center"] = meta["codes"]["center"][:2] * 32  # else there are too many
    meta["file_sizes"] = meta["file_sizes"][:2]
    (store / META).write_text(json.dumps(meta))
    assert require_meta(open_files(store)).about["model_record"] == RECORD
    places = 0
    for place, other in changed(meta):
        if place[:2] == ("codes", "center") and len(place) == 3 and place[2] > 1:
            continue
        (store / META).write_text(json.dumps(other))
        use(store)
        places += 1
    assert places > 200


def test_impossible_values_of_meta_json_are_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store")
    meta = json.loads((store / META).read_text())
    long = {"about": {"model": "x" * (1 << 15)}}
    for wrong in ({"image_size": "abc"}, {"image_size": float("nan")}, {"image_size": 1 << 40}, {"codes": {}}, long):
        (store / META).write_text(json.dumps(meta | wrong))
        with pytest.raises(DatasetError, match=r"meta\.json is damaged"):
            require_meta(open_files(store))
    (store / META).write_text("[" * 100_000)
    with pytest.raises(DatasetError, match=r"meta\.json is damaged"):
        require_meta(open_files(store))


@pytest.mark.parametrize(
    ("dtype", "codes"),
    [
        ("int8", None), ("int8", {"center": [0.0] * 64}), ("int8", {"scale": 0}), ("int8", {"scale": 1e-320}),
        ("int8", {"scale": 1e39}), ("int8", {"scale": "a"}), ("int8", ["scale"]), ("binary", {"scale": 1.0}),
        ("binary", {"center": [0.0] * 63}), ("binary", {"center": [1e300] * 64}), ("binary", {"center": [None] * 64}),
        ("binary", {"center": [[0.0]] * 64}), ("float32", {"scale": 1.0}),
    ],
)  # fmt: skip
def test_codes_without_what_they_need_are_damaged(tmp_path: Path, dtype: str, codes: Any) -> None:
    store = store_of(tmp_path / "store", dtype)
    meta = json.loads((store / META).read_text())
    (store / META).write_text(json.dumps(meta | {"codes": codes}))
    with pytest.raises(DatasetError, match=r"meta\.json is damaged"):
        open_store(store)


def test_any_value_of_a_trailer(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store")
    honest = {"unreadable": [{"index": 3, "name": "a.jpg", "message": "m"}], "photos": {"sizes": "a", "times": "b"}}
    path = store / shard_name(0)
    replace_trailer(path, lambda record: record | honest)
    files = open_files(store)
    assert open_shard_file(files, 0, require_meta(files)).unreadable[0].index == 3
    assert not open_store(store).readable[3] and verify_store(store).damaged == ()
    whole = json.loads(json.dumps({"extraction": require_meta(files).digest} | honest))
    for _, other in changed(whole):
        replace_trailer(path, json.dumps(other).encode())
        use(store)
    for text in (b"[" * 100_000, b'{"extraction":' * 100_000, b"9" * 100_000, b'{"extraction":"\xff"}', b"NaN", b""):
        replace_trailer(path, text)
        with pytest.raises(DatasetError, match="truncated"):
            open_shard_file(files, 0, require_meta(files))
        use(store)


def test_any_value_of_a_claim(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store")
    (store / shard_name(1)).unlink()
    files, name = open_files(store), claim_name(1)
    claim = {"worker": "w", "host": "h", "pid": 1, "count": 0, "time": 1e9, "done": 3, "photos_per_s": 2.0}
    (store / name).write_text(json.dumps(claim))
    assert read_claim(files, name) == Claim(**claim)
    assert len(store_state(store).claims) == 1
    for _, other in changed(claim):
        (store / name).write_text(json.dumps(other))
        use(store)
    for key, wrong in (("pid", 1 << 70), ("pid", "a"), ("time", float("nan")), ("done", 10**400), ("photos_per_s", -1)):
        (store / name).write_text(json.dumps(claim | {key: wrong}))
        assert read_claim(files, name) is None
    (store / name).write_text(" " * MIB + json.dumps(claim))
    assert read_claim(files, name) is None


@pytest.mark.parametrize(
    "center", [[1e300, 0], [float("nan"), 0], ["a", 1], [], {}, [1], 3, [100, 0], [0, 181], "ab", [10**400, 0], True]
)
def test_a_map_center_that_is_no_place_is_damage(tmp_path: Path, center: Any) -> None:
    import pyarrow.parquet as pq

    store = store_of(tmp_path / "store")
    table = pq.read_table(store / "photos.parquet")
    for value, is_sound in ((None, True), ([37.7, -122.4], True), (center, False)):
        changed_table = table.replace_schema_metadata(table.schema.metadata | {b"map_center": json.dumps(value)})
        pq.write_table(changed_table, store / "photos.parquet")
        if is_sound:
            assert read_photos(open_files(store)).map_center == (None if value is None else tuple(value))
            continue
        with pytest.raises(DatasetError, match=r"photos\.parquet is damaged"):
            read_photos(open_files(store))


@pytest.mark.parametrize("name", [META, shard_name(0), claim_name(0), "photos.parquet"])
def test_files_with_holes_are_not_read_as_a_whole(tmp_path: Path, name: str) -> None:
    store = store_of(tmp_path / "store")
    (store / name).touch()
    with (store / name).open("r+b") as file:
        file.truncate(1 << 40)  # more than any memory
    if name == shard_name(0):  # a trailer that says that it is as large
        length = (1 << 40) - 48 - 128 - 10 * 64 * 4
        with (store / name).open("r+b") as file:
            file.seek((1 << 40) - 16)
            file.write(length.to_bytes(8, "little") + b"COSPLACE")
    use(store)


def test_values_that_are_not_finite_are_found_by_verify(tmp_path: Path) -> None:
    rows = unit_rows(25, 64)
    rows[3, 5], rows[4] = np.nan, np.inf
    write_store(tmp_path / "store", rows, shard_rows=10)
    found = verify_store(tmp_path / "store")
    assert found.damaged == (shard_name(0),)
    assert found.problems[0].endswith("has 2 descriptors with values that are not finite.")
    replace_trailer(  # photos that could not be opened have no descriptors
        tmp_path / "store" / shard_name(0),
        lambda record: record | {"unreadable": [{"index": index, "name": "a.jpg", "message": "m"} for index in (3, 4)]},
    )
    assert verify_store(tmp_path / "store").damaged == ()


def test_a_store_that_is_copied_is_sound(tmp_path: Path) -> None:
    for dtype in ("float32", "float16", "int8", "binary"):
        store = store_of(tmp_path / dtype, dtype)
        shutil.copytree(store, tmp_path / f"copy of {dtype}")
        found = verify_store(tmp_path / f"copy of {dtype}")
        assert (found.damaged, found.num_checked) == ((), 3)
