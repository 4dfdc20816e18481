"""Damaged files of an index: never a crash, never a wrong answer, one line that says what to do."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosplace.cli import main
from cosplace.errors import (
    CosPlaceError,
    DamagedIndexError,
    IndexInUseError,
    MissingIndexError,
    PhotoIndexError,
    StorageError,
)
from cosplace.index import file_checksums, search_index
from cosplace.index.checksums import descriptor_checks, numbers_checks, path_check
from cosplace.index.file_checksums import read_checksums, record_checksums
from cosplace.index.lance import OutdatedError, translated_errors
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.reader_copy import remove_reader_copies
from cosplace.index.search_index import find_nearest
from cosplace.index.store import Store
from cosplace.index.verification import repair_index, verify_index
from tests.index.index_samples import SPEC, D, some_photos, unit_rows, write_index

QUERIES = unit_rows(20, 2)
NUM_RANDOM = 50  # damages of the slow test


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 290 photos, all of which are compared."""
    address = tmp_path_factory.mktemp("intact") / "index"
    write_index(address).close()
    return address


@pytest.fixture(scope="module")
def intact_approximate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an approximate search index."""
    address = tmp_path_factory.mktemp("intact") / "index"
    write_index(address, exact_rows=100).close()
    return address


def flip(path: Path, place: int, bit: int = 4) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= bit
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def data_file(address: Path) -> Path:
    return max((address / "photos.lance" / "data").iterdir(), key=lambda path: path.stat().st_size)


def newest(address: Path, table: str) -> Path:
    return min((address / f"{table}.lance" / "_versions").glob("*.manifest"))  # Lance counts down


def look(address: Path) -> tuple:
    """Everything that a search tells, and a thumbnail."""
    with open_index(address) as index:
        found = index.search(QUERIES, 3)
        texts = index.photo(int(found.ids[0, 0])).source, index.thumbnail(int(found.ids[0, 0]))
        return found.ids.tolist(), found.latitudes.tolist(), found.headings.tolist(), found.names, texts


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a data file is shorter": lambda address: cut(data_file(address)),
    "a bit of the footer of a data file": lambda address: flip(data_file(address), -13, 128),  # asks Lance for 34 GB
    "a bit of the columns of a data file": lambda address: flip(data_file(address), -400),
    "a data file is gone": lambda address: data_file(address).unlink(),
    "a bit of the newest version": lambda address: flip(newest(address, "photos"), 40),
    "the newest version is gone": lambda address: newest(address, "photos").unlink(),
    "the newest version of the records is gone": lambda address: newest(address, "records").unlink(),
    "a bit of the list of removed photos": lambda address: flip(
        next((address / "photos.lance/_deletions").iterdir()), 9
    ),
    "a list of removed photos is gone": lambda address: next((address / "photos.lance/_deletions").iterdir()).unlink(),
    "a bit of a record": lambda address: flip(next((address / "records.lance" / "data").iterdir()), 30),
    "records are gone": lambda address: [path.unlink() for path in (address / "records.lance" / "data").iterdir()],
    "the table of photos is gone": lambda address: shutil.rmtree(address / "photos.lance"),
    "a bit of the checksums": lambda address: flip(address / "checksums.json", 200),
    "other bytes instead of checksums": lambda address: (address / "checksums.json").write_bytes(b"\xff[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_one_line(intact: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    damage(address)
    with pytest.raises((DamagedIndexError, MissingIndexError)) as caught:
        look(address)
    assert "\n" not in str(caught.value) and "cosplace index" in str(caught.value)


@pytest.mark.parametrize("column", ["descriptor", "latitude", "path", "thumbnail"])
def test_changed_bytes_of_a_photo_are_noticed_when_it_is_read(intact: Path, tmp_path: Path, column: str) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    remove_reader_copies(str(address))  # otherwise the tables are not read
    looked_for = {
        "descriptor": unit_rows(300, 1)[250].tobytes(), "latitude": np.float64(10.25).tobytes(),
        "path": b"250.jpg", "thumbnail": b"jpeg-250",
    }[column]  # fmt: skip
    changed = [path for path in (address / "photos.lance" / "data").iterdir() if looked_for in path.read_bytes()]
    for path in changed:
        flip(path, path.read_bytes().index(looked_for) + len(looked_for) - 2)
    assert changed
    with open_index(address) as index, pytest.raises(DamagedIndexError, match="index verify"):
        found = index.search(unit_rows(300, 1)[250:251], 1)
        assert found.ids[0, 0] == 250
        index.thumbnail(250)


@pytest.mark.slow
@pytest.mark.parametrize("number", [250, 299])
def test_a_changed_descriptor_of_an_approximate_search_is_noticed(tmp_path: Path, number: int) -> None:
    """Also of a photo that the search index does not cover yet.  Lance would rank it last, as if it were right."""
    address, rows = tmp_path / "index", unit_rows(310, 1)
    with write_index(address, exact_rows=100) as index:
        index.add(some_photos(range(300, 310)), rows[300:])
        row = index.descriptors([number if number == 250 else 305])[0]
        index.move([299], some_photos(range(400, 401)))
    for path in (address / "photos.lance" / "data").iterdir():
        if (at := path.read_bytes().find(row.tobytes())) >= 0:
            flip(path, at + 7, bit=0x40)  # of an exponent
    with open_index(address) as index, pytest.raises(DamagedIndexError, match="index verify"):
        index.search(row[None], 3)


def test_a_photo_that_is_stored_twice_is_damage(intact: Path, tmp_path: Path) -> None:
    """All checksums are right."""
    address = shutil.copytree(intact, tmp_path / "index")
    with open_index(address, write=True) as index:
        photos = index.store.photos
        photos.add(photos.search().where("id = 30").select(photos.schema.names).to_arrow())
        index.store.record_checksums()
    with pytest.raises(DamagedIndexError, match="an id occurs twice"):
        look(address)
    assert "an id occurs twice" in verify_index(address).problems


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [lambda path: flip(path, 100), pytest.param(cut, marks=pytest.mark.long), Path.unlink]
)
def test_a_damaged_search_index_is_not_used(
    intact_approximate: Path, tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    address = shutil.copytree(intact_approximate, tmp_path / "index")
    for path in (address / "photos.lance" / "_indices").rglob("*.idx"):
        damage(path)
    with open_index(address) as reader:
        exact = reader.search(QUERIES, 3, exact=True)
        assert np.array_equal(reader.search(QUERIES, 3).ids, exact.ids)
    assert "is damaged and not used" in caplog.text
    with open_index(address, write=True) as writer:  # builds it again
        assert writer.update_search() and writer.info()["search"]["kind"] == "approximate"
    assert not verify_index(address).problems


def test_verify_names_what_is_damaged_and_repairs_it(
    intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    assert main(["index", "verify", str(address)]) == 0
    assert "290 photos compared" in capsys.readouterr().out
    thumbnail = b"jpeg-77"
    (path,) = [path for path in (address / "photos.lance/data").iterdir() if thumbnail in path.read_bytes()]
    flip(path, path.read_bytes().index(thumbnail))
    assert main(["index", "verify", str(address)]) == 2
    told = capsys.readouterr()
    assert "thumbnail, source or key of photo 77 has changed" in told.out and path.name in told.out
    assert "--repair" in told.err and told.err.count("\n") == 1
    assert main(["index", "verify", str(address), "--repair"]) == 0
    assert "1 photo removed" in capsys.readouterr().out
    assert main(["index", "verify", str(address), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_photos"] == 289
    with open_index(address) as index:
        assert index.columns().row_of(77) is None


def test_verify_says_nothing_of_an_intact_search_index(
    intact_approximate: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        assert main(["index", "verify", str(intact_approximate)]) == 0
    told = capsys.readouterr()
    assert "damaged" not in told.out + told.err + caplog.text


@pytest.mark.parametrize("text", [b"path", b"accuracy_m", b"fixed_size_list:float"])
@pytest.mark.parametrize("arguments", [[], ["--repair"]])
def test_a_flipped_bit_of_the_newest_version_is_one_line(
    intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture, text: bytes, arguments: list[str]
) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    path = newest(address, "photos")
    flip(path, path.read_bytes().index(text) + 2)
    assert main(["index", "verify", str(address), *arguments]) == 2
    told = capsys.readouterr()
    assert f"{path.name} has changed" in told.out and "cannot be" in told.out
    assert told.err.count("error") == 1 and "Traceback" not in told.err


def test_a_damaged_footer_is_one_line(intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    path = data_file(address)
    flip(path, -13, 128)
    for arguments in (["verify"], ["verify", "--repair"], ["info"], ["compact"]):
        assert main(["index", arguments[0], str(address), *arguments[1:]]) == 2
        told = capsys.readouterr()
        assert f"{path.name} has changed" in told.out + told.err and told.err.count("\n") == 1


@pytest.mark.parametrize("column", [b"path", b"descriptor", b"thumbnail"])
def test_an_index_with_other_columns_and_right_checksums_is_damaged(
    intact: Path, tmp_path: Path, column: bytes, capsys: pytest.CaptureFixture
) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    versions = read_checksums(str(address)).versions
    remove_reader_copies(str(address))
    path = newest(address, "photos")
    name = bytes([len(column)]) + column
    path.write_bytes(path.read_bytes().replace(name, name[:-1] + b"x"))
    record_checksums(str(address), versions, None)
    with pytest.raises(DamagedIndexError, match="its photos have no column " + column.decode()):
        look(address)
    assert main(["index", "verify", str(address)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", ["checksums.json", "data", "manifest"])
def test_a_file_without_permission_is_no_damage(intact: Path, tmp_path: Path, kind: str, monkeypatch) -> None:
    """By a file system that refuses, as the administrator can read everything."""
    address = shutil.copytree(intact, tmp_path / "index")
    files = {"data": data_file(address), "manifest": newest(address, "photos")}
    refused = files.get(kind, address / kind)

    def refuse(function: Callable[..., Any]) -> Callable[..., Any]:
        def opened(self: Path, *arguments: Any, **options: Any) -> Any:
            if self == refused:
                raise PermissionError(13, "Permission denied", str(self))
            return function(self, *arguments, **options)

        return opened

    monkeypatch.setattr(Path, "open", refuse(Path.open))
    monkeypatch.setattr(Path, "read_bytes", refuse(Path.read_bytes))
    with pytest.raises(PhotoIndexError, match=f"No permission to read .*{refused.name}") as caught:
        look(address)
    assert not isinstance(caught.value, DamagedIndexError)


def test_ends_of_data_files_are_recorded_from_an_index_without_them(intact: Path, tmp_path: Path) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    record = json.loads((address / "checksums.json").read_text())
    ends = record["content"].pop("ends")
    assert ends.keys() == {f"photos.lance/data/{path.name}" for path in (address / "photos.lance/data").iterdir()}
    record["checksum"] = file_checksums.checksum_of(record["content"])
    (address / "checksums.json").write_text(json.dumps(record))
    with open_index(address, write=True) as index:
        index.add(some_photos(range(900, 901)), unit_rows(1, 2))
    recorded = json.loads((address / "checksums.json").read_text())["content"]["ends"]
    assert ends.items() <= recorded.items() and len(recorded) == len(ends) + 1


def test_a_reader_does_without_a_search_index_that_is_gone(intact_approximate: Path, tmp_path: Path) -> None:
    address = shutil.copytree(intact_approximate, tmp_path / "index")
    with open_index(address) as index:
        before = index.search(QUERIES, 3).ids.tolist()
        shutil.rmtree(address / "photos.lance" / "_indices")
        index.refresh()
        found = index.search(QUERIES, 3).ids
        assert len(found) == len(before)


def test_what_cannot_be_repaired_is_refused(intact: Path, tmp_path: Path) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    flip(newest(address, "photos"), 40)
    found = verify_index(address)
    assert found.problems and not found.can_repair
    with pytest.raises(DamagedIndexError, match="build it again"):
        repair_index(address, found)


def test_lost_checksums_of_files_are_recorded_again(intact: Path, tmp_path: Path) -> None:
    address = shutil.copytree(intact, tmp_path / "index")
    (address / "checksums.json").unlink()
    assert look(address) == look(intact)
    found = verify_index(address)
    assert "checksums.json is missing" in found.problems[0] and found.num_files == 0
    assert found.can_repair and not found.damaged_ids
    repair_index(address, found)
    assert not verify_index(address).problems and verify_index(address).num_files > 0


@pytest.mark.slow
def test_a_reader_does_not_trust_a_search_index_without_checksums(
    intact_approximate: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = shutil.copytree(intact_approximate, tmp_path / "index")
    (address / "checksums.json").unlink()
    with open_index(address) as reader:
        found = reader.search(QUERIES, 3).ids
        assert np.array_equal(found, reader.search(QUERIES, 3, exact=True).ids)
    assert "is damaged and not used" in caplog.text


def record_again(address: Path) -> None:
    """Write checksums that are right for changed files."""
    with open_index(address) as index:
        versions = index._store.versions()
    record_checksums(str(address), versions, None)


def zero_the_middle(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:16] + bytes(len(raw) - 32) + raw[-16:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        zero_the_middle,
        pytest.param(cut, marks=pytest.mark.long),
        pytest.param(lambda path: path.write_bytes(b""), marks=pytest.mark.long),
    ],
)
def test_a_search_index_that_lance_cannot_read_is_not_used_even_if_its_checksums_are_right(
    intact_approximate: Path, tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    address = shutil.copytree(intact_approximate, tmp_path / "index")
    for path in (address / "photos.lance" / "_indices").rglob("*.idx"):
        damage(path)
    record_again(address)
    with open_index(address) as reader:
        assert np.array_equal(reader.search(QUERIES, 3).ids, reader.search(QUERIES, 3, exact=True).ids)
    assert "is damaged and not used" in caplog.text
    found = verify_index(address)
    assert found.can_repair and found.problems == (
        "the search index cannot be searched, although its checksums are right",
    )
    with open_index(address, write=True) as writer:
        writer.compact()
    caplog.clear()
    with open_index(address) as reader:
        assert reader.info()["search"]["kind"] == "approximate"
    assert "damaged" not in caplog.text and not verify_index(address).problems


@pytest.mark.slow
def test_files_of_a_search_index_that_are_not_recorded_are_tried(intact_approximate: Path, tmp_path: Path) -> None:
    address = shutil.copytree(intact_approximate, tmp_path / "index")
    for path in (address / "photos.lance" / "_indices").rglob("*.idx"):
        zero_the_middle(path)
    content = json.loads((address / "checksums.json").read_text())["content"]
    content["files"] = {name: of for name, of in content["files"].items() if "_indices" not in name}
    checksum = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
    (address / "checksums.json").write_text(json.dumps({"checksum": checksum, "content": content}))
    with open_index(address) as reader:
        assert np.array_equal(reader.search(QUERIES, 3).ids, reader.search(QUERIES, 3, exact=True).ids)


@pytest.mark.slow
def test_a_search_index_is_tried_once_on_a_machine_that_did_not_build_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tried: list[str] = []
    run_trial = search_index.run_trial
    monkeypatch.setattr(
        search_index, "run_trial", lambda module, path, size: tried.append(path) or run_trial(module, path, size)
    )
    address = tmp_path / "index"
    with write_index(address, exact_rows=100) as index:
        index.compact()
    with open_index(address) as reader:
        assert reader.info()["search"]["kind"] == "approximate" and not tried
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path / "another machine"))
    (tmp_path / "numpy.py").write_text("raise SystemExit(1)")  # must not be imported
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with open_index(address) as reader:
            assert reader.info()["search"]["kind"] == "approximate"
    assert tried == [str(address)] and "was not built on this machine" in caplog.text


@pytest.mark.slow
def test_a_search_index_that_cannot_be_tried_is_not_used(
    intact_approximate: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    with open_index(intact_approximate) as reader:
        assert np.array_equal(reader.search(QUERIES, 3).ids, reader.search(QUERIES, 3, exact=True).ids)
    assert "not used" in caplog.text


@pytest.mark.slow
def test_a_search_index_with_photos_that_the_index_does_not_have_is_an_error(
    intact_approximate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_others(*arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        ids, descriptors = find_nearest(*arguments, **options)
        return ids + 1000, descriptors

    monkeypatch.setattr("cosplace.index.snapshot.find_nearest", find_others)
    with open_index(intact_approximate) as reader, pytest.raises(CosPlaceError, match="index verify"):
        reader.search(QUERIES, 3)


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda index: index.remove([0]), lambda index: index.write_record("note", {})])
def test_a_writer_does_not_trust_a_search_index_without_checksums(
    intact_approximate: Path, tmp_path: Path, change: Callable[[PhotoIndex], object]
) -> None:
    address = shutil.copytree(intact_approximate, tmp_path / "index")
    (address / "checksums.json").unlink()
    changed = list((address / "photos.lance" / "_indices").rglob("*.idx"))
    for path in changed:
        flip(path, 100)
    with open_index(address, write=True) as index:
        change(index)  # a commit records checksums
    assert changed and not any(path.exists() for path in changed)
    assert not verify_index(address).problems


def test_every_bit_of_a_photo_counts() -> None:
    ids, rows = np.arange(3), unit_rows(3, 0)
    checks = descriptor_checks(ids, rows)
    for bit in range(D * 32):
        changed = rows.copy()
        changed.view(np.uint32)[1, bit // 32] ^= np.uint32(1 << bit % 32)
        assert (descriptor_checks(ids, changed) != checks).tolist() == [False, True, False]
    assert (descriptor_checks(ids[::-1], rows) != checks).tolist() == [True, False, True]  # of another photo
    assert descriptor_checks(np.zeros(1, np.int64), np.zeros((1, 3), np.float16)) != 0
    numbers = {name: np.zeros(1) for name in ("latitude", "longitude", "heading", "time", "accuracy_m", "root")}
    assert numbers_checks(ids[:1], numbers) != numbers_checks(ids[:1], numbers | {"heading": np.array([np.nan])})
    assert path_check(1, "a/b.jpg") != path_check(2, "a/b.jpg") != path_check(2, "a/c.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_and_a_file_are_not_a_damaged_index(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for name in ("pipe", "file"):
        with pytest.raises(MissingIndexError, match=f"is a {name}, not a folder"):
            open_index(tmp_path / name)


def test_errors_tell_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(MissingIndexError, match="does not exist"):
        open_index(tmp_path / "nothing")
    with write_index(tmp_path / "index"), pytest.raises(IndexInUseError, match="another writer"):
        open_index(tmp_path / "index", write=True)
    reader = open_index(tmp_path / "index")
    (tmp_path / "index").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingIndexError, match="no longer exists"):
        reader.refresh()
    (tmp_path / "elsewhere").rename(tmp_path / "index")
    assert reader.refresh() is False
    assert len(reader.columns()) == 290


CHILD = """
import json, logging, random, shutil, sys
from pathlib import Path
from cosplace.errors import CosPlaceError
from tests.index.test_damage import damage_at_random, look
logging.disable(logging.CRITICAL)
intact, folder, end, exact = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
allowed = [json.loads(json.dumps(look(intact), default=str)), exact]
for seed in range(end):
    address = shutil.copytree(intact, folder / "index")
    what = damage_at_random(address, random.Random(seed))
    print(seed, what, end=" ", flush=True)
    try:
        seen = json.loads(json.dumps(look(address), default=str))
        print("right" if seen in allowed else "WRONG", flush=True)
    except CosPlaceError as error:
        print("error" if "\\n" not in str(error) else "LINES", flush=True)
    except BaseException as error:
        print("TRACEBACK", type(error).__name__, flush=True)
    shutil.rmtree(address)
