"""Tables of an index that no process should read, although their checksums are right, and how that is found out."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from cosplace.cli import main
from cosplace.config.index import IndexSettings
from cosplace.errors import DamagedIndexError, PhotoIndexError
from cosplace.index import checked_files, table_trial, tables, trials
from cosplace.index.checked_files import CheckedFiles, check_kinds
from cosplace.index.manifests import ManifestError, check_manifest, fields_of
from cosplace.index.photo_index import create_index, open_index
from cosplace.index.reader_copy import find_reader_copy, remove_reader_copies
from cosplace.index.record_checks import parse_record
from cosplace.index.store import Store
from cosplace.index.trials import FOREIGN, end_trials, is_trusted, is_written_here, run_trial, trust
from cosplace.index.verification import repair_index, verify_index
from cosplace.index.view_table import EncodedBatch, append_views, read_views, remove_views
from cosplace.index.writer_lock import WriterLock
from tests.index.index_samples import SPEC, record_again, some_photos, unit_rows, write_index
from tests.unusual_input.samples import within


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that are run in a process of their own."""
    found: list[str] = []
    monkeypatch.setattr(
        tables, "run_trial", lambda module, *arguments: found.append(module) or run_trial(module, *arguments)
    )
    return found


def one_file(address: Path, pattern: str) -> Path:
    return sorted(address.glob(pattern))[0]


def ask_for_all_memory(address: Path) -> None:
    """Let the footer of a data file name a table of 2³¹ buffers."""
    path = one_file(address, "photos.lance/data/*")
    raw = bytearray(path.read_bytes())
    raw[-13] ^= 0x80
    path.write_bytes(raw)


def ask_for_exabytes(address: Path) -> None:
    """Let the list of removed photos have 2⁶¹ bytes."""
    path = one_file(address, "photos.lance/_deletions/*.arrow")
    raw = path.read_bytes()
    place = raw.rindex(b"ARROW1") - 4
    size = struct.unpack("<i", raw[place : place + 4])[0]
    footer = bytearray(raw[place - size : place])
    for at in range(0, len(footer) - 8, 4):  # lengths of blocks and of the schema's parts
        if struct.unpack("<q", footer[at : at + 8])[0] in range(64, len(raw)):
            footer[at : at + 8] = struct.pack("<q", 1 << 61)
    path.write_bytes(raw[: place - size] + footer + raw[place:])


@pytest.mark.slow
@pytest.mark.parametrize("change", [ask_for_all_memory, ask_for_exabytes])
def test_tables_that_end_a_process_are_refused_in_one_line(
    address: Path, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    change(address)
    record_again(address)
    with pytest.raises(DamagedIndexError, match="its tables cannot be read, a process that tried"):
        open_index(address)
    assert main(["index", "verify", str(address)]) == 2
    output = capsys.readouterr()
    assert "its tables cannot be read, a process that tried" in output.out + output.err
    assert not verify_index(address).can_repair
    with pytest.raises(DamagedIndexError, match="cannot be read"):
        open_index(address, write=True)


@pytest.mark.slow
def test_verify_survives_a_changed_file_that_ends_a_process(address: Path) -> None:
    ask_for_exabytes(address)  # the checksums are those of before
    found = verify_index(address)
    assert any("has changed" in problem for problem in found.problems) and not found.can_repair


@pytest.mark.slow
def test_tables_are_tried_once_on_a_machine_that_did_not_write_them(
    address: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path / "another machine"))
    for _ in range(2):
        with open_index(address) as index:
            assert index.info()["count"] == 290
    assert len(tried) == 1 and "not those that this machine wrote" in caplog.text
    with open_index(address, write=True) as index:
        index.add(some_photos(range(400, 403)), unit_rows(3, 5))
    with open_index(address) as index:
        assert index.info()["count"] == 293
    address.rename(tmp_path / "moved")
    with open_index(tmp_path / "moved") as index:
        remove_reader_copies(index.address)
    with open_index(tmp_path / "moved") as index:
        assert index.info()["count"] == 293
    assert len(tried) == 1
    assert len(list((tmp_path / "another machine" / "index_tables").iterdir())) == 1  # not one for each commit


