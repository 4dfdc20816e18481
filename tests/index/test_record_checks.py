"""Records and checksums of an index that no writer stores: the index is damaged, one line says so."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cosplace.cli.index_maintenance import print_info
from cosplace.errors import CosPlaceError, DamagedIndexError
from cosplace.index.parts import choose_part
from cosplace.index.photo_index import open_index
from cosplace.index.record_checks import parse_record
from cosplace.index.verification import verify_index
from cosplace.localization.calibration import calibrate
from cosplace.localization.confidence import Calibration
from cosplace.localization.localizer import Localizer, read_calibration
from cosplace.report.calibration_page import calibration_page
from tests.hostile_json import changed
from tests.places import make_world, world_index
from tests.unusual_input.samples import within


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated index with all kinds of records."""
    address = tmp_path_factory.mktemp("written") / "index"
    with world_index(address, make_world(30)) as index:
        index.add_root("/photos")
        index.write_record("parts", {"datasets": [{"root": 0, "folder": ".", "part": "database"}]})
        calibrate(index, num_altered=0)
        index.write_record("next_id", {"next_id": 1000})
        index.write_record("checked_from", {"id": 0})
    return address


def use(address: Path, queries: np.ndarray) -> None:
    """Read everything that records say."""
    with open_index(address) as index:
        print_info(index.info())
        index.search(queries, 3)
        choose_part(index, "/photos", None)
        calibration = read_calibration(index)
        assert isinstance(calibration, Calibration)
        calibration_page(calibration, "made")
    Localizer(address).locate_descriptors(queries)
    Localizer(address, precision=0.5).locate_descriptors(queries)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    ["spec", "roots", "parts", pytest.param("calibration", marks=pytest.mark.long), "next_id", "checked_from"],
)
def test_any_changed_value_gives_an_answer_or_an_error(written: Path, key: str, monkeypatch) -> None:
    """The record is as if it were in the table: `read_record` is given its text."""
    from cosplace.index.store import Store

    queries = make_world(30).capture(np.arange(3), np.random.default_rng(5), (0.3, 1.2))[0]
    use(written, queries)
    with open_index(written) as index:
        record = index.read_record(key)
    read, wrong = Store._record_text, []
    for place, new in changed(record):
        text = json.dumps(new)
        monkeypatch.setattr(Store, "_record_text", lambda self, name, t=text: t if name == key else read(self, name))
        try:
            use(written, queries)
        except CosPlaceError as error:
            wrong += [f"{place}: {error}"] if "\n" in str(error) else []
        except Exception as error:
            wrong.append(f"{place}: {type(error).__name__} {error}")
    assert not wrong, "\n".join(wrong)


ODD = "\x1b[31m\nFAKE"


@pytest.mark.parametrize("about", [{"queries": ODD}, {"correction": "validation", "unlabeled": ODD}])
def test_texts_of_records_are_printed_in_one_line(written: Path, monkeypatch, capsys, about) -> None:
    from cosplace.index.store import Store

    with open_index(written) as index:
        spec = index.read_record("spec")
    assert spec is not None
    texts = {
        "spec": spec | {"model": spec["model"] | {"model": ODD, "checksum": ODD}},
        "roots": {"folders": [{"path": "/" + ODD}]},
    }
    read = Store._record_text
    monkeypatch.setattr(
        Store, "_record_text", lambda self, name: json.dumps(texts[name]) if name in texts else read(self, name)
    )
    with open_index(written) as index:
        print_info(index.info() | {"calibration": about, "calibrated": True})
    lines = capsys.readouterr().out
    assert "\x1b" not in lines and "FAKE" in lines and not any(line.startswith("FAKE") for line in lines.splitlines())


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("roots", '{"folders": [{"path": 5}]}'),
        ("roots", '{"folders": [{"path": "/photos", "relative": ["x"]}]}'),
        ("roots", '{"folders": [{"path": "/\\ud800"}]}'),
        ("checked_from", "{}"),
        ("checked_from", '{"id": Infinity}'),
        ("calibration", '{"about": 1}'),
        ("calibration", '{"about": {"overconfidence": true}}'),
        ("spec", '{"model": {"model": null, "checksum": "c", "dimension": 4}, "settings": {}}'),
        ("spec", '{"model": '),
        ("note", 'z"text": "hello"}'),
        ("note", "[1]"),
        ("note", "[" * 100_000),
    ],
)
def test_a_record_that_no_writer_stores_is_not_read(key: str, text: str) -> None:
    assert parse_record(key, text) is None