"""


def damage_at_random(address: Path, rng: random.Random) -> str:
    """Damage one file in one way; returns what was done."""
    paths = sorted(path for path in address.rglob("*") if path.is_file() and "_transactions" not in path.parts)
    path, how = rng.choice(paths), rng.choice(["flip", "flip", "flip", "cut", "garbage", "zeros", "delete"])
    raw = bytearray(path.read_bytes())
    if how == "delete" or not raw:
        path.unlink()
        return f"{path.relative_to(address)}:delete"
    start = rng.randrange(len(raw))
    if how == "flip":
        raw[start] ^= 1 << rng.randrange(8)
    elif how == "cut":
        raw = raw[:start]
    elif how == "garbage":
        raw[start:] = rng.randbytes(len(raw) - start)
    else:
        raw[start : start + 512] = bytes(len(raw[start : start + 512]))
    path.write_bytes(raw)
    return f"{path.relative_to(address)}:{how}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("intact", NUM_RANDOM, marks=pytest.mark.long),
        pytest.param("intact_approximate", NUM_RANDOM, marks=pytest.mark.long),
        ("intact_approximate", 6),
    ],
)
def test_random_damage_never_crashes_and_never_answers_wrongly(
    name: str, number: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    intact = request.getfixturevalue(name)
    with open_index(intact) as index:  # what a search that compares all photos tells
        found = index.search(QUERIES, 3, exact=True)
        texts = index.photo(int(found.ids[0, 0])).source, index.thumbnail(int(found.ids[0, 0]))
    exact = found.ids.tolist(), found.latitudes.tolist(), found.headings.tolist(), found.names, texts
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(intact),
        str(tmp_path),
        str(number),
        json.dumps(exact, default=str),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=500, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]} {done.stderr[-500:]}"
    assert len(lines) == number
    assert [line for line in lines if line.split()[2] not in ("right", "error")] == []
    assert sum(line.endswith("error") for line in lines) > number // 4


def test_a_panic_of_lance_is_damage(intact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class RustPanic(BaseException):
        pass

    with PhotoIndex(Store(str(intact)), None) as index:

        def fail(*_: object) -> None:
            raise RustPanic("rust future panicked")

        monkeypatch.setattr(index._store.photos, "count_rows", fail)
        with pytest.raises(CosPlaceError, match="cannot be decoded"):
            len(index)
        monkeypatch.setattr(type(index._store.photos), "schema", property(fail))
        with pytest.raises(DamagedIndexError, match="cannot be decoded"):
            Store(str(intact))


@pytest.mark.parametrize(
    ("address", "text", "kind", "told"),
    [
        ("s3://bucket/city", "IO { source: RetryError(dns error), /x/.cargo/lance-1/src/io.rs:5:9 }",
         PhotoIndexError, "cannot be reached"),
        ("city", "LanceError(IO): No space left on device (os error 28), io.rs:5", StorageError, "temporary files"),
        ("city", "LanceError(IO): File too large (os error 27), io.rs:5", StorageError, "ulimit -f"),
        ("city", "LanceError(IO): Permission denied (os error 13)", StorageError, "No permission to read or write"),
        ("city", "Too many open files (os error 24), src/io.rs:5:9", PhotoIndexError, "Too many open files"),
        ("city", "Encountered corrupt data: 3, rust/lance/src/io.rs:5:9", DamagedIndexError, "corrupt data: 3. Run"),
        ("city", "Encountered internal error. Please file a bug report at https://x/y. bad page, rust/a.rs:5:9",
         DamagedIndexError, r"damaged: bad page\. Run"),
        ("city", "bad plan.\nThis issue was likely caused by a bug in DataFusion's code. Please help us: https://x/issues",
         DamagedIndexError, r"damaged: bad plan\. Run"),
        ("city", "Not found: tmp/city/x.lance/data/1.lance, io.rs:5", MissingIndexError, "data/1.lance is missing"),
    ],
)  # fmt: skip
def test_errors_of_lance_become_ours(address: str, text: str, kind: type, told: str) -> None:
    with pytest.raises(kind, match=told) as caught, translated_errors(address):
        raise OSError(text)
    assert type(caught.value) in (kind, OutdatedError) and ".rs" not in str(caught.value)


def test_an_index_at_an_url_has_checksums_of_photos_only(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/index"
    with create_index(address, SPEC) as index:
        index.add_root("/data")
        index.add(some_photos(range(5), "/data"), unit_rows(5, 1))
    with open_index(address) as index:
        assert index.search(unit_rows(5, 1), 1).names == tuple((f"{number}.jpg",) for number in range(5))
    found = verify_index(address)
    assert (found.num_photos, found.num_files, found.problems) == (5, 0, ())
