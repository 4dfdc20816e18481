"""Files that no writer makes, in an index from somebody else, whose checksums are right."""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosplace.config.defaults import MAX_IMAGE_SIZE
from cosplace.errors import ConfigError, DamagedIndexError, IndexInUseError, PhotoIndexError
from cosplace.index import checked_files, table_trial
from cosplace.index.checked_files import CheckedFiles
from cosplace.index.file_checksums import (
    MAX_RECORD_BYTES,
    checksum_of,
    newest_versions,
    read_checksums,
    record_checksums,
)
from cosplace.index.manifests import ManifestError, check_manifest
from cosplace.index.photo_index import create_index, open_index
from cosplace.index.reader_copy import remove_reader_copies
from cosplace.index.record_checks import parse_record
from cosplace.index.store import Store
from cosplace.index.trials import FOREIGN
from cosplace.index.verification import verify_index
from cosplace.models.views import PhotoViews
from cosplace.shapes import MAX_COUNT
from cosplace.storage import write_text
from tests.index.index_samples import SPEC, record_again, some_photos, unit_rows
from tests.index.manifest_samples import field, with_message
from tests.unusual_input.samples import within


def newest_manifest(address: Path, table: str = "photos") -> Path:
    (path,) = checked_files.manifests(str(address), table, newest_versions(str(address))[table])
    return path


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "_versions/100.aaaaaaaaaaaaaaaa.manifest",
        "_versions/d18446744073709551515.manifest",
        "_versions/00000000000000000100.manifest",
        "_versions/+5.manifest",
        "_versions/\u0669.manifest",
        "data/a%23.lance",
        "data/a b.lance",
        "data/\udce9.lance",
    ],
)
def test_names_that_lance_reads_in_another_way_are_refused(address: Path, name: str) -> None:
    path = address / "photos.lance" / name
    path.write_bytes(newest_manifest(address).read_bytes())
    record_again(address)
    with pytest.raises(DamagedIndexError, match="a name that no writer gives") as caught:
        open_index(address)
    assert str(caught.value).isascii()


@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes")
def test_many_files_that_are_mostly_holes_are_refused(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_files, "MAX_HOLE_BYTES", 50 << 20)
    for number in range(20):
        with (address / "photos.lance" / "data" / f"{number}.lance").open("wb") as file:
            file.truncate(3 << 20)
    record_again(address)
    with pytest.raises(DamagedIndexError, match="mostly holes"):
        open_index(address)
    monkeypatch.setattr(checked_files, "_stored_bytes", lambda _: 0)  # of a file system that does not tell
    with open_index(address) as index:
        assert len(index) == 290


