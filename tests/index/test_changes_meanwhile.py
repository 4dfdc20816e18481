"""What a reader does when others write, damage or replace the index between two of its steps."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cosplace.errors import DamagedIndexError, PhotoIndexError, ReplacedIndexError
from cosplace.index import checked_files
from cosplace.index.checked_files import check_kinds
from cosplace.index.lance import OutdatedError
from cosplace.index.photo_index import PhotoIndex, open_index
from tests.index.index_samples import unit_rows, write_index

QUERIES = unit_rows(20, 2)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    address = tmp_path_factory.mktemp("written") / "index"
    write_index(address).close()
    return address


@pytest.fixture
def address(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "index")


def newest_manifest(address: Path, table: str) -> Path:
    """The newest version has the smallest number in its name."""
    return min((address / f"{table}.lance" / "_versions").glob("*.manifest"))


@pytest.mark.parametrize(("num_removed", "is_answered"), [(1, True), (3, True), (4, False)])
def test_a_version_that_is_removed_several_times_is_read_again(
    address: Path, monkeypatch: pytest.MonkeyPatch, num_removed: int, is_answered: bool
) -> None:
    """As when an index is compacted: it removes the former versions after each of its steps."""
    left = [OutdatedError("_deletions/1.arrow is missing")] * num_removed
    with open_index(address) as reader:
        read = reader._descriptors

        def fail_first(ids: np.ndarray) -> np.ndarray:
            if left:
                raise left.pop()
            return read(ids)

        monkeypatch.setattr(reader, "_descriptors", fail_first)
        if is_answered:
            assert len(reader.descriptors([5, 6])) == 2
        else:
            with pytest.raises(OutdatedError):
                reader.descriptors([5, 6])


@pytest.mark.parametrize("read", [PhotoIndex.refresh, lambda index: len(open_index(index.address))])
def test_a_commit_during_a_check_is_no_damage(
    address: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[PhotoIndex], object]
) -> None:
    reader, left = open_index(address), [1]

    def check_and_write(place: str) -> None:
        check_kinds(place)
        if left.pop() if left else 0:
            with open_index(address, write=True) as writer:
                writer.write_record("note", {"text": "new"})

    monkeypatch.setattr(checked_files, "check_kinds", check_and_write)
    read(reader)
    assert not left
    reader.refresh()
    assert reader.read_record("note") == {"text": "new"}


def test_a_table_without_its_data_is_noticed(address: Path) -> None:
    reader = open_index(address)
    before = reader.search(QUERIES, 3).ids.tolist()
    data = address / "records.lance" / "data"
    data.rename(address / "elsewhere")
    with pytest.raises(PhotoIndexError):
        reader.refresh()
    assert reader.search(QUERIES, 3).ids.tolist() == before
    (address / "elsewhere").rename(data)
    assert reader.refresh() is False


def test_another_index_with_manifests_of_the_older_names_is_noticed(address: Path, tmp_path: Path) -> None:
    """Lance names version 7 "7.manifest" or, since its second scheme, 2**64 - 8."""
    reader = open_index(address)
    reader.search(QUERIES, 3)
    shutil.rmtree(address)
    write_index(address).close()
    (address / "checksums.json").unlink()
    for manifest in address.glob("*.lance/_versions/*.manifest"):
        manifest.rename(manifest.with_name(f"{2**64 - 1 - int(manifest.stem)}.manifest"))
    with pytest.raises(ReplacedIndexError):
        reader.refresh()


@pytest.mark.parametrize("table", ["photos", "records"])
def test_a_damaged_manifest_is_not_another_index(address: Path, table: str) -> None:
    reader = open_index(address)
    manifest = newest_manifest(address, table)
    raw = manifest.read_bytes()
    manifest.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
    with pytest.raises(DamagedIndexError, match=r"\.manifest has changed"):
        reader.refresh()
    manifest.write_bytes(raw)
    assert reader.refresh() is False


def test_a_photo_that_cannot_be_read_does_not_stop_searches(address: Path) -> None:
    next(address.glob("reader-*")).unlink()
    reader = open_index(address)
    before = reader.search(QUERIES, 3).ids.tolist()
    (address / "photos.lance" / "data").rename(address / "elsewhere")
    with pytest.raises(PhotoIndexError):
        reader.thumbnail(30)
    assert reader.search(QUERIES, 3).ids.tolist() == before
    (address / "elsewhere").rename(address / "photos.lance" / "data")
    assert reader.thumbnail(30)
