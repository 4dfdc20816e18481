"""Commands on folders with odd file names, pipes, links and files of other kinds: one line about each, no traceback."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.cli import main
from cosplace.photos.paths import path_from_text
from tests.indexed_city import SIDE, queries, write_indexed_city

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX"),
]

ODD_NAMES = (
    b"caf\xe9.jpg", b"cr\rname.jpg", b"tab\tname.jpg", b'a,"b".jpg', b"back\\slash.jpg", b"literal\\xe9.jpg",
    b" space .jpg", b'=HYPERLINK("x").jpg', "東京.jpg".encode(), b"x" * 251 + b".jpg", b"\x1b[31mred.jpg",
    b"<script>.jpg", b"\xff\xfe.jpg",
)  # fmt: skip


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_indexed_city(tmp_path_factory.mktemp("odd"))


def rename_oddly(folder: Path) -> None:
    """Put odd notes into '@' names."""
    paths = sorted(folder.iterdir())
    for path, odd in zip(paths, ODD_NAMES, strict=False):
        start = os.fsencode(path.name)[: -len(b"@.jpg")]
        path.rename(folder / os.fsdecode((start + b"@" + odd)[:251].removesuffix(b".jpg") + b".jpg"))


def add_other_files(folder: Path) -> None:
    """Add files of other kinds, one with a line break in its name."""
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    (folder / "two\nlines.jpg").write_bytes(b"x")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")


SKIPPED = (
    "HEIC files: 1 (IMG_1.HEIC)",
    "videos: 1 (clip.mp4)",
    "pipes, sockets and devices: 1 (pipe.jpg)",
    "broken links: 1",
)


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main([*map(str, words)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.fixture
def odd(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the dataset with odd names and other files."""
    shutil.copytree(city / "city", tmp_path / "city")
    for folder in ("test/database", "test/queries_v1"):
        rename_oddly(tmp_path / "city" / folder)
        add_other_files(tmp_path / "city" / folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "city"


def test_eval_writes_a_report_of_any_names(odd: Path, city: Path, capsys) -> None:
    words = "--model", city / "model.pth", "--backbone", "ResNet18_Small", "--fc_output_dim", 16, "--device", "cpu"
    code, out, err = run(capsys, "eval", "--test_set_folder", odd / "test", *words, "--num_preds_to_save", 1)
    assert code == 0 and "R@1" in out + err
    assert all(err.count(text) == 2 for text in SKIPPED)
    folder = next(Path("logs").glob("*/*"))
    for name in ("info.log", "debug.log", "report.html", "results.json"):
        assert (folder / name).read_bytes().decode("utf-8")
    assert r"two\nlines.jpg" in err
    table = (folder / "preds" / "predictions.csv").read_bytes().decode("utf-8")
    rows = list(csv.reader(io.StringIO(table, newline="")))
    assert {len(row) for row in rows} == {7} and all(path_from_text(row[1]).is_file() for row in rows[1:])


def test_groups_count_photos_of_any_names(odd: Path, capsys) -> None:
    words = "--N", 1, "--L", 1, "--groups_num", 1, "--min_images_per_class", 1, "--json"
    code, out, err = run(capsys, "groups", odd / "test" / "database", *words)
    assert code == 0 and json.loads(out)["num_scanned"] == len(names_in(odd / "test" / "database"))
    assert all(text in err for text in SKIPPED)


def names_in(folder: Path) -> list[bytes]:
    return [os.fsencode(path.name) for path in folder.iterdir() if path.name[0] == "@"]


def test_index_and_locate_photos_of_any_names(odd: Path, city: Path, capsys) -> None:
    words = "--model", city / "model.pth", "--to", "index", "--image_size", SIDE, "--device", "cpu", "--no_calibrate"
    code, _, err = run(capsys, "index", "build", odd, *words)
    assert code == 0 and all(text in err for text in SKIPPED)
    photos = odd / "test" / "queries_v1"
    locate = "locate", photos, "--index", "index", "--uncalibrated", "--device", "cpu", "--min_confidence", 0
    names = sorted(names_in(photos))
    code, out, err = run(capsys, *locate)
    assert code == 0 and out.count("openstreetmap") == len(names) and all(text in err for text in SKIPPED)
    assert not set(out) & {"\r", "\t", "\x1b"} and r"caf\xe9.jpg" in out and r"cr\rname.jpg" in out
    code, out, _ = run(capsys, *locate, "--json")
    found = json.loads(out.encode("utf-8"))
    assert sorted(os.fsencode(path_from_text(entry["photo"]).name) for entry in found) == names
    assert all(path_from_text(entry["neighbours"][0]["path"]).is_file() for entry in found)
    code, out, _ = run(capsys, *locate, "--csv")
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert sorted(os.fsencode(path_from_text(row["photo"]).name) for row in rows) == names
    code, out, _ = run(capsys, *locate, "--geojson")
    assert code == 0 and len(json.loads(out)["features"]) == len(names)


def test_a_formula_in_a_name_is_written_as_a_path(city: Path, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(queries(city)[0], '=HYPERLINK("x").jpg')
    code, out, _ = run(capsys, "locate", '=HYPERLINK("x").jpg', "--index", city / "index", "--csv")
    assert code == 0 and next(csv.DictReader(io.StringIO(out)))["photo"] == './=HYPERLINK("x").jpg'


def test_one_odd_photo_does_not_take_the_others_with_it(city: Path, capsys, tmp_path: Path) -> None:
    good = queries(city)[:3]
    Image.fromarray(np.zeros((10, 50_000, 3), np.uint8)).save(tmp_path / "strip.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)
    odd = [tmp_path / name for name in ("strip.png", "pipe.jpg", "script.jpg", "huge.jpg", "missing.jpg")]
    (tmp_path / "index").symlink_to(city / "index")
    code, out, _ = run(capsys, "locate", *good, *odd, "--index", city / "index", "--json")
    errors = [entry.get("error", "") for entry in json.loads(out)]
    assert code == 0 and errors[:3] == [""] * 3
    for error, words in zip(errors[3:], ("", "a pipe", "PostScript", "larger than", "No such file"), strict=True):
        assert words in error