def test_tables_that_this_machine_writes_are_not_tried(tmp_path: Path, tried: list[str]) -> None:
    with create_index(tmp_path / "index", SPEC) as index:
        index.add(some_photos(range(3)), unit_rows(3, 1))
        reader = open_index(tmp_path / "index")
        index.add(some_photos(range(3, 6)), unit_rows(3, 2))
        index.remove([0])
        index.compact()
        reader.refresh()
        assert reader.info()["count"] == 5
    Store(str(tmp_path / "index")).scan(["thumbnail"])
    assert not tried


@pytest.mark.slow
@pytest.mark.parametrize("has_checksums", [True, False])
def test_tables_are_tried_again_when_a_file_changes(address: Path, tried: list[str], has_checksums: bool) -> None:
    if not has_checksums:
        (address / "checksums.json").unlink()
    for _ in range(2):
        open_index(address).close()
    assert len(tried) == 1
    path = one_file(address, "photos.lance/data/*")
    raw, status = path.read_bytes(), path.stat()
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    open_index(address).close()
    assert len(tried) == 2


def test_files_of_a_writer_at_work_do_not_count(address: Path) -> None:
    before = CheckedFiles(str(address)).tables_key()
    (address / "photos.lance" / "data" / "0123456789.lance").write_bytes(b"half")
    assert CheckedFiles(str(address)).tables_key() == before
    (address / "photos.lance" / "_deletions" / "0-9-1.arrow").write_bytes(b"half")
    assert CheckedFiles(str(address)).tables_key() != before


@pytest.mark.slow
def test_damage_that_ends_no_process_is_reported_as_before(address: Path) -> None:
    path = one_file(address, "photos.lance/data/*")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 0xFF
    path.write_bytes(raw)
    record_again(address)
    found = verify_index(address)
    assert found.problems and "a process" not in found.problems[0]


@pytest.mark.slow
@pytest.mark.parametrize(("table", "column"), [("records", "key"), ("photos", "id")])
def test_a_search_index_that_no_writer_makes_is_refused(address: Path, table: str, column: str) -> None:
    lancedb.connect(address).open_table(table).create_index(column, config=lancedb.index.Bitmap())
    record_again(address)
    with pytest.raises(DamagedIndexError, match=f"{table}.lance has a search index that no writer makes"):
        open_index(address)


@pytest.mark.slow
def test_a_search_index_that_nothing_describes_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "index"
    with write_index(address, exact_rows=100) as index:
        index._store.records.delete("key = 'search'")
        index._store.record_checksums()
    for path in address.glob("photos.lance/_indices/*/*.idx"):
        path.write_bytes(path.read_bytes()[:16] + bytes(path.stat().st_size - 32) + path.read_bytes()[-16:])
    record_again(address)
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path / "another machine"))
    assert verify_index(address).problems
    with open_index(address, write=True) as index:
        index.compact()
    assert not verify_index(address).problems


