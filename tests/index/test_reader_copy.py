"""The copy of a small index that readers open without Lance."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save

from cosplace.cli.index_maintenance import run_verify
from cosplace.config.index import IndexVerifyConfig
from cosplace.errors import MissingIndexError
from cosplace.index import photo_index
from cosplace.index.checksums import NUMBER_COLUMNS, numbers_checks
from cosplace.index.file_checksums import record_checksums
from cosplace.index.filters import SearchFilter
from cosplace.index.photo_index import PhotoIndex, open_index
from cosplace.index.reader_copy import NUMBERS, write_reader_copy
from cosplace.index.records import Columns
from cosplace.index.store import Store
from cosplace.index.verification import repair_index, verify_index
from tests.index.index_samples import some_photos, unit_rows, write_index

QUERIES = unit_rows(20, 2)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 290 photos, closed by its writer."""
    address = tmp_path_factory.mktemp("written") / "index"
    write_index(address, root=str(address.parent)).close()
    return address


@pytest.fixture
def address(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "index")


def copies(address: Path) -> list[Path]:
    return list(address.glob("reader-*.safetensors"))


def look(index: PhotoIndex) -> tuple:
    """What a search, a filtered search, the columns and a record say."""
    found = index.search(QUERIES, 3)
    near = index.search(QUERIES, 3, where=SearchFilter(near=(10.1, 20.0, 2000.0)))
    columns = index.columns()
    arrays = (
        found.ids,
        found.similarities,
        found.latitudes,
        near.ids,
        columns.row_ids,
        columns.times,
        columns.headings,
    )
    return [one.tolist() for one in arrays], found.paths, columns.names(), index.read_record("note"), len(index)


@pytest.mark.parametrize("stored_dtype", ["float32", "float16"])
def test_readers_see_the_same_with_and_without_the_copy(tmp_path: Path, stored_dtype: str) -> None:
    address = tmp_path / "index"
    write_index(address, stored_dtype=stored_dtype).close()
    with open_index(address) as with_copy, PhotoIndex(Store(str(address)), None) as without:
        assert with_copy.store.copy is not None and without.store.copy is None
        np.testing.assert_equal(look(with_copy), look(without))
        assert "photos" not in vars(with_copy.store)  # the table was not opened
        assert with_copy.thumbnail(250) == without.thumbnail(250) != b""  # it is only in the table
        assert with_copy.info() == without.info()


@pytest.mark.parametrize("stored_dtype", ["float32", "float16"])
def test_searches_do_not_convert_the_descriptors(tmp_path: Path, stored_dtype: str) -> None:
    write_index(tmp_path / "index", stored_dtype=stored_dtype).close()
    with open_index(tmp_path / "index") as index:
        held = index._snapshot_now().held
        assert held is not None and held.dtype == np.float32 and len(held) == len(index)