def test_settings_with_another_dimension_are_damage(tmp_path: Path) -> None:
    with world_index(tmp_path / "index", make_world(3)) as index:
        record = index.read_record("spec")
        assert record is not None
        index.write_record("spec", record | {"model": record["model"] | {"dimension": 8}})
    with pytest.raises(DamagedIndexError, match="its settings name 8 dimensions, its photos have 32"):
        open_index(tmp_path / "index")
    found = verify_index(tmp_path / "index")
    assert found.problems == ("its settings name 8 dimensions, its photos have 32",) and not found.can_repair


def test_verification_reads_the_records(written: Path, tmp_path: Path) -> None:
    address = shutil.copytree(written, tmp_path / "index")
    assert not verify_index(address).problems
    with open_index(address, write=True) as index:
        index.write_record("parts", {"datasets": [{"root": 0}]})
    found = verify_index(address)
    assert found.problems == ("the record 'parts' cannot be read",) and not found.can_repair


CHECKSUMS = {
    "a file elsewhere": lambda content: content["files"].update({"../other": [0, "x"]}),
    "an absolute path": lambda content: content["files"].update({"/etc/passwd": [0, "x"]}),
    "a zero": lambda content: content["files"].update({"a\0b": [0, "x"]}),
    "not Unicode": lambda content: content["files"].update({"\ud800": [0, "x"]}),
    "a long name": lambda content: content["files"].update({"a" * 5000: [0, "x"]}),
    "an infinite size": lambda content: content["files"].update({"x": [float("inf"), "x"]}),
    "a version as text": lambda content: content["versions"].update({"photos": "x"}),
    "another table": lambda content: content["versions"].update({"other": 1}),
}


@pytest.mark.parametrize("edit", CHECKSUMS)
def test_checksums_that_no_writer_stores_are_damage(written: Path, tmp_path: Path, edit: str) -> None:
    """The checksum of checksums.json is right."""
    address = shutil.copytree(written, tmp_path / "index")
    path = address / "checksums.json"
    content = json.loads(path.read_text())["content"]
    CHECKSUMS[edit](content)
    checksum = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
    path.write_text(json.dumps({"checksum": checksum, "content": content}))
    with pytest.raises(DamagedIndexError, match=r"checksums\.json cannot be read"):
        open_index(address)
    assert verify_index(address).problems == ("checksums.json cannot be read",)


def test_deep_checksums_are_damage(written: Path, tmp_path: Path) -> None:
    address = shutil.copytree(written, tmp_path / "index")
    (address / "checksums.json").write_text("[" * 100_000)
    with pytest.raises(DamagedIndexError, match=r"checksums\.json cannot be read"):
        open_index(address)


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_a_pipe_in_place_of_the_checksums_is_not_read(written: Path, tmp_path: Path) -> None:
    address = shutil.copytree(written, tmp_path / "index")
    (address / "checksums.json").unlink()
    os.mkfifo(address / "checksums.json")
    with within(20), pytest.raises(DamagedIndexError, match=r"checksums\.json cannot be read"):
        open_index(address)
    with within(20):
        assert verify_index(address).problems[0] == "checksums.json cannot be read"


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
@pytest.mark.parametrize("with_checksums", [True, False])
@pytest.mark.parametrize("pattern", ["photos.lance/data/*", "records.lance/_versions/*.manifest"])
def test_a_pipe_in_place_of_a_file_is_not_read(
    written: Path, tmp_path: Path, pattern: str, *, with_checksums: bool
) -> None:
    address = shutil.copytree(written, tmp_path / "index")
    if not with_checksums:  # as of an earlier version
        (address / "checksums.json").unlink()
    path = next(address.glob(pattern))
    path.unlink()
    os.mkfifo(path)
    name = path.relative_to(address).as_posix()
    with within(20), pytest.raises(DamagedIndexError, match=f"{name} is not a regular file"):
        open_index(address)
    with within(20):
        found = verify_index(address)
    assert f"{name} is not a regular file" in found.problems and not found.can_repair