@pytest.mark.slow
def test_a_search_index_whose_centers_are_not_numbers_is_not_used(tmp_path: Path) -> None:
    centers = np.eye(16, 16, dtype=np.float32)
    rows = np.repeat(centers, 20, 0) + 0.05 * unit_rows(320, 1)
    address = tmp_path / "index"
    with create_index(address, SPEC, IndexSettings(exact_rows=100)) as index:
        index.add(some_photos(range(320)), rows / np.linalg.norm(rows, axis=1, keepdims=True))
        index.update_search()
        assert index.info()["search"]["partitions_searched"] < 8
    path = one_file(address, "photos.lance/_indices/*/index.idx")
    raw = path.read_bytes()
    stored = np.frombuffer(raw, "<f4", len(raw) // 4)
    near_centers = np.abs(stored - 1) < 0.1  # the large value of each center
    assert near_centers.sum() == 16
    stored = stored.copy()
    stored[np.flatnonzero(near_centers)[::2]] = np.nan
    path.write_bytes(stored.tobytes() + raw[stored.nbytes :])
    record_again(address)
    assert verify_index(address).problems == ("the search index cannot be searched, although its checksums are right",)
    with open_index(address) as index:
        assert (index.search(rows, 1).ids[:, 0] == np.arange(320)).all()


def make_hole(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes")
@pytest.mark.parametrize("pattern", ["photos.lance/data/*", "records.lance/data/*", "photos.lance/_versions/*"])
def test_large_files_with_holes_are_refused_before_they_are_read(address: Path, pattern: str) -> None:
    make_hole(one_file(address, pattern), 1 << 42)
    for _ in range(2):
        with within(20), pytest.raises(DamagedIndexError, match=r"4096\.0 GB"):
            open_index(address)
        with within(20):
            found = verify_index(address)
        assert "4096.0 GB" in found.problems[0] and not found.can_repair
        (address / "checksums.json").unlink(missing_ok=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes")
def test_too_large_checksums_are_damage(address: Path) -> None:
    make_hole(address / "checksums.json", 1 << 42)
    with within(20), pytest.raises(DamagedIndexError, match=r"checksums\.json cannot be read"):
        open_index(address)


@pytest.mark.parametrize("place", ["s3://bucket/x", "/etc", "http://127.0.0.1:9/x"])
@pytest.mark.parametrize("table", ["photos", "records"])
def test_tables_that_name_files_elsewhere_are_not_opened(
    address: Path, table: str, place: str, tried: list[str]
) -> None:
    path = one_file(address, f"{table}.lance/_versions/*")
    raw = path.read_bytes()
    start = struct.unpack("<Q", raw[-16:-8])[0]
    (length,) = struct.unpack("<I", raw[start : start + 4])
    base = b"\x08\x01\x22" + bytes([len(place)]) + place.encode()  # id 1, path
    message = raw[start + 4 : start + 4 + length] + b"\x92\x01" + bytes([len(base)]) + base  # field 18
    path.write_bytes(raw[:start] + struct.pack("<I", len(message)) + message + raw[start + 4 + length :])
    record_again(address)
    with pytest.raises(DamagedIndexError, match=f"{table}.lance names files outside of the index"):
        open_index(address)
    assert "names files outside" in verify_index(address).problems[0] and not tried


def test_a_manifest_that_cannot_be_read_is_damage(address: Path) -> None:
    path = one_file(address, "photos.lance/_versions/*")
    raw = path.read_bytes()
    check_manifest(raw)
    for damage in (raw[:-1], raw[-10:], raw[:-16] + b"\xff" * 8 + raw[-8:]):
        path.write_bytes(damage)
        record_again(address)
        with pytest.raises(DamagedIndexError, match=r"the newest version of photos\.lance cannot be read"):
            open_index(address)


@pytest.mark.parametrize("message", [b"\x08", b"\x08" + b"\xff" * 11, b"\x0a\x05ab", b"\x09abc", b"\x0b"])
def test_a_message_that_ends_too_early_is_refused(message: bytes) -> None:
    with pytest.raises(ManifestError):
        list(fields_of(message))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_process_that_tries_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', "
        "'import time; from cosplace.index.trials import watch_memory; watch_memory(0); time.sleep(600)']); "
        "print(child.pid, flush=True); import time; time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(3)
        parent.kill()
    with within(60):
        while is_alive(child):
            time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return " Z " not in Path(f"/proc/{pid}/stat").read_text() if Path("/proc").is_dir() else True


def test_too_many_versions_and_records_are_refused(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_files, "MAX_SMALL_BYTES", 3_000)
    with pytest.raises(DamagedIndexError, match="its versions and records have 1 MB, more than any index"):
        check_kinds(str(address))


def write_module(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "a_trial.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return "a_trial"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import sys; assert sys.argv[1].startswith('/')", None),
        ("raise SystemExit(7)", "a process that tried ended with 7"),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", "a process that tried was ended by signal 9"),
        ("import time; time.sleep(60)", "a process that tried took more than 1 s"),
        (
            "import time; from cosplace.index import trials as t; t.MAX_BYTES = 0; t.watch_memory(0); time.sleep(60)",
            "a process that tried took more than 2.0 GB of memory",
        ),
    ],
)
def test_what_happens_to_a_process_that_tries_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str | None
) -> None:
    monkeypatch.setattr(trials, "TRIAL_S", 1 if "took more than 1 s" in str(problem) else 60)
    assert run_trial(write_module(tmp_path, text, monkeypatch), "index") == problem