def test_a_search_and_a_check_for_changes_need_no_lance(address: Path) -> None:
    code = (
        "import sys, numpy as np; from cosplace.index.photo_index import open_index\n"
        f"index = open_index({str(address)!r})\n"
        "found = index.search(np.eye(16, dtype=np.float32)[:1], 3)\n"
        "print(found.ids.shape, index.refresh(), 'lancedb' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["(1,", "3)", "False", "False"]


def test_a_copy_of_earlier_versions_is_not_read(address: Path) -> None:
    (copy,) = copies(address)
    raw, new = copy.read_bytes(), unit_rows(1, 7)
    writer = open_index(address, write=True)
    assert not copies(address)
    copy.write_bytes(raw)
    writer.add(some_photos(range(900, 901)), new)
    with open_index(address) as reader:
        assert reader.store.copy is None and reader.search(new, 1).ids[0, 0] == 300
    copy.unlink()
    writer.close()
    assert len(copies(address)) == 1
    with open_index(address) as reader:
        assert reader.store.copy is not None and reader.search(new, 1).ids[0, 0] == 300


def test_a_reader_of_the_copy_follows_a_writer(address: Path) -> None:
    with open_index(address) as reader:
        before = look(reader)
        with open_index(address, write=True) as writer:
            writer.add(some_photos(range(900, 901)), unit_rows(1, 7))
            writer.compact()  # the versions that the reader knows are gone
        np.testing.assert_equal(look(reader), before)
        assert reader.thumbnail(299)  # read from the newest version
        assert reader.refresh() or len(reader) == 291
        assert len(reader) == 291 and len(reader.columns()) == 291


def test_reading_creates_no_folder_while_the_index_is_moved_away(address: Path, tmp_path: Path) -> None:
    for read in (PhotoIndex.photo, PhotoIndex.thumbnail, lambda index, _: index.refresh()):
        with open_index(address) as reader:
            address.rename(tmp_path / "away")
            with pytest.raises(MissingIndexError):
                read(reader, 0)
            assert not address.exists()
            (tmp_path / "away").rename(address)
            assert reader.photo(0).id == 0


@pytest.mark.parametrize("place", [4, 100, -100])
def test_a_damaged_copy_is_not_used(address: Path, place: int, caplog: pytest.LogCaptureFixture) -> None:
    with open_index(address) as reader:
        expected = look(reader)
    (copy,) = copies(address)
    raw = bytearray(copy.read_bytes())
    raw[place] ^= 4
    copy.write_bytes(raw)
    with open_index(address) as reader:
        np.testing.assert_equal(look(reader), expected)
        assert reader.store.copy is None
    assert f"{copy.name} is damaged and not used" in caplog.text
    found = verify_index(address)
    assert found.problems == (f"{copy.name} has changed",) and found.can_repair
    repair_index(address, found)
    assert not verify_index(address).problems
    with open_index(address) as reader:
        np.testing.assert_equal(look(reader), expected)
        assert reader.store.copy is not None


def edit_copy(address: Path, name: str, edit: Callable[[np.ndarray], np.ndarray], records: str = "") -> Path:
    """Change one array of the copy, or all records, and record the checksum of the changed file."""
    (copy,) = copies(address)
    with safe_open(copy, "np") as file:
        metadata = file.metadata() | ({"records": records} if records else {})
    tensors = load(copy.read_bytes())
    if name:
        tensors[name] = np.ascontiguousarray(edit(tensors[name].copy()))
    copy.write_bytes(save(tensors, metadata))
    _, photos, records_version = copy.stem.split("-")
    record_checksums(str(address), {"photos": int(photos), "records": int(records_version)}, None)
    return copy


def put(place: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    """An edit that sets some values of an array."""

    def edit(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return edit


EDITS = {
    "offsets beyond the end": ("path_offsets", lambda values: values + 10**12),
    "one offset beyond the end": ("path_offsets", put(5, 10**9)),
    "last offset beyond the end": ("path_offsets", put(-1, 10**9)),
    "negative offset": ("path_offsets", put(5, -(10**9))),
    "first offset after the start": ("path_offsets", put(0, 1)),
    "last offset before the end": ("path_offsets", lambda values: np.append(values[:-1], values[-1] - 1)),
    "one offset for all": ("path_offsets", lambda values: values[:1]),
    "offsets of 32 bits": ("path_offsets", lambda values: values.astype(np.int32)),
    "not UTF-8": ("path_characters", put(3, 0xFF)),
    "a zero in a path": ("path_characters", put(3, 0)),
    "few characters": ("path_characters", lambda values: values[:9]),
    "one id for all": ("ids", lambda values: values * 0),
    "descending ids": ("ids", lambda values: values[::-1]),
    "negative id": ("ids", put(0, -5)),
    "other ids": ("ids", lambda values: values + 1),
    "few ids": ("ids", lambda values: values[:5]),
    "no ids": ("ids", lambda values: values[:0]),
    "ids as a number": ("ids", lambda values: values[0]),
    "few descriptors": ("descriptors", lambda values: values[:100]),
    "another dimension": ("descriptors", lambda values: values[:, :8]),
    "descriptors in one row": ("descriptors", lambda values: values.reshape(-1)),
    "descriptors of float64": ("descriptors", lambda values: values.astype(np.float64)),
    "a nan in a descriptor": ("descriptors", put((7, 3), np.nan)),
    "large descriptors": ("descriptors", lambda values: values * np.float32(1e30)),
    "latitudes unknown": ("latitudes", put(slice(None), np.nan)),
    "latitude of 91 degrees": ("latitudes", put(4, 91)),
    "another latitude": ("latitudes", put(4, 11)),
    "infinite longitude": ("longitudes", put(4, np.inf)),
    "few latitudes": ("latitudes", lambda values: values[:3]),
    "latitudes as whole numbers": ("latitudes", lambda values: values.astype(np.int64)),
    "infinite heading": ("headings", put(4, np.inf)),
    "time beyond the year 9999": ("times", put(4, 1e300)),
    "negative position error": ("accuracies_m", put(4, -1)),
    "unknown root": ("roots", lambda values: values + 10**6),
    "few row ids": ("row_ids", lambda values: values[:3]),
    "few checksums of paths": ("path_checks", lambda values: values[:3]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_copy_that_no_writer_wrote_is_not_used(address: Path, edit: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its checksum is right: who can write the copy can also write checksums.json."""
    with open_index(address) as reader:
        expected = look(reader)
    copy = edit_copy(address, *EDITS[edit])
    with open_index(address) as reader:
        np.testing.assert_equal(look(reader), expected)
        assert reader.store.copy is None
    assert f"{copy.name} is damaged and not used" in caplog.text


IMPOSSIBLE = (
    "one id for all", "descending ids", "negative id", "latitudes unknown", "latitude of 91 degrees",
    "infinite longitude", "infinite heading", "time beyond the year 9999", "negative position error",
)  # fmt: skip


@pytest.mark.parametrize("edit", IMPOSSIBLE)
def test_impossible_numbers_of_a_copy_are_not_used_whatever_their_checksums(address: Path, edit: str) -> None:
    """Who can write the copy can also write the checksums in it."""
    with open_index(address) as reader:
        expected = look(reader)
    copy = edit_copy(address, *EDITS[edit])
    tensors = load(copy.read_bytes())
    numbers = {column: tensors[name] for column, name in zip(NUMBER_COLUMNS, NUMBERS, strict=True)}
    edit_copy(address, "numbers_checks", lambda _: numbers_checks(tensors["ids"], numbers))
    with open_index(address) as reader:
        np.testing.assert_equal(look(reader), expected)
        assert reader.store.copy is None


DEEP = "[" * 100_000


@pytest.mark.parametrize("records", [DEEP, "[]", "{}", '{"spec": 1}', '{"spec": "[]"}', f'{{"spec": "{DEEP}"}}'])
def test_a_copy_with_other_records_is_not_used(address: Path, records: str, caplog: pytest.LogCaptureFixture) -> None:
    with open_index(address) as reader:
        expected = look(reader)
    copy = edit_copy(address, "", lambda values: values, records)
    with open_index(address) as reader:
        np.testing.assert_equal(look(reader), expected)
        assert reader.store.copy is None
    assert f"{copy.name} is damaged and not used" in caplog.text


def edit_photos(address: Path, edit: Callable[[Columns], Columns], rows: slice = slice(None)) -> Path:
    """Write a copy of other photos, all of whose checksums are right."""
    with PhotoIndex(Store(str(address)), None) as index:
        found = index.store.make_copy()
    changed = dataclasses.replace(found, columns=edit(found.columns), descriptors=found.descriptors[rows])
    write_reader_copy(str(address), changed)
    return edit_copy(address, "", lambda values: values)


def test_a_copy_with_other_photos_is_found(address: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_index(address) as reader:
        expected = look(reader)
    copy = edit_photos(address, lambda columns: columns.take(np.arange(200)), slice(200))
    with open_index(address) as reader:
        assert len(reader) == 200
        assert reader.thumbnail(5)  # opens the table
        assert reader.store.copy is None
        np.testing.assert_equal(look(reader), expected)
    with open_index(address) as reader:
        assert reader.info()["count"] == 290
    assert f"{copy.name} is damaged and not used" in caplog.text


@pytest.mark.parametrize("name", ["latitudes", "ids", "row_ids"])
def test_verification_compares_the_copy_with_the_tables(address: Path, name: str) -> None:
    def edit(columns: Columns) -> Columns:
        unknown = np.full(len(columns), np.nan)
        changes = {"latitudes": unknown, "longitudes": unknown} if name == "latitudes" else {}
        return dataclasses.replace(columns, **changes or {name: getattr(columns, name) + 1}, path_checks=None)

    copy = edit_photos(address, edit)
    with open_index(address) as reader:
        assert reader.store.copy is not None
    found = verify_index(address)
    assert found.problems == (f"{copy.name} differs from the photos or records of the index",) and found.can_repair
    repair_index(address, found)
    assert not verify_index(address).problems
    with open_index(address) as reader:
        assert reader.columns().latitudes[1] == pytest.approx(10.001)


def test_verification_finds_an_edited_copy(address: Path) -> None:
    copy = edit_copy(address, *EDITS["one offset beyond the end"])
    assert verify_index(address).problems == (f"{copy.name} differs from the photos or records of the index",)


@pytest.mark.parametrize("edit", [put((7, 3), np.nan), put((7, 3), 3), lambda rows: rows * np.float16(100)])
def test_half_descriptors_of_a_copy_have_length_1(
    edit: Callable[[np.ndarray], np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_index(tmp_path / "index", stored_dtype="float16").close()
    edit_copy(tmp_path / "index", "descriptors", edit)
    with open_index(tmp_path / "index") as reader:
        assert reader.store.copy is None and np.isfinite(reader.search(QUERIES, 3).similarities).all()
    assert "is damaged and not used" in caplog.text


def test_a_missing_copy_is_no_damage(address: Path) -> None:
    (copy,) = copies(address)
    copy.unlink()
    with open_index(address) as reader:
        assert reader.store.copy is None and len(reader) == 290
    found = verify_index(address)  # checksums.json lists it, as after a kill of a writer that has removed it
    assert not found.problems and len(found.notes) == 1 and found.notes[0].startswith(f"{copy.name} is missing")
    open_index(address, write=True).close()
    assert copies(address) == [copy] and not verify_index(address).problems


def test_the_command_makes_a_missing_copy_again(address: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy,) = copies(address)
    copy.unlink()
    run_verify(IndexVerifyConfig(index=str(address)))
    assert f"{copy.name} is missing" in capsys.readouterr().out and not copies(address)
    run_verify(IndexVerifyConfig(index=str(address), repair=True))
    assert copies(address) == [copy]
    capsys.readouterr()
    run_verify(IndexVerifyConfig(index=str(address)))
    assert "missing" not in capsys.readouterr().out


def test_a_large_index_has_no_copy(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_index, "MAX_COPY_BYTES", 64 * 289)  # 290 photos have 64 bytes each
    with open_index(address, write=True) as writer:
        writer.write_record("note", {"text": "other"})
    assert not copies(address)