def test_a_huge_copy_for_readers_is_not_used(intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    with open_index(address) as index:
        assert index.store.copy is not None
    monkeypatch.setattr("cosplace.index.reader_copy.MAX_COPY_BYTES", 290 * 4 * 3)
    with open_index(address) as index:
        assert index.store.copy is None and len(index) == 290


@pytest.mark.parametrize(
    "wrong",
    [{"num_probed": 1 << 40}, {"recall_at_1": math.nan}, {"recall_at_20": 1.5}, {"last_id": -2}, {"last_id": 0.5}],
)
def test_a_record_of_a_search_index_with_impossible_numbers_is_damage(wrong: dict[str, float]) -> None:
    record = dict.fromkeys(
        ("count", "num_partitions", "num_probed", "num_measured", "last_id", "recall_at_1", "recall_at_20"), 1
    )
    assert parse_record("search", json.dumps(record)) == record
    assert parse_record("search", json.dumps(record | wrong)) is None


def test_an_unfinished_file_of_lance_is_no_damage(address: Path) -> None:
    (address / "photos.lance" / "data" / "0123abcd.lance#1").write_bytes(b"")
    with open_index(address) as index:
        assert len(index) == 290


@pytest.mark.parametrize(
    "name", [b"..", b"../data/1.lance", b"/etc/passwd", b"a#1.lance", b"a%231.lance", b"\xff.lance"]
)
def test_a_manifest_with_another_name_of_a_data_file_is_refused(address: Path, name: bytes) -> None:
    raw = newest_manifest(address).read_bytes()
    check_manifest(with_message(raw, lambda message: message + field(2, field(2, field(1, b"0123abcd.lance")))))
    with pytest.raises(ManifestError, match="a name that no writer gives"):
        check_manifest(with_message(raw, lambda message: message + field(2, field(2, field(1, name)))))


@pytest.mark.parametrize("name", ["x.bin", "views.lance/data/1.lance", "photos.lance", "reader-1/2-3.safetensors"])
def test_checksums_of_other_files_are_damage(address: Path, name: str) -> None:
    recorded = json.loads((address / "checksums.json").read_text())["content"]
    content = recorded | {"files": recorded["files"] | {name: [0, "00"]}}
    (address / "checksums.json").write_text(json.dumps({"checksum": checksum_of(content), "content": content}))
    with pytest.raises(DamagedIndexError, match=r"checksums\.json cannot be read"):
        open_index(address)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_next_to_the_tables_are_not_read(intact: Path, tmp_path: Path) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    (copy,) = address.glob("reader-*")
    moved = copy.rename(tmp_path / "copy")
    copy.symlink_to(moved)
    with open_index(address) as index:
        assert index.store.copy is None and len(index) == 290
    moved = (address / "checksums.json").rename(tmp_path / "checksums.json")
    (address / "checksums.json").symlink_to(moved)
    with pytest.raises(DamagedIndexError, match=r"checksums\.json cannot be read"):
        open_index(address)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_an_index_is_not_created_through_links(intact: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "photos.lance").symlink_to(intact / "photos.lance")
    versions = newest_versions(str(intact))
    with pytest.raises(DamagedIndexError, match=r"photos\.lance is a link"):
        create_index(tmp_path / "new", SPEC)
    assert newest_versions(str(intact)) == versions


def test_another_version_than_the_checked_one_is_not_used(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = newest_versions(str(address))
    monkeypatch.setattr("cosplace.index.tables.newest_versions", lambda _: newest | {"photos": newest["photos"] - 1})
    with pytest.raises(DamagedIndexError, match="not what their names say"):
        open_index(address)


# --- contents --------------------------------------------------------------------------------------------------------


def test_a_table_that_names_embedding_models_is_not_opened(address: Path) -> None:
    path = newest_manifest(address)
    model = json.dumps([{"name": "huggingface", "model": {"name": "x"}, "source_column": "path"}]).encode()
    entry = field(5, field(1, b"embedding_functions") + field(2, model))
    path.write_bytes(with_message(path.read_bytes(), lambda message: message + entry))
    record_again(address)
    with pytest.raises(DamagedIndexError, match=r"photos\.lance has metadata"):
        open_index(address)


def test_a_manifest_with_very_many_fields_is_refused(address: Path) -> None:
    raw = newest_manifest(address).read_bytes()
    with within(5), pytest.raises(ManifestError, match="more fields"):
        check_manifest(with_message(raw, lambda message: message + b"\x18\x01" * 10_000_000))


def test_a_manifest_with_several_lists_of_search_indexes_is_refused(address: Path) -> None:
    raw = newest_manifest(address).read_bytes()
    with pytest.raises(ManifestError, match="more lists of search indexes"):
        check_manifest(with_message(raw, lambda message: message + b"\x30\x00" * 2))


def test_a_manifest_without_numbers_for_new_fragments_is_refused(address: Path) -> None:
    raw = newest_manifest(address).read_bytes()
    check_manifest(with_message(raw, lambda message: message + b"\x58\x07"))  # field 11: the last fragment
    with pytest.raises(ManifestError, match="numbers its fragments"):
        check_manifest(with_message(raw, lambda message: message + b"\x58\xff\xff\xff\xff\x0f"))


def test_folders_and_names_of_versions_that_no_writer_makes_are_damage(address: Path) -> None:
    tags = address / "photos.lance" / "_refs" / "tags"
    tags.mkdir(parents=True)
    with pytest.raises(DamagedIndexError, match="a folder that no writer makes \\('_refs'\\)"):
        open_index(address)
    assert "no writer makes" in verify_index(address).problems[0]
    shutil.rmtree(tags.parent)
    path = newest_manifest(address)
    shutil.copy(path, path.with_name("1.manifest"))
    with pytest.raises(DamagedIndexError, match="named in two ways"):
        open_index(address)


def test_a_fragment_whose_rows_are_replaced_by_other_files_is_refused(address: Path) -> None:
    raw = newest_manifest(address).read_bytes()
    with pytest.raises(ManifestError, match="replace rows of others"):
        check_manifest(with_message(raw, lambda message: message + field(2, field(11, field(1, b"a.lance")))))


@pytest.mark.slow
@pytest.mark.parametrize(("path", "num_photos"), [("a" * 100_000, 1), ("a" * 60_000, 3_000)])
def test_long_texts_are_refused(address: Path, path: str, num_photos: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal texts take few bytes of a file, and much memory."""
    monkeypatch.setattr(table_trial, "watch_memory", lambda num_bytes: None)  # it would end this process
    with open_index(address, write=True) as index:
        added = some_photos(range(1_000, 1_000 + num_photos))
        photos = [dataclasses.replace(one, path=f"/{row}/{path}") for row, one in enumerate(added)]
        index.add(photos, unit_rows(num_photos, 9))
    remove_reader_copies(str(address))
    assert table_trial.main(str(address)) == FOREIGN


def test_an_unknown_root_is_found_by_verify(address: Path) -> None:
    with open_index(address, write=True) as index:
        index.store.replace_columns(np.array([7]), {"root": [5]})
    remove_reader_copies(str(address))
    assert verify_index(address).problems == ("a photo has an unknown root",)


@pytest.mark.parametrize("length", [math.inf, 0, 2])
def test_descriptors_that_do_not_have_length_1_are_damage(
    address: Path, length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosplace.index.photo_index.check_descriptors", lambda *_: None)
    with open_index(address, write=True) as index:
        index.add(some_photos(range(1_000, 1_002)), length * unit_rows(2, 9))
    remove_reader_copies(str(address))
    with open_index(address) as index, pytest.raises(DamagedIndexError, match="a descriptor does not have length 1"):
        index.search(unit_rows(2, 3), 5)
    assert verify_index(address).problems == ("a descriptor does not have length 1",)


def test_a_path_with_a_zero_is_damage(address: Path) -> None:
    with open_index(address, write=True) as index:
        index.store.replace_columns(np.array([7]), {"path": ["a\0b.jpg"]})
    remove_reader_copies(str(address))
    with open_index(address) as index, pytest.raises(DamagedIndexError, match="the path of a photo has a zero"):
        index.columns()


@pytest.mark.parametrize("part", [field(1, b"\x08\x01" * 300), field(2, b"\x08\x01" * 300)])
def test_a_part_of_a_manifest_with_very_many_fields_is_refused(address: Path, part: bytes) -> None:
    with pytest.raises(ManifestError, match="more fields"):
        check_manifest(with_message(newest_manifest(address).read_bytes(), lambda message: message + part))


@pytest.mark.parametrize("size", [MAX_IMAGE_SIZE + 1, 1 << 40])
def test_an_index_of_huge_photos_is_damage(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match="at most 4096 x 4096 pixels"):
        create_index(tmp_path / "index", dataclasses.replace(SPEC, image_size=size))
    record = {"model": SPEC.record(), "settings": {}}
    assert parse_record("spec", json.dumps(record)) == record
    for change in ({"image_size": size}, {"views": {"query_size": size}}):
        assert parse_record("spec", json.dumps(record | {"model": record["model"] | change})) is None


@pytest.mark.parametrize(
    "views",
    [
        {"scales": (4.0,)},
        {"scales": (2.5,), "image_size": None},
        {"query_policy": "nearest_crop", "query_size": 1900},  # five crops at once
        {"query_policy": "central_crop", "query_shape": (100, 1_000_000)},
    ],
)
def test_an_index_that_encodes_very_much_of_a_photo_is_damage(tmp_path: Path, views: dict[str, Any]) -> None:
    size = views.get("image_size", 1100)
    large = PhotoViews(**{name: value for name, value in views.items() if name != "image_size"})
    with pytest.raises(ConfigError, match="at most 4096 x 4096 pixels"):
        dataclasses.replace(SPEC, image_size=size, views=large)
    with create_index(tmp_path / "index", dataclasses.replace(SPEC, image_size=size)) as index:
        record = index.store.read_record("spec")
        assert record
        model = record["model"] | {"views": large.record()}
        index.store.write_record("spec", record | {"model": model})
    with pytest.raises(DamagedIndexError, match="settings cannot be read"):
        open_index(tmp_path / "index")


def test_photos_without_a_free_id_are_not_added(address: Path) -> None:
    with open_index(address, write=True) as index:
        index.store.write_record("next_id", {"next_id": MAX_COUNT - 1})
        with pytest.raises(DamagedIndexError, match=f"its next id is {MAX_COUNT - 1}"):
            index.add(some_photos(range(1_000, 1_003)), unit_rows(3, 9))
        assert len(index) == 290
    with open_index(address) as index:
        assert len(index.columns()) == 290


def test_a_data_file_that_is_named_twice_is_refused(address: Path) -> None:
    raw = newest_manifest(address).read_bytes()
    parts = [field(2, field(2, field(1, name))) for name in (b"a.lance", b"b.lance", b"a.lance")]
    check_manifest(with_message(raw, lambda message: message + parts[0] + parts[1]))
    with pytest.raises(ManifestError, match="the same data file twice"):
        check_manifest(with_message(raw, lambda message: message + b"".join(parts)))


@pytest.mark.slow
def test_more_descriptors_than_the_files_may_hold_are_refused(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_trial, "watch_memory", lambda _: None)
    monkeypatch.setattr(table_trial, "SPARE_BYTES", 0)
    assert table_trial.main(str(address)) == 0
    monkeypatch.setattr(table_trial, "_descriptor_bytes", lambda _: 1 << 40)
    assert table_trial.main(str(address)) == FOREIGN


def test_a_huge_manifest_is_not_read(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_files, "MAX_MANIFEST_BYTES", 10_000)
    path = newest_manifest(address)
    path.write_bytes(with_message(path.read_bytes(), lambda message: message + field(12, bytes(10_000))))
    record_again(address)
    with pytest.raises(DamagedIndexError, match="more than any version needs"):
        open_index(address)


@pytest.mark.parametrize("content", [b"[" + b"[],", b'{"a":' + b"{},"])
def test_checksums_of_very_many_lists_are_damage(address: Path, content: bytes) -> None:
    (address / "checksums.json").write_bytes(content[:1] + content[1:] * (MAX_RECORD_BYTES // 4))
    with within(5), pytest.raises(DamagedIndexError, match=r"checksums\.json cannot be read"):
        open_index(address)


def test_checksums_of_many_files_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "photos.lance" / "data"
    folder.mkdir(parents=True)
    for number in range(1_000):
        (folder / f"{number}.lance").write_bytes(b"")
    assert read_checksums(str(tmp_path)) is None
    recorded = record_checksums(str(tmp_path), {"photos": 1, "records": 1}, None)
    assert len(recorded.files) == 1_000 and read_checksums(str(tmp_path)) == recorded


WRONG = {  # numbers that no photo has
    "latitude": [90.5, math.inf, math.nan],
    "longitude": [-181.0, math.nan],
    "heading": [math.inf],
    "time": [1e300],
    "accuracy_m": [-1.0, math.inf],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_numbers_that_no_photo_has_are_damage(
    address: Path, name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = dataclasses.replace(some_photos([1_000])[0], **{name: value})
    with open_index(address, write=True) as index:
        with pytest.raises(ConfigError, match=re.escape(f"has the {name} {value:g}. Correct it")):
            index.add([photo], unit_rows(1, 9))
        assert len(index) == 290
        monkeypatch.setattr("cosplace.index.photo_index.wrong_numbers", lambda _: None)
        photo_id = index.add([photo], unit_rows(1, 9)).ids[0]
    remove_reader_copies(str(address))
    with pytest.raises(DamagedIndexError, match=re.escape(f"photo {photo_id} has the {name} {value:g}")):
        open_index(address).columns()


def test_a_column_of_another_version_is_not_written(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(str(address), check=False).photos.add_columns({"zzz": "cast(1 as int)"})
    record_again(address)
    with open_index(address) as index:
        assert len(index.columns()) == 290
    with pytest.raises(PhotoIndexError, match="a column 'zzz' that this version of cosplace does not write"):
        open_index(address, write=True)


@pytest.mark.skipif(os.name != "posix", reason="needs paths longer than a call takes")
def test_very_many_folders_in_each_other_are_damage(address: Path) -> None:
    with contextlib.chdir(address / "photos.lance" / "data"):
        for _ in range(1_500):
            Path("a").mkdir()
            os.chdir("a")
    with pytest.raises(DamagedIndexError, match="more folders in each other"):
        open_index(address)
    subprocess.run(["rm", "-rf", str(address)], check=True)  # too deep for shutil


@pytest.mark.parametrize("number", [MAX_COUNT + 1, 2**63 - 1, -1])
def test_an_id_that_no_writer_gives_is_damage(address: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_index(address, write=True) as index:
        changed = index.columns().ids[-1]
    monkeypatch.setattr(Store, "record_checksums", lambda *_: None)
    store = Store(str(address), check=False)
    store.photos.update(where=f"id = {changed}", values={"id": number})
    record_again(address)
    remove_reader_copies(str(address))
    with pytest.raises(DamagedIndexError, match=f"a photo has the id {number}"), open_index(address) as index:
        index.columns()


# --- trust -----------------------------------------------------------------------------------------------------------


def test_files_of_two_indexes_that_were_unpacked_at_once_differ(
    address: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a file system may tick only every few milliseconds."""
    other = shutil.copytree(address, tmp_path / "other")

    class Stopped:
        """What the system says about a file, as if all had been written in one tick."""

        def __init__(self, of: os.stat_result) -> None:
            self.of = of

        def __getattr__(self, name: str) -> object:
            return 0 if name in ("st_mtime_ns", "st_ctime_ns") else getattr(self.of, name)

    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **options: Stopped(real(path, **options)))
    assert CheckedFiles(str(address)).tables_key() != CheckedFiles(str(other)).tables_key()
    assert CheckedFiles(str(address)).tables_key() == CheckedFiles(str(address)).tables_key()


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_lock_that_is_another_name_of_a_file_is_not_written(address: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (address / ".writer.lock").unlink(missing_ok=True)
    os.link(mine, address / ".writer.lock")
    with open_index(address, write=True):  # as after `cp -al`, which makes such a snapshot
        with pytest.raises(IndexInUseError):
            open_index(address, write=True)
        assert mine.read_text() == "mine"


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_a_lock_that_is_a_pipe_is_damage(address: Path) -> None:
    (address / ".writer.lock").unlink(missing_ok=True)
    os.mkfifo(address / ".writer.lock")
    with within(20), pytest.raises(DamagedIndexError, match=r"\.writer\.lock"):
        open_index(address, write=True)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
@pytest.mark.parametrize("exists", [True, False])
def test_nothing_is_written_through_a_link_with_the_name_of_a_temporary_file(tmp_path: Path, exists: bool) -> None:
    mine = tmp_path / "mine.txt"
    if exists:
        mine.write_text("mine")
    (tmp_path / f".checksums.json.{os.getpid()}.part").symlink_to(mine)
    write_text(tmp_path / "checksums.json", "new")
    assert (tmp_path / "checksums.json").read_text() == "new" and not (tmp_path / "checksums.json").is_symlink()
    assert mine.read_text() == "mine" if exists else not mine.exists()


def test_bytes_of_a_length() -> None:
    """The samples of manifests are right: a field of more than 127 bytes, and the position of the message."""
    assert field(1, bytes(300))[:3] == b"\x0a\xac\x02"
    raw = struct.pack("<I", 2) + b"\x18\x01" + struct.pack("<QHH4s", 0, 0, 2, b"LANC")
    assert with_message(raw, lambda message: message * 2)[:8] == struct.pack("<I", 4) + b"\x18\x01" * 2