def test_a_process_that_cannot_be_started_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    assert run_trial("a_trial", "index") == "no process could be started to try (No such file or directory)"


def test_what_is_trusted_replaces_its_former_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path))
    trust("parts", "first")
    trust("parts", "second", "first")
    assert is_trusted("parts", "second") and not is_trusted("parts", "first")
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path / "parts" / "second"))  # a file, so nothing can be remembered
    trust("parts", "third")
    assert not is_trusted("parts", "third")


def test_views_of_another_machine_are_not_read(address: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(address))
    batch = EncodedBatch(rows=np.arange(2), descriptors=unit_rows(2, 3))
    append_views(store, {"key": batch}, is_first=True)
    assert list(read_views(store, ["key"], (16,))) == ["key"]
    home = shutil.copytree(Path(os.environ["COSPLACE_HOME"]), tmp_path / "another machine")
    shutil.rmtree(home / "index_views")
    monkeypatch.setenv("COSPLACE_HOME", str(home))
    assert read_views(store, ["key"], (16,)) == {}


@pytest.mark.slow
def test_a_version_with_a_wrong_number_of_photos_is_damage(address: Path) -> None:
    path = one_file(address, "photos.lance/_versions/*")
    raw = path.read_bytes()
    former, new = b" \x0a \x96\x01", b" \x64 \x96\x01"  # of 150 rows, 10 are removed, or 100
    at = raw.rindex(former)  # the transaction before it has the same bytes
    path.write_bytes(raw[:at] + new + raw[at + len(new) :])
    record_again(address)
    with open_index(address) as index, pytest.raises(DamagedIndexError, match="it has 200 photos, and has 290"):
        index.info()
    found = verify_index(address)
    assert found.problems and not found.can_repair


@pytest.mark.slow
def test_a_version_with_more_rows_than_bytes_is_refused(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_trial, "watch_memory", lambda num_bytes: None)
    monkeypatch.setattr(table_trial, "table_bytes", lambda address, **options: 289)
    assert table_trial.main(str(address)) == FOREIGN


def test_a_copy_for_readers_with_a_long_header_is_not_used(intact: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(intact, tmp_path / "index")
    (path,) = copied.glob("reader-*")
    path.write_bytes(struct.pack("<Q", 1 << 26) + b"[" * (1 << 26))
    record_again(copied)
    assert find_reader_copy(CheckedFiles(str(copied))) is None


def test_a_long_record_is_damage() -> None:
    text = '{"a": "' + "x" * (1 << 24) + '"}'
    assert parse_record("note", text) is None and parse_record("note", text.replace("x", "")) == {"a": ""}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs file locks")
def test_what_a_writer_of_this_machine_has_just_committed_is_not_tried(
    address: Path, monkeypatch: pytest.MonkeyPatch, tried: list[str]
) -> None:
    with open_index(address, write=True) as writer:
        tried.clear()
        with monkeypatch.context() as patch:
            patch.setattr(tables, "trust_tables", lambda *arguments: None)  # a reader comes before that
            writer.add(some_photos(range(400, 403)), unit_rows(3, 5))
        with open_index(address) as reader:
            assert reader.info()["count"] == 293
    assert not tried
    (address / "photos.lance" / "_deletions" / "0-9-1.arrow").write_bytes(b"changed afterwards")
    remove_reader_copies(str(address))
    open_index(address).close()
    assert tried


@pytest.mark.skipif(os.name != "posix", reason="needs file locks")
def test_the_mark_of_a_writer_ends_with_it(address: Path) -> None:
    assert not is_written_here(str(address))
    lock = WriterLock(str(address))
    assert is_written_here(str(address)) and not is_written_here(str(address.parent))
    lock.release()
    assert not is_written_here(str(address))


def test_a_process_that_tries_can_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write_module(tmp_path, "import time; time.sleep(600)", monkeypatch)
    with within(60), ThreadPoolExecutor() as executor:
        found = executor.submit(run_trial, module, "index")
        while not found.done():
            end_trials()
            time.sleep(0.05)
        assert found.result() == "a process that tried was ended by signal 9"


def test_an_index_below_a_folder_with_a_line_break_in_its_name_is_not_called_damaged(
    intact: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(intact, tmp_path / "two\nlines" / "index")
    remove_reader_copies(str(copied))
    with pytest.raises(PhotoIndexError, match=r"LanceDB cannot open .*two\\nlines.* Rename that folder"):
        open_index(copied)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
@pytest.mark.parametrize("name", ["photos.lance/data/broken", "records.lance/_indices"])
def test_links_in_tables_are_refused(address: Path, name: str) -> None:
    (address / name).symlink_to(address.parent / "elsewhere")
    with pytest.raises(DamagedIndexError, match=f"{name} is a link"):
        open_index(address)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_an_index_on_another_disk_may_be_linked_but_not_its_tables(address: Path) -> None:
    (address.parent / "link").symlink_to(address)
    assert open_index(address.parent / "link").info()["count"] == 290
    (address / "photos.lance").rename(address.parent / "photos")
    (address / "photos.lance").symlink_to(address.parent / "photos")
    with pytest.raises(DamagedIndexError, match=r"photos\.lance is a link"):
        open_index(address)


@pytest.mark.slow
def test_an_older_version_that_cannot_be_read_is_removed(tmp_path: Path) -> None:
    address = tmp_path / "index"
    write_index(address).close()
    oldest = sorted((address / "photos.lance" / "_versions").glob("*.manifest"))[-1]  # Lance counts down
    oldest.write_bytes(b"")
    with open_index(address, write=True) as index, pytest.raises(DamagedIndexError, match="index verify"):
        index.compact()
    found = verify_index(address)
    assert found.problems == (f"photos.lance/_versions/{oldest.name}, an older version, cannot be read",)
    repair_index(address, found)
    assert not verify_index(address).problems
    with open_index(address, write=True) as index:
        index.compact()


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_lock_that_is_a_link_is_not_written(address: Path) -> None:
    mine = address.parent / "mine.txt"
    mine.write_text("mine")
    (address / ".writer.lock").unlink(missing_ok=True)
    (address / ".writer.lock").symlink_to(mine)
    with pytest.raises(DamagedIndexError, match=r"\.writer\.lock is a link"):
        open_index(address, write=True)
    assert mine.read_text() == "mine"


def photo_columns(address: Path) -> pa.Table:
    return lancedb.connect(address).open_table("photos").to_arrow()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "kind", "problem"),
    [
        ("id", "string", "its column id has the type string"),
        ("path", "binary", "its column path has the type binary"),
        ("latitude", "string", "its column latitude has the type string"),
        ("path", None, "a photo has no path"),
        ("key", None, "a photo has no key"),
        ("id", None, "a photo has no id"),
    ],
)
def test_columns_of_other_types_and_missing_values_are_damage(
    address: Path, column: str, kind: str | None, problem: str
) -> None:
    table = photo_columns(address)
    place = table.schema.names.index(column)
    values = table[column].to_pylist()
    if kind is None:
        new = pa.array([None, *values[1:]], table.schema.field(column).type)
    else:
        new = pa.array([value if isinstance(value, bytes) else str(value) for value in values], pa.string()).cast(kind)
    lancedb.connect(address).create_table("photos", table.set_column(place, column, new), mode="overwrite")
    record_again(address)
    with pytest.raises(DamagedIndexError, match=problem), open_index(address) as index:
        index.search(unit_rows(1, 1), 1)
        list(index.store.scan(["id", "key"]))
    assert problem in " ".join(verify_index(address).problems)


@pytest.mark.slow
def test_a_table_with_very_many_columns_is_refused(address: Path, tried: list[str]) -> None:
    table = photo_columns(address)
    for number in range(100):
        table = table.append_column(f"more{number}", pa.array(np.zeros(len(table), np.int8)))
    lancedb.connect(address).create_table("photos", table, mode="overwrite")
    record_again(address)
    with pytest.raises(DamagedIndexError, match="has 118 columns, more than any writer makes"):
        open_index(address)
    assert not tried


@pytest.mark.slow
def test_a_search_index_that_lance_does_not_list_is_refused(address: Path) -> None:
    """Lance leaves out an index without details from its list, but uses it for conditions on its column."""
    lancedb.connect(address).open_table("records").create_index("key", config=lancedb.index.Bitmap())
    path = one_file(address, "records.lance/_versions/*")
    raw = path.read_bytes()
    assert b"\x32" in raw  # field 6 of the index, its details
    path.write_bytes(
        raw.replace(b"type.googleapis.com", b"type.elsewhere.com1").replace(b"/lance.index.pb", b"/lance.other.pb")
    )
    record_again(address)
    with pytest.raises(DamagedIndexError, match=r"records\.lance has a search index that no writer makes"):
        open_index(address)


@pytest.mark.slow
def test_an_error_while_rows_are_counted_does_not_end_a_trial(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_trial, "watch_memory", lambda num_bytes: None)
    read: list[int] = []
    table_of = lancedb.table.LanceTable
    monkeypatch.setattr(table_of, "count_rows", lambda *arguments: int("no number"))
    monkeypatch.setattr(table_of, "take_row_ids", lambda self, rows: read.append(len(rows)) or 1 / 0)
    assert table_trial.main(str(address)) == 0
    assert len(read) == 2 and read[0] >= 16


def test_a_record_without_a_text_is_damage(tmp_path: Path) -> None:
    address = tmp_path / "index"
    with write_index(address) as index:
        index._store.records.merge_insert("key").when_matched_update_all().execute(
            pa.table({"key": ["spec"], "json": pa.array([None], pa.string())})
        )
        index._store.record_checksums()
        remove_reader_copies(str(address))
        with pytest.raises(DamagedIndexError, match="the record 'spec' cannot be read"):
            open_index(address)


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_checksums_of_views_that_are_a_pipe_or_huge_are_not_read(address: Path) -> None:
    store = Store(str(address))
    (address / "views.lance").mkdir()
    place = address / "views.lance" / "checksums.json"
    os.mkfifo(place)
    with within(20):
        assert read_views(store, ["key"], (16,)) == {}
    place.unlink()
    place.touch()
    make_hole(place, 1 << 40)
    with within(20):
        assert read_views(store, ["key"], (16,)) == {}
    append_views(store, {"key": EncodedBatch(rows=np.arange(2), descriptors=unit_rows(2, 3))}, is_first=True)
    assert list(read_views(store, ["key"], (16,))) == ["key"]
    remove_views(store)
    assert not (address / "views.lance").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_views_are_not_written_through_a_link(address: Path) -> None:
    mine = address.parent / "mine"
    mine.mkdir()
    store, batch = Store(str(address)), EncodedBatch(rows=np.arange(2), descriptors=unit_rows(2, 3))
    (address / "views.lance").symlink_to(mine)
    append_views(store, {"key": batch}, is_first=True)
    assert not list(mine.iterdir()) and list(read_views(store, ["key"], (16,))) == ["key"]
